//! What a page's frame should be: zero fill, a page of an object, copy on write. Takes no locks, and knows neither
//! page tables nor processors; the designs call it outside of their leaf locks and put in what it gives.
//!
//! **Ownership of private pages.** A private mapping may write a frame exactly if it has its only share: nobody else
//! can make a second one, so the answer "not shared" stays true until this address space forks. A frame of an object
//! that a private mapping shows is the object's, which has lent it, so it is never written, but copied.

use alloc::sync::Arc;

use addr::{Frame, PAGE_BYTES, Page, Prot, Pte};
use frames::{Fill, Req};
use owned::{Memory, OwnedFrame, Use};
use percpu::{Pinned, Unpinned};
use sync::{
    mutant,
    primitive::{AtomicU64, Ordering},
};

use crate::{Access, Backing, Content, Count, Fault, Mapping, Object, ObjectError, Place, Policy, Resident};

/// A frame for `usage`, at `place`, its bytes zero if `zeroed` and else unspecified. Every frame of user memory comes from
/// here: those of mappings, and those of the objects that are mapped.
#[inline(always)]
pub fn frame(
    place: Place,
    usage: Use,
    zeroed: bool,
    frames: &Memory,
    pin: &Pinned<'_>,
) -> Option<OwnedFrame> {
    let fill = if zeroed { Fill::Zeroed } else { Fill::Any };
    frames.alloc_by(pin, usage, Req { place, fill, ..usage.req() }).ok()
}

/// The frame that page `at` of the space, the one `offset` pages into `mapping`, should have for `access`, and the rights
/// to it. `policy` is the one in force.
///
/// `held` is the frame that it has now, if any: the caller has found that it may not be written, and gets a copy.
#[allow(clippy::too_many_arguments, reason = "a page, an access, and who is asked for frames")]
pub fn ensure(
    mapping: &Mapping,
    policy: &Policy,
    at: Page,
    offset: u64,
    held: Option<&OwnedFrame>,
    access: Access,
    frames: &Memory,
    ctx: &Unpinned<'_>,
) -> Result<(OwnedFrame, Prot), Fault> {
    let all = hardware(mapping.prot);
    // A copy of an object's page counts as the object does, as on Linux.
    let index = mapping.object_page(offset).map_or(at.number(), |(_, index)| index);
    let place = policy.place(index);
    if let Some(old) = held {
        return Ok((copy(old, place, frames, &ctx.pin())?, all));
    }
    let Backing::Object { object, page } = &mapping.backing else {
        let zeroed = frame(place, Use::Anonymous, true, frames, &ctx.pin());
        return Ok((zeroed.ok_or(Fault::NoMemory)?, all));
    };
    let index = page.checked_add(offset).ok_or(Fault::BeyondObject)?;
    of_object(mapping, (object, index), policy, Count::Lent, access, frames, ctx)
}

/// The same for a page that has no frame, of which `mapping` shows that page of that object, which is lent or counted.
#[allow(clippy::too_many_arguments, reason = "a page, an access, and who is asked for frames")]
pub(crate) fn of_object(
    mapping: &Mapping,
    (object, index): (&Arc<dyn Object>, u64),
    policy: &Policy,
    count: Count,
    access: Access,
    frames: &Memory,
    ctx: &Unpinned<'_>,
) -> Result<(OwnedFrame, Prot), Fault> {
    // Who copies has no lock, so it needs a share.
    let copied = is_copied(mapping, access);
    let theirs = match copied || count == Count::Atomic {
        true => object.page(index, policy, frames, ctx),
        false => object.lend(index, policy, frames, ctx),
    };
    let theirs = theirs.map_err(|e| match e {
        ObjectError::BeyondEnd | ObjectError::Io | ObjectError::Sealed => Fault::BeyondObject,
        ObjectError::NoMemory => Fault::NoMemory,
    })?;
    shown(mapping, theirs, copied, policy.place(index), frames, &ctx.pin())
}

/// The same, if the object has the page [at hand](crate::Object::at_hand): in a section, or with the mappings locked.
pub(crate) fn of_object_at_hand(
    mapping: &Mapping,
    (object, index): (&Arc<dyn Object>, u64),
    policy: &Policy,
    count: Count,
    access: Access,
    frames: &Memory,
    pin: &Pinned<'_>,
) -> Option<Result<(OwnedFrame, Prot), Fault>> {
    let copied = is_copied(mapping, access);
    let theirs = object.at_hand(index, !copied && count == Count::Lent, frames, pin)?;
    Some(shown(mapping, theirs, copied, policy.place(index), frames, pin))
}

