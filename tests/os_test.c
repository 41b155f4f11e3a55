/* os_test.c - src/os.c: what Linux does for a pool, and what it does when
** something is missing. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os.h"
#include "support/check.h"

/* --- memory ------------------------------------------------------------- */

static void test_give_back(void)
{
    uint64_t page = os_page_size();
    unsigned char *p = os_reserve(64 * page);
    CHECK(p);
    memset(p, 9, 64 * page);
    os_give_back(p + 1, 10 * page);     /* whole pages inside only */
    CHECK_EQ(p[0], 9);
    CHECK_EQ(p[page - 1], 9);
    CHECK_EQ(p[page], 0);
    CHECK_EQ(p[10 * page - 1], 0);
    CHECK_EQ(p[10 * page], 9);
    os_give_back(p + 20 * page, 1);     /* less than a page: nothing */
    CHECK_EQ(p[20 * page], 9);
    os_release(p, 64 * page);
}

static void write_seven(void *p)
{
    *(volatile unsigned char *)p = 7;
}

static void test_memory_is_shared(void)
{
    unsigned char *p = os_reserve(os_page_size());
    CHECK(p);
    CHECK_EQ(check_wait(check_fork(write_seven, p)), 0);
    CHECK_EQ(*p, 7);
    os_release(p, os_page_size());
}

static void reserve_too_much(void *unused)
{
    (void)unused;
    struct rlimit limit = { 256 << 20, 256 << 20 };
    CHECK_EQ(setrlimit(RLIMIT_AS, &limit), 0);
    errno = 0;
    CHECK(os_reserve(1 << 30) == NULL);
    CHECK_EQ(errno, ENOMEM);
}

static void test_reserve_fails(void)
{
    if (CHECK_CHECKER)
        check_skip("a checker needs address space without limits");
    CHECK_EQ(check_wait(check_fork(reserve_too_much, NULL)), 0);
}

static void test_private_memory(void)
{
    if (CHECK_CHECKER)
        check_skip("a checker has memory of its own");
    uint64_t before = os_private_memory(0), anon = os_resident_memory(0);
    if (!before)
        check_skip("no smaps_rollup");
    size_t size = 32 << 20;
    uint64_t faults = os_page_faults();
    volatile char *p = malloc(size);
    for (size_t i = 0; i < size; i += 4096)
        p[i] = 1;
    uint64_t after = os_private_memory(getpid());
    CHECK(after > before + size - (2 << 20));
    CHECK(after < before + size + (4 << 20));
    CHECK(os_resident_memory(0) > anon + size - (2 << 20));
    CHECK(os_page_faults() > faults);
    free((void *)(uintptr_t)p);
    CHECK_EQ(os_private_memory(0x7ffffff0), 0);
}

/* --- futex -------------------------------------------------------------- */

static void wake_later(void *p)
{
    _Atomic uint32_t *word = p;
    usleep(30000);
    atomic_store(word, 2);
    os_futex_wake(word, 1);
}

static void test_futex(void)
{
    _Atomic uint32_t *word = os_reserve(os_page_size());
    CHECK(word);
    atomic_store(word, 1);
    CHECK_EQ(os_futex_wait(word, 0, 0), -EAGAIN);
    uint64_t before = os_now();
    CHECK_EQ(os_futex_wait(word, 1, before + 20 * OS_MS), -ETIMEDOUT);
    CHECK(os_now() >= before + 20 * OS_MS);
    CHECK_EQ(os_futex_wait(word, 1, 1), -ETIMEDOUT);    /* long ago */
    pid_t pid = check_fork(wake_later, (void *)(uintptr_t)word);
    while (atomic_load(word) == 1) {
        int rc = os_futex_wait(word, 1, os_now() + 5 * OS_SECOND);
        CHECK(rc == 0 || rc == -EAGAIN || rc == -EINTR);
    }
    CHECK_EQ(check_wait(pid), 0);
    os_release((void *)(uintptr_t)word, os_page_size());
}

/* --- descriptors -------------------------------------------------------- */

