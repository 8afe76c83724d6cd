//! Small objects of the kernel: slabs for each CPU, and a mailbox for what others free.
//!
//! # Claim
//! An object that is freed on the CPU that allocated it costs no lock, no locked operation and no line that another CPU
//! writes. One that is freed elsewhere costs one compare-and-swap, and comes back to where it is from. A slab none of whose
//! objects is in use goes back to whoever gave it, but for one of each class and CPU, which goes when memory is short.
//!
//! # Idea
//! Bonwick's slabs (The Slab Allocator, USENIX Summer 1994), one set of them for each CPU, as in mimalloc (Leijen, Zorn and de
//! Moura, APLAS 2019) and snmalloc (Lietar et al., ISMM 2019). A *slab* is a run of frames, aligned to its size, with a header and
//! objects of one class; so an object's slab is found by masking its address. It belongs to one CPU from [`Heap::supply`] until it
//! is given back. Its free objects are a list through the objects themselves; those never used yet are behind a mark, so that a new
//! slab's lines are touched as they are used. The slabs with a free object are on the list of their class.
//!
//! Who frees an object of another CPU's slab pushes it on that CPU's *mailbox*, a stack with one head, through the
//! object itself. The owner takes the whole stack when it finds no free object, or is told to [`Heap::settle`], and frees the
//! objects as its own, a few at a time. Nobody pops single objects, so the stack has no ABA problem.
//!
//! An empty slab goes to the CPU's list of those, from which it is given back when there is occasion ([`Heap::pop_empty`]: an
//! interrupt handler may free the last object, but isn't the one to call another allocator), or begins anew with another
//! class. Of each kind a few stay as the CPU's *reserve*, for who can't fetch frames: an interrupt handler, or whoever holds a lock.
//!
//! # Invariants
//! * H1: but for `owner` and `class`, written before the slab's first object is handed out, a header is read and written by its
//!   owner only, with nobody else in the heap on that CPU (the callers' promise). The two are on a line of their own.
//! * H2: `used` counts the slab's objects that are handed out or in a mailbox. So a slab with `used` = 0 is referred to by
//!   nobody but its owner's list.
//! * H3: a slab is on its class's list exactly if it has a free object or one behind the mark, or else it is full, or with `used` = 0 on
//!   the list of empty ones.
//! * H4: an empty slab on its class's list is alone there.
//! * H5: what is pushed is published by a Release compare-and-swap on the head and taken by an Acquire swap: the freeing CPU's last
//!   accesses to the object happen before the owner's first. The pushes of others in between are read-modify-writes and continue the
//!   release sequence.
//!
//! The heap takes no memory by itself and calls nobody: what it lacks is a return value.
#![no_std]
#![allow(unsafe_code)] // it makes objects of raw memory; each block says why it is sound

mod class;

use core::{
    array,
    cell::Cell,
    mem::{align_of, size_of},
    ptr::{self, NonNull},
    slice,
};

use class::CLASSES;
pub use class::{Class, LARGEST};
use percpu::CpuId;
use sync::primitive::{AtomicUsize, Ordering};

/// In a mailbox: the object's slab is of the larger kind. Objects are multiples of 16.
const LARGE: usize = 1;
/// Objects of the mailbox that are freed before it is looked whether that was enough.
const AT_A_TIME: u32 = 32;

/// How many empty slabs of each kind are a CPU's reserve: 64 KiB of each.
const RESERVE: [u32; 2] = [16, 4];

/// A free object: the next one, 0 for none; in a mailbox with [`LARGE`].
struct Free {
    next: usize,
}

/// What every CPU may read of a slab.
#[repr(C, align(64))]
struct Tag {
    owner: CpuId,
    class: u8,
}

/// The head of a slab.
#[repr(C)]
struct Slab {
    tag: Tag,
    own: Own,
}

