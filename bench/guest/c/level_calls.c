// level_calls [ROUNDS]: system calls whose buffers lie in pages that a level forbids, before the call or while it sleeps.
//
// Proves: a call that waits runs the handler for each of its pages that is forbidden, once, and then gives what it waited for, once:
// nothing is lost, told twice or done again, also if the page is lowered while the call sleeps, or again
// while the handler runs. A handler that refuses makes the call say EFAULT; before the call has taken anything nothing
// is lost by that, and afterwards not where Linux keeps it either (bytes of a pipe or a stream, epoll's events). A
// handler that goes on elsewhere, one that forks, one that makes such calls itself; a signal's handler that runs first. What a call has
// met before its last store makes it start over. A child's id is told before the child runs.
//
// The calls are read of a pipe, a stream, an eventfd, a timerfd, a signalfd and a userfaultfd; recvfrom, recvmsg, recvmmsg, accept,
// wait4, waitid, epoll_wait, poll, select, rt_sigtimedwait, nanosleep, clock_nanosleep, splice and sendfile.
#include "levels.h"
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>

// The buffers are here: small ones lie across two pages.
enum { PAGES = 12 };
static char *base;
static char *across(int page, size_t before) { return base + (page + 1) * PAGE - before; }

static pid_t main_thread;

struct call {
    const char *name;
    // How many pages the buffers are in.
    int pages;
    // Makes what the call needs; fills what it reads of its buffers.
    void (*ready)(void);
    // -1 if it failed.
    long (*call)(void);
    // Gives what it waits for; in another thread.
    void (*give)(void);
    // What was given is there.
    void (*right)(long result);
    // Nothing more is there.
    void (*none)(void);
    void (*end)(void);
    // Pages, as bits, by which it is refused before it takes what was given.
    unsigned keeps;
    // Refused while it slept: a handler of a signal runs first, and so it is SIGSEGV.
    int by_signal;
    // Pages, as bits, that it does not store to: it has read them before it sleeps, or has nothing for them.
    unsigned reads;
    // Those of control data, which is left out if it can't be stored.
    unsigned cuts;
};

static int fds[4];
static void close_all(void)
{
    for (int i = 0; i < 4; i++) {
        if (fds[i] >= 0) close(fds[i]);
        fds[i] = -1;
    }
}

static void pattern(char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) p[i] = (char)(i * 7 + i / 251);
}
static void is_pattern(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) EQUAL(p[i], (char)(i * 7 + i / 251));
}

// ---- read --------------------------------------------------------------------------------------------------------------

// A pipe and a stream may give less than is asked for, so they are read until all is there.
enum { LONG = 2 * PAGE + 100 };
static size_t had;
static long read_long(void)
{
    while (had < LONG) {
        ssize_t n = read(fds[0], base + PAGE - 50 + had, LONG - had);
        if (n < 0) return -1;
        CHECK(n > 0);
        had += n;
    }
    return had;
}
static void write_long(void)
{
    char bytes[LONG];
    pattern(bytes, LONG);
    EQUAL(write(fds[1], bytes, LONG), LONG);
}
static void is_long(long result)
{
    EQUAL(result, LONG);
    is_pattern(base + PAGE - 50, LONG);
}
static void no_bytes(void)
{
    char byte;
    OK(fcntl(fds[0], F_SETFL, O_NONBLOCK));
    FAILS(read(fds[0], &byte, 1), EAGAIN);
    OK(fcntl(fds[0], F_SETFL, 0));
}
static void ready_pipe(void)
{
    had = 0;
    OK(pipe(fds));
}
static void ready_stream(void)
{
    had = 0;
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
}

static void no_count(void)
{
    uint64_t count;
    OK(fcntl(fds[0], F_SETFL, O_NONBLOCK));
    FAILS(read(fds[0], &count, 8), EAGAIN);
}
static long read_count(void) { return read(fds[0], across(0, 3), 8); }
static void ready_event(void) { OK(fds[0] = eventfd(0, 0)); }
static void give_event(void)
{
    uint64_t count = 0x1122334455667788;
    EQUAL(write(fds[0], &count, 8), 8);
}
static void is_event(long result)
{
    uint64_t count;
    EQUAL(result, 8);
    memcpy(&count, across(0, 3), 8);
    EQUAL(count, 0x1122334455667788);
}

static void ready_timer(void) { OK(fds[0] = timerfd_create(CLOCK_MONOTONIC, 0)); }
static void give_timer(void)
{
    struct itimerspec soon = {.it_value.tv_nsec = 1000000};
    OK(timerfd_settime(fds[0], 0, &soon, NULL));
}
static void is_timer(long result)
{
    uint64_t count;
    EQUAL(result, 8);
    memcpy(&count, across(0, 3), 8);
    EQUAL(count, 1);
}

static sigset_t the_signal(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    return set;
}
static void ready_signals(void)
{
    sigset_t set = the_signal();
    OK(fds[0] = signalfd(-1, &set, 0));
}
static long read_signal(void) { return read(fds[0], across(0, 30), 128); }
static void give_signal(void) { OK(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 4711})); }
static void is_signal(long result)
{
    struct signalfd_siginfo info;
    EQUAL(result, sizeof info);
    memcpy(&info, across(0, 30), sizeof info);
    EQUAL(info.ssi_signo, SIGRTMIN);
    EQUAL(info.ssi_int, 4711);
}
static void no_signal(void)
{
    sigset_t set = the_signal();
    struct timespec now = {0, 0};
    FAILS(sigtimedwait(&set, NULL, &now), EAGAIN);
}
static void ready_wait(void) {}
static long wait_signal(void)
{
    sigset_t set = the_signal();
    // In bytes, as the page below is all that is left to the last part of a siginfo_t.
    return syscall(SYS_rt_sigtimedwait, &set, across(0, 14), NULL, 8);
}
static void is_waited(long result)
{
    siginfo_t info;
    EQUAL(result, SIGRTMIN);
    memcpy(&info, across(0, 14), sizeof info);
    EQUAL(info.si_signo, SIGRTMIN);
    EQUAL(info.si_value.sival_int, 4711);
}

