//! Where the kernel refuses: another backend is taken, or the refusal says which step, what the kernel answered,
//! and what to set.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use common::{PAGE, ends_by, in_child, read, succeeds};
use vmprim::{Access, Backend, Errno, Error, Needs, PageNo, PageSet, Reason, Region, Resolution, inline};

const USERFAULTFD: u32 = 323;
const IOCTL: u32 = 16;
const PAGEMAP_SCAN: u32 = 0xc060_6610;
const ANY: u32 = u32::MAX;

/// From here on this process's `call` (with `second` as its second argument, unless that is any) fails with `errno`.
fn forbid(call: u32, second: u32, errno: i32) {
    let load = |k| libc::sock_filter { code: 0x20, jt: 0, jf: 0, k };
    let equals = |k, jt, jf| libc::sock_filter { code: 0x15, jt, jf, k };
    let answer = |k| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k };
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    // Offsets of the call's number and of the low half of its second argument.
    let second = if second == ANY { equals(0, 0, 0) } else { equals(second, 0, 1) };
    let mut filter =
        [load(0), equals(call, 0, 3), load(24), second, answer(ERRNO | errno as u32), answer(ALLOW)];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the structures are valid for the calls.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program), 0);
    }
}

/// All six primitives, on whatever backend is there.
fn everything_works(needs: Needs) -> Backend {
    // SAFETY: it answers.
    let handler = unsafe { inline(|fault, _| Resolution::Grant(fault.wanted)) };
    let region = Region::builder(8 * PAGE).need(needs).inline(handler).build().unwrap();
    let view = region.view::<u64>().unwrap();
    let mut set = PageSet::new();
    region.take_dirty(0..8, &mut set).unwrap();
    set.clear();
    view.set(2 * PAGE / 8, 7);
    region.protect(PageNo(2), Access::Read).unwrap();
    view.set(2 * PAGE / 8, 8);
    region.take_dirty(0..8, &mut set).unwrap();
    assert_eq!(set.iter().collect::<Vec<_>>(), [PageNo(2)]);
    if needs.contains(Needs::ALIAS) {
        region.protect(0..8, Access::None).unwrap();
        let mut word = [0; 8];
        region.alias().unwrap().read_into(2 * PAGE, &mut word).unwrap();
        assert_eq!(u64::from_ne_bytes(word), 8);
    }
    region.backend()
}

const ALL: Needs = Needs::NOTHING;

fn full() -> Needs {
    Needs::ALIAS | Needs::DIRTY | Needs::NONE_LEVEL | Needs::READ_LEVEL
}

#[test]
fn without_userfaultfd_everything_still_works() {
    let output = in_child("without_userfaultfd_everything_still_works", || {
        forbid(USERFAULTFD, ANY, libc::EPERM);
        // The device would do as well, if this process may open it.
        forbid(IOCTL, 0xaa00, libc::EPERM);
        assert_eq!(everything_works(full()), Backend::Signal);
        assert_eq!(everything_works(Needs::DIRTY | Needs::READ_LEVEL), Backend::Signal);
        let only_dirty = Region::builder(PAGE).need(Needs::DIRTY).build().unwrap();
        assert_eq!(only_dirty.backend(), Backend::Signal);

        let error = Region::builder(PAGE).need(Needs::SYSCALLS | ALL).build().unwrap_err();
        let Error::Unsupported { missing, tried } = &error else { panic!("{error}") };
        assert_eq!(*missing, Needs::SYSCALLS);
        let reason =
            tried.iter().find(|(backend, _)| *backend == Backend::AsyncDirty).map(|(_, reason)| reason);
        let Some(Reason::Refused { op: "userfaultfd", errno: Errno(libc::EPERM), hint: Some(hint) }) = reason
        else {
            panic!("{error}")
        };
        assert!(hint.contains("vm.unprivileged_userfaultfd"));
        assert!(error.to_string().starts_with("no backend that works here gives SYSCALLS"), "{error}");

        let named = Region::builder(PAGE).backend(Backend::UffdView).build().unwrap_err();
        assert!(matches!(named, Error::Unsupported { .. }), "{named}");
        let report = vmprim::doctor().to_string();
        assert!(
            report.contains("signal (memfd)") && report.contains("vm.unprivileged_userfaultfd=1"),
            "{report}"
        );
    });
    succeeds(&output);
}

