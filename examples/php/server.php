<?php
// examples/php/server.php: GET and POST /records over HTTP for whoever has an API key, with PDO; see ../records.sql.
// php-fpm runs it behind nginx, with php-fpm.conf and nginx.conf; `run` starts both, as any user but root.
//
//   PGUSER=records_api PGDATABASE=... PORT=8080 ./run
declare(strict_types=1);

const BODY_MAX = 65536;
const DOWN = '/^(08|57P|53300|HY000)/'; // SQLSTATEs of a database that takes no requests now; HY000: libpq lost the connection

const AUTHENTICATE = '
    SELECT v.valid, r.status, r.headers, r.body
    FROM rk_apikeys.authenticate(:token, :scope, rk_apikeys.client_addr(:addr), raise => false) v,
      rk_apikeys.http_response(CASE WHEN :token IS NOT NULL THEN v END, :scope) r';

function send(int $status, array $headers, string $body): never
{
    foreach ($headers as $name => $value) {
        header("$name: $value");
    }
    http_response_code($status); // last, because a header WWW-Authenticate sets 401
    echo $body;
    fastcgi_finish_request(); // else php-fpm reads the rest of the body first
    exit;
}

function problem(int $status, string $title, string $detail, array $headers = []): never
{
    $headers['Content-Type'] = 'application/problem+json';
    send($status, $headers, json_encode(['type' => 'about:blank', 'status' => $status, 'title' => $title, 'detail' => $detail]));
}

// What a request with a valid key does in its transaction; returns the status and what to send as JSON.
function act(PDO $db): array
{
    if ($_SERVER['REQUEST_METHOD'] === 'GET') {
        return [200, $db->query('SELECT body FROM records ORDER BY id')->fetchAll(PDO::FETCH_COLUMN)];
    }
    $body = file_get_contents('php://input');
    if (str_contains($body, "\0")) { // PDO would cut it off there
        $db->rollBack();
        problem(400, 'Bad Request', 'The body is not text.');
    }
    $db->prepare('INSERT INTO records (body) VALUES (?)')->execute([$body]);
    return [201, 'added'];
}

// The value of one of the request's headers.
function request_header(string $name): ?string
{
    return $_SERVER['HTTP_' . strtoupper(strtr($name, '-', '_'))] ?? null;
}

$scope = ['GET' => 'records:read', 'POST' => 'records:write'][$_SERVER['REQUEST_METHOD']]
    ?? problem(405, 'Method Not Allowed', 'Only GET and POST are known here.');
if ((int) ($_SERVER['CONTENT_LENGTH'] ?? 0) > BODY_MAX) {
    problem(413, 'Content Too Large', 'The body is too long.');
}
preg_match('/^bearer +([ -~]+)$/iD', request_header('Authorization') ?? '', $found);
$addr = request_header(getenv('CLIENT_ADDR_HEADER') ?: '') ?? $_SERVER['REMOTE_ADDR'];

try {
    // from PGHOST, PGUSER...; a process of php-fpm keeps its connection
    $db = new PDO('pgsql:', options: [PDO::ATTR_PERSISTENT => true]);
    $db->beginTransaction();
    $statement = $db->prepare(AUTHENTICATE);
    $statement->execute(['token' => $found[1] ?? null, 'scope' => $scope, 'addr' => ctype_print($addr) ? $addr : null]);
    $verdict = $statement->fetch(PDO::FETCH_OBJ);
    $headers = json_decode($verdict->headers, true);
    if (!$verdict->valid) {
        $db->rollBack();
        send($verdict->status, $headers, $verdict->body);
    }
    [$status, $answer] = act($db);
    $db->commit();
} catch (PDOException $error) {
    $state = (string) ($error->errorInfo[0] ?? $error->getCode());
    if (preg_match(DOWN, $state)) {
        problem(503, 'Service Unavailable', 'The database cannot be reached now.', ['Retry-After' => '1']);
    }
    file_put_contents('php://stderr', "$state\n");
    problem(500, 'Internal Server Error', 'The request failed.');
}
$headers['Content-Type'] = 'application/json';
send($status, $headers, json_encode($answer, JSON_UNESCAPED_UNICODE | JSON_UNESCAPED_SLASHES | JSON_THROW_ON_ERROR));
