/* rig.c - see rig.h. */
#define _GNU_SOURCE
#include "rig.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* --- in the worker ------------------------------------------------------ */

/* Per worker; threads may stand in for workers. */
static _Thread_local volatile sig_atomic_t interrupted;
static _Thread_local life_log_t *my_life;

static void nap_ms(uint64_t ms)
{
    struct timespec t = { (time_t)(ms / 1000), (long)(ms % 1000) * 1000000 };
    nanosleep(&t, NULL);
}

/* Until so many ms are over, or it is interrupted (if it listens). */
static int dawdle(uint64_t ms, int listens)
{
    uint64_t until = os_now() + ms * OS_MS;
    while (os_now() < until) {
        if (listens && interrupted)
            return 1;
        struct timespec t = { 0, 200000 };
        nanosleep(&t, NULL);
    }
    return 0;
}

static int work_start(void *context, worker_t *w, buffer_t *complaint)
{
    rig_t *g = context;
    ledger_t *l = g->ledger;
    uint32_t n = atomic_fetch_add(&l->lives, 1) + 1;
    enum init init = n >= g->init_from && n <= g->init_to ? g->init
                                                          : INIT_FINE;
    nap_ms(n % 2 && g->init_odd_ms ? g->init_odd_ms : g->init_ms);
    switch (init) {
    case INIT_FINE:
        break;
    case INIT_RAISE:
        memcpy(complaint->data, "complaint", 9);
        complaint->used = 9;
        return -1;
    case INIT_KILL:
        raise(SIGKILL);
        break;
    case INIT_EXIT:
        exit(5);
    case INIT_HANG:
        for (;;)
            pause();
    case INIT_EXEC:
        execl("/bin/sleep", "sleep", "100", (char *)NULL);
        break;
    }
    my_life = &l->life[n % RIG_LIVES];
    my_life->pid = (int32_t)getpid();
    my_life->slot = w->w_index;
    my_life->generation = w->w_generation;
    my_life->ready_at = os_now();
    atomic_fetch_add(&l->inits, 1);
    return 0;
}

static void begin_task(ledger_t *l, worker_t *w, const job_t *job)
{
    interrupted = 0;
    worker_enter(w);
    atomic_store(&l->pid[job->id], (int32_t)getpid());
    atomic_fetch_add(&l->started[job->id], 1);
    if (my_life) {
        if (!my_life->tasks++)
            my_life->first_at = os_now();
    }
    uint32_t now = atomic_fetch_add(&l->running, 1) + 1;
    uint32_t most = atomic_load(&l->most);
    while (now > most &&
           !atomic_compare_exchange_weak(&l->most, &most, now))
        ;
}

static void become_orphan(ledger_t *l)
{
    pid_t pid = fork();
    if (pid == 0) {
        setsid();
        for (int fd = 3; fd < 200; fd++)
            close(fd);
        sleep(100);
        _exit(0);
    }
    atomic_store(&l->orphan, pid);
}

static void write_big(buffer_t *result, uint64_t size)
{
    while (result->room - result->used < size)
        if (result->grow(result, (size_t)size) < 0)
            abort();
    memset(result->data + result->used, 0x5a, (size_t)size);
    result->used += (size_t)size;
}

static enum record_kind do_job(ledger_t *l, worker_t *w, const job_t *job,
                               const task_t *t, uint64_t *value)
{
    switch ((enum op)job->op) {
    case OP_SQUARE:
        *value = job->a * job->a;
        break;
    case OP_SLEEP:
        if (dawdle(job->a, 1))
            return RECORD_STOPPED;
        break;
    case OP_STUBBORN:
        dawdle(job->a, 0);
        break;
    case OP_TIDY:
        dawdle(60000, 1);
        dawdle(job->a, 0);
        break;
    case OP_HOLD:
        while (!atomic_load(&l->gate[job->a]))
            nap_ms(1);
        break;
    case OP_KILL:
        if (t->attempt <= job->b)
            raise((int)job->a);
        break;
    case OP_EXIT:
        exit((int)job->a);
    case OP_EXIT_NOW:
        _exit((int)job->a);
    case OP_ERROR:
        return RECORD_ERROR;
    case OP_EXEC:
        execl("/bin/sleep", "sleep", "100", (char *)NULL);
        break;
    case OP_ORPHAN:
        become_orphan(l);
        break;
    case OP_FORK:
        if (fork() == 0)
            *value = 666;
        break;
    case OP_CLOSE_ALL:
        for (int fd = 3; fd < 1024; fd++)
            close(fd);
        break;
    case OP_MEMORY: {
        volatile char *kept = malloc(1 << 20);
        for (int i = 0; i < 1 << 20; i += 1024)
            kept[i] = 1;
        break;
    }
    case OP_RECYCLE:
        w->w_recycle = 1;
        break;
    case OP_BIG:
    case OP_KILL_EARLY:
    case OP_REFUSE:
        break;
    }
    return RECORD_VALUE;
}

