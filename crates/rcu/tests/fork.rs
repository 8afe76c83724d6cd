//! `fork` while another thread is in a section, and another retires. A file of its own: the child has this one thread.
#![cfg(not(any(loom, shuttle)))]

use std::{
    panic::{self, AssertUnwindSafe},
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use rcu::{Ptr, domain, user::Mode};

/// What a child returns that can't try what it is for.
const UNABLE: i32 = 77;

/// How a child ends that returns what `f` does. If it takes too long, an alarm ends it.
fn in_child(f: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child calls what is safe to call there: domains, which are held at the fork, the allocator, and `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: no arguments of ours; `_exit` ends the child, and nothing else.
        unsafe {
            libc::alarm(10);
            libc::_exit(f());
        }
    }
    assert!(child > 0, "no child");
    let mut status = -1;
    // SAFETY: the status is this frame's.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    status
}

#[test]
fn the_child_waits_for_none_of_the_others() {
    static AT: Ptr<u64> = Ptr::none();
    let (entered, stop) = (Barrier::new(3), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let _section = rcu::read();
            entered.wait();
            while !stop.load(Ordering::SeqCst) {
                thread::yield_now();
            }
        });
        scope.spawn(|| {
            entered.wait();
            while !stop.load(Ordering::SeqCst) {
                AT.assign(Box::new(1), &mut ()).into_iter().for_each(rcu::call);
            }
        });
        // The forking thread's own section is open in the child too.
        rcu::register();
        rcu::user::global().set_limit(1 << 20);
        entered.wait();
        for _ in 0..20 {
            let section = rcu::read();
            let status = in_child(|| {
                let need = rcu::user::global().snap();
                let blocked = !rcu::user::global().poll(need);
                drop(section);
                let over = rcu::user::global().poll(need);
                let waited = rcu::synchronize().is_ok() && rcu::barrier().is_ok();
                if blocked && over && waited { 0 } else { 1 }
            });
            assert_eq!(status, 0, "in the child something went wrong");
        }
        stop.store(true, Ordering::SeqCst);
    });
    rcu::barrier().unwrap();
}

/// A child that is refused `membarrier` is ended before anything is freed.
#[test]
fn nothing_is_freed_without_a_barrier() {
    const CALL: u32 = libc::SYS_membarrier as u32;
    const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    let mut steps = [
        // The number of the system call; if it is that one, go on; refuse it; allow the others.
        step((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0),
        step((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 1, CALL),
        step((libc::BPF_RET | libc::BPF_K) as u16, 0, REFUSE),
        step((libc::BPF_RET | libc::BPF_K) as u16, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    let status = in_child(|| {
        domain!(static DOMAIN: Brand);
        let mut reader = DOMAIN.register();
        // SAFETY: the filter is this function's; it changes nothing but what this process may call.
        let filtered = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) == 0
        };
        if !filtered || DOMAIN.mode() == Mode::Fences {
            return UNABLE;
        }
        _ = panic::catch_unwind(AssertUnwindSafe(|| reader.synchronize()));
        1
    });
    let unable = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == UNABLE;
    assert!(unable || libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGABRT, "{status:#x}");
}

/// Another thread is freeing, over the limit, and never goes on in the child.
#[test]
fn what_another_thread_was_freeing_leaves_room() {
    domain!(static DOMAIN: Brand);
    static BIG: Ptr<Big, Brand> = Ptr::none();
    static SMALL: Ptr<[u64; 64], Brand> = Ptr::none();
    static FREEING: Barrier = Barrier::new(2);
    struct Big(#[allow(dead_code)] [u8; 128 << 10]);
    impl Drop for Big {
        fn drop(&mut self) {
            FREEING.wait();
            FREEING.wait();
        }
    }
    DOMAIN.set_limit(100 << 10);
    thread::scope(|scope| {
        scope.spawn(|| {
            let reader = DOMAIN.register();
            assert!(BIG.assign(Box::new(Big([0; 128 << 10])), &mut ()).is_none());
            reader.call(BIG.take(&mut ()).unwrap());
        });
        FREEING.wait();
        let status = in_child(|| {
            let mut reader = DOMAIN.register();
            for _ in 0..1000 {
                SMALL.assign(Box::new([0; 64]), &mut ()).into_iter().for_each(|old| reader.call(old));
            }
            reader.barrier();
            if DOMAIN.stats().waiting == 0 { 0 } else { 1 }
        });
        FREEING.wait();
        assert_eq!(status, 0, "in the child something went wrong");
    });
    DOMAIN.barrier_unregistered();
    assert_eq!(DOMAIN.stats().waiting, 0);
}

/// Threads register, and so are named, at any moment of a fork.
#[test]
fn slots_of_threads_that_were_registering_can_be_had() {
    domain!(static DOMAIN: Brand);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let register = || {
            while !stop.load(Ordering::SeqCst) {
                drop(DOMAIN.register());
            }
        };
        (0..3).for_each(|_| _ = scope.spawn(register));
        let here = DOMAIN.register();
        let readers = || {
            let readers: [_; 8] = std::array::from_fn(|_| DOMAIN.register());
            i32::from(readers.iter().any(|reader| format!("{reader:?}").contains("true")))
        };
        let worst = (0..300).map(|_| in_child(readers)).find(|status| *status != 0);
        stop.store(true, Ordering::SeqCst);
        drop(here);
        assert_eq!(worst, None, "in a child something went wrong");
    });
}
