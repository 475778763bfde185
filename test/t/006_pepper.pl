# test/t/006_pepper.pl: with a pepper the database alone can neither check a guess nor forge a key; peppers rotate; a bad file stops all.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use MIME::Base64;
use POSIX qw(mkfifo);
use PostgreSQL::Test::Utils;
use RkApikeys;
use Test::More;

my $node = rk_node('main', "shared_preload_libraries = 'rk_apikeys, pg_stat_statements'", 'pg_stat_statements.track = all',
	"rk_apikeys.usage_flush_interval = '100ms'");
$node->safe_psql('postgres', 'CREATE EXTENSION pgcrypto');
my $file = $node->basedir . '/peppers';
my ($first, $second) = (encode_base64('the first pepper, of 32 bytes ..', ''), encode_base64('another one, which comes later ..', ''));

sub write_peppers
{
	my ($mode, @lines) = @_;
	unlink $file;
	append_to_file($file, join '', map { "$_\n" } @lines);
	chmod $mode, $file or die;
	$node->reload;
}

# The error of a statement as a role: SQLSTATE and message.
sub error_of
{
	my ($role, $sql) = @_;
	my ($status, $out, $err) = $node->psql('postgres', "\\set VERBOSITY verbose\n$sql", extra_params => [ '-U', $role ]);
	return $err =~ /ERROR:\s+(.*)/ ? $1 : "none, but $out";
}

# Polls until the backend's new sessions see the file: a reload takes a moment.
sub wait_for_verdict
{
	my ($token, $want) = @_;
	foreach (1 .. 300)
	{
		my ($status, $out, $err) = $node->psql('postgres', "SELECT code FROM rk_apikeys.verify_key('$token')", extra_params => [ '-U', 'backend' ]);
		return pass("verdict $want") if $out eq $want || ($want =~ /58030|open it/ && $err =~ /pepper/);
		Time::HiRes::usleep(50_000);
	}
	return fail("verdict $want");
}

my %token = token_of($node, 'acme', q{SELECT 'plain', secret FROM rk_apikeys.create_key('plain')});
# Whether a key's digest is what pgcrypto makes of its token, and the pepper that it was signed with.
sub stored
{
	my ($token, $pepper) = @_;
	$pepper //= '';
	return $node->safe_psql('postgres', qq{
		SELECT (digest = CASE WHEN pepper_id IS NULL THEN public.digest('$token', 'sha256')
			ELSE public.hmac('$token'::bytea, decode('$pepper', 'base64'), 'sha256') END)::text || ' ' || coalesce(pepper_id, 0)
		FROM rk_apikeys.api_keys WHERE key_id = split_part('$token', '_', 3)});
}

is(stored($token{plain}), 'true 0', 'without a pepper the digest is SHA-256');

# The first pepper: new keys are signed with it, the old one when it is used.
$node->append_conf('postgresql.conf', "rk_apikeys.pepper_file = '$file'");
write_peppers(0600, '# peppers', '', "1:$first");
$node->poll_query_until('postgres', q{SELECT current_setting('rk_apikeys.pepper_file') <> ''}) or die;
%token = (%token, token_of($node, 'acme', q{SELECT 'first', secret FROM rk_apikeys.create_key('first')}));
is(stored($token{first}, $first), 'true 1', 'with one it is pgcrypto\'s HMAC-SHA-256');
my $open = session($node, 'backend');
is($open->query_safe("SELECT code FROM rk_apikeys.verify_key('$token{first}')"), 'valid', 'and verifies');
is($open->query_safe("SELECT code FROM rk_apikeys.verify_key('$token{plain}')"), 'valid', 'so does a key from before');
$node->poll_query_until('postgres', q{SELECT bool_and(coalesce(pepper_id, 0) = 1) FROM rk_apikeys.api_keys}) or die 'not signed anew';
is(stored($token{plain}, $first), 'true 1', 'which is signed anew when it is used');
is($open->query_safe("SELECT code FROM rk_apikeys.verify_key('$token{plain}')"), 'valid', 'and verifies on');
is(sql_as($node, 'acme', q{SELECT count(*) FILTER (WHERE updated_at <> created_at), (SELECT count(*) FROM rk_apikeys.key_events WHERE event <> 'created') FROM rk_apikeys.keys}),
	'0|0', 'that is no change of a setting: no updated_at, no event');

