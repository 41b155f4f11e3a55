/*
** runner.c - runs tasks as Lua functions; see runner.h. Keeper (settle) and
** workers (all else).
**
** Invariants: user code runs between worker_enter and worker_return and
** nowhere else (but for what decoding needs: modules to be required and
** constructors of reduced values); every call of Lua is protected; what a
** task did to hooks and the collector is undone before the next.
**
** T's stack: HANDLER, BODY (the loop over a cell's tasks), CACHE (functions:
** see place_of), TROUBLE (the last error: text, traceback, value); above them a
** task's own.
*/
#include "runner.h"

#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>

#include <lauxlib.h>
#include <lualib.h>

#include "arena.h"
#include "bind_interrupt.h"
#include "codec.h"
#include "codec_scalar.h"

enum { HANDLER = 1, BODY, CACHE, TROUBLE, TOP = TROUBLE };
enum { TEXT = 1, TRACEBACK, VALUE };

/* How far the task has come; tells what an error means. */
enum stage { LOADING, RUNNING, ENDING };

/* The runner of this process: set in the keeper, inherited by its workers. */
static runner_t *self;
static char stop_key;   /* registry: the error that interrupted the task */

/* --- errors ------------------------------------------------------------- */

/* Leaves out the library's own frames, which come last: runner's body. */
static void push_traceback(lua_State *L)
{
    luaL_traceback(L, L, NULL, 1);
    const char *text = lua_tostring(L, -1);
    const char *last = strrchr(text, '\n');
    if (L == self->T && last && strstr(last, "[C]: in ")) {
        lua_pushlstring(L, text, (size_t)(last - text));
        lua_remove(L, -2);
    }
}

static int call_tostring(lua_State *L)
{
    luaL_tolstring(L, 1, NULL);
    return 1;
}

/* What the error value at `index` says, without trusting it. Pushes it. */
static void push_text(lua_State *L, int index)
{
    int type = lua_type(L, index);
    index = lua_absindex(L, index);
    if (type == LUA_TSTRING || type == LUA_TNUMBER) {
        lua_pushvalue(L, index);
        lua_tostring(L, -1);
        return;
    }
    if (luaL_getmetafield(L, index, "__tostring") != LUA_TNIL) {
        lua_pop(L, 1);
        /* procpool's own error objects: their message, not their traceback */
        if (type == LUA_TTABLE && lua_getmetatable(L, index)) {
            lua_pushliteral(L, "__name");
            lua_rawget(L, -2);
            const char *name = lua_tostring(L, -1);
            int own = name && strcmp(name, "procpool.Error") == 0;
            lua_pop(L, 2);
            if (own) {
                lua_pushliteral(L, "message");
                if (lua_rawget(L, index) == LUA_TSTRING)
                    return;
                lua_pop(L, 1);
            }
        }
        lua_pushcfunction(L, call_tostring);
        lua_pushvalue(L, index);
        if (lua_pcall(L, 1, 1, 0) == LUA_OK && lua_isstring(L, -1))
            return;
        lua_pop(L, 1);
    }
    lua_pushfstring(L, "(error object is a %s value)", luaL_typename(L, index));
}

static void set_trouble(lua_State *L, int what)
{
    lua_rawseti(L, -2, what);
}

static char trouble_key;    /* registry: T's TROUBLE */

/* The message handler: notes text, traceback and value. */
static int note_trouble(lua_State *L)
{
    lua_rawgetp(L, LUA_REGISTRYINDEX, &trouble_key);
    push_text(L, 1);
    set_trouble(L, TEXT);
    push_traceback(L);
    set_trouble(L, TRACEBACK);
    lua_pushvalue(L, 1);
    set_trouble(L, VALUE);
    lua_pushvalue(L, 1);
    return 1;
}

