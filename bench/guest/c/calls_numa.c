// The calls about nodes of memory, with every mode, flag and kind of mask; how policies split, join, move and are inherited;
// where pages are. What is valid depends on the nodes that there are, so most answers are printed rather than checked, to be
// compared with Linux on a machine with the same nodes.
//
//   calls_numa           the calls
//   calls_numa machine   also what the machine says of its nodes, and on which node each CPU is
//   calls_numa place     also where pages come to be under each policy, and move: a few MiB must be free on every node
//
// calls: mbind set_mempolicy get_mempolicy set_mempolicy_home_node move_pages migrate_pages getcpu mremap
#include "check.h"

#include <sched.h>

enum { DEFAULT, PREFERRED, BIND, INTERLEAVE, LOCAL, PREFERRED_MANY, WEIGHTED, BEYOND };
static const char *const MODES[] = {"default", "preferred", "bind", "interleave", "local", "preferred-many", "weighted", "beyond"};
enum { STATIC = 1 << 15, RELATIVE = 1 << 14, BALANCING = 1 << 13 };
enum { NODE = 1, ADDR = 2, ALLOWED = 4 };
enum { STRICT = 1, MOVE = 2, MOVE_ALL = 4 };
enum { HOME_NODE = 450 };
#define RW (PROT_READ | PROT_WRITE)
#define NOBODY 0x3ffffff0
// As many nodes as a mask here can name, plus one.
#define BITS 65L

static unsigned long allowed;

static long set_policy(int mode, unsigned long nodes) { return syscall(SYS_set_mempolicy, mode, &nodes, BITS); }
static long bind_to(void *at, size_t pages, int mode, unsigned long nodes, unsigned flags)
{
    return syscall(SYS_mbind, at, pages * PAGE, mode, &nodes, BITS, flags);
}

// What a call came to, for comparison.
static void tell(const char *what, long result)
{
    int error = errno;
    if (result == -1) printf("%s: errno %d\n", what, error);
    else printf("%s: %ld\n", what, result);
}

static void tell_policy(const char *what, void *at)
{
    int mode = -1;
    unsigned long nodes[2] = {~0UL, ~0UL};
    errno = 0;
    long result = syscall(SYS_get_mempolicy, &mode, nodes, 128L, at, at ? ADDR : 0);
    if (result == -1) tell(what, result);
    else printf("%s: mode %#x nodes %#lx %#lx\n", what, mode, nodes[0], nodes[1]);
}

// The lines of numa_maps between two pages, by their distance from the first: policy and what is there, but no nodes.
static void tell_mappings(const char *what, char *from, size_t pages, int places)
{
    static char text[1 << 16];
    int fd = open("/proc/self/numa_maps", O_RDONLY);
    OK(fd);
    size_t n = 0;
    ssize_t got;
    while ((got = read(fd, text + n, sizeof text - 1 - n)) > 0) n += got;
    EQUAL(got, 0);
    close(fd);
    text[n] = 0;
    printf("%s:\n", what);
    for (char *save, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *rest;
        unsigned long start = strtoul(line, &rest, 16);
        if (start - (unsigned long)from >= pages * PAGE) continue;
        printf("  %lu", (start - (unsigned long)from) / PAGE);
        for (char *inner, *word = strtok_r(rest, " ", &inner); word; word = strtok_r(NULL, " ", &inner)) {
            // How recently pages were used differs from run to run; how dirty they are when they come, by version.
            if (!strncmp(word, "active=", 7) || !strncmp(word, "dirty=", 6)) continue;
            if (word[0] == 'N' && !places) continue;
            printf(" %s", word);
        }
        printf("\n");
    }
}

// ---- a thread's policy

static void every_mode(void)
{
    const unsigned long masks[] = {0, 1, 2, 3, 4, 6, 0xf0, 1UL << 40, ~0UL};
    const int flags[] = {0, STATIC, RELATIVE, STATIC | RELATIVE, BALANCING, STATIC | BALANCING, 1 << 12};
    char what[96];
    for (int mode = DEFAULT; mode <= BEYOND; mode++)
        for (size_t f = 0; f < sizeof flags / sizeof *flags; f++)
            for (size_t m = 0; m < sizeof masks / sizeof *masks; m++) {
                snprintf(what, sizeof what, "set %s %#x %#lx", MODES[mode], flags[f], masks[m]);
                errno = 0;
                long result = set_policy(mode | flags[f], masks[m]);
                tell(what, result);
                if (result == 0) tell_policy("  is", NULL);
            }
    EQUAL(set_policy(DEFAULT, 0), 0);
}

