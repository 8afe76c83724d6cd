//! The address space as Unix kernels had it: one reader-writer lock for everything (the protocol of Linux 2.6.37,
//! `mm->mmap_sem`; for its limits see Clements, Kaashoek, Zeldovich, "Scalable Address Spaces Using RCU Balanced
//! Trees", ASPLOS 2012, section 2).
//!
//! **Claim.** Every operation takes effect at one instant. No CPU uses a frame through this space that the space does
//! not own any more. Faults on different pages run side by side; everything else runs alone.
//!
//! # Protocol
//! | operation | `space` | leaf lock | flush |
//! | --- | --- | --- | --- |
//! | fault: fill, raise | shared | to look again and insert | none: no entry lost a right |
//! | fault: copy on write | shared | over insert, flush and raise | under the leaf lock |
//! | advise(DontNeed) | shared | over take and flush, leaf by leaf | under the leaf lock |
//! | map, unmap, protect, remap, fork, clear | exclusive, until after the flush | each leaf while it changes | one round; a second if remap emptied a table |
//! | mappings, usage | shared | no | no |
//!
//! **Lock order**: `space` (sleeps) > an object's own locks (may sleep) > one leaf lock (spins; fork takes the
//! parent's and then the child's, which nobody else knows yet) > the lock of the upper page-table levels > the frame
//! allocator's. Sleeping locks are taken unpinned. Spinning ones are taken pinned, with interrupts on, so that a CPU
//! that waits for a leaf lock still answers the shootdown its holder waits for. (While `space` is held exclusively
//! nobody else wants a leaf lock, so there the pin does not matter.) Nothing that takes `space` is called under a
//! leaf lock.
//!
//! # Invariants
//! Whenever `space` is free or held shared only (I1 also needs the leaf lock to be free):
//! * **I1** *(buffers)* For every CPU and page, the CPU's cached translation, if any, names the frame of the page's
//!   entry and grants no more than the entry does.
//! * **I2** *(entries)* An entry that isn't empty belongs to a mapped page, owns one share of its frame, and grants no
//!   more than the mapping's protection; and it is writable in a private mapping only if its share is the only one.
//! * **I3** *(tables)* Every page-table page but the root serves some mapped page. Hence what has to be unlinked when
//!   a range is unmapped is found without counting entries: the tables that serve nothing outside of the gap that is
//!   left ([`Mappings::gap_around`]).
//! * **I4** *(index)* The mappings are disjoint, and none could be joined with its neighbour.
//!
//! # Why I1 holds
//! An entry loses rights or its frame only in these steps, in this order: *change it by read-modify-write;
//! fence(SeqCst); read `active`; shoot down; release the lock that keeps others from acting on the change*. A CPU
//! begins to use the page table by *join `active`; fence(SeqCst); load CR3*. Whichever fence is first in the total
//! order of SeqCst fences: if the remover's, the CPU's later walks find the changed entry; if the CPU's, the remover
//! finds it in `active` and its flush returns only when the CPU has dropped what it had ([`tlb`] has the details).
//! A CPU leaves `active` after it has loaded another CR3, when it has nothing cached any more. It is not enough that
//! a flush *began*: the lock is held until it is done, else another thread could map the page anew and be answered,
//! and a third would go on with the old frame after that.
//!
//! Rights that are *raised* need no flush: a CPU with the old entry faults, the processor drops the entry as part of
//! that (Intel SDM vol. 3A, 4.10.4.3), the fault finds nothing to do and returns.
//!
//! # Races, and what decides them
//! * **Two faults on one page.** Both may prepare a frame, outside of the leaf lock since that may sleep or take
//!   long. Under the leaf lock the second finds the first's entry, gives its own frame back, and looks again.
//! * **Fault and unmap.** `space` decides: the fault inserts before the unmap begins to clear, or finds no mapping.
//! * **Copy on write, and a sibling that still reads the old frame.** The writer takes a share of the old frame, so
//!   that it stays what it is, and copies it outside of the leaf lock: the frame can't change meanwhile, since it is
//!   shared and so no entry anywhere may write it. Then under the leaf lock: the entry must still name that frame;
//!   the copy goes in *read-only*; flush; only then is it made writable, and only then the lock is released. If it
//!   went in writable at once, a third CPU could store to it, and a sibling that has the old translation could load
//!   the old value after that store. If the lock were released before the flush, the third CPU's own fault would
//!   find a frame with one owner and make it writable, to the same effect. Both shares of the old frame go into the
//!   gather, so they are dropped after the flush, never before: the last other owner would take the frame for its
//!   own and write it while a sibling still reads it through the old translation.
//! * **"Only share" against fork.** `frames.is_shared` is asked under `space`, held shared at least; shares of a
//!   private frame are made by fork, which holds `space` of the owner exclusively, and by copies in flight, which
//!   also keep others from finding it unshared. So "not shared" stays true until the leaf lock is released.
//! * **DontNeed against a fault on the same page.** The leaf lock is held over the flush: a fault that waits for it
//!   fills the page only after every CPU has lost the old frame. Otherwise one thread could see zeros, another,
//!   later, the old contents.
//! * **Fork, failing half way.** Entries of the parent have become read-only, and stay so. The flush is done all the
//!   same: a later fork would find nothing to downgrade, flush nothing, and leave a CPU with a writable translation
//!   to a shared frame.
//! * **Remap.** The source loses all rights first, then the flush, then entries move with their frames: no moment at
//!   which one CPU uses the new place and another still the old one.
//!
//! # Who frees what, when
//! Frames taken out, and tables unlinked, belong to the operation's [`Gather`] from the instant they are out of the
//! table; it frees them after the flush, when the lock is released already (in rounds, under the lock, if they are
//! very many). A frame that was never in a table is freed at once. The root outlives everything, since CPUs may run
//! the space lazily: `clear` hands it to `retired`, and it is freed by `clear` or by the last `deactivate`, whichever
//! comes later. Both do *own step; fence(SeqCst); look for the other's*, so at least one of them sees that both are
//! done, and the lock around `retired` lets only one of them take it.
//!
//! # Memory that runs out
//! Frames fail cleanly: a fault returns `NoMemory`, fork gives back all it made, remap makes the tables it needs
//! before it changes anything. The ordered map's nodes come from the kernel's heap, which can't fail cleanly; so
//! operations that could add a mapping ask [`Frames::low`] first and refuse, which leaves the reserve to those nodes.

