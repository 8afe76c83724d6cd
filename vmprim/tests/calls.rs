//! What the kernel does with protected pages by itself: system calls that write to them, forks, and stacks that lie in them.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{
    io::Write,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{PAGE, in_child, succeeds, ways};
use vmprim::{Access, Error, Needs, PageNo, PageSet, Resolution, inline};

/// Run `body` in a child; how it ended. The child calls nothing that another thread may have locked, but what allocates little.
fn child(body: &dyn Fn()) -> i32 {
    // SAFETY: see above.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: it ends the child if it hangs.
            unsafe { libc::alarm(20) };
            body();
            // SAFETY: it ends the child.
            unsafe { libc::_exit(0) }
        }
        child => {
            let mut status = 0;
            // SAFETY: the status is valid for the call.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            status
        }
    }
}

#[test]
fn a_forked_child_has_no_regions_and_may_make_its_own() {
    for way in ways() {
        let region = way.builder(4).need(Needs::DIRTY).build().unwrap();
        let view = region.view::<u64>().unwrap();
        view.set(3, 17);
        let plain = child(&|| {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: a valid structure; it keeps cores away.
            unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
            view.set(3, 99);
        });
        assert_eq!(libc::WTERMSIG(plain), libc::SIGSEGV, "{way:?}: a write of the child's went somewhere");
        let refused = child(&|| {
            let mut set = PageSet::new();
            let all = [
                region.protect(0..4, Access::Read).err(),
                region.unprotect(0..4, Access::ReadWrite).err(),
                region.take_dirty(0..4, &mut set).err(),
                region.pin(0..1, Access::Read).err(),
            ];
            let forked = all.iter().flatten().all(|error| *error == Error::Forked);
            // SAFETY: it ends the child.
            unsafe { libc::_exit(if forked { 0 } else { 3 }) };
        });
        assert_eq!(refused, 0, "{way:?}");
        let own = child(&|| {
            let own = way.builder(4).initial(*way.levels().last().unwrap()).build().unwrap();
            own.view::<u64>().unwrap().set(9, 9);
        });
        assert_eq!(own, 0, "{way:?}");
        let mut set = PageSet::new();
        region.take_dirty(0..4, &mut set).unwrap();
        assert!(
            set.contains(PageNo(0)) && view.get(3) == Some(17),
            "{way:?}: the parent's region has changed"
        );
        let mut another = std::process::Command::new(std::env::current_exe().unwrap());
        let another = another.args(["--exact", "no_test_of_this_name"]).stdout(std::process::Stdio::null());
        assert!(another.status().unwrap().success());
    }
}

/// A daemon's way: the child leaves the session and forks again, and ends. Its child makes a region of its own.
#[test]
fn a_daemon_makes_its_own_region_and_its_maker_keeps_his() {
    for way in ways() {
        let region = way.builder(4).build().unwrap();
        let view = region.view::<u64>().unwrap();
        let level = *way.levels().last().unwrap();
        view.set(3, 17);
        region.protect(0..4, level).unwrap();
        let mut ends = [0; 2];
        // SAFETY: the array holds both.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        let status = child(&|| {
            // SAFETY: it touches no memory.
            unsafe { libc::setsid() };
            // SAFETY: as in `child`.
            if unsafe { libc::fork() } == 0 {
                // SAFETY: it ends the daemon if it hangs.
                unsafe { libc::alarm(20) };
                let own = way.builder(4).initial(level).build().unwrap();
                own.view::<u64>().unwrap().set(9, 9);
                let is_right = own.view::<u64>().unwrap().get(9) == Some(9)
                    && region.protect(0..1, level) == Err(Error::Forked);
                // SAFETY: a byte; it ends the daemon.
                unsafe {
                    libc::write(ends[1], [u8::from(is_right)].as_ptr().cast(), 1);
                    libc::_exit(0);
                }
            }
        });
        assert_eq!(status, 0, "{way:?}");
        let mut told = [0];
        // SAFETY: ours; and a buffer of a byte.
        let len = unsafe {
            libc::close(ends[1]);
            libc::read(ends[0], told.as_mut_ptr().cast(), 1)
        };
        assert_eq!((len, told), (1, [1]), "{way:?}: the daemon's region");
        // SAFETY: ours.
        unsafe { libc::close(ends[0]) };
        assert_eq!((view.get(3), region.level(PageNo(1))), (Some(17), Some(level)), "{way:?}");
        view.set(3, 18);
        assert_eq!(view.get(3), Some(18), "{way:?}");
    }
}

