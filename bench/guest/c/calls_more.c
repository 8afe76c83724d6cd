// calls_more: who and what a process is, signals by number, clocks, waiting for descriptors, messages in numbers.
//
// Proves: ids, groups and sessions; limits, usage and names; policies and CPUs of a thread; how children are made and
// waited for, and what is refused; queued signals and waiting for them; clocks, sleeps and interval timers; poll and
// select in all their forms; sendmmsg and recvmmsg. Each call with good and with bad arguments.
//
// calls: alarm arch_prctl brk clock_adjtime clock_getres clock_gettime clock_nanosleep clone3 dup2 execve exit
// calls: exit_group get_mempolicy get_robust_list getcpu getegid geteuid getgid getgroups getitimer getpgid getpgrp
// calls: getpid getppid getrandom getresgid getresuid getrlimit getrusage getsid gettid gettimeofday getuid kill mbind
// calls: membarrier mincore mlock mlock2 mlockall move_pages msync munlock munlockall munmap nanosleep pkey_alloc
// calls: pkey_free pkey_mprotect poll ppoll prctl prlimit64 pselect6 recvmmsg remap_file_pages restart_syscall
// calls: rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
// calls: sched_getaffinity sched_getattr sched_setaffinity sched_setattr sched_setparam sched_yield select sendmmsg
// calls: set_mempolicy set_robust_list set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setregid
// calls: setresgid setreuid setrlimit setsid settimeofday setuid sigaltstack sysinfo tgkill time times tkill wait4
// calls: waitid
#include "check.h"
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/sysinfo.h>
#include <sys/time.h>
#include <sys/times.h>
#include <sys/utsname.h>

#define NOBODY 4000000 // no process can have this id

// ---- who ----------------------------------------------------------------------------------------------------------

static void user_and_group(void)
{
    unsigned r = 9, e = 9, s = 9;
    EQUAL(syscall(SYS_getuid), 0);
    EQUAL(syscall(SYS_geteuid), 0);
    EQUAL(syscall(SYS_getgid), 0);
    EQUAL(syscall(SYS_getegid), 0);
    OK(syscall(SYS_getresuid, &r, &e, &s));
    EQUAL(r | e | s, 0);
    r = e = s = 9;
    OK(syscall(SYS_getresgid, &r, &e, &s));
    EQUAL(r | e | s, 0);
    FAILS(syscall(SYS_getresuid, &r, 8, &s), EFAULT);
    FAILS(syscall(SYS_getresgid, &r, &e, 8), EFAULT);
    OK(syscall(SYS_setuid, 0));
    OK(syscall(SYS_setgid, 0));
    FAILS(syscall(SYS_setuid, -1), EINVAL);
    FAILS(syscall(SYS_setgid, -1), EINVAL);
    OK(syscall(SYS_setregid, -1, 0));
    OK(syscall(SYS_setreuid, 0, -1));
    OK(syscall(SYS_setresgid, 0, 0, 0));
    EQUAL(syscall(SYS_setfsuid, 0), 0);
    EQUAL(syscall(SYS_setfsgid, 0), 0);
    EQUAL(syscall(SYS_setfsgid, -1), 0); // tells, and changes nothing
    OK(syscall(SYS_setgroups, 0, NULL));
    EQUAL(syscall(SYS_getgroups, 0, NULL), 0);
    FAILS(syscall(SYS_getgroups, -1, NULL), EINVAL);
    FAILS(syscall(SYS_setgroups, 65537, NULL), EINVAL);
    unsigned groups[2] = {0, 0};
    OK(syscall(SYS_setgroups, 2, groups));
    EQUAL(syscall(SYS_getgroups, 0, NULL), 2);
    FAILS(syscall(SYS_getgroups, 1, groups), EINVAL);
    groups[0] = 5;
    EQUAL(syscall(SYS_getgroups, 2, groups), 2);
    EQUAL(groups[0], 0);
    FAILS(syscall(SYS_getgroups, 2, 8), EFAULT);
    OK(syscall(SYS_setgroups, 0, NULL));
}

static void groups_and_sessions(void)
{
    pid_t me = getpid();
    EQUAL(syscall(SYS_getpgid, 0), syscall(SYS_getpgrp));
    EQUAL(syscall(SYS_getpgid, me), syscall(SYS_getpgrp));
    FAILS(syscall(SYS_getpgid, NOBODY), ESRCH);
    FAILS(syscall(SYS_getpgid, -1), ESRCH);
    EQUAL(syscall(SYS_getsid, 0), syscall(SYS_getsid, me));
    FAILS(syscall(SYS_getsid, NOBODY), ESRCH);
    FAILS(syscall(SYS_getsid, -1), ESRCH);
    int p[2], q[2];
    OK(pipe(p) + pipe(q));
    pid_t child = fork();
    OK(child);
    char c;
    if (child == 0) {
        EQUAL(getppid(), me);
        EQUAL(read(p[0], &c, 1), 1);
        EQUAL(syscall(SYS_getpgrp), getpid()); // the parent has put it into a group of its own
        FAILS(syscall(SYS_setsid), EPERM); // which leads
        OK(setpgid(0, getppid()) == -1 && errno == EPERM ? 0 : 0);
        pid_t grandchild = fork();
        OK(grandchild);
        if (grandchild == 0) {
            EQUAL(syscall(SYS_setsid), getpid());
            EQUAL(syscall(SYS_getsid, 0), getpid());
            EQUAL(syscall(SYS_getpgrp), getpid());
            FAILS(syscall(SYS_setsid), EPERM);
            FAILS(syscall(SYS_setpgid, 0, 0), EPERM); // a session's leader stays
            _exit(0);
        }
        EQUAL(wait_for(grandchild), 0);
        FAILS(syscall(SYS_setpgid, grandchild, 0), ESRCH);
        _exit(0);
    }
    OK(syscall(SYS_setpgid, child, 0));
    EQUAL(syscall(SYS_getpgid, child), child);
    FAILS(syscall(SYS_setpgid, child, NOBODY), EPERM);
    FAILS(syscall(SYS_setpgid, 0, -1), EINVAL);
    FAILS(syscall(SYS_setpgid, NOBODY, 0), ESRCH);
    EQUAL(write(p[1], "g", 1), 1);
    EQUAL(wait_for(child), 0);
    OK(close(p[0]) + close(p[1]) + close(q[0]) + close(q[1]));
}

