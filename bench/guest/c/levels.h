// What programs about Quire's own calls share: the calls (docs/primitives.md), and upcalls that are handed to a function.
#ifndef LEVELS_H
#define LEVELS_H

#include "check.h"
#include <sys/auxv.h>

#define AT_QUIRE 0x51554952
struct info {
    char magic[8];
    uint32_t version, first_call;
    uint64_t features;
};
// The number of the first call, and what there is.
__attribute__((used)) static long first;
static uint64_t features;

enum { NONE, READ, WRITE, UNMANAGED };

struct op {
    uint64_t addr, pages;
    uint32_t level, raise;
};

static inline long q_region(void *at, size_t len, unsigned long level) { return syscall(first, at, len, level); }
static inline long q_upcall(void *entry, void *stack, size_t len, void *cookie)
{
    return syscall(first + 1, entry, stack, len, cookie);
}
static inline long q_prot(struct op *ops, size_t n) { return syscall(first + 2, ops, n); }
static inline long q_dirty(void *at, size_t pages, void *bits, unsigned long flags)
{
    return syscall(first + 3, at, pages, bits, flags);
}
static inline long q_resume(void *frame, unsigned long level, size_t count)
{
    return syscall(first + 4, frame, level, count);
}

static inline long set(void *at, size_t pages, uint32_t level, uint32_t raise)
{
    struct op op = {(uint64_t)at, pages, level, raise};
    return q_prot(&op, 1);
}

struct frame {
    uint64_t rip, cs, rflags, rsp, ss, address, error, level, cookie, top, word, mask, saved[6];
};

// What a thread is to do with its upcalls.
struct block {
    char *stack;
    size_t size;
    void (*handler)(struct frame *, struct block *);
    char *page;
    long calls, depth, deepest;
    // The level to go on with; 3 for what the page has.
    long level;
    uint64_t address, error, was;
};

__attribute__((used)) static long upcall(struct frame *f)
{
    struct block *b = (struct block *)f->cookie;
    b->calls++;
    b->depth++;
    if (b->depth > b->deepest) b->deepest = b->depth;
    b->address = f->address;
    b->error = f->error;
    b->was = f->level;
    if (b->handler) b->handler(f, b);
    b->depth--;
    return b->level;
}

// The registers of a call are saved in the frame, the others that a function may change below it; and then the vector registers.
extern char entry[];
asm(".pushsection .text\n"
    "entry:\n"
    "mov %rax, 96(%rsp)\n"
    "mov %rdi, 104(%rsp)\n"
    "mov %rsi, 112(%rsp)\n"
    "mov %rdx, 120(%rsp)\n"
    "mov %rcx, 128(%rsp)\n"
    "mov %r11, 136(%rsp)\n"
    "mov %rsp, %rdi\n"
    "push %r8\n"
    "push %r9\n"
    "push %r10\n"
    "push %rbp\n"
    "push %rbx\n"
    "mov %rdi, %rbx\n"
    "mov %rsp, %rbp\n"
    "sub $1024, %rsp\n"
    "and $-64, %rsp\n"
    "fxsave64 (%rsp)\n"
    "call upcall\n"
    "fxrstor64 (%rsp)\n"
    "mov %rbp, %rsp\n"
    "mov %rbx, %rdi\n"
    "mov %rax, %rsi\n"
    "pop %rbx\n"
    "pop %rbp\n"
    "pop %r10\n"
    "pop %r9\n"
    "pop %r8\n"
    "mov first(%rip), %rax\n"
    "add $4, %rax\n"
    "mov $1, %edx\n"
    "syscall\n"
    "ud2\n"
    ".popsection\n");

static inline void arm(struct block *b)
{
    memset(b, 0, sizeof *b);
    b->size = 256 << 10;
    b->stack = pages_new(b->size / PAGE);
    b->level = WRITE;
    OK(q_upcall(entry, b->stack, b->size, b));
}

static inline void disarm(struct block *b)
{
    OK(q_upcall(0, 0, 0, 0));
    OK(munmap(b->stack, b->size));
}

static inline char *managed(size_t pages, unsigned long level)
{
    char *p = pages_new(pages);
    OK(q_region(p, pages * PAGE, level));
    return p;
}

// Learns of the calls. A design without levels has none of them: no feature.
static void announced(void)
{
    struct info *info = (struct info *)getauxval(AT_QUIRE);
    CHECK(info != NULL && memcmp(info->magic, "QuireVM", 8) == 0);
    EQUAL(info->version, 1);
    features = info->features;
    CHECK(features == 0 || features == 15);
    first = info->first_call;
}

#endif
