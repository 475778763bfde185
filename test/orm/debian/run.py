# test/orm/debian/run.py TOOL: asks one tool of Python what ../checks.txt lists, and prints a line for each check. with_TOOL.py says how the
# tool does it, as ../npm/run.mjs tells of its tools.
import contextlib, importlib, io, logging, os, re, sys
from datetime import datetime, timedelta, timezone
from decimal import Decimal

name = sys.argv[1]
tool = importlib.import_module('with_' + name)
env = os.environ
out = sys.stdout
printed = io.StringIO()
where = dict(host=env['PGHOST'], port=env['PGPORT'], dbname=env['PGDATABASE'])
unknown = env['RK_UNKNOWN']
shape = re.compile(r'rk_prod_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}')
far = datetime(2099, 12, 31, 23, 59, 59, 123456, timezone.utc)

text, boolean, time, texts = str, bool, datetime, list
key_types = dict(key_id=str, tenant=str, name=str, description=str, environment=str, masked_key=str, status=str, enabled=bool, scopes=list,
    allowed_cidrs=list, rate_limit=int, rate_window=timedelta, metadata=dict, expires_at=datetime, expires_in=timedelta,
    last_used_at=datetime, use_count=int, replaces=str, grace_until=datetime, revoked_at=datetime, revoked_reason=str, created_at=datetime,
    created_by=str, updated_at=datetime, updated_by=str, secret=str, family=str, owner=str)
verdict_types = dict(valid=bool, code=str, key_id=str, family=str, tenant=str, owner=str, name=str, environment=str, scopes=list,
    metadata=dict, expires_at=datetime, retry_after_ms=int, limit_name=str, limit_units=int, limit_remaining=int, limit_resets_at=datetime)


def same(seen, expected):
    assert seen == expected, f'{seen} instead of {expected}'


def typed(row, types):
    for column, kind in types.items():
        assert row[column] is None or type(row[column]) is kind, f'{column} is {type(row[column]).__name__}'


def chain(error):
    while error:
        yield error
        error = error.__cause__ or error.__context__


def message(error):
    return ' '.join(str(e) for e in chain(error))


# Whether a value, or what it refers to, has the token.
def holds(value, token, seen=None):
    seen = set() if seen is None else seen
    if isinstance(value, bytes):
        return token.encode() in value
    if isinstance(value, str):
        return token in value
    if id(value) in seen or len(seen) > 20000 or callable(value) or isinstance(value, (int, float, type(sys), type(None))):
        return False
    seen.add(id(value))
    if isinstance(value, dict):
        return any(holds(v, token, seen) for v in [*value.keys(), *value.values()])
    if isinstance(value, (list, tuple, set)):
        return any(holds(v, token, seen) for v in value)
    for attribute in dir(value):
        if not attribute.startswith('__') or attribute in ('__cause__', '__context__'):
            with contextlib.suppress(Exception):
                if holds(getattr(value, attribute), token, seen):
                    return True
    return False


def say(line):
    print(line, file=out, flush=True)


def check(ask):
    title = ask.__name__.rstrip('_')
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            note = ask() or getattr(tool, 'notes', {}).get(title)
        say(f'ok {title}' + (f': {note}' if note else ''))
    except Exception as error:
        say(f'not ok {title}: ' + ' '.join(f'{type(error).__name__}: {message(error)}'.split())[:500])


say(f'tool {tool.title} {tool.version}')
keys = tool.Db(user='acme', **where)
backend = tool.Db(user='backend', **where)
one = lambda sql, *values: keys.rows(sql, values)[0]
stored = lambda key_id: one("SELECT to_jsonb(k) - '{description,updated_at,updated_by,expires_in}'::text[] AS key"
    ' FROM rk_apikeys.orm_keys k WHERE key_id = %s', key_id)['key']
described = lambda key_id: one('SELECT description FROM rk_apikeys.keys WHERE key_id = %s', key_id)['description']


def made(title):
    return one("SELECT key_id, secret FROM rk_apikeys.create_key(%s, 'before', '2099-12-31 23:59:59.123456+00', 'prod', '{a:read,b:*}',"
        """ '{192.0.2.0/24,2001:db8::/32}', 5, '1 hour', '{"team": "data", "list": [1, null]}')""", f'{name} {title}')


