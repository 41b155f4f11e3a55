/*
** limit.pml - time limits and cancels: stop signals and kills.
**
** One slot, whose workers run two cells of one task each, one of them with a
** time limit, the other without. User code returns by itself, or goes on until it
** is interrupted, or goes on until it is killed. The parent cancels the cell
** CANCEL at some time. The keeper sleeps unless it is kicked or something is
** due; what is due by time may strike at any pass, at the third at the latest.
** A start may be found to take too long.
**
** Claimed:
**   - what would go on for ever is ended: both tasks get one outcome
**   - the error of a time limit or cancel is raised in the task that it was
**     meant for, and the kill meets that task
**   - the deadline that the keeper acts on is that of the task it saw
**   - the kill for a start that takes too long never meets a claimed cell
**   - a task whose cell was cancelled before its worker looked never begins
*/
#include "model.h"

#ifndef CANCEL
#define CANCEL 1        /* the cell that is cancelled; 2: none */
#endif
#ifndef SLOW_STARTS
#define SLOW_STARTS 0
#endif
#ifndef LIMITED_TASK
#define LIMITED_TASK 0  /* the one with a time limit */
#endif
#define LIMITED(t) ((t) == LIMITED_TASK)

/* slot_t.run: state and serial */
#define IDLE 0
#define RUNNING 1
#define SAVING 2
#define KILLING 3
#define RUN(state, serial) ((state) * 8 + (serial))
#define STATE(r) ((r) / 8)
#define SERIAL(r) ((r) % 8)

/* slot_t.life */
#define STARTING 0
#define FAILED 1
#define READY 2

/* region_t.wake_at; 0: the keeper is awake */
#define SOON 1
#define NEVER 2

byte task;              /* slot_t.run */
byte deadline;          /* slot_t.deadline: of this serial; 0: none */
byte stop;              /* slot_t.stop: the serial asked to stop */
byte phase, wake_at;
bool cancel, kick;
byte cancels;

byte claimed;           /* cell + 1 that the worker owns; 0: none */
bool published;         /* its task has its outcome */
byte next;              /* cells that are over */

bool pending;           /* STOP_SIGNAL was sent */
bool armed;             /* runner.c: the hook that raises is set */
bool killed, dead, gone;

/* What only the checker sees. */
byte inside;            /* serial of the task in user code; 0: none */
byte outcomes[2];

#define GOES_ON(t) (LIMITED(t) || (t) == CANCEL)

proctype worker()
{
    byte serial, t;
    bool before;    /* the cancel was there when the worker looked */
    bool slow;      /* user code that does not return by itself */
    bool deaf;      /* nor lets itself be interrupted */
life:
  {
    atomic { MAY_DIE; serial = SERIAL(task) };
    atomic {    /* be_ready */
        MAY_DIE;
#ifdef M_READY_STORED
        phase = READY
#else
        if :: phase == STARTING -> phase = READY
           :: else -> false     /* await_death */
        fi
#endif
    };
    do
    :: next == 2 -> break
    :: else ->
        atomic {    /* board_claim, begin_cell */
            MAY_DIE;
            t = next; published = 0; claimed = t + 1;
            task = RUN(IDLE, serial)
        };
        atomic {    /* worker_next */
            MAY_DIE;
            before = (cancel && t == CANCEL);
            if
            :: before -> outcomes[t]++; published = 1; next++; goto over
            :: else
            fi
        };
        atomic {    /* decoding; worker_enter */
            MAY_DIE;
            if :: LIMITED(t) -> deadline = serial + 1 :: else fi
        };
        atomic {
            MAY_DIE;
            serial++;
            inside = serial;
            task = RUN(RUNNING, serial);
            if
            :: slow = 0; deaf = 0
            :: GOES_ON(t) -> slow = 1; deaf = 0
            :: GOES_ON(t) -> slow = 1; deaf = 1
            fi
        };
#ifndef M_NO_KICK
        atomic { MAY_DIE; if :: LIMITED(t) && wake_at == NEVER -> kick = 1
                             :: else fi };
#endif
        do  /* user code */
        :: atomic { !slow -> MAY_DIE; break }
        :: atomic { armed && !deaf ->   /* runner.c stop_hook */
            MAY_DIE;
            armed = 0;
            if
#ifdef M_HOOK_BLIND
            :: true ->
#else
            :: stop == serial && STATE(task) == RUNNING ->
#endif
                assert(stop == inside);
                break
            :: else
            fi }
        :: atomic { crashes < CRASHES -> crashes++; goto died }
        od;
        atomic { armed = 0; slow = 0; deaf = 0 };   /* tidy_task */
        atomic {    /* settle */
            MAY_DIE;
            if :: task == RUN(RUNNING, serial) -> task = RUN(SAVING, serial)
               :: else -> false     /* await_death */
            fi;
            inside = 0
        };
#ifndef M_DEADLINE_LEFT
        atomic { MAY_DIE; if :: LIMITED(t) -> deadline = 0 :: else fi };
#endif
        atomic { MAY_DIE; published = 1; outcomes[t]++; next++ };
over:
        atomic { MAY_DIE; claimed = 0; before = 0; t = 0 }
    od;
    atomic { MAY_DIE; gone = 1; goto end }
  } unless { killed };
died:
    atomic { killed = 0; pending = 0; dead = 1; armed = 0; slow = 0; deaf = 0;
             before = 0; serial = 0; t = 0 };
    atomic { !dead -> goto life };
end:
    skip
}

