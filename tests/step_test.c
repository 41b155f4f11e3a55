/*
** step_test.c - SIGKILL at every instruction. A worker is single-stepped by
** ptrace from its wake-up over claim, run, publish and whatever follows, and
** killed (or held up) after k instructions, for k = 0, 1, 2 ... until it
** sleeps again or has left. Then every task must have exactly one outcome,
** and with a retry left, a result. The keeper is killed so on its way through
** the reaping of a worker; then the pool must be broken, and all told so.
**
** STEP in the environment: "full" (every k; every few of a section of more
** than 2000 instructions), or how many k to try of each section, spread evenly
** from a random start. limit: 1800 s
*/
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/time.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/rig.h"

#define MS OS_MS

/* --- stepping ----------------------------------------------------------- */

enum { STEPPED, ENDED, ASLEEP };

/* Stops a process of the pool wherever it is. 0 if that is not permitted. */
static int hold(pid_t pid)
{
    int status;
    if (ptrace(PTRACE_SEIZE, pid, 0, 0) < 0) {
        if (errno == EPERM)
            check_skip("ptrace is not permitted");
        return 0;
    }
    if (ptrace(PTRACE_INTERRUPT, pid, 0, 0) < 0)
        return 0;
    return waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status);
}

/* R runs, S sleeps in a call, t is stopped. */
static char state_of(pid_t pid)
{
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "r");
    if (file) {
        size_t n = fread(text, 1, sizeof text - 1, file);
        text[n] = '\0';
        fclose(file);
    }
    char *at = strrchr(text, ')');
    return at ? at[2] : 'X';
}

static void on_alarm(int signal)
{
    (void)signal;
}

/* Ends waits every 10 ms, for a look at what is waited for. */
static void set_alarm(int on)
{
    struct sigaction action = { .sa_handler = on_alarm };
    struct itimerval every = { { 0, 10000 }, { 0, 10000 } };
    if (!on)
        memset(&every, 0, sizeof every);
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &every, NULL);
}

/* Waits for the next stop. A process that is found asleep in a call several
** times has nothing to do any more. */
static int await_stop(pid_t pid, int *signal)
{
    int status;
    pid_t got;
    for (uint32_t asleep = 0; (got = waitpid(pid, &status, __WALL)) < 0;) {
        if (errno != EINTR)
            return ENDED;
        asleep = state_of(pid) == 'S' ? asleep + 1 : 0;
        if (asleep == 3)
            return ASLEEP;
    }
    if (!WIFSTOPPED(status))
        return ENDED;
    *signal = WSTOPSIG(status);
    if (*signal == SIGTRAP)
        *signal = 0;
    return STEPPED;
}

/* Where the kernel's own code for reading clocks is mapped, in all processes
** forked from this one. */
static uint64_t vdso_from, vdso_to;

static void find_vdso(void)
{
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long from, to;
        if (strstr(line, "[vdso]") && sscanf(line, "%lx-%lx", &from, &to) == 2)
            vdso_from = from, vdso_to = to;
    }
    if (maps)
        fclose(maps);
}

/*
** Reading the clock starts again whenever the clock ticks, so one that is
** single-stepped never ends. Once in there, it is let run to where it returns
** to; it writes nothing that others see.
*/
static int leave_vdso(pid_t pid, int *signal)
{
    struct user_regs_struct regs;
    uint64_t rip = (uint64_t)ptrace(PTRACE_PEEKUSER, pid,
                                    offsetof(struct user, regs.rip), 0);
    if (rip < vdso_from || rip >= vdso_to)
        return STEPPED;
    ptrace(PTRACE_GETREGS, pid, 0, &regs);
    uint64_t back = (uint64_t)ptrace(PTRACE_PEEKDATA, pid, regs.rsp, 0);
    long text = ptrace(PTRACE_PEEKTEXT, pid, back, 0);
    ptrace(PTRACE_POKETEXT, pid, back, (text & ~0xffL) | 0xcc);
    ptrace(PTRACE_CONT, pid, 0, 0);
    int how = await_stop(pid, signal);
    if (how != STEPPED)
        return how;
    ptrace(PTRACE_POKETEXT, pid, back, text);
    ptrace(PTRACE_GETREGS, pid, 0, &regs);
    if (regs.rip == back + 1) {
        regs.rip = back;
        ptrace(PTRACE_SETREGS, pid, 0, &regs);
    }
    return how;
}