static enum record_kind run_one(rig_t *g, worker_t *w, const task_t *t,
                                buffer_t *result)
{
    ledger_t *l = g->ledger;
    job_t job;
    if (t->args_size != sizeof job)
        abort();
    memcpy(&job, t->args, sizeof job);
    uint32_t early = atomic_fetch_add(&l->early[job.id], 1) + 1;
    if (job.op == OP_KILL_EARLY && early <= job.b)
        raise((int)job.a);
    uint64_t value = t->number;
    if (job.op == OP_REFUSE)
        return RECORD_REFUSED;
    begin_task(l, w, &job);
    enum record_kind kind = do_job(l, w, &job, t, &value);
    worker_return(w);
    atomic_fetch_sub(&l->running, 1);
    atomic_fetch_add(&l->finished[job.id], 1);
    memcpy(result->data, &value, sizeof value);
    result->used = sizeof value;
    if (job.op == OP_BIG)
        write_big(result, job.a);
    return kind;
}

static void work_run(void *context, worker_t *w)
{
    while (worker_next(w))
        worker_done(w, run_one(context, w, &w->w_task, &w->w_out.record));
}

static void work_stop(void *context, worker_t *w)
{
    rig_t *g = context;
    (void)w;
    atomic_fetch_add(&g->ledger->stops, 1);
    nap_ms(g->stop_ms);
}

static void work_interrupt(void *context)
{
    (void)context;
    interrupted = 1;
}

const work_t rig_work = { NULL, NULL, work_start, work_run, NULL, work_stop,
                          work_interrupt };

/* --- in the parent ------------------------------------------------------ */

rig_t *rig_new(uint32_t processes)
{
    rig_t *g = calloc(1, sizeof *g);
    CHECK(g);
    g->ledger = mmap(NULL, sizeof *g->ledger, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK((void *)g->ledger != MAP_FAILED);
    g->seen = calloc(RIG_TASKS, sizeof *g->seen);
    CHECK(g->seen);
    g->set.processes = g->set.minprocesses = processes;
    g->set.grace = OS_SECOND;
    g->set.events = 1;
    strcpy(g->set.name, "test");
    g->work = rig_work;
    g->work.context = g;
    g->init_to = UINT32_MAX;
    g->init_from = 1;
    g->pool.loop_epoll = -1;
    return g;
}

void rig_start(rig_t *g)
{
    char error[256], small[64];
    draft_t d;
    g->set.log = getenv("RIG_LOG") != NULL;
    int rc = pool_open(&g->pool, &g->set, &g->work, error, sizeof error);
    if (rc < 0) {
        printf("# %s\n", error);
        check_fail(__FILE__, __LINE__, "pool_open");
    }
    draft_open(&d, &g->pool, small, sizeof small);
    memcpy(small, "func", 4);
    d.buffer.used = 4;
    int64_t func = pool_func_new(&g->pool, &d, FUNC_KEPT);
    CHECK(func > 0);
    g->func = (uint32_t)func;
}

static void put_frames(unsigned char *at, const job_t *jobs, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t head = sizeof *jobs << 1;
        memcpy(at, &head, 4);
        memcpy(at + 4, &jobs[i], sizeof *jobs);
        at += 4 + sizeof *jobs;
    }
}

int64_t rig_cell(rig_t *g, job_t *jobs, uint32_t n)
{
    unsigned char small[CELL_INLINE];
    post_t post = {
        .func = g->func, .items = n, .tag = g->next,
        .args_size = n * (4 + sizeof *jobs), .timeout = g->timeout,
        .grace = g->grace ? g->grace : g->set.grace, .retries = g->retries,
    };
    CHECK(g->next + n <= RIG_TASKS);
    if (!g->pool.r)
        return -EPIPE;
    for (uint32_t i = 0; i < n; i++)
        jobs[i].id = g->next + i;
    if (post.args_size <= sizeof small) {
        put_frames(small, jobs, n);
        post.small = small;
    } else {
        int tries = 0;      /* a fault may pretend to an error */
        while (heap_alloc(&g->pool.heap, post.args_size, &post.args) < 0)
            CHECK(tries++ < 10);
        put_frames(region_at(g->pool.r, post.args.offset), jobs, n);
    }
    int64_t ticket;
    uint64_t index;
    while ((ticket = pool_post(&g->pool, &post, &index)) == -ENOSPC &&
           g->pool.unfinished && !g->pool.gone) {
        pool_wait(&g->pool, os_now() + OS_SECOND);
        rig_take(g);
    }
    if (ticket >= 0)
        g->next += n;
    else if (g->pool.r)
        heap_free(&g->pool.heap, &post.args);
    return ticket;
}