static void masks(void)
{
    // 1024 nodes is the most that a mask has room for; what is beyond must be zero.
    static unsigned long mask[2048 / 64 + PAGE / 8 + 1];
    const long bits[] = {0, 1, 2, 3, 64, 65, 66, 1024, 1025, 1026, 1100, 2048, 32768, 32769, 32770, -1};
    char what[64];
    for (int at = 0; at < 3; at++) {
        memset(mask, 0, sizeof mask);
        mask[0] = 1;
        if (at) mask[at == 1 ? 3 : 16] = 4;
        for (size_t i = 0; i < sizeof bits / sizeof *bits; i++) {
            snprintf(what, sizeof what, "bits %ld, %d", bits[i], at);
            errno = 0;
            tell(what, syscall(SYS_set_mempolicy, PREFERRED, mask, bits[i]));
            tell_policy("  is", NULL);
        }
    }
    // Far nodes count round and round among those that there are, and are told as far as there is room.
    memset(mask, 0, sizeof mask);
    mask[1] = 1;
    tell("a far node", syscall(SYS_set_mempolicy, BIND, mask, 130L));
    tell("a far node, relative", syscall(SYS_set_mempolicy, BIND | RELATIVE, mask, 130L));
    tell_policy("  is", NULL);
    tell("nothing at a far node", syscall(SYS_set_mempolicy, DEFAULT, mask, 130L));
    EQUAL(set_policy(DEFAULT, 0), 0);
    FAILS(syscall(SYS_set_mempolicy, BIND, 8L, 64L), EFAULT);
    tell("no mask", syscall(SYS_set_mempolicy, PREFERRED, NULL, 0L));
    tell_policy("  is", NULL);
    EQUAL(set_policy(DEFAULT, 0), 0);
}

static void questions(void)
{
    int mode = 77;
    unsigned long nodes[40];
    const long bits[] = {0, 1, 2, 3, 4, 64, 65, 66, 128, 1024, 32768, 32769, 32770, 1 << 20};
    static unsigned long told[(1 << 20) / 64 + 1];
    for (size_t i = 0; i < sizeof bits / sizeof *bits; i++) {
        char what[64];
        memset(told, 0xff, sizeof told);
        snprintf(what, sizeof what, "%ld bits", bits[i]);
        errno = 0;
        tell(what, syscall(SYS_get_mempolicy, NULL, told, bits[i], NULL, ALLOWED));
        size_t written = 0;
        while (written < sizeof told / sizeof *told && told[written] != ~0UL) written++;
        printf("  %zu words, the first %#lx\n", written, told[0]);
    }
    EQUAL(syscall(SYS_get_mempolicy, &mode, NULL, 0L, NULL, ALLOWED), 0);
    EQUAL(mode, 0);
    FAILS(syscall(SYS_get_mempolicy, &mode, nodes, 1024L, NULL, ALLOWED | ADDR), EINVAL);
    FAILS(syscall(SYS_get_mempolicy, &mode, nodes, 1024L, NULL, ALLOWED | NODE), EINVAL);
    FAILS(syscall(SYS_get_mempolicy, &mode, nodes, 1024L, NULL, 8L), EINVAL);
    FAILS(syscall(SYS_get_mempolicy, 8L, nodes, 1024L, NULL, 0L), EFAULT);
    FAILS(syscall(SYS_get_mempolicy, &mode, 8L, 1024L, NULL, 0L), EFAULT);
    FAILS(syscall(SYS_get_mempolicy, &mode, NULL, 0L, &mode, 0L), EINVAL);
    FAILS(syscall(SYS_get_mempolicy, &mode, NULL, 0L, NULL, NODE), EINVAL);
    FAILS(syscall(SYS_get_mempolicy, &mode, NULL, 0L, 16 * PAGE, ADDR), EFAULT);
    FAILS(syscall(SYS_get_mempolicy, &mode, NULL, 0L, ~0UL, ADDR | NODE), EFAULT);
    // What is mapped but can't be read is on no node.
    char *p = pages_new(1);
    OK(mprotect(p, PAGE, PROT_NONE));
    FAILS(syscall(SYS_get_mempolicy, &mode, NULL, 0L, p, ADDR | NODE), EFAULT);
    OK(munmap(p, PAGE));
}

