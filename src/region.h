/*
** region.h - the memory that parent, keeper and workers of one pool share.
**
** One anonymous mapping, made by the parent before the first fork, so that it
** lies at the same address everywhere and has no name that could be left
** behind. It is reserved large and sparse: pages cost when touched only.
**
**     region_t | slots | segment directory | small blocks of the heap
**              | windows: the start of each outbox | segments of cells
**              | complaints
**              | one outbox per slot, one of the keeper | heap of the parent
**
** What a small pool touches comes first and close together: for each stretch
** of 2 MiB that a process touches, and again for each of 1 GiB, the kernel
** makes a page of page tables, and undoes it when the process ends.
**
** References between processes are offsets from the region's start or
** indices, never pointers, so that a reader can check their bounds.
** There is no lock in here. Who may write a word, and when, stands above
** each struct; what is true when the writer dies stands at the line that
** writes.
*/
#ifndef PROCPOOL_REGION_H
#define PROCPOOL_REGION_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#pragma GCC visibility push(hidden)

#define SLOTS_MAX 1024          /* workers of one pool, at most */
#define LIVES_MAX 4             /* processes of one slot at a time */
#define CELL_INLINE 64          /* bytes of arguments held by the cell */
#define SEGMENT_CELLS 256
#define REGION_SEALED 65536     /* bytes; a multiple of any page's size */
#define DIRECTORY_SIZE 65536    /* segments: 16.7 million cells queued */

/*
** What the user asked for; written by the parent before the first fork, read
** by all. 0 means "never" or "unlimited". Times are nanoseconds.
*/
typedef struct settings {
    uint32_t processes, minprocesses;
    uint64_t maxtasks, maxage, maxmemory, idletimeout, inittimeout;
    uint64_t timeout, grace;
    double jitter;
    uint32_t retries;
    uint32_t seeded;            /* tasks are numbered for `seed` */
    uint32_t events;            /* the keeper reports events */
    uint32_t log;               /* 0, 1 info, 2 debug: to stderr */
    uint32_t has_finalizer;
    char name[64];
} settings_t;

/*
** A cell: 1..n tasks of one submission, to be run in turn by one worker.
**
** word      state, owner, sequence in one; see below. Parent: FREE -> QUEUED,
**           QUEUED -> FREE. Worker: QUEUED -> CLAIMED, by compare-and-swap.
**           Its owner, or the keeper for a dead owner: CLAIMED -> QUEUED.
**           The parent, once every task has its outcome: CLAIMED -> FREE.
** first     the first task without an outcome when the cell is QUEUED;
**           written by the parent before, by the owner (or the keeper for a
**           dead one) while CLAIMED.
** attempt   of task `first`, 1 at first; requeues: how often it came back
**           before its task began; both written by whoever puts it back.
** cancel    0, CANCEL_REST (tasks not begun are not to begin), CANCEL_ALL
**           (the running one is to be stopped too); by the parent, at any time.
** the rest  by the parent before QUEUED; read by the owner and the keeper.
*/
typedef struct cell {
    alignas(64) _Atomic uint64_t word;
    uint64_t position;          /* in order of submission, from 0 */
    uint64_t func;              /* offset of the function's message */
    uint64_t func_size;
    uint64_t args;              /* offset of the items' bytes */
    uint64_t args_size;
    uint32_t items;
    _Atomic uint32_t first;
    _Atomic uint32_t cancel;
    uint32_t retries;
    unsigned char small[CELL_INLINE];
    uint64_t func_id;
    uint64_t number;            /* of the first item among all tasks */
    uint64_t timeout, grace;    /* of each task, ns; timeout 0: none */
    _Atomic uint32_t attempt;
    _Atomic uint32_t requeues;
    uint32_t single;            /* only the first result of each is wanted */
    uint32_t prompt;            /* the parent is told of each task at once */
} cell_t;

