// Random system calls with random and boundary arguments, from several threads of several processes at once.
//
//   fuzz CALLS SEED [PROCESSES [THREADS [fail]]]
//
// The first process forks workers and replaces those that die; each worker runs a few thousand calls in THREADS threads
// and ends. Arguments come from typed generators: addresses in and around mappings, descriptors, sizes near powers of
// two and limits, flags from known sets, paths, pointers to plausible structures; one call in sixteen has a number and
// arguments that mean nothing. A call may kill, stop, block or garble its worker; it may not reach the first process:
// signals never go to it, its group or everybody. A timer interrupts what blocks, and the first process kills workers
// that live too long.
//
// With `fail` (and the boot option `inject`), one allocation of a page frame in a few hundred fails.
//
// A pass proves only that the kernel is still there. That it lost no memory is seen in its own account at the end.
//
// Not for a Linux machine: it would run as whoever started it.
#include "check.h"

#include <pthread.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

// Quire's own: the so-manieth allocation of a frame fails.
#define PR_FAIL_FRAME 0x4641494c

#define MAX_THREADS 16
#define MAX_WORKERS 16
#define CALLS_PER_LIFE 4000
#define LIFE_MS 600
// What SIGKILL takes at most, on a busy machine.
#define DEATH_MS 60000

// ------------------------------------------------------------------------------------------------------------- chance

static __thread uint64_t state;

