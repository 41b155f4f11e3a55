/*
** clock.c - for LD_PRELOAD: the wall clock jumps by CLOCK_SHIFT seconds once
** CLOCK_AFTER seconds have passed since the program's start. The monotonic
** clock stays as it is.
*/
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static struct timespec begun;

static double seconds(const char *name)
{
    const char *text = getenv(name);
    return text ? atof(text) : 0;
}

__attribute__((constructor)) static void begin(void)
{
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &begun);
}

static time_t shift(void)
{
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    double passed = (double)(now.tv_sec - begun.tv_sec) +
                    (double)(now.tv_nsec - begun.tv_nsec) / 1e9;
    return passed < seconds("CLOCK_AFTER") ? 0 : (time_t)seconds("CLOCK_SHIFT");
}

#pragma GCC visibility push(default)

int clock_gettime(clockid_t id, struct timespec *t)
{
    int rc = (int)syscall(SYS_clock_gettime, id, t);
    if (rc == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        t->tv_sec += shift();
    return rc;
}

time_t time(time_t *out)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (out)
        *out = t.tv_sec;
    return t.tv_sec;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone)
{
    struct timespec t;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &t);
    out->tv_sec = t.tv_sec;
    out->tv_usec = t.tv_nsec / 1000;
    return 0;
}

#pragma GCC visibility pop
