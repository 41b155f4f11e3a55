/*
** check.h - a small harness for the C tests.
**
** Each case runs in a process of its own, forked by the main one, which is a
** subreaper: what a case leaves behind falls to it, is named, killed, and
** makes the case fail. A case that runs out of time is killed after its
** processes' stacks were printed (by gdb, where that is installed).
**
** Inside a case: CHECK and its kin end it at the first failure. After it,
** the same descriptors and shared mappings must be there as before.
**
** usage: x_test [-n TIMES] [NAME ...]     a NAME may end in *
*/
#ifndef PROCPOOL_CHECK_H
#define PROCPOOL_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

typedef struct check {
    const char *name;
    void (*run)(void);
    unsigned limit;             /* seconds; 0: 30 */
} check_t;

/* Ends with { NULL }. Returns main's exit status. */
int check_main(int argc, char **argv, const check_t *cases);

_Noreturn void check_fail(const char *file, int line, const char *what);
_Noreturn void check_fail_values(const char *file, int line, const char *what,
                                 long long got, long long expected);
_Noreturn void check_skip(const char *why);

#define CHECK(x)                                                           \
    do {                                                                   \
        if (!(x))                                                          \
            check_fail(__FILE__, __LINE__, #x);                            \
    } while (0)
#define CHECK_EQ(got, expected)                                            \
    do {                                                                   \
        long long got_ = (long long)(got), want_ = (long long)(expected);  \
        if (got_ != want_)                                                 \
            check_fail_values(__FILE__, __LINE__, #got " == " #expected,   \
                              got_, want_);                                \
    } while (0)
/* Waits, with short sleeps, until x holds; fails after that many ms. */
#define CHECK_SOON(x, ms)                                                  \
    do {                                                                   \
        uint64_t until_ = check_now_ms() + check_slow(ms);                 \
        while (!(x)) {                                                     \
            if (check_now_ms() > until_)                                   \
                check_fail(__FILE__, __LINE__, #x " within " #ms " ms");   \
            check_nap();                                                   \
        }                                                                  \
    } while (0)

uint64_t check_now_ms(void);
/* A time bound, longer under a checker or on a loaded machine: CHECK_SLOW in
** the environment, else the load for each CPU, up to 10, multiplies it. */
uint64_t check_slow(uint64_t ms);
void check_nap(void);                   /* 0.2 ms */
/* Memory that a case and its children share; zero at first. */
void *check_shared(size_t size);
/* A repeatable sequence; the seed is CHECK_SEED or 1 in each case. */
uint32_t check_random(void);
uint32_t check_below(uint32_t n);
/* Forks a child that runs f(argument) and ends with status 0. */
pid_t check_fork(void (*f)(void *), void *argument);
/* Its exit status, or 128 + the signal that ended it. */
int check_wait(pid_t pid);
int check_children(pid_t *pids, int room);      /* of this process */
int check_alive(pid_t pid);             /* exists and is no zombie */

#if defined(__SANITIZE_THREAD__)
#define CHECK_TSAN 1
#else
#define CHECK_TSAN 0
#endif
#if defined(__SANITIZE_ADDRESS__)
#define CHECK_ASAN 1
#else
#define CHECK_ASAN 0
#endif
#if defined(PROCPOOL_VALGRIND)
#define CHECK_VALGRIND 1
#else
#define CHECK_VALGRIND 0
#endif
#define CHECK_CHECKER (CHECK_TSAN || CHECK_ASAN || CHECK_VALGRIND)

#endif