// A fault that another thread waits with. The structures of linux/userfaultfd.h, which musl's headers lack, as words.
#define UFFDIO_API _IOWR(0xaa, 0x3f, uint64_t[3])
#define UFFDIO_REGISTER _IOWR(0xaa, 0, uint64_t[4])
#define UFFDIO_COPY _IOWR(0xaa, 3, uint64_t[5])
enum { MESSAGE = 32, EVENT_PAGEFAULT = 0x12, MISSING = 1 };
static char *faulting;
static pthread_t toucher;
static void *touches(void *unused)
{
    (void)unused;
    EQUAL(*(volatile char *)faulting, 5);
    return NULL;
}
static void ready_faults(void)
{
    faulting = pages_new(1);
    OK(fds[0] = syscall(SYS_userfaultfd, 0));
    uint64_t api[3] = {0xaa}, what[4] = {(uint64_t)faulting, PAGE, MISSING};
    OK(ioctl(fds[0], UFFDIO_API, api));
    OK(ioctl(fds[0], UFFDIO_REGISTER, what));
}
static long read_fault(void) { return read(fds[0], across(0, 12), MESSAGE); }
static void give_fault(void) { RETURNS(pthread_create(&toucher, NULL, touches, NULL), 0); }
static void is_fault(long result)
{
    uint64_t message[MESSAGE / 8];
    EQUAL(result, MESSAGE);
    memcpy(message, across(0, 12), MESSAGE);
    EQUAL(message[0] & 0xff, EVENT_PAGEFAULT);
    EQUAL(message[2], (uint64_t)faulting);
}
static void end_fault(void)
{
    char page[PAGE] = {5};
    uint64_t copy[5] = {(uint64_t)faulting, (uint64_t)page, PAGE};
    OK(ioctl(fds[0], UFFDIO_COPY, copy));
    RETURNS(pthread_join(toucher, NULL), 0);
    OK(munmap(faulting, PAGE));
    close_all();
}

// ---- sockets -------------------------------------------------------------------------------------------------------------

static struct sockaddr_un named(const char *name, socklen_t *len)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    *len = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name);
    memcpy(un.sun_path + 1, name, strlen(name));
    return un;
}
static int bound(int type, const char *name)
{
    socklen_t len;
    struct sockaddr_un un = named(name, &len);
    int fd = socket(AF_UNIX, type, 0);
    OK(fd);
    OK(bind(fd, (struct sockaddr *)&un, len));
    return fd;
}
static void put_int(char *p, int value) { memcpy(p, &value, sizeof value); }
static int get_int(const char *p)
{
    int value;
    memcpy(&value, p, sizeof value);
    return value;
}
#define SENDER "level_calls sender"
static void is_sender(const char *name, const char *len_at)
{
    socklen_t len;
    struct sockaddr_un un = named(SENDER, &len);
    EQUAL(get_int(len_at), len);
    CHECK(memcmp(name, &un, len) == 0);
}

static void ready_accept(void)
{
    fds[0] = bound(SOCK_STREAM, "level_calls");
    OK(listen(fds[0], 4));
    fds[1] = bound(SOCK_STREAM, SENDER);
    put_int(across(2, 1), 110);
}
static long accept_one(void) { return accept(fds[0], (void *)across(0, 9), (void *)across(2, 1)); }
static long accept4_one(void) { return accept4(fds[0], (void *)across(0, 9), (void *)across(2, 1), SOCK_CLOEXEC); }
static void give_connection(void)
{
    socklen_t len;
    struct sockaddr_un un = named("level_calls", &len);
    OK(connect(fds[1], (struct sockaddr *)&un, len));
}
static void is_connection(long result)
{
    OK(result);
    char byte = 0;
    fds[2] = result;
    EQUAL(write(fds[1], "x", 1), 1);
    EQUAL(read(fds[2], &byte, 1), 1);
    EQUAL(byte, 'x');
    is_sender(across(0, 9), across(2, 1));
}
static void no_connection(void)
{
    OK(fcntl(fds[0], F_SETFL, O_NONBLOCK));
    FAILS(accept(fds[0], NULL, NULL), EAGAIN);
}

static void ready_datagrams(void)
{
    fds[0] = bound(SOCK_DGRAM, "level_calls");
    fds[1] = bound(SOCK_DGRAM, SENDER);
    put_int(across(5, 2), 110);
}
static long receive_from(void)
{
    return recvfrom(fds[0], base + PAGE - 50, LONG, 0, (void *)across(3, 9), (void *)across(5, 2));
}
// With a descriptor of its own.
static void give_datagram(void)
{
    socklen_t len;
    struct sockaddr_un un = named("level_calls", &len);
    char bytes[LONG], control[CMSG_SPACE(4)] = {0};
    pattern(bytes, LONG);
    struct iovec part = {bytes, LONG};
    struct msghdr m = {.msg_name = &un, .msg_namelen = len, .msg_iov = &part, .msg_iovlen = 1};
    m.msg_control = control;
    m.msg_controllen = sizeof control;
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(4);
    memcpy(CMSG_DATA(c), &fds[1], 4);
    // What is accepted on has no peer's name to say; a stream needs none.
    int type;
    socklen_t size = sizeof type;
    OK(getsockopt(fds[1], SOL_SOCKET, SO_TYPE, &type, &size));
    if (type == SOCK_STREAM) m.msg_name = NULL;
    EQUAL(sendmsg(fds[1], &m, 0), LONG);
}
static void is_datagram(long result)
{
    is_long(result);
    is_sender(across(3, 9), across(5, 2));
}

