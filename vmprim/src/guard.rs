//! Guard pages that are no mappings: `MADV_GUARD_INSTALL`, from Linux 6.13.
//!
//! A guarded page traps at any access like one that was never mapped, but costs an entry in the page table and no
//! mapping, so there may be millions. It has no level: it is for the ends of things, not for regions.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::OnceLock;

use crate::{
    error::{Errno, Reason},
    sys, uapi,
};

/// Whether guards work here, by trying: the guard must trap, its neighbours must not.
///
/// # Errors
/// Why not.
pub fn works() -> Result<(), Reason> {
    static RESULT: OnceLock<Result<(), Reason>> = OnceLock::new();
    RESULT.get_or_init(probe).clone()
}

fn probe() -> Result<(), Reason> {
    let refused = |op| move |errno| Reason::Refused { op, errno, hint: Some("Linux 6.13 or newer") };
    let both = libc::PROT_READ | libc::PROT_WRITE;
    let scratch = sys::Mapping::new(3 * sys::BASE, both, libc::MAP_PRIVATE, None).map_err(refused("mmap"))?;
    let page = |n: usize| scratch.address + n * sys::BASE;
    // SAFETY: the middle of our scratch mapping.
    unsafe { install(page(1), sys::BASE) }.map_err(refused("MADV_GUARD_INSTALL"))?;
    if !(can_be_read(page(0)) && !can_be_read(page(1)) && can_be_read(page(2))) {
        return Err(Reason::Behaviour("a guard does not trap, or its neighbour does"));
    }
    // SAFETY: see above.
    unsafe { remove(page(1), sys::BASE) }.map_err(refused("MADV_GUARD_REMOVE"))?;
    if can_be_read(page(1)) { Ok(()) } else { Err(Reason::Behaviour("a guard stays")) }
}

/// Whether the byte at `address` can be read, asked of the kernel: no signal is raised.
fn can_be_read(address: usize) -> bool {
    let mut ends = [0; 2];
    // SAFETY: the array holds both descriptors, which are closed; the kernel checks the address.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return false;
        }
        let done = libc::write(ends[1], address as *const _, 1);
        for end in ends {
            libc::close(end);
        }
        done == 1
    }
}

/// Make whole pages guards; what was in them is gone.
///
/// # Errors
/// What the kernel answered.
///
/// # Safety
/// The bytes are the caller's, private and anonymous, and nobody uses them.
pub unsafe fn install(address: usize, len: usize) -> Result<(), Errno> {
    // SAFETY: as the caller says.
    unsafe { sys::madvise(address, len, uapi::MADV_GUARD_INSTALL) }
}

/// Make guards memory again, of zeros.
///
/// # Errors
/// What the kernel answered.
///
/// # Safety
/// As [`install`].
pub unsafe fn remove(address: usize, len: usize) -> Result<(), Errno> {
    // SAFETY: as the caller says.
    unsafe { sys::madvise(address, len, uapi::MADV_GUARD_REMOVE) }
}
