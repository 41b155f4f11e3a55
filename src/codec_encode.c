/*
** codec_encode.c - values become a message.
**
** Two passes share one piece of code. The plain pass allocates no Lua memory,
** so neither the collector nor user code can run under it, and addresses
** identify objects. It can do nearly everything. What it cannot do (call a
** `__reduce`, dump a function for the first time, nest deeper than its
** window, say why a value is refused) makes it give up and start again as the
** full pass, which runs protected and anchors every object it has met, since
** finalizers and `__reduce` may now drop objects or change tables that are
** being walked.
**
** What has a name is looked up as of now in the full pass. The plain pass may
** miss a module that was loaded a moment ago; but such a module has functions
** that were never dumped, so that it ends in the full pass, or it is data, and
** then a copy is sent.
**
** Run by the parent (arguments, functions) and by workers (results, errors).
** Writes straight into the buffer; bytes are not read back from it, except
** that a tag's lowest bit is set when its object is met again.
*/
#include "codec.h"
#include "codec_state.h"

#include <stdio.h>
#include <string.h>

#include <lauxlib.h>

typedef enum result {
    DONE = 0,           /* written; the value is still on top of the stack */
    CHILD = 1,          /* it became the top frame's container */
    FAILED = -1,        /* the reason is on top of the stack */
    GIVE_UP = -2        /* the plain pass cannot do this */
} result_t;

typedef struct encoder {
    lua_State *L;
    buffer_t *out;
    codec_t *codec;
    window_t window;
    size_t start;       /* where in the buffer the message begins */
    const char *root;
    int position, count;
    const void *globals;
    bool full;
    bool searched;      /* full: the names have been built anew */
    int anchors;        /* full: stack slot of the list of objects met */
    lua_Integer anchored;
} encoder_t;

/* Where size bytes can be written, or NULL. */
static inline uint8_t *make_room(buffer_t *out, size_t size)
{
    if (__builtin_expect(out->room - out->used < size, 0)
        && out->grow(out, size) < 0)
        return NULL;
    return out->data + out->used;
}

static inline void written(buffer_t *out, const uint8_t *end)
{
    out->used = (size_t)(end - out->data);
}

/* Reasons. */

static result_t refuse(encoder_t *e, const char *what)
{
    char path[1024];
    if (!e->full)
        return GIVE_UP;     /* a reason is a string, so memory: not here */
    path_write(&e->window, e->root, e->position, e->count, path, sizeof path);
    lua_checkstack(e->L, 4);
    lua_pushfstring(e->L, "%s: %s", path, what);
    return FAILED;
}

static result_t no_room(encoder_t *e, size_t size)
{
    const buffer_t *b = e->out;
    size_t room = b->most > e->start ? b->most - e->start : b->room - e->start;
    char text[128];
    snprintf(text, sizeof text, "%zu bytes do not fit, there is room for %zu",
             b->used - e->start + size, room);
    return refuse(e, text);
}

static result_t no_memory(encoder_t *e)
{
    return refuse(e, "not enough memory");
}

/* Objects that may be met again. */

static inline size_t here(const encoder_t *e)
{
    return e->out->used - e->start;
}

/* The object on top of the stack is written at the current place. */
static int remember(encoder_t *e, const void *object)
{
    if (e->full) {
        lua_pushvalue(e->L, -1);
        lua_rawseti(e->L, e->anchors, ++e->anchored);
    }
    return seen_add(&e->codec->seen, object, here(e));
}

static result_t put_ref(encoder_t *e, uint8_t tag, uint64_t where)
{
    uint8_t *p = make_room(e->out, 1 + SIZE_BYTES);
    if (p == NULL)
        return no_room(e, 1 + SIZE_BYTES);
    e->out->data[e->start + where] |= TAG_SHARED;
    *p++ = tag;
    written(e->out, size_write(p, where));
    return DONE;
}

/* After anything that may collect: a string's address may be another's. */
static inline void forget_strings(encoder_t *e)
{
    codec_next_epoch(e->codec);
}

/* Scalars and strings. */

/* A number, boolean or nil, by its type: 1, 0 (it is none of them), or -1
** (no room). */
static inline int put_scalar(lua_State *L, int index, int type, buffer_t *out)
{
    uint8_t *p = make_room(out, 16);
    if (__builtin_expect(p == NULL, 0))
        return -1;
    switch (type) {
    case LUA_TNUMBER:
        if (lua_isinteger(L, index))
            p = integer_write(p, lua_tointegerx(L, index, NULL));
        else
            p = float_write(p, lua_tonumberx(L, index, NULL));
        break;
    case LUA_TNIL:
        *p++ = TAG_NIL;
        break;
    case LUA_TBOOLEAN:
        *p++ = lua_toboolean(L, index) ? TAG_TRUE : TAG_FALSE;
        break;
    default:
        return 0;
    }
    written(out, p);
    return 1;
}

