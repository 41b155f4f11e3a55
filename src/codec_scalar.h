/*
** codec_scalar.h - messages of one scalar or short string, in line: the
** commonest by far, and too small for a call into the codec. The same bytes
** that codec_encode writes; whatever else is left to codec_encode and
** codec_decode.
*/
#ifndef PROCPOOL_CODEC_SCALAR_H
#define PROCPOOL_CODEC_SCALAR_H

#include <lua.h>

#include "buffer.h"
#include "codec_format.h"

enum { SCALAR_ROOM = 40 };      /* bytes that such a message takes at most */

/* The end of the message of the value at `index`, written at p, which has
** SCALAR_ROOM; or NULL: it is not such a value. */
static inline uint8_t *scalar_write(lua_State *L, int index, uint8_t *p)
{
    size_t size;
    const char *s;
    *p++ = 1;
    if (lua_isinteger(L, index))
        return integer_write(p, lua_tointegerx(L, index, NULL));
    switch (lua_type(L, index)) {
    case LUA_TNUMBER:
        return float_write(p, lua_tonumberx(L, index, NULL));
    case LUA_TNIL:
        *p++ = TAG_NIL;
        return p;
    case LUA_TBOOLEAN:
        *p++ = lua_toboolean(L, index) ? TAG_TRUE : TAG_FALSE;
        return p;
    case LUA_TSTRING:
        s = lua_tolstring(L, index, &size);
        if (size >= 32)
            return NULL;
        *p++ = (uint8_t)(TAG_TINY_STRINGS + size);
        memcpy(p, s, size);
        return p + size;
    default:
        return NULL;
    }
}

/* Pushes the value of such a message: 1; or pushes nothing: 0, it is another
** one, or damaged. The caller has a free stack slot. */
static inline int scalar_push(lua_State *L, const uint8_t *p, size_t size)
{
    int16_t v2;
    int32_t v4;
    int64_t v8;
    double number;
    if (size < 2 || p[0] != 1)
        return 0;
    uint8_t tag = p[1];
    p += 2;
    size -= 2;
    if (tag < TAG_TINY_STRINGS && size == 0) {
        lua_pushinteger(L, tag);
        return 1;
    }
    switch (tag) {
    case TAG_NIL:
        if (size != 0)
            return 0;
        lua_pushnil(L);
        return 1;
    case TAG_INTEGER1:
        if (size != 1)
            return 0;
        lua_pushinteger(L, (int8_t)*p);
        return 1;
    case TAG_INTEGER2:
        if (size != 2)
            return 0;
        memcpy(&v2, p, 2);
        lua_pushinteger(L, v2);
        return 1;
    case TAG_INTEGER4:
        if (size != 4)
            return 0;
        memcpy(&v4, p, 4);
        lua_pushinteger(L, v4);
        return 1;
    case TAG_INTEGER8:
        if (size != 8)
            return 0;
        memcpy(&v8, p, 8);
        lua_pushinteger(L, v8);
        return 1;
    case TAG_FLOAT:
        if (size != 8)
            return 0;
        memcpy(&number, p, 8);
        lua_pushnumber(L, number);
        return 1;
    default:
        return 0;
    }
}

#endif
