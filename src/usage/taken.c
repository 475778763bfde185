/*
 * taken.c
 *		The counts that a running flush has taken from the entries.
 *
 * An entry has the counts, and how much of them is known: known counts are in
 * the table, or a flush is about to write them.  A flush takes the difference,
 * counts - known, by raising known to the counts, so no other flush takes it.
 * Later the flush either settles the difference or gives it back.  Settling
 * adds what the table has beyond the entry, because other servers may send their
 * use to the same table.
 *
 * The writer of the table adds counts - min(known, in_table).  If in_table is
 * less than known, known counts were lost: by a failover, or when the server
 * ended in the middle of a commit.
 *
 * A flush to this server's own tables is settled or given back at the end of its
 * transaction, before the transaction releases its locks.  A prepared
 * transaction counts as written.  If it is rolled back later, the table has
 * less than what is known.
 *
 * Locking: counts that are to be written here are taken under the lock of
 * flushes, so that no other flush writes the table meanwhile by an older
 * known.  Otherwise as record.c says.  The entry's spinlock guards known, and
 * the counters where they are compared with it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "usage/shared.h"

/* Seconds for which the use of a key that is not committed yet is kept. */
#define GONE_AFTER_SECONDS 60

/* A batch that this transaction writes; lives as long as the transaction. */
typedef struct Taken
{
	SubTransactionId subid;
	bool		is_ours;		/* else another server's: nothing is taken */
	int			count;			/* of copies that are taken */
	UsageCopy  *copies;
	bool	   *flushed;		/* per copy: as usage_flush() says */
	bool	   *gone;
} Taken;

static List *taken_batches = NIL;
static bool registered = false;

static UsageEntry *find_locked(Oid database, const UsageCopy *copy, LWLock **lock);
static void end_transaction(XactEvent event, void *arg);
static void end_subtransaction(SubXactEvent event, SubTransactionId mySubid,
							   SubTransactionId parentSubid, void *arg);
static Taken *add_batch(const UsageCopy *copies, int count, bool is_ours);
static void end_batch(const Taken *taken);
static void give_back_batch(const Taken *taken);
static void follow(Oid database, const UsageCopy *copy);

/*
 * Take the counts of a copy's key, and make the copy anew, under its stamp.
 * Return false if there is nothing to take.
 */
bool
usage_take(Oid database, UsageCopy *copy)
{
	LWLock	   *lock;
	UsageEntry *entry;
	bool		taken;

	if (usage_is_lost(copy))
		return usage_lost_take(database, copy);
	entry = find_locked(database, copy, &lock);
	taken = entry != NULL && usage_hash_set_stamp(entry, copy->stamp);

	if (taken)
		usage_copy_entry(entry, copy, true);
	LWLockRelease(lock);
	return taken;
}

/* Give back the counts that were taken, because they were not written. */
void
usage_give_back(Oid database, const UsageCopy *copy)
{
	LWLock	   *lock;
	UsageEntry *entry;

	if (usage_is_lost(copy))
		return;
	entry = find_locked(database, copy, &lock);
	if (entry != NULL)
	{
		SpinLockAcquire(&entry->mutex);
		entry->known_uses -= copy->use_count - copy->known_uses;
		entry->known_denials -= copy->denied_count - copy->known_denials;
		SpinLockRelease(&entry->mutex);
		usage_hash_set_dirty(entry);
	}
	LWLockRelease(lock);
}

/*
 * Settle the counts that were taken: they are in the table, committed.  Add to
 * the entry what the table has beyond them, unless the entry has been taken
 * from, or made anew, meanwhile.
 */
void
usage_settle(Oid database, const UsageCopy *copy)
{
	LWLock	   *lock;
	UsageEntry *entry;
	int64		more_uses = Max(copy->table_uses - copy->use_count, 0);
	int64		more_denials = Max(copy->table_denials - copy->denied_count, 0);

	/* Before the entry becomes clean: usage_look_all() relies on this order. */
	pg_atomic_write_u64(&usage_shared->last_flush_at, (uint64) GetCurrentTimestamp());
	if (usage_is_lost(copy))
	{
		usage_lost_settle(copy);
		return;
	}
	entry = find_locked(database, copy, &lock);
	if (entry != NULL)
	{
		SpinLockAcquire(&entry->mutex);
		if (entry->known_uses == copy->use_count &&
			entry->known_denials == copy->denied_count)
		{
			pg_atomic_fetch_add_u64(&entry->use_count, more_uses);
			pg_atomic_fetch_add_u64(&entry->denied_count, more_denials);
			entry->known_uses += more_uses;
			entry->known_denials += more_denials;
		}
		if (!copy->is_quota && entry->pepper_id == copy->pepper_id)
		{
			entry->pepper_id = 0;
			memset(entry->digest, 0, DIGEST_SHA256_LEN);
		}
		SpinLockRelease(&entry->mutex);
		/* If another flush has copied the entry meanwhile, that one makes it clean. */
		if (usage_hash_set_clean(entry, copy->stamp))
			pg_atomic_write_u32(&entry->round,
								pg_atomic_read_u32(&usage_shared->round));
	}
	LWLockRelease(lock);
}

/*
 * The key of the counts that were taken does not exist.  Forget the key, except
 * if it was used a moment ago: then the transaction that makes the key may not
 * have committed yet.
 */
void
usage_forget_gone(Oid database, const UsageCopy *copy)
{
	TimestampTz now = GetCurrentTimestamp();

	/* SQL of an earlier release has no table for it. */
	if (usage_is_lost(copy))
	{
		usage_lost_settle(copy);
		return;
	}
	/* In both directions: a use is ahead of a clock that was set back. */
	if (TimestampDifferenceExceeds(copy->last_used_at, now,
								   GONE_AFTER_SECONDS * 1000) ||
		TimestampDifferenceExceeds(now, copy->last_used_at,
								   GONE_AFTER_SECONDS * 1000))
		usage_forget(database, copy->key_id);
	else
		usage_give_back(database, copy);
}

