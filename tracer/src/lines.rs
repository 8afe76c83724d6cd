//! Who has which cache line, and what moves.
//!
//! # The rule
//! Every CPU has a private cache without limits. A line moves (a *transfer*) when a CPU
//!
//! * reads a line that another has written since it last read or wrote it, or
//! * writes a line that another has read or written since.
//!
//! These are the coherence misses of an MSI protocol, without those of capacity and without the first touch of a line
//! that nobody else has touched. A locked read-modify-write claims the line with its load, so it moves once.
//!
//! # The state
//! Of each line: the CPUs that have a copy, and who wrote last. A read adds the reader; a write leaves the writer alone.
//! Then a read by a CPU without a copy is a transfer exactly if somebody has written, and a write is one exactly if
//! another CPU has a copy. All of it belongs to an epoch: [`Lines::clear`] begins another, which makes every line new.

use std::{cmp::Reverse, collections::HashMap};

/// CPUs that can be told apart.
pub const MAX_CPUS: usize = 256;
/// Bytes of a line, as a shift.
const LINE_SHIFT: u32 = 6;
/// Bytes of a page, as a shift: lines are kept by page.
const PAGE_SHIFT: u32 = 12;
const LINES_PER_PAGE: usize = 1 << (PAGE_SHIFT - LINE_SHIFT);
/// Different touches of one line that are kept.
const MAX_TOUCHES: usize = 24;

/// A set of CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set([u64; MAX_CPUS / 64]);

impl Set {
    /// The set of `cpu` alone.
    pub fn only(cpu: u16) -> Self {
        let mut set = Self::default();
        set.insert(cpu);
        set
    }
    /// Add `cpu`, below [`MAX_CPUS`].
    pub fn insert(&mut self, cpu: u16) {
        self.0[usize::from(cpu) / 64] |= 1 << (cpu % 64);
    }
    /// Whether `cpu` is in it.
    pub fn contains(&self, cpu: u16) -> bool {
        self.0[usize::from(cpu) / 64] >> (cpu % 64) & 1 != 0
    }
    /// Add all of `other`.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, more)| *word |= more);
    }
    /// Whether it has a CPU other than `cpu`.
    fn has_others(&self, cpu: u16) -> bool {
        let mut others = *self;
        others.0[usize::from(cpu) / 64] &= !(1 << (cpu % 64));
        others != Self::default()
    }
    /// The CPUs in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        (0..MAX_CPUS as u16).filter(|cpu| self.contains(*cpu))
    }
}

/// What an instruction does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// It loads.
    Read,
    /// It stores.
    Write,
    /// It does both as one.
    Update,
}

/// One CPU's access by the instruction at `pc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct By {
    /// The CPU, below [`MAX_CPUS`].
    pub cpu: u16,
    /// Virtual address of the instruction.
    pub pc: u64,
    /// What it does.
    pub access: Access,
}

const NOBODY: By = By { cpu: u16::MAX, pc: 0, access: Access::Read };

#[derive(Clone, Copy)]
struct Line {
    /// The rest is of this epoch.
    epoch: u32,
    sharers: Set,
    /// The last write, or nobody's.
    writer: By,
    /// The last read by which a CPU got a copy, or nobody's.
    reader: By,
}

const FRESH: Line = Line { epoch: 0, sharers: Set([0; MAX_CPUS / 64]), writer: NOBODY, reader: NOBODY };

impl Line {
    /// Take in an access. If the line moved: on whose account.
    fn access(&mut self, by: By) -> Option<Moved> {
        let held = self.sharers.contains(by.cpu);
        match by.access {
            Access::Read => {
                if held {
                    return None;
                }
                let from = [self.writer, NOBODY];
                self.sharers.insert(by.cpu);
                self.reader = by;
                (self.writer.cpu != NOBODY.cpu).then_some(Moved { from })
            }
            Access::Write | Access::Update => {
                let moved = self.sharers.has_others(by.cpu);
                let from = [self.writer, self.reader];
                if moved || !held {
                    self.sharers = Set::only(by.cpu);
                    self.reader = NOBODY;
                }
                self.writer = by;
                moved.then_some(Moved { from })
            }
        }
    }
}

/// A line has moved: whom it was with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    from: [By; 2],
}

/// To which account a transfer goes, beside the total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// Work of an operation.
    Operation,
    /// Periodic work.
    Periodic,
    /// What is between operations.
    Other,
}

/// An instruction that touched a line which moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Its address.
    pub pc: u64,
    /// What it does.
    pub access: Access,
    /// Transfers that it caused; 0 for one that was only at the other end.
    pub transfers: u64,
    /// The virtual address of the last access by which it caused one; 0 without one.
    pub address: u64,
    /// The CPUs that executed it when the line moved.
    pub cpus: Set,
}

