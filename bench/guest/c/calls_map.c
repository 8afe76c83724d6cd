// calls_map: mmap, mprotect, mremap, brk, and the limits on them: what they do to contents, to rights and to neighbours.
//
// Proves: contents survive every change of rights and place; stacks grow to their limit and no further, and keep their
// distance; an old length of 0 and MREMAP_DONTUNMAP leave what they should; what RLIMIT_AS, RLIMIT_DATA and RLIMIT_STACK
// forbid is refused and changes nothing; hints, MAP_32BIT and MAP_FIXED_NOREPLACE place where Linux does.
//
// calls: mmap munmap mprotect mremap madvise brk mlock memfd_create
#include "check.h"
#include <setjmp.h>
#include <sys/resource.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#define BASE ((char *)0x300000000000UL)
#define AT(page) (BASE + (long)(page) * (long)PAGE)
#define RW (PROT_READ | PROT_WRITE)
#define OWN (MAP_PRIVATE | MAP_ANONYMOUS)

static sigjmp_buf back;
static volatile int seen_code;
static volatile uintptr_t seen_address;

static void on_fault(int signal, siginfo_t *info, void *context)
{
    (void)context;
    seen_code = signal * 100 + info->si_code;
    seen_address = (uintptr_t)info->si_addr;
    siglongjmp(back, 1);
}

// 0 if the byte can be read (or written), else the signal times 100 and its code.
static int touch(volatile char *p, int write)
{
    seen_code = 0;
    if (sigsetjmp(back, 1) == 0) {
        if (write) *p = *p + 1;
        else (void)*p;
        return 0;
    }
    EQUAL(seen_address, (uintptr_t)p);
    return seen_code;
}
#define NO_MAPPING (SIGSEGV * 100 + SEGV_MAPERR)
#define NO_RIGHT (SIGSEGV * 100 + SEGV_ACCERR)

static void map_at(long page, long pages, int prot, int flags)
{
    CHECK(mmap(AT(page), pages * PAGE, prot, OWN | MAP_FIXED | flags, -1, 0) == AT(page));
}

static void unmap(long page, long pages)
{
    OK(munmap(AT(page), pages * PAGE));
}

// A file of pages, page i of which begins with 'a' + i.
static int pages_file(int pages)
{
    int fd = (int)syscall(SYS_memfd_create, "calls_map", 0);
    OK(fd);
    OK(ftruncate(fd, pages * (long)PAGE));
    for (int i = 0; i < pages; i++) EQUAL(pwrite(fd, (char[]){(char)('a' + i)}, 1, i * (long)PAGE), 1);
    return fd;
}

static void rights_and_contents(void)
{
    static const int all[] = {PROT_NONE, PROT_READ, PROT_WRITE, RW, PROT_EXEC, PROT_READ | PROT_EXEC, PROT_WRITE | PROT_EXEC, RW | PROT_EXEC};
    int keys = has_keys();
    map_at(0, 8, RW, 0);
    for (int i = 0; i < 8; i++) AT(i)[9] = (char)(10 * i);
    for (int from = 0; from < 8; from++) {
        for (int to = 0; to < 8; to++) {
            OK(mprotect(AT(0), 8 * PAGE, all[from]));
            OK(mprotect(AT(to), PAGE, all[to]));
            for (int i = 0; i < 8; i++) {
                int prot = all[i == to ? to : from];
                // x86-64 reads what it may write or execute (without protection keys).
                if (prot != PROT_EXEC || !keys) EQUAL(touch(AT(i), 0), prot == PROT_NONE ? NO_RIGHT : 0);
                if (prot != PROT_EXEC || !keys) EQUAL(touch(AT(i), 1), prot & PROT_WRITE ? 0 : NO_RIGHT);
            }
        }
    }
    OK(mprotect(AT(0), 8 * PAGE, RW));
    for (int i = 0; i < 8; i++) EQUAL(AT(i)[9], 10 * i);
    OK(mprotect(AT(0), 8 * PAGE, PROT_NONE));
    OK(mprotect(AT(4), PAGE, PROT_READ));
    EQUAL(AT(4)[9], 40);
    // Never touched before it got its rights.
    map_at(10, 1, PROT_NONE, 0);
    EQUAL(touch(AT(10), 0), NO_RIGHT);
    OK(mprotect(AT(10), PAGE, RW));
    EQUAL(touch(AT(10), 1), 0);
    EQUAL(*AT(10), 1);
    // Up to a hole the change stays.
    unmap(0, 12);
    map_at(0, 2, RW, 0);
    FAILS(mprotect(AT(0), 3 * PAGE, PROT_READ), ENOMEM);
    EQUAL(touch(AT(1), 1), NO_RIGHT);
    FAILS(mprotect(AT(-1), 2 * PAGE, RW), ENOMEM); // it begins with one
    EQUAL(touch(AT(0), 1), NO_RIGHT);
    unmap(0, 2);
}

