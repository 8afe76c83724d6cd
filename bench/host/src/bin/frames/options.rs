//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::{case::IDS, team};

/// What to measure, how often, and where the results go.
#[derive(Clone, Debug, Parser)]
#[command(name = "frames", about = "Measures allocators of page frames side by side: docs/frames-bench.md")]
pub struct Options {
    /// Which workloads, as B1 B3 [default: all]
    #[arg(value_name = "ID", value_parser = id)]
    pub ids: Vec<String>,
    /// Numbers of threads [default: 1, and doubled up to the host's CPUs]
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = threads)]
    pub threads: Vec<usize>,
    /// How often each is measured, in turn with the others
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = count)]
    pub repeats: usize,
    /// How many measurements of each are dropped before that
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub warm_up: usize,
    /// Where random numbers start
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Results of others, measured on this machine: a file of comma-separated values
    #[arg(long, value_name = "FILE")]
    pub import: Vec<PathBuf>,
    /// Write everything to a file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Small memory and few repeats: whether it works, not how fast
    #[arg(long)]
    pub quick: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self::parse_from(["frames"]).completed()
    }
}

impl Options {
    /// From the command line of this process, or what is wrong with it in a line; help ends the process.
    pub fn from_command_line() -> Result<Self, String> {
        Self::try_parse().map(Self::completed).map_err(|error| {
            if !error.use_stderr() {
                error.exit();
            }
            let text = error.to_string();
            text.lines().next().unwrap_or("").trim_start_matches("error: ").to_owned() + "; see frames --help"
        })
    }

    /// With what follows from the host, and from other options.
    fn completed(mut self) -> Self {
        if self.threads.is_empty() {
            let host = team::host_cpus().len();
            self.threads = (0..).map(|power| 1 << power).take_while(|n| *n < host).collect();
            self.threads.push(host);
        }
        self.threads.sort_unstable();
        self.threads.dedup();
        if self.quick {
            self.repeats = self.repeats.min(3);
        }
        self
    }

    /// Whether this workload is to be measured.
    pub fn wants(&self, id: &str) -> bool {
        self.ids.is_empty() || self.ids.iter().any(|one| one == id)
    }
}

fn id(text: &str) -> Result<String, String> {
    let wanted = text.to_ascii_uppercase();
    if IDS.iter().any(|(id, _)| *id == wanted) {
        return Ok(wanted);
    }
    let all: Vec<_> = IDS.iter().map(|(id, _)| *id).collect();
    Err(format!("there is {}", all.join(", ")))
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=percpu::MAX_CPUS) => Ok(n),
        _ => Err(format!("say a number of threads from 1 to {}", percpu::MAX_CPUS)),
    }
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=10_000) => Ok(n),
        _ => Err("say a number from 1 to 10000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Options, String> {
        Options::try_parse_from([&["frames"], words].concat())
            .map(Options::completed)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn workloads_go_by_their_ids() {
        let options = parsed(&["b1", "B10", "--threads", "2,1,2"]).unwrap();
        assert!(options.wants("B1") && options.wants("B10") && !options.wants("B2"));
        assert_eq!(options.threads, [1, 2]);
        assert!(parsed(&[]).unwrap().wants("B9"));
        assert!(parsed(&["B0"]).unwrap_err().contains("there is B1, B2"));
        assert!(parsed(&["--threads", "0"]).unwrap_err().contains("from 1 to"));
        assert_eq!(parsed(&["--quick"]).unwrap().repeats, 3);
    }

    #[test]
    fn all_the_hosts_cpus_are_used() {
        let options = parsed(&[]).unwrap();
        assert_eq!(options.threads.first(), Some(&1));
        assert_eq!(options.threads.last(), Some(&team::host_cpus().len()));
    }
}
