/*
** keeper_test.c - the engine with real processes: workers start, run, are
** replaced, die in every way, and no task is lost or told twice. Tasks are
** those of support/rig.h. limit: 300 s
*/
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/rig.h"

#define MS OS_MS
#define STORM 20 /* kills at least */

static rig_t *start(uint32_t processes)
{
    rig_t *g = rig_new(processes);
    rig_start(g);
    return g;
}

/* Waits until all workers are ready and asleep. */
static void settle(rig_t *g, uint32_t processes)
{
    RIG_SOON(g, rig_ready(g) == processes, 5000);
    for (uint32_t i = 0; i < processes; i++)
        RIG_SOON(g, rig_idle(g, i), 5000);
}

static void check_kind(const rig_t *g, uint32_t first, uint32_t n,
                       enum outcome_kind kind)
{
    for (uint32_t i = first; i < first + n; i++) {
        if (g->seen[i].kind != kind)
            printf("# task %u: attempt %u signal %u phase %u\n", i,
                   g->seen[i].attempt, g->seen[i].signal, g->seen[i].phase);
        CHECK_EQ(g->seen[i].kind, kind);
    }
}

/* --- tasks run ---------------------------------------------------------- */

static void test_results(void)
{
    rig_t *g = start(3);
    for (uint64_t i = 0; i < 500; i++)
        rig_post(g, OP_SQUARE, i, 0, 1);
    rig_finish(g, 10000);
    for (uint64_t i = 0; i < 500; i++) {
        CHECK_EQ(g->seen[i].kind, OUTCOME_VALUE);
        CHECK_EQ(g->seen[i].value, i * i);
    }
    rig_close(g);
}

static void test_chunks(void)
{
    rig_t *g = start(3);
    for (uint32_t n = 1; n < 700; n += 1 + n / 3) {
        rig_chunk(g, OP_SQUARE, n, 0, n);
        rig_chunk(g, OP_ERROR, 0, 0, 1);
        rig_chunk(g, OP_REFUSE, 0, 0, 2);
    }
    rig_finish(g, 10000);
    rig_close(g);
}

static void test_one_worker_in_order(void)
{
    rig_t *g = start(1);
    g->set.events = 0;
    rig_chunk(g, OP_STUBBORN, 1, 0, 20);
    uint32_t last = rig_post(g, OP_SLEEP, 0, 0, 50) + 49;
    rig_finish(g, 10000);
    /* Numbers are given in order of submission; so are outcomes here. */
    for (uint32_t id = 0; id <= last; id++) {
        CHECK_EQ(g->seen[id].value, id + 1);
        CHECK(id == 0 || g->seen[id].at >= g->seen[id - 1].at);
    }
    rig_close(g);
}

/* Results of a MiB through rings of 64 KiB to 8 MiB, the parent reading late;
** argument blocks come and go. */
static void test_big_results(void)
{
    setenv("PROCPOOL_REGION", "67108864", 1);
    rig_t *g = start(2);
    CHECK(g->pool.r->outbox_size <= 16 << 20);
    uint32_t first = rig_post(g, OP_BIG, 1 << 20, 0, 60);
    rig_chunk(g, OP_BIG, 300000, 0, 60);
    RIG_SOON(g, 1, 1);
    rig_finish(g, 20000);
    check_kind(g, first, 120, OUTCOME_VALUE);
    CHECK_EQ(g->pool.heap.h_used, g->pool.funcs[g->func].block.size);
    rig_close(g);
}

/* More cells than the board holds: posting waits for outcomes. */
static void test_full_board(void)
{
    setenv("PROCPOOL_REGION", "16777216", 1);
    rig_t *g = start(2);
    CHECK_EQ(g->pool.r->segment_count, 16);
    rig_post(g, OP_SQUARE, 3, 0, 20000);
    rig_finish(g, 20000);
    rig_close(g);
}

/* --- recycling ---------------------------------------------------------- */

/* What arithmetic says of n workers with a limit of k tasks each: every life
** but the last of each slot ran exactly k. */
static void check_lives(const rig_t *g, uint32_t limit, uint32_t tasks)
{
    const ledger_t *l = g->ledger;
    uint32_t lives = atomic_load(&l->lives), sum = 0, partial = 0;
    int leave_early = g->set.idletimeout != 0;
    CHECK(lives < RIG_LIVES);
    for (uint32_t i = 1; i <= lives; i++) {
        CHECK(l->life[i].tasks <= limit);
        sum += l->life[i].tasks;
        partial += l->life[i].tasks > 0 && l->life[i].tasks < limit;
    }
    CHECK_EQ(sum, tasks);
    CHECK(leave_early || partial <= g->set.processes);
}

static void run_limited(uint32_t processes, uint32_t limit, uint32_t tasks,
                        uint32_t chunk)
{
    rig_t *g = rig_new(processes);
    g->set.maxtasks = limit;
    rig_start(g);
    for (uint32_t n = 0; n < tasks; n += chunk)
        rig_chunk(g, OP_SQUARE, n, 0,
                  tasks - n < chunk ? tasks - n : chunk);
    rig_finish(g, 20000);
    check_lives(g, limit, tasks);
    for (uint32_t i = 0; i < tasks; i++)
        CHECK_EQ(atomic_load(&g->ledger->started[i]), 1);
    rig_close(g);
}

static void test_limit_is_exact(void)
{
    static const uint32_t plans[][4] = {
        { 3, 10, 100, 1 }, { 3, 10, 100, 100 }, { 3, 10, 100, 7 },
        { 1, 2, 5, 1 }, { 1, 2, 6, 6 }, { 2, 2, 8, 1 }, { 2, 2, 8, 8 },
        { 3, 1, 300, 1 }, { 3, 1, 300, 50 }, { 2, 17, 400, 9 },
        { 1, 1, 30, 30 },
    };
    for (size_t i = 0; i < sizeof plans / sizeof *plans; i++)
        run_limited(plans[i][0], plans[i][1], plans[i][2], plans[i][3]);
}

/* Closed with a backlog and a limit of 1 (bpo-10332). */
static void test_close_with_backlog(void)
{
    for (int i = 0; i < 10; i++) {
        rig_t *g = rig_new(3);
        g->set.maxtasks = 1;
        rig_start(g);
        rig_post(g, OP_SQUARE, 3, 0, 3);
        rig_chunk(g, OP_SQUARE, 3, 0, 20);
        rig_close(g);   /* waits for all of them */
    }
}

/* The successor has started before its predecessor leaves: an initializer of
** 300 ms is never waited for, whether the limit is small or large. */
static void ahead(uint32_t limit, uint32_t ms, uint32_t lives)
{
    rig_t *g = rig_new(1);
    g->set.maxtasks = limit;
    g->init_ms = 300;
    rig_start(g);
    rig_post(g, OP_SQUARE, 0, 0, 1);
    rig_finish(g, 5000);
    uint64_t begun = os_now();
    rig_post(g, OP_STUBBORN, ms, 0, limit * lives);
    rig_finish(g, 20000);
    uint64_t took = (os_now() - begun) / MS;
    CHECK(took < check_slow((uint64_t)(limit * lives) * (ms + 1) + 250));
    CHECK(atomic_load(&g->ledger->inits) > lives);
    rig_close(g);
}

static void test_successor_ahead(void)
{
    ahead(10, 50, 4);
}

