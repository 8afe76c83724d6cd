// beside WHAT FAULTS THREADS: page faults of THREADS threads, each on a CPU of its own and in a gibibyte of its own of one mapping,
// beside one more thread that does WHAT all the time, on CPU 0: nothing, map (maps a page and unmaps it), or touch (also writes to it
// between, so that all CPUs have to be told).
//
// Each thread has a window, and an operation for each fault, for a tracer; its page tables have been made before. The last line says
// how many times the one thread has mapped and unmapped meanwhile. What is found in a page is checked.
#include "check.h"
#include <pthread.h>
#include <sched.h>

// The tracer's markers (docs/exact.md).
#define MARK(number) __asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00; .long " #number ::: "memory")

#define MOST 254
#define SLICE (1UL << 30)
// Pages of a leaf page table, of which the first few are touched beforehand.
#define FAULTS_MOST 500
#define WARM 8

static pthread_barrier_t meet;
static unsigned long threads, faults;
static _Atomic unsigned long done;
static char *slices;

static void on_cpu(unsigned long cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    EQUAL(sched_setaffinity(0, sizeof set, &set), 0);
}

static void *faulting(void *self)
{
    unsigned long me = (unsigned long)self;
    on_cpu(me);
    char *page = slices + me * SLICE;
    for (int i = 0; i < WARM; i++, page += PAGE) *page = 1;
    pthread_barrier_wait(&meet);
    MARK(0x51510001);
    for (unsigned long i = 0; i < faults; i++, page += PAGE) {
        MARK(0x51510003);
        *(volatile char *)page = 1;
        MARK(0x51510004);
    }
    MARK(0x51510002);
    done++;
    for (unsigned long i = 0; i < faults; i++) {
        page -= PAGE;
        CHECK(page[0] == 1 && page[1] == 0);
    }
    pthread_barrier_wait(&meet);
    return NULL;
}

static unsigned long update(int touches)
{
    unsigned long updates = 0;
    while (done < threads) {
        char *page = mmap(slices, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        CHECK(page == slices);
        if (touches) {
            CHECK(*page == 0);
            *page = 1;
        }
        EQUAL(munmap(page, PAGE), 0);
        updates++;
    }
    return updates;
}

int main(int argc, char **argv)
{
    CHECK(argc == 4);
    int maps = !strcmp(argv[1], "map"), touches = !strcmp(argv[1], "touch");
    CHECK(maps || touches || !strcmp(argv[1], "nothing"));
    faults = strtoul(argv[2], NULL, 10);
    threads = strtoul(argv[3], NULL, 10);
    CHECK(faults >= 1 && faults <= FAULTS_MOST && threads >= 1 && threads <= MOST);
    on_cpu(0);
    // The first slice is the updates'. Large pages would leave nothing to fault on.
    size_t all = (threads + 1) * SLICE;
    char *area = mmap(NULL, all + SLICE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(area != MAP_FAILED);
    slices = (char *)(((unsigned long)area + SLICE - 1) & -SLICE);
    CHECK(madvise(area, all + SLICE, MADV_NOHUGEPAGE) == 0 || errno == EINVAL);
    EQUAL(munmap(slices, SLICE), 0);
    EQUAL(pthread_barrier_init(&meet, NULL, threads + 1), 0);
    pthread_t ids[MOST + 1];
    for (unsigned long i = 1; i <= threads; i++) EQUAL(pthread_create(&ids[i], NULL, faulting, (void *)i), 0);
    pthread_barrier_wait(&meet);
    unsigned long updates = maps || touches ? update(touches) : 0;
    pthread_barrier_wait(&meet);
    for (unsigned long i = 1; i <= threads; i++) EQUAL(pthread_join(ids[i], NULL), 0);
    if (updates) fprintf(stderr, "beside: mapped and unmapped %lu times\n", updates);
    puts("beside: ok");
    return 0;
}
