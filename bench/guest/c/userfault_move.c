// userfault_move: userfaultfd's POISON and MOVE: pages whose contents are lost, and contents that go to other pages.
//
// Proves: where POISON puts its mark and where not; every access to such a page is SIGBUS, also of who waited for it, and system calls
// fail; copies take its place; what becomes of it by protection, mremap, madvise, fork, the end of the registration and truncation.
// MOVE takes contents from one page and gives them to another, with holes and without, overlapping and to itself, and wakes who
// waits for them; refuses what others have too, what is marked, and mappings that differ; and loses no store, and lets none in,
// while threads store to what is moved. Errors are Linux's.
//
// calls: userfaultfd ioctl
#include "userfault.h"
#include <setjmp.h>
#include <sys/uio.h>

#define UFFDIO_MOVE_MODE_DONTWAKE 1UL
#define UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES 2UL
#define UFFDIO_POISON_MODE_DONTWAKE 1UL
enum { F_POISON = 1 << 14, F_MOVE = 1 << 16 };
enum { MOVE = 5, POISON = 8 };
#define UFFDIO_MOVE _IOWR(0xaa, MOVE, struct uffdio_copy)
#define UFFDIO_POISON _IOWR(0xaa, POISON, struct uffdio_fill)
#define HOLES UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#define GUARD_INSTALL 102
#define GUARD_REMOVE 103
#define BUS_POISONED 4

static int lose(int fd, long page, long pages, uint64_t mode)
{
    struct uffdio_fill p = {.range = {(uintptr_t)AT(page), pages * PAGE}, .mode = mode};
    int result = ioctl(fd, UFFDIO_POISON, &p);
    copied = p.filled;
    return result;
}

static int move(int fd, long to, long from, long pages, uint64_t mode)
{
    struct uffdio_copy m = {.dst = (uintptr_t)AT(to), .src = (uintptr_t)AT(from), .len = pages * PAGE, .mode = mode};
    int result = ioctl(fd, UFFDIO_MOVE, &m);
    copied = m.copy;
    return result;
}

// ---- accesses that get signals -----------------------------------------------------------------------------------------
static _Thread_local sigjmp_buf back;
static _Thread_local siginfo_t caught;

static void on_fault(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    caught = *info;
    siglongjmp(back, 1);
}

// The signal of an access, or 0.
static int access_at(volatile char *at, int store, char *value)
{
    if (sigsetjmp(back, 1)) {
        CHECK(caught.si_addr == at);
        return caught.si_signo;
    }
    if (store) *at = *value;
    else *value = *at;
    return 0;
}

static int store(long page, char value) { return access_at(AT(page) + 5, 1, &value); }

// What is there; a negative signal.
static int load(long page)
{
    char value = 0;
    int signal = access_at(AT(page) + 5, 0, &value);
    return signal ? -signal : value;
}

static void lost(long page)
{
    for (int i = 0; i < 2; i++) {
        EQUAL(i ? store(page, 1) : -load(page), SIGBUS);
        // A Linux that isn't made for failing memory (CONFIG_MEMORY_FAILURE) says that there is no such address.
        CHECK(caught.si_code == BUS_POISONED ? caught.si_addr_lsb == 12 : caught.si_code == BUS_ADRERR);
    }
}

static void *tries(void *argument)
{
    struct access *a = argument;
    a->value = access_at(a->at, a->store, &a->value);
    a->done = 1;
    return 0;
}