static inline int put_bytes(buffer_t *out, const char *s, size_t size)
{
    uint8_t *p;
    if (size < 32) {
        if ((p = make_room(out, 1 + size)) == NULL)
            return -1;
        *p++ = (uint8_t)(TAG_TINY_STRINGS + size);
    } else {
        if ((p = make_room(out, 1 + SIZE_BYTES + size)) == NULL)
            return -1;
        *p++ = TAG_STRING;
        p = size_write(p, size);
    }
    memcpy(p, s, size);
    written(out, p + size);
    return 0;
}

/*
** The slot of a short string, or -1. Lua interns short strings, so the
** address is the string. The slots are a set-associative cache of four ways;
** first sight takes an entry, second sight defines it for the receiver.
*/
static inline int string_slot(codec_t *c, const char *s, bool key, bool *fresh)
{
    uint64_t h = (uintptr_t)s >> 4;
    h ^= h >> 7;
    unsigned set = key ? (unsigned)(h & (KEY_SLOTS / 4 - 1)) * 4
                 : KEY_SLOTS + (unsigned)(h & (VALUE_SLOTS / 4 - 1)) * 4;
    for (unsigned i = set; i < set + 4; i++) {
        slot_entry_t *entry = &c->slots[i];
        if (entry->key != s || entry->epoch != c->epoch)
            continue;
        *fresh = !entry->defined;
        entry->defined = 1;
        return (int)i;
    }
    slot_entry_t *entry = &c->slots[set + (c->victim++ & 3)];
    entry->key = s;
    entry->epoch = c->epoch;
    entry->defined = 0;
    return -1;
}

static result_t put_short_string(encoder_t *e, const char *s, size_t size,
                                 bool key)
{
    bool fresh;
    int slot = string_slot(e->codec, s, key, &fresh);
    uint8_t *p = make_room(e->out, 3 + SHORT_STRING + SIZE_BYTES);
    if (p == NULL)
        return no_room(e, size);
    if (slot >= 0 && !fresh) {
        if (slot < KEY_SLOTS) {
            *p++ = (uint8_t)(TAG_KEYS + slot);
        } else {
            *p++ = TAG_SLOT;
            *p++ = (uint8_t)slot;
        }
        written(e->out, p);
        return DONE;
    }
    if (slot >= 0) {
        *p++ = TAG_DEFINE;
        *p++ = (uint8_t)slot;
        *p++ = (uint8_t)size;
    } else if (size < 32) {
        *p++ = (uint8_t)(TAG_TINY_STRINGS + size);
    } else {
        *p++ = TAG_STRING;
        *p++ = (uint8_t)size;
    }
    memcpy(p, s, size);
    written(e->out, p + size);
    return DONE;
}

/* The string on top of the stack. */
static inline result_t put_string(encoder_t *e, bool key)
{
    size_t size;
    const char *s = lua_tolstring(e->L, -1, &size);
    if (size <= SHORT_STRING)
        return put_short_string(e, s, size, key);
    uint64_t *where = seen_find(&e->codec->seen, s);
    if (where)
        return put_ref(e, TAG_REF, *where);
    if (remember(e, s) < 0)
        return no_memory(e);
    return put_bytes(e->out, s, size) < 0 ? no_room(e, size) : DONE;
}

/* Names. */

/* The object on top of the stack has this name. */
static result_t put_name(encoder_t *e, const uint8_t *wire, size_t size)
{
    if (remember(e, lua_topointer(e->L, -1)) < 0)
        return no_memory(e);
    uint8_t *p = make_room(e->out, 1 + size);
    if (p == NULL)
        return no_room(e, 1 + size);
    *p++ = TAG_NAMED;
    memcpy(p, wire, size);
    written(e->out, p + size);
    return DONE;
}

/* Writes the object on top of the stack by name, as a value or a metatable:
** DONE, FAILED, or CHILD if it has none. */
static result_t try_name(encoder_t *e, bool metatable)
{
    size_t size;
    const uint8_t *wire = names_wire(e->L, e->codec->names, -1, metatable,
                                     &size);
    return wire ? put_name(e, wire, size) : CHILD;
}

/* The same for what would be refused without one: once per message, the
** fields of the modules are looked at as they are now. */
static result_t search_name(encoder_t *e)
{
    if (!e->full)
        return GIVE_UP;
    if (!e->searched) {
        names_refresh(e->L, e->codec->names, true);
        forget_strings(e);
    }
    e->searched = true;
    return try_name(e, false);
}

