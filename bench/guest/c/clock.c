// clock [THREADS]: time never goes back, for any thread, by any way of asking.
//
// Proves: CLOCK_MONOTONIC as read by many threads, through the vDSO and through the system call, never decreases even
// from one thread to the next; both ways of asking agree; the clocks agree with one another; every kind of sleep lasts
// at least as long as asked (and ends); coarse clocks and resolutions are sane; bad arguments give errno. The processor
// time of a process and of its threads never decreases either, whoever asks, while threads run, pause, move and end.
//
// calls: clock_getres clock_gettime getrusage gettimeofday nanosleep time
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/time.h>

static int threads = 4;

// The latest that anyone has seen, of each way of asking.
enum { MONOTONIC, PROCESS, USAGE, THREAD, WAYS };
static _Atomic uint64_t latest[WAYS];

static uint64_t ns(struct timespec t) { return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec; }

static uint64_t read_clock(clockid_t clock, int by_call)
{
    struct timespec t;
    OK(by_call ? syscall(SYS_clock_gettime, clock, &t) : clock_gettime(clock, &t));
    CHECK(t.tv_sec >= 0 && t.tv_nsec >= 0 && t.tv_nsec < 1000000000);
    return ns(t);
}

// Whatever has been seen by anyone before the clock is read cannot be later than what is read.
static void note(int way, uint64_t before, uint64_t now)
{
    CHECK(now >= before);
    while (before < now && !atomic_compare_exchange_weak(&latest[way], &before, now)) {}
}

static void *watch(void *self)
{
    for (int i = 0; i < 5000; i++) {
        uint64_t before = latest[MONOTONIC];
        note(MONOTONIC, before, read_clock(CLOCK_MONOTONIC, (i + (intptr_t)self) % 4 == 0));
        if (i % 500 == 0) sched_yield();
    }
    return NULL;
}

static void monotonic_across_threads(void)
{
    pthread_t thread[256];
    for (intptr_t i = 0; i < threads; i++) RETURNS(pthread_create(&thread[i], NULL, watch, (void *)i), 0);
    for (int i = 0; i < threads; i++) RETURNS(pthread_join(thread[i], NULL), 0);
}

static void ways_of_asking_agree(void)
{
    clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW};
    for (int c = 0; c < 4; c++) {
        for (int i = 0; i < 200; i++) { // each lies between the two askings around it
            uint64_t a = read_clock(clocks[c], i % 2), b = read_clock(clocks[c], !(i % 2)), d = read_clock(clocks[c], i % 2);
            CHECK(a <= b && b <= d);
        }
    }
    struct timeval day;
    uint64_t a = read_clock(CLOCK_REALTIME, 0);
    OK(gettimeofday(&day, NULL));
    uint64_t between = (uint64_t)day.tv_sec * 1000000000u + (uint64_t)day.tv_usec * 1000u + 999;
    CHECK(between >= a && (uint64_t)day.tv_sec * 1000000000u + (uint64_t)day.tv_usec * 1000u <= read_clock(CLOCK_REALTIME, 1));
    CHECK(llabs((long long)time(NULL) - (long long)(a / 1000000000u)) <= 1);
    CHECK(a > 1600000000ULL * 1000000000u); // after 2020: somebody has set the clock
    // Two clocks advance together.
    uint64_t mono = read_clock(CLOCK_MONOTONIC, 0), real = read_clock(CLOCK_REALTIME, 0);
    sleep_ms(50);
    int64_t drift = (int64_t)(read_clock(CLOCK_MONOTONIC, 0) - mono) - (int64_t)(read_clock(CLOCK_REALTIME, 0) - real);
    CHECK(llabs(drift) < 1000000000);
}

static void sleeps_last_long_enough(void)
{
    long lengths[] = {0, 1, 1000, 100000, 3000000, 30000000};
    for (int i = 0; i < 6; i++) {
        struct timespec t = {0, lengths[i]};
        uint64_t start = now_ns();
        OK(nanosleep(&t, NULL));
        CHECK(now_ns() - start >= (uint64_t)lengths[i]);
        start = now_ns();
        RETURNS(clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL), 0);
        CHECK(now_ns() - start >= (uint64_t)lengths[i]);
        uint64_t until = now_ns() + (uint64_t)lengths[i];
        t = (struct timespec){(time_t)(until / 1000000000u), (long)(until % 1000000000u)};
        RETURNS(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL), 0);
        CHECK(now_ns() >= until);
        RETURNS(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL), 0); // already past
    }
}

