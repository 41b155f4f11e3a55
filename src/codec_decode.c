/*
** codec_decode.c - a message becomes values.
**
** Nothing that is read is believed. Every byte is fetched once, sizes are
** compared with the bytes that are left, counts of items only with a budget
** of as many as the message has bytes, so that no message makes its reader
** allocate more than a fixed multiple of its own size. A damaged message
** gives a reason, never a crash.
**
** Scalars and strings, which are most arguments and results, are pushed
** without any state. The first value that is neither brings in the codec and
** the work stack, and stays in charge of the rest of the message.
**
** Run by the parent (results) and by workers (functions, arguments). User
** code runs in two places only, both protected: a module that has to be
** required for a name, and the constructor of a reduced object.
*/
#include "bind_large.h"
#include "codec.h"
#include "codec_state.h"

#include <limits.h>
#include <string.h>

#include <lauxlib.h>

typedef enum result {
    DONE = 0,           /* the value is on top of the stack */
    CHILD = 1,          /* it became the top frame's container */
    FAILED = -1         /* the reason is on top of the stack */
} result_t;

/* Stack slots above the values read so far, from decoder_t.helpers on. */
enum {
    HELP_CODEC,         /* keeps it alive */
    HELP_STRINGS,       /* list of strings by slot + 1; nil until needed */
    HELP_REFS,          /* offset -> object, nil until needed; see put_upref */
    HELP_LATE,          /* list: table, metatable, ...; nil until needed */
    HELP_SPILL,         /* see window_t */
    HELPERS
};

typedef struct decoder {
    lua_State *L;
    const uint8_t *start, *p, *end;
    codec_t *codec;
    window_t window;
    size_t budget;      /* array items and half pairs still to be believed */
    int helpers;        /* stack slot of the first */
    bool back;          /* a frame has ended, its value is on top */
} decoder_t;

/* Reasons. */

static result_t damaged(decoder_t *d, const char *what)
{
    lua_checkstack(d->L, 4);
    lua_pushfstring(d->L, "damaged message: %s at byte %I", what,
                    (lua_Integer)(d->p - d->start));
    return FAILED;
}

static result_t no_memory(decoder_t *d)
{
    lua_checkstack(d->L, 4);
    lua_pushliteral(d->L, "not enough memory");
    return FAILED;
}

static inline size_t left(const decoder_t *d)
{
    return (size_t)(d->end - d->p);
}

/*
** Pushes the scalar or unshared string at p and returns what follows it. NULL
** if it is neither or is cut short: whoever asks then finds out which.
*/
static inline const uint8_t *read_plain(lua_State *L, const uint8_t *p,
                                        const uint8_t *end)
{
    int16_t v2;
    int32_t v4;
    int64_t v8;
    double number;
    uint64_t size;
    if (p >= end)
        return NULL;
    uint8_t tag = *p++;
    size_t rest = (size_t)(end - p);
    if (tag < TAG_TINY_STRINGS) {
        lua_pushinteger(L, tag);
        return p;
    }
    if (tag < TAG_NIL) {
        size = tag - TAG_TINY_STRINGS;
        if (rest < size)
            return NULL;
        lua_pushlstring(L, (const char *)p, size);
        return p + size;
    }
    switch (tag) {
    case TAG_NIL:
        lua_pushnil(L);
        return p;
    case TAG_FALSE:
    case TAG_TRUE:
        lua_pushboolean(L, tag == TAG_TRUE);
        return p;
    case TAG_FLOAT:
        if (rest < 8)
            return NULL;
        memcpy(&number, p, 8);
        lua_pushnumber(L, number);
        return p + 8;
    case TAG_INTEGER1:
        if (rest < 1)
            return NULL;
        lua_pushinteger(L, (int8_t)*p);
        return p + 1;
    case TAG_INTEGER2:
        if (rest < 2)
            return NULL;
        memcpy(&v2, p, 2);
        lua_pushinteger(L, v2);
        return p + 2;
    case TAG_INTEGER4:
        if (rest < 4)
            return NULL;
        memcpy(&v4, p, 4);
        lua_pushinteger(L, v4);
        return p + 4;
    case TAG_INTEGER8:
        if (rest < 8)
            return NULL;
        memcpy(&v8, p, 8);
        lua_pushinteger(L, v8);
        return p + 8;
    case TAG_STRING:
        p = size_read(p, end, &size);
        if (p == NULL || (size_t)(end - p) < size)
            return NULL;
        push_string(L, p, size);
        return p + size;
    default:
        return NULL;
    }
}

