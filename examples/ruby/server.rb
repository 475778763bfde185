# examples/ruby/server.rb: GET and POST /records over HTTP for whoever has an API key, with pg and WEBrick; see ../records.sql.
#
#   gem install pg webrick
#   PGUSER=records_api PGDATABASE=... PORT=8080 ruby server.rb
require 'json'
require 'pg'
require 'webrick'

BODY_MAX = 65_536
ADDR_HEADER = ENV.fetch('CLIENT_ADDR_HEADER', '')
AUTHENTICATE = <<~SQL
  SELECT v.valid, r.status, r.headers, r.body
  FROM rk_apikeys.authenticate($1, $2, rk_apikeys.client_addr($3), raise => false) v,
    rk_apikeys.http_response(CASE WHEN $1 IS NOT NULL THEN v END, $2) r
SQL
TooLong = Class.new(StandardError)

# By the method: the scope, the status, and what a valid key's request does in its transaction.
ROUTES = {
  'GET' => ['records:read', 200, ->(db, _) { db.exec('SELECT body FROM records ORDER BY id').column_values(0) }],
  'POST' => ['records:write', 201, lambda { |db, request|
    db.exec_params('INSERT INTO records (body) VALUES ($1)', [read(request)])
    'added'
  }]
}.freeze

# The body of a request, which may have announced no length.
def read(request)
  body = +''
  request.body do |chunk|
    body << chunk
    raise TooLong if body.bytesize > BODY_MAX
  end
  body
end

# Connections, and places for those that are not made yet.
POOL = Thread::Queue.new([nil] * 8)

# Yields a connection in a transaction. After an error the connection is closed.
def transaction
  db = POOL.pop
  if db&.socket_io&.wait_readable(0) # the server has ended it: else there is nothing to read
    db.close
    db = nil
  end
  db ||= PG.connect # from PGHOST, PGUSER...
  db.exec('BEGIN')
  result = yield db
  kept = db
  result
ensure
  db.close unless kept || db.nil?
  POOL.push(kept)
end

# The status, headers and body for a request.
def serve(request)
  scope, status, action = ROUTES.fetch(request.request_method)
  token = request['Authorization'].to_s[/\Abearer +([ -~]+)\z/i, 1]
  addr = (request[ADDR_HEADER] || request.peeraddr[3])[/\A[ -~]+\z/] # PostgreSQL refuses bytes that are no UTF-8
  transaction do |db|
    valid, *refusal = db.exec_params(AUTHENTICATE, [token, scope, addr]).values[0]
    headers = JSON.parse(refusal[1])
    if valid == 't'
      answer = [status, headers.merge('Content-Type' => 'application/json'), JSON.generate(action.call(db, request))]
    else
      answer = [refusal[0].to_i, headers, refusal[2]]
    end
    db.exec(valid == 't' ? 'COMMIT' : 'ROLLBACK')
    answer
  end
end

def problem(status, title, detail, headers = {})
  [status, { 'Content-Type' => 'application/problem+json', **headers },
   JSON.generate(type: 'about:blank', status: status, title: title, detail: detail)]
end

def respond(request)
  return problem(405, 'Method Not Allowed', 'Only GET and POST are known here.') unless ROUTES.key?(request.request_method)
  return problem(413, 'Content Too Large', 'The body is too long.') if request['Content-Length'].to_i > BODY_MAX

  serve(request)
rescue TooLong
  problem(413, 'Content Too Large', 'The body is too long.')
rescue PG::Error => e
  state = e.result&.error_field(PG::PG_DIAG_SQLSTATE)
  # What PostgreSQL has not reported is an error of the connection.
  if state.nil? || state.start_with?('08', '57P')
    return problem(503, 'Service Unavailable', 'The database cannot be reached now.', 'Retry-After' => '1')
  end

  warn state
  problem(500, 'Internal Server Error', 'The request failed.')
end

# Its own log would show a malformed line of a request, which may hold a token.
server = WEBrick::HTTPServer.new(BindAddress: '127.0.0.1', Port: ENV.fetch('PORT', 8080), AccessLog: [],
                                 Logger: WEBrick::Log.new($stderr, WEBrick::Log::FATAL))
server.mount_proc('/records') do |request, response|
  response.keep_alive = false # else WEBrick reads a refused body
  response.status, headers, response.body = respond(request)
  headers.each { |name, value| response[name] = value }
end
%w[INT TERM].each { |signal| trap(signal) { server.shutdown } }
server.start
