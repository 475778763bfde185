/*
 * purge.c
 *		Deletion of old rows, and of a tenant.
 *
 * Trust: only rk_apikeys_admin may execute these functions.  They delete as the
 * owner, and refuse a caller that has authenticated as a key.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/caller.h"
#include "base/now.h"
#include "base/principal.h"
#include "base/store.h"
#include "key/as_owner.h"
#include "key/audit.h"

/* The tables with rows of tenants, by column of erase_tenant(); last one first. */
static const char *const erased[] = {
	"api_keys", "key_usage", "key_usage_daily", "policies", "limits", "limit_usage", "key_events"
};

/* A kind of rows that purge() deletes. */
typedef struct PurgeKind
{
	int			argument;		/* of purge(): older than this */
	const char *table;
	const char *told_as;		/* in the event of a batch; NULL: each row has one */
	int			batch_size;		/* rows of a transaction */
	/*
	 * Deletes up to $3 rows that are older than $1, from time $2 on.  Returns
	 * their number and their last time.
	 */
	const char *query;
} PurgeKind;

/* A batch of purge(). */
typedef struct PurgeBatch
{
	const PurgeKind *kind;
	Datum		older_than;
	TimestampTz from;			/* result: the last time, if count is not 0 */
	int64		count;			/* result */
} PurgeBatch;

/* A batch, from the conditions, the time of a row, and its lock, if any. */
#define PURGE(table, time, condition, lock) \
	"WITH gone AS (DELETE FROM rk_apikeys." table " WHERE ctid = ANY (ARRAY(" \
	"  SELECT ctid FROM rk_apikeys." table " r WHERE " condition \
	"   ORDER BY " time " LIMIT $3" lock ")) RETURNING " time " AS time)" \
	" SELECT count(*), max(time)::timestamptz FROM gone"

/* Days that ended before older_than, in UTC, and events from before it. */
#define DAY_IS_OLD "day < ((now() - $1) AT TIME ZONE 'UTC')::date"
#define EVENT_IS_OLD "occurred_at < now() - $1"
/* The use of a quota in a period that ended before older_than; a total never ends. */
#define PERIOD_IS_OLD \
	"period_start < (SELECT date_trunc(nullif(l.period, 'total'), (now() - $1) AT TIME ZONE 'UTC')" \
	" AT TIME ZONE 'UTC' FROM rk_apikeys.limits l WHERE l.limit_id = r.limit_id)"

/*
 * The kinds.  Events come last, because the deletion of keys writes some.  A batch
 * begins at the last time of the batch before, so that it does not pass what is
 * deleted.  The index of the time gives the order, but limit_usage has none, so
 * its batches are large.
 */
static const PurgeKind purges[] = {
	{0, "api_keys", NULL, 1000,
		PURGE("api_keys", "created_at",
			  "created_at >= $2 AND least(revoked_at, expires_at, grace_until) < now() - $1"
			  " AND NOT EXISTS (SELECT FROM rk_apikeys.api_keys c WHERE c.parent = r.key_id)",
			  " FOR UPDATE SKIP LOCKED")},
	{1, "key_usage_daily", "daily", 10000,
		PURGE("key_usage_daily", "day", "day >= $2::date AND " DAY_IS_OLD, "")},
	{1, "limit_usage", "limit_usage", 50000,
		PURGE("limit_usage", "period_start", "period_start >= $2 AND " PERIOD_IS_OLD, "")},
	{2, "key_events", "events", 10000,
		PURGE("key_events", "occurred_at",
			  "occurred_at >= $2 AND " EVENT_IS_OLD, "")}
};

/* A tenant that is erased. */
typedef struct Erasure
{
	Datum		tenant;
	int64		counts[lengthof(erased)];	/* results: rows, by table */
} Erasure;

static int64 purge_rows(FunctionCallInfo fcinfo, const char *table, const char *old,
						const char *told_as);
static void tell_purge(const char *told_as, Datum older_than, text *tenant, int64 count);
static void purge_in_batches(const PurgeKind *kind, Datum older_than);
static void delete_batch(void *arg);
static void erase(void *arg);
static void check_older_than(Datum older_than);

PG_FUNCTION_INFO_V1(rk_apikeys_purge_keys);
PG_FUNCTION_INFO_V1(rk_apikeys_purge_events);
PG_FUNCTION_INFO_V1(rk_apikeys_purge_events_0_3);
PG_FUNCTION_INFO_V1(rk_apikeys_purge_usage);
PG_FUNCTION_INFO_V1(rk_apikeys_purge);
PG_FUNCTION_INFO_V1(rk_apikeys_erase_tenant);

/*
 * rk_apikeys.purge_keys(older_than interval) -> bigint
 *
 * Delete the keys that have been revoked, expired or rotated for longer than
 * older_than.  Keep a key while a key that it made is in the table, because a
 * cascade must reach that key.  Return the number of deleted keys.  Raise 22023
 * if older_than is negative.
 */
