//! The address space: which pages a process has, what they should hold, and how they come to hold it.
//!
//! ```text
//!                 mmap munmap mprotect mremap madvise fork            page fault, copy to or from the user
//!                                   |                                             |
//!                                   v                                             v
//!      trait AddressSpace   map unmap protect remap advise fork ---------------  fault
//!                                   |                                             |
//!            exclude, then      mappings: what each page should be  <---- find, check the access
//!                                   |                                             |
//!                                   |                                  page::ensure: zero fill, object, copy
//!                                   v                                             v
//!                               page table: what each page is  <------------ insert, replace, raise
//!                                   |
//!                                   v
//!                               gather: owns what was taken out, until every CPU that runs the space is flushed
//! ```
//! A design says who is excluded while these steps run; all designs keep the steps in this order. [`Serial::locked`] is the
//! protocol of Unix kernels: one reader-writer lock for each address space. [`Serial::bonsai`] is the same for all that changes
//! mappings, but faults take no lock. [`Radix`] locks what an operation is about. [`model`] is the oracle
//! that the tests compare with: a map from single pages to what they are, without any cleverness.
//!
//! **The one rule**: a frame or page-table page is never reused while any CPU could still translate to it.
//!
//! ```
//! # #[cfg(not(loom))] {
//! use addr::{PageRange, Prot};
//! use aspace::{Access, AddressSpace, Error, Fault, Machine, Mapping, Placement, Serial, Variant};
//! use owned::testing;
//!
//! // Nobody caches translations on this machine, so there is nothing to shoot down.
//! struct NoTlb;
//! impl tlb::Shootdown for NoTlb {
//!     fn flush(&self, _: &percpu::Pinned<'_>, _: &percpu::CpuSet, _: PageRange) {}
//! }
//!
//! let cpus = percpu::testing::Machine::new(1);
//! let machine = Machine { frames: testing::memory(256, 1), shootdown: &NoTlb, kernel_root: None };
//! cpus.on(0, |ctx| {
//!     let space = Serial::locked(machine, 1, Variant::default(), &ctx).expect("there is memory");
//!     let rw = Prot::READ | Prot::WRITE;
//!     let area = Mapping::anonymous(rw);
//!     let range = space.map(Placement::Anywhere, 4, area, &ctx).expect("there is room");
//!     let va = range.start().base();
//!     assert_eq!(space.fault(va, Access::Write, &ctx), Ok(()));
//!     assert_eq!(space.fault(va, Access::Exec, &ctx), Err(Fault::Denied));
//!     assert_eq!(space.usage(&ctx).resident_pages, 1);
//!
//!     space.protect(range, Prot::empty(), &ctx).expect("all of it is mapped");
//!     assert_eq!(space.fault(va, Access::Read, &ctx), Err(Fault::Denied));
//!     space.unmap(range, &ctx).expect("a range of user pages");
//!     assert_eq!(space.fault(va, Access::Read, &ctx), Err(Fault::NoMapping));
//!     assert_eq!(space.protect(range, rw, &ctx), Err(Error::NoMapping));
//!     space.clear(&ctx);
//! });
//! # }
//! ```
#![no_std]

extern crate alloc;

mod bonsai;
mod index;
mod leaves;
mod level;
mod locked;
mod mappers;
mod mapping;
mod mappings;
pub mod model;
pub mod page;
mod plan;
mod policy;
mod radix;
mod retired;
mod rules;
mod serial;
mod watch;

use alloc::sync::Arc;
use core::{ops::Range, ptr};

use addr::{Frame, Page, PageRange, Prot, VirtAddr};
use owned::{Memory, Use};
use percpu::{CpuSet, Pinned, Unpinned};
use tlb::Shootdown;

pub use bonsai::Exclude;
pub use frames::Place;
pub use idle::Collect;
pub use level::{Level, Managed, Step};
pub use locked::{Count, Flush, Variant, Wait};
pub use mappers::{MOVES, Mapper, Mappers};
pub use mapping::{Backing, Flags, Label, Mapping, MappingInfo, Object, ObjectError, Totals};
pub use policy::{Mode, Policy, Said};
pub use radix::{FRAMES, PageTables, Radix, Realm};
pub use serial::Serial;
pub use watch::{Cause, Content, Look, Modes, Unfilled, Untransferred, Watch, Watched};

