/*
 * limiter.c
 *		The rate limiter by itself, under a clock that is given to it.
 *
 * limiter
 *
 * Prints TAP.  It includes the source that it tests, and is compiled with the
 * server's headers.
 */
#include "../../src/base/limiter.c"

#include <stdio.h>
#include <stdlib.h>

/* The server's headers put its own in the place of it. */
#undef printf

/* A moment, in microseconds, as good as any. */
#define START INT64CONST(800000000123456)

/* Takes after which a limit is as good as none. */
#define MANY 2000000

typedef struct Limit
{
	int			limit;
	int64		window;			/* microseconds */
	int			cost;
} Limit;

/* Among them paces that are no whole number of microseconds, or of a nanosecond. */
static const Limit limits[] = {
	{1, 1000000, 1}, {3, 1000000, 1}, {7, 1000000, 2}, {10, 1000000, 10},
	{100, 60000000, 1}, {1000, 1000, 1}, {999, 1001, 7}, {1000000, 1000000, 1},
	{5, LIMITER_MAX_WINDOW, 3}, {2147483647, 1000000, 1}, {6000, 3600000000, 1}
};

static int	tests = 0;

static void
ok(bool good, const char *what, const Limit *l)
{
	printf("%sok %d - %d in %lld us, cost %d: %s\n", good ? "" : "not ",
		   ++tests, l->limit, (long long) l->window, l->cost, what);
}

/* Takes until it is refused, which tells how long to wait, or MANY have passed. */
static int64
take_all(pg_atomic_uint64 *arrival, const Limit *l, int64 now, int64 *wait)
{
	int64		passed = 0;

	while (passed < MANY &&
		   (*wait = limiter_take(arrival, l->limit, l->window, l->cost, now)) == 0)
		passed++;
	return passed;
}

/* A full window, then what the answer says about the next. */
static void
check_wait(const Limit *l)
{
	pg_atomic_uint64 arrival = {0};
	int64		now = START;
	int64		wait;
	int64		passed = take_all(&arrival, l, now, &wait);
	int64		again;
	bool		less = true;
	bool		exact = true;
	bool		bounded = true;

	if (passed < MANY)
		ok(passed == l->limit / l->cost, "a full window at once, and no more", l);
	else
	{
		ok(true, "many at once", l);
		return;
	}
	for (int i = 0; i < 1000; i++)
	{
		/* A refusal takes nothing. */
		again = limiter_take(&arrival, l->limit, l->window, l->cost, now);
		exact &= again == wait;
		bounded &= wait >= 1 && wait <= l->window;
		if (wait > 1000)
			less &= limiter_take(&arrival, l->limit, l->window, l->cost,
								 now + wait - 1000) > 0;
		now += wait;
		exact &= limiter_take(&arrival, l->limit, l->window, l->cost, now) == 0;
		wait = limiter_take(&arrival, l->limit, l->window, l->cost, now);
		if (wait == 0)
			break;				/* a pace of more than one a microsecond */
	}
	ok(exact, "after retry_after it passes", l);
	ok(less, "a millisecond earlier it does not", l);
	ok(bounded, "retry_after is positive, and within the window", l);
}

/* At random moments: what got through in any window that ends with a take. */
static void
check_windows(const Limit *l)
{
#define TAKES 20000
	static int64 at[TAKES];
	static int64 sum[TAKES + 1];
	pg_atomic_uint64 arrival = {0};
	int64		now = START;
	int			count = 0;
	int			from = 0;
	bool		good = true;

	for (int i = 0; i < TAKES; i++)
	{
		int			cost = 1 + random() % l->cost;

		now += random() % (2 * l->window / l->limit + 2);
		if (random() % 500 == 0)
			now += l->window;
		if (limiter_take(&arrival, l->limit, l->window, cost, now) != 0)
			continue;
		at[count] = now;
		sum[count + 1] = sum[count] + cost;
		count++;
		while (at[from] <= now - l->window)
			from++;
		/* the limit, and a burst of the same size */
		good &= sum[count] - sum[from] <= 2 * (int64) l->limit;
	}
	ok(good && count > 0, "no window has more than the limit and a burst", l);
}

/* The clock is set back: what was taken counts as taken now. */
static void
check_clock(const Limit *l)
{
	pg_atomic_uint64 arrival = {0};
	int64		now = START;
	int64		wait;

	if (take_all(&arrival, l, now, &wait) == MANY)
		return;
	now -= 3 * l->window + INT64CONST(120000000);
	wait = limiter_take(&arrival, l->limit, l->window, l->cost, now);
	ok(wait > 0 && wait <= l->window,
	   "the clock set back gives nothing, and a wait within the window", l);
	ok(limiter_take(&arrival, l->limit, l->window, l->cost, now + wait) == 0,
	   "after which it passes", l);
}

int
main(void)
{
	for (size_t i = 0; i < lengthof(limits); i++)
	{
		check_wait(&limits[i]);
		check_windows(&limits[i]);
		check_clock(&limits[i]);
	}
	printf("1..%d\n", tests);
	return 0;
}