use alloc::sync::Arc;
use core::fmt;

use addr::{Frame, Page, PageRange, Prot, USER_END_PAGE, VirtAddr};
use frames::OwnedFrame;
use pagetable::{Full, PageTable, USER_PAGES};
use percpu::{AtomicCpuSet, Pinned, Unpinned};
use sync::{
    RwLock, SpinLock, mutant,
    primitive::{AtomicBool, Ordering, fence},
};
use tlb::Gather;

use crate::{
    Access, AddressSpace, Advice, Backing, Error, Fault, LOWEST, Machine, Mapping, MappingInfo, Mappings,
    Placement, RemapTo, Usage, page,
};

/// An address space under one reader-writer lock.
pub struct Locked {
    machine: Machine,
    root: Frame,
    /// CPUs that may have translations of this space cached.
    active: AtomicCpuSet,
    space: RwLock<Space>,
    /// Set by `clear`, when the root is in `retired`.
    cleared: AtomicBool,
    retired: SpinLock<Option<OwnedFrame>>,
}

struct Space {
    mappings: Mappings,
    table: PageTable,
}

impl Locked {
    /// An empty address space. Errors: `NoMemory`.
    pub fn new(machine: Machine, ctx: &Unpinned<'_>) -> Result<Arc<Self>, Error> {
        Self::with_mappings(machine, Mappings::default(), ctx).map(Arc::new)
    }
    fn with_mappings(machine: Machine, mappings: Mappings, ctx: &Unpinned<'_>) -> Result<Self, Error> {
        let table = PageTable::new(machine.frames, &ctx.pin(), machine.kernel_root).ok_or(Error::NoMemory)?;
        Ok(Self {
            machine,
            root: table.root().ok_or(Error::NoMemory)?,
            active: AtomicCpuSet::new(),
            space: RwLock::new(Space { mappings, table }),
            cleared: AtomicBool::new(false),
            retired: SpinLock::new(None),
        })
    }
    fn gather<'a>(&self, ctx: &Unpinned<'a>) -> Gather<'a> {
        Gather::new(self.machine.frames, *ctx)
    }
    /// Nobody translates by what the gather was told of when this returns.
    fn flush(&self, gather: &mut Gather<'_>, pin: &Pinned<'_>) {
        gather.flush(pin, self.machine.shootdown, &self.active);
    }
    /// Unmap `range`: the mappings, the entries and the tables that serve nothing else, into the gather, which is
    /// flushed and released in between only if it is full.
    fn evict(&self, space: &mut Space, range: PageRange, gather: &mut Gather<'_>, ctx: &Unpinned<'_>) {
        space.mappings.remove(range);
        let gap = space.mappings.gap_around(range);
        self.take(space, range, gather, ctx);
        while space.table.prune(range, gap, gather).is_err() {
            self.round(gather, ctx);
        }
    }
    fn take(&self, space: &Space, range: PageRange, gather: &mut Gather<'_>, ctx: &Unpinned<'_>) {
        let mut rest = Some(range);
        while let Some(r) = rest {
            rest = match space.table.take(r, gather) {
                Ok(()) => None,
                Err(Full(at)) => {
                    self.round(gather, ctx);
                    PageRange::new(at, range.end())
                }
            };
        }
    }
    fn round(&self, gather: &mut Gather<'_>, ctx: &Unpinned<'_>) {
        let pin = ctx.pin();
        self.flush(gather, &pin);
        gather.release(&pin);
    }
    /// Free the root if the space is cleared and no CPU has it in CR3.
    fn free_root(&self, pin: &Pinned<'_>) {
        // SeqCst: our own step (cleared, or left) before, the other's after; partner: the same fence on the other side.
        fence(Ordering::SeqCst);
        // Acquire: with the flag, see `retired` filled; the lock would do that too.
        if self.cleared.load(Ordering::Acquire)
            && self.active.snapshot().is_empty()
            && let Some(root) = self.retired.lock().take()
        {
            self.machine.frames.free(pin, root);
        }
    }
}

