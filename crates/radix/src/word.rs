//! The word in a slot, as far as the tree knows it. Refcache's weak words are these same words.
//!
//! ```text
//! value: the space's own in bits 63..2, never 0                    | LINK = 0 | LOCK
//! link:  node's address, 64-byte aligned | .. | FROZEN | DYING     | LINK = 1 | LOCK only with FROZEN
//! EMPTY: 0, with LOCK while held         DEAD: LINK and LOCK with address 0: the node was replaced
//! ```

use refcache::word::is_live;
pub use refcache::word::{EMPTY, FROZEN, LINK, LOCK};

/// In all slots of a node that was replaced by a folded value: who meets it starts again at the root.
pub(crate) const DEAD: u64 = LINK | LOCK;

/// Whether the word is a link that lockers follow.
pub(crate) const fn descends(word: u64) -> bool {
    is_live(word) && word & FROZEN == 0
}

/// Whether the word is a link to a frozen node, which lockers treat as a value.
pub(crate) const fn is_frozen(word: u64) -> bool {
    is_live(word) && word & FROZEN != 0
}

/// Whether lookups follow the word.
pub(crate) const fn is_link(word: u64) -> bool {
    is_live(word)
}

/// Whether the word may be the value of a slot.
pub(crate) const fn is_value(word: u64) -> bool {
    word & (LINK | LOCK) == 0
}
