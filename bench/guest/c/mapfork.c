// mapfork [THREADS [ROUNDS]]: the address space under many threads while it is being copied.
//
// Proves: N threads, each on a CPU of its own if there are as many, map, fault, protect and unmap their own ranges at
// once, and each sees exactly what it did: fresh pages are zero, bytes come back, an access that the protection forbids
// raises SIGSEGV with SEGV_ACCERR and the very address, an access to an unmapped page SEGV_MAPERR. Meanwhile the main
// thread forks in a loop, and each child checks that it has a snapshot: its own copy of the forker's page as of the
// fork, and of every worker's page a state that the page really had (two counters, stored in order, differ by at most
// one) and that no longer moves while the workers go on. What the child writes never reaches the parent.
//
// calls: fork mmap mprotect munmap
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>

#define MAX_THREADS 256
#define REGION_PAGES 16
#define SLOT 0x1000000UL          // each worker's own 16 MiB of addresses
#define SLOTS 0x100000000000UL    // far from where the system places mappings: a hole here stays a hole

struct ledger {
    // Written by one worker as first = n, then second = n; both lie in one page, so a snapshot sees a prefix.
    _Atomic uint64_t first, second;
    char rest[PAGE - 16];
};

static struct ledger *ledgers;
static int threads = 4, rounds = 30;
static _Atomic int running;
static pthread_barrier_t start;

static _Thread_local sigjmp_buf escape;
static _Thread_local char *volatile expected;

static void on_segv(int signal, siginfo_t *info, void *context)
{
    (void)context;
    EQUAL(signal, SIGSEGV);
    EQUAL((uintptr_t)info->si_addr, (uintptr_t)expected);
    siglongjmp(escape, info->si_code);
}

// The si_code of the fault that a one-byte access raises, or 0 if it raises none.
static int access_byte(char *at, int write)
{
    expected = at;
    int code = sigsetjmp(escape, 1);
    if (code != 0) return code;
    if (write)
        *(volatile char *)at = 1;
    else
        (void)*(volatile char *)at;
    return 0;
}

static uint64_t stamp(int worker, int round, int page) { return (uint64_t)worker << 48 | (uint64_t)round << 16 | page | 1ULL << 63; }

static void one_round(int worker, int round)
{
    char *base = (char *)(SLOTS + worker * SLOT) + (round % 5) * 3 * PAGE;
    void *got = mmap(base, REGION_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    EQUAL((uintptr_t)got, (uintptr_t)base);
    for (int i = 0; i < REGION_PAGES; i++) {
        uint64_t *word = (uint64_t *)(base + i * PAGE);
        EQUAL(word[0], 0);
        EQUAL(word[511], 0);
        word[i] = stamp(worker, round, i);
    }
    // The middle is closed, then opened for reading, then for all: protections change, bytes stay.
    char *middle = base + 4 * PAGE;
    OK(mprotect(middle, 8 * PAGE, PROT_NONE));
    EQUAL(access_byte(middle + round % 8 * PAGE + 17, 0), SEGV_ACCERR);
    EQUAL(access_byte(middle - 1, 0), 0);
    EQUAL(access_byte(middle + 8 * PAGE, 0), 0);
    OK(mprotect(middle, 8 * PAGE, PROT_READ));
    EQUAL(access_byte(middle + 5 * PAGE + 1000, 1), SEGV_ACCERR);
    EQUAL(access_byte(middle + 5 * PAGE + 1000, 0), 0);
    OK(mprotect(middle, 8 * PAGE, PROT_READ | PROT_WRITE));
    for (int i = 0; i < REGION_PAGES; i++) EQUAL(((uint64_t *)(base + i * PAGE))[i], stamp(worker, round, i));
    // A hole, then everything.
    OK(munmap(middle, 2 * PAGE));
    EQUAL(access_byte(middle + PAGE, 1), SEGV_MAPERR);
    EQUAL(((uint64_t *)(base + 3 * PAGE))[3], stamp(worker, round, 3));
    EQUAL(((uint64_t *)(base + 6 * PAGE))[6], stamp(worker, round, 6));
    OK(munmap(base, REGION_PAGES * PAGE));
    EQUAL(access_byte(base, 0), SEGV_MAPERR);
}

// Spread the workers over the CPUs that the process may use, so that each of those takes part.
static void go_to_own_cpu(int worker)
{
    cpu_set_t all, one;
    OK(sched_getaffinity(0, sizeof all, &all));
    int nth = worker % CPU_COUNT(&all), cpu = 0;
    while (!CPU_ISSET(cpu, &all) || nth-- > 0) cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    OK(sched_setaffinity(0, sizeof one, &one));
}

static void *work(void *argument)
{
    int worker = (int)(intptr_t)argument;
    struct ledger *ledger = &ledgers[worker];
    go_to_own_cpu(worker);
    pthread_barrier_wait(&start);
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < 50; i++) {
            uint64_t n = ledger->first + 1;
            ledger->first = n;
            ledger->second = n;
        }
        one_round(worker, round);
    }
    EQUAL(ledger->first, (uint64_t)rounds * 50);
    EQUAL(ledger->second, (uint64_t)rounds * 50);
    running--;
    return NULL;
}

