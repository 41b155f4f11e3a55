/*
** pool.c - a pool begins and ends: see pool.h. Parent only.
**
** Invariants: the keeper is known to be gone when its socket hangs up, never
** by a wait status alone; it is waited for by its own pidfd, so no other
** child's status is ever taken; whatever happens to it, pool_join returns
** within its deadline, and every unfinished task is told its end by
** pool_read.
*/
#define _GNU_SOURCE
#include "pool.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fault.h"
#include "keeper.h"
#include "os.h"
#include "pool_private.h"
#include "wake.h"

#define ENTRIES_FEW ((size_t)2 << 20)   /* bytes; what is more: huge pages */
#define WAIT_PIDFD ((idtype_t)3)     /* P_PIDFD, which old headers lack */
#define KILL_AFTER (300 * OS_MS)    /* for a keeper to end when told to */
#define CREW_WAIT (600 * OS_MS)     /* for workers to follow a dead keeper */

/* All pools of this process that have a region: what a new keeper must let go
** of. A child of a fork inherits the list. */
static pool_t *pools;

static void enlist(pool_t *p)
{
    p->next = pools;
    pools = p;
}

static void strike_off(pool_t *p)
{
    pool_t **at = &pools;
    while (*at && *at != p)
        at = &(*at)->next;
    if (*at)
        *at = p->next;
}

/* --- keepers nobody waits for any more ---------------------------------- */

static struct stale { pid_t pid; int pidfd; } *stale;
static int stale_count, stale_room;

/* 1 when the child is reaped (by us or another), 0 when it still runs. */
static int reap(pid_t pid, int pidfd, int flags, int *status)
{
    siginfo_t info;
    int rc;
    info.si_pid = 0;
    do {
        rc = pidfd >= 0
                 ? waitid(WAIT_PIDFD, (id_t)pidfd, &info, WEXITED | flags)
                 : waitid(P_PID, (id_t)pid, &info, WEXITED | flags);
    } while (rc < 0 && errno == EINTR);
    *status = 0;
    if (rc == 0 && info.si_pid == 0)
        return 0;
    if (rc == 0 && info.si_code != CLD_EXITED)
        *status = info.si_status;   /* the signal */
    return 1;
}

static void reap_stale(void)
{
    int status;
    for (int i = 0; i < stale_count; i++)
        if (reap(stale[i].pid, stale[i].pidfd, WNOHANG, &status)) {
            os_close(&stale[i].pidfd);
            stale[i--] = stale[--stale_count];
        }
}

static void make_stale(pool_t *p)
{
    reap_stale();
    if (stale_count == stale_room) {
        int room = stale_room ? 2 * stale_room : 16;
        struct stale *more = realloc(stale, (size_t)room * sizeof *more);
        if (!more) {    /* its zombie goes when we do */
            os_close(&p->keeper_pidfd);
            return;
        }
        stale = more;
        stale_room = room;
    }
    stale[stale_count].pid = p->keeper;
    stale[stale_count++].pidfd = p->keeper_pidfd;
    p->keeper_pidfd = -1;
}

/* --- birth -------------------------------------------------------------- */

/* What must be closed in the parent once the keeper has it. */
typedef struct birth {
    int keeper_sock, keeper_crew, parent_pidfd;
} birth_t;

static int make_descriptors(pool_t *p, birth_t *b)
{
    region_t *r = p->r;
    int sock[2], crew[2], rc;
    if ((r->bell_fd = os_eventfd()) < 0)
        return r->bell_fd;
    if ((r->kick_fd = os_eventfd()) < 0)
        return r->kick_fd;
    if ((rc = os_socketpair(sock)) < 0)
        return rc;
    p->sock = sock[0];
    b->keeper_sock = sock[1];
    if ((rc = os_pipe(crew)) < 0)
        return rc;
    p->crew = crew[0];
    b->keeper_crew = r->crew_fd = crew[1];
    if ((p->epoll = os_epoll()) < 0)
        return p->epoll;
    if ((rc = os_epoll_add_edge(p->epoll, r->bell_fd, 'b')) < 0 ||
        (rc = os_epoll_add_edge(p->epoll, p->sock, 'k')) < 0)
        return rc;
    b->parent_pidfd = os_pidfd(p->owner);
    if (b->parent_pidfd == -EMFILE || b->parent_pidfd == -ENFILE)
        return b->parent_pidfd;
    return 0;
}

static size_t entries_size(const region_t *r)
{
    return r->segment_count * SEGMENT_CELLS * sizeof(entry_t);
}

/* The readers, and the entries behind them. */
static size_t tables_size(const region_t *r)
{
    return (r->slots_max + 1) * sizeof(reader_t) + entries_size(r);
}

