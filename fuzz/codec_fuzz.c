/*
** codec_fuzz.c - libFuzzer target for the value codec (make fuzz).
**
** The first byte of an input says what the rest is:
**
**   bit 0 clear  a message, to be decoded as it is;
**   bit 0 set    a program that builds values (see build_value). They are
**                encoded, must decode to something that encodes again; then
**                the rest of the input damages the message, which is decoded
**                once more.
**   bit 1 set    the next byte says how many of Lua's allocations succeed
**                before a few of them fail.
**
** What must hold: no crash, no complaint of a sanitizer, no more memory than
** MEMORY_CAP for inputs of a few KiB, errors raised only for want of memory;
** and what has been accepted can be encoded and decoded again.
**
** One Lua state serves all inputs. It has no library that could do harm when
** a damaged message calls a constructor by name: nothing that loads code,
** touches files or takes long.
*/
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include "bind_codec.h"
#include "codec.h"
#include "names.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    MEMORY_CAP = 256 << 20,
    COLLECT_EVERY = 100,    /* inputs */
    DEPTH = 6,
    DAMAGES = 12,
    VALUES = 4
};

typedef struct input {
    const uint8_t *p, *end;
} input_t;

enum { FAILURES = 6 };      /* in a row, so that trying again is no way out */

static size_t in_use;
static unsigned until_failure;  /* allocations; 0: none will fail */

static void *allocate(void *context, void *p, size_t old, size_t size)
{
    (void)context;
    if (p == NULL)
        old = 0;            /* then it is the kind of object */
    if (size == 0) {
        in_use -= old;
        free(p);
        return NULL;
    }
    if (size > old && in_use + (size - old) > MEMORY_CAP)
        return NULL;
    if (until_failure > 0 && size > old && --until_failure < FAILURES)
        return NULL;
    void *fresh = realloc(p, size);
    if (fresh)
        in_use += size - old;
    return fresh;
}

static void fail(lua_State *L, const char *what)
{
    const char *s = lua_tostring(L, -1);
    fprintf(stderr, "codec_fuzz: %s: %s\n", what, s ? s : "?");
    abort();
}

/* Does the text on top of the stack speak of memory? */
static bool is_want_of_memory(lua_State *L)
{
    const char *s = lua_tostring(L, -1);
    return s && strstr(s, "memory");
}

/* The state. */

static const char *const HARMFUL[] = {
    "collectgarbage", "dofile", "load", "loadfile", "require", "print",
    "warn", "pcall", "xpcall", "error", NULL
};

static const char CLASSES[] =
    "local Point = {} Point.__index = Point\n"
    "local function make(a, b) return { a = a, b = b } end\n"
    "local Made = { __reduce = function(o) return make, o.a, o.b end }\n"
    "return { Point = Point, make = make, Made = Made }\n";

/* Libraries without long loops: of string only what ends soon. */
static void open_libraries(lua_State *L)
{
    luaL_requiref(L, LUA_GNAME, luaopen_base, 1);
    for (const char *const *name = HARMFUL; *name; name++) {
        lua_pushnil(L);
        lua_setfield(L, -2, *name);
    }
    lua_pop(L, 1);
    luaL_requiref(L, LUA_MATHLIBNAME, luaopen_math, 1);
    lua_pop(L, 1);
    luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
    if (luaL_dostring(L, CLASSES))
        fail(L, "classes");
    lua_setfield(L, -2, "shapes");
    lua_pop(L, 1);
}

static void register_value(lua_State *L, const char *name)
{
    lua_pushcfunction(L, bind_codec_functions[2].func);
    lua_pushstring(L, name);
    lua_newtable(L);
    lua_call(L, 2, 0);
}

static lua_State *open_state(void)
{
    lua_State *L = lua_newstate(allocate, NULL);
    if (L == NULL)
        abort();
    open_libraries(L);
    register_value(L, "R");
    lua_newtable(L);
    lua_setglobal(L, "built");
    return L;
}

/* Values out of bytes. */

