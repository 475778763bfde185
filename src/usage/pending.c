/*
 * pending.c
 *		Entries that no flush has written.
 *
 * Locking: as record.c says.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "utils/timestamp.h"

#include "base/stats.h"
#include "compat.h"
#include "usage/shared.h"

static int	compare_copies(const void *a, const void *b);
static bool is_wanted(UsageEntry *entry, const void *arg);

bool
usage_is_pending(UsageEntry *entry)
{
	return pg_atomic_read_u32(&entry->state) != USAGE_CLEAN;
}

/*
 * Copy an entry, whose partition is locked.  With take, also take its counts, as
 * usage_take() says.
 */
void
usage_copy_entry(UsageEntry *entry, UsageCopy *copy, bool take)
{
	bool		is_bucket = usage_is_bucket(entry->key.key_id);

	memcpy(copy->key_id, entry->key.key_id, TOKEN_KEY_ID_LEN);
	copy->key_id[TOKEN_KEY_ID_LEN] = '\0';
	copy->is_quota = is_bucket;
	if (is_bucket)
	{
		copy->since = entry->since;
		memcpy(copy->limit_id, entry->limit_id, sizeof(copy->limit_id));
		memcpy(copy->family, entry->family, sizeof(copy->family));
		copy->environment[0] = '\0';
	}
	else
		memcpy(copy->environment, entry->environment, sizeof(copy->environment));
	copy->last_used_at = (TimestampTz) pg_atomic_read_u64(&entry->last_used_at);
	copy->ended_day = pg_atomic_read_u32(&entry->ended_day);
	SpinLockAcquire(&entry->mutex);
	copy->use_count = (int64) pg_atomic_read_u64(&entry->use_count);
	copy->denied_count = (int64) pg_atomic_read_u64(&entry->denied_count);
	copy->known_uses = entry->known_uses;
	copy->known_denials = entry->known_denials;
	if (take)
	{
		entry->known_uses = copy->use_count;
		entry->known_denials = copy->denied_count;
	}
	copy->has_addr = !is_bucket && entry->has_addr;
	copy->pepper_id = is_bucket ? 0 : entry->pepper_id;
	if (!is_bucket)
	{
		copy->addr = entry->addr;
		memcpy(copy->digest, entry->digest, DIGEST_SHA256_LEN);
	}
	SpinLockRelease(&entry->mutex);
}

/*
 * Return copies of a database's pending entries, palloc'd, for a flush to write.
 * With round, leave out the entries that this round has written: a key that is
 * used all the time is always pending, and is written once a round.  Entries
 * that are made while this function runs may be missing; the next flush has
 * them.
 */
UsageCopy *
usage_pending(Oid database, bool round, int *count)
{
	UsageWanted wanted = {
		.database = database,
		.round = round ? pg_atomic_read_u32(&usage_shared->round) : 0
	};
	UsageCopy  *copies;
	uint32		stamp;

	do
		stamp = pg_atomic_fetch_add_u32(&usage_shared->stamps, 1);
	while (stamp < USAGE_FIRST_STAMP);
	copies = usage_copy_entries(&wanted, true, stamp, count);
	if (pg_atomic_read_u32(&usage_shared->has_lost) != 0)
	{
		copies = repalloc_huge(copies, mul_size(*count + LOST_USES, sizeof(UsageCopy)));
		*count += usage_lost_copies(database, wanted.round, copies + *count);
	}
	/* In the order of the indexes, so that their pages stay in memory. */
	qsort(copies, *count, sizeof(UsageCopy), compare_copies);
	return copies;
}

static int
compare_copies(const void *a, const void *b)
{
	return memcmp(((const UsageCopy *) a)->key_id,
				  ((const UsageCopy *) b)->key_id, TOKEN_KEY_ID_LEN);
}

/*
 * Return copies of the wanted entries, of the pending ones or of all, palloc'd.
 * Give each entry that stamp, unless the stamp is USAGE_CLEAN.
 */