static uint64_t rnd(void)
{
    // splitmix64 (Steele, Lea, Flood 2014).
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t below(uint64_t n) { return rnd() % n; }
static int one_in(uint64_t n) { return below(n) == 0; }

// --------------------------------------------------------------------------------------------------------- generators

// Where workers map, unmap and touch. The first part is memory for arguments and holds plausible structures.
#define ARENA ((char *)0x100000000)
#define ARENA_PAGES 256UL
#define ARGS_PAGES 16UL

static struct {
    _Atomic uint64_t calls, lives, deaths, killed;
    _Atomic uint64_t by_number[512], succeeded[512];
} *shared;

// Where workers have their descriptors.
enum { PIPE = 8, PAIRS = 10, PLAIN = 16, DIRECTORY, LISTENER, FRESH_SOCKET, EPOLL, TIMER = 22, EVENT, SIGNALS, MEMORY, PROCESS, DEVICE };

static pid_t first_process;
// Opened at the start: workers remove and rename what is in /dev, too.
static int null;

static const uint64_t boundaries[] = {
    0, 1, 2, 3, 7, 8, 15, 16, 63, 64, 127, 128, 255, 256, 511, 512, 1023, 1024, 1025, 2047, 2048, 4095, 4096, 4097, 8191, 8192,
    65535, 65536, 65537, 131072, (1 << 20) - 1, 1 << 20, (1 << 21) - 1, 1 << 21, (1 << 21) + 1, 1 << 24, 1u << 30, 0x7fffffff,
    0x80000000u, 0xffffffffu, 0x100000000u, 0x7ffffffff000, 0x7fffffffffff, 0x800000000000, 0xffff800000000000u,
    0x7fffffffffffffff, 0x8000000000000000u, 0xfffffffffffff000u, 0xffffffffffffffffu, 0xffffffffffffffffu - 4095,
    0xffffffff80000000u, 999999999, 1000000000, 4194304, 4194303,
};

static uint64_t number(void)
{
    switch (below(6)) {
    case 0: return boundaries[below(sizeof boundaries / sizeof *boundaries)];
    case 1: return (1ull << below(64)) + below(3) - 1;
    case 2: return below(16);
    case 3: return below(4096);
    case 4: return -below(5000);
    default: return rnd() >> below(64);
    }
}

static uint64_t length(void)
{
    if (one_in(20)) return number();
    switch (below(4)) {
    case 0: return below(ARENA_PAGES) * PAGE;
    case 1:
    case 2: return below(16) * PAGE;
    case 3: return below(16) * PAGE + below(3) - 1;
    default: return below(300);
    }
}

static uint64_t address(void)
{
    switch (below(16)) {
    case 0: return number();
    case 1: return 0;
    case 2: return (uint64_t)&shared & ~(PAGE - 1);
    case 3: return (uint64_t)__builtin_frame_address(0) + below(1 << 16) - (1 << 15);
    case 4: return 0x7ffffffff000 - below(4) * PAGE + below(9) - 4;
    case 5: return (uint64_t)&address - below(4 * PAGE);
    case 6: return (uint64_t)ARENA + ARENA_PAGES * PAGE - below(32);
    case 7: return 0xffff800000000000u + below(1ull << 32);
    case 8:
    case 9: return (uint64_t)ARENA + below(ARGS_PAGES) * PAGE + below(PAGE) / 8 * 8;
    case 10: return (uint64_t)ARENA + below(ARENA_PAGES * PAGE);
    default: return (uint64_t)ARENA + below(ARENA_PAGES) * PAGE;
    }
}

// A pointer to an argument: mostly into the argument pages, filled with what `bytes` holds.
static uint64_t pointer_to(const void *bytes, size_t size)
{
    if (one_in(8)) return address();
    char *at = ARENA + (1 + below(ARGS_PAGES - 3)) * PAGE + (one_in(4) ? -size : below(PAGE) / 8 * 8);
    memcpy(at, bytes, size);
    return (uint64_t)at;
}

static uint64_t words(void)
{
    uint64_t w[16];
    for (int i = 0; i < 16; i++) w[i] = one_in(2) ? below(4) : number();
    return pointer_to(w, sizeof w);
}

static uint64_t path(void)
{
    static const char *const names[] = {
        "/tmp/fuzz/a", "/tmp/fuzz/b", "/tmp/fuzz/c", "/tmp/fuzz/d/a", "/tmp/fuzz/d/b", "/tmp/fuzz/d", "/tmp/fuzz/l", "/tmp/fuzz/l/a",
        "/tmp/fuzz", "/tmp/fuzz/p", "a", "b", "./d", "../fuzz/a", "..", ".", "/", "", "/proc/self/maps", "/proc/self/status",
        "/proc/self/fd", "/proc/self/fd/3", "/proc/meminfo", "/proc/self/stat", "/proc/self/cmdline", "/proc",
        "/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/tty", "/dev", "/sys/devices/system/cpu/online", "/tmp/fuzz/a/",
        "/proc/self/task", "/proc/self/cwd/a", "/proc/self/statm", "/proc/stat", "/proc/cpuinfo", "/tmp/fuzz//d/../a", "/proc/self/pagemap",
        "/proc/self/smaps", "/proc/self/fdinfo/3", "/dev/shm/x", "/proc/mounts", "/proc/self/limits", "/proc/self/mem", "/proc/self/root/tmp",
    };
    char text[4200];
    if (one_in(20)) {
        size_t n = one_in(2) ? 255 + below(3) : 4094 + below(4);
        memset(text, 'x', n);
        text[0] = one_in(2) ? '/' : 'x';
        text[n] = 0;
        return pointer_to(text, n + 1);
    }
    const char *name = names[below(sizeof names / sizeof *names)];
    return pointer_to(name, strlen(name) + 1);
}

static uint64_t fd(void)
{
    switch (below(12)) {
    case 0: return number();
    case 1: return (uint64_t)-100;
    case 2: return (uint64_t)-1;
    default: return below(32);
    }
}

static uint64_t vectors(void)
{
    struct iovec v[8];
    for (int i = 0; i < 8; i++) v[i] = (struct iovec){(void *)address(), one_in(6) ? length() : below(5000)};
    return pointer_to(v, sizeof v);
}

static uint64_t times(void)
{
    struct timespec t[4];
    for (int i = 0; i < 4; i++) t[i] = (struct timespec){one_in(3) ? (long)number() : 0, one_in(4) ? (long)number() : (long)below(2000000)};
    return one_in(4) ? 0 : pointer_to(t, sizeof t);
}

static uint64_t pid(void)
{
    for (;;) {
        uint64_t p;
        switch (below(8)) {
        case 0: p = number(); break;
        case 1: p = 0; break;
        case 2: p = below(3) + 1; break;
        case 3: p = -(uint64_t)getpid(); break;
        case 4: p = getpid() + below(8); break;
        case 5: p = syscall(SYS_gettid); break;
        default: p = getpid();
        }
        // Not the first process, its group or everybody.
        int32_t q = (int32_t)p;
        if (q != -1 && q != first_process && q != -first_process && q != 1 && q != -1) return p;
    }
}

static void on_signal(int n) { (void)n; }

static uint64_t action(void)
{
    // struct kernel_sigaction: handler, flags, restorer, mask.
    uint64_t handlers[] = {0, 1, (uint64_t)on_signal, address()};
    uint64_t w[4] = {handlers[below(one_in(8) ? 4 : 3)], rnd() & 0xdc000007, address(), one_in(2) ? 0 : rnd()};
    if (!one_in(4)) w[1] &= ~(uint64_t)0x04000000;
    return one_in(4) ? 0 : pointer_to(w, sizeof w);
}

static uint64_t flags(void)
{
    switch (below(6)) {
    case 0:
    case 1:
    case 2: return 0;
    case 3: return 1ull << below(32);
    case 4: return (1ull << below(20)) | (1ull << below(20));
    default: return number();
    }
}

static uint64_t map_flags(void)
{
    uint64_t f = one_in(3) ? MAP_SHARED : one_in(20) ? MAP_SHARED_VALIDATE : MAP_PRIVATE;
    if (!one_in(3)) f |= MAP_ANONYMOUS;
    if (one_in(2)) f |= one_in(5) ? MAP_FIXED_NOREPLACE : MAP_FIXED;
    if (one_in(8)) f |= MAP_GROWSDOWN;
    if (one_in(8)) f |= MAP_NORESERVE;
    if (one_in(20)) f |= MAP_POPULATE;
    if (one_in(20)) f |= MAP_LOCKED;
    if (one_in(20)) f |= MAP_32BIT;
    if (one_in(40)) f |= flags();
    return f;
}

// ---- structures

static uint64_t socket_address(void)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    static const char *const names[] = {"\0one", "\0two", "/tmp/fuzz/s", "/tmp/fuzz/d/s", "", "/tmp/fuzz/a"};
    memcpy(un.sun_path, names[below(6)], 5);
    strncat(un.sun_path + 1, names[2 + below(2)] + 1, one_in(2) ? 12 : 0);
    if (one_in(10)) un.sun_family = (sa_family_t)number();
    return one_in(6) ? 0 : pointer_to(&un, sizeof un);
}

static uint64_t address_length(void) { return one_in(6) ? number() : one_in(3) ? 110 : one_in(3) ? 2 : 6 + below(20); }

