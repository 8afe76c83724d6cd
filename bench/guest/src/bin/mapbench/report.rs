//! What a run says: a table for people, or one line of JSON.

use std::{fmt::Write, time::Duration};

use crate::{
    meter::Meter,
    options::{Kind, Length, Plan},
    sys,
};

/// One worker's results.
pub struct Row {
    /// The CPU that it ran on.
    pub cpu: usize,
    pub meter: Meter,
}

/// A mode's results.
pub struct Report<'a> {
    pub kind: Kind,
    pub plan: &'a Plan,
    /// By worker.
    pub rows: Vec<Row>,
}

impl Report<'_> {
    fn total(&self, of: impl Fn(&Meter) -> u64) -> u64 {
        self.rows.iter().map(|row| of(&row.meter)).sum()
    }

    /// Whether every check held, and there were some.
    pub fn is_right(&self) -> bool {
        self.total(|m| m.checks.wrong) == 0 && self.total(|m| m.checks.made) > 0
    }

    /// For people.
    pub fn table(&self) -> String {
        let (name, release) = sys::system();
        let (plan, kind) = (self.plan, self.kind.name());
        let (worker, workers) = if plan.processes { ("process", "processes") } else { ("thread", "threads") };
        let length = match plan.length {
            Length::Operations(operations) => format!("{operations} operations a {worker}"),
            Length::Seconds(time) => format!("{} s", time.as_secs_f64()),
        };
        let fresh = if plan.first_touch { ", first touch" } else { "" };
        let mut text = format!(
            "{kind}{fresh} on {name} {release}: {workers} {}, pages {}, {length} after {} to warm up\n\n",
            plan.threads,
            plan.npages_of(self.kind),
            plan.warm_up
        );
        let heads =
            [worker, "cpu", "operations", "touches", "ns/op", "window ns/op", "ops/s", "checks", "wrong"];
        line(&mut text, &heads.map(str::to_owned));
        let mut rate = 0.0;
        for (thread, Row { cpu, meter }) in self.rows.iter().enumerate() {
            let own = per_second(meter.operations, meter.window);
            rate += own;
            let first = [thread.to_string(), cpu.to_string(), meter.operations.to_string()];
            let times = [meter.inside, meter.window].map(|time| each(time, meter.operations).to_string());
            line(&mut text, &cells(first, meter.touches, times, own, meter.checks.made, meter.checks.wrong));
        }
        let all = self.total(|m| m.operations);
        let sum = |of: fn(&Meter) -> Duration| self.rows.iter().map(|row| of(&row.meter)).sum();
        let times = [sum(|m| m.inside), sum(|m| m.window)].map(|time| each(time, all).to_string());
        let (touches, made) = (self.total(|m| m.touches), self.total(|m| m.checks.made));
        let first = ["all".into(), String::new(), all.to_string()];
        line(&mut text, &cells(first, touches, times, rate, made, self.total(|m| m.checks.wrong)));
        text
    }

    /// For programs.
    pub fn json(&self) -> String {
        let (name, release) = sys::system();
        let (plan, kind) = (self.plan, self.kind.name());
        let mut text = format!(
            r#"{{"program":"mapbench","version":1,"mode":"{kind}","system":"{name}","release":"{release}""#
        );
        // Writing to a String cannot fail, here and below.
        let _ = write!(text, r#","threads":{},"npages":{}"#, plan.threads, plan.npages_of(self.kind));
        let _ = match plan.length {
            Length::Operations(operations) => write!(text, r#","operations":{operations}"#),
            Length::Seconds(time) => write!(text, r#","seconds":{}"#, time.as_secs_f64()),
        };
        let _ = write!(text, r#","warm_up":{}"#, plan.warm_up);
        let words = [(plan.processes, "--processes"), (plan.first_touch, "--first-touch")];
        let told: Vec<_> = words.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
        if !told.is_empty() {
            let _ = write!(text, r#","variant":"{}""#, told.join(" "));
        }
        if let Some(pairs) = &plan.pairs {
            let pairs: Vec<_> = pairs.iter().map(|(mapper, freer)| format!("[{mapper},{freer}]")).collect();
            let _ = write!(text, r#","pairs":[{}]"#, pairs.join(","));
        }
        text.push_str(r#","per_thread":["#);
        for (thread, Row { cpu, meter }) in self.rows.iter().enumerate() {
            let comma = if thread == 0 { "" } else { "," };
            let _ = write!(text, r#"{comma}{{"thread":{thread},"cpu":{cpu},{}}}"#, numbers(meter));
        }
        let right = self.is_right();
        let _ = write!(text, r#"],"right":{right}}}"#);
        text
    }
}

/// A worker's numbers as members of a JSON object.
fn numbers(meter: &Meter) -> String {
    let Meter { operations, brackets, touches, checks, .. } = meter;
    format!(
        r#""operations":{operations},"brackets":{brackets},"touches":{touches},"ns":{},"window_ns":{},"checks":{},"wrong":{}"#,
        meter.inside.as_nanos(),
        meter.window.as_nanos(),
        checks.made,
        checks.wrong
    )
}

fn cells(
    [thread, cpu, operations]: [String; 3],
    touches: u64,
    [inside, window]: [String; 2],
    rate: f64,
    checks: u64,
    wrong: u64,
) -> [String; 9] {
    let (touches, rate) = (touches.to_string(), format!("{rate:.0}"));
    [thread, cpu, operations, touches, inside, window, rate, checks.to_string(), wrong.to_string()]
}

fn line(text: &mut String, cells: &[String; 9]) {
    const WIDTHS: [usize; 9] = [7, 5, 12, 10, 11, 14, 12, 11, 7];
    for (cell, width) in cells.iter().zip(WIDTHS) {
        let _ = write!(text, "{cell:>width$}");
    }
    text.push('\n');
}

/// Nanoseconds each, or 0 for none.
fn each(time: Duration, count: u64) -> u128 {
    time.as_nanos().checked_div(count.into()).unwrap_or(0)
}

fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}
