// files: the in-memory file system, pipes and devices.
//
// Proves: open's flags, seeking and holes, O_APPEND, truncation, links and renames (over files and directories),
// unlinking what is open, directories and their listing, permission bits and umask, the current directory, duplicates
// that share an offset, pipes and poll, the /dev and /proc files that programs open, each with Linux's errno.
//
// calls: access chdir close dup2 ftruncate link lseek mkdir open openat pipe2 pread64 read readlink rename rmdir unlink
// calls: write
#include "check.h"
#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/uio.h>

static char start[64]; // the directory that everything happens in

static void put(const char *name, const char *text)
{
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    OK(fd);
    EQUAL(write(fd, text, strlen(text)), strlen(text));
    OK(close(fd));
}

static void holds(const char *name, const char *text)
{
    char got[256] = "";
    int fd = open(name, O_RDONLY);
    OK(fd);
    EQUAL(read(fd, got, sizeof got - 1), strlen(text));
    EQUAL(strcmp(got, text), 0);
    EQUAL(read(fd, got, 1), 0);
    OK(close(fd));
}

static struct stat stat_of(const char *name)
{
    struct stat s;
    OK(lstat(name, &s));
    return s;
}

static void opening(void)
{
    FAILS(open("none", O_RDONLY), ENOENT);
    FAILS(open("none/deeper", O_RDONLY | O_CREAT, 0600), ENOENT);
    put("a", "first");
    FAILS(open("a", O_CREAT | O_EXCL | O_RDWR, 0600), EEXIST);
    FAILS(open("a/b", O_RDONLY), ENOTDIR);
    FAILS(open("a", O_DIRECTORY | O_RDONLY), ENOTDIR);
    FAILS(open(".", O_WRONLY), EISDIR);
    FAILS(open("", O_RDONLY), ENOENT);
    char name[300], c;
    memset(name, 'n', sizeof name);
    name[299] = 0;
    FAILS(open(name, O_RDWR | O_CREAT, 0600), ENAMETOOLONG);
    int fd = open("a", O_RDONLY);
    FAILS(write(fd, "x", 1), EBADF);
    OK(close(fd));
    FAILS(close(fd), EBADF);
    fd = open("a", O_WRONLY);
    FAILS(read(fd, &c, 1), EBADF);
    OK(close(fd));
    fd = open("a", O_WRONLY | O_TRUNC);
    OK(close(fd));
    holds("a", "");
    fd = open(".", O_RDONLY);
    FAILS(read(fd, &c, 1), EISDIR);
    int inner = openat(fd, "inside", O_CREAT | O_RDWR, 0600);
    OK(inner);
    OK(close(inner));
    OK(close(fd));
    FAILS(openat(fd, "inside", O_RDONLY), EBADF);
    OK(unlink("inside"));
}

static void offsets_and_holes(void)
{
    char buffer[64];
    int fd = open("holes", O_RDWR | O_CREAT | O_TRUNC, 0644);
    OK(fd);
    EQUAL(lseek(fd, 100000, SEEK_SET), 100000);
    EQUAL(stat_of("holes").st_size, 0); // seeking alone does not grow
    EQUAL(write(fd, "end", 3), 3);
    EQUAL(stat_of("holes").st_size, 100003);
    EQUAL(lseek(fd, -53, SEEK_END), 99950);
    EQUAL(read(fd, buffer, 64), 53);
    for (int i = 0; i < 50; i++) EQUAL(buffer[i], 0);
    EQUAL(memcmp(buffer + 50, "end", 3), 0);
    EQUAL(lseek(fd, -3, SEEK_CUR), 100000);
    FAILS(lseek(fd, -1, SEEK_SET), EINVAL);
    FAILS(lseek(fd, 0, 77), EINVAL);
    EQUAL(pwrite(fd, "XY", 2, 10), 2);
    EQUAL(lseek(fd, 0, SEEK_CUR), 100000); // pwrite does not move
    EQUAL(pread(fd, buffer, 4, 9), 4);
    EQUAL(memcmp(buffer, "\0XY\0", 4), 0);
    OK(ftruncate(fd, 11));
    OK(ftruncate(fd, 5000)); // what was cut off reads as zero
    EQUAL(pread(fd, buffer, 3, 10), 3);
    EQUAL(memcmp(buffer, "X\0\0", 3), 0);
    FAILS(ftruncate(fd, -1), EINVAL);
    FAILS(pread(fd, buffer, 1, -1), EINVAL);
    struct iovec parts[3] = {{"one ", 4}, {NULL, 0}, {"two", 3}};
    OK(lseek(fd, 0, SEEK_SET));
    EQUAL(writev(fd, parts, 3), 7);
    parts[0].iov_base = buffer, parts[2].iov_base = buffer + 32;
    OK(lseek(fd, 0, SEEK_SET));
    EQUAL(readv(fd, parts, 3), 7);
    EQUAL(memcmp(buffer + 32, "two", 3), 0);
    OK(close(fd));
    put("log", "start ");
    int a = open("log", O_WRONLY | O_APPEND), b = open("log", O_WRONLY | O_APPEND);
    EQUAL(write(a, "a ", 2) + write(b, "b ", 2) + write(a, "c", 1), 5);
    OK(lseek(a, 0, SEEK_SET));
    EQUAL(write(a, "!", 1), 1); // appends wherever the offset is
    holds("log", "start a b c!");
    OK(close(a) + close(b));
}

