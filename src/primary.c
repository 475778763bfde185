/*
 * primary.c
 *		Use that is sent to the server that writes it: from a standby to its
 *		primary, from a subscriber to its origin.
 *
 * A flush worker takes a batch from the entries into the outbox, gives it a
 * number and sends it.  What the primary has written is settled; what it has
 * refused, or left out, is given back.  If the connection ends before the
 * answer is there, nobody here knows: then the batch stays in the outbox, and
 * is sent again under its number, which counts once (see receive.c), until the
 * primary says that it is written.  After a
 * promotion it is delivered to this server's own tables, which know the number
 * if the primary had written the batch, and it was replayed.
 *
 * The outbox is lost with shared memory, and in a shutdown: a batch without an
 * answer may then not be counted, but never twice.
 *
 * A worker connects anew each time.  While the primary is away use stays with
 * the entries, whose number is fixed.
 *
 * Trust: the setting may lead to any server, and holds no password: PostgreSQL
 * writes a changed setting to the log.  Neither it nor what libpq says of its
 * syntax is logged; what libpq says of a connection names host and user.
 *
 * Interrupts: libpq is called where it does not block, but for the look-up of a
 * host's name.  Between, the worker waits for its latch as well.  What raises
 * ends the worker, and the connection with it.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_subscription_rel.h"
#include "commands/dbcommands.h"
#include "lib/stringinfo.h"
#include "libpq-fe.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inet.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "primary.h"
#include "receive.h"
#include "rk_apikeys.h"
#include "stats.h"
#include "store.h"

/*
 * Milliseconds that a worker stays, for the connection and all of its batches,
 * and after which it begins no other.  DROP DATABASE waits for five seconds.
 */
#define SEND_TIMEOUT_MS 4000
#define SEND_BUDGET_MS 1000

#define SEND_COLUMNS 10
#define SEND_QUERY \
	"SELECT * FROM rk_apikeys.receive_usage($1::uuid, $2::bigint, $3::text[]," \
	" $4::text[], $5::timestamptz[], $6::inet[], $7::bigint[], $8::bigint[]," \
	" $9::bigint[], $10::bigint[])"

/* What came of a batch. */
typedef enum Answer
{
	ANSWER_WRITTEN,
	ANSWER_REFUSED,				/* nothing was written */
	ANSWER_NONE					/* it may have been written */
} Answer;

/* What came of the outbox's copies: as usage_flush() says. */
static bool flushed[USAGE_BATCH];
static bool gone[USAGE_BATCH];

static bool is_subscribed(Oid table);
static PGconn *connect_to_primary(TimestampTz deadline);
static PGconn *start_connection(const char *database);
static bool wait_for(PGconn *conn, int events, TimestampTz deadline);
static void fill_outbox(const UsageCopy *copies, int count);
static bool send_outbox(PGconn *conn, TimestampTz deadline);
static void empty_outbox(void);
static Answer ask(PGconn *conn, TimestampTz deadline);
static Answer read_answer(PGconn *conn, TimestampTz deadline);
static void read_rows(PGresult *result);
static void append_copy(StringInfo columns, const UsageCopy *copy);
static void tell_failure(const char *reason);

/*
 * Whether the use of this database's keys is written by another server: this is
 * a standby, or has its keys by logical replication, and knows where to send it.
 * Runs in a transaction.
 */
bool
primary_is_asked(void)
{
	Oid			table;

	if (rk_apikeys_primary_conninfo[0] == '\0')
		return false;
	if (RecoveryInProgress())
		return true;
	table = store_table("api_keys", true);
	return OidIsValid(table) && is_subscribed(table);
}

