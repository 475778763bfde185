/*
 * orm.c
 *		The trigger of orm_keys: rows as tools that map objects send them.
 *
 * Such a tool writes every column of a row, those too that the database
 * computes, and reads the row back.  An UPDATE passes on to the view keys only
 * what differs.  So the rights, the checks and the events are those of keys.  A
 * rule passes an INSERT on, and the trigger passes a row of COPY to this rule.
 *
 * Trust: the trigger runs as the caller, and writes as the caller.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "base/store.h"
#include "compat.h"

/* The column may be changed. */
#define COLUMN_CHANGED 1
/* The database computes it; what is sent for it does not count. */
#define COLUMN_COMPUTED 2

/* Columns of the view that are not named here cannot be changed. */
static const struct
{
	const char *name;
	int			flags;
}			columns[] = {
	{"name", COLUMN_CHANGED},
	{"description", COLUMN_CHANGED},
	{"scopes", COLUMN_CHANGED},
	{"allowed_cidrs", COLUMN_CHANGED},
	{"rate_limit", COLUMN_CHANGED},
	{"rate_window", COLUMN_CHANGED},
	{"metadata", COLUMN_CHANGED},
	{"enabled", COLUMN_CHANGED},
	{"expires_at", COLUMN_CHANGED},
	{"owner", COLUMN_CHANGED},
	{"grace_until", COLUMN_CHANGED},
	{"revoked_at", COLUMN_CHANGED},
	{"revoked_reason", COLUMN_CHANGED},
	{"status", COLUMN_COMPUTED},
	{"expires_in", COLUMN_COMPUTED},
	{"last_used_at", COLUMN_COMPUTED},
	{"last_used_addr", COLUMN_COMPUTED},
	{"use_count", COLUMN_COMPUTED},
	{"updated_at", COLUMN_COMPUTED},
	{"updated_by", COLUMN_COMPUTED},
	{"updated_by_user", COLUMN_COMPUTED},
	{"secret", COLUMN_COMPUTED}
};

/* Saved plans per backend.  A plan above the limit is made for one row. */
#define PLANS_MAX 256
#define COLUMNS_MAX 64

typedef struct OrmPlan
{
	/* hash key: */
	uint64		columns;		/* a bit by attribute - 1 */
	Oid			view;
	int16		natts;			/* of the view */
	int16		update;			/* is it an UPDATE? */

	SPIPlanPtr	plan;
} OrmPlan;

static HTAB *plans = NULL;

static HeapTuple insert_row(TriggerData *trigger);
static HeapTuple update_row(TriggerData *trigger);
static HeapTuple delete_row(TriggerData *trigger);
static int	column_flags(const char *name);
static bool same_value(Form_pg_attribute att, Datum old, Datum new);
static HeapTuple write_row(TriggerData *trigger, uint64 given, bool update);
static SPIPlanPtr make_plan(TupleDesc desc, uint64 given, bool update);

PG_FUNCTION_INFO_V1(rk_apikeys_orm_keys);

/*
 * orm_keys_write, INSTEAD OF INSERT OR UPDATE OR DELETE on orm_keys.
 *
 * Raise 42501 with the name of a column that cannot be changed.
 */
Datum
rk_apikeys_orm_keys(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	HeapTuple	row;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		RelationGetRelid(trigger->tg_relation) != store_table("orm_keys", true))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function can only be called by the trigger of view rk_apikeys.orm_keys")));
	if (RelationGetDescr(trigger->tg_relation)->natts > COLUMNS_MAX)
		elog(ERROR, "view orm_keys has more than %d columns", COLUMNS_MAX);
	SPI_connect();
	row = TRIGGER_FIRED_BY_INSERT(trigger->tg_event) ? insert_row(trigger) :
		TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ? update_row(trigger) :
		delete_row(trigger);
	SPI_finish();
	return PointerGetDatum(row);
}

/* Insert a row that COPY sends; return it as it is stored. */
static HeapTuple
insert_row(TriggerData *trigger)
{
	int			natts = RelationGetDescr(trigger->tg_relation)->natts;

	return write_row(trigger, PG_UINT64_MAX >> (64 - natts), false);
}

/*
 * Change what differs between the row that a tool has read and the row that it
 * sends.  Return the row as it is stored; NULL if there is no such key now.
 */
static HeapTuple
update_row(TriggerData *trigger)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	uint64		given = 0;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		int			flags = column_flags(NameStr(att->attname));
		bool		old_null;
		bool		new_null;
		Datum		old = heap_getattr(trigger->tg_trigtuple, i + 1, desc, &old_null);
		Datum		new = heap_getattr(trigger->tg_newtuple, i + 1, desc, &new_null);

		if ((flags & COLUMN_COMPUTED) != 0 || (old_null && new_null) ||
			(!old_null && !new_null && same_value(att, old, new)))
			continue;
		if ((flags & COLUMN_CHANGED) != 0)
			given |= UINT64CONST(1) << i;
		else if (!new_null)
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("column \"%s\" of an API key cannot be changed",
							NameStr(att->attname)),
					 errhint("Send the value that the column has, or NULL.")));
	}
	if (given == 0)
		return SPI_copytuple(trigger->tg_trigtuple);
	return write_row(trigger, given, true);
}

