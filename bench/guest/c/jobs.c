// A pass proves: stop signals stop every thread of a process and SIGCONT resumes all of them, however fast they follow
// each other; the parent is told of each stop that lasts; waits go on across a stop; rt_sigreturn refuses frames that a
// program has spoilt; a lock with an owner (FUTEX_LOCK_PI) excludes and hands over.
//
// calls: futex kill rt_sigreturn wait4
#include "check.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <ucontext.h>

static volatile long *steps;

static void *step(void *arg)
{
    for (long i = (long)arg;;) {
        steps[i * 8]++;
        if (i == 2) usleep(100);
        if (i == 3) sched_yield();
    }
    return NULL;
}

static void *return_at_once(void *arg) { return arg; }

static void *create_and_join(void *unused)
{
    for (;;) {
        pthread_t t;
        if (pthread_create(&t, NULL, return_at_once, unused) == 0) pthread_join(t, NULL);
    }
    return NULL;
}

// A child with four threads that all run `f`.
static pid_t four_threads(void *(*f)(void *))
{
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        for (long i = 1; i < 4; i++) {
            pthread_t t;
            RETURNS(pthread_create(&t, NULL, f, (void *)i), 0);
        }
        f(NULL);
    }
    return child;
}

static int wait_with(pid_t child, int options)
{
    int status = 0;
    EQUAL(waitpid(child, &status, options), child);
    return status;
}

// Waits until each thread has moved on from what it was seen at.
static void wait_for_steps(void)
{
    for (int i = 0; i < 4; i++) {
        long seen = steps[i * 8];
        while (steps[i * 8] == seen) sleep_ms(1);
    }
}

static void all_threads_stop_and_go_on(void)
{
    pid_t child = four_threads(step);
    for (int round = 0; round < 5; round++) {
        wait_for_steps();
        OK(kill(child, SIGSTOP));
        int status = wait_with(child, WUNTRACED);
        CHECK(WIFSTOPPED(status));
        EQUAL(WSTOPSIG(status), SIGSTOP);
        long seen[4];
        for (int i = 0; i < 4; i++) seen[i] = steps[i * 8];
        sleep_ms(20);
        for (int i = 0; i < 4; i++) EQUAL(steps[i * 8], seen[i]);
        OK(kill(child, SIGCONT));
        CHECK(WIFCONTINUED(wait_with(child, WCONTINUED)));
    }
    // A fatal signal waits for the end of the stop, SIGKILL doesn't.
    OK(kill(child, SIGSTOP));
    CHECK(WIFSTOPPED(wait_with(child, WUNTRACED)));
    OK(kill(child, SIGTERM));
    sleep_ms(10);
    EQUAL(waitpid(child, NULL, WNOHANG), 0);
    OK(kill(child, SIGKILL));
    EQUAL(WTERMSIG(wait_for(child)), SIGKILL);
}

// A thread that is still on its way out of one stop must not be missed, or counted twice, in the next.
static void quick_stops_are_told(void)
{
    for (int children = 0; children < 6; children++) {
        pid_t child = four_threads(create_and_join);
        for (int i = 0; i < 8; i++) {
            OK(kill(child, SIGSTOP));
            OK(kill(child, SIGCONT));
            OK(kill(child, SIGTSTP));
            OK(kill(child, SIGCONT));
            OK(kill(child, SIGSTOP));
            CHECK(WIFSTOPPED(wait_with(child, WUNTRACED)));
            OK(kill(child, SIGCONT));
        }
        OK(kill(child, SIGKILL));
        CHECK(WIFSIGNALED(wait_for(child)));
    }
}

// In the child: what `wait` returns tells whether it went on as if there had been no stop.
static void across_a_stop(int (*wait)(void))
{
    pid_t child = fork();
    OK(child);
    if (child == 0) _exit(wait());
    sleep_ms(30);
    for (int i = 0; i < 2; i++) {
        OK(kill(child, SIGSTOP));
        CHECK(WIFSTOPPED(wait_with(child, WUNTRACED)));
        OK(kill(child, SIGCONT));
    }
    EQUAL(wait_for(child), 0);
}

static int sleep_once(void)
{
    struct timespec t = {0, 150000000};
    uint64_t start = now_ns();
    if (nanosleep(&t, NULL) != 0) return 1;
    return now_ns() - start < 150000000;
}

