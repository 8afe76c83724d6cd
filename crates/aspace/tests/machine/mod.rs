//! The simulated machine: threads as CPUs, each with a translation buffer as bad as the manual allows (`buffer`). It
//! walks the real page tables in the real frames, and knows nothing of the address space's own bookkeeping.
//!
//! An instruction holds its CPU's buffer from translation to access, and a flush of that CPU waits for it: as on real
//! processors, an interrupt is taken between instructions.
//!
//! # What is checked
//! * **T1** *A frame is never free while a CPU can translate to it*, by what it has cached or by a walk from its root or a
//!   cached pointer: at each fill, and for all CPUs whenever a frame is given back.
//! * **T2** *When an operation has returned, no CPU has more than it left*: for every page that nobody is changing, what is
//!   cached is for the page's frame and grants no more than the page does ([`Sim::audit`]).
//! * **T3** *Who translates a page would be told of its end*: by the same look, in the buffers and in all page tables.
//! * **T4** *A page-table page is never free while a walk could come to it*: as T1.
//! * **T5** *No address is translated by entries of two sizes*: at each fill.
#![allow(dead_code, reason = "each test program uses a part")]

pub mod buffer;

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex, MutexGuard, Once,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use addr::{Frame, Page, PageRange, Prot};
use aspace::{
    Access, AddressSpace, Advice, Backing, Collect, Error, Exclude, Fault, Machine, Mappers, Mapping, Object,
    ObjectError, PageTables, Placement, Policy, Radix, Realm, Serial, Variant,
};
use owned::{Memory, OwnedFrame, Use, testing};
use percpu::{CpuId, CpuSet, Pinned, Unpinned, testing::Machine as Cpus};
use tlb::Shootdown;

use buffer::Buffer;

pub const RW: Prot = Prot::READ.union(Prot::WRITE);

/// Which address space is tested: the program named after it has all the tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Design {
    Locked,
    /// With one page table.
    Radix,
    /// With one for each CPU.
    RadixPerCpu,
    Bonsai,
    /// With leaves, also where there are few mappings.
    BonsaiLeaves,
}

/// The design of this program.
pub const fn design() -> Design {
    match env!("CARGO_CRATE_NAME").as_bytes() {
        b"radix" => Design::Radix,
        b"radix_percpu" => Design::RadixPerCpu,
        b"bonsai" => Design::Bonsai,
        b"bonsai_leaves" => Design::BonsaiLeaves,
        _ => Design::Locked,
    }
}

/// So often all CPUs tick until what is retired is free: begin a period, end it, and free.
const PERIODS: usize = 12;
/// Accesses after which a CPU does its regular work.
const TICK: u32 = 16;
/// Of so many frames that are given back, one is looked for in all page tables that CPUs have loaded.
const LOOKED_FOR: usize = 8;
/// Pages of a range for which all CPUs walk when it is about to be flushed.
const SPECULATED: usize = 16;

thread_local! {
    /// Accesses of this thread.
    static ACCESSES: Cell<u32> = const { Cell::new(0) };
}

/// What is called once.
type Call = Box<dyn FnOnce() + Send>;

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
    /// Of what, the last time.
    pub flushed: Mutex<PageRange>,
    /// Called at the start of every flush.
    pub on_flush: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
    /// Faults that accesses had.
    pub faults: AtomicUsize,
    /// Called, once, when a frame is asked for that is for this use.
    pub on_asking: Mutex<Option<(Use, Call)>>,
    /// Frames that were given back.
    freed: AtomicUsize,
}

/// Whether a thread has failed. It may have had slots locked, for which others would wait for ever.
static FAILED: AtomicBool = AtomicBool::new(false);

/// Wait a little for another CPU; not any longer once one has failed.
pub fn relax() {
    std::thread::yield_now();
    let failing = std::thread::panicking();
    assert!(failing || !FAILED.load(Ordering::Relaxed), "another CPU has failed");
}

