/*
 * charge.c
 *		Charge at COMMIT in some sessions, with random ends, for as long as a
 *		file exists.
 *
 * charge CONNINFO FILE SESSIONS SEED TOKEN...
 *
 * A transaction takes units by the function charge(token, cost, key), which
 * inserts a row into the table work for what it was given.  test/t/Charges.pm
 * makes these.  The sessions reconnect when the server was killed.  Prints how
 * often each end came, then the answers.  An error that no end explains is
 * written to stderr, and the program ends with 1.
 */
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <libpq-fe.h>
#include <pthread.h>

/* Savepoints that are open at once. */
#define MAX_DEPTH 5

/* The longest wait before a cancel, in microseconds. */
#define MAX_DELAY 3000

enum End
{
	END_COMMIT,
	END_ROLLBACK,
	END_PREPARED_COMMIT,
	END_PREPARED_ROLLBACK,
	END_CANCEL,
	END_TERMINATE,
	END_CLOSE,
	END_CLOSE_BUSY,
	END_CLOSE_IN_COMMIT,
	END_DEFERRED_ERROR,
	END_FAILED_PREPARE,
	END_AUTOCOMMIT,
	END_PROCEDURE,
	ENDS
};

static const struct
{
	const char *name;
	int			weight;
} ends[ENDS] = {
	{"commit", 30}, {"rollback", 12}, {"commit_prepared", 6},
	{"rollback_prepared", 5}, {"cancel", 8}, {"terminate", 4}, {"close", 4},
	{"close_busy", 3}, {"close_in_commit", 3}, {"deferred_error", 4},
	{"failed_prepare", 3}, {"autocommit", 12}, {"procedure", 6}
};

/* Errors that an end or a killed server explains. */
static const char *const expected[] = {
	"22012",					/* a statement divides by zero */
	"23505",					/* a deferred constraint fails */
	"25P02",					/* the transaction has failed */
	"0A000",					/* PREPARE after a use of a temporary table */
	"57014", "57P01", "57P02", "57P03", "08006", "08001"
};

typedef struct Session
{
	int			number;
	unsigned	seed;
	PGconn	   *conn;
	int			key;			/* index into tokens */
	int			depth;			/* open savepoints */
	int			saved[MAX_DEPTH];	/* units at each */
	int			units;			/* what a COMMIT now would settle */
	bool		failed;			/* the transaction has failed */
} Session;

static const char *conninfo;
static const char *file;
static char **tokens;
static int	tokens_count;

static atomic_long ended[ENDS];
static atomic_long given;
static atomic_long refused;
static atomic_long reconnects;
static atomic_long prepared_names;
static atomic_int unexpected;

static int
any(Session *s, int n)
{
	return rand_r(&s->seed) % n;
}

static bool
connected(Session *s)
{
	return s->conn != NULL && PQstatus(s->conn) == CONNECTION_OK;
}

static bool
running(void)
{
	return access(file, F_OK) == 0;
}

/* What an ended session was told. */
static void
ignore(void *arg, const char *message)
{
	(void) arg;
	(void) message;
}

/* Connects, for as long as the file exists. */
static bool
reconnect(Session *s)
{
	while (running())
	{
		if (s->conn != NULL)
			PQfinish(s->conn);
		s->conn = PQconnectdb(conninfo);
		if (connected(s))
		{
			PQsetNoticeProcessor(s->conn, ignore, NULL);
			return true;
		}
		usleep(100000);
	}
	return false;
}

/* Judges a result; true if it is a success. */
static bool
judge(Session *s, PGresult *result, const char *sql)
{
	ExecStatusType status = PQresultStatus(result);
	const char *state = PQresultErrorField(result, PG_DIAG_SQLSTATE);

	if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK)
		return true;
	s->failed = true;
	if (!connected(s) || state == NULL)
		return false;
	for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++)
		if (strcmp(state, expected[i]) == 0)
			return false;
	fprintf(stderr, "%.60s: %s %s", sql, state, PQerrorMessage(s->conn));
	unexpected = 1;
	return false;
}

/* Runs a statement; true if it succeeded.  *answer is its first value, or '\0'. */
static bool
ask(Session *s, char *answer, const char *format,...)
{
	char		sql[512];
	va_list		args;
	PGresult   *result;
	bool		success;

	va_start(args, format);
	vsnprintf(sql, sizeof(sql), format, args);
	va_end(args);
	result = PQexec(s->conn, sql);
	success = judge(s, result, sql);
	if (answer != NULL)
		*answer = success && PQntuples(result) == 1 ? PQgetvalue(result, 0, 0)[0] : '\0';
	PQclear(result);
	return success;
}

