//! What all address spaces have in common: the domains that collect what is no longer used, and the descriptors.
//!
//! **Descriptors.** What a page should be is told by a number, of 18 bits, in its slot. It names a [`Desc`]: a [`Mapping`] whose
//! backing is that of page 0 of the address space, so that all pages of a mapping have the same descriptor wherever they
//! are, and fold. Plain anonymous memory has numbers of its own, one for each protection, which are never counted nor
//! given back; so who maps and unmaps it writes nothing that is shared. All others are made when they are needed, and
//! two that say the same are as good as one: who compares, compares what they say.
//!
//! **Few of them.** A program's code, what is read only around it, and what is protected again after it was changed say the
//! same more often than not. So each CPU knows some descriptors that it has made lately, by a word for each, in a place that
//! follows from what they say: the descriptor's *weak* word, which Refcache empties when the descriptor dies. To intern is to try
//! to get a reference by the word, and to compare. Only its own CPU stores links in a word, pinned. A descriptor that
//! has to make room is held while its word is taken away from it: so a word that holds no live link is nobody's weak word,
//! and may be given to the next. What a CPU knows keeps no descriptor alive, and no file.
//!
//! **A descriptor's life.** Each slot that names it is a reference, as is each [`Hold`], counted by Refcache. When there is none
//! any more, it is retired by RCU, since readers that take no lock may have found the number in a slot: so the number means
//! the same as long as their section lasts. After that the number is free; and what the descriptor named is dropped by a
//! thread that may sleep ([`Realm::reap`]), as that may be the end of a file.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{
    alloc::Layout,
    cell::RefCell,
    fmt,
    mem::ManuallyDrop,
    ptr::{self, NonNull},
    sync::atomic::{AtomicBool, AtomicPtr, Ordering},
};

use ::radix::{Reserve, Section, Space, Tree};
use addr::Prot;
use idle::{Collect, Domains};
use owned::{Memory, OwnedFrame};
use percpu::{PerCpu, Pinned, Unpinned};
use refcache::{Counted, Domain, RefHead, word};
use sync::{SpinLock, mutant, primitive::AtomicU64};

use super::{
    totals::Kinds,
    word::{DESCRIPTORS, SEVERAL, Slot},
};
use crate::{Backing, Flags, Mapping, Said};

/// Places for counts that a CPU holds back.
const WAYS: usize = 256;
/// Numbers below this one are those of anonymous memory: 1 + protection.
const PLAIN: u32 = 16;
/// Descriptors in one piece of the table: a page.
const CHUNK: usize = 512;
/// Numbers that a CPU takes from the common stock at once.
const BATCH: usize = 64;
/// Numbers that a CPU keeps at most.
const MOST_NUMBERS: usize = 4 * BATCH;
/// Descriptors that a CPU knows, by what they say.
const KNOWN: usize = 128;

/// What the pages that name it should be. Aligned as objects must be that links name. While it waits for its end, RCU's link is in
/// [`RefHead::ROOM`].
#[repr(C, align(16))]
pub(super) struct Desc {
    head: RefHead,
    link: Link,
    id: u32,
    pub(super) kinds: Kinds,
    /// As if it began at page 0.
    pub(super) mapping: Mapping,
}

