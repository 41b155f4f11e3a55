/*
** os.c - see os.h. The only file with Linux-only calls.
**
** Invariants: every descriptor made here is close-on-exec and numbered 3 or
** above (a program may have closed 0 to 2, and a pool must not hear what such
** a program prints); errno is turned into a return value at once.
** Never allocates from the heap: it runs in children of a fork.
**
** What a worker's first moments consist of is called by syscall(): each of the
** library's wrappers lies on other pages, and a fresh process takes a fault for
** every 16 of them.
*/
#define _GNU_SOURCE
#include "os.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

/* --- time and CPUs ------------------------------------------------------ */

uint64_t os_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * OS_SECOND + (uint64_t)t.tv_nsec;
}

uint64_t os_now_coarse(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (uint64_t)t.tv_sec * OS_SECOND + (uint64_t)t.tv_nsec;
}

static struct timespec timespec_of(uint64_t ns)
{
    struct timespec t;
    t.tv_sec = (time_t)(ns / OS_SECOND);
    t.tv_nsec = (long)(ns % OS_SECOND);
    return t;
}

/* Reads a small file of /proc or /sys whole; its length, or -1. */
static ssize_t read_small(const char *path, char *text, size_t room)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    size_t used = 0;
    while (used + 1 < room) {
        ssize_t n = read(fd, text + used, room - 1 - used);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        used += (size_t)n;
    }
    close(fd);
    text[used] = '\0';
    return (ssize_t)used;
}

/* CPUs that a quota of `quota` microseconds in every `period` amounts to. */
static int quota_cpus(double quota, double period)
{
    if (quota <= 0 || period <= 0)
        return 0;
    double cpus = quota / period;
    return cpus < 1 ? 1 : (int)(cpus + 0.5);
}

/* The smallest cpu.max on the way from this process's cgroup (v2) to the
** root; 0 when there is none. */
static int cgroup2_cpus(const char *group)
{
    char path[512];
    int least = 0;
    size_t n = strlen(group);
    if (n >= 256)
        return 0;
    for (;;) {
        char text[64];
        double quota, period;
        snprintf(path, sizeof path, "/sys/fs/cgroup%.*s/cpu.max", (int)n,
                 group);
        if (read_small(path, text, sizeof text) > 0 &&
            sscanf(text, "%lf %lf", &quota, &period) == 2) {
            int cpus = quota_cpus(quota, period);
            if (cpus && (!least || cpus < least))
                least = cpus;
        }
        if (n == 0)
            return least;
        while (n > 0 && group[--n] != '/')
            ;
    }
}

static int cgroup1_cpus(void)
{
    char quota[64], period[64];
    if (read_small("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota,
                   sizeof quota) <= 0 ||
        read_small("/sys/fs/cgroup/cpu/cpu.cfs_period_us", period,
                   sizeof period) <= 0)
        return 0;
    return quota_cpus(atof(quota), atof(period));
}

static int read_quota(void)
{
    char text[4096];
    if (read_small("/proc/self/cgroup", text, sizeof text) > 0) {
        char *line = strstr(text, "0::/");
        if (line) {
            char *group = line + 3;
            group[strcspn(group, "\n")] = '\0';
            if (strcmp(group, "/") == 0)
                *group = '\0';
            int cpus = cgroup2_cpus(group);
            if (cpus)
                return cpus;
        }
    }
    return cgroup1_cpus();
}

/* The cgroup's quota. What takes four files to find out is taken to be true
** for a second. */
static int cgroup_cpus(void)
{
    static _Atomic uint64_t until;
    static _Atomic int quota;
    uint64_t now = os_now();
    if (now >= until) {
        quota = read_quota();
        until = now + OS_SECOND;
    }
    return quota;
}

int os_cpus(void)
{
    /* 1024 CPUs fit the fixed set; a larger machine makes the call fail with
    ** EINVAL, and then the machine's own count serves. */
    cpu_set_t set;
    long cpus = sched_getaffinity(0, sizeof set, &set) == 0
                    ? CPU_COUNT(&set)
                    : sysconf(_SC_NPROCESSORS_ONLN);
    int quota = cgroup_cpus();
    if (quota && quota < cpus)
        cpus = quota;
    return cpus < 1 ? 1 : (int)cpus;
}

/* --- memory ------------------------------------------------------------- */

