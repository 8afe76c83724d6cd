// calls_locking: mlock and its kin, membarrier, and the calls about nodes of memory and protection keys.
//
// Proves: locked memory is counted exactly (VmLck), is there at once or as it is used, is not inherited, and is limited
// unless CAP_IPC_LOCK says otherwise; barriers are registered before they are used; policies are checked, kept with
// mappings and threads, and told again; where there are no protection keys, the calls say so.
//
// calls: mmap munmap mremap brk mincore mlock mlock2 munlock mlockall munlockall membarrier mbind set_mempolicy
// calls: get_mempolicy move_pages pkey_mprotect pkey_alloc pkey_free
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>

#define BASE ((char *)0x320000000000UL)
#define AT(page) (BASE + (long)(page) * (long)PAGE)
#define RW (PROT_READ | PROT_WRITE)
#define OWN (MAP_PRIVATE | MAP_ANONYMOUS)
#define ONFAULT 1

static void map_at(long page, long pages, int prot, int flags)
{
    CHECK(mmap(AT(page), pages * PAGE, prot, flags | MAP_FIXED, -1, 0) == AT(page));
}

static void everything(void)
{
    OK(munmap(AT(0), 256 * PAGE));
}

// The pages that /proc/self/status says are locked.
static long locked(void)
{
    static char text[1 << 13];
    int fd = open("/proc/self/status", O_RDONLY);
    OK(fd);
    ssize_t n = read(fd, text, sizeof text - 1);
    CHECK(n > 0);
    text[n] = 0;
    OK(close(fd));
    char *line = strstr(text, "\nVmLck:");
    CHECK(line != NULL);
    return strtol(line + 7, NULL, 10) * 1024 / (long)PAGE;
}

// How many pages of so many are there.
static int there(long page, long pages)
{
    unsigned char vector[256];
    int sum = 0;
    OK(mincore(AT(page), pages * PAGE, vector));
    for (long i = 0; i < pages; i++) sum += vector[i] & 1;
    return sum;
}

// Without the right to lock as much as it likes; in a child, as there is no way back.
static void drop_ipc_lock(void)
{
    uint32_t header[2] = {0x20080522, 0}, sets[6];
    OK(syscall(SYS_capget, header, sets));
    sets[0] &= ~(1u << 14);
    OK(syscall(SYS_capset, header, sets));
}

static void limit_to(rlim_t pages)
{
    struct rlimit limit;
    OK(getrlimit(RLIMIT_MEMLOCK, &limit));
    limit.rlim_cur = pages * PAGE;
    OK(setrlimit(RLIMIT_MEMLOCK, &limit));
}

static void counting(void)
{
    EQUAL(locked(), 0);
    map_at(0, 8, RW, OWN);
    OK(mlock(AT(1), 2 * PAGE));
    EQUAL(locked(), 2);
    EQUAL(there(0, 8), 2);
    OK(mlock(AT(2) + 5, PAGE)); // touches two
    EQUAL(locked(), 3);
    OK(mlock(AT(0), 8 * PAGE)); // once is enough
    EQUAL(locked(), 8);
    OK(munlock(AT(3), PAGE));
    EQUAL(locked(), 7);
    OK(munmap(AT(4), PAGE));
    EQUAL(locked(), 6);
    CHECK(mremap(AT(5), 3 * PAGE, 5 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(20)) == AT(20));
    EQUAL(locked(), 8);
    EQUAL(there(20, 5), 5);
    map_at(20, 5, RW, OWN); // what is replaced is not locked any more
    EQUAL(locked(), 3);
    OK(syscall(SYS_mlock2, AT(20), 5 * PAGE, ONFAULT));
    EQUAL(locked(), 8);
    EQUAL(there(20, 5), 0);
    AT(22)[0] = 1;
    EQUAL(there(20, 5), 1);
    OK(syscall(SYS_mlock2, AT(20), PAGE, 0));
    EQUAL(there(20, 5), 2);
    map_at(30, 4, RW, OWN | MAP_LOCKED);
    EQUAL(locked(), 12);
    EQUAL(there(30, 4), 4);
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        EQUAL(locked(), 0);
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    EQUAL(locked(), 12);
    OK(munlockall());
    EQUAL(locked(), 0);
    everything();
}

