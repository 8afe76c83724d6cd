//! What the tests share: the ways a region can be made here, random numbers that a seed repeats, and scenarios that
//! end a process.
#![allow(dead_code, unused_macros, reason = "each test uses some of it")]

mod must;

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, Output, Stdio},
};

pub use must::is_must;
use vmprim::{Access, Backend, Backing, Builder, Error, PageNo, Reason, Region};

pub const PAGE: usize = 4096;

/// A region whose handler is `f`.
macro_rules! region {
    ($pages:expr, $level:expr, $f:expr) => {{
        // SAFETY: each handler of these tests keeps the rules, but for the one that its test is about.
        let handler = unsafe { vmprim::inline($f) };
        vmprim::Region::builder($pages * common::PAGE)
            .need(vmprim::Needs::NONE_LEVEL)
            .initial($level)
            .inline(handler)
            .build()
            .unwrap()
    }};
}

/// The byte there.
pub fn read(at: usize) -> u8 {
    // SAFETY: each test says what is there.
    unsafe { (at as *const u8).read_volatile() }
}

/// A page's level, once it is `expected`, or after five seconds. A thread that reads faults lets the access go on before it has stored
/// the level; where there is none nothing is waited for.
pub fn level_of(way: &Way, region: &Region, page: usize, expected: Access) -> Option<Access> {
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(5);
    let level = || region.level(PageNo(page));
    while !way.is_in_thread() && level() != Some(expected) && std::time::Instant::now() < patience {
        std::thread::yield_now();
    }
    level()
}

/// A backend on a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub backend: Backend,
    pub memfd: bool,
    pub has_none: bool,
    pub has_read: bool,
    /// The kernel tracks writes.
    pub tracks: bool,
}

const fn way(backend: Backend, memfd: bool, has_none: bool, has_read: bool) -> Way {
    Way {
        backend,
        memfd,
        has_none,
        has_read,
        tracks: matches!(backend, Backend::AsyncDirty | Backend::Native),
    }
}

const THREADS: Backend = Backend::UffdThread { threads: 2 };

/// Every way there is; those that this kernel refuses are said and left out, unless they must be there.
pub fn ways() -> Vec<Way> {
    let all = [
        way(Backend::Signal, false, true, true),
        way(Backend::Signal, true, true, true),
        way(Backend::UffdWp, false, false, true),
        way(Backend::UffdView, true, true, true),
        way(THREADS, false, false, true),
        way(THREADS, true, true, true),
        way(Backend::AsyncDirty, false, false, false),
        way(Backend::AsyncDirty, true, true, false),
        way(Backend::Native, false, true, true),
        way(Backend::Native, true, true, true),
    ];
    let works = |way: &Way| match way.builder(1).build() {
        Ok(_) => true,
        // A kernel may refuse; one that takes the calls and does something else is for a person to look at.
        Err(Error::Unsupported { tried, .. })
            if tried.iter().all(|(_, reason)| matches!(reason, Reason::Refused { .. })) =>
        {
            assert!(!is_must(way.backend), "{way:?} must work here: {tried:?}");
            eprintln!("left out: {tried:?}");
            false
        }
        Err(error) => panic!("{way:?}: {error}"),
    };
    all.into_iter().filter(works).collect()
}

impl Way {
    pub fn builder(&self, pages: usize) -> Builder {
        let backing = if self.memfd { Backing::Memfd } else { Backing::Anon };
        Region::builder(pages * PAGE).backing(backing).backend(self.backend)
    }
    /// The levels it has.
    pub fn levels(&self) -> Vec<Access> {
        let mut levels = vec![Access::ReadWrite];
        if self.has_read {
            levels.push(Access::Read);
        }
        if self.has_none {
            levels.push(Access::None);
        }
        levels
    }
    /// Faults are handled in the thread that faulted.
    pub fn is_in_thread(&self) -> bool {
        self.backend != THREADS
    }
}

/// Random numbers (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Run `scenario` in a process of its own, which is this test again; how it ended. Returns nothing in that process
/// only if the scenario returned, and then not at all: it exits with 0.
pub fn in_child(test: &str, scenario: impl FnOnce()) -> Output {
    in_child_with(test, &[], scenario)
}

pub fn in_child_with(test: &str, variables: &[(&str, &str)], scenario: impl FnOnce()) -> Output {
    const CHILD: &str = "VMPRIM_TEST_CHILD";
    if std::env::var(CHILD).is_ok_and(|name| name == test) {
        no_core();
        scenario();
        std::process::exit(0);
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, test);
    command.envs(variables.iter().copied()).stdin(Stdio::null());
    command.output().unwrap()
}

fn no_core() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is valid for the call.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
    // A scenario that hangs ends.
    // SAFETY: it touches no memory.
    unsafe { libc::alarm(60) };
}

/// A scenario that must succeed.
pub fn succeeds(output: &Output) {
    assert!(output.status.success(), "{:?}\n{}", output.status, text(output));
}

/// A scenario that must end by `signal`, and say `what`.
pub fn ends_by(output: &Output, signal: i32, what: &str) {
    assert_eq!(output.status.signal(), Some(signal), "{:?}\n{}", output.status, text(output));
    assert!(text(output).contains(what), "does not say {what:?}:\n{}", text(output));
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
