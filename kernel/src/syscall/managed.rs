//! Quire's own calls: pages with levels, and upcalls. Programs learn of them by the auxiliary vector's [`AT_QUIRE`], the
//! address of an [`Info`]; no other kernel is ever asked.

use addr::{PAGE_SIZE, PageRange};
use aspace::{Level, Managed, Step};

use super::{
    Args,
    Handler::{self, Frame, Plain},
    mm::{errno, exact_range},
};
use crate::{
    errno::{Errno, SysResult},
    hw::TrapFrame,
    options::{self, Design},
    pod, task, upcall, usercopy,
};

/// The key in the auxiliary vector: "QUIR".
pub const AT_QUIRE: u32 = 0x5155_4952;
/// The number of the first call; the others follow.
pub const FIRST: u64 = 0x5100;
const MAGIC: u64 = u64::from_le_bytes(*b"QuireVM\0");
const VERSION: u32 = 1;

/// Features: levels of pages; upcalls; what was written; calls that start over.
const LEVELS: u64 = 1;
const UPCALLS: u64 = 1 << 1;
const DIRTY: u64 = 1 << 2;
const RESTART: u64 = 1 << 3;

/// What programs read.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Info {
    magic: u64,
    version: u32,
    first_call: u32,
    features: u64,
}
pod!(Info);

/// What there is on this machine.
pub fn info() -> Info {
    let radix = options::get().design == Design::Radix;
    let features = if radix { LEVELS | UPCALLS | DIRTY | RESTART } else { 0 };
    Info { magic: MAGIC, version: VERSION, first_call: FIRST as u32, features }
}

/// What does call `number`.
pub fn find(number: u64) -> Option<Handler> {
    Some(match number.wrapping_sub(FIRST) {
        0 => Plain(region),
        1 => Plain(set_upcall),
        2 => Plain(prot),
        3 => Plain(dirty),
        4 => Frame(resume),
        _ => return None,
    })
}

/// The address space, and its managed pages.
fn with<R>(f: impl FnOnce(&dyn Managed) -> Result<R, Errno>) -> Result<R, Errno> {
    let mm = task::current().lend_mm().ok_or(Errno::ENOSYS)?;
    f(mm.aspace.managed().ok_or(Errno::ENOSYS)?)
}

fn level(raw: u64) -> Result<Level, Errno> {
    usize::try_from(raw).ok().and_then(|raw| Level::ALL.get(raw)).copied().ok_or(Errno::EINVAL)
}

/// Said in the place of a level: the pages are no longer managed.
const NOT_MANAGED: u64 = 3;

/// `q_region(addr, len, level)`: manage whole pages.
fn region(a: &Args) -> SysResult {
    let range = exact_range(a.raw(0), a.raw(1)).ok_or(Errno::EINVAL)?;
    let level = if a.raw(2) == NOT_MANAGED { None } else { Some(level(a.raw(2))?) };
    with(|managed| managed.manage(range, level, &task::unpinned()).map_err(errno)).map(|()| 0)
}

/// `q_upcall(entry, stack, len, cookie)`.
fn set_upcall(a: &Args) -> SysResult {
    with(|_| upcall::set(a.raw(0), a.raw(1), a.raw(2), a.raw(3)))
}

/// One part of `q_prot`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Op {
    addr: u64,
    pages: u64,
    level: u32,
    /// 0: lower to it what is above; 1: raise to it what is below.
    raise: u32,
}
pod!(Op);

/// Parts that are read at a time.
const OPS: usize = 32;
/// The most parts of a call.
const MAX_OPS: u64 = 1 << 16;

impl Op {
    fn step(&self) -> Result<Step, Errno> {
        let len = self.pages.checked_mul(PAGE_SIZE).filter(|len| *len > 0).ok_or(Errno::EINVAL)?;
        let range = exact_range(self.addr, len).ok_or(Errno::EINVAL)?;
        if self.raise > 1 {
            return Err(Errno::EINVAL);
        }
        Ok(Step { range, level: level(self.level.into())?, raise: self.raise == 1 })
    }
}

/// `q_prot(ops, n)`: the parts of each 32 ascend.
fn prot(a: &Args) -> SysResult {
    let (at, n) = (a.raw(0), a.raw(1));
    if n > MAX_OPS {
        return Err(Errno::EINVAL);
    }
    if n == 1 {
        let step = usercopy::read::<Op>(at)?.step()?;
        return with(|managed| managed.set_levels(&[step], &task::unpinned()).map_err(errno)).map(|()| 0);
    }
    with(|managed| {
        let mut done = 0;
        while done < n {
            let mut ops = [Op::default(); OPS];
            let now = ops.len().min((n - done) as usize);
            let from = at.checked_add(done * size_of::<Op>() as u64).ok_or(Errno::EFAULT)?;
            let ops = ops.get_mut(..now).ok_or(Errno::EINVAL)?;
            usercopy::read_into(from, ops)?;
            let mut steps = [Step { range: PageRange::default(), level: Level::None, raise: false }; OPS];
            for (step, op) in steps.iter_mut().zip(ops.iter()) {
                *step = op.step()?;
            }
            let steps = steps.get(..now).ok_or(Errno::EINVAL)?;
            managed.set_levels(steps, &task::unpinned()).map_err(errno)?;
            done += now as u64;
        }
        Ok(0)
    })
}

/// Words of a bitmap that are filled at a time.
const WORDS: usize = 64;

/// `q_dirty(addr, pages, bitmap, flags)`: the bitmap has a bit for each page, and whole 64-bit words.
fn dirty(a: &Args) -> SysResult {
    let [addr, pages, bitmap, flags] = [a.raw(0), a.raw(1), a.raw(2), a.raw(3)];
    let len = pages.checked_mul(PAGE_SIZE).filter(|len| *len > 0 && flags == 0).ok_or(Errno::EINVAL)?;
    let range = exact_range(addr, len).ok_or(Errno::EINVAL)?;
    with(|managed| {
        // Whatever can't be written is found out before anything is taken.
        usercopy::zero(bitmap, 8 * pages.div_ceil(64))?;
        let (mut first, mut to) = (range.start(), bitmap);
        while first < range.end() {
            let most = PageRange::with_len(first, 64 * WORDS as u64).ok_or(Errno::EINVAL)?;
            let part = most.intersect(range).ok_or(Errno::EINVAL)?;
            let mut bits = [0u64; WORDS];
            let taken = managed.take_dirty(part, &mut bits, &task::unpinned());
            // Also if it has failed half way: what was taken is told.
            if bits != [0; WORDS] {
                let bits = bits.get(..part.len().div_ceil(64) as usize).unwrap_or_default();
                if let Err(error) = usercopy::write_all(to, bits) {
                    managed.mark_dirty(part, bits, &task::unpinned()).map_err(errno)?;
                    // Not from the beginning, as what was told before would be lost.
                    if first > range.start() {
                        upcall::forget();
                    }
                    return Err(error);
                }
            }
            taken.map_err(errno)?;
            (first, to) = (part.end(), to + 8 * WORDS as u64);
        }
        Ok(0)
    })
}

/// `q_resume(frame, level, count)`.
fn resume(a: &Args, frame: &mut TrapFrame) -> Option<SysResult> {
    upcall::resume(a.raw(0), a.raw(1), a.raw(2), frame)
}
