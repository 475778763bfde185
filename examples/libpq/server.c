/*
 * examples/libpq/server.c
 *		GET and POST /records over HTTP for whoever has an API key, with libpq;
 *		see ../records.sql.
 *
 *	cc -o server -I"$(pg_config --includedir)" server.c -lpq
 *	PGUSER=records_api PGDATABASE=... PORT=8080 ./server
 *
 * One request at a time, over one connection: what matters is authenticated().
 */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include <libpq-fe.h>

#define REQUEST_MAX 65536

typedef struct Request
{
	char		text[REQUEST_MAX];	/* the head, and behind it the body */
	char	   *body;
	char		client[INET6_ADDRSTRLEN];
} Request;

typedef struct Answer
{
	int			status;
	char		header[64];		/* one more header line, or empty */
	char	   *json;			/* malloc'd */
} Answer;

typedef int (*Action) (PGconn *db, Request *request, Answer *answer);

static int	list_records(PGconn *db, Request *request, Answer *answer);
static int	add_record(PGconn *db, Request *request, Answer *answer);
static int	run(PGconn *db, const char *sql);

/* The value of a header of the request as a copy, or NULL. */
static char *
header(const Request *request, const char *name)
{
	size_t		len = strlen(name);
	const char *line = request->text;

	while ((line = strstr(line, "\r\n")) != NULL && strncmp(line, "\r\n\r\n", 4) != 0)
	{
		line += 2;
		if (strncasecmp(line, name, len) == 0 && line[len] == ':')
		{
			line += len + 1;
			line += strspn(line, " ");
			return strndup(line, strcspn(line, "\r"));
		}
	}
	return NULL;
}

/* What to answer when the database refuses a key, or fails. */
static void
refuse(const PGresult *error, Answer *answer)
{
	const char *state = PQresultErrorField(error, PG_DIAG_SQLSTATE);
	const char *message = PQresultErrorField(error, PG_DIAG_MESSAGE_PRIMARY);
	const char *detail = PQresultErrorField(error, PG_DIAG_MESSAGE_DETAIL);
	const char *retry = detail == NULL ? NULL : strstr(detail, " retry_after_ms=");
	const char *code;
	long		ms;

	answer->status = 500;
	answer->json = strdup("\"error\"");
	if (state == NULL || strcmp(state, "28000") != 0)
		return;
	code = strrchr(message, ' ') + 1;
	free(answer->json);
	answer->json = malloc(strlen(code) + 3);
	sprintf(answer->json, "\"%s\"", code);
	if (strcmp(code, "rate_limited") == 0 && retry != NULL &&
		sscanf(retry, " retry_after_ms=%ld", &ms) == 1)
	{
		answer->status = 429;
		sprintf(answer->header, "Retry-After: %ld\r\n", (ms + 999) / 1000);
	}
	else if (strcmp(code, "scope_missing") == 0 || strcmp(code, "address_denied") == 0)
		answer->status = 403;
	else if (strcmp(code, "limiter_unavailable") == 0)
		answer->status = 503;
	else
	{
		answer->status = 401;
		strcpy(answer->header, "WWW-Authenticate: Bearer\r\n");
	}
}

/*
 * Run the action in a transaction that is the key's of the request; commit, or
 * roll back on an error.
 */
static void
authenticated(PGconn *db, Request *request, const char *scope, Action action,
			  Answer *answer)
{
	char	   *value = header(request, "Authorization");
	const char *values[3] = {NULL, scope, request->client};
	PGresult   *result;

	if (value != NULL && strncmp(value, "Bearer ", 7) == 0)
		values[0] = value + 7;
	if (PQstatus(db) != CONNECTION_OK)
		PQreset(db);
	run(db, "BEGIN");
	result = PQexecParams(db, "SELECT rk_apikeys.authenticate($1, $2, $3)",
						  3, NULL, values, NULL, NULL, 0);
	if (PQresultStatus(result) != PGRES_TUPLES_OK)
	{
		refuse(result, answer);
		run(db, "ROLLBACK");
	}
	else if (!action(db, request, answer) || !run(db, "COMMIT"))
	{
		run(db, "ROLLBACK");
		free(answer->json);
		answer->status = 500;
		answer->json = strdup("\"error\"");
	}
	PQclear(result);
	free(value);
}

