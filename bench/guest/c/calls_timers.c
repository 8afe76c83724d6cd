// calls_timers: timers that are read, timers that send signals, signals that are read.
//
// Proves: timerfd, timer_create and signalfd: what they accept and refuse, one shot and intervals, absolute times,
// overruns, what is told of a setting, and that poll and epoll see them; ITIMER_VIRTUAL and ITIMER_PROF: that they go by
// processor time, by that in user mode alone or all of it, of all threads, wherever they run and whenever they are made.
//
// calls: getitimer rt_sigtimedwait setitimer signalfd signalfd4 timer_create timer_delete timer_getoverrun
// calls: timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime
#include "check.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/time.h>
#include <sys/timerfd.h>

#define MS 1000000L

static struct itimerspec spec(long first, long interval)
{
    return (struct itimerspec){{interval / 1000000000, interval % 1000000000}, {first / 1000000000, first % 1000000000}};
}

static int readable(int fd, int ms)
{
    struct pollfd p = {fd, POLLIN, 0};
    int n = poll(&p, 1, ms);
    CHECK(n == 0 || p.revents == POLLIN);
    return n;
}

static void timer_files(void)
{
    FAILS(timerfd_create(99, 0), EINVAL);
    FAILS(timerfd_create(CLOCK_PROCESS_CPUTIME_ID, 0), EINVAL);
    FAILS(timerfd_create(CLOCK_MONOTONIC, 1), EINVAL);
    int t = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    OK(t);
    EQUAL(fcntl(t, F_GETFD), FD_CLOEXEC);
    uint64_t n;
    struct itimerspec s = spec(0, 0), old;
    FAILS(read(t, &n, 8), EAGAIN);
    FAILS(read(t, &n, 7), EINVAL);
    FAILS(write(t, &n, 8), EINVAL);
    EQUAL(readable(t, 0), 0);
    FAILS(timerfd_settime(t, 4, &s, NULL), EINVAL);
    FAILS(timerfd_settime(0, 0, &s, NULL), EINVAL);
    FAILS(timerfd_settime(-1, 0, &s, NULL), EBADF);
    FAILS(syscall(SYS_timerfd_settime, t, 0, NULL, NULL), EFAULT);
    FAILS(syscall(SYS_timerfd_gettime, t, 8), EFAULT);
    s.it_value.tv_nsec = 1000000000;
    FAILS(timerfd_settime(t, 0, &s, NULL), EINVAL);
    s.it_value.tv_nsec = -1;
    FAILS(timerfd_settime(t, 0, &s, NULL), EINVAL);
    uint64_t start = now_ns();
    s = spec(200 * MS, 0);
    OK(timerfd_settime(t, 0, &s, &old));
    CHECK(old.it_value.tv_sec == 0 && old.it_value.tv_nsec == 0);
    OK(timerfd_gettime(t, &old));
    CHECK(old.it_value.tv_sec == 0 && old.it_value.tv_nsec > 0 && old.it_value.tv_nsec <= 200 * MS);
    EQUAL(readable(t, -1), 1);
    CHECK(now_ns() - start >= 200 * MS);
    OK(timerfd_gettime(t, &old));
    CHECK(old.it_value.tv_sec == 0 && old.it_value.tv_nsec == 0);
    EQUAL(read(t, &n, 8), 8);
    EQUAL(n, 1);
    FAILS(read(t, &n, 8), EAGAIN);
    OK(fcntl(t, F_SETFL, 0));
    s = spec(5 * MS, 5 * MS); // an interval
    start = now_ns();
    OK(timerfd_settime(t, 0, &s, NULL));
    uint64_t sum = 0;
    while (sum < 10) {
        EQUAL(read(t, &n, 8), 8);
        CHECK(n > 0);
        sum += n;
        CHECK(now_ns() - start >= (sum - 1) * 5 * MS);
    }
    sleep_ms(30);
    EQUAL(read(t, &n, 8), 8);
    CHECK(n >= 5); // those that nobody read were counted
    OK(timerfd_gettime(t, &old));
    EQUAL(old.it_interval.tv_nsec, 5 * MS);
    CHECK(old.it_value.tv_nsec > 0 && old.it_value.tv_nsec <= 5 * MS);
    s = spec(0, 0);
    OK(timerfd_settime(t, 0, &s, &old));
    EQUAL(old.it_interval.tv_nsec, 5 * MS);
    EQUAL(readable(t, 20), 0); // disarmed
    s = (struct itimerspec){.it_value = {0, 1}}; // long past
    OK(timerfd_settime(t, TFD_TIMER_ABSTIME, &s, NULL));
    EQUAL(read(t, &n, 8), 8);
    EQUAL(n, 1);
    OK(close(t));
    t = timerfd_create(CLOCK_REALTIME, 0);
    struct timespec now;
    OK(clock_gettime(CLOCK_REALTIME, &now));
    s = (struct itimerspec){.it_value = now};
    s.it_value.tv_nsec += 20 * MS;
    if (s.it_value.tv_nsec >= 1000000000) {
        s.it_value.tv_sec++;
        s.it_value.tv_nsec -= 1000000000;
    }
    start = now_ns();
    OK(timerfd_settime(t, TFD_TIMER_ABSTIME, &s, NULL));
    int ep = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN | EPOLLET};
    OK(epoll_ctl(ep, EPOLL_CTL_ADD, t, &e));
    EQUAL(epoll_wait(ep, &e, 1, -1), 1);
    CHECK(now_ns() - start >= 10 * MS);
    EQUAL(epoll_wait(ep, &e, 1, 0), 0);
    EQUAL(read(t, &n, 8), 8);
    OK(close(ep));
    OK(close(t));
}

