// forkexec: the life and death of processes as shells and build tools use them.
//
// Proves: fork gives an independent copy, vfork runs the child in the parent's memory until it execs or exits, execve
// passes arguments and environment, keeps what must be kept (pid, ignored signals, mask, open descriptors) and drops
// what must go (handlers, close-on-exec descriptors, other threads), #! scripts name their interpreter, every way to end
// gives the right wait status, orphans finish, and pipes join processes into a pipeline. What is open for writing can't
// be run, and what runs can't be opened for writing.
//
// calls: execve exit exit_group fcntl fork getppid kill vfork wait4
#include "check.h"
#include <poll.h>
#include <pthread.h>
#include <sys/stat.h>

static char self[512]; // the path of this executable

static pid_t spawn(void (*body)(void))
{
    fflush(stdout);
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        body();
        _exit(0);
    }
    return child;
}

#define EXITS(body, status) EQUAL(wait_for(spawn(body)), (status) << 8)

static int shared_value = 1;

static void change_copy(void)
{
    shared_value = 2;
    char *p = pages_new(2);
    p[0] = 1;
    EQUAL(shared_value, 2);
    _exit(9);
}

static void fork_copies(void)
{
    char *page = pages_new(8);
    memset(page, 'p', 8 * PAGE);
    EXITS(change_copy, 9);
    EQUAL(shared_value, 1);
    // Three generations write the same pages; each sees its own.
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        memset(page, 'c', 4 * PAGE);
        pid_t grandchild = fork();
        if (grandchild == 0) {
            EQUAL(page[0], 'c');
            EQUAL(page[5 * PAGE], 'p');
            memset(page, 'g', 8 * PAGE);
            _exit(3);
        }
        EQUAL(WEXITSTATUS(wait_for(grandchild)), 3);
        for (size_t i = 0; i < 8 * PAGE; i++) EQUAL(page[i], i < 4 * PAGE ? 'c' : 'p');
        _exit(4);
    }
    EQUAL(WEXITSTATUS(wait_for(child)), 4);
    for (size_t i = 0; i < 8 * PAGE; i++) EQUAL(page[i], 'p');
    // A shared anonymous mapping is not copied.
    int *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared != MAP_FAILED) {
        child = fork();
        OK(child);
        if (child == 0) {
            *shared = 77;
            _exit(0);
        }
        wait_for(child);
        EQUAL(*shared, 77);
    }
}

static void vfork_shares(void)
{
    volatile int touched = 0;
    for (int i = 0; i < 20; i++) {
        pid_t child = vfork();
        OK(child);
        if (child == 0) {
            touched++;
            _exit(i);
        }
        EQUAL(touched, i + 1); // the parent slept until the child was gone
        EQUAL(WEXITSTATUS(wait_for(child)), i);
    }
    pid_t child = vfork();
    OK(child);
    if (child == 0) {
        execl(self, "forkexec", "exit", "31", (char *)NULL);
        _exit(127);
    }
    EQUAL(WEXITSTATUS(wait_for(child)), 31);
}

static void say_arguments(void)
{
    char *arguments[] = {"a name", "say", "", "two words", "last", NULL};
    char *environment[] = {"A=1", "EMPTY=", "LONG=0123456789012345678901234567890123456789", NULL};
    execve(self, arguments, environment);
}

static void bad_exec(void)
{
    char path[] = "/tmp/quire-exec-XXXXXX";
    char *arguments[] = {"x", NULL};
    FAILS(execve("/tmp/quire-no-such-file", arguments, arguments + 1), ENOENT);
    FAILS(execve("/tmp", arguments, arguments + 1), EACCES);
    FAILS(execve("/dev/null/x", arguments, arguments + 1), ENOTDIR);
    int fd = mkstemp(path);
    OK(fd);
    EQUAL(write(fd, "neither ELF nor script", 22), 22);
    OK(fchmod(fd, 0644));
    OK(close(fd));
    FAILS(execve(path, arguments, arguments + 1), EACCES);
    OK(chmod(path, 0755));
    FAILS(execve(path, arguments, arguments + 1), ENOEXEC);
    OK(truncate(path, 0));
    FAILS(execve(path, arguments, arguments + 1), ENOEXEC);
    OK(unlink(path));
}

