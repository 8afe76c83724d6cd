// calls_socket: sockets of the family AF_UNIX.
//
// Proves: what each call accepts and refuses; pairs, named and abstract streams, datagrams and sequenced packets; waiting,
// readiness, shutdown and closing, SIGPIPE; files and credentials in messages, also in rings and long chains; options.
//
// calls: accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmsg sendmsg sendto
// calls: setsockopt shutdown socket socketpair
#include "check.h"
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>

static struct sockaddr_un name(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    strcpy(a.sun_path, path);
    return a;
}
#define SIZE(a) (offsetof(struct sockaddr_un, sun_path) + strlen((a).sun_path) + 1)
#define ADDRESS(a) (struct sockaddr *)&(a)

static short ready(int fd)
{
    struct pollfd p = {fd, POLLIN | POLLOUT | POLLRDHUP, 0};
    EQUAL(poll(&p, 1, 0) >= 0, 1);
    return p.revents;
}

static void creation(void)
{
    int s[2];
    FAILS(socket(AF_UNIX, SOCK_STREAM, 6), EPROTONOSUPPORT);
    FAILS(socket(AF_UNIX, 4, 0), ESOCKTNOSUPPORT);
    FAILS(socket(AF_UNIX, 11, 0), EINVAL);
    FAILS(socket(AF_UNIX, SOCK_STREAM | 0x100, 0), EINVAL);
    FAILS(socket(60, SOCK_STREAM, 0), EAFNOSUPPORT);
    FAILS(socket(-1, SOCK_STREAM, 0), EAFNOSUPPORT);
    FAILS(socketpair(AF_UNIX, 4, 0, s), ESOCKTNOSUPPORT);
    FAILS(syscall(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, 8), EFAULT);
    int a = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    OK(a);
    EQUAL(fcntl(a, F_GETFD), FD_CLOEXEC);
    EQUAL(fcntl(a, F_GETFL), O_RDWR | O_NONBLOCK);
    struct stat st;
    OK(fstat(a, &st));
    CHECK(S_ISSOCK(st.st_mode));
    FAILS(lseek(a, 0, SEEK_SET), ESPIPE);
    OK(close(a));
    OK(socketpair(AF_UNIX, SOCK_STREAM, AF_UNIX, s));
    EQUAL(fcntl(s[0], F_GETFD), 0);
    OK(close(s[0])); OK(close(s[1]));
    int p[2];
    OK(pipe(p));
    FAILS(listen(p[0], 1), ENOTSOCK);
    FAILS(listen(-1, 1), EBADF);
    FAILS(send(p[1], "x", 1, 0), ENOTSOCK);
    OK(close(p[0])); OK(close(p[1]));
}

static void pairs(void)
{
    char b[64];
    int s[2];
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    EQUAL(ready(s[0]), POLLOUT);
    EQUAL(write(s[0], "hello", 5), 5);
    EQUAL(send(s[0], " world", 6, 0), 6);
    EQUAL(ready(s[1]), POLLIN | POLLOUT);
    int n;
    OK(ioctl(s[1], FIONREAD, &n));
    EQUAL(n, 11);
    EQUAL(recv(s[1], b, 3, MSG_PEEK), 3);
    EQUAL(read(s[1], b, 64), 11); // a stream: writes run together
    CHECK(memcmp(b, "hello world", 11) == 0);
    FAILS(recv(s[1], b, 64, MSG_DONTWAIT), EAGAIN);
    struct iovec v[2] = {{"ab", 2}, {"cd", 2}};
    EQUAL(writev(s[1], v, 2), 4);
    EQUAL(read(s[0], b, 3), 3);
    EQUAL(read(s[0], b, 3), 1);
    FAILS(write(s[0], (void *)8, 5), EFAULT);
    EQUAL(write(s[0], "x", 1), 1);
    FAILS(read(s[1], (void *)8, 5), EFAULT);
    EQUAL(read(s[1], b, 5), 1); // it stayed
    FAILS(pread(s[0], b, 1, 0), ESPIPE);
    struct sockaddr_un a;
    socklen_t len = sizeof a;
    OK(getsockname(s[0], ADDRESS(a), &len));
    EQUAL(len, 2);
    EQUAL(a.sun_family, AF_UNIX);
    len = sizeof a;
    OK(getpeername(s[0], ADDRESS(a), &len));
    EQUAL(len, 2);
    len = -1;
    FAILS(getpeername(s[0], ADDRESS(a), &len), EINVAL);
    FAILS(syscall(SYS_getpeername, s[0], &a, 8), EFAULT);
    EQUAL(write(s[0], "last", 4), 4);
    OK(close(s[0]));
    EQUAL(ready(s[1]), POLLIN | POLLOUT | POLLRDHUP | POLLHUP);
    EQUAL(read(s[1], b, 64), 4);
    EQUAL(read(s[1], b, 64), 0);
    signal(SIGPIPE, SIG_IGN);
    FAILS(write(s[1], "x", 1), EPIPE);
    OK(close(s[1]));
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    EQUAL(write(s[0], "unread", 6), 6);
    OK(close(s[1]));
    EQUAL(ready(s[0]), POLLIN | POLLOUT | POLLRDHUP | POLLHUP | POLLERR);
    FAILS(read(s[0], b, 1), ECONNRESET); // once
    EQUAL(read(s[0], b, 1), 0);
    OK(close(s[0]));
}