/// One word for both, as processes have many descriptors: 96 bytes each, with this.
union Link {
    /// Until [`free`].
    realm: *const Realm,
    /// From there on: the next of those that are no more.
    next: ManuallyDrop<Option<Box<Desc>>>,
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(cfg!(any(loom, shuttle)) || size_of::<Desc>() <= 96);

// SAFETY: it is read only, but for the head, which its domains see to. The pointer is to a `Sync` value.
unsafe impl Send for Desc {}
// SAFETY: as above.
unsafe impl Sync for Desc {}

impl Desc {
    /// Whether a page of `next` may be part of the same mapping as the page before it, which is this one's.
    pub(super) fn continues(&self, next: &Desc) -> bool {
        ptr::eq(self, next) || self.mapping.continues(0, &next.mapping)
    }
}

// SAFETY: the head is the first field of a `repr(C)` structure, and made for this type in `intern`.
unsafe impl Counted for Desc {
    fn head(&self) -> &RefHead {
        &self.head
    }
    unsafe fn dispose(this: NonNull<Self>, pin: &Pinned<'_>) {
        // SAFETY: nobody has a reference, so no slot has the number; sections that have seen it in one may go on. The
        // pointer is to the whole object, and `free` is called once. The room is large enough, and nobody else's.
        unsafe {
            let head = this.byte_add(RefHead::ROOM).cast::<rcu::Head>();
            head.write(rcu::Head::new());
            let realm = &*this.as_ref().link.realm;
            realm.domains.rcu.call(pin, rcu::Retired::new(head, free));
        }
    }
}

/// # Safety
/// `head` is that of a [`Desc`] whose number nobody knows any more.
unsafe fn free(head: NonNull<rcu::Head>, pin: &Pinned<'_>) {
    // SAFETY: by the caller's promise; it was made by `Box`.
    let mut desc = unsafe { Box::from_raw(head.byte_sub(RefHead::ROOM).cast::<Desc>().as_ptr()) };
    // SAFETY: it is that until here, and realms live for ever.
    let realm = unsafe { &*desc.link.realm };
    desc.link = Link { next: ManuallyDrop::new(None) };
    realm.give_number(desc.id, pin);
    realm.dead.push(desc);
}

/// What can wait on a list without memory for that.
pub(crate) trait Linked: Sized {
    fn next(&mut self) -> &mut Option<Box<Self>>;
}

impl Linked for Desc {
    fn next(&mut self) -> &mut Option<Box<Self>> {
        // SAFETY: who is on a list, or is put on one, has been through `free`.
        unsafe { &mut self.link.next }
    }
}

/// Where a tree goes in the end; made with it.
pub(super) struct Grave {
    tree: Option<Tree<Realm>>,
    next: Option<Box<Grave>>,
}

impl Linked for Grave {
    fn next(&mut self) -> &mut Option<Box<Self>> {
        &mut self.next
    }
}

impl Grave {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self { tree: None, next: None })
    }
}

/// Where a mapping goes that nobody can find any more; made with it.
pub(crate) struct Buried {
    mapping: Option<Mapping>,
    next: Option<Box<Buried>>,
}

impl Linked for Buried {
    fn next(&mut self) -> &mut Option<Box<Self>> {
        &mut self.next
    }
}

impl Buried {
    /// `None` if there is no memory.
    pub(crate) fn new() -> Option<Box<Self>> {
        try_box(Self { mapping: None, next: None })
    }
}

/// A box, unless there is no memory.
pub(crate) fn try_box<T>(value: T) -> Option<Box<T>> {
    assert!(size_of::<T>() > 0);
    // SAFETY: the type has a size.
    let memory = NonNull::new(unsafe { alloc::alloc::alloc(Layout::new::<T>()) }.cast::<T>())?;
    // SAFETY: the memory is for one of these, and nobody else's; boxes have theirs from the same allocator.
    unsafe {
        memory.write(value);
        Some(Box::from_raw(memory.as_ptr()))
    }
}

/// Mappings that nobody can find any more.
pub(crate) type Graves = Waiting<Buried>;

impl Graves {
    pub(crate) fn bury(&self, mapping: Mapping, mut grave: Box<Buried>) {
        grave.mapping = Some(mapping);
        self.push(grave);
    }
}

/// Things that wait for somebody to come by. As long as there are none, looking writes nothing, and the line is shared.
#[repr(align(128))]
pub(crate) struct Waiting<T> {
    list: SpinLock<Option<Box<T>>>,
    any: AtomicBool,
}

impl<T: Linked> Waiting<T> {
    pub(crate) fn new() -> Self {
        Self { list: SpinLock::new(None), any: AtomicBool::new(false) }
    }
    fn push(&self, mut one: Box<T>) {
        let mut list = self.list.lock();
        *one.next() = list.take();
        *list = Some(one);
        // Relaxed, all: changed under the lock, which orders the list; without it a hint, but for the CPU that has pushed.
        self.any.store(true, Ordering::Relaxed);
    }
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Relaxed)
    }
    /// All that wait now, one by one.
    pub(crate) fn take(&self) -> impl Iterator<Item = Box<T>> + use<T> {
        let mut list = self.list.lock();
        self.any.store(false, Ordering::Relaxed);
        let mut rest = list.take();
        core::iter::from_fn(move || {
            let mut one = rest.take()?;
            rest = one.next().take();
            Some(one)
        })
    }
}

