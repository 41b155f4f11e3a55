/*
** handle.c - opens pools, queues calls and chunks, and controls: see
** handle.h. Parent only; every method refuses in another process.
**
** Invariant: what is queued is encoded before the board is touched, so an
** error in the encoding, or a call of this pool from inside it, leaves
** nothing half done. What Lua's own memory error can leak on its way out is
** one block of the region, until the pool is over.
*/
#include "handle.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <lauxlib.h>

#include "codec.h"
#include "codec_format.h"
#include "codec_scalar.h"
#include "os.h"

#define MAGIC UINT64_C(0x70726f63706f6f6c)
#define FRAME 4     /* bytes before an item's message: see worker.c */

static char handle_meta;    /* registry key */

/* --- the userdata ------------------------------------------------------- */

handle_t *handle_check(lua_State *L)
{
    handle_t *h = lua_touserdata(L, 1);
    if (!h || lua_rawlen(L, 1) < sizeof *h || h->magic != MAGIC) {
        luaL_argerror(L, 1, "procpool.Handle expected");
        __builtin_unreachable();    /* it raised */
    }
    if (h->pool.owner != os_pid())
        luaL_error(L, "this pool belongs to process %d, not to its child %d",
                   (int)h->pool.owner, (int)os_pid());
    return h;
}

uint64_t handle_deadline(lua_State *L, int index)
{
    if (lua_isnoneornil(L, index))
        return 0;
    double seconds = luaL_checknumber(L, index);
    return seconds <= 0 ? 1 : (uint64_t)(seconds * 1e9) + 1;
}

static uint64_t nanoseconds(double seconds)
{
    double ns = ceil(seconds * 1e9);
    return ns >= 1 ? (uint64_t)ns : 0;
}

static int handle_gc(lua_State *L)
{
    handle_t *h = lua_touserdata(L, 1);
    if (h->magic == MAGIC)
        pool_forget(&h->pool);
    h->magic = 0;
    return 0;
}

/* --- opening ------------------------------------------------------------ */

static double option(lua_State *L, const char *name)
{
    lua_getfield(L, 1, name);
    double v = lua_isboolean(L, -1) ? lua_toboolean(L, -1)
                                    : luaL_optnumber(L, -1, 0);
    lua_pop(L, 1);
    return v;
}

static uint64_t whole(lua_State *L, const char *name)
{
    lua_getfield(L, 1, name);
    lua_Integer v = luaL_optinteger(L, -1, 0);
    lua_pop(L, 1);
    return v > 0 ? (uint64_t)v : 0;
}

static void read_settings(lua_State *L, settings_t *set)
{
    memset(set, 0, sizeof *set);
    set->processes = (uint32_t)whole(L, "processes");
    set->minprocesses = (uint32_t)whole(L, "minprocesses");
    set->maxtasks = whole(L, "maxtasks");
    set->maxmemory = whole(L, "maxmemory");
    uint64_t retries = whole(L, "retries");
    set->retries = retries < UINT32_MAX ? (uint32_t)retries : UINT32_MAX;
    set->maxage = nanoseconds(option(L, "maxage"));
    set->idletimeout = nanoseconds(option(L, "idletimeout"));
    set->inittimeout = nanoseconds(option(L, "inittimeout"));
    set->timeout = nanoseconds(option(L, "timeout"));
    set->grace = nanoseconds(option(L, "grace"));
    set->jitter = option(L, "jitter");
    set->events = option(L, "events") != 0;
    set->log = (uint32_t)option(L, "log");
    lua_getfield(L, 1, "seed");
    set->seeded = !lua_isnil(L, -1);
    lua_getfield(L, 1, "stop");
    set->has_finalizer = !lua_isnil(L, -1);
    lua_getfield(L, 1, "name");
    const char *name = luaL_optstring(L, -1, "pool");
    strncpy(set->name, name, sizeof set->name - 1);
    lua_pop(L, 3);
}

