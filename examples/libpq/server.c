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
#include <sys/time.h>
#include <unistd.h>

#include <libpq-fe.h>

#define HEAD_MAX 16384
#define BODY_MAX 65536

/* The headers come as the lines of the response. */
#define AUTHENTICATE \
	"SELECT v.valid, r.status, r.body," \
	" (SELECT string_agg(format(E'%s: %s\\r\\n', h.key, h.value), '') FROM jsonb_each_text(r.headers) h)" \
	" FROM rk_apikeys.authenticate($1, $2, rk_apikeys.client_addr($3), raise => false) v," \
	"  rk_apikeys.http_response(CASE WHEN $1 IS NOT NULL THEN v END, $2) r"

typedef struct Request
{
	int			socket;
	size_t		len;			/* of what is read */
	char	   *body;			/* in text, or NULL while the head is not whole */
	char		address[INET6_ADDRSTRLEN];
	char		text[HEAD_MAX + BODY_MAX + 1];	/* the head, then the body */
} Request;

typedef struct Answer
{
	int			status;
	char	   *headers;		/* malloc'd lines, or NULL */
	char	   *json;			/* malloc'd */
} Answer;

typedef int (*Action) (PGconn *db, Request *request, Answer *answer);

static void
set_answer(Answer *answer, int status, const char *json, const char *headers)
{
	free(answer->json);
	free(answer->headers);
	answer->status = status;
	answer->json = strdup(json);
	answer->headers = strdup(headers);
}

/* The value of a header of the request as a copy without blanks around, or NULL. */
static char *
header(const Request *request, const char *name)
{
	size_t		len = strlen(name);
	const char *line = request->text;

	while (len > 0 && (line = strstr(line, "\r\n")) != NULL && strncmp(line, "\r\n\r\n", 4) != 0)
	{
		line += 2;
		if (strncasecmp(line, name, len) == 0 && line[len] == ':')
		{
			line += len + 1;
			line += strspn(line, " \t");
			len = strcspn(line, "\r");
			while (len > 0 && strchr(" \t", line[len - 1]) != NULL)
				len--;
			return strndup(line, len);
		}
	}
	return NULL;
}

/* Read on until so much of the request is there; return whether it is. */
static int
read_until(Request *request, size_t len)
{
	ssize_t		got = 1;

	while (request->len < len && got > 0)
		if ((got = read(request->socket, request->text + request->len, len - request->len)) > 0)
			request->len += got;
	return request->len >= len;
}

/* Read the head; return whether it is whole. */
static int
read_head(Request *request)
{
	ssize_t		got;

	while (request->len < HEAD_MAX &&
		   (got = read(request->socket, request->text + request->len, HEAD_MAX - request->len)) > 0)
	{
		request->len += got;
		if ((request->body = strstr(request->text, "\r\n\r\n")) != NULL)
		{
			request->body += 4;
			return 1;
		}
	}
	return 0;
}

