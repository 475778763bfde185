/*
 * send.c
 *		Use that is sent to the server that writes it: from a standby to its
 *		primary, from a subscriber to its origin.
 *
 * A flush worker takes a batch from the entries into the outbox, numbers the
 * batch and sends it.  Counts that the primary has written are settled.  Counts
 * that the primary refused, or left out, are given back.  If the connection ends
 * before the answer arrives, the outcome is unknown.  The batch then stays in
 * the outbox, and workers send it again under its number until the primary says
 * that it is written.  The primary counts each number once (see receive.c).
 * After a promotion the batch is delivered to this server's own tables.  They
 * know the number if the primary wrote the batch and replication brought it.
 *
 * Two transactions carry a batch.  The first one writes it, and does not wait for
 * a synchronous standby of the primary, because it holds the lock of flushes.
 * The second one names the batch again, and its COMMIT waits.  So a batch counts
 * as written only if it survives a failover to such a standby.
 *
 * The outbox is lost with shared memory, and in a shutdown.  A batch without an
 * answer may then not be counted, but is never counted twice.
 *
 * Each worker opens a connection of its own.  While the primary is away, use
 * stays in the entries, whose number is fixed.
 *
 * Trust: the setting may lead to any server, and holds no password, because
 * PostgreSQL writes a changed setting to the log.  Neither the setting nor
 * libpq's message about its syntax is logged.  libpq's messages about a
 * connection name host and user.
 *
 * Interrupts: libpq is called where it does not block, except to look up a
 * host's name.  Between the calls the worker waits for its latch as well.  An
 * error ends the worker, and the connection with it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "lib/stringinfo.h"
#include "libpq-fe.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/inet.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "base/settings.h"
#include "base/stats.h"
#include "compat.h"
#include "usage/shared.h"

/*
 * Milliseconds that a worker stays, for the connection and all of its batches,
 * and after which it begins no other.  DROP DATABASE waits for five seconds.
 */
#define SEND_TIMEOUT_MS 4000
#define SEND_BUDGET_MS 1000

#define SEND_COLUMNS 12
#define SEND_COLUMNS_0_2 10		/* without ended and limit_ids */

/*
 * A batch's transactions begin so.  They force the settings that they depend on,
 * because the primary's database or role may have settings of its own.  SET
 * LOCAL, because a pooler may give the connection to another client afterwards.
 * The last one is not for a primary before 0.3.
 */
static const char *const before_batch[] = {
	"BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE",
	"SET LOCAL array_nulls = on",
	"SET LOCAL statement_timeout = 0",
	"SET LOCAL row_security = on",
	"SET LOCAL synchronous_commit = local"
};
static const char *const before_confirmation[] = {
	"BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE",
	"SET LOCAL statement_timeout = 0",
	"SET LOCAL row_security = on"
};

#define SEND_QUERY_0_2 \
	"SELECT * FROM rk_apikeys.receive_usage($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
#define SEND_QUERY \
	"SELECT * FROM rk_apikeys.receive_usage($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
#define CONFIRM_QUERY \
	"SELECT * FROM rk_apikeys.receive_usage($1, $2, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')"
#define CONFIRM_COLUMNS 2
#define AFTER_BATCH "COMMIT"

/* The outcome of a batch. */
typedef enum Answer
{
	ANSWER_WRITTEN,
	ANSWER_REFUSED,				/* nothing was written */
	ANSWER_NONE					/* it may have been written */
} Answer;

/* The outcome of the outbox's copies, as usage_flush() sets it. */
static bool flushed[USAGE_BATCH];
static bool gone[USAGE_BATCH];

/* The primary's words of refusal; NULL: none. */
static char *refusal = NULL;

/* The primary's SQL is of a release before 0.3. */
static bool is_old = false;

static PGconn *connect_to_primary(TimestampTz deadline);
static PGconn *start_connection(const char *database);
static bool wait_for(PGconn *conn, int events, TimestampTz deadline);
static void fill_outbox(const UsageCopy *copies, int count);
static bool send_outbox(PGconn *conn, TimestampTz deadline);
static void empty_outbox(void);
static bool send_command(PGconn *conn, const char *command);
static Answer ask(PGconn *conn, TimestampTz deadline, bool again);
static Answer read_answer(PGconn *conn, TimestampTz deadline);
static void read_rows(PGresult *result);
static int64 count_of(PGresult *result, int row, int column);
static void append_quota(StringInfo columns, const UsageCopy *copy);
static void append_copy(StringInfo columns, const UsageCopy *copy);
static void log_failure(const char *reason);
static bool set_failing(bool failing);

/*
 * Send the counts of copies to the primary, batch by batch, after a batch of
 * this database that is already in the outbox.
 */