/* After a status that came without the handler: memory, or trouble in it. */
static void note_status(lua_State *T, int status)
{
    if (status != LUA_ERRMEM && status != LUA_ERRERR)
        return;
    const char *text = lua_tostring(T, -1);
    lua_pushstring(T, text ? text : "error in error handling");
    lua_rawseti(T, TROUBLE, TEXT);
    lua_pushliteral(T, "");
    lua_rawseti(T, TROUBLE, TRACEBACK);
    lua_pushnil(T);
    lua_rawseti(T, TROUBLE, VALUE);
}

/* Its text, and why the value does not come with it: the reason on top. */
static void push_text_without_value(lua_State *T)
{
    const char *reason = lua_tostring(T, -1), *path = "error[3]";
    size_t skip = strlen(path);
    if (reason && strncmp(reason, path, skip) == 0)
        reason += skip;
    lua_pushvalue(T, 3);
    lua_pushfstring(T, " (the value cannot travel: value%s)",
                    reason ? reason : "");
    lua_concat(T, 2);
}

/* Encodes the trouble: with its value, else without, else its text alone. */
static int encode_trouble(lua_State *T)
{
    buffer_t *out = lua_touserdata(T, 1);
    lua_rawgetp(T, LUA_REGISTRYINDEX, &trouble_key);
    for (int i = TEXT; i <= VALUE; i++)
        lua_rawgeti(T, 2, i);
    if (codec_encode(T, 3, 3, "error", out) == 0)
        return 0;
    push_text_without_value(T);
    lua_replace(T, 3);
    lua_settop(T, 4);
    lua_pushnil(T);
    if (codec_encode(T, 3, 3, "error", out) == 0)
        return 0;
    lua_settop(T, 3);
    size_t size;
    const char *text = lua_tolstring(T, 3, &size);
    lua_pushlstring(T, text, size < 2000 ? size : 2000);
    codec_encode(T, 4, 1, "error", out);
    return 0;
}

static void write_trouble(lua_State *T, buffer_t *out)
{
    size_t used = out->used;
    lua_pushcfunction(T, encode_trouble);
    lua_pushlightuserdata(T, out);
    if (lua_pcall(T, 1, 0, 0) != LUA_OK) {
        out->used = used;
        lua_pop(T, 1);
    }
}

/* Calls what lies on T below `args` arguments. 0, or -1 and the trouble. */
static int call(lua_State *T, int args, int results)
{
    int status = lua_pcall(T, args, results, HANDLER);
    if (status == LUA_OK)
        return 0;
    note_status(T, status);
    lua_pop(T, 1);
    return -1;
}

/* --- one task ----------------------------------------------------------- */

/* Where the cache has the function with this id: the id, and behind it the
** function. */
static int place_of(uint64_t id)
{
    uint64_t place = id & 1 ? RUNNER_PASSING + id / 2 % RUNNER_KEPT
                            : id / 2 % RUNNER_PASSING;
    return (int)(2 * place + 1);
}

/* What cannot travel, in either direction: the record is the reason, which is
** on top of the stack. */
static enum record_kind refuse(lua_State *L)
{
    size_t size;
    const char *text = lua_tolstring(L, -1, &size);
    self->out->used = 0;
    lua_pushlstring(L, text, size < 16000 ? size : 16000);
    codec_encode(L, lua_gettop(L), 1, "error", self->out);
    return RECORD_REFUSED;
}

/* Body's upvalues. */
enum { BODY_CACHE = 1, BODY_LAST };

/* Pushes the function with this id, if the cache has it: 1. */
static int push_cached(lua_State *L, uint64_t id)
{
    const int cache = lua_upvalueindex(BODY_CACHE);
    lua_rawgeti(L, cache, place_of(id));
    int known = (uint64_t)lua_tointeger(L, -1) == id;
    lua_pop(L, 1);
    if (known)
        lua_rawgeti(L, cache, place_of(id) + 1);
    return known;
}