static uint32_t post_jobs(rig_t *g, job_t job, uint32_t n, uint32_t per_cell)
{
    uint32_t first = g->next;
    job_t *jobs = calloc(per_cell, sizeof *jobs);
    for (uint32_t i = 0; i < n; i += per_cell) {
        for (uint32_t k = 0; k < per_cell; k++)
            jobs[k] = job;
        CHECK(rig_cell(g, jobs, per_cell) >= 0);
    }
    free(jobs);
    return first;
}

uint32_t rig_post(rig_t *g, enum op op, uint64_t a, uint64_t b, uint32_t n)
{
    return post_jobs(g, (job_t){ op, 0, a, b }, n, 1);
}

uint32_t rig_chunk(rig_t *g, enum op op, uint64_t a, uint64_t b, uint32_t n)
{
    return post_jobs(g, (job_t){ op, 0, a, b }, n, n);
}

static void note(rig_t *g, const outcome_t *out)
{
    if (out->kind == OUTCOME_EVENT) {
        CHECK(out->event.event < EVENTS_COUNT);
        g->events[out->event.event]++;
        g->last_event[out->event.event] = out->event;
        return;
    }
    for (uint32_t i = 0; i < out->count; i++) {
        uint32_t id = out->tag + out->item + i;
        CHECK(id < g->next);
        seen_t *s = &g->seen[id];
        if (s->count++) {
            printf("# task %u: second outcome %d after %d\n", id, out->kind,
                   s->kind);
            rig_show(g);
            check_fail(__FILE__, __LINE__, "one outcome for each task");
        }
        s->kind = (uint8_t)out->kind;
        s->attempt = out->attempt;
        s->signal = out->signal;
        s->exitcode = out->exitcode;
        s->phase = out->phase;
        s->pid = out->pid;
        s->at = os_now();
        if (out->kind == OUTCOME_VALUE && out->size >= 8)
            memcpy(&s->value, out->bytes, 8);
    }
}

uint32_t rig_take(rig_t *g)
{
    outcome_t out;
    uint32_t n = 0;
    pool_look(&g->pool);
    for (; pool_read(&g->pool, &out); n++)
        note(g, &out);
    pool_read_done(&g->pool);
    return n;
}

static void take_until(rig_t *g, int32_t id, uint64_t ms)
{
    uint64_t until = os_now() + check_slow(ms) * OS_MS;
    for (;;) {
        rig_take(g);
        if (id < 0 ? !g->pool.unfinished : g->seen[id].count != 0)
            return;
        pool_wait(&g->pool, until);
        if (os_now() >= until) {
            printf("# %llu tasks have no outcome\n",
                   (unsigned long long)g->pool.unfinished);
            rig_show(g);
            check_fail(__FILE__, __LINE__, "outcomes in time");
        }
    }
}

void rig_finish(rig_t *g, uint64_t ms)
{
    take_until(g, -1, ms);
}

void rig_await(rig_t *g, uint32_t id, uint64_t ms)
{
    take_until(g, (int32_t)id, ms);
}

void rig_check_ledger(const rig_t *g)
{
    const ledger_t *l = g->ledger;
    for (uint32_t id = 0; id < g->next; id++) {
        const seen_t *s = &g->seen[id];
        uint32_t started = atomic_load(&l->started[id]);
        if (s->count != 1 || started > 1 + g->retries ||
            (s->kind == OUTCOME_VALUE && !atomic_load(&l->finished[id]))) {
            printf("# task %u: %u outcomes (kind %u), started %u, finished "
                   "%u\n", id, s->count, s->kind, started,
                   atomic_load(&l->finished[id]));
            rig_show(g);
            check_fail(__FILE__, __LINE__, "the ledger is right");
        }
    }
}

void rig_probe(rig_t *g)
{
    uint32_t id = rig_post(g, OP_SQUARE, 7, 0, 1);
    rig_await(g, id, 10000);
    CHECK_EQ(g->seen[id].kind, OUTCOME_VALUE);
    CHECK_EQ(g->seen[id].value, 49);
}

static void end(rig_t *g)
{
    pool_forget(&g->pool);
    munmap(g->ledger, sizeof *g->ledger);
    free(g->seen);
    free(g);
}

void rig_close(rig_t *g)
{
    pool_close(&g->pool);
    rig_finish(g, 20000);
    int rc = pool_join(&g->pool, os_now() + check_slow(10000) * OS_MS);
    if (rc != 1) {
        rig_show(g);
        check_fail_values(__FILE__, __LINE__, "joined", rc, 1);
    }
    pid_t pids[16];
    CHECK_EQ(check_children(pids, 16), 0);
    rig_take(g);
    CHECK_EQ(pool_look(&g->pool), END_CLOSED);
    rig_check_ledger(g);
    CHECK(g->pool.r == NULL);
    end(g);
}