/// What only a slab's owner reads and writes.
#[repr(C, align(64))]
struct Own {
    /// The first free object, or null.
    free: Cell<*mut Free>,
    /// Bytes from the slab's start to the objects that were never used.
    mark: Cell<u32>,
    /// H2.
    used: Cell<u32>,
    /// Neighbours on the list of its class; null at the ends and while it isn't on it.
    before: Cell<*mut Slab>,
    after: Cell<*mut Slab>,
}
const _: () = assert!(size_of::<Slab>() == class::HEADER);

impl Slab {
    fn class(&self) -> Class {
        Class::at(self.tag.class)
    }
    /// Whether it has an object to hand out.
    fn has_free(&self) -> bool {
        !self.own.free.get().is_null()
            || self.own.mark.get() as usize + self.class().size() <= self.class().slab_bytes()
    }
    /// The slab that the object at `at` is in.
    fn of(at: NonNull<u8>, large: bool) -> *mut Slab {
        ptr::with_exposed_provenance_mut(at.addr().get() & !(Class::bytes_of_kind(large) - 1))
    }
    /// The whole of it, as it was supplied.
    fn run(&self) -> NonNull<u8> {
        exposed(ptr::from_ref(self).addr())
    }
}

/// The memory at `at`, which is not 0, by the provenance of the run that it is in: [`Heap::supply`] has exposed it.
fn exposed(at: usize) -> NonNull<u8> {
    NonNull::new(ptr::with_exposed_provenance_mut(at)).unwrap_or(NonNull::dangling())
}

/// What only a CPU itself reads and writes.
#[repr(align(128))]
struct Lists {
    /// Of each class the first slab with a free object, or null.
    first: [Cell<*mut Slab>; CLASSES],
    /// Of each kind the first of the empty slabs, or null, and how many there are.
    empty: [(Cell<*mut Slab>, Cell<u32>); 2],
    /// Objects that were taken out of the mailbox and are still to be freed; as there.
    backlog: Cell<usize>,
}

/// What other CPUs have freed of this one's: the last object, with [`LARGE`], or 0.
#[repr(align(128))]
struct Mailbox(AtomicUsize);

struct Cpu {
    lists: Lists,
    mailbox: Mailbox,
}

/// The heap of all CPUs.
///
/// Every method names the CPU that it runs on. What its callers promise, each time: they are on that CPU, stay there, and
/// nobody else, interrupt handlers included, enters the heap on it before the method returns.
pub struct Heap {
    cpus: &'static [Cpu],
}

// SAFETY: a `Lists` and its slabs' `Own` are touched only by their CPU, one caller at a time (H1, the callers' promise); a `Mailbox`
// is atomic.
unsafe impl Sync for Heap {}
// SAFETY: as above; it has nothing of a thread's.
unsafe impl Send for Heap {}

impl Heap {
    /// Bytes that [`Self::new`] wants for `cpus` CPUs, aligned to 128.
    pub const fn bytes(cpus: usize) -> usize {
        cpus * size_of::<Cpu>()
    }

    /// A heap without slabs for the CPUs below `cpus`.
    ///
    /// # Safety
    /// `memory` is [`Self::bytes`] long, aligned to 128, the heap's alone and for ever.
    pub unsafe fn new(cpus: usize, memory: NonNull<u8>) -> Self {
        let base = memory.cast::<Cpu>();
        debug_assert!(base.addr().get().is_multiple_of(align_of::<Cpu>()));
        let none = |_| Cell::new(ptr::null_mut());
        for i in 0..cpus {
            let lists = Lists {
                first: array::from_fn(none),
                empty: array::from_fn(|i| (none(i), Cell::new(0))),
                backlog: Cell::new(0),
            };
            // SAFETY: the caller's promise; each element is written once, before anybody has a reference.
            unsafe { base.add(i).write(Cpu { lists, mailbox: Mailbox(AtomicUsize::new(0)) }) };
        }
        // SAFETY: all `cpus` elements are initialised, and nobody else refers to the memory.
        Self { cpus: unsafe { slice::from_raw_parts(base.as_ptr(), cpus) } }
    }

    fn lists(&self, cpu: CpuId) -> &Lists {
        &self.cpus[cpu.index()].lists
    }

