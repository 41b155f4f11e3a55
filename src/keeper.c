/*
** keeper.c - the keeper's loop; see keeper.h.
**
** Invariants: one place to wait; every pass does all there is to do, in the
** order reap, obey, start, watch, and computes the nearest deadline anew.
** Nothing here takes longer than a scan of the slots (1024 at most), and a
** slot's lives are found by their generation, so linear scans it is.
**
** What is wanted and what is stand apart: `wanted`, `replace`, `closing` in
** region and seats say what should be; lives[] is what is.
*/
#define _GNU_SOURCE
#include "keeper.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "board.h"
#include "fault.h"
#include "nursery.h"
#include "os.h"
#include "wake.h"

#define PAUSE_MIN (10 * OS_MS)
#define PAUSE_MAX OS_SECOND
#define FAILURES_MAX 5
#define MEMORY_LOOK (100 * OS_MS)   /* between samples of running tasks */
#define EXEC_DELAY (50 * OS_MS)     /* hung up, yet not dead: it executed */
#define AHEAD_TIME (20 * OS_MS)     /* by default, before an age is reached */

static void sooner(uint64_t *at, uint64_t candidate)
{
    if (candidate && candidate < *at)
        *at = candidate;
}

static int closing(const keeper_t *k)
{
    return atomic_load(&k->r->closing) != 0;
}

void *keeper_grow(const void *old, size_t had, size_t size)
{
    void *fresh = nursery_get(size);
    if (!fresh && !(fresh = malloc(size)))
        return NULL;
    if (had)
        memcpy(fresh, old, had);
    return fresh;
}

/* --- ends --------------------------------------------------------------- */

static _Noreturn void leave(keeper_t *k, enum keeper_state state)
{
    atomic_store(&k->r->state, state);
    wake_parent(k->r);
    _exit(0);
}

static _Noreturn void end(keeper_t *k, enum keeper_state state)
{
    crew_kill_all(k);
    leave(k, state);
}

/* Tells the parent why the pool is over, and ends it. */
_Noreturn void keeper_break(keeper_t *k, const void *bytes, size_t size,
                            enum broken how)
{
    if (outbox_begin(&k->out) == 0) {
        buffer_t *b = &k->out.record;
        if (b->room >= size + 8 || b->grow(b, size + 8) == 0) {
            uint64_t wide = how;
            memcpy(b->data, &wide, 8);
            memcpy(b->data + 8, bytes, size);
            b->used = size + 8;
            outbox_end(&k->out, RECORD_BROKEN);
            outbox_publish(&k->out, 0);
        }
    }
    end(k, KEEPER_BROKEN);
}

static int someone_ready(keeper_t *k)
{
    for (uint32_t i = 0; i < k->count; i++)
        if (crew_phase(k, &k->lives[i]) == PHASE_READY)
            return 1;
    return 0;
}

void keeper_note_ready(keeper_t *k, life_t *l)
{
    if (l->was_ready)
        return;
    l->was_ready = 1;
    k->ever_ready = 1;
    k->failures = 0;
    k->pause = 0;
    crew_event(k, EVENT_READY, l, REASON_NONE, 0, 0);
}

static void note_ready(keeper_t *k)
{
    for (uint32_t i = 0; i < k->count; i++) {
        life_t *l = &k->lives[i];
        if (l->was_ready)
            continue;
        enum phase phase = crew_phase(k, l);
        if (phase == PHASE_READY || phase == PHASE_LEAVING)
            keeper_note_ready(k, l);
    }
}

/* A failed start's complaint is made whole: `why` is the keeper's reason, ""
** that the life itself has given one. */
static void complete(complaint_t *c, const char *why)
{
    char exited[64];
    int32_t code;
    if (!*why && c->kind == COMPLAINT_ENCODED && c->size <= sizeof c->bytes)
        return;
    if (!*why && c->kind == COMPLAINT_EXIT) {
        memcpy(&code, c->bytes, sizeof code);
        snprintf(exited, sizeof exited, "initializer called os.exit(%d)",
                 code);
        why = exited;
    }
    c->kind = COMPLAINT_TEXT;
    c->size = (uint32_t)snprintf((char *)c->bytes, sizeof c->bytes, "%s",
                                 *why ? why : "initializer failed");
}