impl AddressSpace for Locked {
    fn map(
        &self,
        at: Placement,
        pages: u64,
        mapping: Mapping,
        ctx: &Unpinned<'_>,
    ) -> Result<PageRange, Error> {
        check(&mapping, pages)?;
        // Exclude.
        let mut space = self.space.write(ctx);
        let range = space.mappings.place(at, pages).ok_or(Error::NoRoom)?;
        dictated(at, range)?;
        let free = space.mappings.is_free(range);
        if matches!(at, Placement::FixedNoReplace(_)) && !free {
            return Err(Error::Exists);
        }
        if self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        // Take what was there, and make it unreachable, before the new mapping can be filled.
        let mut gather = self.gather(ctx);
        if !free {
            self.evict(&mut space, range, &mut gather, ctx);
            self.flush(&mut gather, &ctx.pin());
        }
        space.mappings.insert(range, mapping);
        drop(space);
        Ok(range)
    }

    fn unmap(&self, range: PageRange, ctx: &Unpinned<'_>) -> Result<(), Error> {
        user(range)?;
        // Exclude.
        let mut space = self.space.write(ctx);
        if space.mappings.punches(range) && self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        // Take; flush; release; free.
        let mut gather = self.gather(ctx);
        self.evict(&mut space, range, &mut gather, ctx);
        if mutant!("unlock-before-flush") {
            drop(space);
            self.flush(&mut gather, &ctx.pin());
            return Ok(());
        }
        self.flush(&mut gather, &ctx.pin());
        drop(space);
        Ok(())
    }

    fn protect(&self, range: PageRange, prot: Prot, ctx: &Unpinned<'_>) -> Result<(), Error> {
        if range.is_empty() {
            return Err(Error::Invalid);
        }
        // Exclude.
        let mut guard = self.space.write(ctx);
        let space = &mut *guard;
        let (reach, result) = protectable(&space.mappings, range, prot);
        if space.mappings.splits(reach) > 0 && self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        if reach.is_empty() {
            return result;
        }
        // Change what the pages should be, then what they are.
        space.mappings.update(reach, |mapping| mapping.prot = prot);
        let mut gather = self.gather(ctx);
        for (area, mapping) in space.mappings.overlapping(reach) {
            let Some(part) = area.intersect(reach) else { continue };
            let rights = |frame| page::rights(mapping, frame, self.machine.frames);
            if let Some(lost) = space.table.protect(part, rights)
                && !mutant!("protect-no-flush")
            {
                gather.add_range(lost);
            }
        }
        self.flush(&mut gather, &ctx.pin());
        drop(guard);
        result
    }

