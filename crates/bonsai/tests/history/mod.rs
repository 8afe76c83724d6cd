//! Updates that are known beforehand, so that what a reader finds can be held against every state that there was while it
//! looked: if none has it, the look-up was not one at any moment.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Keys are below this: the set of those present is a word.
pub const KEYS: u32 = 64;

#[derive(Clone, Copy, Debug)]
pub enum Update {
    Insert(u32),
    Replace(u32),
    Remove(u32),
}

pub struct History {
    pub updates: Vec<Update>,
    /// The keys present before each update, and after the last.
    states: Vec<u64>,
    /// Updates begun, and done. No points at which a schedule changes.
    begun: AtomicUsize,
    done: AtomicUsize,
}

/// A look-up, and its answer in a state.
#[derive(Clone, Copy, Debug)]
pub enum Look {
    Get(u32),
    Floor(u32),
    Ceiling(u32),
    Higher(u32),
    Lower(u32),
}

impl Look {
    fn answer(self, present: u64) -> Option<u32> {
        let lowest = |keys: u64| (keys != 0).then(|| keys.trailing_zeros());
        let highest = |keys: u64| keys.checked_ilog2();
        let below = |key: u32| (1 << key) - 1;
        match self {
            Self::Get(key) => (present & 1 << key != 0).then_some(key),
            Self::Floor(key) => highest(present & (below(key) | 1 << key)),
            Self::Lower(key) => highest(present & below(key)),
            Self::Ceiling(key) => lowest(present & !below(key)),
            Self::Higher(key) => lowest(present & !below(key) & !(1 << key)),
        }
    }
    /// One of them.
    pub fn of(number: u32) -> Self {
        let key = number / 5 % KEYS;
        [Self::Get(key), Self::Floor(key), Self::Ceiling(key), Self::Higher(key), Self::Lower(key)]
            [number as usize % 5]
    }
}

impl History {
    /// So many updates of a set that begins with the keys of `first`, most of them among `busy` keys.
    pub fn new(first: u64, count: usize, busy: u32, mut random: impl FnMut(u32) -> u32) -> Self {
        let mut states = vec![first];
        let mut updates = Vec::new();
        for _ in 0..count {
            let present = states[states.len() - 1];
            let key = random(busy);
            let replace = random(6) == 0;
            let (update, after) = match present & 1 << key != 0 {
                true if replace => (Update::Replace(key), present),
                true => (Update::Remove(key), present & !(1 << key)),
                false => (Update::Insert(key), present | 1 << key),
            };
            updates.push(update);
            states.push(after);
        }
        Self { updates, states, begun: AtomicUsize::new(0), done: AtomicUsize::new(0) }
    }
    pub fn first(&self) -> u64 {
        self.states[0]
    }
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire) == self.updates.len()
    }
    /// Make the updates with this number.
    pub fn update(&self, number: usize, make: impl FnOnce(Update)) {
        self.begun.store(number + 1, Ordering::SeqCst);
        make(self.updates[number]);
        self.done.store(number + 1, Ordering::SeqCst);
    }
    /// Check one look-up. Gives how many updates may have been made meanwhile.
    pub fn check(&self, look: Look, find: impl FnOnce(Look) -> Option<u32>) -> usize {
        let from = self.done.load(Ordering::SeqCst);
        let found = find(look);
        let to = self.begun.load(Ordering::SeqCst);
        let fits = self.states[from..=to].iter().any(|state| look.answer(*state) == found);
        assert!(fits, "{look:?} found {found:?}, which was so in none of {:x?}", &self.states[from..=to]);
        to - from
    }
    /// Check that an iteration's keys ascend, that what was there throughout is among them, and that all were there at some
    /// time.
    pub fn check_all(&self, find: impl FnOnce() -> Vec<u32>) {
        let from = self.done.load(Ordering::SeqCst);
        let found = find();
        let to = self.begun.load(Ordering::SeqCst);
        assert!(found.is_sorted_by(|a, b| a < b), "{found:?} is out of order");
        let keys = found.iter().fold(0, |keys, key| keys | 1 << key);
        let always = self.states[from..=to].iter().fold(u64::MAX, |keys, state| keys & state);
        let ever = self.states[from..=to].iter().fold(0, |keys, state| keys | state);
        assert_eq!(always & !keys, 0, "keys that were there throughout are missing");
        assert_eq!(keys & !ever, 0, "keys were found that were never there");
    }
}