static volatile sig_atomic_t pipes;
static void on_pipe(int s) { (void)s, pipes++; }

static void broken_pipes(void)
{
    int types[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM};
    for (int i = 0; i < 3; i++) {
        int s[2];
        signal(SIGPIPE, on_pipe);
        pipes = 0;
        OK(socketpair(AF_UNIX, types[i], 0, s));
        OK(close(s[1]));
        int sent = send(s[0], "x", 1, MSG_NOSIGNAL), first = errno;
        EQUAL(sent, -1);
        EQUAL(pipes, 0);
        sent = send(s[0], "x", 1, 0);
        printf("type %d: errno %d then %d, %d signals\n", types[i], first, errno, (int)pipes);
        OK(close(s[0]));
        OK(socketpair(AF_UNIX, types[i], 0, s));
        OK(shutdown(s[0], SHUT_WR));
        FAILS(send(s[0], "x", 1, MSG_NOSIGNAL), EPIPE);
        char c;
        if (types[i] != SOCK_DGRAM) EQUAL(recv(s[1], &c, 1, 0), 0);
        EQUAL(send(s[1], "y", 1, 0), 1);
        EQUAL(recv(s[0], &c, 1, 0), 1);
        OK(shutdown(s[0], SHUT_RD));
        FAILS(send(s[1], "y", 1, MSG_NOSIGNAL), EPIPE);
        printf("poll %x\n", ready(s[0]));
        OK(close(s[0])); OK(close(s[1]));
    }
    int s[2];
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    FAILS(shutdown(s[0], 3), EINVAL);
    FAILS(shutdown(s[0], -1), EINVAL);
    OK(close(s[0])); OK(close(s[1]));
}

static void *connect_later(void *path)
{
    struct sockaddr_un a = name(path);
    sleep_ms(20);
    int c = socket(AF_UNIX, SOCK_STREAM, 0);
    OK(connect(c, ADDRESS(a), SIZE(a)));
    EQUAL(write(c, "hi", 2), 2);
    char b[8];
    EQUAL(read(c, b, 8), 3);
    OK(close(c));
    return NULL;
}