static volatile sig_atomic_t taken, last_value, last_code, last_id;
static void on_timer(int s, siginfo_t *info, void *context)
{
    (void)s;
    (void)context;
    taken++;
    last_value = info->si_value.sival_int;
    last_code = info->si_code;
    last_id = info->si_timerid;
}

static int create(int clock, struct sigevent *e, int *id) { return syscall(SYS_timer_create, clock, e, id); }
static int settime(int id, int flags, struct itimerspec *s, struct itimerspec *old) { return syscall(SYS_timer_settime, id, flags, s, old); }

static void signal_timers(void)
{
    struct sigaction action = {.sa_sigaction = on_timer, .sa_flags = SA_SIGINFO | SA_RESTART};
    OK(sigaction(SIGRTMIN, &action, NULL));
    OK(sigaction(SIGALRM, &action, NULL));
    int a, b;
    struct sigevent e = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 42};
    struct itimerspec s = spec(10 * MS, 0), old;
    FAILS(create(99, &e, &a), EINVAL);
    FAILS(create(CLOCK_MONOTONIC_RAW, &e, &a), EOPNOTSUPP);
    FAILS(create(CLOCK_MONOTONIC, (void *)8, &a), EFAULT);
    FAILS(create(CLOCK_MONOTONIC, &e, (void *)8), EFAULT);
    e.sigev_signo = 0;
    FAILS(create(CLOCK_MONOTONIC, &e, &a), EINVAL);
    e.sigev_signo = 65;
    FAILS(create(CLOCK_MONOTONIC, &e, &a), EINVAL);
    e.sigev_signo = SIGRTMIN;
    e.sigev_notify = 77;
    FAILS(create(CLOCK_MONOTONIC, &e, &a), EINVAL);
    e.sigev_notify = 4; // SIGEV_THREAD_ID, of no thread of ours
    ((int *)&e)[4] = 1;
    FAILS(create(CLOCK_MONOTONIC, &e, &a), EINVAL);
    FAILS(settime(12345, 0, &s, NULL), EINVAL);
    FAILS(syscall(SYS_timer_gettime, 12345, &old), EINVAL);
    FAILS(syscall(SYS_timer_getoverrun, 12345), EINVAL);
    FAILS(syscall(SYS_timer_delete, 12345), EINVAL);
    e.sigev_notify = SIGEV_SIGNAL;
    OK(create(CLOCK_MONOTONIC, &e, &a));
    FAILS(settime(a, 0, NULL, NULL), EINVAL);
    FAILS(settime(a, 0, (void *)8, NULL), EFAULT);
    s.it_value.tv_nsec = 1000000000;
    FAILS(settime(a, 0, &s, NULL), EINVAL);
    s = spec(10 * MS, 0);
    OK(settime(a, 0, &s, &old));
    CHECK(old.it_value.tv_sec == 0 && old.it_value.tv_nsec == 0);
    while (taken < 1) sleep_ms(1);
    EQUAL(last_value, 42);
    EQUAL(last_code, SI_TIMER);
    EQUAL(last_id, a);
    EQUAL(syscall(SYS_timer_getoverrun, a), 0);
    OK(syscall(SYS_timer_gettime, a, &old));
    CHECK(old.it_value.tv_sec == 0 && old.it_value.tv_nsec == 0);
    s = spec(2 * MS, 2 * MS);
    OK(settime(a, 0, &s, NULL));
    while (taken < 6) sleep_ms(1);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    OK(sigprocmask(SIG_BLOCK, &set, NULL));
    int before = taken;
    sleep_ms(30);
    siginfo_t info;
    struct timespec none = {0, 0};
    EQUAL(sigtimedwait(&set, &info, &none), SIGRTMIN);
    EQUAL(info.si_code, SI_TIMER);
    CHECK(info.si_overrun >= 5);
    EQUAL(syscall(SYS_timer_getoverrun, a), info.si_overrun);
    EQUAL(taken, before);
    OK(syscall(SYS_timer_gettime, a, &old));
    EQUAL(old.it_interval.tv_nsec, 2 * MS);
    OK(syscall(SYS_timer_delete, a));
    sigtimedwait(&set, NULL, &none);
    sleep_ms(10);
    FAILS(sigtimedwait(&set, &info, &none), EAGAIN);
    OK(sigprocmask(SIG_UNBLOCK, &set, NULL));
    taken = 0;
    OK(create(CLOCK_REALTIME, NULL, &b)); // SIGALRM
    s = spec(1, 0);
    OK(settime(b, TIMER_ABSTIME, &s, NULL)); // long past
    while (taken < 1) sleep_ms(1);
    EQUAL(last_value, b);
    e = (struct sigevent){.sigev_notify = SIGEV_NONE};
    OK(create(CLOCK_MONOTONIC, &e, &a));
    s = spec(10 * MS, 100 * MS);
    OK(settime(a, 0, &s, NULL));
    sleep_ms(20);
    OK(syscall(SYS_timer_gettime, a, &old));
    CHECK(old.it_value.tv_nsec > 0 && old.it_value.tv_nsec <= 100 * MS);
    EQUAL(taken, 1);
    e = (struct sigevent){.sigev_notify = 4, .sigev_signo = SIGRTMIN};
    ((int *)&e)[4] = syscall(SYS_gettid);
    OK(create(CLOCK_MONOTONIC, &e, &a));
    s = spec(5 * MS, 0);
    OK(settime(a, 0, &s, NULL));
    while (taken < 2) sleep_ms(1);
    pid_t child = fork();
    OK(child);
    if (child == 0) { // timers are not inherited
        FAILS(syscall(SYS_timer_delete, a), EINVAL);
        _exit(3);
    }
    EQUAL(WEXITSTATUS(wait_for(child)), 3);
    signal(SIGRTMIN, SIG_IGN); // ignored meanwhile
    s = spec(2 * MS, 2 * MS);
    OK(settime(a, 0, &s, NULL));
    sleep_ms(20);
    OK(sigaction(SIGRTMIN, &action, NULL));
    taken = 0;
    while (taken < 3) sleep_ms(1);
    OK(syscall(SYS_timer_delete, a));
}

