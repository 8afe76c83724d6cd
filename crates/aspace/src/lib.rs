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
//! A design is one file that says who is excluded while these steps run; all designs keep the steps in this order.
//! [`Locked`] is the protocol of Unix kernels: one reader-writer lock for each address space. [`model`] is the oracle
//! that the tests compare with: a map from single pages to what they are, without any cleverness.
//!
//! **The one rule**: a frame or page-table page is never reused while any CPU could still translate to it.
//!
//! ```
//! # #[cfg(not(loom))] {
//! use addr::{PageRange, Prot};
//! use aspace::{Access, AddressSpace, Backing, Error, Fault, Label, Locked, Machine, Mapping, Placement};
//! use frames::testing;
//!
//! // Nobody caches translations on this machine, so there is nothing to shoot down.
//! struct NoTlb;
//! impl tlb::Shootdown for NoTlb {
//!     fn flush(&self, _: &percpu::Pinned<'_>, _: &percpu::CpuSet, _: PageRange) {}
//! }
//!
//! let cpus = percpu::testing::Machine::new(1);
//! let machine = Machine { frames: testing::frames(256, 1), shootdown: &NoTlb, kernel_root: None };
//! cpus.on(0, |ctx| {
//!     let space = Locked::new(machine, &ctx).expect("there is memory");
//!     let rw = Prot::READ | Prot::WRITE;
//!     let area = Mapping {
//!         prot: rw,
//!         max_prot: Prot::all(),
//!         backing: Backing::Anonymous,
//!         shared: false,
//!         label: Label::None,
//!     };
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

mod locked;
mod mapping;
pub mod model;
pub mod page;

use alloc::sync::Arc;

use addr::{Frame, Page, PageRange, Prot, VirtAddr};
use frames::Frames;
use percpu::{Pinned, Unpinned};
use tlb::Shootdown;

pub use locked::Locked;
pub use mapping::{Backing, Label, Mapping, MappingInfo, Mappings, Object, ObjectError};

/// Pages below this one are never mapped at a place that the caller dictates: Linux's default `mmap_min_addr`, 64 KiB.
pub const LOWEST: u64 = 16;
/// Where automatic placement begins and goes down from, as a page: 256 MiB below the end of user space, which leaves
/// the top to the initial stack.
pub const MMAP_TOP: u64 = 0x7fff_f000_0000 >> addr::PAGE_SHIFT;
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
    /// The page lies beyond the end of its object, or can't be read: SIGBUS, BUS_ADRERR.
    BeyondObject,
    /// There is no frame for the page or for a page table.
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
}

/// What a program says about its future use of pages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Advice {
    /// The contents are not needed: private pages read as fresh ones afterwards.
    DontNeed,
    /// The pages will be used soon. Nothing is read ahead, as no object of this system is slow.
    WillNeed,
}

/// How much an address space holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Usage {
    /// Pages that are mapped.
    pub mapped_pages: u64,
    /// Pages that have a frame.
    pub resident_pages: u64,
    /// Mappings, each as long as it can be.
    pub mappings: u64,
    /// Page-table pages, the root among them.
    pub table_pages: u64,
}

/// What an address space needs of the machine that it is part of.
#[derive(Clone, Copy)]
pub struct Machine {
    /// Where frames come from.
    pub frames: &'static Frames,
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
    /// Make `pages` new pages and say where.
    ///
    /// Errors: `Invalid` (no pages; shared without an object), `Overflow`, `Denied` (`prot` beyond `max_prot`),
    /// `NoRoom`, `TooLow`, `Exists`, `NoMemory`.
    fn map(
        &self,
        at: Placement,
        pages: u64,
        mapping: Mapping,
        ctx: &Unpinned<'_>,
    ) -> Result<PageRange, Error>;
    /// Remove whatever of `range` is mapped.
    ///
    /// Errors: `Invalid`; `NoMemory` if memory is short and the range leaves a hole in the middle of a mapping.
    fn unmap(&self, range: PageRange, ctx: &Unpinned<'_>) -> Result<(), Error>;
    /// Change the protection of `range`. Contents stay, also under an empty protection.
    ///
    /// Errors: `NoMapping` at the first hole and `Denied` at the first mapping whose `max_prot` is less; what lies
    /// before stays changed. `Invalid` if the range is empty; `NoMemory` if memory is short and a mapping would have
    /// to be split, with nothing changed.
    fn protect(&self, range: PageRange, prot: Prot, ctx: &Unpinned<'_>) -> Result<(), Error>;
    /// Make `old` be `new_pages` pages, perhaps elsewhere, as `mremap(2)`: contents move along, a new tail is fresh,
    /// and says where the first page is now. An empty `old` in a shared mapping leaves that as it is and maps its
    /// object once more, from that page on.
    ///
    /// Errors: `Invalid` (no new pages; ranges that overlap; a dictated place beyond user space; an empty `old` in a
    /// private mapping), `NoMapping` (unless the pages that remain lie in one mapping), `NoRoom`, `TooLow`,
    /// `Overflow`, `NoMemory`.
    fn remap(&self, old: PageRange, new_pages: u64, to: RemapTo, ctx: &Unpinned<'_>) -> Result<Page, Error>;
    /// Take advice on `range`.
    ///
    /// Errors: `NoMapping` if there is a hole, after all mapped pages have been served; `Invalid`.
    fn advise(&self, range: PageRange, advice: Advice, ctx: &Unpinned<'_>) -> Result<(), Error>;
    /// Make it so that `access` to `va` succeeds, at least once, unless another thread interferes. The faulting
    /// processor has dropped the entry that it faulted on by itself (Intel SDM vol. 3A, 4.10.4.3), so there is
    /// nothing to flush here if rights were only raised.
    fn fault(&self, va: VirtAddr, access: Access, ctx: &Unpinned<'_>) -> Result<(), Fault>;
    /// A copy: shared mappings stay shared, private pages are the same frames until one side writes.
    ///
    /// Errors: `NoMemory`.
    fn fork(&self, ctx: &Unpinned<'_>) -> Result<Arc<dyn AddressSpace>, Error>;
    /// The end: remove everything and give back all frames. CPUs that still run the space lazily keep the root,
    /// which is freed when the last of them calls [`Self::deactivate`]; none joins any more.
    fn clear(&self, ctx: &Unpinned<'_>);
    /// This CPU joins those that are flushed. Load the root into CR3 after this, not before.
    fn activate(&self, pin: &Pinned<'_>) -> Frame;
    /// This CPU leaves those that are flushed. It has loaded another root before.
    fn deactivate(&self, pin: &Pinned<'_>);
    /// Call `f` for each mapping, ascending. `f` must not use the address space nor touch user memory.
    fn mappings(&self, ctx: &Unpinned<'_>, f: &mut dyn FnMut(&MappingInfo<'_>));
    /// What `page` shows of which object, if it lies in a shared mapping: the object's identity and the object's page.
    /// Two address spaces that answer the same share that memory. `None` for private mappings and holes.
    fn shared_page(&self, page: Page, ctx: &Unpinned<'_>) -> Option<((u64, u64), u64)>;
    /// How much it holds. Counts by walking, so for reports only.
    fn usage(&self, ctx: &Unpinned<'_>) -> Usage;
}
