# test/t/040_attacks.pl: neither a connection's options, nor a setting from before the library is loaded, nor a file makes anybody another tenant or a key.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = rk_node('attacks', 'max_parallel_workers_per_gather = 2', 'min_parallel_table_scan_size = 0', 'parallel_setup_cost = 0',
	'parallel_tuple_cost = 0');
$node->safe_psql('postgres', q{
	GRANT rk_apikeys_verifier TO acme;
	CREATE TABLE records AS SELECT tenant, n FROM unnest('{acme,globex}'::text[]) tenant, generate_series(1, 5000) n;
	ANALYZE records;
	ALTER TABLE records ENABLE ROW LEVEL SECURITY;
	CREATE POLICY own ON records USING (tenant = rk_apikeys.current_key_tenant() AND rk_apikeys.has_scope('records:read'));
	GRANT SELECT ON records TO acme;
	CREATE DATABASE acmes OWNER acme;});
my ($victim, $victim_token) = split /\|/,
  sql_as($node, 'globex', q{SELECT key_id, secret FROM rk_apikeys.create_key('victim', scopes => '{*}')});
my ($mine, $token) = split /\|/,
  sql_as($node, 'acme', q{SELECT key_id, secret FROM rk_apikeys.create_key('mine', scopes => '{records:read}')});

# Who a session is, to each function that says so; what it sees; the first statement loads the library.
my $who = q{SELECT rk_apikeys.current_tenant(), coalesce(rk_apikeys.current_key_id(), 'none'),
	coalesce(rk_apikeys.current_key_tenant(), 'none'), rk_apikeys.has_scope('records:read');
	SELECT count(*) FROM records; SELECT count(*) FROM rk_apikeys.keys WHERE tenant = 'globex'};
my $nobody = "acme|none|none|f\n0\n0";

# What acme's psql prints, and its errors' codes (FATAL where the connection is refused); it goes on after an error.
sub try_sql
{
	my ($sql, $database) = @_;
	my ($stdout, $stderr);
	$node->psql($database // 'postgres', $sql, stdout => \$stdout, stderr => \$stderr, on_error_stop => 0,
		extra_params => [ '-U', 'acme', '-v', 'VERBOSITY=verbose' ]);
	return ($stdout, join ' ', $stderr =~ /(?:ERROR: +(?=\w{5}:)|\b(?=FATAL:))(\w{5})/g);
}

# Runs SQL as acme and compares what it says last, and its errors' codes.
sub attack
{
	my ($sql, $expected, $codes, $name) = @_;
	my ($stdout, $errors) = try_sql($sql);
	is("$stdout / $errors", "$expected / $codes", $name);
}

attack($who, $nobody, '', 'a session without a principal is its role, and no key');