static void signal_files(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    FAILS(signalfd(-1, &set, 1), EINVAL);
    FAILS(signalfd(0, &set, 0), EINVAL);
    FAILS(signalfd(99, &set, 0), EBADF);
    FAILS(syscall(SYS_signalfd4, -1, &set, 4, 0), EINVAL);
    FAILS(syscall(SYS_signalfd4, -1, (void *)8, 8, 0), EFAULT);
    OK(sigprocmask(SIG_BLOCK, &set, NULL));
    int f = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    OK(f);
    struct signalfd_siginfo info[3];
    FAILS(read(f, info, sizeof *info), EAGAIN);
    FAILS(read(f, info, sizeof *info - 1), EINVAL);
    EQUAL(readable(f, 0), 0);
    OK(raise(SIGUSR1));
    OK(kill(getpid(), SIGUSR2));
    EQUAL(readable(f, 0), 1);
    EQUAL(read(f, info, sizeof info), 2 * sizeof *info);
    EQUAL(info[0].ssi_signo, SIGUSR1);
    EQUAL(info[1].ssi_signo, SIGUSR2);
    EQUAL(info[1].ssi_code, SI_USER);
    EQUAL(info[1].ssi_pid, getpid());
    FAILS(read(f, info, sizeof *info), EAGAIN);
    sigdelset(&set, SIGUSR1);
    EQUAL(signalfd(f, &set, 0), f);
    OK(raise(SIGUSR1));
    EQUAL(readable(f, 0), 0);
    OK(fcntl(f, F_SETFL, 0));
    pid_t parent = getpid(), child = fork();
    OK(child);
    if (child == 0) {
        sleep_ms(20);
        OK(kill(parent, SIGUSR2));
        _exit(0);
    }
    EQUAL(read(f, info, sizeof *info), sizeof *info);
    EQUAL(info[0].ssi_pid, child);
    EQUAL(wait_for(child), 0);
    child = fork();
    if (child == 0) {
        sleep_ms(20);
        OK(kill(parent, SIGUSR2));
        _exit(0);
    }
    EQUAL(readable(f, -1), 1);
    EQUAL(wait_for(child), 0);
    OK(close(f));
}

