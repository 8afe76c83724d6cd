//! How many mappings show a page, for what /proc says of memory.
//!
//! A frame of a process's own knows its owners. A frame that a file has lent does not know who shows it
//! ([`Object::lend`](aspace::Object::lend)), so all who map the file are asked: once for thousands of pages, as each of them looks at all
//! that it maps. That takes the locks of their address spaces, one after the other, while none is held; so pages that are lent
//! are listed first, and told of afterwards. What changes meanwhile may be told of as it was.

use alloc::{sync::Arc, vec::Vec};
use core::ops::Range;

use addr::{Page, PageRange};
use aspace::{Backing, MappingInfo, Object, Resident};
use owned::Use;

use super::Result;
use crate::{errno::Errno, memory, process::Mm, task};

/// Pages that are listed at a time, and looked at in one go at least.
const STEP: usize = 16384;

/// A mapping, and what is to be said of it.
pub struct Piece<H> {
    /// Its pages, ascending from one to the next.
    pub range: PageRange,
    /// The file, and its page that is the mapping's first.
    object: Option<(Arc<dyn Object>, u64)>,
    pub head: H,
}

/// A page that is lent.
struct Told {
    piece: usize,
    page: Page,
    resident: Resident,
    users: u64,
}

/// The mappings that have pages in `range`, whole, ascending, and what `head` says of each.
///
/// Errors: ENOMEM.
pub fn mappings<H>(
    mm: &Mm,
    range: PageRange,
    head: &mut dyn FnMut(&MappingInfo<'_>) -> H,
) -> Result<Vec<Piece<H>>> {
    let (mut all, mut room) = (Vec::new(), true);
    mm.aspace.areas(range, &task::unpinned(), &mut |info| {
        room &= all.try_reserve(1).is_ok();
        if room {
            let object = match &info.mapping.backing {
                Backing::Object { object, page } => Some((object.clone(), *page)),
                Backing::Anonymous => None,
            };
            all.push(Piece { range: info.range, object, head: head(info) });
        }
    });
    if room { Ok(all) } else { Err(Errno::ENOMEM) }
}

/// Call `f` with each page of `range` that has a frame or a guard, the number of its piece, and how many mappings show the frame.
/// `f` must not sleep nor use address spaces.
///
/// Errors: ENOMEM; EINTR if the caller is ending.
pub fn pages<H>(
    mm: &Mm,
    range: PageRange,
    pieces: &[Piece<H>],
    f: &mut dyn FnMut(usize, Page, &Resident, u64),
) -> Result<()> {
    let ctx = task::unpinned();
    let mut told: Vec<Told> = Vec::new();
    for (piece, part) in pieces.iter().enumerate().filter_map(|(i, p)| Some((i, p.range.intersect(range)?))) {
        // A wide window where there is little, as mappings may be far larger than what they hold.
        let (mut at, mut window) = (part.start(), STEP);
        while at < part.end() {
            if task::current().is_ending() {
                return Err(Errno::EINTR);
            }
            let end = at.checked_add(window as u64).map_or(part.end(), |end| end.min(part.end()));
            let (mut seen, mut rest, mut room) = (0, None, true);
            mm.aspace.pages(PageRange::new(at, end).unwrap_or_default(), &ctx, &mut |page, resident| {
                seen += 1;
                if resident.usage != Use::Lent {
                    // A frame of the process's own is its entry's and the others'; a file that counts is one of the owners.
                    let own = u64::from(resident.usage == Use::Anonymous);
                    if rest.is_none() {
                        f(piece, page, &resident, (resident.sharers + own).max(1));
                    }
                } else if rest.is_none() && told.len() < STEP {
                    room &= told.try_reserve(1).is_ok();
                    if room {
                        told.push(Told { piece, page, resident, users: 0 });
                    }
                } else {
                    rest.get_or_insert(page);
                }
            });
            if !room {
                return Err(Errno::ENOMEM);
            }
            if rest.is_some() {
                tell(pieces, &mut told, f)?;
            }
            (at, window) = match rest {
                Some(rest) => (rest, STEP),
                None => (end, if seen < STEP / 2 { window.saturating_mul(2) } else { STEP }),
            };
        }
    }
    tell(pieces, &mut told, f)
}

/// Count who shows what is `told`, and tell of it.
fn tell<H>(
    pieces: &[Piece<H>],
    told: &mut Vec<Told>,
    f: &mut dyn FnMut(usize, Page, &Resident, u64),
) -> Result<()> {
    let mut from = 0;
    while let Some(first) = told.get(from) {
        // Mappings of one file mostly follow each other, and are asked for together.
        let object = |told: &Told| pieces.get(told.piece).and_then(|piece| piece.object.as_ref());
        let same = |next: &&Told| match (object(first), object(next)) {
            (Some((a, _)), Some((b, _))) => Arc::ptr_eq(a, b),
            _ => first.piece == next.piece,
        };
        let run = from..from + told.iter().skip(from).take_while(same).count();
        from = run.end;
        count(pieces, told.get_mut(run).unwrap_or_default())?;
    }
    told.drain(..).for_each(|told| f(told.piece, told.page, &told.resident, told.users.max(1)));
    Ok(())
}

/// Count who shows the pages of `told`, which are of one file.
fn count<H>(pieces: &[Piece<H>], told: &mut [Told]) -> Result<()> {
    let place =
        |piece: usize| pieces.get(piece).and_then(|p| Some((p.range.start().number(), p.object.as_ref()?)));
    let index = |told: &Told| {
        place(told.piece).map(|(start, (_, first))| first.wrapping_add(told.page.number() - start))
    };
    let Some(object) = told.first().and_then(|told| place(told.piece)).map(|(_, (object, _))| object) else {
        return Ok(());
    };
    // Who asks makes lists of all who map it.
    if memory::frames().low() {
        return Err(Errno::ENOMEM);
    }
    let mut hull: Option<Range<u64>> = None;
    for index in told.iter().filter_map(index) {
        let old = hull.unwrap_or(index..index);
        hull = Some(old.start.min(index)..old.end.max(index.saturating_add(1)));
    }
    let (Some(hull), Some(mappers)) = (hull, object.mappers()) else { return Ok(()) };
    // The file's pages, in order: each mapping's are, and a page may be in several.
    let mut order: Vec<(u64, u32)> = Vec::new();
    order.try_reserve_exact(told.len()).map_err(|_| Errno::ENOMEM)?;
    order.extend(told.iter().zip(0u32..).filter_map(|(told, at)| Some((index(told)?, at))));
    order.sort_unstable();
    let mut users: Vec<u32> = Vec::new();
    users.try_reserve_exact(order.len()).map_err(|_| Errno::ENOMEM)?;
    users.resize(order.len(), 0);
    mappers.shown(hull, &task::unpinned(), &mut |shown| {
        let first = order.partition_point(|(index, _)| *index < shown);
        if let Some(users) =
            order.get(first).filter(|(index, _)| *index == shown).and_then(|_| users.get_mut(first))
        {
            *users += 1;
        }
    });
    let mut last = (None, 0);
    for ((index, at), users) in order.iter().zip(users) {
        // Of those that are alike the first has the count.
        last = if last.0 == Some(*index) { last } else { (Some(*index), users) };
        if let Some(told) = told.get_mut(*at as usize) {
            told.users = last.1.into();
        }
    }
    Ok(())
}
