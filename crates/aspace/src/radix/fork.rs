//! Fork.
//!
//! **Claim.** A fork writes by the number of folded slots, leaf nodes and blocks of 512 pages that the space has, not by that
//! of its pages, where these are private anonymous memory. From the moment the parent's pages are free again, parent and child
//! each see what was there at the fork, and what they have stored since.
//!
//! **Idea.** All of the parent is locked. A folded slot is copied, as one word. A node of leaves is frozen, and from then on both
//! trees have it (see `freeze` and `narrow` in the crate `radix`); no word of it is written, and no frame counted: the node's
//! slots have one share of each frame, however many trees have the node. What is not the same for the child it gets slot
//! by slot, and the frozen node stays the parent's alone: one with a page that is not inherited, comes wiped, or
//! is locked, and one with a frame, or poison, of a mapping of an object. Of the object's own pages the child gets none: it
//! asks the object when it needs them, so that program text is one word for 64 pages, as for pages that nobody has touched.
//! Slots of one descriptor in a row are dealt with together, as what the child gets of each follows from the descriptor and
//! from which of a few kinds the slot is.
//!
//! **A cut needs no memory.** What it takes away is in slots of its own, or in a frozen node that one tree has (*I-F: a frozen
//! node that several trees have has neither frame nor poison of an object's mapping*); that is taken over where it is
//! ([`Mode::Alone`]). *I-F* holds as a node is shared by forks alone, which look at all its values while it is frozen, and
//! these don't change; and whoever puts a frame in has made the node his tree's own before.
//!
//! **Nobody writes to what is frozen.** A block with frozen nodes loses the right to write by one store in the directory of
//! each page table ([`Mirror::protect_table`]), flushed before the parent's pages are free; the child has no entries. From
//! then on, for as long as other trees have the node:
//! * A fault under a frozen link has the link locked. One that only reads puts in an entry without the right to write, and
//!   changes no word; so the node knows nothing of who has entries.
//! * One that writes, or needs a frame, parts with the node first: the tree gets a copy with a share more of each frame,
//!   so all of them are found to be shared, and copied when they are written to. Who is the last to have the node takes
//!   it over without a copy, by reading too, and frames that no one else has are its own. In either case the slots say
//!   that several CPUs may have entries, as nobody has noted who has.
//! * A right to write comes back to a block with the first page that may be written; what entries of frozen nodes said
//!   before the fork is gone by then.
//!
//! **A share goes after the flush.** Who unmaps a frozen node clears what entries it has and flushes *before* the tree gives its
//! share up ([`Change::replace`]), as the next one may find itself to be the last, and free the frames. For the same
//! reason a copy's shares are taken before the node's is given up; should the node have become nobody's
//! meanwhile, its shares go at once (`unshare`): each tree that had it has flushed, or has shares of its own.
//!
//! **Fork and cut.** A child is known to the objects when it has all its pages, and before the parent's are free. A cut that
//! has visited the parent before finds nothing in the child that it had to find; one that comes later finds the child in
//! the list.
//!
//! **If it fails**, for want of memory, the child's tree is retired, which gives its shares back. Some of the parent's nodes
//! stay frozen, with no other tree; so the next fault there takes them over.

use alloc::{collections::BTreeMap, vec::Vec};

use ::radix::{Given, Span};

use owned::Use;

use super::{realm::Hold, word::NO_KIND, *};
use crate::{Backing, page as contents};

/// What a child gets of the pages with one of the parent's descriptors, and of one level.
#[derive(Clone, Copy)]
struct Heir {
    /// The parent's word for a page that has nothing of its own; EMPTY for none, of which the child gets none.
    theirs: Slot,
    /// What the child has in its place; EMPTY if it isn't inherited.
    blank: Slot,
    wiped: bool,
    /// Whether frames are given to the child: its own, and, of a private mapping of an object, copies.
    shares: bool,
    /// Whether the pages are an object's, or copies of those.
    object: bool,
    /// The right to write is taken from the parent, and this is left to it.
    lowered: Option<Prot>,
    /// Whether a node with such pages may be the child's too.
    same: bool,
}

