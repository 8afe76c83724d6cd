//! Loads inside of the process, by every mechanism that the system has and both ways to make images, with a checkpoint
//! now and then; also ones that are killed. Each image is compared with the model. It needs no network and no other
//! program, so that a kernel without either runs it too.

#[path = "../../../vmprim/tests/common/must.rs"]
mod must;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use kvd::{
    keeper::{self, Keeper, Refused, Way},
    load,
    workload::Workload,
};
use snap::Codec;
use vmprim::Backend;

/// Names the folder of a load that is to be killed.
const CHILD: &str = "KVD_TEST_FOLDER";

const WAYS: [Way; 2] = [Way::Trap, Way::PreCopy];

fn open(folder: &Path, way: Way, backend: Backend, codec: Codec) -> Result<Keeper, Refused> {
    // A pool of few pages: some writes wait.
    Keeper::open(&keeper::Options { way, folder, mem: 2 << 20, pool: 16 << 12, codec, backend, huge: false })
}

/// Operations until each thread has done so many, and a checkpoint every 20 ms.
fn run(keeper: &Keeper, seed: u64, operations: u64, says: bool) -> load::Report {
    let workload = Workload { seed, threads: 2, keys: 600, value: 300, varies: true, writes: 60 };
    load::run(
        keeper,
        &load::Options {
            workload,
            time: Duration::from_secs(60),
            operations,
            rate: 0,
            every: Duration::from_millis(20),
            says,
            real_time: false,
        },
    )
    .unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn images_under_load_are_the_model_s_by_every_mechanism() {
    let mut missing = Vec::new();
    for (seed, backend) in (1..).zip([Backend::Auto].into_iter().chain(Backend::ALL)) {
        for way in WAYS {
            let codec = if seed % 2 == 0 { Codec::Lz4 } else { Codec::None };
            let folder = tempfile::tempdir().unwrap();
            let mut before = 0;
            // The second load goes on from the first one's image.
            for operations in [3000, 6000] {
                let keeper = match open(folder.path(), way, backend, codec) {
                    Ok(keeper) => keeper,
                    Err(Refused::Unsupported(_)) => {
                        missing.push((backend, way));
                        break;
                    }
                    Err(Refused::Other(error)) => panic!("{backend:?} {way:?}: {error}"),
                };
                let report = run(&keeper, seed, operations, false);
                assert_eq!(report.failed, 0);
                drop(keeper);
                let (epoch, keys) = load::verify(folder.path())
                    .unwrap_or_else(|error| panic!("{backend:?} {way:?}, seed {seed}: {error}"));
                println!(
                    "{} {way:?}: {} cuts, epoch {epoch}, {keys} keys",
                    backend.name(),
                    report.cuts.len()
                );
                assert!(epoch > before);
                before = epoch;
            }
        }
    }
    println!("not on this system: {missing:?}");
    // Some can't: write protection is of anonymous memory, which has no alias; who tracks writes has no level Read.
    let can = |backend, way| match backend {
        Backend::UffdWp => false,
        Backend::AsyncDirty => way == Way::PreCopy,
        _ => true,
    };
    let musts = Backend::ALL.into_iter().filter(|&backend| must::is_must(backend));
    for backend in [Backend::Auto].into_iter().chain(musts) {
        for way in WAYS.into_iter().filter(|&way| can(backend, way)) {
            assert!(!missing.contains(&(backend, way)), "{backend:?} must work here by {way:?}");
        }
    }
}

/// A load in a process of its own, by what works best.
fn spawn(folder: &Path, way: Way) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_load_that_is_killed_loses_nothing_that_was_durable", "--nocapture"])
        .env(CHILD, folder)
        .env("KVD_TEST_WAY", if way == Way::Trap { "trap" } else { "precopy" })
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_load_that_is_killed_loses_nothing_that_was_durable() {
    if let Some(folder) = std::env::var_os(CHILD) {
        let is_trap = std::env::var("KVD_TEST_WAY").is_ok_and(|way| way == "trap");
        let way = if is_trap { Way::Trap } else { Way::PreCopy };
        let keeper = open(Path::new(&folder), way, Backend::Auto, Codec::None).ok().unwrap();
        run(&keeper, 77, u64::MAX, true);
        return;
    }
    let mut random = fastrand::Rng::with_seed(5);
    let folder = tempfile::tempdir().unwrap();
    let mut epochs = 0;
    for kill in 0..6 {
        let mut child = spawn(folder.path(), WAYS[kill % 2]);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let epoch = |line: String| line.strip_prefix("epoch ").and_then(|epoch| epoch.parse::<u64>().ok());
        // What the harness prints is passed over.
        let mut said = lines.by_ref().map_while(Result::ok).find_map(epoch).unwrap();
        std::thread::sleep(Duration::from_micros(random.u64(..60_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        said = lines.map_while(Result::ok).filter_map(epoch).fold(said, u64::max);
        assert!(said > epochs, "{said} after {epochs}");
        let (epoch, _) = load::verify(folder.path()).unwrap_or_else(|error| panic!("kill {kill}: {error}"));
        assert!(epoch >= said, "kill {kill}: epoch {epoch} was restored, and {said} was durable");
        epochs = said;
    }
}