static void named_streams(void)
{
    char path[] = "/tmp/calls_socket.XXXXXX";
    CHECK(mkdtemp(path) != NULL);
    OK(chdir(path));
    struct sockaddr_un a = name("listener"), got;
    int l = socket(AF_UNIX, SOCK_STREAM, 0), c = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    char b[8];
    EQUAL(ready(l), POLLOUT | POLLHUP);
    FAILS(listen(l, 1), EINVAL);
    FAILS(accept(l, NULL, NULL), EINVAL);
    FAILS(read(l, b, 1), EINVAL);
    FAILS(send(l, b, 1, 0), ENOTCONN);
    FAILS(connect(c, ADDRESS(a), SIZE(a)), ENOENT);
    FAILS(bind(l, ADDRESS(a), 1), EINVAL);
    FAILS(bind(l, ADDRESS(a), 200), EINVAL);
    FAILS(bind(l, ADDRESS(a), -1), EINVAL);
    FAILS(syscall(SYS_bind, l, 8, 10), EFAULT);
    struct sockaddr_un wrong = a;
    wrong.sun_family = AF_INET;
    FAILS(bind(l, ADDRESS(wrong), SIZE(a)), EINVAL);
    OK(bind(l, ADDRESS(a), SIZE(a)));
    FAILS(bind(l, ADDRESS(a), SIZE(a)), EADDRINUSE);
    struct sockaddr_un fresh = name("fresh");
    FAILS(bind(l, ADDRESS(fresh), SIZE(fresh)), EINVAL);
    OK(bind(l, ADDRESS(fresh), 2)); // has a name: none is chosen
    FAILS(bind(c, ADDRESS(a), SIZE(a)), EADDRINUSE);
    FAILS(connect(c, ADDRESS(a), SIZE(a)), ECONNREFUSED);
    struct stat st;
    OK(stat("listener", &st));
    CHECK(S_ISSOCK(st.st_mode));
    FAILS(open("listener", O_RDWR), ENXIO);
    FAILS(getpeername(l, ADDRESS(got), &(socklen_t){sizeof got}), ENOTCONN);
    OK(listen(l, 1));
    int on;
    OK(getsockopt(l, SOL_SOCKET, SO_ACCEPTCONN, &on, &(socklen_t){4}));
    EQUAL(on, 1);
    EQUAL(ready(l), 0);
    OK(fcntl(l, F_SETFL, O_NONBLOCK));
    FAILS(accept(l, NULL, NULL), EAGAIN);
    FAILS(connect(l, ADDRESS(a), SIZE(a)), EINVAL);
    int d = socket(AF_UNIX, SOCK_DGRAM, 0);
    FAILS(connect(d, ADDRESS(a), SIZE(a)), EPROTOTYPE);
    FAILS(listen(d, 1), EOPNOTSUPP);
    FAILS(accept(d, NULL, NULL), EOPNOTSUPP);
    OK(close(d));
    OK(connect(c, ADDRESS(a), SIZE(a)));
    FAILS(connect(c, ADDRESS(a), SIZE(a)), EISCONN);
    EQUAL(ready(l), POLLIN);
    EQUAL(ready(c), POLLOUT);
    EQUAL(write(c, "early", 5), 5);
    int others[4], full = 0;
    while (full < 4) {
        others[full] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (connect(others[full], ADDRESS(a), SIZE(a)) == -1) break;
        full++;
    }
    EQUAL(errno, EAGAIN);
    EQUAL(full, 1); // a list of 1 holds 2
    socklen_t len = sizeof got;
    FAILS(syscall(SYS_accept4, l, NULL, NULL, 1), EINVAL);
    int s = syscall(SYS_accept4, l, &got, &len, SOCK_CLOEXEC);
    OK(s);
    EQUAL(len, 2); // the other side has no name
    EQUAL(fcntl(s, F_GETFD), FD_CLOEXEC);
    EQUAL(fcntl(s, F_GETFL), O_RDWR);
    EQUAL(read(s, b, 8), 5);
    len = sizeof got;
    OK(getsockname(s, ADDRESS(got), &len));
    EQUAL(len, SIZE(a));
    EQUAL(strcmp(got.sun_path, "listener"), 0);
    memset(&got, 0, sizeof got);
    len = 5;
    OK(getpeername(c, ADDRESS(got), &len));
    EQUAL(len, SIZE(a)); // cut, but its length told
    EQUAL(strcmp(got.sun_path, "lis"), 0);
    struct { int pid, uid, gid; } who;
    len = sizeof who;
    OK(getsockopt(c, SOL_SOCKET, SO_PEERCRED, &who, &len));
    EQUAL(who.pid, getpid());
    FAILS(sendto(s, b, 1, 0, ADDRESS(a), SIZE(a)), EISCONN);
    OK(close(l)); // who waits is reset
    FAILS(read(others[0], b, 1), ECONNRESET);
    FAILS(connect(others[1], ADDRESS(a), SIZE(a)), ECONNREFUSED);
    OK(close(others[0])); OK(close(others[1])); OK(close(s)); OK(close(c));
    OK(unlink("listener"));
    l = socket(AF_UNIX, SOCK_STREAM, 0);
    OK(bind(l, ADDRESS(a), SIZE(a)));
    OK(listen(l, 5));
    pthread_t thread;
    RETURNS(pthread_create(&thread, NULL, connect_later, "listener"), 0);
    s = accept(l, NULL, NULL);
    EQUAL(recv(s, b, 8, 0), 2);
    EQUAL(write(s, "bye", 3), 3);
    RETURNS(pthread_join(thread, NULL), 0);
    OK(close(s)); OK(close(l));
    OK(unlink("listener"));
    OK(chdir("/"));
    OK(rmdir(path));
}

