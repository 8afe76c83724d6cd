// mmrandom: random memory calls by several processes that share memory, each page checked against an oracle.
//
// Proves: whatever the order of mmap, munmap, mprotect, mremap, madvise, fork, truncation, loads and stores, every page
// of every process holds what it should, allows what it should, and faults with the right signal and code otherwise.
//
// A controller leads up to four workers, each with a part of its address space of its own (the arena) and an oracle of
// it in memory that all share. In a round all workers run at once, each by its own random numbers; between rounds the
// controller changes the sizes of two files that all map, and lets workers fork and end. A worker stores only to its own
// pages of the files, and does not look at others' while these run. After each round every worker checks its arena.
//
// Answers and the lines of /proc/self/maps about the arenas go into a digest, of which one is shown for every ten rounds;
// neighbours that say the same are taken as one, as Linux joins them or not by what happened to them before.
// usage: mmrandom [SEED [ROUNDS]]
//
// calls: mmap munmap mprotect mremap madvise memfd_create
#include "check.h"
#include <poll.h>
#include <setjmp.h>
#include <sys/prctl.h>

#define BASE 0x200000000000UL
#define AT(page) ((char *)(BASE + (uint64_t)(page) * PAGE))
#define ARENA 96    // pages
#define WORKERS 4
#define FILES 2
#define FILE_PAGES 32 // at most; each worker owns a quarter
#define OWN (FILE_PAGES / WORKERS)
#define RW (PROT_READ | PROT_WRITE)
#define GUARD_INSTALL 102
#define GUARD_REMOVE 103
#define DONTUNMAP 4

// What the oracle knows of a page.
struct page {
    uint8_t mapped, prot, shared, guard, dontfork, wipe, own; // own: it has contents of its own
    int8_t file;                                              // -1: none
    uint16_t index;                                           // in the file
    uint32_t birth;                                           // the call since which it is one with its neighbours
    uint64_t value;                                           // of its own
};

struct worker {
    struct page pages[ARENA];
    uint64_t digest;
    uint32_t births;
    int alive;
};

struct shared {
    struct worker workers[WORKERS];
    uint64_t contents[FILES][FILE_PAGES];
    int sizes[FILES]; // in pages
    uint64_t stamp;
};

static struct shared *all;
static struct worker *me;
static int slot, files[FILES], commands[WORKERS][2], answers[2];
static uint64_t state;

