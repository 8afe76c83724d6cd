// What a C program does by hand with the same mechanism: one cell of the table, printed in nanoseconds an operation.
//
// usage: twin MECHANISM CELL PAGES SEED ROUNDS
//
// It has one region, no locks and no state of pages beyond what its cell needs, and takes pages in the order that vmprim's
// benchmark draws from the same seed.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
// Newer than the headers of many distributions.
#define F_WP_UNPOPULATED (1ull << 13)
#define F_WP_ASYNC (1ull << 15)
#define F_WP_SHMEM (1ull << 12)
#define SCAN 0xc0606610ul
#define PIDFD_OPEN 434
#define PROCESS_MADVISE 440
struct run { uint64_t start, end, categories; };
struct scan { uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, returned; };

enum mechanism { SIGNAL_ANON, SIGNAL_MEMFD, UFFD_WP, VIEW_READ, VIEW_NONE, ASYNC };
static const char *names[] = { "signal-anon", "signal-memfd", "uffd-wp", "view-read", "view-none", "async-dirty" };

// Pages that one eviction lowers at most.
#define MOST 16

static enum mechanism mechanism;
static size_t pages;
static const size_t unit = 4096;
static char *view, *alias;
static int uffd = -1, pagemap = -1, pidfd = -1;
static uint64_t random_state;

static void fail(const char *what) { perror(what); exit(77); }

static uint64_t draw(void) {
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (random_state * 0x2545f4914f6cdd1dull) >> 16;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static int is_uffd(void) { return mechanism >= UFFD_WP; }

static void write_protect(size_t page, size_t n, int on) {
    struct uffdio_writeprotect w = { { (uintptr_t)view + page * unit, n * unit },
        on ? UFFDIO_WRITEPROTECT_MODE_WP : UFFDIO_WRITEPROTECT_MODE_DONTWAKE };
    while (ioctl(uffd, UFFDIO_WRITEPROTECT, &w))
        ;
}

static void lower(size_t page, size_t n) {
    switch (mechanism) {
    case SIGNAL_ANON: mprotect(view + page * unit, n * unit, PROT_READ); break;
    case SIGNAL_MEMFD: mprotect(view + page * unit, n * unit, PROT_NONE); break;
    case VIEW_NONE: madvise(view + page * unit, n * unit, MADV_DONTNEED); break;
    default: write_protect(page, n, 1);
    }
}

// A batch, by one call where there is one for scattered pages.
static void lower_many(const uint32_t *victims, size_t n) {
    if (mechanism == VIEW_NONE && n > 1 && pidfd >= 0) {
        struct iovec all[MOST];
        for (size_t i = 0; i < n; i++) all[i] = (struct iovec){ view + victims[i] * unit, unit };
        if (syscall(PROCESS_MADVISE, pidfd, all, n, MADV_DONTNEED, 0) != (long)(n * unit)) abort();
    } else {
        for (size_t i = 0; i < n; i++) lower(victims[i], 1);
    }
}

static void raise_page(size_t page) {
    if (!is_uffd()) {
        mprotect(view + page * unit, unit, PROT_READ | PROT_WRITE);
    } else if (mechanism == VIEW_NONE) {
        struct uffdio_continue c = { { (uintptr_t)view + page * unit, unit }, UFFDIO_CONTINUE_MODE_DONTWAKE, 0 };
        if (ioctl(uffd, UFFDIO_CONTINUE, &c)) abort();
    } else {
        write_protect(page, 1, 0);
    }
}

// A store whose fault can be skipped.
void touch(volatile char *at, uint64_t value);
extern char touch_out[];
__asm__(".globl touch, touch_out\ntouch: mov %rsi, (%rdi)\ntouch_out: ret\n");

static enum { GRANT, DIVERT, EVICT, NOTE } mode;
static uint32_t *open_pages, victims[MOST], *dirty;
static size_t open_count, dirty_count, batch, evictions;

static void handler(int signal, siginfo_t *info, void *context) {
    (void)signal;
    size_t page = ((char *)info->si_addr - view) / unit;
    if (page >= pages) abort();
    switch (mode) {
    case DIVERT: ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] = (greg_t)touch_out; return;
    case EVICT: {
        uint32_t *place = &open_pages[draw() % open_count];
        size_t waiting = evictions++ % batch;
        victims[waiting] = *place;
        *place = page;
        if (waiting + 1 == batch) lower_many(victims, batch);
        break;
    }
    case NOTE: dirty[dirty_count++] = page; break;
    case GRANT: break;
    }
    raise_page(page);
}

