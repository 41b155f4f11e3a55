/*
** names.h - permanents: what travels as a name instead of a copy.
**
** Registered values, loaded modules, functions that are direct fields of a
** module (of _G: C functions only) and classes that are (tables with a raw
** `__index`). Of several names a registered one wins, then the shortest,
** then the first in the alphabet, so that all processes choose alike.
**
** The index from addresses to names is built from package.loaded when first
** needed and rebuilt when the set of loaded modules has changed. It keeps
** its values alive, so an address in it is never somebody else's; a hit is
** still checked against the module before it is used.
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

/* Might this address have a name? Cheap; the index may be out of date. */
bool names_known(const names_t *n, const void *address);

/* Rebuilds the index if modules have come or gone. True if it did. */
bool names_refresh(lua_State *L, names_t *n);

/*
** Looks for a class in the fields of all modules, for one that came after the
** index was built; true if it is there, and the index is new.
*/
bool names_search(lua_State *L, names_t *n, int index);

/*
** The name of the value at `index` in wire form (kind, names), valid until
** the next call for `n`; NULL if it has none.
*/
const uint8_t *names_wire(lua_State *L, names_t *n, int index, size_t *size);

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
