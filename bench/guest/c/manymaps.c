// manymaps [PAGES]: one mapping, a different protection on every other page.
//
// Proves: the number of mappings is bounded by memory alone. Linux refuses at vm.max_map_count (65,530 by default), and
// guard allocators die of it; here every page of PAGES (100,000 by default) becomes a mapping of its own, each keeps
// its bytes and its protection, and all are joined again.
//
// calls: mmap munmap
#include "check.h"
#include <setjmp.h>

static sigjmp_buf escape;
static void jump_out(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    siglongjmp(escape, info->si_code);
}

static long mappings(char *from, char *to)
{
    long n = 0;
    char row[512];
    FILE *file = fopen("/proc/self/maps", "r");
    CHECK(file != NULL);
    while (fgets(row, sizeof row, file) != NULL) {
        char *start = (char *)strtoul(row, NULL, 16);
        if (start >= from && start < to) n++;
    }
    fclose(file);
    return n;
}

int main(int argc, char **argv)
{
    long pages = argc > 1 ? atol(argv[1]) : 100000;
    struct sigaction action = {.sa_sigaction = jump_out, .sa_flags = SA_SIGINFO};
    OK(sigaction(SIGSEGV, &action, NULL));
    char *base = (char *)0x100000000000UL, *end = base + pages * PAGE;
    void *got = mmap(base, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    EQUAL((uintptr_t)got, (uintptr_t)base);
    for (long i = 0; i < pages; i += 97) base[i * PAGE] = (char)i; // some pages have bytes, most are untouched
    for (long i = 0; i < pages; i += 2) OK(mprotect(base + i * PAGE, PAGE, PROT_READ));
    EQUAL(mappings(base, end), pages);
    passed("every page is a mapping");
    for (long i = 0; i < pages; i += 97) {
        EQUAL(base[i * PAGE], (char)i);
        if (i % 2 == 1) {
            base[i * PAGE + 1] = 5;
            continue;
        }
        int code = sigsetjmp(escape, 1);
        if (code == 0) *(volatile char *)(base + i * PAGE) = 1;
        EQUAL(code, SEGV_ACCERR);
    }
    passed("each has its own protection");
    OK(mprotect(base, pages * PAGE, PROT_READ | PROT_WRITE));
    EQUAL(mappings(base, end), 1);
    for (long i = 0; i < pages; i += 97) EQUAL(base[i * PAGE], (char)i);
    passed("all are one again");
    OK(munmap(base, pages * PAGE));
    EQUAL(mappings(base, end), 0);
    return finished("manymaps");
}