    fn remap(&self, old: PageRange, new_pages: u64, to: RemapTo, ctx: &Unpinned<'_>) -> Result<Page, Error> {
        // Exclude.
        let mut guard = self.space.write(ctx);
        let space = &mut *guard;
        let plan = Remap::plan(&mut space.mappings, old, new_pages, to)?;
        let mut gather = self.gather(ctx);
        if plan.needs_memory(&space.mappings) && self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        // Make the tables at the destination: after this nothing fails.
        let Remap { keep, source, target, ref mapping, .. } = plan;
        if let (Some(target), false) = (target, keep.is_empty())
            && !self.make_tables(space, keep, target.start(), ctx)
        {
            let holes = core::iter::successors(space.mappings.holes(target).next(), |last| {
                PageRange::new(last.end(), target.end()).and_then(|rest| space.mappings.holes(rest).next())
            });
            for hole in holes {
                let gap = space.mappings.gap_around(hole);
                while space.table.prune(hole, gap, &mut gather).is_err() {
                    self.round(&mut gather, ctx);
                }
            }
            self.flush(&mut gather, &ctx.pin());
            return Err(Error::NoMemory);
        }
        // Take what is cut off, and what was at the destination.
        if let Some(tail) = plan.cut {
            self.evict(space, tail, &mut gather, ctx);
        }
        let start = match target {
            None => {
                if let Some(grown) = plan.grown {
                    space.mappings.insert(grown, mapping.advanced(grown.start().number() - source.number()));
                }
                self.flush(&mut gather, &ctx.pin());
                old.start()
            }
            Some(target) => {
                // Its tables stay: they are in use again in a moment (I3 holds again when the mapping is in).
                space.mappings.remove(target);
                self.take(space, target, &mut gather, ctx);
                // The source loses all rights; flush; then the entries move.
                if let Some(lost) = space.table.protect(keep, |_| Prot::empty()) {
                    gather.add_range(lost);
                }
                self.flush(&mut gather, &ctx.pin());
                let moved = mapping.advanced(old.start().number() - source.number());
                space
                    .table
                    .relocate(keep, target.start(), |frame| page::rights(&moved, frame, self.machine.frames));
                space.mappings.insert(target, moved);
                if !keep.is_empty() {
                    self.evict(space, keep, &mut gather, ctx);
                    self.flush(&mut gather, &ctx.pin());
                }
                target.start()
            }
        };
        drop(guard);
        Ok(start)
    }

    fn advise(&self, range: PageRange, advice: Advice, ctx: &Unpinned<'_>) -> Result<(), Error> {
        if range.is_empty() {
            return Err(Error::Invalid);
        }
        // Exclude those that change the mappings, not faults.
        let space = self.space.read(ctx);
        let everything = PageRange::new(Page::default(), USER_END_PAGE).unwrap_or_default();
        if let (Advice::DontNeed, Some(range)) = (advice, range.intersect(everything)) {
            let mut gather = self.gather(ctx);
            let pin = ctx.pin();
            for (leaf, part) in space.table.leaves(range) {
                let mut rest = Some(part);
                while let Some(r) = rest {
                    rest = match leaf.take_range(r, &mut gather) {
                        Ok(()) => None,
                        Err(Full(at)) => {
                            self.flush(&mut gather, &pin);
                            gather.release(&pin);
                            PageRange::new(at, part.end())
                        }
                    };
                }
                self.flush(&mut gather, &pin);
                drop(leaf);
                gather.release(&pin);
            }
        }
        if space.mappings.covers(range) { Ok(()) } else { Err(Error::NoMapping) }
    }