static void test_successor_ahead_long(void)
{
    ahead(40, 20, 3);
}

/* A successor that is ready and waits runs nothing while its predecessor is
** at work, and takes over within a moment. */
static void test_successor_waits(void)
{
    rig_t *g = rig_new(1);
    g->set.maxtasks = 1;
    rig_start(g);
    rig_post(g, OP_HOLD, 0, 0, 1);
    rig_post(g, OP_SQUARE, 5, 0, 1);
    slot_t *s = &g->pool.r->slots[0];
    RIG_SOON(g, atomic_load(&g->ledger->inits) == 2, 5000);
    uint32_t turn = atomic_load(&s->turn);
    RIG_SOON(g, LIFE_PHASE(atomic_load(&s->life[(turn + 1) % LIVES_MAX])) ==
                    PHASE_READY, 5000);
    CHECK_EQ(g->pool.unfinished, 2);
    rig_open_gate(g, 0);
    rig_finish(g, 1000);
    CHECK(atomic_load(&g->ledger->pid[0]) != atomic_load(&g->ledger->pid[1]));
    rig_close(g);
}

/* The waiting successor dies, or its predecessor does. */
static void kill_pair(int successor)
{
    rig_t *g = rig_new(1);
    g->set.maxtasks = 2;
    rig_start(g);
    rig_post(g, OP_HOLD, 0, 0, 1);
    rig_post(g, OP_SQUARE, 5, 0, 9);
    RIG_SOON(g, g->events[EVENT_READY] == 2, 5000);
    const ledger_t *l = g->ledger;
    int second = l->life[1].generation < l->life[2].generation ? 2 : 1;
    kill(l->life[successor ? second : 3 - second].pid, SIGKILL);
    RIG_SOON(g, g->events[EVENT_READY] >= 3, 5000);
    rig_open_gate(g, 0);
    rig_finish(g, 2000);
    CHECK_EQ(g->seen[0].kind, successor ? OUTCOME_VALUE : OUTCOME_LOST);
    check_kind(g, 1, 9, OUTCOME_VALUE);
    RIG_SOON(g, rig_recycled(g, REASON_CRASH) == 1, 1000);
    rig_close(g);
}

static void test_successor_dies(void)
{
    kill_pair(1);
}

static void test_predecessor_dies(void)
{
    kill_pair(0);
}

/* Finalizers take long: lives of one slot pile up, no more than there is
** room for, and each is told to go within its grace. */
static void test_slow_finalizers(void)
{
    rig_t *g = rig_new(1);
    g->set.maxtasks = 1;
    g->set.has_finalizer = 1;
    g->set.grace = 300 * MS;
    g->stop_ms = 10000;
    rig_start(g);
    rig_post(g, OP_SQUARE, 5, 0, 12);
    rig_finish(g, 10000);
    check_lives(g, 1, 12);
    rig_close(g);
}

static void test_finalizers(void)
{
    rig_t *g = rig_new(3);
    g->set.maxtasks = 10;
    g->set.has_finalizer = 1;
    rig_start(g);
    rig_post(g, OP_SQUARE, 5, 0, 100);
    rig_finish(g, 5000);
    pool_close(&g->pool);
    pool_join(&g->pool, 0);
    /* Every life that began ended in order. */
    CHECK_EQ(atomic_load(&g->ledger->stops), atomic_load(&g->ledger->inits));
    rig_close(g);
}

static void test_age(void)
{
    rig_t *g = rig_new(2);
    g->set.maxage = 150 * MS;
    rig_start(g);
    RIG_SOON(g, rig_recycled(g, REASON_AGE) >= 4, 5000);
    rig_post(g, OP_SLEEP, 20, 0, 40);
    rig_finish(g, 5000);
    rig_probe(g);
    rig_close(g);
}

static void test_memory(void)
{
    if (CHECK_CHECKER)
        check_skip("a checker has memory of its own");
    rig_t *g = rig_new(1);
    g->set.maxmemory = 12 << 20;
    rig_start(g);
    rig_post(g, OP_MEMORY, 0, 0, 40);
    rig_finish(g, 10000);
    uint64_t left = rig_recycled(g, REASON_MEMORY);
    CHECK(left >= 3 && left <= 5);
    check_kind(g, 0, 40, OUTCOME_VALUE);
    rig_close(g);
}

static void test_recycle_asked(void)
{
    rig_t *g = start(2);
    rig_post(g, OP_RECYCLE, 0, 0, 6);
    rig_finish(g, 5000);
    RIG_SOON(g, rig_recycled(g, REASON_REQUEST) == 6, 2000);
    rig_close(g);
}

static void test_recycle_one(void)
{
    rig_t *g = start(3);
    settle(g, 3);
    pid_t before[3] = { rig_pid(g, 0), rig_pid(g, 1), rig_pid(g, 2) };
    pool_recycle(&g->pool, 1);
    RIG_SOON(g, rig_recycled(g, REASON_REQUEST) == 1, 2000);
    settle(g, 3);
    rig_post(g, OP_SLEEP, 5, 0, 20);
    rig_finish(g, 5000);
    /* One, not one after the other for ever. */
    CHECK_EQ(rig_recycled(g, REASON_REQUEST), 1);
    CHECK_EQ(rig_pid(g, 0), before[0]);
    CHECK(rig_pid(g, 1) != before[1]);
    CHECK_EQ(rig_pid(g, 2), before[2]);
    rig_close(g);
}

static void test_recycle_all(void)
{
    rig_t *g = rig_new(4);
    g->set.events = 0;      /* nobody but the recycling makes lives be heard */
    rig_start(g);
    settle(g, 4);
    pid_t before[4];
    for (uint32_t i = 0; i < 4; i++)
        before[i] = rig_pid(g, i);
    for (int round = 1; round <= 3; round++) {
        rig_post(g, OP_SLEEP, 3, 0, 100);
        pool_recycle(&g->pool, UINT32_MAX);
        RIG_SOON(g, rig_recycled(g, REASON_REQUEST) == 4 * (uint64_t)round,
                 5000);
    }
    rig_finish(g, 5000);
    settle(g, 4);
    for (uint32_t i = 0; i < 4; i++)
        CHECK(rig_pid(g, i) != before[i]);
    CHECK_EQ(rig_recycled(g, REASON_REQUEST), 12);
    CHECK(atomic_load(&g->ledger->most) <= 4);
    rig_close(g);
}

/* Asked to be replaced just as it leaves for another reason. */
static void test_recycle_races_limit(void)
{
    rig_t *g = rig_new(2);
    g->set.maxtasks = 5;
    rig_start(g);
    for (int i = 0; i < 50; i++) {
        rig_post(g, OP_SQUARE, 1, 0, 7);
        pool_recycle(&g->pool, (uint32_t)i % 2);
        rig_take(g);
    }
    rig_finish(g, 5000);
    rig_probe(g);
    /* It comes to rest. */
    uint64_t lives = 0;
    RIG_SOON(g, rig_ready(g) == 2, 5000);
    for (int i = 0; i < 100; i++) {
        rig_take(g);
        if (lives != g->events[EVENT_START]) {
            lives = g->events[EVENT_START];
            i = 0;
        }
        check_nap();
    }
    rig_close(g);
}

/* --- size --------------------------------------------------------------- */

