# test/t/005_log_redacted.pl: a token in a statement, a parameter or an error never reaches the server log, in any of its formats.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Utils;
use RkApikeys;
use Test::More;

# pgaudit is a package of its own; without it the rest is tested all the same.
chomp(my $libdir = `pg_config --pkglibdir`);
my $pgaudit = -e "$libdir/pgaudit.so";
ok($pgaudit, 'pgaudit is installed');

my $node = rk_node('main', "shared_preload_libraries = 'rk_apikeys, auto_explain, pg_stat_statements" . ($pgaudit ? ', pgaudit' : '') . "'",
	$pgaudit ? ("pgaudit.log = 'all'", 'pgaudit.log_parameter = on', 'pgaudit.log_catalog = on', 'pgaudit.log_relation = on') : (),
	'logging_collector = on', "log_destination = 'stderr,csvlog,jsonlog'", "log_directory = 'logs'", "log_filename = 'server.log'",
	'log_statement = all', 'log_min_duration_statement = 0', 'log_parameter_max_length = -1',
	'log_parameter_max_length_on_error = -1', 'log_lock_waits = on', 'deadlock_timeout = 100ms', 'log_error_verbosity = verbose',
	'auto_explain.log_min_duration = 0', 'auto_explain.log_parameter_max_length = -1', 'auto_explain.log_nested_statements = on',
	'auto_explain.log_analyze = on', 'log_autovacuum_min_duration = -1', 'log_line_prefix = \'%m [%p] %u %a \'',
	'debug_print_parse = off', 'log_min_messages = info');

my %token = token_of($node, 'acme', q{SELECT 'it', secret FROM rk_apikeys.create_key('it')});
my $token = $token{it};
# 20 digits of its secret: enough to know it by where it was cut at its end, as names are, or in front.
my $secret = join '|', map { substr($token, -49 + $_, 20) } 0 .. 29;
# Its secret as somebody has mistyped it, and as a text was cut.
my $other = 'rk_prod_AAAAAAAAAAAA_BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBCCCCCC';
$node->safe_psql('postgres', q{
	CREATE TABLE t (id int PRIMARY KEY, v text CHECK (v <> 'never'));
	INSERT INTO t VALUES (1, 'a'), (2, 'b');
	GRANT ALL ON t TO backend;
	CREATE EXTENSION pg_stat_statements});

# Each as the backend's psql would send it; most of them fail, on purpose.
my @statements = (
	"SELECT rk_apikeys.verify('$token')",
	"SELECT code FROM rk_apikeys.verify_key('$token', client_addr => '10.0.0.1')",
	"SELECT '$token'::int",
	"SELEC verify('$token')",
	"SELECT no_such_column FROM t WHERE v = '$token'",
	"SELECT 1/0, '$token'",
	"PREPARE p AS SELECT rk_apikeys.verify(\$1); EXECUTE p('$token')",
	"PREPARE p2 (int) AS SELECT 1; EXECUTE p2('$token')",
	"DO \$\$ BEGIN PERFORM rk_apikeys.verify('$token'); RAISE EXCEPTION 'failed with %', '$token' USING DETAIL = '$token', HINT = '$token'; END \$\$",
	"DO \$\$ BEGIN RAISE WARNING 'saw %', '$token'; END \$\$",
	"DO \$\$ BEGIN EXECUTE 'SELECT nothing(''$token'')'; END \$\$",
	"BEGIN; SELECT rk_apikeys.authenticate('$token'); COMMIT",
	"SELECT rk_apikeys.authenticate('$other')",
	"INSERT INTO t VALUES (1, '$token')",
	"COPY (SELECT '$token') TO STDOUT",
	"COPY t FROM STDIN;\n3\t$token\tand more\n\\.\n",
	"SET application_name = '$token'",
	"SELECT set_config('work_mem', '$token', false)",
	"SELECT '$other', left('$token', -10), '" . substr($token, 0, 50) . "'",
	"EXPLAIN ANALYZE SELECT * FROM t WHERE v = '$token'",
	"SET statement_timeout = 50; SELECT '$token', pg_sleep(10)",
	"SELECT rk_apikeys.create_key('x', environment => '$token')",
	"-- $token\nSELECT 1; SELECT '$token'",
	"SELECT \$1 \\bind '$token' \\g",
	# Errors that show what stands before them, and no more.
	(map { ("SELECT '{\"token\": \"$token\"$_'::jsonb", "SELECT xmlparse(CONTENT '<a><token>$token</token>$_</b>')") } ']', map { ' ' x $_ . ']' } 1 .. 30),
	"SELECT '{\"token\": $token]'::json",
	"DO \$\$ DECLARE c text; BEGIN PERFORM '{\"token\": \"$token\"]'::json; EXCEPTION WHEN OTHERS THEN GET STACKED DIAGNOSTICS c = PG_EXCEPTION_CONTEXT; RAISE WARNING '%', c; END \$\$");