impl Sim {
    pub fn new(cpus: usize, frames: usize) -> &'static Sim {
        static TOLD: Once = Once::new();
        TOLD.call_once(|| {
            let usual = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                if !FAILED.swap(true, Ordering::Relaxed) {
                    // Some wait by other ways than `relax`. Of a seeded fault nobody wants to know more than that it is noticed.
                    let patience = if std::env::var_os("QUIRE_MUTANT").is_some() { 2 } else { 20 };
                    std::thread::spawn(move || {
                        std::thread::sleep(Duration::from_secs(patience));
                        std::process::exit(101);
                    });
                }
                usual(info);
            }));
        });
        let memory = testing::memory(frames, cpus);
        let realm: &Realm = Box::leak(Box::new(Realm::new(cpus, memory, relax)));
        realm.init();
        let machine = Cpus::new(cpus);
        (0..cpus).for_each(|cpu| machine.on(cpu, |ctx| realm.idle_exit(&mut ctx.pin())));
        let sim: &Sim = Box::leak(Box::new(Sim {
            cpus: machine,
            frames: memory,
            realm,
            buffers: (0..cpus).map(|_| Mutex::default()).collect(),
            faults: AtomicUsize::new(0),
            flushes: AtomicUsize::new(0),
            targets: Mutex::default(),
            flushed: Mutex::default(),
            on_flush: Mutex::new(None),
            on_asking: Mutex::new(None),
            freed: AtomicUsize::new(0),
        }));
        sim.frames.watch(Box::new(|first, order, _| {
            (first.number()..first.number() + (1 << order))
                .filter_map(Frame::new)
                .for_each(|frame| sim.given_back(frame));
        }));
        sim.frames.watch_asking(Box::new(|usage| {
            let mut waits = sim.on_asking.lock().unwrap_or_else(|e| e.into_inner());
            let once = waits.take_if(|(wanted, _)| *wanted == usage);
            drop(waits);
            once.into_iter().for_each(|(_, f)| f());
        }));
        sim
    }
    /// T1 and T4: `frame` is free from here on.
    fn given_back(&self, frame: Frame) {
        let nth = self.freed.fetch_add(1, Ordering::Relaxed);
        for cpu in self.cpus.ids() {
            let buffer = self.buffer(cpu);
            let used =
                buffer.holds(frame) || nth.is_multiple_of(LOOKED_FOR) && buffer.reaches(self.frames, frame);
            drop(buffer);
            assert!(!used, "T1, T4: {frame:?} is given back while {cpu:?} can still translate to it");
        }
    }
    /// T2 and T3: what CPUs have cached of `range` of `space` is what they may have. Changes to these pages wait.
    pub fn audit(&self, space: &dyn AddressSpace, range: PageRange, ctx: &Unpinned<'_>) {
        space.audit(range, ctx, &mut |page| {
            self.cpus.ids().for_each(|cpu| self.buffer(cpu).audit(cpu, identity(space), page));
        });
    }
    /// The frame that `at` has.
    pub fn frame_of(&self, space: &dyn AddressSpace, at: Page, ctx: &Unpinned<'_>) -> Option<Frame> {
        let mut frame = None;
        space.audit(PageRange::single(at).expect("a page"), ctx, &mut |page| frame = page.frame);
        frame
    }
    /// Some CPU fills its buffer with something of `pages`, or loses part of it, as processors do when they like.
    pub fn stir(&self, pages: PageRange, mut random: impl FnMut(u64) -> u64) {
        let cpu = CpuId::new(random(self.cpus.cpus() as u64) as usize).expect("a CPU");
        let mut buffer = self.buffer(cpu);
        match random(8) {
            0 => buffer.evict(|| random(4) == 0),
            1 => buffer.evict(|| random(2) == 0),
            _ => {
                let at = Page::new(pages.start().number() + random(pages.len())).expect("a page");
                buffer.speculate(self.frames, at);
            }
        }
    }
    pub fn machine(&'static self) -> Machine {
        Machine { frames: self.frames, shootdown: self, kernel_root: None }
    }
    pub fn space(&'static self, ctx: &Unpinned<'_>) -> Arc<dyn AddressSpace> {
        self.try_space(ctx).expect("there is memory for a root")
    }
    pub fn try_space(&'static self, ctx: &Unpinned<'_>) -> Result<Arc<dyn AddressSpace>, Error> {
        Ok(match design() {
            Design::Locked => Serial::locked(self.machine(), self.cpus.cpus(), Variant::default(), ctx)?,
            Design::Radix => Radix::new(self.machine(), self.realm, PageTables::Shared, ctx)?,
            Design::RadixPerCpu => Radix::new(self.machine(), self.realm, PageTables::PerCpu, ctx)?,
            Design::Bonsai => Serial::bonsai(self.machine(), self.realm, Exclude::Rcu, ctx)?,
            Design::BonsaiLeaves => {
                Serial::bonsai_with_leaves(self.machine(), self.realm, Exclude::Rcu, 1, ctx)?
            }
        })
    }
    /// A CPU's regular work.
    pub fn tick(&self, ctx: &Unpinned<'_>) {
        self.realm.tick(&mut ctx.pin());
        self.realm.reap(ctx);
    }
    /// All sections that are open now have ended, and what waits for that is free. The caller holds no pin.
    fn settle(&self) {
        if matches!(design(), Design::Bonsai | Design::BonsaiLeaves) {
            let all = || self.cpus.ids().for_each(|cpu| self.cpus.on(cpu.index(), |ctx| self.tick(&ctx)));
            // The caller may stand on a CPU already.
            std::thread::scope(|s| s.spawn(|| (0..PERIODS).for_each(|_| all())).join()).expect("CPUs tick");
        }
    }
    /// Frames that somebody owns.
    pub fn owned(&self) -> [u64; Use::COUNT] {
        self.settle();
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
        *self.buffer(pin.cpu()) = Buffer::load(root, identity(space));
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
    /// Whether CPU number `cpu`, which runs a space, would store to `at` now without a fault.
    pub fn may_store(&self, cpu: usize, at: Page) -> bool {
        let cpu = CpuId::new(cpu).expect("a CPU");
        self.buffer(cpu).translate(self.frames, at, Access::Write).is_some()
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
                buffer.translate(self.frames, at, access).map(|frame| f(&self.entries(frame)[0]))
            };
            if let Some(result) = instruction {
                return Ok(result);
            }
            self.faults.fetch_add(1, Ordering::Relaxed);
            space.fault(at.base(), access, ctx)?;
        }
    }
    /// A frame as words.
    pub fn entries(&self, frame: Frame) -> &[AtomicU64] {
        buffer::words(self.frames, frame)
    }
}

