//! What a page should be.

use alloc::{sync::Arc, vec::Vec};
use core::{fmt, marker::PhantomData, mem::ManuallyDrop, ops::Deref, ptr};

use addr::{PAGE_BYTES, PageRange, Prot};
use owned::{Memory, OwnedFrame};
use percpu::{Pinned, Unpinned};

use crate::{Mappers, Policy, Said, Watch};

/// Why an object has no page to give.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ObjectError {
    /// The object ends before this page.
    BeyondEnd,
    /// No frame is free.
    NoMemory,
    /// The page can't be read.
    Io,
    /// The object is sealed against it.
    Sealed,
}

/// Something with pages that can be mapped: a file, or memory shared by processes.
///
/// Two mappings are parts of one only if their objects are the same `Arc`.
pub trait Object: Send + Sync {
    /// A share of the frame that holds page `index`; if it has none yet, one where `policy` wants that page. May sleep;
    /// the caller holds the address space's lock, so it must not touch user memory.
    fn page(
        &self,
        index: u64,
        policy: &Policy,
        frames: &Memory,
        ctx: &Unpinned<'_>,
    ) -> Result<OwnedFrame, ObjectError>;
    /// The same frame, [lent](Memory::lend) to a mapping of the object: for who says by [`Self::mappers`] who maps it, and gives
    /// up no share of a frame that it has lent until these have been [cut](Mappers::cut), or the object ends. Others share it.
    fn lend(
        &self,
        index: u64,
        policy: &Policy,
        frames: &Memory,
        ctx: &Unpinned<'_>,
    ) -> Result<OwnedFrame, ObjectError> {
        self.page(index, policy, frames, ctx)
    }
    /// What [`Self::lend`] or, if not `lent`, [`Self::page`] would give, if it can be had without sleeping: for who is in a section,
    /// in which the object stays. Who gets nothing asks for it outside. By default there is nothing.
    fn at_hand(&self, _index: u64, _lent: bool, _frames: &Memory, _pin: &Pinned<'_>) -> Option<OwnedFrame> {
        None
    }
    /// Device and inode number, for `/proc/self/maps`.
    fn identity(&self) -> (u64, u64);
    /// Name, for `/proc/self/maps`.
    fn path(&self) -> Vec<u8>;
    /// Who maps it, if its pages can go away while they are mapped.
    fn mappers(&self) -> Option<&Mappers> {
        None
    }
    /// Whether new shared mappings may write it.
    fn is_writable(&self) -> bool {
        true
    }
    /// Whether it is memory that processes share, rather than a file; for reports.
    fn is_memory(&self) -> bool {
        false
    }
    /// Whether page `index` needs no reading; for reports.
    fn is_resident(&self, _index: u64, _ctx: &Unpinned<'_>) -> bool {
        true
    }
    /// Whether it has contents for page `index`, so that no other have to be made. May sleep. `BeyondEnd`.
    fn has(&self, _index: u64, _ctx: &Unpinned<'_>) -> Result<bool, ObjectError> {
        Ok(true)
    }
    /// Give page `index`, if it has no contents, these bytes, or zeros: false if it has some. May sleep. The default can't: `Io`.
    fn put(
        &self,
        _index: u64,
        _bytes: Option<&[u8; PAGE_BYTES]>,
        _policy: &Policy,
        _ctx: &Unpinned<'_>,
    ) -> Result<bool, ObjectError> {
        Err(ObjectError::Io)
    }
    /// Make `pages` pages from `index` on read as zeros, and give their frames back. May sleep, and takes address
    /// spaces' locks. The default can't: `Io`.
    fn punch(&self, _index: u64, _pages: u64, _ctx: &Unpinned<'_>) -> Result<(), ObjectError> {
        Err(ObjectError::Io)
    }
}

bitflags::bitflags! {
    /// What a mapping is told beside its protection: by `mmap`'s flags, `madvise` and `mlock`.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Flags: u16 {
        /// A fault below it, down to the gap above the next mapping, makes it longer.
        const GROWS_DOWN = 1;
        /// Counted as locked: its pages stay in memory (which all pages here do anyway).
        const LOCKED = 1 << 1;
        /// With `LOCKED`: pages are not brought in ahead.
        const ON_FAULT = 1 << 2;
        /// A forked child does not get it.
        const DONT_FORK = 1 << 3;
        /// A forked child gets it empty.
        const WIPE_ON_FORK = 1 << 4;
        /// No memory is set aside for it.
        const NO_RESERVE = 1 << 5;
        /// Not in core dumps.
        const DONT_DUMP = 1 << 6;
        /// Will be used in ascending order.
        const SEQUENTIAL = 1 << 7;
        /// Will be used in no order.
        const RANDOM = 1 << 8;
        /// Large pages are welcome.
        const HUGE = 1 << 9;
        /// Large pages are not.
        const NO_HUGE = 1 << 10;
        /// Pages that are the same as others may be shared.
        const MERGEABLE = 1 << 11;
        /// Its contents may go when memory is short (they do not, here); never locked.
        const DROPPABLE = 1 << 12;
        /// Shared, but of a file that isn't open for writing; for reports.
        const READ_ONLY_FILE = 1 << 13;
    }
}

