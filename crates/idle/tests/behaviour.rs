//! What an idle CPU decides, one step after the other.
#![cfg(not(loom))]

use std::ptr::NonNull;

use idle::{Collect, Domains, Halt, Idle, State};
use percpu::{CpuId, Pinned};
use refcache::{Counted, RefHead};

const TICK: u64 = 10;
const SINCE: u64 = 100;

fn idle(now: u64) -> Idle {
    Idle { since: SINCE, now, tick: TICK }
}

#[repr(C)]
struct Object {
    head: RefHead,
}

// SAFETY: the head is the first field, made for this type.
unsafe impl Counted for Object {
    fn head(&self) -> &RefHead {
        &self.head
    }
    unsafe fn dispose(_: NonNull<Self>, _: &Pinned<'_>) {}
}

/// Two CPUs, of which CPU 1 runs.
struct Sim {
    domains: Domains<16>,
    states: [State; 2],
    o: Object,
}

fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: there is one thread, which is each CPU in turn.
    unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) }
}

impl Sim {
    fn new() -> Self {
        let o = Object { head: RefHead::new::<Object>(2) };
        let sim = Self { domains: Domains::new(2), states: [State::new(), State::new()], o };
        for cpu in [0, 1] {
            sim.states[cpu].wake(&sim.domains, &mut pin(cpu));
            sim.states[cpu].ticks(SINCE);
        }
        sim.domains.retires(&pin(1));
        sim
    }
    /// CPU 0 has something to hand on.
    fn gives_up(&self) {
        // SAFETY: the object has two references.
        unsafe { self.domains.refs.add(&self.o, -1, &pin(0)) };
    }
    /// CPU 0 at that time has nothing to run: what it may do.
    fn idles(&self, now: u64) -> Halt {
        self.states[0].rest(&self.domains, idle(now), &mut pin(0));
        let halt = self.states[0].sleep(&self.domains, idle(now), &mut pin(0));
        if halt != Halt::Sleep {
            self.states[0].wake(&self.domains, &mut pin(0));
        }
        halt
    }
}

#[test]
fn who_has_nothing_sleeps_at_once() {
    let sim = Sim::new();
    assert_eq!(sim.idles(SINCE), Halt::Sleep);
    assert!(sim.states[0].is_asleep());
}

#[test]
fn who_holds_something_back_naps_for_a_tick_and_then_leaves_it() {
    let sim = Sim::new();
    sim.gives_up();
    for now in SINCE..SINCE + TICK {
        assert_eq!(sim.idles(now), Halt::Nap(SINCE + TICK));
        assert!(sim.domains.refs.is_member(&pin(0)) && !sim.states[0].is_asleep());
    }
    assert_eq!(sim.idles(SINCE + TICK), Halt::Sleep);
    assert!(!sim.domains.refs.is_member(&pin(0)));
}

#[test]
fn who_is_asked_to_tick_does_not_nap() {
    let sim = Sim::new();
    sim.gives_up();
    sim.states[0].set_due();
    assert!(sim.states[0].is_awaited());
    assert_eq!(sim.idles(SINCE + 1), Halt::Sleep);
    assert!(!sim.states[0].is_due() && !sim.states[0].is_awaited());
}

#[test]
fn who_sleeps_is_not_awaited_though_it_is_asked() {
    let sim = Sim::new();
    assert_eq!(sim.idles(SINCE), Halt::Sleep);
    sim.states[0].set_due();
    assert!(sim.states[0].is_due() && !sim.states[0].is_awaited());
}

#[test]
fn the_last_goes_on_until_nothing_is_left() {
    let sim = Sim::new();
    sim.gives_up();
    // The other reference is CPU 1's, which hands nothing on before it sleeps.
    // SAFETY: the object has one reference left.
    unsafe { sim.domains.refs.add(&sim.o, -1, &pin(1)) };
    assert!(sim.domains.idle_enter(&mut pin(1)), "CPU 0 is there");
    let mut rounds = 0;
    while sim.idles(SINCE + TICK) == Halt::No {
        rounds += 1;
        assert!(rounds < 4, "there is always something left");
    }
    assert!(sim.domains.is_quiet());
    assert_eq!(sim.domains.refs.stats().freed, 1);
}