// ---- lost contents -----------------------------------------------------------------------------------------------------
static void poison(void)
{
    int fd = opened(0);
    map_at(0, 16, RW, OWN, -1);
    map_at(20, 1, RW, OWN, -1);
    struct uffdio_register r = {.range = {(uintptr_t)AT(0), 16 * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    OK(ioctl(fd, UFFDIO_REGISTER, &r));
    EQUAL(r.ioctls & (1UL << POISON | 1UL << MOVE), 1UL << POISON | (features & F_MOVE ? 1UL << MOVE : 0));
    OK(lose(fd, 0, 4, 0));
    EQUAL(copied, 4 * PAGE);
    for (int i = 0; i < 4; i++) lost(i);
    // Where something is already, lost contents included, none are lost.
    FAILS(lose(fd, 3, 2, 0), EEXIST);
    EQUAL(copied, -EEXIST);
    OK(zero(fd, 5, 1));
    FAILS(lose(fd, 4, 4, 0), EAGAIN);
    EQUAL(copied, PAGE);
    lost(4);
    EQUAL(load(5), 0);
    FAILS(lose(fd, 6, 1, 2), EINVAL);
    FAILS(lose(fd, 6, 0, 0), EINVAL);
    FAILS(lose(fd, 20, 1, 0), ENOENT);
    FAILS(lose(fd, 100, 1, 0), ENOENT);
    FAILS(lose(fd, 14, 4, 0), ENOENT);
    FAILS(ioctl(fd, UFFDIO_POISON, (void *)8), EFAULT);
    // Copies take its place, and zeros do not.
    FAILS(zero(fd, 0, 1), EEXIST);
    OK(copy(fd, 0, 1, 'c', 0));
    EQUAL(load(0), 'c');
    // Who waits for a page is woken, and meets it.
    struct access a = {.at = AT(8)};
    RETURNS(pthread_create(&a.thread, 0, tries, &a), 0);
    EQUAL(next(fd).arg.pagefault.address, (uintptr_t)AT(8));
    OK(lose(fd, 8, 1, 0));
    EQUAL(ended(&a), SIGBUS);
    a = (struct access){.at = AT(9), .store = 1};
    RETURNS(pthread_create(&a.thread, 0, tries, &a), 0);
    next(fd);
    OK(lose(fd, 9, 1, UFFDIO_POISON_MODE_DONTWAKE));
    moment();
    CHECK(!a.done);
    OK(wake(fd, 9, 1));
    EQUAL(ended(&a), SIGBUS);
    none(fd);
    // System calls.
    int ends[2];
    OK(pipe(ends));
    FAILS(write(ends[1], AT(1), 1), EFAULT);
    EQUAL(write(ends[1], "xyz", 3), 3);
    FAILS(read(ends[0], AT(1), 3), EFAULT);
    struct iovec to = {source, 1}, from = {AT(1), 1};
    FAILS(syscall(SYS_process_vm_readv, getpid(), &to, 1UL, &from, 1UL, 0UL), EFAULT);
    FAILS(madvise(AT(1), PAGE, MADV_POPULATE_READ), EHWPOISON);
    FAILS(madvise(AT(1), PAGE, MADV_POPULATE_WRITE), EHWPOISON);
    FAILS(mlock(AT(1), PAGE), ENOMEM);
    OK(munlock(AT(1), PAGE));
    unsigned char in = 9;
    OK(mincore(AT(1), PAGE, &in));
    EQUAL(in, 0);
    int map = open("/proc/self/pagemap", O_RDONLY);
    uint64_t word;
    EQUAL(pread(map, &word, 8, (uintptr_t)AT(1) / PAGE * 8), 8);
    // Swapped out, in a manner of speaking.
    EQUAL(word >> 56, 1UL << 6);
    OK(close(map));
    OK(close(ends[0]));
    OK(close(ends[1]));
    OK(close(fd));
    OK(munmap(AT(0), 21 * PAGE));
}

// What becomes of lost contents.
static void poison_ends(void)
{
    int fd = opened(F_WP);
    map_at(0, 1024, RW, OWN, -1);
    OK(enlist(fd, 0, 1024, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP));
    OK(lose(fd, 0, 12, 0));
    OK(mprotect(AT(0), PAGE, PROT_NONE));
    EQUAL(load(0), -SIGSEGV);
    EQUAL(caught.si_code, SEGV_ACCERR);
    OK(mprotect(AT(0), PAGE, PROT_READ));
    EQUAL(load(0), -SIGBUS);
    EQUAL(store(0, 1), SIGSEGV);
    OK(mprotect(AT(0), PAGE, RW));
    lost(0);
    // It is not protected.
    OK(protect(fd, 1, 1, UFFDIO_WRITEPROTECT_MODE_WP));
    lost(1);
    OK(copy(fd, 1, 1, 'w', 0));
    EQUAL(store(1, 'v'), 0);
    OK(lose(fd, 20, 1, 0));
    OK(protect(fd, 20, 1, 0));
    lost(20);
    OK(madvise(AT(2), PAGE, MADV_DONTNEED));
    OK(zero(fd, 2, 1));
    OK(madvise(AT(3), PAGE, MADV_FREE));
    OK(zero(fd, 3, 1));
    EQUAL(load(2) | load(3), 0);
    // Guards, where there are any (Linux since 6.13).
    if (madvise(AT(4), PAGE, GUARD_REMOVE) == 0) {
        lost(4);
        OK(madvise(AT(4), PAGE, GUARD_INSTALL));
        EQUAL(load(4), -SIGSEGV);
        FAILS(lose(fd, 4, 1, 0), EEXIST);
        FAILS(zero(fd, 4, 1), EEXIST);
        OK(copy(fd, 4, 1, 'g', 0));
        EQUAL(load(4), 'g');
    } else {
        EQUAL(errno, EINVAL);
    }
    // Moved, to where nobody watches; and grown from there.
    CHECK(mremap(AT(5), 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(2000)) == AT(2000));
    lost(2000);
    OK(madvise(AT(2000), PAGE, MADV_DONTNEED));
    EQUAL(load(2000), 0);
    lost(2001);
    OK(delist(fd, 0, 1024));
    lost(7);
    // A child has it, unless its memory comes wiped; and drops its own alone.
    OK(madvise(AT(8), PAGE, MADV_WIPEONFORK));
    OK(madvise(AT(9), PAGE, MADV_DONTFORK));
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        lost(7);
        lost(2001);
        EQUAL(load(8), 0);
        EQUAL(load(9), -SIGSEGV);
        OK(madvise(AT(7), PAGE, MADV_DONTNEED));
        EQUAL(load(7), 0);
        OK(munmap(AT(2001), PAGE));
        pid_t heir = fork();
        OK(heir);
        if (heir == 0) {
            lost(10);
            _exit(0);
        }
        EQUAL(wait_for(heir), 0);
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    lost(7);
    lost(8);
    lost(2001);
    OK(munmap(AT(0), 2002 * PAGE));
    map_at(0, 16, RW, OWN, -1);
    EQUAL(load(7), 0);
    OK(munmap(AT(0), 16 * PAGE));
    OK(close(fd));
}

// Shared memory: it is the mapping's alone.
static void poison_shared(void)
{
    int fd = opened(F_SHMEM | F_MINOR_SHMEM);
    int file = memfd_create("pages", MFD_CLOEXEC);
    OK(file);
    OK(ftruncate(file, 8 * PAGE));
    map_at(0, 8, RW, MAP_SHARED, file);
    map_at(20, 8, RW, MAP_SHARED, file);
    map_at(40, 8, RW, MAP_PRIVATE, file);
    OK(enlist(fd, 0, 8, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR));
    OK(enlist(fd, 40, 8, UFFDIO_REGISTER_MODE_MISSING));
    AT(20)[5] = 'a';
    AT(21)[5] = 'b';
    OK(lose(fd, 0, 7, 0));
    OK(lose(fd, 40, 3, 0));
    for (int i = 0; i < 7; i++) lost(i);
    EQUAL(load(20), 'a');
    lost(40);
    // The file's page, or a new one, takes its place; in a private mapping not zeros.
    OK(resume(fd, 0, 1, 0));
    EQUAL(load(0), 'a');
    FAILS(copy(fd, 1, 1, 'z', 0), EEXIST);
    lost(1);
    OK(copy(fd, 2, 1, 'n', 0));
    CHECK(load(2) == 'n' && load(22) == 'n');
    OK(zero(fd, 3, 1));
    EQUAL(load(3), 0);
    OK(copy(fd, 40, 1, 'p', 0));
    FAILS(zero(fd, 41, 1), EEXIST);
    CHECK(load(40) == 'p' && load(20) == 'a');
    unsigned char in = 9;
    OK(mincore(AT(1), PAGE, &in));
    EQUAL(in, 1);
    // A child has what is its own.
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        EQUAL(load(1), 'b');
        EQUAL(load(4), 0);
        lost(41);
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    // A hole in the file is no end of it, and the file's end is.
    OK(fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5 * PAGE, PAGE));
    lost(5);
    FAILS(lose(fd, 5, 1, 0), EEXIST);
    OK(ftruncate(file, 5 * PAGE));
    FAILS(lose(fd, 5, 1, 0), EFAULT);
    FAILS(lose(fd, 7, 1, 0), EFAULT);
    OK(ftruncate(file, 8 * PAGE));
    OK(delist(fd, 0, 8));
    EQUAL(load(5), 0);
    lost(4);
    OK(madvise(AT(4), PAGE, MADV_DONTNEED));
    EQUAL(load(4), 0);
    OK(close(file));
    OK(close(fd));
    OK(munmap(AT(0), 48 * PAGE));
}

// ---- contents that move ------------------------------------------------------------------------------------------------
static void moving(void)
{
    int fd = opened(0);
    map_at(0, 32, RW, OWN, -1);
    map_at(100, 32, RW, OWN, -1);
    OK(enlist(fd, 0, 32, UFFDIO_REGISTER_MODE_MISSING));
    for (int i = 0; i < 32; i++)
        if (i != 6 && i != 7) EQUAL(store(100 + i, i + 1), 0);
    OK(move(fd, 0, 100, 1, 0));
    EQUAL(copied, PAGE);
    EQUAL(load(0), 1);
    EQUAL(store(0, 'm'), 0);
    // The source is as if it was never used.
    EQUAL(load(100), 0);
    FAILS(move(fd, 0, 101, 1, 0), EEXIST);
    EQUAL(copied, -EEXIST);
    FAILS(move(fd, 1, 106, 1, 0), ENOENT);
    EQUAL(copied, -ENOENT);
    OK(move(fd, 1, 106, 2, HOLES));
    EQUAL(copied, 2 * PAGE);
    // As far as it goes.
    FAILS(move(fd, 1, 105, 3, 0), EAGAIN);
    EQUAL(copied, PAGE);
    EQUAL(load(1), 6);
    OK(move(fd, 2, 105, 5, HOLES));
    EQUAL(load(5), 9);
    EQUAL(load(6), 10);
    FAILS(move(fd, 3, 111, 4, 0), EAGAIN);
    EQUAL(copied, 2 * PAGE);
    // Errors.
    FAILS(move(fd, 8, 120, 1, 4), EINVAL);
    FAILS(move(fd, 8, 120, 0, 0), EINVAL);
    FAILS(move(fd, 50, 120, 1, 0), ENOENT);
    FAILS(move(fd, 8, 400, 1, 0), ENOENT);
    FAILS(move(fd, 31, 120, 2, 0), EINVAL);
    FAILS(move(fd, 8, 131, 2, 0), EINVAL);
    EQUAL(copied, -EINVAL);
    FAILS(move(fd, 101, 120, 1, 0), EINVAL);
    FAILS(ioctl(fd, UFFDIO_MOVE, (void *)8), EFAULT);
    struct uffdio_copy m = {.dst = (uintptr_t)AT(8) + 1, .src = (uintptr_t)AT(120), .len = PAGE, .copy = 77};
    FAILS(ioctl(fd, UFFDIO_MOVE, &m), EINVAL);
    EQUAL(m.copy, 77);
    m.dst--, m.src++;
    FAILS(ioctl(fd, UFFDIO_MOVE, &m), EINVAL);
    m.src--, m.len++;
    FAILS(ioctl(fd, UFFDIO_MOVE, &m), EINVAL);
    // To itself.
    FAILS(move(fd, 0, 0, 1, HOLES), EEXIST);
    FAILS(move(fd, 8, 8, 1, 0), ENOENT);
    OK(move(fd, 8, 8, 2, HOLES));
    // Who waits is woken, or not.
    struct access a;
    begin(&a, AT(10) + 5, 0, 0);
    EQUAL(next(fd).arg.pagefault.address, (uintptr_t)AT(10));
    OK(move(fd, 10, 120, 1, 0));
    EQUAL(ended(&a), 21);
    begin(&a, AT(11) + 5, 0, 0);
    next(fd);
    OK(move(fd, 11, 121, 1, UFFDIO_MOVE_MODE_DONTWAKE));
    moment();
    CHECK(!a.done);
    OK(wake(fd, 11, 1));
    EQUAL(ended(&a), 22);
    // A source that is watched is missing from then on.
    OK(move(fd, 12, 11, 1, 0));
    begin(&a, AT(11) + 5, 0, 0);
    EQUAL(next(fd).arg.pagefault.address, (uintptr_t)AT(11));
    OK(move(fd, 11, 12, 1, 0));
    EQUAL(ended(&a), 22);
    // What was only read is moved too.
    EQUAL(load(121), 0);
    OK(move(fd, 13, 121, 1, 0));
    EQUAL(load(13), 0);
    EQUAL(store(13, 'z'), 0);
    EQUAL(load(121), 0);
    none(fd);
    OK(close(fd));
    OK(munmap(AT(0), 132 * PAGE));
}

// Ranges that overlap: page by page, from the first.
static void overlapping(void)
{
    int fd = opened(F_WP);
    map_at(0, 16, RW, OWN, -1);
    for (int i = 0; i < 4; i++) EQUAL(store(i, i + 1), 0);
    OK(enlist(fd, 0, 16, UFFDIO_REGISTER_MODE_WP));
    FAILS(move(fd, 2, 0, 4, 0), EEXIST);
    OK(move(fd, 4, 0, 8, 0));
    for (int i = 0; i < 16; i++) EQUAL(load(i), i >= 8 && i < 12 ? i - 7 : 0);
    OK(madvise(AT(0), 16 * PAGE, MADV_DONTNEED));
    for (int i = 4; i < 8; i++) EQUAL(store(i, i + 1), 0);
    OK(move(fd, 2, 4, 4, 0));
    for (int i = 0; i < 16; i++) EQUAL(load(i), i >= 2 && i < 6 ? i + 3 : 0);
    OK(close(fd));
    OK(munmap(AT(0), 16 * PAGE));
}

// Many pages, with holes.
static void many(void)
{
    enum { N = 1500, FROM = 4099 };
    int fd = opened(0);
    map_at(0, N, RW, OWN, -1);
    map_at(FROM, N, RW, OWN, -1);
    OK(enlist(fd, 0, N, UFFDIO_REGISTER_MODE_MISSING));
    for (int i = 0; i < N; i++)
        if (i % 7 != 3) EQUAL(store(FROM + i, i % 100), 0);
    OK(move(fd, 0, FROM, N, HOLES));
    EQUAL(copied, N * PAGE);
    for (int i = 0; i < N; i++) {
        if (i % 7 == 3) OK(zero(fd, i, 1));
        EQUAL(load(i), i % 7 == 3 ? 0 : i % 100);
        EQUAL(load(FROM + i), 0);
    }
    OK(close(fd));
    OK(munmap(AT(0), (FROM + N) * PAGE));
}

// What others have too stays.
static void not_alone(void)
{
    int fd = opened(0), ends[2];
    map_at(0, 8, RW, OWN, -1);
    map_at(100, 8, RW, OWN, -1);
    OK(enlist(fd, 0, 8, UFFDIO_REGISTER_MODE_MISSING));
    for (int i = 0; i < 3; i++) EQUAL(store(100 + i, 'a' + i), 0);
    OK(pipe(ends));
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        char byte;
        OK(close(ends[1]));
        EQUAL(read(ends[0], &byte, 1), 0);
        for (int i = 0; i < 3; i++) EQUAL(load(100 + i), 'a' + i);
        // What the descriptor is of is the parent's.
        FAILS(move(fd, 4, 101, 1, 0), EINVAL);
        FAILS(move(fd, 4, 101, 1, 64), EINVAL);
        _exit(0);
    }
    FAILS(move(fd, 0, 100, 1, 0), EBUSY);
    EQUAL(copied, -EBUSY);
    // A page that was written since is this one's alone.
    EQUAL(store(100, 'A'), 0);
    FAILS(move(fd, 0, 100, 3, 0), EAGAIN);
    EQUAL(copied, PAGE);
    EQUAL(load(0), 'A');
    OK(close(ends[1]));
    EQUAL(wait_for(child), 0);
    EQUAL(store(101, 'B'), 0);
    OK(move(fd, 1, 101, 1, 0));
    EQUAL(load(1), 'B');
    OK(close(ends[0]));
    OK(close(fd));
    OK(munmap(AT(0), 108 * PAGE));
}