static void limits_and_usage(void)
{
    struct rlimit r, old;
    OK(syscall(SYS_getrlimit, RLIMIT_NOFILE, &old));
    r = old;
    r.rlim_cur = 64;
    OK(syscall(SYS_setrlimit, RLIMIT_NOFILE, &r));
    FAILS(dup2(0, 64), EBADF);
    OK(dup2(0, 63));
    FAILS(fcntl(0, F_DUPFD, 64), EINVAL);
    FAILS(fcntl(0, F_DUPFD, 63), EMFILE);
    OK(close(63));
    r.rlim_cur = r.rlim_max + 1;
    if (r.rlim_max != RLIM_INFINITY) FAILS(syscall(SYS_setrlimit, RLIMIT_NOFILE, &r), EINVAL);
    FAILS(syscall(SYS_setrlimit, 99, &old), EINVAL);
    FAILS(syscall(SYS_setrlimit, RLIMIT_NOFILE, 8), EFAULT);
    FAILS(syscall(SYS_getrlimit, 99, &r), EINVAL);
    r.rlim_cur = 0;
    OK(syscall(SYS_prlimit64, getpid(), RLIMIT_NOFILE, &old, &r));
    EQUAL(r.rlim_cur, 64);
    FAILS(syscall(SYS_prlimit64, NOBODY, RLIMIT_NOFILE, NULL, &r), ESRCH);
    FAILS(syscall(SYS_prlimit64, 0, 99, NULL, &r), EINVAL);
    for (int i = 0; i < RLIM_NLIMITS; i++) OK(syscall(SYS_getrlimit, i, &r));

    struct rusage u;
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        do OK(getrusage(RUSAGE_SELF, &u));
        while (u.ru_utime.tv_sec == 0 && u.ru_utime.tv_usec + u.ru_stime.tv_usec < 30000);
        memset(pages_new(100), 1, 100 * PAGE);
        struct rusage later;
        OK(getrusage(RUSAGE_THREAD, &later));
        CHECK(later.ru_minflt > u.ru_minflt); // it was told of the pages that it touched
        CHECK(later.ru_maxrss > 0);
        _exit(0);
    }
    EQUAL(syscall(SYS_wait4, child, NULL, 0, &u), child);
    CHECK(u.ru_utime.tv_usec + u.ru_stime.tv_usec >= 30000 || u.ru_utime.tv_sec + u.ru_stime.tv_sec > 0);
    CHECK(u.ru_minflt > 0 && u.ru_maxrss > 0);
    OK(syscall(SYS_getrusage, RUSAGE_CHILDREN, &u));
    CHECK(u.ru_utime.tv_usec + u.ru_stime.tv_usec >= 30000 || u.ru_utime.tv_sec + u.ru_stime.tv_sec > 0);
    FAILS(syscall(SYS_getrusage, 9, &u), EINVAL);
    FAILS(syscall(SYS_getrusage, RUSAGE_SELF, 8), EFAULT);
    struct tms t;
    CHECK(syscall(SYS_times, &t) > 0 && t.tms_cutime + t.tms_cstime >= 1);
    FAILS(syscall(SYS_times, 8), EFAULT);
    struct utsname n;
    OK(syscall(SYS_uname, &n));
    CHECK(strcmp(n.sysname, "Linux") == 0 && strcmp(n.machine, "x86_64") == 0);
    struct sysinfo i;
    OK(syscall(SYS_sysinfo, &i));
    CHECK(i.totalram >= i.freeram && i.procs > 0 && i.mem_unit > 0);
    FAILS(syscall(SYS_sysinfo, 8), EFAULT);
}

static void names_and_habits(void)
{
    char name[16] = "";
    OK(prctl(PR_SET_NAME, "a-name-of-twenty-letters"));
    OK(prctl(PR_GET_NAME, name));
    EQUAL(strcmp(name, "a-name-of-twent"), 0);
    FAILS(prctl(PR_SET_NAME, 8), EFAULT);
    FAILS(prctl(PR_GET_NAME, 8), EFAULT);
    EQUAL(prctl(PR_GET_DUMPABLE), 1);
    FAILS(prctl(PR_SET_DUMPABLE, 2), EINVAL);
    FAILS(prctl(12345), EINVAL);
    unsigned char bytes[64] = {0}, zeros[64] = {0};
    EQUAL(syscall(SYS_getrandom, bytes, 64, 0), 64);
    CHECK(memcmp(bytes, zeros, 64) != 0);
    EQUAL(syscall(SYS_getrandom, bytes, 0, GRND_NONBLOCK), 0);
    FAILS(syscall(SYS_getrandom, bytes, 64, 8), EINVAL);
    FAILS(syscall(SYS_getrandom, bytes, 64, 6), EINVAL); // neither random nor urandom
    unsigned long fs = 0, again = 0;
    OK(syscall(SYS_arch_prctl, 0x1003, &fs));
    OK(syscall(SYS_arch_prctl, 0x1002, fs));
    OK(syscall(SYS_arch_prctl, 0x1003, &again));
    EQUAL(fs, again);
    FAILS(syscall(SYS_arch_prctl, 0x1001, 0xffff800000000000), EPERM);
    FAILS(syscall(SYS_arch_prctl, 0x9999, 0), EINVAL);
}