Datum
rk_apikeys_purge_keys(PG_FUNCTION_ARGS)
{
	Oid			type = INTERVALOID;
	Datum		value = PG_GETARG_DATUM(0);
	OwnerStatement query = {
		.query = "DELETE FROM rk_apikeys.api_keys k"
		" WHERE least(revoked_at, expires_at, grace_until) < now() - $1"
		"  AND NOT EXISTS (SELECT FROM rk_apikeys.api_keys c WHERE c.parent = k.key_id)",
		.nargs = 1, .types = &type, .values = &value
	};

	principal_refuse();
	check_older_than(PG_GETARG_DATUM(0));
	/* The SQL of 0.2 has no children. */
	if (!store_has_text("api_keys", "parent"))
		query.query = "DELETE FROM rk_apikeys.api_keys"
			" WHERE least(revoked_at, expires_at, grace_until) < now() - $1";
	as_owner(&query);
	PG_RETURN_INT64((int64) query.processed);
}

/*
 * rk_apikeys.purge_events(older_than interval, tenant text) -> bigint
 *
 * Delete the events that are older than older_than, of a tenant or (NULL) of
 * all, and return their number.  If the number is not 0, add an event "purged"
 * with it.  Raise 22023 if older_than is negative.
 */
Datum
rk_apikeys_purge_events_0_3(PG_FUNCTION_ARGS)
{
	principal_refuse();
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	PG_RETURN_INT64(purge_rows(fcinfo, "key_events", EVENT_IS_OLD, "events"));
}

/* The same for SQL of 0.1 and 0.2, for all tenants. */
Datum
rk_apikeys_purge_events(PG_FUNCTION_ARGS)
{
	return rk_apikeys_purge_events_0_3(fcinfo);
}

/*
 * rk_apikeys.purge_usage(older_than interval, tenant text) -> bigint
 *
 * Delete the rows of key_usage_daily whose day ended longer than older_than ago,
 * and those of limit_usage whose period did, likewise.
 */
Datum
rk_apikeys_purge_usage(PG_FUNCTION_ARGS)
{
	int64		count;

	principal_refuse();
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	count = purge_rows(fcinfo, "key_usage_daily", DAY_IS_OLD, "daily");
	PG_RETURN_INT64(count + purge_rows(fcinfo, "limit_usage", PERIOD_IS_OLD, "limit_usage"));
}

/*
 * Delete the old rows of a table, of the tenant in the second argument, if there is
 * one, or of all, and return their number.  An event tells it under that name.
 */
static int64
purge_rows(FunctionCallInfo fcinfo, const char *table, const char *old,
		   const char *told_as)
{
	text	   *tenant = PG_NARGS() < 2 || PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1);
	Oid			types[2] = {INTERVALOID, TEXTOID};
	Datum		values[2] = {PG_GETARG_DATUM(0), PointerGetDatum(tenant)};
	char		nulls[2] = {' ', tenant == NULL ? 'n' : ' '};
	OwnerStatement delete = {
		.query = psprintf("DELETE FROM rk_apikeys.%s r WHERE %s AND ($2 IS NULL OR tenant = $2)",
						  table, old),
		.nargs = 2, .types = types, .values = values, .nulls = nulls
	};

	check_older_than(values[0]);
	as_owner(&delete);
	tell_purge(told_as, values[0], tenant, (int64) delete.processed);
	return (int64) delete.processed;
}

/* Add an event "purged" if rows were deleted. */
static void
tell_purge(const char *told_as, Datum older_than, text *tenant, int64 count)
{
	Oid			types[4] = {INTERVALOID, TEXTOID, TEXTOID, INT8OID};
	Datum		values[4] = {
		older_than, PointerGetDatum(tenant), CStringGetTextDatum(told_as), Int64GetDatum(count)
	};
	char		nulls[4] = {' ', tenant == NULL ? 'n' : ' ', ' ', ' '};
	OwnerStatement query = {
		.query = "SELECT jsonb_build_array(jsonb_build_object('tenant', $2, 'event', 'purged',"
		"  'changes', jsonb_build_object('older_than', $1, $3, $4)))::text",
		.nargs = 4, .types = types, .values = values, .nulls = nulls
	};

	if (count == 0)
		return;
	as_owner(&query);
	audit_add(text_to_cstring(query.first));
}

/*
 * rk_apikeys.purge(keys interval, usage interval, events interval)
 *
 * Do what purge_keys(), purge_usage() and purge_events() do for all tenants, in
 * batches.  Each batch is a transaction, so no lock is held for long, and what is
 * done stays done.  A kind whose argument is NULL is left alone.  Skip keys that
 * are locked.  Raise 22023 if an argument is negative, and 2D000 in a transaction
 * block.
 */
