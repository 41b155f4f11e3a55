/*
** bind_interrupt.h - makes running Lua code raise, coroutines included.
**
** A hook stops a loop, but each coroutine has its own, and Lua does not say
** which one runs. So a worker's allocator notes every coroutine that is
** made: the signal handler arms them all. Nothing is paid for it while
** nothing is interrupted but a look at each allocation.
*/
#ifndef PROCPOOL_BIND_INTERRUPT_H
#define PROCPOOL_BIND_INTERRUPT_H

#include <lua.h>

#pragma GCC visibility push(hidden)

/* Worker, once, before tasks: notes the coroutines made from here on. */
void interrupt_watch(lua_State *L);
/* In a signal handler: `hook` is called soon, wherever Lua code runs: in L or
** in a coroutine made since interrupt_watch. */
void interrupt_arm(lua_State *L, lua_Hook hook);
/* Takes all hooks away. */
void interrupt_disarm(lua_State *L);

#pragma GCC visibility pop
#endif
