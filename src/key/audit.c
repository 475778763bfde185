/*
 * audit.c
 *		The events of a key: what changed, when and by whom; notifications.
 *
 * Three statement triggers on api_keys write a row of key_events per key in the
 * same transaction.  There is one trigger per command, because a trigger with
 * transition tables has one command.  A caller may cause an event but cannot
 * write one, so the rows are written as the tables' owner.
 *
 * Rows that are restored or copied add no events.  They are recognized by their
 * created_at, which for a new key is the transaction's time.
 *
 * With rk_apikeys.notify each event is also a notification.  PostgreSQL sends
 * the notification at COMMIT, and drops it if its savepoint is rolled back.
 * Any role can listen to any channel, so a notification has neither tenant nor
 * settings.  Any role can also fill the queue, which all databases share: the
 * role listens and stays in a transaction.  With a full queue every COMMIT
 * fails that notifies, also the COMMIT of a revocation.  So nothing is sent
 * while little room is left.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type_d.h"
#include "commands/async.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

#include "base/caller.h"
#include "base/now.h"
#include "base/principal.h"
#include "base/settings.h"
#include "base/store.h"
#include "compat.h"
#include "key/audit.h"
#include "key/columns.h"
#include "key/guard.h"

#define NOTIFY_CHANNEL "rk_apikeys"
/* Nothing is sent if at least this part of the notification queue is used. */
#define NOTIFY_MAX_USAGE 0.75

/*
 * The head of each insert.  $1 is the caller's role, $2 the principal, $3 the
 * application's name, $4 the columns that no event shows, $5 the end user.
 * session_user does not change under the owner's rights.
 *
 * The SQL of 0.1 and 0.2 lacks two columns of key_events.  A mark stands where
 * each of them, and then its value, goes: see with_column().  The events of a
 * query without FOR_WHOM in its SELECT have no owner.
 */
#define END_USER "/* end user */"
#define FOR_WHOM "/* for whom */"
#define INSERT_EVENTS \
	"INSERT INTO rk_apikeys.key_events" \
	"  (tenant, key_id, event, actor, role, principal, client_addr, application_name" END_USER "," \
	"   changes" FOR_WHOM ")"
#define WHO \
	"  session_user, $1, $2, inet_client_addr(), $3" END_USER

/* The settings of a row that are not NULL, each as {"new": value} or "old". */
#define SETTINGS(row, word) \
	"(SELECT jsonb_object_agg(a.key, jsonb_build_object('" word "', a.value))" \
	"  FROM jsonb_each(to_jsonb(" row ") - $4) a WHERE a.value <> 'null')"

#define AUDIT_INSERT \
	INSERT_EVENTS \
	" SELECT n.tenant, n.key_id," \
	"  CASE n.digest_kind WHEN 'native' THEN 'created' ELSE 'imported' END," WHO "," \
	SETTINGS("n", "new") FOR_WHOM \
	"  FROM new_keys n WHERE n.created_at = now()"

#define ROTATED "c.changes ? 'grace_until' AND o.grace_until IS NULL"

#define AUDIT_UPDATE \
	INSERT_EVENTS \
	" SELECT n.tenant, n.key_id," \
	"  CASE WHEN c.changes ? 'revoked_at' THEN 'revoked'" \
	"   WHEN " ROTATED " THEN 'rotated'" \
	"   WHEN c.changes ? 'enabled' AND n.enabled THEN 'enabled'" \
	"   WHEN c.changes ? 'enabled' THEN 'disabled'" \
	"   ELSE 'updated' END," WHO "," \
	"  CASE WHEN " ROTATED " AND NOT c.changes ? 'revoked_at'" \
	"   THEN " SETTINGS("n", "new") " || c.changes ELSE c.changes END" FOR_WHOM \
	"  FROM old_keys o JOIN new_keys n USING (key_id)" \
	"   CROSS JOIN LATERAL" \
	"   (SELECT jsonb_object_agg(a.key," \
	"      jsonb_build_object('old', b.value, 'new', a.value)) AS changes" \
	"     FROM jsonb_each(to_jsonb(n) - $4) a" \
	"      JOIN jsonb_each(to_jsonb(o)) b USING (key)" \
	"     WHERE a.value <> b.value) c" \
	"  WHERE c.changes IS NOT NULL"

#define AUDIT_DELETE \
	INSERT_EVENTS \
	" SELECT n.tenant, n.key_id, 'deleted'," WHO "," \
	SETTINGS("n", "old") FOR_WHOM \
	"  FROM old_keys n"

/*
 * The events of the rows of policies or limits.  Each event tells the columns that
 * name the row.
 */
