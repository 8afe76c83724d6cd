// mm: the memory calls, one thread, against /proc/self/maps and errno.
//
// Proves: mmap, munmap, mprotect, mremap, madvise and brk change exactly the pages they name; mappings split where they
// must and merge where they may (the lines of /proc/self/maps in a range of our own are compared whole); private file
// mappings copy on write and never reach the file; a failed call changes nothing and gives Linux's errno, for a table
// of bad calls.
//
// calls: madvise mmap mprotect mremap munmap
#include "check.h"
#include <sys/stat.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#define BASE ((char *)0x100000000000UL) // our own addresses, far from where the system places mappings
#define AT(page) (BASE + (page) * PAGE)
#define RW (PROT_READ | PROT_WRITE)
#define ANONYMOUS (MAP_PRIVATE | MAP_ANONYMOUS)

static void map_at(long page, long pages, int prot, int flags)
{
    EQUAL((uintptr_t)mmap(AT(page), pages * PAGE, prot, ANONYMOUS | MAP_FIXED | flags, -1, 0), (uintptr_t)AT(page));
}

// The mappings in the range of our own, as "first+pages prot" joined by commas, must be `want`.
static void maps_are(const char *want, int line)
{
    char got[4096] = "", row[512];
    FILE *file = fopen("/proc/self/maps", "r");
    CHECK(file != NULL);
    while (fgets(row, sizeof row, file) != NULL) {
        unsigned long start, end, offset;
        char prot[8];
        EQUAL(sscanf(row, "%lx-%lx %7s %lx", &start, &end, prot, &offset), 4);
        CHECK(start < end && start % PAGE == 0 && end % PAGE == 0);
        if (start < (uintptr_t)BASE || start >= (uintptr_t)AT(1 << 20)) continue;
        size_t used = strlen(got);
        snprintf(got + used, sizeof got - used, "%s%ld+%ld %s", used ? "," : "", (long)((start - (uintptr_t)BASE) / PAGE),
                 (long)((end - start) / PAGE), prot);
    }
    fclose(file);
    if (strcmp(got, want) != 0) {
        fprintf(stderr, "mm.c:%d: /proc/self/maps says %s, wanted %s\n", line, got, want);
        _exit(1);
    }
}
#define MAPS(want) maps_are(want, __LINE__)

static void splits_and_merges(void)
{
    map_at(0, 10, RW, 0);
    MAPS("0+10 rw-p");
    OK(mprotect(AT(3), 2 * PAGE, PROT_READ));
    MAPS("0+3 rw-p,3+2 r--p,5+5 rw-p");
    OK(mprotect(AT(5), PAGE, PROT_READ)); // grows its left neighbour
    MAPS("0+3 rw-p,3+3 r--p,6+4 rw-p");
    OK(mprotect(AT(2), PAGE, PROT_READ)); // grows its right neighbour
    MAPS("0+2 rw-p,2+4 r--p,6+4 rw-p");
    OK(mprotect(AT(2), 4 * PAGE, RW)); // joins both
    MAPS("0+10 rw-p");
    OK(munmap(AT(4), 2 * PAGE));
    MAPS("0+4 rw-p,6+4 rw-p");
    map_at(4, 2, RW, 0); // fills the hole
    MAPS("0+10 rw-p");
    map_at(2, 5, PROT_NONE, 0); // replaces
    MAPS("0+2 rw-p,2+5 ---p,7+3 rw-p");
    OK(mprotect(AT(0), 10 * PAGE, PROT_READ | PROT_EXEC)); // over all three
    MAPS("0+10 r-xp");
    OK(munmap(AT(0), PAGE));
    OK(munmap(AT(9), PAGE));
    MAPS("1+8 r-xp");
    OK(munmap(AT(0), 20 * PAGE)); // holes are no error
    MAPS("");
    OK(munmap(AT(0), 20 * PAGE));
    for (int i = 0; i < 8; i++) map_at(i, 1, i % 2 ? PROT_READ : RW, 0);
    MAPS("0+1 rw-p,1+1 r--p,2+1 rw-p,3+1 r--p,4+1 rw-p,5+1 r--p,6+1 rw-p,7+1 r--p");
    FAILS(mprotect(AT(6), 4 * PAGE, PROT_NONE), ENOMEM); // up to the hole the change stays
    MAPS("0+1 rw-p,1+1 r--p,2+1 rw-p,3+1 r--p,4+1 rw-p,5+1 r--p,6+2 ---p");
    OK(munmap(AT(0), 8 * PAGE));
}

