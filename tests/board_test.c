/*
** board_test.c - src/board.c: cells are claimed once each, in order, whoever
** claims, puts back, withdraws or dies meanwhile; storage is used again.
*/
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "board.h"
#include "os.h"
#include "support/check.h"

static region_t *open_region(const char *bytes, uint32_t processes)
{
    char error[256];
    settings_t set = { .processes = processes };
    if (bytes)
        setenv("PROCPOOL_REGION", bytes, 1);
    region_t *r = region_new(&set, error, sizeof error);
    CHECK(r);
    return r;
}

static uint64_t post(board_t *b, uint32_t items)
{
    uint64_t index = board_next(b);
    CHECK(index != NO_CELL);
    cell_t *cell = region_cell(b->b_region, index);
    cell->items = items;
    atomic_store(&cell->first, 0);
    atomic_store(&cell->cancel, 0);
    atomic_store(&cell->attempt, 1);
    atomic_store(&cell->requeues, 0);
    board_post(b, cell);
    return index;
}

static void test_order(void)
{
    region_t *r = open_region("16777216", 2);
    board_t b;
    CHECK_EQ(board_open(&b, r), 0);
    CHECK_EQ(board_queued(r), 0);
    CHECK_EQ(board_claim(r, 0, 1), NO_CELL);
    uint64_t index[1000];
    for (int i = 0; i < 1000; i++)
        index[i] = post(&b, 1);
    CHECK_EQ(board_count_queued(&b), 1000);
    for (int i = 0; i < 1000; i++) {
        CHECK(board_queued(r));
        CHECK_EQ(board_claim(r, (uint32_t)i % 2, 7), index[i]);
        cell_t *cell = region_cell(r, index[i]);
        uint64_t word = atomic_load(&cell->word);
        CHECK_EQ(CELL_STATE(word), CELL_CLAIMED);
        CHECK_EQ(CELL_OWNER(word), i % 2);
        CHECK_EQ(CELL_GEN(word), 7);
        CHECK_EQ(cell->position, i);
        CHECK_EQ(atomic_load(&r->slots[i % 2].intent), index[i] + 1);
    }
    CHECK_EQ(board_claim(r, 0, 7), NO_CELL);
    CHECK_EQ(board_count_queued(&b), 0);
    board_close(&b);
    region_free(r);
}

static void test_put_back(void)
{
    region_t *r = open_region("16777216", 2);
    board_t b;
    CHECK_EQ(board_open(&b, r), 0);
    uint64_t index[10];
    for (int i = 0; i < 10; i++)
        index[i] = post(&b, 5);
    for (int i = 0; i < 6; i++)
        CHECK_EQ(board_claim(r, 0, 1), index[i]);
    /* Back to their old places in the order, both before what was not yet
    ** claimed. */
    board_put_back(r, region_cell(r, index[4]), 3);
    board_put_back(r, region_cell(r, index[2]), 1);
    CHECK_EQ(board_count_queued(&b), 4 * 5 + 2 + 4);
    CHECK_EQ(board_claim(r, 1, 1), index[2]);
    CHECK_EQ(atomic_load(&region_cell(r, index[2])->first), 1);
    CHECK_EQ(board_claim(r, 1, 1), index[4]);
    CHECK_EQ(board_claim(r, 1, 1), index[6]);
    board_close(&b);
    region_free(r);
}

/* The interleaving that board.c's header tells of: a claimer has read the
** hint and seen the cell claimed; the cell comes back; the claimer moves its
** hint. Played by hand with the same swap that it makes. */
static void test_put_back_against_stale_hint(void)
{
    region_t *r = open_region("16777216", 2);
    board_t b;
    CHECK_EQ(board_open(&b, r), 0);
    uint64_t a = post(&b, 1);
    post(&b, 1);
    CHECK_EQ(board_claim(r, 0, 1), a);
    uint64_t stale = atomic_load(&r->claim);
    board_put_back(r, region_cell(r, a), 0);
    CHECK(!atomic_compare_exchange_strong(&r->claim, &stale, stale + 1));
    CHECK_EQ(board_claim(r, 1, 1), a);
    board_close(&b);
    region_free(r);
}

