/*
 * worker.c
 *		The processes that flush usage to the tables.
 *
 * A launcher, which reads shared catalogs only, starts one short worker per
 * database that has something pending, one after the other, every
 * rk_apikeys.usage_flush_interval.  The worker writes it to the tables or, on a
 * standby or subscriber that knows where, sends it.  On a standby that does not,
 * the launcher starts none, and only makes room.
 *
 * Trust: a database's owner may have left a schema of our name behind, with
 * tables and triggers of his own, where the extension was dropped.  A worker
 * writes only to tables that are members of the extension, as their owner and
 * as a security-restricted operation, under settings that it forces.
 *
 * A worker keeps a database busy for under two seconds, or four if it sends,
 * since DROP DATABASE waits for five; where that is not enough another goes on
 * after a pause.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "primary.h"
#include "rk_apikeys.h"
#include "stats.h"
#include "store.h"
#include "usage.h"
#include "worker.h"

/* Milliseconds after which a worker begins no other batch, or gives one up. */
#define WORKER_BUDGET_MS 1000
#define BATCH_TIMEOUT_MS 1500
/* Between two workers in a database; DROP DATABASE looks ten times a second. */
#define WORKER_PAUSE_MS 250

/* The extension's tables in this database. */
typedef enum TablesState
{
	TABLES_OURS,				/* members of the extension, and locked */
	TABLES_NOT_OURS,			/* not there, or somebody else's */
	TABLES_BUSY					/* somebody else has one locked */
} TablesState;

/* Who writes this database's usage. */
typedef enum Destination
{
	DESTINATION_HERE,
	DESTINATION_PRIMARY,
	DESTINATION_NONE			/* the extension is gone */
} Destination;

/* What is done with copies in a transaction; returns how many were written. */
typedef int (*BatchWork) (const UsageCopy *copies, int count);

static void describe_launcher(BackgroundWorker *worker);
static void flush_all(void);
static UsageEnd flush_database(Oid database);
static void pause_for(int milliseconds);
static bool database_is_open(Oid database);
static void drop_entries(Oid database);
static UsageEnd flush_one(Oid database);
static Destination find_destination(void);
static TablesState flush_batch(BatchWork work, const UsageCopy *copies, int count);
static TablesState lock_tables(void);

/* Register the launcher; while the library is preloaded. */
void
worker_init(void)
{
	BackgroundWorker worker;

	describe_launcher(&worker);
	RegisterBackgroundWorker(&worker);
}

/* Without preload, from a session.  Returns false if no worker can be had. */
bool
worker_start_launcher(void)
{
	BackgroundWorker worker;

	describe_launcher(&worker);
	return RegisterDynamicBackgroundWorker(&worker, NULL);
}

static void
describe_launcher(BackgroundWorker *worker)
{
	memset(worker, 0, sizeof(*worker));
	worker->bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker->bgw_start_time = BgWorkerStart_ConsistentState;
	worker->bgw_restart_time = 5;
	strlcpy(worker->bgw_library_name, "rk_apikeys", BGW_MAXLEN);
	strlcpy(worker->bgw_function_name, "rk_apikeys_launcher_main", BGW_MAXLEN);
	strlcpy(worker->bgw_name, "rk_apikeys launcher", BGW_MAXLEN);
	strlcpy(worker->bgw_type, "rk_apikeys launcher", BGW_MAXLEN);
}

void
rk_apikeys_launcher_main(Datum arg)
{
	TimestampTz last;			/* when the last round of flushes began */

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	pgstat_report_appname("rk_apikeys launcher");
	if (!usage_launch())
		proc_exit(0);

	last = GetCurrentTimestamp();
	while (!ShutdownRequestPending)
	{
		TimestampTz now = GetCurrentTimestamp();

		/* The clock may be set back. */
		last = Min(last, now);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Max(rk_apikeys_usage_flush_interval -
							 TimestampDifferenceMilliseconds(last, now), 0),
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		/* Other processes set the latch too, for reasons of their own. */
		if (ShutdownRequestPending ||
			!TimestampDifferenceExceeds(last, GetCurrentTimestamp(),
										rk_apikeys_usage_flush_interval))
			continue;
		last = GetCurrentTimestamp();
		flush_all();
	}
	proc_exit(0);
}

