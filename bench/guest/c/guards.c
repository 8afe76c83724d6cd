// guards: pages that MADV_GUARD_INSTALL closes without a mapping of their own.
//
// Proves: a guard is the page's and not the mapping's: /proc/self/maps does not change; loads, stores, fetches and the
// kernel's copies are refused, with signal, code, address and error code as for no mapping, whatever the mapping
// allows; a guard stays under other advice, rights, locks, holes and truncation, moves with mremap, is inherited, and goes
// with its page. Once a guard is installed no other thread's store succeeds, and what was stored before is gone.
//
// calls: madvise process_madvise mremap mincore mlock process_vm_readv process_vm_writev
#include "check.h"
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <sys/auxv.h>
#include <sys/ucontext.h>
#include <sys/uio.h>

#define BASE ((char *)0x320000000000UL)
#define AT(page) (BASE + (long)(page) * (long)PAGE)
#define RW (PROT_READ | PROT_WRITE)
#define OWN (MAP_PRIVATE | MAP_ANONYMOUS)
#define OURS (MAP_SHARED | MAP_ANONYMOUS)
#define INSTALL 102
#define REMOVE 103
#define MAPERR (SIGSEGV * 100 + SEGV_MAPERR)
#define ACCERR (SIGSEGV * 100 + SEGV_ACCERR)

static _Thread_local sigjmp_buf back;
static _Thread_local struct { int code; char *address; long error, trap; } seen;

static void on_fault(int signal, siginfo_t *info, void *context)
{
    const greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    seen.code = signal * 100 + info->si_code, seen.address = info->si_addr;
    seen.error = registers[REG_ERR], seen.trap = registers[REG_TRAPNO];
    siglongjmp(back, 1);
}

enum { LOAD = 0, STORE = 2, FETCH = 16 };

// 0 if the access succeeds, else the signal times 100 and its code.
static int try(char *p, int how)
{
    seen.code = 0;
    if (sigsetjmp(back, 1) == 0) {
        if (how == LOAD) (void)*(volatile char *)p;
        else if (how == STORE) *(volatile char *)p = 7;
        else ((void (*)(void))p)();
    }
    return seen.code;
}

// A fault for no mapping, at the address, by an access of this kind.
static void guarded_at(char *p, int line)
{
    for (int how = LOAD; how <= STORE; how += 2) {
        int code = try(p + 123, how);
        if (code != MAPERR) check_failed(__FILE__, line, "is a guard", code, MAPERR);
        CHECK(seen.address == p + 123);
        EQUAL(seen.trap, 14);
        EQUAL(seen.error & ~1L, 4 | how); // whether an entry is there (bit 0) is the system's own affair
    }
}
#define GUARDED(page) guarded_at(AT(page), __LINE__)

static void map_at(long page, long pages, int prot, int flags, int fd, long offset)
{
    CHECK(mmap(AT(page), pages * PAGE, prot, flags | MAP_FIXED, fd, offset * (long)PAGE) == AT(page));
}

static void fill(long page, long pages)
{
    for (long i = page; i < page + pages; i++) AT(i)[0] = (char)('A' + i % 26);
}

static void letters(long page, const char *want, int line)
{
    for (long i = 0; want[i]; i++) {
        char got = AT(page + i)[0];
        if (got != (want[i] == '.' ? 0 : want[i])) check_failed(__FILE__, line, want, got, want[i]);
    }
}
#define LETTERS(page, want) letters(page, want, __LINE__)

static void clear(void)
{
    OK(munmap(AT(0), 1UL << 30));
}

// Mappings that begin in our range.
static int mappings(void)
{
    int n = 0;
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps != NULL);
    while (fgets(line, sizeof line, maps)) {
        unsigned long start = strtoul(line, NULL, 16);
        n += start >= (uintptr_t)BASE && start < (uintptr_t)AT(1 << 18);
    }
    fclose(maps);
    return n;
}

