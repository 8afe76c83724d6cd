//! The address space of the Bonsai tree: page faults without a lock on the mappings (Clements, Kaashoek, Zeldovich,
//! "Scalable Address Spaces Using RCU Balanced Trees", ASPLOS 2012), and one sleeping lock for those that change them.
//!
//! **Claim.** As for [`Locked`](crate::Locked): every operation takes effect at one instant, and no CPU uses a frame through
//! this space that the space does not own any more. Beyond that, a fault that finds its mapping writes nothing that faults on
//! other leaf tables, or on other mappings, read: neither the tree, nor a mapping, nor anything of the space's own. And it
//! waits for nobody but holders of its page's leaf table.
//!
//! **Idea.** Whatever is told of a mapping is told for ever: a change makes new objects and declares the old ones dead. So
//! a fault needs no lock to know what it has found, only to know whether it still counts; and the place to ask that is the
//! one at which it has to stop anyway, the lock of the leaf table in which it wants to put an entry. Everything else a fault
//! can't decide alone (there is no mapping, or it does not allow the access, or the object has to be waited for in vain) it
//! leaves to the list of mappings, under the lock.
//!
//! # Protocol
//! | operation | `maps` | in a section | leaf lock | flush |
//! | --- | --- | --- | --- | --- |
//! | fault: fill, raise | no | look-up to insertion | to look again and insert | none: no entry lost a right |
//! | fault: copy on write | no | look-up to the end | over insert, flush and raise | under the leaf lock |
//! | fault that found nothing, or was refused | shared | no | as above | as above |
//! | advise(DontNeed, Free) | no; shared if refused | 32 MiB at a time | over take and flush, leaf by leaf | under the leaf lock |
//! | advise(InstallGuards, RemoveGuards), move_page | shared | no | as in `Locked` | as there |
//! | advise(Flags, Place), lock, grow | exclusive | no | no | none: rights stay as they are |
//! | map, unmap, protect, remap, fork, cut, clear | exclusive, until after the flush | no | each leaf while it changes | one round; a second if remap emptied a table |
//! | find, shared_page | no; shared if nothing is found | look-up | no | no |
//! | mappings, usage | shared | no | no | no |
//!
//! **Lock order**: `maps` (sleeps), then an object's own locks (may sleep), then the tree's writer lock or one table above the
//! leaves, then one leaf lock (fork takes the parent's and then the child's, which nobody else knows yet), then the frame
//! allocator's. An object is asked for a page by who is in no section, and, if it was the tree that told of it, has no lock
//! either. Spinning locks are taken pinned, with interrupts on, so that a CPU that waits for a leaf lock still answers the
//! shootdown its holder waits for. No section sleeps.
//!
//! # Invariants
//! * **B1** *(no refusal without the lock)* What finds no live mapping, a guard, or a mapping that does not allow what is asked,
//!   asks the list under `maps`, which alone decides SIGSEGV and SIGBUS.
//! * **B2** *(dead first)* A mapping in the tree is immutable but for being dead. It dies once, after the tree no longer leads
//!   to it, and before any entry of its pages is touched for what changes ([`Bonsai::publish`]).
//! * **B3** *(grow before shrink)* The pieces of a mapping that stay are in the tree before it goes.
//! * **B4** *(ask again)* An entry is made to grant more only under the lock of its leaf table, by who has found the mapping
//!   alive under that lock: the very one by which its object was asked.
//! * **B5** *(visit all)* Who declares a mapping dead visits all leaf tables that its pages have or get: an absent one is passed
//!   under the lock of the table above ([`pagetable::Concurrent::leaves_in_order`]).
//! * **B6** *(tables)* A table is unlinked by a holder of `maps` when nothing alive has pages in it, and is free after the flush
//!   *and* the end of all sections that were open ([`Waiting`](tables::Waiting)).
//! * **B7** *(frames)* leave by a [`Gather`](tlb::Gather): free after the flush.
//! * I1, I2 and I4 of `Locked`; I3 while `maps` is free.
//!
//! # Races, and what decides them
//! * **R1** *A fault looks up what is being split.* It finds the old mapping, still alive or dead by now, or the piece; or
//!   nothing, and asks the list (B3, B1).
//! * **R3** *A fault has found its mapping; munmap clears the page; the fault goes on.* Dead before the leaf is locked to be
//!   cleared (B2), looked at with the leaf locked (B4): either the fault's section of that lock comes first, and what it puts
//!   in is found and taken; or it finds the mapping dead.
//! * **R4** *The same, and the leaf table does not exist yet when munmap passes by.* The lock of the table above orders the
//!   two in the same way (B5).
//! * **R5, R11** *Two faults make the same table, or fill the same page.* The second looks again under the lock, and gives back
//!   what it has prepared.
//! * **R6, R7** *A fault, or the hardware, walks a table that is unlinked.* B6. What a fault wants to lock there has no name
//!   any more, so it starts again.
//! * **R8** *A fault has found the protection that was.* B2 and B4 again. One that has found the new protection may meet an
//!   entry that grants more, as `protect` is still on its way there: such an entry is not lowered by the fault, which would not
//!   flush, but left to `protect`: the fault waits for the list.
//! * **R9** *Memory of a mapping is reused.* Not while a section is open in which it was found. A fault that has left its section
//!   to ask an object compares the numbers of mappings, which are not reused.
//! * **R12** *Copy on write, and a sibling that reads the old frame*: as in `Locked`.
//! * **R13** *Fork lowers an entry, another CPU still stores by its stale translation, a third copies the page.* The copy
//!   would miss the store. `fork_gate` is odd from before the first entry is lowered until after the flush; who wants to
//!   copy looks at it under the leaf lock: if it finds the gate open, either fork has not come to this leaf, and then the
//!   entry was read-only before, or the flush is over.
//!   Nor is an empty page of a private mapping filled while the gate is closed: a store to it would not be the child's, though a
//!   later one to a page that fork has not come to would. An absent leaf table is passed as in R4.
//! * **R14** *"Only share" against fork.* Fork shares and lowers under the leaf lock under which a fault asks.
//! * **R15** *Pages are cut off an object while a fault has one in its hands.* Who cuts declares the mappings dead, as if
//!   they changed, after the object has been changed and before an entry is taken; what is published after the flush says the
//!   same, and is another one (R9).
//! * **R16** *A page of an object is freed between look-up and use.* The object gives a share.
//! * **R17** *map over old mappings.* Unpublish, clear, flush, and only then publish: a fault in between asks the list, and waits.
//! * **R18** *remap.* The source is unpublished before it loses its rights, the target published when the entries are there.
//! * **R19** *DontNeed* looks whether the mapping is alive under each leaf lock; if it isn't any more, the list is asked. It may
//!   meet an entry from which `protect` has taken the last right, and has not flushed yet: though the entry is not present,
//!   CPUs may have it cached. So here a frame goes no sooner than after a flush of its page, whatever its entry says.
//! * **R20** *A CPU joins or leaves*: see [`tlb`].
//!
//! # What faults exclude
//! [`Exclude`] has the designs of the paper's section 4 for comparison: how much of the above is left out.

