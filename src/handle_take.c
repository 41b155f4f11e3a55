/*
** handle_take.c - what has arrived goes into the jobs' tables; failures and
** events go to the functions that core.open was given. Parent only.
**
** User code is not run here (but for what decoding needs): `failed` and
** `event` only note. An error of Lua's (memory) may leave at any line; the
** outcome in delivery is remembered, and delivered as failed by the next
** take, so that nobody waits for it for ever.
*/
#include "handle.h"

#include <stdio.h>
#include <string.h>

#include <lauxlib.h>

#include "codec.h"
#include "codec_scalar.h"

/* Stack slots of handle_take. JOB and RESULTS are those of the cell whose
** outcomes came last. */
enum { SELF = 1, JOBS, CALLS, FINISHED, JOB, RESULTS, TOP = RESULTS };

typedef struct take {
    lua_State *L;
    handle_t *h;
    uint64_t cell;              /* of JOB; NO_CELL: none */
    uint64_t tag;
    lua_Integer ended;          /* its tasks not yet taken off job.left */
    lua_Integer tasks;
} take_t;

/* --- jobs --------------------------------------------------------------- */

static void finish_job(lua_State *L)
{
    lua_pushvalue(L, JOB);
    lua_rawseti(L, FINISHED, (lua_Integer)lua_rawlen(L, FINISHED) + 1);
}

/* job.left -= ended; at 0 the job is complete. */
static void settle_left(take_t *t)
{
    lua_State *L = t->L;
    if (!t->ended || JOB_KIND(t->tag) != JOB_MAP)
        return;
    lua_pushliteral(L, "left");
    lua_pushliteral(L, "left");
    lua_rawget(L, JOB);
    lua_Integer left = lua_tointeger(L, -1) - t->ended;
    lua_pop(L, 1);
    lua_pushinteger(L, left);
    lua_rawset(L, JOB);
    t->ended = 0;
    if (left == 0)
        finish_job(L);
}

static void push_field(lua_State *L, int index, const char *name)
{
    lua_pushstring(L, name);
    lua_rawget(L, index);
}

/* JOB and RESULTS become those of the outcome's cell. */
static void turn_to(take_t *t, const outcome_t *o)
{
    lua_State *L = t->L;
    if (t->cell == o->cell)
        return;
    settle_left(t);
    t->cell = o->cell;
    t->tag = o->tag;
    t->ended = 0;
    lua_rawgeti(L, JOBS, (lua_Integer)o->cell + 1);
    lua_replace(L, JOB);
    if (JOB_KIND(o->tag) != JOB_CALL) {
        push_field(L, JOB, "results");
        lua_replace(L, RESULTS);
    }
}

/* The cell has all its outcomes: its index may be used again. */
static void turn_away(take_t *t)
{
    settle_left(t);
    lua_pushnil(t->L);
    lua_rawseti(t->L, JOBS, (lua_Integer)t->cell + 1);
    t->cell = NO_CELL;
}

/* --- failures ----------------------------------------------------------- */

/* The table of facts about the worker and its end. */
static void push_info(lua_State *L, const outcome_t *o)
{
    lua_createtable(L, 0, 5);
    if (o->pid) {
        lua_pushinteger(L, o->pid);
        lua_setfield(L, -2, "pid");
        lua_pushinteger(L, (lua_Integer)o->slot + 1);
        lua_setfield(L, -2, "worker");
        lua_pushinteger(L, o->attempt);
        lua_setfield(L, -2, "attempt");
    }
    if (o->signal) {
        lua_pushinteger(L, o->signal);
        lua_setfield(L, -2, "signal");
    } else if (o->kind == OUTCOME_LOST || o->kind == OUTCOME_EXIT) {
        lua_pushinteger(L, (int32_t)o->exitcode);
        lua_setfield(L, -2, "exitcode");
    }
}

