// pagescan: the PAGEMAP_SCAN call on /proc/self/pagemap, and who may know page frames.
//
// Proves: pages of every kind are found by what they are, by required, inverted and alternative categories; neighbours
// that are told alike are one region; the call stops where the program's room or its number of pages ends, and says
// where; scans go on there without losing or repeating a page; wrong arguments have Linux's errors. Frames are told to
// those who may administer the machine.
//
// calls: ioctl
#include "check.h"
#include <sys/ioctl.h>

#define BASE ((char *)0x340000000000UL)
#define AT(page) (BASE + (long)(page) * (long)PAGE)
#define RW (PROT_READ | PROT_WRITE)
#define OWN (MAP_PRIVATE | MAP_ANONYMOUS)
#define OURS (MAP_SHARED | MAP_ANONYMOUS)
#define GUARD_INSTALL 102

struct arg {
    uint64_t size, flags, start, end, walk_end, vec, room, most, inverted, mask, any, told;
};
struct region {
    uint64_t start, end, categories;
};
#define SCAN _IOWR('f', 16, struct arg)
enum { ALLOWED = 1, WRITTEN = 2, FILED = 4, PRESENT = 8, SWAPPED = 16, ZERO = 32, HUGE = 64, SOFT = 128, GUARD = 256 };
#define SHOWN (FILED | PRESENT | SWAPPED | GUARD)

static int map;
static struct region found[64];

static struct arg about(long page, long pages)
{
    memset(found, 0xee, sizeof found);
    return (struct arg){.size = sizeof(struct arg), .start = (uintptr_t)AT(page), .end = (uintptr_t)AT(page + pages),
                        .vec = (uintptr_t)found, .room = 64, .told = SHOWN};
}

static void map_at(long page, long pages, int prot, int flags, int fd, long offset)
{
    CHECK(mmap(AT(page), pages * PAGE, prot, flags | MAP_FIXED, fd, offset * (long)PAGE) == AT(page));
}

static void store(long page, long pages)
{
    for (long i = page; i < page + pages; i++) AT(i)[0] = 1;
}

static void clear(void)
{
    OK(munmap(AT(0), 1UL << 30));
}

static void show(const char *what, struct arg a)
{
    errno = 0;
    int n = ioctl(map, SCAN, &a);
    printf("%s: %d", what, n < 0 ? -errno : n);
    printf(", to %ld:", (long)(a.walk_end - (uintptr_t)BASE) / (long)PAGE);
    for (int i = 0; i < n; i++) {
        long start = (long)(found[i].start - (uintptr_t)BASE), end = (long)(found[i].end - (uintptr_t)BASE);
        CHECK(start % (long)PAGE == 0 && end % (long)PAGE == 0 && start < end);
        printf(" %ld+%ld=%lx", start / (long)PAGE, (end - start) / (long)PAGE, (long)found[i].categories);
    }
    // What was not filled stays.
    if (n >= 0 && n < 64) CHECK(found[n].start == 0xeeeeeeeeeeeeeeee);
    putchar('\n');
}

static int file;

// 0..: own, written; of a file, of shared memory, guards, rights taken away, holes.
static void make(void)
{
    map_at(0, 8, RW, OWN, -1, 0);
    store(0, 2), store(5, 1);
    OK(madvise(AT(3), PAGE, GUARD_INSTALL));
    map_at(10, 4, RW, MAP_SHARED, file, 0);
    store(10, 3);
    map_at(14, 4, RW, MAP_PRIVATE, file, 0);
    store(15, 1);
    CHECK(*(volatile char *)AT(14) == 1); // the file's page
    OK(madvise(AT(16), PAGE, GUARD_INSTALL));
    map_at(20, 4, RW, OURS, -1, 0);
    store(21, 2);
    OK(madvise(AT(20), PAGE, GUARD_INSTALL));
    map_at(30, 4, RW, OWN, -1, 0);
    store(30, 4);
    OK(mprotect(AT(31), PAGE, PROT_NONE));
    OK(mprotect(AT(32), PAGE, PROT_READ));
}