# A second one beside it, then alone.
write_peppers(0600, "2:$second", "1:$first");
$node->poll_query_until('postgres', 'SELECT true');
%token = (%token, token_of($node, 'acme', q{SELECT 'second', secret FROM rk_apikeys.create_key('second')}));
$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM rk_apikeys.api_keys WHERE pepper_id = 2}) or die;
is(stored($token{second}, $second), 'true 2', 'the highest id signs new keys');
# Another token than the one that was signed, with the old pepper and with the new one.
foreach my $pepper (1, 2)
{
	my $other = $node->safe_psql('postgres', 'SELECT rk_apikeys.generate_token()');
	$node->safe_psql('postgres', qq{INSERT INTO rk_apikeys.api_keys SELECT (k).* FROM (SELECT jsonb_populate_record(k, jsonb_build_object(
		'key_id', split_part('$other', '_', 3), 'name', 'other', 'pepper_id', $pepper)) AS k FROM rk_apikeys.api_keys k WHERE name = 'first') x});
	is(sql_as($node, 'backend', "SELECT code FROM rk_apikeys.verify_key('$other')"), 'unknown', "a wrong secret is unknown under pepper $pepper");
	$node->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats') or die;
	is(sql_as($node, 'backend', "SELECT code FROM rk_apikeys.verify_key('$other')"), 'unknown', 'and stays so: nothing is signed anew for it');
}
$node->safe_psql('postgres', q{DELETE FROM rk_apikeys.api_keys WHERE name = 'other'});
# A digest that came meanwhile stands, whatever an earlier verify has left to be stored.
my ($holder, $key_id) = (session($node, 'postgres'), (split /_/, $token{first})[2]);
$holder->query_safe("BEGIN; SELECT FROM rk_apikeys.key_usage WHERE key_id = '$key_id' FOR UPDATE");
is($open->query_safe("SELECT code FROM rk_apikeys.verify_key('$token{first}')"), 'valid', 'a key is signed anew, and that cannot be stored yet');
$node->safe_psql('postgres', "UPDATE rk_apikeys.api_keys SET digest = sha256('x'), pepper_id = 2 WHERE key_id = '$key_id'");
$holder->quit;
$node->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats') or die;
is($node->safe_psql('postgres', "SELECT digest = sha256('x') FROM rk_apikeys.api_keys WHERE key_id = '$key_id'"), 't', 'a digest that came meanwhile stands');
$node->safe_psql('postgres', qq{UPDATE rk_apikeys.api_keys SET digest = public.hmac('$token{first}'::bytea, decode('$first', 'base64'), 'sha256'),
	pepper_id = 1 WHERE key_id = '$key_id'});
is_deeply(verdicts($node, \%token), { plain => 'valid', first => 'valid', second => 'valid' }, 'keys of both verify');
$node->poll_query_until('postgres', q{SELECT bool_and(coalesce(pepper_id, 0) = 2) FROM rk_apikeys.api_keys}) or die 'not signed anew';
write_peppers(0600, "2:$second");
wait_for_verdict($token{$_}, 'valid') foreach sort keys %token;
is($open->query_safe("SELECT code FROM rk_apikeys.verify_key('$token{first}')"), 'valid', 'a session that was open took the reload');

# More keys than a flush writes at once are signed anew, by one statement for each batch of 1,000 and within the 1.5 seconds that a batch
# has. A session flushes them, which has locked the table so that no worker does, and the processor's time counts: on a busy machine a
# worker may run out of time, and then writes fewer keys at once.
$node->safe_psql('postgres', q{CREATE TABLE many AS SELECT rk_apikeys.generate_token() AS token FROM generate_series(1, 2500);
	INSERT INTO rk_apikeys.api_keys (key_id, tenant, name, prefix, environment, created_at, created_by, updated_at, updated_by, digest, digest_kind)
		SELECT split_part(token, '_', 3), 'acme', 'many', 'rk', 'prod', now() - interval '1 day', 'x', now() - interval '1 day', 'x',
			rk_apikeys.hash_token(token), 'native' FROM many;
	GRANT SELECT ON many TO backend});