static void contents_and_advice(void)
{
    map_at(0, 8, RW, 0);
    for (int i = 0; i < 8; i++) memset(AT(i), 'a' + i, PAGE);
    OK(mprotect(AT(0), 8 * PAGE, PROT_NONE));
    OK(mprotect(AT(0), 8 * PAGE, RW));
    for (int i = 0; i < 8; i++) EQUAL(AT(i)[PAGE - 1], 'a' + i);
    OK(madvise(AT(2), 3 * PAGE, MADV_DONTNEED));
    for (int i = 0; i < 8; i++) EQUAL(AT(i)[7], i >= 2 && i < 5 ? 0 : 'a' + i);
    OK(madvise(AT(0), 8 * PAGE, MADV_WILLNEED));
    OK(madvise(AT(0), 8 * PAGE, MADV_NORMAL));
    AT(3)[0] = 'z';
    map_at(3, 1, RW, 0); // fresh again
    EQUAL(AT(3)[0], 0);
    MAPS("0+8 rw-p");
    OK(munmap(AT(6), 2 * PAGE));
    FAILS(madvise(AT(0), 8 * PAGE, MADV_DONTNEED), ENOMEM); // the mapped part is done all the same
    EQUAL(AT(0)[0], 0);
    OK(munmap(AT(0), 6 * PAGE));
}

static void moving(void)
{
    map_at(0, 4, RW, 0);
    for (int i = 0; i < 4; i++) AT(i)[i] = 'm';
    CHECK(mremap(AT(0), 4 * PAGE, 2 * PAGE, 0) == AT(0));
    MAPS("0+2 rw-p");
    CHECK(mremap(AT(0), 2 * PAGE, 6 * PAGE, 0) == AT(0)); // room to grow
    MAPS("0+6 rw-p");
    EQUAL(AT(1)[1], 'm');
    EQUAL(AT(2)[2], 0); // what was cut off is gone
    map_at(6, 1, PROT_READ, 0);
    FAILS((intptr_t)mremap(AT(0), 6 * PAGE, 7 * PAGE, 0), ENOMEM); // no room, may not move
    CHECK(mremap(AT(0), 6 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(20)) == AT(20));
    MAPS("6+1 r--p,20+8 rw-p");
    EQUAL(AT(20)[0] + AT(21)[1], 2 * 'm');
    AT(27)[5] = 'n';
    map_at(30, 8, PROT_READ, 0);
    CHECK(mremap(AT(26), 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(33)) == AT(33)); // out of the middle, over another
    MAPS("6+1 r--p,20+6 rw-p,30+3 r--p,33+2 rw-p,35+3 r--p");
    EQUAL(AT(34)[5], 'n');
    char *moved = mremap(AT(33), 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED);
    EQUAL(moved[PAGE + 5], 'n');
    EQUAL(moved[3 * PAGE], 0);
    OK(munmap(moved, 4 * PAGE));
    OK(munmap(AT(0), 40 * PAGE));
    MAPS("");
}

static void heap(void)
{
    char *start = (char *)syscall(SYS_brk, 0L), *p = start + (-(uintptr_t)start & (PAGE - 1));
    CHECK((char *)syscall(SYS_brk, p + 10 * PAGE + 1) == p + 10 * PAGE + 1);
    for (int i = 0; i < 11; i++) EQUAL(p[i * PAGE], 0);
    memset(p, 'h', 11 * PAGE);
    CHECK((char *)syscall(SYS_brk, p + 2 * PAGE) == p + 2 * PAGE);
    CHECK((char *)syscall(SYS_brk, p + 5 * PAGE) == p + 5 * PAGE);
    EQUAL(p[2 * PAGE - 1], 'h');
    EQUAL(p[2 * PAGE], 0);
    CHECK((char *)syscall(SYS_brk, 0L) == p + 5 * PAGE);
    CHECK((char *)syscall(SYS_brk, 4096L) == p + 5 * PAGE); // refused: nothing changes
    CHECK((char *)syscall(SYS_brk, -1L) == p + 5 * PAGE);
    CHECK((char *)syscall(SYS_brk, start) == start);
}

