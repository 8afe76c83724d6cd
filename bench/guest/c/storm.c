// More of everything than is good: fork bombs against RLIMIT_NPROC, signals sent by everybody to everybody, stacks that
// overflow, handlers that fault; each ends as it must, and a crowd of them disturbs nobody.
//
//   storm SENDS
#include "check.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <ucontext.h>

#define PROCESSES 4
#define THREADS 4

// What forked processes share.
static struct {
    _Atomic int live, most, forks, refused;
    _Atomic int ready, done;
    _Atomic long sent[PROCESSES][4], got[PROCESSES][4], out_of_order[PROCESSES], ordinary[PROCESSES];
    pid_t pids[PROCESSES];
} *shared;

static void *stack_new(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

// A child's end: the signal that ended it, or its status negated.
static int end_of(pid_t pid)
{
    int status = wait_for(pid);
    return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}

// Runs `f` in a child of its own, without a core file.
static int ends(void (*f)(void))
{
    pid_t pid = fork();
    CHECK(pid != -1);
    if (pid == 0) {
        f();
        _exit(0);
    }
    return end_of(pid);
}

// ----------------------------------------------------------------------------------------------------------- fork bomb

#define LIMIT 40
// Natively another user's processes may count, so the bomb also ends by itself.
#define MOST_FORKS 3000

static void one_more(void)
{
    int now = ++shared->live;
    for (int most = shared->most; now > most && !atomic_compare_exchange_weak(&shared->most, &most, now);) {}
}

// Forks until told no often enough; most children do the same.
static _Noreturn void bomb(void)
{
    one_more();
    while (!shared->done && shared->forks < MOST_FORKS) {
        pid_t pid = fork();
        if (pid == -1) {
            CHECK(errno == EAGAIN);
            if (++shared->refused > 50) shared->done = 1;
            sched_yield();
        } else if (pid == 0) {
            if (++shared->forks % 3 == 0) _exit(0);
            one_more();
        } else if (shared->forks % 2) {
            // Its end may be long in coming.
            waitpid(pid, NULL, WNOHANG);
        }
    }
    while (waitpid(-1, NULL, 0) != -1 || errno == EINTR) {}
    --shared->live;
    _exit(0);
}

static void fork_bomb(void)
{
    shared->live = shared->most = shared->forks = shared->refused = shared->done = 0;
    pid_t pid = fork();
    CHECK(pid != -1);
    if (pid == 0) {
        // Linux exempts the superuser.
        if (access("/proc/quire", F_OK) && geteuid() == 0) OK(setuid(54321));
        struct rlimit limit = {LIMIT, LIMIT};
        OK(setrlimit(RLIMIT_NPROC, &limit));
        bomb();
    }
    EQUAL(end_of(pid), 0);
    CHECK(shared->refused > 0);
    CHECK(shared->most > 1 && shared->most <= LIMIT);
    EQUAL(shared->live, 0);
    // And now there is room again.
    for (int i = 0; i < 50; i++) {
        pid = fork();
        CHECK(pid != -1);
        if (pid == 0) _exit(0);
        EQUAL(end_of(pid), 0);
    }
}

// Threads count too.
static void *wait_for_end(void *unused)
{
    (void)unused;
    while (!shared->done) sleep_ms(1);
    return NULL;
}

static void threads_to_the_limit(void)
{
    if (access("/proc/quire", F_OK) && geteuid() == 0) OK(setuid(54321));
    struct rlimit limit = {LIMIT, LIMIT};
    OK(setrlimit(RLIMIT_NPROC, &limit));
    pthread_t threads[LIMIT];
    int made = 0, error = 0;
    shared->done = 0;
    while (made < LIMIT && (error = pthread_create(&threads[made], NULL, wait_for_end, NULL)) == 0) made++;
    EQUAL(error, EAGAIN);
    CHECK(made > 0 && made < LIMIT);
    EQUAL(fork(), -1);
    EQUAL(errno, EAGAIN);
    shared->done = 1;
    while (made > 0) RETURNS(pthread_join(threads[--made], NULL), 0);
    _exit(7);
}

static void thread_bomb(void) { EQUAL(ends(threads_to_the_limit), -7); }

// -------------------------------------------------------------------------------------------------------- signal storm

static int me;
static _Atomic long next_of[PROCESSES][4];

// Values of one sender and one signal come in the order in which they were sent. Only one thread sends for a process
// and only one takes, so that order can be seen.
static void on_real_time(int n, siginfo_t *info, void *context)
{
    (void)context;
    int from = info->si_value.sival_int >> 24, kind = n - SIGRTMIN - 1;
    long number = info->si_value.sival_int & 0xffffff;
    if (from < 0 || from >= PROCESSES || kind < 0 || kind >= 4) _exit(3);
    if (number < next_of[from][kind]) shared->out_of_order[me]++;
    next_of[from][kind] = number + 1;
    shared->got[me][kind]++;
}

static void on_ordinary(int n)
{
    (void)n;
    shared->ordinary[me]++;
}

// Maps, writes and forks while signals come.
static void *churn(void *unused)
{
    (void)unused;
    while (!shared->done) {
        char *p = pages_new(16);
        for (int i = 0; i < 16; i++) p[i * PAGE] = (char)i;
        OK(mprotect(p, PAGE, PROT_READ));
        OK(munmap(p, 16 * PAGE));
        pid_t pid = fork();
        CHECK(pid != -1);
        if (pid == 0) _exit(5);
        EQUAL(end_of(pid), -5);
    }
    return NULL;
}

static void send_to_others(long sends)
{
    for (long i = 0; i < sends; i++) {
        int to = (me + 1 + (int)(i % (PROCESSES - 1))) % PROCESSES, kind = (int)(i / 3 % 4);
        union sigval v = {.sival_int = me << 24 | (int)i};
        if (sigqueue(shared->pids[to], SIGRTMIN + 1 + kind, v) == 0) shared->sent[to][kind]++;
        else CHECK(errno == EAGAIN);
        if (i % 5 == 0) OK(kill(shared->pids[to], i % 2 ? SIGUSR1 : SIGUSR2));
        if (i % 64 == 0) sched_yield();
    }
}

static void storm_process(int number, long sends)
{
    me = number;
    // Handlers run in this thread only: the other is made with all signals blocked.
    sigset_t all;
    sigfillset(&all);
    OK(sigprocmask(SIG_BLOCK, &all, NULL));
    pthread_t other;
    struct sigaction act = {.sa_sigaction = on_real_time, .sa_flags = SA_SIGINFO | SA_RESTART};
    for (int i = 0; i < 4; i++) OK(sigaction(SIGRTMIN + 1 + i, &act, NULL));
    act = (struct sigaction){.sa_handler = on_ordinary, .sa_flags = SA_RESTART};
    OK(sigaction(SIGUSR1, &act, NULL));
    OK(sigaction(SIGUSR2, &act, NULL));
    RETURNS(pthread_create(&other, NULL, churn, NULL), 0);
    shared->pids[me] = getpid();
    ++shared->ready;
    while (shared->ready < PROCESSES) sleep_ms(1);
    OK(sigprocmask(SIG_UNBLOCK, &all, NULL));
    send_to_others(sends);
    ++shared->ready;
    while (shared->ready < 2 * PROCESSES) sleep_ms(1);
    shared->done = 1;
    RETURNS(pthread_join(other, NULL), 0);
    _exit(0);
}

static long sends_each;

static void signal_storm(void)
{
    memset(shared, 0, sizeof *shared);
    for (int i = 0; i < PROCESSES; i++) {
        pid_t pid = fork();
        CHECK(pid != -1);
        if (pid == 0) storm_process(i, sends_each);
        shared->pids[i] = pid;
    }
    for (int i = 0; i < PROCESSES; i++) EQUAL(end_of(shared->pids[i]), 0);
    for (int i = 0; i < PROCESSES; i++) {
        // Each that was queued came once, in order.
        for (int kind = 0; kind < 4; kind++) EQUAL(shared->got[i][kind], shared->sent[i][kind]);
        EQUAL(shared->out_of_order[i], 0);
        CHECK(shared->ordinary[i] > 0 && shared->ordinary[i] <= sends_each);
    }
}

// Everybody kills everybody, stops and continues; nobody is left.
static void kill_storm(void)
{
    for (int round = 0; round < 10; round++) {
        int go[2];
        OK(pipe(go));
        pid_t leader = 0, pids[8];
        for (int i = 0; i < 8; i++) {
            pids[i] = fork();
            CHECK(pids[i] != -1);
            if (pids[i] == 0) {
                setpgid(0, leader);
                char c;
                close(go[1]);
                (void)!read(go[0], &c, 1);
                for (;;) {
                    kill(0, SIGSTOP);
                    kill(0, SIGCONT);
                    if (!fork()) pause();
                }
            }
            if (i == 0) leader = pids[0];
            setpgid(pids[i], leader);
        }
        close(go[0]);
        close(go[1]);
        for (int i = 0; i < 20; i++) {
            kill(-leader, SIGCONT);
            sleep_ms(1);
        }
        while (kill(-leader, SIGKILL) == 0 && waitpid(-leader, NULL, WNOHANG) >= 0) {}
        while (waitpid(-1, NULL, 0) != -1 || errno == EINTR) {}
        EQUAL(errno, ECHILD);
    }
}

// --------------------------------------------------------------------------------------------------------------- stacks

static int deeper(int n)
{
    volatile char space[1024];
    space[0] = (char)n;
    return n == -1 ? 0 : deeper(n + 1) + space[0];
}

static __thread sigjmp_buf out;
static __thread uint64_t fault_address;

static void jump_out(int n, siginfo_t *info, void *context)
{
    (void)n, (void)context;
    fault_address = (uint64_t)info->si_addr;
    siglongjmp(out, 1);
}

static void catch(int flags, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction act = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    OK(sigaction(SIGSEGV, &act, NULL));
    OK(sigaction(SIGBUS, &act, NULL));
}

static void alternate(void)
{
    stack_t s = {.ss_sp = stack_new(65536), .ss_size = 65536};
    OK(sigaltstack(&s, NULL));
}

static void overflow_again_and_again(int times)
{
    for (volatile int i = 0; i < times; i++)
        if (!sigsetjmp(out, 1)) {
            deeper(0);
            _exit(1);
        } else {
            uint64_t distance = (uint64_t)__builtin_frame_address(0) - fault_address;
            CHECK(distance < 16 << 20);
        }
}

static void main_overflows(void) { deeper(0); }

static void main_overflows_and_handles(void)
{
    alternate();
    catch(SA_ONSTACK, jump_out);
    overflow_again_and_again(20);
    _exit(9);
}

static void main_overflows_and_cannot_handle(void)
{
    catch(0, jump_out);
    deeper(0);
}

static void main_overflows_a_small_limit(void)
{
    struct rlimit small = {256 << 10, 256 << 10};
    OK(setrlimit(RLIMIT_STACK, &small));
    alternate();
    catch(SA_ONSTACK, jump_out);
    overflow_again_and_again(5);
    _exit(9);
}

static void *thread_overflows(void *unused)
{
    (void)unused;
    deeper(0);
    return NULL;
}

static void *thread_overflows_and_handles(void *unused)
{
    alternate();
    overflow_again_and_again(10);
    return unused;
}

static void a_thread_overflows(void)
{
    pthread_t t;
    RETURNS(pthread_create(&t, NULL, thread_overflows, NULL), 0);
    pthread_join(t, NULL);
}

static void threads_overflow_and_handle(void)
{
    catch(SA_ONSTACK, jump_out);
    pthread_t t[THREADS];
    for (int i = 0; i < THREADS; i++) RETURNS(pthread_create(&t[i], NULL, thread_overflows_and_handles, NULL), 0);
    for (int i = 0; i < THREADS; i++) RETURNS(pthread_join(t[i], NULL), 0);
    _exit(9);
}

static void threads_overflow_and_one_cannot_handle(void)
{
    catch(SA_ONSTACK, jump_out);
    pthread_t t[THREADS];
    for (int i = 0; i < THREADS; i++)
        RETURNS(pthread_create(&t[i], NULL, i == 2 ? thread_overflows : thread_overflows_and_handles, NULL), 0);
    for (int i = 0; i < THREADS; i++) pthread_join(t[i], NULL);
    _exit(9);
}

static void stacks(void)
{
    EQUAL(ends(main_overflows), SIGSEGV);
    EQUAL(ends(main_overflows_and_handles), -9);
    EQUAL(ends(main_overflows_and_cannot_handle), SIGSEGV);
    EQUAL(ends(main_overflows_a_small_limit), -9);
    EQUAL(ends(a_thread_overflows), SIGSEGV);
    EQUAL(ends(threads_overflow_and_handle), -9);
    EQUAL(ends(threads_overflow_and_one_cannot_handle), SIGSEGV);
}

// -------------------------------------------------------------------------------------------------------------- handlers

static volatile int *volatile nowhere;
static _Atomic int depth;
static int wanted_depth;

static void fault(void) { *nowhere = 1; }

static void nest(int n, siginfo_t *info, void *context)
{
    (void)n, (void)info, (void)context;
    if (++depth == wanted_depth) siglongjmp(out, 1);
    fault();
}

static void handlers_nest(void)
{
    catch(SA_NODEFER, nest);
    wanted_depth = 200;
    if (!sigsetjmp(out, 1)) fault();
    EQUAL(depth, 200);
    _exit(9);
}

static void handlers_nest_until_the_stack_ends(void)
{
    catch(SA_NODEFER, nest);
    wanted_depth = -1;
    fault();
}

static void handlers_nest_on_an_alternate_stack(void)
{
    alternate();
    catch(SA_NODEFER | SA_ONSTACK, nest);
    wanted_depth = -1;
    fault();
}

static void a_handler_faults(void)
{
    catch(0, nest);
    wanted_depth = -1;
    fault();
}

static void a_handler_has_a_bad_stack(void)
{
    stack_t s = {.ss_sp = (void *)0x10000, .ss_size = 65536};
    OK(sigaltstack(&s, NULL));
    catch(SA_ONSTACK, nest);
    wanted_depth = 1;
    if (!sigsetjmp(out, 1)) fault();
    _exit(9);
}

static void a_handler_unmaps_its_stack(void)
{
    struct sigaction act = {.sa_handler = (void (*)(int))1};
    act.sa_handler = SIG_DFL;
    OK(sigaction(SIGSEGV, &act, NULL));
    OK(syscall(SYS_munmap, (uint64_t)__builtin_frame_address(0) & ~(PAGE - 1), PAGE));
    deeper(0);
}

// Each thread's faults are answered by mapping what is missing.
static void map_what_is_missing(int n, siginfo_t *info, void *context)
{
    (void)n, (void)context;
    void *page = (void *)((uint64_t)info->si_addr & ~(PAGE - 1));
    if (mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != page) _exit(4);
}

static char *region;

static void *touch_region(void *number)
{
    for (size_t i = 0; i < 200; i++) {
        char *p = region + ((i * THREADS + (size_t)number) % 256) * PAGE;
        *(volatile char *)p = (char)i;
        if (i % 3 == 0) OK(munmap(p, PAGE));
    }
    return NULL;
}

static void handlers_map(void)
{
    catch(SA_NODEFER, map_what_is_missing);
    // Far from where anything else is put.
    region = (char *)0x200000000000;
    pthread_t t[THREADS];
    for (size_t i = 0; i < THREADS; i++) RETURNS(pthread_create(&t[i], NULL, touch_region, (void *)i), 0);
    for (int i = 0; i < THREADS; i++) RETURNS(pthread_join(t[i], NULL), 0);
    _exit(9);
}

static void handlers(void)
{
    EQUAL(ends(handlers_nest), -9);
    EQUAL(ends(handlers_nest_until_the_stack_ends), SIGSEGV);
    EQUAL(ends(handlers_nest_on_an_alternate_stack), SIGSEGV);
    EQUAL(ends(a_handler_faults), SIGSEGV);
    EQUAL(ends(a_handler_has_a_bad_stack), SIGSEGV);
    EQUAL(ends(a_handler_unmaps_its_stack), SIGSEGV);
    EQUAL(ends(handlers_map), -9);
}

int main(int argc, char **argv)
{
    sends_each = argc > 1 ? atol(argv[1]) : 3000;
    struct rlimit none = {0, 0};
    OK(setrlimit(RLIMIT_CORE, &none));
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    RUN(fork_bomb);
    RUN(thread_bomb);
    RUN(signal_storm);
    RUN(kill_storm);
    RUN(stacks);
    RUN(handlers);
    return finished("storm");
}