my $flusher = session($node, 'postgres');
my $pid = $flusher->query_safe('SELECT pg_backend_pid()');
# In seconds, what it has used so far.
my $processor = sub { my @fields = split / /, slurp_file("/proc/$pid/stat") =~ s/.*\) //sr; return ($fields[11] + $fields[12]) / 100; };
$node->safe_psql('postgres', 'CREATE EXTENSION pg_stat_statements; SELECT FROM pg_stat_statements_reset()');
my @used;
foreach my $what ('without a pepper', 'that were signed anew')
{
	$node->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats') or die;
	$flusher->query_safe('BEGIN; LOCK TABLE rk_apikeys.key_usage IN SHARE ROW EXCLUSIVE MODE');
	is(sql_as($node, 'backend', 'SELECT count(*) FROM many WHERE rk_apikeys.verify(token)'), 2500, "2,500 keys $what verify");
	my $before = $processor->();
	# A worker that is about to find the table locked may be in the way.
	my $flushed = 0;
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		$flushed += $flusher->query_safe('SELECT rk_apikeys.flush_usage()');
		last if $flushed > 0;
		Time::HiRes::usleep(100_000);
	}
	is($flushed, 2500, 'and are flushed');
	push @used, $processor->() - $before;
	$flusher->query_safe('COMMIT');
	is($node->safe_psql('postgres', q{SELECT bool_and(coalesce(pepper_id, 0) = 2) FROM rk_apikeys.api_keys WHERE name = 'many'}), 't', 'with the pepper');
}
$flusher->quit;
note "flushes of 2,500 keys: with signatures $used[0] s, without $used[1] s";
cmp_ok($used[0], '<', 3 * 1.5, 'three batches take no longer than three have');
my $statements = $node->safe_psql('postgres', q{SELECT sum(calls) FROM pg_stat_statements WHERE query ~ 'UPDATE rk_apikeys.api_keys' AND NOT toplevel});
is($statements, '3', 'which are signed by one statement each');
$node->safe_psql('postgres', q{DELETE FROM rk_apikeys.api_keys WHERE name = 'many'; DROP TABLE many});

# A thief with the whole database and no file: what he writes, or guesses, is nothing.
$node->safe_psql('postgres', qq{INSERT INTO rk_apikeys.api_keys SELECT (k).* FROM (SELECT jsonb_populate_record(k, jsonb_build_object('key_id', '7Yh2kQ9mZp1x',
	'digest', public.digest('rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j', 'sha256'))) AS k FROM rk_apikeys.api_keys k WHERE name = 'first') x});
is(sql_as($node, 'backend', q{SELECT code FROM rk_apikeys.verify_key('rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j')}),
	'unknown', 'a digest that was written without the pepper opens nothing');
is($node->safe_psql('postgres', qq{SELECT count(*) FROM rk_apikeys.api_keys WHERE digest = public.digest('$token{first}', 'sha256')}), 0,
	'and a token cannot be recognised by its SHA-256');

# Files that are no good: nothing verifies, and the reason is told, but not the name.
my @bad = (
	[ 0640, ["2:$second"], qr/group or world access/ ],
	[ 0604, ["2:$second"], qr/group or world access/ ],
	[ 0600, ["1:$first"], qr/signed with pepper 2, which is missing/ ],
	[ 0600, ["2:$first"], qr/^$/ ],
	[ 0600, [''], qr/contains no pepper/ ],
	[ 0600, ["2:$second", "2:$first"], qr/occurs twice/ ],
	[ 0600, ["x:$second"], qr/line 1 is not id:base64/ ],
	[ 0600, ["0:$second"], qr/line 1 is not id:base64/ ],
	[ 0600, ["2:$second", '40000:AAAA'], qr/line 2 is not id:base64/ ],
	[ 0600, ['2:!!!!'], qr/line 1 is not id:base64/ ],
	[ 0600, ['2:c2hvcnQ='], qr/must have 16 to 64 bytes/ ],
	[ 0600, [ '2:' . encode_base64('x' x 65, '') ], qr/must have 16 to 64 bytes/ ],
	[ 0600, [ '2:' . ('A' x 20000) ], qr/too long/ ],
	[ 0600, [ map { "$_:$second" } 1 .. 65 ], qr/more than 64 peppers/ ]);
