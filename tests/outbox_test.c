/*
** outbox_test.c - src/outbox.c: records come out as they went in, however
** the ring wraps and the payload grows; what was not published was never
** said; pages of large results are given back.
*/
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "os.h"
#include "outbox.h"
#include "support/check.h"

#define KIB UINT64_C(1024)

/* A region with rings of the given size: the real ones are larger, so their
** memory is there. */
static region_t *windowed_region(uint64_t ring, uint64_t window)
{
    char error[256];
    settings_t set = { .processes = 1 };
    setenv("PROCPOOL_REGION", "67108864", 1);
    region_t *r = region_new(&set, error, sizeof error);
    CHECK(r);
    CHECK(r->outbox_size >= ring);
    r->outbox_size = ring;
    r->window = window;
    return r;
}

static region_t *ring_region(uint64_t ring)
{
    return windowed_region(ring, 0);
}

static int never_starved(outbox_t *o)
{
    (void)o;
    return -ENOBUFS;
}

/* --- one thread plays both sides ---------------------------------------- */

/* What was published and not yet read: lengths and seeds, in order. */
enum { EXPECT_MAX = 1 << 14 };
typedef struct sent {
    uint32_t size, seed;
    uint8_t kind, first;
} sent_t;
static struct {
    region_t *r;
    sent_t sent[EXPECT_MAX];
    uint32_t put, got, ended;   /* ended: not published before this */
    uint64_t at;
    uint32_t starved;
} model;

static unsigned char byte_of(uint32_t seed, uint64_t i)
{
    return (unsigned char)(seed * 31 + i * 7 + (i >> 8));
}

static void read_one(uint64_t end)
{
    record_t record;
    int rc = outbox_read(model.r, 0, &model.at, end, &record);
    CHECK(rc >= 0);
    if (rc == 0)
        return;
    CHECK(model.got < model.ended);
    sent_t *s = &model.sent[model.got++ % EXPECT_MAX];
    CHECK_EQ(record.kind, s->kind);
    CHECK_EQ(record.size, s->size);
    CHECK_EQ(record.cell != NULL, s->first);
    if (record.cell)
        CHECK_EQ(record.cell->item, s->seed & 0xffff);
    for (uint64_t i = 0; i < record.size; i++)
        CHECK_EQ(record.bytes[i], byte_of(s->seed, i));
}

static void read_some(uint32_t records)
{
    uint64_t end = atomic_load(&model.r->slots[0].tail);
    while (records--)
        read_one(end);
    outbox_release(model.r, 0, model.at);
}

/* The ring is full: the reader takes one record, or releases what it has. */
static int reader_moves(outbox_t *o)
{
    (void)o;
    CHECK(model.starved++ < 1000000);
    read_some(1);
    return 0;
}

/* Writes one record the way a task does: growing in steps, sometimes given up
** and begun again. */
static void write_one(outbox_t *o, uint32_t size, uint32_t seed)
{
    sent_t *s = &model.sent[model.put % EXPECT_MAX];
    *s = (sent_t){ size, seed, (uint8_t)(RECORD_VALUE + seed % 4),
                   seed % 3 == 0 };
    if (s->first) {
        record_cell_t cell = { .item = seed & 0xffff };
        outbox_cell(o, &cell);
    }
    CHECK_EQ(outbox_begin(o), 0);
    if (seed % 5 == 0 && o->record.room >= 8) {
        memset(o->record.data, 0xee, 8);
        o->record.used = 8;
        CHECK_EQ(outbox_begin(o), 0);
    }
    buffer_t *b = &o->record;
    for (uint32_t done = 0; done < size;) {
        uint32_t step = 1 + check_below(size - done);
        if (b->room - b->used < step)
            CHECK_EQ(b->grow(b, step), 0);
        CHECK(b->room - b->used >= step);
        for (uint32_t i = 0; i < step; i++, done++)
            b->data[b->used++] = byte_of(seed, done);
    }
    outbox_end(o, s->kind);
    model.put++;
}

static void run_windowed(uint64_t ring, uint64_t window, uint32_t largest,
                         uint32_t rounds)
{
    memset(&model, 0, sizeof model);
    model.r = windowed_region(ring, window);
    outbox_t o;
    outbox_open(&o, model.r, 0, reader_moves);
    for (uint32_t i = 0; i < rounds; i++) {
        uint32_t size = check_below(8) ? check_below(largest / 16 + 1)
                                       : check_below(largest + 1);
        write_one(&o, size, check_random());
        model.ended = model.put;
        outbox_publish(&o, i);
        CHECK_EQ(TAIL_ITEM(atomic_load(&model.r->slots[0].tail)),
                 i & 0xffffff);
        if (check_below(3) == 0)
            read_some(check_below(12));
    }
    read_some(rounds);
    CHECK_EQ(model.got, rounds);
    region_free(model.r);
}

