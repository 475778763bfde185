<?php
// test/orm/debian/doctrine.php: Doctrine DBAL. bridge.py asks.
require __DIR__ . '/lines.php';
require '/usr/share/php/Doctrine/DBAL/autoload.php';

use Doctrine\DBAL\Configuration;
use Doctrine\DBAL\Connection;
use Doctrine\DBAL\DriverManager;
use Doctrine\DBAL\Logging\DebugStack;
use Doctrine\DBAL\Platforms\AbstractPlatform;
use Doctrine\DBAL\Types\Type;

if (($argv[1] ?? '') === 'version') {
    preg_match('/^Version: ([\d.]+)/m', shell_exec('dpkg -s php-doctrine-dbal'), $found);
    exit($found[1] . "\n");
}

// doc: doctrine
// DBAL cuts microseconds off, and knows neither arrays nor intervals as PostgreSQL writes them.
abstract class Own extends Type
{
    public function getSQLDeclaration(array $column, AbstractPlatform $platform) { return ''; }
    public function getName() { return static::class; }
}

class Time extends Own
{
    public function convertToPHPValue($value, AbstractPlatform $platform) { return $value ? new DateTimeImmutable($value) : null; }
    public function convertToDatabaseValue($value, AbstractPlatform $platform)
    {
        return $value instanceof DateTimeInterface ? $value->format('Y-m-d H:i:s.uP') : $value;
    }
}

class Texts extends Own
{
    public function convertToPHPValue($value, AbstractPlatform $platform)
    {
        return $value === null ? null : ($value === '{}' ? [] : str_getcsv(trim($value, '{}')));
    }
    public function convertToDatabaseValue($value, AbstractPlatform $platform) { return $value === null ? null : '{' . implode(',', $value) . '}'; }
}

class Interval extends Own
{
    // The connection says SET intervalstyle = iso_8601; behind PgBouncer, the role: ALTER ROLE … SET intervalstyle = iso_8601.
    public function convertToPHPValue($value, AbstractPlatform $platform)
    {
        return $value === null ? null : new DateInterval(preg_replace('/\.\d+S/', 'S', $value));
    }
}

const TYPES = ['scopes' => Texts::class, 'allowed_cidrs' => Texts::class, 'metadata' => 'json', 'enabled' => 'boolean',
    'rate_window' => Interval::class, 'expires_in' => Interval::class, 'expires_at' => Time::class, 'grace_until' => Time::class,
    'revoked_at' => Time::class, 'created_at' => Time::class, 'updated_at' => Time::class, 'last_used_at' => Time::class,
    'limit_resets_at' => Time::class];
foreach ([Time::class, Texts::class, Interval::class] as $type) Type::addType($type, $type);

class Keys
{
    public function __construct(private Connection $db) {}

    // Rows with every column as its type.
    public function all(string $sql, array $values = [], array $types = []): array
    {
        return array_map(function ($row) {
            foreach ($row as $name => &$value) $value = $this->db->convertToPHPValue($value, TYPES[$name] ?? 'text');
            return $row;
        }, $this->db->fetchAllAssociative($sql, $values, $types));
    }

    // One statement for all objects, which have the same columns. DBAL's insert() has no RETURNING.
    public function create(array $objects): array
    {
        $names = array_keys($objects[0]);
        return $this->all('INSERT INTO rk_apikeys.orm_keys (' . implode(', ', $names) . ') VALUES '
            . implode(', ', array_fill(0, count($objects), '(' . implode(', ', array_fill(0, count($names), '?')) . ')'))
            . ' RETURNING *', array_merge(...array_map('array_values', $objects)),
            array_merge(...array_fill(0, count($objects), array_map(fn ($name) => TYPES[$name] ?? 'text', $names))));
    }

    public function find(string $search, string $sort, int $limit, int $offset): array
    {
        $query = $this->db->createQueryBuilder()->select('*')->from('rk_apikeys.orm_keys')->where('name ILIKE ?')->orderBy($sort)
            ->setMaxResults($limit)->setFirstResult($offset);
        return $this->all($query->getSQL(), ["%$search%"]);
    }

    public function read(string $id): array { return $this->all('SELECT * FROM rk_apikeys.orm_keys WHERE key_id = ?', [$id])[0]; }
    public function write(string $id, array $values) { $this->db->update('rk_apikeys.orm_keys', $values, ['key_id' => $id], TYPES); }
    public function remove(string $id) { $this->db->delete('rk_apikeys.orm_keys', ['key_id' => $id]); }
}
// doc: end

// doc: doctrine_request
function enter(Connection $db, string $token): array
{
    return $db->transactional(function () use ($db, $token) {
        [$verdict] = (new Keys($db))->all('SELECT * FROM rk_apikeys.authenticate(?, raise => false)', [$token]);
        return [$verdict, $verdict['valid'] ? $db->fetchFirstColumn('SELECT body FROM records ORDER BY id') : []];
    });
}
// doc: end

$db = $keys = $log = null;
answer([
    'open' => function (array $where) use (&$db, &$keys, &$log) {
        $log = ($where['log'] ?? false) ? new DebugStack() : null;
        $settings = new Configuration();
        $settings->setSQLLogger($log);
        // PgBouncer: no prepared statements
        $db = DriverManager::getConnection(['driver' => 'pdo_pgsql', 'host' => $where['host'], 'port' => $where['port'],
            'dbname' => $where['dbname'], 'user' => $where['user'],
            'driverOptions' => [PDO::PGSQL_ATTR_DISABLE_PREPARES => true]], $settings);
        $db->executeStatement('SET intervalstyle = iso_8601');
        $keys = new Keys($db);
    },
    'create' => function ($values) use (&$keys) { return $keys->create([$values])[0]; },
    'create_many' => function ($list) use (&$keys) { return $keys->create($list); },
    'find' => function (...$how) use (&$keys) { return $keys->find(...$how); },
    'read' => function ($id) use (&$keys) { return $keys->read($id); },
    'save' => function ($id, $changes) use (&$keys) { $keys->write($id, $changes); },
    'write' => function ($id, $values) use (&$keys) { $keys->write($id, $values); },
    'remove' => function ($id) use (&$keys) { $keys->remove($id); },
    'rows' => function ($sql, $values) use (&$db) { return rows($db->getNativeConnection(), $sql, $values); },
    'verify' => function (...$values) use (&$keys) { return $keys->all('SELECT * FROM rk_apikeys.verify_key(?, ?, cost => ?)', $values)[0]; },
    'enter' => function ($token) use (&$db) { return enter($db, $token); },
    'demand' => function ($token) use (&$db) {
        $db->transactional(fn () => $db->fetchAllAssociative('SELECT * FROM rk_apikeys.authenticate(?)', [$token]));
    },
], function () use (&$log) { return json_encode($log?->queries ?? []); });
