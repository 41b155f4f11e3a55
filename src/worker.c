/*
** worker.c - a worker's life: see worker.h. Runs in a worker process only (or
** in a test's thread); the process around it is worker_process.c.
**
** Invariants: the worker owns at most one cell, the one `intent` names; it
** writes to its slot and outbox only while `turn` is its generation (but for
** its own life word and `took`); it holds nothing that another
** process waits for, so it may die at any instruction.
*/
#define _GNU_SOURCE
#include "worker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "board.h"
#include "fault.h"
#include "os.h"
#include "wake.h"

#define NOTIFY_EVERY (200 * OS_US)  /* inside a chunk */
#define TRIM_AFTER (2 * OS_SECOND)  /* idle, before pages are given back */
#define ALONE_ENOUGH 8              /* cells: see choose_policy */

static _Atomic uint64_t *life_of(const worker_t *w)
{
    return region_life(w->w_region, w->w_index, w->w_generation);
}

static int something_queued(region_t *r)
{
    return CLAIM_POSITION(atomic_load(&r->claim)) < atomic_load(&r->head);
}

/* --- leaving ------------------------------------------------------------ */

static uint64_t draw(uint64_t limit, double jitter)
{
    if (!limit || jitter <= 0)
        return limit;
    uint32_t random;
    os_random(&random, sizeof random);
    double part = (double)random / 4294967296.0;
    uint64_t drawn = limit - (uint64_t)((double)limit * jitter * part);
    return drawn ? drawn : 1;
}

/*
** Private memory is known exactly only by walking the page tables, which is
** slow behind a large inherited heap. Growth since the last exact reading is
** bounded by what is cheap to read: anonymous pages gained, plus one page per
** fault (a copy of an inherited page is a fault that gains none). So the walk
** is made only when the bound reaches the limit.
*/
static uint64_t memory_bound(worker_t *w, uint64_t *anon, uint64_t *faults)
{
    *anon = os_resident_memory(0);
    *faults = os_page_faults();
    uint64_t grown = *anon > w->w_memory_anon ? *anon - w->w_memory_anon : 0;
    return w->w_memory_known + grown +
           (*faults - w->w_memory_faults) * os_page_size();
}

static int memory_exceeded(worker_t *w)
{
    uint64_t anon, faults;
    if (memory_bound(w, &anon, &faults) <= w->w_memory_limit)
        return 0;
    w->w_memory_known = os_private_memory(0);
    w->w_memory_anon = anon;
    w->w_memory_faults = faults;
    return w->w_memory_known > w->w_memory_limit;
}

/* What the keeper ordered this very life to do. */
static enum reason ordered(const worker_t *w)
{
    uint64_t order = atomic_load_explicit(&w->w_slot->order,
                                          memory_order_acquire);
    if (order >> 8 != ORDER_WORD(w->w_generation, 0) >> 8)
        return REASON_NONE;
    return (enum reason)(order & 0xff);
}

/* The same, but an order to leave for being idle is void when work has come
** since: taken back, so that the keeper may give it again. */
static enum reason obeys(worker_t *w)
{
    region_t *r = w->w_region;
    enum reason reason = ordered(w);
    if (reason != REASON_IDLE ||
        !(w->w_cell || board_queued(r)))
        return reason;
    uint64_t order = ORDER_WORD(w->w_generation, REASON_IDLE);
    atomic_compare_exchange_strong(&w->w_slot->order, &order, 0);
    return REASON_NONE;
}

/* Whether to leave before the next task. */
static enum reason wants_to_leave(worker_t *w)
{
    if (w->w_limit && w->w_tasks >= w->w_limit)
        return REASON_TASKS;
    if (w->w_term)
        return REASON_REQUEST;
    if (w->w_old && os_now() >= w->w_old)
        return REASON_AGE;
    return obeys(w);
}

