// calls_memfd: memory files and shared anonymous memory.
//
// Proves: seals forbid exactly what they say, for calls and for mappings, and are refused while somebody could break them;
// pages beyond the end of a file are SIGBUS, also when the end moves while they are mapped, and come back empty; copies
// of pages that are cut off go, copies of pages that are punched out stay; shared anonymous memory is shared by all
// descendants, and by nobody else; a file lives as long as a descriptor or a mapping of it.
//
// calls: mmap munmap mprotect mremap madvise memfd_create remap_file_pages
#include "check.h"
#include <setjmp.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define BASE ((char *)0x340000000000UL)
#define AT(page) (BASE + (long)(page) * (long)PAGE)
#define RW (PROT_READ | PROT_WRITE)
#define P ((long)PAGE)
#define NOEXEC_SEAL 8
#define EXECUTABLE 16
#define FUTURE_WRITE 0x10
#define SEAL_EXEC 0x20
#ifndef F_ADD_SEALS
#define F_ADD_SEALS 1033
#define F_GET_SEALS 1034
#define F_SEAL_SEAL 1
#define F_SEAL_SHRINK 2
#define F_SEAL_GROW 4
#define F_SEAL_WRITE 8
#endif
#ifndef FALLOC_FL_KEEP_SIZE
#define FALLOC_FL_KEEP_SIZE 1
#define FALLOC_FL_PUNCH_HOLE 2
#endif

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
        if (write) *p = 'w';
        else (void)*p;
        return 0;
    }
    EQUAL(seen_address, (uintptr_t)p);
    return seen_code;
}
#define NO_PAGE (SIGBUS * 100 + BUS_ADRERR)
#define NO_RIGHT (SIGSEGV * 100 + SEGV_ACCERR)

static int memory_file(const char *name, unsigned flags, int pages)
{
    int fd = (int)syscall(SYS_memfd_create, name, flags);
    OK(fd);
    OK(ftruncate(fd, pages * P));
    return fd;
}

static char *map_at(long page, long pages, int prot, int flags, int fd, long offset)
{
    CHECK(mmap(AT(page), pages * P, prot, flags | MAP_FIXED, fd, offset * P) == AT(page));
    return AT(page);
}

static void everything(void)
{
    OK(munmap(AT(0), 256 * PAGE));
}

static off_t size_of(int fd)
{
    struct stat s;
    OK(fstat(fd, &s));
    return s.st_size;
}

static void creating(void)
{
    char name[300], path[64], target[400];
    memset(name, 'n', sizeof name);
    name[249] = 0;
    int fd = (int)syscall(SYS_memfd_create, name, 0);
    OK(fd);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(path, target, sizeof target - 1);
    CHECK(n > 0);
    target[n] = 0;
    EQUAL(strncmp(target, "/memfd:nnn", 10), 0);
    EQUAL(strcmp(target + 7 + 249, " (deleted)"), 0);
    OK(close(fd));
    name[249] = 'n', name[250] = 0;
    FAILS(syscall(SYS_memfd_create, name, 0), EINVAL); // too long
    FAILS(syscall(SYS_memfd_create, 8L, 0), EFAULT);
    FAILS(syscall(SYS_memfd_create, "x", 0x20), EINVAL);
    FAILS(syscall(SYS_memfd_create, "x", NOEXEC_SEAL | EXECUTABLE), EINVAL);
    OK(fd = (int)syscall(SYS_memfd_create, "", MFD_CLOEXEC));
    EQUAL(fcntl(fd, F_GETFD), FD_CLOEXEC);
    EQUAL(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDWR);
    EQUAL(fcntl(fd, F_GET_SEALS), F_SEAL_SEAL);
    FAILS(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW), EPERM);
    EQUAL(size_of(fd), 0);
    struct stat s;
    OK(fstat(fd, &s));
    EQUAL(s.st_mode, S_IFREG | 0777);
    EQUAL(s.st_nlink, 0);
    OK(close(fd));
    OK(fd = (int)syscall(SYS_memfd_create, "x", MFD_ALLOW_SEALING));
    EQUAL(fcntl(fd, F_GETFD), 0);
    EQUAL(fcntl(fd, F_GET_SEALS), 0);
    OK(close(fd));
    OK(fd = (int)syscall(SYS_memfd_create, "x", NOEXEC_SEAL));
    EQUAL(fcntl(fd, F_GET_SEALS), SEAL_EXEC);
    OK(fstat(fd, &s));
    EQUAL(s.st_mode, S_IFREG | 0666);
    FAILS(fchmod(fd, 0777), EPERM);
    OK(fchmod(fd, 0600));
    OK(close(fd));
    // An executable one that is to stay so is sealed altogether.
    OK(fd = (int)syscall(SYS_memfd_create, "x", MFD_ALLOW_SEALING | EXECUTABLE));
    OK(fcntl(fd, F_ADD_SEALS, SEAL_EXEC));
    EQUAL(fcntl(fd, F_GET_SEALS), SEAL_EXEC | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | FUTURE_WRITE);
    FAILS(write(fd, "x", 1), EPERM);
    OK(close(fd));
}

