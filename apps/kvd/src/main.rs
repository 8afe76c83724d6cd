//! The program: `kvd serve`, `load`, `verify`, `bench`, `demo`.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use kvd::{
    bench,
    keeper::{self, Keeper, Refused, Way},
    load,
    server::Server,
    workload::Workload,
};
use snap::Codec;
use vmprim::Backend;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Protect what was written; the first write to a page traps and copies it
    Trap,
    /// Copy in rounds, and the rest in the cut
    Precopy,
    /// Fork a child that writes everything
    Fork,
    /// No checkpoints
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Codecs {
    None,
    Lz4,
}

/// What keeps the memory.
#[derive(Args, Debug)]
struct Keeping {
    /// The folder of the images; made if there is none
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// How checkpoints are made
    #[arg(long, default_value = "trap")]
    mode: Mode,
    /// MiB of memory
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    mem: u64,
    /// KiB for copies of pages that are not written yet
    #[arg(long, value_name = "KIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(4..=1 << 22))]
    pool: u64,
    /// How pages are stored
    #[arg(long, default_value = "none")]
    codec: Codecs,
    /// The mechanism, as vmprim names it: signal, uffd-view, async-dirty, ... [default: the best that works here]
    #[arg(long, value_name = "NAME", value_parser = backend)]
    backend: Option<Backend>,
    /// Let the kernel use large pages, with fork and none
    #[arg(long)]
    huge: bool,
    /// Seconds from one checkpoint to the next
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    every: f64,
}

#[derive(Args, Debug)]
struct Load {
    #[command(flatten)]
    keeping: Keeping,
    /// Of the operations
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Keys
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(128..=1 << 28))]
    keys: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 960, value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    value: u32,
    /// Values of any length up to --value
    #[arg(long)]
    vary: bool,
    /// Of a hundred operations, those that write
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=100))]
    writes: u32,
    /// Operations a second; 0: as many as there can be
    #[arg(long, default_value_t = 50_000)]
    rate: u64,
    /// Seconds of it
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    seconds: f64,
    /// Operations of each thread at most, those of runs before included
    #[arg(long, value_name = "N", default_value_t = u64::MAX)]
    operations: u64,
    /// Say each checkpoint once it is durable
    #[arg(long)]
    says: bool,
    /// Run before ordinary programs, if that is allowed
    #[arg(long)]
    real_time: bool,
    /// At the end, compare the newest image with a model
    #[arg(long)]
    verify: bool,
    /// Write figures to a file; - is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Serve {
    #[command(flatten)]
    keeping: Keeping,
    /// The port, on this host alone
    #[arg(long, default_value_t = 6380)]
    port: u16,
}

#[derive(Args, Debug)]
struct Verify {
    /// The folder of the images of a load
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scale {
    /// A second each, 32 MiB
    Ci,
    /// 20 seconds each, 1 GiB
    Full,
}

#[derive(Args, Debug)]
struct Bench {
    /// The folder to work in
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    dir: PathBuf,
    /// Runs of each mode
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// How much
    #[arg(long, default_value = "full")]
    scale: Scale,
    /// Of the operations
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The mechanism of traps and rounds [default: the best that works here]
    #[arg(long, value_name = "NAME", value_parser = backend)]
    backend: Option<Backend>,
    /// Compare each run's last image with a model
    #[arg(long)]
    verify: bool,
    /// Write figures to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Options of `kvd load`, after --
    #[arg(last = true, value_name = "OPTION")]
    load: Vec<String>,
}

#[derive(Args, Debug)]
struct Demo {
    /// The folder of the images; made if there is none
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve clients
    Serve(Serve),
    /// Do operations inside of the process
    #[command(args_override_self = true)]
    Load(Load),
    /// Compare the newest image of a load with a model
    Verify(Verify),
    /// Compare modes: traps and rounds with a forked child
    Bench(Bench),
    /// Load Debian's dictionary and package index, save, write on, kill the server, and compare what is restored
    Demo(Demo),
}

#[derive(Debug, Parser)]
#[command(name = "kvd", about = "A key-value server whose memory is checkpointed while it serves")]
struct Program {
    #[command(subcommand)]
    command: Command,
}

fn backend(text: &str) -> Result<Backend, String> {
    Backend::named(text).ok_or_else(|| format!("there is {}", Backend::names()))
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.001..=1e6).contains(&seconds) => Ok(seconds),
        _ => Err("a number of seconds, at least 0.001".to_owned()),
    }
}

impl Keeping {
    fn open(&self) -> Result<Keeper, Refused> {
        let way = match self.mode {
            Mode::Trap => Way::Trap,
            Mode::Precopy => Way::PreCopy,
            Mode::Fork => Way::Fork,
            Mode::None => Way::None,
        };
        let codec = if self.codec == Codecs::Lz4 { Codec::Lz4 } else { Codec::None };
        Keeper::open(&keeper::Options {
            way,
            folder: &self.dir,
            mem: (self.mem << 20) as usize,
            pool: (self.pool << 10) as usize,
            codec,
            backend: self.backend.unwrap_or(Backend::Auto),
            huge: self.huge,
        })
    }
}

