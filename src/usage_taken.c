/*
 * usage_taken.c
 *		What a flush has taken from the entries, until it is known what came of
 *		it.
 *
 * An entry tells what was counted, and how much of that is known: it is in the
 * table, or a flush is about to write it.  A flush takes the difference by
 * moving what is known up to what was counted, so nobody else takes it.  Then
 * either it is settled, with what the table has now, which may be more, as
 * other servers send their use there; or it is given back.
 *
 * Whoever writes the table adds what was counted less what is known, or less
 * what the table has, if that is less: that is what was known and has been lost
 * since, by a failover or an end of the server in the middle of a commit.
 *
 * A flush to this server's own tables is settled or given back by the end of
 * its transaction, before its locks go.  A prepared one is taken for written:
 * if it is rolled back later, the table has less than what is known.
 *
 * Locking: what is to be written here is taken under the advisory lock of
 * flushes, so that the table is not written, with what is known, by another
 * flush meanwhile.  Then as usage.c says.  What is known, and the counters where
 * they are compared with it, under the entry's spinlock.  The outbox has none:
 * the launcher runs one worker at a time.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "usage.h"
#include "usage_shared.h"

/* Seconds that a use of a key which nobody can see yet is kept for. */
#define GONE_AFTER_SECONDS 60

/* A batch that this transaction writes; lives as long as it does. */
typedef struct Taken
{
	SubTransactionId subid;
	bool		is_ours;		/* else another server's: nothing is taken */
	int			count;			/* of copies that are taken */
	UsageCopy  *copies;
	bool	   *flushed;		/* per copy: as usage_flush() says */
	bool	   *gone;
} Taken;

UsageOutbox *usage_outbox = NULL;

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

/* Make the outbox, where it is placed. */
void
usage_outbox_init(void)
{
	memset(usage_outbox, 0, sizeof(UsageOutbox));
	if (!pg_strong_random(usage_outbox->sender, sizeof(usage_outbox->sender)))
		elog(ERROR, "could not generate a random number");
}

/*
 * Take what was counted of a copy's key since it was last taken: the copy is
 * made anew, under its stamp.  False if there is nothing to take.
 */
bool
usage_take(Oid database, UsageCopy *copy)
{
	LWLock	   *lock;
	UsageEntry *entry = find_locked(database, copy, &lock);
	bool		taken = entry != NULL && usage_hash_set_stamp(entry, copy->stamp);

	if (taken)
		usage_copy_entry(entry, copy, true);
	LWLockRelease(lock);
	return taken;
}

/* Give back what was taken: it was not written. */
void
usage_give_back(Oid database, const UsageCopy *copy)
{
	LWLock	   *lock;
	UsageEntry *entry = find_locked(database, copy, &lock);

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
 * What was taken is in the table, committed.  What the table has beside it comes
 * to the entry, unless that has been taken from, or made anew, meanwhile.
 */
void
usage_settle(Oid database, const UsageCopy *copy)
{
	LWLock	   *lock;
	UsageEntry *entry;
	int64		more_uses = Max(copy->table_uses - copy->use_count, 0);
	int64		more_denials = Max(copy->table_denials - copy->denied_count, 0);

	/* First: usage_unseen() takes an entry that is settled for seen by then. */
	pg_atomic_write_u64(&usage_shared->last_flush_at, (uint64) GetCurrentTimestamp());
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
		if (entry->pepper_id == copy->pepper_id)
			entry->pepper_id = 0;
		SpinLockRelease(&entry->mutex);
		pg_atomic_write_u32(&entry->round,
							pg_atomic_read_u32(&usage_shared->round));
		usage_hash_set_clean(entry, copy->stamp);
	}
	LWLockRelease(lock);
}

/*
 * What was taken is of a key that does not exist: forget the key, but for one
 * that was used just now, and may be in a transaction that has yet to commit.
 */
void
usage_forget_gone(Oid database, const UsageCopy *copy)
{
	TimestampTz now = GetCurrentTimestamp();

	/* Either way: a use may be ahead of a clock that was set back. */
	if (TimestampDifferenceExceeds(copy->last_used_at, now,
								   GONE_AFTER_SECONDS * 1000) ||
		TimestampDifferenceExceeds(now, copy->last_used_at,
								   GONE_AFTER_SECONDS * 1000))
		usage_forget(database, copy->key_id);
	else
		usage_give_back(database, copy);
}

/* The entry of a copy, or NULL; its partition is locked, shared, either way. */
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
 * Write what is pending of the keys of those copies into the tables of this
 * database, in the caller's transaction.  Returns how many keys that were: none
 * if another flush is under way.
 */
int
usage_flush_here(const UsageCopy *copies, int count)
{
	Taken	   *taken;

	/* What was sent comes first: see primary_deliver(). */
	if (!usage_lock_flushes(false) ||
		(usage_outbox->count > 0 && usage_outbox->database == MyDatabaseId))
		return 0;
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
 * Once this transaction has committed, what it has written for another server
 * comes to the entries.  It holds the lock of a flush: nobody has taken from
 * them meanwhile.
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

/* Room for a batch, of which nothing is taken yet. */
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

/* XactCallback; runs before the transaction's locks go. */
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

/* SubXactCallback: whatever was taken since it began goes back with it. */
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

/* It is committed. */
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

/* What the table has more than is known of it comes to the entry. */
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

/*
 * Note whether use reaches the primary.  Returns whether that is new, so that
 * the log tells each change once.
 */
bool
usage_set_failing(bool failing)
{
	return pg_atomic_exchange_u32(&usage_shared->failing, failing) != (uint32) failing;
}