static void code(void)
{
    static const unsigned char forty_two[] = {0xb8, 42, 0, 0, 0, 0xc3}; // mov $42, %eax; ret
    int (*f)(void) = (int (*)(void))(uintptr_t)AT(0);
    map_at(0, 1, RW, 0);
    memcpy(AT(0), forty_two, sizeof forty_two);
    if (sigsetjmp(back, 1) == 0) {
        f();
        CHECK(!"data was executed");
    }
    EQUAL(seen_code, NO_RIGHT);
    EQUAL(seen_address, (uintptr_t)AT(0));
    OK(mprotect(AT(0), PAGE, PROT_READ | PROT_EXEC));
    EQUAL(f(), 42);
    EQUAL(touch(AT(0), 1), NO_RIGHT);
    OK(mprotect(AT(0), PAGE, RW | PROT_EXEC));
    AT(0)[1] = 43;
    EQUAL(f(), 43);
    OK(mprotect(AT(0), PAGE, PROT_EXEC));
    EQUAL(f(), 43);
    unmap(0, 1);
}

static void files(void)
{
    int fd = pages_file(4), other;
    char path[64], byte;
    CHECK(mmap(AT(0), 4 * PAGE, RW, MAP_SHARED | MAP_FIXED, fd, 0) == AT(0));
    CHECK(mmap(AT(4), 4 * PAGE, RW, MAP_PRIVATE | MAP_FIXED, fd, 0) == AT(4));
    CHECK(mmap(AT(8), 2 * PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 2 * PAGE) == AT(8));
    AT(2)[0] = 'S';
    EQUAL(AT(8)[0], 'S'); // another mapping of the page
    EQUAL(AT(6)[0], 'S'); // not copied yet
    AT(6)[0] = 'P';
    AT(2)[0] = 's';
    EQUAL(AT(6)[0], 'P');
    EQUAL(AT(8)[0], 's');
    EQUAL(pread(fd, &byte, 1, 2 * PAGE), 1);
    EQUAL(byte, 's');
    EQUAL(pwrite(fd, "w", 1, PAGE), 1);
    EQUAL(AT(1)[0] + AT(5)[0], 2 * 'w');
    // A file that is open for reading only: shared mappings of it are never writable, private ones are.
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    OK(other = open(path, O_RDONLY));
    FAILS((intptr_t)mmap(NULL, PAGE, RW, MAP_SHARED, other, 0), EACCES);
    char *read_only = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, other, 0);
    CHECK(read_only != MAP_FAILED);
    FAILS(mprotect(read_only, PAGE, RW), EACCES);
    OK(mprotect(read_only, PAGE, PROT_READ | PROT_EXEC));
    EQUAL(*read_only, 'a');
    OK(munmap(read_only, PAGE));
    read_only = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, other, 0);
    OK(mprotect(read_only, PAGE, RW));
    *read_only = 'z';
    EQUAL(AT(0)[0], 'a');
    OK(munmap(read_only, PAGE));
    // mprotect stops at the first mapping that may not; what is before stays changed.
    CHECK(mmap(AT(10), PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, other, 0) == AT(10));
    FAILS(mprotect(AT(8), 3 * PAGE, RW), EACCES);
    EQUAL(touch(AT(9), 1), 0);
    EQUAL(touch(AT(10), 1), NO_RIGHT);
    OK(close(fd));
    OK(close(other));
    EQUAL(AT(3)[0], 'e');        // as touched through the other mapping; and the mapping keeps the file
    FAILS((intptr_t)mmap(NULL, PAGE, PROT_READ, MAP_SHARED_VALIDATE | 0x80000, other = pages_file(1), 0), EOPNOTSUPP); // MAP_SYNC
    FAILS((intptr_t)mmap(NULL, PAGE, PROT_READ, MAP_SHARED_VALIDATE | 0x200, other, 0), EOPNOTSUPP);
    CHECK(mmap(AT(0), PAGE, PROT_READ, MAP_SHARED_VALIDATE | MAP_FIXED, other, 0) == AT(0));
    FAILS((intptr_t)mmap(NULL, PAGE, RW, MAP_SHARED_VALIDATE | MAP_ANONYMOUS, -1, 0), EINVAL);
    FAILS((intptr_t)mmap(NULL, PAGE, RW, OWN | MAP_HUGETLB, -1, 0), ENOMEM); // none are set aside
    FAILS((intptr_t)mmap(NULL, PAGE, RW, MAP_PRIVATE | MAP_HUGETLB, other, 0), EINVAL);
    OK(close(other));
    unmap(0, 12);
}

