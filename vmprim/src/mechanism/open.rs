//! A backend's mechanism for a mapping: what is opened, asked for and registered; each refusal with its step and a
//! hint.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use super::{
    Mechanism, Span,
    native::Native,
    signal::Signal,
    uffd::{Flavour, Uffd},
};
use crate::{
    access::Access,
    error::{Backend, Errno, Reason},
    sys, uapi,
    upcall::Calls,
};

fn refused(op: &'static str, hint: Option<&'static str>) -> impl Fn(Errno) -> Reason {
    move |errno| Reason::Refused { op, errno, hint }
}

const PRIVILEGE: &str =
    "set vm.unprivileged_userfaultfd=1, give CAP_SYS_PTRACE, or give access to /dev/userfaultfd";

/// Whether faults of the kernel's own accesses are to be delivered, which needs a privilege.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OfKernel {
    No,
    IfAllowed,
    Yes,
}

/// A userfaultfd with these features.
fn userfaultfd(features: u64, kernel: OfKernel, least: &'static str) -> Result<OwnedFd, Reason> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let call = |flags| sys::descriptor(uapi::SYS_USERFAULTFD, flags, 0);
    let device = || {
        let device = std::fs::File::open("/dev/userfaultfd")
            .map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EIO)))?;
        sys::ioctl_descriptor(&OwnedFd::from(device), uapi::USERFAULTFD_IOC_NEW, flags)
    };
    let full = || call(flags).or_else(|first| device().map_err(|_| first));
    let user = || call(flags | uapi::UFFD_USER_MODE_ONLY);
    let fd = match kernel {
        OfKernel::Yes => full(),
        OfKernel::IfAllowed => full().or_else(|_| user()),
        // Kernels before 5.11 do not know the flag.
        OfKernel::No => user().or_else(|first| full().map_err(|_| first)),
    };
    let fd = fd.map_err(refused("userfaultfd", Some(PRIVILEGE)))?;
    let mut api = uapi::Api { api: uapi::UFFD_API, features, ioctls: 0 };
    // SAFETY: it changes no memory.
    unsafe { sys::ioctl(fd.as_raw_fd(), uapi::UFFDIO_API, &mut api) }
        .map_err(refused("UFFDIO_API with the features needed", Some(least)))?;
    Ok(fd)
}

/// What a mapping is, for a mechanism.
#[derive(Clone, Copy, Debug)]
pub struct Ground {
    pub base: usize,
    pub len: usize,
    /// The file behind it, if it is a memfd's view.
    pub memfd: Option<RawFd>,
    /// System calls into protected pages must work.
    pub syscalls: bool,
    /// The level of all pages at first.
    pub initial: Access,
}

