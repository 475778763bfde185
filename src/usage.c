/*
 * usage.c
 *		The record of a key's use, in shared memory.
 *
 * A shared hash holds, per database and key, the absolute counts and times:
 * what key_usage said when the entry was made, and what came since.  A verify
 * looks its entry up and adds to it; a worker writes what has changed to the
 * table from time to time.  Since values are absolute, a reader takes the
 * greater of table and memory, and a flush that is repeated does no harm.
 *
 * Only genuine tokens make entries.  If there is no room a use is not
 * recorded, and counted as overflow; a verify never fails for it.
 *
 * Locking: the hash is partitioned.  A partition's lock is taken shared to
 * find an entry and change its atomics, exclusive to add or remove one; all
 * of them shared, in order, to walk.  No other lock is taken under them, but
 * for the spinlock of an entry.  An entry is removed only when it has nothing
 * pending, or its key is gone.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "limiter.h"
#include "rk_apikeys.h"
#include "stats.h"
#include "usage.h"
#include "usage_shared.h"

#define TRANCHE "RkApikeysUsage"

/* Times that an entry is tried to be made while others are evicted. */
#define SEED_TRIES 3

UsageShared *usage_shared = NULL;
HTAB	   *usage_entries = NULL;
LWLockPadded *usage_locks = NULL;

static UsageEntry *find_or_make(const StoredKey *key, LWLock **lock);
static void note_addr(UsageEntry *entry, inet *addr);

void
usage_shmem_request(void)
{
	RequestAddinShmemSpace(add_size(MAXALIGN(sizeof(UsageShared)),
									hash_estimate_size(rk_apikeys_max_tracked_keys,
													   sizeof(UsageEntry))));
	RequestNamedLWLockTranche(TRANCHE, USAGE_PARTITIONS);
}

/* Runs in the postmaster, under AddinShmemInitLock. */
void
usage_shmem_startup(void)
{
	HASHCTL		ctl;
	bool		found;

	usage_shared = ShmemInitStruct("rk_apikeys usage", sizeof(UsageShared), &found);
	if (!found)
	{
		memset(usage_shared, 0, sizeof(UsageShared));
		pg_atomic_init_u32(&usage_shared->tracked, 0);
		pg_atomic_init_u64(&usage_shared->last_flush_at, 0);
		pg_atomic_init_u64(&usage_shared->flush_began,
						   (uint64) GetCurrentTimestamp());
		usage_shared->max_tracked = rk_apikeys_max_tracked_keys;
	}
	ctl.keysize = sizeof(UsageKey);
	ctl.entrysize = sizeof(UsageEntry);
	ctl.num_partitions = USAGE_PARTITIONS;
	usage_entries = ShmemInitHash("rk_apikeys usage entries", usage_shared->max_tracked,
						  usage_shared->max_tracked, &ctl,
						  HASH_ELEM | HASH_BLOBS | HASH_PARTITION);
	usage_locks = GetNamedLWLockTranche(TRANCHE);
	if (!IsUnderPostmaster)
		on_shmem_exit(usage_file_save, (Datum) 0);
	if (!found)
		usage_file_load();
}

/* Whether usage is kept in shared memory: the library is preloaded. */
bool
usage_is_shared(void)
{
	return usage_shared != NULL;
}

/*
 * Record what a verify of a genuine token came to at that moment, from that
 * address (NULL: not told).
 */
void
usage_record(const StoredKey *key, UsageKind kind, inet *client_addr,
			 TimestampTz now)
{
	UsageEntry *entry;
	LWLock	   *lock;
	uint64		last;

	if (!rk_apikeys_track_usage)
		return;
	if (!usage_is_shared())
	{
		if (kind == USAGE_USE)
			usage_record_in_table(key, client_addr, now);
		return;
	}
	entry = find_or_make(key, &lock);
	if (entry == NULL)
	{
		stats_count(STATS_OVERFLOW);
		return;
	}
	if (kind == USAGE_DENIAL)
		pg_atomic_fetch_add_u64(&entry->denied_count, 1);
	else
	{
		pg_atomic_fetch_add_u64(&entry->use_count, 1);
		last = pg_atomic_read_u64(&entry->last_used_at);
		while (last < (uint64) now &&
			   !pg_atomic_compare_exchange_u64(&entry->last_used_at, &last,
											   (uint64) now))
			;
		if (client_addr != NULL)
			note_addr(entry, client_addr);
	}
	LWLockRelease(lock);
}

/*
 * Leave the digest that a key's token has under a newer pepper, for the worker
 * to store.  If there is no room, or nobody who would store it, a later verify
 * does it again.
 */
