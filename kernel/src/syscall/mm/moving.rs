//! `move_pages` and `migrate_pages`: on which nodes pages are, and that they are to be elsewhere.
//!
//! Nothing is moved. A page that is where it is wanted is answered as Linux answers it. A page that is elsewhere counts as
//! one that could not be moved, as a page that is in use does on Linux: the call returns how many there are, and
//! `move_pages` goes no further.

use alloc::sync::Arc;

use addr::{PAGE_SIZE, Page, PageRange, USER_END_PAGE};
use aspace::Seen;
use frames::{Node, NodeSet};

use super::{
    mm,
    numa::{MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, Mask, may_move_all},
    range,
};
use crate::{
    errno::{Errno, SysResult},
    hw::numa,
    process::{self, Mm},
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
        Ok(pid) => process::find(pid).ok_or(Errno::ESRCH)?.mm().ok_or(Errno::EINVAL),
        Err(_) => Err(Errno::ESRCH),
    }
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
        let node = page.map_or(Err(Errno::EFAULT), |page| node_of(&mm, page));
        if let (Some(to), Ok(node)) = (to, node)
            && to != node
        {
            return Ok(usize::try_from(count - i).unwrap_or(usize::MAX));
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

/// `migrate_pages(2)`: how many pages on the first set of nodes were to go to the other.
pub fn migrate_pages(a: &Args) -> SysResult {
    let (pid, bits) = (a.int(0), a.raw(1));
    let (from, to) = (Mask::read(a.raw(2), bits)?, Mask::read(a.raw(3), bits)?);
    let process = match u32::try_from(pid) {
        Ok(0) => None,
        Ok(pid) => Some(process::find(pid).ok_or(Errno::ESRCH)?),
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
    let mut count = 0;
    mm.aspace.inspect(everything, &task::unpinned(), &mut |seen| {
        if let Seen::Page(_, page) = seen
            && let Some(frame) = page.frame
        {
            let node = numa::topology().node_of(frame);
            count += usize::from(from.contains(node) && leaves(node, from, to));
        }
    });
    Ok(count)
}

/// Whether pages of `node`, one of `from`, are to go elsewhere: to the node of `to` that has the same rank; but where the
/// sets have not as many nodes, what is on a node of both stays.
fn leaves(node: Node, from: NodeSet, to: NodeSet) -> bool {
    if from.len() != to.len() {
        return !to.contains(node);
    }
    let rank = from.iter().position(|other| other == node);
    rank.and_then(|rank| to.iter().nth(rank)) != Some(node)
}
