/*
** bind_codec.c - encode, decode, register and snapshot for Lua.
**
** What inline pools and tests use; tasks and results are encoded straight
** into shared memory. A message grows in a buffer that belongs to a userdata,
** kept for the next one if it is not too large.
*/
#include "bind_codec.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

#include <lua.h>

#include "buffer.h"
#include "codec.h"
#include "names.h"

enum { ROOM_FIRST = 1024, ROOM_KEPT = 1 << 20 };

typedef struct heap_buffer {
    buffer_t b;
    int busy;
} heap_buffer_t;

static char buffer_key;         /* registry; its address counts */

static int grow(buffer_t *b, size_t need)
{
    size_t room = b->room + b->room / 2 + need + ROOM_FIRST;
    if (need > SIZE_MAX / 4 || b->room > SIZE_MAX / 4)
        return -ENOMEM;
    uint8_t *more = realloc(b->data, room);
    if (more == NULL)
        return -ENOMEM;
    b->data = more;
    b->room = room;
    return 0;
}

static int buffer_gc(lua_State *L)
{
    heap_buffer_t *h = lua_touserdata(L, 1);
    free(h->b.data);
    h->b.data = NULL;
    h->b.room = 0;
    return 0;
}

static heap_buffer_t *buffer_new(lua_State *L)
{
    heap_buffer_t *h = lua_newuserdatauv(L, sizeof *h, 0);
    *h = (heap_buffer_t){ .b = { .grow = grow } };
    lua_createtable(L, 0, 1);
    lua_pushcfunction(L, buffer_gc);
    lua_setfield(L, -2, "__gc");
    lua_setmetatable(L, -2);
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &buffer_key);
    return h;
}

/* Pushes a buffer that nobody uses. One that an error has left busy is
** replaced, like one that is in use further out. */
static heap_buffer_t *buffer_take(lua_State *L)
{
    heap_buffer_t *h = NULL;
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &buffer_key) == LUA_TUSERDATA)
        h = lua_touserdata(L, -1);
    if (h == NULL || h->busy) {
        lua_pop(L, 1);
        h = buffer_new(L);
    }
    h->busy = 1;
    h->b.used = 0;
    return h;
}

static void buffer_give_back(heap_buffer_t *h)
{
    if (h->b.room > ROOM_KEPT) {
        free(h->b.data);
        h->b.data = NULL;
        h->b.room = 0;
    }
    h->busy = 0;
}

/* encode(root, ...) -> message | nil, problem */
static int encode(lua_State *L)
{
    const char *root = luaL_checkstring(L, 1);
    int count = lua_gettop(L) - 1;
    luaL_checkstack(L, 8, NULL);
    heap_buffer_t *h = buffer_take(L);
    if (codec_encode(L, 2, count, root, &h->b) < 0) {
        lua_pushnil(L);
        lua_insert(L, -2);
        buffer_give_back(h);
        return 2;
    }
    lua_pushlstring(L, (const char *)h->b.data, h->b.used);
    buffer_give_back(h);
    return 1;
}

/* decode(message) -> true, ... | nil, problem */
static int decode(lua_State *L)
{
    size_t size;
    const char *s = luaL_checklstring(L, 1, &size);
    lua_settop(L, 1);
    lua_pushboolean(L, 1);
    int n = codec_decode(L, (const uint8_t *)s, size);
    if (n >= 0)
        return n + 1;
    lua_pushnil(L);
    lua_insert(L, -2);
    return 2;
}

static int register_name(lua_State *L)
{
    names_register(L);
    return 0;
}

/* snapshot(): see names.h */
static int snapshot(lua_State *L)
{
    names_snapshot(L);
    return 0;
}

const luaL_Reg bind_codec_functions[] = {
    { "encode", encode },
    { "decode", decode },
    { "register", register_name },
    { "snapshot", snapshot },
    { NULL, NULL }
};