/// A reference to a descriptor, for as long as its CPU is pinned.
pub(super) struct Hold<'p> {
    realm: &'static Realm,
    id: u32,
    pin: &'p Pinned<'p>,
}

/// A reference to a descriptor, to be [released](Self::release).
#[must_use = "a reference that is dropped is never given back"]
pub(super) struct Kept {
    realm: &'static Realm,
    id: u32,
}

/// Numbers that no CPU has.
struct Numbers {
    /// The first that was used before, or 0. Each has the next one where its descriptor would be.
    free: u32,
    /// From here on none was ever used.
    fresh: u32,
}

/// The surroundings of all address spaces of the designs `radix` and `bonsai` of a machine. It lives for ever.
pub struct Realm {
    domains: Domains<WAYS>,
    table: [AtomicPtr<Chunk>; DESCRIPTORS as usize / CHUNK],
    numbers: SpinLock<Numbers>,
    mine: PerCpu<RefCell<Vec<u32>>>,
    known: PerCpu<[AtomicU64; KNOWN]>,
    reserves: PerCpu<RefCell<Reserve<Realm>>>,
    /// What descriptors named that are no more.
    dead: Waiting<Desc>,
    /// Those of spaces that are no more.
    trees: Waiting<Grave>,
    frames: &'static Memory,
    /// What faults of Bonsai spaces could find, and can't any more.
    mappings: Waiting<Buried>,
    relax: fn(),
}

type Chunk = [AtomicPtr<Desc>; CHUNK];

