/*
** arena.c - see arena.h. Slabs of blocks of one size, after Bonwick, "The Slab
** Allocator" (USENIX 1994): a free list and a count in each, so that a slab
** whose blocks are all free may serve another size. As with malloc, memory is
** not given back before the worker ends.
*/
#include "arena.h"

#include <stdint.h>
#include <string.h>

#include "os.h"

#define KIB           ((size_t)1024)
#define MIB           (1024 * KIB)
#define RANGES        32
#define FIRST_RANGE   (64 * MIB) /* address space; each further one doubles */
#define LARGEST_RANGE (4096 * MIB)
#define LEAST_RANGE   (256 * KIB) /* where address space is limited */
#define FIRST_STEP    (32 * KIB)  /* made present at once: a quarter of what */
#define LARGEST_STEP  (2 * MIB)   /* is in use, up to a huge page */
#define HUGE_BLOCK    (4 * MIB)   /* of the others: to be huge pages */
/* Classes: up to FINE bytes in steps of 16, then in quarters of a doubling. */
#define FINE         512
#define FINE_CLASSES (FINE / 16)
#define CLASSES      (FINE_CLASSES + 4 * 3)
/* Slabs: small ones for the fine classes, so that a young worker's few objects
** of many sizes lie on few pages. Aligned to their size. */
#define SLAB       (4 * KIB)
#define LARGE_SLAB (32 * KIB)

typedef struct range {
    char *base;
    size_t size;
} range_t;

typedef struct free_block {
    struct free_block *next;
} free_block_t;

typedef struct slab {
    free_block_t *free;         /* given back */
    struct slab *next, *before; /* of the same class, with room; or free */
    uint16_t used, room;        /* blocks */
    uint16_t fresh;             /* blocks that were in use once */
    uint16_t life;              /* of the arena, when it was made */
} slab_t;

static struct {
    arena_alloc_t outer;
    void *outer_data;
    range_t ranges[RANGES]; /* the last is being filled */
    unsigned count;
    char *top, *present, *end; /* of the last: free from, present up to, end */
    size_t used;               /* bytes of full ranges */
    int full;                  /* no further range to be had */
    uint16_t life;
    slab_t *with_room[CLASSES];
    slab_t *free[2]; /* small slabs, large ones */
} arena;

/* Class of a size from 1 to ARENA_SMALL, and the size of its blocks. */
static unsigned class_of(size_t size, size_t *rounded)
{
    if (size <= FINE) {
        unsigned class = (unsigned)((size + 15) / 16);
        *rounded = (size_t) class * 16;
        return class - 1;
    }
    unsigned log = 63 - (unsigned)__builtin_clzll(size - 1); /* 2^log < size */
    size_t step = (size_t)1 << (log - 2);
    size_t quarter = (size - ((size_t)1 << log) + step - 1) / step;
    *rounded = ((size_t)1 << log) + quarter * step;
    return FINE_CLASSES + (log - 9) * 4 + (unsigned)quarter - 1;
}

static int is_ours(const void *block, size_t size)
{
    if (size > ARENA_SMALL)
        return 0;
    for (unsigned i = arena.count; i-- > 0;)
        if ((size_t)((const char *)block - arena.ranges[i].base) <
            arena.ranges[i].size)
            return 1;
    return 0;
}

static int next_range(void)
{
    size_t size = FIRST_RANGE;
    if (arena.full || arena.count == RANGES)
        return 0;
    if (arena.count) {
        size = 2 * arena.ranges[arena.count - 1].size;
        arena.used += (size_t)(arena.top - arena.ranges[arena.count - 1].base);
    }
    if (size > LARGEST_RANGE)
        size = LARGEST_RANGE;
    char *base;
    while (!(base = os_zeroed(size)) && size > LEAST_RANGE)
        size /= 2;
    if (!base) {
        arena.full = 1;
        return 0;
    }
    arena.ranges[arena.count++] = (range_t){base, size};
    arena.top = arena.present = base;
    arena.end = base + size;
    return 1;
}

/* Makes the pages up to `to` present, and some more. */
static void make_present(const char *to)
{
    size_t used =
        arena.used + (size_t)(arena.top - arena.ranges[arena.count - 1].base);
    size_t step = used / 4;
    if (step < FIRST_STEP)
        step = FIRST_STEP;
    if (step > LARGEST_STEP)
        step = LARGEST_STEP;
    /* Whole steps, so that the largest ones are whole huge pages. */
    step = (size_t)1 << (63 - __builtin_clzll(step));
    uintptr_t next = ((uintptr_t)to + step - 1) & ~(uintptr_t)(step - 1);
    if (next > (uintptr_t)arena.end)
        next = (uintptr_t)arena.end;
    size_t size = next - (uintptr_t)arena.present;
    if (step == LARGEST_STEP)
        os_huge(arena.present, size);
    os_populate(arena.present, size);
    arena.present += size;
}

