<?php
// test/orm/debian/lines.php: answers bridge.py, for the tools of PHP. A tool's file calls answer() with its answers by what is asked.

error_reporting(E_ALL & ~E_DEPRECATED);
ini_set('display_errors', 'stderr');

// A value as bridge.py reads it.
function told($value)
{
    return match (true) {
        $value instanceof DateTimeInterface => ['$time' => DateTimeImmutable::createFromInterface($value)
            ->setTimezone(new DateTimeZone('UTC'))->format('Y-m-d\TH:i:s.uP')],
        $value instanceof DateInterval => ['$interval' =>
            (new DateTimeImmutable('@0'))->add($value)->getTimestamp()],
        $value instanceof ArrayObject, is_array($value), $value instanceof stdClass => array_map('told', (array) $value) ?: $value,
        default => $value,
    };
}

// The rows of a statement that the checks need, by the column's types.
function rows(PDO $pdo, string $sql, array $values): array
{
    $statement = $pdo->prepare(str_replace('%s', '?', $sql), [PDO::PGSQL_ATTR_DISABLE_PREPARES => true]);
    $statement->execute($values);
    $types = array_map(fn ($i) => $statement->getColumnMeta($i)['native_type'], range(0, $statement->columnCount() - 1));
    return array_map(fn ($row) => array_combine(array_keys($row), array_map(fn ($value, $type) => match (true) {
        $value === null => null,
        $type === 'timestamptz' => new DateTimeImmutable($value),
        $type === 'jsonb' => json_decode($value),
        default => $value,
    }, $row, $types)), $statement->fetchAll(PDO::FETCH_ASSOC));
}

// The texts of an error and of what it refers to.
function texts($value, int $depth = 0): string
{
    return match (true) {
        $depth > 6 => '',
        is_string($value) => $value . "\n",
        is_array($value) => implode('', array_map(fn ($v) => texts($v, $depth + 1), $value)),
        $value instanceof Throwable => texts([$value->getMessage(), array_column($value->getTrace(), 'args'), (array) $value,
            $value->getPrevious()], $depth),
        is_object($value) => texts((array) $value, $depth + 1),
        default => '',
    };
}

function answer(array $answers, callable $log): void
{
    while (($line = fgets(STDIN)) !== false) {
        $values = json_decode($line, true);
        try {
            $answer = ['value' => told($answers[array_shift($values)](...$values))];
        } catch (Throwable $error) {
            for ($inner = $error; $inner && !$inner instanceof PDOException; $inner = $inner->getPrevious());
            $answer = ['error' => $error->getMessage(), 'state' => $inner?->errorInfo[0] ?? null, 'object' => texts($error)];
        }
        fwrite(STDOUT, json_encode($answer + ['log' => $log()], JSON_INVALID_UTF8_SUBSTITUTE) . "\n");
    }
}
