/*
** engine_thread_test.c - the engine with threads in the workers' place, for
** checkers that cannot see between processes (make tsan). Each thread lives
** one life of a slot after the other, as a worker's processes do; the test is
** keeper and parent: it hands the turn on, and reads what the workers say,
** by the functions that the real ones use.
**
** A death is played by a thread that leaves its life at a fault point of the
** task: with a claimed cell, half a record, no turn given. What the keeper
** does then is done here in its words (board_put_back, clearing the slot),
** since the keeper's own code is for processes.
*/
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../src/board.h"
#include "../src/outbox.h"
#include "../src/wake.h"
#include "../src/worker.h"
#include "support/check.h"
#include "../src/os.h"

enum { WORKERS = 4, CELLS = 3000, ITEMS = 4, IDS = CELLS * ITEMS };

typedef struct job {
    uint32_t id, dies;          /* dies: how often, before it returns */
} job_t;

typedef struct game {
    region_t *r;
    work_t work;
    _Atomic uint32_t deaths, lives;
    _Atomic uint32_t ran[IDS];
    uint32_t told[IDS];         /* the parent's */
    uint32_t values, lost;
    uint64_t at[WORKERS];       /* readers */
    uint64_t cell[WORKERS];
    uint32_t item[WORKERS];
} game_t;

typedef struct player {
    game_t *game;
    uint32_t slot;
    pthread_t thread;
} player_t;

static _Thread_local jmp_buf death;

/* --- a worker ----------------------------------------------------------- */

static enum record_kind run_task(game_t *g, worker_t *w, const task_t *t,
                                 buffer_t *result)
{
    job_t job;
    CHECK_EQ(t->args_size, sizeof job);
    memcpy(&job, t->args, sizeof job);
    worker_enter(w);
    uint32_t times = atomic_fetch_add(&g->ran[job.id], 1) + 1;
    uint32_t size = 16 + job.id % 1500;
    while (result->room < size)
        if (result->grow(result, size) < 0)
            abort();
    memset(result->data, (int)job.id, size);
    memcpy(result->data, &job.id, sizeof job.id);
    result->used = size;
    if (times <= job.dies)
        longjmp(death, 1);
    worker_return(w);
    return RECORD_VALUE;
}

static void run(void *context, worker_t *w)
{
    while (worker_next(w))
        worker_done(w, run_task(context, w, &w->w_task, &w->w_out.record));
}

/* What crew.c does when it has reaped a worker that had its turn. The thread
** itself does it: it is over then, as a reaped process is. */
static void bury(game_t *g, const worker_t *w)
{
    region_t *r = g->r;
    slot_t *s = w->w_slot;
    uint32_t me = SPINNER(w->w_index);
    cell_t *cell = region_cell(r, atomic_load(&s->intent) - 1);
    uint64_t word = atomic_load(&cell->word);
    CHECK_EQ(CELL_STATE(word), CELL_CLAIMED);
    CHECK_EQ(CELL_OWNER(word), w->w_index);
    CHECK_EQ(atomic_load(&s->begun), cell->position + 1);
    uint32_t next = TAIL_ITEM(atomic_load(&s->tail));
    CHECK_EQ(RUN_ITEM(atomic_load(&s->run)), next);
    atomic_fetch_add(&cell->attempt, 1);
    board_put_back(r, cell, next);
    atomic_compare_exchange_strong(&r->spinner, &me, 0);
    atomic_fetch_and(&r->idle[0], ~(UINT64_C(1) << w->w_index));
    atomic_store(&s->bell, 0);
    atomic_store(&s->starved, 0);
    atomic_store(&s->turn, w->w_generation + 1);
    atomic_fetch_add(&g->deaths, 1);
    wake_worker(r);
}

