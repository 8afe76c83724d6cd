//! Signals around ours, their stacks, and handlers that were there before or came after: each situation in a process
//! of its own.
#![cfg(not(any(loom, shuttle)))]

#[macro_use]
mod common;

use std::sync::{
    OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use common::{PAGE, ends_by, in_child, read, succeeds, ways};
use vmprim::{Access, Backend, Error, PageNo, Region, Resolution, inline};

#[test]
fn attaching_unblocks_the_signals_and_a_missing_alternate_stack_is_no_harm() {
    let output = in_child("attaching_unblocks_the_signals_and_a_missing_alternate_stack_is_no_harm", || {
        let region = region!(4, Access::None, |fault: &vmprim::Fault, _: &_| Resolution::Grant(fault.wanted));
        let base = region.base() as usize;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: the structures are valid for the calls.
                unsafe {
                    let mut all = std::mem::zeroed();
                    libc::sigfillset(&mut all);
                    libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
                }
                vmprim::attach().unwrap();
                read(base);
            });
            scope.spawn(|| {
                let none =
                    libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
                // SAFETY: see above.
                unsafe { libc::sigaltstack(&none, std::ptr::null_mut()) };
                read(base + PAGE);
            });
        });
    });
    succeeds(&output);
}

#[test]
fn a_replaced_handler_is_found_and_can_be_chained() {
    let output = in_child("a_replaced_handler_is_found_and_can_be_chained", || {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        static BEFORE: OnceLock<usize> = OnceLock::new();
        /// Counts, and calls whom it replaced, as well-behaved handlers do.
        unsafe extern "C" fn newcomer(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
            if CALLS.fetch_add(1, Ordering::SeqCst) > 3 {
                // SAFETY: it ends the process.
                unsafe { libc::_exit(7) };
            }
            // SAFETY: a handler of this kind.
            let before: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(*BEFORE.get().unwrap()) };
            before(signal, info, context);
        }
        let make = || Region::builder(PAGE).backend(Backend::Signal).initial(Access::None).build();
        let region = make().unwrap();
        // SAFETY: a valid action.
        unsafe {
            let mut old = std::mem::zeroed::<libc::sigaction>();
            let mut new = std::mem::zeroed::<libc::sigaction>();
            new.sa_sigaction = newcomer as *const () as usize;
            new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            libc::sigaction(libc::SIGSEGV, std::ptr::null(), &mut old);
            BEFORE.set(old.sa_sigaction).unwrap();
            libc::sigaction(libc::SIGSEGV, &new, std::ptr::null_mut());
        }
        assert_eq!(make().unwrap_err(), Error::HandlerReplaced { signal: libc::SIGSEGV });
        // The newcomer calls us: faults are still resolved.
        read(region.base() as usize);
        assert_eq!(CALLS.load(Ordering::SeqCst), 1);
        vmprim::claim_signals().unwrap();
        region.protect(PageNo(0), Access::None).unwrap();
        read(region.base() as usize);
        assert_eq!(CALLS.load(Ordering::SeqCst), 1, "ours comes first again");
        make().unwrap();
        // Nobody's: the newcomer is asked, asks us, and we ask whoever was there before both.
        read(16);
    });
    ends_by(&output, libc::SIGSEGV, "");
}