static bool
is_subscribed(Oid table)
{
	Relation	rel = table_open(SubscriptionRelRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	bool		found;

	ScanKeyInit(&key, Anum_pg_subscription_rel_srrelid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(table));
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 1, &key);
	found = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

/* Send what is pending, batch by batch. */
UsageEnd
primary_send(const UsageCopy *copies, int count)
{
	TimestampTz start = GetCurrentTimestamp();
	TimestampTz deadline = TimestampTzPlusMilliseconds(start, SEND_TIMEOUT_MS);
	PGconn	   *conn;
	UsageEnd	end = USAGE_DONE;

	/* Another database's batch goes first, with a worker of its own. */
	if (usage_outbox->count > 0 && usage_outbox->database != MyDatabaseId)
		return USAGE_FAILED;
	conn = connect_to_primary(deadline);
	if (conn == NULL)
		return USAGE_FAILED;
	if (usage_outbox->count > 0 && !send_outbox(conn, deadline))
		end = USAGE_FAILED;
	for (int i = 0; i < count && end == USAGE_DONE; i += USAGE_BATCH)
	{
		if (TimestampDifferenceExceeds(start, GetCurrentTimestamp(),
									   SEND_BUDGET_MS))
			end = USAGE_LEFT;
		else
		{
			fill_outbox(copies + i, Min(count - i, USAGE_BATCH));
			if (usage_outbox->count > 0 && !send_outbox(conn, deadline))
				end = USAGE_FAILED;
		}
	}
	PQfinish(conn);
	ReleaseExternalFD();
	return end;
}

/*
 * Whether there is a batch of this database that was sent without an answer,
 * and that its own tables must have first: this was a standby then.
 */
bool
primary_has_sent(void)
{
	return usage_outbox->count > 0 && usage_outbox->database == MyDatabaseId;
}

/*
 * Deliver it, in the caller's transaction; a BatchWork of the worker's.  After
 * the commit it calls primary_delivered(); if it does not, the next worker
 * delivers the batch again, which does no harm.
 */
int
primary_deliver(const UsageCopy *copies, int count)
{
	receive_batch(usage_outbox->sender, usage_outbox->batch,
				  usage_outbox->copies, count, flushed, gone);
	return count;
}

void
primary_delivered(void)
{
	empty_outbox();
}

/*
 * A connection to the primary, to the database of this name unless the setting
 * names one; NULL if there is none by the deadline.
 */
static PGconn *
connect_to_primary(TimestampTz deadline)
{
	char	   *database;
	PGconn	   *conn;
	PostgresPollingStatusType status = PGRES_POLLING_WRITING;

	StartTransactionCommand();
	database = MemoryContextStrdup(TopMemoryContext,
								   get_database_name(MyDatabaseId));
	CommitTransactionCommand();
	if (!AcquireExternalFD())
	{
		tell_failure("too many files are open");
		return NULL;
	}
	conn = start_connection(database);
	while (conn != NULL && PQstatus(conn) != CONNECTION_BAD &&
		   status != PGRES_POLLING_OK && status != PGRES_POLLING_FAILED)
	{
		if (!wait_for(conn, status == PGRES_POLLING_READING ?
					  WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE, deadline))
			break;
		status = PQconnectPoll(conn);
	}
	if (conn != NULL && status == PGRES_POLLING_OK &&
		PQsetnonblocking(conn, 1) == 0)
		return conn;
	if (conn != NULL)
		tell_failure(PQstatus(conn) == CONNECTION_BAD ? PQerrorMessage(conn) :
					 "it did not answer in time");
	PQfinish(conn);
	ReleaseExternalFD();
	return NULL;
}

/*
 * Begin to connect; NULL, and told, where the setting will not do.  A parameter
 * that libpq does not find there, it takes from the environment and from files,
 * as ever.
 */
static PGconn *
start_connection(const char *database)
{
	const char *keywords[] = {"dbname", "fallback_application_name", "dbname", NULL};
	const char *values[] = {rk_apikeys_primary_conninfo, "rk_apikeys", database, NULL};
	PQconninfoOption *options = PQconninfoParse(rk_apikeys_primary_conninfo, NULL);
	PGconn	   *conn = NULL;
	bool		secret = false;

	for (PQconninfoOption *option = options;
		 option != NULL && option->keyword != NULL; option++)
	{
		if (option->val == NULL || option->val[0] == '\0')
			continue;
		if (strcmp(option->keyword, "password") == 0 ||
			strcmp(option->keyword, "sslpassword") == 0)
			secret = true;
		/* Of several, the last counts. */
		if (strcmp(option->keyword, "dbname") == 0)
			keywords[2] = NULL;
	}
	if (options == NULL)
		tell_failure("rk_apikeys.primary_conninfo is no connection string");
	else if (secret)
		tell_failure("rk_apikeys.primary_conninfo holds a password: put it into a file, and name that with passfile");
	else if ((conn = PQconnectStartParams(keywords, values, 1)) == NULL)
		tell_failure("out of memory");
	PQconninfoFree(options);
	return conn;
}

/*
 * Wait for the socket.  Returns false when the deadline is over.
 */
static bool
wait_for(PGconn *conn, int events, TimestampTz deadline)
{
	for (;;)
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
														   deadline);
		int			happened;

		if (left <= 0)
			return false;
		happened = WaitLatchOrSocket(MyLatch,
									 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH | events,
									 PQsocket(conn), left, PG_WAIT_EXTENSION);
		if (happened & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
		if (happened & events)
			return true;
	}
}