/// Whether `access` to a page of an object makes a copy of it.
fn is_copied(mapping: &Mapping, access: Access) -> bool {
    !mapping.shared && access == Access::Write
}

/// What `mapping` shows of an object's page that was lent, or, if it is to be copied, of which this is a share.
fn shown(
    mapping: &Mapping,
    theirs: OwnedFrame,
    copied: bool,
    place: Place,
    frames: &Memory,
    pin: &Pinned<'_>,
) -> Result<(OwnedFrame, Prot), Fault> {
    let all = hardware(mapping.prot);
    if mutant!("object-share-early") {
        // SAFETY: none; that this is wrong is what is to be found.
        let again = unsafe { OwnedFrame::from_raw(theirs.frame(), Use::File) };
        frames.free(pin, again);
    }
    if !copied {
        return Ok((theirs, if mapping.shared { all } else { all.difference(Prot::WRITE) }));
    }
    let mine = copy(&theirs, place, frames, pin);
    frames.free(pin, theirs);
    Ok((mine?, all))
}

/// The rights that `mapping` may have to `frame`, of which its page has a share or which it was lent: writing only if that is a
/// share, and the only one, or if stores are for the object.
pub fn rights(mapping: &Mapping, frame: Frame, frames: &Memory) -> Prot {
    let all = hardware(mapping.prot);
    let copy_first = !mapping.shared && frames.is_shared(frame) && !mutant!("cow-sole-owner-wrong");
    if copy_first { all.difference(Prot::WRITE) } else { all }
}

/// What a page's entry in a page table says of it; `None` if that is empty.
pub(crate) fn resident(entry: Pte, frames: &Memory) -> Option<Resident> {
    if entry.is_empty() {
        return None;
    }
    let usage = pagetable::use_of(entry);
    let frame = usage.map(|_| entry.frame());
    Some(Resident {
        frame,
        usage: usage.unwrap_or(Use::Anonymous),
        sharers: frame.map_or(0, |frame| frames.sharers(frame)),
        accessed: entry.is_accessed(),
        dirty: entry.is_dirty(),
        protected: false,
        poisoned: false,
    })
}

/// The rights that x86-64 gives for `prot`: whatever may be used at all may be read.
pub fn hardware(prot: Prot) -> Prot {
    if prot.is_empty() { prot } else { prot | Prot::READ }
}

/// A frame of this address space's own with the same bytes, at `place`.
pub(crate) fn copy(
    old: &OwnedFrame,
    place: Place,
    frames: &Memory,
    pin: &Pinned<'_>,
) -> Result<OwnedFrame, Fault> {
    let new = frame(place, Use::Anonymous, false, frames, pin).ok_or(Fault::NoMemory)?;
    let (from, to) = (words(frames, old), words(frames, &new));
    // In eights, which the compiler unrolls.
    for (from, to) in from.as_chunks::<8>().0.iter().zip(to.as_chunks::<8>().0) {
        for (from, to) in from.iter().zip(to) {
            // Relaxed: each word of an object may be stored to by other address spaces meanwhile, and any of its values
            // will do; the new frame is published by the page-table entry.
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
    Ok(new)
}

/// A frame of this address space's own with these contents, at `place`.
pub(crate) fn filled(
    with: Content<'_>,
    place: Place,
    frames: &Memory,
    pin: &Pinned<'_>,
) -> Option<OwnedFrame> {
    let Content::Bytes(bytes) = with else { return frame(place, Use::Anonymous, true, frames, pin) };
    let new = frame(place, Use::Anonymous, false, frames, pin)?;
    for (from, to) in bytes.as_chunks::<8>().0.iter().zip(words(frames, &new)) {
        // Relaxed: the frame is published by its slot.
        to.store(u64::from_ne_bytes(*from), Ordering::Relaxed);
    }
    Some(new)
}

/// The bytes of a frame as words that others may access too.
fn words<'f>(frames: &'f Memory, owned: &'f OwnedFrame) -> &'f [AtomicU64] {
    let first = frames.dm().ptr(owned.frame().base()).cast::<AtomicU64>();
    // SAFETY: the direct map reaches the frame, which is aligned and stays allocated while its share is borrowed;
    // user memory is accessed atomically or by the hardware only.
    unsafe { core::slice::from_raw_parts(first, PAGE_BYTES / 8) }
}
