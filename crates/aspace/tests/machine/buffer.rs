//! What one CPU has cached of page tables: translations, and pointers to tables of every level below the root.
//!
//! It is as bad as the manual allows (Intel SDM vol. 3A, 4.10): it fills whenever somebody calls [`Buffer::speculate`],
//! also for pages that the program never touches; it keeps everything until it is told to forget, or until somebody
//! calls [`Buffer::evict`], which takes out any part of it, so that the next walk begins at any level; and a walk goes
//! on from the deepest pointer that is cached, however old that is. Rights to store are those of all levels together.
//! Loading another root empties it, as no process-context identifiers are in use.
//!
//! Each fill asserts that the tables it passes are page tables, and that the frame it ends at is some user's; and that
//! no address is translated by entries of two sizes.

use std::{collections::HashMap, sync::atomic::AtomicU64, sync::atomic::Ordering};

use addr::{Frame, Page, PageRange, Pte};
use aspace::{Access, Audited};
use owned::{Memory, Use};

/// Pages under an entry of a level: 1 is a directory's.
fn key(page: u64, level: usize) -> u64 {
    page >> (9 * level)
}

/// A pointer to a table.
#[derive(Clone, Copy)]
struct Link {
    table: Frame,
    /// Whether all levels above allow stores.
    write: bool,
}

#[derive(Default)]
pub struct Buffer {
    /// The root, and the address space that it is of.
    root: Option<(Frame, usize)>,
    entries: HashMap<Page, Pte>,
    /// Translations of 2 MiB, by page number / 512.
    large: HashMap<u64, Pte>,
    /// Pointers to tables of each level, by what one of their parents' entries stands for.
    tables: [HashMap<u64, Link>; 3],
}

/// A frame as words.
pub fn words(memory: &Memory, frame: Frame) -> &[AtomicU64] {
    let first = memory.dm().ptr(frame.base()).cast::<AtomicU64>();
    // SAFETY: the arena is never unmapped; a stale translation may lead to a free frame, whose bytes are still
    // there: that is what the tests look for.
    unsafe { std::slice::from_raw_parts(first, 512) }
}