/// Where a page's first contents come from.
#[derive(Clone)]
pub enum Backing {
    /// Zeros.
    Anonymous,
    /// A page of an object.
    Object {
        /// The object.
        object: Arc<dyn Object>,
        /// Index in the object of the mapping's first page.
        page: u64,
    },
}

impl Backing {
    /// The backing of the page that is `pages` pages further on.
    fn advanced(&self, pages: u64) -> Self {
        match self {
            Backing::Anonymous => Backing::Anonymous,
            Backing::Object { object, page } => {
                Backing::Object { object: object.clone(), page: page.wrapping_add(pages) }
            }
        }
    }
    /// Whether `next` is what `self` would say `pages` pages further on.
    fn continues(&self, pages: u64, next: &Self) -> bool {
        match (self, next) {
            (Backing::Anonymous, Backing::Anonymous) => true,
            (Backing::Object { object: a, page: p }, Backing::Object { object: b, page: q }) => {
                core::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b)) && p.checked_add(pages) == Some(*q)
            }
            _ => false,
        }
    }
}

impl fmt::Debug for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backing::Anonymous => f.write_str("Anonymous"),
            Backing::Object { object, page } => write!(f, "Object({:?}, page {page})", object.identity()),
        }
    }
}

/// What `/proc/self/maps` calls a mapping without an object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Label {
    /// Nothing.
    #[default]
    None,
    /// `[heap]`
    Heap,
    /// `[stack]`
    Stack,
    /// `[vdso]`
    Vdso,
    /// `[vvar]`
    Vvar,
}

/// What the pages of a range should be.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// What accesses may do now.
    pub prot: Prot,
    /// The most that [`AddressSpace::protect`](crate::AddressSpace::protect) may allow.
    pub max_prot: Prot,
    /// Where the contents come from; the page index is that of the mapping's first page.
    pub backing: Backing,
    /// Whether stores go to the object (which there must be), or to a copy of this address space's own.
    pub shared: bool,
    /// What reports call it.
    pub label: Label,
    /// What else it was told.
    pub flags: Flags,
    /// Where its pages are to be.
    pub policy: Said,
    /// Who is told of accesses to its pages, if anybody is.
    pub watch: Option<Arc<Watch>>,
}

impl Mapping {
    /// Zeros of this address space's own, which `prot` may be changed to anything.
    pub fn anonymous(prot: Prot) -> Self {
        Self::new(prot, Backing::Anonymous)
    }
    /// A private mapping without a label or flags.
    pub fn new(prot: Prot, backing: Backing) -> Self {
        let (max_prot, label) = (Prot::all(), Label::None);
        let flags = Flags::empty();
        Self { prot, max_prot, backing, shared: false, label, flags, policy: Said::NOTHING, watch: None }
    }
    /// What the mapping says of the pages from the one `pages` further on.
    pub fn advanced(&self, pages: u64) -> Self {
        let (policy, watch) = (self.policy.clone(), self.watch.clone());
        Self { backing: self.backing.advanced(pages), policy, watch, ..*self }
    }
    /// Whether `next`, which begins `pages` pages further on, could as well be part of this mapping.
    pub fn continues(&self, pages: u64, next: &Self) -> bool {
        self.prot == next.prot
            && self.max_prot == next.max_prot
            && self.shared == next.shared
            && self.label == next.label
            && self.flags == next.flags
            && self.policy == next.policy
            && self.watch == next.watch
            && self.backing.continues(pages, &next.backing)
    }
}

/// A mapping for a look, which takes no count of its object: that is counted elsewhere for as long as this lives. Who keeps the
/// mapping clones it, which counts.
///
/// Where a [`Mapping`] would be made to be compared and dropped, the object's count is a cache line that all CPUs which map
/// the object would write twice.
pub struct Lent<'a>(ManuallyDrop<Mapping>, PhantomData<&'a Mapping>);

impl Deref for Lent<'_> {
    type Target = Mapping;
    fn deref(&self) -> &Mapping {
        &self.0
    }
}