static void *sleep_a_little(void *self)
{
    struct timespec t = {0, 1000000 * (1 + (intptr_t)self % 7)};
    for (int i = 0; i < 5; i++) {
        uint64_t start = now_ns();
        OK(nanosleep(&t, NULL));
        CHECK(now_ns() - start >= (uint64_t)t.tv_nsec);
    }
    return NULL;
}

static void many_sleepers(void)
{
    pthread_t thread[256];
    for (intptr_t i = 0; i < threads; i++) RETURNS(pthread_create(&thread[i], NULL, sleep_a_little, (void *)i), 0);
    for (int i = 0; i < threads; i++) RETURNS(pthread_join(thread[i], NULL), 0);
}

static void processor_time(void)
{
    uint64_t start = read_clock(CLOCK_PROCESS_CPUTIME_ID, 0), begin = now_ns();
    for (volatile int i = 0; i < 30000000 && now_ns() - begin < 30000000; i++) {}
    CHECK(read_clock(CLOCK_PROCESS_CPUTIME_ID, 0) > start);
    CHECK(read_clock(CLOCK_THREAD_CPUTIME_ID, 0) > 0);
}

static _Atomic int enough;
static clockid_t first_ones;

static void *ask(void *unused)
{
    (void)unused;
    while (!enough) {
        uint64_t before = latest[PROCESS];
        note(PROCESS, before, read_clock(CLOCK_PROCESS_CPUTIME_ID, 1));
        before = latest[THREAD];
        note(THREAD, before, read_clock(first_ones, 1));
        struct rusage r;
        before = latest[USAGE];
        OK(getrusage(RUSAGE_SELF, &r));
        note(USAGE, before, (uint64_t)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1000000u + (uint64_t)(r.ru_utime.tv_usec + r.ru_stime.tv_usec));
    }
    return NULL;
}

static void *run_a_little(void *unused)
{
    (void)unused;
    for (volatile int i = 0; i < 2000; i++) {}
    return NULL;
}

static void processor_time_across_threads(void)
{
    enum { ASKERS = 2 };
    pthread_t asker[ASKERS], other;
    RETURNS(pthread_getcpuclockid(pthread_self(), &first_ones), 0);
    for (int i = 0; i < ASKERS; i++) RETURNS(pthread_create(&asker[i], NULL, ask, NULL), 0);
    // The thread whose clock is read runs and sleeps by turns, and others come and go.
    uint64_t start = now_ns();
    for (int i = 0; i < 5000 && now_ns() - start < 1500000000; i++) {
        RETURNS(pthread_create(&other, NULL, run_a_little, NULL), 0);
        if (i % 2 == 0) sched_yield();
        RETURNS(pthread_join(other, NULL), 0);
        struct timespec moment = {0, 1000};
        OK(nanosleep(&moment, NULL));
    }
    enough = 1;
    for (int i = 0; i < ASKERS; i++) RETURNS(pthread_join(asker[i], NULL), 0);
}

static void bad_arguments(void)
{
    struct timespec t, bad = {0, 1000000000}, negative = {-1, 0};
    FAILS(syscall(SYS_clock_gettime, 99, &t), EINVAL);
    FAILS(nanosleep(&bad, NULL), EINVAL);
    FAILS(nanosleep(&negative, NULL), EINVAL);
    RETURNS(clock_nanosleep(CLOCK_MONOTONIC, 0, &bad, NULL), EINVAL);
    FAILS(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, (void *)16), EFAULT);
    FAILS(syscall(SYS_nanosleep, (void *)16, NULL), EFAULT);
    OK(clock_getres(CLOCK_MONOTONIC, &t));
    CHECK(t.tv_sec == 0 && t.tv_nsec >= 1);
}

int main(int argc, char **argv)
{
    if (argc > 1) threads = atoi(argv[1]);
    CHECK(threads >= 1 && threads <= 256);
    RUN(monotonic_across_threads);
    RUN(ways_of_asking_agree);
    RUN(sleeps_last_long_enough);
    RUN(many_sleepers);
    RUN(processor_time);
    RUN(processor_time_across_threads);
    RUN(bad_arguments);
    return finished("clock");
}
