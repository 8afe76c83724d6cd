//! Allocating and freeing.

use crate::{
    PAGE,
    error::Error,
    map::{self, CLASSES, ENTRY, Entry, Kind, LARGEST},
    memory::Memory,
};

/// Offsets that the heap keeps for its user.
pub const ROOTS: usize = 8;

const MAGIC: u64 = u64::from_le_bytes(*b"QPHEAP01");

/// Offsets of the header's words.
pub mod word {
    use super::{CLASSES, ROOTS};
    pub const MAGIC: u64 = 0;
    /// Bytes of the heap.
    pub const LEN: u64 = 8;
    /// The first page that is not of the heap's own.
    pub const FIRST: u64 = 16;
    /// The first page that was never used, or is as good as that.
    pub const FRESH: u64 = 24;
    /// How many objects are live.
    pub const OBJECTS: u64 = 32;
    /// The list of free runs.
    pub const RUNS: u64 = 40;
    pub const ROOT: u64 = 48;
    /// A list for each class of its slabs with room.
    pub const SLABS: u64 = ROOT + 8 * ROOTS as u64;
    pub const END: u64 = SLABS + 8 * CLASSES.len() as u64;
}

const _: () = assert!(word::END <= PAGE);

/// The allocator of a heap in some memory.
#[derive(Debug)]
pub struct Heap {
    memory: Memory,
}

/// Pages of the map for so many pages of a heap.
fn map_pages(pages: u64) -> u64 {
    (pages * ENTRY).div_ceil(PAGE)
}

impl Heap {
    /// An empty heap over all of the memory.
    ///
    /// # Errors
    /// [`Error::Size`] if it is not 4 pages to 16 TiB.
    pub fn format(memory: Memory) -> Result<Self, Error> {
        let (heap, pages) = (Self { memory }, memory.len() / PAGE);
        if pages < 4 || pages > u64::from(u32::MAX) {
            return Err(Error::Size { bytes: memory.len() });
        }
        let first = 1 + map_pages(pages);
        memory.clear(0, word::END as usize);
        (1..first).for_each(|page| memory.clear(page * PAGE, PAGE as usize));
        memory.store(word::LEN, memory.len());
        memory.store(word::FIRST, first);
        memory.store(word::FRESH, first);
        memory.store(word::MAGIC, MAGIC);
        Ok(heap)
    }

    /// The heap that the memory holds, after all of its records were checked.
    ///
    /// # Errors
    /// [`Error::NoHeap`], [`Error::OtherSize`], or [`Error::Damaged`] with the first contradiction found.
    pub fn open(memory: Memory) -> Result<Self, Error> {
        if memory.len() < PAGE || memory.load(word::MAGIC) != MAGIC {
            return Err(Error::NoHeap);
        }
        let heap = memory.load(word::LEN);
        if heap != memory.len() {
            return Err(Error::OtherSize { heap, memory: memory.len() });
        }
        let pages = memory.len() / PAGE;
        let first = memory.load(word::FIRST);
        let fits = (4..=u64::from(u32::MAX)).contains(&pages) && first == 1 + map_pages(pages);
        let fresh = memory.load(word::FRESH);
        if !fits || fresh < first || fresh > pages {
            return Err(Error::Damaged { page: 0, what: "the header's sizes do not agree" });
        }
        let heap = Self { memory };
        heap.check()?;
        Ok(heap)
    }

    /// The bytes.
    pub const fn memory(&self) -> Memory {
        self.memory
    }

    /// Root `i`, of [`ROOTS`]; 0 if it was never set.
    pub fn root(&self, i: usize) -> u64 {
        assert!(i < ROOTS, "there are {ROOTS} roots, and no root {i}");
        self.memory.load(word::ROOT + 8 * i as u64)
    }

    /// Set root `i`, of [`ROOTS`].
    pub fn set_root(&mut self, i: usize, offset: u64) {
        assert!(i < ROOTS, "there are {ROOTS} roots, and no root {i}");
        self.memory.store(word::ROOT + 8 * i as u64, offset);
    }