static unsigned next(input_t *in)
{
    return in->p < in->end ? *in->p++ : 0;
}

static uint64_t next_bytes(input_t *in, int count)
{
    uint64_t v = 0;
    while (count-- > 0)
        v = v << 8 | next(in);
    return v;
}

static void build_string(lua_State *L, input_t *in)
{
    char bytes[256];
    unsigned size = next(in);
    for (unsigned i = 0; i < size; i++)
        bytes[i] = (char)(i % 8 ? 'a' + i % 3 : next(in));
    lua_pushlstring(L, bytes, size);
}

static void build_value(lua_State *L, input_t *in, int depth);

static void build_list(lua_State *L, input_t *in)
{
    unsigned kind = next(in), size = next(in) * 3;
    lua_createtable(L, (int)size, 0);
    for (unsigned i = 1; i <= size; i++) {
        if (kind & 1)
            lua_pushinteger(L, (lua_Integer)(next_bytes(in, kind >> 1 & 7)));
        else
            lua_pushnumber(L, (lua_Number)next(in) / 3);
        lua_rawseti(L, -2, i);
    }
}

/* Every object that has been built can be met again. */
static void keep(lua_State *L)
{
    lua_getglobal(L, "built");
    lua_pushvalue(L, -2);
    lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
    lua_pop(L, 1);
}

static void build_again(lua_State *L, input_t *in)
{
    lua_getglobal(L, "built");
    lua_rawgeti(L, -1, (lua_Integer)next(in) + 1);
    lua_replace(L, -2);
}

static void push_class(lua_State *L, const char *name)
{
    luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
    lua_getfield(L, -1, "shapes");
    lua_getfield(L, -1, name);
    lua_replace(L, -3);
    lua_pop(L, 1);
}

static void build_table(lua_State *L, input_t *in, int depth)
{
    lua_newtable(L);
    keep(L);
    for (unsigned i = next(in) % 8; i > 0; i--) {
        build_value(L, in, depth - 1);
        if (lua_isnil(L, -1)
            || (lua_type(L, -1) == LUA_TNUMBER
                && lua_tonumber(L, -1) != lua_tonumber(L, -1))) {
            lua_pop(L, 1);
            continue;
        }
        build_value(L, in, depth - 1);
        lua_rawset(L, -3);
    }
    switch (next(in) % 8) {
    case 0: push_class(L, "Point"); break;
    case 1: push_class(L, "Made"); break;
    case 2: build_table(L, in, 0); break;
    case 3: lua_pushvalue(L, -1); break;
    default: return;
    }
    lua_setmetatable(L, -2);
}

static void build_function(lua_State *L, input_t *in, int depth)
{
    static const char *const SOURCES[] = {
        "local a, b = ... return function() return a, b end",
        "local a, b = ... return function() a = b return built end",
        "local a, b = ... local function f() return f, a end return f"
    };
    if (luaL_loadstring(L, SOURCES[next(in) % 3]) != LUA_OK)
        fail(L, "source");
    build_value(L, in, depth - 1);
    build_value(L, in, depth - 1);
    lua_call(L, 2, 1);
    keep(L);
}

static void build_value(lua_State *L, input_t *in, int depth)
{
    double number;
    uint64_t bits;
    luaL_checkstack(L, 16, NULL);
    switch (next(in) % (depth > 0 ? 15 : 9)) {
    case 0: lua_pushnil(L); break;
    case 1: lua_pushboolean(L, next(in) & 1); break;
    case 2: lua_pushinteger(L, next(in)); break;
    case 3: lua_pushinteger(L, (lua_Integer)next_bytes(in, 8)); break;
    case 4:
        bits = next_bytes(in, 8);
        memcpy(&number, &bits, 8);
        lua_pushnumber(L, number);
        break;
    case 5: build_string(L, in); break;
    case 6: build_again(L, in); break;
    case 7: build_list(L, in); break;
    case 8: lua_pushglobaltable(L); break;
    case 9: build_function(L, in, depth); break;
    case 10: push_class(L, next(in) & 1 ? "Point" : "make"); break;
    default: build_table(L, in, depth); break;
    }
}

