/*
 * rk_apikeys.c
 *		Start of the library.
 *
 * Nothing here touches a table, because a preloaded library starts in the
 * postmaster.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"

#include "base/settings.h"
#include "base/stats.h"
#include "compat.h"
#include "key/audit.h"
#include "key/cache.h"
#include "key/issued.h"
#include "server/redact.h"
#include "usage/usage.h"

PG_MODULE_MAGIC_EXT(
	.name = "rk_apikeys",
	.version = RK_APIKEYS_VERSION
);

static shmem_request_hook_type previous_shmem_request_hook = NULL;
static shmem_startup_hook_type previous_shmem_startup_hook = NULL;

PGDLLEXPORT void _PG_init(void);

/* Reserve shared memory and locks. */
static void
request_shmem(void)
{
	if (previous_shmem_request_hook)
		previous_shmem_request_hook();
	usage_shmem_request();
	stats_shmem_request();
}

/* Make the shared memory, or find it where another process made it. */
static void
startup_shmem(void)
{
	if (previous_shmem_startup_hook)
		previous_shmem_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	usage_shmem_startup();
	stats_shmem_startup();
	LWLockRelease(AddinShmemInitLock);
}

void
_PG_init(void)
{
	settings_init();
	issued_init();
	cache_init();
	usage_set_teller(audit_add);
	redact_init();
	if (process_shared_preload_libraries_in_progress)
	{
		previous_shmem_request_hook = shmem_request_hook;
		shmem_request_hook = request_shmem;
		previous_shmem_startup_hook = shmem_startup_hook;
		shmem_startup_hook = startup_shmem;
		usage_register_launcher();
	}
}
