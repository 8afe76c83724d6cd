// walks N: what paths lead to while others make, remove and move the directories on the way, N times each.
//
// A directory that is removed has nothing in it: what another directory has, which may be in the same memory by then, is never found
// there. What is above a directory is where it is or was; its path is one that it had, and so is that of a directory deep below two that
// are renamed in turn.
#include "check.h"
#include <ftw.h>
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define WALKERS 3
#define DEEP 8

static unsigned long times;
static char base[64], deep[128];
static _Atomic int over;
static _Atomic unsigned long walks;
static ino_t marks[2];

static void make(const char *path)
{
    int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);
    CHECK(fd >= 0);
    OK(close(fd));
}

static ino_t number(const char *path)
{
    struct stat about;
    OK(stat(path, &about));
    return about.st_ino;
}

// Walkers run while `change` does, which goes on until they have seen something of it.
static void race(void (*change)(unsigned long), void *(*walk)(void *))
{
    pthread_t all[WALKERS];
    over = 0;
    walks = 0;
    for (int i = 0; i < WALKERS; i++) CHECK(pthread_create(&all[i], NULL, walk, NULL) == 0);
    for (unsigned long i = 0; i < times || walks < times / 4; i++) {
        change(i);
        if (i >= times) sched_yield();
    }
    over = 1;
    for (int i = 0; i < WALKERS; i++) CHECK(pthread_join(all[i], NULL) == 0);
}

static void gone(const char *path)
{
    struct stat about;
    CHECK(stat(path, &about) == -1 && errno == ENOENT);
}

static void there_or_gone(const char *path)
{
    struct stat about;
    CHECK(stat(path, &about) == 0 || errno == ENOENT);
}

// Where descriptor `fd` says that it is: its path below `base`.
static void place(int fd, char *text, size_t size)
{
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, text, size - 1);
    CHECK(n > (ssize_t)strlen(base) && memcmp(text, base, strlen(base)) == 0);
    text[n] = 0;
    memmove(text, text + strlen(base), n - strlen(base) + 1);
}

static void make_and_remove(unsigned long i)
{
    (void)i;
    OK(mkdir("a/d", 0700));
    make("a/d/one");
    OK(unlink("a/d/one"));
    OK(rmdir("a/d"));
    OK(mkdir("b/d", 0700));
    make("b/d/two");
    OK(unlink("b/d/two"));
    OK(rmdir("b/d"));
}

static void *walk_removed(void *unused)
{
    (void)unused;
    while (!over) {
        gone("a/d/two");
        gone("b/d/one");
        gone("a/d/../d/./two");
        gone("link/one");
        there_or_gone("a/d/one");
        struct stat about;
        int found = stat("a/d/../mark", &about);
        CHECK(found == 0 ? about.st_ino == marks[0] : errno == ENOENT);
        int fd = open("b/d", O_RDONLY | O_DIRECTORY);
        CHECK(fd >= 0 || errno == ENOENT);
        if (fd >= 0) {
            char text[256];
            CHECK(fstatat(fd, "one", &about, 0) == -1 && errno == ENOENT);
            OK(fstatat(fd, "../mark", &about, 0));
            EQUAL(about.st_ino, marks[1]);
            place(fd, text, sizeof text);
            CHECK(strcmp(text, "/b/d") == 0 || strcmp(text, "/b/d (deleted)") == 0);
            OK(close(fd));
        }
        walks++;
    }
    return NULL;
}

static void move(unsigned long i)
{
    (void)i;
    OK(rename("a/x", "b/y"));
    CHECK(number("b/y/../mark") == marks[1]);
    gone("a/x");
    OK(rename("b/y", "a/x"));
    CHECK(number("a/x/../mark") == marks[0]);
    gone("b/y");
}

