//! An address space whose mappings are changed by one at a time: what [`locked`](crate::locked) and [`bonsai`](crate::bonsai)
//! have in common, and all but what is said there of faults.
//!
//! The mappings lie in a tree ([`Mappings`]) under one sleeping lock, `maps`, and pages in one page table, each of whose leaf tables has
//! a lock. Whoever changes mappings has `maps` for writing: from its first look to the end of the flush. It unpublishes what
//! changes, takes or lowers the entries, flushes, and publishes what is new, in this order. In `Locked` nobody can tell, since
//! faults have `maps` too; in `Bonsai` they look into the tree without a lock.

mod advise;
mod copies;
mod fault;
pub(crate) mod gate;
mod remap;
mod tables;

use alloc::{
    boxed::Box,
    sync::{Arc, Weak},
};
use core::{fmt, ops::Range, ptr};

use addr::{Frame, Page, PageRange, Prot, VirtAddr};
use pagetable::{Concurrent, Which};
use percpu::{AtomicCpuSet, CpuSet, Line, MAX_CPUS, Pinned, Unpinned};
use sync::{RwLock, SpinLock, mutant, pause};

use self::{
    gate::Gate,
    tables::{Taken, Waiting},
};
use crate::{
    Access, AddressSpace, Advice, Audited, Error, Exclude, Fault, Limits, Lock, Machine, Mapper, Mappers,
    Mapping, MappingInfo, Place, Placement, Policy, Realm, RemapTo, Resident, Seen, Unmoved, Usage, Variant,
    index::{HIDDEN, Index, Readers, is_alive},
    locked::{Count, Wait},
    mappers::shown_in,
    mappings::Mappings,
    page,
    plan::{NewMapping, Remap, down_to_start, growth, in_parts, lockable, part_of, protectable},
    radix::totals::Counts,
    retired::Retired,
    rules::{check, relock, user},
};

/// Turns for which a thread looks whether it may enter before it sleeps, with [`Wait::Spin`].
const PATIENCE: u32 = 1000;

/// What the designs differ in.
#[derive(Clone, Copy)]
pub(crate) enum Protocol {
    /// Faults take the lock of the mappings. So many CPUs count pages.
    Locked { cpus: usize, variant: Variant },
    /// Faults look in sections of the realm, and exclude what is said. The tree has leaves from so many nodes on.
    Bonsai { realm: &'static Realm, exclude: Exclude, leaves_from: usize },
}

impl Protocol {
    /// Whose sections may look into the tree and the page table.
    fn realm(&self) -> Option<&'static Realm> {
        match self {
            Protocol::Locked { .. } => None,
            Protocol::Bonsai { realm, .. } => Some(realm),
        }
    }
    fn exclude(&self) -> Exclude {
        match self {
            Protocol::Locked { .. } => Exclude::Stock,
            Protocol::Bonsai { .. } if mutant!("bonsai-excludes-nothing") => Exclude::Rcu,
            Protocol::Bonsai { exclude, .. } => *exclude,
        }
    }
    /// How pages of objects are counted.
    fn count(&self) -> Count {
        match self {
            Protocol::Locked { variant, .. } if !mutant!("count-ignored") => variant.count,
            _ => Count::Lent,
        }
    }
}

/// See the module.
pub struct Serial {
    machine: Machine,
    protocol: Protocol,
    /// Which CPUs may have translations of this space cached.
    active: Line<AtomicCpuSet>,
    /// Who changes mappings.
    maps: Line<RwLock<Maps>>,
    index: Arc<Index>,
    table: Concurrent,
    counts: Counts,
    /// Closed while fork makes entries read-only.
    gate: Gate,
    retired: Retired,
    /// Where the root goes in the end, if it may be walked.
    grave: SpinLock<Option<Box<Waiting>>>,
}

struct Maps {
    mappings: Mappings,
    /// How mappings to come are locked.
    future: Lock,
}

