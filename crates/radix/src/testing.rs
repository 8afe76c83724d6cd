//! A space on the host, for tests: pages, memory that can run out, and a record of who owns what.

#[cfg(not(loom))]
use std::alloc;
use std::{
    alloc::Layout,
    collections::BTreeMap,
    marker::PhantomData,
    ptr::NonNull,
    sync::{
        Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed},
    },
    vec::Vec,
};

use percpu::{CpuId, Pinned};
use refcache::{AllStopped, Budget, Domain};

use crate::{
    Space, Tree,
    node::At,
    page::Page,
    word::{self, LOCK},
};

/// Ways of a CPU's cache: few, so that they collide; but not under loom, whose executions must not depend on addresses.
const WAYS: usize = if cfg!(loom) { 1024 } else { 16 };
/// Descriptors that tests use are below.
pub const DESCRIPTORS: usize = 16;

/// The shape of a tree.
pub trait Form: Send + Sync + 'static {
    /// As [`Space::BITS`].
    const BITS: &'static [u32];
}

/// The shape of a tree of pages.
#[derive(Debug)]
pub struct Pages;

impl Form for Pages {
    const BITS: &'static [u32] = crate::page::BITS;
}

/// Three levels of two slots.
#[derive(Debug)]
pub struct Tiny;

impl Form for Tiny {
    const BITS: &'static [u32] = &[1, 1, 1];
}

/// Three levels of a few slots, so that short random operations meet every edge.
#[derive(Debug)]
pub struct Small;

impl Form for Small {
    const BITS: &'static [u32] = &[2, 2, 2];
}

/// A space of pages in the shape of `F`.
#[derive(Debug)]
pub struct Host<F> {
    refs: Domain<WAYS>,
    rcu: rcu::kernel::Domain,
    cpus: usize,
    nodes: AtomicUsize,
    bytes: AtomicUsize,
    /// Allocations until they fail; negative for never.
    budget: AtomicI64,
    /// For each descriptor the slots that name it.
    named: Vec<AtomicI64>,
    /// For each frame that is shared, how many slots share it besides the first.
    shared: Mutex<BTreeMap<u64, i64>>,
    /// For each CPU, how often waiting is worth while.
    patience: Vec<AtomicUsize>,
    _form: PhantomData<F>,
}

// SAFETY: memory comes from the host's allocator; the domains are fields; pages are values.
unsafe impl<F: Form> Space for Host<F> {
    const BITS: &'static [u32] = F::BITS;
    type Refs = Domain<WAYS>;
    type Annex = AtomicUsize;
    const ANNEX_LEVEL: Option<usize> = F::BITS.len().checked_sub(2);

    fn refs(&self) -> &Self::Refs {
        &self.refs
    }
    fn rcu(&self) -> &rcu::kernel::Domain {
        &self.rcu
    }
    fn alloc(&self, layout: Layout, _: &Pinned<'_>) -> Option<NonNull<u8>> {
        let spent = |left: i64| if left > 0 { Some(left - 1) } else { None };
        if self.budget.load(Relaxed) >= 0 && self.budget.fetch_update(Relaxed, Relaxed, spent).is_err() {
            return None;
        }
        #[cfg(loom)]
        let memory = arena::alloc(layout)?;
        // SAFETY: a node has a size.
        #[cfg(not(loom))]
        let memory = NonNull::new(unsafe { alloc::alloc(layout) })?;
        self.nodes.fetch_add(1, Relaxed);
        self.bytes.fetch_add(layout.size(), Relaxed);
        Some(memory)
    }
    unsafe fn free(&self, memory: NonNull<u8>, layout: Layout, _: &Pinned<'_>) {
        self.nodes.fetch_sub(1, Relaxed);
        self.bytes.fetch_sub(layout.size(), Relaxed);
        // SAFETY: by the caller's promise.
        unsafe {
            if cfg!(debug_assertions) {
                memory.write_bytes(0xdb, layout.size());
            }
            #[cfg(not(loom))]
            alloc::dealloc(memory.as_ptr(), layout);
        }
    }
    fn spin_wait(&self, pin: &Pinned<'_>) -> bool {
        sync::primitive::spin_loop();
        let less = |left: usize| left.checked_sub(1);
        self.patience[pin.cpu().index()].fetch_update(Relaxed, Relaxed, less).is_ok()
    }
    fn part(value: u64, offset: u64) -> u64 {
        Page::of(value).part(offset).word()
    }
    fn count(&self, value: u64, n: i32, _: &Pinned<'_>) {
        let before = self.named[Page::of(value).desc() as usize].fetch_add(n.into(), Relaxed);
        assert!(before + i64::from(n) >= 0, "{:?} is named less than not at all", Page::of(value));
    }
    fn share(&self, value: u64, keys: u64, _: &Pinned<'_>) -> u64 {
        let page = Page::of(value);
        let frames = if page.pfn() == 0 { 0 } else { keys };
        for pfn in page.pfn()..page.pfn() + frames {
            *self.shared.lock().unwrap().entry(pfn).or_default() += 1;
        }
        page.with_owner(0).word()
    }
    fn unshare(&self, value: u64, _: &Pinned<'_>) {
        let pfn = Page::of(value).pfn();
        assert!(pfn == 0 || !self.drop_frame(pfn), "{:?} has nobody else", Page::of(value));
    }
    fn has_pages(&self, value: u64) -> bool {
        Page::of(value).pfn() != 0
    }
    fn mark_shared(&self, value: u64) -> u64 {
        let page = Page::of(value);
        page.with_shared(page.pfn() != 0).word()
    }
}