UsageEnd
usage_send(const UsageCopy *copies, int count)
{
	TimestampTz start = GetCurrentTimestamp();
	TimestampTz deadline = TimestampTzPlusMilliseconds(start, SEND_TIMEOUT_MS);
	PGconn	   *conn;
	UsageEnd	end = USAGE_DONE;

	/* Another database's batch goes first, by a worker of that database. */
	if (OidIsValid(usage_outbox_database()) &&
		usage_outbox_database() != MyDatabaseId)
		return USAGE_UNSENT;
	conn = connect_to_primary(deadline);
	if (conn == NULL)
		return USAGE_UNSENT;
	if (usage_outbox_count() > 0 && !send_outbox(conn, deadline))
		end = USAGE_UNSENT;
	for (int i = 0; i < count && end == USAGE_DONE; i += USAGE_BATCH)
	{
		if (TimestampDifferenceExceeds(start, GetCurrentTimestamp(),
									   SEND_BUDGET_MS))
			end = USAGE_LEFT;
		else
		{
			fill_outbox(copies + i, Min(count - i, USAGE_BATCH));
			if (usage_outbox_count() > 0 && !send_outbox(conn, deadline))
				end = USAGE_UNSENT;
		}
	}
	PQfinish(conn);
	ReleaseExternalFD();
	return end;
}

/*
 * Write the batch in the outbox into this server's own tables, in the caller's
 * transaction.  The server sent the batch while it was a standby, and got no
 * answer.  After the commit the caller calls usage_delivered().  If the worker
 * ends before that call, the next worker delivers the batch again, and the
 * tables know its number.
 */
int
usage_deliver(const UsageCopy *copies, int count)
{
	usage_receive(usage_outbox_sender(), usage_outbox_batch(),
				  usage_outbox_copies(), count, flushed, gone);
	return count;
}

/* Settle the batch that usage_deliver() wrote. */
void
usage_delivered(void)
{
	empty_outbox();
}

/*
 * Connect to the primary, to the database of this name unless the setting names
 * one.  Return NULL if there is no connection by the deadline.
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
		log_failure("too many files are open");
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
		PQsetnonblocking(conn, 1) == 0 && PQenterPipelineMode(conn) == 1)
		return conn;
	if (conn != NULL)
		log_failure(PQstatus(conn) == CONNECTION_BAD ? PQerrorMessage(conn) :
					 "it did not answer in time");
	PQfinish(conn);
	ReleaseExternalFD();
	return NULL;
}

/*
 * Begin to connect.  If the setting cannot be used, log that and return NULL.
 * As always, libpq takes parameters that the setting lacks from the environment
 * and from files.
 */
static PGconn *
start_connection(const char *database)
{
	const char *keywords[] = {"dbname", "fallback_application_name", "dbname", NULL};
	const char *values[] = {settings_primary_conninfo, "rk_apikeys", database, NULL};
	PQconninfoOption *options = PQconninfoParse(settings_primary_conninfo, NULL);
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
		/* Of several dbname, libpq uses the last. */
		if (strcmp(option->keyword, "dbname") == 0)
			keywords[2] = NULL;
	}
	if (options == NULL)
		log_failure("rk_apikeys.primary_conninfo is not a connection string");
	else if (secret)
		log_failure("rk_apikeys.primary_conninfo holds a password: put it into a file, and name that with passfile");
	else if ((conn = PQconnectStartParams(keywords, values, 1)) == NULL)
		log_failure("out of memory");
	PQconninfoFree(options);
	return conn;
}

/* Wait for the socket.  Return false when the deadline has passed. */
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

/* Take the counts of the next copies into the outbox; there may be none. */
static void
fill_outbox(const UsageCopy *copies, int count)
{
	usage_outbox_begin(MyDatabaseId);
	for (int i = 0; i < count; i++)
	{
		UsageCopy	copy = copies[i];

		if (usage_take(MyDatabaseId, &copy))
			usage_outbox_add(&copy);
	}
}

/*
 * Send the batch in the outbox.  Return whether the primary wrote it; then the
 * outbox is empty.  A refusal empties the outbox too, except when the batch had
 * been sent before: the primary may still be working on the earlier copy.
 */
static bool
send_outbox(PGconn *conn, TimestampTz deadline)
{
	bool		was_in_doubt = usage_outbox_is_in_doubt();
	bool		was_old = is_old;
	Answer		answer;

	usage_outbox_set_in_doubt();
	answer = ask(conn, deadline, false);
	if (answer == ANSWER_REFUSED && is_old && !was_old)
		answer = ask(conn, deadline, true);
	if (answer != ANSWER_WRITTEN)
		log_failure(refusal != NULL ? refusal :
					 PQerrorMessage(conn)[0] != '\0' ? PQerrorMessage(conn) :
					 "it did not answer in time");
	else if (set_failing(false))
		ereport(LOG,
				(errmsg("the usage of API keys reaches the primary again")));
	if (answer == ANSWER_WRITTEN || (answer == ANSWER_REFUSED && !was_in_doubt))
		empty_outbox();
	return answer == ANSWER_WRITTEN;
}