static int make_tables(pool_t *p)
{
    region_t *r = p->r;
    heap_open(&p->heap, r);
    /* Large and mostly never touched: pages of their own, since malloc would
    ** clear what it has had before. */
    _Static_assert(sizeof(reader_t) % _Alignof(entry_t) == 0, "aligned");
    p->readers = os_unshared(tables_size(r));
    if (!p->readers)
        return -ENOMEM;
    p->entries = (entry_t *)(void *)(p->readers + r->slots_max + 1);
    if (entries_size(r) > ENTRIES_FEW)
        os_huge((char *)p->entries + ENTRIES_FEW,
                entries_size(r) - ENTRIES_FEW);
    p->funcs = calloc(16, sizeof *p->funcs);
    p->funcs_room = 16;
    p->funcs_count = 1;
    if (!p->funcs)
        return -ENOMEM;
    return board_open(&p->board, r);
}

static void unmap_tables(pool_t *p)
{
    if (p->readers)
        os_release(p->readers, tables_size(p->r));
    board_close(&p->board);
    p->entries = NULL;
    p->readers = NULL;
}

/* In the keeper: other pools of the parent are none of its business, and what
** it holds of them would keep them from noticing an end. Their tables, like
** those of its own, a child does not have: a mapping less makes each fork
** faster. */
static void leave_others(const pool_t *p, const birth_t *b)
{
    const int keep[] = { p->r->bell_fd, p->r->kick_fd, b->keeper_sock,
                         b->keeper_crew, b->parent_pidfd };
    os_close_others(keep, sizeof keep / sizeof *keep);
    for (pool_t *other = pools; other; other = other->next) {
        if (!other->r)
            continue;
        if (other != p)
            region_free(other->r);
    }
    pools = NULL;
    stale_count = 0;
}

static int fork_keeper(pool_t *p, const struct work *work, birth_t *b)
{
    sigset_t all, before;
    int rc = FAULT_ERRNO("new.fork");
    /* What is buffered now would be written by every child. */
    fflush(NULL);
    os_find_title();
    os_merge_free();
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t pid = rc < 0 ? (errno = -rc, -1) : fork();
    if (pid == 0) {
        leave_others(p, b);
        keeper_main(p->r, work, b->keeper_sock, b->parent_pidfd);
    }
    rc = pid < 0 ? -errno : 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    p->keeper = pid;
    if (rc == 0)
        p->keeper_pidfd = os_pidfd(pid);
    return rc;
}

static void close_descriptors(pool_t *p)
{
    int bell = p->r->bell_fd, kick = p->r->kick_fd;
    if (p->fds_lost)    /* these numbers may be somebody else's by now */
        return;
    os_close(&bell);
    os_close(&kick);
    os_close(&p->sock);
    os_close(&p->crew);
    os_close(&p->epoll);
    os_close(&p->keeper_pidfd);
}

/* Undoes whatever there is; also half of an opening. */
static void give_back(pool_t *p)
{
    if (!p->r)
        return;
    p->last = *pool_tally(p);
    strike_off(p);
    close_descriptors(p);
    heap_close(&p->heap);
    unmap_tables(p);
    free(p->funcs);
    free(p->withdrawn);
    p->funcs = NULL;
    p->withdrawn = NULL;
    p->funcs_count = p->withdrawn_count = 0;
    region_free(p->r);
    p->r = NULL;
}

int pool_open(pool_t *p, const settings_t *set, const struct work *work,
              char *error, size_t room)
{
    birth_t b = { -1, -1, -1 };
    memset(p, 0, sizeof *p);
    p->sock = p->crew = p->epoll = p->loop_epoll = p->keeper_pidfd = -1;
    p->owner = os_pid();
    reap_stale();
    p->r = region_new(set, error, room);
    if (!p->r)
        return -errno;
    p->r->cpus = (uint32_t)os_cpus();
    p->r->parent_pid = (int32_t)p->owner;
    p->slots_used = set->processes;
    p->cursor = POOL_NEW_ROUND;
    p->spin.ns = SPIN_MAX;
    enlist(p);
    int rc = make_descriptors(p, &b);
    const char *what = "cannot make descriptors";
    if (rc == 0 && (rc = make_tables(p)) < 0)
        what = "cannot make tables";
    region_seal(p->r);
    if (rc == 0 && (rc = fork_keeper(p, work, &b)) < 0)
        what = "cannot start the keeper: fork";
    os_close(&b.keeper_sock);
    os_close(&b.keeper_crew);
    os_close(&b.parent_pidfd);
    if (rc < 0) {
        snprintf(error, room, "%s: %s", what, strerror(-rc));
        give_back(p);
    }
    return rc;
}

/* --- the end ------------------------------------------------------------ */

void pool_close(pool_t *p)
{
    if (!p->r || p->closed)
        return;
    p->closed = 1;
    atomic_store(&p->r->closing, 1);
    kick_keeper(p->r);
}

void pool_terminate(pool_t *p)
{
    if (!p->r || p->terminated)
        return;
    p->terminated = 1;
    if (p->end == END_NONE)
        p->end = END_TERMINATED;
    p->kill_at = os_now() + KILL_AFTER;
    atomic_store(&p->r->terminating, 1);
    kick_keeper(p->r);
}

