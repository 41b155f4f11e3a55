/*
** pool_read.c - outcomes come out of the outboxes; the parent waits for them.
** Parent only.
**
** Invariants: a task's outcome is counted before it is handed out, so an
** error in whoever takes it never makes it come twice; nothing in an outbox
** is believed: a task may have scribbled over it. Each task has one outcome
** in one outbox, or none; those of a cell are made in order, so once all
** writers are gone and all is read, the tasks without one are the last ones.
*/
#include "pool.h"

#include <errno.h>
#include <string.h>

#include "fault.h"
#include "os.h"
#include "pool_private.h"

#define RELEASE_EVERY (UINT64_C(32) * 1024) /* bytes read */

/* --- one record --------------------------------------------------------- */

static int damaged(pool_t *p)
{
    pool_break(p, "the pool's shared memory is damaged");
    return 0;
}

/* The cell of a record if it can be believed, else NULL. */
static entry_t *believed(const pool_t *p, uint64_t cell, uint64_t position,
                         uint32_t item)
{
    entry_t *e = pool_entry(p, cell);
    if (!e || !e->live || e->position != position || item >= e->items ||
        !e->left)
        return NULL;
    return e;
}

/* `count` tasks of a cell have their outcome. */
static void count_off(pool_t *p, entry_t *e, outcome_t *out)
{
    if (out->count > e->left)
        out->count = e->left;
    e->left -= out->count;
    p->unfinished -= out->count;
    out->tag = e->tag;
    out->over = e->left == 0;
    if (out->over)
        pool_end_cell(p, out->cell);
}

static enum outcome_kind kind_of(enum record_kind kind)
{
    switch (kind) {
    case RECORD_VALUE: return OUTCOME_VALUE;
    case RECORD_ERROR: return OUTCOME_ERROR;
    case RECORD_REFUSED: return OUTCOME_REFUSED;
    case RECORD_STOPPED: return OUTCOME_STOPPED;
    case RECORD_EXIT: return OUTCOME_EXIT;
    default: return OUTCOME_CANCELLED;
    }
}

static int read_worker(pool_t *p, reader_t *rd, const record_t *rec,
                       outcome_t *out)
{
    if (rec->cell) {
        rd->cell = rec->cell->cell;
        rd->position = rec->cell->position;
        rd->item = rec->cell->item;
        rd->attempt = rec->cell->attempt;
        rd->pid = rec->cell->pid;
        rd->known = 1;
    }
    entry_t *e = rd->known && rec->kind >= RECORD_VALUE &&
                         rec->kind <= RECORD_DROPPED
                     ? believed(p, rd->cell, rd->position, rd->item)
                     : NULL;
    if (!e)
        return damaged(p);
    out->kind = kind_of(rec->kind);
    out->cell = rd->cell;
    out->item = rd->item;
    out->count = rec->kind == RECORD_DROPPED ? e->items - rd->item : 1;
    out->attempt = rd->attempt;
    out->slot = p->cursor;
    out->pid = rd->pid;
    out->bytes = rec->bytes;
    out->size = rec->size;
    if (rec->kind == RECORD_EXIT) {
        int32_t code = 0;
        if (rec->size == sizeof code)
            memcpy(&code, rec->bytes, sizeof code);
        out->exitcode = (uint32_t)code;
    }
    if (e->cancelled)
        out->kind = OUTCOME_CANCELLED;
    rd->item += out->count;
    rd->attempt = 1;
    count_off(p, e, out);
    return 1;
}

