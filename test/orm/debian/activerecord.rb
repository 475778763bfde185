# test/orm/debian/activerecord.rb: ActiveRecord. bridge.py asks.
require 'json'
require 'logger'
require 'stringio'
require 'active_record'

if ARGV[0] == 'version'
  puts ActiveRecord.version
  exit
end

# doc: activerecord
class Key < ActiveRecord::Base
  self.table_name = 'rk_apikeys.orm_keys'
  self.primary_key = 'key_id'
  # ActiveRecord 6 reads an interval as text without this.
  attribute :rate_window, :interval
  attribute :expires_in, :interval

  # ActiveRecord reads back the primary key only. The transaction still has the secret.
  def self.make(values)
    transaction { create!(values).reload }
  end

  # One INSERT. insert_all without "!" says ON CONFLICT, which is refused.
  def self.make_many(list)
    NewKey.insert_all!(list, returning: %w[key_id name secret]).to_a
  end
end

# insert_all! looks for the index of a primary key, which a view does not have.
class NewKey < ActiveRecord::Base
  self.table_name = 'rk_apikeys.orm_keys'
end

class Record < ActiveRecord::Base
end
# doc: end

def rows(sql, values)
  values.each { |value| sql = sql.sub('%s') { Key.connection.quote(value) } }
  result = Key.connection.select_all(sql)
  result.cast_values.map { |row| result.columns.zip(result.columns.size == 1 ? [row] : row).to_h }
end

# doc: activerecord_request
def enter(token)
  Record.transaction do
    verdict = rows('SELECT * FROM rk_apikeys.authenticate(%s, raise => false)', [token])[0]
    [verdict, verdict['valid'] ? Record.order(:id).pluck(:body) : []]
  end
end
# doc: end

def told(value)
  case value
  when Time, DateTime, ActiveSupport::TimeWithZone then { '$time' => value.to_time.utc.strftime('%Y-%m-%dT%H:%M:%S.%6N+00:00') }
  when ActiveSupport::Duration then { '$interval' => value.to_f }
  when IPAddr then "#{value}/#{value.prefix}"
  when ActiveRecord::Base then told(value.attributes)
  when Hash then value.transform_values { |v| told(v) }
  when Array then value.map { |v| told(v) }
  else value
  end
end

LOG = StringIO.new
answers = {
  'open' => lambda { |w|
    ActiveRecord::Base.logger = Logger.new(LOG) if w['log']
    # PgBouncer: no prepared statements
    ActiveRecord::Base.establish_connection(adapter: 'postgresql', host: w['host'], port: w['port'], database: w['dbname'],
      username: w['user'], prepared_statements: false)
  },
  'create' => ->(values) { Key.make(values) },
  'create_many' => ->(list) { Key.make_many(list) },
  'find' => ->(search, sort, limit, offset) { Key.where('name ILIKE ?', "%#{search}%").order(sort).limit(limit).offset(offset).to_a },
  'read' => ->(id) { Key.find(id) },
  'save' => ->(id, changes) { Key.find(id).update!(changes) },
  'write' => ->(id, values) { Key.where(key_id: id).update_all(values.transform_values { |v| v.is_a?(Hash) && v['$time'] || v }) },
  'remove' => ->(id) { Key.find(id).destroy! && nil },
  'rows' => method(:rows),
  'verify' => ->(*v) { rows('SELECT * FROM rk_apikeys.verify_key(%s, %s, cost => %s)', v)[0] },
  'enter' => method(:enter),
  'demand' => ->(token) { Record.transaction { rows('SELECT * FROM rk_apikeys.authenticate(%s)', [token]) } }
}
$stdout.sync = true
while (line = $stdin.gets)
  what, *values = JSON.parse(line)
  begin
    value = answers[what].call(*values)
    answer = { value: what == 'open' ? nil : told(value) }
  rescue StandardError => e
    inner = e.cause || e
    state = inner.respond_to?(:result) && inner.result ? inner.result.error_field(PG::Result::PG_DIAG_SQLSTATE) : nil
    object = [e, inner].flat_map { |x| x.instance_variables.map { |v| x.instance_variable_get(v).inspect } }
    object += [e.sql.to_s, e.binds.inspect] if e.respond_to?(:sql)
    answer = { error: e.message, state: state, object: object.join(' ') }
  end
  answer[:log] = LOG.string.dup
  LOG.truncate(0)
  LOG.rewind
  puts answer.to_json
end
