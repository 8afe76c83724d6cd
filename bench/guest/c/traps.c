// Every exception that user code can raise: the signal, its code, its address, the trap number and error code are
// Linux's, for privileged instructions, bad jumps, odd flags, spoilt segments, and faults on the way into a handler.
//
// Emulated processors differ from real ones in a few: those are checked for what all of them may do, not told.
//
// calls: rt_sigaction
#include "check.h"

#include <setjmp.h>
#include <sys/resource.h>
#include <ucontext.h>

static sigjmp_buf back;
static volatile uint64_t at; // where the instruction is, if the case says so
static volatile int got_signal, got_code, got_trap;
static volatile uint64_t got_address, got_rip, got_error, got_flags;

static void on_signal(int n, siginfo_t *info, void *context)
{
    // Flags that the case has set may hurt the handler; the kernel has cleared TF and DF, not AC.
    __asm__ volatile("pushfq; andl $~0x40000, (%%rsp); popfq" ::: "cc", "memory");
    ucontext_t *u = context;
    got_signal = n;
    got_code = info->si_code;
    got_address = (uint64_t)info->si_addr;
    got_rip = (uint64_t)u->uc_mcontext.gregs[REG_RIP];
    got_error = (uint64_t)u->uc_mcontext.gregs[REG_ERR];
    got_trap = (int)u->uc_mcontext.gregs[REG_TRAPNO];
    got_flags = (uint64_t)u->uc_mcontext.gregs[REG_EFL];
    siglongjmp(back, 1);
}

static const char *place(uint64_t address)
{
    if (address == 0) return "0";
    if (address == got_rip) return "rip";
    if (address == at) return "instruction";
    return "elsewhere";
}

static void catch_all(void)
{
    static char stack[65536];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    OK(sigaltstack(&alternate, NULL));
    struct sigaction act = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    const int all[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) OK(sigaction(all[i], &act, NULL));
}

// The present bit of a page fault depends on tables that are the kernel's own affair.
#define TOLD_ERROR (got_trap == 14 ? got_error & ~1ull : got_error)

static void tell(const char *name)
{
    printf("%s: signal %d code %d address %s rip %s trap %d error %#llx\n", name, got_signal, got_code, place(got_address),
           got_rip == at ? "instruction" : got_rip == at + 1 ? "instruction + 1" : got_rip == at + 2 ? "instruction + 2" : "elsewhere", got_trap,
           (unsigned long long)TOLD_ERROR);
}

// Some processors do one thing and some another.
static void is_either(const char *name, int signal_or_nothing, int trap, int other_signal, int other_trap)
{
    if (!((got_signal == signal_or_nothing && (!got_signal || got_trap == trap)) || (got_signal == other_signal && (!got_signal || got_trap == other_trap)))) {
        fprintf(stderr, "%s: signal %d trap %d code %d\n", name, got_signal, got_trap, got_code);
        _exit(1);
    }
    printf("%s: as it should\n", name);
}

// One case: assembly that raises an exception at the label 1 or says so in `at` itself.
#define CASE(name, ...)                                                                                                 \
    do {                                                                                                                \
        got_signal = 0;                                                                                                 \
        if (!sigsetjmp(back, 1)) {                                                                                      \
            __asm__ volatile("lea 1f(%%rip), %%rax; mov %%rax, %0\n" __VA_ARGS__ : "=m"(at) : "r"(&data[0]) : "rax", "rcx", "rdx", "rbx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc"); \
            printf("%s: nothing\n", name);                                                                              \
        } else {                                                                                                        \
            tell(name);                                                                                                 \
        }                                                                                                               \
    } while (0)

// One case that may end in two ways, each a signal (or 0) and a trap number.
#define EITHER(name, s1, t1, s2, t2, ...)                                                                               \
    do {                                                                                                                \
        got_signal = 0;                                                                                                 \
        if (!sigsetjmp(back, 1))                                                                                        \
            __asm__ volatile(__VA_ARGS__ :: "r"(&data[0]) : "rax", "rcx", "rdx", "rbx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc"); \
        is_either(name, s1, t1, s2, t2);                                                                                \
    } while (0)

static _Alignas(4096) char data[8192];

