// calls_files: the calls that name files and say what is known of them, each with good and bad arguments.
//
// Proves: the `*at` calls from a directory's descriptor, from a closed one and from a file's; owners, modes and times by
// every call that sets them; what statfs and statx tell; space given and taken back; copies inside the kernel; locks of
// whole files; ranges of descriptors; files without names, with seals, and opened as paths only.
//
// calls: access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 eventfd eventfd2 faccessat
// calls: faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync flock fstat
// calls: fstatfs fsync ftruncate futimesat getcwd getdents getdents64 ioctl lchown linkat lseek lstat memfd_create
// calls: mkdirat mknod mknodat mount newfstatat open pipe pread64 preadv pwrite64 pwritev read readlinkat renameat
// calls: renameat2 sendfile stat statfs statx symlinkat sync sync_file_range syncfs truncate umask umount2 unlinkat
// calls: utime utimensat utimes write
#include "check.h"
#include <dirent.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <utime.h>

static int here, plain; // the directory of the test, and a file in it that is not a directory

static void put(const char *name, const char *text)
{
    int fd = openat(here, name, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    OK(fd);
    EQUAL(write(fd, text, strlen(text)), strlen(text));
    OK(close(fd));
}

static struct stat stat_of(const char *name)
{
    struct stat s;
    OK(fstatat(here, name, &s, AT_SYMLINK_NOFOLLOW));
    return s;
}

static char longest[300]; // a name that is too long

// As the kernel has it; older C libraries lack it.
struct statx_stamp { int64_t sec; uint32_t nsec; int32_t pad; };
struct statx_of {
    uint32_t mask, block_size;
    uint64_t attributes;
    uint32_t links, uid, gid;
    uint16_t mode, pad;
    uint64_t number, size, blocks, attributes_mask;
    struct statx_stamp accessed, born, changed, modified;
    uint32_t special[2], device[2];
    uint64_t rest[14];
};
#define BASIC 0x7ffu

// ---- names --------------------------------------------------------------------------------------------------------

static void names_from_a_directory(void)
{
    OK(syscall(SYS_mkdirat, here, "dir", 0750));
    EQUAL(stat_of("dir").st_mode, S_IFDIR | 0750);
    FAILS(syscall(SYS_mkdirat, here, "dir", 0750), EEXIST);
    FAILS(syscall(SYS_mkdirat, here, "none/dir", 0750), ENOENT);
    FAILS(syscall(SYS_mkdirat, here, "", 0750), ENOENT);
    FAILS(syscall(SYS_mkdirat, plain, "dir", 0750), ENOTDIR);
    FAILS(syscall(SYS_mkdirat, 99, "dir", 0750), EBADF);
    FAILS(syscall(SYS_mkdirat, here, longest, 0750), ENAMETOOLONG);
    FAILS(syscall(SYS_mkdirat, 99, "/tmp", 0750), EEXIST); // an absolute path needs no directory
    OK(syscall(SYS_mkdirat, here, "slash/", 0700));
    OK(syscall(SYS_unlinkat, here, "slash", AT_REMOVEDIR));

    put("one", "1");
    OK(syscall(SYS_linkat, here, "one", here, "two", 0));
    EQUAL(stat_of("two").st_nlink, 2);
    FAILS(syscall(SYS_linkat, here, "one", here, "two", 0), EEXIST);
    FAILS(syscall(SYS_linkat, here, "none", here, "x", 0), ENOENT);
    FAILS(syscall(SYS_linkat, here, "dir", here, "x", 0), EPERM);
    FAILS(syscall(SYS_linkat, here, "one", plain, "x", 0), ENOTDIR);
    FAILS(syscall(SYS_linkat, here, "one", here, "x", 1), EINVAL);
    OK(syscall(SYS_symlinkat, "two", here, "soft"));
    FAILS(syscall(SYS_symlinkat, "two", here, "soft"), EEXIST);
    FAILS(syscall(SYS_symlinkat, "", here, "x"), ENOENT);
    FAILS(syscall(SYS_symlinkat, "two", 99, "x"), EBADF);
    OK(syscall(SYS_linkat, here, "soft", here, "followed", AT_SYMLINK_FOLLOW));
    EQUAL(stat_of("followed").st_nlink, 3);
    OK(syscall(SYS_linkat, here, "soft", here, "soft2", 0));
    CHECK(S_ISLNK(stat_of("soft2").st_mode));
    char text[16];
    EQUAL(syscall(SYS_readlinkat, here, "soft", text, sizeof text), 3);
    EQUAL(syscall(SYS_readlinkat, here, "soft", text, 2), 2); // cut
    FAILS(syscall(SYS_readlinkat, here, "soft", text, 0), EINVAL);
    FAILS(syscall(SYS_readlinkat, here, "one", text, sizeof text), EINVAL);
    FAILS(syscall(SYS_readlinkat, here, "none", text, sizeof text), ENOENT);
    int link = openat(here, "soft", O_PATH | O_NOFOLLOW);
    OK(link);
    EQUAL(syscall(SYS_readlinkat, link, "", text, sizeof text), 3);
    OK(close(link));

    OK(syscall(SYS_renameat, here, "followed", here, "dir/moved"));
    FAILS(syscall(SYS_renameat, here, "followed", here, "x"), ENOENT);
    FAILS(syscall(SYS_renameat, 99, "one", here, "x"), EBADF);
    FAILS(syscall(SYS_renameat, here, "dir/.", here, "x"), EBUSY);
    FAILS(syscall(SYS_renameat2, here, "one", here, "two", 1 /* RENAME_NOREPLACE */), EEXIST);
    FAILS(syscall(SYS_renameat2, here, "one", here, "two", 3), EINVAL);
    FAILS(syscall(SYS_renameat2, here, "one", here, "none", 2), ENOENT);
    FAILS(syscall(SYS_renameat2, here, "one", here, "two", 64), EINVAL);
    OK(syscall(SYS_renameat2, here, "soft", here, "dir", 2 /* RENAME_EXCHANGE */));
    CHECK(S_ISDIR(stat_of("soft").st_mode) && S_ISLNK(stat_of("dir").st_mode));
    OK(syscall(SYS_renameat2, here, "soft", here, "dir", 2));

    FAILS(syscall(SYS_unlinkat, here, "dir", 0), EISDIR);
    FAILS(syscall(SYS_unlinkat, here, "dir", AT_REMOVEDIR), ENOTEMPTY);
    FAILS(syscall(SYS_unlinkat, here, "one", AT_REMOVEDIR), ENOTDIR);
    FAILS(syscall(SYS_unlinkat, here, "one", 1), EINVAL);
    FAILS(syscall(SYS_unlinkat, here, "none", 0), ENOENT);
    FAILS(syscall(SYS_unlinkat, here, "one/", 0), ENOTDIR);
    FAILS(syscall(SYS_unlinkat, here, "dir/.", AT_REMOVEDIR), EINVAL);
    FAILS(syscall(SYS_unlinkat, here, "dir/..", AT_REMOVEDIR), ENOTEMPTY);
    OK(syscall(SYS_unlinkat, here, "dir/moved", 0));
    OK(syscall(SYS_unlinkat, here, "dir", AT_REMOVEDIR));
    OK(syscall(SYS_unlinkat, here, "soft", 0));
    OK(syscall(SYS_unlinkat, here, "soft2", 0));
    OK(syscall(SYS_unlinkat, here, "two", 0));
    EQUAL(stat_of("one").st_nlink, 1);
}

static void nodes(void)
{
    OK(syscall(SYS_mknod, "node", S_IFIFO | 0600, 0));
    CHECK(S_ISFIFO(stat_of("node").st_mode));
    FAILS(syscall(SYS_mknod, "node", S_IFIFO | 0600, 0), EEXIST);
    FAILS(syscall(SYS_mknod, "none/node", S_IFIFO | 0600, 0), ENOENT);
    FAILS(syscall(SYS_mknod, "x", S_IFDIR | 0600, 0), EPERM);
    FAILS(syscall(SYS_mknod, "x", S_IFLNK | 0600, 0), EINVAL);
    OK(unlink("node"));
    OK(syscall(SYS_mknodat, here, "node", 0600, 0)); // no kind means a plain file
    CHECK(S_ISREG(stat_of("node").st_mode));
    FAILS(syscall(SYS_mknodat, 99, "x", 0600, 0), EBADF);
    FAILS(syscall(SYS_mknodat, plain, "x", 0600, 0), ENOTDIR);
    OK(unlink("node"));
    OK(syscall(SYS_mknodat, here, "null", S_IFCHR | 0666, makedev(1, 3)));
    EQUAL(stat_of("null").st_rdev, makedev(1, 3));
    OK(unlink("null"));
    int fd = syscall(SYS_creat, "made", 0640);
    OK(fd);
    EQUAL(write(fd, "text", 4), 4);
    char c;
    FAILS(read(fd, &c, 1), EBADF);
    OK(close(fd));
    EQUAL(stat_of("made").st_mode, S_IFREG | 0640);
    fd = syscall(SYS_creat, "made", 0600); // an old one is emptied and keeps its mode
    OK(fd);
    EQUAL(stat_of("made").st_size, 0);
    EQUAL(stat_of("made").st_mode, S_IFREG | 0640);
    OK(close(fd));
    FAILS(syscall(SYS_creat, ".", 0600), EISDIR);
    FAILS(syscall(SYS_creat, "none/x", 0600), ENOENT);
    FAILS(syscall(SYS_creat, "made/x", 0600), ENOTDIR);
    FAILS(syscall(SYS_creat, "", 0600), ENOENT);
    OK(unlink("made"));
}

static void working_directory(void)
{
    char before[256], after[256];
    long n = syscall(SYS_getcwd, before, sizeof before);
    EQUAL(n, strlen(before) + 1);
    FAILS(syscall(SYS_getcwd, after, n - 1), ERANGE);
    FAILS(syscall(SYS_getcwd, after, 0), ERANGE);
    FAILS(syscall(SYS_chdir, "one"), ENOTDIR);
    FAILS(syscall(SYS_chdir, "none"), ENOENT);
    FAILS(syscall(SYS_chdir, ""), ENOENT);
    FAILS(syscall(SYS_chdir, longest), ENAMETOOLONG);
    FAILS(syscall(SYS_fchdir, plain), ENOTDIR);
    FAILS(syscall(SYS_fchdir, 99), EBADF);
    OK(chdir("/"));
    EQUAL(syscall(SYS_getcwd, after, sizeof after), 2);
    OK(syscall(SYS_fchdir, here));
    EQUAL(syscall(SYS_getcwd, after, sizeof after), n);
    EQUAL(strcmp(before, after), 0);
    OK(mkdir("gone", 0700));
    OK(chdir("gone"));
    OK(rmdir("../gone"));
    FAILS(syscall(SYS_getcwd, after, sizeof after), ENOENT);
    FAILS(creat("x", 0600), ENOENT);
    OK(chdir(before));
    EQUAL(umask(077), 022);
    EQUAL(umask(01777), 077);
    EQUAL(umask(022), 0777); // only permission bits count
}

// ---- what is known of a file --------------------------------------------------------------------------------------

static void every_kind_of_stat(void)
{
    struct stat a, b, c, d;
    put("one", "12345");
    OK(syscall(SYS_stat, "one", &a));
    OK(syscall(SYS_lstat, "one", &b));
    int fd = open("one", O_RDONLY);
    OK(syscall(SYS_fstat, fd, &c));
    OK(syscall(SYS_newfstatat, fd, "", &d, AT_EMPTY_PATH));
    CHECK(a.st_ino == b.st_ino && b.st_ino == c.st_ino && c.st_ino == d.st_ino);
    CHECK(a.st_dev == d.st_dev && a.st_mtim.tv_nsec == d.st_mtim.tv_nsec);
    EQUAL(a.st_size, 5);
    EQUAL(a.st_blksize, 4096);
    EQUAL(a.st_blocks, 8);
    FAILS(syscall(SYS_stat, "none", &a), ENOENT);
    FAILS(syscall(SYS_stat, "one/x", &a), ENOTDIR);
    FAILS(syscall(SYS_stat, "", &a), ENOENT);
    FAILS(syscall(SYS_lstat, longest, &a), ENAMETOOLONG);
    FAILS(syscall(SYS_fstat, 99, &a), EBADF);
    FAILS(syscall(SYS_newfstatat, here, "", &a, 0), ENOENT);
    FAILS(syscall(SYS_newfstatat, here, "one", &a, 0x10), EINVAL);
    FAILS(syscall(SYS_newfstatat, 99, "one", &a, 0), EBADF);
    OK(symlink("none", "dangling"));
    FAILS(syscall(SYS_stat, "dangling", &a), ENOENT);
    OK(syscall(SYS_lstat, "dangling", &a));
    EQUAL(a.st_size, 4);
    EQUAL(a.st_mode, S_IFLNK | 0777);
    OK(unlink("dangling"));

    struct statx_of x;
    OK(syscall(SYS_statx, here, "one", 0, BASIC, &x));
    EQUAL(x.mask & BASIC, BASIC);
    EQUAL(x.size, 5);
    EQUAL(x.number, b.st_ino);
    EQUAL(x.mode, S_IFREG | 0644);
    EQUAL(makedev(x.device[0], x.device[1]), b.st_dev);
    EQUAL(x.modified.nsec, b.st_mtim.tv_nsec);
    OK(syscall(SYS_statx, fd, "", AT_EMPTY_PATH, 0, &x));
    FAILS(syscall(SYS_statx, here, "none", 0, BASIC, &x), ENOENT);
    FAILS(syscall(SYS_statx, here, "", 0, BASIC, &x), ENOENT);
    FAILS(syscall(SYS_statx, here, "one", 0x10, BASIC, &x), EINVAL);
    FAILS(syscall(SYS_statx, here, "one", 0x6000, BASIC, &x), EINVAL);
    FAILS(syscall(SYS_statx, here, "one", 0, 0x80000000u, &x), EINVAL);
    FAILS(syscall(SYS_statx, here, "one", 0, 0, 8), EFAULT);
    FAILS(syscall(SYS_statx, 99, "one", 0, 0, &x), EBADF);

    struct statfs f, g;
    OK(syscall(SYS_statfs, "one", &f));
    OK(syscall(SYS_fstatfs, fd, &g));
    CHECK(f.f_type == g.f_type && f.f_blocks > 0 && f.f_bfree <= f.f_blocks && f.f_bavail <= f.f_bfree);
    EQUAL(f.f_bsize, 4096);
    EQUAL(f.f_namelen, 255);
    OK(syscall(SYS_statfs, "/proc/self/maps", &f));
    EQUAL(f.f_type, 0x9fa0);
    FAILS(syscall(SYS_statfs, "none", &f), ENOENT);
    FAILS(syscall(SYS_fstatfs, 99, &f), EBADF);
    FAILS(syscall(SYS_fstatfs, fd, 8), EFAULT);
    int pipes[2];
    OK(pipe(pipes));
    OK(syscall(SYS_fstatfs, pipes[0], &f));
    EQUAL(f.f_type, 0x50495045);
    OK(close(pipes[0]) + close(pipes[1]) + close(fd));
}

static void permissions(void)
{
    put("one", "1");
    OK(syscall(SYS_access, "one", R_OK | W_OK));
    FAILS(syscall(SYS_access, "one", X_OK), EACCES); // nobody may, so root may not
    FAILS(syscall(SYS_access, "one", 8), EINVAL);
    FAILS(syscall(SYS_access, "", F_OK), ENOENT);
    OK(syscall(SYS_access, ".", X_OK));
    OK(syscall(SYS_faccessat, here, "one", R_OK));
    FAILS(syscall(SYS_faccessat, here, "none", R_OK), ENOENT);
    FAILS(syscall(SYS_faccessat, here, "one", 8), EINVAL);
    FAILS(syscall(SYS_faccessat, 99, "one", R_OK), EBADF);
    OK(syscall(SYS_faccessat2, here, "one", R_OK, AT_EACCESS));
    FAILS(syscall(SYS_faccessat2, here, "one", R_OK, 1), EINVAL);
    FAILS(syscall(SYS_faccessat2, here, "none", F_OK, AT_SYMLINK_NOFOLLOW), ENOENT);
    int fd = open("one", O_RDWR), path = open("one", O_PATH);
    OK(syscall(SYS_faccessat2, fd, "", W_OK, AT_EMPTY_PATH));

    OK(syscall(SYS_chmod, "one", 0100711));
    EQUAL(stat_of("one").st_mode, S_IFREG | 0711);
    OK(syscall(SYS_access, "one", X_OK));
    OK(syscall(SYS_fchmod, fd, 04600));
    EQUAL(stat_of("one").st_mode, S_IFREG | 04600);
    OK(syscall(SYS_fchmodat, here, "one", 01640));
    EQUAL(stat_of("one").st_mode, S_IFREG | 01640);
    FAILS(syscall(SYS_chmod, "none", 0600), ENOENT);
    FAILS(syscall(SYS_chmod, "one/x", 0600), ENOTDIR);
    FAILS(syscall(SYS_fchmod, 99, 0600), EBADF);
    FAILS(syscall(SYS_fchmod, path, 0600), EBADF);
    FAILS(syscall(SYS_fchmodat, 99, "one", 0600), EBADF);
    FAILS(syscall(SYS_fchmodat, here, "none", 0600), ENOENT);
    OK(symlink("one", "soft"));
    OK(syscall(452 /* fchmodat2 */, here, "soft", 0600, 0));
    EQUAL(stat_of("one").st_mode, S_IFREG | 0600);
    FAILS(syscall(452, here, "soft", 0600, AT_SYMLINK_NOFOLLOW), EOPNOTSUPP);
    FAILS(syscall(452, here, "soft", 0600, 1), EINVAL);
    FAILS(syscall(452, here, "none", 0600, 0), ENOENT);
    OK(syscall(452, path, "", 0644, AT_EMPTY_PATH));

    OK(syscall(SYS_chmod, "one", 06755));
    OK(syscall(SYS_chown, "one", 1, 2));
    struct stat s = stat_of("one");
    CHECK(s.st_uid == 1 && s.st_gid == 2);
    EQUAL(s.st_mode, S_IFREG | 0755); // a file that changes hands is no longer set-id
    OK(syscall(SYS_chown, "soft", -1, 3)); // follows
    s = stat_of("one");
    CHECK(s.st_uid == 1 && s.st_gid == 3);
    OK(syscall(SYS_lchown, "soft", 4, -1)); // does not
    CHECK(stat_of("soft").st_uid == 4 && stat_of("one").st_uid == 1);
    OK(syscall(SYS_fchown, fd, 5, 6));
    EQUAL(stat_of("one").st_uid, 5);
    OK(syscall(SYS_fchownat, here, "soft", 7, 8, AT_SYMLINK_NOFOLLOW));
    CHECK(stat_of("soft").st_uid == 7 && stat_of("one").st_uid == 5);
    OK(syscall(SYS_fchownat, path, "", 0, 0, AT_EMPTY_PATH));
    EQUAL(stat_of("one").st_gid, 0);
    FAILS(syscall(SYS_chown, "none", 0, 0), ENOENT);
    FAILS(syscall(SYS_lchown, "one/x", 0, 0), ENOTDIR);
    FAILS(syscall(SYS_fchown, 99, 0, 0), EBADF);
    FAILS(syscall(SYS_fchown, path, 0, 0), EBADF);
    FAILS(syscall(SYS_fchownat, here, "one", 0, 0, 1), EINVAL);
    FAILS(syscall(SYS_fchownat, 99, "one", 0, 0, 0), EBADF);
    OK(unlink("soft"));
    OK(close(fd) + close(path));
}

static void times_are(const char *name, long accessed, long accessed_ns, long modified, long modified_ns)
{
    struct stat s = stat_of(name);
    EQUAL(s.st_atim.tv_sec, accessed);
    EQUAL(s.st_atim.tv_nsec, accessed_ns);
    EQUAL(s.st_mtim.tv_sec, modified);
    EQUAL(s.st_mtim.tv_nsec, modified_ns);
}

static void times(void)
{
    put("one", "1");
    struct utimbuf seconds = {1000, 2000};
    OK(syscall(SYS_utime, "one", &seconds));
    times_are("one", 1000, 0, 2000, 0);
    FAILS(syscall(SYS_utime, "none", &seconds), ENOENT);
    FAILS(syscall(SYS_utime, "one", 8), EFAULT);
    struct timeval micro[2] = {{3000, 4}, {5000, 999999}};
    OK(syscall(SYS_utimes, "one", micro));
    times_are("one", 3000, 4000, 5000, 999999000);
    micro[1].tv_usec = 1000000;
    FAILS(syscall(SYS_utimes, "one", micro), EINVAL);
    micro[1].tv_usec = -1;
    FAILS(syscall(SYS_utimes, "one", micro), EINVAL);
    micro[1].tv_usec = 6;
    FAILS(syscall(SYS_utimes, "none", micro), ENOENT);
    OK(syscall(SYS_futimesat, here, "one", micro));
    times_are("one", 3000, 4000, 5000, 6000);
    FAILS(syscall(SYS_futimesat, 99, "one", micro), EBADF);
    FAILS(syscall(SYS_futimesat, here, "none", micro), ENOENT);
    struct timespec nano[2] = {{7000, 8}, {0, UTIME_OMIT}};
    OK(syscall(SYS_utimensat, here, "one", nano, 0));
    times_are("one", 7000, 8, 5000, 6000);
    nano[0].tv_nsec = UTIME_OMIT;
    OK(syscall(SYS_utimensat, here, "one", nano, 0));
    times_are("one", 7000, 8, 5000, 6000);
    nano[0] = (struct timespec){0, UTIME_NOW};
    OK(syscall(SYS_utimensat, here, "one", nano, 0));
    CHECK(stat_of("one").st_atim.tv_sec > 1000000000);
    nano[0].tv_nsec = 1000000000;
    FAILS(syscall(SYS_utimensat, here, "one", nano, 0), EINVAL);
    nano[0].tv_nsec = -1;
    FAILS(syscall(SYS_utimensat, here, "one", nano, 0), EINVAL);
    nano[0].tv_nsec = 9;
    FAILS(syscall(SYS_utimensat, here, "none", nano, 0), ENOENT);
    FAILS(syscall(SYS_utimensat, here, "one", nano, 1), EINVAL);
    FAILS(syscall(SYS_utimensat, 99, "one", nano, 0), EBADF);
    FAILS(syscall(SYS_utimensat, here, "one", 8, 0), EFAULT);
    OK(symlink("one", "soft"));
    OK(syscall(SYS_utimensat, here, "soft", nano, AT_SYMLINK_NOFOLLOW));
    EQUAL(stat_of("soft").st_atim.tv_nsec, 9);
    int fd = open("one", O_RDONLY);
    OK(syscall(SYS_utimensat, fd, NULL, nano, 0));
    EQUAL(stat_of("one").st_atim.tv_nsec, 9);
    OK(syscall(SYS_utimensat, here, "one", NULL, 0));
    CHECK(stat_of("one").st_mtim.tv_sec > 1000000000);
    OK(close(fd));
    OK(unlink("soft"));
}

// ---- contents -----------------------------------------------------------------------------------------------------

static void sizes_and_space(void)
{
    put("one", "0123456789");
    OK(syscall(SYS_truncate, "one", 4));
    EQUAL(stat_of("one").st_size, 4);
    OK(syscall(SYS_truncate, "one", 8));
    FAILS(syscall(SYS_truncate, "one", -1L), EINVAL);
    FAILS(syscall(SYS_truncate, "none", 0), ENOENT);
    FAILS(syscall(SYS_truncate, ".", 0), EISDIR);
    int fd = open("one", O_RDWR), reader = open("one", O_RDONLY), pipes[2];
    OK(pipe(pipes));
    char b[16] = "";
    EQUAL(read(reader, b, sizeof b), 8);
    EQUAL(memcmp(b, "0123\0\0\0\0", 8), 0);
    OK(syscall(SYS_ftruncate, fd, 9000));
    FAILS(syscall(SYS_ftruncate, reader, 1), EINVAL);
    FAILS(syscall(SYS_ftruncate, pipes[1], 1), EINVAL);
    FAILS(syscall(SYS_ftruncate, 99, 1), EBADF);
    OK(syscall(SYS_fallocate, fd, 0, 0, 20000));
    EQUAL(stat_of("one").st_size, 20000);
    OK(syscall(SYS_fallocate, fd, 1 /* KEEP_SIZE */, 20000, 20000));
    EQUAL(stat_of("one").st_size, 20000);
    CHECK(stat_of("one").st_blocks >= 80);
    EQUAL(pwrite(fd, "abcdefgh", 8, 4094), 8);
    OK(syscall(SYS_fallocate, fd, 3 /* PUNCH_HOLE */, 4096, 4096));
    EQUAL(pread(fd, b, 8, 4094), 8);
    EQUAL(memcmp(b, "ab\0\0\0\0\0\0", 8), 0);
    FAILS(syscall(SYS_fallocate, fd, 2, 0, 4096), EOPNOTSUPP); // a hole must keep the size
    FAILS(syscall(SYS_fallocate, fd, 0, 0, 0), EINVAL);
    FAILS(syscall(SYS_fallocate, fd, 0, -1L, 1L), EINVAL);
    FAILS(syscall(SYS_fallocate, fd, 0x1000, 0, 1), EOPNOTSUPP);
    FAILS(syscall(SYS_fallocate, reader, 0, 0, 1), EBADF);
    FAILS(syscall(SYS_fallocate, pipes[1], 0, 0, 1), ESPIPE);
    FAILS(syscall(SYS_fallocate, 99, 0, 0, 1), EBADF);
    OK(ftruncate(fd, 0));
    OK(ftruncate(fd, 100000));
    EQUAL(pwrite(fd, "x", 1, 50000), 1);
    EQUAL(lseek(fd, 0, SEEK_DATA), 49152);
    EQUAL(lseek(fd, 49152, SEEK_HOLE), 53248);
    EQUAL(lseek(fd, 0, SEEK_HOLE), 0);
    FAILS(lseek(fd, 60000, SEEK_DATA), ENXIO);
    FAILS(lseek(fd, 100000, SEEK_HOLE), ENXIO);
    OK(close(fd) + close(reader) + close(pipes[0]) + close(pipes[1]));
}

static void storage(void)
{
    int fd = open("one", O_RDWR), pipes[2], null = open("/dev/null", O_RDWR), path = open("one", O_PATH);
    OK(pipe(pipes));
    OK(syscall(SYS_fsync, fd));
    OK(syscall(SYS_fdatasync, fd));
    OK(syscall(SYS_fsync, here));
    FAILS(syscall(SYS_fsync, pipes[0]), EINVAL);
    FAILS(syscall(SYS_fdatasync, pipes[0]), EINVAL);
    FAILS(syscall(SYS_fsync, null), EINVAL);
    FAILS(syscall(SYS_fsync, path), EBADF);
    FAILS(syscall(SYS_fsync, 99), EBADF);
    FAILS(syscall(SYS_fdatasync, 99), EBADF);
    OK(syscall(SYS_sync));
    OK(syscall(SYS_syncfs, fd));
    FAILS(syscall(SYS_syncfs, 99), EBADF);
    OK(syscall(SYS_sync_file_range, fd, 0, 4096, 7));
    FAILS(syscall(SYS_sync_file_range, fd, 0, 4096, 8), EINVAL);
    FAILS(syscall(SYS_sync_file_range, fd, -1L, 4096L, 0), EINVAL);
    FAILS(syscall(SYS_sync_file_range, fd, 0L, -1L, 0), EINVAL);
    FAILS(syscall(SYS_sync_file_range, pipes[0], 0, 1, 0), ESPIPE);
    FAILS(syscall(SYS_sync_file_range, 99, 0, 1, 0), EBADF);
    OK(syscall(SYS_fadvise64, fd, 0, 0, POSIX_FADV_SEQUENTIAL));
    FAILS(syscall(SYS_fadvise64, fd, 0, 0, 9), EINVAL);
    FAILS(syscall(SYS_fadvise64, fd, 0, -1L, 0), EINVAL);
    FAILS(syscall(SYS_fadvise64, pipes[0], 0, 0, 0), ESPIPE);
    FAILS(syscall(SYS_fadvise64, 99, 0, 0, 0), EBADF);
    OK(close(fd) + close(pipes[0]) + close(pipes[1]) + close(null) + close(path));
}

static void offsets_and_vectors(void)
{
    int fd = open("vector", O_RDWR | O_CREAT | O_TRUNC, 0600), pipes[2];
    OK(pipe(pipes));
    char a[8] = "", b[8] = "";
    struct iovec out[2] = {{"one ", 4}, {"two", 3}}, in[2] = {{a, 3}, {b, 8}};
    EQUAL(syscall(SYS_pwritev, fd, out, 2, 5, 0), 7);
    EQUAL(lseek(fd, 0, SEEK_CUR), 0);
    EQUAL(syscall(SYS_preadv, fd, in, 2, 5, 0), 7);
    EQUAL(memcmp(a, "one", 3) + memcmp(b, " two", 4), 0);
    EQUAL(syscall(SYS_preadv, fd, in, 0, 5, 0), 0);
    FAILS(syscall(SYS_preadv, fd, in, 2, -1L, -1L), EINVAL);
    FAILS(syscall(SYS_pwritev, fd, out, 2, -1L, -1L), EINVAL);
    FAILS(syscall(SYS_preadv, fd, in, 1025, 0, 0), EINVAL);
    FAILS(syscall(SYS_preadv, fd, 8, 1, 0, 0), EFAULT);
    FAILS(syscall(SYS_preadv, pipes[0], in, 1, 0, 0), ESPIPE);
    FAILS(syscall(SYS_pwritev, pipes[1], out, 1, 0, 0), ESPIPE);
    FAILS(syscall(SYS_pwritev, 99, out, 1, 0, 0), EBADF);
    EQUAL(syscall(SYS_pwrite64, fd, "XY", 2, 0), 2);
    EQUAL(syscall(SYS_pread64, fd, a, 2, 0), 2);
    EQUAL(memcmp(a, "XY", 2), 0);
    EQUAL(syscall(SYS_pread64, fd, a, 2, 1000), 0);
    FAILS(syscall(SYS_pread64, fd, a, 2, -1L), EINVAL);
    FAILS(syscall(SYS_pwrite64, fd, a, 2, -1L), EINVAL);
    FAILS(syscall(SYS_pread64, pipes[0], a, 1, 0), ESPIPE);
    FAILS(syscall(SYS_pwrite64, pipes[1], a, 1, 0), ESPIPE);
    FAILS(syscall(SYS_pread64, 99, a, 1, 0), EBADF);
    FAILS(syscall(SYS_pwrite64, here, a, 1, 0), EBADF);
    OK(unlink("vector"));
    OK(close(fd) + close(pipes[0]) + close(pipes[1]));
}

static void copies_inside_the_kernel(void)
{
    char b[64] = "";
    put("from", "0123456789abcdef");
    int from = open("from", O_RDONLY), to = open("to", O_RDWR | O_CREAT | O_TRUNC, 0600), pipes[2];
    OK(pipe(pipes));
    off_t at = 4;
    EQUAL(syscall(SYS_sendfile, pipes[1], from, &at, 5), 5);
    EQUAL(at, 9);
    EQUAL(lseek(from, 0, SEEK_CUR), 0);
    EQUAL(syscall(SYS_sendfile, pipes[1], from, NULL, 3), 3);
    EQUAL(lseek(from, 0, SEEK_CUR), 3);
    EQUAL(read(pipes[0], b, sizeof b), 8);
    EQUAL(memcmp(b, "45678012", 8), 0);
    EQUAL(syscall(SYS_sendfile, to, from, NULL, 100), 13);
    EQUAL(syscall(SYS_sendfile, to, from, NULL, 100), 0);
    at = -1;
    FAILS(syscall(SYS_sendfile, to, from, &at, 1), EINVAL);
    FAILS(syscall(SYS_sendfile, to, from, 8, 1), EFAULT);
    FAILS(syscall(SYS_sendfile, from, to, NULL, 1), EBADF);
    FAILS(syscall(SYS_sendfile, to, 99, NULL, 1), EBADF);
    FAILS(syscall(SYS_sendfile, 99, from, NULL, 1), EBADF);

    loff_t in = 2, out = 30;
    EQUAL(syscall(SYS_copy_file_range, from, &in, to, &out, 6, 0), 6);
    CHECK(in == 8 && out == 36);
    EQUAL(pread(to, b, 6, 30), 6);
    EQUAL(memcmp(b, "234567", 6), 0);
    in = 100;
    EQUAL(syscall(SYS_copy_file_range, from, &in, to, &out, 6, 0), 0);
    FAILS(syscall(SYS_copy_file_range, from, &in, to, &out, 6, 1), EINVAL);
    FAILS(syscall(SYS_copy_file_range, to, NULL, from, NULL, 6, 0), EBADF);
    FAILS(syscall(SYS_copy_file_range, pipes[0], NULL, to, NULL, 6, 0), EINVAL);
    FAILS(syscall(SYS_copy_file_range, here, NULL, to, NULL, 6, 0), EISDIR);
    FAILS(syscall(SYS_copy_file_range, 99, NULL, to, NULL, 6, 0), EBADF);
    in = 0, out = 3;
    FAILS(syscall(SYS_copy_file_range, to, &in, to, &out, 6, 0), EINVAL); // they overlap
    OK(unlink("from") + unlink("to"));
    OK(close(from) + close(to) + close(pipes[0]) + close(pipes[1]));
}

static void listings(void)
{
    char b[512];
    OK(mkdir("list", 0700));
    for (char name[] = "list/a"; name[5] <= 'e'; name[5]++) OK(mknod(name, 0600, 0));
    int dir = open("list", O_RDONLY | O_DIRECTORY), count[2] = {0, 0};
    for (int form = 0; form < 2; form++) {
        OK(lseek(dir, 0, SEEK_SET));
        for (long n; (n = syscall(form ? SYS_getdents64 : SYS_getdents, dir, b, 80)) != 0;) {
            OK(n);
            for (long i = 0; i < n;) {
                unsigned short size;
                memcpy(&size, b + i + 16, 2);
                const char *name = b + i + (form ? 19 : 18);
                int type = form ? b[i + 18] : b[i + size - 1];
                EQUAL(type, name[0] == '.' ? DT_DIR : DT_REG);
                count[form]++;
                i += size;
            }
        }
    }
    EQUAL(count[0], 7);
    EQUAL(count[1], 7);
    OK(lseek(dir, 0, SEEK_SET));
    FAILS(syscall(SYS_getdents64, dir, b, 10), EINVAL); // no room for one
    FAILS(syscall(SYS_getdents, dir, b, 10), EINVAL);
    FAILS(syscall(SYS_getdents64, plain, b, sizeof b), ENOTDIR);
    FAILS(syscall(SYS_getdents, plain, b, sizeof b), ENOTDIR);
    FAILS(syscall(SYS_getdents64, 99, b, sizeof b), EBADF);
    FAILS(syscall(SYS_getdents, 99, b, sizeof b), EBADF);
    for (char name[] = "list/a"; name[5] <= 'e'; name[5]++) OK(unlink(name));
    OK(rmdir("list"));
    EQUAL(syscall(SYS_getdents64, dir, b, sizeof b) <= 0, 1); // of a removed directory there is nothing to list
    OK(close(dir));
}

// ---- descriptors --------------------------------------------------------------------------------------------------

static void descriptors(void)
{
    int fd = syscall(SYS_dup, plain);
    OK(fd);
    EQUAL(fcntl(fd, F_GETFD), 0);
    FAILS(syscall(SYS_dup, 99), EBADF);
    EQUAL(syscall(SYS_dup3, plain, 60, O_CLOEXEC), 60);
    EQUAL(fcntl(60, F_GETFD), FD_CLOEXEC);
    FAILS(syscall(SYS_dup3, plain, plain, 0), EINVAL);
    FAILS(syscall(SYS_dup3, plain, 61, O_APPEND), EINVAL);
    FAILS(syscall(SYS_dup3, 99, 61, 0), EBADF);
    FAILS(syscall(SYS_dup3, plain, -1, 0), EBADF);
    FAILS(syscall(SYS_dup2, plain, 100000000), EBADF);
    OK(ioctl(60, FIONCLEX));
    EQUAL(fcntl(60, F_GETFD), 0);
    OK(ioctl(60, FIOCLEX));
    EQUAL(fcntl(60, F_GETFD), FD_CLOEXEC);
    FAILS(ioctl(60, 0x12345), ENOTTY);
    FAILS(ioctl(99, FIOCLEX), EBADF);
    FAILS(fcntl(60, 9999), EINVAL);
    FAILS(fcntl(99, F_GETFD), EBADF);
    FAILS(fcntl(60, F_DUPFD, 100000000), EINVAL);
    for (int i = 70; i < 80; i++) EQUAL(dup2(plain, i), i);
    OK(syscall(SYS_close_range, 72, 75, 0));
    FAILS(fcntl(72, F_GETFD), EBADF);
    FAILS(fcntl(75, F_GETFD), EBADF);
    EQUAL(fcntl(71, F_GETFD) + fcntl(76, F_GETFD), 0);
    OK(syscall(SYS_close_range, 76, 78, 4 /* CLOEXEC */));
    EQUAL(fcntl(77, F_GETFD), FD_CLOEXEC);
    EQUAL(fcntl(79, F_GETFD), 0);
    FAILS(syscall(SYS_close_range, 5, 4, 0), EINVAL);
    FAILS(syscall(SYS_close_range, 5, 6, 8), EINVAL);
    OK(syscall(SYS_close_range, 60, -1, 2 /* UNSHARE */));
    FAILS(fcntl(60, F_GETFD), EBADF);
    FAILS(close(60), EBADF);
    OK(close(fd));

    fd = syscall(SYS_eventfd2, 3, EFD_SEMAPHORE | EFD_CLOEXEC | EFD_NONBLOCK);
    OK(fd);
    uint64_t n = 0;
    for (int i = 0; i < 3; i++) EQUAL(read(fd, &n, 8), 8);
    EQUAL(n, 1);
    FAILS(read(fd, &n, 8), EAGAIN);
    FAILS(read(fd, &n, 7), EINVAL);
    FAILS(write(fd, &n, 7), EINVAL);
    n = -1;
    FAILS(write(fd, &n, 8), EINVAL);
    n = UINT64_MAX - 1;
    EQUAL(write(fd, &n, 8), 8);
    n = 1;
    FAILS(write(fd, &n, 8), EAGAIN);
    OK(close(fd));
    fd = syscall(SYS_eventfd, 7);
    OK(fd);
    EQUAL(read(fd, &n, 8), 8);
    EQUAL(n, 7);
    OK(close(fd));
    FAILS(syscall(SYS_eventfd2, 0, 2), EINVAL);
    int pipes[2];
    OK(syscall(SYS_pipe, pipes));
    EQUAL(fcntl(pipes[0], F_GETFL) | fcntl(pipes[0], F_GETFD), O_RDONLY);
    EQUAL(fcntl(pipes[1], F_GETFL), O_WRONLY);
    OK(close(pipes[0]) + close(pipes[1]));
}

static void locks_of_files(void)
{
    int a = open("one", O_RDWR), b = open("one", O_RDONLY), path = open("one", O_PATH);
    OK(syscall(SYS_flock, a, LOCK_SH));
    OK(syscall(SYS_flock, b, LOCK_SH | LOCK_NB));
    FAILS(syscall(SYS_flock, a, LOCK_EX | LOCK_NB), EWOULDBLOCK);
    OK(syscall(SYS_flock, b, LOCK_UN));
    OK(syscall(SYS_flock, a, LOCK_EX));
    FAILS(syscall(SYS_flock, b, LOCK_SH | LOCK_NB), EWOULDBLOCK);
    int same = dup(a); // one open file, one lock
    OK(syscall(SYS_flock, same, LOCK_EX | LOCK_NB));
    OK(close(a));
    FAILS(syscall(SYS_flock, b, LOCK_SH | LOCK_NB), EWOULDBLOCK);
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        OK(close(same));
        _exit(syscall(SYS_flock, b, LOCK_EX) == 0 ? 0 : 1); // waits for the parent's close
    }
    sleep_ms(10);
    OK(close(same));
    EQUAL(wait_for(child), 0);
    FAILS(syscall(SYS_flock, b, 0), EINVAL);
    FAILS(syscall(SYS_flock, b, LOCK_SH | LOCK_EX), EINVAL);
    FAILS(syscall(SYS_flock, path, LOCK_SH), EBADF);
    FAILS(syscall(SYS_flock, 99, LOCK_SH), EBADF);
    OK(close(b) + close(path));
}

