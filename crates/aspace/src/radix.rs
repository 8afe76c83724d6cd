//! The address space as RadixVM has it (Clements, Kaashoek, Zeldovich, "RadixVM: Scalable Address Spaces for Multithreaded
//! Applications", EuroSys 2013): what a page is and should be is said in one slot of a radix tree, and whoever acts on
//! a page has that slot locked.
//!
//! **Claim.** Every operation on pages takes effect at one instant. No CPU uses a frame through this space that the space does
//! not own any more. Operations on pages of different slots wait for nobody, and mapping, unmapping, protecting and faults
//! there write no cache line in common; with a page table for each CPU not even there.
//!
//! **Idea.** A range is locked slot by slot in ascending order; a slot may stand for a whole span of pages that are alike (see
//! the crate `radix`). *The locks are held from the first look at the pages to the end of the shootdown.* Whoever locks
//! first wins; nobody looks twice, but for those few that cannot wait for an object with a lock held. A page table is a
//! [`Mirror`] of the tree for the hardware: faults fill it page by page from the tree, and it owns nothing. There is one, or one
//! for each CPU; the slot says which CPUs may have an entry, and they are the ones to be shot down (`tables`). Mappings that
//! may go anywhere go to a part of the address space that their CPU has to itself (`arena`; `large`), limits are charged without a
//! line in common unless there are any (`totals`), and descriptors are counted by Refcache (`realm`).
//!
//! # Protocol
//! | operation | locks | flush |
//! | --- | --- | --- |
//! | fault: fill, raise | the page; while a neighbour is filled too, also that one | none: no entry lost a right |
//! | fault: copy on write, move_page | the page, over copy and flush | under the lock |
//! | fault: an object's page | none while the object is asked; then the page | none |
//! | map, unmap, protect, advise, lock, grow | the range (grow: and the gap below it) | one round, under the locks |
//! | remap | where the pages are and where they go, ascending; `moving` | one round, under the locks |
//! | transfer | up to 64 pages and where their contents go, ascending | one round, under the locks |
//! | fork, lock_all, clear | everything | one round, under the locks |
//! | manage, set_levels, take_dirty (`managed`) | the range, or batches of ranges | one round a batch, under the locks; none if only rights are raised |
//! | shed, sweep | what a page-table page serves | one round each, under the locks |
//! | cut | mapping by mapping; `moving` | one round each, under the locks |
//! | areas, find, shared_page, usage | none, so a walk sees each page at a moment of its own (`walk`) | no |
//!
//! **Lock order**: `moving` (sleeps) > an object's own locks (may sleep) > slots, ascending > the lock of the upper page-table
//! levels, an object's list of mappers, the lock of limits, the frame allocator's. Slots are locked pinned, with interrupts
//! on, so that a CPU that waits for a slot still answers the shootdown its holder waits for. Nobody asks an object
//! for a page, or sleeps, with a slot locked.
//!
//! # Invariants
//! For each page whose slot is free:
//! * **I1** *(buffers)* Every CPU's cached translation of the page, if any, names the slot's frame, and grants no more than the
//!   page's entry in its page table does.
//! * **I2** *(entries)* An entry that isn't empty is for the slot's frame and grants no more than the descriptor's protection, nor
//!   than the slot's level if the page is managed; and it is writable in a private mapping only if the slot's share of the frame is the only one.
//! * **I3** *(frames)* A slot with a frame owns one share of it, or has it lent by its mapping's object. A page with a frame has a slot of its own.
//! * **I4** *(index)* A slot's descriptor says the same for all pages of its span, wherever the mapping begins; so mappings as
//!   reports show them are the longest runs of pages whose descriptors say the same, and nothing has to be joined or split.
//!
//! # Why I1 holds
//! As in `locked`: an entry loses rights or its frame only by *read-modify-write; fence(SeqCst); read `active`; shoot
//! down; unlock*, and a CPU begins to use the page table by *join `active`; fence(SeqCst); load CR3*. Whichever fence is
//! first, either the CPU's walks find the changed entry or the remover finds the CPU (`tlb` has the details). Until then the
//! slot is locked, so nobody puts another entry in, and nobody is told that the page is gone. Rights that are *raised*
//! need no flush: a stale entry causes one fault, which finds the page as it should be and returns.
//!
//! # Races, and what decides them
//! * **Two faults on one page.** The second waits for the slot, finds a frame, and takes it. A frame is asked for only when
//!   the slot is known to need one; so there are no losers to clean up after.
//! * **Fault and unmap, map, protect.** The slot decides. A fault that was first has put its entry in, and the other takes it
//!   out and shoots it down; one that comes later finds the slot empty, or what is mapped now.
//! * **Copy on write, and a sibling that still reads the old frame.** The entry is cleared and flushed before the copy is
//!   in the slot, all under the lock: a sibling that faults meanwhile waits and finds the copy. The old share is dropped
//!   after the flush, as its last other owner would take the frame for its own and write it.
//! * **"Only share" against fork.** Shares of a private frame are made by fork alone, which has the slot locked; so what a
//!   fault finds unshared stays so until it unlocks.
//! * **Rights that are given back.** Under the page's lock the entry in the table that this CPU fills gets what a fault would
//!   give it, if it is there: I2 holds for it as for a fault's, and a frame that is shared stays read-only. Fork, which alone
//!   makes it shared, has the slot locked too. Entries in other CPUs' tables are only lowered, and raised by their faults.
//! * **An object's page against everything.** Objects may sleep, so they are asked with no lock held, and a reference to the
//!   descriptor is kept instead. Then the slot must still have that descriptor and no frame, else the page that was given
//!   goes back and the fault begins anew. If it was unmapped meanwhile and mapped again just like before, the page is as good
//!   as ever, if it was not cut off: a descriptor means the same page of the same object for the same address.
//! * **An object's page against a cut.** The object publishes its new size and counts the cut; then the slots of every space on its
//!   list are locked one after the other and cleaned. A fault reads the count, asks, locks, and reads the count again. If it is
//!   the same, the list is taken later, and the cut finds what the fault has put in. Else the fault asks again. What the cut
//!   finds to be unmapped may still be translated, by a frame that the object owns: so it waits for all that is locked.
//!   `moving` keeps the objects' pages, and whole spaces, from moving to where a cut has looked already; who moves
//!   anonymous memory, as is known when it is locked, doesn't need it.
//! * **A chosen place.** It is looked for without locks, then locked; if it isn't free any more, or a stack has come too
//!   near, it is looked for again. A stack that grows locks the gap below it too: so of a stack that grows and a mapping that
//!   comes to lie in its gap one is first, and the other sees it.
//! * **Remap.** Both places are locked; entries of the source are cleared and flushed before either is free again. The
//!   frames' entries at the target come by faults.
//! * **`lock_all` for what is to come.** It is told while every page is locked, and `map` reads it with its own pages locked.
//!
//! # Who frees what, when
//! Frames that were taken out belong to the operation's [`Gather`] from then on; it frees them after the flush, when the
//! locks are free again (in rounds, under the locks, if they are very many). A page-table page is unlinked by who has locked
//! all pages it serves, flushed under these locks, and freed. That is not done by every unmap, as whoever maps and unmaps in
//! a loop would make tables again and again; but when there are twice as many as were needed at the last look
//! ([`Mirror::sweep`]). When memory is short all of them may go, needed or not ([`Mirror::shed`]), since each CPU can make its
//! own again from the tree. At a space's end they go without locks ([`Mirror::strip`]). Nodes of the tree and descriptors are collected by the [`Realm`]. The root outlives everything,
//! as in `locked`.
//!
//! # Memory that runs out
//! Frames and nodes fail cleanly: nodes are there before the first change. Calls that could need records of the
//! kernel's ask [`Memory::low`](owned::Memory::low) first, as in `locked`. What only gives memory back needs none, but for an
//! unmap that leaves a hole in a span.