/// Tells address spaces apart, as long as they live.
fn identity(space: &dyn AddressSpace) -> usize {
    std::ptr::from_ref(space).addr()
}

impl Shootdown for Sim {
    fn flush(&self, _: &Pinned<'_>, cpus: &CpuSet, range: PageRange) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        *self.flushed.lock().unwrap_or_else(|e| e.into_inner()) = range;
        cpus.iter().for_each(|cpu| self.targets.lock().unwrap_or_else(|e| e.into_inner()).insert(cpu));
        // It may lead to a flush itself.
        let on_flush = self.on_flush.lock().unwrap_or_else(|e| e.into_inner()).clone();
        if let Some(f) = on_flush {
            f();
        }
        // What could be walked to until now has been changed already.
        for cpu in self.cpus.ids() {
            let mut buffer = self.buffer(cpu);
            range.into_iter().take(SPECULATED).for_each(|at| buffer.speculate(self.frames, at));
        }
        for cpu in cpus.iter() {
            // Give the others a chance to use what is about to go.
            std::thread::yield_now();
            self.buffer(cpu).flush(range);
        }
    }
}

/// A small generator of numbers (xorshift64*, Vigna, "An experimental exploration of Marsaglia's xorshift
/// generators, scrambled", 2016), so that a seed names a run as far as the host's scheduler allows.
pub struct Random(u64);