mod advise;
mod copies;
mod fault;
mod index;
mod remap;
mod tables;

use alloc::{
    boxed::Box,
    sync::{Arc, Weak},
};
use core::{fmt, ops::Range, ptr};

use ::bonsai::RegionTree;
use addr::{Frame, Page, PageRange, Prot, VirtAddr};
use pagetable::{Concurrent, Which};
use percpu::{AtomicCpuSet, CpuSet, Line, MAX_CPUS, Pinned, Unpinned};
use sync::{RwLock, SpinLock, mutant, primitive::AtomicU64};

use self::{
    index::Area,
    tables::{Taken, Waiting},
};
use crate::{
    Access, AddressSpace, Advice, Audited, Error, Fault, Limits, Lock, Machine, Mapper, Mappers, Mapping,
    MappingInfo, Mappings, Place, Placement, Policy, Realm, RemapTo, Seen, Unmoved, Usage, page,
    plan::{NewMapping, Remap, down_to_start, growth, in_parts, lockable, part_of, protectable},
    radix::totals::Counts,
    retired::Retired,
    rules::{check, relock, user},
};

/// What page faults wait for, and what waits for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Exclude {
    /// A fault takes the lock of the list, shared, throughout.
    Stock,
    /// A fault takes a second lock, shared, throughout; who changes mappings has it from the first change of the tree to the end
    /// of the flush.
    FaultLock,
    /// A fault takes a second lock, shared, for the look-up; who changes mappings has it while the tree is changed.
    Hybrid,
    /// A fault looks up without a lock, and is then counted in the mapping; who has declared the mapping dead waits for it.
    PerMapping,
    /// Nothing.
    #[default]
    Rcu,
}