static void test_resize(void)
{
    rig_t *g = start(2);
    settle(g, 2);
    rig_post(g, OP_SLEEP, 2, 0, 200);
    pool_resize(&g->pool, 6);
    RIG_SOON(g, rig_ready(g) == 6, 5000);
    pool_resize(&g->pool, 1);
    RIG_SOON(g, rig_ready(g) == 1, 5000);
    rig_finish(g, 5000);
    RIG_SOON(g, rig_recycled(g, REASON_RESIZE) == 5, 2000);
    pool_resize(&g->pool, 3);
    RIG_SOON(g, rig_ready(g) == 3, 5000);
    rig_post(g, OP_HOLD, 0, 0, 3);
    RIG_SOON(g, atomic_load(&g->ledger->running) == 3, 5000);
    pool_resize(&g->pool, 1);   /* busy ones finish their task first */
    rig_open_gate(g, 0);
    rig_finish(g, 5000);
    RIG_SOON(g, rig_ready(g) == 1, 5000);
    rig_probe(g);
    rig_close(g);
}

/* A worker told to go in the middle of a chunk leaves the rest to others who
** sleep; nobody waits for its death. */
static void test_rest_is_taken_over(void)
{
    rig_t *g = rig_new(2);
    g->set.has_finalizer = 1;
    g->set.grace = 3 * OS_SECOND;
    g->stop_ms = 1000;
    g->init_ms = 0;
    rig_start(g);
    settle(g, 2);
    job_t jobs[20];
    for (int i = 0; i < 20; i++)
        jobs[i] = (job_t){ i == 0 ? OP_RECYCLE : OP_SQUARE, 0, 3, 0 };
    g->init_ms = 0;
    uint64_t begun = check_now_ms();
    rig_cell(g, jobs, 20);
    rig_finish(g, 1500);
    CHECK(check_now_ms() < begun + check_slow(500));
    rig_close(g);
}

/* What it has done until then is told, too, though no life of its slot has
** anything more to say. */
static void test_leaver_tells(void)
{
    rig_t *g = start(2);
    for (uint32_t leaves = 0; leaves < 6; leaves++) {
        settle(g, 2);
        job_t jobs[8];
        for (uint32_t i = 0; i < 8; i++)
            jobs[i] = (job_t){ i == leaves ? OP_RECYCLE : OP_SQUARE, 0, 3, 0 };
        rig_cell(g, jobs, 8);
        rig_finish(g, 1000);
    }
    rig_close(g);
}

static void test_idle_workers_leave(void)
{
    rig_t *g = rig_new(4);
    g->set.minprocesses = 2;
    g->set.idletimeout = 50 * MS;
    rig_start(g);
    RIG_SOON(g, rig_recycled(g, REASON_IDLE) == 2, 2000);
    for (int i = 0; i < 500; i++)
        check_nap();    /* and nobody else does */
    CHECK_EQ(rig_ready(g), 2);
    CHECK_EQ(rig_recycled(g, REASON_IDLE), 2);
    /* They are started again on demand. */
    rig_post(g, OP_HOLD, 0, 0, 4);
    RIG_SOON(g, atomic_load(&g->ledger->running) == 4, 1000);
    rig_open_gate(g, 0);
    rig_finish(g, 5000);
    /* Four, if none of the two left just before the last task was queued, and
    ** came back for it. */
    RIG_SOON(g, rig_ready(g) == 2 && rig_recycled(g, REASON_IDLE) >= 4 &&
                    rig_recycled(g, REASON_IDLE) ==
                        atomic_load(&g->ledger->lives) - 2, 2000);
    rig_close(g);
}

/* All of them, with successors ahead: nothing comes back by itself. */
static void test_idle_to_none(void)
{
    rig_t *g = rig_new(3);
    g->set.minprocesses = 0;
    g->set.idletimeout = 40 * MS;
    g->set.maxtasks = 4;
    rig_start(g);
    for (int round = 0; round < 3; round++) {
        rig_post(g, OP_SQUARE, 3, 0, 10);
        rig_finish(g, 2000);
        RIG_SOON(g, atomic_load(&g->pool.r->asleep) == 3, 3000);
        RIG_SOON(g, rig_ready(g) == 0, 2000);
        uint64_t started = g->events[EVENT_START];
        for (int i = 0; i < 500; i++)
            check_nap();
        rig_take(g);
        CHECK_EQ(atomic_load(&g->pool.r->asleep), 3);
        CHECK_EQ(g->events[EVENT_START], started);
    }
    uint64_t begun = check_now_ms();
    rig_probe(g);
    CHECK(check_now_ms() < begun + check_slow(60));
    check_lives(g, 4, 31);
    rig_close(g);
}

static void test_resize_of_dormant(void)
{
    rig_t *g = rig_new(100);
    g->set.minprocesses = 0;
    g->set.idletimeout = 30 * MS;
    rig_start(g);
    RIG_SOON(g, atomic_load(&g->pool.r->asleep) == 100, 10000);
    pool_resize(&g->pool, 2);
    RIG_SOON(g, atomic_load(&g->pool.r->asleep) == 2, 2000);
    rig_post(g, OP_SQUARE, 3, 0, 10);
    rig_finish(g, 2000);
    rig_close(g);
}

/* --- death -------------------------------------------------------------- */

static void test_idle_worker_killed(void)
{
    rig_t *g = start(2);
    settle(g, 2);
    for (int i = 0; i < 10; i++) {
        pid_t pid = rig_pid(g, 0);
        uint64_t begun = check_now_ms();
        kill(pid, SIGKILL);
        RIG_SOON(g, rig_pid(g, 0) && rig_pid(g, 0) != pid, 400);
        CHECK(check_now_ms() < begun + check_slow(400));
        RIG_SOON(g, rig_idle(g, 0), 1000);
        rig_probe(g);
    }
    RIG_SOON(g, g->events[EVENT_EXIT] == 10, 1000);
    CHECK_EQ(rig_recycled(g, REASON_CRASH), 10);
    CHECK_EQ(g->events[EVENT_EXIT], 10);
    CHECK_EQ(g->last_event[EVENT_EXIT].signal, SIGKILL);
    CHECK_EQ(g->last_event[EVENT_EXIT].reason, REASON_CRASH);
    rig_close(g);
}

/* A task posted at the very moment the idle workers are killed. */
static void test_killed_while_posting(void)
{
    rig_t *g = start(2);
    settle(g, 2);
    g->retries = 5;
    for (int i = 0; i < 100; i++) {
        pid_t a = rig_pid(g, 0), b = rig_pid(g, 1);
        uint32_t id = rig_post(g, OP_SQUARE, 3, 0, 1);
        if (a)
            kill(a, SIGKILL);
        if (b && i % 2)
            kill(b, SIGKILL);
        rig_await(g, id, 1000);
        CHECK_EQ(g->seen[id].kind, OUTCOME_VALUE);
    }
    rig_close(g);
}

static void test_busy_worker_killed(void)
{
    rig_t *g = start(2);
    settle(g, 2);
    for (int i = 0; i < 5; i++) {
        uint32_t id = rig_post(g, OP_SLEEP, 60000, 0, 1);
        RIG_SOON(g, atomic_load(&g->ledger->started[id]), 1000);
        uint64_t begun = os_now();
        kill(atomic_load(&g->ledger->pid[id]), SIGKILL);
        rig_await(g, id, 1000);
        CHECK((g->seen[id].at - begun) / MS < check_slow(100));
        CHECK_EQ(g->seen[id].kind, OUTCOME_LOST);
        CHECK_EQ(g->seen[id].signal, SIGKILL);
        CHECK_EQ(g->seen[id].pid, atomic_load(&g->ledger->pid[id]));
        CHECK_EQ(g->seen[id].attempt, 1);
        CHECK_EQ(g->seen[id].phase, 0);
        rig_probe(g);
    }
    CHECK_EQ(g->events[EVENT_LOST], 5);
    rig_close(g);
}

