//! The simulated machine: threads as CPUs, each with a translation buffer that keeps every translation and every
//! pointer to a leaf table that it has ever used until it is flushed, which is the worst that the manual allows
//! (Intel SDM vol. 3A, 4.10). It walks the real page tables in the real frames, and knows nothing of the address
//! space's own bookkeeping.
//!
//! An instruction holds its CPU's buffer from translation to access, and a flush of that CPU waits for it: as on real
//! processors, an interrupt is taken between instructions.
#![allow(dead_code, reason = "each test program uses a part")]

use std::{
    cell::Cell,
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use addr::{Frame, Page, PageRange, Prot, Pte};
use aspace::{
    Access, AddressSpace, Backing, Error, Fault, Locked, Machine, Mappers, Mapping, Object, ObjectError,
    PageTables, Policy, Radix, Realm,
};
use owned::{Memory, OwnedFrame, Use, testing};
use percpu::{CpuId, CpuSet, Pinned, Unpinned, testing::Machine as Cpus};
use tlb::Shootdown;

pub const RW: Prot = Prot::READ.union(Prot::WRITE);

/// Which address space is tested: the program named after it has all the tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Design {
    Locked,
    /// With one page table.
    Radix,
    /// With one for each CPU.
    RadixPerCpu,
}

/// The design of this program.
pub const fn design() -> Design {
    match env!("CARGO_CRATE_NAME").as_bytes() {
        b"radix" => Design::Radix,
        b"radix_percpu" => Design::RadixPerCpu,
        _ => Design::Locked,
    }
}

/// Accesses after which a CPU does its regular work.
const TICK: u32 = 16;

thread_local! {
    /// Accesses of this thread.
    static ACCESSES: Cell<u32> = const { Cell::new(0) };
}

/// What one CPU has cached.
#[derive(Default)]
struct Buffer {
    root: Option<Frame>,
    entries: HashMap<Page, Pte>,
    /// Leaf tables, by page number / 512.
    tables: HashMap<u64, Frame>,
}

