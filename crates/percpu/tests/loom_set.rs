//! The rule of `AtomicCpuSet`: a CPU joins and then reads, a remover writes and then looks at the set.
#![cfg(loom)]

use loom::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};
use percpu::{AtomicCpuSet, CpuId, testing::explore};

/// A page-table entry that leads to one frame, and the CPUs that may use it.
struct Space {
    cpus: AtomicCpuSet,
    entry: AtomicU64,
    frame: UnsafeCell<u64>,
}

impl Space {
    fn new() -> Arc<Self> {
        Arc::new(Self { cpus: AtomicCpuSet::new(), entry: AtomicU64::new(1), frame: UnsafeCell::new(0) })
    }
    /// What a CPU does that switches to the space, uses it, and switches away.
    fn visit(&self, cpu: CpuId) {
        self.cpus.insert(cpu);
        // Relaxed: a page walk is ordered by nothing but the join.
        if self.entry.load(Ordering::Relaxed) == 1 {
            // SAFETY: the rule under test; loom checks that the remover's access does not overlap.
            self.frame.with(|f| assert_eq!(unsafe { *f }, 0, "used a frame after it was reused"));
        }
        self.cpus.remove(cpu);
    }
    /// What munmap does: clear the entry, and if no CPU can have a translation, reuse the frame.
    fn remove(&self, cpus: &[CpuId]) {
        // Relaxed: ordered by the fence in `snapshot`.
        self.entry.store(0, Ordering::Relaxed);
        let seen = self.cpus.snapshot();
        if !cpus.iter().any(|c| seen.contains(*c)) {
            // SAFETY: the rule under test.
            self.frame.with_mut(|f| unsafe { *f = 1 });
        }
    }
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

#[test]
fn a_cpu_is_in_the_snapshot_or_sees_the_change() {
    explore("cpu set: one joins against a snapshot", None, || {
        let space = Space::new();
        let s = space.clone();
        let visitor = thread::spawn(move || s.visit(cpu(0)));
        space.remove(&[cpu(0)]);
        visitor.join().unwrap();
    });
}

#[test]
fn a_cpu_that_comes_back_sees_the_change_too() {
    explore("cpu set: one joins, leaves and joins again", None, || {
        let space = Space::new();
        let s = space.clone();
        let visitor = thread::spawn(move || {
            s.visit(cpu(0));
            s.visit(cpu(0));
        });
        space.remove(&[cpu(0)]);
        visitor.join().unwrap();
    });
}

#[test]
fn two_cpus_in_one_word_do_not_hide_each_other() {
    explore("cpu set: two join against a snapshot", Some(3), || {
        let space = Space::new();
        let visitors = [0, 1].map(|n| {
            let s = space.clone();
            thread::spawn(move || s.visit(cpu(n)))
        });
        space.remove(&[cpu(0), cpu(1)]);
        visitors.into_iter().for_each(|v| v.join().unwrap());
    });
}
