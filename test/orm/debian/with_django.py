# test/orm/debian/with_django.py: Django.
import contextlib, logging
import django
import psycopg2
from django.conf import settings

title, version = 'Django', django.get_version()
settings.configure(USE_TZ=True, DATABASES={}, DEFAULT_AUTO_FIELD='django.db.models.AutoField', LOGGING_CONFIG=None)
django.setup()
from django.contrib.postgres.fields import ArrayField
from django.db import connections, models, transaction

# doc: django
# psycopg2 knows no cidr[].
psycopg2.extensions.register_type(psycopg2.extensions.new_array_type((651,), 'cidr[]', psycopg2.extensions.UNICODE))


class Made(models.TextField):
    db_returning = True


class Cidr(models.Field):
    def db_type(self, connection):
        return 'cidr'


def nullable(field, *args):
    return field(*args, null=True)


class Key(models.Model):
    key_id = Made(primary_key=True, default=None)
    secret = nullable(Made)
    tenant, name, description, environment, masked_key, status = (nullable(models.TextField) for _ in range(6))
    enabled = nullable(models.BooleanField)
    scopes = nullable(ArrayField, models.TextField())
    allowed_cidrs = nullable(ArrayField, Cidr())
    rate_limit = nullable(models.IntegerField)
    rate_window, expires_in = nullable(models.DurationField), nullable(models.DurationField)
    metadata = nullable(models.JSONField)
    expires_at, last_used_at, grace_until, revoked_at, created_at, updated_at = (nullable(models.DateTimeField) for _ in range(6))
    use_count = nullable(models.BigIntegerField)
    replaces, revoked_reason, created_by, updated_by, family, owner = (nullable(models.TextField) for _ in range(6))

    class Meta:
        app_label = 'keys'
        managed = False
        db_table = 'rk_apikeys"."orm_keys'


class Record(models.Model):
    id = models.IntegerField(primary_key=True)
    body = models.TextField()

    class Meta:
        app_label = 'keys'
        managed = False
        db_table = 'records'
# doc: end


class Db:
    def __init__(self, user, host, port, dbname, log=False):
        self.alias = f'{user} {port} {log}'
        connections.databases[self.alias] = dict(ENGINE='django.db.backends.postgresql', USER=user, HOST=host, PORT=port, NAME=dbname,
            DISABLE_SERVER_SIDE_CURSORS=True)
        connections[self.alias].force_debug_cursor = log
        self.keys = Key.objects.using(self.alias)

    def create(self, **values):
        return self.keys.create(**values)

    def create_many(self, rows):
        return self.keys.bulk_create([Key(**row) for row in rows])

    def find(self, search, sort, limit, offset):
        return self.keys.filter(name__icontains=search).order_by(sort)[offset:offset + limit]

    def read(self, key_id):
        return self.keys.values().get(pk=key_id)

    def save(self, key_id, **changes):
        key = self.keys.get(pk=key_id)
        for name, value in changes.items():
            setattr(key, name, value)
        key.save()

    def write(self, key_id, values):
        self.keys.filter(pk=key_id).update(**values)

    def remove(self, key_id):
        self.keys.get(pk=key_id).delete()

    def rows(self, sql, values):
        with connections[self.alias].cursor() as cursor:
            cursor.execute(sql, values)
            return [dict(zip([column.name for column in cursor.description], row)) for row in cursor.fetchall()]

    # Django reads jsonb as text in raw SQL.
    def verdict(self, call, values):
        import json
        row = self.rows(f'SELECT * FROM rk_apikeys.{call}', values)[0]
        return {**row, 'metadata': json.loads(row['metadata']) if type(row['metadata']) is str else row['metadata']}

    def verify(self, token, scope, cost):
        return self.verdict('verify_key(%s, %s, cost => %s)', [token, scope, cost])

    # doc: django_request
    def enter(self, token):
        with transaction.atomic(using=self.alias):
            verdict = self.verdict('authenticate(%s, raise => false)', [token])
            records = Record.objects.using(self.alias).order_by('id').values_list('body', flat=True)
            return verdict, list(records) if verdict['valid'] else []
    # doc: end

    def demand(self, token):
        with transaction.atomic(using=self.alias):
            self.verdict('authenticate(%s)', [token])

    def close(self):
        connections[self.alias].close()


@contextlib.contextmanager
def logging_to(handler):
    logger = logging.getLogger('django.db.backends')
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield
    logger.removeHandler(handler)
    logger.setLevel(logging.WARNING)