static int lock(int fd, int command, short type, off_t start, off_t len)
{
    struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    return fcntl(fd, command, &l);
}

// What stands in the way of a lock of this type, as "type start length who".
static const char *obstacle(int fd, int command, short type, off_t start, off_t len, pid_t who)
{
    static char text[64];
    struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    OK(fcntl(fd, command, &l));
    if (l.l_type == F_UNLCK) return "none";
    snprintf(text, sizeof text, "%s %ld %ld %s", l.l_type == F_WRLCK ? "write" : "read", (long)l.l_start, (long)l.l_len,
             l.l_pid == who ? "him" : l.l_pid == -1 ? "file" : "other");
    return text;
}
#define OBSTACLE(want, ...) EQUAL(strcmp(obstacle(__VA_ARGS__), want), 0)

static void locks_of_parts(void)
{
    int fd = open("one", O_RDWR), reader = open("one", O_RDONLY), p[2];
    pid_t me = getpid();
    OK(pipe(p));
    OK(lock(fd, F_SETLK, F_WRLCK, 10, 10));
    OK(lock(fd, F_SETLK, F_WRLCK, 20, 10)); // neighbours are one lock
    OK(lock(fd, F_SETLK, F_RDLCK, 50, 0));  // to the end, wherever it is
    OK(lock(fd, F_SETLK, F_UNLCK, 14, 2));  // two pieces are left
    OBSTACLE("none", fd, F_GETLK, F_WRLCK, 0, 0, me); // its own are not in its way
    pid_t child = fork();
    OK(child);
    if (child == 0) { // inherits no locks
        OBSTACLE("write 10 4 him", fd, F_GETLK, F_RDLCK, 0, 0, me);
        OBSTACLE("none", fd, F_GETLK, F_WRLCK, 14, 2, me);
        OBSTACLE("write 16 14 him", fd, F_GETLK, F_WRLCK, 14, 100, me);
        OBSTACLE("read 50 0 him", fd, F_GETLK, F_WRLCK, 1000, 1, me);
        OBSTACLE("none", fd, F_GETLK, F_RDLCK, 1000, 1, me);
        FAILS(lock(fd, F_SETLK, F_RDLCK, 13, 1), EAGAIN);
        FAILS(lock(fd, F_SETLK, F_WRLCK, 50, 1), EAGAIN);
        OK(lock(fd, F_SETLK, F_RDLCK, 60, 1));
        EQUAL(write(p[1], "w", 1), 1);
        OK(lock(fd, F_SETLKW, F_WRLCK, 16, 1)); // waits for the parent's close
        _exit(0);
    }
    char c;
    EQUAL(read(p[0], &c, 1), 1);
    OBSTACLE("read 60 1 him", fd, F_GETLK, F_WRLCK, 0, 0, child);
    FAILS(lock(fd, F_SETLK, F_WRLCK, 55, 10), EAGAIN);
    sleep_ms(10);
    OK(close(dup(fd))); // any descriptor of the file
    EQUAL(wait_for(child), 0);
    OBSTACLE("none", fd, F_GETLK, F_WRLCK, 0, 0, child);
    FAILS(lock(reader, F_SETLK, F_WRLCK, 0, 1), EBADF);
    OK(lock(reader, F_SETLK, F_RDLCK, 0, 1));
    FAILS(lock(fd, F_SETLK, 7, 0, 1), EINVAL);
    FAILS(lock(fd, F_SETLK, F_RDLCK, -1, 1), EINVAL);
    FAILS(lock(fd, F_SETLK, F_RDLCK, 5, -6), EINVAL);
    OK(lock(fd, F_SETLK, F_RDLCK, 5, -5)); // the five bytes before
    FAILS(fcntl(fd, F_SETLK, 8), EFAULT);
    FAILS(lock(99, F_SETLK, F_RDLCK, 0, 1), EBADF);
    struct flock bad = {.l_type = F_RDLCK, .l_whence = 9};
    FAILS(fcntl(fd, F_SETLK, &bad), EINVAL);
    // Locks of open files: between those of one process too.
    int other = open("one", O_RDWR);
    OK(lock(other, 37 /* F_OFD_SETLK */, F_WRLCK, 100, 10));
    FAILS(lock(fd, 37, F_WRLCK, 105, 1), EAGAIN);
    FAILS(lock(fd, F_SETLK, F_WRLCK, 105, 1), EAGAIN);
    OBSTACLE("write 100 10 file", fd, 36 /* F_OFD_GETLK */, F_WRLCK, 105, 1, me);
    bad = (struct flock){.l_type = F_RDLCK, .l_pid = 1};
    FAILS(fcntl(fd, 37, &bad), EINVAL);
    int same = dup(other);
    OK(close(other));
    FAILS(lock(fd, 37, F_WRLCK, 105, 1), EAGAIN); // still open
    OK(close(same));
    OK(lock(fd, 37, F_WRLCK, 105, 1));
    OK(close(fd) + close(reader) + close(p[0]) + close(p[1]));
}

