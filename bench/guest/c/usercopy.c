// usercopy ROUNDS: the kernel's own use of user memory while that memory goes away.
//
// Proves: what a call copies to or from user memory goes to the page that is mapped there, or the call says EFAULT; never
// to a frame that another mapping has got meanwhile. Threads call pread, pwrite, process_vm_writev and futex
// on pages that another thread unmaps, maps anew and protects. What was unmapped is at once used by
// mappings that nobody else stores to, and which must stay as they are.
//
// calls: pread64 pwrite64 process_vm_writev futex munmap mmap mprotect
#include "check.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

#define PAGES 16
#define OTHERS 24
#define FOREIGN 0xf0f0f0f0f0f0f0f0UL
// Far from each other, so that neither comes to lie where the other was.
#define WINDOW ((void *)0x200000000000UL)
#define OTHER ((void *)0x210000000000UL)

static char *window;
static atomic_int over;
static long rounds, copies, refused;

static void *copier(void *arg)
{
    static char full[PAGES * PAGE];
    long done = 0, faults = 0;
    int fd = memfd_create("source", 0), kind = (int)(intptr_t)arg;
    CHECK(fd >= 0);
    memset(full, 0xf0, sizeof full);
    EQUAL(write(fd, full, sizeof full), (long)sizeof full);
    char *own = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(own != MAP_FAILED);
    memset(own, 0xf0, PAGES * PAGE);
    while (!atomic_load(&over)) {
        struct iovec here = {own, PAGES * PAGE}, there = {window, PAGES * PAGE};
        long n;
        switch (kind) {
        case 0: n = pread(fd, window, PAGES * PAGE, 0); break;
        case 1: n = pwrite(fd, window, PAGES * PAGE, PAGES * PAGE); break;
        case 2: n = process_vm_writev(getpid(), &here, 1, &there, 1, 0); break;
        default: n = syscall(SYS_futex, window, 1 /* FUTEX_WAKE */, 1, 0, 0, 0); break;
        }
        if (n < 0) {
            EQUAL(errno, EFAULT);
            faults++;
        }
        done++;
    }
    __atomic_add_fetch(&copies, done, __ATOMIC_RELAXED);
    __atomic_add_fetch(&refused, faults, __ATOMIC_RELAXED);
    close(fd);
    munmap(own, PAGES * PAGE);
    return 0;
}

static void *changer(void *arg)
{
    (void)arg;
    for (long round = 0; round < rounds; round++) {
        unsigned long *others = mmap(OTHER, OTHERS * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        CHECK(others != MAP_FAILED);
        OK(munmap(window, PAGES * PAGE));
        // These get the frames that were just given up, before a copy that was going on has ended.
        for (int i = 0; i < OTHERS; i++) others[i * 512] = 7;
        char *again = mmap(window, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        CHECK(again == window);
        for (int i = 0; i < PAGES; i++) ((volatile char *)window)[i * PAGE] = 1;
        if (round % 3 == 0) {
            OK(mprotect(window, PAGES * PAGE, PROT_READ));
            unsigned long was = *(volatile unsigned long *)(window + 8);
            CHECK(was == 0 || was == FOREIGN);
            // Nobody stores to it any more, the kernel neither.
            EQUAL(*(volatile unsigned long *)(window + 8), was);
            OK(mprotect(window, PAGES * PAGE, PROT_READ | PROT_WRITE));
        }
        for (int i = 0; i < OTHERS * 512; i++) CHECK(others[i] == (i % 512 == 0 ? 7 : 0));
        OK(munmap(others, OTHERS * PAGE));
    }
    atomic_store(&over, 1);
    return 0;
}

int main(int argc, char **argv)
{
    pthread_t threads[5];
    rounds = argc > 1 ? atol(argv[1]) : 2000;
    window = mmap(WINDOW, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(window != MAP_FAILED);
    for (int i = 0; i < 4; i++) EQUAL(pthread_create(&threads[i], 0, copier, (void *)(intptr_t)i), 0);
    EQUAL(pthread_create(&threads[4], 0, changer, 0), 0);
    for (int i = 0; i < 5; i++) EQUAL(pthread_join(threads[i], 0), 0);
    CHECK(copies > refused);
    puts("usercopy: nothing went to a page of another mapping");
    return 0;
}