static void refusals(void)
{
    map_at(0, 2, RW, OWN);
    map_at(3, 1, RW, OWN);
    FAILS(mlock(AT(0), 4 * PAGE), ENOMEM); // up to the hole it is done
    EQUAL(locked(), 2);
    FAILS(munlock(AT(1), 2 * PAGE), ENOMEM);
    EQUAL(locked(), 1);
    FAILS(mlock(AT(10), PAGE), ENOMEM);
    OK(mlock(AT(10), 0));
    FAILS(syscall(SYS_mlock2, AT(0), PAGE, 2), EINVAL);
    FAILS(munlock((void *)-PAGE, 2 * PAGE), EINVAL);
    FAILS(mlockall(0), EINVAL);
    FAILS(mlockall(8), EINVAL);
    FAILS(mlockall(4 /* ONFAULT alone */), EINVAL);
    OK(munlockall());
    map_at(4, 1, PROT_NONE, OWN); // what can't be used is locked, but that is an error
    FAILS(mlock(AT(4), PAGE), ENOMEM);
    EQUAL(locked(), 1);
    OK(munlockall());
    everything();
}

static void future(void)
{
    OK(mlockall(MCL_FUTURE));
    EQUAL(locked(), 0);
    map_at(0, 4, RW, OWN);
    EQUAL(locked(), 4);
    EQUAL(there(0, 4), 4);
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        map_at(10, 2, RW, OWN); // not inherited
        EQUAL(locked(), 0);
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    OK(mlockall(MCL_FUTURE | 4 /* ONFAULT */));
    map_at(8, 4, RW, OWN);
    EQUAL(locked(), 8);
    EQUAL(there(8, 4), 0);
    OK(munlockall());
    EQUAL(locked(), 0);
    map_at(20, 4, RW, OWN);
    EQUAL(locked(), 0);
    OK(mlockall(MCL_CURRENT));
    CHECK(locked() >= 12);
    EQUAL(there(20, 4), 4);
    map_at(30, 4, RW, OWN);
    EQUAL(there(30, 4), 0);
    OK(munlockall());
    everything();
}

static void limits_of_a_child(void)
{
    map_at(0, 16, RW, OWN);
    limit_to(4);
    OK(mlock(AT(0), 16 * PAGE)); // CAP_IPC_LOCK
    OK(munlockall());
    limit_to(0);
    OK(mlock(AT(0), PAGE));
    OK(munlockall());
    drop_ipc_lock();
    FAILS(mlock(AT(0), PAGE), EPERM);
    FAILS(mlockall(MCL_FUTURE), EPERM);
    FAILS((intptr_t)mmap(AT(40), PAGE, RW, OWN | MAP_LOCKED, -1, 0), EPERM);
    limit_to(4);
    FAILS(mlock(AT(0), 5 * PAGE), ENOMEM);
    EQUAL(locked(), 0);
    OK(mlock(AT(0), 3 * PAGE));
    OK(mlock(AT(1), 3 * PAGE)); // two of them are counted already
    EQUAL(locked(), 4);
    FAILS(mlock(AT(8), PAGE), ENOMEM);
    FAILS((intptr_t)mmap(NULL, PAGE, RW, OWN | MAP_LOCKED, -1, 0), EAGAIN);
    FAILS((intptr_t)mremap(AT(0), 4 * PAGE, 5 * PAGE, MREMAP_MAYMOVE), EAGAIN);
    CHECK(mremap(AT(0), 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(20)) == AT(20));
    EQUAL(locked(), 4);
    FAILS(mlockall(MCL_CURRENT), ENOMEM);
    OK(munlock(AT(20), 2 * PAGE));
    OK(mlock(AT(8), 2 * PAGE));
    OK(mlockall(MCL_FUTURE));
    FAILS((intptr_t)mmap(NULL, PAGE, RW, OWN, -1, 0), EAGAIN);
    void *end = (void *)syscall(SYS_brk, 0L);
    CHECK((void *)syscall(SYS_brk, (char *)end + 4 * PAGE) == end);
    OK(munlockall());
}

static void limits(void)
{
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        limits_of_a_child();
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
}