/* `l` is NULL when the fork itself failed. */
void keeper_start_failed(keeper_t *k, const life_t *l, const char *why)
{
    complaint_t text = { .kind = COMPLAINT_NONE };
    complaint_t *c = l ? region_complaint(k->r, l->slot, l->generation)
                       : &text;
    complete(c, why);
    if (l)
        crew_event(k, EVENT_FAILED, l, REASON_NONE, 0, 0);
    note_ready(k);
    k->failures++;
    int hopeless = l && !k->ever_ready;
    if (k->failures >= FAILURES_MAX && !someone_ready(k))
        hopeless = 1;
    if (hopeless)
        keeper_break(k, c->bytes, c->size,
                     !l                             ? BROKEN_TEXT
                     : c->kind == COMPLAINT_ENCODED ? BROKEN_ENCODED
                                                    : BROKEN_INITIALIZER);
    k->pause = k->pause ? k->pause * 2 : PAUSE_MIN;
    if (k->pause > PAUSE_MAX)
        k->pause = PAUSE_MAX;
    k->start_after = os_now() + k->pause;
}

/* --- obey: what the parent asked for ------------------------------------ */

static void give_order(keeper_t *k, const life_t *l, enum reason reason)
{
    slot_t *s = &k->r->slots[l->slot];
    uint64_t order = ORDER_WORD(l->generation, reason);
    if (atomic_load(&s->order) == order)
        return;
    atomic_store(&s->order, order);
    wake_slot(k->r, l->slot);
}

static void ask_replace(keeper_t *k, uint32_t first, uint64_t slots)
{
    for (; slots; slots &= slots - 1) {
        uint32_t i = first + (uint32_t)__builtin_ctzll(slots);
        if (i >= k->wanted)
            return;
        k->seats[i].replace = REPLACE_ASKED;
        k->recycling = 1;
    }
}

static void obey_replace(keeper_t *k)
{
    region_t *r = k->r;
    uint32_t all = atomic_load(&r->recycle_all);
    for (uint32_t i = 0; i < k->slots; i += 64) {
        _Atomic uint64_t *asked = &r->replace[i / 64];
        uint64_t slots = atomic_load(asked) ? atomic_exchange(asked, 0) : 0;
        ask_replace(k, i, all != k->recycle_all ? UINT64_MAX : slots);
    }
    k->recycle_all = all;
    /* Before anybody looks whether a successor is ready: one that becomes so
    ** later sees this, and kicks. */
    atomic_store(&r->hear, r->set.events || r->set.log || k->recycling);
}

/* Whether the seat's replacement is under way. It is over when the slot has
** moved on, for whatever reason. */
static int being_replaced(keeper_t *k, uint32_t slot)
{
    seat_t *seat = &k->seats[slot];
    if (seat->replace == REPLACE_BEGUN &&
        (seat->dormant || atomic_load(&k->r->slots[slot].turn) != seat->old))
        seat->replace = REPLACE_NO;
    return seat->replace == REPLACE_BEGUN;
}

/* Never more than half the workers in replacement at once (one at least). */
static void recycle_seats(keeper_t *k)
{
    uint32_t wanted = k->wanted, under_way = 0;
    if (!k->recycling)
        return;
    k->recycling = 0;
    for (uint32_t i = 0; i < wanted; i++)
        under_way += (uint32_t)being_replaced(k, i);
    for (uint32_t i = 0; i < wanted; i++) {
        seat_t *seat = &k->seats[i];
        if (seat->replace == REPLACE_ASKED && under_way < (wanted + 1) / 2) {
            seat->replace = REPLACE_BEGUN;
            seat->old = atomic_load(&k->r->slots[i].turn);
            under_way++;
        }
        k->recycling |= seat->replace != REPLACE_NO;
        if (seat->replace != REPLACE_BEGUN)
            continue;
        life_t *now = crew_find(k, i, seat->old);
        life_t *next = crew_find(k, i, seat->old + 1);
        if (now && next && crew_phase(k, next) == PHASE_READY)
            give_order(k, now, REASON_REQUEST);
    }
}