static void abstract_names(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX}, got;
    int n = snprintf(a.sun_path + 1, 100, "quire calls %d", getpid());
    socklen_t size = 2 + 1 + n, len = sizeof got;
    int l = socket(AF_UNIX, SOCK_SEQPACKET, 0), c = socket(AF_UNIX, SOCK_SEQPACKET, 0), o = socket(AF_UNIX, SOCK_STREAM, 0);
    FAILS(connect(c, ADDRESS(a), size), ECONNREFUSED);
    OK(bind(l, ADDRESS(a), size));
    FAILS(bind(c, ADDRESS(a), size), EADDRINUSE);
    OK(bind(o, ADDRESS(a), size)); // another style: another name
    OK(listen(l, 5));
    OK(connect(c, ADDRESS(a), size));
    int s = accept(l, NULL, NULL);
    OK(getpeername(c, ADDRESS(got), &len));
    EQUAL(len, size);
    EQUAL(memcmp(&got, &a, size), 0);
    char b[8];
    FAILS(recv(l, b, 1, 0), ENOTCONN);
    EQUAL(send(c, "one", 3, 0), 3);
    EQUAL(send(c, "second", 6, 0), 6);
    EQUAL(recv(s, b, 8, 0), 3); // packets stay apart
    EQUAL(recv(s, b, 2, 0), 2); // and are cut
    FAILS(recv(s, b, 8, MSG_DONTWAIT), EAGAIN);
    EQUAL(send(c, "longer", 6, 0), 6);
    EQUAL(recv(s, b, 2, MSG_TRUNC), 6);
    OK(close(l)); OK(close(s));
    EQUAL(recv(c, b, 8, 0), 0);
    OK(close(c));
    l = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    OK(bind(l, ADDRESS(a), size)); // free again
    OK(close(l)); OK(close(o));
    l = socket(AF_UNIX, SOCK_DGRAM, 0);
    OK(bind(l, ADDRESS(a), 2)); // a name of the kernel's choice
    len = sizeof got;
    OK(getsockname(l, ADDRESS(got), &len));
    EQUAL(len, 8);
    EQUAL(got.sun_path[0], 0);
    OK(close(l));
}

