/*
 * keep_verifying.c
 *		Verify tokens in some sessions for as long as a file exists.
 *
 * keep_verifying BACKEND FILE SESSIONS TOKEN...
 *
 * BACKEND is a connection string.  Prints how many answers there were, how
 * many of them said that the token is valid, and how many errors there were for
 * a missing function, schema or table.  Every other error is told, and ends it
 * with 1.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libpq-fe.h>
#include <pthread.h>

/* Microseconds between two verifies of a session. */
#define PAUSE 300

/* What a session may be told where the extension is gone. */
static const char *const missing[] = {"42883", "3F000", "42P01", "42704"};

static const char *backend;
static const char *file;
static char **tokens;
static int	tokens_count;

static atomic_long answers;
static atomic_long valid;
static atomic_long errors;
static atomic_long others;

static void
judge(PGconn *conn, PGresult *result)
{
	const char *state = PQresultErrorField(result, PG_DIAG_SQLSTATE);

	if (PQresultStatus(result) == PGRES_TUPLES_OK)
	{
		answers++;
		valid += PQgetvalue(result, 0, 0)[0] == 't';
		return;
	}
	for (size_t i = 0; state != NULL && i < sizeof(missing) / sizeof(missing[0]); i++)
		if (strcmp(state, missing[i]) == 0)
		{
			errors++;
			return;
		}
	/* PostgreSQL looks a function up without a lock on it. */
	if (strstr(PQerrorMessage(conn), "cache lookup failed for function") != NULL)
	{
		errors++;
		return;
	}
	others++;
	fprintf(stderr, "%s %s", state ? state : "", PQerrorMessage(conn));
}

static void *
keep_verifying(void *arg)
{
	PGconn	   *conn = PQconnectdb(backend);
	long		n = *(int *) arg;

	if (PQstatus(conn) != CONNECTION_OK)
	{
		fprintf(stderr, "%s", PQerrorMessage(conn));
		others++;
		return NULL;
	}
	PQclear(PQprepare(conn, "v", "SELECT rk_apikeys.verify($1)", 1, NULL));
	while (access(file, F_OK) == 0 && PQstatus(conn) == CONNECTION_OK)
	{
		const char *token = tokens[n++ % tokens_count];
		PGresult   *result = PQexecPrepared(conn, "v", 1, &token, NULL, NULL, 0);

		judge(conn, result);
		PQclear(result);
		usleep(PAUSE);
	}
	PQfinish(conn);
	return NULL;
}

int
main(int argc, char **argv)
{
	pthread_t	threads[64];
	int			numbers[64];
	int			sessions;

	if (argc < 5)
		return 1;
	backend = argv[1];
	file = argv[2];
	sessions = atoi(argv[3]);
	tokens = argv + 4;
	tokens_count = argc - 4;
	if (sessions < 1 || sessions > 64)
		return 1;
	for (int i = 0; i < sessions; i++)
	{
		numbers[i] = i;
		if (pthread_create(&threads[i], NULL, keep_verifying, &numbers[i]) != 0)
			return 1;
	}
	for (int i = 0; i < sessions; i++)
		pthread_join(threads[i], NULL);
	printf("answers %ld valid %ld errors %ld\n", (long) answers, (long) valid,
		   (long) errors);
	return others == 0 ? 0 : 1;
}
