// calls_epoll: epoll over pipes, eventfds, sockets, other epolls.
//
// Proves: what create, ctl and wait accept and refuse; level, edge and one-shot reports; that closing a file takes it
// out; nesting and its limit; time limits; the signal mask of pwait; many waiters and a waker in another thread.
//
// calls: epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait
#include "check.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

static int make(void)
{
    int ep = epoll_create1(0);
    OK(ep);
    return ep;
}

static int ctl(int ep, int op, int fd, uint32_t events, uint64_t data)
{
    struct epoll_event e = {.events = events, .data.u64 = data};
    return epoll_ctl(ep, op, fd, &e);
}

// The events of the one report that there is now, 0 if there is none.
static uint32_t report(int ep)
{
    struct epoll_event e[4];
    int n = epoll_wait(ep, e, 4, 0);
    CHECK(n == 0 || n == 1);
    return n == 0 ? 0 : e[0].events;
}

static void creation(void)
{
    FAILS(syscall(SYS_epoll_create, 0), EINVAL);
    FAILS(syscall(SYS_epoll_create, -1), EINVAL);
    FAILS(epoll_create1(1), EINVAL);
    int ep = syscall(SYS_epoll_create, 1);
    OK(ep);
    EQUAL(fcntl(ep, F_GETFD), 0);
    OK(close(ep));
    ep = epoll_create1(EPOLL_CLOEXEC);
    EQUAL(fcntl(ep, F_GETFD), FD_CLOEXEC);
    char c;
    FAILS(read(ep, &c, 1), EINVAL);
    FAILS(write(ep, &c, 1), EINVAL);
    OK(close(ep));
}

static void refusals(void)
{
    int ep = make(), ev = eventfd(0, 0), file = open("/proc/self/stat", O_RDONLY), dir = open("/", O_RDONLY);
    struct epoll_event e[2];
    FAILS(ctl(-1, EPOLL_CTL_ADD, ev, EPOLLIN, 0), EBADF);
    FAILS(ctl(ep, EPOLL_CTL_ADD, -1, EPOLLIN, 0), EBADF);
    FAILS(ctl(ev, EPOLL_CTL_ADD, ev, EPOLLIN, 0), EINVAL);
    FAILS(ctl(ep, EPOLL_CTL_ADD, ep, EPOLLIN, 0), EINVAL);
    FAILS(ctl(ev, EPOLL_CTL_ADD, ep, EPOLLIN, 0), EINVAL);
    FAILS(ctl(ep, EPOLL_CTL_ADD, file, EPOLLIN, 0), EPERM);
    FAILS(ctl(ep, EPOLL_CTL_ADD, dir, EPOLLIN, 0), EPERM);
    FAILS(ctl(ep, EPOLL_CTL_MOD, ev, EPOLLIN, 0), ENOENT);
    FAILS(ctl(ep, EPOLL_CTL_DEL, ev, EPOLLIN, 0), ENOENT);
    FAILS(ctl(ep, 9, ev, EPOLLIN, 0), EINVAL);
    FAILS(syscall(SYS_epoll_ctl, ep, EPOLL_CTL_ADD, ev, 8), EFAULT);
    OK(ctl(ep, EPOLL_CTL_ADD, ev, EPOLLIN, 0));
    FAILS(ctl(ep, EPOLL_CTL_ADD, ev, EPOLLIN, 0), EEXIST);
    FAILS(ctl(ep, EPOLL_CTL_MOD, ev, EPOLLIN | EPOLLEXCLUSIVE, 0), EINVAL);
    OK(epoll_ctl(ep, EPOLL_CTL_DEL, ev, NULL));
    OK(ctl(ep, EPOLL_CTL_ADD, ev, EPOLLIN | EPOLLEXCLUSIVE, 0));
    FAILS(ctl(ep, EPOLL_CTL_MOD, ev, EPOLLIN, 0), EINVAL);
    OK(ctl(ep, EPOLL_CTL_DEL, ev, 0, 0));
    FAILS(ctl(ep, EPOLL_CTL_ADD, ev, EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT, 0), EINVAL);
    FAILS(epoll_wait(ep, e, 0, 0), EINVAL);
    FAILS(epoll_wait(ep, e, -1, 0), EINVAL);
    FAILS(epoll_wait(ev, e, 1, 0), EINVAL);
    FAILS(epoll_wait(-1, e, 1, 0), EBADF);
    FAILS(syscall(SYS_epoll_wait, ep, (void *)-4096, 1, 0), EFAULT);
    OK(ctl(ep, EPOLL_CTL_ADD, ev, EPOLLIN, 0));
    OK(eventfd_write(ev, 1));
    FAILS(syscall(SYS_epoll_wait, ep, (void *)8, 1, 0), EFAULT);
    EQUAL(report(ep), EPOLLIN); // it was not lost
    OK(close(ep)); OK(close(ev)); OK(close(file)); OK(close(dir));
}