static void run_model(uint64_t ring, uint32_t largest, uint32_t rounds)
{
    run_windowed(ring, 0, largest, rounds);
}

static void test_small_records(void)
{
    run_model(1024, 200, 200000);
}

/* Records of more than half the ring meet the reader at every place of it. */
static void test_large_records(void)
{
    run_model(1024, 1024 - 2 * 8 - 8 - 32, 100000);
    run_model(4096, 4096 - 2 * 8 - 8 - 32, 30000);
}

static void test_beyond_window(void)
{
    run_model(1024 * KIB, 300 * KIB, 2000);
    run_model(512 * KIB, 500 * KIB, 1000);
}

/* A ring in two stretches, the second one longer. */
static void test_window(void)
{
    run_windowed(1024, 256, 200, 100000);
    run_windowed(1024, 64, 1024 - 64 - 2 * 8 - 8 - 32, 100000);
    run_windowed(4096, 2048, 2048 - 2 * 8 - 8 - 32, 30000);
    run_windowed(1024 * KIB, 64 * KIB, 300 * KIB, 2000);
    run_windowed(512 * KIB, 64 * KIB, 400 * KIB, 1000);
}

/* While the reader keeps up, what is large and what is small comes to lie
** where the same came to lie before. */
static void test_warm_places(void)
{
    region_t *r = windowed_region(8192 * KIB, 64 * KIB);
    static char bytes[1000 * KIB];
    outbox_t o;
    uint64_t at = 0, largest = 0;
    outbox_open(&o, r, 0, never_starved);
    for (int i = 0; i < 10000; i++) {
        size_t size = i % 200 < 4 ? sizeof bytes : check_below(2000);
        CHECK_EQ(outbox_put(&o, RECORD_VALUE, bytes, size), 0);
        outbox_publish(&o, 0);
        uint64_t place = o.o_start & o.o_mask;
        if (size < sizeof bytes)
            CHECK(place < 64 * KIB);
        if (place > largest)
            largest = place;
        record_t record;
        CHECK_EQ(outbox_read(r, 0, &at, atomic_load(&r->slots[0].tail),
                             &record),
                 1);
        CHECK_EQ(record.size, size);
        outbox_release(r, 0, at);
    }
    CHECK(largest <= 128 * KIB);
    region_free(r);
}

/* The same for those that grow while they are written, and of sizes that
** differ a little; and so often that the room before them is used up. */
static void test_warm_place_of_large(void)
{
    region_t *r = windowed_region(8192 * KIB, 64 * KIB);
    outbox_t o;
    uint64_t at = 0, end = 0;
    outbox_open(&o, r, 0, never_starved);
    for (int i = 0; i < 2500; i++) {
        size_t size = 400 * KIB + check_below(4) * 8;
        CHECK_EQ(outbox_begin(&o), 0);
        while (o.record.used < size) {
            size_t more = o.record.used < 1000 ? 500 : size - o.record.used;
            if (more > 100 * KIB)
                more = 100 * KIB;
            if (o.record.room < o.record.used + more)
                CHECK_EQ(o.record.grow(&o.record, more), 0);
            memset(o.record.data + o.record.used, i, more);
            o.record.used += more;
        }
        outbox_end(&o, RECORD_VALUE);
        outbox_publish(&o, 0);
        record_t record;
        CHECK_EQ(outbox_read(r, 0, &at, atomic_load(&r->slots[0].tail),
                             &record),
                 1);
        CHECK_EQ(record.size, size);
        CHECK_EQ(record.bytes[0], i & 255);
        CHECK_EQ(record.bytes[size - 1], i & 255);
        outbox_release(r, 0, at);
        if ((at & o.o_mask) > end)
            end = at & o.o_mask;
        if (i == 1000)
            CHECK(end < 128 * KIB + 401 * KIB);
    }
    CHECK(end < 128 * KIB + 2 * 401 * KIB);
    region_free(r);
}

static void test_too_large(void)
{
    region_t *r = ring_region(4096);
    outbox_t o;
    static char bytes[5000];
    outbox_open(&o, r, 0, never_starved);
    CHECK_EQ(outbox_put(&o, RECORD_VALUE, bytes, 4096), -EMSGSIZE);
    CHECK_EQ(outbox_put(&o, RECORD_VALUE, bytes, 4096 - 3 * 8), 0);
    outbox_publish(&o, 1);
    uint64_t at = 0;
    record_t record;
    CHECK_EQ(outbox_read(r, 0, &at, atomic_load(&r->slots[0].tail), &record),
             1);
    CHECK_EQ(record.size, 4096 - 3 * 8);
    region_free(r);
    r = windowed_region(4096, 256);
    outbox_open(&o, r, 0, never_starved);
    CHECK_EQ(outbox_put(&o, RECORD_VALUE, bytes, 4096 - 256 - 2 * 8),
             -EMSGSIZE);
    CHECK_EQ(outbox_put(&o, RECORD_VALUE, bytes, 4096 - 256 - 3 * 8), 0);
    region_free(r);
}

