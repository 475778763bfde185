/*
 * lost.c
 *		Uses that were not recorded for lack of room, so that no key that was used
 *		seems to be unused.
 *
 * The keys are divided by a hash of their id.  Of each part the time of its last
 * unrecorded use is kept: here, and by a flush in the table unrecorded_uses.  So a
 * key can seem to be used later than it was, and never earlier.
 *
 * For a flush, such a time is a copy with a key id that no key has.  So a standby
 * sends it as it sends a key's use.
 *
 * Locking: a spinlock guards the times.  It may be taken under a partition's lock.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "usage/shared.h"

StaticAssertDecl(TOKEN_KEY_ID_LEN == 12, "a copy's key id has a mark and 11 digits");

/* Columns of rk_apikeys.unrecorded_uses, in the order of its CREATE TABLE. */
enum LostColumn
{
	LOST_PART = 1,
	LOST_LAST_USED_AT
};

/* The first character of a copy's key id, which a key's id does not have. */
#define LOST_MARK '!'

static int	part_of(const char *key_id);
static bool is_of(const LostUse *lost, Oid database);
static void get(int number, LostUse *lost);

/*
 * Return the part of a key.  The tables keep the number, so the hash must not
 * change: it is FNV-1a.
 */
static int
part_of(const char *key_id)
{
	uint32		hash = 2166136261;

	for (int i = 0; i < TOKEN_KEY_ID_LEN; i++)
		hash = (hash ^ (unsigned char) key_id[i]) * 16777619;
	return (int) ((hash ^ hash >> 16) % LOST_USES);
}

/* Note a use of a key that was not recorded. */
void
usage_lost_note(Oid database, const char *key_id, TimestampTz at)
{
	usage_lost_load(part_of(key_id), database, at);
}

/* Note a use of a key of that part that was not recorded. */
void
usage_lost_load(int number, Oid database, TimestampTz at)
{
	LostUse    *lost;

	if (number < 0 || number >= LOST_USES)
		return;
	lost = &usage_shared->lost[number];
	SpinLockAcquire(&usage_shared->lost_mutex);
	if (lost->database != database)
		lost->database = OidIsValid(lost->database) ? LOST_SEVERAL : database;
	lost->at = Max(lost->at, at);
	SpinLockRelease(&usage_shared->lost_mutex);
	pg_atomic_write_u32(&usage_shared->has_lost, 1);
}

/* Copy the time of a part. */
static void
get(int number, LostUse *lost)
{
	SpinLockAcquire(&usage_shared->lost_mutex);
	*lost = usage_shared->lost[number];
	SpinLockRelease(&usage_shared->lost_mutex);
}

/*
 * Set *lost to the time of the next part, from *number on, that no table has.
 * Return false if there is none.
 */
bool
usage_lost_next(int *number, LostUse *lost)
{
	if (pg_atomic_read_u32(&usage_shared->has_lost) == 0)
		return false;
	for (; *number < LOST_USES; (*number)++)
	{
		get(*number, lost);
		if (lost->at > lost->written)
			return true;
	}
	return false;
}

static bool
is_of(const LostUse *lost, Oid database)
{
	return lost->database == database || lost->database == LOST_SEVERAL;
}

/*
 * Add copies of a database's times that no flush has written, except of those that
 * the round (0: none) has written.  Return their number, at most LOST_USES.
 */
int
usage_lost_copies(Oid database, uint32 round, UsageCopy *copies)
{
	int			count = 0;
	LostUse		lost;

	for (int i = 0; usage_lost_next(&i, &lost); i++)
	{
		UsageCopy  *copy = &copies[count];

		if (!is_of(&lost, database) || (round != 0 && lost.round == round))
			continue;
		memset(copy, 0, sizeof(UsageCopy));
		snprintf(copy->key_id, sizeof(copy->key_id), "%c%011d", LOST_MARK, i);
		strlcpy(copy->environment, "lost", sizeof(copy->environment));
		copy->last_used_at = lost.at;
		count++;
	}
	return count;
}

