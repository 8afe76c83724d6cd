// threads [THREADS]: POSIX threads as the C libraries build them from clone, futex and TLS.
//
// Proves: mutual exclusion and visibility (mutex, spin, read-write lock, condition variable, barrier, semaphore, once),
// that each thread has its own TLS block, stack and keys, that create/join/detach give back what they took, that
// cancellation and thread-directed signals reach exactly their target, and that a thread runs where its affinity says.
//
// calls: clone gettid sched_getaffinity sched_setaffinity sched_yield set_tid_address tgkill
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>

#define MAX_THREADS 256
static int threads = 4;
static pthread_t thread[MAX_THREADS];
static pthread_attr_t small; // 128 KiB stacks

static void run_all(void *(*body)(void *))
{
    for (intptr_t i = 0; i < threads; i++) RETURNS(pthread_create(&thread[i], &small, body, (void *)i), 0);
    for (int i = 0; i < threads; i++) {
        void *result;
        RETURNS(pthread_join(thread[i], &result), 0);
        EQUAL((intptr_t)result, i);
    }
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_spinlock_t spin;
static uint64_t plain, spun;

static void *count(void *self)
{
    for (int i = 0; i < 2000; i++) {
        RETURNS(pthread_mutex_lock(&mutex), 0);
        plain++;
        RETURNS(pthread_mutex_unlock(&mutex), 0);
        if (i % 20 == 0) {
            while (pthread_spin_trylock(&spin) != 0) sched_yield();
            spun++;
            RETURNS(pthread_spin_unlock(&spin), 0);
        }
    }
    return self;
}

static void mutexes(void)
{
    RETURNS(pthread_spin_init(&spin, PTHREAD_PROCESS_PRIVATE), 0);
    run_all(count);
    EQUAL(plain, 2000 * threads);
    EQUAL(spun, 100 * threads);
    pthread_mutexattr_t attributes;
    pthread_mutex_t checked, recursive;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(&checked, &attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&recursive, &attributes);
    RETURNS(pthread_mutex_unlock(&checked), EPERM);
    RETURNS(pthread_mutex_lock(&checked), 0);
    RETURNS(pthread_mutex_lock(&checked), EDEADLK);
    RETURNS(pthread_mutex_trylock(&checked), EBUSY);
    for (int i = 0; i < 3; i++) RETURNS(pthread_mutex_lock(&recursive), 0);
    for (int i = 0; i < 3; i++) RETURNS(pthread_mutex_unlock(&recursive), 0);
    RETURNS(pthread_mutex_unlock(&recursive), EPERM);
}

// A bounded queue: half of the work is waiting for the other side.
static pthread_cond_t not_empty = PTHREAD_COND_INITIALIZER, not_full = PTHREAD_COND_INITIALIZER;
static uint64_t queue[8], put, taken, sum;

static void *produce_or_consume(void *self)
{
    int consumer = (intptr_t)self % 2;
    for (int i = 0; i < 500; i++) {
        pthread_mutex_lock(&mutex);
        if (consumer) {
            while (taken == put) pthread_cond_wait(&not_empty, &mutex);
            sum += queue[taken++ % 8];
            pthread_cond_signal(&not_full);
        } else {
            while (put - taken == 8) pthread_cond_wait(&not_full, &mutex);
            queue[put++ % 8] = i;
            pthread_cond_signal(&not_empty);
        }
        pthread_mutex_unlock(&mutex);
    }
    return self;
}

static void condition_variables(void)
{
    int all = threads;
    threads += threads % 2; // as many producers as consumers
    run_all(produce_or_consume);
    EQUAL(put, 500 * (threads / 2));
    EQUAL(taken, put);
    EQUAL(sum, 499 * 500 / 2 * (threads / 2));
    threads = all;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 20 * 1000000;
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    uint64_t start = now_ns();
    pthread_mutex_lock(&mutex);
    RETURNS(pthread_cond_timedwait(&not_empty, &mutex, &until), ETIMEDOUT);
    pthread_mutex_unlock(&mutex);
    CHECK(now_ns() - start >= 15 * 1000000);
}

static pthread_barrier_t barrier;
static volatile int phase_of[MAX_THREADS];
static _Atomic int serial_threads;

static void *pass_phases(void *self)
{
    for (int phase = 1; phase <= 20; phase++) {
        phase_of[(intptr_t)self] = phase;
        if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD) serial_threads++;
        for (int i = 0; i < threads; i++) EQUAL(phase_of[i], phase);
        pthread_barrier_wait(&barrier);
    }
    return self;
}