#define AUDIT_ROWS(kind, naming, rows) \
	INSERT_EVENTS \
	" SELECT coalesce(p.new, p.old) ->> 'tenant', NULL," \
	"  CASE WHEN p.old IS NULL THEN '" kind "_created' WHEN p.new IS NULL THEN '" kind "_deleted'" \
	"   ELSE '" kind "_changed' END," WHO "," \
	"  (SELECT jsonb_object_agg(key," \
	"     CASE WHEN p.old IS NULL THEN '{}' ELSE jsonb_build_object('old', p.old -> key) END ||" \
	"     CASE WHEN p.new IS NULL THEN '{}' ELSE jsonb_build_object('new', p.new -> key) END)" \
	"    FROM jsonb_object_keys(coalesce(p.new, p.old) - '{tenant,created_at}'::text[]) key" \
	"    WHERE key IN (" naming ")" \
	"     OR nullif(p.old -> key, 'null') IS DISTINCT FROM nullif(p.new -> key, 'null'))" FOR_WHOM \
	"  FROM (" rows ") p, (SELECT NULL::text AS owner) n WHERE p.old IS DISTINCT FROM p.new"
#define ROWS_MADE(table) " SELECT NULL::jsonb AS old, to_jsonb(n) AS new FROM new_" table " n"
#define ROWS_RESTORED(table) ROWS_MADE(table) " WHERE n.created_at = now()"
#define ROWS_CHANGED(table, same) \
	" SELECT to_jsonb(o) AS old, to_jsonb(n) AS new" \
	"  FROM old_" table " o FULL JOIN new_" table " n ON " same
#define ROWS_DELETED(table) " SELECT to_jsonb(o) AS old, NULL::jsonb AS new FROM old_" table " o"

/*
 * A policy is known by its tenant and environment: if one of them changes, a
 * policy is deleted and another one is made.
 */
#define SAME_POLICY \
	"coalesce(o.tenant, '') = coalesce(n.tenant, '')" \
	" AND coalesce(o.environment, '') = coalesce(n.environment, '')"

/* Events of audit_add(), from JSON. */
#define AUDIT_ADD \
	INSERT_EVENTS \
	" SELECT n.tenant, n.key_id, n.event," WHO ", n.changes" FOR_WHOM \
	"  FROM jsonb_to_recordset(%s)" \
	"   AS n(tenant text, key_id text, event text, changes jsonb, owner text)" \
	"  WHERE $4 IS NOT NULL"

/* Whether a row of key_events has a number that the sequence has yet to give. */
#define NUMBER_IS_TAKEN \
	" FROM (SELECT max(event_id) AS last FROM rk_apikeys.key_events) e," \
	"  rk_apikeys.key_events_event_id_seq s" \
	" WHERE e.last > s.last_value OR (e.last = s.last_value AND NOT s.is_called)"

/*
 * The plan of a statement's events is kept if the statement changes few rows.
 * For many rows it would take about twice as long as a plan of their own.
 */
#define FEW_ROWS 16

/*
 * The query of a statement's events, with its kept plans: by whether they write
 * the end user, and whether they return the events, for NOTIFY.
 */
typedef struct Audit
{
	const char *query;
	SPIPlanPtr	plans[2][2];
	bool		few;			/* of this call */
} Audit;

/* The events of the rows of a table. */
typedef struct RowAudits
{
	const char *table;
	Audit		made;
	Audit		restored;		/* of new rows that the owner has inserted */
	Audit		changed;
	Audit		deleted;
} RowAudits;

#define ROW_AUDITS(of, kind, naming, same) \
	{ \
		.table = of, \
		.made = {.query = AUDIT_ROWS(kind, naming, ROWS_MADE(of))}, \
		.restored = {.query = AUDIT_ROWS(kind, naming, ROWS_RESTORED(of))}, \
		.changed = {.query = AUDIT_ROWS(kind, naming, ROWS_CHANGED(of, same))}, \
		.deleted = {.query = AUDIT_ROWS(kind, naming, ROWS_DELETED(of))} \
	}

static Datum audit_rows(FunctionCallInfo fcinfo, RowAudits *audits);
static Datum audit_write(TriggerData *trigger, Audit *audit);
static void insert_events(void *arg);
static void mend_numbers(void);
static const char *with_column(const char *query, const char *mark,
							   const char *name, const char *value);
static bool notify_has_room(void);
static void notify_events(void);

PG_FUNCTION_INFO_V1(rk_apikeys_keys_audit_insert);
PG_FUNCTION_INFO_V1(rk_apikeys_keys_audit_update);
PG_FUNCTION_INFO_V1(rk_apikeys_keys_audit_delete);
PG_FUNCTION_INFO_V1(rk_apikeys_policies_audit);
PG_FUNCTION_INFO_V1(rk_apikeys_limits_audit);

