/*
** arena.h - memory for the objects that a worker's Lua makes.
**
** Keeper (arena_open, arena_seal), then workers; private memory, one thread.
**
** Why not malloc alone: a worker is a fork, and malloc would fill the holes
** between inherited objects, a page copied for each; and fresh memory costs a
** page fault per 4 KiB, which is what a short life consists of. The first blocks
** come from the nursery (nursery.h). Small ones then come from pages of the worker's own, made present many at a time; the others
** from the allocator that was there before, made present block by block.
*/
#ifndef PROCPOOL_ARENA_H
#define PROCPOOL_ARENA_H

#include <stddef.h>

#pragma GCC visibility push(hidden)

#define ARENA_SMALL ((size_t)4096) /* bytes: larger blocks are not kept here  \
                                    */

/* A lua_Alloc: https://www.lua.org/manual/5.4/manual.html#lua_Alloc */
typedef void *(*arena_alloc_t)(void *data, void *block, size_t old_size,
                               size_t new_size);

/* Small blocks come from here from now on, the others and those from before
** from `outer`. Again in a pool within a task: nothing is forgotten. */
void arena_open(arena_alloc_t outer, void *outer_data);
/* Before workers are forked: what they make starts on a page of its own. */
void arena_seal(void);
/* The allocator; `data` is not used. */
void *arena_alloc(void *data, void *block, size_t old_size, size_t new_size);

#pragma GCC visibility pop
#endif
