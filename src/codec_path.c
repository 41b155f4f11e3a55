/*
** codec_path.c - where in the values the encoder is, for a refusal:
** "args[2].handlers.save: upvalue 'db' of function <app.lua:12>".
**
** Kept nowhere while all goes well: it is read off the work stack, from the
** outermost frame to the innermost. Text that does not fit is cut, a deep
** path loses its middle. Calls nothing that could run user code.
*/
#include "codec_state.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <lauxlib.h>

enum { FRAMES_SHOWN = 24, KEY_SHOWN = 48 };

typedef struct path {
    char *text;
    size_t used, room;
    char closing[128];      /* what ends an open quote, or empty */
} path_t;

static void put(path_t *p, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void put(path_t *p, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    /* clang-tidy does not see that va_start has initialized the list. */
    /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized) */
    int n = vsnprintf(p->text + p->used, p->room - p->used, format, list);
    va_end(list);
    if (n > 0)
        p->used += (size_t)n;
    if (p->used >= p->room)
        p->used = p->room - 1;
}

static void close_quote(path_t *p)
{
    put(p, "%s", p->closing);
    p->closing[0] = '\0';
}

static bool is_name(const char *s, size_t size)
{
    if (size == 0 || size > KEY_SHOWN || isdigit((unsigned char)s[0]))
        return false;
    for (size_t i = 0; i < size; i++)
        if (!isalnum((unsigned char)s[i]) && s[i] != '_')
            return false;
    return true;
}

/* A string key that is no name, quoted; control bytes as question marks. */
static void put_string_key(path_t *p, const char *s, size_t size)
{
    size_t shown = size > KEY_SHOWN ? KEY_SHOWN : size;
    put(p, "[\"");
    for (size_t i = 0; i < shown; i++)
        put(p, "%c", iscntrl((unsigned char)s[i]) ? '?' : s[i]);
    put(p, size > shown ? "...\"]" : "\"]");
}

/* The key on top of the stack. Never lua_tolstring on a number: it would
** change the key under the traversal. */
static void put_key(path_t *p, lua_State *L)
{
    size_t size;
    const char *s;
    switch (lua_type(L, -1)) {
    case LUA_TSTRING:
        s = lua_tolstring(L, -1, &size);
        if (is_name(s, size))
            put(p, ".%s", s);
        else
            put_string_key(p, s, size);
        break;
    case LUA_TNUMBER:
        if (lua_isinteger(L, -1))
            put(p, "[" LUA_INTEGER_FMT "]", lua_tointeger(L, -1));
        else
            put(p, "[" LUA_NUMBER_FMT "]", lua_tonumber(L, -1));
        break;
    case LUA_TBOOLEAN:
        put(p, "[%s]", lua_toboolean(L, -1) ? "true" : "false");
        break;
    default:
        put(p, "[%s]", luaL_typename(L, -1));
        break;
    }
}

static void put_table(path_t *p, window_t *w, size_t depth)
{
    switch (w->frames[depth].mode) {
    case MODE_META:
        close_quote(p);
        put(p, ": metatable");
        return;
    case MODE_KEY:
        put(p, "[key]");
        return;
    default:
        window_slot(w, depth, 1);
        put_key(p, w->L);
        lua_pop(w->L, 1);
    }
}

/* The quote stays open: keys inside the upvalue go into it. */
static void put_upvalue(path_t *p, window_t *w, size_t depth)
{
    lua_State *L = w->L;
    lua_Debug ar;
    close_quote(p);
    window_slot(w, depth, 0);
    const char *name = lua_getupvalue(L, -1, (int)w->frames[depth].next - 1);
    put(p, ": upvalue '%s", name ? name : "?");
    if (name)
        lua_pop(L, 1);
    if (lua_getinfo(L, ">S", &ar))
        snprintf(p->closing, sizeof p->closing, "' of function <%s:%d>",
                 ar.short_src, ar.linedefined);
}

void path_write(window_t *w, const char *root, int position, int count,
                char *text, size_t room)
{
    path_t p = { text, 0, room, "" };
    /* Only a lone result, error or function goes without its number. */
    if (count == 1 && strcmp(root, "args") != 0)
        put(&p, "%s", root);
    else
        put(&p, "%s[%d]", root, position);
    for (size_t i = 0; i < w->depth; i++) {
        if (i == FRAMES_SHOWN && w->depth > 2 * FRAMES_SHOWN) {
            put(&p, "...");
            i = w->depth - FRAMES_SHOWN;
        }
        switch ((kind_t)w->frames[i].kind) {
        case FRAME_TABLE:
            put_table(&p, w, i);
            break;
        case FRAME_FUNCTION:
            put_upvalue(&p, w, i);
            break;
        case FRAME_REDUCED:
            close_quote(&p);
            put(&p, ": __reduce result %d", (int)w->frames[i].next - 1);
            break;
        }
    }
    close_quote(&p);
}