// A msghdr, its parts, the bytes, a name and a descriptor: pages 0 to 10.
static struct msghdr *header(void) { return (void *)across(4, 24); }
static void ready_message(void)
{
    struct iovec part = {base + PAGE - 50, LONG};
    char *parts = base + 6 * PAGE;
    memcpy(parts, &part, sizeof part);
    struct msghdr m = {.msg_name = across(7, 9), .msg_namelen = 110, .msg_iov = (void *)parts, .msg_iovlen = 1};
    m.msg_control = across(9, 18);
    m.msg_controllen = CMSG_SPACE(4);
    memcpy((char *)header(), &m, sizeof m);
}
static void ready_datagram_message(void)
{
    ready_datagrams();
    ready_message();
}
// Not by the library, which copies the header.
static long receive_message(void) { return syscall(SYS_recvmsg, fds[0], header(), 0); }
// A descriptor of what sent it came along.
static void is_passed(void)
{
    struct msghdr m;
    memcpy(&m, (char *)header(), sizeof m);
    EQUAL(m.msg_controllen, CMSG_SPACE(4));
    EQUAL(m.msg_flags, 0);
    fds[2] = get_int(across(9, 2));
    struct stat one, other;
    OK(fstat(fds[1], &one));
    OK(fstat(fds[2], &other));
    EQUAL(one.st_ino, other.st_ino);
}
static void is_message(long result)
{
    is_long(result);
    char len[4];
    memcpy(len, (char *)header() + offsetof(struct msghdr, msg_namelen), 4);
    is_sender(across(7, 9), len);
    is_passed();
}
static void ready_stream_message(void)
{
    ready_stream();
    ready_message();
}
// With the descriptor that came along of a call that was refused, as on Linux where only the rest is.
static void close_passed(void)
{
    close_all();
    OK(syscall(SYS_close_range, 3, ~0U, 0));
}
// The rest by `read`, if that was less than all.
static long receive_stream(void)
{
    if (had == 0) {
        long n = syscall(SYS_recvmsg, fds[0], header(), 0);
        if (n < 0) return -1;
        had = n;
    }
    return read_long();
}
static void is_stream_message(long result)
{
    is_long(result);
    is_passed();
}
static long receive_many(void)
{
    return syscall(SYS_recvmmsg, fds[0], header(), 1, 0, NULL);
}
static void is_many(long result)
{
    EQUAL(result, 1);
    is_message(get_int((char *)header() + offsetof(struct mmsghdr, msg_len)));
}

// ---- children ------------------------------------------------------------------------------------------------------------

static pid_t child;
static void ready_child(void)
{
    char byte;
    OK(pipe(fds));
    OK(child = fork());
    if (child == 0) {
        _exit(read(fds[0], &byte, 1) == 1 ? byte : 1);
    }
}
static void give_end(void) { EQUAL(write(fds[1], "\x2a", 1), 1); }
static long wait_child(void) { return wait4(child, (void *)across(0, 2), 0, (void *)across(2, 20)); }
static void is_child(long result)
{
    EQUAL(result, child);
    EQUAL(get_int(across(0, 2)), 42 << 8);
}
static void no_child(void) { FAILS(wait4(child, NULL, WNOHANG, NULL), ECHILD); }
static long wait_id(void)
{
    return syscall(SYS_waitid, P_PID, child, across(0, 20), WEXITED, across(2, 20));
}
static void is_id(long result)
{
    siginfo_t info;
    EQUAL(result, 0);
    memcpy(&info, across(0, 20), sizeof info);
    EQUAL(info.si_pid, child);
    EQUAL(info.si_status, 42);
}

// ---- waiting for descriptors ---------------------------------------------------------------------------------------------

static void ready_epoll(void)
{
    OK(fds[0] = eventfd(0, 0));
    OK(fds[1] = epoll_create1(0));
    struct epoll_event e = {.events = EPOLLIN | EPOLLET | EPOLLONESHOT, .data.u64 = 0x1234567887654321};
    OK(epoll_ctl(fds[1], EPOLL_CTL_ADD, fds[0], &e));
}
static long wait_epoll(void) { return epoll_wait(fds[1], (void *)across(0, 6), 2, -1); }
static void is_epoll(long result)
{
    struct epoll_event e;
    EQUAL(result, 1);
    memcpy(&e, across(0, 6), sizeof e);
    EQUAL(e.events, EPOLLIN);
    EQUAL(e.data.u64, 0x1234567887654321);
}
static void no_epoll(void)
{
    struct epoll_event e;
    EQUAL(epoll_wait(fds[1], &e, 1, 0), 0);
}

static void ready_poll(void)
{
    OK(fds[0] = eventfd(0, 0));
    OK(fds[1] = eventfd(0, 0));
    struct pollfd all[2] = {{fds[0], POLLIN, 0x7f}, {fds[1], POLLIN | POLLOUT, 0}};
    // That the other can be written to would end the wait.
    all[1].events = POLLIN;
    memcpy(across(0, 8), all, sizeof all);
}
static long wait_poll(void) { return poll((void *)across(0, 8), 2, -1); }
static void is_poll(long result)
{
    struct pollfd all[2];
    EQUAL(result, 1);
    memcpy(all, across(0, 8), sizeof all);
    EQUAL(all[0].revents, POLLIN);
    EQUAL(all[1].revents, 0);
}
static void nothing(void) {}