/* User values of the handle on top of the stack. */
static void make_tables(lua_State *L)
{
    static const char *const calls[] = { "failed", "event", "finished" };
    lua_newtable(L);
    lua_setiuservalue(L, -2, UV_JOBS);
    lua_newtable(L);
    lua_createtable(L, 0, 1);
    lua_pushliteral(L, "k");
    lua_setfield(L, -2, "__mode");
    lua_setmetatable(L, -2);
    lua_setiuservalue(L, -2, UV_FUNCS);
    lua_createtable(L, 3, 0);
    for (int i = 0; i < 3; i++) {
        lua_getfield(L, 1, calls[i]);
        lua_rawseti(L, -2, i + 1);
    }
    lua_setiuservalue(L, -2, UV_CALLS);
    lua_pushliteral(L, "n");
    lua_setiuservalue(L, -2, UV_N);
}

int handle_open(lua_State *L)
{
    settings_t set;
    char error[256];
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    read_settings(L, &set);
    handle_t *h = lua_newuserdatauv(L, sizeof *h, UV_COUNT);
    memset(h, 0, sizeof *h);
    make_tables(L);
    runner_open(&h->runner, L, 1);
    /* What is garbage now must be finalized here, not in every worker. */
    lua_getfield(L, 1, "share");
    h->runner.aged = lua_toboolean(L, -1);
    if (h->runner.aged)
        runner_age(L);
    else
        lua_gc(L, LUA_GCCOLLECT);
    lua_pop(L, 1);
    int rc = pool_open(&h->pool, &set, &h->runner.work, error, sizeof error);
    runner_release(&h->runner, L);
    if (rc < 0)
        return luaL_error(L, "%s", error);
    h->magic = MAGIC;
    lua_rawgetp(L, LUA_REGISTRYINDEX, &handle_meta);
    lua_setmetatable(L, -2);
    return 1;
}

/* --- queueing ----------------------------------------------------------- */

/* The text on top of the stack becomes nil, kind, text. */
static int push_refusal(lua_State *L, const char *kind)
{
    lua_pushnil(L);
    lua_pushstring(L, kind);
    lua_rotate(L, -3, 2);
    return -1;
}

static int refuse_text(lua_State *L, const char *kind, const char *text)
{
    lua_pushstring(L, text);
    return push_refusal(L, kind);
}

/* Why nothing can be queued; NULL when it can. */
static const char *refusal(const pool_t *p)
{
    if (p->terminated || p->end == END_TERMINATED)
        return "terminated";
    if (p->end == END_NONE && p->r && !p->gone)
        return p->closed ? "closed" : NULL;
    return p->end == END_CLOSED ? "closed" : "broken";
}

/* timeout, grace, retries at index, index + 1, index + 2. */
static void read_limits(lua_State *L, int index, const handle_t *h,
                        post_t *post)
{
    const settings_t *set = &h->pool.r->set;
    post->timeout = set->timeout;
    post->grace = set->grace;
    post->retries = set->retries;
    if (!lua_isnoneornil(L, index))
        post->timeout = nanoseconds(luaL_checknumber(L, index));
    if (!lua_isnoneornil(L, index + 1))
        post->grace = nanoseconds(luaL_checknumber(L, index + 1));
    if (!lua_isnoneornil(L, index + 2)) {
        lua_Integer n = luaL_checkinteger(L, index + 2);
        post->retries = n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
    }
}

/* Fills in the frame before a message that ends at the buffer's end: its size
** and whether it is a refusal's text. See next_frame in worker.c. */
static int close_frame(buffer_t *b, size_t start, unsigned refused)
{
    uint64_t size = b->used - start - FRAME;
    uint64_t wide = size << 1 | refused;
    if (wide < UINT32_MAX) {
        uint32_t narrow = (uint32_t)wide;
        memcpy(b->data + start, &narrow, FRAME);
        return 0;
    }
    uint32_t mark = UINT32_MAX;
    if (b->room - b->used < 8 && b->grow(b, 8) < 0)
        return -1;
    memmove(b->data + start + FRAME + 8, b->data + start + FRAME,
            (size_t)size);
    memcpy(b->data + start, &mark, 4);
    memcpy(b->data + start + 4, &wide, 8);
    b->used += 8;
    return 0;
}

