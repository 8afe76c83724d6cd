//! The address space as Unix kernels had it: one reader-writer lock for everything (the protocol of Linux 2.6.37,
//! `mm->mmap_sem`; for its limits see Clements, Kaashoek, Zeldovich, "Scalable Address Spaces Using RCU Balanced
//! Trees", ASPLOS 2012, section 2).
//!
//! `--aspace locked [--rwlock sleep|spin] [--last-hit on|off] [--flush range33|space]`, see [`Variant`]. It is there to be compared
//! with, so it is as good as its one lock allows: the tree, the page table and the frames are those of
//! [`bonsai`](crate::bonsai), and the code is [`serial`](crate::serial)'s.
//!
//! **Claim.** Every operation takes effect at one instant. No CPU uses a frame through this space that the space does
//! not own any more. Faults on different pages run side by side; everything else runs alone.
//!
//! # Protocol
//! | operation | `maps` | leaf lock | flush |
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
//! **Lock order**: `maps` (sleeps) > an object's own locks (may sleep) > one leaf lock (spins; fork takes the
//! parent's and then the child's, which nobody else knows yet) or that of a table above the leaves > the frame
//! allocator's. Sleeping locks are taken unpinned. Spinning ones are taken pinned, with interrupts on, so that a CPU
//! that waits for a leaf lock still answers the shootdown its holder waits for. Nothing that takes `maps` is called under a
//! leaf lock.
//!
//! # Invariants
//! Whenever `maps` is free or held shared only (I1 also needs the leaf lock to be free):
//! * **I1** *(buffers)* For every CPU and page, the CPU's cached translation, if any, names the frame of the page's
//!   entry and grants no more than the entry does.
//! * **I2** *(entries)* An entry that isn't empty belongs to a mapped page, owns one share of its frame or has it lent, and grants no
//!   more than the mapping's protection; and it is writable in a private mapping only if its share is the only one.
//! * **I3** *(tables)* Every page-table page but the root serves some mapped page. Hence what has to be unlinked when
//!   a range is unmapped is found without counting entries: the tables that serve nothing outside of the gap that is
//!   left ([`Mappings::gap_around`](crate::mappings::Mappings::gap_around)).
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
//! * **Fault and unmap.** `maps` decides: the fault inserts before the unmap begins to clear, or finds no mapping.
//! * **Copy on write, and a sibling that still reads the old frame.** The writer takes a share of the old frame, so
//!   that it stays what it is, and copies it outside of the leaf lock: the frame can't change meanwhile, since it is
//!   shared and so no entry anywhere may write it. Then under the leaf lock: the entry must still name that frame;
//!   the copy goes in *read-only*; flush; only then is it made writable, and only then the lock is released. If it
//!   went in writable at once, a third CPU could store to it, and a sibling that has the old translation could load
//!   the old value after that store. If the lock were released before the flush, the third CPU's own fault would
//!   find a frame with one owner and make it writable, to the same effect. Both shares of the old frame go into the
//!   gather, so they are dropped after the flush, never before: the last other owner would take the frame for its
//!   own and write it while a sibling still reads it through the old translation.
//! * **"Only share" against fork.** `frames.is_shared` is asked under `maps`, held shared at least; shares of a
//!   private frame are made by fork, which holds `maps` of the owner exclusively, and by copies in flight, which
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
//! Frames taken out, and tables unlinked, belong to the operation from the instant they are out of the
//! table; they are freed after the flush, when the lock is released already (in rounds, under the lock, if they are
//! very many). A frame that was never in a table is freed at once. The root outlives everything, since CPUs may run
//! the space lazily: `clear` hands it to [`Retired`](crate::retired::Retired), and it is freed by `clear` or by the last `deactivate`, whichever
//! comes later.
//!
//! What is taken out of the tree is freed at once. Objects that were mapped are let go of when the change of the tree is done,
//! by a thread that may sleep.
//!
//! # The mapping that was found last
//! is tried first ([`Variant::last_hit`]), as Linux did (`mmap_cache`). Faults store it, with `maps` held shared, and whoever
//! changes the tree, with `maps` held exclusively, clears it before. So what it names is in the tree.
//!
//! # Memory that runs out
//! Frames fail cleanly: a fault returns `NoMemory`, fork gives back all it made, remap makes the tables it needs
//! before it changes anything. For the tree see [`mappings`](crate::mappings).

use alloc::sync::Arc;

use percpu::Unpinned;

use crate::{Error, Machine, Serial, serial::Protocol};

/// How threads wait for the lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wait {
    /// They sleep at once.
    #[default]
    Sleep,
    /// They look for a while whether it is their turn, and then sleep. Who holds the lock may sleep too, on the same CPU.
    Spin,
}

/// What a shootdown makes CPUs forget.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Flush {
    /// What has changed, or everything if that is more than 33 pages: as later kernels.
    #[default]
    Range33,
    /// All of the address space, as Linux 2.6.37.
    Space,
}

/// How a file's page counts who maps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Count {
    /// It is lent, and not counted ([`Object::lend`](crate::Object::lend)).
    Lent,
    /// Each mapping of it has a share, counted by atomic additions to one word.
    Atomic,
}

/// What is better or worse about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Variant {
    /// How threads wait for the lock.
    pub wait: Wait,
    /// Whether the mapping that was found last is tried first.
    pub last_hit: bool,
    /// What a shootdown makes CPUs forget.
    pub flush: Flush,
    /// How pages of files are counted.
    pub count: Count,
}

impl Default for Variant {
    fn default() -> Self {
        Self { wait: Wait::Sleep, last_hit: true, flush: Flush::Range33, count: Count::Lent }
    }
}

impl Variant {
    /// Take `value` for the option `key` of a command line. False if that is neither here nor there.
    pub fn set(&mut self, key: &str, value: &str) -> bool {
        match (key, value) {
            ("rwlock", "sleep") => self.wait = Wait::Sleep,
            ("rwlock", "spin") => self.wait = Wait::Spin,
            ("last-hit", "on") => self.last_hit = true,
            ("last-hit", "off") => self.last_hit = false,
            ("flush", "range33") => self.flush = Flush::Range33,
            ("flush", "space") => self.flush = Flush::Space,
            ("count", "lent") => self.count = Count::Lent,
            ("count", "atomic") => self.count = Count::Atomic,
            _ => return false,
        }
        true
    }
}

impl Serial {
    /// An empty address space whose faults take the lock of the mappings, on a machine with so many CPUs. Errors: `NoMemory`.
    pub fn locked(
        machine: Machine,
        cpus: usize,
        variant: Variant,
        ctx: &Unpinned<'_>,
    ) -> Result<Arc<Self>, Error> {
        Self::new(machine, Protocol::Locked { cpus, variant }, ctx)
    }
}
