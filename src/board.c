/*
** board.c - see board.h.
**
** `claim` of the region is a hint that never lies in one direction: no cell
** before it is queued, but for one whose put-back is half done. It holds a
** version above the position, raised by every put-back. Without the version
** this would lose a cell:
**     worker A  reads claim = 7, sees cell 7 claimed by B
**     keeper    B died: cell 7 is QUEUED again, claim is 7, nothing to lower
**     worker A  moves claim from 7 to 8
*/
#include "board.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "os.h"

#define CLAIM_WORD(version, position)                                      \
    ((uint64_t)(version) << 40 | ((position) & TAIL_MASK))
#define CLAIM_VERSION(c) ((c) >> 40)

static _Atomic uint32_t *directory_entry(const region_t *r, uint64_t position)
{
    _Atomic uint32_t *entries = region_at(r, r->directory);
    return &entries[position / SEGMENT_CELLS % DIRECTORY_SIZE];
}

/* The cell at a position, or NULL when its segment is gone. The caller must
** compare the word before it believes the cell. */
static cell_t *cell_at(const region_t *r, uint64_t position, uint64_t *index)
{
    uint32_t segment = atomic_load_explicit(directory_entry(r, position),
                                            memory_order_acquire);
    if (!segment || segment > r->segment_count)
        return NULL;
    *index = (uint64_t)(segment - 1) * SEGMENT_CELLS +
             position % SEGMENT_CELLS;
    return region_cell(r, *index);
}

uint64_t board_find(const region_t *r, uint64_t position)
{
    uint64_t index;
    return cell_at(r, position, &index) ? index : NO_CELL;
}

static uint64_t next_segment(uint64_t position)
{
    return (position / SEGMENT_CELLS + 1) * SEGMENT_CELLS;
}

/*
** Finds the first queued cell at or after the hint. Returns its index and the
** word to swap, or NO_CELL. Moves the hint over what is not queued.
*/
static uint64_t find_queued(region_t *r, uint64_t *word, uint64_t *hint)
{
    for (;;) {
        uint64_t c = atomic_load_explicit(&r->claim, memory_order_acquire);
        uint64_t p = CLAIM_POSITION(c), index = 0;
        if (p >= atomic_load_explicit(&r->head, memory_order_seq_cst))
            return NO_CELL;
        cell_t *cell = cell_at(r, p, &index);
        uint64_t next = p + 1;
        if (!cell)
            next = next_segment(p);
        else {
            uint64_t w = atomic_load_explicit(&cell->word,
                                              memory_order_acquire);
            if (w == CELL_WORD(CELL_QUEUED, 0, 0, p)) {
                *word = w;
                *hint = c;
                return index;
            }
        }
        uint64_t moved = CLAIM_WORD(CLAIM_VERSION(c), next);
        atomic_compare_exchange_strong(&r->claim, &c, moved);
    }
}

uint64_t board_claim(region_t *r, uint32_t slot, uint32_t generation)
{
    slot_t *s = &r->slots[slot];
    for (;;) {
        uint64_t queued, hint;
        uint64_t index = find_queued(r, &queued, &hint);
        if (index == NO_CELL)
            return NO_CELL;
        /* Before the swap, so that the keeper of a dead worker needs to look
        ** at one cell only: a worker owns none but the one it intends. */
        atomic_store_explicit(&s->intent, index + 1, memory_order_release);
        FAULT_POINT("claim.pre_cas");
        uint64_t mine = CELL_WORD(CELL_CLAIMED, slot, generation,
                                  (uint32_t)queued);
        cell_t *cell = region_cell(r, index);
        if (!atomic_compare_exchange_strong(&cell->word, &queued, mine))
            continue;
        FAULT_POINT("claim.post_cas");
        /* Dying here is harmless: the next to look moves the hint on. */
        uint64_t next = CLAIM_WORD(CLAIM_VERSION(hint),
                                   CLAIM_POSITION(hint) + 1);
        atomic_compare_exchange_strong(&r->claim, &hint, next);
        return index;
    }
}