static void stop_task(keeper_t *k, life_t *l, enum reason reason,
                      uint64_t run, uint64_t now, uint64_t grace)
{
    slot_t *s = &k->r->slots[l->slot];
    if (l->stop_reason != REASON_NONE && l->stop_serial == RUN_SERIAL(run))
        return;
    l->stop_serial = RUN_SERIAL(run);
    l->stop_reason = reason;
    l->kill_at = now + grace;
    atomic_store(&s->stop, (uint64_t)RUN_SERIAL(run) << 8 | reason);
    kill(l->pid, STOP_SIGNAL);
}

/*
** Stops the life's task if its cell is cancelled. Returns 0 when there is none
** yet: the worker may have looked at `cancel` just before it was set, and be
** on its way into the task; or it is between two, and will look.
*/
static int stop_cancelled(keeper_t *k, life_t *l, uint64_t now)
{
    slot_t *s = &k->r->slots[l->slot];
    uint64_t run = atomic_load(&s->run);
    uint32_t next;
    if (atomic_load(&s->turn) != l->generation)
        return 1;
    const cell_t *cell = board_owned(k->r, l->slot, l->generation, &next);
    if (!cell || atomic_load(&cell->cancel) != CANCEL_ALL)
        return 1;
    uint64_t grace = cell->grace;
    /* The same task all the while: then the cell is its. */
    if (RUN_STATE(run) != RUN_RUNNING || atomic_load(&s->run) != run)
        return RUN_STATE(run) == RUN_KILLING;
    stop_task(k, l, REASON_CANCEL, run, now, grace);
    return 1;
}

static void obey_cancels(keeper_t *k, uint64_t now, uint64_t *at)
{
    uint32_t cancels = atomic_load(&k->r->cancels);
    int all = 1;
    if (cancels == k->cancels)
        return;
    for (uint32_t i = 0; i < k->count; i++)
        all &= stop_cancelled(k, &k->lives[i], now);
    if (all)
        k->cancels = cancels;
    else
        sooner(at, now + OS_MS);
}

static void rouse(keeper_t *k, uint32_t slot)
{
    if (!k->seats[slot].dormant)
        return;
    k->seats[slot].dormant = 0;
    atomic_fetch_sub(&k->r->asleep, 1);
}

/* As many as there are slots, not as there may be: for a large block malloc
** goes through all that the parent has freed, and so copies its pages. */
static int add_seats(keeper_t *k, uint32_t count)
{
    if (count > k->seats_room) {
        uint32_t room = k->seats_room ? 2 * count : count;
        seat_t *more = keeper_grow(k->seats, k->slots * sizeof *more,
                                   room * sizeof *more);
        if (!more)
            return 0;
        k->seats = more;
        k->seats_room = room;
    }
    memset(k->seats + k->slots, 0, (count - k->slots) * sizeof *k->seats);
    k->slots = count;
    return 1;
}

/* Slots above `wanted` are to be empty. */
static void obey_size(keeper_t *k, uint64_t now, uint64_t *at)
{
    k->wanted = atomic_load(&k->r->wanted);
    if (k->wanted > k->r->slots_max)    /* a task has written there */
        k->wanted = k->r->slots_max;
    if (k->wanted > k->slots && !add_seats(k, k->wanted)) {
        k->wanted = k->slots;
        sooner(at, now + PAUSE_MAX);
    }
    for (uint32_t i = k->wanted; i < k->slots; i++) {
        life_t *l = crew_active(k, i);
        if (l && !closing(k))
            give_order(k, l, REASON_RESIZE);
        rouse(k, i);
        k->seats[i].replace = REPLACE_NO;
    }
}

