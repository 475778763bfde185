/*
 * room.c
 *		Room for more entries, when the table is nearly full.
 *
 * An entry that is not pending can be made anew from key_usage, so it can be
 * removed.  But an entry also has its key's rate limit, which is nowhere else.
 * So an entry stays until its limit is full again: the entry is held.  A sweep
 * ends the hold of a key of which no verify can be valid any more.
 *
 * Locking: as record.c says.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/stats.h"
#include "compat.h"
#include "usage/shared.h"

/* Milliseconds after which a sweep ends; the next one continues. */
#define SWEEP_BUDGET_MS 100

/* Keys after which a sweep looks at the clock. */
#define SWEEP_CHECK_EVERY 64

/* Whose held entries are wanted. */
typedef struct Held
{
	Oid			database;		/* InvalidOid: of any */
	uint64		now_ns;			/* as the limiter counts it */
} Held;

static bool is_evictable(UsageEntry *entry, const void *arg);
static bool is_held(UsageEntry *entry, const void *arg);
static void sweep(Oid table);
static bool is_over(Oid table, const char *key_id);
static void end_hold(Oid database, const char *key_id, uint64 arrival);

static uint64
now_in_ns(void)
{
	return (uint64) GetCurrentTimestamp() * 1000;
}

/* UsageFilter.  arg: the time in nanoseconds, as the limiter counts it. */
static bool
is_evictable(UsageEntry *entry, const void *arg)
{
	return (!usage_is_pending(entry) || usage_is_discarded()) &&
		pg_atomic_read_u64(&entry->arrival) <= *(const uint64 *) arg;
}

/* UsageFilter.  arg: Held. */
static bool
is_held(UsageEntry *entry, const void *arg)
{
	const Held *held = arg;

	return pg_atomic_read_u64(&entry->arrival) > held->now_ns &&
		(!OidIsValid(held->database) || entry->key.database == held->database);
}

/*
 * Make room when the table is nearly full.  Remove entries that are not pending
 * and not held, at most a quarter of the table.  A standby without a
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
	uint64		now_ns = now_in_ns();
	UsageEntry *entry;
	UsageWalk	walk = {.wanted = is_evictable, .arg = &now_ns, .at = from};

	if (!usage_hash_is_filled(USAGE_ROOM_EIGHTHS))
		return;
	keys = palloc_extended(mul_size(room, sizeof(UsageKey)), MCXT_ALLOC_HUGE);
	for (int turn = 0; turn < 2; turn++)
	{
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
		if (entry != NULL && is_evictable(entry, &now_ns))
		{
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
	Held		held = {.now_ns = now_in_ns()};
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
	Oid			table;

	if (!usage_hash_is_filled(USAGE_ROOM_EIGHTHS))
		return;
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	extension = get_extension_oid("rk_apikeys", true);
	table = store_table("api_keys", true);
	/* Do not wait, because DROP EXTENSION locks the same objects. */
	if (!OidIsValid(extension))
		usage_forget_database(MyDatabaseId);
	else if (OidIsValid(table) &&
			 ConditionalLockRelationOid(table, AccessShareLock) &&
			 store_table("api_keys", true) == table &&
			 getExtensionOfObject(RelationRelationId, table) == extension)
		sweep(table);
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/* Look at held entries, from where the last sweep ended, once around. */
static void
sweep(Oid table)
{
	TimestampTz start = GetCurrentTimestamp();
	Held		held = {.database = MyDatabaseId, .now_ns = now_in_ns()};
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
			UsageKey	key = entry->key;
			uint64		arrival = pg_atomic_read_u64(&entry->arrival);

			LWLockRelease(walk.lock);
			if (is_over(table, key.key_id))
				end_hold(key.database, key.key_id, arrival);
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
 * Return whether no verify of a key can be valid, as the key is now.  A disabled
 * key can be enabled.  An expired key can get a later end, but then it may begin
 * with a full limit, as a new key would.
 */
static bool
is_over(Oid table, const char *key_id)
{
	StoredPlace nowhere = {.buffer = InvalidBuffer};
	StoredKey  *key = store_find(table, key_id, &nowhere);
	TimestampTz now = GetCurrentTimestamp();

	return key == NULL || key->revoked || now >= key->expires_at ||
		now >= key->grace_until;
}

/*
 * End the hold of a key's entry, except if the key was used after the time of
 * that arrival.  A pending entry waits for its flush.
 */
static void
end_hold(Oid database, const char *key_id, uint64 arrival)
{
	UsageTarget target;
	UsageEntry *entry;

	usage_hash_target(&target, database, key_id);
	LWLockAcquire(target.lock, LW_EXCLUSIVE);
	entry = usage_hash_find(&target);
	if (entry != NULL && pg_atomic_read_u64(&entry->arrival) == arrival)
	{
		if (usage_is_pending(entry))
			pg_atomic_write_u64(&entry->arrival, 0);
		else
			usage_hash_remove(entry);
	}
	LWLockRelease(target.lock);
}