static void seals(void)
{
    char byte = 'b';
    int fd = memory_file("seals", MFD_ALLOW_SEALING, 4);
    FAILS(fcntl(fd, F_ADD_SEALS, 0x100), EINVAL);
    OK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
    EQUAL(fcntl(fd, F_GET_SEALS), F_SEAL_SHRINK);
    FAILS(ftruncate(fd, 3 * P), EPERM);
    OK(ftruncate(fd, 4 * P));
    OK(ftruncate(fd, 5 * P));
    OK(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW));
    FAILS(ftruncate(fd, 6 * P), EPERM);
    FAILS(pwrite(fd, &byte, 1, 5 * P), EPERM);
    EQUAL(pwrite(fd, "xyz", 3, 5 * P - 1), 1); // up to the end
    FAILS(fallocate(fd, 0, 4 * P, 2 * P), EPERM);
    OK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, P));
    OK(fallocate(fd, 0, 0, 5 * P));
    // Against writing: not while a mapping could.
    map_at(0, 2, RW, MAP_SHARED, fd, 0);
    FAILS(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), EBUSY);
    OK(mprotect(AT(0), 2 * PAGE, PROT_READ)); // it could be made writable again
    FAILS(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), EBUSY);
    pid_t child = fork();
    OK(child);
    if (child == 0) pause();
    OK(munmap(AT(0), 2 * PAGE));
    FAILS(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), EBUSY); // the child's
    OK(kill(child, SIGKILL));
    EQUAL(WTERMSIG(wait_for(child)), SIGKILL);
    map_at(4, 2, RW, MAP_PRIVATE, fd, 0); // private ones do not matter
    AT(4)[0] = 'p';
    OK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
    EQUAL(fcntl(fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
    FAILS(write(fd, &byte, 1), EPERM);
    FAILS(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, P), EPERM);
    FAILS((intptr_t)mmap(NULL, PAGE, RW, MAP_SHARED, fd, 0), EPERM);
    map_at(8, 1, PROT_READ, MAP_SHARED, fd, 0);
    FAILS(mprotect(AT(8), PAGE, RW), EACCES);
    FAILS(madvise(AT(8), PAGE, MADV_REMOVE), EACCES);
    map_at(10, 1, RW, MAP_PRIVATE, fd, 0);
    EQUAL(touch(AT(10), 1), 0);
    EQUAL(AT(8)[0], 0);
    EQUAL(AT(4)[0], 'p');
    OK(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL));
    FAILS(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL), EPERM);
    OK(close(fd));
    everything();
    // Against writing from now on: what can, may.
    fd = memory_file("future", MFD_ALLOW_SEALING, 4);
    map_at(0, 2, RW, MAP_SHARED, fd, 0);
    OK(fcntl(fd, F_ADD_SEALS, FUTURE_WRITE));
    EQUAL(touch(AT(0), 1), 0);
    OK(mprotect(AT(1), PAGE, PROT_READ));
    OK(mprotect(AT(1), PAGE, RW));
    EQUAL(touch(AT(1), 1), 0);
    FAILS(pwrite(fd, &byte, 1, 0), EPERM);
    FAILS((intptr_t)mmap(NULL, PAGE, RW, MAP_SHARED, fd, 0), EPERM);
    FAILS(syscall(SYS_remap_file_pages, AT(0), PAGE, 0L, 1L, 0L), EPERM); // it maps anew
    map_at(8, 1, PROT_READ, MAP_SHARED, fd, 0);
    EQUAL(AT(8)[0], 'w');
    FAILS(mprotect(AT(8), PAGE, RW), EACCES);
    FAILS(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), EBUSY);
    OK(child = fork()); // a child's mapping is no new one
    if (child == 0) {
        AT(0)[0] = 'c';
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    EQUAL(AT(8)[0], 'c');
    CHECK(mremap(AT(0), PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(20)) == AT(20));
    EQUAL(touch(AT(20), 1), 0);
    OK(munmap(AT(20), PAGE));
    OK(munmap(AT(1), PAGE));
    OK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
    OK(close(fd));
    everything();
    // Other files have none.
    int ends[2];
    OK(pipe(ends));
    FAILS(fcntl(ends[0], F_GET_SEALS), EINVAL);
    FAILS(fcntl(ends[1], F_ADD_SEALS, 0), EINVAL);
    FAILS(fcntl(ends[0], F_ADD_SEALS, 0), EPERM);
    OK(close(ends[0]));
    OK(close(ends[1]));
    // To add one the file must be open for writing.
    char path[64];
    fd = memory_file("reader", MFD_ALLOW_SEALING, 1);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int reader = open(path, O_RDONLY);
    OK(reader);
    FAILS(fcntl(reader, F_ADD_SEALS, F_SEAL_GROW), EPERM);
    EQUAL(fcntl(reader, F_GET_SEALS), 0);
    map_at(0, 1, PROT_READ, MAP_SHARED, reader, 0);
    OK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE)); // which it does not hinder
    OK(close(reader));
    OK(close(fd));
    everything();
}

