/* arena_test.c - src/arena.c and src/nursery.c: blocks never overlap, are used
** again for other sizes, stay apart from what was inherited, but for the first
** ones, which lie close together; outside memory where it must. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arena.h"
#include "nursery.h"
#include "support/check.h"

#define KIB ((size_t)1024)
#define MIB (1024 * KIB)

/* The allocator outside: malloc, counted. */
static size_t outside;      /* blocks */
static size_t outside_most; /* the largest asked for */

static void *outer(void *data, void *block, size_t old_size, size_t new_size)
{
    CHECK_EQ((size_t)data, 42);
    (void)old_size;
    if (new_size > outside_most)
        outside_most = new_size;
    if (new_size == 0) {
        outside -= block != NULL;
        free(block);
        return NULL;
    }
    outside += block == NULL;
    return realloc(block, new_size);
}

static void open_arena(void)
{
    arena_open(outer, (void *)(size_t)42);
}

/* The arena with nothing left in the nursery. */
static void open_grown(void)
{
    open_arena();
    while (nursery_get(1))
        ;
}

static void *get(size_t size)
{
    void *b = arena_alloc(NULL, NULL, 5, size);
    CHECK(b);
    CHECK_EQ((uintptr_t)b % 16, 0);
    return b;
}

static void drop(void *block, size_t size)
{
    CHECK(arena_alloc(NULL, block, size, 0) == NULL);
}

/* All bytes say whose they are. */
static int is_filled(const unsigned char *b, size_t size, unsigned char with)
{
    for (size_t i = 0; i < size; i++)
        if (b[i] != with)
            return 0;
    return 1;
}

static size_t random_size(void)
{
    size_t most = (size_t)1 << (1 + check_below(14));
    return 1 + check_below((uint32_t)most);
}

static void test_never_overlap(void)
{
    enum { BLOCKS = 400 };
    static struct {
        unsigned char *at;
        size_t size;
    } blocks[BLOCKS];
    open_arena();
    for (uint32_t round = 0; round < 200000; round++) {
        uint32_t i = check_below(BLOCKS);
        unsigned char with = (unsigned char)(i * 7 + 1);
        size_t size = random_size();
        if (!blocks[i].at) {
            blocks[i].at = get(size);
        } else {
            CHECK(is_filled(blocks[i].at, blocks[i].size, with));
            if (check_below(2)) {
                drop(blocks[i].at, blocks[i].size);
                blocks[i].at = NULL;
                continue;
            }
            size_t kept = size < blocks[i].size ? size : blocks[i].size;
            blocks[i].at =
                arena_alloc(NULL, blocks[i].at, blocks[i].size, size);
            CHECK(blocks[i].at);
            CHECK(is_filled(blocks[i].at, kept, with));
        }
        blocks[i].size = size;
        memset(blocks[i].at, with, size);
    }
    for (uint32_t i = 0; i < BLOCKS; i++)
        if (blocks[i].at)
            drop(blocks[i].at, blocks[i].size);
    CHECK_EQ(outside, 0);
}

static void test_small_and_large(void)
{
    open_grown();
    void *small = get(ARENA_SMALL);
    CHECK_EQ(outside, 0);
    void *large = get(ARENA_SMALL + 1);
    CHECK_EQ(outside, 1);
    memset(large, 3, ARENA_SMALL + 1);
    /* What came from outside stays there while it lives, even when small. */
    large = arena_alloc(NULL, large, ARENA_SMALL + 1, 100);
    CHECK(is_filled(large, 100, 3));
    CHECK_EQ(outside, 1);
    drop(large, 100);
    CHECK_EQ(outside, 0);
    small = arena_alloc(NULL, small, ARENA_SMALL, 64 * MIB);
    CHECK_EQ(outside, 1);
    CHECK_EQ(outside_most, 64 * MIB);
    drop(small, 64 * MIB);
    CHECK(arena_alloc(NULL, NULL, 0, 0) == NULL);
    CHECK_EQ(outside, 0);
}