static int file_of(size_t bytes, int flags)
{
    char name[] = "/tmp/quire-mm-XXXXXX";
    int fd = mkstemp(name), other;
    OK(fd);
    for (size_t i = 0; i < bytes; i += 4) {
        uint32_t word = (uint32_t)i;
        EQUAL(write(fd, &word, 4), 4);
    }
    other = open(name, flags);
    OK(other);
    OK(close(fd));
    OK(unlink(name));
    return other;
}

static void files_copy_on_write(void)
{
    int fd = file_of(4 * PAGE + 400, O_RDONLY);
    uint32_t word = 0;
    CHECK(mmap(AT(0), 4 * PAGE, RW, MAP_PRIVATE | MAP_FIXED, fd, PAGE) == AT(0)); // pages 1 to 4 of the file
    OK(close(fd)); // the mapping keeps the file
    uint32_t *p = (uint32_t *)AT(0);
    for (size_t i = 0; i < 3 * PAGE / 4 + 100; i++) EQUAL(p[i], PAGE + 4 * i);
    EQUAL(p[3 * PAGE / 4 + 100], 0); // beyond the end of the file, within its page
    fd = file_of(2 * PAGE, O_RDWR);
    CHECK(mmap(AT(8), 2 * PAGE, RW, MAP_PRIVATE | MAP_FIXED, fd, 0) == AT(8));
    CHECK(mmap(AT(12), 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0) == AT(12));
    uint32_t *a = (uint32_t *)AT(8), *b = (uint32_t *)AT(12);
    a[5] = 1234567;
    EQUAL(b[5], 20); // the other mapping and the file keep theirs
    EQUAL(pread(fd, &word, 4, 20), 4);
    EQUAL(word, 20);
    word = 99;
    EQUAL(pwrite(fd, &word, 4, PAGE), 4);
    EQUAL(b[PAGE / 4], 99); // a page not yet copied shows the file
    EQUAL(a[5], 1234567);
    OK(madvise(a, PAGE, MADV_DONTNEED));
    EQUAL(a[5], 20); // the copy is dropped: the file again
    OK(close(fd));
    MAPS("0+4 rw-p,8+2 rw-p,12+2 r--p");
    OK(munmap(AT(1), PAGE));
    OK(mprotect(AT(2), PAGE, PROT_READ));
    MAPS("0+1 rw-p,2+1 r--p,3+1 rw-p,8+2 rw-p,12+2 r--p");
    OK(mprotect(AT(2), PAGE, RW)); // contiguous in the file: one mapping again
    MAPS("0+1 rw-p,2+2 rw-p,8+2 rw-p,12+2 r--p");
    EQUAL(p[2 * PAGE / 4], 3 * PAGE);
    OK(munmap(AT(0), 16 * PAGE));
}