void
usage_resign(const StoredKey *key, int pepper_id, const uint8 *digest)
{
	UsageEntry *entry;
	LWLock	   *lock;

	if (!usage_is_shared() || RecoveryInProgress() ||
		(entry = find_or_make(key, &lock)) == NULL)
		return;
	SpinLockAcquire(&entry->mutex);
	memcpy(entry->digest, digest, DIGEST_SHA256_LEN);
	pg_atomic_write_u32(&entry->pepper_id, pepper_id);
	SpinLockRelease(&entry->mutex);
	LWLockRelease(lock);
}

/*
 * Take from the key's rate limit.  If it is reached, *wait is the time until
 * the cost will be there, in microseconds.
 */
LimitResult
usage_limit(const StoredKey *key, int cost, TimestampTz now, int64 *wait)
{
	UsageEntry *entry;
	LWLock	   *lock;

	if (!usage_is_shared() || (entry = find_or_make(key, &lock)) == NULL)
		return LIMIT_UNAVAILABLE;
	*wait = limiter_take(&entry->arrival, key->rate_limit,
						 limiter_window(&key->rate_window), cost, now);
	LWLockRelease(lock);
	return *wait == 0 ? LIMIT_PASSED : LIMIT_REACHED;
}

/*
 * The entry of a key, with its partition locked (shared, or exclusive if it
 * was just made); NULL, with nothing locked, if there is no room.
 */
static UsageEntry *
find_or_make(const StoredKey *key, LWLock **lock)
{
	UsageKey	id;
	uint32		hash;
	UsageEntry *entry;
	bool		found;

	id.database = MyDatabaseId;
	memcpy(id.key_id, key->key_id, TOKEN_KEY_ID_LEN);
	hash = get_hash_value(usage_entries, &id);
	*lock = &usage_locks[hash % USAGE_PARTITIONS].lock;

	for (int tries = 0; tries < SEED_TRIES; tries++)
	{
		uint64		removed;
		StoredUsage seed = {DT_NOBEGIN, 0, 0};

		LWLockAcquire(*lock, LW_SHARED);
		entry = hash_search_with_hash_value(usage_entries, &id, hash, HASH_FIND, NULL);
		if (entry != NULL)
			return entry;
		removed = usage_shared->removed[hash % USAGE_PARTITIONS];
		LWLockRelease(*lock);

		if (pg_atomic_read_u32(&usage_shared->tracked) >= (uint32) usage_shared->max_tracked)
			return NULL;
		(void) store_find_usage(key->key_id, &seed);

		LWLockAcquire(*lock, LW_EXCLUSIVE);
		/* What was removed meanwhile may have been this key, and the seed old. */
		if (removed != usage_shared->removed[hash % USAGE_PARTITIONS])
		{
			LWLockRelease(*lock);
			continue;
		}
		entry = hash_search_with_hash_value(usage_entries, &id, hash, HASH_ENTER_NULL,
											&found);
		if (entry == NULL)
		{
			LWLockRelease(*lock);
			return NULL;
		}
		if (!found)
		{
			uint64		last = seed.last_used_at == DT_NOBEGIN ? 0 :
				(uint64) seed.last_used_at;

			entry->tenant = hash_any_extended((unsigned char *) VARDATA_ANY(key->tenant),
											  VARSIZE_ANY_EXHDR(key->tenant), 0);
			pg_atomic_init_u64(&entry->last_used_at, last);
			pg_atomic_init_u64(&entry->use_count, seed.use_count);
			pg_atomic_init_u64(&entry->denied_count, seed.denied_count);
			pg_atomic_init_u64(&entry->arrival, 0);
			pg_atomic_init_u64(&entry->flushed_at, last);
			pg_atomic_init_u64(&entry->flushed_uses, seed.use_count);
			pg_atomic_init_u64(&entry->flushed_denials, seed.denied_count);
			pg_atomic_init_u32(&entry->pepper_id, 0);
			SpinLockInit(&entry->mutex);
			entry->has_addr = false;
			pg_atomic_fetch_add_u32(&usage_shared->tracked, 1);
		}
		return entry;
	}
	return NULL;
}

static void
note_addr(UsageEntry *entry, inet *addr)
{
	inet_struct *fresh = (inet_struct *) VARDATA_ANY(addr);

	SpinLockAcquire(&entry->mutex);
	entry->has_addr = true;
	memset(&entry->addr, 0, sizeof(inet_struct));
	memcpy(&entry->addr, fresh, VARSIZE_ANY_EXHDR(addr));
	SpinLockRelease(&entry->mutex);
}