static void places(void)
{
    map_at(4, 4, RW, 0);
    CHECK(mmap(AT(8) + 5, PAGE, RW, OWN, -1, 0) == AT(8)); // a hint that is free, rounded down
    char *other = mmap(AT(3), 2 * PAGE, RW, OWN, -1, 0);   // one that is not
    CHECK(other != AT(3));
    OK(munmap(other, 2 * PAGE));
    FAILS((intptr_t)mmap(AT(3), 2 * PAGE, RW, OWN | MAP_FIXED_NOREPLACE, -1, 0), EEXIST);
    CHECK(mmap(AT(3), PAGE, RW, OWN | MAP_FIXED_NOREPLACE, -1, 0) == AT(3));
    unmap(3, 6);
    for (int i = 0; i < 3; i++) {
        char *low = mmap(i ? AT(0) : NULL, 3 * PAGE, RW, OWN | MAP_32BIT | (i == 2 ? MAP_STACK : 0), -1, 0);
        CHECK((uintptr_t)low >= 0x40000000 && (uintptr_t)low + 3 * PAGE <= 0x80000000);
        OK(munmap(low, 3 * PAGE));
    }
    CHECK((uintptr_t)mmap((void *)0x50000000, PAGE, RW, OWN | MAP_32BIT, -1, 0) == 0x50000000);
    OK(munmap((void *)0x50000000, PAGE));
    // One below the other.
    char *first = mmap(NULL, 4 * PAGE, RW, OWN, -1, 0), *second = mmap(NULL, 4 * PAGE, PROT_READ, OWN, -1, 0);
    CHECK(second < first);
    OK(munmap(first, 4 * PAGE));
    CHECK(mmap(NULL, 4 * PAGE, RW, OWN, -1, 0) == first); // the highest gap that is large enough
    OK(munmap(first, 4 * PAGE));
    OK(munmap(second, 4 * PAGE));
}