void *os_reserve(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    madvise(p, size, MADV_DONTDUMP);
    return p;
}

void *os_zeroed(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

void *os_unshared(size_t size)
{
    void *p = os_zeroed(size);
    if (p)
        madvise(p, size, MADV_DONTFORK);
    return p;
}

void os_release(void *address, size_t size)
{
    munmap(address, size);
}

void os_protect(void *address, size_t size)
{
    mprotect(address, size, PROT_READ);
}

void os_merge_free(void)
{
    void *volatile large = malloc(4096);
    free(large);
}

/* Advice on the whole pages inside. */
static void advise(void *address, size_t size, int advice)
{
    uintptr_t page = os_page_size();
    uintptr_t from = ((uintptr_t)address + page - 1) & ~(page - 1);
    uintptr_t to = ((uintptr_t)address + size) & ~(page - 1);
    int before = errno;
    if (from < to)
        madvise((void *)from, to - from, advice);
    errno = before;
}

void os_give_back(void *address, size_t size)
{
    advise(address, size, MADV_REMOVE);
}

void os_huge(void *address, size_t size)
{
    advise(address, size, MADV_HUGEPAGE);
}

/* In the heap that sbrk makes, advice on one block and then on another would cut
** a mapping into many, which stay when the blocks are gone. So it is given for
** all that lies behind the first of them. */
void os_huge_block(void *block, size_t size)
{
    static char *first;
    char *end = sbrk(0), *at = block;
    if ((uintptr_t)at > (uintptr_t)end) {
        os_huge(at, size);
        return;
    }
    if (!first || at < first)
        first = at;
    os_huge(first, (size_t)(end - first));
}

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

void os_populate(void *address, size_t size)
{
    static int unknown;     /* to kernels before 5.14: pages come one by one */
    uintptr_t page = os_page_size();
    uintptr_t from = (uintptr_t)address & ~(page - 1);
    uintptr_t to = ((uintptr_t)address + size + page - 1) & ~(page - 1);
    int before = errno;
    if (!unknown && madvise((void *)from, to - from, MADV_POPULATE_WRITE) < 0)
        unknown = errno == EINVAL;
    errno = before;
}

uint64_t os_page_size(void)
{
    static uint64_t page;
    if (!page)
        page = (uint64_t)sysconf(_SC_PAGESIZE);
    return page;
}

/* --- futex -------------------------------------------------------------- */

int os_futex_wait(_Atomic uint32_t *word, uint32_t expected,
                  uint64_t deadline)
{
    /* The BITSET form takes an absolute time of CLOCK_MONOTONIC. */
    struct timespec at = timespec_of(deadline);
    long rc = syscall(SYS_futex, word, FUTEX_WAIT_BITSET, expected,
                      deadline ? &at : NULL, NULL, FUTEX_BITSET_MATCH_ANY);
    return rc == 0 ? 0 : -errno;
}

void os_futex_wake(_Atomic uint32_t *word, int count)
{
    syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
}

/* --- descriptors -------------------------------------------------------- */

/* A bit per descriptor made here and not yet closed: what a new keeper closes
** of other pools. Those of the common numbers lie with the other variables: a
** keeper writes to them at every fork. */
#define OWN_FEW 1024
#define OWN_MAX 65536
static uint64_t own[OWN_FEW / 64];
static uint64_t *own_more;      /* of the numbers from OWN_FEW on, or NULL */

/* The word with a descriptor's bit; NULL: there is none. */
static uint64_t *own_word(int fd)
{
    if (fd < OWN_FEW)
        return &own[fd / 64];
    return own_more && fd < OWN_MAX ? &own_more[(fd - OWN_FEW) / 64] : NULL;
}

static void note_own(int fd, int is_own)
{
    uint64_t bit = UINT64_C(1) << (fd % 64);
    if (fd >= OWN_FEW && is_own && !own_more)
        own_more = calloc((OWN_MAX - OWN_FEW) / 64, sizeof *own_more);
    uint64_t *word = own_word(fd);
    if (word && is_own)
        *word |= bit;
    else if (word)
        *word &= ~bit;
}

/* Moves a fresh descriptor above 2. */
static int above_stdio(int fd)
{
    if (fd < 0)
        return -errno;
    if (fd <= 2) {
        int moved = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        int error = errno;
        close(fd);
        if (moved < 0)
            return -error;
        fd = moved;
    }
    note_own(fd, 1);
    return fd;
}

static int pair_above_stdio(int pair[2])
{
    for (int i = 0; i < 2; i++) {
        int fd = above_stdio(pair[i]);
        if (fd < 0) {
            pair[i] = -1;
            os_close(&pair[0]);
            os_close(&pair[1]);
            return fd;
        }
        pair[i] = fd;
    }
    return 0;
}

int os_eventfd(void)
{
    return above_stdio(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
}

void os_ring(int fd)
{
    uint64_t one = 1;
    while (syscall(SYS_write, fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

void os_quiet(int fd)
{
    uint64_t count;
    while (read(fd, &count, sizeof count) < 0 && errno == EINTR)
        ;
}

int os_socketpair(int pair[2])
{
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0,
                   pair) < 0)
        return -errno;
    return pair_above_stdio(pair);
}

int os_pipe(int pair[2])
{
    if (pipe2(pair, O_CLOEXEC | O_NONBLOCK) < 0)
        return -errno;
    return pair_above_stdio(pair);
}

int os_epoll(void)
{
    return above_stdio(epoll_create1(EPOLL_CLOEXEC));
}

int os_epoll_add(int epoll, int fd, uint64_t tag)
{
    struct epoll_event e = { .events = EPOLLIN, .data.u64 = tag };
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) < 0 ? -errno : 0;
}

int os_signalfd_child(void)
{
    sigset_t all, child;
    sigfillset(&all);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_SETMASK, &all, NULL);
    return above_stdio(signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK));
}