/// What is done to the entries of leaf tables, on those of a model's own (see `pagetable::steps`), and fork's gate.
#[cfg(loom)]
#[allow(missing_docs, reason = "for this crate's models")]
pub mod steps {
    pub use crate::serial::gate::Gate;
    use addr::{Page, PageRange, Prot};
    use owned::{Memory, OwnedFrame};
    use pagetable::Leaf;
    use tlb::Gather;

    use crate::{Mapping, leaves};

    pub fn share<'l>(
        from: &Leaf<'_>,
        part: PageRange,
        mapping: &Mapping,
        frames: &Memory,
        gather: &mut Gather<'_>,
        to: impl FnOnce() -> Option<Leaf<'l>>,
    ) -> Option<u64> {
        leaves::share(from, part, mapping, frames, gather, to)
    }
    pub fn still_has(leaf: &Leaf<'_>, at: Page, old: &OwnedFrame) -> bool {
        leaves::still_has(leaf, at, old)
    }
    pub fn replace(
        leaf: &Leaf<'_>,
        at: Page,
        [old, new]: [OwnedFrame; 2],
        rights: Prot,
        gather: &mut Gather<'_>,
        flush: impl FnOnce(&mut Gather<'_>),
    ) {
        leaves::replace(leaf, at, old, new, rights, gather, flush);
    }
}

/// Pages below this one are never mapped at a place that the caller dictates: Linux's default `mmap_min_addr`, 64 KiB.
pub const LOWEST: u64 = 16;
/// Where automatic placement begins and goes down from, as a page: 256 MiB below the end of user space, which leaves
/// the top to the initial stack.
pub const MMAP_TOP: u64 = 0x7fff_f000_0000 >> addr::PAGE_SHIFT;
/// Pages that stay free below a mapping that grows down: Linux's `stack_guard_gap`, 1 MiB.
pub const STACK_GAP: u64 = 256;
/// Where `MAP_32BIT` places, as pages: 1 GiB to 2 GiB, bottom up, as Linux does.
pub const LOW_WINDOW: core::ops::Range<u64> = 0x4_0000..0x8_0000;

/// What an instruction does to a page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Exec,
}

impl Access {
    /// Whether `prot` allows it. On x86-64 a page that may be written or executed may also be read.
    pub const fn allowed_by(self, prot: Prot) -> bool {
        match self {
            Access::Read => !prot.is_empty(),
            Access::Write => prot.contains(Prot::WRITE),
            Access::Exec => prot.contains(Prot::EXEC),
        }
    }
}

/// Why an access can't be made good.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fault {
    /// No mapping covers the address: SIGSEGV, SEGV_MAPERR.
    NoMapping,
    /// The mapping does not allow the access: SIGSEGV, SEGV_ACCERR.
    Denied,
    /// The page is a guard: SIGSEGV, SEGV_MAPERR, as for no mapping.
    Guard,
    /// The page's contents are lost, as its watcher has said ([`Content::Lost`]): SIGBUS, BUS_MCEERR_AR.
    Poisoned,
    /// The mapping allows the access, and the page's [`Level`] does not: an upcall, or SIGSEGV, SEGV_ACCERR.
    Level(Level),
    /// Its watcher is to be told first ([`Watched::told`]).
    Watched,
    /// The page lies beyond the end of its object, or can't be read: SIGBUS, BUS_ADRERR.
    BeyondObject,
    /// There is no frame for the page or for a page table.
    NoMemory,
}

/// Why a page keeps the frame that it has ([`AddressSpace::move_page`]).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Unmoved {
    /// No mapping covers it, or it is a guard.
    NoMapping,
    /// It has no frame.
    Empty,
    /// Its frame is an object's.
    Object,
    /// Others have it too.
    Shared,
    /// Something happened to it meanwhile.
    Busy,
    /// There is no frame where it is to be.
    NoMemory,
}

/// Why an operation was refused. A refused operation has changed nothing, but for [`AddressSpace::protect`] and
/// [`AddressSpace::advise`], which say so.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Error {
    /// Memory is short: ENOMEM.
    NoMemory,
    /// No place is large enough, or the range does not end below the end of user space: ENOMEM.
    NoRoom,
    /// A page of the range isn't mapped: ENOMEM of `mprotect` and `madvise`, EFAULT of `mremap`.
    NoMapping,
    /// The place is taken: EEXIST of MAP_FIXED_NOREPLACE.
    Exists,
    /// Arguments that make no sense: EINVAL.
    Invalid,
    /// A protection beyond the mapping's `max_prot`: EACCES.
    Denied,
    /// A dictated place below [`LOWEST`]: EPERM.
    TooLow,
    /// The object's page index would not fit into 64 bits: EOVERFLOW.
    Overflow,
    /// More pages than [`Limits::pages`], [`Limits::data`] or [`Limits::stack`] allows: ENOMEM.
    Limit,
    /// More locked pages than [`Limits::locked`] allows: ENOMEM of `mlock`, EAGAIN of `mmap` and `mremap`.
    LockLimit,
    /// The object is sealed against writing: EPERM.
    Sealed,
}

