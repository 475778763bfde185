# test/t/002_restart.pl: keys verify the same after a restart, and after the server was killed.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

my $node = rk_node('restart');
my $token = keys_of_every_state($node);
my $expected = expected_verdicts();

is_deeply(verdicts($node, $token), $expected, 'verdicts before');
my $before = contents($node);

$node->restart;
is_deeply(contents($node), $before, 'a restart changes no row');
is_deeply(verdicts($node, $token), $expected, 'same verdicts after a restart');

# Committed, and then the server dies without a checkpoint.
my %late = token_of($node, 'acme', q{SELECT 'late', secret FROM rk_apikeys.create_key('late')});
sql_as($node, 'acme', q{UPDATE rk_apikeys.keys SET enabled = false WHERE environment = 'stage'});
my $open = session($node, 'acme');
$open->query_safe(q{BEGIN; INSERT INTO rk_apikeys.keys (name) VALUES ('never committed')});
$before = contents($node);
kill_server($node);
eval { $open->quit };
$node->start;
is_deeply(contents($node), $before, 'a crash loses no committed row, and keeps no other');
is_deeply(
	verdicts($node, { %$token, %late }),
	{ %$expected, late => 'valid', named => 'disabled' },
	'same verdicts after a crash');
like(sql_as($node, 'acme', q{INSERT INTO rk_apikeys.keys (name) VALUES ('next') RETURNING secret}), qr/^rk_prod_/, 'the next key is made');

done_testing();
