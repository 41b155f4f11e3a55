/*
** crew.c - the keeper's processes: fork, kill, reap, judge. Keeper only.
**
** Invariants: every signal goes to a process that is not yet reaped, so its
** pid is its own; what a dead worker left on the board is read only after it
** was reaped, since a kill that was sent is not yet a death.
**
** The outcome of a task comes from the board, never from an exit status: a
** worker that ended with status 0 under a running task has lost it.
*/
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "board.h"
#include "fault.h"
#include "keeper.h"
#include "os.h"
#include "wake.h"

#define REQUEUES_MAX 2  /* deaths before a task begins, until it is lost */

/* --- who there is ------------------------------------------------------- */

static uint32_t *place_of(keeper_t *k, uint32_t slot, uint32_t generation)
{
    return &k->seats[slot].life[generation % LIVES_MAX];
}

life_t *crew_find(keeper_t *k, uint32_t slot, uint32_t generation)
{
    uint32_t place = *place_of(k, slot, generation);
    if (!place || k->lives[place - 1].generation != generation)
        return NULL;
    return &k->lives[place - 1];
}

life_t *crew_active(keeper_t *k, uint32_t slot)
{
    return crew_find(k, slot, atomic_load(&k->r->slots[slot].turn));
}

static uint64_t life_word(const keeper_t *k, const life_t *l)
{
    return atomic_load(region_life(k->r, l->slot, l->generation));
}

enum phase crew_phase(const keeper_t *k, const life_t *l)
{
    uint64_t word = life_word(k, l);
    return LIFE_GENERATION(word) == l->generation ? LIFE_PHASE(word)
                                                  : PHASE_NONE;
}

enum reason crew_leaving(const keeper_t *k, const life_t *l)
{
    return crew_phase(k, l) == PHASE_LEAVING ? LIFE_REASON(life_word(k, l))
                                             : REASON_NONE;
}

uint32_t crew_to_come(keeper_t *k, uint32_t slot)
{
    uint32_t turn = atomic_load(&k->r->slots[slot].turn), n = 0;
    for (uint32_t i = 0; i < LIVES_MAX; i++)
        n += crew_find(k, slot, turn + i) != NULL;
    return n;
}

static life_t *find_pid(keeper_t *k, pid_t pid)
{
    for (uint32_t i = 0; i < k->count; i++)
        if (k->lives[i].pid == pid)
            return &k->lives[i];
    return NULL;
}

static void add_life(keeper_t *k, life_t *l)
{
    *place_of(k, l->slot, l->generation) = ++k->count;
}

/* The last one takes its index. */
static void remove_life(keeper_t *k, life_t *l)
{
    const life_t *last = &k->lives[--k->count];
    os_close(&l->pipe);
    *place_of(k, l->slot, l->generation) = 0;
    if (l == last)
        return;
    *l = *last;
    *place_of(k, l->slot, l->generation) = (uint32_t)(l - k->lives) + 1;
}

/* --- events ------------------------------------------------------------- */

static void log_event(const keeper_t *k, const record_event_t *e)
{
    char detail[96] = "";
    if (e->event == EVENT_EXIT && e->reason < REASONS_COUNT)
        snprintf(detail, sizeof detail, " (%s%s%s)", reason_names[e->reason],
                 e->signal ? ", " : "", e->signal ? strsignal(e->signal) : "");
    else if (e->event == EVENT_RETRY || e->event == EVENT_LOST)
        snprintf(detail, sizeof detail, " (attempt %u)", e->attempt);
    dprintf(2, "procpool %s: %.3f %s worker %u pid %d generation %u%s\n",
            k->r->set.name, (double)e->time / 1e9, event_names[e->event],
            e->slot + 1, (int)e->pid, e->generation + 1, detail);
}