static void ends_of_files(void)
{
    int fd = memory_file("ends", 0, 2);
    map_at(0, 4, RW, MAP_SHARED, fd, 0);
    map_at(4, 4, RW, MAP_PRIVATE, fd, 0);
    EQUAL(touch(AT(1), 1), 0);
    EQUAL(touch(AT(2), 1), NO_PAGE);
    EQUAL(touch(AT(2), 0), NO_PAGE);
    EQUAL(touch(AT(6), 1), NO_PAGE);
    FAILS(write(1, AT(2), 1), EFAULT);
    FAILS(read(fd, AT(3), 1), EFAULT);
    OK(ftruncate(fd, 3 * P + 10)); // growing brings them to life
    EQUAL(touch(AT(2), 0), 0);
    EQUAL(touch(AT(3), 1), 0);
    AT(3)[10] = 'x'; // beyond the end, within the page: kept while it is mapped, no part of the file
    EQUAL(AT(3)[10], 'x');
    EQUAL(size_of(fd), 3 * P + 10);
    OK(ftruncate(fd, 4 * P)); // whether it is zero now, file systems differ in
    EQUAL(AT(3)[0], 'w');
    AT(4)[0] = 'a', AT(5)[0] = 'b', AT(6)[0] = 'c', AT(7)[0] = 'd';
    AT(0)[0] = 'A', AT(1)[0] = 'B', AT(2)[0] = 'C', AT(3)[0] = 'D';
    // The end moves: mapped pages go, and the copies of them.
    OK(ftruncate(fd, P + 100));
    EQUAL(AT(0)[0] + AT(1)[0] + AT(4)[0] + AT(5)[0], 'A' + 'B' + 'a' + 'b');
    for (int i = 2; i < 4; i++) {
        EQUAL(touch(AT(i), 0), NO_PAGE);
        EQUAL(touch(AT(i + 4), 0), NO_PAGE);
    }
    OK(ftruncate(fd, 4 * P));
    for (int i = 2; i < 4; i++) EQUAL(AT(i)[0] + AT(i + 4)[0], 0);
    EQUAL(AT(1)[0], 'B');
    AT(1)[99] = 'i', AT(1)[100] = 'o';
    OK(ftruncate(fd, P + 100));
    OK(ftruncate(fd, 2 * P));
    EQUAL(AT(1)[99], 'i');
    EQUAL(AT(1)[100], 0); // also within the page
    // Holes: what shows the file shows them, copies stay.
    OK(ftruncate(fd, 4 * P));
    AT(2)[0] = 'C', AT(3)[0] = 'D', AT(7)[0] = 'd';
    OK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * P, 2 * P));
    EQUAL(AT(2)[0] + AT(3)[0] + AT(6)[0], 0);
    EQUAL(AT(7)[0], 'd');
    AT(2)[0] = 'C', AT(2)[50] = 'c';
    OK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * P + 10, 100));
    EQUAL(AT(2)[0], 'C');
    EQUAL(AT(2)[50], 0);
    // Another process does it.
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        OK(ftruncate(fd, 0));
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    for (int i = 0; i < 8; i++) EQUAL(touch(AT(i), i & 1), NO_PAGE);
    OK(close(fd));
    everything();
}

// A thread of another process reads while the end goes up and down: it sees a page or SIGBUS, and no page's old contents.
static void moving_end(void)
{
    int fd = memory_file("moving", 0, 2);
    map_at(0, 2, RW, MAP_SHARED, fd, 0);
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        volatile char *stop = AT(0);
        for (; *stop != 's';) {
            int end = touch(AT(1), 0);
            CHECK(end == 0 || end == NO_PAGE);
        }
        _exit(0);
    }
    for (int i = 0; i < 200; i++) {
        OK(ftruncate(fd, P));
        OK(ftruncate(fd, 2 * P));
        CHECK(AT(1)[7] == 0);
        AT(1)[7] = 'x';
    }
    AT(0)[0] = 's';
    EQUAL(wait_for(child), 0);
    OK(close(fd));
    everything();
}

