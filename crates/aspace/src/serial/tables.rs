//! What was taken out of the page table: frames until the flush, tables until the flush and the end of all sections in
//! which they may be walked.

use alloc::boxed::Box;
use core::{mem, ptr::NonNull};

use addr::PageRange;
use owned::{Memory, OwnedFrame};
use pagetable::{Full, Unlinked, Which};
use percpu::{CpuSet, Pinned, Unpinned};
use rcu::{Head, Retired};
use sync::{mutant, pause};
use tlb::{Gather, Shootdown};

use super::{Maps, Protocol, Serial};
use crate::{
    Realm, Variant,
    locked::Flush,
    mappings::Mappings,
    radix::{totals::Difference, try_box},
    rules::beside,
};

/// What an operation has taken out.
pub(super) struct Taken<'f> {
    pub(super) gather: Gather<'f>,
    pub(super) tables: Unlinked,
}

/// A shootdown of everything, whatever is asked for.
struct Whole<'s>(&'s dyn Shootdown);

impl Shootdown for Whole<'_> {
    fn flush(&self, pin: &Pinned<'_>, cpus: &CpuSet, _: PageRange) {
        self.0.flush(pin, cpus, Mappings::everywhere());
    }
}

/// Tables that wait for the end of sections.
#[repr(C)]
pub(super) struct Waiting {
    head: Head,
    tables: Unlinked,
    root: Option<OwnedFrame>,
    frames: &'static Memory,
}

impl Waiting {
    pub(super) fn new(frames: &'static Memory) -> Option<Box<Self>> {
        try_box(Self { head: Head::new(), tables: Unlinked::default(), root: None, frames })
    }
}

/// # Safety
/// `head` is that of a [`Waiting`], whose tables are in use nowhere.
unsafe fn free(head: NonNull<Head>, pin: &Pinned<'_>) {
    // SAFETY: the caller's promise; it was made by `Box`, and the head is the first field of a `repr(C)` structure.
    let mut waiting = unsafe { Box::from_raw(head.cast::<Waiting>().as_ptr()) };
    let frames = waiting.frames;
    // SAFETY: the caller's promise.
    unsafe { waiting.tables.free(frames, pin) };
    waiting.root.take().into_iter().for_each(|root| frames.free(pin, root));
}

