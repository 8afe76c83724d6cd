// Memory that runs out: a program that takes all there is ends by SIGKILL or is refused, and everybody else goes on.
//
//   oom ROUNDS
//
// Each round a child takes memory without end in one way, and the parent, which is small, must survive, see the child
// end as expected, and then be able to do what it could before. Not for Linux: there it would drive the machine out of
// memory.
#include "check.h"

#include <poll.h>
#include <sched.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

// Touches anonymous pages until the kernel ends it.
static void touch_for_ever(void)
{
    for (;;) {
        char *p = mmap(NULL, 16 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) sleep_ms(1);
        else
            for (size_t i = 0; i < 16 << 20; i += PAGE) p[i] = 1;
    }
}

// One page in each 2 MiB: as much for page tables as for pages.
static void touch_sparsely(void)
{
    char *p = mmap(NULL, 1ul << 40, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    for (size_t i = 0;; i += 2 << 20) p[i] = 1;
}

// One page of a file, mapped in ever more places: page tables only.
static void map_one_page_for_ever(void)
{
    int fd = memfd_create("one", 0);
    OK(ftruncate(fd, PAGE));
    char *first = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    *first = 1;
    for (uint64_t at = 1ul << 40;; at += 2 << 20) {
        char *p = mmap((void *)at, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
        if (p == MAP_FAILED) {
            EQUAL(errno, ENOMEM);
            _exit(7);
        }
        CHECK(*(volatile char *)p == 1);
    }
}

// Mappings without pages: the kernel's own records of them. Alternating protections keep them apart.
static void map_for_ever(void)
{
    for (uint64_t at = 1ul << 40;; at += 2 * PAGE) {
        void *p = mmap((void *)at, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        if (p == MAP_FAILED) {
            EQUAL(errno, ENOMEM);
            _exit(7);
        }
    }
}

// Holes in one mapping.
static void punch_for_ever(void)
{
    char *p = mmap(NULL, 1ul << 40, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    for (size_t i = PAGE;; i += 2 * PAGE)
        if (munmap(p + i, PAGE) == -1) {
            EQUAL(errno, ENOMEM);
            _exit(7);
        }
}

// Processes that wait.
static void fork_for_ever(void)
{
    for (;;) {
        pid_t p = fork();
        if (p == -1) {
            CHECK(errno == EAGAIN || errno == ENOMEM);
            kill(0, SIGKILL);
        }
        if (p == 0)
            for (;;) pause();
    }
}

// Processes that end, and that nobody collects.
static void make_zombies(void)
{
    for (int i = 0; i < 1000000; i++) {
        pid_t p = fork();
        if (p == -1) {
            CHECK(errno == EAGAIN || errno == ENOMEM);
            _exit(7);
        }
        if (p == 0) _exit(0);
    }
    _exit(1);
}

// Processes that fork as well.
static void fork_bomb(void)
{
    uint64_t end = now_ns() + 300000000u;
    while (now_ns() < end) (void)!fork();
    kill(0, SIGKILL);
    for (;;) pause();
}

// Pipes filled to the brim.
static void fill_pipes(void)
{
    static char bytes[65536];
    for (;;) {
        int ends[2];
        if (pipe2(ends, O_NONBLOCK) == -1) {
            CHECK(errno == EMFILE || errno == ENFILE || errno == ENOMEM);
            if (fork() == -1) _exit(7);
            for (int i = 3; i < 1024; i++)
                if (fcntl(i, F_SETFD, 0) == 0) break;
            sleep_ms(50);
            _exit(7);
        }
        while (write(ends[1], bytes, sizeof bytes) > 0) {}
    }
}

// Files in memory.
static void fill_files(void)
{
    static char bytes[65536];
    for (int i = 0;; i++) {
        char name[64];
        snprintf(name, sizeof name, "/tmp/oom.%d", i);
        int fd = open(name, O_CREAT | O_WRONLY, 0644);
        if (fd == -1) break;
        for (int n = 0; n < 64; n++)
            if (write(fd, bytes, sizeof bytes) <= 0) {
                CHECK(errno == ENOSPC || errno == ENOMEM);
                _exit(7);
            }
        close(fd);
    }
    CHECK(errno == ENOSPC || errno == ENOMEM || errno == EMFILE);
    _exit(7);
}

// A file in memory without a name.
static void fill_memfd(void)
{
    static char bytes[65536];
    int fd = memfd_create("big", 0);
    while (write(fd, bytes, sizeof bytes) > 0) {}
    CHECK(errno == ENOSPC || errno == ENOMEM || errno == EFBIG);
    _exit(7);
}

// Names.
static void make_files(void)
{
    for (long i = 0; i < 10000000; i++) {
        char name[64];
        snprintf(name, sizeof name, "/tmp/oom.d/%ld", i);
        int fd = open(name, O_CREAT | O_WRONLY, 0644);
        if (fd == -1) {
            CHECK(errno == ENOSPC || errno == ENOMEM);
            _exit(7);
        }
        close(fd);
    }
    _exit(1);
}

// As many descriptors as may be, and in as many processes.
static int more_files(void)
{
    struct rlimit most = {1 << 20, 1 << 20};
    return setrlimit(RLIMIT_NOFILE, &most);
}

static void refused(void)
{
    CHECK(errno == ENOMEM || errno == ENOBUFS || errno == EMFILE || errno == ENFILE || errno == EAGAIN || errno == ENOSPC || errno == ETOOMANYREFS);
}

// Messages that carry descriptors of sockets that hold messages.
static void fill_sockets(void)
{
    more_files();
    static char bytes[4096];
    int last = 0;
    for (;;) {
        int ends[2];
        if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, ends)) break;
        for (int i = 0; i < 300; i++) {
            char control[CMSG_SPACE(4 * sizeof(int))] = {0};
            struct iovec v = {bytes, sizeof bytes};
            struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
            struct cmsghdr *c = CMSG_FIRSTHDR(&m);
            c->cmsg_len = CMSG_LEN(4 * sizeof(int)), c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS;
            int fds[4] = {last, ends[0], ends[1], last};
            memcpy(CMSG_DATA(c), fds, sizeof fds);
            if (sendmsg(ends[1], &m, 0) == -1) {
                refused();
                break;
            }
        }
        last = ends[0];
        close(ends[1]);
    }
    refused();
    _exit(7);
}

// Every descriptor in every epoll.
static void fill_epolls(void)
{
    more_files();
    enum { EVENTS = 2000 };
    int fds[EVENTS];
    for (int i = 0; i < EVENTS; i++)
        if ((fds[i] = eventfd(1, EFD_NONBLOCK)) == -1) {
            refused();
            _exit(7);
        }
    for (;;) {
        int e = epoll_create1(0);
        if (e == -1) break;
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT};
        for (int i = 0; i < EVENTS; i++)
            if (epoll_ctl(e, EPOLL_CTL_ADD, fds[i], &event)) {
                refused();
                _exit(7);
            }
    }
    refused();
    _exit(7);
}

static void make_timers(void)
{
    for (long i = 0; i < 3000000; i++) {
        int t;
        struct sigevent e = {.sigev_notify = SIGEV_NONE};
        if (syscall(SYS_timer_create, CLOCK_MONOTONIC, &e, &t)) {
            refused();
            _exit(7);
        }
        struct itimerspec in_an_hour = {{0, 0}, {3600, 0}};
        OK(syscall(SYS_timer_settime, t, 0, &in_an_hour, NULL));
    }
    _exit(7);
}

// Descriptor tables of their full size, copied by each fork.
static void fill_tables(void)
{
    more_files();
    int high = (1 << 20) - 1;
    while (high > 1000 && dup2(0, high) == -1) high /= 2;
    for (;;) {
        pid_t p = fork();
        if (p == -1) {
            refused();
            kill(0, SIGKILL);
        }
        if (p == 0)
            for (;;) pause();
    }
}

static void *sleeping_thread(void *unused)
{
    for (;;) pause();
    return unused;
}

static void make_threads(void)
{
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 16384);
    for (;;) {
        pthread_t t;
        int error = pthread_create(&t, &small, sleeping_thread, NULL);
        if (error) {
            CHECK(error == EAGAIN || error == ENOMEM);
            // Every one of them forks from here on, and so on.
            if (fork() == -1) kill(0, SIGKILL);
        }
    }
}