/// How much an address space may hold, in pages: the caller's resource limits at the time of a call. They are checked
/// together with what the call does, under the same lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Mapped: RLIMIT_AS.
    pub pages: u64,
    /// Private and writable: RLIMIT_DATA.
    pub data: u64,
    /// In one mapping that grows down: RLIMIT_STACK.
    pub stack: u64,
    /// Locked: RLIMIT_MEMLOCK.
    pub locked: u64,
}

impl Limits {
    /// No limits.
    pub const NONE: Limits = Limits { pages: u64::MAX, data: u64::MAX, stack: u64::MAX, locked: u64::MAX };

    /// Whether a space that holds `now` may hold `more` pages of `mapping` too: `Limit`, `LockLimit`.
    pub fn admit(&self, now: &Totals, mapping: &Mapping, more: u64) -> Result<(), Error> {
        if mapping.flags.contains(Flags::LOCKED) && now.locked.saturating_add(more) > self.locked {
            return Err(Error::LockLimit);
        }
        let data = mapping.is_data() && now.data.saturating_add(more) > self.data;
        if data || now.pages.saturating_add(more) > self.pages { Err(Error::Limit) } else { Ok(()) }
    }
}

/// Where a new mapping goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Placement {
    /// The highest gap below [`MMAP_TOP`] that is large enough, else the highest above it.
    Anywhere,
    /// There if that is free, else anywhere. A hint below [`LOWEST`] means [`LOWEST`].
    Hint(Page),
    /// There; what was mapped there is unmapped in the same step.
    Fixed(Page),
    /// There, or [`Error::Exists`] if a page of it is mapped.
    FixedNoReplace(Page),
    /// The lowest gap in [`LOW_WINDOW`].
    Below32Bit,
    /// There if that is free and ends at or below [`LOW_WINDOW`]'s end, else the lowest gap in it.
    HintBelow32Bit(Page),
}

/// Where [`AddressSpace::remap`] may put the pages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RemapTo {
    /// Only where they are.
    InPlace,
    /// Where they are if they fit there, else anywhere.
    MayMove,
    /// There; what was mapped there is unmapped in the same step.
    Fixed(Page),
    /// There if that is free, else anywhere; only for pages that have to move.
    Hint(Page),
}

/// What a program says about its future use of pages. Mappings are split where advice about them begins and ends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Advice {
    /// The contents are not needed: private pages read as fresh ones afterwards. `Invalid` for locked mappings.
    DontNeed,
    /// The same, locked or not.
    DontNeedLocked,
    /// Private anonymous contents are not needed, and may or may not be there until the next store. Here they go at
    /// once. `Invalid` for all other mappings, and for locked ones.
    Free,
    /// The pages will be used soon. Nothing is read ahead, as no object of this system is slow.
    WillNeed,
    /// The pages will not be used soon. Nothing is done, as there is nowhere else to keep them. `Invalid` for locked
    /// mappings.
    Cold,
    /// Set the first and clear the second of these flags. WIPE_ON_FORK is `Invalid` but for private anonymous mappings.
    Flags(Flags, Flags),
    /// Where the pages are to be. Unlike other advice this changes nothing if there is a hole: `NoMapping`; but the
    /// default policy is given to whatever is mapped, if anything is.
    Place(Policy),
    /// Drop the contents, and refuse every access from here on, mapped or not, without splitting the mapping. A guard is the
    /// page's: it stays under other advice and rights, and when its object shrinks; it moves with the page, is inherited
    /// unless the page is wiped, and goes with it. `Invalid` for locked mappings, and the kernel's own.
    InstallGuards,
    /// Take guards away; what has none stays as it is. `Invalid` for the kernel's own mappings.
    RemoveGuards,
}

/// What `mlock` and its kin ask for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lock {
    /// Not locked.
    Off,
    /// Locked; the caller brings the pages in.
    Now,
    /// Locked once they are used.
    OnFault,
}

impl Lock {
    /// The flags of a mapping that is locked like this.
    pub fn flags(self) -> Flags {
        match self {
            Lock::Off => Flags::empty(),
            Lock::Now => Flags::LOCKED,
            Lock::OnFault => Flags::LOCKED | Flags::ON_FAULT,
        }
    }
}

