//! What the kernel can check of its files while it runs. Random operations are compared with an oracle that is too
//! simple to be wrong.

use alloc::{collections::VecDeque, format, string::String, sync::Arc, vec, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};

use super::{
    cpio::Archive,
    directory::{self, Directory, Existing},
    entry::{self, Entry},
    inode::{Inode, Kind, Volume},
    io::KernelBuffer,
    line::{Line, Received},
    path::{self, Follow, Start},
    pipe::Pipe,
    store::{Store, WriteAt},
};
use crate::{
    errno::Errno,
    hw::{self, selftest::Test},
    process, sched,
    task::Task,
    wait,
};

/// All tests of files, by name.
pub const TESTS: &[(&str, Test)] = &[
    ("a malformed boot image gives an error", malformed_image),
    ("the terminal edits lines", terminal_edits_lines),
    ("paths lead where they say", paths),
    ("a file holds what was written", store_against_oracle),
    ("a pipe gives what it took, in order", pipe_against_oracle),
    ("threads that rename and walk at once leave a tree", renames_leave_a_tree),
];

fn check(ok: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if ok { Ok(()) } else { Err(what()) }
}

fn named(e: Errno) -> String {
    format!("{e:?}")
}

/// Numbers that look random (Knuth's MMIX generator), the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

