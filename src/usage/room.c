/*
 * room.c
 *		Room for more entries, when the table is nearly full.
 *
 * An entry that is not pending can be made anew from the tables, so it can be
 * removed.  A backend that needs a place removes one entry by itself.  The launcher
 * removes more, so that places are free, and does it at once when most entries
 * are pending.
 *
 * But the bucket of a rate limit is nowhere else.  So it stays until
 * the limit is full again: the entry is held.  A sweep ends the hold of a bucket
 * from which no verify can take any more.  A bucket with reserved units stays
 * too.
 *
 * Locking: as record.c says.
 */
#include "postgres.h"

#include "access/stratnum.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "base/stats.h"
#include "compat.h"
#include "usage/shared.h"

/* Milliseconds after which a sweep ends; the next one continues. */
#define SWEEP_BUDGET_MS 100

/* Keys after which a sweep looks at the clock. */
#define SWEEP_CHECK_EVERY 64

/*
 * How far a backend looks for a place: words of the map, which has a bit for each
 * pending entry, and entries.
 */
#define GIVE_WAY_WORDS 64
#define GIVE_WAY_ENTRIES 64

/* Which entries the launcher removes. */
typedef struct Evicted
{
	bool		buckets;		/* or keys */
	TimestampTz now;
} Evicted;

/* Who needs a place. */
typedef struct Taker
{
	bool		any;			/* may take an entry of any tenant */
	Oid			database;
	uint64		tenant;
	TimestampTz now;
} Taker;

/* Whose held entries are wanted. */
typedef struct Held
{
	Oid			database;		/* InvalidOid: of any */
	TimestampTz now;
} Held;

/* The extension's tables that say whether a bucket is over. */
typedef struct SweptTables
{
	Oid			api_keys;
	Oid			limits;
} SweptTables;

static bool may_go(UsageEntry *entry, TimestampTz now);
static bool may_take(const Taker *taker, UsageEntry *entry);
static bool take_place(const Taker *taker, UsageEntry *entry);
static bool is_evictable(UsageEntry *entry, const void *arg);
static bool is_held(UsageEntry *entry, const void *arg);
static Oid	lock_table(const char *name, Oid extension);
static void sweep(const SweptTables *tables);
static bool is_over(const SweptTables *tables, const UsageEntry *bucket);
static bool limit_exists(Oid limits, const uint8 *limit_id);
static void end_hold(const UsageEntry *copy);

/*
 * Return whether an entry is the bucket of a rate limit that is not full.  A walk
 * calls this without a lock, so the mutex is not taken.
 */
bool
usage_is_held(UsageEntry *entry, TimestampTz now)
{
	return usage_is_rate_bucket(entry) &&
		!limiter_is_full(&entry->bucket.limiter, now);
}

/* Return whether an entry that is not pending may be removed. */
static bool
may_go(UsageEntry *entry, TimestampTz now)
{
	return !usage_is_bucket(entry->key.key_id) ||
		(*(volatile int64 *) &entry->bucket.reserved == 0 &&
		 !usage_is_held(entry, now));
}

/* UsageFilter.  arg: Evicted. */
static bool
is_evictable(UsageEntry *entry, const void *arg)
{
	const Evicted *evicted = arg;

	return usage_is_bucket(entry->key.key_id) == evicted->buckets &&
		(!usage_is_pending(entry) || usage_is_discarded()) &&
		may_go(entry, evicted->now);
}

/*
 * Remove an entry that gives its place to another one: of the same tenant, if the
 * tenant may not take another's.  Look at few entries, and take no bucket if a
 * key is among them.  Return whether an entry was removed.  The caller holds no
 * lock.
 */
bool
usage_give_way(Oid database, uint64 tenant)
{
	Taker		taker = {
		.any = usage_hash_may_take(database, tenant), .database = database,
		.tenant = tenant, .now = GetCurrentTimestamp()
	};
	UsageEntry *bucket = NULL;
	UsageEntry *entry;
	UsageHand	hand;

	usage_hash_take_hand(&hand, GIVE_WAY_WORDS);
	for (int i = 0; i < GIVE_WAY_ENTRIES &&
		 (entry = usage_hash_next_clean(&hand)) != NULL; i++)
	{
		if (!may_take(&taker, entry))
			continue;
		if (!usage_is_bucket(entry->key.key_id) && take_place(&taker, entry))
			return true;
		bucket = entry;
	}
	return bucket != NULL && take_place(&taker, bucket);
}