/* Calls failed(job, index, kind, message, traceback, value, info). The
** message, traceback and value lie on the stack. */
static void call_failed(take_t *t, const outcome_t *o, uint32_t item,
                        const char *kind)
{
    lua_State *L = t->L;
    int base = lua_gettop(L) - 2;
    lua_rawgeti(L, CALLS, CALL_FAILED);
    lua_pushvalue(L, JOB);
    lua_pushinteger(L, JOB_BASE(o->tag) + item + 1);
    lua_pushstring(L, kind);
    for (int i = 0; i < 3; i++)
        lua_pushvalue(L, base + i);
    push_info(L, o);
    lua_call(L, 7, 0);
    lua_settop(L, base - 1);
}

/* Pushes message, traceback and value of an encoded error. */
static void push_encoded(lua_State *L, const unsigned char *bytes,
                         uint64_t size)
{
    int top = lua_gettop(L);
    int n = codec_decode(L, bytes, (size_t)size);
    if (n < 0)  /* the reason has become the message */
        n = 1;
    lua_settop(L, top + (n < 3 ? n : 3));
    if (!lua_isstring(L, top + 1)) {
        lua_settop(L, top);
        lua_pushliteral(L, "the task failed");
    }
    lua_settop(L, top + 3);
}

static void push_message(lua_State *L, const char *text)
{
    lua_pushstring(L, text);
    lua_pushnil(L);
    lua_pushnil(L);
}

static void describe_loss(const outcome_t *o, char *text, size_t room)
{
    int n = snprintf(text, room, "worker %u (pid %d) ", o->slot + 1,
                     (int)o->pid);
    if (n < 0 || (size_t)n >= room)
        return;
    text += n;
    room -= (size_t)n;
    const char *when = o->phase == DEATH_BEFORE_TASK
                           ? "before the task began, for the third time"
                           : "under the task";
    if (o->phase == DEATH_EXECUTED)
        snprintf(text, room, "executed another program under the task");
    else if (o->signal)
        snprintf(text, room, "was killed by signal %u (%s%s) %s", o->signal,
                 strsignal((int)o->signal),
                 o->phase == DEATH_MEMORY ? "; possibly out of memory" : "",
                 when);
    else
        snprintf(text, room, "exited with status %d %s",
                 (int)(int32_t)o->exitcode, when);
}

/* Pushes message, traceback and value; returns the kind. */
static const char *push_failure(take_t *t, const outcome_t *o)
{
    lua_State *L = t->L;
    char text[256];
    switch (o->kind) {
    case OUTCOME_ERROR:
        push_encoded(L, o->bytes, o->size);
        return "error";
    case OUTCOME_REFUSED:
        push_encoded(L, o->bytes, o->size);
        return "unserializable";
    case OUTCOME_STOPPED:
        push_encoded(L, o->bytes, o->size);
        lua_pushnil(L);
        lua_replace(L, -2);
        return "timelimit";
    case OUTCOME_EXIT:
        snprintf(text, sizeof text, "task called os.exit(%d)",
                 (int)(int32_t)o->exitcode);
        push_message(L, text);
        return "error";
    case OUTCOME_LOST:
        describe_loss(o, text, sizeof text);
        push_message(L, text);
        return "lost";
    case OUTCOME_TIMELIMIT:
        push_message(L, "time limit exceeded, and the task went on: its"
                        " worker was killed");
        return "timelimit";
    case OUTCOME_MEMORY:
        push_message(L, "the worker used more than twice maxmemoryperchild:"
                        " the task was stopped");
        return "memory";
    case OUTCOME_CANCELLED:
        push_message(L, "the task was cancelled");
        return "cancelled";
    default:
        return NULL;
    }
}