void rig_terminate(rig_t *g)
{
    uint64_t begun = check_now_ms();
    pool_terminate(&g->pool);
    CHECK_EQ(pool_join(&g->pool, os_now() + check_slow(1000) * OS_MS), 1);
    CHECK(check_now_ms() <= begun + check_slow(1000));
    rig_take(g);
    CHECK_EQ(g->pool.unfinished, 0);
    rig_check_ledger(g);
    end(g);
}

void rig_drop(rig_t *g)
{
    pool_terminate(&g->pool);
    CHECK_EQ(pool_join(&g->pool, os_now() + check_slow(2000) * OS_MS), 1);
    rig_take(g);
    CHECK_EQ(g->pool.unfinished, 0);
    rig_check_ledger(g);
    end(g);
}

void rig_open_gate(rig_t *g, uint32_t gate)
{
    atomic_store(&g->ledger->gate[gate], 1);
}

pid_t rig_pid(const rig_t *g, uint32_t slot)
{
    return g->pool.r ? atomic_load(&g->pool.r->slots[slot].pid) : 0;
}

uint32_t rig_ready(const rig_t *g)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < g->pool.slots_used; i++)
        n += rig_pid(g, i) != 0;
    return n;
}

int rig_idle(const rig_t *g, uint32_t slot)
{
    return atomic_load(&g->pool.r->idle[slot / 64]) >> (slot % 64) & 1;
}

uint64_t rig_recycled(rig_t *g, enum reason reason)
{
    return pool_tally(&g->pool)->recycled[reason];
}

/* --- for whoever reads a failure ---------------------------------------- */

static void show_slot(const region_t *r, uint32_t i)
{
    static const char *const phases[] = { "none", "starting", "failed",
                                          "ready", "leaving" };
    const slot_t *s = &r->slots[i];
    printf("#  slot %u: turn %u pid %d tail %llu/%llu intent %lld begun %llu "
           "run %d item %u bell %u order %llx lives", i,
           atomic_load(&s->turn), atomic_load(&s->pid),
           (unsigned long long)TAIL_BYTES(atomic_load(&s->tail)),
           (unsigned long long)TAIL_ITEM(atomic_load(&s->tail)),
           (long long)atomic_load(&s->intent) - 1,
           (unsigned long long)atomic_load(&s->begun),
           RUN_STATE(atomic_load(&s->run)), RUN_ITEM(atomic_load(&s->run)),
           atomic_load(&s->bell), (unsigned long long)atomic_load(&s->order));
    for (int k = 0; k < LIVES_MAX; k++) {
        uint64_t life = atomic_load(&s->life[k]);
        printf(" %u:%s", LIFE_GENERATION(life), phases[LIFE_PHASE(life)]);
    }
    printf("\n");
}

void rig_show(const rig_t *g)
{
    const region_t *r = g->pool.r;
    if (!r) {
        printf("#  no region; end %d\n", g->pool.end);
        return;
    }
    printf("#  head %llu claim %llu closing %u wanted %u asleep %u spinner %u "
           "armed %u state %u idle %llx gone %u end %d\n",
           (unsigned long long)atomic_load(&r->head),
           (unsigned long long)(atomic_load(&r->claim) & TAIL_MASK),
           atomic_load(&r->closing), atomic_load(&r->wanted),
           atomic_load(&r->asleep), atomic_load(&r->spinner),
           atomic_load(&r->armed), atomic_load(&r->state),
           (unsigned long long)atomic_load(&r->idle[0]), g->pool.gone,
           g->pool.end);
    for (uint32_t i = 0; i < g->pool.slots_used && i < 8; i++)
        show_slot(r, i);
    for (uint64_t i = 0, n = 0; n < 8 && i < SEGMENT_CELLS; i++) {
        const cell_t *cell = region_cell(r, i);
        uint64_t word = atomic_load(&cell->word);
        if (CELL_STATE(word) == CELL_FREE)
            continue;
        printf("#  cell %llu: state %d owner %u gen %u position %llu items %u "
               "first %u cancel %u attempt %u requeues %u\n",
               (unsigned long long)i, CELL_STATE(word), CELL_OWNER(word),
               CELL_GEN(word), (unsigned long long)cell->position,
               cell->items, atomic_load(&cell->first),
               atomic_load(&cell->cancel), atomic_load(&cell->attempt),
               atomic_load(&cell->requeues));
        n++;
    }
    fflush(stdout);
}
