/*
** cells.pml - the board: claim, run, publish, put back, judge, free, use again.
**
** Two slots whose workers may be killed before every step, be recycled after
** every task and meet a time limit in every task; the keeper that judges the
** dead; the parent that posts, takes outcomes in, cancels and frees. Left
** out: waking (wake.pml; here a waiting worker sees what there is), turns
** (turn.pml; here a slot's next life begins at once), the ring's bytes
** (ring.pml; here a record is one value in a channel).
**
** Claimed:
**   - every item gets exactly one outcome: never two (assert in TAKE), never
**     none (the parent would wait for ever: an invalid end state)
**   - user code is entered at most 1 + RETRIES times per item
**   - a task is judged as begun if and only if it was
**   - a kill for a time limit meets the task that it was meant for
**   - nobody touches a cell that the parent has freed
*/
#include "model.h"

#ifndef CELLS
#define CELLS 2            /* cells posted */
#endif
#ifndef PLACES
#define PLACES CELLS           /* places on the board, each used again when free */
#endif
#ifndef ITEMS0
#define ITEMS0 1        /* items of the first cell, of those behind it */
#endif
#ifndef ITEMS1
#define ITEMS1 1
#endif
#define ITEMS(p) ((p) == 0 -> ITEMS0 : ITEMS1)
#ifndef LEAVES
#define LEAVES 0        /* recyclings */
#endif
#ifndef LIMITS
#define LIMITS 0        /* kills for a time limit */
#endif
#ifndef RETRIES
#define RETRIES 0
#endif
#ifndef REQUEUES_MAX
#define REQUEUES_MAX 1  /* 2 in crew.c */
#endif
/* CANCEL, if given, is the position of a cell that is cancelled at some time */

/* A cell's word: state, owner, generation, position (region.h CELL_WORD). */
#define FREE 0
#define QUEUED 1
#define CLAIMED 2
#define WORD(state, slot, gen, p)                                          \
    ((state) * 64 + (slot) * 32 + (gen) * 4 + (p))
/* The hint: version, position (board.c CLAIM_WORD). */
#define HINT(version, p) ((version) * 4 + (p))
#define HINT_POS(c) ((c) % 4)
#define HINT_VER(c) ((c) / 4)
/* What the slot's task is doing: state, item, serial (region.h RUN_WORD). */
#define IDLE 0
#define RUNNING 1
#define SAVING 2
#define KILLING 3
#define RUN(state, item, serial) ((state) * 64 + (item) * 16 + (serial))
#define RUN_STATE(w) ((w) / 64)
#define RUN_ITEM(w) (((w) / 16) % 4)
#define RUN_SERIAL(w) ((w) % 16)

/* cell_t */
byte word[PLACES], position[PLACES], first[PLACES], items[PLACES];
byte attempt[PLACES], requeues[PLACES];
bool cancel[PLACES];
/* region_t; the directory holds the place + 1, as segments of one cell do */
byte directory[CELLS + 1], head, claim;
bool closing;
/* slot_t; `task` is its `run` */
byte intent[2], begun[2], tail[2], task[2], turn[2];
/* Published records: the cell's position, the item, how many items it is of.
** One store of `tail` publishes and moves on. */
chan outbox[2] = [4] of { byte, byte, byte };
chan verdicts = [4] of { byte, byte, byte };

bool killed[2];         /* SIGKILL from the keeper */
bool dead[2];           /* a zombie: reaped by the keeper */
bool gone[2];           /* left for good */
bool limit_hit[2];      /* life_t.kill_reason == REASON_TIMELIMIT */
byte leaves, limits;

/* What only the checker sees. */
byte got[CELLS];           /* bit i: item i has its outcome */
byte entered[CELLS * 4];   /* how often user code was entered */
byte inside[2];         /* serial of the task without an outcome, 0: none */

/* A keeper that watches time limits looks at `run` of the living; otherwise
** it is the worker's own. */
#if LIMITS
#define LOOKED_AT } ; atomic { skip
#define NEXT_SERIAL serial++
#else
#define LOOKED_AT skip
#define NEXT_SERIAL serial = 1
#endif

