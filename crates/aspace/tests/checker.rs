//! The checker's own tests: the simulated buffers are as bad as they may be, and what must not be is noticed.
#![cfg(not(loom))]

mod machine;

use std::{panic::AssertUnwindSafe, sync::atomic::Ordering};

use addr::{Frame, PageRange, Prot, Pte};
use aspace::{Access, Audited};
use machine::{
    RW,
    buffer::{Buffer, words},
    page,
};
use owned::{Memory, OwnedFrame, Use, testing};
use percpu::{CpuId, CpuSet, testing::Machine};

/// A root, directories and a leaf table that translate page 5 to a frame: all five, the root first.
fn tables(memory: &'static Memory, cpus: &Machine) -> [Frame; 5] {
    cpus.on(0, |ctx| {
        let pin = ctx.pin();
        let table = |_| memory.alloc_zeroed(&pin, Use::PageTable).expect("memory").into_raw();
        let [root, third, second, leaf] = [0; 4].map(table);
        let frame = memory.alloc_zeroed(&pin, Use::Anonymous).expect("memory").into_raw();
        let set = |table, index: usize, entry: Pte| {
            words(memory, table)[index].store(entry.bits(), Ordering::SeqCst);
        };
        set(root, 0, Pte::table(third));
        set(third, 0, Pte::table(second));
        set(second, 0, Pte::table(leaf));
        set(leaf, 5, Pte::user_page(frame, RW));
        [root, third, second, leaf, frame]
    })
}

fn panics(f: impl FnOnce(), words: &str) {
    let message = std::panic::catch_unwind(AssertUnwindSafe(f)).expect_err(words);
    let text = message.downcast_ref::<String>().expect("a text");
    assert!(text.contains(words), "{text}");
}

#[test]
fn what_is_cached_is_kept_until_a_flush_and_rights_are_of_all_levels() {
    let (memory, cpus) = (testing::memory(64, 1), Machine::new(1));
    let [root, _, second, leaf, frame] = tables(memory, &cpus);
    let mut buffer = Buffer::load(root, 0);
    buffer.speculate(memory, page(5));
    assert!(buffer.holds(frame) && buffer.holds(leaf) && buffer.reaches(memory, frame));
    // Stores are taken away in the directory: the translation that is cached is as before.
    words(memory, second)[0].fetch_and(!Pte::WRITE, Ordering::SeqCst);
    assert_eq!(buffer.translate(memory, page(5), Access::Write), Some(frame));
    buffer.flush(PageRange::single(page(5)).expect("a page"));
    assert_eq!(buffer.translate(memory, page(5), Access::Write), None);
    assert_eq!(buffer.translate(memory, page(5), Access::Read), Some(frame));
    // The table is unlinked: the pointer that is cached leads there still, and so does a walk by it.
    words(memory, second)[0].store(0, Ordering::SeqCst);
    let mut translation = true;
    buffer.evict(|| std::mem::take(&mut translation));
    assert!(!buffer.holds(frame) && buffer.reaches(memory, frame));
    assert_eq!(buffer.translate(memory, page(5), Access::Read), Some(frame));
    buffer.evict(|| true);
    assert!(!buffer.holds(frame) && !buffer.reaches(memory, frame) && buffer.holds(root));
}

#[test]
fn what_must_not_be_is_noticed() {
    let (memory, cpus) = (testing::memory(64, 1), Machine::new(1));
    let [root, _, second, leaf, frame] = tables(memory, &cpus);
    let free = |frame, usage| {
        // SAFETY: it was made above; that somebody could still use it is what is to be noticed.
        let share = unsafe { OwnedFrame::from_raw(frame, usage) };
        cpus.on(0, |ctx| memory.free(&ctx.pin(), share));
    };
    let audited = Audited { page: page(5), frame: Some(frame), rights: Prot::READ, cpus: CpuSet::first(1) };
    let cpu = CpuId::default();
    let with = |audited: Audited| {
        move || {
            let mut buffer = Buffer::load(root, 0);
            buffer.speculate(memory, page(5));
            buffer.audit(cpu, 0, &audited);
        }
    };
    with(Audited { rights: RW, ..audited })();
    panics(with(Audited { frame: None, ..audited }), "T2");
    panics(with(audited), "T2");
    panics(with(Audited { rights: RW, cpus: CpuSet::EMPTY, ..audited }), "T3");
    let two_sizes = move || {
        let mut buffer = Buffer::load(root, 0);
        buffer.speculate(memory, page(5));
        let large = Pte::user_page(frame, RW).bits() | Pte::LARGE;
        let old = words(memory, second)[0].swap(large, Ordering::SeqCst);
        // Another page of the block goes, and with it all pointers to tables.
        buffer.flush(PageRange::single(page(7)).expect("a page"));
        let filled = std::panic::catch_unwind(AssertUnwindSafe(move || buffer.speculate(memory, page(6))));
        words(memory, second)[0].store(old, Ordering::SeqCst);
        filled.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    };
    panics(two_sizes, "T5");
    let walk = move || Buffer::load(root, 0).speculate(memory, page(5));
    free(frame, Use::Anonymous);
    panics(walk, "T1");
    free(leaf, Use::PageTable);
    panics(walk, "T4");
}
