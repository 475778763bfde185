/*
 * limiter.c
 *		The rate limiter.
 *
 * The limiter is the generic cell rate algorithm (ITU-T I.371).  It keeps one
 * moment for each key: the moment at which everything that the key took so far
 * would have arrived at an even pace.
 *
 * A key may take its full limit at once.  The limit then comes back evenly over
 * the window.  So no window lets through more than the limit and one burst of
 * the same size:
 *
 *		taken in a window <= 2 * limit
 *
 * Locking: none.  The moment is one atomic, changed by compare-and-exchange.
 */
#include "postgres.h"

#include "base/limiter.h"

/*
 * The limiter counts nanoseconds, because the time between two takes at a high
 * rate must not round to 0.
 */
#define NSECS_PER_USEC INT64CONST(1000)

/*
 * A moment is plausible up to Max(window, SLACK_NSECS) beyond the window.
 * There must be some slack, because processes read the clock shortly before
 * they call the limiter.  A moment further ahead means that the clock was set
 * back, or that the window was made shorter.
 */
#define SLACK_NSECS (INT64CONST(60) * USECS_PER_SEC * NSECS_PER_USEC)

/*
 * Return a window in microseconds, with months of 30 days; more than
 * LIMITER_MAX_WINDOW for every window that is longer than that.
 */
int64
limiter_window(const Interval *window)
{
	double		days = window->month * (double) DAYS_PER_MONTH + window->day;

	if (days * USECS_PER_DAY + window->time > LIMITER_MAX_WINDOW)
		return LIMITER_MAX_WINDOW + 1;
	return (int64) days * USECS_PER_DAY + window->time;
}

/*
 * Take a cost from a limit per window (microseconds).  The cost is at least 1
 * and at most the limit.  Return 0 if the cost was available.  Otherwise take
 * nothing, and return the microseconds until the cost will be available.  Set
 * *ahead to the nanoseconds from now until the full limit will be available.
 *
 * A moment that is too far ahead counts as a limit that is used up now.  So
 * after the clock was set back nobody waits longer than
 *
 *		window + Max(window, 1 minute)
 */
int64
limiter_take(pg_atomic_uint64 *arrival, int limit, int64 window, int cost,
			 TimestampTz now, int64 *ahead)
{
	int64		now_ns = now * NSECS_PER_USEC;
	int64		window_ns = window * NSECS_PER_USEC;
	int64		taken_ns = (int64) ((double) window_ns / limit * cost);
	uint64		old = pg_atomic_read_u64(arrival);

	for (;;)
	{
		bool		astray = (int64) old - now_ns > window_ns + Max(window_ns, SLACK_NSECS);
		int64		start = astray ? now_ns + window_ns : Max((int64) old, now_ns);
		int64		next = start + taken_ns;
		int64		wait_ns = next - now_ns - window_ns;

		/*
		 * Each division rounds by about a nanosecond.  The sum of these errors
		 * must not refuse the last take of a window, and must not let one take
		 * too many through.
		 */
		if (wait_ns > Min(limit, taken_ns / 2))
		{
			if (astray && !pg_atomic_compare_exchange_u64(arrival, &old, (uint64) start))
				continue;
			*ahead = start - now_ns;
			return (wait_ns + NSECS_PER_USEC - 1) / NSECS_PER_USEC;
		}
		if (pg_atomic_compare_exchange_u64(arrival, &old, (uint64) next))
		{
			*ahead = next - now_ns;
			return 0;
		}
	}
}

/*
 * Return the whole units of a limit that are available, of which the full limit
 * will be available in ahead nanoseconds.  Rounds as limiter_take() does.
 */
int
limiter_remaining(int limit, int64 window, int64 ahead)
{
	double		unit_ns = (double) (window * NSECS_PER_USEC) / limit;
	double		units = (window * NSECS_PER_USEC - ahead +
						 Min(limit, unit_ns / 2)) / unit_ns;

	return units < 0 ? 0 : units > limit ? limit : (int) units;
}

/* Return the moment at which the full limit is available. */
TimestampTz
limiter_resets_at(TimestampTz now, int64 ahead)
{
	return now + (ahead + NSECS_PER_USEC - 1) / NSECS_PER_USEC;
}