static bool
run(Session *s, const char *sql)
{
	return ask(s, NULL, "%s", sql);
}

/* Takes units in the transaction, sometimes in a function that catches errors. */
static void
take(Session *s)
{
	int			cost = 1 + any(s, 3);
	int			how = any(s, 10);
	char		answer;

	if (how < 2)
		ask(s, &answer, "SELECT charge_caught('%s', %d, %d, %s)", tokens[s->key], cost, s->key, how ? "true" : "false");
	else
		ask(s, &answer, "SELECT charge('%s', %d, %d)", tokens[s->key], cost, s->key);
	if (answer == 't')
	{
		s->units += cost;
		given += cost;
	}
	else if (answer == 'f')
		refused++;
}

static void
savepoint(Session *s)
{
	if (s->depth < MAX_DEPTH && ask(s, NULL, "SAVEPOINT s%d", s->depth))
		s->saved[s->depth++] = s->units;
}

static void
release(Session *s)
{
	int			to = any(s, s->depth + 1);

	if (to < s->depth && ask(s, NULL, "RELEASE s%d", to))
		s->depth = to;
}

static void
roll_back_to(Session *s)
{
	int			to = any(s, s->depth + 1);

	if (to < s->depth && ask(s, NULL, "ROLLBACK TO s%d", to))
	{
		s->units = s->saved[to];
		s->depth = to + 1;
		s->failed = false;
	}
}

static void
cancel_soon(Session *s)
{
	char		error[256];
	PGcancel   *cancel = PQgetCancel(s->conn);

	usleep(any(s, MAX_DELAY));
	if (cancel != NULL)
		PQcancel(cancel, error, sizeof(error));
	PQfreeCancel(cancel);
}

/* Ends this session from another one. */
static void
terminate(Session *s)
{
	PGconn	   *other = PQconnectdb(conninfo);
	char		sql[64];

	snprintf(sql, sizeof(sql), "SELECT pg_terminate_backend(%d)", PQbackendPID(s->conn));
	PQclear(PQexec(other, sql));
	PQfinish(other);
}

/* Closes the socket without a word and leaves the server's process to notice. */
static void
close_socket(Session *s)
{
	shutdown(PQsocket(s->conn), SHUT_RDWR);
	PQfinish(s->conn);
	s->conn = NULL;
}

/*
 * Sends calls that take units and does not wait for the answer.  They take so
 * long that an end finds them before, between and after.
 */
static bool
send_call(Session *s)
{
	char		sql[256];

	snprintf(sql, sizeof(sql), "SELECT charge('%s', 1, %d), pg_sleep(0.002) FROM generate_series(0, %d)",
			 tokens[s->key], s->key, any(s, 6));
	return PQsendQuery(s->conn, sql);
}

static void
drain(Session *s)
{
	PGresult   *result;

	while ((result = PQgetResult(s->conn)) != NULL)
	{
		judge(s, result, "a call that was sent");
		PQclear(result);
	}
}

/*
 * PREPARE, then one of both ends.  What PREPARE has settled stays, so the units
 * of a transaction that is rolled back then get a row of their own in void
 * before.
 */
static void
prepare(Session *s, bool commit)
{
	char		name[64];

	snprintf(name, sizeof(name), "charge %d %d %ld %d", s->key, s->units, prepared_names++, getpid());
	if (!ask(s, NULL, "PREPARE TRANSACTION '%s'", name))
		return;
	/* PREPARE of a failed transaction succeeds as ROLLBACK. */
	if (s->failed)
		return;
	usleep(any(s, MAX_DELAY));
	if (commit)
		ask(s, NULL, "COMMIT PREPARED '%s'", name);
	else if (ask(s, NULL, "INSERT INTO void (gid, key, units) VALUES ('%s', %d, %d)", name, s->key, s->units))
		ask(s, NULL, "ROLLBACK PREPARED '%s'", name);
}

static enum End
choose(Session *s)
{
	int			sum = 0,
				n;

	for (int i = 0; i < ENDS; i++)
		sum += ends[i].weight;
	n = any(s, sum);
	for (int i = 0; i < ENDS; i++)
		if ((n -= ends[i].weight) < 0)
			return i;
	return END_COMMIT;
}