static int read_verdict(pool_t *p, const record_t *rec, outcome_t *out)
{
    record_verdict_t v;
    if (rec->size != sizeof v)
        return damaged(p);
    memcpy(&v, rec->bytes, sizeof v);
    entry_t *e = believed(p, v.cell, v.position, v.item);
    if (!e)
        return damaged(p);
    out->kind = v.verdict == VERDICT_TIMELIMIT   ? OUTCOME_TIMELIMIT
                : v.verdict == VERDICT_MEMORY    ? OUTCOME_MEMORY
                : v.verdict == VERDICT_CANCELLED ? OUTCOME_CANCELLED
                                                 : OUTCOME_LOST;
    if (e->cancelled)
        out->kind = OUTCOME_CANCELLED;
    out->cell = v.cell;
    out->item = v.item;
    out->count = 1;
    out->attempt = v.attempt;
    out->slot = v.slot;
    out->pid = v.pid;
    out->signal = (uint32_t)v.signal;
    out->exitcode = (uint32_t)v.exitcode;
    out->phase = v.phase;
    count_off(p, e, out);
    return 1;
}

static void read_broken(pool_t *p, const record_t *rec)
{
    uint64_t how;
    if (rec->size < sizeof how || p->end != END_NONE)
        return;
    memcpy(&how, rec->bytes, sizeof how);
    enum pool_end end = how == BROKEN_INITIALIZER ? END_INITIALIZER
                        : how == BROKEN_ENCODED   ? END_INITIALIZER_ENCODED
                                                  : END_BROKEN;
    pool_set_end(p, end, rec->bytes + sizeof how,
                 (size_t)(rec->size - sizeof how));
}

static int read_keeper(pool_t *p, const record_t *rec, outcome_t *out)
{
    switch (rec->kind) {
    case RECORD_VERDICT:
        return read_verdict(p, rec, out);
    case RECORD_EVENT:
        if (rec->size < sizeof out->event)
            return damaged(p);
        out->kind = OUTCOME_EVENT;
        memcpy(&out->event, rec->bytes, sizeof out->event);
        out->bytes = rec->bytes + sizeof out->event;
        out->size = rec->size - sizeof out->event;
        return 1;
    case RECORD_BROKEN:
        read_broken(p, rec);
        return 0;
    default:
        return damaged(p);
    }
}

/* --- all outboxes in turn ----------------------------------------------- */

/* The readers: 0 .. slots_used - 1 for the slots, then the keeper's. */
static uint32_t slot_of(const pool_t *p, uint32_t reader)
{
    return reader < p->slots_used ? reader : p->r->slots_max;
}

static uint64_t tail_of(const pool_t *p, uint32_t slot)
{
    return TAIL_BYTES(atomic_load_explicit(&p->r->slots[slot].tail,
                                           memory_order_acquire));
}

static void release(pool_t *p, uint32_t slot)
{
    reader_t *rd = &p->readers[slot];
    if (rd->released == rd->at)
        return;
    rd->released = rd->at;
    outbox_release(p->r, slot, rd->at);
}

/* The next outcome of the outbox under the cursor, or 0: it is read up. */
static int read_here(pool_t *p, outcome_t *out)
{
    uint32_t slot = slot_of(p, p->cursor);
    reader_t *rd = &p->readers[slot];
    if (((rd->at - rd->released) & TAIL_MASK) >= RELEASE_EVERY)
        release(p, slot);
    while (!p->all_read) {
        record_t rec;
        int rc = outbox_read(p->r, slot, &rd->at, p->cursor_end, &rec);
        if (rc == 0)
            break;
        if (rc < 0)
            return damaged(p);
        p->received += rec.size;
        if (slot < p->r->slots_max ? read_worker(p, rd, &rec, out)
                                   : read_keeper(p, &rec, out))
            return 1;
        if (p->end == END_BROKEN)
            return 0;
    }
    release(p, slot);
    return 0;
}

/* --- tasks that no worker will end -------------------------------------- */

static int read_withdrawn(pool_t *p, outcome_t *out)
{
    if (!p->withdrawn_count)
        return 0;
    uint64_t index = p->withdrawn[--p->withdrawn_count];
    entry_t *e = pool_entry(p, index);
    out->kind = OUTCOME_CANCELLED;
    out->cell = index;
    out->item = atomic_load(&region_cell(p->r, index)->first);
    out->count = e->items - out->item;
    count_off(p, e, out);
    return 1;
}

/* Whether nothing more can come from the processes. */
static int ended(pool_t *p)
{
    return p->gone == 2 || p->terminated || p->end == END_BROKEN;
}

