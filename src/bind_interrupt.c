/*
** bind_interrupt.c - see bind_interrupt.h. Worker only; interrupt_arm also in
** a signal handler of it.
**
** The set of coroutines is read by the handler at any instruction of the code
** that changes it. So it is changed by single stores: a new one is published
** after it has been filled, and an entry is removed by a tombstone.
**
** lua_newthread allocates the coroutine, then its stack; before the stack is
** there nobody may touch it. So a newborn is put aside, and enters the set
** with the allocation after next, which comes before any code runs in it (its
** first call needs a CallInfo).
*/
#include "bind_interrupt.h"

#include <stdint.h>
#include <stdlib.h>

#include <lauxlib.h>

typedef struct set {
    size_t size;                /* a power of two */
    void *entries[];            /* NULL: free; GONE: was removed */
} set_t;

#define GONE ((void *)1)

static set_t *volatile known;
static size_t used;             /* entries not NULL */
static void *newborn;           /* lua_State block */
static unsigned newborn_age;    /* allocations since */
static size_t thread_size;      /* of a coroutine's block; 0: not watching */
static lua_Alloc inner;
static void *inner_data;

static lua_State *state_of(void *block)
{
    return (lua_State *)(void *)((char *)block + LUA_EXTRASPACE);
}

static size_t place_of(const set_t *s, const void *block)
{
    uint64_t h = (uint64_t)(uintptr_t)block * UINT64_C(0x9e3779b97f4a7c15);
    return (size_t)(h >> 32) & (s->size - 1);
}

static void put(set_t *s, void *block)
{
    size_t i = place_of(s, block);
    while (s->entries[i] && s->entries[i] != GONE)
        i = (i + 1) & (s->size - 1);
    used += s->entries[i] == NULL;
    s->entries[i] = block;
}

/* Room for one more. Without memory the coroutine is simply not known. */
static int make_room(void)
{
    set_t *old = known;
    size_t live = 0, size = 64;
    if (old && 2 * (used + 1) <= old->size)
        return 1;
    for (size_t i = 0; old && i < old->size; i++)
        live += old->entries[i] && old->entries[i] != GONE;
    while (size < 4 * (live + 1))
        size *= 2;
    set_t *fresh = calloc(1, sizeof *fresh + size * sizeof(void *));
    if (!fresh)
        return 0;
    fresh->size = size;
    used = 0;
    for (size_t i = 0; old && i < old->size; i++)
        if (old->entries[i] && old->entries[i] != GONE)
            put(fresh, old->entries[i]);
    known = fresh;
    free(old);
    return 1;
}

static void forget(const void *block)
{
    set_t *s = known;
    if (block == newborn)
        newborn = NULL;
    if (!s)
        return;
    for (size_t i = place_of(s, block); s->entries[i];
         i = (i + 1) & (s->size - 1))
        if (s->entries[i] == block) {
            s->entries[i] = GONE;
            return;
        }
}

static void grow_up(void)
{
    if (++newborn_age < 2)
        return;
    void *block = newborn;
    newborn = NULL;
    if (make_room())
        put(known, block);
}

static void *watching_alloc(void *ud, void *ptr, size_t osize, size_t nsize)
{
    (void)ud;
    if (__builtin_expect(newborn != NULL, 0))
        grow_up();
    if (ptr == NULL && osize == LUA_TTHREAD && nsize == thread_size) {
        void *block = inner(inner_data, ptr, osize, nsize);
        newborn = block;
        newborn_age = 0;
        return block;
    }
    if (nsize == 0 && osize == thread_size && ptr)
        forget(ptr);
    return inner(inner_data, ptr, osize, nsize);
}

/* Learns how large a coroutine's block is, and whether Lua tells it apart. */
static void *probing_alloc(void *ud, void *ptr, size_t osize, size_t nsize)
{
    (void)ud;
    void *block = inner(inner_data, ptr, osize, nsize);
    if (ptr == NULL && osize == LUA_TTHREAD && block) {
        newborn = block;
        thread_size = nsize;
    }
    return block;
}

void interrupt_watch(lua_State *L)
{
    void *data;
    lua_Alloc present = lua_getallocf(L, &data);
    if (present == watching_alloc)
        return;     /* a pool in a task: inherited, and still right */
    inner = present;
    inner_data = data;
    newborn = NULL;
    thread_size = 0;
    lua_setallocf(L, probing_alloc, NULL);
    lua_State *probe = lua_newthread(L);
    int as_expected = newborn && state_of(newborn) == probe;
    lua_pop(L, 1);
    newborn = NULL;
    if (as_expected)
        lua_setallocf(L, watching_alloc, NULL);
    else
        lua_setallocf(L, inner, inner_data);
}

static void set_hooks(lua_State *L, lua_Hook hook, int mask, int count)
{
    set_t *s = known;
    lua_sethook(L, hook, mask, count);
    for (size_t i = 0; s && i < s->size; i++)
        if (s->entries[i] && s->entries[i] != GONE)
            lua_sethook(state_of(s->entries[i]), hook, mask, count);
}

void interrupt_arm(lua_State *L, lua_Hook hook)
{
    set_hooks(L, hook, LUA_MASKCALL | LUA_MASKRET | LUA_MASKLINE |
                           LUA_MASKCOUNT, 1);
}

void interrupt_disarm(lua_State *L)
{
    set_hooks(L, NULL, 0, 0);
}