UsageCopy *
usage_copy_entries(const UsageWanted *wanted, bool pending, uint32 stamp, int *count)
{
	int			room = 64;
	UsageCopy  *copies = palloc(room * sizeof(UsageCopy));
	UsageEntry *entry;
	UsageWalk	walk = {.pending = pending, .wanted = is_wanted, .arg = wanted};

	*count = 0;
	while ((entry = usage_hash_next(&walk)) != NULL)
	{
		if (stamp == USAGE_CLEAN || usage_hash_set_stamp(entry, stamp))
		{
			copies[*count].stamp = stamp;
			usage_copy_entry(entry, &copies[(*count)++], false);
		}
		LWLockRelease(walk.lock);
		if (*count == room)
		{
			room *= 2;
			copies = repalloc_huge(copies, mul_size(room, sizeof(UsageCopy)));
		}
	}
	return copies;
}

/* UsageFilters. */
static bool
is_wanted(UsageEntry *entry, const void *arg)
{
	const UsageWanted *wanted = arg;

	return entry->key.database == wanted->database &&
		!(wanted->keys && usage_is_bucket(entry->key.key_id)) &&
		(wanted->round == 0 ||
		 pg_atomic_read_u32(&entry->round) != wanted->round) &&
		(wanted->tenant == NULL ||
		 entry->tenant == *wanted->tenant);
}

/*
 * Begin a round of flushes.  Return the databases with pending entries, with
 * unrecorded uses, or with a batch in the outbox.
 */
List *
usage_begin_round(void)
{
	List	   *databases = NIL;
	UsageEntry *entry;
	UsageWalk	walk = {.pending = true};

	/* 0 is the round of entries that no flush has written. */
	if (pg_atomic_add_fetch_u32(&usage_shared->round, 1) == 0)
		pg_atomic_write_u32(&usage_shared->round, 1);
	while ((entry = usage_hash_next(&walk)) != NULL)
	{
		Oid			database = entry->key.database;

		LWLockRelease(walk.lock);
		databases = list_append_unique_oid(databases, database);
	}
	if (OidIsValid(usage_outbox_database()))
		databases = list_append_unique_oid(databases, usage_outbox_database());
	return usage_lost_databases(databases);
}

/* Remove an entry that cannot be flushed because its key is gone. */
void
usage_forget(Oid database, const char *key_id)
{
	UsageTarget target;
	UsageEntry *entry;

	usage_hash_target(&target, database, key_id);
	LWLockAcquire(target.lock, LW_EXCLUSIVE);
	entry = usage_hash_find(&target);
	if (entry != NULL)
		usage_hash_remove(entry);
	LWLockRelease(target.lock);
}

/*
 * Throw away the entries of a database that is gone, or that has not the
 * extension any more.
 */
void
usage_forget_database(Oid database)
{
	UsageWanted wanted = {.database = database};
	UsageWalk	walk = {.wanted = is_wanted, .arg = &wanted};
	UsageEntry *entry;
	int			dropped = 0;

	while ((entry = usage_hash_next(&walk)) != NULL)
	{
		UsageKey	key = entry->key;

		dropped += usage_is_pending(entry);
		LWLockRelease(walk.lock);
		usage_forget(database, key.key_id);
	}
	usage_lost_forget(database);
	usage_outbox_discard(database);
	(void) usage_set_busy(database, false);
	stats_count_many(STATS_DROPPED, dropped);
}

/*
 * Return whether this server is a standby.  At the first call after a promotion
 * make all entries pending, the clean ones too: this server's tables may lack
 * counts that the old primary had, because replication had not brought them
 * back.
 */
bool
usage_note_recovery(void)
{
	bool		is_standby = RecoveryInProgress();
	UsageEntry *entry;
	UsageWalk	walk = {.pending = false};

	if (pg_atomic_read_u32(&usage_shared->standby) != 0 && !is_standby)
	{
		while ((entry = usage_hash_next(&walk)) != NULL)
		{
			if (!usage_is_rate_bucket(entry))
				usage_hash_set_dirty(entry);
			LWLockRelease(walk.lock);
		}
	}
	pg_atomic_write_u32(&usage_shared->standby, is_standby);
	return is_standby;
}

/* Note that the round that began then has written all that it found. */
void
usage_end_round(TimestampTz began)
{
	pg_atomic_write_u64(&usage_shared->pending_since, (uint64) began);
}

/*
 * Note whether a database's flush finds a lock busy.  Return whether the note
 * has changed.  There is room for one database: a second one waits.
 */
bool
usage_set_busy(Oid database, bool busy)
{
	uint32		expected = busy ? InvalidOid : database;

	return pg_atomic_compare_exchange_u32(&usage_shared->busy, &expected,
										  busy ? database : InvalidOid);
}
