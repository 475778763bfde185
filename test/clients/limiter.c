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

/* What a take says of the full limit. */
static int64 ahead;

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
		   (*wait = limiter_take(arrival, l->limit, l->window, l->cost, now, &ahead)) == 0)
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
		again = limiter_take(&arrival, l->limit, l->window, l->cost, now, &ahead);
		exact &= again == wait;
		bounded &= wait >= 1 && wait <= l->window;
		if (wait > 1000)
			less &= limiter_take(&arrival, l->limit, l->window, l->cost,
								 now + wait - 1000, &ahead) > 0;
		now += wait;
		exact &= limiter_take(&arrival, l->limit, l->window, l->cost, now, &ahead) == 0;
		wait = limiter_take(&arrival, l->limit, l->window, l->cost, now, &ahead);
		if (wait == 0)
			break;				/* a pace of more than one a microsecond */
	}
	ok(exact, "after the wait it passes", l);
	ok(less, "a millisecond earlier it does not", l);
	ok(bounded, "the wait is positive, and within the window", l);
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
		if (limiter_take(&arrival, l->limit, l->window, cost, now, &ahead) != 0)
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
	wait = limiter_take(&arrival, l->limit, l->window, l->cost, now, &ahead);
	ok(wait > 0 && wait <= l->window,
	   "the clock set back gives nothing, and a wait within the window", l);
	ok(limiter_take(&arrival, l->limit, l->window, l->cost, now + wait, &ahead) == 0,
	   "after which it passes", l);
}

/* What is left after each take, and when all is there again. */
static void
check_remaining(const Limit *l)
{
	pg_atomic_uint64 arrival = {0};
	int64		now = START;
	int64		unit = l->window / l->limit;
	int64		wait;
	int			taken = 0;
	bool		left = true;
	bool		resets = true;

	/* Of a finer unit the limiter's rounding shows. */
	if (unit < 2)
		return;
	while (taken + l->cost <= l->limit && taken < MANY)
	{
		limiter_take(&arrival, l->limit, l->window, l->cost, now, &ahead);
		taken += l->cost;
		left &= limiter_remaining(l->limit, l->window, ahead) == l->limit - taken;
		resets &= llabs(limiter_resets_at(now, ahead) - now -
						(int64) ((double) l->window / l->limit * taken)) <= 1 + taken / 1000;
	}
	wait = limiter_take(&arrival, l->limit, l->window, l->limit, now, &ahead);
	left &= limiter_remaining(l->limit, l->window, ahead) == l->limit - taken;
	resets &= limiter_resets_at(now, ahead) == now + wait;
	ok(left, "each take leaves the units that it did not take, and a refusal all", l);
	ok(resets, "the full limit is there when the takes are paid", l);

	/* A full limit of 1 would pass. */
	if (l->limit == 1)
		return;
	now += unit - unit / 100 - 1;
	limiter_take(&arrival, l->limit, l->window, l->limit, now, &ahead);
	left = limiter_remaining(l->limit, l->window, ahead) == l->limit - taken;
	now += unit / 100 + 2;
	limiter_take(&arrival, l->limit, l->window, l->limit, now, &ahead);
	left &= limiter_remaining(l->limit, l->window, ahead) == l->limit - taken + 1;
	ok(left || taken < l->cost, "a unit comes back as a whole", l);
}

int
main(void)
{
	for (size_t i = 0; i < lengthof(limits); i++)
	{
		check_wait(&limits[i]);
		check_windows(&limits[i]);
		check_clock(&limits[i]);
		check_remaining(&limits[i]);
	}
	printf("1..%d\n", tests);
	return 0;
}
