# test/t/058_key_manages_keys.pl: a key with apikeys:manage makes and changes no key beyond itself, and itself neither.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

my $node = rk_node('main', PRELOAD);

# A key of tenant acme, with settings; its id and token.
sub key
{
	my ($name, $settings) = @_;
	return split /\|/, sql_as($node, 'acme',
		"SELECT key_id, secret FROM rk_apikeys.create_key('$name', environment => 'stage', $settings)");
}

my ($boss_id, $boss) = key('boss', "scopes => '{apikeys:manage,records:*}', expires_at => now() + interval '10 days',"
	. " allowed_cidrs => '{10.0.0.0/8,2001:db8::/32}', rate_limit => 100, rate_window => '1 minute'");
my ($free_id, $free) = key('free', "scopes => '{apikeys:manage,records:*}'");
my ($weak_id) = key('weak', "scopes => '{records:read}', expires_at => now() + interval '1 day'");
my ($strong_id) = key('strong', "scopes => '{records:read,billing:write}'");

# What a statement gives to the session that has authenticated as a key: ok, or the message's part after the SQLSTATE.
sub outcome
{
	my ($token, $sql) = @_;
	my ($out, $err);
	my $rc = $node->psql('postgres', "BEGIN; SELECT code FROM rk_apikeys.authenticate('$token', client_addr => '10.1.1.1');\n$sql;\nROLLBACK;",
		extra_params => [ '-U', 'acme', '-v', 'VERBOSITY=verbose' ], stdout => \$out, stderr => \$err);
	return $err =~ /ERROR:  (\w{5}): (.*)/ ? "$1 $2" : $rc == 0 ? 'ok' : "psql ended with $rc: $err";
}

# Roles of the test have the right to verify too.
$node->safe_psql('postgres', 'GRANT rk_apikeys_verifier TO acme');

