/*
 * memory.c
 *		The shared memory that usage is kept in.
 *
 * A preloaded library reserves its memory when the server starts.
 *
 * Without preload, from PostgreSQL 17 on, a session can ask for memory by name
 * while the server runs.  The first session that needs the memory makes it, and
 * the memory stays until the server ends.  It differs from a preloaded
 * library's in two ways: its size is fixed, and nothing is kept over a restart,
 * because only the postmaster could write the file.
 *
 * A session that cannot have the memory writes so to the log, once, and works
 * without, as on older servers.  Each version of the library has memory of its
 * own.
 *
 * Locking: memory that is asked for by name is made under a lock of
 * PostgreSQL's registry.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/ipc.h"

#include "base/contain.h"
#include "base/settings.h"
#include "base/stats.h"
#include "compat.h"
#include "usage/shared.h"

#define SEGMENT "rk_apikeys " RK_APIKEYS_VERSION

/* Keys that are tracked without preload: 7 MB. */
#define MAX_TRACKED 16384

static bool attach(void);
static void attach_segment(void *arg);
static void place(char *memory);
static void init(COMPAT_DSM_INIT_PARAMS);

/* Reserve memory and locks; while the library is preloaded. */
void
usage_shmem_request(void)
{
	RequestAddinShmemSpace(usage_hash_size(settings_max_tracked_keys));
	RequestAddinShmemSpace(usage_outbox_size());
	RequestNamedLWLockTranche(USAGE_TRANCHE, USAGE_PARTITIONS);
}

/* Runs in the postmaster, under AddinShmemInitLock. */
void
usage_shmem_startup(void)
{
	bool		made = usage_hash_startup(settings_max_tracked_keys);

	usage_locks = GetNamedLWLockTranche(USAGE_TRANCHE);
	usage_outbox_startup();
	/* pg_upgrade leaves the file in the old data directory. */
	if (IsBinaryUpgrade)
		return;
	if (!IsUnderPostmaster)
		on_shmem_exit(usage_file_save, (Datum) 0);
	if (made)
		usage_file_load();
}

/*
 * Return whether usage is kept in shared memory: the library is preloaded, or
 * this session could attach the memory.
 */
bool
usage_is_shared(void)
{
	return usage_shared != NULL || attach();
}

/* Return whether the memory is a preloaded library's. */
bool
usage_is_preloaded(void)
{
	return usage_shared != NULL && usage_shared->tranche == 0;
}

/*
 * Attach the memory and return whether it is there.  Raise nothing but a cancel,
 * except where no subtransaction can be begun to contain an error: in parallel
 * mode, and in the launcher and its workers.
 */
static bool
attach(void)
{
	static bool failed = false;
	ErrorData  *error;

	if (!COMPAT_NAMED_DSM || failed || !IsUnderPostmaster || IsBinaryUpgrade)
		return false;
	if (!IsTransactionState() || IsInParallelMode())
	{
		attach_segment(NULL);
		return true;
	}
	error = contain_errors(attach_segment, NULL);
	if (error != NULL)
	{
		ereport(LOG,
				(errmsg("could not get shared memory for the use of API keys: %s",
						error->message),
				 errhint("Add rk_apikeys to shared_preload_libraries and restart the server.")));
		FreeErrorData(error);
	}
	failed = usage_shared == NULL;
	return !failed;
}

/* ContainedWork; leaves no pointer into the memory when it raises. */
static void
attach_segment(void *arg)
{
	bool		found;
	Size		size = add_size(add_size(usage_hash_size(MAX_TRACKED), stats_size()),
								USAGE_PARTITIONS * sizeof(LWLockPadded));

	size = add_size(size, usage_outbox_size());
	PG_TRY();
	{
		place(GetNamedDSMSegment(SEGMENT, size, init, &found, NULL));
		if (usage_shared->tranche == 0)
			elog(ERROR, "shared memory is not initialized");
		LWLockRegisterTranche(usage_shared->tranche, USAGE_TRANCHE);
	}
	PG_CATCH();
	{
		usage_shared = NULL;
		usage_outbox_place(NULL);
		stats_place(NULL);
		PG_RE_THROW();
	}
	PG_END_TRY();
	usage_start_launcher();
}

/* Set the pointers to the parts, each of whole cache lines. */
static void
place(char *memory)
{
	usage_hash_place(memory, MAX_TRACKED);
	memory += usage_hash_size(MAX_TRACKED);
	usage_locks = (LWLockPadded *) memory;
	memory += USAGE_PARTITIONS * sizeof(LWLockPadded);
	stats_place(memory);
	memory += stats_size();
	usage_outbox_place(memory);
}

/*
 * Make the memory, which no other process has yet.  If this function fails,
 * PostgreSQL regards the memory as made all the same.  So the field that says
 * that it is made, tranche, is set last.
 */
static void
init(COMPAT_DSM_INIT_PARAMS)
{
	int			tranche = LWLockNewTrancheId(USAGE_TRANCHE);

	place(memory);
	memset(memory, 0, usage_hash_size(MAX_TRACKED));
	usage_hash_init(MAX_TRACKED);
	usage_outbox_init();
	stats_init();
	for (int i = 0; i < USAGE_PARTITIONS; i++)
		LWLockInitialize(&usage_locks[i].lock, tranche);
	usage_shared->tranche = tranche;
}
