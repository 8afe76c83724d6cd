//! Heap overflows found by protection, after Appel and Li (1991), 3.8 and 4: a page that nobody may touch, where
//! objects end.
//!
//! - [`FenceAlloc`] is a global allocator for finding bugs: each object ends at a guard page, and what is freed is
//!   closed for a while. The access that is wrong stops there, with a report of the object it belongs to.
//! - [`Bump`] is a bump area for runtimes: its limit check is a guard page, and the store of an object's header,
//!   which is needed anyway, runs into it.
//!
//! ```no_run
//! #[global_allocator]
//! static HEAP: fence::FenceAlloc = fence::FenceAlloc::new();
//!
//! fn main() {
//!     let bytes = vec![1_u8; 100];
//!     // One past the end: the process ends here, and says that the object has 100 bytes.
//!     println!("{}", unsafe { bytes.as_ptr().add(100).read_volatile() });
//! }
//! ```
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod alloc;
mod bump;
mod limit;
pub mod raw;
mod report;
mod slots;
mod stack;

pub use alloc::FenceAlloc;
pub use bump::{Bump, Cursor};
