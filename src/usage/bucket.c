/*
 * bucket.c
 *		The buckets of limits: what was taken from a limit's units.
 *
 * A bucket is an entry of the table of hash.c, beside the keys' entries.  The
 * entry's key id is a hash of the limit, the family of keys, and the time since
 * which the bucket counts.  So a reset, and each period of a quota, has a bucket
 * of its own, and the old one is written and then goes.  The first bit of the
 * hash is set, so it is no key's id.  The other 95 bits keep two buckets apart.
 *
 * A rate limit's bucket lives in memory alone.  A quota's bucket counts units as
 * a key's entry counts uses: a new one begins with the units of limit_usage, and
 * a flush writes what was counted.  See taken.c.
 *
 * A verify that takes from several limits, or charges at COMMIT, first reserves
 * the units.  Reserved units count against the limit, but no flush writes them.
 * Later they are used or returned.  So a refusal, a rollback and a lost
 * session never let more through than the limit.  They can refuse a verify while
 * units are reserved that are returned later.
 *
 * Locking: the entry's partition, as record.c says, and then the entry's mutex.
 * An entry with reserved units is not evicted.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/xact.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"
#include "usage/shared.h"

StaticAssertDecl(USAGE_LIMIT_ID_LEN == UUID_LEN, "a limit's id is a uuid");

/* Columns of rk_apikeys.limit_usage, in the order of its CREATE TABLE. */
enum UnitsColumn
{
	UNITS_LIMIT_ID = 1,
	UNITS_FAMILY,
	UNITS_PERIOD_START,
	UNITS_UNITS,
	UNITS_TENANT
};

/* What makes a bucket another one; without padding, because it is hashed. */
typedef struct BucketName
{
	TimestampTz since;
	uint8		limit_id[USAGE_LIMIT_ID_LEN];
	char		family[TOKEN_KEY_ID_LEN];	/* zeros: shared */
	uint32		is_quota;
} BucketName;

StaticAssertDecl(sizeof(BucketName) == 8 + USAGE_LIMIT_ID_LEN + TOKEN_KEY_ID_LEN + 4,
				 "a bucket's name has no padding");

/* A bucket whose entry is made. */
typedef struct NewBucket
{
	const UsageBucket *bucket;
	int64		units;			/* that the table has */
	uint64		tenant;			/* of the row; a hash */
} NewBucket;

static LimitResult take(const UsageBucket *bucket, int64 cost, TimestampTz now,
						UsageLevel *level, BucketCharge *charge);
static void hash_name(const BucketName *name, char *key_id);
static bool is_quota(const UsageBucket *bucket);
static void read_units(void *arg);
static void make_bucket(UsageEntry *entry, void *arg);
static void set_level(UsageLevel *level, const UsageBucket *bucket,
					  const BucketState *state, int64 used, TimestampTz now);

/* Set where the bucket's entry is; there must be shared memory. */
void
usage_bucket_aim(UsageBucket *bucket)
{
	BucketName	name = {.since = bucket->since, .is_quota = is_quota(bucket)};
	char		key_id[TOKEN_KEY_ID_LEN];

	memcpy(name.limit_id, bucket->limit_id, sizeof(name.limit_id));
	memcpy(name.family, bucket->family, strlen(bucket->family));
	hash_name(&name, key_id);
	usage_hash_target(&bucket->target, MyDatabaseId, key_id);
}

/* Set the key id of a copy of a quota that another server has sent. */
void
usage_bucket_name(UsageCopy *copy)
{
	BucketName	name = {.since = copy->since, .is_quota = true};

	memcpy(name.limit_id, copy->limit_id, sizeof(name.limit_id));
	memcpy(name.family, copy->family, strlen(copy->family));
	hash_name(&name, copy->key_id);
	copy->key_id[TOKEN_KEY_ID_LEN] = '\0';
}

/* Set the key id of a bucket's entry. */
static void
hash_name(const BucketName *name, char *key_id)
{
	uint64		hashes[2];

	hashes[0] = hash_bytes_extended((const unsigned char *) name, sizeof(*name), 0);
	hashes[1] = hash_bytes_extended((const unsigned char *) name, sizeof(*name), hashes[0] ^ 1);
	memcpy(key_id, hashes, TOKEN_KEY_ID_LEN);
	key_id[0] |= HIGHBIT;
}

