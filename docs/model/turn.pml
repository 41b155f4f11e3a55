/*
** turn.pml - the lives of one slot: start, wait for the turn, leave, be buried.
**
** A slot's processes (a worker, its successor, predecessors in their
** finalizers), which may be killed before every step, fail to start, leave
** after a task or when ordered to, and hang in the finalizer; the keeper's
** pass over them; the parent that posts, asks for a replacement, shrinks the
** pool, closes it and joins. Left out: the board (a number of queued cells)
** and waking for work (an idle worker sees what there is).
**
** Generations may not be LIVES_MAX or more apart; a life's word lies at
** its generation modulo LIVES_MAX.
**
** Claimed:
**   - join returns, whatever failed, hung or was killed, and all tasks posted
**     before the close have been done
**   - one request replaces one life, and leaves no spare one behind
**   - a slot whose worker left for being idle has no life, is counted once as
**     asleep, and wakes when a cell is queued
**   - no life ends without a reason, so none is started for nothing
**   - two living processes of a slot have different places for their words
*/
#include "model.h"

#ifndef TASKS
#define TASKS 1
#endif
#ifndef LEAVES
#define LEAVES 0        /* lives that end after a task (maxtasksperchild) */
#endif
#ifndef FAILS
#define FAILS 0         /* starts that fail */
#endif
#ifndef RECYCLES
#define RECYCLES 0      /* replacements asked for */
#endif
#ifndef IDLES
#define IDLES 0         /* orders to leave for being idle */
#endif
#ifndef SHRINK
#define SHRINK 0        /* 1: the pool is made smaller by this slot */
#endif
#ifndef SUCCESSOR
#define SUCCESSOR 0     /* 1: there is always one waiting; 2: at any time */
#endif
#ifndef FINALIZER
#define FINALIZER 0
#endif
#ifndef LIVES_MAX
#define LIVES_MAX 3     /* 4 in region.h */
#endif
#define NOBODY 255
#ifndef LOOKS
#define LOOKS (IDLES || SUCCESSOR == 2 -> 2 : 0)    /* passes out of the blue */
#endif

/* slot_t.life[]: a word each */
#define NONE 0
#define STARTING 1
#define FAILED 2
#define READY 3
#define LEAVING 4
typedef word { byte generation, phase, reason };
word life[LIVES_MAX];
/* reasons */
#define TASKS_DONE 1
#define REQUEST 2
#define IDLE 3
#define RESIZE 4
#define CLOSE 5

/* slot_t, region_t */
byte turn, order_to = NOBODY, order_why, generation = NOBODY;
bool idle;              /* idle_since is set */
byte queued, done, asleep_count;
bool closing, hear, replace, kick, ended;
bool wanted = 1;

/* The processes. */
typedef process { byte gen; bool alive, zombie, asleep, killed };
process p[3];
byte own = NOBODY;      /* who has claimed a cell */
byte leaves, fails, requested;

#define MINE(i) life[p[i].gen % LIVES_MAX]
#define ORDERED(i) (order_to == p[i].gen)

/* os_futex_wake(&s->turn, LIVES_MAX) */
#define WAKE_TURN p[0].asleep = 0; p[1].asleep = 0; p[2].asleep = 0