/* The function in slot 1 is the one with this id. */
static void remember(lua_State *L, uint64_t id)
{
    const int cache = lua_upvalueindex(BODY_CACHE), place = place_of(id);
    lua_pushinteger(L, 0);  /* memory may be short half-way */
    lua_rawseti(L, cache, place);
    lua_pushvalue(L, 1);
    lua_rawseti(L, cache, place + 1);
    lua_pushinteger(L, (lua_Integer)id);
    lua_rawseti(L, cache, place);
}

/* Puts the cell's function into slot 1, from the cache if it is known: 1; or 0
** and the reason. */
static int push_function(runner_t *run, lua_State *L)
{
    const task_t *t = &run->w->w_task;
    if (t->func_id && t->func_id == run->last) {
        lua_pushvalue(L, lua_upvalueindex(BODY_LAST));
        return 1;
    }
    if (!t->func_id || !push_cached(L, t->func_id)) {
        if (codec_decode(L, t->func, (size_t)t->func_size) < 0)
            return 0;
        lua_settop(L, 1);
        if (t->func_id)
            remember(L, t->func_id);
    }
    run->last = t->func_id;
    lua_pushvalue(L, 1);
    lua_replace(L, lua_upvalueindex(BODY_LAST));
    return 1;
}

/* Pushes the task's arguments; how many, or -1 and the reason. */
static inline int push_arguments(lua_State *L, const task_t *t)
{
    if (t->refused) {
        lua_pushlstring(L, (const char *)t->args, (size_t)t->args_size);
        return -1;
    }
    if (scalar_push(L, t->args, (size_t)t->args_size))
        return 1;
    return codec_decode(L, t->args, (size_t)t->args_size);
}

/* Encodes the results, the values above the function. */
static inline enum record_kind save(runner_t *run, lua_State *L)
{
    buffer_t *out = run->out;
    if (run->single && out->room >= SCALAR_ROOM) {
        uint8_t *end = scalar_write(L, 2, out->data);
        if (end) {
            out->used = (size_t)(end - out->data);
            return RECORD_VALUE;
        }
    }
    if (codec_encode(L, 2, lua_gettop(L) - 1, "result", out) < 0)
        return refuse(L);
    return RECORD_VALUE;
}

static void reseed(runner_t *run, lua_State *L)
{
    lua_rawgeti(L, LUA_REGISTRYINDEX, run->reseed);
    lua_pushinteger(L, (lua_Integer)run->w->w_task.number);
    lua_call(L, 1, 0);
}

/* One task from its bytes to its record's. The function lies in slot 1. */
static enum record_kind run_task(runner_t *run, lua_State *L)
{
    worker_t *w = run->w;
    run->stage = LOADING;
    lua_settop(L, 1);
    lua_pushvalue(L, 1);
    int args = push_arguments(L, &w->w_task);
    if (args < 0)
        return refuse(L);
    if (w->w_region->set.seeded)
        reseed(run, L);
    run->stage = RUNNING;
    worker_enter(w);
    lua_call(L, args, run->single ? 1 : LUA_MULTRET);
    worker_return(w);
    run->stage = ENDING;
    return save(run, L);
}

/* After each task: its output goes out, an interrupt that came too late for it
** is forgotten. */
static inline void tidy_task(runner_t *run, lua_State *T)
{
    if (run->armed) {
        run->armed = 0;
        interrupt_disarm(T);
        lua_pushnil(T);
        lua_rawsetp(T, LUA_REGISTRYINDEX, &stop_key);
    }
    if (__fpending(stdout))
        fflush(stdout);
}

/* After a cell: also what its tasks did to hooks and to the collector. */
static void tidy(runner_t *run, lua_State *T)
{
    tidy_task(run, T);
    if (lua_gethookmask(T))
        lua_sethook(T, NULL, 0, 0);
    if (!lua_gc(T, LUA_GCISRUNNING))
        lua_gc(T, LUA_GCRESTART);
    lua_gc(T, run->collector, 0, 0, 0);
}

