//! Every allocation of every operation fails once: the operation fails as a whole, no lock is left, nothing is lost.
#![cfg(not(any(loom, shuttle)))]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    ptr,
};

use percpu::{CpuId, Pinned};
use radix::{
    Error, Given, Mode, Reserve, Section, Tree,
    page::Page,
    testing::{Host, Pages},
};
use refcache::AllStopped;

/// The heap, until it has been asked often enough by a thread.
struct Heap;

thread_local! {
    /// Allocations until one fails; that one, and no other.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

fn fails() -> bool {
    LEFT.with(|left| {
        let now = left.get();
        left.set(now.and_then(|n| n.checked_sub(1)));
        now == Some(0)
    })
}

// SAFETY: it is the system's, which also says no sometimes.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        if fails() { ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        if fails() { ptr::null_mut() } else { unsafe { System.realloc(memory, layout, size) } }
    }
}

#[global_allocator]
static HEAP: Heap = Heap;

fn pin() -> Pinned<'static> {
    // SAFETY: each test is one thread, on CPU 0 of spaces of its own.
    unsafe { Pinned::assume(CpuId::default()) }
}

fn stopped() -> AllStopped {
    // SAFETY: as above.
    unsafe { AllStopped::assume() }
}

type Space = Host<Pages>;
type Operation<'a> = dyn Fn(&Tree<Space>, &mut Reserve<Space>, &Section<'_, Space>) -> Result<(), Error> + 'a;

/// Pages whose leaves there are.
const KEYS: [u64; 14] =
    [3, 64, 130, 200, 511, 512, 777, 1 << 18, 300_000, 400_000, 500_000, 600_000, 1 << 20, (1 << 27) + 5];

/// A mapping of the first 2^28 pages, of which some have leaves of their own.
fn tree(space: &'static Space) -> Tree<Space> {
    let (pin, mut reserve) = (pin(), Reserve::new());
    let tree = Tree::new(space, &pin).expect("there is memory");
    let section = Section::new(space, &pin);
    let guard = tree.lock_range(0..1 << 28, Mode::Fill, &mut reserve, &section);
    guard.expect("there is memory").replace(Page::new(1).word(), |_| ());
    for key in KEYS {
        let guard = tree.lock_range(key..key + 1, Mode::Edit, &mut reserve, &section);
        guard.expect("there is memory").update(|_| Page::new(2).word());
    }
    reserve.give_back(space, &pin);
    tree
}

fn contents(tree: &Tree<Space>, section: &Section<'_, Space>) -> Vec<Page> {
    let around = KEYS.iter().flat_map(|key| key.saturating_sub(1)..key + 2);
    around.map(|key| Page::of(tree.get(key, section).value)).collect()
}

/// Let each allocation of the operation fail in turn, each time on a tree as it was, until it goes well. Gives how often
/// it failed.
fn every_allocation(prepare: impl Fn(&Tree<Space>, &Section<'_, Space>), operation: &Operation<'_>) -> usize {
    let mut failed = 0;
    loop {
        let space = Space::new(1);
        let (tree, pin, mut reserve) = (tree(space), pin(), Reserve::new());
        let section = Section::new(space, &pin);
        prepare(&tree, &section);
        let before = contents(&tree, &section);
        LEFT.set(Some(failed));
        let result = operation(&tree, &mut reserve, &section);
        LEFT.set(None);
        tree.audit(&stopped());
        if result.is_err() {
            assert_eq!(result, Err(Error::OutOfMemory));
            assert_eq!(contents(&tree, &section), before);
            failed += 1;
        }
        // What the reserve has needn't be allocated again; afterwards it goes well.
        operation(&tree, &mut reserve, &section).expect("there is memory");
        tree.audit(&stopped());
        reserve.give_back(space, &pin);
        tree.retire(&section, |_| ());
        drop(section);
        space.settle(&stopped());
        assert_eq!(space.memory(), (0, 0));
        (1..16).for_each(|desc| assert_eq!(space.named(desc), 0));
        if result.is_ok() {
            return failed;
        }
    }
}

fn nothing(_: &Tree<Space>, _: &Section<'_, Space>) {}

#[test]
fn mapping_over_edges_fails_whole() {
    let failed = every_allocation(nothing, &|tree, reserve, section| {
        let mut guard = tree.lock_range(1..(1 << 27) + 70, Mode::Fill, reserve, section)?;
        guard.replace(Page::new(3).word(), |_| ());
        Ok(())
    });
    assert!(failed >= 8, "{failed} allocations");
}

#[test]
fn unmapping_many_leaves_fails_whole() {
    let failed = every_allocation(nothing, &|tree, reserve, section| {
        let mut guard = tree.lock_range(2..(1 << 27) + 6, Mode::Take, reserve, section)?;
        guard.replace(0, |_| ());
        Ok(())
    });
    assert!(failed >= 6, "{failed} allocations");
}

#[test]
fn a_fault_in_a_folded_span_fails_whole() {
    let failed = every_allocation(nothing, &|tree, reserve, section| {
        let key = 1 << 26;
        reserve.fill(tree.space(), &(key..key + 1), section.pin())?;
        if let Some(mut guard) = tree.lock_one(key, section)? {
            guard.narrow_to(key, reserve)?;
            guard.set(Page::of(guard.span().value).with_desc(4).word());
        }
        Ok(())
    });
    assert_eq!(failed, 5);
}

/// Fork: the new tree has a part, and goes; the old one has what it had, and its frozen nodes are its own again when it
/// changes them.
#[test]
fn forking_fails_whole() {
    let failed = every_allocation(nothing, &|tree, reserve, section| {
        let mut twin = Tree::new(tree.space(), section.pin())?;
        let guard = tree.lock_range(0..1 << 35, Mode::Freeze, reserve, section);
        let forked = guard.and_then(|mut guard| guard.fork(&mut twin, |_, _| Ok(Given::Same)));
        twin.retire(section, |_| ());
        forked
    });
    assert!(failed >= 6, "{failed} allocations");
}

/// Changing a range of shared nodes copies each, and the copies are made while locks are held.
#[test]
fn changing_what_is_shared_fails_whole() {
    thread_local! {
        static TWIN: Cell<Option<Tree<Space>>> = const { Cell::new(None) };
    }
    let fork = |tree: &Tree<Space>, section: &Section<'_, Space>| {
        let mut twin = Tree::new(tree.space(), section.pin()).expect("there is memory");
        let guard = tree.lock_range(0..1 << 35, Mode::Freeze, &mut Reserve::new(), section);
        guard.expect("there is memory").fork(&mut twin, |_, _| Ok(Given::Same)).expect("there is memory");
        TWIN.set(Some(twin));
    };
    let failed = every_allocation(fork, &|tree, reserve, section| {
        let mut guard = tree.lock_range(2..(1 << 20) + 1, Mode::Edit, reserve, section)?;
        guard.update(|span| if span.value == 0 { 0 } else { Page::of(span.value).with_desc(5).word() });
        drop(guard);
        TWIN.take().into_iter().for_each(|twin| twin.retire(section, |_| ()));
        Ok(())
    });
    assert!(failed >= 8, "{failed} allocations");
}
