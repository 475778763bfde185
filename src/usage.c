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
 * for the spinlock of an entry.  An entry is removed only when it
 * has nothing pending.
 */
#include "postgres.h"

#include <unistd.h>

#include "access/xlog.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "port/atomics.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "caller.h"
#include "compat.h"
#include "limiter.h"
#include "principal.h"
#include "rk_apikeys.h"
#include "stats.h"
#include "usage.h"

#define PARTITIONS 16
#define TRANCHE "RkApikeysUsage"

/* Where a clean shutdown keeps what is pending, below the data directory. */
#define SAVE_FILE "pg_stat/rk_apikeys.usage"
#define SAVE_MAGIC 0x524b5531

/* Times that an entry is tried to be made while others are evicted. */
#define SEED_TRIES 3

typedef struct UsageKey
{
	Oid			database;
	char		key_id[TOKEN_KEY_ID_LEN];
} UsageKey;

typedef struct UsageEntry
{
	UsageKey	key;			/* hash key; fixed */
	uint64		tenant;			/* hash of the key's tenant; fixed */
	pg_atomic_uint64 last_used_at;	/* TimestampTz, 0: never; only grows */
	pg_atomic_uint64 use_count; /* only grows */
	pg_atomic_uint64 denied_count;	/* only grows */
	pg_atomic_uint64 arrival;	/* the limiter's */
	/* what the last flush wrote; written by one flusher at a time */
	pg_atomic_uint64 flushed_at;
	pg_atomic_uint64 flushed_uses;
	pg_atomic_uint64 flushed_denials;
	pg_atomic_uint32 pepper_id; /* of the new digest; 0: there is none */
	slock_t		mutex;			/* guards the three below */
	bool		has_addr;
	inet_struct addr;
	uint8		digest[DIGEST_SHA256_LEN];	/* signed anew, to be stored */
} UsageEntry;

typedef struct UsageShared
{
	pg_atomic_uint32 tracked;	/* entries */
	pg_atomic_uint64 last_flush_at; /* a batch was committed */
	pg_atomic_uint64 flush_began;
	/* entries removed so far, by partition; changed under its lock */
	uint64		removed[PARTITIONS];
	int			max_tracked;	/* fixed */
} UsageShared;

/* What is kept of an entry over a restart. */
typedef struct SavedUsage
{
	UsageKey	key;
	uint64		tenant;
	int64		last_used_at;
	int64		use_count;
	int64		denied_count;
	int64		has_addr;
	inet_struct addr;
} SavedUsage;

static UsageShared *shared = NULL;
static HTAB *table = NULL;
static LWLockPadded *locks = NULL;

static UsageEntry *find_or_make(const StoredKey *key, LWLock **lock);
static void note_addr(UsageEntry *entry, inet *addr);
static bool is_pending(UsageEntry *entry);
static void copy_entry(UsageEntry *entry, UsageCopy *copy);
static void lock_all(void);
static void unlock_all(void);
static void save_pending(int code, Datum arg);
static void load_saved(void);
static UsageEntry *find_for_caller(FunctionCallInfo fcinfo, LWLock **lock);

PG_FUNCTION_INFO_V1(rk_apikeys_live_last_used_at);
PG_FUNCTION_INFO_V1(rk_apikeys_live_use_count);

void
usage_shmem_request(void)
{
	RequestAddinShmemSpace(add_size(MAXALIGN(sizeof(UsageShared)),
									hash_estimate_size(rk_apikeys_max_tracked_keys,
													   sizeof(UsageEntry))));
	RequestNamedLWLockTranche(TRANCHE, PARTITIONS);
}

/* Runs in the postmaster, under AddinShmemInitLock. */
void
usage_shmem_startup(void)
{
	HASHCTL		ctl;
	bool		found;

	shared = ShmemInitStruct("rk_apikeys usage", sizeof(UsageShared), &found);
	if (!found)
	{
		memset(shared, 0, sizeof(UsageShared));
		pg_atomic_init_u32(&shared->tracked, 0);
		pg_atomic_init_u64(&shared->last_flush_at, 0);
		pg_atomic_init_u64(&shared->flush_began,
						   (uint64) GetCurrentTimestamp());
		shared->max_tracked = rk_apikeys_max_tracked_keys;
	}
	ctl.keysize = sizeof(UsageKey);
	ctl.entrysize = sizeof(UsageEntry);
	ctl.num_partitions = PARTITIONS;
	table = ShmemInitHash("rk_apikeys usage entries", shared->max_tracked,
						  shared->max_tracked, &ctl,
						  HASH_ELEM | HASH_BLOBS | HASH_PARTITION);
	locks = GetNamedLWLockTranche(TRANCHE);
	if (!IsUnderPostmaster)
		on_shmem_exit(save_pending, (Datum) 0);
	if (!found)
		load_saved();
}