static inline bool read_size(decoder_t *d, uint64_t *n)
{
    const uint8_t *p = size_read(d->p, d->end, n);
    if (p == NULL)
        return false;
    d->p = p;
    return true;
}

/* A size and that many bytes; NULL if they are not there. */
static const uint8_t *read_bytes(decoder_t *d, uint64_t *size)
{
    if (!read_size(d, size) || left(d) < *size)
        return NULL;
    const uint8_t *bytes = d->p;
    d->p += *size;
    return bytes;
}

/* References. Only what will be referred to is kept: the tag says so. */

/* Pushes the table of references. */
static void push_refs(decoder_t *d)
{
    lua_State *L = d->L;
    lua_pushvalue(L, d->helpers + HELP_REFS);
    if (!lua_isnil(L, -1))
        return;
    lua_pop(L, 1);
    lua_newtable(L);
    lua_pushvalue(L, -1);
    lua_replace(L, d->helpers + HELP_REFS);
}

static char nil_mark;       /* its address: a reference to nil */

/* The value on top of the stack is what its tag at `at` stands for. */
static void put_ref(decoder_t *d, uint64_t at)
{
    push_refs(d);
    if (lua_isnil(d->L, -2))
        lua_pushlightuserdata(d->L, &nil_mark);
    else
        lua_pushvalue(d->L, -2);
    lua_rawseti(d->L, -2, (lua_Integer)at);
    lua_pop(d->L, 1);
}

/*
** Upvalue n of the function in slot -2 may be joined. Upvalues are no values:
** they lie under negative keys, where no object's offset is.
*/
static void put_upref(decoder_t *d, uint64_t at, lua_Integer n)
{
    lua_State *L = d->L;
    push_refs(d);
    lua_pushvalue(L, -3);
    lua_rawseti(L, -2, -2 * (lua_Integer)at);
    lua_pushinteger(L, n);
    lua_rawseti(L, -2, -2 * (lua_Integer)at - 1);
    lua_pop(L, 1);
}

/* The offset after a REF or UPREF; 0 if it cannot be one. */
static uint64_t read_offset(decoder_t *d)
{
    uint64_t here = (uint64_t)(d->p - d->start), where;
    if (!read_size(d, &where) || where >= here
        || lua_isnil(d->L, d->helpers + HELP_REFS))
        return 0;
    return where;
}

static result_t read_ref(decoder_t *d)
{
    lua_State *L = d->L;
    uint64_t where = read_offset(d);
    if (where == 0)
        return damaged(d, "bad reference");
    int type = lua_rawgeti(L, d->helpers + HELP_REFS, (lua_Integer)where);
    if (type == LUA_TNIL)
        return damaged(d, "reference to nothing");
    if (lua_touserdata(L, -1) == &nil_mark) {
        lua_pop(L, 1);
        lua_pushnil(L);
    }
    return DONE;
}

/* Strings. */

static result_t read_shared_string(decoder_t *d, uint64_t at)
{
    uint64_t size;
    const uint8_t *s = read_bytes(d, &size);
    if (s == NULL)
        return damaged(d, "string cut short");
    push_string(d->L, s, size);
    put_ref(d, at);
    return DONE;
}

static result_t read_definition(decoder_t *d)
{
    lua_State *L = d->L;
    if (left(d) < 2)
        return damaged(d, "string cut short");
    unsigned slot = d->p[0], size = d->p[1];
    if (slot >= SLOTS || size > left(d) - 2)
        return damaged(d, "bad string slot");
    if (lua_isnil(L, d->helpers + HELP_STRINGS)) {
        lua_getiuservalue(L, d->helpers + HELP_CODEC, SLOT_STRINGS);
        lua_replace(L, d->helpers + HELP_STRINGS);
    }
    lua_pushlstring(L, (const char *)d->p + 2, size);
    d->p += 2 + size;
    lua_pushvalue(L, -1);
    lua_rawseti(L, d->helpers + HELP_STRINGS, (int)slot + 1);
    d->codec->slots[slot].epoch = d->codec->epoch;
    return DONE;
}