/// A descriptor and level of which the child has got pages.
struct Met<'p> {
    heir: Heir,
    /// How many.
    pages: u64,
    /// What they are in the child, if that is something else.
    other: Option<Hold<'p>>,
}

/// So many descriptors are looked for one by one.
const FEW: usize = 16;

/// What a child has got so far.
struct Heirs<'s, 'p> {
    space: &'s Radix,
    change: &'s mut Change<'p>,
    /// In the order in which they were met.
    met: Vec<Met<'p>>,
    /// Where the others are, by the parent's words.
    more: BTreeMap<u64, usize>,
    /// Those that were met last, and what they come to.
    now: Heir,
    /// Where they are in the list, if they are in it.
    at: usize,
    /// How many pages of theirs aren't counted yet.
    run: u64,
    /// Pages with frames.
    resident: i64,
    /// The block whose frozen nodes were met last.
    block: u64,
}

impl Heir {
    const NONE: Heir = Heir {
        theirs: Slot::EMPTY,
        blank: Slot::EMPTY,
        wiped: false,
        shares: false,
        object: false,
        lowered: None,
        same: true,
    };

    /// What a slot of the child says in the place of `slot`, one of these, and whether it has the same frame.
    #[inline]
    fn of(&self, slot: Slot) -> (Slot, bool) {
        match slot.frame() {
            _ if self.blank == Slot::EMPTY => (Slot::EMPTY, false),
            None if slot.is_marker() && self.inherits(slot) && !mutant!("guard-uninherited") => {
                (self.blank.marked_as(slot), false)
            }
            Some((frame, usage)) if self.shares && (usage == Use::Anonymous || !self.object) => {
                (self.blank.with_frame(frame, usage), true)
            }
            _ => (self.blank, false),
        }
    }
    /// Whether the child has the marker of a page: poison is of contents, and so not that of a mapping which shares them.
    fn inherits(&self, slot: Slot) -> bool {
        !self.wiped && (self.shares || !slot.is_poisoned() || mutant!("poison-inherited"))
    }
    /// Whether the child has such pages, of the same level.
    fn is_alike(&self) -> bool {
        self.blank != Slot::EMPTY && self.blank.level() == self.theirs.level()
    }
    /// The same for `slots`, in their place, from the first on: as long as they are as they were mapped, or have frames of
    /// the object's or of their own. The process's usual slots are dealt with here in few instructions each.
    #[inline(never)]
    fn put(&self, slots: &mut [u64]) -> Run {
        let (theirs, blank) = (self.theirs, self.blank);
        let objects = if self.object { theirs.kind_with(Use::Lent) } else { NO_KIND };
        let own = if self.shares && self.is_alike() { theirs.kind_with(Use::Anonymous) } else { NO_KIND };
        let mut run = Run { pages: slots.len(), own: 0, objects: 0 };
        for (i, word) in slots.iter_mut().enumerate() {
            let slot = Slot::of(*word);
            if slot.cleaned() == theirs {
                *word = blank.word();
            } else if slot.kind() == objects {
                *word = blank.word();
                run.objects += 1;
            } else if slot.kind() == own && !slot.is_marker() {
                debug_assert!(slot.frame().is_some(), "{slot:?} has an owner and no frame");
                *word = slot.moved(blank.desc()).word();
                run.own += 1;
            } else {
                run.pages = i;
                break;
            }
        }
        run
    }
}

/// Slots in a row that are treated alike.
struct Run {
    pages: usize,
    /// How many give the child their frames.
    own: usize,
    /// How many have other frames, of an object.
    objects: usize,
}