/// What a user who is not root may do with userfaultfd: only faults of user mode.
#[test]
fn without_privileges_the_backends_of_user_mode_work() {
    let output = in_child("without_privileges_the_backends_of_user_mode_work", || {
        // SAFETY: it touches no memory.
        let was_root = unsafe { libc::getuid() } == 0;
        // SAFETY: they touch no memory; a process that is not root has nothing to drop.
        unsafe {
            if was_root {
                assert_eq!(libc::setgid(65_534), 0);
                assert_eq!(libc::setuid(65_534), 0);
                // A process that changed its user is not dumpable, and may not read its own pagemap until it is
                // again.
                libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
            }
        }
        assert!(std::fs::File::open("/dev/userfaultfd").is_err());
        let report = vmprim::doctor();
        for (backend, memory, syscalls, result) in &report.backends {
            if *backend == Backend::Signal {
                assert_eq!(*result, Ok(()));
            }
            let threads = matches!(backend, Backend::UffdThread { .. });
            if threads && *syscalls && report.unprivileged.as_deref() == Some("0") {
                assert!(result.is_err(), "{memory}: faults of the kernel are not for everybody");
            }
        }
        let backend = everything_works(full());
        eprintln!("took {}\n{report}", backend.name());
    });
    succeeds(&output);
    // Kernels from 5.11 on give everybody the faults of user mode.
    if common::ways().iter().any(|way| way.backend == Backend::UffdView) {
        assert!(common::text(&output).contains("took uffd-view"), "{}", common::text(&output));
    }
}

#[test]
fn without_page_scans_dirty_sets_come_from_traps() {
    let output = in_child("without_page_scans_dirty_sets_come_from_traps", || {
        forbid(IOCTL, PAGEMAP_SCAN, libc::ENOTTY);
        let region = Region::builder(4 * PAGE).need(Needs::DIRTY).build().unwrap();
        assert_ne!(region.backend(), Backend::AsyncDirty);
        let named = Region::builder(PAGE).backend(Backend::AsyncDirty).build().unwrap_err();
        let said = named.to_string();
        assert!(said.contains("PAGEMAP_SCAN") && said.contains("Linux 6.7"), "{said}");
        everything_works(full());
    });
    succeeds(&output);
}

/// A kernel that says yes and does nothing is found out by what memory does.
#[test]
fn a_kernel_that_lies_is_found_out() {
    const WRITEPROTECT: u32 = 0xc018_aa06;
    let output = in_child("a_kernel_that_lies_is_found_out", || {
        // Fails with 0: the call is not made, and looks as if it were.
        forbid(IOCTL, WRITEPROTECT, 0);
        let named = Region::builder(PAGE).backend(Backend::UffdWp).build().unwrap_err();
        assert!(named.to_string().contains("does not work here"), "{named}");
        assert_eq!(everything_works(Needs::DIRTY | Needs::READ_LEVEL), Backend::Signal);
    });
    succeeds(&output);
}

/// No mapping is left for the page that a fault opens: the process ends, and says which limit it was and what has none.
#[test]
fn a_fault_without_a_mapping_left_names_the_limit_and_another_backend() {
    const MPROTECT: u32 = 10;
    let output = in_child("a_fault_without_a_mapping_left_names_the_limit_and_another_backend", || {
        let region =
            Region::builder(4 * PAGE).backend(Backend::Signal).initial(Access::None).build().unwrap();
        read(region.base() as usize);
        forbid(MPROTECT, ANY, libc::ENOMEM);
        read(region.base() as usize + 2 * PAGE);
    });
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    let said = format!("raise vm.max_map_count ({}), or use the backend uffd-view", limit.trim());
    ends_by(&output, libc::SIGABRT, &said);
    assert!(common::text(&output).contains("(signal), page 2, read at 0x"), "{}", common::text(&output));
}

/// From here on `command`s of ioctl(2) of this thread's are asked about: the descriptor to answer by.
fn ask_about(commands: [u32; 2]) -> i32 {
    let load = |k| libc::sock_filter { code: 0x20, jt: 0, jf: 0, k };
    let equals = |k, jt, jf| libc::sock_filter { code: 0x15, jt, jf, k };
    let answer = |k| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k };
    let mut filter = [
        load(0),
        equals(IOCTL, 0, 4),
        load(24),
        equals(commands[0], 1, 0),
        equals(commands[1], 0, 1),
        answer(libc::SECCOMP_RET_USER_NOTIF),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the structures are valid for the calls.
    let listener = unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
        libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program)
    };
    assert!(listener >= 0, "seccomp: {}", std::io::Error::last_os_error());
    listener as i32
}

/// Answer what `listener` is asked, for ever: three times of four EAGAIN, as while mappings are changed, and then the call is made.
fn answer_again(listener: i32, refused: &AtomicUsize) {
    const RECEIVE: u64 = 0xc050_2100;
    const SEND: u64 = 0xc018_2101;
    for turn in 0_usize.. {
        // SAFETY: zeros are valid structures, which are valid for the calls.
        unsafe {
            let mut asked = std::mem::zeroed::<libc::seccomp_notif>();
            if libc::ioctl(listener, RECEIVE, &raw mut asked) != 0 {
                return;
            }
            let mut told = std::mem::zeroed::<libc::seccomp_notif_resp>();
            told.id = asked.id;
            if turn % 4 == 3 {
                told.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
            } else {
                told.error = -libc::EAGAIN;
                refused.fetch_add(1, Ordering::Relaxed);
            }
            libc::ioctl(listener, SEND, &raw mut told);
        }
    }
}