static void placement(void)
{
    map_at(0, 4, RW, 0);
    void *busy = mmap(AT(1), PAGE, RW, ANONYMOUS, -1, 0); // a hint that is taken: elsewhere
    CHECK(busy != MAP_FAILED && busy != AT(1));
    OK(munmap(busy, PAGE));
    CHECK(mmap(AT(100), PAGE, RW, ANONYMOUS, -1, 0) == AT(100)); // a hint that is free
    CHECK(mmap(AT(101) + 123, PAGE, RW, ANONYMOUS, -1, 0) == AT(101)); // rounded down
    FAILS((intptr_t)mmap(AT(1), PAGE, RW, ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0), EEXIST);
    CHECK(mmap(AT(50), PAGE, RW, ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == AT(50));
    char *low = mmap(NULL, 16 * PAGE, RW, ANONYMOUS | MAP_32BIT, -1, 0);
    CHECK(low != MAP_FAILED && (uintptr_t)low < 0x80000000UL);
    OK(munmap(low, 16 * PAGE));
    char *p = mmap(NULL, 5000, RW, ANONYMOUS, -1, 0); // lengths round up
    p[8191] = 1;
    OK(munmap(p, 5000));
    OK(munmap(AT(0), 128 * PAGE));
    size_t huge = 1UL << 36; // address space costs nothing until it is touched
    p = mmap(NULL, huge, RW, ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    p[0] = p[huge / 2] = p[huge - 1] = 1;
    OK(munmap(p, huge));
    p = mmap(NULL, 64 * PAGE, RW, ANONYMOUS | MAP_POPULATE, -1, 0);
    CHECK(p != MAP_FAILED);
    for (int i = 0; i < 64; i++) EQUAL(p[i * PAGE], 0);
    OK(munmap(p, 64 * PAGE));
}

static void bad_calls(void)
{
    int ro = file_of(100, O_RDONLY), wo = file_of(100, O_WRONLY), ends[2];
    OK(pipe(ends));
    map_at(0, 4, RW, 0);
    map_at(6, 1, RW, 0);
    memset(AT(0), 'k', 4 * PAGE);
    unsigned long top = 1UL << 47, flags = ANONYMOUS | MAP_FIXED;
    struct {
        int line, want;
        long number;
        unsigned long a[6];
    } table[] = {
#define BAD(want, number, ...) {__LINE__, want, SYS_##number, {__VA_ARGS__}}
#define P(page) (unsigned long)AT(page)
        BAD(EINVAL, mmap, 0, 0, RW, ANONYMOUS, -1, 0),
        BAD(EINVAL, mmap, P(10) + 1, PAGE, RW, flags, -1, 0),
        BAD(EINVAL, mmap, 0, PAGE, RW, MAP_ANONYMOUS, -1, 0),
        BAD(EINVAL, mmap, 0, PAGE, RW, MAP_ANONYMOUS | 4, -1, 0),
        BAD(EINVAL, mmap, 0, PAGE, PROT_READ, MAP_PRIVATE, ro, 1),
        BAD(EINVAL, mmap, 0, PAGE, PROT_READ, MAP_PRIVATE, ro, PAGE / 2),
        BAD(ENOMEM, mmap, 0, -1UL, RW, ANONYMOUS, -1, 0),
        BAD(ENOMEM, mmap, 0, -PAGE, RW, ANONYMOUS, -1, 0),
        BAD(ENOMEM, mmap, 0, top, RW, ANONYMOUS, -1, 0),
        BAD(ENOMEM, mmap, 0, top - PAGE, PROT_NONE, ANONYMOUS, -1, 0),
        BAD(ENOMEM, mmap, top - PAGE, PAGE, RW, flags, -1, 0),
        BAD(ENOMEM, mmap, top, PAGE, RW, flags, -1, 0),
        BAD(ENOMEM, mmap, top - 16 * PAGE, 32 * PAGE, RW, flags, -1, 0),
        BAD(ENOMEM, mmap, 0xffff800000000000, PAGE, RW, flags, -1, 0),
        BAD(ENOMEM, mmap, P(0), top, RW, flags, -1, 0),
        BAD(EEXIST, mmap, P(3), 2 * PAGE, RW, ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
        BAD(EEXIST, mmap, P(0), PAGE, RW, ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_FIXED, -1, 0),
        BAD(EINVAL, mmap, P(10) + 8, PAGE, RW, ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
        BAD(EBADF, mmap, 0, PAGE, PROT_READ, MAP_PRIVATE, -1, 0),
        BAD(EBADF, mmap, 0, PAGE, PROT_READ, MAP_PRIVATE, 9999, 0),
        BAD(EACCES, mmap, 0, PAGE, PROT_READ, MAP_PRIVATE, wo, 0),
        BAD(EACCES, mmap, 0, PAGE, PROT_WRITE, MAP_PRIVATE, wo, 0),
        BAD(ENODEV, mmap, 0, PAGE, PROT_READ, MAP_PRIVATE, ends[0], 0),
        BAD(EOVERFLOW, mmap, 0, 2 * PAGE, PROT_READ, MAP_PRIVATE, ro, -PAGE),
        BAD(EINVAL, munmap, P(0) + 1, PAGE),
        BAD(EINVAL, munmap, P(0), 0),
        BAD(EINVAL, munmap, P(0), -1UL),
        BAD(EINVAL, munmap, P(0), top),
        BAD(EINVAL, munmap, top, PAGE),
        BAD(EINVAL, munmap, top - PAGE, 2 * PAGE),
        BAD(EINVAL, munmap, 0xffffffff80000000, PAGE),
        BAD(EINVAL, munmap, -PAGE, 2 * PAGE),
        BAD(EINVAL, munmap, 0x800000000001, PAGE),
        BAD(EINVAL, mprotect, P(0) + 5, PAGE, PROT_READ),
        BAD(EINVAL, mprotect, P(0), PAGE, 0x100),
        BAD(EINVAL, mprotect, P(0), PAGE, -1),
        BAD(EINVAL, mprotect, P(0), PAGE, PROT_GROWSDOWN | PROT_GROWSUP),
        BAD(ENOMEM, mprotect, P(10), PAGE, PROT_READ),
        BAD(ENOMEM, mprotect, P(4), 3 * PAGE, PROT_READ),
        BAD(ENOMEM, mprotect, P(0), -PAGE, PROT_READ),
        BAD(ENOMEM, mprotect, P(0), -1UL, PROT_READ),
        BAD(ENOMEM, mprotect, top, PAGE, PROT_READ),
        BAD(ENOMEM, mprotect, 0xffffffff80000000, PAGE, PROT_READ),
        BAD(EINVAL, mremap, P(0) + 1, PAGE, 2 * PAGE, MREMAP_MAYMOVE),
        BAD(EINVAL, mremap, P(0), PAGE, 0, MREMAP_MAYMOVE),
        BAD(EINVAL, mremap, P(0), PAGE, PAGE, 0x80),
        BAD(EINVAL, mremap, P(0), PAGE, PAGE, MREMAP_FIXED, P(20)),
        BAD(EINVAL, mremap, P(0), PAGE, PAGE, MREMAP_FIXED | MREMAP_MAYMOVE, P(20) + 1),
        BAD(EINVAL, mremap, P(0), 2 * PAGE, 2 * PAGE, MREMAP_FIXED | MREMAP_MAYMOVE, P(1)),
        BAD(EINVAL, mremap, P(0), PAGE, PAGE, MREMAP_FIXED | MREMAP_MAYMOVE, top),
        BAD(EINVAL, mremap, P(0), PAGE, -PAGE, MREMAP_FIXED | MREMAP_MAYMOVE, P(20)),
        BAD(EINVAL, mremap, P(0), PAGE, 2 * PAGE, MREMAP_DONTUNMAP),
        BAD(EFAULT, mremap, P(10), PAGE, 2 * PAGE, MREMAP_MAYMOVE),
        BAD(EFAULT, mremap, P(3), 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE),
        BAD(EFAULT, mremap, P(3), 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE),
        BAD(EINVAL, mremap, P(0), 0, PAGE, MREMAP_MAYMOVE),
        BAD(EINVAL, madvise, P(0) + 1, PAGE, MADV_DONTNEED),
        BAD(EINVAL, madvise, P(0), PAGE, 9999),
        BAD(EINVAL, madvise, P(0), -PAGE, MADV_DONTNEED),
        BAD(EINVAL, madvise, P(0), -1UL, MADV_DONTNEED),
        BAD(ENOMEM, madvise, P(10), PAGE, MADV_DONTNEED),
        BAD(ENOMEM, madvise, P(4), 2 * PAGE, MADV_WILLNEED),
        BAD(EINVAL, arch_prctl, 0x9999, 0),
        BAD(EPERM, arch_prctl, 0x1002, top),
        BAD(EPERM, arch_prctl, 0x1002, 0xffffffff80000000),
    };
    int calls = sizeof table / sizeof *table;
    CHECK(calls >= 60);
    for (int i = 0; i < calls; i++) {
        unsigned long *a = table[i].a;
        errno = 0;
        long result = syscall(table[i].number, a[0], a[1], a[2], a[3], a[4], a[5]);
        if (result != -1 || errno != table[i].want) {
            fprintf(stderr, "mm.c:%d: call %ld gave %#lx, errno %d, wanted errno %d\n", table[i].line, table[i].number, result,
                    errno, table[i].want);
            _exit(1);
        }
    }
    MAPS("0+4 rw-p,6+1 rw-p"); // and nothing changed
    for (size_t i = 0; i < 4 * PAGE; i++) EQUAL(AT(0)[i], 'k');
    OK(syscall(SYS_mprotect, AT(10), 0, PROT_READ)); // nothing to do is done
    OK(syscall(SYS_madvise, AT(10), 0, MADV_DONTNEED));
    OK(munmap(AT(0), 8 * PAGE));
    close(ro), close(wo), close(ends[0]), close(ends[1]);
}

int main(void)
{
    RUN(splits_and_merges);
    RUN(contents_and_advice);
    RUN(moving);
    RUN(heap);
    RUN(files_copy_on_write);
    RUN(placement);
    RUN(bad_calls);
    return finished("mm");
}
