/* Preloaded into a process: lets its n-th call that writes below a folder fail.

   Counted are opening for writing, write, rename and fsync, whoever makes them: Python, C or C++.
   A log, if asked for, holds a line for each of them and where Python stood then. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static size_t folder_length;
static long fail_at, calls;
static int fail_errno, stays, log_fd = -1;

/* Count from now on; n = 0 only counts. With stays, all calls from the n-th on fail. */
void faults_arm(const char *path, long n, int error, int keep) {
    snprintf(folder, sizeof folder, "%s", path);
    fail_at = n, fail_errno = error, stays = keep, calls = 0;
    folder_length = strlen(folder);
}

long faults_count(void) { return calls; }

/* Write each call to this file, which must lie elsewhere; -1 for none. */
void faults_log(int fd) { log_fd = fd; }

static void note(long call, const char *operation, const char *path) {
    static volatile int busy;
    if (log_fd < 0) return;
    while (__sync_lock_test_and_set(&busy, 1)) usleep(100);
    dprintf(log_fd, "call %ld %s %s\n", call, operation, path);
    void *(*thread)(void) = (void *(*)(void))dlsym(RTLD_DEFAULT, "PyGILState_GetThisThreadState");
    void (*dump)(int, void *) = (void (*)(int, void *))dlsym(RTLD_DEFAULT, "_Py_DumpTraceback");
    void *state = thread && dump ? thread() : NULL;
    if (state) dump(log_fd, state);
    __sync_lock_release(&busy);
}

static int inside(const char *path) {
    return folder_length && path && !strncmp(path, folder, folder_length) && path[folder_length] == '/';
}

static int fails(const char *operation, const char *path) {
    long call = __sync_add_and_fetch(&calls, 1);
    note(call, operation, path);
    if (!fail_at || (stays ? call < fail_at : call != fail_at)) return 0;
    errno = fail_errno;
    return 1;
}

static int fails_fd(const char *operation, int fd) {
    char link[64], path[PATH_MAX];
    if (!folder_length) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return inside(path) && fails(operation, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT))
#define MODE(last) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list more; va_start(more, last); mode = va_arg(more, mode_t); va_end(more); \
    }

int open(const char *path, int flags, ...) {
    MODE(flags)
    return WRITES(flags) && inside(path) && fails("open", path) ? -1 : REAL(open)(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE(flags)
    return WRITES(flags) && inside(path) && fails("open", path) ? -1 : REAL(open64)(path, flags, mode);
}
int openat(int dir, const char *path, int flags, ...) {
    MODE(flags)
    return WRITES(flags) && inside(path) && fails("open", path) ? -1 : REAL(openat)(dir, path, flags, mode);
}
int openat64(int dir, const char *path, int flags, ...) {
    MODE(flags)
    return WRITES(flags) && inside(path) && fails("open", path) ? -1 : REAL(openat64)(dir, path, flags, mode);
}
FILE *fopen(const char *path, const char *mode) {
    return strpbrk(mode, "wa+") && inside(path) && fails("open", path) ? NULL : REAL(fopen)(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    return strpbrk(mode, "wa+") && inside(path) && fails("open", path) ? NULL : REAL(fopen64)(path, mode);
}
ssize_t write(int fd, const void *data, size_t n) {
    return fails_fd("write", fd) ? -1 : REAL(write)(fd, data, n);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    return fails_fd("write", fd) ? -1 : REAL(pwrite64)(fd, data, n, at);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    return fails_fd("write", fd) ? -1 : REAL(writev)(fd, parts, n);
}
int rename(const char *from, const char *to) {
    return inside(to) && fails("rename", to) ? -1 : REAL(rename)(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    return inside(to) && fails("rename", to) ? -1 : REAL(renameat)(a, from, b, to);
}
int fsync(int fd) { return fails_fd("fsync", fd) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fails_fd("fsync", fd) ? -1 : REAL(fdatasync)(fd); }