/*
** A cell's word: state in bits 60..63, owner's slot in 48..59, the low 16 bits
** of the owner's generation in 32..47, the low 32 bits of the position below.
** So a claim is one compare-and-swap that also says who claimed, and a word
** read long ago never matches a cell that was used again since.
*/
enum cell_state {
    CELL_FREE = 0,      /* nobody's; only the parent may touch it */
    CELL_QUEUED = 1,    /* any worker may claim it */
    CELL_CLAIMED = 2    /* its owner runs its tasks, or died doing so */
};
#define CELL_WORD(state, slot, gen, position)                              \
    ((uint64_t)(state) << 60 | (uint64_t)((slot) & 0xfff) << 48 |          \
     (uint64_t)((gen) & 0xffff) << 32 | (uint32_t)(position))
#define CELL_STATE(word) ((enum cell_state)((word) >> 60))
#define CELL_OWNER(word) ((uint32_t)((word) >> 48 & 0xfff))
#define CELL_GEN(word) ((uint32_t)((word) >> 32 & 0xffff))

enum { CANCEL_NONE, CANCEL_REST, CANCEL_ALL };

/*
** What the one running task of a slot is doing: `slot.run`, state in bits
** 56..63, the item's index in the cell in 32..55, a running number below
** (of tasks in this slot, over all lives). The worker stores RUNNING when it
** enters user code and swaps RUNNING -> SAVING when its result is written; the
** keeper swaps RUNNING -> KILLING before it kills. Whoever swaps first decides
** the outcome, so a kill never meets the worker's next task.
*/
enum run_state {
    RUN_IDLE = 0,       /* no task has entered user code */
    RUN_RUNNING = 1,    /* user code runs */
    RUN_SAVING = 2,     /* it returned; the record is about to be published */
    RUN_KILLING = 3     /* the keeper took the task; SIGKILL follows */
};
#define RUN_WORD(state, item, serial)                                      \
    ((uint64_t)(state) << 56 | (uint64_t)((item) & 0xffffff) << 32 |       \
     (uint32_t)(serial))
#define RUN_STATE(word) ((enum run_state)((word) >> 56))
#define RUN_ITEM(word) ((uint32_t)((word) >> 32 & 0xffffff))
#define RUN_SERIAL(word) ((uint32_t)(word))
#define ITEMS_MAX 0xffffffu     /* of one cell: what RUN_WORD can hold */

/*
** An outbox's published end: bytes written so far in the low 40 bits (they
** wrap), the index of the cell's next item above. One store publishes a
** result AND moves on to the next item; there is no moment between.
*/
#define TAIL_WORD(item, bytes)                                             \
    ((uint64_t)((item) & 0xffffff) << 40 | ((bytes) & TAIL_MASK))
#define TAIL_MASK ((UINT64_C(1) << 40) - 1)
#define TAIL_BYTES(word) ((word) & TAIL_MASK)
#define TAIL_ITEM(word) ((uint32_t)((word) >> 40))
/* `region.claim`: see board.c for the rest of it. */
#define CLAIM_POSITION(word) ((word) & TAIL_MASK)

/* Why a worker leaves. The first ten are the keys of stats().recycled. */
#define REASONS(X)                                                         \
    X(TASKS, "tasks") X(AGE, "age") X(MEMORY, "memory")                    \
    X(PREDICATE, "predicate") X(IDLE, "idle") X(REQUEST, "request")        \
    X(RESIZE, "resize") X(TIMELIMIT, "timelimit") X(CANCEL, "cancel")      \
    X(CRASH, "crash") X(CLOSE, "close")
enum reason {
#define X(id, text) REASON_##id,
    REASONS(X)
#undef X
    REASONS_COUNT,
    REASON_NONE = REASONS_COUNT
};
extern const char *const reason_names[REASONS_COUNT];

/* The phases of one life of a worker: `slot.life[generation % LIVES_MAX]`. */
enum phase {
    PHASE_NONE,         /* no such process */
    PHASE_STARTING,     /* forked; the initializer may be running */
    PHASE_FAILED,       /* it raised or called exit: see its complaint; or
                        ** took too long */
    PHASE_READY,        /* waits for its turn, or has it */
    PHASE_LEAVING       /* gave its turn away; runs the finalizer, exits */
};
#define LIFE_WORD(generation, reason, phase)                               \
    ((uint64_t)(generation) << 32 | (uint64_t)(reason) << 8 | (phase))
#define LIFE_GENERATION(word) ((uint32_t)((word) >> 32))
#define LIFE_REASON(word) ((enum reason)((word) >> 8 & 0xff))
#define LIFE_PHASE(word) ((enum phase)((word) & 0xff))