static void test_signals(void)
{
    static const int signals[] = { SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL };
    if (CHECK_CHECKER)
        check_skip("a checker takes these signals");
    rig_t *g = start(2);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        uint32_t id = rig_post(g, OP_KILL, (uint64_t)signals[i], 1, 1);
        rig_await(g, id, 5000);
        CHECK_EQ(g->seen[id].kind, OUTCOME_LOST);
        CHECK_EQ(g->seen[id].signal, signals[i]);
    }
    rig_close(g);
}

static void test_retries(void)
{
    rig_t *g = start(2);
    g->retries = 2;
    uint32_t good = rig_post(g, OP_KILL, SIGKILL, 2, 1);
    uint32_t poison = rig_post(g, OP_KILL, SIGKILL, 99, 1);
    rig_finish(g, 5000);
    CHECK_EQ(g->seen[good].kind, OUTCOME_VALUE);
    CHECK_EQ(g->seen[good].attempt, 3);
    CHECK_EQ(atomic_load(&g->ledger->started[good]), 3);
    CHECK_EQ(g->seen[poison].kind, OUTCOME_LOST);
    CHECK_EQ(g->seen[poison].attempt, 3);
    CHECK_EQ(atomic_load(&g->ledger->started[poison]), 3);
    CHECK_EQ(g->events[EVENT_RETRY], 4);
    CHECK_EQ(g->events[EVENT_LOST], 1);
    CHECK_EQ(pool_tally(&g->pool)->retried, 4);
    rig_probe(g);
    rig_close(g);
}

static void test_dies_before_it_begins(void)
{
    rig_t *g = start(2);
    uint32_t good = rig_post(g, OP_KILL_EARLY, SIGKILL, 2, 1);
    uint32_t bad = rig_post(g, OP_KILL_EARLY, SIGKILL, 99, 1);
    rig_finish(g, 5000);
    CHECK_EQ(g->seen[good].kind, OUTCOME_VALUE);
    CHECK_EQ(g->seen[good].attempt, 1);
    CHECK_EQ(atomic_load(&g->ledger->started[good]), 1);
    CHECK_EQ(g->seen[bad].kind, OUTCOME_LOST);
    CHECK_EQ(g->seen[bad].phase, 1);
    CHECK_EQ(atomic_load(&g->ledger->early[bad]), 3);
    CHECK_EQ(atomic_load(&g->ledger->started[bad]), 0);
    rig_close(g);
}

/* With retries left, the third such death is an attempt like another. */
static void test_dies_before_it_begins_and_is_retried(void)
{
    rig_t *g = start(2);
    g->retries = 1;
    uint32_t good = rig_post(g, OP_KILL_EARLY, SIGKILL, 5, 1);
    uint32_t bad = rig_post(g, OP_KILL_EARLY, SIGKILL, 6, 1);
    rig_finish(g, 5000);
    CHECK_EQ(g->seen[good].kind, OUTCOME_VALUE);
    CHECK_EQ(g->seen[good].attempt, 2);
    CHECK_EQ(g->seen[bad].kind, OUTCOME_LOST);
    CHECK_EQ(g->seen[bad].phase, 1);
    CHECK_EQ(g->events[EVENT_RETRY], 2);
    CHECK_EQ(g->events[EVENT_LOST], 1);
    rig_close(g);
}

static void test_exits(void)
{
    rig_t *g = start(2);
    uint32_t a = rig_post(g, OP_EXIT, 3, 0, 1);
    uint32_t b = rig_post(g, OP_EXIT_NOW, 0, 0, 1);
    uint32_t c = rig_post(g, OP_EXIT_NOW, 7, 0, 1);
    rig_finish(g, 5000);
    CHECK_EQ(g->seen[a].kind, OUTCOME_EXIT);
    CHECK_EQ(g->seen[a].exitcode, 3);
    CHECK_EQ(g->seen[b].kind, OUTCOME_LOST);
    CHECK_EQ(g->seen[b].exitcode, 0);
    CHECK_EQ(g->seen[b].signal, 0);
    CHECK_EQ(g->seen[c].kind, OUTCOME_LOST);
    CHECK_EQ(g->seen[c].exitcode, 7);
    rig_probe(g);
    rig_close(g);
}

/* Something happens to one item of ten; its neighbours do not notice. */
static void in_a_chunk(enum op op, uint64_t a, uint64_t b, uint32_t retries,
                       enum outcome_kind kind)
{
    for (uint32_t bad = 0; bad < 10; bad += bad ? 4 : 1) {
        rig_t *g = start(2);
        g->retries = retries;
        g->timeout = 150 * MS;
        g->grace = kind == OUTCOME_STOPPED ? 5 * OS_SECOND : 20 * MS;
        job_t jobs[10];
        for (uint32_t i = 0; i < 10; i++)
            jobs[i] = i == bad ? (job_t){ op, 0, a, b }
                               : (job_t){ OP_SQUARE, 0, 3, 0 };
        rig_cell(g, jobs, 10);
        rig_finish(g, 5000);
        for (uint32_t i = 0; i < 10; i++) {
            CHECK_EQ(g->seen[i].kind, i == bad ? kind : OUTCOME_VALUE);
            CHECK_EQ(g->seen[i].attempt, i == bad ? retries + 1 : 1);
            CHECK_EQ(atomic_load(&g->ledger->started[i]),
                     op == OP_KILL_EARLY && i == bad ? 0
                     : i == bad                      ? retries + 1
                                                     : 1);
        }
        rig_close(g);
    }
}

static void test_chunk_dies(void)
{
    in_a_chunk(OP_KILL, SIGKILL, 99, 0, OUTCOME_LOST);
}

static void test_chunk_dies_and_is_retried(void)
{
    in_a_chunk(OP_KILL, SIGKILL, 1, 1, OUTCOME_VALUE);
    in_a_chunk(OP_KILL, SIGKILL, 99, 2, OUTCOME_LOST);
}

static void test_chunk_dies_early(void)
{
    in_a_chunk(OP_KILL_EARLY, SIGKILL, 99, 0, OUTCOME_LOST);
}

static void test_chunk_exits(void)
{
    in_a_chunk(OP_EXIT, 3, 0, 0, OUTCOME_EXIT);
}

static void test_chunk_times_out(void)
{
    in_a_chunk(OP_STUBBORN, 60000, 0, 0, OUTCOME_TIMELIMIT);
    in_a_chunk(OP_SLEEP, 60000, 0, 0, OUTCOME_STOPPED);
}

/* Every other item kills its worker: each death finds the slot as the death
** before left it. */
static void test_chunk_dies_often(void)
{
    rig_t *g = start(1);
    job_t jobs[60];
    for (uint32_t i = 0; i < 60; i++)
        jobs[i] = i % 2 ? (job_t){ OP_KILL, 0, SIGKILL, 1 }
                        : (job_t){ OP_KILL_EARLY, 0, SIGKILL, i % 3 };
    rig_cell(g, jobs, 60);
    rig_finish(g, 10000);
    for (uint32_t i = 0; i < 60; i++)
        CHECK_EQ(g->seen[i].kind, i % 2 ? OUTCOME_LOST : OUTCOME_VALUE);
    rig_close(g);
}

