/* heap.c - see heap.h. Parent only; never blocks. */
#include "heap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "os.h"

#define SMALLEST 64
/* Up to this size blocks may lie in region_t.small. */
#define SMALL (UINT64_C(16) * 1024)
/* From this size on a free block's pages are worth giving back ... */
#define LARGE (UINT64_C(256) * 1024)
/* ... unless the warm ones are fewer than this: refilling fresh pages costs
** five times what refilling warm ones does. */
#define WARM_MAX (UINT64_C(512) * 1024 * 1024)
/* Marks the offset of a free block without pages; offsets are even. */
#define COLD UINT64_C(1)

/* Class of a size: classes 4k..4k+3 hold 5/4, 6/4, 7/4, 8/4 of 2^(k+5). */
static unsigned class_of(uint64_t size, uint64_t *rounded)
{
    if (size < SMALLEST)
        size = SMALLEST;
    unsigned log = 63 - (unsigned)__builtin_clzll(size - 1); /* 2^log < size */
    uint64_t step = UINT64_C(1) << (log - 2);
    uint64_t quarter = (size - (UINT64_C(1) << log) + step - 1) / step;
    *rounded = (UINT64_C(1) << log) + quarter * step;
    return (log - 5) * 4 + (unsigned)quarter - 1;
}

void heap_open(heap_t *h, region_t *r)
{
    memset(h, 0, sizeof *h);
    h->h_region = r;
    h->h_top = r->heap;
    h->h_end = r->heap + r->heap_size;
    h->h_small_top = r->small;
    h->h_small_end = r->small + r->small_size;
}

void heap_close(heap_t *h)
{
    for (unsigned i = 0; i < HEAP_CLASSES; i++)
        free(h->h_free[i].offsets);
    memset(h->h_free, 0, sizeof h->h_free);
}

static int take_free(heap_t *h, unsigned class, uint64_t size, block_t *out)
{
    heap_list_t *list = &h->h_free[class];
    if (!list->count)
        return 0;
    uint64_t offset = list->offsets[--list->count];
    out->offset = offset & ~COLD;
    out->size = size;
    h->h_used += size;
    if (size >= LARGE && !(offset & COLD))
        h->h_warm -= size;
    return 1;
}

/* When the untouched end is used up: the next larger class with a block. The
** block keeps its own class, so that it returns to the right list. */
static int take_larger(heap_t *h, uint64_t size, block_t *out)
{
    for (size++; size <= h->h_region->heap_size; size++) {
        unsigned class = class_of(size, &size);
        if (class >= HEAP_CLASSES)
            break;
        if (take_free(h, class, size, out))
            return 1;
    }
    return 0;
}

static int take_new(heap_t *h, uint64_t size, block_t *out)
{
    uint64_t *top = &h->h_top;
    if (size <= SMALL && h->h_small_end - h->h_small_top >= size)
        top = &h->h_small_top;
    else if (h->h_end - h->h_top < size)
        return 0;
    out->offset = *top;
    out->size = size;
    *top += size;
    h->h_used += size;
    return 1;
}

int heap_alloc(heap_t *h, uint64_t size, block_t *out)
{
    int error = FAULT_ERRNO("heap.alloc");
    if (error)
        return error;
    if (size > h->h_region->heap_size)
        return -ENOMEM;
    uint64_t rounded;
    unsigned class = class_of(size, &rounded);
    return take_free(h, class, rounded, out) || take_new(h, rounded, out) ||
                   take_larger(h, rounded, out)
               ? 0
               : -ENOMEM;
}

void heap_free(heap_t *h, block_t *b)
{
    if (!b->offset)
        return;
    uint64_t size, cold = 0;
    heap_list_t *list = &h->h_free[class_of(b->size, &size)];
    h->h_used -= b->size;
    if (size >= LARGE) {
        if (h->h_warm + size > WARM_MAX) {
            os_give_back(region_at(h->h_region, b->offset), (size_t)size);
            cold = COLD;
        } else
            h->h_warm += size;
    }
    if (list->count == list->room) {
        uint32_t room = list->room ? list->room * 2 : 16;
        uint64_t *more = realloc(list->offsets, room * sizeof *more);
        if (more) {
            list->offsets = more;
            list->room = room;
        }
    }
    /* Without memory for the list the block is lost until the pool is closed:
    ** address space, not memory, once its pages are gone. */
    if (list->count < list->room)
        list->offsets[list->count++] = b->offset | cold;
    b->offset = b->size = 0;
}