proctype worker(byte i)
{
    byte t, why;
born:
    if
    :: atomic { p[i].alive && !p[i].zombie -> MAY_DIE }
    :: ended -> goto end
    fi;
    if  /* the initializer */
    :: atomic { fails < FAILS -> fails++; MINE(i).phase = FAILED; goto exit }
    :: atomic { MAY_DIE; MINE(i).phase = READY }  /* be_ready */
    fi;
    atomic { MAY_DIE; if :: hear -> kick = 1 :: else fi };
    do  /* take_turn */
    :: atomic { MAY_DIE; t = turn; if :: t == p[i].gen -> break :: else fi };
       assert(t < p[i].gen);    /* no turn goes by a life that waits */
       atomic { MAY_DIE; if :: turn == t -> p[i].asleep = 1 :: else fi };
       if
       :: atomic { !p[i].asleep -> t = 0 }
       :: atomic { p[i].asleep && crashes < CRASHES -> crashes++; goto died }
       fi
    od;
    atomic { MAY_DIE; t = 0; generation = p[i].gen };
    do  /* worker_serve */
    :: atomic {     /* wants_to_leave */
        MAY_DIE;
        if
        :: ORDERED(i) && order_why == IDLE && queued ->
            order_to = NOBODY; order_why = 0
        :: ORDERED(i) && !(order_why == IDLE && queued) ->
            why = order_why; break
        :: !ORDERED(i)
        fi };
       atomic {     /* closing, board_claim */
        MAY_DIE;
        if
        :: queued -> queued--; own = i
        :: !queued && closing -> why = CLOSE; break
        :: !queued && !closing -> idle = 1
        fi };
       if
       :: idle ->
           if
           :: atomic { queued || closing || ORDERED(i) -> MAY_DIE; idle = 0 }
           :: atomic { crashes < CRASHES -> crashes++; goto died }
           fi
       :: !idle ->
           atomic {
               MAY_DIE;
               done++; own = NOBODY;
               if
               :: leaves < LEAVES -> leaves++; why = TASKS_DONE; break
               :: true
               fi }
       fi
    od;
    atomic {    /* give_turn */
        MAY_DIE;
        MINE(i).phase = LEAVING; MINE(i).reason = why;
        if :: why == REQUEST -> requested++; assert(requested <= RECYCLES)
           :: else fi;
        why = 0
    };
    atomic { MAY_DIE; turn = p[i].gen + 1 };    /* wake.c pass_turn */
    atomic { MAY_DIE; WAKE_TURN };
#if FINALIZER
    atomic { MAY_DIE; kick = 1 };
    if
    :: true
    :: true -> p[i].killed      /* it hangs */
    fi;
#endif
    goto exit;
died:
    skip;
exit:
    atomic { p[i].zombie = 1; p[i].asleep = 0; why = 0; t = 0; goto born };
end:
    skip
}

/* keeper.c give_order */
inline give_order(to, reason_)
{
    atomic { order_to = to; order_why = reason_ }
}

/* crew.c crew_find: `found` is the process, or NOBODY */
#define IS(i, g) (p[i].alive && p[i].gen == (g))
#define FIND(g) (IS(0, g) -> 0 : (IS(1, g) -> 1 : (IS(2, g) -> 2 : NOBODY)))
#define COME(t) ((p[0].alive && p[0].gen >= (t)) +                         \
                 (p[1].alive && p[1].gen >= (t)) +                         \
                 (p[2].alive && p[2].gen >= (t)))
#define PHASE(i) (MINE(i).generation == p[i].gen -> MINE(i).phase : NONE)

inline rouse()
{
    if :: dormant -> dormant = 0; asleep_count-- :: else fi
}

/* keeper.c keeper_lull */
inline lull()   /* t: the turn */
{
    atomic {
        x = (t > 0 -> FIND(t - 1) : NOBODY);
        if
        :: x != NOBODY && !lulled[x] && PHASE(x) == LEAVING &&
           MINE(x).reason == IDLE ->
            lulled[x] = 1;
            if
            :: closing || !wanted -> x = NOBODY
            :: else
            fi
        :: else -> x = NOBODY
        fi
    };
    if
    :: x != NOBODY ->
        x = FIND(t);
        if
        :: x != NOBODY -> give_order(t, IDLE)
        :: else ->
            atomic { dormant = 1; asleep_count++; assert(asleep_count == 1) };
            if :: queued -> atomic { rouse() } :: else fi
        fi
    :: else
    fi;
    x = NOBODY
}

/* keeper.c being_replaced */
#define BEGUN 2
#define ASKED 1
inline being_replaced()
{
    if
    :: seat == BEGUN && (dormant || turn != old) -> seat = 0; old = 0
    :: else
    fi
}

