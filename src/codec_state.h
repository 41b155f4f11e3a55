/*
** codec_state.h - what the two directions of the codec keep between messages:
** memory that is dear to allocate anew, and the work stack. Private to
** codec_*.c.
**
** One `codec` lives in the registry of a Lua state as a userdata and is taken
** by one message at a time. A message inside a message (a `__reduce` that
** uses procpool itself) gets a fresh one. Whoever takes it has it on the Lua
** stack, so an error that is raised past it frees it like any other garbage.
*/
#ifndef PROCPOOL_CODEC_STATE_H
#define PROCPOOL_CODEC_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <lua.h>

#include "codec_format.h"
#include "names.h"

#pragma GCC visibility push(hidden)

/* Objects met in this message: address -> offset of the tag. */
typedef struct seen_entry {
    const void *key;            /* NULL: free */
    uint64_t where;
} seen_entry_t;

typedef struct seen {
    seen_entry_t *entries;
    seen_entry_t *spare;        /* what it grows into */
    size_t room, spare_room;    /* allocated */
    size_t size;                /* in use by this message, a power of two */
    size_t count;
    const void *missed;         /* what seen_find has last not found, ... */
    size_t vacant;              /* ... and where it belongs */
} seen_t;

/* A short string that may come again; valid only in its epoch. */
typedef struct slot_entry {
    const void *key;
    uint32_t epoch;
    uint32_t defined;           /* the receiver has it in this slot */
} slot_entry_t;

/*
** The work stack. A frame is one container that is being written or read; it
** owns two Lua stack slots, the container and its current key. Lua stacks end
** at a million slots, so only the last WINDOW frames stay there; the slots
** of those below lie in a Lua table, moved half a window at a time.
*/
enum { WINDOW = 256 };

typedef enum frame_kind { FRAME_TABLE, FRAME_FUNCTION, FRAME_REDUCED } kind_t;

typedef enum frame_mode {
    MODE_ARRAY,     /* items of a list; next: the index that comes next */
    MODE_PAIRS,     /* between pairs */
    MODE_KEY,       /* inside the key of a pair; writing: slot 2 holds it */
    MODE_VALUE,     /* reading: slot 2 holds the key, the value comes next */
    MODE_META,      /* inside the metatable, the last thing of a table */
    MODE_VALUES     /* upvalues or arguments; next: the one that comes next */
} frame_mode_t;

typedef struct frame {
    uint8_t kind, mode;
    uint8_t meta;           /* writing: this table has a metatable */
    uint8_t shared;         /* reading: it will be referred to */
    uint64_t at;            /* offset of the tag; writing a table: of the
                            ** hint */
    uint64_t pairs;         /* writing: pairs so far */
    int64_t next;           /* see mode */
    int64_t last;           /* upvalues or arguments: how many there are */
    const void *object;     /* writing, reduced: what is being reduced */
} frame_t;

typedef struct window {
    lua_State *L;
    frame_t *frames;
    size_t depth;
    size_t checked;         /* so many frames have room on the Lua stack */
    size_t spilled;         /* how many frames' slots are in the table */
    int spill;              /* stack slot of that table, nil until needed */
    int base;               /* stack slot of the first frame in the window */
} window_t;

typedef struct codec {
    slot_entry_t slots[SLOTS];
    bool busy;
    seen_t seen;
    uint32_t epoch;
    unsigned victim;                    /* which entry of a set goes next */
    frame_t *frames;                    /* lent to the window of a message */
    size_t frames_room;
    uint8_t *scratch;                   /* a dump on its way in or out */
    size_t scratch_room, scratch_used;
    unsigned modest;                    /* messages that needed little of it */
    names_t *names;
} codec_t;

/* Pushes a codec and takes it. Its second user value: see SLOT_STRINGS. */
codec_t *codec_take(lua_State *L);
void codec_give_back(codec_t *c);

/* Forgets which strings have been met. */
static inline void codec_next_epoch(codec_t *c)
{
    if (++c->epoch == 0) {
        memset(c->slots, 0, sizeof c->slots);
        c->epoch = 1;
    }
}

/* Pushes the string "__reduce", without making it. */
void codec_push_reduce(lua_State *L);

enum { SLOT_STRINGS = 1 };  /* user value: list of strings by slot + 1 */

/* NULL when memory is short. */
uint8_t *codec_scratch(codec_t *c, size_t size);

int seen_start(seen_t *s);                      /* 0 or -1: no memory */
int seen_add(seen_t *s, const void *key, uint64_t where);
uint64_t *seen_find(seen_t *s, const void *key);    /* NULL: not met */

/* The new container lies on top of the stack, right above the last frame. */
frame_t *window_push(window_t *w, codec_t *c);  /* NULL: no memory */
/* Leaves what lies above the last frame's slots where it is. */
void window_pop(window_t *w);
/* Pushes a slot (0: container, 1: key) of any frame, wherever it lies. */
void window_slot(window_t *w, size_t depth, int slot);

static inline frame_t *window_top(window_t *w)
{
    return &w->frames[w->depth - 1];
}

/* Writes "args[2].conn" for the value that is being encoded (codec_path.c). */
void path_write(window_t *w, const char *root, int position, int count,
                char *text, size_t room);

#pragma GCC visibility pop

#endif
