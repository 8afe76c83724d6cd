// levels [THREADS]: Quire's own calls, which protect single pages and hand forbidden accesses to the program.
//
// Proves: AT_QUIRE and what it points to; bad arguments have an errno and change nothing; an access that a level forbids makes
// an upcall with all registers as they were, and goes on after q_resume; upcalls within upcalls, and within signals
// that come during an upcall; no stack, no room, a stack that can't be written; what was written is told once; threads that
// fault on one page while others lower it; execve and fork. In a design without levels none of the calls is there.
//
// The calls are q_region, q_upcall, q_prot, q_dirty and q_resume: docs/primitives.md.
#include "levels.h"
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/uio.h>

// An access that may make an upcall, by which anything may change.
static __attribute__((noinline)) int get(const char *p)
{
    int value = *(volatile const char *)p;
    asm volatile("" ::: "memory");
    return value;
}
static __attribute__((noinline)) void put(char *p, int value)
{
    *(volatile char *)p = value;
    asm volatile("" ::: "memory");
}

static void numbers(void)
{
    announced();
    FAILS(syscall(first + 5, 0), ENOSYS);
    FAILS(syscall(first - 1, 0), ENOSYS);
}

// A design without levels has none of it.
static void absent(void)
{
    char *p = pages_new(16);
    uint64_t bits[1];
    FAILS(q_region(p, PAGE, NONE), ENOSYS);
    FAILS(q_upcall(entry, p, 16 * PAGE, 0), ENOSYS);
    FAILS(set(p, 1, NONE, 0), ENOSYS);
    FAILS(q_dirty(p, 1, bits, 0), ENOSYS);
    struct frame f = {.rip = (uint64_t)entry, .address = (uint64_t)p};
    FAILS(q_resume(&f, WRITE, 1), ENOSYS);
}

static void bad_arguments(void)
{
    char *p = pages_new(8);
    uint64_t bits[1];
    void *kernel = (void *)0xffff800000000000;
    FAILS(q_region(p + 1, PAGE, NONE), EINVAL);
    FAILS(q_region(p, PAGE + 1, NONE), EINVAL);
    FAILS(q_region(p, 0, NONE), EINVAL);
    FAILS(q_region(p, -PAGE, NONE), EINVAL);
    FAILS(q_region(kernel, PAGE, NONE), EINVAL);
    FAILS(q_region(p, PAGE, 4), EINVAL);
    FAILS(q_region(p, PAGE, -1), EINVAL);
    FAILS(q_region((void *)PAGE, PAGE, NONE), ENOMEM);
    OK(munmap(p + 7 * PAGE, PAGE));
    FAILS(q_region(p, 8 * PAGE, NONE), ENOMEM);
    p[0] = 1;
    FAILS(set(p, 1, NONE, 0), EINVAL);
    OK(q_region(p, 4 * PAGE, WRITE));
    FAILS(set(p, 5, NONE, 0), EINVAL);
    FAILS(set(p, 0, NONE, 0), EINVAL);
    FAILS(set(p + 8, 1, NONE, 0), EINVAL);
    FAILS(set(p, 1, 3, 0), EINVAL);
    FAILS(set(p, 1, NONE, 2), EINVAL);
    FAILS(set(p, 1ul << 60, NONE, 0), EINVAL);
    FAILS(set(kernel, 1, NONE, 0), EINVAL);
    FAILS(q_prot(kernel, 1), EFAULT);
    FAILS(q_prot((void *)8, 1), EFAULT);
    FAILS(q_prot(NULL, 1ul << 40), EINVAL);
    OK(q_prot(NULL, 0));
    struct op back[2] = {{(uint64_t)p + PAGE, 1, NONE, 0}, {(uint64_t)p, 1, NONE, 0}};
    FAILS(q_prot(back, 2), EINVAL);
    back[1].addr = back[0].addr;
    FAILS(q_prot(back, 2), EINVAL);
    p[PAGE] = 1;
    FAILS(q_dirty(p + 1, 1, bits, 0), EINVAL);
    FAILS(q_dirty(p, 0, bits, 0), EINVAL);
    FAILS(q_dirty(p, 1, bits, 1), EINVAL);
    FAILS(q_dirty(p, 1, kernel, 0), EFAULT);
    FAILS(q_dirty(p, 1, NULL, 0), EFAULT);
    FAILS(q_dirty(p, 1ul << 50, bits, 0), EINVAL);
    // What could not be told is not forgotten.
    OK(q_dirty(p, 4, bits, 0));
    EQUAL(bits[0], 3);
    char *stack = pages_new(16);
    FAILS(q_upcall(entry, stack + 8, 16 * PAGE - 16, 0), EINVAL);
    FAILS(q_upcall(entry, stack, PAGE, 0), EINVAL);
    FAILS(q_upcall(entry, stack, 16 * PAGE - 8, 0), EINVAL);
    FAILS(q_upcall(entry, stack, -16, 0), EINVAL);
    FAILS(q_upcall(kernel, stack, 16 * PAGE, 0), EINVAL);
    FAILS(q_upcall(entry, (void *)PAGE, 16 * PAGE, 0), EFAULT);
    struct frame f = {.rip = 0x800000000000, .address = (uint64_t)p};
    FAILS(q_resume(NULL, WRITE, 1), EFAULT);
    FAILS(q_resume(kernel, WRITE, 1), EFAULT);
    FAILS(q_resume(&f, WRITE, 1), EFAULT);
    f.rip = (uint64_t)entry;
    FAILS(q_resume(&f, 4, 1), EINVAL);
    FAILS(q_resume(&f, WRITE, -1), EINVAL);
    FAILS(q_resume(&f, WRITE, 100), EINVAL);
    f.mask = 1;
    f.word = (uint64_t)&f.mask + 1;
    FAILS(q_resume(&f, WRITE, 1), EINVAL);
    f.word = (uint64_t)kernel;
    FAILS(q_resume(&f, WRITE, 1), EFAULT);
    f.word = 0;
    f.address = (uint64_t)kernel;
    FAILS(q_resume(&f, WRITE, 1), EINVAL);
    f.address = PAGE;
    FAILS(q_resume(&f, WRITE, 1), ENOMEM);
    f.address = (uint64_t)p + 5 * PAGE;
    FAILS(q_resume(&f, WRITE, 1), EINVAL);
}

