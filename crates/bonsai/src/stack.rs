//! A list of bounded length on the stack.

use core::mem::MaybeUninit;

pub(crate) struct Stack<T, const N: usize> {
    items: [MaybeUninit<T>; N],
    len: usize,
}

impl<T: Copy, const N: usize> Stack<T, N> {
    #[inline(always)]
    pub(crate) const fn new() -> Self {
        Self { items: [const { MaybeUninit::uninit() }; N], len: 0 }
    }
    /// Panics if there is no room: callers know a bound.
    pub(crate) fn push(&mut self, item: T) {
        self.items[self.len].write(item);
        self.len += 1;
    }
    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: below the length all items are written.
        unsafe { self.items[..self.len].assume_init_ref() }
    }
    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { self.items[..self.len].assume_init_mut() }
    }
}
