/*
 * table.c
 *		The flush: a batch of copies into key_usage and key_usage_daily, the units
 *		of quotas into limit_usage, and unrecorded uses into unrecorded_uses.
 *
 * Locking: the caller's transaction holds the lock of flushes.  Rows of
 * key_usage, and of api_keys for keys without a row in key_usage, are taken with
 * SKIP LOCKED; likewise rows of limit_usage, and of limits.  A key or quota whose
 * row is locked stays pending.
 */
#include "postgres.h"

#include <sys/socket.h>

#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/block.h"
#include "storage/lock.h"
#include "storage/off.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/guc.h"
#include "utils/inet.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "base/caller.h"
#include "base/now.h"
#include "compat.h"
#include "usage/shared.h"

#define BATCH_COLUMNS 8
#define QUOTA_COLUMNS 5

/* A batch that is flushed as the tables' owner. */
typedef struct Batch
{
	UsageCopy  *copies;
	int			count;
	bool	   *flushed;		/* result, per copy: it is in the tables */
	bool	   *gone;			/* result, per copy: the key does not exist */
	int			total;			/* result: number of flushed keys */
} Batch;

/* A batch is small and the tables may be large, whatever the statistics say. */
static const struct
{
	const char *name;
	const char *value;
}			by_index[] = {
	{"enable_hashjoin", "off"}, {"enable_mergejoin", "off"},
	{"enable_seqscan", "off"}, {"jit", "off"},
	{"plan_cache_mode", "force_generic_plan"}
};

static UsageTeller tell = NULL;

static void write_batch(void *arg);
static void write_rows(Batch *batch, const int *numbers, int count,
					   const char *query);
static void write_quotas(Batch *batch);
static void write_lost(Batch *batch);
static void read_results(Batch *batch, const int *numbers);
static void store_digests(Batch *batch);
static void tell_ended(Batch *batch);
static Datum array_of(Datum *elements, bool *nulls, int count, Oid type);

/* Set the function that writes events, which is above this folder. */
void
usage_set_teller(UsageTeller teller)
{
	tell = teller;
}

/*
 * Take the lock of this database's flushes until the transaction ends.  Without
 * wait, return false if another flush holds the lock.
 *
 * Any role could take an advisory lock.  So this lock is of a tuple of key_usage
 * in a block that no table has, which no SQL can name.
 */
bool
usage_lock_flushes(bool wait)
{
	LOCKTAG		tag;

	SET_LOCKTAG_TUPLE(tag, MyDatabaseId, store_table("key_usage", false),
					  InvalidBlockNumber, InvalidOffsetNumber);
	return LockAcquire(&tag, ExclusiveLock, false, !wait) != LOCKACQUIRE_NOT_AVAIL;
}

/*
 * Write a batch of copies into key_usage and key_usage_daily, in the caller's
 * transaction, which holds the lock of flushes.  Return the number of keys
 * written.  Set flushed[] and gone[] per copy; for a row that another
 * transaction has locked both are false.  Set table_uses and table_denials of a
 * flushed copy to what the table has now.
 */
int
usage_flush(UsageCopy *copies, int count, bool *flushed, bool *gone)
{
	Batch		batch = {copies, count, flushed, gone, 0};

	memset(flushed, 0, count * sizeof(bool));
	memset(gone, 0, count * sizeof(bool));
	if (count > 0)
		caller_run_as_owner(store_table("key_usage", false), write_batch,
							&batch);
	return batch.total;
}

/*
 * OwnerWork.  The UPDATE never lowers a value.  It adds
 * counted - min(known, in_table) to a count, and the same to the day's count.
 * One statement writes the keys that have a row in key_usage.  Another inserts
 * the missing rows, of keys that were used for the first time.  It takes the
 * keys FOR KEY SHARE, so that a row does not outlive its key.
 */
