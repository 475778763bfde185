/*
 * flush.c
 *		A flush of this database's pending entries, by a worker or a session.
 *
 * Trust: where the extension was dropped, a database's owner may have left a
 * schema of our name behind, with tables and triggers of his own.  A worker
 * writes only to tables that are members of the extension, as their owner and
 * as a security-restricted operation.
 *
 * A worker keeps a database busy for at most WORKER_BUDGET_MS +
 * BATCH_TIMEOUT_MS, or four seconds if it sends, and for a short sweep, because
 * DROP DATABASE waits for five.  If that is not enough, another worker continues
 * after a pause.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "base/settings.h"
#include "base/stats.h"
#include "compat.h"
#include "usage/shared.h"

/* Milliseconds after which a worker begins no other batch, or gives one up. */
#define WORKER_BUDGET_MS 1000
#define BATCH_TIMEOUT_MS 1500

/* Milliseconds between two looks of a worker that stays. */
#define STAY_MS 10

/* The extension's tables in this database. */
typedef enum TablesState
{
	TABLES_OURS,				/* members of the extension, and locked */
	TABLES_NOT_OURS,			/* missing, or another owner's */
	TABLES_BUSY					/* another transaction has one locked, or the
								 * lock of flushes */
} TablesState;

/* Which server writes this database's usage. */
typedef enum Destination
{
	DESTINATION_HERE,
	DESTINATION_PRIMARY,
	DESTINATION_NONE			/* the extension was dropped */
} Destination;

/*
 * Work on copies in a transaction; returns how many were written, or
 * USAGE_BUSY_HERE.
 */
typedef int (*BatchWork) (const UsageCopy *copies, int count);

static UsageEnd flush_database(int batch, bool stays);
static UsageEnd write_pending(int batch, TimestampTz start);
static int	try_lock(const UsageCopy *copies, int count);
static bool wait_for_work(TimestampTz start);
static void log_busy(bool busy);
static Destination find_destination(void);
static TablesState flush_batch(BatchWork work, const UsageCopy *copies, int count);
static TablesState lock_tables(void);

/* Return how the last worker ended. */
UsageEnd
usage_end(void)
{
	return (UsageEnd) pg_atomic_read_u32(&usage_shared->end);
}

void
usage_set_end(UsageEnd end)
{
	pg_atomic_write_u32(&usage_shared->end, end);
}

/*
 * Write this database's pending entries in the caller's transaction, in batches
 * of USAGE_BATCH.  Return the number of keys written: 0 without shared memory,
 * while another flush is running, where the use goes to a primary, or in
 * pg_upgrade.
 */
int64
usage_flush_now(void)
{
	UsageCopy  *copies;
	int			count;
	int64		total = 0;

	if (IsBinaryUpgrade || !usage_is_shared() || usage_goes_to_primary())
		return 0;
	copies = usage_pending(MyDatabaseId, false, &count);
	for (int i = 0; i < count; i += USAGE_BATCH)
	{
		int			written;

		CHECK_FOR_INTERRUPTS();
		written = usage_flush_here(copies + i, Min(count - i, USAGE_BATCH));
		if (written == USAGE_BUSY_HERE)
			break;
		total += written;
	}
	return total;
}

/*
 * In a worker: write or send this database's pending entries, in batches of
 * that many keys, and set how the worker ended.  Then make room.  stays: when room
 * runs short again within a second, write again.
 */
void
usage_flush_database(int batch, bool stays)
{
	UsageEnd	end = usage_is_discarded() ? USAGE_DONE : flush_database(batch, stays);

	if (end == USAGE_BUSY || end == USAGE_DONE)
		log_busy(end == USAGE_BUSY);
	usage_set_end(end);
	usage_sweep();
}

/*
 * Log that this database's flush finds a lock busy, once until it succeeds, and
 * that it succeeds again.  A flush by hand or of another server's use holds the
 * lock for a moment, so one busy round is not logged.
 */
static void
log_busy(bool busy)
{
	TimestampTz since = (TimestampTz) pg_atomic_read_u64(&usage_shared->pending_since);
	TimestampTz patience = (TimestampTz) settings_usage_flush_interval * 2000;

	if (busy && GetCurrentTimestamp() - since < patience)
		return;
	if (!usage_set_busy(MyDatabaseId, busy))
		return;
	StartTransactionCommand();
	if (busy)
		ereport(LOG,
				(errmsg("could not flush the usage of API keys in database \"%s\": another transaction holds a lock",
						get_database_name(MyDatabaseId)),
				 errhint("Look in pg_locks for the transaction that holds a lock on rk_apikeys.key_usage, and end it.")));
	else
		ereport(LOG,
				(errmsg("the usage of API keys in database \"%s\" is flushed again",
						get_database_name(MyDatabaseId))));
	CommitTransactionCommand();
}

