//! What is measured: anything that hands out page frames and takes them back.

use std::sync::atomic::{AtomicU64, Ordering};

use percpu::Pinned;

/// How large a machine an allocator is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Frames, numbered from 0. Nobody touches them, so there can be more than the host has.
    pub frames: usize,
    /// CPUs that call.
    pub cpus: usize,
}

/// What an allocator keeps about frames, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Metadata {
    /// For all of them.
    pub shared: usize,
    /// For each CPU, however many frames there are.
    pub per_cpu: usize,
}

/// An allocator. Always used as a type parameter, so that its calls are inlined into the loops that are timed.
pub trait Subject: Sync + Sized {
    /// Whether it has runs of 2^9 frames.
    const HUGE: bool = true;
    /// Whether a frame may be freed on another CPU than its own, and a CPU may have more than its share.
    const BALANCES: bool = true;

    /// A fresh one, all frames free.
    fn new(setup: &Setup) -> Self;

    /// The first of 2^`order` adjacent frames, aligned to as many, or `None`.
    fn get(&self, pin: &Pinned<'_>, order: u32) -> Option<u64>;

    /// Give back what `get` has given, by the same order.
    fn put(&self, pin: &Pinned<'_>, frame: u64, order: u32);

    /// Give up what the CPU keeps for itself, so that others can have it.
    fn give_up(&self, _pin: &Pinned<'_>) {}

    /// Frames that are out, if it counts them. Asked when nobody calls.
    fn owned(&self) -> Option<u64> {
        None
    }

    /// Times that blocks of frames went from one CPU to another, if it counts them.
    fn transfers(&self) -> Option<u64> {
        None
    }

    /// How much it keeps about frames, if it can tell.
    fn metadata(&self) -> Option<Metadata> {
        None
    }

    /// Ask how many frames are free, as a guess; whether it can tell.
    fn sum_up(&self) -> bool {
        false
    }

    /// Ask where all frames are; whether it can tell.
    fn sum_up_all(&self) -> bool {
        false
    }

    /// Make `switch` possible.
    fn open_all(&mut self) {}

    /// Go over to another algorithm; whether there is one of that number.
    fn switch(&self, _pin: &Pinned<'_>, _algorithm: usize) -> bool {
        false
    }
}

/// Another subject, watched: who owns which frame is noted beside it. Too slow to be timed.
pub struct Checked<S> {
    inner: S,
    /// A bit a frame: set while somebody owns it.
    owned: Box<[AtomicU64]>,
    frames: u64,
    gets: AtomicU64,
    /// Frames handed out that somebody owned already.
    duplicates: AtomicU64,
    /// Runs that were not aligned, or not among the frames.
    strays: AtomicU64,
    /// Frames given back that nobody owned: the workload's mistake.
    unowned: AtomicU64,
}

/// What watching has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Calls that handed something out.
    pub gets: u64,
    /// Frames handed out twice.
    pub duplicates: u64,
    /// Runs out of place.
    pub strays: u64,
    /// Frames given back that weren't out.
    pub unowned: u64,
    /// Frames that are still out.
    pub out: u64,
    /// By how many the allocator's own count of them differs.
    pub miscounted: u64,
}

impl Findings {
    /// Whether something was handed out, and nothing was wrong.
    pub fn are_right(&self) -> bool {
        self.gets > 0 && (self.duplicates, self.strays, self.unowned, self.miscounted) == (0, 0, 0, 0)
    }
}

impl<S: Subject> Checked<S> {
    /// What was found so far; exact when nobody calls.
    pub fn findings(&self) -> Findings {
        // Relaxed, here and below: the numbers are read after the threads were joined; of a frame's bit, each change is
        // ordered by the allocator itself, and if it isn't, that shows.
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let out = self.owned.iter().map(|word| u64::from(of(word).count_ones())).sum();
        Findings {
            gets: of(&self.gets),
            duplicates: of(&self.duplicates),
            strays: of(&self.strays),
            unowned: of(&self.unowned),
            out,
            miscounted: self.inner.owned().map_or(0, |owned| owned.abs_diff(out)),
        }
    }

    /// The words of a run, and its bits in each.
    fn words(&self, frame: u64, order: u32) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let (first, words) = ((frame / 64) as usize, (1usize << order).div_ceil(64));
        let mask = if order >= 6 { u64::MAX } else { ((1 << (1 << order)) - 1) << (frame % 64) };
        self.owned.iter().skip(first).take(words).map(move |word| (word, mask))
    }
}

impl<S: Subject> Subject for Checked<S> {
    const HUGE: bool = S::HUGE;
    const BALANCES: bool = S::BALANCES;

