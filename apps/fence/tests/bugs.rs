//! Bugs that are planted must be found, in the right object; programs without any must run.

use std::{
    alloc::{Layout, alloc, dealloc, realloc},
    collections::{BTreeMap, HashMap},
    io::Write,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command, Stdio},
};

#[global_allocator]
static HEAP: fence::FenceAlloc = fence::FenceAlloc::new();

const BUG: &str = "FENCE_TEST_BUG";
const SIZES: [usize; 7] = [1, 7, 16, 100, 4090, 4096, 5001];

/// Name, and what must be said of an object of `size` bytes.
const BUGS: [(&str, &str); 10] = [
    ("read one past", "fence: read 0 bytes past the end of an object of SIZE bytes"),
    ("write one past", "fence: write 0 bytes past the end of an object of SIZE bytes"),
    ("write far past", "fence: write 99 bytes past the end of an object of SIZE bytes"),
    ("copy past", "past the end of an object of SIZE bytes"),
    ("read far before", "bytes before the start of an object of SIZE bytes"),
    ("write just before", "fence: free, and bytes before the start were written: an object of SIZE bytes"),
    ("read after free", "fence: read after free: an object of SIZE bytes"),
    ("write after free", "fence: write after free: an object of SIZE bytes"),
    ("free twice", "fence: free of what was freed: an object of SIZE bytes"),
    ("free the middle", "fence: free of what is not an object: an object of SIZE bytes"),
];

/// Load a byte.
///
/// # Safety
/// None: the loads of these tests are the bugs.
unsafe fn look(at: *const u8) {
    // SAFETY: see above.
    std::hint::black_box(unsafe { at.read_volatile() });
}

/// The bug, on an object of `size` bytes.
fn commit(bug: &str, size: usize) {
    let layout = Layout::from_size_align(size, 1).unwrap();
    // SAFETY: not at all; that is what is tested.
    unsafe {
        let at = alloc(layout);
        at.write_bytes(1, size);
        match bug {
            "read one past" => look(at.add(size)),
            "write one past" => at.add(size).write_volatile(1),
            "write far past" => at.add(size + 99).write_volatile(1),
            "copy past" => {
                let from = [2_u8; 64];
                std::ptr::copy_nonoverlapping(from.as_ptr(), at.add(size), std::hint::black_box(64));
            }
            "read far before" => {
                let pages = size.div_ceil(4096) * 4096;
                look(at.wrapping_sub(pages - size + 1));
            }
            "write just before" => {
                at.wrapping_sub(1).write_volatile(1);
                dealloc(at, layout);
            }
            "read after free" => {
                dealloc(at, layout);
                look(at);
            }
            "write after free" => {
                dealloc(at, layout);
                at.write_volatile(1);
            }
            "free twice" => {
                dealloc(at, layout);
                dealloc(at, layout);
            }
            "free the middle" => dealloc(at.wrapping_add(1), layout),
            "shrink" => {
                let smaller = realloc(at, layout, size / 2);
                std::hint::black_box(smaller);
                look(at.add(size - 1));
            }
            "tail" => {
                let layout = Layout::from_size_align(13, 8).unwrap();
                let at = alloc(layout);
                at.add(14).write_volatile(1);
                dealloc(at, layout);
            }
            _ => unreachable!("no such bug"),
        }
    }
}

/// This test again, with the bug.
fn again(bug: &str, size: usize) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "every_planted_bug_is_found", "--nocapture", "--test-threads=1"])
        .env(BUG, format!("{bug}/{size}"))
        .stdin(Stdio::null());
    command
}