void crew_event(keeper_t *k, enum event event, const life_t *l,
                enum reason reason, int status, uint32_t attempt)
{
    if (!k->r->set.events && !k->r->set.log)
        return;
    record_event_t e;
    memset(&e, 0, sizeof e);
    e.time = os_now();
    e.event = event;
    e.slot = l->slot;
    e.generation = l->generation;
    e.reason = reason;
    e.pid = (int32_t)l->pid;
    e.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    e.exitcode = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    e.attempt = attempt;
    if (k->r->set.log)
        log_event(k, &e);
    if (!k->r->set.events || outbox_begin(&k->out) < 0)
        return;
    const complaint_t *c = region_complaint(k->r, l->slot, l->generation);
    size_t extra = event == EVENT_FAILED ? c->size : 0;
    if (extra > sizeof c->bytes)
        extra = 0;
    e.complaint = extra ? c->kind : COMPLAINT_NONE;
    buffer_t *b = &k->out.record;
    if (b->room < sizeof e + extra && b->grow(b, sizeof e + extra) < 0)
        return;
    memcpy(b->data, &e, sizeof e);
    memcpy(b->data + sizeof e, c->bytes, extra);
    b->used = sizeof e + extra;
    outbox_end(&k->out, RECORD_EVENT);
    outbox_publish(&k->out, 0);
    wake_parent(k->r);
}

/* --- start -------------------------------------------------------------- */

/* The lowest generation from the current turn on that has no process. A start
** that failed has not used its number up. */
static uint32_t next_generation(keeper_t *k, uint32_t slot)
{
    uint32_t generation = atomic_load(&k->r->slots[slot].turn);
    while (crew_find(k, slot, generation))
        generation++;
    return generation;
}

int crew_has_room(keeper_t *k, uint32_t slot)
{
    return *place_of(k, slot, next_generation(k, slot)) == 0;
}

static life_t *new_life(keeper_t *k)
{
    if (k->count == k->room) {
        uint32_t room = k->room ? k->room * 2 : 8;  /* few: see add_seats */
        life_t *more = keeper_grow(k->lives, k->room * sizeof *more,
                                   room * sizeof *more);
        if (!more)
            return NULL;
        k->lives = more;
        k->room = room;
    }
    life_t *l = &k->lives[k->count];
    memset(l, 0, sizeof *l);
    l->pipe = -1;
    l->stop_reason = l->kill_reason = REASON_NONE;
    return l;
}

/* In the child: what only the keeper may hold. The ends of other workers'
** pipes are close-on-exec and harmless. */
static void leave_keeper(keeper_t *k, int pipe_end)
{
    os_close(&k->epoll);
    os_close(&k->children);
    os_close(&k->sock);
    os_close(&k->parent_pidfd);
    os_close(&k->oom.fd);
    os_close(&pipe_end);
    for (uint32_t i = 0; i < k->count; i++) {
        int pipe = k->lives[i].pipe;    /* nothing written to: no page copied */
        os_close(&pipe);
    }
}

int crew_start(keeper_t *k, uint32_t slot)
{
    life_t *l = new_life(k);
    int ends[2];
    int rc = l ? os_pipe(ends) : -ENOMEM;
    if (rc < 0)
        return rc;
    l->slot = slot;
    l->generation = next_generation(k, slot);
    l->forked_at = os_now();
    atomic_store(region_life(k->r, slot, l->generation),
                 LIFE_WORD(l->generation, REASON_NONE, PHASE_STARTING));
    region_complaint(k->r, slot, l->generation)->kind = COMPLAINT_NONE;
    rc = FAULT_ERRNO("keeper.fork");
    os_oom_volunteer(&k->oom);
    pid_t pid = rc ? (errno = -rc, -1) : fork();
    if (pid == 0) {
        leave_keeper(k, ends[0]);
        worker_main(k->r, slot, l->generation, k->work, k->pid);
    }
    int error = errno;
    os_oom_restore(&k->oom);
    os_close(&ends[1]);
    if (pid < 0) {
        os_close(&ends[0]);
        return -error;
    }
    FAULT_POINT("keeper.forked");
    setpgid(pid, pid);  /* as the child does: whoever comes first */
    l->pid = pid;
    l->pipe = ends[0];
    os_epoll_add_edge(k->epoll, l->pipe, (uint64_t)pid << 8 | 'w');
    add_life(k, l);
    crew_event(k, EVENT_START, l, REASON_NONE, 0, 0);
    return 0;
}

