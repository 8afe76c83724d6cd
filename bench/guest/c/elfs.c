// Programs that are not quite programs: every damaged executable ends as on Linux, by an errno of execve, a signal or
// an exit, and never takes more than its own process with it.
//
//   elfs RANDOM SEED
//
// The subject is a program of two segments, made here, that checks what it was loaded with and exits with status 42.
// Every single bit of its header and program headers is flipped, every field gets boundary values, the file is cut at
// every interesting length, segments overlap, interpreters and scripts lead nowhere or in circles. What execve and the
// program then did is told in a table that must be Linux's. Last, RANDOM mutations of several bytes at once; what
// becomes of those depends on where Linux puts things, so they only have to end.
#include "check.h"

#include <elf.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define FILE_BYTES 0x1100
#define TEXT 0x400000ul
#define DATA 0x402000ul
#define CODE 0x400
#define HEADERS 3

// Exits with 42 if the word at DATA is 0x12345678, the one behind it 0 (the file has something else there), and the
// last page 0; else with 43. It is the same wherever it is put.
static const unsigned char code[] = {
    0x8b, 0x05, 0xfa, 0x1b, 0x00, 0x00,       // mov eax, [rip + DATA]
    0x3d, 0x78, 0x56, 0x34, 0x12,             // cmp eax, 0x12345678
    0x75, 0x19,                               // jne bad
    0x83, 0x3d, 0xf4, 0x1b, 0x00, 0x00, 0x00, // cmp dword [rip + DATA + 8], 0
    0x75, 0x10,                               // jne bad
    0x83, 0x3d, 0xe3, 0x3b, 0x00, 0x00, 0x00, // cmp dword [rip + DATA + 0x2000], 0
    0x75, 0x07,                               // jne bad
    0xbf, 0x2a, 0x00, 0x00, 0x00,             // mov edi, 42
    0xeb, 0x05,                               // jmp end
    0xbf, 0x2b, 0x00, 0x00, 0x00,             // bad: mov edi, 43
    0xb8, 0x3c, 0x00, 0x00, 0x00,             // end: mov eax, 60
    0x0f, 0x05,                               // syscall
};

static union {
    unsigned char bytes[2 * FILE_BYTES];
    struct {
        Elf64_Ehdr header;
        Elf64_Phdr segment[HEADERS];
    };
} subject, mutant;

static void make_subject(void)
{
    memset(subject.bytes, 0xcc, sizeof subject.bytes);
    subject.header = (Elf64_Ehdr){
        .e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
        .e_type = ET_EXEC,
        .e_machine = EM_X86_64,
        .e_version = EV_CURRENT,
        .e_entry = TEXT + CODE,
        .e_phoff = sizeof(Elf64_Ehdr),
        .e_ehsize = sizeof(Elf64_Ehdr),
        .e_phentsize = sizeof(Elf64_Phdr),
        .e_phnum = HEADERS,
    };
    subject.segment[0] = (Elf64_Phdr){PT_LOAD, PF_R | PF_X, 0, TEXT, TEXT, 0x1000, 0x1000, 0x1000};
    subject.segment[1] = (Elf64_Phdr){PT_LOAD, PF_R | PF_W, 0x1000, DATA, DATA, 8, 0x3000, 0x1000};
    subject.segment[2] = (Elf64_Phdr){PT_GNU_STACK, PF_R | PF_W, 0, 0, 0, 0, 0, 16};
    memcpy(subject.bytes + CODE, code, sizeof code);
    memcpy(subject.bytes + 0x1000, "\x78\x56\x34\x12", 4);
}

// ------------------------------------------------------------------------------------------------------------ outcomes

// What became of a program: 1000 + errno of execve, 2000 + signal, 3000 + exit status.
static int run(const char *path)
{
    static volatile int refused;
    static char *const argv[] = {"subject", NULL}, *const envp[] = {NULL};
    refused = 0;
    pid_t pid = vfork();
    CHECK(pid != -1);
    if (pid == 0) {
        alarm(10);
        execve(path, argv, envp);
        refused = errno;
        _exit(1);
    }
    int status = wait_for(pid);
    if (refused) return 1000 + refused;
    if (WIFSIGNALED(status)) return 2000 + WTERMSIG(status);
    CHECK(WIFEXITED(status));
    return 3000 + WEXITSTATUS(status);
}