static void trap(void)
{
    struct block b;
    arm(&b);
    char *p = managed(4, NONE);
    put(p + 5, 7);
    EQUAL(b.calls, 1);
    EQUAL(b.address, (uint64_t)p + 5);
    EQUAL(b.was, NONE);
    EQUAL(b.error & 6, 6);
    EQUAL(get(p + 5), 7);
    EQUAL(b.calls, 1);
    b.level = READ;
    EQUAL(get(p + PAGE), 0);
    EQUAL(b.calls, 2);
    EQUAL(b.error & 6, 4);
    b.level = WRITE;
    put(p + PAGE, 1);
    EQUAL(b.calls, 3);
    EQUAL(b.was, READ);
    EQUAL(*(uint64_t *)b.stack, (uint64_t)b.stack + b.size);
    // Lowered: what is there stays.
    OK(set(p, 2, READ, 0));
    EQUAL(get(p + 5) + get(p + PAGE), 8);
    EQUAL(b.calls, 3);
    // No more upcalls: a signal.
    OK(q_region(p, 4 * PAGE, UNMANAGED));
    put(p + 3 * PAGE, 1);
    EQUAL(b.calls, 3);
    disarm(&b);
}

static void registers(void)
{
    struct block b;
    arm(&b);
    char *p = managed(1, NONE);
    uint64_t out[16], flags = 0, sum = 0;
    uint64_t vector[2] = {0x0123456789abcdef, 0xfedcba9876543210}, back[2];
    for (int round = 0; round < 2; round++) {
        OK(set(p, 1, NONE, 0));
        asm volatile("movdqu %[in], %%xmm7\n"
                     "mov $1, %%rax\n mov $2, %%rcx\n mov $3, %%rdx\n mov $4, %%rsi\n"
                     "mov $6, %%r8\n mov $7, %%r9\n mov $8, %%r10\n mov $9, %%r11\n mov $10, %%r12\n"
                     "mov $11, %%r13\n mov $12, %%r14\n std\n stc\n"
                     "movb $5, (%%rdi)\n"
                     "pushfq\n cld\n"
                     "mov %%rax, (%[out])\n mov %%rcx, 8(%[out])\n mov %%rdx, 16(%[out])\n"
                     "mov %%rsi, 24(%[out])\n mov %%rdi, 32(%[out])\n mov %%r8, 40(%[out])\n"
                     "mov %%r9, 48(%[out])\n mov %%r10, 56(%[out])\n mov %%r11, 64(%[out])\n"
                     "mov %%r12, 72(%[out])\n mov %%r13, 80(%[out])\n mov %%r14, 88(%[out])\n"
                     "pop %%rax\n mov %%rax, 96(%[out])\n"
                     "movdqu %%xmm7, %[back]\n"
                     : [back] "=m"(back)
                     : [in] "m"(vector), [out] "r"(out), "D"(p)
                     : "rax", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "xmm7", "memory",
                       "cc");
        flags = out[12];
        sum = out[0] + out[1] + out[2] + out[3] + out[5] + out[6] + out[7] + out[8] + out[9] + out[10] + out[11];
        EQUAL(sum, 1 + 2 + 3 + 4 + 6 + 7 + 8 + 9 + 10 + 11 + 12);
        EQUAL(out[4], (uint64_t)p);
        EQUAL(flags & 0x401, 0x401);
        CHECK(memcmp(vector, back, 16) == 0);
        EQUAL(b.calls, round + 1);
    }
    disarm(&b);
}