static int step_once(pid_t pid, int *signal)
{
    if (ptrace(PTRACE_SINGLESTEP, pid, 0, *signal) < 0)
        return ENDED;
    int how = await_stop(pid, signal);
    return how == STEPPED ? leave_vdso(pid, signal) : how;
}

/* Up to n instructions; how many there were. */
static uint32_t step(pid_t pid, uint32_t n, int *how)
{
    int signal = 0;
    uint32_t i = 0;
    set_alarm(1);
    for (*how = STEPPED; i < n && *how == STEPPED; i++)
        *how = step_once(pid, &signal);
    set_alarm(0);
    return i;
}

/* Its death is told to its tracer first, and only then to the keeper. */
static void kill_held(pid_t pid)
{
    int status;
    kill(pid, SIGKILL);
    while (waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status))
        ;
}

/* Is a signal waiting to be delivered? */
static int is_pending(pid_t pid, int signal)
{
    char path[64], line[128];
    unsigned long long mask = 0, bits;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "SigPnd: %llx", &bits) == 1)
            mask = bits;
    if (file)
        fclose(file);
    return mask >> (signal - 1) & 1;
}

static void let_go(pid_t pid, int how)
{
    int status;
    if (how == ASLEEP) {    /* only what is stopped can be let go */
        ptrace(PTRACE_INTERRUPT, pid, 0, 0);
        if (waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status))
            return;
        /* The call that it was in counts as a step, which is told after the
        ** interruption, and would kill it if nobody listened. */
        if (is_pending(pid, SIGTRAP)) {
            ptrace(PTRACE_CONT, pid, 0, 0);
            waitpid(pid, &status, __WALL);
        }
    }
    ptrace(PTRACE_DETACH, pid, 0, 0);
}

/* --- which instructions ------------------------------------------------- */

typedef struct sweep {
    uint32_t next, stride, samples, tried;
} sweep_t;

static sweep_t sweep_begin(uint32_t length, uint32_t samples)
{
    const char *text = getenv("STEP");
    sweep_t s = { 0, 1, UINT32_MAX, 0 };
    if (text && strcmp(text, "full") == 0) {
        s.stride = length / 2000 + 1;   /* copying: many alike */
        return s;
    }
    s.samples = text ? (uint32_t)strtoul(text, NULL, 10) : samples;
    s.stride = length / (s.samples ? s.samples : 1) + 1;
    s.next = (uint32_t)(os_now() / 1000) % s.stride;
    return s;
}

/* --- a worker ----------------------------------------------------------- */

/* What a section is: the pool, and what is posted to its sleeping worker. */
typedef struct section {
    uint32_t processes, maxtasks;
    enum op op;
    uint64_t a;
    uint32_t tasks;             /* in one cell */
    int finalizer;
} section_t;

static rig_t *open_section(const section_t *x)
{
    rig_t *g = rig_new(x->processes);
    g->set.events = 0;
    g->set.maxtasks = x->maxtasks;
    g->set.has_finalizer = (uint32_t)x->finalizer;
    rig_start(g);
    return g;
}

static void settle(rig_t *g, uint32_t processes)
{
    for (uint32_t i = 0; i < processes; i++)
        RIG_SOON(g, rig_pid(g, i) && rig_idle(g, i), 5000);
}

static void check_outcomes(rig_t *g, const section_t *x, uint32_t first,
                           uint32_t k)
{
    uint32_t lost = 0;
    for (uint32_t i = first; i < first + x->tasks; i++) {
        const seen_t *s = &g->seen[i];
        uint32_t started = atomic_load(&g->ledger->started[i]);
        int good = s->kind == OUTCOME_VALUE || s->kind == OUTCOME_EXIT;
        lost += s->kind == OUTCOME_LOST;
        if (s->count != 1 || (!good && s->kind != OUTCOME_LOST) ||
            started > 1 + g->retries || (good && !started) ||
            (g->retries && !good)) {
            printf("# killed after %u instructions: task %u: %u outcomes, "
                   "kind %u, started %u\n", k, i - first, s->count, s->kind,
                   started);
            rig_show(g);
            check_fail(__FILE__, __LINE__, "one outcome");
        }
    }
    CHECK(lost <= 1);
}