static void files_without_names(void)
{
    char text[300];
    int fd = syscall(SYS_memfd_create, "memory", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    OK(fd);
    EQUAL(fcntl(fd, F_GETFD), FD_CLOEXEC);
    EQUAL(write(fd, "12345", 5), 5);
    EQUAL(fcntl(fd, F_GET_SEALS), 0);
    OK(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK));
    FAILS(ftruncate(fd, 6), EPERM);
    FAILS(ftruncate(fd, 4), EPERM);
    FAILS(write(fd, "6", 1), EPERM);
    EQUAL(pwrite(fd, "x", 1, 0), 1);
    char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(p != MAP_FAILED);
    FAILS(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), EBUSY);
    OK(munmap(p, PAGE));
    OK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL));
    FAILS(pwrite(fd, "x", 1, 0), EPERM);
    FAILS(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), EPERM);
    FAILS(fcntl(plain, F_GET_SEALS), EINVAL);
    OK(close(fd));
    fd = syscall(SYS_memfd_create, "", 0);
    EQUAL(fcntl(fd, F_GET_SEALS), F_SEAL_SEAL);
    FAILS(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW), EPERM);
    OK(close(fd));
    memset(text, 'n', sizeof text);
    text[250] = 0;
    FAILS(syscall(SYS_memfd_create, text, 0), EINVAL);
    text[249] = 0;
    fd = syscall(SYS_memfd_create, text, 0);
    OK(fd);
    OK(close(fd));
    FAILS(syscall(SYS_memfd_create, "x", 0x1000), EINVAL);
    FAILS(syscall(SYS_memfd_create, 8, 0), EFAULT);

    fd = open(".", O_TMPFILE | O_RDWR, 0600);
    OK(fd);
    struct stat s;
    OK(fstat(fd, &s));
    EQUAL(s.st_nlink, 0);
    EQUAL(write(fd, "late", 4), 4);
    snprintf(text, sizeof text, "/proc/self/fd/%d", fd);
    OK(linkat(AT_FDCWD, text, here, "named", AT_SYMLINK_FOLLOW));
    EQUAL(stat_of("named").st_size, 4);
    OK(unlink("named"));
    OK(close(fd));
    FAILS(open(".", O_TMPFILE | O_RDONLY, 0600), EINVAL);
    FAILS(open("one", O_TMPFILE | O_RDWR, 0600), ENOTDIR);

    fd = open("one", O_PATH);
    FAILS(read(fd, text, 1), EBADF);
    FAILS(write(fd, text, 1), EBADF);
    FAILS(lseek(fd, 0, SEEK_SET), EBADF);
    FAILS(ioctl(fd, FIONREAD, text), EBADF);
    EQUAL(fcntl(fd, F_GETFL) & O_PATH, O_PATH);
    FAILS((intptr_t)mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0), EBADF);
    OK(close(fd));
}

