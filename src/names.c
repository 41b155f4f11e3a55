/*
** names.c - the index from objects to names, and names back to objects.
**
** Three things in the registry: the registered values by name, the classes of
** the globals by name, and the index, a userdata with malloc'd memory: a hash
** of addresses, and the names in wire form one after the other. Its user
** value lists the indexed objects, so that none of their addresses can become
** another's. Whatever the index says is compared with the module as it is now
** before it is used.
**
** Run by parent and workers, each of which has its own. Nothing here calls
** metamethods; the only user code is the module that names_resolve requires,
** protected. Raises Lua's memory error only.
*/
#include "names.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <lauxlib.h>

#include "codec_format.h"
#include "os.h"

enum {
    CHECK_SHARE = 32,           /* looking takes a 32nd of the time, ... */
    CHECK_MOST = 100000         /* ... but is done after 0.1 ms at most */
};

typedef struct entry {
    const void *key;            /* NULL: free */
    uint32_t at;                /* its wire form */
    uint32_t size : 31;
    uint32_t data : 1;          /* has this name only as a metatable */
    uint32_t anchor;            /* its number in the list of objects */
} entry_t;

/* What the list of objects holds of each, so that comparing a name with its
** module takes no new string. */
enum { ANCHOR_VALUE, ANCHOR_FIRST, ANCHOR_SECOND, ANCHORS };

struct names {
    entry_t *entries;           /* never more than half full */
    size_t room, count;         /* room: 0 or a power of two */
    uint8_t *wires;
    size_t wires_room, wires_used;
    uint64_t stamp;             /* of package.loaded, see stamp_modules */
    uint64_t whole;             /* of the fields, too, if it was built at a
                                ** snapshot; else 0 */
    uint64_t check_at;          /* ns, when to compare the stamp again */
    bool current;               /* false: to be built, whatever the stamp */
    uint32_t anchored;
};

/* Keys of the registry; their addresses count. */
static char names_key, registered_key, classes_key;

/* A name taken apart. `second` is empty except for NAME_FIELD. */
typedef struct name {
    int kind;
    const char *first, *second;
    size_t first_size, second_size;
    int slot;                   /* building: where the first string is, */
    int second_slot;            /* and the second one */
} name_t;

static int names_gc(lua_State *L)
{
    names_t *n = lua_touserdata(L, 1);
    free(n->entries);
    free(n->wires);
    memset(n, 0, sizeof *n);
    return 0;
}

/* Keeps a new table under a key of the registry. */
static void keep_table(lua_State *L, const void *key)
{
    lua_newtable(L);
    lua_rawsetp(L, LUA_REGISTRYINDEX, key);
}

/* The index is kept last, when everything is there: memory may run out at any
** step. */
names_t *names_get(lua_State *L)
{
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &names_key) == LUA_TUSERDATA) {
        names_t *n = lua_touserdata(L, -1);
        lua_pop(L, 1);
        return n;
    }
    lua_pop(L, 1);
    luaL_checkstack(L, 8, NULL);
    names_t *n = lua_newuserdatauv(L, sizeof *n, 1);
    memset(n, 0, sizeof *n);
    lua_createtable(L, 0, 1);
    lua_pushcfunction(L, names_gc);
    lua_setfield(L, -2, "__gc");
    lua_setmetatable(L, -2);
    lua_newtable(L);
    lua_setiuservalue(L, -2, 1);
    keep_table(L, &registered_key);
    keep_table(L, &classes_key);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &names_key);
    return n;
}

/* The hash. */

static size_t place_of(const names_t *n, const void *key)
{
    uint64_t h = ((uint64_t)(uintptr_t)key >> 3)
                 * UINT64_C(0x9e3779b97f4a7c15);
    return (size_t)(h >> 32) & (n->room - 1);
}

/* The entry of this key, or the free one where it belongs. */
static entry_t *find(const names_t *n, const void *key)
{
    size_t at = place_of(n, key);
    while (n->entries[at].key != NULL && n->entries[at].key != key)
        at = (at + 1) & (n->room - 1);
    return &n->entries[at];
}