static const char *told(int outcome)
{
    static char text[32];
    switch (outcome) {
    case 1000 + ENOEXEC: return "ENOEXEC";
    case 1000 + ENOENT: return "ENOENT";
    case 1000 + ELIBBAD: return "ELIBBAD";
    case 1000 + ELOOP: return "ELOOP";
    case 1000 + EACCES: return "EACCES";
    case 1000 + EINVAL: return "EINVAL";
    case 1000 + EIO: return "EIO";
    case 1000 + ENOTDIR: return "ENOTDIR";
    case 1000 + ENOMEM: return "ENOMEM";
    case 2000 + SIGSEGV: return "SEGV";
    case 2000 + SIGBUS: return "BUS";
    case 2000 + SIGTRAP: return "TRAP";
    case 2000 + SIGILL: return "ILL";
    }
    snprintf(text, sizeof text, "%s %d", outcome < 2000 ? "errno" : outcome < 3000 ? "signal" : "exit", outcome % 1000);
    return text;
}

static int last_outcome, repeats;

static void end_of_row(void)
{
    if (repeats) printf(" %s x%d", told(last_outcome), repeats);
    repeats = 0;
}

static void cell(int outcome)
{
    if (repeats && outcome != last_outcome) end_of_row();
    last_outcome = outcome;
    repeats++;
}

// -------------------------------------------------------------------------------------------------------------- files

static char directory[64], file[80];

static void write_file(const char *path, const void *bytes, size_t n)
{
    int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0755);
    OK(fd);
    EQUAL(write(fd, bytes, n), (ssize_t)n);
    OK(close(fd));
}

static int run_bytes(const void *bytes, size_t n)
{
    write_file(file, bytes, n);
    return run(file);
}

static int run_mutant(void) { return run_bytes(mutant.bytes, FILE_BYTES); }

// ------------------------------------------------------------------------------------------------------------ sections

struct field {
    const char *name;
    size_t offset, size;
};

#define HEADER_FIELD(f) {#f, offsetof(Elf64_Ehdr, f), sizeof((Elf64_Ehdr *)0)->f}
static const struct field header_fields[] = {
    HEADER_FIELD(e_ident), HEADER_FIELD(e_type), HEADER_FIELD(e_machine), HEADER_FIELD(e_version), HEADER_FIELD(e_entry),
    HEADER_FIELD(e_phoff), HEADER_FIELD(e_shoff), HEADER_FIELD(e_flags), HEADER_FIELD(e_ehsize), HEADER_FIELD(e_phentsize),
    HEADER_FIELD(e_phnum), HEADER_FIELD(e_shentsize), HEADER_FIELD(e_shnum), HEADER_FIELD(e_shstrndx),
};

#define SEGMENT_FIELD(f) {#f, offsetof(Elf64_Phdr, f), sizeof((Elf64_Phdr *)0)->f}
static const struct field segment_fields[] = {
    SEGMENT_FIELD(p_type), SEGMENT_FIELD(p_flags), SEGMENT_FIELD(p_offset), SEGMENT_FIELD(p_vaddr),
    SEGMENT_FIELD(p_paddr), SEGMENT_FIELD(p_filesz), SEGMENT_FIELD(p_memsz), SEGMENT_FIELD(p_align),
};

#define COUNT(a) (sizeof(a) / sizeof *(a))

// Whether `value` is one whose outcome depends on the machine: how much memory it has, how long a file may be, and whether the
// processor has protection keys, by which what may only be executed can't be read.
static int depends(const char *field, uint64_t value)
{
    if (!strcmp(field, "p_flags")) return (value & (PF_R | PF_W | PF_X)) == PF_X;
    if (!strcmp(field, "p_memsz")) return value >= 1ul << 31 && value < 1ul << 47;
    if (!strcmp(field, "p_offset") || !strcmp(field, "p_filesz")) return value >= 1ul << 42 && value < 1ul << 63;
    return 0;
}

static void flip(const char *name, const struct field *f, size_t base)
{
    printf("%s%s:", name, f->name);
    for (size_t bit = 0; bit < f->size * 8; bit++) {
        mutant = subject;
        mutant.bytes[base + f->offset + bit / 8] ^= 1 << bit % 8;
        uint64_t value = 0;
        memcpy(&value, mutant.bytes + base + f->offset, f->size < 8 ? f->size : 8);
        int outcome = run_mutant();
        if (!depends(f->name, value)) cell(outcome);
    }
    end_of_row();
    printf("\n");
}

static void header_bits(void)
{
    for (size_t i = 0; i < COUNT(header_fields); i++) flip("", &header_fields[i], 0);
}