/* Whether usage is kept in shared memory: the library is preloaded. */
bool
usage_is_shared(void)
{
	return shared != NULL;
}

/*
 * Record what a verify of a genuine token came to, from that address (NULL:
 * not told).
 */
void
usage_record(const StoredKey *key, UsageKind kind, inet *client_addr)
{
	UsageEntry *entry;
	LWLock	   *lock;
	uint64		now;
	uint64		last;

	if (!rk_apikeys_track_usage)
		return;
	if (!usage_is_shared())
	{
		if (kind == USAGE_USE)
			usage_record_in_table(key, client_addr);
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
		now = (uint64) GetCurrentTimestamp();
		pg_atomic_fetch_add_u64(&entry->use_count, 1);
		last = pg_atomic_read_u64(&entry->last_used_at);
		while (last < now &&
			   !pg_atomic_compare_exchange_u64(&entry->last_used_at, &last, now))
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
	hash = get_hash_value(table, &id);
	*lock = &locks[hash % PARTITIONS].lock;

	for (int tries = 0; tries < SEED_TRIES; tries++)
	{
		uint64		removed;
		StoredUsage seed = {DT_NOBEGIN, 0, 0};

		LWLockAcquire(*lock, LW_SHARED);
		entry = hash_search_with_hash_value(table, &id, hash, HASH_FIND, NULL);
		if (entry != NULL)
			return entry;
		removed = shared->removed[hash % PARTITIONS];
		LWLockRelease(*lock);

		if (pg_atomic_read_u32(&shared->tracked) >= (uint32) shared->max_tracked)
			return NULL;
		(void) store_find_usage(key->key_id, &seed);

		LWLockAcquire(*lock, LW_EXCLUSIVE);
		/* What was removed meanwhile may have been this key, and the seed old. */
		if (removed != shared->removed[hash % PARTITIONS])
		{
			LWLockRelease(*lock);
			continue;
		}
		entry = hash_search_with_hash_value(table, &id, hash, HASH_ENTER_NULL,
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
			pg_atomic_fetch_add_u32(&shared->tracked, 1);
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

/* Whether an entry holds what no flush has written. */
static bool
is_pending(UsageEntry *entry)
{
	return pg_atomic_read_u32(&entry->pepper_id) != 0 ||
		pg_atomic_read_u64(&entry->use_count) != pg_atomic_read_u64(&entry->flushed_uses) ||
		pg_atomic_read_u64(&entry->denied_count) != pg_atomic_read_u64(&entry->flushed_denials) ||
		pg_atomic_read_u64(&entry->last_used_at) != pg_atomic_read_u64(&entry->flushed_at);
}

static void
copy_entry(UsageEntry *entry, UsageCopy *copy)
{
	memcpy(copy->key_id, entry->key.key_id, TOKEN_KEY_ID_LEN);
	copy->key_id[TOKEN_KEY_ID_LEN] = '\0';
	copy->last_used_at = (TimestampTz) pg_atomic_read_u64(&entry->last_used_at);
	copy->use_count = (int64) pg_atomic_read_u64(&entry->use_count);
	copy->denied_count = (int64) pg_atomic_read_u64(&entry->denied_count);
	SpinLockAcquire(&entry->mutex);
	copy->has_addr = entry->has_addr;
	copy->addr = entry->addr;
	copy->pepper_id = pg_atomic_read_u32(&entry->pepper_id);
	memcpy(copy->digest, entry->digest, DIGEST_SHA256_LEN);
	SpinLockRelease(&entry->mutex);
}

static void
lock_all(void)
{
	for (int i = 0; i < PARTITIONS; i++)
		LWLockAcquire(&locks[i].lock, LW_SHARED);
}

static void
unlock_all(void)
{
	for (int i = PARTITIONS - 1; i >= 0; i--)
		LWLockRelease(&locks[i].lock);
}

/*
 * What is pending of a database, palloc'd.  Entries that are made while this
 * runs may be missing; the next flush has them.
 */
UsageCopy *
usage_pending(Oid database, int *count)
{
	int			room = pg_atomic_read_u32(&shared->tracked);
	UsageCopy  *copies = MemoryContextAllocHuge(CurrentMemoryContext,
												mul_size(Max(room, 1), sizeof(UsageCopy)));
	HASH_SEQ_STATUS scan;
	UsageEntry *entry;

	*count = 0;
	lock_all();
	hash_seq_init(&scan, table);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (entry->key.database != database || !is_pending(entry))
			continue;
		if (*count == room)
		{
			hash_seq_term(&scan);
			break;
		}
		copy_entry(entry, &copies[(*count)++]);
	}
	unlock_all();
	return copies;
}

/* The databases that have something pending. */
List *
usage_pending_databases(void)
{
	List	   *databases = NIL;
	Oid			found[64];
	int			count = 0;
	HASH_SEQ_STATUS scan;
	UsageEntry *entry;

	lock_all();
	hash_seq_init(&scan, table);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		int			i = 0;

		if (!is_pending(entry))
			continue;
		while (i < count && found[i] != entry->key.database)
			i++;
		/* More databases than that wait for the next round. */
		if (i == count && count < (int) lengthof(found))
			found[count++] = entry->key.database;
	}
	unlock_all();
	for (int i = 0; i < count; i++)
		databases = lappend_oid(databases, found[i]);
	return databases;
}

/* Note that what was copied of an entry is in the table now, committed. */
void
usage_mark_flushed(Oid database, const UsageCopy *copy)
{
	UsageKey	id;
	uint32		hash;
	UsageEntry *entry;
	LWLock	   *lock;

	id.database = database;
	memcpy(id.key_id, copy->key_id, TOKEN_KEY_ID_LEN);
	hash = get_hash_value(table, &id);
	lock = &locks[hash % PARTITIONS].lock;
	LWLockAcquire(lock, LW_SHARED);
	entry = hash_search_with_hash_value(table, &id, hash, HASH_FIND, NULL);
	if (entry != NULL)
	{
		pg_atomic_write_u64(&entry->flushed_at, (uint64) copy->last_used_at);
		pg_atomic_write_u64(&entry->flushed_uses, (uint64) copy->use_count);
		pg_atomic_write_u64(&entry->flushed_denials, (uint64) copy->denied_count);
		SpinLockAcquire(&entry->mutex);
		if (pg_atomic_read_u32(&entry->pepper_id) == (uint32) copy->pepper_id)
			pg_atomic_write_u32(&entry->pepper_id, 0);
		SpinLockRelease(&entry->mutex);
	}
	LWLockRelease(lock);
	pg_atomic_write_u64(&shared->last_flush_at, (uint64) GetCurrentTimestamp());
}

/* Remove an entry that cannot be flushed: its key is gone. */
void
usage_forget(Oid database, const char *key_id)
{
	UsageKey	id;
	uint32		hash;
	LWLock	   *lock;

	id.database = database;
	memcpy(id.key_id, key_id, TOKEN_KEY_ID_LEN);
	hash = get_hash_value(table, &id);
	lock = &locks[hash % PARTITIONS].lock;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (hash_search_with_hash_value(table, &id, hash, HASH_REMOVE, NULL) != NULL)
	{
		pg_atomic_fetch_sub_u32(&shared->tracked, 1);
		shared->removed[hash % PARTITIONS]++;
	}
	LWLockRelease(lock);
}

void
usage_flush_began(void)
{
	pg_atomic_write_u64(&shared->flush_began, (uint64) GetCurrentTimestamp());
}

/*
 * Make room when the table is nearly full: remove entries that have nothing
 * pending and whose rate limit is full again, a quarter of the table at most.
 */
void
usage_evict(void)
{
	int			tracked = pg_atomic_read_u32(&shared->tracked);
	int			room = shared->max_tracked / 4;
	UsageKey   *keys;
	int			count = 0;
	uint64		now_ns = (uint64) GetCurrentTimestamp() * 1000;
	HASH_SEQ_STATUS scan;
	UsageEntry *entry;

	if (tracked < shared->max_tracked - shared->max_tracked / 8)
		return;
	room = Max(room, 1);
	keys = palloc(room * sizeof(UsageKey));
	lock_all();
	hash_seq_init(&scan, table);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (is_pending(entry) || pg_atomic_read_u64(&entry->arrival) > now_ns)
			continue;
		keys[count++] = entry->key;
		if (count == room)
		{
			hash_seq_term(&scan);
			break;
		}
	}
	unlock_all();

	for (int i = 0; i < count; i++)
	{
		uint32		hash = get_hash_value(table, &keys[i]);
		LWLock	   *lock = &locks[hash % PARTITIONS].lock;

		LWLockAcquire(lock, LW_EXCLUSIVE);
		entry = hash_search_with_hash_value(table, &keys[i], hash, HASH_FIND,
											NULL);
		if (entry != NULL && !is_pending(entry) &&
			pg_atomic_read_u64(&entry->arrival) <= now_ns)
		{
			hash_search_with_hash_value(table, &keys[i], hash, HASH_REMOVE,
										NULL);
			pg_atomic_fetch_sub_u32(&shared->tracked, 1);
			shared->removed[hash % PARTITIONS]++;
		}
		LWLockRelease(lock);
	}
	pfree(keys);
}

/* Totals over all entries, for the view stats. */
void
usage_totals(UsageTotals *totals)
{
	HASH_SEQ_STATUS scan;
	UsageEntry *entry;

	memset(totals, 0, sizeof(UsageTotals));
	totals->tracked = pg_atomic_read_u32(&shared->tracked);
	totals->max_tracked = shared->max_tracked;
	totals->last_flush_at = (TimestampTz) pg_atomic_read_u64(&shared->last_flush_at);
	totals->pending_since = (TimestampTz) pg_atomic_read_u64(&shared->flush_began);
	lock_all();
	hash_seq_init(&scan, table);
	while ((entry = hash_seq_search(&scan)) != NULL)
		if (is_pending(entry))
			totals->pending++;
	unlock_all();
}

/*
 * At a clean end of the server: keep what is pending in a file, as no worker
 * can be started any more.  What fails is told and lost.
 */
static void
save_pending(int code, Datum arg)
{
	FILE	   *file;
	HASH_SEQ_STATUS scan;
	UsageEntry *entry;
	uint32		magic = SAVE_MAGIC;
	bool		failed;

	/* After a crash the counts may be torn. */
	if (code != 0 || shared == NULL)
		return;
	file = AllocateFile(SAVE_FILE ".tmp", PG_BINARY_W);
	if (file == NULL)
	{
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", SAVE_FILE ".tmp")));
		return;
	}
	failed = fwrite(&magic, sizeof(magic), 1, file) != 1;
	hash_seq_init(&scan, table);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		SavedUsage	saved;

		if (failed || !is_pending(entry))
			continue;
		memset(&saved, 0, sizeof(saved));
		saved.key = entry->key;
		saved.tenant = entry->tenant;
		saved.last_used_at = (int64) pg_atomic_read_u64(&entry->last_used_at);
		saved.use_count = (int64) pg_atomic_read_u64(&entry->use_count);
		saved.denied_count = (int64) pg_atomic_read_u64(&entry->denied_count);
		saved.has_addr = entry->has_addr;
		saved.addr = entry->addr;
		failed = fwrite(&saved, sizeof(saved), 1, file) != 1;
	}
	if (FreeFile(file) != 0)
		failed = true;
	if (failed)
	{
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", SAVE_FILE ".tmp")));
		unlink(SAVE_FILE ".tmp");
		return;
	}
	(void) durable_rename(SAVE_FILE ".tmp", SAVE_FILE, LOG);
}