/// The machine. It lives for ever, since address spaces keep references to it.
pub struct Sim {
    pub cpus: Cpus,
    pub frames: &'static Memory,
    /// What radix trees live in.
    pub realm: &'static Realm,
    buffers: Vec<Mutex<Buffer>>,
    pub flushes: AtomicUsize,
    /// All CPUs that were flushed.
    pub targets: Mutex<CpuSet>,
    /// Called at the start of every flush.
    pub on_flush: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Sim {
    pub fn new(cpus: usize, frames: usize) -> &'static Sim {
        let realm: &Realm = Box::leak(Box::new(Realm::new(cpus, std::thread::yield_now)));
        realm.init();
        let machine = Cpus::new(cpus);
        (0..cpus).for_each(|cpu| machine.on(cpu, |ctx| realm.idle_exit(&mut ctx.pin())));
        Box::leak(Box::new(Sim {
            cpus: machine,
            frames: testing::memory(frames, cpus),
            realm,
            buffers: (0..cpus).map(|_| Mutex::default()).collect(),
            flushes: AtomicUsize::new(0),
            targets: Mutex::default(),
            on_flush: Mutex::new(None),
        }))
    }
    pub fn machine(&'static self) -> Machine {
        Machine { frames: self.frames, shootdown: self, kernel_root: None }
    }
    pub fn space(&'static self, ctx: &Unpinned<'_>) -> Arc<dyn AddressSpace> {
        self.try_space(ctx).expect("there is memory for a root")
    }
    pub fn try_space(&'static self, ctx: &Unpinned<'_>) -> Result<Arc<dyn AddressSpace>, Error> {
        Ok(match design() {
            Design::Locked => Locked::new(self.machine(), ctx)?,
            Design::Radix => Radix::new(self.machine(), self.realm, PageTables::Shared, ctx)?,
            Design::RadixPerCpu => Radix::new(self.machine(), self.realm, PageTables::PerCpu, ctx)?,
        })
    }
    /// A CPU's regular work.
    pub fn tick(&self, ctx: &Unpinned<'_>) {
        self.realm.tick(&mut ctx.pin());
        self.realm.reap(ctx);
    }
    /// Frames that somebody owns.
    pub fn owned(&self) -> [u64; Use::COUNT] {
        let s = self.frames.stats();
        assert_eq!(s.free + s.cached + s.owned.iter().sum::<u64>(), s.total, "frames were lost: {s:?}");
        s.owned
    }
    fn buffer(&self, cpu: CpuId) -> MutexGuard<'_, Buffer> {
        self.buffers[cpu.index()].lock().unwrap_or_else(|e| e.into_inner())
    }
    /// The CPU runs `space` from here on.
    pub fn enter(&self, space: &dyn AddressSpace, ctx: &Unpinned<'_>) {
        let pin = ctx.pin();
        let root = space.activate(&pin);
        *self.buffer(pin.cpu()) = Buffer { root: Some(root), ..Buffer::default() };
    }
    /// The CPU runs `space` no more.
    pub fn leave(&self, space: &dyn AddressSpace, ctx: &Unpinned<'_>) {
        let pin = ctx.pin();
        *self.buffer(pin.cpu()) = Buffer::default();
        space.deactivate(&pin);
    }
    /// Word `word` of page `at`, by the CPU of `ctx`, which runs `space`.
    pub fn load(&self, space: &dyn AddressSpace, at: Page, ctx: &Unpinned<'_>) -> Result<u64, Fault> {
        self.user(space, at, Access::Read, ctx, |word| word.load(Ordering::SeqCst))
    }
    pub fn store(
        &self,
        space: &dyn AddressSpace,
        at: Page,
        value: u64,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Fault> {
        self.user(space, at, Access::Write, ctx, |word| word.store(value, Ordering::SeqCst))
    }
    pub fn fetch(&self, space: &dyn AddressSpace, at: Page, ctx: &Unpinned<'_>) -> Result<(), Fault> {
        self.user(space, at, Access::Exec, ctx, |_| ())
    }
    fn user<R>(
        &self,
        space: &dyn AddressSpace,
        at: Page,
        access: Access,
        ctx: &Unpinned<'_>,
        f: impl Fn(&AtomicU64) -> R,
    ) -> Result<R, Fault> {
        let accesses = ACCESSES.replace(ACCESSES.get().wrapping_add(1));
        if accesses.is_multiple_of(TICK) {
            self.tick(ctx);
        }
        loop {
            let instruction = {
                let pin = ctx.pin();
                let mut buffer = self.buffer(pin.cpu());
                self.translate(&mut buffer, at, access).map(|frame| f(&self.entries(frame)[0]))
            };
            match instruction {
                Some(result) => return Ok(result),
                None => space.fault(at.base(), access, ctx)?,
            }
        }
    }
    /// The hardware's part of an access; `None` is a page fault.
    fn translate(&self, buffer: &mut Buffer, at: Page, access: Access) -> Option<Frame> {
        if let Some(entry) = buffer.entries.get(&at) {
            if access.allowed_by(entry.prot()) {
                return Some(entry.frame());
            }
            // A page fault drops what it was caused by (4.10.4.3).
            buffer.entries.remove(&at);
            buffer.tables.remove(&(at.number() >> 9));
            return None;
        }
        let leaf = match buffer.tables.get(&(at.number() >> 9)) {
            Some(&leaf) => leaf,
            None => {
                let mut table = buffer.root.expect("the CPU runs an address space");
                for level in [3, 2, 1] {
                    let link = Pte::from_bits(self.entries(table)[at.index(level)].load(Ordering::SeqCst));
                    if !link.is_present() {
                        return None;
                    }
                    table = link.frame();
                }
                buffer.tables.insert(at.number() >> 9, table);
                table
            }
        };
        let slot = &self.entries(leaf)[at.index(0)];
        loop {
            let old = slot.load(Ordering::SeqCst);
            let entry = Pte::from_bits(old);
            if !entry.is_present() || !access.allowed_by(entry.prot()) {
                buffer.tables.remove(&(at.number() >> 9));
                return None;
            }
            let dirty = if access == Access::Write { Pte::DIRTY } else { 0 };
            let new = old | Pte::ACCESSED | dirty;
            // The hardware sets its bits only in an entry that is still what it has read.
            if slot.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                buffer.entries.insert(at, entry);
                return Some(entry.frame());
            }
        }
    }
    /// A frame as words.
    pub fn entries(&self, frame: Frame) -> &[AtomicU64] {
        let first = self.frames.dm().ptr(frame.base()).cast::<AtomicU64>();
        // SAFETY: the arena is never unmapped; a stale translation may lead to a free frame, whose bytes are still
        // there: that is what the tests look for.
        unsafe { std::slice::from_raw_parts(first, 512) }
    }
}

impl Shootdown for Sim {
    fn flush(&self, _: &Pinned<'_>, cpus: &CpuSet, range: PageRange) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        cpus.iter().for_each(|cpu| self.targets.lock().unwrap_or_else(|e| e.into_inner()).insert(cpu));
        if let Some(f) = self.on_flush.lock().unwrap_or_else(|e| e.into_inner()).as_ref() {
            f();
        }
        for cpu in cpus.iter() {
            // Give the others a chance to use what is about to go.
            std::thread::yield_now();
            let mut buffer = self.buffer(cpu);
            buffer.entries.retain(|page, _| !range.contains(*page));
            buffer.tables.clear();
        }
    }
}