static void segment_bits(void)
{
    static const char *const names[HEADERS] = {"text ", "data ", "stack "};
    for (size_t s = 0; s < HEADERS; s++)
        for (size_t i = 0; i < COUNT(segment_fields); i++)
            flip(names[s], &segment_fields[i], offsetof(__typeof__(mutant), segment) + s * sizeof(Elf64_Phdr));
}

static const uint64_t boundaries[] = {
    0, 1, 2, 3, 7, 8, 9, 55, 56, 57, 0xff, 0x100, 0xfff, 0x1000, 0x1001, 0x10ff, 0x1100, 0x1101, 0x1fff, 0x2000, 0x2008, 0x3000,
    0xffff, 0x10000, TEXT - 1, TEXT, TEXT + 0x1000, DATA, DATA + 0x1000, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000,
    0x7ffffffff000, 0x7fffffffffff, 0x800000000000, 0x7fffffffffffffff, 0x8000000000000000, 0xfffffffffffff000, 0xffffffffffffffff,
};

static void segment_boundaries(void)
{
    for (size_t s = 0; s < 2; s++)
        for (size_t i = 0; i < COUNT(segment_fields); i++) {
            const struct field *f = &segment_fields[i];
            printf("%s %s:", s ? "data" : "text", f->name);
            for (size_t b = 0; b < COUNT(boundaries); b++) {
                mutant = subject;
                memcpy((char *)&mutant.segment[s] + f->offset, &boundaries[b], f->size);
                int outcome = run_mutant();
                if (!depends(f->name, boundaries[b])) cell(outcome);
            }
            end_of_row();
            printf("\n");
        }
}

static void header_boundaries(void)
{
    for (size_t i = 1; i < COUNT(header_fields); i++) {
        const struct field *f = &header_fields[i];
        printf("%s:", f->name);
        for (size_t b = 0; b < COUNT(boundaries); b++) {
            mutant = subject;
            memcpy(mutant.bytes + f->offset, &boundaries[b], f->size);
            cell(run_mutant());
        }
        end_of_row();
        printf("\n");
    }
}

static void truncations(void)
{
    printf("cut:");
    for (size_t n = 0; n <= FILE_BYTES; n += n < 260 || (n >= 0xff8 && n < 0x1010) ? 1 : 8) cell(run_bytes(subject.bytes, n));
    end_of_row();
    printf("\n");
}

static void tell(const char *name, int outcome) { printf("%s: %s\n", name, told(outcome)); }

static void load(int i, uint64_t offset, uint64_t address, uint64_t file_bytes, uint64_t bytes, int flags)
{
    mutant.segment[i] = (Elf64_Phdr){PT_LOAD, flags, offset, address, address, file_bytes, bytes, 0x1000};
}

static void overlaps(void)
{
    mutant = subject;
    load(2, 0, TEXT, 0x1000, 0x1000, PF_R | PF_X);
    tell("text again", run_mutant());
    mutant = subject;
    load(2, 0x1000, DATA + 0x1000, 0x100, 0x1000, PF_R | PF_W);
    tell("in the middle of the data", run_mutant());
    mutant = subject;
    load(2, 0x1000, DATA, 0x100, 0x1000, PF_R | PF_W);
    tell("over the data, with more of the file", run_mutant());
    mutant = subject;
    load(2, 0x1000, DATA, 4, 0x1000, PF_R | PF_W);
    tell("over the data, with less of the file", run_mutant());
    mutant = subject;
    load(2, 0x1000, DATA + 0x2000, 0x100, 0x100, PF_R);
    tell("over the last page", run_mutant());
    mutant = subject;
    load(2, 0, TEXT, 0, 0x1000, PF_R | PF_X);
    tell("nothing over the text", run_mutant());
    mutant = subject;
    load(2, 0, TEXT, 0, 0, PF_R | PF_X);
    tell("an empty one over the text", run_mutant());
    mutant = subject;
    mutant.segment[0] = subject.segment[1];
    mutant.segment[1] = subject.segment[0];
    tell("data before text", run_mutant());
    mutant = subject;
    mutant.header.e_type = ET_DYN;
    tell("movable", run_mutant());
    mutant.segment[0] = subject.segment[1];
    mutant.segment[1] = subject.segment[0];
    tell("movable, data before text", run_mutant());
    mutant = subject;
    mutant.header.e_type = ET_DYN;
    load(2, 0, TEXT + 0x1000, 0, 0x10000, PF_R);
    tell("movable, a third over the data", run_mutant());
    mutant = subject;
    mutant.segment[0].p_type = mutant.segment[1].p_type = PT_NULL;
    tell("no segment", run_mutant());
    mutant.header.e_type = ET_DYN;
    tell("movable, no segment", run_mutant());
    mutant = subject;
    mutant.segment[1].p_flags = PF_R;
    mutant.segment[1].p_memsz = 0x1000;
    tell("a tail that can't be cleared", run_mutant());
    mutant = subject;
    mutant.segment[1].p_filesz = 0x1000;
    tell("data that reads beyond the file's end", run_mutant());
}

