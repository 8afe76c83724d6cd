//! Numbers and structures of the Linux interface that this crate calls, for x86-64.
//!
//! They are written out here because headers of distributions are years older than kernels. An ioctl's number says
//! how large its argument is: each is computed from the structure, so the two cannot disagree, and a test compares
//! the result with the number that kernels publish.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::{c_int, c_ulong};

/// `userfaultfd(2)`.
pub const SYS_USERFAULTFD: i64 = 323;
/// `process_madvise(2)`.
pub const SYS_PROCESS_MADVISE: i64 = 440;
/// `pidfd_open(2)`.
pub const SYS_PIDFD_OPEN: i64 = 434;

/// Only faults of user mode are delivered: what an unprivileged process may have.
pub const UFFD_USER_MODE_ONLY: c_int = 1;
/// The version of the interface that the handshake names.
pub const UFFD_API: u64 = 0xaa;

pub const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
pub const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
pub const FEATURE_SIGBUS: u64 = 1 << 7;
pub const FEATURE_MINOR_SHMEM: u64 = 1 << 10;
pub const FEATURE_EXACT_ADDRESS: u64 = 1 << 11;
pub const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
pub const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
pub const FEATURE_WP_ASYNC: u64 = 1 << 15;

pub const REGISTER_MODE_MISSING: u64 = 1;
pub const REGISTER_MODE_WP: u64 = 2;
pub const REGISTER_MODE_MINOR: u64 = 4;

pub const CONTINUE_MODE_DONTWAKE: u64 = 1;
pub const CONTINUE_MODE_WP: u64 = 2;
pub const WRITEPROTECT_MODE_WP: u64 = 1;
pub const WRITEPROTECT_MODE_DONTWAKE: u64 = 2;

pub const EVENT_PAGEFAULT: u8 = 0x12;
pub const PAGEFAULT_FLAG_WRITE: u64 = 1;

pub const PM_SCAN_WP_MATCHING: u64 = 1;
pub const PM_SCAN_CHECK_WPASYNC: u64 = 2;
pub const PAGE_IS_WRITTEN: u64 = 1 << 1;

pub const MADV_GUARD_INSTALL: c_int = 102;
pub const MADV_GUARD_REMOVE: c_int = 103;

/// Argument of `UFFDIO_API`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Api {
    pub api: u64,
    pub features: u64,
    pub ioctls: u64,
}

/// A range of addresses, in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Range {
    pub start: u64,
    pub len: u64,
}

/// Argument of `UFFDIO_REGISTER`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Register {
    pub range: Range,
    pub mode: u64,
    pub ioctls: u64,
}

/// Argument of `UFFDIO_WRITEPROTECT`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteProtect {
    pub range: Range,
    pub mode: u64,
}

/// Argument of `UFFDIO_CONTINUE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Continue {
    pub range: Range,
    pub mode: u64,
    /// Bytes done, or an error number below zero.
    pub mapped: i64,
}

/// A message of a userfaultfd; for page faults only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Message {
    pub event: u8,
    pub reserved: [u8; 7],
    pub flags: u64,
    pub address: u64,
    pub thread: u32,
    pub padding: u32,
}

/// A run of pages that `PAGEMAP_SCAN` found.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    pub start: u64,
    pub end: u64,
    pub categories: u64,
}

/// Argument of `PAGEMAP_SCAN`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Scan {
    pub size: u64,
    pub flags: u64,
    pub start: u64,
    pub end: u64,
    pub walk_end: u64,
    pub vec: u64,
    pub vec_len: u64,
    pub max_pages: u64,
    pub category_inverted: u64,
    pub category_mask: u64,
    pub category_anyof_mask: u64,
    pub return_mask: u64,
}

const fn number(direction: u64, group: u8, n: u8, size: usize) -> c_ulong {
    direction << 30 | (size as u64) << 16 | (group as u64) << 8 | n as u64
}
const NEITHER: u64 = 0;
const READ: u64 = 2;
const READ_WRITE: u64 = 3;

pub const UFFDIO_API: c_ulong = number(READ_WRITE, 0xaa, 0x3f, size_of::<Api>());
pub const UFFDIO_REGISTER: c_ulong = number(READ_WRITE, 0xaa, 0, size_of::<Register>());
pub const UFFDIO_UNREGISTER: c_ulong = number(READ, 0xaa, 1, size_of::<Range>());
pub const UFFDIO_WAKE: c_ulong = number(READ, 0xaa, 2, size_of::<Range>());
pub const UFFDIO_WRITEPROTECT: c_ulong = number(READ_WRITE, 0xaa, 6, size_of::<WriteProtect>());
pub const UFFDIO_CONTINUE: c_ulong = number(READ_WRITE, 0xaa, 7, size_of::<Continue>());
/// Of `/dev/userfaultfd`: a new descriptor.
pub const USERFAULTFD_IOC_NEW: c_ulong = number(NEITHER, 0xaa, 0, 0);
pub const PAGEMAP_SCAN: c_ulong = number(READ_WRITE, b'f', 16, size_of::<Scan>());

// What kernels publish; a structure of the wrong size does not compile.
const _: () = assert!(
    UFFDIO_API == 0xc018_aa3f
        && UFFDIO_REGISTER == 0xc020_aa00
        && UFFDIO_UNREGISTER == 0x8010_aa01
        && UFFDIO_WAKE == 0x8010_aa02
        && UFFDIO_WRITEPROTECT == 0xc018_aa06
        && UFFDIO_CONTINUE == 0xc020_aa07
        && USERFAULTFD_IOC_NEW == 0xaa00
        && PAGEMAP_SCAN == 0xc060_6610
        && size_of::<Message>() == 32
        && size_of::<Found>() == 24
);