/* The container on top of the stack gets a frame; NULL: the reason is *r. */
static frame_t *open_frame(encoder_t *e, result_t *r)
{
    size_t spilled = e->window.spilled;
    *r = GIVE_UP;
    if (!e->full && e->window.depth - spilled == WINDOW)
        return NULL;            /* spilling allocates */
    frame_t *f = window_push(&e->window, e->codec);
    if (f == NULL)
        *r = no_memory(e);
    if (e->window.spilled != spilled)
        forget_strings(e);
    return f;
}

static result_t put_tag(encoder_t *e, uint8_t tag)
{
    uint8_t *p = make_room(e->out, 1);
    if (p == NULL)
        return no_room(e, 1);
    *p = tag;
    e->out->used++;
    return DONE;
}

/* `__reduce`. */

/* Pushes the raw field `__reduce` of the metatable on top; false: nil. */
static bool push_reduce(lua_State *L)
{
    codec_push_reduce(L);
    if (lua_rawget(L, -2) != LUA_TNIL)
        return true;
    lua_pop(L, 1);
    return false;
}

/* Stack: object, function. Leaves object and the list of what it returned. */
static result_t call_reduce(encoder_t *e, int *count)
{
    lua_State *L = e->L;
    int object = lua_gettop(L) - 1;
    lua_pushvalue(L, object);
    int status = lua_pcall(L, 1, LUA_MULTRET, 0);
    forget_strings(e);
    luaL_checkstack(L, 8, NULL);
    if (status != LUA_OK) {
        char text[512];
        const char *s = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1)
                                                       : luaL_typename(L, -1);
        snprintf(text, sizeof text, "__reduce: %s", s);
        return refuse(e, text);
    }
    *count = lua_gettop(L) - object;
    lua_createtable(L, *count, 0);
    forget_strings(e);
    lua_insert(L, object + 1);
    for (int i = *count; i >= 1; i--)
        lua_rawseti(L, object + 1, i);
    return DONE;
}

/* Can the first result be called? Its type is all that is looked at. */
static bool has_constructor(lua_State *L)
{
    int type = lua_rawgeti(L, -1, 1);
    lua_pop(L, 1);
    return type == LUA_TFUNCTION || type == LUA_TTABLE
           || type == LUA_TUSERDATA;
}

/* Stack: object, its `__reduce`. The list of results becomes the container. */
static result_t begin_reduced(encoder_t *e)
{
    lua_State *L = e->L;
    int count = 0;
    const void *object = lua_topointer(L, -2);
    result_t r = call_reduce(e, &count);
    if (r != DONE)
        return r;
    if (!has_constructor(L))
        return refuse(e, "__reduce returned no constructor");
    lua_pushvalue(L, -2);
    int failed = remember(e, object);
    lua_pop(L, 1);
    lua_pushvalue(L, -1);   /* its values' addresses must stay theirs too */
    lua_rawseti(L, e->anchors, ++e->anchored);
    uint8_t *p = make_room(e->out, 1 + SIZE_BYTES);
    if (failed < 0)
        return no_memory(e);
    if (p == NULL)
        return no_room(e, 1 + SIZE_BYTES);
    size_t at = here(e);
    *p++ = TAG_REDUCED;
    written(e->out, size_write(p, (uint64_t)count));
    lua_replace(L, -2);
    frame_t *f = open_frame(e, &r);
    if (f == NULL)
        return r;
    *f = (frame_t){ .kind = FRAME_REDUCED, .mode = MODE_VALUES, .at = at,
                    .next = 1, .last = count, .object = object };
    lua_pushnil(L);
    return CHILD;
}

/* Is the object at this offset one whose `__reduce` results are still being
** written? The receiver has nothing to refer to yet. */
static bool in_reduction(const encoder_t *e, uint64_t where)
{
    if (e->out->data[e->start + where] >> 1 != TAG_REDUCED >> 1)
        return false;
    for (size_t i = 0; i < e->window.depth; i++)
        if (e->window.frames[i].kind == FRAME_REDUCED
            && e->window.frames[i].at == where)
            return true;
    return false;
}

/* Tables. */