int os_epoll_add_edge(int epoll, int fd, uint64_t tag)
{
    struct epoll_event e = { .events = EPOLLIN | EPOLLET, .data.u64 = tag };
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) < 0 ? -errno : 0;
}

static _Thread_local sigset_t let_in;   /* the mask before they were held */
static _Thread_local int held;

void os_hold_signals(void)
{
    sigset_t all;
    sigfillset(&all);
    held = pthread_sigmask(SIG_SETMASK, &all, &let_in) == 0;
}

void os_let_signals(void)
{
    if (held)
        pthread_sigmask(SIG_SETMASK, &let_in, NULL);
    held = 0;
}

int os_epoll_wait(int epoll, uint64_t *tags, int room, uint64_t deadline)
{
    struct epoll_event events[64];
    int timeout = -1;
    if (deadline) {
        uint64_t now = os_now();
        uint64_t left = deadline > now ? (deadline - now + OS_MS - 1) / OS_MS
                                       : 0;
        timeout = left > INT32_MAX ? INT32_MAX : (int)left;
    }
    int n = epoll_pwait(epoll, events, room < 64 ? room : 64, timeout,
                        held ? &let_in : NULL);
    if (n < 0)
        return -errno;
    for (int i = 0; i < n; i++)
        tags[i] = events[i].data.u64;
    return n;
}

int os_hung_up(int sock)
{
    char byte;
    ssize_t n = recv(sock, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
}

int os_wait_readable(const int *fds, int count, uint64_t deadline)
{
    struct pollfd set[4];
    for (int i = 0; i < count; i++)
        set[i] = (struct pollfd){ .fd = fds[i], .events = POLLIN };
    struct timespec left, *timeout = NULL;
    if (deadline) {
        uint64_t now = os_now();
        left = timespec_of(deadline > now ? deadline - now : 0);
        timeout = &left;
    }
    int rc = ppoll(set, (nfds_t)count, timeout, held ? &let_in : NULL);
    if (rc < 0)
        return -errno;
    int ready = 0;
    for (int i = 0; i < count; i++)
        if (set[i].revents)
            ready |= 1 << i;
    return ready;
}

void os_close(int *fd)
{
    if (*fd >= 0) {
        note_own(*fd, 0);
        syscall(SYS_close, *fd);
    }
    *fd = -1;
}

void os_close_others(const int *keep, int count)
{
    const uint64_t *word;
    for (int fd = 3; (word = own_word(fd)); fd++) {
        if (!*word) {
            fd |= 63;   /* none of these 64 */
            continue;
        }
        int kept = !(*word >> (fd % 64) & 1);
        for (int i = 0; i < count && !kept; i++)
            kept = keep[i] == fd;
        int closing = fd;
        if (!kept)
            os_close(&closing);
    }
}

/* --- processes ---------------------------------------------------------- */

void os_yield(void)
{
    sched_yield();
}

void os_own_group(void)
{
    syscall(SYS_setpgid, 0, 0);
}

void os_unblock_signals(void)
{
    static const uint64_t none[2];  /* a mask as the kernel has it */
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, none, NULL, (size_t)_NSIG / 8);
}