/* --- judging a dead worker's cell --------------------------------------- */

static void put_verdict(keeper_t *k, const record_verdict_t *v)
{
    if (outbox_put(&k->out, RECORD_VERDICT, v, sizeof *v) < 0)
        return;
    outbox_publish(&k->out, 0);
}

/* The task's outcome is that its worker died; the rest goes back. When it is
** the cell's last task, the cell is the parent's as soon as that is told. */
static void end_task(keeper_t *k, cell_t *cell, const record_verdict_t *v)
{
    int last = v->item + 1 >= cell->items;
    atomic_store(&cell->requeues, 0);
    atomic_store(&cell->attempt, 1);
    put_verdict(k, v);
    FAULT_POINT("keeper.verdict");
    if (!last)
        board_put_back(k->r, cell, v->item + 1);
}

static enum verdict verdict_of(const life_t *l)
{
    switch (l->kill_reason) {
    case REASON_TIMELIMIT: return VERDICT_TIMELIMIT;
    case REASON_MEMORY: return VERDICT_MEMORY;
    case REASON_CANCEL: return VERDICT_CANCELLED;
    default: return VERDICT_LOST;
    }
}

static enum event event_of(enum verdict verdict)
{
    return verdict == VERDICT_TIMELIMIT ? EVENT_TIMELIMIT
           : verdict == VERDICT_MEMORY  ? EVENT_MEMORY
                                        : EVENT_LOST;
}

/* The dead worker's running task gets its outcome, or another attempt. */
static void judge_begun(keeper_t *k, const life_t *l, cell_t *cell,
                        record_verdict_t *v)
{
    uint32_t attempt = atomic_load(&cell->attempt);
    if (v->item != atomic_load(&cell->first))
        attempt = 1;
    v->attempt = attempt;
    v->verdict = verdict_of(l);
    int again = v->verdict == VERDICT_LOST && attempt <= cell->retries &&
                !atomic_load(&cell->cancel);
    crew_event(k, again ? EVENT_RETRY : event_of(v->verdict), l, REASON_NONE,
               0, attempt);
    if (!again) {
        end_task(k, cell, v);
        return;
    }
    atomic_store(&cell->requeues, 0);
    atomic_store(&cell->attempt, attempt + 1);
    atomic_fetch_add(&k->r->retried, 1);
    board_put_back(k->r, cell, v->item);
}

/* It died before the task began: that is nobody's fault, so it goes back
** unseen; but what crashes a worker twice more in decoding is to blame, and
** that death counts as one under the task. */
static void judge_unbegun(keeper_t *k, const life_t *l, cell_t *cell,
                          record_verdict_t *v)
{
    if (v->item != atomic_load(&cell->first)) {
        atomic_store(&cell->requeues, 0);
        atomic_store(&cell->attempt, 1);
    }
    if (atomic_fetch_add(&cell->requeues, 1) < REQUEUES_MAX) {
        board_put_back(k->r, cell, v->item);
        return;
    }
    v->phase = DEATH_BEFORE_TASK;
    judge_begun(k, l, cell, v);
}

static enum died death_of(const life_t *l, int status)
{
    if (l->hung_up_at && l->kill_reason == REASON_CRASH)
        return DEATH_EXECUTED;
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL &&
        l->kill_reason == REASON_NONE && os_oom_killed())
        return DEATH_MEMORY;
    return DEATH_UNDER_TASK;
}