    /// An object of `class`, not initialised; `None` if this CPU's slabs have none: then [`Self::supply`] one.
    ///
    /// # Safety
    /// The promise of [`Heap`].
    #[inline]
    pub unsafe fn alloc(&self, cpu: CpuId, class: Class) -> Option<NonNull<u8>> {
        let lists = self.lists(cpu);
        let first = || {
            // SAFETY: a slab on this CPU's list is live and this CPU's (H1).
            unsafe { lists.first[class.index()].get().as_ref() }
        };
        if let Some(slab) = first() {
            return Some(take(lists, slab));
        }
        // Cold from here on. A few objects at a time come back: what is left is for the next who finds nothing.
        self.free_some(cpu);
        if first().is_none() {
            let empty = pop(lists, class.is_large())?;
            // SAFETY: it was supplied, and nobody but us refers to it (H2).
            unsafe { self.supply(cpu, class, empty) };
        }
        first().map(|slab| take(lists, slab))
    }

    /// Make a slab for `class` of the run at `base`.
    ///
    /// # Safety
    /// The promise of [`Heap`]. The run is `class.slab_bytes()` long and aligned, and the caller's to give; it is the heap's until the heap
    /// gives it back.
    pub unsafe fn supply(&self, cpu: CpuId, class: Class, base: NonNull<u8>) {
        link(self.lists(cpu), new_slab(cpu, class, base));
    }

    /// Free the object at `at`. True: there are empty slabs to give back ([`Self::pop_empty`]).
    ///
    /// # Safety
    /// The promise of [`Heap`]. The object came from [`Self::alloc`] for the same class, and nobody uses it any more.
    #[inline]
    pub unsafe fn free(&self, cpu: CpuId, at: NonNull<u8>, class: Class) -> bool {
        let slab = Slab::of(at, class.is_large());
        // SAFETY: the object is handed out, so its slab is live (H2), and these two don't change meanwhile (H1).
        let (owner, found) = unsafe { ((*slab).tag.owner, (*slab).tag.class) };
        debug_assert_eq!(found, class.number(), "freed with another size than allocated");
        let lists = self.lists(cpu);
        if owner == cpu {
            // SAFETY: this CPU's own (H1).
            put(lists, unsafe { &*slab }, at);
        } else {
            self.post(owner, at, class);
        }
        lists.empty.iter().zip(RESERVE).any(|((_, n), reserve)| n.get() > reserve)
    }

    /// Give the object at `at` to `owner`.
    fn post(&self, owner: CpuId, at: NonNull<u8>, class: Class) {
        let head = &self.cpus[owner.index()].mailbox.0;
        let entry = at.addr().get() | if class.is_large() { LARGE } else { 0 };
        // Relaxed: the exchange decides, and nothing is read through what this returns.
        let mut next = head.load(Ordering::Relaxed);
        loop {
            // SAFETY: the object is the caller's to give up; 16 bytes at least, and aligned to that.
            unsafe { at.cast::<Free>().write(Free { next }) };
            let release =
                if sync::mutant!("heap-relaxed-post") { Ordering::Relaxed } else { Ordering::Release };
            // Release: H5, with the swap in `free_some`.
            match head.compare_exchange_weak(next, entry, release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => next = now,
            }
        }
    }

    /// Free a few objects that others have given back; false if there are none.
    fn free_some(&self, cpu: CpuId) -> bool {
        let Cpu { lists, mailbox } = &self.cpus[cpu.index()];
        let mut entry = lists.backlog.get();
        // Relaxed: none now is a true answer; else the swap looks again.
        if entry == 0 && mailbox.0.load(Ordering::Relaxed) != 0 {
            // Acquire: H5, with the exchange in `post`.
            entry = mailbox.0.swap(0, Ordering::Acquire);
        }
        let found = entry != 0;
        for _ in 0..AT_A_TIME {
            if entry == 0 {
                break;
            }
            let at = exposed(entry & !LARGE);
            // SAFETY: H5: the object was given up, with a `Free` in it, and is ours alone now.
            let next = unsafe { at.cast::<Free>().read().next };
            // SAFETY: it was posted to the owner of its slab, which this CPU is, and which is live (H2).
            let slab = unsafe { &*Slab::of(at, entry & LARGE != 0) };
            put(lists, slab, at);
            entry = next;
        }
        lists.backlog.set(entry);
        found
    }