/* The same right after a task: limits that only a task can exceed. */
static enum reason leaves_after_task(worker_t *w)
{
    if (w->w_recycle)
        return REASON_REQUEST;
    if (w->w_memory_limit && memory_exceeded(w))
        return REASON_MEMORY;
    if (w->w_work->after && w->w_work->after(w->w_work->context, w))
        return REASON_PREDICATE;
    return wants_to_leave(w);
}

/*
** Gives the turn to the next life. From here on this process touches neither
** slot nor outbox. Dying in here is harmless: the keeper moves `turn` on for a
** dead life that still has it, and wakes the next in any case.
**
** Who leaves may have been woken for a cell that it does not claim, or puts
** part of one back: others that sleep must hear of it.
*/
static void give_turn(worker_t *w, enum reason reason)
{
    slot_t *s = w->w_slot;
    if (board_queued(w->w_region))
        wake_worker(w->w_region);
    uint32_t generation = w->w_generation;
    atomic_store(&s->pid, 0);
    atomic_store_explicit(life_of(w),
                          LIFE_WORD(generation, reason, PHASE_LEAVING),
                          memory_order_release);
    FAULT_POINT("recycle.mid");
    pass_turn(s, generation + 1);
}

/* --- tasks -------------------------------------------------------------- */

void worker_enter(worker_t *w)
{
    slot_t *s = w->w_slot;
    cell_t *cell = w->w_cell;
    int limited = cell->timeout || w->w_memory_limit;
    /* The coarse clock (4 ms or so) costs a tenth of the exact one, and the
    ** start of a task without limits is for stats alone. */
    uint64_t now = limited ? os_now() : os_now_coarse();
    atomic_store_explicit(&s->started, now, memory_order_relaxed);
    /* The deadline is stored before RUNNING and cleared after SAVING: a keeper
    ** that reads RUNNING with one serial before and after it has read the
    ** deadline of that very task. */
    uint64_t look = 0;
    if (cell->timeout) {
        look = now + cell->timeout;
        atomic_store_explicit(&s->grace, cell->grace, memory_order_relaxed);
        atomic_store_explicit(&s->deadline, look, memory_order_relaxed);
    }
    w->w_entered = 1;
    uint64_t running = RUN_WORD(RUN_RUNNING, w->w_item, ++w->w_serial);
    if (!limited) {
        atomic_store_explicit(&s->run, running, memory_order_release);
        return;
    }
    atomic_store(&s->run, running);
    if (w->w_memory_limit && (!look || look > now + 100 * OS_MS))
        look = now + 100 * OS_MS;
    if (look < atomic_load(&w->w_region->wake_at))
        kick_keeper(w->w_region);
}

enum reason worker_stop_reason(const worker_t *w)
{
    uint64_t stop = atomic_load_explicit(&w->w_slot->stop,
                                         memory_order_acquire);
    uint64_t run = atomic_load_explicit(&w->w_slot->run,
                                        memory_order_acquire);
    if (RUN_STATE(run) != RUN_RUNNING || stop >> 8 != RUN_SERIAL(run) ||
        !w->w_entered)
        return REASON_NONE;
    return (enum reason)(stop & 0xff);
}

/* The keeper took this task and is about to kill this process. */
static _Noreturn void await_death(void)
{
    for (;;)
        pause();
}

void worker_return(const worker_t *w)
{
    if (w->w_disowned)
        _exit(0);
}

/* The task returned, its record is ended: make that its outcome. */
static void settle(worker_t *w, uint32_t next)
{
    slot_t *s = w->w_slot;
    if (w->w_entered) {
        uint64_t running = RUN_WORD(RUN_RUNNING, next - 1, w->w_serial);
        uint64_t saving = RUN_WORD(RUN_SAVING, next - 1, w->w_serial);
        FAULT_POINT("settle.pre_cas");
        if (!atomic_compare_exchange_strong(&s->run, &running, saving))
            await_death();
        if (w->w_cell->timeout)
            atomic_store_explicit(&s->deadline, 0, memory_order_release);
    }
    outbox_publish(&w->w_out, next);
    if (w->w_entered) {
        w->w_tasks++;
        atomic_store_explicit(&s->tasks, w->w_tasks, memory_order_relaxed);
        w->w_entered = 0;
        if (w->w_tasks == worker_ahead(&w->w_region->set))
            kick_keeper(w->w_region);  /* it starts the next life */
    }
}