/*
** A worker that left for being idle leaves its slot asleep. That is decided
** before the slot's lives are counted, not when it is reaped: its turn is
** given away before it dies, and a look between the two would start the next
** life. Should that exist already, it has nothing to do either.
*/
void keeper_lull(keeper_t *k, uint32_t slot, uint32_t turn)
{
    region_t *r = k->r;
    life_t *left = crew_find(k, slot, turn - 1);
    if (!left || left->lulled || crew_leaving(k, left) != REASON_IDLE)
        return;
    left->lulled = 1;
    if (closing(k) || slot >= k->wanted)
        return;
    life_t *next = crew_find(k, slot, turn);
    if (next) {
        give_order(k, next, REASON_IDLE);
        return;
    }
    k->seats[slot].dormant = 1;
    atomic_fetch_add(&r->asleep, 1);
    /* Whoever queues a cell and then sees nobody asleep does not kick. */
    if (board_queued(r))
        rouse(k, slot);
}

/* As many as there are cells for that no idle worker can take. */
static void wake_dormant(keeper_t *k)
{
    region_t *r = k->r;
    if (!atomic_load(&r->asleep) || !board_queued(r))
        return;
    uint64_t waiting = atomic_load(&r->head) -
                       CLAIM_POSITION(atomic_load(&r->claim));
    uint64_t idle = 0;
    for (uint32_t i = 0; i < k->slots; i += 64)
        idle += (uint64_t)__builtin_popcountll(atomic_load(&r->idle[i / 64]));
    for (uint32_t i = 0; i < k->slots && waiting > idle; i++)
        if (k->seats[i].dormant) {
            rouse(k, i);
            waiting--;
        }
}

/* --- watch: what time brings -------------------------------------------- */

static void kill_task(keeper_t *k, life_t *l, uint64_t run,
                      enum reason reason)
{
    slot_t *s = &k->r->slots[l->slot];
    uint64_t killing = RUN_WORD(RUN_KILLING, RUN_ITEM(run), RUN_SERIAL(run));
    FAULT_POINT("timelimit.pre_cas");
    if (atomic_compare_exchange_strong(&s->run, &run, killing))
        crew_kill(l, reason);
}

/*
** Whether a life is over twice its limit of memory. The cheap figure bounds
** the exact one from above, but counts all that is inherited, so it decides
** whether to ask, not the answer. The exact one costs a walk over the page
** tables, milliseconds behind a large heap: of all lives together, the keeper
** spends a twentieth of its time on that at most.
*/
static int exceeds_memory(keeper_t *k, life_t *l, uint64_t now)
{
    uint64_t limit = 2 * k->r->set.maxmemory;
    if (now < l->measure_at)
        return 0;
    l->measure_at = now + MEMORY_LOOK;
    if (os_resident_memory(l->pid) <= limit)
        return 0;
    uint64_t began = os_now(), memory = os_private_memory(l->pid);
    l->measure_at += 20 * k->count * (os_now() - began);
    return memory > limit;
}

/* The running task of the active life: limits of time and memory. */
static void watch_task(keeper_t *k, life_t *l, uint64_t now, uint64_t *at)
{
    slot_t *s = &k->r->slots[l->slot];
    uint64_t run = atomic_load(&s->run);
    uint64_t deadline = atomic_load(&s->deadline);
    uint64_t grace = atomic_load(&s->grace);
    uint64_t started = atomic_load(&s->started);
    if (RUN_STATE(run) != RUN_RUNNING || atomic_load(&s->run) != run)
        return;
    int asked = l->stop_reason != REASON_NONE &&
                l->stop_serial == RUN_SERIAL(run);
    if (asked && now >= l->kill_at)
        kill_task(k, l, run, l->stop_reason);
    else if (asked)
        sooner(at, l->kill_at);
    else if (deadline && now >= deadline) {
        stop_task(k, l, REASON_TIMELIMIT, run, now, grace);
        sooner(at, l->kill_at);
    } else
        sooner(at, deadline);
    if (!k->r->set.maxmemory || l->kill_reason != REASON_NONE)
        return;
    if (now >= started + MEMORY_LOOK && exceeds_memory(k, l, now))
        kill_task(k, l, run, REASON_MEMORY);
    sooner(at, now + MEMORY_LOOK);
}

