//! Translation look-aside buffers: [`Gather`], which owns frames until no CPU can translate to them,
//! [`Shootdown`], the seam to whatever makes CPUs forget, and [`Requests`], by which CPUs ask each other to.
//!
//! **Claim.** A frame or page-table page that was taken out of a page table is never reused while a CPU could still
//! translate to it.
//!
//! **Idea.** Taking an entry out moves the frame, as an owned value, into a gather. A gather gives frames back to the
//! allocator in one place only, and that place runs after the flush of every range the gather was told of. Nothing
//! else can free them: an [`OwnedFrame`] can't be copied, and the gather does not hand them out again.
//!
//! **Steps of every operation that narrows a translation** (unmap, protect, copy on write, fork, remap):
//! ```text
//!   1 change the entries          swap or fetch_and, so that the hardware's accessed and dirty bits are not lost
//!   2 fence(SeqCst)               in `flush`, by way of `AtomicCpuSet::snapshot`
//!   3 read the active set         in `flush`
//!   4 shoot down, wait            in `flush`; each CPU has dropped its entries and its paging-structure caches
//!   5 release                     the frames go back
//! ```
//! **Why reading the set after changing the entries is enough.** A CPU that starts to run the address space does
//! *join the set; fence(SeqCst); load CR3* and walks the tables only after that. The two fences are in one total
//! order. Is the remover's first, then the CPU's walks come after the change and see it, in the set or not. Is the
//! joiner's first, then step 3 sees the CPU in the set and step 4 reaches it. Without either fence both may miss each
//! other (Intel SDM vol. 3A, 8.2.3.4: a load may pass an earlier store). A CPU leaves the set only after it has
//! loaded another CR3, which drops all that it had cached (4.10.4.1).
//!
//! **What a gather never does**: write to a frame that it owns. Until the flush, another CPU may read and write it.
//! So the frames are listed outside of them: some inline, the rest in a vector, which grows by `try_reserve`. When it
//! can't, or at [`LIMIT`] frames, [`Gather::room`] says zero, and the caller flushes and releases what there is and
//! goes on: rounds, each of them safe by itself.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod requests;

use alloc::vec::Vec;
use core::mem::MaybeUninit;

use addr::PageRange;
use owned::{Memory, OwnedFrame};
use percpu::{AtomicCpuSet, CpuSet, Pinned, Unpinned};
use sync::mutant;

pub use self::requests::{Request, Requests, SINGLE_PAGES, WORDS};

/// Frames that a gather holds without a heap: enough for a fault, a small unmap, and for going on without memory.
pub const INLINE: usize = 16;
/// Most frames in one round, so that neither the list nor the time until frames are free again grows with the range.
pub const LIMIT: usize = 8192;

/// Makes CPUs forget translations. The kernel sends interrupts; the tests' machine empties simulated buffers.
pub trait Shootdown: Sync {
    /// On return no CPU of `cpus` translates a page of `range` by an entry that was changed before the call, nor does
    /// it walk by a cached pointer to a table that was unlinked before. Waits for every CPU that is not the caller's;
    /// `cpus` may include the caller, may be empty, and may name CPUs that have left the address space meanwhile.
    fn flush(&self, pin: &Pinned<'_>, cpus: &CpuSet, range: PageRange);
}

/// Owns what was taken out of a page table until the CPUs have been flushed.
///
/// ```
/// # use addr::{Page, PageRange};
/// # fn demo(frames: &owned::Memory, ctx: percpu::Unpinned<'_>, machine: &dyn tlb::Shootdown,
/// #     active: &percpu::AtomicCpuSet, taken: owned::OwnedFrame, range: PageRange) {
/// let mut gather = tlb::Gather::new(frames, ctx);
/// gather.add_range(range);
/// gather.take(taken);
/// gather.flush(&ctx.pin(), machine, active);
/// drop(gather); // frees the frame
/// # }
/// ```
pub struct Gather<'f> {
    frames: &'f Memory,
    ctx: Unpinned<'f>,
    /// Hull of the ranges told of since the last flush.
    stale: Option<PageRange>,
    /// Whether a frame was taken since the last flush.
    unflushed: bool,
    few: [MaybeUninit<OwnedFrame>; INLINE],
    few_len: usize,
    many: Vec<OwnedFrame>,
}

