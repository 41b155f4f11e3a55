/* check.c - see check.h. */
#define _GNU_SOURCE
#include "check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_FAILED = 1, EXIT_SKIPPED = 77 };

static uint32_t sequence;

/* --- inside a case ------------------------------------------------------ */

_Noreturn void check_fail(const char *file, int line, const char *what)
{
    printf("# %s:%d: pid %d: %s\n", file, line, (int)getpid(), what);
    fflush(stdout);
    _exit(EXIT_FAILED);
}

_Noreturn void check_fail_values(const char *file, int line, const char *what,
                                 long long got, long long expected)
{
    printf("# %s:%d: pid %d: %s: got %lld, expected %lld\n", file, line,
           (int)getpid(), what, got, expected);
    fflush(stdout);
    _exit(EXIT_FAILED);
}

_Noreturn void check_skip(const char *why)
{
    printf("# skipped: %s\n", why);
    fflush(stdout);
    _exit(EXIT_SKIPPED);
}

uint64_t check_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* How many more processes want to run than there are CPUs for. */
static uint64_t load_factor(void)
{
    double load;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    if (getloadavg(&load, 1) != 1 || cpus < 1 || load < (double)cpus)
        return 1;
    load /= (double)cpus;
    return load > 9 ? 10 : 1 + (uint64_t)load;
}

uint64_t check_slow(uint64_t ms)
{
    static uint64_t times;
    if (!times) {
        const char *factor = getenv("CHECK_SLOW");
        times = factor ? strtoull(factor, NULL, 10) : load_factor();
        if (CHECK_CHECKER)
            times *= 5;
    }
    return ms * (times ? times : 1);
}

void check_nap(void)
{
    struct timespec t = { 0, 200000 };
    nanosleep(&t, NULL);
}

void *check_shared(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

uint32_t check_random(void)
{
    sequence = sequence * 1664525u + 1013904223u;
    uint32_t x = sequence;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    return x;
}

uint32_t check_below(uint32_t n)
{
    return (uint32_t)((uint64_t)check_random() * n >> 32);
}

pid_t check_fork(void (*f)(void *), void *argument)
{
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        f(argument);
        fflush(stdout);
        _exit(0);
    }
    return pid;
}

int check_wait(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static ssize_t read_file(const char *path, char *text, size_t room)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, room - 1);
    if (fd >= 0)
        close(fd);
    text[n < 0 ? 0 : n] = '\0';
    return n;
}

int check_children(pid_t *pids, int room)
{
    char path[64], text[16384];
    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    read_file(path, text, sizeof text);
    int count = 0;
    char *end, *at = text;
    while (count < room) {
        long pid = strtol(at, &end, 10);
        if (end == at)
            break;
        pids[count++] = (pid_t)pid;
        at = end;
    }
    return count;
}

int check_alive(pid_t pid)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    if (read_file(path, text, sizeof text) <= 0)
        return 0;
    char *state = strrchr(text, ')');
    return state && state[2] != 'Z' && state[2] != 'X';
}

/* --- what must be the same after a case --------------------------------- */

static int count_descriptors(void)
{
    int count = 0;
    DIR *dir = opendir("/proc/self/fd");
    while (dir && readdir(dir))
        count++;
    if (dir)
        closedir(dir);
    return count;
}

/* Shared anonymous mappings: what a region is. */
static int count_mappings(void)
{
    char line[512];
    int count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps))
        count += strstr(line, "/dev/zero") != NULL;
    if (maps)
        fclose(maps);
    return count;
}

static _Noreturn void run_case(const check_t *c)
{
    const char *seed = getenv("CHECK_SEED");
    sequence = seed ? (uint32_t)strtoul(seed, NULL, 10) : 1;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int descriptors = count_descriptors(), mappings = count_mappings();
    c->run();
    CHECK_EQ(count_descriptors(), descriptors);
    CHECK_EQ(count_mappings(), mappings);
    int status;
    if (waitpid(-1, &status, WNOHANG) >= 0)
        check_fail(c->name, 0, "a child was not reaped");
    fflush(stdout);
    _exit(0);
}

/* --- the process that runs the cases ------------------------------------ */

static void show(const char *command, pid_t pid)
{
    char line[256];
    snprintf(line, sizeof line, command, (int)pid);
    fflush(stdout);
    if (system(line) != 0)
        printf("# (%s)\n", line);
}