static void privileged(void)
{
    CASE("hlt", "1: hlt");
    CASE("cli", "1: cli");
    CASE("sti", "1: sti");
    CASE("in", "1: in $0x80, %%al");
    CASE("out", "1: out %%al, $0x80");
    CASE("insb", "1: insb");
    CASE("rdmsr", "mov $0x1b, %%ecx; 1: rdmsr");
    CASE("wrmsr", "mov $0x1b, %%ecx; 1: wrmsr");
    CASE("mov from cr0", "1: mov %%cr0, %%rax");
    CASE("mov to cr3", "1: mov %%rax, %%cr3");
    CASE("mov from dr7", "1: mov %%dr7, %%rax");
    CASE("lgdt", "1: lgdt (%1)");
    CASE("lidt", "1: lidt (%1)");
    CASE("ltr", "xor %%eax, %%eax; 1: ltr %%ax");
    CASE("invlpg", "1: invlpg (%1)");
    CASE("wbinvd", "1: wbinvd");
    CASE("clts", "1: clts");
    CASE("swapgs", "1: swapgs");
    CASE("sysretq", "1: sysretq");
    CASE("xsetbv", "xor %%ecx, %%ecx; 1: xsetbv");
}

static void invalid(void)
{
    CASE("ud2", "1: ud2");
    CASE("ud0", "1: .byte 0x0f, 0xff, 0xc0");
    CASE("into", "1: .byte 0xce");
    CASE("push es", "1: .byte 0x06");
    CASE("lock on a register", "1: .byte 0xf0, 0x01, 0xc0");
    CASE("16 bytes", "1: .byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90");
}

static void software(void)
{
    CASE("int3", "1: int3");
    CASE("int 3", "1: .byte 0xcd, 3");
    EITHER("int1", SIGTRAP, 1, SIGILL, 6, ".byte 0xf1");
    CASE("int 4", "1: int $4");
    EITHER("int 0", SIGSEGV, 13, SIGSEGV, 13, "int $0");
    EITHER("int 1", SIGSEGV, 13, SIGSEGV, 13, "int $1");
    EITHER("int 8", SIGSEGV, 13, SIGSEGV, 13, "int $8");
    EITHER("int 14", SIGSEGV, 13, SIGSEGV, 13, "int $14");
    EITHER("int 0x20", SIGSEGV, 13, SIGSEGV, 13, "int $0x20");
    EITHER("int 0xf0", SIGSEGV, 13, SIGSEGV, 13, "int $0xf0");
    EITHER("int 0xff", SIGSEGV, 13, SIGSEGV, 13, "int $0xff");
}

static void arithmetic(void)
{
    CASE("div by 0", "xor %%ecx, %%ecx; xor %%edx, %%edx; 1: div %%ecx");
    CASE("idiv overflow", "mov $0x80000000, %%eax; cltd; mov $-1, %%ecx; 1: idiv %%ecx");
    CASE("x87 divide", "fninit; movl $0x37b, (%1); fldcw (%1); fld1; fldz; fdivrp; 1: fwait; fninit");
    EITHER("sse divide", SIGFPE, 19, 0, 0, "movl $0x1d80, (%0); ldmxcsr (%0); xorps %%xmm0, %%xmm0; mov $1, %%eax; cvtsi2ss %%eax, %%xmm1; divss %%xmm0, %%xmm1");
    EITHER("sse invalid", SIGFPE, 19, 0, 0, "movl $0x1f00, (%0); ldmxcsr (%0); xorps %%xmm0, %%xmm0; divss %%xmm0, %%xmm0");
    EITHER("bad mxcsr", SIGSEGV, 13, 0, 0, "movl $0xffffffff, (%0); ldmxcsr (%0)");
    __asm__ volatile("fninit; movl $0x1f80, (%0); ldmxcsr (%0)" ::"r"(data) : "memory");
}

