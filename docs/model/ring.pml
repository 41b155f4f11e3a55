/*
** ring.pml - how the parent waits: publish, tell, arm, ring; and how a worker
** waits for room in its outbox.
**
** WORKERS workers that publish ITEMS records each through rings of one record,
** the keeper that publishes an event, reaps and revives, the parent that reads
** and sleeps in between (with -DLOOP: as an event loop sees it). A worker
** tells the parent of its last record at least.
**
** What is published goes through a store buffer, as on x86: the writer may run
** ahead of what others see of its release stores until a fence or a
** sequentially consistent store empties the buffer. A dead writer's buffer is
** empty.
**
** The bell is an eventfd on an edge-triggered epoll: a ring is remembered until
** the next wait. A worker's wait for room has no time limit here; in the C
** code it ends after a second, which must never be needed.
**
** Claimed: nobody sleeps for ever; the parent gets every record once.
*/
#include "model.h"

#ifndef WORKERS
#define WORKERS 1
#endif
#ifndef ITEMS
#define ITEMS 3
#endif

/* region_t.armed */
#define QUIET 0
#define ARMED 1
#define RINGING 2
#define RUNG 3
byte armed;
bool bell;              /* the eventfd can be read, or an edge is pending */

/* Per writer, 2 is the keeper: slot_t. Positions count records. */
byte tail[3], buffered[3], told[2], head[2];
bool starved[2], asleep[2];

bool dead[2], gone[2], over;

/* The writer's stores become visible. */
#define FENCE(w) tail[w] = buffered[w]

/* wake.c wake_parent; `a` is the caller's */
#ifdef M_NO_FENCE
#define WAKE_PARENT(w, DIE) atomic { DIE; a = armed }; WAKE_PARENT_2(DIE)
#else
#define WAKE_PARENT(w, DIE) atomic { DIE; FENCE(w); a = armed }; WAKE_PARENT_2(DIE)
#endif
#define WAKE_PARENT_2(DIE)                                                 \
    if                                                                     \
    :: a == ARMED ->                                                       \
        atomic { DIE; if :: armed == ARMED -> armed = RINGING              \
                         :: else -> a = armed fi }                         \
    :: else                                                                \
    fi;                                                                    \
    if                                                                     \
    :: a == ARMED || a == RINGING ->                                       \
        atomic { DIE; bell = 1 };                                          \
        atomic { DIE; if :: armed == RINGING -> armed = RUNG :: else fi }  \
    :: else                                                                \
    fi;                                                                    \
    a = 0

proctype worker(byte w)
{
    byte a, seen;
    bool ok;

life:
    do
    :: buffered[w] == ITEMS -> break
    :: else ->
        atomic { MAY_DIE; seen = head[w] };     /* outbox.c place */
        if
        :: atomic { buffered[w] == head[w] ->
            MAY_DIE;
            seen = 0;
            buffered[w]++;                      /* outbox_publish */
            if :: FENCE(w) :: true fi };
           if   /* notify */
           :: true ->
            atomic { MAY_DIE; FENCE(w); told[w] = tail[w] };    /* tell_parent */
            WAKE_PARENT(w, MAY_DIE)
           :: buffered[w] < ITEMS
           fi
        :: atomic { buffered[w] != head[w] -> MAY_DIE };
           atomic { MAY_DIE; FENCE(w); starved[w] = 1 };    /* starved */
#ifdef M_SEEN_LATE
           atomic { MAY_DIE; seen = head[w] };
#endif
           atomic { MAY_DIE; told[w] = tail[w] };
           WAKE_PARENT(w, MAY_DIE);
           atomic {
               MAY_DIE;
               if :: head[w] == seen -> ok = 1 :: else -> ok = 0 fi;
               seen = 0
           };
           if
           :: ok ->
               atomic { MAY_DIE; ok = 0; asleep[w] = starved[w] };  /* futex */
               if
               :: !asleep[w]
               :: atomic { asleep[w] && crashes < CRASHES ->
                           crashes++; goto died }
               fi
           :: else
           fi
        fi
    od;
    atomic { gone[w] = 1; goto end };
died:
    atomic { FENCE(w); asleep[w] = 0; a = 0; seen = 0; ok = 0; dead[w] = 1 };
    atomic { !dead[w] -> goto life };
end:
    skip
}

/* What one processor has stored, others see some time. */
proctype buffers()
{
    do
    :: atomic { buffered[0] != tail[0] -> FENCE(0) }
    :: atomic { buffered[1] != tail[1] -> FENCE(1) }
    :: atomic { buffered[2] != tail[2] -> FENCE(2) }
    :: over -> break
    od
}

proctype keeper()
{
    byte w, a;
again:
    do
    :: over && gone[0] && gone[1] -> goto end
    :: atomic { dead[0] -> w = 0; break }
    :: atomic { dead[1] -> w = 1; break }
    :: atomic { buffered[2] == 0 -> buffered[2] = 1;    /* crew_event */
                if :: FENCE(2) :: true fi };
       WAKE_PARENT(2, skip)
    od;
    /* crew.c clear_slot, and the slot's next life */
    starved[w] = 0;
#ifndef M_NOT_TOLD
    told[w] = tail[w];
#endif
    atomic { dead[w] = 0; w = 0 };
#ifndef M_NO_REVIVE
    /* keeper.c revive */
    if :: armed != QUIET -> bell = 1 :: else fi;
#endif
    goto again;
end:
    skip
}

/* pool_read.c ready */
#define READY (told[0] > at[0] || (WORKERS > 1 && told[1] > at[1]) ||       \
               tail[2] != at[2])

proctype parent()
{
    byte at[3], end, w;
    bool ok;
take:   /* pool_read: a round over all outboxes */
    do
    :: w < 3 ->
        end = tail[w];
        at[w] = end;
        if
        :: w < 2 && head[w] != at[w] -> /* outbox_release */
            atomic { head[w] = at[w]; end = 0 };
            atomic { ok = starved[w] };
            if
            :: ok -> starved[w] = 0; atomic { asleep[w] = 0; ok = 0 }
            :: else
            fi
        :: else -> end = 0
        fi;
        w++
    :: else -> w = 0; break
    od;
    if
    :: at[0] == ITEMS && (WORKERS == 1 || at[1] == ITEMS) && at[2] == 1 -> goto done
    :: else
    fi;
#ifdef LOOP
    /* pool_read_done, and the user's event loop waits for the descriptor */
    bell = 0;
    armed = ARMED;
    if :: READY -> bell = 1 :: else fi;
    bell;
    goto take;
#else
    /* pool_wait */
    do
    :: READY -> break
    :: else ->  /* sleep_until_rung */
#ifdef M_ARM_LATE
        ok = READY;
        armed = ARMED;
#else
        armed = ARMED;
        ok = READY;
#endif
        if
        :: !ok -> atomic { bell -> bell = 0 }
        :: else -> ok = 0
        fi;
        armed = QUIET
    od;
    goto take;
#endif
done:
    over = 1
}

init
{
    atomic {
        run parent(); run worker(0);
        if :: WORKERS > 1 -> run worker(1) :: else -> gone[1] = 1 fi;
        run keeper(); run buffers()
    }
}
