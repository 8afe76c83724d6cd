// rseq [THREADS]: restartable sequences.
//
// Proves: registration with all its errors; the CPU number in the structure is that of the thread, also after it moved;
// a critical section is started again after a signal and after preemption, and is left alone outside of its addresses;
// counters of their own for each CPU, incremented without atomic instructions by many threads, lose nothing.
//
// calls: rseq
#include "check.h"
#include <pthread.h>
#include <sched.h>

#ifndef SYS_rseq
#define SYS_rseq 334
#endif
#define SIGNATURE 0x53053053u

struct sequence {
    uint32_t cpu_id_start, cpu_id;
    uint64_t cs;
    uint32_t flags, node_id, mm_cid, pad;
} __attribute__((aligned(32)));

struct section {
    uint32_t version, flags;
    uint64_t start, length, abort;
} __attribute__((aligned(32)));

static int threads = 4;

static long rseq(struct sequence *s, uint32_t len, int flags, uint32_t signature)
{
    return syscall(SYS_rseq, s, len, flags, signature);
}

static void registration(void)
{
    static struct sequence s, other;
    FAILS(rseq(&s, 16, 0, SIGNATURE), EINVAL);
    FAILS(rseq((void *)((char *)&s + 4), 32, 0, SIGNATURE), EINVAL);
    FAILS(rseq(&s, 32, 4, SIGNATURE), EINVAL);
    FAILS(rseq(&s, 32, 1, SIGNATURE), EINVAL);
    FAILS(rseq((void *)0xffff800000000000, 32, 0, SIGNATURE), EFAULT);
    OK(rseq(&s, 32, 0, SIGNATURE));
    FAILS(rseq(&s, 32, 0, SIGNATURE), EBUSY);
    FAILS(rseq(&s, 32, 0, SIGNATURE + 1), EPERM);
    FAILS(rseq(&other, 32, 0, SIGNATURE), EINVAL);
    FAILS(rseq(&other, 32, 1, SIGNATURE), EINVAL);
    FAILS(rseq(&s, 32, 1, SIGNATURE + 1), EPERM);
    CHECK(s.cpu_id < 4096 && s.cpu_id == s.cpu_id_start);
    OK(rseq(&s, 32, 1, SIGNATURE));
    EQUAL(s.cpu_id, (uint32_t)-1);
    EQUAL(s.cpu_id_start, 0);
    OK(rseq(&other, 32, 0, SIGNATURE));
    OK(rseq(&other, 32, 1, SIGNATURE));
}

static void follows_the_thread(void)
{
    static struct sequence s;
    cpu_set_t all, one;
    OK(rseq(&s, 32, 0, SIGNATURE));
    OK(sched_getaffinity(0, sizeof all, &all));
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &all)) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        OK(sched_setaffinity(0, sizeof one, &one));
        EQUAL(*(volatile uint32_t *)&s.cpu_id, cpu);
    }
    OK(sched_setaffinity(0, sizeof all, &all));
    // A forked child has it too, in its own memory.
    pid_t child = fork();
    if (child == 0) {
        FAILS(rseq(&s, 32, 0, SIGNATURE), EBUSY);
        OK(rseq(&s, 32, 1, SIGNATURE));
        _exit(0);
    }
    int status;
    EQUAL(waitpid(child, &status, 0), child);
    EQUAL(status, 0);
    OK(rseq(&s, 32, 1, SIGNATURE));
}

static volatile sig_atomic_t alarms;
static void on_alarm(int signal) { (void)signal, alarms++; }

// Spin inside a critical section until something interrupts it: 1 if it was then left by its abort address.
static int spin(struct sequence *s)
{
    static struct section cs;
    int aborted = 0;
    __asm__ volatile("leaq 1f(%%rip), %%rax\n\tmovq %%rax, 8(%[cs])\n\t"
                     "leaq 2f(%%rip), %%rdx\n\tsubq %%rax, %%rdx\n\tmovq %%rdx, 16(%[cs])\n\t"
                     "leaq 3f(%%rip), %%rax\n\tmovq %%rax, 24(%[cs])\n\t"
                     "movq %[cs], 8(%[s])\n\t"
                     "1: pause\n\tjmp 1b\n\t"
                     "2: jmp 4f\n\t"
                     ".long 0x53053053\n\t"
                     "3: movl $1, %[aborted]\n\t"
                     "4:"
                     : [aborted] "+r"(aborted)
                     : [cs] "r"(&cs), [s] "r"(s)
                     : "rax", "rdx", "memory");
    return aborted;
}

