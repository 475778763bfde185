/*
 * follow.c
 *		The events that followers get, each committed one once.
 *
 * Numbers are given before a transaction commits, so a lower number may appear
 * after a higher one was read.  Therefore an event has a place: the history of
 * its server (system identifier and timeline), its transaction and its number.
 * A cursor tells which places were delivered.  For each history it has the last
 * place, and the transactions below it that were running when it was read: the
 * open ones.  So no event waits for another transaction.
 *
 * A transaction that has ended for the snapshot of a call has all its events in
 * that snapshot, or none.  A transaction that a standby has not seen yet is
 * running there, or comes after its last place.
 *
 * A promotion begins a new history, because the new primary may give a
 * transaction id again that the old one had given.  So does pg_upgrade or a
 * restore, because the system identifier is another one.  Restored events keep
 * their places, so a cursor of the old cluster continues.  Logical replication
 * brings events in another order than that of their transaction ids.  So a
 * subscriber gives an event a place of its own, and keeps the old one in
 * came_as, for a cursor of the publisher.
 *
 * Trust: the events are read with the caller's rights.  Only the list of
 * histories is read as the owner, because a role that sees few rows would read
 * the whole index for it.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "access/subtrans.h"
#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"
#include "utils/xid8.h"

#include "base/caller.h"
#include "base/store.h"
#include "compat.h"
#include "token/shown.h"

#define EVENTS_MAX 10000
/* A cursor has at most so many histories, and open transactions in each. */
#define HISTORIES_MAX 1000
#define OPEN_MAX 4096
/* Longer than a cursor whose servers had so many transactions running. */
#define CURSOR_MAX_LEN (1024 * 1024)
#define CURSOR_HEAD "1:"
/* The system identifier, '-', the timeline. */
#define HISTORY_MAX_LEN 31
/* Rows that are read at once. */
#define CHUNK 1000

/* A transaction, and its last event that was delivered; 0: none. */
typedef struct Place
{
	uint64		xid;
	int64		event_id;
} Place;

/* What was delivered of a history: all up to last, except of open ones. */
typedef struct History
{
	char		name[HISTORY_MAX_LEN + 1];	/* "": events of 0.2 */
	Place		last;
	Place	   *open;			/* ascending, below last */
	int			open_count;
	int			open_size;		/* allocated */
} History;

/* A call of events_since(). */
typedef struct Follow
{
	History		histories[HISTORIES_MAX];	/* the cursor */
	int			count;
	char	   *present[HISTORIES_MAX]; /* histories of key_events */
	int			present_count;
	uint64	   *running;		/* for the snapshot; ascending */
	int			running_count;
	uint64		xmax;			/* nothing from here on has ended */
	uint64		own;			/* this transaction; PG_UINT64_MAX: it has no id */
	int			left;			/* events to be returned */
	ReturnSetInfo *result;
	SPIPlanPtr	of_xid;
	SPIPlanPtr	after;
} Follow;

/* The index has the order, whatever the statistics say. */
static const char *const by_index[] = {
	"enable_bitmapscan", "enable_seqscan", "enable_sort", "jit"
};

static void parse_cursor(Follow *follow, text *cursor);
static bool parse_history(Follow *follow, char **at);
static bool parse_place(char **at, Place *place, bool event_id);
static bool parse_number(char **at, uint64 max, uint64 *number);
static History *find_history(Follow *follow, const char *name);
static History *add_history(Follow *follow, const char *name);
static bool add_open(History *history, Place place);
static void find_running(Follow *follow);
static uint64 full_xid(TransactionId xid, FullTransactionId next);
static int	compare_xids(const void *a, const void *b);
static bool is_running(const Follow *follow, const History *history, uint64 xid);
static void list_histories(void *arg);
static void prepare(Follow *follow);
static uint64 read_rows(SPIPlanPtr plan, const History *history, Place from, uint64 own,
						int limit);
static Place place_of_row(uint64 row);
static void follow_open(Follow *follow, History *history);
static void follow_rest(Follow *follow, History *history);
static bool was_delivered(Follow *follow, uint64 row, int64 event_id);
static void deliver(Follow *follow, uint64 row);
static text *write_cursor(const Follow *follow);

PG_FUNCTION_INFO_V1(rk_apikeys_history);
PG_FUNCTION_INFO_V1(rk_apikeys_events_since);