/* Steps the worker of slot 0 over k instructions of the section; what became
** of it. */
static uint32_t enter(rig_t *g, const section_t *x, uint32_t k, pid_t *pid,
                      int *how)
{
    settle(g, x->processes);
    *pid = rig_pid(g, 0);
    if (!hold(*pid))
        check_fail(__FILE__, __LINE__, "the worker can be held");
    rig_chunk(g, x->op, x->a, 0, x->tasks);
    return step(*pid, k, how);
}

static uint32_t length_of(const section_t *x)
{
    rig_t *g = open_section(x);
    pid_t pid;
    int how;
    uint32_t n = enter(g, x, 10000000, &pid, &how);
    let_go(pid, how);
    rig_finish(g, 5000);
    rig_close(g);
    return n;
}

static void kill_in(const section_t *x, uint32_t samples)
{
    sweep_t sweep = sweep_begin(length_of(x), samples);
    rig_t *g = open_section(x);
    int how = STEPPED;
    uint64_t heap = g->pool.heap.h_used;
    for (uint32_t k = sweep.next; how == STEPPED; k += sweep.stride) {
        pid_t pid;
        uint32_t first = g->next;
        g->retries = sweep.tried++ % 2;
        enter(g, x, k, &pid, &how);
        if (how != ENDED)
            kill_held(pid);
        rig_finish(g, 5000);
        RIG_SOON(g, rig_pid(g, 0) != pid, 5000);
        check_outcomes(g, x, first, k);
        CHECK_EQ(g->pool.heap.h_used, heap);
        if (g->next > RIG_TASKS - 1000)
            break;
    }
    printf("# %u kills in %u instructions\n", sweep.tried,
           sweep.tried * sweep.stride);
    g->retries = 1;
    rig_probe(g);
    rig_close(g);
}

static void test_one_worker(void)
{
    static const section_t x = { 1, 0, OP_SQUARE, 3, 1, 0 };
    kill_in(&x, 30);
}

static void test_two_workers(void)
{
    static const section_t x = { 2, 0, OP_SQUARE, 3, 3, 0 };
    kill_in(&x, 30);
}

/* The limit is reached in the middle of the cell: the rest is put back, the
** turn given, the finalizer run. */
static void test_leaving(void)
{
    static const section_t x = { 1, 2, OP_SQUARE, 3, 4, 1 };
    kill_in(&x, 30);
}

static void test_leaving_two(void)
{
    static const section_t x = { 2, 2, OP_SQUARE, 3, 4, 0 };
    kill_in(&x, 15);
}

static void test_exit(void)
{
    static const section_t x = { 1, 0, OP_EXIT, 3, 2, 0 };
    kill_in(&x, 15);
}

static void test_large_result(void)
{
    static const section_t x = { 1, 0, OP_BIG, 3000, 2, 0 };
    kill_in(&x, 15);
}

/* Held up at an instruction, for as long as others go on; then it goes on
** too, as a process that lost its CPU does. */
static void test_held_up(void)
{
    static const section_t x = { 2, 3, OP_SQUARE, 3, 4, 0 };
    sweep_t sweep = sweep_begin(length_of(&x), 20);
    rig_t *g = open_section(&x);
    int how = STEPPED;
    for (uint32_t k = sweep.next; how == STEPPED; k += sweep.stride) {
        pid_t pid;
        uint32_t first = g->next;
        enter(g, &x, k, &pid, &how);
        for (int i = 0; i < 3; i++) {
            rig_chunk(g, OP_SQUARE, 3, 0, 1 + check_below(4));
            for (int nap = 0; nap < 5; nap++)
                check_nap();
            rig_take(g);
        }
        let_go(pid, how);
        rig_finish(g, 5000);
        RIG_SOON(g, how == ASLEEP || rig_pid(g, 0) != pid || rig_idle(g, 0),
                 5000);
        for (uint32_t i = first; i < g->next; i++) {
            CHECK_EQ(g->seen[i].kind, OUTCOME_VALUE);
            CHECK_EQ(atomic_load(&g->ledger->started[i]), 1);
        }
        if (g->next > RIG_TASKS - 1000)
            break;
    }
    rig_close(g);
}