$node->psql('postgres', $_, extra_params => [ '-U', 'backend' ]) foreach @statements;

# A search for a key by its token, as its manager.
$node->psql('postgres', $_, extra_params => [ '-U', 'acme' ]) foreach "SELECT name FROM rk_apikeys.list_keys('$token')",
  "SELECT name FROM rk_apikeys.list_keys(\$1, sort_by => 'name') \\bind '$token' \\g", "SELECT name FROM rk_apikeys.list_keys('$token', sort_by => 'x')",
  "SELECT rk_apikeys._searched_key_id('$token')";

# Parameters of the extended protocol, and one that fails there.
my $pgbench = "\\set one 1\nSELECT rk_apikeys.verify(:token);\nSELECT CAST(:token AS int);\n";
my $file = $node->basedir . '/bench.sql';
append_to_file($file, $pgbench);
$node->command_checks_all(
	[ 'pgbench', '-n', '-M', $_, '-t', '1', '-U', 'backend', '-D', "token=$token", '-f', $file, 'postgres' ],
	2, [qr/./], [qr/invalid input syntax/], "pgbench -M $_ fails on the cast") foreach qw(extended prepared);

# A lock wait and a deadlock, whose reports quote the statements of others.
my ($one, $two) = map { $node->background_psql('postgres', on_error_stop => 0, extra_params => [ '-U', 'backend' ]) } 1 .. 2;
$one->query_safe("BEGIN; UPDATE t SET v = '$token' WHERE id = 1");
$two->query_safe("BEGIN; UPDATE t SET v = '$token' WHERE id = 2");
$one->query_until(qr/sent/, "\\echo sent\nUPDATE t SET v = 'x$token' WHERE id = 2;\n");
$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'}) or die;
$two->query("UPDATE t SET v = 'y$token' WHERE id = 1");
$node->poll_query_until('postgres', q{SELECT pg_read_file('logs/server.log') ~ 'deadlock detected'}) or die 'no deadlock';
eval { $_->quit } foreach $one, $two;

# What others see of a session while its statement sleeps: in the executor, sent by the simple and by the extended protocol; earlier,
# while it is planned; in a utility that runs no query. Nothing is logged of it: that would mask it too.
$node->safe_psql('postgres', q{CREATE FUNCTION nap(float8) RETURNS void IMMUTABLE LANGUAGE internal AS 'pg_sleep';
	CREATE FUNCTION doze(float8) RETURNS int IMMUTABLE PARALLEL SAFE LANGUAGE internal AS 'pg_sleep';
	ALTER TABLE t OWNER TO backend; GRANT CREATE ON SCHEMA public TO backend;
	ALTER ROLE backend SET log_statement = none; ALTER ROLE backend SET log_min_duration_statement = -1;
	ALTER ROLE backend SET auto_explain.log_min_duration = -1});