static void datagrams(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX}, b = a, got;
    socklen_t na = 3 + snprintf(a.sun_path + 1, 100, "quire a %d", getpid());
    socklen_t nb = 3 + snprintf(b.sun_path + 1, 100, "quire b %d", getpid());
    int x = socket(AF_UNIX, SOCK_DGRAM, 0), y = socket(AF_UNIX, SOCK_DGRAM, 0), z = socket(AF_UNIX, SOCK_DGRAM, 0);
    char buffer[64];
    FAILS(send(x, "x", 1, 0), ENOTCONN);
    FAILS(sendto(x, "x", 1, 0, ADDRESS(b), nb), ECONNREFUSED);
    FAILS(sendto(x, "x", 1, 0, ADDRESS(b), 1), EINVAL);
    OK(bind(x, ADDRESS(a), na));
    OK(bind(y, ADDRESS(b), nb));
    EQUAL(sendto(x, "hello", 5, 0, ADDRESS(b), nb), 5);
    EQUAL(sendto(x, "", 0, 0, ADDRESS(b), nb), 0);
    EQUAL(sendto(z, "nameless", 8, 0, ADDRESS(b), nb), 8);
    EQUAL(ready(y), POLLIN | POLLOUT);
    int n;
    OK(ioctl(y, FIONREAD, &n));
    EQUAL(n, 5);
    socklen_t len = sizeof got;
    EQUAL(recvfrom(y, buffer, 64, 0, ADDRESS(got), &len), 5);
    EQUAL(len, na);
    EQUAL(memcmp(&got, &a, na), 0);
    EQUAL(recv(y, buffer, 64, 0), 0); // empty, not the end
    len = sizeof got;
    EQUAL(recvfrom(y, buffer, 64, 0, ADDRESS(got), &len), 8);
    EQUAL(len, 0);
    OK(connect(y, ADDRESS(a), na));
    EQUAL(send(y, "to a", 4, 0), 4);
    EQUAL(recv(x, buffer, 64, 0), 4);
    FAILS(sendto(z, "x", 1, 0, ADDRESS(b), nb), EPERM); // y listens to x alone
    FAILS(connect(z, ADDRESS(b), nb), EPERM);
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    OK(connect(y, &none, sizeof none));
    FAILS(send(y, "x", 1, 0), ENOTCONN);
    EQUAL(sendto(z, "x", 1, 0, ADDRESS(b), nb), 1);
    OK(connect(z, ADDRESS(b), nb));
    OK(close(y));
    FAILS(send(z, "x", 1, 0), ECONNREFUSED);
    FAILS(send(z, "x", 1, 0), ENOTCONN);
    static char large[300000];
    int size = 100000;
    OK(connect(z, ADDRESS(a), na));
    OK(setsockopt(z, SOL_SOCKET, SO_SNDBUF, &size, 4));
    FAILS(send(z, large, 250000, 0), EMSGSIZE);
    EQUAL(send(z, large, 50000, 0), 50000);
    EQUAL(recv(x, large, sizeof large, 0), 50000);
    int count = 0;
    while (send(z, "x", 1, MSG_DONTWAIT) == 1) count++;
    EQUAL(errno, EAGAIN);
    CHECK(count >= 2);
    for (int i = 0; i < count; i++) EQUAL(recv(x, buffer, 64, 0), 1);
    OK(close(x)); OK(close(z));
}

#define BYTES (1 << 20)
static void *fill(void *fd)
{
    char b[5000];
    for (int i = 0, n; i < BYTES; i += n) {
        int want = BYTES - i < 5000 ? BYTES - i : 5000;
        for (int j = 0; j < want; j++) b[j] = (i + j) % 251;
        n = write((intptr_t)fd, b, want);
        CHECK(n > 0);
    }
    OK(shutdown((intptr_t)fd, SHUT_WR));
    return NULL;
}

