/*
** wake.pml - who wakes whom: idle bits, bells, the spinner, revival.
**
** Two workers that sleep when nothing is queued, one of which may be ordered
** to leave for good, and any of which may be killed, or stopped and not go on,
** before every step; the parent that posts; the keeper that reaps, puts back
** what the dead had claimed, passes over the stopped, and revives. Left out:
** the board (cells.pml; here it is a number of queued cells, claimed in one
** step) and how the parent waits (ring.pml).
**
** A futex is three words of the C code in one: `bell` is the word, `asleep`
** says that the kernel holds the sleeper; a wake-up is a step of its own, so
** the waker may die before it, and the woken before it acts.
**
** A worker that leaves stays in its finalizer for ever here: nobody may
** depend on its end. (The keeper bounds it by `grace`; so would be the delay.)
**
** Claimed: no cell stays queued for ever while a worker sleeps, even if no
** running task ever ended; everything ends with all tasks done and all workers
** gone. A hang is an invalid end state.
*/
#include "model.h"
#undef MAY_DIE
#define MAY_DIE                                                            \
    if                                                                     \
    :: crashes < CRASHES -> crashes++; goto died                           \
    :: stops < STOPS -> stops++; goto stopped                              \
    :: true                                                                \
    fi

#ifndef TASKS
#define TASKS 2
#endif
#ifndef LEAVES
#define LEAVES 0        /* slot 1 is ordered to leave */
#endif
#ifndef STOPS
#define STOPS 0         /* workers that are stopped (SIGSTOP) */
#endif

byte queued;            /* cells: head minus claim, and put back ones */
byte done;
byte idle;              /* region_t.idle[0], a bit per slot */
bool bell[2], asleep[2], order[2];
byte spinner;           /* slot + 1 */
bool closing, over;

bool since[2];          /* slot_t.idle_since is set: it is in idle() */
/* A task lasts until every other worker is busy too or nothing is left to be
** claimed: so a queued cell beside a sleeping worker is a hang. */
#if LEAVES || STOPS
#define TASK_MAY_END true
#else
#define TASK_MAY_END ((own[0] && own[1]) || done + own[0] + own[1] == TASKS)
#endif

bool own[2];            /* the slot's worker has claimed a cell */
bool dead[2], gone[2], left[2], halted[2], noticed[2];
byte orders, stops;

/* wake.c wake_worker: takes the spinner, or else an idle bit and rings that
** bell. DIE is MAY_DIE in a worker, skip elsewhere; `who` is the caller's. */
#define WAKE_WORKER(DIE)                                                   \
    atomic { DIE; if :: spinner -> spinner = 0 :: else -> who = 3 fi };    \
    if                                                                     \
    :: who == 3 ->                                                         \
        atomic {                                                           \
            DIE;                                                           \
            if                                                             \
            :: idle & 1 -> who = 1                                         \
            :: !(idle & 1) && idle -> who = 2                              \
            :: else -> who = 0                                             \
            fi;                                                            \
            idle = idle & ~who                                             \
        };                                                                 \
        if                                                                 \
        :: who ->                                                          \
            atomic { DIE; bell[who - 1] = 0 };                             \
            atomic { DIE; asleep[who - 1] = 0; who = 0 }   /* the futex */ \
        :: else                                                            \
        fi                                                                 \
    :: else                                                                \
    fi

/* worker.c must_look; `ok` is the answer */
inline must_look(s, ok)
{
    atomic { MAY_DIE; ok = (queued > 0) };
    if :: !ok -> atomic { MAY_DIE; ok = (closing || order[s]) } :: else fi
}

