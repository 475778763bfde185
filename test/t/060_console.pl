# test/t/060_console.pl: the console, in a browser. What it promises is asserted in ../console/console.mjs; here is what it needs, and what
# the database says of it.
use strict;
use warnings;

use Cwd qw(abs_path);
use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $root = abs_path("$FindBin::Bin/../..");
my $dir = PostgreSQL::Test::Utils::tempdir;
my $chromium = $ENV{CHROMIUM} // '/usr/bin/chromium';

# npm builds below a package's folder: not in the checkout
foreach my $package ('examples/console', 'test/console')
{
	PostgreSQL::Test::Utils::system_or_bail('mkdir', '-p', "$dir/$package");
	PostgreSQL::Test::Utils::system_or_bail('cp', '-R', (grep { !m{/node_modules$} } glob "$root/$package/*"), "$dir/$package");
	my $output = '';
	IPC::Run::run([ 'npm', 'ci', '--prefix', "$dir/$package", '--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline',
			'--fetch-retries=1', '--fetch-timeout=30000' ], '<', \undef, '>&', \$output)
	  or BAIL_OUT("npm cannot install what $package needs; are nodejs, npm and its registry there?\n$output");
}
-x $chromium or BAIL_OUT("there is no $chromium; is the package chromium installed?");

my $node = rk_node('console', PRELOAD, "log_statement = 'all'");
foreach my $script ('setup.sql', 'sample.sql')
{
	PostgreSQL::Test::Utils::system_or_bail('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-h', $node->host, '-p', $node->port,
		'-d', 'postgres', '-o', '/dev/null', '-f', "$root/examples/console/$script");
}
is($node->safe_psql('postgres', q{SELECT string_agg(member::regrole || ' in ' || roleid::regrole, ',' ORDER BY member::regrole::text, roleid::regrole::text) FROM pg_auth_members
		WHERE member IN ('console'::regrole, 'console_member'::regrole)}),
	'console in console_member,console in rk_apikeys_manager,console_member in rk_apikeys_member', 'the console has the rights that it needs and no others');

my %env = (
	PORT => PostgreSQL::Test::Cluster::get_free_port(),
	PGHOST => $node->host,
	PGPORT => $node->port,
	PGUSER => 'console',
	PGDATABASE => 'postgres',
	PEOPLE => qq{ann\@acme manager,bob\@acme member,zo\x{c3}\x{ab} <script>pwned=3</script>"'\@acme member,eve\@globex manager},
	TOKEN => "$dir/token",
	IMPORTED => "$dir/imported",
	CHROMIUM => $chromium,
	HOME => $dir,
	TOTAL => 1 + $node->safe_psql('postgres', q{SELECT count(*) FROM rk_apikeys.api_keys WHERE tenant = 'acme'}));
append_to_file("$dir/imported", 'sk_live_0123456789abcdef');
$node->safe_psql('postgres', q{SELECT rk_apikeys.import_key('Imported', sha256('sk_live_0123456789abcdef'), 'sha256', hint => 'cdef',
	start => 'sk_live_', tenant => 'acme')});
my ($output, $errors) = ('', '');
{
	local @ENV{ keys %env } = values %env;
	IPC::Run::run([ 'node', "$dir/test/console/console.mjs" ], '<', \undef, '>', \$output, '2>', \$errors,
		IPC::Run::timeout(5 * $PostgreSQL::Test::Utils::timeout_default));
}
foreach my $line (split /\n/, $output)
{
	ok($1 eq 'ok', $2) if $line =~ /^(ok|not ok) (.*)/;
}
like($output, qr/^done$/m, 'the browser came to the end');
diag($errors) if $errors;

my $token = slurp_file("$dir/token");
is(sql_as($node, 'backend', "SELECT tenant, name, environment, scopes, expires_at AT TIME ZONE 'UTC', code
	FROM rk_apikeys.verify_key('$token', 'pay:read', '2001:db8::9')"),
	'acme|Checkout of the shop|stage|{pay:read,pay:write}|2099-12-31 00:00:00|valid', 'the key that was made is good, and as it was filled in');
is(sql_as($node, 'backend', "SELECT code FROM rk_apikeys.verify_key('$token', 'pay:read', '192.0.2.8')"), 'address_denied', 'for its addresses only');
is(sql_as($node, 'acme', q{SELECT rate_limit, rate_window, description FROM rk_apikeys.keys WHERE name = 'Checkout of the shop'}),
	'5|00:01:00|Pays baskets', 'with its limit');
is($node->safe_psql('postgres', q{SELECT count(*) FROM rk_apikeys.api_keys WHERE tenant NOT IN ('acme', 'globex')}), '0',
	'no key was made for another tenant');
unlike(slurp_file($node->logfile), qr/\Q$token\E/, 'its secret is not in the log, where all statements are');

done_testing();