static uint32_t bits_left = 7;
static void clears(struct frame *f, struct block *b)
{
    (void)b;
    f->word = (uint64_t)&bits_left;
    f->mask = 5;
}

static void raises(struct frame *f, struct block *b)
{
    (void)f;
    OK(set(b->page, 1, WRITE, 1));
}

// 1 if the load did not happen.
extern char past_load[];
static __attribute__((noinline)) int diverted(char *p)
{
    int result = 1;
    asm volatile("mov (%1), %%rcx\n xor %0, %0\n .globl past_load\n past_load:\n" : "+r"(result) : "r"(p) : "rcx", "memory");
    return result;
}
static void diverts(struct frame *f, struct block *b)
{
    (void)b;
    f->rip = (uint64_t)past_load;
}

static void as_it_is(void)
{
    struct block b;
    arm(&b);
    b.page = managed(1, NONE);
    b.handler = raises;
    b.level = 3;
    put(b.page, 1);
    EQUAL(b.calls, 1);
    EQUAL(*(uint64_t *)b.stack, (uint64_t)b.stack + b.size);
    // Elsewhere.
    OK(set(b.page, 1, NONE, 0));
    b.handler = diverts;
    EQUAL(diverted(b.page), 1);
    EQUAL(b.calls, 2);
    // The end is told by a word.
    b.level = WRITE;
    b.handler = clears;
    put(b.page, 2);
    EQUAL(b.calls, 3);
    EQUAL(bits_left, 2);
    disarm(&b);
}

static void touches(struct frame *f, struct block *b)
{
    (void)f;
    if (b->depth < 5) put(b->page + b->depth * PAGE, 1);
}

static void nested(void)
{
    struct block b;
    arm(&b);
    b.page = managed(8, NONE);
    b.handler = touches;
    put(b.page, 1);
    EQUAL(b.calls, 5);
    EQUAL(b.deepest, 5);
    for (int i = 0; i < 5; i++) EQUAL(get(b.page + i * PAGE), 1);
    EQUAL(b.calls, 5);
    disarm(&b);
}

static struct block *signalled;
static void on_signal(int signal)
{
    (void)signal;
    char *page = signalled->page + PAGE;
    put(page, 2);
}

static void raises_signal(struct frame *f, struct block *b)
{
    char mark[4096];
    memset(mark, 0x5a, sizeof mark);
    if (b->depth == 1) OK(raise(SIGUSR1));
    for (size_t i = 0; i < sizeof mark; i++) EQUAL(mark[i], 0x5a);
    CHECK(f->cookie == (uint64_t)b);
}

static void within_a_signal(void)
{
    struct block b;
    arm(&b);
    signalled = &b;
    b.page = managed(2, NONE);
    b.handler = raises_signal;
    stack_t alt = {.ss_sp = pages_new(16), .ss_size = 16 * PAGE};
    for (int own = 0; own < 2; own++) {
        struct sigaction action = {.sa_handler = on_signal, .sa_flags = own ? SA_ONSTACK : 0};
        OK(sigaltstack(&alt, NULL));
        OK(sigaction(SIGUSR1, &action, NULL));
        OK(set(b.page, 2, NONE, 0));
        b.calls = 0;
        put(b.page, 1);
        EQUAL(b.calls, 2);
        EQUAL(get(b.page) + get(b.page + PAGE), 3);
        EQUAL(*(uint64_t *)b.stack, (uint64_t)b.stack + b.size);
    }
    disarm(&b);
}

// Runs in a child: it must die of SIGSEGV.
static void dies(void (*how)(char *))
{
    char *p = managed(2, NONE);
    pid_t pid = fork();
    OK(pid);
    if (pid == 0) {
        how(p);
        _exit(0);
    }
    int status = wait_for(pid);
    CHECK(WIFSIGNALED(status));
    EQUAL(WTERMSIG(status), SIGSEGV);
}

