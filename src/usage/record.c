/*
 * record.c
 *		The record of a key's use, in shared memory: the hot path.
 *
 * A shared hash has an entry per database and key.  An entry holds absolute
 * counts and times: the values of key_usage when the entry was made, plus the
 * uses since.  A verify looks the entry up and adds to it.  A worker has changed
 * entries written to the table from time to time, by this server or, on a
 * standby, by its primary.  Because the values are absolute, a reader takes the
 * greater of table and memory.
 *
 * Only genuine tokens make entries.  If there is no room, a clean entry gives way.
 * If none does, or the key's tenant has its share, the use is not recorded and
 * counts as overflow.  A verify never fails for that reason, except of a key that
 * a limit binds.
 *
 * Locking: as hash.c says.  An entry's atomics are changed under its
 * partition's lock, taken shared.  No other lock is taken under that lock,
 * except spinlocks.  An entry is removed only when nothing of it is pending, or
 * its key is gone.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/grant.h"
#include "base/settings.h"
#include "base/stats.h"
#include "compat.h"
#include "usage/shared.h"

/* Tries to make an entry while others are evicted, or take the place. */
#define SEED_TRIES 10

/* A key whose entry is made. */
typedef struct NewKey
{
	const StoredKey *key;
	StoredUsage seed;
} NewKey;

static UsageEntry *find_or_make(const StoredKey *key, LWLock **lock);
static void read_seed(void *arg);
static void set_seed(UsageEntry *entry, void *arg);
static void note_row(UsageEntry *entry, const StoredKey *key);
static void note_addr(UsageEntry *entry, inet *addr);
static void note_day(UsageEntry *entry, TimestampTz now);

/*
 * Announce the key that will be recalled and recorded, so that the processor
 * fetches its entry meanwhile.
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
 * Copy the place that the last read of a key's row left, by whichever backend.
 * Without it the buffer of the place is invalid.
 */
void
usage_recall(const UsageTarget *target, StoredPlace *place)
{
	UsageEntry *entry;

	place->buffer = InvalidBuffer;
	place->lsn = InvalidXLogRecPtr;
	if (!usage_is_shared() || !settings_track_usage)
		return;
	LWLockAcquire(target->lock, LW_SHARED);
	entry = usage_hash_find(target);
	if (entry != NULL)
	{
		SpinLockAcquire(&entry->mutex);
		*place = entry->row;
		SpinLockRelease(&entry->mutex);
	}
	LWLockRelease(target->lock);
}

/*
 * Record the outcome of a verify of a genuine token at that moment, from that
 * address (NULL: not given).
 */
void
usage_record(const StoredKey *key, UsageKind kind, inet *client_addr,
			 TimestampTz now)
{
	UsageEntry *entry;
	LWLock	   *lock;
	uint64		last;

	if (!settings_track_usage)
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
		if (kind == USAGE_USE)
			usage_lost_note(MyDatabaseId, key->key_id, now);
		return;
	}
	if (key->place.buffer != InvalidBuffer)
		note_row(entry, key);
	if (kind != USAGE_USE)
	{
		pg_atomic_fetch_add_u64(&entry->denied_count, 1);
		if (kind == USAGE_AFTER_END)
			note_day(entry, now);
	}
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
 * Leave a key's digest under a newer pepper for the worker to store.  If there
 * is no room, or no worker that would store it, a later verify tries again.
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
 * Return the entry of a key, with its partition locked: shared, or exclusive if
 * the entry was just made.  Return NULL, with nothing locked, if there is no
 * room.
 */
static UsageEntry *
find_or_make(const StoredKey *key, LWLock **lock)
{
	UsageTarget target;
	UsageEntry *entry;
	NewKey		new = {.key = key, .seed = {DT_NOBEGIN, 0, 0}};
	UsageSeed	seed = {read_seed, set_seed, &new};

	usage_hash_target(&target, MyDatabaseId, key->key_id);
	*lock = target.lock;
	LWLockAcquire(target.lock, LW_SHARED);
	entry = usage_hash_find(&target);
	if (entry != NULL)
		return entry;
	LWLockRelease(target.lock);
	return usage_find_or_make(&target, usage_tenant(key->tenant), &seed);
}