impl Random {
    /// CPU number `cpu`'s, of the run of that seed.
    pub fn new(seed: u64, cpu: usize) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (cpu as u64 + 1) << 40 | 1)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
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
    /// Whether pages are at hand for who may not sleep; by default each second time.
    pub at_hand: Mutex<Option<bool>>,
    turn: AtomicBool,
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
        let (on_page, on_given, at_hand) = (Mutex::new(None), Mutex::new(None), Mutex::new(None));
        Arc::new(Self { id, frames, mappers, on_page, on_given, at_hand, turn: AtomicBool::new(false) })
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

impl Pages {
    fn give(
        &self,
        index: u64,
        ctx: &Unpinned<'_>,
        give: impl Fn(&OwnedFrame) -> OwnedFrame,
    ) -> Result<OwnedFrame, ObjectError> {
        // As a file's pages may have to be waited for: who is pinned can't, and the machine says so.
        ctx.waker().wake();
        ctx.park();
        let on_page = self.on_page.lock().unwrap().take();
        if let Some(f) = on_page {
            f();
        }
        self.give_now(index, give).ok_or(ObjectError::BeyondEnd)
    }
    fn give_now(&self, index: u64, give: impl Fn(&OwnedFrame) -> OwnedFrame) -> Option<OwnedFrame> {
        let pages = self.frames.lock().unwrap();
        let given = give(usize::try_from(index).ok().and_then(|i| pages.get(i))?);
        drop(pages);
        let on_given = self.on_given.lock().unwrap().take();
        if let Some(f) = on_given {
            f();
        }
        Some(given)
    }
}

impl Object for Pages {
    fn page(
        &self,
        index: u64,
        _: &Policy,
        frames: &Memory,
        ctx: &Unpinned<'_>,
    ) -> Result<OwnedFrame, ObjectError> {
        self.give(index, ctx, |page| frames.share(page))
    }
    fn lend(
        &self,
        index: u64,
        _: &Policy,
        frames: &Memory,
        ctx: &Unpinned<'_>,
    ) -> Result<OwnedFrame, ObjectError> {
        self.give(index, ctx, |page| frames.lend(page))
    }
    fn at_hand(&self, index: u64, lent: bool, frames: &Memory, _: &Pinned<'_>) -> Option<OwnedFrame> {
        let turn = || self.turn.fetch_xor(true, Ordering::Relaxed);
        let here =
            self.at_hand.lock().unwrap().unwrap_or_else(turn) && self.on_page.lock().unwrap().is_none();
        here.then(|| self.give_now(index, |page| if lent { frames.lend(page) } else { frames.share(page) }))?
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
            policy: m.policy.get(),
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

/// One CPU's `steps` on pages from `base` on, which all CPUs use.
pub fn storm(
    sim: &'static Sim,
    space: &dyn AddressSpace,
    base: u64,
    random: &mut Random,
    steps: u64,
    ctx: &Unpinned<'_>,
) {
    sim.enter(space, ctx);
    for stamp in 0..steps {
        let (at, pages) = (base + random.below(12), 1 + random.below(4));
        match random.below(8) {
            0 => {
                let there = Placement::Fixed(page(at));
                space.map(there, pages, anonymous(RW), ctx).expect("there is room");
            }
            1 => assert_eq!(space.unmap(range(at, pages), ctx), Ok(())),
            2 => {
                let prot = random.pick(&[RW, Prot::READ, Prot::empty()]);
                let answer = space.protect(range(at, pages), prot, ctx);
                assert!(matches!(answer, Ok(()) | Err(Error::NoMapping)), "{answer:?}");
            }
            3 => drop(space.advise(range(at, pages), Advice::DontNeed, ctx)),
            4 => drop(sim.load(space, page(at), ctx)),
            _ => drop(sim.store(space, page(at), stamp, ctx)),
        }
        sim.stir(range(base, 16), |n| random.below(n));
        sim.audit(space, range(base + random.below(12), 4), ctx);
    }
    sim.leave(space, ctx);
}
