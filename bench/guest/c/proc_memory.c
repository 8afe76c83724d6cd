// proc_memory: what /proc/self says about memory: maps, smaps, smaps_rollup, statm, status, pagemap.
//
// Proves: for mappings of every kind that this program makes itself, each line and each number is Linux's: they are
// printed, with addresses counted from the first of them and devices and inodes as a letter, and compared as bytes.
// Numbers about the whole process are told as differences to those before.
//
// calls: mmap munmap mprotect mremap madvise mlock mlock2 memfd_create
#include "check.h"

#define BASE 0x330000000000UL
#define AT(page) ((char *)(BASE + (uint64_t)(page) * PAGE))
#define END AT(4096)
#define RW (PROT_READ | PROT_WRITE)
#define OWN (MAP_PRIVATE | MAP_ANONYMOUS)
#define OURS (MAP_SHARED | MAP_ANONYMOUS)
#define GUARD_INSTALL 102

static char text[1 << 18];

static char *slurp(const char *name)
{
    size_t n = 0;
    int fd = open(name, O_RDONLY);
    OK(fd);
    for (ssize_t got; (got = read(fd, text + n, sizeof text - 1 - n)) > 0;) n += (size_t)got;
    OK(close(fd));
    text[n] = 0;
    return text;
}

static char *map_at(long page, long pages, int prot, int flags, int fd, long offset)
{
    CHECK(mmap(AT(page), pages * PAGE, prot, flags | MAP_FIXED, fd, offset * (long)PAGE) == AT(page));
    return AT(page);
}

static void store(long page, long pages)
{
    for (long i = page; i < page + pages; i++) AT(i)[0] = 1;
}

// Prints the part of maps or smaps that is about the range of our own.
static void show(const char *name)
{
    int ours = 0;
    printf("%s\n", name);
    for (char *row = slurp(name), *next; *row; row = next) {
        next = strchr(row, '\n');
        *next++ = 0;
        unsigned long start, end, offset, inode;
        char prot[8], device[16];
        int used = 0;
        if (sscanf(row, "%lx-%lx %7s %lx %15s %lu%n", &start, &end, prot, &offset, device, &inode, &used) == 6) {
            ours = start >= BASE && start < (uintptr_t)END;
            CHECK(strlen(device) >= 5 && strchr(device, ':') != NULL);
            CHECK((inode == 0) == (strcmp(device, "00:00") == 0 && row[used + 1] != '/'));
            // The name begins in the 74th column; without one the row ends in a space.
            char *path = row + used;
            if (*path == ' ' && path[1] != 0) EQUAL(strspn(row + used, " ") + (size_t)used, 73);
            if (ours) printf("%lu+%lu %s %lx %c%s\n", (start - BASE) / PAGE, (end - start) / PAGE, prot, offset, inode ? 'i' : '0', path + (path[1] ? strspn(path, " ") - 1 : 0));
        } else if (ours && strncmp(row, "ProtectionKey:", 14) != 0) // of processors that have them
            printf("%s\n", row);
    }
}

static void clear(void)
{
    OK(munmap(AT(0), (size_t)(END - AT(0))));
}

static int file;

static void lines(void)
{
    map_at(0, 4, RW, OWN, -1, 0);
    map_at(4, 1, PROT_READ, OWN, -1, 0);
    map_at(5, 1, PROT_NONE, OWN, -1, 0);
    map_at(6, 1, PROT_EXEC, OWN, -1, 0);
    map_at(7, 1, RW | PROT_EXEC, OWN, -1, 0);
    map_at(8, 1, PROT_WRITE, OWN, -1, 0);
    map_at(10, 3, RW, MAP_SHARED, file, 1);
    map_at(13, 2, RW, MAP_PRIVATE, file, 1);
    map_at(15, 2, RW, MAP_PRIVATE, file, 3); // continues the one before
    map_at(17, 1, PROT_READ, MAP_SHARED, file, 0);
    map_at(20, 2, RW, OURS, -1, 0);
    map_at(22, 2, RW, OURS, -1, 0); // another object
    map_at(30, 4, RW, OWN | MAP_NORESERVE, -1, 0);
    map_at(34, 4, RW, OWN, -1, 0); // not the same
    map_at(600, 1, RW, OWN | MAP_GROWSDOWN, -1, 0);
    store(600, 1), store(598, 1);
    map_at(700, 1, RW, OWN | MAP_STACK, -1, 0);
    int zero = open("/dev/zero", O_RDWR), odd = (int)syscall(SYS_memfd_create, "a b\nc", 0);
    map_at(710, 1, RW, MAP_SHARED, odd, 0);
    OK(zero);
    OK(close(zero));
    OK(close(odd));
    show("/proc/self/maps");
    OK(mprotect(AT(1), PAGE, PROT_READ));
    OK(mprotect(AT(11), PAGE, PROT_READ));
    OK(munmap(AT(14), PAGE));
    show("/proc/self/maps");
    clear();
}

