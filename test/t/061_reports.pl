# test/t/061_reports.pl: what reports read, as a role that is an auditor and no more: the views over ODBC, each query of the Grafana
# dashboard, and the nightly report by pg_cron.
use strict;
use warnings;

use Cwd qw(abs_path);
use FindBin;
use lib $FindBin::Bin;
use JSON::PP;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $examples = abs_path("$FindBin::Bin/../../examples");
my ($driver) = grep { -e } glob '/usr/lib/*/odbc/psqlodbcw.so';
chomp(my $libdir = `pg_config --pkglibdir`);
my $cron = -e "$libdir/pg_cron.so";
ok($cron, 'pg_cron is installed');
ok($driver && -x '/usr/bin/isql', 'ODBC is installed');

my $node = rk_node('reports', "shared_preload_libraries = 'rk_apikeys" . ($cron ? ', pg_cron' : '') . "'", "listen_addresses = '127.0.0.1'",
	$cron ? ("cron.database_name = 'postgres'", 'cron.use_background_workers = on') : ());
$node->safe_psql('postgres', 'CREATE ROLE audit LOGIN IN ROLE rk_apikeys_auditor');
$node->append_conf('pg_hba.conf', 'host all audit 127.0.0.1/32 trust');
$node->reload;

# Keys of two tenants, one with a quote in its name; used and denied today and yesterday.
my $token = keys_of_every_state($node);
$node->safe_psql('postgres', qq{
	SET rk_apikeys.tenant = \$\$o'neill, "inc"\$\$;
	INSERT INTO rk_apikeys.keys (name, expires_at) VALUES ('ends soon', now() + interval '3 days');
	INSERT INTO rk_apikeys.keys (name) VALUES ('forgotten');
	UPDATE rk_apikeys.api_keys SET created_at = now() - interval '1 year' WHERE name = 'forgotten'});
sql_as($node, 'backend', "SELECT rk_apikeys.verify('$token->{$_}')") foreach qw(active active named disabled revoked revoked garbled);
sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
# So that the view noncompliant_keys has a row, and the view health
sql_as($node, 'boss', q{INSERT INTO rk_apikeys.policies (tenant, require_owner) VALUES ('acme', true)});
$node->safe_psql('postgres', 'GRANT SELECT ON rk_apikeys.stats TO PUBLIC');
$node->safe_psql('postgres', q{INSERT INTO rk_apikeys.key_usage_daily SELECT key_id, day - 1, environment, tenant, uses + 10, denials * 10 FROM rk_apikeys.key_usage_daily});

# --- the nightly report, begun first since its minute has to come --------------------------------------------------------

if ($cron)
{
	$node->safe_psql('postgres', 'CREATE EXTENSION pg_cron');
	PostgreSQL::Test::Utils::system_or_bail('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-v', 'schedule=* * * * *', '-h', $node->host, '-p', $node->port,
		'-d', 'postgres', '-o', '/dev/null', '-f', "$examples/nightly_report.sql");
	is($node->safe_psql('postgres', q{SELECT username, string_agg(roleid::regrole::text, ',') FROM cron.job, pg_auth_members
		WHERE member = username::regrole GROUP BY 1}), 'reporter|rk_apikeys_auditor', 'the report runs as an auditor');
}

$node->safe_psql('postgres', "INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('acme', 'calls', 1000, 'month')");

# --- types --------------------------------------------------------------------------------------------------------------

# What every tool can show. An array, jsonb and an interval come as text where a tool does not know them.
my %plain = map { $_ => 1 } 'text', 'boolean', 'integer', 'bigint', 'date', 'timestamp with time zone', 'jsonb', 'inet';
my %known = map { $_ => 1 } 'scopes text[]', 'allowed_cidrs cidr[]', 'came_as text[]', 'xid xid8', 'limit_id uuid', map { "$_ interval" } 'rate_window', 'expires_in', 'unused_for';
my @columns = split /\n/, $node->safe_psql('postgres', q{SELECT relname || ' ' || attname || ' ' || format_type(atttypid, atttypmod)
	FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0
	WHERE relnamespace = 'rk_apikeys'::regnamespace AND (relkind = 'v' OR relname ~ '^key_') AND relkind IN ('v', 'r') ORDER BY relname, attnum});
