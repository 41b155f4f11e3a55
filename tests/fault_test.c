/*
** fault_test.c - deaths and delays at exact places: the fault points of
** src/fault.h, in a build that has them. In another build this program makes
** one for itself ($BUILD/faults) and becomes that. limit: 200 s
*/
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../src/fault.h"
#include "support/rig.h"

#ifdef PROCPOOL_FAULTS

#define MS OS_MS

static rig_t *start(uint32_t processes, const char *rules)
{
    rig_t *g = rig_new(processes);
    fault_set(rules);
    rig_start(g);
    return g;
}

static void settle(rig_t *g, uint32_t processes)
{
    RIG_SOON(g, rig_ready(g) == processes, 5000);
    for (uint32_t i = 0; i < processes; i++)
        RIG_SOON(g, rig_idle(g, i), 5000);
}

static void check_values(const rig_t *g, uint32_t first, uint32_t n)
{
    for (uint32_t i = first; i < first + n; i++)
        CHECK_EQ(g->seen[i].kind, OUTCOME_VALUE);
}

/* --- between two instructions of a worker ------------------------------- */

static void test_after_the_claim(void)
{
    rig_t *g = start(1, "claim.post_cas:kill:1..2");
    rig_post(g, OP_SQUARE, 3, 0, 1);
    rig_finish(g, 5000);
    CHECK_EQ(g->seen[0].kind, OUTCOME_VALUE);
    CHECK_EQ(g->seen[0].attempt, 1);
    rig_close(g);
    g = start(1, "claim.post_cas:kill:1..3");
    rig_post(g, OP_SQUARE, 3, 0, 2);
    rig_finish(g, 5000);
    CHECK_EQ(g->seen[0].kind, OUTCOME_LOST);
    CHECK_EQ(g->seen[0].phase, 1);
    CHECK_EQ(g->seen[1].kind, OUTCOME_VALUE);
    CHECK_EQ(atomic_load(&g->ledger->started[0]), 0);
    rig_close(g);
}

/* It ran, and its result was never told. */
static void test_before_publishing(void)
{
    static const char *const rules[] = {
        "settle.pre_cas:kill", "worker/outbox.mid:kill",
        "worker/publish.pre:kill:2"
    };
    for (int i = 0; i < 3; i++) {
        rig_t *g = start(1, rules[i]);
        rig_post(g, OP_SQUARE, 3, 0, 2);
        rig_finish(g, 5000);
        CHECK_EQ(g->seen[0].kind, OUTCOME_LOST);
        CHECK_EQ(atomic_load(&g->ledger->finished[0]), 1);
        CHECK_EQ(g->seen[1].kind, OUTCOME_VALUE);
        rig_close(g);
    }
}

/* Published, nobody told: the result arrives. */
static void test_after_publishing(void)
{
    static const char *const rules[] = { "worker/publish.post:kill:2",
                                         "worker/wake.parent:kill",
                                         "loop.top:kill:2" };
    for (int i = 0; i < 3; i++) {
        rig_t *g = start(1, NULL);
        settle(g, 1);
        fault_set(rules[i]);
        rig_post(g, OP_STUBBORN, 20, 0, 1);
        uint64_t begun = check_now_ms();
        rig_finish(g, 1000);
        CHECK(check_now_ms() < begun + check_slow(20 + 100));
        CHECK_EQ(g->seen[0].kind, OUTCOME_VALUE);
        RIG_SOON(g, rig_recycled(g, REASON_CRASH) ==
                        fault_hits("wake.parent", "worker") || i != 1, 1000);
        RIG_SOON(g, rig_recycled(g, REASON_CRASH) == 1 || i == 1, 1000);
        rig_probe(g);
        rig_close(g);
    }
}

/* The woken one dies at once: its task runs elsewhere in a moment. */
static void test_wake_dies(void)
{
    rig_t *g = start(3, NULL);
    for (int i = 0; i < 40; i++) {
        settle(g, 3);
        fault_set("wait.woken:kill");
        uint32_t id = rig_post(g, OP_SQUARE, 3, 0, 1);
        uint64_t begun = check_now_ms();
        rig_await(g, id, 1000);
        CHECK(check_now_ms() < begun + check_slow(150));
        CHECK_EQ(g->seen[id].kind, OUTCOME_VALUE);
    }
    rig_close(g);
}

