//! Contents of pages that go to other pages, with their frames: what UFFDIO_MOVE asks for.
//!
//! **Claim.** A page that has got contents has all of them: no store by an address that they had before gets into the frame
//! once it can be used by the new one, and no load by the old one gets anything out. Nothing is copied.
//!
//! **Idea.** Source and target are locked, so that nobody enters either in a page table. The sources' entries are cleared, and
//! flushed in one round, while the frames are still the sources'; then the words are stored, both without an owner, and only
//! then is anything unlocked. So whoever finds the frame at the target, by a fault that has the target's slot locked after
//! this, finds it when no CPU translates the source to it (I1 of [`super`]); and whoever waits for the source finds it without
//! contents. It is what `remap` does, page by page, and between mappings that stay.
//!
//! **Why only frames that nobody else has.** The share that the slot has goes to another slot as it is, and so would be one of
//! several. As on Linux the caller is told instead. That it is the only share is known as long as the slot is locked, since
//! those of anonymous frames are made by fork alone, which has it locked too. A leaf that children have is made this tree's own
//! first, which gives each of its frames a share more: so those are found to be shared.
//!
//! **Locks.** Up to [`AT_ONCE`] pages of the lower range, then as many of the upper one: ascending, as all ranges are. Ranges that
//! overlap are done in pieces that don't, the lowest first, which is what comes of page by page.

use super::{
    watch::{emptied, is_protected},
    *,
};
use crate::{Backing, Level, Untransferred};

/// So many pages at a time: the bits of [`Plan::moves`].
const AT_ONCE: u64 = u64::BITS as u64;

/// Who says of a source's and a target's mapping whether contents may go from one to the other.
type May<'a> = dyn Fn(&Mapping, &Mapping) -> bool + 'a;

/// The words of pages in a row.
type Slots = [Slot; AT_ONCE as usize];

/// What is to be done with the pages of two ranges of one length.
#[derive(Default)]
struct Plan {
    /// How many are done with, from the first on.
    pages: u64,
    /// Those whose frames move.
    moves: u64,
}

impl Plan {
    /// Whether the frame of page `key` moves, where the range begins at `start`.
    fn has(&self, key: u64, start: u64) -> bool {
        key.checked_sub(start).is_some_and(|i| i < AT_ONCE && self.moves >> i & 1 != 0)
    }
    /// Whether one of the span's pages is such.
    fn touches(&self, span: &::radix::Span, start: u64) -> bool {
        (span.first.max(start)..(span.first + span.keys).min(start + AT_ONCE)).any(|key| self.has(key, start))
    }
}