impl Radix {
    pub(super) fn copy(&self, ctx: &Unpinned<'_>) -> Result<Arc<Self>, Error> {
        if self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        self.realm.reap(ctx);
        let _still = self.moving.0.write(ctx);
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        let mut change = Change::new(self, &section, ctx);
        let tables = Tables::new(self.machine, self.kind, self.realm.cpus(), &pin).ok_or(Error::NoMemory)?;
        let Ok(mut tree) = Tree::new(self.realm, &pin) else {
            tables.discard(&pin);
            return Err(Error::NoMemory);
        };
        let guard = self.lock_pages(pages(0, KEYS), Mode::Freeze, &section);
        let mut heirs = Heirs::new(self, &mut change);
        let (guard, copied) = match guard {
            Ok(mut guard) => {
                let copied = guard.fork(&mut tree, |span, slots| heirs.inherit(span, slots));
                heirs.count();
                (Some(guard), copied.map_err(|_| Error::NoMemory))
            }
            Err(error) => (None, Err(error)),
        };
        let child = match copied {
            Ok(()) => {
                let child = Self::of(tree, tables, self.machine, self.realm, self.kind);
                child.arenas.follow(&self.arenas);
                // Relaxed, both: as in `manage`.
                child.manages.store(self.manages.load(Ordering::Relaxed), Ordering::Relaxed);
                heirs.tell(&child, &pin);
                Ok(child)
            }
            Err(error) => {
                tree.retire(&section, |taken| {
                    if let (true, Some((frame, usage))) = (taken.owned, Slot::of(taken.value).frame()) {
                        // SAFETY: the slot had a share, counted for this use, and nobody has seen it.
                        self.machine.frames.free(&pin, unsafe { OwnedFrame::from_raw(frame, usage) });
                    }
                });
                tables.discard(&pin);
                Err(error)
            }
        };
        change.settle();
        drop(guard);
        child
    }
}