impl<'f> Gather<'f> {
    /// An empty gather, whose frames go back to `frames` when it is dropped, by the thread of `ctx`.
    pub fn new(frames: &'f Memory, ctx: Unpinned<'f>) -> Self {
        Self {
            frames,
            ctx,
            stale: None,
            unflushed: false,
            few: [const { MaybeUninit::uninit() }; INLINE],
            few_len: 0,
            many: Vec::new(),
        }
    }
    /// Entries of `range` have lost rights, or a table that served it was unlinked: flush it.
    ///
    /// Ranges are flushed as one, by one round of messages; the hull may hold pages that did not change.
    pub fn add_range(&mut self, range: PageRange) {
        if range.is_empty() {
            return;
        }
        self.stale = Some(match self.stale {
            None => range,
            Some(old) => hull(old, range),
        });
    }
    /// How many more frames fit before the next release; zero only if the caller has to flush and release first.
    pub fn room(&mut self) -> usize {
        let inline = INLINE - self.few_len;
        if inline > 0 || self.many.len() >= LIMIT {
            return inline;
        }
        if self.many.len() == self.many.capacity() && self.many.try_reserve(self.many.len().max(64)).is_err()
        {
            return 0;
        }
        self.many.capacity().min(LIMIT) - self.many.len()
    }
    /// Own `frame` until the flush. The caller has seen [`Self::room`] above zero.
    pub fn take(&mut self, frame: OwnedFrame) {
        debug_assert!(self.room() > 0, "a gather was given more than it has room for");
        self.unflushed = true;
        if let Some(slot) = self.few.get_mut(self.few_len) {
            slot.write(frame);
            self.few_len += 1;
        } else {
            self.many.push(frame);
        }
    }
    /// Whether there is nothing to flush: neither a range nor a frame since the last time.
    pub fn is_clean(&self) -> bool {
        self.stale.is_none() && !self.unflushed
    }
    /// Steps 2 to 4 of the module's table: make every CPU of `active` forget the ranges told of. Without a range
    /// nothing was reachable and nobody is disturbed.
    pub fn flush(&mut self, pin: &Pinned<'_>, machine: &dyn Shootdown, active: &AtomicCpuSet) {
        self.flush_of(pin, machine, active, None);
    }
    /// The same for changes that only CPUs of `among` can have cached: the others of `active` are left alone.
    pub fn flush_among(
        &mut self,
        pin: &Pinned<'_>,
        machine: &dyn Shootdown,
        active: &AtomicCpuSet,
        among: &CpuSet,
    ) {
        self.flush_of(pin, machine, active, Some(among));
    }
    fn flush_of(
        &mut self,
        pin: &Pinned<'_>,
        machine: &dyn Shootdown,
        active: &AtomicCpuSet,
        among: Option<&CpuSet>,
    ) {
        let stale = self.stale.take();
        self.unflushed = false;
        if mutant!("free-before-flush") {
            self.release(pin);
        }
        if let Some(range) = stale
            && !mutant!("drop-shootdown")
        {
            // The entries were changed before; the snapshot begins with fence(SeqCst); partner: the fence at the end
            // of joining the set (`join` below).
            let active = active.snapshot();
            machine.flush(pin, &among.map_or(active, |among| active.intersection(among)), range);
        }
    }
    /// Step 5: give back the frames. The caller has flushed.
    pub fn release(&mut self, pin: &Pinned<'_>) {
        debug_assert!(self.is_clean(), "frames would be freed before the flush");
        for slot in &mut self.few[..core::mem::take(&mut self.few_len)] {
            // SAFETY: `take` filled the first `few_len` slots, and `few_len` is zero from here on, so each is read
            // once.
            self.frames.free(pin, unsafe { slot.assume_init_read() });
        }
        for frame in self.many.drain(..) {
            self.frames.free(pin, frame);
        }
    }
}

/// The smallest range that holds both.
fn hull(a: PageRange, b: PageRange) -> PageRange {
    PageRange::new(a.start().min(b.start()), a.end().max(b.end())).unwrap_or(a)
}

/// Frees what was flushed. If something was not, that is a bug of the caller: a debug build panics, a release build
/// leaks the frames, which is safe.
impl Drop for Gather<'_> {
    fn drop(&mut self) {
        if self.is_clean() {
            if self.few_len > 0 || !self.many.is_empty() {
                self.release(&self.ctx.pin());
            }
            return;
        }
        for frame in self.many.drain(..) {
            let _leaked = frame.into_raw();
        }
        debug_assert!(false, "a gather was dropped without a flush");
    }
}

/// This CPU joins the set of those that run an address space. After that it loads CR3, not before: see the module.
pub fn join(active: &AtomicCpuSet, pin: &Pinned<'_>) {
    // Ends with fence(SeqCst): joined before, walks after; partner: the snapshot in `Gather::flush`.
    active.insert(pin.cpu());
}

/// This CPU leaves the set. It has loaded another CR3 before, so that it has nothing cached of this address space.
pub fn leave(active: &AtomicCpuSet, pin: &Pinned<'_>) {
    active.remove(pin.cpu());
}