/* Posts what a draft holds, for the job at stack slot `job`; the ticket, or
** -1 and a refusal. */
static int64_t post_draft(lua_State *L, handle_t *h, draft_t *d, post_t *post,
                          int job)
{
    pool_t *p = &h->pool;
    uint64_t index;
    if (!p->r)      /* something that encoding ran has ended the pool */
        return refuse_text(L, refusal(p), "the pool has ended");
    post->args = d->d_block;
    post->small = d->buffer.data;
    post->args_size = d->buffer.used;
    int64_t ticket = pool_post(p, post, &index);
    if (ticket < 0) {
        draft_drop(d);
        return refuse_text(L, "full", "too many tasks are queued");
    }
    lua_getiuservalue(L, 1, UV_JOBS);
    lua_pushvalue(L, job);
    lua_rawseti(L, -2, (lua_Integer)index + 1);
    return ticket;
}

/* How many arguments the table at `index` lists. */
static lua_Integer count_args(lua_State *L, int index)
{
    lua_Integer n;
    if (lua_isnil(L, index))
        return 0;
    lua_pushliteral(L, "n");
    if (lua_rawget(L, index) == LUA_TNIL)
        n = luaL_len(L, index);
    else
        n = luaL_checkinteger(L, -1);
    lua_pop(L, 1);
    return n;
}

/* Pushes the n arguments listed by the table at `index`. */
static int push_args(lua_State *L, int index, lua_Integer n)
{
    if (n < 0 || n > 1000000 || !lua_checkstack(L, (int)n + 32))
        luaL_error(L, "too many arguments");
    for (lua_Integer i = 1; i <= n; i++)
        lua_rawgeti(L, index, i);
    return (int)n;
}

/*
** Queues a call of the function at stack slot `f` with the `count` arguments
** listed in the next one; the cell's outcome goes to the job at `job`. Its ticket,
** or -1 with nil, kind and text pushed.
*/
static int64_t post_call(lua_State *L, handle_t *h, int job, int f,
                         lua_Integer count, post_t *post)
{
    unsigned char small[CELL_INLINE];
    draft_t d;
    int rc = handle_func_of_call(L, h, f, &post->func);
    if (rc != FOUND)
        return push_refusal(L, rc == FULL ? "full" : "unserializable");
    int n = push_args(L, f + 1, count);
    draft_open(&d, &h->pool, small, sizeof small);
    d.buffer.used = FRAME;
    rc = codec_encode(L, lua_gettop(L) - n + 1, n, "args", &d.buffer);
    if (rc == 0 && close_frame(&d.buffer, 0, 0) < 0) {
        lua_pushliteral(L, "no room for the arguments");
        rc = -1;
    }
    int64_t ticket = rc == 0 ? post_draft(L, h, &d, post, job) : -1;
    pool_func_release(&h->pool, post->func);
    if (rc < 0) {
        draft_drop(&d);
        push_refusal(L, d.d_full ? "full" : "unserializable");
    }
    return ticket;
}

/* handle:call(job, f, args, timeout, grace, retries, awaited) -> ticket */
static int handle_call(lua_State *L)
{
    handle_t *h = handle_check(L);
    post_t post = { .items = 1, .tag = JOB_TAG(JOB_CALL, 0),
                    .awaited = (uint32_t)lua_toboolean(L, 8) };
    const char *no = refusal(&h->pool);
    if (no)
        return refuse_text(L, no, no), 3;
    read_limits(L, 5, h, &post);
    lua_settop(L, 4);
    int64_t ticket = post_call(L, h, 2, 3, count_args(L, 4), &post);
    if (ticket < 0)
        return 3;
    lua_pushinteger(L, ticket);
    return 1;
}

/* Whether what has come back is better taken in now, and its cells used again,
** than left for the board to grow. Not for an event loop: its descriptor tells
** of what is there to be taken. Nor inside a delivery. */
static int is_time_to_take(const handle_t *h, int64_t ticket)
{
    return ticket % SEGMENT_CELLS == SEGMENT_CELLS - 1 && !h->is_pending &&
           h->pool.loop_epoll < 0;
}

