// The first process when the driver boots Linux: runs one program as if it had been started on the host, then ends the
// machine. What Quire's kernel does for its program at the machine's ports, this does from user mode on Linux.
//
// Out: a byte written to port 0xe9 is the program's standard output, 0xea its standard error, 0xeb the driver's control
// channel; a write to 0xf4 ends the machine. The program writes to pipes (or to a pseudo-terminal where the driver has
// a terminal) and this process forwards them, asleep in poll() while nobody writes: it takes no time from a program that
// is being measured. Linux lets a process with ioperm() reach ports, so no driver is needed.
//
// In: frames on the first serial line, as the driver's console.rs defines them. A serial driver drops what nobody reads,
// and Linux has no way to hold QEMU back, so the driver sends a frame of data only after this process has asked for it:
// the first after the record `ready`, each other one after a record `more`, which says that the program's pipe has taken
// the last. Window sizes come unasked and are small.
//
// What to run: `.quire/exec`, in the same form as for Quire's kernel; if there is a `.quire/input`, that file is the program's
// standard input, which then depends on nothing outside. Arguments (what follows `--` on the kernel's command
// line): `tty=` which of 0, 1, 2 are a terminal, `rows=`, `cols=` its size, `shared=1` if standard output and error are one
// file, whose order must be kept, `stats=1` for the counters, `kallsyms=1` to print the kernel's symbols and run nothing, `settle=` how many
// seconds to sleep first, until the kernel has done what it does after its boot.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { STDOUT = 0xe9, STDERR = 0xea, CONTROL = 0xeb, EXIT = 0xf4 };

// ---- the machine's ports -------------------------------------------------------------------------------------------

static void permit_ports(int on)
{
    ioperm(STDOUT, 3, on);
    ioperm(EXIT, 1, on);
}

static _Noreturn void end_machine(void)
{
    outb(0, EXIT);
    for (;;) pause();
}

__attribute__((format(printf, 1, 2))) static void control(const char *format, ...)
{
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (n >= (int)sizeof line) n = sizeof line - 1;
    if (n > 0) outsb(CONTROL, line, n);
}

// The driver shows the messages of a machine that ends without an `exit` record.
static _Noreturn void fail(const char *what)
{
    control("init: %s: %s\n", what, strerror(errno));
    end_machine();
}

static int must(int result, const char *what)
{
    if (result < 0) fail(what);
    return result;
}

// ---- what the program finds ----------------------------------------------------------------------------------------

static void mount_at(const char *type, const char *where, const char *options)
{
    mkdir(where, 0755);
    must(mount(type, where, type, 0, options), where);
}

// The tree itself is a tmpfs, so /tmp is one too. Linux lets everybody write to its root.
static void mount_all(void)
{
    chmod("/", 0755);
    mount_at("proc", "/proc", NULL);
    mount_at("sysfs", "/sys", NULL);
    mount_at("devtmpfs", "/dev", NULL);
    mount_at("devpts", "/dev/pts", "mode=620,ptmxmode=666");
    mount_at("tmpfs", "/dev/shm", "mode=1777");
    symlink("/proc/self/fd", "/dev/fd");
    symlink("/proc/self/fd/0", "/dev/stdin");
    symlink("/proc/self/fd/1", "/dev/stdout");
    symlink("/proc/self/fd/2", "/dev/stderr");
}

static struct {
    int terminal[3];
    struct winsize size;
    int shared, stats, kallsyms, settle;
} asked;

static void read_arguments(char **argv)
{
    for (char **word = argv + 1; *word; word++) {
        char *value = strchr(*word, '=');
        if (!value) continue;
        *value++ = 0;
        int number = atoi(value);
        if (!strcmp(*word, "rows")) asked.size.ws_row = number;
        if (!strcmp(*word, "cols")) asked.size.ws_col = number;
        if (!strcmp(*word, "shared")) asked.shared = number;
        if (!strcmp(*word, "stats")) asked.stats = number;
        if (!strcmp(*word, "kallsyms")) asked.kallsyms = number;
        if (!strcmp(*word, "settle")) asked.settle = number;
        if (!strcmp(*word, "tty"))
            for (int fd = 0; fd < 3; fd++) asked.terminal[fd] = strchr(value, '0' + fd) != NULL;
    }
}

static struct {
    char **argv, **env, *cwd, *path;
    // Its standard input if that is a file, or -1.
    int input;
} program;

static char *next_string(char **at, char *end)
{
    char *string = *at, *zero = memchr(string, 0, end - string);
    errno = EINVAL;
    if (!zero) fail(".quire/exec ends too early");
    *at = zero + 1;
    return string;
}

