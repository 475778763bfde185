/*
 * usage_pending.c
 *		What shared memory holds that no flush has written, and room for more.
 *
 * Locking: as usage.c says.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "stats.h"
#include "usage.h"
#include "usage_shared.h"

/* Copies of what this transaction has flushed. */
static List *to_mark = NIL;
static bool registered = false;

static void mark_committed(XactEvent event, void *arg);
static UsageCopy *copy_entries(Oid database, bool pending,
							   const uint64 *tenant, int *count);
static void copy_entry(UsageEntry *entry, UsageCopy *copy);
static void lock_all(void);
static void unlock_all(void);

/* Whether an entry holds what no flush has written. */
bool
usage_is_pending(UsageEntry *entry)
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
	for (int i = 0; i < USAGE_PARTITIONS; i++)
		LWLockAcquire(&usage_locks[i].lock, LW_SHARED);
}

static void
unlock_all(void)
{
	for (int i = USAGE_PARTITIONS - 1; i >= 0; i--)
		LWLockRelease(&usage_locks[i].lock);
}

/*
 * What is pending of a database, palloc'd.  Entries that are made while this
 * runs may be missing; the next flush has them.
 */
UsageCopy *
usage_pending(Oid database, int *count)
{
	return copy_entries(database, true, NULL, count);
}

/*
 * What a snapshot that was taken then, or later, may not see in the table: of a
 * database, of the tenant with that hash or (NULL) of all.
 */
UsageCopy *
usage_unseen(Oid database, const uint64 *tenant, TimestampTz taken, int *count)
{
	/* Entries are marked as flushed after the commit, and the time with them. */
	bool		all = (TimestampTz) pg_atomic_read_u64(&usage_shared->last_flush_at) >= taken;

	return copy_entries(database, !all, tenant, count);
}

static UsageCopy *
copy_entries(Oid database, bool pending, const uint64 *tenant, int *count)
{
	int			room = pg_atomic_read_u32(&usage_shared->tracked);
	UsageCopy  *copies = MemoryContextAllocHuge(CurrentMemoryContext,
												mul_size(Max(room, 1), sizeof(UsageCopy)));
	HASH_SEQ_STATUS scan;
	UsageEntry *entry;

	*count = 0;
	lock_all();
	hash_seq_init(&scan, usage_entries);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (entry->key.database != database ||
			(pending && !usage_is_pending(entry)) ||
			(tenant != NULL && entry->tenant != *tenant))
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
	hash_seq_init(&scan, usage_entries);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		int			i = 0;

		if (!usage_is_pending(entry))
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

	/* First: usage_unseen() takes an entry that is marked for seen by then. */
	pg_atomic_write_u64(&usage_shared->last_flush_at, (uint64) GetCurrentTimestamp());
	id.database = database;
	memcpy(id.key_id, copy->key_id, TOKEN_KEY_ID_LEN);
	hash = get_hash_value(usage_entries, &id);
	lock = &usage_locks[hash % USAGE_PARTITIONS].lock;
	LWLockAcquire(lock, LW_SHARED);
	entry = hash_search_with_hash_value(usage_entries, &id, hash, HASH_FIND, NULL);
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
}

/*
 * The same of the copies that were flushed by this transaction, if it commits.
 * Within a subtransaction, which may be rolled back alone, they stay pending,
 * and are flushed once more: that does no harm.
 */
void
usage_mark_at_commit(const UsageCopy *copies, int count, const bool *flushed)
{
	MemoryContext before;

	if (GetCurrentTransactionNestLevel() > 1)
		return;
	if (!registered)
		RegisterXactCallback(mark_committed, NULL);
	registered = true;
	before = MemoryContextSwitchTo(TopTransactionContext);
	for (int i = 0; i < count; i++)
	{
		UsageCopy  *copy;

		if (!flushed[i])
			continue;
		copy = palloc(sizeof(UsageCopy));
		*copy = copies[i];
		to_mark = lappend(to_mark, copy);
	}
	MemoryContextSwitchTo(before);
}

