//! Many runs at a time.
//!
//! Single frames are taken by whole leases and given back by whole rows, so each row costs one pair of read-modify-writes
//! whatever order the frames are in.

use core::mem::MaybeUninit;

use percpu::Pinned;

use crate::{Frames, FreeError, Req, Run, map::Row};

/// Runs in storage of the caller's. What is left in it when it is dropped is leaked, which debug builds refuse.
#[derive(Debug)]
pub struct RunVec<'s> {
    slots: &'s mut [MaybeUninit<Run>],
    len: usize,
}

impl<'s> RunVec<'s> {
    /// None yet, with room for as many as there are slots.
    pub fn new(slots: &'s mut [MaybeUninit<Run>]) -> Self {
        Self { slots, len: 0 }
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Add a run. Errors: the run, if there is no room.
    pub fn push(&mut self, run: Run) -> Result<(), Run> {
        match self.slots.get_mut(self.len) {
            Some(slot) => {
                slot.write(run);
                self.len += 1;
                Ok(())
            }
            None => Err(run),
        }
    }
    /// Take out the run that was added last.
    pub fn pop(&mut self) -> Option<Run> {
        self.len = self.len.checked_sub(1)?;
        // SAFETY: the slots below the old length were written, and this one is above the new length.
        Some(unsafe { self.slots[self.len].assume_init_read() })
    }
    fn sort(&mut self) {
        // SAFETY: the slots below the length were written.
        self.slots[..self.len].sort_unstable_by_key(|slot| unsafe { slot.assume_init_ref() }.first());
    }
}

impl Drop for RunVec<'_> {
    fn drop(&mut self) {
        while let Some(run) = self.pop() {
            drop(run);
        }
    }
}

/// Longer ones are sorted before they are freed.
const SHORT: usize = 8;

impl Frames<'_> {
    /// Add runs as `req` asks until there is no room or none are left; how many were added.
    pub fn alloc_bulk(&self, pin: &Pinned<'_>, req: Req, out: &mut RunVec<'_>) -> usize {
        let before = out.len();
        while out.len() < out.slots.len() {
            let Ok(run) = self.alloc(pin, req) else { break };
            if let Err(run) = out.push(run) {
                // There was room; but nothing is lost if not.
                let _ = self.free(pin, run);
                break;
            }
        }
        out.len() - before
    }

    /// Free all of `runs`. May reorder them.
    ///
    /// Errors: the first of what [`Self::free`] finds; the others are freed all the same.
    pub fn free_bulk(&self, pin: &Pinned<'_>, runs: &mut RunVec<'_>) -> Result<(), FreeError> {
        let me = self.me(pin);
        if runs.len() > SHORT {
            runs.sort();
        }
        let mut result = Ok(());
        let mut gathered = (Row::NONE, 0);
        while let Some(run) = runs.pop() {
            let (first, order) = run.into_raw();
            let each = match self.map.locate(first) {
                // A row of single frames that this CPU keeps nothing of goes home as one.
                Some((row, bit)) if order <= 5 && me.hot.mode() == 0 && me.kept_of(row).is_none() => {
                    let mask = crate::map::run_bits(order) << bit;
                    let mut each = Ok(());
                    if gathered.0 != row {
                        each = self.flush_gathered(me, gathered);
                        gathered = (row, 0);
                    }
                    if gathered.1 & mask != 0 {
                        each = Err(FreeError::DoubleFree(first));
                    }
                    gathered.1 |= mask;
                    each
                }
                _ => self.free_raw(pin, first, order),
            };
            result = result.and(each);
        }
        result.and(self.flush_gathered(me, gathered))
    }

    fn flush_gathered(&self, me: crate::cpu::Me<'_>, gathered: (Row, u64)) -> Result<(), FreeError> {
        if gathered.1 == 0 { Ok(()) } else { self.flush(Some(me), gathered.0, gathered.1) }
    }
}
