//! What the domain promises, one thing at a time, and against an oracle.

use std::{
    cell::Cell,
    ptr::NonNull,
    sync::atomic::{AtomicUsize, Ordering},
};

use percpu::{CpuId, Pinned, testing::Machine};
use proptest::prelude::*;
use rcu::{Head, Retired, kernel::Domain};

fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: each test is one thread that plays all CPUs in turn.
    unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) }
}

#[repr(C)]
struct Object {
    head: Head,
    freed: *const Cell<bool>,
}

unsafe fn free(head: NonNull<Head>, _: &Pinned<'_>) {
    // SAFETY: `retire` made the object from a box, and `head` is its first field.
    let object = unsafe { Box::from_raw(head.cast::<Object>().as_ptr()) };
    // SAFETY: the test keeps the flags until the end.
    unsafe { (*object.freed).set(true) };
}

fn retire(freed: &Cell<bool>) -> Retired {
    let object = NonNull::from(Box::leak(Box::new(Object { head: Head::new(), freed })));
    // SAFETY: nobody has found the object; its head is its first field; `free` frees it, once.
    unsafe { Retired::new(object.cast(), free) }
}

fn ticks(domain: &Domain, cpus: usize, rounds: usize) {
    for _ in 0..rounds {
        (0..cpus).for_each(|cpu| _ = domain.tick(&mut pin(cpu)));
    }
}

#[test]
fn an_open_section_delays_and_its_end_frees() {
    let (domain, freed) = (Domain::new(2), Cell::new(false));
    (0..2).for_each(|cpu| domain.idle_exit(&mut pin(cpu)));
    let reader = pin(1);
    let section = domain.read(&reader);
    domain.call(&pin(0), retire(&freed));
    ticks(&domain, 1, 8);
    assert!(!freed.get());
    assert_eq!(domain.pending(&pin(0)), 1);
    drop(section);
    ticks(&domain, 2, 3);
    assert!(freed.get());
    assert_eq!(domain.pending(&pin(0)), 0);
}

#[test]
fn idle_cpus_delay_nothing() {
    let (domain, freed) = (Domain::new(200), Cell::new(false));
    domain.idle_exit(&mut pin(3));
    domain.call(&pin(3), retire(&freed));
    for _ in 0..3 {
        domain.tick(&mut pin(3));
    }
    assert!(freed.get());
}

#[test]
fn a_cpu_that_idles_is_told_what_it_has_retired() {
    let (domain, freed) = (Domain::new(1), Cell::new(false));
    domain.idle_exit(&mut pin(0));
    domain.call(&pin(0), retire(&freed));
    assert!(domain.idle_enter(&mut pin(0)));
    ticks(&domain, 1, 3);
    assert!(freed.get() && !domain.idle_enter(&mut pin(0)));
}

#[test]
fn what_an_idle_cpu_has_retired_is_freed_by_another() {
    let (domain, freed) = (Domain::new(3), [const { Cell::new(false) }; 4]);
    (0..2).for_each(|cpu| domain.idle_exit(&mut pin(cpu)));
    // In each state that a retired object can be in: to be freed, waiting, and new.
    let reader = pin(1);
    let section = domain.read(&reader);
    for flag in &freed[..3] {
        domain.call(&pin(0), retire(flag));
        domain.tick(&mut pin(0));
    }
    domain.call(&pin(0), retire(&freed[3]));
    domain.hand_over(&pin(0));
    assert!(!domain.idle_enter(&mut pin(0)) && domain.has_orphans());
    assert!(!domain.is_abandoned(), "CPU 1 is there");
    // CPU 1 takes them over in a section that may have found them, and that goes on elsewhere.
    domain.idle_exit(&mut pin(2));
    (0..6).for_each(|_| _ = domain.tick(&mut pin(2)));
    assert!(freed.iter().all(|flag| !flag.get()));
    assert_eq!((domain.pending(&pin(2)), domain.has_orphans()), (4, false));
    drop(section);
    for _ in 0..4 {
        domain.tick(&mut pin(1));
        domain.tick(&mut pin(2));
    }
    assert!(freed.iter().all(Cell::get));
}

