/*
** module.c - procpool.core: the C module under lua/procpool, described by
** lua/procpool/core_meta.lua.
*/
#include <limits.h>

#include <lauxlib.h>
#include <lua.h>

#include "bind_codec.h"
#include "bind_large.h"
#include "handle.h"
#include "os.h"

static int core_now(lua_State *L)
{
    lua_pushnumber(L, (double)os_now() / 1e9);
    return 1;
}

static int core_cpus(lua_State *L)
{
    lua_pushinteger(L, os_cpus());
    return 1;
}

static int core_getpid(lua_State *L)
{
    lua_pushinteger(L, os_pid());
    return 1;
}

/* An empty list with room for n items. */
static int core_list(lua_State *L)
{
    lua_Integer n = luaL_checkinteger(L, 1);
    push_table(L, n > 0 && n < INT_MAX / 32 ? (int)n : 0, 1);
    return 1;
}

static int core_columns(lua_State *L)
{
    int columns = os_columns((int)luaL_checkinteger(L, 1));
    if (columns < 0)
        return 0;
    lua_pushinteger(L, columns);
    return 1;
}

static int core_random_seed(lua_State *L)
{
    lua_Integer seeds[2];
    os_random(seeds, sizeof seeds);
    lua_pushinteger(L, seeds[0]);
    lua_pushinteger(L, seeds[1]);
    return 2;
}

static int core_worker_tasks(lua_State *L)
{
    lua_pushinteger(L, worker_current ? (lua_Integer)worker_current->w_tasks
                                      : 0);
    return 1;
}

static int core_worker_attempt(lua_State *L)
{
    lua_pushinteger(L, worker_current
                           ? atomic_load(&worker_current->w_slot->attempt)
                           : 1);
    return 1;
}

static int core_worker_recycle(lua_State *L)
{
    (void)L;
    if (worker_current)
        worker_current->w_recycle = 1;
    return 0;
}

static const luaL_Reg functions[] = {
    { "now", core_now },
    { "cpus", core_cpus },
    { "getpid", core_getpid },
    { "list", core_list },
    { "columns", core_columns },
    { "random_seed", core_random_seed },
    { "worker_tasks", core_worker_tasks },
    { "worker_attempt", core_worker_attempt },
    { "worker_recycle", core_worker_recycle },
    { "open", handle_open },
    { NULL, NULL }
};

__attribute__((visibility("default"))) int luaopen_procpool_core(lua_State *L);

int luaopen_procpool_core(lua_State *L)
{
    luaL_checkversion(L);
    os_oom_killed();
    handle_register(L);
    luaL_newlib(L, functions);
    luaL_setfuncs(L, bind_codec_functions, 0);
    lua_pushlightuserdata(L, NULL);
    lua_setfield(L, -2, "NIL");
    lua_pushliteral(L, "0.1.0");
    lua_setfield(L, -2, "version");
    return 1;
}
