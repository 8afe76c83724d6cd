// calls_process: processes by descriptor, their memory from outside, waiting on several futexes, priorities and identity.
//
// Proves: pidfd_open, pidfd_send_signal, pidfd_getfd, CLONE_PIDFD and P_PIDFD; process_vm_readv and writev;
// futex_waitv; the sched_ calls and nice values; ids, capabilities, personality; clocks that nobody may set; splice.
//
// calls: adjtimex capget capset clock_settime clone futex_waitv getpriority personality pidfd_getfd pidfd_open
// calls: pidfd_send_signal process_vm_readv process_vm_writev sched_get_priority_max sched_get_priority_min
// calls: sched_getparam sched_getscheduler sched_rr_get_interval sched_setscheduler setfsuid setgroups setpriority
// calls: setresgid setresuid setreuid splice vmsplice waitid
#include "check.h"
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/uio.h>

#define P_PIDFD_ 3
static int pidfd(pid_t pid, unsigned flags) { return syscall(SYS_pidfd_open, pid, flags); }
static int send_to(int fd, int sig, void *info, unsigned flags) { return syscall(SYS_pidfd_send_signal, fd, sig, info, flags); }
static int wait_by(int fd, siginfo_t *info, int options) { return syscall(SYS_waitid, P_PIDFD_, fd, info, options, NULL); }

static short state(int fd)
{
    struct pollfd p = {fd, POLLIN, 0};
    CHECK(poll(&p, 1, 0) >= 0);
    return p.revents;
}

static void processes_by_descriptor(void)
{
    FAILS(pidfd(0, 0), EINVAL);
    FAILS(pidfd(-1, 0), EINVAL);
    FAILS(pidfd(getpid(), 1), EINVAL);
    FAILS(pidfd(4000000, 0), ESRCH);
    int p[2];
    OK(pipe(p));
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        char c;
        OK(close(p[1]));
        EQUAL(read(p[0], &c, 1), 0);
        _exit(7);
    }
    OK(close(p[0]));
    int fd = pidfd(child, 0);
    OK(fd);
    EQUAL(fcntl(fd, F_GETFD), FD_CLOEXEC);
    EQUAL(state(fd), 0);
    OK(send_to(fd, 0, NULL, 0));
    FAILS(send_to(fd, 65, NULL, 0), EINVAL);
    FAILS(send_to(fd, -1, NULL, 0), EINVAL);
    FAILS(send_to(fd, 0, NULL, 1u << 20), EINVAL);
    FAILS(send_to(p[1], 0, NULL, 0), EBADF);
    FAILS(send_to(-1, 0, NULL, 0), EBADF);
    FAILS(send_to(fd, 0, (void *)8, 0), EFAULT);
    siginfo_t info = {.si_signo = SIGUSR1, .si_code = SI_QUEUE};
    FAILS(send_to(fd, SIGUSR2, &info, 0), EINVAL);
    info.si_code = SI_USER;
    FAILS(send_to(fd, SIGUSR1, &info, 0), EPERM);
    char c;
    FAILS(read(fd, &c, 1), EINVAL);
    FAILS(wait_by(p[1], &info, WEXITED), EBADF);
    FAILS(wait_by(-1, &info, WEXITED), EINVAL);
    FAILS(wait_by(99, &info, WEXITED), EBADF);
    OK(wait_by(fd, &info, WEXITED | WNOHANG));
    OK(close(p[1]));
    struct pollfd w = {fd, POLLIN, 0};
    EQUAL(poll(&w, 1, -1), 1);
    EQUAL(w.revents, POLLIN);
    OK(send_to(fd, 0, NULL, 0)); // a zombie is there
    memset(&info, 0, sizeof info);
    OK(wait_by(fd, &info, WEXITED | WNOWAIT));
    EQUAL(info.si_pid, child);
    EQUAL(info.si_status, 7);
    OK(wait_by(fd, &info, WEXITED));
    FAILS(wait_by(fd, &info, WEXITED), ECHILD);
    FAILS(send_to(fd, 0, NULL, 0), ESRCH);
    EQUAL(state(fd), POLLIN | POLLHUP);
    OK(close(fd));
    child = fork();
    if (child == 0) {
        pause();
        _exit(1);
    }
    fd = pidfd(child, O_NONBLOCK);
    FAILS(wait_by(fd, &info, WEXITED), EAGAIN);
    OK(send_to(fd, SIGKILL, NULL, 0));
    EQUAL(poll(&(struct pollfd){fd, POLLIN, 0}, 1, -1), 1);
    OK(wait_by(fd, &info, WEXITED));
    EQUAL(info.si_status, SIGKILL);
    OK(close(fd));
}