static void exec_arguments_and_errors(void)
{
    EXITS(say_arguments, 5);
    EXITS(bad_exec, 0);
}

static void ignore_signal(int signal) { (void)signal; }

static void inherit(void)
{
    char keep[16], drop[16], mask[] = "kept";
    int kept = open("/dev/null", O_RDWR), dropped = open("/dev/null", O_RDWR | O_CLOEXEC);
    CHECK(kept >= 0 && dropped >= 0);
    int duplicate = fcntl(dropped, F_DUPFD, 0); // a duplicate does not close on exec
    OK(duplicate);
    OK(fcntl(duplicate, F_SETFD, FD_CLOEXEC));
    OK(fcntl(duplicate, F_SETFD, 0));
    OK(close(dropped));
    EQUAL(open("/dev/null", O_RDONLY | O_CLOEXEC), dropped);
    signal(SIGUSR1, SIG_IGN);
    signal(SIGUSR2, ignore_signal);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGHUP);
    OK(sigprocmask(SIG_BLOCK, &set, NULL));
    OK(kill(getpid(), SIGHUP)); // stays pending across the exec
    OK(chdir("/dev"));
    snprintf(keep, sizeof keep, "%d", duplicate);
    snprintf(drop, sizeof drop, "%d", dropped);
    char pid[16];
    snprintf(pid, sizeof pid, "%d", getpid());
    execl(self, "forkexec", "inherit", keep, drop, mask, pid, (char *)NULL);
}

static int check_inherited(char **argv)
{
    OK(fcntl(atoi(argv[2]), F_GETFD));
    FAILS(fcntl(atoi(argv[3]), F_GETFD), EBADF);
    EQUAL(getpid(), atoi(argv[5]));
    struct sigaction action;
    OK(sigaction(SIGUSR1, NULL, &action));
    CHECK(action.sa_handler == SIG_IGN);
    OK(sigaction(SIGUSR2, NULL, &action));
    CHECK(action.sa_handler == SIG_DFL);
    sigset_t set;
    OK(sigprocmask(SIG_BLOCK, NULL, &set));
    CHECK(sigismember(&set, SIGHUP) && !sigismember(&set, SIGTERM));
    OK(sigpending(&set));
    CHECK(sigismember(&set, SIGHUP));
    char directory[64];
    CHECK(getcwd(directory, sizeof directory) != NULL);
    EQUAL(strcmp(directory, "/dev"), 0);
    return 6;
}

static void exec_inheritance(void) { EXITS(inherit, 6); }

static void by_signal(void)
{
    kill(getpid(), SIGTERM);
    for (;;) pause();
}
static void by_fault(void)
{
    char *volatile null = NULL;
    *(volatile char *)null = 1;
}
static void by_abort(void) { abort(); }

static void *exit_all(void *status)
{
    exit((int)(intptr_t)status); // ends the whole process, whatever the others do
}
static void *spin_forever(void *unused)
{
    for (volatile unsigned i = 0;; i++) {}
    return unused;
}
static void *sleep_forever(void *unused)
{
    for (;;) pause();
    return unused;
}
static void by_thread(void)
{
    pthread_t thread;
    RETURNS(pthread_create(&thread, NULL, spin_forever, NULL), 0);
    RETURNS(pthread_create(&thread, NULL, sleep_forever, NULL), 0);
    RETURNS(pthread_create(&thread, NULL, exit_all, (void *)44), 0);
    for (;;) pause();
}
static void *exec_self(void *unused)
{
    execl(self, "forkexec", "exit", "45", (char *)NULL);
    return unused;
}
static void by_exec_in_thread(void)
{
    pthread_t thread;
    RETURNS(pthread_create(&thread, NULL, spin_forever, NULL), 0);
    RETURNS(pthread_create(&thread, NULL, exec_self, NULL), 0);
    for (;;) pause();
}
static void *last_out(void *unused)
{
    sleep_ms(10);
    _exit(46);
    return unused;
}
static void by_leaving_main(void)
{
    pthread_t thread;
    RETURNS(pthread_create(&thread, NULL, last_out, NULL), 0);
    syscall(SYS_exit, 1); // ends only the main thread
}
static void forever(void)
{
    for (;;) pause();
}