static void moving(void)
{
    int fd = pages_file(8);
    // Contents and copies move along.
    CHECK(mmap(AT(0), 4 * PAGE, RW, MAP_PRIVATE | MAP_FIXED, fd, PAGE) == AT(0));
    AT(1)[0] = 'C';
    CHECK(mremap(AT(0), 4 * PAGE, 6 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(20)) == AT(20));
    EQUAL(touch(AT(1), 0), NO_MAPPING);
    EQUAL(AT(20)[0], 'b');
    EQUAL(AT(21)[0], 'C');
    EQUAL(AT(25)[0], 'a' + 6); // what is new shows what follows in the file
    OK(madvise(AT(21), PAGE, MADV_DONTNEED));
    EQUAL(AT(21)[0], 'c');
    unmap(20, 6);
    // An old length of 0: once more, for shared mappings.
    CHECK(mmap(AT(0), 4 * PAGE, RW, MAP_SHARED | MAP_FIXED, fd, 0) == AT(0));
    CHECK(mremap(AT(1), 0, 3 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(30)) == AT(30));
    AT(30)[0] = '1';
    EQUAL(AT(1)[0], '1');
    EQUAL(AT(32)[0], AT(3)[0]);
    FAILS((intptr_t)mremap(AT(1), 0, PAGE, 0), ENOMEM); // not in its own place
    unmap(30, 3);
    char *twin = mremap(AT(0), 0, PAGE, MREMAP_MAYMOVE);
    CHECK(twin != MAP_FAILED && twin != AT(0));
    EQUAL(*twin, 'a');
    OK(munmap(twin, PAGE));
    map_at(8, 1, RW, 0);
    FAILS((intptr_t)mremap(AT(8), 0, PAGE, MREMAP_MAYMOVE), EINVAL);
    // DONTUNMAP: the contents go, the mapping stays.
    AT(8)[0] = 'd';
    CHECK(mremap(AT(8), PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, AT(12)) == AT(12));
    EQUAL(AT(12)[0], 'd');
    EQUAL(AT(8)[0], 0);
    FAILS((intptr_t)mremap(AT(8), PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP), EINVAL);
    AT(2)[0] = 'D';
    CHECK(mremap(AT(2), 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, AT(14)) == AT(14));
    EQUAL(AT(14)[0], 'D');
    EQUAL(AT(2)[0], 'D'); // it shows the file as before
    // Out of the middle, over a neighbour of its own.
    CHECK(mremap(AT(14), PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(15)) == AT(15));
    EQUAL(touch(AT(14), 0), NO_MAPPING);
    EQUAL(AT(15)[0], 'D');
    // A failed one changes nothing.
    FAILS((intptr_t)mremap(AT(0), 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(3)), EINVAL);
    FAILS((intptr_t)mremap(AT(0), 6 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(50)), EFAULT);
    FAILS((intptr_t)mremap(AT(0), 4 * PAGE, 10 * PAGE, 0), ENOMEM);
    EQUAL(AT(0)[0], 'a');
    EQUAL(touch(AT(50), 0), NO_MAPPING);
    unmap(0, 60);
    // Two that are alike once they are left behind, as those are not locked: each moves once.
    map_at(0, 4, RW, 0);
    for (int i = 0; i < 4; i++) AT(i)[0] = (char)('p' + i);
    OK(mlock(AT(0), 2 * PAGE));
    CHECK(mremap(AT(0), 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, AT(20)) == AT(20));
    for (int i = 0; i < 4; i++) EQUAL(AT(20 + i)[0] * 256 + AT(i)[0], ('p' + i) * 256);
    unmap(0, 60);
    // Several mappings at once, with what lies between them left out.
    map_at(0, 2, RW, 0);
    map_at(2, 1, PROT_READ, 0);
    map_at(4, 1, RW, 0);
    AT(1)[0] = 'x', AT(4)[0] = 'y';
    map_at(23, 1, RW, 0);
    AT(23)[0] = 'k';
    CHECK(mremap(AT(0), 5 * PAGE, 5 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(20)) == AT(20));
    EQUAL(AT(21)[0] + AT(24)[0], 'x' + 'y');
    EQUAL(touch(AT(22), 1), NO_RIGHT);
    EQUAL(touch(AT(23), 0), 0); // between them, at the new place
    EQUAL(touch(AT(0), 0), NO_MAPPING);
    FAILS((intptr_t)mremap(AT(20), 5 * PAGE, 6 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(40)), EFAULT);
    unmap(0, 60);
    OK(close(fd));
}

