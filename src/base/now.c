/*
 * now.c
 *		Statements that see what is committed now, at every isolation level.
 *
 * The snapshot of a REPEATABLE READ transaction may be older than a row that a
 * change of keys must not miss.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/snapmgr.h"

#include "base/now.h"
#include "compat.h"

/*
 * Run a statement under the latest snapshot, and return the number of its rows.
 * No parameter is NULL.  The caller has connected to SPI.  If kept is not NULL,
 * the plan is kept there for the session.
 */
uint64
now_execute(SPIPlanPtr *kept, const char *query, int nargs, Oid *types,
			Datum *values)
{
	SPIPlanPtr	plan = kept == NULL ? NULL : *kept;
	Snapshot	snapshot;

	if (plan == NULL)
	{
		plan = SPI_prepare(query, nargs, types);
		if (kept != NULL)
		{
			SPI_keepplan(plan);
			*kept = plan;
		}
	}
	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SPI_execute_snapshot(plan, values, NULL, snapshot, InvalidSnapshot, false,
						 true, 0);
	UnregisterSnapshot(snapshot);
	return SPI_processed;
}
