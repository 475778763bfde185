/*
 * toggle.c
 *		Toggle a key many times while other sessions verify it, and count the
 *		answers that are stale.
 *
 * toggle MANAGER BACKEND KEY_ID TOKEN TOGGLES SESSIONS
 *
 * MANAGER and BACKEND are connection strings.  Prints one line of counts; ends
 * with 1 if anything failed.
 *
 * Each toggle is followed by a verify in another session: its answer must be
 * the new state.  Meanwhile SESSIONS threads verify all the time, in turn
 * without a transaction and in one of each isolation level.  Such an answer is
 * judged if no toggle was on its way from before the verify was sent until
 * after its answer had come.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libpq-fe.h>
#include <pthread.h>

/* Sessions that check after each toggle, in turn. */
#define CHECKERS 4
/* Verifies in one transaction: a long one would keep every version of the row. */
#define PER_TRANSACTION 200
/*
 * Microseconds between two verifies of a session, so that the toggles get a
 * share of the processors.
 */
#define PAUSE 300

static const char *const begin[] = {
	NULL, "BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ",
	"BEGIN ISOLATION LEVEL SERIALIZABLE"
};

static const char *backend;
static const char *token;

/* Toggles sent and toggles committed; the key is enabled after an even one. */
static atomic_long started;
static atomic_long committed;
static atomic_long judged;
static atomic_long stale;
static atomic_bool done;

static PGconn *
open_session(const char *conninfo)
{
	PGconn	   *conn = PQconnectdb(conninfo);

	if (PQstatus(conn) != CONNECTION_OK)
	{
		fprintf(stderr, "%s", PQerrorMessage(conn));
		exit(1);
	}
	return conn;
}

/* Run a statement that may not fail. */
static void
run(PGconn *conn, const char *sql)
{
	PGresult   *result = PQexec(conn, sql);

	if (PQresultStatus(result) != PGRES_COMMAND_OK &&
		PQresultStatus(result) != PGRES_TUPLES_OK)
	{
		fprintf(stderr, "%s: %s", sql, PQerrorMessage(conn));
		exit(1);
	}
	PQclear(result);
}

static PGconn *
open_verifier(void)
{
	PGconn	   *conn = open_session(backend);

	PQclear(PQprepare(conn, "v", "SELECT rk_apikeys.verify($1)", 1, NULL));
	return conn;
}

static bool
verify(PGconn *conn)
{
	PGresult   *result = PQexecPrepared(conn, "v", 1, &token, NULL, NULL, 0);
	bool		valid;

	if (PQresultStatus(result) != PGRES_TUPLES_OK)
	{
		fprintf(stderr, "verify: %s", PQerrorMessage(conn));
		exit(1);
	}
	valid = PQgetvalue(result, 0, 0)[0] == 't';
	PQclear(result);
	return valid;
}

static void *
keep_verifying(void *arg)
{
	const char *transaction = begin[*(int *) arg % 4];
	PGconn	   *conn = open_verifier();

	for (long i = 0; !done; i++)
	{
		long		before;
		bool		valid;

		if (transaction != NULL && i % PER_TRANSACTION == 0)
		{
			if (i > 0)
				run(conn, "COMMIT");
			run(conn, transaction);
		}
		usleep(PAUSE);
		before = committed;
		valid = verify(conn);
		if (before != started)
			continue;
		judged++;
		if (valid != (before % 2 == 0))
			stale++;
	}
	PQfinish(conn);
	return NULL;
}

int
main(int argc, char **argv)
{
	PGconn	   *manager;
	PGconn	   *checkers[CHECKERS];
	pthread_t  *threads;
	int		   *numbers;
	long		toggles;
	int			sessions;
	long		checked = 0;
	char		sql[2][200];

	if (argc != 7)
		return 1;
	manager = open_session(argv[1]);
	backend = argv[2];
	token = argv[4];
	toggles = atol(argv[5]);
	sessions = atoi(argv[6]);
	for (int i = 0; i < 2; i++)
		snprintf(sql[i], sizeof(sql[i]),
				 "UPDATE rk_apikeys.keys SET enabled = %s WHERE key_id = '%s'",
				 i == 0 ? "true" : "false", argv[3]);
	for (int i = 0; i < CHECKERS; i++)
		checkers[i] = open_verifier();
	threads = calloc(sessions, sizeof(pthread_t));
	numbers = calloc(sessions, sizeof(int));
	for (int i = 0; i < sessions; i++)
	{
		numbers[i] = i;
		if (pthread_create(&threads[i], NULL, keep_verifying, &numbers[i]) != 0)
			return 1;
	}

	for (long n = 1; n <= toggles; n++)
	{
		started = n;
		run(manager, sql[n % 2]);
		committed = n;
		checked++;
		if (verify(checkers[n % CHECKERS]) != (n % 2 == 0))
			stale++;
	}
	done = true;
	for (int i = 0; i < sessions; i++)
		pthread_join(threads[i], NULL);
	printf("toggles %ld checked %ld judged %ld stale %ld\n", toggles, checked,
		   (long) judged, (long) stale);
	return 0;
}
