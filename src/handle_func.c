/*
** handle_func.c - the functions of calls, chunks and iterators: encoded once,
** kept, and known again; see handle.h. Parent only.
**
** A function whose message is always the same is kept while the pool lives;
** one with upvalues is encoded for each call, since they may have changed.
*/
#include "handle.h"

#include <string.h>

#include <lauxlib.h>

#include "codec.h"
#include "codec_format.h"
#include "os.h"

static char ref_meta;       /* registry key */

static void drop_ref(ref_t *ref)
{
    if (ref->func && ref->handle->pool.owner == os_pid())
        pool_func_release(&ref->handle->pool, ref->func);
    ref->func = 0;
}

static int ref_gc(lua_State *L)
{
    drop_ref(lua_touserdata(L, 1));
    return 0;
}

/* Pushes a ref that takes the caller's reference to a function. */
static void push_ref(lua_State *L, handle_t *h, uint32_t func, int kept)
{
    ref_t *ref = lua_newuserdatauv(L, sizeof *ref, 1);
    ref->handle = h;
    ref->func = func;
    ref->kept = (uint32_t)kept;
    lua_pushvalue(L, 1);
    lua_setiuservalue(L, -2, 1);
    lua_rawgetp(L, LUA_REGISTRYINDEX, &ref_meta);
    lua_setmetatable(L, -2);
}

ref_t *handle_ref(lua_State *L, int index)
{
    ref_t *ref = lua_touserdata(L, index);
    luaL_argcheck(L, ref && lua_rawlen(L, index) == sizeof *ref &&
                         ref->func, index, "function reference expected");
    return ref;
}

/* Does the function at `index` look the same whenever it is sent: by name, or
** without upvalues but the globals? */
static int is_constant(lua_State *L, int index, const buffer_t *message)
{
    if (message->used > 1 && (message->data[1] | TAG_SHARED) ==
                                 (TAG_NAMED | TAG_SHARED))
        return 1;
    if (lua_type(L, index) != LUA_TFUNCTION || lua_iscfunction(L, index))
        return 0;
    int constant = 1;
    lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
    for (int i = 1; constant && lua_getupvalue(L, index, i); i++) {
        constant = lua_rawequal(L, -1, -2);
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
    return constant;
}

/* The kept function with this message, with a reference for the caller: one
** that came before, or a new one. 0: no room. */
static uint32_t keep_func(handle_t *h, draft_t *d)
{
    uint64_t hash = checksum(d->buffer.data, d->buffer.used);
    unsigned place = (unsigned)(hash % RECENT_FUNCS);
    pool_t *p = &h->pool;
    uint32_t known = h->recent[place].func;
    if (known && h->recent[place].hash == hash) {
        const func_t *f = &p->funcs[known];
        if (f->size == d->buffer.used &&
            memcmp(region_at(p->r, f->block.offset), d->buffer.data,
                   f->size) == 0) {
            p->funcs[known].refs++;
            return known;
        }
    }
    int64_t func = pool_func_new(p, d, FUNC_KEPT);
    if (func < 0)
        return 0;
    pool_func_release(p, known);
    h->recent[place].func = (uint32_t)func;
    h->recent[place].hash = hash;
    p->funcs[func].refs++;
    return (uint32_t)func;
}

/*
** The function at `index`, encoded, with a reference for the caller in *func.
** A constant one is kept, in the cache as well (*kept). FULL, or REFUSED with
** the reason pushed.
*/
static int encode_func(lua_State *L, handle_t *h, int index,
                       enum func_use use, uint32_t *func, int *kept)
{
    unsigned char small[512];
    draft_t d;
    int64_t found;
    draft_open(&d, &h->pool, small, sizeof small);
    if (codec_encode(L, index, 1, "function", &d.buffer) < 0) {
        draft_drop(&d);
        return d.d_full ? FULL : REFUSED;
    }
    *kept = is_constant(L, index, &d.buffer);
    if (*kept)
        found = keep_func(h, &d);
    else
        found = pool_func_new(&h->pool, &d, use);
    draft_drop(&d);
    if (found <= 0) {
        lua_pushliteral(L, "no room for the function");
        return FULL;
    }
    *func = (uint32_t)found;
    return FOUND;
}

/* Remembers a kept function for the closure at `index`; pushes its ref. */
static void cache_func(lua_State *L, handle_t *h, int index, uint32_t func)
{
    push_ref(L, h, func, 1);
    lua_getiuservalue(L, 1, UV_FUNCS);
    lua_pushvalue(L, index);
    lua_pushvalue(L, -3);
    lua_rawset(L, -3);
    lua_pop(L, 1);
    h->pool.funcs[func].refs++;     /* for `last` */
    pool_func_release(&h->pool, h->last_func);
    lua_pushvalue(L, index);
    lua_setiuservalue(L, 1, UV_LAST);
    h->last = lua_topointer(L, index);
    h->last_func = func;
}

/* Pushes the ref of a function that is kept already: 1, or pushes nothing. */
static int find_ref(lua_State *L, int index)
{
    lua_getiuservalue(L, 1, UV_FUNCS);
    lua_pushvalue(L, index);
    if (lua_rawget(L, -2) == LUA_TUSERDATA) {
        lua_remove(L, -2);
        return 1;
    }
    lua_pop(L, 2);
    return 0;
}

int handle_func_of_call(lua_State *L, handle_t *h, int index, uint32_t *func)
{
    int kept;
    if (lua_topointer(L, index) == h->last && h->last) {
        *func = h->last_func;
        h->pool.funcs[*func].refs++;
        return FOUND;
    }
    if (find_ref(L, index)) {
        const ref_t *ref = lua_touserdata(L, -1);
        *func = ref->func;
        h->pool.funcs[*func].refs++;
        lua_pop(L, 1);
        return FOUND;
    }
    int rc = encode_func(L, h, index, FUNC_ONCE, func, &kept);
    if (rc == FOUND && kept) {
        cache_func(L, h, index, *func);
        h->pool.funcs[*func].refs++;
        lua_pop(L, 1);
    }
    return rc;
}

int handle_func(lua_State *L)
{
    handle_t *h = handle_check(L);
    uint32_t func;
    int kept;
    lua_settop(L, 2);
    if (find_ref(L, 2))
        return 1;
    if (encode_func(L, h, 2, FUNC_SUBMISSION, &func, &kept) != FOUND) {
        lua_pushnil(L);
        lua_insert(L, -2);
        return 2;
    }
    if (kept)
        cache_func(L, h, 2, func);
    else
        push_ref(L, h, func, 0);
    return 1;
}

int handle_release(lua_State *L)
{
    handle_check(L);
    ref_t *ref = lua_touserdata(L, 2);
    if (ref && lua_rawlen(L, 2) == sizeof *ref && !ref->kept)
        drop_ref(ref);
    return 0;
}

void handle_register_refs(lua_State *L)
{
    lua_createtable(L, 0, 1);
    lua_pushcfunction(L, ref_gc);
    lua_setfield(L, -2, "__gc");
    lua_rawsetp(L, LUA_REGISTRYINDEX, &ref_meta);
}
