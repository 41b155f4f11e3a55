/* heap_test.c - src/heap.c: blocks never overlap, are used again, run out. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "heap.h"
#include "support/check.h"

#define KIB UINT64_C(1024)
#define MIB (KIB * 1024)

static region_t *small_region(const char *bytes)
{
    char error[256];
    settings_t set = { .processes = 2 };
    setenv("PROCPOOL_REGION", bytes, 1);
    region_t *r = region_new(&set, error, sizeof error);
    CHECK(r);
    return r;
}

static unsigned char *at(const region_t *r, const block_t *b)
{
    return region_at(r, b->offset);
}

/* Marks both ends of a block, so that an overlap is seen by whoever is
** overlapped. */
static void mark(const region_t *r, const block_t *b, uint64_t id)
{
    memcpy(at(r, b), &id, 8);
    memcpy(at(r, b) + b->size - 8, &id, 8);
}

static int is_marked(const region_t *r, const block_t *b, uint64_t id)
{
    return memcmp(at(r, b), &id, 8) == 0 &&
           memcmp(at(r, b) + b->size - 8, &id, 8) == 0;
}

static void test_classes(void)
{
    region_t *r = small_region("268435456");
    heap_t h;
    heap_open(&h, r);
    for (uint64_t size = 0; size < 70000; size += 1 + size / 61) {
        block_t b;
        CHECK_EQ(heap_alloc(&h, size, &b), 0);
        CHECK(b.size >= size && b.size >= 64);
        /* Four classes to a power of two: never more than a quarter lost. */
        CHECK(b.size <= 64 || b.size <= size + size / 4 + 1);
        CHECK_EQ(b.offset % 16, 0);
        heap_free(&h, &b);
        CHECK_EQ(b.offset, 0);
    }
    CHECK_EQ(h.h_used, 0);
    heap_close(&h);
    region_free(r);
}

/* Is a block among the small ones? */
static int is_small(const region_t *r, const block_t *b)
{
    return b->offset >= r->small &&
           b->offset + b->size <= r->small + r->small_size;
}

/* The first small ones lie together, where little else is. */
static void test_small_blocks(void)
{
    region_t *r = small_region("268435456");
    heap_t h;
    block_t b;
    uint32_t n = 0;
    heap_open(&h, r);
    CHECK(r->small_size >= 64 * KIB && r->small_size < r->heap_size);
    CHECK_EQ(heap_alloc(&h, 100 * KIB, &b), 0);
    CHECK_EQ(b.offset, r->heap);
    do {
        CHECK_EQ(heap_alloc(&h, 4000, &b), 0);
        n += is_small(r, &b);
    } while (is_small(r, &b));
    CHECK_EQ(n, r->small_size / 4096);
    CHECK_EQ(b.offset, r->heap + 112 * KIB); /* the class of 100 KiB */
    heap_close(&h);
    region_free(r);
}

static void test_never_overlap(void)
{
    enum { BLOCKS = 500 };
    static block_t blocks[BLOCKS];
    region_t *r = small_region("268435456");
    heap_t h;
    heap_open(&h, r);
    uint64_t used = 0;
    for (uint32_t round = 0; round < 60000; round++) {
        uint32_t i = check_below(BLOCKS);
        if (blocks[i].offset) {
            CHECK(is_marked(r, &blocks[i], i));
            used -= blocks[i].size;
            heap_free(&h, &blocks[i]);
            continue;
        }
        uint64_t size = UINT64_C(1) << check_below(17);
        CHECK_EQ(heap_alloc(&h, size + check_below((uint32_t)size),
                            &blocks[i]), 0);
        CHECK(is_small(r, &blocks[i]) ||
              (blocks[i].offset >= r->heap &&
               blocks[i].offset + blocks[i].size <= r->heap + r->heap_size));
        mark(r, &blocks[i], i);
        used += blocks[i].size;
        CHECK_EQ(h.h_used, used);
    }
    heap_close(&h);
    region_free(r);
}

