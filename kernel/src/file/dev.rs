//! /dev: devices without hardware, and the terminal's names.

use alloc::sync::Arc;

use linux_raw_sys::general as c;

use super::{
    Result, directory,
    directory::Directory,
    entry::Entry,
    inode::{Inode, Kind, Volume},
    io::{Sink, Source, moved},
    poll::Readiness,
    random, tty,
};
use crate::{
    errno::Errno,
    options::{self, Design},
    signal,
};

/// A character device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// Takes everything, gives nothing.
    Null,
    /// Gives zeros.
    Zero,
    /// Gives zeros, has no room.
    Full,
    /// Gives random bytes; `Urandom` is the same under another number.
    Random,
    /// Gives random bytes.
    Urandom,
    /// The terminal.
    Console,
    /// The terminal, as the one that controls the process.
    Tty,
    /// Makes descriptors that page faults are read from.
    UserFaults,
    /// A number that no device stands behind, made by `mknod`.
    Unknown(u64),
}

const NAMES: [(&str, Device, u32); 7] = [
    ("null", Device::Null, 0o666),
    ("zero", Device::Zero, 0o666),
    ("full", Device::Full, 0o666),
    ("random", Device::Random, 0o666),
    ("urandom", Device::Urandom, 0o666),
    ("console", Device::Console, 0o600),
    ("tty", Device::Tty, 0o666),
];

const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// A device number in the form of `st_rdev` (glibc's `makedev`).
pub const fn number(major: u64, minor: u64) -> u64 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12) | ((major & !0xfff) << 32)
}

/// Major and minor of a device number.
pub const fn split(number: u64) -> (u32, u32) {
    let major = ((number >> 8) & 0xfff) | ((number >> 32) & !0xfff);
    let minor = (number & 0xff) | ((number >> 12) & !0xff);
    (major as u32, minor as u32)
}

impl Device {
    /// Whether it can be waited for: the terminal, and random bytes as on Linux.
    pub fn is_waitable(self) -> bool {
        self.is_terminal() || matches!(self, Device::Random | Device::Urandom)
    }
    /// `st_rdev`, with Linux's numbers.
    pub fn number(self) -> u64 {
        match self {
            Device::Null => number(1, 3),
            Device::Zero => number(1, 5),
            Device::Full => number(1, 7),
            Device::Random => number(1, 8),
            Device::Urandom => number(1, 9),
            Device::Tty => number(5, 0),
            Device::Console => number(5, 1),
            // Linux takes the next free one of its misc devices.
            Device::UserFaults => number(10, 126),
            Device::Unknown(n) => n,
        }
    }

    /// The device with this number.
    pub fn with_number(n: u64) -> Self {
        NAMES.into_iter().map(|(_, d, _)| d).find(|d| d.number() == n).unwrap_or(Device::Unknown(n))
    }

    /// Whether it is the terminal under some name.
    pub fn is_terminal(self) -> bool {
        matches!(self, Device::Console | Device::Tty)
    }

    /// ENXIO if it can't be opened.
    pub fn check_open(self) -> Result<()> {
        match self {
            Device::Unknown(_) => Err(Errno::ENXIO),
            Device::Console if !tty::exists() => Err(Errno::ENXIO),
            Device::Tty if !tty::is_ours() => Err(Errno::ENXIO),
            _ => Ok(()),
        }
    }

    /// Read into `sink`.
    pub fn read(self, sink: &mut dyn Sink, block: bool) -> Result<usize> {
        let room = sink.room();
        match self {
            Device::Null => Ok(0),
            Device::Zero | Device::Full => {
                static ZEROS: [u8; 4096] = [0; 4096];
                let mut done = 0;
                while done < room {
                    let want = (room - done).min(ZEROS.len());
                    let got = sink.put(ZEROS.get(..want).unwrap_or(&ZEROS));
                    done += got;
                    // So long a read must not keep a signal waiting.
                    if got < want || signal::pending() {
                        break;
                    }
                }
                moved(done, room, Errno::EFAULT)
            }
            Device::Random | Device::Urandom => moved(random::read(sink), room, Errno::EFAULT),
            Device::Console | Device::Tty => tty::read(sink, block),
            Device::UserFaults => Err(Errno::EINVAL),
            Device::Unknown(_) => Err(Errno::ENXIO),
        }
    }

    /// Write from `source`.
    pub fn write(self, source: &mut dyn Source) -> Result<usize> {
        match self {
            // Linux's /dev/null does not look at the bytes either.
            Device::Null | Device::Zero => Ok(source.left()),
            Device::Full => moved(0, source.left(), Errno::ENOSPC),
            Device::Random | Device::Urandom => Ok(source.left()),
            Device::Console | Device::Tty => tty::write(source),
            Device::UserFaults => Err(Errno::EINVAL),
            Device::Unknown(_) => Err(Errno::ENXIO),
        }
    }

    /// What can be done now.
    pub fn readiness(self) -> Readiness<'static> {
        if self.is_terminal() { tty::readiness() } else { Readiness::ALWAYS }
    }
}

/// A fresh /dev under `root`.
pub fn mount(root: &Arc<Entry>) -> Result<()> {
    let inode = |kind, mode| Inode::new(kind, mode, Volume::Root);
    let dev = super::mount_at(root, b"dev", inode(Kind::Directory(Directory::new()), 0o755))?;
    for (name, device, mode) in NAMES {
        directory::create(&dev, name.as_bytes(), inode(Kind::Device(device), mode))?;
    }
    if options::get().design == Design::Radix {
        directory::create(&dev, b"userfaultfd", inode(Kind::Device(Device::UserFaults), 0o600))?;
    }
    for (name, target) in LINKS {
        directory::create(&dev, name.as_bytes(), inode(Kind::Symlink(target.as_bytes().into()), 0o777))?;
    }
    directory::create(&dev, b"shm", inode(Kind::Directory(Directory::new()), 0o1777))?;
    directory::create(&dev, b"pts", inode(Kind::Directory(Directory::new()), 0o755))?;
    Ok(())
}

/// What `mknod` makes of `mode` and `device`. EINVAL for an unknown type, EPERM for a directory, ENOSYS for a socket.
pub fn node(mode: u32, device: u64) -> Result<Kind> {
    match mode & c::S_IFMT {
        0 | c::S_IFREG => Ok(Kind::File(super::store::Store::new(&[]))),
        c::S_IFCHR => Ok(Kind::Device(Device::with_number(device))),
        c::S_IFIFO => Ok(Kind::Fifo(super::pipe::Pipe::new()?)),
        c::S_IFBLK | c::S_IFSOCK => Err(Errno::ENOSYS),
        c::S_IFDIR => Err(Errno::EPERM),
        _ => Err(Errno::EINVAL),
    }
}
