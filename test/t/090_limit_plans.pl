# test/t/090_limit_plans.pl: the five plans of doc/limits.md on one server: what is taken, what is refused and with which words, and what a
# change of plan, a reset, a rotation and a transaction that fails do.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = rk_node('plans', PRELOAD);
my $session = session($node, 'backend');

# A limit of acme's, or of another tenant's: its id.
sub limit
{
	my ($name, $columns, $values, $tenant) = @_;
	$tenant //= 'acme';
	return sql_as($node, 'boss', "INSERT INTO rk_apikeys.limits (tenant, name, $columns) VALUES ('$tenant', '$name', $values) RETURNING limit_id");
}

# A verdict on a token: its code, and of the limit the name, the units and what remains.
sub ask
{
	my ($token, $more, $in) = @_;
	$more = $more ? ", $more" : '';
	return ($in // $session)->query_safe("SELECT concat_ws(' ', code, limit_name, limit_units, limit_remaining) FROM rk_apikeys.verify_key('$token'$more)");
}

# The error of a call of verify_key.
sub refused
{
	my ($token, $more) = @_;
	$node->psql('postgres', "\\set VERBOSITY verbose\nSELECT rk_apikeys.verify_key('$token', $more)", stderr => \my $error, extra_params => [ '-U', 'backend' ]);
	return $error;
}

# What limit_status says of a limit: used and remaining; per family, if the limit is per key.
sub status
{
	my ($name, $role, $family) = @_;
	my $where = $family ? " AND family = '$family'" : '';
	return sql_as($node, $role // 'acme', "SELECT used || ' ' || remaining FROM rk_apikeys.limit_status WHERE name = '$name'$where");
}

# The response of an HTTP server: its status, Retry-After and the two fields of the IETF's draft.
sub response
{
	my ($token, $more) = @_;
	return $session->query_safe("SELECT r.status, r.headers->>'Retry-After', r.headers->>'RateLimit', r.headers->>'RateLimit-Policy', r.body->>'code'
		FROM rk_apikeys.verify_key('$token'" . ($more ? ", $more" : '') . ") v, rk_apikeys.http_response(v) r");
}

sub end_of_plan
{
	sql_as($node, 'boss', 'DELETE FROM rk_apikeys.limits');
	is(sql_as($node, 'acme', "SELECT count(*) FROM rk_apikeys.limit_status WHERE name <> 'rate_limit'"), '0', "$_[0]: without its rows the plan is over");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM rk_apikeys.limit_usage'), '0', "$_[0]: and nothing is left of its use");
}

my ($id, $token) = create_key($node, 'first');
my ($second_id, $second) = create_key($node, 'second');
my (undef, $foreign) = create_key($node, 'foreign', undef, 'globex');
is(ask($token), 'valid', 'without limits a verdict names none');

# --- a: 1,000 requests a minute and 100,000 a month for the customer ------------------------------------------------------

# A minute would give units back while the test runs: a month does not.
my $per_minute = limit('per_minute', 'units, rate_window', "1000, '30 days'");
my $monthly = limit('monthly', 'units, period', "100000, 'month'");
is(ask($token), 'valid per_minute 1000 999', 'a: the limit with the fewest units left is told');
is(ask($second, 'cost => 900'), 'valid per_minute 1000 99', 'a: all keys of the customer share');
is(ask($foreign), 'valid', "a: another customer's do not");
is(ask($token, 'cost => 200'), 'rate_limited per_minute 1000 99', 'a: 200 are too many');
is(status('monthly'), '901 99099', 'a: and the refusal has taken nothing from the month');
like(response($token, 'cost => 200'), qr/^429\|(26[012]\d\d\d)\|"per_minute";r=99;t=\1\|"per_minute";q=1000\|rate_limited$/, 'a: the client learns when to come back');
is(sql_as($node, 'boss', "UPDATE rk_apikeys.limits SET units = 2000 WHERE name = 'per_minute' RETURNING units"), '2000', 'a: the customer buys more');
is(ask($token, 'cost => 99'), 'valid per_minute 2000 1000', 'a: which counts at once');
is(sql_as($node, 'boss', "UPDATE rk_apikeys.limits SET units = 1010 WHERE name = 'monthly' RETURNING units"), '1010', 'a: and less of the month');
is(ask($token, 'cost => 11'), 'quota_exceeded monthly 1010 10', 'a: what was used stays used');
is(ask($token, 'cost => 10'), 'valid monthly 1010 0', 'a: the rest can be used');
is(status('per_minute') =~ s/ .*//r, '1010', 'a: and the refusal by the quota has given the rate its units back');
is($session->query_safe("SELECT v.limit_resets_at = (date_trunc('month', clock_timestamp() AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC',
		abs(v.retry_after_ms - least(2147483647, 1000 * extract(epoch FROM v.limit_resets_at - clock_timestamp()))) < 60000
	FROM rk_apikeys.verify_key('$token') v"), 't|t', 'a: a used-up month says when it ends');
like(response($token), qr/^429\|(\d+)\|"monthly";r=0;t=\1\|"monthly";q=1010\|quota_exceeded$/, 'a: so does the response');
is(sql_as($node, 'boss', "UPDATE rk_apikeys.limits SET units = 500 WHERE name = 'monthly' RETURNING units"), '500', 'a: below what was used');
is(ask($token), 'quota_exceeded monthly 500 0', 'a: nothing remains');
my ($rotated) = split /\|/, sql_as($node, 'acme', "SELECT secret FROM rk_apikeys.rotate_key('$id', '1 day')");
is(ask($rotated), 'quota_exceeded monthly 500 0', 'a: a rotation brings nothing');
is(sql_as($node, 'boss', "BEGIN; SELECT rk_apikeys.reset_limit('$monthly'); ROLLBACK"), 't', 'a: a reset that is rolled back');
is(ask($token), 'quota_exceeded monthly 500 0', 'a: is none');
is(sql_as($node, 'boss', "SELECT rk_apikeys.reset_limit('$monthly')"), 't', 'a: a reset as goodwill');
is(ask($token), 'valid monthly 500 499', 'a: and the month begins anew');
is(sql_as($node, 'boss', "SELECT rk_apikeys.reset_limit('$per_minute')"), 't', 'a: of a rate too');
is(ask($token), 'valid monthly 500 498', 'a: which is taken');
is(status('per_minute') =~ s/ .*//r, '1', 'a: from the begin');
foreach my $role ('acme', 'backend')
{
	isnt($node->psql('postgres', "SELECT rk_apikeys.reset_limit('$monthly')", extra_params => [ '-U', $role ], stderr => \my $error), 0, "a: $role resets nothing");
	like($error, qr/permission denied/, 'a: for want of a right');
	isnt($node->psql('postgres', 'UPDATE rk_apikeys.limits SET units = 1000000', extra_params => [ '-U', $role ], stderr => \$error), 0, "a: nor does $role change a limit");
	like($error, qr/permission denied/, 'a: for the same reason');
}
is($node->safe_psql('postgres', "SELECT count(*) FROM rk_apikeys.key_events WHERE event = 'limit_changed'"), '5', 'a: each change and each reset is an event');
end_of_plan('a');

# --- b: 10 exports an hour, which only exports take ----------------------------------------------------------------------

limit('exports', 'units, rate_window, always', "10, '1 hour', false");
is(ask($token), 'valid', 'b: a request that is no export takes nothing');
is(ask($token, "limits => '{exports}'"), 'valid exports 10 9', 'b: an export does');
is(ask($second, "limits => '{exports}', cost => 4"), 'valid exports 10 5', 'b: a large one takes more');
is(ask($token, "limits => '{exports}', cost => 6"), 'rate_limited exports 10 5', 'b: a larger one is refused');
is(ask($token, 'cost => 1000000'), 'valid', 'b: where no limit binds, any cost will do');
is(ask($foreign, "limits => '{exports}'"), 'valid', 'b: another customer has no such limit');
like(refused($token, "limits => '{export}'"), qr/ERROR:  22023: limit "export" does not exist/, 'b: a wrong name is an error');
like(refused($token, "limits => '{exports}', cost => 11"), qr/ERROR:  22023: .*exports/, 'b: so is a cost that never can be, and it names the limit');
like(refused($token, "limits => '{NULL}'"), qr/ERROR:  22023/, 'b: and no name');
limit('exports', 'environment, units, period, always', "'prod', 8, 'day', false");
is(ask($token, "limits => '{exports}', cost => 5"), 'valid exports 10 0', 'b: a second row of the name counts too, and the first has less left');
is(ask($token, "limits => '{exports}'"), 'rate_limited exports 10 0', 'b: a rate refuses before a quota does');
end_of_plan('b');
like(refused($token, "limits => '{exports}'"), qr/ERROR:  22023: limit "exports" does not exist/, 'b: whoever names a limit whose last row is gone is told');

# --- c: this key 5 a second, and each key 20 a day -----------------------------------------------------------------------

limit('per_key_daily', 'per_key, units, period', "true, 20, 'day'");
limit('slow_key', 'family, units, rate_window', "'$second_id', 5, '1 hour'");
is(ask($token, 'cost => 15'), 'valid per_key_daily 20 5', 'c: each key');
is(ask($second, 'cost => 3'), 'valid slow_key 5 2', 'c: has its own units');
is(ask($second, 'cost => 3'), 'rate_limited slow_key 5 2', 'c: and this one its pace');
is(ask($token, 'cost => 6'), 'quota_exceeded per_key_daily 20 5', 'c: the first is near its end');
is(ask($rotated), 'valid per_key_daily 20 4', 'c: its successor has what it had left');
is(sql_as($node, 'acme', "SELECT string_agg(concat_ws(' ', (SELECT name FROM rk_apikeys.keys k WHERE k.key_id = l.family), used, remaining), ', ' ORDER BY used DESC)
	FROM rk_apikeys.limit_status l WHERE name = 'per_key_daily'"), 'first 16 4, second 3 17', 'c: limit_status has a row for each key and its successors');
is(sql_as($node, 'boss', "SELECT rk_apikeys.reset_limit(family => '$id')"), 't', 'c: one key begins anew');
is(join(', ', status('per_key_daily', undef, $id), status('per_key_daily', undef, $second_id)), '0 20, 3 17', 'c: and no other');
my ($own_id, $own) = create_key($node, 'own', "rate_limit => 3, rate_window => '1 hour'");
is(ask($own, 'cost => 3'), 'valid rate_limit 3 0', "c: a key's own limit has its name");
my (undef, $heir) = split /\|/, sql_as($node, 'acme', "SELECT key_id, secret FROM rk_apikeys.rotate_key('$own_id', '1 hour')");
is(ask($heir), 'rate_limited rate_limit 3 0', 'c: of which a rotation gives no fresh one');
is(status('rate_limit', undef, $own_id), '3 0', 'c: limit_status has it too');
is(sql_as($node, 'boss', "SELECT rk_apikeys.reset_limit(family => '$own_id')"), 't', 'c: a reset does');
is(ask($heir), 'valid rate_limit 3 2', 'c: give one');
end_of_plan('c');

# --- d: prepaid credits, charged with the work ---------------------------------------------------------------------------

my $credits = limit('credits', 'units, period', "100, 'total'");
$node->safe_psql('postgres', 'CREATE TABLE work (n int); GRANT ALL ON work TO backend');
my $worker = session($node, 'backend');
sub work
{
	my ($cost) = @_;
	return ask($token, "cost => $cost, charge => 'commit'", $worker);
}
$worker->query_safe('BEGIN');
is(work(30), 'valid credits 100 70', 'd: a job reserves');
is(ask($second, 'cost => 71'), 'quota_exceeded credits 100 70', 'd: what is reserved is nobody else\'s');
$worker->query_safe('INSERT INTO work VALUES (1); COMMIT');
is(status('credits'), '30 70', 'd: COMMIT settles');
$worker->query_safe('BEGIN');
is(work(30), 'valid credits 100 40', 'd: another job');
$worker->query_safe('INSERT INTO work VALUES (2); ROLLBACK');
is(status('credits'), '30 70', 'd: fails, and costs nothing');
$worker->query_safe('BEGIN');
is(work(10), 'valid credits 100 60', 'd: a job of parts');
$worker->query_safe('SAVEPOINT part');
is(work(50), 'valid credits 100 10', 'd: of which one');
$worker->query_safe('ROLLBACK TO part');
is(work(20), 'valid credits 100 40', 'd: fails');
$worker->query_safe('COMMIT');
is(status('credits'), '60 40', 'd: costs what was done');
{
	my $lost = session($node, 'backend');
	$lost->query_safe('BEGIN');
	is(ask($token, "cost => 40, charge => 'commit'", $lost), 'valid credits 100 0', 'd: a job whose session');
	my $pid = $lost->query_safe('SELECT pg_backend_pid()');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid") or die 'it stays';
	eval { $lost->quit };
}
is(status('credits'), '60 40', 'd: is lost, costs nothing');
is(ask($second, 'cost => 40'), 'valid credits 100 0', 'd: what is not charged at COMMIT is charged at once');
is(response($token), '429||"credits";r=0|"credits";q=100|quota_exceeded', 'd: used-up credits come back at no time');
is($session->query_safe("SELECT retry_after_ms IS NULL AND limit_resets_at IS NULL FROM rk_apikeys.verify_key('$token')"), 't', 'd: which the verdict says');
sql_as($node, 'boss', "UPDATE rk_apikeys.limits SET units = units + 50 WHERE limit_id = '$credits'");
is(ask($token), 'valid credits 150 49', 'd: 50 more are there at once');
is($node->safe_psql('postgres', "SELECT rk_apikeys.flush_usage() >= 0; SELECT units, period_start FROM rk_apikeys.limit_usage WHERE limit_id = '$credits'") =~ s/^t\n//r, '101|-infinity', 'd: the bill is in limit_usage');
sql_as($node, 'boss', "SELECT rk_apikeys.reset_limit('$credits')");
is(ask($token), 'valid credits 150 149', 'd: a reset makes it a new purse');
like(refused($token, "charge => 'later'"), qr/ERROR:  22023/, 'd: there is no other time to charge');
$worker->quit;
end_of_plan('d');

# --- e: a free plan, small for development; and a person's own quota -----------------------------------------------------

limit('dev', 'environment, units, period', "'dev', 5, 'day'");
limit('prod', 'environment, units, period', "'prod', 50, 'month'");
limit('personal', 'owner, units, period', "'ann', 8, 'week'");
my (undef, $dev) = create_key($node, 'dev', "environment => 'dev'");
my $anns = sql_as($node, 'acme', "INSERT INTO rk_apikeys.keys (name, owner) VALUES ('ann''s', 'ann') RETURNING secret");
my $anns_dev = sql_as($node, 'acme', "INSERT INTO rk_apikeys.keys (name, owner, environment) VALUES ('ann''s', 'ann', 'dev') RETURNING secret");
is(ask($dev, 'cost => 3'), 'valid dev 5 2', 'e: development has little');
is(ask($token, 'cost => 20'), 'valid prod 50 30', 'e: production has more');
is(ask($anns, 'cost => 5'), 'valid personal 8 3', 'e: ann has her own, beside it');
is(status('prod'), '25 25', 'e: and takes from production too');
is(ask($anns_dev, 'cost => 3'), 'quota_exceeded dev 5 2', 'e: all that bind must pass');
is(status('personal'), '5 3', 'e: the others have given back');
is(ask($anns_dev, 'cost => 2'), 'valid dev 5 0', 'e: in both environments');
is(ask($anns, 'cost => 2'), 'quota_exceeded personal 8 1', 'e: she has one personal quota');
is(sql_as($node, 'globex', 'SELECT count(*) FROM rk_apikeys.limit_status'), '0', "e: another customer sees none of it");
$node->safe_psql('postgres', "CREATE ROLE ann LOGIN IN ROLE rk_apikeys_member; GRANT SET ON PARAMETER rk_apikeys.end_user, rk_apikeys.tenant TO ann");
is(sql_as($node, 'ann', "SET rk_apikeys.tenant = 'acme'; SET rk_apikeys.end_user = 'ann'; SELECT string_agg(name || ' ' || remaining, ', ' ORDER BY name) FROM rk_apikeys.limit_status"),
	'dev 0, personal 1, prod 25', 'e: a member sees what binds its keys');
is(sql_as($node, 'ann', "SET rk_apikeys.tenant = 'acme'; SET rk_apikeys.end_user = 'bob'; SELECT count(*) FROM rk_apikeys.limit_status"), '0', 'e: and one without keys sees none');
sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET owner = 'bob' WHERE owner = 'ann' AND environment = 'prod'");
is(ask($anns, 'cost => 2'), 'valid prod 50 23', "e: a key that gets another owner leaves ann's quota alone from then on");
end_of_plan('e');

# --- all plans, changed at once ------------------------------------------------------------------------------------------

foreach my $tenant ('acme', 'globex')
{
	limit('monthly', 'units, period', "10, 'month'", $tenant);
}
is(ask($token, 'cost => 10'), 'valid monthly 10 0', 'ten of ten');
is(ask($foreign, 'cost => 4'), 'valid monthly 10 6', 'and four of another customer');
sql_as($node, 'boss', "UPDATE rk_apikeys.limits SET units = 1000 WHERE name = 'monthly'");
is(join(', ', ask($token), ask($foreign)), 'valid monthly 1000 989, valid monthly 1000 995', 'one UPDATE raises all, and each keeps what it has used');
sql_as($node, 'boss', "UPDATE rk_apikeys.limits SET units = 11 WHERE name = 'monthly'");
is(join(', ', ask($token), ask($foreign)), 'quota_exceeded monthly 11 0, valid monthly 11 5', 'or lowers them');
sql_as($node, 'boss', "UPDATE rk_apikeys.limits SET period = NULL, rate_window = '1 hour' WHERE tenant = 'globex'");
like(ask($foreign), qr/^valid monthly 11 \d+$/, 'a quota may become a rate');

$session->quit;
is_deeply([ grep { !/administrator command/ } logged($node, qr/(PANIC|TRAP|FATAL):/) ], [], 'nothing crashed');
done_testing();
