//! What is counted, on which CPU, and to which account.
//!
//! A CPU's *window* is open from a marker to a marker; only then is anything counted. Inside it, *operations* are marked.
//! What an operation costs is added up when it ends, so one that never ends counts nowhere but in its window. Within
//! both, periodic work and the zeroing of frames have accounts of their own. Windows that overlap in time have one
//! number: it goes up when a window opens while none is open.

use crate::{lines::Account, marker::Marker, places::Place};

/// So many operations of one CPU in one window are listed one by one.
const MAX_LISTED: usize = 1024;

/// What kind of instruction it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In user mode.
    User,
    /// In the kernel.
    Kernel,
    /// In the kernel, at a place that zeroes frames.
    Zeroing,
}

/// Counts of one CPU over some stretch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Instructions in user mode.
    pub user: u64,
    /// Instructions in the kernel, without those below.
    pub kernel: u64,
    /// Instructions that zero frames.
    pub clearing: u64,
    /// Instructions of periodic work.
    pub periodic: u64,
    /// Loads and stores, without those of periodic work.
    pub accesses: u64,
    /// Transfers, without those below.
    pub transfers: u64,
    /// Of `transfers`, those to user mode.
    pub user_transfers: u64,
    /// Of `transfers`, those while zeroing frames.
    pub clearing_transfers: u64,
    /// Transfers of periodic work.
    pub periodic_transfers: u64,
    /// CPUs interrupted, without those below.
    pub ipis: u64,
    /// CPUs interrupted by periodic work.
    pub periodic_ipis: u64,
    /// How often periodic work began.
    pub periods: u64,
    /// Of both, those that end translations.
    pub targets: u64,
    /// Page faults.
    pub faults: u64,
    /// Of these, those that gave the page a frame.
    pub faults_new: u64,
    /// That entered into a table what the page had.
    pub faults_fill: u64,
    /// That found an entry too weak.
    pub faults_repair: u64,
    /// That copied a frame.
    pub faults_copy: u64,
    /// Epochs that the CPU ended.
    pub epochs: u64,
    /// Grace periods that it ended.
    pub grace_periods: u64,
}

impl Counts {
    /// Add `other`.
    pub fn add(&mut self, other: &Self) {
        self.user += other.user;
        self.kernel += other.kernel;
        self.clearing += other.clearing;
        self.periodic += other.periodic;
        self.accesses += other.accesses;
        self.transfers += other.transfers;
        self.user_transfers += other.user_transfers;
        self.clearing_transfers += other.clearing_transfers;
        self.periodic_transfers += other.periodic_transfers;
        self.ipis += other.ipis;
        self.periodic_ipis += other.periodic_ipis;
        self.periods += other.periods;
        self.targets += other.targets;
        self.faults += other.faults;
        self.faults_new += other.faults_new;
        self.faults_fill += other.faults_fill;
        self.faults_repair += other.faults_repair;
        self.faults_copy += other.faults_copy;
        self.epochs += other.epochs;
        self.grace_periods += other.grace_periods;
    }
}

/// One CPU's share of a window.
#[derive(Clone, Debug, Default)]
pub struct Share {
    /// Which CPU.
    pub cpu: u32,
    /// How often its window was opened.
    pub opened: u64,
    /// Everything while it was open.
    pub window: Counts,
    /// How many operations ended.
    pub operations: u64,
    /// What they cost together.
    pub operation: Counts,
    /// The first of them, one by one.
    pub each: Vec<Counts>,
}

/// Windows that overlapped.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// Each CPU that took part, in order of CPUs.
    pub shares: Vec<Share>,
}

/// What one CPU is doing.
#[derive(Clone, Debug, Default)]
struct State {
    open: bool,
    /// The operation that has begun.
    operation: Option<Counts>,
    clearing: bool,
    periodic: bool,
    /// Interrupts and exceptions of a kernel without markers that have been entered since periodic work began, and that.
    nested: u32,
    /// A function that does periodic work runs, and where its return address lies.
    work: Option<u64>,
    /// The thread that runs is one of the kernel's workers.
    worker: bool,
}

/// All counts.
pub struct Ledger {
    cpus: Vec<State>,
    /// How many have their window open.
    open: u32,
    windows: Vec<Window>,
    strays: u64,
}

impl Ledger {
    /// For `cpus` CPUs, numbered from 0.
    pub fn new(cpus: u32) -> Self {
        let cpus = (0..cpus).map(|_| State::default()).collect();
        Self { cpus, open: 0, windows: Vec::new(), strays: 0 }
    }