/* Return the entry of a copy, or NULL, with its partition locked, shared. */
static UsageEntry *
find_locked(Oid database, const UsageCopy *copy, LWLock **lock)
{
	UsageTarget target;

	usage_hash_target(&target, database, copy->key_id);
	*lock = target.lock;
	LWLockAcquire(target.lock, LW_SHARED);
	return usage_hash_find(&target);
}

/*
 * Write the pending counts of those copies' keys into the tables of this
 * database, in the caller's transaction.  Return the number of keys written, or
 * USAGE_BUSY_HERE if another flush holds the lock: then nothing is written.
 */
int
usage_flush_here(const UsageCopy *copies, int count)
{
	Taken	   *taken;

	/* A batch that was sent must be written first: see usage_deliver(). */
	if (!usage_lock_flushes(false) ||
		usage_outbox_database() == MyDatabaseId)
		return USAGE_BUSY_HERE;
	taken = add_batch(copies, count, true);
	for (int i = 0; i < count; i++)
	{
		taken->copies[taken->count] = copies[i];
		if (usage_take(MyDatabaseId, &taken->copies[taken->count]))
			taken->count++;
	}
	return usage_flush(taken->copies, taken->count, taken->flushed, taken->gone);
}

/*
 * When this transaction commits, raise the entries of this server to the counts
 * that it has written for another server.  The transaction holds the lock of
 * flushes, so no flush takes from the entries meanwhile.
 */
void
usage_follow_at_commit(const UsageCopy *copies, int count, const bool *flushed)
{
	Taken	   *taken;

	if (usage_shared == NULL)
		return;
	taken = add_batch(copies, count, false);
	memcpy(taken->copies, copies, count * sizeof(UsageCopy));
	memcpy(taken->flushed, flushed, count * sizeof(bool));
	taken->count = count;
}

/* Return a new batch, of which nothing is taken yet. */
static Taken *
add_batch(const UsageCopy *copies, int count, bool is_ours)
{
	MemoryContext before;
	Taken	   *taken;

	if (!registered)
	{
		RegisterXactCallback(end_transaction, NULL);
		RegisterSubXactCallback(end_subtransaction, NULL);
		registered = true;
	}
	before = MemoryContextSwitchTo(TopTransactionContext);
	taken = palloc0(sizeof(Taken));
	taken->subid = GetCurrentSubTransactionId();
	taken->is_ours = is_ours;
	taken->copies = palloc(count * sizeof(UsageCopy));
	taken->flushed = palloc0(count * sizeof(bool));
	taken->gone = palloc0(count * sizeof(bool));
	taken_batches = lappend(taken_batches, taken);
	MemoryContextSwitchTo(before);
	return taken;
}

/* XactCallback; runs before the transaction releases its locks. */
static void
end_transaction(XactEvent event, void *arg)
{
	ListCell   *cell;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		event != XACT_EVENT_PREPARE)
		return;
	foreach(cell, taken_batches)
	{
		if (event == XACT_EVENT_ABORT)
			give_back_batch(lfirst(cell));
		else if (event == XACT_EVENT_COMMIT)
			end_batch(lfirst(cell));
	}
	taken_batches = NIL;		/* its memory goes with the transaction */
}

/* SubXactCallback: a rollback gives back all that was taken inside. */
static void
end_subtransaction(SubXactEvent event, SubTransactionId mySubid,
				   SubTransactionId parentSubid, void *arg)
{
	if (event != SUBXACT_EVENT_ABORT_SUB)
		return;
	while (taken_batches != NIL)
	{
		Taken	   *taken = llast(taken_batches);

		if (taken->subid < mySubid)
			break;
		give_back_batch(taken);
		taken_batches = list_delete_last(taken_batches);
	}
}

/* The transaction has committed: settle its batch. */
static void
end_batch(const Taken *taken)
{
	for (int i = 0; i < taken->count; i++)
	{
		const UsageCopy *copy = &taken->copies[i];

		if (!taken->is_ours)
		{
			if (taken->flushed[i])
				follow(MyDatabaseId, copy);
		}
		else if (taken->flushed[i])
			usage_settle(MyDatabaseId, copy);
		else if (taken->gone[i])
			usage_forget_gone(MyDatabaseId, copy);
		else
			usage_give_back(MyDatabaseId, copy);
	}
}

static void
give_back_batch(const Taken *taken)
{
	if (!taken->is_ours)
		return;
	for (int i = 0; i < taken->count; i++)
		usage_give_back(MyDatabaseId, &taken->copies[i]);
}

/* Raise an entry to what the table has beyond the known counts. */
static void
follow(Oid database, const UsageCopy *copy)
{
	LWLock	   *lock;
	UsageEntry *entry = find_locked(database, copy, &lock);

	if (entry != NULL)
	{
		int64		more_uses;
		int64		more_denials;

		SpinLockAcquire(&entry->mutex);
		more_uses = Max(copy->table_uses - entry->known_uses, 0);
		more_denials = Max(copy->table_denials - entry->known_denials, 0);
		pg_atomic_fetch_add_u64(&entry->use_count, more_uses);
		pg_atomic_fetch_add_u64(&entry->denied_count, more_denials);
		entry->known_uses += more_uses;
		entry->known_denials += more_denials;
		SpinLockRelease(&entry->mutex);
	}
	LWLockRelease(lock);
}