/*
 * Return the entry of a target, locked as find_or_make() says.  If it is missing,
 * make it for that tenant.
 */
UsageEntry *
usage_find_or_make(const UsageTarget *target, uint64 tenant,
				   const UsageSeed *seed)
{
	bool		took = false;	/* a place, from another entry */

	for (int tries = 0; tries < SEED_TRIES; tries++)
	{
		UsageEntry *entry;
		uint64		removed;

		LWLockAcquire(target->lock, LW_SHARED);
		entry = usage_hash_find(target);
		if (entry != NULL)
			return entry;
		removed = usage_shared->removed[target->partition];
		LWLockRelease(target->lock);

		if (!took && !usage_hash_has_room(target->key.database, tenant))
		{
			if (!usage_give_way(target->key.database, tenant))
				break;
			/* It may have been of this partition, so look again. */
			took = true;
			continue;
		}
		usage_hash_check_room();
		seed->read(seed->arg);

		LWLockAcquire(target->lock, LW_EXCLUSIVE);
		entry = usage_hash_find(target);
		if (entry != NULL)
			return entry;
		/*
		 * If an entry was removed meanwhile, it may have been this one, and the
		 * seed is older than its last flush.
		 */
		if (removed == usage_shared->removed[target->partition])
		{
			entry = usage_hash_add(target, tenant, !took);
			if (entry != NULL)
			{
				seed->set(entry, seed->arg);
				return entry;
			}
			took = false;		/* another one was faster */
		}
		LWLockRelease(target->lock);
	}
	usage_hash_need(USAGE_NEEDS_ROOM | USAGE_HAS_LOST);
	return NULL;
}

/* Return the hash by which entries know a tenant. */
uint64
usage_tenant(text *tenant)
{
	return hash_any_extended((unsigned char *) VARDATA_ANY(tenant),
							 VARSIZE_ANY_EXHDR(tenant), 0);
}

/* UsageSeed: the values of key_usage. */
static void
read_seed(void *arg)
{
	NewKey	   *new = arg;

	(void) store_find_usage(new->key->key_id, &new->seed);
}

static void
set_seed(UsageEntry *entry, void *arg)
{
	const NewKey *new = arg;
	uint64		last = new->seed.last_used_at == DT_NOBEGIN ? 0 :
		(uint64) new->seed.last_used_at;

	text_to_cstring_buffer(new->key->environment, entry->environment,
						   sizeof(entry->environment));
	pg_atomic_write_u64(&entry->last_used_at, last);
	pg_atomic_write_u64(&entry->use_count, new->seed.use_count);
	pg_atomic_write_u64(&entry->denied_count, new->seed.denied_count);
	entry->known_uses = new->seed.use_count;
	entry->known_denials = new->seed.denied_count;
}

/* Note the place of a row that was just read. */
static void
note_row(UsageEntry *entry, const StoredKey *key)
{
	SpinLockAcquire(&entry->mutex);
	entry->row = key->place;
	SpinLockRelease(&entry->mutex);
}

static void
note_addr(UsageEntry *entry, inet *addr)
{
	inet_struct host;

	grant_host(addr, &host);
	SpinLockAcquire(&entry->mutex);
	entry->has_addr = true;
	entry->addr = host;
	SpinLockRelease(&entry->mutex);
}

/* Note the day of a denial of an ended key.  Most denials of a day write nothing. */
static void
note_day(UsageEntry *entry, TimestampTz now)
{
	uint32		day = (uint32) (now / USECS_PER_DAY) + 1;

	if (pg_atomic_read_u32(&entry->ended_day) != day)
		pg_atomic_write_u32(&entry->ended_day, day);
}