impl Realm {
    /// For `cpus` CPUs, all of them idle, and spaces whose frames are of `frames`. `relax` is called while a slot is
    /// somebody else's: it lets others run.
    pub fn new(cpus: usize, frames: &'static Memory, relax: fn()) -> Self {
        let numbers = Numbers { free: 0, fresh: PLAIN };
        Self {
            domains: Domains::new(cpus),
            table: [const { AtomicPtr::new(ptr::null_mut()) }; DESCRIPTORS as usize / CHUNK],
            numbers: SpinLock::new(numbers),
            mine: PerCpu::new(cpus, |_| RefCell::new(Vec::with_capacity(MOST_NUMBERS))),
            known: PerCpu::new(cpus, |_| [(); KNOWN].map(|()| AtomicU64::new(word::EMPTY))),
            reserves: PerCpu::new(cpus, |_| RefCell::new(Reserve::new())),
            dead: Waiting::new(),
            trees: Waiting::new(),
            frames,
            mappings: Waiting::new(),
            relax,
        }
    }
    /// Make the descriptors of plain memory. To be called before anything else.
    pub fn init(&'static self) {
        for bits in 0..8 {
            let mapping = Mapping::anonymous(Prot::from_bits_truncate(bits));
            self.publish(Box::new(self.describe(1 + u32::from(bits), mapping)));
        }
    }
    /// How many CPUs there are.
    pub fn cpus(&self) -> usize {
        self.domains.refs.cpus()
    }
    /// Whether there is nothing left to collect, as far as CPUs have [ticked](Collect::tick) since they did something. If there
    /// is, some ticks of all CPUs that aren't idle, and then [`Self::reap`], give memory back.
    pub fn is_quiet(&self) -> bool {
        self.domains.is_quiet() && self.trees.is_empty() && !self.has_dead()
    }
    /// Whether [`Self::reap`] has something to do.
    #[inline]
    pub fn has_dead(&self) -> bool {
        !self.dead.is_empty() || !self.mappings.is_empty()
    }
    /// Drop what descriptors named that are no more. May sleep.
    #[inline]
    pub fn reap(&self, ctx: &Unpinned<'_>) {
        if self.has_dead() {
            self.drop_dead(ctx);
        }
    }
    #[cold]
    fn drop_dead(&self, ctx: &Unpinned<'_>) {
        let (dead, mappings) = {
            let _pin = ctx.pin();
            (self.dead.take(), self.mappings.take())
        };
        // One may sleep.
        dead.for_each(drop);
        mappings.for_each(drop);
    }
    /// Give back the memory for nodes that this CPU keeps.
    pub fn trim(&self, pin: &Pinned<'_>) {
        self.reserve(pin).borrow_mut().give_back(self, pin);
    }
    /// Take over a tree whose space is no more.
    pub(super) fn bury(&self, tree: Tree<Realm>, mut grave: Box<Grave>) {
        grave.tree = Some(tree);
        self.trees.push(grave);
    }
    /// Drop, by a thread that may sleep, what a mapping names.
    pub(crate) fn bury_mapping(&self, mapping: Mapping, grave: Box<Buried>) {
        self.mappings.bury(mapping, grave);
    }
    /// Whose sections delay what is retired.
    pub fn sections(&self) -> &rcu::kernel::Domain {
        &self.domains.rcu
    }
    /// The same, before anything uses it.
    pub fn sections_mut(&mut self) -> &mut rcu::kernel::Domain {
        &mut self.domains.rcu
    }
    /// This CPU has retired something: it is not [quiet](Self::is_quiet) until that is free.
    pub(crate) fn retires(&self, pin: &Pinned<'_>) {
        self.domains.retires(pin);
    }
    /// Memory for nodes, this CPU's.
    pub(super) fn reserve<'p>(&'p self, pin: &'p Pinned<'_>) -> &'p RefCell<Reserve<Realm>> {
        self.reserves.get(pin)
    }

    fn describe(&self, id: u32, mapping: Mapping) -> Desc {
        let (head, kinds) = (RefHead::new::<Desc>(1), Kinds::of(&mapping));
        Desc { head, link: Link { realm: self }, id, kinds, mapping }
    }
    /// A descriptor for `mapping`, which is as if it began at page 0. `None` if there are too many.
    pub(super) fn intern<'p>(&'static self, mapping: &Mapping, pin: &'p Pinned<'p>) -> Option<Hold<'p>> {
        let id = match plain(mapping) {
            Some(id) => id,
            None => self.find_or_make(mapping, pin)?,
        };
        Some(Hold { realm: self, id, pin })
    }
    /// The number of a descriptor for `mapping`, and a reference to it.
    fn find_or_make(&'static self, mapping: &Mapping, pin: &Pinned<'_>) -> Option<u32> {
        let known = &self.known.get(pin)[known_at(mapping)];
        // SAFETY: links in the word are to descriptors, as this CPU stores them below; one that died has left it.
        if let Some(there) = unsafe { self.domains.refs.try_get::<Desc>(known, pin) } {
            // SAFETY: the reference that was just got.
            let there = unsafe { there.as_ref() };
            if there.mapping.continues(0, mapping) {
                return Some(there.id);
            }
            if !mutant!("realm-known-not-taken") {
                // SAFETY: the reference; the word is no more than a word from here on, until it has a link again.
                unsafe { self.domains.refs.set_weak(there, None) };
            }
            // Relaxed: this CPU's own, and nobody's weak word.
            known.store(word::EMPTY, Ordering::Relaxed);
            self.add(there.id, -1, pin);
        }
        let id = self.take_number(pin)?;
        let desc = self.publish(Box::new(self.describe(id, mapping.clone())));
        // SAFETY: the caller will have the reference that it was made with. The word lives as long as the realm.
        unsafe { self.domains.refs.set_weak(desc, Some(known)) };
        // Release: the descriptor before its link; partner: the load in `try_get`.
        known.store(word::link(ptr::from_ref(desc)), Ordering::Release);
        Some(id)
    }
    fn publish(&self, desc: Box<Desc>) -> &Desc {
        let id = desc.id as usize;
        let desc = Box::into_raw(desc);
        let _exposed = desc.expose_provenance();
        let chunk = &self.table[id / CHUNK];
        // Acquire: the chunk's contents; partner: the exchange below.
        let mut there = chunk.load(Ordering::Acquire);
        if there.is_null() {
            let fresh = Box::into_raw(Box::new([const { AtomicPtr::new(ptr::null_mut()) }; CHUNK]));
            // AcqRel, Acquire: one wins, and the others see what it made.
            match chunk.compare_exchange(ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => there = fresh,
                Err(theirs) => {
                    // SAFETY: nobody else knows it.
                    drop(unsafe { Box::from_raw(fresh) });
                    there = theirs;
                }
            }
        }
        // SAFETY: chunks are never freed.
        let chunk = unsafe { &*there };
        // Release: the descriptor before its number is anywhere; partner: `desc`.
        chunk[id % CHUNK].store(desc, Ordering::Release);
        // SAFETY: the caller has the reference that it was made with, or it is one of those that stay.
        unsafe { &*desc }
    }
    /// Where the descriptor with a number is that was used before.
    fn place(&self, id: u32) -> &AtomicPtr<Desc> {
        let id = id as usize;
        // SAFETY: chunks are made before a number of theirs is used (Acquire: partner in `publish`), and never freed.
        unsafe { &(*self.table[id / CHUNK].load(Ordering::Acquire))[id % CHUNK] }
    }
    fn find(&self, id: u32) -> &Desc {
        // SAFETY: the callers have a number that names a descriptor, which was published (Acquire: partner in `publish`),
        // and is kept by what the callers say.
        unsafe { &*self.place(id).load(Ordering::Acquire) }
    }
    /// The descriptor of a slot that is mapped, which was read in the section: so it is not freed before its end.
    pub(super) fn desc<'s>(&'s self, slot: Slot, _: &'s Section<'_, Realm>) -> &'s Desc {
        self.find(slot.desc())
    }
    /// One more reference to what a slot names, whose lock the caller has.
    pub(super) fn keep(&'static self, slot: Slot, pin: &Pinned<'_>) -> Kept {
        self.add(slot.desc(), 1, pin);
        Kept { realm: self, id: slot.desc() }
    }
    #[inline]
    fn add(&self, id: u32, n: i32, pin: &Pinned<'_>) {
        if id >= PLAIN && n != 0 {
            self.add_counted(id, n, pin);
        }
    }
    #[inline(never)]
    fn add_counted(&self, id: u32, n: i32, pin: &Pinned<'_>) {
        // SAFETY: up: who calls has a reference, or the lock of a slot that is one. Down: it gives references up.
        unsafe { self.domains.refs.add(self.find(id), n, pin) };
    }
    fn take_number(&self, pin: &Pinned<'_>) -> Option<u32> {
        let mut mine = self.mine.get(pin).borrow_mut();
        if mine.is_empty() {
            let mut all = self.numbers.lock();
            for _ in 0..BATCH {
                let (free, fresh) = (all.free, all.fresh);
                if free > 0 {
                    // Relaxed: the lock orders it.
                    all.free = self.place(free).load(Ordering::Relaxed).addr() as u32;
                    mine.push(free);
                } else if fresh < DESCRIPTORS {
                    all.fresh += 1;
                    mine.push(fresh);
                }
            }
        }
        mine.pop()
    }
    /// Nobody names number `id` any more. Takes no memory.
    fn give_number(&self, id: u32, pin: &Pinned<'_>) {
        let mut mine = self.mine.get(pin).borrow_mut();
        if mine.len() == MOST_NUMBERS {
            let mut all = self.numbers.lock();
            for id in mine.drain(MOST_NUMBERS / 2..) {
                // Relaxed: as above.
                self.place(id).store(ptr::without_provenance_mut(all.free as usize), Ordering::Relaxed);
                all.free = id;
            }
        }
        mine.push(id);
    }
}