static inline result_t read_slot(decoder_t *d, unsigned slot)
{
    if (slot >= SLOTS || d->codec->slots[slot].epoch != d->codec->epoch)
        return damaged(d, "unknown string slot");
    lua_rawgeti(d->L, d->helpers + HELP_STRINGS, (int)slot + 1);
    return DONE;
}

/* Frames. */

static frame_t *open_frame(decoder_t *d, kind_t kind, frame_mode_t mode,
                           uint64_t at)
{
    frame_t *f = window_push(&d->window, d->codec);
    if (f == NULL)
        return NULL;
    f->kind = (uint8_t)kind;
    f->mode = (uint8_t)mode;
    f->at = at;
    f->next = 1;
    return f;
}

/* The top frame's value is complete and on top of the stack, its second slot
** gone. */
static result_t close_frame(decoder_t *d)
{
    window_pop(&d->window);
    d->back = true;
    return DONE;
}

/* Is the object whose tag is at this offset still being read? The offsets of
** frames increase from the bottom to the top. */
static bool is_open(const decoder_t *d, uint64_t where)
{
    size_t low = 0, high = d->window.depth;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        uint64_t at = d->window.frames[middle].at;
        if (at == where)
            return true;
        if (at < where)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

/* Names. */

static result_t read_name(decoder_t *d, uint64_t at, bool shared)
{
    uint64_t first_size, second_size = 0;
    const uint8_t *first, *second = NULL;
    if (left(d) < 1)
        return damaged(d, "name cut short");
    int kind = *d->p++;
    if (kind > NAME_FIELD)
        return damaged(d, "unknown kind of name");
    first = read_bytes(d, &first_size);
    if (first && kind == NAME_FIELD)
        second = read_bytes(d, &second_size);
    if (first == NULL || (kind == NAME_FIELD && second == NULL))
        return damaged(d, "name cut short");
    if (!names_resolve(d->L, kind, (const char *)first, first_size,
                       (const char *)second, second_size))
        return FAILED;
    if (shared)
        put_ref(d, at);
    return DONE;
}

/* Tables. */

static result_t read_table(decoder_t *d, uint8_t tag, uint64_t at)
{
    lua_State *L = d->L;
    uint64_t items = 0;
    bool list = (tag & ~TAG_SHARED) == TAG_TABLE_A;
    if ((list && !read_size(d, &items)) || left(d) < 1)
        return damaged(d, "table cut short");
    uint64_t pairs = hint_pairs(*d->p++);
    if (items > d->budget)
        items = d->budget;
    d->budget -= items;
    if (pairs > d->budget / 2)
        pairs = d->budget / 2;
    d->budget -= 2 * pairs;
    push_table(L, items > INT_MAX ? INT_MAX : (int)items,
               pairs > INT_MAX / 2 ? INT_MAX / 2 : (int)pairs);
    if (tag & TAG_SHARED)
        put_ref(d, at);
    if (!open_frame(d, FRAME_TABLE, list ? MODE_ARRAY : MODE_PAIRS, at))
        return no_memory(d);
    if (list)
        lua_pushnil(L);
    return CHILD;
}

/* Copies a run of integers into the table below the top slot. */
static void set_integers(lua_State *L, const uint8_t *p, unsigned width,
                         unsigned count, lua_Integer next)
{
    int16_t v2;
    int32_t v4;
    int64_t v8;
    lua_Integer end = next + count;
    switch (width) {
    case 1:
        for (; next < end; next++, p += 1) {
            lua_pushinteger(L, (int8_t)*p);
            lua_rawseti(L, -3, next);
        }
        break;
    case 2:
        for (; next < end; next++, p += 2) {
            memcpy(&v2, p, 2);
            lua_pushinteger(L, v2);
            lua_rawseti(L, -3, next);
        }
        break;
    case 4:
        for (; next < end; next++, p += 4) {
            memcpy(&v4, p, 4);
            lua_pushinteger(L, v4);
            lua_rawseti(L, -3, next);
        }
        break;
    default:
        for (; next < end; next++, p += 8) {
            memcpy(&v8, p, 8);
            lua_pushinteger(L, v8);
            lua_rawseti(L, -3, next);
        }
        break;
    }
}

static void set_floats(lua_State *L, const uint8_t *p, unsigned count,
                       lua_Integer next)
{
    for (lua_Integer end = next + count; next < end; next++, p += 8) {
        double v;
        memcpy(&v, p, 8);
        lua_pushnumber(L, v);
        lua_rawseti(L, -3, next);
    }
}

static result_t read_run(decoder_t *d, frame_t *f, uint8_t tag)
{
    unsigned width = 8;
    uint16_t count;
    if (left(d) < 3)
        return damaged(d, "numbers cut short");
    if (tag == TAG_INTEGERS) {
        width = *d->p++;
        if (width != 1 && width != 2 && width != 4 && width != 8)
            return damaged(d, "numbers of no known width");
    }
    memcpy(&count, d->p, 2);
    d->p += 2;
    size_t size = (size_t)width * count;
    if (left(d) < size)
        return damaged(d, "numbers cut short");
    if (tag == TAG_INTEGERS)
        set_integers(d->L, d->p, width, count, f->next);
    else
        set_floats(d->L, d->p, count, f->next);
    f->next += count;
    d->p += size;
    return DONE;
}

static result_t read_value(decoder_t *d);

/*
** The items of a list, up to its pairs or its end. Stack: table, nil; on DONE
** table alone.
*/
static result_t read_items(decoder_t *d, frame_t *f)
{
    lua_State *L = d->L;
    while (d->p < d->end) {
        uint8_t tag = *d->p;
        result_t r = DONE;
        if (tag == TAG_NIL) {
            d->p++;
            f->next++;
            continue;
        }
        const uint8_t *p = read_plain(L, d->p, d->end);
        if (p) {
            d->p = p;
            lua_rawseti(L, -3, f->next++);
            continue;
        }
        switch (tag) {
        case TAG_INTEGERS:
        case TAG_FLOATS:
            d->p++;
            r = read_run(d, f, tag);
            break;
        case TAG_PAIRS:
            d->p++;     /* fall through */
        case TAG_END:
        case TAG_META:
            f->mode = MODE_PAIRS;
            lua_pop(L, 1);
            return DONE;
        default:
            r = read_value(d);
            if (r == DONE)
                lua_rawseti(L, -3, f->next++);
        }
        if (r != DONE)
            return r;
    }
    return damaged(d, "list without end");
}

/* Neither nil nor NaN, which `lua_rawset` would raise an error about. */
static bool is_key(lua_State *L)
{
    if (lua_type(L, -1) == LUA_TNUMBER) {
        lua_Number n = lua_tonumber(L, -1);
        return n == n;
    }
    return !lua_isnil(L, -1);
}

/* The metatable on top of the stack goes to the table in slot -3. `where`:
** offset that it was referred to by, or 0. Leaves the table alone. */
static result_t set_metatable(decoder_t *d, uint64_t where)
{
    lua_State *L = d->L;
    if (!lua_istable(L, -1) && !lua_isnil(L, -1))
        return damaged(d, "metatable is no table");
    if (where && is_open(d, where)) {
        /* Lua looks for __gc when a metatable is set: once more at the end. */
        if (lua_isnil(L, d->helpers + HELP_LATE)) {
            lua_newtable(L);
            lua_replace(L, d->helpers + HELP_LATE);
        }
        lua_Integer n = (lua_Integer)lua_rawlen(L, d->helpers + HELP_LATE);
        lua_pushvalue(L, -3);
        lua_rawseti(L, d->helpers + HELP_LATE, n + 1);
        lua_pushvalue(L, -1);
        lua_rawseti(L, d->helpers + HELP_LATE, n + 2);
    }
    lua_setmetatable(L, -3);
    lua_pop(L, 1);
    return close_frame(d);
}

/* What follows META. Stack: table. */
static result_t read_metatable(decoder_t *d, frame_t *f)
{
    lua_pushnil(d->L);
    f->mode = MODE_META;
    uint64_t where = 0;
    if (left(d) > 1 && d->p[0] == TAG_REF)
        size_read(d->p + 1, d->end, &where);
    result_t r = read_value(d);
    return r == DONE ? set_metatable(d, where) : r;
}

/* The value of the pair whose key is on top. Stack: table, key. */
static inline result_t read_pair_value(decoder_t *d, frame_t *f)
{
    const uint8_t *p = read_plain(d->L, d->p, d->end);
    if (p) {
        d->p = p;
    } else {
        f->mode = MODE_VALUE;
        result_t r = read_value(d);
        if (r != DONE)
            return r;
        f->mode = MODE_PAIRS;
    }
    lua_rawset(d->L, -3);
    return DONE;
}

/* A key that is not in a key slot. Stack: table. */
static result_t read_key(decoder_t *d, frame_t *f)
{
    const uint8_t *p = read_plain(d->L, d->p, d->end);
    if (p) {
        d->p = p;
    } else {
        f->mode = MODE_KEY;
        lua_pushnil(d->L);
        result_t r = read_value(d);
        if (r != DONE)
            return r;
        f->mode = MODE_PAIRS;
        lua_replace(d->L, -2);
    }
    return is_key(d->L) ? DONE : damaged(d, "nil or NaN as a key");
}

/* Pairs, up to the end of the table. Stack: table. */
static result_t read_pairs(decoder_t *d, frame_t *f)
{
    while (d->p < d->end) {
        uint8_t tag = *d->p;
        result_t r;
        if (tag >= TAG_KEYS) {
            d->p++;
            r = read_slot(d, tag - TAG_KEYS);
        } else if (tag == TAG_END) {
            d->p++;
            return close_frame(d);
        } else if (tag == TAG_META) {
            d->p++;
            return read_metatable(d, f);
        } else {
            r = read_key(d, f);
        }
        if (r == DONE)
            r = read_pair_value(d, f);
        if (r != DONE)
            return r;
    }
    return damaged(d, "table without end");
}

/* Goes on with a table. Stack: its two slots, and on them what came back. */
static result_t step_table(decoder_t *d, frame_t *f)
{
    lua_State *L = d->L;
    result_t r = DONE;
    bool back = d->back;
    d->back = false;
    switch ((frame_mode_t)f->mode) {
    case MODE_ARRAY:
        if (back)
            lua_rawseti(L, -3, f->next++);
        r = read_items(d, f);
        break;
    case MODE_KEY:
        if (!is_key(L))
            return damaged(d, "nil or NaN as a key");
        lua_replace(L, -2);
        f->mode = MODE_PAIRS;
        r = read_pair_value(d, f);
        break;
    case MODE_VALUE:
        lua_rawset(L, -3);
        f->mode = MODE_PAIRS;
        break;
    case MODE_META:
        return set_metatable(d, 0);
    default:
        break;
    }
    return r == DONE ? read_pairs(d, f) : r;
}

/* Functions. */

/* Lua does not verify bytecode: only what has arrived whole is loaded. */
#if defined(__clang__)
__attribute__((no_sanitize("coverage")))    /* no hints for a fuzzer */
#endif
static bool is_intact(const uint8_t *dump, size_t size, uint32_t sum)
{
    return checksum(dump, size) == sum;
}

/* Pushes the closure of a dump, which is copied first: what is checked is
** then what is loaded. */
static result_t load_dump(decoder_t *d, const uint8_t *dump, size_t size,
                          uint32_t sum, int upvalues)
{
    lua_State *L = d->L;
    lua_Debug ar;
    uint8_t small[512];
    uint8_t *copy = size <= sizeof small ? small
                                         : codec_scratch(d->codec, size);
    if (copy == NULL)
        return no_memory(d);
    memcpy(copy, dump, size);
    if (!is_intact(copy, size, sum))
        return damaged(d, "function changed");
    if (luaL_loadbufferx(L, (const char *)copy, size, "=?", "b") != LUA_OK)
        return FAILED;
    lua_pushvalue(L, -1);
    lua_getinfo(L, ">u", &ar);
    if (ar.nups != upvalues)
        return damaged(d, "wrong number of upvalues");
    return DONE;
}

static result_t read_function(decoder_t *d, uint64_t at, bool shared)
{
    uint64_t size;
    uint32_t sum;
    if (left(d) < 1)
        return damaged(d, "function cut short");
    int upvalues = *d->p++;
    if (!read_size(d, &size) || left(d) < 4 || left(d) - 4 < size)
        return damaged(d, "function cut short");
    memcpy(&sum, d->p, 4);
    result_t r = load_dump(d, d->p + 4, size, sum, upvalues);
    if (r != DONE)
        return r;
    d->p += 4 + size;
    if (shared)
        put_ref(d, at);
    if (upvalues == 0)
        return DONE;
    frame_t *f = open_frame(d, FRAME_FUNCTION, MODE_VALUES, at);
    if (f == NULL)
        return no_memory(d);
    f->last = upvalues;
    lua_pushnil(d->L);
    return CHILD;
}

/* The next upvalue is one that is there already. Stack: function, nil. */
static result_t join_upvalue(decoder_t *d, frame_t *f)
{
    lua_State *L = d->L;
    lua_Integer where = (lua_Integer)read_offset(d);
    int refs = d->helpers + HELP_REFS;
    if (where == 0)
        return damaged(d, "bad reference");
    if (lua_rawgeti(L, refs, -2 * where) != LUA_TFUNCTION)
        return damaged(d, "reference to no upvalue");
    lua_rawgeti(L, refs, -2 * where - 1);
    int n = (int)lua_tointeger(L, -1);
    lua_pop(L, 1);
    lua_upvaluejoin(L, -3, (int)f->next++, -1, n);
    lua_pop(L, 1);
    return DONE;
}

/*
** Goes on with a function: every upvalue is set, since `load` has given it
** fresh ones and put the globals into the first, whatever that is.
*/
static result_t step_function(decoder_t *d, frame_t *f)
{
    lua_State *L = d->L;
    if (d->back) {
        d->back = false;
        lua_setupvalue(L, -3, (int)f->next++);
    }
    while (f->next <= f->last) {
        uint64_t at = (uint64_t)(d->p - d->start);
        uint8_t tag = d->p < d->end ? *d->p++ : TAG_END;
        result_t r;
        if (tag == TAG_UPREF) {
            r = join_upvalue(d, f);
        } else if ((tag & ~TAG_SHARED) == TAG_UPVALUE) {
            if (tag & TAG_SHARED)
                put_upref(d, at, f->next);
            r = read_value(d);
            if (r == DONE)
                lua_setupvalue(L, -3, (int)f->next++);
        } else {
            return damaged(d, "upvalue expected");
        }
        if (r != DONE)
            return r;
    }
    lua_pop(L, 1);
    return close_frame(d);
}

/* Reduced objects. */

static result_t read_reduced(decoder_t *d, uint64_t at, bool shared)
{
    uint64_t count;
    if (!read_size(d, &count) || count == 0 || count > left(d))
        return damaged(d, "bad number of arguments");
    uint64_t room = count > d->budget ? d->budget : count;
    d->budget -= room;
    lua_createtable(d->L, room > INT_MAX ? INT_MAX : (int)room, 0);
    frame_t *f = open_frame(d, FRAME_REDUCED, MODE_VALUES, at);
    if (f == NULL)
        return no_memory(d);
    f->last = (int64_t)count;
    f->shared = shared;
    lua_pushnil(d->L);
    return CHILD;
}

/* Replaces the list on top of the stack, constructor and arguments, by what
** the call returns. */
static result_t construct(decoder_t *d, int64_t count)
{
    lua_State *L = d->L;
    int list = lua_gettop(L);
    if (count > INT_MAX - 8 || !lua_checkstack(L, (int)count + 8)) {
        lua_pushliteral(L, "too many arguments for a constructor");
        return FAILED;
    }
    for (int i = 1; i <= (int)count; i++)
        lua_rawgeti(L, list, i);
    if (lua_pcall(L, (int)count - 1, 1, 0) != LUA_OK) {
        const char *s = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1)
                                                       : luaL_typename(L, -1);
        lua_pushfstring(L, "constructor of a reduced object: %s", s);
        return FAILED;
    }
    lua_replace(L, list);
    return DONE;
}