/* What must hold. */

static int grow(buffer_t *b, size_t need)
{
    size_t room = 2 * b->room + need;
    uint8_t *more = realloc(b->data, room);
    if (more == NULL)
        abort();
    b->data = more;
    b->room = room;
    return 0;
}

static buffer_t out = { .grow = grow };

/* What lies above slot `base` has come out of a message: it goes in again,
** and comes out again as many. */
static void check_again(lua_State *L, int base)
{
    int count = lua_gettop(L) - base;
    out.used = 0;
    if (codec_encode(L, base + 1, count, "args", &out) < 0) {
        /* A constructor may have returned anything. */
        const char *s = lua_tostring(L, -1);
        if (strstr(s, "userdata") || strstr(s, "C function")
            || strstr(s, "__reduce"))
            return;
        if (is_want_of_memory(L))
            return;
        fail(L, "accepted, but not to be encoded");
    }
    if (codec_decode(L, out.data, out.used) != count
        && !is_want_of_memory(L))
        fail(L, "encoded, but not to be decoded");
}

/* Decodes bytes that end where their block of memory ends. */
static void decode_exactly(lua_State *L, const uint8_t *data, size_t size)
{
    uint8_t *copy = lua_newuserdatauv(L, size, 0);
    if (size > 0)
        memcpy(copy, data, size);
    int base = lua_gettop(L);
    int count = codec_decode(L, copy, size);
    if (lua_gettop(L) - base != (count == -1 ? 1 : count))
        fail(L, "wrong number of values");
    if (count == -1 && lua_type(L, -1) != LUA_TSTRING)
        fail(L, "no reason");
    if (count >= 0)
        check_again(L, base);
    lua_settop(L, base - 1);
}

/* Encodes what was built, then damages it as the input says. */
static void damage(lua_State *L, int count, input_t *in)
{
    out.used = 0;
    if (codec_encode(L, 1, count, "args", &out) < 0)
        return;
    size_t size = out.used;
    uint8_t *message = lua_newuserdatauv(L, size, 0);
    memcpy(message, out.data, size);
    int base = lua_gettop(L);
    if (codec_decode(L, message, size) != count && !is_want_of_memory(L))
        fail(L, "encoded, but not to be decoded");
    lua_settop(L, base);
    for (int i = 0; i < DAMAGES && in->p < in->end; i++) {
        size_t at = next_bytes(in, 2) % size;
        message[at] = (uint8_t)next(in);
        if (next(in) % 4 == 0)
            decode_exactly(L, message, next_bytes(in, 2) % (size + 1));
    }
    decode_exactly(L, message, size);
}

/* Protected: light userdata with the input. */
static int one_input(lua_State *L)
{
    input_t *in = lua_touserdata(L, 1);
    lua_settop(L, 0);
    unsigned kind = next(in);
    unsigned allowed = kind & 2 ? next(in) + FAILURES + 1 : 0;
    if (!(kind & 1)) {
        until_failure = allowed;
        decode_exactly(L, in->p, (size_t)(in->end - in->p));
        return 0;
    }
    lua_newtable(L);
    lua_setglobal(L, "built");
    int count = (int)(next(in) % VALUES);
    for (int i = 0; i < count; i++)
        build_value(L, in, DEPTH);
    until_failure = allowed;
    damage(L, count, in);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static lua_State *L;
    static unsigned inputs;
    if (L == NULL)
        L = open_state();
    if (size == 0)
        return 0;
    input_t in = { data, data + size };
    lua_settop(L, 0);
    lua_pushcfunction(L, one_input);
    lua_pushlightuserdata(L, &in);
    int status = lua_pcall(L, 1, 0, 0);
    until_failure = 0;
    if (status != LUA_OK && status != LUA_ERRMEM && !is_want_of_memory(L))
        fail(L, "an error was raised");
    lua_settop(L, 0);
    if (++inputs % COLLECT_EVERY == 0)
        lua_gc(L, LUA_GCCOLLECT);
    return 0;
}
