//! A heap in plain memory whose pointers are offsets: a copy of its bytes, mapped anywhere at any time, is the heap.
//!
//! **Claim.** [`Heap::alloc`] gives bytes that belong to no other object and to no page of the heap's own records;
//! what is freed and was not allocated is refused; and [`Heap::open`] takes bytes from anywhere, says what is wrong
//! with them, or returns a heap for which all of this holds. No bytes make it touch memory outside of its own.
//!
//! **Layout.** In pages of 4096 bytes:
//!
//! ```text
//! 0            header: sizes, roots, the heads of the lists below, the first page never used
//! 1..first     the map: 32 bytes for each page of the heap
//! first..      slabs: one page of objects of one size class, which of them are live in 128 bits of the map
//!              large objects: runs of pages
//!              free runs: their length stands in the map at both ends, so that neighbours join
//! ```
//! Objects carry no headers: size and liveness are the map's. A slab with room is on its class's list, a free run on
//! the list of runs; both are doubly linked by page numbers in the map. A slab without objects and a freed run go
//! back to the runs, or below the first page never used.
//!
//! **Sharing.** [`Memory`] is the bytes: copies of it may be used by any threads, all accesses being relaxed atomics,
//! so that a thread that copies pages meanwhile (a checkpoint) races with nobody. [`Heap`] is the allocator, and who
//! changes it has it alone.
//!
//! ```
//! use pheap::{Heap, Memory};
//!
//! let mut words = vec![0_u64; 16 * 512]; // 16 pages
//! // SAFETY: the words outlive the heap, and are used through it alone.
//! let memory = unsafe { Memory::new(words.as_mut_ptr().cast(), 16 * 4096) };
//! let mut heap = Heap::format(memory)?;
//! let object = heap.alloc(11)?;
//! memory.write(object, b"hello there");
//! heap.set_root(0, object);
//!
//! // Elsewhere, later: the same bytes.
//! let heap = Heap::open(memory)?;
//! let mut bytes = [0; 5];
//! heap.memory().read(heap.root(0), &mut bytes);
//! assert_eq!(&bytes, b"hello");
//! # Ok::<(), pheap::Error>(())
//! ```

mod check;
mod error;
mod heap;
mod map;
mod memory;

pub use check::Summary;
pub use error::Error;
pub use heap::{Heap, ROOTS};
pub use memory::Memory;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
