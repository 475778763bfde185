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

static LimiterTake take;

static LimiterRate
rate_of(const Limit *l)
{
	return (LimiterRate) {l->limit, l->window};
}

/* Take a cost at a moment; returns the wait. */
static int64
take_cost(LimiterState *state, const Limit *l, int64 cost, int64 now)
{
	return limiter_take(state, rate_of(l), cost, now, &take);
}

/* The units that are left at a moment. */
static int64
left_at(const LimiterState *state, const Limit *l, int64 now)
{
	return limiter_remaining(rate_of(l), limiter_ahead(*state, rate_of(l), now));
}

static void
ok(bool good, const char *what, const Limit *l)
{
	printf("%sok %d - %d in %lld us, cost %d: %s\n", good ? "" : "not ",
		   ++tests, l->limit, (long long) l->window, l->cost, what);
}

/* Takes until it is refused, which tells how long to wait, or MANY have passed. */
static int64
take_all(LimiterState *arrival, const Limit *l, int64 now, int64 *wait)
{
	int64		passed = 0;

	while (passed < MANY &&
		   (*wait = take_cost(arrival, l, l->cost, now)) == 0)
		passed++;
	return passed;
}

/* A full window, then what the answer says about the next. */
static void
check_wait(const Limit *l)
{
	LimiterState arrival = {0};
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
		again = take_cost(&arrival, l, l->cost, now);
		exact &= again == wait;
		bounded &= wait >= 1 && wait <= l->window;
		if (wait > 1000)
			less &= take_cost(&arrival, l, l->cost, now + wait - 1000) > 0;
		now += wait;
		exact &= take_cost(&arrival, l, l->cost, now) == 0;
		wait = take_cost(&arrival, l, l->cost, now);
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
	LimiterState arrival = {0};
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
		if (take_cost(&arrival, l, cost, now) != 0)
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
	LimiterState arrival = {0};
	int64		now = START;
	int64		wait;

	if (take_all(&arrival, l, now, &wait) == MANY)
		return;
	now -= 3 * l->window + INT64CONST(120000000);
	wait = take_cost(&arrival, l, l->cost, now);
	ok(wait > 0 && wait <= l->window,
	   "the clock set back gives nothing, and a wait within the window", l);
	ok(take_cost(&arrival, l, l->cost, now + wait) == 0,
	   "after which it passes", l);
}

/* What is left after each take, and when all is there again. */
static void
check_remaining(const Limit *l)
{
	LimiterState arrival = {0};
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
		take_cost(&arrival, l, l->cost, now);
		taken += l->cost;
		left &= left_at(&arrival, l, now) == l->limit - taken;
		resets &= llabs(limiter_resets_at(now, limiter_ahead(arrival, rate_of(l), now)) - now -
						(int64) ((double) l->window / l->limit * taken)) <= 1 + taken / 1000;
	}
	wait = take_cost(&arrival, l, l->limit, now);
	left &= left_at(&arrival, l, now) == l->limit - taken;
	resets &= limiter_resets_at(now, limiter_ahead(arrival, rate_of(l), now)) == now + wait;
	ok(left, "each take leaves the units that it did not take, and a refusal all", l);
	ok(resets, "the full limit is there when the takes are paid", l);

	/* A full limit of 1 would pass. */
	if (l->limit == 1)
		return;
	now += unit - unit / 100 - 1;
	take_cost(&arrival, l, l->limit, now);
	left = left_at(&arrival, l, now) == l->limit - taken;
	now += unit / 100 + 2;
	take_cost(&arrival, l, l->limit, now);
	left &= left_at(&arrival, l, now) == l->limit - taken + 1;
	ok(left || taken < l->cost, "a unit comes back as a whole", l);
}

/*
 * At random moments, takes of which some are given back later.  Beside it runs a
 * limit that never sees these.  It may only be the emptier one.
 */
static void
check_give_back(const Limit *l)
{
#define HELD 8
	LimiterState state = {0};
	LimiterState without = {0};
	LimiterTake held[HELD] = {{0}};
	bool		is_held[HELD] = {false};
	int64		now = START;
	int			passed = 0;
	int			returned = 0;
	bool		never_more = true;

	for (int i = 0; i < TAKES; i++)
	{
		int			cost = 1 + random() % l->cost;
		int			slot = random() % (2 * HELD);

		now += random() % (2 * l->window / l->limit + 2);
		if (slot < HELD && is_held[slot])
		{
			limiter_give_back(&state, &held[slot], now);
			is_held[slot] = false;
			returned++;
		}
		else if (slot < HELD)
			is_held[slot] = take_cost(&state, l, cost, now) == 0, held[slot] = take;
		else if (take_cost(&state, l, cost, now) == 0)
		{
			passed++;
			never_more &= take_cost(&without, l, cost, now) == 0;
		}
		/* The rounding of each take is about a nanosecond. */
		never_more &= limiter_ahead(state, rate_of(l), now) >=
			limiter_ahead(without, rate_of(l), now) - i;
	}
	ok(never_more, "what is given back lets no more through than without the take", l);
	ok(passed > 0 && returned > 0, "takes passed, and were given back", l);

	/* At once all of it comes back, and later what has not come back by itself. */
	now += 2 * l->window + 1;
	take_cost(&state, l, l->limit, now);
	limiter_give_back(&state, &take, now);
	ok(left_at(&state, l, now) == l->limit, "a take that is given back at once is there again", l);
	now += l->window;
	take_cost(&state, l, l->limit, now);
	limiter_give_back(&state, &take, now + l->window);
	/* Of a finer unit the limiter's rounding shows. */
	if (l->window / l->limit < 2)
		return;
	ok(left_at(&state, l, now + l->window) == l->limit && take_cost(&state, l, l->limit, now + l->window) == 0 &&
	   take_cost(&state, l, l->cost, now + l->window) != 0,
	   "a take that has come back gives nothing back", l);
}

/* Another rate keeps the units that were taken. */
static void
check_change(void)
{
	Limit		ten = {10, INT64CONST(3600000000), 1};
	Limit		thousand = {1000, INT64CONST(3600000000), 1};
	LimiterState state = {0};
	LimiterTake before;

	take_cost(&state, &ten, 10, START);
	before = take;
	ok(left_at(&state, &ten, START) == 0 && left_at(&state, &thousand, START) == 990,
	   "ten of a thousand are taken", &thousand);
	ok(take_cost(&state, &thousand, 990, START) == 0 && take_cost(&state, &thousand, 1, START) > 0,
	   "the others are there at once", &thousand);
	limiter_give_back(&state, &before, START);
	ok(left_at(&state, &thousand, START) == 0, "a take of before the change is not given back", &thousand);
	ok(left_at(&state, &ten, START) == 0 && take_cost(&state, &ten, 10, START) == ten.window,
	   "less than was taken: none is left, and all are back after a window", &ten);
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
		check_give_back(&limits[i]);
	}
	check_change();
	printf("1..%d\n", tests);
	return 0;
}