/* The hint to the first queued cell is no further than `position`. */
static void lower(region_t *r, uint64_t position)
{
    uint64_t c = atomic_load(&r->claim), lowered;
    do {
        uint64_t at = CLAIM_POSITION(c) < position ? CLAIM_POSITION(c)
                                                   : position;
        lowered = CLAIM_WORD(CLAIM_VERSION(c) + 1, at);
    } while (!atomic_compare_exchange_strong(&r->claim, &c, lowered));
}

void board_put_back(region_t *r, cell_t *cell, uint32_t first)
{
    uint64_t p = cell->position;
    /* Dying between these two stores is harmless: whoever judges next finds
    ** `first` from the outbox's tail, which says the same. */
    atomic_store_explicit(&cell->first, first, memory_order_release);
    FAULT_POINT("putback.pre");
    atomic_store_explicit(&cell->word, CELL_WORD(CELL_QUEUED, 0, 0, p),
                          memory_order_release);
    /* Dying here would leave a queued cell below the hint, where nobody ever
    ** looks: the keeper lowers it for a dead owner. */
    FAULT_POINT("putback.mid");
    lower(r, p);
}

/* The cell that a slot's worker was last about to claim, or NULL. */
static cell_t *intended(const region_t *r, uint32_t slot)
{
    uint64_t index = atomic_load(&r->slots[slot].intent);
    if (index-- == 0 || index >= r->segment_count * SEGMENT_CELLS)
        return NULL;
    return region_cell(r, index);
}

cell_t *board_owned(const region_t *r, uint32_t slot, uint32_t generation,
                    uint32_t *next)
{
    const slot_t *s = &r->slots[slot];
    cell_t *cell = intended(r, slot);
    if (!cell)
        return NULL;
    uint64_t word = atomic_load(&cell->word), position = cell->position;
    /* Without the position: of a cell that was scribbled over, the parent is
    ** to hear all the same. */
    if (CELL_STATE(word) != CELL_CLAIMED || CELL_OWNER(word) != slot ||
        CELL_GEN(word) != (generation & 0xffff))
        return NULL;
    int begun = atomic_load(&s->begun) == position + 1;
    *next = begun ? TAIL_ITEM(atomic_load(&s->tail))
                  : atomic_load(&cell->first);
    uint32_t items = cell->items;
    /* All published: the parent frees it. It may even have done so, and be
    ** filling the cell anew while we read; then the word is another. A cell
    ** that still is this worker's with a task left cannot be freed. */
    atomic_thread_fence(memory_order_acquire);
    return *next < items && atomic_load(&cell->word) == word ? cell : NULL;
}

void board_mend(region_t *r, uint32_t slot)
{
    const cell_t *cell = intended(r, slot);
    if (!cell)
        return;
    uint64_t position = cell->position;
    /* Right whoever queued the cell. */
    if (atomic_load(&cell->word) == CELL_WORD(CELL_QUEUED, 0, 0, position))
        lower(r, position);
}

int board_queued(region_t *r)
{
    uint64_t word, hint;
    return find_queued(r, &word, &hint) != NO_CELL;
}

uint64_t board_count_queued(const board_t *b)
{
    region_t *r = b->b_region;
    uint64_t p = CLAIM_POSITION(atomic_load(&r->claim));
    uint64_t head = b->b_head, count = 0;
    /* However many there are, they lie in this many cells; and a hint that a
    ** task has scribbled over must not keep us here for ever. */
    uint64_t most = (uint64_t)b->b_segments_used * SEGMENT_CELLS;
    if (p + most < head)
        p = head - most;
    while (p < head) {
        uint64_t index;
        cell_t *cell = cell_at(r, p, &index);
        if (!cell) {
            p = next_segment(p);
            continue;
        }
        if (atomic_load(&cell->word) == CELL_WORD(CELL_QUEUED, 0, 0, p))
            count += cell->items - atomic_load(&cell->first);
        p++;
    }
    return count;
}

/* --- the parent's half -------------------------------------------------- */

