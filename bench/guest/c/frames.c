// Choosing the algorithm that hands out page frames, by Quire's prctl and by /proc/self/frames (docs/frames-control.md); and
// choosing all the time while threads touch and give back memory. Elsewhere the call fails with EINVAL, which is told, and
// nothing else is done.
//
//   frames MIB           memory that the threads have at a time
//   frames account       only that every frame is accounted for while nothing runs beside this
//   frames short         with two CPUs: no memory for an algorithm
//   frames chosen NAME   whether that algorithm is this process's choice
//
// The algorithms must not have been used before in `short`, as their memory is kept.
//
// calls: prctl
#include "check.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/prctl.h>

enum { QUIRE_FRAMES = 0x51465230, GET_PROCESS = 1, SET_PROCESS, GET_CPU, SET_CPU, STATS };
enum { DEFAULT, ROW, AVL, BUDDY, SLAB, BEYOND };
static const char *const NAMES[] = {"default", "row", "avl", "buddy", "slab"};
enum { WORKERS = 5, PIECE = 64 };

struct process { uint32_t algo, reserved; };
struct cpu { uint32_t cpu, algo; uint64_t low, high; uint32_t from, blocks; uint64_t cached, ns; };
struct numbers { uint32_t cpu, algo, preset, reserved; uint64_t counts[16]; };

static long control(int op, void *what, size_t size) { return prctl(QUIRE_FRAMES, op, what, size); }

static unsigned chosen(void)
{
    struct process p = {99, 99};
    OK(control(GET_PROCESS, &p, sizeof p));
    EQUAL(p.reserved, 0);
    return p.algo;
}

static void choose(unsigned algo)
{
    struct process p = {algo, 0};
    OK(control(SET_PROCESS, &p, sizeof p));
}

static struct cpu cpu_now(unsigned cpu)
{
    struct cpu c = {.cpu = cpu};
    OK(control(GET_CPU, &c, sizeof c));
    EQUAL(c.cpu, cpu);
    return c;
}

static struct cpu set_cpu(unsigned cpu, unsigned algo)
{
    struct cpu c = {.cpu = cpu, .algo = algo};
    OK(control(SET_CPU, &c, sizeof c));
    EQUAL(c.algo, algo);
    return c;
}

static unsigned in_force(unsigned cpu)
{
    struct numbers n = {.cpu = cpu};
    OK(control(STATS, &n, sizeof n));
    return n.algo;
}

// ---- where every frame is ------------------------------------------------------------------------------------------

struct account { unsigned long total, free, cached, owned; };

static void read_file(const char *path, char *text, size_t room)
{
    int fd = open(path, O_RDONLY);
    OK(fd);
    size_t n = 0;
    ssize_t got;
    while ((got = read(fd, text + n, room - 1 - n)) > 0) n += got;
    EQUAL(got, 0);
    text[n] = 0;
    close(fd);
}

static struct account account_now(void)
{
    static char text[1 << 16];
    struct account a;
    read_file("/proc/frames", text, sizeof text);
    EQUAL(sscanf(text, "total %lu free %lu cached %lu owned %lu", &a.total, &a.free, &a.cached, &a.owned), 4);
    return a;
}

static unsigned long pages_named(const char *path, const char *name)
{
    static char text[1 << 14];
    unsigned long n;
    read_file(path, text, sizeof text);
    char *at = strstr(text, name);
    CHECK(at != NULL);
    EQUAL(sscanf(at + strlen(name), "%lu", &n), 1);
    return n;
}

// Nothing runs beside this but CPUs that clear frames ahead of need, which ends soon: then the three counts, which know
// nothing of each other, add up ten times in a row.
static struct account account(void)
{
    struct account a = {0};
    int settled = 0;
    for (int tries = 0; settled < 10; tries++) {
        a = account_now();
        settled = a.free + a.cached + a.owned == a.total ? settled + 1 : 0;
        if (tries >= 1000) EQUAL(a.free + a.cached + a.owned, a.total);
        if (!settled) sleep_ms(5);
    }
    return a;
}

