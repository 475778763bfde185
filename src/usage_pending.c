/*
 * usage_pending.c
 *		What shared memory holds that no flush has written, and room for more.
 *
 * Locking: as usage.c says.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "primary.h"
#include "rk_apikeys.h"
#include "stats.h"
#include "usage.h"
#include "usage_shared.h"

/* Whose entries are copied. */
typedef struct Wanted
{
	Oid			database;
	const uint64 *tenant;		/* NULL: of any tenant */
	uint32		round;			/* those that it wrote are left out; 0: none are */
} Wanted;

static bool was_flushed_since(TimestampTz taken);
static UsageCopy *copy_entries(const Wanted *wanted, bool pending,
							   uint32 stamp, int *count);
static int	compare_copies(const void *a, const void *b);
static bool is_wanted(UsageEntry *entry, const void *arg);
static bool is_evictable(UsageEntry *entry, const void *arg);

static bool
is_pending(UsageEntry *entry)
{
	return pg_atomic_read_u32(&entry->state) != USAGE_CLEAN;
}

/*
 * Copy an entry, and take what it holds as usage_take() says, if that is asked
 * for.  Its partition is locked.
 */
void
usage_copy_entry(UsageEntry *entry, UsageCopy *copy, bool take)
{
	memcpy(copy->key_id, entry->key.key_id, TOKEN_KEY_ID_LEN);
	copy->key_id[TOKEN_KEY_ID_LEN] = '\0';
	memcpy(copy->environment, entry->environment, sizeof(copy->environment));
	copy->last_used_at = (TimestampTz) pg_atomic_read_u64(&entry->last_used_at);
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
	copy->has_addr = entry->has_addr;
	copy->addr = entry->addr;
	copy->pepper_id = entry->pepper_id;
	memcpy(copy->digest, entry->digest, DIGEST_SHA256_LEN);
	SpinLockRelease(&entry->mutex);
}

/*
 * What is pending of a database, palloc'd, for a flush to write; or of that what
 * this round of flushes has not written yet: a key that is used all the time is
 * always pending, and is written once a round.  Entries that are made while this
 * runs may be missing; the next flush has them.
 */
UsageCopy *
usage_pending(Oid database, bool round, int *count)
{
	Wanted		wanted = {
		.database = database,
		.round = round ? pg_atomic_read_u32(&usage_shared->round) : 0
	};
	UsageCopy  *copies;
	uint32		stamp;

	do
		stamp = pg_atomic_fetch_add_u32(&usage_shared->stamps, 1);
	while (stamp < USAGE_FIRST_STAMP);
	copies = copy_entries(&wanted, true, stamp, count);
	/* In the order of the indexes, whose pages then are at hand. */
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
 * What a snapshot that was taken then, or later, may not see in the table: of a
 * database, of the tenant with that hash or (NULL) of all.
 */
UsageCopy *
usage_unseen(Oid database, const uint64 *tenant, TimestampTz taken, int *count)
{
	/* What another server has written comes back by replication, later. */
	bool		all = primary_is_asked() || was_flushed_since(taken);
	Wanted		wanted = {.database = database, .tenant = tenant};
	UsageCopy  *copies = copy_entries(&wanted, !all, USAGE_CLEAN, count);

	/* A flush that came to its end meanwhile has hidden what it wrote. */
	pg_memory_barrier();
	if (!all && was_flushed_since(taken))
	{
		pfree(copies);
		copies = copy_entries(&wanted, false, USAGE_CLEAN, count);
	}
	return copies;
}

/* Entries are settled after the commit, and the time before them. */
static bool
was_flushed_since(TimestampTz taken)
{
	return (TimestampTz) pg_atomic_read_u64(&usage_shared->last_flush_at) >= taken;
}

/*
 * Copies of entries, of those that are pending or of all.  They are given that
 * stamp (USAGE_CLEAN: none).
 */
static UsageCopy *
copy_entries(const Wanted *wanted, bool pending, uint32 stamp, int *count)
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
	const Wanted *wanted = arg;

	return entry->key.database == wanted->database &&
		(wanted->round == 0 ||
		 pg_atomic_read_u32(&entry->round) != wanted->round) &&
		(wanted->tenant == NULL ||
		 entry->tenant == *wanted->tenant);
}