#[test]
fn a_handler_that_was_there_first_gets_what_is_not_ours() {
    let output = in_child("a_handler_that_was_there_first_gets_what_is_not_ours", || {
        static JUMPS: AtomicUsize = AtomicUsize::new(0);
        /// Skips the two-byte instruction below.
        unsafe extern "C" fn first(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
            // SAFETY: what the kernel passed.
            unsafe {
                assert_eq!((signal, (*info).si_addr() as usize), (libc::SIGSEGV, 64));
                let context = &mut *context.cast::<libc::ucontext_t>();
                context.uc_mcontext.gregs[libc::REG_RIP as usize] += 2;
            }
            JUMPS.fetch_add(1, Ordering::SeqCst);
        }
        // SAFETY: a valid action.
        unsafe {
            let mut new = std::mem::zeroed::<libc::sigaction>();
            new.sa_sigaction = first as *const () as usize;
            new.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGSEGV, &new, std::ptr::null_mut());
        }
        let region = region!(1, Access::None, |fault: &vmprim::Fault, _: &_| Resolution::Grant(fault.wanted));
        for _ in 0..3 {
            // SAFETY: the handler skips the load.
            unsafe { std::arch::asm!("mov al, [rcx]", in("rcx") 64, out("al") _) };
        }
        read(region.base() as usize);
        assert_eq!(JUMPS.load(Ordering::SeqCst), 3);
    });
    succeeds(&output);
}

/// Signals that are blocked: SIGUSR1 and SIGSEGV.
fn blocked() -> usize {
    // SAFETY: zeros are a valid set, which is valid for the calls.
    unsafe {
        let mut now = std::mem::zeroed::<libc::sigset_t>();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut now);
        let is_blocked = |signal| libc::sigismember(&now, signal) == 1;
        usize::from(is_blocked(libc::SIGUSR1)) + 2 * usize::from(is_blocked(libc::SIGSEGV))
    }
}

/// The handler before ours asked for a mask, for its own signal not to be blocked, for what the kernel knows or for the signal
/// alone, to be called once, or not to be: it has it as from the kernel.
#[test]
fn a_chained_handler_is_called_as_it_asked() {
    static PLAIN: AtomicUsize = AtomicUsize::new(0);
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    fn change(to: i32) {
        // SAFETY: a page of this test's.
        assert_eq!(unsafe { libc::mprotect(PLAIN.load(Ordering::SeqCst) as *mut _, PAGE, to) }, 0);
    }
    extern "C" fn opens(signal: i32) {
        assert_eq!(signal, libc::SIGSEGV);
        SEEN.store(10 + blocked(), Ordering::SeqCst);
        change(libc::PROT_READ);
    }
    unsafe extern "C" fn opens_what_it_is_told(
        signal: i32,
        info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        // SAFETY: what the kernel passed.
        let (address, registers) =
            unsafe { ((*info).si_addr() as usize, &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs) };
        assert_eq!(registers[libc::REG_CR2 as usize] as usize, address);
        opens(signal);
        SEEN.store(address, Ordering::SeqCst);
    }
    let name = "a_chained_handler_is_called_as_it_asked";
    let how = std::env::var("VMPRIM_HOW").unwrap_or_default();
    let scenario = || {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: no fixed address.
        let plain = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_NONE, flags, -1, 0) } as usize;
        PLAIN.store(plain, Ordering::SeqCst);
        let one = opens as *const () as usize;
        let (handler, flags, masked) = match how.as_str() {
            "mask" => (one, 0, true),
            "nodefer" => (one, libc::SA_NODEFER, false),
            "siginfo" => (opens_what_it_is_told as *const () as usize, libc::SA_SIGINFO, false),
            "once" => (one, libc::SA_RESETHAND, false),
            "ignored" => (libc::SIG_IGN, 0, false),
            _ => unreachable!("no such scenario"),
        };
        // SAFETY: a valid action.
        unsafe {
            let mut action = std::mem::zeroed::<libc::sigaction>();
            (action.sa_sigaction, action.sa_flags) = (handler, flags);
            if masked {
                libc::sigaddset(&mut action.sa_mask, libc::SIGUSR1);
            }
            libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut());
        }
        let region = region!(1, Access::None, |fault: &vmprim::Fault, _: &_| Resolution::Grant(fault.wanted));
        read(region.base() as usize);
        assert_eq!(SEEN.load(Ordering::SeqCst), 0, "a fault of ours was handed on");
        if how == "ignored" {
            // SAFETY: it touches no memory.
            unsafe { libc::raise(libc::SIGSEGV) };
        } else {
            read(plain);
            let wanted = match how.as_str() {
                "mask" => 13,
                "nodefer" => 10,
                "siginfo" => plain,
                _ => 12,
            };
            assert_eq!((SEEN.load(Ordering::SeqCst), blocked()), (wanted, 0));
        }
        eprintln!("once went well");
        change(libc::PROT_NONE);
        read(plain);
    };
    for how in ["mask", "nodefer", "siginfo", "once", "ignored"] {
        let output = common::in_child_with(name, &[("VMPRIM_HOW", how)], scenario);
        assert!(common::text(&output).contains("once went well"), "{how}: {}", common::text(&output));
        match how {
            "once" | "ignored" => ends_by(&output, libc::SIGSEGV, ""),
            _ => succeeds(&output),
        }
    }
}