static void counts_add_up(void)
{
    struct account a = account();
    CHECK(a.total > 0 && a.owned > 0 && a.free > 0);
    EQUAL(pages_named("/proc/meminfo", "MemTotal:"), a.total * 4);
    // What reading takes and gives back may lie between the two.
    long apart = (long)pages_named("/proc/meminfo", "MemFree:") / 4 - (long)(a.free + a.cached);
    CHECK(apart > -64 && apart < 64);
    EQUAL(pages_named("/proc/quire/frames", "total "), a.total);
    // What is touched is owned, and is free again afterwards.
    char *p = pages_new(256);
    memset(p, 1, 256 * PAGE);
    long more = (long)account().owned - (long)a.owned;
    CHECK(more >= 256 && more < 256 + 64);
    OK(munmap(p, 256 * PAGE));
    long left = (long)account().owned - (long)a.owned;
    CHECK(left > -64 && left < 64);
}

// ---- what is refused, and what is kept -------------------------------------------------------------------------------

static void refusals(void)
{
    union { struct process p; struct cpu c; struct numbers n; char bytes[512]; } u = {0};
    void *nowhere = (void *)8;
    for (int op = GET_PROCESS; op <= STATS; op++) {
        size_t right = op <= SET_PROCESS ? sizeof u.p : op <= SET_CPU ? sizeof u.c : sizeof u.n;
        for (size_t size = 0; size < sizeof u; size += 4)
            if (size != right) FAILS(control(op, &u, size), EINVAL);
        FAILS(control(op, nowhere, right), EFAULT);
    }
    FAILS(control(0, &u, sizeof u.p), EINVAL);
    FAILS(control(STATS + 1, &u, sizeof u.n), EINVAL);
    u.p = (struct process){BEYOND, 0};
    FAILS(control(SET_PROCESS, &u, sizeof u.p), EINVAL);
    u.p = (struct process){AVL, 1};
    FAILS(control(SET_PROCESS, &u, sizeof u.p), EINVAL);
    EQUAL(chosen(), DEFAULT);
    u.c = (struct cpu){.cpu = 0, .algo = BEYOND};
    FAILS(control(SET_CPU, &u, sizeof u.c), EINVAL);
    for (unsigned cpu = 255; cpu >= 255; cpu *= 16) {
        u.c = (struct cpu){.cpu = cpu};
        FAILS(control(GET_CPU, &u, sizeof u.c), EINVAL);
        u.c = (struct cpu){.cpu = cpu, .algo = ROW};
        FAILS(control(SET_CPU, &u, sizeof u.c), EINVAL);
        u.n = (struct numbers){.cpu = cpu};
        FAILS(control(STATS, &u, sizeof u.n), EINVAL);
    }
    // The answer can't be written, so nothing is done.
    struct cpu *fixed = (struct cpu *)pages_new(1);
    unsigned before = cpu_now(0).algo;
    *fixed = (struct cpu){.cpu = 0, .algo = before == AVL ? BUDDY : AVL};
    OK(mprotect(fixed, PAGE, PROT_READ));
    FAILS(control(SET_CPU, fixed, sizeof *fixed), EFAULT);
    EQUAL(cpu_now(0).algo, before);
    OK(munmap(fixed, PAGE));
}

static void privilege(void)
{
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        // Version 3 of the sets: effective, permitted and inheritable, the low halves first. All but CAP_SYS_NICE.
        uint32_t header[2] = {0x20080522, 0}, sets[6];
        OK(syscall(SYS_capget, header, sets));
        sets[0] &= ~(1u << 23);
        OK(syscall(SYS_capset, header, sets));
        struct cpu c = {.cpu = 0, .algo = ROW};
        FAILS(control(SET_CPU, &c, sizeof c), EPERM);
        OK(control(GET_CPU, &c, sizeof c));
        choose(AVL);
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
}