/// Run it; what it said.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.signal(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The process that it starts is refused, from its beginning, guards as by a kernel that has none (they are made by
/// `mprotect`) and to close `len` bytes by `mprotect`, if any.
fn refused(command: &mut Command, len: Option<u32>) -> &mut Command {
    const GUARD_INSTALL: u32 = 102;
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    let load = |k| libc::sock_filter { code: 0x20, jt: 0, jf: 0, k };
    let equals = |k, jt, jf| libc::sock_filter { code: 0x15, jt, jf, k };
    let answer = |k| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k };
    // At 0 is the call's number, at 24 and 32 the low halves of its second and third argument.
    let rule = |call: i64, arguments: &[(u32, u32)], errno: i32| {
        // What does not match goes on behind the rule's answer.
        let mut left = 2 * arguments.len() as u8 + 1;
        let mut all = vec![load(0), equals(call as u32, 0, left)];
        for &(at, value) in arguments {
            left -= 2;
            all.extend([load(at), equals(value, 0, left)]);
        }
        all.push(answer(ERRNO | errno as u32));
        all
    };
    let closes = [(24, len.unwrap_or(u32::MAX)), (32, libc::PROT_NONE as u32)];
    let mut filter = [
        rule(libc::SYS_madvise, &[(32, GUARD_INSTALL)], libc::EINVAL),
        rule(libc::SYS_mprotect, &closes, libc::ENOMEM),
    ]
    .concat();
    filter.push(answer(ALLOW));
    // SAFETY: between fork and exec it makes two calls, with structures that are there already.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0
            {
                return Ok(());
            }
            Err(std::io::Error::last_os_error())
        })
    }
}

/// Whether calls can be refused so. Only Linux has filters.
fn can_refuse() -> bool {
    // SAFETY: numbers.
    let there = unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) } >= 0;
    if !there {
        say("left out: no seccomp filters, so guards can't be refused");
    }
    there
}

#[test]
fn every_planted_bug_is_found() {
    if let Ok(planted) = std::env::var(BUG) {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a valid structure.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
        let (bug, size) = planted.split_once('/').unwrap();
        commit(bug, size.parse().unwrap());
        return;
    }
    let mut found = 0;
    let mut look = |bug: &str, size: usize, what: &str| {
        let (signal, said) = run(&mut again(bug, size));
        let what = what.replace("SIZE", &size.to_string());
        assert!(
            signal == Some(libc::SIGSEGV) || signal == Some(libc::SIGABRT),
            "{bug} of {size}: {signal:?}\n{said}"
        );
        assert!(said.contains(&what), "{bug} of {size} says not {what:?} but:\n{said}");
        found += 1;
    };
    for (bug, what) in BUGS {
        for size in SIZES {
            // An object that fills its pages has no bytes of its slot before it: the store runs into the guard.
            let fills = size.is_multiple_of(4096) && bug == "write just before";
            look(bug, size, if fills { "fence: write 1 bytes before the start" } else { what });
        }
    }
    look("shrink", 100, "fence: read after free: an object of 100 bytes");
    look("tail", 13, "fence: free, and bytes past the end were written: an object of 13 bytes");
    println!("{found} planted bugs, all found");
    assert_eq!(found, 72);
}

#[test]
fn bugs_are_found_where_guards_are_mappings() {
    if !can_refuse() {
        return;
    }
    for (bug, what) in BUGS {
        let (signal, said) = run(refused(&mut again(bug, 100), None));
        assert!(signal == Some(libc::SIGSEGV) || signal == Some(libc::SIGABRT), "{bug}: {signal:?}\n{said}");
        assert!(said.contains(&what.replace("SIZE", "100")), "{bug} says not {what:?} but:\n{said}");
    }
}

