/*
** keeper.h - the process that starts, watches, replaces and reaps workers.
**
** Forked once by the parent, inside `new`; holds the snapshot that every life
** of every worker starts from; runs no user code after that. It waits in one
** place, for a kick, the end of a child, the end of the parent, or its
** nearest deadline, and then looks at everything again: it acts on what the
** region says, never on what woke it.
**
** keeper.c   the loop, what is to be done when
** crew.c     the processes: fork, kill, reap, judge
*/
#ifndef PROCPOOL_KEEPER_H
#define PROCPOOL_KEEPER_H

#include "os.h"
#include "outbox.h"
#include "region.h"
#include "worker.h"

#pragma GCC visibility push(hidden)

/* A process of a slot: its worker, or a successor that waits for its turn. */
typedef struct life {
    pid_t pid;
    uint32_t slot, generation;
    int pipe;                   /* hangs up when it dies or executes */
    uint64_t forked_at;
    uint64_t kill_at;           /* ns; 0: not decided */
    uint64_t hung_up_at;
    uint64_t leaving_since;     /* seen in its finalizer; 0: not yet */
    uint64_t measure_at;        /* its memory, not before */
    uint32_t stop_serial;       /* the task asked to stop, if stop_reason */
    enum reason stop_reason;    /* REASON_NONE: none asked */
    enum reason kill_reason;    /* REASON_NONE: not killed by the keeper */
    uint32_t was_ready;         /* seen ready (counted, reported) */
    uint32_t lulled;            /* left for being idle, and that was seen to */
} life_t;

/* A slot, as the keeper sees it. No two lives of one have generations that are
** LIVES_MAX or more apart: a life that hangs in its finalizer would lose its
** place in slot_t.life[], and with it whoever bounds it. */
typedef struct seat {
    uint32_t life[LIVES_MAX];   /* by generation: index in lives[] + 1, or 0 */
    enum { REPLACE_NO, REPLACE_ASKED, REPLACE_BEGUN } replace;
    uint32_t old;               /* REPLACE_BEGUN: the generation to replace */
    uint32_t dormant;           /* its worker left for being idle */
} seat_t;

typedef struct keeper {
    region_t *r;
    const work_t *work;
    outbox_t out;
    pid_t pid;
    int epoll, children, kick, sock, parent_pidfd;
    oom_t oom;
    life_t *lives;
    uint32_t count, room;
    seat_t *seats;
    uint32_t slots, seats_room; /* seats ever wanted: where a scan ends */
    uint32_t wanted;            /* of region.wanted, seen to: slots at most */
    uint32_t awake;             /* slots not asleep nor told to be, in watch */
    uint64_t start_after;       /* ns: failed starts make a pause */
    uint64_t pause;
    uint32_t failures;          /* in a row */
    uint32_t ever_ready;
    uint32_t reaped;            /* since the last look around */
    uint32_t cancels;           /* of region.cancels, dealt with */
    uint32_t recycle_all;       /* of region.recycle_all, dealt with */
    int recycling;              /* some seat is to be replaced */
} keeper_t;

/* Child of the parent's fork; never returns. Descriptors: this end of the
** socket to the parent, a pidfd of the parent or -1. */
_Noreturn void keeper_main(region_t *r, const work_t *work, int sock,
                           int parent_pidfd);

/* crew.c */
life_t *crew_find(keeper_t *k, uint32_t slot, uint32_t generation);
/* The life whose turn it is, or NULL. */
life_t *crew_active(keeper_t *k, uint32_t slot);
enum phase crew_phase(const keeper_t *k, const life_t *l);
/* Why it is leaving, or REASON_NONE: it is not. */
enum reason crew_leaving(const keeper_t *k, const life_t *l);
/* Lives of the slot that have their turn or wait for it. */
uint32_t crew_to_come(keeper_t *k, uint32_t slot);
/* May the slot have one more? */
int crew_has_room(keeper_t *k, uint32_t slot);
/* Forks the slot's next life; 0 or negative errno. In the child it does not
** return. */
int crew_start(keeper_t *k, uint32_t slot);
/* Takes in that children ended: before they are collected. */
void crew_quiet(keeper_t *k);
/* Collects every child that ended. */
void crew_reap(keeper_t *k);
/* SIGKILL to a life's process group; `reason` is what it will count as. */
void crew_kill(life_t *l, enum reason reason);
/* Kills and reaps everything, orphans of tasks too; in half a second at most,
** whatever cannot be killed. */
void crew_kill_all(keeper_t *k);
/* A life's pipe hung up. */
void crew_hung_up(keeper_t *k, pid_t pid);
void crew_event(keeper_t *k, enum event event, const life_t *l,
                enum reason reason, int status, uint32_t attempt);

/* keeper.c */
/* A larger array, of `size` bytes, with what the old one had; NULL: no memory.
** Where the keeper and every life write in any case, if there is room. The old
** one is left where it is. */
void *keeper_grow(const void *old, size_t had, size_t size);
/* A start succeeded; told once of a life. */
void keeper_note_ready(keeper_t *k, life_t *l);
/* A worker left for being idle: its slot, whose turn is `turn`, is to sleep. */
void keeper_lull(keeper_t *k, uint32_t slot, uint32_t turn);
/* A start failed; ends the pool if that is hopeless. */
void keeper_start_failed(keeper_t *k, const life_t *l, const char *why);
_Noreturn void keeper_break(keeper_t *k, const void *bytes, size_t size,
                            enum broken how);

#pragma GCC visibility pop
#endif
