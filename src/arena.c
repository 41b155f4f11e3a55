/*
** arena.c - see arena.h. Slabs of blocks of one size, after Bonwick, "The Slab
** Allocator" (USENIX 1994): a free list and a count in each, so that a slab
** whose blocks are all free may serve another size. As with malloc, memory is
** not given back before the worker ends.
**
** The first blocks of all come from the nursery.
**
** A block's size is known from its slab: the old size that the caller names is
** not relied on, since C modules that use Lua's allocator may get it wrong.
*/
#include "arena.h"

#include <stdint.h>
#include <string.h>

#include "nursery.h"
#include "os.h"

#define KIB           ((size_t)1024)
#define MIB           (1024 * KIB)
#define RANGES        32
#define FIRST_RANGE   (64 * MIB) /* address space; each further one doubles */
#define LARGEST_RANGE (4096 * MIB)
#define LEAST_RANGE   (256 * KIB) /* where address space is limited */
#define FIRST_STEP    (32 * KIB)  /* made present at once: a quarter of what */
#define LARGEST_STEP  (2 * MIB)   /* is in use, up to a huge page */
/* Classes: up to FINE bytes in steps of 16, then in quarters of a doubling. */
#define FINE         512
#define FINE_CLASSES (FINE / 16)
#define CLASSES      (FINE_CLASSES + 4 * 3)

typedef struct free_block {
    struct free_block *next;
} free_block_t;

typedef struct slab {
    free_block_t *free;         /* given back */
    struct slab *next, *before; /* of the same class, with room; or free */
    uint16_t used, room;        /* blocks */
    uint16_t fresh;             /* blocks that were in use once */
    uint8_t class;
    uint8_t life; /* of the arena, when it was made */
} slab_t;

/* Slabs of one size, aligned to it. Small ones for the fine classes, so that a
** young worker's few objects of many sizes lie on few pages. */
typedef struct zone {
    size_t slab;
    char *top, *present, *end; /* of its last range: free from; present; end */
    size_t range;              /* size of that */
    size_t used;               /* bytes of slabs */
    slab_t *free;
} zone_t;

typedef struct range {
    char *base;
    size_t size;
    size_t slab;
} range_t;

static struct {
    arena_alloc_t outer;
    void *outer_data;
    range_t ranges[RANGES];
    unsigned count;
    uint8_t life;
    zone_t fine, coarse;
    slab_t *with_room[CLASSES];
} arena = {.fine = {.slab = 4 * KIB}, .coarse = {.slab = 32 * KIB}};

/* Class of a size from 1 to ARENA_SMALL. */
static unsigned class_of(size_t size)
{
    if (size <= FINE)
        return (unsigned)((size - 1) / 16);
    unsigned log = 63 - (unsigned)__builtin_clzll(size - 1); /* 2^log < size */
    size_t step = (size_t)1 << (log - 2);
    size_t quarter = (size - 1 - ((size_t)1 << log)) / step;
    return FINE_CLASSES + (log - 9) * 4 + (unsigned)quarter;
}

/* Size of a class's blocks. */
static size_t size_of(unsigned class)
{
    if (class < FINE_CLASSES)
        return (class + 1) * (size_t)16;
    unsigned log = 9 + (class - FINE_CLASSES) / 4;
    size_t step = (size_t)1 << (log - 2);
    return ((size_t)1 << log) + ((class - FINE_CLASSES) % 4 + 1) * step;
}

static zone_t *zone_of(unsigned class)
{
    return class < FINE_CLASSES ? &arena.fine : &arena.coarse;
}

/* The slab of a block, or NULL: it is from outside. */
static slab_t *slab_of(const void *block)
{
    for (unsigned i = arena.count; i-- > 0;) {
        const range_t *g = &arena.ranges[i];
        if ((size_t)((const char *)block - g->base) < g->size)
            return (slab_t *)((uintptr_t)block & ~(uintptr_t)(g->slab - 1));
    }
    return NULL;
}

static int next_range(zone_t *z)
{
    size_t size = z->range ? 2 * z->range : FIRST_RANGE;
    if (arena.count == RANGES)
        return 0;
    if (size > LARGEST_RANGE)
        size = LARGEST_RANGE;
    char *base;
    while (!(base = os_zeroed(size)) && size > LEAST_RANGE)
        size /= 2;
    if (!base)
        return 0;
    arena.ranges[arena.count++] = (range_t){base, size, z->slab};
    z->range = size;
    z->top = z->present = base + (-(uintptr_t)base & (z->slab - 1));
    z->end = base + size;
    return 1;
}

