// calls_advice: madvise and process_madvise, mincore, msync.
//
// Proves: what is dropped is gone, in the memory that it should be gone from and nowhere else; guards refuse every access
// and survive what they should; children get, lack or find empty what the advice says; populating brings in or says why
// not; holes come into shared memory; mincore tells what is there; for each the errors are Linux's.
//
// calls: mmap munmap mprotect mremap madvise process_madvise mincore msync mlock memfd_create
#include "check.h"
#include <setjmp.h>
#include <sys/uio.h>

#define BASE ((char *)0x310000000000UL)
#define AT(page) (BASE + (long)(page) * (long)PAGE)
#define RW (PROT_READ | PROT_WRITE)
#define OWN (MAP_PRIVATE | MAP_ANONYMOUS)
#define POPULATE_READ 22
#define POPULATE_WRITE 23
#define DONTNEED_LOCKED 24
#define GUARD_INSTALL 102
#define GUARD_REMOVE 103

static sigjmp_buf back;
static volatile int seen_code;

static void on_fault(int signal, siginfo_t *info, void *context)
{
    (void)context;
    seen_code = signal * 100 + info->si_code;
    siglongjmp(back, 1);
}

// 0 if the byte can be read, else the signal times 100 and its code.
static int touch(volatile char *p)
{
    seen_code = 0;
    if (sigsetjmp(back, 1) == 0) (void)*p;
    return seen_code;
}
#define NO_MAPPING (SIGSEGV * 100 + SEGV_MAPERR)
#define NO_RIGHT (SIGSEGV * 100 + SEGV_ACCERR)
#define NO_PAGE (SIGBUS * 100 + BUS_ADRERR)

static void map_at(long page, long pages, int prot, int flags, int fd, long offset)
{
    CHECK(mmap(AT(page), pages * PAGE, prot, flags | MAP_FIXED, fd, offset * (long)PAGE) == AT(page));
}

static void fill(long page, long pages)
{
    for (long i = page; i < page + pages; i++) AT(i)[0] = (char)('A' + i);
}

static void letters(long page, const char *want, int line)
{
    for (long i = 0; want[i]; i++) {
        char got = AT(page + i)[0];
        if (got != (want[i] == '.' ? 0 : want[i])) check_failed(__FILE__, line, want, got, want[i]);
    }
}
#define LETTERS(page, want) letters(page, want, __LINE__)

static int memory_file(int pages)
{
    int fd = (int)syscall(SYS_memfd_create, "calls_advice", 0);
    OK(fd);
    OK(ftruncate(fd, pages * (long)PAGE));
    return fd;
}

static int fd;

static void everything(void)
{
    OK(munmap(AT(0), 256 * PAGE));
}