static void details(void)
{
    map_at(0, 4, RW, OWN, -1, 0);
    store(0, 3);
    map_at(10, 4, RW, OURS, -1, 0);
    store(11, 2);
    map_at(20, 4, RW, MAP_SHARED, file, 0);
    store(20, 3);
    map_at(30, 4, RW, MAP_PRIVATE, file, 0);
    store(30, 1); // a copy
    map_at(40, 4, PROT_READ | PROT_EXEC, OWN, -1, 0);
    map_at(50, 4, RW, OWN | MAP_NORESERVE, -1, 0);
    map_at(60, 4, RW, OWN, -1, 0);
    OK(mlock(AT(61), 2 * PAGE));
    OK(syscall(SYS_mlock2, AT(63), PAGE, 1));
    map_at(70, 9, RW, OWN, -1, 0);
    OK(madvise(AT(70), PAGE, MADV_SEQUENTIAL));
    OK(madvise(AT(71), PAGE, MADV_RANDOM));
    OK(madvise(AT(72), PAGE, MADV_DONTFORK));
    OK(madvise(AT(73), PAGE, MADV_DONTDUMP));
    OK(madvise(AT(74), PAGE, MADV_WIPEONFORK));
    OK(madvise(AT(75), PAGE, MADV_HUGEPAGE));
    OK(madvise(AT(76), PAGE, MADV_NOHUGEPAGE));
    map_at(80, 2, RW, 8 /* MAP_DROPPABLE */ | MAP_ANONYMOUS, -1, 0);
    map_at(600, 2, RW, OWN | MAP_GROWSDOWN, -1, 0);
    store(600, 2);
    int reader = open("/proc/self/fd/9", O_RDONLY); // the same file, for reading only
    OK(reader);
    map_at(700, 1, PROT_READ, MAP_SHARED, reader, 0);
    map_at(702, 1, PROT_READ, MAP_PRIVATE, reader, 0);
    OK(close(reader));
    show("/proc/self/smaps");
    clear();
}

// The pages of a child and its parent, seen by the parent while the child waits.
static void shares(void)
{
    int ends[2], done[2];
    char byte = 0;
    OK(pipe(ends));
    OK(pipe(done));
    map_at(0, 4, RW, OWN, -1, 0);
    map_at(10, 4, RW, OURS, -1, 0);
    store(0, 4), store(10, 4);
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        store(0, 1); // a copy of its own
        store(10, 2);
        EQUAL(write(done[1], &byte, 1), 1);
        EQUAL(read(ends[0], &byte, 1), 1);
        _exit(0);
    }
    EQUAL(read(done[0], &byte, 1), 1);
    show("/proc/self/smaps");
    EQUAL(write(ends[1], &byte, 1), 1);
    EQUAL(wait_for(child), 0);
    show("/proc/self/smaps");
    for (int i = 0; i < 2; i++) close(ends[i]), close(done[i]);
    clear();
}

// ---- numbers about the whole process

struct numbers {
    long statm[7];
    long status[12];
};
static const char *names[12] = {"VmSize", "VmLck", "VmPin", "RssAnon", "RssFile", "RssShmem", "VmRSS", "VmData", "VmStk", "VmExe", "VmLib", "VmSwap"};

