/*
** codec_state.c - memory that outlives a message, the set of objects met,
** and the work stack with its window on the Lua stack.
**
** Run by parent and workers, inside codec_encode and codec_decode. Memory
** comes from malloc and belongs to a userdata whose __gc frees it; nothing
** here raises except Lua's own memory error.
*/
#include "codec_state.h"

#include <stdlib.h>
#include <string.h>

#include <lauxlib.h>

/*
** Memory is kept, for fresh pages are dear: 100,000 records were encoded in
** 20 ms with it and in 50 ms without. It is given up when it is very large,
** or when MODEST messages in a row have not needed it.
*/
enum {
    SEEN_FIRST = 32,
    SEEN_SMALL = 1 << 10,       /* entries; so little is always kept */
    SEEN_LARGE = 1 << 16,       /* from here on it doubles */
    SEEN_KEPT = 1 << 18,
    FRAMES_KEPT = 1 << 14,
    SCRATCH_KEPT = 1 << 20,
    MODEST = 1000,
    CHECKED = 32                /* frames that the stack is readied for */
};

/* Keys of the registry; their addresses count. */
static char registry_key, metatable_key, reduce_key;

static void seen_free(seen_t *s)
{
    free(s->entries);
    free(s->spare);
    memset(s, 0, sizeof *s);
}

static int codec_gc(lua_State *L)
{
    codec_t *c = lua_touserdata(L, 1);
    seen_free(&c->seen);
    free(c->frames);
    free(c->scratch);
    memset(c, 0, sizeof *c);
    return 0;
}

/* Pushes the metatable of codecs. It is complete before it is kept: memory
** may run out at any step. */
static void push_metatable(lua_State *L)
{
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &metatable_key) == LUA_TTABLE)
        return;
    lua_pop(L, 1);
    lua_createtable(L, 0, 1);
    lua_pushcfunction(L, codec_gc);
    lua_setfield(L, -2, "__gc");
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &metatable_key);
}

static codec_t *codec_new(lua_State *L)
{
    names_t *names = names_get(L);
    lua_pushliteral(L, "__reduce");
    lua_rawsetp(L, LUA_REGISTRYINDEX, &reduce_key);
    push_metatable(L);
    lua_createtable(L, SLOTS, 0);
    codec_t *c = lua_newuserdatauv(L, sizeof *c, 1);
    memset(c, 0, sizeof *c);
    c->names = names;
    lua_insert(L, -3);
    lua_setiuservalue(L, -3, SLOT_STRINGS);
    lua_setmetatable(L, -2);
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &registry_key);
    return c;
}

void codec_push_reduce(lua_State *L)
{
    lua_rawgetp(L, LUA_REGISTRYINDEX, &reduce_key);
}

codec_t *codec_take(lua_State *L)
{
    codec_t *c = NULL;
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &registry_key) == LUA_TUSERDATA)
        c = lua_touserdata(L, -1);
    /* Busy: in use further out, or left so by an error. A new one takes its
    ** place either way; the old one lives as long as its user. */
    if (c == NULL || c->busy) {
        lua_pop(L, 1);
        c = codec_new(L);
    }
    c->busy = true;
    codec_next_epoch(c);
    return c;
}

void codec_give_back(codec_t *c)
{
    if (c->seen.room > SEEN_SMALL) {
        c->modest = c->seen.size > SEEN_SMALL ? 0 : c->modest + 1;
        if (c->seen.room > SEEN_KEPT || c->modest > MODEST)
            seen_free(&c->seen);
    }
    if (c->frames_room > FRAMES_KEPT) {
        free(c->frames);
        c->frames = NULL;
        c->frames_room = 0;
    }
    if (c->scratch_room > SCRATCH_KEPT) {
        free(c->scratch);
        c->scratch = NULL;
        c->scratch_room = 0;
    }
    c->busy = false;
}

uint8_t *codec_scratch(codec_t *c, size_t size)
{
    if (size <= c->scratch_room)
        return c->scratch;
    size_t room = 2 * c->scratch_room + size + 256;
    uint8_t *more = realloc(c->scratch, room);
    if (more == NULL)
        return NULL;
    c->scratch = more;
    c->scratch_room = room;
    return more;
}

/*
** Objects met: open addressing, never more than half full. Objects that were
** made one after the other are mostly neighbours and are met in that order,
** so their entries had better be neighbours too: with a hash that scatters
** them, cache misses here were a quarter of the time for 100,000 records. A
** page's objects stay together, pages are spread.
*/
static inline size_t seen_place(const seen_t *s, const void *key)
{
    uintptr_t address = (uintptr_t)key;
    return ((address >> 4) + (address >> 12) * 37) & (s->size - 1);
}

