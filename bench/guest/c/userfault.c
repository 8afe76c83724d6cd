// userfault: userfaultfd: page faults that the program itself resolves.
//
// Proves: the handshake and its refusals; who may register what, and what that allows; a fault waits until its page is
// filled, allowed or no longer watched, is read of once, and is made again after a signal; what a system call does with such a
// page; protection of pages that are and aren't there; memory that is shared, with the file's page there or not; SIGBUS instead of
// waiting; what becomes of all this by mprotect, mremap, munmap, madvise, fork, close and signals that end. Errors are Linux's.
//
// calls: userfaultfd ioctl
#include "userfault.h"
#include <sys/epoll.h>

static int raw(int flags) { return syscall(SYS_userfaultfd, flags); }

// ---- the descriptor ----------------------------------------------------------------------------------------------------
static void handshake(void)
{
    FAILS(raw(2), EINVAL);
    FAILS(raw(O_APPEND), EINVAL);
    int fd = raw(O_NONBLOCK);
    OK(fd);
    struct uffd_msg message;
    FAILS(read(fd, &message, sizeof message), EINVAL);
    FAILS(enlist(fd, 0, 1, UFFDIO_REGISTER_MODE_MISSING), EINVAL);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    EQUAL(poll(&p, 1, 0), 1);
    EQUAL(p.revents, POLLERR);
    struct uffdio_api api = {.api = 0xab};
    FAILS(ioctl(fd, UFFDIO_API, &api), EINVAL);
    CHECK(api.api == 0 && api.features == 0 && api.ioctls == 0);
    api = (struct uffdio_api){.api = UFFD_API, .features = 1UL << 40};
    FAILS(ioctl(fd, UFFDIO_API, &api), EINVAL);
    CHECK(api.api == 0);
    FAILS(ioctl(fd, UFFDIO_API, (void *)8), EFAULT);
    api = (struct uffdio_api){.api = UFFD_API};
    OK(ioctl(fd, UFFDIO_API, &api));
    uint64_t least = F_WP | F_SHMEM | F_SIGBUS | F_THREAD | F_MINOR_SHMEM | F_EXACT | F_WP_SHMEM;
    EQUAL(api.features & least, least);
    EQUAL(api.ioctls, 1UL << API | 1UL << REGISTER | 1UL << UNREGISTER);
    FAILS(ioctl(fd, UFFDIO_API, &api), EINVAL);
    FAILS(ioctl(fd, 0xaa77, 0), EINVAL);
    EQUAL(poll(&p, 1, 0), 0);
    FAILS(read(fd, &message, sizeof message), EAGAIN);
    FAILS(read(fd, &message, sizeof message - 1), EINVAL);
    FAILS(write(fd, &message, sizeof message), EBADF);
    // Who could wait in a read is told that polling is no use.
    OK(fcntl(fd, F_SETFL, 0));
    EQUAL(poll(&p, 1, 0), 1);
    EQUAL(p.revents, POLLERR);
    char link[64], name[64] = {0};
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    CHECK(readlink(link, name, sizeof name - 1) > 0);
    CHECK(!strcmp(name, "anon_inode:[userfaultfd]"));
    OK(close(fd));
}

static void device(void)
{
    int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (dev < 0) {
        // Debian's Linux has it only where udev runs.
        EQUAL(errno, ENOENT);
        return;
    }
    int fd = ioctl(dev, _IO(0xaa, 0), O_NONBLOCK);
    OK(fd);
    FAILS(ioctl(dev, _IO(0xaa, 0), 2), EINVAL);
    FAILS(ioctl(dev, _IO(0xaa, 1), 0), EINVAL);
    struct uffdio_api api = {.api = UFFD_API};
    OK(ioctl(fd, UFFDIO_API, &api));
    OK(close(fd));
    OK(close(dev));
}