static void test_all_killed(void)
{
    rig_t *g = start(4);
    settle(g, 4);
    rig_post(g, OP_HOLD, 0, 0, 4);
    rig_post(g, OP_SQUARE, 3, 0, 500);
    RIG_SOON(g, atomic_load(&g->ledger->running) == 4, 5000);
    for (uint32_t i = 0; i < 4; i++)
        kill(rig_pid(g, i), SIGKILL);
    rig_finish(g, 2000);
    check_kind(g, 0, 4, OUTCOME_LOST);
    check_kind(g, 4, 500, OUTCOME_VALUE);
    rig_close(g);
}

static void post_some(rig_t *g)
{
    for (int i = 0; i < 100; i++) {
        rig_chunk(g, OP_SQUARE, 3, 0, 1 + check_below(20));
        rig_post(g, OP_STUBBORN, check_below(2), 0, 1);
    }
}

/* A random worker dies every few milliseconds, while there is work. */
static void test_storm(void)
{
    rig_t *g = rig_new(3);
    g->set.maxtasks = 50;
    rig_start(g);
    g->retries = 20;
    uint32_t kills = 0;
    uint64_t next = check_now_ms(), until = next + check_slow(20000);
    while (g->pool.unfinished || kills < STORM) {
        if (kills < STORM && g->pool.unfinished < 100)
            post_some(g);
        rig_take(g);
        if (check_now_ms() > until) {
            rig_show(g);
            CHECK(!"progress under fire");
        }
        pid_t pid = rig_pid(g, check_below(3));
        if (check_now_ms() >= next && pid) {
            kills += kill(pid, SIGKILL) == 0;
            next = check_now_ms() + check_slow(3 + check_below(4));
        }
        check_nap();
    }
    check_kind(g, 0, g->next, OUTCOME_VALUE);
    rig_close(g);
}

static void test_many_leave_at_once(void)
{
    rig_t *g = rig_new(64);
    g->set.maxtasks = 1;
    rig_start(g);
    RIG_SOON(g, rig_ready(g) == 64, 10000);
    for (uint32_t round = 0; round < 3; round++) {
        rig_post(g, OP_HOLD, round, 0, 64);
        RIG_SOON(g, atomic_load(&g->ledger->running) == 64, 10000);
        rig_open_gate(g, round);
        rig_finish(g, 10000);
    }
    check_lives(g, 1, 3 * 64);
    RIG_SOON(g, rig_recycled(g, REASON_TASKS) == 3 * 64, 5000);
    rig_close(g);
}

static void test_sigterm(void)
{
    rig_t *g = start(1);
    settle(g, 1);
    pid_t pid = rig_pid(g, 0);
    kill(pid, SIGTERM);     /* idle: leaves at once */
    RIG_SOON(g, rig_pid(g, 0) && rig_pid(g, 0) != pid, 2000);
    uint32_t id = rig_post(g, OP_STUBBORN, 100, 0, 1);
    RIG_SOON(g, atomic_load(&g->ledger->started[id]), 2000);
    pid = rig_pid(g, 0);
    kill(pid, SIGTERM);     /* running: finishes its task first */
    rig_finish(g, 2000);
    CHECK_EQ(g->seen[id].kind, OUTCOME_VALUE);
    RIG_SOON(g, rig_recycled(g, REASON_REQUEST) == 2, 2000);
    CHECK_EQ(rig_recycled(g, REASON_CRASH), 0);
    rig_probe(g);
    rig_close(g);
}

/* A life that waits for its turn is told to go; the slot's worker, asleep, must
** still hear what is ordered after that. */
static void test_sigterm_of_successor(void)
{
    rig_t *g = rig_new(2);
    g->set.maxtasks = 5;
    rig_start(g);
    RIG_SOON(g, g->events[EVENT_READY] == 4, 5000);
    settle(g, 2);
    const ledger_t *l = g->ledger;
    for (uint32_t i = 1; i <= 4; i++)
        if (l->life[i].slot == 1 && l->life[i].pid != rig_pid(g, 1))
            kill(l->life[i].pid, SIGTERM);
    for (int i = 0; i < 250; i++)
        check_nap();
    pool_resize(&g->pool, 1);
    RIG_SOON(g, rig_ready(g) == 1, 2000);
    rig_probe(g);
    rig_close(g);
}

static void test_sigstop(void)
{
    rig_t *g = start(2);
    settle(g, 2);
    uint32_t id = rig_post(g, OP_SLEEP, 50, 0, 1);
    RIG_SOON(g, atomic_load(&g->ledger->started[id]), 2000);
    kill(atomic_load(&g->ledger->pid[id]), SIGSTOP);
    for (int i = 0; i < 20; i++)
        rig_probe(g);       /* the others go on */
    pool_close(&g->pool);
    CHECK_EQ(pool_join(&g->pool, os_now() + 50 * MS), 0);
    rig_terminate(g);
}

static void test_sigstop_with_limit(void)
{
    rig_t *g = start(2);
    settle(g, 2);
    g->timeout = 100 * MS;
    g->grace = 50 * MS;
    uint32_t id = rig_post(g, OP_SLEEP, 60000, 0, 1);
    RIG_SOON(g, atomic_load(&g->ledger->started[id]), 2000);
    kill(atomic_load(&g->ledger->pid[id]), SIGSTOP);
    rig_finish(g, 1000);
    CHECK_EQ(g->seen[id].kind, OUTCOME_TIMELIMIT);
    rig_probe(g);
    rig_close(g);
}

static void test_exec(void)
{
    rig_t *g = start(2);
    uint32_t id = rig_post(g, OP_EXEC, 0, 0, 1);
    rig_finish(g, 2000);
    CHECK_EQ(g->seen[id].kind, OUTCOME_LOST);
    CHECK_EQ(g->seen[id].phase, 2);
    rig_probe(g);
    rig_close(g);
}

static void test_fork_in_task(void)
{
    rig_t *g = start(1);
    uint32_t id = rig_post(g, OP_FORK, 0, 0, 1);
    rig_finish(g, 2000);
    CHECK_EQ(g->seen[id].kind, OUTCOME_VALUE);
    CHECK_EQ(g->seen[id].value, id + 1);
    rig_probe(g);
    rig_close(g);
}

static void test_closes_descriptors(void)
{
    rig_t *g = start(2);
    rig_post(g, OP_CLOSE_ALL, 0, 0, 1);
    rig_post(g, OP_SLEEP, 2, 0, 50);
    rig_finish(g, 5000);
    rig_probe(g);
    rig_close(g);
}

static void test_orphans(void)
{
    rig_t *g = start(2);
    uint32_t id = rig_post(g, OP_ORPHAN, 0, 0, 1);
    rig_finish(g, 2000);
    CHECK_EQ(g->seen[id].kind, OUTCOME_VALUE);
    pid_t orphan = atomic_load(&g->ledger->orphan);
    CHECK(check_alive(orphan));
    rig_terminate(g);
    CHECK(!check_alive(orphan));
}

/* --- time limits and cancel --------------------------------------------- */

