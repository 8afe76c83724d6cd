//! What threads do with an allocator, and what of it is timed.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use fastrand::Rng;
use percpu::Pinned;

use crate::{
    churn,
    record::Outcome,
    subject::{Setup, Subject},
    team::{Member, Meter, team},
};

/// Frames of a run of order 9, and of a row of the bitmap.
pub const BLOCK: usize = 512;
pub const ROW: usize = 64;
/// Frames that go from hand to hand at once, and how many such heaps may lie between two threads.
const HEAP: usize = 1 << 14;
const SMALL_HEAP: usize = 512;
const HEAPS: usize = 2;
const SMALL_HEAPS: usize = 32;

/// A kind of workload.
#[derive(Clone, Debug)]
pub enum Work {
    /// Half of all frames, shared evenly: get all, put all.
    Bulk,
    /// A frame at a time.
    Pair { before: Before, pairs: usize },
    /// As `Bulk`, with the frames shuffled over all threads in between.
    Random { seed: u64 },
    /// The first thread gets heaps of frames, the second puts them: as they came, or one of each of 8 rows in turn.
    HandOver { frames: usize, by_rows: bool },
    /// Runs of 512 frames: seven eighths of all, rounds of get all and put all; then one at a time.
    Huge { rounds: usize },
    /// `churn.rs`.
    Churn { free: usize, rounds: usize, seed: u64 },
    /// So many frames on each CPU: get all, put all, over and over.
    Rounds { frames: usize, rounds: usize },
    /// So many frames: get all, put all, in order or first every other one.
    Outstanding { frames: usize, rounds: usize, alternate: bool },
    /// The first thread gets, all the others put.
    OneGets { frames: usize },
    /// The first thread wants nine tenths of what is used, the others share the last; 95 % of memory are.
    Skewed { rounds: usize },
    /// All threads get until nothing is left.
    Starving { rounds: usize },
    /// How much there is kept about frames, and how long it takes to sum up.
    Metadata,
    /// From every algorithm to every other one, with so many frames out.
    Switch { frames: usize },
}

/// What is in use before a workload begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// Half of memory, as it came.
    Half,
    /// Half of memory: all of it was, and a half given back at random.
    Scattered,
}

impl Work {
    /// Whether it asks for runs of 2^9 frames.
    pub fn needs_huge(&self) -> bool {
        matches!(self, Self::Huge { .. })
    }

    /// Whether frames are freed where they weren't allocated, more of them than come back, or CPUs want more than their share.
    pub fn needs_balance(&self) -> bool {
        let moves = matches!(self, Self::HandOver { .. } | Self::OneGets { .. });
        moves || matches!(self, Self::Skewed { .. } | Self::Starving { .. })
    }

    /// Whether it allocates at all.
    pub fn hands_out(&self) -> bool {
        !matches!(self, Self::Metadata)
    }

    /// Whether each run gives the same, so that one is enough.
    pub fn is_counted(&self) -> bool {
        matches!(self, Self::Churn { .. })
    }

    /// What it needs before it begins.
    pub fn prepare<S: Subject>(&self, subject: &mut S) {
        if let Self::Switch { .. } = self {
            subject.open_all();
        }
    }

    /// Do it to a fresh `subject`.
    pub fn run<S: Subject>(&self, subject: &S, setup: &Setup) -> Outcome {
        let share = setup.frames / 2 / setup.cpus;
        match *self {
            Self::Bulk => rounds(subject, setup, share, 1),
            Self::Pair { before, pairs } => pair(subject, setup, before, pairs),
            Self::Random { seed } => random(subject, setup, share, seed),
            Self::HandOver { frames, by_rows } => hand_over(subject, setup, frames, HEAP, by_rows),
            Self::Huge { rounds } => huge(subject, setup, rounds),
            Self::Churn { free, rounds, seed } => churn::run(subject, setup, free, rounds, seed),
            Self::Rounds { frames, rounds: n } => rounds(subject, setup, frames, n),
            Self::Outstanding { frames, rounds, alternate } => {
                outstanding(subject, setup, frames, rounds, alternate)
            }
            Self::OneGets { frames } => hand_over(subject, setup, frames, SMALL_HEAP, false),
            Self::Skewed { rounds } => skewed(subject, setup, rounds),
            Self::Starving { rounds } => starving(subject, setup, rounds),
            Self::Metadata => metadata(subject, setup),
            Self::Switch { frames } => switch(subject, frames),
        }
    }
}

/// Room for `n` frames' numbers that is already in memory.
fn room(n: usize) -> Vec<u32> {
    vec![u32::MAX; n]
}