/* All tasks of an outcome fail in the same way. */
static void fail(take_t *t, const outcome_t *o)
{
    lua_State *L = t->L;
    for (uint32_t i = 0; i < o->count; i++) {
        if (o->kind == OUTCOME_ENDED) {
            int top = lua_gettop(L);
            handle_push_end(L, t->h);
            lua_settop(L, top + 4);
            const char *kind = lua_tostring(L, top + 1);
            call_failed(t, o, o->item + i, kind);
            lua_settop(L, top);
        } else {
            const char *kind = push_failure(t, o);
            call_failed(t, o, o->item + i, kind);
        }
    }
}

/* --- results ------------------------------------------------------------ */

/* The results of a call, on top of the stack, go into its job. */
static void store_call(lua_State *L, int n)
{
    for (int i = n - 1; i >= 0; i--)
        lua_rawseti(L, JOB, JOB_RESULTS + i);
    lua_pushinteger(L, n);
    lua_rawseti(L, JOB, JOB_STATE);
}

static void store_item(take_t *t, lua_Integer index)
{
    lua_State *L = t->L;
    if (JOB_KIND(t->tag) == JOB_MAP) {
        lua_rawseti(L, RESULTS, index);
        return;
    }
    if (lua_isnil(L, -1)) {
        lua_pop(L, 1);
        lua_pushlightuserdata(L, NULL);     /* core.NIL */
    }
    lua_rawseti(L, RESULTS, index);
    push_field(L, JOB, "arrived");
    lua_pushinteger(L, index);
    lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
    lua_pop(L, 1);
}

static void refuse(take_t *t, const outcome_t *o)
{
    lua_pushnil(t->L);
    lua_pushnil(t->L);
    call_failed(t, o, o->item, "unserializable");
}

static void store(take_t *t, const outcome_t *o)
{
    lua_State *L = t->L;
    int n = 1;
    if (!scalar_push(L, o->bytes, (size_t)o->size))
        n = codec_decode(L, o->bytes, (size_t)o->size);
    if (n < 0) {
        refuse(t, o);
        return;
    }
    if (JOB_KIND(o->tag) == JOB_CALL) {
        store_call(L, n);
        return;
    }
    lua_settop(L, TOP + 1);
    store_item(t, JOB_BASE(o->tag) + o->item + 1);
}

/* The results behind a first one of a map's chunk: the short way, in which a
** million items go. */
static void store_more(take_t *t, const outcome_t *first)
{
    lua_State *L = t->L;
    handle_t *h = t->h;
    lua_Integer base = JOB_BASE(first->tag) + 1;
    more_t more;
    while (pool_read_more(&h->pool, &more)) {
        h->pending.item = more.item;
        t->ended++;
        t->tasks++;
        if (!scalar_push(L, more.bytes, (size_t)more.size)) {
            outcome_t o = *first;
            o.item = more.item;
            o.bytes = more.bytes;
            o.size = more.size;
            store(t, &o);
            continue;
        }
        lua_rawseti(L, RESULTS, base + more.item);
    }
}

static void deliver(take_t *t, const outcome_t *o)
{
    lua_State *L = t->L;
    turn_to(t, o);
    t->ended += o->count;
    t->tasks += o->count;
    if (o->kind == OUTCOME_VALUE) {
        store(t, o);
        if (JOB_KIND(o->tag) == JOB_MAP && !o->over)
            store_more(t, o);
    } else
        fail(t, o);
    if (JOB_KIND(o->tag) == JOB_CALL) {
        push_field(L, JOB, "notify");
        if (lua_toboolean(L, -1))
            finish_job(L);
        lua_pop(L, 1);
    }
    if (o->over)
        turn_away(t);
}

/* --- events ------------------------------------------------------------- */