static int closes_on_exec(int fd)
{
    return (fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0;
}

/* A program may have closed 0, 1 and 2. */
static void open_without_stdio(void *unused)
{
    (void)unused;
    int null = dup(2);
    for (int round = 0; round < 8; round++) {
        for (int fd = 0; fd < 3; fd++)
            if (round >> fd & 1)
                close(fd);
            else
                dup2(null, fd);
        int fds[8] = { os_eventfd(), os_epoll(), os_pidfd(getpid()) };
        if (os_socketpair(fds + 3) < 0 || os_pipe(fds + 5) < 0)
            _exit(2);
        for (int i = 0; i < 7; i++) {
            if (fds[i] == -ENOSYS)
                continue;
            if (fds[i] < 3 || !closes_on_exec(fds[i]))
                _exit(10 + i);
            close(fds[i]);
        }
        for (int fd = 0; fd < 3; fd++)
            if (round >> fd & 1 && fcntl(fd, F_GETFD) != -1)
                _exit(20 + fd);
    }
    dup2(null, 1);
}

static void test_descriptors_above_stdio(void)
{
    CHECK_EQ(check_wait(check_fork(open_without_stdio, NULL)), 0);
}

/* With room for n more descriptors, each call fails cleanly or succeeds. */
static void open_with_few(void *argument)
{
    int room = *(int *)argument, pair[2], first = dup(2);
    close(first);
    struct rlimit limit = { (rlim_t)(first + room), (rlim_t)(first + room) };
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    int fd = os_eventfd();
    CHECK(room >= 1 ? fd == first : fd == -EMFILE);
    close(fd);
    CHECK_EQ(os_pipe(pair), room >= 2 ? 0 : -EMFILE);
    if (room >= 2)
        os_close(&pair[0]), os_close(&pair[1]);
    CHECK_EQ(os_socketpair(pair), room >= 2 ? 0 : -EMFILE);
    if (room >= 2)
        os_close(&pair[0]), os_close(&pair[1]);
    fd = os_epoll();
    CHECK(room >= 1 ? fd == first : fd == -EMFILE);
}

static void test_descriptors_run_out(void)
{
    if (CHECK_VALGRIND)
        check_skip("valgrind has descriptors of its own");
    for (int room = 0; room < 4; room++)
        CHECK_EQ(check_wait(check_fork(open_with_few, &room)), 0);
}

/* Low numbers are free, higher ones are not: what cannot be moved above 2 is
** closed again. */
static void open_only_low(void *unused)
{
    (void)unused;
    int pair[2];
    struct rlimit limit = { 3, 3 };
    close(0);
    close(1);
    int failed = setrlimit(RLIMIT_NOFILE, &limit) < 0 ||
                 os_eventfd() != -EINVAL || os_pipe(pair) != -EINVAL ||
                 fcntl(0, F_GETFD) != -1 || fcntl(1, F_GETFD) != -1;
    _exit(failed);
}

static void test_only_low_descriptors(void)
{
    if (CHECK_VALGRIND)
        check_skip("valgrind has descriptors of its own");
    int status = check_wait(check_fork(open_only_low, NULL));
    CHECK_EQ(status, 0);
}

static void test_eventfd(void)
{
    int fd = os_eventfd();
    struct pollfd p = { .fd = fd, .events = POLLIN };
    CHECK_EQ(poll(&p, 1, 0), 0);
    os_ring(fd);
    os_ring(fd);
    CHECK_EQ(poll(&p, 1, 0), 1);
    os_quiet(fd);
    CHECK_EQ(poll(&p, 1, 0), 0);
    os_quiet(fd);   /* does not wait */
    close(fd);
}

static void on_alarm(int sig)
{
    (void)sig;
}

static void test_wait_readable(void)
{
    int a = os_eventfd(), b = os_eventfd();
    int fds[2] = { a, b };
    CHECK_EQ(os_wait_readable(fds, 2, os_now() + 5 * OS_MS), 0);
    os_ring(b);
    CHECK_EQ(os_wait_readable(fds, 2, 0), 2);
    os_ring(a);
    CHECK_EQ(os_wait_readable(fds, 2, 1), 3);
    os_quiet(a);
    os_quiet(b);
    struct sigaction action = { .sa_handler = on_alarm };
    sigaction(SIGALRM, &action, NULL);
    struct itimerval soon = { { 0, 0 }, { 0, 20000 } };
    setitimer(ITIMER_REAL, &soon, NULL);
    CHECK_EQ(os_wait_readable(fds, 2, os_now() + 5 * OS_SECOND), -EINTR);
    close(a);
    close(b);
}

static void wait_for_child(void *unused)
{
    (void)unused;
    signal(SIGCHLD, SIG_DFL);
    int fd = os_signalfd_child();
    CHECK(fd > 2 && closes_on_exec(fd));
    if (fork() == 0)
        _exit(0);
    CHECK_EQ(os_wait_readable(&fd, 1, os_now() + 5 * OS_SECOND), 1);
    kill(getpid(), SIGTERM);    /* blocked */
    CHECK_EQ(wait(NULL) > 0, 1);
}

static void test_signalfd(void)
{
    CHECK_EQ(check_wait(check_fork(wait_for_child, NULL)), 0);
}

/* --- processes ---------------------------------------------------------- */

static void sleep_long(void *unused)
{
    (void)unused;
    sleep(100);
}

static void test_children(void)
{
    pid_t pids[8], mine[3];
    CHECK_EQ(os_children(pids, 8), 0);
    for (int i = 0; i < 3; i++)
        mine[i] = check_fork(sleep_long, NULL);
    CHECK_EQ(os_children(pids, 8), 3);
    for (int i = 0; i < 3; i++)
        CHECK(pids[i] == mine[0] || pids[i] == mine[1] || pids[i] == mine[2]);
    CHECK_EQ(os_children(pids, 2), 2);
    for (int i = 0; i < 3; i++) {
        kill(mine[i], SIGKILL);
        check_wait(mine[i]);
    }
}

static void die_with_dead(void *unused)
{
    (void)unused;
    os_die_with(getppid() + 1);     /* "it died before I asked" */
}

typedef struct pids {
    _Atomic int32_t child, ready;
} pids_t;

static void have_child(void *argument)
{
    pids_t *p = argument;
    pid_t me = getpid(), child = fork();
    if (child == 0) {
        os_die_with(me);
        atomic_store(&p->ready, 1);
        sleep(100);
        _exit(0);
    }
    atomic_store(&p->child, child);
    sleep(100);
}

static void test_die_with(void)
{
    CHECK_EQ(check_wait(check_fork(die_with_dead, NULL)), 1);
    pids_t *p = check_shared(sizeof *p);
    os_adopt_orphans();
    pid_t middle = check_fork(have_child, p);
    CHECK_SOON(atomic_load(&p->child) && atomic_load(&p->ready), 5000);
    kill(middle, SIGKILL);
    check_wait(middle);
    /* Its orphan has come to us, and is dying. */
    CHECK_EQ(check_wait(atomic_load(&p->child)), 128 + SIGKILL);
    munmap(p, sizeof *p);
}

static void pidfd_of_child(void *unused)
{
    (void)unused;
    pid_t child = check_fork(sleep_long, NULL);
    int fd = os_pidfd(child);
    if (fd == -ENOSYS)
        _exit(77);
    CHECK(fd > 2 && closes_on_exec(fd));
    CHECK_EQ(os_wait_readable(&fd, 1, 1), 0);
    CHECK_EQ(os_pidfd_kill(fd, child, SIGKILL), 0);
    CHECK_EQ(os_wait_readable(&fd, 1, os_now() + 5 * OS_SECOND), 1);
    check_wait(child);
    CHECK_EQ(os_pidfd_kill(fd, child, SIGKILL), -ESRCH);
    close(fd);
    child = check_fork(sleep_long, NULL);
    CHECK_EQ(os_pidfd_kill(-1, child, SIGKILL), 0);
    CHECK_EQ(check_wait(child), 128 + SIGKILL);
    CHECK_EQ(os_pidfd(0x7ffffff0) < 0, 1);
}

static void test_pidfd(void)
{
    if (CHECK_VALGRIND)
        check_skip("valgrind knows no pidfd_open");
    int status = check_wait(check_fork(pidfd_of_child, NULL));
    CHECK(status == 0 || status == 77);
}

static void fresh_signals(void *unused)
{
    (void)unused;
    struct itimerval soon = { { 0, 0 }, { 100, 0 } }, left;
    struct sigaction action;
    signal(SIGCHLD, SIG_IGN);
    signal(SIGUSR1, on_alarm);
    setitimer(ITIMER_REAL, &soon, NULL);
    os_fresh_signals();
    CHECK_EQ(getitimer(ITIMER_REAL, &left), 0);
    CHECK_EQ(left.it_value.tv_sec, 0);
    for (int sig = 1; sig < 32; sig++)
        if (sigaction(sig, NULL, &action) == 0 && sig != SIGKILL &&
            sig != SIGSTOP)
            CHECK(action.sa_handler == SIG_DFL);
    char byte;
    CHECK_EQ(read(0, &byte, 1), 0);     /* stdin is empty ... */
    CHECK(!closes_on_exec(0));          /* ... for what a task executes too */
}

static void test_fresh_signals(void)
{
    CHECK_EQ(check_wait(check_fork(fresh_signals, NULL)), 0);
}

/* --- the rest ----------------------------------------------------------- */

static void test_cpus(void)
{
    cpu_set_t before, one;
    int all = os_cpus();
    CHECK(all >= 1);
    CHECK_EQ(sched_getaffinity(0, sizeof before, &before), 0);
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++)
        if (CPU_ISSET(i, &before))
            CPU_SET(i, &one);
    CHECK_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    CHECK_EQ(os_cpus(), 1);
    sched_setaffinity(0, sizeof before, &before);
    CHECK_EQ(os_cpus(), all);
}