static result_t step_reduced(decoder_t *d, frame_t *f)
{
    lua_State *L = d->L;
    if (d->back) {
        d->back = false;
        lua_rawseti(L, -3, f->next++);
    }
    while (f->next <= f->last) {
        result_t r = read_value(d);
        if (r != DONE)
            return r;
        lua_rawseti(L, -3, f->next++);
    }
    lua_pop(L, 1);
    result_t r = construct(d, f->last);
    if (r != DONE)
        return r;
    if (f->shared)
        put_ref(d, f->at);
    return close_frame(d);
}

/* Any value. */

static result_t read_value(decoder_t *d)
{
    const uint8_t *p = read_plain(d->L, d->p, d->end);
    if (p) {
        d->p = p;
        return DONE;
    }
    if (d->p >= d->end)
        return damaged(d, "value missing");
    uint64_t at = (uint64_t)(d->p - d->start);
    uint8_t tag = *d->p++;
    bool shared = tag & TAG_SHARED;
    if (tag >= TAG_KEYS)
        return read_slot(d, tag - TAG_KEYS);
    switch (tag) {
    case TAG_STRING | TAG_SHARED:
        return read_shared_string(d, at);
    case TAG_DEFINE:
        return read_definition(d);
    case TAG_SLOT:
        if (d->p >= d->end)
            return damaged(d, "string slot missing");
        return read_slot(d, *d->p++);
    case TAG_TABLE_H:
    case TAG_TABLE_H | TAG_SHARED:
    case TAG_TABLE_A:
    case TAG_TABLE_A | TAG_SHARED:
        return read_table(d, tag, at);
    case TAG_FUNCTION:
    case TAG_FUNCTION | TAG_SHARED:
        return read_function(d, at, shared);
    case TAG_REDUCED:
    case TAG_REDUCED | TAG_SHARED:
        return read_reduced(d, at, shared);
    case TAG_NAMED:
    case TAG_NAMED | TAG_SHARED:
        return read_name(d, at, shared);
    case TAG_REF:
        return read_ref(d);
    case TAG_GLOBALS:
        lua_rawgeti(d->L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
        return DONE;
    default:
        d->p--;
        return damaged(d, "unexpected byte, or value cut short");
    }
}

/* Works until every frame is done. */
static result_t run(decoder_t *d)
{
    while (d->window.depth > 0) {
        frame_t *f = window_top(&d->window);
        result_t r;
        switch ((kind_t)f->kind) {
        case FRAME_TABLE:
            r = step_table(d, f);
            break;
        case FRAME_FUNCTION:
            r = step_function(d, f);
            break;
        default:
            r = step_reduced(d, f);
            break;
        }
        if (r < 0)
            return r;
    }
    d->back = false;
    return DONE;
}

/* Sets the metatables anew that were set before they were complete. */
static void set_late(decoder_t *d)
{
    lua_State *L = d->L;
    int late = d->helpers + HELP_LATE;
    if (lua_isnil(L, late))
        return;
    lua_Integer n = (lua_Integer)lua_rawlen(L, late);
    for (lua_Integer i = 1; i < n; i += 2) {
        lua_rawgeti(L, late, i);
        lua_rawgeti(L, late, i + 1);
        lua_setmetatable(L, -2);
        lua_pop(L, 1);
    }
}

/* Pushes what decoding needs besides the values. */
static void prepare(decoder_t *d)
{
    lua_State *L = d->L;
    d->helpers = lua_gettop(L) + 1;
    d->codec = codec_take(L);
    for (int i = HELP_CODEC + 1; i < HELPERS; i++)
        lua_pushnil(L);
    d->window = (window_t){ .L = L, .spill = d->helpers + HELP_SPILL };
}

/* The values from number `done` on. */
static result_t read_values(decoder_t *d, uint32_t done, uint32_t count)
{
    for (; done < count; done++) {
        d->window.base = lua_gettop(d->L) + 1;
        result_t r = read_value(d);
        if (r == CHILD)
            r = run(d);
        if (r != DONE)
            return r;
    }
    return d->p == d->end ? DONE : damaged(d, "bytes left over");
}

/* The values move down to where the helpers were. */
static void drop_helpers(const decoder_t *d)
{
    lua_State *L = d->L;
    int top = lua_gettop(L);
    for (int i = d->helpers; i + HELPERS <= top; i++)
        lua_copy(L, i + HELPERS, i);
    lua_settop(L, top - HELPERS);
}

/* The rest of a message with more than scalars and strings in it. */
static result_t read_rest(decoder_t *d, uint32_t done, uint32_t count)
{
    prepare(d);
    result_t r = read_values(d, done, count);
    if (r == DONE) {
        set_late(d);
        drop_helpers(d);
    }
    codec_give_back(d->codec);
    return r;
}

/*
** The collector. A table that has just been read is not garbage, so a cycle
** in the middle of a message is work for nothing. The reader takes credit
** before a large message and gives it back after it: the collector's debt is
** then what it would have been, and is paid at once where it is due.
** Stopping and restarting it instead would forget the debt, and starts a
** cycle every time, and if memory ran out in between it would never run again.
*/
enum {
    LARGE = 512,            /* bytes of message; less is not worth it */
    CREDIT_FACTOR = 32,     /* bytes allocated for one of the message */
    CREDIT_MOST = 1 << 30   /* KiB */
};

static int take_credit(lua_State *L, size_t size)
{
    if (!lua_gc(L, LUA_GCISRUNNING))
        return 0;
    size_t credit = size / 1024 * CREDIT_FACTOR + CREDIT_FACTOR;
    int kilobytes = credit > CREDIT_MOST ? CREDIT_MOST : (int)credit;
    lua_gc(L, LUA_GCSTEP, -kilobytes);
    return kilobytes;
}

static void give_credit_back(lua_State *L, int kilobytes)
{
    if (kilobytes && lua_gc(L, LUA_GCISRUNNING))
        lua_gc(L, LUA_GCSTEP, kilobytes);
}

typedef struct large {
    decoder_t d;
    uint32_t done, count;
    result_t result;
} large_t;

/* Called protected: the message. Returns the values, or the reason. */
static int read_large(lua_State *L)
{
    large_t *m = lua_touserdata(L, 1);
    lua_settop(L, 0);
    m->d.L = L;
    if (!lua_checkstack(L, (int)(m->count - m->done) + HELPERS + 16))
        return luaL_error(L, "not enough memory");
    m->result = read_rest(&m->d, m->done, m->count);
    return m->result == DONE ? lua_gettop(L) : 1;
}

/* As read_rest, with the collector on credit, whatever happens. */
static result_t read_on_credit(decoder_t *d, uint32_t done, uint32_t count)
{
    lua_State *L = d->L;
    large_t m = { .d = *d, .done = done, .count = count };
    int credit = take_credit(L, d->budget);
    lua_pushcfunction(L, read_large);
    lua_pushlightuserdata(L, &m);
    int status = lua_pcall(L, 1, LUA_MULTRET, 0);
    give_credit_back(L, credit);
    if (status != LUA_OK)
        lua_error(L);
    return m.result;
}

/* NULL: the bytes are no message. */
static const uint8_t *count_read(const uint8_t *p, const uint8_t *end,
                                 uint32_t *count)
{
    if (p >= end)
        return NULL;
    *count = *p++;
    if (*count == 255) {
        if (end - p < 4)
            return NULL;
        memcpy(count, p, 4);
        p += 4;
    }
    return *count <= (size_t)(end - p) ? p : NULL;
}

/* Leaves only the reason, which is on top, above slot `base`. */
static int fail(lua_State *L, int base)
{
    lua_insert(L, base + 1);
    lua_settop(L, base + 1);
    return -1;
}

int codec_decode(lua_State *L, const uint8_t *data, size_t size)
{
    uint32_t count = 0, done = 0;
    const uint8_t *end = data + size, *next;
    const uint8_t *p = count_read(data, end, &count);
    int base = lua_gettop(L);
    if (p == NULL || count > INT_MAX - HELPERS - 16
        || !lua_checkstack(L, (int)count + HELPERS + 16)) {
        luaL_checkstack(L, 1, NULL);
        lua_pushstring(L, p ? "too many values"
                            : "damaged message: bad number of values");
        return -1;
    }
    while (done < count && (next = read_plain(L, p, end)) != NULL) {
        p = next;
        done++;
    }
    if (__builtin_expect(done == count && p == end, 1))
        return (int)count;
    decoder_t d = { .L = L, .start = data, .p = p, .end = end,
                    .budget = size };
    result_t r = size < LARGE ? read_rest(&d, done, count)
                              : read_on_credit(&d, done, count);
    return r == DONE ? (int)count : fail(L, base);
}