static void accesses(void)
{
    static const int prots[] = {RW, PROT_READ, RW | PROT_EXEC};
    for (unsigned i = 0; i < sizeof prots / sizeof *prots; i++) {
        map_at(0, 4, prots[i], OWN, -1, 0);
        EQUAL(try(AT(1), LOAD), 0);
        OK(madvise(AT(1), 2 * PAGE, INSTALL));
        EQUAL(try(AT(1), LOAD), MAPERR);
        // A store is refused for the page's rights first, where it has none.
        EQUAL(try(AT(2), STORE), prots[i] & PROT_WRITE ? MAPERR : ACCERR);
        EQUAL(try(AT(2), FETCH), MAPERR); // only a page that is there may be refused for that right
        EQUAL(seen.error & ~1L, 4 | FETCH);
        EQUAL(try(AT(0), LOAD) + try(AT(3), LOAD), 0);
        EQUAL(mappings(), 1);
    }
    map_at(0, 4, RW, OWN, -1, 0);
    OK(mprotect(AT(0), 4 * PAGE, PROT_NONE));
    OK(madvise(AT(0), 4 * PAGE, INSTALL)); // also where nothing is allowed
    EQUAL(try(AT(1), LOAD), ACCERR);
    OK(mprotect(AT(0), 4 * PAGE, RW));
    GUARDED(1);
    OK(madvise(AT(0), 4 * PAGE, REMOVE));
    LETTERS(0, "....");
    clear();
}

static void copies(void)
{
    int ends[2];
    char bytes[3 * PAGE];
    memset(bytes, 'x', sizeof bytes);
    OK(pipe(ends));
    map_at(0, 4, RW, OWN, -1, 0);
    OK(madvise(AT(1), PAGE, INSTALL));
    FAILS(write(ends[1], AT(1) + 5, 3), EFAULT);
    EQUAL(write(ends[1], bytes, 8), 8);
    FAILS(read(ends[0], AT(1), 8), EFAULT);
    EQUAL(read(ends[0], bytes, 8), 8);
    FAILS(syscall(SYS_futex, AT(1), 0 /* FUTEX_WAIT */, 0, NULL), EFAULT);
    FAILS(syscall(SYS_openat, AT_FDCWD, AT(1), O_RDONLY), EFAULT);
    struct iovec ours = {bytes, sizeof bytes}, theirs = {AT(0), 3 * PAGE}, guard = {AT(1), 8};
    EQUAL(process_vm_readv(getpid(), &ours, 1, &theirs, 1, 0), PAGE); // as far as the guard
    EQUAL(process_vm_writev(getpid(), &ours, 1, &theirs, 1, 0), PAGE);
    FAILS(process_vm_readv(getpid(), &ours, 1, &guard, 1, 0), EFAULT);
    FAILS(process_vm_writev(getpid(), &ours, 1, &guard, 1, 0), EFAULT);
    int fd = (int)syscall(SYS_memfd_create, "guards", 0);
    OK(fd);
    EQUAL(pwrite(fd, bytes, sizeof bytes, 0), sizeof bytes);
    EQUAL(pread(fd, AT(0), 3 * PAGE, 0), PAGE);
    EQUAL(pwrite(fd, AT(0), 3 * PAGE, 0), PAGE);
    OK(close(fd));
    OK(close(ends[0]));
    OK(close(ends[1]));
    GUARDED(1);
    clear();
}