    /// Free a few of the objects that other CPUs have given back. False: there was none.
    ///
    /// # Safety
    /// The promise of [`Heap`].
    pub unsafe fn settle(&self, cpu: CpuId) -> bool {
        self.free_some(cpu)
    }

    /// Keep no empty slab for later: memory is short.
    ///
    /// # Safety
    /// The promise of [`Heap`].
    pub unsafe fn trim(&self, cpu: CpuId) {
        let lists = self.lists(cpu);
        for first in &lists.first {
            // SAFETY: a slab on this CPU's list is live and this CPU's (H1).
            if let Some(slab) = unsafe { first.get().as_ref() }
                && slab.own.used.get() == 0
            {
                retire(lists, slab);
            }
        }
    }

    /// An empty slab beyond the reserve, and its bytes: the caller's again.
    ///
    /// # Safety
    /// The promise of [`Heap`].
    pub unsafe fn pop_empty(&self, cpu: CpuId) -> Option<(NonNull<u8>, usize)> {
        let lists = self.lists(cpu);
        [false, true].into_iter().find_map(|large| {
            let kind = usize::from(large);
            let spare = lists.empty[kind].1.get() > RESERVE[kind];
            Some((spare.then(|| pop(lists, large)).flatten()?, Class::bytes_of_kind(large)))
        })
    }

    /// How many empty slabs the CPU has, of both kinds, apart from the last of a class.
    ///
    /// # Safety
    /// The promise of [`Heap`].
    pub unsafe fn empty(&self, cpu: CpuId) -> u32 {
        self.lists(cpu).empty.iter().map(|(_, n)| n.get()).sum()
    }

    /// How many bytes a slab has that the CPU's reserve lacks, if it lacks one.
    ///
    /// # Safety
    /// The promise of [`Heap`].
    #[inline]
    pub unsafe fn lacks(&self, cpu: CpuId) -> Option<usize> {
        let lists = self.lists(cpu);
        [false, true].into_iter().find_map(|large| {
            let kind = usize::from(large);
            (lists.empty[kind].1.get() < RESERVE[kind]).then(|| Class::bytes_of_kind(large))
        })
    }

    /// Put the run at `base` into the CPU's reserve.
    ///
    /// # Safety
    /// The promise of [`Heap`]. The run has as many bytes as [`Self::lacks`] said, is aligned to that, and the caller's to give; it is
    /// the heap's until the heap gives it back.
    pub unsafe fn stock(&self, cpu: CpuId, base: NonNull<u8>, bytes: usize) {
        let large = bytes == Class::LARGEST.slab_bytes();
        let class = if large { Class::LARGEST } else { Class::SMALLEST };
        let slab = new_slab(cpu, class, base);
        push(self.lists(cpu), slab);
    }
}

impl core::fmt::Debug for Heap {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Heap({} CPUs)", self.cpus.len())
    }
}

/// A slab of the run at `base`, which is the heap's and as `class` wants it.
fn new_slab<'a>(cpu: CpuId, class: Class, base: NonNull<u8>) -> &'a Slab {
    debug_assert!(base.addr().get().is_multiple_of(class.slab_bytes()));
    let own = Own {
        free: Cell::new(ptr::null_mut()),
        mark: Cell::new(class.first() as u32),
        used: Cell::new(0),
        before: Cell::new(ptr::null_mut()),
        after: Cell::new(ptr::null_mut()),
    };
    base.as_ptr().expose_provenance();
    let slab = base.cast::<Slab>();
    // SAFETY: the run is ours, long and aligned enough.
    unsafe {
        slab.write(Slab { tag: Tag { owner: cpu, class: class.number() }, own });
        slab.as_ref()
    }
}