/* rk_apikeys._history() -> text: the default of key_events.history. */
Datum
rk_apikeys_history(PG_FUNCTION_ARGS)
{
	TimeLineID	timeline;

	if (RecoveryInProgress())
		(void) GetXLogReplayRecPtr(&timeline);
	else
		timeline = GetWALInsertionTimeLine();
	PG_RETURN_TEXT_P(cstring_to_text(psprintf(UINT64_FORMAT "-%u",
											  GetSystemIdentifier(), timeline)));
}

/*
 * rk_apikeys.events_since(cursor text, max_events integer) -> setof event
 *
 * Raise 22023 if the cursor is not one, or max_events is out of range.
 */
Datum
rk_apikeys_events_since(PG_FUNCTION_ARGS)
{
	Follow	   *follow = palloc0(sizeof(Follow));
	int			nestlevel;

	if (PG_ARGISNULL(1) || PG_GETARG_INT32(1) < 1 || PG_GETARG_INT32(1) > EVENTS_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 PG_ARGISNULL(1) ? errmsg("max_events cannot be null") :
				 errmsg("max_events out of range: %d", PG_GETARG_INT32(1)),
				 errhint("Use a number from 1 to %d.", EVENTS_MAX)));
	follow->left = PG_GETARG_INT32(1);
	if (!PG_ARGISNULL(0))
	{
		/* Refused before it is detoasted. */
		if (toast_raw_datum_size(PG_GETARG_DATUM(0)) > CURSOR_MAX_LEN)
			parse_cursor(follow, NULL);
		parse_cursor(follow, PG_GETARG_TEXT_PP(0));
	}
	InitMaterializedSRF(fcinfo, 0);
	follow->result = (ReturnSetInfo *) fcinfo->resultinfo;
	find_running(follow);

	SPI_connect();
	nestlevel = NewGUCNestLevel();
	for (int i = 0; i < (int) lengthof(by_index); i++)
		(void) set_config_option(by_index[i], "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	caller_run_as_owner(store_table("key_events", false), list_histories, follow);
	prepare(follow);
	for (int i = 0; i < follow->present_count && follow->left > 0; i++)
	{
		History    *history = find_history(follow, follow->present[i]);

		if (history == NULL)
			history = add_history(follow, follow->present[i]);
		follow_open(follow, history);
		follow_rest(follow, history);
	}
	AtEOXact_GUC(true, nestlevel);
	SPI_finish();
	return (Datum) 0;
}

/* Set the histories from a cursor.  NULL is a text that is too long for one. */
static void
parse_cursor(Follow *follow, text *cursor)
{
	char	   *at = cursor == NULL ? pstrdup("") : text_to_cstring(cursor);
	bool		ok = strncmp(at, CURSOR_HEAD, strlen(CURSOR_HEAD)) == 0;

	if (ok)
	{
		at += strlen(CURSOR_HEAD);
		while ((ok = parse_history(follow, &at)) && *at == ';')
			at++;
	}
	if (!ok || *at != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 cursor == NULL ? errmsg("invalid cursor of events: too long") :
				 errmsg("invalid cursor of events: \"%s\"", shown_text(cursor)),
				 errhint("Give the column cursor of the last row of an earlier call, or NULL to begin at the oldest event.")));
}

/* Parse name "/" last "/" open, open, ... */
static bool
parse_history(Follow *follow, char **at)
{
	size_t		len = strcspn(*at, "/");
	char		name[HISTORY_MAX_LEN + 1];
	History    *history;

	if ((*at)[len] != '/' || len > HISTORY_MAX_LEN ||
		strspn(*at, "0123456789-") != len || follow->count == HISTORIES_MAX)
		return false;
	memcpy(name, *at, len);
	name[len] = '\0';
	*at += len + 1;
	if (find_history(follow, name) != NULL)
		return false;
	history = add_history(follow, name);
	if (!parse_place(at, &history->last, true) || **at != '/')
		return false;
	(*at)++;
	if (**at == '\0' || **at == ';')
		return true;
	for (uint64 least = 0;;)
	{
		Place		open;

		if (!parse_place(at, &open, false) || open.xid <= least ||
			open.xid >= history->last.xid || !add_open(history, open))
			return false;
		least = open.xid;
		if (**at != ',')
			return true;
		(*at)++;
	}
}

/* Parse xid "." event_id, or xid alone. */
static bool
parse_place(char **at, Place *place, bool event_id)
{
	uint64		number = 0;

	if (!parse_number(at, PG_UINT64_MAX, &place->xid))
		return false;
	if (**at == '.')
	{
		(*at)++;
		if (!parse_number(at, PG_INT64_MAX, &number))
			return false;
	}
	else if (event_id)
		return false;
	place->event_id = (int64) number;
	return true;
}