$node->safe_psql('postgres', q{ALTER ROLE backend SET pgaudit.log = none}) if $pgaudit;
foreach (
	[ 'simple', "SELECT '$token', pg_sleep(600);" ],
	[ 'extended', "SELECT '$token', pg_sleep(600);" ],
	[ 'prepared', "SELECT '$token', pg_sleep(600);" ],
	[ 'simple', "SELECT '$token', nap(600);" ],
	[ 'extended', "COPY (SELECT '$token', pg_sleep(600)) TO STDOUT;" ],
	[ 'extended', "CREATE INDEX ON t (doze(id * 600)) WHERE v <> '$token';" ])
{
	my ($mode, $statement) = @$_;
	my $script = $node->basedir . '/nap.sql';
	unlink $script;
	append_to_file($script, "$statement\n");
	my $nap = IPC::Run::start([ 'pgbench', '-n', '-h', $node->host, '-p', $node->port, '-M', $mode, '-t', '1', '-U', 'backend', '-f', $script, 'postgres' ], '>', \my $out, '2>', \my $err);
	$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'}) or die;
	my $seen = $node->safe_psql('postgres', q{SELECT query FROM pg_stat_activity WHERE wait_event = 'PgSleep'});
	my $name = "$mode protocol, " . ($statement =~ /(\w+\()/)[0] . ')';
	unlike($seen, qr/$secret/, "pg_stat_activity does not show a running statement's token: $name");
	like($seen, qr/_\*{8}/, 'but its mask');
	$node->safe_psql('postgres', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'});
	$node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'}) or die;
	$nap->finish;
}

# Workers that build an index.
$node->safe_psql('postgres', q{
	CREATE TABLE wide WITH (parallel_workers = 2) AS SELECT 600 AS s, repeat('x', 1000) AS v FROM generate_series(1, 1000);
	ALTER TABLE wide OWNER TO backend});
my $builder = $node->background_psql('postgres', on_error_stop => 0, extra_params => [ '-U', 'backend' ]);
$builder->query_until(qr/sent/, "\\echo sent\nCREATE INDEX ON wide (doze(s)) WHERE v <> '$token';\n");
my $workers = q{pg_stat_activity WHERE backend_type = 'parallel worker' AND wait_event = 'PgSleep'};
$node->poll_query_until('postgres', "SELECT count(*) > 0 FROM $workers") or die;
my $shown = $node->safe_psql('postgres', "SELECT query FROM $workers");
unlike($shown, qr/$secret/, "nor that of parallel workers' statement");
like($shown, qr/_\*{8}/, 'but its mask');
$node->safe_psql('postgres', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX%' AND backend_type = 'client backend'});
eval { $builder->quit };

# The server's list of memory contexts, which goes past the log's hook where memory is short, has the texts of prepared statements.
my $contexts = "'$token' <> '' AS t, name, ident FROM pg_backend_memory_contexts WHERE name IN ('CachedPlan', 'CachedPlanSource')";
my $bench = $node->basedir . '/contexts.sql';
append_to_file($bench, "INSERT INTO contexts SELECT $contexts;\n");
$node->safe_psql('postgres', 'CREATE TABLE contexts (t boolean, name text, ident text)');
$node->safe_psql('postgres', "PREPARE p AS INSERT INTO contexts SELECT $contexts; EXECUTE p; EXECUTE p");
$node->command_ok([ 'pgbench', '-n', '-h', $node->host, '-p', $node->port, '-M', $_, '-t', '3', '-f', $bench, 'postgres' ], "pgbench -M $_")
  foreach qw(extended prepared);
is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT name, ',' ORDER BY name) FROM contexts}), 'CachedPlan,CachedPlanSource',
	'memory contexts of prepared statements are listed');
unlike($node->safe_psql('postgres', 'SELECT ident FROM contexts'), qr/$secret/, 'without their token');

my $three = $node->background_psql('postgres', on_error_stop => 0, extra_params => [ '-U', 'backend' ]);
$three->query("SELEC '$token'");
$node->poll_query_until('postgres',
	q{SELECT count(*) = 1 FROM pg_stat_activity WHERE usename = 'backend' AND state = 'idle' AND query LIKE 'SELEC ''%'}) or die;
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE query ~ '_[0-9A-Za-z]{12}_[0-9A-Za-z]{20}'}),
	0, 'nor that of one that could not be parsed');