/* A worker that wakes another dies between taking its bit and ringing. */
static void test_waker_dies(void)
{
    rig_t *g = start(4, NULL);
    for (int i = 0; i < 20; i++) {
        settle(g, 4);
        fault_set("worker/wake.picked:kill");
        uint32_t id = rig_post(g, OP_SLEEP, 5, 0, 12);
        for (uint32_t k = 0; k < 12; k++)
            rig_await(g, id + k, 1000);
    }
    rig_close(g);
}

/* The rest of a chunk has been queued again, below the hint. */
static void test_put_back_dies(void)
{
    for (int i = 0; i < 2; i++) {
        rig_t *g = rig_new(2);
        g->set.maxtasks = 3;
        fault_set(i ? "worker/putback.mid:kill:1..3"
                    : "worker/putback.pre:kill:1..3");
        rig_start(g);
        rig_chunk(g, OP_SQUARE, 3, 0, 30);
        rig_finish(g, 5000);
        check_values(g, 0, 30);
        for (uint32_t k = 0; k < 30; k++)
            CHECK_EQ(atomic_load(&g->ledger->started[k]), 1);
        rig_close(g);
    }
}

/* The turn has been given, the next life not woken. */
static void test_turn_giver_dies(void)
{
    static const char *const rules[] = { "worker/recycle.turned:kill:1..20",
                                         "recycle.mid:kill:1..20",
                                         "recycle.pre_exit:kill:1..20" };
    for (int i = 0; i < 3; i++) {
        rig_t *g = rig_new(1);
        g->set.maxtasks = 1;
        fault_set(rules[i]);
        rig_start(g);
        rig_post(g, OP_STUBBORN, 3, 0, 20);
        rig_finish(g, 5000);
        check_values(g, 0, 20);
        RIG_SOON(g, rig_recycled(g, REASON_TASKS) >= 19, 1000);
        CHECK_EQ(rig_recycled(g, REASON_CRASH), 0);
        rig_close(g);
    }
}

/* Results of 200 workers that died writing: no byte is lost for good. */
static void test_half_written(void)
{
    setenv("PROCPOOL_REGION", "16777216", 1);
    rig_t *g = start(2, NULL);
    g->retries = 1000;
    fault_set("worker/outbox.grow:kill:1..40");
    uint32_t first = rig_post(g, OP_BIG, 300000, 0, 60);
    rig_finish(g, 20000);
    check_values(g, first, 60);
    CHECK_EQ(g->pool.heap.h_used, g->pool.funcs[g->func].block.size);
    rig_close(g);
}

/* A life is forked while its keeper dies. */
static void test_born_an_orphan(void)
{
    rig_t *g = start(2, "child.post_fork:sleep_ms=300");
    RIG_SOON(g, fault_hits("child.post_fork", NULL) == 2, 2000);
    kill(g->pool.keeper, SIGKILL);
    RIG_SOON(g, pool_look(&g->pool) == END_BROKEN, 2000);
    rig_drop(g);    /* the harness sees whether they are gone */
}

/* --- the keeper --------------------------------------------------------- */

static void test_keeper_dies_at_birth(void)
{
    rig_t *g = start(2, "keeper.start:kill");
    rig_post(g, OP_SQUARE, 3, 0, 3);
    rig_finish(g, 2000);
    CHECK_EQ(pool_look(&g->pool), END_BROKEN);
    rig_drop(g);
}

static void test_new_fails(void)
{
    char error[256] = "";
    rig_t *g = rig_new(2);
    fault_set("new.fork:errno=EAGAIN");
    CHECK_EQ(pool_open(&g->pool, &g->set, &g->work, error, sizeof error),
             -EAGAIN);
    CHECK(strstr(error, "Resource temporarily unavailable"));
    rig_start(g);
    rig_probe(g);
    rig_close(g);
}

