/*
** wake.c - who wakes whom. Run by parent, keeper and workers.
**
** A sleeper announces itself, looks again, then sleeps; a waker publishes what
** there is, then looks for sleepers. Both sides are sequentially consistent,
** so one of them sees the other:
**     sleeper   idle bit = 1        waker   head = n + 1
**               head?                       idle bit?
**
** One worker may spin before it sleeps; waking it costs no system call. It is
** taken as a sleeper is, by whoever clears `spinner`, so that one that was
** stopped or lost its CPU holds back one cell, not all that are queued from
** then on. No wake-up is lost by that: the spinner gives up by swapping itself
** for 0, and looks at `head` after that.
**     it swaps    nobody had taken it, and whoever comes later wakes another
**     it fails    somebody took it, whose cell was queued before: it sees it
** It may also have seen that cell before it was taken, and claimed it; then
** there was nothing to wake anybody for.
**
** The parent is rung once for each time it arms its bell. One that died or was
** stopped while it rang must not have been the only one, so until the bell is
** known to have rung, everybody rings; and after every reap the keeper does.
**
** A wake-up can die with the process it was meant for. Therefore nobody
** counts wake-ups, and after every reap the keeper wakes all sleepers whose
** bit is gone, and one more if something is queued.
*/
#include "wake.h"

#include "fault.h"
#include "os.h"

void wake_slot(region_t *r, uint32_t slot)
{
    slot_t *s = &r->slots[slot];
    atomic_store(&s->bell, 0);
    os_futex_wake(&s->bell, 1);
}

void wake_forget(region_t *r, uint32_t slot)
{
    uint32_t it = SPINNER(slot);
    atomic_compare_exchange_strong(&r->spinner, &it, 0);
    atomic_fetch_and(&r->idle[slot / 64], ~idle_bit(slot));
}

/* Dying between the two is harmless: after every reap of a life that gave its
** turn away, the keeper wakes the next in any case. */
void pass_turn(slot_t *s, uint32_t generation)
{
    atomic_store(&s->turn, generation);
    FAULT_POINT("recycle.turned");
    os_futex_wake(&s->turn, LIVES_MAX);
}

int wake_worker(region_t *r)
{
    if (atomic_load(&r->spinner) && atomic_exchange(&r->spinner, 0))
        return 1;
    uint32_t words = (r->slots_max + 63) / 64;
    for (uint32_t i = 0; i < words; i++) {
        uint64_t bits = atomic_load(&r->idle[i]);
        while (bits) {
            uint64_t bit = bits & -bits;
            if (atomic_fetch_and(&r->idle[i], ~bit) & bit) {
                /* Dying here leaves it asleep without its bit; the keeper
                ** finds it so. */
                FAULT_POINT("wake.picked");
                wake_slot(r, i * 64 + (uint32_t)__builtin_ctzll(bit));
                return 1;
            }
            bits = atomic_load(&r->idle[i]);
        }
    }
    return 0;
}

void tell_parent(region_t *r, slot_t *s)
{
    atomic_store(&s->told, atomic_load(&s->tail));
    wake_parent(r);
}

void wake_parent(region_t *r)
{
    /* Before `armed` is read, what there is to see must be seen: a release
    ** store may still wait in this CPU's buffer. */
    atomic_thread_fence(memory_order_seq_cst);
    uint32_t armed = atomic_load(&r->armed), ringing = BELL_RINGING;
    if (armed == BELL_ARMED)
        atomic_compare_exchange_strong(&r->armed, &armed, BELL_RINGING);
    if (armed != BELL_ARMED && armed != BELL_RINGING)
        return;
    FAULT_POINT("wake.parent");
    os_ring(r->bell_fd);
    atomic_compare_exchange_strong(&r->armed, &ringing, BELL_RUNG);
}

void kick_keeper(const region_t *r)
{
    os_ring(r->kick_fd);
}
