//! The page tables of one address space: one that all CPUs share, or one for each CPU.
//!
//! **Idea.** A page's slot says who may have an entry for it, in its *owner* field: nobody, one CPU in its own table, or
//! several. An entry is put in, changed and taken out by who has the slot locked; and by that it is known which tables
//! have to be looked into, and which CPUs have to be shot down: those that may have entries, as far as they run the space
//! now. A page that one CPU alone has used concerns no other CPU when it goes.
//!
//! A CPU fills its own table, by its own faults. Whoever takes entries out does so in all tables that may have them,
//! also in those of CPUs that do not run the space at the moment; so a CPU that comes back to the space finds its table as it
//! should be, and nothing has to be kept in mind for it. (RadixVM lets each CPU clear its own table when it is shot down. That
//! saves the initiator the transfer of a line for each page and CPU, and costs a protocol for CPUs that are elsewhere.)
//!
//! **Owners may be too many, never too few.** The field is written under the slot's lock together with the entry, and falls
//! back to nobody only when the entries have been cleared. Of several, those are shot down whose tables turn out to have an
//! entry: a table without one can't have given its CPU a translation that is still cached, as entries go only with a flush.
//! So who takes a page out that two CPUs have used, interrupts one other CPU, without any set of CPUs for each page.
//!
//! With one table for each CPU there is a *home* table as well. It is used by CPUs that found no frame for a root of their
//! own, since to begin to run a space must not fail. What is in there counts as several CPUs'.

use alloc::{boxed::Box, vec::Vec};
use core::{
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, Ordering},
};

use addr::{Frame, Page, PageRange, Prot, Pte};
use owned::OwnedFrame;
use pagetable::{ENTRIES, Entry, Mirror};
use percpu::{AtomicCpuSet, CpuId, CpuSet, PerCpu, Pinned};
use sync::mutant;

use super::word::{NOBODY, SEVERAL, Slot};
use crate::Machine;

/// How many page tables an address space has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageTables {
    /// One that all CPUs use.
    Shared,
    /// One for each CPU that runs it.
    PerCpu,
}

pub(super) struct Tables {
    machine: Machine,
    home: Mirror,
    /// Each CPU's own, once it has one; none if all share.
    own: PerCpu<AtomicPtr<Mirror>>,
    /// CPUs that have one.
    owners: AtomicCpuSet,
    /// Whether one has grown so large that a sweep may be worth it. Set by who fills it, cleared by who sweeps.
    large: AtomicBool,
}