static void inheritance(void)
{
    choose(BUDDY);
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        EQUAL(chosen(), BUDDY);
        execl("/proc/self/exe", "frames", "chosen", "buddy", (char *)NULL);
        _exit(1);
    }
    EQUAL(wait_for(child), 0);
    child = fork();
    OK(child);
    if (child == 0) {
        choose(SLAB);
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    EQUAL(chosen(), BUDDY);
    choose(DEFAULT);
}

static void own_cpus(void)
{
    cpu_set_t all, one;
    OK(sched_getaffinity(0, sizeof all, &all));
    int last = CPU_COUNT(&all) - 1;
    for (unsigned algo = SLAB; algo >= ROW; algo--) {
        set_cpu(last, algo);
        EQUAL(cpu_now(last).algo, algo);
    }
    // A choice of the process's is in force where it runs, and the CPU's default where it doesn't.
    CPU_ZERO(&one);
    CPU_SET(last, &one);
    OK(sched_setaffinity(0, sizeof one, &one));
    for (unsigned algo = ROW; algo < BEYOND; algo++) {
        choose(algo);
        EQUAL(in_force(last), algo);
        EQUAL(cpu_now(last).algo, ROW);
    }
    set_cpu(last, BUDDY);
    EQUAL(in_force(last), SLAB);
    choose(DEFAULT);
    EQUAL(in_force(last), BUDDY);
    EQUAL(set_cpu(last, ROW).from, BUDDY);
    if (last > 0) {
        struct cpu c = {.cpu = 0, .algo = AVL};
        FAILS(control(SET_CPU, &c, sizeof c), EINVAL);
        FAILS(control(GET_CPU, &c, sizeof c), EINVAL);
    }
    OK(sched_setaffinity(0, sizeof all, &all));
    // Bounds are clamped, and may be all that is set.
    struct cpu c = {.cpu = last, .low = 64, .high = 64};
    OK(control(SET_CPU, &c, sizeof c));
    CHECK(c.low <= 64 && c.high >= c.low + 512);
    EQUAL(c.algo, ROW);
}

static long say(const char *text)
{
    int fd = open("/proc/self/frames", O_WRONLY);
    OK(fd);
    long n = write(fd, text, strlen(text));
    int error = errno;
    close(fd);
    errno = error;
    return n;
}

static void expect(const char *wanted)
{
    char text[256];
    read_file("/proc/self/frames", text, sizeof text);
    if (strcmp(text, wanted)) fprintf(stderr, "got %swanted %s", text, wanted);
    CHECK(strcmp(text, wanted) == 0);
}

static void by_file(void)
{
    expect("algo default\nplace default\n");
    OK(say("algo avl\n"));
    expect("algo avl\nplace default\n");
    EQUAL(chosen(), AVL);
    OK(say("place default\nalgo slab"));
    EQUAL(chosen(), SLAB);
    const char *const wrong[] = {"algo lifo\n", "algo\n", "algo avl\nalgo row\n", "algo avl\nplace bind:0\n", "zero pool\n",
                                 "algo avl\nfrob 1\n", "algo avl\n\n", "\xff"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) FAILS(say(wrong[i]), EINVAL);
    expect("algo slab\nplace default\n");
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        // Another process may look, and no more.
        char path[64], text[64] = {0};
        snprintf(path, sizeof path, "/proc/%d/frames", getppid());
        int fd = open(path, O_RDWR);
        OK(fd);
        FAILS(write(fd, "algo row\n", 9), EPERM);
        OK(read(fd, text, sizeof text - 1));
        CHECK(strcmp(text, "algo slab\nplace default\n") == 0);
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    OK(say("algo default\n"));
    EQUAL(chosen(), DEFAULT);
}

// ---- without memory ----------------------------------------------------------------------------------------------------

static void run_on(int cpu)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    OK(sched_setaffinity(0, sizeof one, &one));
}