/// Userfaultfd answers EAGAIN while the process's mappings change. No level is lost by that, in handlers and outside.
#[test]
fn calls_that_are_to_be_made_again_are() {
    const WRITEPROTECT: u32 = 0xc018_aa06;
    const CONTINUE: u32 = 0xc020_aa07;
    static LISTENER: AtomicI32 = AtomicI32::new(-1);
    static REFUSED: AtomicUsize = AtomicUsize::new(0);
    let output = in_child("calls_that_are_to_be_made_again_are", || {
        let traps = AtomicUsize::new(0);
        let traps: &'static AtomicUsize = Box::leak(Box::new(traps));
        let regions: Vec<_> = common::ways()
            .into_iter()
            .filter(|way| matches!(way.backend, Backend::UffdWp | Backend::UffdView))
            .map(|way| {
                // SAFETY: it counts and answers.
                let handler = unsafe {
                    inline(|fault, _| {
                        traps.fetch_add(1, Ordering::Relaxed);
                        Resolution::Grant(fault.wanted)
                    })
                };
                (way, way.builder(8).inline(handler).build().unwrap())
            })
            .collect();
        if regions.is_empty() {
            eprintln!("left out: no userfaultfd");
            return;
        }
        // The filter is the other thread's alone.
        std::thread::spawn(|| {
            while LISTENER.load(Ordering::Acquire) < 0 {
                std::thread::yield_now();
            }
            answer_again(LISTENER.load(Ordering::Acquire), &REFUSED);
        });
        LISTENER.store(ask_about([WRITEPROTECT, CONTINUE]), Ordering::Release);
        for (way, region) in &regions {
            let view = region.view::<u64>().unwrap();
            (0..8).for_each(|page| _ = view.set(page * PAGE / 8, page as u64));
            let before = REFUSED.load(Ordering::Relaxed);
            traps.store(0, Ordering::Relaxed);
            for round in 1..20 {
                for &level in way.levels().iter().filter(|level| **level < Access::ReadWrite) {
                    region.protect(0..8, level).unwrap();
                    for page in 0..8 {
                        assert_eq!(region.level(PageNo(page)), Some(level));
                        view.set(page * PAGE / 8, round);
                        assert_eq!(view.get(page * PAGE / 8), Some(round), "{way:?}");
                    }
                    assert_eq!(traps.swap(0, Ordering::Relaxed), 8, "{way:?}");
                }
            }
            let refused = REFUSED.load(Ordering::Relaxed) - before;
            assert!(refused > 100, "{way:?}: only {refused} calls were refused");
        }
    });
    succeeds(&output);
}

#[test]
fn a_backend_can_be_named_from_outside() {
    let output =
        common::in_child_with("a_backend_can_be_named_from_outside", &[("VMPRIM_BACKEND", "signal")], || {
            assert_eq!(everything_works(full()), Backend::Signal);
        });
    succeeds(&output);
}

#[test]
fn a_name_from_outside_that_is_no_backend_is_said() {
    let variables = [("VMPRIM_BACKEND", "sigal")];
    let output = common::in_child_with("a_name_from_outside_that_is_no_backend_is_said", &variables, || {
        let error = Region::builder(PAGE).build().unwrap_err();
        assert_eq!(error, Error::NoSuchBackend { name: "sigal".into() });
        let said = error.to_string();
        assert!(said.starts_with("VMPRIM_BACKEND names no backend \"sigal\": there is signal, "), "{said}");
        // The program's own choice stands.
        Region::builder(PAGE).backend(Backend::Signal).build().unwrap();
    });
    succeeds(&output);
}

#[test]
fn what_no_backend_gives_at_once_is_said() {
    // The kernel's tracking has no level Read, and the rest of what has it can't let system calls through on a
    // private file.
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let error = Region::builder(PAGE)
        .backing(vmprim::Backing::File { file, offset: 0, shared: false })
        .need(Needs::SYSCALLS | Needs::READ_LEVEL)
        .build()
        .unwrap_err();
    let Error::Unsupported { tried, .. } = &error else { panic!("{error}") };
    assert!(tried.iter().any(|(_, reason)| matches!(reason, Reason::Lacks(_))), "{error}");
    let range = Region::builder(PAGE + 1).build().unwrap_err();
    assert_eq!(range, Error::Range);
    assert_eq!(Region::builder(4 * PAGE).page(vmprim::PageSize::kib(3)).build().unwrap_err(), Error::Range);
}
