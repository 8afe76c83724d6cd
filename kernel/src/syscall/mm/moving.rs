//! `move_pages`, `migrate_pages`, and the moving that `mbind` is asked for: on which nodes pages are, and how they come to
//! others.
//!
//! What moves is a private page that no other process has. Pages of files and of shared memory stay where they are, also
//! for MPOL_MF_MOVE_ALL, since nobody knows all the mappings of a frame: they count as pages that could not be moved, as
//! pages do on Linux that are in use.

use alloc::{sync::Arc, vec::Vec};

use addr::{PAGE_SIZE, Page, PageRange, USER_END_PAGE};
use aspace::{Place, Seen, Unmoved};
use frames::{Node, NodeSet};

use super::{
    mm,
    numa::{MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, Mask, may_move_all},
    range,
};
use crate::{
    errno::{Errno, SysResult},
    hw::numa,
    ids,
    process::Mm,
    syscall::Args,
    task::{self, CAP_SYS_NICE},
    usercopy,
};

/// The node of the frame of `page`. EFAULT if it isn't mapped or a guard; ENOENT if it has no frame.
pub fn node_of(mm: &Mm, page: Page) -> Result<Node, Errno> {
    let mut answer = Err(Errno::EFAULT);
    if let Some(single) = PageRange::single(page) {
        mm.aspace.inspect(single, &task::unpinned(), &mut |seen| match seen {
            Seen::Mapping(_) => answer = Err(Errno::ENOENT),
            Seen::Page(_, resident) => {
                let node = resident.frame.map(|frame| numa::topology().node_of(frame));
                answer = node.ok_or(Errno::EFAULT);
            }
        });
    }
    answer
}

/// The memory of the process `pid`, 0 for the caller's. ESRCH if there is none; EINVAL if it has no memory.
fn target(pid: i32) -> Result<Arc<Mm>, Errno> {
    match u32::try_from(pid) {
        Ok(0) => Ok(Arc::clone(&*mm()?)),
        Ok(pid) => ids::find(pid).ok_or(Errno::ESRCH)?.mm().ok_or(Errno::EINVAL),
        Err(_) => Err(Errno::ESRCH),
    }
}

/// Put `page` on one of `nodes`, if it isn't there, by a frame at `place`.
fn put(mm: &Mm, page: Page, nodes: NodeSet, place: Place) -> Result<(), Unmoved> {
    let there = |frame| nodes.contains(numa::topology().node_of(frame));
    mm.aspace.move_page(page, place, &there, &task::unpinned())
}

/// Move each page of `r` for which `target` names nodes, and how to get there: `target` is given the page, its number as
/// policies count it, and its node. How many pages could not be moved; stops early if the process is to end. ENOMEM.
pub fn relocate(
    mm: &Mm,
    r: PageRange,
    target: &dyn Fn(u64, Node) -> Option<(NodeSet, Place)>,
) -> Result<usize, Errno> {
    /// Pages found at a time.
    const STEP: usize = 2048;
    let mut found: Vec<(Page, NodeSet, Place)> = Vec::new();
    found.try_reserve_exact(STEP).map_err(|_| Errno::ENOMEM)?;
    let (mut rest, mut stay) = (Some(r), 0);
    while let Some(part) = rest.filter(|_| !task::current().is_ending()) {
        found.clear();
        // Of the mapping that was seen last: what to add to a page's number to have what policies count by.
        let mut shift = 0;
        mm.aspace.inspect(part, &task::unpinned(), &mut |seen| match seen {
            Seen::Mapping(info) => {
                let start = info.range.start().number();
                shift = info.mapping.object_page(0).map_or(0, |(_, index)| index.wrapping_sub(start));
            }
            Seen::Page(page, resident) if found.len() < STEP => {
                let node = resident.frame.map(|frame| numa::topology().node_of(frame));
                let goal = node.and_then(|node| target(page.number().wrapping_add(shift), node));
                found.extend(goal.map(|(nodes, place)| (page, nodes, place)));
            }
            Seen::Page(..) => {}
        });
        stay += found.iter().filter(|(page, nodes, place)| put(mm, *page, *nodes, *place).is_err()).count();
        let next = found.last().filter(|_| found.len() == STEP).and_then(|(page, ..)| page.checked_add(1));
        rest = next.and_then(|next| PageRange::new(next, r.end())).filter(|rest| !rest.is_empty());
    }
    Ok(stay)
}