// Arguments of the largest size, in ever more processes.
static void long_arguments(void)
{
    enum { WORDS = 12 };
    static char text[128 << 10];
    char *argv[WORDS + 3] = {"/proc/self/exe", "wait"};
    memset(text, 'x', sizeof text - 1);
    for (int i = 0; i < WORDS; i++) argv[2 + i] = text;
    for (;;) {
        pid_t p = fork();
        if (p == -1) {
            refused();
            kill(0, SIGKILL);
        }
        if (p == 0) {
            execv("/proc/self/exe", argv);
            CHECK(errno == ENOMEM || errno == E2BIG || errno == EAGAIN);
            kill(0, SIGKILL);
        }
    }
}

static void make_directories(void)
{
    OK(chdir("/tmp/oom.d"));
    for (long i = 0; i < 10000000; i++) {
        char name[256];
        memset(name, 'd', sizeof name);
        name[255] = 0;
        if (mkdir(name, 0755) || chdir(name)) {
            refused();
            break;
        }
    }
    _exit(7);
}

static void make_links(void)
{
    static char target[4096];
    memset(target, 'x', 4095);
    for (long i = 0; i < 10000000; i++) {
        char name[64];
        snprintf(name, sizeof name, "/tmp/oom.d/%ld", i);
        if (symlink(target, name)) {
            refused();
            _exit(7);
        }
    }
    _exit(1);
}

