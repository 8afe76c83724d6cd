// futex: the futex system call itself, below any C library's locks.
//
// Proves: WAIT compares and sleeps, WAKE wakes exactly as many as asked, REQUEUE and CMP_REQUEUE move the rest to the
// other word, WAIT_BITSET and WAKE_BITSET match masks and take absolute times on either clock, timeouts last at least
// as long as asked, shared futexes join processes over one page, a private futex does not, signals interrupt, exiting
// threads wake joiners through clear_child_tid and leave FUTEX_OWNER_DIED in the words of their robust list.
//
// calls: futex get_robust_list set_robust_list
#include "check.h"
#include <pthread.h>
#include <sched.h>

enum { WAIT, WAKE, FD, REQUEUE, CMP_REQUEUE, WAKE_OP, LOCK_PI, UNLOCK_PI, TRYLOCK_PI, WAIT_BITSET, WAKE_BITSET };
#define PRIVATE 128
#define REALTIME 256
#define ANY 0xffffffffUL

static long futex(_Atomic uint32_t *word, int operation, uint32_t value, const void *fourth, _Atomic uint32_t *other, uint32_t third)
{
    return syscall(SYS_futex, word, operation, value, fourth, other, third);
}

#define SLEEPERS 6
static _Atomic uint32_t word, other;
static _Atomic int asleep, awake;
static pthread_t sleeper[SLEEPERS];

// Each sleeper waits with its own bit.
static void *sleep_on_word(void *self)
{
    asleep++;
    while (futex(&word, WAIT_BITSET | PRIVATE, 0, NULL, NULL, 1u << (intptr_t)self) == -1) CHECK(errno == EINTR);
    awake++;
    return NULL;
}

static void start_sleepers(void)
{
    word = other = 0;
    asleep = awake = 0;
    for (intptr_t i = 0; i < SLEEPERS; i++) RETURNS(pthread_create(&sleeper[i], NULL, sleep_on_word, (void *)i), 0);
    while (asleep < SLEEPERS) sched_yield();
}

// Returns when all the sleepers really sleep on `word`: that many could be moved away and back.
static void settle(void)
{
    for (int moved = 0; moved < SLEEPERS; sched_yield()) moved += (int)futex(&word, REQUEUE | PRIVATE, 0, (void *)99, &other, 0);
    EQUAL(futex(&other, REQUEUE | PRIVATE, 0, (void *)99, &word, 0), SLEEPERS);
}

static void join_sleepers(void)
{
    for (int i = 0; i < SLEEPERS; i++) RETURNS(pthread_join(sleeper[i], NULL), 0);
    EQUAL(awake, SLEEPERS);
}

// Waking repeats until `n` sleepers have been found: the last may not sleep yet.
static void wake(_Atomic uint32_t *from, int operation, int n, uint32_t mask)
{
    while (n > 0) {
        long woken = futex(from, operation | PRIVATE, n, NULL, NULL, mask);
        CHECK(woken >= 0 && woken <= n);
        n -= (int)woken;
        if (n > 0) sched_yield();
    }
}

static void awake_are(int n)
{
    for (int i = 0; i < 2000 && awake < n; i++) sleep_ms(1);
    EQUAL(awake, n);
}

static void waiting_and_waking(void)
{
    EQUAL(futex(&word, WAKE | PRIVATE, 100, NULL, NULL, 0), 0);
    word = 5;
    FAILS(futex(&word, WAIT | PRIVATE, 4, NULL, NULL, 0), EAGAIN);
    start_sleepers();
    wake(&word, WAKE, 2, 0);
    awake_are(2);
    wake(&word, WAKE, 1, 0);
    awake_are(3);
    wake(&word, WAKE, 3, 0);
    join_sleepers();
    EQUAL(futex(&word, WAKE | PRIVATE, 100, NULL, NULL, 0), 0);
}

static void bitsets(void)
{
    FAILS(futex(&word, WAIT_BITSET | PRIVATE, word, NULL, NULL, 0), EINVAL);
    FAILS(futex(&word, WAKE_BITSET | PRIVATE, 1, NULL, NULL, 0), EINVAL);
    start_sleepers();
    wake(&word, WAKE_BITSET, 2, 1u << 1 | 1u << 4);
    awake_are(2);
    EQUAL(futex(&word, WAKE_BITSET | PRIVATE, 9, NULL, NULL, 1u << 1 | 1u << 4 | 1u << 20), 0);
    wake(&word, WAKE_BITSET, 4, ANY);
    join_sleepers();
}

static void requeueing(void)
{
    start_sleepers();
    FAILS(futex(&word, CMP_REQUEUE | PRIVATE, 1, (void *)9, &other, 1), EAGAIN);
    settle();
    EQUAL(futex(&word, CMP_REQUEUE | PRIVATE, 1, (void *)2, &other, 0), 3); // one woken, two moved
    awake_are(1);
    EQUAL(futex(&other, WAKE | PRIVATE, 9, NULL, NULL, 0), 2);
    awake_are(3);
    EQUAL(futex(&word, REQUEUE | PRIVATE, 0, (void *)9, &other, 0), 3);
    EQUAL(futex(&word, WAKE | PRIVATE, 9, NULL, NULL, 0), 0);
    EQUAL(futex(&other, WAKE | PRIVATE, 9, NULL, NULL, 0), 3);
    join_sleepers();
}