static void dropping(void)
{
    map_at(0, 4, RW, OWN, -1, 0);
    map_at(4, 4, RW, MAP_SHARED, fd, 0);
    map_at(8, 4, RW, MAP_PRIVATE, fd, 0);
    fill(0, 12);
    LETTERS(0, "ABCDEFGHIJKL");
    OK(madvise(AT(1), 2 * PAGE, MADV_DONTNEED));
    LETTERS(0, "A..D");
    OK(madvise(AT(4), 4 * PAGE, MADV_DONTNEED)); // the file has it
    LETTERS(4, "EFGH");
    OK(madvise(AT(9), PAGE, MADV_DONTNEED)); // the copy is gone, the file shows
    LETTERS(8, "IFKL");
    OK(madvise(AT(0), 12 * PAGE, MADV_DONTNEED)); // over three
    LETTERS(0, "....EFGHEFGH");
    OK(mprotect(AT(0), PAGE, PROT_NONE));
    fill(1, 1);
    OK(madvise(AT(0), 2 * PAGE, MADV_DONTNEED)); // rights do not matter
    LETTERS(1, ".");
    OK(mprotect(AT(0), PAGE, RW));
    // What is freed is there or not until the next store; after that it is there.
    fill(0, 4);
    OK(madvise(AT(0), 4 * PAGE, MADV_FREE));
    for (int i = 0; i < 4; i++) CHECK(AT(i)[0] == 0 || AT(i)[0] == 'A' + i);
    fill(0, 4);
    LETTERS(0, "ABCD");
    FAILS(madvise(AT(4), PAGE, MADV_FREE), EINVAL);
    FAILS(madvise(AT(8), PAGE, MADV_FREE), EINVAL);
    OK(munmap(AT(2), PAGE));
    FAILS(madvise(AT(0), 4 * PAGE, MADV_DONTNEED), ENOMEM); // on both sides of the hole it is done
    LETTERS(0, "..");
    LETTERS(3, ".");
    everything();
    // A child's copies are its own.
    map_at(0, 2, RW, OWN, -1, 0);
    map_at(2, 2, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    fill(0, 4);
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        OK(madvise(AT(0), 4 * PAGE, MADV_DONTNEED));
        LETTERS(0, "..CD");
        AT(2)[0] = 'X';
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    LETTERS(0, "ABXD");
    everything();
}

static void holes_in_shared_memory(void)
{
    char buffer[4];
    map_at(0, 4, RW, MAP_SHARED, fd, 0);
    map_at(4, 4, PROT_READ, MAP_SHARED, fd, 0);
    map_at(8, 4, RW, MAP_PRIVATE, fd, 0);
    fill(0, 4);
    LETTERS(4, "ABCD");
    AT(9)[0] = 'p';
    OK(madvise(AT(1), 2 * PAGE, MADV_REMOVE));
    EQUAL(lseek(fd, 0, SEEK_HOLE), PAGE);
    LETTERS(0, "A..D");
    LETTERS(4, "A..D");
    LETTERS(8, "Ap.D"); // a copy stays
    EQUAL(pread(fd, buffer, 1, PAGE), 1);
    EQUAL(buffer[0], 0);
    AT(1)[0] = 'n';
    LETTERS(4, "An.D");
    OK(madvise(AT(4), PAGE, MADV_REMOVE)); // it could be made writable
    LETTERS(0, ".n.D");
    FAILS(madvise(AT(8), PAGE, MADV_REMOVE), EACCES);
    map_at(12, 2, RW, OWN, -1, 0);
    FAILS(madvise(AT(12), PAGE, MADV_REMOVE), EINVAL);
    FAILS(madvise(AT(20), PAGE, MADV_REMOVE), ENOMEM);
    map_at(14, 2, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    fill(14, 2);
    OK(madvise(AT(14), PAGE, MADV_REMOVE));
    LETTERS(14, ".P");
    OK(fallocate(fd, 3 /* PUNCH_HOLE | KEEP_SIZE */, 3 * PAGE, PAGE));
    LETTERS(0, ".n..");
    everything();
}

static void guards(void)
{
    map_at(0, 8, RW, OWN, -1, 0);
    fill(0, 8);
    OK(madvise(AT(2), 2 * PAGE, GUARD_INSTALL));
    LETTERS(0, "AB");
    LETTERS(4, "EFGH");
    EQUAL(touch(AT(2)), NO_MAPPING);
    EQUAL(touch(AT(3)), NO_MAPPING);
    FAILS(write(fd, AT(2), 1), EFAULT);
    FAILS(read(fd, AT(3), 1), EFAULT);
    OK(madvise(AT(0), 8 * PAGE, MADV_DONTNEED)); // guards stay
    EQUAL(touch(AT(2)), NO_MAPPING);
    LETTERS(4, "....");
    OK(madvise(AT(2), PAGE, GUARD_INSTALL)); // once more
    OK(mprotect(AT(0), 8 * PAGE, PROT_NONE));
    EQUAL(touch(AT(2)), NO_RIGHT);
    OK(mprotect(AT(0), 8 * PAGE, RW));
    EQUAL(touch(AT(2)), NO_MAPPING);
    fill(4, 1);
    FAILS(madvise(AT(0), 8 * PAGE, POPULATE_READ), EFAULT);
    FAILS(madvise(AT(0), 8 * PAGE, POPULATE_WRITE), EFAULT);
    // They move, and are inherited.
    CHECK(mremap(AT(2), PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(20)) == AT(20));
    EQUAL(touch(AT(20)), NO_MAPPING);
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        EQUAL(touch(AT(3)), NO_MAPPING);
        EQUAL(touch(AT(20)), NO_MAPPING);
        OK(madvise(AT(3), PAGE, GUARD_REMOVE));
        LETTERS(3, ".E");
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    EQUAL(touch(AT(3)), NO_MAPPING);
    OK(madvise(AT(3), 2 * PAGE, GUARD_REMOVE)); // only guards go
    LETTERS(3, ".E");
    OK(munmap(AT(20), PAGE));
    map_at(20, 1, RW, OWN, -1, 0); // a new mapping has none
    LETTERS(20, ".");
    // Of files, too: the page is hidden, not lost.
    map_at(30, 2, RW, MAP_SHARED, fd, 0);
    map_at(32, 2, RW, MAP_PRIVATE, fd, 0);
    AT(30)[0] = 's', AT(32)[0] = 'p';
    OK(madvise(AT(30), PAGE, GUARD_INSTALL));
    OK(madvise(AT(32), PAGE, GUARD_INSTALL));
    EQUAL(touch(AT(30)), NO_MAPPING);
    EQUAL(touch(AT(32)), NO_MAPPING);
    OK(madvise(AT(30), 3 * PAGE, GUARD_REMOVE));
    LETTERS(30, "s");
    LETTERS(32, "s"); // the copy was lost
    FAILS(madvise(AT(34), PAGE, GUARD_INSTALL), ENOMEM);
    FAILS(madvise(AT(33), 2 * PAGE, GUARD_INSTALL), ENOMEM); // but what is mapped has it
    EQUAL(touch(AT(33)), NO_MAPPING);
    map_at(40, 2, RW, OWN, -1, 0);
    fill(40, 2);
    OK(mlock(AT(40), PAGE));
    FAILS(madvise(AT(40), PAGE, GUARD_INSTALL), EINVAL);
    OK(madvise(AT(40), PAGE, GUARD_REMOVE));
    LETTERS(40, "i");
    everything();
}

static void children(void)
{
    map_at(0, 8, RW, OWN, -1, 0);
    map_at(8, 2, RW, MAP_SHARED, fd, 0);
    fill(0, 10);
    OK(madvise(AT(1), PAGE, MADV_DONTFORK));
    OK(madvise(AT(2), 2 * PAGE, MADV_WIPEONFORK));
    OK(madvise(AT(4), PAGE, MADV_DONTFORK));
    OK(madvise(AT(4), PAGE, MADV_DOFORK));
    OK(madvise(AT(5), PAGE, MADV_WIPEONFORK));
    OK(madvise(AT(5), PAGE, MADV_KEEPONFORK));
    OK(madvise(AT(9), PAGE, MADV_DONTFORK));
    FAILS(madvise(AT(8), PAGE, MADV_WIPEONFORK), EINVAL);
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        EQUAL(touch(AT(1)), NO_MAPPING);
        EQUAL(touch(AT(9)), NO_MAPPING);
        LETTERS(0, "A");
        LETTERS(2, "..EFGHI");
        AT(2)[0] = 'w';
        OK(child = fork()); // it stays so
        if (child == 0) {
            LETTERS(2, "..E");
            _exit(0);
        }
        EQUAL(wait_for(child), 0);
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    LETTERS(0, "ABCDEFGHIJ");
    everything();
}

static void populating(void)
{
    unsigned char there[4];
    map_at(0, 4, RW, OWN, -1, 0);
    OK(madvise(AT(0), 2 * PAGE, POPULATE_WRITE));
    OK(mincore(AT(0), 4 * PAGE, there));
    for (int i = 0; i < 4; i++) EQUAL(there[i] & 1, i < 2);
    OK(mprotect(AT(3), PAGE, PROT_READ));
    FAILS(madvise(AT(0), 4 * PAGE, POPULATE_WRITE), EINVAL);
    OK(madvise(AT(0), 4 * PAGE, POPULATE_READ));
    OK(mprotect(AT(3), PAGE, PROT_NONE));
    FAILS(madvise(AT(0), 4 * PAGE, POPULATE_READ), EINVAL);
    FAILS(madvise(AT(3), 3 * PAGE, POPULATE_READ), EINVAL);
    OK(munmap(AT(1), PAGE));
    FAILS(madvise(AT(0), 4 * PAGE, POPULATE_READ), ENOMEM);
    FAILS(madvise(AT(1), PAGE, POPULATE_WRITE), ENOMEM);
    int small = memory_file(1);
    map_at(4, 2, RW, MAP_SHARED, small, 0);
    FAILS(madvise(AT(4), 2 * PAGE, POPULATE_READ), EFAULT); // beyond the end of the file
    FAILS(madvise(AT(4), 2 * PAGE, POPULATE_WRITE), EFAULT);
    EQUAL(touch(AT(5)), NO_PAGE);
    OK(close(small));
    map_at(8, 4, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    OK(mincore(AT(8), 4 * PAGE, there));
    for (int i = 0; i < 4; i++) EQUAL(there[i] & 1, 1);
    everything();
}

static void what_is_there(void)
{
    unsigned char there[8];
    map_at(0, 4, RW, OWN, -1, 0);
    fill(1, 2);
    memset(there, 0xff, sizeof there);
    OK(mincore(AT(0), 4 * PAGE - 5, there)); // lengths round up
    EQUAL(there[0] << 3 | there[1] << 2 | there[2] << 1 | there[3], 6);
    EQUAL(there[4], 0xff);
    OK(madvise(AT(1), PAGE, MADV_DONTNEED));
    OK(mprotect(AT(2), PAGE, PROT_NONE));
    OK(mincore(AT(0), 4 * PAGE, there));
    EQUAL(there[0] << 3 | there[1] << 2 | there[2] << 1 | there[3], 2);
    // What a file has counts, mapped or not.
    int small = memory_file(4);
    EQUAL(pwrite(small, "x", 1, 2 * PAGE), 1);
    map_at(4, 4, PROT_READ, MAP_SHARED, small, 0);
    OK(mincore(AT(4), 4 * PAGE, there));
    EQUAL(there[0] << 3 | there[1] << 2 | there[2] << 1 | there[3], 2);
    OK(close(small));
    FAILS(mincore(AT(0) + 1, PAGE, there), EINVAL);
    FAILS(mincore(AT(8), PAGE, there), ENOMEM);
    FAILS(mincore(AT(7), 2 * PAGE, there), ENOMEM);
    FAILS(syscall(SYS_mincore, AT(0), PAGE, 8), EFAULT);
    FAILS(syscall(SYS_mincore, AT(0), PAGE, -1L), EFAULT);
    FAILS(syscall(SYS_mincore, AT(0), -1L, there), ENOMEM);
    OK(syscall(SYS_mincore, AT(8), 0L, there));
    everything();
}

static void writing_back(void)
{
    map_at(0, 4, RW, OWN, -1, 0);
    map_at(4, 2, RW, MAP_SHARED, fd, 0);
    OK(msync(AT(0), 6 * PAGE, MS_SYNC));
    OK(msync(AT(0), 6 * PAGE, MS_ASYNC));
    OK(msync(AT(0), 6 * PAGE, MS_INVALIDATE));
    OK(msync(AT(0), 6 * PAGE, 0));
    OK(msync(AT(0), 0, MS_SYNC));
    OK(msync(AT(100), 0, MS_SYNC));
    FAILS(msync(AT(0), PAGE, MS_SYNC | MS_ASYNC), EINVAL);
    FAILS(msync(AT(0), PAGE, 8), EINVAL);
    FAILS(msync(AT(0) + 1, PAGE, MS_SYNC), EINVAL);
    FAILS(msync(AT(5), 2 * PAGE, MS_SYNC), ENOMEM);
    FAILS(msync(AT(6), PAGE, MS_ASYNC), ENOMEM);
    OK(mlock(AT(1), PAGE));
    FAILS(msync(AT(0), 6 * PAGE, MS_INVALIDATE), EBUSY);
    OK(msync(AT(0), 6 * PAGE, MS_SYNC));
    everything();
}

static void every_advice(void)
{
    static const struct { int advice, want; } known[] = {
        {MADV_NORMAL, 0}, {MADV_RANDOM, 0}, {MADV_SEQUENTIAL, 0}, {MADV_WILLNEED, 0}, {MADV_DONTNEED, 0}, {MADV_FREE, 0}, {MADV_REMOVE, EINVAL},
        {MADV_DONTFORK, 0}, {MADV_DOFORK, 0}, {MADV_HUGEPAGE, 0}, {MADV_NOHUGEPAGE, 0}, {MADV_DONTDUMP, 0}, {MADV_DODUMP, 0}, {MADV_MERGEABLE, 0},
        {MADV_UNMERGEABLE, 0}, {MADV_WIPEONFORK, 0}, {MADV_KEEPONFORK, 0}, {20 /* COLD */, 0}, {21 /* PAGEOUT */, 0}, {POPULATE_READ, 0},
        {POPULATE_WRITE, 0}, {DONTNEED_LOCKED, 0}, {GUARD_INSTALL, 0}, {GUARD_REMOVE, 0}, {5, EINVAL}, {6, EINVAL}, {7, EINVAL}, {13 + 100, EINVAL},
        {26, EINVAL}, {104, EINVAL}, {-1, EINVAL}, {1 << 20, EINVAL},
    };
    map_at(0, 2, RW, OWN, -1, 0);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        int advice = known[i].advice, want = known[i].want;
        errno = 0;
        EQUAL(madvise(AT(0), 2 * PAGE, advice), want ? -1 : 0);
        EQUAL(errno, want);
        // Nothing is advised about nothing, but the advice must make sense.
        int valid = advice == MADV_REMOVE || want == 0;
        errno = 0;
        EQUAL(madvise(AT(50), 0, advice), valid ? 0 : -1);
        EQUAL(errno, valid ? 0 : EINVAL);
        EQUAL(madvise(AT(0) + 1, 0, advice), -1);
        EQUAL(errno, EINVAL);
        errno = 0;
        EQUAL(madvise(AT(50), PAGE, advice), -1);
        EQUAL(errno, valid ? ENOMEM : EINVAL);
    }
    OK(mlock(AT(0), PAGE));
    FAILS(madvise(AT(0), PAGE, MADV_DONTNEED), EINVAL);
    FAILS(madvise(AT(0), PAGE, MADV_FREE), EINVAL);
    FAILS(madvise(AT(0), PAGE, 20), EINVAL);
    FAILS(madvise(AT(0), PAGE, 21), EINVAL);
    AT(0)[0] = 'k';
    OK(madvise(AT(0), PAGE, DONTNEED_LOCKED));
    LETTERS(0, ".");
    everything();
}

static void of_another_process(void)
{
    int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    OK(self);
    map_at(0, 4, RW, OWN, -1, 0);
    fill(0, 4);
    struct iovec parts[3] = {{AT(0), PAGE}, {AT(2), PAGE}, {AT(50), PAGE}};
    EQUAL(syscall(SYS_process_madvise, self, parts, 2L, (long)MADV_DONTNEED, 0L), 2 * PAGE);
    LETTERS(0, ".B.D");
    fill(0, 4);
    EQUAL(syscall(SYS_process_madvise, self, parts, 3L, (long)MADV_DONTNEED, 0L), 2 * PAGE); // as far as it went
    LETTERS(0, ".B.D");
    FAILS(syscall(SYS_process_madvise, self, parts + 2, 1L, (long)MADV_DONTNEED, 0L), ENOMEM);
    FAILS(syscall(SYS_process_madvise, self, parts, 1L, 9999L, 0L), EINVAL);
    FAILS(syscall(SYS_process_madvise, self, parts, 1L, (long)MADV_WILLNEED, 1L), EINVAL);
    FAILS(syscall(SYS_process_madvise, self, parts, 1025L, (long)MADV_WILLNEED, 0L), EINVAL);
    FAILS(syscall(SYS_process_madvise, self, 8L, 1L, (long)MADV_WILLNEED, 0L), EFAULT);
    FAILS(syscall(SYS_process_madvise, 1000, parts, 1L, (long)MADV_WILLNEED, 0L), EBADF);
    FAILS(syscall(SYS_process_madvise, fd, parts, 1L, (long)MADV_WILLNEED, 0L), EBADF);
    EQUAL(syscall(SYS_process_madvise, self, parts, 0L, 9999L, 0L), 0);
    int ends[2];
    char byte;
    OK(pipe(ends));
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        EQUAL(read(ends[0], &byte, 1), 1);
        LETTERS(1, "B");
        _exit(0);
    }
    int other = (int)syscall(SYS_pidfd_open, child, 0);
    OK(other);
    FAILS(syscall(SYS_process_madvise, other, parts, 2L, (long)MADV_DONTNEED, 0L), EINVAL);
    EQUAL(syscall(SYS_process_madvise, other, parts, 2L, (long)MADV_WILLNEED, 0L), 2 * PAGE);
    EQUAL(syscall(SYS_process_madvise, other, parts, 2L, 20L /* COLD */, 0L), 2 * PAGE);
    EQUAL(write(ends[1], "x", 1), 1);
    EQUAL(wait_for(child), 0);
    FAILS(syscall(SYS_process_madvise, other, parts, 2L, (long)MADV_WILLNEED, 0L), ESRCH);
    close(self), close(other), close(ends[0]), close(ends[1]);
    everything();
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    OK(sigaction(SIGSEGV, &action, NULL));
    OK(sigaction(SIGBUS, &action, NULL));
    fd = memory_file(4);
    RUN(dropping);
    RUN(holes_in_shared_memory);
    RUN(guards);
    RUN(children);
    RUN(populating);
    RUN(what_is_there);
    RUN(writing_back);
    RUN(every_advice);
    RUN(of_another_process);
    return finished("calls_advice");
}