/* Flush every database that has something pending, one after the other. */
static void
flush_all(void)
{
	static bool was_standby = false;
	bool		is_standby = RecoveryInProgress();
	TimestampTz began = GetCurrentTimestamp();
	bool		failed = false;
	List	   *databases;
	ListCell   *cell;

	/* A standby that sends nothing must not fill up. */
	if (is_standby && rk_apikeys_primary_conninfo[0] == '\0')
	{
		was_standby = true;
		usage_evict();
		return;
	}
	if (was_standby && !is_standby)
		usage_write_all();
	was_standby = is_standby;
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	MemoryContextSwitchTo(TopTransactionContext);
	usage_begin_round();
	databases = usage_pending_databases();
	foreach(cell, databases)
	{
		if (!database_is_open(lfirst_oid(cell)))
		{
			drop_entries(lfirst_oid(cell));
			lfirst_oid(cell) = InvalidOid;
		}
	}
	usage_evict();
	MemoryContextSwitchTo(TopMemoryContext);
	databases = list_copy(databases);
	CommitTransactionCommand();

	/* A worker that has not come to its end leaves the rest to another. */
	while (databases != NIL && !ShutdownRequestPending)
	{
		List	   *unfinished = NIL;

		foreach(cell, databases)
		{
			UsageEnd	end;

			if (ShutdownRequestPending || !OidIsValid(lfirst_oid(cell)))
				continue;
			end = flush_database(lfirst_oid(cell));
			if (end == USAGE_LEFT)
				unfinished = lappend_oid(unfinished, lfirst_oid(cell));
			failed |= end == USAGE_FAILED;
		}
		list_free(databases);
		databases = unfinished;
		if (databases != NIL)
			pause_for(WORKER_PAUSE_MS);
	}
	list_free(databases);
	if (!failed)
		usage_end_round(began);
}

/*
 * Run a worker in a database.  What is pending where it has failed, or could not
 * be started, waits for the next round.  A worker may have failed because the
 * server is too slow for its batch, so that the next one takes half of that.
 */
static UsageEnd
flush_database(Oid database)
{
	static int	batch = USAGE_BATCH;
	BackgroundWorker worker = {0};
	BackgroundWorkerHandle *handle;
	UsageEnd	end;

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_ConsistentState;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "rk_apikeys", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "rk_apikeys_flush_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "rk_apikeys flush", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "rk_apikeys flush", BGW_MAXLEN);
	worker.bgw_main_arg = ObjectIdGetDatum(database);
	memcpy(worker.bgw_extra, &batch, sizeof(batch));
	worker.bgw_notify_pid = MyProcPid;
	usage_set_end(USAGE_FAILED);
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
		return USAGE_FAILED;
	(void) WaitForBackgroundWorkerShutdown(handle);
	pfree(handle);
	end = usage_end();
	batch = end == USAGE_FAILED ? Max(batch / 2, 1) : Min(batch * 2, USAGE_BATCH);
	return end;
}

/*
 * Wait, but for a shutdown: so DROP DATABASE finds the database empty.  Ends
 * early where the clock is set, since it might not come round again.
 */
static void
pause_for(int milliseconds)
{
	TimestampTz start = GetCurrentTimestamp();
	TimestampTz now;

	while (!ShutdownRequestPending && (now = GetCurrentTimestamp()) >= start &&
		   !TimestampDifferenceExceeds(start, now, milliseconds))
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 milliseconds, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

/* Whether the database exists and lets anybody in. */
static bool
database_is_open(Oid database)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	bool		open = false;

	if (HeapTupleIsValid(tuple))
	{
		open = ((Form_pg_database) GETSTRUCT(tuple))->datallowconn;
		ReleaseSysCache(tuple);
	}
	return open;
}