// A message with data, and with descriptors, credentials or nonsense beside it.
static uint64_t message(void)
{
    struct {
        struct cmsghdr head;
        int fds[12];
    } control = {.head = {.cmsg_len = sizeof control.head + 4 * below(13), .cmsg_level = SOL_SOCKET, .cmsg_type = one_in(3) ? SCM_CREDENTIALS : SCM_RIGHTS}};
    for (int i = 0; i < 12; i++) control.fds[i] = (int)below(32);
    if (control.head.cmsg_type == SCM_CREDENTIALS && !one_in(4)) control.fds[0] = getpid(), control.fds[1] = control.fds[2] = 0;
    if (one_in(8)) control.head.cmsg_len = number();
    if (one_in(8)) control.head.cmsg_level = (int)number();
    struct msghdr m = {.msg_iov = (void *)vectors(), .msg_iovlen = one_in(8) ? number() : below(9)};
    if (one_in(4)) m.msg_name = (void *)socket_address(), m.msg_namelen = (socklen_t)address_length();
    if (one_in(2)) m.msg_control = (void *)pointer_to(&control, sizeof control), m.msg_controllen = one_in(8) ? number() : one_in(3) ? sizeof control : control.head.cmsg_len;
    return pointer_to(&m, sizeof m);
}

static uint64_t event(void)
{
    struct epoll_event e = {.events = one_in(4) ? (uint32_t)rnd() : (uint32_t)(below(32) | (one_in(2) ? EPOLLET : 0) | (one_in(4) ? EPOLLONESHOT : 0)), .data.u64 = rnd()};
    return pointer_to(&e, sizeof e);
}

static uint64_t times(void);

static uint64_t interval(void)
{
    struct itimerspec t = {{0, one_in(3) ? (long)below(100000000) : 0}, {0, one_in(4) ? 0 : (long)below(20000000)}};
    return one_in(8) ? times() : pointer_to(&t, sizeof t);
}

static uint64_t limits(void)
{
    struct rlimit r = {one_in(3) ? number() : below(256), one_in(2) ? ~0ull : number()};
    return one_in(3) ? 0 : pointer_to(&r, sizeof r);
}

static uint64_t poll_list(void)
{
    struct pollfd p[8];
    for (int i = 0; i < 8; i++) p[i] = (struct pollfd){(int)below(40) - 2, (short)(one_in(4) ? rnd() : below(16)), 0};
    return pointer_to(p, sizeof p);
}

static uint64_t notification(void)
{
    static const int kinds[] = {SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD_ID};
    struct sigevent e = {.sigev_notify = one_in(8) ? (int)number() : kinds[below(3)], .sigev_signo = one_in(8) ? (int)number() : 35 + (int)below(5)};
    ((int *)&e)[4] = (int)syscall(SYS_gettid);
    return one_in(8) ? 0 : pointer_to(&e, sizeof e);
}

static uint64_t signal_stack(void)
{
    stack_t s = {.ss_sp = (void *)address(), .ss_flags = one_in(2) ? 0 : (int)flags(), .ss_size = length()};
    return one_in(3) ? 0 : pointer_to(&s, sizeof s);
}

static uint64_t clone_arguments(void)
{
    struct {
        uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
    } c = {.flags = one_in(2) ? 0 : one_in(2) ? rnd() & 0x1ffffff00 : CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM,
                           .pidfd = address(), .child_tid = address(), .parent_tid = address(), .exit_signal = one_in(4) ? number() : SIGCHLD};
    if (c.flags & CLONE_THREAD) c.exit_signal = 0;
    if (c.flags & CLONE_VM || one_in(8)) c.stack = (uint64_t)ARENA + below(ARENA_PAGES) * PAGE, c.stack_size = length();
    if (one_in(8)) c.tls = address();
    if (one_in(16)) c.set_tid = address(), c.set_tid_size = below(4);
    return pointer_to(&c, sizeof c);
}

static uint64_t several_futexes(void)
{
    struct {
        uint64_t value, address;
        uint32_t flags, reserved;
    } f[4];
    for (int i = 0; i < 4; i++) {
        f[i].value = one_in(2) ? 0 : number();
        f[i].address = one_in(4) ? address() : (uint64_t)ARENA + below(ARGS_PAGES * PAGE) / 4 * 4;
        f[i].flags = one_in(8) ? (uint32_t)number() : 2 | (one_in(2) ? 128 : 0);
        f[i].reserved = one_in(16);
    }
    return pointer_to(f, sizeof f);
}

// --------------------------------------------------------------------------------------------------------------- calls

// a address, A address in the arena, l length, n number, s small number, f descriptor, p path, F flags, M mmap flags,
// r protection, v vectors, t times, w words, i signal, P process, x action, o open flags, u a count of things at a pointer,
// d directory, k socket address, K its length, m message, e event, b operation of epoll, T interval, R limits, q poll list,
// E notification, z signal stack, c clone arguments, V several futexes, W a word's address, Q futex operation, h advice,
// G mode of fallocate, S family, Y type of socket, U option of a socket, O options of wait, y option of prctl
struct call {
    int nr;
    const char *args;
};