static void a_signal_restarts(void)
{
    static struct sequence s;
    struct sigaction action = {.sa_handler = on_alarm};
    OK(rseq(&s, 32, 0, SIGNATURE));
    OK(sigaction(SIGALRM, &action, NULL));
    for (int i = 0; i < 5; i++) {
        alarms = 0;
        // Again and again, since the first may come before the sequence begins.
        ualarm(2000, 2000);
        // Preemption may end it before the alarm does; either way it ends only by its abort address.
        EQUAL(spin(&s), 1);
        EQUAL(s.cs, 0);
        while (!alarms) usleep(100);
        ualarm(0, 0);
    }
    OK(rseq(&s, 32, 1, SIGNATURE));
}

struct counter {
    uint64_t value;
    char pad[56];
};
static struct counter counters[256];

// Increment this CPU's counter by a load, an addition and a store that nothing of the same CPU comes between.
static void increment(struct sequence *s, struct section *cs)
{
    __asm__ volatile("0: leaq 1f(%%rip), %%rax\n\tmovq %%rax, 8(%[cs])\n\t"
                     "leaq 2f(%%rip), %%rdx\n\tsubq %%rax, %%rdx\n\tmovq %%rdx, 16(%[cs])\n\t"
                     "leaq 3f(%%rip), %%rax\n\tmovq %%rax, 24(%[cs])\n\t"
                     "movq %[cs], 8(%[s])\n\t"
                     "1: movl 4(%[s]), %%eax\n\tshlq $6, %%rax\n\taddq %[counters], %%rax\n\t"
                     "movq (%%rax), %%rdx\n\tmovl $20, %%ecx\n\t5: pause\n\tdecl %%ecx\n\tjnz 5b\n\t"
                     "incq %%rdx\n\tmovq %%rdx, (%%rax)\n\t"
                     "2: jmp 4f\n\t"
                     ".long 0x53053053\n\t"
                     "3: jmp 0b\n\t"
                     "4:"
                     :
                     : [cs] "r"(cs), [s] "r"(s), [counters] "r"(counters)
                     : "rax", "rcx", "rdx", "memory", "cc");
}

static void *count(void *unused)
{
    static _Thread_local struct sequence s;
    static _Thread_local struct section cs;
    (void)unused;
    OK(rseq(&s, 32, 0, SIGNATURE));
    for (int i = 0; i < 20000; i++) increment(&s, &cs);
    OK(rseq(&s, 32, 1, SIGNATURE));
    return NULL;
}

static void nothing_is_lost(void)
{
    pthread_t thread[256];
    for (int i = 0; i < threads; i++) RETURNS(pthread_create(&thread[i], NULL, count, NULL), 0);
    for (int i = 0; i < threads; i++) RETURNS(pthread_join(thread[i], NULL), 0);
    uint64_t sum = 0;
    for (int i = 0; i < 256; i++) sum += counters[i].value;
    EQUAL(sum, 20000 * threads);
}

// A new program has registered nothing, whatever memory it is given: the place that another one registered stays as it is.
static void forgotten_by_exec(void)
{
    pid_t child = fork();
    if (child == 0) {
        char *const argv[] = {"rseq", "fresh", "8", NULL};
        execv("/proc/self/exe", argv);
        _exit(9);
    }
    EQUAL(wait_for(child), 0);
}

// Started anew `left` times more, registering only in every second life.
static int fresh(const char *left)
{
    static uint32_t place[8] __attribute__((aligned(32)));
    int n = atoi(left);
    memset(place, 0x5a, sizeof place);
    if (n % 2 == 0) {
        // The C library may have registered its own.
        if (syscall(SYS_rseq, place, 32, 0, 0x53053053) != 0) return errno == EINVAL || errno == EBUSY ? 0 : 1;
    } else {
        for (int i = 0; i < 20; i++) sched_yield();
        sleep_ms(2);
        for (int i = 0; i < 8; i++) EQUAL(place[i], 0x5a5a5a5a);
    }
    if (n == 0) return 0;
    char next[12];
    snprintf(next, sizeof next, "%d", n - 1);
    char *const argv[] = {"rseq", "fresh", next, NULL};
    execv("/proc/self/exe", argv);
    return 9;
}

int main(int argc, char **argv)
{
    if (argc > 2 && strcmp(argv[1], "fresh") == 0) return fresh(argv[2]);
    if (argc > 1) threads = atoi(argv[1]);
    RUN(registration);
    RUN(follows_the_thread);
    RUN(a_signal_restarts);
    RUN(nothing_is_lost);
    RUN(forgotten_by_exec);
    puts("rseq: all checks passed");
    return 0;
}