/// An object of `slab`, which is on its list.
fn take(lists: &Lists, slab: &Slab) -> NonNull<u8> {
    let (own, class) = (&slab.own, slab.class());
    own.used.set(own.used.get() + 1);
    let at = match NonNull::new(own.free.get()) {
        Some(free) => {
            // SAFETY: a free object of this slab, with a `Free` in it.
            own.free.set(ptr::with_exposed_provenance_mut(unsafe { free.as_ref().next }));
            free.cast()
        }
        None => {
            // Within the slab, since it has a free object (H3).
            let mark = own.mark.get();
            own.mark.set(mark + class.size() as u32);
            exposed(slab.run().addr().get() + mark as usize)
        }
    };
    if !slab.has_free() {
        unlink(lists, slab);
    }
    at
}

/// Take the object at `at` back into `slab`, this CPU's.
fn put(lists: &Lists, slab: &Slab, at: NonNull<u8>) {
    let own = &slab.own;
    debug_assert!(own.used.get() > 0, "freed twice");
    let was_full = !slab.has_free();
    let at = exposed(at.addr().get()).cast::<Free>();
    // SAFETY: the object is ours: 16 bytes at least, and aligned to that.
    unsafe { at.write(Free { next: own.free.get().addr() }) };
    own.free.set(at.as_ptr());
    own.used.set(own.used.get() - 1);
    if was_full && !sync::mutant!("heap-full-forgotten") {
        link(lists, slab);
    }
    // The last one of its class stays: it would be wanted back at once.
    let most = if sync::mutant!("heap-early-give") { 1 } else { 0 };
    let alone = own.before.get().is_null() && own.after.get().is_null();
    if own.used.get() <= most && !alone {
        retire(lists, slab);
    }
}

/// Move `slab`, which is empty, to the list of those.
fn retire(lists: &Lists, slab: &Slab) {
    unlink(lists, slab);
    push(lists, slab);
}

fn push(lists: &Lists, slab: &Slab) {
    let (first, n) = &lists.empty[usize::from(slab.class().is_large())];
    slab.own.after.set(first.replace(ptr::from_ref(slab).cast_mut()));
    n.set(n.get() + 1);
}

/// An empty slab of the kind.
fn pop(lists: &Lists, large: bool) -> Option<NonNull<u8>> {
    let (first, n) = &lists.empty[usize::from(large)];
    // SAFETY: a slab on this list is live and this CPU's (H1).
    let slab = unsafe { first.get().as_ref() }?;
    first.set(slab.own.after.get());
    n.set(n.get() - 1);
    Some(slab.run())
}

/// Put `slab` in front of its list. An empty one that was alone there goes.
fn link(lists: &Lists, slab: &Slab) {
    let first = &lists.first[slab.class().index()];
    // SAFETY: on this CPU's list, so live and this CPU's (H1).
    if let Some(alone) = unsafe { first.get().as_ref() }
        && alone.own.used.get() == 0
    {
        retire(lists, alone);
    }
    let second = first.get();
    slab.own.before.set(ptr::null_mut());
    slab.own.after.set(second);
    // SAFETY: on this CPU's list, so live and this CPU's (H1).
    if let Some(second) = unsafe { second.as_ref() } {
        second.own.before.set(ptr::from_ref(slab).cast_mut());
    }
    first.set(ptr::from_ref(slab).cast_mut());
}

/// Take `slab` off its list.
fn unlink(lists: &Lists, slab: &Slab) {
    let (before, after) = (slab.own.before.take_ptr(), slab.own.after.take_ptr());
    // SAFETY: on this CPU's list, so live and this CPU's (H1).
    match unsafe { before.as_ref() } {
        Some(before) => before.own.after.set(after),
        None => lists.first[slab.class().index()].set(after),
    }
    // SAFETY: as above.
    if let Some(after) = unsafe { after.as_ref() } {
        after.own.before.set(before);
    }
}

trait TakePtr<T> {
    /// The pointer; null is left behind.
    fn take_ptr(&self) -> *mut T;
}

impl<T> TakePtr<T> for Cell<*mut T> {
    fn take_ptr(&self) -> *mut T {
        self.replace(ptr::null_mut())
    }
}
