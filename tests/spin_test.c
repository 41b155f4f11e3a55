/* spin_test.c - src/spin.h: what a wait teaches about the next. */
#include "spin.h"
#include "support/check.h"

/* A wait that took so long, as it goes for whoever spins first. */
static void wait_of(spin_t *s, uint64_t took)
{
    spin_learn(s, took <= s->ns ? 0 : s->ns, took);
}

static void test_rewarded(void)
{
    spin_t s = { .ns = SPIN_MIN };
    for (int i = 0; i < 10; i++)
        wait_of(&s, SPIN_MAX / 4);
    CHECK_EQ(s.ns, SPIN_MAX);
}

static void test_in_vain(void)
{
    spin_t s = { .ns = SPIN_MAX };
    for (int i = 0; i < 10; i++)
        wait_of(&s, SPIN_MAX * 10);
    CHECK_EQ(s.ns, SPIN_MIN);
}

/* Whoever answers can do so only when the spinner sleeps. */
static void test_in_the_way(void)
{
    spin_t s = { .ns = SPIN_MAX };
    uint64_t spun = 0, spins = 0;
    for (int i = 0; i < 1000; i++) {
        spun += s.ns;
        spins += s.ns > 0;
        spin_learn(&s, s.ns, s.ns + 5000);
    }
    CHECK(spun / 1000 < 2000);
    CHECK(spins > 10);          /* it tries again now and then */
}

static void strike(spin_t *s, int times)
{
    while (times-- > 0)
        spin_learn(s, SPIN_MAX, SPIN_MAX + 5000);
}

/* Once may be chance. */
static void test_one_strike(void)
{
    spin_t s = { .ns = SPIN_MAX };
    for (int i = 0; i < 10; i++) {
        strike(&s, SPIN_STRIKES - 1);
        CHECK_EQ(s.ns, SPIN_MAX);
        wait_of(&s, 1500);
    }
    CHECK_EQ(s.ns, SPIN_MAX);
}

/* The answer comes from another CPU: slow ones shorten the pause, quick ones are
** found once it is over. */
static void test_no_longer(void)
{
    spin_t s = { .ns = SPIN_MAX };
    int slow = 0;
    strike(&s, SPIN_STRIKES);
    for (; s.ns == 0; slow++)
        spin_learn(&s, 0, 40000);
    CHECK(slow > 1 && slow < 12);
    s.ns = SPIN_MAX;
    strike(&s, SPIN_STRIKES);
    CHECK_EQ(s.ns, 0);
    for (int i = 0; i < SPIN_PAUSE + 10; i++)
        wait_of(&s, 1500);
    CHECK_EQ(s.ns, SPIN_MAX);
}

/* What comes every 40 us is worth to spin for, though each wait is longer while
** somebody has to be woken. */
static void test_slow_wake(void)
{
    spin_t s = { .ns = SPIN_MIN };
    for (int i = 0; i < 10; i++)
        spin_learn(&s, s.ns < 40000 ? s.ns : 0, s.ns < 40000 ? 75000 : 40000);
    CHECK_EQ(s.ns, SPIN_MAX);
}

/* Little was spun: an answer soon after says nothing. */
static void test_short_spin(void)
{
    spin_t s = { .ns = SPIN_MIN };
    spin_learn(&s, SPIN_MIN, SPIN_MIN + 5000);
    CHECK_EQ(s.ns, 2 * SPIN_MIN);
}

int main(int argc, char **argv)
{
    static const check_t cases[] = {
        { "spin: longer where it is rewarded", test_rewarded, 0 },
        { "spin: shorter where it is not", test_in_vain, 0 },
        { "spin: not in the way of the answer", test_in_the_way, 0 },
        { "spin: not given up for one answer", test_one_strike, 0 },
        { "spin: long enough, however long waking takes", test_slow_wake, 0 },
        { "spin: again when it is no longer", test_no_longer, 0 },
        { "spin: a short one is no evidence", test_short_spin, 0 },
        { NULL, NULL, 0 }
    };
    return check_main(argc, argv, cases);
}
