// toggle N: N changes of a file mapping's protection, and N mappings of a file that come and go.
//
// Proves: what a kernel keeps of each is given back as fast as a program can use it up, while it does nothing else.
//
// calls: mprotect mmap munmap memfd_create
#include "check.h"

int main(int argc, char **argv)
{
    long n = argc > 1 ? atol(argv[1]) : 300000;
    int fd = memfd_create("page", 0);
    CHECK(fd >= 0);
    OK(ftruncate(fd, PAGE));
    char *page = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(page != MAP_FAILED);
    *page = 7;
    for (long i = 0; i < n; i++) OK(mprotect(page, PAGE, i % 2 ? PROT_READ | PROT_WRITE : PROT_READ));
    puts("toggle: protections");
    for (long i = 0; i < n; i++) {
        char *again = mmap(0, PAGE, PROT_READ, MAP_SHARED, fd, 0);
        CHECK(again != MAP_FAILED);
        OK(munmap(again, PAGE));
    }
    EQUAL(*page, 7);
    puts("toggle: mappings");
    return 0;
}