static void registering(void)
{
    int fd = opened(0), other = opened(0);
    map_at(0, 8, RW, OWN, -1);
    struct uffdio_register r = {.range = {(uintptr_t)AT(0), 8 * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    OK(ioctl(fd, UFFDIO_REGISTER, &r));
    uint64_t basic = 1UL << WAKE | 1UL << COPY | 1UL << ZEROPAGE;
    uint64_t known = basic | 1UL << WRITEPROTECT | 1UL << CONTINUE;
    EQUAL(r.ioctls & known, basic);
    r.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP;
    OK(ioctl(fd, UFFDIO_REGISTER, &r));
    EQUAL(r.ioctls & known, basic | 1UL << WRITEPROTECT);
    FAILS(enlist(other, 2, 1, UFFDIO_REGISTER_MODE_MISSING), EBUSY);
    // Linux has looked since 6.13 who takes a registration back.
    if (delist(other, 2, 1)) EQUAL(errno, EINVAL);
    else OK(enlist(fd, 2, 1, UFFDIO_REGISTER_MODE_MISSING));
    FAILS(enlist(fd, 0, 8, 0), EINVAL);
    FAILS(enlist(fd, 0, 8, 8), EINVAL);
    FAILS(enlist(fd, 0, 0, UFFDIO_REGISTER_MODE_MISSING), EINVAL);
    // Memory without a file has no minor faults.
    FAILS(enlist(fd, 0, 8, UFFDIO_REGISTER_MODE_MINOR), EINVAL);
    r.range.start += 1;
    FAILS(ioctl(fd, UFFDIO_REGISTER, &r), EINVAL);
    r.range = (struct uffdio_range){(uintptr_t)AT(0), PAGE + 1};
    FAILS(ioctl(fd, UFFDIO_REGISTER, &r), EINVAL);
    r.range = (struct uffdio_range){0, PAGE};
    FAILS(ioctl(fd, UFFDIO_REGISTER, &r), EINVAL);
    r.range = (struct uffdio_range){1UL << 47, PAGE};
    FAILS(ioctl(fd, UFFDIO_REGISTER, &r), EINVAL);
    FAILS(ioctl(fd, UFFDIO_REGISTER, (void *)8), EFAULT);
    // Where nothing is.
    FAILS(enlist(fd, 100, 4, UFFDIO_REGISTER_MODE_MISSING), EINVAL);
    FAILS(delist(fd, 100, 4), EINVAL);
    // What is missing in between doesn't matter.
    map_at(12, 4, RW, OWN, -1);
    OK(enlist(fd, 0, 16, UFFDIO_REGISTER_MODE_MISSING));
    OK(delist(fd, 0, 16));
    // A part may have another owner.
    OK(enlist(fd, 0, 4, UFFDIO_REGISTER_MODE_MISSING));
    OK(enlist(other, 4, 4, UFFDIO_REGISTER_MODE_MISSING));
    FAILS(enlist(fd, 3, 2, UFFDIO_REGISTER_MODE_MISSING), EBUSY);
    OK(close(other));
    OK(enlist(fd, 3, 2, UFFDIO_REGISTER_MODE_MISSING));
    OK(close(fd));
    // Nobody watches any more.
    AT(0)[0] = AT(7)[0] = 1;
    OK(munmap(AT(0), 16 * PAGE));
}

// ---- missing pages -----------------------------------------------------------------------------------------------------
static void missing(void)
{
    int fd = opened(0);
    map_at(0, 8, RW, OWN, -1);
    AT(7)[0] = 7;
    OK(enlist(fd, 0, 8, UFFDIO_REGISTER_MODE_MISSING));
    EQUAL(AT(7)[0], 7);
    struct access a, b;
    begin(&a, AT(1) + 5, 0, 0);
    struct uffd_msg message = next(fd);
    EQUAL(message.arg.pagefault.address, (uintptr_t)AT(1));
    EQUAL(message.arg.pagefault.flags, 0);
    EQUAL(message.arg.pagefault.feat.ptid, 0);
    none(fd);
    moment();
    CHECK(!a.done);
    OK(copy(fd, 1, 1, 'a', 0));
    EQUAL(copied, PAGE);
    EQUAL(ended(&a), 'a');
    FAILS(copy(fd, 1, 1, 'b', 0), EEXIST);
    EQUAL(copied, -EEXIST);
    EQUAL(AT(1)[PAGE - 1], 'a');
    // A store; two that wait for one page.
    begin(&a, AT(2), 1, 'x');
    begin(&b, AT(2) + 1, 1, 'y');
    EQUAL(next(fd).arg.pagefault.flags, UFFD_PAGEFAULT_FLAG_WRITE);
    EQUAL(next(fd).arg.pagefault.flags, UFFD_PAGEFAULT_FLAG_WRITE);
    OK(zero(fd, 2, 1));
    EQUAL(copied, PAGE);
    ended(&a);
    ended(&b);
    CHECK(AT(2)[0] == 'x' && AT(2)[1] == 'y' && AT(2)[2] == 0);
    FAILS(zero(fd, 2, 1), EEXIST);
    // Several pages, until one is there.
    OK(copy(fd, 4, 1, 'e', 0));
    FAILS(copy(fd, 3, 3, 'c', 0), EAGAIN);
    EQUAL(copied, PAGE);
    CHECK(AT(3)[0] == 'c' && AT(4)[0] == 'e');
    // Filled without a wake: who waits goes on when he is woken.
    begin(&a, AT(5), 0, 0);
    next(fd);
    OK(copy(fd, 5, 1, 'f', UFFDIO_COPY_MODE_DONTWAKE));
    moment();
    CHECK(!a.done);
    OK(wake(fd, 0, 8));
    EQUAL(ended(&a), 'f');
    // Woken for nothing: the fault comes again.
    begin(&a, AT(6), 0, 0);
    next(fd);
    OK(wake(fd, 6, 1));
    next(fd);
    OK(copy(fd, 6, 1, 'g', 0));
    EQUAL(ended(&a), 'g');
    // Errors.
    FAILS(copy(fd, 7, 1, 0, 4), EINVAL);
    FAILS(copy(fd, 7, 1, 0, 2), EINVAL);
    FAILS(copy(fd, 200, 1, 0, 0), ENOENT);
    FAILS(copy(fd, 7, 2, 0, 0), ENOENT);
    struct uffdio_copy c = {.dst = (uintptr_t)AT(0), .src = (uintptr_t)AT(300), .len = PAGE};
    FAILS(ioctl(fd, UFFDIO_COPY, &c), EFAULT);
    EQUAL(c.copy, -EFAULT);
    c.dst++;
    FAILS(ioctl(fd, UFFDIO_COPY, &c), EINVAL);
    FAILS(resume(fd, 0, 1, 0), EINVAL);
    FAILS(protect(fd, 0, 1, UFFDIO_WRITEPROTECT_MODE_WP), ENOENT);
    FAILS(wake(fd, 0, 0), EINVAL);
    // Contents that are dropped are missing again.
    OK(madvise(AT(1), PAGE, MADV_DONTNEED));
    begin(&a, AT(1), 0, 0);
    EQUAL(next(fd).arg.pagefault.address, (uintptr_t)AT(1));
    // No longer watched: what waits goes on, with zeros.
    OK(delist(fd, 0, 8));
    EQUAL(ended(&a), 0);
    FAILS(copy(fd, 0, 1, 0, 0), ENOENT);
    OK(munmap(AT(0), 8 * PAGE));
    OK(close(fd));
}

static void told(void)
{
    int fd = opened(F_THREAD | F_EXACT);
    map_at(0, 4, RW, OWN, -1);
    OK(enlist(fd, 0, 4, UFFDIO_REGISTER_MODE_MISSING));
    struct access a[3];
    for (int i = 0; i < 3; i++) begin(&a[i], AT(i) + 10 * i, 0, 0);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = 77};
    OK(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e));
    for (int got = 0, seen = 0; got < 3;) {
        struct uffd_msg m[4];
        EQUAL(epoll_wait(epoll, &e, 1, 10000), 1);
        EQUAL(e.data.u32, 77);
        long n = read(fd, m, sizeof m);
        CHECK(n > 0 && n % sizeof *m == 0);
        for (long i = 0; i < n / (long)sizeof *m; i++, got++) {
            long page = (m[i].arg.pagefault.address - (uintptr_t)BASE) / PAGE;
            CHECK(page < 3 && !(seen & 1 << page));
            seen |= 1 << page;
            EQUAL(m[i].arg.pagefault.address, (uintptr_t)AT(page) + 10 * page);
            EQUAL(m[i].arg.pagefault.feat.ptid, a[page].tid);
        }
    }
    EQUAL(epoll_wait(epoll, &e, 1, 0), 0);
    OK(copy(fd, 0, 3, 'm', 0));
    for (int i = 0; i < 3; i++) EQUAL(ended(&a[i]), 'm');
    OK(munmap(AT(0), 4 * PAGE));
    OK(close(epoll));
    OK(close(fd));
}

