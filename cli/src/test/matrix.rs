//! What the conflict matrix finds: a conflict that was planted, and what processes don't share that threads do.

use anyhow::Result;

use super::Report;
use crate::{
    args::{Aspace, Bench},
    bench::{
        matrix::{Lab, Tried, try_pairs},
        plan::Target,
    },
    exact::Exact,
};

/// Enough to have a fault on both sides, on one, and on none.
const PAIRS: &str = "fault-fault,mmap-munmap,munmap-read,read-read";
/// The control's name.
const PLANTED: &str = "planted::SHARED_COUNTER";

pub fn run(report: &mut Report) -> Result<()> {
    report.doing("the conflict matrix");
    let lab = Lab::furnish(Exact::new()?)?;
    let words = ["--pairs".to_owned(), PAIRS.to_owned(), "--repeats".to_owned(), "1".to_owned()];
    let options = |planted| Bench { plant_shared_counter: planted, ..Bench::default() };
    let tried = |planted| try_pairs(&lab, Target::Quire(Aspace::Locked), None, &words, &options(planted));
    let (usual, planted) = (tried(false)?, tried(true)?);
    report.record("both sides' faults share a counter that is planted in them", shows(&planted));
    report.record("a counter that is not planted isn't shared", hides(&usual));
    report.record("processes share fewer lines than threads", apart(&usual));
    report.record("loads of a page share nothing", loads(&usual));
    report.record("a thread's handle of its memory is on a line of its own", handles(&usual));
    Ok(())
}

fn has_counter(one: &Tried) -> bool {
    one.lines.iter().any(|line| line.name == PLANTED)
}

/// A line is shared only if both sides touch it, so both must fault; on one page, which doesn't commute, only the first does.
fn shows(all: &[Tried]) -> Result<(), String> {
    let both = || all.iter().filter(|one| one.commutes && one.pair() == "fault-fault");
    let missed: Vec<_> = both().filter(|one| !has_counter(one)).map(Tried::name).collect();
    let elsewhere: Vec<_> =
        all.iter().filter(|one| one.pair() != "fault-fault" && has_counter(one)).map(Tried::name).collect();
    match (both().count(), missed.is_empty() && elsewhere.is_empty()) {
        (14, true) => Ok(()),
        (n, _) => Err(format!("of {n} combinations not in {missed:?}, but in {elsewhere:?}")),
    }
}

fn hides(all: &[Tried]) -> Result<(), String> {
    match all.iter().find(|one| has_counter(one)) {
        Some(one) => Err(format!("{}: {:?}", one.name(), one.lines)),
        None => Ok(()),
    }
}

/// Each combination of threads against that of processes, where there is a call or a fault at all.
fn apart(all: &[Tried]) -> Result<(), String> {
    let of = |share| all.iter().filter(move |one: &&Tried| one.share() == share && one.pair() != "read-read");
    let mut compared = 0;
    for threads in of("threads").filter(|one| one.commutes) {
        let same = |one: &&Tried| {
            (one.pair(), one.place(), one.state()) == (threads.pair(), threads.place(), threads.state())
        };
        let processes = of("processes").find(same).ok_or_else(|| format!("{}: no twin", threads.name()))?;
        if processes.count >= threads.count {
            return Err(format!("{}: {} and {} lines", threads.name(), threads.count, processes.count));
        }
        compared += 1;
    }
    // None of the three commutes on one page.
    if compared == 18 { Ok(()) } else { Err(format!("{compared} were compared")) }
}

fn handles(all: &[Tried]) -> Result<(), String> {
    let is_handle = |one: &&Tried| one.lines.iter().any(|line| line.name.contains("handle of its memory"));
    match all.iter().filter(|one| one.commutes).find(is_handle) {
        Some(one) => Err(format!("{}: {:?}", one.name(), one.lines)),
        None => Ok(()),
    }
}

fn loads(all: &[Tried]) -> Result<(), String> {
    let loads: Vec<_> = all.iter().filter(|one| one.pair() == "read-read").collect();
    match loads.iter().find(|one| !one.commutes || !one.is_free()) {
        None if loads.len() == 16 => Ok(()),
        None => Err(format!("{} combinations", loads.len())),
        Some(one) => Err(format!("{}: {:?}", one.name(), one.lines)),
    }
}