/* board.c lower: from here on no cell before the hint is queued. */
#ifdef M_NO_VERSION
#define RAISED(c) HINT_VER(c)
#else
#define RAISED(c) ((HINT_VER(c) + 1) % 8)
#endif
#define LOWERED(c, p) HINT(RAISED(c), (HINT_POS(c) < (p) -> HINT_POS(c) : (p)))

proctype worker(byte s)
{
    byte gen = 1, c, at, w, p, i, n, serial;
    bool ok, leave, was_closing;

life:
  {
    atomic {    /* worker.c take_turn */
        MAY_DIE;
#ifndef M_STALE_BEGUN
        begun[s] = 0;
#endif
        serial = RUN_SERIAL(task[s])
    };
next:
    atomic { MAY_DIE; was_closing = closing };
find:
    if  /* board.c find_queued */
    :: atomic { HINT_POS(claim) < head ->
            c = claim; at = directory[HINT_POS(c)] }
    :: atomic { HINT_POS(claim) >= head ->
            c = 0; at = 0; w = 0; p = 0; ok = 0;
            if :: was_closing -> goto out :: else fi };
       if
       :: HINT_POS(claim) < head || closing -> goto next
       :: atomic { crashes < CRASHES -> crashes++; goto died }
       fi
    fi;
    atomic {
        w = (at -> word[at - 1] : 0);
        p = HINT_POS(c)
    };
    atomic {
        if
        :: w != WORD(QUEUED, 0, 0, p) ->
            CAS(claim, c, HINT(HINT_VER(c), p + 1), ok);
            goto find
        :: else
        fi;
        /* board.c board_claim; the intent is read after a death only */
        at--;
        MAY_DIE;
#ifndef M_INTENT_LATE
        intent[s] = at + 1;
        MAY_DIE;
#endif
        CAS(word[at], w, WORD(CLAIMED, s, gen, p), ok);
        w = 0;
        if :: !ok -> goto find :: else fi;
        MAY_DIE;
#ifdef M_INTENT_LATE
        intent[s] = at + 1;
#endif
    };
    atomic {
        CAS(claim, c, HINT(HINT_VER(c), p + 1), ok);
        MAY_DIE;
        /* worker.c run_cell, begin_cell: the slot's words are its own */
        c = 0;
        i = first[at];
        n = items[at];
        task[s] = RUN(IDLE, 0, serial);
        MAY_DIE;
        tail[s] = i;
        MAY_DIE;
        begun[s] = p + 1
    };
    do
    :: i >= n -> break
    :: atomic { i < n && cancel[at] ->  /* worker_next, drop_rest */
            MAY_DIE;
            tail[s] = n;
            outbox[s]!p, i, n - i };
       break
    :: atomic { i < n && !cancel[at] && leave -> /* put_back_rest, board_put_back */
            MAY_DIE;
            attempt[at] = 1;
            requeues[at] = 0;
            MAY_DIE;
            first[at] = i;
            MAY_DIE;
            word[at] = WORD(QUEUED, 0, 0, p);
            MAY_DIE
       };
       do
       :: c = claim;
          atomic { CAS(claim, c, LOWERED(c, p), ok);
                   if :: ok -> break :: else fi }
       od;
       break
    :: atomic { i < n && !cancel[at] && !leave ->
            MAY_DIE;
            NEXT_SERIAL;    /* worker_enter */
            task[s] = RUN(RUNNING, i, serial);
            inside[s] = serial;
            entered[p * 4 + i]++;
            assert(entered[p * 4 + i] <= 1 + RETRIES);
            LOOKED_AT;
            MAY_DIE;    /* in user code */
            CAS(task[s], RUN(RUNNING, i, serial), RUN(SAVING, i, serial), ok);
            LOOKED_AT;
            /* await_death; else settle's publish */
            if :: !ok -> killed[s]; goto died :: else fi;
            MAY_DIE;
#ifdef M_TWO_STORES
            outbox[s]!p, i, 1;
            MAY_DIE;
            tail[s] = i + 1;
#else
            tail[s] = i + 1;
            outbox[s]!p, i, 1;
#endif
            inside[s] = 0;
       };
       atomic {
            MAY_DIE;
            i++;
            if  /* leaves_after_task, or on_exit_called */
            :: leaves < LEAVES -> leaves++; leave = 1;
#ifdef M_EXIT_ITEMS
               n = items[at]
#endif
            :: true
            fi
       }
    od;
    atomic {
        MAY_DIE;
        at = 0; p = 0; i = 0; n = 0; c = 0; ok = 0;
        if
        :: leave -> /* give_turn; the slot's next life begins */
            leave = 0; gen = gen % 7 + 1; turn[s] = gen; goto life
        :: else -> goto next
        fi
    };
#if LIMITS
  } unless { killed[s] };
#else
  };
