/*
 * usage_registry.c
 *		Shared memory for use where the library is not preloaded.
 *
 * From PostgreSQL 17 on memory can be had by name while the server runs.  The
 * first session that needs it makes it, and it stays until the server ends.  It
 * is a preloaded library's in all but its size, which is fixed, and that nothing
 * of it is kept over a restart: only the postmaster could write the file.
 *
 * Who attaches the memory sees to it that there is a launcher, which also stays.
 * Several may be started, as after a crash, when the server starts the old one
 * again: all but the first end at once.
 *
 * A session that cannot have the memory says so in the log, once, and does
 * without, as on older servers.  Another version of the library has memory of
 * its own.
 *
 * Locking: the memory is made under a lock of the registry.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "compat.h"
#include "stats.h"
#include "usage.h"
#include "usage_shared.h"
#include "worker.h"

#define SEGMENT "rk_apikeys " RK_APIKEYS_VERSION

/* Keys that are tracked: 9 MB. */
#define MAX_TRACKED 16384

/* Who is the launcher: nobody, one that is to come, or a process by its id. */
#define LAUNCHER_NONE 0
#define LAUNCHER_COMES 1

static void attach(void);
static void place(char *memory);
static void init(void *memory);
static void see_to_launcher(void);
static void launcher_ends(int code, Datum arg);

/* Whether the memory is that of a preloaded library. */
bool
usage_is_preloaded(void)
{
	return usage_shared != NULL && usage_shared->tranche == 0;
}

/*
 * Attach the memory, for usage_is_shared().  Returns whether it is there.  It
 * raises no error, but where a subtransaction cannot be begun to contain it:
 * that is in parallel mode, and in the launcher and its workers.
 */
bool
usage_attach(void)
{
	static bool failed = false;
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	if (!COMPAT_NAMED_DSM || failed || !IsUnderPostmaster || IsBinaryUpgrade)
		return false;
	if (!IsTransactionState() || IsInParallelMode())
	{
		attach();
		return true;
	}
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		attach();
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			ReThrowError(error);
		ereport(LOG,
				(errmsg("could not have shared memory for the use of API keys: %s",
						error->message),
				 errhint("Add rk_apikeys to shared_preload_libraries and restart the server.")));
		FreeErrorData(error);
	}
	PG_END_TRY();
	failed = usage_shared == NULL;
	return !failed;
}

static void
attach(void)
{
	bool		found;
	Size		size = add_size(add_size(usage_hash_size(MAX_TRACKED), stats_size()),
								USAGE_PARTITIONS * sizeof(LWLockPadded));

	size = add_size(size, sizeof(UsageOutbox));
	PG_TRY();
	{
		place(GetNamedDSMSegment(SEGMENT, size, init, &found));
		if (usage_shared->tranche == 0)
			elog(ERROR, "shared memory is not initialized");
		LWLockRegisterTranche(usage_shared->tranche, USAGE_TRANCHE);
	}
	PG_CATCH();
	{
		usage_shared = NULL;
		usage_outbox = NULL;
		stats_place(NULL);
		PG_RE_THROW();
	}
	PG_END_TRY();
	see_to_launcher();
}

/* The parts, one behind the other; each is of whole lines of a cache. */
static void
place(char *memory)
{
	usage_hash_place(memory, MAX_TRACKED);
	memory += usage_hash_size(MAX_TRACKED);
	usage_locks = (LWLockPadded *) memory;
	memory += USAGE_PARTITIONS * sizeof(LWLockPadded);
	stats_place(memory);
	memory += stats_size();
	usage_outbox = (UsageOutbox *) memory;
}

/*
 * Make the memory; nobody else has it yet.  If it fails the server takes it for
 * made all the same, so what tells that it is comes last.
 */
static void
init(void *memory)
{
	int			tranche = LWLockNewTrancheId();

	place(memory);
	memset(memory, 0, usage_hash_size(MAX_TRACKED));
	usage_hash_init(MAX_TRACKED);
	usage_outbox_init();
	stats_init();
	for (int i = 0; i < USAGE_PARTITIONS; i++)
		LWLockInitialize(&usage_locks[i].lock, tranche);
	usage_shared->tranche = tranche;
}

/*
 * Start a launcher if there is none, unless this is one, or its worker.  If none
 * can be started now, the next session tries.
 */
static void
see_to_launcher(void)
{
	uint32		none = LAUNCHER_NONE;

	if (MyBgworkerEntry != NULL &&
		strcmp(MyBgworkerEntry->bgw_library_name, "rk_apikeys") == 0)
		return;
	if (pg_atomic_compare_exchange_u32(&usage_shared->launcher, &none,
									   LAUNCHER_COMES) &&
		!worker_start_launcher())
		pg_atomic_write_u32(&usage_shared->launcher, LAUNCHER_NONE);
}

/* Whether this process, a launcher, is to stay: it is the only one. */
bool
usage_launch(void)
{
	uint32		before;

	if (!usage_is_shared())
		return false;
	if (usage_is_preloaded())
		return true;
	before = pg_atomic_read_u32(&usage_shared->launcher);
	do
	{
		if (before != LAUNCHER_NONE && before != LAUNCHER_COMES)
			return false;
	} while (!pg_atomic_compare_exchange_u32(&usage_shared->launcher, &before,
											 (uint32) MyProcPid));
	before_shmem_exit(launcher_ends, (Datum) 0);
	return true;
}

/* After an error the server starts it again. */
static void
launcher_ends(int code, Datum arg)
{
	pg_atomic_write_u32(&usage_shared->launcher,
						code == 0 ? LAUNCHER_NONE : LAUNCHER_COMES);
}
