/*
** fault.h - fault points. A normal build has none: FAULT_POINT compiles to
** nothing. Built with -DPROCPOOL_FAULTS, the line PROCPOOL_FAULT of the
** environment says what happens to the process that gets there n-th:
**
**     PROCPOOL_FAULT=[role/]point:action[=arg][:n[..m]],...
**     PROCPOOL_FAULT=claim.post_cas:kill:3,keeper/reap:sleep_ms=50:1..9
**
** role     parent, keeper or worker; without one, whoever comes
** action   kill, stop (signals to itself), exit (as a task would: exit(arg)),
**          _exit, abort, sleep_ms, errno (pretend: EAGAIN or a number)
** n..m     which hits, counted from 1 over all processes of that role; by
**          default the first; m may be left out: all from n on
**
** PROCPOOL_FAULT_LOG names a file to which the program's first process adds,
** when it ends, one line "point role hits" for each point that was hit.
*/
#ifndef PROCPOOL_FAULT_H
#define PROCPOOL_FAULT_H

/* Every point there is. A point that is not here is an error when it is
** reached; tests/faults says which of these were never reached. */
#define FAULT_POINTS(X)                                                    \
    X("heap.alloc") X("new.fork") X("post.posted")                         \
    X("claim.pre_cas") X("claim.post_cas") X("claim.begun")                \
    X("putback.pre") X("putback.mid")                                      \
    X("outbox.grow") X("outbox.mid") X("publish.pre") X("publish.post")    \
    X("settle.pre_cas")                                                    \
    X("wake.picked") X("wake.parent")                                      \
    X("loop.top") X("spin.begun") X("idle.announced") X("wait.woken")      \
    X("recycle.mid") X("recycle.turned") X("recycle.pre_exit")             \
    X("child.post_fork") X("child.ready")                                  \
    X("keeper.start") X("keeper.fork") X("keeper.forked")                  \
    X("keeper.verdict") X("reap") X("kill.pre") X("timelimit.pre_cas")

#ifdef PROCPOOL_FAULTS
#include <stdint.h>
#pragma GCC visibility push(hidden)
int fault_point(const char *name);   /* 0, or a negative errno to pretend */
/* For C tests: other rules from now on, for all processes; hits from 0. */
void fault_set(const char *rules);
/* How often a point was hit, by a role ("worker") or by all (NULL). */
uint32_t fault_hits(const char *name, const char *role);
#pragma GCC visibility pop
#define FAULT_POINT(name) ((void)fault_point(name))
#define FAULT_ERRNO(name) fault_point(name)
#else
#define FAULT_POINT(name) ((void)0)
#define FAULT_ERRNO(name) 0
#endif

#endif
