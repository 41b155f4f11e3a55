/*
** bind_large.h - strings and tables that may be large. A large block's memory
** is new each time, and a fault for each of its pages costs more than to copy
** what comes there; so huge ones are asked for. (A worker's arena does so by
** itself: this is for the parent, whose allocator is the program's.)
**
** Like Lua's functions of such names; they raise its memory error.
*/
#ifndef PROCPOOL_BIND_LARGE_H
#define PROCPOOL_BIND_LARGE_H

#include <lua.h>

#include "os.h"

#pragma GCC visibility push(hidden)

void large_string(lua_State *L, const void *bytes, size_t size);
void large_table(lua_State *L, int items, int pairs);

/* Pushes a string. */
static inline void push_string(lua_State *L, const void *bytes, size_t size)
{
    if (__builtin_expect(size < OS_HUGE_FROM, 1))
        lua_pushlstring(L, bytes, size);
    else
        large_string(L, bytes, size);
}

/* Pushes a table with room for so many. */
static inline void push_table(lua_State *L, int items, int pairs)
{
    if (__builtin_expect((size_t)items < OS_HUGE_FROM / 16, 1))
        lua_createtable(L, items, pairs);
    else
        large_table(L, items, pairs);
}

#pragma GCC visibility pop

#endif