// ---- threads and children -----------------------------------------------------------------------------------------

static void *own_name(void *out)
{
    *(pid_t *)out = syscall(SYS_gettid);
    return NULL;
}

struct policy { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t deadline[3]; };

static void policies_and_cpus(void)
{
    struct policy p = {0};
    OK(setpriority(PRIO_PROCESS, 0, 0)); // whatever the caller's is
    OK(syscall(SYS_sched_getattr, 0, &p, sizeof p, 0));
    EQUAL(p.size, sizeof p);
    EQUAL(p.policy, SCHED_OTHER);
    EQUAL(p.nice, 0);
    FAILS(syscall(SYS_sched_getattr, 0, &p, 8, 0), EINVAL);
    FAILS(syscall(SYS_sched_getattr, 0, &p, sizeof p, 1), EINVAL);
    FAILS(syscall(SYS_sched_getattr, 0, NULL, sizeof p, 0), EINVAL);
    FAILS(syscall(SYS_sched_getattr, -1, &p, sizeof p, 0), EINVAL);
    FAILS(syscall(SYS_sched_getattr, NOBODY, &p, sizeof p, 0), ESRCH);
    FAILS(syscall(SYS_sched_getattr, 0, 8, sizeof p, 0), EFAULT);
    p = (struct policy){.size = sizeof p, .policy = SCHED_BATCH, .nice = 3};
    OK(syscall(SYS_sched_setattr, 0, &p, 0));
    EQUAL(syscall(SYS_sched_getscheduler, 0), SCHED_BATCH);
    EQUAL(getpriority(PRIO_PROCESS, 0), 3);
    p.policy = SCHED_OTHER, p.nice = 0;
    OK(syscall(SYS_sched_setattr, 0, &p, 0));
    p.policy = 99;
    FAILS(syscall(SYS_sched_setattr, 0, &p, 0), EINVAL);
    p.policy = SCHED_OTHER, p.priority = 1;
    FAILS(syscall(SYS_sched_setattr, 0, &p, 0), EINVAL);
    p.priority = 0, p.size = 4;
    FAILS(syscall(SYS_sched_setattr, 0, &p, 0), E2BIG);
    EQUAL(p.size >= sizeof p, 1);
    p.size = sizeof p;
    FAILS(syscall(SYS_sched_setattr, 0, &p, 1), EINVAL);
    FAILS(syscall(SYS_sched_setattr, 0, NULL, 0), EINVAL);
    FAILS(syscall(SYS_sched_setattr, 0, 8, 0), EFAULT);
    FAILS(syscall(SYS_sched_setattr, NOBODY, &p, 0), ESRCH);
    struct sched_param none = {0};
    FAILS(syscall(SYS_sched_setparam, 0, NULL), EINVAL);
    FAILS(syscall(SYS_sched_setparam, 0, 8), EFAULT);
    FAILS(syscall(SYS_sched_setparam, NOBODY, &none), ESRCH);
    OK(syscall(SYS_sched_setparam, 0, &none));

    uint64_t set[16] = {0}, one[16] = {0};
    long bytes = syscall(SYS_sched_getaffinity, 0, sizeof set, set);
    CHECK(bytes >= 8 && bytes % 8 == 0);
    int first = __builtin_ctzll(set[0]);
    one[0] = 1ull << first;
    OK(syscall(SYS_sched_setaffinity, 0, sizeof one, one));
    unsigned cpu = 99, node = 99;
    OK(syscall(SYS_getcpu, &cpu, &node, NULL));
    EQUAL(cpu, first);
    EQUAL(node, 0);
    OK(syscall(SYS_getcpu, NULL, NULL, NULL));
    FAILS(syscall(SYS_getcpu, 8, NULL, NULL), EFAULT);
    OK(syscall(SYS_sched_yield));
    OK(syscall(SYS_sched_setaffinity, 0, sizeof set, set));
    one[0] = 0;
    FAILS(syscall(SYS_sched_setaffinity, 0, sizeof one, one), EINVAL);
    FAILS(syscall(SYS_sched_setaffinity, NOBODY, sizeof set, set), ESRCH);
    FAILS(syscall(SYS_sched_getaffinity, NOBODY, sizeof set, set), ESRCH);
    FAILS(syscall(SYS_sched_getaffinity, 0, 0, set), EINVAL);
    FAILS(syscall(SYS_sched_getaffinity, 0, 12, set), EINVAL);

    pid_t tid = 0;
    pthread_t thread;
    RETURNS(pthread_create(&thread, NULL, own_name, &tid), 0);
    RETURNS(pthread_join(thread, NULL), 0);
    CHECK(tid > 0 && tid != getpid());
    EQUAL(syscall(SYS_gettid), getpid());
    int word = 0;
    EQUAL(syscall(SYS_set_tid_address, &word), getpid());
    CHECK(syscall(SYS_membarrier, 0, 0, 0) > 0);
    OK(syscall(SYS_membarrier, 1, 0, 0));
    FAILS(syscall(SYS_membarrier, 8, 0, 0), EPERM); // not registered
    OK(syscall(SYS_membarrier, 16, 0, 0));
    OK(syscall(SYS_membarrier, 8, 0, 0));
    FAILS(syscall(SYS_membarrier, 1, 1, 0), EINVAL);
    FAILS(syscall(SYS_membarrier, 0x40000000, 0, 0), EINVAL);
    void *list;
    size_t size;
    OK(syscall(SYS_get_robust_list, 0, &list, &size));
    EQUAL(size, 24);
    FAILS(syscall(SYS_get_robust_list, NOBODY, &list, &size), ESRCH);
    FAILS(syscall(SYS_set_robust_list, &list, 8), EINVAL);
}

