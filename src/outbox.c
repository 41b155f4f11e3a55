/*
** outbox.c - see outbox.h.
**
** Positions count bytes and never go back (40 bits, they wrap); a position's
** place in the ring is its remainder by the ring's size, a power of two.
**
** Where a record is put decides how warm its pages are. Fresh shared pages
** cost 2.4 GiB/s, warm ones five times less, so the writer goes back to the
** ring's start as soon as it is past the window, or WARM bytes, and the reader
** has taken everything. Only while something is unread, or for what is large,
** does it walk on into the sparse rest of the ring.
**
** What is large lies behind the window. The next of its size would just not fit
** there, since the SKIP that leads back lies behind the first; it would have to
** go to fresh pages. So each is put STEP bytes below the one before it.
**
** Run by workers, and by the keeper for its own outbox; outbox_read and
** outbox_release by the parent. Blocks only in o_starved.
*/
#include "outbox.h"

#include <errno.h>
#include <string.h>

#include "fault.h"
#include "os.h"

#define WARM (UINT64_C(64) * 1024)
#define SLACK (UINT64_C(64) * 1024)
#define STEP 64
#define QUICK 256
#define KEEP (UINT64_C(4) * 1024 * 1024)    /* bytes never trimmed */

#define X(id, text) text,
const char *const event_names[EVENTS_COUNT] = { EVENTS(X) };
#undef X

static uint64_t header_word(enum record_kind kind, uint64_t size)
{
    return (uint64_t)kind << 56 | size;
}

static uint64_t offset_of(const outbox_t *o, uint64_t position)
{
    return position & o->o_mask;
}

static unsigned char *byte_at(const outbox_t *o, uint64_t position)
{
    return region_ring(o->o_region, o->o_index, offset_of(o, position));
}

/* How many bytes of the ring are contiguous from there on, free or not. */
static uint64_t stretch(const outbox_t *o, uint64_t position)
{
    return region_ring_left(o->o_region, offset_of(o, position));
}

static uint64_t unread(const outbox_t *o)
{
    uint64_t head = atomic_load_explicit(&o->o_slot->head,
                                         memory_order_acquire);
    return (o->o_position - head) & TAIL_MASK;
}

/* Bytes from `position` on that are free and contiguous. */
static uint64_t contiguous(const outbox_t *o, uint64_t position)
{
    uint64_t head = atomic_load_explicit(&o->o_slot->head,
                                         memory_order_acquire);
    uint64_t used = (position - head) & TAIL_MASK;
    uint64_t to_end = stretch(o, position);
    /* RECORD_HEADER stays free, so that a SKIP always fits. */
    uint64_t free = used + RECORD_HEADER < o->o_size ? o->o_size - RECORD_HEADER - used : 0;
    return free < to_end ? free : to_end;
}

static uint64_t next_lap(const outbox_t *o, uint64_t position)
{
    return (position - offset_of(o, position) + o->o_size) & TAIL_MASK;
}

static void point_record(outbox_t *o, uint64_t start, uint64_t room)
{
    o->o_start = start;
    o->record.data = byte_at(o, start) + RECORD_HEADER + o->o_prefix;
    o->record.room = (size_t)(room - RECORD_HEADER - o->o_prefix);
}

static void touch(outbox_t *o, uint64_t end)
{
    if (end <= o->o_high)
        return;
    o->o_high = end;
    if (end > KEEP)  /* for whoever has the slot after this life */
        atomic_store_explicit(&o->o_slot->room, end, memory_order_relaxed);
}

/* From where the writer is to `position`. */
static void write_skip(outbox_t *o, uint64_t position)
{
    uint64_t skip = header_word(RECORD_SKIP,
                                (position - o->o_position) & TAIL_MASK);
    memcpy(byte_at(o, o->o_position), &skip, RECORD_HEADER);
}

/* How far behind the window the first large record is put. */
static uint64_t most_slack(const region_t *r)
{
    uint64_t share = r->outbox_size / 16 / STEP * STEP;
    return !r->window ? 0 : share < SLACK ? share : SLACK;
}

/* Where a record of `whole` bytes goes for which there is no room from
** `position` to the end of the window, or of the ring. */
static uint64_t beyond(const outbox_t *o, uint64_t position, uint64_t whole)
{
    uint64_t end = (position + stretch(o, position)) & TAIL_MASK;
    uint64_t lower = (end + o->o_slack) & TAIL_MASK;
    int behind_window = offset_of(o, end) == o->o_region->window;
    return behind_window && contiguous(o, lower) >= whole ? lower : end;
}

