/*
** bind_codec.h - the codec as functions of procpool.core, for module.c.
*/
#ifndef PROCPOOL_BIND_CODEC_H
#define PROCPOOL_BIND_CODEC_H

#include <lauxlib.h>

#pragma GCC visibility push(hidden)

extern const luaL_Reg bind_codec_functions[];   /* encode, decode, ... */

#pragma GCC visibility pop

#endif