static bool
parse_number(char **at, uint64 max, uint64 *number)
{
	char	   *start = *at;

	*number = 0;
	for (; **at >= '0' && **at <= '9'; (*at)++)
	{
		uint64		digit = **at - '0';

		if (*number > (max - digit) / 10)
			return false;
		*number = *number * 10 + digit;
	}
	return *at > start;
}

static History *
find_history(Follow *follow, const char *name)
{
	for (int i = 0; i < follow->count; i++)
		if (strcmp(follow->histories[i].name, name) == 0)
			return &follow->histories[i];
	return NULL;
}

/*
 * Add a history of which nothing was delivered.  If there is no room, the first
 * one without events makes room.
 */
static History *
add_history(Follow *follow, const char *name)
{
	History    *history;

	for (int i = 0; follow->count == HISTORIES_MAX; i++)
	{
		bool		present = false;

		for (int j = 0; j < follow->present_count; j++)
			present |= strcmp(follow->histories[i].name, follow->present[j]) == 0;
		if (!present)
			memmove(&follow->histories[i], &follow->histories[i + 1],
					(--follow->count - i) * sizeof(History));
	}
	history = &follow->histories[follow->count++];
	memset(history, 0, sizeof(History));
	strlcpy(history->name, name, sizeof(history->name));
	return history;
}

/* Add an open transaction, above the others.  Return false if there is no room. */
static bool
add_open(History *history, Place place)
{
	if (history->open_count == OPEN_MAX)
		return false;
	if (history->open_count == history->open_size)
	{
		history->open_size = Max(2 * history->open_size, 16);
		history->open = history->open == NULL ?
			palloc(history->open_size * sizeof(Place)) :
			repalloc(history->open, history->open_size * sizeof(Place));
	}
	history->open[history->open_count++] = place;
	return true;
}

/*
 * Set the transactions that are running for the snapshot of this statement, and
 * this transaction, whose events are not committed.
 */
static void
find_running(Follow *follow)
{
	Snapshot	snapshot = GetActiveSnapshot();
	FullTransactionId next = ReadNextFullTransactionId();
	int			count = 0;

	follow->own = PG_UINT64_MAX;
	follow->running = palloc((snapshot->xcnt + Max(snapshot->subxcnt, 0) + 1) *
							 sizeof(uint64));
	for (uint32 i = 0; i < snapshot->xcnt; i++)
		follow->running[count++] = full_xid(snapshot->xip[i], next);
	/* A standby has all in subxip, and does not always know which is a child. */
	if (snapshot->takenDuringRecovery)
		for (int i = 0; i < snapshot->subxcnt; i++)
			if (!TransactionIdIsValid(SubTransGetParent(snapshot->subxip[i])))
				follow->running[count++] = full_xid(snapshot->subxip[i], next);
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
	{
		follow->own = full_xid(GetTopTransactionIdIfAny(), next);
		follow->running[count++] = follow->own;
	}
	qsort(follow->running, count, sizeof(uint64), compare_xids);
	follow->running_count = count;
	follow->xmax = full_xid(snapshot->xmax, next);
}

/* Return a transaction id with its epoch; next is a later one. */
static uint64
full_xid(TransactionId xid, FullTransactionId next)
{
	uint32		epoch = EpochFromFullTransactionId(next);

	if (xid > XidFromFullTransactionId(next))
		epoch--;
	return U64FromFullTransactionId(FullTransactionIdFromEpochAndXid(epoch, xid));
}

static int
compare_xids(const void *a, const void *b)
{
	uint64		left = *(const uint64 *) a;
	uint64		right = *(const uint64 *) b;

	return left < right ? -1 : left > right;
}

/*
 * Return whether a transaction of that history may still commit here.  None of
 * another cluster's can.
 */
static bool
is_running(const Follow *follow, const History *history, uint64 xid)
{
	char	   *end;

	if (strtou64(history->name, &end, 10) != GetSystemIdentifier() || *end != '-')
		return false;
	return xid >= follow->xmax ||
		bsearch(&xid, follow->running, follow->running_count, sizeof(uint64),
				compare_xids) != NULL;
}