/*
** handle:submit(f, args, awaited) -> job, is it time to take: handle:call of a
** new job, without options. Nil if args is no plain list, for somebody else to
** look at.
*/
static int handle_submit(lua_State *L)
{
    lua_Integer count = 0;
    handle_t *h = handle_check(L);
    post_t post = { .items = 1, .tag = JOB_TAG(JOB_CALL, 0),
                    .awaited = (uint32_t)lua_toboolean(L, 4) };
    const char *no = refusal(&h->pool);
    if (no)
        return refuse_text(L, no, no), 3;
    lua_settop(L, 3);
    read_limits(L, 4, h, &post);
    if (!lua_isnil(L, 3)) {
        if (!lua_istable(L, 3))
            return 0;
        lua_getiuservalue(L, 1, UV_N);
        if (lua_rawget(L, 3) != LUA_TNIL)
            return 0;
        lua_settop(L, 3);
        count = luaL_len(L, 3);
    }
    lua_createtable(L, 2, 0);
    lua_getiuservalue(L, 1, UV_CLASS);
    lua_setmetatable(L, 4);
    int64_t ticket = post_call(L, h, 4, 2, count, &post);
    if (ticket < 0)
        return 3;
    lua_pushinteger(L, -1 - ticket);
    lua_rawseti(L, 4, JOB_STATE);
    lua_settop(L, 4);
    lua_pushboolean(L, is_time_to_take(h, ticket));
    return 2;
}

/* handle:class(metatable): of the jobs that submit makes. */
static int handle_class(lua_State *L)
{
    handle_check(L);
    lua_settop(L, 2);
    lua_setiuservalue(L, 1, UV_CLASS);
    return 0;
}

/* Encodes one item of a chunk, on top of the stack: 0; -1: no room, with the
** reason pushed. What cannot travel becomes a frame with the reason; so does what
** finds no room though it has all there is (`alone`). */
static int put_item(lua_State *L, draft_t *d, int spread, int alone)
{
    buffer_t *b = &d->buffer;
    size_t start = b->used, size;
    int top = lua_gettop(L), n = 1, first = top, rc = -1;
    if (b->room - b->used < FRAME && b->grow(b, FRAME) < 0) {
        lua_pushliteral(L, "no room for the items");
        return -1;
    }
    b->used += FRAME;
    if (!spread)
        rc = codec_encode(L, first, 1, "args", b);
    else if (lua_istable(L, top)) {
        n = push_args(L, top, count_args(L, top));
        rc = codec_encode(L, top + 1, n, "args", b);
    } else
        lua_pushfstring(L, "args: a table of arguments expected, got %s",
                        luaL_typename(L, top));
    if (rc == 0) {
        lua_settop(L, top - 1);
        return close_frame(b, start, 0);
    }
    if (d->d_full && !alone)
        return -1;
    d->d_full = 0;
    const char *text = lua_tolstring(L, -1, &size);
    b->used = start + FRAME;
    if (b->room - b->used < size && b->grow(b, size) < 0)
        return -1;
    memcpy(b->data + b->used, text, size);
    b->used += size;
    rc = close_frame(b, start, 1);
    lua_settop(L, top - 1);
    return rc;
}

/* The same for a scalar where there is room: 1; or 0: it is for put_item. */
static inline int put_scalar_item(lua_State *L, buffer_t *b)
{
    if (b->room - b->used < FRAME + SCALAR_ROOM)
        return 0;
    uint8_t *start = b->data + b->used + FRAME;
    uint8_t *end = scalar_write(L, -1, start);
    if (!end)
        return 0;
    uint32_t size = (uint32_t)(end - start) << 1;
    memcpy(b->data + b->used, &size, FRAME);
    b->used = (size_t)(end - b->data);
    lua_pop(L, 1);
    return 1;
}

static enum job_kind kind_of_job(lua_State *L, int index)
{
    lua_getfield(L, index, "kind");
    const char *kind = lua_tostring(L, -1);
    int imap = kind && strcmp(kind, "imap") == 0;
    lua_pop(L, 1);
    return imap ? JOB_IMAP : JOB_MAP;
}