    fn new(setup: &Setup) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            inner: S::new(setup),
            owned: (0..setup.frames.div_ceil(64)).map(|_| zero()).collect(),
            frames: setup.frames as u64,
            gets: zero(),
            duplicates: zero(),
            strays: zero(),
            unowned: zero(),
        }
    }

    fn get(&self, pin: &Pinned<'_>, order: u32) -> Option<u64> {
        let frame = self.inner.get(pin, order)?;
        self.gets.fetch_add(1, Ordering::Relaxed);
        if !frame.is_multiple_of(1 << order) || frame + (1 << order) > self.frames {
            self.strays.fetch_add(1, Ordering::Relaxed);
            return Some(frame);
        }
        for (word, mask) in self.words(frame, order) {
            let twice = word.fetch_or(mask, Ordering::Relaxed) & mask;
            self.duplicates.fetch_add(twice.count_ones().into(), Ordering::Relaxed);
        }
        Some(frame)
    }

    fn put(&self, pin: &Pinned<'_>, frame: u64, order: u32) {
        // Before it is free: afterwards it may be somebody else's.
        for (word, mask) in self.words(frame, order) {
            let missing = mask & !word.fetch_and(!mask, Ordering::Relaxed);
            self.unowned.fetch_add(missing.count_ones().into(), Ordering::Relaxed);
        }
        self.inner.put(pin, frame, order);
    }

    fn give_up(&self, pin: &Pinned<'_>) {
        self.inner.give_up(pin);
    }

    fn owned(&self) -> Option<u64> {
        self.inner.owned()
    }

    fn transfers(&self) -> Option<u64> {
        self.inner.transfers()
    }

    fn metadata(&self) -> Option<Metadata> {
        self.inner.metadata()
    }

    fn sum_up(&self) -> bool {
        self.inner.sum_up()
    }

    fn sum_up_all(&self) -> bool {
        self.inner.sum_up_all()
    }

    fn open_all(&mut self) {
        self.inner.open_all();
    }

    fn switch(&self, pin: &Pinned<'_>, algorithm: usize) -> bool {
        self.inner.switch(pin, algorithm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::team;

    /// Hands out what the test says.
    struct Scripted(std::sync::Mutex<Vec<u64>>);

    impl Subject for Scripted {
        fn new(_: &Setup) -> Self {
            Self(std::sync::Mutex::new(Vec::new()))
        }
        fn get(&self, _: &Pinned<'_>, _: u32) -> Option<u64> {
            self.0.lock().unwrap().pop()
        }
        fn put(&self, _: &Pinned<'_>, frame: u64, _: u32) {
            self.0.lock().unwrap().push(frame);
        }
    }

    /// What is found when these are handed out by `order`.
    fn found(frames: &[u64], order: u32) -> Findings {
        let checked = Checked::<Scripted>::new(&Setup { frames: 1024, cpus: 1 });
        *checked.inner.0.lock().unwrap() = frames.to_vec();
        team::alone(1, |pins| while checked.get(&pins[0], order).is_some() {});
        checked.findings()
    }

    #[test]
    fn a_frame_that_is_handed_out_twice_is_found() {
        let right = Findings { gets: 3, out: 3, ..Findings::default() };
        assert_eq!(found(&[5, 64, 1023], 0), right);
        assert!(right.are_right());
        assert_eq!(found(&[5, 64, 5], 0), Findings { gets: 3, duplicates: 1, out: 2, ..right });
        assert_eq!(found(&[512, 0, 512], 9).duplicates, 512);
        assert_eq!(found(&[8, 0, 8, 16], 3).duplicates, 8);
        assert_eq!(found(&[512, 1024, 7], 9).strays, 2);
        assert!(!found(&[], 0).are_right());
    }

    #[test]
    fn a_frame_that_nobody_owned_cannot_be_given_back() {
        let checked = Checked::<Scripted>::new(&Setup { frames: 1024, cpus: 1 });
        team::alone(1, |pins| {
            checked.put(&pins[0], 128, 6);
            assert_eq!(checked.findings().unowned, 64);
            assert_eq!(checked.get(&pins[0], 6), Some(128));
            checked.put(&pins[0], 128, 6);
        });
        assert_eq!(checked.findings(), Findings { gets: 1, unowned: 64, ..Findings::default() });
    }
}