/// Where a CPU knows a descriptor for `mapping`, if it does: by the object and the page of it, and by the protection.
fn known_at(mapping: &Mapping) -> usize {
    let (object, page) = match &mapping.backing {
        Backing::Object { object, page } => (Arc::as_ptr(object).addr() as u64 >> 4, *page),
        Backing::Anonymous => (0, 0),
    };
    let what = object.rotate_left(20) ^ page << 4 ^ u64::from(mapping.prot.bits());
    // Knuth's multiplicative hashing (The Art of Computer Programming, vol. 3, 6.4), by 2^64 / the golden ratio.
    (what.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - KNOWN.ilog2())) as usize
}

/// The number of plain anonymous memory.
fn plain(mapping: &Mapping) -> Option<u32> {
    let plain = matches!(mapping.backing, Backing::Anonymous)
        && mapping.max_prot == Prot::all()
        && !mapping.shared
        && mapping.label == crate::Label::None
        && mapping.flags == Flags::empty()
        && mapping.policy == Said::NOTHING
        && mapping.watch.is_none();
    plain.then(|| 1 + u32::from(mapping.prot.bits()))
}

impl Hold<'_> {
    /// A page that should be like this, and is not there yet.
    pub(super) fn slot(&self) -> Slot {
        Slot::new(self.id)
    }
    pub(super) fn desc(&self) -> &Desc {
        self.realm.find(self.id)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.realm.add(self.id, -1, self.pin);
    }
}

