// What a thread has unmapped comes back though its CPU does nothing any more: an idle CPU is not awaited for ever.
//
// The second thread unmaps the last page of a file without a name, and sleeps for good. Only its CPU can hand on that the
// mapping's description lost a reference. The first thread never runs out of memory, and just looks, now and then, for what
// is free.
#include "check.h"

#include <pthread.h>
#include <sched.h>
#include <sys/sysinfo.h>

#define BYTES (32UL << 20)
#define ROUNDS 20

static pthread_barrier_t meet;

static void on_cpu(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    EQUAL(sched_setaffinity(0, sizeof set, &set), 0);
}

static unsigned long freed(void)
{
    struct sysinfo info;
    EQUAL(sysinfo(&info), 0);
    return info.freeram * info.mem_unit;
}

static void *unmap_and_sleep(void *map)
{
    on_cpu(1);
    EQUAL(munmap(map, BYTES), 0);
    pthread_barrier_wait(&meet);
    for (;;) pause();
}

int main(void)
{
    on_cpu(0);
    for (int round = 0; round < ROUNDS; round++) {
        unsigned long before = freed();
        int fd = memfd_create("nap", 0);
        CHECK(fd >= 0);
        EQUAL(ftruncate(fd, BYTES), 0);
        char *map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        CHECK(map != MAP_FAILED);
        EQUAL(close(fd), 0);
        memset(map, 1, BYTES);
        CHECK(freed() + BYTES / 2 < before);
        EQUAL(pthread_barrier_init(&meet, NULL, 2), 0);
        pthread_t thread;
        EQUAL(pthread_create(&thread, NULL, unmap_and_sleep, map), 0);
        pthread_barrier_wait(&meet);
        // Seconds are hundreds of ticks.
        for (int i = 0; freed() + BYTES / 2 < before; i++) {
            CHECK(i < 2000);
            // Half of the rounds this CPU is never idle.
            if (round % 2) usleep(5000);
            else for (volatile int n = 0; n < 1000000; n++) {}
        }
    }
    puts("nap: all right");
    return 0;
}
