// comings N: processes and threads that come and go while others look them up by their ids, N times each.
//
// A process is found from its beginning until it has been collected, and not after that; what is found of it is its own; so with threads.
// A thread that executes another program takes over its process's id. A group's number is nobody else's id while the group lasts.
#include "check.h"
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define MAKERS 2
#define LOOKERS 2

static unsigned long times;
// Those that there are, or were.
static _Atomic pid_t made[MAKERS];
static _Atomic int over;
static _Atomic unsigned long looks;
static pid_t group, session;
// What getpriority(2) gives for a thread that has not set it: whoever starts the program may have.
static long inherited;

// A limit that says whose it is; until it is set there is the parent's, without.
static rlim_t mark_of(pid_t pid) { return 1000000u + (rlim_t)pid; }

static int is_gone(long result)
{
    if (result == -1) EQUAL(errno, ESRCH);
    return result == -1;
}

static void look_at_process(pid_t pid)
{
    struct rlimit limit;
    is_gone(kill(pid, 0));
    long found = getpgid(pid);
    if (!is_gone(found)) CHECK(found == pid || found == group);
    found = getsid(pid);
    if (!is_gone(found)) EQUAL(found, session);
    if (!is_gone(syscall(SYS_prlimit64, pid, RLIMIT_CORE, NULL, &limit)))
        CHECK(limit.rlim_cur == 0 || limit.rlim_cur == mark_of(pid));
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (!is_gone(fd)) {
        is_gone(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0));
        OK(close(fd));
    }
}

static void look_at_thread(pid_t tid)
{
    cpu_set_t set;
    is_gone(syscall(SYS_tgkill, getpid(), tid, 0));
    is_gone(syscall(SYS_tgkill, getpid(), tid, SIGWINCH)); // which does nothing
    long nice = syscall(SYS_getpriority, PRIO_PROCESS, tid);
    if (!is_gone(nice)) CHECK(nice == inherited || nice == 20 - tid % 20);
    if (!is_gone(syscall(SYS_sched_getaffinity, tid, sizeof set, &set))) CHECK(CPU_COUNT(&set) > 0);
}

static void (*look)(pid_t);

static void *looks_up(void *none)
{
    while (!over) {
        for (int m = 0; m < MAKERS; m++)
            if (made[m]) look(made[m]);
        looks++;
        sched_yield();
    }
    return none;
}

// Lookers run while makers do, and those while nobody has looked yet.
static void race(void *(*make)(void *), void (*what)(pid_t))
{
    pthread_t makers[MAKERS], lookers[LOOKERS];
    over = 0;
    looks = 0;
    look = what;
    for (int i = 0; i < MAKERS; i++) made[i] = 0;
    for (int i = 0; i < LOOKERS; i++) RETURNS(pthread_create(&lookers[i], NULL, looks_up, NULL), 0);
    for (long i = 0; i < MAKERS; i++) RETURNS(pthread_create(&makers[i], NULL, make, (void *)i), 0);
    for (int i = 0; i < MAKERS; i++) RETURNS(pthread_join(makers[i], NULL), 0);
    while (looks < 10) sched_yield();
    over = 1;
    for (int i = 0; i < LOOKERS; i++) RETURNS(pthread_join(lookers[i], NULL), 0);
}

static void *forks(void *me)
{
    for (unsigned long i = 0; i < times; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            struct rlimit limit = {mark_of(getpid()), RLIM_INFINITY};
            OK(setrlimit(RLIMIT_CORE, &limit));
            if (i % 2) OK(setpgid(0, 0));
            _exit((int)(i % 100));
        }
        made[(long)me] = child;
        OK(kill(child, 0));
        siginfo_t info;
        OK(waitid(P_PID, child, &info, WEXITED | WNOWAIT));
        // It has ended, and is there nevertheless.
        OK(kill(child, 0));
        EQUAL(getpgid(child), i % 2 ? child : group);
        EQUAL(WEXITSTATUS(wait_for(child)), i % 100);
        FAILS(kill(child, 0), ESRCH);
        FAILS(getpgid(child), ESRCH);
    }
    return NULL;
}

static void processes(void) { race(forks, look_at_process); }

static void *is_made(void *me)
{
    pid_t tid = (pid_t)syscall(SYS_gettid);
    made[(long)me] = tid;
    OK(setpriority(PRIO_PROCESS, (id_t)tid, tid % 20));
    OK(syscall(SYS_tgkill, getpid(), tid, 0));
    EQUAL(getpriority(PRIO_PROCESS, (id_t)tid), tid % 20);
    return NULL;
}

static void *makes_threads(void *me)
{
    for (unsigned long i = 0; i < times; i++) {
        pthread_t thread;
        RETURNS(pthread_create(&thread, NULL, is_made, me), 0);
        RETURNS(pthread_join(thread, NULL), 0);
    }
    return NULL;
}

