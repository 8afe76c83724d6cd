//! The system calls of x86-64 Linux that Quire has, by number. What isn't here is ENOSYS, and counted.

use linux_raw_sys::general as nr;

use super::{
    Handler::{self, Frame, Plain},
    file, futex, mm, process, signal, thread, time,
};

const SIZE: usize = 512;

/// What does call `number`.
pub fn find(number: u64) -> Option<Handler> {
    TABLE.get(usize::try_from(number).ok()?).copied().flatten()
}

static TABLE: [Option<Handler>; SIZE] = {
    let mut table = [None; SIZE];
    let mut i = 0;
    while i < CALLS.len() {
        table[CALLS[i].0 as usize] = Some(CALLS[i].1);
        i += 1;
    }
    table
};

const CALLS: &[(u32, Handler)] = &[
    // Memory
    (nr::__NR_mmap, Plain(mm::mmap)),
    (nr::__NR_munmap, Plain(mm::munmap)),
    (nr::__NR_mprotect, Plain(mm::mprotect)),
    (nr::__NR_mremap, Plain(mm::mremap)),
    (nr::__NR_madvise, Plain(mm::madvise)),
    (nr::__NR_brk, Plain(mm::brk)),
    // Processes
    (nr::__NR_fork, Frame(process::fork)),
    (nr::__NR_vfork, Frame(process::vfork)),
    (nr::__NR_clone, Frame(process::clone)),
    (nr::__NR_clone3, Frame(process::clone3)),
    (nr::__NR_execve, Frame(process::execve)),
    (nr::__NR_exit, Plain(process::exit)),
    (nr::__NR_exit_group, Plain(process::exit_group)),
    (nr::__NR_wait4, Plain(process::wait4)),
    (nr::__NR_waitid, Plain(process::waitid)),
    (nr::__NR_getpid, Plain(process::getpid)),
    (nr::__NR_getppid, Plain(process::getppid)),
    (nr::__NR_getpgid, Plain(process::getpgid)),
    (nr::__NR_setpgid, Plain(process::setpgid)),
    (nr::__NR_getpgrp, Plain(process::getpgrp)),
    (nr::__NR_getsid, Plain(process::getsid)),
    (nr::__NR_setsid, Plain(process::setsid)),
    (nr::__NR_getuid, Plain(process::get_zero_id)),
    (nr::__NR_geteuid, Plain(process::get_zero_id)),
    (nr::__NR_getgid, Plain(process::get_zero_id)),
    (nr::__NR_getegid, Plain(process::get_zero_id)),
    (nr::__NR_getresuid, Plain(process::getres_id)),
    (nr::__NR_getresgid, Plain(process::getres_id)),
    (nr::__NR_setuid, Plain(process::set_id)),
    (nr::__NR_setgid, Plain(process::set_id)),
    (nr::__NR_getgroups, Plain(process::getgroups)),
    (nr::__NR_prlimit64, Plain(process::prlimit64)),
    (nr::__NR_getrlimit, Plain(process::getrlimit)),
    (nr::__NR_setrlimit, Plain(process::setrlimit)),
    (nr::__NR_getrusage, Plain(process::getrusage)),
    (nr::__NR_uname, Plain(process::uname)),
    (nr::__NR_sysinfo, Plain(process::sysinfo)),
    (nr::__NR_prctl, Plain(process::prctl)),
    // Threads
    (nr::__NR_gettid, Plain(thread::gettid)),
    (nr::__NR_set_tid_address, Plain(thread::set_tid_address)),
    (nr::__NR_arch_prctl, Plain(thread::arch_prctl)),
    (nr::__NR_sched_yield, Plain(thread::sched_yield)),
    (nr::__NR_sched_getaffinity, Plain(thread::sched_getaffinity)),
    (nr::__NR_sched_setaffinity, Plain(thread::sched_setaffinity)),
    (nr::__NR_getcpu, Plain(thread::getcpu)),
    (nr::__NR_getrandom, Plain(thread::getrandom)),
    (nr::__NR_membarrier, Plain(thread::membarrier)),
    // Futexes
    (nr::__NR_futex, Plain(futex::futex)),
    (nr::__NR_set_robust_list, Plain(futex::set_robust_list)),
    (nr::__NR_get_robust_list, Plain(futex::get_robust_list)),
];
