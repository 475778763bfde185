# test/t/001_secret_gone.pl: a key's secret is told to the role that makes it, until the transaction ends; it is kept nowhere.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = rk_node('secret', 'max_prepared_transactions = 2');
$node->safe_psql('postgres', 'GRANT globex TO acme');

my $acme = session($node, 'acme');
my $other = session($node, 'acme');
my $super = session($node, 'postgres');

# The id and token of a new key of the open session.
sub create
{
	my ($name) = @_;
	return split /\|/, $acme->query_safe("INSERT INTO rk_apikeys.keys (name) VALUES ('$name') RETURNING key_id, secret");
}

sub reveal
{
	my ($session, $id) = @_;
	return $session->query_safe("SELECT coalesce(rk_apikeys.reveal('$id'), 'gone')");
}

sub in_view
{
	my ($session, $id) = @_;
	return $session->query_safe("SELECT coalesce(secret, 'gone') FROM rk_apikeys.keys WHERE key_id = '$id'");
}

my (%token, @ids);

# While the transaction is open
$acme->query_safe('BEGIN');
my ($id, $token) = create('committed');
like($token, qr/^rk_prod_${id}_[0-9A-Za-z]{49}$/, 'INSERT ... RETURNING tells the token');
is(reveal($acme, $id), $token, 'reveal tells it again in the transaction');
is(in_view($acme, $id), $token, 'so does the view');
is(reveal($other, $id), 'gone', 'not in another session of the role');
is(reveal($super, $id), 'gone', 'not to a superuser');
$acme->query_safe('SET LOCAL ROLE globex');
is(reveal($acme, $id), 'gone', 'not to another role in the transaction');
$acme->query_safe('RESET ROLE');
is(reveal($acme, $id), $token, 'to the role that made it, back in its place');
$acme->query_safe('SAVEPOINT s; SELECT 1; ROLLBACK TO s');
is(reveal($acme, $id), $token, 'after a savepoint is rolled back, too');

# COMMIT
$acme->query_safe('COMMIT');
is(reveal($acme, $id), 'gone', 'gone after COMMIT');
is(in_view($acme, $id), 'gone', 'gone from the view');
is(in_view($other, $id), 'gone', 'another session finds the key, and no secret');
$token{committed} = $token;
push @ids, $id;

# Without a transaction block the statement is the transaction
($id, $token) = create('single');
is(reveal($acme, $id), 'gone', 'gone after a statement of its own');
$token{single} = $token;

# ROLLBACK
$acme->query_safe('BEGIN');
($id, $token) = create('rolled back');
is(reveal($acme, $id), $token, 'told before ROLLBACK');
$acme->query_safe('ROLLBACK');
is(reveal($acme, $id), 'gone', 'gone after ROLLBACK');
$token{'rolled back'} = $token;

# PREPARE TRANSACTION
$acme->query_safe('BEGIN');
($id, $token) = create('prepared');
is(reveal($acme, $id), $token, 'told before PREPARE TRANSACTION');
$acme->query_safe("PREPARE TRANSACTION 'rk'");
is(reveal($acme, $id), 'gone', 'gone after PREPARE TRANSACTION');
$token{prepared} = $token;
push @ids, $id;

# Nowhere on disk, nor in a log that has every statement. The key ids are there: the search finds what there is to find.
$node->safe_psql('postgres', 'CHECKPOINT');
foreach my $i (0, 1)
{
	isnt(scalar files_holding($node->data_dir, $ids[$i]), 0, 'the key id is in the data directory');
}
is_deeply([ map { files_holding($node->data_dir, substr($_, 21, 43)) } values %token ], [], 'no secret is in the data directory');
my $log = slurp_file($node->logfile);
is_deeply([ grep { index($log, substr($_, 21, 43)) >= 0 } values %token ], [], 'no secret is in the log');

# Now the log may have tokens.
my %verdict = (committed => 'valid', single => 'valid', 'rolled back' => 'unknown');
is_deeply(verdicts($node, \%token), { %verdict, prepared => 'unknown' }, 'what was committed verifies');
$other->query_safe("COMMIT PREPARED 'rk'");
is_deeply(verdicts($node, \%token), { %verdict, prepared => 'valid' }, 'and what was prepared, once it is committed');
is(in_view($acme, $id), 'gone', 'gone after COMMIT PREPARED');

$_->quit foreach $acme, $other, $super;
done_testing();