static result_t open_table(encoder_t *e, const void *object, bool meta)
{
    lua_State *L = e->L;
    if (remember(e, object) < 0)
        return no_memory(e);
    uint8_t *p = make_room(e->out, 2 + SIZE_BYTES);
    if (p == NULL)
        return no_room(e, 2 + SIZE_BYTES);
    uint64_t size = lua_rawlen(L, -1);
    *p++ = size ? TAG_TABLE_A : TAG_TABLE_H;
    if (size)
        p = size_write(p, size);
    *p++ = 0;
    written(e->out, p);
    result_t r;
    frame_t *f = open_frame(e, &r);
    if (f == NULL)
        return r;
    f->kind = FRAME_TABLE;
    f->mode = size ? MODE_ARRAY : MODE_PAIRS;
    f->meta = meta;
    f->at = here(e) - 1;
    f->pairs = 0;
    f->next = 1;
    lua_pushnil(L);
    return CHILD;
}

/* The table on top of the stack has a metatable. */
static result_t begin_object(encoder_t *e, const void *object)
{
    lua_State *L = e->L;
    lua_getmetatable(L, -1);
    if (push_reduce(L)) {
        if (!e->full)
            return GIVE_UP;
        lua_replace(L, -2);
        return begin_reduced(e);
    }
    lua_pop(L, 1);
    return open_table(e, object, true);
}

/* Is the table that comes next some table's metatable? */
static bool is_metatable(encoder_t *e)
{
    return e->window.depth > 0 && window_top(&e->window)->mode == MODE_META;
}

static result_t begin_table(encoder_t *e)
{
    lua_State *L = e->L;
    const void *object = lua_topointer(L, -1);
    uint64_t *where = seen_find(&e->codec->seen, object);
    if (where) {
        if (in_reduction(e, *where))
            return refuse(e, "refers to itself through __reduce");
        return put_ref(e, TAG_REF, *where);
    }
    if (object == e->globals)
        return put_tag(e, TAG_GLOBALS);
    bool meta = lua_getmetatable(L, -1);
    if (meta)
        lua_pop(L, 1);
    if (names_known(e->codec->names, object) || is_metatable(e)) {
        result_t r = try_name(e, is_metatable(e));
        if (r != CHILD)
            return r;
    }
    return meta ? begin_object(e, object) : open_table(e, object, false);
}

/*
** Numbers of one subtype from the current item on, as bits. Stack: table, key,
** value; on return the traversal stands at the first item that is not in the
** run (1), or is over (0). *taken: how many there are, one at least.
*/
static int gather_integers(lua_State *L, int64_t next, int64_t *run,
                           int *taken)
{
    int n = 0, more = 1;
    do {
        run[n++] = lua_tointegerx(L, -1, NULL);
        lua_settop(L, -2);
        more = lua_next(L, -2);
    } while (more && n < RUN_MAX && lua_isinteger(L, -1)
             && lua_isinteger(L, -2)
             && lua_tointegerx(L, -2, NULL) == next + n);
    *taken = n;
    return more;
}

static int gather_floats(lua_State *L, int64_t next, int64_t *run, int *taken)
{
    int n = 0, more = 1;
    do {
        double v = lua_tonumberx(L, -1, NULL);
        memcpy(&run[n++], &v, sizeof v);
        lua_settop(L, -2);
        more = lua_next(L, -2);
    } while (more && n < RUN_MAX && lua_type(L, -1) == LUA_TNUMBER
             && !lua_isinteger(L, -1) && lua_isinteger(L, -2)
             && lua_tointegerx(L, -2, NULL) == next + n);
    *taken = n;
    return more;
}

static unsigned run_width(const int64_t *run, int n)
{
    uint64_t bits = 0;
    for (int i = 0; i < n; i++)
        bits |= (uint64_t)(run[i] < 0 ? ~run[i] : run[i]);
    return bits <= INT8_MAX ? 1 : bits <= INT16_MAX ? 2
         : bits <= INT32_MAX ? 4 : 8;
}

static uint8_t *pack_integers(uint8_t *p, const int64_t *run, int n)
{
    unsigned width = run_width(run, n);
    uint16_t count = (uint16_t)n;
    *p++ = TAG_INTEGERS;
    *p++ = (uint8_t)width;
    memcpy(p, &count, 2);
    p += 2;
    switch (width) {
    case 1:
        for (int i = 0; i < n; i++)
            p[i] = (uint8_t)run[i];
        break;
    case 2:
        for (int i = 0; i < n; i++) {
            int16_t v = (int16_t)run[i];
            memcpy(p + 2 * i, &v, 2);
        }
        break;
    case 4:
        for (int i = 0; i < n; i++) {
            int32_t v = (int32_t)run[i];
            memcpy(p + 4 * i, &v, 4);
        }
        break;
    default:
        memcpy(p, run, 8 * (size_t)n);
        break;
    }
    return p + width * (unsigned)n;
}

