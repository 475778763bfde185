/*
 * limiter.c
 *		The rate limiter.
 *
 * The generic cell rate algorithm (ITU-T I.371): of a key only the moment is
 * kept at which all that it took so far would have arrived at an even pace.  A
 * full window may be taken at once, and comes back evenly; so in no window more
 * than the limit and one burst of the same size gets through.
 *
 * Locking: none.  The moment is one atomic, moved by compare-and-exchange.
 */
#include "postgres.h"

#include "base/limiter.h"

/* Nanoseconds: a pace of many per millisecond must not round to nothing. */
#define NSECS_PER_USEC INT64CONST(1000)

/*
 * What a limit may be taken for beyond its window before the clock must have
 * been set back, or the window made shorter: processes read the clock a moment
 * before they are here.
 */
#define SLACK_NSECS (INT64CONST(60) * USECS_PER_SEC * NSECS_PER_USEC)

/* A window in microseconds, with months of 30 days. */
int64
limiter_window(const Interval *window)
{
	double		days = window->month * (double) DAYS_PER_MONTH + window->day;

	if (days * USECS_PER_DAY + window->time > LIMITER_MAX_WINDOW)
		return LIMITER_MAX_WINDOW + 1;
	return (int64) days * USECS_PER_DAY + window->time;
}

/*
 * Take "cost" of a limit of "limit" per window (microseconds).  Returns 0 if it
 * was there, else takes nothing and returns the microseconds until it will be.
 * cost is at least 1 and at most the limit.  A moment that is too far ahead counts
 * as a limit that is used up now: after the clock was set back nobody waits for
 * longer than two windows, or one and a minute.
 */
int64
limiter_take(pg_atomic_uint64 *arrival, int limit, int64 window, int cost,
			 TimestampTz now)
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
		 * The rounding of each division, of a nanosecond or so, may not refuse
		 * the last of a window; nor may it let one more through.
		 */
		if (wait_ns > Min(limit, taken_ns / 2))
		{
			if (astray && !pg_atomic_compare_exchange_u64(arrival, &old, (uint64) start))
				continue;
			return (wait_ns + NSECS_PER_USEC - 1) / NSECS_PER_USEC;
		}
		if (pg_atomic_compare_exchange_u64(arrival, &old, (uint64) next))
			return 0;
	}
}
