//! Frames that are free but for translations that other CPUs may still use.
//!
//! A ring of each CPU has the frames whose shootdown was begun and not waited for, with its generation. They stay owned in
//! the map, so nobody can be given them, and nothing is written to them: a store through a stale translation may still
//! come. [`Frames::release`](crate::Frames::release) frees what a finished generation covers. Generations are numbers of
//! the caller's that only grow; they may finish in any order.

use crate::primitive::{AtomicU32, AtomicU64};
use percpu::Pinned;

use crate::{
    Frames, FreeError, HUGE_ORDER, Run,
    cpu::OWN,
    map::{BLOCK_ROWS, ROW_FRAMES, Row, run_bits},
};

/// The generation of a shootdown. Only grows, and is never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Gen(pub u64);

/// The ring is full; the caller completes its shootdown and frees the run as usual.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// Entries of a ring.
pub const RING: usize = if cfg!(loom) { 2 } else { 64 };

#[derive(Debug)]
struct Entry {
    generation: AtomicU64,
    /// The row, and in the upper half the order if it is a run of whole rows.
    what: AtomicU64,
    /// The frames of the row, or all ones of a run of whole rows; 0 if the entry is free.
    mask: AtomicU64,
}

/// One CPU's frames in quarantine, in no order.
#[derive(Debug)]
pub(crate) struct Ring {
    entries: [Entry; RING],
    /// The entry that was filled last.
    newest: AtomicU32,
    /// Frames in all entries.
    frames: AtomicU64,
}

impl Ring {
    pub(crate) fn new() -> Self {
        let entry =
            |_| Entry { generation: AtomicU64::new(0), what: AtomicU64::new(0), mask: AtomicU64::new(0) };
        Self { entries: core::array::from_fn(entry), newest: AtomicU32::new(0), frames: AtomicU64::new(0) }
    }
    /// Frames in quarantine; from any CPU.
    pub(crate) fn frames(&self) -> u64 {
        self.frames.load(OWN)
    }
    /// With nobody else about: there is nothing in it.
    pub(crate) fn forget(&self) {
        self.entries.iter().for_each(|entry| entry.mask.store(0, OWN));
        self.frames.store(0, OWN);
    }
    /// Whether one of `mask` of `row` is in quarantine.
    fn has(&self, row: Row, mask: u64) -> bool {
        self.entries.iter().any(|e| {
            let (what, m) = (e.what.load(OWN), e.mask.load(OWN));
            let rows = ((1u64 << (what >> 32)) / u64::from(ROW_FRAMES)).max(1);
            m & mask != 0 && (what as u32 as u64..what as u32 as u64 + rows).contains(&u64::from(row.0))
        })
    }
    fn add(&self, row: Row, order: u32, mask: u64, generation: Gen) -> Result<(), Full> {
        let what = u64::from(row.0) | if order > 5 { u64::from(order) << 32 } else { 0 };
        let newest = &self.entries[self.newest.load(OWN) as usize];
        let n = if order > 5 { 1 << order } else { u64::from(mask.count_ones()) };
        if order <= 5
            && newest.mask.load(OWN) != 0
            && (newest.what.load(OWN), newest.generation.load(OWN)) == (what, generation.0)
        {
            newest.mask.store(newest.mask.load(OWN) | mask, OWN);
        } else {
            let free = self.entries.iter().position(|e| e.mask.load(OWN) == 0).ok_or(Full)?;
            let entry = &self.entries[free];
            entry.generation.store(generation.0, OWN);
            entry.what.store(what, OWN);
            entry.mask.store(mask, OWN);
            self.newest.store(free as u32, OWN);
        }
        self.frames.store(self.frames() + n, OWN);
        Ok(())
    }
}

impl Frames<'_> {
    /// Give a run back as soon as generation `generation` is done: until [`Self::release`] says so on this CPU, nobody gets its
    /// frames.
    ///
    /// Errors: the run, if the ring is full. A run that is in quarantine already, or not of this allocator, comes back
    /// too.
    pub fn free_pending(&self, pin: &Pinned<'_>, run: Run, generation: Gen) -> Result<(), (Run, Full)> {
        let Some((row, bit)) = self.map.locate(run.first()) else { return Err((run, Full)) };
        let order = run.order();
        let mask = if order <= 5 { run_bits(order) << bit } else { !0 };
        let ring = &self.me(pin).cold.ring;
        if cfg!(debug_assertions) && ring.has(row, mask) {
            return Err((run, Full));
        }
        match ring.add(row, order, mask, generation) {
            Ok(()) => {
                run.into_raw();
                Ok(())
            }
            Err(full) => Err((run, full)),
        }
    }

    /// Free what this CPU has in quarantine of generations up to `done`, all of which are done. Gives the number of frames.
    pub fn release(&self, pin: &Pinned<'_>, done: Gen) -> usize {
        let ring = &self.me(pin).cold.ring;
        if ring.frames() == 0 {
            return 0;
        }
        let mut freed = 0;
        for entry in &ring.entries {
            let mask = entry.mask.load(OWN);
            let early = u64::from(sync::mutant!("frames-release-early"));
            if mask == 0 || entry.generation.load(OWN) > done.0.saturating_add(early) {
                continue;
            }
            let what = entry.what.load(OWN);
            entry.mask.store(0, OWN);
            let (row, order) = (Row(what as u32), (what >> 32) as u32);
            freed += if order > 5 { 1 << order } else { mask.count_ones() as usize };
            if let Err(error) = self.free_entry(pin, row, order, mask) {
                debug_assert!(false, "{error}: in quarantine");
            }
        }
        ring.frames.store(ring.frames() - freed as u64, OWN);
        freed
    }

    fn free_entry(&self, pin: &Pinned<'_>, row: Row, order: u32, mask: u64) -> Result<(), FreeError> {
        if order > 5 {
            return self.free_raw(pin, self.map.frame(row, 0), order);
        }
        let (mut rest, mut result) = (mask, Ok(()));
        while rest != 0 {
            let bit = rest.trailing_zeros();
            rest &= rest - 1;
            // What is wrong with one frame is not with the others.
            result = result.and(self.free_raw(pin, self.map.frame(row, bit), 0));
        }
        result
    }
}

const _: () = assert!(BLOCK_ROWS == 1 << (HUGE_ORDER - 6));