/// Fill `out` with frames; how many there were.
#[inline]
fn get_all<S: Subject>(subject: &S, pin: &Pinned<'_>, order: u32, out: &mut [u32]) -> usize {
    for (n, place) in out.iter_mut().enumerate() {
        match subject.get(pin, order) {
            Some(frame) => *place = frame as u32,
            None => return n,
        }
    }
    out.len()
}

#[inline]
fn put_all<S: Subject>(subject: &S, pin: &Pinned<'_>, order: u32, frames: &[u32]) {
    frames.iter().for_each(|frame| subject.put(pin, u64::from(*frame), order));
}

/// Get as many as `room` has places for, put them, `rounds` times; how many gets failed.
fn get_and_put<S: Subject>(subject: &S, member: &mut Member<'_>, room: &mut [u32], rounds: usize) -> u64 {
    let mut failures = 0;
    for _ in 0..rounds {
        let n = member.time("get", |pin| get_all(subject, pin, 0, room) as u64) as usize;
        failures += (room.len() - n) as u64;
        // B1 and B7 put when all have got: otherwise the threads would be at different phases.
        if rounds == 1 {
            member.gate.pass();
        }
        member.time("put", |pin| {
            put_all(subject, pin, 0, &room[..n]);
            n as u64
        });
    }
    failures
}

fn rounds<S: Subject>(subject: &S, setup: &Setup, frames: usize, rounds: usize) -> Outcome {
    let (failures, meter) = team(vec![room(frames); setup.cpus], |member, mut room| {
        member.gate.pass();
        get_and_put(subject, member, &mut room, rounds)
    });
    Outcome::timed(&meter, setup.cpus).failed(failures.iter().sum())
}

fn pair<S: Subject>(subject: &S, setup: &Setup, before: Before, pairs: usize) -> Outcome {
    let share = setup.frames / setup.cpus;
    let taken = match before {
        Before::Nothing => 0,
        Before::Half => share / 2,
        // Not to the last: nobody has to ask others for frames.
        Before::Scattered => share - share / 16,
    };
    let (kept, _) = team(vec![room(taken); setup.cpus], |member, mut all| {
        let n = get_all(subject, &member.pin, 0, &mut all);
        all.truncate(n);
        if before == Before::Scattered {
            Rng::with_seed(member.cpu as u64).shuffle(&mut all);
            let half = all.split_off(n / 2);
            put_all(subject, &member.pin, 0, &half);
        }
        all
    });
    let (failures, meter) = team(kept, |member, kept| {
        member.gate.pass();
        let mut failures = 0;
        member.time("pair", |pin| {
            for _ in 0..pairs {
                match subject.get(pin, 0) {
                    Some(frame) => subject.put(pin, frame, 0),
                    None => failures += 1,
                }
            }
            pairs as u64
        });
        member.gate.pass();
        put_all(subject, &member.pin, 0, &kept);
        failures
    });
    Outcome::timed(&meter, setup.cpus).failed(failures.iter().sum())
}

fn random<S: Subject>(subject: &S, setup: &Setup, frames: usize, seed: u64) -> Outcome {
    let (got, mut meter) = team(vec![room(frames); setup.cpus], |member, mut room| {
        member.gate.pass();
        let n = member.time("get", |pin| get_all(subject, pin, 0, &mut room) as u64);
        room.truncate(n as usize);
        room
    });
    let mut all = got.concat();
    let failures = (frames * setup.cpus - all.len()) as u64;
    Rng::with_seed(seed).shuffle(&mut all);
    let part = all.len().div_ceil(setup.cpus).max(1);
    let mut parts: Vec<_> = all.chunks(part).map(<[u32]>::to_vec).collect();
    parts.resize_with(setup.cpus, Vec::new);
    let (_, puts) = team(parts, |member, part| {
        // As a thread that has used its frames, it has their numbers at hand.
        std::hint::black_box(part.iter().fold(0, |sum, frame| sum ^ frame));
        member.gate.pass();
        member.time("put", |pin| {
            put_all(subject, pin, 0, &part);
            part.len() as u64
        });
    });
    meter.merge(puts);
    Outcome::timed(&meter, setup.cpus).failed(failures)
}

/// What a thread of a hand-over does.
enum Hand {
    Gets(Vec<SyncSender<Vec<u32>>>),
    Puts(Receiver<Vec<u32>>),
}