/* Throw away what is pending of a database that cannot be flushed. */
static void
drop_entries(Oid database)
{
	int			count;
	UsageCopy  *copies = usage_pending(database, false, &count);

	for (int i = 0; i < count; i++)
		usage_forget(database, copies[i].key_id);
	if (usage_outbox->database == database)
		usage_outbox->count = 0;
	stats_count_many(STATS_DROPPED, count);
	pfree(copies);
}

void
rk_apikeys_flush_main(Datum database)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(database),
											  InvalidOid, 0);
	/* What the database's or the role's own settings say does not count. */
	SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_read_only", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_isolation", "read committed", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("lock_timeout", "1s", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("session_replication_role", "origin", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("row_security", "on", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("synchronous_commit", "local", PGC_SUSET, PGC_S_OVERRIDE);
	pgstat_report_appname("rk_apikeys flush");
	/* Without preload this is where the memory is attached. */
	if (usage_is_shared())
		usage_set_end(flush_one(DatumGetObjectId(database)));
	proc_exit(0);
}

/*
 * Flush what is pending of this database, batch by batch; after what it sent
 * when it was a standby.
 */
static UsageEnd
flush_one(Oid database)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "rk_apikeys flush",
												  ALLOCSET_DEFAULT_SIZES);
	TimestampTz start = GetCurrentTimestamp();
	int			batch;
	Destination destination = find_destination();
	UsageCopy  *copies;
	int			count;

	MemoryContextSwitchTo(context);
	if (destination == DESTINATION_NONE)
	{
		drop_entries(database);
		return USAGE_DONE;
	}
	copies = usage_pending(database, true, &count);
	if (destination == DESTINATION_PRIMARY)
	{
		pgstat_report_activity(STATE_RUNNING, "sending the usage of API keys");
		return primary_send(copies, count);
	}
	if (primary_has_sent())
	{
		if (flush_batch(primary_deliver, usage_outbox->copies,
						usage_outbox->count) != TABLES_OURS)
			return USAGE_FAILED;
		primary_delivered();
	}
	memcpy(&batch, MyBgworkerEntry->bgw_extra, sizeof(batch));
	for (int i = 0; i < count; i += batch)
	{
		CHECK_FOR_INTERRUPTS();
		if (TimestampDifferenceExceeds(start, GetCurrentTimestamp(),
									   WORKER_BUDGET_MS))
			return USAGE_LEFT;
		switch (flush_batch(usage_flush_here, copies + i,
							Min(count - i, batch)))
		{
			case TABLES_OURS:
				break;
			case TABLES_BUSY:
				return USAGE_FAILED;
			case TABLES_NOT_OURS:
				drop_entries(database);
				return USAGE_DONE;
		}
	}
	return USAGE_DONE;
}

static Destination
find_destination(void)
{
	Destination result = DESTINATION_HERE;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (!OidIsValid(get_extension_oid("rk_apikeys", true)))
		result = DESTINATION_NONE;
	else if (primary_is_asked())
		result = DESTINATION_PRIMARY;
	PopActiveSnapshot();
	CommitTransactionCommand();
	return result;
}

/*
 * Do the work on one batch in a transaction of its own, if the tables are ours.
 */
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
	}
	disable_timeout(STATEMENT_TIMEOUT, false);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	stats_count(STATS_FLUSHES);
	stats_count_many(STATS_FLUSHED_KEYS, total);
	pgstat_report_activity(STATE_IDLE, NULL);
	return tables;
}

/*
 * Lock the tables until the transaction ends, so that what is true of them
 * stays true.  A worker does not wait for a lock: whoever drops the extension
 * takes the same ones in another order.
 */
static TablesState
lock_tables(void)
{
	static const char *const names[] = {"api_keys", "key_usage", "key_usage_daily"};
	Oid			extension = get_extension_oid("rk_apikeys", true);

	if (!OidIsValid(extension))
		return TABLES_NOT_OURS;
	for (int i = 0; i < (int) lengthof(names); i++)
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
