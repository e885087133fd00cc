/* A disk that fails on request, for processes that are started with this library in LD_PRELOAD.
 *
 * OAST_FAULTS names a file. While it holds `CALL ERRNO PREFIX`, every CALL on a path that begins
 * with PREFIX fails with that number; without the file nothing fails. CALL is one of
 *   sync   fsync, fdatasync
 *   write  write, pwrite
 *   change everything that changes a file system: both of the above, opening for writing or to
 *          create, mkdir, rename, unlink: a disk that became read-only
 */
#define _GNU_SOURCE
#include "open.h"

/* The number with which `call` has to fail on `path`, 0 for none. */
static int planned(const char *call, const char *path)
{
    const char *control = getenv("OAST_FAULTS");
    char text[PATH_MAX + 64], wanted[16], prefix[PATH_MAX];
    int number, fd;
    long length;

    if (!control || !path)
        return 0;
    fd = syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    length = syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    if (length <= 0)
        return 0;
    text[length] = 0;
    if (sscanf(text, "%15s %d %4095s", wanted, &number, prefix) != 3)
        return 0;
    if (strcmp(wanted, call) && strcmp(wanted, "change"))
        return 0;
    return strncmp(path, prefix, strlen(prefix)) ? 0 : number;
}

static int fails(const char *call, const char *path)
{
    int number = planned(call, path);

    if (number)
        errno = number;
    return number;
}

static int fails_at(const char *call, int fd)
{
    char link[64], path[PATH_MAX];
    long length;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length <= 0)
        return 0;
    path[length] = 0;
    return fails(call, path);
}

int fsync(int fd) { return fails_at("sync", fd) ? -1 : REAL(fsync)(fd); }

int fdatasync(int fd) { return fails_at("sync", fd) ? -1 : REAL(fdatasync)(fd); }

ssize_t write(int fd, const void *from, size_t size)
{
    return fails_at("write", fd) ? -1 : REAL(write)(fd, from, size);
}

ssize_t pwrite(int fd, const void *from, size_t size, off_t at)
{
    return fails_at("write", fd) ? -1 : REAL(pwrite)(fd, from, size, at);
}

ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at)
{
    return fails_at("write", fd) ? -1 : REAL(pwrite64)(fd, from, size, at);
}

static int may_open(const char *path, int flags)
{
    int changes = flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC);

    return !changes || !fails("open", path);
}

static int opened(int fd, int flags)
{
    (void)flags;
    return fd;
}

int mkdir(const char *path, mode_t mode)
{
    return fails("open", path) ? -1 : REAL(mkdir)(path, mode);
}

int rename(const char *from, const char *to)
{
    return fails("open", to) ? -1 : REAL(rename)(from, to);
}

int unlink(const char *path) { return fails("open", path) ? -1 : REAL(unlink)(path); }