/* The cell's tasks, until they are over or one raises. */
static int body(lua_State *L)
{
    runner_t *run = self;
    worker_t *w = run->w;
    int loaded = 0;
    while (worker_next(w)) {
        run->stage = LOADING;
        loaded = loaded || push_function(run, L);
        enum record_kind kind = loaded ? run_task(run, L) : refuse(L);
        tidy_task(run, L);
        worker_done(w, kind);
        if (!loaded)
            lua_settop(L, 0);
    }
    return 0;
}

/* Is the trouble's value the error that was raised to interrupt the task? */
static int was_interrupted(lua_State *T)
{
    lua_rawgetp(T, LUA_REGISTRYINDEX, &stop_key);
    lua_rawgeti(T, TROUBLE, VALUE);
    int same = !lua_isnil(T, -1) && lua_rawequal(T, -1, -2);
    lua_pop(T, 2);
    return same;
}

/* A task raised; its record's kind. */
static enum record_kind task_failed(runner_t *run, lua_State *T, int status)
{
    enum record_kind kind = RECORD_ERROR;
    note_status(T, status);
    if (run->stage == RUNNING) {
        worker_return(run->w);
        if (was_interrupted(T))
            kind = RECORD_STOPPED;
    }
    run->stage = ENDING;
    run->out->used = 0;
    write_trouble(T, run->out);
    return kind;
}

/* What a task raised has left the loop over the tasks: it is entered again. */
static void run_cell(void *context, worker_t *w)
{
    runner_t *run = context;
    lua_State *T = run->T;
    int status;
    run->w = w;
    run->out = &w->w_out.record;
    run->single = (int)w->w_cell->single;
    do {
        lua_pushvalue(T, BODY);
        status = lua_pcall(T, 0, 0, HANDLER);
        enum record_kind kind = status != LUA_OK
                                    ? task_failed(run, T, status)
                                    : RECORD_VALUE;
        lua_settop(T, TOP);
        tidy(run, T);
        if (status != LUA_OK)
            worker_done(w, kind);
    } while (status != LUA_OK);
}

/* --- interrupting it ---------------------------------------------------- */

static void push_stop_error(lua_State *L, enum reason reason)
{
    char text[64];
    int limit = reason != REASON_CANCEL;
    if (limit)
        snprintf(text, sizeof text, "time limit of %g s exceeded",
                 (double)self->w->w_task.timeout / 1e9);
    else
        snprintf(text, sizeof text, "the task was cancelled");
    lua_rawgeti(L, LUA_REGISTRYINDEX, self->newerror);
    lua_pushstring(L, limit ? "timelimit" : "cancelled");
    lua_pushstring(L, text);
    lua_call(L, 2, 1);
}

static void stop_hook(lua_State *L, lua_Debug *ar)
{
    (void)ar;
    interrupt_disarm(self->T);
    if (L != self->T)
        lua_sethook(L, NULL, 0, 0);
    if (self->stage != RUNNING)
        return;
    enum reason reason = worker_stop_reason(self->w);
    if (reason == REASON_NONE)
        return;
    luaL_checkstack(L, 8, NULL);
    push_stop_error(L, reason);
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &stop_key);
    lua_error(L);
}

static void interrupt(void *context)
{
    runner_t *run = context;
    run->armed = 1;
    interrupt_arm(run->T, stop_hook);
}

/* --- the snapshot, and a worker's life ---------------------------------- */

#define RUNNER_FEW 16           /* functions, before the cache grows */
#define SMALL_HEAP 1024         /* KiB */
#define LARGE_HEAP (16 * 1024)

static char open_worker_key;    /* registry: the table that tasks see */

static int refuse_growth(buffer_t *b, size_t need)
{
    (void)b;
    (void)need;
    return -1;
}

void runner_age(lua_State *L)
{
    /* The young generation is a share of the whole heap, 20 % by default:
    ** behind a large heap that is too much garbage for each process. 8 MiB
    ** will do. */
    int heap = lua_gc(L, LUA_GCCOUNT) + 1;
    int minor = 100 * 8 * 1024 / heap;
    lua_gc(L, LUA_GCGEN, minor > 20 ? 20 : minor < 1 ? 1 : minor, 0);
    /* Lua 5.4's switch sets no debt: without this step the first collection
    ** would come when the heap has doubled, and be a full one. */
    lua_gc(L, LUA_GCSTEP, 0);
}

