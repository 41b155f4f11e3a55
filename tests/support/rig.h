/*
** rig.h - a pool without Lua: trivial tasks, a ledger in shared memory of
** what ran, and a table of what the parent was told about it.
**
** Tasks are numbered by rig.next from 0 (their id); a cell holds consecutive
** ones. The ledger is written by workers, the outcomes by the parent.
*/
#ifndef PROCPOOL_RIG_H
#define PROCPOOL_RIG_H

#include "os.h"
#include "pool.h"
#include "worker.h"
#include "check.h"

enum { RIG_TASKS = 200000, RIG_LIVES = 100000 };

enum op {
    OP_SQUARE,      /* result: a * a */
    OP_SLEEP,       /* a ms; stops when interrupted */
    OP_STUBBORN,    /* a ms, whatever interrupts it */
    OP_TIDY,        /* until interrupted, then a ms more, then a result */
    OP_HOLD,        /* until gate[a] is open */
    OP_KILL,        /* kills itself with signal a, in attempts 1..b */
    OP_KILL_EARLY,  /* the same before it begins, in lives 1..b of this task */
    OP_EXIT,        /* exit(a) */
    OP_EXIT_NOW,    /* _exit(a) */
    OP_ERROR,       /* raises */
    OP_BIG,         /* a result of `a` bytes */
    OP_REFUSE,      /* never begins: a REFUSED record */
    OP_EXEC,        /* executes sleep */
    OP_ORPHAN,      /* leaves a background process of its own session */
    OP_FORK,        /* a child that comes back as if it were the worker */
    OP_CLOSE_ALL,   /* closes every descriptor above 2 */
    OP_MEMORY,      /* touches a MiB, keeps it */
    OP_RECYCLE      /* asks to be its worker's last */
};

typedef struct job {
    uint32_t op, id;
    uint64_t a, b;
} job_t;

typedef struct life_log {
    int32_t pid;
    uint32_t slot, generation, tasks;
    uint64_t ready_at, first_at;    /* ns; first task */
} life_log_t;

/* Shared by all processes. */
typedef struct ledger {
    _Atomic uint32_t started[RIG_TASKS], finished[RIG_TASKS];
    _Atomic uint32_t early[RIG_TASKS];  /* reached before it began */
    _Atomic int32_t pid[RIG_TASKS];     /* of the last worker */
    _Atomic uint32_t gate[16];
    _Atomic uint32_t lives;             /* initializers begun */
    _Atomic uint32_t inits, stops;      /* ended well; finalizers begun */
    _Atomic uint32_t running, most;     /* tasks at a time */
    _Atomic int32_t orphan;
    life_log_t life[RIG_LIVES];
} ledger_t;

/* How initializers behave, from the life `from` (counted over the pool, from
** 1) to the life `to`. */
enum init { INIT_FINE, INIT_RAISE, INIT_KILL, INIT_EXIT, INIT_HANG,
            INIT_EXEC };

typedef struct seen {
    uint8_t kind, count;        /* outcomes of this task: must become 1 */
    uint32_t attempt;
    uint32_t signal, exitcode, phase;
    int32_t pid;
    uint64_t value, at;         /* ns */
} seen_t;

typedef struct rig {
    pool_t pool;
    settings_t set;
    work_t work;
    ledger_t *ledger;
    seen_t *seen;
    enum init init;
    uint32_t init_from, init_to, init_ms, stop_ms;
    uint32_t init_odd_ms;       /* of the 1st, 3rd ... life; 0: init_ms */
    uint32_t retries;           /* of the tasks posted from now on */
    uint64_t timeout, grace;    /* ns, the same */
    uint32_t next;              /* id */
    uint64_t events[EVENTS_COUNT];
    record_event_t last_event[EVENTS_COUNT];
    uint32_t func;
} rig_t;

/* A rig whose settings may still be changed; then start it. */
rig_t *rig_new(uint32_t processes);
void rig_start(rig_t *g);
/* Posts n jobs (their ids are filled in) as one cell; its ticket. */
int64_t rig_cell(rig_t *g, job_t *jobs, uint32_t n);
/* n equal jobs, one to a cell; the id of the first. */
uint32_t rig_post(rig_t *g, enum op op, uint64_t a, uint64_t b, uint32_t n);
/* n equal jobs in one cell; the id of the first. */
uint32_t rig_chunk(rig_t *g, enum op op, uint64_t a, uint64_t b, uint32_t n);
/* Takes in what has arrived; how many outcomes. */
uint32_t rig_take(rig_t *g);
/* Takes in until every task has its outcome, or fails after so many ms. */
void rig_finish(rig_t *g, uint64_t ms);
/* The same until this task has its outcome. */
void rig_await(rig_t *g, uint32_t id, uint64_t ms);
/* Takes in until `x` holds. */
#define RIG_SOON(g, x, ms)                                                 \
    do {                                                                   \
        uint64_t until_ = check_now_ms() + check_slow(ms);                 \
        while (rig_take(g), !(x)) {                                        \
            if (check_now_ms() > until_) {                                 \
                rig_show(g);                                               \
                check_fail(__FILE__, __LINE__, #x " within " #ms " ms");   \
            }                                                              \
            check_nap();                                                   \
        }                                                                  \
    } while (0)
/* Every task posted has exactly one outcome, ran no more often than it may,
** and those with a result ran to their end. */
void rig_check_ledger(const rig_t *g);
/* A task that must still work. */
void rig_probe(rig_t *g);
/* close, take in, join; the pool must have ended in order. Ends the rig. */
void rig_close(rig_t *g);
void rig_terminate(rig_t *g);
/* After a pool that broke, or was left otherwise. */
void rig_drop(rig_t *g);
void rig_open_gate(rig_t *g, uint32_t gate);
pid_t rig_pid(const rig_t *g, uint32_t slot);   /* 0: none */
uint32_t rig_ready(const rig_t *g);     /* slots with a worker */
int rig_idle(const rig_t *g, uint32_t slot);    /* it sleeps */
uint64_t rig_recycled(rig_t *g, enum reason reason);
/* What the region says, for whoever reads a failure. */
void rig_show(const rig_t *g);

/* The rig's work, for tests that run workers as threads. */
extern const work_t rig_work;

#endif