static void test_fork_fails_a_while(void)
{
    rig_t *g = start(3, "keeper.fork:errno=EAGAIN:2..4");
    rig_post(g, OP_SLEEP, 2, 0, 60);
    rig_finish(g, 5000);
    RIG_SOON(g, rig_ready(g) == 3, 5000);
    kill(rig_pid(g, 0), SIGKILL);
    RIG_SOON(g, rig_ready(g) == 3 && rig_recycled(g, REASON_CRASH) == 1,
             5000);
    rig_close(g);
}

static void test_fork_fails_for_ever(void)
{
    for (int closed = 0; closed < 2; closed++) {
        rig_t *g = start(2, "keeper.fork:errno=EAGAIN:1..");
        rig_post(g, OP_SQUARE, 3, 0, 3);
        if (closed)
            pool_close(&g->pool);
        rig_finish(g, 3000);
        CHECK_EQ(pool_look(&g->pool), END_BROKEN);
        CHECK(strstr(g->pool.why, "cannot start workers: fork: Resource "
                                  "temporarily unavailable"));
        CHECK_EQ(fault_hits("keeper.fork", NULL), 5);
        rig_drop(g);
    }
}

/* Some workers are there, the others cannot be started: it goes on, with
** pauses that grow, not in a busy loop. */
static void test_fork_fails_beside_others(void)
{
    rig_t *g = start(2, "keeper.fork:errno=ENOMEM:2..");
    RIG_SOON(g, fault_hits("keeper.fork", NULL) >= 6, 5000);
    rig_probe(g);
    CHECK(fault_hits("keeper.fork", NULL) < 10);
    fault_set(NULL);
    settle(g, 2);
    rig_close(g);
}

/* Recycling while forking fails now and then. */
static void test_recycling_while_fork_fails(void)
{
    rig_t *g = rig_new(2);
    g->set.maxtasks = 2;
    fault_set("keeper.fork:errno=EAGAIN:4..6,keeper.fork:errno=EAGAIN:9..11,"
              "keeper.fork:errno=EMFILE:15..17");
    rig_start(g);
    rig_post(g, OP_SQUARE, 3, 0, 60);
    rig_finish(g, 10000);
    check_values(g, 0, 60);
    rig_close(g);
}

static void test_reap_is_late(void)
{
    rig_t *g = start(2, NULL);
    settle(g, 2);
    fault_set("reap:sleep_ms=5000:1..");
    rig_post(g, OP_STUBBORN, 60000, 0, 2);
    kill(rig_pid(g, 0), SIGKILL);
    for (int i = 0; i < 100; i++)
        check_nap();
    rig_terminate(g);
}

/* The keeper is about to take a task that ends this very moment, or to kill
** a worker; the next task is never hit. */
static void test_kill_is_late(void)
{
    static const char *const rules[] = { "timelimit.pre_cas:sleep_ms=20:1..",
                                         "kill.pre:sleep_ms=20:1..",
                                         "settle.pre_cas:sleep_ms=10:1.." };
    for (int i = 0; i < 3; i++) {
        rig_t *g = start(1, rules[i]);
        g->grace = 5 * MS;
        for (int n = 0; n < 20; n++) {
            g->timeout = 10 * MS;
            uint32_t limited = rig_post(g, OP_STUBBORN, 12 + check_below(20),
                                        0, 1);
            g->timeout = 0;
            uint32_t next = rig_post(g, OP_STUBBORN, 5, 0, 1);
            rig_finish(g, 2000);
            CHECK_EQ(g->seen[next].kind, OUTCOME_VALUE);
            CHECK(g->seen[limited].kind == OUTCOME_VALUE ||
                  g->seen[limited].kind == OUTCOME_TIMELIMIT);
        }
        rig_close(g);
    }
}

/* Results and a verdict of one cell, the parent being faster than the keeper:
** the cell is used again while it is being judged. */
static void test_verdict_is_read_early(void)
{
    rig_t *g = start(2, "keeper.verdict:sleep_ms=3:1..");
    for (int i = 0; i < 40; i++) {
        uint32_t id = rig_post(g, OP_KILL, SIGKILL, 9, 1);
        rig_await(g, id, 2000);
        CHECK_EQ(g->seen[id].kind, OUTCOME_LOST);
        rig_chunk(g, OP_SQUARE, 3, 0, 5);
    }
    rig_finish(g, 2000);
    rig_close(g);
}