static void wait_statuses(void)
{
    EQUAL(wait_for(spawn(by_signal)), SIGTERM);
    EQUAL(wait_for(spawn(by_fault)) & 0x7f, SIGSEGV);
    EQUAL(wait_for(spawn(by_abort)) & 0x7f, SIGABRT);
    EXITS(by_thread, 44);
    EXITS(by_exec_in_thread, 45);
    EXITS(by_leaving_main, 46);
    int status = -1;
    FAILS(waitpid(-1, &status, 0), ECHILD);
    FAILS(waitpid(getpid(), &status, WNOHANG), ECHILD);
    pid_t child = spawn(forever);
    EQUAL(waitpid(child, &status, WNOHANG), 0);
    OK(kill(child, SIGKILL));
    EQUAL(wait_for(child), SIGKILL);
    FAILS(kill(child, 0), ESRCH);
    int sum = 0;
    for (int i = 0; i < 10; i++) {
        shared_value = i;
        child = fork();
        OK(child);
        if (child == 0) _exit(i);
    }
    for (int i = 0; i < 10; i++) {
        CHECK(wait(&status) > 0 && WIFEXITED(status));
        sum += WEXITSTATUS(status);
    }
    EQUAL(sum, 45);
}

// Threads that end their process at once: none of them comes back from it, though another was first.
static _Atomic int *came_back, ready_to_end;

static void *end_all(void *how)
{
    ready_to_end++;
    while (ready_to_end < 3) sched_yield();
    if (how)
        syscall(SYS_exit_group, 47);
    else
        kill(getpid(), SIGKILL);
    ++*came_back;
    return how;
}
static void by_all_at_once(void)
{
    pthread_t thread;
    ready_to_end = 0;
    for (intptr_t how = 0; how < 2; how++) RETURNS(pthread_create(&thread, NULL, end_all, (void *)how), 0);
    end_all((void *)1);
}

static void nobody_outlives_exit(void)
{
    came_back = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(came_back != MAP_FAILED);
    for (int i = 0; i < 200; i++) {
        int status = wait_for(spawn(by_all_at_once));
        CHECK(status == 47 << 8 || status == SIGKILL);
    }
    EQUAL(*came_back, 0);
    OK(munmap((void *)came_back, 4096));
}

static int ends[2];

static void leave_orphan(void)
{
    pid_t parent = getpid();
    if (fork() == 0) {
        while (getppid() == parent) sleep_ms(1);
        char byte = 'o';
        _exit(write(ends[1], &byte, 1) == 1 ? 0 : 1);
    }
}

static void orphans(void)
{
    char byte = 0;
    OK(pipe(ends));
    EXITS(leave_orphan, 0);
    OK(close(ends[1]));
    EQUAL(read(ends[0], &byte, 1), 1);
    EQUAL(byte, 'o');
    EQUAL(read(ends[0], &byte, 1), 0); // and it has ended too
    OK(close(ends[0]));
}

static void pipelines(void)
{
    // Each stage adds its number to every byte; 300 KB flow through, more than the pipes hold.
    enum { stages = 4, total = 300000 };
    int in[2];
    OK(pipe(in));
    pid_t child[stages + 1];
    int from = in[0];
    for (int stage = 1; stage <= stages; stage++) {
        int out[2];
        OK(pipe(out));
        child[stage] = fork();
        OK(child[stage]);
        if (child[stage] == 0) {
            close(in[1]);
            close(out[0]);
            char buffer[1000];
            ssize_t n;
            while ((n = read(from, buffer, sizeof buffer)) > 0) {
                for (int i = 0; i < n; i++) buffer[i] += stage;
                EQUAL(write(out[1], buffer, n), n);
            }
            _exit(n == 0 ? 0 : 1);
        }
        close(from);
        close(out[1]);
        from = out[0];
    }
    child[0] = fork();
    OK(child[0]);
    if (child[0] == 0) {
        char buffer[700];
        for (int at = 0; at < total;) {
            int n = total - at < 700 ? total - at : 700;
            for (int i = 0; i < n; i++) buffer[i] = (char)((at + i) * 7);
            at += n;
            EQUAL(write(in[1], buffer, n), n);
        }
        _exit(0);
    }
    close(in[1]);
    int at = 0;
    char buffer[4096];
    for (ssize_t n; (n = read(from, buffer, sizeof buffer)) > 0;)
        for (int i = 0; i < n; i++, at++) EQUAL(buffer[i], (char)(at * 7 + 10));
    EQUAL(at, total);
    for (int i = 0; i <= stages; i++) EQUAL(wait_for(child[i]), 0);
    signal(SIGPIPE, SIG_IGN);
    int broken[2];
    OK(pipe(broken));
    close(broken[0]);
    FAILS(write(broken[1], "x", 1), EPIPE);
    signal(SIGPIPE, SIG_DFL);
    close(broken[1]);
}

