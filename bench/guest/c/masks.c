// masks N: signals against threads that change their masks and actions meanwhile, N times each.
//
// A signal for a process goes to a thread that comes to let it through, whichever of the two is first; a stop stops threads that
// change their masks, and SIGCONT has them go on; an action is one that somebody has set; one that is good for once is had once;
// and what is ignored doesn't wait.
#include "check.h"
#include <pthread.h>
#include <sched.h>

#define THREADS 3
// Nothing takes so long, in ns, but what never comes.
#define NEVER 20000000000u

static unsigned long times;
static _Atomic unsigned long turn, ready, handled, runs;
static _Atomic int over;

static void wait_until(_Atomic unsigned long *count, unsigned long wanted)
{
    uint64_t begin = now_ns();
    while (*count != wanted) {
        CHECK(now_ns() - begin < NEVER);
        sched_yield();
    }
}

static void mask(int how, int signal)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    RETURNS(pthread_sigmask(how, &set, NULL), 0);
}

static void set_action(int signal, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    OK(sigaction(signal, &action, NULL));
}

static void count(int signal)
{
    (void)signal;
    handled++;
}

static void *comes_to_let_it_through(void *none)
{
    for (unsigned long i = 1; i <= times; i++) {
        mask(SIG_BLOCK, SIGUSR1);
        ready = i;
        wait_until(&turn, i);
        for (volatile unsigned long spin = i % 16 * 50; spin > 0; spin--) {}
        mask(SIG_UNBLOCK, SIGUSR1);
        // Makes no call that would look again.
        for (uint64_t begin = now_ns(); handled != i;) CHECK(now_ns() - begin < NEVER);
    }
    return none;
}

// The signal is for the process, whose other thread never takes it.
static void unblocking(void)
{
    pthread_t other;
    mask(SIG_BLOCK, SIGUSR1);
    handled = 0;
    set_action(SIGUSR1, count, 0);
    RETURNS(pthread_create(&other, NULL, comes_to_let_it_through, NULL), 0);
    for (unsigned long i = 1; i <= times; i++) {
        wait_until(&ready, i);
        turn = i;
        for (volatile unsigned long spin = i / 16 % 16 * 50; spin > 0; spin--) {}
        OK(kill(getpid(), SIGUSR1));
        wait_until(&handled, i);
    }
    RETURNS(pthread_join(other, NULL), 0);
    set_action(SIGUSR1, SIG_DFL, 0);
    mask(SIG_UNBLOCK, SIGUSR1);
}

// Of this process and its child: the round, and how often a thread has come to wait for one.
static _Atomic unsigned long *round_of, *come;

static void stay_on(long cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    OK(sched_setaffinity(0, sizeof set, &set));
}

static void *toggles(void *cpu)
{
    stay_on((long)cpu);
    for (unsigned long seen = 0;; seen++) {
        // Makes no call that would look again.
        ++*come;
        while (*round_of == seen) {}
        mask(seen % 2 ? SIG_UNBLOCK : SIG_BLOCK, SIGUSR2);
    }
    return NULL;
}

// Waits, but not for ever, for what a child does.
static void hears(pid_t child, int options, int *status)
{
    for (uint64_t begin = now_ns();;) {
        pid_t got = waitpid(child, status, options | WNOHANG);
        if (got == child) return;
        EQUAL(got, 0);
        if (now_ns() - begin >= NEVER) {
            kill(child, SIGKILL);
            CHECK(!"the child is heard of");
        }
        sched_yield();
    }
}