/* Add the databases with times that no flush has written. */
List *
usage_lost_databases(List *databases)
{
	LostUse		lost;

	for (int i = 0; usage_lost_next(&i, &lost); i++)
		if (lost.database != LOST_SEVERAL)
			databases = list_append_unique_oid(databases, lost.database);
	return databases;
}

/* Forget the times of a database that is gone. */
void
usage_lost_forget(Oid database)
{
	for (int i = 0; i < LOST_USES; i++)
	{
		LostUse    *lost = &usage_shared->lost[i];

		SpinLockAcquire(&usage_shared->lost_mutex);
		if (lost->database == database)
			memset(lost, 0, sizeof(LostUse));
		SpinLockRelease(&usage_shared->lost_mutex);
	}
}

/* Return whether a copy is of such a time, and not of a key. */
bool
usage_is_lost(const UsageCopy *copy)
{
	return !copy->is_quota && copy->key_id[0] == LOST_MARK;
}

/* Return the part of a copy; -1 if another server has made the number up. */
int
usage_lost_number(const UsageCopy *copy)
{
	long		number = strtol(copy->key_id + 1, NULL, 10);

	return number >= 0 && number < LOST_USES ? (int) number : -1;
}

/* Make a copy anew.  Return false if a flush has written its time. */
bool
usage_lost_take(Oid database, UsageCopy *copy)
{
	LostUse		lost;

	get(usage_lost_number(copy), &lost);
	copy->last_used_at = lost.at;
	return is_of(&lost, database) && lost.at > lost.written;
}

/*
 * Note that a copy is in the table, committed.  The time of keys of several
 * databases is written by each, again and again.
 */
void
usage_lost_settle(const UsageCopy *copy)
{
	LostUse    *lost = &usage_shared->lost[usage_lost_number(copy)];

	SpinLockAcquire(&usage_shared->lost_mutex);
	if (lost->database != LOST_SEVERAL)
		lost->written = Max(lost->written, copy->last_used_at);
	lost->round = pg_atomic_read_u32(&usage_shared->round);
	SpinLockRelease(&usage_shared->lost_mutex);
}

/*
 * Return when a key of each part of this database's keys was last used without a
 * record: LOST_USES times, palloc'd, 0 for never; NULL if all are 0.
 */
TimestampTz *
usage_lost_times(void)
{
	TimestampTz *times = palloc0(LOST_USES * sizeof(TimestampTz));
	bool		found = false;
	Oid			table = store_table("unrecorded_uses", true);
	Relation	rel = OidIsValid(table) ? try_table_open(table, AccessShareLock) : NULL;

	if (usage_shared != NULL && pg_atomic_read_u32(&usage_shared->has_lost) != 0)
	{
		for (int i = 0; i < LOST_USES; i++)
		{
			LostUse		lost;

			get(i, &lost);
			if (is_of(&lost, MyDatabaseId))
				times[i] = lost.at;
			found |= times[i] != 0;
		}
	}
	if (rel != NULL)
	{
		/* In parallel mode no snapshot can be taken. */
		Snapshot	snapshot = RegisterSnapshot(IsInParallelMode() ? GetActiveSnapshot() : GetLatestSnapshot());
		SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
		HeapTuple	row;

		while (HeapTupleIsValid(row = systable_getnext(scan)))
		{
			bool		isnull;
			int			part = DatumGetInt32(heap_getattr(row, LOST_PART, RelationGetDescr(rel), &isnull));
			TimestampTz at = DatumGetTimestampTz(heap_getattr(row, LOST_LAST_USED_AT, RelationGetDescr(rel), &isnull));

			if (part >= 0 && part < LOST_USES)
				times[part] = Max(times[part], at);
			found = true;
		}
		systable_endscan(scan);
		UnregisterSnapshot(snapshot);
		table_close(rel, AccessShareLock);
	}
	if (found)
		return times;
	pfree(times);
	return NULL;
}

/* Return the time of a key (TOKEN_KEY_ID_LEN bytes) in usage_lost_times(). */
TimestampTz
usage_lost_time(const TimestampTz *times, const char *key_id)
{
	return times == NULL ? 0 : times[part_of(key_id)];
}