impl Serial {
    pub(super) fn taken<'a>(&self, ctx: &Unpinned<'a>) -> Taken<'a> {
        Taken { gather: Gather::new(self.machine.frames, *ctx), tables: Unlinked::default() }
    }
    /// Nobody translates by what the gather was told of when this returns.
    pub(super) fn flush(&self, gather: &mut Gather<'_>, pin: &Pinned<'_>) {
        match self.protocol {
            Protocol::Locked { variant: Variant { flush: Flush::Space, .. }, .. } => {
                gather.flush(pin, &Whole(self.machine.shootdown), &self.active.0);
            }
            _ => gather.flush(pin, self.machine.shootdown, &self.active.0),
        }
    }
    /// Flush, and hand over the tables. Frames go when `taken` is dropped.
    pub(super) fn close(&self, taken: &mut Taken<'_>, ctx: &Unpinned<'_>) {
        let pin = ctx.pin();
        if mutant!("bonsai-table-early") {
            // SAFETY: none; that this is wrong is what is to be found.
            unsafe { taken.tables.free(self.machine.frames, &pin) };
        }
        self.flush(&mut taken.gather, &pin);
        if mutant!("bonsai-no-grace") {
            // SAFETY: none, as above.
            unsafe { taken.tables.free(self.machine.frames, &pin) };
        }
        if taken.tables.is_empty() {
            return;
        }
        let mut tables = mem::take(&mut taken.tables);
        let Some(realm) = self.protocol.realm() else {
            // SAFETY: they were flushed, and who walks has `maps`, which the caller has for writing.
            unsafe { tables.free(self.machine.frames, &pin) };
            return;
        };
        match Waiting::new(self.machine.frames) {
            Some(mut waiting) => {
                waiting.tables = tables;
                self.retire(realm, waiting, &pin);
            }
            None => {
                drop(pin);
                realm.sections().synchronize(ctx);
                // SAFETY: they were flushed, and then all sections have ended.
                unsafe { tables.free(self.machine.frames, &ctx.pin()) };
            }
        }
    }
    fn retire(&self, realm: &'static Realm, waiting: Box<Waiting>, pin: &Pinned<'_>) {
        let bytes = (waiting.tables.len() + usize::from(waiting.root.is_some())) * addr::PAGE_BYTES;
        let head = NonNull::from(Box::leak(waiting)).cast::<Head>();
        realm.retires(pin);
        // SAFETY: what is named there was unlinked by this thread, or by who has cleared the space, and flushed; `free` is for
        // this type, and the pointer is to all of it.
        let retired = unsafe { Retired::new(head, free) };
        realm.sections().call(pin, retired.of_bytes(bytes));
    }
    /// The same when there is no more room: what was taken goes too.
    fn round(&self, taken: &mut Taken<'_>, ctx: &Unpinned<'_>) {
        self.close(taken, ctx);
        taken.gather.release(&ctx.pin());
    }
    /// Free the root if the space is cleared and no CPU has it in CR3, after all sections.
    pub(super) fn free_root(&self, pin: &Pinned<'_>) {
        let Some(root) = self.retired.take_unused(&self.active.0) else { return };
        let grave = self.grave.lock().take();
        match self.protocol.realm().zip(grave) {
            Some((realm, mut waiting)) => {
                waiting.root = Some(root);
                self.retire(realm, waiting, pin);
            }
            // Nobody walks it without the space.
            None => self.machine.frames.free(pin, root),
        }
    }
    /// Unmap `range`: the mappings, the entries and the tables that serve nothing else. To be [closed](Self::close).
    pub(super) fn evict(&self, maps: &mut Maps, range: PageRange, taken: &mut Taken<'_>, ctx: &Unpinned<'_>) {
        self.take_all(maps, range, taken, ctx);
        self.detach(maps, range, taken, ctx);
    }
    /// Remove the mappings of `range`, and take their entries.
    pub(super) fn take_all(
        &self,
        maps: &mut Maps,
        range: PageRange,
        taken: &mut Taken<'_>,
        ctx: &Unpinned<'_>,
    ) {
        // An object hears that its pages are mapped no more when nobody translates to them any more.
        let mut from = range.start();
        while let Some((part, mapping)) =
            PageRange::new(from, range.end()).and_then(|rest| maps.mappings.announced(rest))
        {
            from = part.end();
            if mutant!("object-ends-early") {
                maps.mappings.retract(&mapping, part.len(), &ctx.pin());
                drop(mapping);
                self.take_part(maps, part, taken, ctx);
                continue;
            }
            if mutant!("retract-before-flush") {
                maps.mappings.retract(&mapping, part.len(), &ctx.pin());
            }
            self.take_part(maps, part, taken, ctx);
            // The mapping that was found is kept beyond the flush, as it keeps the object.
            self.flush(&mut taken.gather, &ctx.pin());
            if !mutant!("retract-before-flush") {
                maps.mappings.retract(&mapping, part.len(), &ctx.pin());
            }
        }
        self.take_part(maps, range, taken, ctx);
    }
    fn take_part(&self, maps: &mut Maps, range: PageRange, taken: &mut Taken<'_>, ctx: &Unpinned<'_>) {
        // Dead before an entry is touched (B2).
        maps.mappings.remove(range, ctx);
        self.take(range, Which::All, taken, ctx);
    }
    /// Unlink the tables that serve pages of `range` and none that is mapped.
    pub(super) fn detach(&self, maps: &Maps, range: PageRange, taken: &mut Taken<'_>, ctx: &Unpinned<'_>) {
        self.detach_beside(maps, range, None, taken, ctx);
    }
    /// The same, but for the tables that serve pages of `stays`, which is elsewhere.
    pub(super) fn detach_beside(
        &self,
        maps: &Maps,
        range: PageRange,
        stays: Option<PageRange>,
        taken: &mut Taken<'_>,
        ctx: &Unpinned<'_>,
    ) {
        let gap = beside(maps.mappings.gap_around(range), range, stays);
        while self.table.detach(range, gap, &mut taken.tables, &mut taken.gather).is_err() {
            self.round(taken, ctx);
        }
    }
    /// Take the entries `which` of `range`.
    pub(super) fn take(&self, range: PageRange, which: Which, taken: &mut Taken<'_>, ctx: &Unpinned<'_>) {
        pause!("bonsai-take");
        let mut rest = Some(range);
        let mut frames = 0;
        while let Some(r) = rest {
            rest = match self.table.take(r, which, &mut taken.gather, &mut frames) {
                Ok(()) => None,
                Err(Full(at)) => {
                    self.round(taken, ctx);
                    PageRange::new(at, range.end())
                }
            };
        }
        self.resident(-(frames as i64), ctx);
    }
    /// So many pages more have a frame.
    pub(super) fn resident(&self, pages: i64, ctx: &Unpinned<'_>) {
        if pages != 0 {
            let mut change = Difference::default();
            change.resident(pages);
            self.counts.add(&change, &ctx.pin());
        }
    }
}