// In the child: only system calls and our own memory, for other threads may have held any lock at the fork.
static void check_snapshot(volatile uint64_t *own, uint64_t generation)
{
    static uint64_t seen[MAX_THREADS];
    for (int i = 0; i < 512; i++) EQUAL(own[i], generation);
    for (int i = 0; i < threads; i++) {
        seen[i] = ledgers[i].first;
        CHECK(seen[i] - ledgers[i].second <= 1);
    }
    for (int i = 0; i < 512; i++) own[i] = ~generation;
    sched_yield();
    for (int i = 0; i < threads; i++) {
        EQUAL(ledgers[i].first, seen[i]);
        ledgers[i].first = ledgers[i].second = 0; // must not reach the parent: the worker checks its total
    }
    char *page = pages_new(3);
    page[PAGE] = 7;
    EQUAL(page[PAGE] + page[2 * PAGE], 7);
    OK(munmap(page, 3 * PAGE));
    EQUAL(access_byte(page + PAGE, 0), SEGV_MAPERR);
    for (int i = 0; i < 512; i++) EQUAL(own[i], ~generation);
}

int main(int argc, char **argv)
{
    if (argc > 1) threads = atoi(argv[1]);
    if (argc > 2) rounds = atoi(argv[2]);
    CHECK(threads >= 1 && threads <= MAX_THREADS && rounds >= 1);
    struct sigaction action = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO};
    OK(sigaction(SIGSEGV, &action, NULL));
    ledgers = (struct ledger *)pages_new(threads);
    uint64_t *own = (uint64_t *)pages_new(1);

    RETURNS(pthread_barrier_init(&start, NULL, threads + 1), 0);
    pthread_t worker[MAX_THREADS];
    running = threads;
    pthread_attr_t attributes;
    RETURNS(pthread_attr_init(&attributes), 0);
    RETURNS(pthread_attr_setstacksize(&attributes, 256 * 1024), 0);
    for (int i = 0; i < threads; i++) RETURNS(pthread_create(&worker[i], &attributes, work, (void *)(intptr_t)i), 0);
    pthread_barrier_wait(&start);

    for (uint64_t generation = 1; running > 0 || generation <= 3; generation++) {
        for (int i = 0; i < 512; i++) own[i] = generation;
        pid_t child = fork();
        OK(child);
        if (child == 0) {
            check_snapshot(own, generation);
            _exit(64 + generation % 64);
        }
        for (int i = 0; i < 512; i += 8) own[i] = generation + 1000; // the child must not see these
        int status = wait_for(child);
        CHECK(WIFEXITED(status));
        EQUAL(WEXITSTATUS(status), 64 + generation % 64);
        for (int i = 0; i < 512; i++) EQUAL(own[i], i % 8 == 0 ? generation + 1000 : generation);
    }
    for (int i = 0; i < threads; i++) RETURNS(pthread_join(worker[i], NULL), 0);
    printf("%d threads, %d rounds: every page, fault and snapshot was right\n", threads, rounds);
    return finished("mapfork");
}
