# test/t/036_foreign_symbols.pl: another library that was loaded earlier, and whose functions and variables have the names of ours, takes
# the place of none. PostgreSQL loads each library so that its symbols serve all that are loaded later.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

# Our symbols that one file of src defines for the others, with their kinds and sizes; those that PostgreSQL looks up apart.
my %symbol;
foreach my $object (glob "$FindBin::Bin/../../src/*/*.o")
{
	foreach (qx{nm --defined-only --extern-only --print-size $object})
	{
		my ($size, $kind, $name) = /^[0-9a-f]+ ([0-9a-f]+) ([A-Z]) (\w+)$/ or next;
		$symbol{$name} = [ $kind, hex $size ] unless $name =~ /^(_PG_init|Pg_magic_func|(pg_finfo_)?rk_apikeys_\w+)$/;
	}
}
my @names = sort keys %symbol;
my @needed = qw(cache_init cache_get cache_find grant_state store_find digest_matches token_parse principal_is_set usage_record settings_init
  verdict_code settings_track_usage);
is_deeply([ grep { !$symbol{$_} } @needed ], [], 'the objects of src define ' . @names . ' symbols, among them those that are known');

my $foreign = foreign_library();

foreach my $preloaded (1, 0)
{
	my $with = $preloaded ? 'preloaded' : 'not preloaded';
	my $node = rk_initdb("foreign$preloaded", "shared_preload_libraries = '$foreign" . ($preloaded ? ", rk_apikeys'" : "'"),
		"rk_apikeys.usage_flush_interval = '100ms'");

	# The library is there, and what looks for such a symbol finds it there
	$node->safe_psql('postgres', "CREATE FUNCTION foreign_answers(text) RETURNS boolean LANGUAGE C STRICT AS '$foreign';
		CREATE FUNCTION foreign_touched(text, integer) RETURNS boolean LANGUAGE C STRICT AS '$foreign'");
	my $list = join ', ', map { "('$_')" } @names;
	is($node->safe_psql('postgres', "SELECT name FROM (VALUES $list) v(name) WHERE NOT foreign_answers(name)"), '',
		"$with: each symbol is global, and found in the foreign library");
	is_deeply([ called($node) ], [], "$with: at the start none of its functions is called");

	rk_extend($node);
	my $tokens = keys_of_every_state($node);
	is_deeply(verdicts($node, $tokens), expected_verdicts(), "$with: each state of a key has its verdict");
	my (undef, $bound) = create_key($node, 'bound', q{scopes => '{records:read}', allowed_cidrs => '{10.0.0.0/8}'});
	is(sql_as($node, 'backend', join ' UNION ALL ', map { "SELECT (rk_apikeys.verify_key('$bound', $_)).code" }
		q{'records:read', '10.1.1.1'}, q{'records:write', '10.1.1.1'}, q{'records:read', '11.1.1.1'}),
		"valid\nscope_missing\naddress_denied", "$with: scopes and addresses count");
	is(sql_as($node, 'backend', "SELECT rk_apikeys.verify('$tokens->{$_}')"), $_ eq 'active' ? 't' : 'f', "$with: verify() of the key that is $_")
	  foreach qw(active revoked garbled);
	if ($preloaded)
	{
		my (undef, $limited) = create_key($node, 'limited', q{rate_limit => 2, rate_window => '1 hour'});
		my $backend = session($node, 'backend');
		is(join(' ', map { code($backend, $limited) } 1 .. 3), 'valid valid rate_limited', "$with: a rate limit holds");
		$backend->quit;
	}

	# A revocation reaches a session that has the key cached
	my ($id, $token) = create_key($node, 'cached');
	my $session = session($node, 'backend');
	is(code($session, $token), 'valid', "$with: a key is valid") foreach 1 .. 2;
	my $hits = $preloaded ? stat_of($node, 'cache_hits') : undef;
	is(code($session, $token), 'valid', "$with: once more");
	is(stat_of($node, 'cache_hits') - $hits, 1, "$with: from the cache") if $preloaded;
	sql_as($node, 'acme', "SELECT rk_apikeys.revoke_key('$id', 'test')");
	is(code($session, $token), 'revoked', "$with: and refused once it is revoked");
	$session->quit;

	# A principal has its own rights and no more
	my ($weak_id, $weak) = create_key($node, 'weak', q{scopes => '{apikeys:manage,records:read}'});
	my $as_weak = "BEGIN; SELECT FROM rk_apikeys.authenticate('$weak'); SELECT";
	$node->safe_psql('postgres', 'GRANT rk_apikeys_verifier TO acme');
	is(sql_as($node, 'acme', "$as_weak rk_apikeys.current_key_id(), rk_apikeys.has_scope('records:read'), rk_apikeys.has_scope('records:write')")
		=~ s/^\n*//r, "$weak_id|t|f", "$with: a principal is what authenticate() made it");
	is($node->psql('postgres', "$as_weak FROM rk_apikeys.create_key('strong', scopes => '{records:write}')", on_error_stop => 1,
			extra_params => [ '-U', 'acme' ], stderr => \my $refusal), 3, "$with: it cannot make a stronger key");
	like($refusal, qr/cannot grant scope "records:write"/, "$with: and is told why");
	is($node->psql('postgres', "SELECT FROM rk_apikeys.authenticate('$tokens->{revoked}')", extra_params => [ '-U', 'backend' ], stderr => \$refusal),
		3, "$with: a revoked key is no principal");
	like($refusal, qr/not accepted: revoked/, "$with: as the error says");

	# Use is recorded and flushed
	my ($used_id, $used) = create_key($node, 'used');
	is(sql_as($node, 'backend', "SELECT rk_apikeys.verify('$used')"), 't', "$with: a new key is valid");
	is(use_count($node, $used_id), '1', "$with: its use is counted");
	sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
	is($node->safe_psql('postgres', "SELECT use_count FROM rk_apikeys.key_usage WHERE key_id = '$used_id'"), '1', "$with: and flushed");
	if ($preloaded)
	{
		sql_as($node, 'backend', "SELECT rk_apikeys.verify('$used')");
		ok($node->poll_query_until('postgres', "SELECT use_count = 2 FROM rk_apikeys.key_usage WHERE key_id = '$used_id'"),
			"$with: the next one by the worker");
	}
	is(sql_as($node, 'acme', q{SELECT string_agg(name, ' ') FROM rk_apikeys.list_keys(status => 'revoked', sort_by => 'name')}), 'cached revoked',
		"$with: list_keys lists");

	is_deeply([ called($node) ], [], "$with: after all that none of the foreign functions was called");
	my $variables = join ', ', map { "('$_', $symbol{$_}[1])" } grep { $symbol{$_}[0] ne 'T' } @names;
	is($node->safe_psql('postgres', "LOAD 'rk_apikeys'; SELECT name FROM (VALUES $variables) v(name, size) WHERE foreign_touched(name, size)"), '',
		"$with: and none of its variables was written");
	$node->stop;
	is_deeply([ logged($node, qr/PANIC|TRAP|terminated by signal/) ], [], "$with: nothing crashed");
}

# The foreign functions that were called, as the server's log names them.
sub called
{
	my ($node) = @_;
	my %called = map { /foreign function called: (\w+)/ ? ($1 => 1) : () } logged($node, qr/foreign function called/);
	return sort keys %called;
}

# Compiles the module of test/clients with a function or variable for each symbol; returns its path.
sub foreign_library
{
	my $dir = PostgreSQL::Test::Utils::tempdir;
	my $include = `pg_config --includedir-server`;
	chomp $include;
	my $source = "extern long foreign_called(const char *name);\n";
	foreach my $name (@names)
	{
		my ($kind, $size) = @{ $symbol{$name} };
		$source .= $kind eq 'T' ? "long $name(void); long $name(void) { return foreign_called(\"$name\"); }\n" : "char $name\[$size] = {[0 ... $size - 1] = FOREIGN_BYTE};\n";
	}
	append_to_file("$dir/symbols.c", $source);
	my @command = ('gcc', '-O2', '-Wall', '-Werror', '-fPIC', '-shared', '-fvisibility=default', '-D_GNU_SOURCE', '-DFOREIGN_BYTE=0x5a', '-isystem', $include, '-o',
		"$dir/foreign.so", "$FindBin::Bin/../clients/foreign.c", "$dir/symbols.c", '-ldl');
	system(@command) == 0 or die "could not compile: @command";
	return "$dir/foreign.so";
}

done_testing();
