//! Who a program is: everything runs as root. Capabilities and the personality are kept and told (`task::Attributes`).

use alloc::sync::Arc;

use super::Args;
use crate::{
    errno::{Errno, SysResult},
    ids,
    task::{self, Attributes, Task},
    usercopy,
};

/// The "keep it" of calls that set several ids.
const KEEP: u32 = u32::MAX;

fn check(ids: &[u32]) -> SysResult {
    // There is only root to become.
    if ids.iter().all(|id| matches!(*id, 0 | KEEP)) { Ok(0) } else { Err(Errno::EINVAL) }
}

/// `setresuid(2)`, `setresgid(2)`.
pub fn set_ids(a: &Args) -> SysResult {
    check(&[a.uint(0), a.uint(1), a.uint(2)])
}

/// `setreuid(2)`, `setregid(2)`.
pub fn set_two_ids(a: &Args) -> SysResult {
    check(&[a.uint(0), a.uint(1)])
}

/// `setfsuid(2)`, `setfsgid(2)`: always tells the old one.
pub fn set_fs_id(_: &Args) -> SysResult {
    Ok(0)
}

/// `setgroups(2)`: to none, or to root's.
pub fn setgroups(a: &Args) -> SysResult {
    /// Linux's NGROUPS_MAX.
    const MOST: i32 = 65536;
    if !(0..=MOST).contains(&a.int(0)) {
        return Err(Errno::EINVAL);
    }
    for i in 0..u64::from(a.uint(0)) {
        let group: u32 = usercopy::read(a.raw(1).checked_add(4 * i).ok_or(Errno::EFAULT)?)?;
        check(&[group])?;
    }
    task::current().attributes.change(|now| now.groups = a.uint(0));
    Ok(0)
}

/// `personality(2)`: the old one; all ones only asks.
pub fn personality(a: &Args) -> SysResult {
    let attributes = &task::current().attributes;
    let old = match a.uint(0) {
        u32::MAX => attributes.get().personality,
        new => attributes.change(|now| core::mem::replace(&mut now.personality, new)),
    };
    Ok(old as usize)
}

/// The newest version of the capability calls: two words of each kind.
const VERSION_3: u32 = 0x2008_0522;

/// Words of each kind in the version that the header at `at` asks for, and the process. EINVAL with the newest version
/// stored for an unknown one.
fn header(at: u64) -> Result<(usize, i32), Errno> {
    let [version, pid]: [u32; 2] = usercopy::read(at)?;
    let words = match version {
        0x1998_0330 => 1,
        0x2007_1026 | VERSION_3 => 2,
        _ => {
            usercopy::write(at, &VERSION_3)?;
            return Err(Errno::EINVAL);
        }
    };
    Ok((words, pid as i32))
}

/// `capget(2)`.
pub fn capget(a: &Args) -> SysResult {
    let (words, pid) = match header(a.raw(0)) {
        // Asking for the version only.
        Err(Errno::EINVAL) if a.raw(1) == 0 => return Ok(0),
        result => result?,
    };
    let of = |task: &Task| task.attributes.get().capabilities;
    let sets = match u32::try_from(pid) {
        Ok(0) => of(&task::current()),
        Ok(tid) => ids::with(tid, |task: &Arc<Task>| of(task)).ok_or(Errno::ESRCH)?,
        Err(_) => return Err(Errno::EINVAL),
    };
    if a.raw(1) != 0 {
        for i in 0..words {
            let record = sets.map(|set| (set >> (32 * i)) as u32);
            usercopy::write(a.raw(1).checked_add(12 * i as u64).ok_or(Errno::EFAULT)?, &record)?;
        }
    }
    Ok(0)
}

/// `capset(2)`, of the calling thread. EPERM for what it doesn't have.
pub fn capset(a: &Args) -> SysResult {
    let (words, pid) = header(a.raw(0))?;
    let me = task::current();
    if pid != 0 && pid != me.tid() as i32 {
        return Err(Errno::EPERM);
    }
    let mut new = [0u64; 3];
    for i in 0..words {
        let record: [u32; 3] = usercopy::read(a.raw(1).checked_add(12 * i as u64).ok_or(Errno::EFAULT)?)?;
        for (set, word) in new.iter_mut().zip(record) {
            *set |= u64::from(word) << (32 * i);
        }
    }
    let [effective, permitted, inheritable] = new.map(|set| set & Attributes::ALL_CAPABILITIES);
    me.attributes.change(|now| {
        let [_, old, _] = now.capabilities;
        if permitted & !old != 0 || effective & !permitted != 0 {
            return Err(Errno::EPERM);
        }
        now.capabilities = [effective, permitted, inheritable];
        Ok(0)
    })
}
