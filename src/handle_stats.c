/*
** handle_stats.c - handle:stats(): counters of the engine and one row per
** worker. Parent only; reads what keeper and workers publish in their slots,
** and /proc for what the kernel knows.
*/
#include "handle.h"

#include <lauxlib.h>

#include "os.h"

static void set_integer(lua_State *L, const char *name, uint64_t value)
{
    lua_pushinteger(L, (lua_Integer)value);
    lua_setfield(L, -2, name);
}

static void set_number(lua_State *L, const char *name, double value)
{
    lua_pushnumber(L, value);
    lua_setfield(L, -2, name);
}

static double seconds_since(uint64_t now, uint64_t then)
{
    return now > then ? (double)(now - then) / 1e9 : 0;
}

/* Is a process of the slot on its way, or did it leave for being idle? */
static int is_starting(const slot_t *s)
{
    uint32_t turn = atomic_load(&s->turn);
    uint64_t life = atomic_load(&s->life[turn % LIVES_MAX]);
    return LIFE_GENERATION(life) == turn && LIFE_PHASE(life) != PHASE_NONE;
}

enum state { BUSY, IDLE, STARTING, ASLEEP, STATES };
static const char *const state_names[STATES] = { "busy", "idle", "starting",
                                                 "asleep" };

static enum state state_of(const region_t *r, uint32_t slot)
{
    const slot_t *s = &r->slots[slot];
    uint32_t next;
    if (!atomic_load(&s->pid))
        return is_starting(s) ? STARTING : ASLEEP;
    return board_owned(r, slot, atomic_load(&s->generation), &next) ? BUSY
                                                                    : IDLE;
}

/* Has the slot's worker entered the task it is at? What run and started say
** before it stores `begun` is of the cell before. */
static int has_begun(const region_t *r, uint32_t slot)
{
    const slot_t *s = &r->slots[slot];
    uint32_t next;
    const cell_t *cell = board_owned(r, slot, atomic_load(&s->generation),
                                     &next);
    return cell && atomic_load(&s->begun) == cell->position + 1 &&
           RUN_STATE(atomic_load(&s->run)) != RUN_IDLE;
}

/* Pushes a worker's row; what it is doing. */
static enum state push_row(lua_State *L, const region_t *r, uint32_t slot,
                           uint64_t now)
{
    enum state state = state_of(r, slot);
    const slot_t *s = &r->slots[slot];
    int32_t pid = atomic_load(&s->pid);
    lua_createtable(L, 0, 9);
    set_integer(L, "id", slot + 1);
    if (pid)    /* none yet: not 0, which kill() takes for everybody */
        set_integer(L, "pid", (uint64_t)pid);
    set_integer(L, "generation", (uint64_t)atomic_load(&s->generation) + 1);
    lua_pushstring(L, state_names[state]);
    lua_setfield(L, -2, "state");
    set_integer(L, "tasks", atomic_load(&s->tasks));
    set_number(L, "age", pid ? seconds_since(now, atomic_load(&s->born)) : 0);
    set_integer(L, "memory", pid ? os_private_memory(pid) : 0);
    set_number(L, "cpu", pid ? os_cpu_seconds(pid) : 0);
    if (state == BUSY && has_begun(r, slot))
        set_number(L, "running_for",
                   seconds_since(now, atomic_load(&s->started)));
    return state;
}

static void push_recycled(lua_State *L, const tally_t *tally)
{
    lua_createtable(L, 0, REASON_CLOSE);
    for (int i = 0; i < REASON_CLOSE; i++)
        set_integer(L, reason_names[i], tally->recycled[i]);
}

static void push_bytes(lua_State *L, const pool_t *p)
{
    lua_createtable(L, 0, 3);
    set_integer(L, "sent", p->sent);
    set_integer(L, "received", p->received);
    set_integer(L, "shared", pool_bytes(p));
}

int handle_replaced(lua_State *L)
{
    const tally_t *tally = pool_tally(&handle_check(L)->pool);
    uint64_t sum = 0;
    for (int i = 0; i < REASON_CLOSE; i++)
        sum += tally->recycled[i];
    lua_pushinteger(L, (lua_Integer)sum);
    return 1;
}

int handle_stats(lua_State *L)
{
    handle_t *h = handle_check(L);
    pool_t *p = &h->pool;
    uint64_t queued = pool_queued(p), now = os_now();
    uint32_t in[STATES] = { 0 }, workers = 0;
    lua_createtable(L, 0, 16);
    push_recycled(L, pool_tally(p));
    lua_setfield(L, -2, "recycled");
    push_bytes(L, p);
    lua_setfield(L, -2, "bytes");
    lua_newtable(L);
    for (uint32_t i = 0; p->r && i < p->slots_used; i++) {
        if (i >= atomic_load(&p->r->wanted) &&
            !atomic_load(&p->r->slots[i].pid))
            continue;
        in[push_row(L, p->r, i, now)]++;
        lua_rawseti(L, -2, ++workers);
    }
    lua_setfield(L, -2, "workers");
    set_integer(L, "busy", in[BUSY]);
    set_integer(L, "idle", in[IDLE]);
    set_integer(L, "queued", queued);
    set_integer(L, "running", p->unfinished > queued ? p->unfinished - queued
                                                     : 0);
    set_integer(L, "retried", p->last.retried);
    return 1;
}
