# test/t/096_limit_room.pl: where shared memory has no room for a limit's units, or there is no shared memory, a call is refused and counted.
# No limit gives more than its units because of that, and a reservation keeps its place.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

# How often each code is the answer when all tokens are verified once, in an order that chance gives.
sub codes
{
	my ($node, $tokens, $more) = @_;
	return { map { split /\|/ } split /\n/, sql_as($node, 'backend', 'SELECT v.code, count(*) FROM (SELECT t FROM unnest(ARRAY['
		  . join(',', map { "'$_'" } @$tokens) . ']) t ORDER BY random() OFFSET 0) s, LATERAL rk_apikeys.verify_key(t' . ($more // '') . ') v GROUP BY 1') };
}
sub make_keys
{
	my ($node, $role, $count, $owner) = @_;
	return split /\n/, sql_as($node, $role, "WITH k AS (INSERT INTO rk_apikeys.keys (name, owner) SELECT 'key', '$owner' FROM generate_series(1, $count)
		RETURNING secret) SELECT secret FROM k");
}
sub limit
{
	my ($node, $tenant, $name, $owner, $columns, $values) = @_;
	return sql_as($node, 'boss', "INSERT INTO rk_apikeys.limits (tenant, name, owner, $columns) VALUES ('$tenant', '$name', '$owner', $values) RETURNING limit_id");
}

{
	my $node = rk_node('room', PRELOAD, 'rk_apikeys.max_tracked_keys = 16', "rk_apikeys.usage_flush_interval = '1h'");
	my %kind = (quota => [ "units, period, per_key", "1, 'total', true" ], rate => [ "units, rate_window, per_key", "1, '366 days', true" ],
		shared => [ "units, period", "30, 'total'" ]);
	my (%token, %given, %refused);
	foreach my $kind (sort keys %kind)
	{
		limit($node, 'acme', $kind, $kind, @{ $kind{$kind} });
		$token{$kind} = [ make_keys($node, 'acme', 40, $kind) ];
		($given{$kind}, $refused{$kind}) = (0, 0);
	}
	# Rounds of all of them, with and without a flush between
	my $unavailable = 0;
	foreach my $round (1 .. 8)
	{
		foreach my $kind (sort keys %kind)
		{
			my $codes = codes($node, $token{$kind}, $round % 2 ? ", charge => 'commit'" : '');
			$given{$kind} += $codes->{valid} // 0;
			$refused{$kind} += $codes->{limiter_unavailable} // 0;
			$unavailable += $codes->{limiter_unavailable} // 0;
			delete @$codes{qw(valid limiter_unavailable), $kind eq 'rate' ? 'rate_limited' : 'quota_exceeded'};
			is_deeply($codes, {}, "round $round, $kind: no other answer");
		}
		sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()') if $round % 3 == 0;
	}
	cmp_ok($unavailable, '>', 0, 'memory was full');
	is(stat_of($node, 'limiter_unavailable'), $unavailable, 'and each refusal for it is counted');
	cmp_ok($given{$_}, '<=', $_ eq 'shared' ? 30 : 40, "$_: no more is given than the units") foreach sort keys %kind;
	sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
	is(sql_as($node, 'boss', "SELECT coalesce(sum(u.units), 0) FROM rk_apikeys.limit_usage u JOIN rk_apikeys.limits USING (limit_id) WHERE name = '$_'"), $given{$_},
		"$_: the table has what was given") foreach qw(quota shared);
	is(stat_of($node, 'tracked_keys') <= 16, 1, 'memory stays bounded');

	# In the end each key of the quota has had its unit, because a flush makes room. The buckets of a rate limit keep theirs while the limit is
	# not full, and lose it with the limit.
	sql_as($node, 'boss', q{DELETE FROM rk_apikeys.limits WHERE name = 'rate'});
	$node->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '100ms'");
	$node->reload;
	foreach my $token (@{ $token{quota} })
	{
		foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
		{
			my $code = (keys %{ codes($node, [$token]) })[0];
			$given{quota} += $code eq 'valid';
			last if $code eq 'quota_exceeded';
			usleep(100_000) if $code eq 'limiter_unavailable';
		}
	}
	is($given{quota}, 40, 'quota: each key gets its unit once there is room, and only once');

	# A reservation keeps its place
	my $id = limit($node, 'globex', 'reserved', 'r', 'units, period', "2, 'total'");
	my ($held) = make_keys($node, 'globex', 1, 'r');
	my $session = session($node, 'backend');
	ok($node->poll_query_until('postgres', "SELECT code = 'valid' FROM rk_apikeys.verify_key('$held')"), 'one unit is taken');
	$session->query_safe('BEGIN');
	is($session->query_safe("SELECT code FROM rk_apikeys.verify_key('$held', charge => 'commit')"), 'valid', 'and one is reserved');
	foreach my $round (1 .. 6)
	{
		codes($node, $token{$_}) foreach sort keys %token;
		sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
		isnt(sql_as($node, 'backend', "SELECT code FROM rk_apikeys.verify_key('$held')"), 'valid', "round $round: it stays reserved");
	}
	$session->query_safe('ROLLBACK');
	ok($node->poll_query_until('postgres', "SELECT code = 'valid' FROM rk_apikeys.verify_key('$held')"), 'until it is returned');
	isnt(sql_as($node, 'backend', "SELECT code FROM rk_apikeys.verify_key('$held')"), 'valid', 'once');
	$session->quit;

	# What verify() says
	is(sql_as($node, 'backend', "SELECT DISTINCT rk_apikeys.verify('$held')"), 'f', 'verify() refuses, too');
	is_deeply([ logged($node, qr/PANIC:|TRAP:/) ], [], 'nothing crashed');
	$node->stop;
}

# Sessions at once, while flushes make room: no key gets more than its units, though its bucket goes and comes back
{
	my $node = rk_node('crowded', PRELOAD, 'rk_apikeys.max_tracked_keys = 32', "rk_apikeys.usage_flush_interval = '100ms'");
	my $units = 5;
	limit($node, 'acme', 'quota', 'x', 'units, period, per_key', "$units, 'total', true");
	my @tokens = make_keys($node, 'acme', 60, 'x');
	$node->safe_psql('postgres', 'CREATE UNLOGGED TABLE asked (key int, code text); GRANT INSERT ON asked TO backend;
		CREATE TABLE tokens (key int PRIMARY KEY, token text); GRANT SELECT ON tokens TO backend;');
	$node->safe_psql('postgres', 'INSERT INTO tokens VALUES ' . join ', ', map { "($_, '$tokens[$_]')" } 0 .. 59);
	my $dir = PostgreSQL::Test::Utils::tempdir;
	my $ask = "INSERT INTO asked SELECT key, code FROM tokens, rk_apikeys.verify_key(token, charge => 'CHARGE') WHERE key = :key;\n";
	append_to_file("$dir/now.sql", "\\set key random(0, 59)\n" . $ask =~ s/CHARGE/now/r);
	append_to_file("$dir/commit.sql", "\\set key random(0, 59)\nBEGIN; " . $ask =~ s/CHARGE/commit/r . 'COMMIT;');
	append_to_file("$dir/undone.sql", "\\set key random(0, 59)\nBEGIN; " . $ask =~ s/CHARGE/commit/r . 'ROLLBACK;');
	$node->command_ok([ 'pgbench', '-n', '-M', 'prepared', '-c', 8, '-j', 2, '-T', 8, '-U', 'backend', (map { ('-f', "$dir/$_.sql") } qw(now commit undone)),
			'-h', $node->host, '-p', $node->port, 'postgres' ], 'eight sessions take from 60 quotas, with room for 28');
	is($node->safe_psql('postgres', "SELECT count(*) FROM (SELECT key FROM asked WHERE code = 'valid' GROUP BY key HAVING count(*) > $units) s"), '0',
		'no quota gives more than its units');
	is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT code, ' ') FROM asked WHERE code NOT IN ('valid', 'quota_exceeded', 'limiter_unavailable')}), '', 'no other answer');
	ok($node->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats'), 'all is written');
	is($node->safe_psql('postgres', 'SELECT sum(units) FROM rk_apikeys.limit_usage'), $node->safe_psql('postgres', q{SELECT count(*) FROM asked WHERE code = 'valid'}),
		'the table has what was given');
	diag 'eight sessions: ' . $node->safe_psql('postgres', q{SELECT string_agg(code || ' ' || n, ', ') FROM (SELECT code, count(*) n FROM asked GROUP BY 1 ORDER BY 1) s});
	$node->stop;
}

# No shared memory at all: see test/t/033_fallback_table.pl.
{
	my $node = rk_initdb('without', "dynamic_shared_memory_type = 'mmap'");
	my $folder = $node->data_dir . '/pg_dynshmem';
	chmod 0500, $folder or die "could not close $folder: $!";
	rk_extend($node);
	my ($bound) = make_keys($node, 'acme', 1, 'x');
	my ($free) = make_keys($node, 'acme', 1, 'y');
	limit($node, 'acme', 'quota', 'x', 'units, period', "5, 'month'");
	limit($node, 'acme', 'named', 'y', 'units, rate_window, always', "5, '1 s', false");
	foreach my $charge ('now', 'commit')
	{
		my $ask = "SELECT code, valid FROM rk_apikeys.verify_key";
		is(sql_as($node, 'backend', "$ask('$bound', charge => '$charge')"), 'limiter_unavailable|f', "without shared memory, $charge: a key that a quota binds");
		is(sql_as($node, 'backend', "$ask('$free', charge => '$charge')"), 'valid|t', "without shared memory, $charge: a key that none binds");
		is(sql_as($node, 'backend', "$ask('$free', charge => '$charge', limits => '{named}')"), 'limiter_unavailable|f',
			"without shared memory, $charge: unless it names a limit");
	}
	is(sql_as($node, 'backend', "SELECT rk_apikeys.verify('$bound'), rk_apikeys.verify('$free')"), 'f|t', 'without shared memory: verify()');
	isnt($node->psql('postgres', "SELECT rk_apikeys.authenticate('$bound')", extra_params => [ '-U', 'backend' ], stderr => \my $error), 0,
		'without shared memory: authenticate() refuses');
	like($error, qr/limiter_unavailable/, 'and tells why');
	is(sql_as($node, 'boss', 'SELECT count(*) FROM rk_apikeys.limit_status'), '2', 'without shared memory: limit_status shows the limits');
	is($node->psql('postgres', q{SELECT rk_apikeys.reset_limit(limit_id) FROM rk_apikeys.limits}, extra_params => [ '-U', 'boss' ]), 0,
		'without shared memory: reset_limit works');
	chmod 0700, $folder;
}

done_testing();
