// unshare: threads that give their process descriptors of its own (CLOSE_RANGE_UNSHARE), beside forks and changes of them.
//
// A pass proves: a child that is forked meanwhile has its parent's descriptors, all of them; two threads that unshare at
// once lose none; what a thread opens, duplicates and closes meanwhile is there afterwards, or isn't. A child by
// CLONE_FILES comes and goes, so that there is something to copy, and the last share of what was copied is any of three.
//
// And: a process that nobody shares descriptors with keeps its table when it unshares them, and so its record locks, though another
// process takes files from it meanwhile (pidfd_getfd).
//
// Usage: unshare [rounds [unsharings beside looks]]
//
// calls: clone close close_range dup fork fcntl pidfd_getfd pidfd_open wait4
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

#define UNSHARE 2u // CLOSE_RANGE_UNSHARE
#define KEPT 20    // descriptors that nobody closes, from FIRST on
#define FIRST 10
#define UNUSED 900u // no such descriptor

static atomic_int done;

static int all_are_there(void)
{
    for (int fd = FIRST; fd < FIRST + KEPT; fd++)
        if (fcntl(fd, F_GETFD) != 0) return 0;
    return 1;
}

static void collect(pid_t child)
{
    int status;
    OK(child);
    EQUAL(waitpid(child, &status, 0), child);
    EQUAL(status, 0);
}

// A child that shares the descriptors for a moment, and an unsharing while it does.
static void *unshares(void *unused)
{
    while (!atomic_load(&done)) {
        pid_t child = syscall(SYS_clone, (long)(CLONE_FILES | SIGCHLD), 0L, 0L, 0L, 0L);
        if (child == 0) syscall(SYS_exit_group, all_are_there() ? 0L : 1L);
        OK(syscall(SYS_close_range, UNUSED, UNUSED, UNSHARE));
        CHECK(all_are_there());
        collect(child);
    }
    return unused;
}

static void *duplicates(void *unused)
{
    while (!atomic_load(&done)) {
        int fd = dup(FIRST);
        OK(fd);
        EQUAL(fcntl(fd, F_GETFD), 0);
        OK(close(fd));
        FAILS(close(fd), EBADF);
    }
    return unused;
}

// Takes files from its parent, and sees that the parent's lock is there, until it is told to stop.
static int takes(int from, int fd, atomic_int *stop)
{
    while (!atomic_load(stop)) {
        int mine = syscall(SYS_pidfd_getfd, from, fd, 0);
        if (mine < 0) return 1;
        if (close(mine) != 0) return 2;
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
        if (fcntl(fd, F_GETLK, &lock) != 0) return 3;
        if (lock.l_type != F_WRLCK || lock.l_pid != getppid()) return 4;
    }
    return 0;
}

static void keeps_its_locks(int rounds)
{
    atomic_int *stop = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(stop != MAP_FAILED);
    int fd = open("/tmp/unshare.lock", O_RDWR | O_CREAT, 0600);
    OK(fd);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    OK(fcntl(fd, F_SETLK, &lock));
    int self = syscall(SYS_pidfd_open, getpid(), 0);
    OK(self);
    pid_t child = fork();
    if (child == 0) _exit(takes(self, fd, stop));
    for (int round = 0; round < rounds; round++) OK(syscall(SYS_close_range, UNUSED, UNUSED, UNSHARE));
    atomic_store(stop, 1);
    collect(child);
    OK(close(self));
    OK(close(fd));
    OK(unlink("/tmp/unshare.lock"));
    OK(munmap(stop, 4096));
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 200;
    for (int fd = FIRST; fd < FIRST + KEPT; fd++) EQUAL(dup2(1, fd), fd);
    pthread_t threads[3];
    RETURNS(pthread_create(&threads[0], NULL, unshares, NULL), 0);
    RETURNS(pthread_create(&threads[1], NULL, unshares, NULL), 0);
    RETURNS(pthread_create(&threads[2], NULL, duplicates, NULL), 0);
    for (int round = 0; round < rounds; round++) {
        pid_t child = fork();
        if (child == 0) _exit(all_are_there() ? 0 : 1);
        collect(child);
    }
    atomic_store(&done, 1);
    for (int i = 0; i < 3; i++) RETURNS(pthread_join(threads[i], NULL), 0);
    CHECK(all_are_there());
    passed("forks, changes and unsharing");
    keeps_its_locks(argc > 2 ? atoi(argv[2]) : 10 * rounds);
    passed("locks of a table that is looked into");
    return finished("unshare");
}
