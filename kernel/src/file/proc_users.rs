//! How many mappings show a page, for what /proc says of memory.
//!
//! A frame of a process's own knows its owners. A frame that a file has lent does not know who shows it
//! ([`Object::lend`](aspace::Object::lend)), so all who map the file are asked. That takes the locks of their address spaces, one after
//! the other, while none is held: pages are listed first, some hundreds at a time, and told of afterwards. What changes meanwhile may
//! be told of as it was.

use alloc::{sync::Arc, vec::Vec};

use addr::{Page, PageRange};
use aspace::{Backing, MappingInfo, Object, Resident, Seen};
use owned::Use;

use super::Result;
use crate::{errno::Errno, process::Mm, task};

/// Pages told of at a time.
const STEP: u64 = 512;

/// A page with a frame or a guard, and by how many mappings its frame is shown.
struct Told {
    page: Page,
    resident: Resident,
    users: u64,
}

/// A mapping of a file, whose page `first` is the mapping's first.
struct Shown {
    range: PageRange,
    object: Arc<dyn Object>,
    first: u64,
}

/// Call `f` with each page of `range` that has a frame or a guard, ascending, and with how many mappings show the frame; with no lock.
///
/// Errors: ENOMEM, and what `f` says.
pub fn pages(mm: &Mm, range: PageRange, f: &mut dyn FnMut(Page, &Resident, u64) -> Result<()>) -> Result<()> {
    let ctx = task::unpinned();
    let (mut at, mut window) = (range.start(), STEP);
    let mut told: Vec<Told> = Vec::new();
    told.try_reserve_exact(STEP as usize).map_err(|_| Errno::ENOMEM)?;
    while at < range.end() {
        let end = at.checked_add(window).map_or(range.end(), |end| end.min(range.end()));
        let part = PageRange::new(at, end).unwrap_or_default();
        let (mut shown, mut rest, mut room) = (Vec::new(), None, true);
        mm.aspace.inspect(part, &ctx, &mut |seen| match seen {
            _ if rest.is_some() => {}
            Seen::Mapping(info) => {
                if let Backing::Object { object, page } = &info.mapping.backing {
                    room &= shown.try_reserve(1).is_ok();
                    if room {
                        shown.push(Shown { range: info.range, object: object.clone(), first: *page });
                    }
                }
            }
            Seen::Page(page, _) if told.len() == STEP as usize => rest = Some(page),
            Seen::Page(page, resident) => {
                // Of its own, the process's entry and the others; of a file that counts its owners, the file is one of them.
                let own = resident.usage == Use::Anonymous;
                let users = if resident.usage == Use::Lent { 0 } else { resident.sharers + u64::from(own) };
                told.push(Told { page, resident, users });
            }
        });
        if !room {
            return Err(Errno::ENOMEM);
        }
        shown.iter().for_each(|shown| count(shown, &mut told));
        for Told { page, resident, users } in told.drain(..) {
            f(page, &resident, users.max(1))?;
        }
        // A wide window where there is little, as mappings may be far larger than what they hold.
        (at, window) = rest.map_or((end, window.saturating_mul(2)), |rest| (rest, STEP));
    }
    Ok(())
}

/// Count who shows the pages of `told` that are lent by what is `shown`.
fn count(shown: &Shown, told: &mut [Told]) {
    let lent = |told: &&mut Told| told.resident.usage == Use::Lent && shown.range.contains(told.page);
    let index = |page: Page| shown.first.wrapping_add(page.number() - shown.range.start().number());
    let mut asked: Option<(u64, u64)> = None;
    for told in told.iter_mut().filter(lent) {
        let index = index(told.page);
        asked = Some((asked.map_or(index, |(first, _)| first), index));
    }
    let (Some((first, last)), Some(mappers)) = (asked, shown.object.mappers()) else { return };
    mappers.shown(first..last.saturating_add(1), &task::unpinned(), &mut |shows| {
        let page = Page::new(shown.range.start().number().wrapping_add(shows.wrapping_sub(shown.first)));
        let found = page.and_then(|page| told.binary_search_by_key(&page, |told| told.page).ok());
        if let Some(told) = found.and_then(|at| told.get_mut(at)) {
            told.users += 1;
        }
    });
}

/// The mappings, ascending, and what `head` says of each.
///
/// Errors: ENOMEM.
pub fn mappings<H>(mm: &Mm, head: &mut dyn FnMut(&MappingInfo<'_>) -> H) -> Result<Vec<(PageRange, H)>> {
    let (mut all, mut room) = (Vec::new(), true);
    mm.aspace.mappings(&task::unpinned(), &mut |info| {
        room &= all.try_reserve(1).is_ok();
        if room {
            all.push((info.range, head(info)));
        }
    });
    if room { Ok(all) } else { Err(Errno::ENOMEM) }
}
