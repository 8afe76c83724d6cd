//! What is refused, and what a heap's bytes can have wrong.

use std::fmt;

/// Why the heap refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// There is no room for so many bytes.
    Full {
        /// Bytes asked for.
        wanted: u64,
    },
    /// No live object begins at this offset.
    NotAllocated {
        /// The offset.
        offset: u64,
    },
    /// The memory is smaller than any heap, or larger than its page numbers reach.
    Size {
        /// Bytes of it.
        bytes: u64,
    },
    /// The bytes are not a heap.
    NoHeap,
    /// The bytes are a heap's of another size than the memory.
    OtherSize {
        /// Bytes of the heap.
        heap: u64,
        /// Bytes of the memory.
        memory: u64,
    },
    /// The heap's own records contradict each other.
    Damaged {
        /// The page that they are about.
        page: u64,
        /// The contradiction.
        what: &'static str,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { wanted } => {
                write!(f, "the heap has no room for {wanted} bytes: free something, or make it larger")
            }
            Self::NotAllocated { offset } => write!(f, "no live object begins at offset {offset}"),
            Self::Size { bytes } => write!(f, "a heap needs 4 pages to 16 TiB, not {bytes} bytes"),
            Self::NoHeap => {
                f.write_str("the memory holds no heap: it was never formatted, or by another version")
            }
            Self::OtherSize { heap, memory } => {
                write!(f, "the heap has {heap} bytes, the memory {memory}: open it with as many")
            }
            Self::Damaged { page, what } => write!(f, "the heap is damaged at page {page}: {what}"),
        }
    }
}

impl std::error::Error for Error {}