/// The first thread gets heaps, and gives them to the others in turn, which put them. Waiting is not timed.
fn hand_over<S: Subject>(subject: &S, setup: &Setup, frames: usize, heap: usize, by_rows: bool) -> Outcome {
    let before = subject.transfers();
    let depth = if heap == SMALL_HEAP { SMALL_HEAPS } else { HEAPS };
    let (to, from): (Vec<_>, Vec<_>) = (1..setup.cpus).map(|_| sync_channel(depth)).unzip();
    let hands = [Hand::Gets(to)].into_iter().chain(from.into_iter().map(Hand::Puts)).collect();
    let (failures, meter) = team(hands, |member, hand| {
        member.gate.pass();
        match hand {
            Hand::Gets(to) => {
                let mut failures = 0;
                for to in to.iter().cycle().take(frames.div_ceil(heap)) {
                    let mut got = room(heap);
                    let n = member.time("get", |pin| get_all(subject, pin, 0, &mut got) as u64) as usize;
                    failures += (heap - n) as u64;
                    got.truncate(n);
                    if by_rows {
                        got = rows_in_turn(got);
                    }
                    if to.send(got).is_err() {
                        break;
                    }
                }
                failures
            }
            Hand::Puts(from) => {
                for frames in from {
                    member.time("put", |pin| {
                        put_all(subject, pin, 0, &frames);
                        frames.len() as u64
                    });
                }
                0
            }
        }
    });
    let outcome = Outcome::timed(&meter, setup.cpus).failed(failures.iter().sum());
    per_thousand(outcome, subject, before, &meter)
}

/// The frames of each 8 rows, one of each row in turn.
fn rows_in_turn(mut frames: Vec<u32>) -> Vec<u32> {
    frames.sort_unstable();
    let mut turned = Vec::with_capacity(frames.len());
    for eight in frames.chunks(BLOCK) {
        for first in 0..ROW {
            turned.extend(eight.iter().skip(first).step_by(ROW));
        }
    }
    turned
}

/// Add how many blocks changed hands for a thousand gets.
fn per_thousand<S: Subject>(outcome: Outcome, subject: &S, before: Option<u64>, meter: &Meter) -> Outcome {
    let gets = meter.phases().iter().find(|(name, _)| *name == "get").map_or(0, |(_, p)| p.operations);
    match (before, subject.transfers()) {
        (Some(before), Some(after)) if gets > 0 => {
            outcome.with("transfers_per_1000", (after - before) as f64 * 1e3 / gets as f64)
        }
        _ => outcome,
    }
}

fn huge<S: Subject>(subject: &S, setup: &Setup, rounds: usize) -> Outcome {
    let runs = setup.frames / BLOCK * 7 / 8 / setup.cpus;
    let (failures, meter) = team(vec![room(runs); setup.cpus], |member, mut room| {
        let mut failures = 0;
        member.gate.pass();
        for _ in 0..rounds {
            let n = member.time("get", |pin| get_all(subject, pin, 9, &mut room) as u64) as usize;
            failures += (runs - n) as u64;
            member.time("put", |pin| {
                put_all(subject, pin, 9, &room[..n]);
                n as u64
            });
        }
        member.gate.pass();
        let pairs = runs * rounds;
        member.time("pair", |pin| {
            for _ in 0..pairs {
                match subject.get(pin, 9) {
                    Some(frame) => subject.put(pin, frame, 9),
                    None => failures += 1,
                }
            }
            pairs as u64
        });
        failures
    });
    let outcome = Outcome::timed(&meter, setup.cpus).failed(failures.iter().sum());
    let sum = outcome.value("get_ns").zip(outcome.value("put_ns")).map(|(get, put)| get + put);
    match sum {
        Some(sum) => outcome.with("sum_ns", sum),
        None => outcome,
    }
}

fn outstanding<S: Subject>(
    subject: &S,
    setup: &Setup,
    frames: usize,
    rounds: usize,
    alternate: bool,
) -> Outcome {
    let (failures, meter) = team(vec![room(frames); setup.cpus], |member, mut room| {
        let mut failures = 0;
        // Too short to be timed by phase: a get and a put together are an operation.
        let mut round = |pin: &Pinned<'_>| {
            let n = get_all(subject, pin, 0, &mut room);
            failures += (frames - n) as u64;
            let got = &room[..n];
            if alternate {
                for first in [0, 1] {
                    let half = got.iter().skip(first).step_by(2);
                    half.for_each(|frame| subject.put(pin, u64::from(*frame), 0));
                }
            } else {
                put_all(subject, pin, 0, got);
            }
            n as u64
        };
        // The first round finds everything cold, which with few frames would be most of what is measured.
        round(&member.pin);
        member.time("pair", |pin| (0..rounds).map(|_| round(pin)).sum());
        failures
    });
    Outcome::timed(&meter, setup.cpus).failed(failures.iter().sum())
}