/// A line that moved.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// How often it moved.
    pub transfers: u64,
    /// Of these, in operations.
    pub operations: u64,
    /// Of these, in periodic work.
    pub periodic: u64,
    /// The CPUs at either end of its transfers.
    pub cpus: Set,
    /// The last virtual addresses by which it was accessed when it moved, in the user's half and in the kernel's; 0 if
    /// never.
    pub user_address: u64,
    /// See above.
    pub kernel_address: u64,
    /// The first instructions that touched it, in order.
    pub touches: Vec<Touch>,
    /// Transfers caused by other instructions than those.
    pub by_others: u64,
}

impl Record {
    fn count(&mut self, by: By, moved: Moved, account: Account, address: u64) {
        self.transfers += 1;
        match account {
            Account::Operation => self.operations += 1,
            Account::Periodic => self.periodic += 1,
            Account::Other => {}
        }
        for other in moved.from.into_iter().filter(|other| other.cpu != NOBODY.cpu && other.cpu != by.cpu) {
            self.touch(other);
        }
        match self.touch(by) {
            Some(touch) => {
                touch.transfers += 1;
                touch.address = address;
            }
            None => self.by_others += 1,
        }
        self.reached(address);
    }

    /// The line was accessed by this virtual address; 0 says nothing.
    fn reached(&mut self, address: u64) {
        match address {
            0 => {}
            _ if address >> 63 == 0 => self.user_address = address,
            _ => self.kernel_address = address,
        }
    }

    /// Add what was recorded later.
    fn add(&mut self, later: &Self) {
        self.transfers += later.transfers;
        self.operations += later.operations;
        self.periodic += later.periodic;
        self.by_others += later.by_others;
        self.cpus.add(&later.cpus);
        self.reached(later.user_address);
        self.reached(later.kernel_address);
        for touch in &later.touches {
            match self.find(touch.pc, touch.access) {
                Some(known) => {
                    known.transfers += touch.transfers;
                    known.cpus.add(&touch.cpus);
                    if touch.address != 0 {
                        known.address = touch.address;
                    }
                }
                None => self.by_others += touch.transfers,
            }
        }
    }

    fn touch(&mut self, by: By) -> Option<&mut Touch> {
        self.cpus.insert(by.cpu);
        let touch = self.find(by.pc, by.access)?;
        touch.cpus.insert(by.cpu);
        Some(touch)
    }

    /// The touches by this instruction; none if there is no room to keep any.
    fn find(&mut self, pc: u64, access: Access) -> Option<&mut Touch> {
        let at = match self.touches.iter().position(|t| t.pc == pc && t.access == access) {
            Some(at) => at,
            None if self.touches.len() < MAX_TOUCHES => {
                self.touches.push(Touch { pc, access, transfers: 0, address: 0, cpus: Set::default() });
                self.touches.len() - 1
            }
            None => return None,
        };
        self.touches.get_mut(at)
    }
}

/// The lines that moved in one window.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// How many.
    pub moved: usize,
    /// First byte and record of those that moved most, these first.
    pub most: Vec<(u64, Record)>,
}

/// All lines of memory, and a record of each that moved.
pub struct Lines {
    epoch: u32,
    pages: Vec<Option<Box<[Line; LINES_PER_PAGE]>>>,
    /// In all windows that have ended.
    moved: HashMap<u64, Record>,
    /// In the one that has not.
    current: HashMap<u64, Record>,
    windows: Vec<Window>,
    /// How many lines of each window are kept.
    keep: usize,
}

impl Lines {
    /// Nothing has been touched. Of each window `keep` lines are kept by themselves.
    pub fn new(keep: usize) -> Self {
        let (pages, windows) = (Vec::new(), Vec::new());
        Self { epoch: 1, pages, moved: HashMap::new(), current: HashMap::new(), windows, keep }
    }

    /// A window opens while none is open: nobody has any line any more. What has moved stays recorded.
    pub fn begin_window(&mut self) {
        self.epoch += 1;
        self.end_window();
        self.windows.push(Window::default());
    }

    /// Add what moved in the window that was begun last to the rest.
    pub fn end_window(&mut self) {
        let Some(window) = self.windows.last_mut() else { return };
        if self.current.is_empty() {
            return;
        }
        window.moved = self.current.len();
        let mut all: Vec<_> = self.current.drain().collect();
        for (at, record) in &all {
            self.moved.entry(*at).or_default().add(record);
        }
        all.sort_by_key(|(at, record)| (Reverse(record.transfers), *at));
        all.truncate(self.keep);
        window.most = all;
    }