/* OwnerWork: set the histories of key_events, oldest first. */
static void
list_histories(void *arg)
{
	Follow	   *follow = arg;

	SPI_execute("WITH RECURSIVE h(history) AS ("
				"  (SELECT history FROM rk_apikeys.key_events ORDER BY history LIMIT 1)"
				"  UNION ALL"
				"  SELECT (SELECT e.history FROM rk_apikeys.key_events e"
				"    WHERE e.history > h.history ORDER BY e.history LIMIT 1)"
				"  FROM h WHERE h.history IS NOT NULL)"
				" SELECT history FROM h WHERE history IS NOT NULL"
				" ORDER BY (SELECT e.event_id FROM rk_apikeys.key_events e"
				"  WHERE e.history = h.history ORDER BY e.xid, e.event_id LIMIT 1)",
				true, HISTORIES_MAX + 1);
	if (SPI_processed > HISTORIES_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("events have more than %d histories", HISTORIES_MAX),
				 errhint("Purge old events.")));
	for (uint64 i = 0; i < SPI_processed; i++)
		follow->present[i] = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);
	follow->present_count = (int) SPI_processed;
}

/*
 * Prepare the two queries.  The columns are those of the result, except cursor,
 * so that the SQL alone says which an event has.
 */
static void
prepare(Follow *follow)
{
	Oid			types[5] = {TEXTOID, XID8OID, INT8OID, XID8OID, INT8OID};
	StringInfoData query;
	int			head;

	initStringInfo(&query);
	appendStringInfoString(&query, "SELECT ");
	for (int i = 0; i < follow->result->setDesc->natts - 1; i++)
		appendStringInfo(&query, "%s, ",
						 quote_identifier(NameStr(TupleDescAttr(follow->result->setDesc, i)->attname)));
	appendStringInfoString(&query, "xid, event_id, came_as FROM rk_apikeys.key_events"
						   " WHERE history OPERATOR(pg_catalog.=) $1 AND ");
	head = query.len;
	appendStringInfoString(&query, "xid OPERATOR(pg_catalog.=) $2"
						   " AND event_id OPERATOR(pg_catalog.>) $3 AND $4 IS NOT NULL"
						   " ORDER BY event_id LIMIT $5");
	follow->of_xid = SPI_prepare(query.data, 5, types);
	query.len = head;
	appendStringInfoString(&query, "(xid, event_id) OPERATOR(pg_catalog.>) ($2, $3)"
						   " AND xid OPERATOR(pg_catalog.<>) $4"
						   " ORDER BY xid, event_id LIMIT $5");
	follow->after = SPI_prepare(query.data, 5, types);
	if (follow->of_xid == NULL || follow->after == NULL)
		elog(ERROR, "could not plan events: %s", SPI_result_code_string(SPI_result));
}

/* Read events of a history after a place, and return their number. */
static uint64
read_rows(SPIPlanPtr plan, const History *history, Place from, uint64 own, int limit)
{
	Datum		values[5];

	CHECK_FOR_INTERRUPTS();
	values[0] = CStringGetTextDatum(history->name);
	values[1] = FullTransactionIdGetDatum(FullTransactionIdFromU64(from.xid));
	values[2] = Int64GetDatum(from.event_id);
	values[3] = FullTransactionIdGetDatum(FullTransactionIdFromU64(own));
	values[4] = Int64GetDatum(limit);
	SPI_execute_plan(plan, values, NULL, true, 0);
	return SPI_processed;
}

/* Return the place of a row that was read. */
static Place
place_of_row(uint64 row)
{
	HeapTuple	tuple = SPI_tuptable->vals[row];
	TupleDesc	desc = SPI_tuptable->tupdesc;
	bool		isnull;
	Place		place;

	place.xid = U64FromFullTransactionId(DatumGetFullTransactionId(
		SPI_getbinval(tuple, desc, desc->natts - 2, &isnull)));
	place.event_id = DatumGetInt64(SPI_getbinval(tuple, desc, desc->natts - 1, &isnull));
	return place;
}

/* Return the events of open transactions that have committed meanwhile. */
static void
follow_open(Follow *follow, History *history)
{
	int			i = 0;

	while (i < history->open_count && follow->left > 0)
	{
		Place	   *open = &history->open[i];
		uint64		rows;

		if (is_running(follow, history, open->xid))
		{
			i++;
			continue;
		}
		do
		{
			rows = read_rows(follow->of_xid, history, *open, 0, Min(follow->left, CHUNK));
			for (uint64 row = 0; row < rows && follow->left > 0; row++)
			{
				open->event_id = place_of_row(row).event_id;
				if (!was_delivered(follow, row, open->event_id))
					deliver(follow, row);
			}
			SPI_freetuptable(SPI_tuptable);
		} while (rows > 0 && follow->left > 0);
		/* Out of room, the transaction may have more events. */
		if (follow->left == 0)
			return;
		memmove(open, open + 1, (--history->open_count - i) * sizeof(Place));
	}
}