/* The next cell that the pool's end has left unfinished. */
static int read_ended(pool_t *p, outcome_t *out)
{
    uint64_t cells = (uint64_t)p->board.b_segments_used * SEGMENT_CELLS;
    for (; p->unfinished && p->sweep < cells; p->sweep++) {
        entry_t *e = pool_entry(p, p->sweep);
        if (!e || !e->live)
            continue;
        out->kind = e->cancelled ? OUTCOME_CANCELLED : OUTCOME_ENDED;
        out->cell = p->sweep++;
        out->item = e->items - e->left;
        out->count = e->left;
        count_off(p, e, out);
        return 1;
    }
    /* An orderly end leaves nothing unfinished; should it, that is no reason
    ** to let somebody wait for ever. */
    p->all_read = 1;
    return 0;
}

void pool_read_why(pool_t *p)
{
    uint32_t keeper = p->r->slots_max;
    uint64_t at = p->readers[keeper].at;
    record_t rec;
    while (outbox_read(p->r, keeper, &at, tail_of(p, keeper), &rec) > 0)
        if (rec.kind == RECORD_BROKEN)
            read_broken(p, &rec);
}

static void begin_round(pool_t *p)
{
    p->cursor = 0;
    p->cursor_end = tail_of(p, slot_of(p, 0));
}

/*
** One round: every outbox up to where it was when its turn came. When the
** pool has ended, one more round (nobody writes any more), then the rest.
*/
int pool_read(pool_t *p, outcome_t *out)
{
    memset(out, 0, offsetof(outcome_t, event));
    if (!p->r)
        return 0;
    if (read_withdrawn(p, out))
        return 1;
    while (!p->all_read) {
        if (p->cursor == POOL_NEW_ROUND)
            begin_round(p);
        if (read_here(p, out))
            return 1;
        if (++p->cursor <= p->slots_used) {
            p->cursor_end = tail_of(p, slot_of(p, p->cursor));
            continue;
        }
        p->cursor = POOL_NEW_ROUND;
        if (!ended(p))
            return 0;
        if (p->last_round++ == 0)
            continue;
        return read_ended(p, out);
    }
    return 0;
}

int pool_read_more(pool_t *p, more_t *out)
{
    if (p->cursor > p->slots_used || slot_of(p, p->cursor) != p->cursor)
        return 0;
    reader_t *rd = &p->readers[p->cursor];
    uint64_t left = (p->cursor_end - rd->at) & TAIL_MASK, word;
    uint64_t offset = rd->at & (p->r->outbox_size - 1);
    if (left < sizeof word ||
        ((rd->at - rd->released) & TAIL_MASK) >= RELEASE_EVERY)
        return 0;
    const unsigned char *start = region_ring(p->r, p->cursor, offset);
    memcpy(&word, start, sizeof word);
    uint64_t size = RECORD_SIZE(word), whole = record_whole(size);
    entry_t *e = pool_entry(p, rd->cell);
    if (RECORD_KIND(word) != RECORD_VALUE || size > left || whole > left ||
        whole > region_ring_left(p->r, offset) ||
        e->position != rd->position || !e->live || e->left < 2 ||
        e->cancelled || rd->item >= e->items)
        return 0;
    out->bytes = start + sizeof word;
    out->size = size;
    out->item = rd->item++;
    rd->at = (rd->at + whole) & TAIL_MASK;
    e->left--;
    p->unfinished--;
    p->received += size;
    return 1;
}

/* Is there anything that pool_read would find? */
static int ready(pool_t *p)
{
    if (p->withdrawn_count || (ended(p) && !p->all_read))
        return 1;
    if (p->all_read)
        return 0;
    for (uint32_t i = 0; i < p->slots_used; i++) {
        uint64_t told = atomic_load(&p->r->slots[i].told) & TAIL_MASK;
        /* It may have been read already: then it is behind, not ahead. */
        uint64_t ahead = (told - p->readers[i].at) & TAIL_MASK;
        if (ahead && ahead <= TAIL_MASK / 2)
            return 1;
    }
    return tail_of(p, p->r->slots_max) != p->readers[p->r->slots_max].at;
}