/* An order to one life of a slot; 0: none. */
#define ORDER_WORD(generation, reason)                                     \
    (((uint64_t)(generation) + 1) << 8 | (uint64_t)(reason))

/*
** A slot: the place of one worker, kept over all its lives. "The worker" is
** the process whose generation equals `turn`.
**
** field       written by                      read by
** tail        the worker, release             parent (acquire), keeper
** intent      the worker before each claim    keeper: the one cell it can own
** begun       the worker after a claim        keeper: `tail`'s item counts this
** run         the worker; keeper (KILLING)    both, stats
** started, deadline, grace                    keeper, stats
** head        the parent                      the worker: room in the outbox
** starved     the worker: 1 = waits for room  parent (sets 0 and wakes)
** told        the worker, after `tail`, when  parent: worth a look. It polls
**             the parent is to look; keeper   this word and not `tail`, which
**             for a dead one                  is stored to for every task
** turn        leaving worker, keeper (futex)  the next life
** bell        worker 1 = sleeps; wakers 0     (futex)
** order       keeper: ORDER_WORD; the worker  the worker, between tasks
**             takes back an order to leave
**             for being idle when it is not
** stop        keeper: serial<<8 | reason      the worker's stop signal
** life[]      each life its own; keeper at fork
** pid, generation, born                       keeper, stats
**             the worker when its turn comes; generation last, so whoever
**             reads it sees the others of that life
** tasks, idle_since, attempt  the worker      keeper, stats; its task
** took        each life when it is ready      keeper: how far to start ahead
** room        the worker                      the slot's next life
*/
typedef struct slot {
    alignas(64) _Atomic uint64_t tail;
    _Atomic uint64_t intent;    /* cell index + 1 */
    _Atomic uint64_t begun;     /* position + 1 */
    _Atomic uint64_t run;
    _Atomic uint64_t started;   /* ns */
    _Atomic uint64_t deadline;  /* ns; 0: none */
    _Atomic uint64_t grace;     /* ns */
    _Atomic uint64_t tasks;     /* ended in this life */
    alignas(64) _Atomic uint64_t head;
    _Atomic uint32_t starved;
    _Atomic uint64_t told;
    alignas(64) _Atomic uint32_t bell;
    _Atomic uint32_t turn;
    _Atomic uint32_t attempt;   /* of the running task */
    _Atomic uint64_t order;
    _Atomic uint64_t stop;
    _Atomic uint64_t idle_since;    /* ns; 0: busy */
    _Atomic uint64_t room;      /* bytes of the outbox to trim, if many */
    alignas(64) _Atomic uint64_t life[LIVES_MAX];
    _Atomic int32_t pid;        /* of the life whose turn it is; 0: none */
    _Atomic uint32_t generation;
    _Atomic uint64_t born;      /* ns, when its turn came */
    _Atomic uint64_t took;      /* ns that the slot's last start took */
} slot_t;

/* Room for what a failing initializer has to say, per life. */
enum complaint_kind {
    COMPLAINT_NONE,
    COMPLAINT_ENCODED,  /* an encoded error; by the life itself */
    COMPLAINT_EXIT,     /* it called exit: the code, 4 bytes; the same */
    COMPLAINT_TEXT      /* the keeper's words */
};
#define COMPLAINT_SIZE 16384
typedef struct complaint {
    uint32_t kind, size;
    unsigned char bytes[COMPLAINT_SIZE - 8];
} complaint_t;

enum keeper_state {
    KEEPER_STARTING, KEEPER_RUNNING, KEEPER_DONE, KEEPER_BROKEN
};

/* How the parent wants to be woken: see wake.c. */
enum bell {
    BELL_QUIET = 0,     /* not at all, it looks by itself */
    BELL_ARMED = 1,     /* by the next who has something for it */
    BELL_RINGING = 2,   /* somebody is about to */
    BELL_RUNG = 3       /* somebody has */
};