static void ready_select(void)
{
    fd_set set;
    OK(fds[0] = eventfd(0, 0));
    FD_ZERO(&set);
    FD_SET(fds[0], &set);
    memcpy(across(0, 3), &set, sizeof set);
    memset(across(2, 3), 0, sizeof set);
}
static long wait_select(void)
{
    return select(fds[0] + 1, (void *)across(0, 3), (void *)across(2, 3), NULL, NULL);
}
static void is_select(long result)
{
    fd_set set;
    EQUAL(result, 1);
    memcpy(&set, across(0, 3), sizeof set);
    CHECK(FD_ISSET(fds[0], &set));
}

// ---- sleep -----------------------------------------------------------------------------------------------------------------

static volatile int signals, left_then;
static void on_usr1(int signal)
{
    (void)signal;
    signals++;
    left_then = get_int(across(0, 13));
}
static void ready_sleep(void)
{
    struct sigaction action = {.sa_handler = on_usr1};
    OK(sigaction(SIGUSR1, &action, NULL));
    signals = 0;
    memset(across(0, 13), 0, 16);
}
static long sleeps(void)
{
    struct timespec hours = {10000, 0};
    return nanosleep(&hours, (void *)across(0, 13)) == -1 && errno == EINTR ? 0 : -1;
}
static long sleeps_by_clock(void)
{
    struct timespec hours = {10000, 0};
    int error = clock_nanosleep(CLOCK_MONOTONIC, 0, &hours, (void *)across(0, 13));
    errno = error;
    return error == EINTR ? 0 : -1;
}
static void give_interrupt(void) { OK(syscall(SYS_tgkill, getpid(), main_thread, SIGUSR1)); }
static void is_interrupted(long result)
{
    struct timespec left;
    EQUAL(result, 0);
    EQUAL(signals, 1);
    memcpy(&left, across(0, 13), sizeof left);
    CHECK(left.tv_sec > 5000 && left.tv_sec < 10000);
    // The handler has seen it.
    EQUAL(left_then, (int)left.tv_sec);
}

// ---- offsets ---------------------------------------------------------------------------------------------------------------

// A file of 100 bytes, and a pipe that is full.
enum { FULL = 65536 };
static void ready_offset(void)
{
    char bytes[FULL];
    pattern(bytes, sizeof bytes);
    OK(fds[0] = memfd_create("offset", 0));
    EQUAL(write(fds[0], bytes, 100), 100);
    OK(pipe(fds + 1));
    EQUAL(write(fds[2], bytes, FULL), FULL);
    int64_t at = 10;
    memcpy(across(0, 3), &at, 8);
}
static long splices(void) { return splice(fds[0], (void *)across(0, 3), fds[2], NULL, 50, 0); }
static long sends_file(void) { return sendfile(fds[2], fds[0], (void *)across(0, 3), 50); }
static void give_room(void)
{
    char bytes[FULL];
    size_t n = 0;
    while (n < FULL) {
        ssize_t now = read(fds[1], bytes, FULL - n);
        CHECK(now > 0);
        n += now;
    }
}
static void is_moved(long result)
{
    char bytes[100], all[100];
    int64_t at;
    EQUAL(result, 50);
    memcpy(&at, across(0, 3), 8);
    EQUAL(at, 60);
    pattern(all, 100);
    EQUAL(read(fds[1], bytes, 100), 50);
    CHECK(memcmp(bytes, all + 10, 50) == 0);
}
static void no_more(void)
{
    char byte;
    OK(fcntl(fds[1], F_SETFL, O_NONBLOCK));
    FAILS(read(fds[1], &byte, 1), EAGAIN);
}
// Refused: it has been moved.
static void was_moved(void)
{
    char bytes[100];
    EQUAL(read(fds[1], bytes, 100), 50);
    no_more();
}

// ---- how each is called --------------------------------------------------------------------------------------------------

#define LISTED(pages, ready, call, give, right, none, end) #call, pages, ready, call, give, right, none, end
static const struct call calls[] = {
    {LISTED(4, ready_pipe, read_long, write_long, is_long, no_bytes, close_all), .keeps = ~0u},
    {LISTED(4, ready_stream, read_long, write_long, is_long, no_bytes, close_all), .keeps = ~0u},
    {LISTED(2, ready_event, read_count, give_event, is_event, no_count, close_all)},
    {LISTED(2, ready_timer, read_count, give_timer, is_timer, no_count, close_all)},
    {LISTED(2, ready_signals, read_signal, give_signal, is_signal, no_signal, close_all)},
    {LISTED(2, ready_wait, wait_signal, give_signal, is_waited, no_signal, nothing)},
    {LISTED(2, ready_faults, read_fault, give_fault, is_fault, nothing, end_fault)},
    {LISTED(4, ready_accept, accept_one, give_connection, is_connection, no_connection, close_all)},
    {LISTED(4, ready_accept, accept4_one, give_connection, is_connection, no_connection, close_all)},
    {LISTED(7, ready_datagrams, receive_from, give_datagram, is_datagram, no_bytes, close_all)},
    {LISTED(11, ready_datagram_message, receive_message, give_datagram, is_message, no_bytes, close_passed), .reads = 1 << 6, .cuts = 3 << 9},
    {LISTED(11, ready_datagram_message, receive_many, give_datagram, is_many, no_bytes, close_passed), .reads = 1 << 6, .cuts = 3 << 9},
    {LISTED(11, ready_stream_message, receive_stream, give_datagram, is_stream_message, no_bytes, close_passed), .keeps = 15, .reads = 7 << 6, .cuts = 3 << 9},
    {LISTED(4, ready_child, wait_child, give_end, is_child, no_child, close_all)},
    {LISTED(4, ready_child, wait_id, give_end, is_id, no_child, close_all)},
    {LISTED(2, ready_epoll, wait_epoll, give_event, is_epoll, no_epoll, close_all), .keeps = ~0u},
    {LISTED(2, ready_poll, wait_poll, give_event, is_poll, nothing, close_all)},
    {LISTED(4, ready_select, wait_select, give_event, is_select, nothing, close_all)},
    {LISTED(2, ready_sleep, sleeps, give_interrupt, is_interrupted, nothing, nothing), .by_signal = 1},
    {LISTED(2, ready_sleep, sleeps_by_clock, give_interrupt, is_interrupted, nothing, nothing), .by_signal = 1},
    {LISTED(2, ready_offset, splices, give_room, is_moved, no_more, close_all)},
    {LISTED(2, ready_offset, sends_file, give_room, is_moved, no_more, close_all)},
};

