/*
** handle.h - an open pool as Lua sees it: procpool.Handle, the userdata whose
** methods lua/procpool/core_meta.lua describes.
**
** handle.c       opening, calls, chunks, control
** handle_func.c  functions that are sent
** handle_take.c  what has arrived goes into the jobs' tables
** handle_stats.c counters
*/
#ifndef PROCPOOL_HANDLE_H
#define PROCPOOL_HANDLE_H

#include <lua.h>

#include "pool.h"
#include "runner.h"

#pragma GCC visibility push(hidden)

#define RECENT_FUNCS 32

/*
** A call's job: [1] is the number of results, which follow; while there are
** none yet, -1 - ticket.
*/
enum { JOB_STATE = 1, JOB_RESULTS };

/* Whose outcome a cell's is; the low bits of its tag, the base above. */
enum job_kind { JOB_CALL, JOB_MAP, JOB_IMAP };
#define JOB_TAG(kind, base) ((uint64_t)(base) << 2 | (kind))
#define JOB_KIND(tag) ((enum job_kind)((tag) & 3))
#define JOB_BASE(tag) ((lua_Integer)((tag) >> 2))

/* User values of the handle. */
enum {
    UV_JOBS = 1,        /* cell index + 1 -> the job its outcomes go to */
    UV_FUNCS,           /* weak: function -> its FuncRef */
    UV_CALLS,           /* failed, event, finished: CALL_* */
    UV_LAST,            /* the function of the last call, if it is kept */
    UV_CLASS,           /* metatable of the jobs that submit makes */
    UV_N,               /* "n", ready for use */
    UV_COUNT = UV_N
};
enum { CALL_FAILED = 1, CALL_EVENT, CALL_FINISHED };

typedef struct handle {
    uint64_t magic;
    pool_t pool;
    runner_t runner;
    const void *last;           /* address of UV_LAST */
    uint32_t last_func;
    /* Messages of functions that are kept, to know one when it comes again
    ** from another closure; each holds a reference. */
    struct { uint32_t func; uint64_t hash; } recent[RECENT_FUNCS];
    /* The outcome in delivery: still set when the last one was cut off by an
    ** error of Lua's (memory), and then delivered as failed. */
    outcome_t pending;
    int is_pending;
} handle_t;

/* The handle at stack slot 1, of this process and usable, or an error. */
handle_t *handle_check(lua_State *L);
/* A deadline in seconds at `index` (nil: none) as the engine's. */
uint64_t handle_deadline(lua_State *L, int index);

/* core.open(config) -> Handle */
int handle_open(lua_State *L);
/* Makes the metatable. */
void handle_register(lua_State *L);

/* A function that is held for Lua; given back when it is collected. Its user
** value is the handle. */
typedef struct ref {
    handle_t *handle;
    uint32_t func;
    uint32_t kept;      /* the cache's: release does nothing */
} ref_t;

enum { FOUND, FULL, REFUSED };

/* The FuncRef at `index`, or an error. */
ref_t *handle_ref(lua_State *L, int index);
/* The function of a call, at `index`, with a reference for the caller in
** *func: FOUND; or FULL or REFUSED, and the reason pushed. */
int handle_func_of_call(lua_State *L, handle_t *h, int index, uint32_t *func);
void handle_register_refs(lua_State *L);

int handle_func(lua_State *L);      /* methods in files of their own */
int handle_release(lua_State *L);
int handle_take(lua_State *L);
int handle_stats(lua_State *L);
int handle_replaced(lua_State *L);
/* Pushes kind, message, traceback, value of a pool that is broken, or
** terminated; their number. */
int handle_push_end(lua_State *L, handle_t *h);

#pragma GCC visibility pop
#endif