fn write_json(to: &Path, figures: &serde_json::Value) -> Result<(), String> {
    if to == Path::new("-") {
        println!("{figures}");
        return Ok(());
    }
    std::fs::write(to, format!("{figures}\n"))
        .map_err(|error| format!("cannot write {}: {error}", to.display()))
}

fn serve(options: &Serve) -> Result<(), Refused> {
    let keeper = options.keeping.open()?;
    let listener = TcpListener::bind(("127.0.0.1", options.port)).map_err(|error| {
        Refused::Other(format!("cannot listen on port {}: {error}: name another with --port", options.port))
    })?;
    let port = listener.local_addr().map_or(options.port, |address| address.port());
    let server = Server::new(keeper, port).map_err(Refused::Other)?;
    println!("kvd: {} keys; listening on 127.0.0.1:{port}", server.table().len());
    let every = (options.keeping.mode != Mode::None).then(|| Duration::from_secs_f64(options.keeping.every));
    server.run(&listener, every).map_err(Refused::Other)
}

fn load(options: &Load) -> Result<(), Refused> {
    let Load { seed, threads, keys, value, writes, rate, operations, says, real_time, .. } = *options;
    let workload = Workload { seed, threads, keys, value, varies: options.vary, writes };
    let keeper = options.keeping.open()?;
    let report = load::run(
        &keeper,
        &load::Options {
            workload,
            time: Duration::from_secs_f64(options.seconds),
            operations,
            rate,
            every: Duration::from_secs_f64(options.keeping.every),
            says,
            real_time,
        },
    )
    .map_err(Refused::Other)?;
    let mechanism = keeper.mechanism();
    drop(keeper);
    let mut figures = report.json();
    figures["backend"] = mechanism.into();
    let mut all = report.during.clone();
    all.merge(&report.between);
    figures["all_p999_us"] = (all.quantile(0.999) as f64 / 1e3).into();
    if options.verify {
        let (epoch, keys) = load::verify(&options.keeping.dir).map_err(Refused::Other)?;
        eprintln!("kvd: the image of epoch {epoch} is the model's, {keys} keys");
    }
    match &options.json {
        Some(to) => write_json(to, &figures).map_err(Refused::Other),
        None => {
            let pauses: Vec<f64> = report.cuts.iter().map(|cut| cut.pause.as_secs_f64() * 1e3).collect();
            println!(
                "{} operations in {:.1} s, {} checkpoints, longest pause {:.2} ms; p99.9 {:.3} ms during checkpoints, \
                 {:.3} ms otherwise",
                report.operations,
                report.seconds,
                pauses.len(),
                pauses.iter().copied().fold(0.0, f64::max),
                report.during.quantile(0.999) as f64 / 1e6,
                report.between.quantile(0.999) as f64 / 1e6,
            );
            Ok(())
        }
    }
}

fn run_bench(options: &Bench) -> Result<(), Refused> {
    let mut load = vec![options.dir.display().to_string()];
    let scale: &[&str] = match options.scale {
        Scale::Ci => &["--mem", "64", "--keys", "30000", "--seconds", "1.5", "--every", "0.3"],
        Scale::Full => &["--mem", "1280", "--keys", "1000000", "--seconds", "20", "--real-time"],
    };
    load.extend(scale.iter().map(|&word| word.to_owned()));
    load.extend(["--seed".to_owned(), options.seed.to_string()]);
    if options.verify {
        load.push("--verify".to_owned());
    }
    load.extend(
        options.backend.into_iter().flat_map(|backend| ["--backend".to_owned(), backend.name().to_owned()]),
    );
    load.extend(options.load.iter().cloned());
    let (figures, passes) = bench::bench(options.runs, &load)?;
    if let Some(to) = &options.json {
        write_json(to, &figures).map_err(Refused::Other)?;
    }
    match passes {
        true => Ok(()),
        false => Err(Refused::Other("a target is missed".to_owned())),
    }
}

fn main() -> ExitCode {
    let result = match Program::parse().command {
        Command::Serve(options) => serve(&options),
        Command::Load(options) => load(&options),
        Command::Verify(Verify { dir }) => match load::verify(&dir) {
            Ok((epoch, keys)) => {
                println!("epoch {epoch}: {keys} keys, as the model has them");
                Ok(())
            }
            Err(error) => Err(Refused::Other(error)),
        },
        Command::Bench(options) => run_bench(&options),
        Command::Demo(Demo { dir }) => kvd::demo::run(&dir).map_err(Refused::Other),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Refused::Unsupported(error)) => {
            eprintln!("kvd: {error}; --mode fork needs none of it");
            keeper::MISSING.into()
        }
        Err(Refused::Other(error)) => {
            eprintln!("kvd: {error}");
            ExitCode::FAILURE
        }
    }
}
