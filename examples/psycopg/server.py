# examples/psycopg/server.py: GET and POST /records over HTTP for whoever has an API key, with psycopg 3; see ../records.sql.
#
#   PGUSER=records_api PGDATABASE=... PORT=8080 python3 server.py
import json
import os
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg
from psycopg_pool import ConnectionPool

BODY_MAX = 65536
# The header in which a proxy of your own tells the client's address. Without such a proxy leave it unset: clients can send any header.
ADDR_HEADER = os.environ.get("CLIENT_ADDR_HEADER", "")
AUTHENTICATE = """
    SELECT v.valid, r.status, r.headers, r.body
    FROM rk_apikeys.authenticate(%(token)s, %(scope)s, rk_apikeys.client_addr(%(address)s), raise => false) v,
      rk_apikeys.http_response(CASE WHEN %(token)s IS NOT NULL THEN v END, %(scope)s) r"""
UNAVAILABLE = {"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": "The database cannot be reached now."}

# From PGHOST, PGUSER… A request waits 2 seconds for a connection. After 1 second without a database the next request tries again.
pool = ConnectionPool("", min_size=1, max_size=10, timeout=2, reconnect_timeout=1)


class Handler(BaseHTTPRequestHandler):
    timeout = 10  # seconds that a client may keep silent

    def do_GET(self):
        self.respond("records:read", self.list)

    def do_POST(self):
        self.respond("records:write", self.add)

    def list(self, connection):
        return 200, [body for body, in connection.execute("SELECT body FROM records ORDER BY id")]

    def add(self, connection):
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode(errors="replace")
        connection.execute("INSERT INTO records (body) VALUES (%s)", (body,))
        return 201, "added"

    def respond(self, scope, action):
        if not re.fullmatch("[0-9]{1,5}", length := self.headers.get("Content-Length", "0")) or int(length) > BODY_MAX:
            return self.send(413, "too long")
        try:
            self.send(*self.authenticated(scope, action))
        except psycopg.Error as error:
            # Without an SQLSTATE it is the connection's, or the pool's.
            if isinstance(error, psycopg.OperationalError) and re.match("08|57P", error.sqlstate or "08"):
                return self.send(503, UNAVAILABLE, {"Content-Type": "application/problem+json", "Retry-After": "1"})
            print(error.sqlstate, flush=True)
            self.send(500, "error")

    def authenticated(self, scope, action):
        """Runs the action in a transaction that is the key's of the request, or refuses the request."""
        token = re.fullmatch("bearer +([!-~][ -~]*)", self.headers.get("Authorization", "").strip(), re.IGNORECASE)
        values = {"token": token and token[1], "scope": scope, "address": self.headers.get(ADDR_HEADER, self.client_address[0])}
        with pool.connection() as connection:  # commits at the end, rolls back on an error
            valid, status, headers, body = connection.execute(AUTHENTICATE, values).fetchone()
            if valid:
                status, body = action(connection)
            else:
                connection.rollback()
        return status, body, headers

    def send(self, status, body, headers={}):
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8080"))), Handler).serve_forever()
