/*
** wake.h - who wakes whom: how parent, keeper and workers rouse each other.
** The protocol stands in wake.c.
*/
#ifndef PROCPOOL_WAKE_H
#define PROCPOOL_WAKE_H

#include "region.h"

#pragma GCC visibility push(hidden)

/* Wakes one worker that sleeps or spins; 0 when none did. Anyone. */
int wake_worker(region_t *r);
/* Wakes the worker of this very slot, should it sleep. Anyone. */
void wake_slot(region_t *r, uint32_t slot);
/* The slot's worker is no longer one that wake_worker could choose. Keeper. */
void wake_forget(region_t *r, uint32_t slot);
/* The slot is the given life's now; wakes it. The leaving worker, or the
** keeper for a dead one. */
void pass_turn(slot_t *s, uint32_t generation);
/* Wakes the parent if it sleeps (or its event loop does). Anyone else. */
void wake_parent(region_t *r);
/* The same, for what is in a worker's outbox by now. */
void tell_parent(region_t *r, slot_t *s);
/* Makes the keeper look around. Anyone. */
void kick_keeper(const region_t *r);

/* A slot's bit in region.idle[slot / 64]. */
static inline uint64_t idle_bit(uint32_t slot)
{
    return UINT64_C(1) << (slot % 64);
}

#pragma GCC visibility pop
#endif