/* Called for a reaped life that still had its turn. */
static void judge(keeper_t *k, const life_t *l, int status)
{
    region_t *r = k->r;
    slot_t *s = &r->slots[l->slot];
    uint32_t next;
    cell_t *cell = board_owned(r, l->slot, l->generation, &next);
    if (!cell) {
        board_mend(r, l->slot);
        return;
    }
    int begun = atomic_load(&s->begun) == cell->position + 1;
    uint64_t run = atomic_load(&s->run);
    record_verdict_t v;
    memset(&v, 0, sizeof v);
    v.cell = (uint64_t)(cell - region_cell(r, 0));
    v.position = cell->position;
    v.item = next;
    v.slot = l->slot;
    v.pid = (int32_t)l->pid;
    v.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    v.exitcode = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    v.phase = death_of(l, status);
    if (begun && RUN_STATE(run) != RUN_IDLE && RUN_ITEM(run) == next)
        judge_begun(k, l, cell, &v);
    else
        judge_unbegun(k, l, cell, &v);
    wake_parent(r);
}

/* --- reaping ------------------------------------------------------------ */

static enum reason exit_reason(const keeper_t *k, const life_t *l,
                               enum phase phase)
{
    if (phase == PHASE_LEAVING)
        return crew_leaving(k, l);
    if (l->kill_reason != REASON_NONE)
        return l->kill_reason;
    return REASON_CRASH;
}

/* A dead life's traces in its slot are taken away. */
static void clear_slot(keeper_t *k, const life_t *l)
{
    region_t *r = k->r;
    slot_t *s = &r->slots[l->slot];
    wake_forget(r, l->slot);
    atomic_store(&s->bell, 0);
    atomic_store(&s->starved, 0);
    atomic_store(&s->told, atomic_load(&s->tail));
    atomic_store(&s->deadline, 0);
    atomic_store(&s->idle_since, 0);
    atomic_store(&s->pid, 0);
    /* Its task must not look like the next life's. */
    uint64_t run = atomic_load(&s->run);
    atomic_store(&s->run, RUN_WORD(RUN_IDLE, 0, RUN_SERIAL(run)));
}

/* A life that was ready is over. */
static void bury_worker(keeper_t *k, life_t *l, enum phase phase, int status)
{
    region_t *r = k->r;
    slot_t *s = &r->slots[l->slot];
    enum reason reason = exit_reason(k, l, phase);
    keeper_note_ready(k, l);  /* a short life may begin and end unseen */
    /* Before the parent hears of its task: whoever sees the outcome then sees
    ** the count. */
    if (reason < REASON_CLOSE)
        atomic_fetch_add(&r->recycled[reason], 1);
    if (atomic_load(&s->turn) == l->generation) {
        if (phase != PHASE_LEAVING)
            judge(k, l, status);
        clear_slot(k, l);
        pass_turn(s, l->generation + 1);
    } else /* It may have died just before it woke the next. */
        os_futex_wake(&s->turn, LIVES_MAX);
    if (reason == REASON_IDLE)
        keeper_lull(k, l->slot, atomic_load(&s->turn));
    crew_event(k, EVENT_EXIT, l, reason, status, 0);
}

/* Why a start failed, to be told; "": its complaint says; NULL: it did not
** fail, we ended it. */
static const char *failure_of(const life_t *l, enum phase phase, int status,
                              char *text, size_t room)
{
    if (l->kill_reason == REASON_TIMELIMIT)
        return "initializer took too long";
    if (l->kill_reason == REASON_CRASH)
        return "initializer executed another program";
    if (l->kill_reason != REASON_NONE)
        return NULL;
    if (WIFSIGNALED(status))
        snprintf(text, room, "initializer died (signal %d, %s)",
                 WTERMSIG(status), strsignal(WTERMSIG(status)));
    else if (phase == PHASE_STARTING)
        snprintf(text, room, "initializer exited with status %d",
                 WEXITSTATUS(status));
    return text;
}

