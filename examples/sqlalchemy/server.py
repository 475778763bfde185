# examples/sqlalchemy/server.py: GET and POST /records over HTTP for whoever has an API key, with SQLAlchemy and WSGI; see ../records.sql.
#
#   PGUSER=records_api PGDATABASE=... PORT=8080 python3 server.py
import json
import os
import re
from http import HTTPStatus
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server

from sqlalchemy import BigInteger, Column, MetaData, Table, Text, create_engine, insert, select, text
from sqlalchemy.exc import DBAPIError, TimeoutError

BODY_MAX = 65536
# The header in which a proxy of your own tells the client's address. Without such a proxy leave it unset: clients can send any header.
ADDR_HEADER = "HTTP_" + os.environ.get("CLIENT_ADDR_HEADER", "").upper().replace("-", "_")
AUTHENTICATE = text("""
    SELECT v.valid, r.status, r.headers, r.body
    FROM rk_apikeys.authenticate(:token, :scope, rk_apikeys.client_addr(:address), raise => false) v,
      rk_apikeys.http_response(CASE WHEN :token IS NOT NULL THEN v END, :scope) r""")
UNAVAILABLE = {"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": "The database cannot be reached now."}

# From PGHOST, PGUSER… When a connection is lost, the pool drops all that it has.
engine = create_engine("postgresql+psycopg2://", hide_parameters=True, pool_timeout=2, connect_args={"connect_timeout": 2})
records = Table("records", MetaData(), Column("id", BigInteger, primary_key=True), Column("body", Text))


def list_records(connection, request):
    return 200, connection.execute(select(records.c.body).order_by(records.c.id)).scalars().all()


def add_record(connection, request):
    body = request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0)).decode(errors="replace")
    # inline: without RETURNING, which needs the right to read
    connection.execute(insert(records).inline().values(body=body))
    return 201, "added"


ROUTES = {"GET": ("records:read", list_records), "POST": ("records:write", add_record)}


def authenticated(request, scope, action):
    """Runs the action in a transaction that is the key's of the request, or refuses the request."""
    token = re.fullmatch("bearer +([!-~][ -~]*)", request.get("HTTP_AUTHORIZATION", "").strip(), re.IGNORECASE)
    values = {"token": token and token[1], "scope": scope, "address": request.get(ADDR_HEADER, request["REMOTE_ADDR"])}
    with engine.begin() as connection:  # commits at the end, rolls back on an error
        valid, status, headers, body = connection.execute(AUTHENTICATE, values).one()
        if valid:
            status, body = action(connection, request)
        else:
            connection.get_transaction().rollback()
    return status, body, headers


def respond(request):
    if not re.fullmatch("[0-9]{1,5}", length := request.get("CONTENT_LENGTH") or "0") or int(length) > BODY_MAX:
        return 413, "too long", {}
    if request["REQUEST_METHOD"] not in ROUTES:
        return 405, "method", {}
    try:
        return authenticated(request, *ROUTES[request["REQUEST_METHOD"]])
    except (DBAPIError, TimeoutError) as error:
        state = getattr(getattr(error, "orig", None), "pgcode", None)
        # Without an SQLSTATE it is the connection's, or the pool's.
        if re.match("08|57P", state or "08"):
            return 503, UNAVAILABLE, {"Content-Type": "application/problem+json", "Retry-After": "1"}
        print(state, flush=True)
        return 500, "error", {}


def app(request, start_response):
    status, body, headers = respond(request)
    start_response(f"{status} {HTTPStatus(status).phrase}", list({"Content-Type": "application/json", **headers}.items()))
    return [json.dumps(body).encode()]


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


make_server("127.0.0.1", int(os.environ.get("PORT", "8080")), app, Server).serve_forever()