    /// Those of each window, in the order in which they began; the last must have ended.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// Take in an access to the line of physical address `at`, below 2^46. Whether, and from where, the line moved.
    #[inline]
    pub fn access(&mut self, at: u64, by: By) -> Option<Moved> {
        let page = (at >> PAGE_SHIFT) as usize;
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || None);
        }
        let lines = self.pages[page].get_or_insert_with(|| Box::new([FRESH; LINES_PER_PAGE]));
        let line = &mut lines[(at >> LINE_SHIFT) as usize % LINES_PER_PAGE];
        if line.epoch != self.epoch {
            *line = Line { epoch: self.epoch, ..FRESH };
        }
        line.access(by)
    }

    /// Record that the line of `at`, accessed by the virtual `address`, moved.
    pub fn record(&mut self, at: u64, by: By, moved: Moved, account: Account, address: u64) {
        self.current.entry(at >> LINE_SHIFT << LINE_SHIFT).or_default().count(by, moved, account, address);
    }

    /// The lines that moved in windows that have ended: first byte and record, those that moved most first.
    pub fn moved(&self) -> Vec<(u64, &Record)> {
        let mut all: Vec<_> = self.moved.iter().map(|(at, record)| (*at, record)).collect();
        all.sort_by_key(|(at, record)| (Reverse(record.transfers), *at));
        all
    }
}

