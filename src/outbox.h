/*
** outbox.h - the ring through which one writer (a slot's worker, or the
** keeper) sends records to the parent.
**
** A record counts once the slot's `tail` is stored; a writer that dies before
** leaves nothing that anyone sees, and its successor writes over it. Records
** never wrap, nor cross the window's end, where a ring is not contiguous: one
** that would is put behind a SKIP, at the start of the next stretch.
*/
#ifndef PROCPOOL_OUTBOX_H
#define PROCPOOL_OUTBOX_H

#include "buffer.h"
#include "region.h"

#pragma GCC visibility push(hidden)

/*
** A record: eight bytes (kind in the high byte, size of the payload below),
** the payload, padding to a multiple of eight.
*/
enum record_kind {
    RECORD_SKIP = 1,    /* go on behind its size, which counts it all */
    RECORD_VALUE,       /* results of the cell's next item */
    RECORD_ERROR,       /* the next item raised: encoded error */
    RECORD_REFUSED,     /* the next item's values cannot travel: same form */
    RECORD_STOPPED,     /* it raised what it was stopped with: same form */
    RECORD_EXIT,        /* it called exit(): the code, 4 bytes */
    RECORD_DROPPED,     /* not begun, cancelled: all items from here on */
    RECORD_VERDICT,     /* keeper: record_verdict_t */
    RECORD_EVENT,       /* keeper: record_event_t, then a complaint */
    RECORD_BROKEN       /* keeper: the pool is over; 8 bytes with an enum
                        ** broken, then the complaint or a text */
};
#define RECORD_HEADER 8
#define RECORD_KIND(word) ((word) >> 56)
#define RECORD_SIZE(word) ((word) & ((UINT64_C(1) << 56) - 1))

/* What a record with so large a payload takes up. */
static inline uint64_t record_whole(uint64_t size)
{
    return RECORD_HEADER + ((size + 7) & ~UINT64_C(7));
}

/* Why a pool is over, and what its text is. */
enum broken {
    BROKEN_TEXT,        /* of the pool */
    BROKEN_INITIALIZER, /* a text of an initializer */
    BROKEN_ENCODED      /* the encoded error of one */
};

/* The first record of a worker on a cell has this before its payload, and
** RECORD_FIRST in its kind; the records behind it are of the items behind. */
#define RECORD_FIRST 0x80
typedef struct record_cell {
    uint64_t cell;              /* index */
    uint64_t position;
    uint32_t item;
    uint32_t attempt;           /* of that item */
    uint32_t generation;
    int32_t pid;
} record_cell_t;

/* How a task ended whose worker is gone. */
enum verdict { VERDICT_LOST, VERDICT_TIMELIMIT, VERDICT_MEMORY,
               VERDICT_CANCELLED };

/* When a worker died. */
enum died {
    DEATH_UNDER_TASK,
    DEATH_BEFORE_TASK,  /* for the third time: before it began */
    DEATH_EXECUTED,     /* it executed another program and was killed */
    DEATH_MEMORY        /* by the kernel, possibly for want of memory */
};

typedef struct record_verdict {
    uint64_t cell, position;
    uint32_t item, attempt;
    uint32_t slot, verdict;
    int32_t pid, signal, exitcode;  /* signal 0: exitcode counts */
    uint32_t phase;             /* enum died */
} record_verdict_t;

#define EVENTS(X)                                                          \
    X(START, "worker_start") X(READY, "worker_ready")                      \
    X(EXIT, "worker_exit") X(FAILED, "worker_failed")                      \
    X(RETRY, "task_retry") X(LOST, "task_lost")                            \
    X(TIMELIMIT, "task_timelimit") X(MEMORY, "task_memory")
enum event {
#define X(id, text) EVENT_##id,
    EVENTS(X)
#undef X
    EVENTS_COUNT
};
extern const char *const event_names[EVENTS_COUNT];

typedef struct record_event {
    uint64_t time;              /* ns */
    uint32_t event, slot, generation, reason;
    int32_t pid, signal, exitcode;
    uint32_t attempt;
    uint32_t complaint;         /* EVENT_FAILED: its enum complaint_kind */
} record_event_t;

/* The writer's private half. */
typedef struct outbox {
    buffer_t record;            /* payload being written, in place */
    region_t *o_region;
    slot_t *o_slot;
    uint32_t o_index;           /* of the slot */
    unsigned char *o_ring;      /* its start, of which so many bytes are */
    uint64_t o_warm;            /* contiguous and worth going back to */
    uint64_t o_size, o_mask;
    uint64_t o_slack;           /* so far behind the window goes what is large */
    uint64_t o_position;        /* where the next record goes, 40 bits */
    uint64_t o_start;           /* where the open record's header is */
    record_cell_t o_cell;       /* goes before the next record's payload ... */
    uint32_t o_prefix;          /* ... if this is its size and not 0 */
    uint64_t o_seen;            /* head before a place was looked for */
    uint64_t o_high;            /* ring bytes touched since the last trim */
    int (*o_starved)(struct outbox *o);  /* waits for the reader; 0, errno */
} outbox_t;

/* Writer. `starved` is called when the ring is full; it returns once the
** reader has moved, or a negative errno to give up. It must sleep only while
** head is o_seen. */
void outbox_open(outbox_t *o, region_t *r, uint32_t slot,
                 int (*starved)(outbox_t *));
/* Starts a record; its payload grows in o->record until it is ended. Starting
** again abandons what was written. 0 or negative errno. */
int outbox_begin(outbox_t *o);
/* The next record is the first of this cell. */
void outbox_cell(outbox_t *o, const record_cell_t *cell);
/* Ends the record; it is not yet visible. */
void outbox_end(outbox_t *o, enum record_kind kind);
/* Makes all ended records visible, and `item` the next one of the cell. */
void outbox_publish(outbox_t *o, uint32_t item);
/* begin, copy, end. */
int outbox_put(outbox_t *o, enum record_kind kind, const void *bytes,
               size_t size);
/* Gives pages back that a large result touched; only when all is read. */
int outbox_wants_trim(const outbox_t *o);
void outbox_trim(outbox_t *o);

/* Reader (the parent): one record at a time. */
typedef struct record {
    enum record_kind kind;      /* without RECORD_FIRST */
    const record_cell_t *cell;  /* NULL unless it is the first */
    const unsigned char *bytes;
    uint64_t size;
} record_t;
/* 1 and the record at *at, which moves on; 0 when there is none;
** -EPROTO when the ring holds nonsense. `end` is a loaded tail. */
int outbox_read(const region_t *r, uint32_t slot, uint64_t *at, uint64_t end,
                record_t *out);
/* All before `at` may be overwritten. */
void outbox_release(region_t *r, uint32_t slot, uint64_t at);

#pragma GCC visibility pop
#endif