static void test_time_limits(void)
{
    rig_t *g = start(2);
    settle(g, 2);
    g->timeout = 100 * MS;
    g->grace = 5 * OS_SECOND;
    uint32_t stops = rig_post(g, OP_SLEEP, 60000, 0, 1);
    g->grace = 100 * MS;
    uint32_t killed = rig_post(g, OP_STUBBORN, 60000, 0, 1);
    uint32_t tidy = rig_post(g, OP_TIDY, 20, 0, 1);
    uint64_t begun = os_now();
    rig_finish(g, 2000);
    uint64_t after = (g->seen[stops].at - begun) / MS;
    CHECK_EQ(g->seen[stops].kind, OUTCOME_STOPPED);
    CHECK(after >= 95 && after < check_slow(200));
    after = (g->seen[killed].at - begun) / MS;
    CHECK_EQ(g->seen[killed].kind, OUTCOME_TIMELIMIT);
    CHECK(after >= 195 && after < check_slow(300));
    CHECK_EQ(g->seen[tidy].kind, OUTCOME_VALUE);
    RIG_SOON(g, rig_recycled(g, REASON_TIMELIMIT) == 1, 1000);
    CHECK_EQ(g->events[EVENT_TIMELIMIT], 1);
    CHECK_EQ(rig_recycled(g, REASON_CRASH), 0);
    rig_probe(g);
    rig_close(g);
}

/* A task ends just when its limit, or the kill, is due: one outcome, and the
** next task is never hit. */
static void test_limit_races_end(void)
{
    rig_t *g = start(2);
    g->timeout = 5 * MS;
    g->grace = 2 * MS;
    for (int i = 0; i < 60; i++) {
        rig_post(g, OP_STUBBORN, 6 + check_below(3), 0, 1);
        g->timeout = 0;
        uint32_t innocent = rig_post(g, OP_STUBBORN, 3, 0, 1);
        g->timeout = 5 * MS;
        rig_finish(g, 2000);
        CHECK_EQ(g->seen[innocent].kind, OUTCOME_VALUE);
    }
    rig_close(g);
}

static void test_cancel(void)
{
    rig_t *g = start(1);
    g->grace = 100 * MS;
    job_t job = { OP_SLEEP, 0, 60000, 0 }, stubborn = { OP_STUBBORN, 0, 60000,
                                                        0 };
    int64_t running = rig_cell(g, &job, 1);
    int64_t queued = rig_cell(g, &job, 1);
    int64_t hard = rig_cell(g, &stubborn, 1);
    RIG_SOON(g, atomic_load(&g->ledger->started[0]), 2000);
    CHECK_EQ(pool_cancel(&g->pool, (uint64_t)queued, 1), 1);
    CHECK_EQ(pool_cancel(&g->pool, (uint64_t)running, 1), 2);
    rig_await(g, 1, 100);
    CHECK_EQ(g->seen[1].kind, OUTCOME_CANCELLED);
    CHECK_EQ(atomic_load(&g->ledger->started[1]), 0);
    rig_await(g, 0, 1000);
    CHECK_EQ(g->seen[0].kind, OUTCOME_CANCELLED);
    CHECK_EQ(pool_cancel(&g->pool, (uint64_t)running, 1), 0);
    RIG_SOON(g, atomic_load(&g->ledger->started[2]), 2000);
    uint64_t begun = os_now();
    CHECK_EQ(pool_cancel(&g->pool, (uint64_t)hard, 1), 2);
    CHECK_EQ(pool_cancel(&g->pool, (uint64_t)hard, 1), 2);
    rig_finish(g, 1000);
    uint64_t after = (g->seen[2].at - begun) / MS;
    CHECK(after >= 95 && after < check_slow(200));
    CHECK_EQ(g->seen[2].kind, OUTCOME_CANCELLED);
    RIG_SOON(g, rig_recycled(g, REASON_CANCEL) == 1, 1000);
    rig_probe(g);
    rig_close(g);
}

static void test_cancel_chunk(void)
{
    rig_t *g = start(1);
    job_t jobs[10];
    for (int i = 0; i < 10; i++)
        jobs[i] = (job_t){ i == 3 ? OP_HOLD : OP_SQUARE, 0, 0, 0 };
    int64_t gentle = rig_cell(g, jobs, 10);
    RIG_SOON(g, atomic_load(&g->ledger->started[3]), 2000);
    CHECK_EQ(pool_cancel(&g->pool, (uint64_t)gentle, 0), 2);
    rig_open_gate(g, 0);
    rig_finish(g, 1000);
    check_kind(g, 0, 4, OUTCOME_VALUE);
    check_kind(g, 4, 6, OUTCOME_CANCELLED);
    CHECK_EQ(atomic_load(&g->ledger->started[4]), 0);
    rig_close(g);
}

/* Cancelled at any moment between its being posted and its end; it would run
** for a minute. */
static void test_cancel_races_start(void)
{
    rig_t *g = start(2);
    settle(g, 2);
    g->grace = 20 * MS;
    job_t job = { OP_SLEEP, 0, 60000, 0 };
    for (int i = 0; i < 400; i++) {
        int64_t ticket = rig_cell(g, &job, 1);
        for (uint32_t n = check_below(4000); n; n--)
            os_relax();
        pool_cancel(&g->pool, (uint64_t)ticket, 1);
        rig_await(g, job.id, 1000);
        CHECK_EQ(g->seen[job.id].kind, OUTCOME_CANCELLED);
    }
    rig_close(g);
}

/* --- initializers ------------------------------------------------------- */

static void fails_at_first(enum init init, enum pool_end expected,
                           const char *why)
{
    rig_t *g = rig_new(2);
    g->init = init;
    g->set.inittimeout = 200 * MS;
    rig_start(g);
    rig_post(g, OP_SQUARE, 3, 0, 10);
    rig_finish(g, 2000);
    CHECK_EQ(pool_look(&g->pool), expected);
    CHECK(g->pool.why && strstr(g->pool.why, why));
    check_kind(g, 0, 10, OUTCOME_ENDED);
    rig_drop(g);
}

static void test_initializer_fails(void)
{
    fails_at_first(INIT_RAISE, END_INITIALIZER_ENCODED, "complaint");
    fails_at_first(INIT_KILL, END_INITIALIZER, "signal 9");
    fails_at_first(INIT_EXIT, END_INITIALIZER, "5");
    fails_at_first(INIT_HANG, END_INITIALIZER, "too long");
    fails_at_first(INIT_EXEC, END_INITIALIZER, "");
}

/* Later failures make pauses, and a success forgets them. */
static void test_initializer_recovers(void)
{
    rig_t *g = rig_new(1);
    g->init = INIT_RAISE;
    g->init_from = 2;
    g->init_to = 4;
    rig_start(g);
    settle(g, 1);
    uint64_t begun = check_now_ms();
    kill(rig_pid(g, 0), SIGKILL);
    rig_probe(g);
    uint64_t took = check_now_ms() - begun;
    CHECK(took >= 10 + 20 + 40 && took < check_slow(500));
    CHECK_EQ(g->events[EVENT_FAILED], 3);
    CHECK_EQ(rig_recycled(g, REASON_CRASH), 1);
    rig_close(g);
}