static void links_and_renames(void)
{
    put("one", "1");
    OK(link("one", "two"));
    EQUAL(stat_of("one").st_nlink, 2);
    EQUAL(stat_of("one").st_ino, stat_of("two").st_ino);
    FAILS(link("one", "two"), EEXIST);
    OK(unlink("one"));
    holds("two", "1");
    OK(symlink("two", "soft"));
    CHECK(S_ISLNK(stat_of("soft").st_mode));
    holds("soft", "1");
    char target[16];
    EQUAL(readlink("soft", target, sizeof target), 3);
    FAILS(readlink("two", target, sizeof target), EINVAL);
    FAILS(open("soft", O_RDONLY | O_NOFOLLOW), ELOOP);
    OK(symlink("loop", "loop"));
    FAILS(open("loop", O_RDONLY), ELOOP);
    OK(rename("two", "three"));
    FAILS(open("soft", O_RDONLY), ENOENT); // dangles
    put("four", "4");
    OK(rename("three", "four")); // replaces
    holds("four", "1");
    OK(rename("four", "four"));
    OK(mkdir("d", 0755));
    OK(mkdir("d/e", 0755));
    put("d/e/f", "deep");
    FAILS(rename("four", "d"), EISDIR);
    FAILS(rename("d", "four"), ENOTDIR);
    FAILS(rename("d", "d/e/inside"), EINVAL);
    FAILS(rename("none", "x"), ENOENT);
    FAILS(rmdir("d"), ENOTEMPTY);
    FAILS(rmdir("four"), ENOTDIR);
    FAILS(unlink("d"), EISDIR);
    FAILS(mkdir("d", 0755), EEXIST);
    OK(rename("d/e", "moved"));
    holds("moved/f", "deep");
    holds("moved/../moved/./f", "deep");
    OK(rmdir("d"));
    OK(mkdir("empty", 0755));
    OK(rename("moved", "empty")); // an empty directory may be replaced
    holds("empty/f", "deep");
    OK(unlink("empty/f"));
    OK(rmdir("empty"));
    OK(unlink("four"));
    OK(unlink("soft"));
    OK(unlink("loop"));
}

