/*
 * limit.c
 *		The limits that bind a key, and what a verify takes from them.
 *
 * A key is bound by its own rate limit and by the rows of rk_apikeys.limits that
 * match it.  Each has a bucket in shared memory: see usage/bucket.c.  All of them
 * must have the cost.  So a verify reserves the cost in one after the other, takes
 * it from the last, and then uses it in the others.  If one refuses, the verify
 * returns what it reserved.  The order is: the key's own limit, rate limits,
 * quotas.
 *
 * The limits of a key are read by index, under the latest snapshot.  They are
 * kept with a kept key, because a change of a limit sends the same message as a
 * change of a key: see cache.c.  Without limits in the database nothing is read.
 *
 * A quota counts by the calendar, in UTC.  Its bucket counts since the period
 * began, or since it was reset in the period.
 *
 * Memory: a key's limits are one piece.  Those of a kept key live with the key.
 *
 * Trust: the rows are read past privileges and policies, because a limit binds a
 * key whoever verifies it.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "base/limiter.h"
#include "base/store.h"
#include "compat.h"
#include "key/cache.h"
#include "key/limit.h"
#include "token/shown.h"
#include "usage/usage.h"

/* Bytes of a limit's name, as the table allows, and a zero. */
#define NAME_SIZE 64

/* Names that a session remembers to exist. */
#define KNOWN_NAMES 16

/* Columns of rk_apikeys.limits, in the order of its CREATE TABLE. */
enum LimitColumn
{
	LIMIT_ID = 1,
	LIMIT_TENANT,
	LIMIT_NAME,
	LIMIT_OWNER,
	LIMIT_ENVIRONMENT,
	LIMIT_FAMILY,
	LIMIT_PER_KEY,
	LIMIT_UNITS,
	LIMIT_RATE_WINDOW,
	LIMIT_PERIOD,
	LIMIT_ALWAYS,
	LIMIT_RESET_AT,
	LIMIT_COLUMNS = LIMIT_RESET_AT
};

/* A limit that binds a key. */
typedef struct Bound
{
	char		name[NAME_SIZE];
	bool		always;
	char		period;			/* its first letter; 0: a rate limit */
	TimestampTz reset_at;		/* DT_NOBEGIN: never */
	/* the calendar period that the bucket is of */
	TimestampTz start;
	TimestampTz end;
	UsageBucket bucket;
} Bound;

struct KeyLimits
{
	int			count;
	Bound		bounds[FLEXIBLE_ARRAY_MEMBER];
};

static KeyLimits *limits_of(const StoredKey *key, TimestampTz now);
static Size size_of(int count);
static void add_own(KeyLimits *limits, const StoredKey *key);
static KeyLimits *add_rows(KeyLimits *limits, const StoredKey *key);
static Relation open_limits(void);
static bool parse_row(HeapTuple row, TupleDesc desc, const StoredKey *key,
					  Bound *bound);
static int	compare_bounds(const void *a, const void *b);
static void set_period(Bound *bound, TimestampTz now);
static void check_names(const KeyLimits *limits, const LimitCall *call);
static bool name_is_known(text *name);
static bool name_exists(const char *name);
static bool binds(const Bound *bound, const LimitCall *call);
static bool is_named(const Bound *bound, text *name);
static void note_level(LimitCall *call, const Bound *bound, const UsageLevel *level);

/*
 * Take the cost from all limits that bind a key, or from none.  Return
 * VERDICT_VALID, or the reason of the limit that refused, and set the results of
 * the call.  Raise 22023 for a name that no limit has, and for a cost above the
 * units of a limit.
 */