static void
write_batch(void *arg)
{
#define BATCH_ROWS \
	" unnest($1::text[], $2::text[], $3::timestamptz[], $4::inet[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[])" \
	"  WITH ORDINALITY AS b(key_id, environment, last_used_at, addr, uses, denials, known_uses, known_denials, n)"
#define ADDED(old, more) \
	"least(greatest(" more ", 0), greatest(" CppAsString2(USAGE_COUNT_MAX) " - " old ", 0))"
/* The address that came with the later time, else the other one */
#define LATER_ADDR(new_time, new_addr) \
	"CASE WHEN u.last_used_at > " new_time " OR " new_time " IS NULL" \
	" THEN coalesce(u.last_used_addr, " new_addr ")" \
	" ELSE coalesce(" new_addr ", u.last_used_addr) END"
/* "%s" stands for the family, which the SQL of 0.1 and 0.2 lacks */
#define ADD_TO_DAY(rows) \
	" daily AS" \
	"  (INSERT INTO rk_apikeys.key_usage_daily AS d (key_id, day, environment, tenant, uses, denials%s)" \
	"    SELECT key_id, (clock_timestamp() AT TIME ZONE 'UTC')::date, environment, tenant, new_uses, new_denials%s" \
	"     FROM " rows " r WHERE new_uses > 0 OR new_denials > 0" \
	"    ON CONFLICT (key_id, day) DO UPDATE" \
	"     SET uses = d.uses + " ADDED("d.uses", "excluded.uses") "," \
	"      denials = d.denials + " ADDED("d.denials", "excluded.denials") ")"
	static const char *const grow =
		"WITH old AS MATERIALIZED"
		"  (SELECT b.*, u.ctid AS at, u.tenant,"
		"     " ADDED("u.use_count", "b.uses - least(b.known_uses, u.use_count)") " AS new_uses,"
		"     " ADDED("u.denied_count", "b.denials - least(b.known_denials, u.denied_count)") " AS new_denials"
		"    FROM " BATCH_ROWS " JOIN rk_apikeys.key_usage u ON u.key_id = b.key_id"
		"    FOR NO KEY UPDATE OF u SKIP LOCKED),"
		" grown AS"
		"  (UPDATE rk_apikeys.key_usage u"
		"    SET last_used_at = greatest(u.last_used_at, o.last_used_at),"
		"     last_used_addr = " LATER_ADDR("o.last_used_at", "o.addr") ","
		"     use_count = u.use_count + o.new_uses, denied_count = u.denied_count + o.new_denials"
		"    FROM old o WHERE u.ctid = o.at"
		"    RETURNING o.n, o.key_id, o.environment, o.tenant, o.new_uses, o.new_denials,"
		"     u.use_count, u.denied_count),"
		ADD_TO_DAY("grown")
		" SELECT n, use_count, denied_count FROM grown";
	static const char *const add =
		"WITH b AS MATERIALIZED (SELECT * FROM " BATCH_ROWS "),"
		" live AS MATERIALIZED"
		"  (SELECT b.*, k.tenant, b.uses AS new_uses, b.denials AS new_denials"
		"    FROM b JOIN rk_apikeys.api_keys k ON k.key_id = b.key_id"
		"    WHERE NOT EXISTS (SELECT FROM rk_apikeys.key_usage u WHERE u.key_id = b.key_id)"
		"    FOR KEY SHARE OF k SKIP LOCKED),"
		" fresh AS"
		"  (INSERT INTO rk_apikeys.key_usage AS u"
		"    (key_id, tenant, last_used_at, last_used_addr, use_count, denied_count)"
		"    SELECT key_id, tenant, last_used_at, addr, uses, denials FROM live"
		"    ON CONFLICT (key_id) DO UPDATE"
		"     SET last_used_at = greatest(u.last_used_at, excluded.last_used_at),"
		"      last_used_addr = " LATER_ADDR("excluded.last_used_at", "excluded.last_used_addr") ","
		"      use_count = greatest(u.use_count, excluded.use_count),"
		"      denied_count = greatest(u.denied_count, excluded.denied_count)),"
		ADD_TO_DAY("live")
		" SELECT n, uses, denials FROM live UNION ALL"
		" SELECT n, NULL, NULL FROM b"
		"  WHERE NOT EXISTS (SELECT FROM rk_apikeys.api_keys k WHERE k.key_id = b.key_id)";
	Batch	   *batch = arg;
	bool		has_family = store_has_text("key_usage_daily", "family");
	const char *column = has_family ? ", family" : "";
	const char *value = has_family ? ", (SELECT NULLIF(k.family, k.key_id)"
		" FROM rk_apikeys.api_keys k WHERE k.key_id = r.key_id)" : "";
	int		   *numbers = palloc(batch->count * sizeof(int));
	int			keys = 0;
	int			left = 0;
	int			lost = 0;

	/* The settings last as long as the borrowed rights. */
	for (int i = 0; i < (int) lengthof(by_index); i++)
		(void) set_config_option(by_index[i].name, by_index[i].value, PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	SPI_connect();
	for (int i = 0; i < batch->count; i++)
		if (usage_is_lost(&batch->copies[i]))
			lost++;
		else if (!batch->copies[i].is_quota)
			numbers[keys++] = i;
	if (keys > 0)
		write_rows(batch, numbers, keys, psprintf(grow, column, value));
	for (int i = 0; i < keys; i++)
		if (!batch->flushed[numbers[i]])
			numbers[left++] = numbers[i];
	if (left > 0)
		write_rows(batch, numbers, left, psprintf(add, column, value));
	if (keys + lost < batch->count)
		write_quotas(batch);
	if (lost > 0)
		write_lost(batch);
	store_digests(batch);
	tell_ended(batch);
	SPI_finish();
}

/* Run one of the two statements on some of the batch's copies. */
static void
write_rows(Batch *batch, const int *numbers, int count,
		   const char *query)
{
	Oid			types[BATCH_COLUMNS] = {
		TEXTARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID, INETARRAYOID,
		INT8ARRAYOID, INT8ARRAYOID, INT8ARRAYOID, INT8ARRAYOID
	};
	Oid			elements[BATCH_COLUMNS] = {
		TEXTOID, TEXTOID, TIMESTAMPTZOID, INETOID, INT8OID, INT8OID, INT8OID,
		INT8OID
	};
	SPIPlanPtr	plan;
	Datum		values[BATCH_COLUMNS];
	Datum	   *columns[BATCH_COLUMNS];
	bool	   *no_time = palloc(count * sizeof(bool));
	bool	   *no_addr = palloc(count * sizeof(bool));

	for (int c = 0; c < BATCH_COLUMNS; c++)
		columns[c] = palloc0(count * sizeof(Datum));
	for (int i = 0; i < count; i++)
	{
		UsageCopy  *copy = &batch->copies[numbers[i]];

		columns[0][i] = CStringGetTextDatum(copy->key_id);
		columns[1][i] = CStringGetTextDatum(copy->environment);
		columns[2][i] = TimestampTzGetDatum(copy->last_used_at);
		no_time[i] = copy->last_used_at == 0;
		no_addr[i] = !copy->has_addr;
		if (copy->has_addr)
		{
			inet	   *addr = palloc0(sizeof(inet));

			addr->inet_data = copy->addr;
			SET_INET_VARSIZE(addr);
			columns[3][i] = InetPGetDatum(addr);
		}
		columns[4][i] = Int64GetDatum(copy->use_count);
		columns[5][i] = Int64GetDatum(copy->denied_count);
		columns[6][i] = Int64GetDatum(copy->known_uses);
		columns[7][i] = Int64GetDatum(copy->known_denials);
	}
	for (int c = 0; c < BATCH_COLUMNS; c++)
		values[c] = array_of(columns[c], c == 2 ? no_time : c == 3 ? no_addr : NULL,
							 count, elements[c]);

	/* Planned anew each time: the tables may have grown since. */
	plan = SPI_prepare(query, BATCH_COLUMNS, types);
	if (plan == NULL)
		elog(ERROR, "could not plan a flush: %s",
			 SPI_result_code_string(SPI_result));
	if (SPI_execute_plan(plan, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not flush usage");
	read_results(batch, numbers);
}

/*
 * Write the units of the batch's quotas, as write_batch() writes uses.  Only
 * flushes write limit_usage, so a row that is missing stays missing meanwhile.
 */
static void
write_quotas(Batch *batch)
{
	static const char *const query =
		"WITH b AS MATERIALIZED"
		"  (SELECT * FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::bigint[], $5::bigint[])"
		"    WITH ORDINALITY AS b(limit_id, family, period_start, units, known, n)),"
		" old AS MATERIALIZED"
		"  (SELECT b.n, u.ctid AS at, " ADDED("u.units", "b.units - least(b.known, u.units)") " AS new_units"
		"    FROM b JOIN rk_apikeys.limit_usage u USING (limit_id, family, period_start)"
		"    FOR NO KEY UPDATE OF u SKIP LOCKED),"
		" grown AS"
		"  (UPDATE rk_apikeys.limit_usage u SET units = u.units + o.new_units"
		"    FROM old o WHERE u.ctid = o.at RETURNING o.n, u.units),"
		" live AS MATERIALIZED"
		"  (SELECT b.*, l.tenant FROM b JOIN rk_apikeys.limits l USING (limit_id)"
		"    WHERE NOT EXISTS (SELECT FROM rk_apikeys.limit_usage u"
		"      WHERE u.limit_id = b.limit_id AND u.family = b.family AND u.period_start = b.period_start)"
		"    FOR KEY SHARE OF l SKIP LOCKED),"
		" fresh AS"
		"  (INSERT INTO rk_apikeys.limit_usage (limit_id, family, period_start, units, tenant)"
		"    SELECT limit_id, family, period_start, units, tenant FROM live)"
		" SELECT n, units, 0::bigint FROM grown UNION ALL"
		" SELECT n, units, 0 FROM live UNION ALL"
		" SELECT n, NULL, NULL FROM b"
		"  WHERE NOT EXISTS (SELECT FROM rk_apikeys.limits l WHERE l.limit_id = b.limit_id)";
	static const Oid elements[QUOTA_COLUMNS] = {
		UUIDOID, TEXTOID, TIMESTAMPTZOID, INT8OID, INT8OID
	};
	Oid			types[QUOTA_COLUMNS] = {
		UUIDARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID, INT8ARRAYOID, INT8ARRAYOID
	};
	Datum		values[QUOTA_COLUMNS];
	Datum	   *columns[QUOTA_COLUMNS];
	int		   *numbers = palloc(batch->count * sizeof(int));
	int			count = 0;

	for (int c = 0; c < QUOTA_COLUMNS; c++)
		columns[c] = palloc(batch->count * sizeof(Datum));
	for (int i = 0; i < batch->count; i++)
	{
		UsageCopy  *copy = &batch->copies[i];

		if (!copy->is_quota)
			continue;
		columns[0][count] = UUIDPGetDatum((pg_uuid_t *) copy->limit_id);
		columns[1][count] = CStringGetTextDatum(copy->family);
		columns[2][count] = TimestampTzGetDatum(copy->since);
		columns[3][count] = Int64GetDatum(copy->use_count);
		columns[4][count] = Int64GetDatum(copy->known_uses);
		numbers[count++] = i;
	}
	for (int c = 0; c < QUOTA_COLUMNS; c++)
		values[c] = array_of(columns[c], NULL, count, elements[c]);
	if (SPI_execute_with_args(query, QUOTA_COLUMNS, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not flush the units of quotas");
	read_results(batch, numbers);
}

/*
 * Write the times of unrecorded uses, which only grow.  A time that the table has
 * writes nothing, not even the lock of its row.  SQL of an earlier release has no
 * table for them.
 */
static void
write_lost(Batch *batch)
{
	static const char *const query =
		"INSERT INTO rk_apikeys.unrecorded_uses AS u (part, last_used_at)"
		" SELECT part, max(at) FROM unnest($1::int[], $2::timestamptz[]) AS b(part, at)"
		"  WHERE NOT EXISTS (SELECT FROM rk_apikeys.unrecorded_uses o"
		"   WHERE o.part = b.part AND o.last_used_at >= b.at)"
		"  GROUP BY part ORDER BY part"
		" ON CONFLICT (part) DO UPDATE SET last_used_at = excluded.last_used_at"
		"  WHERE u.last_used_at < excluded.last_used_at";
	Oid			types[2] = {INT4ARRAYOID, TIMESTAMPTZARRAYOID};
	Datum		values[2];
	Datum	   *columns[2];
	bool		has_table = OidIsValid(store_table("unrecorded_uses", true));
	int			count = 0;

	for (int c = 0; c < 2; c++)
		columns[c] = palloc(batch->count * sizeof(Datum));
	for (int i = 0; i < batch->count; i++)
	{
		UsageCopy  *copy = &batch->copies[i];

		if (!usage_is_lost(copy))
			continue;
		batch->flushed[i] = has_table && usage_lost_number(copy) >= 0;
		batch->gone[i] = !batch->flushed[i];
		copy->table_uses = copy->table_denials = 0;
		if (batch->gone[i])
			continue;
		columns[0][count] = Int32GetDatum(usage_lost_number(copy));
		columns[1][count++] = TimestampTzGetDatum(copy->last_used_at);
	}
	if (count == 0)
		return;
	values[0] = array_of(columns[0], NULL, count, INT4OID);
	values[1] = array_of(columns[1], NULL, count, TIMESTAMPTZOID);
	if (SPI_execute_with_args(query, 2, types, values, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not write unrecorded uses");
}

/*
 * Set the results of a statement: a row has a number in numbers, from 1, and the
 * counts of the table, or NULLs.
 */
static void
read_results(Batch *batch, const int *numbers)
{
	for (uint64 row = 0; row < SPI_processed; row++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[row];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		int			i = numbers[DatumGetInt64(SPI_getbinval(tuple, desc, 1, &isnull)) - 1];
		UsageCopy  *copy = &batch->copies[i];

		copy->table_uses = DatumGetInt64(SPI_getbinval(tuple, desc, 2, &isnull));
		copy->table_denials = DatumGetInt64(SPI_getbinval(tuple, desc, 3, &isnull));
		batch->flushed[i] = !isnull;
		batch->gone[i] = isnull;
		batch->total += !isnull && !copy->is_quota;
	}
	SPI_freetuptable(SPI_tuptable);
}

/*
 * Store the digests that were made with a newer pepper, where the row still has
 * the older one.  One statement stores all, because each statement fires the
 * statement triggers.  A new digest is not a change of a setting: updated_at
 * stays, and no event is written.
 */
static void
store_digests(Batch *batch)
{
	static const char *const query =
		"WITH b AS MATERIALIZED"
		"  (SELECT k.key_id, b.pepper_id, b.digest"
		"    FROM unnest($1::text[], $2::bigint[], $3::bytea[]) AS b(key_id, pepper_id, digest)"
		"     JOIN rk_apikeys.api_keys k ON k.key_id = b.key_id"
		"    WHERE k.digest_kind = 'native' AND coalesce(k.pepper_id, 0) < b.pepper_id"
		"    ORDER BY k.key_id FOR NO KEY UPDATE OF k SKIP LOCKED)"
		" UPDATE rk_apikeys.api_keys k SET digest = b.digest, pepper_id = b.pepper_id"
		"  FROM b WHERE k.key_id = b.key_id";
	Oid			types[3] = {TEXTARRAYOID, INT8ARRAYOID, BYTEAARRAYOID};
	Datum		values[3];
	Datum	   *columns[3];
	int			count = 0;

	for (int c = 0; c < 3; c++)
		columns[c] = palloc(batch->count * sizeof(Datum));
	for (int i = 0; i < batch->count; i++)
	{
		UsageCopy  *copy = &batch->copies[i];
		bytea	   *digest;

		if (copy->pepper_id == 0 || !batch->flushed[i])
			continue;
		digest = palloc(VARHDRSZ + DIGEST_SHA256_LEN);
		SET_VARSIZE(digest, VARHDRSZ + DIGEST_SHA256_LEN);
		memcpy(VARDATA(digest), copy->digest, DIGEST_SHA256_LEN);
		columns[0][count] = CStringGetTextDatum(copy->key_id);
		columns[1][count] = Int64GetDatum(copy->pepper_id);
		columns[2][count++] = PointerGetDatum(digest);
	}
	if (count == 0)
		return;
	values[0] = array_of(columns[0], NULL, count, TEXTOID);
	values[1] = array_of(columns[1], NULL, count, INT8OID);
	values[2] = array_of(columns[2], NULL, count, BYTEAOID);
	SPI_execute_with_args(query, 3, types, values, NULL, false, 0);
}

/*
 * Write an event used_after_end for each key and day on which its token was
 * presented after its end, unless there is one.  The lock of flushes keeps two
 * flushes from writing the same.  SQL of 0.2 refuses the event.
 */
static void
tell_ended(Batch *batch)
{
	static const char *const query =
		"SELECT jsonb_agg(jsonb_build_object('tenant', k.tenant, 'key_id', k.key_id,"
		"   'owner', k.owner,"
		"   'event', 'used_after_end', 'changes', jsonb_build_object('day', b.day)))::text"
		" FROM unnest($1::text[], $2::date[]) AS b(key_id, day)"
		"  JOIN rk_apikeys.api_keys k ON k.key_id = b.key_id"
		" WHERE NOT EXISTS (SELECT FROM rk_apikeys.key_events e"
		"   WHERE e.tenant = k.tenant AND e.key_id = k.key_id"
		"    AND e.event = 'used_after_end' AND e.changes -> 'day' = to_jsonb(b.day))";
	Oid			types[2] = {TEXTARRAYOID, DATEARRAYOID};
	Datum		values[2];
	Datum	   *columns[2];
	int			count = 0;

	for (int c = 0; c < 2; c++)
		columns[c] = palloc(batch->count * sizeof(Datum));
	for (int i = 0; i < batch->count; i++)
	{
		if (batch->copies[i].ended_day == 0 || !batch->flushed[i])
			continue;
		columns[0][count] = CStringGetTextDatum(batch->copies[i].key_id);
		columns[1][count++] = DateADTGetDatum((DateADT) batch->copies[i].ended_day - 1);
	}
	if (count == 0 || tell == NULL ||
		get_attnum(store_table("key_events", false), "came_as") == InvalidAttrNumber)
		return;
	values[0] = array_of(columns[0], NULL, count, TEXTOID);
	values[1] = array_of(columns[1], NULL, count, DATEOID);
	if (now_execute(NULL, query, 2, types, values) == 1)
	{
		char	   *events = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);

		if (events != NULL)
			tell(events);
	}
}

/* Return an array of one dimension, for unnest(); nulls may be NULL. */
static Datum
array_of(Datum *elements, bool *nulls, int count, Oid type)
{
	int			dims[1] = {count};
	int			lower[1] = {1};
	int16		len;
	bool		byval;
	char		align;

	get_typlenbyvalalign(type, &len, &byval, &align);
	return PointerGetDatum(construct_md_array(elements, nulls, 1, dims, lower,
											  type, len, byval, align));
}
