/*
** pool_post.c - functions and cells go in; tasks are taken back. Parent only.
**
** Invariants: a cell's arguments and function stay in the region until every
** task of it has its outcome, so that a task can be run again; what may run
** user code (encoding) happens before board_next, so a call of the pool from
** inside it meets no half-made cell.
*/
#include "pool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "os.h"
#include "pool_private.h"
#include "wake.h"

/* --- drafts ------------------------------------------------------------- */

static int draft_grow(buffer_t *b, size_t need)
{
    draft_t *d = (draft_t *)b;
    uint64_t want = (uint64_t)b->used + need;
    block_t fresh;
    if (want < 2 * (uint64_t)b->room)
        want = 2 * (uint64_t)b->room;
    if (!d->d_pool->r)
        return -ENOMEM;
    int rc = heap_alloc(&d->d_pool->heap, want, &fresh);
    if (rc < 0)
        rc = heap_alloc(&d->d_pool->heap, (uint64_t)b->used + need, &fresh);
    if (rc < 0) {
        d->d_full = 1;
        return rc;
    }
    void *data = region_at(d->d_pool->r, fresh.offset);
    memcpy(data, b->data, b->used);
    heap_free(&d->d_pool->heap, &d->d_block);
    d->d_block = fresh;
    b->data = data;
    b->room = (size_t)fresh.size;
    return 0;
}

void draft_open(draft_t *d, pool_t *p, void *small, size_t size)
{
    d->buffer.data = small;
    d->buffer.used = 0;
    d->buffer.room = size;
    d->buffer.grow = draft_grow;
    d->buffer.most = p->r ? (size_t)p->r->heap_size : 0;
    d->d_pool = p;
    d->d_block.offset = d->d_block.size = 0;
    d->d_full = 0;
}

void draft_drop(draft_t *d)
{
    if (d->d_pool->r)
        heap_free(&d->d_pool->heap, &d->d_block);
}

/* --- functions ---------------------------------------------------------- */

static uint32_t func_place(pool_t *p)
{
    if (p->funcs_free) {
        uint32_t index = p->funcs_free;
        p->funcs_free = p->funcs[index].next_free;
        return index;
    }
    if (p->funcs_count == p->funcs_room) {
        uint32_t room = p->funcs_room * 2;
        func_t *more = realloc(p->funcs, room * sizeof *more);
        if (!more)
            return 0;
        p->funcs = more;
        p->funcs_room = room;
    }
    return p->funcs_count++;
}

int64_t pool_func_new(pool_t *p, draft_t *d, enum func_use use)
{
    if (!p->r)
        return -ENOMEM;
    if (!d->d_block.offset && d->buffer.grow(&d->buffer, 0) < 0)
        return -ENOMEM;
    uint32_t index = func_place(p);
    if (!index)
        return -ENOMEM;
    func_t *f = &p->funcs[index];
    f->block = d->d_block;
    f->size = d->buffer.used;
    p->next_func_id += 2;
    f->id = use == FUNC_ONCE ? 0 : p->next_func_id + (use == FUNC_KEPT);
    f->refs = 1;
    d->d_block.offset = 0;
    p->sent += f->size;
    return index;
}

void pool_func_release(pool_t *p, uint32_t index)
{
    if (!p->r || !index || index >= p->funcs_count)
        return;
    func_t *f = &p->funcs[index];
    if (!f->refs || --f->refs)
        return;
    heap_free(&p->heap, &f->block);
    f->next_free = p->funcs_free;
    p->funcs_free = index;
}

/* --- cells -------------------------------------------------------------- */

entry_t *pool_entry(const pool_t *p, uint64_t index)
{
    return index / SEGMENT_CELLS < p->r->segment_count ? &p->entries[index]
                                                       : NULL;
}

static void fill_entry(pool_t *p, entry_t *e, const post_t *post)
{
    e->position = p->board.b_head;
    e->args = post->args;
    e->func = post->func;
    e->items = e->left = post->items;
    e->tag = post->tag;
    e->live = 1;
    e->cancelled = 0;
    p->funcs[post->func].refs++;
}