static void threads(void) { race(makes_threads, look_at_thread); }

static const char *self;

static void *executes(void *none)
{
    char *words[] = {(char *)self, "executed", NULL};
    execv(self, words);
    CHECK(!"the program is executed");
    return none;
}

static void *forks_who_execute(void *me)
{
    for (unsigned long i = 0; i < times / 10; i++) {
        int ends[2];
        OK(pipe(ends));
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            struct rlimit limit = {mark_of(getpid()), RLIM_INFINITY};
            pthread_t thread;
            OK(setrlimit(RLIMIT_CORE, &limit));
            OK(dup2(ends[1], 1));
            RETURNS(pthread_create(&thread, NULL, executes, NULL), 0);
            for (;;) pause();
        }
        made[(long)me] = child;
        OK(close(ends[1]));
        // Both ids as the program tells them. Others may have been forked with the pipe's other end, so the end isn't waited for.
        pid_t told[2];
        EQUAL(read(ends[0], told, sizeof told), sizeof told);
        EQUAL(told[0], child);
        EQUAL(told[1], child);
        OK(kill(child, 0));
        EQUAL(wait_for(child), 0);
        FAILS(kill(child, 0), ESRCH);
        OK(close(ends[0]));
    }
    return NULL;
}

static void executions(void) { race(forks_who_execute, look_at_process); }

// A group outlives its leader: its number signals it, and is nobody's id.
static void groups(void)
{
    int status;
    pid_t leader = fork();
    CHECK(leader >= 0);
    if (leader == 0) {
        OK(setpgid(0, 0));
        for (;;) pause();
    }
    while (getpgid(leader) != leader) sched_yield();
    pid_t member = fork();
    CHECK(member >= 0);
    if (member == 0)
        for (;;) pause();
    OK(setpgid(member, leader));
    OK(kill(leader, SIGKILL));
    status = wait_for(leader);
    CHECK(WIFSIGNALED(status));
    FAILS(kill(leader, 0), ESRCH);
    OK(kill(-leader, 0));
    EQUAL(getpgid(member), leader);
    // A third joins it by its number.
    pid_t third = fork();
    CHECK(third >= 0);
    if (third == 0)
        for (;;) pause();
    OK(setpgid(third, leader));
    OK(kill(-leader, SIGKILL));
    CHECK(WIFSIGNALED(wait_for(member)));
    CHECK(WIFSIGNALED(wait_for(third)));
    FAILS(kill(-leader, 0), ESRCH);
    pid_t late = fork();
    CHECK(late >= 0);
    if (late == 0)
        for (;;) pause();
    FAILS(setpgid(late, leader), EPERM);
    OK(kill(late, SIGKILL));
    wait_for(late);
    FAILS(setpgid(late, late), ESRCH);
}

// The number that the next descriptor gets, and one to which a copy goes.
#define NEXT 10
#define COPY 20

static void *copies_what_comes(void *none)
{
    while (!over)
        if (dup2(NEXT, COPY) < 0) EQUAL(errno, EBADF);
    return none;
}

// A child that does not begin leaves nothing, even if its descriptor was copied before it was taken back: the files of its
// parent, which it was to share, are closed when that ends.
static void undone(void)
{
    int ends[2];
    OK(pipe(ends));
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        pthread_t other;
        OK(close(ends[0]));
        over = 0;
        for (int fd = 3; fd < NEXT; fd++)
            if (fd != ends[1]) OK(dup2(ends[1], fd));
        RETURNS(pthread_create(&other, NULL, copies_what_comes, NULL), 0);
        for (unsigned long i = 0; i < 200 * times; i++)
            FAILS(syscall(SYS_clone, 0x1000 | CLONE_VM | CLONE_FILES | SIGCHLD, 0, 8, 0, 0), EFAULT); // CLONE_PIDFD
        over = 1;
        RETURNS(pthread_join(other, NULL), 0);
        _exit(0);
    }
    OK(close(ends[1]));
    struct pollfd end = {ends[0], POLLIN, 0};
    RETURNS(poll(&end, 1, 60000), 1);
    EQUAL(end.revents, POLLHUP);
    OK(close(ends[0]));
    wait_for(child);
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "executed")) {
        pid_t ids[] = {getpid(), (pid_t)syscall(SYS_gettid)};
        OK(write(1, ids, sizeof ids));
        return 0;
    }
    CHECK(argc == 2);
    self = "/proc/self/exe";
    times = strtoul(argv[1], NULL, 10);
    group = getpgrp();
    session = getsid(0);
    inherited = syscall(SYS_getpriority, PRIO_PROCESS, 0);
    struct rlimit none = {0, RLIM_INFINITY};
    OK(setrlimit(RLIMIT_CORE, &none));
    RUN(processes);
    RUN(threads);
    RUN(executions);
    RUN(groups);
    RUN(undone);
    return finished("comings");
}
