/*
 * limits_guard.c
 *		The triggers of limits.
 *
 * limits_guard (BEFORE INSERT OR UPDATE) refuses what a role may not give or
 * change, and masks tokens.  limits_settle (AFTER INSERT, UPDATE or DELETE, FOR
 * EACH ROW) and limits_settle_truncate invalidate what every session has kept of
 * limits.  They are ENABLE ALWAYS, so they also fire where replication applies a
 * change, for which only row triggers fire.  limits_max (AFTER INSERT, FOR EACH
 * STATEMENT) counts a tenant's limits.
 *
 * Locking: limits_max takes a lock per tenant until the transaction ends, as
 * max_keys.c does.  It counts after the locks, under a new snapshot.
 *
 * Trust: limits_guard runs as the role that writes to the table.  Column grants
 * refuse most of the same writes, but pg_write_all_data bypasses grants.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "base/caller.h"
#include "base/now.h"
#include "base/store.h"
#include "compat.h"
#include "key/cache.h"
#include "key/check.h"
#include "key/guard.h"
#include "key/max_keys.h"
#include "token/shown.h"

/* The most limits of a tenant. */
#define LIMITS_MAX 100

/* The columns that only the owner may change, as long as the limit lives. */
static const char *const fixed[] = {"limit_id", "tenant", "created_at", "reset_at"};

static bool may_set_reset(const char *column);
static void check_new(TriggerData *trigger);
static void check_change(TriggerData *trigger);
static HeapTuple mask_tokens(TupleDesc desc, HeapTuple row);
static void delete_usage(void *arg);
static void count_limits(void *arg);
static int	compare_hashes(const void *a, const void *b);

PG_FUNCTION_INFO_V1(rk_apikeys_limits_guard);
PG_FUNCTION_INFO_V1(rk_apikeys_limits_settle);
PG_FUNCTION_INFO_V1(rk_apikeys_limits_max);

/*
 * limits_guard, BEFORE INSERT OR UPDATE.  The owner may store any row, as a
 * restore does.  Raise 42501 for a column that another role may not give or
 * change.
 */
Datum
rk_apikeys_limits_guard(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = guard_trigger_of(fcinfo, "limits", "limits_guard");
	bool		insert = TRIGGER_FIRED_BY_INSERT(trigger->tg_event);

	if (!caller_owns(RelationGetRelid(trigger->tg_relation)))
	{
		if (insert)
			check_new(trigger);
		else
			check_change(trigger);
	}
	return PointerGetDatum(mask_tokens(RelationGetDescr(trigger->tg_relation), insert ?
									   trigger->tg_trigtuple : trigger->tg_newtuple));
}

/* Raise 42501 unless created_at is the transaction's time and reset_at is NULL. */
static void
check_new(TriggerData *trigger)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	bool		isnull;
	Datum		created = SPI_getbinval(trigger->tg_trigtuple, desc,
										SPI_fnumber(desc, "created_at"), &isnull);
	bool		now = !isnull &&
		DatumGetTimestampTz(created) == GetCurrentTransactionStartTimestamp();

	(void) SPI_getbinval(trigger->tg_trigtuple, desc, SPI_fnumber(desc, "reset_at"),
						 &isnull);
	if (!now || !isnull)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("column \"%s\" of a new limit cannot be given",
						now ? "reset_at" : "created_at"),
				 errhint("Leave the column out.")));
}

/*
 * Raise 42501 if an update changes a fixed column.  With borrowed rights
 * reset_limit() sets reset_at.
 */
static void
check_change(TriggerData *trigger)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);

	for (int i = 0; i < (int) lengthof(fixed); i++)
		if (guard_differs(trigger, SPI_fnumber(desc, fixed[i])) &&
			!may_set_reset(fixed[i]))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("column \"%s\" of a limit cannot be changed", fixed[i]),
					 strcmp(fixed[i], "reset_at") == 0 ?
					 errhint("Use rk_apikeys.reset_limit().") :
					 errhint("Create a new limit.")));
}

/* Return whether a column is reset_at and reset_limit() runs. */
static bool
may_set_reset(const char *column)
{
	return caller_borrows() && strcmp(column, "reset_at") == 0;
}

/*
 * Return the row, or a copy without tokens.  Somebody may put a token into the
 * wrong column, and the message of a constraint shows the whole row.
 */