static void unarmed(char *p) { put(p, 1); }
static void managed_stack(char *p)
{
    static struct block b;
    arm(&b);
    OK(q_region(b.stack, b.size, NONE));
    put(p, 1);
}
static void unmapped_stack(char *p)
{
    static struct block b;
    arm(&b);
    OK(munmap(b.stack, b.size));
    put(p, 1);
}
static void again(struct frame *f, struct block *b)
{
    (void)f;
    put(b->page, 1);
}
static void endless(char *p)
{
    static struct block b;
    arm(&b);
    b.page = p;
    b.handler = again;
    put(p, 1);
}
static void after_exec(char *p)
{
    (void)p;
    static struct block b;
    arm(&b);
    execl("/proc/self/exe", "levels", "unarmed", NULL);
}
static void fetches(char *p)
{
    static struct block b;
    arm(&b);
    OK(mprotect(p, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC));
    ((void (*)(void))p)();
}

static void what_kills(void)
{
    dies(unarmed);
    dies(managed_stack);
    dies(unmapped_stack);
    dies(endless);
    dies(fetches);
    dies(after_exec);
}

static void forked(void)
{
    struct block b;
    arm(&b);
    char *p = managed(4, WRITE);
    put(p, 1);
    OK(set(p, 4, NONE, 0));
    pid_t pid = fork();
    OK(pid);
    if (pid == 0) {
        EQUAL(get(p), 1);
        put(p, 2);
        EQUAL(b.calls, 1);
        _exit(0);
    }
    EQUAL(wait_for(pid), 0);
    EQUAL(b.calls, 0);
    EQUAL(get(p), 1);
    EQUAL(b.calls, 1);
    disarm(&b);
}

static void written(void)
{
    enum { PAGES = 1000 };
    struct block b;
    arm(&b);
    char *p = managed(PAGES, WRITE);
    uint64_t bits[(PAGES + 63) / 64];
    OK(q_dirty(p, PAGES, bits, 0));
    for (size_t i = 0; i < PAGES; i += 10) put(p + i * PAGE, 1);
    for (size_t i = 5; i < PAGES; i += 10) EQUAL(get(p + i * PAGE), 0);
    OK(q_dirty(p, PAGES, bits, 0));
    for (size_t i = 0; i < PAGES; i++) EQUAL(bits[i / 64] >> i % 64 & 1, i % 10 == 0);
    OK(q_dirty(p, PAGES, bits, 0));
    for (size_t i = 0; i < sizeof bits / 8; i++) EQUAL(bits[i], 0);
    // What the kernel writes, and what is lowered after it was written.
    int pipes[2];
    OK(pipe(pipes));
    EQUAL(write(pipes[1], "abc", 3), 3);
    EQUAL(read(pipes[0], p + 3 * PAGE, 3), 3);
    put(p + 10 * PAGE, 2);
    OK(set(p, PAGES, NONE, 0));
    OK(q_dirty(p, PAGES, bits, 0));
    EQUAL(bits[0], 1 << 3 | 1 << 10);
    // The whole of it moves.
    OK(set(p, PAGES, WRITE, 1));
    put(p + 7 * PAGE, 2);
    char *q = mremap(p, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, pages_new(PAGES));
    CHECK(q != MAP_FAILED);
    OK(q_dirty(q, PAGES, bits, 0));
    EQUAL(bits[0], 1 << 7);
    EQUAL(b.calls, 0);
    disarm(&b);
}