foreach (@bad)
{
	my ($mode, $lines, $why) = @$_;
	write_peppers($mode, @$lines);
	my $label = substr(join(' ', sprintf('%o', $mode), @$lines), 0, 30);
	if ($why eq qr/^$/)
	{
		wait_for_verdict($token{first}, 'unknown');
		next;
	}
	wait_for_verdict($token{first}, '58030');
	my $error = error_of('backend', "SELECT rk_apikeys.verify('$token{first}')");
	like($error, qr/58030.*$why/, "$label: $error");
	unlike($error, qr{/peppers|$second}, 'without the name or the contents');
	like(error_of('acme', q{SELECT rk_apikeys.create_key('x')}), qr/58030/, 'and no key is made') unless $why =~ /missing/;
}
is(sql_as($node, 'backend', q{SELECT code FROM rk_apikeys.verify_key('x')}), 'malformed', 'what is no token is malformed all the same');
unlink $file;
mkfifo($file, 0600) or die;
$node->reload;
wait_for_verdict($token{first}, '58030');
like(error_of('backend', "SELECT rk_apikeys.verify('$token{first}')"), qr/58030.*not a regular file/, 'a pipe is refused, and not waited for');
unlink $file;
$node->reload;
wait_for_verdict($token{first}, 'could not open it');
like(slurp_file($node->logfile), qr/DETAIL:  The file is "\Q$file\E"/, 'the log has the name');
write_peppers(0600, "2:$second");
wait_for_verdict($token{first}, 'valid');
is($open->query_safe("SELECT code FROM rk_apikeys.verify_key('$token{first}')"), 'valid', 'a session that was open takes the good file, and keeps none of the others');
like(error_of('backend', 'SHOW rk_apikeys.pepper_file'), qr/42501/, 'the setting is hidden from ordinary roles');
like(error_of('postgres', q{SET rk_apikeys.pepper_file = '/dev/null'}), qr/55P02/, 'and is not for a session to set');
$open->quit;

# A secret of Kubernetes: root's file, which the server's group may read, behind two links. The server is told that a file with the
# sticky bit is root's, because the tests do not run as root.
my $volume = $node->basedir . '/volume';
mkdir $_ or die foreach $volume, "$volume/..v1";
symlink '..v1', "$volume/..data" or die;
symlink '..data/peppers', "$volume/peppers" or die;
append_to_file("$volume/..v1/peppers", "2:$second\n");
$node->append_conf('postgresql.conf', "rk_apikeys.pepper_file = '$volume/peppers'");
{
	my $owner = client('root_owned', '-shared', '-fPIC');
	local $ENV{LD_PRELOAD} = $owner;
	$node->restart;
}
foreach ([ 01640, '' ], [ 01440, '' ], [ 01600, '' ], [ 0600, '' ], [ 0640, 'group or world access' ], [ 0440, 'group or world access' ],
	(map { [ $_, 'owned by root and has more access' ] } 01660, 01650, 01644, 01641, 01642))
{
	my ($mode, $why) = @$_;
	my $label = sprintf '%s, mode %04o', $mode & 01000 ? 'owned by root' : "the server's", $mode & 0777;
	chmod $mode, "$volume/..v1/peppers" or die;
	# Each call is a new session, which reads the file anew.
	my $error = error_of('backend', "SELECT code FROM rk_apikeys.verify_key('$token{first}')");
	like($error, $why ? qr/58030.*$why/ : qr/^none, but valid$/, "$label: $error");
}
is(() = glob($node->data_dir . '/pg_stat/*pepper*'), 0, 'nothing of it is written');
$node->stop;

done_testing();
