/*
 * usage_live.c
 *		What shared memory knows of a key's use, for SQL.
 *
 * Trust: anybody who reads the views can call these directly, so they answer
 * as the tables' policies would.
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "caller.h"
#include "compat.h"
#include "principal.h"
#include "usage.h"
#include "usage_shared.h"

/* Of _live_usage(). */
#define LIVE_COLUMNS 3

/* Whose usage a caller may see. */
typedef struct Viewer
{
	bool		all;			/* every tenant's */
	uint64		tenant;			/* or that of this one: a hash of its name */
} Viewer;

static bool find_viewer(Viewer *viewer);
static bool copy_for_caller(FunctionCallInfo fcinfo, int64 *last_used_at,
							int64 *use_count);

PG_FUNCTION_INFO_V1(rk_apikeys_live_last_used_at);
PG_FUNCTION_INFO_V1(rk_apikeys_live_use_count);
PG_FUNCTION_INFO_V1(rk_apikeys_live_usage);

/* Who is asking; false if he may see nothing. */
static bool
find_viewer(Viewer *viewer)
{
	char	   *tenant;

	if (!principal_may_manage())
		return false;
	viewer->all = caller_sees_all_tenants();
	tenant = caller_tenant();
	if (tenant == NULL)
		return false;
	viewer->tenant = caller_tenant_hash(tenant);
	pfree(tenant);
	return true;
}

/*
 * Copy what there is of the key that an SQL function asks for.  False if there
 * is nothing, or the caller may not see it: it is his tenant's, or he has a
 * role of all tenants, as the tables' policies have it.
 */
static bool
copy_for_caller(FunctionCallInfo fcinfo, int64 *last_used_at, int64 *use_count)
{
	text	   *key_id = PG_GETARG_TEXT_PP(0);
	UsageTarget target;
	UsageEntry *entry;
	uint64		tenant = 0;
	Viewer		viewer;

	if (!usage_is_shared() || VARSIZE_ANY_EXHDR(key_id) != TOKEN_KEY_ID_LEN)
		return false;
	usage_hash_target(&target, MyDatabaseId, VARDATA_ANY(key_id));
	LWLockAcquire(target.lock, LW_SHARED);
	entry = usage_hash_find(&target);
	if (entry != NULL)
	{
		*last_used_at = (int64) pg_atomic_read_u64(&entry->last_used_at);
		*use_count = (int64) pg_atomic_read_u64(&entry->use_count);
		tenant = entry->tenant;
	}
	LWLockRelease(target.lock);
	return entry != NULL && find_viewer(&viewer) &&
		(viewer.all || tenant == viewer.tenant);
}

/*
 * rk_apikeys._live_last_used_at(key_id text) → timestamptz
 *
 * The last use that shared memory knows of; NULL if none, or not the caller's.
 */
Datum
rk_apikeys_live_last_used_at(PG_FUNCTION_ARGS)
{
	int64		last_used_at;
	int64		use_count;

	if (!copy_for_caller(fcinfo, &last_used_at, &use_count) || last_used_at == 0)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(last_used_at);
}

/* rk_apikeys._live_use_count(key_id text) → bigint, likewise. */
Datum
rk_apikeys_live_use_count(PG_FUNCTION_ARGS)
{
	int64		last_used_at;
	int64		use_count;

	if (!copy_for_caller(fcinfo, &last_used_at, &use_count))
		PG_RETURN_NULL();
	PG_RETURN_INT64(use_count);
}

/*
 * rk_apikeys._live_usage() → setof (key_id, last_used_at, use_count)
 *
 * The same of all keys that the caller may see, but for those of which the
 * tables tell as much.
 */
Datum
rk_apikeys_live_usage(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Viewer		viewer;
	UsageCopy  *copies;
	int			count;

	InitMaterializedSRF(fcinfo, 0);
	if (result->setDesc->natts != LIVE_COLUMNS)
		elog(ERROR, "_live_usage returns another row than expected");
	if (!usage_is_shared() || !find_viewer(&viewer))
		return (Datum) 0;
	copies = usage_unseen(MyDatabaseId, viewer.all ? NULL : &viewer.tenant,
						  GetCurrentTransactionStartTimestamp(), &count);
	for (int i = 0; i < count; i++)
	{
		Datum		values[LIVE_COLUMNS];
		bool		nulls[LIVE_COLUMNS] = {false, false, false};

		CHECK_FOR_INTERRUPTS();
		values[0] = CStringGetTextDatum(copies[i].key_id);
		values[1] = TimestampTzGetDatum(copies[i].last_used_at);
		nulls[1] = copies[i].last_used_at == 0;
		values[2] = Int64GetDatum(copies[i].use_count);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
		pfree(DatumGetPointer(values[0]));
	}
	pfree(copies);
	return (Datum) 0;
}