impl<'s, 'p> Heirs<'s, 'p> {
    fn new(space: &'s Radix, change: &'s mut Change<'p>) -> Self {
        let (met, more, now) = (Vec::new(), BTreeMap::new(), Heir::NONE);
        Self { space, change, met, more, now, at: usize::MAX, run: 0, resident: 0, block: u64::MAX }
    }
    /// What the child gets of `span`. Of a frozen node `slots` are those, in whose place what the child has is put.
    fn inherit(&mut self, span: Span, slots: &mut [u64]) -> Result<Given, ::radix::Error> {
        if span.frozen {
            return self.inherit_node(span.first, slots);
        }
        let slot = Slot::of(span.value);
        self.meet(slot)?;
        self.run += span.keys;
        let (given, framed) = self.now.of(slot);
        if framed {
            self.resident += 1;
            match self.now.lowered {
                Some(rights) if mutant!("fork-no-flush") => {
                    let nobody = &mut CpuSet::EMPTY.clone();
                    _ = self.space.tables.lower(page(span.first), slot, rights, nobody);
                }
                Some(rights) => self.change.lower(slot, span.first, rights),
                None => {}
            }
        }
        Ok(if given == Slot::EMPTY { Given::Nothing } else { Given::Value(given.word()) })
    }
    /// The same for a frozen node, whose first key is `first`.
    fn inherit_node(&mut self, first: u64, slots: &mut [u64]) -> Result<Given, ::radix::Error> {
        // Whether the child may have the node; whether it has frames in it that may be written to; whether it has no frames,
        // and the same everywhere.
        let (mut same, mut framed, mut alike) = (true, false, true);
        let mut rest = slots;
        while let Some(&next) = rest.first() {
            let next = Slot::of(next);
            self.meet(next)?;
            let mut run = self.now.put(rest);
            if run.pages == 0 {
                // What there is little of.
                let (given, has) = self.now.of(next);
                rest[0] = given.word();
                alike &= given == self.now.blank;
                run = Run { pages: 1, own: usize::from(has), objects: usize::from(self.now.object) };
            }
            self.run += run.pages as u64;
            self.resident += run.own as i64;
            same &= self.now.same;
            same &= !self.now.object || run.own + run.objects == 0 || mutant!("fork-freezes-objects");
            framed |= run.own > 0 && self.now.lowered.is_some();
            rest = &mut rest[run.pages..];
            alike &= run.own == 0 || mutant!("fork-frames-folded");
            alike &= rest.is_empty() || Slot::of(rest[0]).said() == self.now.theirs;
        }
        // The node doesn't know who has entries.
        if same || framed {
            self.protect(first);
        }
        Ok(match self.now.blank {
            _ if same => Given::Same,
            Slot::EMPTY if alike => Given::Nothing,
            all if alike => Given::Value(all.word()),
            _ => Given::Slots,
        })
    }
    /// Take the right to write from all of the block of page `key`.
    fn protect(&mut self, key: u64) {
        let block = key / ENTRIES as u64;
        if block != self.block {
            self.block = block;
            match mutant!("fork-no-flush") {
                true => _ = self.space.tables.protect_block(page(key), &mut CpuSet::EMPTY.clone()),
                false => self.change.protect_block(key),
            }
        }
    }
    /// A page whose parent's word is `slot` is next, or nothing.
    #[inline(always)]
    fn meet(&mut self, slot: Slot) -> Result<(), ::radix::Error> {
        if slot.said() != self.now.theirs { self.go_on_to(slot.said()) } else { Ok(()) }
    }
    #[cold]
    fn go_on_to(&mut self, theirs: Slot) -> Result<(), ::radix::Error> {
        self.count();
        (self.now, self.at) = (Heir::NONE, usize::MAX);
        if theirs == Slot::EMPTY {
            return Ok(());
        }
        let few = &self.met[..self.met.len().min(FEW)];
        let few = few.iter().position(|met| met.heir.theirs == theirs);
        let at = match few.or_else(|| self.more.get(&theirs.word()).copied()) {
            Some(at) => at,
            None => self.learn(theirs)?,
        };
        (self.now, self.at) = (self.met[at].heir, at);
        Ok(())
    }
    /// Count the run.
    fn count(&mut self) {
        let run = core::mem::take(&mut self.run);
        if let Some(met) = self.met.get_mut(self.at) {
            met.pages += run;
        }
    }
    /// Add a descriptor and level to the list: its place.
    fn learn(&mut self, theirs: Slot) -> Result<usize, ::radix::Error> {
        let mapping = &self.change.desc(theirs).mapping;
        let own = Flags::LOCKED | Flags::ON_FAULT;
        let inherited = !mapping.flags.contains(Flags::DONT_FORK);
        // Nobody watches the child's pages.
        let watched = mapping.watch.is_some() && !mutant!("watch-inherited");
        let other = match inherited && (watched || mapping.flags.intersects(own)) {
            true => {
                let mut mapping = Mapping { flags: mapping.flags.difference(own), ..mapping.clone() };
                mapping.watch = mapping.watch.filter(|_| !watched);
                let other = self.space.realm.intern(&mapping, self.change.section().pin());
                Some(other.ok_or(::radix::Error::OutOfMemory)?)
            }
            false => None,
        };
        let wiped = mapping.flags.contains(Flags::WIPE_ON_FORK);
        // What may not be written has no entry that may.
        let writes = mapping.prot.contains(Prot::WRITE);
        let rights = contents::hardware(mapping.prot).difference(Prot::WRITE);
        let other_word = |other: &Hold<'_>| {
            let word = theirs.with_desc(other.slot().desc());
            if watched { word.with_level(None) } else { word }
        };
        let heir = Heir {
            theirs,
            blank: if inherited { other.as_ref().map_or(theirs, other_word) } else { Slot::EMPTY },
            wiped,
            shares: !wiped && !mapping.shared,
            object: mapping.shared || !matches!(mapping.backing, Backing::Anonymous),
            lowered: writes.then_some(rights),
            same: inherited && !watched && !mapping.flags.intersects(own | Flags::WIPE_ON_FORK),
        };
        let at = self.met.len();
        self.met.try_reserve(FEW.saturating_sub(at).max(1)).map_err(|_| ::radix::Error::OutOfMemory)?;
        self.met.push(Met { heir, pages: 0, other });
        if at >= FEW {
            self.more.insert(theirs.word(), at);
        }
        Ok(at)
    }
    /// Count for the child what it has got, and tell the objects.
    fn tell(&self, child: &Radix, pin: &Pinned<'_>) {
        let mut difference = Difference::default();
        difference.resident(self.resident);
        for Met { heir, pages, other } in self.met.iter().filter(|met| met.heir.blank != Slot::EMPTY) {
            let desc = other.as_ref().map_or_else(|| self.change.desc(heir.theirs), Hold::desc);
            difference.add(desc.kinds, *pages as i64);
            if !mutant!("fork-unannounced") {
                // Whatever a shared mapping may write, the parent's may too: so it is not sealed.
                let _ = child.announce(&desc.mapping, *pages, pin);
            }
        }
        child.counts.add(&difference, pin);
    }
}