static uint64_t random64(void)
{
    state += 0x9e3779b97f4a7c15;
    uint64_t z = state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static int below(int n)
{
    return (int)(random64() % (uint64_t)n);
}

static void tell(uint64_t v)
{
    for (int i = 0; i < 8; i++) me->digest = (me->digest ^ (v >> 8 * i & 255)) * 0x100000001b3;
}

// ---- accesses, and how they end

static sigjmp_buf back;
static volatile int fault_code, fault_signal;

static void on_fault(int signal, siginfo_t *info, void *context)
{
    (void)context;
    fault_signal = signal, fault_code = info->si_code;
    siglongjmp(back, 1);
}

// What an access may end with, beside success.
enum { FINE, NOTHING, DENIED, BEYOND };

static int ended(void)
{
    if (fault_signal == SIGBUS && fault_code == BUS_ADRERR) return BEYOND;
    EQUAL(fault_signal, SIGSEGV);
    CHECK(fault_code == SEGV_MAPERR || fault_code == SEGV_ACCERR);
    return fault_code == SEGV_MAPERR ? NOTHING : DENIED;
}

static int load(int page, uint64_t *value)
{
    if (sigsetjmp(back, 1) != 0) return ended();
    *value = *(volatile uint64_t *)AT(page);
    return FINE;
}

static int store(int page, uint64_t value)
{
    if (sigsetjmp(back, 1) != 0) return ended();
    *(volatile uint64_t *)AT(page) = value;
    return FINE;
}

// ---- the oracle

static int is_beyond(const struct page *p)
{
    return p->file >= 0 && !p->own && p->index >= all->sizes[p->file];
}

static int expected(const struct page *p, int writes)
{
    if (!p->mapped) return NOTHING;
    if (writes ? !(p->prot & PROT_WRITE) : p->prot == PROT_NONE) return DENIED;
    if (p->guard) return NOTHING;
    return is_beyond(p) ? BEYOND : FINE;
}

// Whether another worker may be changing what this page shows.
static int is_foreign(const struct page *p)
{
    return p->mapped && p->file >= 0 && !p->own && p->index / OWN != slot;
}

static uint64_t content(const struct page *p)
{
    return p->own ? p->value : p->file >= 0 ? all->contents[p->file][p->index] : 0;
}

static void check_load(int page)
{
    struct page *p = &me->pages[page];
    uint64_t value = 0;
    int end = load(page, &value);
    EQUAL(end, expected(p, 0));
    if (end == FINE) EQUAL(value, content(p));
}

static void check_store(int page)
{
    struct page *p = &me->pages[page];
    uint64_t value = (uint64_t)(slot + 1) << 56 | (random64() & 0xffffffffffff);
    int end = store(page, value);
    EQUAL(end, expected(p, 1));
    if (end != FINE) return;
    if (p->shared && p->file >= 0) all->contents[p->file][p->index] = value;
    else p->own = 1, p->value = value;
}

static void check_all(void)
{
    for (int i = 0; i < ARENA; i++) check_load(i);
}

// Pages first..last - 1 are from now on told apart from their neighbours.
static void born(int first, int last)
{
    me->births++;
    uint32_t old = 0;
    for (int i = first; i < last; i++) {
        if (i == first || me->pages[i].birth != old) me->births++;
        old = me->pages[i].birth;
        me->pages[i].birth = me->births;
    }
    // What follows a split is no longer one with what was before it.
    if (last < ARENA && last > 0) {
        uint32_t rest = me->pages[last].birth;
        me->births++;
        for (int i = last; i < ARENA && me->pages[i].birth == rest; i++) me->pages[i].birth = me->births;
    }
    me->births++;
}

static void drop(struct page *p)
{
    p->own = 0, p->value = 0;
}

// ---- calls

static void do_map(int first, int pages)
{
    static const int prots[] = {RW, RW, RW, PROT_READ, PROT_NONE, RW | PROT_EXEC};
    int prot = prots[below(6)], file = below(3) - 1, shared = file >= 0 && below(2), flags = MAP_FIXED;
    int index = file >= 0 ? below(FILE_PAGES) : 0;
    if (file >= 0 && index + pages > FILE_PAGES) pages = FILE_PAGES - index;
    flags |= shared ? MAP_SHARED : MAP_PRIVATE;
    flags |= file < 0 ? MAP_ANONYMOUS : 0;
    if (file < 0 && below(4) == 0) flags |= MAP_NORESERVE;
    int populate = file < 0 && below(4) == 0;
    if (populate) flags |= MAP_POPULATE;
    CHECK(mmap(AT(first), pages * PAGE, prot, flags, file < 0 ? -1 : files[file], index * (long)PAGE) == AT(first));
    for (int i = 0; i < pages; i++)
        me->pages[first + i] = (struct page){.mapped = 1, .prot = (uint8_t)prot, .shared = (uint8_t)shared, .file = (int8_t)file, .index = (uint16_t)(index + i), .birth = me->births};
    born(first, first + pages);
}

static void do_unmap(int first, int pages)
{
    OK(munmap(AT(first), pages * PAGE));
    for (int i = 0; i < pages; i++) me->pages[first + i] = (struct page){.file = -1};
    born(first, first + pages);
}

// The first page from `first` on, before `last`, that is not mapped.
static int hole(int first, int last)
{
    while (first < last && me->pages[first].mapped) first++;
    return first;
}

static void do_protect(int first, int pages)
{
    static const int prots[] = {RW, RW, PROT_READ, PROT_NONE, PROT_READ | PROT_EXEC};
    int prot = prots[below(5)], upto = hole(first, first + pages);
    int result = mprotect(AT(first), pages * PAGE, prot);
    EQUAL(result, upto == first + pages ? 0 : -1);
    if (result == -1) EQUAL(errno, ENOMEM);
    for (int i = first; i < upto; i++) me->pages[i].prot = (uint8_t)prot;
    born(first, upto);
}

static void do_advise(int first, int pages)
{
    static const int advices[] = {MADV_DONTNEED, MADV_DONTNEED, MADV_FREE, MADV_DONTFORK, MADV_DOFORK, MADV_WIPEONFORK, MADV_KEEPONFORK, GUARD_INSTALL, GUARD_INSTALL,
                                  GUARD_REMOVE,  MADV_WILLNEED, MADV_COLD, MADV_SEQUENTIAL, MADV_NORMAL};
    int advice = advices[below(sizeof advices / sizeof *advices)], last = first + pages, upto = first, refused = 0;
    for (; upto < last; upto++) {
        struct page *p = &me->pages[upto];
        if (!p->mapped) continue;
        int own = p->file < 0;
        if (!own && (advice == MADV_WIPEONFORK || advice == MADV_FREE)) {
            refused = 1;
            break;
        }
    }
    // Linux leaves freed contents or not; and it does so mapping by mapping.
    if (advice == MADV_FREE && refused) return;
    int whole = hole(first, last) == last, result = madvise(AT(first), pages * PAGE, advice), want = refused ? EINVAL : whole ? 0 : ENOMEM;
    EQUAL(result, want ? -1 : 0);
    if (want) EQUAL(errno, want);
    if (advice == MADV_FREE) madvise(AT(first), pages * PAGE, MADV_DONTNEED);
    for (int i = first; i < upto; i++) {
        struct page *p = &me->pages[i];
        if (!p->mapped) continue;
        switch (advice) {
        case MADV_DONTNEED:
        case MADV_FREE: drop(p); break;
        case GUARD_INSTALL: drop(p), p->guard = 1; break;
        case GUARD_REMOVE: p->guard = 0; break;
        case MADV_DONTFORK: p->dontfork = 1; break;
        case MADV_DOFORK: p->dontfork = 0; break;
        case MADV_WIPEONFORK: p->wipe = 1; break;
        case MADV_KEEPONFORK: p->wipe = 0; break;
        }
    }
    born(first, last);
}

// A stretch that is surely one mapping, around a random page; 0 if that is a hole.
static int stretch(int *first)
{
    int at = below(ARENA), last = at + 1, most = 1 + below(12);
    if (!me->pages[at].mapped) return 0;
    while (last < ARENA && last - at < most && me->pages[last].mapped && me->pages[last].birth == me->pages[at].birth) last++;
    *first = at;
    return last - at;
}

static struct page fresh(const struct page *like, int offset)
{
    struct page p = *like;
    p.guard = 0, p.index = (uint16_t)(p.index + (p.file >= 0 ? offset : 0));
    drop(&p);
    return p;
}

// Move, perhaps through a place that the system chooses, leaving the old mapping or not, to another length or not.
static void do_remap(void)
{
    int first, pages = stretch(&first), to, length, kind = below(4), keep = kind == 3;
    if (pages == 0) return;
    struct page old[ARENA], *from = &me->pages[first];
    memcpy(old, from, (size_t)pages * sizeof *from);
    length = keep ? pages : 1 + below(12);
    if (old[0].file >= 0 && old[0].index + length > FILE_PAGES) length = pages;
    to = below(ARENA - length);
    if (to < first + pages && first < to + length) {
        FAILS((intptr_t)mremap(AT(first), pages * PAGE, length * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(to)), EINVAL);
        return;
    }
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (keep ? DONTUNMAP : 0);
    if (kind == 0) {
        // In two steps.
        char *away = mmap(NULL, length * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(away != MAP_FAILED);
        CHECK(mremap(AT(first), pages * PAGE, length * PAGE, flags, away) == away);
        CHECK(mremap(away, length * PAGE, length * PAGE, flags, AT(to)) == AT(to));
    } else
        CHECK(mremap(AT(first), pages * PAGE, length * PAGE, flags, AT(to)) == AT(to));
    for (int i = 0; i < pages; i++) from[i] = keep ? fresh(&old[0], i) : (struct page){.file = -1};
    born(first, first + pages);
    for (int i = 0; i < length; i++) me->pages[to + i] = i < pages ? old[i] : fresh(&old[0], i);
    born(to, to + length);
}

// Grow or shrink in place.
static void do_resize(void)
{
    int first, pages = stretch(&first), length = 1 + below(12);
    if (pages == 0 || first + length > ARENA) return;
    struct page like = me->pages[first];
    if (like.file >= 0 && like.index + length > FILE_PAGES) return;
    int fits = 1, end = first + pages;
    for (int i = end; i < first + length; i++) fits &= !me->pages[i].mapped;
    void *result = mremap(AT(first), pages * PAGE, length * PAGE, 0);
    if (!fits) {
        CHECK(result == MAP_FAILED && errno == ENOMEM);
        return;
    }
    CHECK(result == AT(first));
    for (int i = first + length; i < end; i++) me->pages[i] = (struct page){.file = -1};
    for (int i = end; i < first + length; i++) me->pages[i] = fresh(&like, i - first);
    born(end < first + length ? end : first + length, end < first + length ? first + length : end);
}

// The same pages of a file once more, by an old length of 0.
static void do_duplicate(void)
{
    int first, pages = stretch(&first), to;
    if (pages == 0) return;
    struct page old[ARENA];
    memcpy(old, &me->pages[first], (size_t)pages * sizeof *old);
    to = below(ARENA - pages);
    if (to <= first && first < to + pages) return;
    if (!old[0].shared) {
        FAILS((intptr_t)mremap(AT(first), 0, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(to)), EINVAL);
        return;
    }
    CHECK(mremap(AT(first), 0, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(to)) == AT(to));
    for (int i = 0; i < pages; i++) me->pages[to + i] = fresh(&old[0], i);
    born(to, to + pages);
}

static void do_populate(int first, int pages)
{
    int writes = below(2), want = 0;
    for (int i = first; i < first + pages && want == 0; i++) {
        struct page *p = &me->pages[i];
        int end = expected(p, writes);
        want = end == FINE ? 0 : !p->mapped ? ENOMEM : end == DENIED ? EINVAL : EFAULT;
    }
    // A store to a private page of a file makes a copy of what others may be changing.
    for (int i = first; writes && i < first + pages; i++)
        if (me->pages[i].file >= 0 && !me->pages[i].shared) return;
    errno = 0;
    int result = madvise(AT(first), pages * PAGE, writes ? 23 : 22);
    EQUAL(result, want ? -1 : 0);
    if (want) EQUAL(errno, want);
    tell((uint64_t)want);
}

// A hole in a file, through a mapping of it.
static void do_remove(int first, int pages)
{
    for (int i = first; i < first + pages; i++) {
        struct page *p = &me->pages[i];
        if (!p->mapped || !p->shared || p->file < 0 || p->index / OWN != slot) return;
    }
    OK(madvise(AT(first), pages * PAGE, MADV_REMOVE));
    for (int i = first; i < first + pages; i++) all->contents[me->pages[i].file][me->pages[i].index] = 0;
}

static void tell_maps(void)
{
    static char text[1 << 16];
    size_t n = 0;
    int fd = open("/proc/self/maps", O_RDONLY);
    OK(fd);
    for (ssize_t got; (got = read(fd, text + n, sizeof text - 1 - n)) > 0;) n += (size_t)got;
    OK(close(fd));
    text[n] = 0;
    struct { unsigned long end, offset, inode; char prot[5]; } last = {0};
    unsigned long mapped = 0, want = 0;
    for (char *row = text; *row; row = strchr(row, '\n') + 1) {
        unsigned long start, end, offset, inode;
        char prot[5];
        EQUAL(sscanf(row, "%lx-%lx %4s %lx %*s %lu", &start, &end, prot, &offset, &inode), 5);
        if (start < BASE || start >= (uintptr_t)AT(ARENA)) continue;
        mapped += (end - start) / PAGE;
        int first = (int)((start - BASE) / PAGE);
        for (int i = first; i < (int)((end - BASE) / PAGE); i++) {
            struct page *p = &me->pages[i];
            CHECK(p->mapped && (p->file >= 0) == (inode != 0) && p->shared == (prot[3] == 's'));
            EQUAL(p->prot, (prot[0] == 'r') * PROT_READ | (prot[1] == 'w') * PROT_WRITE | (prot[2] == 'x') * PROT_EXEC);
            if (p->file >= 0) EQUAL(p->index, offset / PAGE + (unsigned)(i - first));
        }
        int joins = last.end == start && strcmp(last.prot, prot) == 0 && last.inode == inode && (inode == 0 || last.offset == offset);
        if (!joins) tell(start), tell((uint64_t)(unsigned char)prot[0] << 16 | (uint64_t)(unsigned char)prot[1] << 8 | (unsigned char)prot[3]);
        last.end = end, last.offset = offset + (end - start), last.inode = inode;
        memcpy(last.prot, prot, sizeof prot);
    }
    for (int i = 0; i < ARENA; i++) want += me->pages[i].mapped;
    EQUAL(mapped, want);
}

static void one_step(void)
{
    int first = below(ARENA), pages = 1 + below(12);
    if (first + pages > ARENA) pages = ARENA - first;
    switch (below(16)) {
    case 0:
    case 1:
    case 2: do_map(first, pages); break;
    case 3: do_unmap(first, pages); break;
    case 4:
    case 5: do_protect(first, pages); break;
    case 6:
    case 7:
    case 8: do_advise(first, pages); break;
    case 9: do_remap(); break;
    case 10: do_resize(); break;
    case 11: do_duplicate(); break;
    case 12: do_populate(first, pages); break;
    case 13: do_remove(first, pages); break;
    }
    for (int i = 0; i < 6; i++) {
        int page = below(ARENA);
        struct page *p = &me->pages[page];
        if (is_foreign(p)) continue;
        if (below(2)) check_load(page);
        else check_store(page);
    }
}

// ---- processes

static void answer(char c)
{
    EQUAL(write(answers[1], &c, 1), 1);
}

static void work(int number);

static void fork_into(int number)
{
    struct worker *child = &all->workers[number];
    memcpy(child, me, sizeof *child);
    for (int i = 0; i < ARENA; i++) {
        struct page *p = &child->pages[i];
        if (p->dontfork) *p = (struct page){.file = -1};
        else if (p->wipe) drop(p), p->guard = 0;
    }
    child->alive = 1;
    pid_t pid = fork();
    OK(pid);
    if (pid == 0) {
        work(number);
        _exit(0);
    }
}

static void work(int number)
{
    slot = number, me = &all->workers[number];
    struct { char what; uint64_t argument; } command;
    for (;;) {
        EQUAL(read(commands[slot][0], &command, sizeof command), sizeof command);
        switch (command.what) {
        case 'r': // a round
            state = command.argument;
            for (int i = 0; i < 16; i++) one_step();
            break;
        case 'c':
            check_all();
            tell_maps();
            break;
        case 'f': fork_into((int)command.argument); break;
        case 'x':
            me->alive = 0;
            answer('x');
            _exit(0);
        }
        answer(command.what);
    }
}

static void send_to(int number, char what, uint64_t argument)
{
    struct { char what; uint64_t argument; } command = {what, argument};
    EQUAL(write(commands[number][1], &command, sizeof command), sizeof command);
}

static void await(int count)
{
    struct pollfd ready = {answers[0], POLLIN, 0};
    while (count-- > 0) {
        char c;
        if (poll(&ready, 1, 60000) != 1) {
            fprintf(stderr, "mmrandom.c: a worker does not answer\n");
            _exit(1);
        }
        EQUAL(read(answers[0], &c, 1), 1);
    }
}

static int tell_all(char what, int with_seed)
{
    int count = 0;
    for (int i = 0; i < WORKERS; i++) {
        if (!all->workers[i].alive) continue;
        send_to(i, what, with_seed ? random64() : 0);
        count++;
    }
    await(count);
    return count;
}

// Other sizes for the files, and with them the end of what was copied from pages that are cut off.
static void resize_file(void)
{
    int file = below(FILES), pages = below(FILE_PAGES + 1);
    OK(ftruncate(files[file], pages * (long)PAGE));
    for (int i = pages; i < FILE_PAGES; i++) all->contents[file][i] = 0;
    for (int w = 0; w < WORKERS; w++) {
        for (int i = 0; i < ARENA; i++) {
            struct page *p = &all->workers[w].pages[i];
            if (p->file == file && p->index >= pages && pages < all->sizes[file]) drop(p);
        }
    }
    all->sizes[file] = pages;
}

static void change_workers(void)
{
    int some = below(WORKERS), other = below(WORKERS), count = 0;
    for (int i = 0; i < WORKERS; i++) count += all->workers[i].alive;
    if (all->workers[some].alive && !all->workers[other].alive) send_to(some, 'f', (uint64_t)other), await(1);
    else if (all->workers[some].alive && count > 2 && below(3) == 0) send_to(some, 'x', 0), await(1);
}

int main(int argc, char **argv)
{
    state = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    int rounds = argc > 2 ? atoi(argv[2]) : 150;
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    OK(sigaction(SIGSEGV, &action, NULL));
    OK(sigaction(SIGBUS, &action, NULL));
    CHECK(signal(SIGCHLD, SIG_IGN) != SIG_ERR);
    all = mmap(NULL, sizeof *all, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(all != MAP_FAILED);
    OK(pipe(answers));
    for (int i = 0; i < WORKERS; i++) OK(pipe(commands[i]));
    for (int i = 0; i < FILES; i++) {
        OK(files[i] = (int)syscall(SYS_memfd_create, "random", 0));
        all->sizes[i] = FILE_PAGES;
        OK(ftruncate(files[i], FILE_PAGES * PAGE));
    }
    me = &all->workers[0];
    for (int i = 0; i < ARENA; i++) me->pages[i].file = -1;
    me->digest = 0xcbf29ce484222325;
    me->alive = 1;
    pid_t pid = fork();
    OK(pid);
    if (pid == 0) work(0);
    for (int round = 1; round <= rounds; round++) {
        tell_all('r', 1);
        if (below(3) == 0) resize_file();
        change_workers();
        tell_all('c', 0);
        if (round % 10 == 0) {
            uint64_t digest = 0;
            for (int i = 0; i < WORKERS; i++) digest = digest * 31 + all->workers[i].digest;
            printf("round %d: %016llx\n", round, (unsigned long long)digest);
            fflush(stdout);
        }
    }
    for (int i = 0; i < WORKERS; i++) if (all->workers[i].alive) send_to(i, 'x', 0), await(1);
    return finished("mmrandom");
}
