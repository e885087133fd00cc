/* A disk that forgets what was not synced, for processes that are started with this library in
 * LD_PRELOAD.
 *
 * OAST_POWER_OF names a folder, OAST_POWER_KEPT another one, which is to hold what of the first is
 * durable at any moment, by inode number:
 *   i/INODE   bytes of a file, as of its last fsync or fdatasync
 *   d/INODE   names in a folder, as of its last fsync: lines `f|d INODE NAME`
 *   u/, r/    files and folders that were removed; kept, so that no number is used twice
 *
 * Bytes become durable by fsync or fdatasync of their file alone, names by fsync of their folder
 * alone; sync_file_range promises nothing. What a file's first sync in the life of a process
 * makes durable is the whole file, also what an earlier process wrote; later ones only add what was
 * written since. Files of the folder must not be mapped for writing, and one process uses it.
 */
#define _GNU_SOURCE
#include "open.h"

#include <dirent.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/uio.h>

/* Files that one process may touch. */
#define FILES (1 << 16)

static void broken(const char *what)
{
    fprintf(stderr, "power.c: %s (%s)\n", what, strerror(errno));
    abort();
}

/* What is known of a file: whether it is in the folder, and what was written since its last sync. */
struct file {
    dev_t dev;
    ino_t ino;
    int used, ours, whole;
    off_t from, to;
};

static struct file files[FILES];
static pthread_mutex_t table = PTHREAD_MUTEX_INITIALIZER;
/* Held from taking what was written to having copied it: who syncs a file that somebody else
 * syncs returns after both. */
static pthread_mutex_t syncing = PTHREAD_MUTEX_INITIALIZER;

static const char *folder(void) { return getenv("OAST_POWER_OF"); }

static int inside(const char *path)
{
    const char *of = folder();
    size_t length = of ? strlen(of) : 0;

    return length && !strncmp(path, of, length) && (!path[length] || path[length] == '/');
}

static void kept(char *path, const char *kind, ino_t ino)
{
    snprintf(path, PATH_MAX, "%s/%s/%lu", getenv("OAST_POWER_KEPT"), kind, (unsigned long)ino);
}

static int path_of(int fd, char *path)
{
    char link[64];
    long length;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[length > 0 ? length : 0] = 0;
    return length > 0;
}

/* The record of a descriptor's file; the table must be locked. */
static struct file *slot_of(int fd, const struct stat *about)
{
    size_t place = (about->st_ino * 0x9E3779B97F4A7C15ull) >> 48;
    char path[PATH_MAX];

    for (size_t step = 0; step < FILES; step++, place = (place + 1) % FILES) {
        struct file *file = &files[place];

        if (!file->used) {
            file->used = 1;
            file->dev = about->st_dev;
            file->ino = about->st_ino;
            file->ours = path_of(fd, path) && inside(path);
            file->whole = 1;
        }
        if (file->ino == about->st_ino && file->dev == about->st_dev)
            return file;
    }
    broken("too many files");
    return NULL;
}

/* The same if it is ours. */
static struct file *file_of(int fd, const struct stat *about)
{
    struct file *file = slot_of(fd, about);

    return file->ours ? file : NULL;
}

static int regular(int fd, struct stat *about)
{
    return folder() && !fstat(fd, about) && S_ISREG(about->st_mode);
}

/* `done` bytes were written at `at`. */
static void written(int fd, off_t at, ssize_t done)
{
    int number = errno;
    struct stat about;
    struct file *file;

    if (done > 0 && regular(fd, &about)) {
        pthread_mutex_lock(&table);
        file = file_of(fd, &about);
        if (file) {
            if (file->from == file->to)
                file->from = file->to = at;
            if (at < file->from)
                file->from = at;
            if (at + done > file->to)
                file->to = at + done;
        }
        pthread_mutex_unlock(&table);
    }
    errno = number;
}

/* Anything may have become of the file. */
static void changed(int fd)
{
    int number = errno;
    struct stat about;
    struct file *file;

    if (regular(fd, &about)) {
        pthread_mutex_lock(&table);
        file = file_of(fd, &about);
        if (file)
            file->whole = 1;
        pthread_mutex_unlock(&table);
    }
    errno = number;
}