static void descriptors_of_clones(void)
{
    int fd = -1;
    FAILS(syscall(SYS_clone, 0x1000 | 0x00100000 | SIGCHLD, 0, &fd, 0, 0), EINVAL); // with CLONE_PARENT_SETTID
    FAILS(syscall(SYS_clone, 0x1000 | SIGCHLD, 0, 8, 0, 0), EFAULT);
    pid_t child = syscall(SYS_clone, 0x1000 | SIGCHLD, 0, &fd, 0, 0);
    if (child == 0) _exit(5);
    OK(child);
    siginfo_t info;
    OK(wait_by(fd, &info, WEXITED));
    EQUAL(info.si_pid, child);
    EQUAL(fcntl(fd, F_GETFD), FD_CLOEXEC);
    OK(close(fd));
    struct { uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls; } a = {0x1000, (uintptr_t)&fd, 0, 0, SIGCHLD};
    child = syscall(SYS_clone3, &a, sizeof a);
    if (child == 0) _exit(6);
    OK(child);
    OK(wait_by(fd, &info, WEXITED));
    EQUAL(info.si_status, 6);
    OK(close(fd));
    int p[2];
    OK(pipe(p));
    fd = pidfd(getpid(), 0);
    int copy = syscall(SYS_pidfd_getfd, fd, p[1], 0);
    OK(copy);
    EQUAL(write(copy, "x", 1), 1);
    char c;
    EQUAL(read(p[0], &c, 1), 1);
    FAILS(syscall(SYS_pidfd_getfd, fd, 99, 0), EBADF);
    FAILS(syscall(SYS_pidfd_getfd, p[0], p[1], 0), EBADF);
    FAILS(syscall(SYS_pidfd_getfd, fd, p[1], 1), EINVAL);
    OK(close(fd)); OK(close(copy)); OK(close(p[0])); OK(close(p[1]));
}

static char far[3 * PAGE] __attribute__((aligned(PAGE)));

static void other_memory(void)
{
    int p[2], q[2];
    OK(pipe(p));
    OK(pipe(q));
    strcpy(far + 100, "parent");
    pid_t child = fork();
    OK(child);
    char c;
    if (child == 0) {
        strcpy(far + 100, "child's own");
        EQUAL(write(p[1], "r", 1), 1);
        EQUAL(read(q[0], &c, 1), 1);
        CHECK(strcmp(far + PAGE - 3, "written") == 0);
        _exit(4);
    }
    EQUAL(read(p[0], &c, 1), 1);
    char b[32] = "", d[32] = "";
    struct iovec local[2] = {{b, 5}, {d, 20}}, remote[2] = {{far + 100, 7}, {far + 107, 5}};
    EQUAL(process_vm_readv(child, local, 2, remote, 2, 0), 12);
    CHECK(memcmp(b, "child", 5) == 0 && strcmp(d, "'s own") == 0);
    CHECK(strcmp(far + 100, "parent") == 0);
    struct iovec out = {"written", 8}, to = {far + PAGE - 3, 8};
    EQUAL(process_vm_writev(child, &out, 1, &to, 1, 0), 8); // across pages
    struct iovec bad = {(void *)8, 8};
    FAILS(process_vm_readv(child, local, 1, &bad, 1, 0), EFAULT);
    FAILS(process_vm_readv(child, &bad, 1, remote, 1, 0), EFAULT);
    struct iovec both[2] = {{far, 4}, {(void *)8, 8}}, room = {b, 12};
    EQUAL(process_vm_readv(child, &room, 1, both, 2, 0), 4); // up to the hole
    FAILS(process_vm_readv(child, local, 1, remote, 1, 1), EINVAL);
    FAILS(process_vm_readv(child, local, 1025, remote, 1, 0), EINVAL);
    FAILS(process_vm_readv(4000000, local, 1, remote, 1, 0), ESRCH);
    EQUAL(process_vm_readv(child, local, 0, remote, 1, 0), 0);
    FAILS(process_vm_readv(child, (void *)8, 1, remote, 1, 0), EFAULT);
    EQUAL(write(q[1], "g", 1), 1);
    EQUAL(WEXITSTATUS(wait_for(child)), 4);
    EQUAL(process_vm_readv(getpid(), local, 1, remote, 1, 0), 5);
    CHECK(memcmp(b, "paren", 5) == 0);
    OK(close(p[0])); OK(close(p[1])); OK(close(q[0])); OK(close(q[1]));
}

