/*
 * limiter.c
 *		The rate limiter.
 *
 * The limiter is the generic cell rate algorithm (ITU-T I.371).  It keeps one
 * moment: the moment at which everything that was taken so far would have
 * arrived at an even pace.
 *
 * The full limit may be taken at once.  The limit then comes back evenly over
 * the window.  So no window lets through more than the limit and one burst of
 * the same size:
 *
 *		taken in a window <= 2 * limit
 *
 * A take occupies a piece of time: from the moment before the take to the moment
 * after it.  What has passed of the piece has come back already.  So only the
 * rest of it is given back, and the pieces behind it move to an earlier time.  A
 * take does not know how much the pieces before it have given back.  So each
 * state sums up what was given back, and a take supposes that all of it stood
 * before it, except what is noted to stand behind it.  A state that was given back to is never emptier than it would be
 * without the take.
 *
 * Locking: none.  The caller guards the state.
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
 * back.
 */
#define SLACK_NSECS (INT64CONST(60) * USECS_PER_SEC * NSECS_PER_USEC)

static int64 piece(LimiterRate rate, double units);
static void adapt(LimiterState *state, LimiterRate rate, int64 now_ns);

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
 * Take a cost, which is at least 1 and at most rate.units.  Return 0 and set
 * *take if the cost was available.  Otherwise take nothing, and return the
 * microseconds until the cost will be available.
 */
int64
limiter_take(LimiterState *state, LimiterRate rate, int64 cost, TimestampTz now,
			 LimiterTake *take)
{
	int64		now_ns = now * NSECS_PER_USEC;
	int64		wait_ns;

	adapt(state, rate, now_ns);
	take->length = piece(rate, cost);
	take->end = Max(state->arrival, now_ns) + take->length;
	take->returned = state->returned;
	take->changes = state->changes;
	wait_ns = take->end - now_ns - rate.window * NSECS_PER_USEC;
	/*
	 * Each division rounds by about a nanosecond.  The sum of these errors must
	 * not refuse the last take of a window, and must not let one take too many
	 * through.
	 */
	if (wait_ns > Min(rate.units, take->length / 2))
		return (wait_ns + NSECS_PER_USEC - 1) / NSECS_PER_USEC;
	state->arrival = take->end;
	return 0;
}

/*
 * Give back what has not come back yet of a take.  Return the nanoseconds by which
 * that moved arrival.
 */
int64
limiter_give_back(LimiterState *state, const LimiterTake *take, TimestampTz now)
{
	int64		end = take->end - (int64) (state->returned - take->returned);
	int64		left = Min(end - now * NSECS_PER_USEC, take->length);

	if (left <= 0 || take->changes != state->changes)
		return 0;
	state->arrival -= left;
	state->returned += left;
	return left;
}

/* Note that of what was given back, so much stood behind a take. */
void
limiter_note_behind(LimiterTake *take, int64 returned)
{
	take->returned += returned;
}

/* Return the nanoseconds from now until the full limit will be available. */
int64
limiter_ahead(LimiterState state, LimiterRate rate, TimestampTz now)
{
	adapt(&state, rate, now * NSECS_PER_USEC);
	return Max(state.arrival - now * NSECS_PER_USEC, 0);
}

/*
 * Return whether the full limit is available.  The answer is a guess if the caller
 * does not guard the state.
 */
bool
limiter_is_full(const LimiterState *state, TimestampTz now)
{
	return *(const volatile int64 *) &state->arrival <= now * NSECS_PER_USEC;
}

/*
 * Return the whole units of a limit that are available, if the full limit will be
 * available in ahead nanoseconds.  Rounds as limiter_take() does.
 */
int64
limiter_remaining(LimiterRate rate, int64 ahead)
{
	double		window_ns = (double) rate.window * NSECS_PER_USEC;
	double		unit_ns = window_ns / rate.units;
	double		units = (window_ns - ahead + Min(rate.units, unit_ns / 2)) / unit_ns;

	return units < 0 ? 0 : units > rate.units ? rate.units : (int64) units;
}

/* Return the moment at which the full limit is available. */
TimestampTz
limiter_resets_at(TimestampTz now, int64 ahead)
{
	return now + (ahead + NSECS_PER_USEC - 1) / NSECS_PER_USEC;
}

/* Return the nanoseconds in which so many units of a limit come back. */
static int64
piece(LimiterRate rate, double units)
{
	return (int64) ((double) (rate.window * NSECS_PER_USEC) / rate.units * units);
}

/*
 * Let a state count by that rate.  The units that were taken by another rate stay
 * taken, but no more than the whole limit.
 *
 * A moment that is too far ahead counts as a limit that is used up now.  So
 * after the clock was set back nobody waits longer than
 *
 *		window + Max(window, 1 minute)
 */
static void
adapt(LimiterState *state, LimiterRate rate, int64 now_ns)
{
	int64		window_ns = state->rate.window * NSECS_PER_USEC;

	if (state->rate.units > 0 &&
		state->arrival - now_ns > window_ns + Max(window_ns, SLACK_NSECS))
	{
		state->arrival = now_ns + window_ns;
		state->changes++;
	}
	if (state->rate.units == rate.units && state->rate.window == rate.window)
		return;
	if (state->rate.units > 0)
	{
		if (state->arrival > now_ns)
		{
			double		used = (double) (state->arrival - now_ns) / window_ns * state->rate.units;

			state->arrival = now_ns + piece(rate, Min(used, (double) rate.units));
		}
		state->changes++;
	}
	state->rate = rate;
}