    fn fault(&self, va: VirtAddr, access: Access, ctx: &Unpinned<'_>) -> Result<(), Fault> {
        let (frames, at) = (self.machine.frames, va.page());
        // Exclude those that change the mappings, not other faults.
        let space = self.space.read(ctx);
        // Find the mapping; check the access.
        let (area, mapping) = space.mappings.find(at).ok_or(Fault::NoMapping)?;
        if !access.allowed_by(mapping.prot) {
            return Err(Fault::Denied);
        }
        let offset = at.number() - area.start().number();
        let mut gather = self.gather(ctx);
        loop {
            // A frame may be needed: prepare it before the leaf lock.
            let entry = space.table.peek(at);
            if entry.is_empty() {
                let (frame, rights) = page::ensure(mapping, offset, None, access, frames, ctx)?;
                let pin = ctx.pin();
                let Some(leaf) = space.table.lock_leaf_or_make(frames, &pin, at) else {
                    frames.free(&pin, frame);
                    return Err(Fault::NoMemory);
                };
                if leaf.peek(at).is_empty() || mutant!("leaf-race-lost") {
                    leaf.insert(at, frame, rights);
                    return Ok(());
                }
                drop(leaf);
                frames.free(&pin, frame);
                continue;
            }
            // There is one: the rights may be raised, or it has to be copied.
            let old = {
                let _pin = ctx.pin();
                let Some(leaf) = space.table.lock_leaf(at) else { continue };
                let entry = leaf.peek(at);
                if entry.is_empty() {
                    continue;
                }
                let rights = page::rights(mapping, entry.frame(), frames);
                if access.allowed_by(rights) {
                    let lost = leaf.protect(at, rights);
                    debug_assert!(!lost, "a fault took a right away");
                    return Ok(());
                }
                // The copy needs the old frame to stay: one more share.
                let Some(old) = leaf.share(at, frames) else { continue };
                old
            };
            let (new, rights) = match page::ensure(mapping, offset, Some(&old), access, frames, ctx) {
                Ok(copy) => copy,
                Err(fault) => {
                    frames.free(&ctx.pin(), old);
                    return Err(fault);
                }
            };
            let pin = ctx.pin();
            let leaf = space.table.lock_leaf(at);
            let Some(leaf) = leaf.filter(|leaf| leaf.peek(at).frame() == old.frame()) else {
                frames.free(&pin, new);
                frames.free(&pin, old);
                continue;
            };
            // Read-only; flush; then writable. The old frame's shares go after the flush.
            if leaf.peek(at).is_present()
                && !mutant!("cow-no-flush")
                && let Some(single) = PageRange::single(at)
            {
                gather.add_range(single);
            }
            if let Some(replaced) = leaf.replace(at, new, rights.difference(Prot::WRITE)) {
                gather.take(replaced);
            }
            gather.take(old);
            self.flush(&mut gather, &pin);
            leaf.protect(at, rights);
            return Ok(());
        }
    }

    fn fork(&self, ctx: &Unpinned<'_>) -> Result<Arc<dyn AddressSpace>, Error> {
        // Exclude.
        let parent = self.space.write(ctx);
        if self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        let child = Self::with_mappings(self.machine, parent.mappings.clone(), ctx)?;
        let mut gather = self.gather(ctx);
        let copied = self.share_private(&parent, &child, &mut gather, ctx);
        // Also if it failed half way: see the module's table of races.
        self.flush(&mut gather, &ctx.pin());
        drop(parent);
        if copied {
            Ok(Arc::new(child))
        } else {
            child.clear(ctx);
            Err(Error::NoMemory)
        }
    }

    fn clear(&self, ctx: &Unpinned<'_>) {
        let mut space = self.space.write(ctx);
        let mut gather = self.gather(ctx);
        if let Some(everything) = Page::new(USER_PAGES).and_then(|end| PageRange::new(Page::default(), end)) {
            self.evict(&mut space, everything, &mut gather, ctx);
        }
        self.flush(&mut gather, &ctx.pin());
        if let Some(root) = space.table.retire() {
            *self.retired.lock() = Some(root);
            // Release: `retired` before the flag; partner: the load in `free_root`.
            self.cleared.store(true, Ordering::Release);
        }
        drop(space);
        self.free_root(&ctx.pin());
    }

