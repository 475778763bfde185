# test/orm/debian/with_sqlalchemy.py: SQLAlchemy.
import contextlib, logging
import psycopg2
from sqlalchemy import (BigInteger, Boolean, Column, DateTime, FetchedValue, Integer, Text, cast, create_engine, delete, select, update)
from sqlalchemy.dialects.postgresql import ARRAY, CIDR, INTERVAL, JSONB
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session, declarative_base
import sqlalchemy

title, version = 'SQLAlchemy', sqlalchemy.__version__

# doc: sqlalchemy
Base = declarative_base()


# psycopg2 knows no cidr[].
class Cidrs(ARRAY):
    def bind_expression(self, value):
        return cast(value, self)


psycopg2.extensions.register_type(psycopg2.extensions.new_array_type((651,), 'cidr[]', psycopg2.extensions.UNICODE))
Time = DateTime(timezone=True)


class Key(Base):
    __tablename__ = 'orm_keys'
    __table_args__ = {'schema': 'rk_apikeys'}
    __mapper_args__ = {'eager_defaults': True}
    key_id = Column(Text, FetchedValue(), primary_key=True)
    secret = Column(Text, FetchedValue())
    tenant, name, description, environment, masked_key, status = (Column(Text) for _ in range(6))
    enabled = Column(Boolean)
    scopes = Column(ARRAY(Text))
    allowed_cidrs = Column(Cidrs(CIDR))
    rate_limit = Column(Integer)
    rate_window, expires_in = Column(INTERVAL), Column(INTERVAL)
    # "metadata" is SQLAlchemy's own name.
    data = Column('metadata', JSONB(none_as_null=True))
    expires_at, last_used_at, grace_until, revoked_at, created_at, updated_at = (Column(Time) for _ in range(6))
    use_count = Column(BigInteger)
    replaces, revoked_reason, created_by, updated_by, family, owner = (Column(Text) for _ in range(6))


class Record(Base):
    __tablename__ = 'records'
    id = Column(Integer, primary_key=True)
    tenant, body = Column(Text), Column(Text)
# doc: end


names = {attribute: attribute.replace('data', 'metadata') if attribute == 'data' else attribute for attribute in Key.__mapper__.attrs.keys()}
attribute = lambda values: {('data' if name == 'metadata' else name): value for name, value in values.items()}


class Db:
    def __init__(self, user, host, port, dbname, log=False):
        self.engine = create_engine(URL.create('postgresql+psycopg2', user, database=dbname, query=dict(host=host, port=port)), echo=log)

    def session(self):
        return Session(self.engine, expire_on_commit=False)

    def create(self, **values):
        return self.create_many([values])[0]

    def create_many(self, rows):
        with self.session() as session, session.begin():
            keys = [Key(**attribute(row)) for row in rows]
            session.add_all(keys)
        return keys

    def find(self, search, sort, limit, offset):
        with self.session() as session:
            return session.scalars(select(Key).where(Key.name.contains(search)).order_by(sort).limit(limit).offset(offset)).all()

    def read(self, key_id):
        with self.session() as session:
            key = session.get(Key, key_id)
            return {column: getattr(key, name) for name, column in names.items()}

    def save(self, key_id, **changes):
        with self.session() as session, session.begin():
            key = session.get(Key, key_id)
            for name, value in changes.items():
                setattr(key, name, value)

    def write(self, key_id, values):
        with self.session() as session, session.begin():
            session.execute(update(Key).where(Key.key_id == key_id).values(attribute(values)), execution_options={'synchronize_session': False})

    def remove(self, key_id):
        with self.session() as session, session.begin():
            session.delete(session.get(Key, key_id))

    def rows(self, sql, values):
        with self.engine.begin() as connection:
            return [dict(row) for row in connection.exec_driver_sql(sql, tuple(values)).mappings()]

    def verify(self, token, scope, cost):
        return self.rows('SELECT * FROM rk_apikeys.verify_key(%s, %s, cost => %s)', [token, scope, cost])[0]

    # doc: sqlalchemy_request
    def enter(self, token):
        with Session(self.engine) as session, session.begin():
            verdict = session.execute(sqlalchemy.text('SELECT * FROM rk_apikeys.authenticate(:token, raise => false)'),
                dict(token=token)).mappings().one()
            return dict(verdict), session.scalars(select(Record.body).order_by(Record.id)).all() if verdict['valid'] else []
    # doc: end

    def demand(self, token):
        with self.session() as session, session.begin():
            session.execute(sqlalchemy.text('SELECT * FROM rk_apikeys.authenticate(:token)'), dict(token=token))

    def close(self):
        self.engine.dispose()


@contextlib.contextmanager
def logging_to(handler):
    logger = logging.getLogger('sqlalchemy.engine')
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    logger.setLevel(logging.WARNING)