// The other thread: what it lowers, as bits for pages, when the call sleeps, and then gives.
static struct {
    const struct call *call;
    unsigned lower;
} job;
// Both count calls; `back` those that have returned.
static _Atomic int asked, done, back;
static int slept;

// Not by sched_yield, which on a busy machine takes the time of who is waited for.
static int nap(void)
{
    struct timespec t = {0, 200000};
    return nanosleep(&t, NULL);
}

static char state_of_main(void)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", main_thread);
    int fd = open(path, O_RDONLY);
    OK(fd);
    ssize_t n = read(fd, text, sizeof text - 1);
    CHECK(n > 0);
    OK(close(fd));
    text[n] = 0;
    char *end = strrchr(text, ')');
    CHECK(end != NULL);
    return end[2];
}

static void lower(unsigned pages)
{
    for (int i = 0; i < PAGES; i++) {
        if (pages >> i & 1) OK(set(base + i * PAGE, 1, NONE, 0));
    }
}

static void *gives(void *unused)
{
    (void)unused;
    for (int seen = 0;;) {
        while (asked == seen) nap();
        seen = asked;
        if (job.call == NULL) return NULL;
        do slept = state_of_main() == 'S' && back != seen;
        while (!slept && back != seen && nap() == 0);
        lower(job.lower);
        job.call->give();
        done = seen;
    }
}

// With the call's datum given by the other thread once it sleeps, and pages lowered just before.
static long calls_with(const struct call *c, unsigned lowered)
{
    job.call = c;
    job.lower = lowered;
    asked++;
    long result = c->call();
    int error = errno;
    back = asked;
    while (done != asked) nap();
    errno = error;
    return result;
}

// The handlers.
static int again;
static void lowers_others(struct frame *f, struct block *b)
{
    (void)b;
    // Those that the call has passed are lowered once more, a few times.
    if (again-- <= 0) return;
    for (int i = 0; i < PAGES; i++) {
        char *page = base + i * PAGE;
        if ((f->address & -PAGE) != (uint64_t)page) OK(set(page, 1, NONE, 0));
    }
}
static void refuses(struct frame *f, struct block *b)
{
    (void)f;
    OK(q_upcall(0, 0, 0, 0));
    b->level = UNMANAGED;
}
static void skips(struct frame *f, struct block *b)
{
    CHECK(memcmp((char *)f->rip, "\x0f\x05", 2) == 0);
    f->rip += 2;
    f->saved[0] = -EFAULT;
    b->level = UNMANAGED;
}
static void rearm(struct block *b)
{
    b->handler = NULL;
    b->level = WRITE;
    b->calls = 0;
    OK(q_upcall(entry, b->stack, b->size, b));
}

static volatile int segments;
static void on_segv(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    segments++;
    OK(set((char *)((uint64_t)info->si_addr & -PAGE), 1, WRITE, 1));
}

static void begin(const struct call *c, struct block *b)
{
    rearm(b);
    OK(set(base, PAGES, WRITE, 1));
    memset(base, 0, PAGES * PAGE);
    c->ready();
}

static void each_page(const struct call *c, struct block *b)
{
    unsigned all = (1u << c->pages) - 1;
    for (int i = -1; i < c->pages; i++) {
        unsigned pages = i < 0 ? all : 1u << i;
        int number = i < 0 ? c->pages : 1;
        // Forbidden before.
        begin(c, b);
        lower(pages);
        c->right(calls_with(c, 0));
        EQUAL(b->calls, number);
        c->none();
        c->end();
        // While it sleeps.
        begin(c, b);
        c->right(calls_with(c, pages));
        CHECK(b->calls >= __builtin_popcount(pages & ~c->reads) && b->calls <= number);
        c->none();
        c->end();
        // And again while the handler runs.
        begin(c, b);
        again = 5;
        b->handler = lowers_others;
        c->right(calls_with(c, pages));
        CHECK((b->calls > 0) == ((pages & ~c->reads) != 0));
        c->none();
        c->end();
    }
}