static void heap(void)
{
    char *start = (char *)syscall(SYS_brk, 0L), *p = start + (-(uintptr_t)start & (PAGE - 1));
    CHECK((char *)syscall(SYS_brk, p + 3 * PAGE) == p + 3 * PAGE);
    memset(p, 'h', 3 * PAGE);
    OK(mprotect(p + PAGE, PAGE, PROT_READ));
    EQUAL(touch(p + PAGE, 1), NO_RIGHT);
    CHECK((char *)syscall(SYS_brk, p + PAGE + 1) == p + PAGE + 1);
    EQUAL(touch(p + 2 * PAGE, 0), NO_MAPPING);
    EQUAL(p[PAGE], 'h');
    // Something in its way.
    CHECK(mmap(p + 4 * PAGE, PAGE, RW, OWN | MAP_FIXED_NOREPLACE, -1, 0) == p + 4 * PAGE);
    CHECK((char *)syscall(SYS_brk, p + 8 * PAGE) == p + PAGE + 1);
    CHECK((char *)syscall(SYS_brk, p + 3 * PAGE) == p + 3 * PAGE); // a page stays free between them
    CHECK((char *)syscall(SYS_brk, p + 4 * PAGE) == p + 3 * PAGE);
    OK(munmap(p + 4 * PAGE, PAGE));
    OK(mprotect(p, 2 * PAGE, RW));
    CHECK((char *)syscall(SYS_brk, start) == start);
}

// ---- stacks

static void stacks(void)
{
    struct rlimit limit = {1 << 20, 8 << 20};
    OK(setrlimit(RLIMIT_STACK, &limit));
    map_at(1000, 2, RW, MAP_GROWSDOWN);
    EQUAL(touch(AT(999), 1), 0); // the page below
    EQUAL(touch(AT(990), 1), 0); // and one further down, with all between
    EQUAL(touch(AT(995), 0), 0);
    EQUAL(touch(AT(1002 - 255), 1), 0);
    EQUAL(touch(AT(1002 - 257), 1), NO_MAPPING); // more than 1 MiB
    // Its rights go down with it: PROT_GROWSDOWN begins where it begins.
    OK(mprotect(AT(1000), PAGE, PROT_READ | PROT_GROWSDOWN));
    EQUAL(touch(AT(1002 - 255), 1), NO_RIGHT);
    EQUAL(touch(AT(1001), 1), 0);
    FAILS(mprotect(AT(1000), PAGE, PROT_READ | PROT_GROWSUP), EINVAL);
    unmap(700, 310);
    // A neighbour below keeps its distance of 256 pages, unless nobody may use it.
    map_at(1000, 1, RW, MAP_GROWSDOWN);
    map_at(600, 1, RW, 0);
    EQUAL(touch(AT(857), 1), 0);
    unmap(800, 201);
    map_at(1000, 1, RW, MAP_GROWSDOWN);
    map_at(800, 1, RW, 0);
    EQUAL(touch(AT(999), 1), NO_MAPPING);
    OK(mprotect(AT(800), PAGE, PROT_NONE));
    EQUAL(touch(AT(999), 1), 0);
    EQUAL(touch(AT(801), 1), 0);
    EQUAL(touch(AT(800), 1), NO_RIGHT);
    unmap(600, 401);
    // What the system places does not come into the gap; what is placed by hand may.
    map_at(1000, 1, RW, MAP_GROWSDOWN);
    CHECK(mmap(AT(900), PAGE, RW, OWN, -1, 0) != AT(900));
    CHECK(mmap(AT(1000 - 257), PAGE, RW, OWN, -1, 0) == AT(1000 - 257));
    CHECK(mmap(AT(900), PAGE, RW, OWN | MAP_FIXED_NOREPLACE, -1, 0) == AT(900));
    unmap(700, 301);
    FAILS(mprotect(AT(0), PAGE, PROT_READ | PROT_GROWSDOWN), ENOMEM);
    map_at(0, 1, RW, 0);
    FAILS(mprotect(AT(0), PAGE, PROT_READ | PROT_GROWSDOWN), EINVAL);
    unmap(0, 1);
    FAILS((intptr_t)mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0), EINVAL);
}

// The first thread's own stack, by recursion, up to the limit and beyond.
static int __attribute__((noinline)) deep(int levels)
{
    volatile char block[4000];
    block[0] = (char)levels;
    return levels == 0 ? block[0] : deep(levels - 1) + block[0];
}

static void own_stack(void)
{
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        CHECK(deep(1000) != 1);
        _exit(7);
    }
    EQUAL(WEXITSTATUS(wait_for(child)), 7);
    OK(child = fork());
    if (child == 0) {
        CHECK(signal(SIGSEGV, SIG_DFL) != SIG_ERR);
        _exit(deep(100000) == 1);
    }
    int status = wait_for(child);
    CHECK(WIFSIGNALED(status));
    EQUAL(WTERMSIG(status), SIGSEGV);
}