fn append_item(out: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let fields = [1, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    out.extend_from_slice(b"070701");
    fields.iter().for_each(|f| out.extend(format!("{f:08x}").bytes()));
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn malformed_image() -> Result<(), String> {
    let mut image = Vec::new();
    for i in 0..5 {
        append_item(&mut image, &format!("./d{i}/f"), 0o100_644, &vec![7; 13 * i]);
    }
    append_item(&mut image, "TRAILER!!!", 0, b"");
    let whole = Archive::new(&image).filter(Result::is_ok).count();
    check(whole == 5, || format!("{whole} of 5 entries"))?;
    for cut in 1..image.len() {
        let part = image.get(..cut).unwrap_or(&[]);
        let bad = Archive::new(part).any(|i| i.is_err());
        let complete = Archive::new(part).filter(Result::is_ok).count() == 5;
        check(bad || complete, || format!("cut at {cut} went unnoticed"))?;
    }
    let mut random = Random(1);
    for round in 0..5000 {
        let mut spoilt = image.clone();
        for _ in 0..3 {
            let at = random.below(spoilt.len());
            if let Some(byte) = spoilt.get_mut(at) {
                *byte = random.below(256) as u8;
            }
        }
        let escapes = |name: &[u8]| name.split(|&b| b == b'/').any(|part| part == b"..");
        let out = Archive::new(&spoilt).filter_map(Result::ok).any(|i| escapes(i.name));
        check(!out, || format!("a name left the tree in round {round}"))?;
    }
    Ok(())
}

fn terminal_edits_lines() -> Result<(), String> {
    let mut line = alloc::boxed::Box::new(Line::new());
    let mut screen = Vec::new();
    let mut keys = |line: &mut Line, keys: &[u8]| {
        let mut last = Received::Taken;
        keys.iter().for_each(|&k| last = line.receive(k, &mut |b| screen.extend_from_slice(b)));
        last
    };
    let read = |line: &mut Line| {
        let mut out = [0; 64];
        let n = line.read(&mut out);
        out.get(..n).unwrap_or(&[]).to_vec()
    };
    keys(&mut line, b"helxx\x7f\x7flo wor\x17word\r");
    check(read(&mut line) == b"hello word\n", || "erase and word erase".into())?;
    keys(&mut line, b"gone\x15kept\rnext\r");
    check(read(&mut line) == b"kept\n" && read(&mut line) == b"next\n", || "kill, and a line a read".into())?;
    keys(&mut line, b"part\x04");
    check(read(&mut line) == b"part" && !line.readable(), || "the end-of-file key ends a line".into())?;
    keys(&mut line, b"\x04");
    check(line.readable() && read(&mut line).is_empty(), || "the end-of-file key alone is an end".into())?;
    let interrupt = keys(&mut line, b"dropped\x03");
    check(interrupt == Received::Signal(2) && !line.readable(), || "interrupt".into())?;
    keys(&mut line, b"caf\xc3\xa9\x7fe\r");
    check(read(&mut line) == b"cafe\n", || "erase takes a whole character".into())?;
    keys(&mut line, &[b'a'; 5000]);
    check(keys(&mut line, b"\r") == Received::Taken, || "an overlong line can be ended".into())?;
    check(keys(&mut line, b"b") == Received::Full, || "input waits while a full line is unread".into())?;
    check(screen.starts_with(b"helxx\x08 \x08\x08 \x08lo wor"), || "echo".into())
}

fn make(parent: &Arc<Entry>, name: &str, kind: Kind) -> Result<Arc<Entry>, String> {
    directory::create(parent, name.as_bytes(), Inode::new(kind, 0o777, Volume::Root)).map_err(named)
}

fn paths() -> Result<(), String> {
    let root = entry::new_root();
    let link = |to: &str| Kind::Symlink(to.as_bytes().into());
    let a = make(&root, "a", Kind::Directory(Directory::new()))?;
    let b = make(&a, "b", Kind::Directory(Directory::new()))?;
    make(&b, "file", Kind::File(Store::new(&[])))?;
    make(&b, "up", link("../.."))?;
    make(&root, "direct", link("/a/b"))?;
    make(&root, "loop", link("loop"))?;
    make(&root, "dangling", link("nowhere"))?;
    let long = "x".repeat(256);
    let cases: &[(&str, Result<&str, Errno>)] = &[
        ("a/b/file", Ok("/a/b/file")),
        ("/a//b/./file", Ok("/a/b/file")),
        ("a/../../a/b", Ok("/a/b")),
        ("direct/file", Ok("/a/b/file")),
        ("direct/up/a", Ok("/a")),
        ("direct", Ok("/a/b")),
        ("/", Ok("/")),
        ("a/b/file/", Err(Errno::ENOTDIR)),
        ("a/b/file/x", Err(Errno::ENOTDIR)),
        ("a/none", Err(Errno::ENOENT)),
        ("a/none/x", Err(Errno::ENOENT)),
        ("dangling", Err(Errno::ENOENT)),
        ("loop", Err(Errno::ELOOP)),
        ("", Err(Errno::ENOENT)),
        (&long, Err(Errno::ENAMETOOLONG)),
    ];
    for (path, expected) in cases {
        let found = path::existing(&root, Start::At(&root), path.as_bytes(), Follow::Always);
        let found = found.map(|e| String::from_utf8_lossy(&e.path().unwrap_or_default()).into_owned());
        check(found.as_deref().map_err(|e| *e) == *expected, || format!("{path}: {found:?}"))?;
    }
    super::empty(root);
    Ok(())
}

fn store_against_oracle() -> Result<(), String> {
    static IMAGE: [u8; 5000] = [b'i'; 5000];
    let mut random = Random(2);
    for round in 0..20 {
        let (store, mut oracle) = (Store::new(&IMAGE), IMAGE.to_vec());
        for step in 0..200 {
            let (at, len) = (random.below(40_000), random.below(9000));
            match random.below(5) {
                0 => {
                    let bytes = vec![step as u8; len];
                    oracle.resize(oracle.len().max(if len > 0 { at + len } else { 0 }), 0);
                    oracle.iter_mut().skip(at).take(len).for_each(|b| *b = step as u8);
                    store.write(WriteAt::Offset(at as u64), &mut bytes.as_slice()).map_err(named)?;
                }
                1 => {
                    let bytes = vec![step as u8; len];
                    oracle.extend_from_slice(&bytes);
                    store.write(WriteAt::End, &mut bytes.as_slice()).map_err(named)?;
                }
                2 => {
                    oracle.resize(at, 0);
                    store.set_size(at as u64).map_err(named)?;
                }
                3 => {
                    oracle.iter_mut().skip(at).take(len).for_each(|b| *b = 0);
                    store.punch(at as u64, len as u64).map_err(named)?;
                }
                _ => {
                    let mut bytes = vec![0xff; len];
                    let n = store.read(at as u64, &mut KernelBuffer { free: &mut bytes }).map_err(named)?;
                    let expected: Vec<u8> = oracle.iter().skip(at).take(len).copied().collect();
                    check(bytes.get(..n) == Some(expected.as_slice()), || {
                        format!("round {round}, step {step}")
                    })?;
                }
            }
            check(store.size() == oracle.len() as u64, || format!("size in round {round}, step {step}"))?;
            if oracle.len() > 200_000 {
                oracle.truncate(1000);
                store.set_size(1000).map_err(named)?;
            }
        }
    }
    Ok(())
}

fn pipe_against_oracle() -> Result<(), String> {
    let pipe = Pipe::new().map_err(named)?;
    let _ends = super::PipeEnd::new(pipe.clone(), true, true);
    let (mut oracle, mut random) = (VecDeque::new(), Random(3));
    for step in 0..5000 {
        match random.below(8) {
            0..4 => {
                let bytes: Vec<u8> = (0..random.below(9000)).map(|i| (i + step) as u8).collect();
                match pipe.write(&mut bytes.as_slice(), false) {
                    Ok(n) => oracle.extend(bytes.iter().take(n)),
                    Err(Errno::EAGAIN) => {}
                    Err(e) => return Err(named(e)),
                }
            }
            4..7 => {
                let mut bytes = vec![0; 1 + random.below(9000)];
                let n = match pipe.read(&mut KernelBuffer { free: &mut bytes }, false) {
                    Ok(n) => n,
                    Err(Errno::EAGAIN) => 0,
                    Err(e) => return Err(named(e)),
                };
                let expected: Vec<u8> = oracle.drain(..n.min(oracle.len())).collect();
                check(bytes.get(..n) == Some(expected.as_slice()), || format!("step {step}"))?;
            }
            _ => match pipe.set_capacity(4096 << random.below(6)) {
                Ok(_) | Err(Errno::EBUSY) => {}
                Err(e) => return Err(named(e)),
            },
        }
        check(pipe.available() == oracle.len(), || format!("count at step {step}"))?;
    }
    Ok(())
}

fn renames_leave_a_tree() -> Result<(), String> {
    const THREADS: u64 = 8;
    const NAMES: [&[u8]; 4] = [b"a", b"b", b"c", b"d"];
    /// Some directory, at most three levels down.
    fn somewhere(root: &Arc<Entry>, random: &mut Random) -> Arc<Entry> {
        let mut at = root.clone();
        for _ in 0..random.below(4) {
            at = match NAMES.get(random.below(4)).map(|n| at.lookup(n)) {
                Some(Ok(child)) if child.inode.kind.is_directory() => child,
                _ => break,
            };
        }
        at
    }
    /// Walk a path, and say what it leads to is called.
    fn look(root: &Arc<Entry>, start: Start<'_>, path: &[u8]) -> Result<(), Errno> {
        path::existing(root, start, path, Follow::Always)?.path().map(drop)
    }
    fn meddle(root: &Arc<Entry>, seed: u64) {
        let mut random = Random(seed);
        for _ in 0..2000 {
            let (from, to) = (somewhere(root, &mut random), somewhere(root, &mut random));
            let mut name = || NAMES.get(random.below(4)).copied().unwrap_or(b"a");
            let (old, new) = (name(), name());
            // Most of these fail, for every reason there is.
            let _ = match random.below(8) {
                0 | 1 => {
                    let kind = Kind::Directory(Directory::new());
                    directory::create(&from, old, Inode::new(kind, 0o777, Volume::Root)).map(drop)
                }
                2 => directory::rmdir(&from, old),
                3 | 4 => look(root, Start::At(&from), &[old, b"..", new, new, b"..", old].join(&b'/')),
                5 => directory::rename((&from, old), (&to, new), [false; 2], Existing::Exchange),
                _ => directory::rename((&from, old), (&to, new), [false; 2], Existing::Replace),
            };
        }
    }
    let before = directory::capacity().1;
    let root = entry::new_root();
    let kernel = process::supervisor().ok_or("no kernel process")?;
    let done = Arc::new(AtomicU64::new(0));
    for seed in 0..THREADS {
        let (root, done) = (root.clone(), done.clone());
        let work = move || {
            meddle(&root, seed);
            // Release: with the Acquire below, the tree is as the thread left it.
            done.fetch_add(1, Ordering::Release);
        };
        sched::start(Task::kernel(kernel.clone(), work).ok_or("no memory for a thread")?);
    }
    let deadline = hw::timer::now() + 60_000_000_000;
    // Acquire: see above.
    while done.load(Ordering::Acquire) < THREADS {
        check(hw::timer::now() < deadline, || "the threads did not end".into())?;
        wait::pause_until(hw::timer::now() + 1_000_000);
    }
    let mut left = vec![root.clone()];
    while let Some(at) = left.pop() {
        let Kind::Directory(directory) = &at.inode.kind else { continue };
        let mut children = Vec::new();
        directory.list(0, |_, child| {
            children.push(child.clone());
            true
        });
        let (links, expected) = (at.inode.meta().links as usize, 2 + children.len());
        check(links == expected, || format!("{links} links for {} children", children.len()))?;
        check(children.iter().all(|c| Arc::ptr_eq(&c.parent(), &at)), || {
            "a child of two directories".into()
        })?;
        left.extend(children);
    }
    super::empty(root);
    check(directory::capacity().1 == before, || "names were miscounted".into())
}
