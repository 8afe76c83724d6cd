// slices: who waits for a CPU that several threads share.
//
// Proves: a thread that sleeps does not wait for the slice of whoever took its CPU meanwhile, when it is woken, also if others
// sleep and are woken beside it, or it has yielded before; and neither threads that wake each other all the time nor such
// that come from other CPUs all the time keep another from the CPU.
//
// calls: sched_setaffinity sched_yield clock_gettime pipe2 read write
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#define ECHOES 2
#define TRIPS 200
// Half a slice, in ns.
#define LONG 5000000L

static int there[ECHOES][2], back[ECHOES][2];
static atomic_int over, started;
static atomic_long hogged;

static long ns(clockid_t clock)
{
    struct timespec now;
    OK(clock_gettime(clock, &now));
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

static void run_on(int cpu)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    OK(sched_setaffinity(0, sizeof one, &one));
}

static void *echo(void *arg)
{
    char c;
    intptr_t i = (intptr_t)arg;
    while (read(there[i][0], &c, 1) == 1) EQUAL(write(back[i][1], &c, 1), 1);
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

// Runs for most of a slice, goes to another CPU, and comes back at once.
static void *traveller(void *arg)
{
    (void)arg;
    while (!atomic_load(&over)) {
        long end = ns(CLOCK_THREAD_CPUTIME_ID) + 9000000L;
        while (ns(CLOCK_THREAD_CPUTIME_ID) < end) {}
        run_on(1);
        run_on(0);
    }
    return 0;
}

// A trip to all of them and back.
static void trip(void)
{
    char c = 'x';
    sched_yield();
    for (int i = 0; i < ECHOES; i++) EQUAL(write(there[i][1], &c, 1), 1);
    for (int i = 0; i < ECHOES; i++) EQUAL(read(back[i][0], &c, 1), 1);
}

static pthread_t start(void *(*f)(void *), intptr_t arg)
{
    pthread_t thread;
    EQUAL(pthread_create(&thread, 0, f, (void *)arg), 0);
    return thread;
}

static pthread_t start_hog(intptr_t calls)
{
    atomic_store(&over, 0);
    atomic_store(&started, 0);
    atomic_store(&hogged, 0);
    pthread_t thread = start(hog, calls);
    while (!atomic_load(&started)) sched_yield();
    return thread;
}

int main(void)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    run_on(0);
    for (intptr_t calls = 0; calls < 2; calls++) {
        pthread_t echoes[ECHOES], other;
        for (int i = 0; i < ECHOES; i++) {
            OK(pipe2(there[i], 0));
            OK(pipe2(back[i], 0));
            echoes[i] = start(echo, i);
        }
        other = start_hog(calls);

        // Each trip yields, which may give the other a slice; those are not counted.
        int waits = 0;
        for (int i = 0; i < TRIPS; i++) {
            char c = 'x';
            long before = atomic_load(&hogged);
            for (int j = 0; j < ECHOES; j++) EQUAL(write(there[j][1], &c, 1), 1);
            for (int j = 0; j < ECHOES; j++) EQUAL(read(back[j][0], &c, 1), 1);
            waits += atomic_load(&hogged) - before > LONG;
        }
        // Each thread's slice ends now and then, and the host has other work.
        CHECK(waits < TRIPS / 10);

        long began = ns(CLOCK_MONOTONIC), end = began, before = atomic_load(&hogged);
        while (end - began < 600000000L) {
            trip();
            end = ns(CLOCK_MONOTONIC);
        }
        CHECK(atomic_load(&hogged) - before > (end - began) / 5);

        atomic_store(&over, 1);
        for (int i = 0; i < ECHOES; i++) close(there[i][1]);
        for (int i = 0; i < ECHOES; i++) EQUAL(pthread_join(echoes[i], 0), 0);
        EQUAL(pthread_join(other, 0), 0);
        for (int i = 0; i < ECHOES; i++) {
            close(there[i][0]);
            close(back[i][0]);
            close(back[i][1]);
        }
    }
    puts("slices: woken threads");
    if (cpus > 1) {
        pthread_t other = start_hog(0), travellers[2] = {start(traveller, 0), start(traveller, 0)};
        long began = ns(CLOCK_MONOTONIC), before = atomic_load(&hogged);
        struct timespec second = {1, 0};
        OK(nanosleep(&second, 0));
        long got = atomic_load(&hogged) - before, took = ns(CLOCK_MONOTONIC) - began;
        atomic_store(&over, 1);
        for (int i = 0; i < 2; i++) EQUAL(pthread_join(travellers[i], 0), 0);
        EQUAL(pthread_join(other, 0), 0);
        CHECK(got > took / 6);
    }
    puts("slices: all checks passed");
    return 0;
}