#endif
died:
    atomic { killed[s] = 0; dead[s] = 1; at = 0; w = 0; p = 0; i = 0; n = 0;
             c = 0; ok = 0; leave = 0; was_closing = 0; serial = 0 };
    atomic { turn[s] != gen -> gen = turn[s]; goto life };
out:
    gone[s] = 1
}

/* crew.c judge, of the reaped life `gen` of slot s */
inline judge(s, gen)
{
    /* board.c board_owned */
    atomic {
        at = intent[s];
        if :: at == 0 -> goto judged :: else -> at-- fi;
        w = word[at]
    };
    atomic {
        p = position[at];
        if
        :: w / 64 != CLAIMED || (w / 32) % 2 != s || (w / 4) % 8 != gen ->
            goto mend
        :: else
        fi;
        r = (begun[s] == p + 1)
    };
    atomic {
        n = items[at];
        if
        :: r -> next = tail[s]
        :: else -> next = first[at]
        fi;
        if :: next >= n -> goto mend :: else fi
    };
#ifndef M_WORD_ONCE
    /* Or was it published to the end, freed and used again meanwhile? */
    if :: word[at] != w -> goto mend :: else fi;
#endif
    atomic {
        r = (r && RUN_STATE(task[s]) != IDLE && RUN_ITEM(task[s]) == next);
        assert(r == (inside[s] != 0));
        w = 0;
        c = first[at];
        if
        :: next != c -> requeues[at] = 0; attempt[at] = 1
        :: else
        fi;
        c = 0;
        if  /* judge_unbegun, or judge_begun */
        :: !r && requeues[at] < REQUEUES_MAX -> requeues[at]++
        :: (r || requeues[at] >= REQUEUES_MAX) && !limit_hit[s] &&
           attempt[at] <= RETRIES && !cancel[at] ->
            requeues[at] = 0;
            attempt[at]++
        :: else -> goto verdict
        fi
    };
    goto put_back;
verdict:    /* end_task: a cell is not touched after its last outcome is out */
#ifdef M_VERDICT_ITEMS
    verdicts!p, next, 1;
    n = items[at];
    if :: next + 1 >= n -> goto judged :: else fi;
#else
    atomic { verdicts!p, next, 1; if :: next + 1 >= n -> goto judged :: else fi };
#endif
    atomic { requeues[at] = 0; attempt[at] = 1; next++ };
put_back:
    atomic { first[at] = next; word[at] = WORD(QUEUED, 0, 0, p) };
    goto lower;
mend:       /* board.c board_mend: dead between queueing the cell and the hint? */
#ifdef M_NO_LOWER
    goto judged;
#endif
    atomic { w = 0; p = position[at] };
    if :: word[at] != WORD(QUEUED, 0, 0, p) -> goto judged :: else fi;
lower:
    do
    :: c = claim;
       atomic { CAS(claim, c, LOWERED(c, p), ok); if :: ok -> break :: else fi }
    od;
judged:
    skip
}

#define OVER_LIMIT(s)                                                      \
    (limits < LIMITS && !limit_hit[s] && RUN_STATE(task[s]) == RUNNING)