static void open_but_unlinked(void)
{
    char buffer[8];
    int fd = open("gone", O_RDWR | O_CREAT | O_EXCL, 0600), again;
    OK(fd);
    EQUAL(write(fd, "alive", 5), 5);
    OK(unlink("gone"));
    FAILS(open("gone", O_RDONLY), ENOENT);
    struct stat s;
    OK(fstat(fd, &s));
    EQUAL(s.st_nlink, 0);
    EQUAL(pread(fd, buffer, 5, 0), 5);
    EQUAL(memcmp(buffer, "alive", 5), 0);
    put("gone", "new"); // the name may be used again
    EQUAL(pread(fd, buffer, 5, 0), 5);
    EQUAL(buffer[0], 'a');
    OK(close(fd));
    OK(unlink("gone"));
    fd = open("shared", O_RDWR | O_CREAT, 0600);
    again = dup(fd);
    OK(again);
    EQUAL(write(fd, "abc", 3), 3);
    EQUAL(lseek(again, 0, SEEK_CUR), 3); // duplicates share the offset
    int apart = open("shared", O_RDONLY);
    EQUAL(lseek(apart, 0, SEEK_CUR), 0); // another open does not
    EQUAL(dup2(fd, 100), 100);
    EQUAL(dup2(fd, fd), fd);
    FAILS(dup2(200, 100), EBADF);
    EQUAL(fcntl(fd, F_DUPFD, 150), 150);
    EQUAL(fcntl(fd, F_DUPFD_CLOEXEC, 150), 151);
    EQUAL(fcntl(151, F_GETFD), FD_CLOEXEC);
    EQUAL(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDWR);
    OK(close(100) + close(150) + close(151) + close(apart) + close(again) + close(fd));
    OK(unlink("shared"));
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void directories(void)
{
    char name[32], *names[400];
    OK(mkdir("many", 0755));
    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof name, "many/file-%03d", i);
        put(name, "");
    }
    DIR *dir = opendir("many");
    CHECK(dir != NULL);
    int n = 0, dots = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        CHECK(n < 400 && entry->d_ino != 0);
        EQUAL(entry->d_type, entry->d_name[0] == '.' ? DT_DIR : DT_REG);
        if (entry->d_name[0] == '.')
            dots++;
        else
            names[n++] = strdup(entry->d_name);
    }
    closedir(dir);
    EQUAL(dots, 2);
    EQUAL(n, 300);
    qsort(names, n, sizeof *names, by_name);
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "file-%03d", i);
        EQUAL(strcmp(names[i], name), 0);
        snprintf(name, sizeof name, "many/file-%03d", i);
        OK(unlink(name));
        free(names[i]);
    }
    char where[128];
    OK(chdir("many"));
    CHECK(getcwd(where, sizeof where) != NULL);
    EQUAL(strncmp(where, start, strlen(start)), 0);
    EQUAL(strcmp(where + strlen(start), "/many"), 0);
    EQUAL((intptr_t)getcwd(where, 3), 0);
    EQUAL(errno, ERANGE);
    OK(chdir(".."));
    OK(rmdir("many"));
    FAILS(chdir("many"), ENOENT);
    put("file", "");
    FAILS(chdir("file"), ENOTDIR);
}

// Deeper than a path is long. The names come back one by one.
static void deep_directories(void)
{
    enum { DEPTH = 40 };
    char name[201] = {0}, here[4097];
    memset(name, 'd', 200);
    for (int i = 0; i < DEPTH; i++) {
        OK(mkdir(name, 0755));
        OK(chdir(name));
    }
    FAILS(syscall(SYS_getcwd, here, sizeof here), ENAMETOOLONG);
    FAILS(readlink("/proc/self/cwd", here, sizeof here), ENAMETOOLONG);
    int fd = open("file", O_CREAT | O_RDWR, 0644);
    CHECK(fd != -1);
    snprintf(here, sizeof here, "/proc/self/fd/%d", fd);
    char text[4097];
    FAILS(readlink(here, text, sizeof text), ENAMETOOLONG);
    OK(close(fd));
    OK(unlink("file"));
    for (int i = 0; i < DEPTH; i++) {
        OK(chdir(".."));
        OK(rmdir(name));
    }
    CHECK(syscall(SYS_getcwd, here, sizeof here) > 0);
}

static void permission_bits(void)
{
    mode_t old = umask(027);
    int fd = open("masked", O_CREAT | O_RDWR, 0666);
    OK(close(fd));
    EQUAL(stat_of("masked").st_mode, S_IFREG | 0640);
    OK(mkdir("masked-dir", 0777));
    EQUAL(stat_of("masked-dir").st_mode, S_IFDIR | 0750);
    EQUAL(umask(old), 027);
    OK(chmod("masked", 04751));
    EQUAL(stat_of("masked").st_mode, S_IFREG | 04751);
    OK(access("masked", R_OK | W_OK | X_OK));
    FAILS(access("none", F_OK), ENOENT);
    FAILS(access("masked", 99), EINVAL);
    EQUAL(stat_of("masked").st_uid, getuid());
    OK(rmdir("masked-dir"));
    OK(unlink("masked"));
}