// What leaves a guard where it is.
static void survivals(void)
{
    map_at(0, 16, RW, OWN, -1, 0);
    fill(0, 16);
    OK(madvise(AT(4), 2 * PAGE, INSTALL));
    static const int advices[] = {MADV_DONTNEED, MADV_FREE, MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED, MADV_NORMAL, INSTALL};
    for (unsigned i = 0; i < sizeof advices / sizeof *advices; i++) {
        OK(madvise(AT(3), 4 * PAGE, advices[i]));
        if (advices[i] == INSTALL) {
            OK(madvise(AT(3), PAGE, REMOVE));
            OK(madvise(AT(6), PAGE, REMOVE));
        }
        GUARDED(4);
        GUARDED(5);
        EQUAL(try(AT(3), STORE) + try(AT(6), STORE), 0);
    }
    EQUAL(mappings(), 1);
    // Rights and flags of the mapping change around it.
    OK(mprotect(AT(5), PAGE, PROT_READ));
    EQUAL(try(AT(5), LOAD), MAPERR);
    OK(mprotect(AT(5), PAGE, RW));
    OK(madvise(AT(4), PAGE, MADV_DONTDUMP));
    GUARDED(4);
    OK(madvise(AT(4), PAGE, MADV_DODUMP));
    GUARDED(5);
    EQUAL(mappings(), 1);
    // It may be locked over; what is locked may not be guarded.
    FAILS(mlock(AT(0), 8 * PAGE), ENOMEM); // it can't be brought in
    GUARDED(4);
    FAILS(madvise(AT(0), 2 * PAGE, INSTALL), EINVAL);
    OK(munlock(AT(0), 8 * PAGE));
    OK(syscall(SYS_mlock2, AT(0), 8 * PAGE, 1 /* MLOCK_ONFAULT */));
    GUARDED(5);
    OK(madvise(AT(4), PAGE, REMOVE)); // also of locked pages
    EQUAL(try(AT(4), LOAD), 0);
    OK(munlock(AT(0), 8 * PAGE));
    unsigned char there[16];
    OK(mincore(AT(0), 16 * PAGE, there));
    EQUAL(there[5], 0);
    EQUAL(there[6], 1);
    clear();
}

static void moves(void)
{
    map_at(0, 8, RW, OWN, -1, 0);
    fill(0, 8);
    OK(madvise(AT(2), 3 * PAGE, INSTALL));
    CHECK(mremap(AT(0), 8 * PAGE, 12 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(100)) == AT(100));
    GUARDED(102);
    GUARDED(104);
    LETTERS(100, "AB");
    LETTERS(105, "FGH....");
    EQUAL(try(AT(2), LOAD), MAPERR); // nothing is mapped there
    CHECK(mremap(AT(100), 12 * PAGE, 3 * PAGE, 0) == AT(100));
    CHECK(mremap(AT(100), 3 * PAGE, 8 * PAGE, 0) == AT(100));
    GUARDED(102);
    LETTERS(103, "....."); // guards went with the pages that were cut off
    // Its pages move, and the mapping stays behind, empty.
    CHECK(mremap(AT(100), 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | 4 /* DONTUNMAP */ | MREMAP_FIXED, AT(200)) == AT(200));
    GUARDED(202);
    LETTERS(100, "...");
    // A mapping over it has none, one beside it leaves it.
    map_at(203, 1, RW, OWN, -1, 0);
    GUARDED(202);
    map_at(202, 1, RW, OWN, -1, 0);
    LETTERS(202, ".");
    // A part of a table, many tables, and none.
    map_at(1024, 4096, RW, OWN, -1, 0);
    OK(madvise(AT(1000 + 24), 4096 * PAGE, INSTALL));
    OK(madvise(AT(2000), PAGE, REMOVE));
    CHECK(mremap(AT(1024), 4096 * PAGE, 4096 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(8195)) == AT(8195));
    GUARDED(8195);
    GUARDED(8195 + 4095);
    GUARDED(8195 + 975);
    EQUAL(try(AT(8195 + 976), STORE), 0);
    GUARDED(8195 + 977);
    OK(madvise(AT(8195), 4096 * PAGE, REMOVE));
    CHECK(AT(8195 + 976)[0] == 7 && AT(8195)[0] == 0);
    clear();
}

