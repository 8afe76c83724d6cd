//! Linux's calls as the modes use them. A call that fails ends the program with a message: other threads may be asleep
//! until this one comes, so there is nobody to hand an error to.

use std::{
    fmt::Display,
    io::Error,
    mem::{size_of, zeroed},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::atomic::AtomicU32,
};

use crate::wait::Between;

/// Ends the program: something that must work did not.
pub fn die(what: impl Display) -> ! {
    eprintln!("mapbench: {what}");
    std::process::exit(1)
}

/// Ends the program with what `errno` says.
pub fn die_of(call: &str) -> ! {
    die(format_args!("{call}: {}", Error::last_os_error()))
}

/// The CPUs that this process may run on.
pub fn allowed_cpus() -> Vec<usize> {
    // SAFETY: all zeroes is an empty set; the call fills the set that it is given the size of.
    let (set, result) = unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        let result = libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set);
        (set, result)
    };
    if result != 0 {
        die_of("sched_getaffinity");
    }
    // SAFETY: the index is within the set.
    (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
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

/// Waits until every CPU has been out of the kernel's read-side sections: a grace period of its RCU.
pub fn wait_for_readers() {
    // SAFETY: no pointers.
    if unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) } != 0 {
        die_of("membarrier");
    }
}

/// Whether the calling thread runs on this CPU now.
pub fn runs_on(cpu: usize) -> bool {
    // SAFETY: no pointers.
    let now = unsafe { libc::sched_getcpu() };
    usize::try_from(now).is_ok_and(|now| now == cpu)
}

/// Asks for pages of 4 KiB alone. A kernel that has no others may refuse.
pub fn refuse_huge_pages() {
    // SAFETY: a flag of this process; no pointers.
    let _ = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Sleeps while the word is `expected`, or for no reason.
pub fn futex_wait(word: &AtomicU32, expected: u32, between: Between) {
    // SAFETY: the word lives as long as the call; no time limit. Every outcome is one that the caller looks into.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT | private(between), expected, 0usize)
    };
}

/// Wakes all who sleep on the word.
pub fn futex_wake_all(word: &AtomicU32, between: Between) {
    // SAFETY: the word lives as long as the call, which only uses its address.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | private(between), i32::MAX) };
}

/// The flag of a futex that one process has for itself.
fn private(between: Between) -> i32 {
    if between == Between::Threads { libc::FUTEX_PRIVATE_FLAG } else { 0 }
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

/// A memory object of so many bytes.
pub fn memory_object(bytes: usize) -> OwnedFd {
    // SAFETY: the name is a terminated string.
    let fd = unsafe { libc::memfd_create(c"mapbench".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        die_of("memfd_create");
    }
    // SAFETY: a new descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: no pointers.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), bytes as i64) } != 0 {
        die_of("ftruncate");
    }
    fd
}

/// A pipe: the end to read from, the end to write to.
pub fn pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [-1; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        die_of("pipe2");
    }
    // SAFETY: new descriptors that nobody else owns.
    ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).into()
}

/// Reads one byte; whether there was one.
pub fn read_byte(fd: &OwnedFd) -> bool {
    let mut byte = 0u8;
    // SAFETY: room for one byte. By the number: the C library's function may be a point of cancellation.
    unsafe { libc::syscall(libc::SYS_read, fd.as_raw_fd(), &raw mut byte, 1usize) == 1 }
}

/// Writes one byte.
pub fn write_byte(fd: &OwnedFd) {
    let byte = 1u8;
    // SAFETY: one byte to read.
    if unsafe { libc::syscall(libc::SYS_write, fd.as_raw_fd(), &raw const byte, 1usize) } != 1 {
        die_of("write");
    }
}

/// Which side of a fork this is.
pub enum Side {
    /// The parent, with its child's process id.
    Parent(i32),
    /// The child, which has this thread alone.
    Child,
}

/// Forks by the system call itself: the C library's function takes its locks first, which all threads share.
#[inline(always)]
pub fn fork() -> Side {
    // SAFETY: as fork: no flags, no new stack. The child, a copy of one thread of many, must use nothing that another
    // thread may have held locked; it makes bare system calls only and ends by `exit`.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0usize, 0usize, 0usize, 0usize) };
    match pid {
        -1 => die_of("clone"),
        0 => Side::Child,
        pid => Side::Parent(pid as i32),
    }
}

