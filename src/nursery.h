/*
** nursery.h - where the first blocks of a worker's life are made: one behind
** the other, whatever their size, behind those that the keeper has made for
** every life to write to. So a short life writes to few pages, and a page
** that it writes to is a fault and a copy.
**
** Keeper, then workers; private memory, one thread. A fixed size: what finds
** no room here goes elsewhere. Only the last block's room is used again.
*/
#ifndef PROCPOOL_NURSERY_H
#define PROCPOOL_NURSERY_H

#include <stddef.h>

#pragma GCC visibility push(hidden)

/* A block of `size` bytes, more than 0, aligned to 16; NULL: there is no room,
** or the block would take more than a quarter of it. */
void *nursery_get(size_t size);
/* Does the block come from here? */
int nursery_has(const void *block);
/* How many bytes a block can hold, at least what it was made for. */
size_t nursery_room(const void *block);
/* Makes it hold so many bytes where it is: 1, or 0: it cannot. */
int nursery_resize(void *block, size_t size);
void nursery_put(void *block);

#pragma GCC visibility pop
#endif