/// Under loom, memory at the same addresses in each execution of a model, as Refcache's caches go by addresses. A model
/// has one space at a time.
#[cfg(loom)]
mod arena {
    use core::{alloc::Layout, cell::RefCell, ptr::NonNull};
    use std::{boxed::Box, thread_local};

    const BYTES: usize = 1 << 20;

    thread_local! {
        /// The arena, for ever, and how much of it is used. A model's threads are all on one of the host's.
        static ARENA: RefCell<(Option<NonNull<u8>>, usize)> = const { RefCell::new((None, 0)) };
    }

    pub(super) fn clear() {
        ARENA.with_borrow_mut(|arena| arena.1 = 0);
    }
    pub(super) fn alloc(layout: Layout) -> Option<NonNull<u8>> {
        ARENA.with_borrow_mut(|(start, used)| {
            let new = || NonNull::from(Box::leak(Box::new([0u64; BYTES / 8]))).cast();
            let start = *start.get_or_insert_with(new);
            let at = (start.addr().get() + *used).next_multiple_of(layout.align()) - start.addr().get();
            *used = at + layout.size();
            // SAFETY: within the arena.
            (*used <= BYTES).then(|| unsafe { start.add(at) })
        })
    }
}

impl<F: Form> Host<F> {
    /// A space of `cpus` CPUs, all of them awake, for ever.
    pub fn new(cpus: usize) -> &'static Self {
        std::boxed::Box::leak(std::boxed::Box::new(Self::owned(cpus)))
    }
    /// The same, to be dropped by the caller, after all trees and [`Self::settle`].
    pub fn owned(cpus: usize) -> Self {
        #[cfg(loom)]
        arena::clear();
        let space = Self {
            refs: Domain::new(cpus),
            rcu: rcu::kernel::Domain::new(cpus),
            cpus,
            nodes: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            budget: AtomicI64::new(-1),
            named: (0..DESCRIPTORS).map(|_| AtomicI64::new(0)).collect(),
            shared: Mutex::default(),
            patience: (0..cpus).map(|_| AtomicUsize::new(usize::MAX)).collect(),
            _form: PhantomData,
        };
        space.pins().for_each(|mut pin| {
            space.rcu.idle_exit(&mut pin);
            space.refs.unpark(&pin);
        });
        space
    }
    /// Allocations that are not freed, and their bytes.
    pub fn memory(&self) -> (usize, usize) {
        (self.nodes.load(Relaxed), self.bytes.load(Relaxed))
    }
    /// Let allocations fail after `n`, or never.
    pub fn fail_after(&self, n: Option<u32>) {
        self.budget.store(n.map_or(-1, i64::from), Relaxed);
    }
    /// Let waiting for a slot's lock be worth while on every CPU `n` times, and then no more.
    pub fn be_patient(&self, n: usize) {
        self.patience.iter().for_each(|patience| patience.store(n, Relaxed));
    }
    /// How many slots name `desc`.
    pub fn named(&self, desc: u32) -> i64 {
        self.named[desc as usize].load(Relaxed)
    }
    /// A slot has given a frame up: true if no other has it.
    pub fn drop_frame(&self, pfn: u64) -> bool {
        let mut shared = self.shared.lock().unwrap();
        let Some(others) = shared.get_mut(&pfn) else { return true };
        *others -= 1;
        if *others == 0 {
            shared.remove(&pfn);
        }
        false
    }
    /// Frames that are shared.
    pub fn shared_frames(&self) -> usize {
        self.shared.lock().unwrap().len()
    }
    /// What a CPU does regularly, in no section.
    pub fn tick(&self, pin: &mut Pinned<'_>) {
        self.refs.work(pin, Budget::ALL);
        self.rcu.tick(pin);
    }
    /// A tick of every CPU.
    pub fn epoch(&self, _: &AllStopped) {
        self.pins().for_each(|mut pin| self.tick(&mut pin));
    }
    /// Collect all there is to collect.
    pub fn settle(&self, stopped: &AllStopped) {
        loop {
            self.refs.settle(stopped);
            if self.pins().all(|pin| self.rcu.pending(&pin) == 0) {
                return;
            }
            self.pins().for_each(|mut pin| _ = self.rcu.tick(&mut pin));
        }
    }
    fn pins(&self) -> impl Iterator<Item = Pinned<'static>> {
        // SAFETY: the callers have been shown that no other thread is on a CPU.
        (0..self.cpus).filter_map(CpuId::new).map(|cpu| unsafe { Pinned::assume(cpu) })
    }
}

impl<F: Form> Tree<Host<F>> {
    /// Panics unless no slot is locked, each node has as many references as used slots, and each link is to a node of its
    /// place. Frozen nodes have their own rules: they have all their references, and no weak word.
    pub fn audit(&self, stopped: &AllStopped) {
        self.audit_node(self.root(), 1, stopped);
    }
    fn audit_node(&self, at: At<'_, Host<F>>, more: i64, stopped: &AllStopped) {
        let level = at.level();
        for (i, slot) in at.all().iter().enumerate() {
            let seen = slot.load(Acquire);
            assert!(seen & LOCK == 0, "slot {i} at level {level} is locked or dead: {seen:#x}");
            if word::is_link(seen) {
                // SAFETY: the link is in a slot, and nobody else is here.
                let child = unsafe { At::<Host<F>>::of_link(seen) };
                assert_eq!((child.level(), child.index()), (level + 1, i), "{seen:#x}");
                let named = child.named_by().map(core::ptr::from_ref);
                assert_eq!(named, (!word::is_frozen(seen)).then_some(core::ptr::from_ref(slot)));
                self.audit_node(child, 0, stopped);
            }
        }
        let counted = self.space().refs.exact(at.node(), stopped);
        assert_eq!(counted, i64::from(at.used()) + more, "references of a node at level {level}");
    }
}