static void
mark_committed(XactEvent event, void *arg)
{
	ListCell   *cell;

	if (event == XACT_EVENT_COMMIT)
		foreach(cell, to_mark)
			usage_mark_flushed(MyDatabaseId, lfirst(cell));
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
		to_mark = NIL;			/* its memory goes with the transaction */
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
	hash = get_hash_value(usage_entries, &id);
	lock = &usage_locks[hash % USAGE_PARTITIONS].lock;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (hash_search_with_hash_value(usage_entries, &id, hash, HASH_REMOVE, NULL) != NULL)
	{
		pg_atomic_fetch_sub_u32(&usage_shared->tracked, 1);
		usage_shared->removed[hash % USAGE_PARTITIONS]++;
	}
	LWLockRelease(lock);
}

void
usage_flush_began(void)
{
	pg_atomic_write_u64(&usage_shared->flush_began, (uint64) GetCurrentTimestamp());
}

/*
 * Make room when the table is nearly full: remove entries that have nothing
 * pending and whose rate limit is full again, a quarter of the table at most.
 * A standby has nobody to write what is pending, so there it goes too, and is
 * counted as dropped.
 */
void
usage_evict(void)
{
	int			tracked = pg_atomic_read_u32(&usage_shared->tracked);
	int			room = usage_shared->max_tracked / 4;
	UsageKey   *keys;
	int			count = 0;
	bool		drop = RecoveryInProgress();
	int			dropped = 0;
	uint64		now_ns = (uint64) GetCurrentTimestamp() * 1000;
	HASH_SEQ_STATUS scan;
	UsageEntry *entry;

	if (tracked < usage_shared->max_tracked - usage_shared->max_tracked / 8)
		return;
	room = Max(room, 1);
	keys = palloc(room * sizeof(UsageKey));
	lock_all();
	hash_seq_init(&scan, usage_entries);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if ((usage_is_pending(entry) && !drop) ||
			pg_atomic_read_u64(&entry->arrival) > now_ns)
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
		uint32		hash = get_hash_value(usage_entries, &keys[i]);
		LWLock	   *lock = &usage_locks[hash % USAGE_PARTITIONS].lock;

		LWLockAcquire(lock, LW_EXCLUSIVE);
		entry = hash_search_with_hash_value(usage_entries, &keys[i], hash, HASH_FIND,
											NULL);
		if (entry != NULL && (!usage_is_pending(entry) || drop) &&
			pg_atomic_read_u64(&entry->arrival) <= now_ns)
		{
			dropped += usage_is_pending(entry);
			hash_search_with_hash_value(usage_entries, &keys[i], hash, HASH_REMOVE,
										NULL);
			pg_atomic_fetch_sub_u32(&usage_shared->tracked, 1);
			usage_shared->removed[hash % USAGE_PARTITIONS]++;
		}
		LWLockRelease(lock);
	}
	stats_count_many(STATS_DROPPED, dropped);
	pfree(keys);
}

/* Totals over all entries, for the view stats. */
void
usage_totals(UsageTotals *totals)
{
	HASH_SEQ_STATUS scan;
	UsageEntry *entry;

	memset(totals, 0, sizeof(UsageTotals));
	totals->tracked = pg_atomic_read_u32(&usage_shared->tracked);
	totals->max_tracked = usage_shared->max_tracked;
	totals->last_flush_at = (TimestampTz) pg_atomic_read_u64(&usage_shared->last_flush_at);
	totals->pending_since = (TimestampTz) pg_atomic_read_u64(&usage_shared->flush_began);
	lock_all();
	hash_seq_init(&scan, usage_entries);
	while ((entry = hash_seq_search(&scan)) != NULL)
		if (usage_is_pending(entry))
			totals->pending++;
	unlock_all();
}