/* At the start of the server: take over what was kept, and remove the file. */
static void
load_saved(void)
{
	FILE	   *file = AllocateFile(SAVE_FILE, PG_BINARY_R);
	uint32		magic;
	SavedUsage	saved;

	if (file == NULL)
	{
		if (errno != ENOENT)
			ereport(LOG,
					(errcode_for_file_access(),
					 errmsg("could not read file \"%s\": %m", SAVE_FILE)));
		return;
	}
	if (fread(&magic, sizeof(magic), 1, file) != 1 || magic != SAVE_MAGIC)
		ereport(LOG,
				(errmsg("ignoring file \"%s\": it is not of this version",
						SAVE_FILE)));
	else
	{
		while (fread(&saved, sizeof(saved), 1, file) == 1)
		{
			UsageEntry *entry;
			bool		found;

			if (pg_atomic_read_u32(&shared->tracked) >= (uint32) shared->max_tracked)
				break;
			entry = hash_search(table, &saved.key, HASH_ENTER_NULL, &found);
			if (entry == NULL || found)
				continue;
			entry->tenant = saved.tenant;
			pg_atomic_init_u64(&entry->last_used_at, saved.last_used_at);
			pg_atomic_init_u64(&entry->use_count, saved.use_count);
			pg_atomic_init_u64(&entry->denied_count, saved.denied_count);
			pg_atomic_init_u64(&entry->arrival, 0);
			/* Differ from all of these: pending. */
			pg_atomic_init_u64(&entry->flushed_at, 0);
			pg_atomic_init_u64(&entry->flushed_uses, 0);
			pg_atomic_init_u64(&entry->flushed_denials, 0);
			pg_atomic_init_u32(&entry->pepper_id, 0);
			SpinLockInit(&entry->mutex);
			entry->has_addr = saved.has_addr != 0;
			entry->addr = saved.addr;
			pg_atomic_fetch_add_u32(&shared->tracked, 1);
		}
	}
	FreeFile(file);
	unlink(SAVE_FILE);
}

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
	hash = get_hash_value(table, &id);
	*lock = &locks[hash % PARTITIONS].lock;
	LWLockAcquire(*lock, LW_SHARED);
	entry = hash_search_with_hash_value(table, &id, hash, HASH_FIND, NULL);
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
