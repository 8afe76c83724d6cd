//! What can go wrong, and what to do about it.

use std::{fmt, io};

/// What went wrong.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file or the folder could not be read or written.
    Io {
        /// What was being done, to which file.
        what: String,
        /// What the system answered.
        error: io::Error,
    },
    /// Another checkpoint is in progress.
    Busy,
    /// Another process has the folder open.
    InUse {
        /// The folder.
        folder: String,
    },
    /// The newest image is of other memory.
    OtherMemory {
        /// The file.
        file: String,
        /// Bytes and page size that it has.
        has: (u64, u32),
        /// Bytes and page size of the region.
        region: (u64, u32),
    },
    /// There are images, and not one of them is whole.
    NothingWhole {
        /// What each file has wrong.
        reasons: Vec<String>,
    },
    /// The region has more pages than the files have numbers for.
    TooManyPages,
    /// The region's primitives.
    Memory(vmprim::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { what, error } => write!(f, "{what}: {error}"),
            Self::Busy => f.write_str("a checkpoint is in progress: wait for it to end"),
            Self::InUse { folder } => {
                write!(f, "{folder} is in use by another process: end it, or name another folder")
            }
            Self::OtherMemory { file, has, region } => write!(
                f,
                "{file} is of {} bytes in pages of {}, and the region has {} in pages of {}: open it with as many",
                has.0, has.1, region.0, region.1
            ),
            Self::NothingWhole { reasons } => write!(
                f,
                "no image is whole ({}): bring back a copy, or move the files away to begin anew",
                reasons.join("; ")
            ),
            Self::TooManyPages => f.write_str("the region has more than 2^32 pages: use larger ones"),
            Self::Memory(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            Self::Memory(error) => Some(error),
            _ => None,
        }
    }
}

impl From<vmprim::Error> for Error {
    fn from(error: vmprim::Error) -> Self {
        Self::Memory(error)
    }
}

/// An error of the system, with what was being done.
pub fn io(what: impl fmt::Display) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::Io { what: what.to_string(), error }
}