static void making_and_waiting(void)
{
    FAILS(syscall(SYS_clone, CLONE_THREAD, 0, 0, 0, 0), EINVAL);
    FAILS(syscall(SYS_clone, CLONE_SIGHAND, 0, 0, 0, 0), EINVAL);
    struct { uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls; } a = {.exit_signal = 65};
    FAILS(syscall(SYS_clone3, &a, sizeof a), EINVAL);
    a.exit_signal = SIGCHLD, a.stack = 4096;
    FAILS(syscall(SYS_clone3, &a, sizeof a), EINVAL);
    a.stack = 0;
    FAILS(syscall(SYS_clone3, &a, 8), EINVAL);
    FAILS(syscall(SYS_clone3, &a, 5000), E2BIG);
    pid_t child = syscall(SYS_clone3, &a, sizeof a);
    if (child == 0) syscall(SYS_exit, 300); // the low eight bits count
    OK(child);
    int status;
    EQUAL(syscall(SYS_wait4, child, &status, 0, NULL), child);
    EQUAL(status, 44 << 8);
    child = fork();
    if (child == 0) syscall(SYS_exit_group, -1);
    siginfo_t info = {0};
    OK(syscall(SYS_waitid, P_PID, child, &info, WEXITED | WNOWAIT, NULL));
    CHECK(info.si_pid == child && info.si_code == CLD_EXITED && info.si_status == 255);
    EQUAL(syscall(SYS_wait4, -1, &status, WNOHANG, NULL), child);
    FAILS(syscall(SYS_wait4, -1, &status, 0, NULL), ECHILD);
    FAILS(syscall(SYS_wait4, -1, &status, 0x10000, NULL), EINVAL);
    FAILS(syscall(SYS_wait4, INT32_MIN, &status, 0, NULL), ESRCH);
    FAILS(syscall(SYS_waitid, P_ALL, 0, &info, WEXITED, NULL), ECHILD);
    FAILS(syscall(SYS_waitid, P_ALL, 0, &info, 0, NULL), EINVAL);
    FAILS(syscall(SYS_waitid, 9, 0, &info, WEXITED, NULL), EINVAL);
    FAILS(syscall(SYS_waitid, P_PID, 0, &info, WEXITED, NULL), EINVAL);
    char *none[] = {NULL};
    FAILS(execve("none", none, none), ENOENT);
    FAILS(execve("/", none, none), EACCES);
    FAILS(execve("/dev/null", none, none), EACCES);
    FAILS(execve("", none, none), ENOENT);
    child = fork();
    if (child == 0) {
        raise(SIGSTOP);
        _exit(3);
    }
    EQUAL(syscall(SYS_wait4, child, &status, WUNTRACED, NULL), child);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    EQUAL(syscall(SYS_wait4, child, &status, WNOHANG, NULL), 0);
    OK(kill(child, SIGCONT));
    EQUAL(WEXITSTATUS(wait_for(child)), 3);
}

// ---- memory -------------------------------------------------------------------------------------------------------

