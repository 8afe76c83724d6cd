//! What is required of Quire's allocator, and whether it was met.

use serde::Serialize;

use crate::record::{LLFREE, LLFREE_ELSEWHERE, Record, Source, median};

/// The subject that is held to it.
const OURS: &str = "quire";

/// A requirement of a number.
#[derive(Clone, Copy, Debug)]
enum Bound {
    /// The other's is so many times as high.
    Faster(&'static str, f64),
    /// It is at most so many times the other's.
    Times(&'static str, f64),
    /// It is at most the other's, and so much.
    Near(&'static str, f64),
    /// It is less than this much below the other's.
    NotBelow(&'static str, f64),
    AtMost(f64),
    AtLeast(f64),
}

/// Of which cases and numbers of threads something is required.
struct Requirement {
    id: &'static str,
    /// What the case's name contains.
    case: &'static str,
    threads: fn(usize) -> bool,
    metrics: &'static [&'static str],
    bound: Bound,
}

const ANY: fn(usize) -> bool = |_| true;
const ONE: fn(usize) -> bool = |n| n == 1;
const MANY: fn(usize) -> bool = |n| n > 1;

const fn of(
    id: &'static str,
    case: &'static str,
    metrics: &'static [&'static str],
    bound: Bound,
) -> Requirement {
    Requirement { id, case, threads: ANY, metrics, bound }
}

const GET: &str = "get_ns";
const PUT: &str = "put_ns";
const PAIR: &str = "pair_ns";
const SUM: &str = "sum_ns";

/// All of them.
const REQUIREMENTS: &[Requirement] = &[
    of("B1", "bulk", &[GET, PUT], Bound::Faster(LLFREE, 8.0)),
    of("B1", "bulk", &[GET, PUT], Bound::Faster("buddy", 8.0)),
    of("B1", "bulk", &[GET, PUT], Bound::Faster("bitmap", 3.0)),
    of("B1", "bulk", &[GET, PUT], Bound::Times("floor", 2.0)),
    of("B2", "pair", &[PAIR], Bound::Faster(LLFREE, 8.0)),
    // Where half of it is free as single frames, that one has nothing to split.
    of("B2", "pair empty", &[PAIR], Bound::Faster("buddy", 30.0)),
    of("B2", "pair half full", &[PAIR], Bound::Faster("buddy", 30.0)),
    of("B2", "pair", &[PAIR], Bound::Faster("bitmap", 4.0)),
    of("B2", "pair", &[PAIR], Bound::Times("floor", 2.0)),
    of("B3", "random", &[GET], Bound::Faster(LLFREE, 8.0)),
    Requirement { threads: ONE, ..of("B3", "random", &[PUT], Bound::Faster(LLFREE, 2.0)) },
    Requirement { threads: MANY, ..of("B3", "random", &[PUT], Bound::Faster(LLFREE, 1.5)) },
    of("B3", "random", &[PUT], Bound::Faster("buddy", 15.0)),
    of("B3", "random", &[PUT], Bound::Faster("bitmap", 1.0)),
    of("B4", "hand-over in order", &[PUT], Bound::Faster(LLFREE, 5.0)),
    of("B4", "hand-over rows", &[PUT], Bound::Faster(LLFREE, 1.5)),
    of("B4", "hand-over", &[PUT], Bound::Faster("bitmap", 3.0)),
    of("B5", "order 9", &[GET, PAIR, SUM], Bound::Faster(LLFREE, 3.0)),
    of("B5", "order 9", &[PUT], Bound::Faster(LLFREE, 1.5)),
    of("B5", "order 9", &[GET, PAIR, SUM], Bound::Faster("buddy", 2.0)),
    of("B5", "order 9", &[GET], Bound::Faster("bitmap", 100.0)),
    of("B6", "churn", &["free_blocks_pct"], Bound::AtLeast(95.0)),
    of("B6", "churn", &["free_blocks_pct"], Bound::NotBelow("bitmap", 3.0)),
    of("B6", "churn", &["half_after_rounds"], Bound::Near(LLFREE, 0.0)),
    of("B7", "", &["get_loss_pct", "put_loss_pct"], Bound::AtMost(5.0)),
    of("B8", "", &["spread_pct"], Bound::AtMost(10.0)),
    of("B9", "one gets", &["failures"], Bound::AtMost(0.0)),
    of("B9", "skewed", &["failures"], Bound::AtMost(0.0)),
    of("B9", "starving", &["left_frames"], Bound::AtMost(0.0)),
    of("B9", "one gets", &["transfers_per_1000"], Bound::AtMost(1.0)),
    of("B9", "skewed", &["transfers_per_1000"], Bound::AtMost(1.0)),
    of("B10", "GiB", &["metadata_bits"], Bound::AtMost(1.1)),
    of("B10", "", &["per_cpu_bytes"], Bound::AtMost(4096.0)),
    of("B11", "", &["switch_worst_ms"], Bound::AtMost(10.0)),
    of("B11", "", &["lost_frames"], Bound::AtMost(0.0)),
];

/// What became of a requirement in one case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// `B1` to `B11`.
    pub id: String,
    /// Which of that.
    pub case: String,
    /// CPUs of the allocator.
    pub threads: usize,
    /// What it is about.
    pub metric: String,
    /// In words.
    pub required: String,
    /// In words.
    pub measured: String,
    /// `None`: there is nothing to hold it against on this machine.
    pub met: Option<bool>,
}

/// All verdicts on what was measured.
pub fn verdicts(records: &[Record]) -> Vec<Verdict> {
    let ours = records.iter().filter(|r| r.subject == OURS && r.source == Source::Measured);
    ours.flat_map(|record| {
        let applies = |r: &&Requirement| {
            record.id == r.id
                && record.case.contains(r.case)
                && (r.threads)(record.threads)
                && r.metrics.contains(&record.metric.as_str())
        };
        REQUIREMENTS.iter().filter(applies).filter_map(|r| verdict(records, record, r.bound))
    })
    .collect()
}

/// On one number. `None`: the one to compare with has none.
fn verdict(records: &[Record], ours: &Record, bound: Bound) -> Option<Verdict> {
    let own = ours.median;
    let theirs = |subject| median(records, ours, subject, &ours.metric);
    let verdict = |required: String, measured: String, met| {
        let (id, case, metric) = (ours.id.clone(), ours.case.clone(), ours.metric.clone());
        Some(Verdict { id, case, threads: ours.threads, metric, required, measured, met })
    };
    match bound {
        Bound::Faster(subject, times) => {
            let ratio = |theirs: f64| theirs / own;
            if let Some(theirs) = theirs(subject) {
                let met = ratio(theirs) >= times;
                return verdict(
                    format!("{subject} takes at least {times} x"),
                    format!("{:.1} x", ratio(theirs)),
                    Some(met),
                );
            }
            // Another machine's number is worth showing, but proves nothing.
            let elsewhere = if subject == LLFREE { theirs(LLFREE_ELSEWHERE) } else { None }?;
            verdict(format!("{subject} takes at least {times} x"), format!("{:.1} x", ratio(elsewhere)), None)
        }
        Bound::Times(subject, times) => {
            let ratio = own / theirs(subject)?;
            let required = format!("at most {times} x {subject}");
            verdict(required, format!("{ratio:.2} x"), Some(ratio <= times))
        }
        Bound::Near(subject, more) => {
            let theirs = theirs(subject)?;
            let required = format!("at most {subject}'s {theirs:.1}");
            verdict(required, format!("{own:.1}"), Some(own <= theirs + more))
        }
        Bound::NotBelow(subject, less) => {
            let theirs = theirs(subject)?;
            let required = format!("at most {less} below {subject}'s {theirs:.1}");
            verdict(required, format!("{own:.1}"), Some(own >= theirs - less))
        }
        Bound::AtMost(most) => verdict(format!("at most {most}"), format!("{own:.2}"), Some(own <= most)),
        Bound::AtLeast(least) => {
            verdict(format!("at least {least}"), format!("{own:.1}"), Some(own >= least))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{elsewhere, import};

    /// Ours as measured, everything else as it comes.
    fn judged(lines: &str) -> Vec<Verdict> {
        let text = format!("subject,id,case,threads,get_ns,put_ns,free_blocks_pct,left_frames\n{lines}");
        let mut records = import(&text).unwrap();
        records.iter_mut().filter(|r| r.subject == OURS).for_each(|r| r.source = Source::Measured);
        records.extend(elsewhere());
        verdicts(&records)
    }

    fn met(lines: &str) -> Vec<Option<bool>> {
        judged(lines).iter().map(|v| v.met).collect()
    }

    #[test]
    fn a_ratio_is_met_or_missed() {
        assert_eq!(met("quire,B1,bulk,2,2\nbuddy,B1,bulk,2,16"), [Some(true)]);
        assert_eq!(met("quire,B1,bulk,2,2\nbuddy,B1,bulk,2,15"), [Some(false)]);
        assert_eq!(met("quire,B1,bulk,2,4\nfloor,B1,bulk,2,2"), [Some(true)]);
        assert_eq!(met("quire,B1,bulk,2,4.1\nfloor,B1,bulk,2,2"), [Some(false)]);
        // Of another number of threads.
        assert_eq!(met("quire,B1,bulk,2,2\nbuddy,B1,bulk,4,16"), []);
    }

    #[test]
    fn another_machines_time_proves_nothing() {
        let shown = judged("quire,B1,bulk,1,2");
        assert_eq!(shown.len(), 1);
        assert_eq!((shown[0].met, shown[0].measured.as_str()), (None, "16.9 x"));
        // This machine's takes its place.
        assert_eq!(met("quire,B1,bulk,1,2\nllfree,B1,bulk,1,15"), [Some(false)]);
    }

    #[test]
    fn bounds_hold_without_others() {
        let churn = |pct| met(&format!("quire,B6,churn 50,1,,,{pct}"));
        assert_eq!((churn(95.0), churn(94.9)), (vec![Some(true)], vec![Some(false)]));
        let beside = met("quire,B6,churn 50,1,,,95.5\nbitmap,B6,churn 50,1,,,99");
        assert_eq!(beside, [Some(true), Some(false)]);
        let left = |n| met(&format!("quire,B9,starving,2,,,,{n}"));
        assert_eq!((left(0), left(1)), (vec![Some(true)], vec![Some(false)]));
    }

    #[test]
    fn threads_decide_which_ratio_is_asked_for() {
        let put = |n| met(&format!("quire,B3,random,{n},,10\nllfree,B3,random,{n},,16"));
        assert_eq!((put(1), put(2)), (vec![Some(false)], vec![Some(true)]));
    }
}