/// Where the second line begins that an access of `bytes`, at most a line, from `at` on touches, if it touches two.
pub fn second_line(at: u64, bytes: u64) -> Option<u64> {
    let last = at + bytes.max(1) - 1;
    let crosses = at >> LINE_SHIFT != last >> LINE_SHIFT;
    crosses.then_some(last >> LINE_SHIFT << LINE_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Access::{Read, Update, Write};

    const KERNEL: u64 = 0xffff_8000_0000_0000;

    fn by(cpu: u16, access: Access) -> By {
        By { cpu, pc: 0x1000 + u64::from(cpu), access }
    }

    /// Feed the accesses to one line; which of them are transfers.
    fn transfers(accesses: &[(u16, Access)]) -> Vec<bool> {
        let mut lines = Lines::new(16);
        accesses.iter().map(|(cpu, access)| lines.access(0x40, by(*cpu, *access)).is_some()).collect()
    }

    #[test]
    fn a_line_of_one_cpu_never_moves() {
        assert_eq!(transfers(&[(3, Read), (3, Write), (3, Read), (3, Update), (3, Write)]), [false; 5]);
    }

    #[test]
    fn a_line_that_is_only_read_never_moves() {
        assert_eq!(transfers(&[(0, Read), (1, Read), (255, Read), (0, Read)]), [false; 4]);
    }

    #[test]
    fn a_read_moves_what_another_wrote_once() {
        assert_eq!(
            transfers(&[(0, Write), (1, Read), (1, Read), (2, Read), (0, Read), (1, Read)]),
            [false, true, false, true, false, false]
        );
    }

    #[test]
    fn a_write_moves_what_another_read_or_wrote() {
        assert_eq!(
            transfers(&[(0, Read), (1, Write), (1, Write), (0, Write), (0, Read), (1, Read), (0, Write)]),
            [false, true, false, true, false, true, true]
        );
        // A first write after another's read, and a first touch of nobody's line.
        assert_eq!(transfers(&[(0, Write), (0, Write), (200, Write)]), [false, false, true]);
    }

    #[test]
    fn a_reader_that_lost_its_copy_reads_again() {
        // 1 has a copy, 0 writes, 1 reads: it moves to 0's write and back.
        assert_eq!(
            transfers(&[(0, Write), (1, Read), (0, Write), (1, Read), (0, Read)]),
            [false, true, true, true, false]
        );
    }

    #[test]
    fn a_locked_update_moves_once() {
        // As the emulator shows it: a load and a store, both of the locked instruction.
        assert_eq!(
            transfers(&[(0, Update), (0, Update), (1, Update), (1, Update), (0, Update), (0, Update)]),
            [false, false, true, false, true, false]
        );
        // Without the claim the load and the store of a plain increment move it twice if another has read meanwhile.
        assert_eq!(
            transfers(&[(0, Write), (1, Read), (0, Read), (1, Write), (0, Read)]),
            [false, true, false, true, true]
        );
    }

    #[test]
    fn clearing_forgets_who_has_what() {
        let mut lines = Lines::new(16);
        assert_eq!(lines.access(0, by(0, Write)), None);
        lines.begin_window();
        assert_eq!(lines.access(0, by(1, Write)), None);
        assert!(lines.access(0, by(0, Read)).is_some());
    }

    #[test]
    fn lines_are_told_apart() {
        let mut lines = Lines::new(16);
        assert_eq!(lines.access(0x3f, by(0, Write)), None);
        assert_eq!(lines.access(0x40, by(1, Write)), None);
        assert!(lines.access(0x20, by(1, Write)).is_some());
        assert_eq!(lines.access(0x10_0000_0040, by(2, Write)), None);
        assert_eq!(second_line(0x38, 8), None);
        assert_eq!(second_line(0x39, 8), Some(0x40));
        assert_eq!(second_line(0xfff, 2), Some(0x1000));
    }

    #[test]
    fn a_record_names_both_ends() {
        let mut lines = Lines::new(16);
        lines.begin_window();
        for (cpu, access, address) in
            [(0, Write, 0), (1, Read, 0x9047), (0, Write, KERNEL | 0x47), (2, Update, KERNEL | 0x4c)]
        {
            if let Some(moved) = lines.access(0x47, by(cpu, access)) {
                lines.record(0x47, by(cpu, access), moved, Account::Operation, address);
            }
        }
        lines.access(0x80, by(0, Write));
        let moved = lines.access(0x80, by(1, Write)).unwrap();
        lines.record(0x80, by(1, Write), moved, Account::Periodic, 0x9080);
        lines.end_window();
        let all = lines.moved();
        let (at, record) = all[0];
        assert_eq!((all.len(), at), (2, 0x40));
        assert_eq!((record.transfers, record.operations, record.periodic), (3, 3, 0));
        assert_eq!((all[1].1.transfers, all[1].1.operations, all[1].1.periodic), (1, 0, 1));
        let seen: Vec<_> = record.touches.iter().map(|t| (t.pc, t.access, t.transfers)).collect();
        assert_eq!(seen, [(0x1000, Write, 1), (0x1001, Read, 1), (0x1002, Update, 1)]);
        assert_eq!(record.cpus.iter().collect::<Vec<_>>(), [0, 1, 2]);
        let addresses: Vec<_> = record.touches.iter().map(|t| t.address).collect();
        assert_eq!(addresses, [KERNEL | 0x47, 0x9047, KERNEL | 0x4c]);
        assert_eq!((record.user_address, record.kernel_address), (0x9047, KERNEL | 0x4c));
        assert_eq!((all[1].1.user_address, all[1].1.kernel_address), (0x9080, 0));
        assert_eq!(record.touches[0].cpus.iter().collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn a_record_keeps_the_first_instructions_and_counts_the_rest() {
        let mut record = Record::default();
        let moved = Moved { from: [NOBODY; 2] };
        for pc in 0..32 {
            record.count(By { cpu: 0, pc, access: Read }, moved, Account::Other, 0x40);
        }
        assert_eq!((record.transfers, record.touches.len(), record.by_others), (32, MAX_TOUCHES, 8));
    }

    #[test]
    fn each_window_has_its_own_lines_and_all_add_up() {
        let mut lines = Lines::new(1);
        let bounce = |lines: &mut Lines, at: u64, times: u16, from: u16| {
            for cpu in 0..=times {
                if let Some(moved) = lines.access(at, by(from + cpu, Write)) {
                    lines.record(at, by(from + cpu, Write), moved, Account::Other, at | KERNEL);
                }
            }
        };
        lines.begin_window();
        bounce(&mut lines, 0x40, 1, 0);
        bounce(&mut lines, 0x80, 2, 0);
        lines.begin_window();
        lines.begin_window();
        bounce(&mut lines, 0x40, 3, 20);
        lines.end_window();
        // Ending what has ended changes nothing.
        lines.end_window();
        let windows: Vec<_> = lines.windows().iter().map(|w| (w.moved, w.most.len())).collect();
        assert_eq!(windows, [(2, 1), (0, 0), (1, 1)]);
        assert_eq!((lines.windows()[0].most[0].0, lines.windows()[0].most[0].1.transfers), (0x80, 2));
        let all = lines.moved();
        let sums: Vec<_> = all.iter().map(|(at, record)| (*at, record.transfers)).collect();
        assert_eq!(sums, [(0x40, 4), (0x80, 2)]);
        let touched: u64 = all[0].1.touches.iter().map(|t| t.transfers).sum();
        assert_eq!(touched + all[0].1.by_others, 4);
        assert_eq!(all[0].1.kernel_address, 0x40 | KERNEL);
    }
}