/// Starts a process that does `work` and ends; it is killed when this thread ends.
pub fn child(work: impl FnOnce()) {
    let parent = std::process::id();
    // SAFETY: this process has one thread, so its copy has all there is.
    match unsafe { libc::fork() } {
        -1 => die_of("fork"),
        0 => {
            die_with_parent();
            // It may have ended before it could be asked for.
            if std::os::unix::process::parent_id() == parent {
                work();
                exit_child(0);
            }
            exit_child(1)
        }
        _ => {}
    }
}

/// Sleeps until one of the children has ended; whether it ended with status 0.
pub fn a_child_succeeded() -> bool {
    child_succeeded(-1)
}

/// Asks to be killed when the thread that forked this child ends.
pub fn die_with_parent() {
    // SAFETY: no pointers.
    unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0usize, 0usize, 0usize) };
}

/// Ends a forked child.
pub fn exit_child(status: i32) -> ! {
    loop {
        // SAFETY: no pointers; does not come back.
        unsafe { libc::syscall(libc::SYS_exit_group, status) };
    }
}

/// Sleeps until the child has ended, or any if `pid` is -1; whether it ended with status 0.
pub fn child_succeeded(pid: i32) -> bool {
    let mut status = 0;
    // SAFETY: room for a status.
    let ended = unsafe { libc::waitpid(pid, &mut status, 0) };
    if ended < 0 || pid > 0 && ended != pid {
        die_of("waitpid");
    }
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

/// Whether the kernel refuses to write to user memory at this address: EFAULT.
pub fn refused_as_buffer(address: usize) -> bool {
    // SAFETY: the address is one of the pages that the modes own: what is written there disturbs no object.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, address) };
    result == -1 && Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// What the kernel calls itself: name, release.
pub fn system() -> (String, String) {
    // SAFETY: all zeroes is a valid utsname, and uname fills the one it is given with terminated strings.
    let (name, result) = unsafe {
        let mut name: libc::utsname = zeroed();
        let result = libc::uname(&mut name);
        (name, result)
    };
    if result != 0 {
        die_of("uname");
    }
    let text = |field: &[libc::c_char]| -> String {
        field.iter().map(|&c| c as u8 as char).take_while(|&c| c != '\0').collect()
    };
    (text(&name.sysname), text(&name.release))
}

/// `mmap` at exactly this address.
#[inline(always)]
pub fn map_at(address: usize, bytes: usize, flags: i32, fd: i32) {
    // SAFETY: the address lies in the range that the modes own (`pages`): no object of the program's is there.
    let result = unsafe {
        libc::mmap(
            address as *mut libc::c_void,
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            flags | libc::MAP_FIXED,
            fd,
            0,
        )
    };
    if result as usize != address {
        die_of("mmap");
    }
}

/// Whether nothing is mapped in this range; the range is not changed.
pub fn is_free(address: usize, bytes: usize) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: replaces no mapping, by the last flag.
    let result = unsafe { libc::mmap(address as *mut libc::c_void, bytes, libc::PROT_NONE, flags, -1, 0) };
    if result as usize != address {
        return false;
    }
    unmap(address, bytes);
    true
}

/// `munmap`.
#[inline(always)]
pub fn unmap(address: usize, bytes: usize) {
    // SAFETY: the range is one that the modes own.
    if unsafe { libc::munmap(address as *mut libc::c_void, bytes) } != 0 {
        die_of("munmap");
    }
}

/// `madvise(MADV_DONTNEED)`.
pub fn dont_need(address: usize, bytes: usize) {
    // SAFETY: the range is one that the modes own; its contents are given up.
    if unsafe { libc::madvise(address as *mut libc::c_void, bytes, libc::MADV_DONTNEED) } != 0 {
        die_of("madvise");
    }
}

/// `mprotect`.
#[inline(always)]
pub fn protect(address: usize, bytes: usize, rights: i32) {
    // SAFETY: the range is one that the modes own.
    if unsafe { libc::mprotect(address as *mut libc::c_void, bytes, rights) } != 0 {
        die_of("mprotect");
    }
}