/*
 * Take a cost, which is at least 1 and at most the units.  Set *level, unless the
 * result is LIMIT_UNAVAILABLE.
 */
LimitResult
usage_bucket_take(const UsageBucket *bucket, int64 cost, TimestampTz now,
				  UsageLevel *level)
{
	return take(bucket, cost, now, level, NULL);
}

/* Reserve a cost, likewise.  If it passes, set *charge. */
LimitResult
usage_bucket_reserve(const UsageBucket *bucket, int64 cost, TimestampTz now,
					 UsageLevel *level, BucketCharge *charge)
{
	return take(bucket, cost, now, level, charge);
}

/* Take or, if charge is not NULL, reserve.  The level is worked out after the locks. */
static LimitResult
take(const UsageBucket *bucket, int64 cost, TimestampTz now, UsageLevel *level,
	 BucketCharge *charge)
{
	NewBucket	new = {.bucket = bucket};
	UsageSeed	seed = {read_units, make_bucket, &new};
	UsageEntry *entry = usage_find_or_make(&bucket->target, bucket->tenant, &seed);
	BucketState state;
	int64		used;
	int64		wait = 0;
	LimiterTake taken = {0};
	bool		passed;

	if (entry == NULL)
		return LIMIT_UNAVAILABLE;
	SpinLockAcquire(&entry->mutex);
	used = (int64) pg_atomic_read_u64(&entry->use_count);
	if (is_quota(bucket))
		/* Another server's units may have brought it above the quota. */
		passed = used + entry->bucket.reserved <= bucket->rate.units - cost;
	else
	{
		wait = limiter_take(&entry->bucket.limiter, bucket->rate, cost, now, &taken);
		passed = wait == 0;
	}
	if (passed && charge != NULL)
		entry->bucket.reserved += cost;
	else if (passed && is_quota(bucket))
		pg_atomic_write_u64(&entry->use_count, used += cost);
	state = entry->bucket;
	SpinLockRelease(&entry->mutex);
	if (passed && charge == NULL && is_quota(bucket))
		usage_hash_set_dirty(entry);
	LWLockRelease(bucket->target.lock);

	if (passed && charge != NULL)
	{
		charge->target = bucket->target;
		charge->cost = cost;
		charge->is_quota = is_quota(bucket);
		charge->serial = state.serial;
		charge->take = taken;
	}
	set_level(level, bucket, &state, used, now);
	level->wait = wait;
	return passed ? LIMIT_PASSED : LIMIT_REACHED;
}

/*
 * Use a charge's units.  Does not raise.  The entry is missing only if the limit,
 * or the extension, was dropped meanwhile.
 */
void
usage_bucket_use(const BucketCharge *charge)
{
	UsageEntry *entry;

	LWLockAcquire(charge->target.lock, LW_SHARED);
	entry = usage_hash_find(&charge->target);
	if (entry != NULL)
	{
		SpinLockAcquire(&entry->mutex);
		if (entry->bucket.serial == charge->serial)
			entry->bucket.reserved -= charge->cost;
		if (charge->is_quota)
			pg_atomic_write_u64(&entry->use_count,
								pg_atomic_read_u64(&entry->use_count) + charge->cost);
		SpinLockRelease(&entry->mutex);
		if (charge->is_quota)
			usage_hash_set_dirty(entry);
	}
	LWLockRelease(charge->target.lock);
}

/*
 * Return a charge's units.  Return the nanoseconds that a rate limit was given
 * back.  Does not raise.
 */
int64
usage_bucket_return(const BucketCharge *charge, TimestampTz now)
{
	UsageEntry *entry;
	int64		given_back = 0;

	LWLockAcquire(charge->target.lock, LW_SHARED);
	entry = usage_hash_find(&charge->target);
	if (entry != NULL)
	{
		SpinLockAcquire(&entry->mutex);
		if (entry->bucket.serial == charge->serial)
		{
			entry->bucket.reserved -= charge->cost;
			if (!charge->is_quota)
				given_back = limiter_give_back(&entry->bucket.limiter, &charge->take, now);
		}
		SpinLockRelease(&entry->mutex);
	}
	LWLockRelease(charge->target.lock);
	return given_back;
}

/*
 * Set *level to what a bucket has.  Without an entry a rate limit is full, and a
 * quota has what the table has.  What another tenant has is not looked at, because
 * the caller may have made up the bucket.
 */