static void memory_by_name(void)
{
    char *p = pages_new(4), *hole = pages_new(2);
    OK(munmap(hole + PAGE, PAGE));
    FAILS(munmap(hole + 1, PAGE), EINVAL);
    FAILS(munmap(hole, 0), EINVAL);
    unsigned long at = syscall(SYS_brk, 0);
    EQUAL(syscall(SYS_brk, 1), at); // a bad break changes nothing
    EQUAL(syscall(SYS_brk, at + 2 * PAGE), at + 2 * PAGE);
    *(volatile char *)(at + PAGE) = 1;
    EQUAL(syscall(SYS_brk, at), at);
    unsigned char in[4];
    memset(p, 1, PAGE);
    OK(syscall(SYS_mincore, p, PAGE, in));
    EQUAL(in[0] & 1, 1);
    FAILS(syscall(SYS_mincore, p + 1, PAGE, in), EINVAL);
    FAILS(syscall(SYS_mincore, hole, 2 * PAGE, in), ENOMEM);
    FAILS(syscall(SYS_mincore, p, PAGE, 8), EFAULT);
    OK(syscall(SYS_msync, p, PAGE, MS_SYNC));
    FAILS(syscall(SYS_msync, p, PAGE, MS_SYNC | MS_ASYNC), EINVAL);
    FAILS(syscall(SYS_msync, hole, 2 * PAGE, MS_SYNC), ENOMEM);
    OK(syscall(SYS_mlock, p, PAGE));
    FAILS(syscall(SYS_mlock, hole, 2 * PAGE), ENOMEM);
    OK(syscall(SYS_mlock2, p, PAGE, 1));
    FAILS(syscall(SYS_mlock2, p, PAGE, 2), EINVAL);
    OK(syscall(SYS_munlock, p, PAGE));
    FAILS(syscall(SYS_munlock, hole, 2 * PAGE), ENOMEM);
    FAILS(syscall(SYS_mlockall, 0), EINVAL);
    FAILS(syscall(SYS_mlockall, 8), EINVAL);
    OK(syscall(SYS_mlockall, MCL_FUTURE));
    OK(syscall(SYS_munlockall));
    FAILS(syscall(SYS_remap_file_pages, p, PAGE, 1, 0, 0), EINVAL);
    FAILS(syscall(SYS_remap_file_pages, p, PAGE, 0, 0, 0), EINVAL); // private memory
    FAILS(syscall(SYS_pkey_alloc, 1, 0), EINVAL);
    FAILS(syscall(SYS_pkey_alloc, 0, 4), EINVAL);
    FAILS(syscall(SYS_pkey_free, 99), EINVAL);
    FAILS(syscall(SYS_pkey_mprotect, p, PAGE, PROT_READ, 99), EINVAL);
    OK(syscall(SYS_pkey_mprotect, p, PAGE, PROT_READ, -1)); // no key: as mprotect
    FAILS(syscall(SYS_pkey_mprotect, hole, 2 * PAGE, PROT_READ, -1), ENOMEM);
    int mode = 9;
    unsigned long nodes[16] = {0};
    OK(syscall(SYS_get_mempolicy, &mode, nodes, 1024, NULL, 0));
    EQUAL(mode, 0);
    FAILS(syscall(SYS_get_mempolicy, &mode, NULL, 0, NULL, 99), EINVAL);
    OK(syscall(SYS_set_mempolicy, 0, NULL, 0));
    FAILS(syscall(SYS_set_mempolicy, 99, NULL, 0), EINVAL);
    FAILS(syscall(SYS_set_mempolicy, 2, nodes, 1024), EINVAL); // bound to no node
    OK(syscall(SYS_mbind, p, PAGE, 0, NULL, 0, 0));
    FAILS(syscall(SYS_mbind, p + 1, PAGE, 0, NULL, 0, 0), EINVAL);
    FAILS(syscall(SYS_mbind, p, PAGE, 99, NULL, 0, 0), EINVAL);
    void *pages[1] = {p};
    int status[1] = {-1};
    OK(syscall(SYS_move_pages, 0, 1, pages, NULL, status, 0));
    EQUAL(status[0], 0);
    FAILS(syscall(SYS_move_pages, NOBODY, 1, pages, NULL, status, 0), ESRCH);
    FAILS(syscall(SYS_move_pages, 0, 1, pages, NULL, status, 8), EINVAL);
    OK(munmap(p, 4 * PAGE) + munmap(hole, PAGE));
}

// ---- signals ------------------------------------------------------------------------------------------------------

static void sending_and_taking(void)
{
    sigset_t set, before, none;
    sigemptyset(&none);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN);
    OK(sigprocmask(SIG_BLOCK, &set, &before));
    uint64_t pending = 1;
    OK(syscall(SYS_rt_sigpending, &pending, 8));
    EQUAL(pending, 0);
    FAILS(syscall(SYS_rt_sigpending, &pending, 9), EINVAL);
    FAILS(syscall(SYS_rt_sigprocmask, 9, &set, NULL, 8), EINVAL);
    FAILS(syscall(SYS_rt_sigprocmask, SIG_BLOCK, &set, NULL, 4), EINVAL);
    FAILS(syscall(SYS_rt_sigaction, SIGKILL, &set, NULL, 8), EINVAL);
    FAILS(syscall(SYS_rt_sigaction, 65, NULL, NULL, 8), EINVAL);
    FAILS(syscall(SYS_rt_sigaction, 0, NULL, NULL, 8), EINVAL);

    siginfo_t out = {.si_code = SI_QUEUE}, in = {0};
    out.si_value.sival_int = 42;
    OK(syscall(SYS_rt_sigqueueinfo, getpid(), SIGRTMIN, &out));
    out.si_value.sival_int = 43;
    OK(syscall(SYS_rt_tgsigqueueinfo, getpid(), getpid(), SIGRTMIN, &out));
    OK(syscall(SYS_tkill, getpid(), SIGUSR1));
    OK(syscall(SYS_rt_sigpending, &pending, 8));
    EQUAL(pending, 1ull << (SIGUSR1 - 1) | 1ull << (SIGRTMIN - 1));
    struct timespec zero = {0, 0}, bad = {0, 1000000000};
    EQUAL(syscall(SYS_rt_sigtimedwait, &set, &in, &zero, 8), SIGUSR1);
    CHECK(in.si_code == SI_TKILL && in.si_pid == getpid());
    int sum = 0;
    for (int i = 0; i < 2; i++) {
        EQUAL(syscall(SYS_rt_sigtimedwait, &set, &in, NULL, 8), SIGRTMIN);
        EQUAL(in.si_code, SI_QUEUE);
        sum += in.si_value.sival_int;
    }
    EQUAL(sum, 85);
    FAILS(syscall(SYS_rt_sigtimedwait, &set, &in, &zero, 8), EAGAIN);
    FAILS(syscall(SYS_rt_sigtimedwait, &set, &in, &bad, 8), EINVAL);
    FAILS(syscall(SYS_rt_sigtimedwait, &set, &in, &zero, 4), EINVAL);
    FAILS(syscall(SYS_rt_sigqueueinfo, NOBODY, SIGRTMIN, &out), ESRCH);
    FAILS(syscall(SYS_rt_sigqueueinfo, getpid(), 65, &out), EINVAL);
    FAILS(syscall(SYS_rt_sigqueueinfo, getpid(), SIGUSR1, 8), EFAULT);
    FAILS(syscall(SYS_rt_tgsigqueueinfo, getpid(), NOBODY, SIGRTMIN, &out), ESRCH);
    FAILS(syscall(SYS_rt_tgsigqueueinfo, -1, getpid(), SIGRTMIN, &out), EINVAL);
    out.si_code = SI_USER;
    FAILS(syscall(SYS_rt_sigqueueinfo, getppid(), SIGRTMIN, &out), EPERM); // posing as the kernel
    FAILS(syscall(SYS_tkill, NOBODY, SIGUSR1), ESRCH);
    FAILS(syscall(SYS_tkill, 0, SIGUSR1), EINVAL);
    FAILS(syscall(SYS_tkill, getpid(), 65), EINVAL);
    FAILS(syscall(SYS_tgkill, getpid(), 0, SIGUSR1), EINVAL);
    FAILS(syscall(SYS_tgkill, getppid(), getpid(), 0), ESRCH);
    OK(syscall(SYS_tgkill, getpid(), getpid(), 0));
    OK(syscall(SYS_kill, getpid(), 0));
    FAILS(syscall(SYS_kill, getpid(), 65), EINVAL);
    FAILS(syscall(SYS_kill, NOBODY, 0), ESRCH);
    FAILS(syscall(SYS_kill, -NOBODY, 0), ESRCH);
    FAILS(syscall(SYS_rt_sigsuspend, &none, 4), EINVAL);
    FAILS(syscall(SYS_restart_syscall), EINTR);
    stack_t stack = {.ss_sp = pages_new(4), .ss_size = 4 * PAGE, .ss_flags = 0};
    OK(syscall(SYS_sigaltstack, &stack, NULL));
    stack.ss_size = 100;
    FAILS(syscall(SYS_sigaltstack, &stack, NULL), ENOMEM);
    stack.ss_flags = 99;
    FAILS(syscall(SYS_sigaltstack, &stack, NULL), EINVAL);
    stack.ss_flags = SS_DISABLE;
    OK(syscall(SYS_sigaltstack, &stack, NULL));
    OK(sigprocmask(SIG_SETMASK, &before, NULL));
}