/// The fork comes while a handler of another thread's holds a page. The child has nothing of it; the thread goes on.
#[test]
fn a_fork_while_another_thread_is_in_a_handler_leaves_both_sound() {
    for way in ways().into_iter().filter(|way| way.has_none || way.has_read) {
        let level = *way.levels().last().unwrap();
        let inside = Arc::new(AtomicBool::new(false));
        let (seen, word) = (inside.clone(), AtomicU32::new(0));
        // SAFETY: it waits for a word of its own, and answers.
        let handler = unsafe {
            inline(move |_, safe| {
                seen.store(true, Ordering::SeqCst);
                safe.park(&word, 0, Duration::from_millis(60));
                Resolution::Grant(Access::ReadWrite)
            })
        };
        let region = way.builder(2).initial(level).inline(handler).build().unwrap();
        let view = region.view::<u64>().unwrap();
        std::thread::scope(|scope| {
            let faults = scope.spawn(|| view.set(0, 5));
            while !inside.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let status = child(&|| {
                let own = way.builder(2).initial(level).build().unwrap();
                own.view::<u64>().unwrap().set(600, 9);
                // SAFETY: it ends the child.
                unsafe { libc::_exit(if own.view::<u64>().unwrap().get(600) == Some(9) { 0 } else { 3 }) };
            });
            assert_eq!(status, 0, "{way:?}");
            assert!(faults.join().unwrap());
        });
        assert_eq!(view.get(0), Some(5), "{way:?}");
        region.protect(0..2, level).unwrap();
        view.set(0, 6);
        assert_eq!(view.get(0), Some(6), "{way:?}");
    }
}

/// Down the stack, so many frames of some hundred bytes; the sum of what they hold.
#[inline(never)]
fn descend(n: usize) -> usize {
    let own = std::hint::black_box([n as u8; 700]);
    let below = if n == 0 { 0 } else { descend(n - 1) };
    assert_eq!(std::hint::black_box(own), [n as u8; 700], "a frame was overwritten");
    below + usize::from(own[n % 700])
}

/// A thread's own stack lies in a region: each page that it grows into traps, and nothing that the fault needs is there.
#[test]
fn a_stack_in_a_region_traps_where_it_grows() {
    let output = in_child("a_stack_in_a_region_traps_where_it_grows", || {
        const FRAMES: usize = 60;
        const PAGES: usize = 64;
        static SUM: AtomicUsize = AtomicUsize::new(0);
        extern "C" fn body() {
            SUM.store(descend(FRAMES), Ordering::SeqCst);
        }
        for way in ways().into_iter().filter(|way| way.has_none || way.has_read) {
            let level = *way.levels().last().unwrap();
            let traps = Arc::new(AtomicUsize::new(0));
            let counts = traps.clone();
            // SAFETY: it counts and answers.
            let handler = unsafe {
                inline(move |_, _| {
                    counts.fetch_add(1, Ordering::SeqCst);
                    Resolution::Grant(Access::ReadWrite)
                })
            };
            let region = way.builder(PAGES).inline(handler).build().unwrap();
            let top = region.base() as usize + PAGES * PAGE;
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    vmprim::attach().unwrap();
                    for _ in 0..5 {
                        region.protect(0..PAGES, level).unwrap();
                        SUM.store(0, Ordering::SeqCst);
                        traps.store(0, Ordering::SeqCst);
                        // SAFETY: nobody else uses the pages, which are stack enough; r12 keeps the thread's own.
                        unsafe {
                            std::arch::asm!(
                                "mov r12, rsp",
                                "mov rsp, {top}",
                                "call {body}",
                                "mov rsp, r12",
                                top = in(reg) top,
                                body = sym body,
                                out("r12") _,
                                clobber_abi("C"),
                            );
                        }
                        assert_eq!(SUM.load(Ordering::SeqCst), FRAMES * (FRAMES + 1) / 2, "{way:?}");
                        let least = FRAMES * 700 / PAGE;
                        assert!(
                            (least..=PAGES).contains(&traps.load(Ordering::SeqCst)),
                            "{way:?}: {traps:?}"
                        );
                    }
                });
            });
        }
    });
    succeeds(&output);
}

/// A call that writes to memory, how many bytes, and what empties its source if it didn't.
struct Call {
    name: &'static str,
    len: usize,
    run: Box<dyn Fn(*mut u8) -> isize>,
    drain: Box<dyn Fn()>,
}

const TEXT: &[u8; 8] = b"kernel, ";

