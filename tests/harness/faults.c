// Counts the calls that change files below a folder, and spoils one of them: see faults.py.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { KILL, IO_ERROR, FULL_DISK, TORN };

static char root[PATH_MAX];
static size_t root_length;
static long wanted = -1;
static int how;
static atomic_long seen;
static atomic_int armed;

// `number` counts from 0; negative: only count.
void fault_arm(const char *folder, long number, int kind) {
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    wanted = number, how = kind;
    seen = 0;
    armed = 1;
}

long fault_disarm(void) {
    armed = 0;
    return seen;
}

static int below_at(int folder, const char *path) {
    if (!armed || !path) return 0;
    if (path[0] == '/') return !strncmp(path, root, root_length);
    char link[64], base[PATH_MAX];
    if (folder == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, base, sizeof base - 1);
        if (length < 0) return 0;
        base[length] = 0;
    }
    return !strncmp(base, root, root_length);
}

static int below(int file) {
    return armed && below_at(file, "");
}

// 0: go on; 1: fail with errno; the process may not come back.
static int spoiled(void) {
    if (atomic_fetch_add(&seen, 1) != wanted) return 0;
    if (how == KILL || how == TORN) kill(getpid(), SIGKILL), pause();
    errno = how == IO_ERROR ? EIO : ENOSPC;
    return 1;
}

static int tears(void) {
    return how == TORN && seen == wanted;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, #name)

ssize_t write(int file, const void *content, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    if (below(file)) {
        if (tears()) real(file, content, size / 2);
        if (spoiled()) return -1;
    }
    return real(file, content, size);
}

#define PWRITE(name, offset_type) \
    ssize_t name(int file, const void *content, size_t size, offset_type offset) { \
        REAL(ssize_t, name, int, const void *, size_t, offset_type); \
        if (below(file)) { \
            if (tears()) real(file, content, size / 2, offset); \
            if (spoiled()) return -1; \
        } \
        return real(file, content, size, offset); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    if (below(file) && spoiled()) return -1;
    return real(file, parts, count);
}

#define OF_FILE(name) \
    int name(int file) { \
        REAL(int, name, int); \
        if (below(file) && spoiled()) return -1; \
        return real(file); \
    }
OF_FILE(fsync)
OF_FILE(fdatasync)

#define OF_PATH(name) \
    int name(const char *path) { \
        REAL(int, name, const char *); \
        if (below_at(AT_FDCWD, path) && spoiled()) return -1; \
        return real(path); \
    }
OF_PATH(unlink)
OF_PATH(rmdir)
OF_PATH(remove)

int unlinkat(int folder, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    if (below_at(folder, path) && spoiled()) return -1;
    return real(folder, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    if (below_at(AT_FDCWD, path) && spoiled()) return -1;
    return real(path, mode);
}

int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    if (below_at(AT_FDCWD, to) && spoiled()) return -1;
    return real(from, to);
}

int renameat(int one, const char *from, int two, const char *to) {
    REAL(int, renameat, int, const char *, int, const char *);
    if (below_at(two, to) && spoiled()) return -1;
    return real(one, from, two, to);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        if (flags & (O_CREAT | O_TRUNC) && below_at(AT_FDCWD, path) && spoiled()) return -1; \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
