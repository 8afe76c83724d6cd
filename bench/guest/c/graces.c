// Grace periods of the kernel, as a program can have them: `graces global|expedited|none THREADS TIMES [idle]`.
//
// membarrier(2) for all processes waits for one. The first thread, on CPU 0, asks TIMES times, each an operation for a tracer, and prints
// how long it took; the other CPUs run a loop in user mode, or sleep.
#include "check.h"

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>

#define MARK(number) __asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00; .long " #number ::: "memory")

static pthread_barrier_t meet;
static volatile int over, sleeps;

static void on_cpu(long cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    EQUAL(sched_setaffinity(0, sizeof set, &set), 0);
}

static void *other(void *cpu)
{
    on_cpu((long)cpu);
    pthread_barrier_wait(&meet);
    if (!sleeps) {
        MARK(0x51510001);
        while (!over) {}
        MARK(0x51510002);
    }
    pthread_barrier_wait(&meet);
    return NULL;
}

static long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

int main(int argc, char **argv)
{
    CHECK(argc > 3);
    int command = !strcmp(argv[1], "global") ? 1 : !strcmp(argv[1], "expedited") ? 2 : 0;
    long threads = atol(argv[2]), times = atol(argv[3]), least = -1, most = 0, sum = 0;
    sleeps = argc > 4;
    CHECK(threads > 0 && threads <= 255 && times > 0);
    on_cpu(0);
    EQUAL(pthread_barrier_init(&meet, NULL, threads), 0);
    pthread_t ids[255];
    for (long i = 1; i < threads; i++) EQUAL(pthread_create(&ids[i], NULL, other, (void *)i), 0);
    pthread_barrier_wait(&meet);
    // Whatever began before is over.
    for (int i = 0; i < 2; i++) EQUAL(syscall(SYS_membarrier, 1, 0, 0), 0);
    MARK(0x51510001);
    for (long i = 0; i < times; i++) {
        long begin = now();
        MARK(0x51510003);
        if (command) EQUAL(syscall(SYS_membarrier, command, 0, 0), 0);
        else while (now() < begin + 10000000) {}
        MARK(0x51510004);
        long took = now() - begin;
        if (least < 0 || took < least) least = took;
        if (took > most) most = took;
        sum += took;
    }
    MARK(0x51510002);
    over = 1;
    pthread_barrier_wait(&meet);
    for (long i = 1; i < threads; i++) EQUAL(pthread_join(ids[i], NULL), 0);
    printf("graces: %ld times, ns: %ld at least, %ld on average, %ld at most\n", times, least, sum / times, most);
    return 0;
}
