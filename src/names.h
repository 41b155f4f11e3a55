/*
** names.h - permanents: what travels as a name instead of a copy.
**
** Registered values; loaded modules; functions that are direct fields of a
** module, of the globals only C functions; classes that are (tables with a
** raw `__index`), of the globals those that were there at the last snapshot,
** which is taken when a pool is made: what is defined later, workers do not
** have. Any other table that is a module's field has a name as a metatable
** only; as a value it is data.
**
** Of several names a registered one wins, then the shortest, then the first
** in the alphabet, so that all processes choose alike.
**
** The index from addresses to names is built from package.loaded when first
** needed, and anew when the set of loaded modules has changed; at a snapshot
** also when a field of one has. So the workers of a pool inherit it. It keeps
** its values alive, so an address in it is never somebody else's; a hit is
** still compared with the module before it is used.
*/
#ifndef PROCPOOL_NAMES_H
#define PROCPOOL_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <lua.h>

#pragma GCC visibility push(hidden)

typedef struct names names_t;

/* The registry's one, made when it is missing. Pushes nothing. */
names_t *names_get(lua_State *L);

/* Might this address have a name as a value? Cheap; the index may be out of
** date. */
bool names_known(const names_t *n, const void *address);

/*
** Is the index of the modules that are loaded now? The walk over
** package.loaded costs as much as a small message (1 us for 15 modules), so
** it is not made anew for 32 times as long as it took, at most 0.1 ms.
** Allocates nothing.
*/
bool names_current(lua_State *L, names_t *n);

/* Rebuilds the index if modules have come or gone, or always. True if it did.
** Raises Lua's memory error. */
bool names_refresh(lua_State *L, names_t *n, bool always);

/*
** The name of the value at `index`, as a value or as a metatable, in wire
** form (kind, names), valid until the next call for `n`; NULL if it has none.
** Allocates nothing.
*/
const uint8_t *names_wire(lua_State *L, names_t *n, int index, bool metatable,
                          size_t *size);

/* The classes among the globals, and the modules, as they are now. Walks over
** the fields of all modules; builds the index if they are not what they were at
** the last snapshot. Raises Lua's memory error. */
void names_snapshot(lua_State *L);

/*
** Pushes what a name in wire form stands for, requiring its module if it is
** missing, and returns true; or pushes the reason. `second` only for
** NAME_FIELD.
*/
bool names_resolve(lua_State *L, int kind, const char *first,
                   size_t first_size, const char *second,
                   size_t second_size);

/* register(name, value): stack slots 1 and 2 of a Lua C function. */
void names_register(lua_State *L);

#pragma GCC visibility pop

#endif
