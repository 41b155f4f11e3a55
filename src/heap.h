/*
** heap.h - memory of the region for arguments and functions.
**
** Allocated and freed by the parent alone; all bookkeeping is private to it,
** so whatever workers scribble, the allocator stays whole, and a worker's
** death needs no repair here. Workers only read the blocks.
**
** Blocks come in classes, four to each power of two, from a free list per
** class (last in, first out: its pages are warm) or from the untouched end;
** the first small ones from a place of their own (region_t.small).
** Blocks are never merged: the address space is sparse and large, and what
** is free costs no memory once its pages are given back.
*/
#ifndef PROCPOOL_HEAP_H
#define PROCPOOL_HEAP_H

#include "buffer.h"
#include "region.h"

#pragma GCC visibility push(hidden)

#define HEAP_CLASSES 256

typedef struct heap_list {
    uint64_t *offsets;
    uint32_t count, room;
} heap_list_t;

typedef struct heap {
    region_t *h_region;
    uint64_t h_top;             /* offset of the untouched end */
    uint64_t h_end;
    uint64_t h_small_top;       /* the same of the place for small ones */
    uint64_t h_small_end;
    uint64_t h_used;            /* bytes in blocks handed out */
    uint64_t h_warm;            /* bytes of large free blocks with pages */
    heap_list_t h_free[HEAP_CLASSES];
} heap_t;

/* A block handed out; offset 0: none. */
typedef struct block {
    uint64_t offset, size;
} block_t;

void heap_open(heap_t *h, region_t *r);
void heap_close(heap_t *h);
/* At least `size` bytes; 0, or -ENOMEM when the region has no room. */
int heap_alloc(heap_t *h, uint64_t size, block_t *out);
void heap_free(heap_t *h, block_t *b);  /* and sets it to "none" */

#pragma GCC visibility pop
#endif