static void *walk_moved(void *unused)
{
    (void)unused;
    int fd = -1;
    while (fd < 0) {
        fd = open("a/x", O_RDONLY | O_DIRECTORY);
        CHECK(fd >= 0 || errno == ENOENT);
    }
    while (!over) {
        char text[256];
        struct stat about;
        there_or_gone("a/x/in/file");
        there_or_gone("b/y/in/../in/file");
        gone("a/y");
        gone("b/x");
        OK(fstatat(fd, "../mark", &about, 0));
        CHECK(about.st_ino == marks[0] || about.st_ino == marks[1]);
        OK(fstatat(fd, "in/file", &about, 0));
        OK(fstatat(fd, "in/../../mark", &about, 0));
        place(fd, text, sizeof text);
        CHECK(strcmp(text, "/a/x") == 0 || strcmp(text, "/b/y") == 0);
        walks++;
    }
    OK(close(fd));
    return NULL;
}

// Of two directories that are exchanged each is at one of the two places.
static void exchange(unsigned long i)
{
    (void)i;
    OK(syscall(SYS_renameat2, AT_FDCWD, "a/x", AT_FDCWD, "b/y", 2 /* RENAME_EXCHANGE */));
}

static void *walk_exchanged(void *unused)
{
    (void)unused;
    while (!over) {
        char text[256];
        struct stat about;
        OK(stat("a/x", &about));
        OK(stat("b/y", &about));
        OK(stat("a/x/../mark", &about));
        CHECK(about.st_ino == marks[0] || about.st_ino == marks[1]);
        int fd = open("b/y", O_RDONLY | O_DIRECTORY);
        CHECK(fd >= 0);
        place(fd, text, sizeof text);
        CHECK(strcmp(text, "/a/x") == 0 || strcmp(text, "/b/y") == 0);
        OK(close(fd));
        walks++;
    }
    return NULL;
}

// A link that is replaced leads to where the old one or the new one does.
static void replace_link(unsigned long i)
{
    OK(symlink(i & 1 ? "a" : "b", "new"));
    OK(rename("new", "way"));
}

static void *walk_link(void *unused)
{
    (void)unused;
    while (!over) {
        char text[8];
        struct stat about;
        OK(stat("way/mark", &about));
        CHECK(about.st_ino == marks[0] || about.st_ino == marks[1]);
        OK(lstat("way", &about));
        CHECK(S_ISLNK(about.st_mode) && about.st_size == 1);
        EQUAL(readlink("way", text, sizeof text), 1);
        CHECK(text[0] == 'a' || text[0] == 'b');
        int fd = open("way/../way/mark", O_RDWR | O_CREAT, 0600);
        CHECK(fd >= 0);
        OK(fstat(fd, &about));
        CHECK(about.st_ino == marks[0] || about.st_ino == marks[1]);
        OK(close(fd));
        walks++;
    }
    return NULL;
}

// Here the upper directory's number is the lower one's or, between the two renames, one more.
static void rename_two(unsigned long i)
{
    char from[128], to[128], tail[96];
    OK(snprintf(from, sizeof from, "%s/u%lu", base, i));
    OK(snprintf(to, sizeof to, "%s/u%lu", base, i + 1));
    OK(rename(from, to));
    CHECK(snprintf(tail, sizeof tail, "%s/l%%lu", deep) < (int)sizeof tail);
    snprintf(from, sizeof from, tail, i + 1, i);
    snprintf(to, sizeof to, tail, i + 1, i + 1);
    OK(rename(from, to));
}

static void check_numbers(const char *path)
{
    unsigned long upper, lower;
    const char *last = strrchr(path, '/');
    CHECK(strncmp(path, base, strlen(base)) == 0);
    CHECK(sscanf(path + strlen(base), "/u%lu/", &upper) == 1);
    CHECK(sscanf(last, "/l%lu", &lower) == 1);
    CHECK(upper == lower || upper == lower + 1);
}

static void *walk_deep(void *unused)
{
    (void)unused;
    while (!over) {
        char text[256];
        CHECK(getcwd(text, sizeof text) == text);
        check_numbers(text);
        ssize_t n = readlink("/proc/self/cwd", text, sizeof text - 1);
        CHECK(n > 0);
        text[n] = 0;
        check_numbers(text);
        walks++;
    }
    return NULL;
}