// ---- limits

// How many pages this process has mapped.
static long mapped_pages(void)
{
    char text[200] = "";
    int fd = open("/proc/self/statm", O_RDONLY);
    OK(fd);
    OK(read(fd, text, sizeof text - 1));
    OK(close(fd));
    return strtol(text, NULL, 10);
}

static void limits_of_a_child(void)
{
    map_at(0, 8, RW, 0);
    AT(7)[0] = 'l';
    struct rlimit old, limit;
    OK(getrlimit(RLIMIT_AS, &old));
    limit = (struct rlimit){(rlim_t)(mapped_pages() + 10) * PAGE, old.rlim_max};
    OK(setrlimit(RLIMIT_AS, &limit));
    FAILS((intptr_t)mmap(AT(20), 11 * PAGE, PROT_NONE, OWN, -1, 0), ENOMEM);
    CHECK(mmap(AT(20), 10 * PAGE, PROT_NONE, OWN, -1, 0) == AT(20));
    FAILS((intptr_t)mmap(AT(40), PAGE, PROT_NONE, OWN, -1, 0), ENOMEM);
    FAILS((intptr_t)mremap(AT(0), 8 * PAGE, 9 * PAGE, MREMAP_MAYMOVE), ENOMEM);
    FAILS((intptr_t)mremap(AT(0), 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP), ENOMEM);
    CHECK(mremap(AT(0), 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(100)) == AT(100));
    EQUAL(AT(107)[0], 'l');
    map_at(20, 10, RW, 0); // what is replaced makes room
    FAILS((intptr_t)mmap(AT(20), 11 * PAGE, RW, OWN | MAP_FIXED, -1, 0), ENOMEM);
    AT(29)[0] = 'm'; // and is still there
    void *end = (void *)syscall(SYS_brk, 0L);
    CHECK((void *)syscall(SYS_brk, (char *)end + 2 * PAGE) == end);
    OK(munmap(AT(28), PAGE)); // splits need no room
    OK(setrlimit(RLIMIT_AS, &old));
    unmap(0, 200);
    // Private writable memory.
    OK(getrlimit(RLIMIT_DATA, &old));
    limit = (struct rlimit){PAGE, old.rlim_max};
    map_at(0, 4, RW, 0);
    map_at(8, 4, PROT_READ, 0);
    OK(setrlimit(RLIMIT_DATA, &limit));
    FAILS((intptr_t)mmap(NULL, PAGE, RW, OWN, -1, 0), ENOMEM);
    CHECK(mmap(AT(20), PAGE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == AT(20));
    map_at(21, 4, PROT_READ, 0);
    FAILS(mprotect(AT(8), 4 * PAGE, RW), ENOMEM);
    EQUAL(touch(AT(8), 1), NO_RIGHT);
    OK(mprotect(AT(0), 4 * PAGE, PROT_READ));
    FAILS(mprotect(AT(0), PAGE, RW), ENOMEM);
    FAILS((intptr_t)mremap(AT(0), 4 * PAGE, 0, 0), EINVAL);
    CHECK(mremap(AT(8), 4 * PAGE, 6 * PAGE, 0) == AT(8));
    end = (void *)syscall(SYS_brk, 0L);
    CHECK((void *)syscall(SYS_brk, (char *)end + 4 * PAGE) == end);
    OK(setrlimit(RLIMIT_DATA, &old));
    OK(mprotect(AT(0), 4 * PAGE, RW));
    unmap(0, 40);
}

static void limits(void)
{
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        limits_of_a_child();
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
}

int main(void)
{
    static char alternate[1 << 16];
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    OK(sigaltstack(&stack, NULL));
    OK(sigaction(SIGSEGV, &action, NULL));
    OK(sigaction(SIGBUS, &action, NULL));
    RUN(rights_and_contents);
    RUN(code);
    RUN(files);
    RUN(places);
    RUN(moving);
    RUN(heap);
    RUN(limits);
    RUN(own_stack);
    RUN(stacks);
    return finished("calls_map");
}