impl Tables {
    pub(super) fn new(machine: Machine, kind: PageTables, cpus: usize, pin: &Pinned<'_>) -> Option<Self> {
        let home = Mirror::new(machine.frames, pin, machine.kernel_root)?;
        let cpus = if kind == PageTables::PerCpu { cpus } else { 0 };
        let own = PerCpu::new(cpus, |_| AtomicPtr::new(ptr::null_mut()));
        Some(Self { machine, home, own, owners: AtomicCpuSet::new(), large: AtomicBool::new(false) })
    }
    /// Give back the roots of tables that no CPU has entered.
    pub(super) fn discard(self, pin: &Pinned<'_>) {
        // SAFETY: it is the only call, and nobody else has the tables.
        unsafe { self.retire() }.into_iter().for_each(|root| self.machine.frames.free(pin, root));
    }
    fn of(&self, cpu: CpuId) -> Option<&Mirror> {
        // SAFETY: mirrors are freed when the tables are dropped. Acquire: partner in `enter`.
        self.own.of(cpu).and_then(|own| unsafe { own.load(Ordering::Acquire).as_ref() })
    }
    /// The table that this CPU fills, and whose own it is.
    pub(super) fn mine(&self, pin: &Pinned<'_>) -> (Option<CpuId>, &Mirror) {
        self.of(pin.cpu()).map_or((None, &self.home), |own| (Some(pin.cpu()), own))
    }
    /// Whether one may have grown so large that a sweep is worth it. It is said again as long as it is so and used.
    #[inline]
    pub(super) fn take_large(&self) -> bool {
        self.large.load(Ordering::Relaxed) && self.large.swap(false, Ordering::Relaxed)
    }
    /// The root that this CPU is to load.
    pub(super) fn enter(&self, pin: &Pinned<'_>) -> Frame {
        if let Some(own) = self.own.of(pin.cpu())
            // Relaxed: this CPU's own.
            && own.load(Ordering::Relaxed).is_null()
            && let Some(mirror) = Mirror::new(self.machine.frames, pin, self.machine.kernel_root)
        {
            // In the set before there can be an entry: whoever looks has a slot's lock that comes after.
            self.owners.insert(pin.cpu());
            // Release: the mirror before the pointer; partner: `of`.
            own.store(Box::into_raw(Box::new(mirror)), Ordering::Release);
        }
        self.mine(pin).1.root()
    }
    /// All that there are, each with the CPU whose own it is.
    pub(super) fn all(&self) -> impl Iterator<Item = (Option<CpuId>, &Mirror)> {
        let own = self.owners.snapshot();
        let own = own.iter().filter_map(|cpu| Some((Some(cpu), self.of(cpu)?)));
        core::iter::once((None, &self.home)).chain(own)
    }
    /// Table pages, roots among them.
    pub(super) fn pages(&self) -> u64 {
        self.all().map(|(_, mirror)| mirror.pages()).sum()
    }