def limited(title):
    return one("SELECT key_id, secret FROM rk_apikeys.create_key(%s, scopes => '{a:read,b:*}', rate_limit => 5, rate_window => '1 hour',"
        """ expires_at => '2099-12-31 23:59:59.123456+00', metadata => '{"team": "data"}')""", f'{name} {title}')


kept = {}


@check
def create():
    kept['first'] = keys.create(name=f'{name} one', description='by a model', scopes=['a:read', 'b:*'], metadata={'list': [1, None, 'ü']},
        allowed_cidrs=['192.0.2.0/24'], owner='ann', expires_at=far)
    same(one('SELECT tenant, description, environment, status, scopes::text, metadata::text, allowed_cidrs::text, owner, expires_at,'
        ' created_by FROM rk_apikeys.keys WHERE key_id = %s', kept['first'].key_id), dict(tenant='acme', description='by a model',
        environment='prod', status='active', scopes='{a:read,b:*}', metadata='{"list": [1, null, "ü"]}', allowed_cidrs='{192.0.2.0/24}',
        owner='ann', expires_at=far, created_by='acme'))
    defaults = lambda title: one("SELECT tenant, environment, description, scopes::text, metadata::text, enabled, expires_at,"
        " created_at > now() - interval '1 hour' AS recent FROM rk_apikeys.keys WHERE name = %s", title)
    keys.create(name=f'{name} plain')
    same(defaults(f'{name} plain'), dict(tenant='acme', environment='prod', description='', scopes='{}', metadata='{}', enabled=True,
        expires_at=None, recent=True))
    keys.create(name=f'{name} nulls', **{column: None for column in key_types if column not in ('name', 'metadata')})
    same(defaults(f'{name} nulls'), defaults(f'{name} plain'))


@check
def secret():
    assert shape.fullmatch(kept['first'].secret) and kept['first'].secret.split('_')[2] == kept['first'].key_id
    same(backend.rows("SELECT code FROM rk_apikeys.verify_key(%s, client_addr => '192.0.2.1')", [kept['first'].secret]), [dict(code='valid')])


names = [f'{name} bulk {i}' for i in (1, 2, 3)]


@check
def bulk():
    kept['bulk'] = keys.create_many([dict(name=n, scopes=[n.replace(' ', ':')]) for n in names])
    same(keys.rows('SELECT name FROM rk_apikeys.keys WHERE name LIKE %s ORDER BY name', [f'{name} bulk %']), [dict(name=n) for n in names])


@check
def bulk_secret():
    for key, title in zip(kept['bulk'], names):
        assert shape.fullmatch(key.secret)
        same(backend.rows('SELECT code, key_id, name FROM rk_apikeys.verify_key(%s)', [key.secret]),
            [dict(code='valid', key_id=key.key_id, name=title)])


@check
def types():
    row = keys.read(made('types')['key_id'])
    typed(row, key_types)
    same([row[c] for c in ('scopes', 'allowed_cidrs', 'metadata', 'rate_limit', 'use_count', 'expires_at', 'secret')],
        [['a:read', 'b:*'], ['192.0.2.0/24', '2001:db8::/32'], dict(team='data', list=[1, None]), 5, 0, far, None])


@check
def interval():
    key = keys.create(name=f'{name} interval', rate_limit=7, rate_window=timedelta(minutes=90))
    same(keys.read(key.key_id)['rate_window'], timedelta(minutes=90))
    return 'read as the type that the language or the tool has for a duration'


@check
def list_():
    for i in range(1, 6):
        one('SELECT key_id FROM rk_apikeys.create_key(%s)', f'{name} page {i}')
    same([key.name for key in keys.find(f'{name} page', 'name', 2, 2)], [f'{name} page {i}' for i in (3, 4)])