bool names_known(const names_t *n, const void *address)
{
    if (n->room == 0)
        return false;
    const entry_t *entry = find(n, address);
    return entry->key != NULL && !entry->data;
}

static bool grow_hash(names_t *n)
{
    names_t larger = *n;
    larger.room = n->room ? n->room * 2 : 256;
    larger.entries = calloc(larger.room, sizeof *larger.entries);
    if (larger.entries == NULL)
        return false;
    for (size_t i = 0; i < n->room; i++)
        if (n->entries[i].key != NULL)
            *find(&larger, n->entries[i].key) = n->entries[i];
    free(n->entries);
    n->entries = larger.entries;
    n->room = larger.room;
    return true;
}

/* The wire form: kind, then one or two names, each a size and bytes. */

static size_t wire_room(const name_t *name)
{
    return 1 + 2 * SIZE_BYTES + name->first_size + name->second_size;
}

static size_t wire_write(uint8_t *start, const name_t *name)
{
    uint8_t *p = start;
    *p++ = (uint8_t)name->kind;
    p = size_write(p, name->first_size);
    memcpy(p, name->first, name->first_size);
    p += name->first_size;
    if (name->kind == NAME_FIELD) {
        p = size_write(p, name->second_size);
        memcpy(p, name->second, name->second_size);
        p += name->second_size;
    }
    return (size_t)(p - start);
}

/* Our own bytes, so they are whole. */
static name_t wire_read(const uint8_t *p, size_t size)
{
    const uint8_t *end = p + size;
    name_t name = { .kind = *p++, .second = "" };
    uint64_t n = 0;
    p = size_read(p, end, &n);
    assert(p != NULL);
    name.first = (const char *)p;
    name.first_size = n;
    if (name.kind == NAME_FIELD) {
        p = size_read(p + n, end, &n);
        assert(p != NULL);
        name.second = (const char *)p;
        name.second_size = n;
    }
    return name;
}

/* "module.field", one character at a time. */
static size_t text_size(const name_t *name)
{
    return name->first_size
           + (name->kind == NAME_FIELD ? 1 + name->second_size : 0);
}

static unsigned char text_at(const name_t *name, size_t i)
{
    if (i < name->first_size)
        return (unsigned char)name->first[i];
    i -= name->first_size;
    return i == 0 ? '.' : (unsigned char)name->second[i - 1];
}

/* Registered, then the shorter, then the first in the alphabet. */
static bool is_better(const name_t *a, const name_t *b)
{
    bool registered = a->kind == NAME_REGISTERED;
    if (registered != (b->kind == NAME_REGISTERED))
        return registered;
    size_t size = text_size(a);
    if (size != text_size(b))
        return size < text_size(b);
    for (size_t i = 0; i < size; i++)
        if (text_at(a, i) != text_at(b, i))
            return text_at(a, i) < text_at(b, i);
    return false;
}

/* gcc's analyzer loses sight of what a userdata leads to, and sees a leak. */
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 10
#pragma GCC diagnostic ignored "-Wanalyzer-malloc-leak"
#endif

/* Makes room for `size` more bytes of wire forms. */
static bool grow_wires(names_t *n, size_t size)
{
    size_t room = 2 * n->wires_room + size + 4096;
    uint8_t *more = room > UINT32_MAX ? NULL : realloc(n->wires, room);
    if (more == NULL)
        return false;
    n->wires = more;
    n->wires_room = room;
    return true;
}

static bool make_room(names_t *n, size_t wire)
{
    if (n->wires_room - n->wires_used < wire && !grow_wires(n, wire))
        return false;
    return 2 * (n->count + 1) <= n->room || grow_hash(n);
}

static void anchor(lua_State *L, int anchors, uint32_t number, int what,
                   int slot)
{
    lua_pushvalue(L, slot);
    lua_rawseti(L, anchors, (lua_Integer)number * ANCHORS + what + 1);
}

