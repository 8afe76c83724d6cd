//! The heap's bytes, reached by offsets.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Memory that offsets point into. Copies are the same memory.
///
/// Every access is atomic and relaxed, whole words where they are aligned: threads that race on bytes read any mixture
/// of what stood there. Who wants an order between accesses makes it otherwise, by a lock.
///
/// An access that is not all inside of the memory is a bug of the caller's, or a damaged heap that was not checked: it
/// panics.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    base: *mut u8,
    len: u64,
}

// SAFETY: the bytes are shared memory, and every access is atomic.
unsafe impl Send for Memory {}
// SAFETY: see above.
unsafe impl Sync for Memory {}

/// Bytes of a word.
const WORD: usize = 8;

impl Memory {
    /// The `len` bytes from `base`.
    ///
    /// # Safety
    /// They are mapped, readable and writable (at worst after a fault that a handler resolves) as long as a copy of
    /// this is used, and meanwhile no Rust reference to them is anywhere but to atomics. `base` is a multiple of 8.
    pub unsafe fn new(base: *mut u8, len: usize) -> Self {
        assert!(base.cast::<u64>().is_aligned(), "the memory must begin at a multiple of 8");
        Self { base, len: len as u64 }
    }

    /// Bytes of it.
    pub const fn len(&self) -> u64 {
        self.len
    }
    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn bytes(&self, offset: u64, len: usize) -> &[AtomicU8] {
        let fits = offset.checked_add(len as u64).is_some_and(|end| end <= self.len);
        assert!(fits, "{len} bytes at offset {offset} are not in the heap's {} bytes", self.len);
        // SAFETY: mapped, as whoever made this has promised, and checked to be inside; atomics may be shared.
        unsafe { std::slice::from_raw_parts(self.base.add(offset as usize).cast(), len) }
    }

    fn word(&self, offset: u64) -> &AtomicU64 {
        assert!(offset.is_multiple_of(WORD as u64), "a word at the odd offset {offset}");
        // SAFETY: inside, aligned as the base and the offset are, and a type that takes any bits.
        unsafe { &*self.bytes(offset, WORD).as_ptr().cast() }
    }

    /// The word at an offset that is a multiple of 8.
    #[inline]
    pub fn load(&self, offset: u64) -> u64 {
        // Relaxed: see the type; so are all below.
        self.word(offset).load(Ordering::Relaxed)
    }

    /// Set the word at an offset that is a multiple of 8.
    #[inline]
    pub fn store(&self, offset: u64, value: u64) {
        self.word(offset).store(value, Ordering::Relaxed);
    }

    fn parts(bytes: &[AtomicU8]) -> (&[AtomicU8], &[AtomicU64], &[AtomicU8]) {
        // SAFETY: an atomic word takes any bits, as its bytes do.
        unsafe { bytes.align_to() }
    }

    /// Copy the bytes from `offset` to `to`.
    pub fn read(&self, offset: u64, to: &mut [u8]) {
        let (head, words, tail) = Self::parts(self.bytes(offset, to.len()));
        let (first, rest) = to.split_at_mut(head.len());
        let (middle, last) = rest.split_at_mut(words.len() * WORD);
        let each = |to: &mut [u8], from: &[AtomicU8]| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from.load(Ordering::Relaxed));
        };
        each(first, head);
        for (to, from) in middle.chunks_exact_mut(WORD).zip(words) {
            to.copy_from_slice(&from.load(Ordering::Relaxed).to_ne_bytes());
        }
        each(last, tail);
    }

    /// Copy `from` to the bytes from `offset`.
    pub fn write(&self, offset: u64, from: &[u8]) {
        let (head, words, tail) = Self::parts(self.bytes(offset, from.len()));
        let (first, rest) = from.split_at(head.len());
        let (middle, last) = rest.split_at(words.len() * WORD);
        let each = |to: &[AtomicU8], from: &[u8]| {
            to.iter().zip(from).for_each(|(to, &from)| to.store(from, Ordering::Relaxed));
        };
        each(head, first);
        for (to, from) in words.iter().zip(middle.chunks_exact(WORD)) {
            let mut word = [0; WORD];
            word.copy_from_slice(from);
            to.store(u64::from_ne_bytes(word), Ordering::Relaxed);
        }
        each(tail, last);
    }

    /// Whether the bytes from `offset` are `other`.
    pub fn is(&self, offset: u64, other: &[u8]) -> bool {
        let (head, words, tail) = Self::parts(self.bytes(offset, other.len()));
        let (first, rest) = other.split_at(head.len());
        let (middle, last) = rest.split_at(words.len() * WORD);
        let each = |own: &[AtomicU8], other: &[u8]| {
            own.iter().zip(other).all(|(own, &other)| own.load(Ordering::Relaxed) == other)
        };
        let words = words.iter().zip(middle.chunks_exact(WORD));
        each(head, first)
            && words.into_iter().all(|(own, other)| own.load(Ordering::Relaxed).to_ne_bytes() == other)
            && each(tail, last)
    }

    /// Set `len` bytes from `offset` to 0.
    pub fn clear(&self, offset: u64, len: usize) {
        let (head, words, tail) = Self::parts(self.bytes(offset, len));
        head.iter().chain(tail).for_each(|byte| byte.store(0, Ordering::Relaxed));
        words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }
}