static void test_withdraw(void)
{
    region_t *r = open_region("16777216", 2);
    board_t b;
    CHECK_EQ(board_open(&b, r), 0);
    uint64_t first = post(&b, 1), second = post(&b, 1), third = post(&b, 1);
    CHECK_EQ(board_claim(r, 0, 1), first);
    CHECK_EQ(board_withdraw(region_cell(r, first)), 0);
    CHECK_EQ(board_withdraw(region_cell(r, second)), 1);
    CHECK_EQ(board_withdraw(region_cell(r, second)), 0);
    board_free(&b, region_cell(r, second),
               region_cell(r, second)->position);
    CHECK_EQ(board_count_queued(&b), 1);
    CHECK_EQ(board_claim(r, 0, 1), third);
    /* A put-back cell can be withdrawn like any other. */
    board_put_back(r, region_cell(r, first), 0);
    CHECK_EQ(board_withdraw(region_cell(r, first)), 1);
    board_free(&b, region_cell(r, first),
               region_cell(r, first)->position);
    CHECK_EQ(board_claim(r, 0, 1), NO_CELL);
    board_close(&b);
    region_free(r);
}

/* PROCPOOL_REGION gives 16 segments. */
static void test_full(void)
{
    region_t *r = open_region("16777216", 2);
    board_t b;
    CHECK_EQ(board_open(&b, r), 0);
    uint64_t capacity = r->segment_count * SEGMENT_CELLS, n = 0;
    CHECK_EQ(board_room(&b), capacity);
    uint64_t *index = calloc(capacity, sizeof *index);
    while (n < capacity) {
        CHECK(board_room(&b) > 0);
        index[n++] = post(&b, 1);
    }
    CHECK_EQ(board_room(&b), 0);
    CHECK_EQ(board_next(&b), NO_CELL);
    CHECK_EQ(board_next(&b), NO_CELL);
    /* One cell of a segment still in use keeps all of it. */
    for (uint64_t i = 0; i < SEGMENT_CELLS - 1; i++) {
        CHECK_EQ(board_claim(r, 0, 1), index[i]);
        board_free(&b, region_cell(r, index[i]),
               region_cell(r, index[i])->position);
    }
    CHECK_EQ(board_next(&b), NO_CELL);
    CHECK_EQ(board_withdraw(region_cell(r, index[SEGMENT_CELLS - 1])), 1);
    board_free(&b, region_cell(r, index[SEGMENT_CELLS - 1]),
               region_cell(r, index[SEGMENT_CELLS - 1])->position);
    CHECK_EQ(board_room(&b), SEGMENT_CELLS);
    uint64_t again = post(&b, 1);
    CHECK(again < SEGMENT_CELLS);
    for (uint64_t i = SEGMENT_CELLS; i < capacity; i++)
        CHECK_EQ(board_claim(r, 0, 1), index[i]);
    CHECK_EQ(board_claim(r, 0, 1), again);
    free(index);
    board_close(&b);
    region_free(r);
}

/* Far more cells than the storage holds; the last segment used is the next
** one used. Positions go round the directory several times. */
static void test_directory_wraps(void)
{
    region_t *r = open_region("16777216", 2);
    board_t b;
    CHECK_EQ(board_open(&b, r), 0);
    uint64_t start = (uint64_t)DIRECTORY_SIZE * SEGMENT_CELLS - 300 * 10;
    start -= start % SEGMENT_CELLS;
    b.b_head = start;   /* as if so many had come and gone */
    atomic_store(&r->head, start);
    atomic_store(&r->claim, start);
    uint64_t kept = post(&b, 1);
    CHECK_EQ(board_claim(r, 1, 1), kept);
    for (uint64_t i = 0; i < 300 * 100; i++) {
        uint64_t index = post(&b, 1);
        CHECK_EQ(board_claim(r, 0, 1), index);
        CHECK_EQ(region_cell(r, index)->position, start + 1 + i);
        board_free(&b, region_cell(r, index),
               region_cell(r, index)->position);
    }
    CHECK(b.b_segments_used <= 3);
    CHECK_EQ(region_cell(r, kept)->position, start);
    board_put_back(r, region_cell(r, kept), 0);
    CHECK_EQ(board_claim(r, 0, 1), kept);
    board_close(&b);
    region_free(r);
}