struct waitv { uint64_t val, uaddr; uint32_t flags, reserved; };
static _Atomic uint32_t words[130];
static int waitv(struct waitv *w, unsigned n, unsigned flags, struct timespec *t, int clock) { return syscall(449, w, n, flags, t, clock); }

static void *wake_fifth(void *unused)
{
    sleep_ms(20);
    words[5] = 1;
    while (syscall(SYS_futex, &words[5], 129, 1) == 0) sleep_ms(1);
    return unused;
}

// Whoever reads another process's memory is itself still where it was: what a third one writes to it arrives there.
static void readers_stay_themselves(void)
{
    static volatile long word;
    static char bytes[1 << 15];
    word = 0;
    pid_t read_from = fork(), reader;
    if (read_from == 0) {
        while (word == 0) sleep_ms(1);
        _exit(1); // nobody writes here
    }
    OK(reader = fork());
    if (reader == 0) {
        static char copy[sizeof bytes];
        struct iovec here = {copy, sizeof copy}, there = {bytes, sizeof bytes};
        for (;;) process_vm_readv(read_from, &here, 1, &there, 1, 0);
    }
    long one = 1;
    struct iovec here = {&one, sizeof one}, there = {(void *)&word, sizeof word};
    for (int i = 0; i < 2000; i++) EQUAL(process_vm_writev(reader, &here, 1, &there, 1, 0), (long)sizeof one);
    sleep_ms(5);
    EQUAL(waitpid(read_from, NULL, WNOHANG), 0);
    OK(kill(reader, SIGKILL));
    OK(kill(read_from, SIGKILL));
    wait_for(reader);
    wait_for(read_from);
}

// A process may end while its environment is read.
static void ends_while_read(void)
{
    for (int i = 0; i < 150; i++) {
        pid_t child = fork();
        if (child == 0) for (;;) pause();
        char path[40], text[4096];
        snprintf(path, sizeof path, "/proc/%d/environ", child);
        pid_t killer = fork();
        if (killer == 0) {
            for (volatile int spin = 0; spin < i * 20; spin++) {}
            kill(child, SIGKILL);
            _exit(0);
        }
        int fd = open(path, O_RDONLY);
        if (fd >= 0) {
            for (int k = 0; k < 20; k++) pread(fd, text, sizeof text, 0);
            OK(close(fd));
        }
        wait_for(killer);
        wait_for(child);
    }
}

static void several_futexes(void)
{
    struct waitv w[130] = {0};
    for (int i = 0; i < 130; i++) w[i] = (struct waitv){0, (uintptr_t)&words[i], 2 | 128, 0};
    struct timespec t;
    FAILS(waitv(w, 0, 0, NULL, 0), EINVAL);
    FAILS(waitv(w, 129, 0, NULL, 0), EINVAL);
    FAILS(waitv(w, 1, 1, NULL, 0), EINVAL);
    FAILS(waitv(NULL, 1, 0, NULL, 0), EINVAL);
    FAILS(waitv((void *)8, 1, 0, NULL, 0), EFAULT);
    w[1].reserved = 1;
    FAILS(waitv(w, 2, 0, NULL, 0), EINVAL);
    w[1].reserved = 0;
    w[1].val = 1;
    FAILS(waitv(w, 2, 0, NULL, 0), EAGAIN);
    w[1].val = 0;
    OK(clock_gettime(CLOCK_MONOTONIC, &t));
    FAILS(waitv(w, 128, 0, &t, CLOCK_MONOTONIC), ETIMEDOUT);
    FAILS(waitv(w, 128, 0, &t, 5), EINVAL);
    pthread_t thread;
    RETURNS(pthread_create(&thread, NULL, wake_fifth, NULL), 0);
    int woken;
    do woken = waitv(w, 128, 0, NULL, 0);
    while (woken == -1 && errno == EINTR);
    CHECK(woken == 5 || (woken == -1 && errno == EAGAIN));
    if (woken == -1) syscall(SYS_futex, &words[5], 129, 1);
    CHECK(woken == 5);
    RETURNS(pthread_join(thread, NULL), 0);
}