    /// How many objects are live.
    pub fn objects(&self) -> u64 {
        self.memory.load(word::OBJECTS)
    }

    /// Bytes of pages that were ever used, the heap's own included.
    pub fn used(&self) -> u64 {
        self.memory.load(word::FRESH) * PAGE
    }

    pub(crate) fn entry(&self, page: u64) -> Option<Entry> {
        let inside = page >= self.memory.load(word::FIRST) && page < self.memory.load(word::FRESH);
        inside.then(|| map::load(self.memory, page as u32)).flatten()
    }

    fn get(&self, page: u32) -> Entry {
        map::load(self.memory, page).unwrap_or_default()
    }

    fn put(&self, page: u32, entry: Entry) {
        map::store(self.memory, page, entry);
    }

    /// Put a page, whose entry is given, first on a list.
    fn link(&self, list: u64, page: u32, entry: Entry) {
        let next = self.memory.load(list) as u32;
        if next != 0 {
            self.put(next, Entry { previous: page, ..self.get(next) });
        }
        self.put(page, Entry { next, previous: 0, ..entry });
        self.memory.store(list, page.into());
    }

    /// Take a page off its list; its entry without the links.
    fn unlink(&self, list: u64, page: u32) -> Entry {
        let entry = self.get(page);
        match entry.previous {
            0 => self.memory.store(list, entry.next.into()),
            previous => self.put(previous, Entry { next: entry.next, ..self.get(previous) }),
        }
        if entry.next != 0 {
            self.put(entry.next, Entry { previous: entry.previous, ..self.get(entry.next) });
        }
        let entry = Entry { next: 0, previous: 0, ..entry };
        self.put(page, entry);
        entry
    }

    /// An object of at least `bytes` bytes, at a multiple of 16: its offset, never 0. What is in it is not said.
    ///
    /// # Errors
    /// [`Error::Full`]; nothing was changed.
    pub fn alloc(&mut self, bytes: u64) -> Result<u64, Error> {
        let full = Error::Full { wanted: bytes };
        let offset = match bytes {
            0..=LARGEST => self.alloc_slot(map::class_of(bytes)),
            _ => {
                let run = u32::try_from(bytes.div_ceil(PAGE)).map_err(|_| full.clone())?;
                self.alloc_run(run).map(|page| {
                    self.put(page, Entry { kind: Kind::Large, run, ..Entry::default() });
                    u64::from(page) * PAGE
                })
            }
        };
        let offset = offset.ok_or(full)?;
        self.memory.store(word::OBJECTS, self.objects() + 1);
        Ok(offset)
    }

    fn alloc_slot(&self, class: u8) -> Option<u64> {
        let list = word::SLABS + 8 * u64::from(class);
        let page = match self.memory.load(list) as u32 {
            0 => {
                let page = self.alloc_run(1)?;
                self.link(list, page, Entry { kind: Kind::Slab, class, run: 1, ..Entry::default() });
                page
            }
            page => page,
        };
        let mut entry = self.get(page);
        let slot = entry.objects.trailing_ones();
        entry.objects |= 1 << slot;
        entry.live += 1;
        self.put(page, entry);
        if u32::from(entry.live) == map::slots(class) {
            self.unlink(list, page);
        }
        Some(u64::from(page) * PAGE + u64::from(slot) * CLASSES[usize::from(class)])
    }

    /// `run` neighbouring pages that are no longer free; their entries are the caller's to set.
    fn alloc_run(&self, run: u32) -> Option<u32> {
        let mut page = self.memory.load(word::RUNS) as u32;
        while page != 0 {
            let entry = self.get(page);
            if entry.run >= run {
                self.unlink(word::RUNS, page);
                let rest = entry.run - run;
                // The object takes the first pages, so that no entry within it says that it ends a free run.
                self.put(page + entry.run - 1, Entry::default());
                if rest > 0 {
                    self.put_run(page + run, rest);
                }
                self.put(page, Entry::default());
                return Some(page);
            }
            page = entry.next;
        }
        let fresh = self.memory.load(word::FRESH);
        let end = fresh + u64::from(run);
        (end <= self.memory.len() / PAGE).then(|| {
            self.memory.store(word::FRESH, end);
            fresh as u32
        })
    }