static void fill_cell(pool_t *p, cell_t *cell, const post_t *post)
{
    region_t *r = p->r;
    const func_t *f = &p->funcs[post->func];
    cell->func = f->block.offset;
    cell->func_size = f->size;
    cell->func_id = f->id;
    cell->args_size = post->args_size;
    if (post->args.offset)
        cell->args = post->args.offset;
    else {
        memcpy(cell->small, post->small, (size_t)post->args_size);
        cell->args = (uint64_t)(cell->small - (unsigned char *)r);
    }
    cell->items = post->items;
    cell->single = post->single;
    cell->prompt = post->prompt;
    cell->retries = post->retries;
    cell->timeout = post->timeout;
    cell->grace = post->grace;
    cell->number = p->number + 1;
    atomic_store_explicit(&cell->first, 0, memory_order_relaxed);
    atomic_store_explicit(&cell->cancel, CANCEL_NONE, memory_order_relaxed);
    atomic_store_explicit(&cell->attempt, 1, memory_order_relaxed);
    atomic_store_explicit(&cell->requeues, 0, memory_order_relaxed);
}

/* Nobody sleeps but slots without a process: the keeper starts one. */
static void announce(region_t *r)
{
    if (!wake_worker(r) && atomic_load(&r->asleep))
        kick_keeper(r);
}

int64_t pool_post(pool_t *p, const post_t *post, uint64_t *cell_index)
{
    if (!p->r || p->gone)
        return -ENOSPC;
    uint64_t index = board_next(&p->board);
    if (index == NO_CELL)
        return -ENOSPC;
    entry_t *e = &p->entries[index];
    if (index && index % SEGMENT_CELLS == 0)    /* as in board_touch */
        os_populate(e, SEGMENT_CELLS * sizeof *e);
    cell_t *cell = region_cell(p->r, index);
    fill_entry(p, e, post);
    fill_cell(p, cell, post);
    p->number += post->items;
    p->unfinished += post->items;
    p->sent += post->args_size;
    pool_waits(p, post->awaited);
    board_post(&p->board, cell);
    FAULT_POINT("post.posted");
    announce(p->r);
    *cell_index = index;
    return (int64_t)e->position;
}

void pool_end_cell(pool_t *p, uint64_t index)
{
    entry_t *e = pool_entry(p, index);
    if (!e)
        return;
    e->live = 0;
    heap_free(&p->heap, &e->args);
    pool_func_release(p, e->func);
    board_free(&p->board, region_cell(p->r, index), e->position);
}

uint64_t pool_find(const pool_t *p, uint64_t ticket)
{
    if (!p->r)
        return NO_CELL;
    uint64_t index = board_find(p->r, ticket);
    entry_t *e = index == NO_CELL ? NULL : pool_entry(p, index);
    return e && e->live && e->position == ticket ? index : NO_CELL;
}

int pool_running(const pool_t *p, uint64_t ticket)
{
    uint64_t index = pool_find(p, ticket);
    if (index == NO_CELL)
        return 0;
    cell_t *cell = region_cell(p->r, index);
    return CELL_STATE(atomic_load(&cell->word)) == CELL_CLAIMED ||
           atomic_load(&cell->first) > 0;
}

static int reserve_withdrawn(pool_t *p)
{
    if (p->withdrawn_count < p->withdrawn_room)
        return 1;
    uint32_t room = p->withdrawn_room ? p->withdrawn_room * 2 : 16;
    uint64_t *more = realloc(p->withdrawn, room * sizeof *more);
    if (!more)
        return 0;
    p->withdrawn = more;
    p->withdrawn_room = room;
    return 1;
}

static int withdraw(pool_t *p, uint64_t index)
{
    if (!reserve_withdrawn(p) || !board_withdraw(region_cell(p->r, index)))
        return 0;
    p->withdrawn[p->withdrawn_count++] = index;
    return 1;
}

int pool_cancel(pool_t *p, uint64_t ticket, int all)
{
    uint64_t index = pool_find(p, ticket);
    if (index == NO_CELL)
        return 0;
    cell_t *cell = region_cell(p->r, index);
    if (withdraw(p, index))
        return 1;
    if (CELL_STATE(atomic_load(&cell->word)) == CELL_FREE)
        return 1;   /* taken back already, its outcome not read yet */
    entry_t *e = pool_entry(p, index);
    if (all && e)
        e->cancelled = 1;
    if (all || atomic_load(&cell->cancel) == CANCEL_NONE)
        atomic_store(&cell->cancel, all ? CANCEL_ALL : CANCEL_REST);
    /* It may have been put back just before the store above. */
    if (withdraw(p, index))
        return 1;
    if (all) {
        atomic_fetch_add(&p->r->cancels, 1);
        kick_keeper(p->r);
    }
    return 2;
}