    fn activate(&self, pin: &Pinned<'_>) -> Frame {
        tlb::join(&self.active, pin);
        // Relaxed: only a check of the caller's duty.
        debug_assert!(!self.cleared.load(Ordering::Relaxed), "a cleared address space was activated");
        self.root
    }
    fn deactivate(&self, pin: &Pinned<'_>) {
        tlb::leave(&self.active, pin);
        self.free_root(pin);
    }

    fn mappings(&self, ctx: &Unpinned<'_>, f: &mut dyn FnMut(&MappingInfo<'_>)) {
        let space = self.space.read(ctx);
        let Some(everything) = PageRange::new(Page::default(), USER_END_PAGE) else { return };
        space
            .mappings
            .overlapping(everything)
            .for_each(|(range, mapping)| f(&MappingInfo { range, mapping }));
    }
    fn shared_page(&self, page: Page, ctx: &Unpinned<'_>) -> Option<((u64, u64), u64)> {
        let space = self.space.read(ctx);
        let (range, mapping) = space.mappings.find(page)?;
        match &mapping.backing {
            Backing::Object { object, page: first } if mapping.shared => {
                Some((object.identity(), first + (page.number() - range.start().number())))
            }
            _ => None,
        }
    }
    fn usage(&self, ctx: &Unpinned<'_>) -> Usage {
        let space = self.space.read(ctx);
        let (resident_pages, table_pages) = space.table.census();
        Usage {
            mapped_pages: space.mappings.pages(),
            mappings: space.mappings.len() as u64,
            resident_pages,
            table_pages,
        }
    }
}

impl Locked {
    /// The child's entries: the same frames as the parent's in private mappings, writable in neither. Shared mappings
    /// are filled from their objects as the child uses them. False if a page table can't be made; what was made by
    /// then is the child's.
    fn share_private(
        &self,
        parent: &Space,
        child: &Self,
        gather: &mut Gather<'_>,
        ctx: &Unpinned<'_>,
    ) -> bool {
        let frames = self.machine.frames;
        let into = child.space.read(ctx);
        let pin = ctx.pin();
        for (area, mapping) in parent.mappings.iter().filter(|(_, m)| !m.shared) {
            let rights = page::hardware(mapping.prot).difference(Prot::WRITE);
            for (from, part) in parent.table.leaves(area) {
                if part.iter().all(|page| from.peek(page).is_empty()) {
                    continue;
                }
                let Some(to) = into.table.lock_leaf_or_make(frames, &pin, part.start()) else { return false };
                for page in part {
                    let Some(share) = from.share(page, frames) else { continue };
                    to.insert(page, share, rights);
                    if from.protect(page, rights)
                        && !mutant!("fork-no-flush")
                        && let Some(single) = PageRange::single(page)
                    {
                        gather.add_range(single);
                    }
                }
            }
        }
        true
    }
    /// Make the leaf tables that the entries of `from` need when they move to `to`. False if there is no memory.
    fn make_tables(&self, space: &Space, from: PageRange, to: Page, ctx: &Unpinned<'_>) -> bool {
        let pin = ctx.pin();
        space.table.leaves(from).all(|(leaf, part)| {
            let used = |page: &Page| !leaf.peek(*page).is_empty();
            let (Some(first), Some(last)) = (part.iter().find(used), part.iter().filter(used).last()) else {
                return true;
            };
            drop(leaf);
            // A leaf table's worth of entries goes into two at most.
            [first, last].into_iter().all(|page| {
                let target = to.checked_add(page.number() - from.start().number());
                target.is_some_and(|t| space.table.lock_leaf_or_make(self.machine.frames, &pin, t).is_some())
            })
        })
    }
}

/// What a remap will do, found before anything changes.
struct Remap {
    /// The pages whose contents stay or move.
    keep: PageRange,
    /// Where the mapping that holds them begins.
    source: Page,
    mapping: Mapping,
    /// The pages that are cut off.
    cut: Option<PageRange>,
    /// The pages that are added in place.
    grown: Option<PageRange>,
    /// Where the pages go, if they move.
    target: Option<PageRange>,
}