    /// Whether any window is open.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.open > 0
    }

    /// Whether `cpu`'s window is open.
    #[inline]
    pub fn counts(&self, cpu: u32) -> bool {
        self.cpus[cpu as usize].open
    }

    /// Take in a marker that `cpu` executed. What it executed before must have been counted.
    pub fn mark(&mut self, cpu: u32, marker: Marker) {
        let open = self.counts(cpu);
        let state = &mut self.cpus[cpu as usize];
        match marker {
            Marker::ClearingBegin => state.clearing = true,
            Marker::ClearingEnd => state.clearing = false,
            Marker::PeriodicBegin => {
                // It may have begun, with the interrupt after which this is done.
                let begins = !std::mem::replace(&mut state.periodic, true);
                self.add(cpu, Counts { periods: begins.into(), ..Counts::default() });
            }
            Marker::PeriodicEnd => state.periodic = false,
            Marker::WindowBegin if !open => self.open_window(cpu),
            Marker::WindowEnd if open => self.close(cpu),
            Marker::OperationBegin if open && state.operation.is_none() => {
                state.operation = Some(Counts::default());
            }
            Marker::OperationEnd if state.operation.is_some() => self.end_operation(cpu),
            Marker::Fault => self.add(cpu, Counts { faults: 1, ..Counts::default() }),
            Marker::FaultNew => self.add(cpu, Counts { faults_new: 1, ..Counts::default() }),
            Marker::FaultFill => self.add(cpu, Counts { faults_fill: 1, ..Counts::default() }),
            Marker::FaultRepair => self.add(cpu, Counts { faults_repair: 1, ..Counts::default() }),
            Marker::FaultCopy => self.add(cpu, Counts { faults_copy: 1, ..Counts::default() }),
            Marker::Epoch => self.add(cpu, Counts { epochs: 1, ..Counts::default() }),
            Marker::GracePeriod => self.add(cpu, Counts { grace_periods: 1, ..Counts::default() }),
            Marker::RunBegin | Marker::RunEnd => {}
            _ => self.strays += 1,
        }
    }

    /// Take in a place of a kernel without markers, which `cpu` has come to. What it executed before must have been
    /// counted, also before the three calls below.
    pub fn pass(&mut self, cpu: u32, place: Place) {
        let state = &mut self.cpus[cpu as usize];
        match place {
            Place::Periodic => state.nested += 1,
            Place::Entry | Place::Fault if state.nested > 0 => state.nested += 1,
            Place::Entry | Place::Fault => {}
            Place::Return => state.nested = state.nested.saturating_sub(1),
            Place::Switch => (state.nested, state.work) = (0, None),
            // More than the place must be known of these: `enter_work`, `switch_to`.
            Place::Work | Place::Thread => {}
        }
        self.look_for_periods(cpu);
        if place == Place::Fault {
            self.add(cpu, Counts { faults: 1, ..Counts::default() });
        }
    }

    /// `cpu` has come to a function that does periodic work; its return address is at `slot`. One that is called by
    /// another is a part of it.
    pub fn enter_work(&mut self, cpu: u32, slot: u64) {
        self.cpus[cpu as usize].work.get_or_insert(slot);
        self.look_for_periods(cpu);
    }

    /// Where the return address of the function lies that does periodic work on `cpu`.
    #[inline]
    pub fn work(&self, cpu: u32) -> Option<u64> {
        self.cpus[cpu as usize].work
    }

    /// That function has returned.
    pub fn leave_work(&mut self, cpu: u32) {
        self.cpus[cpu as usize].work = None;
        self.look_for_periods(cpu);
    }

    /// Another thread runs on `cpu`: one of the kernel's workers, or not.
    pub fn switch_to(&mut self, cpu: u32, worker: bool) {
        self.cpus[cpu as usize].worker = worker;
        self.look_for_periods(cpu);
    }

    /// Whether what a kernel without markers does on `cpu` is periodic work; counts its begin.
    fn look_for_periods(&mut self, cpu: u32) {
        let state = &mut self.cpus[cpu as usize];
        let periodic = state.nested > 0 || state.work.is_some() || state.worker;
        let begins = periodic && !state.periodic;
        state.periodic = periodic;
        if begins {
            self.add(cpu, Counts { periods: 1, ..Counts::default() });
        }
    }

    /// Open the windows of all CPUs.
    pub fn open_all(&mut self) {
        (0..self.cpus.len() as u32).for_each(|cpu| {
            if !self.counts(cpu) {
                self.open_window(cpu);
            }
        });
    }

    /// Close the windows of all CPUs.
    pub fn close_all(&mut self) {
        (0..self.cpus.len() as u32).for_each(|cpu| self.close(cpu));
    }

    fn open_window(&mut self, cpu: u32) {
        if self.open == 0 {
            self.windows.push(Window::default());
        }
        self.open += 1;
        self.cpus[cpu as usize].open = true;
        self.share(cpu).opened += 1;
    }

    fn close(&mut self, cpu: u32) {
        let state = &mut self.cpus[cpu as usize];
        if state.open {
            (state.open, state.operation) = (false, None);
            self.open -= 1;
        }
    }

    fn end_operation(&mut self, cpu: u32) {
        let Some(cost) = self.cpus[cpu as usize].operation.take() else { return };
        let share = self.share(cpu);
        share.operations += 1;
        share.operation.add(&cost);
        if share.each.len() < MAX_LISTED {
            share.each.push(cost);
        }
    }

    /// `cpu`'s share of the last window.
    fn share(&mut self, cpu: u32) -> &mut Share {
        if self.windows.is_empty() {
            self.windows.push(Window::default());
        }
        let last = self.windows.len() - 1;
        let shares = &mut self.windows[last].shares;
        let at = match shares.binary_search_by_key(&cpu, |share| share.cpu) {
            Ok(at) => at,
            Err(at) => {
                shares.insert(at, Share { cpu, ..Share::default() });
                at
            }
        };
        &mut shares[at]
    }

    /// Add to the accounts of `cpu`, if its window is open.
    fn add(&mut self, cpu: u32, counts: Counts) {
        let state = &mut self.cpus[cpu as usize];
        if !state.open {
            return;
        }
        if let Some(operation) = &mut state.operation {
            operation.add(&counts);
        }
        self.share(cpu).window.add(&counts);
    }

    /// `cpu` has executed this many instructions: in user mode, in the kernel, and at places that zero frames; and they so
    /// many loads and stores.
    pub fn executed(&mut self, cpu: u32, [user, kernel, zeroing]: [u64; 3], accesses: u64) {
        let state = &self.cpus[cpu as usize];
        let mut counts = Counts { accesses, ..Counts::default() };
        match (state.periodic, state.clearing) {
            (true, _) => counts = Counts { periodic: user + kernel + zeroing, ..Counts::default() },
            (false, true) => (counts.user, counts.clearing) = (user, kernel + zeroing),
            (false, false) => (counts.user, counts.kernel, counts.clearing) = (user, kernel, zeroing),
        }
        self.add(cpu, counts);
    }

    /// The account to which goes what `cpu` does, if any.
    pub fn account(&self, cpu: u32) -> Option<Account> {
        let state = &self.cpus[cpu as usize];
        let account = match (state.periodic, &state.operation) {
            (true, _) => Account::Periodic,
            (false, Some(_)) => Account::Operation,
            (false, None) => Account::Other,
        };
        state.open.then_some(account)
    }

    /// A line has moved to `cpu`, to `mode`. The account to which it goes, if any.
    pub fn transfer(&mut self, cpu: u32, mode: Mode) -> Option<Account> {
        let account = self.account(cpu)?;
        let state = &self.cpus[cpu as usize];
        let counts = match account {
            Account::Periodic => Counts { periodic_transfers: 1, ..Counts::default() },
            Account::Operation | Account::Other => Counts {
                transfers: 1,
                user_transfers: (mode == Mode::User).into(),
                clearing_transfers: (mode == Mode::Zeroing || state.clearing && mode == Mode::Kernel).into(),
                ..Counts::default()
            },
        };
        self.add(cpu, counts);
        Some(account)
    }

    /// `cpu` has interrupted `others`; `flush`: to end translations there.
    pub fn ipis(&mut self, cpu: u32, others: u32, flush: bool) {
        let n = others.into();
        let periodic = self.cpus[cpu as usize].periodic;
        let mut counts = Counts { targets: if flush { n } else { 0 }, ..Counts::default() };
        *if periodic { &mut counts.periodic_ipis } else { &mut counts.ipis } = n;
        self.add(cpu, counts);
    }

    /// The windows, in the order in which they opened.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// Markers that made no sense where they came: an end without a beginning, an operation outside a window.
    pub fn strays(&self) -> u64 {
        self.strays
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(ledger: &Ledger, window: usize, cpu: u32) -> &Share {
        ledger.windows()[window].shares.iter().find(|s| s.cpu == cpu).unwrap()
    }

    #[test]
    fn only_an_open_window_counts() {
        let mut ledger = Ledger::new(2);
        ledger.executed(0, [1, 1, 0], 0);
        assert_eq!(ledger.transfer(0, Mode::Kernel), None);
        ledger.mark(0, Marker::WindowBegin);
        ledger.executed(0, [10, 5, 0], 4);
        ledger.executed(1, [100, 100, 0], 0);
        assert_eq!(ledger.transfer(1, Mode::Kernel), None);
        assert_eq!(ledger.transfer(0, Mode::User), Some(Account::Other));
        ledger.ipis(0, 3, true);
        ledger.mark(0, Marker::WindowEnd);
        ledger.executed(0, [7, 7, 0], 0);
        assert_eq!(ledger.windows().len(), 1);
        assert_eq!(ledger.windows()[0].shares.len(), 1);
        let counts = share(&ledger, 0, 0).window;
        let expected = Counts {
            user: 10,
            kernel: 5,
            accesses: 4,
            transfers: 1,
            user_transfers: 1,
            ipis: 3,
            targets: 3,
            ..Counts::default()
        };
        assert_eq!(counts, expected);
    }

    #[test]
    fn overlapping_windows_are_one() {
        let mut ledger = Ledger::new(3);
        ledger.mark(2, Marker::WindowBegin);
        ledger.mark(0, Marker::WindowBegin);
        ledger.mark(2, Marker::WindowEnd);
        assert!(ledger.is_open());
        ledger.mark(2, Marker::WindowBegin);
        ledger.mark(0, Marker::WindowEnd);
        ledger.mark(2, Marker::WindowEnd);
        assert!(!ledger.is_open());
        ledger.mark(1, Marker::WindowBegin);
        let cpus: Vec<Vec<_>> =
            ledger.windows().iter().map(|w| w.shares.iter().map(|s| (s.cpu, s.opened)).collect()).collect();
        assert_eq!(cpus, [vec![(0, 1), (2, 2)], vec![(1, 1)]]);
    }

    #[test]
    fn operations_are_added_up_when_they_end() {
        let mut ledger = Ledger::new(1);
        ledger.mark(0, Marker::WindowBegin);
        ledger.executed(0, [1, 0, 0], 0);
        for n in [10, 20] {
            ledger.mark(0, Marker::OperationBegin);
            ledger.executed(0, [n, 2 * n, 0], 0);
            assert_eq!(ledger.transfer(0, Mode::Kernel), Some(Account::Operation));
            ledger.mark(0, Marker::OperationEnd);
            ledger.executed(0, [1, 0, 0], 0);
        }
        ledger.mark(0, Marker::OperationBegin);
        ledger.executed(0, [1000, 0, 0], 0);
        ledger.mark(0, Marker::WindowEnd);
        let share = share(&ledger, 0, 0);
        assert_eq!((share.operations, share.each.len()), (2, 2));
        assert_eq!(share.operation, Counts { user: 30, kernel: 60, transfers: 2, ..Counts::default() });
        assert_eq!(share.each[1], Counts { user: 20, kernel: 40, transfers: 1, ..Counts::default() });
        assert_eq!(share.window.user, 1033);
        assert_eq!(ledger.strays(), 0);
    }

    #[test]
    fn periodic_work_and_clearing_are_apart() {
        let mut ledger = Ledger::new(1);
        ledger.mark(0, Marker::WindowBegin);
        ledger.mark(0, Marker::OperationBegin);
        ledger.mark(0, Marker::ClearingBegin);
        ledger.executed(0, [0, 512, 0], 512);
        ledger.transfer(0, Mode::Kernel);
        // The timer's interrupt comes in between.
        ledger.mark(0, Marker::PeriodicBegin);
        ledger.executed(0, [0, 99, 0], 20);
        assert_eq!(ledger.transfer(0, Mode::Kernel), Some(Account::Periodic));
        ledger.ipis(0, 1, false);
        ledger.mark(0, Marker::PeriodicEnd);
        ledger.executed(0, [0, 8, 0], 0);
        ledger.mark(0, Marker::ClearingEnd);
        ledger.executed(0, [0, 5, 0], 0);
        // Said on every return from an interrupt.
        ledger.mark(0, Marker::PeriodicEnd);
        ledger.mark(0, Marker::OperationEnd);
        let counts = Counts {
            kernel: 5,
            clearing: 520,
            periodic: 99,
            accesses: 512,
            transfers: 1,
            clearing_transfers: 1,
            periodic_transfers: 1,
            periodic_ipis: 1,
            periods: 1,
            ..Counts::default()
        };
        assert_eq!(share(&ledger, 0, 0).operation, counts);
        assert_eq!(share(&ledger, 0, 0).window, counts);
        assert_eq!(ledger.strays(), 0);
    }

    #[test]
    fn a_kernel_without_markers_is_known_by_places() {
        let mut ledger = Ledger::new(1);
        ledger.mark(0, Marker::WindowBegin);
        let mut at = |place| {
            ledger.pass(0, place);
            ledger.executed(0, [0, 1, 10], 0);
            ledger.transfer(0, Mode::Zeroing) == Some(Account::Periodic)
        };
        // An exception on its own, then a timer's interrupt with a page fault in it.
        assert_eq!([Place::Entry, Place::Return].map(&mut at), [false, false]);
        assert_eq!(
            [Place::Periodic, Place::Entry, Place::Return, Place::Return].map(&mut at),
            [true, true, true, false]
        );
        // One that makes the thread give way.
        assert_eq!([Place::Periodic, Place::Switch, Place::Return].map(&mut at), [true, false, false]);
        let counts = share(&ledger, 0, 0).window;
        assert_eq!((counts.periodic, counts.kernel, counts.clearing), (44, 5, 50));
        assert_eq!((counts.periodic_transfers, counts.clearing_transfers), (4, 5));
    }

    #[test]
    fn workers_and_functions_of_periodic_work_are_apart() {
        let mut ledger = Ledger::new(2);
        ledger.mark(0, Marker::WindowBegin);
        let executed = |ledger: &mut Ledger| {
            ledger.executed(0, [0, 1, 0], 0);
            ledger.transfer(0, Mode::Kernel) == Some(Account::Periodic)
        };
        // A function, in which an interrupt comes that has to do with nothing, and the same function.
        ledger.enter_work(0, 0x1008);
        assert!(executed(&mut ledger) && ledger.work(0) == Some(0x1008) && ledger.work(1).is_none());
        for place in [Place::Entry, Place::Return] {
            ledger.pass(0, place);
            assert!(executed(&mut ledger));
        }
        ledger.enter_work(0, 0x900);
        assert_eq!(ledger.work(0), Some(0x1008));
        ledger.leave_work(0);
        assert!(!executed(&mut ledger));
        // A tick makes way for a worker, which is interrupted by another one, ends a call of its own, and makes way.
        ledger.pass(0, Place::Periodic);
        ledger.pass(0, Place::Switch);
        assert!(!executed(&mut ledger));
        ledger.switch_to(0, true);
        for place in [Place::Periodic, Place::Return, Place::Fault, Place::Return] {
            assert!(executed(&mut ledger));
            ledger.pass(0, place);
        }
        ledger.enter_work(0, 0x2008);
        ledger.leave_work(0);
        // Up to the switch it is the worker's, and the next worker's from there.
        ledger.pass(0, Place::Switch);
        assert!(executed(&mut ledger));
        ledger.switch_to(0, true);
        assert!(executed(&mut ledger));
        ledger.pass(0, Place::Switch);
        ledger.switch_to(0, false);
        assert!(!executed(&mut ledger));
        // A function that never came to its end, since its thread made way.
        ledger.enter_work(0, 0x3008);
        ledger.pass(0, Place::Switch);
        assert!(!executed(&mut ledger));
        let counts = share(&ledger, 0, 0).window;
        assert_eq!((counts.periodic, counts.periodic_transfers, counts.periods), (9, 9, 4));
        assert_eq!((counts.kernel, counts.transfers, counts.faults), (4, 4, 1));
    }

    #[test]
    fn markers_out_of_place_do_nothing_but_are_told() {
        let mut ledger = Ledger::new(1);
        for marker in [Marker::WindowEnd, Marker::OperationBegin, Marker::OperationEnd] {
            ledger.mark(0, marker);
        }
        assert_eq!((ledger.strays(), ledger.windows().len()), (3, 0));
        ledger.mark(0, Marker::WindowBegin);
        ledger.mark(0, Marker::WindowBegin);
        ledger.mark(0, Marker::OperationBegin);
        ledger.mark(0, Marker::OperationBegin);
        assert_eq!(ledger.strays(), 5);
        ledger.mark(0, Marker::RunEnd);
        assert_eq!(ledger.strays(), 5);
    }

    #[test]
    fn all_windows_open_and_close_together() {
        let mut ledger = Ledger::new(2);
        ledger.open_all();
        ledger.executed(1, [2, 3, 0], 0);
        ledger.close_all();
        ledger.executed(1, [2, 3, 0], 0);
        assert_eq!(share(&ledger, 0, 0).window, Counts::default());
        assert_eq!(share(&ledger, 0, 1).window, Counts { user: 2, kernel: 3, ..Counts::default() });
    }
}
