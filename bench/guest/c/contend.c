// contend map|word|fault N TASKS: tasks that share one known thing, each on a CPU of its own, with markers around what is
// counted, so that a trace of the run must name that thing.
//
// map: N times, threads map a page, write it and unmap it: they share their address space. word: N times, threads add to
// one static variable, `contended_word`. fault: processes write N fresh pages each: they share nothing of their own.
// The program proves that nothing was lost; `cargo quire test trace` proves what was found.
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

struct line contended_word;
static struct line *arrived;
static unsigned long times, tasks;
static enum { MAP, WORD, FAULT } mode;

static void meet(int where)
{
    arrived[where].word++;
    while (arrived[where].word < tasks) sched_yield();
}

static void operate(unsigned long i, char *pages)
{
    OPERATION_BEGIN;
    if (mode == WORD) {
        contended_word.word++;
    } else if (mode == FAULT) {
        pages[i * PAGE] = 1;
    } else {
        char *page = pages_new(1);
        *page = 1;
        OK(munmap(page, PAGE));
    }
    OPERATION_END;
}

static void *task(void *self)
{
    cpu_set_t cpu;
    CPU_ZERO(&cpu);
    CPU_SET((unsigned long)self, &cpu);
    OK(sched_setaffinity(0, sizeof cpu, &cpu));
    char *pages = mode == FAULT ? pages_new(times) : NULL;
    meet(0);
    WINDOW_BEGIN;
    meet(1);
    for (unsigned long i = 0; i < times; i++) operate(i, pages);
    meet(2);
    WINDOW_END;
    return NULL;
}

int main(int argc, char **argv)
{
    CHECK(argc == 4);
    mode = strcmp(argv[1], "map") == 0 ? MAP : strcmp(argv[1], "word") == 0 ? WORD : FAULT;
    times = strtoul(argv[2], NULL, 10);
    tasks = strtoul(argv[3], NULL, 10);
    CHECK(times >= 1 && tasks >= 1 && tasks <= MOST);
    arrived = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(arrived != MAP_FAILED);
    pthread_t threads[MOST];
    pid_t children[MOST];
    for (unsigned long i = 0; i < tasks; i++) {
        if (mode != FAULT) {
            RETURNS(pthread_create(&threads[i], NULL, task, (void *)i), 0);
            continue;
        }
        children[i] = fork();
        OK(children[i]);
        if (children[i] == 0) {
            task((void *)i);
            _exit(0);
        }
    }
    for (unsigned long i = 0; i < tasks; i++) {
        if (mode != FAULT)
            RETURNS(pthread_join(threads[i], NULL), 0);
        else
            EQUAL(wait_for(children[i]), 0);
    }
    EQUAL(contended_word.word, mode == WORD ? tasks * times : 0);
    puts("ok");
    return 0;
}
