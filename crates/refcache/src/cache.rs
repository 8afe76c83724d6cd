//! One CPU's part: the changes that it holds back, and the objects that it will review.

use crate::{Obj, primitive::UnsafeCell, review::Review, stats::Counts};

/// Ends a chain of ways.
const END: u32 = u32::MAX;

/// A place for one object's change.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) object: Option<Obj>,
    pub(crate) delta: i32,
    /// The next occupied way.
    next: u32,
}

/// Ways are touched by their CPU alone, against a `Pinned`.
pub(crate) struct Ways<const WAYS: usize>(UnsafeCell<[Way; WAYS]>);

/// What a CPU has of a domain: about 16 bytes a way.
#[repr(align(128))]
pub(crate) struct Cache<const WAYS: usize> {
    pub(crate) mine: UnsafeCell<Mine>,
    pub(crate) counts: Counts,
    pub(crate) ways: Ways<WAYS>,
}

/// Where the CPU stands. Of the CPU alone, against a `Pinned`.
pub(crate) struct Mine {
    /// The epoch of the last flush that was begun: the present one, or the one before.
    pub(crate) local: u64,
    /// Ways occupied since that flush began.
    fresh: u32,
    /// Ways that are still to be flushed.
    old: u32,
    pub(crate) flushing: bool,
    /// Whether it is a member of the epochs. Who isn't holds nothing back.
    pub(crate) member: bool,
    /// Whether a call of `work` is on this CPU's stack.
    pub(crate) working: bool,
    /// Whether nothing was held back in the epoch that the last flush ended.
    pub(crate) quiet: bool,
    pub(crate) review: Review,
}

impl Mine {
    /// Not a member.
    pub(crate) const NEW: Self = Self {
        local: 0,
        fresh: END,
        old: END,
        flushing: false,
        member: false,
        working: false,
        quiet: false,
        review: Review::EMPTY,
    };
    /// Let what has been held back so far be flushed, in epoch `epoch`.
    pub(crate) fn begin_flush(&mut self, epoch: u64) {
        debug_assert!(!self.flushing && self.old == END);
        self.local = epoch;
        self.flushing = true;
        self.quiet = self.fresh == END;
        self.old = core::mem::replace(&mut self.fresh, END);
    }
    /// Whether nothing at all is held back.
    pub(crate) fn holds_nothing(&self) -> bool {
        self.old == END && self.fresh == END
    }
}

/// What became of a change.
pub(crate) enum Added {
    /// It is held back.
    Held,
    /// It is held back, in the place of this one, which must be brought to its object.
    InPlaceOf(Obj, i32),
    /// The place is free: it is to be occupied.
    Vacant,
}

impl<const WAYS: usize> Ways<WAYS> {
    /// Where an object's change goes: by the high bits of a product (Knuth, The Art of Computer Programming, volume 3, section
    /// 6.4), so that objects at regular distances spread.
    #[inline]
    fn index(o: Obj) -> usize {
        const { assert!(WAYS.is_power_of_two() && WAYS <= 1 << 31, "WAYS is a power of two") }
        let bits = WAYS.trailing_zeros();
        // Two shifts, as one by 64 is none.
        (o.address().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 1 >> (63 - bits)) as usize
    }
    /// Hold `n` back for `o` where a change of it is held back already; whether that was so, and there was room for more.
    #[inline]
    pub(crate) fn hold(&self, o: Obj, n: i32) -> bool {
        self.0.with_mut(|ways| {
            // SAFETY: this is the ways' CPU, and the reference ends here.
            let way = unsafe { &mut (&mut *ways)[Self::index(o)] };
            if way.object == Some(o)
                && let Some(sum) = way.delta.checked_add(n)
            {
                way.delta = sum;
                return true;
            }
            false
        })
    }
    /// Hold `n` back for `o`, if there is a place that is occupied.
    #[inline]
    pub(crate) fn add(&self, o: Obj, n: i32) -> Added {
        if self.hold(o, n) {
            return Added::Held;
        }
        self.0.with_mut(|ways| {
            // SAFETY: as in `hold`.
            let way = unsafe { &mut (&mut *ways)[Self::index(o)] };
            let old = core::mem::replace(&mut way.delta, n);
            match way.object {
                None => Added::Vacant,
                Some(other) => {
                    // It stays on the chain that it is on.
                    way.object = Some(o);
                    Added::InPlaceOf(other, old)
                }
            }
        })
    }
    /// Hold `n` back for `o` in its place, which is free.
    pub(crate) fn occupy(&self, o: Obj, n: i32, mine: &mut Mine) {
        let index = Self::index(o);
        let way = Way { object: Some(o), delta: n, next: mine.fresh };
        // SAFETY: as in `hold`.
        self.0.with_mut(|ways| unsafe { (&mut *ways)[index] = way });
        mine.fresh = index as u32;
    }
    /// Take one of the old ways' changes, or of the fresh ones' if `all` are wanted.
    pub(crate) fn pop(&self, mine: &mut Mine, all: bool) -> Option<(Obj, i32)> {
        let chain = if all && mine.old == END { &mut mine.fresh } else { &mut mine.old };
        if *chain == END {
            return None;
        }
        self.0.with_mut(|ways| {
            // SAFETY: as in `hold`.
            let way = unsafe { &mut (&mut *ways)[*chain as usize] };
            *chain = way.next;
            way.object.take().map(|o| (o, way.delta))
        })
    }
    /// What is held back for `o`.
    pub(crate) fn held(&self, o: Obj) -> i32 {
        self.0.with(|ways| {
            // SAFETY: as in `hold`.
            let way = unsafe { (&*ways)[Self::index(o)] };
            if way.object == Some(o) { way.delta } else { 0 }
        })
    }
}

impl<const WAYS: usize> Cache<WAYS> {
    /// Make one in zeroed memory, whose ways are then free.
    ///
    /// # Safety
    /// `at` is writable memory of the right size and alignment, all zeros, and of nobody else.
    pub(crate) unsafe fn place(at: *mut Self) {
        // SAFETY: by the caller's promise. Zeros are ways without an object, behind core's cells; loom's are made.
        unsafe {
            (&raw mut (*at).mine).write(UnsafeCell::new(Mine::NEW));
            (&raw mut (*at).counts).write(Counts::default());
            #[cfg(loom)]
            (&raw mut (*at).ways)
                .write(Ways(UnsafeCell::new([Way { object: None, delta: 0, next: 0 }; WAYS])));
        }
    }
}
