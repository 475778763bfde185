/*
 * look.c
 *		What shared memory has of keys' use, for the views.
 *
 * Trust: these functions answer for any key.  Their callers (key/views.c) decide
 * whose keys the session may see, and name the tenant.
 *
 * Locking: as record.c says.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "usage/shared.h"

static uint64 hash_tenant(const char *tenant);
static bool was_flushed_since(TimestampTz taken);

/*
 * Look at the entry of a key of this database (TOKEN_KEY_ID_LEN bytes).  Return
 * false if there is no such entry, or no shared memory.
 */
bool
usage_look(const char *key_id, UsageLook *look)
{
	UsageTarget target;
	UsageEntry *entry;

	if (!usage_is_shared() || usage_is_bucket(key_id))
		return false;
	usage_hash_target(&target, MyDatabaseId, key_id);
	LWLockAcquire(target.lock, LW_SHARED);
	entry = usage_hash_find(&target);
	if (entry != NULL)
	{
		memcpy(look->key_id, key_id, TOKEN_KEY_ID_LEN);
		look->key_id[TOKEN_KEY_ID_LEN] = '\0';
		strlcpy(look->environment, entry->environment, sizeof(look->environment));
		look->tenant = entry->tenant;
		look->last_used_at = (TimestampTz) pg_atomic_read_u64(&entry->last_used_at);
		look->use_count = (int64) pg_atomic_read_u64(&entry->use_count);
		SpinLockAcquire(&entry->mutex);
		look->has_addr = entry->has_addr;
		look->addr = entry->addr;
		SpinLockRelease(&entry->mutex);
	}
	LWLockRelease(target.lock);
	return entry != NULL;
}

/* Return whether usage_look() has looked at a key of that tenant. */
bool
usage_look_is_of(const UsageLook *look, const char *tenant)
{
	return look->tenant == hash_tenant(tenant);
}

/*
 * Return the entries of this database, palloc'd, that a snapshot taken at that
 * time or later may not see in key_usage: those of the tenant, or (NULL) of all
 * tenants.
 */
UsageLook *
usage_look_all(const char *tenant, TimestampTz taken, int *count)
{
	uint64		hash = tenant == NULL ? 0 : hash_tenant(tenant);
	UsageWanted wanted = {
		.database = MyDatabaseId, .keys = true, .tenant = tenant == NULL ? NULL : &hash
	};
	bool		all;
	UsageCopy  *copies;
	UsageLook  *looks;

	*count = 0;
	if (!usage_is_shared())
		return NULL;
	/* Counts that another server writes come back by replication, later. */
	all = usage_goes_to_primary() || was_flushed_since(taken);
	copies = usage_copy_entries(&wanted, !all, USAGE_CLEAN, count);
	/* A flush that ended meanwhile has made the entries it wrote clean. */
	pg_memory_barrier();
	if (!all && was_flushed_since(taken))
	{
		pfree(copies);
		copies = usage_copy_entries(&wanted, false, USAGE_CLEAN, count);
	}
	looks = palloc_extended(mul_size(Max(*count, 1), sizeof(UsageLook)),
							MCXT_ALLOC_HUGE);
	for (int i = 0; i < *count; i++)
	{
		memcpy(looks[i].key_id, copies[i].key_id, sizeof(looks[i].key_id));
		strlcpy(looks[i].environment, copies[i].environment,
				sizeof(looks[i].environment));
		looks[i].last_used_at = copies[i].last_used_at;
		looks[i].use_count = copies[i].use_count;
	}
	pfree(copies);
	return looks;
}

/* Totals over all entries; there must be shared memory. */
void
usage_totals(UsageTotals *totals)
{
	UsageWalk	walk = {.pending = true};

	memset(totals, 0, sizeof(UsageTotals));
	totals->tracked = pg_atomic_read_u32(&usage_shared->tracked);
	totals->max_tracked = usage_shared->max_tracked;
	totals->last_flush_at = (TimestampTz) pg_atomic_read_u64(&usage_shared->last_flush_at);
	totals->pending_since = (TimestampTz) pg_atomic_read_u64(&usage_shared->pending_since);
	while (usage_hash_next(&walk) != NULL)
	{
		totals->pending++;
		LWLockRelease(walk.lock);
	}
}

/*
 * Return the milliseconds since the last round began that wrote all; 0 if
 * nothing is pending.
 */
int64
usage_lag(const UsageTotals *totals)
{
	return totals->pending == 0 ? 0 :
		TimestampDifferenceMilliseconds(totals->pending_since,
										GetCurrentTimestamp());
}

/* What keeps use from being written; there must be shared memory. */
void
usage_state(UsageState *state)
{
	state->has_launcher = pg_atomic_read_u32(&usage_shared->launcher) != 0;
	state->has_worker = pg_atomic_read_u32(&usage_shared->no_worker) == 0;
	state->reaches_primary = pg_atomic_read_u32(&usage_shared->failing) == 0;
}

/* Return the hash by which record.c notes an entry's tenant. */
static uint64
hash_tenant(const char *tenant)
{
	return hash_any_extended((const unsigned char *) tenant, strlen(tenant), 0);
}

/*
 * Return whether a flush committed at that time or later.  A flush sets the time
 * after its commit and before it makes entries clean.
 */
static bool
was_flushed_since(TimestampTz taken)
{
	return (TimestampTz) pg_atomic_read_u64(&usage_shared->last_flush_at) >= taken;
}