/* One item's bytes in a cell's arguments: a 32-bit word with the size above
** the lowest bit, which says "refused"; all ones: a 64-bit such word follows. */
static int next_frame(const unsigned char **at, const unsigned char *end,
                      task_t *t)
{
    uint32_t narrow;
    uint64_t wide;
    if (end - *at < 4)
        return 0;
    memcpy(&narrow, *at, 4);
    *at += 4;
    wide = narrow;
    if (narrow == UINT32_MAX) {
        if (end - *at < 8)
            return 0;
        memcpy(&wide, *at, 8);
        *at += 8;
    }
    t->refused = wide & 1;
    t->args_size = wide >> 1;
    t->args = *at;
    if ((uint64_t)(end - *at) < t->args_size)
        return 0;
    *at += t->args_size;
    return 1;
}

/* A cell has ended: see choose_policy. */
static void note_alone(worker_t *w)
{
    region_t *r = w->w_region;
    if (!something_queued(r) &&
        atomic_load_explicit(&r->waiting, memory_order_relaxed))
        w->w_alone++;
    else
        w->w_alone = 0;
}

/* The parent is woken at a cell's end and at errors; inside a chunk now and
** then only, since waking another CPU costs as much as a thousand items: when
** so much time has passed between the starts of two tasks. */
static void notify(worker_t *w, enum record_kind kind, int last)
{
    slot_t *s = w->w_slot;
    if (!last && kind == RECORD_VALUE && !w->w_cell->prompt) {
        uint64_t now = atomic_load_explicit(&s->started,
                                            memory_order_relaxed);
        if (now - w->w_notified < NOTIFY_EVERY)
            return;
        w->w_notified = now;
    }
    if (last)
        note_alone(w);
    tell_parent(w->w_region, s);
}

static void drop_rest(worker_t *w)
{
    outbox_put(&w->w_out, RECORD_DROPPED, NULL, 0);
    outbox_publish(&w->w_out, w->w_cell->items);
    notify(w, RECORD_DROPPED, 1);
}

/* Items from `item` on, none of them begun, are for the next worker. Before
** that the parent is told of the others: whoever ends the cell tells of its own
** outbox only, and the parent may have been at ours before. */
static void put_back_rest(worker_t *w, uint32_t item)
{
    tell_parent(w->w_region, w->w_slot);
    atomic_store(&w->w_cell->attempt, 1);
    atomic_store(&w->w_cell->requeues, 0);
    board_put_back(w->w_region, w->w_cell, item);
}

/* Marks the claimed cell as begun: from here on `tail` counts its items. */
static void begin_cell(worker_t *w, uint64_t index, uint32_t first)
{
    slot_t *s = w->w_slot;
    cell_t *cell = w->w_cell;
    record_cell_t about = {
        .cell = index, .position = cell->position, .item = first,
        .attempt = atomic_load_explicit(&cell->attempt,
                                        memory_order_relaxed),
        .generation = w->w_generation, .pid = w->w_pid,
    };
    outbox_cell(&w->w_out, &about);
    atomic_store_explicit(&s->attempt, about.attempt, memory_order_relaxed);
    /* In this order: a keeper that sees `begun` sees no stale `run` or item
    ** count of the cell before. */
    atomic_store_explicit(&s->run, RUN_WORD(RUN_IDLE, 0, w->w_serial),
                          memory_order_release);
    outbox_publish(&w->w_out, first);
    atomic_store_explicit(&s->begun, cell->position + 1,
                          memory_order_release);
    FAULT_POINT("claim.begun");
}