static void marked(void)
{
    int fd = opened(F_WP | (features & F_WP_UNPOPULATED));
    map_at(0, 16, RW, OWN, -1);
    map_at(100, 8, RW, OWN, -1);
    OK(enlist(fd, 0, 16, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP));
    EQUAL(store(100, 'x'), 0);
    OK(lose(fd, 0, 1, 0));
    FAILS(move(fd, 0, 100, 1, 0), EEXIST);
    FAILS(move(fd, 1, 0, 1, HOLES), EFAULT);
    if (madvise(AT(101), PAGE, GUARD_INSTALL) == 0) {
        FAILS(move(fd, 1, 101, 1, HOLES), EFAULT);
        OK(madvise(AT(101), PAGE, GUARD_REMOVE));
        FAILS(move(fd, 1, 101, 1, 0), ENOENT);
    }
    // Protection of what isn't there is in the way too; that of what is there stays behind.
    OK(protect(fd, 2, 1, UFFDIO_WRITEPROTECT_MODE_WP));
    FAILS(move(fd, 2, 100, 1, 0), EEXIST);
    FAILS(move(fd, 1, 2, 1, HOLES), EFAULT);
    FAILS(zero(fd, 2, 1), EEXIST);
    FAILS(lose(fd, 2, 1, 0), EEXIST);
    OK(copy(fd, 3, 1, 'q', UFFDIO_COPY_MODE_WP));
    OK(move(fd, 4, 3, 1, 0));
    EQUAL(load(4), 'q');
    EQUAL(store(4, 'r'), 0);
    OK(copy(fd, 3, 1, 's', 0));
    EQUAL(store(3, 't'), 0);
    none(fd);
    OK(close(fd));
    OK(munmap(AT(0), 108 * PAGE));
}