/* The length of the body that the head announces, or -1. */
static long
body_length(const Request *request)
{
	char	   *value = header(request, "Content-Length");
	char	   *end = value;
	long		len = value == NULL ? 0 : strtol(value, &end, 10);

	if (value != NULL && (end == value || *end != '\0'))
		len = -1;
	free(value);
	return len;
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

/* What to answer when the database, or the connection to it, fails. */
static void
fail(PGconn *db, const PGresult *error, Answer *answer)
{
	const char *state = PQresultErrorField(error, PG_DIAG_SQLSTATE);

	if (PQstatus(db) != CONNECTION_OK || state == NULL || strncmp(state, "08", 2) == 0 || strncmp(state, "57P", 3) == 0)
		set_answer(answer, 503,
				   "{\"type\": \"about:blank\", \"title\": \"Service Unavailable\", \"status\": 503,"
				   " \"detail\": \"The database cannot be reached now.\"}",
				   "Content-Type: application/problem+json\r\nRetry-After: 1\r\n");
	else
	{
		fprintf(stderr, "%s\n", state);
		set_answer(answer, 500, "\"error\"", "");
	}
}

/*
 * Run the action in a transaction that is the key's of the request, or refuse
 * the request.
 */
static void
authenticated(PGconn *db, Request *request, const char *scope, Action action, Answer *answer)
{
	char	   *authorization = header(request, "Authorization");
	char	   *address = header(request, getenv("CLIENT_ADDR_HEADER") ? getenv("CLIENT_ADDR_HEADER") : "");
	const char *values[3] = {NULL, scope, address == NULL ? request->address : address};
	PGresult   *result;

	if (authorization != NULL && strncasecmp(authorization, "Bearer ", 7) == 0)
		values[0] = authorization + 7 + strspn(authorization + 7, " ");
	/* A connection that was lost since the last request is made anew. */
	if (!run(db, "BEGIN"))
	{
		PQreset(db);
		run(db, "BEGIN");
	}
	result = PQexecParams(db, AUTHENTICATE, 3, NULL, values, NULL, NULL, 0);
	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		fail(db, result, answer);
	else
	{
		set_answer(answer, atoi(PQgetvalue(result, 0, 1)), PQgetvalue(result, 0, 2), PQgetvalue(result, 0, 3));
		if (PQgetvalue(result, 0, 0)[0] == 't' && action(db, request, answer) && !run(db, "COMMIT"))
			fail(db, NULL, answer);
	}
	if (PQtransactionStatus(db) != PQTRANS_IDLE)
		run(db, "ROLLBACK");
	PQclear(result);
	free(authorization);
	free(address);
}

/* Action */
static int
list_records(PGconn *db, Request *request, Answer *answer)
{
	PGresult   *result = PQexec(db, "SELECT coalesce(json_agg(body ORDER BY id), '[]') FROM records");
	int			ok = PQresultStatus(result) == PGRES_TUPLES_OK;

	(void) request;
	if (ok)
	{
		free(answer->json);
		answer->json = strdup(PQgetvalue(result, 0, 0));
	}
	else
		fail(db, result, answer);
	PQclear(result);
	return ok;
}

/* Action */
static int
add_record(PGconn *db, Request *request, Answer *answer)
{
	size_t		len = request->body - request->text + body_length(request);
	const char *values[1] = {request->body};
	PGresult   *result;
	int			ok;

	if (!read_until(request, len))
	{
		set_answer(answer, 400, "\"body\"", "");
		return 0;
	}
	request->text[len] = '\0';
	result = PQexecParams(db, "INSERT INTO records (body) VALUES ($1)", 1, NULL, values, NULL, NULL, 0);
	ok = PQresultStatus(result) == PGRES_COMMAND_OK;
	if (ok)
	{
		free(answer->json);
		answer->status = 201;
		answer->json = strdup("\"added\"");
	}
	else
		fail(db, result, answer);
	PQclear(result);
	return ok;
}

static void
respond(PGconn *db, Request *request)
{
	Answer		answer = {0};
	long		len;

	if (!read_head(request))
		return;
	if ((len = body_length(request)) < 0 || len > BODY_MAX)
		set_answer(&answer, 413, "\"too long\"", "");
	else if (strncmp(request->text, "GET ", 4) == 0)
		authenticated(db, request, "records:read", list_records, &answer);
	else if (strncmp(request->text, "POST ", 5) == 0)
		authenticated(db, request, "records:write", add_record, &answer);
	else
		set_answer(&answer, 405, "\"method\"", "");
	dprintf(request->socket, "HTTP/1.1 %d .\r\n%s%sConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
			answer.status, strstr(answer.headers, "Content-Type: ") ? "" : "Content-Type: application/json\r\n",
			answer.headers, strlen(answer.json), answer.json);
	free(answer.json);
	free(answer.headers);
}

int
main(void)
{
	static Request request;
	const char *port = getenv("PORT");
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t	len = sizeof(address);
	struct timeval patience = {.tv_sec = 10};
	int			yes = 1;
	int			server = socket(AF_INET, SOCK_STREAM, 0);
	PGconn	   *db = PQconnectdb("connect_timeout=2");	/* and PGHOST, PGUSER... */

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
	while ((request.socket = accept(server, (struct sockaddr *) &address, &len)) >= 0)
	{
		setsockopt(request.socket, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
		inet_ntop(AF_INET, &address.sin_addr, request.address, sizeof(request.address));
		respond(db, &request);
		close(request.socket);
		explicit_bzero(&request, sizeof(request));
	}
	return 0;
}