/* C modules that use Lua's allocator may name a wrong old size. */
static void test_wrong_sizes(void)
{
    static unsigned char *blocks[200];
    open_arena();
    for (unsigned i = 0; i < 200; i++) {
        blocks[i] = get(20 * (i + 1));
        memset(blocks[i], (int)i, 20 * (i + 1));
    }
    for (unsigned i = 0; i < 200; i += 2)
        drop(blocks[i], i % 3 ? 0 : 1000000);
    for (unsigned i = 1; i < 200; i += 2) {
        CHECK(is_filled(blocks[i], 20 * (i + 1), (unsigned char)i));
        blocks[i] = arena_alloc(NULL, blocks[i], 0, 30 * (i + 1));
        CHECK(is_filled(blocks[i], 20 * (i + 1), (unsigned char)i));
    }
    for (unsigned i = 1; i < 200; i += 2)
        drop(blocks[i], 0);
    CHECK_EQ(outside, 0);
}

/* Blocks of all sizes, one right behind the other. */
static void test_young(void)
{
    open_arena();
    char *before = get(1), *last;
    for (size_t size = 1; size <= 700; size += 7) {
        char *b = get(size);
        CHECK(nursery_has(b));
        CHECK(nursery_room(b) >= size);
        CHECK_EQ(b - before, (ptrdiff_t)nursery_room(before) + 8);
        CHECK(nursery_room(before) < size + 16);
        before = b;
    }
    last = before;
    /* The last one grows where it is, and its room is used again; one that is
    ** not the last moves. */
    CHECK(arena_alloc(NULL, last, 700, 3000) == last);
    CHECK(arena_alloc(NULL, last, 3000, 20) == last);
    char *behind = get(100);
    memset(last, 5, 3000);
    CHECK(is_filled((unsigned char *)last, 3000, 5));
    drop(behind, 100);
    CHECK(get(64) == behind);
    char *moved = arena_alloc(NULL, last, 3000, 4000);
    CHECK(moved > behind);
    CHECK(nursery_has(moved));
    CHECK(is_filled((unsigned char *)moved, 3000, 5));
    drop(last, 3000);
    CHECK((char *)get(10) > moved);
    CHECK_EQ(outside, 0);
}

/* It ends; no block takes more than a quarter of what is left. */
static void test_grown(void)
{
    size_t young = 0, blocks = 0;
    open_arena();
    void *large = get(17 * KIB);
    CHECK(!nursery_has(large));
    drop(large, 17 * KIB);
    for (unsigned i = 0; i < 200; i++) {
        void *b = get(1000);
        young += nursery_has(b);
        memset(b, (int)i, 1000);
        blocks++;
    }
    CHECK(young > 55 && young < 65);
    CHECK_EQ(blocks, 200);
    char *least = get(16);
    CHECK(nursery_has(least));
    char *b = least;
    while (nursery_has(b)) {
        CHECK_EQ(b - least, 32 * (ptrdiff_t)(blocks++ - 200));
        b = get(16);
    }
    CHECK_EQ(outside, 0);
}

static uint64_t resident_kib(void)
{
    char line[256];
    uint64_t kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    CHECK(f);
    while (fgets(line, sizeof line, f))
        if (strncmp(line, "RssAnon:", 8) == 0)
            kib = strtoull(line + 8, NULL, 10);
    fclose(f);
    return kib;
}

/* A slab whose blocks are all free serves other sizes: 64 MiB of one size
** after the other take little more than 64 MiB. */
static void test_reuse(void)
{
    enum { BYTES = 64 * 1024 * 1024 };
    static void *blocks[BYTES / 48];
    if (CHECK_CHECKER)
        check_skip("shadow memory counts, too");
    open_grown();
    memset(blocks, 0, sizeof blocks);
    uint64_t before = resident_kib();
    for (size_t size = 48; size <= 512; size += 58) {
        size_t count = BYTES / size;
        for (size_t i = 0; i < count; i++)
            blocks[i] = get(size);
        for (size_t i = 0; i < count; i++)
            drop(blocks[i], size);
    }
    CHECK(resident_kib() - before < 90 * KIB);
    CHECK_EQ(outside, 0);
}