proctype keeper()
{
    byte s, at, w, p, n, next, c, r;
    bool ok;
again:
    do
    :: gone[0] && gone[1] -> goto done
    :: atomic { dead[0] -> s = 0; goto reap }
    :: atomic { dead[1] -> s = 1; goto reap }
    /* keeper.c watch_task: any running task may be over its limit */
    :: atomic { OVER_LIMIT(0) -> s = 0; r = task[0]; limits++; break }
    :: atomic { OVER_LIMIT(1) -> s = 1; r = task[1]; limits++; break }
    od;
    atomic {    /* keeper.c kill_task, crew.c crew_kill */
#ifdef M_KILL_STORE
        task[s] = RUN(KILLING, RUN_ITEM(r), RUN_SERIAL(r)); ok = 1;
#else
        CAS(task[s], r, RUN(KILLING, RUN_ITEM(r), RUN_SERIAL(r)), ok);
#endif
        if
        :: ok ->
            assert(inside[s] == RUN_SERIAL(r));
            limit_hit[s] = 1
        :: else -> r = 0; s = 0; goto again
        fi;
        r = 0; ok = 0
    };
    atomic { killed[s] = !dead[s]; s = 0; goto again };
reap:
    judge(s, turn[s]);
    atomic {    /* crew.c clear_slot: the slot is the next life's */
#ifndef M_STALE_RUN
        task[s] = RUN(IDLE, 0, RUN_SERIAL(task[s]));
#endif
        limit_hit[s] = 0; dead[s] = 0; inside[s] = 0; turn[s] = turn[s] % 7 + 1;
        s = 0; at = 0; w = 0; p = 0; n = 0; next = 0; c = 0; r = 0; ok = 0;
        goto again
    };
done:
    skip
}

#define WHOLE(p) ((1 << ITEMS(p)) - 1)

proctype parent()
{
    byte p, q, i, n, at, used;
    bool ok, tried;
again:
    do
    :: atomic { p < CELLS && used != (1 << PLACES) - 1 -> /* board_next, board_post */
            at = 0;
            do :: used & (1 << at) -> at++ :: else -> break od;
            used = used | (1 << at);
            assert(word[at] / 64 == FREE);
            position[at] = p; items[at] = ITEMS(p); first[at] = 0;
            cancel[at] = 0; attempt[at] = 1; requeues[at] = 0; directory[p] = at + 1 };
       word[at] = WORD(QUEUED, 0, 0, p);
       atomic { p++; head = p; at = 0 }
    :: atomic { outbox[0]?q, i, n -> break }
    :: atomic { outbox[1]?q, i, n -> break }
    :: atomic { verdicts?q, i, n -> break }
#ifdef CANCEL
    :: atomic { p > CANCEL && !tried && directory[CANCEL] ->
            tried = 1; at = directory[CANCEL] - 1 };
       /* pool_cancel: withdrawn while queued, or else marked; and it may have
       ** been put back just before it was marked */
       atomic { CAS(word[at], WORD(QUEUED, 0, 0, CANCEL),
                    WORD(FREE, 0, 0, CANCEL), ok);
                if :: ok -> goto withdrawn :: else fi };
       atomic { if :: word[at] / 64 == FREE -> at = 0; goto again :: else fi };
       cancel[at] = 1;
       atomic { CAS(word[at], WORD(QUEUED, 0, 0, CANCEL),
                    WORD(FREE, 0, 0, CANCEL), ok);
                if :: ok -> goto withdrawn :: else -> at = 0 fi }
#endif
    :: atomic { p == CELLS && !used -> goto over }
    od;
    goto take;
withdrawn:  /* read_withdrawn: what has no outcome yet is cancelled */
    atomic { q = position[at]; i = first[at]; n = ITEMS(q) - i; at = 0;
             ok = 0 };
take:
    atomic {    /* TAKE an outcome */
        do
        :: n > 0 ->
            assert(!(got[q] & (1 << i)));
            got[q] = got[q] | (1 << i);
            entered[q * 4 + i] = 0;
            i++; n--
        :: else -> break
        od;
        i = 0;
        if :: got[q] != WHOLE(q) -> q = 0; goto again :: else fi;
        at = directory[q] - 1;      /* board_free */
        word[at] = WORD(FREE, 0, 0, q);
        first[at] = 0; attempt[at] = 0; requeues[at] = 0
    };
    atomic { directory[q] = 0; used = used & ~(1 << at); at = 0; q = 0;
             goto again };
over:
    closing = 1
}

init
{
    atomic {
        turn[0] = 1; turn[1] = 1;
        run parent(); run worker(0); run worker(1); run keeper()
    }
}