impl Serial {
    /// An empty address space. Errors: `NoMemory`.
    pub(crate) fn new(machine: Machine, protocol: Protocol, ctx: &Unpinned<'_>) -> Result<Arc<Self>, Error> {
        let (readers, leaves_from, cpus, last_hit, patience, grave) = match protocol {
            Protocol::Locked { cpus, variant } => {
                let patience = if variant.wait == Wait::Spin { PATIENCE } else { 0 };
                (Readers::Locked, ::bonsai::LEAVES_FROM, cpus, variant.last_hit, patience, None)
            }
            Protocol::Bonsai { realm, leaves_from, .. } => {
                let grave = Waiting::new(machine.frames).ok_or(Error::NoMemory)?;
                (Readers::Sections(realm), leaves_from, realm.cpus(), false, 0, Some(grave))
            }
        };
        let table = Concurrent::new(machine.frames, &ctx.pin(), machine.kernel_root);
        let table = table.ok_or(Error::NoMemory)?;
        let index = Arc::new(Index::new(readers, leaves_from, protocol.exclude(), last_hit));
        Ok(Arc::new_cyclic(|me: &Weak<Self>| {
            let mappings = Mappings::new(index.clone(), me.clone());
            Self {
                machine,
                protocol,
                active: Line(AtomicCpuSet::new()),
                maps: Line(RwLock::patient(Maps { mappings, future: Lock::Off }, patience)),
                index,
                table,
                counts: Counts::new(cpus),
                gate: Gate::new(),
                retired: Retired::new(),
                grave: SpinLock::new(grave),
            }
        }))
    }
    /// Call `f` with each page of `range` that has a frame or a guard. The mappings are locked.
    fn each_page(&self, range: PageRange, ctx: &Unpinned<'_>, f: &mut dyn FnMut(Page, Resident)) {
        let _pin = ctx.pin();
        for (leaf, part) in self.table.leaves(range) {
            for page in part {
                if let Some(resident) = page::resident(leaf.peek(page), self.machine.frames) {
                    f(page, resident);
                }
            }
        }
    }
    /// For [`Exclude::FaultLock`]: no fault is under way until this is dropped.
    fn exclude_faults(&self, ctx: &Unpinned<'_>) -> Option<sync::WriteGuard<'_, ()>> {
        pause!("bonsai-looked");
        let excludes = self.protocol.exclude() == Exclude::FaultLock && !mutant!("bonsai-faults-let-in");
        excludes.then(|| self.index.faults.0.write(ctx))
    }
    /// Look up `page`, and give what `f` says of what it shows: without the lock, if that is found so.
    fn glance<R>(&self, page: Page, ctx: &Unpinned<'_>, f: impl Fn(PageRange, &Mapping) -> R) -> Option<R> {
        if let Some(realm) = self.protocol.realm() {
            let pin = ctx.pin();
            let section = realm.sections().read(&pin);
            if let Some(area) = self.index.covering(page, &section) {
                let number = area.number();
                let result = f(area.range, &area.mapping);
                if number != HIDDEN && is_alive(area, number) {
                    return Some(result);
                }
            }
        }
        let maps = self.maps.0.read(ctx);
        maps.mappings.find(page).map(|(range, mapping)| f(range, mapping))
    }
}

impl AddressSpace for Serial {
    fn places(&self, f: &mut dyn FnMut(&'static str, Range<usize>)) {
        fn of<T>(part: &T) -> Range<usize> {
            let start = ptr::from_ref(part).addr();
            start..start + size_of::<T>()
        }
        f("", of(self));
        let [lock, value] = self.maps.0.places();
        f("lock", lock);
        f("mappings, but the tree", value);
        f("second lock", of(&self.index.faults));
        f("tree", self.index.place());
        f("page table's root and lock", of(&self.table));
        f("set of CPUs", of(&self.active));
        f("gate", of(&self.gate));
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
        let mut new = NewMapping::plan(&mut maps.mappings, future, at, pages, mapping, limits, ctx)?;
        if self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        if !maps.mappings.announce(&new.mapping, pages, &ctx.pin()) {
            return Err(Error::Sealed);
        }
        new.settle();
        let faults = self.exclude_faults(ctx);
        if !new.free && mutant!("bonsai-publish-early") {
            maps.mappings.remove(new.range, ctx);
            maps.mappings.insert(new.range, new.mapping, ctx);
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
        maps.mappings.insert(new.range, new.mapping, ctx);
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
        let late = mutant!("bonsai-protect-unpublished");
        let change = |mapping: &mut Mapping| mapping.prot = prot;
        let done = if late { Ok(()) } else { maps.mappings.update(reach, change, ctx) };
        let (reach, result) = match done {
            Ok(()) => (reach, result),
            Err(at) => (PageRange::new(reach.start(), at).unwrap_or_default(), Err(Error::NoMemory)),
        };
        let mut taken = self.taken(ctx);
        for (area, mapping) in maps.mappings.overlapping(reach) {
            let Some(part) = area.intersect(reach) else { continue };
            let soon = late.then(|| Mapping { prot, ..mapping.clone() });
            let mapping = soon.as_ref().unwrap_or(mapping);
            let rights = |frame| page::rights(mapping, frame, self.machine.frames);
            if let Some(lost) = self.table.protect(part, rights)
                && !mutant!("protect-no-flush")
            {
                taken.gather.add_range(lost);
            }
        }
        self.close(&mut taken, ctx);
        if late {
            maps.mappings.change(reach, change, ctx);
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
            let done = maps.mappings.update(reach, |mapping| relock(mapping, lock), ctx);
            done.map_err(|_| Error::NoMemory)?;
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
        if let Some(lock) = now {
            let done = maps.mappings.update(Mappings::everywhere(), |mapping| relock(mapping, lock), ctx);
            done.map_err(|_| Error::NoMemory)?;
        }
        maps.future = future.unwrap_or(maps.future);
        Ok(())
    }

    fn grow(&self, va: VirtAddr, limits: &Limits, ctx: &Unpinned<'_>) -> Result<(), Error> {
        let mut maps = self.maps.0.write(ctx);
        let Some(top) = growth(&maps.mappings, va, limits)? else { return Ok(()) };
        if self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        maps.mappings.grow_down(top, va.page(), ctx);
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
            let Some(part) = whole.intersect(range) else { continue };
            let cut = (part.start() > whole.start())
                .then(|| mapping.advanced(part.start().number() - whole.start().number()));
            f(Seen::Mapping(&MappingInfo { range: part, mapping: cut.as_ref().unwrap_or(mapping) }));
            self.each_page(part, ctx, &mut |page, resident| f(Seen::Page(page, resident)));
        }
    }
    fn pages(&self, range: PageRange, ctx: &Unpinned<'_>, f: &mut dyn FnMut(Page, Resident)) {
        let _maps = self.maps.0.read(ctx);
        self.each_page(range, ctx, f);
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
    fn find(&self, within: PageRange, ctx: &Unpinned<'_>) -> Option<(PageRange, Mapping)> {
        let first = within.start();
        let found = self.glance(first, ctx, |range, mapping| {
            (range.intersect(within), mapping.advanced(first.number() - range.start().number()))
        });
        found.and_then(|(part, mapping)| Some((part?, mapping)))
    }
    fn shared_page(&self, page: Page, ctx: &Unpinned<'_>) -> Option<((u64, u64), u64)> {
        let offset = |range: PageRange| page.number() - range.start().number();
        self.glance(page, ctx, |range, mapping| mapping.shared_page(offset(range))).flatten()
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

impl Mapper for Serial {
    fn cut(&self, of: &Mappers, pages: Range<u64>, copies: bool, ctx: &Unpinned<'_>) {
        // Exclude others that change mappings, and those that ask the object with them locked.
        let mut maps = self.maps.0.write(ctx);
        let mut taken = self.taken(ctx);
        let which = if copies { Which::Frames } else { Which::Objects };
        let mut rest = Mappings::everywhere();
        loop {
            let next = maps.mappings.showing(of, pages.clone(), rest).next();
            let Some((part, after)) = next else { break };
            // Who has asked the object before does not go on with the answer (B4), and faults find none until after the flush.
            if !mutant!("bonsai-cut-unseen") {
                maps.mappings.hide(part, ctx);
            }
            self.take(part, which, &mut taken, ctx);
            rest = after;
        }
        if mutant!("cut-no-flush") {
            taken.gather.flush(&ctx.pin(), self.machine.shootdown, &AtomicCpuSet::new());
        }
        self.close(&mut taken, ctx);
        let mut rest = Mappings::everywhere();
        loop {
            let next = maps.mappings.showing(of, pages.clone(), rest).next();
            let Some((part, after)) = next else { break };
            maps.mappings.show(part);
            rest = after;
        }
        drop(maps);
    }
    fn count(&self, of: &Mappers, ctx: &Unpinned<'_>) -> u64 {
        let maps = self.maps.0.read(ctx);
        maps.mappings.iter().filter(|(_, mapping)| mapping.shows(of)).count() as u64
    }
    fn shown(&self, of: &Mappers, pages: Range<u64>, ctx: &Unpinned<'_>, f: &mut dyn FnMut(u64)) {
        shown_in(self, of, pages, ctx, f);
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial")
            .field("table", &self.table)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}