static void set_up(void) {
    size_t len = pages * unit;
    int memfd = mechanism == SIGNAL_MEMFD || mechanism == VIEW_READ || mechanism == VIEW_NONE;
    if (memfd) {
        int fd = memfd_create("twin", MFD_CLOEXEC);
        if (fd < 0 || ftruncate(fd, len)) fail("memfd");
        view = mmap(0, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
        alias = mmap(0, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    } else {
        view = alias = mmap(0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    if (view == MAP_FAILED || alias == MAP_FAILED) fail("mmap");
    madvise(view, len, MADV_NOHUGEPAGE);
    madvise(alias, len, MADV_NOHUGEPAGE);
    stack_t stack = { .ss_sp = malloc(1 << 16), .ss_size = 1 << 16 };
    sigaltstack(&stack, 0);
    struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
    sigaction(SIGSEGV, &action, 0);
    sigaction(SIGBUS, &action, 0);
    memset(alias, 1, len);
    if (!is_uffd()) {
        memset(view, 1, len);
        return;
    }
    uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    if (uffd < 0) fail("userfaultfd");
    struct uffdio_api api = { UFFD_API, UFFD_FEATURE_PAGEFAULT_FLAG_WP | F_WP_UNPOPULATED | UFFD_FEATURE_SIGBUS, 0 };
    uint64_t how = UFFDIO_REGISTER_MODE_WP;
    if (mechanism == ASYNC) api.features |= F_WP_ASYNC;
    if (memfd) {
        api.features |= UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | F_WP_SHMEM;
        how |= UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
    }
    if (ioctl(uffd, UFFDIO_API, &api)) fail("UFFDIO_API");
    struct uffdio_register r = { { (uintptr_t)view, len }, how, 0 };
    if (ioctl(uffd, UFFDIO_REGISTER, &r)) fail("UFFDIO_REGISTER");
    if (memfd) {
        struct uffdio_continue c = { { (uintptr_t)view, len }, 0, 0 };
        if (ioctl(uffd, UFFDIO_CONTINUE, &c)) fail("UFFDIO_CONTINUE");
    }
    // Before Linux 6.13 a process could not give itself advice by vectors; then it is given page by page.
    pidfd = syscall(PIDFD_OPEN, getpid(), 0);
    struct iovec first = { view, unit };
    if (mechanism == VIEW_NONE && syscall(PROCESS_MADVISE, pidfd, &first, 1, MADV_DONTNEED, 0) < 0) pidfd = -1;
    if (mechanism == ASYNC) pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
}

static size_t take(struct run *runs, size_t n) {
    size_t found = 0;
    if (mechanism == ASYNC) {
        uint64_t start = (uintptr_t)view, end = start + pages * unit;
        while (start < end) {
            struct scan s = { sizeof s, 3, start, end, 0, (uintptr_t)runs, n, 0, 0, 2, 0, 2 };
            int got = ioctl(pagemap, SCAN, &s);
            if (got < 0) fail("PAGEMAP_SCAN");
            for (int i = 0; i < got; i++) found += (runs[i].end - runs[i].start) / unit;
            if (s.walk_end <= start) break;
            start = s.walk_end;
        }
        return found;
    }
    // The pages that were noted are closed again, neighbours together, in order.
    char *is_dirty = calloc(pages + 1, 1);
    for (size_t i = 0; i < dirty_count; i++) is_dirty[dirty[i]] = 1;
    for (size_t page = 0; page < pages; page++) {
        size_t count = 0;
        while (is_dirty[page + count]) count++;
        if (count) lower(page, count);
        page += count;
        found += count;
    }
    free(is_dirty);
    dirty_count = 0;
    return found;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    size_t which = 0;
    while (which < 6 && strcmp(argv[1], names[which])) which++;
    if (which == 6) return 2;
    mechanism = which;
    const char *cell = argv[2];
    pages = strtoul(argv[3], 0, 0);
    random_state = strtoull(argv[4], 0, 0);
    size_t rounds = strtoul(argv[5], 0, 0);
    alarm(60);
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof one, &one);
    struct sched_param priority = { 10 };
    sched_setscheduler(0, SCHED_FIFO, &priority);
    set_up();
    uint32_t *order = malloc(pages * 4), *closed = malloc(pages * 4);
    open_pages = malloc(pages * 4);
    dirty = malloc(pages * 4);
    struct run *runs = malloc(128 * sizeof *runs);
    double *found = malloc(rounds * sizeof *found);
    for (size_t round = 0; round < rounds; round++) {
        for (size_t i = 0; i < pages; i++) order[i] = i;
        for (size_t i = pages - 1; i > 0; i--) {
            size_t j = draw() % (i + 1);
            uint32_t swap = order[i];
            order[i] = order[j], order[j] = swap;
        }
        double start, per = pages;
        if (!strcmp(cell, "trap")) {
            mode = DIVERT;
            lower(0, pages);
            start = now();
            for (size_t i = 0; i < pages; i++) touch(view + order[i] * unit, i);
        } else if (!strcmp(cell, "protn_trap_unprot")) {
            mode = GRANT;
            start = now();
            lower(0, pages);
            for (size_t i = 0; i < pages; i++) touch(view + order[i] * unit, i);
        } else if (!strcmp(cell, "prot1_trap_unprot") || !strcmp(cell, "prot16_trap_unprot")) {
            batch = strcmp(cell, "prot1_trap_unprot") ? MOST : 1;
            mode = GRANT;
            lower(0, pages);
            open_count = pages / 2;
            for (size_t i = 0; i < open_count; i++) {
                touch(view + order[i] * unit, i);
                open_pages[i] = order[i];
            }
            size_t closed_count = pages - open_count, ready = closed_count;
            if (open_count < batch) return 2;
            memcpy(closed, order + open_count, closed_count * 4);
            evictions = 0;
            mode = EVICT;
            start = now();
            for (size_t i = 0; i < pages; i++) {
                // What was touched is open, and its victim not closed before the batch is: both are behind what is drawn.
                size_t j = draw() % ready--;
                uint32_t page = closed[j];
                closed[j] = closed[ready], closed[ready] = page;
                touch(view + page * unit, i);
                if (closed_count - ready == batch) {
                    memcpy(closed + ready, victims, batch * 4);
                    ready = closed_count;
                }
            }
        } else if (!strcmp(cell, "dirty")) {
            mode = NOTE;
            if (mechanism == ASYNC) {
                take(runs, 128);
            } else {
                lower(0, pages);
                dirty_count = 0;
            }
            per = pages / 8;
            start = now();
            for (size_t i = 0; i < pages / 8; i++) touch(view + order[i] * unit, i);
            if (take(runs, 128) != pages / 8) return 1;
        } else if (!strcmp(cell, "map2")) {
            lower(0, pages);
            start = now();
            for (size_t i = 0; i < pages; i++) touch(alias + order[i] * unit, i);
        } else {
            return 2;
        }
        found[round] = (now() - start) / per;
        if (mode == EVICT && evictions != pages) return 1;
        mode = GRANT;
        if (strcmp(cell, "dirty") && mechanism != ASYNC)
            for (size_t i = 0; i < pages; i++) touch(view + order[i] * unit, i);
    }
    qsort(found, rounds, sizeof *found, compare);
    printf("%.1f\n", found[rounds / 2]);
    return 0;
}
