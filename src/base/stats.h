/*
 * stats.h
 *		Counters of this server.
 */
#ifndef STATS_H
#define STATS_H

#include "base/verdict.h"

/* What is counted beside the verdicts. */
typedef enum StatsCounter
{
	STATS_CACHE_HITS,
	STATS_CACHE_MISSES,
	STATS_OVERFLOW,				/* uses of keys that found no room */
	STATS_DROPPED,				/* entries thrown away before a flush */
	STATS_FLUSHES,
	STATS_FLUSHED_KEYS
} StatsCounter;

#define STATS_COUNTERS (STATS_FLUSHED_KEYS + 1)

/* All of them in the order of the view stats: the verdicts, then the rest. */
#define STATS_ALL (VERDICTS + STATS_COUNTERS)

extern void stats_shmem_request(void);
extern void stats_shmem_startup(void);
extern Size stats_size(void);
extern void stats_place(char *memory);
extern void stats_init(void);
extern void stats_count_verdict(Verdict verdict);
extern void stats_count_many(StatsCounter counter, uint64 many);
extern void stats_sum(int64 *sums);

#define stats_count(counter) stats_count_many(counter, 1)

#endif
