//! Every interleaving of CPUs that use, take away and map anew one page of an address space in which each CPU has a page table
//! of its own, and the page's slot says whose tables may have an entry: nobody's, one CPU's, or several.
//!
//! The slot's lock is a real one, and so are the gather, the set of CPUs and the frames. A CPU that waits takes interrupts. What
//! is shown: no CPU uses a frame that has another owner already, and who has mapped the page anew reads what it has stored.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release -p quire-tlb --test loom_owner`.
#![cfg(loom)]

use addr::{Frame, PageRange, Prot, Pte};
use loom::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};
use owned::{Memory, OwnedFrame, Use, testing};
use percpu::{AtomicCpuSet, CpuId, CpuSet, Pinned, Unpinned, testing::Machine, testing::explore};
use sync::SpinLock;
use tlb::{Gather, Shootdown};

/// A frame's bytes.
#[derive(Default)]
struct Bytes(UnsafeCell<u64>);

// SAFETY: loom fails the test if two accesses race; that none do is what is shown.
unsafe impl Sync for Bytes {}

/// What the page's slot says.
#[derive(Clone, Copy, PartialEq)]
enum Owner {
    Nobody,
    One(usize),
    Several,
}

#[derive(Clone, Copy)]
struct Slot {
    frame: Option<Frame>,
    owner: Owner,
}

/// A step that is out of order: the model must notice.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    Right,
    /// The slot is unlocked before the others have forgotten the page.
    UnlockFirst,
    /// The second CPU that uses the page is noted as its only user.
    ForgetFirstUser,
}

struct Sim {
    cpus: Machine,
    frames: &'static Memory,
    active: AtomicCpuSet,
    slot: SpinLock<Slot>,
    /// The page's entry in each CPU's table.
    entries: [AtomicU64; 2],
    /// Whether CPU 1 was asked to flush.
    asked: AtomicBool,
    over: AtomicBool,
    bytes: [Bytes; 3],
    /// Stands for the order that the allocator makes between a frame's owners, which its own models show: it isn't
    /// explored here.
    handed_on: AtomicU64,
    order: Order,
}

/// Interprocessor interrupts: CPU 1 looks at `asked` between instructions. Nobody asks CPU 0.
impl Shootdown for Sim {
    fn flush(&self, _: &Pinned<'_>, cpus: &CpuSet, _: PageRange) {
        if cpus.iter().all(|cpu| cpu.index() != 1) {
            return;
        }
        // Release: what was changed before is seen by the handler; partner: the load in `interrupt`.
        self.asked.store(true, Ordering::Release);
        // Acquire: what CPU 1 did before it flushed comes before what follows here; partner: the store there.
        while self.asked.load(Ordering::Acquire) {
            thread::yield_now();
        }
    }
}