// One byte in every two megabytes of one file.
static void sparse_file(void)
{
    int fd = open("/tmp/oom.0", O_CREAT | O_RDWR | O_TRUNC, 0644);
    CHECK(fd != -1);
    for (off_t at = 0; at < (off_t)1 << 46; at += 2 << 20)
        if (pwrite(fd, "x", 1, at) != 1) {
            refused();
            _exit(7);
        }
    _exit(1);
}

// Shared by two that both write.
static void share_memory(void)
{
    char *p = mmap(NULL, 8ul << 30, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    pid_t other = fork();
    if (other == -1) _exit(7);
    for (size_t i = other ? 0 : PAGE; i < 8ul << 30; i += 2 * PAGE) p[i] = 1;
    _exit(1);
}

// Locked, populated, in pieces.
static void populate_for_ever(void)
{
    for (;;) {
        char *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (p == MAP_FAILED) {
            CHECK(errno == ENOMEM || errno == EAGAIN);
            _exit(7);
        }
        p[PAGE * 7] = 1;
    }
}

// In the kernel's copies rather than by its own hand.
static void read_into_for_ever(void)
{
    int zero = open("/dev/zero", O_RDONLY);
    for (;;) {
        char *p = mmap(NULL, 16 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) sleep_ms(1);
        else if (read(zero, p, 16 << 20) == -1) CHECK(errno == EFAULT || errno == ENOMEM);
    }
}

// Signals that are queued and blocked, in ever more processes.
static void queue_signals(void)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    for (;;) {
        pid_t p = fork();
        if (p == -1) {
            refused();
            kill(0, SIGKILL);
        }
        if (p == 0)
            for (;;) pause();
        union sigval v = {0};
        for (int i = 0; i < 2000 && sigqueue(p, 40, v) == 0; i++) {}
    }
}

static const struct {
    const char *name;
    void (*run)(void);
    // How it may end: a signal, or an exit status.
    int signal, status;
} ways[] = {
    {"touch_for_ever", touch_for_ever, SIGKILL, -1},
    {"touch_sparsely", touch_sparsely, SIGKILL, -1},
    {"map_one_page_for_ever", map_one_page_for_ever, SIGKILL, 7},
    {"map_for_ever", map_for_ever, SIGKILL, 7},
    {"punch_for_ever", punch_for_ever, SIGKILL, 7},
    {"fork_for_ever", fork_for_ever, SIGKILL, -1},
    {"make_zombies", make_zombies, SIGKILL, 7},
    {"fork_bomb", fork_bomb, SIGKILL, -1},
    {"fill_pipes", fill_pipes, SIGKILL, 7},
    {"fill_files", fill_files, SIGKILL, 7},
    {"fill_memfd", fill_memfd, SIGKILL, 7},
    {"make_files", make_files, SIGKILL, 7},
    {"fill_sockets", fill_sockets, SIGKILL, 7},
    {"fill_epolls", fill_epolls, SIGKILL, 7},
    {"make_timers", make_timers, SIGKILL, 7},
    {"fill_tables", fill_tables, SIGKILL, -1},
    {"make_threads", make_threads, SIGKILL, -1},
    {"long_arguments", long_arguments, SIGKILL, -1},
    {"make_directories", make_directories, SIGKILL, 7},
    {"make_links", make_links, SIGKILL, 7},
    {"sparse_file", sparse_file, SIGKILL, 7},
    {"share_memory", share_memory, SIGKILL, 7},
    {"populate_for_ever", populate_for_ever, SIGKILL, 7},
    {"read_into_for_ever", read_into_for_ever, SIGKILL, -1},
    {"queue_signals", queue_signals, SIGKILL, -1},
};