static uint8_t *pack_run(uint8_t *p, const int64_t *run, int n, bool integers)
{
    if (n >= RUN_MIN) {
        if (integers)
            return pack_integers(p, run, n);
        uint16_t count = (uint16_t)n;
        *p++ = TAG_FLOATS;
        memcpy(p, &count, 2);
        memcpy(p + 2, run, 8 * (size_t)n);
        return p + 2 + 8 * n;
    }
    for (int i = 0; i < n; i++) {
        double v;
        memcpy(&v, &run[i], sizeof v);
        p = integers ? integer_write(p, run[i]) : float_write(p, v);
    }
    return p;
}

/* Returns as lua_next: 1 with the next key and value pushed, 0 at the end;
** or FAILED, GIVE_UP. */
static int put_run(encoder_t *e, frame_t *f)
{
    int64_t run[RUN_MAX];
    bool integers = lua_isinteger(e->L, -1);
    int n, more = integers ? gather_integers(e->L, f->next, run, &n)
                           : gather_floats(e->L, f->next, run, &n);
    size_t most = 9 * (size_t)(n < RUN_MIN ? RUN_MIN : n);
    uint8_t *p = make_room(e->out, most);
    if (p == NULL)
        return no_room(e, most);
    written(e->out, pack_run(p, run, n, integers));
    f->next += n;
    return more;
}

static result_t put_value(encoder_t *e);

/* The key of stack: table, key, value. CHILD: the value has been dropped. */
static result_t put_key(encoder_t *e)
{
    lua_State *L = e->L;
    int type = lua_type(L, -2);
    if (type == LUA_TSTRING) {
        size_t size;
        const char *s = lua_tolstring(L, -2, &size);
        if (size <= SHORT_STRING)
            return put_short_string(e, s, size, true);
    } else if (type == LUA_TNUMBER || type == LUA_TBOOLEAN) {
        return put_scalar(L, -2, type, e->out) < 0 ? no_room(e, 16) : DONE;
    }
    frame_t *f = window_top(&e->window);
    f->mode = MODE_KEY;
    lua_pop(L, 1);
    lua_pushvalue(L, -1);
    result_t r = put_value(e);
    if (r != DONE)
        return r;
    lua_pop(L, 1);
    f->mode = MODE_PAIRS;
    lua_pushvalue(L, -1);
    lua_rawget(L, -3);
    return DONE;
}

/* An item of stack: table, key, value that is not part of the list. */
static result_t put_pair(encoder_t *e, frame_t *f)
{
    if (f->mode == MODE_ARRAY) {
        f->mode = MODE_PAIRS;
        result_t r = put_tag(e, TAG_PAIRS);
        if (r != DONE)
            return r;
    }
    f->pairs++;
    result_t r = put_key(e);
    return r == DONE ? put_value(e) : r;
}

enum { HOLE_MAX = 4 };      /* that many nils are cheaper than going PAIRS */

/* Is the key of stack: table, key, value the next of the list? Writes small
** holes before it. 1, 0, or FAILED, GIVE_UP. */
static inline int is_item(encoder_t *e, frame_t *f)
{
    lua_State *L = e->L;
    if (!lua_isinteger(L, -2))
        return 0;
    lua_Integer key = lua_tointegerx(L, -2, NULL);
    if (key < f->next || key - f->next > HOLE_MAX)
        return 0;
    for (; f->next < key; f->next++) {
        result_t r = put_tag(e, TAG_NIL);
        if (r != DONE)
            return (int)r;
    }
    return 1;
}

/* The last thing of a table. Stack: table. */
static result_t close_table(encoder_t *e, frame_t *f)
{
    lua_State *L = e->L;
    e->out->data[e->start + f->at] = hint_of(f->pairs);
    if (!f->meta)
        return put_tag(e, TAG_END);
    f->mode = MODE_META;
    result_t r = put_tag(e, TAG_META);
    if (r != DONE)
        return r;
    lua_pushnil(L);
    if (!lua_getmetatable(L, -2)) {     /* user code has taken it away */
        r = put_tag(e, TAG_NIL);
        lua_pop(L, 1);
        return r;
    }
    r = put_value(e);
    if (r == DONE)
        lua_pop(L, 2);
    return r;
}

/* Gives the container of the top frame back. Stack: container. */
static result_t leave_frame(encoder_t *e)
{
    lua_pop(e->L, 1);
    window_pop(&e->window);
    return DONE;
}

/* A pair whose key was a container of its own: now its value. */
static result_t resume_pair(encoder_t *e, frame_t *f)
{
    f->mode = MODE_PAIRS;
    lua_pushvalue(e->L, -1);
    lua_rawget(e->L, -3);
    result_t r = put_value(e);
    if (r == DONE)
        lua_pop(e->L, 1);
    return r;
}

