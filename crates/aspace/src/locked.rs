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
//! | move_page | shared | over share, lower and flush; then as copy on write | under the leaf lock, twice |
//! | advise(DontNeed, InstallGuards) | shared | over take and flush, leaf by leaf | under the leaf lock |
//! | advise(RemoveGuards) | shared | each leaf while it changes | none: a guard is no translation |
//! | advise(Flags, Place), lock, grow | exclusive | no | none: rights stay as they are |
//! | map, unmap, protect, remap, fork, cut, clear | exclusive, until after the flush | each leaf while it changes | one round; a second if remap emptied a table |
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
//! * **Moving a page while siblings store to it.** The mover takes a share and takes the right to store away, in this
//!   order, and keeps the leaf lock until that is flushed: from then on nobody stores to the frame, and a fault finds it
//!   shared and copies it. Then it's a copy on write like any other, and whoever is first under the leaf lock wins.
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
//! the space lazily: `clear` hands it to [`Retired`], and it is freed by `clear` or by the last `deactivate`, whichever
//! comes later.
//!
//! # Memory that runs out
//! Frames fail cleanly: a fault returns `NoMemory`, fork gives back all it made, remap makes the tables it needs
//! before it changes anything. The ordered map's nodes come from the kernel's heap, which can't fail cleanly; so
//! operations that could add a mapping ask [`Memory::low`] first and refuse, which leaves the reserve to those nodes.

mod advise;
mod copies;
mod remap;
mod rights;

use alloc::sync::{Arc, Weak};
use core::{fmt, mem::offset_of, ops::Range, ptr};

use addr::{Frame, Page, PageRange, Prot, VirtAddr};
use owned::OwnedFrame;
use pagetable::{Full, PageTable, Which, use_of};
use percpu::{AtomicCpuSet, CpuSet, MAX_CPUS, Pinned, Unpinned};
use sync::{
    RwLock, mutant,
    primitive::{AtomicU64, Ordering},
    probe,
};
use tlb::Gather;

use crate::{
    Access, AddressSpace, Advice, Audited, Backing, Error, Fault, Flags, Limits, Lock, Machine, Mapper,
    Mappers, Mapping, MappingInfo, Mappings, Place, Placement, Policy, RemapTo, Seen, Unmoved, Usage, leaves,
    page,
    plan::{NewMapping, Remap, growth, in_parts, lockable, part_of},
    retired::Retired,
    rules::{beside, check, relock, user},
};

/// An address space under one reader-writer lock.
pub struct Locked {
    machine: Machine,
    root: Frame,
    /// CPUs that may have translations of this space cached.
    active: AtomicCpuSet,
    space: RwLock<Space>,
    retired: Retired,
}

struct Space {
    mappings: Mappings,
    table: PageTable,
    /// How mappings to come are locked.
    future: Lock,
    /// Entries with a frame; beside the lock's own word, which every fault writes anyway.
    resident: AtomicU64,
    /// The most there were, as of the last time that there were fewer.
    peak_resident: AtomicU64,
}

impl Space {
    // Relaxed, here and below: counts for reports.
    fn gained(&self, pages: u64) {
        self.resident.fetch_add(pages, Ordering::Relaxed);
    }
    fn lost(&self, pages: u64) {
        if pages > 0 {
            let before = self.resident.fetch_sub(pages, Ordering::Relaxed);
            self.peak_resident.fetch_max(before, Ordering::Relaxed);
        }
    }
}