static const struct call calls[] = {
    {SYS_mmap, "AlrMfl"}, {SYS_mmap, "AlrMfl"}, {SYS_mmap, "AlrMfl"}, {SYS_munmap, "Al"}, {SYS_mprotect, "Alr"}, {SYS_mprotect, "Alr"},
    {SYS_mremap, "AllsA"}, {SYS_madvise, "Alh"}, {SYS_madvise, "AlF"}, {SYS_brk, "a"}, {SYS_mincore, "Ala"}, {SYS_msync, "AlF"},
    {SYS_mlock, "Al"}, {SYS_munlock, "Al"}, {SYS_mlock2, "Als"}, {SYS_mlockall, "s"}, {SYS_munlockall, ""}, {SYS_remap_file_pages, "Al0sF"},
    {SYS_membarrier, "Fss"}, {SYS_memfd_create, "pF"}, {SYS_read, "fal"}, {SYS_write, "fal"}, {SYS_readv, "fvs"}, {SYS_writev, "fvs"},
    {SYS_pread64, "faln"}, {SYS_pwrite64, "fals"}, {SYS_preadv, "fvsn"}, {SYS_pwritev, "fvss"}, {SYS_open, "poF"}, {SYS_openat, "dpoF"},
    {SYS_openat, "fpoF"}, {SYS_creat, "pF"}, {SYS_close, "f"}, {SYS_close_range, "ffF"}, {SYS_dup3, "ff0"}, {SYS_lseek, "fns"}, {SYS_dup, "f"}, {SYS_dup2, "ff"},
    {SYS_dup3, "ffF"}, {SYS_fcntl, "fsa"}, {SYS_fcntl, "fFn"}, {SYS_fcntl, "fsw"}, {SYS_ioctl, "fIa"}, {SYS_pipe, "a"}, {SYS_pipe2, "aF"},
    {SYS_stat, "pa"}, {SYS_fstat, "fa"}, {SYS_lstat, "pa"}, {SYS_newfstatat, "dpaF"}, {SYS_statx, "dpFna"}, {SYS_access, "ps"},
    {SYS_faccessat2, "dpsF"}, {SYS_getdents64, "fal"}, {SYS_getdents, "fal"}, {SYS_mkdir, "pF"}, {SYS_mkdirat, "dpF"}, {SYS_rmdir, "p"},
    {SYS_unlink, "p"}, {SYS_unlinkat, "dpF"}, {SYS_rename, "pp"}, {SYS_renameat2, "dpdpF"}, {SYS_link, "pp"}, {SYS_linkat, "dpdpF"},
    {SYS_symlink, "pp"}, {SYS_symlinkat, "pdp"}, {SYS_readlink, "pal"}, {SYS_readlinkat, "dpal"}, {SYS_chmod, "pF"}, {SYS_fchmod, "fF"},
    {SYS_fchmodat, "dpF"}, {SYS_chown, "pnn"}, {SYS_fchownat, "dpnnF"}, {SYS_umask, "F"}, {SYS_chdir, "p"}, {SYS_fchdir, "f"}, {SYS_getcwd, "al"},
    {SYS_truncate, "pn"}, {SYS_ftruncate, "fn"}, {SYS_fallocate, "fGsl"}, {SYS_sendfile, "ffwl"}, {SYS_sendfile, "ff0l"}, {SYS_copy_file_range, "fwfwlF"},
    {SYS_utimensat, "dptF"}, {SYS_statfs, "pa"}, {SYS_fstatfs, "fa"}, {SYS_fsync, "f"}, {SYS_mknodat, "dpFn"}, {SYS_poll, "qus"}, {SYS_ppoll, "qutw8"},
    {SYS_select, "uwwwt"}, {SYS_pselect6, "uwwwtw"}, {SYS_flock, "fs"}, {SYS_eventfd2, "nF"}, {SYS_fadvise64, "fnns"},
    {SYS_splice, "f0f0lF"}, {SYS_splice, "fwfwlF"}, {SYS_tee, "fflF"}, {SYS_vmsplice, "fvsF"}, {SYS_socket, "SY0"}, {SYS_socket, "sss"}, {SYS_socketpair, "sssa"}, {SYS_socketpair, "1Y0a"},
    {SYS_bind, "fkK"}, {SYS_listen, "fs"}, {SYS_accept4, "f00F"}, {SYS_accept4, "fwwF"}, {SYS_connect, "fkK"}, {SYS_getsockname, "fww"}, {SYS_getpeername, "fww"},
    {SYS_sendto, "falF00"}, {SYS_sendto, "falFkK"}, {SYS_recvfrom, "falFww"}, {SYS_sendmsg, "fmF"}, {SYS_recvmsg, "fmF"}, {SYS_sendmsg, "fmF"}, {SYS_recvmsg, "fmF"},
    {SYS_sendmmsg, "fmuF"}, {SYS_recvmmsg, "fmuFt"}, {SYS_setsockopt, "f1UwK"}, {SYS_getsockopt, "f1Uww"}, {SYS_setsockopt, "fsswu"},
    {SYS_shutdown, "fs"}, {SYS_epoll_create1, "F"}, {SYS_epoll_create, "n"}, {SYS_epoll_ctl, "fbfe"}, {SYS_epoll_ctl, "fbfe"}, {SYS_epoll_wait, "faus"}, {SYS_epoll_pwait, "fausw8"}, {SYS_epoll_pwait2, "fautw8"},
    {SYS_timerfd_create, "sF"}, {SYS_timerfd_settime, "fFTt"}, {SYS_timerfd_settime, "fFT0"}, {SYS_timerfd_gettime, "fa"}, {SYS_signalfd4, "fw8F"}, {SYS_inotify_init1, "F"},
    {SYS_pidfd_open, "PF"}, {SYS_futex, "WQstWs"}, {SYS_futex, "WQssWs"}, {SYS_futex, "asntaF"}, {SYS_futex_waitv, "VL0t1"}, {SYS_futex, "aFntan"}, {SYS_futex, "Asstas"}, {SYS_set_robust_list, "a4"}, {SYS_get_robust_list, "Paa"},
    {SYS_rt_sigaction, "jxan"}, {SYS_rt_sigaction, "jx08"}, {SYS_rt_sigprocmask, "swan"}, {SYS_rt_sigprocmask, "sw08"}, {SYS_rt_sigpending, "a8"},
    {SYS_rt_sigsuspend, "w8"}, {SYS_rt_sigtimedwait, "wat8"}, {SYS_kill, "Pi"}, {SYS_kill, "P0"}, {SYS_tkill, "Pi"}, {SYS_tgkill, "PPi"},
    {SYS_rt_sigqueueinfo, "Piw"}, {SYS_rt_tgsigqueueinfo, "PPiw"}, {SYS_sigaltstack, "za"}, {SYS_clock_gettime, "na"}, {SYS_clock_gettime, "sa"},
    {SYS_clock_getres, "sa"}, {SYS_gettimeofday, "aa"}, {SYS_nanosleep, "ta"}, {SYS_clock_nanosleep, "sFta"}, {SYS_setitimer, "sTa"}, {SYS_getitimer, "sa"},
    {SYS_timer_create, "sEa"}, {SYS_timer_create, "1EA"}, {SYS_timer_settime, "sFTa"}, {SYS_timer_settime, "sFT0"}, {SYS_timer_gettime, "sa"}, {SYS_timer_delete, "s"}, {SYS_timer_getoverrun, "s"},
    {SYS_times, "a"}, {SYS_wait4, "PaOa"}, {SYS_wait4, "na10"}, {SYS_waitid, "sPaOa"}, {SYS_waitid, "00aO0"}, {SYS_getpgid, "P"}, {SYS_setpgid, "PP"}, {SYS_getsid, "P"},
    {SYS_prlimit64, "PsRa"}, {SYS_prlimit64, "0sRa"}, {SYS_setrlimit, "sR"}, {SYS_getrlimit, "sa"}, {SYS_getrusage, "sa"}, {SYS_uname, "a"}, {SYS_sysinfo, "a"}, {SYS_prctl, "nannn"},
    {SYS_prctl, "yaaaa"}, {SYS_prctl, "ysss0"}, {SYS_gettid, ""}, {SYS_set_tid_address, "a"}, {SYS_arch_prctl, "ga"}, {SYS_sched_yield, ""}, {SYS_sched_getaffinity, "Pla"},
    {SYS_sched_setaffinity, "Plw"}, {SYS_getcpu, "aaa"}, {SYS_getrandom, "alF"}, {SYS_clone, "CaaaA"}, {SYS_clone3, "cC"}, {SYS_clone3, "c6"}, {SYS_clone3, "c6"}, {SYS_fork, ""}, {SYS_vfork, ""},
    {SYS_execve, "pww"}, {SYS_execve, "p00"}, {SYS_rt_sigreturn, ""}, {SYS_exit, "n"}, {SYS_restart_syscall, ""}, {SYS_rseq, "alFn"}, {SYS_process_vm_writev, "PvuvuF"}, {SYS_pidfd_getfd, "ffF"}, {SYS_pidfd_send_signal, "fi00"}, {SYS_sched_setscheduler, "Psw"},
    {SYS_sched_setattr, "PwF"}, {SYS_setpriority, "sPs"}, {SYS_capset, "ww"}, {SYS_capget, "wa"}, {SYS_personality, "s"}, {SYS_mbind, "AlswnF"},
    {SYS_get_mempolicy, "aanaF"}, {SYS_process_vm_readv, "PvuvuF"}, {SYS_process_madvise, "fvusF"}, {SYS_userfaultfd, "F"}, {SYS_move_pages, "PuwwaF"}, {SYS_migrate_pages, "Pnww"}, {450 /* set_mempolicy_home_node */, "AlsF"},
    {SYS_getgroups, "sa"}, {SYS_setresuid, "nnn"}, {SYS_setsid, ""}, {SYS_chroot, "p"}, {SYS_mount, "pppFp"}, {SYS_umount2, "pF"}, {SYS_alarm, "s"},
};