/// Have `handler` get SIGSEGV; who got it before.
fn handle_segv(handler: usize, flags: i32) -> usize {
    // SAFETY: valid actions.
    unsafe {
        let (mut new, mut old) = std::mem::zeroed::<(libc::sigaction, libc::sigaction)>();
        new.sa_sigaction = handler;
        new.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | flags;
        libc::sigaction(libc::SIGSEGV, &new, &mut old);
        old.sa_sigaction
    }
}

/// Ours, one that calls whom it replaced, ours again, and one that resolves the fault: each is called once, though
/// ours runs on a stack of its own where the thread's is small.
#[test]
fn a_chain_through_ours_twice_ends_at_the_first() {
    let output = in_child("a_chain_through_ours_twice_ends_at_the_first", || {
        static CALLS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
        static BEFORE: AtomicUsize = AtomicUsize::new(0);
        /// Skips the two-byte instruction below.
        unsafe extern "C" fn first(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
            CALLS[0].fetch_add(1, Ordering::Relaxed);
            // SAFETY: what the kernel passed.
            unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] += 2 };
        }
        unsafe extern "C" fn newcomer(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
            CALLS[1].fetch_add(1, Ordering::Relaxed);
            let own = std::hint::black_box([7_u8; 500]);
            // SAFETY: a handler of this kind.
            let before: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(BEFORE.load(Ordering::Relaxed)) };
            before(signal, info, context);
            assert_eq!(std::hint::black_box(own), [7; 500], "its frame was overwritten");
        }
        handle_segv(first as *const () as usize, libc::SA_ONSTACK);
        let region = region!(1, Access::None, |fault: &vmprim::Fault, _: &_| Resolution::Grant(fault.wanted));
        BEFORE.store(handle_segv(newcomer as *const () as usize, libc::SA_ONSTACK), Ordering::Relaxed);
        vmprim::claim_signals().unwrap();
        std::thread::scope(|scope| {
            for attached in [false, true] {
                let region = &region;
                scope.spawn(move || {
                    let mut room = vec![0_u8; 32 << 10];
                    let own =
                        libc::stack_t { ss_sp: room.as_mut_ptr().cast(), ss_flags: 0, ss_size: room.len() };
                    let mut before = own;
                    // SAFETY: a valid structure; the memory stays until the stack is another again.
                    unsafe { libc::sigaltstack(&own, &mut before) };
                    if attached {
                        vmprim::attach().unwrap();
                    }
                    for _ in 0..100 {
                        // SAFETY: the handler skips the load.
                        unsafe { std::arch::asm!("mov al, [rcx]", in("rcx") 64, out("al") _) };
                        region.protect(PageNo(0), Access::None).unwrap();
                        read(region.base() as usize);
                    }
                    // SAFETY: see above.
                    unsafe { libc::sigaltstack(&before, std::ptr::null_mut()) };
                });
            }
        });
        assert_eq!(CALLS.each_ref().map(|calls| calls.load(Ordering::Relaxed)), [200, 200]);
    });
    succeeds(&output);
}

