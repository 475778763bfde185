<?php
// test/orm/debian/eloquent.php: Eloquent. bridge.py asks.
require __DIR__ . '/lines.php';
require '/usr/share/php/Illuminate/Database/autoload.php';

use Carbon\CarbonInterval;
use Illuminate\Contracts\Database\Eloquent\CastsAttributes;
use Illuminate\Database\Capsule\Manager as DB;
use Illuminate\Database\Eloquent\Model;

if (($argv[1] ?? '') === 'version') {
    preg_match('/^Version: ([\d.]+)/m', shell_exec('dpkg -s php-illuminate-database'), $found);
    exit($found[1] . "\n");
}

// doc: eloquent
// PDO knows neither arrays nor intervals.
class Texts implements CastsAttributes
{
    public function get($model, $key, $value, $attributes)
    {
        return $value === null ? null : ($value === '{}' ? [] : str_getcsv(trim($value, '{}')));
    }

    public function set($model, $key, $value, $attributes)
    {
        return $value === null ? null : '{' . implode(',', $value) . '}';
    }
}

class Interval implements CastsAttributes
{
    // The connection says SET intervalstyle = iso_8601; behind PgBouncer, the role: ALTER ROLE … SET intervalstyle = iso_8601.
    public function get($model, $key, $value, $attributes)
    {
        return $value === null ? null : CarbonInterval::make(preg_replace('/\.\d+S/', 'S', $value));
    }

    public function set($model, $key, $value, $attributes)
    {
        return $value instanceof CarbonInterval ? $value->spec() : $value;
    }
}

class Key extends Model
{
    protected $table = 'rk_apikeys.orm_keys';
    protected $primaryKey = 'key_id';
    protected $keyType = 'string';
    public $timestamps = false;
    protected $guarded = [];
    protected $dateFormat = 'Y-m-d H:i:s.uP';
    protected $casts = ['scopes' => Texts::class, 'allowed_cidrs' => Texts::class, 'metadata' => 'object', 'rate_window' => Interval::class,
        'expires_in' => Interval::class, 'expires_at' => 'datetime', 'grace_until' => 'datetime', 'revoked_at' => 'datetime',
        'created_at' => 'datetime', 'updated_at' => 'datetime', 'last_used_at' => 'datetime'];

    // Eloquent reads back the primary key only. The transaction still has the secret.
    public static function make(array $values): Key
    {
        return DB::transaction(fn () => Key::create($values)->refresh());
    }
}

class Verdict extends Model
{
    protected $dateFormat = 'Y-m-d H:i:s.uP';
    protected $casts = ['scopes' => Texts::class, 'metadata' => 'object', 'expires_at' => 'datetime', 'limit_resets_at' => 'datetime'];
}

class Record extends Model
{
}
// doc: end

// doc: eloquent_request
function enter(string $token): array
{
    return DB::transaction(function () use ($token) {
        $verdict = Verdict::fromQuery('SELECT * FROM rk_apikeys.authenticate(?, raise => false)', [$token])->first();
        return [$verdict, $verdict->valid ? Record::orderBy('id')->pluck('body') : []];
    });
}
// doc: end

// Every column as the model's cast gives it.
function fields(?Model $row): array
{
    return array_combine($names = array_keys($row->getAttributes()), array_map(fn ($name) => $row->$name, $names));
}

answer([
    'open' => function (array $where) {
        $db = new DB();
        // PgBouncer: no prepared statements
        $db->addConnection(['driver' => 'pgsql', 'host' => $where['host'], 'port' => $where['port'], 'database' => $where['dbname'],
            'username' => $where['user'], 'options' => [PDO::PGSQL_ATTR_DISABLE_PREPARES => true]]);
        $db->setAsGlobal();
        $db->bootEloquent();
        DB::statement('SET intervalstyle = iso_8601');
        if ($where['log'] ?? false) DB::enableQueryLog();
    },
    'create' => fn ($values) => fields(Key::make($values)),
    'create_many' => fn ($list) => DB::transaction(fn () => array_map(fn ($values) => fields(Key::make($values)), $list)),
    'find' => fn ($search, $sort, $limit, $offset) => Key::where('name', 'ilike', "%$search%")->orderBy($sort)->limit($limit)
        ->offset($offset)->get()->map('fields')->all(),
    'read' => fn ($id) => fields(Key::findOrFail($id)),
    'save' => fn ($id, $changes) => Key::findOrFail($id)->update($changes),
    'write' => fn ($id, $values) => Key::whereKey($id)->update((new Key($values))->getAttributes()),
    'remove' => fn ($id) => Key::findOrFail($id)->delete(),
    'rows' => fn ($sql, $values) => rows(DB::connection()->getPdo(), $sql, $values),
    'verify' => fn ($token, $scope, $cost) => fields(
        Verdict::fromQuery('SELECT * FROM rk_apikeys.verify_key(?, ?, cost => ?)', [$token, $scope, $cost])->first()),
    'enter' => function ($token) { [$verdict, $rows] = enter($token); return [fields($verdict), collect($rows)->all()]; },
    'demand' => fn ($token) => DB::transaction(fn () => DB::select('SELECT * FROM rk_apikeys.authenticate(?)', [$token])),
], fn () => json_encode(DB::getQueryLog()));