/*
** A life that never was ready is over. Its number is not used up, unless it
** had the turn and the next life waits for that already: the slot may not be
** wanted any more (the pool closes or shrinks), so nobody would start this
** one again, and the next would wait for ever.
*/
static void bury_failed_start(keeper_t *k, const life_t *l)
{
    slot_t *s = &k->r->slots[l->slot];
    if (atomic_load(&s->turn) == l->generation &&
        crew_find(k, l->slot, l->generation + 1))
        pass_turn(s, l->generation + 1);
}

static void bury(keeper_t *k, life_t *l, int status)
{
    char text[96] = "";
    enum phase phase = crew_phase(k, l);
    int started = phase != PHASE_STARTING && phase != PHASE_FAILED;
    if (started)
        bury_worker(k, l, phase, status);
    else
        bury_failed_start(k, l);
    life_t dead = *l;
    remove_life(k, l);
    const char *why = failure_of(&dead, phase, status, text, sizeof text);
    if (!started && why)
        keeper_start_failed(k, &dead, why);
}

void crew_quiet(keeper_t *k)
{
    char buffer[1024];
    while (read(k->children, buffer, sizeof buffer) > 0)
        ;
}

/* A stopped worker must not be chosen to be woken. As after a death, its bell
** is rung and another woken if there is work; it hears the bell when it goes
** on, and announces itself again. */
static void pass_over(keeper_t *k, const life_t *l)
{
    if (atomic_load(&k->r->slots[l->slot].turn) == l->generation)
        wake_forget(k->r, l->slot);
}

void crew_reap(keeper_t *k)
{
    int status;
    pid_t pid;
    FAULT_POINT("reap");
    while ((pid = waitpid(-1, &status, WNOHANG | WUNTRACED)) > 0) {
        life_t *l = find_pid(k, pid);
        k->reaped++;
        if (l && WIFSTOPPED(status))
            pass_over(k, l);
        else if (l)
            bury(k, l, status);
        /* Otherwise an orphan that a task left behind: reaped, no more. */
    }
}

void crew_hung_up(keeper_t *k, pid_t pid)
{
    life_t *l = find_pid(k, pid);
    if (l)
        l->hung_up_at = os_now();
}

/* --- killing ------------------------------------------------------------ */

void crew_kill(life_t *l, enum reason reason)
{
    if (l->kill_reason != REASON_NONE)
        return;
    l->kill_reason = reason;
    FAULT_POINT("kill.pre");
    kill(-l->pid, SIGKILL);
    kill(l->pid, SIGKILL);  /* should it have left its group */
}

/* Reaps what has died of what was killed; 1: there are children left. */
static int reap_killed(keeper_t *k)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        life_t *l = find_pid(k, pid);
        if (!l)
            continue;
        crew_event(k, EVENT_EXIT, l, exit_reason(k, l, crew_phase(k, l)),
                   status, 0);
        remove_life(k, l);
    }
    return pid == 0;
}

/*
** What tasks left behind has become ours, by subreaping; it falls in layers,
** as each layer's children become ours when it dies. No wait here is without
** an end: a process in uninterruptible sleep does not die, and one that
** changed its user cannot be killed.
*/
void crew_kill_all(keeper_t *k)
{
    pid_t pids[256];
    uint64_t now = os_now(), until = now + OS_SECOND / 2;
    for (uint32_t i = 0; i < k->count; i++)
        crew_kill(&k->lives[i], REASON_CLOSE);
    while (reap_killed(k) && (now = os_now()) < until) {
        int count = os_children(pids, 256);
        for (int i = 0; i < count; i++)
            kill(pids[i], SIGKILL);
        uint64_t next = now + 20 * OS_MS;
        crew_quiet(k);
        if (!reap_killed(k))
            break;
        os_wait_readable(&k->children, 1, next < until ? next : until);
    }
}