static volatile sig_atomic_t handled;
static void handler(int s) { (void)s, handled++; }

static void pausing(void)
{
    signal(SIGALRM, handler);
    struct itimerval t = {{0, 0}, {0, 20000}}, old;
    handled = 0;
    OK(syscall(SYS_setitimer, ITIMER_REAL, &t, &old));
    FAILS(syscall(SYS_pause), EINTR);
    EQUAL(handled, 1);
    OK(syscall(SYS_getitimer, ITIMER_REAL, &old));
    EQUAL(old.it_value.tv_sec + old.it_value.tv_usec, 0);
    sigset_t set, before;
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    OK(sigprocmask(SIG_BLOCK, &set, &before));
    OK(syscall(SYS_setitimer, ITIMER_REAL, &t, NULL));
    FAILS(syscall(SYS_rt_sigsuspend, &before, 8), EINTR);
    EQUAL(handled, 2);
    OK(sigprocmask(SIG_SETMASK, &before, NULL));
    EQUAL(syscall(SYS_alarm, 100), 0);
    EQUAL(syscall(SYS_alarm, 0), 100);
    EQUAL(syscall(SYS_alarm, 0), 0);
    t.it_value.tv_sec = 1000;
    t.it_interval.tv_usec = 7000;
    OK(syscall(SYS_setitimer, ITIMER_REAL, &t, NULL));
    OK(syscall(SYS_getitimer, ITIMER_REAL, &old));
    CHECK(old.it_value.tv_sec >= 900 && old.it_interval.tv_usec == 7000);
    OK(syscall(SYS_setitimer, ITIMER_REAL, NULL, &old)); // Linux takes no setting for none
    CHECK(old.it_value.tv_sec >= 900);
    t.it_value.tv_usec = 1000000;
    FAILS(syscall(SYS_setitimer, ITIMER_REAL, &t, NULL), EINVAL);
    FAILS(syscall(SYS_setitimer, 3, NULL, NULL), EINVAL);
    FAILS(syscall(SYS_getitimer, 3, &old), EINVAL);
    FAILS(syscall(SYS_getitimer, ITIMER_REAL, 8), EFAULT);
}

// ---- time ---------------------------------------------------------------------------------------------------------