/* Ends of lives there is a reason for: each named one; the successor of one that
** left for being idle; and two at the end, or when the pool is made smaller. */
#define TURNS (CRASHES + LEAVES + FAILS + RECYCLES + 2 * IDLES + 2)

/* All first lives, then, should any be wanted, the successors. */
#define ROUNDS (SUCCESSOR || recycling -> 2 : 1)

proctype keeper()
{
    byte i, t, x = NOBODY, g, round, want, come, seat, old, idles, looks = LOOKS;
    bool dormant, lulled[3], grace[3], paused, soon, recycling;
pass:
    /* crew.c crew_reap, bury */
    i = 0;
    do
    :: i < 3 && p[i].zombie ->
        g = p[i].gen;
        x = PHASE(i);
        if
        :: x != STARTING && x != FAILED ->  /* bury_worker */
            if
            :: atomic { turn == g ->
                if      /* judge, clear_slot */
                :: own == i -> own = NOBODY; queued++
                :: else
                fi;
                idle = 0 };
               turn = g + 1;
               atomic { WAKE_TURN }
            :: turn != g ->
#ifndef M_NO_LAST_WAKE
               atomic { WAKE_TURN }
#else
               skip
#endif
            fi;
            if
            :: x == LEAVING && MINE(i).reason == IDLE -> t = turn; lull()
            :: else
            fi
        :: else ->
#ifndef M_FAILED_KEEPS_TURN
            if  /* bury_failed_start */
            :: turn == g && FIND(g + 1) != NOBODY ->
                turn = g + 1;
                atomic { WAKE_TURN }
            :: else
            fi;
#endif
            paused = 1
        fi;
        atomic { p[i].alive = 0; p[i].zombie = 0; p[i].killed = 0; p[i].gen = 0;
                 lulled[i] = 0; grace[i] = 0; g = 0; x = NOBODY; i++ }
    :: i < 3 && !p[i].zombie -> i++
    :: else -> i = 0; break
    od;
    /* obey_size */
    if
    :: !wanted ->
        t = turn;
        x = FIND(t);
        if :: x != NOBODY && !closing -> give_order(t, RESIZE) :: else fi;
        atomic { rouse(); seat = 0; t = 0; x = NOBODY }
    :: else
    fi;
#ifdef M_HEAR_LATE
#define HEAR(before) if :: !(before) -> hear = recycling :: else fi
#else
#define HEAR(before) if :: before -> hear = recycling :: else fi
#endif
    /* obey_replace */
    atomic {
        if
        :: replace && wanted -> replace = 0; seat = ASKED; recycling = 1
        :: else -> replace = 0
        fi
    };
    HEAR(true);
    /* recycle_seats */
    if
    :: recycling && wanted ->
        being_replaced();
        if
        :: seat == ASKED -> seat = BEGUN; old = turn
        :: else
        fi;
        recycling = (seat != 0);
        if
        :: seat == BEGUN ->
            x = FIND(old + 1);
            if
            :: FIND(old) != NOBODY && x != NOBODY && PHASE(x) == READY ->
                give_order(old, REQUEST)
            :: else
            fi;
            x = NOBODY
        :: else
        fi
    :: else
    fi;
    /* wake_dormant */
    if :: dormant && queued -> atomic { rouse() } :: else fi;
    /* start_wanted */
    soon = 0;
    round = 1;
    do
    :: round > ROUNDS -> break
    :: round <= ROUNDS ->
        come = COME(turn);  /* crew_to_come, before what is wanted */
        want = 0;
        if
        :: !wanted
        :: else ->  /* lives_wanted */
            t = turn;
#ifndef M_LULL_LATE
            if :: IDLES -> lull() :: else fi;
#endif
            if
            :: dormant
            :: !dormant && closing -> want = (queued > 0)
            :: !dormant && !closing ->  /* wants_successor */
                want = 1;
#ifdef M_SPARE
                if :: seat == BEGUN -> want = 2 :: else fi;
#else
                being_replaced();
                if :: seat == BEGUN -> want = 2 :: else fi;
#endif
#ifdef M_TURN_TWICE
                t = turn;
#endif
                if
                :: order_to == t && order_why == IDLE && want == 1
                :: else ->
                    if
                    :: SUCCESSOR == 1 -> want = 2
                    :: SUCCESSOR == 2 && generation == t -> want = 2
                    :: SUCCESSOR != 1
                    fi
                fi
            fi
        fi;
#ifdef M_WANTED_FIRST
        come = COME(turn);
#endif
        if
        :: come < round && come < want ->   /* start_life, next_generation */
            g = turn;
            do :: FIND(g) != NOBODY -> g++ :: else -> break od;
            x = (!p[0].alive -> 0 : (!p[1].alive -> 1 :
                (!p[2].alive -> 2 : NOBODY)));
            if
#ifdef M_COUNT_LIVES
            :: p[0].alive + p[1].alive + p[2].alive < LIVES_MAX && !paused ->
#else
            :: x != NOBODY && !paused &&    /* crew_has_room */
               !(p[0].alive && p[0].gen % LIVES_MAX == g % LIVES_MAX) &&
               !(p[1].alive && p[1].gen % LIVES_MAX == g % LIVES_MAX) &&
               !(p[2].alive && p[2].gen % LIVES_MAX == g % LIVES_MAX) ->
#endif
                atomic {
                    p[x].gen = g; p[x].alive = 1;
                    MINE(x).generation = g; MINE(x).phase = STARTING;
                    MINE(x).reason = 0
                }
            :: else -> soon = soon || paused
            fi
        :: else
        fi;
        atomic { g = 0; t = 0; x = NOBODY; want = 0; come = 0; round++ }
    od;
    round = 0;
    HEAR(false);
    atomic { if :: paused && soon -> paused = 0 :: else fi };
    assert(!dormant || COME(turn) == 0);
    if
    :: closing && queued == 0 && !p[0].alive && !p[1].alive && !p[2].alive ->
        goto end
    :: else
    fi;
    /* watch */
    do
    :: i < 3 ->
        if
        :: p[i].alive && PHASE(i) == LEAVING && FINALIZER && !p[i].killed ->
            if  /* watch_finalizer: not yet, but the next time */
            :: !grace[i] -> grace[i] = 1; soon = 1
            :: grace[i] -> p[i].killed = 1
            fi
        :: p[i].alive && PHASE(i) == READY && p[i].gen == turn && idle &&
           idles < IDLES && !closing && !dormant && !ORDERED(i) ->
            if  /* watch_idle */
            :: atomic { idles++; give_order(p[i].gen, IDLE) }
            :: true
            fi
        :: else
        fi;
        i++
    :: else -> i = 0; break
    od;
    assert(turn <= TURNS);
    /* With nothing under way there is just what is wanted. */
    assert(SUCCESSOR || seat || recycling || replace || COME(turn) <= 1);
    /* sleep_until */
    if
    :: atomic { kick -> kick = 0 }
    :: p[0].zombie || p[1].zombie || p[2].zombie
    :: soon
    :: looks > 0 -> looks--     /* something is due */
    fi;
    goto pass;
end:
    ended = 1
}

proctype parent()
{
    byte posted, asked, before;
    bool shrunk;
    do
    :: posted < TASKS ->
        atomic { queued++; posted++ };      /* pool_post, announce */
        if :: asleep_count -> kick = 1 :: else fi
    :: asked < RECYCLES ->  /* pool_recycle; it is to happen by itself */
        atomic { before = turn; replace = 1; asked++ };
        kick = 1;
        /* There is nothing to replace in a slot asleep or not wanted. */
        atomic { turn != before || asleep_count || !wanted -> before = 0 }
    :: SHRINK && !shrunk && done == TASKS && posted == TASKS ->
        wanted = 0; kick = 1; shrunk = 1
    :: posted == TASKS -> break
    od;
    closing = 1;
    kick = 1;
    ended;      /* join */
    assert(done == TASKS)
}

init
{
    atomic {
        kick = 1;
        run parent(); run worker(0); run worker(1); run worker(2);
        run keeper()
    }
}
