# test/orm/debian/bridge.py: asks a program in another language, which answers lines of JSON. A value is told with its type there: a time is
# {"$time": ...}, an interval is {"$interval": seconds}.
import contextlib, json, subprocess, sys, tempfile
from datetime import date, datetime, timedelta
from types import SimpleNamespace

handlers = []


class Refused(Exception):
    pass


def read(value):
    if '$time' in value:
        return datetime.fromisoformat(value['$time'])
    return timedelta(seconds=value['$interval']) if '$interval' in value else value


def write(value):
    return f'PT{value.total_seconds():.0f}S' if isinstance(value, timedelta) else value.isoformat()


class Db:
    def __init__(self, command, **where):
        self.errors = tempfile.TemporaryFile('w+')
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        self.ask('open', where)

    def ask(self, what, *values):
        print(json.dumps([what, *values], default=write), file=self.child.stdin, flush=True)
        line = self.child.stdout.readline()
        self.errors.seek(0)
        sys.stderr.write(self.errors.read())
        self.errors.seek(0)
        self.errors.truncate()
        if not line:
            raise Refused('the program ended')
        answer = json.loads(line, object_hook=read)
        for handler in handlers:
            handler.stream.write(answer.get('log') or '')
        if 'error' in answer:
            error = Refused(answer['error'])
            error.pgcode, error.seen = answer.get('state'), answer.get('object')
            raise error
        return answer['value']

    def create(self, **values):
        return SimpleNamespace(**self.ask('create', values))

    def create_many(self, rows):
        return [SimpleNamespace(**row) for row in self.ask('create_many', rows)]

    def find(self, *how):
        return [SimpleNamespace(**row) for row in self.ask('find', *how)]

    def save(self, key_id, **changes):
        return self.ask('save', key_id, changes)

    def write(self, key_id, values):
        return self.ask('write', key_id, values)

    def rows(self, sql, values):
        return self.ask('rows', sql, list(values))

    def read(self, key_id): return self.ask('read', key_id)
    def remove(self, key_id): return self.ask('remove', key_id)
    def verify(self, *values): return self.ask('verify', *values)
    def enter(self, token): return self.ask('enter', token)
    def demand(self, token): return self.ask('demand', token)

    def close(self):
        self.child.stdin.close()
        self.child.wait()


@contextlib.contextmanager
def logging_to(handler):
    handlers.append(handler)
    yield
    handlers.remove(handler)