mod advise;
mod arena;
mod audit;
mod change;
mod fault;
mod fork;
mod large;
mod managed;
mod map;
mod realm;
mod remap;
mod report;
mod rights;
mod tables;
pub(crate) mod totals;
mod transfer;
mod walk;
mod watch;
mod word;

use alloc::{
    boxed::Box,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{fmt, mem::ManuallyDrop, ops::Range, ptr};

use ::radix::{Mode, RangeGuard, Section, Tree};
use addr::{Frame, Page, PageRange, Prot, USER_END_PAGE, VirtAddr};
use owned::OwnedFrame;
use pagetable::{ENTRIES, Mirror};
use percpu::{AtomicCpuSet, CpuId, CpuSet, Line, Pinned, Unpinned};
use sync::{
    RwLock, SpinLock, mutant,
    primitive::{AtomicBool, AtomicU64, Ordering, fence},
};
use tlb::Gather;

pub(crate) use self::realm::{Buried, Graves, try_box};
use self::{
    arena::Arenas,
    change::{Change, page},
    realm::Grave,
    tables::Tables,
    totals::{Counts, Difference, Kinds, binds},
    walk::{KEYS, pages},
    word::{SEVERAL, Slot},
};
pub use self::{realm::Realm, tables::PageTables, word::FRAMES};
use crate::{
    Access, AddressSpace, Advice, Audited, Error, Fault, Flags, LOWEST, Limits, Lock, Machine, Managed,
    Mapper, Mappers, Mapping, MappingInfo, Place, Placement, Policy, RemapTo, Resident, STACK_GAP, Said,
    Seen, Totals, Unmoved, Usage, Watched,
    mappers::shown_in,
    rules::{check, dictated, relock, user},
};

/// An address space in a radix tree. What all CPUs read lies apart from what they write, and from the counts of references.
#[repr(align(128))]
pub struct Radix {
    machine: Machine,
    realm: &'static Realm,
    /// What each page is, and should be. Goes to the realm in the end.
    tree: ManuallyDrop<Tree<Realm>>,
    /// Memory for that.
    grave: Option<Box<Grave>>,
    /// What the hardware sees of it.
    tables: Tables,
    kind: PageTables,
    /// CPUs that may have translations of this space cached.
    active: Line<AtomicCpuSet>,
    counts: Counts,
    arenas: Arenas,
    /// How mappings to come are locked: one of [`FUTURES`].
    future: AtomicU64,
    /// Whether pages were ever managed.
    manages: AtomicBool,
    /// Held by those that move an object's pages, and by those that look for them everywhere.
    moving: Line<RwLock<()>>,
    /// Itself, as the objects that it maps are told of it: made once, as each clone is counted by all CPUs.
    me: Weak<dyn Mapper>,
    /// Set by `clear`, when the roots are in `retired`.
    cleared: AtomicBool,
    retired: SpinLock<Vec<OwnedFrame>>,
}

const FUTURES: [Lock; 3] = [Lock::Off, Lock::Now, Lock::OnFault];

/// The number of `lock` in [`FUTURES`].
fn future(lock: Lock) -> u64 {
    match lock {
        Lock::Off => 0,
        Lock::Now => 1,
        Lock::OnFault => 2,
    }
}

/// Keys of the pages of a range; none that the tree doesn't have.
fn keys(range: PageRange) -> Range<u64> {
    range.start().number().min(KEYS)..range.end().number().min(KEYS)
}

type Guard<'g> = RangeGuard<'g, Realm>;

/// Pages of a leaf node.
const LEAF: u64 = 1 << ::radix::page::BITS[::radix::page::BITS.len() - 1];

impl Radix {
    /// An empty address space. Errors: `NoMemory`.
    pub fn new(
        machine: Machine,
        realm: &'static Realm,
        kind: PageTables,
        ctx: &Unpinned<'_>,
    ) -> Result<Arc<Self>, Error> {
        realm.reap(ctx);
        let pin = ctx.pin();
        let tables = Tables::new(machine, kind, realm.cpus(), &pin).ok_or(Error::NoMemory)?;
        match Tree::new(realm, &pin) {
            Ok(tree) => Ok(Self::of(tree, tables, machine, realm, kind)),
            Err(_) => {
                tables.discard(&pin);
                Err(Error::NoMemory)
            }
        }
    }
    /// The address space of `tree`, and of `tables`, which are empty.
    fn of(
        tree: Tree<Realm>,
        tables: Tables,
        machine: Machine,
        realm: &'static Realm,
        kind: PageTables,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            machine,
            realm,
            tree: ManuallyDrop::new(tree),
            grave: Some(Grave::new()),
            tables,
            kind,
            active: Line(AtomicCpuSet::new()),
            counts: Counts::new(realm.cpus()),
            arenas: Arenas::new(realm.cpus()),
            future: AtomicU64::new(0),
            manages: AtomicBool::new(false),
            moving: Line(RwLock::new(())),
            me: me.clone(),
            cleared: AtomicBool::new(false),
            retired: SpinLock::new(Vec::new()),
        })
    }
    /// Lock the pages of `range` that there are, of which there is one at least.
    #[inline(always)]
    fn lock_pages<'g>(
        &'g self,
        range: PageRange,
        mode: Mode,
        section: &'g Section<'_, Realm>,
    ) -> Result<Guard<'g>, Error> {
        let mut guard = self.guard(range, section);
        self.lock_by(&mut guard, mode, section)?;
        Ok(guard)
    }
    /// A guard of the pages of `range` that has nothing yet: to lock [by](Self::lock_by) it where it is.
    #[inline(always)]
    fn guard<'g>(&'g self, range: PageRange, section: &'g Section<'_, Realm>) -> Guard<'g> {
        self.tree.guard(keys(range), section)
    }
    /// Lock the pages of a new guard.
    #[inline(always)]
    fn lock_by<'g>(
        &'g self,
        guard: &mut Guard<'g>,
        mode: Mode,
        section: &'g Section<'_, Realm>,
    ) -> Result<(), Error> {
        let mut reserve = self.realm.reserve(section.pin()).borrow_mut();
        guard.lock(&self.tree, mode, &mut reserve).map_err(|_| Error::NoMemory)
    }
    /// No CPU of `targets` translates by what the gather was told of when this returns.
    fn flush(&self, gather: &mut Gather<'_>, targets: &CpuSet, pin: &Pinned<'_>) {
        gather.flush_among(pin, self.machine.shootdown, &self.active.0, targets);
    }
    /// Tell the object of `mapping` that `pages` of its pages will be mapped; as [`Mappings::announce`].
    ///
    /// [`Mappings::announce`]: crate::Mappings::announce
    fn announce(&self, mapping: &Mapping, pages: u64, pin: &Pinned<'_>) -> bool {
        mapping.mappers().is_none_or(|mappers| mappers.add(&self.me, pages, mapping.may_write_object(), pin))
    }
    /// Pages of `mapping` are mapped no more.
    fn retract(&self, mapping: &Mapping, pages: u64, pin: &Pinned<'_>) {
        if let Some(mappers) = mapping.mappers() {
            mappers.sub(&self.me, pages, mapping.may_write_object(), pin);
        }
    }
    /// Give back pages of a table, `cpu`'s own or the home table, that serve no page which has an entry there.
    fn sweep(&self, mirror: &Mirror, cpu: Option<CpuId>, ctx: &Unpinned<'_>) {
        let me = cpu.and_then(|cpu| u8::try_from(cpu.index() + 1).ok());
        let targets = cpu.map_or(CpuSet::ALL, |cpu| [cpu].into_iter().collect());
        mirror.sweep(|served, unlink| {
            let pin = ctx.pin();
            let section = self.tree.enter(&pin);
            // Of larger ranges no page may have an entry anywhere, so that few slots are locked.
            let large = served.len() > ENTRIES as u64;
            let needed = |value: u64, frozen: bool| {
                let slot = Slot::of(value);
                let here = me.is_none_or(|me| frozen || slot.owner() == me || slot.owner() == SEVERAL);
                slot.frame().is_some() && (here || large)
            };
            let mut used = false;
            self.tree.scan(keys(served), &section, |found| {
                used = needed(found.value, found.frozen);
                !used
            });
            if used {
                return;
            }
            let mut gather = Gather::new(self.machine.frames, *ctx);
            let Ok(guard) = self.lock_pages(served, Mode::Cover, &section) else { return };
            if !guard.values().any(|span| needed(span.value, span.frozen)) {
                unlink(&mut gather);
                let targets = if mutant!("radix-sweep-no-flush") { CpuSet::EMPTY } else { targets };
                self.flush(&mut gather, &targets, &pin);
            }
            drop(guard);
        });
    }
    /// Drop all page tables of the lowest level, of all CPUs. Owners stay in the slots, where they may be too many.
    fn shed_tables(&self, ctx: &Unpinned<'_>) {
        for (cpu, mirror) in self.tables.all() {
            let targets = cpu.map_or(CpuSet::ALL, |cpu| [cpu].into_iter().collect());
            mirror.shed(|served, unlink| {
                let pin = ctx.pin();
                let section = self.tree.enter(&pin);
                let mut gather = Gather::new(self.machine.frames, *ctx);
                let Ok(mut guard) = self.lock_pages(served, Mode::Cover, &section) else { return };
                if !mutant!("level-dirty-shed") && !self.keep_dirty(&mut guard, mirror) {
                    return;
                }
                unlink(&mut gather);
                if mutant!("radix-shed-no-flush") {
                    gather.flush(&pin, self.machine.shootdown, &AtomicCpuSet::new());
                }
                self.flush(&mut gather, &targets, &pin);
                drop(guard);
            });
        }
    }
    /// Free all page tables but the roots, at the end.
    fn strip(&self, ctx: &Unpinned<'_>) {
        // Every slot is EMPTY now, and was locked since the last entry went: nobody walks to one, or will.
        let pin = ctx.pin();
        let mut gather = Gather::new(self.machine.frames, *ctx);
        let flush = |gather: &mut Gather<'_>| {
            self.flush(gather, &CpuSet::ALL, &pin);
            gather.release(&pin);
        };
        self.tables.all().for_each(|(_, mirror)| mirror.strip(&mut gather, flush));
        // All CPUs that still run the space hear of its end, also those whose table is empty: for as long as they stay, so
        // does the root.
        gather.add_range(pages(0, KEYS));
        flush(&mut gather);
    }
    /// Remove all pages: at once, or slot by slot if there is no memory for the list of what is locked.
    fn unmap_everything(&self, ctx: &Unpinned<'_>) {
        let (mut next, mut end) = (0, KEYS);
        while next < KEYS {
            let pin = ctx.pin();
            let section = self.tree.enter(&pin);
            let mut change = Change::new(self, &section, ctx);
            let mode = if (next, end) == (0, KEYS) { Mode::Vacate } else { Mode::Cover };
            if let Ok(mut guard) = self.lock_pages(pages(next, end), mode, &section) {
                change.replace(&mut guard, Slot::EMPTY);
                change.settle();
                drop(guard);
                next = end;
            }
            if next == KEYS {
                return;
            }
            // One slot is locked without memory. Nothing sticks out of its own pages.
            let Some(found) = self.mapped_from(next, KEYS, &section) else { return };
            // A page of a frozen node is in the slot of all of it.
            let keys = if found.frozen { LEAF } else { found.keys };
            next = found.first & !(keys - 1);
            end = next + keys;
        }
    }
    /// The end of an operation that may have made descriptors useless.
    #[inline]
    fn tidy(&self, ctx: &Unpinned<'_>) {
        self.sweep_large(ctx);
        self.realm.reap(ctx);
    }
    /// The end of an operation that may have made page tables.
    #[inline(always)]
    fn sweep_large(&self, ctx: &Unpinned<'_>) {
        if self.tables.take_large() {
            self.sweep_mine(ctx);
        }
    }
    /// Give back the pages of this CPU's table that serve nothing, if it is still large.
    #[cold]
    fn sweep_mine(&self, ctx: &Unpinned<'_>) {
        let large = {
            let pin = ctx.pin();
            Some(self.tables.mine(&pin)).filter(|(_, mirror)| mirror.is_large())
        };
        large.into_iter().for_each(|(cpu, mirror)| self.sweep(mirror, cpu, ctx));
    }
    /// Free the root if the space is cleared and no CPU has it in CR3.
    fn free_root(&self, pin: &Pinned<'_>) {
        // SeqCst: our own step (cleared, or left) before, the other's after; partner: the same fence on the other side.
        fence(Ordering::SeqCst);
        // Acquire: with the flag, see `retired` filled; the lock would do that too.
        if self.cleared.load(Ordering::Acquire) && self.active.0.snapshot().is_empty() {
            let roots = core::mem::take(&mut *self.retired.lock());
            roots.into_iter().for_each(|root| self.machine.frames.free(pin, root));
        }
    }
    /// A descriptor for each that slots of the guard from `reach` name, changed.
    fn describe<'p>(
        &self,
        guard: &Guard<'_>,
        reach: &Range<u64>,
        pin: &'p Pinned<'p>,
        section: &Section<'_, Realm>,
        change: impl Fn(&mut Mapping),
    ) -> Result<NewDescs<'p>, Error> {
        let mut new = NewDescs::default();
        let enough = guard.all(|span| {
            let slot = Slot::of(span.value);
            if !slot.is_mapped() || !reach.contains(&span.first) || new.of(slot).is_some() {
                return true;
            }
            let mut mapping = self.realm.desc(slot, section).mapping.clone();
            change(&mut mapping);
            self.realm.intern(&mapping, pin).map(|hold| new.add(slot, hold)).is_some()
        });
        if enough { Ok(new) } else { Err(Error::NoMemory) }
    }
    /// Change what the mapped pages of `reach` should be, all of which the guard has; rights are not taken away here.
    fn relabel(
        &self,
        guard: &mut Guard<'_>,
        reach: Range<u64>,
        effect: &mut Change<'_>,
        section: &Section<'_, Realm>,
        change: impl Fn(&mut Mapping),
    ) -> Result<(), Error> {
        self.relabel_and(guard, reach, effect, section, change, |_, _, _, _| {})
    }
    /// The same, and of each slot tell `then`, with its old word, what its pages should be, and the first of them.
    fn relabel_and<'c>(
        &self,
        guard: &mut Guard<'_>,
        reach: Range<u64>,
        effect: &mut Change<'c>,
        section: &Section<'_, Realm>,
        change: impl Fn(&mut Mapping),
        mut then: impl FnMut(&mut Change<'c>, Slot, &Mapping, u64),
    ) -> Result<(), Error> {
        let new = self.describe(guard, &reach, section.pin(), section, change)?;
        guard.update(|span| {
            let slot = Slot::of(span.value);
            if !slot.is_mapped() || !reach.contains(&span.first) {
                return span.value;
            }
            let Some(hold) = new.of(slot) else { return span.value };
            effect.relabelled(effect.desc(slot), hold.desc(), span.keys);
            then(effect, slot, &hold.desc().mapping, span.first);
            slot.with_desc(hold.slot().desc()).word()
        });
        Ok(())
    }
    /// How far from its start the guard's range is mapped without a hole.
    fn reach(guard: &Guard<'_>) -> u64 {
        let mut end = guard.keys().start;
        for span in guard.spans() {
            if span.value == 0 {
                break;
            }
            end = (span.first + span.keys).min(guard.keys().end);
        }
        end
    }
}

