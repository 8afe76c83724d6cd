//! The same pairs where they are counted rather than timed: on the exact machine, by as many threads as it has CPUs.
//!
//!     refcache atomic|arc|domain|shared --json --threads N --warm-up PAIRS --operations PAIRS
//!
//! An operation is a pair. Markers (`docs/exact.md`) enclose batches of them, with what each thread does in the background a
//! few times in its window, and the answer is one line of JSON as `mapbench`'s.

use std::{process::ExitCode, sync::Barrier, thread};

use percpu::{CpuId, Pinned};
use refcache::Threads;
use serde_json::json;

use super::{Objects, SUBJECTS, place};

/// Pairs between two markers.
const BRACKET: u32 = 1 << 10;
/// How often a thread works in the background in its window.
const ROUNDS: u32 = 8;

macro_rules! mark {
    ($number:literal) => {
        // SAFETY: an instruction without effect.
        unsafe {
            core::arch::asm!(
                ".byte 0x0f, 0x1f, 0x84, 0x00",
                concat!(".long ", $number),
                options(nostack, preserves_flags)
            )
        }
    };
}

struct Plan {
    subject: &'static str,
    threads: usize,
    warm_up: u32,
    pairs: u32,
}

/// What the words ask for, if they can be understood.
fn plan(words: &[String]) -> Option<Plan> {
    let (name, rest) = words.split_first()?;
    let subject = SUBJECTS.into_iter().find(|subject| subject.eq_ignore_ascii_case(name))?;
    let mut plan = Plan { subject, threads: 1, warm_up: BRACKET, pairs: 100 * BRACKET };
    let mut rest = rest.iter().filter(|word| *word != "--json");
    while let Some(option) = rest.next() {
        let n: u32 = rest.next()?.parse().ok()?;
        match option.as_str() {
            "--threads" if (1..=255).contains(&n) => plan.threads = n as usize,
            "--warm-up" => plan.warm_up = n,
            "--operations" if n > 0 => plan.pairs = n,
            _ => return None,
        }
    }
    Some(plan)
}

pub fn run(words: &[String]) -> ExitCode {
    let Some(Plan { subject, threads, warm_up, pairs }) = plan(words) else {
        eprintln!("refcache: say SUBJECT [--json] [--threads N] [--warm-up PAIRS] [--operations PAIRS]");
        return ExitCode::from(2);
    };
    let objects = Objects::new(threads);
    let barrier = Barrier::new(threads);
    let run = |cpu: usize| {
        place(cpu);
        // SAFETY: each thread is a CPU of its own.
        let pin = unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) };
        objects.pairs(subject, warm_up, &pin);
        Threads::idle(|| barrier.wait());
        mark!("0x51510001");
        let (mut left, mut brackets) = (pairs, 0);
        let each = (pairs / ROUNDS).max(1);
        let mut works = pairs - each.min(pairs);
        while left > 0 {
            let batch = left.min(BRACKET);
            mark!("0x51510003");
            objects.pairs(subject, batch, &pin);
            if left <= works {
                works = works.saturating_sub(each);
                objects.work(subject, &pin);
            }
            mark!("0x51510004");
            left -= batch;
            brackets += 1;
        }
        mark!("0x51510002");
        objects.domain.leave(&pin);
        json!({"thread": cpu, "cpu": cpu, "operations": pairs, "brackets": brackets})
    };
    let per_thread: Vec<_> = Threads::idle(|| {
        thread::scope(|scope| {
            let run = &run;
            let threads: Vec<_> = (0..threads).map(|cpu| scope.spawn(move || run(cpu))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a thread")).collect()
        })
    });
    let right = objects.are_as_at_first();
    println!("{}", json!({"program": "refcache", "npages": 1, "right": right, "per_thread": per_thread}));
    if right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
