//! Every interleaving and weak-memory outcome of a reader with an updater that unlinks, waits and frees.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release -p quire-rcu --test loom`.
#![cfg(loom)]

use loom::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use percpu::{CpuId, Pinned, testing::explore};
use rcu::kernel::Domain;

fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: each CPU is one thread's in a model.
    unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) }
}

/// Which of two cells is current, and the cells, whose uses loom watches: writing to one stands for freeing it.
struct Sim {
    domain: Domain,
    current: AtomicUsize,
    cells: [UnsafeCell<()>; 2],
}

// SAFETY: loom fails the test if two uses of a cell race; that none do is what is shown.
unsafe impl Sync for Sim {}
// SAFETY: as above.
unsafe impl Send for Sim {}

impl Sim {
    fn new() -> Arc<Self> {
        Arc::new(Self { domain: Domain::new(3), current: AtomicUsize::new(0), cells: Default::default() })
    }
    fn section(&self, pin: &Pinned<'_>) {
        let _section = self.domain.read(pin);
        // Acquire: partner in `replace`.
        self.cells[self.current.load(Ordering::Acquire)].with(|_| ());
    }
    /// Publish the other cell and, if the period can be driven to its end in a few looks, free the old one.
    fn replace(&self, looks: usize) {
        let pin = &mut pin(0);
        self.cells[1].with_mut(|_| ());
        // Release: partner in `section`.
        self.current.store(1, Ordering::Release);
        let (domain, freed) = (&self.domain, &self.cells[0]);
        let waiting = Box::leak(Box::new(Waiting { head: rcu::Head::new(), cell: freed }));
        // SAFETY: unlinked above; `free` frees it, once.
        domain.call(pin, unsafe { rcu::Retired::new(std::ptr::NonNull::from(waiting).cast(), free) });
        for _ in 0..looks {
            domain.tick(pin);
        }
    }
    /// What is left when all is over.
    fn end(&self) {
        for _ in 0..8 {
            self.domain.tick(&mut pin(1));
            self.domain.tick(&mut pin(0));
        }
        assert_eq!(self.domain.pending(&pin(0)), 0);
    }
}

#[repr(C)]
struct Waiting {
    head: rcu::Head,
    cell: *const UnsafeCell<()>,
}

unsafe fn free(head: std::ptr::NonNull<rcu::Head>, _: &Pinned<'_>) {
    // SAFETY: made from a box in `replace`, head first.
    let waiting = unsafe { Box::from_raw(head.cast::<Waiting>().as_ptr()) };
    // SAFETY: the cells live as long as the model.
    unsafe { &*waiting.cell }.with_mut(|_| ());
}

/// A CPU with sections, with a report in between.
#[test]
fn nothing_is_freed_under_a_reader() {
    explore("reader and report against free", None, || {
        let sim = Sim::new();
        (0..2).for_each(|cpu| sim.domain.idle_exit(&mut pin(cpu)));
        let other = sim.clone();
        let reader = thread::spawn(move || {
            let pin = &mut pin(1);
            other.section(pin);
            other.domain.qs(pin);
            other.section(pin);
        });
        sim.replace(3);
        reader.join().expect("the reader went well");
        sim.end();
    });
}

/// A CPU that wakes, has a section, sleeps, wakes and has another.
#[test]
fn nothing_is_freed_under_a_cpu_that_wakes() {
    explore("waking and sleeping against free", None, || {
        let sim = Sim::new();
        sim.domain.idle_exit(&mut pin(0));
        let other = sim.clone();
        let reader = thread::spawn(move || {
            let pin = &mut pin(1);
            for _ in 0..2 {
                other.domain.idle_exit(pin);
                other.section(pin);
                other.domain.idle_enter(pin);
            }
        });
        sim.replace(3);
        reader.join().expect("the reader went well");
        sim.end();
    });
}

/// A third CPU begins a period at any moment, such as between the updater's unlinking and its look at the number.
#[test]
fn another_cpu_may_begin_the_period() {
    explore("another CPU begins the period", None, || {
        let sim = Sim::new();
        (0..2).for_each(|cpu| sim.domain.idle_exit(&mut pin(cpu)));
        let (freed, reader, third) = (UnsafeCell::new(()), sim.clone(), sim.clone());
        // Somebody waits for a period that nobody has begun.
        let waiting = Box::leak(Box::new(Waiting { head: rcu::Head::new(), cell: &freed }));
        // SAFETY: nobody has found it; `free` frees it, once.
        sim.domain.call(&pin(2), unsafe { rcu::Retired::new(std::ptr::NonNull::from(waiting).cast(), free) });
        sim.domain.tick(&mut pin(2));
        let reader = thread::spawn(move || {
            let pin = &mut pin(1);
            reader.domain.qs(pin);
            reader.section(pin);
        });
        let third = thread::spawn(move || {
            third.domain.tick(&mut pin(2));
        });
        sim.replace(2);
        reader.join().expect("the reader went well");
        third.join().expect("the third went well");
        sim.end();
        (0..3).for_each(|_| _ = sim.domain.tick(&mut pin(2)));
    });
}

/// One CPU idles and leaves what it has retired, while the other idles too: one of them is told to stay, and frees it.
#[test]
fn nothing_is_left_behind_when_all_idle() {
    explore("two CPUs idle at once", None, || {
        let (sim, freed) = (Sim::new(), UnsafeCell::new(()));
        (0..2).for_each(|cpu| sim.domain.idle_exit(&mut pin(cpu)));
        let waiting = Box::leak(Box::new(Waiting { head: rcu::Head::new(), cell: &freed }));
        let retired = std::ptr::NonNull::from(waiting).cast();
        // SAFETY: nobody has found it; `free` frees it, once.
        sim.domain.call(&pin(0), unsafe { rcu::Retired::new(retired, free) });
        fn idle(sim: &Sim, cpu: usize) -> bool {
            let pin = &mut pin(cpu);
            sim.domain.hand_over(pin);
            sim.domain.idle_enter(pin);
            sim.domain.is_abandoned()
        }
        let other = sim.clone();
        let other = thread::spawn(move || idle(&other, 1));
        let stays = [idle(&sim, 0), other.join().expect("the other went well")];
        assert!(stays.iter().any(|stays| *stays), "nobody was told");
        (0..4).for_each(|_| _ = sim.domain.tick(&mut pin(1)));
        assert!(!sim.domain.has_orphans() && sim.domain.pending(&pin(1)) == 0);
    });
}

/// One that takes over what another CPU has retired frees nothing under that one's readers.
#[test]
fn nothing_that_was_handed_over_is_freed_under_a_reader() {
    explore("handing over against a reader", None, || {
        let sim = Sim::new();
        (0..2).for_each(|cpu| sim.domain.idle_exit(&mut pin(cpu)));
        let (reader, third) = (sim.clone(), sim.clone());
        let reader = thread::spawn(move || {
            let pin = &mut pin(1);
            reader.section(pin);
            reader.domain.qs(pin);
        });
        let third = thread::spawn(move || {
            (0..3).for_each(|_| _ = third.domain.tick(&mut pin(2)));
        });
        sim.replace(0);
        sim.domain.hand_over(&pin(0));
        sim.domain.idle_enter(&mut pin(0));
        reader.join().expect("the reader went well");
        third.join().expect("the third went well");
        (0..4).for_each(|_| (1..3).for_each(|cpu| _ = sim.domain.tick(&mut pin(cpu))));
        assert_eq!(sim.domain.pending(&pin(1)) + sim.domain.pending(&pin(2)), 0);
    });
}