static char **next_list(char **at, char *end)
{
    unsigned long count = strtoul(next_string(at, end), NULL, 10);
    errno = EINVAL;
    if (count > (unsigned long)(end - *at)) fail(".quire/exec has a bad count");
    char **list = calloc(count + 1, sizeof *list);
    if (!list) fail("memory");
    for (unsigned long i = 0; i < count; i++) list[i] = next_string(at, end);
    return list;
}

// These files and this program leave the tree before the program sees it.
static void read_program(void)
{
    int fd = must(open("/.quire/exec", O_RDONLY | O_CLOEXEC), ".quire/exec");
    struct stat about;
    must(fstat(fd, &about), ".quire/exec");
    char *bytes = malloc(about.st_size + 1);
    if (!bytes) fail("memory");
    if (read(fd, bytes, about.st_size) != about.st_size) fail(".quire/exec");
    close(fd);
    char *at = bytes, *end = bytes + about.st_size;
    program.argv = next_list(&at, end);
    program.env = next_list(&at, end);
    program.cwd = next_string(&at, end);
    program.path = next_string(&at, end);
    program.input = open("/.quire/input", O_RDONLY | O_CLOEXEC);
    unlink("/.quire/exec");
    unlink("/.quire/input");
    unlink("/.quire/init");
    rmdir("/.quire");
}

// ---- counters ------------------------------------------------------------------------------------------------------

enum { MAX_CPUS = 256 };

// Rows of /proc/interrupts that have a number for each CPU, and their names among Quire's counters.
static const char *const ROWS[][2] = {
    {"LOC", "timer_interrupts"},
    {"RES", "reschedule_ipis"},
    {"CAL", "function_call_ipis"},
    {"TLB", "shootdowns_received"},
};
enum { ROW_COUNT = sizeof ROWS / sizeof *ROWS };

struct counters {
    int cpus;
    unsigned long rows[ROW_COUNT][MAX_CPUS];
    unsigned long switches;
};

static void read_counters(struct counters *to)
{
    memset(to, 0, sizeof *to);
    char *line = NULL;
    size_t size = 0;
    FILE *file = fopen("/proc/interrupts", "re");
    while (file && getline(&line, &size, file) > 0)
        for (int row = 0; row < ROW_COUNT; row++) {
            char *at = line + strspn(line, " "), *end;
            if (strncmp(at, ROWS[row][0], 3) || at[3] != ':') continue;
            at += 4;
            for (to->cpus = 0; to->cpus < MAX_CPUS; at = end) {
                unsigned long number = strtoul(at, &end, 10);
                if (end == at) break;
                to->rows[row][to->cpus++] = number;
            }
        }
    if (file) fclose(file);
    file = fopen("/proc/stat", "re");
    while (file && getline(&line, &size, file) > 0) sscanf(line, "ctxt %lu", &to->switches);
    if (file) fclose(file);
    free(line);
}

// The same JSON as Quire's kernel sends, with what Linux counts. Linux has no account of frames.
static void report_counters(const struct counters *before, const struct rusage *used)
{
    static struct counters now;
    read_counters(&now);
    control("\x1estats {\"cpus\":%d,\"counters\":{", now.cpus);
    for (int row = 0; row < ROW_COUNT; row++) {
        control("\"%s\":[", ROWS[row][1]);
        for (int cpu = 0; cpu < now.cpus; cpu++)
            control("%s%lu", cpu ? "," : "", now.rows[row][cpu] - before->rows[row][cpu]);
        control("],");
    }
    control("\"context_switches\":[%lu],", now.switches - before->switches);
    control("\"faults_minor\":[%ld],\"faults_major\":[%ld]", used->ru_minflt, used->ru_majflt);
    control("},\"unknown_syscalls\":{},\"frames\":{}}\n");
}

// ---- output --------------------------------------------------------------------------------------------------------

// What the program writes to, and the port that it goes to. This process keeps the writing end open too, so that the
// reading end never reports a hang-up, which poll() would not sleep on.
struct output {
    int from, to;
    int port;
};
static struct output outputs[3];
static int output_count;
// The terminal's two ends, if there is one.
static int master = -1, slave = -1;

static struct output *add_output(int from, int to, int port)
{
    must(fcntl(from, F_SETFL, O_NONBLOCK), "O_NONBLOCK");
    outputs[output_count] = (struct output){from, to, port};
    return &outputs[output_count++];
}

static struct output *add_pipe(int port)
{
    int ends[2];
    must(pipe2(ends, O_CLOEXEC), "pipe");
    return add_output(ends[0], ends[1], port);
}

// What there is now; whether there was anything.
static int forward(const struct output *output)
{
    char bytes[65536];
    ssize_t n = read(output->from, bytes, sizeof bytes);
    if (n <= 0) return 0;
    outsb(output->port, bytes, n);
    return 1;
}