    /// The entry of `page`, whose slot is locked, in this CPU's table. `None` if there is no frame for a table.
    #[inline(always)]
    pub(super) fn ready(&self, page: Page, pin: &Pinned<'_>) -> Option<Ready<'_>> {
        let own = self.of(pin.cpu());
        let mirror = own.unwrap_or(&self.home);
        let entry = mirror.prepare(page, self.machine.frames, pin)?;
        if mirror.is_large() {
            // Relaxed: a hint, here and below.
            self.large.store(true, Ordering::Relaxed);
        }
        let owner = own.and_then(|_| u8::try_from(pin.cpu().index() + 1).ok());
        Some(Ready { entry, owner: owner.unwrap_or(SEVERAL) })
    }
    /// Call `f` with the tables that may have an entry for a page whose locked slot is `slot`, until it says false, and with
    /// the CPU whose own each is.
    #[inline]
    fn each(&self, slot: Slot, mut f: impl FnMut(Option<CpuId>, &Mirror) -> bool) {
        match slot.owner() {
            NOBODY => {}
            SEVERAL => _ = self.all().all(|(cpu, mirror)| f(cpu, mirror)),
            one => _ = owner(one).and_then(|cpu| Some(f(Some(cpu), self.of(cpu)?))),
        }
    }
    /// Clear the entries of `page`. Whether one of them was present; CPUs that may have cached those are added to `targets`.
    #[inline]
    pub(super) fn clear(&self, page: Page, slot: Slot, targets: &mut CpuSet) -> bool {
        self.weaken(slot, targets, |mirror| mirror.clear(page).is_present())
    }
    /// As [`Self::clear`], for a page that one CPU at most may have an entry for.
    #[inline(always)]
    pub(super) fn clear_of_one(&self, page: Page, slot: Slot, targets: &mut CpuSet) -> bool {
        let Some((cpu, mirror)) = owner(slot.owner()).and_then(|cpu| Some((cpu, self.of(cpu)?))) else {
            return false;
        };
        let present = mirror.clear(page).is_present();
        if present {
            targets.insert(cpu);
        }
        present
    }
    /// As [`Self::clear`], and whether an entry has said that the page was written.
    pub(super) fn clear_noting(&self, page: Page, slot: Slot, targets: &mut CpuSet) -> (bool, bool) {
        let mut dirty = false;
        let stale = self.weaken(slot, targets, |mirror| {
            let old = mirror.clear(page);
            dirty |= old.is_dirty();
            old.is_present()
        });
        (stale, dirty)
    }
    /// Let no entry of `page` say that it was written: whether one that was present did, and whether any did. CPUs that may
    /// store by what they have cached of the former, and not say so, are added to `targets`.
    pub(super) fn clean(&self, page: Page, slot: Slot, targets: &mut CpuSet) -> (bool, bool) {
        let mut dirty = false;
        let stale = self.weaken(slot, targets, |mirror| {
            let old = mirror.clean(page);
            dirty |= old.is_dirty();
            old.is_present() && old.is_dirty()
        });
        (stale, dirty)
    }
    /// Which pages any table says to be written; the rest as [`Mirror::written`].
    pub(super) fn written(&self, locked: Page, pages: PageRange, pin: &Pinned<'_>) -> Written {
        let mut written = Written::default();
        if mutant!("dirty-glance-own") {
            self.mine(pin).1.written(locked, pages, &mut written);
            return written;
        }
        self.all().for_each(|(_, mirror)| mirror.written(locked, pages, &mut written));
        written
    }
    /// Whether this CPU alone may have an entry for a page whose slot is `slot`, in a table of its own.
    #[inline]
    pub(super) fn is_alone(&self, slot: Slot, pin: &Pinned<'_>) -> bool {
        slot.owner() != SEVERAL && usize::from(slot.owner()) == pin.cpu().index() + 1
    }
    /// Let the entry of `page` in the table that this CPU fills, if there is one, grant `rights`: no less than it does.
    pub(super) fn raise(&self, page: Page, rights: Prot, pin: &Pinned<'_>) {
        self.mine(pin).1.change(page, rights);
    }
    /// Let no entry of `page` grant more than `rights`; the rest as [`Self::clear`], for entries that did.
    pub(super) fn lower(&self, page: Page, slot: Slot, rights: Prot, targets: &mut CpuSet) -> bool {
        self.weaken(slot, targets, |mirror| mirror.lower(page, rights))
    }
    /// The same, and let the entry in the table that this CPU fills, if there is one, grant exactly these, as a fault would.
    #[inline]
    pub(super) fn restrict(
        &self,
        page: Page,
        slot: Slot,
        rights: Prot,
        pin: &Pinned<'_>,
        targets: &mut CpuSet,
    ) -> bool {
        let mine = self.mine(pin).1;
        self.weaken(slot, targets, |mirror| match ptr::eq(mirror, mine) {
            true => mirror.change(page, rights),
            false => mirror.lower(page, rights),
        })
    }
    /// Call `f` with the tables that may have an entry for a page whose locked slot is `slot`: whether it says of one of them
    /// that a right was lost. CPUs that may have cached it are added to `targets`.
    #[inline]
    fn weaken(&self, slot: Slot, targets: &mut CpuSet, mut f: impl FnMut(&Mirror) -> bool) -> bool {
        let mut any = false;
        self.each(slot, |cpu, mirror| {
            let lost = f(mirror);
            if lost {
                add_users(targets, cpu);
            }
            any |= lost;
            true
        });
        any
    }
    /// The CPUs that would be told if the entries of `page` were cleared.
    pub(super) fn users(&self, page: Page, slot: Slot) -> CpuSet {
        let mut users = CpuSet::EMPTY;
        self.each(slot, |cpu, mirror| {
            if mirror.peek(page).is_present() {
                add_users(&mut users, cpu);
            }
            true
        });
        users
    }
    /// Let no entry grant writing to a page of the 512 around `page` until one is [set](Self::set) to; those that may have
    /// used such an entry are added to `targets`. Whether there are any. The caller has all these pages locked.
    pub(super) fn protect_block(&self, page: Page, targets: &mut CpuSet) -> bool {
        self.each_stale(targets, |mirror| mirror.protect_table(page))
    }
    /// Clear the entries of `pages`, which any CPU may have, and which are in one table each. As [`Self::protect_block`].
    pub(super) fn clear_all(&self, pages: PageRange, targets: &mut CpuSet) -> bool {
        self.each_stale(targets, |mirror| mirror.clear_all(pages))
    }
    /// The same for pages of which several CPUs have had entries.
    pub(super) fn clear_run(&self, pages: PageRange, targets: &mut CpuSet) -> bool {
        self.each_stale(targets, |mirror| mirror.clear_run(pages))
    }
    fn each_stale(&self, targets: &mut CpuSet, change: impl Fn(&Mirror) -> bool) -> bool {
        let mut stale = false;
        for (cpu, _) in self.all().filter(|(_, mirror)| change(mirror)) {
            add_users(targets, cpu);
            stale = true;
        }
        stale
    }
    /// What the hardware has noted about `page`: accessed and dirty, by any CPU.
    pub(super) fn noted(&self, page: Page, slot: Slot) -> (bool, bool) {
        let mut noted = Pte::EMPTY;
        self.each(slot, |_, mirror| {
            noted = Pte::from_bits(noted.bits() | mirror.peek(page).bits());
            !(noted.is_accessed() && noted.is_dirty())
        });
        (noted.is_accessed(), noted.is_dirty())
    }
    /// All roots, to be freed when no CPU has one loaded.
    ///
    /// # Safety
    /// As [`Mirror::retire`], for all of them.
    pub(super) unsafe fn retire(&self) -> Vec<OwnedFrame> {
        // SAFETY: the caller's promise.
        self.all().map(|(_, mirror)| unsafe { mirror.retire() }).collect()
    }
}

/// A bit for each page that a leaf table serves.
pub(super) type Written = [u64; ENTRIES / 64];

/// A place for an entry.
pub(super) struct Ready<'t> {
    entry: Entry<'t>,
    /// This CPU, if the table is its own.
    owner: u8,
}