/// For each descriptor the one that takes its place. The first needs no heap.
#[derive(Default)]
struct NewDescs<'p> {
    first: Option<(u32, realm::Hold<'p>)>,
    more: alloc::collections::BTreeMap<u32, realm::Hold<'p>>,
}

impl<'p> NewDescs<'p> {
    fn add(&mut self, old: Slot, new: realm::Hold<'p>) {
        if self.first.is_none() {
            self.first = Some((old.desc(), new));
        } else {
            self.more.insert(old.desc(), new);
        }
    }
    /// What takes the place of a slot's.
    #[inline]
    fn of(&self, slot: Slot) -> Option<&realm::Hold<'p>> {
        match &self.first {
            Some((old, new)) if *old == slot.desc() => Some(new),
            _ => self.more.get(&slot.desc()),
        }
    }
}

impl AddressSpace for Radix {
    fn places(&self, f: &mut dyn FnMut(&'static str, Range<usize>)) {
        fn of<T>(part: &T) -> Range<usize> {
            let start = ptr::from_ref(part).addr();
            start..start + size_of_val(part)
        }
        f("", of(self));
        f("set of CPUs", of(&self.active.0));
        f("page tables' roots and locks", of(&self.tables));
        f("lock of moves", of(&self.moving.0));
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
        let answer = self.map_pages(at, pages, mapping, limits, ctx);
        self.tidy(ctx);
        answer
    }
    fn unmap(&self, range: PageRange, ctx: &Unpinned<'_>) -> Result<(), Error> {
        user(range)?;
        let answer = self.unmap_pages(range, ctx);
        self.tidy(ctx);
        answer
    }
    fn unmap_object(
        &self,
        range: PageRange,
        identity: (u64, u64),
        ctx: &Unpinned<'_>,
    ) -> Result<bool, Error> {
        user(range)?;
        self.unmap_shown(range, identity, ctx)
    }
    fn protect_within(
        &self,
        range: PageRange,
        prot: Prot,
        down: bool,
        limits: &Limits,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        self.protect_pages(range, prot, down, limits, ctx)
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
        let moved = self.remap_pages(old, new_pages, to, keep, limits, ctx);
        self.tidy(ctx);
        moved
    }
    fn advise(&self, range: PageRange, advice: Advice, ctx: &Unpinned<'_>) -> Result<(), Error> {
        if range.is_empty() {
            return Err(Error::Invalid);
        }
        match advice {
            Advice::Flags(set, clear) => self.advise_flags(range, set, clear, ctx),
            Advice::Place(policy) => self.advise_policy(range, policy, ctx),
            _ => self.advise_contents(range, advice, ctx),
        }
    }
    fn lock(&self, range: PageRange, lock: Lock, limits: &Limits, ctx: &Unpinned<'_>) -> Result<(), Error> {
        if range.is_empty() { Err(Error::Invalid) } else { self.lock_memory(range, lock, limits, ctx) }
    }
    fn lock_all(
        &self,
        now: Option<Lock>,
        future: Option<Lock>,
        limits: &Limits,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        self.lock_all_memory(now, future, limits, ctx)
    }
    fn grow(&self, va: VirtAddr, limits: &Limits, ctx: &Unpinned<'_>) -> Result<(), Error> {
        self.grow_stack(va.page(), limits, ctx)
    }
    fn fault_by(
        &self,
        policy: &Policy,
        va: VirtAddr,
        access: Access,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Fault> {
        let answer = self.resolve(policy, va.page(), access, ctx);
        self.sweep_large(ctx);
        answer
    }
    fn move_page(
        &self,
        at: Page,
        place: Place,
        wanted: &dyn Fn(Frame) -> bool,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Unmoved> {
        self.move_frame(at, place, wanted, ctx)
    }
    fn fork(&self, ctx: &Unpinned<'_>) -> Result<Arc<dyn AddressSpace>, Error> {
        Ok(self.copy(ctx)?)
    }
    fn managed(&self) -> Option<&dyn Managed> {
        Some(self)
    }
    fn watched(&self) -> Option<&dyn Watched> {
        Some(self)
    }
    fn clear(&self, ctx: &Unpinned<'_>) {
        self.unmap_everything(ctx);
        self.strip(ctx);
        // SAFETY: nothing is mapped, and this is the last operation; CPUs only leave from here on.
        *self.retired.lock() = unsafe { self.tables.retire() };
        // Release: `retired` before the flag; partner: the load in `free_root`.
        self.cleared.store(true, Ordering::Release);
        self.free_root(&ctx.pin());
        self.realm.reap(ctx);
    }
    fn shed(&self, ctx: &Unpinned<'_>) {
        self.shed_tables(ctx);
    }
    fn activate(&self, pin: &Pinned<'_>) -> Frame {
        tlb::join(&self.active.0, pin);
        // Relaxed: only a check of the caller's duty.
        debug_assert!(!self.cleared.load(Ordering::Relaxed), "a cleared address space was activated");
        self.tables.enter(pin)
    }
    fn deactivate(&self, pin: &Pinned<'_>) {
        tlb::leave(&self.active.0, pin);
        self.free_root(pin);
    }
    fn areas(&self, range: PageRange, ctx: &Unpinned<'_>, f: &mut dyn FnMut(&MappingInfo<'_>)) {
        self.each_area(range, ctx, |info| f(&info));
    }
    fn inspect(&self, range: PageRange, ctx: &Unpinned<'_>, f: &mut dyn FnMut(Seen<'_>)) {
        self.each_part(range, ctx, |info| {
            f(Seen::Mapping(&info));
            self.each_page(info.range, ctx, |page, resident| f(Seen::Page(page, resident)));
        });
    }
    fn pages(&self, range: PageRange, ctx: &Unpinned<'_>, f: &mut dyn FnMut(Page, Resident)) {
        self.each_page(range, ctx, f);
    }
    fn audit(&self, range: PageRange, ctx: &Unpinned<'_>, f: &mut dyn FnMut(&Audited)) {
        self.audit_pages(range, ctx, f);
    }
    fn find(&self, within: PageRange, ctx: &Unpinned<'_>) -> Option<(PageRange, Mapping)> {
        self.part_at(within, ctx)
    }
    fn shared_page(&self, at: Page, ctx: &Unpinned<'_>) -> Option<((u64, u64), u64)> {
        self.shown(at, ctx)
    }
    fn peak_resident(&self, _: &Unpinned<'_>) -> u64 {
        self.counts.peak_resident()
    }
    fn usage(&self, ctx: &Unpinned<'_>) -> Usage {
        let mut mappings = 0;
        self.mappings(ctx, &mut |_| mappings += 1);
        let (totals, resident_pages) = self.counts.look();
        Usage {
            mapped_pages: totals.pages,
            resident_pages,
            peak_resident: self.counts.peak_resident(),
            mappings,
            table_pages: self.tables.pages(),
            totals,
        }
    }
}

impl Mapper for Radix {
    fn cut(&self, of: &Mappers, pages: Range<u64>, copies: bool, ctx: &Unpinned<'_>) {
        self.cut_pages(of, pages, copies, ctx);
    }
    fn count(&self, of: &Mappers, ctx: &Unpinned<'_>) -> u64 {
        let mut count = 0;
        self.mappings(ctx, &mut |info| count += u64::from(shows(info.mapping, of)));
        count
    }
    fn shown(&self, of: &Mappers, pages: Range<u64>, ctx: &Unpinned<'_>, f: &mut dyn FnMut(u64)) {
        shown_in(self, of, pages, ctx, f);
    }
}

/// Whether `mapping` is of the object whose mappers are `of`.
fn shows(mapping: &Mapping, of: &Mappers) -> bool {
    mapping.mappers().is_some_and(|m| ptr::eq(m, of))
}

impl Drop for Radix {
    fn drop(&mut self) {
        // SAFETY: nobody uses the field after this.
        let tree = unsafe { ManuallyDrop::take(&mut self.tree) };
        if let Some(grave) = self.grave.take() {
            self.realm.bury(tree, grave);
        }
    }
}

impl fmt::Debug for Radix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Radix")
            .field("tables", &self.kind)
            .field("active", &self.active.0)
            .finish_non_exhaustive()
    }
}