/* os.exit in a worker: never closes the state, which would run finalizers
** and `__close` of what belongs to the parent. */
static int exit_worker(lua_State *L)
{
    int code = lua_isboolean(L, 1)
                   ? (lua_toboolean(L, 1) ? EXIT_SUCCESS : EXIT_FAILURE)
                   : (int)luaL_optinteger(L, 1, EXIT_SUCCESS);
    exit(code);
}

/* The parent's main thread runs in a worker only if lua_close does, called by
** an os.exit that was kept from before the fork. */
static void trap_close(lua_State *L, lua_Debug *ar)
{
    (void)L;
    (void)ar;
    exit(EXIT_SUCCESS);
}

static int trap_finalizers(lua_State *L)
{
    (void)L;
    exit(EXIT_SUCCESS);
}

static void set_traps(lua_State *T)
{
    lua_rawgeti(T, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
    lua_sethook(lua_tothread(T, -1), trap_close, LUA_MASKCALL, 0);
    lua_pop(T, 1);
    /* In a task's pool the trap is there already. It must stay where it is:
    ** collected, it would go off. */
    if (lua_rawgetp(T, LUA_REGISTRYINDEX, &set_traps) != LUA_TNIL)
        return;
    lua_newuserdatauv(T, 1, 0);
    lua_createtable(T, 0, 1);
    lua_pushcfunction(T, trap_finalizers);
    lua_setfield(T, -2, "__gc");
    lua_setmetatable(T, -2);
    lua_rawsetp(T, LUA_REGISTRYINDEX, &set_traps);
}

/* KiB that the heap had when it was inherited. */
static int inherited;

/*
** collectgarbage in a worker. A full collection writes into all that was
** inherited, which is a copy of it; so as long as that is large, and the
** worker has less of its own, "collect" collects what is young, twice.
** Upvalue: the original.
*/
static int collect_worker(lua_State *L)
{
    const char *what = luaL_optstring(L, 1, "collect");
    int own = lua_gc(L, LUA_GCCOUNT) - inherited;
    if (strcmp(what, "collect") == 0 && inherited > LARGE_HEAP &&
        own < inherited) {
        lua_gc(L, LUA_GCSTEP, 0);
        lua_gc(L, LUA_GCSTEP, 0);
        lua_pushinteger(L, 0);
        return 1;
    }
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
    return lua_gettop(L);
}

static int replace_functions(lua_State *L)
{
    lua_getglobal(L, LUA_OSLIBNAME);
    if (lua_istable(L, -1)) {
        lua_pushcfunction(L, exit_worker);
        lua_setfield(L, -2, "exit");
    }
    if (lua_getglobal(L, "collectgarbage") == LUA_TFUNCTION) {
        lua_pushcclosure(L, collect_worker, 1);
        lua_setglobal(L, "collectgarbage");
    }
    return 0;
}

/* Makes the C stack of calls a few deep, so that lives need not. */
static int go_deep(lua_State *L)
{
    int depth = (int)lua_tointeger(L, 1);
    if (depth) {
        lua_pushcfunction(L, go_deep);
        lua_pushinteger(L, depth - 1);
        lua_call(L, 1, 0);
    }
    return 0;
}

/*
** Whatever every life would have to make before its first task is made here
** once: a page that a life writes to is a fault and a copy, and those are what
** a short life costs. First what lives only read, then what they write to, so
** that this lies on few pages (see nursery.h).
**
** The codec and the index of names come into being with their first message.
*/
static int warm_codec(lua_State *L)
{
    unsigned char small[512];
    buffer_t b = { .data = small, .room = sizeof small,
                   .grow = refuse_growth };
    if (luaL_loadstring(L, "return ...") == LUA_OK &&
        codec_encode(L, lua_gettop(L), 1, "function", &b) == 0)
        codec_decode(L, b.data, b.used);
    return 0;
}

/* procpool.worker, without what only a life knows. */
static int make_worker(lua_State *L)
{
    lua_createtable(L, 0, 8);
    const char *const unknown[] = { "id", "pid", "generation" };
    for (int i = 0; i < 3; i++) {
        lua_pushinteger(L, 0);
        lua_setfield(L, -2, unknown[i]);
    }
    lua_rawgeti(L, LUA_REGISTRYINDEX, self->prepare);
    lua_pushvalue(L, -2);
    lua_call(L, 1, 0);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &open_worker_key);
    return 0;
}