impl Sim {
    fn new(order: Order) -> Arc<Self> {
        let sim = Self {
            cpus: Machine::new(2),
            frames: testing::memory(16, 2),
            active: AtomicCpuSet::new(),
            slot: SpinLock::new(Slot { frame: None, owner: Owner::Nobody }),
            entries: [AtomicU64::new(0), AtomicU64::new(0)],
            asked: AtomicBool::new(false),
            over: AtomicBool::new(false),
            bytes: Default::default(),
            handed_on: AtomicU64::new(0),
            order,
        };
        Arc::new(sim)
    }
    fn bytes(&self, frame: Frame) -> &UnsafeCell<u64> {
        &self.bytes[(frame.number() - 512) as usize].0
    }
    /// CPU 1, between two instructions.
    fn interrupt(&self, buffer: &mut Option<Frame>) {
        // Acquire, Release: partners in `flush`.
        if self.asked.load(Ordering::Acquire) {
            *buffer = None;
            self.asked.store(false, Ordering::Release);
        }
    }
    /// A fault of CPU `cpu`, which takes interrupts while it waits: the page has a frame afterwards, and the CPU an entry. Whether
    /// it is a new one, which holds `stamp`.
    fn fault(&self, cpu: usize, stamp: u64, buffer: &mut Option<Frame>, ctx: &Unpinned<'_>) -> bool {
        let mut slot = loop {
            match self.slot.try_lock() {
                Some(slot) => break slot,
                None => {
                    self.interrupt(buffer);
                    thread::yield_now();
                }
            }
        };
        let fresh = slot.frame.is_none();
        let frame = slot.frame.unwrap_or_else(|| {
            let fresh = self.frames.alloc(&ctx.pin(), Use::Anonymous).expect("there are frames").into_raw();
            // AcqRel, here and below: who gets a frame comes after what was done to it before it was freed.
            self.handed_on.fetch_add(1, Ordering::AcqRel);
            // SAFETY: loom says if it isn't this CPU's alone.
            self.bytes(fresh).with_mut(|bytes| unsafe { *bytes = stamp });
            fresh
        });
        slot.frame = Some(frame);
        slot.owner = match slot.owner {
            Owner::Nobody => Owner::One(cpu),
            Owner::One(one) if one == cpu || self.order == Order::ForgetFirstUser => Owner::One(cpu),
            _ => Owner::Several,
        };
        // Release: as in `Mirror::set`.
        self.entries[cpu].store(Pte::user_page(frame, Prot::READ).bits(), Ordering::Release);
        fresh
    }
    /// CPU 1, one load from the page: by the buffer if it has the translation, else by its table. Nothing without either.
    fn load(&self, buffer: &mut Option<Frame>) -> Option<u64> {
        let frame = buffer.or_else(|| {
            // Relaxed: the hardware's walk is ordered by nothing but what the protocol does.
            let entry = Pte::from_bits(self.entries[1].load(Ordering::Relaxed));
            entry.is_present().then(|| entry.frame())
        });
        *buffer = frame;
        // SAFETY: loom says if somebody else writes them.
        frame.map(|frame| self.bytes(frame).with(|bytes| unsafe { *bytes }))
    }
    /// CPU 0 takes the page's frame, if there is one, and uses the next one that it allocates as its new owner.
    fn take_away(&self, ctx: Unpinned<'_>) {
        let mut gather = Gather::new(self.frames, ctx);
        let mut slot = self.slot.lock();
        let Slot { frame, owner } = *slot;
        let mut targets = CpuSet::EMPTY;
        for cpu in 0..2 {
            if owner == Owner::Several || owner == Owner::One(cpu) {
                // AcqRel: as in `Mirror::clear`.
                self.entries[cpu].swap(0, Ordering::AcqRel);
                targets.insert(CpuId::new(cpu).expect("a CPU"));
            }
        }
        *slot = Slot { frame: None, owner: Owner::Nobody };
        let Some(frame) = frame else { return };
        gather.add_range(PageRange::single(addr::Page::default()).expect("page 0"));
        // SAFETY: the slot owned the share, and names it no more.
        gather.take(unsafe { OwnedFrame::from_raw(frame, Use::Anonymous) });
        if self.order == Order::UnlockFirst {
            drop(slot);
            gather.flush_among(&ctx.pin(), self, &self.active, &targets);
        } else {
            gather.flush_among(&ctx.pin(), self, &self.active, &targets);
            drop(slot);
        }
        drop(gather);
        let pin = ctx.pin();
        let again = self.frames.alloc(&pin, Use::Anonymous).expect("one was freed");
        // SAFETY: loom says if somebody else uses them.
        self.bytes(again.frame()).with_mut(|bytes| unsafe { *bytes = 99 });
        self.handed_on.fetch_add(1, Ordering::AcqRel);
        self.frames.free(&pin, again);
    }
    /// CPU 1 ends: it leaves the space, and takes interrupts as long as CPU 0 may ask.
    fn leave(&self, ctx: &Unpinned<'_>) {
        let mut buffer = None;
        tlb::leave(&self.active, &ctx.pin());
        // Relaxed: nothing is read after.
        while !self.over.load(Ordering::Relaxed) {
            self.interrupt(&mut buffer);
            thread::yield_now();
        }
    }
}

