/*
 * limiter.h
 *		The rate limiter.
 */
#ifndef LIMITER_H
#define LIMITER_H

#include "datatype/timestamp.h"

/* The longest rate_window, in microseconds: a year. */
#define LIMITER_MAX_WINDOW (INT64CONST(366) * USECS_PER_DAY)

/* A limit: so many units in a window. */
typedef struct LimiterRate
{
	int64		units;
	int64		window;			/* microseconds */
} LimiterRate;

/* What was taken from a limit.  Zeros: nothing. */
typedef struct LimiterState
{
	int64		arrival;		/* nanoseconds: when all of it would have arrived */
	uint64		returned;		/* sum of the nanoseconds that were given back */
	LimiterRate rate;			/* by which arrival was computed */
	uint32		changes;		/* after which no take of before is given back */
} LimiterState;

/* One take, so that it can be given back. */
typedef struct LimiterTake
{
	int64		end;			/* arrival after it */
	int64		length;			/* nanoseconds by which it moved arrival */
	uint64		returned;		/* as the state had them then */
	uint32		changes;
} LimiterTake;

extern int64 limiter_window(const Interval *window);
extern int64 limiter_take(LimiterState *state, LimiterRate rate, int64 cost,
						  TimestampTz now, LimiterTake *take);
extern int64 limiter_give_back(LimiterState *state, const LimiterTake *take,
							   TimestampTz now);
extern void limiter_note_behind(LimiterTake *take, int64 returned);
extern int64 limiter_ahead(LimiterState state, LimiterRate rate, TimestampTz now);
extern bool limiter_is_full(const LimiterState *state, TimestampTz now);
extern int64 limiter_remaining(LimiterRate rate, int64 ahead);
extern TimestampTz limiter_resets_at(TimestampTz now, int64 ahead);

#endif
