//! What the domain promises, one thing at a time, and against an oracle.

use std::{
    cell::Cell,
    ptr::NonNull,
    sync::atomic::{AtomicUsize, Ordering},
};

use percpu::{CpuId, CpuSet, MAX_CPUS, Pinned, Unpinned, testing::Machine};
use proptest::prelude::*;
use rcu::{
    Head, Retired,
    kernel::{Domain, callbacks::SOFT},
};

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

/// On a machine of one CPU, which has a section open.
fn in_a_section(f: impl FnOnce(&Domain, &Unpinned<'_>)) {
    let (machine, domain) = (Machine::new(1), Domain::new(1));
    machine.on(0, |ctx| {
        domain.idle_exit(&mut ctx.pin());
        let reader = ctx.pin();
        let section = domain.read(&reader);
        f(&domain, &ctx);
        drop(section);
    });
}

#[test]
#[should_panic(expected = "another pin")]
fn a_thread_does_not_wait_for_its_own_section() {
    in_a_section(|domain, ctx| domain.synchronize(ctx));
}

#[test]
#[should_panic(expected = "another pin")]
fn a_thread_does_not_hurry_its_own_section() {
    in_a_section(|domain, ctx| domain.synchronize_expedited(ctx, |_| (), || ()));
}

#[test]
#[should_panic(expected = "another pin")]
fn a_thread_does_not_wait_for_what_its_own_section_delays() {
    in_a_section(|domain, ctx| domain.barrier(ctx, || ()));
}

#[test]
#[should_panic(expected = "another pin")]
fn a_thread_does_not_idle_in_its_own_section() {
    in_a_section(|domain, ctx| _ = domain.idle_enter(&mut ctx.pin()));
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
fn who_has_begun_a_period_looks_for_idle_cpus_and_others_if_it_does_not() {
    let (domain, freed) = (Domain::new(3), [const { Cell::new(false) }; 2]);
    (0..3).for_each(|cpu| domain.idle_exit(&mut pin(cpu)));
    (0..2).for_each(|cpu| domain.call(&pin(cpu), retire(&freed[cpu])));
    domain.tick(&mut pin(0));
    domain.tick(&mut pin(1));
    // After the period has begun: so it waits for CPU 2.
    domain.idle_enter(&mut pin(2));
    // CPU 0, which has begun it, reports and no more.
    domain.qs(&mut pin(0));
    for _ in 0..2 {
        domain.tick(&mut pin(1));
        assert_eq!(domain.periods(), 0, "the other has looked");
    }
    for _ in 0..6 {
        domain.tick(&mut pin(1));
        domain.qs(&mut pin(0));
    }
    assert!(freed[1].get(), "nobody looks");
    (0..3).for_each(|_| _ = domain.tick(&mut pin(0)));
    assert!(freed[0].get());
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

#[test]
fn who_was_kicked_is_told_once_and_nobody_else_is() {
    let domain = Domain::new(40);
    (0..35).for_each(|cpu| domain.idle_exit(&mut pin(cpu)));
    (30..35).for_each(|cpu| _ = domain.idle_enter(&mut pin(cpu)));
    let need = domain.snap();
    domain.request(need);
    // One reports anyhow.
    domain.qs(&mut pin(7));
    let kicked = Cell::new(CpuSet::EMPTY);
    for _ in 0..3 {
        domain.hurry(&mut pin(3), |cpus| {
            assert!(kicked.get().is_empty(), "told twice");
            kicked.set(*cpus);
        });
    }
    let told: Vec<_> = kicked.get().iter().map(CpuId::index).collect();
    assert_eq!(told, (0..30).filter(|cpu| ![3, 7].contains(cpu)).collect::<Vec<_>>());
    for cpu in told {
        assert!(!domain.poll(need));
        // SAFETY: no section is open anywhere.
        let interrupted = |pinned| unsafe { domain.qs_interrupted(CpuId::new(cpu).unwrap(), pinned) };
        // Half of them are in a section, and report behind it.
        if cpu % 2 == 0 {
            assert!(interrupted(true));
            domain.qs(&mut pin(cpu));
        } else {
            assert!(!interrupted(false));
        }
        assert!(!interrupted(true), "it has reported");
    }
    assert!(domain.poll(need));
}

#[test]
fn a_cpu_that_naps_is_found_to_have_napped() {
    let domain = Domain::new(2);
    (0..2).for_each(|cpu| domain.idle_exit(&mut pin(cpu)));
    let need = domain.snap();
    domain.request(need);
    domain.look(&mut pin(0));
    domain.look(&mut pin(0));
    assert!(!domain.poll(need));
    domain.idle_enter(&mut pin(1));
    domain.idle_exit(&mut pin(1));
    domain.look(&mut pin(0));
    assert!(domain.poll(need));
}

#[test]
fn who_comes_online_is_waited_for_from_the_next_period_on() {
    let domain = Domain::new(MAX_CPUS);
    domain.idle_exit(&mut pin(0));
    let now = domain.snap();
    domain.request(now);
    domain.idle_exit(&mut pin(200));
    let (reader, next) = (pin(200), domain.snap());
    let section = domain.read(&reader);
    domain.request(next);
    (0..4).for_each(|_| domain.look(&mut pin(0)));
    assert!(domain.poll(now) && !domain.poll(next));
    drop(section);
    domain.offline(&mut pin(200));
    domain.look(&mut pin(0));
    assert!(domain.poll(next));
}

#[test]
fn a_stall_is_told_once_with_its_place() {
    const MS: u64 = 1_000_000;
    let domain = Domain::new(20);
    (0..20).for_each(|cpu| domain.idle_exit(&mut pin(cpu)));
    let reader = pin(17);
    let section = domain.read(&reader);
    let line = line!() - 1;
    let need = domain.snap();
    domain.request(need);
    (0..17).chain(18..20).for_each(|cpu| domain.qs(&mut pin(cpu)));
    let tell = |cpu, now| domain.stall(&pin(cpu), now, 100 * MS);
    assert!(tell(0, 1000 * MS).is_none() && tell(1, 1050 * MS).is_none());
    assert!(tell(0, 1099 * MS).is_none(), "too early");
    let stall = tell(0, 1101 * MS).expect("it is open for too long");
    assert_eq!((stall.cpus.iter().collect::<Vec<_>>(), stall.age), (vec![CpuId::new(17).unwrap()], 101 * MS));
    if cfg!(debug_assertions) {
        let place = stall.place.expect("debug builds know");
        assert!(place.file().ends_with("kernel.rs") && place.line() == line, "{stall}");
    }
    assert!(tell(1, 2000 * MS).is_none(), "told twice");
    drop(section);
    domain.qs(&mut pin(17));
    assert!(domain.poll(need) && tell(0, 9000 * MS).is_none());
}

#[test]
fn a_barrier_waits_for_all_cpus_and_for_what_was_left() {
    let (domain, freed) = (Domain::new(4), [const { Cell::new(false) }; 4]);
    (0..4).for_each(|cpu| domain.idle_exit(&mut pin(cpu)));
    (0..4).for_each(|cpu| domain.call(&pin(cpu), retire(&freed[cpu])));
    domain.offline(&mut pin(2));
    domain.idle_enter(&mut pin(3));
    let mut barrier = domain.begin_barrier().expect("the first");
    assert!(domain.begin_barrier().is_none());
    for _ in 0..4 {
        assert!(!barrier.step(&mut pin(0)), "CPU 1 and CPU 3 have not come by");
        domain.qs(&mut pin(1));
    }
    assert!(freed[0].get() && domain.has_orphans(), "nobody adopts meanwhile");
    domain.call(&pin(1), retire(&Cell::new(false)));
    let steps = (0..20).find(|_| {
        let over = barrier.step(&mut pin(0));
        assert!(!over || freed.iter().all(Cell::get), "{freed:?}");
        [1, 3].into_iter().for_each(|cpu| _ = domain.tick(&mut pin(cpu)));
        over
    });
    assert!(steps.is_some());
    assert!(domain.begin_barrier().is_some_and(|mut next| (0..20).any(|_| {
        [1, 3].into_iter().for_each(|cpu| _ = domain.tick(&mut pin(cpu)));
        next.step(&mut pin(0))
    })));
}

/// Barrier after barrier, each of which some CPUs sit out and come by later.
#[test]
fn barriers_follow_each_other_whoever_comes_by_late() {
    const CPUS: usize = 3;
    for seed in 1..400_u64 {
        let (domain, mut random) = (Domain::new(CPUS), seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut below = |n: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 16) % n
        };
        let flags: Vec<_> = (0..4000).map(|_| Cell::new(false)).collect();
        let (mut retired, mut ended) = (0, 0);
        (0..CPUS).for_each(|cpu| domain.idle_exit(&mut pin(cpu)));
        let (mut barrier, mut before, mut steps) = (None, 0, 0);
        while ended < 20 {
            let cpu = below(CPUS as u64) as usize;
            match below(8) {
                0 if retired < flags.len() => {
                    domain.call(&pin(cpu), retire(&flags[retired]));
                    retired += 1;
                }
                1 => _ = domain.tick(&mut pin(cpu)),
                2 => domain.qs(&mut pin(cpu)),
                3 if barrier.is_none() => {
                    barrier = domain.begin_barrier();
                    (before, steps) = (retired, 0);
                }
                _ => {
                    let Some(under_way) = &mut barrier else { continue };
                    steps += 1;
                    assert!(steps < 20_000, "seed {seed}: it never ends");
                    if under_way.step(&mut pin(0)) {
                        assert!(flags[..before].iter().all(Cell::get), "seed {seed}: it ended early");
                        (barrier, ended) = (None, ended + 1);
                    }
                }
            }
        }
        ticks(&domain, CPUS, 8);
        assert!(flags[..retired].iter().all(Cell::get), "seed {seed}: something is lost");
    }
}

/// A reader that never leaves, and writers at full speed: they stand at the limit, until it does.
#[test]
fn a_flood_is_held_back() {
    const CPUS: usize = 3;
    let (machine, domain) = (Machine::new(CPUS), Domain::new(CPUS));
    let [begun, stood, left, most] = [(); 4].map(|()| AtomicUsize::new(0));
    machine.run(|cpu, ctx| {
        domain.idle_exit(&mut ctx.pin());
        if cpu.index() == 0 {
            let pin = ctx.pin();
            let section = domain.read(&pin);
            begun.store(1, Ordering::Release);
            while stood.load(Ordering::Acquire) < CPUS - 1 {
                std::thread::yield_now();
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            left.store(1, Ordering::Release);
            drop(section);
        } else {
            let (mut kicks, mut stands) = (0, false);
            let measure = || _ = most.fetch_max(domain.held(&ctx.pin()).0, Ordering::Relaxed);
            while begun.load(Ordering::Acquire) == 0 {
                std::thread::yield_now();
            }
            // Twice what may wait, each.
            for _ in 0..2 * domain.limit() / 4096 {
                let flag = Box::leak(Box::new(Cell::new(false)));
                domain.call(&ctx.pin(), retire(flag).of_bytes(4096));
                if domain.is_asked(&ctx.pin()) {
                    let kick = |cpus: &CpuSet| _ = cpus.len();
                    domain.relieve(&ctx, kick, || {
                        kicks += 1;
                        // While it stands: both may stand at once, and when they go on less waits.
                        measure();
                        if !stands && left.load(Ordering::Acquire) == 0 {
                            stands = true;
                            stood.fetch_add(1, Ordering::Release);
                        }
                        std::thread::yield_now();
                    });
                }
                measure();
            }
            if !stands {
                stood.fetch_add(1, Ordering::Release);
            }
            assert!(stands, "nobody was in the way");
        }
        domain.offline(&mut ctx.pin());
    });
    let (most, limit) = (most.into_inner(), domain.limit());
    println!("{most} bytes waited at most, of {limit}");
    assert!(most >= limit && most <= limit + CPUS * (SOFT + 4096), "{most} bytes, of {limit}");
}

const CPUS: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Step {
    Retire,
    Tick,
    Open,
    Close,
    Sleep,
    Leave,
    Report,
    Look,
    Hurry,
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let step = prop_oneof![
        2 => Just(Step::Retire), 6 => Just(Step::Tick), 2 => Just(Step::Open), 3 => Just(Step::Close),
        1 => Just(Step::Sleep), 1 => Just(Step::Leave), 3 => Just(Step::Report), 2 => Just(Step::Look),
        1 => Just(Step::Hurry),
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
                Step::Leave if open[cpu].is_none() => {
                    domain.offline(&mut pin(cpu));
                    awake[cpu] = false;
                }
                Step::Report if open[cpu].is_none() => domain.qs(&mut pin(cpu)),
                Step::Look if open[cpu].is_none() => domain.look(&mut pin(cpu)),
                // Those that are told report if they are in no section, as if they were in user mode.
                Step::Hurry if open[cpu].is_none() => domain.hurry(&mut pin(cpu), |told| {
                    for other in told.iter().map(CpuId::index) {
                        assert!(awake[other], "CPU {other} idles");
                        if open[other].is_none() {
                            domain.qs(&mut pin(other));
                        }
                    }
                }),
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