static void memory(void)
{
    CASE("read null", "xor %%ecx, %%ecx; 1: mov (%%rcx), %%eax");
    CASE("write null", "xor %%ecx, %%ecx; 1: mov %%eax, (%%rcx)");
    CASE("call null", "xor %%ecx, %%ecx; 1: call *%%rcx");
    CASE("read kernel", "mov $0xffff800000000000, %%rcx; 1: mov (%%rcx), %%eax");
    CASE("write kernel", "mov $0xffffffff80200000, %%rcx; 1: mov %%eax, (%%rcx)");
    CASE("jump kernel", "mov $0xffffffff80200000, %%rcx; 1: jmp *%%rcx");
    CASE("read above user", "mov $0x7ffffffff000, %%rcx; 1: mov (%%rcx), %%eax");
    CASE("read not canonical", "mov $0x800000000000, %%rcx; 1: mov (%%rcx), %%eax");
    CASE("write not canonical", "mov $0x8000000000000000, %%rcx; 1: mov %%eax, (%%rcx)");
    EITHER("read across the edge", SIGSEGV, 13, SIGSEGV, 14, "mov $0x7ffffffffffc, %%rcx; mov (%%rcx), %%rax");
    EITHER("jump not canonical", SIGSEGV, 13, SIGSEGV, 13, "mov $0x800000000000, %%rcx; jmp *%%rcx");
    EITHER("ret not canonical", SIGSEGV, 13, SIGSEGV, 13, "mov %%rsp, %%rbx; sub $256, %%rsp; mov $0x800000000000, %%rcx; push %%rcx; ret");
    EITHER("stack not canonical", SIGBUS, 12, SIGSEGV, 13, "mov %%rsp, %%rbx; mov $0x800000000100, %%rsp; push %%rax; mov %%rbx, %%rsp");
    CASE("stack null", "mov %%rsp, %%rbx; xor %%esp, %%esp; 1: push %%rax; mov %%rbx, %%rsp");
    CASE("stack kernel", "mov %%rsp, %%rbx; mov $0xffff800000000100, %%rsp; 1: pop %%rax; mov %%rbx, %%rsp");
    CASE("write code", "lea 1f(%%rip), %%rcx; 1: mov %%eax, (%%rcx)");
    CASE("run data", "movb $0xc3, (%1); 1: call *%1");
    CASE("movaps", "1: movaps 1(%1), %%xmm0");
}

static void segments(void)
{
    CASE("ds = 0", "xor %%ecx, %%ecx; mov %%ecx, %%ds; 1: nop");
    CASE("ds = kernel data", "mov $0x18, %%ecx; 1: mov %%ecx, %%ds");
    CASE("ss = 0", "xor %%ecx, %%ecx; 1: mov %%ecx, %%ss");
    CASE("ss = kernel data", "mov $0x18, %%ecx; 1: mov %%ecx, %%ss");
    CASE("es beyond the table", "mov $0xfff8, %%ecx; 1: mov %%ecx, %%es");
    CASE("fs in a local table", "mov $7, %%ecx; 1: mov %%ecx, %%es");
    EITHER("iretq to kernel code", SIGSEGV, 13, SIGSEGV, 14, "mov %%rsp, %%rbx; mov %%ss, %%ecx; push %%rcx; push %%rbx; pushfq; push $0x10; lea 2f(%%rip), %%rcx; push %%rcx; iretq; 2: mov %%rbx, %%rsp");
    EITHER("iretq to nothing", SIGSEGV, 13, SIGSEGV, 14, "mov %%rsp, %%rbx; mov %%ss, %%ecx; push %%rcx; push %%rbx; pushfq; push $0; lea 2f(%%rip), %%rcx; push %%rcx; iretq; 2: mov %%rbx, %%rsp");
    EITHER("iretq as it is", 0, 0, SIGSEGV, 14, "mov %%rsp, %%rbx; mov %%ss, %%ecx; push %%rcx; push %%rbx; pushfq; mov %%cs, %%ecx; push %%rcx; lea 2f(%%rip), %%rcx; push %%rcx; iretq; 2: mov %%rbx, %%rsp");
    EITHER("lretq to kernel code", SIGSEGV, 13, SIGSEGV, 14, "mov %%rsp, %%rbx; push $0x10; lea 2f(%%rip), %%rcx; push %%rcx; lretq; 2: mov %%rbx, %%rsp");
}

// The flag word that a system call returns with, if `set` was in it: all survive but what the kernel owns.
static uint64_t call_with(uint64_t set)
{
    uint64_t after;
    __asm__ volatile("pushfq; or %1, (%%rsp); popfq; mov $39, %%eax; syscall; pushfq; pop %0; pushq $0x202; popfq"
                     : "=r"(after)
                     : "r"(set)
                     : "rax", "rcx", "r11", "memory", "cc");
    return after & set;
}