# The same attacks without and with preload: at first they set a placeholder, later they are refused.
foreach my $preload (0, 1)
{
	my $mode = $preload ? 'preloaded' : 'not preloaded';
	if ($preload)
	{
		$node->append_conf('postgresql.conf', "shared_preload_libraries = 'rk_apikeys'");
		$node->restart;
	}
	my $refused = $preload ? '42501' : '';

	foreach my $setting ("principal=$victim", 'tenant=globex')
	{
		my ($name, $value) = split /=/, $setting;
		{
			local $ENV{PGOPTIONS} = "-c rk_apikeys.$setting";
			my ($stdout, $errors) = try_sql($who);
			is("$stdout / $errors", $preload ? ' / FATAL' : "$nobody / ", "$mode: $name in the connection's options");
		}
		attack("SET rk_apikeys.$name = '$value'; $who", $nobody, $refused, "$mode: SET $name before the library is loaded");
		attack("SET RK_apikeys.\"$name\" = '$value'; $who", $nobody, $refused, "$mode: SET $name, other case");
		attack("BEGIN; SET LOCAL rk_apikeys.$name = '$value'; $who; COMMIT",
			$preload ? '' : $nobody, $preload ? '42501 25P02 25P02 25P02' : '', "$mode: SET LOCAL $name before");
		attack("SELECT FROM set_config('rk_apikeys.$name', '$value', false) \\g /dev/null\n$who", $nobody, $refused,
			"$mode: set_config of $name before");
		attack("BEGIN; SET rk_apikeys.$name = '$value'; SAVEPOINT s; SET LOCAL rk_apikeys.$name = 'x'; SAVEPOINT t;
				SELECT rk_apikeys.has_scope('x'); ROLLBACK TO s; $who; COMMIT; $who",
			"f\n$nobody\n$nobody", '', "$mode: $name under savepoints before") unless $preload;
		attack("SELECT rk_apikeys.has_scope('x'); SET rk_apikeys.$name = '$value'; $who", "f\n$nobody", '42501', "$mode: SET $name after");
		attack("ALTER ROLE acme SET rk_apikeys.$name = '$value'", '', '42501', "$mode: ALTER ROLE SET $name by the role");
		attack("ALTER ROLE acme IN DATABASE acmes SET rk_apikeys.$name = '$value'", '', '42501', "$mode: the same in a database of its own");
		attack("ALTER DATABASE acmes SET rk_apikeys.$name = '$value'", '', '42501', "$mode: ALTER DATABASE SET $name by its owner");
		attack("CREATE FUNCTION pg_temp.f() RETURNS text LANGUAGE sql SET rk_apikeys.$name = '$value' AS 'SELECT 1'", '', '42501',
			"$mode: $name in a function's SET");
	}

	# What a DBA writes down before the library is loaded is the tenant, and never the principal.
	my ($rc, $stdout, $stderr) = $node->psql('postgres', "ALTER ROLE acme SET rk_apikeys.principal = '$victim'",
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	isnt($rc, 0, "$mode: ALTER ROLE SET principal by a superuser") if $preload;
	attack($who, $nobody, '', "$mode: and the role is still no key");
	attack("SET parallel_leader_participation = off; SELECT rk_apikeys.has_scope('x'); SELECT count(*) FROM records", "f\n0", '',
		"$mode: nor are its parallel workers");
	attack("SET parallel_leader_participation = off; SELECT count(*) FROM records", '0', '',
		"$mode: nor are they where the leader has not loaded it");
	$node->safe_psql('postgres', 'ALTER ROLE acme RESET rk_apikeys.principal') unless $preload;

	# Whoever was granted the setting sets the tenant; the principal neither.
	$node->safe_psql('postgres', 'GRANT SET ON PARAMETER rk_apikeys.tenant, rk_apikeys.principal TO acme');
	attack("SET rk_apikeys.tenant = 'globex'; $who", "globex|none|none|f\n0\n1", '', "$mode: SET tenant, granted: the DBA's will");
	{
		local $ENV{PGOPTIONS} = '-c rk_apikeys.tenant=globex';
		attack($who, "globex|none|none|f\n0\n1", '', "$mode: the same in the options");
	}
	attack("SET rk_apikeys.principal = '$victim'; $who", $nobody, $refused, "$mode: SET principal, granted");
	attack("SELECT rk_apikeys.has_scope('x'); SET rk_apikeys.principal = '$victim'; $who", "f\n$nobody", '42501',
		"$mode: SET principal, granted, after the load");
	attack("ALTER ROLE acme SET rk_apikeys.principal = '$victim'; $who", $nobody, $refused, "$mode: ALTER ROLE SET principal, granted");
	attack($who, $nobody, '', "$mode: and what it wrote down does nothing");
	$node->safe_psql('postgres', 'ALTER ROLE acme RESET ALL; REVOKE SET ON PARAMETER rk_apikeys.tenant, rk_apikeys.principal FROM acme');

	# A file.
	$node->append_conf('postgresql.conf', "rk_apikeys.principal = '$victim'");
	$node->reload;
	attack($who, $nobody, '', "$mode: principal in postgresql.conf, reloaded");
	$node->stop;
	ok($node->start(fail_ok => 1), "$mode: the server starts with it");
	attack($who, $nobody, '', "$mode: principal in postgresql.conf, restarted");
	attack("SET parallel_leader_participation = off; SELECT count(*) FROM records", '0', '', "$mode: its parallel workers");
	attack("SELECT FROM rk_apikeys.authenticate('$token') \\g /dev/null\n$who", $nobody, '', "$mode: no principal without a transaction");
	attack("BEGIN; SELECT FROM rk_apikeys.authenticate('$token') \\g /dev/null\n$who; COMMIT; $who",
		"acme|$mine|acme|t\n5000\n0\n$nobody", '', "$mode: a real one lasts for its transaction");
	$node->adjust_conf('postgresql.conf', 'rk_apikeys.principal', undef);
	$node->reload;
}

# The one session's principal is not the other's, and DISCARD ALL leaves none.
my ($one, $two) = (session($node, 'acme'), session($node, 'acme'));
$one->query_safe("BEGIN; SELECT FROM rk_apikeys.authenticate('$token')");
is($two->query_safe("SELECT coalesce(rk_apikeys.current_key_id(), 'none')"), 'none', 'a principal is of one session');
$one->query_safe('COMMIT; DISCARD ALL');
is($one->query_safe("SELECT coalesce(rk_apikeys.current_key_id(), 'none')"), 'none', 'none after DISCARD ALL');

# A key that another session ends is dead for the next statement, in the same transaction, whatever its isolation; in parallel
# workers too, which have a snapshot from before.
foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	foreach my $leader ('on', 'off')
	{
		my $how = "$level, leader $leader";
		my $short = sql_as($node, 'acme', q{SELECT secret FROM rk_apikeys.create_key('short', scopes => '{records:read}')});
		$one->query_safe("SET parallel_leader_participation = $leader");
		$one->query_safe("BEGIN ISOLATION LEVEL $level; SELECT FROM rk_apikeys.authenticate('$short')");
		is($one->query_safe('SELECT count(*) FROM records'), '5000', "$how: rows while the key lives");
		is($two->query_safe("SELECT rk_apikeys.revoke_token('$short')"), 't', "$how: another session revokes it");
		is($one->query_safe("SELECT count(*), coalesce(rk_apikeys.current_tenant(), 'none') FROM records"), '0|none', "$how: none after");
		$one->query_safe('ROLLBACK');
	}
}
$_->quit foreach $one, $two;

