//! What keeps the memory: `snap`, a forked child, or nobody.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use snap::{Codec, Folds, Gate, Mode, Snap, SnapConfig};
use vmprim::{Backend, Region};

use crate::fork::Forker;

/// How checkpoints are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By a region's traps.
    Trap,
    /// By rounds.
    PreCopy,
    /// By a forked child.
    Fork,
    /// Not at all.
    None,
}

/// What memory to keep, and how.
#[derive(Clone, Copy, Debug)]
pub struct Options<'p> {
    /// How.
    pub way: Way,
    /// Where images are.
    pub folder: &'p Path,
    /// Bytes of memory, whole pages.
    pub mem: usize,
    /// Bytes for copies.
    pub pool: usize,
    /// How pages are stored.
    pub codec: Codec,
    /// vmprim's backend.
    pub backend: Backend,
    /// Large pages, of the ways that have memory of their own.
    pub huge: bool,
}

/// A checkpoint that is durable.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Its number.
    pub epoch: u64,
    /// Pages that it is made of.
    pub pages: u64,
    /// Bytes that were written.
    pub bytes: u64,
    /// Rounds before the cut.
    pub rounds: u32,
    /// How long operations could not begin.
    pub pause: Duration,
    /// The cut alone.
    pub cut: Duration,
    /// All of it.
    pub took: Duration,
    /// Writes that waited for a buffer or a copy.
    pub waits: u64,
    /// The most memory that another process had for it, in bytes.
    pub extra: u64,
}

/// Memory of the process's own.
#[derive(Debug)]
pub struct Memory {
    base: *mut u8,
    len: usize,
}

// SAFETY: a mapping, used through atomics alone.
unsafe impl Send for Memory {}
// SAFETY: see above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Zeros.
    pub fn new(len: usize, huge: bool) -> Result<Self, String> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let both = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, both, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(format!("cannot map {len} bytes: {}", std::io::Error::last_os_error()));
        }
        let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // SAFETY: our mapping. A kernel without large pages refuses, and need not be told.
        unsafe { libc::madvise(base, len, advice) };
        Ok(Self { base: base.cast(), len })
    }

    /// Its bytes.
    ///
    /// # Safety
    /// They are not used once this is dropped.
    pub unsafe fn bytes(&self) -> pheap::Memory {
        // SAFETY: mapped until this is dropped, and nobody makes references to it.
        unsafe { pheap::Memory::new(self.base, self.len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: our mapping.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

/// Who keeps the memory.
#[derive(Debug)]
pub enum Keeper {
    /// A region with images.
    Snap(Box<Snap>),
    /// A child for each image.
    Fork(Mutex<Forker>),
    /// Nobody.
    None(Memory),
}

/// The status by which a program says that a primitive is missing.
pub const MISSING: u8 = 77;

/// Why there is no keeper.
#[derive(Debug)]
pub enum Refused {
    /// What is needed is missing on this system.
    Unsupported(String),
    /// Something else.
    Other(String),
}

impl Keeper {
    /// Open memory, with what the newest image has.
    ///
    /// # Errors
    /// A line that says what is wrong.
    pub fn open(options: &Options<'_>) -> Result<Self, Refused> {
        let mode = match options.way {
            Way::Trap => Mode::Trap,
            Way::PreCopy => Mode::PreCopy,
            Way::Fork => {
                let forker =
                    Forker::open(options.folder, options.mem, options.huge).map_err(Refused::Other)?;
                return Ok(Self::Fork(Mutex::new(forker)));
            }
            Way::None => {
                return Memory::new(options.mem, options.huge).map(Self::None).map_err(Refused::Other);
            }
        };
        let config = SnapConfig { mode, pool: options.pool, codec: options.codec };
        let region = Region::builder(options.mem).backend(options.backend);
        let snap = Snap::open(options.folder, region, config).map_err(|error| match error {
            snap::Error::Memory(vmprim::Error::Unsupported { .. }) => Refused::Unsupported(error.to_string()),
            error => Refused::Other(error.to_string()),
        })?;
        Ok(Self::Snap(Box::new(snap)))
    }

    /// The memory.
    ///
    /// # Safety
    /// It is not used once this is dropped.
    pub unsafe fn bytes(&self) -> pheap::Memory {
        match self {
            // SAFETY: mapped until the region is dropped, and nobody makes references to it; traps are resolved.
            Self::Snap(snap) => unsafe { pheap::Memory::new(snap.region().base(), snap.region().len()) },
            // SAFETY: as the caller promises; so below.
            Self::Fork(forker) => unsafe {
                forker.lock().unwrap_or_else(PoisonError::into_inner).memory.bytes()
            },
            // SAFETY: see above.
            Self::None(memory) => unsafe { memory.bytes() },
        }
    }

    /// By which mechanism.
    pub fn mechanism(&self) -> &'static str {
        match self {
            Self::Snap(snap) => snap.region().backend().name(),
            Self::Fork(_) => "fork",
            Self::None(_) => "none",
        }
    }

    /// The state that came with what was restored.
    pub fn restored(&self) -> Option<Vec<u8>> {
        match self {
            Self::Snap(snap) => snap.restored().map(|restored| restored.state.clone()),
            Self::Fork(forker) => forker.lock().unwrap_or_else(PoisonError::into_inner).restored.clone(),
            Self::None(_) => None,
        }
    }

    /// What is to be told of damaged files, once.
    pub fn take_warnings(&self) -> Vec<String> {
        match self {
            Self::Snap(snap) => snap.take_warnings(),
            _ => Vec::new(),
        }
    }

    /// Make a checkpoint; `used`, asked in the cut, are the bytes that may be other than 0.
    ///
    /// # Errors
    /// A line that says what is wrong, and what is left.
    pub fn checkpoint(
        &self,
        gate: &Gate,
        used: &dyn Fn() -> u64,
        state: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Done, String> {
        match self {
            Self::Snap(snap) => {
                let cut = snap.checkpoint(gate, state).map_err(|error| match error {
                    snap::Error::Io { .. } => {
                        format!(
                            "{error}; the image before it stands, and the next one will have what it lacks"
                        )
                    }
                    error => error.to_string(),
                })?;
                Ok(Done {
                    epoch: cut.epoch,
                    pages: cut.pages as u64,
                    bytes: cut.bytes,
                    rounds: cut.rounds,
                    pause: cut.pause,
                    cut: cut.cut,
                    took: cut.took,
                    waits: cut.waits,
                    extra: 0,
                })
            }
            Self::Fork(forker) => match forker.try_lock() {
                Ok(mut forker) => forker.checkpoint(gate, used, state),
                Err(_) => Err(snap::Error::Busy.to_string()),
            },
            Self::None(_) => Err("there are no checkpoints with --mode none: choose another".to_owned()),
        }
    }

    /// Wait for folds; what they have cost.
    pub fn finish(&self) -> Folds {
        let Self::Snap(snap) = self else { return Folds::default() };
        snap.finish_folding();
        snap.folds()
    }
}