$three->query($_) foreach 'BEGIN', 'SELECT 1/0', "SELECT '$token'";
my $refused = $node->safe_psql('postgres', q{SELECT query FROM pg_stat_activity WHERE state = 'idle in transaction (aborted)'});
like($refused, qr/_\*{8}/, 'nor that of one that a failed transaction refused');
unlike($refused, qr/$secret/, 'but its mask');
$three->quit;

# The application's name, which each session may see of each other, and which is cut: given when it connects; set, and by a function;
# restored when what was set is undone.
my $given = "application_name='$token'";
foreach ([ 'given', $given, '' ], [ 'set', '', "SET application_name = '$token'" ],
	[ 'set by a function', '', "SELECT set_config('application_name', '$token', false)" ],
	[ 'set in a transaction', '', "BEGIN; SET application_name = '$token'" ],
	[ 'set by a function in a transaction', '', "BEGIN; SELECT set_config('application_name', '$token', false)" ],
	[ 'restored by COMMIT', $given, q{BEGIN; SET LOCAL application_name = 'x'; COMMIT} ],
	[ 'restored by ROLLBACK TO', $given, q{BEGIN; SAVEPOINT s; SET application_name = 'x'; ROLLBACK TO s} ])
{
	my ($name, $setting, $statement) = @$_;
	my $session = $node->background_psql('postgres', extra_params => [ '-U', 'backend', '-d', $node->connstr('postgres') . " $setting" ]);
	$session->query($statement) if $statement;
	my ($seen) = grep { /rk_prod_/ } split /\n/, sql_as($node, 'globex', q{SELECT application_name FROM pg_stat_activity});
	like($seen // '', qr/^rk_prod_[0-9A-Za-z]{12}_\*{8}/, "pg_stat_activity shows a masked application_name: $name");
	unlike($seen // '', qr/$secret/, 'without the secret');
	$session->quit;
}
my $worker = 'app_prod_orderservice_worker';
is($node->safe_psql('postgres', 'SHOW application_name', extra_params => [ '-U', 'backend', '-d', $node->connstr('postgres') . " application_name=$worker" ]),
	$worker, 'what is no token stays');
$node->safe_psql('postgres', 'ALTER ROLE backend RESET ALL');
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_statements WHERE query LIKE 'SELECT rk_apikeys.verify%' AND query ~ '_[0-9A-Za-z]{49}'}),
	0, 'pg_stat_statements holds a query without its constants');

$node->stop;
my @logs = glob($node->data_dir . '/logs/*');
is(scalar @logs, 3, 'the server wrote its log in three formats');
like(slurp_file((grep { /\.log$/ } @logs)[0]), qr/AUDIT: SESSION.*_\*{8}/, 'pgaudit has told of tokens, masked') if $pgaudit;
foreach my $log (@logs)
{
	my ($format) = $log =~ /\.(\w+)$/;
	my $text = slurp_file($log);
	my @lines = grep { /$secret|B{20}/ } split /\n/, $text;
	is(scalar @lines, 0, "$format: no secret") or diag(join "\n", map { substr($_, 0, 300) } @lines[0 .. ($#lines < 4 ? $#lines : 4)]);
	like($text, qr/_[0-9A-Za-z]{12}_\*{8}/, "$format: its mask");
	cmp_ok(scalar(() = $text =~ /_\*{8}/g), '>', 60, "$format: many times");
}
is_deeply([ grep { !m{/pg_stat_tmp/|/pg_stat/|/pg_wal/|/base/} } files_holding($node->data_dir, $secret) ], [],
	'no file but those of tables and their log holds the secret');

# Switched off, it is as ever: the test can fail.
$node->append_conf('postgresql.conf', "rk_apikeys.redact_logs = off\nlog_filename = 'plain.log'");
$node->start;
$node->psql('postgres', "SELECT rk_apikeys.verify('$token')", extra_params => [ '-U', 'backend' ]);
$node->stop;
like(slurp_file($node->data_dir . '/logs/plain.log'), qr/$secret/, 'with redact_logs off the log has it');

done_testing();