// The two mappings must be alike.
static void mappings(void)
{
    int fd = opened(0), other = opened(0);
    map_at(0, 8, RW, OWN, -1);
    map_at(100, 16, RW, OWN, -1);
    OK(enlist(fd, 0, 4, UFFDIO_REGISTER_MODE_MISSING));
    OK(enlist(other, 4, 4, UFFDIO_REGISTER_MODE_MISSING));
    for (int i = 0; i < 16; i++) EQUAL(store(100 + i, i + 1), 0);
    FAILS(move(fd, 4, 100, 1, 0), EINVAL);
    OK(move(other, 4, 100, 1, 0));
    // A source may be anybody's.
    OK(move(fd, 0, 4, 1, 0));
    int rights[] = {PROT_READ, RW | PROT_EXEC, PROT_NONE};
    for (int i = 0; i < 3; i++) {
        OK(mprotect(AT(101), PAGE, rights[i]));
        FAILS(move(fd, 1, 101, 1, HOLES), EINVAL);
    }
    OK(mprotect(AT(1), PAGE, RW | PROT_EXEC));
    OK(mprotect(AT(101), PAGE, RW | PROT_EXEC));
    OK(move(fd, 1, 101, 1, 0));
    EQUAL(load(1), 2);
    OK(mprotect(AT(2), PAGE, PROT_READ));
    OK(mprotect(AT(102), PAGE, PROT_READ));
    FAILS(move(fd, 2, 102, 1, 0), EINVAL);
    OK(mprotect(AT(2), PAGE, RW));
    OK(mlock(AT(103), PAGE));
    FAILS(move(fd, 2, 103, 1, 0), EINVAL);
    OK(munlock(AT(103), PAGE));
    OK(move(fd, 2, 103, 1, 0));
    EQUAL(load(2), 4);
    // Other flags don't matter.
    OK(madvise(AT(104), PAGE, MADV_DONTFORK));
    OK(move(fd, 3, 104, 1, 0));
    // Memory with a file is none of this.
    int file = memfd_create("pages", MFD_CLOEXEC);
    OK(ftruncate(file, 8 * PAGE));
    int kinds[] = {MAP_SHARED, MAP_PRIVATE};
    for (int i = 0; i < 2; i++) {
        map_at(20, 4, RW, kinds[i], file);
        EQUAL(store(20, 'f'), 0);
        FAILS(move(fd, 0, 20, 1, 0), EINVAL);
        OK(enlist(fd, 20, 4, UFFDIO_REGISTER_MODE_MISSING));
        FAILS(move(fd, 21, 105, 1, 0), EINVAL);
    }
    OK(close(file));
    OK(close(other));
    OK(close(fd));
    OK(munmap(AT(0), 116 * PAGE));
}