/* event(kind, time, worker, pid, generation, extra) */
static void tell_event(take_t *t, const outcome_t *o)
{
    lua_State *L = t->L;
    const record_event_t *e = &o->event;
    if (e->event >= EVENTS_COUNT ||
        lua_rawgeti(L, CALLS, CALL_EVENT) != LUA_TFUNCTION) {
        lua_settop(L, TOP);
        return;
    }
    lua_pushstring(L, event_names[e->event]);
    lua_pushnumber(L, (double)e->time / 1e9);
    lua_pushinteger(L, (lua_Integer)e->slot + 1);
    lua_pushinteger(L, e->pid);
    lua_pushinteger(L, (lua_Integer)e->generation + 1);
    lua_createtable(L, 0, 3);
    if (e->event == EVENT_EXIT) {
        lua_pushstring(L, e->reason < REASONS_COUNT
                              ? reason_names[e->reason] : "crash");
        lua_setfield(L, -2, "reason");
        if (e->signal) {
            lua_pushinteger(L, e->signal);
            lua_setfield(L, -2, "signal");
        }
    } else if (e->event == EVENT_FAILED) {
        if (e->complaint == COMPLAINT_ENCODED)
            push_encoded(L, o->bytes, o->size);
        else {
            lua_pushlstring(L, (const char *)o->bytes, (size_t)o->size);
            lua_pushnil(L);
            lua_pushnil(L);
        }
        lua_pop(L, 2);
        lua_setfield(L, -2, "error");
    }
    if (e->event >= EVENT_RETRY && e->attempt) {
        lua_pushinteger(L, e->attempt);
        lua_setfield(L, -2, "attempt");
    }
    lua_call(L, 6, 0);
    lua_settop(L, TOP);
}

/* --- taking ------------------------------------------------------------- */

/* What an error of Lua's cut off fails now. */
static void deliver_pending(take_t *t)
{
    outcome_t o = t->h->pending;
    if (!t->h->is_pending)
        return;
    if (o.kind != OUTCOME_EVENT) {
        lua_State *L = t->L;
        turn_to(t, &o);
        t->ended += o.count;
        for (uint32_t i = 0; i < o.count; i++) {
            push_message(L, "not enough memory to take the result in");
            call_failed(t, &o, o.item + i, "error");
        }
        if (JOB_KIND(o.tag) == JOB_CALL)
            finish_job(L);
        if (o.over)
            turn_away(t);
    }
    t->h->is_pending = 0;
}

/* handle:take() -> the number of tasks that ended */
int handle_take(lua_State *L)
{
    handle_t *h = handle_check(L);
    take_t t = { .L = L, .h = h, .cell = NO_CELL };
    outcome_t o;
    if (!h->pool.r)
        return lua_pushinteger(L, 0), 1;
    lua_settop(L, SELF);
    luaL_checkstack(L, 32, NULL);
    lua_getiuservalue(L, SELF, UV_JOBS);
    lua_getiuservalue(L, SELF, UV_CALLS);
    lua_rawgeti(L, CALLS, CALL_FINISHED);
    lua_settop(L, TOP);
    deliver_pending(&t);
    while (pool_read(&h->pool, &o)) {
        h->pending = o;
        h->is_pending = 1;
        if (o.kind == OUTCOME_EVENT)
            tell_event(&t, &o);
        else
            deliver(&t, &o);
        h->is_pending = 0;
    }
    settle_left(&t);
    pool_read_done(&h->pool);
    lua_pushinteger(L, t.tasks);
    return 1;
}

/* --- the end ------------------------------------------------------------ */

int handle_push_end(lua_State *L, handle_t *h)
{
    const pool_t *p = &h->pool;
    const char *why = p->why ? p->why : "the pool has ended";
    switch (p->end) {
    case END_INITIALIZER:
        lua_pushliteral(L, "initializer");
        push_message(L, why);
        return 4;
    case END_INITIALIZER_ENCODED:
        lua_pushliteral(L, "initializer");
        push_encoded(L, (const unsigned char *)why, p->why_size);
        return 4;
    case END_TERMINATED:
        lua_pushliteral(L, "terminated");
        push_message(L, "the pool was terminated");
        return 4;
    default:
        lua_pushliteral(L, "broken");
        push_message(L, why);
        return 4;
    }
}