static struct numbers measure(void)
{
    struct numbers n;
    char *p = slurp("/proc/self/statm");
    for (int i = 0; i < 7; i++) n.statm[i] = strtol(p, &p, 10);
    EQUAL(*p, '\n');
    slurp("/proc/self/status");
    for (int i = 0; i < 12; i++) {
        char key[32];
        snprintf(key, sizeof key, "\n%s:\t", names[i]);
        p = strstr(text, key);
        CHECK(p != NULL);
        n.status[i] = strtol(p + strlen(key), &p, 10);
        CHECK(strncmp(p, " kB\n", 4) == 0);
    }
    return n;
}

static struct numbers before;
static int silent; // a rehearsal, so that all of this program's own pages are there

static void show_change(const char *what)
{
    struct numbers now = measure();
    char row[512];
    int n = snprintf(row, sizeof row, "%s: statm", what);
    for (int i = 0; i < 7; i++) n += snprintf(row + n, sizeof row - (size_t)n, " %+ld", now.statm[i] - before.statm[i]);
    for (int i = 0; i < 12; i++)
        if (now.status[i] != before.status[i]) n += snprintf(row + n, sizeof row - (size_t)n, " %s %+ld", names[i], now.status[i] - before.status[i]);
    if (!silent) printf("%s\n", row);
    // The files agree with each other.
    EQUAL(now.statm[0] * 4, now.status[0]);
    EQUAL(now.statm[1] * 4, now.status[6]);
    EQUAL(now.status[3] + now.status[4] + now.status[5], now.status[6]);
    EQUAL(now.statm[2] * 4, now.status[4] + now.status[5]);
    EQUAL(now.statm[5] * 4, now.status[7] + now.status[8]);
}

static void numbers(void)
{
    measure();
    fflush(stdout);
    before = measure();
    show_change("nothing");
    map_at(0, 100, RW, OWN, -1, 0);
    show_change("100 pages of its own");
    store(0, 10);
    show_change("10 of them stored to");
    OK(mprotect(AT(0), 50 * PAGE, PROT_READ));
    show_change("50 not writable");
    map_at(200, 20, RW, OURS, -1, 0);
    store(200, 5);
    show_change("20 shared, 5 stored to");
    map_at(300, 8, RW, MAP_PRIVATE, file, 0);
    store(300, 2);
    show_change("8 of a file, 2 copied");
    map_at(320, 8, PROT_NONE, OWN, -1, 0);
    map_at(330, 8, PROT_READ | PROT_EXEC, OWN, -1, 0);
    show_change("8 without access, 8 of code");
    map_at(1000, 2, RW, OWN | MAP_GROWSDOWN, -1, 0);
    store(995, 1);
    show_change("a stack of 2 that grew to 7");
    OK(mlock(AT(60), 4 * PAGE));
    show_change("4 locked");
    OK(madvise(AT(0), 20 * PAGE, MADV_DONTNEED));
    show_change("the first 20 dropped");
    CHECK(mremap(AT(0), 40 * PAGE, 60 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(500)) == AT(500));
    show_change("40 moved and 60 now");
    clear();
    show_change("all gone");
}

// The sums of smaps are what smaps_rollup says.
static void rollup(void)
{
    static const char *keys[] = {"Rss", "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Anonymous", "Referenced"};
    long sums[7] = {0};
    map_at(0, 40, RW, OWN, -1, 0);
    store(0, 20);
    slurp("/proc/self/smaps");
    for (int k = 0; k < 7; k++) {
        char key[32];
        snprintf(key, sizeof key, "\n%s:", keys[k]);
        for (char *p = text; (p = strstr(p, key)) != NULL;) p += strlen(key), sums[k] += strtol(p, &p, 10);
    }
    slurp("/proc/self/smaps_rollup");
    for (int k = 0; k < 7; k++) {
        char key[32];
        snprintf(key, sizeof key, "\n%s:", keys[k]);
        char *p = strstr(text, key);
        CHECK(p != NULL);
        long got = strtol(p + strlen(key), NULL, 10);
        CHECK(got >= sums[k] - 16 && got <= sums[k] + 16); // reading itself may touch pages
    }
    // Its lines in their order; the first one names the whole.
    char *p = strchr(text, '\n');
    EQUAL(strncmp(p - 8, "[rollup]", 8), 0);
    for (p++; *p; p = strchr(p, '\n') + 1) printf("%.*s\n", (int)strcspn(p, ":"), p);
    clear();
}

// ---- pagemap

