// closing N: what is closed ends when the call returns if nobody uses it, and with its last use if another thread does.
//
// A read that waits keeps the end of the pipe that another thread closes; a closed end is seen at once, whichever thread has used
// it and whichever closes it; as is a lock that was given up so. Then threads use a few descriptors N times each while others
// close, copy and open them.
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/stat.h>

#define THREADS 4
#define FDS 3
#define FIRST 40

static int ends[2];
static unsigned long times;
// Of this process alone: others may run the same.
static char path[32];
static _Atomic int reading;

static void *read_one(void *unused)
{
    char byte = 0;
    (void)unused;
    reading = 1;
    CHECK(read(ends[0], &byte, 1) == 1 && byte == 'x');
    return NULL;
}

static void *look(void *fd)
{
    struct stat about;
    OK(fstat((int)(long)fd, &about));
    return NULL;
}

static void *shut(void *fd)
{
    OK(close((int)(long)fd));
    return NULL;
}

static void by_thread(void *(*does)(void *), int fd)
{
    pthread_t other;
    CHECK(pthread_create(&other, NULL, does, (void *)(long)fd) == 0);
    CHECK(pthread_join(other, NULL) == 0);
}

static void a_use_outlives_its_descriptor(void)
{
    pthread_t reader;
    OK(pipe(ends));
    CHECK(pthread_create(&reader, NULL, read_one, NULL) == 0);
    while (!reading) sched_yield();
    usleep(200000);
    OK(close(ends[0]));
    char byte = 'x';
    CHECK(write(ends[1], &byte, 1) == 1);
    CHECK(pthread_join(reader, NULL) == 0);
    CHECK(write(ends[1], &byte, 1) == -1 && errno == EPIPE);
    OK(close(ends[1]));
}

static void an_end_is_seen_at_once(void)
{
    for (int i = 0; i < 200; i++) {
        char byte;
        OK(pipe2(ends, O_NONBLOCK));
        if (i & 1) by_thread(look, ends[1]);
        CHECK(read(ends[0], &byte, 1) == -1 && errno == EAGAIN);
        if (i & 2)
            by_thread(shut, ends[1]);
        else
            OK(close(ends[1]));
        CHECK(read(ends[0], &byte, 1) == 0);
        OK(close(ends[0]));
    }
}

static void a_lock_goes_with_its_file(void)
{
    int kept = open(path, O_RDWR | O_CREAT, 0600);
    CHECK(kept >= 0);
    for (int i = 0; i < 100; i++) {
        int locked = open(path, O_RDWR);
        CHECK(locked >= 0);
        OK(flock(locked, LOCK_EX));
        CHECK(flock(kept, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
        by_thread(look, locked);
        if (i & 1)
            by_thread(shut, locked);
        else
            OK(close(locked));
        OK(flock(kept, LOCK_EX | LOCK_NB));
        OK(flock(kept, LOCK_UN));
    }
    OK(close(kept));
}

static void *use(void *self)
{
    unsigned long me = (unsigned long)self;
    for (unsigned long i = 0; i < times; i++) {
        int fd = FIRST + (int)((i + me) % FDS);
        char byte = 0;
        if (me % 2) {
            ssize_t got = pread(fd, &byte, 1, 0);
            CHECK(got == 1 ? byte == 'c' : got == -1 && errno == EBADF);
        } else if (i % 3 == 0) {
            CHECK(close(fd) == 0 || errno == EBADF);
        } else if (i % 3 == 1) {
            int fresh = open(path, O_RDONLY);
            CHECK(fresh >= 0);
            // EBUSY: somebody opens a file with that descriptor just now.
            CHECK(dup2(fresh, fd) == fd || errno == EBUSY);
            OK(close(fresh));
        } else {
            CHECK(dup2(fd, FIRST + (int)((i + me + 1) % FDS)) >= 0 || errno == EBADF || errno == EBUSY);
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t all[THREADS];
    CHECK(argc == 2);
    times = strtoul(argv[1], NULL, 10);
    snprintf(path, sizeof path, "/tmp/closing.%d", (int)getpid());
    signal(SIGPIPE, SIG_IGN);
    a_use_outlives_its_descriptor();
    an_end_is_seen_at_once();
    a_lock_goes_with_its_file();
    int file = open(path, O_RDWR | O_TRUNC);
    CHECK(file >= 0 && write(file, "closing", 7) == 7);
    for (unsigned long i = 0; i < THREADS; i++) CHECK(pthread_create(&all[i], NULL, use, (void *)i) == 0);
    for (unsigned long i = 0; i < THREADS; i++) CHECK(pthread_join(all[i], NULL) == 0);
    OK(close(file));
    for (int fd = FIRST; fd < FIRST + FDS; fd++) close(fd);
    // Nothing else is open: the lowest descriptor is free again.
    CHECK(open(path, O_RDONLY) == file);
    OK(unlink(path));
    puts("closing: ok");
    return 0;
}