/* Goes on with a table until a child or its end. Stack: table, key. */
static result_t step_table(encoder_t *e, frame_t *f)
{
    lua_State *L = e->L;
    result_t r;
    if (f->mode == MODE_META) {
        lua_pop(L, 1);
        return leave_frame(e);
    }
    if (f->mode == MODE_KEY && (r = resume_pair(e, f)) != DONE)
        return r;
    int more = lua_next(L, -2);
    while (more > 0) {
        int item = f->mode == MODE_ARRAY ? is_item(e, f) : 0;
        if (item < 0)
            return (result_t)item;
        if (item && lua_type(L, -1) == LUA_TNUMBER) {
            more = put_run(e, f);
            continue;
        }
        f->next += item;
        r = item ? put_value(e) : put_pair(e, f);
        if (r != DONE)
            return r;
        lua_settop(L, -2);
        more = lua_next(L, -2);
    }
    if (more < 0)
        return (result_t)more;
    r = close_table(e, f);
    return r == DONE ? leave_frame(e) : r;
}

/* Functions. */

static int dump_writer(lua_State *L, const void *p, size_t size, void *state)
{
    codec_t *c = state;
    (void)L;
    if (p == NULL || size == 0)
        return 0;
    if (codec_scratch(c, c->scratch_used + size) == NULL)
        return 1;
    memcpy(c->scratch + c->scratch_used, p, size);
    c->scratch_used += size;
    return 0;
}

static char dumps_key;      /* registry: closure -> wire form, weak keys */

static bool push_known_dumps(lua_State *L)
{
    return lua_rawgetp(L, LUA_REGISTRYINDEX, &dumps_key) == LUA_TTABLE;
}

static void push_dumps(lua_State *L)
{
    if (push_known_dumps(L))
        return;
    lua_pop(L, 1);
    lua_newtable(L);
    lua_createtable(L, 0, 1);
    lua_pushliteral(L, "k");
    lua_setfield(L, -2, "__mode");
    lua_setmetatable(L, -2);
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &dumps_key);
}

/* Stack: function. Pushes number of upvalues, size, checksum, dump. */
static bool make_dump(encoder_t *e)
{
    lua_State *L = e->L;
    codec_t *c = e->codec;
    lua_Debug ar;
    uint8_t head[1 + SIZE_BYTES + 4];
    lua_pushvalue(L, -1);
    lua_getinfo(L, ">u", &ar);
    c->scratch_used = sizeof head;
    if (codec_scratch(c, 1024) == NULL
        || lua_dump(L, dump_writer, c, 0) != 0)
        return false;
    size_t size = c->scratch_used - sizeof head;
    uint32_t sum = checksum(c->scratch + sizeof head, size);
    head[0] = ar.nups;
    uint8_t *p = size_write(head + 1, size);
    memcpy(p, &sum, 4);
    size_t used = (size_t)(p + 4 - head);
    uint8_t *wire = c->scratch + sizeof head - used;
    memcpy(wire, head, used);
    lua_pushlstring(L, (const char *)wire, used + size);
    return true;
}

/* Stack: function. Pushes its wire form if it has been dumped before: a
** closure's code never changes. */
static bool push_known_dump(lua_State *L)
{
    if (!push_known_dumps(L)) {
        lua_pop(L, 1);
        return false;
    }
    lua_pushvalue(L, -2);
    if (lua_rawget(L, -2) == LUA_TSTRING) {
        lua_replace(L, -2);
        return true;
    }
    lua_pop(L, 2);
    return false;
}

/* Stack: function. Dumps it for the first time and pushes its wire form. */
static bool push_new_dump(encoder_t *e)
{
    lua_State *L = e->L;
    if (!make_dump(e))
        return false;
    push_dumps(L);
    lua_pushvalue(L, -3);
    lua_pushvalue(L, -3);
    lua_rawset(L, -3);
    lua_pop(L, 1);
    return true;
}