static uint64_t argument(char kind)
{
    static const int ioctls[] = {0x5401, 0x5402, 0x5403, 0x5404, 0x5405, 0x540e, 0x540f, 0x5410, 0x5413, 0x5414, 0x541b, 0x5421, 0x5422, 0x5450, 0x5451,
                                 0x5452, 0x5429, 0x540b, 0x80045430};
    switch (kind) {
    case 'a': return address();
    case 'A': return one_in(20) ? address() : (uint64_t)ARENA + (ARGS_PAGES + below(ARENA_PAGES - ARGS_PAGES)) * PAGE;
    case 'l': return length();
    case 'n': return number();
    case 's': return one_in(16) ? number() : below(32);
    case 'f': return fd();
    case 'p': return path();
    case 'F': return flags();
    case 'M': return map_flags();
    case 'r': return one_in(16) ? number() : one_in(2) ? 3 : below(8);
    case 'v': return vectors();
    case 't': return times();
    case 'w': return one_in(5) ? 0 : words();
    case 'i': return one_in(40) ? below(66) : one_in(8) ? number() : one_in(2) ? SIGCHLD : 35 + below(5);
    case 'j': return one_in(40) ? below(66) : one_in(8) ? number() : 15 + below(50);
    case 'P': return pid();
    case 'x': return action();
    case 'o': return one_in(8) ? flags() : (below(3) | (one_in(2) ? O_CREAT : 0) | (one_in(4) ? O_TRUNC : 0) | (one_in(4) ? O_NONBLOCK : 0) |
                                            (one_in(6) ? O_APPEND : 0) | (one_in(6) ? O_DIRECTORY : 0) | (one_in(6) ? O_EXCL : 0) | (one_in(6) ? O_CLOEXEC : 0));
    case 'u': return one_in(8) ? number() : below(9);
    case 'C': return one_in(2) ? rnd() & 0xffffffff : (rnd() & 0x01fd3f00) | SIGCHLD;
    case 'I': return one_in(4) ? number() : (uint64_t)ioctls[below(sizeof ioctls / sizeof *ioctls)];
    case 'g': return 0x1001 + below(5);
    case 'd': return one_in(4) ? fd() : (uint64_t)-100;
    case 'k': return socket_address();
    case 'K': return address_length();
    case 'm': return message();
    case 'e': return event();
    case 'b': return one_in(16) ? number() : one_in(2) ? 1 : 2 + below(2);
    case 'T': return interval();
    case 'R': return limits();
    case 'q': return poll_list();
    case 'E': return notification();
    case 'z': return signal_stack();
    case 'c': return clone_arguments();
    case 'V': return several_futexes();
    case 'W': return one_in(8) ? address() : (uint64_t)ARENA + below(8) * 4 + (one_in(4) ? PAGE : 0);
    case 'Q': return (one_in(16) ? number() : below(14)) | (one_in(2) ? 128 : 0) | (one_in(8) ? 256 : 0);
    case 'h': return one_in(4) ? 100 + below(4) : below(27);
    case 'G': return one_in(8) ? number() : below(4) | (one_in(8) ? 16 : 0);
    case 'S': return one_in(8) ? below(20) : one_in(8) ? AF_INET : AF_UNIX;
    case 'Y': return (one_in(16) ? number() : one_in(3) ? SOCK_SEQPACKET : 1 + below(2)) | (one_in(2) ? SOCK_NONBLOCK : 0);
    case 'U': return below(48);
    case 'O': return one_in(8) ? number() : WNOHANG | (one_in(2) ? WEXITED : 0) | (one_in(4) ? WSTOPPED : 0) | (one_in(4) ? WCONTINUED : 0) | (one_in(8) ? 0x01000000 : 0);
    case 'y': return one_in(8) ? 0x53564d41 : below(70);
    case '4': return 24;
    case '6': return one_in(3) ? 64 : 88;
    case 'L': return 1 + below(4);
    case '8': return 8;
    case '1': return 1;
    default: return 0;
    }
}