/* The record that has been written is to end behind the next one. */
static void step_down(outbox_t *o)
{
    if (o->o_slack && offset_of(o, o->o_start) >= o->o_region->window &&
        !(o->o_slack -= STEP))
        o->o_slack = most_slack(o->o_region);
}

/*
** Where a record of `whole` bytes can be put now; *start and *room, or 0 when
** the reader must move first.
*/
static int find_place(outbox_t *o, uint64_t whole, uint64_t *start,
                      uint64_t *room)
{
    uint64_t here = o->o_position, there = here;
    if ((offset_of(o, here) >= o->o_warm || stretch(o, here) < whole) &&
        unread(o) == 0) {
        uint64_t warm = next_lap(o, here);
        if (stretch(o, warm) < whole)
            warm = beyond(o, warm, whole);
        if (contiguous(o, warm) >= whole)
            there = warm;
    }
    while (stretch(o, there) < whole)
        there = beyond(o, there, whole);
    if (contiguous(o, there) < whole) {
        /* It fits there only when the reader has passed what is before: send
        ** it there. Not while it is still in the lap before, or more than a
        ** whole ring would be unread. */
        if (there == here ||
            ((there - here) & TAIL_MASK) + unread(o) > o->o_size)
            return 0;
        write_skip(o, there);
        o->o_position = there;
        outbox_publish(o, TAIL_ITEM(atomic_load(&o->o_slot->tail)));
        return 0;
    }
    *start = there;
    *room = contiguous(o, there);
    return 1;
}

/*
** Finds a place for a record of `need` payload bytes, moving `record.used`
** bytes along when it cannot stay where it is.
*/
static int place(outbox_t *o, uint64_t need)
{
    uint64_t whole = RECORD_HEADER + o->o_prefix + ((need + 7) & ~UINT64_C(7));
    uint64_t start, room;
    if (whole + 2 * RECORD_HEADER > o->o_size - o->o_region->window)
        return -EMSGSIZE;
    for (;;) {
        /* Head is read before the search, not after it:
        **     writer   finds the ring full
        **     reader   moves head, sees that nobody is starved
        **     writer   reads the new head, is starved, sleeps while head
        **              is that
        */
        o->o_seen = atomic_load(&o->o_slot->head);
        if (find_place(o, whole, &start, &room))
            break;
        int rc = o->o_starved ? o->o_starved(o) : -ENOBUFS;
        if (rc < 0)
            return rc;
    }
    unsigned char *old = o->record.data;
    point_record(o, start, room);
    if (o->record.used && old != o->record.data)
        memmove(o->record.data, old, o->record.used);
    return 0;
}

static int grow(buffer_t *b, size_t need)
{
    outbox_t *o = (outbox_t *)b;
    FAULT_POINT("outbox.grow");
    return place(o, (uint64_t)b->used + need);
}

void outbox_open(outbox_t *o, region_t *r, uint32_t slot,
                 int (*starved)(outbox_t *))
{
    memset(o, 0, sizeof *o);
    o->o_region = r;
    o->o_slot = &r->slots[slot];
    o->o_index = slot;
    o->o_ring = region_ring(r, slot, 0);
    o->o_size = r->outbox_size;
    o->o_warm = region_ring_left(r, 0) < WARM ? region_ring_left(r, 0) : WARM;
    o->o_mask = r->outbox_size - 1;
    o->o_slack = most_slack(r);
    o->o_position = TAIL_BYTES(atomic_load_explicit(&o->o_slot->tail,
                                                    memory_order_acquire));
    o->o_high = atomic_load_explicit(&o->o_slot->room, memory_order_relaxed);
    o->o_starved = starved;
    o->record.grow = grow;
    o->record.most = r->outbox_size - r->window - 3 * RECORD_HEADER -
                     sizeof(record_cell_t);
}

void outbox_cell(outbox_t *o, const record_cell_t *cell)
{
    o->o_cell = *cell;
    o->o_prefix = sizeof *cell;
}

int outbox_begin(outbox_t *o)
{
    o->record.used = 0;
    /* The common case: right behind the last record, QUICK bytes free. */
    uint64_t offset = offset_of(o, o->o_position);
    if (offset + QUICK <= o->o_warm &&
        unread(o) + QUICK + RECORD_HEADER <= o->o_size) {
        o->o_start = o->o_position;
        o->record.data = o->o_ring + offset + RECORD_HEADER + o->o_prefix;
        o->record.room = QUICK - RECORD_HEADER - o->o_prefix;
        return 0;
    }
    return place(o, 64);
}