/* The directory's entry of a position may still be taken by one that is
** 16.7 million older: then the board is full, whatever storage is left. */
static void test_directory_taken(void)
{
    region_t *r = open_region("16777216", 2);
    board_t b;
    CHECK_EQ(board_open(&b, r), 0);
    uint64_t old = post(&b, 1);
    uint64_t start = (uint64_t)DIRECTORY_SIZE * SEGMENT_CELLS;
    b.b_head = start;
    atomic_store(&r->head, start);
    CHECK_EQ(board_next(&b), NO_CELL);
    CHECK_EQ(region_cell(r, old)->position, 0);
    board_close(&b);
    region_free(r);
}

/* --- many claimers ------------------------------------------------------ */

enum { CLAIMERS = 4 };
typedef struct race {
    region_t *r;
    uint32_t cells;
    _Atomic uint32_t *ran;      /* per position: how often */
    _Atomic uint32_t done, stop;
    uint32_t dawdle;            /* turns between two claims */
    _Atomic uint64_t over[];    /* per position: the cell's index + 1 */
} race_t;

typedef struct claimer {
    race_t *race;
    uint32_t slot;
} claimer_t;

/* Claims until told to stop; puts every fifth cell back once. */
static void claim_all(void *argument)
{
    claimer_t *c = argument;
    race_t *race = c->race;
    region_t *r = race->r;
    uint32_t count = 0;
    while (!atomic_load(&race->stop)) {
        for (uint32_t i = 0; i < race->dawdle; i++)
            os_relax();
        uint64_t index = board_claim(r, c->slot, 1);
        if (index == NO_CELL)
            continue;
        cell_t *cell = region_cell(r, index);
        uint64_t p = cell->position;
        if (++count % 5 == 0 && atomic_load(&cell->first) == 0) {
            board_put_back(r, cell, 1);
            continue;
        }
        /* In this order: the parent takes ran without over as "freed". */
        atomic_store(&race->over[p], index + 1);
        atomic_fetch_add(&race->ran[p], 1);
        atomic_fetch_add(&race->done, 1);
    }
}

static void *claim_thread(void *argument)
{
    claim_all(argument);
    return NULL;
}

static size_t race_size(uint32_t cells)
{
    return sizeof(race_t) + cells * (sizeof(uint64_t) + sizeof(uint32_t));
}

static race_t *new_race(uint32_t cells)
{
    race_t *race = check_shared(race_size(cells));
    race->r = open_region("67108864", CLAIMERS);
    race->cells = cells;
    race->ran = (_Atomic uint32_t *)(race->over + cells);
    return race;
}

/* The parent: posts, frees what is over, in any order, until all is. */
static void run_race(race_t *race)
{
    board_t b;
    CHECK_EQ(board_open(&b, race->r), 0);
    uint32_t posted = 0, freed = 0, checked = 0;
    while (freed < race->cells || atomic_load(&race->done) < race->cells) {
        for (int i = 0; i < 50 && posted < race->cells && board_room(&b);
             i++, posted++)
            post(&b, 2);
        for (uint32_t p = checked; p < posted; p++) {
            uint64_t index = atomic_exchange(&race->over[p], 0);
            if (!index)
                continue;
            CHECK_EQ(region_cell(race->r, index - 1)->position, p);
            board_free(&b, region_cell(race->r, index - 1),
               region_cell(race->r, index - 1)->position);
            freed++;
        }
        while (checked < posted && atomic_load(&race->ran[checked]) &&
               !atomic_load(&race->over[checked]))
            checked++;
    }
    atomic_store(&race->stop, 1);
    CHECK_EQ(atomic_load(&race->done), race->cells);
    for (uint32_t p = 0; p < race->cells; p++)
        CHECK_EQ(atomic_load(&race->ran[p]), 1);
    CHECK_EQ(board_count_queued(&b), 0);
    board_close(&b);
}