/* After the seal, nothing new lies on a page that was written before, not even
** where something was freed since. */
static void test_apart(void)
{
    enum { BLOCKS = 300 };
    static unsigned char *old[BLOCKS];
    open_grown();
    for (unsigned i = 0; i < BLOCKS; i++)
        old[i] = get(40);
    for (unsigned i = 0; i < BLOCKS; i += 2)
        drop(old[i], 40);
    arena_seal();
    for (unsigned i = 1; i < BLOCKS; i += 4)
        drop(old[i], 40);
    for (unsigned i = 0; i < 5 * BLOCKS; i++) {
        unsigned char *b = get(40);
        for (unsigned k = 0; k < BLOCKS; k++)
            CHECK((uintptr_t)b / 4096 != (uintptr_t)old[k] / 4096);
    }
    /* An inherited block can grow, and keeps what it holds. */
    memset(old[3], 9, 40);
    old[3] = arena_alloc(NULL, old[3], 40, 400);
    CHECK(is_filled(old[3], 40, 9));
}

/* Where there is no address space for ranges, everything is from outside. */
static void test_no_room(void)
{
    struct rlimit none = {0, 0};
    if (CHECK_CHECKER)
        check_skip("the sanitizer needs address space");
    open_grown();
    CHECK(malloc(MIB));
    arena_seal();
    CHECK_EQ(setrlimit(RLIMIT_AS, &none), 0);
    void *b = arena_alloc(NULL, NULL, 0, 100);
    CHECK(b);
    CHECK_EQ(outside, 1);
    memset(b, 1, 100);
    b = arena_alloc(NULL, b, 100, 200);
    CHECK(b);
    drop(b, 200);
    CHECK_EQ(outside, 0);
}

/* 400 MiB: ranges grow, and what lies in each is found. */
static void test_many_ranges(void)
{
    enum { BLOCKS = 100000, SIZE = 4096 };
    unsigned char **blocks = calloc(BLOCKS, sizeof *blocks);
    CHECK(blocks);
    open_grown();
    for (uint32_t i = 0; i < BLOCKS; i++) {
        blocks[i] = get(SIZE);
        memcpy(blocks[i], &i, sizeof i);
    }
    for (uint32_t i = 0; i < BLOCKS; i++) {
        CHECK(memcmp(blocks[i], &i, sizeof i) == 0);
        drop(blocks[i], SIZE);
    }
    CHECK_EQ(outside, 0);
    free(blocks);
}

/* A child's writes are its own, wherever its first blocks lie. */
static void test_fork(void)
{
    open_arena();
    unsigned char *b = get(64);
    memset(b, 7, 64);
    arena_seal();
    pid_t child = fork();
    if (child == 0) {
        unsigned char *mine = get(64);
        memset(mine, 8, 64);
        int good = is_filled(b, 64, 7);
        memset(b, 9, 64);
        _exit(good ? 0 : 1);
    }
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    CHECK(is_filled(b, 64, 7));
}

int main(int argc, char **argv)
{
    static const check_t cases[] = {
        {"arena: blocks never overlap and keep what they hold",
         test_never_overlap, 0},
        {"arena: the first blocks lie one behind the other", test_young, 0},
        {"arena: there are only so many first blocks", test_grown, 0},
        {"arena: large blocks come from outside", test_small_and_large, 0},
        {"arena: a wrong old size does no harm", test_wrong_sizes, 0},
        {"arena: an empty slab serves other sizes", test_reuse, 0},
        {"arena: nothing new lies where something was inherited", test_apart,
         0},
        {"arena: without address space all is from outside", test_no_room, 0},
        {"arena: what lies in any range is found", test_many_ranges, 120},
        {"arena: what a child writes is its own", test_fork, 0},
        {NULL, NULL, 0}};
    return check_main(argc, argv, cases);
}
