/* What both libraries begin with, and open in all its names. Who includes this says by may_open whether a
 * file is opened, with errno as the reason, and by opened what becomes of the descriptor. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int may_open(const char *path, int flags);
static int opened(int fd, int flags);

#define OPEN(name, parameters, arguments)                                    \
    int name parameters                                                     \
    {                                                                       \
        va_list rest;                                                       \
        mode_t mode;                                                        \
        va_start(rest, flags);                                              \
        mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;    \
        va_end(rest);                                                       \
        return may_open(path, flags) ? opened(REAL(name) arguments, flags) : -1; \
    }

OPEN(open, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, (int dir, const char *path, int flags, ...), (dir, path, flags, mode))
OPEN(openat64, (int dir, const char *path, int flags, ...), (dir, path, flags, mode))