cmp_ok(scalar(@columns), '>', 90, 'the views and the tables that reports read have columns');
is(join(', ', grep { my ($relation, $column, $type) = split / /, $_, 3; !$plain{$type} && !$known{"$column $type"} } @columns), '', 'each of a type that tools know');
is(join(', ', grep { /_at (?!timestamp with time zone$)/ } @columns), '', 'a time is a timestamptz');

# --- Grafana ------------------------------------------------------------------------------------------------------------

my $dashboard = decode_json(slurp_file("$examples/grafana/rk_apikeys.json"));
my %place;
foreach my $panel (@{ $dashboard->{panels} })
{
	my ($x, $y, $w, $h) = @{ $panel->{gridPos} }{qw(x y w h)};
	foreach my $at (map { my $row = $_; map { "$_,$row" } $x .. $x + $w - 1 } $y .. $y + $h - 1) { push @{ $place{$at} }, $panel->{title}; }
	push @{ $place{outside} }, $panel->{title} if $x + $w > 24;
}
is_deeply([ grep { $_ eq 'outside' || @{ $place{$_} } > 1 } sort keys %place ], [], 'no panel lies on another');

# A query as Grafana sends it: the macros of its PostgreSQL data source, and the variable as quoted texts.
sub expanded
{
	my ($sql, $from, $to, @tenants) = @_;
	my $list = join ',', map { "'" . s/'/''/gr . "'" } @tenants;
	$sql =~ s/\$__timeFilter\((\w+)\)/$1 BETWEEN '$from' AND '$to'/g;
	$sql =~ s/\$\{tenant:sqlstring\}/$list/g;
	return $sql;
}
# The rows of a query as the auditor, or what psql complains of.
sub asked
{
	my ($sql) = @_;
	my ($status, $out, $error) = $node->psql('postgres', $sql, extra_params => [ '-U', 'audit' ]);
	return $error ne '' ? $error : $out;
}
my ($from, $to) = split /\|/, $node->safe_psql('postgres', q{SET TimeZone = 'UTC'; SELECT to_char(now() - interval '30 days', $$YYYY-MM-DD"T"HH24:MI:SS.US"Z"$$),
	to_char(now() + interval '1 minute', $$YYYY-MM-DD"T"HH24:MI:SS.US"Z"$$)});
my ($variable) = grep { $_->{name} eq 'tenant' } @{ $dashboard->{templating}{list} };
is(asked($variable->{query}), qq{acme\nglobex\no'neill, "inc"}, 'the variable lists the tenants');
my @tenants = split /\n/, asked($variable->{query});
my %answer;
foreach my $panel (@{ $dashboard->{panels} })
{
	my ($title, $target) = ($panel->{title}, $panel->{targets}[0]);
	my $sql = expanded($target->{rawSql}, $from, $to, @tenants);
	unlike($sql, qr/\$(?!\$)/, "$title: every macro is known");
	like($target->{rawSql}, qr/\$__timeFilter/, "$title: of what grows with time it reads the time range") if $sql =~ /key_(activity|events)/;
	$answer{$title} = asked($sql);
	unlike($answer{$title}, qr/ERROR|WARNING/, "$title: the query runs");
	like($answer{$title}, qr/\S/, "$title: and finds something");
	my @types = map { (split /\|/)[1] } split /\n/, asked("$sql\n\\gdesc");
	is_deeply([ grep { !$plain{$_} && $_ ne 'double precision' } @types ], [], "$title: columns are of types that Grafana shows");
	is("@types[0 .. 1] $types[2]", 'timestamp with time zone text bigint', "$title: a time, a name and a value") if $target->{format} eq 'time_series';
	unlike(asked(expanded($target->{rawSql}, $from, $to)), qr/ERROR/, "$title: it runs where there is no tenant");
	is(asked(expanded($target->{rawSql}, '2020-01-01T00:00:00Z', '2020-02-01T00:00:00Z', @tenants)), '', "$title: it keeps to the time range") if $target->{rawSql} =~ /timeFilter/;
}
is_deeply([ sort split /\n/, $answer{'Keys by status'} ], [ sort split /\n/, $node->safe_psql('postgres', 'SELECT status, count(*) FROM rk_apikeys.keys GROUP BY 1') ], 'keys by status are all keys');
is(($answer{'Keys with most denials'} =~ /^\w+\|(.*?)\|acme\|prod\|22\|/m)[0], 'revoked', 'the key that was denied most comes with its denials');
like($answer{'Denials by code'}, qr/^revoked\|2\ndisabled\|1\nmalformed\|1\n/m, 'denials by code are those that were made');
like($answer{'Expiring keys'}, qr/\|ends soon\|o'neill, "inc"\|prod\|active\|[^|]*\|2\d{5}\|/, 'a key that ends is there, with the seconds left');
like($answer{'Stale keys'}, qr/\|forgotten\|o'neill, "inc"\|prod\|\|31\d{6}\|/, 'a key that nobody used is there');
is(join(',', sort map { (split /\|/)[1] } split /\n/, $answer{'Uses per day'}), 'prod,prod,stage,stage', 'uses are by day and environment');
unlike(asked(expanded($dashboard->{panels}[-1]{targets}[0]{rawSql}, $from, $to, 'globex')), qr/acme/, 'a tenant that was chosen is shown alone');

# --- ODBC ---------------------------------------------------------------------------------------------------------------

# What isql prints for a line of input, over a connection without a DSN.
sub isql
{
	my ($line) = @_;
	my $output = '';
	my $conninfo = "DRIVER=$driver;SERVERNAME=127.0.0.1;PORT=" . $node->port . ';DATABASE=postgres;UID=audit;ConnSettings=set+search_path+to+rk_apikeys';
	IPC::Run::run([ 'isql', '-v', '-b', '-d|', '-k', $conninfo ], '<', \"$line\n", '>&', \$output);
	return $output;
}
# SQL types by number: longvarchar, timestamp, date, bigint, integer, varchar.
my %sqltype = (text => -1, uuid => -11, timestamptz => 11, date => 9, int8 => -5, int4 => 4, map { $_ => 12 } 'bool', 'interval', 'jsonb', 'inet', '_text', '_cidr', 'xid8');
SKIP:
{
	skip 'ODBC is missing', 1 unless $driver;
	foreach my $view (split /\n/, $node->safe_psql('postgres', q{SELECT relname FROM pg_class WHERE relnamespace = 'rk_apikeys'::regnamespace
		AND (relkind = 'v' OR relkind = 'r' AND relname ~ '^key_') ORDER BY 1}))
	{
		my @rows = split /\n/, asked("COPY (SELECT * FROM rk_apikeys.$view) TO STDOUT");
		my $read = isql("SELECT * FROM $view");
		my @missing = grep { my ($first) = split /\t/; $first = 1 if $first eq 't'; $read !~ /^\Q$first\E\|/mi } @rows;
		ok(@rows && !@missing && $read !~ /ERROR/, "ODBC reads $view") or diag($read, @missing);
		my @described = map { [ (split /\|/)[ 3 .. 5 ] ] } grep { /^postgres\|/ } split /\n/, isql("help $view");
		is(join(' ', map { $_->[0] } @described), join(' ', map { (split / /)[1] } grep { /^\Q$view\E / } @columns), 'and knows its columns');
		is_deeply([ grep { $_->[1] != ($sqltype{ $_->[2] } // 0) } @described ], [], 'by their types');
	}
	like(isql("SELECT name, last_used_at, use_count FROM keys WHERE name LIKE '%bersicht%'"), qr/^Übersicht – 概要 🔑\|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[.\d]*\|\d+$/m,
		'a name is read as it is, and a time as a time');
	like(isql('SELECT digest FROM api_keys'), qr/42501/, 'and a digest not at all');
}

# --- the night ----------------------------------------------------------------------------------------------------------

SKIP:
{
	skip 'pg_cron is missing', 1 unless $cron;
	$node->poll_query_until('postgres', q{SELECT status = 'succeeded' FROM cron.job_run_details ORDER BY runid LIMIT 1})
	  or diag($node->safe_psql('postgres', 'TABLE cron.job_run_details'));
	is($node->safe_psql('postgres', q{SELECT finding, tenant, name, coalesce(denials::text, '-') FROM reports.latest ORDER BY finding, name}),
		qq{denied|acme|disabled|10\ndenied|acme|revoked|20\nended|acme|revoked|-\nexpires|o'neill, "inc"|ends soon|-\nstale|o'neill, "inc"|forgotten|-},
		'the night reports which keys expire, are stale, were denied the day before, and were presented after their end');
}

done_testing();