void pool_read_done(pool_t *p)
{
    if (!p->r)
        return;
    if (p->all_read) {
        pool_release(p);
        return;
    }
    if (p->loop_epoll < 0)
        return;
    /* For an event loop: quiet now, and rung for whatever comes next. */
    os_quiet(p->r->bell_fd);
    atomic_store(&p->r->armed, BELL_ARMED);
    if (ready(p))
        os_ring(p->r->bell_fd);
}

/* --- waiting ------------------------------------------------------------ */

#define TURN (10 * OS_MS)   /* a CPU that is given away comes back before */

/*
** Is every CPU needed by others? It is if workers have more to do than what was
** queued last (which one of them is about to take), and are as many as the
** CPUs. Whoever spins then keeps one of them from its work.
*/
static int crowded(const pool_t *p)
{
    region_t *r = p->r;
    if (r->cpus < 2)
        return 1;
    uint64_t claim = atomic_load_explicit(&r->claim, memory_order_relaxed);
    return CLAIM_POSITION(claim) + 1 < p->board.b_head &&
           atomic_load_explicit(&r->wanted, memory_order_relaxed) >= r->cpus;
}

static int spin(pool_t *p, uint64_t since, uint64_t *spun)
{
    uint64_t took = 0;
    while (took < p->spin.ns) {
        for (int i = 0; i < 32; i++) {
            if (ready(p))
                return 1;
            os_relax();
        }
        took = os_now() - since;
    }
    *spun = took;
    return 0;
}

static int sleep_until_rung(pool_t *p, uint64_t deadline)
{
    uint64_t tags[2];
    os_hold_signals();
    int rc = pool_stirred(p) ? -ECANCELED : 0;
    atomic_store(&p->r->armed, BELL_ARMED);
    if (rc == 0 && !ready(p))
        rc = os_epoll_wait(p->epoll, tags, 2, deadline);
    os_let_signals();
    if (p->loop_epoll < 0)
        atomic_store(&p->r->armed, BELL_QUIET);
    for (int i = 0; i < rc; i++)
        if (tags[i] == 'k')
            pool_look(p);
    return rc;
}

static int wait_until(pool_t *p, uint64_t deadline)
{
    uint64_t since = os_now(), spun = 0;
    if (crowded(p)) {
        /* A worker may be waiting for our CPU: it needs no bell if it runs
        ** before we sleep, and will have done many tasks, not one. */
        if (!deadline || deadline > since + TURN)
            os_yield();
        if (ready(p))
            return 1;
    } else if (spin(p, since, &spun)) {
        spin_learn(&p->spin, 0, os_now() - since);
        return 1;
    }
    for (;;) {
        int rc = sleep_until_rung(p, deadline);
        if (rc == -EINTR || rc == -ECANCELED)
            return rc;
        if (rc < 0) {
            p->fds_lost = 1;
            pool_break(p, POOL_FDS_LOST);
            break;
        }
        if (ready(p) || p->gone)
            break;
        if (deadline && os_now() >= deadline)
            return 0;
    }
    spin_learn(&p->spin, spun, os_now() - since);
    return 1;
}

int pool_wait(pool_t *p, uint64_t deadline)
{
    int rc = 1;
    if (!p->r)
        return 1;
    if (!ready(p) && !p->gone) {
        pool_waits(p, 1);
        rc = wait_until(p, deadline);
    }
    pool_waits(p, 0);
    return rc;
}

int pool_fileno(pool_t *p)
{
    if (p->loop_epoll < 0) {
        if (!p->r)
            return -EBADF;
        int fd = os_epoll();
        if (fd < 0)
            return fd;
        os_epoll_add(fd, p->r->bell_fd, 'b');
        os_epoll_add(fd, p->sock, 'k');
        p->loop_epoll = fd;
        pool_read_done(p);
    }
    return p->loop_epoll;
}
