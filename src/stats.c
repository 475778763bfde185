/*
 * stats.c
 *		Counters of this server.
 *
 * Each backend counts in a row of its own, so that the hot path touches no
 * cache line of another's; the view adds the rows up.  A row goes on where the
 * backend before left it.
 *
 * Locking: none.  A row has one writer; a reader may see a value that is a
 * moment old.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "stats.h"
#include "usage.h"

/* A backend's row; padded, so that two rows share no cache line. */
typedef union StatsRow
{
	pg_atomic_uint64 counters[STATS_COUNTERS];
	char		pad[TYPEALIGN(PG_CACHE_LINE_SIZE, STATS_COUNTERS * sizeof(uint64))];
} StatsRow;

static StatsRow *rows = NULL;

PG_FUNCTION_INFO_V1(rk_apikeys_stats);

static int
rows_total(void)
{
	/* Backends are numbered from 1 before 17, from 0 since. */
	return COMPAT_BACKENDS + 1;
}

void
stats_shmem_request(void)
{
	RequestAddinShmemSpace(stats_size());
}

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

/* The rows are in a piece of memory of stats_size() bytes (NULL: nowhere). */
void
stats_place(char *memory)
{
	rows = (StatsRow *) memory;
}

void
stats_init(void)
{
	for (int i = 0; i < rows_total(); i++)
		for (int j = 0; j < STATS_COUNTERS; j++)
			pg_atomic_init_u64(&rows[i].counters[j], 0);
}

/* Add to a counter; without shared memory nothing is counted. */
void
stats_count_many(StatsCounter counter, uint64 many)
{
	pg_atomic_uint64 *mine;

	if (rows == NULL)
		return;
	mine = &rows[COMPAT_BACKEND_NUMBER].counters[counter];
	pg_atomic_write_u64(mine, pg_atomic_read_u64(mine) + many);
}

/*
 * rk_apikeys._stats() → the columns of the view stats
 *
 * NULLs in all of them but preloaded without shared memory.
 */
Datum
rk_apikeys_stats(PG_FUNCTION_ARGS)
{
#define STATS_COLUMNS (STATS_COUNTERS + 6)
	TupleDesc	desc;
	Datum		values[STATS_COLUMNS] = {0};
	bool		nulls[STATS_COLUMNS];
	UsageTotals totals;
	int			column = 0;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != STATS_COLUMNS)
		elog(ERROR, "_stats returns another row than expected");
	memset(nulls, !usage_is_shared(), sizeof(nulls));
	nulls[0] = false;
	values[column++] = BoolGetDatum(usage_is_preloaded());
	if (usage_is_shared())
	{
		for (int j = 0; j < STATS_COUNTERS; j++)
		{
			int64		sum = 0;

			for (int i = 0; i < rows_total(); i++)
				sum += (int64) pg_atomic_read_u64(&rows[i].counters[j]);
			values[column++] = Int64GetDatum(sum);
		}
		usage_totals(&totals);
		values[column++] = Int64GetDatum(totals.tracked);
		values[column++] = Int64GetDatum(totals.max_tracked);
		values[column++] = Int64GetDatum(totals.pending);
		values[column++] = TimestampTzGetDatum(totals.last_flush_at);
		nulls[column - 1] = totals.last_flush_at == 0;
		values[column++] = Int64GetDatum(totals.pending == 0 ? 0 :
										 TimestampDifferenceMilliseconds(totals.pending_since,
																		 GetCurrentTimestamp()));
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
