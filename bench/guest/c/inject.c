// Every single allocation of a page frame fails once, and nothing is lost.
//
// For each scenario and for k = 1, 2, 3, ...: the k-th allocation of a frame from then on fails (a `prctl` of Quire's,
// with the boot option `inject`), the scenario runs in a child, and when k is larger than the number of allocations
// the scenario is done. A scenario may fail, by ENOMEM or SIGKILL; run again without a failure it must succeed; and the
// frames that programs own must be as many as before. The kernel checks its own account at the end of the run.
#include "check.h"

#include <sys/prctl.h>
#include <sys/stat.h>
#include <pthread.h>

#define PR_FAIL_FRAME 0x4641494c
// What a scenario's child exits with when it was refused for lack of memory.
#define REFUSED 9

static void refused_or(int condition)
{
    if (condition) return;
    if (errno == ENOMEM || errno == EAGAIN || errno == ENOSPC || errno == EMFILE || errno == ENFILE) _exit(REFUSED);
    CHECK(!"refused for another reason");
}

static void fault(void)
{
    char *p = mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    refused_or(p != MAP_FAILED);
    for (size_t i = 0; i < 8; i++) p[i * (5 << 20)] = 1;
}

static void fork_and_write(void)
{
    static char bytes[16 * PAGE] = {1};
    memset(bytes, 2, sizeof bytes);
    pid_t p = fork();
    refused_or(p != -1);
    if (p == 0) {
        memset(bytes, 3, sizeof bytes);
        _exit(0);
    }
    int status = wait_for(p);
    if (WIFSIGNALED(status)) EQUAL(WTERMSIG(status), SIGKILL);
    for (size_t i = 0; i < sizeof bytes; i++) CHECK(bytes[i] == 2);
}

static void execute(void)
{
    char *const argv[] = {"/proc/self/exe", "child", NULL};
    execv("/proc/self/exe", argv);
    refused_or(0);
}

static void map(void)
{
    char *p = mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    refused_or(p != MAP_FAILED);
    for (size_t i = 0; i < 8; i++) refused_or(mprotect(p + 2 * i * PAGE, PAGE, PROT_READ) == 0);
    refused_or(munmap(p + 3 * PAGE, PAGE) == 0);
    void *q = mremap(p + 64 * PAGE, 32 * PAGE, 64 * PAGE, MREMAP_MAYMOVE);
    refused_or(q != MAP_FAILED);
    int fd = memfd_create("shared", 0);
    refused_or(fd != -1);
    refused_or(ftruncate(fd, 16 * PAGE) == 0);
    char *s = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    refused_or(s != MAP_FAILED);
    memset(s, 1, 16 * PAGE);
}

static void pipes(void)
{
    static char bytes[32768];
    for (int i = 0; i < 4; i++) {
        int ends[2];
        refused_or(pipe(ends) == 0);
        ssize_t n = write(ends[1], bytes, sizeof bytes);
        refused_or(n > 0);
        EQUAL(read(ends[0], bytes, (size_t)n), n);
    }
}

static void file(void)
{
    static char bytes[16 * PAGE];
    int fd = open("/tmp/inject.file", O_CREAT | O_RDWR | O_TRUNC, 0644);
    refused_or(fd != -1);
    ssize_t n = write(fd, bytes, sizeof bytes);
    int saved = errno;
    unlink("/tmp/inject.file");
    errno = saved;
    refused_or(n > 0);
}

static void *nothing(void *p) { return p; }

static void threads(void)
{
    for (int i = 0; i < 3; i++) {
        pthread_t t[4];
        int made = 0;
        while (made < 4 && (errno = pthread_create(&t[made], NULL, nothing, NULL)) == 0) made++;
        int saved = errno;
        int complete = made == 4;
        while (made > 0) pthread_join(t[--made], NULL);
        errno = saved;
        refused_or(complete);
    }
}

static const struct {
    const char *name;
    void (*run)(void);
} scenarios[] = {{"fault", fault}, {"fork", fork_and_write}, {"exec", execute}, {"map", map}, {"pipes", pipes}, {"file", file}, {"threads", threads}};

// Frames that programs own, and whether all frames are somewhere.
static long owned(int *exact)
{
    char text[512] = {0};
    int fd = open("/proc/quire/frames", O_RDONLY);
    CHECK(fd != -1);
    CHECK(read(fd, text, sizeof text - 1) > 0);
    close(fd);
    long v[8];
    EQUAL(sscanf(text, "total %ld free %ld cached %ld Anonymous %ld File %ld PageTable %ld Kernel %ld Stack %ld", &v[0], &v[1], &v[2], &v[3], &v[4],
                 &v[5], &v[6], &v[7]),
          8);
    *exact = v[0] == v[1] + v[2] + v[3] + v[4] + v[5] + v[6] + v[7];
    return v[3] + v[4] + v[5];
}

static int run(void (*scenario)(void), long k)
{
    int go[2];
    OK(pipe(go));
    pid_t p = fork();
    CHECK(p != -1);
    if (p == 0) {
        // Begin at the scenario, not in the fork that leads to it.
        if (k) OK(prctl(PR_FAIL_FRAME, k));
        scenario();
        _exit(0);
    }
    int status = wait_for(p);
    close(go[0]);
    close(go[1]);
    return status;
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "child")) return 0;
    if (prctl(PR_FAIL_FRAME, 0) == -1) {
        fprintf(stderr, "inject: no boot option inject\n");
        return 2;
    }
    long total = 0;
    for (size_t s = 0; s < sizeof scenarios / sizeof *scenarios; s++) {
        EQUAL(run(scenarios[s].run, 0), 0);
        int exact;
        // What this process itself needs for the first time is not a loss.
        for (long k = 1; k < 4; k++) {
            int status = run(scenarios[s].run, k);
            CHECK(WIFSIGNALED(status) || WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == REFUSED);
            prctl(PR_FAIL_FRAME, 0);
            owned(&exact);
        }
        long before = owned(&exact), k = 1, refused = 0, killed = 0;
        for (;; k++) {
            int status = run(scenarios[s].run, k);
            long left = prctl(PR_FAIL_FRAME, 0);
            if (WIFSIGNALED(status)) {
                EQUAL(WTERMSIG(status), SIGKILL);
                killed++;
            } else {
                CHECK(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == REFUSED);
                refused += WEXITSTATUS(status) == REFUSED;
            }
            // CPUs let go of an address space that has ended a little later.
            long after = 0;
            for (int tries = 0; tries < 500; tries++) {
                after = owned(&exact);
                if (after <= before && exact) break;
                sleep_ms(2);
            }
            CHECK(exact);
            if (after > before) fprintf(stderr, "%s, k = %ld: %ld frames more\n", scenarios[s].name, k, after - before);
            CHECK(after <= before);
            if (left > 0) break;
            EQUAL(run(scenarios[s].run, 0), 0);
        }
        fprintf(stderr, "%s: %ld allocations failed, one each: %ld runs refused, %ld killed\n", scenarios[s].name, k - 1, refused, killed);
        CHECK(k > 1);
        total += k - 1;
        passed(scenarios[s].name);
    }
    fprintf(stderr, "%ld failures survived\n", total);
    return finished("inject");
}