// A read that waits for a fault.
static void *reads(void *argument)
{
    struct uffd_msg message;
    EQUAL(read(*(int *)argument, &message, sizeof message), sizeof message);
    EQUAL(message.arg.pagefault.address, (uintptr_t)AT(0));
    OK(copy(*(int *)argument, 0, 1, 'r', 0));
    return 0;
}

static void reader(void)
{
    int fd = opened(0);
    OK(fcntl(fd, F_SETFL, 0));
    map_at(0, 1, RW, OWN, -1);
    OK(enlist(fd, 0, 1, UFFDIO_REGISTER_MODE_MISSING));
    pthread_t thread;
    RETURNS(pthread_create(&thread, 0, reads, &fd), 0);
    moment();
    EQUAL(AT(0)[9], 'r');
    RETURNS(pthread_join(thread, 0), 0);
    OK(munmap(AT(0), PAGE));
    OK(close(fd));
}

// ---- signals, system calls ---------------------------------------------------------------------------------------------
static _Atomic int handled;
static void on_signal(int signal) { handled += signal == SIGUSR1; }

static void signals(void)
{
    int fd = opened(0);
    map_at(0, 2, RW, OWN, -1);
    OK(enlist(fd, 0, 2, UFFDIO_REGISTER_MODE_MISSING));
    struct sigaction action = {.sa_handler = on_signal};
    OK(sigaction(SIGUSR1, &action, 0));
    struct access a;
    begin(&a, AT(0), 0, 0);
    next(fd);
    for (int i = 1; i <= 3; i++) {
        RETURNS(pthread_kill(a.thread, SIGUSR1), 0);
        // It is made again after the handler.
        EQUAL(next(fd).arg.pagefault.address, (uintptr_t)AT(0));
        EQUAL(handled, i);
        CHECK(!a.done);
    }
    OK(copy(fd, 0, 1, 's', 0));
    EQUAL(ended(&a), 's');
    OK(munmap(AT(0), 2 * PAGE));
    OK(close(fd));
}

static int ends[2];
static void *calls(void *argument)
{
    // Into a page that is missing, and out of one.
    EQUAL(read(ends[0], AT(0) + 100, 5), 5);
    EQUAL(write(ends[1], AT(1), 3), 3);
    return argument;
}

