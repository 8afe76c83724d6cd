//! Descriptors: what many slots have in common, kept once and named by a number of 18 bits.
//!
//! **Numbers.** Those below [`CONSTANTS`] name contents that are given when the table is made, are never counted and never
//! go away: to map and unmap memory of such a kind writes no word that others use. The others name objects that Refcache
//! counts, a reference for each slot with the number. Equal contents may be interned twice, by CPUs that don't know
//! of each other's, so whoever compares compares contents.
//!
//! **Life.** A number's word in the table is the weak word of its object. A CPU that wants contents which it has had
//! lately looks into a small cache of numbers, gets a reference by the word, and compares. When no slot names the object
//! any more, Refcache takes the link out of the word; after a grace period the object is freed, and then the number
//! goes to a list of free ones. So who has read a number out of a slot in a section either finds the object, or
//! finds that it is gone because the slot has changed, and reads the slot again; never another object by that number.

use alloc::{
    alloc::{alloc, dealloc},
    boxed::Box,
    vec::Vec,
};
use core::{
    alloc::Layout,
    cell::RefCell,
    fmt,
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher},
    mem::offset_of,
    ptr::NonNull,
};

use percpu::{PerCpu, Pinned};
use refcache::{Counted, Domain, RefHead, word};
use sync::{
    SpinLock,
    primitive::{AtomicU64, AtomicUsize, Ordering},
};

use crate::{Error, page::DESCRIPTORS};

/// Numbers that name constant contents; 0 is none's.
pub const CONSTANTS: u32 = 64;
/// Words of a chunk of the table.
const CHUNK: usize = if cfg!(loom) { 2 } else { 512 };
/// Numbers that a CPU remembers, by their contents.
const CACHED: usize = 64;

/// An object: contents and their count.
#[repr(C, align(16))]
struct Descriptor<D: 'static, const WAYS: usize> {
    head: RefHead,
    retired: rcu::Head,
    table: &'static Descriptors<D, WAYS>,
    id: u32,
    contents: D,
}

// SAFETY: the head is the first field, and made for this type in `make`.
unsafe impl<D: Eq + Hash + Send + Sync + 'static, const WAYS: usize> Counted for Descriptor<D, WAYS> {
    fn head(&self) -> &RefHead {
        &self.head
    }
    unsafe fn dispose(this: NonNull<Self>, pin: &Pinned<'_>) {
        // SAFETY: the object is there until `free`, and its word doesn't name it any more.
        unsafe {
            let head = this.byte_add(offset_of!(Self, retired)).cast::<rcu::Head>();
            this.as_ref().table.rcu.call(pin, rcu::Retired::new(head, free::<D, WAYS>));
        }
    }
}

/// # Safety
/// `head` is that of a `Descriptor<D, WAYS>` that nobody uses any more.
unsafe fn free<D: Eq + Hash + Send + Sync + 'static, const WAYS: usize>(
    head: NonNull<rcu::Head>,
    _: &Pinned<'_>,
) {
    // SAFETY: as `dispose` derived the pointer; allocated in `make` with this layout.
    unsafe {
        let this = head.byte_sub(offset_of!(Descriptor<D, WAYS>, retired)).cast::<Descriptor<D, WAYS>>();
        let (table, id) = (this.as_ref().table, this.as_ref().id);
        this.drop_in_place();
        dealloc(this.cast().as_ptr(), Layout::new::<Descriptor<D, WAYS>>());
        table.release(id);
    }
}

/// Contents by number, and numbers by contents.
pub struct Descriptors<D: 'static, const WAYS: usize> {
    refs: &'static Domain<WAYS>,
    rcu: &'static rcu::kernel::Domain,
    constants: &'static [D],
    /// Addresses of chunks of words; 0 where there is none yet. Chunks stay.
    chunks: Box<[AtomicUsize]>,
    numbers: SpinLock<Numbers>,
    lately: PerCpu<RefCell<[u32; CACHED]>>,
}

/// Which numbers are free.
struct Numbers {
    /// Those from here on have never been used.
    fresh: u32,
    /// The first of a list that goes on in the words of the numbers on it; 0 for none.
    free: u32,
}

