// efault: user pointers are allegations.
//
// Proves: every system call that reads or writes user memory answers EFAULT, and neither kills the process nor changes
// anything, for each kind of bad pointer: null, unmapped, without permission, read-only where the call writes, in the
// kernel's half, not canonical, and a range that starts well and runs into an unmapped page. Each call first succeeds
// (or fails for another reason) with a good pointer, so that EFAULT is due to the pointer alone.
//
// calls: access arch_prctl chdir chmod clock_getres clock_gettime clock_nanosleep clone3 execve fstat futex
// calls: get_robust_list getcwd getdents64 getrandom getrlimit getrusage gettimeofday ioctl link lstat mkdir nanosleep
// calls: newfstatat open openat pipe pipe2 poll pread64 prlimit64 pwrite64 read readlink readv rename rmdir
// calls: rt_sigaction rt_sigpending rt_sigprocmask rt_sigsuspend rt_sigtimedwait sched_getaffinity sched_setaffinity
// calls: setitimer sigaltstack socketpair stat statfs symlink sysinfo time truncate uname unlink unlinkat wait4 write
// calls: writev
#include "check.h"
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysinfo.h>
#include <sys/time.h>
#include <sys/times.h>
#include <sys/uio.h>
#include <sys/utsname.h>

enum { READS, WRITES, STRING }; // what the call does with the pointer

static char *good;      // three pages: read-write, read-only, unmapped
static char *forbidden; // PROT_NONE
static int file, ends[2];

#define BAD 1L // stands for the pointer under test in a row of the table

struct row {
    const char *name;
    int direction, bytes; // bytes = 0: only pointers that are bad from the first byte
    long number;
    long a[6];
    int which; // the argument that is the pointer
};

static struct timespec moment = {0, 1};

