// signals: what C runtimes, language runtimes and shells expect of signals.
//
// Proves: every fault gives the right signal with the right si_code and si_addr; a handler may edit the saved registers
// and the edit takes effect; a stack overflow is survived on the alternate stack; masks, sigsuspend, pending signals,
// queueing of real-time signals with their values, priority order, nesting, SA_NODEFER, SA_RESETHAND, SA_RESTART and
// EINTR behave as signal(7) says; the floating-point and vector registers of the interrupted code come back.
//
// calls: kill pause rt_sigaction rt_sigqueueinfo rt_sigreturn rt_sigtimedwait setitimer sigaltstack
#include "check.h"
#include <immintrin.h>
#include <pthread.h>
#include <setjmp.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <ucontext.h>

static siginfo_t last;
static volatile int count;
static sigjmp_buf escape;

static void set_handler(int signal, void (*handler)(int, siginfo_t *, void *), int flags)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    sigemptyset(&action.sa_mask);
    OK(sigaction(signal, &action, NULL));
}

static sigset_t set_of(int signal)
{
    sigset_t set;
    sigemptyset(&set);
    if (signal != 0) sigaddset(&set, signal);
    return set;
}

static void jump_out(int signal, siginfo_t *info, void *context)
{
    (void)context;
    EQUAL(info->si_signo, signal);
    last = *info;
    siglongjmp(escape, 1);
}