impl Ready<'_> {
    /// Whether the table is this CPU's own.
    #[inline]
    pub(super) fn is_own(&self) -> bool {
        self.owner != SEVERAL
    }
    /// The place of another page in the same table, if it is empty, to be [set](Self::set) when the caller has that page's slot
    /// locked too. The table is this CPU's own, so it stays empty until then.
    #[inline]
    pub(super) fn beside(&self, page: Page) -> Option<Ready<'_>> {
        let entry = self.entry.beside(page)?;
        entry.is_empty().then_some(Ready { entry, owner: self.owner })
    }
    /// Whether this CPU's table has no entry for the page.
    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.entry.is_empty()
    }
    /// Put in the entry for the page, whose slot has `slot` as its word, with a frame. The word that the slot is to have.
    #[inline(always)]
    pub(super) fn set(self, slot: Slot, rights: Prot) -> Slot {
        let Some((frame, _)) = slot.frame() else { return slot };
        self.entry.set(frame, rights);
        let owner = match slot.owner() {
            NOBODY => self.owner,
            owner if owner == self.owner || mutant!("radix-owner-lost") => owner,
            _ => SEVERAL,
        };
        slot.with_owner(owner)
    }
}

fn owner(owner: u8) -> Option<CpuId> {
    CpuId::new(usize::from(owner).wrapping_sub(1))
}

/// Add the CPUs that may use the table that is `cpu`'s own, or the home table: those alone whose table has an entry may
/// have it cached (I1).
#[inline]
fn add_users(targets: &mut CpuSet, cpu: Option<CpuId>) {
    match cpu {
        Some(cpu) => targets.insert(cpu),
        None => *targets = CpuSet::ALL,
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        for own in self.own.iter() {
            // Relaxed: nobody else has the tables.
            let own = own.load(Ordering::Relaxed);
            if !own.is_null() {
                // SAFETY: it was made by `Box` in `enter`, and is nobody's any more.
                drop(unsafe { Box::from_raw(own) });
            }
        }
    }
}