/* A cell is over while its dead worker is being judged. */
static void test_judged_late(void)
{
    rig_t *g = start(1, NULL);
    settle(g, 1);
    for (int i = 0; i < 30; i++) {
        fault_set("worker/publish.post:kill:2,keeper/reap:sleep_ms=2");
        uint32_t id = rig_post(g, OP_SQUARE, 3, 0, 1);
        rig_await(g, id, 2000);
        rig_chunk(g, OP_SQUARE, 3, 0, 4);
        rig_finish(g, 2000);
    }
    check_values(g, 0, g->next);
    rig_close(g);
}

/* --- everything a little late ------------------------------------------- */

#define X(name) name,
static const char *const points[] = { FAULT_POINTS(X) };
#undef X

static void test_delays_everywhere(void)
{
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        char rules[128];
        snprintf(rules, sizeof rules, "%s:sleep_ms=2:1..40", points[i]);
        rig_t *g = rig_new(2);
        g->set.maxtasks = 4;
        g->set.has_finalizer = 1;
        fault_set(rules);
        rig_start(g);
        g->retries = 3;
        rig_chunk(g, OP_SQUARE, 3, 0, 15);
        rig_post(g, OP_KILL, SIGKILL, 1, 2);
        rig_post(g, OP_SLEEP, 1, 0, 6);
        rig_take(g);
        pool_recycle(&g->pool, 0);
        rig_chunk(g, OP_KILL_EARLY, SIGKILL, 1, 3);
        rig_finish(g, 10000);
        check_values(g, 0, g->next);
        rig_close(g);
    }
}

int main(int argc, char **argv)
{
    static const check_t cases[] = {
        { "fault: after the claim", test_after_the_claim, 0 },
        { "fault: before publishing", test_before_publishing, 0 },
        { "fault: after publishing", test_after_publishing, 0 },
        { "fault: the woken worker dies", test_wake_dies, 0 },
        { "fault: the waking worker dies", test_waker_dies, 0 },
        { "fault: while putting back", test_put_back_dies, 0 },
        { "fault: while giving the turn", test_turn_giver_dies, 0 },
        { "fault: while writing a large result", test_half_written, 60 },
        { "fault: the keeper dies while a life is born",
          test_born_an_orphan, 0 },
        { "fault: the keeper dies at birth", test_keeper_dies_at_birth, 0 },
        { "fault: the keeper cannot be forked", test_new_fails, 0 },
        { "fault: fork fails for a while", test_fork_fails_a_while, 0 },
        { "fault: fork fails for ever", test_fork_fails_for_ever, 0 },
        { "fault: fork fails beside others", test_fork_fails_beside_others,
          0 },
        { "fault: recycling while fork fails",
          test_recycling_while_fork_fails, 0 },
        { "fault: the reaping is late", test_reap_is_late, 0 },
        { "fault: the kill is late", test_kill_is_late, 0 },
        { "fault: the verdict is read early", test_verdict_is_read_early, 0 },
        { "fault: judged when all is over", test_judged_late, 0 },
        { "fault: delays everywhere", test_delays_everywhere, 120 },
        { NULL, NULL, 0 }
    };
    return check_main(argc, argv, cases);
}

#else

/* Environment: what this build was made with must not leak into that one. */
int main(int argc, char **argv)
{
    char build[512], program[600], make[2048];
    const char *base = getenv("BUILD");
    (void)argc;
    if (CHECK_CHECKER) {
        printf("ok fault: not in a checker's build # SKIP\n");
        return 0;
    }
    snprintf(build, sizeof build, "%s/faults", base && *base ? base : "build");
    snprintf(program, sizeof program, "%s/tests/fault_test", build);
    snprintf(make, sizeof make,
             "env -u MAKEFLAGS make --no-print-directory -s BUILD='%s' "
             "VARIANT=-DPROCPOOL_FAULTS '%s'", build, program);
    fflush(stdout);
    if (system(make) != 0) {
        printf("not ok fault: the build with fault points failed\n");
        return 1;
    }
    argv[0] = program;
    execv(program, argv);
    printf("not ok fault: %s\n", strerror(errno));
    return 1;
}

#endif