impl Locked {
    /// An empty address space. Errors: `NoMemory`.
    pub fn new(machine: Machine, ctx: &Unpinned<'_>) -> Result<Arc<Self>, Error> {
        let table = PageTable::new(machine.frames, &ctx.pin(), machine.kernel_root).ok_or(Error::NoMemory)?;
        let root = table.root().ok_or(Error::NoMemory)?;
        Ok(Arc::new_cyclic(|me: &Weak<Self>| Self {
            machine,
            root,
            active: AtomicCpuSet::new(),
            space: RwLock::new(Space {
                mappings: Mappings::new(me.clone()),
                table,
                future: Lock::Off,
                resident: AtomicU64::new(0),
                peak_resident: AtomicU64::new(0),
            }),
            retired: Retired::new(),
        }))
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
        self.evict_beside(space, range, None, gather, ctx);
    }
    /// The same, but for the tables that serve pages of `stays`, which is elsewhere.
    fn evict_beside(
        &self,
        space: &mut Space,
        range: PageRange,
        stays: Option<PageRange>,
        gather: &mut Gather<'_>,
        ctx: &Unpinned<'_>,
    ) {
        self.take_all(space, range, gather, ctx);
        let gap = beside(space.mappings.gap_around(range), range, stays);
        while space.table.prune(range, gap, gather).is_err() {
            self.round(gather, ctx);
        }
    }
    /// Remove the mappings of `range`, and take their entries.
    fn take_all(&self, space: &mut Space, range: PageRange, gather: &mut Gather<'_>, ctx: &Unpinned<'_>) {
        // An object hears that its pages are mapped no more when nobody translates to them any more.
        while let Some((part, mapping)) = space.mappings.announced(range) {
            if mutant!("retract-before-flush") {
                space.mappings.retract(&mapping, part.len(), &ctx.pin());
            }
            space.mappings.remove(part);
            self.take(space, part, Which::All, gather, ctx);
            self.flush(gather, &ctx.pin());
            if !mutant!("retract-before-flush") {
                space.mappings.retract(&mapping, part.len(), &ctx.pin());
            }
        }
        space.mappings.remove(range);
        self.take(space, range, Which::All, gather, ctx);
    }
    fn take(
        &self,
        space: &Space,
        range: PageRange,
        which: Which,
        gather: &mut Gather<'_>,
        ctx: &Unpinned<'_>,
    ) {
        let mut rest = Some(range);
        let mut taken = 0;
        while let Some(r) = rest {
            rest = match space.table.take(r, which, gather, &mut taken) {
                Ok(()) => None,
                Err(Full(at)) => {
                    self.round(gather, ctx);
                    PageRange::new(at, range.end())
                }
            };
        }
        space.lost(taken);
    }
    fn round(&self, gather: &mut Gather<'_>, ctx: &Unpinned<'_>) {
        let pin = ctx.pin();
        self.flush(gather, &pin);
        gather.release(&pin);
    }
    /// Free the root if the space is cleared and no CPU has it in CR3.
    fn free_root(&self, pin: &Pinned<'_>) {
        if let Some(root) = self.retired.take_unused(&self.active) {
            self.machine.frames.free(pin, root);
        }
    }
}