// ---- timers of processor time. All limits are in processor time, which goes on while a machine does something else, and
// by which Linux is up to a few of its ticks early or late.

#define US 1000L
#define TICKS (20 * MS)
// What a signal may take to arrive while the machine is busy.
#define LATE (2000 * MS)

static const int both[2] = {ITIMER_VIRTUAL, ITIMER_PROF}, signals_of[2] = {SIGVTALRM, SIGPROF};
static _Atomic int expired[2];
static _Atomic long expired_at;

static long used(void)
{
    struct timespec t;
    OK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t));
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void on_expiry(int s, siginfo_t *info, void *context)
{
    (void)context;
    EQUAL(info->si_code, SI_KERNEL);
    if (expired[s == SIGPROF]++ == 0) expired_at = used();
}

// Set a timer, in ns.
static struct itimerval set(int which, long first, long interval)
{
    struct itimerval new = {{interval / 1000000000, interval % 1000000000 / US}, {first / 1000000000, first % 1000000000 / US}}, old;
    expired[which == ITIMER_PROF] = 0;
    OK(setitimer(which, &new, &old));
    return old;
}

static long left(int which)
{
    struct itimerval now;
    OK(getitimer(which, &now));
    return now.it_value.tv_sec * 1000000000L + now.it_value.tv_usec * US;
}

static void none_left(int which)
{
    struct itimerval now;
    OK(getitimer(which, &now));
    EQUAL(now.it_value.tv_sec + now.it_value.tv_usec + now.it_interval.tv_sec + now.it_interval.tv_usec, 0);
}

static void compute(void)
{
    for (volatile int i = 0; i < 1000; i++) {}
}

static void compute_for(long ns)
{
    for (long start = used(); used() - start < ns;)
        for (int i = 0; i < 100; i++) compute();
}

static _Atomic int burning, enough;

static void *burn(void *unused)
{
    (void)unused;
    sigset_t all;
    sigfillset(&all);
    RETURNS(pthread_sigmask(SIG_BLOCK, &all, NULL), 0); // the first thread takes the signals
    for (burning++; !enough;) compute();
    return NULL;
}

static void take_expiries(void)
{
    struct sigaction action = {.sa_sigaction = on_expiry, .sa_flags = SA_SIGINFO | SA_RESTART};
    for (int i = 0; i < 2; i++) OK(sigaction(signals_of[i], &action, NULL));
}

