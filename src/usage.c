/*
 * usage.c
 *		The record of a key's use, in shared memory.
 *
 * A shared hash holds, per database and key, the absolute counts and times:
 * what key_usage said when the entry was made, and what came since.  A verify
 * looks its entry up and adds to it; a worker has what has changed written to
 * the table from time to time, by this server or, on a standby, by its primary.
 * Since values are absolute, a reader takes the greater of table and memory.
 *
 * Only genuine tokens make entries.  If there is no room a use is not
 * recorded, and counted as overflow; a verify never fails for it.
 *
 * Locking: as usage_hash.c says.  An entry's atomics are changed under its
 * partition's lock, taken shared.  No other lock is taken under that one, but
 * for spinlocks.  An entry is removed only when it has nothing pending, or its
 * key is gone.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "limiter.h"
#include "rk_apikeys.h"
#include "stats.h"
#include "usage.h"
#include "usage_shared.h"

/* Times that an entry is tried to be made while others are evicted. */
#define SEED_TRIES 3

static UsageEntry *find_or_make(const StoredKey *key, LWLock **lock);
static void seed_entry(UsageEntry *entry, const StoredKey *key,
					   const StoredUsage *seed);
static void note_row(UsageEntry *entry, const StoredKey *key);
static void note_addr(UsageEntry *entry, inet *addr);

void
usage_shmem_request(void)
{
	RequestAddinShmemSpace(usage_hash_size(rk_apikeys_max_tracked_keys));
	RequestAddinShmemSpace(MAXALIGN(sizeof(UsageOutbox)));
	RequestNamedLWLockTranche(USAGE_TRANCHE, USAGE_PARTITIONS);
}

/* Runs in the postmaster, under AddinShmemInitLock. */
void
usage_shmem_startup(void)
{
	bool		made = usage_hash_startup(rk_apikeys_max_tracked_keys);
	bool		found;

	usage_locks = GetNamedLWLockTranche(USAGE_TRANCHE);
	usage_outbox = ShmemInitStruct("rk_apikeys outbox", sizeof(UsageOutbox),
								   &found);
	if (!found)
		usage_outbox_init();
	if (!IsUnderPostmaster)
		on_shmem_exit(usage_file_save, (Datum) 0);
	if (made)
		usage_file_load();
}

/*
 * Whether usage is kept in shared memory: the library is preloaded, or the
 * memory can be had without.
 */
bool
usage_is_shared(void)
{
	return usage_shared != NULL || usage_attach();
}

/*
 * Say which key will be recalled and recorded, so that what shared memory has of
 * it comes into the processor's cache meanwhile.
 */
void
usage_expect(UsageTarget *target, const char *key_id)
{
	if (!usage_is_shared())
		return;
	usage_hash_target(target, MyDatabaseId, key_id);
	usage_hash_prefetch(target);
}

/*
 * What is known of a key's row since it was last read, by whomsoever; if it is
 * nothing, the buffer of its place is invalid.
 */
void
usage_recall(const UsageTarget *target, StoredBrief *brief)
{
	UsageEntry *entry;

	brief->place.buffer = InvalidBuffer;
	brief->place.lsn = InvalidXLogRecPtr;
	if (!usage_is_shared() || !rk_apikeys_track_usage)
		return;
	LWLockAcquire(target->lock, LW_SHARED);
	entry = usage_hash_find(target);
	if (entry != NULL)
	{
		SpinLockAcquire(&entry->mutex);
		*brief = entry->brief;
		SpinLockRelease(&entry->mutex);
	}
	LWLockRelease(target->lock);
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
	if (key->place.buffer != InvalidBuffer)
		note_row(entry, key);
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
	usage_hash_set_dirty(entry);
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
	entry->pepper_id = pepper_id;
	SpinLockRelease(&entry->mutex);
	usage_hash_set_dirty(entry);
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
 * was just made); NULL, with nothing locked, if there is no room.  A brief key
 * comes from an entry; if that was evicted this very moment, no other is made,
 * since the tenant is not known.
 */
static UsageEntry *
find_or_make(const StoredKey *key, LWLock **lock)
{
	UsageTarget target;

	usage_hash_target(&target, MyDatabaseId, key->key_id);
	*lock = target.lock;
	for (int tries = 0; tries < SEED_TRIES; tries++)
	{
		UsageEntry *entry;
		uint64		removed;
		StoredUsage seed = {DT_NOBEGIN, 0, 0};

		LWLockAcquire(*lock, LW_SHARED);
		entry = usage_hash_find(&target);
		if (entry != NULL)
			return entry;
		removed = usage_shared->removed[target.partition];
		LWLockRelease(*lock);

		if (key->tenant == NULL ||
			pg_atomic_read_u32(&usage_shared->tracked) >= (uint32) usage_shared->max_tracked)
			return NULL;
		(void) store_find_usage(key->key_id, &seed);

		LWLockAcquire(*lock, LW_EXCLUSIVE);
		entry = usage_hash_find(&target);
		if (entry != NULL)
			return entry;
		/* What was removed meanwhile may have been this key, and the seed old. */
		if (removed == usage_shared->removed[target.partition])
		{
			entry = usage_hash_add(&target);
			if (entry != NULL)
			{
				seed_entry(entry, key, &seed);
				return entry;
			}
			tries = SEED_TRIES;
		}
		LWLockRelease(*lock);
	}
	return NULL;
}

/* Begin a new entry with what key_usage says. */
static void
seed_entry(UsageEntry *entry, const StoredKey *key, const StoredUsage *seed)
{
	uint64		last = seed->last_used_at == DT_NOBEGIN ? 0 :
		(uint64) seed->last_used_at;

	entry->tenant = hash_any_extended((unsigned char *) VARDATA_ANY(key->tenant),
									 VARSIZE_ANY_EXHDR(key->tenant), 0);
	text_to_cstring_buffer(key->environment, entry->environment,
						   sizeof(entry->environment));
	pg_atomic_write_u64(&entry->last_used_at, last);
	pg_atomic_write_u64(&entry->use_count, seed->use_count);
	pg_atomic_write_u64(&entry->denied_count, seed->denied_count);
	entry->known_uses = seed->use_count;
	entry->known_denials = seed->denied_count;
}

/* Keep what was read of a key's row. */
static void
note_row(UsageEntry *entry, const StoredKey *key)
{
	StoredBrief brief;

	store_abridge(key, &brief);
	SpinLockAcquire(&entry->mutex);
	entry->brief = brief;
	SpinLockRelease(&entry->mutex);
}

static void
note_addr(UsageEntry *entry, inet *addr)
{
	SpinLockAcquire(&entry->mutex);
	entry->has_addr = true;
	memset(&entry->addr, 0, sizeof(inet_struct));
	memcpy(&entry->addr, VARDATA_ANY(addr), VARSIZE_ANY_EXHDR(addr));
	SpinLockRelease(&entry->mutex);
}
