//! `cargo quire bench apps`: the applications on `vmprim` beside their peers, one table. Each program measures by itself, prints its
//! own figures as it goes, and says its rows as JSON: application, backend, peer, what, ratio, and the target if there is one.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    alone::{self, Alone},
    host,
};
use crate::{
    args::Bench,
    failure::{USAGE, failure},
    ui, workspace,
};

/// The suite's name.
pub const NAME: &str = "apps";

/// An application, the package and program that measures it, and the words that let it.
const PROGRAMS: [(&str, (&str, &str), &[&str]); 2] =
    [("fence", ("quire-fence", "fence-bench"), &[]), ("kvd", ("quire-kvd", "kvd"), &["bench"])];

/// Run it; 1 if a target is missed or a program fails.
pub fn run(suite: &Alone, names: &[String], options: &Bench) -> Result<u8> {
    suite.refuse(alone::of_machines(options))?;
    if let Some(unknown) = names.iter().find(|name| PROGRAMS.iter().all(|(known, ..)| known != name)) {
        let all: Vec<_> = PROGRAMS.iter().map(|(name, ..)| *name).collect();
        return Err(failure(USAGE, format!("no application {unknown}: there is {}", all.join(", "))));
    }
    let folder = workspace::target("quire").join("apps");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (mut rows, mut status) = (Vec::new(), 0);
    for (name, program, words) in PROGRAMS {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        let figures = folder.join(format!("{name}.json"));
        let _ = std::fs::remove_file(&figures);
        let ended = host::run(program, |command| {
            command.args(words).arg("--json").arg(&figures).args(&options.words).current_dir(&folder);
        })?;
        status = status.max(ended);
        // A program that said nothing has said why.
        if figures.exists() {
            rows.extend(read(&figures)?);
        }
    }
    let (table, met) = table(&rows);
    ui::result(table.trim_end());
    if let Some(path) = &options.json {
        let text = format!("{}\n", json!({ "rows": rows }));
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if met { status } else { 1 })
}

fn read(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let said: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
    Ok(said["rows"].as_array().cloned().unwrap_or_default())
}

/// The table, and whether every target is met.
fn table(rows: &[Value]) -> (String, bool) {
    let mut text = "| application | backend | peer | what | ratio | target | |\n".to_owned();
    text += "| --- | --- | --- | --- | --- | --- | --- |\n";
    let mut all = true;
    for row in rows {
        let word = |name: &str| row[name].as_str().unwrap_or("?");
        let ratio = row["ratio"].as_f64().unwrap_or(f64::NAN);
        let (target, verdict) = match row["target"].as_f64() {
            None => (String::new(), ""),
            Some(target) => {
                let met = ratio <= target;
                all &= met;
                (format!("{target:.2}"), if met { "pass" } else { "FAIL" })
            }
        };
        let words = ["application", "backend", "peer", "what"].map(word).join(" | ");
        text += &format!("| {words} | {ratio:.2} | {target} | {verdict} |\n");
    }
    (text, all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_target_and_one_without_a_figure_fail() {
        let row = |ratio: Value, target: Value| json!({ "application": "a", "backend": "b", "peer": "p", "what": "w", "ratio": ratio, "target": target });
        let (text, met) = table(&[row(json!(0.5), json!(0.7)), row(json!(3.0), Value::Null)]);
        assert!(
            met && text.ends_with("| a | b | p | w | 0.50 | 0.70 | pass |\n| a | b | p | w | 3.00 |  |  |\n"),
            "{text}"
        );
        assert!(!table(&[row(json!(0.8), json!(0.7))]).1);
        assert!(!table(&[row(Value::Null, json!(0.7))]).1);
    }
}