// Directories of one name, each in the one before, from the innermost out.
static void remove_directories(void)
{
    char name[256];
    memset(name, 'd', sizeof name);
    name[255] = 0;
    OK(chdir("/tmp/oom.d"));
    while (chdir(name) == 0) {}
    char here[4096];
    while (syscall(SYS_getcwd, here, sizeof here) == -1 || strcmp(here, "/tmp/oom.d")) {
        OK(chdir(".."));
        OK(rmdir(name));
    }
    OK(chdir("/"));
}

static void remove_files(void)
{
    remove_directories();
    char name[64];
    for (int i = 0;; i++) {
        snprintf(name, sizeof name, "/tmp/oom.%d", i);
        if (unlink(name)) break;
    }
    for (long i = 0;; i++) {
        snprintf(name, sizeof name, "/tmp/oom.d/%ld", i);
        if (unlink(name)) break;
    }
}

// What a shell does: fork, map, a pipe, a file.
static void still_works(void)
{
    int ends[2];
    OK(pipe(ends));
    pid_t p = fork();
    CHECK(p != -1);
    if (p == 0) {
        char *m = pages_new(64);
        memset(m, 7, 64 * PAGE);
        _exit(write(ends[1], m, 1) == 1 ? 0 : 1);
    }
    EQUAL(wait_for(p), 0);
    char c;
    EQUAL(read(ends[0], &c, 1), 1);
    close(ends[0]);
    close(ends[1]);
    int fd = open("/tmp/oom.works", O_CREAT | O_RDWR | O_TRUNC, 0644);
    CHECK(fd != -1);
    EQUAL(write(fd, "x", 1), 1);
    close(fd);
    OK(unlink("/tmp/oom.works"));
}

// Children whose end is to be told to their parent by SIGKILL: not to one that they are handed to, nor that they are
// siblings of.
static void tell_by_kill(void)
{
    pid_t p = fork();
    CHECK(p != -1);
    if (p == 0) {
        for (int i = 0; i < 2; i++) {
            long q = syscall(SYS_clone, (i ? CLONE_PARENT : 0) | SIGKILL, 0, 0, 0, 0);
            if (q == 0) {
                sleep_ms(20);
                _exit(0);
            }
            CHECK(q > 0);
        }
        _exit(0);
    }
    EQUAL(wait_for(p), 0);
    // The sibling is a child of ours.
    int status;
    pid_t sibling = waitpid(-1, &status, 0);
    CHECK(sibling > 0 && sibling != p);
    EQUAL(status, 0);
    sleep_ms(50);
}

int main(int argc, char **argv)
{
    // What `long_arguments` starts.
    if (argc > 1 && !strcmp(argv[1], "wait"))
        for (;;) pause();
    int rounds = argc > 1 ? atoi(argv[1]) : 1;
    const char *only = argc > 2 ? argv[2] : NULL;
    if (access("/proc/quire", F_OK)) {
        fprintf(stderr, "oom: not for this machine\n");
        return 2;
    }
    OK(mkdir("/tmp/oom.d", 0755));
    tell_by_kill();
    for (int r = 0; r < rounds; r++)
        for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
            if (only && strcmp(only, ways[i].name)) continue;
            pid_t p = fork();
            CHECK(p != -1);
            if (p == 0) {
                setpgid(0, 0);
                ways[i].run();
                _exit(1);
            }
            int status = wait_for(p);
            kill(-p, SIGKILL);
            if (WIFSIGNALED(status)) EQUAL(WTERMSIG(status), ways[i].signal);
            else EQUAL(WEXITSTATUS(status), ways[i].status);
            remove_files();
            // Descendants that were killed with it are on their way out.
            for (int tries = 0; tries < 200; tries++) {
                pid_t q = fork();
                if (q == 0) _exit(0);
                if (q > 0) {
                    wait_for(q);
                    break;
                }
                sleep_ms(10);
            }
            still_works();
            if (r == 0) passed(ways[i].name);
        }
    return finished("oom");
}
