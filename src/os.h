/*
** os.h - everything that only Linux has, behind a few functions.
**
** Run by all: parent, keeper, workers. Nothing here allocates from the heap or
** knows what a pool is. Functions return 0 or a count, or a negative errno.
** Times are nanoseconds of CLOCK_MONOTONIC; a deadline of 0 means "never".
*/
#ifndef PROCPOOL_OS_H
#define PROCPOOL_OS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#pragma GCC visibility push(hidden)

#define OS_SECOND UINT64_C(1000000000)
#define OS_MS UINT64_C(1000000)
#define OS_US UINT64_C(1000)

/* Time and CPUs. */
uint64_t os_now(void);
uint64_t os_now_coarse(void);   /* the same clock, some ms late, for less */
int os_cpus(void);            /* affinity mask and cgroup quota, >= 1 */
static inline void os_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Memory that all processes of a pool share. */
void *os_reserve(size_t size);          /* NULL with errno set */
void os_release(void *address, size_t size);
/* Before a fork: malloc merges small free blocks when next a large one is
** wanted, all over its heap; done now, neither side copies pages for it. */
void os_merge_free(void);
void *os_zeroed(size_t size);   /* private, untouched pages; os_release */
void *os_unshared(size_t size); /* the same, but no child of a fork has them */
void os_protect(void *address, size_t size);     /* read-only from now on */
void os_give_back(void *address, size_t size);   /* pages read as zero then */
void os_populate(void *address, size_t size);    /* fault pages in, at once */
void os_huge(void *address, size_t size);   /* huge pages, if there are any */
void os_huge_block(void *block, size_t size);   /* the same for malloc's */
#define OS_HUGE_FROM ((size_t)4 << 20)  /* bytes of a block that is worth them */
uint64_t os_page_size(void);

/* Sleeping and waking through a word in shared memory. */
int os_futex_wait(_Atomic uint32_t *word, uint32_t expected,
                  uint64_t deadline);
void os_futex_wake(_Atomic uint32_t *word, int count);

/* Descriptors; none of them ever lands on 0, 1 or 2. */
int os_eventfd(void);
void os_ring(int eventfd);              /* make it readable */
void os_quiet(int eventfd);             /* make it unreadable */
int os_socketpair(int pair[2]);
int os_pipe(int pair[2]);
int os_epoll(void);
int os_epoll_add(int epoll, int fd, uint64_t tag);
int os_epoll_add_edge(int epoll, int fd, uint64_t tag); /* told once a change */
/* From os_hold_signals on, signals wait, in this thread: the two waits below let
** them in (-EINTR), os_let_signals ends that. So nothing that a handler does can
** come between a last look and the sleep. */
void os_hold_signals(void);
void os_let_signals(void);
/* The tags of what is readable, and how many; 0 at the deadline; -EINTR. */
int os_epoll_wait(int epoll, uint64_t *tags, int room, uint64_t deadline);
int os_signalfd_child(void);            /* blocks every signal, SIGCHLD reads */
int os_wait_readable(const int *fds, int count, uint64_t deadline);
int os_hung_up(int sock);               /* has its other end been closed? */
void os_close(int *fd);
/* Closes all descriptors made here (in this process or inherited) but these. */
void os_close_others(const int *keep, int count);

/* Processes. */
void os_yield(void);                    /* let others on this CPU run */
/* From now on, or no longer, waking this process preempts nobody; a fork does
** not inherit that. 1; 0: it has another policy, which stays. */
int os_batch(int batch);
pid_t os_pid(void);                     /* getpid without the system call */
int os_pidfd(pid_t pid);                /* -ENOSYS on an old kernel */
int os_pidfd_kill(int pidfd, pid_t pid, int signal);
void os_die_with(pid_t parent);         /* SIGKILL when it dies; checks it */
void os_adopt_orphans(void);            /* be a subreaper */
int os_children(pid_t *pids, int room); /* of this process; how many there are */
void os_own_group(void);                /* be a process group's leader */
void os_fresh_signals(void);            /* dispositions, mask, timers, stdin */
void os_unblock_signals(void);
/* Finds the place of the command line, once; all that are forked know it. */
void os_find_title(void);
/* What ps shows there: "procpool NAME ROLE"; where room is short NAME is cut. */
void os_title(const char *name, const char *role);
void os_random(void *bytes, size_t size);
int os_columns(int fd);                 /* of a terminal, 0: unknown; -1: none */

/* Children forked between the two are taken first by the OOM killer. To set the
** score before the fork costs a call; a child's way to its own costs as much
** as a tenth of its life, if that is short. */
typedef struct oom {
    int fd;                     /* -1: nothing to be done, or not possible */
    char own[8];
} oom_t;
void os_oom_open(oom_t *o);             /* before the other two */
void os_oom_volunteer(const oom_t *o);
void os_oom_restore(const oom_t *o);

/* Memory of a process: its own private pages, in bytes. */
uint64_t os_private_memory(pid_t pid);  /* exact, walks page tables; 0: unknown */
uint64_t os_resident_memory(pid_t pid); /* anonymous resident, cheap */
uint64_t os_page_faults(void);          /* minor faults of this process */
double os_cpu_seconds(pid_t pid);       /* user + system; 0 when unknown */
/* Has the kernel killed a process for want of memory, any on this machine,
** since the last call (in an ancestor, too) or in the last second? The first
** call only learns how many there were. */
int os_oom_killed(void);

#pragma GCC visibility pop
#endif
