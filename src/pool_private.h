/*
** pool_private.h - what pool.c, pool_post.c and pool_read.c share and nobody
** else needs.
*/
#ifndef PROCPOOL_POOL_PRIVATE_H
#define PROCPOOL_POOL_PRIVATE_H

#include "pool.h"

#pragma GCC visibility push(hidden)

/* As pool_t.cursor: a round of reading is yet to begin. */
#define POOL_NEW_ROUND UINT32_MAX

#define POOL_FDS_LOST "the program has closed the pool's descriptors"

/* pool.c. Notes how the pool ended; the reason is copied. */
void pool_set_end(pool_t *p, enum pool_end end, const void *why, size_t size);
/* The pool cannot go on: its keeper is killed, and so its workers. */
void pool_break(pool_t *p, const char *why);
/* Gives the region back once the keeper is reaped and all is read. */
void pool_release(pool_t *p);

/* Is a wait not to sleep, but to return? */
static inline int pool_stirred(pool_t *p)
{
    return p->stirred && p->stirred(p->stirred_context);
}

/* Tells workers whether the caller waits, or will, for what is queued now. */
static inline void pool_waits(const pool_t *p, uint32_t waits)
{
    if (p->r && atomic_load_explicit(&p->r->waiting,
                                     memory_order_relaxed) != waits)
        atomic_store_explicit(&p->r->waiting, waits, memory_order_relaxed);
}

/* pool_post.c */
entry_t *pool_entry(const pool_t *p, uint64_t index);  /* NULL: no such */
/* Every task of the cell has its outcome. */
void pool_end_cell(pool_t *p, uint64_t index);

/* pool_read.c. Notes how the pool ended if the keeper has said so in what is
** not read yet; nothing is taken out of its outbox. */
void pool_read_why(pool_t *p);

#pragma GCC visibility pop
#endif