my $create = 'SELECT FROM rk_apikeys.create_key';
my $within = "environment => 'stage', expires_at => now() + interval '9 days', allowed_cidrs => '{10.2.0.0/16}', rate_limit => 10, rate_window => '1 minute'";
my $beyond = sub { qr/^42501 API key "$boss_id" cannot give a key "$_[0]" beyond its own/ };
my $refused = qr/^42501 API key "\w+" cannot change or delete API key "$strong_id"/;
my @cases = (
	[ $boss, "$create('a', scopes => '{records:read}', $within)", qr/^ok$/ ],
	[ $boss, "$create('a', $within)", qr/^ok$/ ],
	[ $boss, "$create('a', " . $within =~ s/expires_at => [^,]*, //r . ')', $beyond->('expires_at') ],
	[ $boss, "$create('a', " . $within =~ s/9 days/11 days/r . ')', $beyond->('expires_at') ],
	[ $boss, "$create('a', " . $within =~ s/now\(\) \+ interval '9 days'/'infinity'/r . ')', $beyond->('expires_at') ],
	[ $boss, "$create('a', " . $within =~ s/allowed_cidrs => [^,]*, //r . ')', $beyond->('allowed_cidrs') ],
	[ $boss, "$create('a', " . $within =~ s/10.2.0.0/11.2.0.0/r . ')', $beyond->('allowed_cidrs') ],
	[ $boss, "$create('a', " . $within =~ s/10.2.0.0\/16/10.2.0.0\/16,0.0.0.0\/0/r . ')', $beyond->('allowed_cidrs') ],
	[ $boss, "$create('a', " . $within =~ s/10.2.0.0\/16/::ffff:10.2.0.0\/112,2001:db8:1::\/48/r . ')', qr/^ok$/ ],
	[ $boss, "$create('a', " . $within =~ s/10.2.0.0\/16/2001:db8::\/31/r . ')', $beyond->('allowed_cidrs') ],
	[ $boss, "$create('a', " . $within =~ s/, rate_limit.*//r . ')', $beyond->('rate_limit') ],
	[ $boss, "$create('a', " . $within =~ s/limit => 10/limit => 101/r . ')', $beyond->('rate_limit') ],
	[ $boss, "$create('a', " . $within =~ s/1 minute/1 second/r . ')', $beyond->('rate_limit') ],
	[ $boss, "$create('a', " . $within =~ s/limit => 10,/limit => 100,/r . ')', qr/^ok$/ ],
	# Itself
	[ $boss, "UPDATE rk_apikeys.keys SET expires_at = NULL WHERE key_id = '$boss_id'", $beyond->('expires_at') ],
	[ $boss, "UPDATE rk_apikeys.keys SET allowed_cidrs = NULL WHERE key_id = '$boss_id'", $beyond->('allowed_cidrs') ],
	[ $boss, "UPDATE rk_apikeys.keys SET rate_limit = NULL, rate_window = NULL WHERE key_id = '$boss_id'", $beyond->('rate_limit') ],
	[ $boss, "UPDATE rk_apikeys.keys SET rate_limit = 1000 WHERE key_id = '$boss_id'", $beyond->('rate_limit') ],
	[ $boss, "UPDATE rk_apikeys.keys SET rate_window = '1 s' WHERE key_id = '$boss_id'", $beyond->('rate_limit') ],
	[ $boss, "UPDATE rk_apikeys.keys SET rate_limit = 50, description = 'x' WHERE key_id = '$boss_id'", qr/^ok$/ ],
	[ $boss, "SELECT FROM rk_apikeys.rotate_key('$boss_id')", qr/^ok$/ ],
	[ $boss, "SELECT FROM rk_apikeys.rotate_key('$boss_id', expires_at => now() + interval '20 days')", $beyond->('expires_at') ],
	[ $boss, "SELECT rk_apikeys.revoke_key('$boss_id')", qr/^ok$/ ],
	[ $boss, "DELETE FROM rk_apikeys.keys WHERE key_id = '$boss_id'", qr/^ok$/ ],
	# A key that has less, in a column that does not change
	[ $boss, "UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = '$weak_id'", qr/^ok$/ ],
	[ $boss, "UPDATE rk_apikeys.keys SET expires_at = NULL WHERE key_id = '$weak_id'", $beyond->('expires_at') ],
	[ $boss, "SELECT FROM rk_apikeys.rotate_key('$weak_id')", $beyond->('allowed_cidrs') ],
	[ $boss, "SELECT rk_apikeys.revoke_key('$weak_id')", qr/^ok$/ ],
	[ $boss, "DELETE FROM rk_apikeys.keys WHERE key_id = '$weak_id'", qr/^ok$/ ],
	# A key with a scope that the principal does not have, whatever changes
	(map { [ $_, "UPDATE rk_apikeys.keys SET scopes = '{records:read}' WHERE key_id = '$strong_id'", $refused ] } $boss, $free),
	[ $free, "UPDATE rk_apikeys.keys SET scopes = '{}' WHERE key_id = '$strong_id'", $refused ],
	[ $free, "UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = '$strong_id'", $refused ],
	[ $free, "UPDATE rk_apikeys.keys SET name = 'x' WHERE key_id = '$strong_id'", $refused ],
	[ $free, "SELECT FROM rk_apikeys.rotate_key('$strong_id')", $refused ],
	[ $free, "SELECT rk_apikeys.revoke_key('$strong_id')", $refused ],
	[ $free, "DELETE FROM rk_apikeys.keys WHERE key_id = '$strong_id'", $refused ],
	[ $free, "DELETE FROM rk_apikeys.api_keys WHERE key_id = '$strong_id'", $refused ],
	# A principal without an end, addresses or limit gives any
	[ $free, "$create('a', environment => 'stage', scopes => '{records:write}')", qr/^ok$/ ],
	[ $free, "DELETE FROM rk_apikeys.keys WHERE key_id = '$weak_id'", qr/^ok$/ ],
	[ $free, "DELETE FROM rk_apikeys.keys WHERE key_id = '$free_id'", qr/^ok$/ ]);
foreach my $case (@cases)
{
	my ($token, $sql, $expected) = @$case;
	like(outcome($token, $sql), $expected, ($token eq $boss ? 'boss: ' : 'free: ') . $sql);
}

# What a principal sees: the keys of its environment, and their usage and events
my ($prod_id, $prod) = split /\|/, sql_as($node, 'acme', q{SELECT key_id, secret FROM rk_apikeys.create_key('prod key', scopes => '{records:read}')});
$node->safe_psql('postgres', "SELECT rk_apikeys.verify('$prod'), rk_apikeys.verify('$free')");
sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
$node->safe_psql('postgres', "SELECT rk_apikeys.verify('$prod'), rk_apikeys.verify('$free')");
my $seen = <<"END" =~ s/\n/ /gr;
SELECT (SELECT count(*) FROM rk_apikeys.keys WHERE key_id = k),
  (SELECT count(*) FROM rk_apikeys.list_keys() l WHERE l.key_id = k),
  (SELECT count(*) FROM rk_apikeys.key_usage u WHERE u.key_id = k),
  (SELECT count(*) FROM rk_apikeys.key_usage_daily d WHERE d.key_id = k),
  (SELECT count(*) > 0 FROM rk_apikeys.key_events e WHERE e.key_id = k),
  (SELECT count(*) FROM rk_apikeys._live_usage() u WHERE u.key_id = k),
  coalesce(rk_apikeys._live_use_count(k), 0) > 0, rk_apikeys._live_last_used_at(k) IS NOT NULL
  FROM (VALUES ('$free_id', 1), ('$prod_id', 2)) v(k, n) ORDER BY n
END
my $all = '1|1|1|1|t|1|t|t';
is(sql_as($node, 'acme', $seen), "$all\n$all", 'a manager sees both keys');
my (undef, $out) = $node->psql('postgres', "BEGIN; SELECT code FROM rk_apikeys.authenticate('$free');\n$seen;\nROLLBACK;", extra_params => [ '-U', 'acme' ]);
is($out, "valid\n$all\n0|0|0|0|f|0|f|f", 'a key of stage sees nothing of a key of prod');
is(outcome($free, "UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = '$prod_id'"), 'ok', 'and an UPDATE finds no such key');
like(outcome($free, "SELECT rk_apikeys.revoke_key('$prod_id')"), qr/^42704/, 'nor does revoke_key');
is(sql_as($node, 'acme', "SELECT status FROM rk_apikeys.keys WHERE key_id = '$prod_id'"), 'active', 'it is as it was');

# Without a principal the same role does all that.
is(sql_as($node, 'acme', "DELETE FROM rk_apikeys.keys WHERE key_id = '$strong_id' RETURNING 1"), '1', 'a manager without a principal deletes it');
done_testing();