static void copy(int fd, const struct stat *about, off_t from, off_t to)
{
    static char bytes[1 << 16];
    char path[PATH_MAX], link[64];
    int in, out;

    kept(path, "i", about->st_ino);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    in = syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC);
    out = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (in < 0 || out < 0)
        broken("keep a file");
    while (from < to) {
        size_t size = to - from < (off_t)sizeof bytes ? to - from : (off_t)sizeof bytes;
        long got = syscall(SYS_pread64, in, bytes, size, from);

        if (got <= 0)
            break;
        if (syscall(SYS_pwrite64, out, bytes, got, from) != got)
            broken("keep bytes");
        from += got;
    }
    if (syscall(SYS_ftruncate, out, about->st_size))
        broken("keep a size");
    syscall(SYS_close, in);
    syscall(SYS_close, out);
}

static void list(int fd, ino_t ino)
{
    char path[PATH_MAX], draft[PATH_MAX + 8];
    int own = syscall(SYS_openat, fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *names = own < 0 ? NULL : fdopendir(own);
    struct dirent *name;
    FILE *out;

    kept(path, "d", ino);
    snprintf(draft, sizeof draft, "%s.tmp", path);
    out = fopen(draft, "w");
    if (!names || !out)
        broken("keep names");
    while ((name = readdir(names))) {
        struct stat about;

        if (!strcmp(name->d_name, ".") || !strcmp(name->d_name, ".."))
            continue;
        if (fstatat(own, name->d_name, &about, AT_SYMLINK_NOFOLLOW))
            continue;
        fprintf(out, "%c %lu %s\n", S_ISDIR(about.st_mode) ? 'd' : 'f',
                (unsigned long)about.st_ino, name->d_name);
    }
    closedir(names);
    if (fclose(out) || syscall(SYS_renameat2, AT_FDCWD, draft, AT_FDCWD, path, 0))
        broken("keep names");
}

static int sync_by(int (*really)(int), int fd)
{
    struct stat about;
    struct file before, *file = NULL;
    char path[PATH_MAX];
    int done, number;

    if (!folder() || fstat(fd, &about))
        return really(fd);
    if (S_ISDIR(about.st_mode)) {
        if (!path_of(fd, path) || !inside(path))
            return really(fd);
        pthread_mutex_lock(&syncing);
        done = really(fd);
        if (!done)
            list(fd, about.st_ino);
        pthread_mutex_unlock(&syncing);
        return done;
    }
    if (!S_ISREG(about.st_mode))
        return really(fd);
    pthread_mutex_lock(&syncing);
    pthread_mutex_lock(&table);
    file = file_of(fd, &about);
    if (file) {
        before = *file;
        file->whole = 0;
        file->from = file->to = 0;
    }
    pthread_mutex_unlock(&table);
    done = really(fd);
    number = errno;
    if (file && !done) {
        if (fstat(fd, &about))
            broken("look at a file");
        copy(fd, &about, before.whole ? 0 : before.from, before.whole ? about.st_size : before.to);
    } else if (file) {
        changed(fd);
    }
    pthread_mutex_unlock(&syncing);
    errno = number;
    return done;
}

int fsync(int fd) { return sync_by(REAL(fsync), fd); }

int fdatasync(int fd) { return sync_by(REAL(fdatasync), fd); }

/* The place that a write through the descriptor's own position ended at. */
static void written_here(int fd, ssize_t done)
{
    struct stat about;

    if (done > 0 && regular(fd, &about))
        written(fd, syscall(SYS_lseek, fd, 0, SEEK_CUR) - done, done);
}

ssize_t write(int fd, const void *from, size_t size)
{
    ssize_t done = REAL(write)(fd, from, size);
    written_here(fd, done);
    return done;
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    ssize_t done = REAL(writev)(fd, parts, count);
    written_here(fd, done);
    return done;
}

#define PWRITE(name, type)                                                  \
    ssize_t name(int fd, const void *from, size_t size, type at)            \
    {                                                                       \
        ssize_t done = REAL(name)(fd, from, size, at);                      \
        written(fd, at, done);                                              \
        return done;                                                        \
    }

PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define PWRITEV(name, type)                                                 \
    ssize_t name(int fd, const struct iovec *parts, int count, type at)     \
    {                                                                       \
        ssize_t done = REAL(name)(fd, parts, count, at);                    \
        written(fd, at, done);                                              \
        return done;                                                        \
    }

PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags)
{
    ssize_t done = REAL(copy_file_range)(in, from, out, to, size, flags);
    changed(out);
    return done;
}