/// `move_pages(2)`.
pub fn move_pages(a: &Args) -> SysResult {
    let (pid, count, list, wanted, status, flags) =
        (a.int(0), a.raw(1), a.raw(2), a.raw(3), a.raw(4), a.uint(5));
    if flags & !(MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) != 0 {
        return Err(Errno::EINVAL);
    }
    may_move_all(flags)?;
    let mm = target(pid)?;
    for i in 0..count {
        let at = |base: u64, size: u64| base.wrapping_add(i.wrapping_mul(size));
        let address: u64 = usercopy::read(at(list, 8))?;
        let to = if wanted == 0 { None } else { Some(destination(usercopy::read(at(wanted, 4))?)?) };
        let page = range(address / PAGE_SIZE * PAGE_SIZE, PAGE_SIZE).map(PageRange::start);
        let mut node = page.map_or(Err(Errno::EFAULT), |page| node_of(&mm, page));
        if let (Some(to), Some(page), Ok(_)) = (to, page, node) {
            let only = NodeSet::only(to);
            node = match put(&mm, page, only, Place::Bind(only, None)) {
                Ok(()) => Ok(to),
                Err(Unmoved::NoMapping) => Err(Errno::EFAULT),
                Err(Unmoved::Empty) => Err(Errno::ENOENT),
                Err(Unmoved::Shared) if flags & MPOL_MF_MOVE_ALL == 0 => Err(Errno::EACCES),
                Err(Unmoved::NoMemory) => return Err(Errno::ENOMEM),
                // As on Linux, which goes no further than a page that it can't move, and tells how many are left.
                Err(Unmoved::Object | Unmoved::Shared | Unmoved::Busy) => {
                    return Ok(usize::try_from(count - i).unwrap_or(usize::MAX));
                }
            };
        }
        let answer = node.map_or_else(|e| -e.0, |node| node.index() as i32);
        usercopy::write(at(status, 4), &answer)?;
        if task::current().is_ending() {
            break;
        }
    }
    Ok(0)
}

/// A node to move to. ENODEV if there is none of this number with memory.
fn destination(number: i32) -> Result<Node, Errno> {
    let node = usize::try_from(number).ok().and_then(Node::new);
    node.filter(|&node| numa::with_memory().contains(node)).ok_or(Errno::ENODEV)
}

/// `migrate_pages(2)`: what is on the first set of nodes goes to the second; how many pages could not.
pub fn migrate_pages(a: &Args) -> SysResult {
    let (pid, bits) = (a.int(0), a.raw(1));
    let (from, to) = (Mask::read(a.raw(2), bits)?, Mask::read(a.raw(3), bits)?);
    let process = match u32::try_from(pid) {
        Ok(0) => None,
        Ok(pid) => Some(ids::find(pid).ok_or(Errno::ESRCH)?),
        Err(_) => return Err(Errno::ESRCH),
    };
    let allowed = numa::with_memory();
    if to.exceeds(allowed) && !task::is_capable(CAP_SYS_NICE) {
        return Err(Errno::EPERM);
    }
    let (from, to) = (from.nodes(), to.nodes().intersection(allowed));
    if to.is_empty() {
        return Err(Errno::EINVAL);
    }
    let mm = match process {
        None => Arc::clone(&*mm()?),
        Some(process) => process.mm().ok_or(Errno::EINVAL)?,
    };
    let everything = PageRange::new(Page::default(), USER_END_PAGE).unwrap_or_default();
    relocate(&mm, everything, &|_, node| {
        let only = NodeSet::only(goal(node, from, to)?);
        Some((only, Place::Bind(only, None)))
    })
}

/// Where a page of `node` is to go, if `node` is one of `from`: to the node of `to` that has the same rank, counted round
/// and round; but where the sets have not as many nodes, what is on a node of both stays.
fn goal(node: Node, from: NodeSet, to: NodeSet) -> Option<Node> {
    if from.len() != to.len() && to.contains(node) {
        return None;
    }
    let rank = from.iter().position(|other| other == node)?;
    to.iter().nth(rank % to.len().max(1)).filter(|goal| *goal != node)
}