// All threads of a process stop, and it is told then.
static void stopping(void)
{
    int status;
    round_of = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(round_of != MAP_FAILED);
    come = round_of + 1;
    cpu_set_t anywhere;
    OK(sched_getaffinity(0, sizeof anywhere, &anywhere));
    long cpus = sysconf(_SC_NPROCESSORS_ONLN), others = cpus < 3 ? 1 : cpus <= THREADS ? cpus - 1 : THREADS;
    stay_on(0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        pthread_t all[THREADS];
        for (long i = 0; i < others; i++) RETURNS(pthread_create(&all[i], NULL, toggles, (void *)((i + 1) % cpus)), 0);
        // It is the one that is told first, at once, and tells the others.
        for (;;) {}
    }
    for (unsigned long i = 1; i <= times / 4; i++) {
        wait_until(come, i * (unsigned long)others);
        *round_of = i;
        for (volatile unsigned long spin = i % 16 * 200; spin > 0; spin--) {}
        OK(kill(child, SIGSTOP));
        hears(child, WUNTRACED, &status);
        CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
        OK(kill(child, SIGCONT));
        hears(child, WCONTINUED, &status);
        CHECK(WIFCONTINUED(status));
    }
    OK(kill(child, SIGKILL));
    status = wait_for(child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    OK(munmap((void *)round_of, PAGE));
    OK(sched_setaffinity(0, sizeof anywhere, &anywhere));
}

// Two actions that differ in all they have.
static const struct {
    void (*handler)(int);
    unsigned long flags;
    int blocked;
} sides[2] = {{count, SA_RESTART, SIGUSR1}, {SIG_IGN, SA_ONSTACK, SIGUSR2}};

static void *reads_action(void *none)
{
    while (!over) {
        struct sigaction found;
        OK(sigaction(SIGWINCH, NULL, &found));
        int side = found.sa_handler == sides[1].handler;
        CHECK(found.sa_handler == sides[side].handler);
        EQUAL(found.sa_flags & (SA_RESTART | SA_ONSTACK), sides[side].flags);
        CHECK(sigismember(&found.sa_mask, sides[side].blocked) == 1);
        CHECK(sigismember(&found.sa_mask, sides[!side].blocked) == 0);
    }
    return none;
}

static void whole_actions(void)
{
    pthread_t all[THREADS];
    over = 0;
    for (unsigned long i = 0; i < times * 10; i++) {
        struct sigaction action = {.sa_handler = sides[i % 2].handler, .sa_flags = (int)sides[i % 2].flags};
        sigaddset(&action.sa_mask, sides[i % 2].blocked);
        OK(sigaction(SIGWINCH, &action, NULL));
        for (int t = 0; i == 0 && t < THREADS; t++) RETURNS(pthread_create(&all[t], NULL, reads_action, NULL), 0);
    }
    over = 1;
    for (int t = 0; t < THREADS; t++) RETURNS(pthread_join(all[t], NULL), 0);
    set_action(SIGWINCH, SIG_DFL, 0);
}

static void *signals_itself(void *none)
{
    for (unsigned long i = 1; i <= times; i++) {
        wait_until(&turn, i);
        OK(syscall(SYS_tkill, syscall(SYS_gettid), SIGWINCH));
        ready++;
    }
    return none;
}

// By default the signal does nothing, so the other threads go on.
static void once(void)
{
    pthread_t all[THREADS];
    turn = ready = handled = 0;
    for (int t = 0; t < THREADS; t++) RETURNS(pthread_create(&all[t], NULL, signals_itself, NULL), 0);
    for (unsigned long i = 1; i <= times; i++) {
        set_action(SIGWINCH, count, (int)SA_RESETHAND);
        turn = i;
        wait_until(&ready, i * THREADS);
        EQUAL(handled, i);
    }
    for (int t = 0; t < THREADS; t++) RETURNS(pthread_join(all[t], NULL), 0);
}

static void *is_sent_what_it_blocks(void *none)
{
    pid_t me = (pid_t)syscall(SYS_gettid);
    mask(SIG_BLOCK, SIGUSR2);
    for (unsigned long i = 1; i <= times; i++) {
        sigset_t waits;
        wait_until(&turn, i);
        OK(syscall(SYS_tkill, me, SIGUSR2));
        wait_until(&ready, i);
        // It came before what had it forgotten, or after: then it waits, as it is blocked.
        OK(sigpending(&waits));
        if (i % 2 == 0) set_action(SIGUSR2, SIG_IGN, 0);
        else if (sigismember(&waits, SIGUSR2)) {
            int taken;
            sigset_t set;
            sigemptyset(&set);
            sigaddset(&set, SIGUSR2);
            RETURNS(sigwait(&set, &taken), 0);
        }
        OK(sigpending(&waits));
        CHECK(!sigismember(&waits, SIGUSR2));
        runs = i;
    }
    return none;
}

static void forgetting(void)
{
    pthread_t other;
    turn = ready = runs = 0;
    RETURNS(pthread_create(&other, NULL, is_sent_what_it_blocks, NULL), 0);
    for (unsigned long i = 1; i <= times; i++) {
        set_action(SIGUSR2, count, 0);
        turn = i;
        set_action(SIGUSR2, SIG_IGN, 0);
        ready = i;
        wait_until(&runs, i);
    }
    RETURNS(pthread_join(other, NULL), 0);
}

// What is ignored once is ignored, as only a handler is for once.
static void ignored_once(void)
{
    set_action(SIGUSR1, SIG_IGN, (int)SA_RESETHAND);
    for (int i = 0; i < 2; i++) {
        mask(SIG_BLOCK, SIGUSR1);
        OK(raise(SIGUSR1));
        mask(SIG_UNBLOCK, SIGUSR1);
    }
}

static void *sends_two(void *none)
{
    mask(SIG_UNBLOCK, SIGUSR2);
    for (unsigned long i = 1; i <= times; i++) {
        wait_until(&turn, i);
        // Most often the first thread waits by now.
        for (uint64_t begin = now_ns(); now_ns() - begin < 1000000;) sched_yield();
        OK(kill(getpid(), SIGUSR1));
        OK(kill(getpid(), SIGUSR2));
        for (uint64_t begin = now_ns(); handled != i;) CHECK(now_ns() - begin < NEVER);
    }
    return none;
}

// A thread that waits for two signals is chosen for both, and takes one: the other is for who lets it through.
static void waiting_for_two(void)
{
    pthread_t other;
    sigset_t both;
    turn = handled = 0;
    set_action(SIGUSR1, count, 0);
    set_action(SIGUSR2, count, 0);
    sigemptyset(&both);
    sigaddset(&both, SIGUSR1);
    sigaddset(&both, SIGUSR2);
    RETURNS(pthread_sigmask(SIG_BLOCK, &both, NULL), 0);
    RETURNS(pthread_create(&other, NULL, sends_two, NULL), 0);
    for (unsigned long i = 1; i <= times; i++) {
        turn = i;
        EQUAL(sigwaitinfo(&both, NULL), SIGUSR1);
        wait_until(&handled, i);
    }
    RETURNS(pthread_join(other, NULL), 0);
    RETURNS(pthread_sigmask(SIG_UNBLOCK, &both, NULL), 0);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    times = strtoul(argv[1], NULL, 10);
    RUN(unblocking);
    RUN(stopping);
    RUN(whole_actions);
    RUN(once);
    RUN(forgetting);
    RUN(ignored_once);
    RUN(waiting_for_two);
    return finished("masks");
}