static long raw(long nr, const uint64_t *a)
{
    long result;
    register uint64_t r10 __asm__("r10") = a[3];
    register uint64_t r8 __asm__("r8") = a[4];
    register uint64_t r9 __asm__("r9") = a[5];
    __asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return result;
}

static int makes_a_child(long nr) { return nr == SYS_clone || nr == SYS_clone3 || nr == SYS_fork || nr == SYS_vfork; }

// The kind of descriptor that a call is for, or -1.
static int fitting(long nr)
{
    switch (nr) {
    case SYS_epoll_ctl:
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case 441: return EPOLL + (int)below(2);
    case SYS_getdents:
    case SYS_getdents64:
    case SYS_fchdir: return DIRECTORY;
    case SYS_timerfd_settime:
    case SYS_timerfd_gettime: return TIMER;
    case SYS_pidfd_send_signal:
    case 438: return PROCESS;
    case SYS_accept4:
    case SYS_listen: return LISTENER;
    case SYS_bind:
    case SYS_connect: return FRESH_SOCKET;
    case SYS_sendmsg:
    case SYS_recvmsg:
    case SYS_sendmmsg:
    case SYS_recvmmsg:
    case SYS_sendto:
    case SYS_recvfrom:
    case SYS_shutdown:
    case SYS_setsockopt:
    case SYS_getsockopt:
    case SYS_getsockname:
    case SYS_getpeername: return PAIRS + (int)below(6);
    case SYS_ftruncate:
    case SYS_fallocate:
    case SYS_lseek:
    case SYS_preadv:
    case SYS_pwritev:
    case SYS_fsync: return one_in(2) ? PLAIN : MEMORY;
    case SYS_splice:
    case SYS_vmsplice:
    case SYS_tee: return PIPE + (int)below(2);
    case SYS_signalfd4: return SIGNALS;
    }
    return -1;
}

static long one_call(void)
{
    uint64_t a[6] = {0};
    long nr;
    if (one_in(16)) {
        nr = (long)(one_in(8) ? number() : below(470));
        for (int i = 0; i < 6; i++) a[i] = one_in(2) ? number() : address();
        // These take a process and may reach the first one.
        if (nr == SYS_kill || nr == SYS_tkill || nr == SYS_tgkill || nr == SYS_rt_sigqueueinfo || nr == SYS_rt_tgsigqueueinfo || nr == SYS_exit_group ||
            nr == SYS_prlimit64 || makes_a_child(nr) || nr == SYS_pidfd_send_signal)
            return -1;
    } else {
        const struct call *c = &calls[below(sizeof calls / sizeof *calls)];
        nr = c->nr;
        for (int i = 0; c->args[i]; i++) a[i] = argument(c->args[i]);
        int fits = fitting(nr);
        if (fits != -1 && !one_in(4)) a[0] = (uint64_t)fits;
        if ((nr == SYS_exit || nr == SYS_execve || nr == SYS_rt_sigreturn) && !one_in(50)) return -1;
        if (makes_a_child(nr) && !one_in(8)) return -1;
        if (nr == SYS_close_range && !one_in(20)) return -1;
    }
    atomic_fetch_add_explicit(&shared->calls, 1, memory_order_relaxed);
    if (nr >= 0 && nr < 512) atomic_fetch_add_explicit(&shared->by_number[nr], 1, memory_order_relaxed);
    // A new process or thread has no business here.
    long result = raw(nr, a);
    if (result == 0 && makes_a_child(nr)) {
        uint64_t none[6] = {0};
        raw(SYS_getpid, none);
        raw(SYS_exit_group, none);
    }
    if (nr >= 0 && nr < 512 && result >= 0) atomic_fetch_add_explicit(&shared->succeeded[nr], 1, memory_order_relaxed);
    return nr;
}