int os_batch(int batch)
{
    struct sched_param none = { .sched_priority = 0 };
    int from = batch ? SCHED_OTHER : SCHED_BATCH;
    int to = batch ? SCHED_BATCH : SCHED_OTHER;
    long now = syscall(SYS_sched_getscheduler, 0);
    return now >= 0 && (now & ~SCHED_RESET_ON_FORK) == from &&
           syscall(SYS_sched_setscheduler, 0, to | SCHED_RESET_ON_FORK,
                   &none) == 0;
}

static pid_t own_pid;

static void forget_pid(void)
{
    own_pid = 0;
}

pid_t os_pid(void)
{
    static int watched;
    if (!watched)
        watched = pthread_atfork(NULL, NULL, forget_pid) == 0;
    if (!own_pid) {
        pid_t pid = getpid();
        if (watched)
            own_pid = pid;
        return pid;
    }
    return own_pid;
}

int os_pidfd(pid_t pid)
{
    return above_stdio((int)syscall(SYS_pidfd_open, pid, 0));
}

int os_pidfd_kill(int pidfd, pid_t pid, int sig)
{
    long rc = -1;
    errno = ENOSYS;
    if (pidfd >= 0)
        rc = syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0);
    /* Too old a kernel, or the program has closed the descriptor. Not when the
    ** process is known to be over: its number may be another's by now. */
    if (rc < 0 && errno != ESRCH)
        rc = kill(pid, sig);
    return rc < 0 ? -errno : 0;
}

void os_die_with(pid_t parent)
{
    syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (getppid() != parent)
        _exit(1);  /* it died before the line above */
}

void os_adopt_orphans(void)
{
    prctl(PR_SET_CHILD_SUBREAPER, 1);
}

int os_children(pid_t *pids, int room)
{
    /* The kernel lists the children of one thread; a keeper has only one. */
    char path[64], text[16384];
    snprintf(path, sizeof path, "/proc/self/task/%ld/children",
             (long)syscall(SYS_gettid));
    if (read_small(path, text, sizeof text) < 0)
        return 0;
    int count = 0;
    char *end, *at = text;
    for (;;) {
        long pid = strtol(at, &end, 10);
        if (end == at || count == room)
            return count;
        pids[count++] = (pid_t)pid;
        at = end;
    }
}

void os_fresh_signals(void)
{
    for (int sig = 1; sig < NSIG; sig++)
        if (sig != SIGKILL && sig != SIGSTOP)
            signal(sig, SIG_DFL);
    struct itimerval off;
    memset(&off, 0, sizeof off);
    setitimer(ITIMER_REAL, &off, NULL);
    setitimer(ITIMER_VIRTUAL, &off, NULL);
    setitimer(ITIMER_PROF, &off, NULL);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null < 0)
        close(0);
    else if (null != 0) {
        dup2(null, 0);
        close(null);
    } else
        fcntl(0, F_SETFD, 0);
}

#define OOM_VOLUNTEER "500"

void os_oom_open(oom_t *o)
{
    o->fd = above_stdio(open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC));
    ssize_t n = o->fd < 0 ? 0 : read(o->fd, o->own, sizeof o->own - 1);
    o->own[n > 0 ? n : 0] = '\0';
    if (n <= 0 || atoi(o->own) >= atoi(OOM_VOLUNTEER))
        os_close(&o->fd);
}

static void adjust_oom(const oom_t *o, const char *score)
{
    /* Not permitted: the kernel's own choice stands. */
    while (o->fd >= 0 && pwrite(o->fd, score, strlen(score), 0) < 0 &&
           errno == EINTR)
        ;
}

void os_oom_volunteer(const oom_t *o)
{
    adjust_oom(o, OOM_VOLUNTEER);
}

void os_oom_restore(const oom_t *o)
{
    adjust_oom(o, o->own);
}

/* Where the command line that ps shows lies: between arg_start and arg_end
** (fields 48 and 49 of stat, counted after the parenthesised name). What lies
** behind it is the environment. */
static char *title_start;
static size_t title_room;