static void open_terminal(void)
{
    master = must(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC), "/dev/ptmx");
    unlockpt(master);
    slave = must(open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC), "the terminal");
    ioctl(master, TIOCSWINSZ, &asked.size);
}

// The program's files 0, 1 and 2; the writing end of its input in `input`.
static void open_files(int files[3], int *input)
{
    if (asked.terminal[0] || asked.terminal[1] || asked.terminal[2]) {
        open_terminal();
        add_output(master, slave, asked.terminal[1] ? STDOUT : STDERR);
    }
    if (program.input >= 0) {
        files[0] = program.input;
        *input = -1;
    } else if (asked.terminal[0]) {
        files[0] = slave;
        *input = master;
    } else {
        int ends[2];
        must(pipe2(ends, O_CLOEXEC), "pipe");
        files[0] = ends[0];
        *input = ends[1];
        must(fcntl(*input, F_SETFL, O_NONBLOCK), "O_NONBLOCK");
    }
    files[1] = asked.terminal[1] ? slave : add_pipe(STDOUT)->to;
    if (asked.terminal[2]) files[2] = slave;
    else files[2] = asked.shared ? files[1] : add_pipe(STDERR)->to;
}

// ---- input ---------------------------------------------------------------------------------------------------------

enum { FRAME = 4096, WINDOW = 0xffff, WINDOW_RECORD = 7 };

static int serial;
// Bytes of frames that have not been understood yet: never more than a frame of data and some window sizes.
static unsigned char received[2 * FRAME];
static size_t received_count;
// The program's input, or -1 once it has ended, and what of the frame at the start of `received` it has taken.
static int input;
static size_t taken;

// Before anything is sent: a line discipline that changes no byte and echoes none.
static void open_serial(void)
{
    struct termios settings;
    serial = must(open("/dev/ttyS0", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC), "/dev/ttyS0");
    must(tcgetattr(serial, &settings), "/dev/ttyS0");
    cfmakeraw(&settings);
    settings.c_cflag |= CLOCAL | CREAD;
    cfsetspeed(&settings, B115200);
    must(tcsetattr(serial, TCSANOW, &settings), "/dev/ttyS0");
}

static unsigned number_at(size_t at) { return received[at] | received[at + 1] << 8; }

static void drop_received(size_t count)
{
    memmove(received, received + count, received_count -= count);
}

// A whole frame of data is at the start and has not been taken.
static int data_waits(void)
{
    if (received_count < 2) return 0;
    unsigned length = number_at(0);
    return length > 0 && length <= FRAME && received_count >= 2 + length;
}

static void end_input(void)
{
    // On a terminal, the character that ends the file.
    if (input == master && input >= 0) {
        if (write(input, "\x04", 1) < 0) return;
    } else if (input >= 0) {
        close(input);
    }
    input = -1;
}

// Give the program what it takes of the frame at the start. A program that has closed its input gets no more, and the
// driver is asked for no more.
static void deliver(void)
{
    size_t length = number_at(0);
    while (input >= 0 && taken < length) {
        ssize_t n = write(input, received + 2 + taken, length - taken);
        if (n == 0 || (n < 0 && errno == EAGAIN)) return;
        if (n < 0) {
            if (input != master) close(input);
            input = -1;
        } else {
            taken += n;
        }
    }
    drop_received(2 + length);
    taken = 0;
    if (input >= 0) control("\x1emore\n");
}

// Act on everything at the start of `received` that is complete.
static void understand(void)
{
    while (received_count >= 2) {
        unsigned length = number_at(0);
        if (length == 0) {
            end_input();
            drop_received(2);
        } else if (length == WINDOW) {
            if (received_count < WINDOW_RECORD) return;
            asked.size.ws_row = number_at(3);
            asked.size.ws_col = number_at(5);
            if (master >= 0) ioctl(master, TIOCSWINSZ, &asked.size);
            drop_received(WINDOW_RECORD);
        } else if (length > FRAME) {
            errno = EPROTO;
            fail("a frame of input is too long");
        } else {
            if (!data_waits()) return;
            deliver();
            if (taken > 0 || data_waits()) return;
        }
    }
}

static void receive(void)
{
    ssize_t n = read(serial, received + received_count, sizeof received - received_count);
    if (n > 0) received_count += n;
    understand();
}

// A no-operation by which a tracer of the emulator's knows when the program begins and ends.
#define MARK(number) __asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00\n.long " number)

// ---- the program's life --------------------------------------------------------------------------------------------