static void mounts(void)
{
    FAILS(syscall(SYS_mount, 8, "/tmp", "tmpfs", 0, 0), EFAULT);
    FAILS(syscall(SYS_mount, "x", "none", "tmpfs", 0, 0), ENOENT);
    FAILS(syscall(SYS_umount2, "none", 0), ENOENT);
    FAILS(syscall(SYS_umount2, ".", 0), EINVAL); // no mount point
    FAILS(syscall(SYS_umount2, ".", 0x100), EINVAL);
}

int main(void)
{
    char start[] = "/tmp/quire-calls-XXXXXX";
    CHECK(mkdtemp(start) != NULL);
    OK(chdir(start));
    umask(022);
    memset(longest, 'n', sizeof longest - 1);
    here = open(".", O_RDONLY | O_DIRECTORY);
    OK(here);
    put("one", "1");
    plain = open("one", O_RDWR);
    OK(plain);
    RUN(names_from_a_directory);
    RUN(nodes);
    RUN(working_directory);
    RUN(every_kind_of_stat);
    RUN(permissions);
    RUN(times);
    RUN(sizes_and_space);
    RUN(storage);
    RUN(offsets_and_vectors);
    RUN(copies_inside_the_kernel);
    RUN(listings);
    RUN(descriptors);
    RUN(locks_of_files);
    RUN(locks_of_parts);
    RUN(files_without_names);
    RUN(mounts);
    OK(unlink("one"));
    OK(chdir("/"));
    OK(rmdir(start));
    return finished("calls_files");
}
