/* Faults on demand for the tests: the Nth call of one kind on a file below a folder fails.

   cc -shared -fPIC -o faults.so faults.c -ldl, then LD_PRELOAD=./faults.so with, in the environment:
   FAULT_CALL    open, read, write, fsync, rename or flock
   FAULT_UNDER   the folder, absolute
   FAULT_NUMBER  errno
   FAULT_NTH     which call fails, from 1
   FAULT_STAYS   1: every later call fails as well, as on a full disk
   A process that changes its environment calls fault_arm() to have it read again. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char call[16], under[PATH_MAX];
static int number, stays;
static long nth, seen;

void fault_arm(void) {
    const char *value;
    snprintf(call, sizeof call, "%s", (value = getenv("FAULT_CALL")) ? value : "");
    snprintf(under, sizeof under, "%s", (value = getenv("FAULT_UNDER")) ? value : "");
    number = (value = getenv("FAULT_NUMBER")) ? atoi(value) : EIO;
    nth = (value = getenv("FAULT_NTH")) ? atol(value) : 0;
    stays = (value = getenv("FAULT_STAYS")) ? atoi(value) : 0;
    seen = 0;
}

__attribute__((constructor)) static void start(void) { fault_arm(); }

static int fails(const char *kind, const char *path) {
    if (!nth || strcmp(kind, call) || !path || strncmp(path, under, strlen(under))) return 0;
    seen++;
    if (seen != nth && !(stays && seen > nth)) return 0;
    errno = number;
    return 1;
}

static int fails_on(const char *kind, int descriptor) {
    char link[64], path[PATH_MAX];
    ssize_t length;
    int before = errno;
    if (!nth || strcmp(kind, call)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0) return 0;
    path[length] = 0;
    return fails(kind, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MODE() \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *path, int flags, ...) { MODE() return fails("open", path) ? -1 : NEXT(open)(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE() return fails("open", path) ? -1 : NEXT(open64)(path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) {
    MODE() return fails("open", path) ? -1 : NEXT(openat)(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
    MODE() return fails("open", path) ? -1 : NEXT(openat64)(folder, path, flags, mode);
}
ssize_t read(int d, void *data, size_t size) { return fails_on("read", d) ? -1 : NEXT(read)(d, data, size); }
ssize_t pread(int d, void *data, size_t size, off_t at) {
    return fails_on("read", d) ? -1 : NEXT(pread)(d, data, size, at);
}
ssize_t pread64(int d, void *data, size_t size, off64_t at) {
    return fails_on("read", d) ? -1 : NEXT(pread64)(d, data, size, at);
}
ssize_t write(int d, const void *data, size_t size) { return fails_on("write", d) ? -1 : NEXT(write)(d, data, size); }
ssize_t pwrite(int d, const void *data, size_t size, off_t at) {
    return fails_on("write", d) ? -1 : NEXT(pwrite)(d, data, size, at);
}
ssize_t pwrite64(int d, const void *data, size_t size, off64_t at) {
    return fails_on("write", d) ? -1 : NEXT(pwrite64)(d, data, size, at);
}
int fsync(int d) { return fails_on("fsync", d) ? -1 : NEXT(fsync)(d); }
int rename(const char *from, const char *to) { return fails("rename", to) ? -1 : NEXT(rename)(from, to); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    return fails("rename", to) ? -1 : NEXT(renameat2)(a, from, b, to, flags);
}
int flock(int d, int operation) { return fails_on("flock", d) ? -1 : NEXT(flock)(d, operation); }