@check
def list_keys():
    query = "SELECT name, cursor FROM rk_apikeys.list_keys(search => %s, sort_by => 'name', page_size => 3, after => %s)"
    page = keys.rows(query, [f'{name} page', None])
    same([key['name'] for key in page], [f'{name} page {i}' for i in (1, 2, 3)])
    same([key['name'] for key in keys.rows(query, [f'{name} page', page[2]['cursor']])], [f'{name} page {i}' for i in (4, 5)])


def saved(change):
    key_id = made('save')['key_id']
    before = stored(key_id)
    change(key_id)
    same(described(key_id), 'after')
    same(stored(key_id), before)


@check
def save():
    saved(lambda key_id: keys.save(key_id, description='after'))


@check
def save_whole():
    saved(lambda key_id: keys.write(key_id, {**keys.read(key_id), 'description': 'after'}))


@check
def refuse_change():
    try:
        keys.write(made('refuse')['key_id'], dict(tenant='globex'))
    except Exception as error:
        assert 'column "tenant" of an API key cannot be changed' in message(error), message(error)
    else:
        raise AssertionError('there was no error')


@check
def delete():
    key_id = made('delete')['key_id']
    keys.remove(key_id)
    same(keys.rows('SELECT name FROM rk_apikeys.keys WHERE key_id = %s', [key_id]), [])


@check
def verify():
    key = limited('verify')
    verdict = backend.verify(key['secret'], 'a:read', 4)
    typed(verdict, verdict_types)
    columns = 'valid code key_id family tenant environment scopes metadata expires_at retry_after_ms limit_units limit_remaining'.split()
    same([verdict[c] for c in columns], [True, 'valid', key['key_id'], key['key_id'], 'acme', 'prod', ['a:read', 'b:*'], dict(team='data'),
        far, None, 5, 1])
    assert type(verdict['limit_name']) is str and type(verdict['limit_resets_at']) is datetime
    refused = backend.verify(key['secret'], 'a:read', 4)
    typed(refused, verdict_types)
    same([refused['valid'], refused['code'], refused['retry_after_ms'] > 0], [False, 'rate_limited', True])


nobody = 'SELECT rk_apikeys.current_key_id() AS key_id, count(*) AS records FROM records'


@check
def transaction():
    key = limited('transaction')
    verdict, rows = backend.enter(key['secret'])
    typed(verdict, verdict_types)
    same([verdict['valid'], verdict['key_id'], rows], [True, key['key_id'], ['a1', 'a2']])
    same(backend.rows(nobody, []), [dict(key_id=None, records=0)])


@check
def refused():
    printed.truncate(0)
    verdict, rows = backend.enter(unknown)
    same([verdict['valid'], verdict['code'], verdict['key_id'], rows], [False, 'unknown', None, []])
    assert unknown not in str(verdict) and unknown not in printed.getvalue()


@check
def raise_():
    printed.truncate(0)
    try:
        backend.demand(unknown)
    except Exception as error:
        caught = error
    else:
        raise AssertionError('there was no error')
    same(backend.rows('SELECT 1 AS one', []), [dict(one=1)])
    assert any(getattr(e, 'pgcode', None) == '28000' for e in chain(caught)), message(caught)
    stands = [('text', unknown in message(caught)), ('object', any(holds(e, unknown) for e in chain(caught))), ('output', unknown in printed.getvalue())]
    return ', '.join(what for what, there in stands if there) or 'nowhere'


@check
def query_log():
    stream = io.StringIO()
    with tool.logging_to(logging.StreamHandler(stream)):
        logged = tool.Db(user='backend', log=True, **where)
        logged.enter(unknown)
        logged.close()
    assert 'authenticate' in stream.getvalue(), 'there is no log'
    # pgx cuts a long value
    return 'shown' if unknown[21:41] in stream.getvalue() else 'not shown'


@check
def bouncer():
    through = dict(where, port=env['RK_BOUNCER'])
    pooled, reader = tool.Db(user='acme', **through), tool.Db(user='backend', **through)
    key = pooled.create(name=f'{name} bouncer')
    for _ in range(3):
        verdict, rows = reader.enter(key.secret)
        same([verdict['code'], rows], ['valid', ['a1', 'a2']])
        same(reader.rows(nobody, []), [dict(key_id=None, records=0)])
    pooled.close()
    reader.close()