static void clocks(void)
{
    struct timespec a, b;
    int ids[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID, CLOCK_MONOTONIC_RAW, 5, 6, CLOCK_BOOTTIME, 11};
    for (int i = 0; i < 9; i++) {
        OK(syscall(SYS_clock_gettime, ids[i], &a));
        OK(syscall(SYS_clock_gettime, ids[i], &b));
        CHECK(b.tv_sec > a.tv_sec || (b.tv_sec == a.tv_sec && b.tv_nsec >= a.tv_nsec));
        OK(syscall(SYS_clock_getres, ids[i], &a));
        CHECK(a.tv_sec == 0 && a.tv_nsec > 0);
        OK(syscall(SYS_clock_getres, ids[i], NULL));
    }
    FAILS(syscall(SYS_clock_gettime, 99, &a), EINVAL);
    FAILS(syscall(SYS_clock_getres, 99, &a), EINVAL);
    FAILS(syscall(SYS_clock_getres, CLOCK_MONOTONIC, 8), EFAULT);
    struct timeval t;
    time_t seconds, again;
    OK(syscall(SYS_gettimeofday, &t, NULL));
    seconds = syscall(SYS_time, &again);
    EQUAL(seconds, again);
    // time is of the last tick, which may have come before the second did.
    CHECK(seconds >= t.tv_sec - 1 && seconds <= t.tv_sec + 10);
    OK(syscall(SYS_gettimeofday, NULL, NULL));
    FAILS(syscall(SYS_gettimeofday, 8, NULL), EFAULT);
    FAILS(syscall(SYS_time, 8), EFAULT);
    OK(syscall(SYS_settimeofday, NULL, NULL));
    t.tv_usec = 1000000;
    FAILS(syscall(SYS_settimeofday, &t, NULL), EINVAL);
    t.tv_usec = -1;
    FAILS(syscall(SYS_settimeofday, &t, NULL), EINVAL);
    FAILS(syscall(SYS_settimeofday, 8, NULL), EFAULT);
    uint64_t timex[26] = {0};
    CHECK(syscall(SYS_clock_adjtime, CLOCK_REALTIME, timex) >= 0);
    FAILS(syscall(SYS_clock_adjtime, CLOCK_MONOTONIC, timex), EOPNOTSUPP);
    FAILS(syscall(SYS_clock_adjtime, CLOCK_REALTIME, 8), EFAULT);
}

static void sleeping(void)
{
    struct timespec t = {0, 10000000}, left = {7, 7}, now;
    uint64_t start = now_ns();
    OK(syscall(SYS_nanosleep, &t, &left));
    CHECK(now_ns() - start >= 10000000 && left.tv_sec == 7);
    OK(clock_gettime(CLOCK_MONOTONIC, &now));
    now.tv_nsec += 10000000;
    if (now.tv_nsec >= 1000000000) now.tv_nsec -= 1000000000, now.tv_sec++;
    start = now_ns();
    OK(syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &now, NULL));
    CHECK(now_ns() - start >= 5000000);
    now.tv_sec = 0;
    OK(syscall(SYS_clock_nanosleep, CLOCK_REALTIME, TIMER_ABSTIME, &now, NULL)); // long past
    t.tv_nsec = 1000000000;
    FAILS(syscall(SYS_nanosleep, &t, NULL), EINVAL);
    FAILS(syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &t, NULL), EINVAL);
    t.tv_nsec = 0, t.tv_sec = -1;
    FAILS(syscall(SYS_nanosleep, &t, NULL), EINVAL);
    t.tv_sec = 0;
    FAILS(syscall(SYS_clock_nanosleep, 99, 0, &t, NULL), EINVAL);
    FAILS(syscall(SYS_clock_nanosleep, CLOCK_THREAD_CPUTIME_ID, 0, &t, NULL), EOPNOTSUPP);
    FAILS(syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC_RAW, 0, &t, NULL), EOPNOTSUPP);
    signal(SIGALRM, handler);
    struct itimerval soon = {{0, 0}, {0, 20000}};
    OK(setitimer(ITIMER_REAL, &soon, NULL));
    t = (struct timespec){100, 0};
    FAILS(syscall(SYS_nanosleep, &t, &left), EINTR);
    CHECK(left.tv_sec >= 90 && left.tv_sec < 100);
}

// ---- waiting for descriptors --------------------------------------------------------------------------------------

