//! Pages that a program protects one by one: what each may be used for is its *level*, beside what its mapping allows.
//!
//! Where `mprotect` changes mappings, which are split and joined, a level is a property of a single *managed* page. It may be
//! changed for any page at the same price, however many others differ, and an access that it forbids is told from one that
//! the mapping forbids ([`Fault::Level`]); so the kernel can hand it to the program, which raises the level and goes on.
//! What was written is kept track of as well, by the dirty bits of the hardware.

use addr::{Page, PageRange, Prot};
use percpu::Unpinned;

use crate::{Access, Error, Fault};

/// What threads may do with a managed page, as far as its mapping allows it too. Ordered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Level {
    /// Nothing.
    None,
    /// Read, and fetch instructions.
    Read,
    /// Everything.
    ReadWrite,
}

impl Level {
    /// All of them, ascending.
    pub const ALL: [Level; 3] = [Level::None, Level::Read, Level::ReadWrite];

    /// The rights that a page of this level may have at most.
    pub const fn cap(self) -> Prot {
        match self {
            Level::None => Prot::empty(),
            Level::Read => Prot::READ.union(Prot::EXEC),
            Level::ReadWrite => Prot::all(),
        }
    }
    /// Whether `access` may be made. To fetch instructions of a page without a level for it is not for the program to mend.
    pub fn check(self, access: Access) -> Result<(), Fault> {
        match access {
            _ if access.allowed_by(self.cap()) => Ok(()),
            Access::Exec => Err(Fault::Denied),
            Access::Read | Access::Write => Err(Fault::Level(self)),
        }
    }
}

/// One part of a change of levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Which pages.
    pub range: PageRange,
    /// The most that they have afterwards, or the least.
    pub level: Level,
    /// Whether pages below the level are raised to it; else those above it are lowered.
    pub raise: bool,
}

impl Step {
    /// What a page of level `old` has afterwards.
    pub fn apply(&self, old: Level) -> Level {
        if self.raise { old.max(self.level) } else { old.min(self.level) }
    }
}

/// What an address space does whose pages have levels.
///
/// A page stays managed, and keeps its level, until it is unmapped or told otherwise; it moves with `remap`, and a forked
/// child has it too. Errors of all methods: `Invalid` for a range that is empty or beyond user space, or a page that isn't
/// managed; `NoMapping` for one that isn't mapped; `NoMemory`.
pub trait Managed {
    /// Give all pages of `range` this level, and keep track of what is written; or no level any more, and no track. On failure
    /// nothing has changed.
    fn manage(&self, range: PageRange, level: Option<Level>, ctx: &Unpinned<'_>) -> Result<(), Error>;
    /// Take `steps`, whose ranges ascend and have no pages in common (else `Invalid`). When this returns, nobody has more than
    /// the level of a page that was lowered, unless it was raised meanwhile. What lies before a failure is done.
    fn set_levels(&self, steps: &[Step], ctx: &Unpinned<'_>) -> Result<(), Error>;
    /// Raise the level of `page`, for this CPU's next access to it: if it has a frame the access will not fault.
    fn grant(&self, page: Page, level: Level, ctx: &Unpinned<'_>) -> Result<(), Error>;
    /// For each page of `range` that was written since the last call, set its bit (page `i`: bit `i % 64` of word `i / 64`)
    /// in `written`, whose bits are clear, and begin anew for these. A store that was over when the call began is found by this
    /// or an earlier call; one that is under way by this or a later one. Of pages that aren't managed nothing is said. What lies before a
    /// failure is done, and told.
    fn take_dirty(&self, range: PageRange, written: &mut [u64], ctx: &Unpinned<'_>) -> Result<(), Error>;
    /// The pages of `range` whose bits are set in `written` count as written again.
    fn mark_dirty(&self, range: PageRange, written: &[u64], ctx: &Unpinned<'_>) -> Result<(), Error>;
    /// The first page of `range` whose level forbids `access`, at some moment of the call.
    fn first_forbidden(&self, range: PageRange, access: Access, ctx: &Unpinned<'_>) -> Option<Page>;
}