static void inheritance(void)
{
    EQUAL(set_policy(INTERLEAVE | STATIC, allowed), 0);
    tell_policy("before", NULL);
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        tell_policy("child", NULL);
        EQUAL(set_policy(LOCAL, 0), 0);
        fflush(stdout);
        execl("/proc/self/exe", "calls_numa", "child", NULL);
        _exit(9);
    }
    EQUAL(wait_for(child), 0);
    tell_policy("after", NULL);
    EQUAL(set_policy(DEFAULT, 0), 0);
}

// ---- mappings' policies

static void ranges(void)
{
    char *p = pages_new(12);
    OK(munmap(p + 8 * PAGE, PAGE));
    FAILS(bind_to(p + 1, 1, BIND, 1, 0), EINVAL);
    FAILS(bind_to(p, 1, BIND, 1, 8), EINVAL);
    FAILS(bind_to(p, 1, BEYOND, 1, 0), EINVAL);
    FAILS(syscall(SYS_mbind, p, PAGE, BIND, 8L, BITS, 0), EFAULT);
    FAILS(bind_to(p + 7 * PAGE, 3, BIND, 1, 0), EFAULT);
    FAILS(bind_to(p + 8 * PAGE, 1, DEFAULT, 0, 0), EFAULT);
    FAILS(bind_to(p, -1UL / PAGE, BIND, 1, 0), EINVAL);
    EQUAL(bind_to(p, 0, BIND, 1, 0), 0);
    EQUAL(syscall(SYS_mbind, p, -1UL, BIND, &allowed, BITS, 0), 0); // rounded up, that's nothing
    EQUAL(bind_to(p + 7 * PAGE, 3, DEFAULT, 0, 0), 0);
    tell_mappings("untouched", p, 12, 0);
    // What begins or ends inside splits; what is equal joins, with flags and nodes as they were said.
    EQUAL(bind_to(p + PAGE, 2, BIND, 1, 0), 0);
    EQUAL(bind_to(p + 3 * PAGE, 2, BIND, 1, 0), 0);
    EQUAL(bind_to(p + 5 * PAGE, 1, BIND | STATIC, 1, 0), 0);
    EQUAL(bind_to(p + 6 * PAGE, 1, PREFERRED, 0, 0), 0);
    p[2 * PAGE] = p[6 * PAGE] = 1;
    tell_mappings("split", p, 12, 0);
    for (int i = 0; i < 7; i++) tell_policy("  page", p + i * PAGE);
    // In a child, and in a place elsewhere, they are the same.
    fflush(stdout);
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        tell_mappings("child", p, 12, 0);
        fflush(stdout);
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    char *to = pages_new(4);
    EQUAL(mremap(p + 2 * PAGE, 2 * PAGE, 3 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
    tell_mappings("moved", to, 4, 0);
    tell_mappings("left", p, 12, 0);
    EQUAL(bind_to(p, 2, DEFAULT, 0, 0), 0);
    EQUAL(bind_to(to, 4, DEFAULT, 0, 0), 0);
    tell_policy("default again", to);
    // A mapping that is told to be local is; one that nobody told anything is as the thread.
    EQUAL(set_policy(BIND, allowed), 0);
    tell_mappings("a thread's", p + 4 * PAGE, 8, 0);
    EQUAL(set_policy(DEFAULT, 0), 0);
    OK(munmap(p, 12 * PAGE));
    OK(munmap(to, 4 * PAGE));
}

static void homes(void)
{
    char *p = pages_new(6);
    char what[64];
    FAILS(syscall(HOME_NODE, p + 1, PAGE, 0L, 0L), EINVAL);
    FAILS(syscall(HOME_NODE, p, PAGE, 0L, 1L), EINVAL);
    FAILS(syscall(HOME_NODE, p, -2 * PAGE, 0L, 0L), EINVAL);
    EQUAL(syscall(HOME_NODE, p, 0L, 0L, 0L), 0);
    FAILS(syscall(HOME_NODE, p, PAGE, 0L, 0L), ENOENT);
    EQUAL(bind_to(p + PAGE, 3, BIND, allowed, 0), 0);
    EQUAL(bind_to(p + 4 * PAGE, 1, INTERLEAVE, allowed, 0), 0);
    const long homes[] = {0, 1, 2, 63, 64, 1023, 1024, -1};
    for (size_t i = 0; i < sizeof homes / sizeof *homes; i++) {
        snprintf(what, sizeof what, "home %ld", homes[i]);
        errno = 0;
        tell(what, syscall(HOME_NODE, p + PAGE, PAGE, homes[i], 0L));
    }
    // With holes and mappings without a policy in between, and up to one that has no use for it.
    EQUAL(syscall(HOME_NODE, p, 3 * PAGE, 0L, 0L), 0);
    FAILS(syscall(HOME_NODE, p, 6 * PAGE, 0L, 0L), EOPNOTSUPP);
    tell_mappings("with homes", p, 6, 0);
    EQUAL(bind_to(p, 6, PREFERRED_MANY, allowed, 0), 0);
    EQUAL(syscall(HOME_NODE, p + 2 * PAGE, 2 * PAGE, 0L, 0L), 0);
    tell_mappings("preferred", p, 6, 0);
    tell_policy("  page", p + 2 * PAGE);
    OK(munmap(p, 6 * PAGE));
}

static void strictness(void)
{
    char *p = pages_new(4);
    p[PAGE] = 1;
    // Where the page is, whatever the number: there it may be, and nowhere else.
    int node = -1;
    EQUAL(syscall(SYS_get_mempolicy, &node, NULL, 0L, p + PAGE, NODE | ADDR), 0);
    EQUAL(bind_to(p, 4, BIND, 1UL << node, STRICT), 0);
    EQUAL(bind_to(p, 4, BIND, 1UL << node, STRICT | MOVE), 0);
    FAILS(bind_to(p, 4, PREFERRED, 0, STRICT), EIO); // local, but no node is named
    int mode = -1;
    EQUAL(syscall(SYS_get_mempolicy, &mode, NULL, 0L, p, ADDR), 0);
    EQUAL(mode, BIND); // as before
    unsigned long others = allowed & ~(1UL << node);
    if (others) FAILS(bind_to(p, 4, BIND, others, STRICT), EIO);
    EQUAL(bind_to(p + 2 * PAGE, 2, PREFERRED, 0, STRICT), 0); // nothing is there
    EQUAL(bind_to(p, 4, DEFAULT, 0, STRICT), 0);
    OK(munmap(p, 4 * PAGE));
}

// ---- pages

static void where(void)
{
    char *p = pages_new(4);
    p[0] = p[2 * PAGE] = 1;
    OK(munmap(p + 3 * PAGE, PAGE));
    int node = -1;
    EQUAL(syscall(SYS_get_mempolicy, &node, NULL, 0L, p, NODE | ADDR), 0);
    CHECK(allowed >> node & 1);
    void *list[6] = {p, p + PAGE, p + 2 * PAGE + 5, p + 3 * PAGE, NULL, (void *)-1L};
    int status[6] = {99, 99, 99, 99, 99, 99}, nodes[6] = {node, node, node, node, node, node};
    EQUAL(syscall(SYS_move_pages, 0, 6L, list, NULL, status, 0), 0);
    EQUAL(status[0], node);
    EQUAL(status[1], -ENOENT);
    CHECK(status[2] >= 0 && allowed >> status[2] & 1);
    for (int i = 3; i < 6; i++) EQUAL(status[i], -EFAULT);
    nodes[2] = status[2];
    memset(status, 99, sizeof status);
    EQUAL(syscall(SYS_move_pages, getpid(), 6L, list, nodes, status, MOVE), 0);
    for (int i = 0; i < 6; i++) printf("  status %d: %s %d\n", i, status[i] < 0 ? "errno" : "there", status[i] < 0 ? -status[i] : 0);
    EQUAL(syscall(SYS_move_pages, 0, 0L, NULL, NULL, NULL, MOVE_ALL), 0);
    FAILS(syscall(SYS_move_pages, 0, 1L, list, NULL, status, 1), EINVAL);
    FAILS(syscall(SYS_move_pages, 0, 1L, 8L, NULL, status, 0), EFAULT);
    FAILS(syscall(SYS_move_pages, 0, 1L, list, 8L, status, MOVE), EFAULT);
    FAILS(syscall(SYS_move_pages, 0, 1L, list, NULL, 8L, 0), EFAULT);
    FAILS(syscall(SYS_move_pages, NOBODY, 1L, list, NULL, status, 0), ESRCH);
    for (int to = -1; to < 66; to++) {
        if (to >= 0 && to < 64 && allowed >> to & 1) continue;
        nodes[0] = to;
        FAILS(syscall(SYS_move_pages, 0, 1L, list, nodes, status, MOVE), ENODEV);
    }
    OK(munmap(p, 3 * PAGE));
}

static void migration(void)
{
    unsigned long none = 0, here = allowed, far = 1UL << 50;
    EQUAL(syscall(SYS_migrate_pages, 0, BITS, &here, &here), 0);
    EQUAL(syscall(SYS_migrate_pages, getpid(), BITS, &none, &here), 0);
    EQUAL(syscall(SYS_migrate_pages, 0, BITS, &far, &here), 0);
    FAILS(syscall(SYS_migrate_pages, 0, BITS, &here, &none), EINVAL);
    FAILS(syscall(SYS_migrate_pages, 0, BITS, &here, &far), EINVAL);
    FAILS(syscall(SYS_migrate_pages, 0, BITS, 8L, &here), EFAULT);
    FAILS(syscall(SYS_migrate_pages, 0, BITS, &here, 8L), EFAULT);
    FAILS(syscall(SYS_migrate_pages, 0, 32770L, &here, &here), EINVAL);
    FAILS(syscall(SYS_migrate_pages, NOBODY, BITS, &here, &here), ESRCH);
}

// ---- the machine

static void show(const char *name)
{
    char text[512], path[128];
    snprintf(path, sizeof path, "/sys/devices/system/%s", name);
    int fd = open(path, O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    text[n < 0 ? 0 : n] = 0;
    printf("%s: %s", name, n < 0 ? "none\n" : text);
    if (fd >= 0) close(fd);
}

static void machine(void)
{
    show("node/online");
    show("node/possible");
    show("node/has_cpu");
    show("node/has_memory");
    show("node/has_normal_memory");
    char name[96], target[96];
    for (int node = 0; node < 5; node++) {
        const char *const files[] = {"cpulist", "cpumap", "distance"};
        for (int i = 0; i < 3; i++) {
            snprintf(name, sizeof name, "node/node%d/%s", node, files[i]);
            show(name);
        }
    }
    cpu_set_t all, one;
    OK(sched_getaffinity(0, sizeof all, &all));
    for (int cpu = 0; cpu < 255; cpu++) {
        if (!CPU_ISSET(cpu, &all)) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        OK(sched_setaffinity(0, sizeof one, &one));
        unsigned on = 99, node = 99;
        OK(syscall(SYS_getcpu, &on, &node, NULL));
        EQUAL(on, cpu);
#ifdef __GLIBC__ // the vDSO's
        unsigned by_libc = 99;
        EQUAL(getcpu(&on, &by_libc), 0);
        EQUAL(by_libc, node);
#endif
        snprintf(name, sizeof name, "/sys/devices/system/cpu/cpu%d/node%u", cpu, node);
        ssize_t n = readlink(name, target, sizeof target - 1);
        target[n < 0 ? 0 : n] = 0;
        printf("CPU %d: node %u, %s\n", cpu, node, target);
    }
    OK(sched_setaffinity(0, sizeof all, &all));
}

// ---- where pages come to be

static void touch_and_tell(const char *what, int mode, unsigned long nodes)
{
    char *p = pages_new(64);
    EQUAL(bind_to(p, 64, mode, nodes, 0), 0);
    for (int i = 0; i < 64; i++) p[i * PAGE] = 1;
    tell_mappings(what, p, 64, 1);
    OK(munmap(p, 64 * PAGE));
}

static void placement(void)
{
    char what[64];
    cpu_set_t all, first;
    OK(sched_getaffinity(0, sizeof all, &all));
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    OK(sched_setaffinity(0, sizeof first, &first));
    touch_and_tell("local", LOCAL, 0);
    touch_and_tell("interleaved", INTERLEAVE, allowed);
    touch_and_tell("bound to all", BIND, allowed);
    for (int node = 0; node < 64; node++) {
        if (!(allowed >> node & 1)) continue;
        snprintf(what, sizeof what, "bound to %d", node);
        touch_and_tell(what, BIND, 1UL << node);
        snprintf(what, sizeof what, "preferring %d", node);
        touch_and_tell(what, PREFERRED, 1UL << node);
        // A thread's own policy, and a copy for writing.
        EQUAL(set_policy(BIND, 1UL << node), 0);
        char *p = pages_new(64);
        for (int i = 0; i < 64; i++) p[i * PAGE] = 1;
        snprintf(what, sizeof what, "a thread bound to %d", node);
        tell_mappings(what, p, 64, 1);
        EQUAL(set_policy(DEFAULT, 0), 0);
        fflush(stdout);
        pid_t child = fork();
        OK(child);
        if (child == 0) {
            EQUAL(bind_to(p, 64, BIND, 1, 0), 0);
            for (int i = 0; i < 64; i++) p[i * PAGE] = 2;
            tell_mappings("copies in a child bound to 0", p, 64, 1);
            fflush(stdout);
            _exit(0);
        }
        EQUAL(wait_for(child), 0);
        OK(munmap(p, 64 * PAGE));
    }
    OK(sched_setaffinity(0, sizeof all, &all));
}

// The node of each of `pages` pages from `at` on, one digit each.
static void tell_nodes(const char *what, char *at, int pages)
{
    printf("%s: ", what);
    for (int i = 0; i < pages; i++) {
        void *page = at + i * PAGE;
        int status = 99;
        EQUAL(syscall(SYS_move_pages, 0, 1L, &page, NULL, &status, 0), 0);
        if (status < 0) printf("-");
        else printf("%d", status);
        if (status >= 0) EQUAL(at[i * PAGE], 'a' + i);
    }
    printf("\n");
}

static void moving(void)
{
    enum { PAGES = 16 };
    int first = __builtin_ctzl(allowed), last = 63 - __builtin_clzl(allowed);
    char *p = pages_new(PAGES);
    EQUAL(bind_to(p, PAGES, BIND, 1UL << first, 0), 0);
    for (int i = 1; i < PAGES; i++) p[i * PAGE] = 'a' + i;
    tell_nodes("first", p, PAGES);
    // One by one: what is empty stays so.
    void *list[PAGES];
    int nodes[PAGES], status[PAGES];
    for (int i = 0; i < PAGES; i++) list[i] = p + i * PAGE, nodes[i] = i % 4 ? first : last, status[i] = 99;
    EQUAL(syscall(SYS_move_pages, 0, (long)PAGES, list, nodes, status, MOVE), 0);
    for (int i = 0; i < PAGES; i++) printf("%d ", status[i]);
    tell_nodes("moved", p, PAGES);
    // By a policy, which says how, and for which pages.
    EQUAL(bind_to(p + 4 * PAGE, 8, BIND, 1UL << last, MOVE), 0);
    tell_nodes("bound", p, PAGES);
    EQUAL(bind_to(p, PAGES, BIND, 1UL << last, MOVE | STRICT), 0);
    tell_nodes("all bound", p, PAGES);
    EQUAL(bind_to(p, PAGES, BIND, 1UL << first, 0), 0);
    tell_nodes("only told", p, PAGES);
    if (first != last) FAILS(bind_to(p, PAGES, BIND, 1UL << first, STRICT), EIO);
    // Everything that the process has for itself.
    unsigned long from = 1UL << last, to = 1UL << first;
    CHECK(syscall(SYS_migrate_pages, 0, BITS, &from, &to) >= 0);
    tell_nodes("migrated", p, PAGES);
    // What a child has too doesn't move, but for those that may move everything.
    fflush(stdout);
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        for (int i = 0; i < PAGES; i++) status[i] = 99, nodes[i] = last;
        EQUAL(syscall(SYS_move_pages, 0, (long)PAGES, list, nodes, status, MOVE), 0);
        for (int i = 0; i < PAGES; i++) printf("%d ", status[i]);
        tell_nodes("shared", p, PAGES);
        fflush(stdout);
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    OK(munmap(p, PAGES * PAGE));
}

int main(int argc, char **argv)
{
    const char *word = argc > 1 ? argv[1] : "";
    if (!strcmp(word, "child")) {
        tell_policy("executed", NULL);
        return fflush(stdout) == 0 ? 0 : 1;
    }
    EQUAL(syscall(SYS_get_mempolicy, NULL, &allowed, BITS, NULL, ALLOWED), 0);
    printf("nodes with memory: %#lx\n", allowed);
    RUN(every_mode);
    RUN(masks);
    RUN(questions);
    RUN(inheritance);
    RUN(ranges);
    RUN(homes);
    RUN(strictness);
    RUN(where);
    RUN(migration);
    if (!strcmp(word, "machine")) RUN(machine);
    if (!strcmp(word, "place")) {
        RUN(placement);
        RUN(moving);
    }
    return finished("calls_numa");
}