static void show_process(pid_t pid)
{
    show("tr '\\0' ' ' < /proc/%d/cmdline | sed 's/^/# stuck: /'; echo", pid);
    show("sed 's/^/#   wchan /' /proc/%d/wchan 2>/dev/null; echo", pid);
    show("timeout 20 gdb -batch -nx -ex 'thread apply all bt' -p %d "
         "2>/dev/null | grep -a '^[#T]' | sed 's/^/#   /'", pid);
}

/* Everything below a process, itself first. */
static int family(pid_t pid, pid_t *all, int room)
{
    int count = 1;
    all[0] = pid;
    for (int i = 0; i < count; i++) {
        char path[64], text[16384];
        snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)all[i],
                 (int)all[i]);
        read_file(path, text, sizeof text);
        for (char *at = text, *end; count < room; at = end) {
            long child = strtol(at, &end, 10);
            if (end == at)
                break;
            all[count++] = (pid_t)child;
        }
    }
    return count;
}

static void kill_family(pid_t pid, int tell)
{
    pid_t all[64];
    int count = family(pid, all, 64);
    for (int i = 0; i < count && tell && i < 8; i++)
        show_process(all[i]);
    for (int i = 0; i < count; i++)
        kill(all[i], SIGKILL);
}

/* Waits for one child until a moment; its status, or -1. */
static int wait_until(pid_t pid, uint64_t until)
{
    int status;
    uint64_t begun = check_now_ms();
    for (;;) {
        pid_t got = waitpid(pid, &status, WNOHANG);
        if (got == pid)
            return status;
        uint64_t now = check_now_ms();
        if (now > until)
            return -1;
        struct timespec t = { 0, now - begun < 20 ? 500000 : 5000000 };
        nanosleep(&t, NULL);
    }
}

/* What a case left behind has fallen to us. Those on their way out get a
** second; the others are killed. How many those were. */
static int reap_orphans(void)
{
    pid_t pids[64];
    int status, left = 0;
    uint64_t until = check_now_ms() + check_slow(1000);
    for (;;) {
        while (waitpid(-1, &status, WNOHANG) > 0)
            ;
        int count = check_children(pids, 64);
        if (count == 0)
            return left;
        if (check_now_ms() > until) {
            for (int i = 0; i < count; i++) {
                show_process(pids[i]);
                kill(pids[i], SIGKILL);
            }
            left += count;
        }
        check_nap();
    }
}

static int judge_case(const check_t *c)
{
    uint64_t begun = check_now_ms();
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0)
        run_case(c);
    unsigned limit = c->limit ? c->limit : 30;
    int status = wait_until(pid, begun + check_slow(limit * 1000));
    int late = status < 0;
    if (late) {
        kill_family(pid, 1);
        waitpid(pid, &status, 0);
    }
    int left = reap_orphans();
    unsigned long long took = check_now_ms() - begun;
    if (!late && !left && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        printf("ok %s (%llu ms)\n", c->name, took);
    else if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SKIPPED)
        printf("ok %s # SKIP\n", c->name);
    else {
        printf("not ok %s: %s", c->name,
               late ? "out of time" : left ? "left processes behind" : "");
        if (WIFSIGNALED(status) && !late)
            printf("signal %d", WTERMSIG(status));
        else if (WIFEXITED(status) && WEXITSTATUS(status))
            printf("failed");
        printf(" (%llu ms)\n", took);
        return 0;
    }
    return 1;
}

static int chosen(const char *name, char **names)
{
    if (!*names)
        return 1;
    for (; *names; names++) {
        size_t n = strlen(*names);
        if (n && (*names)[n - 1] == '*' ? strncmp(name, *names, n - 1) == 0
                                        : strcmp(name, *names) == 0)
            return 1;
    }
    return 0;
}

int check_main(int argc, char **argv, const check_t *cases)
{
    int times = 1, failed = 0, option;
    while ((option = getopt(argc, argv, "n:")) != -1)
        if (option == 'n')
            times = atoi(optarg);
    setvbuf(stdout, NULL, _IOLBF, 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    while (times-- > 0)
        for (const check_t *c = cases; c->name; c++)
            if (chosen(c->name, argv + optind))
                failed += !judge_case(c);
    return failed != 0;
}