void os_find_title(void)
{
    char text[1024];
#ifdef PROCPOOL_VALGRIND    /* what stat tells is valgrind's own command line */
    return;
#endif
    if (title_start || read_small("/proc/self/stat", text, sizeof text) <= 0)
        return;
    char *at = strrchr(text, ')');
    for (int field = 2; at && field < 48; field++)
        at = strchr(at + 1, ' ');
    if (!at)
        return;
    unsigned long from = strtoul(at, &at, 10), to = strtoul(at, NULL, 10);
    if (!from || to <= from + 1)
        return;
    title_start = (char *)from;
    title_room = to - from;
}

/* "first name role" in `room` bytes, as much of the name as fits. */
static void write_title(char *to, size_t room, const char *first,
                        const char *name, const char *role)
{
    size_t fixed = strlen(first) + strlen(role) + 2, n = strlen(name);
    memset(to, 0, room);
    if (fixed + n > room)
        n = room > fixed ? room - fixed : 0;
    char *end = to + room - 1;
    for (; *first && to < end; first++)
        *to++ = *first;
    for (; n && to < end; n--)
        *to++ = *name++;
    if (to < end)
        *to++ = ' ';
    for (; *role && to < end; role++)
        *to++ = *role;
}

void os_title(const char *name, const char *role)
{
    char comm[16];
    write_title(comm, sizeof comm, "", name, role);
    syscall(SYS_prctl, PR_SET_NAME, comm, 0, 0, 0);
    if (title_start)
        write_title(title_start, title_room, "procpool ", name, role);
}

void os_random(void *bytes, size_t size)
{
    if (syscall(SYS_getrandom, bytes, size, 0) == (long)size)
        return;
    /* No getrandom: time and pid still differ from life to life. */
    uint64_t seed = os_now() ^ ((uint64_t)getpid() << 40);
    for (size_t i = 0; i < size; i++) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
        ((unsigned char *)bytes)[i] = (unsigned char)(seed >> 56);
    }
}

int os_columns(int fd)
{
    struct winsize size;
    if (!isatty(fd))
        return -1;
    return ioctl(fd, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

/* --- memory and time of a process --------------------------------------- */

static ssize_t read_proc(pid_t pid, const char *name, char *text, size_t room)
{
    char path[64];
    if (pid)
        snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    else
        snprintf(path, sizeof path, "/proc/self/%s", name);
    return read_small(path, text, room);
}

/* The number after `key` in a text of "Key:   123 kB" lines, in bytes. */
static uint64_t kilobytes(const char *text, const char *key)
{
    const char *at = strstr(text, key);
    return at ? strtoull(at + strlen(key), NULL, 10) * 1024 : 0;
}

uint64_t os_private_memory(pid_t pid)
{
    char text[4096];
    if (read_proc(pid, "smaps_rollup", text, sizeof text) <= 0)
        return 0;
    return kilobytes(text, "Private_Dirty:") +
           kilobytes(text, "Private_Clean:");
}

uint64_t os_resident_memory(pid_t pid)
{
    char text[256];
    unsigned long size, resident, shared;
    if (read_proc(pid, "statm", text, sizeof text) <= 0 ||
        sscanf(text, "%lu %lu %lu", &size, &resident, &shared) != 3)
        return 0;
    return resident > shared ? (resident - shared) * os_page_size() : 0;
}

uint64_t os_page_faults(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (uint64_t)usage.ru_minflt
                                               : 0;
}

int os_oom_killed(void)
{
    static uint64_t kills, seen_at;
    static int known;
    char text[16 * 1024];
    if (read_small("/proc/vmstat", text, sizeof text) <= 0)
        return 0;
    const char *key = "\noom_kill ", *at = strstr(text, key);
    uint64_t now = at ? strtoull(at + strlen(key), NULL, 10) : 0;
    if (known && now > kills)
        seen_at = os_now();
    kills = now;
    known = 1;
    return seen_at && os_now() - seen_at < OS_SECOND;
}

double os_cpu_seconds(pid_t pid)
{
    char text[1024];
    if (read_proc(pid, "stat", text, sizeof text) <= 0)
        return 0;
    char *at = strrchr(text, ')');
    for (int field = 2; at && field < 14; field++)
        at = strchr(at + 1, ' ');
    unsigned long user, system;
    if (!at || sscanf(at, "%lu %lu", &user, &system) != 2)
        return 0;
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}
