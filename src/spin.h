/*
** spin.h - for how long to look before sleeping. Waking another CPU costs 35 us,
** one that spins answers in 0.3 us. But one that spins on the only CPU its
** answer could come from delays it, and so does the other side in its turn. It
** shows afterwards: again and again the answer comes soon after the spinner has
** gone to sleep. Each side learns for itself, from its own waits.
*/
#ifndef PROCPOOL_SPIN_H
#define PROCPOOL_SPIN_H

#include "os.h"

#define SPIN_MIN (2 * OS_US)
#define SPIN_MAX (60 * OS_US)
#define SPIN_WAKE (30 * OS_US)      /* about what waking another CPU takes */
#define SPIN_QUICK (15 * OS_US)     /* quicker answers come from this CPU */
#define SPIN_STRIKES 2              /* waits in a row, until it is believed */
#define SPIN_PAUSE 256              /* waits, before it tries again */

typedef struct spin {
    uint64_t ns;                /* to spin before sleeping; 0: it pauses */
    uint32_t strikes, pause;
} spin_t;

/* A wait is over that took `waited` ns in all, of which the first `spun` went by
** spinning in vain (0: it spun not at all, or that helped). The next will spin
** longer where that was or would have been rewarded, shorter where not, and for
** a while not at all where it was in the way. */
static inline void spin_learn(spin_t *s, uint64_t spun, uint64_t waited)
{
    if (s->pause) {
        s->pause = waited < SPIN_QUICK ? s->pause - 1 : s->pause / 2;
        s->ns = s->pause ? 0 : SPIN_MIN;
        return;
    }
    /* The other side may have spun as long. */
    int struck = spun >= SPIN_MAX && waited < spun + SPIN_MAX + SPIN_WAKE;
    s->strikes = struck ? s->strikes + 1 : 0;
    if (s->strikes == SPIN_STRIKES) {
        *s = (spin_t){ .pause = SPIN_PAUSE };
    } else if (!struck) {
        uint64_t ns = waited < SPIN_MAX + SPIN_WAKE ? s->ns * 2 : s->ns / 2;
        s->ns = ns < SPIN_MIN ? SPIN_MIN : ns > SPIN_MAX ? SPIN_MAX : ns;
    }
}

#endif
