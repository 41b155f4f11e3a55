/*
** fault.c - see fault.h. Nothing of it is in a normal build.
**
** Rules and hits lie in one anonymous shared page, made before main, so that
** every process forked later counts in the same place. Run by all, anywhere
** but in signal handlers; allocates nothing; a rule's text is parsed once.
*/
typedef int fault_not_empty; /* a translation unit must not be */

#ifdef PROCPOOL_FAULTS
#include "fault.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum role { ROLE_PARENT, ROLE_KEEPER, ROLE_WORKER, ROLES, ROLE_ANY = ROLES };
static const char *const role_names[ROLES] = { "parent", "keeper", "worker" };

enum action { KILL, STOP, EXIT, EXIT_NOW, ABORT, SLEEP, ERRNO, ACTIONS };
static const char *const action_names[ACTIONS] = {
    "kill", "stop", "exit", "_exit", "abort", "sleep_ms", "errno"
};

#define X(name) name,
static const char *const points[] = { FAULT_POINTS(X) };
#undef X
enum { POINTS = sizeof points / sizeof *points, RULES = 16 };

/* Written by fault_set before `count` is; then read by all. */
typedef struct rule {
    uint32_t point, role, action, argument, from, to;
} rule_t;

typedef struct page {
    _Atomic uint32_t hits[POINTS][ROLES + 1];   /* the last: by anyone */
    _Atomic uint32_t count;
    rule_t rules[RULES];
    pid_t first;                /* process, which tells the hits at its end */
} page_t;

static page_t *page;
static enum role role = ROLE_PARENT;

static _Noreturn void refuse(const char *what, const char *text)
{
    dprintf(2, "procpool: PROCPOOL_FAULT: %s: %s\n", what, text);
    _exit(70);
}

static uint32_t find(const char *const *list, uint32_t count,
                     const char *text, size_t n)
{
    for (uint32_t i = 0; i < count; i++)
        if (strlen(list[i]) == n && memcmp(list[i], text, n) == 0)
            return i;
    return count;
}

/* An errno by name or number. */
static uint32_t errno_of(const char *text)
{
    if (strncmp(text, "EAGAIN", 6) == 0)
        return EAGAIN;
    if (strncmp(text, "ENOMEM", 6) == 0)
        return ENOMEM;
    if (strncmp(text, "EMFILE", 6) == 0)
        return EMFILE;
    return (uint32_t)strtoul(text, NULL, 10);
}

/* One rule, "[role/]point:action[=arg][:n[..[m]]]"; what lies behind it. */
static const char *parse_rule(const char *text, rule_t *rule)
{
    size_t n = strcspn(text, ":/,");
    rule->role = ROLE_ANY;
    if (text[n] == '/') {
        rule->role = find(role_names, ROLES, text, n);
        if (rule->role == ROLES)
            refuse("no such role", text);
        text += n + 1;
        n = strcspn(text, ":,");
    }
    rule->point = find(points, POINTS, text, n);
    if (rule->point == POINTS || text[n] != ':')
        refuse("no such point, or no action", text);
    text += n + 1;
    n = strcspn(text, "=:,");
    rule->action = find(action_names, ACTIONS, text, n);
    if (rule->action == ACTIONS)
        refuse("no such action", text);
    text += n;
    if (*text == '=') {
        rule->argument = rule->action == ERRNO
                             ? errno_of(text + 1)
                             : (uint32_t)strtoul(text + 1, NULL, 10);
        text += strcspn(text, ":,");
    }
    rule->from = rule->to = 1;
    if (*text == ':') {
        char *end;
        rule->from = rule->to = (uint32_t)strtoul(text + 1, &end, 10);
        if (end[0] == '.' && end[1] == '.') {
            char *last = end + 2;
            rule->to = (uint32_t)strtoul(last, &end, 10);
            if (end == last)
                rule->to = UINT32_MAX;
        }
        text = end;
    }
    if (*text != ',' && *text)
        refuse("not understood", text);
    return *text ? text + 1 : text;
}

void fault_set(const char *rules)
{
    uint32_t count = 0;
    atomic_store(&page->count, 0);
    memset(page->rules, 0, sizeof page->rules);
    for (uint32_t i = 0; i < POINTS; i++)
        for (uint32_t j = 0; j <= ROLES; j++)
            atomic_store(&page->hits[i][j], 0);
    while (rules && *rules) {
        if (count == RULES)
            refuse("too many rules", rules);
        rules = parse_rule(rules, &page->rules[count++]);
    }
    atomic_store(&page->count, count);
}

uint32_t fault_hits(const char *name, const char *of)
{
    uint32_t point = find(points, POINTS, name, strlen(name));
    if (point == POINTS)
        refuse("no such point", name);
    uint32_t who = of ? find(role_names, ROLES, of, strlen(of)) : ROLE_ANY;
    return atomic_load(&page->hits[point][who]);
}

static void nap(uint32_t ms)
{
    struct timespec left = { ms / 1000, (long)(ms % 1000) * 1000000 };
    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
}

static int act(const rule_t *rule)
{
    int argument = (int)rule->argument;
    switch ((enum action)rule->action) {
    case KILL:
        raise(SIGKILL);
        break;
    case STOP:
        raise(SIGSTOP);
        break;
    case EXIT:
        exit(argument);
    case EXIT_NOW:
        _exit(argument);
    case ABORT:
        abort();
    case SLEEP:
        nap(rule->argument);
        break;
    case ERRNO:
        return -argument;
    case ACTIONS:
        break;
    }
    return 0;
}

int fault_point(const char *name)
{
    uint32_t point = find(points, POINTS, name, strlen(name));
    if (point == POINTS)
        refuse("a point that is not in the list", name);
    if (strcmp(name, "keeper.start") == 0)
        role = ROLE_KEEPER;
    else if (strcmp(name, "child.post_fork") == 0)
        role = ROLE_WORKER;
    uint32_t mine = atomic_fetch_add(&page->hits[point][role], 1) + 1;
    uint32_t all = atomic_fetch_add(&page->hits[point][ROLE_ANY], 1) + 1;
    uint32_t count = atomic_load(&page->count);
    int rc = 0;
    for (uint32_t i = 0; i < count; i++) {
        const rule_t *rule = &page->rules[i];
        uint32_t n = rule->role == ROLE_ANY ? all : mine;
        if (rule->point == point &&
            (rule->role == ROLE_ANY || rule->role == role) &&
            n >= rule->from && n <= rule->to && act(rule) < 0)
            rc = -(int)rule->argument;
    }
    return rc;
}

/* Before main, or when the module is loaded; in a child of a process that has
** a page already, there is nothing to do. */
__attribute__((constructor)) static void fault_init(void)
{
    page = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        refuse("no memory", "");
    page->first = getpid();
    fault_set(getenv("PROCPOOL_FAULT"));
}

__attribute__((destructor)) static void fault_tell(void)
{
    const char *path = getenv("PROCPOOL_FAULT_LOG");
    if (!path || page->first != getpid())
        return;
    FILE *log = fopen(path, "a");
    for (uint32_t i = 0; i < POINTS && log; i++)
        for (uint32_t j = 0; j < ROLES; j++)
            if (atomic_load(&page->hits[i][j]))
                fprintf(log, "%s %s %u\n", points[i], role_names[j],
                        atomic_load(&page->hits[i][j]));
    if (log)
        fclose(log);
}
#endif