static void levels(void)
{
    int ep = make(), p[2];
    OK(pipe(p));
    OK(ctl(ep, EPOLL_CTL_ADD, p[0], EPOLLIN, 77));
    EQUAL(report(ep), 0);
    EQUAL(write(p[1], "ab", 2), 2);
    for (int i = 0; i < 3; i++) EQUAL(report(ep), EPOLLIN);
    struct epoll_event e;
    EQUAL(epoll_wait(ep, &e, 1, -1), 1);
    EQUAL(e.data.u64, 77);
    char c[2];
    EQUAL(read(p[0], c, 1), 1);
    EQUAL(report(ep), EPOLLIN);
    EQUAL(read(p[0], c, 1), 1);
    EQUAL(report(ep), 0);
    OK(ctl(ep, EPOLL_CTL_MOD, p[0], EPOLLIN | EPOLLRDNORM, 78));
    EQUAL(write(p[1], "c", 1), 1);
    EQUAL(report(ep), EPOLLIN | EPOLLRDNORM);
    OK(ctl(ep, EPOLL_CTL_MOD, p[0], 0, 78));
    EQUAL(report(ep), 0);
    OK(close(p[1]));
    EQUAL(report(ep), EPOLLHUP); // told though not asked for
    OK(close(p[0]));
    EQUAL(report(ep), 0); // closed: out
    OK(close(ep));
}

static void edges(void)
{
    int ep = make(), p[2];
    OK(pipe2(p, O_NONBLOCK));
    OK(ctl(ep, EPOLL_CTL_ADD, p[0], EPOLLIN | EPOLLET, 0));
    OK(ctl(ep, EPOLL_CTL_ADD, p[1], EPOLLOUT | EPOLLET, 0));
    EQUAL(report(ep), EPOLLOUT); // ready when added
    EQUAL(report(ep), 0);
    char c[8];
    for (int i = 0; i < 3; i++) {
        EQUAL(write(p[1], "a", 1), 1);
        EQUAL(report(ep), EPOLLIN); // each write, though nothing was read
        EQUAL(report(ep), 0);
    }
    EQUAL(read(p[0], c, 8), 3);
    EQUAL(report(ep) & EPOLLIN, 0);
    OK(ctl(ep, EPOLL_CTL_MOD, p[1], EPOLLOUT | EPOLLET, 0)); // modifying reports anew
    EQUAL(report(ep), EPOLLOUT);
    OK(close(p[0])); OK(close(p[1]));
    int ev = eventfd(0, 0);
    OK(ctl(ep, EPOLL_CTL_ADD, ev, EPOLLIN | EPOLLET, 0));
    for (int i = 0; i < 3; i++) {
        OK(eventfd_write(ev, 1));
        EQUAL(report(ep), EPOLLIN);
        EQUAL(report(ep), 0);
    }
    OK(close(ev)); OK(close(ep));
}

static void once(void)
{
    int ep = make(), ev = eventfd(1, 0);
    OK(ctl(ep, EPOLL_CTL_ADD, ev, EPOLLIN | EPOLLONESHOT, 5));
    EQUAL(report(ep), EPOLLIN);
    EQUAL(report(ep), 0);
    OK(eventfd_write(ev, 1));
    EQUAL(report(ep), 0);
    OK(ctl(ep, EPOLL_CTL_MOD, ev, EPOLLIN | EPOLLONESHOT, 6));
    struct epoll_event e;
    EQUAL(epoll_wait(ep, &e, 1, 0), 1);
    EQUAL(e.data.u64, 6);
    EQUAL(report(ep), 0);
    OK(close(ev)); OK(close(ep));
}

static void copies_and_closing(void)
{
    int ep = make(), ev = eventfd(1, 0), copy = dup(ev);
    OK(ctl(ep, EPOLL_CTL_ADD, ev, EPOLLIN, 1));
    OK(ctl(ep, EPOLL_CTL_ADD, copy, EPOLLIN, 2)); // another descriptor: another item
    struct epoll_event e[8];
    EQUAL(epoll_wait(ep, e, 8, 0), 2);
    EQUAL(e[0].data.u64 + e[1].data.u64, 3);
    EQUAL(epoll_wait(ep, e, 1, 0), 1);
    int first = e[0].data.u64;
    EQUAL(epoll_wait(ep, e, 1, 0), 1);
    EQUAL(first + e[0].data.u64, 3); // in turns
    OK(close(ev));
    EQUAL(epoll_wait(ep, e, 8, 0), 2); // the file is open still
    OK(close(copy));
    EQUAL(epoll_wait(ep, e, 8, 0), 0);
    int fds[100];
    for (int i = 0; i < 100; i++) {
        fds[i] = eventfd(1, 0);
        OK(ctl(ep, EPOLL_CTL_ADD, fds[i], EPOLLIN, i));
    }
    struct epoll_event all[200];
    EQUAL(epoll_wait(ep, all, 200, 0), 100);
    EQUAL(epoll_wait(ep, all, 60, 0), 60);
    for (int i = 0; i < 100; i += 2) OK(close(fds[i]));
    EQUAL(epoll_wait(ep, all, 200, 0), 50);
    OK(close(ep));
    for (int i = 1; i < 100; i += 2) OK(close(fds[i]));
}