/* Return whether an entry may give way; without a lock, and again with it. */
static bool
may_take(const Taker *taker, UsageEntry *entry)
{
	return OidIsValid(*(volatile Oid *) &entry->key.database) &&
		!usage_is_pending(entry) && may_go(entry, taker->now) &&
		(taker->any || (entry->key.database == taker->database &&
						entry->tenant == taker->tenant));
}

/* Remove an entry, unless it has changed or its partition is locked. */
static bool
take_place(const Taker *taker, UsageEntry *entry)
{
	uint32		place = *(volatile uint32 *) &entry->place;
	LWLock	   *lock = &usage_locks[place % USAGE_PARTITIONS].lock;
	bool		taken;

	if (!LWLockConditionalAcquire(lock, LW_EXCLUSIVE))
		return false;
	/* The slot may hold another entry by now. */
	taken = entry->place == place && may_take(taker, entry);
	if (taken)
		usage_hash_remove(entry);
	LWLockRelease(lock);
	return taken;
}

/* UsageFilter.  arg: Held. */
static bool
is_held(UsageEntry *entry, const void *arg)
{
	const Held *held = arg;

	return (!OidIsValid(held->database) || entry->key.database == held->database) &&
		usage_is_held(entry, held->now);
}

/*
 * Make room when the table is nearly full.  Remove entries that are not pending
 * and not held, keys before buckets, at most a quarter of the table.  A standby without a
 * primary_conninfo can write nothing, so there pending entries are removed too,
 * and counted as dropped.  Each call continues where the last one ended.
 */
void
usage_evict(void)
{
	static uint32 from = 0;
	int			room = Max(usage_shared->max_tracked / 4, 1);
	UsageKey   *keys;
	int			count = 0;
	int			dropped = 0;
	Evicted		evicted = {.now = GetCurrentTimestamp()};
	UsageEntry *entry;
	UsageWalk	walk = {.wanted = is_evictable, .arg = &evicted, .at = from};

	if (!usage_hash_is_filled(USAGE_ROOM_EIGHTHS))
		return;
	keys = palloc_extended(mul_size(room, sizeof(UsageKey)), MCXT_ALLOC_HUGE);
	for (int turn = 0; turn < 3; turn++)
	{
		evicted.buckets = turn == 2;
		while (count < room && (entry = usage_hash_next(&walk)) != NULL)
		{
			keys[count++] = entry->key;
			LWLockRelease(walk.lock);
		}
		if (count < room)
			walk.at = 0;
	}
	from = walk.at;
	for (int i = 0; i < count; i++)
	{
		UsageTarget target;

		usage_hash_target(&target, keys[i].database, keys[i].key_id);
		LWLockAcquire(target.lock, LW_EXCLUSIVE);
		entry = usage_hash_find(&target);
		evicted.buckets = usage_is_bucket(keys[i].key_id);
		if (entry != NULL && is_evictable(entry, &evicted))
		{
			if (usage_is_pending(entry) && !usage_is_bucket(entry->key.key_id))
				usage_lost_note(entry->key.database, entry->key.key_id,
								(TimestampTz) pg_atomic_read_u64(&entry->last_used_at));
			dropped += usage_is_pending(entry);
			usage_hash_remove(entry);
		}
		LWLockRelease(target.lock);
	}
	stats_count_many(STATS_DROPPED, dropped);
	pfree(keys);
}

/*
 * Return the databases with held entries, palloc'd, if the table is nearly full.
 * A worker in each sweeps them.
 */
List *
usage_crowded_databases(void)
{
	List	   *databases = NIL;
	Held		held = {.now = GetCurrentTimestamp()};
	UsageEntry *entry;
	UsageWalk	walk = {.wanted = is_held, .arg = &held};

	if (!usage_hash_is_filled(USAGE_ROOM_EIGHTHS))
		return NIL;
	while ((entry = usage_hash_next(&walk)) != NULL)
	{
		Oid			database = entry->key.database;

		LWLockRelease(walk.lock);
		databases = list_append_unique_oid(databases, database);
	}
	return databases;
}

/*
 * In a worker, when the table is nearly full: end the hold of this database's
 * entries whose keys are over, or throw all away if the extension is gone.
 */
