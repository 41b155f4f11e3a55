/*
** pool.h - the parent's half of the engine: opens a pool, posts cells, takes
** outcomes in, waits, ends the pool.
**
** Run by the parent alone, in whatever thread calls it; never by a signal
** handler. Knows bytes and cells, nothing of Lua. Blocks only in pool_wait,
** pool_join and, once the keeper has died, for a moment in pool_look.
**
** Reading order: post_t and outcome_t (what goes in, what comes out), pool_t
** (what the parent remembers of each cell), then the functions.
*/
#ifndef PROCPOOL_POOL_H
#define PROCPOOL_POOL_H

#include "board.h"
#include "heap.h"
#include "outbox.h"
#include "region.h"
#include "spin.h"

#pragma GCC visibility push(hidden)

/*
** A function's message in the region. It lives as long as somebody refers to
** it: each unfinished cell, and whoever was given it by pool_func_new. Index
** 0 of pool_t.funcs is never used.
*/
typedef struct func {
    block_t block;
    uint64_t size;
    uint64_t id;                /* FUNC_*, what workers know it by */
    uint32_t refs;              /* 0: this place is free */
    uint32_t next_free;
} func_t;

/* How long a worker is to keep a function it has loaded: once (id 0) not at
** all; even ids for one submission of many cells; odd ones for good. */
enum func_use { FUNC_ONCE, FUNC_SUBMISSION, FUNC_KEPT };

/* What the parent remembers of a cell; found by the cell's index. */
typedef struct entry {
    uint64_t position;
    block_t args;               /* none: they are in the cell */
    uint32_t func;
    uint32_t items, left;       /* tasks; those without an outcome */
    uint64_t tag;               /* the caller's own */
    uint8_t live;               /* posted and not over */
    uint8_t cancelled;          /* by pool_cancel(all): whatever comes of it */
} entry_t;

/* A cell to be posted. */
typedef struct post {
    uint32_t func;              /* index; the cell takes a reference of its own */
    uint32_t items;             /* 1..ITEMS_MAX */
    uint32_t single;            /* only the first result of each is wanted */
    uint32_t prompt;            /* each outcome is waited for, not the last */
    uint32_t awaited;           /* the caller will do nothing but wait for it */
    uint64_t tag;
    block_t args;               /* becomes the cell's; or none, then: */
    const void *small;          /* up to CELL_INLINE bytes, copied */
    uint64_t args_size;
    uint64_t timeout, grace;    /* ns; timeout 0: none */
    uint32_t retries;
} post_t;

/* What became of one task, or of several (count > 1) in the same way. */
enum outcome_kind {
    OUTCOME_VALUE,      /* bytes: its results */
    OUTCOME_ERROR,      /* it raised; bytes: the encoded error */
    OUTCOME_REFUSED,    /* its values cannot travel; bytes: the same */
    OUTCOME_STOPPED,    /* it raised what its time limit told it to; the same */
    OUTCOME_EXIT,       /* it called exit(exitcode) */
    OUTCOME_CANCELLED,
    OUTCOME_LOST,       /* signal or exitcode, phase */
    OUTCOME_TIMELIMIT,  /* killed at its limit */
    OUTCOME_MEMORY,
    OUTCOME_ENDED,      /* the pool ended under it: see pool_t.end */
    OUTCOME_EVENT       /* no task: event, bytes: complaint */
};
typedef struct outcome {
    enum outcome_kind kind;
    uint64_t cell;              /* index */
    uint64_t tag;
    uint32_t item, count;       /* the first task's index in the cell */
    uint32_t over;              /* the cell has all its outcomes now */
    uint32_t attempt, slot, signal, exitcode, phase;
    int32_t pid;
    const unsigned char *bytes; /* valid until the next pool_read */
    uint64_t size;
    record_event_t event;
} outcome_t;

/* How the pool ended, if it did. */
enum pool_end {
    END_NONE,
    END_CLOSED,         /* orderly */
    END_TERMINATED,
    END_BROKEN,         /* pool_t.why, a text */
    END_INITIALIZER,    /* the same, of an initializer */
    END_INITIALIZER_ENCODED     /* pool_t.why is an encoded error */
};

/* The reader of one outbox. */
typedef struct reader {
    uint64_t at;                /* next byte */
    uint64_t released;          /* head, as the writer knows it */
    uint64_t cell, position;    /* of the records that come next */
    uint32_t item;
    uint32_t attempt, known;    /* known: cell and item mean something */
    int32_t pid;
} reader_t;

/* Counters that outlive the region. */
typedef struct tally {
    uint64_t recycled[REASONS_COUNT];
    uint64_t retried;
} tally_t;

struct work;    /* what the workers are to do: work_t, see worker.h */