static char script[64];
static void run_script(void) { execl(script, "ignored", "one", "two", (char *)NULL); }

static void scripts(void)
{
    char text[700];
    strcpy(script, "/tmp/quire-script-XXXXXX");
    int fd = mkstemp(script);
    OK(fd);
    int n = snprintf(text, sizeof text, "#! %s script-argument \nthe rest is not read\n", self);
    EQUAL(write(fd, text, n), n);
    OK(fchmod(fd, 0755));
    OK(close(fd));
    EXITS(run_script, 8);
    OK(unlink(script));
}

// Runs as the interpreter: self "script-argument" SCRIPT "one" "two".
static int check_script(int argc, char **argv)
{
    EQUAL(argc, 5);
    EQUAL(strcmp(argv[0], self), 0);
    CHECK(strncmp(argv[2], "/tmp/quire-script-", 18) == 0);
    EQUAL(strcmp(argv[3], "one"), 0);
    EQUAL(strcmp(argv[4], "two"), 0);
    return 8;
}

static void nothing(void) {}

static void storms(void)
{
    for (int i = 0; i < 100; i++) EXITS(nothing, 0);
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 20; i++) spawn(nothing);
        for (int i = 0; i < 20; i++) CHECK(wait(NULL) > 0);
    }
}

// ---- programs that are being written, and files that are being run

static char busy[64]; // a copy of this program

static void copy_program(int to)
{
    static char bytes[1 << 16];
    int from = open(self, O_RDONLY);
    OK(from);
    for (ssize_t n; (n = read(from, bytes, sizeof bytes)) != 0;) {
        CHECK(n > 0);
        EQUAL(write(to, bytes, n), n);
    }
    OK(close(from));
}

// How an attempt to run a file ends: 0, or an errno.
static int running(const char *path)
{
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        execl(path, "x", "exit", "0", NULL);
        _exit(errno);
    }
    return WEXITSTATUS(wait_for(child));
}

static void not_to_be_written(void)
{
    FAILS(open(busy, O_WRONLY), ETXTBSY);
    FAILS(open(busy, O_RDWR), ETXTBSY);
    FAILS(open(busy, O_WRONLY | O_TRUNC), ETXTBSY);
    FAILS(open(busy, O_RDWR | O_CREAT, 0644), ETXTBSY);
    FAILS(truncate(busy, 0), ETXTBSY);
}

static void to_be_written(void)
{
    int fd = open(busy, O_RDWR);
    OK(fd);
    OK(close(fd));
}