static void short_of_memory(void)
{
    // Open on CPU 0 only.
    run_on(0);
    choose(AVL);
    EQUAL(in_force(0), AVL);
    // What the program will touch is there before: code, data, and some stack.
    volatile char deep[64 << 10];
    for (size_t i = 0; i < sizeof deep; i += PAGE) deep[i] = 1;
    OK(mlockall(MCL_CURRENT));
    // All that there is, by a call that is refused rather than by faults that end the process.
    int file = memfd_create("all", 0);
    OK(file);
    off_t n = 0, before;
    do {
        before = n;
        for (off_t chunk = 1 << 20; chunk >= (off_t)PAGE; chunk /= 2)
            while (fallocate(file, 0, n, chunk) == 0) n += chunk;
        EQUAL(errno, ENOSPC);
        // CPUs that have nothing to do give back what they kept.
        sleep_ms(30);
    } while (n > before);
    CHECK(n > 16 << 20);
    struct process other = {BUDDY, 0};
    FAILS(control(SET_PROCESS, &other, sizeof other), ENOMEM);
    EQUAL(chosen(), AVL);
    EQUAL(in_force(0), AVL);
    struct cpu c = {.cpu = 0, .algo = SLAB};
    FAILS(control(SET_CPU, &c, sizeof c), ENOMEM);
    EQUAL(cpu_now(0).algo, ROW);
    FAILS(say("algo buddy\n"), ENOMEM);
    expect("algo avl\nplace default\n");
    // Elsewhere the default serves, and the choice stays.
    run_on(1);
    EQUAL(in_force(1), ROW);
    EQUAL(chosen(), AVL);
    OK(ftruncate(file, 0));
    EQUAL(in_force(1), ROW);
    // Said again, it is done again.
    choose(AVL);
    choose(DEFAULT);
    choose(AVL);
    EQUAL(in_force(1), AVL);
    choose(DEFAULT);
    close(file);
}

// ---- switching with live frames -------------------------------------------------------------------------------------

static size_t pages_each;
static atomic_int stop;
static atomic_ulong rounds;

static uint64_t stamp(char *at, uint64_t salt) { return ((uint64_t)(uintptr_t)at ^ salt) * 0x9e3779b97f4a7c15u; }

static void fill(char *p, size_t pages, uint64_t salt)
{
    for (size_t i = 0; i < pages; i++) {
        uint64_t *words = (uint64_t *)(p + i * PAGE);
        // Fresh memory is zero, whoever had the frame before.
        for (size_t w = 0; w < PAGE / 8; w += 64) EQUAL(words[w], 0);
        words[0] = words[PAGE / 8 - 1] = stamp(p + i * PAGE, salt);
    }
}

static void verify(char *p, size_t pages, uint64_t salt)
{
    for (size_t i = 0; i < pages; i++) {
        uint64_t *words = (uint64_t *)(p + i * PAGE);
        EQUAL(words[0], stamp(p + i * PAGE, salt));
        EQUAL(words[PAGE / 8 - 1], stamp(p + i * PAGE, salt));
    }
}

// Has `pages_each` pages, in pieces; gives back every so-manieth piece and takes it anew, until it is told to stop.
static void *work(void *number)
{
    size_t pieces = pages_each / PIECE, me = (size_t)(uintptr_t)number;
    char **at = calloc(pieces, sizeof *at);
    CHECK(at != NULL);
    for (size_t i = 0; i < pieces; i++) fill(at[i] = pages_new(PIECE), PIECE, i);
    atomic_fetch_add(&rounds, 1);
    for (size_t i = me; !stop; i = (i + 7) % pieces) {
        verify(at[i], PIECE, i);
        OK(munmap(at[i], PIECE * PAGE));
        fill(at[i] = pages_new(PIECE), PIECE, i);
    }
    for (size_t i = 0; i < pieces; i++) {
        verify(at[i], PIECE, i);
        OK(munmap(at[i], PIECE * PAGE));
    }
    free(at);
    return NULL;
}

static uint64_t switches, evacuated, longest;

