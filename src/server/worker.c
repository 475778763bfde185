/*
 * worker.c
 *		The processes that flush usage: a launcher and its workers.
 *
 * The launcher reads shared catalogs only.  Every
 * rk_apikeys.usage_flush_interval it starts a short worker for each database
 * with pending entries, one after the other.  The worker writes the entries to
 * the tables or, on a standby or subscriber with a primary_conninfo, sends
 * them.  A worker also makes room when memory is nearly full.  On a standby
 * without a primary_conninfo workers only make room.  When room runs short, a
 * backend wakes the launcher for a round before its time.
 *
 * Trust: a worker forces the settings that its statements depend on, because a
 * database or role may have settings of its own.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/settings.h"
#include "compat.h"
#include "usage/usage.h"

/*
 * The pause between two workers in a database.  It lets DROP DATABASE find the
 * database empty, because DROP DATABASE looks ten times a second.
 */
#define WORKER_PAUSE_MS 250

/*
 * The time that a worker may take.  It needs four seconds at most, except where
 * its start waits for a lock on the database, for example of a transaction that
 * renames the database.
 */
#define WORKER_DEADLINE_MS 10000

typedef enum DatabaseState
{
	DATABASE_OPEN,
	DATABASE_CLOSED,			/* allows no connections */
	DATABASE_GONE
} DatabaseState;

PGDLLEXPORT void rk_apikeys_launcher_main(Datum arg);
PGDLLEXPORT void rk_apikeys_flush_main(Datum database);

/* What a worker is told. */
typedef struct Order
{
	int			batch;			/* keys */
	bool		stays;			/* for a second, to make room again and again */
} Order;

StaticAssertDecl(sizeof(Order) <= BGW_EXTRALEN, "an order fits into bgw_extra");

/* The pause between two messages that keys find no room. */
#define REPORT_PAUSE_MS 10000

static void report_lost(void);
static bool flush_all(void);
static UsageEnd run_worker(Oid database, bool stays);
static bool wait_for_worker(BackgroundWorkerHandle *handle, Oid database);
static void pause_for(int milliseconds);
static DatabaseState database_state(Oid database);

/*
 * The main function of the launcher: a round every usage_flush_interval, and when
 * room runs short.
 */
void
rk_apikeys_launcher_main(Datum arg)
{
	TimestampTz last;			/* when the last round on time began */
	TimestampTz ended;			/* the last round */
	bool		failed = false;	/* the last round */

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	pgstat_report_appname("rk_apikeys launcher");
	if (!usage_is_shared() || !usage_launch())
		proc_exit(0);

	last = ended = GetCurrentTimestamp();
	while (!ShutdownRequestPending)
	{
		TimestampTz now;
		int			pause;
		long		wait;

		/* Before the wait, because a round resets the latch too. */
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		report_lost();
		now = GetCurrentTimestamp();
		pause = usage_room_pause(failed);
		/* If the clock was set back, do not wait until it reaches "last". */
		last = Min(last, now);
		ended = Min(ended, now);
		wait = Max(settings_usage_flush_interval -
				   TimestampDifferenceMilliseconds(last, now), 0);
		if (pause >= 0)
			wait = Min(wait, Max(pause - TimestampDifferenceMilliseconds(ended, now), 0));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 wait, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ShutdownRequestPending)
			break;
		/* Other processes set the latch too, so check the time. */
		now = GetCurrentTimestamp();
		pause = usage_room_pause(failed);
		if (TimestampDifferenceExceeds(last, now, settings_usage_flush_interval))
			last = now;
		else if (pause < 0 || !TimestampDifferenceExceeds(ended, now, pause))
			continue;
		failed = !flush_all();
		ended = GetCurrentTimestamp();
	}
	/*
	 * The server starts a launcher again only after an exit that is not 0, and a
	 * DBA may have terminated this one.  Without preload a session starts it.
	 */
	proc_exit(usage_is_preloaded() ? 1 : 0);
}

/*
 * Log that keys find no room, if they do: once in the time of a round, and not more
 * often than in REPORT_PAUSE_MS.
 */
static void
report_lost(void)
{
	static TimestampTz reported = 0;
	TimestampTz now = GetCurrentTimestamp();

	reported = Min(reported, now);
	if (usage_report_lost(TimestampDifferenceExceeds(reported, now,
													 Max(settings_usage_flush_interval, REPORT_PAUSE_MS))))
		reported = now;
}

/*
 * One round: flush every database with pending entries, one after the other,
 * and make room when memory is nearly full.  Return whether all could be flushed.
 */
