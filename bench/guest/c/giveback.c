// What nobody uses any more is memory again before the next one needs it: again and again nearly all there is.
//
//   giveback MIB ROUNDS     MIB: more than half of the memory that is free, less than all
//
// Each way takes so much, lets go of it in the one way that leaves it to the kernel alone, and begins again. A kernel that
// collects later what was let go of has to do so before it refuses a call or kills somebody.
#include "check.h"

#include <pthread.h>
#include <sched.h>

static size_t size;

static int filled(void)
{
    static char bytes[65536];
    memset(bytes, 7, sizeof bytes);
    int fd = memfd_create("filled", 0);
    CHECK(fd != -1);
    for (size_t n = 0; n < size; n += sizeof bytes) EQUAL(write(fd, bytes, sizeof bytes), sizeof bytes);
    return fd;
}

static char *mapped(int fd)
{
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(p != MAP_FAILED);
    close(fd);
    for (size_t i = 0; i < size; i += 64 * PAGE) EQUAL(p[i], 7);
    return p;
}

// The mapping is the last that knows of the file.
static void unmap_file(void)
{
    OK(munmap(mapped(filled()), size));
}

// Part by part, and another mapping over what is left.
static void unmap_parts(void)
{
    char *p = mapped(filled());
    for (size_t i = 0; i < size / 2; i += 1 << 20) OK(munmap(p + i, 1 << 20));
    CHECK(mmap(p + size / 2, size - size / 2, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
    OK(munmap(p + size / 2, size - size / 2));
}

// A process that ends has the only mapping.
static void end_with_file(void)
{
    pid_t p = fork();
    CHECK(p != -1);
    if (p == 0) {
        mapped(filled());
        _exit(0);
    }
    EQUAL(wait_for(p), 0);
}

// Shared memory without a name, of which a child has had a part as well.
static void unmap_shared(void)
{
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    pid_t child = fork();
    CHECK(child != -1);
    for (size_t i = child ? 0 : PAGE; i < size; i += 2 * PAGE) p[i] = 1;
    if (child == 0) _exit(0);
    EQUAL(wait_for(child), 0);
    OK(munmap(p, size));
}

static void *touch(void *p)
{
    for (size_t i = 0; i < size / 2; i += PAGE) ((char *)p)[i] = 1;
    return p;
}

// Private memory that two threads have filled, wherever they ran.
static void unmap_private(void)
{
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    pthread_t t;
    EQUAL(pthread_create(&t, NULL, touch, p + size / 2), 0);
    touch(p);
    EQUAL(pthread_join(t, NULL), 0);
    OK(munmap(p, size));
}

// A page at a time, each where there was none before: tables, and the kernel's records of them.
static void map_elsewhere(void)
{
    static uint64_t at = 1ul << 40;
    for (int i = 0; i < 4000; i++, at += 2 << 20) {
        char *p = mmap((void *)at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        CHECK(p != MAP_FAILED);
        *p = 1;
        OK(munmap(p, PAGE));
    }
}

static char *sparse;
static size_t sparse_pages;

static void *touch_sparsely(void *cpu)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET((size_t)cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
    for (size_t i = 0; i < sparse_pages; i++) sparse[i << 21]++;
    return NULL;
}

// A page in each 2 MiB, used on four CPUs one after the other, if there are four: tables of each CPU's own are as many again.
static void use_sparsely(void)
{
    sparse_pages = size / PAGE * 3 / 8;
    sparse = mmap(NULL, sparse_pages << 21, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(sparse != MAP_FAILED);
    for (size_t cpu = 0; cpu < 4; cpu++) {
        pthread_t t;
        EQUAL(pthread_create(&t, NULL, touch_sparsely, (void *)cpu), 0);
        EQUAL(pthread_join(t, NULL), 0);
    }
    for (size_t i = 0; i < sparse_pages; i++) EQUAL(sparse[i << 21], 4);
    OK(munmap(sparse, sparse_pages << 21));
}

static const struct {
    const char *name;
    void (*run)(void);
} ways[] = {{"unmap_file", unmap_file},       {"unmap_parts", unmap_parts},     {"end_with_file", end_with_file},
            {"unmap_shared", unmap_shared},   {"unmap_private", unmap_private}, {"map_elsewhere", map_elsewhere},
            {"use_sparsely", use_sparsely}};

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    size = (size_t)atoi(argv[1]) << 20;
    int rounds = atoi(argv[2]);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        for (int r = 0; r < rounds; r++) ways[i].run();
        passed(ways[i].name);
    }
    return finished("giveback");
}