static void categories(void)
{
    make();
    struct arg a = about(-2, 40);
    show("everything", a);
    for (int bit = 1; bit <= 256; bit <<= 1) {
        char name[32];
        a = about(-2, 40);
        if (bit == WRITTEN) continue; // of an empty page it depends on whether there is a page table
        a.mask = (uint64_t)bit, snprintf(name, sizeof name, "with %x", bit);
        show(name, a);
        a = about(-2, 40);
        a.mask = a.inverted = (uint64_t)bit, snprintf(name, sizeof name, "without %x", bit);
        show(name, a);
        a = about(-2, 40);
        a.told = (uint64_t)bit, a.mask = PRESENT, snprintf(name, sizeof name, "told %x", bit);
        show(name, a);
    }
    a = about(-2, 40), a.any = FILED | GUARD;
    show("of a file or a guard", a);
    a = about(-2, 40), a.any = FILED | GUARD, a.mask = PRESENT;
    show("of a file, and there", a);
    a = about(-2, 40), a.any = PRESENT, a.inverted = PRESENT | FILED, a.mask = FILED;
    show("neither there nor of a file", a);
    a = about(-2, 40), a.mask = PRESENT | FILED, a.inverted = FILED;
    show("there and own", a);
    a = about(0, 2), a.mask = WRITTEN, a.told = WRITTEN;
    show("written", a);
    a = about(30, 4), a.mask = WRITTEN, a.told = WRITTEN;
    show("written, whatever is allowed now", a);
    a = about(3, 1), a.told = 0;
    show("nothing told", a);
    a = about(40, 1000);
    show("nothing mapped", a);
    a = about(1, 0);
    show("nothing asked", a);
    a = about(1, 0), a.end += 1;
    show("a part of a page", a);
    clear();
}

static void limits(void)
{
    make();
    for (int most = 1; most <= 12; most++) {
        struct arg a = about(-2, 40);
        a.mask = PRESENT, a.most = (uint64_t)most;
        show("few pages", a);
    }
    for (int room = 0; room <= 7; room++) {
        struct arg a = about(-2, 40);
        a.mask = PRESENT, a.room = (uint64_t)room;
        show("few regions", a);
    }
    struct arg a = about(-2, 40);
    a.room = 3, a.most = 4;
    show("few of both", a);
    a = about(-2, 40), a.vec = 0, a.room = 0;
    show("none", a);
    // Again and again to the end: every page once.
    for (int most = 1; most <= 5; most++) {
        uint64_t at = (uintptr_t)AT(-2), last = (uintptr_t)AT(38);
        long pages = 0, calls = 0;
        while (at < last) {
            a = about(0, 0), a.start = at, a.end = last, a.most = (uint64_t)most, a.mask = PRESENT, a.room = 2;
            int n = ioctl(map, SCAN, &a);
            OK(n);
            for (int i = 0; i < n; i++) {
                CHECK(found[i].start >= at && found[i].end <= a.walk_end);
                pages += (long)((found[i].end - found[i].start) / PAGE);
                at = found[i].end;
            }
            at = a.walk_end, calls++;
            CHECK(calls < 100);
        }
        printf("%d at a time: %ld pages\n", most, pages);
    }
    clear();
}

// Many regions, over several page tables, of which the program has room for a part.
static void many(void)
{
    enum { PAGES = 1200, ROOM = 300 };
    static struct region all[ROOM];
    map_at(1, PAGES, RW, OWN, -1, 0);
    for (long i = 1; i <= PAGES; i += 2) store(i, 1);
    uint64_t at = (uintptr_t)AT(0), last = (uintptr_t)AT(1L << 18);
    long next = 1;
    for (int call = 0; at < last; call++) {
        struct arg a = about(0, 0);
        a.start = at, a.end = last, a.mask = PRESENT, a.vec = (uintptr_t)all, a.room = ROOM;
        int n = ioctl(map, SCAN, &a);
        printf("%d of many\n", n);
        for (int i = 0; i < n; i++, next += 2) {
            EQUAL(all[i].start, (uintptr_t)AT(next));
            EQUAL(all[i].end, (uintptr_t)AT(next + 1));
            EQUAL(all[i].categories, PRESENT);
        }
        at = a.walk_end;
        CHECK(call < 4);
    }
    EQUAL(next, PAGES + 1);
    OK(madvise(AT(1), PAGES * PAGE, GUARD_INSTALL));
    struct arg a = about(0, 1L << 18);
    show("one of many", a);
    clear();
}