static size_t tables_size(const region_t *r)
{
    return (r->segment_count + DIRECTORY_SIZE) * sizeof(uint32_t);
}

int board_open(board_t *b, region_t *r)
{
    memset(b, 0, sizeof *b);
    b->b_region = r;
    b->b_free = os_unshared(tables_size(r));
    if (!b->b_free)
        return -ENOMEM;
    b->b_live = b->b_free + r->segment_count;
    return 0;
}

void board_close(board_t *b)
{
    if (b->b_free)
        os_release(b->b_free, tables_size(b->b_region));
    b->b_free = b->b_live = NULL;
}

/* A page fault for each twenty cells costs more than all else that is done
** with them. The first segment is left alone: it may be all that is needed. */
void board_touch(const region_t *r, uint64_t index)
{
    uint64_t first = index - index % SEGMENT_CELLS;
    if (first)
        os_populate(region_cell(r, first), SEGMENT_CELLS * sizeof(cell_t));
}

/* Makes a segment ready for the position that begins it. */
static int add_segment(board_t *b, uint64_t position)
{
    _Atomic uint32_t *entry = directory_entry(b->b_region, position);
    uint32_t segment;
    if (atomic_load_explicit(entry, memory_order_relaxed))
        return 0;  /* 16.7 million cells ago is not over yet */
    if (b->b_free_count)
        segment = b->b_free[--b->b_free_count];
    else if (b->b_segments_used < b->b_region->segment_count)
        segment = b->b_segments_used++;
    else
        return 0;
    board_touch(b->b_region, (uint64_t)segment * SEGMENT_CELLS);
    atomic_store_explicit(entry, segment + 1, memory_order_release);
    /* All its cells, posted yet or not: the segment is over when every one
    ** of them was posted and is over. */
    b->b_live[position / SEGMENT_CELLS % DIRECTORY_SIZE] = SEGMENT_CELLS;
    return 1;
}

uint64_t board_next(board_t *b)
{
    uint64_t p = b->b_head, index;
    cell_t *cell = cell_at(b->b_region, p, &index);
    if (p % SEGMENT_CELLS == 0 && (!cell || cell->position != p)) {
        if (!add_segment(b, p))
            return NO_CELL;
        cell = cell_at(b->b_region, p, &index);
    }
    if (!cell)
        return NO_CELL;
    cell->position = p;
    return index;
}

void board_post(board_t *b, cell_t *cell)
{
    region_t *r = b->b_region;
    atomic_store_explicit(&cell->word,
                          CELL_WORD(CELL_QUEUED, 0, 0, b->b_head),
                          memory_order_release);
    atomic_store_explicit(&r->head, ++b->b_head, memory_order_seq_cst);
}

int board_withdraw(cell_t *cell)
{
    uint64_t queued = CELL_WORD(CELL_QUEUED, 0, 0, cell->position);
    uint64_t nobody = CELL_WORD(CELL_FREE, 0, 0, cell->position);
    return atomic_compare_exchange_strong(&cell->word, &queued, nobody);
}

void board_free(board_t *b, cell_t *cell, uint64_t p)
{
    region_t *r = b->b_region;
    _Atomic uint32_t *entry = directory_entry(r, p);
    uint32_t segment = (uint32_t)(cell - region_cell(r, 0)) / SEGMENT_CELLS;
    atomic_store_explicit(&cell->word, CELL_WORD(CELL_FREE, 0, 0, p),
                          memory_order_release);
    if (--b->b_live[p / SEGMENT_CELLS % DIRECTORY_SIZE])
        return;
    atomic_store_explicit(entry, 0, memory_order_release);
    b->b_free[b->b_free_count++] = segment;
}

uint64_t board_room(const board_t *b)
{
    uint64_t segments = b->b_region->segment_count - b->b_segments_used +
                        b->b_free_count;
    return segments * SEGMENT_CELLS +
           (SEGMENT_CELLS - b->b_head % SEGMENT_CELLS) % SEGMENT_CELLS;
}