impl Kept {
    pub(super) fn desc(&self) -> &Desc {
        self.realm.find(self.id)
    }
    /// Whether it is what the slot names.
    pub(super) fn names(&self, slot: Slot) -> bool {
        self.id == slot.desc()
    }
    pub(super) fn release(self, pin: &Pinned<'_>) {
        self.realm.add(self.id, -1, pin);
    }
}

impl Collect for Realm {
    fn idle_exit(&self, pin: &mut Pinned<'_>) {
        self.domains.idle_exit(pin);
    }
    fn idle_enter(&self, pin: &mut Pinned<'_>) -> bool {
        self.domains.idle_enter(pin) && self.trees.is_empty()
    }
    fn nap(&self, pin: &mut Pinned<'_>) {
        self.domains.nap(pin);
    }
    fn is_free(&self, pin: &Pinned<'_>) -> bool {
        self.domains.is_free(pin)
    }
    fn tick(&self, pin: &mut Pinned<'_>) -> bool {
        if !self.trees.is_empty() {
            let section = Section::new(self, pin);
            for tree in self.trees.take().filter_map(|grave| grave.tree) {
                tree.retire(&section, |left| debug_assert!(false, "{left:?} in a cleared space"));
            }
        }
        self.domains.tick(pin)
    }
}

// SAFETY: memory comes from the heap with the layout asked for, and goes back there; the domains are fields.
unsafe impl Space for Realm {
    const BITS: &'static [u32] = ::radix::page::BITS;
    type Refs = Domain<WAYS>;
    type Annex = ();

    fn refs(&self) -> &Self::Refs {
        &self.domains.refs
    }
    fn rcu(&self) -> &rcu::kernel::Domain {
        &self.domains.rcu
    }
    fn alloc(&self, layout: Layout, _: &Pinned<'_>) -> Option<NonNull<u8>> {
        // SAFETY: a node has a size.
        NonNull::new(unsafe { alloc::alloc::alloc(layout) })
    }
    unsafe fn free(&self, memory: NonNull<u8>, layout: Layout, _: &Pinned<'_>) {
        // SAFETY: by the caller's promise.
        unsafe { alloc::alloc::dealloc(memory.as_ptr(), layout) };
    }
    fn spin_wait(&self, _: &Pinned<'_>) -> bool {
        (self.relax)();
        true
    }
    fn count(&self, value: u64, n: i32, pin: &Pinned<'_>) {
        self.add(Slot::of(value).desc(), n, pin);
    }
    #[inline]
    fn recount(&self, old: u64, new: u64, pin: &Pinned<'_>) {
        let (old, new) = (Slot::of(old).desc(), Slot::of(new).desc());
        if old != new {
            self.add(new, 1, pin);
            self.add(old, -1, pin);
        }
    }
    fn share(&self, value: u64, _: u64, _: &Pinned<'_>) -> u64 {
        if let Some((frame, usage)) = Slot::of(value).frame() {
            // SAFETY: a slot has a share, counted for this use (or has the frame lent), and it or the link to its node is locked. The new share is
            // the other slot's.
            unsafe { self.frames.share_raw(frame, usage) }.into_raw();
        }
        value
    }
    fn unshare(&self, value: u64, pin: &Pinned<'_>) {
        if let Some((frame, usage)) = Slot::of(value).frame() {
            // SAFETY: the slot had a share, counted for this use, and is no more. Every tree that had the slot has copied
            // it, and so has had a share of its own since before this one goes, or has given it up after a flush.
            self.frames.free(pin, unsafe { OwnedFrame::from_raw(frame, usage) });
        }
    }
    fn has_pages(&self, value: u64) -> bool {
        Slot::of(value).frame().is_some()
    }
    fn thawed(&self, value: u64) -> u64 {
        let slot = Slot::of(value);
        let known = slot.frame().is_none() || mutant!("radix-thaw-owner-kept");
        if known { value } else { slot.with_owner(SEVERAL).word() }
    }
}

impl fmt::Debug for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Realm").field("refs", &self.domains.refs.stats()).finish_non_exhaustive()
    }
}