static bool
flush_all(void)
{
	TimestampTz began = GetCurrentTimestamp();
	bool		failed = false;
	bool		is_discarded;
	bool		stays;
	List	   *databases;
	ListCell   *cell;

	usage_clear_needs();
	(void) usage_note_recovery();
	is_discarded = usage_is_discarded();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	MemoryContextSwitchTo(TopTransactionContext);
	databases = is_discarded ? NIL : usage_begin_round();
	foreach(cell, databases)
	{
		switch (database_state(lfirst_oid(cell)))
		{
			case DATABASE_OPEN:
				continue;
			case DATABASE_CLOSED:
				/* Its entries wait until it allows connections again. */
				failed = true;
				break;
			case DATABASE_GONE:
				usage_forget_database(lfirst_oid(cell));
				break;
		}
		lfirst_oid(cell) = InvalidOid;
	}
	/* The memory of a standby that sends nothing must not fill up either. */
	usage_evict();
	foreach(cell, usage_crowded_databases())
	{
		switch (database_state(lfirst_oid(cell)))
		{
			case DATABASE_OPEN:
				databases = list_append_unique_oid(databases, lfirst_oid(cell));
				break;
			case DATABASE_CLOSED:
				break;
			case DATABASE_GONE:
				usage_forget_database(lfirst_oid(cell));
				break;
		}
	}
	MemoryContextSwitchTo(TopMemoryContext);
	databases = list_copy(databases);
	CommitTransactionCommand();

	/* While a worker stays, other databases would wait. */
	stays = list_length(databases) == 1 && usage_is_short();
	/* A worker that left entries is followed by another one. */
	while (databases != NIL && !ShutdownRequestPending)
	{
		List	   *unfinished = NIL;

		foreach(cell, databases)
		{
			UsageEnd	end;

			if (ShutdownRequestPending || !OidIsValid(lfirst_oid(cell)))
				continue;
			end = run_worker(lfirst_oid(cell), stays);
			/* A round can be long. */
			report_lost();
			if (end == USAGE_LEFT)
				unfinished = lappend_oid(unfinished, lfirst_oid(cell));
			failed |= end != USAGE_LEFT && end != USAGE_DONE;
		}
		list_free(databases);
		databases = unfinished;
		if (databases != NIL)
			pause_for(WORKER_PAUSE_MS);
	}
	list_free(databases);
	if (!failed && !is_discarded)
		usage_end_round(began);
	return !failed;
}

/*
 * Run a worker in a database and return how it ended.  If it failed, or could
 * not be started, the pending entries wait for the next round.  A worker may
 * have failed because the server is too slow for its batch, so the next batch
 * is half as large.  A primary that is away says nothing about this server.
 */
static UsageEnd
run_worker(Oid database, bool stays)
{
	static int	batch = USAGE_BATCH;
	Order		order = {.batch = batch, .stays = stays};
	BackgroundWorker worker = {0};
	BackgroundWorkerHandle *handle;
	bool		in_time;
	UsageEnd	end;

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_ConsistentState;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "rk_apikeys", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "rk_apikeys_flush_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "rk_apikeys flush", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "rk_apikeys flush", BGW_MAXLEN);
	worker.bgw_main_arg = ObjectIdGetDatum(database);
	memcpy(worker.bgw_extra, &order, sizeof(order));
	worker.bgw_notify_pid = MyProcPid;
	usage_set_end(USAGE_FAILED);
	if (!usage_start_worker(&worker, &handle))
		return USAGE_FAILED;
	in_time = wait_for_worker(handle, database);
	pfree(handle);
	if (!in_time)
		return USAGE_FAILED;
	end = usage_end();
	if (end == USAGE_FAILED)
		batch = Max(batch / 2, 1);
	else if (end == USAGE_LEFT || end == USAGE_DONE)
		batch = Min(batch * 2, USAGE_BATCH);
	return end;
}

/*
 * Wait until a worker has ended.  Terminate a worker that does not end in time.
 * Return whether it ended in time.  The log reports a database only at the first
 * such worker.
 */
static bool
wait_for_worker(BackgroundWorkerHandle *handle, Oid database)
{
	static List *stalled = NIL; /* databases */
	TimestampTz start = GetCurrentTimestamp();
	bool		in_time = true;
	pid_t		pid;

	while (GetBackgroundWorkerPid(handle, &pid) != BGWH_STOPPED)
	{
		TimestampTz now = GetCurrentTimestamp();

		/* If the clock was set back, do not wait until it reaches "start". */
		start = Min(start, now);
		if (in_time && TimestampDifferenceExceeds(start, now, WORKER_DEADLINE_MS))
		{
			in_time = false;
			TerminateBackgroundWorker(handle);
			if (!list_member_oid(stalled, database))
			{
				MemoryContext context = MemoryContextSwitchTo(TopMemoryContext);

				stalled = lappend_oid(stalled, database);
				MemoryContextSwitchTo(context);
				ereport(LOG,
						(errmsg("terminating the background worker that flushes the usage of API keys in database %u, because it did not end within %d seconds",
								database, WORKER_DEADLINE_MS / 1000),
						 errhint("Look in pg_locks for a transaction that has locked the database.")));
			}
		}
		/* The postmaster sets the latch when the worker has ended. */
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 WORKER_PAUSE_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	if (in_time)
		stalled = list_delete_oid(stalled, database);
	return in_time;
}

/*
 * Wait, so that DROP DATABASE finds the database empty.  Return early at a
 * shutdown, and when the clock is set back, because the wait could become long.
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

static DatabaseState
database_state(Oid database)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	DatabaseState state = DATABASE_GONE;

	if (HeapTupleIsValid(tuple))
	{
		state = ((Form_pg_database) GETSTRUCT(tuple))->datallowconn ?
			DATABASE_OPEN : DATABASE_CLOSED;
		ReleaseSysCache(tuple);
	}
	return state;
}

/* The main function of a worker: flush one database, then exit. */
void
rk_apikeys_flush_main(Datum database)
{
	Order		order;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(database),
											  InvalidOid, 0);
	/* Override the settings of the database and of the role. */
	SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_read_only", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_isolation", "read committed", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("lock_timeout", "1s", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("session_replication_role", "origin", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("row_security", "on", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("synchronous_commit", "local", PGC_SUSET, PGC_S_OVERRIDE);
	pgstat_report_appname("rk_apikeys flush");
	memcpy(&order, MyBgworkerEntry->bgw_extra, sizeof(order));
	/* Without preload, usage_is_shared() attaches the memory. */
	if (usage_is_shared())
		usage_flush_database(order.batch, order.stays);
	proc_exit(0);
}
