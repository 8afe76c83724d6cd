// lines bounce|own|shared N THREADS: threads whose cache lines move a known number of times, with markers around what is
// counted.
//
// bounce: two threads hand a word to and fro, N times each way. Each hand-over writes a line that the other has read,
// and the other then reads it: 4 N transfers, whatever the interleaving. own: each thread adds N times to a line of its
// own: no transfer. shared: all add N times to one line: as many transfers as turns, so they depend on the quantum.
// The program proves that nothing was lost; `cargo quire test kernel` proves what the exact machine counted.
#include "check.h"
#include <pthread.h>
#include <sched.h>

// The tracer's markers (docs/exact.md).
#define MARK(number) __asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00; .long " #number ::: "memory")
#define WINDOW_BEGIN MARK(0x51510001)
#define WINDOW_END MARK(0x51510002)
#define OPERATION_BEGIN MARK(0x51510003)
#define OPERATION_END MARK(0x51510004)

#define MOST 256

// On lines of its own: neighbours are apart too.
struct line { _Alignas(128) _Atomic unsigned long word; };

static struct line turn, sum, own[MOST], arrived[4];
static unsigned long times, threads;
static enum { BOUNCE, OWN, SHARED } mode;

static void meet(int where)
{
    arrived[where].word++;
    while (arrived[where].word < threads) sched_yield();
}

static void bounce(unsigned long me)
{
    for (unsigned long i = 0; i < times; i++) {
        while (turn.word != me) {}
        turn.word = !me;
    }
    // The last hand-over is seen too.
    while (turn.word != 0) {}
}

static void *thread(void *self)
{
    unsigned long me = (unsigned long)self;
    cpu_set_t cpu;
    CPU_ZERO(&cpu);
    CPU_SET(me, &cpu);
    OK(sched_setaffinity(0, sizeof cpu, &cpu));
    _Atomic unsigned long *word = mode == OWN ? &own[me].word : &sum.word;
    // Pages are brought in before it counts, and the word of `bounce` is read by both before either writes it.
    CHECK(turn.word == 0 && *word == 0);
    meet(0);
    WINDOW_BEGIN;
    meet(1);
    CHECK(turn.word == 0);
    meet(2);
    OPERATION_BEGIN;
    if (mode == BOUNCE)
        bounce(me);
    else
        for (unsigned long i = 0; i < times; i++) ++*word;
    OPERATION_END;
    meet(3);
    WINDOW_END;
    return NULL;
}

int main(int argc, char **argv)
{
    CHECK(argc == 4);
    mode = strcmp(argv[1], "bounce") == 0 ? BOUNCE : strcmp(argv[1], "own") == 0 ? OWN : SHARED;
    times = strtoul(argv[2], NULL, 10);
    threads = strtoul(argv[3], NULL, 10);
    CHECK(threads >= 1 && threads <= MOST && (mode != BOUNCE || threads == 2));
    pthread_t all[MOST];
    for (unsigned long i = 0; i < threads; i++) RETURNS(pthread_create(&all[i], NULL, thread, (void *)i), 0);
    for (unsigned long i = 0; i < threads; i++) RETURNS(pthread_join(all[i], NULL), 0);
    unsigned long added = sum.word;
    for (int i = 0; i < MOST; i++) added += own[i].word;
    EQUAL(added, mode == BOUNCE ? 0 : threads * times);
    puts("ok");
    return 0;
}
