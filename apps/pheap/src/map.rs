//! The map: what each page is.
//!
//! An entry is four words:
//!
//! ```text
//! 0   kind (8 bits), class (8), live objects (16), pages of the run (32)
//! 1   next (32), previous (32): neighbours in the list that the page is on; 0 for none
//! 2,3 a slab's objects that are live, a bit each
//! ```

use crate::{PAGE, memory::Memory};

/// Bytes of an entry.
pub const ENTRY: u64 = 32;

/// Bytes of an object of each class; all but the last divide a page with little left.
pub const CLASSES: [u64; 19] =
    [32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024, 2048];
/// What the largest class holds; larger objects are runs of pages.
pub const LARGEST: u64 = 2048;

/// What a page is, as its entry has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Never used, or inside of a run: the run's ends say what it is.
    #[default]
    Inner = 0,
    /// Objects of one class.
    Slab = 1,
    /// The first page of a large object.
    Large = 2,
    /// The first page of a free run.
    Free = 3,
    /// The last page of a free run of two or more.
    FreeEnd = 4,
}

/// An entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    pub class: u8,
    pub live: u16,
    pub run: u32,
    pub next: u32,
    pub previous: u32,
    pub objects: u128,
}

/// How many objects a slab of a class has.
pub fn slots(class: u8) -> u32 {
    CLASSES.get(usize::from(class)).map_or(0, |size| (PAGE / size) as u32)
}

/// The least class that holds `bytes`, at most [`LARGEST`].
pub fn class_of(bytes: u64) -> u8 {
    CLASSES.partition_point(|&size| size < bytes) as u8
}

/// A page's entry; `None` if its kind or class is none.
pub fn load(memory: Memory, page: u32) -> Option<Entry> {
    let at = place(page);
    let [what, links, low, high] = [0, 8, 16, 24].map(|word| memory.load(at + word));
    let kind = match what as u8 {
        0 => Kind::Inner,
        1 => Kind::Slab,
        2 => Kind::Large,
        3 => Kind::Free,
        4 => Kind::FreeEnd,
        _ => return None,
    };
    let class = (what >> 8) as u8;
    (usize::from(class) < CLASSES.len()).then_some(Entry {
        kind,
        class,
        live: (what >> 16) as u16,
        run: (what >> 32) as u32,
        next: links as u32,
        previous: (links >> 32) as u32,
        objects: u128::from(low) | u128::from(high) << 64,
    })
}

/// Set a page's entry: only words that differ are stored, so that a page of the map is not written for nothing.
pub fn store(memory: Memory, page: u32, entry: Entry) {
    let what = entry.kind as u64
        | u64::from(entry.class) << 8
        | u64::from(entry.live) << 16
        | u64::from(entry.run) << 32;
    let links = u64::from(entry.next) | u64::from(entry.previous) << 32;
    let words = [what, links, entry.objects as u64, (entry.objects >> 64) as u64];
    for (at, word) in (place(page)..).step_by(8).zip(words) {
        if memory.load(at) != word {
            memory.store(at, word);
        }
    }
}

fn place(page: u32) -> u64 {
    PAGE + u64::from(page) * ENTRY
}
