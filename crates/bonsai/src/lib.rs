//! The Bonsai tree: a balanced search tree that is read without a lock while one writer changes it.
//!
//! **Claim.** A look-up takes no lock, writes nothing and waits for nobody, and finds what was there; one of a key or an address
//! is one descent, whatever the writer does meanwhile, if none was given up for want of memory. An update becomes visible by one store, writes about one line that readers read, and fails for want of
//! memory only before it has changed anything.
//!
//! **Idea** (Clements, Kaashoek and Zeldovich, "Scalable Address Spaces Using RCU Balanced Trees", ASPLOS 2012). A tree of nodes
//! that never change would do: the writer builds the new path aside and publishes its root. But every update would copy the
//! path, and write the root that all readers read. Here a node's two links may change, where a single store leads from one
//! search tree to another: a new node is stored into the link where it belongs. Only nodes that turn are copied, which is
//! half a node for an insert. What was unlinked is freed when the readers are gone that could have found it ([`rcu`]).
//! The balance is by weight (Adams 1993; `plan` has the rules), so the sizes of subtrees serve for it.
//!
//! ```text
//! root -> [ span, entry | left | right | .. ]   a node: one line, of which only the links are ever stored to again
//!             |       \__ [ value, dead ]        the entry: what the node is about; it outlives copies of the node
//!         size, gap                             what only the writer reads: in other lines of the same page (`pool`)
//! ```
//!
//! In a large tree ([`Tree::leaves_from`]) a path ends in a *leaf* of up to 14 spans, side by side: a look-up there costs what the lines cost that the
//! last ones have not fetched, and the last levels of nodes would be a line each. Nothing of a leaf ever changes; an update stores
//! another, of 384 bytes, into the link. To the balance a leaf is what an empty link is, so a tree without leaves is as if there were none.
//!
//! **Why readers are right.** The writer keeps these, and loom, shuttle and the oracle look for a breach:
//! * L1. Each store leads from a search tree to a search tree. An update stores from below up: the first store makes its
//!   change, and those above only turn the tree (`plan`).
//! * L2. A published node's span and entry never change; a node that the tree does not lead to is never stored to again.
//! * L3. The interval of keys that are looked for below a node never becomes narrower as long as the tree leads to it. An
//!   insert fills an empty link, or replaces a leaf by another, or by a node between two; a turn makes copies and moves whole subtrees; a
//!   removal widens. So a node with two children is replaced by a *copy* of its neighbour m, or by a node for the item m of a leaf,
//!   and the nodes above m are copied: to unlink m in place would hide it from readers that are on the way to it.
//! * L4. A reader that is in a node found it in the tree when it began, or later. With L3: it does not miss a key that stays,
//!   and what it finds was there at some time during the call. A leaf says what was there when its link was read; or, if that link
//!   was in a node that was retired before, when it was retired, which was during the call too. So [`covering`](Reader::covering) and
//!   [`get`](Reader::get) are right without looking twice. They go to the end of the path, and take the last that is at or below what they look
//!   for: if that covers it, it is on the path or in the leaf, and nothing behind it is at or below.
//! * L5. A neighbour is another matter. Let s be below x, both below a. A reader that looks for the floor of a passes s and
//!   pauses; s is removed, and then x; the reader goes on, finds neither x nor anything else, and answers s, which was not the
//!   floor at any time. So an entry is marked dead after the store that unlinks it and before the next update; who has missed
//!   x because of the second removal sees the mark of the first, and looks again.
//! * L6. Nodes are retired after the update's last store: a grace period that began before says nothing about them.
//!
//! Orderings: O1, a publishing store is Release and O2, a reader's load is Acquire, its partner: a node is complete when it is
//! found. O3, the writer's own loads are Relaxed: nobody else stores.
//!
//! **Memory.** Planning takes nodes from a [`Pool`]; without any, an insert or replacement is refused. A removal can't be: then
//! the entry is marked a *tombstone*, found but dead, and the next update with memory takes it out. [`Writer::reserve`] takes
//! beforehand what a number of updates may need. Retiring needs no memory.
//!
//! **Two forms.** [`BonsaiMap`] has keys; [`RegionTree`] has disjoint regions of addresses, finds the one that covers an
//! address, and finds room for another ([`gap`](Writer::gap)). Both are a [`Tree`], whose readers are in sections of an
//! [`Rcu`] domain.
//! `docs/bonsai.md` has the figures.
//!
//! ```
//! # #[cfg(not(any(loom, shuttle)))] {
//! use bonsai::{BonsaiMap, Entry};
//! use percpu::testing::Machine;
//! use rcu::kernel::Domain;
//!
//! let (machine, domain) = (Machine::new(1), Domain::new(1));
//! let map = BonsaiMap::<u32, &str, _>::new(&domain);
//! machine.on(0, |ctx| {
//!     domain.idle_exit(&mut ctx.pin());
//!     {
//!         let pin = ctx.pin();
//!         let mut writer = map.write(&pin);
//!         writer.insert(1, Entry::new("one")).unwrap();
//!         writer.insert(3, Entry::new("three")).unwrap();
//!         assert_eq!(**writer.replace(1, Entry::new("uno")).unwrap(), "one");
//!     }
//!     let pin = ctx.pin();
//!     let section = domain.read(&pin);
//!     let reader = map.read(&section);
//!     assert_eq!(reader.get(1).map(|entry| **entry), Some("uno"));
//!     assert_eq!(reader.floor(2).map(|(key, _)| key.0), Some(1));
//!     assert!(reader.get(2).is_none());
//! });
//! # }
//! ```
//!
//! In a program (feature `std`), with threads that register, no CPU and no `unsafe`; members of `rcu`'s `Qsbr` do as well. Values are dropped by
//! whatever thread comes by after their grace period, perhaps in an update: their `Drop` must not change the tree.
//!
//! ```
//! # #[cfg(all(feature = "std", not(any(loom, shuttle))))] {
//! use bonsai::{BonsaiMap, Entry};
//!
//! rcu::domain!(static READERS: Readers);
//! let map = BonsaiMap::<u32, String, _>::new(&READERS);
//! std::thread::scope(|scope| {
//!     scope.spawn(|| {
//!         let reader = READERS.register();
//!         map.write(&reader).insert(7, Entry::new("seven".into())).unwrap();
//!         drop(map.write(&reader).remove(7));
//!     });
//!     scope.spawn(|| {
//!         let reader = READERS.register();
//!         let section = reader.read();
//!         if let Some(entry) = map.read(&section).get(7) {
//!             // Whatever the other does, it stays until the section ends.
//!             assert_eq!(**entry, "seven");
//!         }
//!     });
//! });
//! # }
//! ```
//!
//! An address space; what is cut keeps its addresses covered:
//!
//! ```
//! # #[cfg(not(any(loom, shuttle)))] {
//! use bonsai::{Entry, Fit, Region, RegionTree};
//! use percpu::testing::Machine;
//! use rcu::kernel::Domain;
//!
//! let (machine, domain) = (Machine::new(1), Domain::new(1));
//! let space = RegionTree::<&str, _>::new(&domain);
//! machine.on(0, |ctx| {
//!     let pin = ctx.pin();
//!     let mut writer = space.write(&pin);
//!     let user = Region::new(0x1000, 0x10_0000);
//!     let at = writer.gap(0x8000, user, Fit::Highest).unwrap();
//!     writer.insert(Region::new(at, at + 0x8000), Entry::new("heap")).unwrap();
//!     // Unmap two pages in the middle: first the upper rest, then the lower one in the place of the whole.
//!     writer.insert_piece(Region::new(at + 0x5000, at + 0x8000), Entry::new("heap")).unwrap();
//!     let whole = writer.replace(Region::new(at, at + 0x3000), Entry::new("heap")).unwrap();
//!     assert!(whole.is_dead());
//!     drop(whole);
//!     assert!(writer.read().covering(at + 0x4000).is_none());
//!     assert_eq!(writer.read().covering(at + 0x5000).unwrap().0.start(), at + 0x5000);
//!     assert_eq!(writer.gap(0x2000, Region::new(at, user.end()), Fit::Lowest), Some(at + 0x3000));
//! });
//! # }
//! ```
#![no_std]

extern crate alloc;

mod check;
mod domain;
mod entry;
mod gap;
mod map;
mod node;
mod plan;
mod pool;
mod region;
mod span;
mod stack;
mod still;
mod tree;
mod writer;

pub use check::Shape;
pub use domain::Rcu;
pub use entry::Entry;
pub use gap::Fit;
pub use map::BonsaiMap;
pub use pool::{Heap, Memory, PAGE, Pool};
pub use region::RegionTree;
pub use span::{Point, Region, Span};
pub use still::Still;
pub use tree::{Iter, LEAVES_FROM, Reader, Tree};
pub use writer::{Counts, Error, Refused, Removed, Writer};