/* Stack: function, whose wire form is written and whose frame begins. */
static result_t open_function(encoder_t *e, const void *object)
{
    lua_State *L = e->L;
    if (!push_known_dump(L)) {
        if (!e->full)
            return GIVE_UP;
        if (!push_new_dump(e))
            return no_memory(e);
        forget_strings(e);
    }
    size_t size;
    const char *wire = lua_tolstring(L, -1, &size);
    lua_insert(L, -2);
    int failed = remember(e, object);
    lua_insert(L, -2);
    uint8_t *p = make_room(e->out, 1 + size);
    if (failed < 0)
        return no_memory(e);
    if (p == NULL)
        return no_room(e, 1 + size);
    *p++ = TAG_FUNCTION;
    memcpy(p, wire, size);
    written(e->out, p + size);
    int upvalues = (unsigned char)wire[0];
    lua_pop(L, 1);
    if (upvalues == 0)
        return DONE;
    result_t r;
    frame_t *f = open_frame(e, &r);
    if (f == NULL)
        return r;
    *f = (frame_t){ .kind = FRAME_FUNCTION, .mode = MODE_VALUES, .next = 1,
                    .last = upvalues };
    lua_pushnil(L);
    return CHILD;
}

static result_t begin_function(encoder_t *e)
{
    const void *object = lua_topointer(e->L, -1);
    uint64_t *where = seen_find(&e->codec->seen, object);
    if (where)
        return put_ref(e, TAG_REF, *where);
    bool c_function = lua_iscfunction(e->L, -1);
    if (names_known(e->codec->names, object) || c_function) {
        result_t named = try_name(e, false);
        if (named == CHILD && c_function)
            named = search_name(e);
        if (named != CHILD)
            return named;
    }
    return c_function ? refuse(e, "C function") : open_function(e, object);
}