/*
** field       written by                          read by
** head        the parent, after the cell          workers
** claim       workers, keeper: version<<40 |      workers
**             first position that may be queued
** closing, terminating, wanted, replace[],        keeper, workers
** cancels     the parent, then it kicks
** idle[]      a bit per sleeping worker: set by   parent, workers, keeper:
**             it, cleared by whoever wakes it     whom to wake
** spinner     the one worker that spins: its      whoever queues a cell
**             slot + 1; keeper clears it after
**             a death
** armed       enum bell; parent: ARMED or QUIET;  workers, keeper
**             who rings it: RINGING, then RUNG
** waiting     parent: 1 from queueing what it is  workers: a hint, no more
**             about to wait for, or from the
**             wait on, until the wait is over
** wake_at     keeper: when it wakes by itself     workers with a deadline
** asleep      keeper: idle slots without process  parent (kicks when queueing)
** state, counters          keeper                 parent
*/
typedef struct region {
    /* What never changes once the keeper is forked lies in pages of its own,
    ** which region_seal protects: a task that scribbles over them dies of it,
    ** and the parent's offsets stay true. */
    union {
        struct {
            uint64_t size;
            /* Offsets. */
            uint64_t directory, small, windows, segments, complaints;
            uint64_t outboxes, heap;
            uint64_t small_size, segment_count, window, outbox_size;
            uint64_t heap_size;
            uint32_t slots_max;
            int32_t parent_pid;
            int32_t bell_fd;    /* eventfd that wakes the parent */
            int32_t kick_fd;    /* eventfd that wakes the keeper */
            int32_t crew_fd;    /* keeper's and workers': see pool.crew */
            uint32_t cpus;
            settings_t set;
        };
        unsigned char sealed[REGION_SEALED];
    };

    alignas(64) _Atomic uint64_t head;
    alignas(64) _Atomic uint64_t claim;
    alignas(64) _Atomic uint32_t closing;
    _Atomic uint32_t terminating;
    _Atomic uint32_t wanted;
    _Atomic uint32_t cancels;
    _Atomic uint32_t recycle_all;
    _Atomic uint64_t replace[SLOTS_MAX / 64];
    alignas(64) _Atomic uint64_t idle[SLOTS_MAX / 64];
    alignas(64) _Atomic uint32_t spinner;
    alignas(64) _Atomic uint32_t armed;
    _Atomic uint32_t waiting;
    alignas(64) _Atomic uint64_t wake_at;
    _Atomic uint32_t hear;      /* keeper: lives are to kick it when ready */
    _Atomic uint32_t asleep;
    _Atomic uint32_t state;
    _Atomic uint64_t recycled[REASONS_COUNT];
    _Atomic uint64_t retried;
    slot_t slots[];             /* slots_max of them */
} region_t;

#define SPINNER(slot) ((slot) + 1)

/* Parent, before any fork. Fills `error` (errno kept) and returns NULL. */
region_t *region_new(const settings_t *set, char *error, size_t room);
/* Parent, before the fork: makes the constants read-only. */
void region_seal(region_t *r);
void region_free(region_t *r);

static inline void *region_at(const region_t *r, uint64_t offset)
{
    return (char *)(uintptr_t)r + offset;
}

/* A byte of a slot's outbox. The ring's first `window` bytes lie beside those
** of the other slots. */
static inline unsigned char *region_ring(const region_t *r, uint32_t slot,
                                         uint64_t offset)
{
    return region_at(r, offset + (offset < r->window
                                      ? r->windows + slot * r->window
                                      : r->outboxes + slot * r->outbox_size));
}

/* How many bytes of a ring are contiguous from there on. */
static inline uint64_t region_ring_left(const region_t *r, uint64_t offset)
{
    return (offset < r->window ? r->window : r->outbox_size) - offset;
}

static inline _Atomic uint64_t *region_life(region_t *r, uint32_t slot,
                                            uint32_t generation)
{
    return &r->slots[slot].life[generation % LIVES_MAX];
}

static inline complaint_t *region_complaint(const region_t *r, uint32_t slot,
                                            uint32_t generation)
{
    return region_at(r, r->complaints +
                            (slot * LIVES_MAX + generation % LIVES_MAX) *
                                (uint64_t)COMPLAINT_SIZE);
}

static inline cell_t *region_cell(const region_t *r, uint64_t index)
{
    return (cell_t *)region_at(r, r->segments) + index;
}

#pragma GCC visibility pop
#endif