// -------------------------------------------------------------------------------------------------------------- worker

static _Atomic int tids[MAX_THREADS];
static _Atomic int thread_count;

// What blocks is interrupted: the timer's signal reaches one thread, which passes it on.
static void on_alarm(int n)
{
    (void)n;
    uint64_t a[6] = {(uint64_t)getpid(), 0, 39};
    for (int i = 0; i < MAX_THREADS; i++)
        if ((a[1] = (uint64_t)tids[i])) raw(SYS_tgkill, a);
}

static void alarms(void)
{
    struct itimerval often = {{0, 4000}, {0, 4000}};
    setitimer(ITIMER_REAL, &often, NULL);
}

static __thread sigjmp_buf after_fault;
static __thread int may_jump;

static void on_fault(int n, siginfo_t *info, void *context)
{
    (void)context;
    // Without the pages for arguments there would be nothing but faults.
    uint64_t page = (uint64_t)info->si_addr & ~(PAGE - 1);
    uint64_t a[6] = {page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, (uint64_t)-1, 0};
    if (page - (uint64_t)ARENA < ARGS_PAGES * PAGE) raw(SYS_mmap, a);
    if (may_jump) siglongjmp(after_fault, n);
    _exit(99);
}

static void touch(void)
{
    volatile char *p = (volatile char *)(one_in(8) ? address() : (uint64_t)ARENA + below(ARENA_PAGES * PAGE));
    if (one_in(2)) *p = 1;
    else (void)*p;
}

// One descriptor of every kind, at its place, and some that lead to the same.
static void place(int fd, int at)
{
    if (fd == -1) return;
    if (one_in(4)) {
        dup2(fd, at);
        close(fd);
    } else {
        dup3(fd, at, O_CLOEXEC);
        if (!one_in(8)) close(fd);
    }
}

static void open_some(void)
{
    int ends[2], quick = one_in(3) ? 0 : O_NONBLOCK;
    sigset_t some;
    sigfillset(&some);
    if (!pipe2(ends, quick)) place(ends[0], PIPE), place(ends[1], PIPE + 1);
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    for (int i = 0; i < 3; i++)
        if (!socketpair(AF_UNIX, types[i] | quick, 0, ends)) place(ends[0], PAIRS + 2 * i), place(ends[1], PAIRS + 2 * i + 1);
    place(open("/tmp/fuzz/a", O_RDWR | O_CREAT | quick, 0644), PLAIN);
    place(open("/tmp/fuzz", O_RDONLY | O_DIRECTORY), DIRECTORY);
    int s = socket(AF_UNIX, types[below(3)] | quick, 0);
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "/tmp/fuzz/s"};
    if (one_in(2)) unlink(name.sun_path);
    if (one_in(2)) memcpy(name.sun_path, "\0one", 5);
    bind(s, (struct sockaddr *)&name, name.sun_path[0] ? sizeof name : 6);
    listen(s, 4);
    place(s, LISTENER);
    place(socket(AF_UNIX, types[below(3)] | quick, 0), FRESH_SOCKET);
    place(epoll_create1(0), EPOLL);
    place(epoll_create1(0), EPOLL + 1);
    place(timerfd_create(CLOCK_MONOTONIC, quick), TIMER);
    place(eventfd(0, quick), EVENT);
    place(signalfd(-1, &some, quick), SIGNALS);
    place(memfd_create("fuzz", 2), MEMORY);
    place((int)syscall(SYS_pidfd_open, getpid(), 0), PROCESS);
    place(open("/dev/zero", O_RDWR), DEVICE);
}

static void *work(void *seed)
{
    state = (uint64_t)seed;
    tids[atomic_fetch_add(&thread_count, 1)] = (int)syscall(SYS_gettid);
    volatile int faults = 0;
    if (sigsetjmp(after_fault, 1) && ++faults > 1000) return NULL;
    may_jump = 1;
    for (volatile int i = 0; i < CALLS_PER_LIFE; i++) {
        if (one_in(8)) touch();
        if (one_in(300)) open_some();
        // What would keep the timer's signal away lasts for one call, mostly.
        switch (one_call()) {
        case SYS_rt_sigprocmask: {
            uint64_t none = 0, a[6] = {SIG_SETMASK, (uint64_t)&none, 0, 8};
            raw(SYS_rt_sigprocmask, a);
            break;
        }
        case SYS_alarm:
        case SYS_setitimer: alarms();
        }
    }
    return NULL;
}