static HeapTuple
mask_tokens(TupleDesc desc, HeapTuple row)
{
	for (int number = 1; number <= desc->natts; number++)
	{
		bool		isnull = TupleDescAttr(desc, number - 1)->atttypid != TEXTOID;
		Datum		value = isnull ? (Datum) 0 : heap_getattr(row, number, desc, &isnull);
		text	   *given = isnull ? NULL : DatumGetTextPP(value);
		text	   *masked = isnull ? NULL : check_without_tokens(given);

		value = PointerGetDatum(masked);
		if (masked != given)
			row = heap_modify_tuple_by_cols(row, desc, 1, &number, &value, &isnull);
	}
	return row;
}

/*
 * limits_settle and limits_settle_truncate.  Where replication deletes a limit, the
 * foreign key of limit_usage does not fire, so delete the usage here.
 */
Datum
rk_apikeys_limits_settle(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	bool		truncate = CALLED_AS_TRIGGER(fcinfo) &&
		TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event);

	trigger = guard_trigger_of(fcinfo, "limits", truncate ?
							   "limits_settle_truncate" : "limits_settle");
	cache_tell_change(trigger->tg_relation);
	if (TRIGGER_FIRED_BY_DELETE(trigger->tg_event) &&
		SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA)
	{
		TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
		bool		isnull;
		Datum		limit_id = SPI_getbinval(trigger->tg_trigtuple, desc,
											 SPI_fnumber(desc, "limit_id"), &isnull);

		caller_run_as_owner(RelationGetRelid(trigger->tg_relation), delete_usage, &limit_id);
	}
	return PointerGetDatum(NULL);
}

/* OwnerWork: delete what a limit has used. */
static void
delete_usage(void *arg)
{
	Oid			type = UUIDOID;

	SPI_connect();
	(void) now_execute(NULL, "DELETE FROM rk_apikeys.limit_usage WHERE limit_id = $1",
					   1, &type, arg);
	SPI_finish();
}

/*
 * limits_max, AFTER INSERT, FOR EACH STATEMENT.  Raise 54000 if a tenant has more
 * than LIMITS_MAX limits.  Rows that are restored or copied are not checked.
 * They are recognized by their created_at, as in audit.c.
 */
Datum
rk_apikeys_limits_max(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = guard_trigger_of(fcinfo, "limits", "limits_max");

	SPI_connect();
	if (SPI_register_trigger_data(trigger) < 0)
		elog(ERROR, "could not register the new rows");
	/* As the owner, because the policies hide limits from a principal. */
	caller_run_as_owner(RelationGetRelid(trigger->tg_relation), count_limits, NULL);
	SPI_finish();
	return PointerGetDatum(NULL);
}

#define NEW_TENANTS "SELECT DISTINCT tenant FROM new_limits WHERE created_at = now()"

/* OwnerWork: lock the tenants of the new limits, then count their limits. */
static void
count_limits(void *arg)
{
	uint64		count = now_execute(NULL, NEW_TENANTS, 0, NULL, NULL);
	uint32	   *hashes = palloc(count * sizeof(uint32));
	Datum		most = Int32GetDatum(LIMITS_MAX);
	Oid			type = INT4OID;
	bool		isnull;

	for (uint64 i = 0; i < count; i++)
		hashes[i] = max_keys_hash(DatumGetTextPP(SPI_getbinval(SPI_tuptable->vals[i],
															   SPI_tuptable->tupdesc,
															   1, &isnull)));
	qsort(hashes, count, sizeof(uint32), compare_hashes);
	for (uint64 i = 0; i < count; i++)
	{
		CHECK_FOR_INTERRUPTS();
		max_keys_lock("limits", hashes[i]);
	}
	if (count > 0 &&
		now_execute(NULL, "SELECT tenant FROM rk_apikeys.limits"
					" WHERE tenant IN (" NEW_TENANTS ")"
					" GROUP BY tenant HAVING count(*) > $1 LIMIT 1",
					1, &type, &most) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("too many limits of tenant \"%s\"",
						shown_text(DatumGetTextPP(SPI_getbinval(SPI_tuptable->vals[0],
																SPI_tuptable->tupdesc,
																1, &isnull)))),
				 errhint("Delete another limit first, because a tenant has at most %d.",
						 LIMITS_MAX)));
}

static int
compare_hashes(const void *a, const void *b)
{
	uint32		one = *(const uint32 *) a;
	uint32		other = *(const uint32 *) b;

	return one == other ? 0 : one < other ? -1 : 1;
}