static void
transaction(Session *s, enum End end)
{
	s->key = any(s, tokens_count);
	s->depth = s->units = 0;
	s->failed = false;

	if (end == END_AUTOCOMMIT)
	{
		take(s);
		return;
	}
	if (end == END_PROCEDURE)
	{
		ask(s, NULL, "CALL charge_loop('%s', %d, %d)", tokens[s->key], 1 + any(s, 6), s->key);
		return;
	}

	run(s, any(s, 4) ? "BEGIN" : "BEGIN ISOLATION LEVEL REPEATABLE READ");
	for (int steps = 1 + any(s, 7); steps > 0 && connected(s); steps--)
	{
		switch (any(s, 12))
		{
			case 0:
			case 1:
			case 2:
				savepoint(s);
				break;
			case 3:
				release(s);
				break;
			case 4:
				roll_back_to(s);
				break;
			case 5:
				run(s, "SELECT 1 / 0");
				break;
			default:
				take(s);
		}
		if (s->failed)
			roll_back_to(s);
		if (s->failed && any(s, 4))
			break;
	}

	switch (end)
	{
		case END_COMMIT:
			run(s, "COMMIT");
			break;
		case END_ROLLBACK:
			run(s, "ROLLBACK");
			break;
		case END_PREPARED_COMMIT:
		case END_PREPARED_ROLLBACK:
			prepare(s, end == END_PREPARED_COMMIT);
			break;
		case END_CANCEL:
			if (send_call(s))
			{
				cancel_soon(s);
				drain(s);
			}
			if (any(s, 2))
				roll_back_to(s);
			run(s, "COMMIT");
			break;
		case END_TERMINATE:
			if (any(s, 2) && send_call(s))
			{
				terminate(s);
				drain(s);
			}
			else
				terminate(s);
			run(s, "COMMIT");
			break;
		case END_CLOSE:
			close_socket(s);
			break;
		case END_CLOSE_BUSY:
			if (send_call(s))
				close_socket(s);
			break;
		case END_CLOSE_IN_COMMIT:
			if (PQsendQuery(s->conn, "COMMIT"))
				close_socket(s);
			break;
		case END_DEFERRED_ERROR:
			run(s, "INSERT INTO once VALUES (1)");
			run(s, "COMMIT");
			break;
		case END_FAILED_PREPARE:
			run(s, "CREATE TEMP TABLE scratch (n int)");
			run(s, "PREPARE TRANSACTION 'never'");
			break;
		case END_AUTOCOMMIT:
		case END_PROCEDURE:
		case ENDS:
			break;
	}
	/* The transaction may go on where a COMMIT was cancelled before it was sent. */
	if (connected(s) && PQtransactionStatus(s->conn) != PQTRANS_IDLE)
		run(s, "ROLLBACK");
}

static void *
charge(void *arg)
{
	Session		s = {.number = *(int *) arg, .seed = *(int *) arg};

	while (running())
	{
		enum End	end = choose(&s);

		if (!connected(&s))
		{
			reconnects++;
			if (!reconnect(&s))
				break;
		}
		transaction(&s, end);
		ended[end]++;
	}
	if (s.conn != NULL)
		PQfinish(s.conn);
	return NULL;
}

int
main(int argc, char **argv)
{
	int			sessions = argc > 5 ? atoi(argv[3]) : 0;
	pthread_t  *threads = calloc(sessions + 1, sizeof(pthread_t));
	int		   *numbers = calloc(sessions + 1, sizeof(int));

	if (sessions < 1)
	{
		fprintf(stderr, "usage: charge CONNINFO FILE SESSIONS SEED TOKEN...\n");
		return 2;
	}
	conninfo = argv[1];
	file = argv[2];
	tokens = argv + 5;
	tokens_count = argc - 5;
	for (int i = 0; i < sessions; i++)
	{
		numbers[i] = atoi(argv[4]) + i;
		if (pthread_create(&threads[i], NULL, charge, &numbers[i]) != 0)
			return 2;
	}
	for (int i = 0; i < sessions; i++)
		pthread_join(threads[i], NULL);

	for (int i = 0; i < ENDS; i++)
		printf("%s %ld\n", ends[i].name, (long) ended[i]);
	printf("given %ld\nrefused %ld\nreconnects %ld\n", (long) given, (long) refused, (long) reconnects);
	return unexpected;
}