# A token that is refused is not logged, though the log is not masked
$node->append_conf('postgresql.conf', 'rk_apikeys.redact_logs = off');
$node->reload;
$node->safe_psql('postgres', q{ALTER ROLE acme SET log_statement = 'none'});
$node->poll_query_until('postgres', q{SELECT current_setting('rk_apikeys.redact_logs') = 'off'}) or die;
my $unknown = $node->safe_psql('postgres', 'SELECT rk_apikeys.generate_token()');
is((try_sql("SELECT rk_apikeys.authenticate('$unknown')"))[1], '28000', 'a token that is refused');
like(slurp_file($node->logfile), qr/ERROR:  API key is not accepted: unknown/, 'is told in the log');
unlike(slurp_file($node->logfile), qr/\Q$unknown\E/, 'without its statement');
my ($refused_id, $refused_token) = create_key($node, 'refused');
my $from = -s $node->logfile;
is((try_sql("DO \$\$ BEGIN PERFORM rk_apikeys.authenticate('$refused_token', 'x'); END \$\$"))[1], '28000', 'a genuine one, in a DO block');
my $told = slurp_file($node->logfile, $from);
like($told, qr/ERROR:  API key is not accepted: scope_missing\n.*DETAIL:  code=scope_missing key_id=$refused_id\n/, 'the log has the DETAIL');
unlike($told, qr/\Q$refused_token\E|CONTEXT/, 'and neither the statement nor the context');

done_testing();