/// The handler that was there first leaves by a jump, like one that calls `siglongjmp`; a fault from deeper on the
/// same stack is its as well.
#[test]
fn a_handler_that_leaves_by_a_jump_is_asked_again() {
    static JUMPS: AtomicUsize = AtomicUsize::new(0);
    /// Goes on behind the load of `jump`.
    unsafe extern "C" fn first(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
        JUMPS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: `jump` has left its stack and its way on in these registers, and wants nothing else kept.
        unsafe {
            let registers = &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
            let [stack, to] = [libc::REG_RDI, libc::REG_RSI].map(|at| registers[at as usize]);
            std::arch::asm!("mov rsp, rdi", "jmp rsi", in("rdi") stack, in("rsi") to, options(noreturn));
        }
    }
    /// Fault, so many kilobytes down the stack.
    #[inline(never)]
    fn jump(down: usize) {
        let frame = std::hint::black_box([0_u8; 1024]);
        if down > 0 {
            jump(down - 1);
        } else {
            // SAFETY: nobody's address, and everything is as it was or clobbered at the label.
            unsafe {
                std::arch::asm!(
                    "push rbx", "push rbp",
                    "mov rdi, rsp", "lea rsi, [rip + 2f]",
                    "mov al, [rcx]",
                    "2:", "pop rbp", "pop rbx",
                    in("rcx") 64, out("rdi") _, out("rsi") _,
                    out("r12") _, out("r13") _, out("r14") _, out("r15") _, clobber_abi("C"),
                );
            }
        }
        std::hint::black_box(frame);
    }
    let output = in_child("a_handler_that_leaves_by_a_jump_is_asked_again", || {
        handle_segv(first as *const () as usize, 0);
        let region = region!(1, Access::None, |fault: &vmprim::Fault, _: &_| Resolution::Grant(fault.wanted));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // On the thread's one stack, where a fault from deeper down has its handler deeper down.
                let none =
                    libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
                // SAFETY: a valid structure.
                unsafe { libc::sigaltstack(&none, std::ptr::null_mut()) };
                [0, 4, 50, 3, 60].into_iter().for_each(jump);
                read(region.base() as usize);
            });
        });
        assert_eq!(JUMPS.load(Ordering::SeqCst), 5);
    });
    succeeds(&output);
}

/// The handler that was there first touches a region, on threads that have no alternate stack and were not attached.
#[test]
fn a_chained_handler_may_touch_a_region() {
    let output = in_child("a_chained_handler_may_touch_a_region", || {
        static REGION: AtomicUsize = AtomicUsize::new(0);
        /// Reads a page that is closed, and skips the two-byte instruction below.
        unsafe extern "C" fn first(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
            read(REGION.load(Ordering::Relaxed));
            // SAFETY: what the kernel passed.
            unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] += 2 };
        }
        // SAFETY: a valid action.
        unsafe {
            let mut new = std::mem::zeroed::<libc::sigaction>();
            new.sa_sigaction = first as *const () as usize;
            new.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGSEGV, &new, std::ptr::null_mut());
        }
        for way in ways().into_iter().filter(|way| way.has_none) {
            let region = way.builder(1).initial(Access::None).build().unwrap();
            REGION.store(region.base() as usize, Ordering::Relaxed);
            std::thread::scope(|scope| {
                for bare in [true, true, false] {
                    let region = &region;
                    scope.spawn(move || {
                        let none = libc::stack_t {
                            ss_sp: std::ptr::null_mut(),
                            ss_flags: libc::SS_DISABLE,
                            ss_size: 0,
                        };
                        if bare {
                            // SAFETY: a valid structure.
                            unsafe { libc::sigaltstack(&none, std::ptr::null_mut()) };
                        }
                        for _ in 0..500 {
                            region.protect(PageNo(0), Access::None).unwrap();
                            // SAFETY: the handler skips the load.
                            unsafe { std::arch::asm!("mov al, [rcx]", in("rcx") 64, out("al") _) };
                        }
                    });
                }
            });
        }
    });
    succeeds(&output);
}

