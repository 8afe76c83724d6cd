//! What the Rust standard library needs of the system: threads, locks, channels, parking, time, files, directories,
//! child processes with pipes, and the guard page that turns a stack overflow into a message and an abort.
//!
//! Every section checks itself; the output is the same on every right run. `rust_threads [THREADS]`, 4 by default.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, OnceLock, RwLock, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn locks_and_scoped_threads(threads: usize) {
    let map = Mutex::new(HashMap::new());
    let table = RwLock::new(vec![0u64; threads]);
    let counter = AtomicU64::new(0);
    let barrier = Barrier::new(threads);
    thread::scope(|scope| {
        for id in 0..threads {
            let (map, table, counter, barrier) = (&map, &table, &counter, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for i in 0..1000u64 {
                    *map.lock().unwrap().entry(i % 10).or_insert(0u64) += i;
                    // Relaxed: only the total after the join is read, and the join orders it.
                    counter.fetch_add(1, Ordering::Relaxed);
                    if i % 100 == 0 {
                        table.write().unwrap()[id] += 1;
                        assert!(table.read().unwrap().iter().all(|&n| n <= 10));
                    }
                }
            });
        }
    });
    let map: BTreeMap<_, _> = map.into_inner().unwrap().into_iter().collect();
    assert_eq!(map.values().sum::<u64>(), 499_500 * threads as u64);
    assert_eq!(map[&3], (0..100).map(|i| i * 10 + 3).sum::<u64>() * threads as u64);
    assert_eq!(counter.into_inner(), 1000 * threads as u64);
    assert!(table.into_inner().unwrap().iter().all(|&n| n == 10));
}

fn channels(threads: usize) {
    let (to_workers, jobs) = mpsc::sync_channel::<u64>(4);
    let (done, results) = mpsc::channel();
    let jobs = Arc::new(Mutex::new(jobs));
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let (jobs, done) = (jobs.clone(), done.clone());
            thread::spawn(move || {
                loop {
                    let job = jobs.lock().unwrap().recv();
                    match job {
                        Ok(n) => done.send((n, n * n)).unwrap(),
                        Err(_) => return,
                    }
                }
            })
        })
        .collect();
    drop(done);
    for n in 0..500 {
        to_workers.send(n).unwrap();
    }
    drop(to_workers);
    let squares: BTreeMap<_, _> = results.iter().collect();
    assert_eq!(squares.len(), 500);
    assert!(squares.iter().all(|(n, square)| n * n == *square));
    for worker in workers {
        worker.join().unwrap();
    }
    let (_keep, silent) = mpsc::channel::<()>();
    let start = Instant::now();
    assert_eq!(silent.recv_timeout(Duration::from_millis(15)), Err(mpsc::RecvTimeoutError::Timeout));
    assert!(start.elapsed() >= Duration::from_millis(15));
}

fn parking_and_condvars(threads: usize) {
    static TURN: OnceLock<(Mutex<usize>, Condvar)> = OnceLock::new();
    let (turn, changed) = TURN.get_or_init(Default::default);
    thread::scope(|scope| {
        for id in 0..threads {
            scope.spawn(move || {
                for round in 0..20 {
                    let mut now =
                        changed.wait_while(turn.lock().unwrap(), |t| *t != round * threads + id).unwrap();
                    *now += 1;
                    changed.notify_all();
                }
            });
        }
    });
    assert_eq!(*turn.lock().unwrap(), 20 * threads);
    let (ready, started) = mpsc::channel();
    let parked = thread::spawn(move || {
        ready.send(()).unwrap();
        thread::park();
        7
    });
    started.recv().unwrap();
    parked.thread().unpark();
    assert_eq!(parked.join().unwrap(), 7);
}

fn thread_locals_and_stacks(threads: usize) {
    thread_local!(static OWN: std::cell::RefCell<Vec<usize>> = const { std::cell::RefCell::new(Vec::new()) });
    fn depth(n: usize) -> usize {
        let frame = std::hint::black_box([n as u8; 1000]);
        if n == 0 { frame.len() } else { depth(n - 1) + usize::from(frame[n % 1000] == n as u8) }
    }
    let workers: Vec<_> = (0..threads)
        .map(|id| {
            let body = move || {
                OWN.with_borrow_mut(|own| own.extend(0..id));
                let deep = depth(1000);
                (OWN.with_borrow(Vec::len), deep, thread::current().name().map(String::from))
            };
            thread::Builder::new().name(format!("worker {id}")).stack_size(4 << 20).spawn(body).unwrap()
        })
        .collect();
    for (id, worker) in workers.into_iter().enumerate() {
        assert_eq!(worker.join().unwrap(), (id, 2000, Some(format!("worker {id}"))));
    }
    OWN.with_borrow(|own| assert!(own.is_empty()));
}

fn time() {
    let (start, wall) = (Instant::now(), SystemTime::now());
    thread::sleep(Duration::from_millis(10));
    assert!(start.elapsed() >= Duration::from_millis(10));
    assert!(wall.elapsed().unwrap() < Duration::from_secs(60));
    assert!(wall.duration_since(UNIX_EPOCH).unwrap() > Duration::from_secs(1_600_000_000));
    let mut last = Instant::now();
    for _ in 0..10_000 {
        let now = Instant::now();
        assert!(now >= last);
        last = now;
    }
}