static void interpreter(const char *name, const void *path, size_t bytes)
{
    mutant = subject;
    memcpy(mutant.bytes + 0x800, path, bytes < 0x700 ? bytes : 0x700);
    mutant.segment[2] = (Elf64_Phdr){PT_INTERP, PF_R, 0x800, 0, 0, bytes, bytes, 1};
    tell(name, run_mutant());
}

static void interpreters(void)
{
    char path[128];
    interpreter("nothing there", "/nonexistent", 13);
    interpreter("empty", "", 1);
    interpreter("a NUL and a NUL", "\0\0", 2);
    interpreter("not ended", "/tmp", 4);
    interpreter("a directory", "/tmp", 5);
    interpreter("a device", "/dev/null", 10);
    interpreter("below a file", "/dev/null/x", 12);
    interpreter("too long", "/", 4097);
    interpreter("beyond the file", "/", 4096);
    snprintf(path, sizeof path, "%s/text", directory);
    write_file(path, "neither here nor there", 22);
    interpreter("a short text", path, strlen(path) + 1);
    char long_text[4096];
    memset(long_text, 'x', sizeof long_text);
    write_file(path, long_text, sizeof long_text);
    interpreter("a long text", path, strlen(path) + 1);
    write_file(path, "#!/bin/sh\n", 10);
    interpreter("a short script", path, strlen(path) + 1);
    memcpy(long_text, "#!/bin/sh\n", 10);
    write_file(path, long_text, sizeof long_text);
    interpreter("a long script", path, strlen(path) + 1);
    OK(chmod(path, 0644));
    interpreter("not executable", path, strlen(path) + 1);
    OK(chmod(path, 0755));
    printf("cut:");
    for (size_t n = 0; n < 256; n += 8) {
        write_file(path, subject.bytes, n);
        mutant = subject;
        memcpy(mutant.bytes + 0x800, path, strlen(path) + 1);
        mutant.segment[2] = (Elf64_Phdr){PT_INTERP, PF_R, 0x800, 0, 0, strlen(path) + 1, 0, 1};
        cell(run_mutant());
    }
    end_of_row();
    printf("\n");
    // An interpreter for itself, which is moved.
    mutant = subject;
    mutant.header.e_type = ET_DYN;
    write_file(path, mutant.bytes, FILE_BYTES);
    interpreter("a movable program", path, strlen(path) + 1);
    mutant.header.e_machine = EM_386;
    write_file(path, mutant.bytes, FILE_BYTES);
    interpreter("another machine's", path, strlen(path) + 1);
    mutant = subject;
    mutant.header.e_type = ET_REL;
    write_file(path, mutant.bytes, FILE_BYTES);
    interpreter("an object file", path, strlen(path) + 1);
    mutant = subject;
    mutant.header.e_type = ET_DYN;
    mutant.segment[1].p_offset++;
    write_file(path, mutant.bytes, FILE_BYTES);
    interpreter("one that can't be mapped", path, strlen(path) + 1);
    OK(unlink(path));
}

static void script(const char *name, const char *text, size_t bytes)
{
    char path[128];
    snprintf(path, sizeof path, "%s/script", directory);
    write_file(path, text, bytes);
    tell(name, run(path));
    OK(unlink(path));
}