// Of objects: the page is hidden from this mapping alone.
static void objects(void)
{
    int fd = (int)syscall(SYS_memfd_create, "guards", 0);
    OK(fd);
    OK(ftruncate(fd, 8 * PAGE));
    map_at(0, 8, RW, MAP_SHARED, fd, 0);
    map_at(16, 8, RW, MAP_SHARED, fd, 0);
    map_at(32, 8, RW, MAP_PRIVATE, fd, 0);
    map_at(48, 4, RW, OURS, -1, 0);
    map_at(64, 8, PROT_READ, MAP_SHARED, fd, 0);
    fill(0, 8);
    fill(48, 4);
    AT(33)[0] = 'p';
    OK(madvise(AT(1), 2 * PAGE, INSTALL));
    OK(madvise(AT(33), PAGE, INSTALL));
    OK(madvise(AT(49), PAGE, INSTALL));
    OK(madvise(AT(64), PAGE, INSTALL));
    GUARDED(1);
    GUARDED(33);
    GUARDED(49);
    EQUAL(try(AT(64), LOAD), MAPERR);
    LETTERS(16, "ABC");
    unsigned char there[8];
    OK(mincore(AT(0), 8 * PAGE, there));
    EQUAL(there[1], 1); // the object has it
    // Holes, truncation and MADV_REMOVE are the object's.
    OK(fallocate(fd, 3 /* PUNCH_HOLE | KEEP_SIZE */, PAGE, PAGE));
    GUARDED(1);
    GUARDED(33);
    OK(madvise(AT(2), PAGE, MADV_REMOVE));
    GUARDED(2);
    OK(ftruncate(fd, 0));
    GUARDED(1);
    OK(ftruncate(fd, 8 * PAGE));
    GUARDED(2);
    LETTERS(16, "....");
    OK(madvise(AT(1), 2 * PAGE, REMOVE));
    OK(madvise(AT(33), PAGE, REMOVE));
    fill(16, 4);
    LETTERS(0, "QRST");
    LETTERS(32, "QRST");
    GUARDED(49);
    OK(close(fd));
    clear();
}

static void children(void)
{
    map_at(0, 8, RW, OWN, -1, 0);
    map_at(8, 4, RW, OURS, -1, 0);
    map_at(1024, 2048, RW, OWN, -1, 0);
    fill(0, 12);
    OK(madvise(AT(1), PAGE, INSTALL));
    OK(madvise(AT(3), PAGE, INSTALL));
    OK(madvise(AT(9), PAGE, INSTALL));
    OK(madvise(AT(1024), 2048 * PAGE, INSTALL));
    OK(madvise(AT(2), 2 * PAGE, MADV_WIPEONFORK));
    for (int round = 0; round < 2; round++) {
        pid_t child = fork();
        OK(child);
        if (child == 0) {
            GUARDED(1);
            GUARDED(9);
            GUARDED(1024);
            GUARDED(3071);
            LETTERS(2, ".."); // wiped, guard and all
            OK(madvise(AT(1), PAGE, REMOVE));
            OK(madvise(AT(1024), 2048 * PAGE, REMOVE));
            OK(madvise(AT(0), PAGE, INSTALL));
            fill(1, 1);
            fill(1024, 1);
            pid_t grandchild = fork();
            OK(grandchild);
            if (grandchild == 0) {
                GUARDED(0);
                LETTERS(1, "B..EFGHI");
                LETTERS(1024, "K..");
                _exit(0);
            }
            EQUAL(wait_for(grandchild), 0);
            _exit(0);
        }
        EQUAL(wait_for(child), 0);
        // What children do is theirs.
        GUARDED(1);
        GUARDED(3);
        GUARDED(2000);
        LETTERS(0, "A");
        LETTERS(2, "C");
    }
    EQUAL(mappings(), 5); // the pages to wipe are one of them
    clear();
}