static void a_path_is_of_one_moment(void)
{
    char path[128];
    OK(chdir(base));
    strcpy(path, "u0");
    OK(mkdir(path, 0700));
    for (int i = 0; i < DEEP; i++) {
        strcat(path, "/d");
        OK(mkdir(path, 0700));
    }
    strcat(path, "/l0");
    OK(mkdir(path, 0700));
    OK(chdir(path));
    // A format: base/u%lu/d/d/...
    snprintf(deep, sizeof deep, "%s/u%%lu", base);
    for (int i = 0; i < DEEP; i++) strcat(deep, "/d");
    race(rename_two, walk_deep);
    puts("ok a path is of one moment");
}

// As many parts as a path may have, some up and some by links, lead where they say.
static void a_long_path_is_walked_to_its_end(void)
{
    char path[4096] = "";
    for (size_t n = 0; n + 32 < sizeof path; n += 12) strcat(path, "b/./../a/../");
    strcat(path, "a/mark");
    EQUAL(number(path), marks[0]);
    path[0] = 0;
    for (int i = 0; i < 39; i++) strcat(path, "way/../way/../a/.././" + (i ? 7 : 0));
    strcat(path, "b/mark");
    EQUAL(number(path), marks[1]);
    strcat(path, "/");
    CHECK(access(path, F_OK) == -1 && errno == ENOTDIR);
    puts("ok a long path is walked to its end");
}

// Processes whose working directories are each other's, and their own, in /proc: what has ended keeps none of them.
static void what_has_ended_is_nowhere(void)
{
    enum { CHAIN = 400 };
    static pid_t all[CHAIN];
    char path[64];
    int started[2];
    OK(pipe(started));
    for (int i = 0; i < CHAIN; i++) {
        OK(all[i] = fork());
        if (all[i] == 0) {
            snprintf(path, sizeof path, "/proc/%d", i ? all[i - 1] : getpid());
            OK(chdir(path));
            OK(write(started[1], "", 1));
            for (;;) pause();
        }
    }
    for (int i = 0; i < CHAIN; i++) EQUAL(read(started[0], path, 1), 1);
    for (int i = 0; i < CHAIN; i++) OK(kill(all[i], SIGKILL));
    for (int i = 0; i < CHAIN; i++) EQUAL(wait_for(all[i]), SIGKILL);
    OK(all[0] = fork());
    if (all[0] == 0) _exit(chdir("/proc/self") == 0 ? 0 : 1);
    siginfo_t info;
    OK(waitid(P_PID, all[0], &info, WEXITED | WNOWAIT));
    snprintf(path, sizeof path, "/proc/%d/cwd", all[0]);
    char target[64];
    FAILS(readlink(path, target, sizeof target), ENOENT);
    EQUAL(wait_for(all[0]), 0);
    OK(close(started[0]));
    OK(close(started[1]));
    puts("ok what has ended is nowhere");
}

static int take_away(const char *path, const struct stat *about, int kind, struct FTW *where)
{
    (void)about, (void)kind, (void)where;
    return remove(path);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    times = strtoul(argv[1], NULL, 10);
    snprintf(base, sizeof base, "/tmp/walks.%d", (int)getpid());
    OK(mkdir(base, 0700));
    OK(chdir(base));
    OK(mkdir("a", 0700));
    OK(mkdir("b", 0700));
    make("a/mark");
    make("b/mark");
    marks[0] = number("a/mark");
    marks[1] = number("b/mark");
    OK(symlink("b/d", "link"));
    race(make_and_remove, walk_removed);
    puts("ok what is removed has nothing in it");
    OK(mkdir("a/x", 0700));
    OK(mkdir("a/x/in", 0700));
    make("a/x/in/file");
    race(move, walk_moved);
    puts("ok what is moved is in one place");
    OK(mkdir("b/y", 0700));
    race(exchange, walk_exchanged);
    puts("ok what is exchanged is always there");
    OK(symlink("a", "way"));
    race(replace_link, walk_link);
    puts("ok a link that is replaced leads somewhere");
    a_long_path_is_walked_to_its_end();
    a_path_is_of_one_moment();
    OK(chdir("/"));
    what_has_ended_is_nowhere();
    OK(nftw(base, take_away, 16, FTW_DEPTH | FTW_PHYS));
    puts("walks: all checks passed");
    return 0;
}