#[test]
fn stray_faults_end_the_process_as_if_we_were_not_there() {
    let build = || region!(1, Access::None, |fault: &vmprim::Fault, _: &_| Resolution::Grant(fault.wanted));
    let name = "stray_faults_end_the_process_as_if_we_were_not_there";
    let how = std::env::var("VMPRIM_HOW").unwrap_or_default();
    let scenario = || {
        let _region = build();
        match how.as_str() {
            "null" => _ = read(8),
            "non-canonical" => _ = read(0x8000_0000_0000_0000),
            // Rust's handler, which is behind ours, lets the first pass.
            "kill" => {
                for _ in 0..2 {
                    // SAFETY: it ends the process.
                    unsafe { libc::raise(libc::SIGBUS) };
                }
            }
            "overflow" => _ = overflow(1),
            "overflow in a thread" => {
                let deep = || {
                    vmprim::attach().unwrap();
                    overflow(1)
                };
                drop(std::thread::spawn(deep).join());
            }
            _ => unreachable!("no such scenario"),
        }
    };
    let run = |how| common::in_child_with(name, &[("VMPRIM_HOW", how)], scenario);
    ends_by(&run("null"), libc::SIGSEGV, "");
    ends_by(&run("non-canonical"), libc::SIGSEGV, "");
    ends_by(&run("kill"), libc::SIGBUS, "");
    ends_by(&run("overflow"), libc::SIGABRT, "has overflowed its stack");
    ends_by(&run("overflow in a thread"), libc::SIGABRT, "has overflowed its stack");
}

#[allow(unconditional_recursion)]
fn overflow(n: u64) -> u64 {
    let many = std::hint::black_box([n; 200]);
    overflow(n + 1) + many[n as usize % 200]
}

#[test]
fn a_timer_inside_of_handlers_and_diverted_accesses_leave_pages_free() {
    let output = in_child("a_timer_inside_of_handlers_and_diverted_accesses_leave_pages_free", || {
        static TICKS: AtomicUsize = AtomicUsize::new(0);
        static OTHER: AtomicUsize = AtomicUsize::new(0);
        /// Faults in turn, on whatever stack it comes.
        extern "C" fn tick(_: i32) {
            TICKS.fetch_add(1, Ordering::Relaxed);
            read(OTHER.load(Ordering::Relaxed));
        }
        for way in ways() {
            if !way.has_none {
                continue;
            }
            let turn = AtomicUsize::new(0);
            // SAFETY: it counts and answers.
            let handler = unsafe {
                inline(move |fault, _| match turn.fetch_add(1, Ordering::Relaxed) % 3 {
                    0 if fault.pc != 0 => Resolution::Divert,
                    _ => Resolution::Grant(fault.wanted),
                })
            };
            let region = way.builder(2).inline(handler).build().unwrap();
            let other = way.builder(1).initial(Access::None).build().unwrap();
            OTHER.store(other.base() as usize, Ordering::Relaxed);
            // To this thread: others have stacks for signals that are too small for one signal inside of another.
            let every = libc::timespec { tv_sec: 0, tv_nsec: 150_000 };
            let period = libc::itimerspec { it_interval: every, it_value: every };
            let mut timer = std::ptr::null_mut();
            // SAFETY: valid structures; the handler does what a handler may.
            unsafe {
                let mut action = std::mem::zeroed::<libc::sigaction>();
                action.sa_sigaction = tick as *const () as usize;
                action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
                libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut());
                let mut event = std::mem::zeroed::<libc::sigevent>();
                event.sigev_notify = libc::SIGEV_THREAD_ID;
                event.sigev_signo = libc::SIGUSR2;
                event.sigev_notify_thread_id = libc::gettid();
                assert_eq!(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer), 0);
                libc::timer_settime(timer, 0, &period, std::ptr::null_mut());
            }
            let (mut diverted, mut through) = (0, 0);
            let at = region.base().cast::<u64>();
            for n in 0..3000 {
                region.protect(0..2, Access::None).unwrap();
                // A signal handler must not touch a page that the code it interrupts is protecting: it would wait
                // for itself.
                // SAFETY: valid structures.
                unsafe {
                    let mut alarm = std::mem::zeroed();
                    libc::sigemptyset(&mut alarm);
                    libc::sigaddset(&mut alarm, libc::SIGUSR2);
                    libc::pthread_sigmask(libc::SIG_BLOCK, &alarm, std::ptr::null_mut());
                    other.protect(0..1, Access::None).unwrap();
                    libc::pthread_sigmask(libc::SIG_UNBLOCK, &alarm, std::ptr::null_mut());
                }
                // SAFETY: in the region.
                let value = unsafe { vmprim::fault_or!(load at, else { u64::MAX }) };
                if value == u64::MAX {
                    diverted += 1
                } else {
                    through += 1
                }
                // Free: it can be raised, and stored to.
                region.unprotect(PageNo(0), Access::ReadWrite).unwrap();
                region.view::<u64>().unwrap().set(0, n);
            }
            // SAFETY: the timer made above.
            unsafe { libc::timer_delete(timer) };
            assert!(
                through > 500 && (diverted > 500 || !way.is_in_thread()),
                "{way:?}: {diverted} {through}"
            );
        }
        assert!(TICKS.load(Ordering::Relaxed) > 20);
    });
    succeeds(&output);
}