static void shared_memory(void)
{
    map_at(0, 4, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    map_at(4, 4, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    AT(0)[0] = 1;
    EQUAL(AT(4)[0], 0); // another object
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        EQUAL(AT(0)[0], 1);
        AT(1)[0] = 2; // a page that nobody had used before the fork
        OK(child = fork());
        if (child == 0) {
            AT(2)[0] = AT(1)[0] + 1;
            OK(munmap(AT(0), 4 * PAGE));
            _exit(0);
        }
        EQUAL(wait_for(child), 0);
        CHECK(mremap(AT(0), 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(20)) == AT(20));
        AT(23)[0] = AT(22)[0] + 1;
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    for (int i = 0; i < 4; i++) EQUAL(AT(i)[0], i + 1);
    FAILS((intptr_t)mremap(AT(0), 4 * PAGE, 4 * PAGE, MREMAP_FIXED, AT(20)), EINVAL);
    // It is as long as it was made.
    CHECK(mremap(AT(4), 4 * PAGE, 6 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT(30)) == AT(30));
    EQUAL(touch(AT(33), 1), 0);
    EQUAL(touch(AT(34), 1), NO_PAGE);
    // A private mapping of /dev/zero is memory of its own; a shared one is a new object.
    int zero = open("/dev/zero", O_RDWR);
    OK(zero);
    map_at(40, 1, RW, MAP_PRIVATE, zero, 0);
    map_at(42, 1, RW, MAP_SHARED, zero, 0);
    map_at(44, 1, RW, MAP_SHARED, zero, 0);
    AT(40)[0] = 'p', AT(42)[0] = 's';
    EQUAL(AT(44)[0], 0);
    OK(child = fork());
    if (child == 0) {
        AT(40)[0] = AT(42)[0] = 'c';
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    EQUAL(AT(40)[0], 'p');
    EQUAL(AT(42)[0], 'c');
    OK(close(zero));
    everything();
}

static void lives(void)
{
    char byte;
    int fd = memory_file("lives", 0, 2);
    map_at(0, 2, RW, MAP_SHARED, fd, 0);
    AT(1)[0] = 'm';
    int other = dup(fd);
    OK(other);
    OK(close(fd));
    everything();
    EQUAL(pread(other, &byte, 1, P), 1);
    EQUAL(byte, 'm');
    map_at(0, 2, RW, MAP_SHARED, other, 0);
    OK(close(other));
    EQUAL(AT(1)[0], 'm');
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        AT(0)[0] = 'n';
        _exit(0);
    }
    EQUAL(wait_for(child), 0);
    EQUAL(AT(0)[0], 'n');
    // Opened anew, by its name in /proc, it is the same file.
    fd = memory_file("again", 0, 1);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    OK(other = open(path, O_RDWR));
    EQUAL(write(other, "again", 5), 5);
    EQUAL(pread(fd, &byte, 1, 1), 1);
    EQUAL(byte, 'g');
    EQUAL(lseek(fd, 0, SEEK_CUR), 0); // with a position of its own
    struct iovec parts[2] = {{AT(0), 1}, {AT(1), 1}};
    EQUAL(pwritev(fd, parts, 2, 10), 2);
    EQUAL(size_of(fd), P);
    EQUAL(lseek(fd, 0, SEEK_DATA), 0);
    OK(ftruncate(fd, 8 * P));
    EQUAL(pwrite(fd, "z", 1, 5 * P), 1);
    EQUAL(lseek(fd, P, SEEK_DATA), 5 * P);
    EQUAL(lseek(fd, 0, SEEK_HOLE), P);
    EQUAL(lseek(fd, 5 * P, SEEK_HOLE), 6 * P);
    FAILS(lseek(fd, 6 * P, SEEK_DATA), ENXIO);
    struct stat s;
    OK(fstat(fd, &s));
    EQUAL(s.st_blocks, 16);
    OK(close(fd));
    OK(close(other));
    everything();
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    OK(sigaction(SIGSEGV, &action, NULL));
    OK(sigaction(SIGBUS, &action, NULL));
    RUN(creating);
    RUN(seals);
    RUN(ends_of_files);
    RUN(moving_end);
    RUN(shared_memory);
    RUN(lives);
    return finished("calls_memfd");
}