/* A full ring whose reader does not come: the error reaches the writer, and
** the ring is as it was. */
static void test_full(void)
{
    region_t *r = ring_region(1024);
    outbox_t o;
    uint32_t n = 0;
    outbox_open(&o, r, 0, never_starved);
    while (outbox_put(&o, RECORD_VALUE, &n, sizeof n) == 0)
        outbox_publish(&o, ++n);
    CHECK(n >= 40 && n <= 64);
    uint64_t at = 0, end = atomic_load(&r->slots[0].tail);
    record_t record;
    for (uint32_t i = 0; i < n; i++) {
        CHECK_EQ(outbox_read(r, 0, &at, end, &record), 1);
        CHECK_EQ(*(const uint32_t *)record.bytes, i);
    }
    CHECK_EQ(outbox_read(r, 0, &at, end, &record), 0);
    outbox_release(r, 0, at);
    CHECK_EQ(outbox_put(&o, RECORD_VALUE, &n, sizeof n), 0);
    region_free(r);
}

/* Positions are of 40 bits: the step from the last to 0 is like any other. */
static void test_positions_wrap(void)
{
    memset(&model, 0, sizeof model);
    region_t *r = model.r = ring_region(1024);
    model.at = TAIL_MASK + 1 - 4096;
    atomic_store(&r->slots[0].tail, TAIL_WORD(0, model.at));
    atomic_store(&r->slots[0].head, model.at);
    outbox_t o;
    outbox_open(&o, r, 0, reader_moves);
    for (uint32_t i = 0; i < 500; i++) {
        write_one(&o, check_below(300), check_random());
        model.ended = model.put;
        outbox_publish(&o, i);
    }
    read_some(500);
    CHECK_EQ(model.got, 500);
    CHECK(model.at < 1000000);
    region_free(r);
}

/* --- the writer dies ---------------------------------------------------- */

typedef struct death {
    region_t *r;
    int publish;
} death_t;

/* Two results; then dies half-way through the third. */
static void write_and_die(void *argument)
{
    death_t *d = argument;
    outbox_t o;
    outbox_open(&o, d->r, 0, never_starved);
    CHECK_EQ(outbox_put(&o, RECORD_VALUE, "one", 4), 0);
    outbox_publish(&o, 1);
    CHECK_EQ(outbox_put(&o, RECORD_VALUE, "two", 4), 0);
    if (d->publish)
        outbox_publish(&o, 2);
    CHECK_EQ(outbox_begin(&o), 0);
    memset(o.record.data, 0x55, 200);
    raise(SIGKILL);
}

static void test_writer_dies(void)
{
    for (int publish = 0; publish < 2; publish++) {
        death_t d = { ring_region(1024), publish };
        CHECK_EQ(check_wait(check_fork(write_and_die, &d)), 128 + SIGKILL);
        /* The successor goes on where the published end is. */
        outbox_t o;
        outbox_open(&o, d.r, 0, never_starved);
        CHECK_EQ(outbox_put(&o, RECORD_ERROR, "next", 5), 0);
        outbox_publish(&o, 3);
        uint64_t at = 0, end = atomic_load(&d.r->slots[0].tail);
        record_t record;
        const char *expected[] = { "one", publish ? "two" : "next", "next" };
        for (int i = 0; i < 2 + publish; i++) {
            CHECK_EQ(outbox_read(d.r, 0, &at, end, &record), 1);
            CHECK(strcmp((const char *)record.bytes, expected[i]) == 0);
        }
        CHECK_EQ(outbox_read(d.r, 0, &at, end, &record), 0);
        region_free(d.r);
    }
}

/* A reader that meets nonsense says so, and reads nothing outside the ring. */
static void meet_nonsense(uint64_t window)
{
    region_t *r = windowed_region(1024, window);
    const unsigned char *near = region_ring(r, 0, 0);
    const unsigned char *far = region_ring(r, 0, window) - window;
    for (uint32_t round = 0; round < 200000; round++) {
        for (uint32_t i = 0; i < 64; i += 8) {
            uint64_t word = (uint64_t)check_below(12) << 56 |
                            (check_below(2) ? check_below(64)
                                            : check_random());
            if (check_below(4) == 0)
                word |= (uint64_t)RECORD_FIRST << 56;
            memcpy(region_ring(r, 0, i), &word, 8);
            memcpy(region_ring(r, 0, (window + 1024 - 64 + i) % 1024), &word,
                   8);
        }
        uint64_t at = 0, end = check_below(2) ? check_below(64)
                                              : check_random();
        record_t record;
        for (int i = 0; i < 20; i++) {
            int rc = outbox_read(r, 0, &at, end, &record);
            if (rc <= 0)
                break;
            const unsigned char *last = record.bytes + record.size;
            CHECK_EQ((uintptr_t)record.bytes % 8, 0);
            CHECK((record.bytes >= near && last <= near + window) ||
                  (record.bytes >= far + window && last <= far + 1024));
        }
    }
    region_free(r);
}