// A refusal, when the call has begun or while it sleeps: it has taken what it can't give back, as on Linux.
static void refused(const struct call *c, struct block *b, unsigned before, unsigned asleep)
{
    begin(c, b);
    lower(before);
    b->handler = refuses;
    segments = 0;
    long result = calls_with(c, asleep);
    int error = errno;
    if (b->calls == 0 || (result != -1 && (before & c->reads) != 0)) {
        // It is not stored to.
        c->right(result);
        b->calls = 0;
    } else if (before & c->cuts) {
        OK(result);
        EQUAL(get_int((char *)header() + offsetof(struct msghdr, msg_flags)), MSG_CTRUNC);
    } else if (c->by_signal && asleep) {
        EQUAL(segments, 1);
        EQUAL(result, 0);
    } else {
        EQUAL(result, -1);
        EQUAL(error, EFAULT);
    }
    if (b->calls != 0 && (((before | asleep) & c->keeps) != 0 || !slept)) {
        rearm(b);
        c->right(c->call());
        EQUAL(b->calls, 1);
    } else if (b->calls != 0 && c->none == no_more) {
        was_moved();
    }
    c->none();
    c->end();
}

static void each_refusal(const struct call *c, struct block *b)
{
    for (int i = 0; i < c->pages; i++) {
        // Past the call: nothing has happened.
        begin(c, b);
        lower(1u << i);
        b->handler = skips;
        EQUAL(c->call(), -1);
        EQUAL(errno, EFAULT);
        EQUAL(b->calls, 1);
        rearm(b);
        OK(set(base, PAGES, WRITE, 1));
        c->right(calls_with(c, 0));
        EQUAL(b->calls, 0);
        c->none();
        c->end();
        refused(c, b, 1u << i, 0);
        refused(c, b, 0, 1u << i);
    }
}

// ---- what handlers may do --------------------------------------------------------------------------------------------------

static const struct call event_call = {LISTED(2, ready_event, read_count, give_event, is_event, no_count, close_all)};

extern char past_call[];
static void diverts(struct frame *f, struct block *b)
{
    f->rip = (uint64_t)past_call;
    b->level = UNMANAGED;
}
static __attribute__((noinline)) long read_or_not(void)
{
    long result = SYS_read;
    register long fd asm("rdi") = fds[0];
    register char *to asm("rsi") = across(0, 3);
    register long n asm("rdx") = 8;
    asm volatile("syscall\n jmp 1f\n .globl past_call\n past_call: mov $77, %0\n 1:"
                 : "+a"(result)
                 : "r"(fd), "r"(to), "r"(n)
                 : "rcx", "r11", "memory");
    return result;
}

static void goes_elsewhere(struct block *b)
{
    struct call c = event_call;
    c.call = read_or_not;
    begin(&c, b);
    b->handler = diverts;
    EQUAL(calls_with(&c, 1), 77);
    EQUAL(b->calls, 1);
    // It was taken, and it is not stored later.
    rearm(b);
    OK(set(base, PAGES, WRITE, 1));
    EQUAL(get_int(across(0, 3)), 0);
    EQUAL(get_int(across(0, 3)), 0);
    c.none();
    c.end();
}

static pid_t forked;
static void forks(struct frame *f, struct block *b)
{
    (void)f;
    if (b->calls == 1) OK(forked = fork());
}
static long read_in_both(void)
{
    long result = read_count();
    event_call.right(result);
    if (forked == 0) _exit(7);
    EQUAL(WEXITSTATUS(wait_for(forked)), 7);
    return result;
}
static void in_both(struct block *b)
{
    struct call c = event_call;
    c.call = read_in_both;
    begin(&c, b);
    b->handler = forks;
    EQUAL(calls_with(&c, 3), 8);
    c.end();
}

// A handler that calls with such a buffer itself, at another place.
static char *other;
static int inner;
static void calls_too(struct frame *f, struct block *b)
{
    (void)f;
    if (b->depth > 1) return;
    uint64_t count = 5;
    EQUAL(write(inner, &count, 8), 8);
    OK(set(other, 2, NONE, 0));
    EQUAL(read(inner, other + PAGE - 3, 8), 8);
    memcpy(&count, other + PAGE - 3, 8);
    EQUAL(count, 5);
}
static void nested(struct block *b)
{
    other = managed(2, WRITE);
    OK(inner = eventfd(0, 0));
    begin(&event_call, b);
    b->handler = calls_too;
    event_call.right(calls_with(&event_call, 3));
    EQUAL(b->calls, 2 + 2 * 2);
    event_call.none();
    event_call.end();
    OK(close(inner));
}

// The same with a store that is long.
static long receive_in_both(void)
{
    long result = receive_from();
    is_datagram(result);
    if (forked == 0) _exit(8);
    EQUAL(WEXITSTATUS(wait_for(forked)), 8);
    return result;
}
static void long_in_both(struct block *b)
{
    const struct call c = {LISTED(7, ready_datagrams, receive_in_both, give_datagram, is_datagram, no_bytes, close_all)};
    begin(&c, b);
    b->handler = forks;
    c.right(calls_with(&c, 127));
    CHECK(b->calls >= 3);
    c.end();
}