/* handle:chunk(job, ref, items, i, j, base, spread, timeout, grace, retries) */
static int handle_chunk(lua_State *L)
{
    handle_t *h = handle_check(L);
    unsigned char small[CELL_INLINE];
    draft_t d;
    lua_Integer i = luaL_checkinteger(L, 5), j = luaL_checkinteger(L, 6);
    lua_Integer base = luaL_checkinteger(L, 7);
    int spread = lua_toboolean(L, 8);
    int alone = i == j && h->pool.unfinished == 0;
    luaL_argcheck(L, i <= j && j - i < ITEMS_MAX, 6, "bad range");
    post_t post = { .items = (uint32_t)(j - i + 1), .single = 1,
                    .tag = JOB_TAG(kind_of_job(L, 2), base) };
    post.prompt = JOB_KIND(post.tag) == JOB_IMAP;
    const char *no = refusal(&h->pool);
    if (no)
        return refuse_text(L, no, no), 3;
    post.func = handle_ref(L, 3)->func;
    read_limits(L, 9, h, &post);
    lua_settop(L, 4);
    int plain = !luaL_getmetafield(L, 4, "__index");
    lua_settop(L, 4);
    draft_open(&d, &h->pool, small, sizeof small);
    if (j > i)
        d.buffer.grow(&d.buffer, (size_t)(j - i + 1) * 12 + SCALAR_ROOM);
    for (lua_Integer k = i; k <= j && !d.d_full; k++) {
        if (plain)
            lua_rawgeti(L, 4, k);
        else
            lua_geti(L, 4, k);
        if (spread || !put_scalar_item(L, &d.buffer))
            put_item(L, &d, spread, alone);
    }
    if (d.d_full) {
        draft_drop(&d);
        if (!lua_isstring(L, -1))
            lua_pushliteral(L, "no room for the items");
        return push_refusal(L, "full"), 3;
    }
    int64_t ticket = post_draft(L, h, &d, &post, 2);
    if (ticket < 0)
        return 3;
    lua_pushinteger(L, ticket);
    return 1;
}

/* --- control ------------------------------------------------------------ */

static int nothing(lua_State *L)
{
    (void)L;
    return 0;
}

/* After a signal: Lua runs, so that a hook set by its handler (Ctrl-C in the
** lua program) can raise. */
static void let_hooks_run(lua_State *L)
{
    lua_pushcfunction(L, nothing);
    lua_call(L, 0, 0);
}

/* Before a sleep, signals being held: a handler may have set a hook since Lua
** last ran. 1: it raised, the error is on the stack. */
static int run_hooks(void *context)
{
    lua_State *L = context;
    if (!lua_gethookmask(L))
        return 0;
    lua_pushcfunction(L, nothing);
    return lua_pcall(L, 0, 0, 0) != LUA_OK;
}

static void watch_hooks(lua_State *L, pool_t *p)
{
    luaL_checkstack(L, 8, NULL);
    p->stirred = run_hooks;
    p->stirred_context = L;
}

static int handle_wait(lua_State *L)
{
    handle_t *h = handle_check(L);
    uint64_t deadline = handle_deadline(L, 2);
    int rc;
    watch_hooks(L, &h->pool);
    while ((rc = pool_wait(&h->pool, deadline)) == -EINTR)
        let_hooks_run(L);
    if (rc == -ECANCELED)
        return lua_error(L);
    lua_pushboolean(L, rc > 0);
    return 1;
}

static int handle_join(lua_State *L)
{
    handle_t *h = handle_check(L);
    uint64_t deadline = handle_deadline(L, 2);
    int rc;
    watch_hooks(L, &h->pool);
    while ((rc = pool_join(&h->pool, deadline)) == -EINTR)
        let_hooks_run(L);
    if (rc == -ECANCELED)
        return lua_error(L);
    lua_pushboolean(L, rc > 0);
    return 1;
}