/* One life; why it ended. */
static enum reason live(game_t *g, uint32_t slot, uint32_t generation)
{
    worker_t w;
    atomic_store(&g->r->slots[slot].life[generation % LIVES_MAX],
                 LIFE_WORD(generation, REASON_NONE, PHASE_STARTING));
    worker_open(&w, g->r, slot, generation, &g->work);
    atomic_fetch_add(&g->lives, 1);
    if (setjmp(death)) {
        bury(g, &w);
        return REASON_CRASH;
    }
    return worker_serve(&w);
}

static void *play(void *argument)
{
    player_t *p = argument;
    for (;;) {
        uint32_t generation = atomic_load(&p->game->r->slots[p->slot].turn);
        if (live(p->game, p->slot, generation) == REASON_CLOSE)
            return NULL;
    }
}

/* --- the parent --------------------------------------------------------- */

static void take_record(game_t *g, board_t *b, uint32_t slot,
                        const record_t *rec)
{
    uint32_t id;
    if (rec->cell) {
        g->cell[slot] = rec->cell->cell;
        g->item[slot] = rec->cell->item;
    }
    cell_t *cell = region_cell(g->r, g->cell[slot]);
    CHECK_EQ(rec->kind, RECORD_VALUE);
    memcpy(&id, rec->bytes, sizeof id);
    CHECK(id < IDS);
    CHECK_EQ(rec->size, 16 + id % 1500);
    for (uint64_t i = sizeof id; i < rec->size; i++)
        CHECK_EQ(rec->bytes[i], (unsigned char)id);
    CHECK_EQ(cell->number + g->item[slot], id);
    CHECK_EQ(g->told[id]++, 0);
    g->values++;
    g->item[slot]++;
    /* The cell is over when its last item is told; items come in order. */
    uint32_t left = 0;
    for (uint32_t i = 0; i < cell->items; i++)
        left += !g->told[cell->number + i];
    if (!left)
        board_free(b, cell, cell->position);
}

/* One look at every outbox; how many records there were. */
static uint32_t take(game_t *g, board_t *b)
{
    uint32_t n = 0;
    for (uint32_t slot = 0; slot < WORKERS; slot++) {
        uint64_t end = atomic_load_explicit(&g->r->slots[slot].tail,
                                            memory_order_acquire);
        record_t rec;
        int rc;
        for (; (rc = outbox_read(g->r, slot, &g->at[slot], end, &rec)) == 1;
             n++)
            take_record(g, b, slot, &rec);
        CHECK_EQ(rc, 0);
        outbox_release(g->r, slot, g->at[slot]);
    }
    return n;
}

static int something_to_take(const game_t *g)
{
    for (uint32_t slot = 0; slot < WORKERS; slot++)
        if (TAIL_BYTES(atomic_load(&g->r->slots[slot].tail)) != g->at[slot])
            return 1;
    return 0;
}

static void sleep_until_rung(game_t *g)
{
    atomic_store(&g->r->armed, BELL_ARMED);
    if (!something_to_take(g))
        os_wait_readable(&g->r->bell_fd, 1, os_now() + OS_SECOND / 2);
    atomic_store(&g->r->armed, BELL_QUIET);
    os_quiet(g->r->bell_fd);
}

static void fill_cell(game_t *g, cell_t *cell, uint32_t number, int deaths)
{
    uint32_t head = sizeof(job_t) << 1;
    unsigned char *at = cell->small;
    cell->items = 1 + check_below(ITEMS);
    if (cell->items * (4 + sizeof(job_t)) > sizeof cell->small)
        cell->items = (uint32_t)(sizeof cell->small / (4 + sizeof(job_t)));
    for (uint32_t i = 0; i < cell->items; i++) {
        job_t job = { number + i,
                      deaths && check_below(20) == 0 ? 1 + check_below(2)
                                                     : 0 };
        memcpy(at, &head, 4);
        memcpy(at + 4, &job, sizeof job);
        at += 4 + sizeof job;
    }
    cell->args = (uint64_t)(cell->small - (unsigned char *)g->r);
    cell->args_size = (uint64_t)(at - cell->small);
    cell->number = number;
    cell->func = cell->args;
    cell->func_size = 0;
    cell->timeout = 0;
    atomic_store_explicit(&cell->first, 0, memory_order_relaxed);
    atomic_store_explicit(&cell->cancel, 0, memory_order_relaxed);
    atomic_store_explicit(&cell->attempt, 1, memory_order_relaxed);
    atomic_store_explicit(&cell->requeues, 0, memory_order_relaxed);
}

