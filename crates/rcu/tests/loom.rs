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
use rcu::{
    Head, Retired,
    kernel::{Domain, Gp},
};

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

/// A thread of the model.
fn on(sim: &Arc<Sim>, f: impl FnOnce(&Sim) + 'static) -> thread::JoinHandle<()> {
    let sim = sim.clone();
    thread::spawn(move || f(&sim))
}

impl Sim {
    /// A machine of `cpus` CPUs, of which those below `awake` don't idle.
    fn new(cpus: usize, awake: usize) -> Arc<Self> {
        let sim = Self { domain: Domain::new(cpus), current: AtomicUsize::new(0), cells: Default::default() };
        (0..awake).for_each(|cpu| sim.domain.idle_exit(&mut pin(cpu)));
        Arc::new(sim)
    }
    fn section(&self, pin: &Pinned<'_>) {
        let _section = self.domain.read(pin);
        // Acquire: partner in `replace`.
        self.cells[self.current.load(Ordering::Acquire)].with(|_| ());
    }
    fn section_and_report(&self, cpu: usize) {
        self.section(&pin(cpu));
        self.domain.qs(&mut pin(cpu));
    }
    fn unlink(&self) {
        self.cells[1].with_mut(|_| ());
        // Release: partner in `section`.
        self.current.store(1, Ordering::Release);
    }
    /// If the period has ended by now.
    fn free_after(&self, need: Gp) {
        if self.domain.poll(need) {
            self.cells[0].with_mut(|_| ());
        }
    }
    /// Publish the other cell and, if the period can be driven to its end in a few looks, free the old one.
    fn replace(&self, looks: usize) {
        let pin = &mut pin(0);
        self.unlink();
        // SAFETY: unlinked above; `free` frees it, once.
        self.domain.call(pin, unsafe { retired(&self.cells[0]) });
        for _ in 0..looks {
            self.domain.tick(pin);
        }
    }
    /// A period begins that nobody has use for.
    fn replace_nothing(&self) {
        self.domain.request(self.domain.snap());
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

/// # Safety
/// Nobody who begins a section from here on finds the cell.
unsafe fn retired(cell: &UnsafeCell<()>) -> Retired {
    let waiting = Box::leak(Box::new(Waiting { head: Head::new(), cell }));
    // SAFETY: the caller's; `free` frees it, once.
    unsafe { Retired::new(std::ptr::NonNull::from(waiting).cast(), free) }
}

#[repr(C)]
struct Waiting {
    head: Head,
    cell: *const UnsafeCell<()>,
}

unsafe fn free(head: std::ptr::NonNull<Head>, _: &Pinned<'_>) {
    // SAFETY: made from a box in `replace`, head first.
    let waiting = unsafe { Box::from_raw(head.cast::<Waiting>().as_ptr()) };
    // SAFETY: the cells live as long as the model.
    unsafe { &*waiting.cell }.with_mut(|_| ());
}

/// A CPU with sections, with a report in between.
#[test]
fn nothing_is_freed_under_a_reader() {
    explore("reader and report against free", None, || {
        let sim = Sim::new(2, 2);
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

/// A CPU that wakes, the first time from being offline, has a section, sleeps, wakes and has another.
#[test]
fn nothing_is_freed_under_a_cpu_that_wakes() {
    explore("waking and sleeping against free", None, || {
        let sim = Sim::new(2, 1);
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

/// A CPU that was awake when a period began and is still, or again, when it is scanned.
#[test]
fn nothing_is_freed_under_a_cpu_that_naps() {
    explore("napping against scans", None, || {
        let sim = Sim::new(2, 2);
        // Of an earlier period it is known that the CPU was awake, by a number that it doesn't have any more.
        sim.replace_nothing();
        sim.domain.look(&mut pin(0));
        (0..2).for_each(|_| nap(&sim, 1));
        sim.domain.look(&mut pin(0));
        let other = sim.clone();
        let reader = thread::spawn(move || {
            other.section(&pin(1));
            nap(&other, 1);
            other.section(&pin(1));
        });
        sim.replace(3);
        reader.join().expect("the reader went well");
        sim.end();
    });
}

fn nap(sim: &Sim, cpu: usize) {
    sim.domain.idle_enter(&mut pin(cpu));
    sim.domain.idle_exit(&mut pin(cpu));
}

/// A report is delayed for so long that its CPU was found to have napped, and the next period has begun.
#[test]
fn a_late_report_is_not_for_the_next_period() {
    explore("a late report", Some(4), || {
        let sim = Sim::new(2, 2);
        sim.replace_nothing();
        sim.domain.look(&mut pin(0));
        let other = sim.clone();
        let reader = thread::spawn(move || {
            nap(&other, 1);
            other.domain.qs(&mut pin(1));
            other.section(&pin(1));
        });
        sim.domain.look(&mut pin(0));
        sim.replace(2);
        reader.join().expect("the reader went well");
        sim.end();
    });
}

/// A third CPU begins a period at any moment, such as between the updater's unlinking and its look at the number.
#[test]
fn another_cpu_may_begin_the_period() {
    explore("another CPU begins the period", Some(3), || {
        let sim = Sim::new(3, 2);
        let (reader, third) = (sim.clone(), sim.clone());
        let reader = thread::spawn(move || {
            let pin = &mut pin(1);
            reader.domain.qs(pin);
            reader.section(pin);
        });
        let third = thread::spawn(move || {
            third.domain.request(third.domain.snap());
        });
        sim.replace(2);
        reader.join().expect("the reader went well");
        third.join().expect("the third went well");
        sim.end();
    });
}

/// The last report of a period and the wish for the next: one of the two CPUs begins it.
#[test]
fn a_wish_and_an_end_meet() {
    explore("a wish and an end", None, || {
        let sim = Sim::new(2, 2);
        sim.replace_nothing();
        sim.domain.qs(&mut pin(0));
        let other = sim.clone();
        let last = thread::spawn(move || other.domain.qs(&mut pin(1)));
        let need = sim.domain.snap();
        sim.domain.request(need);
        last.join().expect("the other went well");
        // Nobody drives here, there are only reports.
        (0..2).for_each(|cpu| sim.domain.qs(&mut pin(cpu)));
        assert!(sim.domain.poll(need), "{:?}", sim.domain);
    });
}

/// The same while a third CPU drives.
#[test]
fn a_wish_is_not_lost_to_who_drives() {
    explore("a wish while another drives", Some(3), || {
        let sim = Sim::new(3, 2);
        sim.replace_nothing();
        sim.domain.qs(&mut pin(0));
        let (other, third) = (sim.clone(), sim.clone());
        let last = thread::spawn(move || other.domain.qs(&mut pin(1)));
        let driver = thread::spawn(move || third.domain.look(&mut pin(2)));
        let need = sim.domain.snap();
        sim.domain.request(need);
        last.join().expect("the other went well");
        driver.join().expect("the third went well");
        (0..2).for_each(|cpu| sim.domain.qs(&mut pin(cpu)));
        assert!(sim.domain.poll(need), "{:?}", sim.domain);
    });
}

/// Three CPUs on two leaves: who frees has seen only that the period has ended, not the reports.
#[test]
fn reports_are_combined() {
    explore("reports are combined", Some(3), || {
        let sim = Sim::new(3, 3);
        let readers: Vec<_> = (1..3).map(|cpu| on(&sim, move |sim| sim.section_and_report(cpu))).collect();
        sim.unlink();
        let need = sim.domain.snap();
        sim.domain.request(need);
        sim.domain.qs(&mut pin(0));
        sim.free_after(need);
        readers.into_iter().for_each(|reader| reader.join().expect("the reader went well"));
        (1..3).for_each(|cpu| sim.domain.qs(&mut pin(cpu)));
        assert!(sim.domain.poll(need), "{:?}", sim.domain);
    });
}

/// A CPU that never idles long enough to be found so: it is found to have napped, by another CPU than the one that frees.
#[test]
fn who_frees_need_not_have_scanned() {
    explore("naps found by another", Some(3), || {
        let sim = Sim::new(3, 0);
        sim.domain.idle_exit(&mut pin(1));
        let reader = on(&sim, |sim| {
            sim.section(&pin(1));
            nap(sim, 1);
        });
        let third = on(&sim, |sim| (0..2).for_each(|_| sim.domain.look(&mut pin(2))));
        sim.unlink();
        let need = sim.domain.snap();
        sim.domain.request(need);
        sim.free_after(need);
        reader.join().expect("the reader went well");
        third.join().expect("the third went well");
    });
}

/// A CPU that wakes while another ends one period for it, begins the next, and scans at once.
#[test]
fn periods_may_follow_each_other() {
    explore("a period after the other", Some(3), || {
        let sim = Sim::new(3, 0);
        sim.domain.idle_exit(&mut pin(1));
        sim.domain.idle_enter(&mut pin(1));
        (0..2).for_each(|_| sim.replace_nothing());
        let reader = on(&sim, |sim| {
            sim.domain.idle_exit(&mut pin(1));
            sim.section(&pin(1));
        });
        let third = on(&sim, |sim| sim.domain.look(&mut pin(2)));
        sim.unlink();
        sim.free_after(sim.domain.snap());
        reader.join().expect("the reader went well");
        third.join().expect("the third went well");
    });
}

/// A period that is hurried: the other CPU, which reports only if it is told to, has a section, idles, and wakes for another.
#[test]
fn a_hurried_period_waits_for_sections() {
    explore("a hurried period", None, || {
        let sim = Sim::new(2, 2);
        let told = Arc::new(AtomicUsize::new(0));
        let (other, kicked) = (sim.clone(), told.clone());
        let reader = thread::spawn(move || {
            other.section(&pin(1));
            nap(&other, 1);
            other.section(&pin(1));
            // Acquire: as an interrupt comes after what it is sent for.
            if kicked.load(Ordering::Acquire) != 0 {
                other.domain.qs(&mut pin(1));
            }
        });
        let (domain, updater) = (&sim.domain, &mut pin(0));
        sim.unlink();
        let need = domain.snap();
        domain.request(need);
        for _ in 0..2 {
            domain.hurry(updater, |cpus| {
                assert!(cpus.len() == 1 && !cpus.contains(updater_cpu()));
                told.fetch_add(1, Ordering::Release);
            });
        }
        sim.free_after(need);
        reader.join().expect("the reader went well");
        let told = told.load(Ordering::Relaxed);
        assert!(told == 1 || told == 0 && domain.poll(need), "told {told} times");
        domain.qs(&mut pin(1));
        assert!(domain.poll(need));
    });
}

/// As above, and the other CPU reports nowhere but where the interrupt finds it: before, in or after a section, which it leaves with
/// the report in that case.
#[test]
fn a_hurried_period_ends_with_the_section_that_it_interrupts() {
    explore("a hurried period that interrupts a section", None, || {
        let sim = Sim::new(2, 2);
        let told = Arc::new(AtomicUsize::new(0));
        // The interrupt, if it has been sent and was not served. Acquire: as it comes after what it is sent for. SAFETY: as it says.
        let interrupt = |sim: &Sim, told: &AtomicUsize, pinned| {
            told.compare_exchange(1, 2, Ordering::Acquire, Ordering::Relaxed).is_ok()
                && unsafe { sim.domain.qs_interrupted(pin(1).cpu(), pinned) }
        };
        let (other, kicked) = (sim.clone(), told.clone());
        let reader = thread::spawn(move || {
            for _ in 0..2 {
                let mut pin = pin(1);
                let section = other.domain.read(&pin);
                // Acquire: partner in `replace`.
                let at = other.current.load(Ordering::Acquire);
                let awaited = interrupt(&other, &kicked, true);
                other.cells[at].with(|_| ());
                drop(section);
                if awaited {
                    other.domain.qs(&mut pin);
                }
                assert!(!interrupt(&other, &kicked, false));
            }
        });
        let (domain, updater) = (&sim.domain, &mut pin(0));
        sim.unlink();
        let need = domain.snap();
        domain.request(need);
        domain.hurry(updater, |_| told.store(1, Ordering::Release));
        sim.free_after(need);
        reader.join().expect("the reader went well");
        assert!(!interrupt(&sim, &told, false));
        assert!(domain.poll(need), "the period waits for a CPU that was interrupted");
    });
}

fn updater_cpu() -> CpuId {
    pin(0).cpu()
}

/// One CPU idles and leaves what it has retired, while the other idles too: one of them is told to stay, and frees it.
#[test]
fn nothing_is_left_behind_when_all_idle() {
    explore("two CPUs idle at once", None, || {
        let (sim, freed) = (Sim::new(2, 2), UnsafeCell::new(()));
        // SAFETY: nobody has found it.
        sim.domain.call(&pin(0), unsafe { retired(&freed) });
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
    explore("handing over against a reader", Some(3), || {
        let sim = Sim::new(3, 2);
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
        sim.domain.offline(&mut pin(0));
        reader.join().expect("the reader went well");
        third.join().expect("the third went well");
        (0..4).for_each(|_| (1..3).for_each(|cpu| _ = sim.domain.tick(&mut pin(cpu))));
        assert_eq!(sim.domain.pending(&pin(1)) + sim.domain.pending(&pin(2)), 0);
    });
}

/// A barrier, while what it waits for goes from one CPU to another.
#[test]
fn a_barrier_waits_for_what_moves() {
    explore("a barrier and what moves", Some(3), || {
        // Nobody has sections.
        let sim = Sim::new(3, 0);
        let freed = Arc::new(AtomicUsize::new(0));
        // SAFETY: nobody has found it.
        sim.domain.call(&pin(1), unsafe { counted(&freed) });
        let others = sim.clone();
        let others = thread::spawn(move || {
            others.domain.hand_over(&pin(1));
            others.domain.tick(&mut pin(0));
        });
        let mut barrier = sim.domain.begin_barrier().expect("there is no other");
        let mut over = (0..2).any(|_| barrier.step(&mut pin(2)));
        // Relaxed: that it is over tells of all that was freed.
        assert!(!over || freed.load(Ordering::Relaxed) == 1, "it is over too early");
        others.join().expect("the others went well");
        for _ in 0..8 {
            over = over || barrier.step(&mut pin(2));
            assert!(!over || freed.load(Ordering::Relaxed) == 1, "it is over too early");
            sim.domain.tick(&mut pin(0));
        }
        assert!(over, "it is never over");
    });
}

#[repr(C)]
struct Counted {
    head: Head,
    freed: *const AtomicUsize,
}

/// # Safety
/// As [`retired`]; `freed` lives as long as the model.
unsafe fn counted(freed: &AtomicUsize) -> Retired {
    let counted = Box::leak(Box::new(Counted { head: Head::new(), freed }));
    // SAFETY: the caller's; `count` frees it, once.
    unsafe { Retired::new(std::ptr::NonNull::from(counted).cast(), count) }
}

unsafe fn count(head: std::ptr::NonNull<Head>, _: &Pinned<'_>) {
    // SAFETY: made from a box in `counted`, head first.
    let counted = unsafe { Box::from_raw(head.cast::<Counted>().as_ptr()) };
    // SAFETY: as `counted` says. Relaxed: ordered by the barrier.
    unsafe { &*counted.freed }.fetch_add(1, Ordering::Relaxed);
}
