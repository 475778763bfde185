# test/t/RkApikeys.pm: what the TAP tests share: a server with the extension and one login role per part in the story, psql as a role,
# and a set of keys with one in every state.
package RkApikeys;

use strict;
use warnings;

use Exporter 'import';
use Fcntl qw(:flock O_RDONLY);
use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

our @EXPORT = qw(PRELOAD INITDB rk_node rk_initdb rk_extend kill_server client sql_as sql_in_time session create_key code use_count stat_of token_of verdicts
  expected_verdicts keys_of_every_state columns contents catalog same_catalog install_version install_release files_holding logged documented
  documented_roles hold_flushes);

# What makes a server load the library at its start.
use constant PRELOAD => "shared_preload_libraries = 'rk_apikeys'";

# What initdb is told: the locale is RK_LOCALE's; messages are English in every one. The superuser is postgres, whoever runs the tests.
use constant INITDB => [ '-U', 'postgres', '-E', 'UTF8', '--locale=' . ($ENV{RK_LOCALE} // 'C.UTF-8'), '--lc-messages=C' ];
$ENV{PGUSER} = 'postgres';

# The login roles and the one group role of each. acme and globex are tenants: a session's tenant is its role's name.
my %roles = (
	acme => 'rk_apikeys_manager',
	globex => 'rk_apikeys_manager',
	backend => 'rk_apikeys_verifier',
	boss => 'rk_apikeys_admin');

# A started server without the extension; what follows the name is added to its configuration.
sub rk_initdb
{
	my ($name, @conf) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	$node->init(extra => INITDB);
	# The default, which PostgreSQL's own tests turn off: below it no page's LSN is remembered
	$node->append_conf('postgresql.conf', join "\n", 'wal_level = replica', @conf);
	$node->start;
	return $node;
}

# The same with the extension and the roles.
sub rk_node
{
	my $node = rk_initdb(@_);
	rk_extend($node);
	return $node;
}

# Makes the extension and the roles on a server.
sub rk_extend
{
	my ($node) = @_;
	$node->safe_psql('postgres', 'CREATE EXTENSION rk_apikeys CASCADE');
	$node->safe_psql('postgres', "CREATE ROLE $_ LOGIN; GRANT $roles{$_} TO $_") foreach sort keys %roles;
}

# Kills the postmaster, and waits until its children have noticed. Where nobody reaps orphans (a container without an init) the
# dead postmaster still looks alive to the next one, so its lock files go too.
sub kill_server
{
	my ($node) = @_;
	my $dir = $node->data_dir;
	$node->kill9;
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		last unless grep { (readlink($_) // '') eq $dir } glob '/proc/[0-9]*/cwd';
		usleep(100_000);
	}
	unlink "$dir/postmaster.pid", $node->host . '/.s.PGSQL.' . $node->port . '.lock';
}

# Compiles a program of test/clients with libpq and returns its path; what follows its name goes to the compiler.
sub client
{
	my ($name, @flags) = @_;
	my $program = PostgreSQL::Test::Utils::tempdir . "/$name";
	my ($include, $lib) = map { my $dir = `pg_config $_`; chomp $dir; $dir } '--includedir', '--libdir';
	my @command = ('gcc', '-O2', '-Wall', '-Wextra', '-Werror', "-I$include", @flags, '-o', $program,
		"$FindBin::Bin/../clients/$name.c", "-L$lib", '-lpq', '-pthread');
	system(@command) == 0 or die "could not compile: @command";
	return $program;
}

# What a role's psql prints for some SQL; dies if that fails.
sub sql_as
{
	my ($node, $role, $sql, $database) = @_;
	return $node->safe_psql($database // 'postgres', $sql, extra_params => [ '-U', $role ]);
}

# The same for SQL that makes a key end after LIFE and must get somewhere before that: shortly, but later each time until it succeeds and
# prints what is wanted, since a busy machine may need longer.
sub sql_in_time
{
	my ($node, $role, $sql, $wanted) = @_;
	for (my $life = 0.1; $life < $PostgreSQL::Test::Utils::timeout_default; $life *= 2)
	{
		my ($status, $out) = $node->psql('postgres', $sql =~ s/LIFE/interval '$life s'/gr, extra_params => [ '-U', $role ], on_error_stop => 1);
		return $out if $status == 0 && $out =~ $wanted;
	}
	die "not in time: $sql";
}

# A role's session that stays open: see PostgreSQL::Test::BackgroundPsql.
sub session
{
	my ($node, $role, %params) = @_;
	return $node->background_psql('postgres', extra_params => [ '-U', $role ], %params);
}

# Makes a key of acme's, or of another role's; returns its id and token. The settings are arguments of create_key, as SQL.
sub create_key
{
	my ($node, $name, $settings, $role, $database) = @_;
	$settings = $settings ? ", $settings" : '';
	return split /\|/, sql_as($node, $role // 'acme', "SELECT * FROM rk_apikeys.create_key('$name'$settings)", $database);
}

# The code of a token's verdict in an open session.
sub code
{
	my ($session, $token) = @_;
	return $session->query_safe("SELECT code FROM rk_apikeys.verify_key('$token')");
}

# A key's use_count in the view, as its manager reads it.
sub use_count
{
	my ($node, $id, $database) = @_;
	return sql_as($node, 'acme', "SELECT use_count FROM rk_apikeys.keys WHERE key_id = '$id'", $database);
}

# A column of rk_apikeys.stats.
sub stat_of
{
	my ($node, $column) = @_;
	return sql_as($node, 'boss', "SELECT $column FROM rk_apikeys.stats");
}

# The tokens that a statement returns as rows of label and token, as a hash.
sub token_of
{
	my ($node, $role, $sql) = @_;
	return map { split /\|/, $_, 2 } split /\n/, sql_as($node, $role, $sql);
}

# The codes that verify_key gives, as the backend, for a hash of tokens by label.
sub verdicts
{
	my ($node, $tokens, $database) = @_;
	my $values = join ', ', map { "('$_', '$tokens->{$_}')" } sort keys %$tokens;
	return { map { split /\|/, $_, 2 } split /\n/, sql_as($node, 'backend',
			"SELECT label, v.code FROM (VALUES $values) t(label, token), LATERAL rk_apikeys.verify_key(t.token) v",
			$database) };
}

# What verdicts() gives for keys_of_every_state().
sub expected_verdicts
{
	return {
		active => 'valid',
		named => 'valid',
		neighbour => 'valid',
		imported => 'valid',
		grace => 'valid',
		successor => 'valid',
		replacement => 'valid',
		disabled => 'disabled',
		expired => 'expired',
		revoked => 'revoked',
		rotated => 'rotated',
		deleted => 'unknown',
		garbled => 'malformed' };
}

# Makes a key in every state, for two tenants, with every kind of setting; returns their tokens by label.
sub keys_of_every_state
{
	my ($node) = @_;
	my %token = token_of($node, 'acme', q{
		SELECT 'active', secret FROM rk_apikeys.create_key('active', 'plain', scopes => '{records:read,billing:*}',
			metadata => '{"team": "data", "deep": {"list": [1, null, "ü"]}}');
		SELECT 'named', secret FROM rk_apikeys.create_key('Übersicht – 概要 🔑', E'two\nlines\tand a \\\\', environment => 'stage',
			allowed_cidrs => NULL, expires_at => now() + interval '30 days');
		SELECT 'disabled', secret FROM rk_apikeys.create_key('disabled');
		SELECT 'revoked', secret FROM rk_apikeys.create_key('revoked', metadata => '{}');
		SELECT 'grace', secret FROM rk_apikeys.create_key('grace');
		SELECT 'rotated', secret FROM rk_apikeys.create_key('rotated');
		SELECT 'deleted', secret FROM rk_apikeys.create_key('deleted');
		UPDATE rk_apikeys.keys SET enabled = false WHERE name = 'disabled';
		DELETE FROM rk_apikeys.keys WHERE name = 'deleted';
		SELECT FROM rk_apikeys.keys, rk_apikeys.revoke_key(key_id, 'it''s leaked') WHERE name = 'revoked' \g /dev/null
		SELECT 'successor', r.secret FROM rk_apikeys.keys k, rk_apikeys.rotate_key(k.key_id, '1 day') r WHERE name = 'grace';
		SELECT 'replacement', r.secret FROM rk_apikeys.keys k, rk_apikeys.rotate_key(k.key_id, '0') r WHERE name = 'rotated';
	});
	(undef, $token{expired}) = split /\|/, sql_in_time($node, 'acme', q{SELECT * FROM rk_apikeys.create_key('expired',
		expires_at => clock_timestamp() + LIFE)}, qr/./);
	%token = (%token, token_of($node, 'globex', q{SELECT 'neighbour', secret FROM rk_apikeys.create_key('neighbour')}));
	$token{imported} = 'legacy-key-0123456789';
	sql_as($node, 'boss', qq{SELECT rk_apikeys.import_key('imported', sha256('$token{imported}'), 'sha256', tenant => 'acme')});
	($token{garbled} = $token{active}) =~ s/.$/-/;
	$node->poll_query_until('postgres', "SELECT expires_at < clock_timestamp() FROM rk_apikeys.api_keys WHERE name = 'expired'")
	  or die 'the key did not expire';
	return \%token;
}

my @tables = qw(api_keys key_usage key_usage_daily key_events);

# The columns of the extension's tables, as one text each by table name.
sub columns
{
	my ($node, $database) = @_;
	return { map { $_ => $node->safe_psql($database // 'postgres', "SELECT string_agg(attname, ', ' ORDER BY attnum) FROM pg_attribute
			WHERE attrelid = 'rk_apikeys.$_'::regclass AND attnum > 0 AND NOT attisdropped") } @tables };
}

# The rows of the extension's tables, in a fixed order, as one text each by table name: of those columns, or of all.
sub contents
{
	my ($node, $database, $columns) = @_;
	$columns //= columns($node, $database);
	return {
		map { $_ => $node->safe_psql($database // 'postgres', "COPY (SELECT $columns->{$_} FROM rk_apikeys.$_ ORDER BY 1, 2) TO STDOUT") }
		  @tables };
}

# What the extension is in a database, as lines in a fixed order: each of its objects with all that makes it, but for OIDs.
sub catalog
{
	my ($node, $database) = @_;
	return [ split /\n/, $node->safe_psql($database, slurp_file("$FindBin::Bin/../upgrade/catalog.sql")) ];
}

# Two catalogs are the same; else shows the lines that one of them lacks.
sub same_catalog
{
	my ($left, $right, $name) = @_;
	my (%left, %right);
	$left{$_}++ foreach @$left;
	$right{$_}++ foreach @$right;
	ok(join("\n", @$left) eq join("\n", @$right), $name)
	  or diag join "\n", (map { "- $_" } grep { !$right{$_} } @$left), (map { "+ $_" } grep { !$left{$_} } @$right);
}

# Makes an install or update script known to the server of these tests until they end: its name, and its text.
my @installed;
my $installing;
sub install_version
{
	my ($name, $text) = @_;
	my $dir = `pg_config --sharedir`;
	chomp $dir;
	my $file = "$dir/extension/$name";
	# Another test may have installed the same: it goes first.
	$installing || (sysopen($installing, "$dir/extension", O_RDONLY) && flock($installing, LOCK_EX)) or die "cannot lock $dir/extension: $!";
	die "$file is there already" if -e $file;
	push @installed, $file;
	append_to_file($file, $text);
}
END { unlink @installed; }

# The same for the SQL of an earlier release, which needed pgcrypto. Returns the names and texts.
sub install_release
{
	my ($release) = @_;
	my %file = ("rk_apikeys--$release.sql" => slurp_file("$FindBin::Bin/../upgrade/rk_apikeys--$release.sql"),
		"rk_apikeys--$release.control" => "requires = 'pgcrypto'\n");
	install_version($_, $file{$_}) foreach sort keys %file;
	return %file;
}

# The lines of the server log that match, those apart that only repeat a statement.
sub logged
{
	my ($node, $pattern) = @_;
	return grep { $_ =~ $pattern && $_ !~ /(LOG:  statement|STATEMENT): / } split /\n/, slurp_file($node->logfile);
}

# The blocks of code below a heading of doc/operations.md, as one who reads it pastes them. The rest are pairs: a text of the
# document, and what stands in its place here. Each must be there.
sub documented
{
	my ($heading, %instead) = @_;
	my ($section) = slurp_file("$FindBin::Bin/../../doc/operations.md") =~ /^##+ \Q$heading\E\n(.*?)(?=^##+ |\z)/ms;
	die "no heading $heading" unless defined $section;
	foreach my $text (sort keys %instead)
	{
		$section =~ s/\Q$text\E/$instead{$text}/g or die "$heading: no $text";
	}
	my @blocks;
	while ($section =~ /^( *)```(?:sql|sh)?\n(.*?)^ *```$/msg)
	{
		my ($indent, $code) = ($1, $2);
		push @blocks, $code =~ s/^$indent//mgr;
	}
	return @blocks;
}

# Makes the roles of its section Roles, and two tenants.
sub documented_roles
{
	my ($node, $database) = @_;
	$node->safe_psql($database, (documented('Roles'))[0]);
	$node->safe_psql($database, "CREATE ROLE $_ LOGIN IN ROLE rk_apikeys_manager") foreach 'acme', 'globex';
}

# Begins a transaction in an open session that holds the lock of flushes, and returns the uses that this took: flush_usage() takes the lock
# only where something is pending, and a worker may be first.
sub hold_flushes
{
	my ($session, $token) = @_;
	foreach my $uses (1 .. 100)
	{
		my $flushed = $session->query_safe("BEGIN; SELECT rk_apikeys.flush_usage() FROM (SELECT rk_apikeys.verify('$token') OFFSET 0) v WHERE v.verify");
		return $uses if $flushed =~ /^1$/m;
		$session->query_safe('COMMIT');
	}
	die 'a worker was always first';
}

# The files below a folder that hold a text.
sub files_holding
{
	my ($dir, $text) = @_;
	my @found;
	foreach my $file (grep { $_ !~ m{/\.\.?$} } glob "'$dir'/* '$dir'/.*")
	{
		if (-d $file) { push @found, files_holding($file, $text); }
		elsif (-f $file)
		{
			open my $fh, '<:raw', $file or next;
			local $/;
			push @found, $file if index(<$fh>, $text) >= 0;
		}
	}
	return @found;
}

1;