static void nesting(void)
{
    int a = make(), b = make(), ev = eventfd(0, 0);
    OK(ctl(a, EPOLL_CTL_ADD, b, EPOLLIN, 1));
    FAILS(ctl(b, EPOLL_CTL_ADD, a, EPOLLIN, 1), ELOOP);
    FAILS(ctl(a, EPOLL_CTL_ADD, make(), EPOLLIN | EPOLLEXCLUSIVE, 1), EINVAL);
    OK(ctl(b, EPOLL_CTL_ADD, ev, EPOLLIN, 2));
    EQUAL(report(a), 0);
    OK(eventfd_write(ev, 1));
    EQUAL(report(a), EPOLLIN);
    struct pollfd p = {a, POLLIN, 0};
    EQUAL(poll(&p, 1, 0), 1);
    EQUAL(p.revents, POLLIN);
    eventfd_t got;
    OK(eventfd_read(ev, &got));
    EQUAL(report(a), 0);
    EQUAL(poll(&p, 1, 0), 0);
    int chain[8];
    for (int i = 0; i < 8; i++) chain[i] = make();
    int depth = 0;
    while (depth < 7 && ctl(chain[depth + 1], EPOLL_CTL_ADD, chain[depth], EPOLLIN, 0) == 0) depth++;
    EQUAL(errno, ELOOP);
    printf("a chain of %d\n", depth);
    for (int i = 0; i < 8; i++) OK(close(chain[i]));
    OK(close(a)); OK(close(b)); OK(close(ev));
}

static void limits_of_time(void)
{
    int ep = make();
    struct epoll_event e;
    uint64_t start = now_ns();
    EQUAL(epoll_wait(ep, &e, 1, 30), 0);
    CHECK(now_ns() - start >= 30000000);
    struct timespec t = {0, 20000000};
    start = now_ns();
    EQUAL(syscall(SYS_epoll_pwait2, ep, &e, 1, &t, NULL, 8), 0);
    CHECK(now_ns() - start >= 20000000);
    t = (struct timespec){0, 1000000000};
    FAILS(syscall(SYS_epoll_pwait2, ep, &e, 1, &t, NULL, 8), EINVAL);
    FAILS(syscall(SYS_epoll_pwait2, ep, &e, 1, (void *)8, NULL, 8), EFAULT);
    OK(close(ep));
}

static volatile sig_atomic_t handled;
static void on_signal(int s) { (void)s, handled++; }

static void masks(void)
{
    int ep = make();
    struct epoll_event e;
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    OK(sigaction(SIGUSR1, &action, NULL));
    sigset_t set, none;
    sigemptyset(&none), sigemptyset(&set), sigaddset(&set, SIGUSR1);
    OK(sigprocmask(SIG_BLOCK, &set, NULL));
    OK(raise(SIGUSR1));
    EQUAL(epoll_wait(ep, &e, 1, 0), 0);
    EQUAL(handled, 0);
    FAILS(epoll_pwait(ep, &e, 1, -1, &none), EINTR); // never restarted
    EQUAL(handled, 1);
    sigset_t now;
    OK(sigprocmask(SIG_SETMASK, NULL, &now));
    CHECK(sigismember(&now, SIGUSR1));
    FAILS(syscall(SYS_epoll_pwait, ep, &e, 1, 0, &none, 4), EINVAL);
    OK(sigprocmask(SIG_UNBLOCK, &set, NULL));
    OK(close(ep));
}

#define ROUNDS 2000
static int shared_ep, shared_ev;
static void *echo(void *unused)
{
    struct epoll_event e;
    for (int seen = 0; seen < ROUNDS;) {
        EQUAL(epoll_wait(shared_ep, &e, 1, -1), 1);
        eventfd_t got;
        OK(eventfd_read(e.data.fd, &got));
        seen += got;
    }
    return unused;
}

static void threads(void)
{
    for (uint32_t mode = 0; mode < 2; mode++) {
        shared_ep = make(), shared_ev = eventfd(0, EFD_NONBLOCK);
        OK(ctl(shared_ep, EPOLL_CTL_ADD, shared_ev, EPOLLIN | (mode ? EPOLLET : 0), shared_ev));
        pthread_t thread;
        RETURNS(pthread_create(&thread, NULL, echo, NULL), 0);
        for (int i = 0; i < ROUNDS; i++) OK(eventfd_write(shared_ev, 1));
        RETURNS(pthread_join(thread, NULL), 0);
        OK(close(shared_ep)); OK(close(shared_ev));
    }
}

int main(void)
{
    RUN(creation);
    RUN(refusals);
    RUN(levels);
    RUN(edges);
    RUN(once);
    RUN(copies_and_closing);
    RUN(nesting);
    RUN(limits_of_time);
    RUN(masks);
    RUN(threads);
    return finished("calls_epoll");
}