void outbox_end(outbox_t *o, enum record_kind kind)
{
    if (o->o_start != o->o_position)
        write_skip(o, o->o_start);
    uint64_t size = o->o_prefix + o->record.used;
    unsigned char *at = o->record.data - o->o_prefix - RECORD_HEADER;
    uint64_t word = header_word(kind, size);
    if (o->o_prefix) {
        word = header_word(kind | RECORD_FIRST, size);
        memcpy(at + RECORD_HEADER, &o->o_cell, sizeof o->o_cell);
        o->o_prefix = 0;
    }
    memcpy(at, &word, RECORD_HEADER);
    FAULT_POINT("outbox.mid");
    uint64_t whole = record_whole(size);
    touch(o, offset_of(o, o->o_start) + whole);
    step_down(o);
    o->o_position = (o->o_start + whole) & TAIL_MASK;
}

void outbox_publish(outbox_t *o, uint32_t item)
{
    FAULT_POINT("publish.pre");
    /* The writer may die before this store (nothing was said) or after it
    ** (all was said); there is no third case. */
    atomic_store_explicit(&o->o_slot->tail, TAIL_WORD(item, o->o_position),
                          memory_order_release);
    FAULT_POINT("publish.post");
}

int outbox_put(outbox_t *o, enum record_kind kind, const void *bytes,
               size_t size)
{
    int rc = outbox_begin(o);
    if (rc == 0 && size > o->record.room)
        rc = place(o, size);
    if (rc < 0)
        return rc;
    if (size)
        memcpy(o->record.data, bytes, size);
    o->record.used = size;
    outbox_end(o, kind);
    return 0;
}

int outbox_wants_trim(const outbox_t *o)
{
    return o->o_high > KEEP;
}

/* Only the writer may do this, and only when nothing is unread: otherwise it
** would punch a hole under the reader. */
void outbox_trim(outbox_t *o)
{
    if (!outbox_wants_trim(o) || unread(o) != 0)
        return;
    os_give_back(region_ring(o->o_region, o->o_index, KEEP),
                 (size_t)(o->o_high - KEEP));
    o->o_high = 0;
    atomic_store_explicit(&o->o_slot->room, 0, memory_order_relaxed);
}

int outbox_read(const region_t *r, uint32_t slot, uint64_t *at, uint64_t end,
                record_t *out)
{
    uint64_t size = r->outbox_size;
    for (;;) {
        uint64_t left = (TAIL_BYTES(end) - *at) & TAIL_MASK;
        if (left == 0)
            return 0;
        uint64_t offset = *at & (size - 1), word;
        if (left < RECORD_HEADER || left > size)
            return -EPROTO;
        const unsigned char *start = region_ring(r, slot, offset);
        memcpy(&word, start, RECORD_HEADER);
        uint64_t bytes = RECORD_SIZE(word), whole = record_whole(bytes);
        if (RECORD_KIND(word) == RECORD_SKIP) {
            if (bytes < RECORD_HEADER || bytes > left || bytes % 8)
                return -EPROTO;
            *at = (*at + bytes) & TAIL_MASK;
            continue;
        }
        if (bytes > size || whole > left ||
            whole > region_ring_left(r, offset))
            return -EPROTO;
        out->kind = (enum record_kind)(RECORD_KIND(word) & ~RECORD_FIRST);
        out->cell = NULL;
        out->bytes = start + RECORD_HEADER;
        out->size = bytes;
        if (RECORD_KIND(word) & RECORD_FIRST) {
            if (bytes < sizeof *out->cell)
                return -EPROTO;
            out->cell = (const void *)out->bytes;
            out->bytes += sizeof *out->cell;
            out->size -= sizeof *out->cell;
        }
        *at = (*at + whole) & TAIL_MASK;
        return 1;
    }
}

void outbox_release(region_t *r, uint32_t slot, uint64_t at)
{
    slot_t *s = &r->slots[slot];
    atomic_store_explicit(&s->head, at & TAIL_MASK, memory_order_seq_cst);
    if (atomic_load_explicit(&s->starved, memory_order_seq_cst)) {
        atomic_store_explicit(&s->starved, 0, memory_order_relaxed);
        os_futex_wake(&s->starved, 1);
    }
}