static void test_nonsense(void)
{
    meet_nonsense(0);
    meet_nonsense(32);
    meet_nonsense(256);
}

static void test_trim(void)
{
    region_t *r = windowed_region(16 * 1024 * KIB, 64 * KIB);
    outbox_t o;
    outbox_open(&o, r, 0, never_starved);
    size_t size = 10 * 1024 * KIB;
    char *bytes = malloc(size);
    memset(bytes, 7, size);
    CHECK(!outbox_wants_trim(&o));
    CHECK_EQ(outbox_put(&o, RECORD_VALUE, bytes, size), 0);
    outbox_publish(&o, 1);
    CHECK(outbox_wants_trim(&o));
    outbox_trim(&o);    /* unread: nothing may be taken away */
    uint64_t at = 0;
    record_t record;
    CHECK_EQ(outbox_read(r, 0, &at, atomic_load(&r->slots[0].tail), &record),
             1);
    CHECK(memcmp(record.bytes, bytes, size) == 0);
    outbox_release(r, 0, at);
    /* Whoever has the slot next knows what its predecessor touched. */
    outbox_open(&o, r, 0, never_starved);
    CHECK(outbox_wants_trim(&o));
    outbox_trim(&o);
    CHECK(!outbox_wants_trim(&o));
    CHECK_EQ(*region_ring(r, 0, size - 100), 0);
    CHECK_EQ(*region_ring(r, 0, 128 * KIB + 100), 7);
    free(bytes);
    region_free(r);
}

/* --- two threads -------------------------------------------------------- */

enum { STREAM = 20000 };

static int wait_for_reader(outbox_t *o)
{
    slot_t *s = o->o_slot;
    uint64_t head = atomic_load(&s->head);
    atomic_store(&s->starved, 1);
    if (atomic_load(&s->head) == head)
        os_futex_wait(&s->starved, 1, os_now() + 10 * OS_SECOND);
    return 0;
}

static void *stream(void *argument)
{
    outbox_t o;
    uint32_t sequence = 12345;
    outbox_open(&o, argument, 0, wait_for_reader);
    for (uint32_t i = 0; i < STREAM; i++) {
        sequence = sequence * 1103515245u + 12345u;
        uint32_t size = sequence >> 16 & 0xff;
        if (i % 50 == 0)
            size = 700;
        CHECK_EQ(outbox_begin(&o), 0);
        while (o.record.room < size)
            CHECK_EQ(o.record.grow(&o.record, size), 0);
        memset(o.record.data, (int)i, size);
        o.record.used = size;
        outbox_end(&o, RECORD_VALUE);
        outbox_publish(&o, i + 1);
    }
    return NULL;
}

static void test_threads(void)
{
    region_t *r = ring_region(1024);
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, stream, r), 0);
    uint64_t at = 0;
    uint32_t i = 0;
    while (i < STREAM) {
        uint64_t end = atomic_load_explicit(&r->slots[0].tail,
                                            memory_order_acquire);
        record_t record;
        int rc;
        while ((rc = outbox_read(r, 0, &at, end, &record)) == 1) {
            for (uint64_t k = 0; k < record.size; k++)
                CHECK_EQ(record.bytes[k], (unsigned char)i);
            i++;
        }
        CHECK_EQ(rc, 0);
        outbox_release(r, 0, at);
    }
    pthread_join(thread, NULL);
    region_free(r);
}

int main(int argc, char **argv)
{
    static const check_t cases[] = {
        { "outbox: small records through a small ring", test_small_records,
          0 },
        { "outbox: records of more than half the ring", test_large_records,
          0 },
        { "outbox: records beyond the warm window", test_beyond_window, 0 },
        { "outbox: a window apart", test_window, 0 },
        { "outbox: warm places", test_warm_places, 0 },
        { "outbox: the warm place of what is large", test_warm_place_of_large,
          0 },
        { "outbox: a record larger than the ring", test_too_large, 0 },
        { "outbox: a full ring without reader", test_full, 0 },
        { "outbox: positions wrap", test_positions_wrap, 0 },
        { "outbox: a writer that dies said what it published",
          test_writer_dies, 0 },
        { "outbox: nonsense is refused", test_nonsense, 0 },
        { "outbox: pages are given back once all is read", test_trim, 0 },
        { "outbox: writer and reader in threads", test_threads, 0 },
        { NULL, NULL, 0 }
    };
    return check_main(argc, argv, cases);
}