static long invoke(const struct row *row, const void *pointer)
{
    long a[6];
    memcpy(a, row->a, sizeof a);
    a[row->which] = (long)pointer;
    errno = 0;
    return syscall(row->number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static void expect_fault(const struct row *row, const void *pointer, const char *kind)
{
    long result = invoke(row, pointer);
    if (result == -1 && errno == EFAULT) return;
    fprintf(stderr, "efault.c: %s with a pointer %s: %ld, errno %d, wanted EFAULT\n", row->name, kind, result, errno);
    _exit(1);
}

static void try_row(const struct row *row)
{
    void *read_only = good + PAGE;
    expect_fault(row, (void *)8, "near null");
    expect_fault(row, good + 2 * PAGE + 64, "to an unmapped page");
    expect_fault(row, forbidden + 64, "to a page without access");
    expect_fault(row, (void *)0xffffffff80000000, "into the kernel");
    expect_fault(row, (void *)0xffff888000001000, "into the kernel's memory");
    expect_fault(row, (void *)0x0000800000000000, "just past the user's half");
    expect_fault(row, (void *)0x1234567890abcde0, "that is not canonical");
    if (row->direction == WRITES) expect_fault(row, (char *)read_only + 64, "to a read-only page");
    if (row->direction == STRING) {
        memset(good + PAGE - 8, 'x', 8); // no end before the hole
        OK(munmap(good + PAGE, PAGE));
        expect_fault(row, good + PAGE - 8, "to a string that runs into a hole");
        OK(mmap(good + PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED ? -1 : 0);
    } else if (row->bytes > 1) {
        OK(munmap(good + PAGE, PAGE));
        expect_fault(row, good + PAGE - row->bytes / 2, "that straddles a hole");
        OK(mmap(good + PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED ? -1 : 0);
    }
}

#define ROW(direction, bytes, which, number, ...) {#number, direction, bytes, SYS_##number, {__VA_ARGS__}, which}

static void every_call(void)
{
    sigset_t none;
    sigemptyset(&none);
    long set = (long)&none, at = AT_FDCWD, size8 = 8;
    struct row table[] = {
        ROW(WRITES, 0, 1, read, ends[0], BAD, 4),
        ROW(READS, 0, 1, write, ends[1], BAD, 4),
        ROW(READS, 0, 1, write, file, BAD, 4),
        ROW(WRITES, 0, 1, pread64, file, BAD, 16, 0),
        ROW(READS, 0, 1, pwrite64, file, BAD, 16, 0),
        ROW(READS, 16, 1, readv, file, BAD, 1),
        ROW(READS, 16, 1, writev, ends[1], BAD, 1),
        ROW(STRING, 0, 0, open, BAD, O_RDONLY, 0),
        ROW(STRING, 0, 1, openat, at, BAD, O_RDONLY, 0),
        ROW(STRING, 0, 0, stat, BAD, (long)good),
        ROW(WRITES, 144, 1, stat, (long)"/", BAD),
        ROW(STRING, 0, 0, lstat, BAD, (long)good),
        ROW(WRITES, 144, 1, lstat, (long)"/", BAD),
        ROW(WRITES, 144, 1, fstat, file, BAD),
        ROW(STRING, 0, 1, newfstatat, at, BAD, (long)good, 0),
        ROW(WRITES, 144, 2, newfstatat, at, (long)"/", BAD, 0),
        ROW(STRING, 0, 0, access, BAD, R_OK),
        ROW(STRING, 0, 0, mkdir, BAD, 0755),
        ROW(STRING, 0, 0, rmdir, BAD),
        ROW(STRING, 0, 0, unlink, BAD),
        ROW(STRING, 0, 1, unlinkat, at, BAD, 0),
        ROW(STRING, 0, 0, rename, BAD, (long)"/tmp/x"),
        ROW(STRING, 0, 1, rename, (long)"/tmp", BAD),
        ROW(STRING, 0, 0, link, BAD, (long)"/tmp/x"),
        ROW(STRING, 0, 0, symlink, BAD, (long)"/tmp/x"),
        ROW(STRING, 0, 1, symlink, (long)"x", BAD),
        ROW(STRING, 0, 0, readlink, BAD, (long)good, 100),
        ROW(WRITES, 0, 1, readlink, (long)"/proc/self/exe", BAD, 100),
        ROW(STRING, 0, 0, chmod, BAD, 0644),
        ROW(STRING, 0, 0, chdir, BAD),
        ROW(WRITES, 0, 0, getcwd, BAD, 100),
        ROW(WRITES, 24, 1, getdents64, open("/", O_RDONLY), BAD, 4096),
        ROW(WRITES, 8, 0, pipe, BAD),
        ROW(WRITES, 8, 0, pipe2, BAD, 0),
        ROW(WRITES, 8, 0, poll, BAD, 1, 0),
        ROW(STRING, 0, 0, execve, BAD, 0, 0),
        ROW(READS, 0, 1, execve, (long)"/proc/self/exe", BAD, 0),
        ROW(READS, 0, 2, execve, (long)"/proc/self/exe", 0, BAD),
        ROW(READS, 32, 1, rt_sigaction, SIGUSR1, BAD, 0, size8),
        ROW(WRITES, 32, 2, rt_sigaction, SIGUSR1, 0, BAD, size8),
        ROW(READS, 8, 1, rt_sigprocmask, SIG_BLOCK, BAD, 0, size8),
        ROW(WRITES, 8, 2, rt_sigprocmask, SIG_BLOCK, set, BAD, size8),
        ROW(WRITES, 8, 0, rt_sigpending, BAD, size8),
        ROW(READS, 8, 0, rt_sigsuspend, BAD, size8),
        ROW(READS, 8, 0, rt_sigtimedwait, BAD, 0, (long)&moment, size8),
        ROW(READS, 16, 2, rt_sigtimedwait, set, 0, BAD, size8),
        ROW(READS, 24, 0, sigaltstack, BAD, 0),
        ROW(WRITES, 24, 1, sigaltstack, 0, BAD),
        ROW(READS, 16, 0, nanosleep, BAD, 0),
        ROW(READS, 16, 2, clock_nanosleep, CLOCK_MONOTONIC, 0, BAD, 0),
        ROW(WRITES, 16, 1, clock_gettime, CLOCK_MONOTONIC, BAD),
        ROW(WRITES, 16, 1, clock_getres, CLOCK_MONOTONIC, BAD),
        ROW(WRITES, 16, 0, gettimeofday, BAD, 0),
        ROW(WRITES, 8, 0, time, BAD),
        ROW(READS, 32, 1, setitimer, ITIMER_REAL, BAD, 0),
        ROW(WRITES, 390, 0, uname, BAD),
        ROW(WRITES, 112, 0, sysinfo, BAD),
        ROW(WRITES, 16, 1, getrlimit, RLIMIT_STACK, BAD),
        ROW(WRITES, 16, 3, prlimit64, 0, RLIMIT_STACK, 0, BAD),
        ROW(READS, 16, 2, prlimit64, 0, RLIMIT_STACK, BAD, 0),
        ROW(WRITES, 144, 1, getrusage, RUSAGE_SELF, BAD),
        ROW(WRITES, 8, 2, sched_getaffinity, 0, 128, BAD),
        ROW(READS, 8, 2, sched_setaffinity, 0, 8, BAD),
        ROW(WRITES, 0, 0, getrandom, BAD, 8, 0),
        ROW(WRITES, 0, 1, arch_prctl, 0x1003, BAD), // ARCH_GET_FS
        ROW(WRITES, 8, 1, get_robust_list, 0, BAD, (long)good),
        ROW(READS, 0, 0, futex, BAD, 0, 0, (long)&moment, 0, 0),
        ROW(READS, 16, 3, futex, (long)good, 0, 0, BAD, 0, 0),
        ROW(WRITES, 4, 2, ioctl, ends[0], 0x541b /* FIONREAD */, BAD),
        ROW(READS, 88, 0, clone3, BAD, 88),
        ROW(STRING, 0, 0, statfs, BAD, (long)good),
        ROW(WRITES, 120, 1, statfs, (long)"/", BAD),
        ROW(STRING, 0, 0, truncate, BAD, 0),
        ROW(WRITES, 8, 3, socketpair, AF_UNIX, SOCK_STREAM, 0, BAD),
    };
    int rows = sizeof table / sizeof *table;
    for (int i = 0; i < rows; i++) {
        // A call that the system does not have at all says so with any pointer; that is not this program's business.
        if (invoke(&table[i], (void *)8) == -1 && errno == ENOSYS)
            fprintf(stderr, "efault: %s is not there\n", table[i].name);
        else
            try_row(&table[i]);
    }
}

// A copy that has moved some bytes before the hole says how many.
static void partial_transfers(void)
{
    char back[64];
    char *edge = good + PAGE - 8;
    OK(munmap(good + PAGE, PAGE));
    memset(edge, 'e', 8);
    OK(ftruncate(file, 0));
    EQUAL(pwrite(file, edge, 16, 0), 8);
    EQUAL(pread(file, back, 64, 0), 8);
    EQUAL(memcmp(back, "eeeeeeee", 8), 0);
    OK(ftruncate(file, 64));
    struct iovec parts[2] = {{back, 4}, {(void *)8, 4}};
    OK(lseek(file, 0, SEEK_SET));
    EQUAL(readv(file, parts, 2), 4);
    EQUAL(writev(file, parts, 2), 4);
    FAILS(writev(file, parts + 1, 1), EFAULT);
    FAILS(syscall(SYS_writev, file, parts, -1L), EINVAL);
    FAILS(syscall(SYS_writev, file, parts, 1025L), EINVAL);
    parts[0].iov_len = -1UL;
    FAILS(writev(file, parts, 1), EINVAL);
    int zero = open("/dev/zero", O_RDONLY);
    FAILS(read(zero, good + 2 * PAGE, 100), EFAULT);
    EQUAL(read(zero, edge, 8), 8);
    OK(close(zero));
    CHECK(mmap(good + PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == good + PAGE);
}

// The kernel's copies resolve faults as the program's own accesses do: fresh pages, copy on write, file pages.
static void copies_fault_pages_in(void)
{
    char *fresh = pages_new(4), name[] = "/tmp/quire-efault-XXXXXX";
    int zero = open("/dev/zero", O_RDONLY), fd = mkstemp(name);
    OK(fd);
    OK(unlink(name));
    EQUAL(read(zero, fresh, 4 * PAGE), 4 * PAGE); // untouched pages become real
    EQUAL(write(fd, pages_new(4), 4 * PAGE), 4 * PAGE);
    char *mapped = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(mapped != MAP_FAILED);
    memset(fresh, 'p', 4 * PAGE);
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        EQUAL(read(zero, fresh + 100, PAGE), PAGE); // writes into shared frames: must copy them
        EQUAL(fresh[99], 'p');
        EQUAL(fresh[100], 0);
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    for (size_t i = 0; i < 4 * PAGE; i++) EQUAL(fresh[i], 'p');
    EQUAL(pread(fd, mapped + PAGE - 2, 4, 0), 4);
    EQUAL(pwrite(fd, mapped + 3 * PAGE, 10, 0), 10);
    OK(munmap(mapped, 4 * PAGE));
    OK(close(fd) + close(zero));
}

// wait4 looks at its pointers only when a child has ended, and takes the child all the same.
static void statuses_of_children(void)
{
    void *bad[] = {(void *)8, good + PAGE, forbidden, (void *)0xffffffff80000000, (void *)0x1234567890abcde0};
    for (int i = 0; i < 5; i++) {
        for (int which = 0; which < 2; which++) {
            pid_t child = fork();
            OK(child);
            if (child == 0) _exit(1);
            FAILS(syscall(SYS_wait4, child, which ? NULL : bad[i], 0, which ? bad[i] : NULL), EFAULT);
            FAILS(waitpid(child, NULL, 0), ECHILD);
        }
    }
}

// A signal frame that cannot be written ends the process with SIGSEGV, and a bad frame to return from does too.
static void ignore(int signal) { (void)signal; }
static void signal_frames(void)
{
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        signal(SIGUSR1, ignore);
        __asm__ volatile("mov $8, %%rsp\n\tsyscall\n\tud2" ::"a"(SYS_tgkill), "D"(getpid()), "S"(syscall(SYS_gettid)), "d"(SIGUSR1)
                         : "rcx", "r11", "memory");
    }
    EQUAL(wait_for(child) & 0x7f, SIGSEGV);
    child = fork();
    OK(child);
    if (child == 0) {
        __asm__ volatile("mov $0x1234567890abcdef, %%rsp\n\tsyscall\n\tud2" ::"a"(SYS_rt_sigreturn) : "memory");
    }
    EQUAL(wait_for(child) & 0x7f, SIGSEGV);
}

int main(void)
{
    char name[] = "/tmp/quire-efault-XXXXXX";
    file = mkstemp(name);
    OK(file);
    OK(unlink(name));
    OK(ftruncate(file, 4096));
    OK(pipe(ends));
    EQUAL(write(ends[1], "0123456789", 10), 10);
    good = pages_new(3);
    forbidden = pages_new(1);
    OK(mprotect(forbidden, PAGE, PROT_NONE));
    OK(mprotect(good + PAGE, PAGE, PROT_READ));
    OK(munmap(good + 2 * PAGE, PAGE));
    RUN(every_call);
    char left[16]; // what was in the pipe is still there
    EQUAL(read(ends[0], left, 16), 10);
    EQUAL(memcmp(left, "0123456789", 10), 0);
    RUN(partial_transfers);
    RUN(copies_fault_pages_in);
    RUN(statuses_of_children);
    RUN(signal_frames);
    return finished("efault");
}