static void test_reuse(void)
{
    region_t *r = small_region("268435456");
    heap_t h;
    block_t a, b;
    heap_open(&h, r);
    CHECK_EQ(heap_alloc(&h, 1000, &a), 0);
    CHECK_EQ(heap_alloc(&h, 1000, &b), 0);
    uint64_t first = a.offset, second = b.offset, top = h.h_small_top;
    heap_free(&h, &a);
    heap_free(&h, &b);
    CHECK_EQ(heap_alloc(&h, 900, &a), 0);
    CHECK_EQ(a.offset, second);   /* last in, first out: warm pages */
    CHECK_EQ(heap_alloc(&h, 1000, &b), 0);
    CHECK_EQ(b.offset, first);
    CHECK_EQ(h.h_small_top, top);
    heap_free(&h, &a);
    heap_free(&h, &a);            /* none: nothing happens */
    CHECK_EQ(h.h_used, b.size);
    heap_close(&h);
    region_free(r);
}

static void test_exhaustion(void)
{
    region_t *r = small_region("16777216");
    heap_t h;
    heap_open(&h, r);
    static block_t blocks[64], small[64];
    uint32_t n = 0, m = 0;
    block_t b;
    CHECK_EQ(heap_alloc(&h, r->heap_size + 1, &b), -ENOMEM);
    CHECK_EQ(heap_alloc(&h, UINT64_MAX / 2, &b), -ENOMEM);
    while (n < 64 && heap_alloc(&h, MIB, &blocks[n]) == 0)
        n++;
    CHECK_EQ(n, r->heap_size / MIB);
    while (m < 64 && heap_alloc(&h, 16 * KIB, &small[m]) == 0)
        CHECK(is_small(r, &small[m++]));
    CHECK_EQ(heap_alloc(&h, 1, &b), -ENOMEM);
    /* A smaller request takes a larger block when nothing else is left. */
    heap_free(&h, &blocks[3]);
    CHECK_EQ(heap_alloc(&h, 100, &b), 0);
    CHECK_EQ(b.size, MIB);
    CHECK_EQ(heap_alloc(&h, 100, &blocks[3]), -ENOMEM);
    heap_free(&h, &b);
    CHECK_EQ(heap_alloc(&h, MIB, &blocks[3]), 0);
    for (uint32_t i = 0; i < n; i++)
        heap_free(&h, &blocks[i]);
    for (uint32_t i = 0; i < m; i++)
        heap_free(&h, &small[i]);
    CHECK_EQ(h.h_used, 0);
    heap_close(&h);
    region_free(r);
}

/* What h_warm says is what keeps pages: however blocks come and go, at most
** 512 MiB of free blocks stay resident. */
static void test_warm_is_bounded(void)
{
    settings_t set = { .processes = 1 };
    char error[256];
    unsetenv("PROCPOOL_REGION");
    region_t *r = region_new(&set, error, sizeof error);
    CHECK(r);
    if (r->heap_size < 64 * 1024 * MIB)
        check_skip("the region is small here");
    enum { BLOCKS = 6 };
    block_t blocks[BLOCKS], b;
    uint64_t size = 400 * MIB;
    heap_t h;
    heap_open(&h, r);
    for (int i = 0; i < BLOCKS; i++) {
        CHECK_EQ(heap_alloc(&h, size, &blocks[i]), 0);
        at(r, &blocks[i])[200 * MIB] = 1;    /* one page says it all */
    }
    /* Each time round one block more is free, and one is taken again. */
    for (int i = 0; i < BLOCKS; i++) {
        heap_free(&h, &blocks[i]);
        CHECK_EQ(heap_alloc(&h, size, &b), 0);
        at(r, &b)[200 * MIB] = 1;
        heap_free(&h, &b);
    }
    int warm = 0;
    for (int i = 0; i < BLOCKS; i++) {
        CHECK_EQ(heap_alloc(&h, size, &b), 0);
        warm += at(r, &b)[200 * MIB];
    }
    CHECK(warm <= 1);
    heap_close(&h);
    region_free(r);
}

int main(int argc, char **argv)
{
    static const check_t cases[] = {
        { "heap: classes waste at most a quarter", test_classes, 0 },
        { "heap: small blocks have a place of their own", test_small_blocks, 0 },
        { "heap: blocks never overlap", test_never_overlap, 0 },
        { "heap: free blocks are used again, the warmest first", test_reuse,
          0 },
        { "heap: exhaustion is an error, and ends", test_exhaustion, 0 },
        { "heap: few free blocks keep their pages", test_warm_is_bounded, 0 },
        { NULL, NULL, 0 }
    };
    return check_main(argc, argv, cases);
}