static int handle_cancel(lua_State *L)
{
    handle_t *h = handle_check(L);
    uint64_t ticket = (uint64_t)luaL_checkinteger(L, 2);
    switch (pool_cancel(&h->pool, ticket, !lua_toboolean(L, 3))) {
    case 1:
        lua_pushliteral(L, "queued");
        return 1;
    case 2:
        lua_pushliteral(L, "running");
        return 1;
    default:
        return 0;
    }
}

static int handle_running(lua_State *L)
{
    handle_t *h = handle_check(L);
    uint64_t ticket = (uint64_t)luaL_checkinteger(L, 2);
    lua_pushboolean(L, pool_running(&h->pool, ticket));
    return 1;
}

static int handle_room(lua_State *L)
{
    handle_t *h = handle_check(L);
    lua_pushinteger(L, h->pool.r ? (lua_Integer)board_room(&h->pool.board)
                                 : 0);
    return 1;
}

static int handle_unfinished(lua_State *L)
{
    lua_pushinteger(L, (lua_Integer)handle_check(L)->pool.unfinished);
    return 1;
}

static int handle_close(lua_State *L)
{
    pool_close(&handle_check(L)->pool);
    return 0;
}

static int handle_terminate(lua_State *L)
{
    pool_terminate(&handle_check(L)->pool);
    return 0;
}

/* handle:state() -> state, and of a broken pool kind, message, ... */
static int handle_state(lua_State *L)
{
    handle_t *h = handle_check(L);
    pool_t *p = &h->pool;
    enum pool_end end = pool_look(p);
    if (end >= END_BROKEN) {
        lua_pushliteral(L, "broken");
        return 1 + handle_push_end(L, h);
    }
    if (p->terminated)
        lua_pushliteral(L, "terminated");
    else if (p->closed)
        lua_pushliteral(L, "closed");
    else
        lua_pushliteral(L, "running");
    return 1;
}

/* handle:fileno(stir): readable at once if `stir`. */
static int handle_fileno(lua_State *L)
{
    handle_t *h = handle_check(L);
    int fd = pool_fileno(&h->pool);
    if (fd < 0)
        return luaL_fileresult(L, 0, NULL);
    if (lua_toboolean(L, 2) && h->pool.r)
        os_ring(h->pool.r->bell_fd);
    lua_pushinteger(L, fd);
    return 1;
}

static int handle_resize(lua_State *L)
{
    handle_t *h = handle_check(L);
    int rc = pool_resize(&h->pool, (uint32_t)luaL_checkinteger(L, 2));
    lua_pushboolean(L, rc == 0);
    return 1;
}

static int handle_recycle(lua_State *L)
{
    handle_t *h = handle_check(L);
    lua_Integer id = luaL_optinteger(L, 2, SLOTS_MAX + 1);
    pool_recycle(&h->pool, (uint32_t)(id - 1));
    return 0;
}

static const luaL_Reg methods[] = {
    { "call", handle_call },       { "submit", handle_submit },
    { "class", handle_class },     { "func", handle_func },
    { "release", handle_release }, { "chunk", handle_chunk },
    { "take", handle_take },       { "wait", handle_wait },
    { "cancel", handle_cancel },   { "running", handle_running },
    { "room", handle_room },       { "unfinished", handle_unfinished },
    { "close", handle_close },     { "terminate", handle_terminate },
    { "join", handle_join },       { "state", handle_state },
    { "fileno", handle_fileno },   { "resize", handle_resize },
    { "recycle", handle_recycle }, { "stats", handle_stats },
    { "replaced", handle_replaced },
    { NULL, NULL }
};

void handle_register(lua_State *L)
{
    lua_createtable(L, 0, 3);
    lua_pushcfunction(L, handle_gc);
    lua_setfield(L, -2, "__gc");
    lua_pushliteral(L, "procpool.Handle");
    lua_setfield(L, -2, "__name");
    luaL_newlib(L, methods);
    lua_setfield(L, -2, "__index");
    lua_rawsetp(L, LUA_REGISTRYINDEX, &handle_meta);
    handle_register_refs(L);
}