Verdict
limit_take(const StoredKey *key, LimitCall *call, TimestampTz now)
{
	KeyLimits  *limits;
	int			left = 0;		/* limits that are still to be asked */
	int			from;

	call->name = NULL;
	if (key->rate_limit == 0 && call->names_count == 0 && !cache_has_limits())
		return VERDICT_VALID;
	limits = limits_of(key, now);
	if (call->names_count > 0)
		check_names(limits, call);
	for (int i = 0; i < limits->count; i++)
	{
		const Bound *bound = &limits->bounds[i];

		if (!binds(bound, call))
			continue;
		left++;
		if (call->cost > bound->bucket.rate.units)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("cost %d is above the limit \"%s\" of API key \"%s\": " INT64_FORMAT " units",
							call->cost, bound->name, key->key_id,
							bound->bucket.rate.units),
					 errhint("Split the request, or raise the limit.")));
	}
	if (left == 0)
		return VERDICT_VALID;
	if (!usage_is_shared())
		return VERDICT_LIMITER_UNAVAILABLE;

	from = usage_charges();
	for (int i = 0; i < limits->count; i++)
	{
		Bound	   *bound = &limits->bounds[i];
		UsageLevel	level;
		LimitResult result;

		if (!binds(bound, call))
			continue;
		if (now < bound->start || now >= bound->end)
			set_period(bound, now);
		/* What passes the last limit has passed all. */
		result = --left == 0 && !call->at_commit ?
			usage_bucket_take(&bound->bucket, call->cost, now, &level) :
			usage_charge(&bound->bucket, call->cost, now, &level);
		if (result != LIMIT_PASSED)
		{
			usage_charge_return(from);
			if (result == LIMIT_UNAVAILABLE)
			{
				call->name = NULL;
				return VERDICT_LIMITER_UNAVAILABLE;
			}
			note_level(call, bound, &level);
			call->wait = bound->period == 0 ? level.wait :
				bound->period == 't' ? -1 : bound->end - now;
			return bound->period == 0 ? VERDICT_RATE_LIMITED : VERDICT_QUOTA_EXCEEDED;
		}
		if (call->name == NULL || level.remaining < call->remaining)
			note_level(call, bound, &level);
	}
	if (!call->at_commit)
		usage_charge_use(from);
	return VERDICT_VALID;
}

/*
 * Set *level to what a limit has.  Of a quota, resets_at is the end of the period,
 * or DT_NOEND.
 */
void
limit_look(const LimitRow *row, TimestampTz now, UsageLevel *level)
{
	Bound		bound;

	memset(&bound, 0, sizeof(Bound));
	if (row->limit_id != NULL)
		memcpy(bound.bucket.limit_id, row->limit_id, UUID_LEN);
	if (row->family != NULL)
		strlcpy(bound.bucket.family, row->family, sizeof(bound.bucket.family));
	bound.bucket.rate.units = row->units;
	if (row->rate_window != NULL)
		bound.bucket.rate.window = limiter_window(row->rate_window);
	else
		bound.period = *VARDATA_ANY(row->period);
	bound.bucket.tenant = usage_tenant(row->tenant);
	bound.reset_at = row->reset_at;
	set_period(&bound, now);
	usage_bucket_look(&bound.bucket, now, level);
	if (bound.period != 0)
		level->resets_at = bound.end;
}

/* Set the results of a call to what a limit has. */
static void
note_level(LimitCall *call, const Bound *bound, const UsageLevel *level)
{
	call->name = bound->name;
	call->units = bound->bucket.rate.units;
	call->remaining = level->remaining;
	call->resets_at = bound->period == 0 ? level->resets_at : bound->end;
}

/* Return the limits that may bind a key; good as long as the key is. */
static KeyLimits *
limits_of(const StoredKey *key, TimestampTz now)
{
	uint64		moment = cache_moment();
	KeyLimits  *limits;
	StoredKey  *keeper = unconstify(StoredKey *, key);

	if (key->limits != NULL)
		return key->limits;
	limits = palloc(size_of(key->rate_limit > 0));
	limits->count = 0;
	if (key->rate_limit > 0)
		add_own(limits, key);
	if (cache_has_limits())
		limits = add_rows(limits, key);
	qsort(limits->bounds, limits->count, sizeof(Bound), compare_bounds);
	for (int i = 0; i < limits->count; i++)
		set_period(&limits->bounds[i], now);
	if (!cache_may_keep(moment))
		return limits;
	keeper->limits = MemoryContextAlloc(GetMemoryChunkContext(keeper), size_of(limits->count));
	memcpy(keeper->limits, limits, size_of(limits->count));
	pfree(limits);
	return keeper->limits;
}

/* Return the bytes of so many limits. */
static Size
size_of(int count)
{
	return offsetof(KeyLimits, bounds) + count * sizeof(Bound);
}

/* Add a key's own rate limit, whose bucket goes by its family. */
static void
add_own(KeyLimits *limits, const StoredKey *key)
{
	Bound	   *bound = &limits->bounds[limits->count++];

	memset(bound, 0, sizeof(Bound));
	strlcpy(bound->name, "rate_limit", NAME_SIZE);
	bound->always = true;
	bound->reset_at = key->limits_reset_at;
	strlcpy(bound->bucket.family, key->family, sizeof(bound->bucket.family));
	bound->bucket.rate.units = key->rate_limit;
	bound->bucket.rate.window = limiter_window(&key->rate_window);
	bound->bucket.tenant = usage_tenant(key->tenant);
}