/* api_keys_audit_insert, AFTER INSERT, FOR EACH STATEMENT. */
Datum
rk_apikeys_keys_audit_insert(PG_FUNCTION_ARGS)
{
	static Audit audit = {.query = AUDIT_INSERT};

	return audit_write(guard_trigger(fcinfo, "api_keys_audit_insert"), &audit);
}

/* api_keys_audit_update, AFTER UPDATE, FOR EACH STATEMENT. */
Datum
rk_apikeys_keys_audit_update(PG_FUNCTION_ARGS)
{
	static Audit audit = {.query = AUDIT_UPDATE};

	return audit_write(guard_trigger(fcinfo, "api_keys_audit_update"), &audit);
}

/* api_keys_audit_delete, AFTER DELETE, FOR EACH STATEMENT. */
Datum
rk_apikeys_keys_audit_delete(PG_FUNCTION_ARGS)
{
	static Audit audit = {.query = AUDIT_DELETE};

	return audit_write(guard_trigger(fcinfo, "api_keys_audit_delete"), &audit);
}

/* policies_audit_insert, _update and _delete, FOR EACH STATEMENT. */
Datum
rk_apikeys_policies_audit(PG_FUNCTION_ARGS)
{
	static RowAudits audits = ROW_AUDITS("policies", "policy", "'environment'", SAME_POLICY);

	return audit_rows(fcinfo, &audits);
}

/* limits_audit_insert, _update and _delete, FOR EACH STATEMENT. */
Datum
rk_apikeys_limits_audit(PG_FUNCTION_ARGS)
{
	static RowAudits audits = ROW_AUDITS("limits", "limit", "'limit_id', 'name'",
										 "o.limit_id = n.limit_id");

	return audit_rows(fcinfo, &audits);
}

/*
 * Insert the events of a statement that has changed rows of a table.
 *
 * A row that was restored or copied has a created_at of its own.  Only the owner
 * can give one without an event.
 */
static Datum
audit_rows(FunctionCallInfo fcinfo, RowAudits *audits)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	bool		update = CALLED_AS_TRIGGER(fcinfo) && TRIGGER_FIRED_BY_UPDATE(trigger->tg_event);
	bool		delete = CALLED_AS_TRIGGER(fcinfo) && TRIGGER_FIRED_BY_DELETE(trigger->tg_event);

	trigger = guard_trigger_of(fcinfo, audits->table,
							   psprintf("%s_audit_%s", audits->table,
										update ? "update" : delete ? "delete" : "insert"));
	if (update)
		return audit_write(trigger, &audits->changed);
	if (delete)
		return audit_write(trigger, &audits->deleted);
	return audit_write(trigger, caller_owns(RelationGetRelid(trigger->tg_relation)) ?
					   &audits->restored : &audits->made);
}

/* Insert the events of a statement, as the owner of its table. */
static Datum
audit_write(TriggerData *trigger, Audit *audit)
{
	Tuplestorestate *rows = trigger->tg_newtable != NULL ?
		trigger->tg_newtable : trigger->tg_oldtable;

	audit->few = tuplestore_tuple_count(rows) <= FEW_ROWS;
	SPI_connect();
	if (SPI_register_trigger_data(trigger) < 0)
		elog(ERROR, "could not register the changed rows");
	caller_run_as_owner(RelationGetRelid(trigger->tg_relation),
						insert_events, audit);
	SPI_finish();
	return PointerGetDatum(NULL);
}

/*
 * Insert events, as the owner of api_keys.  events is a JSON array of objects
 * with tenant, key_id, event, changes and owner.
 */
void
audit_add(const char *events)
{
	Audit		audit = {
		.query = psprintf(AUDIT_ADD, quote_literal_cstr(events))
	};

	SPI_connect();
	caller_run_as_owner(store_table("api_keys", false), insert_events, &audit);
	SPI_finish();
}

