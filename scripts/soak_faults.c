// Preloaded by scripts/soak: a slow disk (SOAK_SLOW=SEED) and a clock that jumps (SOAK_CLOCK=SEED).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>
#include <time.h>

// A number that depends on the seed and on how many were drawn before.
static uint64_t draw(const char *seed) {
    static _Atomic uint64_t drawn;
    uint64_t x = strtoull(seed, NULL, 10) + 0x9e3779b97f4a7c15u * atomic_fetch_add(&drawn, 1);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// Up to 20 ms, as of a disk with much else to do.
static void wait_for_disk(int fd) {
    const char *seed = getenv("SOAK_SLOW");
    if (seed && fd > 2) nanosleep(&(struct timespec){.tv_nsec = (long)(draw(seed) % 20000000)}, NULL);
}

ssize_t write(int fd, const void *bytes, size_t n) {
    wait_for_disk(fd);
    return ((ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write"))(fd, bytes, n);
}

int fsync(int fd) {
    wait_for_disk(fd);
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

// Every call may be up to a day after or before the last one. The monotonic clock stays what it is.
int clock_gettime(clockid_t which, struct timespec *now) {
    int status = ((int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime"))(which, now);
    const char *seed = getenv("SOAK_CLOCK");
    if (seed && which == CLOCK_REALTIME) now->tv_sec += (time_t)(draw(seed) % 172800) - 86400;
    return status;
}