/* Add the rows that match a key.  Return the limits, maybe elsewhere. */
static KeyLimits *
add_rows(KeyLimits *limits, const StoredKey *key)
{
	Relation	rel = open_limits();
	TupleDesc	desc;
	Oid			index;
	ScanKeyData scankey;
	Snapshot	snapshot;
	SysScanDesc scan;
	HeapTuple	row;

	if (rel == NULL)
		return limits;
	desc = RelationGetDescr(rel);
	index = get_relname_relid("limits_tenant", RelationGetNamespace(rel));
	ScanKeyEntryInitialize(&scankey, 0, LIMIT_TENANT, BTEqualStrategyNumber, InvalidOid,
						   TupleDescAttr(desc, LIMIT_TENANT - 1)->attcollation,
						   F_TEXTEQ, PointerGetDatum(key->tenant));
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	/* A DBA may have dropped the index. */
	scan = systable_beginscan(rel, index, OidIsValid(index), snapshot, 1, &scankey);
	while (HeapTupleIsValid(row = systable_getnext(scan)))
	{
		Bound		bound;

		if (!parse_row(row, desc, key, &bound))
			continue;
		limits = repalloc(limits, size_of(limits->count + 1));
		limits->bounds[limits->count++] = bound;
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return limits;
}

/* Return the table of limits, locked; NULL if it is missing or not ours. */
static Relation
open_limits(void)
{
	Oid			table = store_table("limits", true);
	Relation	rel = OidIsValid(table) ? try_table_open(table, AccessShareLock) : NULL;

	if (rel != NULL && (rel->rd_rel->relkind != RELKIND_RELATION ||
						RelationGetDescr(rel)->natts < LIMIT_COLUMNS ||
						TupleDescAttr(RelationGetDescr(rel), LIMIT_ID - 1)->atttypid != UUIDOID))
	{
		table_close(rel, AccessShareLock);
		rel = NULL;
	}
	return rel;
}

/* Return whether a row binds a key.  If so, set *bound. */
static bool
parse_row(HeapTuple row, TupleDesc desc, const StoredKey *key, Bound *bound)
{
#define VALUE(column) (values[(column) - 1])
#define ISNULL(column) (nulls[(column) - 1])
	Datum		values[LIMIT_COLUMNS];
	bool		nulls[LIMIT_COLUMNS];
	bool		per_key;

	for (int i = 0; i < LIMIT_COLUMNS; i++)
		values[i] = heap_getattr(row, i + 1, desc, &nulls[i]);
	if ((!ISNULL(LIMIT_OWNER) && (key->owner == NULL ||
								  !store_same_text(DatumGetTextPP(VALUE(LIMIT_OWNER)), key->owner))) ||
		(!ISNULL(LIMIT_ENVIRONMENT) &&
		 !store_same_text(DatumGetTextPP(VALUE(LIMIT_ENVIRONMENT)), key->environment)) ||
		(!ISNULL(LIMIT_FAMILY) &&
		 strcmp(TextDatumGetCString(VALUE(LIMIT_FAMILY)), key->family) != 0))
		return false;

	memset(bound, 0, sizeof(Bound));
	text_to_cstring_buffer(DatumGetTextPP(VALUE(LIMIT_NAME)), bound->name, NAME_SIZE);
	bound->always = DatumGetBool(VALUE(LIMIT_ALWAYS));
	bound->reset_at = ISNULL(LIMIT_RESET_AT) ? DT_NOBEGIN :
		DatumGetTimestampTz(VALUE(LIMIT_RESET_AT));
	per_key = DatumGetBool(VALUE(LIMIT_PER_KEY));
	if (per_key)
	{
		bound->reset_at = Max(bound->reset_at, key->limits_reset_at);
		strlcpy(bound->bucket.family, key->family, sizeof(bound->bucket.family));
	}
	memcpy(bound->bucket.limit_id, DatumGetUUIDP(VALUE(LIMIT_ID))->data, UUID_LEN);
	bound->bucket.rate.units = DatumGetInt64(VALUE(LIMIT_UNITS));
	if (!ISNULL(LIMIT_PERIOD))
		bound->period = *VARDATA_ANY(DatumGetTextPP(VALUE(LIMIT_PERIOD)));
	else
		bound->bucket.rate.window = limiter_window(DatumGetIntervalP(VALUE(LIMIT_RATE_WINDOW)));
	bound->bucket.tenant = usage_tenant(key->tenant);
	return true;
#undef VALUE
#undef ISNULL
}

/* The key's own limit first, then rate limits, then quotas. */
static int
compare_bounds(const void *a, const void *b)
{
	const Bound *left = a;
	const Bound *right = b;

	if ((left->period == 0) != (right->period == 0))
		return left->period == 0 ? -1 : 1;
	return memcmp(left->bucket.limit_id, right->bucket.limit_id, UUID_LEN);
}

/* Set the calendar period of that moment, and the bucket of it. */
static void
set_period(Bound *bound, TimestampTz now)
{
	int64		day = now / USECS_PER_DAY;
	int64		first = day;	/* days since 2000-01-01, a Saturday */
	int64		next = day + 1;
	int			year;
	int			month;
	int			mday;

	j2date((int) day + POSTGRES_EPOCH_JDATE, &year, &month, &mday);
	switch (bound->period)
	{
		case 'w':
			first = day - (day + 5) % 7;
			next = first + 7;
			break;
		case 'm':
			first = date2j(year, month, 1) - POSTGRES_EPOCH_JDATE;
			next = date2j(year + month / 12, month % 12 + 1, 1) - POSTGRES_EPOCH_JDATE;
			break;
		case 'y':
			first = date2j(year, 1, 1) - POSTGRES_EPOCH_JDATE;
			next = date2j(year + 1, 1, 1) - POSTGRES_EPOCH_JDATE;
			break;
	}
	bound->start = first * USECS_PER_DAY;
	bound->end = next * USECS_PER_DAY;
	if (bound->period == 0 || bound->period == 't')
	{
		bound->start = DT_NOBEGIN;
		bound->end = DT_NOEND;
	}
	bound->bucket.since = Max(bound->start, bound->reset_at);
	if (usage_is_shared())
		usage_bucket_aim(&bound->bucket);
}

/*
 * Check the names of a call.  A name that no limit of the database has is a
 * mistake.  A limit of that name need not bind the key.
 */
static void
check_names(const KeyLimits *limits, const LimitCall *call)
{
	for (int n = 0; n < call->names_count; n++)
	{
		bool		known = false;

		for (int i = 0; i < limits->count && !known; i++)
			known = is_named(&limits->bounds[i], call->names[n]);
		if (!known && !name_is_known(call->names[n]))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("limit \"%s\" does not exist", shown_text(call->names[n])),
					 errhint("Give a name of rk_apikeys.limits.")));
	}
}