static void barriers(void)
{
    RETURNS(pthread_barrier_init(&barrier, NULL, threads), 0);
    run_all(pass_phases);
    EQUAL(serial_threads, 20);
    RETURNS(pthread_barrier_destroy(&barrier), 0);
}

static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static volatile uint64_t left, right;

static void *read_or_write(void *self)
{
    for (int i = 0; i < 300; i++) {
        if ((i + (intptr_t)self) % 4 == 0) {
            pthread_rwlock_wrlock(&rwlock);
            left++;
            right++;
        } else {
            pthread_rwlock_rdlock(&rwlock);
            EQUAL(left, right);
        }
        pthread_rwlock_unlock(&rwlock);
    }
    return self;
}

static void read_write_locks(void)
{
    run_all(read_or_write);
    EQUAL(left, 75 * threads);
    RETURNS(pthread_rwlock_wrlock(&rwlock), 0);
    RETURNS(pthread_rwlock_tryrdlock(&rwlock), EBUSY);
    RETURNS(pthread_rwlock_unlock(&rwlock), 0);
}

static __thread int initialised = 12345;
static __thread char zeroed[3000];
static __thread struct { _Alignas(64) char bytes[64]; } aligned = {"aligned"};
static pthread_key_t key;
static _Atomic int destroyed, once_runs;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void destroy(void *value) { destroyed += (int)(intptr_t)value; }
static void run_once(void) { once_runs++; }

static void *use_tls(void *self)
{
    EQUAL(initialised, 12345);
    for (size_t i = 0; i < sizeof zeroed; i++) EQUAL(zeroed[i], 0);
    EQUAL((uintptr_t)&aligned % 64, 0);
    EQUAL(strcmp(aligned.bytes, "aligned"), 0);
    initialised = (int)(intptr_t)self;
    memset(zeroed, (int)(intptr_t)self, sizeof zeroed);
    RETURNS(pthread_setspecific(key, (void *)((intptr_t)self + 1)), 0);
    pthread_once(&once, run_once);
    for (int i = 0; i < 20; i++) {
        sched_yield();
        EQUAL(initialised, (intptr_t)self);
        EQUAL(zeroed[2999], (char)(intptr_t)self);
        EQUAL((intptr_t)pthread_getspecific(key), (intptr_t)self + 1);
    }
    return self;
}

static void thread_local_storage(void)
{
    RETURNS(pthread_key_create(&key, destroy), 0);
    run_all(use_tls);
    EQUAL(destroyed, threads * (threads + 1) / 2);
    EQUAL(once_runs, 1);
    EQUAL(initialised, 12345);
}

static void *give_back(void *self) { return self; }
static sem_t detached_done;
static void *post(void *self)
{
    sem_post(&detached_done);
    return self;
}

static void create_and_join_storm(void)
{
    for (int round = 0; round < 25; round++) run_all(give_back);
    pthread_attr_t detached = small;
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    RETURNS(sem_init(&detached_done, 0, 0), 0);
    for (int i = 0; i < 50; i++) {
        pthread_t ignored;
        RETURNS(pthread_create(&ignored, &detached, post, NULL), 0);
        while (sem_wait(&detached_done) == -1) EQUAL(errno, EINTR);
    }
    EQUAL(sem_trywait(&detached_done), -1);
    EQUAL(errno, EAGAIN);
}

static int cleaned;
static int cancel_pipe[2];
static sem_t blocked;
static void clean(void *value) { cleaned += (int)(intptr_t)value; }