static void timeouts(void)
{
    word = 0;
    struct timespec time = {0, 20000000};
    uint64_t start = now_ns();
    FAILS(futex(&word, WAIT | PRIVATE, 0, &time, NULL, 0), ETIMEDOUT); // relative
    CHECK(now_ns() - start >= 20000000);
    clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_REALTIME};
    for (int i = 0; i < 2; i++) {
        OK(clock_gettime(clocks[i], &time));
        time.tv_nsec += 20000000;
        if (time.tv_nsec >= 1000000000) time.tv_sec++, time.tv_nsec -= 1000000000;
        start = now_ns();
        FAILS(futex(&word, WAIT_BITSET | PRIVATE | (i ? REALTIME : 0), 0, &time, NULL, ANY), ETIMEDOUT); // absolute
        CHECK(now_ns() - start >= 15000000);
        time = (struct timespec){0, 1}; // long past
        FAILS(futex(&word, WAIT_BITSET | PRIVATE | (i ? REALTIME : 0), 0, &time, NULL, ANY), ETIMEDOUT);
    }
    time = (struct timespec){0, 1000000000};
    FAILS(futex(&word, WAIT | PRIVATE, 0, &time, NULL, 0), EINVAL);
    time = (struct timespec){-1, 0};
    FAILS(futex(&word, WAIT | PRIVATE, 0, &time, NULL, 0), EINVAL);
    FAILS(futex(&word, 99, 0, NULL, NULL, 0), ENOSYS);
    FAILS(futex((void *)((char *)&word + 1), WAIT | PRIVATE, 0, NULL, NULL, 0), EINVAL);
    FAILS(futex((void *)4096, WAIT | PRIVATE, 0, NULL, NULL, 0), EFAULT);
}

static void operations_on_two_words(void)
{
    start_sleepers();
    settle();
    other = 10;
    // other += 5; wake 2 on `word`; and, as the old value was 10 > 3, wake on `other` too (nobody is there).
    EQUAL(futex(&word, WAKE_OP | PRIVATE, 2, (void *)9, &other, 1u << 28 | 4u << 24 | 5u << 12 | 3u), 2);
    EQUAL(other, 15);
    wake(&word, WAKE, 4, 0);
    join_sleepers();
}

static void between_processes(void)
{
    _Atomic uint32_t *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        shared[1] = 1;
        while (shared[0] == 0) futex(&shared[0], WAIT, 0, NULL, NULL, 0);
        _exit(17);
    }
    while (shared[1] == 0) sched_yield();
    sleep_ms(10);
    shared[0] = 1;
    futex(&shared[0], WAKE, 1, NULL, NULL, 0);
    EQUAL(WEXITSTATUS(wait_for(child)), 17);
    OK(munmap(shared, PAGE));
}

static void on_alarm(int signal) { (void)signal; }

static void interruption(void)
{
    struct sigaction action = {.sa_handler = on_alarm}; // without SA_RESTART
    OK(sigaction(SIGUSR1, &action, NULL));
    pid_t parent = getpid(), child = fork();
    OK(child);
    if (child == 0) {
        while (kill(parent, SIGUSR1) == 0) sleep_ms(20); // again, in case the parent did not sleep yet
        _exit(1);
    }
    word = 0;
    FAILS(futex(&word, WAIT | PRIVATE, 0, NULL, NULL, 0), EINTR);
    OK(kill(child, SIGKILL));
    EQUAL(wait_for(child), SIGKILL);
}

// The kernel's robust list: a circular list of locks, and where the lock word lies from each entry.
struct robust { struct robust *next; _Atomic uint32_t lock; };
static struct { struct robust *next; long offset; struct robust *pending; } head;
static struct robust held[3];

static void *die_holding(void *unused)
{
    uint32_t me = syscall(SYS_gettid);
    head.next = &held[0];
    head.offset = offsetof(struct robust, lock);
    for (int i = 0; i < 2; i++) held[i] = (struct robust){i == 0 ? &held[1] : (struct robust *)&head, me | 0x80000000};
    held[1].lock = me + 1; // another thread's: stays
    held[2].lock = me;     // being taken as the thread ends
    head.pending = &held[2];
    OK(syscall(SYS_set_robust_list, &head, sizeof head));
    void *got_head = NULL;
    size_t got_size = 0;
    OK(syscall(SYS_get_robust_list, 0, &got_head, &got_size));
    CHECK(got_head == &head && got_size == sizeof head);
    FAILS(syscall(SYS_set_robust_list, &head, sizeof head - 1), EINVAL);
    return unused;
}

static void *lock_and_die(void *mutex)
{
    RETURNS(pthread_mutex_lock(mutex), 0);
    return NULL;
}

static void robust_lists(void)
{
    pthread_t thread;
    RETURNS(pthread_create(&thread, NULL, die_holding, NULL), 0);
    RETURNS(pthread_join(thread, NULL), 0);
    EQUAL(held[0].lock, 0xc0000000); // waiters and FUTEX_OWNER_DIED
    EQUAL(held[1].lock & 0x40000000, 0);
    EQUAL(held[2].lock, 0x40000000);
    pthread_mutexattr_t attributes;
    static pthread_mutex_t mutex;
    pthread_mutexattr_init(&attributes);
    RETURNS(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST), 0);
    pthread_mutex_init(&mutex, &attributes);
    RETURNS(pthread_create(&thread, NULL, lock_and_die, &mutex), 0);
    RETURNS(pthread_join(thread, NULL), 0);
    RETURNS(pthread_mutex_lock(&mutex), EOWNERDEAD);
    RETURNS(pthread_mutex_consistent(&mutex), 0);
    RETURNS(pthread_mutex_unlock(&mutex), 0);
    RETURNS(pthread_mutex_lock(&mutex), 0);
}

int main(void)
{
    RUN(waiting_and_waking);
    RUN(bitsets);
    RUN(requeueing);
    RUN(timeouts);
    RUN(operations_on_two_words);
    RUN(between_processes);
    RUN(interruption);
    RUN(robust_lists);
    return finished("futex");
}
