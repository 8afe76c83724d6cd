// calls MODE N THREADS: N times, threads make one system call each on a CPU of its own, with markers around what is counted:
// which lines of the kernel's move that the threads have no need to share?
//
// getpid, sigaction (looks at the handler of SIGUSR1), mask (blocks and unblocks a signal), stat (of one path), open (opens and
// closes one path), fstat and pread (of one open file), pipe (a byte through a pipe of the thread's own), kill (signal 0 to
// itself), cwd.
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>

// The tracer's markers (docs/exact.md).
#define MARK(number) __asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00; .long " #number ::: "memory")
#define WINDOW_BEGIN MARK(0x51510001)
#define WINDOW_END MARK(0x51510002)
#define OPERATION_BEGIN MARK(0x51510003)
#define OPERATION_END MARK(0x51510004)

#define MOST 256
#define WARM 20

static _Atomic unsigned long arrived[2];
static unsigned long times, threads;
static const char *mode;
static int file;
// Of this process alone: others may run the same.
static char path[32];

static int is(const char *name) { return strcmp(mode, name) == 0; }

static void meet(int where)
{
    arrived[where]++;
    while (arrived[where] < threads) sched_yield();
}

static void call(const int ends[2])
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
    for (unsigned long i = 0; i < WARM; i++) call(ends);
    meet(0);
    WINDOW_BEGIN;
    for (unsigned long i = 0; i < times; i++) {
        OPERATION_BEGIN;
        call(ends);
        OPERATION_END;
    }
    WINDOW_END;
    meet(1);
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
    for (unsigned long i = 0; i < threads; i++) CHECK(pthread_create(&all[i], NULL, thread, (void *)i) == 0);
    for (unsigned long i = 0; i < threads; i++) CHECK(pthread_join(all[i], NULL) == 0);
    OK(unlink(path));
    puts("calls: ok");
    return 0;
}