static void waiting(void)
{
    int s[2];
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    pthread_t thread;
    RETURNS(pthread_create(&thread, NULL, fill, (void *)(intptr_t)s[0]), 0);
    static char b[7001];
    int total = 0, n;
    while ((n = recv(s[1], b, sizeof b, MSG_WAITALL)) > 0) {
        CHECK(n == sizeof b || total + n == BYTES);
        for (int i = 0; i < n; i++) CHECK(b[i] == (char)((total + i) % 251));
        total += n;
    }
    EQUAL(total, BYTES);
    RETURNS(pthread_join(thread, NULL), 0);
    OK(close(s[0])); OK(close(s[1]));
    OK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, s));
    long sent = 0, got = 0;
    while ((n = write(s[0], b, sizeof b)) > 0) sent += n;
    EQUAL(errno, EAGAIN);
    CHECK(sent > 50000 && sent < 2000000);
    EQUAL(ready(s[0]), 0);
    while ((n = read(s[1], b, sizeof b)) > 0) got += n;
    EQUAL(got, sent);
    EQUAL(ready(s[0]), POLLOUT);
    OK(close(s[0])); OK(close(s[1]));
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    struct timeval t = {0, 30000};
    OK(setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
    uint64_t start = now_ns();
    FAILS(read(s[0], b, 1), EAGAIN);
    CHECK(now_ns() - start >= 25000000);
    t.tv_usec = 1000000;
    FAILS(setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t), EDOM);
    t = (struct timeval){.tv_sec = INT64_MAX, .tv_usec = 999999}; // longer than nanoseconds can say
    OK(setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
    t = (struct timeval){0};
    OK(setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
    OK(close(s[0])); OK(close(s[1]));
}

// Sends one byte with `n` descriptors.
static int pass(int to, const int *fds, int n)
{
    char control[CMSG_SPACE(sizeof(int) * 300)] = {0};
    struct iovec v = {"f", 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(sizeof(int) * n)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof(int) * n);
    memcpy(CMSG_DATA(c), fds, sizeof(int) * n);
    return syscall(SYS_sendmsg, to, &m, 0);
}

// Receives a byte and up to `most` descriptors: how many came; the flags of the message.
static int catch(int from, int *fds, int most, int *flags)
{
    char control[CMSG_SPACE(sizeof(int) * 300)], b[4];
    struct iovec v = {b, 4};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = most ? CMSG_LEN(sizeof(int) * most) : 0};
    EQUAL(recvmsg(from, &m, *flags), 1);
    *flags = m.msg_flags;
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (!c) return 0;
    EQUAL(c->cmsg_level, SOL_SOCKET);
    EQUAL(c->cmsg_type, SCM_RIGHTS);
    int n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    memcpy(fds, CMSG_DATA(c), n * sizeof(int));
    return n;
}

static void passing_files(void)
{
    int s[2], p[2], got[4], flags = 0;
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    OK(pipe(p));
    int both[] = {p[0], p[1]};
    EQUAL(pass(s[0], both, 2), 1);
    EQUAL(write(s[0], "plain", 5), 5);
    OK(close(p[1]));
    flags = MSG_CMSG_CLOEXEC;
    EQUAL(catch(s[1], got, 4, &flags), 2);
    EQUAL(flags, MSG_CMSG_CLOEXEC);
    EQUAL(fcntl(got[0], F_GETFD), FD_CLOEXEC);
    EQUAL(write(got[1], "through", 7), 7);
    char b[16];
    EQUAL(read(p[0], b, 16), 7); // the same pipe
    EQUAL(read(s[1], b, 16), 5);
    OK(close(got[0])); OK(close(got[1]));
    EQUAL(read(p[0], b, 16), 0); // no writer is left
    EQUAL(pass(s[0], (int[]){p[0], s[0], s[1]}, 3), 1);
    flags = 0;
    EQUAL(catch(s[1], got, 1, &flags), 1); // no room for more
    EQUAL(flags, MSG_CTRUNC);
    OK(close(got[0]));
    EQUAL(pass(s[0], (int[]){p[0]}, 1), 1);
    flags = 0;
    EQUAL(catch(s[1], got, 0, &flags), 0);
    EQUAL(flags, MSG_CTRUNC);
    FAILS(pass(s[0], (int[]){-1}, 1), EBADF);
    int many[254];
    for (int i = 0; i < 254; i++) many[i] = p[0];
    FAILS(pass(s[0], many, 254), EINVAL);
    EQUAL(pass(s[0], many, 253), 1);
    EQUAL(read(s[1], b, 1), 1); // files are dropped by read
    struct iovec v = {"f", 1};
    char control[CMSG_SPACE(4)] = {0};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = 99, c->cmsg_len = CMSG_LEN(4);
    FAILS(syscall(SYS_sendmsg, s[0], &m, 0), EINVAL);
    c->cmsg_len = 3;
    FAILS(syscall(SYS_sendmsg, s[0], &m, 0), EINVAL);
    m.msg_iovlen = 1025;
    FAILS(syscall(SYS_sendmsg, s[0], &m, 0), EMSGSIZE);
    FAILS(syscall(SYS_sendmsg, s[0], 8, 0), EFAULT);
    FAILS(syscall(SYS_recvmsg, s[0], 8, 0), EFAULT);
    OK(close(s[0])); OK(close(s[1])); OK(close(p[0]));
}