static void open_cell(worker_t *w, uint64_t index)
{
    const region_t *r = w->w_region;
    cell_t *cell = w->w_cell = region_cell(r, index);
    if (index / SEGMENT_CELLS != w->w_segment) {
        w->w_segment = index / SEGMENT_CELLS;
        board_touch(r, index);
    }
    task_t *t = &w->w_task;
    w->w_first = w->w_item = atomic_load_explicit(&cell->first,
                                                  memory_order_acquire);
    w->w_items = cell->items;
    w->w_at = region_at(r, cell->args);
    w->w_end = w->w_at + cell->args_size;
    w->w_reason = REASON_NONE;
    t->func = region_at(r, cell->func);
    t->func_size = cell->func_size;
    t->func_id = cell->func_id;
    t->timeout = cell->timeout;
    t->attempt = atomic_load(&cell->attempt);
    for (uint32_t i = 0; i < w->w_first; i++)
        if (!next_frame(&w->w_at, w->w_end, t))
            abort();
}

int worker_next(worker_t *w)
{
    cell_t *cell = w->w_cell;
    uint32_t i = w->w_item;
    if (i >= w->w_items)
        return 0;
    if (atomic_load_explicit(&cell->cancel, memory_order_acquire)) {
        drop_rest(w);
        return 0;
    }
    if (w->w_reason != REASON_NONE) {
        put_back_rest(w, i);
        return 0;
    }
    if (!next_frame(&w->w_at, w->w_end, &w->w_task))
        abort();
    w->w_task.number = cell->number + i;
    if (i == w->w_first + 1) {
        w->w_task.attempt = 1;
        atomic_store_explicit(&w->w_slot->attempt, 1, memory_order_relaxed);
    }
    w->w_entered = 0;
    if (outbox_begin(&w->w_out) < 0)
        abort();  /* 64 bytes never fail: starved() waits */
    return 1;
}

void worker_done(worker_t *w, enum record_kind kind)
{
    outbox_end(&w->w_out, kind);
    settle(w, ++w->w_item);
    notify(w, kind, w->w_item == w->w_items);
    w->w_reason = leaves_after_task(w);
}

/*
** Runs the tasks of a claimed cell. Returns why the worker must leave (the
** rest of the cell is queued again), or REASON_NONE.
*/
static enum reason run_cell(worker_t *w, uint64_t index)
{
    open_cell(w, index);
    begin_cell(w, index, w->w_first);
    w->w_work->run(w->w_work->context, w);
    w->w_cell = NULL;
    return w->w_reason;
}

/* --- idling ------------------------------------------------------------- */

static int must_look(worker_t *w)
{
    region_t *r = w->w_region;
    return something_queued(r) || atomic_load(&r->closing) ||
           w->w_term || ordered(w) != REASON_NONE;
}

/*
** One worker at a time spins before it sleeps. Whoever queues a cell may have
** relied on the spinner instead of waking somebody (see wake.c), so after it
** stops it must look once more. *spun: for how long it did so in vain.
*/
static int spin(worker_t *w, uint64_t since, uint64_t *spun)
{
    region_t *r = w->w_region;
    uint32_t nobody = 0, me = SPINNER(w->w_index);
    uint64_t took = 0;
    if (r->cpus < 2 || !w->w_spin.ns ||
        !atomic_compare_exchange_strong(&r->spinner, &nobody, me))
        return 0;
    FAULT_POINT("spin.begun");
    int found = 0;
    while (!(found = must_look(w)) && took < w->w_spin.ns) {
        for (int i = 0; i < 32 && !something_queued(r); i++)
            os_relax();
        took = os_now() - since;
    }
    atomic_compare_exchange_strong(&r->spinner, &me, 0);
    if (!found && !(found = must_look(w)))
        *spun = took;
    return found;
}

/* Pages are given back once in a sleep; if the parent has not read them yet,
** then in a later one. */
static uint64_t trim_time(const worker_t *w)
{
    return outbox_wants_trim(&w->w_out) ? os_now() + TRIM_AFTER : 0;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a && (a < b || !b) ? a : b;
}