/* Enters the object on top of the stack, unless it has a better name. Stack:
** the list of objects is in slot `anchors`. */
static void add(lua_State *L, names_t *n, int anchors, const name_t *name,
                bool data)
{
    const void *key = lua_topointer(L, -1);
    if (!make_room(n, wire_room(name))) {
        luaL_error(L, "not enough memory");
        return;
    }
    entry_t *entry = find(n, key);
    if (entry->key != NULL) {
        name_t old = wire_read(n->wires + entry->at, entry->size);
        if (data != entry->data ? data : !is_better(name, &old))
            return;
    } else {
        entry->key = key;
        entry->anchor = n->anchored++;
        n->count++;
        anchor(L, anchors, entry->anchor, ANCHOR_VALUE, -1);
    }
    anchor(L, anchors, entry->anchor, ANCHOR_FIRST, name->slot);
    anchor(L, anchors, entry->anchor, ANCHOR_SECOND,
           name->kind == NAME_FIELD ? name->second_slot : name->slot);
    entry->at = (uint32_t)n->wires_used;
    entry->size = (uint32_t)wire_write(n->wires + n->wires_used, name)
                  & INT32_MAX;
    entry->data = data;
    n->wires_used += entry->size;
}

/* Building. Nothing below allocates a Lua object between two steps of a
** traversal, so no finalizer can change what is being traversed. */

static bool is_object(lua_State *L, int index)
{
    int type = lua_type(L, index);
    return type == LUA_TTABLE || type == LUA_TFUNCTION
           || type == LUA_TUSERDATA;
}

/* Slots that building uses. */
typedef struct build {
    names_t *n;
    int anchors, index_name, globals_name, globals;
} build_t;

/* Is the table on top of the stack a class? */
static bool is_class(lua_State *L, const build_t *b)
{
    lua_pushvalue(L, b->index_name);
    bool class = lua_rawget(L, -2) != LUA_TNIL;
    lua_pop(L, 1);
    return class;
}

/* Is the value on top of the stack, a field of a module, to be entered? */
static bool is_wanted(lua_State *L, bool globals)
{
    return globals ? lua_iscfunction(L, -1)
                   : lua_isfunction(L, -1) || lua_istable(L, -1);
}

/* The module on top of the stack. */
static void add_fields(lua_State *L, const build_t *b, const name_t *module)
{
    bool globals = lua_rawequal(L, -1, b->globals);
    name_t name = *module;
    name.kind = NAME_FIELD;
    lua_pushnil(L);
    while (lua_next(L, -2)) {
        if (is_wanted(L, globals) && lua_type(L, -2) == LUA_TSTRING) {
            name.second = lua_tolstring(L, -2, &name.second_size);
            name.second_slot = lua_gettop(L) - 1;
            add(L, b->n, b->anchors, &name,
                lua_istable(L, -1) && !is_class(L, b));
        }
        lua_pop(L, 1);
    }
}