/* Take what is to be sent next; that may be nothing. */
static void
fill_outbox(const UsageCopy *copies, int count)
{
	Assert(usage_outbox->count == 0);
	usage_outbox->database = MyDatabaseId;
	usage_outbox->batch++;
	usage_outbox->in_doubt = false;
	for (int i = 0; i < count; i++)
	{
		usage_outbox->copies[usage_outbox->count] = copies[i];
		if (usage_take(MyDatabaseId, &usage_outbox->copies[usage_outbox->count]))
			usage_outbox->count++;
	}
}

/*
 * Send what is in the outbox.  Returns whether it went well; then the outbox is
 * empty.  It is also after a refusal, but for a batch that had been sent before:
 * what was sent then may still be under way on the primary.
 */
static bool
send_outbox(PGconn *conn, TimestampTz deadline)
{
	bool		was_in_doubt = usage_outbox->in_doubt;
	Answer		answer;

	usage_outbox->in_doubt = true;
	answer = ask(conn, deadline);
	if (answer != ANSWER_WRITTEN)
		tell_failure(PQerrorMessage(conn)[0] == '\0' ?
					 "it did not answer in time" : PQerrorMessage(conn));
	else if (usage_set_failing(false))
		ereport(LOG,
				(errmsg("the usage of API keys reaches the primary again")));
	if (answer == ANSWER_WRITTEN || (answer == ANSWER_REFUSED && !was_in_doubt))
		empty_outbox();
	return answer == ANSWER_WRITTEN;
}

/* What is written is settled, and what is not is given back. */
static void
empty_outbox(void)
{
	int			written = 0;

	while (usage_outbox->count > 0)
	{
		int			i = usage_outbox->count - 1;
		UsageCopy  *copy = &usage_outbox->copies[i];

		/* First: should this process end, none of them is done twice. */
		usage_outbox->count--;
		if (flushed[i])
			usage_settle(usage_outbox->database, copy);
		else if (gone[i])
			usage_forget_gone(usage_outbox->database, copy);
		else
			usage_give_back(usage_outbox->database, copy);
		written += flushed[i];
	}
	stats_count(STATS_FLUSHES);
	stats_count_many(STATS_FLUSHED_KEYS, written);
}

/* Send the outbox's batch, and wait for what comes of it. */
static Answer
ask(PGconn *conn, TimestampTz deadline)
{
	StringInfoData columns[SEND_COLUMNS];
	const char *values[SEND_COLUMNS];
	int			sent;

	memset(flushed, 0, sizeof(flushed));
	memset(gone, 0, sizeof(gone));
	for (int c = 0; c < SEND_COLUMNS; c++)
		initStringInfo(&columns[c]);
	for (int i = 0; i < (int) lengthof(usage_outbox->sender); i++)
		appendStringInfo(&columns[0], "%02x", usage_outbox->sender[i]);
	appendStringInfo(&columns[1], INT64_FORMAT, usage_outbox->batch);
	for (int i = 0; i < usage_outbox->count; i++)
		append_copy(columns + 2, &usage_outbox->copies[i]);
	for (int c = 2; c < SEND_COLUMNS; c++)
		appendStringInfoChar(&columns[c], '}');
	for (int c = 0; c < SEND_COLUMNS; c++)
		values[c] = columns[c].data;

	sent = PQsendQueryParams(conn, SEND_QUERY, SEND_COLUMNS, NULL, values, NULL,
							 NULL, 0);
	for (int c = 0; c < SEND_COLUMNS; c++)
		pfree(columns[c].data);
	if (!sent)
		return ANSWER_NONE;
	for (;;)
	{
		int			left = PQflush(conn);

		if (left < 0)
			return ANSWER_NONE;
		if (left == 0)
			break;
		if (!wait_for(conn, WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE, deadline) ||
			!PQconsumeInput(conn))
			return ANSWER_NONE;
	}
	return read_answer(conn, deadline);
}

