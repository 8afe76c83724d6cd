//! Suites that run by themselves, each a program for this host: what may follow their name, and which options of `bench` they take.

use std::process::Command;

use anyhow::Result;

use super::{apps, host, primitives, refcache};
use crate::{
    args::{Bench, Locked},
    failure::{USAGE, failure},
};

/// A suite that is not run together with others.
pub struct Alone {
    /// Its name.
    pub name: &'static str,
    /// What may follow the name.
    follows: &'static str,
    /// The options of `bench` that it takes.
    takes: &'static str,
    /// The package and the program that it is.
    pub program: (&'static str, &'static str),
    /// Run it, with the words that follow its name; its exit status.
    run: fn(&Alone, &[String], &Bench) -> Result<u8>,
}

const OWN: &str = "--json only; its own options come after --";

const HOST: &str = "quire-bench-host";

/// A suite whose program takes the words after its name, and options of its own.
const fn own(name: &'static str, follows: &'static str, program: (&'static str, &'static str)) -> Alone {
    Alone { name, follows, takes: OWN, program, run: side_by_side }
}

/// Look-ups of regions, allocators of page frames, what processes' memory costs in bookkeeping, read-copy-update, references,
/// user-level memory primitives, and applications of them.
pub const ALL: [Alone; 7] = [
    Alone {
        name: apps::NAME,
        follows: " [APPLICATION…] [-- OPTIONS]",
        takes: OWN,
        program: ("quire-kvd", "kvd"),
        run: apps::run,
    },
    own("bonsai", " [-- OPTIONS]", (HOST, "bonsai")),
    own("frames", " [ID…] [-- OPTIONS]", (HOST, "frames")),
    Alone {
        name: "memory",
        follows: " [SHAPE…]",
        takes: "--shapes, --record, --output and --json only",
        program: ("quire-bench-memory", "memory"),
        run: memory,
    },
    own("rcu", " [BENCH…] [-- OPTIONS]", (HOST, "rcu")),
    Alone {
        name: refcache::NAME,
        follows: "",
        takes: "--cpus, --operations, --quantum, --seed, --all, --resume, --native and --json only",
        program: (HOST, refcache::NAME),
        run: refcache::run,
    },
    Alone {
        name: primitives::NAME,
        follows: " [ROW…] [-- OPTIONS]",
        takes: "--operations with --cpus, --vs, --linux, --aspace, --quantum, --seed, --all and --json; or --json only, and its own options after --",
        program: ("quire-bench-vmprim", "vmprim-bench"),
        run: primitives::run,
    },
];

/// Run the suite of this kind that is wanted; its exit status, or `None` if none is.
pub fn run(options: &Bench) -> Result<Option<u8>> {
    let find = |name: &String| ALL.iter().find(|suite| suite.name == name);
    let (first, names) = match options.suites.split_first() {
        Some((first, rest)) => (find(first), rest),
        None => (None, &[] as &[String]),
    };
    if first.is_none_or(|suite| suite.name != "memory")
        && (options.shapes.is_some() || options.record.is_some())
    {
        let text = "--shapes, --record and --output are about the suite memory: name it first";
        return Err(failure(USAGE, text));
    }
    if let Some(suite) = first {
        return (suite.run)(suite, names, options).map(Some);
    }
    let other = options.suites.iter().find_map(find);
    let by_itself = |suite: &Alone| {
        let Alone { name, follows, .. } = suite;
        failure(USAGE, format!("{name} is a suite by itself: cargo quire bench {name}{follows}"))
    };
    if let Some(suite) = other {
        return Err(by_itself(suite));
    }
    if !options.words.is_empty() {
        let has_own = |suite: &&Alone| suite.follows.ends_with("[-- OPTIONS]");
        let names: Vec<_> = ALL.iter().filter(has_own).map(|suite| suite.name).collect();
        return Err(failure(
            USAGE,
            format!("options after -- are of one of the suites {}", names.join(", ")),
        ));
    }
    Ok(None)
}

impl Alone {
    /// What to say if there are `others` than the options that it takes.
    pub fn refuse(&self, others: bool) -> Result<()> {
        match others {
            true => Err(failure(USAGE, format!("of bench, {} takes {}", self.name, self.takes))),
            false => Ok(()),
        }
    }
    /// Refuse names after its own.
    pub fn refuse_names(&self, names: &[String]) -> Result<()> {
        match names.first() {
            Some(name) => {
                let Self { name: suite, follows, .. } = self;
                let text = format!("{suite} has nothing called {name}: cargo quire bench {suite}{follows}");
                Err(failure(USAGE, text))
            }
            None => Ok(()),
        }
    }
}

/// Whether there are options about machines, which suites for this host do not take.
pub fn of_machines(options: &Bench) -> bool {
    let plain = Bench::default();
    !options.mode.is_empty()
        || !options.pairs.is_empty()
        || (options.npages, options.operations, options.vs) != (None, None, None)
        || (options.quantum, options.seed, options.linux) != (None, None, None)
        || (&options.cpus, options.accel) != (&plain.cpus, plain.accel)
        || options.resume
        || options.steady
        || options.all
        || options.pagetable.is_some()
        || options.exclude.is_some()
        || options.locked != Locked::default()
        || options.plant_shared_counter
        || options.first_touch
        || options.processes
        || options.native
}

/// A program that sets Quire's mechanisms beside their peers.
pub fn side_by_side(suite: &Alone, names: &[String], options: &Bench) -> Result<u8> {
    suite.refuse(of_machines(options))?;
    if suite.name == "bonsai" {
        suite.refuse_names(names)?;
    }
    host::run(suite.program, |command| {
        command.args(names);
        add_path(command, "--json", options.json.as_ref());
        command.args(&options.words);
    })
}

/// What processes' memory costs in bookkeeping (`bench/memory`).
fn memory(suite: &Alone, names: &[String], options: &Bench) -> Result<u8> {
    suite.refuse(of_machines(options) || !options.words.is_empty())?;
    host::run(suite.program, |command| {
        command.args(names);
        add_path(command, "--shapes", options.shapes.as_ref());
        add_path(command, "--output", options.output.as_ref());
        add_path(command, "--json", options.json.as_ref());
        options.record.iter().for_each(|pid| _ = command.arg("--record").arg(pid.to_string()));
    })
}

fn add_path(command: &mut Command, option: &str, path: Option<&std::path::PathBuf>) {
    path.into_iter().for_each(|path| _ = command.arg(option).arg(path));
}