/// Calls by which the kernel writes to memory in different ways. A file system may have no direct ones.
fn calls() -> Vec<Call> {
    fn two(make: impl FnOnce(*mut i32) -> i32) -> [i32; 2] {
        let mut ends = [0; 2];
        assert_eq!(make(ends.as_mut_ptr()), 0);
        ends
    }
    // SAFETY: arrays of two.
    let pipe = two(|ends| unsafe { libc::pipe(ends) });
    // SAFETY: see above.
    let pair = two(|ends| unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, ends) });
    // SAFETY: eight bytes; the kernel checks the other addresses, here and below.
    let fill = |end| unsafe { assert_eq!(libc::write(end, TEXT.as_ptr().cast(), 8), 8) };
    let drains = |end| {
        // SAFETY: a buffer of eight bytes.
        move || unsafe { assert_eq!(libc::read(end, [0_u8; 8].as_mut_ptr().cast(), 8), 8) }
    };
    let mut calls = vec![
        Call {
            name: "read",
            len: 8,
            run: Box::new(move |to| {
                fill(pipe[1]);
                // SAFETY: see above.
                unsafe { libc::read(pipe[0], to.cast(), 8) }
            }),
            drain: Box::new(drains(pipe[0])),
        },
        Call {
            name: "readv",
            len: 8,
            run: Box::new(move |to| {
                fill(pipe[1]);
                let parts = [0, 3].map(|at| libc::iovec {
                    iov_base: to.wrapping_add(at).cast(),
                    iov_len: if at == 0 { 3 } else { 5 },
                });
                // SAFETY: see above.
                unsafe { libc::readv(pipe[0], parts.as_ptr(), 2) }
            }),
            drain: Box::new(drains(pipe[0])),
        },
        Call {
            name: "recv",
            len: 8,
            run: Box::new(move |to| {
                fill(pair[1]);
                // SAFETY: see above.
                unsafe { libc::recv(pair[0], to.cast(), 8, 0) }
            }),
            drain: Box::new(drains(pair[0])),
        },
    ];
    match direct() {
        Ok(file) => calls.push(Call {
            name: "a direct read",
            len: PAGE,
            // SAFETY: see above.
            run: Box::new(move |to| unsafe { libc::pread(file.as_raw_fd(), to.cast(), PAGE, 0) }),
            drain: Box::new(|| ()),
        }),
        Err(error) => eprintln!("left out: direct reads: {error}"),
    }
    calls
}

/// A file whose reads go around the kernel's cache.
fn direct() -> std::io::Result<OwnedFd> {
    let path = std::env::temp_dir().join(format!("vmprim-direct-{}", std::process::id()));
    let mut file = std::fs::File::create(&path)?;
    file.write_all(TEXT)?;
    file.set_len(PAGE as u64)?;
    file.sync_all()?;
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
    std::fs::remove_file(&path)?;
    opened.map(OwnedFd::from)
}

/// What a system call does with a protected page, by backend; and with a pinned one.
#[test]
fn system_calls_into_protected_pages() {
    for call in calls() {
        for way in ways() {
            let context = format!("{}, {way:?}", call.name);
            let region = way.builder(4).need(Needs::DIRTY).build().unwrap();
            let level = if way.has_none { Access::None } else { *way.levels().last().unwrap() };
            region.view::<u8>().unwrap().set(PAGE, 1);
            let mut set = PageSet::new();
            region.take_dirty(0..4, &mut set).unwrap();
            region.protect(0..4, level).unwrap();
            set.clear();
            region.take_dirty(0..4, &mut set).unwrap();
            set.clear();
            let all = call.len as isize;
            let run = || (call.run)(region.base().wrapping_add(PAGE));
            let wrote = run();
            let native = way.backend == vmprim::Backend::Native;
            let goes_through = !way.is_in_thread() || native || way.tracks && !way.memfd;
            // As root the descriptor is told of the kernel's faults too.
            let is_root = std::fs::File::open("/dev/userfaultfd").is_ok();
            if way.is_in_thread() || is_root {
                assert_eq!(wrote, if goes_through { all } else { -1 }, "{context}");
            }
            if wrote != all {
                (call.drain)();
            } else {
                region.take_dirty(0..4, &mut set).unwrap();
                assert!(set.contains(PageNo(1)), "{context}: a write of the kernel's is not in the set");
                region.protect(0..4, level).unwrap();
                set.clear();
            }
            let pin = region.pin(1..2, Access::ReadWrite).unwrap();
            assert_eq!(run(), all, "{context}");
            assert!(
                matches!(region.protect(0..4, level), Err(Error::Pinned { page: PageNo(1) })),
                "{context}"
            );
            assert!(!region.try_evict(&[PageNo(1)], level).unwrap().contains(PageNo(1)));
            region.take_dirty(0..4, &mut set).unwrap();
            assert!(set.contains(PageNo(1)), "{context}: a pinned page is not in the set");
            drop(pin);
            set.clear();
            region.take_dirty(0..4, &mut set).unwrap();
            assert!(
                set.contains(PageNo(1)),
                "{context}: what a device may have written last is not in the set"
            );
            region.protect(0..4, level).unwrap();
            assert_eq!(region.view::<u8>().unwrap().get(PAGE), Some(b'k'));
        }
    }
}
