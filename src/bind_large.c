/*
** bind_large.c - see bind_large.h.
**
** Lua fills a string as soon as it has the memory, so only the allocator can
** give the advice in time. The state's own is replaced for one protected call,
** and put back whatever becomes of that; what the collector runs meanwhile
** gets the same memory as ever.
*/
#include "bind_large.h"

#include <lauxlib.h>

typedef struct large {
    const void *bytes;          /* of a string; NULL: a table */
    size_t size;
    int items, pairs;
    lua_Alloc inner;
    void *inner_data;
} large_t;

static void *advising_alloc(void *data, void *block, size_t old_size,
                            size_t size)
{
    const large_t *large = data;
    void *b = large->inner(large->inner_data, block, old_size, size);
    if (b && !block && size >= OS_HUGE_FROM)
        os_huge_block(b, size);
    return b;
}

static int make(lua_State *L)
{
    const large_t *large = lua_touserdata(L, 1);
    if (large->bytes)
        lua_pushlstring(L, large->bytes, large->size);
    else
        lua_createtable(L, large->items, large->pairs);
    return 1;
}

static void push(lua_State *L, large_t *large)
{
    luaL_checkstack(L, 4, NULL);
    large->inner = lua_getallocf(L, &large->inner_data);
    lua_pushcfunction(L, make);
    lua_pushlightuserdata(L, large);
    lua_setallocf(L, advising_alloc, large);
    int status = lua_pcall(L, 1, 1, 0);
    lua_setallocf(L, large->inner, large->inner_data);
    if (status != LUA_OK)
        lua_error(L);
}

void large_string(lua_State *L, const void *bytes, size_t size)
{
    push(L, &(large_t){ .bytes = bytes, .size = size });
}

void large_table(lua_State *L, int items, int pairs)
{
    push(L, &(large_t){ .items = items, .pairs = pairs });
}