static void *write_later(void *fd)
{
    sleep_ms(20);
    EQUAL(write((int)(intptr_t)fd, "later", 5), 5);
    return NULL;
}

static void pipes_and_poll(void)
{
    int ends[2], total = 0;
    char buffer[70000];
    memset(buffer, 'b', sizeof buffer);
    OK(pipe2(ends, O_NONBLOCK));
    FAILS(read(ends[0], buffer, 1), EAGAIN);
    for (ssize_t n; (n = write(ends[1], buffer, 1000)) > 0;) total += n;
    EQUAL(errno, EAGAIN);
    CHECK(total >= 4096);
    struct pollfd p[3] = {{ends[0], POLLIN, 0}, {ends[1], POLLOUT, 0}, {-1, POLLIN, 0}};
    EQUAL(poll(p, 3, 0), 1);
    EQUAL(p[0].revents, POLLIN);
    EQUAL(p[1].revents | p[2].revents, 0);
    while (total > 0) {
        ssize_t n = read(ends[0], buffer, sizeof buffer);
        CHECK(n > 0);
        total -= n;
    }
    EQUAL(total, 0);
    EQUAL(poll(p, 3, 0), 1);
    EQUAL(p[1].revents, POLLOUT);
    uint64_t before = now_ns();
    EQUAL(poll(p, 1, 30), 0);
    CHECK(now_ns() - before >= 30000000);
    pthread_t thread;
    RETURNS(pthread_create(&thread, NULL, write_later, (void *)(intptr_t)ends[1]), 0);
    EQUAL(poll(p, 1, -1), 1);
    EQUAL(read(ends[0], buffer, 100), 5);
    RETURNS(pthread_join(thread, NULL), 0);
    OK(close(ends[1]));
    EQUAL(poll(p, 1, -1), 1);
    CHECK(p[0].revents & POLLHUP);
    EQUAL(read(ends[0], buffer, 1), 0);
    OK(close(ends[0]));
    EQUAL(poll(p, 1, 0), 1);
    EQUAL(p[0].revents, POLLNVAL);
    OK(pipe(ends));
    FAILS(lseek(ends[0], 0, SEEK_SET), ESPIPE);
    FAILS(write(ends[0], "x", 1), EBADF);
    struct stat s;
    OK(fstat(ends[0], &s));
    CHECK(S_ISFIFO(s.st_mode));
    OK(close(ends[0]) + close(ends[1]));
    FAILS(pipe2(ends, 0x123456), EINVAL);
    // An end may be opened again through /proc, without waiting for the other side: shells do it for <(...).
    char name[32];
    OK(pipe(ends));
    EQUAL(write(ends[1], "again", 5), 5);
    OK(close(ends[1]));
    snprintf(name, sizeof name, "/dev/fd/%d", ends[0]);
    int again = open(name, O_RDONLY);
    OK(again);
    EQUAL(read(again, buffer, 100), 5);
    EQUAL(read(again, buffer, 100), 0);
    OK(close(again) + close(ends[0]));
    // A named pipe waits for the other side, or says that there is none.
    OK(mkfifo("fifo", 0600));
    FAILS(open("fifo", O_WRONLY | O_NONBLOCK), ENXIO);
    ends[0] = open("fifo", O_RDONLY | O_NONBLOCK);
    OK(ends[0]);
    EQUAL(read(ends[0], buffer, 1), 0);
    OK(close(ends[0]));
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        int out = open("fifo", O_WRONLY);
        _exit(write(out, "through", 7) == 7 ? 0 : 1);
    }
    ends[0] = open("fifo", O_RDONLY);
    EQUAL(read(ends[0], buffer, 100), 7);
    EQUAL(read(ends[0], buffer, 100), 0);
    EQUAL(wait_for(child), 0);
    OK(close(ends[0]));
    OK(unlink("fifo"));
}