void
usage_bucket_look(const UsageBucket *bucket, TimestampTz now, UsageLevel *level)
{
	NewBucket	new = {.bucket = bucket};
	BucketState state;
	UsageEntry *entry = NULL;
	int64		used = 0;

	memset(&state, 0, sizeof(state));
	if (usage_is_shared())
	{
		LWLockAcquire(bucket->target.lock, LW_SHARED);
		entry = usage_hash_find(&bucket->target);
		if (entry != NULL && entry->tenant == bucket->tenant)
		{
			SpinLockAcquire(&entry->mutex);
			state = entry->bucket;
			used = (int64) pg_atomic_read_u64(&entry->use_count);
			SpinLockRelease(&entry->mutex);
		}
		LWLockRelease(bucket->target.lock);
	}
	if (entry == NULL)
	{
		read_units(&new);
		if (new.tenant == bucket->tenant)
			used = new.units;
	}
	set_level(level, bucket, &state, used, now);
}

static bool
is_quota(const UsageBucket *bucket)
{
	return bucket->rate.window == 0;
}

/* UsageSeed: the units that the table has of a quota; 0 without a row. */
static void
read_units(void *arg)
{
	NewBucket  *new = arg;
	Oid			table = is_quota(new->bucket) ? store_table("limit_usage", true) : InvalidOid;
	Relation	rel = OidIsValid(table) ? try_table_open(table, AccessShareLock) : NULL;
	Oid			index;
	ScanKeyData keys[3];
	Snapshot	snapshot;
	SysScanDesc scan;
	HeapTuple	row;

	new->units = 0;
	if (rel == NULL)
		return;
	ScanKeyInit(&keys[0], UNITS_LIMIT_ID, BTEqualStrategyNumber, F_UUID_EQ,
				UUIDPGetDatum((pg_uuid_t *) new->bucket->limit_id));
	ScanKeyInit(&keys[1], UNITS_FAMILY, BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(new->bucket->family));
	ScanKeyInit(&keys[2], UNITS_PERIOD_START, BTEqualStrategyNumber, F_TIMESTAMPTZ_EQ,
				TimestampTzGetDatum(new->bucket->since));
	/* In parallel mode no snapshot can be taken; then a view looks. */
	snapshot = RegisterSnapshot(IsInParallelMode() ? GetActiveSnapshot() : GetLatestSnapshot());
	index = RelationGetPrimaryKeyIndex(rel, false);
	scan = systable_beginscan(rel, index, OidIsValid(index), snapshot, 3, keys);
	if (HeapTupleIsValid(row = systable_getnext(scan)))
	{
		TupleDesc	desc = RelationGetDescr(rel);
		bool		isnull;
		Datum		tenant = heap_getattr(row, UNITS_TENANT, desc, &isnull);

		new->tenant = usage_tenant(DatumGetTextPP(tenant));
		new->units = DatumGetInt64(heap_getattr(row, UNITS_UNITS, desc, &isnull));
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
}

static void
make_bucket(UsageEntry *entry, void *arg)
{
	const NewBucket *new = arg;

	/* For usage_forget_gone(): the limit may not be committed yet. */
	pg_atomic_write_u64(&entry->last_used_at, (uint64) GetCurrentTimestamp());
	pg_atomic_write_u64(&entry->use_count, (uint64) new->units);
	entry->known_uses = new->units;
	entry->since = new->bucket->since;
	memcpy(entry->limit_id, new->bucket->limit_id, USAGE_LIMIT_ID_LEN);
	strlcpy(entry->family, new->bucket->family, sizeof(entry->family));
	entry->is_quota = is_quota(new->bucket);
	entry->bucket.serial = pg_atomic_add_fetch_u64(&usage_shared->serial, 1);
}

/* Set *level to what a bucket has; used: the units of a quota. */
static void
set_level(UsageLevel *level, const UsageBucket *bucket, const BucketState *state,
		  int64 used, TimestampTz now)
{
	int64		units = bucket->rate.units;

	memset(level, 0, sizeof(*level));
	if (is_quota(bucket))
	{
		level->used = used + state->reserved;
		level->remaining = Max(units - level->used, 0);
	}
	else
	{
		int64		ahead = limiter_ahead(state->limiter, bucket->rate, now);

		level->remaining = limiter_remaining(bucket->rate, ahead);
		level->used = units - level->remaining;
		level->resets_at = limiter_resets_at(now, ahead);
	}
}