fn skewed<S: Subject>(subject: &S, setup: &Setup, rounds: usize) -> Outcome {
    let before = subject.transfers();
    let used = setup.frames / 100 * 95;
    let others = used / 10 / (setup.cpus - 1);
    let rooms = (0..setup.cpus).map(|cpu| room(if cpu == 0 { used / 10 * 9 } else { others })).collect();
    let (failures, meter) = team(rooms, |member, mut room| {
        member.gate.pass();
        // The others are through sooner, and go on as long as the first.
        let rounds = if member.cpu == 0 { rounds } else { rounds * used / 10 * 9 / others.max(1) };
        get_and_put(subject, member, &mut room, rounds)
    });
    let outcome = Outcome::timed(&meter, setup.cpus).failed(failures.iter().sum());
    per_thousand(outcome, subject, before, &meter)
}

fn starving<S: Subject>(subject: &S, setup: &Setup, rounds: usize) -> Outcome {
    let before = subject.transfers();
    let (got, meter) = team(vec![room(setup.frames); setup.cpus], |member, mut room| {
        let mut got = Vec::new();
        for _ in 0..rounds {
            member.gate.pass();
            let n = member.time("get", |pin| get_all(subject, pin, 0, &mut room) as u64) as usize;
            member.gate.pass();
            // As a kernel would before it gives up: what CPUs keep is what others lack.
            subject.give_up(&member.pin);
            member.gate.pass();
            let more = get_all(subject, &member.pin, 0, &mut room[n..]);
            got.push((n, n + more));
            member.gate.pass();
            member.time("put", |pin| {
                put_all(subject, pin, 0, &room[..n + more]);
                (n + more) as u64
            });
        }
        got
    });
    // Of each round, what nobody got although everybody wanted more; before CPUs gave up what they kept, and after.
    let most = |all: fn(&(usize, usize)) -> usize| {
        let left = |round: usize| setup.frames - got.iter().map(|of| all(&of[round])).sum::<usize>();
        (0..rounds).map(left).max().unwrap_or(0) as f64
    };
    let outcome = Outcome::timed(&meter, setup.cpus)
        .with("kept_frames", most(|(first, _)| *first))
        .with("left_frames", most(|(_, all)| *all));
    per_thousand(outcome, subject, before, &meter)
}

/// How often counts are summed up.
const SUMS: u64 = 200;

fn metadata<S: Subject>(subject: &S, setup: &Setup) -> Outcome {
    let mut outcome = Outcome::default();
    if let Some(kept) = subject.metadata() {
        let bits = kept.shared as f64 * 8.0 / setup.frames as f64;
        outcome = outcome.with("metadata_bits", bits).with("per_cpu_bytes", kept.per_cpu as f64);
    }
    let (_, meter) = team(vec![()], |member, ()| {
        member.time("available", |_| (0..SUMS).map(|_| u64::from(subject.sum_up())).sum());
        member.time("stats", |_| (0..SUMS).map(|_| u64::from(subject.sum_up_all())).sum());
    });
    outcome.values.extend(Outcome::timed(&meter, 1).values);
    outcome
}

/// Algorithms that there may be.
const ALGORITHMS: usize = 4;

fn switch<S: Subject>(subject: &S, frames: usize) -> Outcome {
    let (mut all, _) = team(vec![room(frames)], |member, mut room| {
        let mut outcome = Outcome::default();
        let mut worst: f64 = 0.0;
        let pairs = (0..ALGORITHMS).flat_map(|from| (0..ALGORITHMS).map(move |to| (from, to)));
        for (from, to) in pairs.filter(|(from, to)| from != to) {
            if !subject.switch(&member.pin, from) {
                return outcome;
            }
            // Half of them stay out, in single frames all over the place: the algorithm has something to give up.
            let n = get_all(subject, &member.pin, 0, &mut room);
            let (kept, rest): (Vec<u32>, Vec<u32>) = room[..n].iter().partition(|frame| *frame % 2 == 0);
            put_all(subject, &member.pin, 0, &rest);
            let n = get_all(subject, &member.pin, 0, &mut room[..frames / 2]);
            let lap = member.lap(|pin| {
                subject.switch(pin, to);
            });
            put_all(subject, &member.pin, 0, &room[..n]);
            put_all(subject, &member.pin, 0, &kept);
            worst = worst.max(lap);
            outcome = outcome.with(format!("switch_{from}_{to}_ms"), lap / 1e6);
        }
        outcome = outcome.with("switch_worst_ms", worst / 1e6);
        match subject.owned() {
            Some(lost) => outcome.with("lost_frames", lost as f64),
            None => outcome,
        }
    });
    all.pop().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_take_turns() {
        let turned = rows_in_turn((0..1024).rev().collect());
        assert_eq!(turned[..10], [0, 64, 128, 192, 256, 320, 384, 448, 1, 65]);
        assert_eq!(turned[512..514], [512, 576]);
        let mut all = turned;
        all.sort_unstable();
        assert_eq!(all, (0..1024).collect::<Vec<_>>());
    }
}