/*
 * What the primary says.  It has committed when it is ready for another query,
 * and not yet when the rows are there; it has not if it is that after an error.
 */
static Answer
read_answer(PGconn *conn, TimestampTz deadline)
{
	Answer		answer = ANSWER_REFUSED;

	for (;;)
	{
		PGresult   *result;

		while (PQisBusy(conn))
			if (!wait_for(conn, WL_SOCKET_READABLE, deadline) ||
				!PQconsumeInput(conn))
				return ANSWER_NONE;
		result = PQgetResult(conn);
		if (result == NULL)
			break;
		answer = PQresultStatus(result) == PGRES_TUPLES_OK ?
			ANSWER_WRITTEN : ANSWER_REFUSED;
		if (answer == ANSWER_WRITTEN)
			read_rows(result);
		PQclear(result);
	}
	if (PQstatus(conn) != CONNECTION_OK)
		return ANSWER_NONE;
	if (answer == ANSWER_REFUSED)
	{
		memset(flushed, 0, sizeof(flushed));
		memset(gone, 0, sizeof(gone));
	}
	return answer;
}

/* Each row: a key's place in the batch, and its counts, or NULLs. */
static void
read_rows(PGresult *result)
{
	for (int row = 0; row < PQntuples(result); row++)
	{
		int			i = (int) strtol(PQgetvalue(result, row, 0), NULL, 10) - 1;

		if (PQnfields(result) != 3 || i < 0 || i >= usage_outbox->count)
			continue;
		gone[i] = PQgetisnull(result, row, 1);
		flushed[i] = !gone[i];
		usage_outbox->copies[i].table_uses =
			strtoll(PQgetvalue(result, row, 1), NULL, 10);
		usage_outbox->copies[i].table_denials =
			strtoll(PQgetvalue(result, row, 2), NULL, 10);
	}
}

/* Append a copy to the arrays; what is text in it needs no more than quotes. */
static void
append_copy(StringInfo columns, const UsageCopy *copy)
{
	int64		counts[] = {
		copy->use_count, copy->denied_count, copy->known_uses, copy->known_denials
	};

	for (int c = 0; c < SEND_COLUMNS - 2; c++)
		appendStringInfoChar(&columns[c], columns[c].len == 0 ? '{' : ',');
	appendStringInfoString(&columns[0], copy->key_id);
	appendStringInfoString(&columns[1], copy->environment);
	if (copy->last_used_at == 0)
		appendStringInfoString(&columns[2], "NULL");
	else
		appendStringInfo(&columns[2], "\"%s\"", timestamptz_to_str(copy->last_used_at));
	if (copy->has_addr)
	{
		inet		addr;

		addr.inet_data = copy->addr;
		SET_INET_VARSIZE(&addr);
		appendStringInfo(&columns[3], "\"%s\"",
						 DatumGetCString(DirectFunctionCall1(inet_out, InetPGetDatum(&addr))));
	}
	else
		appendStringInfoString(&columns[3], "NULL");
	for (int c = 0; c < (int) lengthof(counts); c++)
		appendStringInfo(&columns[4 + c], INT64_FORMAT, counts[c]);
}

/* Tell the log, unless it has been told since use last reached the primary. */
static void
tell_failure(const char *reason)
{
	if (usage_set_failing(true))
		ereport(LOG,
				(errmsg("could not send the usage of API keys to the primary: %s",
						pchomp(reason)),
				 errhint("It stays in memory, and is sent when the primary takes it.")));
}