// Messages that are longer together than what a thread may owe: the call gives as many as it has kept, and both processes of a fork in
// between have these.
enum { MANY = 8, HUGE = 49 * PAGE };
static char *area;
static struct mmsghdr headers[MANY];
static struct iovec parts[MANY];
static void ready_many(void)
{
    int size = 2 * MANY * HUGE;
    ready_datagrams();
    OK(setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    area = managed(MANY * HUGE / PAGE, WRITE);
    memset(area, 0, MANY * HUGE);
    for (int i = 0; i < MANY; i++) {
        parts[i] = (struct iovec){area + i * HUGE, HUGE};
        headers[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &parts[i], .msg_iovlen = 1}};
    }
}
static void give_many(void)
{
    static char bytes[HUGE];
    socklen_t len;
    struct sockaddr_un un = named("level_calls", &len);
    OK(set(area, MANY * HUGE / PAGE, NONE, 0));
    for (int i = 0; i < MANY; i++) {
        pattern(bytes, HUGE);
        bytes[0] = i;
        EQUAL(sendto(fds[1], bytes, HUGE, 0, (struct sockaddr *)&un, len), HUGE);
    }
}
static long receive_huge(void)
{
    long n = syscall(SYS_recvmmsg, fds[0], headers, MANY, 0, NULL);
    CHECK(0 < n && n < MANY);
    for (int i = 0; i < n; i++) {
        EQUAL(headers[i].msg_len, HUGE);
        EQUAL(area[i * HUGE], i);
        area[i * HUGE] = 0;
        is_pattern(area + i * HUGE, HUGE);
    }
    if (forked == 0) _exit(9);
    EQUAL(WEXITSTATUS(wait_for(forked)), 9);
    return n;
}
static void too_much(struct block *b)
{
    const struct call c = {LISTED(0, ready_many, receive_huge, give_many, NULL, NULL, close_all)};
    begin(&c, b);
    b->handler = forks;
    OK(calls_with(&c, 0));
    CHECK(b->calls > 0);
    c.end();
    OK(munmap(area, MANY * HUGE));
}

// ---- what is met before the last store ---------------------------------------------------------------------------------------

// A call that reads what a level forbids, and then tells of that in another place, starts over.
static void fills_again(struct block *b)
{
    ready_faults();
    rearm(b);
    OK(set(base, PAGES, WRITE, 1));
    memset(base, 5, PAGE);
    for (int both = 0; both < 2; both++) {
        uint64_t *copy = (void *)(base + 2 * PAGE);
        memcpy(copy, (uint64_t[5]){(uint64_t)faulting, (uint64_t)base, PAGE}, 40);
        lower(1);
        // The answer can't be stored either: it is not owed.
        if (both) OK(set(base + 2 * PAGE, 1, READ, 0));
        b->calls = 0;
        OK(ioctl(fds[0], UFFDIO_COPY, copy));
        EQUAL(b->calls, 1 + both);
        EQUAL(copy[4], PAGE);
        EQUAL(*faulting, 5);
        OK(madvise(faulting, PAGE, MADV_DONTNEED));
    }
    OK(munmap(faulting, PAGE));
    close_all();
}

// The mask of signals can't be read, and what is left of the time is told, or can't be.
static void waits_again(struct block *b)
{
    uint64_t *mask = (void *)base;
    struct timespec *limit = (void *)(base + 2 * PAGE);
    OK(fds[0] = eventfd(1, 0));
    for (int how = 0; how < 4; how++) {
        rearm(b);
        OK(set(base, PAGES, WRITE, 1));
        *mask = 0;
        *limit = (struct timespec){1000, 0};
        struct pollfd one = {fds[0], POLLIN, 0};
        fd_set set_of;
        FD_ZERO(&set_of);
        FD_SET(fds[0], &set_of);
        uint64_t masked[2] = {(uint64_t)mask, 8};
        lower(1);
        if (how & 1) OK(set(base + 2 * PAGE, 1, READ, 0));
        EQUAL(how & 2 ? syscall(SYS_pselect6, fds[0] + 1, &set_of, NULL, NULL, limit, masked)
                      : syscall(SYS_ppoll, &one, 1, limit, mask, 8), 1);
        EQUAL(b->calls, 1 + (how & 1));
        CHECK(limit->tv_sec > 900);
    }
    close_all();
}

// A scan that has protected what it tells of: where it tells that, or where it ended, can't be stored to.
#define PAGEMAP_SCAN 0xc0606610
static void scans(struct block *b)
{
    enum { PROTECT = 2, IF_EMPTY = 1 << 13, NOBODY_WAITS = 1 << 15, MATCHING = 1, WRITTEN = 2 };
    ready_faults();
    close_all();
    OK(fds[0] = syscall(SYS_userfaultfd, 0));
    uint64_t api[3] = {0xaa, IF_EMPTY | NOBODY_WAITS}, what[4] = {(uint64_t)faulting, PAGE, PROTECT};
    OK(ioctl(fds[0], UFFDIO_API, api));
    OK(ioctl(fds[0], UFFDIO_REGISTER, what));
    OK(fds[1] = open("/proc/self/pagemap", O_RDONLY));
    for (int how = 0; how < 3; how++) {
        rearm(b);
        OK(set(base, PAGES, WRITE, 1));
        uint64_t *region = (void *)across(0, 8), *arg = (void *)(base + 4 * PAGE), first = (uint64_t)faulting;
        memset(region, 0, 24);
        memcpy(arg, (uint64_t[12]){96, MATCHING, first, first + PAGE, 0, (uint64_t)region, 1, 0, 0, WRITTEN, 0, WRITTEN}, 96);
        *(volatile char *)faulting = 1;
        if (how < 2) OK(set(base + how * PAGE, 1, NONE, 0));
        if (how == 2) OK(set(arg, 1, READ, 0));
        EQUAL(ioctl(fds[1], PAGEMAP_SCAN, arg), 1);
        EQUAL(b->calls, 1);
        EQUAL(region[0], first);
        EQUAL(region[1], first + PAGE);
        EQUAL(region[2], WRITTEN);
        EQUAL(arg[4], first + PAGE);
        // Once.
        EQUAL(ioctl(fds[1], PAGEMAP_SCAN, arg), 0);
    }
    OK(munmap(faulting, PAGE));
    close_all();
}

