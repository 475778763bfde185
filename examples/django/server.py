# examples/django/server.py: GET and POST /records over HTTP for whoever has an API key, with Django; see ../records.sql.
#
#   PGUSER=records_api PGDATABASE=... PORT=8080 python3 server.py
import json
import os
import re
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import Error, connection, models, transaction
from django.http import HttpResponse, JsonResponse
from django.urls import path

settings.configure(ROOT_URLCONF=__name__, SECRET_KEY=os.urandom(32).hex(), DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql", "NAME": os.environ.get("PGDATABASE", "postgres"), "USER": os.environ.get("PGUSER", ""),
    "HOST": os.environ.get("PGHOST", ""), "PORT": os.environ.get("PGPORT", ""), "OPTIONS": {"connect_timeout": 2}}})
django.setup()

BODY_MAX = 65536
# The header in which a proxy of your own tells the client's address. Without such a proxy leave it unset: clients can send any header.
ADDR_HEADER = os.environ.get("CLIENT_ADDR_HEADER", "")
AUTHENTICATE = """
    SELECT v.valid, r.status, r.headers::text, r.body::text
    FROM rk_apikeys.authenticate(%(token)s, %(scope)s, rk_apikeys.client_addr(%(address)s), raise => false) v,
      rk_apikeys.http_response(CASE WHEN %(token)s IS NOT NULL THEN v END, %(scope)s) r"""
UNAVAILABLE = {"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": "The database cannot be reached now."}


class Record(models.Model):
    body = models.TextField()

    class Meta:
        app_label, db_table, managed = "records", "records", False


def list_records(request):
    return JsonResponse(list(Record.objects.order_by("id").values_list("body", flat=True)), safe=False)


def add_record(request):
    # Not Record.objects.create(): its RETURNING needs the right to read.
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO records (body) VALUES (%s)", (request.body.decode(errors="replace"),))
    return JsonResponse("added", safe=False, status=201)


ROUTES = {"GET": ("records:read", list_records), "POST": ("records:write", add_record)}


def authenticated(request, scope, view):
    """Runs the view in a transaction that is the key's of the request, or refuses the request."""
    token = re.fullmatch("bearer +([!-~][ -~]*)", request.headers.get("Authorization", "").strip(), re.IGNORECASE)
    values = {"token": token and token[1], "scope": scope, "address": request.headers.get(ADDR_HEADER, request.META["REMOTE_ADDR"])}
    with transaction.atomic():  # commits at the end, rolls back on an error
        with connection.cursor() as cursor:
            cursor.execute(AUTHENTICATE, values)
            valid, status, headers, body = cursor.fetchone()
        response = view(request) if valid else HttpResponse(body, status=status)
        transaction.set_rollback(not valid)
    for name, value in json.loads(headers).items():
        response[name] = value
    return response


def records(request):
    if not re.fullmatch("[0-9]{1,5}", length := request.headers.get("Content-Length") or "0") or int(length) > BODY_MAX:
        return JsonResponse("too long", safe=False, status=413)
    if request.method not in ROUTES:
        return JsonResponse("method", safe=False, status=405)
    try:
        return authenticated(request, *ROUTES[request.method])
    except Error as error:
        state = getattr(error.__cause__, "pgcode", None)
        # Without an SQLSTATE it is the connection's.
        if re.match("08|57P", state or "08"):
            response = JsonResponse(UNAVAILABLE, status=503, content_type="application/problem+json")
            response["Retry-After"] = "1"
            return response
        print(state, flush=True)
        return JsonResponse("error", safe=False, status=500)


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


urlpatterns = [path("records", records)]
make_server("127.0.0.1", int(os.environ.get("PORT", "8080")), get_wsgi_application(), Server).serve_forever()
