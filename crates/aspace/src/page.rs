//! What a page's frame should be: zero fill, a page of an object, copy on write. Takes no locks, and knows neither
//! page tables nor processors; the designs call it outside of their leaf locks and put in what it gives.
//!
//! **Ownership of private pages.** A private mapping may write a frame exactly if it has its only share: nobody else
//! can make a second one, so the answer "not shared" stays true until this address space forks. A frame of an object
//! that a private mapping shows is shared with the object, so it is never written, but copied.

use addr::{Frame, PAGE_BYTES, Prot};
use owned::{Memory, OwnedFrame, Use};
use percpu::Unpinned;
use sync::{
    mutant,
    primitive::{AtomicU64, Ordering},
};

use crate::{Access, Backing, Fault, Mapping, ObjectError};

/// The frame that the page `offset` pages into `mapping` should have for `access`, and the rights to it.
///
/// `held` is the frame that it has now, if any: the caller has found that it may not be written, and gets a copy.
pub fn ensure(
    mapping: &Mapping,
    offset: u64,
    held: Option<&OwnedFrame>,
    access: Access,
    frames: &Memory,
    ctx: &Unpinned<'_>,
) -> Result<(OwnedFrame, Prot), Fault> {
    let all = hardware(mapping.prot);
    if let Some(old) = held {
        return Ok((copy(old, frames, ctx)?, all));
    }
    let Backing::Object { object, page } = &mapping.backing else {
        let zeroed = frames.alloc_zeroed(&ctx.pin(), Use::Anonymous);
        return Ok((zeroed.ok_or(Fault::NoMemory)?, all));
    };
    let index = page.checked_add(offset).ok_or(Fault::BeyondObject)?;
    let theirs = object.page(index, frames, ctx).map_err(|e| match e {
        ObjectError::BeyondEnd | ObjectError::Io | ObjectError::Sealed => Fault::BeyondObject,
        ObjectError::NoMemory => Fault::NoMemory,
    })?;
    if mapping.shared {
        return Ok((theirs, all));
    }
    if access != Access::Write {
        return Ok((theirs, all.difference(Prot::WRITE)));
    }
    let mine = copy(&theirs, frames, ctx);
    frames.free(&ctx.pin(), theirs);
    Ok((mine?, all))
}

/// The rights that `mapping` may have to `frame`, of which its page has a share: writing only if that is the only
/// one, or if stores are for the object.
pub fn rights(mapping: &Mapping, frame: Frame, frames: &Memory) -> Prot {
    let all = hardware(mapping.prot);
    let copy_first = !mapping.shared && frames.is_shared(frame) && !mutant!("cow-sole-owner-wrong");
    if copy_first { all.difference(Prot::WRITE) } else { all }
}

/// The rights that x86-64 gives for `prot`: whatever may be used at all may be read.
pub fn hardware(prot: Prot) -> Prot {
    if prot.is_empty() { prot } else { prot | Prot::READ }
}

/// A frame of this address space's own with the same bytes.
fn copy(old: &OwnedFrame, frames: &Memory, ctx: &Unpinned<'_>) -> Result<OwnedFrame, Fault> {
    let new = frames.alloc(&ctx.pin(), Use::Anonymous).ok_or(Fault::NoMemory)?;
    let (from, to) = (words(frames, old), words(frames, &new));
    for (from, to) in from.iter().zip(to) {
        // Relaxed: each word of an object may be stored to by other address spaces meanwhile, and any of its values
        // will do; the new frame is published by the page-table entry.
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    Ok(new)
}

/// The bytes of a frame as words that others may access too.
fn words<'f>(frames: &'f Memory, owned: &'f OwnedFrame) -> &'f [AtomicU64] {
    let first = frames.dm().ptr(owned.frame().base()).cast::<AtomicU64>();
    // SAFETY: the direct map reaches the frame, which is aligned and stays allocated while its share is borrowed;
    // user memory is accessed atomically or by the hardware only.
    unsafe { core::slice::from_raw_parts(first, PAGE_BYTES / 8) }
}