static void read_title(char *text, size_t room)
{
    int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t n = read(fd, text, room - 1);
    close(fd);
    text[n < 0 ? 0 : n] = '\0';
}

static void set_titles(void *unused)
{
    (void)unused;
    char text[512], whole[512], name[32], long_name[400];
    read_title(whole, sizeof whole);
    size_t room = strlen(whole);    /* of the first argument at least */
    os_find_title();
    os_title("a", "keeper");
    read_title(text, sizeof text);
    CHECK(strncmp(text, "procpool a keeper", room < 17 ? room - 1 : 17) == 0);
    prctl(PR_GET_NAME, name);
    CHECK(strcmp(name, "a keeper") == 0);
    /* What lies behind the command line is whole, however long the name. */
    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    os_title(long_name, "worker 7");
    read_title(text, sizeof text);
    CHECK(strstr(text, "xx worker 7") || room < 22);
    CHECK(getenv("OS_TEST") && strcmp(getenv("OS_TEST"), "whole") == 0);
    os_title("b", "keeper");
    read_title(text, sizeof text);
    CHECK(strchr(text, 'x') == NULL);
}

static void test_title(void)
{
    if (CHECK_VALGRIND)
        check_skip("valgrind knows no memory of titles");
    setenv("OS_TEST", "whole", 1);
    CHECK_EQ(check_wait(check_fork(set_titles, NULL)), 0);
}

