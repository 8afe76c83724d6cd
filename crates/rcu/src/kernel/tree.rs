//! Who still owes a report: a tree, so that no word is written by all CPUs.
//!
//! A leaf has a bit for each of [`FAN`] CPUs, an inner node one for each child; bits of those that owe nothing are clear from the
//! beginning. Who clears the last bit of a node clears the node's bit in its parent; who clears the last bit of the root has ended
//! the period. So a node is written by as many as it has children, once in a period each, whatever the number of CPUs.
//!
//! A word also has the *tag*: the period that it speaks of. A report says for which period it is, and changes no word of another.

use alloc::{boxed::Box, vec::Vec};

use percpu::{CpuId, Line};
use sync::{
    mutant,
    primitive::{AtomicU64, Ordering},
};

/// Children of a node: 16, so that 256 CPUs make two levels. Two under loom, where three CPUs shall do so.
pub(super) const FAN: usize = if cfg!(loom) { 2 } else { 16 };
/// The bits of those that owe, below the tag.
const OWED: u64 = (1 << FAN) - 1;

struct Node {
    /// `tag << FAN | owed`.
    word: AtomicU64,
    /// Its parent and its bit there, unless it is the root.
    parent: Option<(usize, u64)>,
}

/// Leaves first, the root last.
pub(super) struct Tree {
    nodes: Box<[Line<Node>]>,
    leaves: usize,
}

/// A CPU's leaf, and its bit there.
pub(super) fn place(cpu: CpuId) -> (usize, u64) {
    (cpu.index() / FAN, 1 << (cpu.index() % FAN))
}

impl Tree {
    pub(super) fn new(cpus: usize) -> Self {
        let leaves = cpus.div_ceil(FAN).max(1);
        let (mut nodes, mut width) = (Vec::new(), leaves);
        loop {
            let above = nodes.len() + width;
            for i in 0..width {
                let parent = (width > 1).then(|| (above + i / FAN, 1 << (i % FAN)));
                nodes.push(Line(Node { word: AtomicU64::new(0), parent }));
            }
            if width == 1 {
                return Self { nodes: nodes.into_boxed_slice(), leaves };
            }
            width = width.div_ceil(FAN);
        }
    }
    pub(super) fn leaves(&self) -> usize {
        self.leaves
    }
    /// Period `g` begins, and the CPUs of `online`, a word for each leaf, owe a report. False if there are none. By the driver,
    /// when all have reported for the period before.
    pub(super) fn begin(&self, g: u64, online: &[u64]) -> bool {
        // Relaxed, all: nobody writes here but reports for `g`, by those who have seen `gp`, which is stored with Release after.
        let (leaves, inner) = self.nodes.split_at(self.leaves);
        let empty = |node: &Line<Node>| node.0.word.store(g << FAN, Ordering::Relaxed);
        inner.iter().for_each(empty);
        for (Line(leaf), cpus) in leaves.iter().zip(online) {
            leaf.word.store(g << FAN | cpus, Ordering::Relaxed);
        }
        let mut any = false;
        for Line(node) in &self.nodes {
            any = node.word.load(Ordering::Relaxed) & OWED != 0;
            if let Some((above, bit)) = node.parent.filter(|_| any) {
                let word = &self.nodes[above].0.word;
                word.store(word.load(Ordering::Relaxed) | bit, Ordering::Relaxed);
            }
        }
        any
    }
    /// The CPU has been quiescent in period `g`. True if it was the last. Nothing if somebody has said so already, or if the
    /// period is over.
    pub(super) fn report(&self, cpu: CpuId, g: u64) -> bool {
        let (mut at, mut bit) = place(cpu);
        loop {
            let node = &self.nodes[at].0;
            // Relaxed, here and on failure: only a copy to compare with.
            let mut word = node.word.load(Ordering::Relaxed);
            loop {
                let tagged = word >> FAN == g || mutant!("rcu-tag-ignored");
                if !tagged || word & bit == 0 {
                    return false;
                }
                // AcqRel [O9]: the sections of this child before, and those of the children that reported before us; partners: the
                // same exchange by the others, below and above. Each is a read-modify-write, so the last has them all.
                let order = if mutant!("rcu-relaxed-combine") { Ordering::Relaxed } else { Ordering::AcqRel };
                match node.word.compare_exchange(word, word & !bit, order, Ordering::Relaxed) {
                    Ok(_) => break,
                    Err(now) => word = now,
                }
            }
            let last = word & OWED == bit || mutant!("rcu-combine-early");
            match node.parent {
                _ if !last => return false,
                None => return true,
                Some(above) => (at, bit) = above,
            }
        }
    }
    /// The CPUs of a leaf that owe a report for period `g`.
    pub(super) fn owing(&self, leaf: usize, g: u64) -> impl Iterator<Item = CpuId> + use<> {
        // Relaxed: who owes a report now may have given it the next moment.
        let word = self.nodes[leaf].0.word.load(Ordering::Relaxed);
        let owed = if word >> FAN == g { word & OWED } else { 0 };
        (0..FAN).filter(move |i| owed >> i & 1 != 0).filter_map(move |i| CpuId::new(leaf * FAN + i))
    }
}
