// What every test program shares: checks that stop the program, and section names on standard output.
//
// A program prints one line when a section of checks has passed and a last line when all have. Nothing that may
// differ between two right runs (addresses, times, process ids, counts of retries) goes to standard output, so the
// output on Quire must equal the output on Linux byte for byte. A failed check goes to standard error and ends the
// process at once with status 1: _exit, because the process may be a child or have a thread that holds a lock.
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL

static inline _Noreturn void check_failed(const char *file, int line, const char *what, long long got, long long want)
{
    char text[512];
    int saved = errno;
    int n = snprintf(text, sizeof text, "%s:%d: failed: %s (got %lld = %#llx, wanted %lld = %#llx, errno %d)\n", file, line,
                     what, got, (unsigned long long)got, want, (unsigned long long)want, saved);
    if (write(2, text, n) < 0) _exit(2);
    _exit(1);
}

// Whether this processor has protection keys, and Linux uses them: there what may only be executed can't be read, and calls
// about keys succeed. Quire has none, as most machines.
static inline int has_keys(void)
{
    long key = syscall(SYS_pkey_alloc, 0L, 0L);
    return key >= 0 && syscall(SYS_pkey_free, key) == 0;
}

// The condition holds.
#define CHECK(condition)                                                                                                \
    do {                                                                                                                \
        if (!(condition)) check_failed(__FILE__, __LINE__, #condition, 0, 1);                                           \
    } while (0)

// Two numbers are equal; both are shown if they are not.
#define EQUAL(got, want)                                                                                                \
    do {                                                                                                                \
        long long got_ = (long long)(got), want_ = (long long)(want);                                                   \
        if (got_ != want_) check_failed(__FILE__, __LINE__, #got " == " #want, got_, want_);                            \
    } while (0)

// A call returns -1 with this errno.
#define FAILS(call, error)                                                                                              \
    do {                                                                                                                \
        errno = 0;                                                                                                      \
        long long result_ = (long long)(call);                                                                          \
        if (result_ != -1) check_failed(__FILE__, __LINE__, #call " fails with " #error, result_, -1);                  \
        if (errno != (error)) check_failed(__FILE__, __LINE__, #call " fails with " #error, errno, (error));            \
    } while (0)

// A call succeeds (does not return -1).
#define OK(call)                                                                                                        \
    do {                                                                                                                \
        long long result_ = (long long)(call);                                                                          \
        if (result_ == -1) check_failed(__FILE__, __LINE__, #call " succeeds", errno, 0);                               \
    } while (0)

// A pthread call returns this value (0 or an errno).
#define RETURNS(call, value) EQUAL(call, value)

// Says that a section's checks have passed.
static inline void passed(const char *section)
{
    printf("ok %s\n", section);
    fflush(stdout);
}

// Runs one section in the process itself; the name of the function is the name of the section.
#define RUN(section)                                                                                                    \
    do {                                                                                                                \
        section();                                                                                                      \
        passed(#section);                                                                                               \
    } while (0)

static inline int finished(const char *program)
{
    printf("%s: all checks passed\n", program);
    return fflush(stdout) == 0 ? 0 : 1;
}

// Waits for a child and returns its wait status.
static inline int wait_for(pid_t pid)
{
    int status = 0;
    pid_t got;
    do got = waitpid(pid, &status, 0);
    while (got == -1 && errno == EINTR);
    EQUAL(got, pid);
    return status;
}

// A fresh private anonymous mapping of `pages` pages, readable and writable.
static inline char *pages_new(size_t pages)
{
    void *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

static inline uint64_t now_ns(void)
{
    struct timespec t;
    OK(clock_gettime(CLOCK_MONOTONIC, &t));
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void sleep_ms(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&t, &t) == -1 && errno == EINTR) {}
}

#endif