static void priorities(void)
{
    struct sched_param s = {0};
    OK(setpriority(PRIO_PROCESS, 0, 0)); // whatever the caller's is
    EQUAL(syscall(SYS_sched_getscheduler, 0), SCHED_OTHER);
    FAILS(syscall(SYS_sched_getscheduler, -1), EINVAL);
    FAILS(syscall(SYS_sched_getscheduler, 4000000), ESRCH);
    OK(syscall(SYS_sched_setscheduler, 0, SCHED_OTHER, &s));
    FAILS(syscall(SYS_sched_setscheduler, 0, 99, &s), EINVAL);
    FAILS(syscall(SYS_sched_setscheduler, 0, SCHED_OTHER, NULL), EINVAL);
    FAILS(syscall(SYS_sched_setscheduler, 0, SCHED_OTHER, 8), EFAULT);
    s.sched_priority = 1;
    FAILS(syscall(SYS_sched_setscheduler, 0, SCHED_OTHER, &s), EINVAL);
    s.sched_priority = 100;
    FAILS(syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &s), EINVAL);
    OK(syscall(SYS_sched_getparam, 0, &s));
    EQUAL(s.sched_priority, 0);
    FAILS(syscall(SYS_sched_getparam, 0, NULL), EINVAL);
    OK(syscall(SYS_sched_setparam, 0, &s));
    EQUAL(sched_get_priority_max(SCHED_FIFO), 99);
    EQUAL(sched_get_priority_min(SCHED_RR), 1);
    EQUAL(sched_get_priority_max(SCHED_OTHER), 0);
    EQUAL(sched_get_priority_min(SCHED_BATCH), 0);
    FAILS(sched_get_priority_max(99), EINVAL);
    FAILS(sched_get_priority_min(-1), EINVAL);
    struct timespec t;
    OK(syscall(SYS_sched_rr_get_interval, 0, &t));
    FAILS(syscall(SYS_sched_rr_get_interval, -1, &t), EINVAL);
    FAILS(syscall(SYS_sched_rr_get_interval, 0, 8), EFAULT);
    errno = 0;
    EQUAL(syscall(SYS_getpriority, PRIO_PROCESS, 0), 20);
    FAILS(syscall(SYS_getpriority, 3, 0), EINVAL);
    FAILS(syscall(SYS_getpriority, PRIO_PROCESS, 4000000), ESRCH);
    OK(setpriority(PRIO_PROCESS, 0, 5));
    EQUAL(syscall(SYS_getpriority, PRIO_PROCESS, 0), 15);
    pid_t child = fork();
    if (child == 0) _exit(getpriority(PRIO_PROCESS, 0)); // inherited
    EQUAL(WEXITSTATUS(wait_for(child)), 5);
    OK(setpriority(PRIO_PROCESS, 0, 100));
    EQUAL(syscall(SYS_getpriority, PRIO_PROCESS, 0), 1);
    FAILS(setpriority(9, 0, 0), EINVAL);
}

static void identity(void)
{
    OK(syscall(SYS_setresuid, 0, -1, 0));
    OK(syscall(SYS_setresgid, -1, -1, -1));
    OK(syscall(SYS_setreuid, 0, 0));
    EQUAL(syscall(SYS_setfsuid, -1), 0);
    OK(syscall(SYS_setgroups, 0, NULL));
    FAILS(syscall(SYS_setgroups, -1, NULL), EINVAL);
    FAILS(syscall(SYS_setgroups, 1, 8), EFAULT);
    EQUAL(personality(0xffffffff), 0);
    EQUAL(personality(ADDR_NO_RANDOMIZE), 0);
    EQUAL(personality(0xffffffff), ADDR_NO_RANDOMIZE);
    EQUAL(personality(0), ADDR_NO_RANDOMIZE);
    struct { uint32_t version; int pid; } header = {0x20080522, 0};
    struct { uint32_t effective, permitted, inheritable; } sets[2], more[2];
    OK(syscall(SYS_capget, &header, sets));
    EQUAL(sets[0].effective & 1, 1);
    OK(syscall(SYS_capset, &header, sets));
    sets[0].effective &= ~1u;
    sets[0].permitted &= ~1u;
    OK(syscall(SYS_capset, &header, sets));
    memcpy(more, sets, sizeof more);
    more[0].permitted |= 1;
    FAILS(syscall(SYS_capset, &header, more), EPERM);
    more[0].permitted &= ~1u;
    more[0].effective |= 1;
    FAILS(syscall(SYS_capset, &header, more), EPERM);
    header.pid = -1;
    FAILS(syscall(SYS_capget, &header, sets), EINVAL);
    header.pid = 4000000;
    FAILS(syscall(SYS_capget, &header, sets), ESRCH);
    header.version = 1;
    FAILS(syscall(SYS_capget, &header, sets), EINVAL);
    EQUAL(header.version, 0x20080522);
    header.version = 1;
    OK(syscall(SYS_capget, &header, NULL));
    FAILS(syscall(SYS_capget, 8, sets), EFAULT);
}

