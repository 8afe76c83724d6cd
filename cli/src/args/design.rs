//! What a kernel's address spaces and frame allocators can be told to be.

use anyhow::Result;
use clap::ValueEnum;

use crate::failure::{USAGE, failure};

/// Designs of the address space that the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Aspace {
    /// A Bonsai tree that faults read without a lock
    Bonsai,
    /// One reader-writer lock
    Locked,
    /// A radix tree with a lock in each slot
    Radix,
}

impl Aspace {
    /// The name that the kernel knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bonsai => "bonsai",
            Self::Locked => "locked",
            Self::Radix => "radix",
        }
    }
}

/// What page faults wait for in a Bonsai address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Exclude {
    /// Whoever changes mappings: one reader-writer lock
    Stock,
    /// A second lock, held from the first change of the tree to the end of the flush
    FaultLock,
    /// A second lock, held while the tree is changed
    Hybrid,
    /// Nobody, but who changes a mapping waits for its faults
    PerMapping,
    /// Nobody
    Rcu,
}

impl Exclude {
    /// The name that the kernel knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::FaultLock => "fault-lock",
            Self::Hybrid => "hybrid",
            Self::PerMapping => "per-mapping",
            Self::Rcu => "rcu",
        }
    }
}

/// What the `locked` design is like.
#[derive(clap::Args, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Locked {
    /// With the locked design: whether threads look for a while before they sleep for the lock [default: sleep]
    #[arg(long, value_name = "sleep|spin")]
    pub rwlock: Option<Wait>,
    /// With the locked design: whether the mapping that was found last is tried first [default: on]
    #[arg(long, value_name = "on|off")]
    pub last_hit: Option<Switch>,
    /// With the locked design: whether up to 33 pages are flushed one by one, or always the whole space [default: range33]
    #[arg(long, value_name = "range33|space")]
    pub flush: Option<Flush>,
    /// With the locked design: whether files lend their pages to mappings, or each mapping of one is counted [default: lent]
    #[arg(long, value_name = "lent|atomic")]
    pub count: Option<Count>,
}

impl Locked {
    /// What was said: names and values, as the kernel knows them.
    pub fn said(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let rwlock = self.rwlock.map(|wait| match wait {
            Wait::Sleep => "sleep",
            Wait::Spin => "spin",
        });
        let last_hit = self.last_hit.map(|switch| match switch {
            Switch::On => "on",
            Switch::Off => "off",
        });
        let flush = self.flush.map(|flush| match flush {
            Flush::Range33 => "range33",
            Flush::Space => "space",
        });
        let count = self.count.map(|count| match count {
            Count::Lent => "lent",
            Count::Atomic => "atomic",
        });
        [("rwlock", rwlock), ("last-hit", last_hit), ("flush", flush), ("count", count)]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
    }
}

/// Whether what is said of designs is said of one of these: else a run would not be what its options promise.
pub fn check(among: &[Aspace], exclude: Option<Exclude>, locked: Locked) -> Result<()> {
    let excludes = exclude.map(|_| (Aspace::Bonsai, "exclude"));
    let of_locked = locked.said().map(|(option, _)| (Aspace::Locked, option));
    match excludes.into_iter().chain(of_locked).find(|(design, _)| !among.contains(design)) {
        Some((design, option)) => {
            let name = design.name();
            Err(failure(USAGE, format!("--{option} is about the {name} design: say --aspace {name}")))
        }
        None => Ok(()),
    }
}

/// How threads wait for the lock of a `locked` address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wait {
    /// They sleep at once
    Sleep,
    /// They look for a while whether it is their turn, and then sleep
    Spin,
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It is
    On,
    /// It isn't
    Off,
}

/// What a shootdown makes CPUs forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Flush {
    /// What has changed, or everything if that is more than 33 pages
    Range33,
    /// The whole address space
    Space,
}

/// How a file's page counts who maps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Count {
    /// It doesn't: the file lends it
    Lent,
    /// By atomic additions to one word
    Atomic,
}

/// How many page tables a radix address space has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PageTables {
    /// One for each CPU that runs it
    Percpu,
    /// One
    Shared,
}

impl PageTables {
    /// The name that the kernel knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Percpu => "percpu",
            Self::Shared => "shared",
        }
    }
}

/// Algorithms that the kernel hands out page frames by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FrameAlgo {
    /// Rows of 64 frames, leased
    Row,
    /// A tree of free areas by address
    Avl,
    /// Binary buddies
    Buddy,
    /// Pools of runs of one size
    Slab,
    /// For comparison: one tree behind one lock for all CPUs
    Global,
    /// For comparison: one tree, of which CPU 0 serves the others
    Served,
}

impl FrameAlgo {
    /// The name that the kernel knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Row => "row",
            Self::Avl => "avl",
            Self::Buddy => "buddy",
            Self::Slab => "slab",
            Self::Global => "global",
            Self::Served => "served",
        }
    }
}