static void busy_files(void)
{
    snprintf(busy, sizeof busy, "/tmp/quire-busy-%d", getpid());
    int fd = open(busy, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
    OK(fd);
    copy_program(fd);
    EQUAL(running(busy), ETXTBSY); // before anything is looked at
    int second = dup(fd);
    OK(close(fd));
    EQUAL(running(busy), ETXTBSY);
    OK(close(second));
    EQUAL(running(busy), 0);
    fd = open(busy, O_RDONLY | O_CLOEXEC);
    second = open(busy, O_WRONLY | O_CLOEXEC);
    OK(second); // nobody runs it any more
    int third = open(busy, O_WRONLY | O_CLOEXEC);
    OK(close(second));
    EQUAL(running(busy), ETXTBSY);
    OK(close(third));
    EQUAL(running(busy), 0); // reading does no harm
    OK(close(fd));

    char script[80], text[128];
    snprintf(script, sizeof script, "%s.script", busy);
    snprintf(text, sizeof text, "#!%s\n", busy);
    second = open(script, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
    OK(second);
    EQUAL(write(second, text, strlen(text)), strlen(text));
    EQUAL(running(script), ETXTBSY);
    OK(close(second));
    fd = open(busy, O_WRONLY | O_CLOEXEC);
    EQUAL(running(script), ETXTBSY); // its interpreter
    OK(close(fd));
    OK(unlink(script));

    int begun[2], end[2]; // a process runs it, forks, and ends; its child ends when told to
    OK(pipe(begun));
    OK(pipe(end));
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        OK(dup2(end[0], 0));
        OK(dup2(begun[1], 1));
        for (int i = 0; i < 2; i++) close(begun[i]), close(end[i]);
        execl(busy, "x", "linger", NULL);
        _exit(errno);
    }
    OK(close(end[0]));
    OK(close(begun[1]));
    char byte;
    EQUAL(read(begun[0], &byte, 1), 1);
    not_to_be_written();
    EQUAL(running(busy), 0); // once more
    OK(chmod(busy, 0700));
    EQUAL(wait_for(child), 0);
    not_to_be_written(); // the child runs it still
    struct stat s;
    OK(stat(busy, &s));
    CHECK(s.st_size > 0);
    OK(close(end[1]));
    EQUAL(read(begun[0], &byte, 1), 0); // its end of the pipe is closed, so soon it will be gone
    for (int i = 0; i < 2000 && (fd = open(busy, O_WRONLY)) == -1; i++) sleep_ms(1);
    OK(fd);
    OK(close(fd));
    to_be_written();
    OK(close(begun[0]));
    OK(truncate(busy, 1));
    OK(unlink(busy));

    fd = syscall(SYS_memfd_create, "busy", 0); // open for writing, and may be run
    OK(fd);
    copy_program(fd);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    EQUAL(running(path), 0);
    second = open(path, O_WRONLY | O_CLOEXEC); // but not so
    OK(second);
    EQUAL(running(path), ETXTBSY);
    OK(close(second));
    EQUAL(running(path), 0);
    OK(close(fd));
}

// What `busy_files` runs.
static int linger(void)
{
    pid_t child = fork();
    OK(child);
    char byte = 0;
    if (child != 0) {
        EQUAL(write(1, &byte, 1), 1);
        return 0;
    }
    EQUAL(read(0, &byte, 1), 0);
    return 0;
}

int main(int argc, char **argv)
{
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    CHECK(n > 0);
    if (argc == 3 && strcmp(argv[1], "exit") == 0) return atoi(argv[2]);
    if (argc == 2 && strcmp(argv[1], "linger") == 0) return linger();
    if (argc == 6 && strcmp(argv[1], "inherit") == 0) return check_inherited(argv);
    if (argc > 1 && strcmp(argv[1], "script-argument") == 0) return check_script(argc, argv);
    if (argc == 5 && strcmp(argv[1], "say") == 0) {
        EQUAL(strcmp(argv[0], "a name"), 0);
        EQUAL(strlen(argv[2]), 0);
        EQUAL(strcmp(argv[3], "two words"), 0);
        CHECK(argv[5] == NULL);
        EQUAL(strcmp(getenv("A"), "1"), 0);
        EQUAL(strlen(getenv("EMPTY")), 0);
        EQUAL(strlen(getenv("LONG")), 40);
        CHECK(getenv("PATH") == NULL && getenv("HOME") == NULL);
        return 5;
    }
    RUN(fork_copies);
    RUN(vfork_shares);
    RUN(exec_arguments_and_errors);
    RUN(exec_inheritance);
    RUN(wait_statuses);
    RUN(nobody_outlives_exit);
    RUN(orphans);
    RUN(pipelines);
    RUN(scripts);
    RUN(storms);
    RUN(busy_files);
    return finished("forkexec");
}
