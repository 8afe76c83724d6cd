//! The few of Linux's calls that aren't what is tried.

use std::{fmt::Display, io::Error, mem::zeroed, sync::atomic::AtomicU32};

/// Ends the program: something that must work did not.
pub fn die(what: impl Display) -> ! {
    eprintln!("pairs: {what}");
    // SAFETY: no pointers. At once, as this may be a forked child.
    unsafe { libc::_exit(1) }
}

/// Ends the program with what `errno` says.
pub fn die_of(call: &str) -> ! {
    die(format_args!("{call}: {}", Error::last_os_error()))
}

/// The CPUs that this process may run on.
pub fn allowed_cpus() -> Vec<usize> {
    // SAFETY: all zeroes is an empty set; the call fills the set that it is given the size of; indices are within it.
    unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            die_of("sched_getaffinity");
        }
        (0..libc::CPU_SETSIZE as usize).filter(|cpu| libc::CPU_ISSET(*cpu, &set)).collect()
    }
}

/// Lets the calling thread run on this CPU alone.
pub fn pin(cpu: usize) {
    // SAFETY: all zeroes is an empty set; CPU_SET ignores an index beyond it; the call reads the set.
    let result = unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if result != 0 {
        die_of("sched_setaffinity");
    }
}

/// Asks for pages of 4 KiB alone. A kernel that has no others may refuse.
pub fn refuse_huge_pages() {
    // SAFETY: a flag of this process; no pointers.
    let _ = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Sleeps while the word, which processes share, is `expected`, or for no reason.
pub fn futex_wait(word: &AtomicU32, expected: u32) {
    // SAFETY: the word lives as long as the call; no time limit. Every outcome is one that the caller looks into.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, 0usize) };
}

/// Wakes who sleeps on the word.
pub fn futex_wake(word: &AtomicU32) {
    // SAFETY: the word lives as long as the call, which only uses its address.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
}

/// Gives the CPU to whoever else wants it.
pub fn give_way() {
    // SAFETY: no pointers.
    unsafe { libc::sched_yield() };
}

/// Memory of zeroes that children share, for ever.
pub fn shared_memory(bytes: usize) -> *mut libc::c_void {
    let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, wherever there is room.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, rights, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        die_of("mmap");
    }
    at
}

/// Starts a process that does `work` and ends.
pub fn child(work: impl FnOnce()) -> i32 {
    // SAFETY: this process has one thread, so its copy has all there is.
    match unsafe { libc::fork() } {
        -1 => die_of("fork"),
        0 => {
            work();
            // SAFETY: no pointers.
            unsafe { libc::_exit(0) }
        }
        pid => pid,
    }
}

/// Sleeps until a child has ended; whether its status is 0.
pub fn a_child_succeeded() -> bool {
    let mut status = 0;
    // SAFETY: room for a status.
    if unsafe { libc::waitpid(-1, &mut status, 0) } < 0 {
        die_of("waitpid");
    }
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}