static void system_calls(void)
{
    int fd = opened(0);
    OK(pipe(ends));
    map_at(0, 2, RW, OWN, -1);
    OK(enlist(fd, 0, 2, UFFDIO_REGISTER_MODE_MISSING));
    EQUAL(write(ends[1], "12345", 5), 5);
    pthread_t thread;
    RETURNS(pthread_create(&thread, 0, calls, 0), 0);
    struct uffd_msg message = next(fd);
    EQUAL(message.arg.pagefault.address, (uintptr_t)AT(0));
    EQUAL(message.arg.pagefault.flags, UFFD_PAGEFAULT_FLAG_WRITE);
    OK(copy(fd, 0, 1, 'k', 0));
    message = next(fd);
    EQUAL(message.arg.pagefault.address, (uintptr_t)AT(1));
    EQUAL(message.arg.pagefault.flags, 0);
    OK(copy(fd, 1, 1, 'l', 0));
    RETURNS(pthread_join(thread, 0), 0);
    CHECK(!memcmp(AT(0) + 99, "k12345k", 7));
    char out[3];
    EQUAL(read(ends[0], out, 3), 3);
    CHECK(!memcmp(out, "lll", 3));
    OK(close(fd));
    OK(munmap(AT(0), 2 * PAGE));
    // A descriptor for user code alone: the call fails.
    fd = raw(O_NONBLOCK | UFFD_USER_MODE_ONLY);
    OK(fd);
    struct uffdio_api api = {.api = UFFD_API};
    OK(ioctl(fd, UFFDIO_API, &api));
    map_at(0, 2, RW, OWN, -1);
    OK(enlist(fd, 0, 2, UFFDIO_REGISTER_MODE_MISSING));
    FAILS(write(ends[1], AT(1), 3), EFAULT);
    struct access a;
    begin(&a, AT(1), 0, 0);
    next(fd);
    OK(copy(fd, 1, 1, 'u', 0));
    EQUAL(ended(&a), 'u');
    OK(munmap(AT(0), 2 * PAGE));
    OK(close(fd));
    OK(close(ends[0]));
    OK(close(ends[1]));
}

// ---- protection --------------------------------------------------------------------------------------------------------
static void protection(void)
{
    int fd = opened(F_WP);
    map_at(0, 8, RW, OWN, -1);
    for (int i = 0; i < 6; i++) AT(i)[0] = 'a' + i;
    OK(enlist(fd, 0, 8, UFFDIO_REGISTER_MODE_WP));
    FAILS(protect(fd, 0, 1, 4), EINVAL);
    FAILS(protect(fd, 0, 1, UFFDIO_WRITEPROTECT_MODE_WP | UFFDIO_WRITEPROTECT_MODE_DONTWAKE), EINVAL);
    FAILS(protect(fd, 50, 1, UFFDIO_WRITEPROTECT_MODE_WP), ENOENT);
    OK(protect(fd, 0, 4, UFFDIO_WRITEPROTECT_MODE_WP));
    EQUAL(AT(1)[0], 'b');
    AT(4)[0] = 'E';
    struct access a;
    begin(&a, AT(1), 1, 'B');
    struct uffd_msg message = next(fd);
    EQUAL(message.arg.pagefault.address, (uintptr_t)AT(1));
    EQUAL(message.arg.pagefault.flags, UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP);
    moment();
    CHECK(!a.done && AT(1)[0] == 'b');
    OK(protect(fd, 1, 1, 0));
    ended(&a);
    EQUAL(AT(1)[0], 'B');
    AT(1)[1] = 1;
    // Allowed without a wake.
    begin(&a, AT(2), 1, 'C');
    next(fd);
    OK(protect(fd, 2, 1, UFFDIO_WRITEPROTECT_MODE_DONTWAKE));
    moment();
    CHECK(!a.done);
    OK(wake(fd, 2, 1));
    ended(&a);
    EQUAL(AT(2)[0], 'C');
    // Other rights in between change nothing.
    OK(mprotect(AT(3), PAGE, PROT_READ));
    OK(mprotect(AT(3), PAGE, RW));
    begin(&a, AT(3), 1, 'D');
    EQUAL(next(fd).arg.pagefault.flags, UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP);
    // A page that comes protected.
    OK(copy(fd, 6, 1, 'q', UFFDIO_COPY_MODE_WP));
    EQUAL(AT(6)[0], 'q');
    struct access b;
    begin(&b, AT(6), 1, 'Q');
    EQUAL(next(fd).arg.pagefault.address, (uintptr_t)AT(6));
    // What isn't there is not protected.
    OK(protect(fd, 7, 1, UFFDIO_WRITEPROTECT_MODE_WP));
    AT(7)[0] = 'h';
    OK(protect(fd, 0, 8, 0));
    ended(&a);
    ended(&b);
    CHECK(AT(3)[0] == 'D' && AT(6)[0] == 'Q');
    // No longer watched is no longer protected.
    OK(protect(fd, 0, 8, UFFDIO_WRITEPROTECT_MODE_WP));
    begin(&a, AT(5), 1, 'F');
    next(fd);
    OK(delist(fd, 0, 8));
    OK(wake(fd, 0, 8));
    ended(&a);
    for (int i = 0; i < 8; i++) AT(i)[2] = 2;
    OK(munmap(AT(0), 8 * PAGE));
    OK(close(fd));
}

static void unpopulated(void)
{
    int fd = opened(0);
    OK(close(fd));
    if (!(features & F_WP_UNPOPULATED)) return;
    fd = opened(F_WP | F_WP_UNPOPULATED);
    map_at(0, 600, RW, OWN, -1);
    OK(enlist(fd, 0, 600, UFFDIO_REGISTER_MODE_WP));
    OK(protect(fd, 0, 600, UFFDIO_WRITEPROTECT_MODE_WP));
    EQUAL(AT(550)[0], 0);
    struct access a;
    begin(&a, AT(551), 1, 1);
    EQUAL(next(fd).arg.pagefault.flags, UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP);
    OK(protect(fd, 551, 1, 0));
    ended(&a);
    // Dropped contents of memory without a file are not protected.
    OK(madvise(AT(0), PAGE, MADV_DONTNEED));
    AT(0)[0] = 1;
    OK(munmap(AT(0), 600 * PAGE));
    OK(close(fd));
}

