/*
** worker_process.c - the process around a worker's life: signals, exit, title,
** and worker_main, which a fresh child of the keeper runs. Nothing of it is
** needed by a test that lives a life in a thread.
**
** The handlers run in any process that descends from the worker, so each asks
** first whether it is the worker itself.
*/
#define _GNU_SOURCE
#include "worker.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fault.h"
#include "os.h"
#include "wake.h"

worker_t *worker_current;

static void on_term(int sig)
{
    (void)sig;
    worker_t *w = worker_current;
    if (!w || w->w_pid != getpid())
        return;
    w->w_term = 1;
    atomic_store(&w->w_slot->bell, 0);  /* ends a sleep about to begin */
}

static void on_stop(int sig)
{
    (void)sig;
    worker_t *w = worker_current;
    if (w && w->w_pid == getpid() && worker_stop_reason(w) != REASON_NONE)
        w->w_work->interrupt(w->w_work->context);
}

static void on_nothing(int sig)
{
    (void)sig;
}

static void handle(int sig, void (*handler)(int), int flags)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    action.sa_flags = flags;
    sigemptyset(&action.sa_mask);
    sigaction(sig, &action, NULL);
}

/* A task called exit(): that is its outcome, and the end of this life. The
** handler was registered after the parent's fork, so it runs before any
** inherited one, which then never runs. */
static void on_exit_called(int code, void *unused)
{
    (void)unused;
    worker_t *w = worker_current;
    if (!w || w->w_pid != getpid()) {
        fflush(NULL);
        _exit(code);  /* a child that a task forked */
    }
    worker_exited(w, code);
    fflush(NULL);
    _exit(code);
}

/* In the child of a fork that a task made: it is no worker. */
static void disown(void)
{
    if (worker_current) {
        worker_current->w_disowned = 1;
        /* Whoever waits for the crew must not wait for this process. */
        int crew = worker_current->w_region->crew_fd;
        os_close(&crew);
    }
    worker_current = NULL;
}

/* "procpool NAME worker N"; by hand, since snprintf costs seven page faults in
** a fresh process, a sixth of all. */
static void set_title(const worker_t *w)
{
    char role[24] = "worker ", *digit = role + sizeof role - 1;
    for (uint32_t n = w->w_index + 1; n; n /= 10)
        *--digit = (char)('0' + n % 10);
    memmove(role + 7, digit, strlen(digit) + 1);
    os_title(w->w_region->set.name, role);
}

void worker_prepare(void)
{
    /* Handlers rather than SIG_IGN: what a task executes gets the defaults. */
    handle(SIGINT, on_nothing, SA_RESTART);
    handle(SIGPIPE, on_nothing, SA_RESTART);
    handle(SIGTERM, on_term, SA_RESTART);
    handle(STOP_SIGNAL, on_stop, 0);
    pthread_atfork(NULL, NULL, disown);
    on_exit(on_exit_called, NULL);
}

_Noreturn void worker_main(region_t *r, uint32_t slot, uint32_t generation,
                           const work_t *work, pid_t keeper)
{
    static worker_t self;
    FAULT_POINT("child.post_fork");
    os_own_group();
    os_die_with(keeper);
    worker_open(&self, r, slot, generation, work);
    worker_current = &self;
    set_title(&self);
    os_unblock_signals();
    if (worker_start(&self) < 0) {
        fflush(NULL);
        _exit(1);
    }
    os_die_with(keeper);  /* an initializer that changed uid cleared it */
    worker_serve(&self);
    FAULT_POINT("recycle.pre_exit");
    if (work->stop && r->set.has_finalizer) {
        kick_keeper(r);  /* it bounds the finalizer by `grace` */
        work->stop(work->context, &self);
    }
    fflush(NULL);
    _exit(0);
}