static void credentials(void)
{
    int s[2], on = 1;
    OK(socketpair(AF_UNIX, SOCK_DGRAM, 0, s));
    OK(setsockopt(s[1], SOL_SOCKET, SO_PASSCRED, &on, 4));
    EQUAL(send(s[0], "x", 1, 0), 1);
    char control[CMSG_SPACE(12)], b[4];
    struct iovec v = {b, 4};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    EQUAL(recvmsg(s[1], &m, 0), 1);
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    CHECK(c != NULL);
    EQUAL(c->cmsg_type, SCM_CREDENTIALS);
    EQUAL(c->cmsg_len, CMSG_LEN(12));
    EQUAL(((int *)CMSG_DATA(c))[0], getpid());
    OK(close(s[0])); OK(close(s[1]));
}

// Sockets in their own queues, and chains of sockets: all of it must go when the last descriptor does.
static void rings_and_chains(void)
{
    for (int round = 0; round < 200; round++) {
        int s[2], t[2];
        OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
        EQUAL(pass(s[0], s, 2), 1); // in its own queue
        OK(close(s[0])); OK(close(s[1]));
        OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
        OK(socketpair(AF_UNIX, SOCK_STREAM, 0, t));
        EQUAL(pass(s[0], t, 2), 1); // each in the other's
        EQUAL(pass(t[0], s, 2), 1);
        OK(close(s[0])); OK(close(s[1])); OK(close(t[0])); OK(close(t[1]));
    }
    int last[2];
    OK(socketpair(AF_UNIX, SOCK_DGRAM, 0, last));
    for (int i = 0; i < 3000; i++) {
        int next[2];
        OK(socketpair(AF_UNIX, SOCK_DGRAM, 0, next));
        if (pass(next[0], last, 2) != 1) { // Linux has a limit of nesting, or of files in flight
            CHECK(errno == ETOOMANYREFS);
            OK(close(next[0])); OK(close(next[1]));
            break;
        }
        OK(close(last[0])); OK(close(last[1]));
        last[0] = next[0], last[1] = next[1];
    }
    OK(close(last[0])); OK(close(last[1]));
    // A socket that is reachable only through another's queue stays, with what is in it.
    int a[2], b[2], got[2], flags = 0;
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, a));
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, b));
    EQUAL(write(b[0], "kept", 4), 4);
    EQUAL(pass(a[0], b, 2), 1);
    OK(close(b[0])); OK(close(b[1]));
    int other[2];
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, other));
    OK(close(other[0])); OK(close(other[1]));
    EQUAL(catch(a[1], got, 2, &flags), 2);
    char text[8];
    EQUAL(read(got[1], text, 8), 4);
    OK(close(got[0])); OK(close(got[1])); OK(close(a[0])); OK(close(a[1]));
}

// All that was asked for can't be stored: what could be is the result, at once.
static void partial_faults(void)
{
    int s[2];
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    char *p = pages_new(2), bytes[PAGE] = {1};
    OK(munmap(p + PAGE, PAGE));
    EQUAL(send(s[0], bytes, PAGE, 0), PAGE);
    EQUAL(send(s[0], bytes, PAGE, 0), PAGE);
    EQUAL(recv(s[1], p, 2 * PAGE, MSG_WAITALL), PAGE);
    FAILS(recv(s[1], p + PAGE, PAGE, MSG_WAITALL), EFAULT);
    EQUAL(recv(s[1], p, PAGE, MSG_WAITALL), PAGE);
    OK(close(s[0]));
    EQUAL(recv(s[1], p, PAGE, MSG_WAITALL), 0);
    OK(close(s[1]));
}

