# examples/psycopg/server.py: GET and POST /records over HTTP for whoever has an API key, with psycopg 2; see ../records.sql.
#
#   PGUSER=records_api PGDATABASE=... PORT=8080 python3 server.py
import os
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg2
from psycopg2.pool import ThreadedConnectionPool

pool = ThreadedConnectionPool(1, 10, "")  # libpq's own settings: PGHOST, PGUSER…
BODY_MAX = 65536  # whoever sends more has not authenticated yet
STATUS = {"scope_missing": 403, "address_denied": 403, "rate_limited": 429, "limiter_unavailable": 503}


class Refused(Exception):
    """The key is not accepted: the HTTP status, the code, and the headers that go with them."""

    def __init__(self, error):
        self.code = error.diag.message_primary.rsplit(": ", 1)[-1]
        self.status = STATUS.get(self.code, 401)
        self.headers = {}
        if self.status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"
        if self.status == 429:
            self.headers["Retry-After"] = str(-(-int(re.search(r"retry_after_ms=(\d+)", error.diag.message_detail)[1]) // 1000))


@contextmanager
def authenticated(request, scope):
    """A cursor in a transaction that is the key's of the request; commits at the end, rolls back on an error."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    connection = pool.getconn()
    try:
        with connection, connection.cursor() as cursor:
            try:
                cursor.execute("SELECT rk_apikeys.authenticate(%s, %s, %s)",
                               (token if scheme == "Bearer" else None, scope, request.client_address[0]))
            except psycopg2.errors.InvalidAuthorizationSpecification as error:
                raise Refused(error) from None
            yield cursor
    finally:
        pool.putconn(connection)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.run("records:read", self.list)

    def do_POST(self):
        length = self.headers.get("Content-Length", "0")
        if re.fullmatch("[0-9]{1,5}", length) and int(length) <= BODY_MAX:
            self.run("records:write", self.add)
        else:
            self.answer(413, '"too long"', {})

    def list(self, cursor):
        cursor.execute("SELECT coalesce(json_agg(body ORDER BY id), '[]')::text FROM records")
        return 200, cursor.fetchone()[0]

    def add(self, cursor):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        cursor.execute("INSERT INTO records (body) VALUES (%s)", (body,))
        return 201, '"added"'

    def run(self, scope, action):
        try:
            with authenticated(self, scope) as cursor:
                status, body = action(cursor)
            self.answer(status, body, {})
        except Refused as refused:
            self.answer(refused.status, '"%s"' % refused.code, refused.headers)
        except psycopg2.Error as error:
            self.log_error("%s", error.diag.sqlstate)
            self.answer(500, '"error"', {})

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body.encode())), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())


ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8080"))), Handler).serve_forever()