impl<D: Eq + Hash + Send + Sync + 'static, const WAYS: usize> Descriptors<D, WAYS> {
    /// A table for CPUs below `cpus`, whose constant contents number i are `constants[i - 1]`, at most 63 of them.
    pub fn new(
        refs: &'static Domain<WAYS>,
        rcu: &'static rcu::kernel::Domain,
        cpus: usize,
        constants: &'static [D],
    ) -> Self {
        assert!(constants.len() < CONSTANTS as usize, "{} constant descriptors", constants.len());
        let chunks = (DESCRIPTORS as usize).div_ceil(CHUNK);
        Self {
            refs,
            rcu,
            constants,
            chunks: (0..if cfg!(loom) { 64 } else { chunks }).map(|_| AtomicUsize::new(0)).collect(),
            numbers: SpinLock::new(Numbers { fresh: CONSTANTS, free: 0 }),
            lately: PerCpu::new(cpus, |_| RefCell::new([0; CACHED])),
        }
    }
    /// A number for `contents`, and a reference to it, which the caller owns; constant ones need none. To be given up by
    /// [`Self::count`] of -1, once slots that name it are counted. Fails if there is no memory, or no number left.
    pub fn intern(&'static self, contents: D, pin: &Pinned<'_>) -> Result<u32, Error> {
        if let Some(at) = self.constants.iter().position(|constant| *constant == contents) {
            return Ok(at as u32 + 1);
        }
        let hash = BuildHasherDefault::<Fnv>::default().hash_one(&contents);
        let place = hash as usize % CACHED;
        let known = self.lately.get(pin).borrow()[place];
        if known != 0
            && let Some(word) = self.word(known)
            // SAFETY: the words of numbers are the weak words of descriptors, or no links.
            && let Some(got) = unsafe { self.refs.try_get::<Descriptor<D, WAYS>>(word, pin) }
        {
            // SAFETY: the reference was just got.
            let got = unsafe { got.as_ref() };
            if got.contents == contents {
                return Ok(known);
            }
            // SAFETY: as above, and it is given up.
            unsafe { self.refs.add(got, -1, pin) };
        }
        let id = self.make(contents)?;
        self.lately.get(pin).borrow_mut()[place] = id;
        Ok(id)
    }
    fn make(&'static self, contents: D) -> Result<u32, Error> {
        let layout = Layout::new::<Descriptor<D, WAYS>>();
        let id = self.take().ok_or(Error::OutOfMemory)?;
        // SAFETY: the layout has a size.
        let memory = NonNull::new(unsafe { alloc(layout) }).map(NonNull::cast::<Descriptor<D, WAYS>>);
        let (Some(memory), Some(word)) = (memory, self.word(id)) else {
            self.release(id);
            return Err(Error::OutOfMemory);
        };
        let head = RefHead::new::<Descriptor<D, WAYS>>(1);
        // SAFETY: the memory is ours and of this layout; the word lives as long as the table, for ever.
        unsafe {
            memory.write(Descriptor { head, retired: rcu::Head::new(), table: self, id, contents });
            self.refs.set_weak(memory.as_ref(), Some(word));
        }
        // Release: the object was made before; partners: the loads in `get`, `count` and `try_get`.
        word.store(word::link(memory.as_ptr()), Ordering::Release);
        Ok(id)
    }
    /// A number that is free, and has a word.
    fn take(&self) -> Option<u32> {
        let mut numbers = self.numbers.lock();
        if numbers.free != 0 {
            let id = numbers.free;
            // Relaxed: under the lock.
            numbers.free = (self.word(id)?.load(Ordering::Relaxed) >> 4) as u32;
            return Some(id);
        }
        let id = numbers.fresh;
        let chunk = self.chunks.get(id as usize / CHUNK)?;
        // Relaxed: chunks are made under the lock.
        if chunk.load(Ordering::Relaxed) == 0 {
            let mut words = Vec::new();
            words.try_reserve_exact(CHUNK).ok()?;
            words.extend((0..CHUNK).map(|_| AtomicU64::new(word::EMPTY)));
            let words: &'static mut [AtomicU64] = words.leak();
            // Release: the words were made before; partner: the load in `word`.
            chunk.store(words.as_mut_ptr().expose_provenance(), Ordering::Release);
        }
        numbers.fresh += 1;
        Some(id)
    }
    fn release(&self, id: u32) {
        let mut numbers = self.numbers.lock();
        if let Some(word) = self.word(id) {
            // Relaxed: under the lock; to others it is no link, whatever it says.
            word.store(u64::from(numbers.free) << 4, Ordering::Relaxed);
            numbers.free = id;
        }
    }
    fn word(&self, id: u32) -> Option<&'static AtomicU64> {
        // Acquire: partner in `take`.
        let words = self.chunks.get(id as usize / CHUNK)?.load(Ordering::Acquire);
        let words: *const AtomicU64 = core::ptr::with_exposed_provenance(words);
        // SAFETY: null, or a chunk of so many words, which stays.
        (!words.is_null()).then(|| unsafe { &*words.add(id as usize % CHUNK) })
    }
    /// `n` more slots name `id`, or fewer: what [`Space::count`](crate::Space::count) does.
    ///
    /// # Safety
    /// The caller has a reference, by a slot whose lock it holds, or by [`Self::intern`]; and `-n` of them if `n` is below 0,
    /// which it gives up.
    pub unsafe fn count(&self, id: u32, n: i32, pin: &Pinned<'_>) {
        if id < CONSTANTS {
            return;
        }
        // Acquire: partner in `make`.
        let seen = self.word(id).map_or(word::EMPTY, |word| word.load(Ordering::Acquire));
        debug_assert!(word::is_live(seen), "descriptor {id} is counted and is no more");
        if word::is_live(seen) {
            // SAFETY: the caller has a reference, so the object is there.
            unsafe { self.refs.add(&*word::object::<Descriptor<D, WAYS>>(seen), n, pin) };
        }
    }
    /// The contents that `id` names; `None` if nothing does any more: then the slot that it was read from has changed. Panics
    /// if the section is another domain's.
    pub fn get<'g>(&self, id: u32, section: &'g rcu::kernel::Guard<'_>) -> Option<&'g D> {
        assert!(section.is_of(self.rcu), "the section is another domain's");
        if id < CONSTANTS {
            return self.constants.get((id as usize).checked_sub(1)?);
        }
        // Acquire: partner in `make`.
        let seen = self.word(id)?.load(Ordering::Acquire);
        // SAFETY: a live link names an object, which isn't freed before a grace period is over after the link is gone.
        word::is_live(seen).then(|| unsafe { &(*word::object::<Descriptor<D, WAYS>>(seen)).contents })
    }
    /// How many numbers have been used, constants apart: at most so many descriptors were there at once.
    pub fn used(&self) -> u32 {
        self.numbers.lock().fresh - CONSTANTS
    }
}

impl<D, const WAYS: usize> fmt::Debug for Descriptors<D, WAYS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Descriptors({} constant)", self.constants.len())
    }
}

/// The hash function of Fowler, Noll and Vo, 1a, of 64 bits: of a few words, and no enemy chooses them.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3));
    }
}