/* How many ids were posted. */
static uint32_t post_all(game_t *g, board_t *b, uint32_t cells, int deaths)
{
    uint32_t number = 0;
    for (uint32_t n = 0; n < cells; n++) {
        uint64_t index;
        while ((index = board_next(b)) == NO_CELL)
            if (!take(g, b))
                sleep_until_rung(g);
        cell_t *cell = region_cell(g->r, index);
        fill_cell(g, cell, number, deaths);
        number += cell->items;
        board_post(b, cell);
        wake_worker(g->r);
        if (check_below(8) == 0)
            take(g, b);
        if (check_below(64) == 0)       /* let them fall asleep */
            usleep(200);
    }
    return number;
}

static void run_game(uint32_t maxtasks, int deaths, const char *region)
{
    char error[256];
    settings_t set = { .processes = WORKERS, .maxtasks = maxtasks };
    static game_t game;
    game_t *g = &game;
    board_t b;
    player_t players[WORKERS];
    setenv("PROCPOOL_REGION", region, 1);
    g->r = region_new(&set, error, sizeof error);
    CHECK(g->r);
    g->r->cpus = 2;
    g->r->bell_fd = os_eventfd();
    g->r->kick_fd = os_eventfd();
    g->work = (work_t){ .context = g, .run = run };
    CHECK_EQ(board_open(&b, g->r), 0);
    for (uint32_t i = 0; i < WORKERS; i++) {
        players[i] = (player_t){ .game = g, .slot = i };
        CHECK_EQ(pthread_create(&players[i].thread, NULL, play, &players[i]),
                 0);
    }
    uint32_t cells = CHECK_TSAN ? CELLS / 3 : CELLS;
    uint32_t posted = post_all(g, &b, cells, deaths);
    uint64_t until = os_now() + check_slow(20000) * OS_MS;
    while (g->values < posted) {
        if (!take(g, &b))
            sleep_until_rung(g);
        CHECK(os_now() < until);
    }
    atomic_store(&g->r->closing, 1);
    while (wake_worker(g->r))
        ;
    for (uint32_t i = 0; i < WORKERS; i++) {
        slot_t *s = &g->r->slots[i];
        if (atomic_exchange(&s->bell, 0))
            os_futex_wake(&s->bell, 1);
        pthread_join(players[i].thread, NULL);
    }
    for (uint32_t id = 0; id < posted; id++)
        CHECK_EQ(g->told[id], 1);
    CHECK(!deaths || atomic_load(&g->deaths) > 10);
    CHECK(!maxtasks || atomic_load(&g->lives) >= posted / maxtasks);
    close(g->r->bell_fd);
    close(g->r->kick_fd);
    board_close(&b);
    region_free(g->r);
}

static void test_plain(void)
{
    run_game(0, 0, "67108864");
}

static void test_small_region(void)
{
    run_game(0, 0, "1048576");
}

static void test_recycling(void)
{
    run_game(3, 0, "67108864");
}

static void test_deaths(void)
{
    run_game(0, 1, "67108864");
}

static void test_all(void)
{
    run_game(5, 1, "1048576");
}

int main(int argc, char **argv)
{
    static const check_t cases[] = {
        { "threads: tasks run", test_plain, 60 },
        { "threads: outboxes run full", test_small_region, 60 },
        { "threads: lives end", test_recycling, 60 },
        { "threads: lives end in tasks", test_deaths, 60 },
        { "threads: all of it", test_all, 60 },
        { NULL, NULL, 0 }
    };
    return check_main(argc, argv, cases);
}