Datum
rk_apikeys_purge(PG_FUNCTION_ARGS)
{
	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("purge cannot run inside a transaction block"),
				 errhint("Use purge_keys(), purge_usage() or purge_events().")));
	principal_refuse();
	for (int i = 0; i < PG_NARGS(); i++)
		if (!PG_ARGISNULL(i))
			check_older_than(PG_GETARG_DATUM(i));

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	for (int i = 0; i < (int) lengthof(purges); i++)
		if (!PG_ARGISNULL(purges[i].argument))
			purge_in_batches(&purges[i], PG_GETARG_DATUM(purges[i].argument));
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * Delete the rows of a kind, a transaction a batch, and report the progress.  The
 * caller has connected to SPI, nonatomic.
 */
static void
purge_in_batches(const PurgeKind *kind, Datum older_than)
{
	PurgeBatch	batch = {
		.kind = kind, .older_than = older_than, .from = DT_NOBEGIN
	};
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "rk_apikeys purge",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(context);
	int64		total = 0;

	do
	{
		CHECK_FOR_INTERRUPTS();
		caller_run_as_owner(store_table("api_keys", false), delete_batch, &batch);
		if (kind->told_as != NULL)
			tell_purge(kind->told_as, older_than, NULL, batch.count);
		SPI_commit();
		total += batch.count;
		if (batch.count > 0)
			ereport(NOTICE,
					(errmsg("purged %lld rows of \"%s\"", (long long) total,
							kind->table)));
		MemoryContextReset(context);
	} while (batch.count == kind->batch_size);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
}

/* OwnerWork: delete a batch. */
static void
delete_batch(void *arg)
{
	PurgeBatch *batch = arg;
	Oid			types[3] = {INTERVALOID, TIMESTAMPTZOID, INT4OID};
	Datum		values[3] = {
		batch->older_than, TimestampTzGetDatum(batch->from), Int32GetDatum(batch->kind->batch_size)
	};
	HeapTuple	tuple;
	bool		isnull;

	SPI_connect();
	SPI_execute_with_args(batch->kind->query, 3, types, values, NULL, false, 0);
	tuple = SPI_tuptable->vals[0];
	batch->count = DatumGetInt64(SPI_getbinval(tuple, SPI_tuptable->tupdesc, 1, &isnull));
	if (batch->count > 0)
		batch->from = DatumGetTimestampTz(SPI_getbinval(tuple, SPI_tuptable->tupdesc, 2, &isnull));
	SPI_finish();
}

/*
 * rk_apikeys.erase_tenant(tenant text)
 *		-> (keys, usage, daily, policies, limits, limit_usage, events)
 *
 * Delete all rows of a tenant.  Return how many rows each table had.  If there
 * were any, add an event "erased" with the numbers.
 */
Datum
rk_apikeys_erase_tenant(PG_FUNCTION_ARGS)
{
	Erasure		erasure = {.tenant = PG_GETARG_DATUM(0)};
	TupleDesc	desc;
	Datum		values[lengthof(erased)];
	bool		nulls[lengthof(erased)] = {0};
	StringInfoData event;
	int64		total = 0;

	principal_refuse();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != lengthof(erased))
		elog(ERROR, "return type must be a row of %d columns", (int) lengthof(erased));
	caller_run_as_owner(store_table("api_keys", false), erase, &erasure);

	initStringInfo(&event);
	appendStringInfoString(&event, "[{\"event\": \"erased\", \"tenant\": ");
	escape_json(&event, text_to_cstring(PG_GETARG_TEXT_PP(0)));
	appendStringInfoString(&event, ", \"changes\": {");
	for (int i = 0; i < (int) lengthof(erased); i++)
	{
		appendStringInfo(&event, "%s\"%s\": " INT64_FORMAT, i == 0 ? "" : ", ",
						 NameStr(TupleDescAttr(desc, i)->attname), erasure.counts[i]);
		values[i] = Int64GetDatum(erasure.counts[i]);
		total += erasure.counts[i];
	}
	appendStringInfoString(&event, "}}]");
	if (total > 0)
		audit_add(event.data);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/*
 * OwnerWork.  The keys are locked first, so that no flush writes use of theirs
 * afterwards.  Their deletion writes events, which are deleted too.
 */
static void
erase(void *arg)
{
	Erasure    *erasure = arg;
	Oid			type = TEXTOID;

	SPI_connect();
	(void) now_execute(NULL, "SELECT FROM rk_apikeys.api_keys WHERE tenant = $1"
					   " ORDER BY key_id FOR UPDATE", 1, &type, &erasure->tenant);
	for (int i = (int) lengthof(erased) - 1; i >= 0; i--)
		erasure->counts[i] = (int64)
			now_execute(NULL, psprintf("DELETE FROM rk_apikeys.%s WHERE tenant = $1", erased[i]),
						1, &type, &erasure->tenant);
	(void) now_execute(NULL, "DELETE FROM rk_apikeys.key_events WHERE tenant = $1",
					   1, &type, &erasure->tenant);
	SPI_finish();
}

/* Raise 22023 if the interval is negative. */
static void
check_older_than(Datum older_than)
{
	Interval	zero = {0, 0, 0};

	if (DatumGetBool(DirectFunctionCall2(interval_lt, older_than,
										 IntervalPGetDatum(&zero))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("older_than cannot be negative")));
}