static int told_to_idle(const keeper_t *k, const life_t *l)
{
    return !l->lulled && atomic_load(&k->r->slots[l->slot].order) ==
                             ORDER_WORD(l->generation, REASON_IDLE);
}

static void count_awake(keeper_t *k)
{
    if (!k->r->set.idletimeout)
        return;
    k->awake = k->wanted - atomic_load(&k->r->asleep);
    for (uint32_t i = 0; i < k->count; i++)
        k->awake -= (uint32_t)told_to_idle(k, &k->lives[i]);
}

static void watch_idle(keeper_t *k, life_t *l, uint64_t now, uint64_t *at)
{
    settings_t *set = &k->r->set;
    uint64_t since = atomic_load(&k->r->slots[l->slot].idle_since);
    if (!set->idletimeout || !since || closing(k) ||
        (int32_t)k->awake <= (int32_t)set->minprocesses || told_to_idle(k, l))
        return;
    if (now < since + set->idletimeout) {
        sooner(at, since + set->idletimeout);
        return;
    }
    give_order(k, l, REASON_IDLE);
    k->awake--;
}

/* Killed only if it is not ready this very moment: see be_ready. */
static void watch_start(keeper_t *k, life_t *l, uint64_t now, uint64_t *at)
{
    uint64_t limit = k->r->set.inittimeout;
    if (!limit)
        return;
    if (now < l->forked_at + limit) {
        sooner(at, l->forked_at + limit);
        return;
    }
    uint64_t word = LIFE_WORD(l->generation, REASON_NONE, PHASE_STARTING);
    uint64_t failed = LIFE_WORD(l->generation, REASON_TIMELIMIT,
                                PHASE_FAILED);
    if (atomic_compare_exchange_strong(
            region_life(k->r, l->slot, l->generation), &word, failed))
        crew_kill(l, REASON_TIMELIMIT);
}

static void watch_finalizer(keeper_t *k, life_t *l, uint64_t now,
                            uint64_t *at)
{
    if (!l->leaving_since)
        l->leaving_since = now;
    uint64_t until = l->leaving_since + k->r->set.grace;
    if (now >= until)
        crew_kill(l, REASON_CLOSE);
    else
        sooner(at, until);
}

/* A life whose pipe hung up and that does not die executes another program. */
static void watch_pipe(life_t *l, uint64_t now, uint64_t *at)
{
    if (!l->hung_up_at)
        return;
    if (now >= l->hung_up_at + EXEC_DELAY)
        crew_kill(l, REASON_CRASH);
    else
        sooner(at, l->hung_up_at + EXEC_DELAY);
}

static void watch_life(keeper_t *k, life_t *l, uint64_t now, uint64_t *at)
{
    if (l->kill_reason != REASON_NONE)
        return;
    watch_pipe(l, now, at);
    switch (crew_phase(k, l)) {
    case PHASE_STARTING:
        watch_start(k, l, now, at);
        break;
    case PHASE_READY:
        if (atomic_load(&k->r->slots[l->slot].turn) != l->generation)
            break;
        watch_task(k, l, now, at);
        watch_idle(k, l, now, at);
        break;
    case PHASE_LEAVING:
        if (k->r->set.has_finalizer)
            watch_finalizer(k, l, now, at);
        break;
    default:
        break;
    }
}

/* The nearest moment at which something is due; UINT64_MAX: never. */
static uint64_t watch(keeper_t *k, uint64_t now)
{
    uint64_t at = UINT64_MAX;
    count_awake(k);
    for (uint32_t i = 0; i < k->count; i++)
        watch_life(k, &k->lives[i], now, &at);
    return at;
}

/* --- start: successors and replacements --------------------------------- */

