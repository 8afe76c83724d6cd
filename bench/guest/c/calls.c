// calls MODE N THREADS: N times, threads make one system call each on a CPU of its own, with markers around what is counted:
// which lines of the kernel's move that the threads have no need to share?
//
// getpid, sigaction (looks at the handler of SIGUSR1), mask (blocks and unblocks a signal), stat (of one path), open (opens and
// closes one path), fstat and pread (of one open file), pipe (a byte through a pipe of the thread's own), kill (signal 0 to
// itself), cwd; handle (a signal to the thread itself, which handles it); and about others: other (signal 0 to another process),
// thread (signal 0 to another thread), group (of another process), limits (of another process), nice (of another thread).
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

// The tracer's markers (docs/exact.md).
#define MARK(number) __asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00; .long " #number ::: "memory")
#define WINDOW_BEGIN MARK(0x51510001)
#define WINDOW_END MARK(0x51510002)
#define OPERATION_BEGIN MARK(0x51510003)
#define OPERATION_END MARK(0x51510004)

#define MOST 256
#define WARM 20

static _Atomic unsigned long arrived[3];
static unsigned long times, threads;
static const char *mode;
static int file;
// Another process, and another thread of this one; they sleep.
static pid_t other, sleeper;
// Of this process alone: others may run the same.
static char path[32];
static _Thread_local volatile sig_atomic_t handled;

static int is(const char *name) { return strcmp(mode, name) == 0; }

static void meet(int where)
{
    arrived[where]++;
    while (arrived[where] < threads) sched_yield();
}

static void handler(int signal) { handled = signal; }

static void call(const int ends[2], pid_t me)
{
    char byte = 7, text[64];
    struct stat about;
    struct sigaction action;
    sigset_t set;
    if (is("getpid")) {
        CHECK(syscall(SYS_getpid) == getpid());
    } else if (is("sigaction")) {
        OK(sigaction(SIGUSR1, NULL, &action));
    } else if (is("mask")) {
        sigemptyset(&set);
        sigaddset(&set, SIGUSR2);
        OK(pthread_sigmask(SIG_BLOCK, &set, NULL));
        OK(pthread_sigmask(SIG_UNBLOCK, &set, NULL));
    } else if (is("stat")) {
        OK(stat(path, &about));
    } else if (is("open")) {
        int fd = open(path, O_RDONLY);
        CHECK(fd >= 0);
        OK(close(fd));
    } else if (is("fstat")) {
        OK(fstat(file, &about));
    } else if (is("pread")) {
        CHECK(pread(file, &byte, 1, 0) == 1 && byte == 'c');
    } else if (is("pipe")) {
        CHECK(write(ends[1], &byte, 1) == 1);
        CHECK(read(ends[0], &byte, 1) == 1 && byte == 7);
    } else if (is("kill")) {
        OK(kill(getpid(), 0));
    } else if (is("handle")) {
        handled = 0;
        OK(syscall(SYS_tkill, me, SIGUSR1));
        CHECK(handled == SIGUSR1);
    } else if (is("other")) {
        OK(kill(other, 0));
    } else if (is("thread")) {
        OK(syscall(SYS_tgkill, getpid(), sleeper, 0));
    } else if (is("group")) {
        CHECK(getpgid(other) == getpgrp());
    } else if (is("limits")) {
        struct rlimit limit;
        OK(syscall(SYS_prlimit64, other, RLIMIT_NOFILE, NULL, &limit));
    } else if (is("nice")) {
        CHECK(getpriority(PRIO_PROCESS, (id_t)sleeper) == 0);
    } else {
        CHECK(is("cwd") && getcwd(text, sizeof text) == text);
    }
}

static void *thread(void *self)
{
    unsigned long me = (unsigned long)self;
    cpu_set_t cpu;
    CPU_ZERO(&cpu);
    CPU_SET(me, &cpu);
    OK(sched_setaffinity(0, sizeof cpu, &cpu));
    int ends[2];
    OK(pipe(ends));
    pid_t tid = (pid_t)syscall(SYS_gettid);
    for (unsigned long i = 0; i < WARM; i++) call(ends, tid);
    meet(0);
    WINDOW_BEGIN;
    for (unsigned long i = 0; i < times; i++) {
        OPERATION_BEGIN;
        call(ends, tid);
        OPERATION_END;
    }
    WINDOW_END;
    meet(1);
    return NULL;
}

static void *sleep_until_told(void *end)
{
    char byte;
    sleeper = (pid_t)syscall(SYS_gettid);
    arrived[2] = 1;
    CHECK(read(*(int *)end, &byte, 1) == 0);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t all[MOST];
    CHECK(argc == 4);
    mode = argv[1];
    times = strtoul(argv[2], NULL, 10);
    threads = strtoul(argv[3], NULL, 10);
    CHECK(threads >= 1 && threads <= MOST);
    snprintf(path, sizeof path, "/tmp/calls.%d", (int)getpid());
    file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(file >= 0 && write(file, "calls", 5) == 5);
    int ends[2];
    pthread_t asleep;
    CHECK(signal(SIGUSR1, handler) != SIG_ERR);
    OK(pipe(ends));
    CHECK((other = fork()) >= 0);
    if (other == 0) {
        char byte;
        OK(close(ends[1]));
        _exit(read(ends[0], &byte, 1) == 0 ? 0 : 1);
    }
    CHECK(pthread_create(&asleep, NULL, sleep_until_told, &ends[0]) == 0);
    while (!arrived[2]) sched_yield();
    for (unsigned long i = 0; i < threads; i++) CHECK(pthread_create(&all[i], NULL, thread, (void *)i) == 0);
    for (unsigned long i = 0; i < threads; i++) CHECK(pthread_join(all[i], NULL) == 0);
    int status;
    OK(close(ends[1]));
    CHECK(pthread_join(asleep, NULL) == 0);
    CHECK(waitpid(other, &status, 0) == other && status == 0);
    OK(unlink(path));
    puts("calls: ok");
    return 0;
}
