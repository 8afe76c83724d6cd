//! `cargo quire report`: everything that was measured, as one HTML file that opens with the answer.

mod chart;
mod page;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{
    args::Report,
    results::{self, Point, Results},
    ui, workspace,
};
use page::Group;

/// Write the report; the exit status.
pub fn run(options: &Report) -> Result<u8> {
    let mut all = Results { version: results::VERSION, ..Results::default() };
    for file in &options.files {
        all.merge(Results::read(file)?);
    }
    if options.files.is_empty() {
        all = results::kept()?;
        if all.records.is_empty() {
            ui::say("nothing was measured yet: measuring a few points first");
            all = crate::bench::quick()?;
        }
    }
    let out = options.out.clone().unwrap_or_else(default_place);
    let text = page::page(&all)?;
    if let Some(folder) = out.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    std::fs::write(&out, text).with_context(|| format!("cannot write {}", out.display()))?;
    ui::result(&answer(&all).sentence);
    ui::result(&format!("report: {}", out.display()));
    Ok(0)
}

fn default_place() -> PathBuf {
    workspace::target("quire").join("report/index.html")
}

/// What the report says first, and which benchmark that is about.
struct Answer {
    sentence: String,
    group: Option<Group>,
}

/// The benchmark that says most: `local` with most pages, if it was measured with several CPUs; at the greatest number
/// of CPUs that every system has. Variants are asked only if there is nothing else.
fn answer(results: &Results) -> Answer {
    let mut usual = results.clone();
    usual.records.retain(|record| record.point.variant.is_none());
    let results = if usual.records.is_empty() { results } else { &usual };
    let counted: Vec<&Point> =
        results.records.iter().filter(|r| r.metric == "transfers").map(|r| &r.point).collect();
    let rank = |p: &Point| (p.bench == "local", p.cpus > 1, p.npages);
    let Some(first) = counted.iter().max_by_key(|p| rank(p)) else {
        return Answer { sentence: "Nothing was counted yet.".to_owned(), group: None };
    };
    let group = Group::of(first);
    let lines = page::lines(results, &group, "transfers");
    let common = |cpus: u32| lines.iter().all(|line| line.points.iter().any(|p| p.0 == cpus));
    let all = lines.iter().flat_map(|line| &line.points).map(|p| p.0);
    let cpus = all.clone().filter(|&cpus| common(cpus)).max().or_else(|| all.max()).unwrap_or(1);
    let mut parts: Vec<(f64, String)> = lines
        .iter()
        .filter_map(|line| Some((line.points.iter().find(|p| p.0 == cpus)?.1, line.name.clone())))
        .collect();
    parts.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut told: Vec<_> =
        parts.iter().map(|(n, name)| format!("{} on {name}", page::cell(Some(*n)))).collect();
    if let Some(fewest) = told.first_mut() {
        *fewest = fewest.replacen(" on ", " cache lines between CPUs on ", 1);
    }
    let last = if told.len() > 1 { told.pop() } else { None };
    let list = told.join(", ") + &last.map_or(String::new(), |last| format!(" and {last}"));
    let sentence = format!("With {cpus} CPUs, each operation of {} moves {list}.", first.title());
    Answer { sentence, group: Some(group) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::sample;

    #[test]
    fn the_answer_compares_the_systems_where_all_were_measured() {
        let mut results = sample();
        assert_eq!(
            answer(&results).sentence,
            "With 80 CPUs, each operation of local, 4 pages moves 700 cache lines between CPUs on Quire locked \
             and 900 on Linux 6.12."
        );
        let mut control = results.records[0].clone();
        control.point.variant = Some("--processes --plant-shared-counter".into());
        results.records.push(control.clone());
        assert!(!answer(&results).sentence.contains("plant"));
        let alone = Results { records: vec![control], ..Results::default() };
        assert!(answer(&alone).sentence.contains("Quire locked --processes --plant-shared-counter"));
        results.records.retain(|r| r.point.system != "linux" || r.point.cpus < 80);
        assert!(answer(&results).sentence.starts_with("With 8 CPUs"));
        assert_eq!(answer(&Results::default()).group, None);
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let text = page::page(&sample()).unwrap();
        for outside in ["http://", "https://", "<script", "@import", "url("] {
            let allowed = text.matches("http://www.w3.org/2000/svg").count();
            let found = text.matches(outside).count();
            assert!(found == 0 || (outside == "http://" && found == allowed), "{outside}");
        }
        assert!(text.contains("Locked+0x40 &lt;heap&gt;") && text.contains("clear_page"));
        assert_eq!(text.matches("<svg").count(), 4);
    }
}