proctype worker(byte s)
{
    bool hungry, ok, was_closing;
    byte who;

life:
    atomic { MAY_DIE; was_closing = closing };  /* worker_serve */
    atomic {
        MAY_DIE;    /* board_claim */
        if :: queued -> queued--; own[s] = 1 :: else fi
    };
    if
    :: own[s] ->
#ifndef M_NO_WAKE_NEXT
        /* wake_next */
        if
        :: hungry ->
            atomic { MAY_DIE; hungry = 0; ok = (queued > 0) };
            if
            :: ok -> ok = 0; WAKE_WORKER(MAY_DIE)
            :: else
            fi
        :: else
        fi;
#endif
        /* run_cell; a task that ends this life puts the rest back */
        if
        :: atomic { order[s] -> MAY_DIE; queued++; own[s] = 0 }
        :: atomic { TASK_MAY_END -> MAY_DIE; done++; own[s] = 0 }
        :: atomic { crashes < CRASHES -> crashes++; goto died }
        :: atomic { stops < STOPS -> stops++; goto stopped }
        fi
    :: else ->
        if
        :: was_closing -> goto leave
        :: else
        fi;
        /* idle, spin */
        atomic { MAY_DIE; since[s] = 1; hungry = 1; ok = 0; MAY_DIE };
        if
        :: atomic { spinner == 0 -> spinner = s + 1 };
           if  /* found something, or time is up */
           :: must_look(s, ok)
           :: true
           fi;
           atomic { MAY_DIE; if :: spinner == s + 1 -> spinner = 0 :: else fi };
           if :: ok -> goto awake :: else fi
           /* Its second look is that of sleep_until_rung. */
        :: true     /* one CPU, or another one spins */
        fi;
        /* sleep_until_rung */
#ifdef M_LOOK_FIRST
        must_look(s, ok);
        if :: ok -> goto awake :: else fi;
#endif
        atomic { MAY_DIE; bell[s] = 1 };
        atomic { MAY_DIE; idle = idle | (1 << s) };
        do
        ::
#ifndef M_LOOK_FIRST
           must_look(s, ok);
           if :: ok -> break :: else fi;
#endif
           atomic { MAY_DIE; if :: !bell[s] -> break :: else fi };
           atomic {
               MAY_DIE;
               if :: bell[s] -> asleep[s] = 1 :: else fi    /* FUTEX_WAIT */
           };
           if
           :: !asleep[s]
           :: atomic { asleep[s] && crashes < CRASHES -> crashes++; goto died }
           :: atomic { asleep[s] && stops < STOPS -> stops++; goto stopped }
           fi
        od;
        atomic { MAY_DIE; idle = idle & ~(1 << s) };
        atomic { MAY_DIE; bell[s] = 0; MAY_DIE }
    fi;
awake:
    atomic { since[s] = 0; ok = 0; if :: !order[s] -> goto life :: else fi };
leave:
#ifndef M_LEAVER_TAKES
    atomic { MAY_DIE; ok = (queued > 0) };
    if
    :: ok -> ok = 0; WAKE_WORKER(MAY_DIE)
    :: else
    fi;
#endif
    /* give_turn, the finalizer */
    atomic { MAY_DIE; left[s] = 1 };
    atomic { over -> gone[s] = 1; goto end };
stopped:    /* for good: its task counts as ended when all others are */
    halted[s] = 1;
    atomic { over -> gone[s] = 1; goto end };
died:
    atomic { dead[s] = 1; hungry = 0; ok = 0; was_closing = 0; who = 0;
             asleep[s] = 0 };
    atomic { !dead[s] -> if :: gone[s] -> goto end :: else -> goto life fi };
end:
    skip
}

/* keeper.c revive */
inline revive()
{
    s = 0;
    do
    :: s < 2 ->
#ifdef M_REVIVE_BELL
        ok = bell[s];
#else
        ok = since[s];
#endif
        atomic { ok = (ok && !(idle & (1 << s))) };
        if
        :: ok -> bell[s] = 0; asleep[s] = 0
        :: else
        fi;
        atomic { s++; ok = 0 }
    :: else -> break
    od;
    s = 0;
    if
    :: queued -> WAKE_WORKER(skip)
    :: else
    fi
}

proctype keeper()
{
    byte s, who;
    bool ok, was_closing;
again:
    do
    :: gone[0] && gone[1] -> goto end
    :: atomic { dead[0] -> s = 0; break }
    :: atomic { dead[1] -> s = 1; break }
    :: atomic { halted[0] && !noticed[0] -> s = 0; goto pass_over }
    :: atomic { halted[1] && !noticed[1] -> s = 1; goto pass_over }
    :: atomic { orders < LEAVES -> orders++; order[1] = 1 };    /* give_order */
       bell[1] = 0;     /* wake_slot */
       asleep[1] = 0
    :: atomic { closing && !was_closing -> was_closing = 1 };   /* wake_all */
       do
       :: idle || spinner -> WAKE_WORKER(skip)
       :: else -> break
       od;
       do
       :: s < 2 -> bell[s] = 0; asleep[s] = 0; s++
       :: else -> s = 0; break
       od
    od;
    /* crew.c bury: judge, clear_slot */
    if
    :: own[s] -> queued++; own[s] = 0
    :: else
    fi;
    if
    :: left[s]
    :: else ->
#ifndef M_SPINNER_STAYS
        atomic { if :: spinner == s + 1 -> spinner = 0 :: else fi };
#endif
        idle = idle & ~(1 << s);
        atomic { bell[s] = 0; since[s] = 0 }
    fi;
    /* the slot's next life starts, if one is wanted */
    atomic { gone[s] = order[s]; dead[s] = 0; s = 0 };
    goto look;
pass_over:  /* crew.c pass_over, of a stopped worker */
    atomic { noticed[s] = 1; if :: spinner == s + 1 -> spinner = 0 :: else fi };
#ifdef M_STOPPED_CHOSEN
    goto again;
#endif
    atomic { idle = idle & ~(1 << s); s = 0 };
look:
#ifndef M_NO_REVIVE
    revive();
#endif
    goto again;
end:
    skip
}

proctype parent()
{
    byte n, who;
    do
    :: n < TASKS ->
#ifdef M_WAKE_FIRST
        WAKE_WORKER(skip);
        atomic { queued++; n++ }
#else
        atomic { queued++; n++ };   /* board_post */
        WAKE_WORKER(skip)   /* announce */
#endif
    :: else -> break
    od;
    done + (halted[0] && own[0]) + (halted[1] && own[1]) == TASKS;
    closing = 1;
    over = 1
}

init
{
    atomic { run parent(); run worker(0); run worker(1); run keeper() }
}