/* When the slot's worker, by its age, needs a successor: twice what a start
** takes, before the youngest age at which it may leave. */
static uint64_t successor_due(const settings_t *set, const slot_t *s)
{
    uint64_t youngest = (uint64_t)((double)set->maxage * (1 - set->jitter));
    uint64_t took = 2 * atomic_load(&s->took) + AHEAD_TIME;
    return atomic_load(&s->born) + (youngest > took ? youngest - took : 0);
}

/* Whether the slot's worker should have its successor waiting by now. */
static int wants_successor(keeper_t *k, uint32_t slot, uint32_t turn,
                           uint64_t now, uint64_t *at)
{
    const settings_t *set = &k->r->set;
    const slot_t *s = &k->r->slots[slot];
    if (being_replaced(k, slot))
        return 1;
    if (atomic_load(&s->order) == ORDER_WORD(turn, REASON_IDLE))
        return 0;
    uint64_t ahead = worker_ahead(set);
    if (set->maxtasks && !ahead)
        return 1;
    /* The rest of the slot speaks of a life before until this one has taken
    ** its turn; then it kicks, or will when it has so many tasks. */
    if (atomic_load(&s->generation) != turn || !atomic_load(&s->pid))
        return 0;
    if (ahead && atomic_load(&s->tasks) >= ahead)
        return 1;
    if (!set->maxage)
        return 0;
    uint64_t due = successor_due(set, s);
    if (now >= due)
        return 1;
    sooner(at, due);
    return 0;
}

/* The turn is read once: a worker told to idle that gives it away between two
** looks would be neither one that leaves for that nor one that left. */
static uint32_t lives_wanted(keeper_t *k, uint32_t slot, uint64_t now,
                             uint64_t *at)
{
    uint32_t turn = atomic_load(&k->r->slots[slot].turn);
    if (k->r->set.idletimeout)
        keeper_lull(k, slot, turn);
    if (k->seats[slot].dormant)
        return 0;
    if (closing(k))
        return board_queued(k->r) ? 1 : 0;
    return 1 + (uint32_t)wants_successor(k, slot, turn, now, at);
}

static void start_life(keeper_t *k, uint32_t slot, uint64_t *at)
{
    char why[128];
    if (!crew_has_room(k, slot))
        return;  /* until one of them is reaped */
    if (os_now() < k->start_after) {
        sooner(at, k->start_after);
        return;
    }
    int rc = crew_start(k, slot);
    if (rc == 0)
        return;
    snprintf(why, sizeof why, "cannot start workers: fork: %s",
             strerror(-rc));
    keeper_start_failed(k, NULL, why);
    sooner(at, k->start_after);
}

/* All first lives before the first successor. */
static void start_wanted(keeper_t *k, uint64_t now, uint64_t *at)
{
    const settings_t *set = &k->r->set;
    int successors = set->maxtasks || set->maxage || k->recycling;
    for (uint32_t round = 1; round <= 1 + (uint32_t)successors; round++)
        for (uint32_t i = 0; i < k->wanted; i++) {
            uint32_t come = crew_to_come(k, i);
            if (come < round && come < lives_wanted(k, i, now, at))
                start_life(k, i, at);
        }
}

/* --- look around -------------------------------------------------------- */

/*
** After a death: a wake-up may have died with its receiver, or with whoever
** was about to ring. Sleepers that nobody can find any more are woken (they
** look, and announce themselves again), one more if something is queued, and
** the parent unless it is known to be awake.
*/
static void revive(keeper_t *k)
{
    region_t *r = k->r;
    for (uint32_t i = 0; i < k->count; i++) {
        uint32_t slot = k->lives[i].slot;
        if (atomic_load(&r->slots[slot].idle_since) &&
            !(atomic_load(&r->idle[slot / 64]) & idle_bit(slot)))
            wake_slot(r, slot);
    }
    if (board_queued(r))
        wake_worker(r);
    if (atomic_load(&r->armed) != BELL_QUIET)
        os_ring(r->bell_fd);
    k->reaped = 0;
}

/* Everybody who sleeps looks at `closing`. */
static void wake_all(keeper_t *k)
{
    while (wake_worker(k->r))
        ;
    /* A ring that died with its ringer may have left a bell at 0. */
    for (uint32_t i = 0; i < k->count; i++)
        wake_slot(k->r, k->lives[i].slot);
}