static int wait_for_a_writer(void)
{
    int ends[2];
    char c;
    OK(pipe(ends));
    pid_t writer = fork();
    if (writer == 0) {
        sleep_ms(120);
        _exit(write(ends[1], "x", 1) != 1);
    }
    return read(ends[0], &c, 1) != 1 || wait_for(writer) != 0;
}

static int wait_on_a_futex(void)
{
    uint32_t word = 0;
    struct timespec t = {0, 150000000};
    uint64_t start = now_ns();
    if (syscall(SYS_futex, &word, 0, 0, &t, NULL, 0) != -1 || errno != ETIMEDOUT) return 1;
    return now_ns() - start < 150000000;
}

static void waits_go_on_after_a_stop(void)
{
    across_a_stop(sleep_once);
    across_a_stop(wait_for_a_writer);
    across_a_stop(wait_on_a_futex);
}

static int spoil;

static void spoil_frame(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info;
    ucontext_t *u = context;
    greg_t *registers = u->uc_mcontext.gregs;
    char *area = (char *)u->uc_mcontext.fpregs;
    switch (spoil) {
    case 0: break;
    case 1: registers[REG_RIP] = 0x8000000000001234ull; break; // not canonical
    case 2: registers[REG_RIP] = 0xffffffff80000000ull; break; // the kernel's
    case 3: registers[REG_CSGSFS] = 0; break;
    case 4: u->uc_mcontext.fpregs = (void *)0x10; break;       // not mapped
    case 5: u->uc_mcontext.fpregs = (void *)(area + 8); break; // not aligned
    case 6: memset(area + 24, 0xff, 4); break;                 // reserved bits of MXCSR
    case 7: memset(area + 512 + 16, 1, 1); break;              // reserved bytes of the XSAVE header
    case 8: u->uc_mcontext.fpregs = NULL; break;               // allowed: the initial state
    case 9: registers[REG_EFL] |= 1 << 9 | 3 << 12; break;     // allowed, and without effect: IF and IOPL
    }
}

static void spoilt_frames_are_refused(void)
{
    for (spoil = 0; spoil < 10; spoil++) {
        pid_t child = fork();
        OK(child);
        if (child == 0) {
            struct sigaction a = {.sa_sigaction = spoil_frame, .sa_flags = SA_SIGINFO};
            OK(sigaction(SIGUSR1, &a, NULL));
            raise(SIGUSR1);
            _exit(0);
        }
        int fatal = spoil >= 1 && spoil <= 7;
        EQUAL(wait_for(child) & 0x7f, fatal ? SIGSEGV : 0);
    }
}

static _Atomic uint32_t owner;
static long guarded;

static void *lock_and_count(void *unused)
{
    enum { LOCK_PI = 6, UNLOCK_PI = 7, PRIVATE = 128 };
    uint32_t me = syscall(SYS_gettid);
    for (int i = 0; i < 3000; i++) {
        uint32_t expected = 0;
        if (!atomic_compare_exchange_strong(&owner, &expected, me)) OK(syscall(SYS_futex, &owner, LOCK_PI | PRIVATE, 0, NULL));
        EQUAL(owner & 0x3fffffff, me);
        guarded++;
        if (i % 64 == 0) sched_yield();
        expected = me;
        if (!atomic_compare_exchange_strong(&owner, &expected, 0)) OK(syscall(SYS_futex, &owner, UNLOCK_PI | PRIVATE, 0));
    }
    return unused;
}

static void locks_with_an_owner(void)
{
    pthread_t t[6];
    for (int i = 0; i < 6; i++) RETURNS(pthread_create(&t[i], NULL, lock_and_count, NULL), 0);
    for (int i = 0; i < 6; i++) RETURNS(pthread_join(t[i], NULL), 0);
    EQUAL(guarded, 6 * 3000);
    EQUAL(owner, 0);
}

int main(void)
{
    for (int i = 1; i <= 64; i++) signal(i, SIG_DFL);
    steps = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(steps != MAP_FAILED);
    RUN(all_threads_stop_and_go_on);
    RUN(quick_stops_are_told);
    RUN(waits_go_on_after_a_stop);
    RUN(spoilt_frames_are_refused);
    RUN(locks_with_an_owner);
    return finished("jobs");
}