static void starts_over(void)
{
    struct block b;
    arm(&b);
    char *p = managed(4, NONE);
    int pipes[2], status;
    OK(pipe(pipes));
    // The kernel reads: one upcall for each page, and all of it is there.
    EQUAL(write(pipes[1], p + PAGE - 2, 4), 4);
    EQUAL(b.calls, 2);
    EQUAL(b.error & 2, 0);
    OK(set(p, 4, NONE, 0));
    EQUAL(read(pipes[0], p + PAGE - 2, 4), 4);
    EQUAL(b.calls, 4);
    EQUAL(b.error & 2, 2);
    // What is told only once.
    OK(set(p, 4, NONE, 0));
    pid_t pid = fork();
    OK(pid);
    if (pid == 0) _exit(7);
    EQUAL(wait4(pid, (int *)p, 0, (struct rusage *)(p + PAGE)), pid);
    status = *(int *)p;
    EQUAL(WEXITSTATUS(status), 7);
    EQUAL(b.calls, 6);
    OK(set(p, 4, NONE, 0));
    OK(pipe((int *)(p + 2 * PAGE)));
    int *made = (int *)(p + 2 * PAGE);
    EQUAL(b.calls, 7);
    EQUAL(made[1] - made[0], 1);
    OK(close(made[0]));
    OK(close(made[1]));
    // Vectors, which lie in such pages too.
    OK(set(p, 4, NONE, 0));
    struct iovec *v = (struct iovec *)(p + 3 * PAGE);
    v[0] = (struct iovec){p, 2};
    v[1] = (struct iovec){p + PAGE, 2};
    OK(set(p, 4, NONE, 0));
    b.calls = 0;
    EQUAL(writev(pipes[1], v, 2), 4);
    EQUAL(b.calls, 3);
    OK(set(p, 4, NONE, 0));
    EQUAL(readv(pipes[0], v, 2), 4);
    EQUAL(b.calls, 6);
    // A path, and what is no fault of a level.
    OK(set(p, 4, NONE, 0));
    strcpy(p + PAGE, "/proc/self/stat");
    OK(set(p, 4, NONE, 0));
    int fd = open(p + PAGE, O_RDONLY);
    OK(fd);
    OK(set(p, 1, NONE, 0));
    b.calls = 0;
    CHECK(pread(fd, p, 40, 0) > 10);
    EQUAL(b.calls, 1);
    FAILS(pread(fd, NULL, 40, 0), EFAULT);
    FAILS(write(pipes[1], (void *)PAGE, 1), EFAULT);
    EQUAL(b.calls, 1);
    OK(close(fd));
    disarm(&b);
    // Without upcalls it is an error, as of a page that can't be accessed.
    OK(set(p, 4, NONE, 0));
    FAILS(write(pipes[1], p, 1), EFAULT);
    OK(close(pipes[0]));
    OK(close(pipes[1]));
}

static char *shared_page;
static _Atomic int stop;

static void *adds(void *n)
{
    struct block b;
    arm(&b);
    for (long i = 0; i < 2000; i++) __atomic_fetch_add((long *)(shared_page + i % 4 * PAGE), 1, __ATOMIC_RELAXED);
    CHECK(b.calls > 0 || n == NULL);
    disarm(&b);
    return NULL;
}

static void *lowers(void *unused)
{
    (void)unused;
    while (!stop) {
        for (int i = 0; i < 4; i++) {
            OK(set(shared_page + i * PAGE, 1, NONE, 0));
            if (i == 2) OK(set(shared_page, 4, READ, 0));
        }
        sched_yield();
    }
    return NULL;
}

static void contended(int threads)
{
    shared_page = managed(4, NONE);
    pthread_t all[64], other;
    RETURNS(pthread_create(&other, NULL, lowers, NULL), 0);
    for (int i = 0; i < threads; i++) RETURNS(pthread_create(&all[i], NULL, adds, NULL), 0);
    for (int i = 0; i < threads; i++) RETURNS(pthread_join(all[i], NULL), 0);
    stop = 1;
    RETURNS(pthread_join(other, NULL), 0);
    OK(set(shared_page, 4, WRITE, 1));
    long sum = 0;
    for (int i = 0; i < 4; i++) sum += *(long *)(shared_page + i * PAGE);
    EQUAL(sum, threads * 2000);
    passed("contended");
}

// N6: every second page differs, and then none.
static void many(void)
{
    enum { PAGES = 1 << 18 };
    char *p = managed(PAGES, WRITE);
    enum { OPS = 512 };
    static struct op ops[OPS];
    for (size_t i = 0; i < PAGES; i += 2 * OPS) {
        for (size_t j = 0; j < OPS; j++) ops[j] = (struct op){(uint64_t)(p + (i + 2 * j) * PAGE), 1, NONE, 0};
        OK(q_prot(ops, OPS));
    }
    struct block b;
    arm(&b);
    b.level = READ;
    EQUAL(get(p + 2 * PAGE) + get(p + 3 * PAGE), 0);
    EQUAL(b.calls, 1);
    EQUAL(get(p + (PAGES - 2) * PAGE) + get(p + (PAGES - 1) * PAGE), 0);
    EQUAL(b.calls, 2);
    OK(set(p, PAGES, NONE, 0));
    OK(q_region(p, PAGES * PAGE, UNMANAGED));
    disarm(&b);
    OK(munmap(p, PAGES * PAGE));
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "unarmed") == 0) {
        announced();
        unarmed(managed(1, NONE));
        return 0;
    }
    RUN(numbers);
    if (features == 0) {
        RUN(absent);
        return finished("levels");
    }
    RUN(bad_arguments);
    RUN(trap);
    RUN(registers);
    RUN(as_it_is);
    RUN(nested);
    RUN(within_a_signal);
    RUN(what_kills);
    RUN(forked);
    RUN(written);
    RUN(starts_over);
    contended(argc > 1 ? atoi(argv[1]) : 4);
    RUN(many);
    return finished("levels");
}