static void scripts(void)
{
    char text[512], path[128];
    write_file(file, subject.bytes, FILE_BYTES);
    static const char *const bad[] = {"#!", "#! ", "#!\n", "#! \t \n", "#!/nonexistent", "#!/nonexistent argument", "#!/tmp\n", "#", "!#/bin/sh", "\n"};
    for (size_t i = 0; i < COUNT(bad); i++) {
        char name[32];
        snprintf(name, sizeof name, "no script %d", (int)i);
        script(name, bad[i], strlen(bad[i]));
    }
    // With and without a newline, an argument, blanks.
    static const char *const forms[] = {"#!%s", "#!%s\n", "#! \t%s\t\n", "#!%s -x", "#!%s -x\n", "#!%s\r\n", "#!%s\v\n", "#!%s\n%s", "#!\n%s", "#! %s\t x  \t\n"};
    for (size_t i = 0; i < COUNT(forms); i++) {
        snprintf(text, sizeof text, forms[i], file, file);
        char name[32];
        snprintf(name, sizeof name, "form %d", (int)i);
        script(name, text, strlen(text));
    }
    // A NUL ends the name.
    int n = snprintf(text, sizeof text, "#!%s", file);
    memcpy(text + n, "\0 x\n", 4);
    script("a NUL", text, n + 4);
    // A line that is longer than what is looked at.
    static const int lengths[] = {200, 252, 253, 254, 255, 256, 257, 300};
    for (size_t i = 0; i < COUNT(lengths); i++) {
        memset(text, 'x', sizeof text);
        memcpy(text, "#!/", 3);
        text[lengths[i]] = '\n';
        script("a long name", text, sizeof text);
        n = snprintf(text, sizeof text, "#!%s ", file);
        memset(text + n, 'x', sizeof text - n);
        text[lengths[i]] = '\n';
        script("a long argument", text, sizeof text);
        memset(text + 2, ' ', sizeof text - 2);
        memcpy(text + lengths[i] - strlen(file), file, strlen(file));
        text[lengths[i]] = '\n';
        script("a long blank", text, sizeof text);
    }
    // A script whose interpreter is a script, and so on.
    for (int depth = 1; depth < 9; depth++) {
        for (int i = 0; i < depth; i++) {
            snprintf(path, sizeof path, "%s/script%d", directory, i);
            n = i + 1 < depth ? snprintf(text, sizeof text, "#!%s/script%d\n", directory, i + 1) : snprintf(text, sizeof text, "#!%s\n", file);
            write_file(path, text, n);
        }
        snprintf(path, sizeof path, "%s/script0", directory);
        tell("a chain", run(path));
    }
    n = snprintf(text, sizeof text, "#!%s/script0\n", directory);
    write_file(path, text, n);
    tell("a circle", run(path));
    for (int i = 0; i < 9; i++) {
        snprintf(path, sizeof path, "%s/script%d", directory, i);
        unlink(path);
    }
}

// -------------------------------------------------------------------------------------------------------------- random

static uint64_t state;

static uint64_t rnd(void)
{
    // splitmix64 (Steele, Lea, Flood 2014).
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void random_mutations(long n)
{
    for (long i = 0; i < n; i++) {
        mutant = subject;
        if (rnd() % 2) mutant.header.e_type = ET_DYN;
        if (rnd() % 4 == 0) mutant.segment[2].p_type = rnd() % 2 ? PT_LOAD : PT_INTERP;
        for (uint64_t m = 1 + rnd() % 6; m > 0; m--) {
            int s = rnd() % HEADERS;
            uint64_t value = boundaries[rnd() % COUNT(boundaries)] + (rnd() % 4 ? 0 : rnd() % 3 - 1);
            if (rnd() % 4 == 0) value = rnd() >> rnd() % 64;
            if (rnd() % 3 == 0) value &= ~0xffful;
            const struct field *f = &segment_fields[rnd() % COUNT(segment_fields)];
            size_t at = offsetof(__typeof__(mutant), segment) + s * sizeof(Elf64_Phdr) + f->offset;
            size_t bytes = f->size;
            if (rnd() % 5 == 0) {
                f = &header_fields[4 + rnd() % (COUNT(header_fields) - 4)];
                at = f->offset, bytes = f->size;
            }
            if (rnd() % 16 == 0) at = rnd() % FILE_BYTES, bytes = 1;
            memcpy(mutant.bytes + at, &value, bytes);
        }
        run_bytes(mutant.bytes, rnd() % 8 ? FILE_BYTES : rnd() % FILE_BYTES);
    }
}

int main(int argc, char **argv)
{
    long count = argc > 1 ? atol(argv[1]) : 200;
    state = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    struct rlimit none = {0, 0};
    OK(setrlimit(RLIMIT_CORE, &none));
    snprintf(directory, sizeof directory, "/tmp/elfs.XXXXXX");
    CHECK(mkdtemp(directory));
    snprintf(file, sizeof file, "%s/subject", directory);
    make_subject();
    EQUAL(run_bytes(subject.bytes, FILE_BYTES), 3042);
    RUN(header_bits);
    RUN(segment_bits);
    RUN(header_boundaries);
    RUN(segment_boundaries);
    RUN(truncations);
    RUN(overlaps);
    RUN(interpreters);
    RUN(scripts);
    random_mutations(count);
    passed("random_mutations");
    // The machine still runs what is whole.
    EQUAL(run_bytes(subject.bytes, FILE_BYTES), 3042);
    OK(unlink(file));
    OK(rmdir(directory));
    return finished("elfs");
}