impl Exclude {
    /// The one that `name` names on a command line.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "stock" => Self::Stock,
            "fault-lock" => Self::FaultLock,
            "hybrid" => Self::Hybrid,
            "per-mapping" => Self::PerMapping,
            "rcu" => Self::Rcu,
            _ => return None,
        })
    }
}

/// See the module.
pub struct Bonsai {
    machine: Machine,
    realm: &'static Realm,
    exclude: Exclude,
    /// Which CPUs may have translations of this space cached.
    active: Line<AtomicCpuSet>,
    /// Who changes mappings.
    maps: Line<RwLock<Maps>>,
    /// The second lock of [`Exclude::FaultLock`] and [`Exclude::Hybrid`].
    faults: Line<RwLock<()>>,
    index: RegionTree<Area, &'static rcu::kernel::Domain>,
    table: Concurrent,
    counts: Counts,
    /// Odd while fork makes entries read-only.
    fork_gate: AtomicU64,
    retired: Retired,
    /// Where the root goes in the end.
    grave: SpinLock<Option<Box<Waiting>>>,
}

struct Maps {
    mappings: Mappings,
    /// How mappings to come are locked.
    future: Lock,
    /// Areas of the tree so far.
    ids: u64,
}

impl Bonsai {
    /// An empty address space in `realm`, whose faults exclude what `exclude` says. Errors: `NoMemory`.
    pub fn new(
        machine: Machine,
        realm: &'static Realm,
        exclude: Exclude,
        ctx: &Unpinned<'_>,
    ) -> Result<Arc<Self>, Error> {
        let grave = Waiting::new(machine.frames).ok_or(Error::NoMemory)?;
        let table = Concurrent::new(machine.frames, &ctx.pin(), machine.kernel_root);
        let table = table.ok_or(Error::NoMemory)?;
        Ok(Arc::new_cyclic(|me: &Weak<Self>| Self {
            machine,
            realm,
            exclude,
            active: Line(AtomicCpuSet::new()),
            maps: Line(RwLock::new(Maps { mappings: Mappings::new(me.clone()), future: Lock::Off, ids: 0 })),
            faults: Line(RwLock::new(())),
            index: RegionTree::new(realm.sections()),
            table,
            counts: Counts::new(realm.cpus()),
            fork_gate: AtomicU64::new(0),
            retired: Retired::new(),
            grave: SpinLock::new(Some(grave)),
        }))
    }
    /// For [`Exclude::FaultLock`]: no fault is under way until this is dropped.
    fn exclude_faults(&self, ctx: &Unpinned<'_>) -> Option<sync::WriteGuard<'_, ()>> {
        (self.exclude == Exclude::FaultLock).then(|| self.faults.0.write(ctx))
    }
    /// Look up `page` without a lock, and give what `f` says of what it shows: `None` if that is not found, or dead.
    fn glance<R>(
        &self,
        page: Page,
        ctx: &Unpinned<'_>,
        f: impl FnOnce(PageRange, &Mapping) -> R,
    ) -> Option<R> {
        let pin = ctx.pin();
        let section = self.realm.sections().read(&pin);
        let (region, area) = self.index.read(&section).covering(index::key(page))?;
        let result = f(index::pages(region), &area.mapping);
        (!area.is_dead()).then_some(result)
    }
}

impl AddressSpace for Bonsai {
    fn places(&self, f: &mut dyn FnMut(&'static str, Range<usize>)) {
        fn of<T>(part: &T) -> Range<usize> {
            let start = ptr::from_ref(part).addr();
            start..start + size_of::<T>()
        }
        f("", of(self));
        let [lock, value] = self.maps.0.places();
        f("lock", lock);
        f("list of mappings", value);
        f("second lock", of(&self.faults));
        f("tree", of(&self.index));
        f("page table's root and lock", of(&self.table));
        f("set of CPUs", of(&self.active));
        f("gate", of(&self.fork_gate));
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
        // Exclude others that change mappings.
        let mut maps = self.maps.0.write(ctx);
        let future = maps.future;
        let mut new = NewMapping::plan(&mut maps.mappings, future, at, pages, mapping, limits)?;
        if self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        if !maps.mappings.announce(&new.mapping, pages, &ctx.pin()) {
            return Err(Error::Sealed);
        }
        new.settle();
        let faults = self.exclude_faults(ctx);
        if !new.free && mutant!("bonsai-publish-early") {
            maps.mappings.remove(new.range);
            maps.mappings.insert(new.range, new.mapping);
            self.publish(&mut maps, new.range, ctx);
            let mut taken = self.taken(ctx);
            self.take(new.range, Which::All, &mut taken, ctx);
            self.close(&mut taken, ctx);
            return Ok((new.range, new.bring_in));
        }
        // Take what was there, and make it unreachable, before the new mapping can be found and filled.
        let mut taken = self.taken(ctx);
        if !new.free {
            self.evict(&mut maps, new.range, &mut taken, ctx);
            self.close(&mut taken, ctx);
        }
        maps.mappings.insert(new.range, new.mapping);
        self.publish(&mut maps, new.range, ctx);
        drop(faults);
        drop(maps);
        Ok((new.range, new.bring_in))
    }

    fn unmap(&self, range: PageRange, ctx: &Unpinned<'_>) -> Result<(), Error> {
        user(range)?;
        // Exclude others that change mappings.
        let mut maps = self.maps.0.write(ctx);
        if maps.mappings.punches(range) && self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        // Unpublish; take; flush; release; free.
        let faults = self.exclude_faults(ctx);
        let mut taken = self.taken(ctx);
        let early = mutant!("bonsai-targets-early").then(|| self.active.0.snapshot());
        self.evict(&mut maps, range, &mut taken, ctx);
        if let Some(early) = early {
            let targets = AtomicCpuSet::new();
            early.iter().for_each(|cpu| targets.insert(cpu));
            taken.gather.flush(&ctx.pin(), self.machine.shootdown, &targets);
        }
        if mutant!("unlock-before-flush") {
            drop(maps);
            self.close(&mut taken, ctx);
            return Ok(());
        }
        self.close(&mut taken, ctx);
        drop(faults);
        drop(maps);
        Ok(())
    }

    fn unmap_object(
        &self,
        range: PageRange,
        identity: (u64, u64),
        ctx: &Unpinned<'_>,
    ) -> Result<bool, Error> {
        user(range)?;
        // Exclude others that change mappings.
        let mut maps = self.maps.0.write(ctx);
        // Only a mapping that holds the whole range and more is left with a hole in its middle.
        if maps.mappings.punches(range) && self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        // Unpublish; take; flush; release; free.
        let faults = self.exclude_faults(ctx);
        let mut taken = self.taken(ctx);
        let (mut next, mut any) = (Some(range.start()), false);
        while let Some((area, mapping)) = next.and_then(|at| maps.mappings.find_from(at)) {
            let part = part_of(area, mapping, range, identity);
            next = Some(area.end()).filter(|&end| end < range.end());
            if let Some(part) = part {
                any = true;
                self.evict(&mut maps, part, &mut taken, ctx);
            }
        }
        self.close(&mut taken, ctx);
        drop(faults);
        drop(maps);
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
        if range.is_empty() {
            return Err(Error::Invalid);
        }
        // Exclude others that change mappings.
        let mut maps = self.maps.0.write(ctx);
        let range = if down { down_to_start(&maps.mappings, range)? } else { range };
        let (reach, result) = protectable(&maps.mappings, range, prot, limits);
        if maps.mappings.splits(reach) > 0 && self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        if reach.is_empty() {
            return result;
        }
        // Change what the pages should be, then what they are.
        let faults = self.exclude_faults(ctx);
        maps.mappings.update(reach, |mapping| mapping.prot = prot);
        if !mutant!("bonsai-protect-unpublished") {
            self.publish(&mut maps, reach, ctx);
        }
        let mut taken = self.taken(ctx);
        for (area, mapping) in maps.mappings.overlapping(reach) {
            let Some(part) = area.intersect(reach) else { continue };
            let rights = |frame| page::rights(mapping, frame, self.machine.frames);
            if let Some(lost) = self.table.protect(part, rights)
                && !mutant!("protect-no-flush")
            {
                taken.gather.add_range(lost);
            }
        }
        self.close(&mut taken, ctx);
        if mutant!("bonsai-protect-unpublished") {
            self.publish(&mut maps, reach, ctx);
        }
        drop(faults);
        drop(maps);
        result
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
        // Exclude others that change mappings.
        let mut maps = self.maps.0.write(ctx);
        let _faults = self.exclude_faults(ctx);
        let mut taken = self.taken(ctx);
        // Several mappings move one by one, and what lies between them stays.
        let Some(target) = in_parts(&maps.mappings, old, new_pages, to) else {
            return self.remap_one(&mut maps, old, new_pages, to, keep, limits, &mut taken, ctx);
        };
        Remap::check_target(old, new_pages, target)?;
        let mut rest = old;
        while let Some((area, _)) = maps.mappings.find_from(rest.start()) {
            // What was left behind may be part of it by now.
            let Some(part) = area.intersect(rest) else { break };
            rest = PageRange::new(part.end(), old.end()).unwrap_or_default();
            let there =
                target.checked_add(part.start().number() - old.start().number()).ok_or(Error::Invalid)?;
            let to = RemapTo::Fixed(there);
            self.remap_one(&mut maps, part, part.len(), to, keep, limits, &mut taken, ctx)?;
        }
        Ok(target)
    }

    fn advise(&self, range: PageRange, advice: Advice, ctx: &Unpinned<'_>) -> Result<(), Error> {
        if range.is_empty() {
            return Err(Error::Invalid);
        }
        match advice {
            Advice::Flags(set, clear) => self.advise_flags(range, set, clear, ctx),
            Advice::Place(policy) => self.advise_policy(range, policy, ctx),
            pages => self.advise_pages(range, &pages, ctx),
        }
    }

    fn lock(&self, range: PageRange, lock: Lock, limits: &Limits, ctx: &Unpinned<'_>) -> Result<(), Error> {
        if range.is_empty() {
            return Err(Error::Invalid);
        }
        let mut maps = self.maps.0.write(ctx);
        let reach = lockable(&maps.mappings, range, lock, limits)?;
        if maps.mappings.splits(reach) > 0 && self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        if !reach.is_empty() {
            maps.mappings.update(reach, |mapping| relock(mapping, lock));
            self.publish(&mut maps, reach, ctx);
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
        let mut maps = self.maps.0.write(ctx);
        let total = maps.mappings.totals().pages;
        if now.is_some_and(|lock| lock != Lock::Off) && total > limits.locked {
            return Err(Error::LockLimit);
        }
        maps.future = future.unwrap_or(maps.future);
        if let Some(lock) = now {
            maps.mappings.update_all(|mapping| relock(mapping, lock));
            self.publish(&mut maps, Mappings::everywhere(), ctx);
        }
        Ok(())
    }

    fn grow(&self, va: VirtAddr, limits: &Limits, ctx: &Unpinned<'_>) -> Result<(), Error> {
        let mut maps = self.maps.0.write(ctx);
        let Some(top) = growth(&maps.mappings, va, limits)? else { return Ok(()) };
        if self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        maps.mappings.grow_down(top, va.page());
        self.publish(&mut maps, PageRange::new(va.page(), top).unwrap_or_default(), ctx);
        Ok(())
    }

    fn fault_by(
        &self,
        policy: &Policy,
        va: VirtAddr,
        access: Access,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Fault> {
        self.resolve(policy, va.page(), access, ctx)
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
        let mut maps = self.maps.0.write(ctx);
        let faults = self.exclude_faults(ctx);
        let mut taken = self.taken(ctx);
        self.evict(&mut maps, Mappings::everywhere(), &mut taken, ctx);
        self.close(&mut taken, ctx);
        drop(faults);
        if !self.retired.is_cleared() {
            // SAFETY: once, as `maps` is held; nothing is mapped any more, or will be.
            self.retired.put(unsafe { self.table.retire() });
        }
        drop(maps);
        self.free_root(&ctx.pin());
    }

    fn activate(&self, pin: &Pinned<'_>) -> Frame {
        tlb::join(&self.active.0, pin);
        debug_assert!(!self.retired.is_cleared(), "a cleared address space was activated");
        self.table.root()
    }
    fn deactivate(&self, pin: &Pinned<'_>) {
        tlb::leave(&self.active.0, pin);
        self.free_root(pin);
    }

    fn areas(&self, range: PageRange, ctx: &Unpinned<'_>, f: &mut dyn FnMut(&MappingInfo<'_>)) {
        let maps = self.maps.0.read(ctx);
        maps.mappings.overlapping(range).for_each(|(range, mapping)| f(&MappingInfo { range, mapping }));
    }
    fn inspect(&self, range: PageRange, ctx: &Unpinned<'_>, f: &mut dyn FnMut(Seen<'_>)) {
        let maps = self.maps.0.read(ctx);
        for (whole, mapping) in maps.mappings.overlapping(range) {
            f(Seen::Mapping(&MappingInfo { range: whole, mapping }));
            let Some(part) = whole.intersect(range) else { continue };
            let _pin = ctx.pin();
            for (leaf, part) in self.table.leaves(part) {
                for page in part {
                    if let Some(resident) = page::resident(leaf.peek(page), self.machine.frames) {
                        f(Seen::Page(page, resident));
                    }
                }
            }
        }
    }
    fn audit(&self, range: PageRange, ctx: &Unpinned<'_>, f: &mut dyn FnMut(&Audited)) {
        // Exclude others that change mappings, and for each page those that change its entry.
        let maps = self.maps.0.write(ctx);
        if self.retired.is_cleared() {
            return;
        }
        for at in range {
            let _pin = ctx.pin();
            let hold = self.table.hold(at);
            let entry = hold.peek(at);
            let allowed = maps.mappings.find(at).map_or(Prot::empty(), |(_, mapping)| {
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
        let found = self.glance(page, ctx, |range, mapping| (range, mapping.clone()));
        found.or_else(|| {
            let maps = self.maps.0.read(ctx);
            maps.mappings.find(page).map(|(range, mapping)| (range, mapping.clone()))
        })
    }
    fn shared_page(&self, page: Page, ctx: &Unpinned<'_>) -> Option<((u64, u64), u64)> {
        let shown =
            |range: PageRange, mapping: &Mapping| mapping.shared_page(page.number() - range.start().number());
        self.glance(page, ctx, shown).unwrap_or_else(|| {
            let maps = self.maps.0.read(ctx);
            maps.mappings.find(page).and_then(|(range, mapping)| shown(range, mapping))
        })
    }
    fn peak_resident(&self, _: &Unpinned<'_>) -> u64 {
        self.counts.peak_resident()
    }
    fn usage(&self, ctx: &Unpinned<'_>) -> Usage {
        let maps = self.maps.0.read(ctx);
        // The root is freed some time after the end.
        let cleared = self.retired.is_cleared();
        let (resident_pages, table_pages) = if cleared { (0, 0) } else { self.table.census() };
        Usage {
            mapped_pages: maps.mappings.totals().pages,
            mappings: maps.mappings.len() as u64,
            resident_pages,
            peak_resident: self.counts.peak_resident().max(resident_pages),
            table_pages,
            totals: *maps.mappings.totals(),
        }
    }
}

impl Mapper for Bonsai {
    fn cut(&self, of: &Mappers, pages: Range<u64>, copies: bool, ctx: &Unpinned<'_>) {
        // Exclude others that change mappings, and those that ask the object with the list locked.
        let mut maps = self.maps.0.write(ctx);
        let mut taken = self.taken(ctx);
        let which = if copies { Which::Frames } else { Which::Objects };
        for part in maps.mappings.showing(of, pages.clone(), Mappings::everywhere()) {
            // Who has asked the object before finds the mapping dead (B2), and faults find none until after the flush.
            if !mutant!("bonsai-cut-unseen") {
                self.hide(part, ctx);
            }
            self.take(part, which, &mut taken, ctx);
        }
        if mutant!("cut-no-flush") {
            taken.gather.flush(&ctx.pin(), self.machine.shootdown, &AtomicCpuSet::new());
        }
        self.close(&mut taken, ctx);
        let mut rest = Mappings::everywhere();
        loop {
            let part = maps.mappings.showing(of, pages.clone(), rest).next();
            let Some(part) = part else { break };
            self.publish(&mut maps, part, ctx);
            let end = maps.mappings.find(part.start()).map_or(part.end(), |(area, _)| area.end());
            rest = PageRange::new(end, rest.end()).unwrap_or_default();
        }
        drop(maps);
    }
    fn count(&self, of: &Mappers, ctx: &Unpinned<'_>) -> u64 {
        let maps = self.maps.0.read(ctx);
        maps.mappings.iter().filter(|(_, mapping)| mapping.shows(of)).count() as u64
    }
}

impl fmt::Debug for Bonsai {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bonsai")
            .field("table", &self.table)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}