/// The mechanism of `backend` for a mapping.
pub fn open(backend: Backend, ground: &Ground) -> Result<Box<dyn Mechanism>, Reason> {
    if matches!(backend, Backend::Signal | Backend::Auto) {
        return Ok(Box::new(Signal { base: ground.base, len: ground.len }));
    }
    if backend == Backend::Native {
        let calls = Calls::find().ok_or(Reason::Refused {
            op: "AT_QUIRE",
            errno: Errno(libc::ENOSYS),
            hint: Some("a Quire kernel, with aspace=radix"),
        })?;
        let native = Native::new(calls, ground.base, ground.len, ground.initial);
        return Ok(Box::new(native.map_err(refused("q_region", None))?));
    }
    let flavour = if ground.memfd.is_some() { Flavour::View } else { Flavour::Anonymous };
    let sleeps = matches!(backend, Backend::UffdThread { .. });
    let tracks = backend == Backend::AsyncDirty;
    let mut features = uapi::FEATURE_PAGEFAULT_FLAG_WP | uapi::FEATURE_WP_UNPOPULATED;
    let mut mode = uapi::REGISTER_MODE_WP;
    if !sleeps {
        features |= uapi::FEATURE_SIGBUS;
    }
    if tracks {
        features |= uapi::FEATURE_WP_ASYNC;
    }
    if flavour == Flavour::View {
        features |= uapi::FEATURE_MISSING_SHMEM
            | uapi::FEATURE_MINOR_SHMEM
            | uapi::FEATURE_WP_HUGETLBFS_SHMEM
            | uapi::FEATURE_EXACT_ADDRESS;
        mode |= uapi::REGISTER_MODE_MISSING | uapi::REGISTER_MODE_MINOR;
    }
    if sleeps {
        features |= uapi::FEATURE_EXACT_ADDRESS;
    }
    let least = if tracks { "Linux 6.7 or newer" } else { "Linux 6.4 or newer" };
    let kernel = match (sleeps, ground.syscalls) {
        (false, _) => OfKernel::No,
        (true, false) => OfKernel::IfAllowed,
        (true, true) => OfKernel::Yes,
    };
    let fd = userfaultfd(features, kernel, least)?;
    let range = uapi::Range { start: ground.base as u64, len: ground.len as u64 };
    let mut register = uapi::Register { range, mode, ioctls: 0 };
    // SAFETY: the mapping is the caller's.
    unsafe { sys::ioctl(fd.as_raw_fd(), uapi::UFFDIO_REGISTER, &mut register) }
        .map_err(refused("UFFDIO_REGISTER", Some(least)))?;
    let pagemap = match tracks {
        false => None,
        true => {
            let file = std::fs::File::open("/proc/self/pagemap");
            let errno = |error: std::io::Error| {
                refused("/proc/self/pagemap", None)(Errno(error.raw_os_error().unwrap_or(0)))
            };
            Some(OwnedFd::from(file.map_err(errno)?))
        }
    };
    let pidfd = match flavour {
        Flavour::View => own_pidfd(),
        Flavour::Anonymous => None,
    };
    let uffd = Uffd { base: ground.base, fd, flavour, sleeps, pagemap, pidfd, file: ground.memfd };
    if tracks {
        // Pages that were never armed read as written: arm once, and discard.
        let all = Span { offset: 0, len: ground.len };
        uffd.scan(all, &mut |_| ()).map_err(refused("PAGEMAP_SCAN", Some("Linux 6.7 or newer")))?;
    }
    Ok(Box::new(uffd))
}

/// A descriptor of this process, if the kernel takes vectored advice through one.
fn own_pidfd() -> Option<OwnedFd> {
    // Process numbers are positive and fit.
    let pid = i32::try_from(std::process::id()).ok()?;
    let pidfd = sys::descriptor(uapi::SYS_PIDFD_OPEN, pid, 0).ok()?;
    let flags = libc::PROT_READ | libc::PROT_WRITE;
    let scratch = sys::Mapping::new(3 * sys::BASE, flags, libc::MAP_PRIVATE, None).ok()?;
    let iovec = |page: usize| libc::iovec {
        iov_base: (scratch.address + page * sys::BASE) as *mut _,
        iov_len: sys::BASE,
    };
    for page in 0..3 {
        // SAFETY: the scratch mapping is ours and readable and writable.
        unsafe { *((scratch.address + page * sys::BASE) as *mut u8) = 1 };
    }
    // SAFETY: the scratch mapping is ours.
    let done =
        unsafe { sys::advise_many(pidfd.as_fd().as_raw_fd(), &[iovec(0), iovec(2)], libc::MADV_DONTNEED) };
    // SAFETY: see above; volatile, since the call changed the bytes behind the compiler's back.
    let byte = |page: usize| unsafe { ((scratch.address + page * sys::BASE) as *const u8).read_volatile() };
    // Before Linux 6.13 a process could not advise itself so; believed only if it did just what was asked.
    (done == Ok(2 * sys::BASE) && [byte(0), byte(1), byte(2)] == [0, 1, 0]).then_some(pidfd)
}