static void settings_of_processor_timers(void)
{
    for (int i = 0; i < 2; i++) {
        struct itimerval t = {{0, 0}, {0, 1000000}};
        FAILS(setitimer(both[i], &t, NULL), EINVAL);
        t.it_value.tv_usec = -1;
        FAILS(setitimer(both[i], &t, NULL), EINVAL);
        t = (struct itimerval){{0, 1000000}, {0, 0}};
        FAILS(setitimer(both[i], &t, NULL), EINVAL);
        FAILS(setitimer(both[i], (void *)8, NULL), EFAULT);
        FAILS(syscall(SYS_getitimer, both[i], 8), EFAULT);
        none_left(both[i]);
        set(both[i], 0, 7000 * US); // not set, yet it keeps the interval
        OK(getitimer(both[i], &t));
        EQUAL(t.it_interval.tv_usec, 7000);
        EQUAL(t.it_value.tv_sec + t.it_value.tv_usec, 0);
        t = set(both[i], 1000000000 * 1000L, 5000 * US);
        EQUAL(t.it_interval.tv_usec, 7000);
        EQUAL(t.it_value.tv_sec + t.it_value.tv_usec, 0);
        OK(getitimer(both[i], &t));
        EQUAL(t.it_interval.tv_usec, 5000);
        CHECK(t.it_value.tv_sec >= 900 && t.it_value.tv_sec <= 1000);
        CHECK(left(both[!i]) == 0 || i == 1); // the other one is another one
        FAILS(syscall(SYS_setitimer, both[i], &t, 8), EFAULT); // it is set nevertheless
        t = (struct itimerval){{0, 0}, {INT64_MAX, 999999}};
        OK(setitimer(both[i], &t, NULL));
        CHECK(left(both[i]) != 0);
    }
    for (int i = 0; i < 2; i++) {
        OK(syscall(SYS_setitimer, both[i], NULL, NULL));
        none_left(both[i]);
    }
}

static void processor_time_alone(void)
{
    take_expiries();
    for (int i = 0; i < 2; i++) {
        long before = used();
        set(both[i], 50 * MS, 0);
        while (!expired[i]) compute();
        CHECK(expired_at - before >= 50 * MS - TICKS && expired_at - before <= 50 * MS + LATE);
        none_left(both[i]);
        compute_for(TICKS);
        EQUAL(expired[i], 1);
        before = used();
        set(both[i], 10 * MS, 10 * MS);
        while (expired[i] < 10) compute();
        CHECK(used() - before >= 50 * MS);
        struct itimerval last = set(both[i], 0, 0);
        EQUAL(last.it_interval.tv_usec, 10000);
        CHECK(last.it_value.tv_sec == 0 && last.it_value.tv_usec > 0 && last.it_value.tv_usec * US <= 10 * MS + TICKS);
        set(both[i], 1 * US, 1 * US); // oftener than anybody can take it
        while (expired[i] < 20) compute();
        CHECK(left(both[i]) > 0);
        set(both[i], 0, 0);
        none_left(both[i]);
        compute_for(TICKS);
        EQUAL(expired[i], 0);
    }
    // Nothing passes in sleep.
    long from = used();
    set(ITIMER_PROF, 2000 * MS, 0);
    long until = used(), start = now_ns();
    sleep_ms(300);
    CHECK(now_ns() - start >= 300 * MS);
    long first = used(), rest = left(ITIMER_PROF), second = used();
    CHECK(rest >= 2000 * MS - (second - from) - TICKS && rest <= 2000 * MS - (first - until) + TICKS);
    long again = left(ITIMER_PROF);
    CHECK(again <= rest && again > 0);
    set(ITIMER_PROF, 0, 0);
}

static void user_mode_alone(void)
{
    static char bytes[1 << 20];
    int zero = open("/dev/zero", O_RDONLY);
    OK(zero);
    set(ITIMER_VIRTUAL, 100000 * MS, 0);
    long all = used();
    while (used() - all < 200 * MS)
        for (int i = 0; i < 8; i++) EQUAL(read(zero, bytes, sizeof bytes), sizeof bytes);
    long user = 100000 * MS - left(ITIMER_VIRTUAL);
    all = used() - all;
    CHECK(user < all / 2);
    set(ITIMER_VIRTUAL, 100000 * MS, 0);
    all = used();
    compute_for(200 * MS);
    user = 100000 * MS - left(ITIMER_VIRTUAL);
    all = used() - all;
    CHECK(user > all / 2 && user < 2 * all);
    set(ITIMER_VIRTUAL, 0, 0);
    OK(close(zero));
}