// Runs `statement`, which must fault with these three.
#define FAULTS(statement, signal, code, address)                                                                       \
    do {                                                                                                                \
        set_handler(signal, jump_out, 0);                                                                               \
        if (sigsetjmp(escape, 1) == 0) {                                                                                \
            statement;                                                                                                  \
            CHECK(!"unreachable: " #statement);                                                                         \
        }                                                                                                               \
        EQUAL(last.si_signo, signal);                                                                                   \
        EQUAL(last.si_code, code);                                                                                      \
        EQUAL((uintptr_t)last.si_addr, (uintptr_t)(address));                                                           \
        set_handler(signal, jump_out, 0);                                                                               \
    } while (0)

#define LOAD(at) ((void)*(volatile char *)(at))
#define STORE(at) (*(volatile char *)(at) = 1)
#define CALL(at) (((void (*)(void))(at))())

static void segmentation_faults(void)
{
    char *p = pages_new(4);
    OK(munmap(p + PAGE, PAGE));
    OK(mprotect(p + 2 * PAGE, PAGE, PROT_READ));
    OK(mprotect(p + 3 * PAGE, PAGE, PROT_NONE));
    FAULTS(LOAD(p + PAGE + 5), SIGSEGV, SEGV_MAPERR, p + PAGE + 5);
    FAULTS(STORE(p + PAGE), SIGSEGV, SEGV_MAPERR, p + PAGE);
    FAULTS(STORE(p + 2 * PAGE + 9), SIGSEGV, SEGV_ACCERR, p + 2 * PAGE + 9);
    FAULTS(LOAD(p + 3 * PAGE + 4095), SIGSEGV, SEGV_ACCERR, p + 3 * PAGE + 4095);
    FAULTS(*(volatile uint64_t *)(p + PAGE - 4) = 1, SIGSEGV, SEGV_MAPERR, p + PAGE); // straddles: the address is the bad page's
    FAULTS(CALL(p), SIGSEGV, SEGV_ACCERR, p);                                           // not executable
    FAULTS(CALL(p + PAGE), SIGSEGV, SEGV_MAPERR, p + PAGE);
    char *volatile null = NULL;
    FAULTS(LOAD(null + 8), SIGSEGV, SEGV_MAPERR, 8);
    FAULTS(LOAD(0xffffffff80000000UL), SIGSEGV, SEGV_MAPERR, 0xffffffff80000000UL); // a kernel address
    FAULTS(LOAD(0x8000000000000000UL), SIGSEGV, SI_KERNEL, 0);                      // not canonical
    FAULTS(__asm__ volatile("hlt"), SIGSEGV, SI_KERNEL, 0);                         // privileged
    FAULTS(__asm__ volatile("mov %%cr3, %%rax" ::: "rax"), SIGSEGV, SI_KERNEL, 0);
    FAULTS(__asm__ volatile("int $0x40"), SIGSEGV, SI_KERNEL, 0);
    OK(mprotect(p + 3 * PAGE, PAGE, PROT_READ | PROT_WRITE));
    STORE(p + 3 * PAGE);
    OK(munmap(p, 4 * PAGE));
}

static void bus_errors(void)
{
    char name[] = "/tmp/quire-signals-XXXXXX";
    int fd = mkstemp(name);
    OK(fd);
    OK(unlink(name));
    OK(ftruncate(fd, PAGE + 100));
    char *p = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(p != MAP_FAILED);
    LOAD(p + 2 * PAGE - 1); // the rest of the last page reads as zero
    FAULTS(LOAD(p + 2 * PAGE + 7), SIGBUS, BUS_ADRERR, p + 2 * PAGE + 7);
    FAULTS(STORE(p + 3 * PAGE), SIGBUS, BUS_ADRERR, p + 3 * PAGE);
    OK(munmap(p, 4 * PAGE));
    OK(close(fd));
}

static void arithmetic_and_illegal_instructions(void)
{
    set_handler(SIGFPE, jump_out, 0);
    if (sigsetjmp(escape, 1) == 0) {
        volatile int zero = 0, one = 1;
        one /= zero;
        CHECK(!"unreachable");
    }
    EQUAL(last.si_code, FPE_INTDIV);
    CHECK(last.si_addr != NULL);
    set_handler(SIGILL, jump_out, 0);
    if (sigsetjmp(escape, 1) == 0) __asm__ volatile("ud2");
    EQUAL(last.si_signo, SIGILL);
    EQUAL(last.si_code, ILL_ILLOPN);
    CHECK(last.si_addr != NULL);
    set_handler(SIGFPE, jump_out, 0);
    // An unmasked x87 division by zero. (QEMU's emulation has no unmasked SSE exceptions.)
    if (sigsetjmp(escape, 1) == 0) {
        uint16_t control = 0x37f & ~4;
        __asm__ volatile("fldcw %0\n\tfld1\n\tfldz\n\tfdivrp\n\tfwait\n\tfninit" ::"m"(control));
        CHECK(!"unreachable");
    }
    EQUAL(last.si_signo, SIGFPE);
    EQUAL(last.si_code, FPE_FLTDIV);
    CHECK(last.si_addr != NULL);
    __asm__ volatile("fninit");
    set_handler(SIGTRAP, jump_out, 0);
    if (sigsetjmp(escape, 1) == 0) __asm__ volatile("int3");
    EQUAL(last.si_signo, SIGTRAP);
    EQUAL(last.si_code, SI_KERNEL);
}

// The handler skips a two-byte instruction and changes what the interrupted code sees in its registers.
static void edit_registers(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info;
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    EQUAL(r[REG_RBX], 0x1111);
    EQUAL(r[REG_R15], 0x2222);
    EQUAL(r[REG_RSI], 0x3333);
    r[REG_RIP] += 2;
    r[REG_RBX] = 0x4444;
    r[REG_R15] = 0x5555;
    r[REG_RAX] = 0x123456789abcdef0;
    r[REG_EFL] |= 1; // carry
    count++;
}

static void register_editing(void)
{
    set_handler(SIGILL, edit_registers, 0);
    count = 0;
    uint64_t rax = 7, rbx = 0x1111, rsi = 0x3333, carry = 0;
    register uint64_t r15 __asm__("r15") = 0x2222;
    __asm__ volatile("clc; ud2; setc %b3" : "+a"(rax), "+b"(rbx), "+r"(r15), "+&d"(carry) : "S"(rsi) : "cc");
    EQUAL(count, 1);
    EQUAL(rax, 0x123456789abcdef0);
    EQUAL(rbx, 0x4444);
    EQUAL(r15, 0x5555);
    EQUAL(carry & 0xff, 1);
}

static char alternate[64 * 1024];
static _Thread_local int depth;

static void on_overflow(int signal, siginfo_t *info, void *context)
{
    char here;
    stack_t now;
    CHECK(&here > alternate && &here < alternate + sizeof alternate);
    OK(sigaltstack(NULL, &now));
    EQUAL(now.ss_flags, SS_ONSTACK);
    now.ss_flags = 0;
    FAILS(sigaltstack(&now, NULL), EPERM); // not while running on it
    jump_out(signal, info, context);
}

static __attribute__((noinline)) int overflow(int n)
{
    volatile char frame[4096];
    frame[n % 4096] = (char)n;
    depth = n;
    return n < 1000000 ? overflow(n + 1) + frame[0] : 0;
}

static void *overflow_in_thread(void *unused)
{
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    OK(sigaltstack(&stack, NULL));
    for (int round = 0; round < 3; round++) {
        depth = 0;
        if (sigsetjmp(escape, 1) == 0) overflow(1);
        EQUAL(last.si_signo, SIGSEGV);
        CHECK(depth > 20 && depth < 80);
    }
    stack.ss_flags = SS_DISABLE;
    OK(sigaltstack(&stack, NULL));
    stack = (stack_t){.ss_sp = alternate, .ss_size = 100};
    FAILS(sigaltstack(&stack, NULL), ENOMEM);
    return unused;
}

static void alternate_stacks(void)
{
    set_handler(SIGSEGV, on_overflow, SA_ONSTACK);
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 * 1024);
    RETURNS(pthread_create(&thread, &attributes, overflow_in_thread, NULL), 0);
    RETURNS(pthread_join(thread, NULL), 0);
    // The main stack's overflow meets the stack limit, not a guard page.
    struct rlimit limit;
    OK(getrlimit(RLIMIT_STACK, &limit));
    if (limit.rlim_cur > 8 << 20) limit.rlim_cur = 8 << 20;
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        OK(setrlimit(RLIMIT_STACK, &limit));
        stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
        OK(sigaltstack(&stack, NULL));
        if (sigsetjmp(escape, 1) == 0) overflow(1);
        EQUAL(last.si_signo, SIGSEGV);
        CHECK(depth > 10 && (rlim_t)depth * PAGE < limit.rlim_cur + PAGE);
        set_handler(SIGSEGV, on_overflow, 0); // without SA_ONSTACK there is nowhere to go: the default action
        overflow(1);
        _exit(0);
    }
    int status = wait_for(child);
    CHECK(WIFSIGNALED(status));
    EQUAL(WTERMSIG(status), SIGSEGV);
}