/* Moves everything to the spare entries, which become the current ones. */
static int seen_resize(seen_t *s, size_t size)
{
    if (s->spare_room < size) {
        free(s->spare);
        s->spare_room = 0;
        s->spare = malloc(size * sizeof *s->spare);
        if (s->spare == NULL)
            return -1;
        s->spare_room = size;
    }
    seen_entry_t *old = s->entries, *fresh = s->spare;
    size_t old_size = s->size, old_room = s->room;
    memset(fresh, 0, size * sizeof *fresh);
    s->entries = fresh;
    s->room = s->spare_room;
    s->size = size;
    s->spare = old;
    s->spare_room = old_room;
    s->missed = NULL;
    for (size_t i = 0; i < old_size; i++) {
        if (old[i].key == NULL)
            continue;
        size_t at = seen_place(s, old[i].key);
        while (fresh[at].key != NULL)
            at = (at + 1) & (size - 1);
        fresh[at] = old[i];
    }
    return 0;
}

/* A small message must not pay for clearing what a large one has left. */
int seen_start(seen_t *s)
{
    s->count = 0;
    s->size = 0;
    s->missed = NULL;
    if (s->entries == NULL)
        return seen_resize(s, SEEN_FIRST);
    s->size = SEEN_FIRST;
    memset(s->entries, 0, s->size * sizeof *s->entries);
    return 0;
}

/* Mostly it follows seen_find for the same key, which knows the place. */
int seen_add(seen_t *s, const void *key, uint64_t where)
{
    if (2 * (s->count + 1) > s->size
        && seen_resize(s, s->size * (s->size < SEEN_LARGE ? 4 : 2)) < 0)
        return -1;
    size_t at = s->vacant;
    if (s->missed != key) {
        at = seen_place(s, key);
        while (s->entries[at].key != NULL)
            at = (at + 1) & (s->size - 1);
    }
    s->missed = NULL;
    s->entries[at].key = key;
    s->entries[at].where = where;
    s->count++;
    return 0;
}

uint64_t *seen_find(seen_t *s, const void *key)
{
    size_t at = seen_place(s, key);
    for (; s->entries[at].key != NULL; at = (at + 1) & (s->size - 1))
        if (s->entries[at].key == key)
            return &s->entries[at].where;
    s->missed = key;
    s->vacant = at;
    return NULL;
}

/* The window. Frame i of it owns stack slots base + 2i and base + 2i + 1. */

static void spill_half(window_t *w)
{
    lua_State *L = w->L;
    if (lua_isnil(L, w->spill)) {
        lua_createtable(L, 2 * WINDOW, 0);
        lua_replace(L, w->spill);
    }
    for (int i = 0; i < WINDOW; i++) {
        lua_pushvalue(L, w->base + i);
        lua_rawseti(L, w->spill, (lua_Integer)w->spilled * 2 + i + 1);
    }
    for (int i = w->base; i + WINDOW <= lua_gettop(L); i++)
        lua_copy(L, i + WINDOW, i);
    lua_pop(L, WINDOW);
    w->spilled += WINDOW / 2;
}

/* The window is empty: brings the last half back, below what lies there. */
static void reload_half(window_t *w)
{
    lua_State *L = w->L;
    int above = lua_gettop(L) - (w->base - 1);
    w->spilled -= WINDOW / 2;
    for (int i = 0; i < WINDOW; i++)
        lua_rawgeti(L, w->spill, (lua_Integer)w->spilled * 2 + i + 1);
    lua_rotate(L, w->base, -above);
}

frame_t *window_push(window_t *w, codec_t *c)
{
    if (w->depth == c->frames_room) {
        size_t room = c->frames_room ? c->frames_room * 2 : 32;
        frame_t *more = realloc(c->frames, room * sizeof *more);
        if (more == NULL)
            return NULL;
        c->frames = more;
        c->frames_room = room;
    }
    if (w->depth >= w->checked) {
        int halves = w->depth + CHECKED < WINDOW ? 0 : WINDOW; /* reload_half */
        if (!lua_checkstack(w->L, 2 * CHECKED + halves + 16))
            return NULL;
        w->checked = w->depth + CHECKED;
    }
    if (w->depth - w->spilled == WINDOW)
        spill_half(w);
    w->frames = c->frames;
    return &w->frames[w->depth++];
}

void window_pop(window_t *w)
{
    w->depth--;
    if (w->depth == w->spilled && w->spilled > 0)
        reload_half(w);
}

void window_slot(window_t *w, size_t depth, int slot)
{
    if (depth < w->spilled)
        lua_rawgeti(w->L, w->spill, (lua_Integer)depth * 2 + slot + 1);
    else
        lua_pushvalue(w->L, w->base + (int)(depth - w->spilled) * 2 + slot);
}
