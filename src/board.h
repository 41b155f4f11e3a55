/*
** board.h - the queue of cells, in order of submission.
**
** Positions count submissions from 0. A position's cell is found through the
** directory: entry (position / SEGMENT_CELLS) mod DIRECTORY_SIZE names the
** segment that holds it, plus one; 0 when every cell of it is over. Segments
** are used again last in, first out, so a busy pool stays in warm memory
** while millions of cells may be queued.
**
** Who does what: the parent posts and frees; workers claim; the owner, or the
** keeper for a dead owner, puts back. Nobody waits for anybody here.
*/
#ifndef PROCPOOL_BOARD_H
#define PROCPOOL_BOARD_H

#include "region.h"

#pragma GCC visibility push(hidden)

#define NO_CELL UINT64_MAX

/* Worker. Claims the first queued cell; its index, or NO_CELL. */
uint64_t board_claim(region_t *r, uint32_t slot, uint32_t generation);

/* Owner, or keeper for a dead owner: the cell's tasks from `first` on are
** queued again, at its old place in the order. */
void board_put_back(region_t *r, cell_t *cell, uint32_t first);

/* Anyone. The cell that a life of a slot has claimed and that still has a task
** without an outcome, and the first such; NULL: there is none. Every index is
** checked: a task may have written anywhere. To be asked only while that life
** has the turn: after it, the slot speaks of the next. */
cell_t *board_owned(const region_t *r, uint32_t slot, uint32_t generation,
                    uint32_t *next);

/* Keeper, for a dead life that owned none: it may have died in putting one
** back, between the cell's word and the hint. */
void board_mend(region_t *r, uint32_t slot);

/* Anyone: is there a cell that a worker could claim now? */
int board_queued(region_t *r);
/* The index of the cell at a position, or NO_CELL when its segment is gone.
** Whether that cell still is the position's is for the caller to see. */
uint64_t board_find(const region_t *r, uint64_t position);

/* Parent, worker: this process is about to use the cells of the segment that
** this one is in; faults in all of its pages at once. */
void board_touch(const region_t *r, uint64_t index);

/* The parent's private half. */
typedef struct board {
    region_t *b_region;
    uint64_t b_head;            /* the next position; == region's head */
    uint32_t b_segments_used;   /* of the storage, ever */
    uint32_t b_free_count;
    uint32_t *b_free;           /* segments to use again */
    uint32_t *b_live;           /* per directory entry: cells not over */
} board_t;

int board_open(board_t *b, region_t *r);
void board_close(board_t *b);
/* The cell that the next post will queue, and its index; NO_CELL when the
** board is full. Its fields may be filled in; nobody looks at it yet. */
uint64_t board_next(board_t *b);
/* Queues that cell. */
void board_post(board_t *b, cell_t *cell);
/* Takes a queued cell back before anyone claims it: 1, or 0 too late. The
** cell is still to be freed. */
int board_withdraw(cell_t *cell);
/* All its tasks have their outcome. The position is the one it was posted at,
** as the parent remembers it: the cell's own may have been scribbled over. */
void board_free(board_t *b, cell_t *cell, uint64_t position);
/* Tasks that are queued (a scan: for stats). */
uint64_t board_count_queued(const board_t *b);
/* Cells that can be posted before the board is full. */
uint64_t board_room(const board_t *b);

#pragma GCC visibility pop
#endif