static void refusals(void)
{
    struct arg good = about(0, 4), a;
    map_at(0, 4, RW, OWN, -1, 0);
    store(0, 4);
    EQUAL(ioctl(map, SCAN, &good), 1);
#define REFUSED(change, error) a = good, a.walk_end = 17, change, ({ FAILS(ioctl(map, SCAN, &a), error); EQUAL(a.walk_end, 17); })
    REFUSED(a.size = 88, EINVAL);
    REFUSED(a.size = 104, EINVAL);
    REFUSED(a.flags = 4, EINVAL);
    REFUSED(a.mask = 512, EINVAL);
    REFUSED(a.any = 1UL << 63, EINVAL);
    REFUSED(a.inverted = 512, EINVAL);
    REFUSED(a.told = 512, EINVAL);
    REFUSED(a.start += 1, EINVAL);
    REFUSED(a.start = a.end + PAGE, EFAULT);
    REFUSED(a.end = (1UL << 47) - PAGE + 1, EFAULT);
    REFUSED(a.end = -1UL, EFAULT);
    REFUSED((a.start = 1UL << 60, a.end = a.start + PAGE), EFAULT);
    REFUSED(a.vec = 0, EINVAL);
    REFUSED(a.room = 1UL << 47, EFAULT);
    REFUSED(a.room = -1UL, EFAULT);
    a = good, a.vec = 1UL << 60;
    FAILS(ioctl(map, SCAN, &a), EFAULT);
    a = good, a.vec = 8; // nothing is mapped there: told after the scan
    FAILS(ioctl(map, SCAN, &a), EFAULT);
    EQUAL(a.walk_end, good.end);
    a = good, a.end = (1UL << 47) - PAGE, a.room = 1;
    OK(ioctl(map, SCAN, &a));
    FAILS(ioctl(map, SCAN, 8), EFAULT);
    // The structure can't be written to.
    struct arg *constant = mmap(NULL, PAGE, RW, OWN, -1, 0);
    *constant = good;
    OK(mprotect(constant, PAGE, PROT_READ));
    FAILS(ioctl(map, SCAN, constant), EFAULT);
    // No page here may be protected until it is written.
    a = good, a.flags = 2;
    FAILS(ioctl(map, SCAN, &a), EPERM);
    EQUAL(a.walk_end, good.end);
    a = good, a.flags = 2, a.start += 100 * PAGE, a.end += 100 * PAGE;
    EQUAL(ioctl(map, SCAN, &a), 0); // nothing is mapped
    a = good, a.flags = 1;
    EQUAL(ioctl(map, SCAN, &a), 0); // such mappings are passed over
    EQUAL(a.walk_end, good.end);
    a = good, a.flags = 3;
    FAILS(ioctl(map, SCAN, &a), EPERM);
    FAILS(ioctl(map, SCAN + 1, &good), EINVAL);
    FAILS(ioctl(map, 0x5401 /* TCGETS */, &good), EINVAL);
    FAILS(write(map, &good, 8), EBADF);
    clear();
}

// Frames, for who may know them: all words before and after the capability is given up.
static void frames(void)
{
    map_at(0, 4, RW, OWN, -1, 0);
    store(0, 3);
    OK(madvise(AT(1), PAGE, GUARD_INSTALL));
    for (int may = 1; may >= 0; may--) {
        pid_t child = fork();
        OK(child);
        if (child == 0) {
            struct { uint32_t version; int pid; } head = {0x20080522, 0};
            uint32_t sets[6];
            OK(syscall(SYS_capget, &head, sets));
            if (!may) sets[0] = sets[3] = 0;
            OK(syscall(SYS_capset, &head, sets));
            int own = open("/proc/self/pagemap", O_RDONLY), root = sets[0] >> 21 & 1;
            OK(own);
            uint64_t words[4], inherited[4];
            store(0, 1);
            EQUAL(pread(own, words, sizeof words, (off_t)((uintptr_t)AT(0) / PAGE * 8)), sizeof words);
            const uint64_t number = (1UL << 55) - 1;
            EQUAL((words[0] & number) != 0, root);
            EQUAL((words[2] & number) != 0, root);
            EQUAL(words[3], 0);
            EQUAL(words[0] >> 55, (1UL << 63 | 1UL << 56) >> 55);
            EQUAL(words[1] >> 55, (1UL << 62 | 1UL << 58) >> 55);
            // What was opened before is as it was, and the parent's.
            EQUAL(pread(map, inherited, sizeof inherited, (off_t)((uintptr_t)AT(0) / PAGE * 8)), sizeof inherited);
            EQUAL(inherited[2] & number ? inherited[2] >> 63 : 1, 1);
            struct arg a = about(0, 4);
            EQUAL(ioctl(own, SCAN, &a), 4);
            _exit(0);
        }
        EQUAL(wait_for(child), 0);
    }
    clear();
}

int main(void)
{
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    map = open("/proc/self/pagemap", O_RDONLY);
    file = (int)syscall(SYS_memfd_create, "pagescan", 0);
    OK(map);
    OK(file);
    OK(ftruncate(file, 8 * PAGE));
    RUN(categories);
    RUN(limits);
    RUN(many);
    RUN(refusals);
    RUN(frames);
    return finished("pagescan");
}
