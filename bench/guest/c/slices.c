// slices: who waits for a CPU that several threads share.
//
// Proves: a thread that sleeps does not wait for the slice of whoever took its CPU meanwhile, when it is woken; and two that
// wake each other all the time do not keep a third from the CPU.
//
// calls: sched_setaffinity clock_gettime pipe2 read write
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

static int there[2], back[2];
static atomic_int over, started;
static atomic_long hogged;

static long ns(clockid_t clock)
{
    struct timespec now;
    OK(clock_gettime(clock, &now));
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

static void *echo(void *arg)
{
    char c;
    (void)arg;
    while (read(there[0], &c, 1) == 1) EQUAL(write(back[1], &c, 1), 1);
    return 0;
}

// In system calls, or in user mode.
static void *hog(void *calls)
{
    atomic_store(&started, 1);
    while (!atomic_load(&over)) {
        if (calls) syscall(SYS_getppid);
        atomic_store(&hogged, ns(CLOCK_THREAD_CPUTIME_ID));
    }
    return 0;
}

static void trip(void)
{
    char c = 'x';
    EQUAL(write(there[1], &c, 1), 1);
    EQUAL(read(back[0], &c, 1), 1);
}

int main(void)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    OK(sched_setaffinity(0, sizeof one, &one));
    for (intptr_t calls = 0; calls < 2; calls++) {
        pthread_t threads[2];
        OK(pipe2(there, 0));
        OK(pipe2(back, 0));
        atomic_store(&over, 0);
        atomic_store(&started, 0);
        atomic_store(&hogged, 0);
        EQUAL(pthread_create(&threads[0], 0, echo, 0), 0);
        EQUAL(pthread_create(&threads[1], 0, hog, (void *)calls), 0);
        while (!atomic_load(&started)) sched_yield();

        // A slice is 10 ms: waiting for one at each of two wakes would give it 20 ms a trip.
        long before = atomic_load(&hogged);
        for (int i = 0; i < 200; i++) trip();
        CHECK(atomic_load(&hogged) - before < 200 * 5000000L);

        long start = ns(CLOCK_MONOTONIC), end = start;
        before = atomic_load(&hogged);
        while (end - start < 600000000L) {
            for (int i = 0; i < 100; i++) trip();
            end = ns(CLOCK_MONOTONIC);
        }
        CHECK(atomic_load(&hogged) - before > (end - start) / 8);

        atomic_store(&over, 1);
        close(there[1]);
        for (int i = 0; i < 2; i++) EQUAL(pthread_join(threads[i], 0), 0);
        close(there[0]);
        close(back[0]);
        close(back[1]);
    }
    puts("slices: all checks passed");
    return 0;
}