static void note(struct cpu c)
{
    switches++;
    evacuated += c.blocks;
    if (c.ns > longest) longest = c.ns;
}

// Another thread that switches CPU 0 too, so that the two meet now and then.
static void *rival(void *unused)
{
    (void)unused;
    while (!stop) {
        struct cpu c = {.cpu = 0, .algo = ROW};
        if (control(SET_CPU, &c, sizeof c) == -1) EQUAL(errno, EBUSY);
        sleep_ms(3);
    }
    return NULL;
}

static void change(int cpus)
{
    for (unsigned from = ROW; from < BEYOND; from++) {
        for (unsigned to = ROW; to < BEYOND; to++) {
            if (from == to) continue;
            for (int cpu = 0; cpu < cpus; cpu++) {
                struct cpu c = {.cpu = cpu, .algo = from};
                if (control(SET_CPU, &c, sizeof c) == -1) EQUAL(errno, EBUSY);
                c = (struct cpu){.cpu = cpu, .algo = to};
                if (control(SET_CPU, &c, sizeof c) == -1) EQUAL(errno, EBUSY);
                else note(c);
                if (cpu > 0) EQUAL(c.from, from);
            }
            choose(from);
            sleep_ms(2);
            choose(to);
            sleep_ms(2);
            choose(DEFAULT);
        }
    }
}

static void switching(int cpus)
{
    pthread_t threads[WORKERS + 1];
    stop = 0;
    rounds = 0;
    for (size_t i = 0; i < WORKERS; i++) RETURNS(pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)i), 0);
    RETURNS(pthread_create(&threads[WORKERS], NULL, rival, NULL), 0);
    // At least once while memory grows, and once when all of it is there.
    change(cpus);
    while (rounds < WORKERS) sleep_ms(1);
    change(cpus);
    stop = 1;
    for (size_t i = 0; i <= WORKERS; i++) RETURNS(pthread_join(threads[i], NULL), 0);
    for (int cpu = 0; cpu < cpus; cpu++) set_cpu(cpu, ROW);
}

int main(int argc, char **argv)
{
    struct process p;
    if (control(GET_PROCESS, &p, sizeof p) == -1) {
        EQUAL(errno, EINVAL);
        printf("frames: no algorithms to choose from here\n");
        return 0;
    }
    if (argc == 3 && strcmp(argv[1], "chosen") == 0) {
        CHECK(strcmp(NAMES[chosen()], argv[2]) == 0);
        return 0;
    }
    if (argc == 2 && strcmp(argv[1], "short") == 0) {
        RUN(short_of_memory);
        return finished("frames");
    }
    RUN(counts_add_up);
    if (argc == 2 && strcmp(argv[1], "account") == 0) return finished("frames");
    cpu_set_t all;
    OK(sched_getaffinity(0, sizeof all, &all));
    pages_each = (argc > 1 ? strtoul(argv[1], NULL, 10) : 100) * 256 / WORKERS;
    RUN(refusals);
    RUN(privilege);
    RUN(inheritance);
    RUN(own_cpus);
    RUN(by_file);
    // The first time the kernel also comes by what it keeps: stacks, tables, the algorithms' own memory.
    switching(CPU_COUNT(&all));
    struct account before = account();
    unsigned long anonymous = pages_named("/proc/quire/frames", "Anonymous ");
    switching(CPU_COUNT(&all));
    struct account after = account();
    EQUAL(after.total, before.total);
    // The C library may keep a few pages of threads that have ended. That not one is lost shows at the program's end.
    long kept = (long)pages_named("/proc/quire/frames", "Anonymous ") - (long)anonymous;
    CHECK(kept > -32 && kept < 32);
    long more = (long)after.owned - (long)before.owned;
    CHECK(more > -256 && more < 256);
    passed("switching");
    printf("%lu switches, %lu blocks evacuated, at most %lu us\n", (unsigned long)switches, (unsigned long)evacuated,
           (unsigned long)(longest / 1000));
    return finished("frames");
}