static void test_random(void)
{
    unsigned char a[32], b[32];
    os_random(a, sizeof a);
    os_random(b, sizeof b);
    CHECK(memcmp(a, b, sizeof a) != 0);
}

static void test_time(void)
{
    uint64_t before = os_now();
    double cpu = os_cpu_seconds(0);
    volatile unsigned n = 0;
    while (os_now() < before + 100 * OS_MS)
        n = n + 1;
    CHECK(os_now() >= before + 100 * OS_MS);
    CHECK(os_cpu_seconds(getpid()) >= cpu);
    CHECK(os_cpu_seconds(0x7ffffff0) == 0);
}

int main(int argc, char **argv)
{
    static const check_t cases[] = {
        { "os: whole pages are given back", test_give_back, 0 },
        { "os: memory is shared with children", test_memory_is_shared, 0 },
        { "os: memory that the limit forbids", test_reserve_fails, 0 },
        { "os: private memory", test_private_memory, 0 },
        { "os: futex", test_futex, 0 },
        { "os: descriptors are above 2 and close on exec",
          test_descriptors_above_stdio, 0 },
        { "os: descriptors run out", test_descriptors_run_out, 0 },
        { "os: only descriptors below 3 are left", test_only_low_descriptors,
          0 },
        { "os: eventfd", test_eventfd, 0 },
        { "os: waiting for descriptors", test_wait_readable, 0 },
        { "os: the end of a child is readable", test_signalfd, 0 },
        { "os: children", test_children, 0 },
        { "os: dying with the parent", test_die_with, 0 },
        { "os: pidfd", test_pidfd, 0 },
        { "os: fresh signals, timers and stdin", test_fresh_signals, 0 },
        { "os: CPUs", test_cpus, 0 },
        { "os: title", test_title, 0 },
        { "os: random bytes differ", test_random, 0 },
        { "os: time", test_time, 0 },
        { NULL, NULL, 0 }
    };
    return check_main(argc, argv, cases);
}
