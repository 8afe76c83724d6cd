// What the tests of userfaultfd share: the interface of Linux, requests about pages by their numbers, and threads that access one.
#ifndef USERFAULT_H
#define USERFAULT_H

#include "check.h"
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/ioctl.h>

// include/uapi/linux/userfaultfd.h
#define UFFD_USER_MODE_ONLY 1
#define UFFD_API 0xaaUL
#define UFFD_EVENT_PAGEFAULT 0x12
#define UFFD_PAGEFAULT_FLAG_WRITE 1
#define UFFD_PAGEFAULT_FLAG_WP 2
#define UFFD_PAGEFAULT_FLAG_MINOR 4
#define UFFDIO_REGISTER_MODE_MISSING 1UL
#define UFFDIO_REGISTER_MODE_WP 2UL
#define UFFDIO_REGISTER_MODE_MINOR 4UL
#define UFFDIO_COPY_MODE_DONTWAKE 1UL
#define UFFDIO_COPY_MODE_WP 2UL
#define UFFDIO_WRITEPROTECT_MODE_WP 1UL
#define UFFDIO_WRITEPROTECT_MODE_DONTWAKE 2UL
enum { F_WP = 1 << 0, F_SHMEM = 1 << 5, F_SIGBUS = 1 << 7, F_THREAD = 1 << 8, F_MINOR_SHMEM = 1 << 10, F_EXACT = 1 << 11,
       F_WP_SHMEM = 1 << 12, F_WP_UNPOPULATED = 1 << 13, F_WP_ASYNC = 1 << 15 };
// Requests, by number.
enum { REGISTER, UNREGISTER, WAKE, COPY, ZEROPAGE, WRITEPROTECT = 6, CONTINUE, API = 0x3f };
struct uffdio_api {
    uint64_t api, features, ioctls;
};
struct uffdio_range {
    uint64_t start, len;
};
struct uffdio_register {
    struct uffdio_range range;
    uint64_t mode, ioctls;
};
struct uffdio_copy {
    uint64_t dst, src, len, mode;
    int64_t copy;
};
struct uffdio_fill {
    struct uffdio_range range;
    uint64_t mode;
    int64_t filled;
};
struct uffdio_writeprotect {
    struct uffdio_range range;
    uint64_t mode;
};
struct uffd_msg {
    uint8_t event, reserved[7];
    union {
        struct {
            uint64_t flags, address;
            union {
                uint32_t ptid;
            } feat;
        } pagefault;
    } arg;
};
#define UFFDIO_API _IOWR(0xaa, API, struct uffdio_api)
#define UFFDIO_REGISTER _IOWR(0xaa, REGISTER, struct uffdio_register)
#define UFFDIO_UNREGISTER _IOR(0xaa, UNREGISTER, struct uffdio_range)
#define UFFDIO_WAKE _IOR(0xaa, WAKE, struct uffdio_range)
#define UFFDIO_COPY _IOWR(0xaa, COPY, struct uffdio_copy)
#define UFFDIO_ZEROPAGE _IOWR(0xaa, ZEROPAGE, struct uffdio_fill)
#define UFFDIO_WRITEPROTECT _IOWR(0xaa, WRITEPROTECT, struct uffdio_writeprotect)
#define UFFDIO_CONTINUE _IOWR(0xaa, CONTINUE, struct uffdio_fill)

#define RW (PROT_READ | PROT_WRITE)
#define OWN (MAP_PRIVATE | MAP_ANONYMOUS)
#define BASE ((char *)0x350000000000UL)
#define AT(page) (BASE + (long)(page) * (long)PAGE)

static uint64_t features;

static inline int opened(uint64_t wanted)
{
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    OK(fd);
    struct uffdio_api api = {.api = UFFD_API, .features = wanted};
    OK(ioctl(fd, UFFDIO_API, &api));
    features = api.features;
    return fd;
}

static inline char *map_at(long page, long pages, int prot, int flags, int fd)
{
    void *at = mmap(AT(page), pages * PAGE, prot, flags | MAP_FIXED, fd, 0);
    CHECK(at == AT(page));
    return at;
}

static inline int enlist(int fd, long page, long pages, uint64_t mode)
{
    struct uffdio_register r = {.range = {(uintptr_t)AT(page), pages * PAGE}, .mode = mode};
    return ioctl(fd, UFFDIO_REGISTER, &r);
}

static inline int delist(int fd, long page, long pages)
{
    struct uffdio_range r = {(uintptr_t)AT(page), pages * PAGE};
    return ioctl(fd, UFFDIO_UNREGISTER, &r);
}

static char source[4 * PAGE] __attribute__((aligned(4096)));

static long copied;
static inline int copy(int fd, long page, long pages, char fill, uint64_t mode)
{
    memset(source, fill, pages * PAGE);
    struct uffdio_copy c = {.dst = (uintptr_t)AT(page), .src = (uintptr_t)source, .len = pages * PAGE, .mode = mode};
    int result = ioctl(fd, UFFDIO_COPY, &c);
    copied = c.copy;
    return result;
}

static inline int zero(int fd, long page, long pages)
{
    struct uffdio_fill z = {.range = {(uintptr_t)AT(page), pages * PAGE}};
    int result = ioctl(fd, UFFDIO_ZEROPAGE, &z);
    copied = z.filled;
    return result;
}

static inline int protect(int fd, long page, long pages, uint64_t mode)
{
    struct uffdio_writeprotect w = {.range = {(uintptr_t)AT(page), pages * PAGE}, .mode = mode};
    return ioctl(fd, UFFDIO_WRITEPROTECT, &w);
}

static inline int resume(int fd, long page, long pages, uint64_t mode)
{
    struct uffdio_fill c = {.range = {(uintptr_t)AT(page), pages * PAGE}, .mode = mode};
    int result = ioctl(fd, UFFDIO_CONTINUE, &c);
    copied = c.filled;
    return result;
}

static inline int wake(int fd, long page, long pages)
{
    struct uffdio_range r = {(uintptr_t)AT(page), pages * PAGE};
    return ioctl(fd, UFFDIO_WAKE, &r);
}

// The next message, within ten seconds.
static inline struct uffd_msg next(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    EQUAL(poll(&p, 1, 10000), 1);
    EQUAL(p.revents, POLLIN);
    struct uffd_msg message;
    EQUAL(read(fd, &message, sizeof message), sizeof message);
    EQUAL(message.event, UFFD_EVENT_PAGEFAULT);
    return message;
}

static inline void none(int fd)
{
    struct uffd_msg message;
    FAILS(read(fd, &message, sizeof message), EAGAIN);
}

// ---- a thread that accesses ------------------------------------------------------------------------------------------
struct access {
    volatile char *at;
    int store;
    _Atomic int done;
    _Atomic int tid;
    char value;
    pthread_t thread;
};

static inline void *accesses(void *argument)
{
    struct access *a = argument;
    a->tid = syscall(SYS_gettid);
    if (a->store) *a->at = a->value;
    else a->value = *a->at;
    a->done = 1;
    return 0;
}

static inline void begin(struct access *a, void *at, int store, char value)
{
    *a = (struct access){.at = at, .store = store, .value = value};
    RETURNS(pthread_create(&a->thread, 0, accesses, a), 0);
}

static inline char ended(struct access *a)
{
    RETURNS(pthread_join(a->thread, 0), 0);
    CHECK(a->done);
    return a->value;
}

static inline void moment(void)
{
    struct timespec t = {0, 20 * 1000 * 1000};
    nanosleep(&t, 0);
}

#endif
