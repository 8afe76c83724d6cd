//! Pairs of memory operations on two CPUs, each once, for a tracer that sees which cache lines both touch.
//!
//! **What is done.** For each combination (`combination.rs`) two sides, threads or processes, on two CPUs, make their pages
//! ready, meet, and open their windows (`marker.rs` of mapbench). Then the one executes its operation, in a bracket, and
//! after it the other, in its own; both close their windows. One after the other, so that what is seen is what both
//! touch, and not how their instructions happened to fall: a line that the first wrote and the second touches, or that the
//! first touched and the second writes, moves in the second's bracket, always. Each order is tried, and each several
//! times. Between opening and closing neither side is in the kernel but for its operation: they wait for each other in
//! user mode.
//!
//! **What is printed.** A line for each combination: what it is, then for each order the answers, and what the pages are
//! afterwards. `docs/matrix.md` says what becomes of them.

mod combination;
#[path = "../mapbench/marker.rs"]
mod marker;
mod meet;
mod memory;
mod sys;

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    combination::{Combination, OPERATIONS, PLACES, SHARES, STATES, Share, name},
    meet::Meeting,
    memory::Part,
};

const USAGE: &str = "pairs [--list] [--repeats N] [--pairs OP1-OP2,…] [--places same,adjacent,near,disjoint] \
                     [--states fresh,warm] [--shares threads,processes]";

/// An outcome that has not come yet, and one that was not the same each time.
const NOTHING: u64 = u64::MAX;
const UNSTEADY: u64 = u64::MAX - 1;

/// What one side says of one order: its operation's answer, and what its page and the place to move to are then.
#[derive(Default)]
struct Outcome([AtomicU64; 3]);

impl Outcome {
    fn set(&self, words: [u64; 3]) {
        for (cell, word) in self.0.iter().zip(words) {
            // Relaxed, all: one side writes it, and has ended when it's printed.
            let before = cell.load(Ordering::Relaxed);
            let now = if before == NOTHING || before == word { word } else { UNSTEADY };
            cell.store(now, Ordering::Relaxed);
        }
    }

    fn words(&self) -> String {
        let word = |cell: &AtomicU64| match cell.load(Ordering::Relaxed) {
            NOTHING => "nothing".to_owned(),
            UNSTEADY => "unsteady".to_owned(),
            memory::REFUSED => "refused".to_owned(),
            n if n & memory::ERROR != 0 => format!("errno{}", n ^ memory::ERROR),
            n if n & memory::WRITABLE != 0 => format!("{:#x}w", n ^ memory::WRITABLE),
            n => format!("{n:#x}"),
        };
        self.0.each_ref().map(word).join(" ")
    }
}

/// By combination, by order (the side that goes first), by side.
type Outcomes = [[[Outcome; 2]; 2]];

/// What the command line says.
struct Plan {
    combinations: Vec<Combination>,
    repeats: u32,
    list: bool,
}

