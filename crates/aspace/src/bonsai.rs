//! The address space of the Bonsai tree: page faults without a lock on the mappings (Clements, Kaashoek, Zeldovich,
//! "Scalable Address Spaces Using RCU Balanced Trees", ASPLOS 2012), and one sleeping lock for those that change them.
//!
//! **Claim.** As for [`locked`](crate::locked): every operation takes effect at one instant, and no CPU uses a frame through
//! this space that the space does not own any more. Beyond that, a fault that finds its mapping writes nothing that faults on
//! other leaf tables, or on other mappings, read: neither the tree, nor a mapping, nor anything of the space's own. And it
//! waits for nobody but holders of its page's leaf table.
//!
//! **Idea.** Whatever is told of a mapping is told for ever: a change makes new objects and declares the old ones dead. So
//! a fault needs no lock to know what it has found, only to know whether it still counts; and the place to ask that is the
//! one at which it has to stop anyway, the lock of the leaf table in which it wants to put an entry. Everything else a fault
//! can't decide alone (there is no mapping, or it does not allow the access, or the object has to be waited for in vain) it
//! leaves to a look into the same tree with the lock of those that change it. All else than faults is [`serial`](crate::serial)'s.
//!
//! # Protocol
//! | operation | `maps` | in a section | leaf lock | flush |
//! | --- | --- | --- | --- | --- |
//! | fault: fill, raise | no | look-up to insertion | to look again and insert | none: no entry lost a right |
//! | fault: copy on write | no | look-up to the end | over insert, flush and raise | under the leaf lock |
//! | fault that found nothing, or was refused | shared | no | as above | as above |
//! | advise(DontNeed, Free) | no; shared if refused | 32 MiB at a time | over take and flush, leaf by leaf | under the leaf lock |
//! | advise(InstallGuards, RemoveGuards), move_page | shared | no | as in `locked` | as there |
//! | advise(Flags, Place), lock, grow | exclusive | no | no | none: rights stay as they are |
//! | map, unmap, protect, remap, fork, cut, clear | exclusive, until after the flush | no | each leaf while it changes | one round; a second if remap emptied a table |
//! | find, shared_page | no; shared if nothing is found | look-up | no | no |
//! | mappings, usage | shared | no | no | no |
//!
//! **Lock order** (B10): `maps` (sleeps), then an object's own locks (may sleep), then the tree's writer lock or one table above the
//! leaves, then one leaf lock (fork takes the parent's and then the child's, which nobody else knows yet), then the frame
//! allocator's. An object is first asked in the section for what it has [at hand](crate::Object::at_hand), for which it waits for
//! no lock; for more by who is in no section, and, if it was the tree that told of it, has no lock
//! either (B8). Spinning locks are taken pinned, with interrupts on (B9).
//!
//! # Invariants
//! * **B1** *(no refusal without the lock)* What finds no live mapping, a guard, or a mapping that does not allow what is asked,
//!   looks again with `maps` held, which alone decides SIGSEGV and SIGBUS.
//! * **B2** *(dead first)* A mapping in the tree is immutable but for its number and for being dead. It dies once, after the tree no
//!   longer leads to it, and before any entry of its pages is touched for what changes. Who changes what its pages have, and
//!   not what they should be, takes its number away before, and gives it another one afterwards ([`Mappings::hide`](crate::mappings::Mappings::hide)): to a
//!   fault that had found it it is dead, and a fault that finds it without a number has found nothing.
//! * **B3** *(grow before shrink)* The pieces of a mapping that stay are in the tree before it goes.
//! * **B4** *(ask again)* An entry is made to grant more only under the lock of its leaf table, by who has found the mapping
//!   alive under that lock: the very one by which its object was asked.
//! * **B5** *(visit all)* Who declares a mapping dead visits all leaf tables that its pages have or get: an absent one is passed
//!   under the lock of the table above ([`pagetable::Concurrent::leaves_in_order`]).
//! * **B6** *(tables)* A table is unlinked by a holder of `maps` when nothing alive has pages in it, and is free after the flush
//!   *and* the end of all sections that were open.
//! * **B7** *(frames)* leave by a [`Gather`](tlb::Gather): free after the flush.
//! * **B8** *(sections)* No section sleeps, waits for an object, or allocates what may have to be waited for. What an object has at
//!   hand is given or not, at once; for the rest a fault copies the mapping, leaves its section, asks, and begins again with the look-up. A section borrows a pin, and who has one can't sleep: the hosts of
//!   tests, and the kernel, panic.
//! * **B9** *(leaf locks and interrupts)* Leaf locks are waited for with interrupts on, so that a CPU that waits for one still answers the
//!   shootdown that its holder waits for.
//! * **B10** *(order)* Locks are taken in the order above. A shootdown may be waited for with a leaf lock, and with none of the
//!   domain's of sections, which knows of no shootdowns.
//! * **B11** *(what a fault writes)* The entry that names the leaf table, in which its lock is, and the page's entry; the frames that it takes
//!   and gives back; and what is its CPU's own. Nothing in a mapping, in the tree, or in what the space has once.
//! * I1, I2 and I4 of `locked`; I3 while `maps` is free.
//!
//! # Races, and what decides them
//! * **R1** *A fault looks up what is being split.* It finds the old mapping, still alive or dead by now, or the piece; or
//!   nothing, and looks again with the lock (B3, B1).
//! * **R2** *A stack grows.* Its mapping is out of the tree until the one that is longer is in. A fault in either part finds nothing, and
//!   looks again with the lock, which who grows it has (B1).
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
//!   flush, but left to `protect`: the fault waits for the lock.
//! * **R9** *Memory of a mapping is reused.* Not while a section is open in which it was found. A fault that has left its section
//!   to ask an object compares the number of the mapping that it finds, as numbers are not reused.
//! * **R12** *Copy on write, and a sibling that reads the old frame*: as in `locked`.
//! * **R13** *Fork lowers an entry, another CPU still stores by its stale translation, a third copies the page.* The copy
//!   would miss the store. The gate is closed from before the first entry is lowered until after the flush; who wants to
//!   copy looks at it under the leaf lock: if it finds the gate open, either fork has not come to this leaf, and then the
//!   entry was read-only before, or the flush is over.
//!   Nor is an empty page of a private mapping filled while the gate is closed: a store to it would not be the child's, though a
//!   later one to a page that fork has not come to would. An absent leaf table is passed as in R4.
//! * **R14** *"Only share" against fork.* Fork shares and lowers under the leaf lock under which a fault asks.
//! * **R15** *Pages are cut off an object while a fault has one in its hands.* Who cuts takes the mappings'
//!   numbers away, as if they had died, after the object has been changed and before an entry is taken; after the flush
//!   they have others (R9).
//! * **R16** *A page of an object is freed between look-up and use.* Who copies it has a share. Who puts it in has it lent, and finds
//!   its area alive by the number that a cut takes away (R15; [`Mappers`](crate::Mappers)). The object itself stays: who is in
//!   the section has the area, which keeps it until the section is over, and who has left it has a count.
//! * **R17** *map over old mappings.* Unpublish, clear, flush, and only then publish: a fault in between waits for the lock.
//! * **R18** *remap.* The source is hidden before it loses its rights, the target published when the entries are there.
//! * **R19** *DontNeed* looks whether the mapping is alive under each leaf lock; if it isn't any more, it looks again with the lock. It may
//!   meet an entry from which `protect` has taken the last right, and has not flushed yet: though the entry is not present,
//!   CPUs may have it cached. So here a frame goes no sooner than after a flush of its page, whatever its entry says.
//! * **R20** *A CPU joins or leaves*: see [`tlb`].
//!
//! # What faults exclude
//! [`Exclude`] has the designs of the paper's section 4 for comparison: how much of the above is left out.

use alloc::sync::Arc;

use percpu::Unpinned;

use crate::{Error, Machine, Realm, Serial, serial::Protocol};

/// What page faults wait for, and what waits for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Exclude {
    /// A fault takes the lock of the mappings, shared, throughout.
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

impl Serial {
    /// An empty address space in `realm`, whose faults exclude what `exclude` says. Errors: `NoMemory`.
    pub fn bonsai(
        machine: Machine,
        realm: &'static Realm,
        exclude: Exclude,
        ctx: &Unpinned<'_>,
    ) -> Result<Arc<Self>, Error> {
        Self::bonsai_with_leaves(machine, realm, exclude, ::bonsai::LEAVES_FROM, ctx)
    }
    /// The same, whose tree of mappings has leaves from so many nodes on ([`Tree::leaves_from`](::bonsai::Tree::leaves_from)).
    pub fn bonsai_with_leaves(
        machine: Machine,
        realm: &'static Realm,
        exclude: Exclude,
        leaves_from: usize,
        ctx: &Unpinned<'_>,
    ) -> Result<Arc<Self>, Error> {
        Self::new(machine, Protocol::Bonsai { realm, exclude, leaves_from }, ctx)
    }
}