// ---- threads that store to what is moved ---------------------------------------------------------------------------------
enum { WRITERS = 3 };
static _Atomic int stop;
static _Atomic uint64_t stored[WRITERS];

static void *storms(void *argument)
{
    long me = (long)argument;
    for (uint64_t n = 1; !stop; n++) {
        *(volatile uint64_t *)AT(100 + me) = n;
        stored[me] = n;
    }
    return 0;
}

static void storm(void)
{
    int fd = opened(0);
    map_at(0, WRITERS, RW, OWN, -1);
    map_at(100, WRITERS, RW, OWN, -1);
    OK(enlist(fd, 0, WRITERS, UFFDIO_REGISTER_MODE_MISSING));
    pthread_t threads[WRITERS];
    stop = 0;
    for (long i = 0; i < WRITERS; i++) RETURNS(pthread_create(&threads[i], 0, storms, (void *)i), 0);
    uint64_t latest[WRITERS] = {0};
    for (int moved = 0; moved < 600;) {
        int i = moved % WRITERS;
        uint64_t before = stored[i];
        if (move(fd, i, 100 + i, 1, 0)) {
            // Not stored to since the last time.
            CHECK(errno == ENOENT || errno == EAGAIN || errno == EBUSY);
            sched_yield();
            continue;
        }
        // All that was stored before, and nothing from then on.
        volatile uint64_t *now = (uint64_t *)AT(i);
        uint64_t value = *now;
        // 0: taken between a fault and its store.
        CHECK(value == 0 || value > latest[i]);
        if (value > latest[i]) latest[i] = value;
        CHECK(latest[i] >= before);
        for (int spin = 0; spin < 300; spin++) EQUAL(*now, value);
        OK(madvise(AT(i), PAGE, MADV_DONTNEED));
        moved++;
    }
    stop = 1;
    for (int i = 0; i < WRITERS; i++) RETURNS(pthread_join(threads[i], 0), 0);
    OK(munmap(AT(0), 103 * PAGE));
    OK(close(fd));
}

static uint64_t there;

static void section(const char *name, uint64_t needed, void (*checks)(void))
{
    if ((there & needed) == needed) checks();
    passed(name);
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    OK(sigaction(SIGBUS, &action, 0));
    OK(sigaction(SIGSEGV, &action, 0));
    // Some kernels have none of it, or not all.
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
    if (fd != -1) {
        OK(close(fd));
        OK(close(opened(0)));
        there = features;
    } else {
        EQUAL(errno, ENOSYS);
    }
    section("poison", F_POISON, poison);
    section("poison_ends", F_POISON, poison_ends);
    section("poison_shared", F_POISON, poison_shared);
    section("moving", F_MOVE, moving);
    section("overlapping", F_MOVE, overlapping);
    section("many", F_MOVE, many);
    section("not_alone", F_MOVE, not_alone);
    section("marked", F_MOVE | F_POISON, marked);
    section("mappings", F_MOVE, mappings);
    section("storm", F_MOVE, storm);
    puts("userfault_move: all passed");
    return 0;
}