static int order[64], values[64];

static void note(int signal, siginfo_t *info, void *context)
{
    (void)context;
    order[count] = signal;
    values[count++] = info->si_value.sival_int;
    last = *info;
}

static void masks_and_pending(void)
{
    sigset_t usr1 = set_of(SIGUSR1), old, pending;
    set_handler(SIGUSR1, note, 0);
    count = 0;
    OK(sigprocmask(SIG_BLOCK, &usr1, &old));
    CHECK(!sigismember(&old, SIGUSR1));
    for (int i = 0; i < 3; i++) OK(kill(getpid(), SIGUSR1)); // a standard signal is pending once
    EQUAL(count, 0);
    OK(sigpending(&pending));
    CHECK(sigismember(&pending, SIGUSR1) && !sigismember(&pending, SIGUSR2));
    OK(sigprocmask(SIG_UNBLOCK, &usr1, NULL));
    EQUAL(count, 1);
    EQUAL(last.si_code, SI_USER);
    EQUAL(last.si_pid, getpid());
    EQUAL(last.si_uid, getuid());
    OK(sigprocmask(SIG_BLOCK, &usr1, NULL));
    OK(raise(SIGUSR1));
    sigset_t none = set_of(0);
    FAILS(sigsuspend(&none), EINTR); // lets it in, and restores the mask
    EQUAL(count, 2);
    EQUAL(last.si_code, SI_TKILL);
    OK(sigprocmask(SIG_SETMASK, NULL, &old));
    CHECK(sigismember(&old, SIGUSR1));
    OK(raise(SIGUSR1));
    struct timespec soon = {0, 1000000};
    siginfo_t info;
    EQUAL(sigtimedwait(&usr1, &info, &soon), SIGUSR1);
    EQUAL(info.si_signo, SIGUSR1);
    FAILS(sigtimedwait(&usr1, &info, &soon), EAGAIN);
    OK(raise(SIGUSR1));
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    OK(sigaction(SIGUSR1, &ignore, NULL)); // ignoring discards what is pending
    OK(sigpending(&pending));
    CHECK(!sigismember(&pending, SIGUSR1));
    OK(sigprocmask(SIG_UNBLOCK, &usr1, NULL));
    EQUAL(count, 2);
    FAILS(sigaction(SIGKILL, &ignore, NULL), EINVAL);
    FAILS(kill(getpid(), 65), EINVAL);
    OK(kill(getpid(), 0));
}