/* Goes on with a function's upvalues. Stack: function, nil. */
static result_t step_function(encoder_t *e, frame_t *f)
{
    lua_State *L = e->L;
    while (f->next <= f->last) {
        int i = (int)f->next++;
        const void *id = lua_upvalueid(L, -2, i);
        uint64_t *where = seen_find(&e->codec->seen, id);
        result_t r;
        if (where) {
            if ((r = put_ref(e, TAG_UPREF, *where)) != DONE)
                return r;
            continue;
        }
        if (seen_add(&e->codec->seen, id, here(e)) < 0)
            return no_memory(e);
        if ((r = put_tag(e, TAG_UPVALUE)) != DONE)
            return r;
        lua_getupvalue(L, -2, i);
        if ((r = put_value(e)) != DONE)
            return r;
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
    return leave_frame(e);
}

/* Goes on with what `__reduce` has returned. Stack: list, nil. */
static result_t step_reduced(encoder_t *e, frame_t *f)
{
    lua_State *L = e->L;
    while (f->next <= f->last) {
        lua_rawgeti(L, -2, f->next++);
        result_t r = put_value(e);
        if (r != DONE)
            return r;
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
    return leave_frame(e);
}

/* Userdata: by name or by `__reduce`. */
static result_t begin_userdata(encoder_t *e)
{
    lua_State *L = e->L;
    const void *object = lua_topointer(L, -1);
    bool light = lua_islightuserdata(L, -1);
    uint64_t *where = light ? NULL : seen_find(&e->codec->seen, object);
    if (where) {
        if (in_reduction(e, *where))
            return refuse(e, "refers to itself through __reduce");
        return put_ref(e, TAG_REF, *where);
    }
    if (names_known(e->codec->names, object)) {
        result_t named = try_name(e, false);
        if (named != CHILD)
            return named;
    }
    if (!e->full)
        return GIVE_UP;
    if (!light && lua_getmetatable(L, -1)) {
        if (push_reduce(L)) {
            lua_replace(L, -2);
            return begin_reduced(e);
        }
        lua_pushliteral(L, "__name");
        if (lua_rawget(L, -2) == LUA_TSTRING) {
            char text[128];
            snprintf(text, sizeof text, "userdata (%s)", lua_tostring(L, -1));
            return refuse(e, text);
        }
    }
    return refuse(e, light ? "light userdata" : "userdata");
}

/* The value on top of the stack. */
static result_t put_value(encoder_t *e)
{
    int type = lua_type(e->L, -1);
    switch (type) {
    case LUA_TSTRING:
        return put_string(e, false);
    case LUA_TTABLE:
        return begin_table(e);
    case LUA_TFUNCTION:
        return begin_function(e);
    case LUA_TUSERDATA:
    case LUA_TLIGHTUSERDATA:
        return begin_userdata(e);
    case LUA_TTHREAD:
        return refuse(e, "coroutine");
    default:
        return put_scalar(e->L, -1, type, e->out) < 0 ? no_room(e, 16) : DONE;
    }
}

/* Works until every frame is done. */
static result_t run(encoder_t *e)
{
    while (e->window.depth > 0) {
        frame_t *f = window_top(&e->window);
        result_t r;
        switch ((kind_t)f->kind) {
        case FRAME_TABLE:
            r = step_table(e, f);
            break;
        case FRAME_FUNCTION:
            r = step_function(e, f);
            break;
        default:
            r = step_reduced(e, f);
            break;
        }
        if (r < 0)
            return r;
    }
    return DONE;
}

/*
** The values of slots first.. from number `position` on. Stack above them:
** the codec, the spill table, and in the full pass the anchors.
*/
static result_t put_values(encoder_t *e, int first)
{
    lua_State *L = e->L;
    for (; e->position <= e->count; e->position++) {
        lua_pushvalue(L, first + e->position - 1);
        result_t r = put_value(e);
        if (r == CHILD)
            r = run(e);
        else if (r == DONE)
            lua_pop(L, 1);
        if (r != DONE)
            return r;
    }
    return DONE;
}

/* Pushes what a pass needs above the values. False: no memory. */
static bool prepare(encoder_t *e)
{
    lua_State *L = e->L;
    e->codec = codec_take(L);
    lua_pushnil(L);
    e->window = (window_t){ .L = L, .spill = lua_gettop(L) };
    if (e->full) {
        lua_newtable(L);
        e->anchors = lua_gettop(L);
    }
    lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
    e->globals = lua_topointer(L, -1);
    lua_pop(L, 1);
    e->window.base = lua_gettop(L) + 1;
    return seen_start(&e->codec->seen) == 0;
}

static uint8_t *count_write(uint8_t *p, int count)
{
    if (count < 255) {
        *p++ = (uint8_t)count;
        return p;
    }
    uint32_t n = (uint32_t)count;
    *p++ = 255;
    memcpy(p, &n, 4);
    return p + 4;
}

/* The full pass, called protected: encoder, values. Returns the reason, or
** nothing. */
static int full_pass(lua_State *L)
{
    encoder_t *e = lua_touserdata(L, 1);
    e->L = L;
    e->full = true;
    e->position = 1;
    e->out->used = e->start;
    if (!prepare(e))
        return luaL_error(L, "not enough memory");
    names_refresh(L, e->codec->names, false);
    uint8_t *p = make_room(e->out, 5);
    result_t r = p ? DONE : no_room(e, 5);
    if (r == DONE) {
        written(e->out, count_write(p, e->count));
        r = put_values(e, 2);
    }
    codec_give_back(e->codec);
    return r == DONE ? 0 : 1;
}

/* Pushes the reason and returns -1, or returns 0. */
static int encode_full(encoder_t *e, lua_State *L, int first)
{
    luaL_checkstack(L, e->count + 4, NULL);
    lua_pushcfunction(L, full_pass);
    lua_pushlightuserdata(L, e);
    for (int i = 0; i < e->count; i++)
        lua_pushvalue(L, first + i);
    int before = lua_gettop(L) - e->count - 2;
    int status = lua_pcall(L, e->count + 1, LUA_MULTRET, 0);
    if (status == LUA_OK && lua_gettop(L) == before)
        return 0;
    e->out->used = e->start;
    if (status == LUA_ERRMEM)
        return lua_error(L);
    if (status != LUA_OK) {     /* a table was changed under the walk */
        const char *s = lua_tostring(L, -1);
        lua_pushfstring(L, "%s: %s", e->root, s ? s : "?");
        lua_remove(L, -2);
    }
    return -1;
}

/* The plain pass over values that are not all scalars. */
static result_t encode_plain(encoder_t *e, lua_State *L, int first)
{
    int top = lua_gettop(L);
    luaL_checkstack(L, 16, NULL);
    e->L = L;
    result_t r = GIVE_UP;
    if (prepare(e)) {
        if (!names_current(L, e->codec->names))
            names_refresh(L, e->codec->names, true);
        r = put_values(e, first);
    }
    codec_give_back(e->codec);
    lua_settop(L, top);
    return r;
}

int codec_encode(lua_State *L, int first, int count, const char *root,
                 buffer_t *out)
{
    size_t start = out->used;
    int done = 0;
    uint8_t *p = make_room(out, 5);
    if (__builtin_expect(p != NULL, 1)) {
        written(out, count_write(p, count));
        for (; done < count; done++) {
            int index = first + done, type = lua_type(L, index);
            if (type == LUA_TSTRING) {
                size_t size;
                const char *s = lua_tolstring(L, index, &size);
                if (put_bytes(out, s, size) < 0)
                    break;
            } else if (put_scalar(L, index, type, out) <= 0) {
                break;
            }
        }
        if (done == count)
            return 0;
    }
    encoder_t e = { .out = out, .start = start, .root = root,
                    .position = done + 1, .count = count };
    if (p != NULL && encode_plain(&e, L, first) == DONE)
        return 0;
    return encode_full(&e, L, first);
}
