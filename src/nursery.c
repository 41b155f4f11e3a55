/*
** nursery.c - see nursery.h. Each block lies behind its size, which is that of
** both together.
**
** In the module's own memory, behind its variables: those are written to in
** any case, and no mapping and no page table has to be made for it.
*/
#include "nursery.h"

#include <stdalign.h>
#include <stdint.h>

#define SIZE    ((size_t)64 * 1024)
#define HEADER  sizeof(size_t)
#define ALIGNED 16

/* Common, not static: so linkers put it behind all of those. */
alignas(ALIGNED) unsigned char nursery_place[SIZE]
    __attribute__((common, visibility("hidden")));
#define place nursery_place
static size_t used = ALIGNED - HEADER;  /* where the next block's size goes */

static size_t *size_of(const void *block)
{
    return (size_t *)(uintptr_t)((const char *)block - HEADER);
}

/* What a block of so many bytes takes up. */
static size_t whole(size_t size)
{
    return (size + HEADER + ALIGNED - 1) / ALIGNED * ALIGNED;
}

static int is_last(const void *block)
{
    return (const unsigned char *)block - HEADER + *size_of(block) ==
           place + used;
}

/* May a block of so many bytes start there? */
static int fits(size_t start, size_t size)
{
    size_t left = SIZE - start;
    return size <= left / 4 && whole(size) <= left;
}

void *nursery_get(size_t size)
{
    if (!fits(used, size))
        return NULL;
    void *block = place + used + HEADER;
    *size_of(block) = whole(size);
    used += whole(size);
    return block;
}

int nursery_has(const void *block)
{
    return (uintptr_t)block - (uintptr_t)place < SIZE;
}

size_t nursery_room(const void *block)
{
    return *size_of(block) - HEADER;
}

int nursery_resize(void *block, size_t size)
{
    if (size <= nursery_room(block))
        return 1;
    size_t start = used - *size_of(block);
    if (!is_last(block) || !fits(start, size))
        return 0;
    used = start + whole(size);
    *size_of(block) = whole(size);
    return 1;
}

void nursery_put(void *block)
{
    if (is_last(block))
        used -= *size_of(block);
}