#define FTRUNCATE(name, type)                                               \
    int name(int fd, type size)                                             \
    {                                                                       \
        int done = REAL(name)(fd, size);                                    \
        changed(fd);                                                        \
        return done;                                                        \
    }

FTRUNCATE(ftruncate, off_t)
FTRUNCATE(ftruncate64, off64_t)

void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t at)
{
    char path[PATH_MAX];

    if (fd >= 0 && (flags & MAP_SHARED) && (protection & PROT_WRITE) && folder() &&
        path_of(fd, path) && inside(path))
        broken("a file was mapped for writing, which cannot be followed");
    return (void *)syscall(SYS_mmap, address, size, protection, flags, fd, at);
}

/* A new file may have the number of one that was not ours. */
static void ours(int fd)
{
    struct stat about;
    struct file *file;
    char path[PATH_MAX];

    if (!regular(fd, &about) || !path_of(fd, path) || !inside(path))
        return;
    pthread_mutex_lock(&table);
    file = slot_of(fd, &about);
    if (!file->ours) {
        file->ours = 1;
        file->whole = 1;
    }
    pthread_mutex_unlock(&table);
}

static int may_open(const char *path, int flags)
{
    (void)path;
    (void)flags;
    return 1;
}

static int opened(int fd, int flags)
{
    int number = errno;

    if (fd >= 0 && (flags & O_CREAT))
        ours(fd);
    if (fd >= 0 && (flags & O_TRUNC))
        changed(fd);
    errno = number;
    return fd;
}

/* A file that loses its name stays, so that its number is not used again. */
static void keep(int dir, const char *path)
{
    int number = errno;
    char base[PATH_MAX], to[PATH_MAX];
    struct stat about;
    int ours = path[0] == '/' ? inside(path) : dir != AT_FDCWD && path_of(dir, base) && inside(base);

    if (ours && !fstatat(dir, path, &about, AT_SYMLINK_NOFOLLOW) && S_ISREG(about.st_mode)) {
        kept(to, "u", about.st_ino);
        if (syscall(SYS_linkat, dir, path, AT_FDCWD, to, 0) && errno != EEXIST && errno != ENOENT)
            broken("keep a removed file");
    }
    errno = number;
}

static int empty(int dir, const char *path)
{
    int fd = syscall(SYS_openat, dir, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *names = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *name;
    int others = 0;

    if (!names)
        return 0;
    while ((name = readdir(names)))
        others += strcmp(name->d_name, ".") && strcmp(name->d_name, "..");
    closedir(names);
    return !others;
}

static int remove_folder(int dir, const char *path)
{
    char base[PATH_MAX], to[PATH_MAX];
    struct stat about;
    int ours = path[0] == '/' ? inside(path) : dir != AT_FDCWD && path_of(dir, base) && inside(base);

    if (ours && !fstatat(dir, path, &about, AT_SYMLINK_NOFOLLOW) && empty(dir, path)) {
        kept(to, "r", about.st_ino);
        return syscall(SYS_renameat2, dir, path, AT_FDCWD, to, 0) ? -1 : 0;
    }
    return syscall(SYS_unlinkat, dir, path, AT_REMOVEDIR) ? -1 : 0;
}

int unlink(const char *path)
{
    if (folder())
        keep(AT_FDCWD, path);
    return REAL(unlink)(path);
}

int rmdir(const char *path) { return remove_folder(AT_FDCWD, path); }

int unlinkat(int dir, const char *path, int flags)
{
    if (flags & AT_REMOVEDIR)
        return remove_folder(dir, path);
    if (folder())
        keep(dir, path);
    return REAL(unlinkat)(dir, path, flags);
}

int rename(const char *from, const char *to)
{
    if (folder())
        keep(AT_FDCWD, to);
    return REAL(rename)(from, to);
}

int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    if (folder())
        keep(to_dir, to);
    return REAL(renameat)(from_dir, from, to_dir, to);
}