// Many threads store, one protects: a value that was seen under protection stays until it ends.
static _Atomic int stop;
static void *storms(void *argument)
{
    volatile unsigned *word = argument;
    while (!stop) *word = *word + 1;
    return 0;
}

static void *allows(void *argument)
{
    int fd = *(int *)argument;
    while (!stop) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        poll(&p, 1, 5);
    }
    return 0;
}

static void storm(void)
{
    int fd = opened(F_WP);
    map_at(0, 4, RW, OWN, -1);
    OK(enlist(fd, 0, 4, UFFDIO_REGISTER_MODE_WP));
    for (int i = 0; i < 4; i++) AT(i)[0] = 1;
    pthread_t threads[4], reader;
    stop = 0;
    for (int i = 0; i < 4; i++) RETURNS(pthread_create(&threads[i], 0, storms, AT(i)), 0);
    RETURNS(pthread_create(&reader, 0, allows, &fd), 0);
    for (int round = 0; round < 200; round++) {
        OK(protect(fd, 0, 4, UFFDIO_WRITEPROTECT_MODE_WP));
        unsigned seen[4];
        for (int i = 0; i < 4; i++) seen[i] = *(volatile unsigned *)AT(i);
        for (int spin = 0; spin < 200; spin++)
            for (int i = 0; i < 4; i++) EQUAL(*(volatile unsigned *)AT(i), seen[i]);
        OK(protect(fd, 0, 4, 0));
    }
    stop = 1;
    OK(protect(fd, 0, 4, 0));
    for (int i = 0; i < 4; i++) RETURNS(pthread_join(threads[i], 0), 0);
    RETURNS(pthread_join(reader, 0), 0);
    OK(munmap(AT(0), 4 * PAGE));
    OK(close(fd));
}

// ---- shared memory -----------------------------------------------------------------------------------------------------
static void shared(void)
{
    int fd = opened(F_SHMEM | F_MINOR_SHMEM | F_WP_SHMEM | F_WP);
    int file = memfd_create("pages", MFD_CLOEXEC);
    OK(file);
    OK(ftruncate(file, 8 * PAGE));
    map_at(0, 8, RW, MAP_SHARED, file);
    map_at(20, 8, RW, MAP_SHARED, file);
    struct uffdio_register r = {.range = {(uintptr_t)AT(0), 8 * PAGE},
                                .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR};
    OK(ioctl(fd, UFFDIO_REGISTER, &r));
    CHECK(r.ioctls & 1UL << CONTINUE);
    // A hole is missing.
    struct access a;
    begin(&a, AT(1), 0, 0);
    EQUAL(next(fd).arg.pagefault.flags, 0);
    FAILS(resume(fd, 1, 1, 0), EFAULT);
    OK(copy(fd, 1, 1, 'p', 0));
    EQUAL(ended(&a), 'p');
    EQUAL(AT(21)[7], 'p');
    // What the file has is not there yet.
    AT(22)[0] = 'v';
    begin(&a, AT(2), 1, 'w');
    EQUAL(next(fd).arg.pagefault.flags, UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_MINOR);
    FAILS(copy(fd, 2, 1, 'z', 0), EEXIST);
    OK(resume(fd, 2, 1, 0));
    EQUAL(copied, PAGE);
    ended(&a);
    EQUAL(AT(22)[0], 'w');
    FAILS(resume(fd, 2, 1, 0), EEXIST);
    // Dropped from the table: the file keeps it.
    OK(madvise(AT(2), PAGE, MADV_DONTNEED));
    begin(&a, AT(2), 0, 0);
    EQUAL(next(fd).arg.pagefault.flags, UFFD_PAGEFAULT_FLAG_MINOR);
    OK(resume(fd, 2, 1, 0));
    EQUAL(ended(&a), 'w');
    // Protected, and still so when it was dropped.
    OK(protect(fd, 2, 1, UFFDIO_WRITEPROTECT_MODE_WP));
    begin(&a, AT(2), 1, 'x');
    EQUAL(next(fd).arg.pagefault.flags, UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP);
    AT(22)[1] = 'y';
    OK(protect(fd, 2, 1, 0));
    ended(&a);
    CHECK(AT(2)[0] == 'x' && AT(2)[1] == 'y');
    OK(zero(fd, 3, 1));
    EQUAL(AT(3)[0], 0);
    // Beyond the end.
    OK(ftruncate(file, 6 * PAGE));
    FAILS(copy(fd, 7, 1, 'o', 0), EFAULT);
    FAILS(resume(fd, 7, 1, 0), EINVAL);
    // A private mapping gets pages of its own.
    map_at(40, 4, RW, MAP_PRIVATE, file);
    OK(enlist(fd, 40, 4, UFFDIO_REGISTER_MODE_MISSING));
    OK(copy(fd, 40, 1, 'P', 0));
    CHECK(AT(40)[0] == 'P' && AT(20)[0] == 0);
    OK(munmap(AT(0), 50 * PAGE));
    OK(close(file));
    // One that may not be written; and where the file isn't memory that is not looked at.
    file = open("/proc/self/exe", O_RDONLY);
    OK(file);
    map_at(0, 1, PROT_READ, MAP_SHARED, file);
    CHECK(enlist(fd, 0, 1, UFFDIO_REGISTER_MODE_WP) == -1 && (errno == EINVAL || errno == EPERM));
    OK(munmap(AT(0), PAGE));
    OK(close(file));
    OK(close(fd));
}