/* --- the keeper --------------------------------------------------------- */

/* A busy worker dies; the keeper, held until then, gets k instructions far.
** How it ended. */
static int kill_keeper_after(uint32_t k, uint32_t *length)
{
    rig_t *g = rig_new(2);
    g->set.maxtasks = 4;
    g->set.events = 0;
    rig_start(g);
    settle(g, 2);
    rig_chunk(g, OP_HOLD, 0, 0, 2);
    rig_post(g, OP_SQUARE, 3, 0, 4);
    RIG_SOON(g, atomic_load(&g->ledger->started[0]), 2000);
    RIG_SOON(g, !(g->pool.unfinished - 2), 2000);
    int how;
    if (!hold(g->pool.keeper))
        check_fail(__FILE__, __LINE__, "the keeper can be held");
    kill(atomic_load(&g->ledger->pid[0]), SIGKILL);
    rig_open_gate(g, 0);
    *length = step(g->pool.keeper, k, &how);
    if (how == STEPPED)
        kill_held(g->pool.keeper);
    else
        let_go(g->pool.keeper, how);
    if (how == STEPPED) {
        rig_finish(g, 3000);
        /* A life just forked may hold the keeper's socket for a moment. */
        RIG_SOON(g, pool_look(&g->pool) == END_BROKEN, 1000);
        for (uint32_t i = 0; i < g->next; i++)
            CHECK_EQ(g->seen[i].count, 1);
        CHECK(g->seen[0].kind == OUTCOME_LOST ||
              g->seen[0].kind == OUTCOME_ENDED);
        CHECK(g->seen[1].kind == OUTCOME_VALUE ||
              g->seen[1].kind == OUTCOME_ENDED);
        rig_drop(g);
    } else {
        rig_finish(g, 3000);
        CHECK_EQ(g->seen[0].kind, OUTCOME_LOST);
        CHECK_EQ(g->seen[1].kind, OUTCOME_VALUE);
        rig_close(g);
    }
    return how;
}

static void test_keeper(void)
{
    uint32_t length, n;
    kill_keeper_after(10000000, &length);
    sweep_t sweep = sweep_begin(length, 12);
    if (sweep.samples == UINT32_MAX)    /* each needs a pool of its own */
        sweep.stride = 5;
    for (uint32_t k = sweep.next; k < length; k += sweep.stride) {
        sweep.tried++;
        if (kill_keeper_after(k, &n) != STEPPED)
            break;
    }
    printf("# %u kills in %u instructions\n", sweep.tried, length);
}

int main(int argc, char **argv)
{
    static const check_t cases[] = {
        { "step: one worker, one task", test_one_worker, 600 },
        { "step: two workers, a chunk", test_two_workers, 600 },
        { "step: leaving in the middle of a chunk", test_leaving, 600 },
        { "step: leaving, and another worker", test_leaving_two, 600 },
        { "step: a task that exits", test_exit, 600 },
        { "step: a large result", test_large_result, 600 },
        { "step: held up", test_held_up, 600 },
        { "step: the keeper while it reaps", test_keeper, 600 },
        { NULL, NULL, 0 }
    };
    if (CHECK_CHECKER) {
        printf("ok step: not in a checker's build # SKIP\n");
        return 0;
    }
    /* Else each life would look its functions up anew, in thousands of
    ** instructions that are none of ours. */
    if (!getenv("LD_BIND_NOW")) {
        setenv("LD_BIND_NOW", "1", 1);
        execv("/proc/self/exe", argv);
    }
    find_vdso();
    return check_main(argc, argv, cases);
}