static void unsettable_clocks(void)
{
    struct timespec t = {0, 1000000000};
    FAILS(syscall(SYS_clock_settime, CLOCK_MONOTONIC, &t), EINVAL);
    FAILS(syscall(SYS_clock_settime, CLOCK_REALTIME, &t), EINVAL);
    FAILS(syscall(SYS_clock_settime, CLOCK_REALTIME, 8), EFAULT);
    FAILS(syscall(SYS_clock_settime, 99, &t), EINVAL);
    char timex[208] = {0};
    CHECK(syscall(SYS_adjtimex, timex) >= 0);
    FAILS(syscall(SYS_adjtimex, 8), EFAULT);
    FAILS(syscall(SYS_clock_adjtime, 99, timex), EINVAL);
}

static void splicing(void)
{
    int p[2], q[2];
    char b[16];
    OK(pipe(p));
    OK(pipe(q));
    EQUAL(write(p[1], "through pipes", 13), 13);
    EQUAL(splice(p[0], NULL, q[1], NULL, 7, 0), 7);
    EQUAL(splice(p[0], NULL, q[1], NULL, 100, SPLICE_F_NONBLOCK), 6);
    FAILS(splice(p[0], NULL, q[1], NULL, 100, SPLICE_F_NONBLOCK), EAGAIN);
    EQUAL(read(q[0], b, 16), 13);
    CHECK(memcmp(b, "through pipes", 13) == 0);
    FAILS(splice(p[0], NULL, p[1], NULL, 1, 0), EINVAL);
    FAILS(splice(p[1], NULL, q[1], NULL, 1, 0), EBADF);
    FAILS(splice(p[0], NULL, q[1], NULL, 1, 1024), EINVAL);
    off_t at = 0;
    FAILS(splice(p[0], &at, q[1], NULL, 1, 0), ESPIPE);
    EQUAL(splice(p[0], NULL, q[1], NULL, 0, 0), 0);
    struct iovec v = {"memory", 6}, room = {b, 16};
    EQUAL(vmsplice(p[1], &v, 1, 0), 6);
    EQUAL(vmsplice(p[0], &room, 1, 0), 6);
    FAILS(vmsplice(-1, &v, 1, 0), EBADF);
    char path[] = "/tmp/calls_process.XXXXXX";
    int f = mkstemp(path);
    EQUAL(write(f, "0123456789", 10), 10);
    at = 4;
    EQUAL(splice(f, &at, p[1], NULL, 3, 0), 3);
    EQUAL(at, 7);
    EQUAL(read(p[0], b, 16), 3);
    CHECK(memcmp(b, "456", 3) == 0);
    EQUAL(splice(f, NULL, p[1], NULL, 3, 0), 0); // at its end
    EQUAL(write(p[1], "ab", 2), 2);
    at = 1;
    EQUAL(splice(p[0], NULL, f, &at, 2, 0), 2);
    EQUAL(pread(f, b, 4, 0), 4);
    CHECK(memcmp(b, "0ab3", 4) == 0);
    FAILS(splice(f, NULL, f, NULL, 1, 0), EINVAL);
    OK(close(q[0]));
    OK(unlink(path));
    OK(close(f)); OK(close(p[0])); OK(close(p[1])); OK(close(q[1]));
}

int main(void)
{
    RUN(processes_by_descriptor);
    RUN(descriptors_of_clones);
    RUN(other_memory);
    RUN(readers_stay_themselves);
    RUN(ends_while_read);
    RUN(several_futexes);
    RUN(unsettable_clocks);
    RUN(splicing);
    RUN(priorities);
    RUN(identity);
    return finished("calls_process");
}