/*
 * Return the events after the last place.  A transaction that is running is open
 * as soon as the last place is above it.
 */
static void
follow_rest(Follow *follow, History *history)
{
	Place		from = history->last;
	bool		was_open = is_running(follow, history, from.xid);
	bool		has_room = true;
	int			next = 0;
	uint64		rows;

	if (follow->left == 0)
		return;
	while (next < follow->running_count && follow->running[next] <= from.xid)
		next++;
	do
	{
		rows = read_rows(follow->after, history, from, follow->own, CHUNK);
		for (uint64 row = 0; row < rows && follow->left > 0; row++)
		{
			from = place_of_row(row);
			if (was_delivered(follow, row, from.event_id))
				continue;
			/* On a standby that lags behind the one of the cursor. */
			if (was_open && from.xid > history->last.xid)
			{
				has_room = add_open(history, history->last);
				was_open = false;
			}
			for (; has_room && next < follow->running_count &&
				 follow->running[next] < from.xid; next++)
			{
				Place		open = {follow->running[next], 0};

				if (is_running(follow, history, open.xid))
					has_room = add_open(history, open);
			}
			/* The events come when some transactions have ended. */
			if (!has_room)
			{
				follow->left = 0;
				break;
			}
			history->last = from;
			deliver(follow, row);
		}
		SPI_freetuptable(SPI_tuptable);
	} while (rows == CHUNK && follow->left > 0);
}

/* Return whether a row was delivered by a server that it has come from. */
static bool
was_delivered(Follow *follow, uint64 row, int64 event_id)
{
	TupleDesc	desc = SPI_tuptable->tupdesc;
	bool		isnull;
	Datum		came_as = SPI_getbinval(SPI_tuptable->vals[row], desc, desc->natts, &isnull);
	Datum	   *values;
	bool	   *nulls;
	int			count;

	if (isnull)
		return false;
	deconstruct_array(DatumGetArrayTypeP(came_as), TEXTOID, -1, false, TYPALIGN_INT,
					  &values, &nulls, &count);
	for (int i = 0; i < count; i++)
	{
		char	   *name = nulls[i] ? pstrdup("") : TextDatumGetCString(values[i]);
		char	   *xid = strchr(name, '/');
		History    *history;
		Place		place;
		bool		done;

		if (xid == NULL)
			continue;
		*xid++ = '\0';
		history = find_history(follow, name);
		if (history == NULL || !parse_place(&xid, &place, false))
			continue;
		done = place.xid < history->last.xid ||
			(place.xid == history->last.xid && event_id <= history->last.event_id);
		for (int j = 0; j < history->open_count; j++)
			if (history->open[j].xid == place.xid)
				done = event_id <= history->open[j].event_id;
		if (done)
			return true;
	}
	return false;
}

/* Return a row, with the cursor as it is now. */
static void
deliver(Follow *follow, uint64 row)
{
	TupleDesc	desc = follow->result->setDesc;
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc0(desc->natts * sizeof(bool));
	text	   *cursor = write_cursor(follow);

	for (int i = 0; i < desc->natts - 1; i++)
		values[i] = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
								  i + 1, &nulls[i]);
	values[desc->natts - 1] = PointerGetDatum(cursor);
	tuplestore_putvalues(follow->result->setResult, desc, values, nulls);
	follow->left--;
	pfree(values);
	pfree(nulls);
	pfree(cursor);
}

static text *
write_cursor(const Follow *follow)
{
	StringInfoData cursor;
	text	   *result;

	initStringInfo(&cursor);
	appendStringInfoString(&cursor, CURSOR_HEAD);
	for (int i = 0; i < follow->count; i++)
	{
		const History *history = &follow->histories[i];

		if (history->last.xid == 0 && history->last.event_id == 0)
			continue;
		appendStringInfo(&cursor, "%s%s/" UINT64_FORMAT "." INT64_FORMAT "/",
						 cursor.len > (int) strlen(CURSOR_HEAD) ? ";" : "",
						 history->name, history->last.xid, history->last.event_id);
		for (int j = 0; j < history->open_count; j++)
		{
			appendStringInfo(&cursor, "%s" UINT64_FORMAT, j == 0 ? "" : ",",
							 history->open[j].xid);
			if (history->open[j].event_id != 0)
				appendStringInfo(&cursor, "." INT64_FORMAT, history->open[j].event_id);
		}
	}
	result = cstring_to_text_with_len(cursor.data, cursor.len);
	pfree(cursor.data);
	return result;
}