impl AddressSpace for Locked {
    fn places(&self, f: &mut dyn FnMut(&'static str, Range<usize>)) {
        let part = |start: usize, bytes| start..start + bytes;
        let [lock, value] = self.space.places();
        let at = value.start;
        f("", part(ptr::from_ref(self).addr(), size_of_val(self)));
        f("lock", lock);
        f("mappings", part(at + offset_of!(Space, mappings), size_of::<Mappings>()));
        f("page table's root and lock", part(at + offset_of!(Space, table), size_of::<PageTable>()));
        f("count of pages", part(at + offset_of!(Space, resident), size_of::<AtomicU64>()));
        f("most pages", part(at + offset_of!(Space, peak_resident), size_of::<AtomicU64>()));
        f("set of CPUs", part(ptr::from_ref(&self.active).addr(), size_of_val(&self.active)));
    }

    fn map_within(
        &self,
        at: Placement,
        pages: u64,
        mapping: &Mapping,
        limits: &Limits,
        ctx: &Unpinned<'_>,
    ) -> Result<(PageRange, bool), Error> {
        check(mapping, pages)?;
        // Exclude.
        let mut space = self.space.write(ctx);
        let future = space.future;
        let mut new = NewMapping::plan(&mut space.mappings, future, at, pages, mapping, limits)?;
        if self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        if !space.mappings.announce(&new.mapping, pages, &ctx.pin()) {
            return Err(Error::Sealed);
        }
        // Take what was there, and make it unreachable, before the new mapping can be filled.
        let mut gather = self.gather(ctx);
        if !new.free {
            self.evict(&mut space, new.range, &mut gather, ctx);
            self.flush(&mut gather, &ctx.pin());
        }
        new.settle();
        space.mappings.insert(new.range, new.mapping);
        drop(space);
        Ok((new.range, new.bring_in))
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

    fn unmap_object(
        &self,
        range: PageRange,
        identity: (u64, u64),
        ctx: &Unpinned<'_>,
    ) -> Result<bool, Error> {
        user(range)?;
        // Exclude.
        let mut space = self.space.write(ctx);
        // Only a mapping that holds the whole range and more is left with a hole in its middle.
        if space.mappings.punches(range) && self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        // Take; flush; release; free.
        let mut gather = self.gather(ctx);
        let (mut next, mut any) = (Some(range.start()), false);
        while let Some((area, mapping)) = next.and_then(|at| space.mappings.find_from(at)) {
            let part = part_of(area, mapping, range, identity);
            next = Some(area.end()).filter(|&end| end < range.end());
            if let Some(part) = part {
                any = true;
                self.evict(&mut space, part, &mut gather, ctx);
            }
        }
        self.flush(&mut gather, &ctx.pin());
        drop(space);
        Ok(any)
    }

    fn protect_within(
        &self,
        range: PageRange,
        prot: Prot,
        down: bool,
        limits: &Limits,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        self.change_rights(range, prot, down, limits, ctx)
    }

    fn remap_within(
        &self,
        old: PageRange,
        new_pages: u64,
        to: RemapTo,
        keep: bool,
        limits: &Limits,
        ctx: &Unpinned<'_>,
    ) -> Result<Page, Error> {
        // Exclude.
        let mut space = self.space.write(ctx);
        let mut gather = self.gather(ctx);
        // Several mappings move one by one, and what lies between them stays.
        let Some(target) = in_parts(&space.mappings, old, new_pages, to) else {
            return self.remap_one(&mut space, old, new_pages, to, keep, limits, &mut gather, ctx);
        };
        Remap::check_target(old, new_pages, target)?;
        let mut rest = old;
        while let Some((area, _)) = space.mappings.find_from(rest.start()) {
            // What was left behind may be part of it by now.
            let Some(part) = area.intersect(rest) else { break };
            rest = PageRange::new(part.end(), old.end()).unwrap_or_default();
            let there =
                target.checked_add(part.start().number() - old.start().number()).ok_or(Error::Invalid)?;
            let to = RemapTo::Fixed(there);
            self.remap_one(&mut space, part, part.len(), to, keep, limits, &mut gather, ctx)?;
        }
        Ok(target)
    }

    fn advise(&self, range: PageRange, advice: Advice, ctx: &Unpinned<'_>) -> Result<(), Error> {
        if range.is_empty() {
            return Err(Error::Invalid);
        }
        if let Advice::Flags(set, clear) = advice {
            return self.advise_flags(range, set, clear, ctx);
        }
        if let Advice::Place(policy) = advice {
            return self.advise_policy(range, policy, ctx);
        }
        // Exclude those that change the mappings, not faults.
        let space = self.space.read(ctx);
        let mut gather = self.gather(ctx);
        for (area, mapping) in space.mappings.overlapping(range) {
            let Some(part) = area.intersect(range) else { continue };
            let locked = mapping.flags.contains(Flags::LOCKED);
            let anonymous = matches!(mapping.backing, Backing::Anonymous);
            match advice {
                Advice::DontNeed | Advice::Cold | Advice::Free | Advice::InstallGuards if locked => {
                    return Err(Error::Invalid);
                }
                Advice::Free if !anonymous => return Err(Error::Invalid),
                Advice::DontNeed | Advice::DontNeedLocked | Advice::Free => {
                    self.discard(&space, part, &mut gather, ctx);
                }
                Advice::InstallGuards => self.install_guards(&space, part, &mut gather, ctx)?,
                Advice::RemoveGuards => {
                    let _pin = ctx.pin();
                    space
                        .table
                        .leaves(part)
                        .for_each(|(leaf, part)| part.iter().for_each(|p| leaf.unguard(p)));
                }
                Advice::WillNeed | Advice::Cold | Advice::Flags(..) | Advice::Place(_) => {}
            }
        }
        if space.mappings.covers(range) { Ok(()) } else { Err(Error::NoMapping) }
    }

    fn lock(&self, range: PageRange, lock: Lock, limits: &Limits, ctx: &Unpinned<'_>) -> Result<(), Error> {
        if range.is_empty() {
            return Err(Error::Invalid);
        }
        let mut space = self.space.write(ctx);
        let reach = lockable(&space.mappings, range, lock, limits)?;
        if space.mappings.splits(reach) > 0 && self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        if !reach.is_empty() {
            space.mappings.update(reach, |mapping| relock(mapping, lock));
        }
        if reach == range { Ok(()) } else { Err(Error::NoMapping) }
    }

    fn lock_all(
        &self,
        now: Option<Lock>,
        future: Option<Lock>,
        limits: &Limits,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        let mut space = self.space.write(ctx);
        let total = space.mappings.totals().pages;
        if now.is_some_and(|lock| lock != Lock::Off) && total > limits.locked {
            return Err(Error::LockLimit);
        }
        space.future = future.unwrap_or(space.future);
        if let Some(lock) = now {
            space.mappings.update_all(|mapping| relock(mapping, lock));
        }
        Ok(())
    }

    fn grow(&self, va: VirtAddr, limits: &Limits, ctx: &Unpinned<'_>) -> Result<(), Error> {
        // Exclude.
        let mut space = self.space.write(ctx);
        let Some(top) = growth(&space.mappings, va, limits)? else { return Ok(()) };
        if self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        space.mappings.grow_down(top, va.page());
        Ok(())
    }

    fn fault_by(
        &self,
        policy: &Policy,
        va: VirtAddr,
        access: Access,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Fault> {
        let (frames, at) = (self.machine.frames, va.page());
        // Exclude those that change the mappings, not other faults.
        let space = self.space.read(ctx);
        // Find the mapping; check the access.
        let (area, mapping) = space.mappings.find(at).ok_or(Fault::NoMapping)?;
        if !access.allowed_by(mapping.prot) {
            return Err(Fault::Denied);
        }
        let offset = at.number() - area.start().number();
        let policy = mapping.policy.get().or(*policy);
        let mut gather = self.gather(ctx);
        loop {
            // A frame may be needed: prepare it before the leaf lock.
            let entry = space.table.peek(at);
            if entry.is_guard() {
                return Err(Fault::Guard);
            }
            if entry.is_empty() {
                let (frame, rights) = page::ensure(mapping, &policy, at, offset, None, access, frames, ctx)?;
                let pin = ctx.pin();
                let Some(leaf) = space.table.lock_leaf_or_make(frames, &pin, at) else {
                    frames.free(&pin, frame);
                    return Err(Fault::NoMemory);
                };
                if leaf.peek(at).is_empty() || mutant!("leaf-race-lost") {
                    leaf.insert(at, frame, rights);
                    space.gained(1);
                    match (&mapping.backing, mapping.shared || access != Access::Write) {
                        (Backing::Anonymous, _) => probe!(FaultNew),
                        (Backing::Object { .. }, true) => probe!(FaultFill),
                        (Backing::Object { .. }, false) => probe!(FaultCopy),
                    }
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
                if use_of(entry).is_none() {
                    continue;
                }
                let rights = page::rights(mapping, entry.frame(), frames);
                if access.allowed_by(rights) {
                    let lost = leaf.protect(at, rights);
                    debug_assert!(!lost, "a fault took a right away");
                    probe!(FaultRepair);
                    return Ok(());
                }
                // The copy needs the old frame to stay: one more share.
                let Some(old) = leaf.share(at, frames) else { continue };
                old
            };
            let (new, rights) =
                match page::ensure(mapping, &policy, at, offset, Some(&old), access, frames, ctx) {
                    Ok(copy) => copy,
                    Err(fault) => {
                        frames.free(&ctx.pin(), old);
                        return Err(fault);
                    }
                };
            if self.replace(&space, at, old, new, rights, &mut gather, ctx) {
                probe!(FaultCopy);
                return Ok(());
            }
        }
    }

    fn move_page(
        &self,
        at: Page,
        place: Place,
        wanted: &dyn Fn(Frame) -> bool,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Unmoved> {
        self.move_private(at, place, wanted, ctx)
    }

    fn fork(&self, ctx: &Unpinned<'_>) -> Result<Arc<dyn AddressSpace>, Error> {
        self.duplicate(ctx).map(|child| child as Arc<dyn AddressSpace>)
    }

    fn clear(&self, ctx: &Unpinned<'_>) {
        let mut space = self.space.write(ctx);
        let mut gather = self.gather(ctx);
        self.evict(&mut space, Mappings::everywhere(), &mut gather, ctx);
        self.flush(&mut gather, &ctx.pin());
        if let Some(root) = space.table.retire() {
            self.retired.put(root);
        }
        drop(space);
        self.free_root(&ctx.pin());
    }

    fn activate(&self, pin: &Pinned<'_>) -> Frame {
        tlb::join(&self.active, pin);
        debug_assert!(!self.retired.is_cleared(), "a cleared address space was activated");
        self.root
    }
    fn deactivate(&self, pin: &Pinned<'_>) {
        tlb::leave(&self.active, pin);
        self.free_root(pin);
    }

    fn areas(&self, range: PageRange, ctx: &Unpinned<'_>, f: &mut dyn FnMut(&MappingInfo<'_>)) {
        let space = self.space.read(ctx);
        space.mappings.overlapping(range).for_each(|(range, mapping)| f(&MappingInfo { range, mapping }));
    }
    fn inspect(&self, range: PageRange, ctx: &Unpinned<'_>, f: &mut dyn FnMut(Seen<'_>)) {
        let space = self.space.read(ctx);
        for (whole, mapping) in space.mappings.overlapping(range) {
            f(Seen::Mapping(&MappingInfo { range: whole, mapping }));
            let Some(part) = whole.intersect(range) else { continue };
            let _pin = ctx.pin();
            for (leaf, part) in space.table.leaves(part) {
                for page in part {
                    if let Some(resident) = page::resident(leaf.peek(page), self.machine.frames) {
                        f(Seen::Page(page, resident));
                    }
                }
            }
        }
    }
    fn audit(&self, range: PageRange, ctx: &Unpinned<'_>, f: &mut dyn FnMut(&Audited)) {
        // Exclude: the table says what a page has, and the mapping what it may grant.
        let space = self.space.write(ctx);
        for at in range {
            let entry = space.table.peek(at);
            let allowed = space.mappings.find(at).map_or(Prot::empty(), |(_, mapping)| {
                let all = page::hardware(mapping.prot);
                if entry.is_present() {
                    page::rights(mapping, entry.frame(), self.machine.frames)
                } else {
                    all
                }
            });
            assert!(allowed.contains(entry.prot()), "{entry:?} grants more than {allowed:?} at {at:?}");
            let frame = entry.is_present().then(|| entry.frame());
            f(&Audited { page: at, frame, rights: entry.prot(), cpus: CpuSet::first(MAX_CPUS) });
        }
    }
    fn find(&self, page: Page, ctx: &Unpinned<'_>) -> Option<(PageRange, Mapping)> {
        let space = self.space.read(ctx);
        space.mappings.find(page).map(|(range, mapping)| (range, mapping.clone()))
    }
    fn shared_page(&self, page: Page, ctx: &Unpinned<'_>) -> Option<((u64, u64), u64)> {
        let space = self.space.read(ctx);
        let (range, mapping) = space.mappings.find(page)?;
        mapping.shared_page(page.number() - range.start().number())
    }
    fn peak_resident(&self, ctx: &Unpinned<'_>) -> u64 {
        let space = self.space.read(ctx);
        // Relaxed: counts for reports.
        space.peak_resident.load(Ordering::Relaxed).max(space.resident.load(Ordering::Relaxed))
    }
    fn usage(&self, ctx: &Unpinned<'_>) -> Usage {
        let space = self.space.read(ctx);
        let (resident_pages, table_pages) = space.table.census();
        // Relaxed: a count.
        let peak = space.peak_resident.load(Ordering::Relaxed);
        Usage {
            mapped_pages: space.mappings.totals().pages,
            mappings: space.mappings.len() as u64,
            resident_pages,
            peak_resident: peak.max(resident_pages),
            table_pages,
            totals: *space.mappings.totals(),
        }
    }
}

impl Locked {
    /// Put `new`, a copy of `old`, in its place at `at`, with `rights`. False if something else is there by now; `old` and
    /// `new` are given back then.
    #[allow(clippy::too_many_arguments, reason = "a page, what it had and gets, and what the caller holds")]
    fn replace(
        &self,
        space: &Space,
        at: Page,
        old: OwnedFrame,
        new: OwnedFrame,
        rights: Prot,
        gather: &mut Gather<'_>,
        ctx: &Unpinned<'_>,
    ) -> bool {
        let frames = self.machine.frames;
        let pin = ctx.pin();
        let leaf = space.table.lock_leaf(at).filter(|leaf| leaves::still_has(leaf, at, &old));
        let Some(leaf) = leaf else {
            frames.free(&pin, new);
            frames.free(&pin, old);
            return false;
        };
        leaves::replace(&leaf, at, old, new, rights, gather, |gather| self.flush(gather, &pin));
        true
    }
}

impl Mapper for Locked {
    fn cut(&self, of: &Mappers, pages: Range<u64>, copies: bool, ctx: &Unpinned<'_>) {
        // Exclude: a fault that has asked the object before the cut has inserted its answer, or not yet asked.
        let space = self.space.write(ctx);
        let mut gather = self.gather(ctx);
        let which = if copies { Which::Frames } else { Which::Objects };
        for part in space.mappings.showing(of, pages, Mappings::everywhere()) {
            self.take(&space, part, which, &mut gather, ctx);
        }
        if mutant!("cut-no-flush") {
            gather.flush(&ctx.pin(), self.machine.shootdown, &AtomicCpuSet::new());
        }
        self.flush(&mut gather, &ctx.pin());
        drop(space);
    }
    fn count(&self, of: &Mappers, ctx: &Unpinned<'_>) -> u64 {
        let space = self.space.read(ctx);
        space.mappings.iter().filter(|(_, mapping)| mapping.shows(of)).count() as u64
    }
}

impl fmt::Debug for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locked")
            .field("root", &self.root)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}
