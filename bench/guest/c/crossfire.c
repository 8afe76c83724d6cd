// crossfire THREADS ROUNDS: threads that take pages away under each other's hands.
//
// Proves: a thread that waits in the kernel for pages that another is changing still flushes when that one asks it to.
// All threads use pages of all; each throws the contents of its own away, and of a part that is everybody's, and
// protects them and gives them back, so that at any time some shoot each other down, and others wait for them in faults
// and calls. If one of them took no interrupts while it waits, all would stand still.
//
// calls: madvise mprotect munmap
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#define MOST 64
// Of each thread, and of all.
#define OWN 4
#define SHARED 8

static int threads;
static long rounds;
static char *pages, *shared;
static atomic_int ready;

static void *shooter(void *arg)
{
    long me = (long)(intptr_t)arg;
    char *own = pages + me * OWN * PAGE;
    atomic_fetch_add(&ready, 1);
    while (atomic_load(&ready) < threads) sched_yield();
    for (long round = 0; round < rounds; round++) {
        // Whatever others do, these may be read; what may be written is the thread's own.
        for (int i = 0; i < threads * OWN; i++) CHECK(*(volatile char *)(pages + i * PAGE) <= threads);
        for (int i = 0; i < SHARED; i++) *(volatile char *)(shared + i * PAGE) = (char)round;
        for (int i = 0; i < OWN; i++) *(volatile char *)(own + i * PAGE) = (char)(me + 1);
        OK(mprotect(own, OWN * PAGE, PROT_READ));
        for (int i = 0; i < OWN; i++) EQUAL(*(volatile char *)(own + i * PAGE), me + 1);
        OK(mprotect(own, OWN * PAGE, PROT_READ | PROT_WRITE));
        OK(madvise(own, OWN * PAGE, MADV_DONTNEED));
        for (int i = 0; i < OWN; i++) EQUAL(*(volatile char *)(own + i * PAGE), 0);
        OK(madvise(shared, SHARED * PAGE, MADV_DONTNEED));
    }
    return 0;
}

int main(int argc, char **argv)
{
    pthread_t all[MOST];
    threads = argc > 1 ? atoi(argv[1]) : 4;
    rounds = argc > 2 ? atol(argv[2]) : 200;
    CHECK(threads >= 1 && threads <= MOST);
    pages = pages_new(threads * OWN);
    shared = pages_new(SHARED);
    for (long i = 0; i < threads; i++) EQUAL(pthread_create(&all[i], 0, shooter, (void *)(intptr_t)i), 0);
    for (int i = 0; i < threads; i++) EQUAL(pthread_join(all[i], 0), 0);
    OK(munmap(pages, threads * OWN * PAGE));
    OK(munmap(shared, SHARED * PAGE));
    return finished("crossfire");
}