/* arg: the time in nanoseconds, as the limiter has it. */
static bool
is_evictable(UsageEntry *entry, const void *arg)
{
	return (!is_pending(entry) ||
			(RecoveryInProgress() && rk_apikeys_primary_conninfo[0] == '\0')) &&
		pg_atomic_read_u64(&entry->arrival) <= *(const uint64 *) arg;
}

/* The databases that have something pending, or on its way. */
List *
usage_pending_databases(void)
{
	List	   *databases = NIL;
	UsageEntry *entry;
	UsageWalk	walk = {.pending = true};

	while ((entry = usage_hash_next(&walk)) != NULL)
	{
		Oid			database = entry->key.database;

		LWLockRelease(walk.lock);
		databases = list_append_unique_oid(databases, database);
	}
	if (usage_outbox->count > 0)
		databases = list_append_unique_oid(databases, usage_outbox->database);
	return databases;
}

/* Remove an entry that cannot be flushed: its key is gone. */
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
 * Have all entries written, the clean ones too: what the primary has had from
 * this server, or has told it, may not have come back before a promotion.
 */
void
usage_write_all(void)
{
	UsageEntry *entry;
	UsageWalk	walk = {.pending = false};

	while ((entry = usage_hash_next(&walk)) != NULL)
	{
		usage_hash_set_dirty(entry);
		LWLockRelease(walk.lock);
	}
}

/* A round of flushes begins. */
void
usage_begin_round(void)
{
	/* 0 is the round of entries that no flush has written. */
	if (pg_atomic_add_fetch_u32(&usage_shared->round, 1) == 0)
		pg_atomic_write_u32(&usage_shared->round, 1);
}

/* A round that began then has written all that it found. */
void
usage_end_round(TimestampTz began)
{
	pg_atomic_write_u64(&usage_shared->pending_since, (uint64) began);
}

/* What became of the last worker. */
UsageEnd
usage_end(void)
{
	return (UsageEnd) pg_atomic_read_u32(&usage_shared->end);
}

void
usage_set_end(UsageEnd end)
{
	pg_atomic_write_u32(&usage_shared->end, end);
}

/*
 * Make room when the table is nearly full: remove entries that have nothing
 * pending and whose rate limit is full again, a quarter of the table at most.
 * A standby without a primary_conninfo has nobody to write what is pending, so
 * there it goes too, and is counted as dropped.  Each time goes on where the
 * one before has ended.
 */
void
usage_evict(void)
{
	static uint32 from = 0;
	int			room = Max(usage_shared->max_tracked / 4, 1);
	UsageKey   *keys;
	int			count = 0;
	int			dropped = 0;
	uint64		now_ns = (uint64) GetCurrentTimestamp() * 1000;
	UsageEntry *entry;
	UsageWalk	walk = {.wanted = is_evictable, .arg = &now_ns, .at = from};

	if (pg_atomic_read_u32(&usage_shared->tracked) <
		(uint32) (usage_shared->max_tracked - usage_shared->max_tracked / 8))
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
			dropped += is_pending(entry);
			usage_hash_remove(entry);
		}
		LWLockRelease(target.lock);
	}
	stats_count_many(STATS_DROPPED, dropped);
	pfree(keys);
}

/* Totals over all entries, for the view stats. */
void
usage_totals(UsageTotals *totals)
{
	UsageWalk	walk = {.pending = true};

	memset(totals, 0, sizeof(UsageTotals));
	totals->tracked = pg_atomic_read_u32(&usage_shared->tracked);
	totals->max_tracked = usage_shared->max_tracked;
	totals->last_flush_at = (TimestampTz) pg_atomic_read_u64(&usage_shared->last_flush_at);
	totals->pending_since = (TimestampTz) pg_atomic_read_u64(&usage_shared->pending_since);
	while (usage_hash_next(&walk) != NULL)
	{
		totals->pending++;
		LWLockRelease(walk.lock);
	}
}
