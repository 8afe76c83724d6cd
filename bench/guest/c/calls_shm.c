// calls_shm: System V shared memory.
//
// Proves: segments by key and without; what attaching at an address, read-only, rounded and over other mappings does; that
// processes share them across fork; who counts as attached; removal while attached; detaching what was partly unmapped;
// what each call refuses.
//
// calls: shmat shmctl shmdt shmget
#include "check.h"
#include <sys/ipc.h>
#include <sys/shm.h>

static int64_t attached(int id)
{
    struct shmid_ds s;
    OK(shmctl(id, IPC_STAT, &s));
    return s.shm_nattch;
}

static void by_key(void)
{
    key_t key = 0x51000000 | (getpid() & 0xffffff);
    FAILS(shmget(key, PAGE, 0600), ENOENT);
    int id = shmget(key, 3 * PAGE - 5, IPC_CREAT | IPC_EXCL | 0640);
    OK(id);
    FAILS(shmget(key, PAGE, IPC_CREAT | IPC_EXCL | 0600), EEXIST);
    EQUAL(shmget(key, 0, 0), id);
    EQUAL(shmget(key, 3 * PAGE - 5, IPC_CREAT | 0600), id);
    FAILS(shmget(key, 3 * PAGE, 0600), EINVAL); // it is smaller
    FAILS(shmget(IPC_PRIVATE, 0, 0600), EINVAL);
    FAILS(syscall(SYS_shmget, IPC_PRIVATE, -1L, 0600), EINVAL);
    struct shmid_ds s;
    OK(shmctl(id, IPC_STAT, &s));
    EQUAL(s.shm_segsz, 3 * PAGE - 5);
    EQUAL(s.shm_perm.mode, 0640);
    EQUAL(s.shm_cpid, getpid());
    EQUAL(s.shm_lpid + s.shm_atime + s.shm_dtime + (int64_t)s.shm_nattch, 0);
    CHECK(s.shm_ctime > 1000000000);
    s.shm_perm.mode = 0600;
    OK(shmctl(id, IPC_SET, &s));
    OK(shmctl(id, IPC_STAT, &s));
    EQUAL(s.shm_perm.mode, 0600);
    s.shm_perm.uid = -1;
    FAILS(shmctl(id, IPC_SET, &s), EINVAL);
    FAILS(shmctl(id, IPC_STAT, (void *)8), EFAULT);
    FAILS(shmctl(id, 99, &s), EINVAL);
    FAILS(shmctl(-1, IPC_STAT, &s), EINVAL);
    FAILS(shmctl(0x7fffffff, IPC_STAT, &s), EINVAL);
    OK(shmctl(id, SHM_LOCK, NULL));
    OK(shmctl(id, IPC_STAT, &s));
    EQUAL(s.shm_perm.mode, 0600 | SHM_LOCKED);
    OK(shmctl(id, SHM_UNLOCK, NULL));
    struct shminfo info;
    CHECK(shmctl(0, IPC_INFO, (void *)&info) >= 0);
    CHECK(info.shmmin == 1 && info.shmmni >= 4096);
    OK(shmctl(id, IPC_RMID, NULL));
    FAILS(shmctl(id, IPC_RMID, NULL), EINVAL);
    FAILS(shmget(key, PAGE, 0600), ENOENT);
}

static void sharing(void)
{
    int id = shmget(IPC_PRIVATE, 4 * PAGE, 0600);
    OK(id);
    char *a = shmat(id, NULL, 0), *b = shmat(id, NULL, 0);
    CHECK(a != (void *)-1 && b != (void *)-1 && a != b);
    EQUAL(attached(id), 2);
    EQUAL(a[0] | a[4 * PAGE - 1], 0);
    strcpy(a + PAGE, "both");
    EQUAL(strcmp(b + PAGE, "both"), 0);
    pid_t child = fork();
    OK(child);
    if (child == 0) {
        EQUAL(attached(id), 4);
        strcpy(b + 2 * PAGE, "child");
        char *c = shmat(id, NULL, SHM_RDONLY);
        CHECK(c != (void *)-1);
        EQUAL(strcmp(c + 2 * PAGE, "child"), 0);
        FAILS(mprotect(c, PAGE, PROT_READ | PROT_WRITE), EACCES);
        EQUAL(attached(id), 5);
        _exit(0); // detaches
    }
    EQUAL(wait_for(child), 0);
    EQUAL(strcmp(a + 2 * PAGE, "child"), 0);
    EQUAL(attached(id), 2);
    struct shmid_ds s;
    OK(shmctl(id, IPC_STAT, &s));
    CHECK(s.shm_atime > 1000000000 && s.shm_lpid > 0);
    OK(shmdt(a));
    FAILS(shmdt(a), EINVAL);
    EQUAL(attached(id), 1);
    EQUAL(strcmp(b + PAGE, "both"), 0);
    OK(shmctl(id, IPC_RMID, NULL)); // goes with its last mapping
    OK(shmctl(id, IPC_STAT, &s));
    EQUAL(s.shm_perm.mode, 0600 | SHM_DEST);
    a = shmat(id, NULL, 0);
    CHECK(a != (void *)-1);
    EQUAL(strcmp(a + PAGE, "both"), 0);
    OK(shmdt(a));
    OK(shmdt(b));
    FAILS(shmctl(id, IPC_STAT, &s), EINVAL);
    FAILS((intptr_t)shmat(id, NULL, 0), EINVAL);
}

static void places(void)
{
    int id = shmget(IPC_PRIVATE, 3 * PAGE, 0600);
    OK(id);
    char *room = mmap(NULL, 8 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room != MAP_FAILED);
    FAILS((intptr_t)shmat(id, room, 0), EINVAL); // something is there
    FAILS((intptr_t)shmat(id, room + 5, SHM_REMAP), EINVAL);
    FAILS((intptr_t)shmat(id, NULL, SHM_REMAP), EINVAL);
    FAILS((intptr_t)shmat(-1, NULL, 0), EINVAL);
    FAILS((intptr_t)shmat(0x7fffffff, NULL, 0), EINVAL);
    FAILS((intptr_t)shmat(id, (void *)0xffffffffff000000, 0), ENOMEM);
    FAILS((intptr_t)shmat(id, (void *)0xfffffffffffff000, 0), EINVAL); // past the end of all addresses
    CHECK(shmat(id, room + PAGE + 77, SHM_REMAP | SHM_RND) == room + PAGE);
    room[PAGE] = 1, room[3 * PAGE] = 3;
    FAILS(shmdt(room + 2 * PAGE), EINVAL); // does not begin there
    FAILS(shmdt(room), EINVAL);
    FAILS(shmdt(room + PAGE + 1), EINVAL);
    OK(munmap(room + 2 * PAGE, PAGE));
    EQUAL(attached(id), 2); // in two pieces
    OK(shmdt(room + PAGE));
    EQUAL(attached(id), 0);
    OK(munmap(room, 8 * PAGE));
    CHECK(shmat(id, room, 0) == room);
    EQUAL(room[2 * PAGE], 3);
    OK(munmap(room, PAGE)); // its first page
    OK(shmdt(room));
    EQUAL(attached(id), 0);
    char *a = shmat(id, NULL, SHM_EXEC);
    CHECK(a != (void *)-1);
    OK(munmap(a, 3 * PAGE));
    EQUAL(attached(id), 0);
    OK(shmctl(id, IPC_RMID, NULL));
    FAILS(shmctl(id, IPC_STAT, &(struct shmid_ds){0}), EINVAL);
}

int main(void)
{
    RUN(by_key);
    RUN(sharing);
    RUN(places);
    return finished("calls_shm");
}