// The first thread sleeps all the while, so that nothing but their running makes the others be looked at.
static void all_threads(void)
{
    pthread_t thread[3];
    sigset_t ours, before_all;
    sigemptyset(&ours);
    for (int i = 0; i < 2; i++) sigaddset(&ours, signals_of[i]);
    OK(sigprocmask(SIG_BLOCK, &ours, &before_all));
    for (int i = 0; i < 2; i++) {
        long before = used();
        enough = burning = 0;
        set(both[i], 150 * MS, 0); // and then they are made
        for (int t = 0; t < 3; t++) RETURNS(pthread_create(&thread[t], NULL, burn, NULL), 0);
        while (!expired[i]) sigsuspend(&before_all);
        CHECK(expired_at - before >= 150 * MS - 3 * TICKS && expired_at - before <= 150 * MS + LATE);
        while (burning < 3) sleep_ms(1);
        before = used();
        set(both[i], 100 * MS, 0); // while they run
        while (!expired[i]) sigsuspend(&before_all);
        CHECK(expired_at - before >= 100 * MS - 3 * TICKS && expired_at - before <= 100 * MS + LATE);
        before = used();
        set(both[i], 5 * MS, 5 * MS); // and while they end
        while (expired[i] < 10) sigsuspend(&before_all);
        enough = 1;
        for (int t = 0; t < 3; t++) RETURNS(pthread_join(thread[t], NULL), 0);
        CHECK(used() - before >= 20 * MS);
        set(both[i], 100000 * MS, 0);
        enough = burning = 0;
        before = used();
        RETURNS(pthread_create(&thread[0], NULL, burn, NULL), 0);
        while (used() - before < 100 * MS) sleep_ms(1);
        enough = 1;
        RETURNS(pthread_join(thread[0], NULL), 0);
        CHECK(left(both[i]) <= 100000 * MS - 50 * MS + TICKS); // what a thread used stays used when it has ended
        set(both[i], 0, 0);
    }
    OK(sigprocmask(SIG_SETMASK, &before_all, NULL));
}

static void kept_and_dropped(void)
{
    for (int i = 0; i < 2; i++) {
        set(both[i], 1000000 * MS, 7000 * US);
        pid_t child = fork();
        OK(child);
        if (child == 0) {
            none_left(both[i]);
            OK(signal(signals_of[i], SIG_DFL) == SIG_ERR ? -1 : 0);
            set(both[i], 30 * MS, 0);
            for (;;) compute();
        }
        int status = wait_for(child);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == signals_of[i]);
        struct itimerval t = set(both[i], 0, 0);
        CHECK(t.it_value.tv_sec >= 900 && t.it_interval.tv_usec == 7000);
        child = fork();
        OK(child);
        if (child == 0) {
            set(both[i], 1000000 * MS, 7000 * US);
            char which[2] = {(char)('0' + both[i]), 0};
            execl("/proc/self/exe", "calls_timers", which, NULL);
            _exit(2);
        }
        EQUAL(wait_for(child), 0);
    }
}

// What `kept_and_dropped` executes.
static int after_exec(int which)
{
    struct itimerval t;
    OK(getitimer(which, &t));
    CHECK(t.it_value.tv_sec >= 900 && t.it_interval.tv_usec == 7000);
    take_expiries();
    set(which, 20 * MS, 0);
    while (!expired[which == ITIMER_PROF]) compute();
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1) return after_exec(atoi(argv[1]));
    OK(close(0));
    EQUAL(open("/dev/null", O_RDONLY), 0);
    RUN(timer_files);
    RUN(signal_timers);
    RUN(signal_files);
    RUN(settings_of_processor_timers);
    RUN(processor_time_alone);
    RUN(user_mode_alone);
    RUN(all_threads);
    RUN(kept_and_dropped);
    return finished("calls_timers");
}