/* Delete the key.  Return its row; NULL if there is no such key now. */
static HeapTuple
delete_row(TriggerData *trigger)
{
	static SPIPlanPtr plan = NULL;
	Oid			type = TEXTOID;
	bool		isnull;
	Datum		key_id = heap_getattr(trigger->tg_trigtuple, 1,
									  RelationGetDescr(trigger->tg_relation), &isnull);

	if (plan == NULL)
	{
		plan = SPI_prepare("DELETE FROM rk_apikeys.keys WHERE key_id OPERATOR(pg_catalog.=) $1",
						   1, &type);
		SPI_keepplan(plan);
	}
	SPI_execute_plan(plan, &key_id, NULL, false, 0);
	return SPI_processed == 0 ? NULL : SPI_copytuple(trigger->tg_trigtuple);
}

static int
column_flags(const char *name)
{
	for (int i = 0; i < (int) lengthof(columns); i++)
		if (strcmp(columns[i].name, name) == 0)
			return columns[i].flags;
	return 0;
}

/*
 * Return whether a tool sends the value that it has read.  A tool whose times
 * have milliseconds or seconds cuts off the rest of a time.
 */
static bool
same_value(Form_pg_attribute att, Datum old, Datum new)
{
	if (att->atttypid == TIMESTAMPTZOID)
	{
		int64		a = DatumGetTimestampTz(old);
		int64		b = DatumGetTimestampTz(new);
		int64		unit = b % USECS_PER_SEC == 0 ? USECS_PER_SEC : b % 1000 == 0 ? 1000 : 1;

		if (TIMESTAMP_NOT_FINITE(a) || TIMESTAMP_NOT_FINITE(b))
			return a == b;
		return b <= a && a - b < unit;
	}
	return datum_image_eq(old, new, att->attbyval, att->attlen);
}

/*
 * Write those columns (a bit by attribute - 1) of the new row.  Return the row as
 * it is stored; NULL if the key to change is gone.
 */
static HeapTuple
write_row(TriggerData *trigger, uint64 given, bool update)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	HeapTuple	row = update ? trigger->tg_newtuple : trigger->tg_trigtuple;
	OrmPlan		wanted = {
		.columns = given, .view = RelationGetRelid(trigger->tg_relation),
		.natts = desc->natts, .update = update
	};
	OrmPlan    *found;
	SPIPlanPtr	plan;
	Datum		values[COLUMNS_MAX + 1];
	char		nulls[COLUMNS_MAX + 1];
	int			count = 0;

	for (int i = 0; i < desc->natts; i++)
	{
		bool		isnull;

		if ((given & (UINT64CONST(1) << i)) == 0)
			continue;
		values[count] = heap_getattr(row, i + 1, desc, &isnull);
		nulls[count++] = isnull ? 'n' : ' ';
	}
	if (update)
	{
		bool		isnull;

		values[count] = heap_getattr(trigger->tg_trigtuple, 1, desc, &isnull);
		nulls[count] = ' ';
	}

	if (plans == NULL)
	{
		HASHCTL		ctl = {
			.keysize = offsetof(OrmPlan, plan), .entrysize = sizeof(OrmPlan),
			.hcxt = TopMemoryContext
		};

		plans = hash_create("rk_apikeys orm plans", 16, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	found = hash_search(plans, &wanted, HASH_FIND, NULL);
	plan = found != NULL ? found->plan : make_plan(desc, given, update);
	if (found == NULL && hash_get_num_entries(plans) < PLANS_MAX)
	{
		SPI_keepplan(plan);
		found = hash_search(plans, &wanted, HASH_ENTER, NULL);
		found->plan = plan;
	}
	if (SPI_execute_plan(plan, values, nulls, false, 0) < 0)
		elog(ERROR, "could not write a row of rk_apikeys.orm_keys");
	return SPI_processed == 0 ? NULL : SPI_copytuple(SPI_tuptable->vals[0]);
}

/* Prepare the statement that writes those columns and returns the row. */
static SPIPlanPtr
make_plan(TupleDesc desc, uint64 given, bool update)
{
	StringInfoData names;
	StringInfoData params;
	StringInfoData all;
	char	   *query;
	Oid			types[COLUMNS_MAX + 1];
	int			count = 0;

	initStringInfo(&names);
	initStringInfo(&params);
	initStringInfo(&all);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		const char *name = quote_identifier(NameStr(att->attname));

		appendStringInfo(&all, "%s%s", i > 0 ? ", " : "", name);
		if ((given & (UINT64CONST(1) << i)) == 0)
			continue;
		types[count++] = att->atttypid;
		if (update)
			appendStringInfo(&names, "%s%s = $%d", count > 1 ? ", " : "", name, count);
		else
		{
			appendStringInfo(&names, "%s%s", count > 1 ? ", " : "", name);
			appendStringInfo(&params, "%s$%d", count > 1 ? ", " : "", count);
		}
	}
	if (update)
	{
		types[count++] = TEXTOID;
		query = psprintf("UPDATE rk_apikeys.keys SET %s"
						 " WHERE key_id OPERATOR(pg_catalog.=) $%d RETURNING %s",
						 names.data, count, all.data);
	}
	else
		query = psprintf("INSERT INTO rk_apikeys.orm_keys (%s) VALUES (%s) RETURNING %s",
						 names.data, params.data, all.data);
	return SPI_prepare(query, count, types);
}
