//! What sections that cost nothing are compiled to: those of the kernel's domain, and of `Qsbr`, add no instruction to a load.
//!
//! In debug builds a section is noted, for reports; so this is about the release build (`cargo quire test host --full`).
#![cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]
#![allow(dead_code, reason = "other tests look at other things in a program")]

#[path = "../../frames/tests/disassembly/mod.rs"]
mod disassembly;

use std::{
    hint::black_box,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use disassembly::Program;
use percpu::{Pinned, testing::Machine};
use rcu::{Ptr, domain, kernel::Domain, qsbr};

qsbr!(static THREADS: Members, 1);
domain!(static USERS: Users);

/// What is read in sections. The probes have the same arguments, so that they differ by the section alone.
type Word = AtomicU64;

#[unsafe(no_mangle)]
#[inline(never)]
fn probe_plain(word: &Word, _: &Domain, _: &Pinned<'_>) -> u64 {
    word.load(Ordering::Acquire)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn probe_kernel(word: &Word, domain: &Domain, pin: &Pinned<'_>) -> u64 {
    let _section = domain.read(pin);
    word.load(Ordering::Acquire)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn probe_nested(word: &Word, domain: &Domain, pin: &Pinned<'_>) -> u64 {
    let _section = domain.read(pin);
    let _another = domain.read(pin);
    word.load(Ordering::Acquire)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn probe_stores(word: &Word, domain: &Domain, pin: &Pinned<'_>) -> u64 {
    let _section = domain.read(pin);
    word.store(1, Ordering::Release);
    word.load(Ordering::Acquire)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn probe_fences(word: &Word, domain: &Domain, pin: &Pinned<'_>) -> u64 {
    let _section = domain.read(pin);
    fence(Ordering::SeqCst);
    word.load(Ordering::Acquire)
}

type Member = rcu::qsbr::Member<'static, Members>;

#[unsafe(no_mangle)]
#[inline(never)]
fn probe_member_plain(word: &Word, _: &Member) -> u64 {
    word.load(Ordering::Acquire)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn probe_member(word: &Word, member: &Member) -> u64 {
    let _section = member.read();
    word.load(Ordering::Acquire)
}

/// A branded pointer, as programs use it.
#[unsafe(no_mangle)]
#[inline(never)]
fn probe_member_pointer(at: &Ptr<u64, Members>, member: &Member) -> u64 {
    let section = member.read();
    at.load(&section).copied().unwrap_or(0)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn probe_reader(word: &Word, reader: &rcu::user::Reader<'static, Users>) -> u64 {
    let _section = reader.read();
    word.load(Ordering::Acquire)
}

#[test]
fn sections_that_cost_nothing_are_no_instruction() {
    let (word, machine, domain) = (AtomicU64::new(7), Machine::new(1), Domain::new(1));
    // They are what is called, and do what they are for.
    machine.on(0, |ctx| {
        domain.idle_exit(&mut ctx.pin());
        let pin = ctx.pin();
        let probes = [probe_plain, probe_kernel, probe_nested, probe_fences];
        assert_eq!(probes.map(|probe| black_box(probe)(&word, &domain, &pin)), [7; 4]);
        assert_eq!(black_box(probe_stores)(&word, &domain, &pin), 1);
    });
    let member = THREADS.register().expect("there is room");
    let at = Ptr::new(Box::new(7));
    assert_eq!(black_box(probe_member)(&word, &member) + black_box(probe_member_plain)(&word, &member), 2);
    assert_eq!(black_box(probe_member_pointer)(&at, &member), 7);
    let reader = USERS.register();
    assert_eq!(black_box(probe_reader)(&word, &reader), 1);
    if cfg!(debug_assertions) {
        return println!("compiled with checks: nothing to see");
    }
    let program = Program::this();
    let walk = |probe| program.walk(probe, &[]);
    let plain = walk("probe_plain");
    assert!((2..=4).contains(&plain.instructions), "not a load: {plain:#?}");
    for (probe, like) in [
        ("probe_kernel", "probe_plain"),
        ("probe_nested", "probe_plain"),
        ("probe_member", "probe_member_plain"),
    ] {
        let (walk, like) = (walk(probe), walk(like));
        assert_eq!(walk.instructions, like.instructions, "{probe}: {walk:#?}");
    }
    for probe in ["probe_kernel", "probe_nested", "probe_member", "probe_member_pointer"] {
        let walk = walk(probe);
        println!("{probe}: {} instructions", walk.instructions);
        let adds = [&walk.written, &walk.locked, &walk.fences, &walk.lost];
        assert!(adds.iter().all(|found| found.is_empty()), "{probe}: {walk:#?}");
    }
    // What is planted is found, and what the other domain's sections write.
    assert_eq!(walk("probe_stores").written.len(), 1);
    let fenced = walk("probe_fences");
    assert_eq!(fenced.fences.len() + fenced.locked.len(), 1, "{fenced:#?}");
    assert!(walk("probe_reader").written.len() >= 2);
}
