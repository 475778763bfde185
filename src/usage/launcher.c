/*
 * launcher.c
 *		Who is the launcher, and how it is started.
 *
 * With preload the server starts the launcher.  Without preload the process
 * that attaches the shared memory makes sure that a launcher runs, which then
 * stays.  Several may be started, for example after a crash, when the server
 * starts the old launcher again.  All except the first end at once.
 *
 * server/worker.c has the launcher's main loop.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"

#include "compat.h"
#include "usage/shared.h"

/* UsageShared.launcher: no launcher, one that was started, or its pid. */
#define LAUNCHER_NONE 0
#define LAUNCHER_STARTED 1

/*
 * The pause before a round that makes room.  DROP DATABASE finds the database
 * empty meanwhile.  The long one is for rounds that may be in vain: the last one
 * failed, or places are held.
 */
#define ROOM_PAUSE_MS 250
#define ROOM_SLOW_MS 1000

static void describe_launcher(BackgroundWorker *worker);
static void launcher_ends(int code, Datum arg);

/* Register the launcher; while the library is preloaded.  Not in pg_upgrade. */
void
usage_register_launcher(void)
{
	BackgroundWorker worker;

	if (IsBinaryUpgrade)
		return;
	describe_launcher(&worker);
	RegisterBackgroundWorker(&worker);
}

/*
 * Start a launcher if there is none, unless this process is a launcher or its
 * worker.  If the server has no free worker, the next session tries.
 */
void
usage_start_launcher(void)
{
	BackgroundWorker worker;
	uint32		none = LAUNCHER_NONE;

	if (MyBgworkerEntry != NULL &&
		strcmp(MyBgworkerEntry->bgw_library_name, "rk_apikeys") == 0)
		return;
	if (!pg_atomic_compare_exchange_u32(&usage_shared->launcher, &none,
										LAUNCHER_STARTED))
		return;
	describe_launcher(&worker);
	if (!usage_start_worker(&worker, NULL))
		pg_atomic_write_u32(&usage_shared->launcher, LAUNCHER_NONE);
}

/*
 * Start a launcher or a flush worker.  Return whether the server has a free
 * worker.  Write to the log when that changes.
 */
bool
usage_start_worker(BackgroundWorker *worker, BackgroundWorkerHandle **handle)
{
	bool		started = RegisterDynamicBackgroundWorker(worker, handle);
	bool		failed_before = pg_atomic_exchange_u32(&usage_shared->no_worker,
													   !started) != 0;

	if (!started && !failed_before)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("could not start a background worker to flush the usage of API keys"),
				 errdetail("The usage stays in memory meanwhile."),
				 errhint("You might need to increase max_worker_processes.")));
	else if (started && failed_before)
		ereport(LOG,
				(errmsg("a background worker to flush the usage of API keys can be started again")));
	return started;
}

/*
 * Return whether this process, a launcher with shared memory, is to stay
 * because it is the only one.
 */
bool
usage_launch(void)
{
	uint32		before;

	before = pg_atomic_read_u32(&usage_shared->launcher);
	do
	{
		/* The server starts one launcher of a preloaded library. */
		if (usage_shared->tranche != 0 &&
			before != LAUNCHER_NONE && before != LAUNCHER_STARTED)
			return false;
	} while (!pg_atomic_compare_exchange_u32(&usage_shared->launcher, &before,
											 (uint32) MyProcPid));
	usage_shared->latch = MyLatch;
	before_shmem_exit(launcher_ends, (Datum) 0);
	return true;
}

/* In the launcher: log that keys found no room, if asked to.  Return whether. */
bool
usage_report_lost(bool log)
{
	if ((pg_atomic_fetch_and_u32(&usage_shared->needs, ~USAGE_HAS_LOST) & USAGE_HAS_LOST) == 0 ||
		!log)
		return false;
	ereport(WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("shared memory has no room for more API keys"),
			 errdetail("Uses of keys are not recorded, and calls of keys with a limit are refused. The view rk_apikeys.stats counts both."),
			 usage_shared->tranche == 0 ?
			 errhint("Increase rk_apikeys.max_tracked_keys.") :
			 errhint("Add rk_apikeys to shared_preload_libraries.")));
	return true;
}

/*
 * In the launcher: return the milliseconds after a round before another one makes
 * room; -1 if nobody waits for room, and the round has written what it should.
 */
int
usage_room_pause(bool failed)
{
	if ((pg_atomic_read_u32(&usage_shared->needs) & USAGE_NEEDS_ROOM) == 0 &&
		!(failed && usage_is_short()))
		return -1;
	return failed || !usage_is_short() ? ROOM_SLOW_MS : ROOM_PAUSE_MS;
}

/* In the launcher, before a round: who waits for room must say so again. */
void
usage_clear_needs(void)
{
	(void) pg_atomic_fetch_and_u32(&usage_shared->needs, ~USAGE_NEEDS_ROOM);
}

/* Return whether most entries are pending. */
bool
usage_is_short(void)
{
	return usage_hash_pending(0) >= usage_hash_eighths(USAGE_SHORT_EIGHTHS);
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

/* After an error the server starts the launcher again. */
static void
launcher_ends(int code, Datum arg)
{
	usage_shared->latch = NULL;
	pg_atomic_write_u32(&usage_shared->launcher,
						code == 0 ? LAUNCHER_NONE : LAUNCHER_STARTED);
}
