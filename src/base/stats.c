/*
 * stats.c
 *		Counters of this server.
 *
 * Each backend counts in a row of its own, so the hot path touches no cache
 * line of another backend.  The view stats adds the rows up.  A backend
 * continues the row of the backend that had its number before.
 *
 * Locking: none.  Each row has one writer.  A reader may see a value that is a
 * moment old.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/shmem.h"

#include "base/stats.h"
#include "compat.h"

/* A backend's row, padded, so that two rows share no cache line. */
typedef union StatsRow
{
	pg_atomic_uint64 counters[STATS_ALL];
	char		pad[TYPEALIGN(PG_CACHE_LINE_SIZE, STATS_ALL * sizeof(uint64))];
} StatsRow;

static StatsRow *rows = NULL;

static int	rows_total(void);
static void add(int counter, uint64 many);

void
stats_shmem_request(void)
{
	RequestAddinShmemSpace(stats_size());
}

/* Return the bytes that the rows take. */
Size
stats_size(void)
{
	return mul_size(sizeof(StatsRow), rows_total());
}

/* Runs in the postmaster, under AddinShmemInitLock. */
void
stats_shmem_startup(void)
{
	bool		found;

	rows = ShmemInitStruct("rk_apikeys stats", stats_size(), &found);
	if (!found)
		stats_init();
}

/* Use the rows in a piece of memory of stats_size() bytes; NULL: none. */
void
stats_place(char *memory)
{
	rows = (StatsRow *) memory;
}

void
stats_init(void)
{
	for (int i = 0; i < rows_total(); i++)
		for (int j = 0; j < STATS_ALL; j++)
			pg_atomic_init_u64(&rows[i].counters[j], 0);
}

/* Count a verdict; without shared memory nothing is counted. */
void
stats_count_verdict(Verdict verdict)
{
	add(verdict, 1);
}

/* Add to a counter; without shared memory nothing is counted. */
void
stats_count_many(StatsCounter counter, uint64 many)
{
	add(VERDICTS + counter, many);
}

/* Set sums[STATS_ALL] to the counters' sums over all backends. */
void
stats_sum(int64 *sums)
{
	for (int j = 0; j < STATS_ALL; j++)
	{
		sums[j] = 0;
		for (int i = 0; rows != NULL && i < rows_total(); i++)
			sums[j] += (int64) pg_atomic_read_u64(&rows[i].counters[j]);
	}
}

static int
rows_total(void)
{
	/* PostgreSQL numbers backends from 1 before 17, from 0 since. */
	return COMPAT_BACKENDS + 1;
}

static void
add(int counter, uint64 many)
{
	pg_atomic_uint64 *mine;

	if (rows == NULL)
		return;
	mine = &rows[COMPAT_BACKEND_NUMBER].counters[counter];
	pg_atomic_write_u64(mine, pg_atomic_read_u64(mine) + many);
}
