/*
** region.c - reserves the shared region and lays it out. Parent only.
**
** The first try is generous (every outbox and the heap hold results and
** arguments of many gigabytes, as address space, not as memory). Where a limit
** (RLIMIT_AS, overcommit_memory=2, a sanitizer) refuses that, smaller ones
** follow; the last still runs a pool, only with less room.
*/
#include "region.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "os.h"

const char *const reason_names[REASONS_COUNT] = {
#define X(id, text) text,
    REASONS(X)
#undef X
};

#define KIB UINT64_C(1024)
#define MIB (KIB * 1024)
#define GIB (MIB * 1024)

/* A slot's window, and the place for small blocks; neither is made where the
** ring, or the heap, is not many times as large. */
#define WINDOW (64 * KIB)
#define SMALL  (256 * KIB)

typedef struct plan {
    uint64_t slots, segments, outbox, heap;
} plan_t;

static const plan_t plans[] = {
    { SLOTS_MAX, DIRECTORY_SIZE, 16 * GIB, 4096 * GIB },
    { SLOTS_MAX, DIRECTORY_SIZE, 1 * GIB, 512 * GIB },
    { 256, 4096, 1 * GIB, 64 * GIB },
    { 64, 1024, 64 * MIB, 8 * GIB },
    { 16, 256, 16 * MIB, 512 * MIB },
    { 8, 64, 2 * MIB, 32 * MIB },
};

static uint64_t round_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

/* Fills in the offsets that follow from a plan; the size of the whole. */
static uint64_t lay_out(const plan_t *plan, region_t *r)
{
    uint64_t page = os_page_size();
    uint64_t at = sizeof(region_t) + (plan->slots + 1) * sizeof(slot_t);
    r->slots_max = (uint32_t)plan->slots;
    r->segment_count = plan->segments;
    r->outbox_size = plan->outbox;
    r->window = plan->outbox >= 32 * WINDOW ? WINDOW : 0;
    r->heap_size = plan->heap;
    r->small_size = plan->heap >= 32 * SMALL ? SMALL : 0;
    r->directory = at = round_up(at, page);
    at += DIRECTORY_SIZE * sizeof(uint32_t);
    r->small = at = round_up(at, page);
    at += r->small_size;
    r->windows = at;
    at += (plan->slots + 1) * r->window;
    r->segments = at = round_up(at, page);
    at += plan->segments * SEGMENT_CELLS * sizeof(cell_t);
    r->complaints = at = round_up(at, page);
    at += plan->slots * LIVES_MAX * COMPLAINT_SIZE;
    r->outboxes = at = round_up(at, page);
    at += (plan->slots + 1) * plan->outbox;
    r->heap = at;
    at += plan->heap;
    r->size = round_up(at, page);
    return r->size;
}

/* A plan in which heap and outboxes share what PROCPOOL_REGION (bytes) allows;
** for tests of a full region. */
static int plan_of_environment(plan_t *plan, uint32_t processes)
{
    const char *text = getenv("PROCPOOL_REGION");
    uint64_t size = text ? strtoull(text, NULL, 10) : 0;
    if (!size)
        return 0;
    uint64_t outbox = 64 * KIB;
    while (outbox * 2 * (processes + 1) <= size / 2)
        outbox *= 2;
    *plan = (plan_t){ processes, 16, outbox, round_up(size / 2, MIB) };
    return 1;
}

static region_t *try_plan(const plan_t *plan)
{
    region_t head;
    memset(&head, 0, sizeof head);
    uint64_t size = lay_out(plan, &head);
    if (size > SIZE_MAX)
        return NULL;
    region_t *r = os_reserve((size_t)size);
    if (r)
        lay_out(plan, r);
    return r;
}

static void explain(char *error, size_t room, uint64_t size)
{
    int saved = errno;
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        snprintf(error, room,
                 "cannot reserve %llu MiB of shared memory: %s "
                 "(RLIMIT_AS is %llu MiB)",
                 (unsigned long long)(size / MIB), strerror(saved),
                 (unsigned long long)(limit.rlim_cur / MIB));
    else
        snprintf(error, room, "cannot reserve %llu MiB of shared memory: %s",
                 (unsigned long long)(size / MIB), strerror(saved));
    errno = saved;
}

region_t *region_new(const settings_t *set, char *error, size_t room)
{
    plan_t own;
    region_t *r = NULL;
    if (plan_of_environment(&own, set->processes))
        r = try_plan(&own);
    for (size_t i = 0; !r && i < sizeof plans / sizeof *plans; i++) {
        own = plans[i];
        if (own.slots < set->processes)
            own.slots = set->processes;
        r = try_plan(&own);
    }
    if (!r) {
        region_t none;
        memset(&none, 0, sizeof none);
        explain(error, room, lay_out(&own, &none));
        return NULL;
    }
    r->set = *set;
    atomic_init(&r->wanted, set->processes);
    r->bell_fd = r->kick_fd = r->crew_fd = -1;
    return r;
}

void region_seal(region_t *r)
{
    os_protect(r, REGION_SEALED);
}

void region_free(region_t *r)
{
    os_release(r, (size_t)r->size);
}
