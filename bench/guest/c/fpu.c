// fpu [THREADS]: the x87, SSE and AVX registers belong to the thread, whatever runs in between.
//
// Proves: many more threads than CPUs, each with its own values in all sixteen vector registers, in the x87 stack and in
// both control words, find them unchanged after system calls, preemption, page faults and signals; a new thread starts
// with the parent's control words; a forked child has its parent's registers; a program starts from the default state.
// 256-bit registers are used when CPUID and XCR0 say that the system saves them.
#include "check.h"
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

static int threads = 8;

static int have_avx(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx"); // asks OSXSAVE and XCR0 too
}

// Loads sixteen registers from `in`, lets something else run, stores them to `out`.
// Sixteen registers are loaded from `in`, something else runs, they are stored to `out`.
#define EACH(load, size)                                                                                                \
    load(0, size) load(1, size) load(2, size) load(3, size) load(4, size) load(5, size) load(6, size) load(7, size)     \
        load(8, size) load(9, size) load(10, size) load(11, size) load(12, size) load(13, size) load(14, size) load(15, size)
#define LOAD_X(n, size) "movdqu " #n "*" #size "(%[in]), %%xmm" #n "\n\t"
#define SAVE_X(n, size) "movdqu %%xmm" #n ", " #n "*" #size "(%[out])\n\t"
#define LOAD_Y(n, size) "vmovdqu " #n "*" #size "(%[in]), %%ymm" #n "\n\t"
#define SAVE_Y(n, size) "vmovdqu %%ymm" #n ", " #n "*" #size "(%[out])\n\t"
#define CLOBBERS                                                                                                        \
    "rcx", "r11", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", \
        "xmm12", "xmm13", "xmm14", "xmm15"

// In between: `spins` turns of a loop (time for the timer), then the system call `number` with no arguments that matter.
#define BETWEEN "1: dec %[spins]\n\tjnz 1b\n\tsyscall\n\t"

static void keep_sse(const uint64_t *in, uint64_t *out, long spins, long number)
{
    __asm__ volatile(EACH(LOAD_X, 16) BETWEEN EACH(SAVE_X, 16)
                     : [spins] "+r"(spins), "+a"(number) : [in] "b"(in), [out] "r"(out), "D"(0L), "S"(0L), "d"(0L) : CLOBBERS);
}

__attribute__((target("avx"))) static void keep_avx(const uint64_t *in, uint64_t *out, long spins, long number)
{
    __asm__ volatile(EACH(LOAD_Y, 32) BETWEEN EACH(SAVE_Y, 32) "vzeroupper\n\t"
                     : [spins] "+r"(spins), "+a"(number) : [in] "b"(in), [out] "r"(out), "D"(0L), "S"(0L), "d"(0L) : CLOBBERS);
}

static long long keep_x87(long long value, long number)
{
    long long back;
    __asm__ volatile("fildll %[value]\n\tfldpi\n\tfld1\n\tsyscall\n\tfstp %%st(0)\n\tfstp %%st(0)\n\tfistpll %[back]"
                     : [back] "=m"(back), "+a"(number) : [value] "m"(value) : "rcx", "r11", "memory", "st", "st(1)", "st(2)");
    return back;
}

static uint16_t x87_control(void)
{
    uint16_t word;
    __asm__ volatile("fnstcw %0" : "=m"(word));
    return word;
}

static void set_rounding(unsigned mode) // 0 to 3, in both units
{
    uint16_t control = 0x37f | (uint16_t)(mode << 10);
    _mm_setcsr(0x1f80 | mode << 13);
    __asm__ volatile("fldcw %0" ::"m"(control));
}

static void rounding_is(unsigned mode)
{
    EQUAL(_mm_getcsr() >> 13 & 3, mode);
    EQUAL(x87_control(), 0x37f | mode << 10);
}

static void *churn(void *self)
{
    uint64_t in[64], out[64], seed = (uint64_t)(intptr_t)self * 0x9e3779b97f4a7c15 + 1;
    int avx = have_avx();
    unsigned rounding = (unsigned)(intptr_t)self % 4;
    set_rounding(rounding);
    for (int round = 0; round < 60; round++) {
        for (int i = 0; i < 64; i++) in[i] = seed = seed * 6364136223846793005 + 1442695040888963407;
        long number = round % 3 ? SYS_sched_yield : SYS_getppid, spins = round % 10 == 0 ? 200000 : 500;
        int words = avx && round % 2 ? 64 : 32;
        if (words == 64)
            keep_avx(in, out, spins, number);
        else
            keep_sse(in, out, spins, number);
        EQUAL(memcmp(in, out, words * 8), 0);
        long long value = (long long)(seed >> 3);
        EQUAL(keep_x87(value, number), value);
        rounding_is(rounding);
        if (round % 20 == 0) {
            char *page = pages_new(1); // a fault in between
            memcpy(page, in, sizeof in);
            EQUAL(memcmp(page, in, sizeof in), 0);
            OK(munmap(page, PAGE));
        }
    }
    return NULL;
}

static void start_state(void)
{
    EQUAL(_mm_getcsr() & ~0x3fu, 0x1f80);
    EQUAL(x87_control(), 0x37f);
}

static void threads_keep_their_registers(void)
{
    pthread_t thread[256];
    for (intptr_t i = 0; i < threads; i++) RETURNS(pthread_create(&thread[i], NULL, churn, (void *)i), 0);
    for (int i = 0; i < threads; i++) RETURNS(pthread_join(thread[i], NULL), 0);
}

static void *check_inherited(void *unused)
{
    rounding_is(1);
    return unused;
}

static void children_inherit(void)
{
    set_rounding(1);
    pthread_t thread;
    RETURNS(pthread_create(&thread, NULL, check_inherited, NULL), 0);
    RETURNS(pthread_join(thread, NULL), 0);
    // The registers of the moment of the fork, seen by the child: the fork itself is the system call in between.
    uint64_t in[64], out[64];
    for (int i = 0; i < 64; i++) in[i] = (uint64_t)i << 32 | 0xabcd;
    pid_t parent = getpid();
    if (have_avx())
        keep_avx(in, out, 1, SYS_fork);
    else
        keep_sse(in, out, 1, SYS_fork);
    EQUAL(memcmp(in, out, have_avx() ? 512 : 256), 0);
    rounding_is(1);
    if (getpid() != parent) _exit(0);
    int status;
    CHECK(wait(&status) > 0);
    EQUAL(status, 0);
    set_rounding(0);
}

static void arithmetic_is_exact(void)
{
    double sum = 0;
    for (int i = 1; i <= 100000; i++) {
        sum += 1.0 / i;
        if (i % 10000 == 0) sched_yield();
    }
    printf("%.15f\n", sum);
    long double wide = 1;
    for (int i = 1; i <= 25; i++) wide *= i;
    printf("%.0Lf\n", wide);
}

int main(int argc, char **argv)
{
    if (argc > 1) threads = atoi(argv[1]);
    CHECK(threads >= 1 && threads <= 256);
    RUN(start_state);
    RUN(threads_keep_their_registers);
    RUN(children_inherit);
    RUN(arithmetic_is_exact);
    return finished("fpu");
}