static void *block_in_read(void *self)
{
    char byte;
    pthread_cleanup_push(clean, (void *)10);
    pthread_cleanup_push(clean, (void *)1);
    sem_post(&blocked);
    if (read(cancel_pipe[0], &byte, 1) == 1) CHECK(!"the pipe stays empty");
    pthread_cleanup_pop(0);
    pthread_cleanup_pop(0);
    return self;
}

static void *spin_until_cancelled(void *self)
{
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    sem_post(&blocked);
    for (volatile unsigned i = 0;; i++) {}
    return self;
}

static void cancellation(void)
{
    void *(*bodies[])(void *) = {block_in_read, spin_until_cancelled};
    OK(pipe(cancel_pipe));
    RETURNS(sem_init(&blocked, 0, 0), 0);
    for (int i = 0; i < 6; i++) {
        void *result;
        RETURNS(pthread_create(&thread[0], &small, bodies[i % 2], NULL), 0);
        while (sem_wait(&blocked) == -1) EQUAL(errno, EINTR);
        if (i >= 2) sleep_ms(2);
        RETURNS(pthread_cancel(thread[0]), 0);
        RETURNS(pthread_join(thread[0], &result), 0);
        CHECK(result == PTHREAD_CANCELED);
    }
    EQUAL(cleaned, 33);
}

static __thread volatile sig_atomic_t signals_here;
static _Atomic int ready;
static _Atomic pid_t ids[MAX_THREADS];

static void on_signal(int signal)
{
    (void)signal;
    signals_here++;
}

static void *take_own_signal(void *self)
{
    ids[(intptr_t)self] = syscall(SYS_gettid);
    ready++;
    while (signals_here == 0) sched_yield();
    pthread_barrier_wait(&barrier); // every signal has been taken
    EQUAL(signals_here, 1);
    return self;
}

static void directed_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    OK(sigaction(SIGUSR1, &action, NULL));
    RETURNS(pthread_barrier_init(&barrier, NULL, threads), 0);
    for (intptr_t i = 0; i < threads; i++) RETURNS(pthread_create(&thread[i], &small, take_own_signal, (void *)i), 0);
    while (ready < threads) sched_yield();
    for (int i = 0; i < threads; i++) {
        for (int j = 0; j < i; j++) CHECK(ids[i] != ids[j]);
        if (i % 2)
            OK(syscall(SYS_tgkill, getpid(), ids[i], SIGUSR1));
        else
            RETURNS(pthread_kill(thread[i], SIGUSR1), 0);
    }
    for (int i = 0; i < threads; i++) RETURNS(pthread_join(thread[i], NULL), 0);
    EQUAL(signals_here, 0);
    FAILS(syscall(SYS_tgkill, getpid(), 0x3fffffff, SIGUSR1), ESRCH);
}

static void affinity(void)
{
    cpu_set_t all, one;
    int online = 0;
    OK(sched_getaffinity(0, sizeof all, &all));
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &all)) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        OK(sched_setaffinity(0, sizeof one, &one));
        EQUAL(sched_getcpu(), cpu);
        online++;
    }
    OK(sched_setaffinity(0, sizeof all, &all));
    CHECK(online >= 1 && online <= sysconf(_SC_NPROCESSORS_ONLN));
    CPU_ZERO(&one);
    FAILS(sched_setaffinity(0, sizeof one, &one), EINVAL);
}

int main(int argc, char **argv)
{
    if (argc > 1) threads = atoi(argv[1]);
    CHECK(threads >= 1 && threads < MAX_THREADS);
    pthread_attr_init(&small);
    RETURNS(pthread_attr_setstacksize(&small, 128 * 1024), 0);
    RUN(mutexes);
    RUN(condition_variables);
    RUN(barriers);
    RUN(read_write_locks);
    RUN(thread_local_storage);
    RUN(create_and_join_storm);
    RUN(cancellation);
    RUN(directed_signals);
    RUN(affinity);
    return finished("threads");
}