static void options(void)
{
    int s[2], v = -1;
    socklen_t len = 4;
    OK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s));
    OK(getsockopt(s[0], SOL_SOCKET, SO_TYPE, &v, &len));
    EQUAL(v, SOCK_SEQPACKET);
    OK(getsockopt(s[0], SOL_SOCKET, SO_DOMAIN, &v, &len));
    EQUAL(v, AF_UNIX);
    OK(getsockopt(s[0], SOL_SOCKET, SO_ERROR, &v, &len));
    EQUAL(v, 0);
    v = 10000;
    OK(setsockopt(s[0], SOL_SOCKET, SO_SNDBUF, &v, 4));
    OK(setsockopt(s[0], SOL_SOCKET, SO_RCVBUF, &v, 4));
    OK(getsockopt(s[0], SOL_SOCKET, SO_SNDBUF, &v, &len));
    EQUAL(v, 20000);
    OK(getsockopt(s[0], SOL_SOCKET, SO_RCVBUF, &v, &len));
    EQUAL(v, 20000);
    v = 1;
    OK(setsockopt(s[0], SOL_SOCKET, SO_SNDBUF, &v, 4));
    OK(getsockopt(s[0], SOL_SOCKET, SO_SNDBUF, &v, &len));
    EQUAL(v, 4608);
    len = 2;
    v = 0;
    OK(getsockopt(s[0], SOL_SOCKET, SO_TYPE, &v, &len));
    EQUAL(len, 2);
    EQUAL(v, SOCK_SEQPACKET);
    FAILS(setsockopt(s[0], SOL_SOCKET, SO_SNDBUF, &v, 3), EINVAL);
    FAILS(syscall(SYS_setsockopt, s[0], SOL_SOCKET, SO_SNDBUF, 8, 4), EFAULT);
    FAILS(syscall(SYS_setsockopt, s[0], SOL_SOCKET, SO_SNDBUF, &v, -1), EINVAL);
    FAILS(syscall(SYS_getsockopt, s[0], SOL_SOCKET, SO_TYPE, &v, 8), EFAULT);
    len = -1;
    FAILS(getsockopt(s[0], SOL_SOCKET, SO_TYPE, &v, &len), EINVAL);
    len = 4;
    FAILS(getsockopt(s[0], SOL_SOCKET, 999, &v, &len), ENOPROTOOPT);
    FAILS(setsockopt(s[0], SOL_SOCKET, 999, &v, 4), ENOPROTOOPT);
    FAILS(getsockopt(s[0], 6, 1, &v, &len), EOPNOTSUPP);
    FAILS(setsockopt(s[0], 6, 1, &v, 4), EOPNOTSUPP);
    FAILS(getsockopt(0, SOL_SOCKET, SO_TYPE, &v, &len), ENOTSOCK);
    OK(close(s[0])); OK(close(s[1]));
    int u = socket(AF_UNIX, SOCK_STREAM, 0);
    struct { int pid; unsigned uid, gid; } who;
    len = sizeof who;
    OK(getsockopt(u, SOL_SOCKET, SO_PEERCRED, &who, &len));
    CHECK(who.pid == 0 && who.uid == -1u && who.gid == -1u);
    OK(close(u));
}

static void between_processes(void)
{
    int s[2];
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    pid_t child = fork();
    OK(child);
    char b[8];
    if (child == 0) {
        OK(close(s[0]));
        for (int i = 0; i < 500; i++) {
            EQUAL(read(s[1], b, 1), 1);
            EQUAL(write(s[1], b, 1), 1);
        }
        _exit(9);
    }
    OK(close(s[1]));
    for (int i = 0; i < 500; i++) {
        EQUAL(write(s[0], "x", 1), 1);
        EQUAL(read(s[0], b, 1), 1);
    }
    EQUAL(read(s[0], b, 1), 0);
    EQUAL(WEXITSTATUS(wait_for(child)), 9);
    OK(close(s[0]));
}

int main(void)
{
    OK(close(0));
    EQUAL(open("/dev/null", O_RDONLY), 0);
    RUN(creation);
    RUN(pairs);
    RUN(broken_pipes);
    RUN(named_streams);
    RUN(abstract_names);
    RUN(datagrams);
    RUN(waiting);
    RUN(passing_files);
    RUN(credentials);
    RUN(rings_and_chains);
    RUN(partial_faults);
    RUN(options);
    RUN(between_processes);
    return finished("calls_socket");
}