static size_t slab_size(size_t rounded)
{
    return rounded <= FINE ? SLAB : LARGE_SLAB;
}

/* `size` fresh bytes, aligned to it. */
static void *extend(size_t size)
{
    for (;;) {
        size_t gap = -(uintptr_t)arena.top & (size - 1);
        size_t left = (size_t)(arena.end - arena.top);
        if (left >= gap + size) {
            char *at = arena.top + gap;
            if (arena.present < at + size)
                make_present(at + size);
            for (char *s = arena.top; s < at; s += SLAB) {
                ((slab_t *)(void *)s)->next = arena.free[0];
                arena.free[0] = (slab_t *)(void *)s;
            }
            arena.top = at + size;
            return at;
        }
        if (!next_range())
            return NULL;
    }
}

static void list(slab_t *s, unsigned class)
{
    s->before = NULL;
    s->next = arena.with_room[class];
    if (s->next)
        s->next->before = s;
    arena.with_room[class] = s;
}

static void unlist(slab_t *s, unsigned class)
{
    if (s->next)
        s->next->before = s->before;
    if (s->before)
        s->before->next = s->next;
    else
        arena.with_room[class] = s->next;
}

static slab_t *new_slab(unsigned class, size_t rounded)
{
    size_t size = slab_size(rounded);
    slab_t **head = &arena.free[size == LARGE_SLAB], *s = *head;
    if (s)
        *head = s->next;
    else if (!(s = extend(size)))
        return NULL;
    s->free = NULL;
    s->used = s->fresh = 0;
    s->room = (uint16_t)((size - sizeof *s) / rounded);
    s->life = arena.life;
    list(s, class);
    return s;
}

static void *get(size_t size)
{
    size_t rounded;
    unsigned class = class_of(size, &rounded);
    slab_t *s = arena.with_room[class];
    if (!s && !(s = new_slab(class, rounded)))
        return arena.outer(arena.outer_data, NULL, 0, size);
    free_block_t *b = s->free;
    if (b)
        s->free = b->next;
    else
        b = (void *)((char *)(s + 1) + s->fresh++ * rounded);
    if (++s->used == s->room)
        unlist(s, class);
    return b;
}

static void put(void *block, size_t size)
{
    size_t rounded;
    unsigned class = class_of(size, &rounded);
    size_t whole = slab_size(rounded);
    slab_t *s = (void *)((uintptr_t)block & ~(uintptr_t)(whole - 1));
    if (s->life != arena.life)
        return; /* inherited: nothing that is filled again */
    free_block_t *b = block;
    b->next = s->free;
    s->free = b;
    if (s->used-- == s->room)
        list(s, class);
    if (s->used == 0) {
        unlist(s, class);
        s->next = arena.free[whole == LARGE_SLAB];
        arena.free[whole == LARGE_SLAB] = s;
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
    memset(arena.free, 0, sizeof arena.free);
    arena.present = arena.top;
    arena.life++;
}

void arena_warm(void)
{
    if (!arena.count)
        return;
    char *base = arena.ranges[arena.count - 1].base, *from = base;
    if ((size_t)(arena.top - base) > FIRST_STEP)
        from = arena.top - FIRST_STEP;
    if ((size_t)(arena.end - arena.top) >= FIRST_STEP)
        arena.present = arena.top + FIRST_STEP;
    os_populate(from, (size_t)(arena.present - from));
}

static void *outer_alloc(void *block, size_t old_size, size_t size)
{
    void *b = arena.outer(arena.outer_data, block, old_size, size);
    if (size >= HUGE_BLOCK && b && (!block || size > old_size))
        os_huge(b, size);
    return b;
}

static void *fresh(size_t kind, size_t size)
{
    return size <= ARENA_SMALL ? get(size) : outer_alloc(NULL, kind, size);
}

void *arena_alloc(void *data, void *block, size_t old_size, size_t new_size)
{
    (void)data;
    if (!block)
        return new_size ? fresh(old_size, new_size) : NULL;
    if (!is_ours(block, old_size))
        return outer_alloc(block, old_size, new_size);
    if (!new_size) {
        put(block, old_size);
        return NULL;
    }
    size_t old_room, new_room;
    if (new_size <= ARENA_SMALL &&
        class_of(new_size, &new_room) == class_of(old_size, &old_room))
        return block;
    void *moved = fresh(0, new_size);
    if (!moved)
        return NULL; /* Lua 5.4 knows that shrinking may fail, too */
    memcpy(moved, block, old_size < new_size ? old_size : new_size);
    put(block, old_size);
    return moved;
}
