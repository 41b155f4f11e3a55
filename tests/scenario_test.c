/*
** scenario_test.c - a bit of everything a pool does, in two seconds: what
** tests/faults runs under every fault. PROCPOOL_FAULT tells here what may go
** wrong; without it nothing may.
**
** The scenario runs in a process of its own, so that a fault may kill it; the
** case itself wakes what a fault has stopped, and sees whether processes are
** left behind.
*/
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/rig.h"

#define MS OS_MS

static int may_break(void)
{
    const char *fault = getenv("PROCPOOL_FAULT");
    return fault && (strstr(fault, "keeper/") || strstr(fault, "keeper.") ||
                     strstr(fault, "child."));
}

/* An error that a fault pretends to is met by trying again. */
static void post(rig_t *g, enum op op, uint64_t a, uint64_t b, uint32_t n)
{
    job_t jobs[64];
    for (uint32_t i = 0; i < n; i++)
        jobs[i] = (job_t){ op, 0, a, b };
    while (rig_cell(g, jobs, n) < 0 && pool_look(&g->pool) == END_NONE)
        rig_take(g);
}

static void pause_ms(rig_t *g, uint64_t ms)
{
    uint64_t until = os_now() + ms * MS;
    while (os_now() < until && pool_look(&g->pool) == END_NONE) {
        pool_wait(&g->pool, until);
        rig_take(g);
    }
}

static void open_pool(rig_t *g)
{
    char error[256], small[64] = "func";
    draft_t d;
    int rc, tries = 0;
    while ((rc = pool_open(&g->pool, &g->set, &g->work, error,
                           sizeof error)) < 0)
        CHECK(tries++ < 10);
    int64_t func;
    do {
        draft_open(&d, &g->pool, small, sizeof small);
        d.buffer.used = 4;
        func = pool_func_new(&g->pool, &d, FUNC_KEPT);
    } while (func < 0 && tries++ < 10);
    CHECK(func > 0);
    g->func = (uint32_t)func;
}

static void act(rig_t *g)
{
    g->retries = 2;
    for (int i = 0; i < 12; i++)
        post(g, OP_SQUARE, 3, 0, 1);
    post(g, OP_SQUARE, 3, 0, 30);
    post(g, OP_KILL, SIGKILL, 1, 1);            /* retried once */
    post(g, OP_KILL_EARLY, SIGKILL, 1, 3);
    pause_ms(g, 30);
    pool_recycle(&g->pool, 0);
    post(g, OP_BIG, 20000, 0, 8);
    post(g, OP_ERROR, 0, 0, 2);
    pause_ms(g, 20);
    pool_resize(&g->pool, 4);
    for (int i = 0; i < 8; i++)
        post(g, OP_SLEEP, 2, 0, 1);
    pause_ms(g, 30);
    pool_resize(&g->pool, 2);
    for (int i = 0; i < 5; i++) {               /* they fall asleep */
        pause_ms(g, 10);
        post(g, OP_SQUARE, 3, 0, 1);
        post(g, OP_SQUARE, 3, 0, 1);
    }
}

/* Tasks that end in other ways: these come last, and are not checked for
** their results. The id of the first. */
static uint32_t act_badly(rig_t *g)
{
    uint32_t first = g->next;
    job_t job = { OP_SLEEP, 0, 60000, 0 };
    g->grace = 10 * MS;
    int64_t ticket = rig_cell(g, &job, 1);
    post(g, OP_KILL, SIGKILL, 9, 2);            /* lost */
    post(g, OP_EXIT, 3, 0, 1);
    g->timeout = 20 * MS;
    post(g, OP_STUBBORN, 60000, 0, 1);
    post(g, OP_SLEEP, 60000, 0, 1);
    g->timeout = 0;
    pause_ms(g, 20);
    if (ticket >= 0)
        pool_cancel(&g->pool, (uint64_t)ticket, 1);
    return first;
}

static void check_results(rig_t *g, uint32_t good)
{
    for (uint32_t i = 0; i < good; i++) {
        const seen_t *s = &g->seen[i];
        if (s->kind != OUTCOME_VALUE && s->kind != OUTCOME_ERROR)
            printf("# task %u: kind %u attempt %u signal %u phase %u\n", i,
                   s->kind, s->attempt, s->signal, s->phase);
        CHECK(s->kind == OUTCOME_VALUE || s->kind == OUTCOME_ERROR ||
              (may_break() && pool_look(&g->pool) != END_NONE));
    }
}

static void play(void *unused)
{
    (void)unused;
    setenv("PROCPOOL_REGION", "4194304", 1);
    rig_t *g = rig_new(2);
    g->set.maxtasks = 5;
    g->set.has_finalizer = 1;
    g->set.grace = 300 * MS;
    open_pool(g);
    act(g);
    uint32_t good = g->next;
    act_badly(g);
    rig_finish(g, 10000);
    check_results(g, good);
    rig_check_ledger(g);
    int broken = pool_look(&g->pool) != END_NONE;
    CHECK(!broken || may_break());
    if (broken)
        rig_drop(g);
    else {
        rig_probe(g);
        pool_close(&g->pool);
        pool_join(&g->pool, os_now() + check_slow(10000) * MS);
        rig_take(g);
        CHECK(pool_look(&g->pool) == END_CLOSED || may_break());
        CHECK(g->pool.r == NULL);
        rig_drop(g);
    }
}

/* --- around it ---------------------------------------------------------- */

static char state_of(pid_t pid)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[n < 0 ? 0 : n] = '\0';
    char *at = strrchr(text, ')');
    return at ? at[2] : 'X';
}

/* Continues what is stopped, `pid` or below it. */
static void wake_stopped(pid_t pid)
{
    char path[64], text[4096];
    if (state_of(pid) == 'T')
        kill(pid, SIGCONT);
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)pid,
             (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[n < 0 ? 0 : n] = '\0';
    for (char *at = text, *end;; at = end) {
        long child = strtol(at, &end, 10);
        if (end == at)
            return;
        wake_stopped((pid_t)child);
    }
}

static void test_scenario(void)
{
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t pid = check_fork(play, NULL);
    uint64_t look = check_now_ms();
    int status;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        check_nap();
        if (check_now_ms() >= look) {
            wake_stopped(pid);
            look = check_now_ms() + 60;
        }
    }
    /* Killed by a fault of its own, or ended well. */
    const char *fault = getenv("PROCPOOL_FAULT");
    if (WIFSIGNALED(status))
        CHECK(fault && (strstr(fault, "parent/") || strstr(fault, "post.") ||
                        strstr(fault, "new.") || strstr(fault, "heap.")));
    else
        CHECK_EQ(WEXITSTATUS(status), 0);
    /* What it leaves behind falls to us, and goes within a second. */
    uint64_t until = check_now_ms() + check_slow(1000);
    pid_t orphans[16];
    for (;;) {
        while (waitpid(-1, &status, WNOHANG) > 0)
            ;
        int n = check_children(orphans, 16);
        for (int i = 0; i < n; i++)
            wake_stopped(orphans[i]);
        if (n == 0)
            return;
        CHECK(check_now_ms() < until);
        check_nap();
    }
}

int main(int argc, char **argv)
{
    static const check_t cases[] = {
        { "scenario: a bit of everything", test_scenario, 30 },
        { NULL, NULL, 0 }
    };
    return check_main(argc, argv, cases);
}