/*
** Whether being woken should preempt others. Not while the parent queues one
** task after the other: if each pushed it off its CPU, each would cost two
** switches. But where it waited for each of the last cells, and nothing else was
** queued, the sooner the better: a batch process that is woken on a CPU where
** another computes waits for the end of its turn.
*/
static void choose_policy(worker_t *w)
{
    if (!w->w_alone && !w->w_batch)
        w->w_batch = os_batch(1);
    else if (w->w_alone >= ALONE_ENOUGH && w->w_batch)
        w->w_batch = !os_batch(0);
}

static void sleep_until_rung(worker_t *w)
{
    region_t *r = w->w_region;
    slot_t *s = w->w_slot;
    _Atomic uint64_t *word = &r->idle[w->w_index / 64];
    uint64_t trim_at = trim_time(w);
    choose_policy(w);
    atomic_store(&s->bell, 1);
    atomic_fetch_or(word, idle_bit(w->w_index));
    FAULT_POINT("idle.announced");
    while (!must_look(w) && atomic_load(&s->bell)) {
        int rc = os_futex_wait(&s->bell, 1, earlier(w->w_old, trim_at));
        if (rc != -ETIMEDOUT)
            continue;
        if (w->w_old && os_now() >= w->w_old)
            break;
        outbox_trim(&w->w_out);
        trim_at = 0;
    }
    FAULT_POINT("wait.woken");
    atomic_fetch_and(word, ~idle_bit(w->w_index));
    atomic_store(&s->bell, 0);
}

static void idle(worker_t *w)
{
    uint64_t since = os_now(), spun = 0;
    /* Before wake_at is read: the keeper stores that, then reads this. */
    atomic_store(&w->w_slot->idle_since, since);
    w->w_hungry = 1;
    if (!spin(w, since, &spun)) {
        if (w->w_region->set.idletimeout &&
            since + w->w_region->set.idletimeout <
                atomic_load(&w->w_region->wake_at))
            kick_keeper(w->w_region);
        sleep_until_rung(w);
    }
    spin_learn(&w->w_spin, spun, os_now() - since);
    atomic_store_explicit(&w->w_slot->idle_since, 0, memory_order_relaxed);
}

/* A worker that was idle may have kept others asleep (see spin). */
static void wake_next(worker_t *w)
{
    if (!w->w_hungry)
        return;
    w->w_hungry = 0;
    if (board_queued(w->w_region))
        wake_worker(w->w_region);
}

/* --- a life ------------------------------------------------------------- */

static int starved(outbox_t *o)
{
    slot_t *s = o->o_slot;
    atomic_store(&s->starved, 1);
    tell_parent(o->o_region, s);
    if (atomic_load(&s->head) == o->o_seen)
        os_futex_wait(&s->starved, 1, os_now() + OS_SECOND);
    return 0;
}

/* Waits until its predecessor has left; 0 when its turn went by. */
static int take_turn(worker_t *w)
{
    slot_t *s = w->w_slot;
    for (;;) {
        uint32_t turn = atomic_load(&s->turn);
        if (turn == w->w_generation)
            break;
        if ((int32_t)(turn - w->w_generation) > 0)
            return 0;
        if (atomic_load(&s->turn) == turn)
            os_futex_wait(&s->turn, turn, 0);
    }
    uint64_t now = os_now();
    outbox_open(&w->w_out, w->w_region, w->w_index, starved);
    w->w_serial = RUN_SERIAL(atomic_load(&s->run));
    w->w_old = w->w_age ? now + w->w_age : 0;
    /* An earlier life may have begun a cell, put it back, and now we claim it
    ** again: if we die before we begin it, its `tail` is not ours. */
    atomic_store(&s->begun, 0);
    atomic_store(&s->tasks, 0);
    atomic_store(&s->pid, w->w_pid);
    atomic_store(&s->born, now);
    atomic_store(&s->generation, w->w_generation);
    if (w->w_age)
        kick_keeper(w->w_region);  /* the next life is to be ready in time */
    return 1;
}