/* Return whether a limit of the database has that name. */
static bool
name_is_known(text *name)
{
	static char names[KNOWN_NAMES][NAME_SIZE];
	static int	count = 0;
	static uint64 since = 0;
	uint64		moment = cache_moment();
	char		given[NAME_SIZE];

	if (VARSIZE_ANY_EXHDR(name) >= NAME_SIZE)
		return false;
	text_to_cstring_buffer(name, given, NAME_SIZE);
	if (since != moment)
		count = 0;
	since = moment;
	for (int i = 0; i < count; i++)
		if (strcmp(names[i], given) == 0)
			return true;
	if (!name_exists(given))
		return false;
	if (cache_may_keep(moment))
		strlcpy(names[count < KNOWN_NAMES ? count++ : 0], given, NAME_SIZE);
	return true;
}

static bool
name_exists(const char *name)
{
	Relation	rel = open_limits();
	ScanKeyData scankey;
	bool		found;

	if (rel == NULL)
		return false;
	ScanKeyEntryInitialize(&scankey, 0, LIMIT_NAME, BTEqualStrategyNumber, InvalidOid,
						   TupleDescAttr(RelationGetDescr(rel), LIMIT_NAME - 1)->attcollation,
						   F_TEXTEQ, CStringGetTextDatum(name));
	found = store_has_row(rel, get_relname_relid("limits_name", RelationGetNamespace(rel)),
						  &scankey);
	table_close(rel, AccessShareLock);
	return found;
}

/* Return whether a call takes from a limit. */
static bool
binds(const Bound *bound, const LimitCall *call)
{
	bool		taken = bound->always;

	for (int n = 0; n < call->names_count && !taken; n++)
		taken = is_named(bound, call->names[n]);
	return taken;
}

static bool
is_named(const Bound *bound, text *name)
{
	return VARSIZE_ANY_EXHDR(name) == strlen(bound->name) &&
		memcmp(VARDATA_ANY(name), bound->name, strlen(bound->name)) == 0;
}
