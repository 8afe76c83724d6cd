// alternate: what it costs to forbid every other page, one call each, by the number of pages. `alternate [MOST [touch]]`.
//
// From 1024 pages to MOST (2^20 by default), four times as many each time: time of an mprotect of one page, over all of
// them; with `touch`, of pages that are in memory. Where a machine's clock counts instructions (--accel exact: one ns
// each), that is the number of instructions. Linux ends at half of vm.max_map_count.
#include "check.h"

int main(int argc, char **argv)
{
    long most = argc > 1 ? atol(argv[1]) : 1L << 20;
    int touch = argc > 2;
    printf("%8s %12s %12s\n", "pages", "mprotect", "back, a page");
    for (long pages = 1024; pages <= most; pages *= 4) {
        size_t bytes = (size_t)pages * PAGE;
        char *base = mmap((void *)0x100000000000UL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        CHECK(base != MAP_FAILED);
        for (long i = 0; touch && i < pages; i++) base[i * (long)PAGE] = 1;
        uint64_t start = now_ns();
        for (long i = 0; i < pages; i += 2) OK(mprotect(base + i * (long)PAGE, PAGE, PROT_READ));
        uint64_t middle = now_ns();
        OK(mprotect(base, bytes, PROT_READ | PROT_WRITE));
        uint64_t end = now_ns();
        printf("%8ld %12.0f %12.0f\n", pages, (double)(middle - start) / (double)(pages / 2), (double)(end - middle) / (double)pages);
        OK(munmap(base, bytes));
    }
    return fflush(stdout) == 0 ? 0 : 1;
}