/// CPU 1 does `user`; CPU 0 takes the page away, and after that maps it anew if `maps`.
fn run(
    sim: &Arc<Sim>,
    maps: bool,
    user: impl FnOnce(&Sim, &mut Option<Frame>, &Unpinned<'_>) + Send + 'static,
) {
    let other = sim.clone();
    let user = thread::spawn(move || {
        other.cpus.on(1, |ctx| {
            user(&other, &mut None, &ctx);
            other.leave(&ctx);
        });
    });
    sim.cpus.on(0, |ctx| {
        sim.take_away(ctx);
        if maps {
            sim.fault(0, 8, &mut None, &ctx);
        }
        // Relaxed: only ends CPU 1's loop.
        sim.over.store(true, Ordering::Relaxed);
    });
    user.join().expect("CPU 1 went well");
}

fn join_before(sim: &Sim) {
    sim.active.insert(CpuId::new(1).expect("CPU 1"));
}

/// Both CPUs have used the page. CPU 1 uses it while CPU 0 takes it away, and maps it anew.
fn remap(order: Order) {
    let sim = Sim::new(order);
    join_before(&sim);
    for cpu in [1, 0] {
        sim.cpus.on(cpu, |ctx| sim.fault(cpu, 7, &mut None, &ctx));
    }
    run(&sim, false, |sim, buffer, ctx| {
        let seen = sim.load(buffer);
        assert!(matches!(seen, None | Some(7)), "{seen:?}");
        sim.interrupt(buffer);
        let fresh = sim.fault(1, 8, buffer, ctx);
        // Before the page is taken away the old contents, afterwards what was put there anew.
        let seen = sim.load(buffer);
        assert!(seen.is_none() || seen == Some(if fresh { 8 } else { 7 }), "stale: {seen:?}");
    });
}

/// D3: a page is mapped anew while it is shot down. The new frame is never read by an old translation, nor the old one after
/// it is somebody else's.
#[test]
fn a_page_that_is_mapped_anew_is_not_read_by_an_old_translation() {
    explore("shootdown against re-mapping", None, || remap(Order::Right));
}

/// D3, the other way round: CPU 0 maps anew what it has taken away, and CPU 1 finds the new frame once it has seen that.
#[test]
fn what_is_mapped_anew_elsewhere_is_found() {
    explore("shootdown and re-mapping against use", Some(3), || {
        let sim = Sim::new(Order::Right);
        join_before(&sim);
        sim.cpus.on(1, |ctx| sim.fault(1, 7, &mut None, &ctx));
        run(&sim, true, |sim, buffer, ctx| {
            let first = sim.load(buffer);
            sim.interrupt(buffer);
            sim.fault(1, 7, buffer, ctx);
            let second = sim.load(buffer);
            assert!(first.is_none_or(|seen| seen == 7) && second.is_none_or(|seen| seen == 7 || seen == 8));
        });
    });
}

/// D13: a CPU that had left comes back while the page is taken away. Either it is shot down, or its own table is empty.
#[test]
fn a_cpu_that_comes_back_is_told_or_finds_nothing() {
    explore("switch-in against removal", None, || {
        let sim = Sim::new(Order::Right);
        sim.cpus.on(1, |ctx| sim.fault(1, 7, &mut None, &ctx));
        run(&sim, false, |sim, buffer, ctx| {
            tlb::join(&sim.active, &ctx.pin());
            let seen = sim.load(buffer);
            assert!(matches!(seen, None | Some(7)), "{seen:?}");
            sim.interrupt(buffer);
        });
    });
}

#[test]
#[should_panic(expected = "stale")]
fn an_unlock_before_the_shootdown_is_noticed() {
    explore("unlock before shootdown", Some(3), || remap(Order::UnlockFirst));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_lost_owner_is_noticed() {
    explore("lost owner", Some(3), || remap(Order::ForgetFirstUser));
}