/// Signals on an alternate stack of the thread's own, smaller than ours: each finds its own stack at any moment of
/// another's handler.
#[test]
fn a_timer_at_any_moment_overwrites_no_stack() {
    let output = in_child("a_timer_at_any_moment_overwrites_no_stack", || {
        static TICKS: AtomicUsize = AtomicUsize::new(0);
        /// Fills as much of its stack as a handler's frames may take.
        extern "C" fn tick(_: i32) {
            TICKS.fetch_add(1, Ordering::Relaxed);
            std::hint::black_box([0x5a_u8; 6 << 10]);
        }
        let region = region!(1, Access::None, |fault: &vmprim::Fault, _: &_| Resolution::Grant(fault.wanted));
        let region = &region;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let every = libc::timespec { tv_sec: 0, tv_nsec: 20_000 };
                let period = libc::itimerspec { it_interval: every, it_value: every };
                let mut room = vec![0_u8; 48 << 10];
                let own = libc::stack_t { ss_sp: room.as_mut_ptr().cast(), ss_flags: 0, ss_size: room.len() };
                let mut before = own;
                let mut timer = std::ptr::null_mut();
                // SAFETY: valid structures; the stack is the thread's until the last call.
                unsafe {
                    libc::sigaltstack(&own, &mut before);
                    let mut action = std::mem::zeroed::<libc::sigaction>();
                    action.sa_sigaction = tick as *const () as usize;
                    action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
                    libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut());
                    let mut event = std::mem::zeroed::<libc::sigevent>();
                    event.sigev_notify = libc::SIGEV_THREAD_ID;
                    event.sigev_signo = libc::SIGUSR2;
                    event.sigev_notify_thread_id = libc::gettid();
                    assert_eq!(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer), 0);
                    libc::timer_settime(timer, 0, &period, std::ptr::null_mut());
                }
                let end = std::time::Instant::now() + std::time::Duration::from_millis(1500);
                while std::time::Instant::now() < end {
                    region.protect(0..1, Access::None).unwrap();
                    read(region.base() as usize);
                    let mut now = own;
                    // SAFETY: see above.
                    unsafe { libc::sigaltstack(std::ptr::null(), &mut now) };
                    assert_eq!(now.ss_sp, own.ss_sp, "the stack was not registered again");
                }
                // SAFETY: see above.
                unsafe {
                    libc::timer_delete(timer);
                    libc::sigaltstack(&before, std::ptr::null_mut());
                }
            });
        });
        assert!(TICKS.load(Ordering::Relaxed) > 1000);
    });
    succeeds(&output);
}