/* T's fixed slots; protected, since memory may be short. */
static int furnish(lua_State *T)
{
    luaL_checkstack(T, 160, NULL);
    lua_settop(T, 0);
    lua_pushcfunction(T, note_trouble);
    lua_createtable(T, 2 * RUNNER_FEW, 0);
    lua_pushvalue(T, -1);
    lua_pushnil(T);
    lua_pushcclosure(T, body, 2);
    lua_insert(T, BODY);
    lua_createtable(T, 3, 0);
    lua_pushvalue(T, TROUBLE);
    lua_rawsetp(T, LUA_REGISTRYINDEX, &trouble_key);
    lua_pushcfunction(T, go_deep);
    lua_pushinteger(T, 8);
    lua_call(T, 1, 0);
    return TOP;
}

/* What workers make is kept apart from what they inherit. A host's allocator
** of its own is left alone: it may count. */
static void open_arena(lua_State *L)
{
#ifdef __SANITIZE_ADDRESS__
    (void)L;    /* it would hide from the checker what is freed */
#else
    static int opened;  /* inherited by the keeper of a pool in a task */
    void *data;
    lua_Alloc present = lua_getallocf(L, &data);
    if (opened || data)
        return;
    opened = 1;
    arena_open(present, data);
    lua_setallocf(L, arena_alloc, NULL);
#endif
}

/* Runs f(); what it raises is dropped. */
static int protect(lua_State *L, lua_CFunction f, int results)
{
    lua_pushcfunction(L, f);
    int status = lua_pcall(L, 0, results, 0);
    if (status != LUA_OK)
        lua_pop(L, 1);
    return status;
}

static lua_State *new_thread(lua_State *L)
{
    lua_State *T = lua_newthread(L);
    lua_sethook(T, NULL, 0, 0);
    return T;
}

/*
** Lua's collector writes into every object it visits; made generational here,
** once, it leaves the inherited ones alone in workers. That visit copies the
** heap for the keeper, which takes half a millisecond even if it is small;
** then it would save a worker no more than that, and those nothing that are
** over before their collector begins.
*/
static void settle_collector(runner_t *run)
{
    if (!lua_gc(run->L, LUA_GCISRUNNING))
        lua_gc(run->L, LUA_GCRESTART);  /* only then: it collects at once */
    int small = lua_gc(run->L, LUA_GCCOUNT) < SMALL_HEAP && !run->aged;
    run->collector = small ? LUA_GCINC : LUA_GCGEN;
    if (small)
        lua_gc(run->L, LUA_GCINC, 0, 0, 0);
    else
        runner_age(run->L);
    inherited = lua_gc(run->L, LUA_GCCOUNT);
}

/* In the keeper. The parent's runner lies in its heap, where a life had better
** not write; workers have one among the module's variables. */
static const work_t *settle(void *context)
{
    static runner_t own;
    runner_t *run = self = &own;
    own = *(const runner_t *)context;
    own.work.context = &own;
    lua_sethook(run->L, NULL, 0, 0);
    open_arena(run->L);
    lua_State *cold = new_thread(run->L);
    set_traps(cold);
    interrupt_watch(cold);
    protect(cold, replace_functions, 0);
    protect(cold, warm_codec, 0);
    run->T = new_thread(run->L);
    run->thread = luaL_ref(run->L, LUA_REGISTRYINDEX);
    lua_pop(run->L, 1);
    if (protect(run->T, furnish, LUA_MULTRET) != LUA_OK)
        abort();
    protect(run->T, make_worker, 0);
    settle_collector(run);
    arena_seal();
    return &own.work;
}