static UsageEnd
flush_database(int batch, bool stays)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "rk_apikeys flush",
												  ALLOCSET_DEFAULT_SIZES);
	TimestampTz start = GetCurrentTimestamp();
	Destination destination = find_destination();
	UsageEnd	end;
	UsageCopy  *copies;
	int			count;

	MemoryContextSwitchTo(context);
	if (destination == DESTINATION_NONE)
	{
		usage_forget_database(MyDatabaseId);
		return USAGE_DONE;
	}
	if (destination == DESTINATION_PRIMARY)
	{
		copies = usage_pending(MyDatabaseId, true, &count);
		pgstat_report_activity(STATE_RUNNING, "sending the usage of API keys");
		return usage_send(copies, count);
	}
	/* First the batch that this server sent, without an answer, as a standby. */
	if (usage_outbox_database() == MyDatabaseId)
	{
		TablesState tables = flush_batch(usage_deliver, usage_outbox_copies(),
										 usage_outbox_count());

		if (tables != TABLES_OURS)
			return tables == TABLES_BUSY ? USAGE_BUSY : USAGE_FAILED;
		usage_delivered();
	}
	do
		end = write_pending(batch, start);
	while (stays && (end == USAGE_DONE || end == USAGE_BUSY) && wait_for_work(start));
	return end;
}

/* Write this database's pending entries once, until the worker's time is over. */
static UsageEnd
write_pending(int batch, TimestampTz start)
{
	int			count = 0;
	UsageCopy  *copies = NULL;
	TablesState tables = flush_batch(try_lock, NULL, 0);

	/* A copy's stamp would keep a flush that is running from making it clean. */
	if (tables == TABLES_OURS)
		copies = usage_pending(MyDatabaseId, true, &count);
	for (int i = 0; tables == TABLES_OURS && i < count; i += batch)
	{
		CHECK_FOR_INTERRUPTS();
		if (TimestampDifferenceExceeds(start, GetCurrentTimestamp(),
									   WORKER_BUDGET_MS))
			return USAGE_LEFT;
		tables = flush_batch(usage_flush_here, copies + i, Min(count - i, batch));
	}
	if (copies != NULL)
		pfree(copies);
	if (tables == TABLES_NOT_OURS)
		usage_forget_database(MyDatabaseId);
	return tables == TABLES_BUSY ? USAGE_BUSY : USAGE_DONE;
}

/* BatchWork: find out whether another flush holds the lock. */
static int
try_lock(const UsageCopy *copies, int count)
{
	return usage_lock_flushes(false) ? 0 : USAGE_BUSY_HERE;
}

/* Wait until many entries are pending; false: the worker's time is over. */
static bool
wait_for_work(TimestampTz start)
{
	do
	{
		if (TimestampDifferenceExceeds(start, GetCurrentTimestamp(),
									   WORKER_BUDGET_MS))
			return false;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 STAY_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	} while (usage_hash_pending(0) < usage_hash_eighths(USAGE_EASY_EIGHTHS));
	return true;
}

static Destination
find_destination(void)
{
	Destination result = DESTINATION_HERE;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (!OidIsValid(get_extension_oid("rk_apikeys", true)))
		result = DESTINATION_NONE;
	else if (usage_goes_to_primary())
		result = DESTINATION_PRIMARY;
	PopActiveSnapshot();
	CommitTransactionCommand();
	return result;
}

/* Do the work on a batch in a transaction of its own, if the tables are ours. */
static TablesState
flush_batch(BatchWork work, const UsageCopy *copies, int count)
{
	MemoryContext context = CurrentMemoryContext;
	TablesState tables;
	int			total = 0;

	StartTransactionCommand();
	pgstat_report_activity(STATE_RUNNING, "flushing the usage of API keys");
	PushActiveSnapshot(GetTransactionSnapshot());
	enable_timeout_after(STATEMENT_TIMEOUT, BATCH_TIMEOUT_MS);
	tables = lock_tables();
	if (tables == TABLES_OURS)
	{
		Oid			userid;
		int			security;

		GetUserIdAndSecContext(&userid, &security);
		SetUserIdAndSecContext(userid, security | SECURITY_RESTRICTED_OPERATION);
		total = work(copies, count);
		SetUserIdAndSecContext(userid, security);
		if (total == USAGE_BUSY_HERE)
			tables = TABLES_BUSY;
	}
	disable_timeout(STATEMENT_TIMEOUT, false);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	if (tables == TABLES_OURS && count > 0)
	{
		stats_count(STATS_FLUSHES);
		stats_count_many(STATS_FLUSHED_KEYS, total);
	}
	pgstat_report_activity(STATE_IDLE, NULL);
	return tables;
}

/*
 * Lock the tables until the transaction ends, so that they stay members of the
 * extension.  A worker does not wait for a lock, because DROP EXTENSION takes
 * the same locks in another order.
 */
static TablesState
lock_tables(void)
{
	static const char *const names[] = {
		"api_keys", "key_usage", "key_usage_daily", "key_events", "limits", "limit_usage",
		"unrecorded_uses"
	};
	bool		has_limits = OidIsValid(store_table("limit_usage", true));
	Oid			extension = get_extension_oid("rk_apikeys", true);

	if (!OidIsValid(extension))
		return TABLES_NOT_OURS;
	/* SQL of an earlier release has not the last three. */
	for (int i = 0; i < (int) lengthof(names) - (has_limits ? 0 : 3); i++)
	{
		Oid			table = store_table(names[i], true);

		if (!OidIsValid(table))
			return TABLES_NOT_OURS;
		if (!ConditionalLockRelationOid(table, RowExclusiveLock) ||
			store_table(names[i], true) != table)
			return TABLES_BUSY;
		if (getExtensionOfObject(RelationRelationId, table) != extension)
			return TABLES_NOT_OURS;
	}
	return TABLES_OURS;
}
