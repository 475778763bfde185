/*
 * limit.h
 *		The limits that bind a key.
 */
#ifndef LIMIT_H
#define LIMIT_H

#include "base/store.h"
#include "base/verdict.h"
#include "usage/usage.h"

/* Names of limits that a call may give. */
#define LIMIT_MAX_NAMES 16

/* What a verify takes, and what it finds. */
typedef struct LimitCall
{
	int			cost;			/* at least 1 */
	bool		at_commit;		/* reserve; use when the transaction commits */
	int			names_count;	/* limits to take from that are not always bound */
	text	  **names;
	/* results: of the limit that refused, or that has the fewest units left */
	const char *name;			/* NULL: no limit binds the key */
	int64		units;
	int64		remaining;
	TimestampTz resets_at;		/* DT_NOEND: never */
	int64		wait;			/* microseconds until the call may succeed; -1: it
								 * never will */
} LimitCall;

/* A limit as the view limit_status has it. */
typedef struct LimitRow
{
	text	   *tenant;
	const uint8 *limit_id;		/* NULL: a key's own rate limit */
	const char *family;			/* NULL: all keys share it */
	int64		units;
	const Interval *rate_window;	/* NULL: a quota */
	text	   *period;
	TimestampTz reset_at;		/* DT_NOBEGIN: never */
} LimitRow;

extern void limit_look(const LimitRow *row, TimestampTz now, UsageLevel *level);
extern Verdict limit_take(const StoredKey *key, LimitCall *call, TimestampTz now);

#endif