static void realtime_queueing(void)
{
    int a = SIGRTMIN, b = SIGRTMIN + 1;
    sigset_t both = set_of(a);
    sigaddset(&both, b);
    struct sigaction action = {.sa_sigaction = note, .sa_flags = SA_SIGINFO, .sa_mask = both};
    OK(sigaction(a, &action, NULL));
    OK(sigaction(b, &action, NULL));
    OK(sigprocmask(SIG_BLOCK, &both, NULL));
    count = 0;
    for (int i = 0; i < 20; i++) OK(sigqueue(getpid(), i % 2 ? a : b, (union sigval){.sival_int = i}));
    OK(sigprocmask(SIG_UNBLOCK, &both, NULL));
    EQUAL(count, 20); // each is delivered, the lower number first, in order of sending
    for (int i = 0; i < 20; i++) {
        EQUAL(order[i], i < 10 ? a : b);
        EQUAL(values[i], i < 10 ? 2 * i + 1 : 2 * (i - 10));
    }
    EQUAL(last.si_code, SI_QUEUE);
}

static volatile int nested, deepest;

static void nest(int signal, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    int level = ++nested;
    if (level > deepest) deepest = level;
    count++;
    if (count < 5) OK(raise(signal == SIGUSR1 ? SIGUSR2 : SIGUSR1));
    nested--;
}

static void nest_self(int signal, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    nested++;
    if (nested > deepest) deepest = nested;
    if (++count < 4) OK(raise(signal));
    nested--;
}

static void nesting(void)
{
    count = deepest = 0;
    set_handler(SIGUSR1, nest, 0);
    set_handler(SIGUSR2, nest, 0);
    OK(raise(SIGUSR1)); // 1 interrupted by 2; each blocks itself meanwhile
    EQUAL(count, 5);
    EQUAL(deepest, 2);
    count = deepest = 0;
    set_handler(SIGUSR1, nest_self, SA_NODEFER);
    OK(raise(SIGUSR1));
    EQUAL(count, 4);
    EQUAL(deepest, 4);
    count = deepest = 0;
    set_handler(SIGUSR1, nest_self, SA_RESETHAND | SA_NODEFER);
    count = 3;
    OK(raise(SIGUSR1));
    struct sigaction now;
    OK(sigaction(SIGUSR1, NULL, &now));
    CHECK(now.sa_handler == SIG_DFL);
}

static void count_it(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    last = *info;
    count++;
}

// Rings every `ms` milliseconds from now, again and again in case the caller does not wait yet; 0 stops.
static void ring(int flags, long ms)
{
    set_handler(SIGALRM, count_it, flags);
    struct itimerval timer = {{0, ms * 1000}, {0, ms * 1000}};
    OK(setitimer(ITIMER_REAL, &timer, NULL));
    if (ms > 0) count = 0;
}

static void restart_and_eintr(void)
{
    int ends[2];
    char byte = 0;
    OK(pipe(ends));
    ring(0, 20);
    FAILS(read(ends[0], &byte, 1), EINTR);
    ring(0, 0);
    CHECK(count > 0);
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        sleep_ms(200);
        _exit(write(ends[1], "x", 1) == 1 ? 0 : 1);
    }
    ring(SA_RESTART, 20);
    EQUAL(read(ends[0], &byte, 1), 1); // interrupted, restarted, then satisfied
    ring(0, 0);
    EQUAL(byte, 'x');
    CHECK(count > 0);
    EQUAL(wait_for(child), 0);
    ring(SA_RESTART, 20);
    struct timespec time = {50, 0}, rest = {0, 0};
    FAILS(nanosleep(&time, &rest), EINTR); // never restarted; says what was left
    ring(0, 0);
    CHECK(rest.tv_sec > 30 && rest.tv_sec < 50);
    ring(0, 20);
    FAILS(pause(), EINTR);
    ring(0, 0);
    EQUAL(last.si_code, SI_KERNEL);
}

