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
//! is locked, and one with a frame of a mapping of an object. Of the object's own pages the child gets none: it
//! asks the object when it needs them, so that program text is one word for 64 pages, as for pages that nobody has touched.
//!
//! **A cut needs no memory.** What it takes away is in slots of its own, or in a frozen node that one tree has (*I-F: a frozen
//! node that several trees have has no frame of an object's mapping*); that is taken over where it is
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

use alloc::collections::BTreeMap;

use ::radix::{Given, Span, Values};

use owned::Use;

use super::{realm::Hold, *};
use crate::{Backing, page as contents};

/// What a child gets of the pages with one of the parent's descriptors.
struct Heir<'p> {
    /// How many there are.
    pages: u64,
    /// What they are in the child, if that is something else.
    other: Option<Hold<'p>>,
}

/// What a child has got so far.
struct Heirs<'s, 'p> {
    space: &'s Radix,
    change: &'s mut Change<'p>,
    /// By the parent's descriptors; of those that aren't here the child gets nothing.
    of: BTreeMap<u32, Heir<'p>>,
    /// Those that were met last, and what they come to.
    now: Now,
    /// Pages with frames.
    resident: i64,
    /// The block whose frozen nodes were met last.
    block: u64,
}

/// The descriptor of a run of pages.
#[derive(Clone, Copy)]
struct Now {
    id: u32,
    /// How many pages of it aren't counted yet.
    run: u64,
    /// What they are in the child, without a frame; `None` if they aren't inherited.
    blank: Option<Slot>,
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

impl Now {
    const NONE: Now = Now {
        id: 0,
        run: 0,
        blank: None,
        wiped: false,
        shares: false,
        object: false,
        lowered: None,
        same: false,
    };
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
                let copied =
                    guard.fork(&mut tree, |span, values, theirs| heirs.inherit(span, values, theirs));
                heirs.count();
                (Some(guard), copied.map_err(|_| Error::NoMemory))
            }
            Err(error) => (None, Err(error)),
        };
        let child = match copied {
            Ok(()) => {
                let child = Self::of(tree, tables, self.machine, self.realm, self.kind);
                child.arenas.follow(&self.arenas);
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
        Self { space, change, of: BTreeMap::new(), now: Now::NONE, resident: 0, block: u64::MAX }
    }
    /// What the child gets of `span`, in whose frozen node are `values`: of those, if it doesn't get the node, `theirs`.
    fn inherit(
        &mut self,
        span: Span,
        values: Values<'_>,
        theirs: &mut [u64],
    ) -> Result<Given, ::radix::Error> {
        if !span.frozen {
            let slot = Slot::of(span.value);
            self.meet(slot.desc(), span.keys)?;
            let given = self.inherit_slot(slot, span);
            return Ok(if given == Slot::EMPTY { Given::Nothing } else { Given::Value(given.word()) });
        }
        let mut same = true;
        for ((slot, theirs), first) in values.map(Slot::of).zip(theirs).zip(span.first..) {
            *theirs = Slot::EMPTY.word();
            if !slot.is_mapped() {
                continue;
            }
            self.meet(slot.desc(), 1)?;
            let blank = slot.is_blank();
            same &= self.now.same && (blank || !self.now.object || mutant!("fork-freezes-objects"));
            *theirs = match self.now.blank {
                Some(other) if blank => other.word(),
                _ => self.inherit_slot(slot, Span { first, keys: 1, ..span }).word(),
            };
        }
        if !same {
            return Ok(Given::Slots);
        }
        self.protect(span.first);
        Ok(Given::Same)
    }
    /// What a slot of the child says in the place of `slot`, whose descriptor was met last, and whose pages are `span`.
    fn inherit_slot(&mut self, slot: Slot, span: Span) -> Slot {
        let Now { blank: Some(blank), wiped, shares, object, lowered, .. } = self.now else {
            return Slot::EMPTY;
        };
        match slot.frame() {
            None if slot.is_guard() && !wiped => blank.guard(),
            Some((frame, usage)) if shares && (usage == Use::Anonymous || !object) => {
                match lowered {
                    // The node doesn't know who has entries.
                    Some(_) if span.frozen => self.protect(span.first),
                    Some(rights) if mutant!("fork-no-flush") => {
                        let nobody = &mut CpuSet::EMPTY.clone();
                        _ = self.space.tables.lower(page(span.first), slot, rights, nobody);
                    }
                    Some(rights) => self.change.lower(slot, span.first, rights),
                    None => {}
                }
                self.resident += 1;
                blank.with_frame(frame, usage)
            }
            _ => blank,
        }
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
    /// `pages` pages are next whose descriptor is `id`, or 0 if there are none.
    #[inline(always)]
    fn meet(&mut self, id: u32, pages: u64) -> Result<(), ::radix::Error> {
        if id != self.now.id {
            self.go_on_to(id)?;
        }
        self.now.run += pages;
        Ok(())
    }
    #[cold]
    fn go_on_to(&mut self, id: u32) -> Result<(), ::radix::Error> {
        self.count();
        self.now = self.learn(id)?;
        Ok(())
    }
    /// Count the run.
    fn count(&mut self) {
        if let Some(heir) = self.of.get_mut(&self.now.id) {
            heir.pages += core::mem::take(&mut self.now.run);
        }
    }
    fn learn(&mut self, id: u32) -> Result<Now, ::radix::Error> {
        if id == 0 {
            return Ok(Now::NONE);
        }
        let mapping = &self.change.desc(Slot::new(id)).mapping;
        let none = Now { id, ..Now::NONE };
        if mapping.flags.contains(Flags::DONT_FORK) {
            return Ok(none);
        }
        let own = Flags::LOCKED | Flags::ON_FAULT;
        if !self.of.contains_key(&id) {
            let other = match mapping.flags.intersects(own) {
                true => {
                    let mapping = Mapping { flags: mapping.flags.difference(own), ..mapping.clone() };
                    let other = self.space.realm.intern(mapping, self.change.section().pin());
                    Some(other.ok_or(::radix::Error::OutOfMemory)?)
                }
                false => None,
            };
            self.of.insert(id, Heir { pages: 0, other });
        }
        let other = self.of.get(&id).and_then(|heir| heir.other.as_ref());
        let wiped = mapping.flags.contains(Flags::WIPE_ON_FORK);
        // What may not be written has no entry that may.
        let writes = mapping.prot.contains(Prot::WRITE);
        let rights = contents::hardware(mapping.prot).difference(Prot::WRITE);
        Ok(Now {
            blank: Some(other.map_or(Slot::new(id), Hold::slot)),
            wiped,
            shares: !wiped && !mapping.shared,
            object: mapping.shared || !matches!(mapping.backing, Backing::Anonymous),
            lowered: writes.then_some(rights),
            same: !mapping.flags.intersects(own | Flags::WIPE_ON_FORK),
            ..none
        })
    }
    /// Count for the child what it has got, and tell the objects.
    fn tell(&self, child: &Radix, pin: &Pinned<'_>) {
        let mut difference = Difference::default();
        difference.resident(self.resident);
        for (&id, heir) in &self.of {
            let desc = heir.other.as_ref().map_or_else(|| self.change.desc(Slot::new(id)), Hold::desc);
            difference.add(desc.kinds, heir.pages as i64);
            if !mutant!("fork-unannounced") {
                // Whatever a shared mapping may write, the parent's may too: so it is not sealed.
                let _ = child.announce(&desc.mapping, heir.pages);
            }
        }
        child.counts.add(&difference, pin);
    }
}