/* Settle the copies that were written, and give the others back. */
static void
empty_outbox(void)
{
	int			written = 0;
	Oid			database = usage_outbox_database();
	UsageCopy  *copy;

	/* Each is removed first, so that a process that ends here does none twice. */
	while ((copy = usage_outbox_remove_last()) != NULL)
	{
		int			i = usage_outbox_count();

		if (flushed[i])
			usage_settle(database, copy);
		else if (gone[i])
			usage_forget_gone(database, copy);
		else
			usage_give_back(database, copy);
		written += flushed[i];
	}
	stats_count(STATS_FLUSHES);
	stats_count_many(STATS_FLUSHED_KEYS, written);
}

static bool
send_command(PGconn *conn, const char *command)
{
	return PQsendQueryParams(conn, command, 0, NULL, NULL, NULL, NULL, 0) == 1;
}

/*
 * Send the batch in the outbox, and wait for the answer.  again: after a refusal
 * on this connection.
 */
static Answer
ask(PGconn *conn, TimestampTz deadline, bool again)
{
	StringInfoData columns[SEND_COLUMNS];
	const char *values[SEND_COLUMNS];
	bool		sent = !again || send_command(conn, "ROLLBACK");

	refusal = NULL;
	memset(flushed, 0, sizeof(flushed));
	memset(gone, 0, sizeof(gone));
	for (int c = 0; c < SEND_COLUMNS; c++)
		initStringInfo(&columns[c]);
	for (int i = 0; i < USAGE_SENDER_LEN; i++)
		appendStringInfo(&columns[0], "%02x", usage_outbox_sender()[i]);
	appendStringInfo(&columns[1], INT64_FORMAT, usage_outbox_batch());
	for (int i = 0; i < usage_outbox_count(); i++)
		append_copy(columns + 2, &usage_outbox_copies()[i]);
	for (int c = 2; c < SEND_COLUMNS; c++)
		appendStringInfoChar(&columns[c], '}');
	for (int c = 0; c < SEND_COLUMNS; c++)
		values[c] = columns[c].data;

	/* A library before 0.3 writes nothing at the confirmation, so COMMIT must wait. */
	for (int i = 0; i < (int) lengthof(before_batch) - (is_old ? 1 : 0); i++)
		sent = sent && send_command(conn, before_batch[i]);
	sent = sent &&
		PQsendQueryParams(conn, is_old ? SEND_QUERY_0_2 : SEND_QUERY,
						  is_old ? SEND_COLUMNS_0_2 : SEND_COLUMNS, NULL, values,
						  NULL, NULL, 0) == 1 &&
		send_command(conn, AFTER_BATCH);
	for (int i = 0; i < (int) lengthof(before_confirmation); i++)
		sent = sent && send_command(conn, before_confirmation[i]);
	sent = sent &&
		PQsendQueryParams(conn, CONFIRM_QUERY, CONFIRM_COLUMNS, NULL, values,
						  NULL, NULL, 0) == 1 &&
		send_command(conn, AFTER_BATCH) && PQpipelineSync(conn) == 1;
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
 * Read the primary's answer, up to the end of the pipeline.  COMMIT's own answer
 * means committed.  The rows alone do not.  The end of the pipeline without any
 * means rolled back, at the latest when the connection closes.  After the first
 * COMMIT alone, a failover may still undo the batch.
 */
static Answer
read_answer(PGconn *conn, TimestampTz deadline)
{
	int			commits = 0;
	ExecStatusType status = PGRES_COMMAND_OK;

	while (status != PGRES_PIPELINE_SYNC)
	{
		PGresult   *result;

		while (PQisBusy(conn))
			if (!wait_for(conn, WL_SOCKET_READABLE, deadline) ||
				!PQconsumeInput(conn))
				return ANSWER_NONE;
		result = PQgetResult(conn);
		if (PQstatus(conn) != CONNECTION_OK)
		{
			PQclear(result);
			return ANSWER_NONE;
		}
		if (result == NULL)
			continue;			/* the end of a command */
		status = PQresultStatus(result);
		if (status == PGRES_TUPLES_OK)
			read_rows(result);
		else if (status == PGRES_COMMAND_OK &&
				 strcmp(PQcmdStatus(result), AFTER_BATCH) == 0)
			commits++;
		else if (status == PGRES_FATAL_ERROR)
		{
			const char *state = PQresultErrorField(result, PG_DIAG_SQLSTATE);

			refusal = pstrdup(PQresultErrorMessage(result));
			if (state != NULL && strcmp(state, "42883") == 0)
				is_old = true;
		}
		PQclear(result);
	}
	if (commits == 2)
		return ANSWER_WRITTEN;
	memset(flushed, 0, sizeof(flushed));
	memset(gone, 0, sizeof(gone));
	return commits == 0 ? ANSWER_REFUSED : ANSWER_NONE;
}

/* Each row has a key's number in the batch and its counts, or NULLs. */
static void
read_rows(PGresult *result)
{
	for (int row = 0; row < PQntuples(result); row++)
	{
		int			i = (int) strtol(PQgetvalue(result, row, 0), NULL, 10) - 1;

		if (PQnfields(result) != 3 || i < 0 || i >= usage_outbox_count())
			continue;
		gone[i] = PQgetisnull(result, row, 1);
		flushed[i] = !gone[i];
		usage_outbox_copies()[i].table_uses = count_of(result, row, 1);
		usage_outbox_copies()[i].table_denials = count_of(result, row, 2);
	}
}

/* Return a count of the answer, from 0 to USAGE_COUNT_MAX. */
static int64
count_of(PGresult *result, int row, int column)
{
	int64		count = strtoll(PQgetvalue(result, row, column), NULL, 10);

	return Min(Max(count, 0), USAGE_COUNT_MAX);
}

/*
 * Append a copy of a quota, where receive_usage() expects each part.  A server
 * before 0.3 gets a key id that no key has.
 */
static void
append_quota(StringInfo columns, const UsageCopy *copy)
{
	appendStringInfo(&columns[0], "\"%s\"", is_old ? "000000000000" : copy->family);
	appendStringInfoString(&columns[1], "none");
	appendStringInfo(&columns[2], "\"%s\"", copy->since == DT_NOBEGIN ? "-infinity" :
					 timestamptz_to_str(copy->since));
	appendStringInfoString(&columns[3], "NULL");
	appendStringInfo(&columns[4], INT64_FORMAT, copy->use_count);
	appendStringInfoString(&columns[5], "0");
	appendStringInfo(&columns[6], INT64_FORMAT, copy->known_uses);
	appendStringInfoString(&columns[7], "0");
	appendStringInfoString(&columns[8], "NULL");
	appendStringInfoString(&columns[9],
						   DatumGetCString(DirectFunctionCall1(uuid_out,
															   UUIDPGetDatum((const pg_uuid_t *) copy->limit_id))));
}

/* Append a copy to the arrays; its texts need no escapes, only quotes. */
static void
append_copy(StringInfo columns, const UsageCopy *copy)
{
	int64		counts[] = {
		copy->use_count, copy->denied_count, copy->known_uses, copy->known_denials
	};

	for (int c = 0; c < SEND_COLUMNS - 2; c++)
		appendStringInfoChar(&columns[c], columns[c].len == 0 ? '{' : ',');
	if (copy->is_quota)
	{
		append_quota(columns, copy);
		return;
	}
	appendStringInfoString(&columns[0], copy->key_id);
	appendStringInfoString(&columns[1], copy->environment);
	appendStringInfoString(&columns[9], "NULL");
	if (copy->last_used_at == 0)
		appendStringInfoString(&columns[2], "NULL");
	else
		appendStringInfo(&columns[2], "\"%s\"", timestamptz_to_str(copy->last_used_at));
	if (copy->has_addr)
	{
		inet		addr = {.inet_data = copy->addr};

		SET_INET_VARSIZE(&addr);
		appendStringInfo(&columns[3], "\"%s\"",
						 DatumGetCString(DirectFunctionCall1(inet_out, InetPGetDatum(&addr))));
	}
	else
		appendStringInfoString(&columns[3], "NULL");
	for (int c = 0; c < (int) lengthof(counts); c++)
		appendStringInfo(&columns[4 + c], INT64_FORMAT, counts[c]);
	if (copy->ended_day == 0)
		appendStringInfoString(&columns[8], "NULL");
	else
	{
		char		day[MAXDATELEN + 1];
		struct pg_tm tm;

		j2date(copy->ended_day - 1 + POSTGRES_EPOCH_JDATE, &tm.tm_year, &tm.tm_mon,
			   &tm.tm_mday);
		EncodeDateOnly(&tm, USE_ISO_DATES, day);
		appendStringInfoString(&columns[8], day);
	}
}

/* Log a failure, unless one was logged since use last reached the primary. */
static void
log_failure(const char *reason)
{
	if (set_failing(true))
		ereport(LOG,
				(errmsg("could not send the usage of API keys to the primary: %s",
						pchomp(reason)),
				 errhint("The usage stays in memory until the primary accepts it.")));
}

/*
 * Note whether use reaches the primary.  Return whether that has changed, so
 * that each change is logged once.
 */
static bool
set_failing(bool failing)
{
	return pg_atomic_exchange_u32(&usage_shared->failing, failing) != (uint32) failing;
}