// ---- SIGBUS ------------------------------------------------------------------------------------------------------------
static int bus_fd;
static _Atomic int bus_faults;
static void on_bus(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    bus_faults++;
    EQUAL(info->si_code, BUS_ADRERR);
    long page = ((char *)info->si_addr - BASE) / (long)PAGE;
    if (page < 4) OK(copy(bus_fd, page, 1, 'A' + page, 0));
    else OK(protect(bus_fd, page, 1, 0));
}

static void bus(void)
{
    int fd = bus_fd = opened(F_SIGBUS | F_WP);
    struct sigaction action = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO};
    OK(sigaction(SIGBUS, &action, 0));
    map_at(0, 8, RW, OWN, -1);
    for (int i = 4; i < 8; i++) AT(i)[0] = 'a' + i;
    OK(enlist(fd, 0, 8, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP));
    OK(protect(fd, 4, 4, UFFDIO_WRITEPROTECT_MODE_WP));
    for (int i = 0; i < 4; i++) EQUAL(AT(i)[1], 'A' + i);
    EQUAL(bus_faults, 4);
    for (int i = 4; i < 8; i++) AT(i)[0]++;
    EQUAL(bus_faults, 8);
    OK(madvise(AT(0), PAGE, MADV_DONTNEED));
    OK(pipe(ends));
    FAILS(write(ends[1], AT(0), 4), EFAULT);
    OK(protect(fd, 4, 1, UFFDIO_WRITEPROTECT_MODE_WP));
    EQUAL(write(ends[1], AT(4), 4), 4);
    FAILS(read(ends[0], AT(4), 4), EFAULT);
    none(fd);
    OK(close(ends[0]));
    OK(close(ends[1]));
    OK(munmap(AT(0), 8 * PAGE));
    OK(close(fd));
    signal(SIGBUS, SIG_DFL);
}

// ---- changes of mappings, ends -----------------------------------------------------------------------------------------
static void mappings(void)
{
    int fd = opened(F_WP);
    map_at(0, 8, RW, OWN, -1);
    AT(0)[0] = AT(4)[0] = AT(5)[0] = 'm';
    OK(enlist(fd, 0, 8, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP));
    OK(protect(fd, 4, 1, UFFDIO_WRITEPROTECT_MODE_WP));
    // Where pages are moved, nobody watches them.
    CHECK(mremap(AT(4), 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(30)) == AT(30));
    AT(30)[0] = 'n';
    AT(33)[0] = 'o';
    EQUAL(AT(31)[0], 'm');
    FAILS(copy(fd, 32, 1, 0, 0), ENOENT);
    // What a mapping grows by is watched as it is.
    CHECK(mremap(AT(0), 4 * PAGE, 5 * PAGE, 0) == AT(0));
    struct access a;
    begin(&a, AT(4), 0, 0);
    EQUAL(next(fd).arg.pagefault.address, (uintptr_t)AT(4));
    OK(copy(fd, 4, 1, 'g', 0));
    EQUAL(ended(&a), 'g');
    // A new mapping in its place is not.
    map_at(1, 1, RW, OWN, -1);
    EQUAL(AT(1)[0], 0);
    FAILS(copy(fd, 1, 1, 0, 0), ENOENT);
    // Nor is one range where it is split by rights one mapping to fill.
    OK(mprotect(AT(3), PAGE, PROT_READ));
    FAILS(copy(fd, 2, 2, 's', 0), ENOENT);
    OK(copy(fd, 3, 1, 's', 0));
    EQUAL(AT(3)[0], 's');
    // Unmapped under who waits: he goes on when he is woken, and finds nothing.
    OK(munmap(AT(0), 40 * PAGE));
    OK(close(fd));
}

static void forked(void)
{
    int fd = opened(F_WP);
    map_at(0, 1024, RW, OWN, -1);
    for (int i = 0; i < 1024; i += 2) AT(i)[0] = 'f';
    OK(enlist(fd, 0, 1024, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP));
    OK(protect(fd, 0, 1024, UFFDIO_WRITEPROTECT_MODE_WP));
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        // Nobody watches here, nothing is protected.
        for (int i = 0; i < 1024; i++) {
            if (AT(i)[0] != (i % 2 ? 0 : 'f')) _exit(2);
            AT(i)[0] = 'c';
        }
        // What the descriptor is asked is about the parent.
        if (copy(fd, 1, 1, 'p', 0) || AT(1)[0] != 'c') _exit(3);
        _exit(0);
    }
    int status;
    EQUAL(waitpid(child, &status, 0), child);
    EQUAL(status, 0);
    EQUAL(AT(1)[0], 'p');
    struct access a;
    begin(&a, AT(2), 1, 'w');
    EQUAL(next(fd).arg.pagefault.flags, UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP);
    OK(protect(fd, 0, 1024, 0));
    ended(&a);
    EQUAL(AT(4)[0], 'f');
    begin(&a, AT(3), 0, 0);
    EQUAL(next(fd).arg.pagefault.flags, 0);
    // The end of the descriptor lets everybody go on.
    OK(close(fd));
    EQUAL(ended(&a), 0);
    AT(5)[0] = 5;
    OK(munmap(AT(0), 1024 * PAGE));
}

