/*
 * usage_live.c
 *		What shared memory knows of a key's use, for SQL.
 *
 * Trust: anybody who reads the views can call these directly, so they answer
 * as the tables' policies would.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "caller.h"
#include "compat.h"
#include "principal.h"
#include "usage.h"
#include "usage_shared.h"

static UsageEntry *find_for_caller(FunctionCallInfo fcinfo, LWLock **lock);

PG_FUNCTION_INFO_V1(rk_apikeys_live_last_used_at);
PG_FUNCTION_INFO_V1(rk_apikeys_live_use_count);

/*
 * The entry that an SQL function asks for by key id, if the caller may see it:
 * a key of its own tenant, or any for the roles of all tenants, as the tables'
 * policies have it.
 */
static UsageEntry *
find_for_caller(FunctionCallInfo fcinfo, LWLock **lock)
{
	text	   *key_id = PG_GETARG_TEXT_PP(0);
	UsageKey	id;
	uint32		hash;
	UsageEntry *entry;
	char	   *tenant;
	uint64		tenant_hash;
	bool		all;

	if (!usage_is_shared() || VARSIZE_ANY_EXHDR(key_id) != TOKEN_KEY_ID_LEN ||
		!principal_may_manage())
		return NULL;
	all = caller_sees_all_tenants();
	tenant = caller_tenant();
	if (tenant == NULL)
		return NULL;
	tenant_hash = caller_tenant_hash(tenant);
	pfree(tenant);

	id.database = MyDatabaseId;
	memcpy(id.key_id, VARDATA_ANY(key_id), TOKEN_KEY_ID_LEN);
	hash = get_hash_value(usage_entries, &id);
	*lock = &usage_locks[hash % USAGE_PARTITIONS].lock;
	LWLockAcquire(*lock, LW_SHARED);
	entry = hash_search_with_hash_value(usage_entries, &id, hash, HASH_FIND, NULL);
	if (entry != NULL && (all || entry->tenant == tenant_hash))
		return entry;
	LWLockRelease(*lock);
	return NULL;
}

/*
 * rk_apikeys._live_last_used_at(key_id text) → timestamptz
 *
 * The last use that shared memory knows of; NULL if none, or not the caller's.
 */
Datum
rk_apikeys_live_last_used_at(PG_FUNCTION_ARGS)
{
	LWLock	   *lock;
	UsageEntry *entry = find_for_caller(fcinfo, &lock);
	TimestampTz last;

	if (entry == NULL)
		PG_RETURN_NULL();
	last = (TimestampTz) pg_atomic_read_u64(&entry->last_used_at);
	LWLockRelease(lock);
	if (last == 0)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(last);
}

/* rk_apikeys._live_use_count(key_id text) → bigint, likewise. */
Datum
rk_apikeys_live_use_count(PG_FUNCTION_ARGS)
{
	LWLock	   *lock;
	UsageEntry *entry = find_for_caller(fcinfo, &lock);
	int64		count;

	if (entry == NULL)
		PG_RETURN_NULL();
	count = (int64) pg_atomic_read_u64(&entry->use_count);
	LWLockRelease(lock);
	PG_RETURN_INT64(count);
}