static void worker(uint64_t seed, int threads)
{
    state = seed;
    for (int n = 1; n < 65; n++) signal(n, SIG_DFL);
    setpgid(0, 0);
    for (int i = 0; i < 3; i++) dup2(null, i);
    struct rlimit files = {64, 64}, size = {1 << 20, 1 << 20}, tasks = {256, 256};
    setrlimit(RLIMIT_NOFILE, &files);
    setrlimit(RLIMIT_FSIZE, &size);
    setrlimit(RLIMIT_NPROC, &tasks);
    mmap(ARENA, ARENA_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    mkdir("/tmp/fuzz", 0755);
    mkdir("/tmp/fuzz/d", 0755);
    (void)!symlink("d", "/tmp/fuzz/l");
    (void)!chdir("/tmp/fuzz");
    open_some();
    struct sigaction act = {.sa_sigaction = on_fault, .sa_flags = SA_NODEFER | SA_SIGINFO};
    sigaction(SIGSEGV, &act, NULL);
    sigaction(SIGBUS, &act, NULL);
    act = (struct sigaction){.sa_handler = on_signal};
    // All but a few are survived at first, so that lives are long.
    for (int i = 1; i < 65; i++)
        if (i != SIGSEGV && i != SIGBUS && (i > 31 || i % 8 != 4)) sigaction(i, &act, NULL);
    act.sa_handler = on_alarm;
    sigaction(SIGALRM, &act, NULL);
    alarms();
    pthread_t t[MAX_THREADS];
    int made = 0;
    for (; made < threads - 1; made++)
        if (pthread_create(&t[made], NULL, work, (void *)rnd())) break;
    work((void *)rnd());
    _exit(0);
}

// ------------------------------------------------------------------------------------------------------- first process

static void clean(const char *directory)
{
    // What workers left may hold memory; what can't be removed is in use or not theirs.
    static const char *const names[] = {"a", "b", "c", "d/a", "d/b", "d/s", "l", "p", "s", "d", NULL};
    char text[64];
    for (int i = 0; names[i]; i++) {
        snprintf(text, sizeof text, "%s/%s", directory, names[i]);
        if (unlink(text)) rmdir(text);
    }
}

int main(int argc, char **argv)
{
    uint64_t wanted = argc > 1 ? strtoull(argv[1], NULL, 0) : 100000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    int workers = argc > 3 ? atoi(argv[3]) : 4;
    int threads = argc > 4 ? atoi(argv[4]) : 4;
    int fail = argc > 5 && !strcmp(argv[5], "fail");
    if (fail) OK(prctl(PR_FAIL_FRAME, 0));
    if (workers > MAX_WORKERS) workers = MAX_WORKERS;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (access("/proc/quire", F_OK) && !getenv("FUZZ_ANYWAY")) {
        fprintf(stderr, "fuzz: not for this machine\n");
        return 2;
    }
    if (seed == 0) seed = now_ns();
    printf("seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    first_process = getpid();
    // Workers may find ways to reach it after all, as owners of files.
    for (int n = 1; n < 65; n++)
        if (n != SIGCHLD) signal(n, SIG_IGN);
    OK(null = open("/dev/null", O_RDWR));
    // Far from everything else, since calls that write past the end of a mapping should not reach it.
    shared = mmap((void *)0x234500000000, (sizeof *shared + PAGE - 1) & ~(PAGE - 1), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    state = seed;
    struct {
        pid_t pid;
        uint64_t born;
    } slot[MAX_WORKERS] = {{0, 0}};
    uint64_t said = now_ns();
    int last = 0, by_signal[128] = {0};
    for (;;) {
        int done = shared->calls >= wanted, live = 0;
        for (int i = 0; i < workers; i++) {
            if (slot[i].pid) {
                if (done || now_ns() - slot[i].born > LIFE_MS * 1000000ull) {
                    if (!done) shared->killed++;
                    kill(slot[i].pid, SIGKILL);
                }
                if (now_ns() - slot[i].born > (LIFE_MS + DEATH_MS) * 1000000ull) {
                    fprintf(stderr, "worker %d was killed and does not end\n", (int)slot[i].pid);
                    return 1;
                }
                int status;
                pid_t got = waitpid(slot[i].pid, &status, done ? 0 : WNOHANG);
                if (got == slot[i].pid) {
                    if (WIFSIGNALED(status)) shared->deaths++;
                    last = status;
                    if (WIFSIGNALED(status)) by_signal[WTERMSIG(status) & 127]++;
                    slot[i].pid = 0;
                }
            }
            if (!slot[i].pid && !done) {
                uint64_t s = rnd();
                if (one_in(16)) clean("/tmp/fuzz");
                pid_t p = fork();
                if (p == 0) worker(s, threads);
                if (p > 0) {
                    slot[i].pid = p;
                    slot[i].born = now_ns();
                    shared->lives++;
                }
            }
            live += slot[i].pid != 0;
        }
        if (done && live == 0) break;
        if (getenv("FUZZ_PROGRESS") && now_ns() - said > 2000000000u) {
            said = now_ns();
            fprintf(stderr, "%llu calls, %llu workers, %llu ended by a signal, %llu too old, last status %#x\n", (unsigned long long)shared->calls,
                    (unsigned long long)shared->lives, (unsigned long long)shared->deaths, (unsigned long long)shared->killed, last);
        }
        if (fail) prctl(PR_FAIL_FRAME, 1 + below(one_in(2) ? 10 : 300));
        sleep_ms(fail ? 1 : 2);
    }
    if (fail) prctl(PR_FAIL_FRAME, 0);
    clean("/tmp/fuzz");
    for (int i = 0; getenv("FUZZ_PROGRESS") && i < 128; i++)
        if (by_signal[i]) fprintf(stderr, "signal %d: %d\n", i, by_signal[i]);
    int distinct = 0, useful = 0;
    for (int i = 0; i < 512; i++) {
        distinct += shared->by_number[i] != 0;
        useful += shared->succeeded[i] != 0;
        if (getenv("FUZZ_PROGRESS") && shared->by_number[i])
            fprintf(stderr, "call %d: %llu of %llu succeeded\n", i, (unsigned long long)shared->succeeded[i], (unsigned long long)shared->by_number[i]);
    }
    printf("%llu calls of %d numbers, %d of which succeeded at least once, %llu workers, %llu ended by a signal, %llu too old\n", (unsigned long long)shared->calls, distinct, useful,
           (unsigned long long)shared->lives, (unsigned long long)shared->deaths, (unsigned long long)shared->killed);
    return finished("fuzz");
}