static void refusals(void)
{
    map_at(0, 4, RW, OWN, -1, 0);
    FAILS(madvise(AT(0) + 1, PAGE, INSTALL), EINVAL);
    FAILS(madvise(AT(0) + 1, PAGE, REMOVE), EINVAL);
    FAILS(madvise(AT(0), -PAGE, INSTALL), EINVAL);
    OK(madvise(AT(0) + PAGE, 0, INSTALL));
    FAILS(madvise(AT(3), 2 * PAGE, INSTALL), ENOMEM);
    GUARDED(3); // all that is mapped has one
    FAILS(madvise(AT(3), 2 * PAGE, REMOVE), ENOMEM);
    EQUAL(try(AT(3), LOAD), 0);
    FAILS(madvise(AT(10), PAGE, INSTALL), ENOMEM);
    // The kernel's own mappings have none.
    char *vdso = (char *)getauxval(AT_SYSINFO_EHDR);
    if (vdso != NULL) {
        FAILS(madvise(vdso, PAGE, INSTALL), EINVAL);
        FAILS(madvise(vdso, PAGE, REMOVE), EINVAL);
    }
    // Populating stops at one.
    OK(madvise(AT(1), PAGE, INSTALL));
    FAILS(madvise(AT(0), 4 * PAGE, 22 /* POPULATE_READ */), EFAULT);
    FAILS(madvise(AT(0), 4 * PAGE, 23 /* POPULATE_WRITE */), EFAULT);
    // Several ranges in one call, of the process itself.
    int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    OK(self);
    struct iovec two[2] = {{AT(0), PAGE}, {AT(2), PAGE}};
    EQUAL(syscall(SYS_process_madvise, self, two, 2, INSTALL, 0), 2 * PAGE);
    GUARDED(0);
    GUARDED(2);
    EQUAL(syscall(SYS_process_madvise, self, two, 2, REMOVE, 0), 2 * PAGE);
    EQUAL(try(AT(0), LOAD) + try(AT(2), LOAD), 0);
    GUARDED(1);
    OK(close(self));
    clear();
}

// ---- threads

static atomic_long turn; // odd: guards are installed
static atomic_int stop;

// Stores to the page until that is refused; then waits for the guard to go. A store that succeeds while the turn is odd,
// before and after it, got through a guard.
static void *writer(void *arg)
{
    char *p = arg;
    long refused = 0;
    while (!atomic_load(&stop)) {
        long before = atomic_load(&turn);
        int code = try(p, STORE);
        CHECK(code == 0 || code == MAPERR);
        if (code == 0 && before & 1) EQUAL(atomic_load(&turn) == before, 0);
        refused += code != 0;
    }
    return (void *)refused;
}

static void threads(void)
{
    enum { THREADS = 3, ROUNDS = 400 };
    pthread_t all[THREADS];
    map_at(0, THREADS, RW, OWN, -1, 0);
    for (long i = 0; i < THREADS; i++) RETURNS(pthread_create(&all[i], NULL, writer, AT(i)), 0);
    for (int round = 0; round < ROUNDS; round++) {
        OK(madvise(AT(0), THREADS * PAGE, INSTALL));
        atomic_fetch_add(&turn, 1);
        if (round % 8 == 0) sched_yield();
        atomic_fetch_add(&turn, 1);
        OK(madvise(AT(0), THREADS * PAGE, REMOVE));
        if (round % 8 == 0) sleep_ms(1);
    }
    atomic_store(&stop, 1);
    for (int i = 0; i < THREADS; i++) RETURNS(pthread_join(all[i], NULL), 0);
    EQUAL(mappings(), 1);
    clear();
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    OK(sigaction(SIGSEGV, &action, NULL));
    OK(sigaction(SIGBUS, &action, NULL));
    RUN(accesses);
    RUN(copies);
    RUN(survivals);
    RUN(moves);
    RUN(objects);
    RUN(children);
    RUN(refusals);
    RUN(threads);
    return finished("guards");
}
