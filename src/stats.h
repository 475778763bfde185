/*
 * stats.h
 *		Counters of this server.
 */
#ifndef STATS_H
#define STATS_H

typedef enum StatsCounter
{
	/* verdicts, in the order in which they are checked */
	STATS_MALFORMED,
	STATS_UNKNOWN,
	STATS_REVOKED,
	STATS_DISABLED,
	STATS_EXPIRED,
	STATS_ROTATED,
	STATS_ADDRESS_DENIED,
	STATS_SCOPE_MISSING,
	STATS_RATE_LIMITED,
	STATS_LIMITER_UNAVAILABLE,
	STATS_VALID,
	/* the rest */
	STATS_CACHE_HITS,
	STATS_CACHE_MISSES,
	STATS_OVERFLOW,				/* uses of keys that found no room */
	STATS_DROPPED,				/* entries thrown away before a flush */
	STATS_FLUSHES,
	STATS_FLUSHED_KEYS,
	STATS_COUNTERS
} StatsCounter;

extern void stats_shmem_request(void);
extern void stats_shmem_startup(void);
extern Size stats_size(void);
extern void stats_place(char *memory);
extern void stats_init(void);
extern void stats_count_many(StatsCounter counter, uint64 many);

#define stats_count(counter) stats_count_many(counter, 1)

#endif