impl Buffer {
    /// Nothing but a root, of the address space of that identity.
    pub fn load(root: Frame, space: usize) -> Self {
        Self { root: Some((root, space)), ..Self::default() }
    }
    /// The hardware's part of an access; `None` is a page fault.
    pub fn translate(&mut self, memory: &Memory, at: Page, access: Access) -> Option<Frame> {
        // Who stores by what is cached as clean looks for the entry again, to say so in it (4.8).
        let cached = self.cached(at);
        let clean = |entry: &Pte| access == Access::Write && entry.is_writable() && !entry.is_dirty();
        let cached = cached.filter(|entry| !clean(entry));
        let entry = cached.or_else(|| self.walk(memory, at, Some(access)));
        let entry = entry.filter(|entry| access.allowed_by(entry.prot()));
        if entry.is_none() {
            // A page fault drops what it was caused by, and the pointers that led there (4.10.4.1).
            self.entries.remove(&at);
            self.large.remove(&key(at.number(), 1));
            for (level, links) in self.tables.iter_mut().enumerate() {
                links.remove(&key(at.number(), level + 1));
            }
        }
        let large = self.large.contains_key(&key(at.number(), 1));
        entry
            .and_then(|entry| Frame::new(entry.frame().number() + if large { at.index(0) as u64 } else { 0 }))
    }
    fn cached(&self, at: Page) -> Option<Pte> {
        self.entries.get(&at).or_else(|| self.large.get(&key(at.number(), 1))).copied()
    }
    /// Walk for no reason that a program could know.
    pub fn speculate(&mut self, memory: &Memory, at: Page) {
        if self.root.is_some() && self.cached(at).is_none() {
            self.walk(memory, at, None);
        }
    }
    fn walk(&mut self, memory: &Memory, at: Page, access: Option<Access>) -> Option<Pte> {
        let (root, _) = self.root.expect("the CPU runs an address space");
        let deepest = (0..3).find_map(|level| {
            self.tables[level].get(&key(at.number(), level + 1)).map(|&link| (link, level))
        });
        let (mut link, mut level) = deepest.unwrap_or((Link { table: root, write: true }, 3));
        loop {
            assert!(
                memory.is_owned_by(link.table, Use::PageTable),
                "T4: a walk for {at:?} by {:?}",
                link.table
            );
            let slot = &words(memory, link.table)[at.index(level as u32)];
            let old = slot.load(Ordering::SeqCst);
            let entry = Pte::from_bits(old);
            if !entry.is_present() {
                return None;
            }
            link.write &= entry.is_writable();
            if level > 0 && old & Pte::LARGE == 0 {
                level -= 1;
                link.table = entry.frame();
                self.tables[level].insert(key(at.number(), level + 1), link);
                continue;
            }
            let entry = if link.write { entry } else { Pte::from_bits(old & !Pte::WRITE) };
            if access.is_some_and(|access| !access.allowed_by(entry.prot())) {
                return None;
            }
            let dirty = if access == Some(Access::Write) { Pte::DIRTY } else { 0 };
            // The hardware sets its bits only in an entry that is still what it has read.
            let new = old | Pte::ACCESSED | dirty;
            if slot.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                let entry = Pte::from_bits(entry.bits() | dirty);
                self.fill(memory, at, entry, level);
                return Some(entry);
            }
            link.write = true;
            (level, link.table) = (3, root);
        }
    }
    fn fill(&mut self, memory: &Memory, at: Page, entry: Pte, level: usize) {
        let user = |usage| memory.is_owned_by(entry.frame(), usage);
        assert!(user(Use::Anonymous) || user(Use::File), "T1: {at:?} is translated to {:?}", entry.frame());
        let block = key(at.number(), 1);
        match level {
            0 => {
                assert!(!self.large.contains_key(&block), "T5: {at:?} has translations of two sizes");
                self.entries.insert(at, entry);
            }
            1 => {
                let small = self.entries.keys().any(|page| key(page.number(), 1) == block);
                assert!(!small, "T5: {at:?} has translations of two sizes");
                self.large.insert(block, entry);
            }
            _ => panic!("T5: {at:?} has an entry of level {level}"),
        }
    }
    /// Forget the pages of `range`, and all pointers to tables.
    pub fn flush(&mut self, range: PageRange) {
        self.entries.retain(|page, _| !range.contains(*page));
        self.large.retain(|&block, _| {
            let all = Page::new(block << 9).and_then(|first| PageRange::with_len(first, 512));
            all.and_then(|all| all.intersect(range)).is_none_or(|part| part.is_empty())
        });
        self.tables.iter_mut().for_each(HashMap::clear);
    }
    /// Forget each thing for which `coin` says so.
    pub fn evict(&mut self, mut coin: impl FnMut() -> bool) {
        self.entries.retain(|_, _| !coin());
        self.large.retain(|_, _| !coin());
        self.tables.iter_mut().for_each(|level| level.retain(|_, _| !coin()));
    }
    /// Whether the CPU could use `frame` without a look at any table's contents.
    pub fn holds(&self, frame: Frame) -> bool {
        let large = |entry: &Pte| (entry.frame().number()..).take(512).any(|n| n == frame.number());
        self.root.is_some_and(|(root, _)| root == frame)
            || self.entries.values().any(|entry| entry.frame() == frame)
            || self.large.values().any(large)
            || self.tables.iter().any(|level| level.values().any(|link| link.table == frame))
    }
    /// Whether some walk that the CPU may do leads to `frame`.
    pub fn reaches(&self, memory: &Memory, frame: Frame) -> bool {
        fn below(memory: &Memory, table: Frame, level: usize, frame: Frame) -> bool {
            let user = if level == 3 { 256 } else { 512 };
            words(memory, table)[..user].iter().any(|word| {
                let entry = Pte::from_bits(word.load(Ordering::SeqCst));
                let leaf = level == 0 || entry.bits() & Pte::LARGE != 0;
                entry.is_present()
                    && (entry.frame() == frame || !leaf && below(memory, entry.frame(), level - 1, frame))
            })
        }
        let from_root = self.root.is_some_and(|(root, _)| below(memory, root, 3, frame));
        let links = |level: usize| self.tables[level].values().map(move |link| (link.table, level));
        from_root || (0..3).flat_map(links).any(|(table, level)| below(memory, table, level, frame))
    }
    /// What is cached of a page of the address space `space` is what the design says of the page (T2), and the design
    /// knows of it (T3).
    pub fn audit(&self, cpu: percpu::CpuId, space: usize, page: &Audited) {
        if self.root.is_none_or(|(_, of)| of != space) {
            return;
        }
        let Some(entry) = self.cached(page.page) else { return };
        assert_eq!(Some(entry.frame()), page.frame, "T2: {cpu:?} translates {page:?} to another frame");
        assert!(page.rights.contains(entry.prot()), "T2: {cpu:?} has {:?} to {page:?}", entry.prot());
        assert!(page.cpus.contains(cpu), "T3: {cpu:?} translates {page:?}, and would not be told");
    }
}
