//! What is done to the entries of a leaf table whose lock is held: the same in each design that has one page table with a lock
//! for each leaf. `flush` makes every CPU that may use the table forget what the gather was told of.

use addr::{Frame, Page, PageRange, Prot};
use owned::{Memory, OwnedFrame, Use};
use pagetable::{Full, Leaf, Which, use_of};
use percpu::Pinned;
use sync::mutant;
use tlb::Gather;

use crate::{Mapping, Unmoved, page};

/// The frames under `leaves` go, leaf by leaf; the lock of each is held over its flush. How many. `unflushed`: entries may
/// have lost their last right, and who has lowered them has not flushed yet, so their frames go no sooner than others.
pub(crate) fn discard<'l>(
    leaves: impl Iterator<Item = (Leaf<'l>, PageRange)>,
    unflushed: bool,
    gather: &mut Gather<'_>,
    pin: &Pinned<'_>,
    mut flush: impl FnMut(&mut Gather<'_>),
) -> u64 {
    let mut taken = 0;
    for (leaf, part) in leaves {
        let lowered = |&page: &Page| use_of(leaf.peek(page)).is_some() && !leaf.peek(page).is_present();
        let lowered = part.iter().filter(lowered).filter(|_| unflushed).filter_map(PageRange::single);
        lowered.for_each(|single| gather.add_range(single));
        let mut rest = Some(part);
        while let Some(r) = rest {
            rest = match leaf.take_range(r, Which::Frames, gather, &mut taken) {
                Ok(()) => None,
                Err(Full(at)) => {
                    flush(gather);
                    gather.release(pin);
                    PageRange::new(at, part.end())
                }
            };
        }
        flush(gather);
        drop(leaf);
        gather.release(pin);
    }
    taken
}

/// Guards on every page of `part`, which `leaf` serves; its lock is held over the flush. How many frames went.
pub(crate) fn guard(
    leaf: Leaf<'_>,
    part: PageRange,
    gather: &mut Gather<'_>,
    pin: &Pinned<'_>,
    mut flush: impl FnMut(&mut Gather<'_>),
) -> u64 {
    let mut taken = 0;
    for page in part {
        if gather.room() == 0 {
            flush(gather);
            gather.release(pin);
        }
        if let Some((frame, present)) = leaf.guard(page) {
            if let (true, Some(single)) = (present && !mutant!("guard-no-flush"), PageRange::single(page)) {
                gather.add_range(single);
            }
            gather.take(frame);
            taken += 1;
        }
    }
    flush(gather);
    drop(leaf);
    gather.release(pin);
    taken
}

/// Fork, for the pages `part` of `mapping`, which `from` serves: the same frames, writable in neither space, and guards.
/// `to` locks the leaf that serves the same pages for the child; what has lost a right is told to the gather. Shared
/// mappings are filled from their objects as the child uses them. How many pages the child has; `None` if there is no leaf.
pub(crate) fn share<'l>(
    from: &Leaf<'_>,
    part: PageRange,
    mapping: &Mapping,
    frames: &Memory,
    gather: &mut Gather<'_>,
    to: impl FnOnce() -> Option<Leaf<'l>>,
) -> Option<u64> {
    let rights = page::hardware(mapping.prot).difference(Prot::WRITE);
    let copied = |page| {
        let entry = from.peek(page);
        match entry.is_guard() {
            true => !mutant!("guard-uninherited"),
            false => !mapping.shared && !entry.is_empty(),
        }
    };
    if !part.iter().any(copied) {
        return Some(0);
    }
    let (to, mut gained) = (to()?, 0);
    for page in part.iter().filter(|&page| copied(page)) {
        let Some(share) = from.share(page, frames) else {
            let _ = to.guard(page);
            continue;
        };
        to.insert(page, share, rights);
        gained += 1;
        if from.protect(page, rights)
            && !mutant!("fork-no-flush")
            && let Some(single) = PageRange::single(page)
        {
            gather.add_range(single);
        }
    }
    Some(gained)
}

/// One more share of the frame of `at`, a private page of `mapping` that is to move, and then no right to store: a fault
/// finds the frame shared, so it copies rather than give the right back, and the frame stays as it is while it is copied.
/// `None` if the frame is `wanted`. To be flushed under the lock.
pub(crate) fn hold_still(
    leaf: &Leaf<'_>,
    at: Page,
    mapping: &Mapping,
    wanted: &dyn Fn(Frame) -> bool,
    frames: &Memory,
    gather: &mut Gather<'_>,
) -> Result<Option<OwnedFrame>, Unmoved> {
    let entry = leaf.peek(at);
    match use_of(entry) {
        _ if entry.is_guard() => return Err(Unmoved::NoMapping),
        None => return Err(Unmoved::Empty),
        Some(_) if wanted(entry.frame()) => return Ok(None),
        Some(Use::Anonymous) if frames.is_shared(entry.frame()) => return Err(Unmoved::Shared),
        Some(Use::Anonymous) => {}
        Some(_) => return Err(Unmoved::Object),
    }
    let old = leaf.share(at, frames).ok_or(Unmoved::Empty)?;
    if leaf.protect(at, page::rights(mapping, old.frame(), frames))
        && !mutant!("move-no-flush")
        && let Some(single) = PageRange::single(at)
    {
        gather.add_range(single);
    }
    Ok(Some(old))
}

/// Whether `leaf` still has `old` at `at`.
pub(crate) fn still_has(leaf: &Leaf<'_>, at: Page, old: &OwnedFrame) -> bool {
    let entry = leaf.peek(at);
    use_of(entry).is_some() && entry.frame() == old.frame()
}

/// Put `new`, a copy of `old`, in its place: read-only; flush; then with `rights`. The shares of the old frame go after the
/// flush.
pub(crate) fn replace(
    leaf: &Leaf<'_>,
    at: Page,
    old: OwnedFrame,
    new: OwnedFrame,
    rights: Prot,
    gather: &mut Gather<'_>,
    flush: impl FnOnce(&mut Gather<'_>),
) {
    if leaf.peek(at).is_present()
        && !mutant!("cow-no-flush")
        && let Some(single) = PageRange::single(at)
    {
        gather.add_range(single);
    }
    let until = if mutant!("cow-writable-early") { rights } else { rights.difference(Prot::WRITE) };
    if let Some(replaced) = leaf.replace(at, new, until) {
        gather.take(replaced);
    }
    gather.take(old);
    flush(gather);
    leaf.protect(at, rights);
}