/// An object of some pages, each with a number in its first word.
pub struct Pages {
    id: (u64, u64),
    frames: Mutex<Vec<OwnedFrame>>,
    mappers: Mappers,
    /// Called before a page is given.
    pub on_page: Mutex<Option<Box<dyn Fn() + Send>>>,
    /// Called when a page was given, before its user has it.
    pub on_given: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Pages {
    pub fn new(sim: &Sim, inode: u64, contents: &[u64], ctx: &Unpinned<'_>) -> Arc<Self> {
        let pin = ctx.pin();
        let frames = contents.iter().map(|&value| {
            let frame = sim.frames.alloc_zeroed(&pin, Use::File).expect("there is memory for the object");
            sim.entries(frame.frame())[0].store(value, Ordering::SeqCst);
            frame
        });
        let (id, mappers) = ((1, inode), Mappers::new());
        let frames = Mutex::new(frames.collect());
        Arc::new(Self { id, frames, mappers, on_page: Mutex::new(None), on_given: Mutex::new(None) })
    }
    /// Make it `pages` pages long; new ones are zero.
    pub fn resize(&self, sim: &Sim, pages: usize, ctx: &Unpinned<'_>) {
        let mut frames = self.frames.lock().unwrap();
        let kept = pages.min(frames.len());
        let cut = frames.split_off(kept);
        let pin = ctx.pin();
        while frames.len() < pages {
            frames.push(sim.frames.alloc_zeroed(&pin, Use::File).expect("there is memory for the object"));
        }
        drop(frames);
        drop(pin);
        self.mappers.cut(pages as u64..u64::MAX, true, ctx);
        cut.into_iter().for_each(|frame| sim.frames.free(&ctx.pin(), frame));
    }
    /// Make page `index` zero again, in a frame of its own.
    pub fn punch_page(&self, sim: &Sim, index: usize, ctx: &Unpinned<'_>) {
        let fresh = sim.frames.alloc_zeroed(&ctx.pin(), Use::File).expect("there is memory for the object");
        let mut frames = self.frames.lock().unwrap();
        let Some(slot) = frames.get_mut(index) else {
            drop(frames);
            return sim.frames.free(&ctx.pin(), fresh);
        };
        let old = std::mem::replace(slot, fresh);
        drop(frames);
        self.mappers.cut(index as u64..index as u64 + 1, false, ctx);
        sim.frames.free(&ctx.pin(), old);
    }
    /// No shared mapping may write from now on; false if one can.
    pub fn seal(&self) -> bool {
        self.mappers.seal()
    }
    /// How many mappings show it.
    pub fn mapped(&self, ctx: &Unpinned<'_>) -> u64 {
        self.mappers.count(ctx)
    }
    pub fn free(&self, sim: &Sim, ctx: &Unpinned<'_>) {
        let pin = ctx.pin();
        self.frames.lock().unwrap().drain(..).for_each(|frame| sim.frames.free(&pin, frame));
    }
}

impl Object for Pages {
    fn page(
        &self,
        index: u64,
        _: &Policy,
        frames: &Memory,
        _: &Unpinned<'_>,
    ) -> Result<OwnedFrame, ObjectError> {
        let on_page = self.on_page.lock().unwrap().take();
        if let Some(f) = on_page {
            f();
        }
        let pages = self.frames.lock().unwrap();
        let page = usize::try_from(index).ok().and_then(|i| pages.get(i)).ok_or(ObjectError::BeyondEnd)?;
        let share = frames.share(page);
        drop(pages);
        let on_given = self.on_given.lock().unwrap().take();
        if let Some(f) = on_given {
            f();
        }
        Ok(share)
    }
    fn identity(&self) -> (u64, u64) {
        self.id
    }
    fn path(&self) -> Vec<u8> {
        b"/object".to_vec()
    }
    fn mappers(&self) -> Option<&Mappers> {
        Some(&self.mappers)
    }
}

pub fn anonymous(prot: Prot) -> Mapping {
    Mapping::anonymous(prot)
}
pub fn object(pages: &Arc<Pages>, page: u64, prot: Prot, shared: bool) -> Mapping {
    let backing = Backing::Object { object: pages.clone(), page };
    Mapping { shared, ..Mapping::new(prot, backing) }
}
pub fn page(n: u64) -> Page {
    Page::new(n).expect("a page number")
}
pub fn range(start: u64, pages: u64) -> PageRange {
    PageRange::with_len(page(start), pages).expect("a range of pages")
}
/// The mappings, as the model lists them.
pub fn list(space: &dyn AddressSpace, ctx: &Unpinned<'_>) -> Vec<(PageRange, aspace::model::State)> {
    let mut list = Vec::new();
    space.mappings(ctx, &mut |info| {
        let m = info.mapping;
        let object = match &m.backing {
            Backing::Anonymous => None,
            Backing::Object { object, page } => Some((object.identity(), *page)),
        };
        let state = aspace::model::State {
            prot: m.prot,
            max_prot: m.max_prot,
            shared: m.shared,
            label: m.label,
            flags: m.flags,
            policy: m.policy,
            object,
            own: None,
            guard: false,
        };
        list.push((info.range, state));
    });
    list
}
/// For matching on errors in a test's own words.
pub type Answer<T> = Result<T, Error>;