static void test_initializer_fails_for_ever(void)
{
    rig_t *g = rig_new(2);
    g->init = INIT_KILL;
    g->init_from = 3;
    rig_start(g);
    settle(g, 2);
    pid_t other = rig_pid(g, 1);
    kill(rig_pid(g, 0), SIGKILL);
    /* While another is ready the pool lives on. */
    RIG_SOON(g, g->events[EVENT_FAILED] >= 6, 5000);
    rig_probe(g);
    kill(other, SIGKILL);
    rig_post(g, OP_SQUARE, 3, 0, 1);
    rig_finish(g, 5000);
    CHECK_EQ(pool_look(&g->pool), END_INITIALIZER);
    rig_drop(g);
}

/* Every other initializer takes just as long as it may: starts fail, but the
** kill never meets a task of one that became ready at that moment. */
static void test_init_limit_races_ready(void)
{
    rig_t *g = rig_new(2);
    g->set.inittimeout = 60 * MS;
    g->set.maxtasks = 1;
    g->init_ms = 59;
    g->init_odd_ms = 1;
    rig_start(g);
    rig_post(g, OP_STUBBORN, 1, 0, 60);
    while (g->pool.unfinished && pool_look(&g->pool) == END_NONE) {
        pool_wait(&g->pool, os_now() + OS_SECOND);
        rig_take(g);
    }
    /* On a machine too slow for the limit the pool may even break. */
    for (uint32_t i = 0; i < 60; i++)
        CHECK(g->seen[i].kind == OUTCOME_VALUE ||
              (g->seen[i].kind == OUTCOME_ENDED &&
               pool_look(&g->pool) == END_INITIALIZER));
    rig_drop(g);
}

/* --- ends --------------------------------------------------------------- */

static void test_close_empty(void)
{
    for (int i = 0; i < 20; i++) {
        rig_t *g = start(1 + check_below(4));
        if (i % 2)
            settle(g, g->set.processes);
        rig_close(g);
    }
}

static void test_close_drains(void)
{
    rig_t *g = start(3);
    rig_post(g, OP_SLEEP, 2, 0, 100);
    rig_chunk(g, OP_SLEEP, 1, 0, 30);
    pool_close(&g->pool);
    RIG_SOON(g, !g->pool.unfinished, 5000);
    check_kind(g, 0, 130, OUTCOME_VALUE);
    rig_close(g);
}

/* Workers die while the pool drains. */
static void test_close_under_fire(void)
{
    rig_t *g = start(3);
    g->retries = 10;
    rig_post(g, OP_SLEEP, 2, 0, 200);
    pool_close(&g->pool);
    for (int i = 0; i < 8 && g->pool.r; i++) {
        RIG_SOON(g, !g->pool.unfinished || rig_pid(g, 0), 2000);
        pid_t pid = rig_pid(g, 0);
        if (pid && g->pool.unfinished)
            kill(pid, SIGKILL);
        for (int k = 0; k < 30; k++)
            check_nap();
    }
    rig_finish(g, 5000);
    rig_close(g);
}

static void test_terminate(void)
{
    rig_t *g = start(3);
    rig_post(g, OP_STUBBORN, 60000, 0, 5);
    RIG_SOON(g, atomic_load(&g->ledger->running) == 3, 5000);
    rig_terminate(g);
    g = start(2);       /* before anybody is ready */
    rig_post(g, OP_SQUARE, 3, 0, 5);
    rig_terminate(g);
}

static void test_forgotten(void)
{
    rig_t *g = start(2);
    rig_post(g, OP_STUBBORN, 60000, 0, 5);
    RIG_SOON(g, atomic_load(&g->ledger->running) == 2, 5000);
    pid_t a = atomic_load(&g->ledger->pid[0]), keeper = g->pool.keeper;
    uint64_t begun = check_now_ms();
    pool_forget(&g->pool);
    CHECK(check_now_ms() < begun + check_slow(50));
    CHECK_SOON(!check_alive(keeper) && !check_alive(a), 1000);
    munmap(g->ledger, sizeof *g->ledger);
    free(g->seen);
    free(g);
    rig_close(start(1));    /* the next pool reaps the keeper */
}

static void test_keeper_killed(void)
{
    for (int busy = 0; busy < 2; busy++) {
        rig_t *g = start(3);
        settle(g, 3);
        rig_post(g, OP_SQUARE, 3, 0, 10);
        rig_finish(g, 2000);
        if (busy) {
            rig_post(g, OP_STUBBORN, 60000, 0, 5);
            RIG_SOON(g, atomic_load(&g->ledger->running) == 3, 2000);
        }
        pid_t pids[3] = { rig_pid(g, 0), rig_pid(g, 1), rig_pid(g, 2) };
        kill(g->pool.keeper, SIGKILL);
        if (busy)
            rig_finish(g, 1500);
        RIG_SOON(g, pool_look(&g->pool) == END_BROKEN, 1500);
        CHECK(strstr(g->pool.why, "signal 9"));
        for (int i = 0; i < 3; i++)
            CHECK_SOON(!check_alive(pids[i]), 1000);
        check_kind(g, 0, 10, OUTCOME_VALUE);
        rig_drop(g);
    }
}

static void test_keeper_stopped(void)
{
    rig_t *g = start(2);
    settle(g, 2);
    kill(g->pool.keeper, SIGSTOP);
    rig_probe(g);
    rig_post(g, OP_STUBBORN, 60000, 0, 1);
    rig_terminate(g);
}

static void test_keeper_signals(void)
{
    static const int signals[] = { SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGALRM,
                                   SIGPIPE };
    rig_t *g = start(2);
    settle(g, 2);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        kill(g->pool.keeper, signals[i]);
    kill(rig_pid(g, 0), SIGKILL);
    RIG_SOON(g, rig_recycled(g, REASON_CRASH) == 1, 1000);
    settle(g, 2);
    rig_probe(g);
    rig_close(g);
}

/* The parent of a pool dies; its processes are to follow within a second. */
typedef struct family {
    _Atomic int32_t keeper, pids[4], ready;
} family_t;

static void be_parent(void *argument)
{
    family_t *f = argument;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    rig_t *g = start(4);
    settle(g, 4);
    rig_post(g, OP_STUBBORN, 60000, 0, 8);
    RIG_SOON(g, atomic_load(&g->ledger->running) == 4, 5000);
    for (uint32_t i = 0; i < 4; i++)
        atomic_store(&f->pids[i], rig_pid(g, i));
    atomic_store(&f->keeper, g->pool.keeper);
    atomic_store(&f->ready, 1);
    for (;;)
        pause();
}

static void test_parent_dies(void)
{
    family_t *f = check_shared(sizeof *f);
    pid_t pid = check_fork(be_parent, f);
    CHECK_SOON(atomic_load(&f->ready), 10000);
    kill(pid, SIGKILL);
    CHECK_EQ(check_wait(pid), 128 + SIGKILL);
    CHECK_SOON(!check_alive(atomic_load(&f->keeper)), 1000);
    for (int i = 0; i < 4; i++)
        CHECK_SOON(!check_alive(atomic_load(&f->pids[i])), 1000);
    munmap(f, sizeof *f);
}

/* --- around it ---------------------------------------------------------- */

static void test_two_pools(void)
{
    rig_t *a = start(2), *b = start(2);
    settle(a, 2);
    settle(b, 2);
    rig_probe(a);
    rig_probe(b);
    kill(a->pool.keeper, SIGKILL);
    RIG_SOON(a, pool_look(&a->pool) == END_BROKEN, 1000);
    rig_probe(b);
    rig_drop(a);
    rig_probe(b);
    rig_close(b);
}