static void sleep_until(keeper_t *k, uint64_t at)
{
    uint64_t tags[64];
    atomic_store(&k->r->wake_at, at);
    /* A worker that stored a deadline just before saw the old wake_at; one
    ** that stores it later kicks. So look once more. */
    sooner(&at, watch(k, os_now()));
    int n = os_epoll_wait(k->epoll, tags, 64, at == UINT64_MAX ? 0 : at);
    atomic_store(&k->r->wake_at, 0);
    for (int i = 0; i < n; i++)
        switch (tags[i] & 0xff) {
        case 'k':
            os_quiet(k->kick);
            break;
        case 'c':
            crew_quiet(k);
            break;
        case 'p':  /* the parent is gone, or executed another program */
            end(k, KEEPER_DONE);
        case 'w':
            crew_hung_up(k, (pid_t)(tags[i] >> 8));
            break;
        }
}

static int finished(keeper_t *k)
{
    return closing(k) && k->count == 0 && !board_queued(k->r);
}

static _Noreturn void loop(keeper_t *k)
{
    region_t *r = k->r;
    int was_closing = 0;
    for (;;) {
        crew_reap(k);
        note_ready(k);
        if (atomic_load(&r->terminating))
            end(k, KEEPER_DONE);
        uint64_t at = UINT64_MAX, now = os_now();
        obey_size(k, now, &at);
        obey_replace(k);
        recycle_seats(k);
        obey_cancels(k, now, &at);
        wake_dormant(k);
        start_wanted(k, now, &at);
        if (k->reaped)
            revive(k);
        if (closing(k) && !was_closing) {
            wake_all(k);
            was_closing = 1;
        }
        /* What tasks left running in the background may outlive the pool. */
        if (finished(k))
            leave(k, KEEPER_DONE);
        sleep_until(k, at);
    }
}

/* --- birth -------------------------------------------------------------- */

static int starved(outbox_t *o)
{
    /* The parent does not read and 16 GiB are full, or a test made the region
    ** small: wait, but not for ever, and not for a parent that is gone. */
    slot_t *s = o->o_slot;
    if (atomic_load(&o->o_region->terminating) ||
        getppid() != o->o_region->parent_pid)
        return -EPIPE;
    atomic_store(&s->starved, 1);
    wake_parent(o->o_region);
    if (atomic_load(&s->head) == o->o_seen)
        os_futex_wait(&s->starved, 1, os_now() + 10 * OS_MS);
    return 0;
}

static int open_descriptors(keeper_t *k)
{
    os_oom_open(&k->oom);
    k->children = os_signalfd_child();
    k->epoll = os_epoll();
    if (k->children < 0 || k->epoll < 0)
        return -1;
    os_epoll_add(k->epoll, k->children, 'c');
    os_epoll_add(k->epoll, k->kick, 'k');
    os_epoll_add(k->epoll, k->sock, 'p');
    if (k->parent_pidfd >= 0)
        os_epoll_add(k->epoll, k->parent_pidfd, 'p');
    return 0;
}

_Noreturn void keeper_main(region_t *r, const work_t *work, int sock,
                           int parent_pidfd)
{
    static keeper_t k;
    memset(&k, 0, sizeof k);    /* in a task's pool: another keeper's copy */
    FAULT_POINT("keeper.start");
    os_own_group();
    os_adopt_orphans();
    os_fresh_signals();
    os_title(r->set.name, "keeper");
    k.r = r;
    k.work = work;
    k.pid = getpid();
    k.sock = sock;
    k.parent_pidfd = parent_pidfd;
    k.kick = r->kick_fd;
    if (open_descriptors(&k) < 0)
        _exit(1);
    outbox_open(&k.out, r, r->slots_max, starved);
    worker_prepare();
    if (work->settle)
        k.work = work->settle(work->context);
    atomic_store(&r->state, KEEPER_RUNNING);
    loop(&k);
}