/* OwnerWork: insert the events, and notify of them if the setting says so. */
static void
insert_events(void *arg)
{
	Audit	   *audit = arg;
	Oid			types[5] = {TEXTOID, TEXTOID, TEXTOID, TEXTARRAYOID, TEXTOID};
	Datum		values[5] = {0};
	char		nulls[5] = {' ', 'n', ' ', ' ', 'n'};
	bool		for_whom = store_has_text("key_events", "end_user") &&
		store_has_text("key_events", "owner");
	int			nargs = for_whom ? 5 : 4;
	bool		notify = settings_notify && notify_has_room();

	mend_numbers();
	values[0] = CStringGetTextDatum(GetUserNameFromId(caller_role(), false));
	if (principal_key_id() != NULL)
	{
		values[1] = CStringGetTextDatum(principal_key_id());
		nulls[1] = ' ';
	}
	values[2] = CStringGetTextDatum(caller_application_name());
	values[3] = PointerGetDatum(columns_not_told());
	if (for_whom && caller_end_user() != NULL)
	{
		values[4] = CStringGetTextDatum(caller_end_user());
		nulls[4] = ' ';
	}
	if (audit->few && audit->plans[for_whom][notify] != NULL)
		SPI_execute_plan(audit->plans[for_whom][notify], values, nulls, false, 0);
	else
	{
		const char *query = audit->query;

		if (for_whom)
		{
			query = with_column(query, END_USER, ", end_user", ", $5");
			query = with_column(query, FOR_WHOM, ", owner", ", n.owner");
		}
		if (notify)
			query = psprintf("%s RETURNING event, key_id", query);
		if (audit->few)
		{
			SPIPlanPtr	plan = SPI_prepare(query, nargs, types);

			SPI_keepplan(plan);
			audit->plans[for_whom][notify] = plan;
			SPI_execute_plan(plan, values, nulls, false, 0);
		}
		else
			SPI_execute_with_args(query, nargs, types, values, nulls, false, 0);
	}
	if (notify)
		notify_events();
}

/*
 * Return a query with the name of a column at its first mark and the value at its
 * second one, palloc'd; the query itself if it lacks a mark.
 */
static const char *
with_column(const char *query, const char *mark, const char *name,
			const char *value)
{
	size_t		len = strlen(mark);
	const char *first = strstr(query, mark);
	const char *second = first == NULL ? NULL : strstr(first + len, mark);

	if (second == NULL)
		return query;
	return psprintf("%.*s%s%.*s%s%s", (int) (first - query), query, name,
					(int) (second - first - len), first + len, value, second + len);
}

/*
 * OwnerWork: let the sequence continue after the last event.  A restore of rows
 * alone, logical replication or COPY adds events and leaves the sequence behind.
 * Then an event would get the number of another one.  The argument is not used.
 *
 * Locking: ShareUpdateExclusiveLock on the sequence, only while it is behind,
 * released at once.  Without the lock, a session could set the sequence back
 * after another session has set it and taken a number.
 */
static void
mend_numbers(void)
{
	static SPIPlanPtr look = NULL;
	static SPIPlanPtr mend = NULL;

	SPI_connect();
	if (now_execute(&look, "SELECT" NUMBER_IS_TAKEN, 0, NULL, NULL) > 0)
	{
		Oid			schema = get_namespace_oid("rk_apikeys", false);
		Oid			sequence = get_relname_relid("key_events_event_id_seq", schema);

		LockRelationOid(sequence, ShareUpdateExclusiveLock);
		now_execute(&mend,
					"SELECT setval('rk_apikeys.key_events_event_id_seq', e.last)"
					NUMBER_IS_TAKEN, 0, NULL, NULL);
		UnlockRelationOid(sequence, ShareUpdateExclusiveLock);
	}
	SPI_finish();
}

/*
 * Return whether the notification queue has room, and warn if it has not.  The
 * bound is far below a full queue, because other transactions add their
 * notifications only at COMMIT.
 */
static bool
notify_has_room(void)
{
	double		usage = DatumGetFloat8(OidFunctionCall0(F_PG_NOTIFICATION_QUEUE_USAGE));

	if (usage < NOTIFY_MAX_USAGE)
		return true;
	ereport(WARNING,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("skipping notifications of API key changes: the notification queue is %.0f%% full",
					usage * 100),
			 errhint("End the open transaction of the session that listens.")));
	return false;
}

/*
 * Notify of the events that were just inserted.  Their values need no escapes,
 * because constraints allow only letters and digits.
 */
static void
notify_events(void)
{
	TupleDesc	desc = SPI_tuptable->tupdesc;

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		char	   *event = SPI_getvalue(row, desc, 1);
		char	   *key_id = SPI_getvalue(row, desc, 2);
		char	   *payload;

		/* A purge, or another event that is of no key. */
		if (key_id == NULL)
			continue;
		payload = psprintf("{\"event\": \"%s\", \"key_id\": \"%s\"}",
						   event, key_id);

		Async_Notify(NOTIFY_CHANNEL, payload);
		pfree(payload);
		pfree(event);
		pfree(key_id);
	}
	SPI_freetuptable(SPI_tuptable);
}