void
usage_sweep(void)
{
	Oid			extension;
	SweptTables tables;

	if (!usage_hash_is_filled(USAGE_ROOM_EIGHTHS))
		return;
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	extension = get_extension_oid("rk_apikeys", true);
	if (!OidIsValid(extension))
		usage_forget_database(MyDatabaseId);
	else
	{
		tables.api_keys = lock_table("api_keys", extension);
		tables.limits = lock_table("limits", extension);
		/* SQL of an earlier release has no limits. */
		if (OidIsValid(tables.api_keys) &&
			(OidIsValid(tables.limits) || !OidIsValid(store_table("limits", true))))
			sweep(&tables);
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/*
 * Return a table of the extension, locked; InvalidOid if the table is missing, is
 * another's, or is locked.  Do not wait, because DROP EXTENSION locks the same
 * objects.
 */
static Oid
lock_table(const char *name, Oid extension)
{
	Oid			table = store_table(name, true);

	if (OidIsValid(table) &&
		ConditionalLockRelationOid(table, AccessShareLock) &&
		store_table(name, true) == table &&
		getExtensionOfObject(RelationRelationId, table) == extension)
		return table;
	return InvalidOid;
}

/* Look at held entries, from where the last sweep ended, once around. */
static void
sweep(const SweptTables *tables)
{
	TimestampTz start = GetCurrentTimestamp();
	Held		held = {.database = MyDatabaseId, .now = start};
	UsageWalk	walk = {
		.wanted = is_held, .arg = &held,
		.at = pg_atomic_read_u32(&usage_shared->sweep_at)
	};
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "rk_apikeys sweep",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext before = MemoryContextSwitchTo(context);
	UsageEntry *entry;
	int			count = 0;
	bool		in_time = true;

	for (int turn = 0; turn < 2 && in_time; turn++)
	{
		while (in_time && (entry = usage_hash_next(&walk)) != NULL)
		{
			UsageEntry	copy = *entry;

			LWLockRelease(walk.lock);
			if (is_over(tables, &copy))
				end_hold(&copy);
			MemoryContextReset(context);
			CHECK_FOR_INTERRUPTS();
			if (++count % SWEEP_CHECK_EVERY == 0)
				in_time = !TimestampDifferenceExceeds(start, GetCurrentTimestamp(),
													  SWEEP_BUDGET_MS);
		}
		if (in_time)
			walk.at = 0;
	}
	pg_atomic_write_u32(&usage_shared->sweep_at, walk.at);
	MemoryContextSwitchTo(before);
}

/*
 * Return whether no verify can take from a bucket, as the tables are now: the
 * limit is gone, or no key of its family can be valid.  A disabled key can be
 * enabled.  An expired key can get a later end, but then it may begin with a full
 * limit, as a new key would.
 */
static bool
is_over(const SweptTables *tables, const UsageEntry *bucket)
{
	static const uint8 own[USAGE_LIMIT_ID_LEN] = {0};

	return (memcmp(bucket->limit_id, own, sizeof(own)) != 0 &&
			!limit_exists(tables->limits, bucket->limit_id)) ||
		(bucket->family[0] != '\0' &&
		 !store_family_lives(tables->api_keys, bucket->family));
}

static bool
limit_exists(Oid limits, const uint8 *limit_id)
{
	Relation	rel = table_open(limits, NoLock);
	ScanKeyData key;
	bool		found;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_UUID_EQ,
				UUIDPGetDatum((const pg_uuid_t *) limit_id));
	found = store_has_row(rel, RelationGetPrimaryKeyIndex(rel, false), &key);
	table_close(rel, NoLock);
	return found;
}

/*
 * Remove a held bucket, except if a verify has taken from it since it was copied,
 * or has units reserved.
 */
static void
end_hold(const UsageEntry *copy)
{
	UsageTarget target;
	UsageEntry *entry;

	usage_hash_target(&target, copy->key.database, copy->key.key_id);
	LWLockAcquire(target.lock, LW_EXCLUSIVE);
	entry = usage_hash_find(&target);
	if (entry != NULL && entry->bucket.reserved == 0 &&
		entry->bucket.limiter.arrival == copy->bucket.limiter.arrival)
		usage_hash_remove(entry);
	LWLockRelease(target.lock);
}