static void flags(void)
{
    CASE("trap flag", "pushfq; orl $0x100, (%%rsp); popfq; nop; 1: nop; nop");
    CASE("trap flag and a call", "pushfq; orl $0x100, (%%rsp); mov $39, %%eax; popfq; syscall; 1: nop; nop");
    printf("direction %#llx, carry %#llx, nested task %#llx, alignment %#llx, identification %#llx after a call\n",
           (unsigned long long)call_with(0x400), (unsigned long long)call_with(1), (unsigned long long)call_with(0x4000),
           (unsigned long long)call_with(0x40000), (unsigned long long)call_with(0x200000));
    // A handler starts with the direction and trap flags clear, and gets them back afterwards.
    CASE("direction in a handler", "std; 1: ud2; cld");
    printf("it had the direction flag: %d\n", (got_flags & 0x400) != 0);
    uint64_t now;
    __asm__ volatile("pushfq; pop %0" : "=r"(now));
    printf("a handler has it: %d\n", (now & 0x400) != 0);
    __asm__ volatile("cld");
    CASE("popf with privileges", "pushfq; orl $0x3000, (%%rsp); andl $~0x200, (%%rsp); popfq; 1: cli");
    printf("level %#llx, interrupts %#llx\n", (unsigned long long)(got_flags & 0x3000), (unsigned long long)(got_flags & 0x200));
}

// ---- what ends a process

static int dies(void (*f)(void))
{
    fflush(stdout);
    pid_t p = fork();
    CHECK(p != -1);
    if (p == 0) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        // No way back into the cases above.
        const int all[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) signal(all[i], SIG_DFL);
        f();
        _exit(0);
    }
    int status = wait_for(p);
    return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}

static int depth(int n)
{
    volatile char space[4096];
    space[0] = (char)n;
    return n == -1 ? 0 : depth(n + 1) + space[0];
}

static void overflow(void)
{
    signal(SIGSEGV, SIG_DFL);
    depth(0);
}

static void on_overflow(int n, siginfo_t *info, void *u)
{
    (void)n, (void)u;
    uint64_t distance = (uint64_t)u == 0 ? 0 : ((uint64_t)((ucontext_t *)u)->uc_mcontext.gregs[REG_RSP] - (uint64_t)info->si_addr);
    _exit(info->si_code == SEGV_MAPERR && distance + 65536 < 131072 ? 42 : 43);
}

static void overflow_caught(void)
{
    struct sigaction act = {.sa_sigaction = on_overflow, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaction(SIGSEGV, &act, NULL);
    depth(0);
}

static void overflow_caught_on_the_stack(void)
{
    struct sigaction act = {.sa_sigaction = on_overflow, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &act, NULL);
    depth(0);
}

static void fault_again(int n)
{
    (void)n;
    static volatile int *volatile nowhere;
    *nowhere = 1;
}

static void fault_in_handler(void)
{
    signal(SIGSEGV, fault_again);
    fault_again(0);
}

static void fault_in_handler_for_ever(void)
{
    struct sigaction act = {.sa_handler = fault_again, .sa_flags = SA_NODEFER};
    sigaction(SIGSEGV, &act, NULL);
    fault_again(0);
}

static void handler_at(uint64_t address, int signal)
{
    struct sigaction act = {.sa_handler = (void (*)(int))address};
    sigaction(signal, &act, NULL);
    raise(signal);
}

static void handler_not_canonical(void) { handler_at(0x800000000000, SIGUSR1); }
static void handler_in_kernel(void) { handler_at(0xffffffff80000000, SIGUSR1); }
static void handler_unmapped(void) { signal(SIGSEGV, SIG_DFL), handler_at(0x1000, SIGUSR1); }
static void handler_unmapped_itself(void) { handler_at(0x1000, SIGSEGV), fault_again(0); }

static void blocked_fault(void)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    fault_again(0);
}

static void ignored_fault(void)
{
    signal(SIGSEGV, SIG_IGN);
    fault_again(0);
}

static void bad_stack_for_signal(void)
{
    signal(SIGSEGV, SIG_DFL);
    signal(SIGUSR1, fault_again);
    __asm__ volatile("mov $200, %%eax; mov %0, %%edi; mov $10, %%esi; mov $0x800000000100, %%rsp; syscall; ud2" ::"r"((int)getpid()) : "rax", "rdi", "rsi", "rcx", "r11", "memory");
}

static void sigreturn_from_nowhere(void)
{
    signal(SIGSEGV, SIG_DFL);
    __asm__ volatile("mov $8, %%rsp; mov $15, %%eax; syscall; ud2" ::: "rax", "rcx", "r11", "memory");
}

