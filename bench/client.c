/*
 * client.c
 *		Sends one request again and again over several connections, and prints
 *		how many and in what time.
 *
 *	client [-c CLIENTS] [-t SECONDS | -n REQUESTS] [-w REQUESTS]
 *		   [-p PARAMETERS [-h]] FILE
 *
 *	-c	connections, each in a thread of its own (1)
 *	-t	how long (1); -n instead: how many requests each connection makes
 *	-w	requests that each connection makes before the clock starts (0)
 *	-p	a file of parameters: their names, then lines of values, separated by
 *		tabs.  Each request takes a line at random; with -h always the first
 *
 * It prints requests, seconds, and requests per second.  The server is chosen
 * by libpq's environment variables.
 *
 * A request is the statements in FILE, each ended by a semicolon at the end of
 * a line.  They are prepared, then executed one after the other, each waiting
 * for its answer, as a program does.  Statements above a line that starts with
 * "-- request" are executed once per connection, before the clock starts.  A
 * :name outside quotes stands for a parameter, or for a column of the first row that an
 * earlier statement of the request returned, as after psql's \gset.
 *
 * It is here because pgbench cannot take a text at random from a long list,
 * nor compare a digest.  What is measured is the server: so an answer is also
 * checked, but cheaply.  No rows, none changed, a false boolean: the program
 * ends with an error.  A column key_hash must be the SHA-256 of the parameter
 * token, as a program compares it.
 */
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libpq-fe.h>
#include <openssl/sha.h>

#define MAX_STATEMENTS 16
#define MAX_NAMES 16
#define MAX_CLIENTS 1024
/* Of a value that a statement returns for a later one. */
#define MAX_VALUE 256
/* "\x" and two digits for each byte. */
#define DIGEST_TEXT_LEN (2 + 2 * SHA256_DIGEST_LENGTH)
#define BOOL_OID 16
#define FAR_AWAY 1e9

typedef struct Statement
{
	char	   *text;			/* with $n for the names */
	int			nparams;
	int			params[MAX_NAMES];	/* indexes into names[] */
	bool		before;			/* executed once, before the clock starts */
} Statement;

typedef struct Client
{
	pthread_t	thread;
	PGconn	   *conn;
	uint64_t	random;			/* state of the generator */
	long		requests;		/* made while the clock ran */
	const char *values[MAX_NAMES];
	char		returned[MAX_NAMES][MAX_VALUE];
} Client;

static Statement statements[MAX_STATEMENTS];
static int	nstatements = 0;

/* The parameters' names first, then those of the columns that are used. */
static char *names[MAX_NAMES];
static int	nnames = 0;
static int	nfields = 0;

/* The values: nlines times nfields pointers. */
static char **fields = NULL;
static long nlines = 0;

static bool hot = false;
static long warmup = 0;
static long limit = 0;			/* requests; 0: until the time is over */
static double seconds = 1;
static double end = FAR_AWAY;
static pthread_barrier_t ready,
			start;

static void fail(const char *format,...) __attribute__((noreturn, format(printf, 1, 2)));
static char *slurp(const char *path);
static void read_parameters(const char *path);
static void read_statements(const char *path);
static void add_statement(char *text, bool before);
static int	name_index(const char *name, size_t len, bool add);
static void *run(void *arg);
static void request(Client *client, bool before);
static void take_answer(Client *client, const Statement *statement,
						PGresult *answer);
static void check_digest(const char *token, const char *key_hash);
static double now(void);

int
main(int argc, char **argv)
{
	static Client clients[MAX_CLIENTS];
	const char *parameters = NULL;
	int			nclients = 1;
	int			option;
	long		requests = 0;
	double		began;
	double		took;

	while ((option = getopt(argc, argv, "c:t:n:w:p:h")) != -1)
	{
		switch (option)
		{
			case 'c':
				nclients = atoi(optarg);
				break;
			case 't':
				seconds = atof(optarg);
				break;
			case 'n':
				limit = atol(optarg);
				break;
			case 'w':
				warmup = atol(optarg);
				break;
			case 'p':
				parameters = optarg;
				break;
			case 'h':
				hot = true;
				break;
			default:
				exit(2);
		}
	}
	if (optind != argc - 1)
		fail("give one file of statements");
	if (nclients < 1 || nclients > MAX_CLIENTS)
		fail("from 1 to %d clients", MAX_CLIENTS);
	if (parameters != NULL)
		read_parameters(parameters);
	read_statements(argv[optind]);

	pthread_barrier_init(&ready, NULL, nclients + 1);
	pthread_barrier_init(&start, NULL, nclients + 1);
	for (int i = 0; i < nclients; i++)
	{
		clients[i].random = 0x9e3779b97f4a7c15ULL * (uint64_t) (i + 1) ^ (uint64_t) time(NULL);
		errno = pthread_create(&clients[i].thread, NULL, run, &clients[i]);
		if (errno != 0)
			fail("could not start a thread: %s", strerror(errno));
	}
	pthread_barrier_wait(&ready);
	began = now();
	if (limit == 0)
		end = began + seconds;
	pthread_barrier_wait(&start);
	for (int i = 0; i < nclients; i++)
	{
		pthread_join(clients[i].thread, NULL);
		requests += clients[i].requests;
	}
	took = now() - began;
	printf("%ld %.6f %.3f\n", requests, took, requests / took);
	return 0;
}