static void end_race(race_t *race)
{
    region_free(race->r);
    munmap(race, race_size(race->cells));
}

static void test_threads(void)
{
    race_t *race = new_race(CHECK_TSAN ? 20000 : 100000);
    pthread_t threads[CLAIMERS];
    claimer_t claimers[CLAIMERS];
    for (uint32_t i = 0; i < CLAIMERS; i++) {
        claimers[i] = (claimer_t){ race, i };
        CHECK_EQ(pthread_create(&threads[i], NULL, claim_thread,
                                &claimers[i]), 0);
    }
    run_race(race);
    for (uint32_t i = 0; i < CLAIMERS; i++)
        pthread_join(threads[i], NULL);
    end_race(race);
}

static void test_processes(void)
{
    race_t *race = new_race(100000);
    pid_t pids[CLAIMERS];
    claimer_t claimers[CLAIMERS];
    for (uint32_t i = 0; i < CLAIMERS; i++) {
        claimers[i] = (claimer_t){ race, i };
        pids[i] = check_fork(claim_all, &claimers[i]);
    }
    run_race(race);
    for (uint32_t i = 0; i < CLAIMERS; i++)
        CHECK_EQ(check_wait(pids[i]), 0);
    end_race(race);
}

/* Claimers are killed at any moment, a thousand of them: what the dead one
** owned is read from memory, exactly as the keeper does, and put back. */
static void test_killed_claimers(void)
{
    const uint32_t cells = CHECK_VALGRIND ? 100 : 3000;
    race_t *race = new_race(cells);
    race->dawdle = 2000;
    region_t *r = race->r;
    board_t b;
    CHECK_EQ(board_open(&b, r), 0);
    for (uint32_t i = 0; i < cells; i++)
        post(&b, 2);
    uint32_t rounds = 0;
    while (board_queued(r)) {
        claimer_t c = { race, rounds++ % CLAIMERS };
        uint32_t before = atomic_load(&race->done);
        pid_t pid = check_fork(claim_all, &c);
        while (atomic_load(&race->done) == before && board_queued(r))
            ;
        kill(pid, SIGKILL);
        CHECK_EQ(check_wait(pid), 128 + SIGKILL);
        uint64_t index = atomic_load(&r->slots[c.slot].intent);
        cell_t *cell = region_cell(r, index - 1);
        uint64_t word = atomic_load(&cell->word);
        if (index && CELL_STATE(word) == CELL_CLAIMED &&
            CELL_OWNER(word) == c.slot &&
            !atomic_load(&race->over[cell->position]))
            board_put_back(r, cell, 1);
        else if (index && CELL_STATE(word) == CELL_QUEUED)
            board_put_back(r, cell, atomic_load(&cell->first));
    }
    CHECK(rounds > 10);
    for (uint32_t p = 0; p < cells; p++) {
        CHECK(atomic_load(&race->over[p]));
        CHECK(atomic_load(&race->ran[p]) <= 1);
    }
    board_close(&b);
    end_race(race);
}

int main(int argc, char **argv)
{
    static const check_t cases[] = {
        { "board: cells are claimed in order", test_order, 0 },
        { "board: a cell comes back to its place", test_put_back, 0 },
        { "board: a stale hint does not lose a cell that came back",
          test_put_back_against_stale_hint, 0 },
        { "board: withdrawn before it is claimed, or not", test_withdraw, 0 },
        { "board: full, and not full any more", test_full, 0 },
        { "board: the directory wraps, warm segments are used again",
          test_directory_wraps, 0 },
        { "board: an old cell still in the directory's place",
          test_directory_taken, 0 },
        { "board: threads claim each cell once", test_threads, 60 },
        { "board: processes claim each cell once", test_processes, 60 },
        { "board: killed claimers lose nothing", test_killed_claimers, 60 },
        { NULL, NULL, 0 }
    };
    return check_main(argc, argv, cases);
}