/* worker.c on_stop: between any two steps of the worker */
proctype handler()
{
    do
    :: atomic { pending && !killed && !dead ->
        pending = 0;
        if
        :: stop == SERIAL(task) && STATE(task) == RUNNING && inside ->
            armed = 1
        :: else
        fi }
    :: gone -> break
    od
}

#ifdef M_ONE_LOOK
#define SAME_TASK true
#else
#define SAME_TASK (task == r)
#endif

/* keeper.c stop_task, of the task `r` */
inline stop_task()
{
    atomic { stop_serial = SERIAL(r); patience = 2; stop = stop_serial };
    atomic { if :: !dead -> pending = 1 :: else fi }
}

/* keeper.c watch_life: of a start, of a task */
inline watch()
{
    if
    :: kill_sent
    :: !kill_sent && phase == STARTING && slow_starts < SLOW_STARTS ->
        if  /* watch_start */
        :: at = SOON    /* not yet */
        :: atomic {
            slow_starts++;
#ifndef M_READY_STORED
            if
            :: phase == STARTING -> phase = FAILED;
#endif
                kill_sent = 1
#ifndef M_READY_STORED
            :: else
            fi
#endif
           };
           if
           :: atomic { kill_sent -> assert(!claimed); killed = !dead }
           :: else
           fi
        fi
    :: !kill_sent && phase == READY ->
        r = task;       /* watch_task */
        d = deadline;
        if
        :: atomic { STATE(r) == RUNNING && SAME_TASK &&
                    (stop_serial == SERIAL(r) || d) -> at = SOON };
           if
           :: patience > 0 -> patience--    /* not yet */
           :: stop_serial == SERIAL(r) ->   /* its grace is over: kill_task */
               atomic {
                   if
#ifdef M_KILL_STORE
                   :: true ->
#else
                   :: task == r ->
#endif
                       task = RUN(KILLING, SERIAL(r));
                       assert(inside == SERIAL(r));
                       kill_sent = 1
#ifndef M_KILL_STORE
                   :: else
#endif
                   fi
               };
               if :: kill_sent -> killed = !dead :: else fi
           :: stop_serial != SERIAL(r) ->   /* its time is up */
               assert(d == SERIAL(r));
               stop_task()
           fi
        :: else
        fi;
        atomic { r = 0; d = 0 }
    :: !kill_sent && (phase == FAILED ||
                      phase == STARTING && slow_starts == SLOW_STARTS)
    fi
}

proctype keeper()
{
    byte done_with, seen, r, d, at, slow_starts;
    byte stop_serial;       /* life_t: the task asked to stop; 0: none */
    byte patience = 2;
    bool kill_sent, again, ok;
pass:
    if  /* crew.c bury */
    :: atomic { dead ->
        if
        :: claimed && !published && STATE(task) != IDLE ->
            outcomes[claimed - 1]++; next++     /* a verdict */
        :: else     /* it goes back unseen */
        fi;
        claimed = 0; inside = 0; deadline = 0; task = RUN(IDLE, SERIAL(task));
        stop_serial = 0; kill_sent = 0; patience = 2; phase = STARTING;
        dead = 0 }
    :: !dead
    fi;
    at = NEVER;
    seen = cancels;
    if  /* obey_cancels, stop_cancelled */
    :: seen != done_with ->
        r = task;
        if
        :: claimed == CANCEL + 1 && !published && cancel -> /* board_owned */
            /* The same task all the while? */
            atomic {
                ok = (STATE(r) == RUNNING && task == r);
#ifndef M_CANCEL_ONCE
                again = (!ok && STATE(r) != KILLING)
#endif
            };
            if
            :: ok && stop_serial != SERIAL(r) -> stop_task()
            :: else
            fi;
            ok = 0
        :: else
        fi;
        atomic {
            if :: again -> at = SOON :: else -> done_with = seen fi;
            again = 0; r = 0
        }
    :: else
    fi;
    /* sleep_until */
#ifdef M_LOOK_FIRST
    watch();
    wake_at = at;
#else
    wake_at = at;
    watch();
#endif
    if
    :: atomic { kick -> kick = 0 }
    :: dead
    :: at == SOON
    :: atomic { gone -> goto end }
    fi;
    atomic { wake_at = 0; at = 0; goto pass };
end:
    skip
}

proctype parent()
{
    if
    :: CANCEL < 2 -> /* pool_cancel, of a cell that is not queued any more */
        cancel = 1;
        cancels++;
        kick = 1
    :: else
    fi;
    gone;
    assert(outcomes[0] == 1 && outcomes[1] == 1)
}

init
{
    atomic { run parent(); run worker(); run keeper(); run handler() }
}