#[test]
fn the_last_to_idle_is_told_what_is_left() {
    let (domain, freed) = (Domain::new(2), Cell::new(false));
    (0..2).for_each(|cpu| domain.idle_exit(&mut pin(cpu)));
    domain.call(&pin(0), retire(&freed));
    for (cpu, last) in [(0, false), (1, true)] {
        domain.hand_over(&pin(cpu));
        domain.idle_enter(&mut pin(cpu));
        assert_eq!(domain.is_abandoned(), last, "CPU {cpu}");
    }
    domain.idle_exit(&mut pin(1));
    (0..3).for_each(|_| _ = domain.tick(&mut pin(1)));
    assert!(freed.get() && !domain.has_orphans());
    domain.idle_enter(&mut pin(1));
    assert!(!domain.is_abandoned(), "nothing is left");
}

#[test]
fn a_period_under_way_does_not_count() {
    let domain = Domain::new(2);
    (0..2).for_each(|cpu| domain.idle_exit(&mut pin(cpu)));
    let freed = [Cell::new(false), Cell::new(false)];
    domain.call(&pin(0), retire(&freed[0]));
    // The first tick stamps, the second begins the period, in which CPU 1 is quiescent at once.
    ticks(&domain, 1, 2);
    domain.qs(&mut pin(1));
    let reader = pin(1);
    let _section = domain.read(&reader);
    domain.call(&pin(0), retire(&freed[1]));
    ticks(&domain, 1, 8);
    assert!(freed[0].get() && !freed[1].get());
}

#[test]
fn synchronize_waits_for_the_other_cpus_sections() {
    let (machine, domain, turn) = (Machine::new(2), Domain::new(2), AtomicUsize::new(0));
    machine.run(|cpu, ctx| {
        domain.idle_exit(&mut ctx.pin());
        if cpu.index() == 0 {
            while turn.load(Ordering::Acquire) == 0 {
                std::thread::yield_now();
            }
            domain.synchronize(&ctx);
            assert_eq!(turn.load(Ordering::Acquire), 2);
        } else {
            let pin = ctx.pin();
            let section = domain.read(&pin);
            turn.store(1, Ordering::Release);
            std::thread::sleep(std::time::Duration::from_millis(20));
            turn.store(2, Ordering::Release);
            drop(section);
        }
        domain.idle_enter(&mut ctx.pin());
    });
}

const CPUS: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Step {
    Retire,
    Tick,
    Open,
    Close,
    Sleep,
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let step = prop_oneof![
        2 => Just(Step::Retire), 6 => Just(Step::Tick), 2 => Just(Step::Open), 3 => Just(Step::Close),
        1 => Just(Step::Sleep),
    ];
    prop::collection::vec((0..CPUS, step), 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 400 } else { 4000 }))]
    /// Each object remembers the sections that were open when it was retired.
    #[test]
    fn what_a_section_could_have_found_outlives_it(steps in steps()) {
        let domain = Domain::new(CPUS);
        let pins: Vec<_> = (0..CPUS).map(pin).collect();
        let (mut awake, mut open, mut age) = ([false; CPUS], [const { None }; CPUS], [0; CPUS]);
        let freed: Vec<_> = steps.iter().map(|_| Cell::new(false)).collect();
        // For each retired object the sections of then, by CPU and age.
        let mut retired: Vec<(usize, Vec<(usize, usize)>)> = Vec::new();
        for (i, &(cpu, step)) in steps.iter().enumerate() {
            match step {
                Step::Retire => {
                    domain.call(&pins[cpu], retire(&freed[i]));
                    let sections = (0..CPUS).filter(|&c| open[c].is_some()).map(|c| (c, age[c])).collect();
                    retired.push((i, sections));
                }
                Step::Open if open[cpu].is_none() => {
                    if !awake[cpu] {
                        domain.idle_exit(&mut pin(cpu));
                        awake[cpu] = true;
                    }
                    open[cpu] = Some(domain.read(&pins[cpu]));
                    age[cpu] += 1;
                }
                Step::Close => open[cpu] = None,
                Step::Tick if open[cpu].is_none() => _ = domain.tick(&mut pin(cpu)),
                Step::Sleep if open[cpu].is_none() => {
                    domain.idle_enter(&mut pin(cpu));
                    awake[cpu] = false;
                }
                _ => {}
            }
            for (object, sections) in &retired {
                let still = sections.iter().any(|&(c, a)| open[c].is_some() && age[c] == a);
                prop_assert!(!(still && freed[*object].get()), "object {object} is gone");
            }
        }
        drop(open);
        ticks(&domain, CPUS, 8);
        prop_assert!(retired.iter().all(|(object, _)| freed[*object].get()));
    }
}