static void child_signals(void)
{
    sigset_t chld = set_of(SIGCHLD);
    siginfo_t info;
    set_handler(SIGCHLD, note, 0);
    OK(sigprocmask(SIG_BLOCK, &chld, NULL));
    pid_t child = fork();
    OK(child);
    if (child == 0) _exit(23);
    EQUAL(sigwaitinfo(&chld, &info), SIGCHLD);
    EQUAL(info.si_code, CLD_EXITED);
    EQUAL(info.si_pid, child);
    EQUAL(info.si_status, 23);
    EQUAL(WEXITSTATUS(wait_for(child)), 23);
    child = fork();
    OK(child);
    if (child == 0)
        for (;;) pause();
    OK(kill(child, SIGTERM));
    EQUAL(sigwaitinfo(&chld, &info), SIGCHLD);
    EQUAL(info.si_code, CLD_KILLED);
    EQUAL(info.si_status, SIGTERM);
    EQUAL(WTERMSIG(wait_for(child)), SIGTERM);
    OK(sigprocmask(SIG_UNBLOCK, &chld, NULL));
    signal(SIGCHLD, SIG_IGN); // children leave no status
    child = fork();
    OK(child);
    if (child == 0) _exit(0);
    FAILS(waitpid(child, NULL, 0), ECHILD);
    signal(SIGCHLD, SIG_DFL);
}

// Fills the vector and x87 registers with other values.
static void clobber_vectors(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info, (void)context;
    __asm__ volatile("pcmpeqd %%xmm0, %%xmm0\n\tmovdqa %%xmm0, %%xmm1\n\tmovdqa %%xmm0, %%xmm7\n\tmovdqa %%xmm0, %%xmm15\n\t"
                     "fninit\n\tfldpi\n\tfldpi" ::: "xmm0", "xmm1", "xmm7", "xmm15");
    _mm_setcsr(0x1f80 | _MM_ROUND_UP);
    count++;
}

static void floating_point_state(void)
{
    set_handler(SIGUSR1, clobber_vectors, 0);
    count = 0;
    for (int i = 0; i < 50; i++) {
        double in[4] = {i + 0.25, i + 0.5, i + 0.75, i + 1.0}, out[4];
        long long back;
        unsigned csr = 0x1f80 | _MM_ROUND_DOWN, csr_after;
        long result;
        __asm__ volatile("ldmxcsr %[csr]\n\tmovsd (%[in]), %%xmm0\n\tmovsd 8(%[in]), %%xmm1\n\tmovsd 16(%[in]), %%xmm7\n\t"
                         "movsd 24(%[in]), %%xmm15\n\tfildll %[x87]\n\tsyscall\n\tfistpll %[back]\n\tstmxcsr %[after]\n\t"
                         "movsd %%xmm0, (%[out])\n\tmovsd %%xmm1, 8(%[out])\n\tmovsd %%xmm7, 16(%[out])\n\tmovsd %%xmm15, 24(%[out])"
                         : [back] "=m"(back), [after] "=m"(csr_after), "=a"(result)
                         : [csr] "m"(csr), [x87] "m"((long long){i * 7LL}), [in] "b"(in), [out] "r"(out), "a"((long)SYS_tkill),
                           "D"((long)syscall(SYS_gettid)), "S"((long)SIGUSR1)
                         : "rcx", "r11", "memory", "xmm0", "xmm1", "xmm7", "xmm15", "st");
        EQUAL(result, 0);
        EQUAL(back, i * 7);
        EQUAL(csr_after, csr);
        EQUAL(memcmp(in, out, sizeof in), 0);
    }
    _mm_setcsr(0x1f80);
    EQUAL(count, 50);
}

int main(void)
{
    RUN(segmentation_faults);
    RUN(bus_errors);
    RUN(arithmetic_and_illegal_instructions);
    RUN(register_editing);
    RUN(alternate_stacks);
    RUN(masks_and_pending);
    RUN(realtime_queueing);
    RUN(nesting);
    RUN(restart_and_eintr);
    RUN(child_signals);
    RUN(floating_point_state);
    return finished("signals");
}