fn main() -> ExitCode {
    let plan = match parse(std::env::args().skip(1)) {
        Ok(plan) => plan,
        Err(problem) => {
            eprintln!("pairs: {problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if plan.list {
        plan.combinations.iter().for_each(|combination| println!("{}", combination.words()));
        return ExitCode::SUCCESS;
    }
    let [first, second] = match sys::allowed_cpus()[..] {
        [first, second, ..] => [first, second],
        [only] => [only, only],
        [] => sys::die("no CPU"),
    };
    sys::refuse_huge_pages();
    memory::catch_refusals();
    memory::anchor();
    let size = size_of::<[[Outcome; 2]; 2]>() * plan.combinations.len();
    let (meeting, outcomes) = (sys::shared_memory(size_of::<Meeting>()), sys::shared_memory(size.max(1)));
    // SAFETY: memory of that size, aligned to pages, whose zeroes are values of both types, and which stays.
    let (meeting, outcomes): (&Meeting, &Outcomes) =
        unsafe { (&*meeting.cast(), std::slice::from_raw_parts(outcomes.cast(), plan.combinations.len())) };
    outcomes.iter().flatten().flatten().flat_map(|outcome| &outcome.0).for_each(|cell| {
        // Relaxed: nobody else is there yet.
        cell.store(NOTHING, Ordering::Relaxed);
    });
    let run = |share, side, cpu| {
        sys::pin(cpu);
        all(&plan, share, side, meeting, outcomes);
    };
    std::thread::scope(|scope| {
        let run = &run;
        for (side, cpu) in [first, second].into_iter().enumerate() {
            scope.spawn(move || run(Share::Threads, side, cpu));
        }
    });
    // They have ended, so a fork copies all there is.
    for (side, cpu) in [first, second].into_iter().enumerate() {
        sys::child(|| run(Share::Processes, side, cpu));
    }
    if !(sys::a_child_succeeded() & sys::a_child_succeeded()) {
        sys::die("a process ended without success");
    }
    for (combination, outcomes) in plan.combinations.iter().zip(outcomes) {
        let orders = outcomes.each_ref().map(|sides| sides.each_ref().map(Outcome::words).join(" "));
        println!("{} | {}", combination.words(), orders.join(" | "));
    }
    ExitCode::SUCCESS
}

/// One side's part of all combinations of this kind.
fn all(plan: &Plan, share: Share, side: usize, meeting: &Meeting, outcomes: &Outcomes) {
    let mut me = meeting.side(side);
    for (combination, outcomes) in
        plan.combinations.iter().zip(outcomes).filter(|(combination, _)| combination.share == share)
    {
        let part = Part::new(combination, side);
        // Once without a window, for what is done at the first time only.
        for repeat in 0..=plan.repeats {
            for (first, outcome) in outcomes.iter().enumerate() {
                let words = one(&mut me, &part, side == first, repeat > 0);
                outcome[side].set(words);
            }
        }
    }
}

/// One side's part of one try.
fn one(me: &mut meet::Side<'_>, part: &Part, goes_first: bool, counted: bool) -> [u64; 3] {
    part.prepare();
    me.sleep();
    me.spin();
    if counted {
        marker::window_begin();
    }
    me.spin();
    if !goes_first {
        me.spin();
    }
    let answer = if counted {
        marker::operation_begin();
        let answer = part.operate();
        marker::operation_end();
        answer
    } else {
        part.operate()
    };
    if goes_first {
        me.spin();
    }
    me.spin();
    if counted {
        marker::window_end();
    }
    me.sleep();
    let [page, target] = part.look();
    me.sleep();
    part.clear();
    me.sleep();
    [answer, page, target]
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Plan, String> {
    let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let pair = |[a, b]: [_; 2]| format!("{}-{}", name(&OPERATIONS, a), name(&OPERATIONS, b));
    let mut pairs: Vec<String> = combination::pairs().into_iter().map(pair).collect();
    let mut places = all(&PLACES.map(|(_, name)| name));
    let mut states = all(&STATES.map(|(_, name)| name));
    let mut shares = all(&SHARES.map(|(_, name)| name));
    let (mut repeats, mut list) = (2, false);
    while let Some(word) = words.next() {
        if word == "--list" {
            list = true;
            continue;
        }
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        let some = |of: &[String]| {
            let chosen: Vec<_> = value.split(',').map(str::to_owned).collect();
            match chosen.iter().find(|one| !of.contains(one)) {
                Some(unknown) => Err(format!("{word} {unknown}: not one of {}", of.join(", "))),
                None => Ok(chosen),
            }
        };
        match &*word {
            "--pairs" => pairs = some(&pairs)?,
            "--places" => places = some(&places)?,
            "--states" => states = some(&states)?,
            "--shares" => shares = some(&shares)?,
            "--repeats" => repeats = value.parse().map_err(|_| format!("--repeats {value}: no number"))?,
            _ => return Err(format!("what is {word}?")),
        }
    }
    let chosen = |of: &[String], name: &str| of.iter().any(|one| one == name);
    let mut combinations = Vec::new();
    // In the order in which they are tried, so that a window's number says whose it is.
    for (share, _) in SHARES.iter().filter(|(_, name)| chosen(&shares, name)) {
        for operations in combination::pairs().into_iter().filter(|one| chosen(&pairs, &pair(*one))) {
            for (place, _) in PLACES.iter().filter(|(_, name)| chosen(&places, name)) {
                for (warm, _) in STATES.iter().filter(|(_, name)| chosen(&states, name)) {
                    combinations.push(Combination { operations, place: *place, warm: *warm, share: *share });
                }
            }
        }
    }
    Ok(Plan { combinations, repeats, list })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(words: &str) -> Result<Plan, String> {
        parse(words.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn everything_is_tried_unless_something_is_chosen() {
        assert_eq!(plan("").unwrap().combinations.len(), 36 * 4 * 2 * 2);
        let some = plan("--pairs mmap-munmap,fault-fault --states warm --repeats 1").unwrap();
        assert_eq!((some.combinations.len(), some.repeats), (2 * 4 * 2, 1));
        assert!(
            plan("--pairs munmap-mmap").is_err() && plan("--what 1").is_err() && plan("--places").is_err()
        );
    }

    #[test]
    fn an_outcome_that_changes_is_seen() {
        let outcome = Outcome([NOTHING; 3].map(AtomicU64::new));
        outcome.set([0, memory::REFUSED, 0x100 | memory::WRITABLE]);
        assert_eq!(outcome.words(), "0x0 refused 0x100w");
        outcome.set([0, memory::REFUSED, memory::ERROR | 14]);
        assert_eq!(outcome.words(), "0x0 refused unsteady");
    }
}