    /// Say in the map that a run is free, and put it on the list.
    fn put_run(&self, page: u32, run: u32) {
        if run > 1 {
            self.put(page + run - 1, Entry { kind: Kind::FreeEnd, run, ..Entry::default() });
        }
        self.link(word::RUNS, page, Entry { kind: Kind::Free, run, ..Entry::default() });
    }

    fn free_run(&self, page: u32, run: u32) {
        let (mut page, mut run) = (page, run);
        self.put(page, Entry::default());
        let next = u64::from(page) + u64::from(run);
        if let Some(Entry { kind: Kind::Free, run: more, .. }) = self.entry(next) {
            self.unlink(word::RUNS, next as u32);
            // Inside of the run now, both.
            self.put(next as u32, Entry::default());
            self.put(next as u32 + more - 1, Entry::default());
            run += more;
        }
        let before = u64::from(page) - 1;
        if let Some(Entry { kind: Kind::Free | Kind::FreeEnd, run: more, .. }) = self.entry(before) {
            let start = page - more;
            self.unlink(word::RUNS, start);
            self.put(start, Entry::default());
            self.put(page - 1, Entry::default());
            (page, run) = (start, run + more);
        }
        if u64::from(page) + u64::from(run) == self.memory.load(word::FRESH) {
            self.memory.store(word::FRESH, page.into());
        } else {
            self.put_run(page, run);
        }
    }

    /// The live object that begins at `offset`: its page's entry, and its number there.
    fn find(&self, offset: u64) -> Result<(u32, Entry, u32), Error> {
        let wrong = Error::NotAllocated { offset };
        let (page, within) = (offset / PAGE, offset % PAGE);
        let entry = self.entry(page).ok_or_else(|| wrong.clone())?;
        let slot = match entry.kind {
            Kind::Large if within == 0 => 0,
            Kind::Slab => {
                let size = CLASSES[usize::from(entry.class)];
                let slot = within / size;
                if !within.is_multiple_of(size) || entry.objects >> slot & 1 == 0 {
                    return Err(wrong);
                }
                slot as u32
            }
            _ => return Err(wrong),
        };
        Ok((page as u32, entry, slot))
    }

    /// How many bytes the live object at `offset` may use.
    ///
    /// # Errors
    /// [`Error::NotAllocated`].
    pub fn capacity(&self, offset: u64) -> Result<u64, Error> {
        let (_, entry, _) = self.find(offset)?;
        Ok(match entry.kind {
            Kind::Large => u64::from(entry.run) * PAGE,
            _ => CLASSES[usize::from(entry.class)],
        })
    }

    /// Free the object at `offset`.
    ///
    /// # Errors
    /// [`Error::NotAllocated`]; nothing was changed.
    pub fn free(&mut self, offset: u64) -> Result<(), Error> {
        let (page, mut entry, slot) = self.find(offset)?;
        self.memory.store(word::OBJECTS, self.objects() - 1);
        if entry.kind == Kind::Large {
            self.free_run(page, entry.run);
            return Ok(());
        }
        let list = word::SLABS + 8 * u64::from(entry.class);
        let was_full = u32::from(entry.live) == map::slots(entry.class);
        entry.objects &= !(1 << slot);
        entry.live -= 1;
        match (was_full, entry.live) {
            (false, 0) => {
                self.unlink(list, page);
                self.free_run(page, 1);
            }
            (true, 0) => self.free_run(page, 1),
            (true, _) => self.link(list, page, entry),
            (false, _) => self.put(page, entry),
        }
        Ok(())
    }
}
