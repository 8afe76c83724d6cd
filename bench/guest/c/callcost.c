// callcost: what calls cost. `callcost [COUNT]`, 2000 by default.
//
// For each call: the least time of three loops of COUNT calls, less that of an empty loop, over COUNT. Where a machine's
// clock counts instructions (QEMU with `-icount shift=0`: one ns each), that is the number of instructions, and the last
// column is right to a few; elsewhere it is ns. Only a machine with one CPU gives figures that repeat.
#include "check.h"
#include <poll.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>

static long count = 2000;
static int ends[2], file;
static char byte, *pages;
static uint32_t word;
static struct stat status;

static void nothing(void) {}
static void own_id(void) { syscall(SYS_getpid); }
static void clock_vdso(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
}
static void clock_call(void)
{
    struct timespec t;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t);
}
static void through_a_pipe(void)
{
    if (write(ends[1], &byte, 1) != 1 || read(ends[0], &byte, 1) != 1) _exit(1);
}
static void read_a_byte(void) { pread(file, &byte, 1, 0); }
static void write_a_byte(void) { pwrite(file, &byte, 1, 0); }
static void wake_nobody(void) { syscall(SYS_futex, &word, 129, 1); }
static void wait_for_nothing(void) { syscall(SYS_futex, &word, 128, 1, NULL); } // the value differs
static void map_and_unmap(void) { munmap(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), PAGE); }
static void map_touch_and_unmap(void)
{
    char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *(volatile char *)p = 1;
    munmap(p, PAGE);
}
static void protect_and_back(void)
{
    mprotect(pages, PAGE, PROT_READ);
    mprotect(pages, PAGE, PROT_READ | PROT_WRITE);
}
static void give_back_and_touch(void)
{
    madvise(pages, PAGE, MADV_DONTNEED);
    *(volatile char *)pages = 1;
}
static void give_back(void) { madvise(pages, PAGE, MADV_DONTNEED); }
static void open_and_close(void) { close(open("/tmp/quire-callcost", O_RDONLY)); }
static void stat_of_a_path(void) { stat("/tmp/quire-callcost", &status); }
static void stat_of_a_file(void) { fstat(file, &status); }
static void seek(void) { lseek(file, 0, SEEK_SET); }
static void yield(void) { sched_yield(); }
static void poll_one(void) { poll(&(struct pollfd){ends[1], POLLOUT, 0}, 1, 0); }
static void block_a_signal(void)
{
    sigset_t set;
    sigemptyset(&set);
    syscall(SYS_rt_sigprocmask, SIG_BLOCK, &set, NULL, 8);
}
static void handler(int s) { (void)s; }
static void signal_to_itself(void) { syscall(SYS_tgkill, getpid(), getpid(), SIGUSR1); }
static void child(void)
{
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    waitpid(pid, NULL, 0);
}

static uint64_t least(void (*call)(void), long calls)
{
    uint64_t best = UINT64_MAX;
    for (int round = 0; round < 3; round++) {
        uint64_t start = now_ns();
        for (long i = 0; i < calls; i++) call();
        uint64_t took = now_ns() - start;
        if (took < best) best = took;
    }
    return best;
}

int main(int argc, char **argv)
{
    if (argc > 1) count = atol(argv[1]);
    CHECK(count > 0);
    OK(pipe(ends));
    file = open("/tmp/quire-callcost", O_RDWR | O_CREAT | O_TRUNC, 0600);
    OK(file);
    EQUAL(write(file, "x", 1), 1);
    pages = pages_new(1);
    *pages = 1;
    signal(SIGUSR1, handler);
    struct { const char *name; void (*call)(void); long share; } rows[] = {
        {"getpid", own_id, 1},
        {"clock_gettime, vDSO", clock_vdso, 1},
        {"clock_gettime, system call", clock_call, 1},
        {"write and read of a byte, pipe", through_a_pipe, 1},
        {"pread of a byte, file", read_a_byte, 1},
        {"pwrite of a byte, file", write_a_byte, 1},
        {"lseek", seek, 1},
        {"fstat", stat_of_a_file, 1},
        {"stat of a path of two names", stat_of_a_path, 1},
        {"open and close of it", open_and_close, 1},
        {"poll of one file that is ready", poll_one, 1},
        {"futex wake of nobody", wake_nobody, 1},
        {"futex wait that finds another value", wait_for_nothing, 1},
        {"rt_sigprocmask", block_a_signal, 1},
        {"tgkill of itself, handler and rt_sigreturn", signal_to_itself, 1},
        {"sched_yield, alone", yield, 1},
        {"mmap and munmap of a page", map_and_unmap, 1},
        {"the same with a write to it between", map_touch_and_unmap, 1},
        {"mprotect of a page, twice", protect_and_back, 1},
        {"madvise(MADV_DONTNEED) of a page", give_back, 1},
        {"the same, and a page fault", give_back_and_touch, 1},
        {"fork, exit and wait", child, 20},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        long calls = count / rows[i].share > 0 ? count / rows[i].share : 1;
        rows[i].call(); // the first one is special
        uint64_t base = least(nothing, calls), took = least(rows[i].call, calls);
        printf("%-48s %10.0f\n", rows[i].name, took > base ? (double)(took - base) / calls : 0.0);
    }
    OK(unlink("/tmp/quire-callcost"));
    return finished("callcost");
}