/* The classes among the globals, from the table on top, which is popped. */
static void add_classes(lua_State *L, const build_t *b)
{
    name_t name = { .kind = NAME_FIELD, .first = LUA_GNAME,
                    .first_size = sizeof LUA_GNAME - 1,
                    .slot = b->globals_name };
    lua_pushnil(L);
    while (lua_next(L, -2)) {
        name.second = lua_tolstring(L, -2, &name.second_size);
        name.second_slot = lua_gettop(L) - 1;
        add(L, b->n, b->anchors, &name, false);
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
}

/* Enters the values of the table on top of the stack, and pops it. */
static void add_all(lua_State *L, const build_t *b, int kind)
{
    lua_pushnil(L);
    while (lua_next(L, -2)) {
        if (lua_type(L, -2) == LUA_TSTRING && is_object(L, -1)) {
            name_t name = { .kind = kind, .second = "",
                            .slot = lua_gettop(L) - 1 };
            name.first = lua_tolstring(L, -2, &name.first_size);
            add(L, b->n, b->anchors, &name, false);
            if (kind == NAME_MODULE && lua_istable(L, -1))
                add_fields(L, b, &name);
        }
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
}

static void push_loaded(lua_State *L)
{
    luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
}

static void push_registered(lua_State *L)
{
    lua_rawgetp(L, LUA_REGISTRYINDEX, &registered_key);
}

/* What the pair on top of the stack adds to a stamp, which is a sum and so the
** same in any order. The key is a string. */
static uint64_t stamp_pair(lua_State *L, uint64_t seed)
{
    uint64_t v = (uint64_t)(uintptr_t)lua_topointer(L, -1) + seed;
    uint64_t k = (uint64_t)(uintptr_t)lua_topointer(L, -2);
    v = (v ^ k * UINT64_C(0x9e3779b97f4a7c15))
        * UINT64_C(0xff51afd7ed558ccd);
    return v ^ v >> 32;
}

/* The same while the same names stand for the same values. */
static uint64_t stamp_modules(lua_State *L)
{
    uint64_t stamp = 1;
    push_loaded(L);
    lua_pushnil(L);
    while (lua_next(L, -2)) {
        if (lua_type(L, -2) == LUA_TSTRING)
            stamp += stamp_pair(L, 0);
        lua_settop(L, -2);
    }
    lua_pop(L, 1);
    return stamp;
}

/* The module on top of the stack, whose own stamp is `seed`. */
static uint64_t stamp_fields(lua_State *L, const build_t *b, uint64_t seed)
{
    uint64_t stamp = 0;
    bool globals = lua_rawequal(L, -1, b->globals);
    lua_pushnil(L);
    while (lua_next(L, -2)) {
        if (lua_type(L, -2) == LUA_TSTRING) {
            bool class = lua_istable(L, -1) && is_class(L, b);
            if (class || is_wanted(L, globals))
                stamp += stamp_pair(L, seed + class);
        }
        lua_pop(L, 1);
    }
    return stamp;
}

/* The same while all that is entered but what is registered is the same. */
static uint64_t stamp_whole(lua_State *L, const build_t *b)
{
    uint64_t stamp = 1;
    push_loaded(L);
    lua_pushnil(L);
    while (lua_next(L, -2)) {
        if (lua_type(L, -2) == LUA_TSTRING) {
            uint64_t own = stamp_pair(L, 0);
            stamp += own;
            if (lua_istable(L, -1) && !lua_rawequal(L, -1, b->globals))
                stamp += stamp_fields(L, b, own);
        }
        lua_pop(L, 1);
    }
    lua_pushvalue(L, b->globals);
    stamp += stamp_fields(L, b, 0);
    lua_pop(L, 2);
    return stamp ? stamp : 1;
}

/* Pushes the index's userdata. */
static void push_names(lua_State *L)
{
    lua_rawgetp(L, LUA_REGISTRYINDEX, &names_key);
}

static void rebuild(lua_State *L, names_t *n)
{
    int top = lua_gettop(L);
    luaL_checkstack(L, 16, NULL);
    build_t b = { .n = n, .anchors = top + 1, .index_name = top + 2,
                  .globals_name = top + 3, .globals = top + 4 };
    lua_newtable(L);
    lua_pushliteral(L, "__index");
    lua_pushliteral(L, LUA_GNAME);
    lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
    push_names(L);
    lua_pushvalue(L, b.anchors);
    n->current = false;
    n->whole = 0;
    n->anchored = 0;
    n->count = n->wires_used = 0;
    if (n->entries)
        memset(n->entries, 0, n->room * sizeof *n->entries);
    lua_setiuservalue(L, -2, 1);
    lua_pop(L, 1);
    n->stamp = stamp_modules(L);
    n->check_at = 0;
    push_registered(L);
    add_all(L, &b, NAME_REGISTERED);
    push_loaded(L);
    add_all(L, &b, NAME_MODULE);
    lua_rawgetp(L, LUA_REGISTRYINDEX, &classes_key);
    add_classes(L, &b);
    n->current = true;
    lua_settop(L, top);
}

bool names_current(lua_State *L, names_t *n)
{
    uint64_t begun = os_now();
    if (!n->current || begun < n->check_at)
        return n->current;
    luaL_checkstack(L, 8, NULL);
    n->current = stamp_modules(L) == n->stamp;
    uint64_t ended = os_now(), pause = (ended - begun) * CHECK_SHARE;
    n->check_at = ended + (pause < CHECK_MOST ? pause : CHECK_MOST);
    return n->current;
}

bool names_refresh(lua_State *L, names_t *n, bool always)
{
    luaL_checkstack(L, 8, NULL);
    if (!always && n->current && stamp_modules(L) == n->stamp)
        return false;
    rebuild(L, n);
    return true;
}

/* Copies the global classes to the table on top of the stack. */
static void copy_classes(lua_State *L, const build_t *b)
{
    lua_pushnil(L);
    while (lua_next(L, b->globals)) {
        if (lua_type(L, -2) == LUA_TSTRING && lua_istable(L, -1)
            && is_class(L, b)) {
            lua_pushvalue(L, -2);
            lua_insert(L, -2);
            lua_rawset(L, -4);
        } else {
            lua_pop(L, 1);
        }
    }
}

void names_snapshot(lua_State *L)
{
    int top = lua_gettop(L);
    luaL_checkstack(L, 12, NULL);
    build_t b = { .n = names_get(L), .index_name = top + 1,
                  .globals = top + 2 };
    lua_pushliteral(L, "__index");
    lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
    uint64_t whole = stamp_whole(L, &b);
    if (!b.n->current || b.n->whole != whole) {
        b.n->current = false;
        lua_newtable(L);
        copy_classes(L, &b);
        lua_rawsetp(L, LUA_REGISTRYINDEX, &classes_key);
        rebuild(L, b.n);
        b.n->whole = whole;
    }
    lua_settop(L, top);
}

/* From names to objects. */

/* Replaces the name on top of the stack by what the table below it has under
** it, or nil; pops the table. */
static void look_up(lua_State *L)
{
    if (lua_istable(L, -2)) {
        lua_rawget(L, -2);
    } else {
        lua_pop(L, 1);
        lua_pushnil(L);
    }
    lua_replace(L, -2);
}

/* Pushes the table that names of this kind begin in. */
static void push_root(lua_State *L, int kind)
{
    if (kind == NAME_REGISTERED)
        push_registered(L);
    else
        push_loaded(L);
}

/* Pushes what a name stands for now, or nil; requires nothing. */
static void push_named(lua_State *L, const name_t *name)
{
    push_root(L, name->kind);
    lua_pushlstring(L, name->first, name->first_size);
    look_up(L);
    if (name->kind == NAME_FIELD) {
        lua_pushlstring(L, name->second, name->second_size);
        look_up(L);
    }
}

/* The same for an entry, without making a string. */
static void push_entry(lua_State *L, const names_t *n, const entry_t *entry)
{
    int kind = n->wires[entry->at];
    lua_Integer first = (lua_Integer)entry->anchor * ANCHORS + 1;
    push_names(L);
    lua_getiuservalue(L, -1, 1);
    lua_replace(L, -2);
    int anchors = lua_gettop(L);
    push_root(L, kind);
    lua_rawgeti(L, anchors, first + ANCHOR_FIRST);
    look_up(L);
    if (kind == NAME_FIELD) {
        lua_rawgeti(L, anchors, first + ANCHOR_SECOND);
        look_up(L);
    }
    lua_remove(L, anchors);
}

const uint8_t *names_wire(lua_State *L, names_t *n, int index, bool metatable,
                          size_t *size)
{
    if (n->room == 0)
        return NULL;
    const entry_t *entry = find(n, lua_topointer(L, index));
    if (entry->key == NULL || (entry->data && !metatable)
        || !lua_checkstack(L, 8))
        return NULL;
    index = lua_absindex(L, index);
    push_entry(L, n, entry);
    bool same = lua_rawequal(L, -1, index);
    lua_pop(L, 1);
    *size = entry->size;
    return same ? n->wires + entry->at : NULL;
}

/* Pushes the function `require`, whatever has become of the globals. */
static bool push_require(lua_State *L)
{
    const name_t name = { .kind = NAME_FIELD, .first = LUA_GNAME,
                          .first_size = sizeof LUA_GNAME - 1,
                          .second = "require", .second_size = 7 };
    push_named(L, &name);
    return lua_isfunction(L, -1);
}

/* Requires a module for its effect on package.loaded. True, or false with the
** reason pushed. */
static bool require_module(lua_State *L, const name_t *name)
{
    if (!push_require(L)) {
        lua_pushliteral(L, "there is no require");
        return false;
    }
    lua_pushlstring(L, name->first, name->first_size);
    if (lua_pcall(L, 1, 0, 0) == LUA_OK)
        return true;
    if (lua_type(L, -1) != LUA_TSTRING)
        lua_pushfstring(L, "error object is a %s value", luaL_typename(L, -1));
    return false;
}

/* Pushes what a name stands for that push_named has not found, after its
** module has been required; or the reason. May leave more below. */
static bool push_required(lua_State *L, const name_t *name)
{
    name_t module = *name;
    module.kind = NAME_MODULE;
    lua_pushlstring(L, name->first, name->first_size);
    const char *text = lua_tostring(L, -1);
    if (name->kind == NAME_REGISTERED) {
        lua_pushfstring(L, "'%s' is not registered here", text);
        return false;
    }
    push_named(L, &module);
    if (!is_object(L, -1) && !require_module(L, name)) {
        lua_pushfstring(L, "module '%s' cannot be required here: %s", text,
                        lua_tostring(L, -1));
        return false;
    }
    push_named(L, name);
    if (is_object(L, -1))
        return true;
    if (name->kind == NAME_FIELD) {
        lua_pushlstring(L, name->second, name->second_size);
        lua_pushfstring(L, "module '%s' has no '%s' here", text,
                        lua_tostring(L, -1));
    } else {
        lua_pushfstring(L, "module '%s' is no table or function here", text);
    }
    return false;
}

bool names_resolve(lua_State *L, int kind, const char *first,
                   size_t first_size, const char *second, size_t second_size)
{
    name_t name = { .kind = kind, .first = first, .second = second,
                    .first_size = first_size, .second_size = second_size };
    names_get(L);
    luaL_checkstack(L, 16, NULL);
    push_named(L, &name);
    if (is_object(L, -1))
        return true;
    lua_pop(L, 1);
    int top = lua_gettop(L);
    bool found = push_required(L, &name);
    lua_insert(L, top + 1);
    lua_settop(L, top + 1);
    return found;
}

/* register(name, value) */

void names_register(lua_State *L)
{
    names_t *n = names_get(L);
    name_t name = { .kind = NAME_REGISTERED, .second = "", .slot = 1 };
    name.first = luaL_checklstring(L, 1, &name.first_size);
    luaL_argexpected(L, is_object(L, 2), 2, "table, function or userdata");
    lua_settop(L, 2);
    push_registered(L);
    lua_pushvalue(L, 1);
    if (lua_rawget(L, -2) != LUA_TNIL && !lua_rawequal(L, -1, 2))
        n->current = false;     /* the old value has lost its name */
    lua_pop(L, 1);
    lua_pushvalue(L, 1);
    lua_pushvalue(L, 2);
    lua_rawset(L, -3);
    /* Plain data is looked up without a refresh, so it must be there now. */
    push_names(L);
    lua_getiuservalue(L, -1, 1);
    lua_pushvalue(L, 2);
    add(L, n, 5, &name, false);
    lua_settop(L, 2);
}