// A handler spoils the frame that it returns by.
static int spoilt_register;
static uint64_t spoilt_value;

static void spoil(int n, siginfo_t *info, void *context)
{
    (void)n, (void)info;
    ((ucontext_t *)context)->uc_mcontext.gregs[spoilt_register] = (greg_t)spoilt_value;
}

static void spoilt(void)
{
    signal(SIGSEGV, SIG_DFL);
    struct sigaction act = {.sa_sigaction = spoil, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &act, NULL);
    raise(SIGUSR1);
}

static void returns(void)
{
    static const struct {
        const char *name;
        int reg;
        uint64_t value;
    } cases[] = {
        {"rip not canonical", REG_RIP, 0x800000000000}, {"rip in the kernel", REG_RIP, 0xffffffff80000000}, {"rip 0", REG_RIP, 0},
        {"rip at the top", REG_RIP, 0x7fffffffffff}, {"rsp not canonical", REG_RSP, 0x8000000000000000}, {"cs kernel", REG_CSGSFS, 0x002b000000000010},
        {"cs 0", REG_CSGSFS, 0x002b000000000000}, {"ss 0", REG_CSGSFS, 0x33}, {"ss kernel", REG_CSGSFS, 0x0018000000000033},
        {"flags all", REG_EFL, 0xffffffffffffffff & ~0x100ull & ~0x40000ull}, {"flags 0", REG_EFL, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        spoilt_register = cases[i].reg;
        spoilt_value = cases[i].value;
        int end = dies(spoilt);
        // A stack that isn't canonical is a stack fault or a general one.
        if (cases[i].reg == REG_RSP && end == SIGBUS) end = SIGSEGV;
        printf("return with %s: %d\n", cases[i].name, end);
    }
}

static void ends(void)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } cases[] = {
        {"stack overflow", overflow}, {"stack overflow, alternate stack", overflow_caught}, {"stack overflow, no alternate stack", overflow_caught_on_the_stack},
        {"fault in its handler", fault_in_handler}, {"fault in its handler for ever", fault_in_handler_for_ever}, {"handler not canonical", handler_not_canonical},
        {"handler in the kernel", handler_in_kernel}, {"handler unmapped", handler_unmapped}, {"handler of SIGSEGV unmapped", handler_unmapped_itself},
        {"fault while blocked", blocked_fault}, {"fault while ignored", ignored_fault}, {"no stack for a signal", bad_stack_for_signal},
        {"sigreturn from nowhere", sigreturn_from_nowhere},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) printf("%s: %d\n", cases[i].name, dies(cases[i].run));
}

// Faults of every kind from several processes at once, and signals without end.
static void *storm_of_faults(void *unused)
{
    (void)unused;
    for (int i = 0; i < 2000; i++)
        if (!sigsetjmp(back, 1)) __asm__ volatile("ud2");
    return NULL;
}

static volatile int counted;
static void count(int n) { (void)n, counted++; }

static void storms(void)
{
    pid_t p[4];
    fflush(stdout);
    for (int i = 0; i < 4; i++)
        if ((p[i] = fork()) == 0) {
            storm_of_faults(NULL);
            _exit(0);
        }
    for (int i = 0; i < 4; i++) EQUAL(wait_for(p[i]), 0);
    pid_t target = fork();
    if (target == 0) {
        for (int s = 34; s < 40; s++) signal(s, count);
        for (;;) pause();
    }
    sleep_ms(20);
    for (int i = 0; i < 3; i++)
        if ((p[i] = fork()) == 0) {
            // Queued ones run into the limit and are refused; that is no error here.
            for (int n = 0; n < 20000; n++) {
                union sigval v = {.sival_int = n};
                if (sigqueue(target, 34 + n % 6, v) == -1) CHECK(errno == EAGAIN);
            }
            _exit(0);
        }
    for (int i = 0; i < 3; i++) {
        int status = wait_for(p[i]);
        // The target may not have handlers yet.
        EQUAL(status, 0);
    }
    kill(target, SIGKILL);
    int status = wait_for(target);
    CHECK(WIFSIGNALED(status));
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    catch_all();
    RUN(privileged);
    RUN(invalid);
    RUN(software);
    RUN(arithmetic);
    RUN(memory);
    RUN(segments);
    RUN(flags);
    RUN(ends);
    RUN(returns);
    RUN(storms);
    return finished("traps");
}