static _Noreturn void become_program(const int files[3], int failed)
{
    // Neither the ports nor what this process ignores is the program's; turning the last port off frees the bitmap.
    permit_ports(0);
    signal(SIGPIPE, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    if (slave >= 0) ioctl(slave, TIOCSCTTY, 0);
    // The originals are all above 2 and close on exec.
    for (int fd = 0; fd < 3; fd++) dup2(files[fd], fd);
    if (chdir(program.cwd) == 0) {
        MARK("0x51510009");
        execve(program.path, program.argv, program.env);
    }
    int error = errno;
    if (write(failed, &error, sizeof error) < 0) _exit(125);
    _exit(126);
}

// Start it; says so on standard error and ends the machine if that can't be done.
static pid_t start(const int files[3])
{
    int failed[2];
    must(pipe2(failed, O_CLOEXEC), "pipe");
    pid_t child = must(fork(), "fork");
    if (child == 0) become_program(files, failed[1]);
    close(failed[1]);
    int error;
    if (read(failed[0], &error, sizeof error) == sizeof error) {
        char line[256];
        int n = snprintf(line, sizeof line, "quire: the program can't be run: %s\n", strerror(error));
        outsb(STDERR, line, n);
        control("\x1e" "exit 126\n");
        end_machine();
    }
    close(failed[0]);
    return child;
}

// Reap whatever has ended; whether the program is among it.
static int reap(pid_t child, int *status, struct rusage *used)
{
    int found = 0, one;
    struct rusage of_one;
    for (pid_t pid; (pid = wait4(-1, &one, WNOHANG, &of_one)) > 0;)
        if (pid == child) {
            *status = one;
            *used = of_one;
            found = 1;
        }
    return found;
}

static void serve_until_ended(pid_t child, int *status, struct rusage *used)
{
    sigset_t ended;
    sigemptyset(&ended);
    sigaddset(&ended, SIGCHLD);
    int ends = must(signalfd(-1, &ended, SFD_CLOEXEC | SFD_NONBLOCK), "signalfd");
    // It may have ended before the signal was looked for.
    while (!reap(child, status, used)) {
        int pending = data_waits();
        struct pollfd on[] = {
            {ends, POLLIN, 0},
            {serial, POLLIN, 0},
            {pending ? input : -1, POLLOUT, 0},
            {output_count > 0 ? outputs[0].from : -1, POLLIN, 0},
            {output_count > 1 ? outputs[1].from : -1, POLLIN, 0},
            {output_count > 2 ? outputs[2].from : -1, POLLIN, 0},
        };
        // A buffer that is full of frames not yet taken must not be read into.
        if (received_count == sizeof received) on[1].fd = -1;
        if (poll(on, sizeof on / sizeof *on, -1) < 0) continue;
        for (int i = 0; i < output_count; i++)
            if (on[3 + i].revents) forward(&outputs[i]);
        if (on[1].revents) receive();
        else if (on[2].revents) understand();
        struct signalfd_siginfo seen;
        while (read(ends, &seen, sizeof seen) > 0) {}
    }
}

// The machine lives as long as the program, so what it left running is killed. Then all that it wrote is in the pipes.
static void finish_output(void)
{
    kill(-1, SIGKILL);
    while (wait(NULL) > 0 || errno == EINTR) {}
    if (slave >= 0) close(slave);
    for (int i = 0; i < output_count; i++)
        while (forward(&outputs[i])) {}
}

static _Noreturn void print_symbols(void)
{
    static char bytes[65536];
    int fd = must(open("/proc/kallsyms", O_RDONLY), "/proc/kallsyms");
    for (ssize_t n; (n = must(read(fd, bytes, sizeof bytes), "/proc/kallsyms")) > 0;) outsb(STDOUT, bytes, n);
    control("\x1e" "exit 0\n");
    end_machine();
}

int main(int argc, char **argv)
{
    (void)argc;
    permit_ports(1);
    mount_all();
    // Files 0, 1 and 2 are taken, so that none of the program's ends is among them.
    int null = must(open("/dev/null", O_RDWR), "/dev/null");
    for (int fd = 0; fd < 3; fd++) dup2(null, fd);
    if (null > 2) close(null);
    read_arguments(argv);
    if (asked.kallsyms) print_symbols();
    read_program();
    signal(SIGPIPE, SIG_IGN);
    sigset_t ended;
    sigemptyset(&ended);
    sigaddset(&ended, SIGCHLD);
    sigprocmask(SIG_BLOCK, &ended, NULL);

    int files[3], status = 0;
    struct rusage used = {0};
    static struct counters before;
    open_files(files, &input);
    open_serial();
    sleep(asked.settle);
    if (asked.stats) read_counters(&before);
    pid_t child = start(files);
    // The reading end of its input is the program's alone: when it has closed it, writing says so.
    if (files[0] != slave) close(files[0]);
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    control("\x1eready %lld\n", now.tv_sec * 1000000000LL + now.tv_nsec);
    serve_until_ended(child, &status, &used);
    MARK("0x5151000a");
    finish_output();
    if (asked.stats) report_counters(&before, &used);
    control("\x1e" "exit %d\n", WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
    end_machine();
}