static void polling(void)
{
    int p[2];
    OK(pipe(p));
    struct pollfd w[2] = {{p[0], POLLIN, 0}, {99, POLLIN, 0}};
    struct timespec zero = {0, 0}, t = {0, 5000000}, bad = {0, -1};
    EQUAL(syscall(SYS_poll, w, 1, 0), 0);
    EQUAL(syscall(SYS_poll, w, 2, -1), 1);
    EQUAL(w[1].revents, POLLNVAL);
    EQUAL(syscall(SYS_ppoll, w, 1, &t, NULL, 8), 0);
    EQUAL(t.tv_sec + t.tv_nsec, 0); // what is left of the limit
    EQUAL(write(p[1], "x", 1), 1);
    EQUAL(syscall(SYS_ppoll, w, 1, NULL, NULL, 8), 1);
    FAILS(syscall(SYS_ppoll, w, 1, &bad, NULL, 8), EINVAL);
    FAILS(syscall(SYS_ppoll, w, 1, &zero, w, 4), EINVAL);
    FAILS(syscall(SYS_ppoll, w, 1, &zero, 8, 8), EFAULT);
    FAILS(syscall(SYS_ppoll, 8, 1, &zero, NULL, 8), EFAULT);
    FAILS(syscall(SYS_poll, w, 10000000, 0), EINVAL);
    EQUAL(syscall(SYS_poll, NULL, 0, 0), 0);

    fd_set in, out;
    FD_ZERO(&in);
    FD_ZERO(&out);
    FD_SET(p[0], &in), FD_SET(p[1], &out);
    struct timeval limit = {5, 0};
    EQUAL(syscall(SYS_select, 64, &in, &out, NULL, &limit), 2);
    CHECK(FD_ISSET(p[0], &in) && FD_ISSET(p[1], &out) && limit.tv_sec >= 4);
    char c;
    EQUAL(read(p[0], &c, 1), 1);
    limit = (struct timeval){0, 5000};
    EQUAL(syscall(SYS_select, p[0] + 1, &in, NULL, NULL, &limit), 0);
    CHECK(!FD_ISSET(p[0], &in) && limit.tv_usec == 0);
    FD_SET(p[0], &in);
    t = (struct timespec){0, 5000000};
    EQUAL(syscall(SYS_pselect6, p[0] + 1, &in, NULL, NULL, &t, NULL), 0);
    FD_ZERO(&in);
    FD_SET(63, &in); // not open
    EQUAL(dup2(p[0], 63), 63);
    OK(close(63));
    EQUAL(dup2(p[0], 70), 70);
    FAILS(syscall(SYS_select, 64, &in, NULL, NULL, NULL), EBADF);
    FAILS(syscall(SYS_pselect6, 64, &in, NULL, NULL, NULL, NULL), EBADF);
    OK(close(70));
    FAILS(syscall(SYS_select, -1, NULL, NULL, NULL, NULL), EINVAL);
    limit.tv_sec = -1;
    FAILS(syscall(SYS_select, 0, NULL, NULL, NULL, &limit), EINVAL);
    FAILS(syscall(SYS_pselect6, 0, NULL, NULL, NULL, &bad, NULL), EINVAL);
    struct { const void *mask; size_t size; } mask = {&in, 4};
    FAILS(syscall(SYS_pselect6, 0, NULL, NULL, NULL, &zero, &mask), EINVAL);
    FAILS(syscall(SYS_select, 1, 8, NULL, NULL, NULL), EFAULT);
    // A mask that lets the signal through only while waiting.
    sigset_t block, none;
    sigemptyset(&block), sigemptyset(&none);
    sigaddset(&block, SIGALRM);
    OK(sigprocmask(SIG_BLOCK, &block, NULL));
    signal(SIGALRM, handler);
    handled = 0;
    OK(raise(SIGALRM));
    w[0] = (struct pollfd){p[0], POLLIN, 0};
    FAILS(syscall(SYS_ppoll, w, 1, NULL, &none, 8), EINTR);
    EQUAL(handled, 1);
    OK(raise(SIGALRM));
    mask.mask = &none, mask.size = 8;
    FD_ZERO(&in);
    FD_SET(p[0], &in);
    FAILS(syscall(SYS_pselect6, p[0] + 1, &in, NULL, NULL, NULL, &mask), EINTR);
    EQUAL(handled, 2);
    OK(sigprocmask(SIG_UNBLOCK, &block, NULL));
    OK(close(p[0]) + close(p[1]));
}

static void messages_in_numbers(void)
{
    int s[2];
    OK(socketpair(AF_UNIX, SOCK_DGRAM, 0, s));
    char b[4][8] = {""};
    struct iovec out[3] = {{"one", 3}, {"three", 5}, {"", 0}}, in[4];
    struct mmsghdr m[4] = {0};
    for (int i = 0; i < 3; i++) m[i].msg_hdr = (struct msghdr){.msg_iov = &out[i], .msg_iovlen = 1};
    EQUAL(syscall(SYS_sendmmsg, s[0], m, 3, 0), 3);
    CHECK(m[0].msg_len == 3 && m[1].msg_len == 5 && m[2].msg_len == 0);
    for (int i = 0; i < 4; i++) {
        in[i] = (struct iovec){b[i], 8};
        m[i].msg_hdr = (struct msghdr){.msg_iov = &in[i], .msg_iovlen = 1};
    }
    EQUAL(syscall(SYS_recvmmsg, s[1], m, 4, MSG_DONTWAIT, NULL), 3);
    CHECK(m[0].msg_len == 3 && m[1].msg_len == 5 && m[2].msg_len == 0);
    EQUAL(memcmp(b[0], "one", 3) + memcmp(b[1], "three", 5), 0);
    FAILS(syscall(SYS_recvmmsg, s[1], m, 4, MSG_DONTWAIT, NULL), EAGAIN);
    for (int i = 0; i < 2; i++) m[i].msg_hdr = (struct msghdr){.msg_iov = &out[i], .msg_iovlen = 1};
    EQUAL(syscall(SYS_sendmmsg, s[0], m, 2, 0), 2);
    m[0].msg_hdr = (struct msghdr){.msg_iov = &in[0], .msg_iovlen = 1};
    m[1].msg_hdr = (struct msghdr){.msg_iov = &in[1], .msg_iovlen = 1};
    EQUAL(syscall(SYS_recvmmsg, s[1], m, 4, 0x10000 /* MSG_WAITFORONE */, NULL), 2);
    struct timespec bad = {0, -1};
    FAILS(syscall(SYS_recvmmsg, s[1], m, 1, 0, &bad), EINVAL);
    EQUAL(syscall(SYS_sendmmsg, s[0], m, 0, 0), 0);
    FAILS(syscall(SYS_sendmmsg, 99, m, 1, 0), EBADF);
    FAILS(syscall(SYS_recvmmsg, 99, m, 1, 0, NULL), EBADF);
    FAILS(syscall(SYS_sendmmsg, s[0], 8, 1, 0), EFAULT);
    OK(close(s[1]));
    m[0].msg_hdr = (struct msghdr){.msg_iov = &out[0], .msg_iovlen = 1};
    FAILS(syscall(SYS_sendmmsg, s[0], m, 1, 0), ECONNREFUSED);
    OK(close(s[0]));
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    RUN(user_and_group);
    RUN(groups_and_sessions);
    RUN(limits_and_usage);
    RUN(names_and_habits);
    RUN(policies_and_cpus);
    RUN(making_and_waiting);
    RUN(memory_by_name);
    RUN(sending_and_taking);
    RUN(pausing);
    RUN(clocks);
    RUN(sleeping);
    RUN(polling);
    RUN(messages_in_numbers);
    return finished("calls_more");
}