static void
fail(const char *format,...)
{
	va_list		args;

	fputs("client: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

/* The contents of a file, malloc'd. */
static char *
slurp(const char *path)
{
	FILE	   *file = fopen(path, "r");
	char	   *text;
	long		len;

	if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (len = ftell(file)) < 0)
		fail("could not read %s: %s", path, strerror(errno));
	rewind(file);
	text = malloc(len + 1);
	if (text == NULL || fread(text, 1, len, file) != (size_t) len)
		fail("could not read %s", path);
	text[len] = '\0';
	fclose(file);
	return text;
}

static void
read_parameters(const char *path)
{
	char	   *text = slurp(path);
	char	   *header = strsep(&text, "\n");
	char	   *line;
	char	   *field;
	long		room = 0;

	while ((field = strsep(&header, "\t")) != NULL)
		name_index(field, strlen(field), true);
	nfields = nnames;
	while (text != NULL && *text != '\0')
	{
		if (nlines == room)
		{
			room = room == 0 ? 1024 : room * 2;
			fields = realloc(fields, room * nfields * sizeof(char *));
			if (fields == NULL)
				fail("out of memory");
		}
		line = strsep(&text, "\n");
		for (int i = 0; i < nfields; i++)
			if ((fields[nlines * nfields + i] = strsep(&line, "\t")) == NULL)
				fail("%s: line %ld is too short", path, nlines + 2);
		nlines++;
	}
	if (nlines == 0)
		fail("%s holds no values", path);
}

static void
read_statements(const char *path)
{
	char	   *text = slurp(path);
	char	   *statement = NULL;
	bool		before = strstr(text, "\n-- request") != NULL;
	char	   *line;

	while ((line = strsep(&text, "\n")) != NULL)
	{
		size_t		len = strlen(line);
		char	   *longer;

		if (strncmp(line, "-- request", 10) == 0)
			before = false;
		if (len == 0 || strncmp(line, "--", 2) == 0)
			continue;
		if (asprintf(&longer, "%s%s\n", statement ? statement : "", line) < 0)
			fail("out of memory");
		free(statement);
		statement = longer;
		if (line[len - 1] == ';')
		{
			add_statement(statement, before);
			statement = NULL;
		}
	}
	if (statement != NULL)
		fail("%s does not end with a semicolon", path);
}

/* Take a statement, which is overwritten, with $n put for each :name. */
static void
add_statement(char *text, bool before)
{
	Statement  *statement = &statements[nstatements];
	char	   *out = calloc(1, 2 * strlen(text) + 1);
	char	   *to = out;
	bool		quoted = false;

	if (out == NULL || nstatements++ == MAX_STATEMENTS)
		fail("too many statements");
	statement->before = before;
	while (*text != '\0')
	{
		size_t		len = 0;
		int			name;
		int			param = 0;

		if (text[0] == '\'')
			quoted = !quoted;
		if (text[0] == ':' && text[1] == ':')
			*to++ = *text++;
		else if (text[0] == ':' && !quoted)
			len = strspn(text + 1, "abcdefghijklmnopqrstuvwxyz_");
		if (len == 0)
		{
			*to++ = *text++;
			continue;
		}
		name = name_index(text + 1, len, true);
		while (param < statement->nparams && statement->params[param] != name)
			param++;
		if (param == statement->nparams)
			statement->params[statement->nparams++] = name;
		to += sprintf(to, "$%d", param + 1);
		text += 1 + len;
	}
	statement->text = out;
}

/* The place of a name in names[], or -1. */
static int
name_index(const char *name, size_t len, bool add)
{
	for (int i = 0; i < nnames; i++)
		if (strlen(names[i]) == len && strncmp(names[i], name, len) == 0)
			return i;
	if (!add)
		return -1;
	if (nnames == MAX_NAMES)
		fail("too many names");
	names[nnames] = strndup(name, len);
	return nnames++;
}

/* A connection's thread. */
static void *
run(void *arg)
{
	Client	   *client = arg;
	PGresult   *answer;
	char		name[16];

	client->conn = PQconnectdb("");
	if (PQstatus(client->conn) != CONNECTION_OK)
		fail("%s", PQerrorMessage(client->conn));
	for (int i = 0; i < nstatements; i++)
	{
		/* What is executed once may be what the others need to be prepared. */
		if (!statements[i].before && i > 0 && statements[i - 1].before)
			request(client, true);
		snprintf(name, sizeof(name), "s%d", i);
		answer = PQprepare(client->conn, name, statements[i].text, 0, NULL);
		if (PQresultStatus(answer) != PGRES_COMMAND_OK)
			fail("%s", PQerrorMessage(client->conn));
		PQclear(answer);
	}
	for (long i = 0; i < warmup; i++)
		request(client, false);

	pthread_barrier_wait(&ready);
	pthread_barrier_wait(&start);
	do
	{
		request(client, false);
		client->requests++;
	} while (limit > 0 ? client->requests < limit : now() < end);
	PQfinish(client->conn);
	return NULL;
}

/* Make one request; or what comes before the first. */
static void
request(Client *client, bool before)
{
	const char *values[MAX_NAMES];
	char		name[16];

	if (nlines > 0)
	{
		uint64_t	line = 0;

		if (!hot)
		{
			client->random ^= client->random << 13;
			client->random ^= client->random >> 7;
			client->random ^= client->random << 17;
			line = client->random % (uint64_t) nlines;
		}
		memcpy(client->values, &fields[line * nfields], nfields * sizeof(char *));
	}
	for (int i = 0; i < nstatements; i++)
	{
		const Statement *statement = &statements[i];
		PGresult   *answer;

		if (statement->before != before)
			continue;
		for (int j = 0; j < statement->nparams; j++)
			values[j] = client->values[statement->params[j]];
		snprintf(name, sizeof(name), "s%d", i);
		answer = PQexecPrepared(client->conn, name, statement->nparams, values,
								NULL, NULL, 0);
		take_answer(client, statement, answer);
		PQclear(answer);
	}
}

/* Check an answer, and keep what a later statement needs of it. */
static void
take_answer(Client *client, const Statement *statement, PGresult *answer)
{
	if (PQresultStatus(answer) == PGRES_COMMAND_OK)
	{
		if (strcmp(PQcmdTuples(answer), "0") == 0)
			fail("nothing was changed by: %s", statement->text);
		return;
	}
	if (PQresultStatus(answer) != PGRES_TUPLES_OK)
		fail("%s", PQerrorMessage(client->conn));
	if (PQntuples(answer) == 0)
		fail("no rows from: %s", statement->text);
	for (int i = 0; i < PQnfields(answer); i++)
	{
		const char *column = PQfname(answer, i);
		const char *value = PQgetvalue(answer, 0, i);
		int			name;

		if (PQftype(answer, i) == BOOL_OID && nstatements == 1 &&
			PQnfields(answer) == 1 && value[0] != 't')
			fail("false from: %s", statement->text);
		if (strcmp(column, "key_hash") == 0)
			check_digest(client->values[name_index("token", 5, true)], value);
		name = name_index(column, strlen(column), false);
		if (name >= nfields)
		{
			if (strlen(value) >= MAX_VALUE)
				fail("column %s is too long", column);
			client->values[name] = strcpy(client->returned[name], value);
		}
	}
}

/* The comparison that a program makes with what it has read. */
static void
check_digest(const char *token, const char *key_hash)
{
	static const char digits[] = "0123456789abcdef";
	unsigned char digest[SHA256_DIGEST_LENGTH];
	char		text[DIGEST_TEXT_LEN + 1] = "\\x";

	if (token == NULL)
		fail("there is no parameter token to compare key_hash with");
	SHA256((const unsigned char *) token, strlen(token), digest);
	for (int i = 0; i < SHA256_DIGEST_LENGTH; i++)
	{
		text[2 + 2 * i] = digits[digest[i] >> 4];
		text[3 + 2 * i] = digits[digest[i] & 15];
	}
	if (strcmp(text, key_hash) != 0)
		fail("key_hash is not that of the token");
}

/* Seconds, by a clock that only goes forward. */
static double
now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}
