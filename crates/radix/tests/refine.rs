//! Splitting what a range lock has, in place: nothing changes but where values can be told apart.
#![cfg(not(any(loom, shuttle)))]

use percpu::{CpuId, Pinned};
use proptest::prelude::*;
use radix::{
    Error, Mode, Reserve, Section, Tree,
    page::Page,
    testing::{Host, Pages},
};
use refcache::AllStopped;

type Space = Host<Pages>;

fn pin() -> Pinned<'static> {
    // SAFETY: each test is one thread, which plays the one CPU.
    unsafe { Pinned::assume(CpuId::default()) }
}

fn stopped() -> AllStopped {
    // SAFETY: as above.
    unsafe { AllStopped::assume() }
}

/// A tree with descriptor 1 in `0..FOLDED` and nothing above.
const FOLDED: u64 = 1 << 18;

fn world(test: impl FnOnce(&'static Space, &Tree<Space>, &Section<'_, Space>, &mut Reserve<Space>)) {
    let space = Space::new(1);
    let pin = pin();
    let mut reserve = Reserve::new();
    let tree = Tree::new(space, &pin).expect("memory");
    {
        let section = Section::new(space, &pin);
        let mut guard = tree.lock_range(0..FOLDED, Mode::Fill, &mut reserve, &section).expect("memory");
        guard.replace(Page::new(1).word(), |_| {});
        drop(guard);
        test(space, &tree, &section, &mut reserve);
        tree.audit(&stopped());
        reserve.give_back(space, &pin);
        tree.retire(&section, |_| {});
    }
    space.settle(&stopped());
    assert_eq!(space.memory(), (0, 0), "nodes were not given back");
    assert_eq!((1..4).map(|desc| space.named(desc)).collect::<Vec<_>>(), [0; 3]);
}

proptest! {
    #[test]
    fn parts_get_values_of_their_own(
        start in prop_oneof![Just(0), 0..2 * FOLDED],
        pages in 1..FOLDED,
        cuts in prop::collection::vec(0..3 * FOLDED, 0..6),
    ) {
        world(|_, tree, section, reserve| {
            let range = start..start + pages;
            let mut guard = tree.lock_range(range.clone(), Mode::Fill, reserve, section).expect("memory");
            let inside = |span: &radix::Span, cut: u64| span.first < cut && cut < span.first + span.keys;
            guard.refine(|span| cuts.iter().any(|&cut| inside(&span, cut))).expect("memory");
            // The parts are the range, in ascending order, and each is on one side of every cut.
            let mut next = range.start;
            for span in guard.spans() {
                assert_eq!(span.first, next);
                assert!(!cuts.iter().any(|&cut| inside(&span, cut)), "{span:?}");
                assert_eq!(span.value, if span.first < FOLDED { Page::new(1).word() } else { 0 });
                next = span.first + span.keys;
            }
            assert_eq!(next, range.end);
            let side = |key: u64| cuts.iter().filter(|&&cut| cut <= key).count() % 2 == 1;
            guard.update(|span| if side(span.first) { Page::new(2).word() } else { Page::new(3).word() });
            drop(guard);
            let edges = cuts.iter().flat_map(|&cut| [cut.saturating_sub(1), cut]);
            for key in edges.chain([range.start, range.end - 1, range.end, 0, FOLDED - 1]) {
                let desc = match range.contains(&key) {
                    true => if side(key) { 2 } else { 3 },
                    false => u32::from(key < FOLDED),
                };
                assert_eq!(Page::of(tree.get(key, section).value).desc(), desc, "{key}");
            }
        });
    }
}

#[test]
fn without_memory_values_stay_and_the_range_stays_locked() {
    for budget in 0..8 {
        world(|space, tree, section, reserve| {
            let mut guard = tree.lock_range(0..FOLDED, Mode::Fill, reserve, section).expect("memory");
            space.fail_after(Some(budget));
            let answer = guard.refine(|span| span.first <= 1000 && span.keys > 1);
            space.fail_after(None);
            assert_eq!(answer, Err(Error::OutOfMemory));
            assert_eq!(guard.spans().map(|span| span.keys).sum::<u64>(), FOLDED);
            assert!(guard.spans().all(|span| span.value == Page::new(1).word()));
            guard.replace(0, |_| {});
            drop(guard);
            assert_eq!(tree.get(1000, section).value, 0);
        });
    }
}

/// A glance finds what a walk finds, in leaves and above.
#[test]
fn a_glance_is_a_walk_for_few() {
    world(|_, tree, section, reserve| {
        let mut guard = tree.lock_range(512..1024, Mode::Edit, reserve, section).expect("memory");
        guard.refine(|span| span.keys > 1).expect("memory");
        guard.update(|span| if span.first % 7 == 0 { Page::new(2).word() } else { Page::new(4).word() });
        drop(guard);
        let _held = tree.lock_one(580, section).expect("memory");
        let one = Page::new(1).word();
        let of_some = Page::new(2).word() & !Page::new(4).word();
        let ranges =
            [512..1024, 512..513, 517..521, 575..712, 579..582, 1023..1024, 600..600, 0..1025, 500..520];
        for (bits, range) in
            [one, of_some, 0].into_iter().flat_map(|bits| ranges.clone().map(|range| (bits, range)))
        {
            let (mut walked, mut glanced) = (Vec::new(), Vec::new());
            tree.walk(range.clone(), section, |found| {
                if found.value & bits != 0 || found.locked {
                    walked.push(found);
                }
                true
            });
            tree.glance(range.clone(), bits, section, |found| glanced.push(found));
            // What is above leaves is found for each of the leaves that would be there.
            glanced.dedup();
            assert_eq!(glanced, walked, "{bits:#x} {range:?}");
        }
    });
}