/* Killing the keeper is killing all: workers die with it. */
static void kill_keeper(pool_t *p)
{
    if (!p->gone)
        os_pidfd_kill(p->keeper_pidfd, p->keeper, SIGKILL);
}

void pool_break(pool_t *p, const char *why)
{
    if (p->end == END_NONE || p->end == END_CLOSED)
        pool_set_end(p, END_BROKEN, why, strlen(why));
    kill_keeper(p);
}

void pool_set_end(pool_t *p, enum pool_end end, const void *why, size_t size)
{
    char *copy = malloc(size + 1);
    if (copy) {
        memcpy(copy, why, size);
        copy[size] = '\0';
    }
    free(p->why);
    p->why = copy;
    p->why_size = copy ? size : 0;
    p->end = end;
}

/* The keeper's socket hung up: it is dead or dying. Reaps it, and says how
** the pool ended if it did not say so itself. */
static void keeper_gone(pool_t *p)
{
    char text[96];
    int status;
    uint32_t state = atomic_load(&p->r->state);
    p->gone = 1;
    reap(p->keeper, p->keeper_pidfd, 0, &status);
    p->gone = 2;
    if (state == KEEPER_DONE && (p->closed || p->terminated)) {
        if (p->end == END_NONE)
            p->end = END_CLOSED;
        return;
    }
    /* Its workers die with it; when they have, nobody writes any more. */
    if (state != KEEPER_BROKEN)
        os_wait_readable(&p->crew, 1, os_now() + CREW_WAIT);
    else
        pool_read_why(p);
    if (p->end != END_NONE)
        return;
    if (state == KEEPER_DONE) {
        /* It has seen our end of the socket close, and nobody closed it but
        ** the program. */
        p->fds_lost = 1;
        snprintf(text, sizeof text, "%s", POOL_FDS_LOST);
    } else if (status)
        snprintf(text, sizeof text, "the pool's keeper died (signal %d)",
                 status);
    else
        snprintf(text, sizeof text, "the pool's keeper died");
    pool_set_end(p, END_BROKEN, text, strlen(text));
}

enum pool_end pool_look(pool_t *p)
{
    if (p->r && !p->gone && os_hung_up(p->sock))
        keeper_gone(p);
    return p->end;
}

int pool_join(pool_t *p, uint64_t deadline)
{
    while (p->r && !p->gone) {
        uint64_t until = deadline;
        if (p->terminated && (!until || p->kill_at < until))
            until = p->kill_at;
        os_hold_signals();
        int rc = pool_stirred(p) ? -ECANCELED
                                 : os_wait_readable(&p->sock, 1, until);
        os_let_signals();
        if (rc < 0)
            return rc;
        if (rc > 0) {
            pool_look(p);
            continue;
        }
        uint64_t now = os_now();
        if (p->terminated && now >= p->kill_at) {
            kill_keeper(p);
            p->kill_at = UINT64_MAX;
        } else if (deadline && now >= deadline)
            return 0;
    }
    return 1;
}

void pool_release(pool_t *p)
{
    if (p->r && p->gone == 2 && p->all_read)
        give_back(p);
}

void pool_forget(pool_t *p)
{
    if (p->owner != os_pid())
        return;
    if (p->r) {
        pool_terminate(p);
        if (p->gone != 2)
            make_stale(p);
        give_back(p);
    }
    /* Kept until now: an event loop may still watch it. */
    os_close(&p->loop_epoll);
    free(p->why);
    p->why = NULL;
}

/* --- control ------------------------------------------------------------ */

int pool_resize(pool_t *p, uint32_t n)
{
    if (!p->r)
        return 0;
    if (n > p->r->slots_max)
        return -ENOSPC;
    if (n > p->slots_used)
        p->slots_used = n;
    atomic_store(&p->r->wanted, n);
    kick_keeper(p->r);
    return 0;
}

void pool_recycle(pool_t *p, uint32_t slot)
{
    region_t *r = p->r;
    if (!r)
        return;
    if (slot >= r->slots_max)
        atomic_fetch_add(&r->recycle_all, 1);
    else
        atomic_fetch_or(&r->replace[slot / 64], UINT64_C(1) << (slot % 64));
    kick_keeper(r);
}

const tally_t *pool_tally(pool_t *p)
{
    if (!p->r)
        return &p->last;
    for (int i = 0; i < REASONS_COUNT; i++)
        p->last.recycled[i] = atomic_load(&p->r->recycled[i]);
    p->last.retried = atomic_load(&p->r->retried);
    return &p->last;
}

uint64_t pool_bytes(const pool_t *p)
{
    return p->r ? p->heap.h_used : 0;
}

uint64_t pool_queued(const pool_t *p)
{
    return p->r ? board_count_queued(&p->board) : 0;
}