impl Radix {
    pub(super) fn transfer_pages(
        &self,
        from: PageRange,
        to: Page,
        may: &May<'_>,
        holes: bool,
        ctx: &Unpinned<'_>,
    ) -> Result<u64, Untransferred> {
        let (source, target) = (from.start().number(), to.number());
        let apart = source.abs_diff(target);
        let room = KEYS.saturating_sub(source.max(target));
        let n = from.len().min(AT_ONCE).min(room).min(if apart == 0 { 1 } else { apart });
        if n == 0 {
            return Err(Untransferred::Unmapped);
        }
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        if apart == 0 {
            // Whatever there is, nothing changes.
            let slot = self.at(source, &section).0;
            return self.judge(slot, slot, may, holes, &section).map(|_| 1);
        }
        let (source, target) = (pages(source, source + n), pages(target, target + n));
        let mut change = Change::new(self, &section, ctx);
        let out_of_memory = |_| Untransferred::NoMemory;
        let (lower, upper) =
            if source.start() < target.start() { (source, target) } else { (target, source) };
        let mut below = self.lock_pages(lower, Mode::Edit, &section).map_err(out_of_memory)?;
        let above = self.lock_more(upper, core::slice::from_ref(&below), &section);
        let mut above = above.map_err(out_of_memory)?;
        let (out, into) = match source == lower {
            true => (&mut below, &mut above),
            false => (&mut above, &mut below),
        };
        let done = self.transfer_locked(out, into, may, holes, &mut change);
        change.settle();
        drop(below);
        drop(above);
        done
    }
    fn transfer_locked(
        &self,
        out: &mut Guard<'_>,
        into: &mut Guard<'_>,
        may: &May<'_>,
        holes: bool,
        change: &mut Change<'_>,
    ) -> Result<u64, Untransferred> {
        let (source, target) = (out.keys().start, into.keys().start);
        let (was, there) = (words_of(out), words_of(into));
        let plan = self.plan(&was, &there, (out.keys().end - source, may, holes), change.section())?;
        into.refine(|span| plan.touches(&span, target)).map_err(|_| Untransferred::NoMemory)?;
        out.all(|span| {
            let slot = Slot::of(span.value);
            if plan.has(span.first, source) && mutant!("transfer-source-readable") {
                change.lower(slot, span.first, Prot::READ);
            } else if plan.has(span.first, source) {
                change.hide(slot, span.first);
            }
            true
        });
        if mutant!("transfer-no-flush") {
            change.flush_nobody();
        }
        change.flush();
        into.update(|span| {
            let frame = was.get(span.first.wrapping_sub(target) as usize).and_then(|was| was.frame());
            match frame.filter(|_| plan.has(span.first, target)) {
                Some((frame, usage)) => {
                    // What it was protected from was at the old place.
                    let slot = Slot::of(span.value).with_level(Some(Level::ReadWrite));
                    slot.with_frame(frame, usage).word()
                }
                None => span.value,
            }
        });
        out.update(|span| match plan.has(span.first, source) {
            true => {
                let slot = Slot::of(span.value);
                emptied(slot, &change.desc(slot).mapping).word()
            }
            false => span.value,
        });
        Ok(plan.pages)
    }
    /// What can be done with the pages whose words are `was` and `there`: with the first, and with others as long as they can.
    fn plan(
        &self,
        was: &Slots,
        there: &Slots,
        (n, may, holes): (u64, &May<'_>, bool),
        section: &Section<'_, Realm>,
    ) -> Result<Plan, Untransferred> {
        let mut plan = Plan::default();
        for (&was, &there) in was.iter().zip(there).take(n as usize) {
            match self.judge(was, there, may, holes, section) {
                Ok(moves) => plan.moves |= u64::from(moves) << plan.pages,
                Err(error) if plan.pages == 0 => return Err(error),
                Err(_) => break,
            }
            plan.pages += 1;
        }
        Ok(plan)
    }
    /// Whether a frame is to go from a page whose word is `was` to one whose word is `there`, or there is nothing to do. In
    /// Linux's order.
    fn judge(
        &self,
        was: Slot,
        there: Slot,
        may: &May<'_>,
        holes: bool,
        section: &Section<'_, Realm>,
    ) -> Result<bool, Untransferred> {
        if !was.is_mapped() || !there.is_mapped() {
            return Err(Untransferred::Unmapped);
        }
        let (source, target) =
            (&self.realm.desc(was, section).mapping, &self.realm.desc(there, section).mapping);
        let anonymous = |mapping: &Mapping| matches!(mapping.backing, Backing::Anonymous);
        if !anonymous(source) || !anonymous(target) || target.watch.is_none() || !may(source, target) {
            return Err(Untransferred::Refused);
        }
        if !there.is_blank() || is_protected(there, target) {
            return Err(Untransferred::There);
        }
        match was.frame() {
            Some((frame, _)) if self.machine.frames.is_shared(frame) && !mutant!("transfer-shared") => {
                Err(Untransferred::Shared)
            }
            Some(_) => Ok(true),
            None if was.is_marker() || is_protected(was, source) => Err(Untransferred::Marked),
            None if holes => Ok(false),
            None => Err(Untransferred::Hole),
        }
    }
}

/// The words of the guard's pages, of which there are [`AT_ONCE`] at most.
fn words_of(guard: &Guard<'_>) -> Slots {
    let mut words = [Slot::EMPTY; AT_ONCE as usize];
    let Range { start, end } = guard.keys();
    guard.all(|span| {
        let own = span.first.max(start)..(span.first + span.keys).min(end);
        let part = words.get_mut((own.start - start) as usize..(own.end - start) as usize);
        part.into_iter().for_each(|part| part.fill(Slot::of(span.value)));
        true
    });
    words
}