/// How much an address space holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Pages that are mapped.
    pub mapped_pages: u64,
    /// Pages that have a frame.
    pub resident_pages: u64,
    /// The most that ever had one at once.
    pub peak_resident: u64,
    /// Mappings, each as long as it can be.
    pub mappings: u64,
    /// Page-table pages, the root among them.
    pub table_pages: u64,
    /// Mapped pages by what they count as.
    pub totals: Totals,
}

/// A page that has a frame, or a guard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resident {
    /// The frame; `None` for a guard, and where the contents are lost.
    pub frame: Option<Frame>,
    /// For what the frame is counted: anonymous, or an object's; or lent by one.
    pub usage: Use,
    /// How many other owners the frame has: entries elsewhere, and its object if it belongs to one. What is
    /// [lent](Use::Lent) has none: [`Mappers::shown`] knows how often it is.
    pub sharers: u64,
    /// Whether it was used since it was brought in.
    pub accessed: bool,
    /// Whether it was stored to.
    pub dirty: bool,
    /// Whether it is protected from stores for its watcher ([`Watched`]).
    pub protected: bool,
    /// Whether its contents are lost ([`Fault::Poisoned`]).
    pub poisoned: bool,
}

/// A page while nobody can change it, as [`AddressSpace::audit`] shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Audited {
    /// Which page.
    pub page: Page,
    /// The frame that the page has. Whoever translates the page does so to this one.
    pub frame: Option<Frame>,
    /// The most that a translation may grant.
    pub rights: Prot,
    /// The CPUs that would be asked to forget the page. Whoever translates it is among them.
    pub cpus: CpuSet,
}

/// What [`AddressSpace::inspect`] sees, in ascending order.
#[derive(Debug)]
pub enum Seen<'a> {
    /// A mapping that has pages in the range, cut to it.
    Mapping(&'a MappingInfo<'a>),
    /// A page of that mapping with a frame or a guard.
    Page(Page, Resident),
}

/// What an address space needs of the machine that it is part of.
#[derive(Clone, Copy)]
pub struct Machine {
    /// Where frames come from.
    pub frames: &'static Memory,
    /// How CPUs are made to forget translations.
    pub shootdown: &'static dyn Shootdown,
    /// The root whose upper half every address space shares, if the machine has one.
    pub kernel_root: Option<Frame>,
}