static void devices(void)
{
    char buffer[300], other[300];
    int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDWR), full = open("/dev/full", O_RDWR);
    int random = open("/dev/urandom", O_RDONLY);
    CHECK(null >= 0 && zero >= 0 && full >= 0 && random >= 0);
    EQUAL(read(null, buffer, 9), 0);
    EQUAL(write(null, buffer, 300), 300);
    memset(buffer, 1, sizeof buffer);
    EQUAL(read(zero, buffer, 300), 300);
    for (int i = 0; i < 300; i++) EQUAL(buffer[i], 0);
    EQUAL(write(zero, buffer, 300), 300);
    FAILS(write(full, "x", 1), ENOSPC);
    EQUAL(read(full, buffer, 300), 300);
    EQUAL(read(random, buffer, 300), 300);
    EQUAL(read(random, other, 300), 300);
    CHECK(memcmp(buffer, other, 300) != 0);
    EQUAL(syscall(SYS_getrandom, other, 300, 0), 300);
    CHECK(memcmp(buffer, other, 300) != 0);
    struct stat s;
    OK(fstat(null, &s));
    CHECK(S_ISCHR(s.st_mode) && s.st_rdev == 0x103);
    CHECK(!isatty(null));
    OK(close(null) + close(zero) + close(full) + close(random));
}

static void proc_files(void)
{
    char line[512], exe[256] = "", *end = NULL;
    CHECK(readlink("/proc/self/exe", exe, sizeof exe - 1) > 0 && exe[0] == '/');
    EQUAL(stat_of(exe).st_mode & S_IFMT, S_IFREG);
    FILE *file = fopen("/proc/self/maps", "r");
    CHECK(file != NULL);
    int code = 0, stack = 0, named = 0, local;
    uintptr_t previous = 0;
    while (fgets(line, sizeof line, file) != NULL) {
        uintptr_t from = strtoul(line, &end, 16), to = strtoul(end + 1, &end, 16);
        CHECK(from < to && from >= previous); // sorted, disjoint
        previous = to;
        if ((uintptr_t)proc_files >= from && (uintptr_t)proc_files < to) code += strncmp(end, " r-xp", 5) == 0;
        if ((uintptr_t)&local >= from && (uintptr_t)&local < to) stack += strncmp(end, " rw-p", 5) == 0 && strstr(line, "[stack]") != NULL;
        named += strstr(line, exe) != NULL;
    }
    fclose(file);
    EQUAL(code, 1);
    EQUAL(stack, 1);
    CHECK(named >= 2);
    file = fopen("/proc/self/status", "r");
    CHECK(file != NULL);
    int pid = 0, threads = 0;
    long resident = 0;
    while (fgets(line, sizeof line, file) != NULL) {
        sscanf(line, "Pid: %d", &pid);
        sscanf(line, "Threads: %d", &threads);
        sscanf(line, "VmRSS: %ld kB", &resident);
    }
    fclose(file);
    EQUAL(pid, getpid());
    EQUAL(threads, 1);
    CHECK(resident > 0);
    int processors = 0;
    file = fopen("/proc/cpuinfo", "r");
    CHECK(file != NULL);
    while (fgets(line, sizeof line, file) != NULL) processors += strncmp(line, "processor", 9) == 0;
    fclose(file);
    EQUAL(processors, sysconf(_SC_NPROCESSORS_ONLN));
}

int main(void)
{
    strcpy(start, "/tmp/quire-files-XXXXXX");
    CHECK(mkdtemp(start) != NULL);
    OK(chdir(start));
    RUN(opening);
    RUN(offsets_and_holes);
    RUN(links_and_renames);
    RUN(open_but_unlinked);
    RUN(directories);
    RUN(deep_directories);
    RUN(permission_bits);
    RUN(pipes_and_poll);
    RUN(devices);
    RUN(proc_files);
    OK(unlink("a") + unlink("holes") + unlink("log") + unlink("file"));
    OK(chdir("/"));
    OK(rmdir(start));
    return finished("files");
}
