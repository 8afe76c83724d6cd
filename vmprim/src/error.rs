//! What can be asked of a region, which backend gives it, and how a refusal is said.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fmt, ops};

use crate::access::PageNo;

/// A mechanism of the kernel that protects pages and delivers faults; [`crate::doctor`] says which there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// The best one that meets the needs.
    Auto,
    /// `mprotect` and SIGSEGV: all levels, any backing, on any kernel; each isolated page costs up to two mappings.
    Signal,
    /// Write protection by userfaultfd of anonymous memory, delivered as SIGBUS: Read and ReadWrite.
    UffdWp,
    /// Minor faults and write protection by userfaultfd of a memfd, delivered as SIGBUS: all levels, no mapping is
    /// split.
    UffdView,
    /// Userfaultfd with faults read from its descriptor by this many threads: system calls into protected pages wait
    /// for the handler.
    UffdThread {
        /// Threads that read faults and call handlers.
        threads: usize,
    },
    /// The kernel resolves first writes by itself and reports them when asked: None and ReadWrite, DIRTY without
    /// traps.
    AsyncDirty,
    /// Levels that a Quire kernel keeps of each page: all of them, on any memory; faults arrive without a signal, system calls
    /// into protected pages raise them and start over, DIRTY without traps.
    Native,
}

impl Backend {
    /// Its name, as `VMPRIM_BACKEND` and reports have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Signal => "signal",
            Self::UffdWp => "uffd-wp",
            Self::UffdView => "uffd-view",
            Self::UffdThread { .. } => "uffd-thread",
            Self::AsyncDirty => "async-dirty",
            Self::Native => "native",
        }
    }
    /// All that can be asked for by name.
    pub const ALL: [Self; 6] = [
        Self::Signal,
        Self::UffdWp,
        Self::UffdView,
        Self::UffdThread { threads: 1 },
        Self::AsyncDirty,
        Self::Native,
    ];

    /// The backend of this name, `auto` among them.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().chain([Self::Auto]).find(|one| one.name() == name)
    }

    /// All names, for a message.
    pub fn names() -> String {
        Self::ALL.into_iter().chain([Self::Auto]).map(Self::name).collect::<Vec<_>>().join(", ")
    }
}

/// What a program asks of a region, beyond traps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Needs(u32);

impl Needs {
    /// Nothing beyond traps.
    pub const NOTHING: Self = Self(0);
    /// A second mapping of the same frames: MAP2.
    pub const ALIAS: Self = Self(1);
    /// Dirty sets.
    pub const DIRTY: Self = Self(2);
    /// System calls that are given protected pages go through, without `pin`.
    pub const SYSCALLS: Self = Self(4);
    /// The level [`Access::None`](crate::Access::None).
    pub const NONE_LEVEL: Self = Self(8);
    /// The level [`Access::Read`](crate::Access::Read).
    pub const READ_LEVEL: Self = Self(16);

    const NAMES: [(Self, &'static str); 5] = [
        (Self::ALIAS, "ALIAS"),
        (Self::DIRTY, "DIRTY"),
        (Self::SYSCALLS, "SYSCALLS"),
        (Self::NONE_LEVEL, "NONE_LEVEL"),
        (Self::READ_LEVEL, "READ_LEVEL"),
    ];

    /// Whether all of `other` is in it.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
    /// What is in it and not in `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    /// Whether nothing is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl ops::BitOr for Needs {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Self::NAMES.iter().filter(|(need, _)| self.contains(*need)).map(|(_, name)| *name);
        match names.collect::<Vec<_>>().join(" + ") {
            names if names.is_empty() => f.write_str("traps"),
            names => f.write_str(&names),
        }
    }
}

/// An error number of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

/// Why a backend was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It cannot give these, on any kernel.
    Lacks(Needs),
    /// It cannot work on this backing, on any kernel.
    Backing(&'static str),
    /// The kernel refused this step.
    Refused {
        /// The step.
        op: &'static str,
        /// What the kernel answered.
        errno: Errno,
        /// What to set so that it would not, where that is known.
        hint: Option<&'static str>,
    },
    /// The kernel took the calls, but memory did not behave as it must.
    Behaviour(&'static str),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lacks(needs) => write!(f, "cannot give {needs}"),
            Self::Backing(why) => f.write_str(why),
            Self::Refused { op, errno, hint } => {
                write!(f, "{op}: {errno}")?;
                hint.map_or(Ok(()), |hint| write!(f, " ({hint})"))
            }
            Self::Behaviour(what) => write!(f, "does not work here: {what}"),
        }
    }
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// No backend gives all that was asked for.
    Unsupported {
        /// What none of those that work here gives; empty if none works at all.
        missing: Needs,
        /// Each that came into question, and why it was not taken.
        tried: Vec<(Backend, Reason)>,
    },
    /// The environment variable `VMPRIM_BACKEND` names no backend.
    NoSuchBackend {
        /// What it says.
        name: String,
    },
    /// The operation is not among those that the region's backend has.
    Lacks {
        /// The backend.
        backend: Backend,
        /// What it would need.
        needs: Needs,
    },
    /// Protecting more pages apart from their neighbours would come too near to `vm.max_map_count`.
    VmaBudget {
        /// Mappings that the process has.
        used: usize,
        /// How many it may have.
        limit: usize,
    },
    /// The page is pinned.
    Pinned {
        /// The first such page.
        page: PageNo,
    },
    /// Somebody has replaced our handler of this signal; see [`crate::claim_signals`].
    HandlerReplaced {
        /// The signal.
        signal: i32,
    },
    /// Pages or bytes outside of the region, a length of 0, or a size that is not whole pages.
    Range,
    /// A handler failed with this code and the region was told to go on.
    Poisoned {
        /// What the handler said.
        code: i32,
    },
    /// The region belongs to the process before the fork.
    Forked,
    /// A call of the kernel failed.
    Os {
        /// The call.
        op: &'static str,
        /// What the kernel answered.
        errno: Errno,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported { missing, tried } => {
                match missing.is_empty() {
                    true => write!(f, "no backend gives all of it at once")?,
                    false => write!(f, "no backend that works here gives {missing}")?,
                }
                tried.iter().try_for_each(|(backend, why)| write!(f, "; {}: {why}", backend.name()))
            }
            Self::NoSuchBackend { name } => {
                write!(f, "VMPRIM_BACKEND names no backend {name:?}: there is {}", Backend::names())
            }
            Self::Lacks { backend, needs } => write!(f, "{} has no {needs}", backend.name()),
            Self::VmaBudget { used, limit } => write!(
                f,
                "{used} of {limit} mappings are in use: raise vm.max_map_count, or use the backend uffd-view"
            ),
            Self::Pinned { page } => write!(f, "page {} is pinned", page.0),
            Self::HandlerReplaced { signal } => write!(f, "the handler of signal {signal} was replaced"),
            Self::Range => f.write_str("not pages of the region"),
            Self::Poisoned { code } => write!(f, "a handler failed with code {code}"),
            Self::Forked => f.write_str("the region belongs to the parent process"),
            Self::Os { op, errno } => write!(f, "{op}: {errno}"),
        }
    }
}

impl std::error::Error for Error {}