static void *outlasts(void *argument)
{
    write(ends[1], AT(2), 1);
    return argument;
}

// A process that ends, or becomes another, with threads that wait.
static void endings(void)
{
    for (int way = 0; way < 3; way++) {
        pid_t child = fork();
        OK(child);
        if (child == 0) {
            int fd = opened(0);
            map_at(0, 4, RW, OWN, -1);
            OK(enlist(fd, 0, 4, UFFDIO_REGISTER_MODE_MISSING));
            struct access a, b;
            begin(&a, AT(0), 0, 0);
            begin(&b, AT(1), 1, 1);
            next(fd);
            next(fd);
            // And one in a system call.
            OK(pipe(ends));
            pthread_t thread;
            RETURNS(pthread_create(&thread, 0, outlasts, 0), 0);
            next(fd);
            if (way == 0) _exit(9);
            if (way == 1) kill(getpid(), SIGKILL);
            char *arguments[] = {"userfault", "exec", 0};
            execv("/proc/self/exe", arguments);
            _exit(1);
        }
        int status;
        EQUAL(waitpid(child, &status, 0), child);
        EQUAL(status, way == 0 ? 9 << 8 : way == 1 ? SIGKILL : 11 << 8);
    }
    // The memory of who opened it is gone.
    int pair[2];
    OK(pipe(pair));
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        int fd = opened(0);
        map_at(0, 4, RW, OWN, -1);
        OK(enlist(fd, 0, 4, UFFDIO_REGISTER_MODE_MISSING));
        pid_t heir = fork();
        if (heir == 0) {
            char byte;
            OK(close(pair[1]));
            while (read(pair[0], &byte, 1) > 0) {}
            // Its parent has ended.
            while (getppid() != 1 && copy(fd, 0, 1, 0, 0) == 0) moment();
            for (int i = 0; i < 500 && !(copy(fd, 0, 1, 0, 0) == -1 && errno == ESRCH); i++) moment();
            FAILS(copy(fd, 0, 1, 0, 0), ESRCH);
            FAILS(enlist(fd, 0, 1, UFFDIO_REGISTER_MODE_MISSING), ENOMEM);
            _exit(0);
        }
        _exit(0);
    }
    int status;
    EQUAL(waitpid(child, &status, 0), child);
    EQUAL(status, 0);
    OK(close(pair[0]));
    OK(close(pair[1]));
}

// A process whose only thread waits in a system call: what isn't to end it doesn't, and what is does.
static void killed(void)
{
    int ready[2];
    OK(pipe(ready));
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        int fd = opened(0);
        map_at(0, 1, RW, OWN, -1);
        OK(enlist(fd, 0, 1, UFFDIO_REGISTER_MODE_MISSING));
        sigset_t blocked;
        sigemptyset(&blocked);
        sigaddset(&blocked, SIGINT);
        OK(sigprocmask(SIG_BLOCK, &blocked, 0));
        OK(pipe(ends));
        EQUAL(write(ready[1], "r", 1), 1);
        write(ends[1], AT(0), 1);
        _exit(1);
    }
    char byte;
    EQUAL(read(ready[0], &byte, 1), 1);
    // Not one that has a handler: Linux, which makes the access again and again then, doesn't find the next one fatal.
    int quiet[] = {SIGINT, SIGCHLD}, status;
    for (int i = 0; i < 2; i++) {
        moment();
        OK(kill(child, quiet[i]));
    }
    moment();
    EQUAL(waitpid(child, &status, WNOHANG), 0);
    OK(kill(child, SIGTERM));
    EQUAL(waitpid(child, &status, 0), child);
    EQUAL(status, SIGTERM);
    OK(close(ready[0]));
    OK(close(ready[1]));
}

// ---- writes that are kept track of ----------------------------------------------------------------------------------------
struct scan {
    uint64_t size, flags, start, end, walk_end, vec, room, most, inverted, mask, any, told;
};
struct region {
    uint64_t start, end, categories;
};
#define SCAN _IOWR('f', 16, struct scan)

static struct region found[16];
static int written(int map, long page, long pages, uint64_t flags)
{
    struct scan s = {.size = sizeof s, .flags = flags, .start = (uintptr_t)AT(page), .end = (uintptr_t)AT(page + pages),
                     .vec = (uintptr_t)found, .room = 16, .mask = 2, .told = 2};
    int n = ioctl(map, SCAN, &s);
    if (n >= 0) EQUAL(s.walk_end, s.end);
    return n;
}

static void region(int i, long page, long pages)
{
    EQUAL(found[i].start, (uintptr_t)AT(page));
    EQUAL(found[i].end, (uintptr_t)AT(page + pages));
}

