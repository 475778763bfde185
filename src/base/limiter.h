/*
 * limiter.h
 *		The rate limiter.
 */
#ifndef LIMITER_H
#define LIMITER_H

#include "datatype/timestamp.h"
#include "port/atomics.h"

/* The longest rate_window, in microseconds: a year. */
#define LIMITER_MAX_WINDOW (INT64CONST(366) * USECS_PER_DAY)

extern int64 limiter_window(const Interval *window);
extern int64 limiter_take(pg_atomic_uint64 *arrival, int limit, int64 window,
						  int cost, TimestampTz now, int64 *ahead);
extern int	limiter_remaining(int limit, int64 window, int64 ahead);
extern TimestampTz limiter_resets_at(TimestampTz now, int64 ahead);

#endif