/// One process's memory.
///
/// Every operation is atomic towards every other on the same pages: each takes effect at one instant between call
/// and return. Ranges are of pages; an empty one, or one that does not end at or below
/// [`addr::USER_END_PAGE`], is refused.
///
/// [`Self::clear`] must be the last operation before the last reference is dropped.
pub trait AddressSpace: Send + Sync {
    /// Make `pages` new pages within `limits` and say where, and whether they are to be brought in (`mlockall` may have
    /// asked for it).
    ///
    /// Errors: `Invalid` (no pages; shared without an object), `Overflow`, `Denied` (`prot` beyond `max_prot`),
    /// `NoRoom`, `TooLow`, `Exists`, `LockLimit`, `Sealed`, `Limit`, `NoMemory`.
    fn map_within(
        &self,
        at: Placement,
        pages: u64,
        mapping: &Mapping,
        limits: &Limits,
        ctx: &Unpinned<'_>,
    ) -> Result<(PageRange, bool), Error>;
    /// As [`Self::map_within`], without limits.
    fn map(
        &self,
        at: Placement,
        pages: u64,
        mapping: Mapping,
        ctx: &Unpinned<'_>,
    ) -> Result<PageRange, Error> {
        self.map_within(at, pages, &mapping, &Limits::NONE, ctx).map(|(range, _)| range)
    }
    /// Remove whatever of `range` is mapped.
    ///
    /// Errors: `Invalid`; `NoMemory` if memory is short and the range leaves a hole in the middle of a mapping.
    fn unmap(&self, range: PageRange, ctx: &Unpinned<'_>) -> Result<(), Error>;
    /// Remove those parts of `range` that show the object `identity` as a mapping of it from its page 0 on at the range's
    /// start would (`shmdt`), all at one instant; what else is mapped there stays. Whether there were any.
    ///
    /// Errors: `Invalid`; `NoMemory` if memory is short and a part leaves a hole in the middle of a mapping.
    fn unmap_object(&self, range: PageRange, identity: (u64, u64), ctx: &Unpinned<'_>)
    -> Result<bool, Error>;
    /// Change the protection of `range`. Contents stay, also under an empty protection. `down`: begin where the lowest
    /// mapping of the range begins, which must grow down (PROT_GROWSDOWN).
    ///
    /// Errors: `NoMapping` at the first hole, `Denied` at the first mapping whose `max_prot` is less, `Limit` at the
    /// first that would be too much data; what lies before stays changed. `Invalid` if the range is empty, or `down`
    /// and the mapping doesn't grow; `NoMemory` if memory is short: with nothing changed if a mapping would have to be
    /// split, else with what lies before changed.
    fn protect_within(
        &self,
        range: PageRange,
        prot: Prot,
        down: bool,
        limits: &Limits,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error>;
    /// As [`Self::protect_within`], without limits and `down`.
    fn protect(&self, range: PageRange, prot: Prot, ctx: &Unpinned<'_>) -> Result<(), Error> {
        self.protect_within(range, prot, false, &Limits::NONE, ctx)
    }
    /// Make `old` be `new_pages` pages within `limits`, perhaps elsewhere, as `mremap(2)`: contents move along, a new
    /// tail is fresh, and says where the first page is now. An empty `old` in a shared mapping leaves that as it is and
    /// maps its object once more, from that page on. `keep`: pages that move leave their mapping behind, empty and not
    /// locked (MREMAP_DONTUNMAP); the length stays.
    ///
    /// Errors: `Invalid` (no new pages; ranges that overlap; a dictated place beyond user space; an empty `old` in a
    /// private mapping; `keep` with another length or in place), `NoMapping` (unless the pages that remain lie in one
    /// mapping), `NoRoom`, `TooLow`, `Overflow`, `LockLimit`, `Limit`, `NoMemory`.
    fn remap_within(
        &self,
        old: PageRange,
        new_pages: u64,
        to: RemapTo,
        keep: bool,
        limits: &Limits,
        ctx: &Unpinned<'_>,
    ) -> Result<Page, Error>;
    /// As [`Self::remap_within`], without limits and `keep`.
    fn remap(&self, old: PageRange, new_pages: u64, to: RemapTo, ctx: &Unpinned<'_>) -> Result<Page, Error> {
        self.remap_within(old, new_pages, to, false, &Limits::NONE, ctx)
    }
    /// Take advice on `range`, mapping by mapping.
    ///
    /// Errors: `Invalid` at the first mapping that the advice is not for; what lies before is done. `NoMapping` if there
    /// is a hole, after all mapped pages have been served. `NoMemory`: a guard needs a page table, or memory is short
    /// and a mapping would have to be split.
    fn advise(&self, range: PageRange, advice: Advice, ctx: &Unpinned<'_>) -> Result<(), Error>;
    /// Lock or unlock `range`.
    ///
    /// Errors: `LockLimit`; `NoMapping` at the first hole, with what lies before done; `Invalid`; `NoMemory`.
    fn lock(&self, range: PageRange, lock: Lock, limits: &Limits, ctx: &Unpinned<'_>) -> Result<(), Error>;
    /// Lock or unlock everything that is mapped (`now`), and all that will be (`future`); `None` leaves that as it is.
    ///
    /// Errors: `LockLimit`; `NoMemory`, with some of it done.
    fn lock_all(
        &self,
        now: Option<Lock>,
        future: Option<Lock>,
        limits: &Limits,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error>;
    /// Make the stack above `va`, which no mapping covers, grow down to it.
    ///
    /// Errors: `NoMapping` if the next mapping is no stack, is too far away, or what is below is too near.
    fn grow(&self, va: VirtAddr, limits: &Limits, ctx: &Unpinned<'_>) -> Result<(), Error>;
    /// Make it so that `access` to `va` succeeds, at least once, unless another thread interferes. The faulting
    /// processor has dropped the entry that it faulted on by itself (Intel SDM vol. 3A, 4.10.4.3), so there is
    /// nothing to flush here if rights were only raised.
    ///
    /// A frame that is needed comes from where the mapping's policy says, or else `policy`, the caller's own.
    fn fault_by(
        &self,
        policy: &Policy,
        va: VirtAddr,
        access: Access,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Fault>;
    /// As [`Self::fault_by`], by one who has no policy.
    fn fault(&self, va: VirtAddr, access: Access, ctx: &Unpinned<'_>) -> Result<(), Fault> {
        self.fault_by(&Policy::DEFAULT, va, access, ctx)
    }
    /// Put the contents of `at`, a private page that has a frame of its own, into a frame at `place`; nothing to do if
    /// `wanted` says yes to the one that it has. A new frame to which `wanted` says no is not taken: `NoMemory`.
    ///
    /// Errors: all of [`Unmoved`]. The page is then as before, and needs a fault before the next store.
    fn move_page(
        &self,
        at: Page,
        place: Place,
        wanted: &dyn Fn(Frame) -> bool,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Unmoved>;
    /// A copy: shared mappings stay shared, private pages are the same frames until one side writes.
    ///
    /// Errors: `NoMemory`.
    fn fork(&self, ctx: &Unpinned<'_>) -> Result<Arc<dyn AddressSpace>, Error>;
    /// The end: remove everything and give back all frames. CPUs that still run the space lazily keep the root,
    /// which is freed when the last of them calls [`Self::deactivate`]; none joins any more.
    fn clear(&self, ctx: &Unpinned<'_>);
    /// Memory is short: give back page tables that can be made again, also if they are in use. What the hardware has noted in
    /// them of pages' use is forgotten.
    fn shed(&self, _ctx: &Unpinned<'_>) {}
    /// This CPU joins those that are flushed. Load the root into CR3 after this, not before.
    fn activate(&self, pin: &Pinned<'_>) -> Frame;
    /// This CPU leaves those that are flushed. It has loaded another root before.
    fn deactivate(&self, pin: &Pinned<'_>);
    /// Call `f` for each mapping, ascending. `f` must not use the address space nor touch user memory.
    fn mappings(&self, ctx: &Unpinned<'_>, f: &mut dyn FnMut(&MappingInfo<'_>)) {
        if let Some(all) = PageRange::new(Page::default(), addr::USER_END_PAGE) {
            self.areas(all, ctx, f);
        }
    }
    /// Call `f` for each mapping that has pages in `range`, each whole, ascending; as [`Self::mappings`].
    fn areas(&self, range: PageRange, ctx: &Unpinned<'_>, f: &mut dyn FnMut(&MappingInfo<'_>));
    /// Call `f` for each mapping that has pages in `range`, cut to it, and after it for each of its pages there that has a
    /// frame or a guard, ascending. `f` must not sleep, use the address space nor touch user memory.
    fn inspect(&self, range: PageRange, ctx: &Unpinned<'_>, f: &mut dyn FnMut(Seen<'_>));
    /// Call `f` for each page of `range` that has a frame or a guard, ascending, as [`Self::inspect`], without a look at mappings.
    fn pages(&self, range: PageRange, ctx: &Unpinned<'_>, f: &mut dyn FnMut(Page, Resident));
    /// For checkers: look at each page of `range` while nobody can change it, panic if a page table has an entry that the
    /// design forbids, and call `f` with what processors may have of the page. `f` must not use the address space.
    fn audit(&self, range: PageRange, ctx: &Unpinned<'_>, f: &mut dyn FnMut(&Audited));
    /// The pages from the first of `within` on that lie in one mapping, as far as `within` goes, and what it says of them; `None` if the
    /// first lies in none. What it costs grows with these pages, not with the mapping.
    fn find(&self, within: PageRange, ctx: &Unpinned<'_>) -> Option<(PageRange, Mapping)>;
    /// What `page` shows of which object, if it lies in a shared mapping: the object's identity and the object's page.
    /// Two address spaces that answer the same share that memory. `None` for private mappings and holes.
    fn shared_page(&self, page: Page, ctx: &Unpinned<'_>) -> Option<((u64, u64), u64)>;
    /// How much it holds. Counts by walking, so for reports only.
    fn usage(&self, ctx: &Unpinned<'_>) -> Usage;
    /// Pages with levels of their own, if the design has such.
    fn managed(&self) -> Option<&dyn Managed> {
        None
    }
    /// Mappings that are watched, if the design has such.
    fn watched(&self) -> Option<&dyn Watched> {
        None
    }
    /// The most pages that were in memory at once, as [`Usage::peak_resident`].
    fn peak_resident(&self, ctx: &Unpinned<'_>) -> u64 {
        self.usage(ctx).peak_resident
    }
    /// Call `f` with the name and the addresses of each part of this value that is worth a name (an empty one for the
    /// whole), for reports that name memory. Parts may contain each other.
    fn places(&self, f: &mut dyn FnMut(&'static str, Range<usize>)) {
        let start = ptr::from_ref(self).addr();
        f("", start..start + size_of_val(self));
    }
}
