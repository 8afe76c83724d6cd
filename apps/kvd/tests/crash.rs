//! Loads that are killed, run out of disk, or find a damaged file: what is restored is what the model says, no older
//! than the last checkpoint that was said to be durable.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use kvd::load::verify;

fn load(folder: &Path, mode: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvd"));
    command.args([
        "load",
        "--says",
        "--vary",
        "--threads",
        "2",
        "--keys",
        "600",
        "--value",
        "300",
        "--mem",
        "4",
    ]);
    command.args(["--rate", "20000", "--every", "0.02", "--mode", mode, "--dir"]).arg(folder).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Kill it after a while; the last epoch that it has said.
fn kill(mut child: Child, after: Duration) -> u64 {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.next().map_or(String::new(), Result::unwrap);
    let epoch = |line: &str| line.strip_prefix("epoch ").and_then(|epoch| epoch.parse::<u64>().ok());
    let mut last = epoch(&first).unwrap_or_else(|| {
        let mut text = String::new();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        panic!("it says {first:?}, and {text}")
    });
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    // A line may be cut short.
    while let Some(Ok(line)) = lines.next() {
        last = epoch(&line).unwrap_or(last).max(last);
    }
    last
}

/// Kill loads, each of which goes on from what the one before has left; anew after a few.
fn killed(kills: u32, mode: &str, seed: u64) {
    println!("{mode}, seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut folder = tempfile::tempdir().unwrap();
    let (mut epochs, mut newer) = (0, 0);
    for kill_number in 0..kills {
        if kill_number % 8 == 0 {
            (folder, epochs) = (tempfile::tempdir().unwrap(), 0);
        }
        let child = load(folder.path(), mode, &["--seed", &seed.to_string()]).spawn().unwrap();
        let said = kill(child, Duration::from_micros(random.u64(..120_000)));
        assert!(said > epochs, "{said} after {epochs}");
        epochs = said;
        let (epoch, _) = verify(folder.path()).unwrap_or_else(|error| panic!("kill {kill_number}: {error}"));
        assert!(epoch >= said, "kill {kill_number}: epoch {epoch} was restored, and {said} was durable");
        newer += u32::from(epoch > said);
    }
    println!("{kills} kills, {newer} after an image was durable and before it was said");
}

/// How often: `QUIRE_FULL` or `KVD_KILLS=N` for more.
fn kills(few: u32) -> u32 {
    let number = std::env::var("KVD_KILLS").ok().and_then(|text| text.parse().ok());
    number.unwrap_or(if std::env::var_os("QUIRE_FULL").is_some() { 250 } else { few })
}

#[test]
fn a_load_that_is_killed_loses_nothing_that_was_durable_by_traps() {
    killed(kills(16), "trap", 1);
}

#[test]
fn a_load_that_is_killed_loses_nothing_that_was_durable_by_rounds() {
    killed(kills(16), "precopy", 2);
}

#[test]
fn a_load_that_is_killed_loses_nothing_that_was_durable_by_fork() {
    killed(8, "fork", 3);
}

/// Set how large files of a process may become.
fn limit(child: &Child, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit is valid, and nothing is asked for.
    let result = unsafe {
        libc::prlimit(child.id().cast_signed(), libc::RLIMIT_FSIZE, &raw const limit, std::ptr::null_mut())
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_disk_that_takes_no_more_is_told_and_the_image_stays() {
    for mode in ["trap", "precopy"] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = load(folder.path(), mode, &["--seconds", "0.6", "--verify"]);
        // A write beyond the limit is to be an error, not the end.
        let ignore = || {
            // SAFETY: called in a child before it is another program.
            unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
            Ok(())
        };
        // SAFETY: it allocates nothing.
        unsafe { command.pre_exec(ignore) };
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "epoch 1");
        limit(&child, 8192);
        std::thread::sleep(Duration::from_millis(200));
        let (during, _) = verify(folder.path()).unwrap();
        limit(&child, libc::RLIM_INFINITY);
        let later: Vec<u64> = lines
            .filter_map(|line| line.unwrap().strip_prefix("epoch ").and_then(|epoch| epoch.parse().ok()))
            .collect();
        let run = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(run.status.success(), "{said}");
        let line = said.lines().find(|line| line.contains("cannot write the image")).unwrap_or_default();
        let end = "File too large (os error 27); the image before it stands, and the next one will have what it lacks";
        assert!(line.ends_with(end), "{said}");
        assert!(later.last().is_some_and(|&last| last > during), "{later:?} after {during}");
    }
}

#[test]
fn a_damaged_image_is_told_and_the_one_before_restored() {
    let folder = tempfile::tempdir().unwrap();
    let run = load(folder.path(), "trap", &["--seconds", "0.1", "--every", "0.03"]).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let (epoch, _) = verify(folder.path()).unwrap();
    assert!(epoch > 1);
    let delta = folder.path().join(format!("{epoch}.delta"));
    let mut bytes = std::fs::read(&delta).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 16;
    std::fs::write(&delta, bytes).unwrap();
    // If it was folded at once, nothing is lost.
    let base = folder.path().join(format!("{epoch}.base"));
    if base.exists() {
        std::fs::remove_file(base).unwrap();
    }
    assert_eq!(verify(folder.path()).unwrap().0, epoch - 1);
    let run = load(folder.path(), "trap", &["--seconds", "0.1", "--verify"]).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "{said}");
    let lost = format!("kvd: epoch {} is restored, not {epoch}: what came after it is lost", epoch - 1);
    assert!(said.contains(&format!("{epoch}.delta")) && said.contains(&lost), "{said}");
}

#[test]
fn mistakes_are_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let fails = |more: &[&str]| {
        let run = load(folder.path(), "trap", more).output().unwrap();
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(!run.status.success() && said.lines().count() == 1, "{said}");
        said
    };
    assert!(fails(&["--keys", "100000"]).contains("give --mem more"));
    assert!(load(folder.path(), "trap", &["--seconds", "0.05"]).output().unwrap().status.success());
    assert!(fails(&["--seed", "9"]).contains("another workload"));
    assert!(fails(&["--mem", "5"]).contains("open it with as many"));
    let own = snap::Folder::open(folder.path()).unwrap();
    assert!(fails(&[]).contains("in use by another process"));
    drop(own);
    let missing = Command::new(env!("CARGO_BIN_EXE_kvd"))
        .args(["verify", "--dir", "/nowhere/at/all"])
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(1));
    let run = load(folder.path(), "trap", &["--backend", "uffd-wp"]).output().unwrap();
    assert_eq!(run.status.code(), Some(77), "{}", String::from_utf8_lossy(&run.stderr));
}

#[test]
fn the_statuses_tell_what_is_missing_from_what_is_mistaken() {
    let folder = tempfile::tempdir().unwrap();
    let bench = |backend: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvd"));
        command.args(["bench", "--runs", "1", "--scale", "ci", "--backend", backend, "--dir"]);
        command.arg(folder.path()).output().unwrap()
    };
    // Of anonymous memory alone, so no memory of `snap`'s has it anywhere.
    let (absent, typo) = (bench("uffd-wp"), bench("uffd"));
    let said = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(absent.status.code(), Some(77), "{}", said(&absent));
    assert_eq!(typo.status.code(), Some(2), "{}", said(&typo));
    assert!(said(&typo).contains("there is signal, uffd-wp, "), "{}", said(&typo));
    let mut command = load(&folder.path().join("images"), "trap", &["--seconds", "0.1"]);
    let run = command.env("VMPRIM_BACKEND", "sigal").output().unwrap();
    assert_eq!(run.status.code(), Some(1));
    assert!(said(&run).contains("VMPRIM_BACKEND names no backend \"sigal\""), "{}", said(&run));
}