impl Remap {
    /// The checks of Linux's `mremap`, in its order (`mm/mremap.c`), but before anything is unmapped.
    fn plan(mappings: &mut Mappings, old: PageRange, pages: u64, to: RemapTo) -> Result<Self, Error> {
        if pages == 0 {
            return Err(Error::Invalid);
        }
        let fixed = match to {
            RemapTo::Fixed(at) => {
                let target = PageRange::with_len(at, pages).filter(|t| t.end() <= USER_END_PAGE);
                let target = target.filter(|t| t.intersect(old).is_none()).ok_or(Error::Invalid)?;
                dictated(Placement::Fixed(at), target)?;
                Some(target)
            }
            _ => None,
        };
        let (area, mapping) = mappings.find(old.start()).ok_or(Error::NoMapping)?;
        if old.is_empty() && !mapping.shared {
            return Err(Error::Invalid);
        }
        let mut plan = Self {
            keep: old,
            source: area.start(),
            mapping: mapping.clone(),
            cut: None,
            grown: None,
            target: fixed,
        };
        if pages <= old.len() {
            user(old)?;
            let kept = PageRange::with_len(old.start(), pages).ok_or(Error::Invalid)?;
            plan.keep = kept;
            plan.cut = PageRange::new(kept.end(), old.end()).filter(|cut| !cut.is_empty());
            if fixed.is_none() {
                return Ok(plan);
            }
        }
        if !area.contains_range(plan.keep) {
            return Err(Error::NoMapping);
        }
        let offset = old.start().number() - area.start().number();
        check(&mapping.advanced(offset), pages)?;
        if fixed.is_some() {
            return Ok(plan);
        }
        let whole = PageRange::with_len(old.start(), pages).filter(|w| w.end() <= USER_END_PAGE);
        let grown = whole.and_then(|w| PageRange::new(old.end(), w.end()));
        if let Some(grown) = grown.filter(|&g| old.end() == area.end() && mappings.is_free(g)) {
            plan.grown = Some(grown);
            return Ok(plan);
        }
        if to == RemapTo::InPlace {
            return Err(Error::NoRoom);
        }
        plan.target = Some(mappings.place(Placement::Anywhere, pages).ok_or(Error::NoRoom)?);
        Ok(plan)
    }
    /// Whether there may be more mappings afterwards, or page tables have to be made.
    fn needs_memory(&self, mappings: &Mappings) -> bool {
        self.target.is_some() || self.grown.is_some() || self.cut.is_some_and(|cut| mappings.punches(cut))
    }
}

/// A new mapping of `pages` pages must make sense.
fn check(mapping: &Mapping, pages: u64) -> Result<(), Error> {
    if pages == 0 {
        return Err(Error::Invalid);
    }
    if !mapping.max_prot.contains(mapping.prot) {
        return Err(Error::Denied);
    }
    match mapping.backing {
        Backing::Anonymous if mapping.shared => Err(Error::Invalid),
        Backing::Object { page, .. } if page.checked_add(pages).is_none() => Err(Error::Overflow),
        _ => Ok(()),
    }
}

/// The chosen place must be user space, and a dictated one not too low.
fn dictated(at: Placement, range: PageRange) -> Result<(), Error> {
    if range.end() > USER_END_PAGE {
        return Err(Error::NoRoom);
    }
    let dictated = matches!(at, Placement::Fixed(_) | Placement::FixedNoReplace(_));
    if dictated && range.start().number() < LOWEST { Err(Error::TooLow) } else { Ok(()) }
}

/// The range is of user pages, and there are some.
fn user(range: PageRange) -> Result<(), Error> {
    if range.is_empty() || range.end() > USER_END_PAGE { Err(Error::Invalid) } else { Ok(()) }
}

/// How far `range` may be given `prot`, and what is to be said of the rest.
fn protectable(mappings: &Mappings, range: PageRange, prot: Prot) -> (PageRange, Result<(), Error>) {
    let mut at = range.start();
    for (area, mapping) in mappings.overlapping(range) {
        if area.start() > at {
            break;
        }
        if !mapping.max_prot.contains(prot) {
            return (PageRange::new(range.start(), at).unwrap_or_default(), Err(Error::Denied));
        }
        at = area.end().min(range.end());
    }
    let reach = PageRange::new(range.start(), at).unwrap_or_default();
    (reach, if at == range.end() { Ok(()) } else { Err(Error::NoMapping) })
}

impl fmt::Debug for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locked")
            .field("root", &self.root)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}