/// Each page of an object costs two mappings. The last tenth of them is the program's; the objects that get no guard are the
/// system's, and that there are some is said once.
#[test]
fn the_end_of_guards_is_said_once_and_the_program_goes_on() {
    const TEST: &str = "the_end_of_guards_is_said_once_and_the_program_goes_on";
    const FIRST: &str = "FENCE_TEST_LIMIT";
    if std::env::var_os(FIRST).is_some() {
        let objects: Vec<Box<u64>> = (0..60_000).map(Box::new).collect();
        assert!(objects.iter().zip(0..).all(|(object, i)| **object == i));
        // There are mappings left for a thread's stack.
        std::thread::spawn(|| vec![1_u8; 1 << 20].len()).join().unwrap();
        // What got a guard still has it.
        // SAFETY: not at all.
        unsafe { look(std::ptr::from_ref(&*objects[0]).cast::<u8>().add(8)) };
        return;
    }
    if !can_refuse() {
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", TEST, "--nocapture", "--test-threads=1"]).env(FIRST, "1").stdin(Stdio::null());
    let (signal, said) = run(refused(&mut command, None));
    assert_eq!(signal, Some(libc::SIGSEGV), "{said}");
    assert_eq!(said.matches("fence: no more guards").count(), 1, "{said}");
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    assert!(said.contains(&format!("vm.max_map_count ({})", limit.trim())), "{said}");
    assert!(said.contains("read 0 bytes past the end of an object of 8 bytes"), "{said}");
}

/// What was freed and can't be closed is never handed out again.
#[test]
fn what_stays_open_is_said_once_and_not_used_again() {
    const TEST: &str = "what_stays_open_is_said_once_and_not_used_again";
    const FIRST: &str = "FENCE_TEST_OPEN";
    // Eleven pages, which nobody else allocates. The loader may protect as many, but for reading.
    const LEN: usize = 11 << 12;
    let layout = Layout::from_size_align(LEN, 8).unwrap();
    if std::env::var_os(FIRST).is_some() {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..600 {
            // SAFETY: written within its size, and freed once.
            let at = unsafe { alloc(layout) };
            // SAFETY: see above.
            unsafe { at.write_bytes(1, LEN) };
            assert!(seen.insert(at as usize), "an open slot was handed out again");
            // SAFETY: see above.
            unsafe { dealloc(at, layout) };
        }
        return;
    }
    if !can_refuse() {
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", TEST, "--nocapture", "--test-threads=1"]).env(FIRST, "1").stdin(Stdio::null());
    let output = refused(&mut command, Some(LEN as u32)).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("fence: what was freed can't be closed").count(), 1, "{said}");
}

#[test]
fn programs_without_bugs_run() {
    let words: Vec<String> = (0..3000).map(|i| format!("word {}", i * 7919 % 1000)).collect();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    words.iter().for_each(|word| *counts.entry(word).or_default() += 1);
    let sorted: BTreeMap<_, _> = counts.iter().collect();
    assert_eq!((sorted.len(), sorted.values().copied().sum::<usize>()), (1000, 3000));
    let big: Vec<u64> = (0..300_000).collect();
    assert_eq!(big.iter().sum::<u64>(), 299_999 * 150_000);
    std::thread::scope(|scope| {
        for t in 0..4_usize {
            scope.spawn(move || {
                let mut kept = Vec::new();
                for i in 0..2000_usize {
                    let mut one = vec![t as u8; 1 + i * 37 % 9000];
                    one.push(1);
                    one.shrink_to_fit();
                    assert!(one[..one.len() - 1].iter().all(|&byte| byte == t as u8));
                    if i % 5 == 0 {
                        kept.push(one);
                    }
                }
                kept
            });
        }
    });
}

/// How many objects: a million with `QUIRE_FULL`, where there are the 4 GiB that their pages take, and some more.
fn many() -> u64 {
    let told = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = told.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    let has_room = kib.is_some_and(|kib| kib > 6 << 20);
    match (std::env::var_os("QUIRE_FULL").is_some(), has_room) {
        (true, true) => return 1_000_000,
        (true, false) => say("left out: a million guarded objects need 6 GiB of memory that is available"),
        (false, _) => say("left out: a million guarded objects, which QUIRE_FULL=1 asks for"),
    }
    60_000
}

/// Say it past the harness, which shows what tests print only where they fail.
fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// More than `mprotect` could guard with the usual limit of mappings.
#[test]
fn more_objects_live_at_once_than_there_may_be_mappings() {
    if let Err(reason) = vmprim::guard::works() {
        say(&format!("left out: guards without mappings: {reason}"));
        return;
    }
    let many = many();
    let objects: Vec<Box<u64>> = (0..many).map(Box::new).collect();
    let mappings = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    assert!(objects.iter().zip(0..).all(|(object, i)| **object == i));
    assert!(mappings < 500, "{mappings} mappings");
    say(&format!("fence: {many} guarded objects in {mappings} mappings"));
}