static void droppable(void)
{
    enum { DROPPABLE = 8 }; // MAP_DROPPABLE, which is a kind of its own beside shared and private
    map_at(0, 4, RW, DROPPABLE | MAP_ANONYMOUS);
    OK(mlock(AT(0), 4 * PAGE)); // may be asked for, and does nothing
    EQUAL(locked(), 0);
    OK(syscall(SYS_mlock2, AT(0), 4 * PAGE, ONFAULT));
    EQUAL(locked(), 0);
    FAILS((intptr_t)mmap(AT(10), PAGE, RW, DROPPABLE | MAP_ANONYMOUS | MAP_LOCKED | MAP_FIXED, -1, 0), EINVAL);
    OK(mlockall(MCL_CURRENT));
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        EQUAL(locked(), 0);
        EQUAL(there(0, 4), 0); // wiped
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    OK(munlockall());
    OK(mlockall(MCL_FUTURE));
    map_at(10, 4, RW, DROPPABLE | MAP_ANONYMOUS);
    map_at(20, 2, RW, OWN);
    EQUAL(there(10, 4), 4); // brought in
    long both = locked();
    CHECK(both == 2 || both == 6); // Linux 6.11 locks it then, 6.18 does not
    child = fork();
    OK(child);
    if (child == 0) { // nothing of it is locked, nor will be
        EQUAL(locked(), 0);
        AT(10)[0] = 1;
        map_at(30, 4, RW, DROPPABLE | MAP_ANONYMOUS);
        EQUAL(locked(), 0);
        OK(mlock(AT(10), 4 * PAGE));
        EQUAL(locked(), 0);
        OK(mlock(AT(20), 2 * PAGE));
        EQUAL(locked(), 2);
        OK(mlockall(MCL_FUTURE));
        map_at(40, 4, RW, DROPPABLE | MAP_ANONYMOUS);
        EQUAL(locked(), both);
        pid_t grandchild = fork();
        OK(grandchild);
        if (grandchild == 0) {
            EQUAL(locked(), 0);
            _exit(0);
        }
        EQUAL(wait_for(grandchild), 0);
        EQUAL(locked(), both);
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    EQUAL(locked(), both);
    OK(munlockall());
    everything();
    EQUAL(locked(), 0);
}

// ---- membarrier

static int membarrier(int command, unsigned flags, int cpu)
{
    return (int)syscall(SYS_membarrier, command, flags, cpu);
}

static _Atomic int ready, stop;
static int x, y; // written by one thread each; only barriers order them

static void *other_side(void *unused)
{
    (void)unused;
    for (int i = 1; !stop; i++) {
        __atomic_store_n(&y, i, __ATOMIC_RELAXED);
        __asm__ volatile("" ::: "memory"); // the compiler's order; the processor's is the barrier's business
        ready = __atomic_load_n(&x, __ATOMIC_RELAXED);
        sched_yield();
    }
    return NULL;
}

static void barriers(void)
{
    enum { GLOBAL = 1, GLOBAL_EXPEDITED = 2, REGISTER_GLOBAL = 4, PRIVATE = 8, REGISTER_PRIVATE = 16, CORE = 32, REGISTER_CORE = 64, RSEQ = 128, REGISTER_RSEQ = 256, GET = 512 };
    EQUAL(membarrier(0, 0, 0), 1023);
    pid_t child = fork(); // registrations last, and a child begins with its parent's
    OK(child);
    if (child == 0) {
        EQUAL(membarrier(GET, 0, 0), 0);
        FAILS(membarrier(PRIVATE, 0, 0), EPERM);
        FAILS(membarrier(CORE, 0, 0), EPERM);
        FAILS(membarrier(RSEQ, 0, 0), EPERM);
        OK(membarrier(GLOBAL, 0, 0));
        OK(membarrier(GLOBAL_EXPEDITED, 0, 0));
        OK(membarrier(REGISTER_RSEQ, 0, 0));
        EQUAL(membarrier(GET, 0, 0), REGISTER_RSEQ | REGISTER_PRIVATE); // but it is not ready
        OK(membarrier(RSEQ, 0, 0));
        OK(membarrier(RSEQ, 1, 0));
        FAILS(membarrier(RSEQ, 2, 0), EINVAL);
        FAILS(membarrier(PRIVATE, 0, 0), EPERM);
        OK(membarrier(REGISTER_PRIVATE, 0, 0));
        OK(membarrier(REGISTER_PRIVATE, 0, 0));
        OK(membarrier(PRIVATE, 0, 0));
        FAILS(membarrier(PRIVATE, 1, 0), EINVAL);
        OK(membarrier(REGISTER_CORE, 0, 0));
        OK(membarrier(CORE, 0, 0));
        OK(membarrier(REGISTER_GLOBAL, 0, 0));
        EQUAL(membarrier(GET, 0, 0), REGISTER_RSEQ | REGISTER_PRIVATE | REGISTER_CORE | REGISTER_GLOBAL);
        OK(child = fork());
        if (child == 0) {
            EQUAL(membarrier(GET, 0, 0), REGISTER_RSEQ | REGISTER_PRIVATE | REGISTER_CORE | REGISTER_GLOBAL);
            _exit(0);
        }
        EQUAL(wait_for(child), 0);
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    FAILS(membarrier(0, 1, 0), EINVAL);
    FAILS(membarrier(3, 0, 0), EINVAL);
    FAILS(membarrier(1024, 0, 0), EINVAL);
    FAILS(membarrier(-1, 0, 0), EINVAL);
    // Store, barrier, load here; store, load there: not both may miss the other's store.
    OK(membarrier(REGISTER_PRIVATE, 0, 0));
    pthread_t thread;
    RETURNS(pthread_create(&thread, NULL, other_side, NULL), 0);
    for (int i = 1; i <= 40; i++) {
        __atomic_store_n(&x, i, __ATOMIC_RELAXED);
        OK(membarrier(PRIVATE, 0, 0));
        int seen = __atomic_load_n(&y, __ATOMIC_RELAXED);
        // The other thread's loads from its store after `seen` on come after the barrier, so they see x.
        while (__atomic_load_n(&y, __ATOMIC_RELAXED) <= seen + 1) sched_yield();
        CHECK(ready == i);
    }
    stop = 1;
    RETURNS(pthread_join(thread, NULL), 0);
}

// ---- nodes

enum { DEFAULT, PREFERRED, BIND, INTERLEAVE, LOCAL, PREFERRED_MANY };

static void policies(void)
{
    unsigned long none = 0, first = 1, second = 2, both = 3, told[2];
    int mode;
    map_at(0, 8, RW, OWN);
    EQUAL(syscall(SYS_get_mempolicy, &mode, told, 64L, NULL, 0L), 0);
    EQUAL(mode, DEFAULT);
    EQUAL(syscall(SYS_mbind, AT(2), 2 * PAGE, BIND, &first, 64L, 0), 0);
    EQUAL(syscall(SYS_get_mempolicy, &mode, told, 65L, AT(3), 2L /* ADDR */), 0);
    EQUAL(mode, BIND);
    EQUAL(told[0], 1);
    EQUAL(syscall(SYS_get_mempolicy, &mode, NULL, 0L, AT(4), 2L), 0);
    EQUAL(mode, DEFAULT);
    EQUAL(syscall(SYS_mbind, AT(2), PAGE, INTERLEAVE | 0x8000 /* STATIC */, &both, 64L, 0), 0);
    EQUAL(syscall(SYS_get_mempolicy, &mode, told, 65L, AT(2), 2L), 0);
    EQUAL(mode, INTERLEAVE | 0x8000);
    EQUAL(told[0], 3);
    EQUAL(syscall(SYS_mbind, AT(2), PAGE, PREFERRED, NULL, 0L, 0), 0);
    EQUAL(syscall(SYS_get_mempolicy, &mode, told, 65L, AT(2), 2L), 0);
    EQUAL(mode, LOCAL);
    AT(2)[0] = 'n';
    EQUAL(syscall(SYS_get_mempolicy, &mode, NULL, 0L, AT(2), 3L /* NODE | ADDR */), 0);
    EQUAL(mode, 0);
    EQUAL(syscall(SYS_mbind, AT(0), 8 * PAGE, DEFAULT, NULL, 0L, 0), 0);
    EQUAL(AT(2)[0], 'n');
    FAILS(syscall(SYS_mbind, AT(0), PAGE, BIND, &second, 64L, 0), EINVAL);
    FAILS(syscall(SYS_mbind, AT(0), PAGE, BIND, &none, 64L, 0), EINVAL);
    FAILS(syscall(SYS_mbind, AT(0), PAGE, 7, &first, 64L, 0), EINVAL);
    FAILS(syscall(SYS_mbind, AT(0), PAGE, LOCAL, &first, 64L, 0), EINVAL);
    FAILS(syscall(SYS_mbind, AT(0) + 1, PAGE, BIND, &first, 64L, 0), EINVAL);
    FAILS(syscall(SYS_mbind, AT(0), PAGE, BIND, &first, 64L, 8), EINVAL);
    FAILS(syscall(SYS_mbind, AT(0), PAGE, BIND, 8L, 64L, 0), EFAULT);
    FAILS(syscall(SYS_mbind, AT(7), 2 * PAGE, BIND, &first, 64L, 0), EFAULT); // a hole: nothing is changed
    EQUAL(syscall(SYS_get_mempolicy, &mode, NULL, 0L, AT(7), 2L), 0);
    EQUAL(mode, DEFAULT);
    EQUAL(syscall(SYS_mbind, AT(7), 2 * PAGE, DEFAULT, NULL, 0L, 0), 0);
    FAILS(syscall(SYS_mbind, AT(9), PAGE, DEFAULT, NULL, 0L, 0), EFAULT);
    // A thread's own is inherited.
    EQUAL(syscall(SYS_set_mempolicy, INTERLEAVE, &first, 64L), 0);
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        EQUAL(syscall(SYS_get_mempolicy, &mode, told, 65L, NULL, 0L), 0);
        EQUAL(mode, INTERLEAVE);
        EQUAL(told[0], 1);
        EQUAL(syscall(SYS_get_mempolicy, &mode, NULL, 0L, NULL, 1L /* NODE: the next */), 0);
        EQUAL(mode, 0);
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    EQUAL(syscall(SYS_set_mempolicy, DEFAULT, NULL, 0L), 0);
    FAILS(syscall(SYS_set_mempolicy, DEFAULT, &first, 64L), EINVAL);
    FAILS(syscall(SYS_get_mempolicy, &mode, NULL, 0L, NULL, 1L), EINVAL);
    FAILS(syscall(SYS_get_mempolicy, &mode, NULL, 0L, AT(0), 0L), EINVAL);
    FAILS(syscall(SYS_get_mempolicy, &mode, NULL, 0L, AT(100), 2L), EFAULT);
    FAILS(syscall(SYS_get_mempolicy, &mode, NULL, 0L, NULL, 8L), EINVAL);
    EQUAL(syscall(SYS_get_mempolicy, &mode, told, 65L, NULL, 4L /* MEMS_ALLOWED */), 0);
    EQUAL(told[0], 1);
    // Where pages are.
    void *pages[4] = {AT(0), AT(2), AT(100), AT(2)};
    int nodes[4] = {0, 0, 0, 0}, status[4] = {9, 9, 9, 9};
    EQUAL(syscall(SYS_move_pages, 0, 3L, pages, NULL, status, 0), 0);
    EQUAL(status[0], -ENOENT);
    EQUAL(status[1], 0);
    EQUAL(status[2], -EFAULT);
    EQUAL(status[3], 9);
    EQUAL(syscall(SYS_move_pages, getpid(), 2L, pages, nodes, status, 2 /* MOVE */), 0);
    FAILS(syscall(SYS_move_pages, 0, 1L, pages, NULL, status, 1), EINVAL);
    FAILS(syscall(SYS_move_pages, 0, 1L, 8L, NULL, status, 0), EFAULT);
    FAILS(syscall(SYS_move_pages, 0x3ffffff0, 1L, pages, NULL, status, 0), ESRCH);
    nodes[0] = 5;
    FAILS(syscall(SYS_move_pages, 0, 1L, pages, nodes, status, 2 /* MOVE */), ENODEV);
    everything();
}

static void keys(void)
{
    map_at(0, 1, RW, OWN);
    if (has_keys()) return everything();
    FAILS(syscall(SYS_pkey_alloc, 0L, 0L), EINVAL);
    FAILS(syscall(SYS_pkey_alloc, 1L, 0L), EINVAL);
    FAILS(syscall(SYS_pkey_alloc, 0L, 4L), EINVAL);
    FAILS(syscall(SYS_pkey_free, 1L), EINVAL);
    FAILS(syscall(SYS_pkey_free, 0L), EINVAL);
    FAILS(syscall(SYS_pkey_mprotect, AT(0), PAGE, PROT_READ, 1), EINVAL);
    FAILS(syscall(SYS_pkey_mprotect, AT(0), PAGE, PROT_READ, 0), EINVAL);
    OK(syscall(SYS_pkey_mprotect, AT(0), PAGE, PROT_READ, -1)); // plain mprotect
    FAILS(syscall(SYS_mbind, AT(0), PAGE, 9999, NULL, 0L, 0), EINVAL);
    everything();
}

int main(void)
{
    RUN(counting);
    RUN(refusals);
    RUN(future);
    RUN(limits);
    RUN(droppable);
    RUN(barriers);
    RUN(policies);
    RUN(keys);
    return finished("calls_locking");
}