static void test_hostile_signals(void)
{
    sigset_t all;
    signal(SIGCHLD, SIG_IGN);
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    rig_t *g = rig_new(2);
    g->set.maxtasks = 3;
    rig_start(g);
    rig_post(g, OP_SQUARE, 3, 0, 50);
    rig_finish(g, 5000);
    g->timeout = 50 * MS;
    g->grace = 5 * OS_SECOND;
    uint32_t id = rig_post(g, OP_SLEEP, 60000, 0, 1);
    rig_finish(g, 2000);
    CHECK_EQ(g->seen[id].kind, OUTCOME_STOPPED);
    rig_close(g);
}

static uint64_t switches(pid_t pid)
{
    char path[64], line[256];
    unsigned long long sum = 0, n;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *status = fopen(path, "r");
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "voluntary_ctxt_switches: %llu", &n) == 1 ||
            sscanf(line, "nonvoluntary_ctxt_switches: %llu", &n) == 1)
            sum += n;
    if (status)
        fclose(status);
    return sum;
}

/* Nobody wakes up in a pool with nothing to do. */
static void test_idle_costs_nothing(void)
{
    rig_t *g = rig_new(4);
    g->set.timeout = 5 * OS_SECOND;
    g->set.maxtasks = 5;
    rig_start(g);
    settle(g, 4);
    rig_post(g, OP_SQUARE, 3, 0, 21);
    rig_finish(g, 2000);
    settle(g, 4);
    for (int i = 0; i < 1000; i++)
        check_nap();
    pid_t pids[5] = { rig_pid(g, 0), rig_pid(g, 1), rig_pid(g, 2),
                      rig_pid(g, 3), g->pool.keeper };
    uint64_t before = 0, after = 0;
    for (int i = 0; i < 5; i++)
        before += switches(pids[i]);
    for (int i = 0; i < 2500; i++)
        check_nap();
    for (int i = 0; i < 5; i++)
        after += switches(pids[i]);
    CHECK_EQ(after, before);
    rig_close(g);
}

int main(int argc, char **argv)
{
    static const check_t cases[] = {
        { "keeper: results", test_results, 0 },
        { "keeper: chunks", test_chunks, 0 },
        { "keeper: one worker runs in order", test_one_worker_in_order, 0 },
        { "keeper: big results through small rings", test_big_results, 0 },
        { "keeper: more cells than the board holds", test_full_board, 0 },
        { "recycle: the limit is exact", test_limit_is_exact, 60 },
        { "recycle: closed with a backlog", test_close_with_backlog, 0 },
        { "recycle: successor starts ahead", test_successor_ahead, 0 },
        { "recycle: successor starts ahead of long lives",
          test_successor_ahead_long, 0 },
        { "recycle: successor waits for its turn", test_successor_waits, 0 },
        { "recycle: waiting successor dies", test_successor_dies, 0 },
        { "recycle: predecessor of a waiting one dies",
          test_predecessor_dies, 0 },
        { "recycle: slow finalizers", test_slow_finalizers, 0 },
        { "recycle: finalizers run once each", test_finalizers, 0 },
        { "recycle: age", test_age, 0 },
        { "recycle: memory", test_memory, 0 },
        { "recycle: a task asks", test_recycle_asked, 0 },
        { "recycle: one slot, once", test_recycle_one, 0 },
        { "recycle: all slots, once each", test_recycle_all, 0 },
        { "recycle: asked while leaving anyway", test_recycle_races_limit,
          0 },
        { "size: up and down", test_resize, 0 },
        { "size: a leaver's rest is taken over at once",
          test_rest_is_taken_over, 0 },
        { "size: a leaver tells what it has done", test_leaver_tells, 0 },
        { "size: idle workers leave, the fewest stay",
          test_idle_workers_leave, 0 },
        { "size: idle to none and back", test_idle_to_none, 0 },
        { "size: fewer slots while all are dormant", test_resize_of_dormant,
          0 },
        { "death: idle worker", test_idle_worker_killed, 0 },
        { "death: while posting", test_killed_while_posting, 0 },
        { "death: busy worker", test_busy_worker_killed, 0 },
        { "death: other signals", test_signals, 0 },
        { "death: retries", test_retries, 0 },
        { "death: before the task begins", test_dies_before_it_begins, 0 },
        { "death: before the task begins, retried",
          test_dies_before_it_begins_and_is_retried, 0 },
        { "death: exits", test_exits, 0 },
        { "death: inside a chunk", test_chunk_dies, 0 },
        { "death: inside a chunk, retried", test_chunk_dies_and_is_retried,
          0 },
        { "death: inside a chunk, before an item begins",
          test_chunk_dies_early, 0 },
        { "death: exit inside a chunk", test_chunk_exits, 0 },
        { "death: often inside a chunk", test_chunk_dies_often, 0 },
        { "death: all workers", test_all_killed, 0 },
        { "death: storm", test_storm, 60 },
        { "death: 64 workers leave at once", test_many_leave_at_once, 60 },
        { "death: SIGTERM is a request", test_sigterm, 0 },
        { "death: SIGTERM of a waiting successor", test_sigterm_of_successor,
          0 },
        { "death: SIGSTOP", test_sigstop, 0 },
        { "death: SIGSTOP under a time limit", test_sigstop_with_limit, 0 },
        { "death: exec", test_exec, 0 },
        { "death: a task forks", test_fork_in_task, 0 },
        { "death: a task closes all descriptors", test_closes_descriptors,
          0 },
        { "death: orphans end with a terminated pool", test_orphans, 0 },
        { "limit: error, grace, kill", test_time_limits, 0 },
        { "limit: races the task's end", test_limit_races_end, 0 },
        { "limit: inside a chunk", test_chunk_times_out, 0 },
        { "cancel: queued, running, over", test_cancel, 0 },
        { "cancel: the rest of a chunk", test_cancel_chunk, 0 },
        { "cancel: races the task's start", test_cancel_races_start, 60 },
        { "init: fails at first", test_initializer_fails, 0 },
        { "init: fails and recovers", test_initializer_recovers, 0 },
        { "init: fails for ever", test_initializer_fails_for_ever, 0 },
        { "init: its limit kills no task", test_init_limit_races_ready, 0 },
        { "end: closed empty", test_close_empty, 0 },
        { "end: closing drains", test_close_drains, 0 },
        { "end: closing under fire", test_close_under_fire, 0 },
        { "end: terminated", test_terminate, 0 },
        { "end: forgotten", test_forgotten, 0 },
        { "end: keeper killed", test_keeper_killed, 0 },
        { "end: keeper stopped", test_keeper_stopped, 0 },
        { "end: keeper signalled", test_keeper_signals, 0 },
        { "end: parent dies", test_parent_dies, 0 },
        { "keeper: two pools", test_two_pools, 0 },
        { "keeper: signals blocked and ignored before",
          test_hostile_signals, 0 },
        { "keeper: an idle pool costs nothing", test_idle_costs_nothing, 0 },
        { NULL, NULL, 0 }
    };
    /* It sees nothing between processes, and makes each start slow. */
    if (CHECK_TSAN) {
        printf("ok keeper: not for the thread sanitizer # SKIP\n");
        return 0;
    }
    return check_main(argc, argv, cases);
}