static int open_worker(lua_State *T)
{
    const worker_t *w = self->w;
    lua_rawgeti(T, LUA_REGISTRYINDEX, self->start);
    if (lua_rawgetp(T, LUA_REGISTRYINDEX, &open_worker_key) != LUA_TTABLE)
        return luaL_error(T, "not enough memory");
    lua_pushinteger(T, w->w_index + 1);
    lua_setfield(T, -2, "id");
    lua_pushinteger(T, w->w_pid);
    lua_setfield(T, -2, "pid");
    lua_pushinteger(T, w->w_generation + 1);
    lua_setfield(T, -2, "generation");
    lua_call(T, 1, 0);
    return 0;
}

static int start(void *context, worker_t *w, buffer_t *complaint)
{
    runner_t *run = context;
    lua_State *T = run->T;
    run->w = w;
    run->stage = LOADING;
    lua_pushcfunction(T, open_worker);
    int rc = call(T, 0, 0);
    if (rc < 0)
        write_trouble(T, complaint);
    if (rc < 0 && w->w_region->set.log) {
        lua_rawgeti(T, TROUBLE, TEXT);
        fprintf(stderr, "procpool %s: initializer of worker %u: %s\n",
                w->w_region->set.name, w->w_index + 1, lua_tostring(T, -1));
    }
    lua_settop(T, TOP);
    tidy(run, T);
    return rc;
}

static int after(void *context, worker_t *w)
{
    const runner_t *run = context;
    lua_State *T = run->T;
    (void)w;
    lua_rawgeti(T, LUA_REGISTRYINDEX, run->after);
    int leave = call(T, 0, 1) == 0 && lua_toboolean(T, -1);
    lua_settop(T, TOP);
    return leave;
}

/* The finalizer; what it raises has nobody else to hear it. */
static void stop(void *context, worker_t *w)
{
    const runner_t *run = context;
    lua_State *T = run->T;
    (void)w;
    lua_rawgeti(T, LUA_REGISTRYINDEX, run->stop);
    if (call(T, 0, 0) < 0) {
        lua_rawgeti(T, TROUBLE, TEXT);
        fprintf(stderr, "procpool: finalizer: %s\n",
                lua_tostring(T, -1) ? lua_tostring(T, -1) : "?");
    }
    lua_settop(T, TOP);
}

/* --- the parent --------------------------------------------------------- */

static int take(lua_State *L, int config, const char *name)
{
    if (lua_getfield(L, config, name) == LUA_TNIL) {
        lua_pop(L, 1);
        return LUA_NOREF;
    }
    return luaL_ref(L, LUA_REGISTRYINDEX);
}

void runner_open(runner_t *run, lua_State *L, int config)
{
    memset(run, 0, sizeof *run);
    run->L = L;
    run->prepare = take(L, config, "prepare");
    run->start = take(L, config, "start");
    run->stop = take(L, config, "stop");
    run->after = take(L, config, "after");
    run->reseed = take(L, config, "reseed");
    run->newerror = take(L, config, "newerror");
    run->work = (work_t){ .context = run, .settle = settle, .start = start,
                          .run = run_cell, .stop = stop,
                          .interrupt = interrupt };
    if (run->after != LUA_NOREF)
        run->work.after = after;
}

void runner_release(runner_t *run, lua_State *L)
{
    const int refs[] = { run->prepare, run->start,  run->stop,
                         run->after,   run->reseed, run->newerror };
    for (size_t i = 0; i < sizeof refs / sizeof *refs; i++)
        luaL_unref(L, LUA_REGISTRYINDEX, refs[i]);
}