fn files_and_directories() -> io::Result<()> {
    let dir = std::env::temp_dir().join(format!("quire-rust-{}", std::process::id()));
    fs::create_dir_all(dir.join("a/b"))?;
    let path = dir.join("a/b/lines");
    let mut file = File::create(&path)?;
    for i in 0..2000 {
        writeln!(file, "line {i}")?;
    }
    drop(file);
    assert_eq!(
        BufReader::new(File::open(&path)?).lines().filter(|l| l.as_ref().unwrap().ends_with('7')).count(),
        200
    );
    OpenOptions::new().append(true).open(&path)?.write_all(b"end")?;
    let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
    file.seek(SeekFrom::End(-3))?;
    let mut tail = String::new();
    file.read_to_string(&mut tail)?;
    assert_eq!(tail, "end");
    file.write_all_at(b"LINE", 0)?;
    file.set_len(6)?;
    assert_eq!(fs::read(&path)?, b"LINE 0");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o777, 0o600);
    fs::rename(&path, dir.join("moved"))?;
    assert_eq!(fs::copy(dir.join("moved"), dir.join("copy"))?, 6);
    std::os::unix::fs::symlink("copy", dir.join("link"))?;
    assert_eq!(fs::canonicalize(dir.join("a/../link"))?.file_name().unwrap(), "copy");
    let mut names: Vec<_> =
        fs::read_dir(&dir)?.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["a", "copy", "link", "moved"]);
    assert_eq!(File::open(dir.join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(File::create_new(dir.join("copy")).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    fs::remove_dir_all(&dir)?;
    assert!(!dir.exists());
    Ok(())
}

fn this(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(role);
    command
}

fn child_processes(threads: usize) -> io::Result<()> {
    // Many at once, from several threads: each pipes its own text through a child and back.
    thread::scope(|scope| {
        for id in 0..threads {
            scope.spawn(move || {
                let mut child = this("upper").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
                let text = format!("text of {id}\n").repeat(2000);
                let mut input = child.stdin.take().unwrap();
                let written = text.clone();
                let writer = thread::spawn(move || input.write_all(written.as_bytes()).unwrap());
                let output = child.wait_with_output().unwrap();
                writer.join().unwrap();
                assert!(output.status.success());
                assert_eq!(String::from_utf8(output.stdout).unwrap(), text.to_uppercase());
            });
        }
    });
    let output = this("environment").env_clear().env("QUIRE_TEST", "a b=c").output()?;
    assert_eq!(output.stdout, b"QUIRE_TEST=a b=c\n");
    assert_eq!(this("status").status()?.code(), Some(42));
    assert_eq!(this("abort").status()?.signal(), Some(libc::SIGABRT));
    let mut child = this("sleep").spawn()?;
    assert!(child.try_wait()?.is_none());
    child.kill()?;
    assert_eq!(child.wait()?.signal(), Some(libc::SIGKILL));
    assert_eq!(Command::new("/none/such").spawn().unwrap_err().kind(), io::ErrorKind::NotFound);
    Ok(())
}

fn stack_overflow() -> io::Result<()> {
    for role in ["overflow", "overflow-in-thread"] {
        let output = this(role).output()?;
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{role}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("overflowed its stack"), "{role}");
    }
    Ok(())
}

#[allow(unconditional_recursion, reason = "the overflow is the point")]
fn overflow(n: u64) -> u64 {
    let frame = std::hint::black_box([n; 64]);
    overflow(n + 1) + frame[n as usize % 64]
}

/// What a child of this program does; None if `role` is not one.
fn play(role: &str) -> Option<()> {
    match role {
        "upper" => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).unwrap();
            print!("{}", text.to_uppercase());
        }
        "environment" => {
            for (name, value) in std::env::vars() {
                println!("{name}={value}");
            }
        }
        "status" => std::process::exit(42),
        "abort" => std::process::abort(),
        "sleep" => thread::sleep(Duration::from_secs(60)),
        "overflow" => println!("{}", overflow(0)),
        "overflow-in-thread" => println!("{}", thread::spawn(|| overflow(0)).join().unwrap()),
        _ => return None,
    }
    Some(())
}

fn main() -> io::Result<()> {
    let argument = std::env::args().nth(1);
    if argument.as_deref().and_then(play).is_some() {
        return Ok(());
    }
    let threads = argument.map_or(4, |n| n.parse().expect("the argument is the number of threads"));
    let ok = |section: &str| println!("ok {section}");
    locks_and_scoped_threads(threads);
    ok("locks_and_scoped_threads");
    channels(threads);
    ok("channels");
    parking_and_condvars(threads);
    ok("parking_and_condvars");
    thread_locals_and_stacks(threads);
    ok("thread_locals_and_stacks");
    time();
    ok("time");
    files_and_directories()?;
    ok("files_and_directories");
    child_processes(threads)?;
    ok("child_processes");
    stack_overflow()?;
    ok("stack_overflow");
    println!("rust_threads: all checks passed");
    Ok(())
}