/* Makes the pages up to `to` present, and some more; while little is in use,
** none but those of a young worker's. */
static void make_present(zone_t *z, const char *to)
{
    size_t step = z->used / 4;
    if (step < FIRST_STEP) {
        if (z == &arena.coarse) {
            z->present = z->top + z->slab;
            return;
        }
        step = FIRST_STEP;
    }
    if (step > LARGEST_STEP)
        step = LARGEST_STEP;
    /* Whole steps, so that the largest ones are whole huge pages. */
    step = (size_t)1 << (63 - __builtin_clzll(step));
    uintptr_t next = ((uintptr_t)to + step - 1) & ~(uintptr_t)(step - 1);
    if (next > (uintptr_t)z->end)
        next = (uintptr_t)z->end;
    size_t size = next - (uintptr_t)z->present;
    if (step == LARGEST_STEP)
        os_huge(z->present, size);
    os_populate(z->present, size);
    z->present += size;
}

/* A slab that was never in use. */
static slab_t *extend(zone_t *z)
{
    if ((size_t)(z->end - z->top) < z->slab && !next_range(z))
        return NULL;
    if (z->present < z->top + z->slab)
        make_present(z, z->top + z->slab);
    slab_t *s = (slab_t *)(void *)z->top;
    z->top += z->slab;
    z->used += z->slab;
    return s;
}

static void list(slab_t *s)
{
    s->before = NULL;
    s->next = arena.with_room[s->class];
    if (s->next)
        s->next->before = s;
    arena.with_room[s->class] = s;
}

static void unlist(slab_t *s)
{
    if (s->next)
        s->next->before = s->before;
    if (s->before)
        s->before->next = s->next;
    else
        arena.with_room[s->class] = s->next;
}

static slab_t *new_slab(unsigned class)
{
    zone_t *z = zone_of(class);
    slab_t *s = z->free;
    if (s)
        z->free = s->next;
    else if (!(s = extend(z)))
        return NULL;
    s->free = NULL;
    s->used = s->fresh = 0;
    s->room = (uint16_t)((z->slab - sizeof *s) / size_of(class));
    s->class = (uint8_t) class;
    s->life = arena.life;
    list(s);
    return s;
}

static void *get(size_t size)
{
    unsigned class = class_of(size);
    slab_t *s = arena.with_room[class];
    if (!s && !(s = new_slab(class)))
        return arena.outer(arena.outer_data, NULL, 0, size);
    free_block_t *b = s->free;
    if (b)
        s->free = b->next;
    else
        b = (void *)((char *)(s + 1) + s->fresh++ * size_of(class));
    if (++s->used == s->room)
        unlist(s);
    return b;
}

static void put(slab_t *s, void *block)
{
    if (s->life != arena.life)
        return; /* inherited: nothing that is filled again */
    free_block_t *b = block;
    b->next = s->free;
    s->free = b;
    if (s->used-- == s->room)
        list(s);
    if (s->used == 0) {
        zone_t *z = zone_of(s->class);
        unlist(s);
        s->next = z->free;
        z->free = s;
    }
}

void arena_open(arena_alloc_t outer, void *outer_data)
{
    arena.outer = outer;
    arena.outer_data = outer_data;
}

void arena_seal(void)
{
    memset(arena.with_room, 0, sizeof arena.with_room);
    arena.fine.free = arena.coarse.free = NULL;
    arena.fine.present = arena.fine.top;
    arena.coarse.present = arena.coarse.top;
    arena.life++;
}

/* From the outer allocator. */
static void *outer_alloc(void *block, size_t old_size, size_t size)
{
    void *b = arena.outer(arena.outer_data, block, old_size, size);
    if (size >= OS_HUGE_FROM && b && (!block || size > old_size))
        os_huge(b, size);
    return b;
}

static void *fresh(size_t kind, size_t size)
{
    void *b = nursery_get(size);
    if (b)
        return b;
    return size <= ARENA_SMALL ? get(size) : outer_alloc(NULL, kind, size);
}

/* Another size for a block that was made here, which has so much room. */
static void *move(void *block, size_t room, size_t size)
{
    void *moved = fresh(0, size);
    if (moved) /* else Lua 5.4 knows that shrinking may fail, too */
        memcpy(moved, block, room < size ? room : size);
    return moved;
}

static void *resize_young(void *block, size_t size)
{
    if (!size) {
        nursery_put(block);
        return NULL;
    }
    if (nursery_resize(block, size))
        return block;
    void *moved = move(block, nursery_room(block), size);
    if (moved)
        nursery_put(block);
    return moved;
}

void *arena_alloc(void *data, void *block, size_t old_size, size_t new_size)
{
    (void)data;
    if (!block)
        return new_size ? fresh(old_size, new_size) : NULL;
    if (nursery_has(block))
        return resize_young(block, new_size);
    slab_t *s = slab_of(block);
    if (!s)
        return outer_alloc(block, old_size, new_size);
    if (!new_size) {
        put(s, block);
        return NULL;
    }
    if (new_size <= ARENA_SMALL && class_of(new_size) == s->class)
        return block;
    void *moved = move(block, size_of(s->class), new_size);
    if (moved)
        put(s, block);
    return moved;
}