static void tracked(void)
{
    int fd = opened(0);
    OK(close(fd));
    if (!(features & F_WP_ASYNC)) return;
    fd = opened(F_WP | F_WP_ASYNC);
    int map = open("/proc/self/pagemap", O_RDONLY);
    OK(map);
    map_at(0, 64, RW, OWN, -1);
    for (int i = 0; i < 64; i++) AT(i)[0] = 1;
    FAILS(written(map, 0, 64, 3), EPERM);
    OK(enlist(fd, 0, 64, UFFDIO_REGISTER_MODE_WP));
    EQUAL(written(map, 0, 64, 3), 1);
    region(0, 0, 64);
    EQUAL(written(map, 0, 64, 3), 0);
    // Nobody waits.
    AT(3)[0] = AT(4)[0] = AT(60)[0] = 2;
    OK(pipe(ends));
    EQUAL(write(ends[1], "xyz", 3), 3);
    EQUAL(read(ends[0], AT(30), 3), 3);
    CHECK(AT(31)[0] == 1);
    EQUAL(written(map, 0, 64, 0), 3);
    EQUAL(written(map, 0, 64, 3), 3);
    region(0, 3, 2);
    region(1, 30, 1);
    region(2, 60, 1);
    EQUAL(written(map, 0, 64, 3), 0);
    AT(3)[0] = 3;
    EQUAL(written(map, 0, 64, 3), 1);
    region(0, 3, 1);
    none(fd);
    // A page that has lost what was written counts as written.
    AT(7)[0] = 4;
    OK(madvise(AT(7), PAGE, MADV_DONTNEED));
    EQUAL(written(map, 0, 64, 3), 1);
    region(0, 7, 1);
    EQUAL(written(map, 0, 64, 3), 0);
    AT(7)[0] = 5;
    EQUAL(written(map, 0, 64, 3), 1);
    // The mark is shown.
    uint64_t word;
    EQUAL(pread(map, &word, 8, (uintptr_t)AT(9) / PAGE * 8), 8);
    CHECK(word >> 57 & 1);
    AT(9)[0] = 1;
    EQUAL(pread(map, &word, 8, (uintptr_t)AT(9) / PAGE * 8), 8);
    CHECK(!(word >> 57 & 1));
    // As many as there is room for are protected, and no more.
    EQUAL(written(map, 0, 64, 3), 1);
    for (int i = 0; i < 64; i += 2) AT(i)[0] = 6;
    struct scan s = {.size = sizeof s, .flags = 3, .start = (uintptr_t)AT(0), .end = (uintptr_t)AT(64),
                     .vec = (uintptr_t)found, .room = 4, .mask = 2, .told = 2};
    EQUAL(ioctl(map, SCAN, &s), 4);
    EQUAL(written(map, 0, 32, 0), 12);
    region(0, 8, 1);
    // All of it, without being told.
    s = (struct scan){.size = sizeof s, .flags = 3, .start = (uintptr_t)AT(0), .end = (uintptr_t)AT(64), .mask = 2};
    EQUAL(ioctl(map, SCAN, &s), 0);
    EQUAL(written(map, 0, 64, 3), 0);
    OK(protect(fd, 5, 2, 0));
    EQUAL(written(map, 0, 64, 3), 1);
    region(0, 5, 2);
    // A file's pages, of any file.
    int file = open("/tmp/userfault", O_RDWR | O_CREAT | O_TRUNC, 0600);
    OK(file);
    memset(source, 'f', sizeof source);
    EQUAL(write(file, source, sizeof source), sizeof source);
    map_at(100, 4, RW, MAP_SHARED, file);
    OK(enlist(fd, 100, 4, UFFDIO_REGISTER_MODE_WP));
    OK(protect(fd, 100, 4, UFFDIO_WRITEPROTECT_MODE_WP));
    EQUAL(AT(101)[0], 'f');
    AT(102)[0] = 'g';
    EQUAL(written(map, 100, 4, 3), 1);
    region(0, 102, 1);
    // Such pages are not for the program to fill, unless the file is memory.
    CHECK(copy(fd, 100, 1, 0, 0) == -1 && (errno == EINVAL || errno == EEXIST));
    OK(close(file));
    OK(unlink("/tmp/userfault"));
    OK(munmap(AT(0), 104 * PAGE));
    OK(close(ends[0]));
    OK(close(ends[1]));
    OK(close(map));
    OK(close(fd));
}

static int there;

static void section(const char *name, void (*checks)(void))
{
    if (there) checks();
    passed(name);
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "exec")) {
        // The memory is new, and so is nothing watched.
        map_at(0, 4, RW, OWN, -1);
        AT(0)[0] = 1;
        return 11;
    }
    // Some kernels have none of it, as Linux without CONFIG_USERFAULTFD: all that is to be proved then is that they say so.
    there = raw(0) != -1 || errno != ENOSYS;
    section("handshake", handshake);
    section("device", device);
    section("registering", registering);
    section("missing", missing);
    section("told", told);
    section("reader", reader);
    section("signals", signals);
    section("system_calls", system_calls);
    section("protection", protection);
    section("unpopulated", unpopulated);
    section("storm", storm);
    section("shared", shared);
    section("bus", bus);
    section("mappings", mappings);
    section("forked", forked);
    section("endings", endings);
    section("killed", killed);
    section("tracked", tracked);
    puts("userfault: all passed");
    return 0;
}
