/*
** runner.h - tasks as Lua functions: the work_t of a worker that runs Lua.
**
** Made by the parent, before the fork, from what `core.open` was given; used
** by the keeper (once, to settle the inherited heap) and by workers. All Lua
** code of a worker runs in a thread of its own, made by the keeper: the
** parent's stack, in the middle of `core.open`, is never gone back to, so
** what its `<close>` variables hold is never closed in a worker.
*/
#ifndef PROCPOOL_RUNNER_H
#define PROCPOOL_RUNNER_H

#include <lua.h>

#include "worker.h"

#pragma GCC visibility push(hidden)

enum {
    RUNNER_PASSING = 8,         /* functions of running maps */
    RUNNER_KEPT = 256           /* those known for good: by id */
};

typedef struct runner {
    work_t work;
    lua_State *L;               /* the parent's, inherited */
    lua_State *T;               /* the tasks'; made by the keeper */
    worker_t *w;
    buffer_t *out;              /* the record of the task being run */
    int stage;                  /* runner.c */
    volatile sig_atomic_t armed;    /* a stop signal came during this task */
    int single;                 /* only the first result is wanted */
    uint64_t last;              /* id of the last cell's function, or 0 */
    int aged;                   /* the parent has made what there is old */
    int collector;              /* LUA_GCGEN or LUA_GCINC, in workers */
    /* In the registry; LUA_NOREF: none. */
    int prepare, start, stop, after, reseed, newerror;
    int thread;                 /* registry: T */
} runner_t;

/* Parent. Takes the functions prepare, start, stop, after, reseed, newerror of
** the table at `config`. */
void runner_open(runner_t *run, lua_State *L, int config);
/*
** Makes the collector generational, with everything that is there now old; a
** full collection. Lua's collector writes into every object it visits, so a
** process that collects ends up with a copy of all it has inherited; a
** generational one leaves old objects alone. The switch itself visits all, so
** it is made once: in the keeper, or, for a pool with `shared`, in the parent
** (`aged`), which then has no copy of its own either.
*/
void runner_age(lua_State *L);
/* Parent, after the fork: it needs none of them. */
void runner_release(runner_t *run, lua_State *L);

#pragma GCC visibility pop
#endif
