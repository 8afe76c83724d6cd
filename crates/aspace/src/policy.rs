//! Where frames are to come from, on a machine with several nodes of memory.
//!
//! A [`Policy`] is what a program says, for a mapping (`mbind(2)`) or for a thread (`set_mempolicy(2)`). For a page the
//! mapping's is in force, else that of the thread that first uses the page, else none. What it comes to for one page is a
//! [`Place`], which is all that the allocation of a frame is told ([`page::frame`](crate::page::frame)).

use alloc::sync::Arc;

use frames::{Node, NodeSet, Place};

/// What a policy does with its nodes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Mode {
    /// Nothing was said.
    #[default]
    Default,
    /// The node of the CPU that first uses the page, else the nearest with memory.
    Local,
    /// The first of the nodes, else the nearest to it.
    Preferred,
    /// The nearest of the nodes; if all of them are full, any.
    PreferredMany,
    /// The nearest of the nodes, and no other.
    Bind,
    /// One node after the other, page by page; whatever is near it where it is full.
    Interleave,
    /// As [`Self::Interleave`], with as many pages in turn as the node's weight says; every weight is 1 here.
    WeightedInterleave,
}

/// What was said for a mapping: most often nothing, which needs no memory.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Said(Option<Arc<Policy>>);

impl Said {
    /// Nothing was said.
    pub const NOTHING: Said = Said(None);

    /// The policy.
    pub fn get(&self) -> Policy {
        self.0.as_deref().copied().unwrap_or_default()
    }
}

impl From<Policy> for Said {
    fn from(policy: Policy) -> Self {
        Self((policy != Policy::DEFAULT).then(|| Arc::new(policy)))
    }
}

/// What a program said about where pages are to be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Policy {
    /// What is done with the nodes.
    pub mode: Mode,
    /// What else was said, by the kernel's numbers; only kept, compared and told.
    pub flags: u16,
    /// The nodes that frames come from. Not empty but for [`Mode::Default`] and [`Mode::Local`].
    pub nodes: NodeSet,
    /// The nodes as the program is told them again.
    pub told: NodeSet,
    /// Where to begin, for [`Mode::Bind`] and [`Mode::PreferredMany`], if not at the CPU that asks.
    pub home: Option<Node>,
}

impl Policy {
    /// Nothing was said.
    pub const DEFAULT: Policy =
        Policy { mode: Mode::Default, flags: 0, nodes: NodeSet::EMPTY, told: NodeSet::EMPTY, home: None };

    /// Whether nothing was said.
    pub fn is_default(&self) -> bool {
        self.mode == Mode::Default
    }

    /// This policy, or `other` if nothing was said here.
    pub fn or(self, other: Policy) -> Policy {
        if self.is_default() { other } else { self }
    }

    /// Where the frame of page `index` is to be; the index counts pages of the address space or of an object, whichever
    /// keeps the page at the same number wherever it is mapped.
    pub fn place(&self, index: u64) -> Place {
        let Policy { mode, nodes, home, .. } = *self;
        let Some(first) = nodes.lowest() else { return Place::Local };
        match mode {
            Mode::Default | Mode::Local => Place::Local,
            Mode::Preferred => Place::Prefer(first),
            Mode::PreferredMany => Place::PreferAny(nodes, home),
            Mode::Bind => Place::Bind(nodes, home),
            Mode::Interleave | Mode::WeightedInterleave => {
                let turn = index % nodes.len() as u64;
                Place::Prefer(nodes.iter().nth(turn as usize).unwrap_or(first))
            }
        }
    }
}