/* Run a command without results; returns whether it worked. */
static int
run(PGconn *db, const char *sql)
{
	PGresult   *result = PQexec(db, sql);
	int			ok = PQresultStatus(result) == PGRES_COMMAND_OK;

	PQclear(result);
	return ok;
}

/* Action */
static int
list_records(PGconn *db, Request *request, Answer *answer)
{
	PGresult   *result = PQexec(db,
								"SELECT coalesce(json_agg(body ORDER BY id), '[]') FROM records");
	int			ok = PQresultStatus(result) == PGRES_TUPLES_OK;

	(void) request;
	answer->status = 200;
	answer->json = strdup(ok ? PQgetvalue(result, 0, 0) : "");
	PQclear(result);
	return ok;
}

/* Action */
static int
add_record(PGconn *db, Request *request, Answer *answer)
{
	const char *values[1] = {request->body};
	PGresult   *result = PQexecParams(db, "INSERT INTO records (body) VALUES ($1)",
									  1, NULL, values, NULL, NULL, 0);
	int			ok = PQresultStatus(result) == PGRES_COMMAND_OK;

	answer->status = 201;
	answer->json = strdup("\"added\"");
	PQclear(result);
	return ok;
}

/*
 * Read a request: the head, and as much of a body as it announces.  Return 0 if
 * it is not whole, or too long.
 */
static int
read_request(int client, Request *request)
{
	size_t		len = 0;
	ssize_t		got;
	char	   *announced;

	request->body = NULL;
	while (len < REQUEST_MAX - 1 &&
		   (got = read(client, request->text + len, REQUEST_MAX - 1 - len)) > 0)
	{
		len += got;
		request->text[len] = '\0';
		if ((request->body = strstr(request->text, "\r\n\r\n")) == NULL)
			continue;
		request->body += 4;
		announced = header(request, "Content-Length");
		got = announced == NULL ? 0 : atol(announced);
		free(announced);
		if (got >= request->text + REQUEST_MAX - request->body)
			return 0;
		if (request->text + len - request->body >= got)
			return 1;
	}
	return 0;
}

int
main(void)
{
	static Request request;
	const char *port = getenv("PORT");
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t	len = sizeof(address);
	int			yes = 1;
	int			server = socket(AF_INET, SOCK_STREAM, 0);
	int			client;
	PGconn	   *db = PQconnectdb("");	/* from PGHOST, PGUSER... */

	if (PQstatus(db) != CONNECTION_OK)
	{
		fputs(PQerrorMessage(db), stderr);
		return 1;
	}
	address.sin_port = htons(port == NULL ? 8080 : atoi(port));
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
	if (bind(server, (struct sockaddr *) &address, sizeof(address)) != 0 ||
		listen(server, 16) != 0)
	{
		perror("cannot listen");
		return 1;
	}
	signal(SIGPIPE, SIG_IGN);	/* a client may be gone before the answer */
	while ((client = accept(server, (struct sockaddr *) &address, &len)) >= 0)
	{
		Answer		answer = {413, "", NULL};

		inet_ntop(AF_INET, &address.sin_addr, request.client, sizeof(request.client));
		if (read_request(client, &request))
		{
			answer.status = 405;
			if (strncmp(request.text, "GET ", 4) == 0)
				authenticated(db, &request, "records:read", list_records, &answer);
			else if (strncmp(request.text, "POST ", 5) == 0)
				authenticated(db, &request, "records:write", add_record, &answer);
		}
		if (request.body != NULL)
			dprintf(client, "HTTP/1.1 %d .\r\nContent-Type: application/json\r\n"
					"Connection: close\r\n%sContent-Length: %zu\r\n\r\n%s",
					answer.status, answer.header,
					answer.json == NULL ? 0 : strlen(answer.json),
					answer.json == NULL ? "" : answer.json);
		free(answer.json);
		explicit_bzero(&request, sizeof(request));
		close(client);
	}
	return 0;
}
