/*
** worker.h - one life of a worker: start, wait for its turn, claim cells, run
** their tasks, leave.
**
** The engine knows tasks as bytes in and bytes out; what it means to run one
** is a work_t, filled in by whoever embeds the engine (the Lua binding, the
** C tests).
**
** worker.c           the life
** worker_process.c   the process around it
*/
#ifndef PROCPOOL_WORKER_H
#define PROCPOOL_WORKER_H

#include <signal.h>

#include "buffer.h"
#include "outbox.h"
#include "region.h"
#include "spin.h"

#pragma GCC visibility push(hidden)

/* Asks a worker to interrupt its task: real-time, so unlikely to be used. */
#define STOP_SIGNAL (SIGRTMAX - 2)

typedef struct task {
    const unsigned char *func;  /* message of the function */
    uint64_t func_size, func_id;
    const unsigned char *args;  /* message of the arguments */
    uint64_t args_size;
    uint64_t number;            /* among all tasks of the pool, from 1 */
    uint64_t timeout;           /* ns; 0: none */
    uint32_t attempt;
    int refused;                /* args is the text why it cannot travel */
} task_t;

struct worker;
typedef struct work {
    void *context;
    /* In the keeper, once, before any worker: settle the inherited heap. What
    ** it returns is the work of all workers. */
    const struct work *(*settle)(void *context);
    /* In the worker, before its first task: 0, or -1 and a complaint. */
    int (*start)(void *context, struct worker *w, buffer_t *complaint);
    /* The tasks of a claimed cell: as long as worker_next says so, it runs
    ** w->w_task (worker_enter just before user code, worker_return after it),
    ** writes what came of it to w->w_out.record, and calls worker_done. */
    void (*run)(void *context, struct worker *w);
    /* After each task: 1 = the worker is to leave (recycleif). */
    int (*after)(void *context, struct worker *w);
    /* The finalizer. */
    void (*stop)(void *context, struct worker *w);
    /* In a signal handler: make the running task raise soon. */
    void (*interrupt)(void *context);
} work_t;

/* The worker's private half. */
typedef struct worker {
    region_t *w_region;
    slot_t *w_slot;
    const work_t *w_work;
    uint32_t w_index, w_generation;
    int32_t w_pid;
    outbox_t w_out;
    cell_t *w_cell;             /* being run, or NULL */
    uint32_t w_first, w_items;  /* of it: to run from here, up to there */
    uint32_t w_item;            /* index of the current task */
    uint64_t w_segment;         /* that its cell is in */
    task_t w_task;
    const unsigned char *w_at, *w_end;  /* the frames of the tasks to come */
    enum reason w_reason;       /* to leave before the next task */
    uint32_t w_serial;          /* of the task last entered */
    uint32_t w_entered;         /* the current task reached user code */
    uint32_t w_hungry;          /* it was idle before this claim */
    uint64_t w_tasks;           /* ended in this life */
    uint64_t w_limit;           /* of tasks; 0: none */
    uint64_t w_forked;          /* ns */
    uint64_t w_age;             /* ns: its limit; 0: none */
    uint64_t w_old;             /* ns: time to leave; 0: never */
    uint64_t w_memory_limit;
    uint64_t w_memory_known, w_memory_anon, w_memory_faults;
    uint64_t w_notified;        /* ns, the parent was last woken */
    spin_t w_spin;
    uint32_t w_alone;           /* cells in a row: see choose_policy */
    int w_batch;                /* this process is scheduled as batch */
    volatile sig_atomic_t w_term, w_stop;  /* set by signal handlers */
    uint32_t w_disowned;        /* this is a child that a task forked */
    uint32_t w_recycle;         /* the task asked to be the last */
} worker_t;

/* The worker that this process is, or NULL. */
extern worker_t *worker_current;

/* In the keeper, once: what every worker inherits ready-made. The keeper has
** all signals blocked and never calls exit(), so it does nothing there. */
void worker_prepare(void);
/* In a fresh child of the keeper; never returns. `keeper` is its pid. */
_Noreturn void worker_main(region_t *r, uint32_t slot, uint32_t generation,
                           const work_t *work, pid_t keeper);

/* The life without the process around it (for tests with threads): returns
** why the worker leaves. */
void worker_open(worker_t *w, region_t *r, uint32_t slot, uint32_t generation,
                 const work_t *work);
enum reason worker_serve(worker_t *w);
/* The initializer: 0, or -1 and why is in the slot's complaint. */
int worker_start(worker_t *w);
/* The process ends by exit(code): its initializer's failure, or its task's
** outcome. */
void worker_exited(worker_t *w, int32_t code);

/* After so many tasks of a worker its slot's next life is started; 0: as soon
** as the worker itself, since lives are that short. */
static inline uint64_t worker_ahead(const settings_t *set)
{
    uint64_t least = (uint64_t)((double)set->maxtasks * (1 - set->jitter));
    return set->maxtasks <= 16 ? 0 : least / 2;
}

/* For work->run. The next task of the cell is in w->w_task, and an empty
** record in w->w_out.record: 1; or 0: the cell is over, or the rest of it is
** for another worker. */
int worker_next(worker_t *w);
/* User code begins. Without it a task has not begun: nobody limits its time,
** and it does not count against maxtasks. */
void worker_enter(worker_t *w);
/* User code is over. Does not return in a child that the task forked and that
** came back here. */
void worker_return(const worker_t *w);
/* The record is the task's outcome: VALUE, ERROR, REFUSED or STOPPED. */
void worker_done(worker_t *w, enum record_kind kind);
/* The reason why the running task is to stop, or REASON_NONE. */
enum reason worker_stop_reason(const worker_t *w);

#pragma GCC visibility pop
#endif