impl Mapping {
    /// A mapping of `object` from page `page` on, which says otherwise what this one does.
    pub fn of<'a, O: Object + 'static>(&'a self, object: &'a Arc<O>, page: u64) -> Lent<'a> {
        let mut lent = self.but(self.flags);
        // SAFETY: a second owner that is never dropped, nor used after the borrow of the first. What was there is not dropped
        // either, as it is `self`'s.
        unsafe {
            let object: Arc<dyn Object> = ptr::read::<Arc<O>>(object);
            ptr::write(&mut lent.0.backing, Backing::Object { object, page });
        }
        lent
    }
    /// The same with other flags.
    pub(crate) fn but(&self, flags: Flags) -> Lent<'_> {
        // SAFETY: a second owner of what it refers to, which is never dropped, nor used after the borrow of the first.
        let mut copy = ManuallyDrop::new(unsafe { ptr::read(self) });
        copy.flags = flags;
        Lent(copy, PhantomData)
    }
}

impl Lent<'_> {
    /// What it says of the pages from the one `pages` further on.
    pub(crate) fn advance(&mut self, pages: u64) {
        if let Backing::Object { page, .. } = &mut self.0.backing {
            *page = page.wrapping_add(pages);
        }
    }
}

impl Mapping {
    /// Whether the kernel made it for its own purposes (Linux's `VM_SPECIAL`).
    pub fn is_special(&self) -> bool {
        matches!(self.label, Label::Vdso | Label::Vvar)
    }
    /// Whether it grows down.
    pub fn is_stack(&self) -> bool {
        self.flags.contains(Flags::GROWS_DOWN)
    }
    /// Whether it counts against RLIMIT_DATA: private, writable, no stack (Linux's `is_data_mapping`).
    pub fn is_data(&self) -> bool {
        self.is_data_under(self.prot)
    }
    /// Whether it would with the protection `prot`.
    pub fn is_data_under(&self, prot: Prot) -> bool {
        prot.contains(Prot::WRITE) && !self.shared && !self.is_stack()
    }
    /// Whether stores can ever reach the object.
    pub fn may_write_object(&self) -> bool {
        self.shared && self.max_prot.contains(Prot::WRITE)
    }
    /// Who has to know who maps the object.
    pub fn mappers(&self) -> Option<&Mappers> {
        match &self.backing {
            Backing::Object { object, .. } => object.mappers(),
            Backing::Anonymous => None,
        }
    }
    /// Whether it shows the object whose mappers are `of`.
    pub fn shows(&self, of: &Mappers) -> bool {
        self.mappers().is_some_and(|mappers| core::ptr::eq(mappers, of))
    }
    /// What the page `offset` pages into the mapping shows of which object, if it is shared.
    pub fn shared_page(&self, offset: u64) -> Option<((u64, u64), u64)> {
        let (object, page) = self.object_page(offset).filter(|_| self.shared)?;
        Some((object.identity(), page))
    }
    /// The object's page that the page `offset` pages into the mapping shows.
    pub fn object_page(&self, offset: u64) -> Option<(&Arc<dyn Object>, u64)> {
        match &self.backing {
            Backing::Object { object, page } => Some((object, page.checked_add(offset)?)),
            Backing::Anonymous => None,
        }
    }
}

/// A mapping and where it is.
#[derive(Clone, Copy, Debug)]
pub struct MappingInfo<'a> {
    /// Its pages.
    pub range: PageRange,
    /// What they should be.
    pub mapping: &'a Mapping,
}

/// Pages by what they count as, and the most there ever were.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Pages mapped.
    pub pages: u64,
    /// The most that were ever mapped at once.
    pub peak: u64,
    /// Of mappings that count against RLIMIT_DATA.
    pub data: u64,
    /// Of mappings that grow down.
    pub stack: u64,
    /// Of mappings that may be executed and not written.
    pub code: u64,
    /// Of locked mappings.
    pub locked: u64,
    /// Of shared mappings.
    pub shared: u64,
}

impl Totals {
    /// Count `pages` pages of `mapping`.
    pub fn add(&mut self, mapping: &Mapping, pages: u64) {
        self.each(mapping, |count| *count += pages);
        self.peak = self.peak.max(self.pages);
    }
    pub(crate) fn sub(&mut self, mapping: &Mapping, pages: u64) {
        self.each(mapping, |count| *count -= pages);
    }
    fn each(&mut self, mapping: &Mapping, mut change: impl FnMut(&mut u64)) {
        let Self { pages, peak: _, data, stack, code, locked, shared } = self;
        let counts = [pages, data, stack, code, locked, shared];
        let counted = counts.into_iter().zip(Self::kinds(mapping)).filter(|(_, counted)| *counted);
        counted.for_each(|(count, _)| change(count));
    }
    /// Whether a page of `mapping` counts as mapped, data, stack, code, locked, shared.
    pub(crate) fn kinds(mapping: &Mapping) -> [bool; 6] {
        let code = mapping.prot.contains(Prot::EXEC) && !mapping.prot.contains(Prot::WRITE);
        [
            true,
            mapping.is_data(),
            mapping.is_stack(),
            code && !mapping.is_stack(),
            mapping.flags.contains(Flags::LOCKED),
            mapping.shared,
        ]
    }
}