typedef struct pool {
    region_t *r;                /* NULL: over, everything is given back */
    board_t board;
    heap_t heap;
    pid_t owner, keeper;
    int sock;                   /* hangs up when the keeper is gone */
    int crew;                   /* hangs up when every process is gone */
    int keeper_pidfd;
    int epoll;                  /* bell and sock, edge-triggered */
    int loop_epoll;             /* the same, level-triggered: fileno */
    entry_t *entries;           /* by the cell's index */
    reader_t *readers;          /* slots_max + 1, the last is the keeper's */
    uint32_t slots_used;        /* the highest `wanted` so far */
    uint32_t cursor;            /* the reader that is being read */
    uint64_t cursor_end;        /* its tail when that began */
    func_t *funcs;
    uint32_t funcs_count, funcs_room, funcs_free;
    uint64_t next_func_id;
    uint64_t *withdrawn;        /* cells whose tasks were taken back */
    uint32_t withdrawn_count, withdrawn_room;
    uint64_t unfinished;        /* tasks */
    uint64_t number;            /* tasks posted so far */
    uint64_t sent, received;    /* bytes */
    spin_t spin;
    int (*stirred)(void *);     /* asked before a sleep, signals being held: */
    void *stirred_context;      /* not 0: it is not to sleep */
    enum pool_end end;
    char *why;                  /* malloc'd */
    size_t why_size;
    uint32_t closed, terminated;
    uint32_t fds_lost;          /* the program has closed our descriptors */
    uint64_t kill_at;           /* ns: a keeper that has not gone is killed */
    uint32_t gone;              /* keeper: 1 hung up, 2 reaped */
    uint32_t all_read;          /* the end has been told to every cell */
    uint32_t last_round;        /* of reading, after the end, is done */
    uint64_t sweep;             /* next cell to be told */
    tally_t last;
    struct pool *next;          /* of all pools of this process */
} pool_t;

/* Starts a pool's processes. 0, or a negative errno and a text. */
int pool_open(pool_t *p, const settings_t *set, const struct work *work,
              char *error, size_t room);
/* Gives everything back without waiting: terminates what still runs. */
void pool_forget(pool_t *p);

/*
** A buffer that begins in memory of the caller and moves into the region's
** heap when it grows out of it. `draft_take` ends it: the block, or none.
*/
typedef struct draft {
    buffer_t buffer;            /* first, so that grow finds the rest */
    pool_t *d_pool;
    block_t d_block;
    int d_full;                 /* growth failed for want of room */
} draft_t;
void draft_open(draft_t *d, pool_t *p, void *small, size_t size);
void draft_drop(draft_t *d);

/* Takes a draft with a function's message. Its index with one reference, or
** -ENOMEM (nothing taken). */
int64_t pool_func_new(pool_t *p, draft_t *d, enum func_use use);
void pool_func_release(pool_t *p, uint32_t func);

/* Queues a cell. Its position (the ticket) >= 0 and its index, or -ENOSPC: the
** board is full, or -ENOMEM; then post->args is still the caller's. */
int64_t pool_post(pool_t *p, const post_t *post, uint64_t *index);

/* The cell of a ticket if it is not over, or NO_CELL. */
uint64_t pool_find(const pool_t *p, uint64_t ticket);
/* Is one of its tasks running, or has been? */
int pool_running(const pool_t *p, uint64_t ticket);
/* `all`: the running task is to be stopped too, else only those not begun
** are. 0 it is over, 1 it was queued, 2 it was running. */
int pool_cancel(pool_t *p, uint64_t ticket, int all);

/* The next outcome: 1, or 0 when all that had arrived is read. */
int pool_read(pool_t *p, outcome_t *out);
/* After a pool_read that gave a task's result and did not end its cell: the
** results that follow it in the same outbox, of the same cell, one by one, as
** long as they are results and not the cell's last. 1, or 0: pool_read. */
typedef struct more {
    const unsigned char *bytes;
    uint64_t size;
    uint32_t item;
} more_t;
int pool_read_more(pool_t *p, more_t *out);
/* After the last pool_read of a round: room for writers, bell for loops; an
** ended and joined pool gives its memory back. */
void pool_read_done(pool_t *p);

/* Sleeps until there is something to read, or the deadline (0: none).
** 1 there is; 0 there is not; -EINTR a signal was handled; -ECANCELED by
** p->stirred. */
int pool_wait(pool_t *p, uint64_t deadline);

void pool_close(pool_t *p);
void pool_terminate(pool_t *p);
/* After one of these: 1 every process is gone and reaped, 0 the deadline
** came first, -EINTR, -ECANCELED. */
int pool_join(pool_t *p, uint64_t deadline);
/* Looks whether the keeper still lives; how the pool has ended. */
enum pool_end pool_look(pool_t *p);

int pool_resize(pool_t *p, uint32_t n);         /* -ENOSPC: n is too many */
void pool_recycle(pool_t *p, uint32_t slot);    /* slots_max: all */
/* For event loops: >= 0, or negative errno. */
int pool_fileno(pool_t *p);
/* Queued tasks. */
uint64_t pool_queued(const pool_t *p);
const tally_t *pool_tally(pool_t *p);
/* Bytes of the region in use for arguments and functions. */
uint64_t pool_bytes(const pool_t *p);

#pragma GCC visibility pop
#endif