static uint64_t entry(int fd, char *p)
{
    uint64_t word;
    EQUAL(pread(fd, &word, 8, (off_t)((uintptr_t)p / PAGE * 8)), 8);
    return word;
}

static uint64_t frame(int fd, char *p)
{
    return entry(fd, p) & ((1UL << 55) - 1);
}

static void show_entries(const char *what, int fd, long page, long pages)
{
    static const struct { int bit; char name; } bits[] = {{63, 'P'}, {62, 'S'}, {61, 'F'}, {58, 'G'}, {57, 'W'}, {56, 'X'}};
    printf("%s:", what);
    for (long i = page; i < page + pages; i++) {
        uint64_t word = entry(fd, AT(i));
        putchar(' ');
        for (int b = 0; b < 6; b++) putchar(word >> bits[b].bit & 1 ? bits[b].name : '-');
    }
    putchar('\n');
}

static void pages(void)
{
    int fd = open("/proc/self/pagemap", O_RDONLY);
    OK(fd);
    map_at(0, 8, RW, OWN, -1, 0);
    store(0, 6);
    OK(mprotect(AT(1), PAGE, PROT_NONE));
    OK(mprotect(AT(2), PAGE, PROT_READ));
    OK(madvise(AT(3), PAGE, MADV_DONTNEED));
    OK(madvise(AT(4), PAGE, GUARD_INSTALL));
    show_entries("private", fd, 0, 9);
    map_at(10, 4, RW, OURS, -1, 0);
    store(11, 2);
    show_entries("shared", fd, 10, 4);
    map_at(20, 4, RW, MAP_SHARED, file, 0);
    map_at(24, 4, RW, MAP_PRIVATE, file, 0);
    store(20, 2), store(24, 1);
    show_entries("file", fd, 20, 8);
    CHECK(frame(fd, AT(0)) != 0 && frame(fd, AT(0)) != frame(fd, AT(5)));
    EQUAL(frame(fd, AT(3)), 0);
    CHECK(frame(fd, AT(20)) != frame(fd, AT(24)));
    uint64_t mine = frame(fd, AT(0)), ours = frame(fd, AT(11));
    int ends[2], done[2];
    char byte = 0;
    OK(pipe(ends));
    OK(pipe(done));
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        int own = open("/proc/self/pagemap", O_RDONLY);
        OK(own);
        EQUAL(frame(own, AT(0)), mine);
        store(0, 1);
        store(11, 1);
        CHECK(frame(own, AT(0)) != mine);
        EQUAL(frame(own, AT(11)), ours);
        EQUAL(write(done[1], &byte, 1), 1);
        EQUAL(read(ends[0], &byte, 1), 1);
        _exit(0);
    }
    EQUAL(read(done[0], &byte, 1), 1);
    show_entries("with a child", fd, 0, 12);
    EQUAL(frame(fd, AT(0)), mine);
    EQUAL(write(ends[1], &byte, 1), 1);
    EQUAL(wait_for(child), 0);
    show_entries("after it", fd, 0, 12);
    uint64_t many[12];
    EQUAL(pread(fd, many, sizeof many, (off_t)(BASE / PAGE * 8)), sizeof many);
    EQUAL(many[0], entry(fd, AT(0)));
    FAILS(pread(fd, many, 7, 0), EINVAL);
    FAILS(pread(fd, many, 8, 4), EINVAL);
    EQUAL(pread(fd, many, 8, (off_t)(((1UL << 47) / PAGE - 1) * 8)), 0); // the last page is nobody's
    EQUAL(pread(fd, many, 16, (off_t)(((1UL << 47) / PAGE - 2) * 8)), 8);
    OK(close(fd));
    for (int i = 0; i < 2; i++) close(ends[i]), close(done[i]);
    clear();
}

int main(void)
{
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    int fd = (int)syscall(SYS_memfd_create, "proc_memory", 0);
    OK(fd);
    EQUAL(file = dup2(fd, 9), 9);
    OK(ftruncate(file, 8 * PAGE));
    RUN(lines);
    RUN(details);
    RUN(shares);
    silent = 1;
    numbers();
    silent = 0;
    RUN(numbers);
    RUN(rollup);
    RUN(pages);
    return finished("proc_memory");
}
