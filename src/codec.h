/*
** codec.h - Lua values as bytes and back: what tasks, results and errors
** travel in. The bytes are a message for this machine and this Lua alone.
**
** A message is a count and that many values; tables, functions and upvalues
** keep their identity within it. Both directions use an explicit work stack,
** so nesting costs memory and never C stack. Run by parent and workers alike.
** docs/values.md says what travels; codec_format.h says how it looks.
*/
#ifndef PROCPOOL_CODEC_H
#define PROCPOOL_CODEC_H

#include <stddef.h>
#include <stdint.h>

#include <lua.h>

#include "buffer.h"

#pragma GCC visibility push(hidden)

/*
** Appends one message with the values of stack slots first..first+count-1
** (absolute). 0; or -1 with the reason pushed, out->used as it was before.
** `root` names the values in that reason: "args" gives "args[2].conn:
** userdata (FILE*)". User code runs only where a `__reduce` asks for it, and
** protected. Raises nothing but Lua's memory error.
*/
int codec_encode(lua_State *L, int first, int count, const char *root,
                 buffer_t *out);

/*
** Pushes the values of one message and returns how many; or -1 with the
** reason pushed. Believes nothing it reads: every tag, length, count and
** offset is read once and checked. User code runs only for modules to be
** required and for constructors of reduced objects, protected.
*/
int codec_decode(lua_State *L, const uint8_t *data, size_t size);

#pragma GCC visibility pop

#endif