void worker_open(worker_t *w, region_t *r, uint32_t slot, uint32_t generation,
                 const work_t *work)
{
    memset(w, 0, sizeof *w);
    w->w_region = r;
    w->w_slot = &r->slots[slot];
    w->w_work = work;
    w->w_index = slot;
    w->w_generation = generation;
    w->w_pid = (int32_t)getpid();
    w->w_spin.ns = SPIN_MAX;
    w->w_limit = draw(r->set.maxtasks, r->set.jitter);
    w->w_memory_limit = draw(r->set.maxmemory, r->set.jitter);
    w->w_age = draw(r->set.maxage, r->set.jitter);
    w->w_forked = os_now();
    if (w->w_memory_limit) {  /* nothing is private right after the fork */
        w->w_memory_anon = os_resident_memory(0);
        w->w_memory_faults = os_page_faults();
    }
}

/* Swapped, not stored: a keeper that takes the start for too long swaps it to
** FAILED before it kills, so that kill never meets a task. */
static void be_ready(worker_t *w)
{
    uint64_t word = LIFE_WORD(w->w_generation, REASON_NONE, PHASE_STARTING);
    atomic_store(&w->w_slot->took, os_now() - w->w_forked);
    while (!atomic_compare_exchange_strong(
        life_of(w), &word,
        LIFE_WORD(w->w_generation, REASON_NONE, PHASE_READY)))
        if (LIFE_PHASE(word) == PHASE_FAILED)
            await_death();
    FAULT_POINT("child.ready");
    if (atomic_load(&w->w_region->hear))
        kick_keeper(w->w_region);
}

enum reason worker_serve(worker_t *w)
{
    region_t *r = w->w_region;
    be_ready(w);
    if (!take_turn(w))
        return REASON_CLOSE;
    enum reason reason = wants_to_leave(w);
    while (reason == REASON_NONE) {
        FAULT_POINT("loop.top");
        /* Read before the claim: what is queued before `closing` is set must
        ** be seen by the claim. */
        uint32_t closing = atomic_load(&r->closing);
        uint64_t index = board_claim(r, w->w_index, w->w_generation);
        if (index != NO_CELL) {
            wake_next(w);
            reason = run_cell(w, index);
        } else if (closing)
            reason = REASON_CLOSE;
        else {
            idle(w);
            reason = wants_to_leave(w);
        }
    }
    give_turn(w, reason);
    return reason;
}

static int no_room(buffer_t *b, size_t need)
{
    (void)b;
    (void)need;
    return -EMSGSIZE;
}

int worker_start(worker_t *w)
{
    if (!w->w_work->start)
        return 0;
    complaint_t *c = region_complaint(w->w_region, w->w_index,
                                      w->w_generation);
    buffer_t complaint = { .data = c->bytes, .room = sizeof c->bytes,
                           .grow = no_room };
    if (w->w_work->start(w->w_work->context, w, &complaint) == 0)
        return 0;
    c->kind = complaint.used ? COMPLAINT_ENCODED : COMPLAINT_NONE;
    c->size = (uint32_t)complaint.used;
    atomic_store(life_of(w), LIFE_WORD(w->w_generation, REASON_NONE,
                                       PHASE_FAILED));
    return -1;
}

void worker_exited(worker_t *w, int32_t code)
{
    if (LIFE_PHASE(atomic_load(life_of(w))) == PHASE_STARTING) {
        complaint_t *c = region_complaint(w->w_region, w->w_index,
                                          w->w_generation);
        memcpy(c->bytes, &code, sizeof code);
        c->kind = COMPLAINT_EXIT;
        c->size = sizeof code;
        atomic_store(life_of(w), LIFE_WORD(w->w_generation, REASON_CRASH,
                                           PHASE_FAILED));
    } else if (w->w_cell && w->w_entered) {
        uint32_t next = w->w_item + 1;
        int last = next >= w->w_cell->items;
        outbox_put(&w->w_out, RECORD_EXIT, &code, sizeof code);
        settle(w, next);  /* the last: from here on the cell is not ours */
        if (last)
            tell_parent(w->w_region, w->w_slot);
        else
            put_back_rest(w, next);
        give_turn(w, REASON_CRASH);
    }
}