// ---- a child's id --------------------------------------------------------------------------------------------------------------

// The child, which has this memory and stack, finds its id where that is told as soon as it runs: it ends with 1 if so.
static long clone_and_look(uint64_t flags, int *at)
{
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal.
    uint64_t args[8] = {flags, 0, (uint64_t)at, (uint64_t)at, SIGCHLD};
    long result = SYS_clone3;
    register void *a asm("rdi") = args;
    register size_t size asm("rsi") = sizeof args;
    register int *word asm("r12") = at;
    asm volatile("syscall\n test %%rax, %%rax\n jnz 1f\n"
                 "mov $39, %%eax\n syscall\n" // getpid
                 "xor %%edi, %%edi\n cmp %%eax, (%%r12)\n sete %%dil\n"
                 "mov $231, %%eax\n syscall\n" // exit_group
                 "1:"
                 : "+a"(result), "+r"(a), "+r"(size)
                 : "r"(word)
                 : "rcx", "r11", "memory");
    return result;
}
static void tells_before(struct block *b)
{
    const uint64_t vfork_flags = 0x100 | 0x4000, tells[] = {1 << 20, 1 << 24};
    for (size_t i = 0; i < 2; i++) {
        rearm(b);
        OK(set(base, PAGES, WRITE, 1));
        int *at = (int *)base;
        *at = 0;
        OK(set(base, 1, READ, 0));
        long pid = clone_and_look(vfork_flags | tells[i], at);
        OK(pid);
        EQUAL(b->calls, 1);
        EQUAL(*at, pid);
        EQUAL(WEXITSTATUS(wait_for(pid)), 1);
        // A refusal leaves no child, for the call starts over, and no id.
        OK(set(base, PAGES, WRITE, 1));
        *at = 0;
        OK(set(base, 1, READ, 0));
        b->handler = skips;
        EQUAL(clone_and_look(vfork_flags | tells[i], at), -EFAULT);
        EQUAL(*at, 0);
        FAILS(waitpid(-1, NULL, WNOHANG), ECHILD);
    }
    rearm(b);
    OK(set(base, PAGES, WRITE, 1));
}

// Pages are lowered all the time: calls that don't sleep, or hardly.
static _Atomic int over;
static void *lowers_always(void *unused)
{
    (void)unused;
    while (!over) {
        lower((1u << PAGES) - 1);
        sched_yield();
    }
    return NULL;
}
static void contended(int rounds)
{
    pthread_t thread;
    int lowest = dup(0);
    OK(lowest);
    OK(close(lowest));
    OK(set(base, PAGES, WRITE, 1));
    RETURNS(pthread_create(&thread, NULL, lowers_always, NULL), 0);
    int event = eventfd(0, 0), made[2];
    OK(event);
    sigset_t set = the_signal(), was;
    for (int i = 1; i <= rounds; i++) {
        uint64_t count = i;
        EQUAL(write(event, &count, 8), 8);
        EQUAL(read(event, across(0, 3), 8), 8);
        memcpy(&count, across(0, 3), 8);
        EQUAL(count, i);
        // What was blocked, told at the change.
        OK(syscall(SYS_rt_sigprocmask, i % 2 ? SIG_UNBLOCK : SIG_BLOCK, &set, across(2, 4), 8));
        memcpy(&was, across(2, 4), 8);
        EQUAL(sigismember(&was, SIGRTMIN), i % 2);
        OK(pipe((int *)across(4, 4)));
        memcpy(made, across(4, 4), sizeof made);
        EQUAL(made[0], event + 1);
        EQUAL(made[1], event + 2);
        OK(close(made[0]));
        OK(close(made[1]));
        struct itimerval one = {.it_value.tv_sec = 1000 + i};
        OK(setitimer(ITIMER_REAL, &one, (void *)across(6, 20)));
        memcpy(&one, across(6, 20), sizeof one);
        CHECK(i == 1 || (one.it_value.tv_sec >= 990 + i - 1 && one.it_value.tv_sec <= 1000 + i - 1));
    }
    OK(sigprocmask(SIG_BLOCK, &set, NULL));
    struct itimerval none = {0};
    OK(setitimer(ITIMER_REAL, &none, NULL));
    over = 1;
    RETURNS(pthread_join(thread, NULL), 0);
    OK(close(event));
}

int main(int argc, char **argv)
{
    announced();
    if (features == 0) {
        passed("absent");
        return finished("level_calls");
    }
    main_thread = gettid();
    memset(fds, -1, sizeof fds);
    sigset_t set = the_signal();
    OK(sigprocmask(SIG_BLOCK, &set, NULL));
    struct sigaction action = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO};
    OK(sigaction(SIGSEGV, &action, NULL));
    base = managed(PAGES, WRITE);
    struct block b;
    arm(&b);
    pthread_t other_thread;
    RETURNS(pthread_create(&other_thread, NULL, gives, NULL), 0);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        each_page(&calls[i], &b);
        each_refusal(&calls[i], &b);
        passed(calls[i].name);
    }
    goes_elsewhere(&b);
    in_both(&b);
    long_in_both(&b);
    too_much(&b);
    nested(&b);
    passed("handlers");
    fills_again(&b);
    waits_again(&b);
    passed("met before");
    scans(&b);
    passed("scans");
    tells_before(&b);
    passed("ids");
    rearm(&b);
    job.call = NULL;
    asked++;
    RETURNS(pthread_join(other_thread, NULL), 0);
    contended(argc > 1 ? atoi(argv[1]) : 300);
    passed("contended");
    disarm(&b);
    return finished("level_calls");
}
