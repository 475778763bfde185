# test/t/009_imported_rows.pl: an update from 0.2, and a dump of it, leave imported keys with masks that invent nothing, and addresses that are
# hosts. Neither counts as a change of a key.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

install_release('0.2');
my $node = rk_initdb('imported', PRELOAD, "rk_apikeys.usage_flush_interval = '1h'");
rk_extend($node);
my $dir = PostgreSQL::Test::Utils::tempdir;
$node->safe_psql('postgres', "CREATE DATABASE $_") foreach 'old', 'restored';
$node->safe_psql('old', q{CREATE EXTENSION rk_apikeys VERSION '0.2' CASCADE});
my ($own_id, $own) = create_key($node, 'own', undef, 'acme', 'old');
my $with_hint = sql_as($node, 'boss', q{SELECT rk_apikeys.import_key('with a hint', sha256('sk_live_0123456789abcdef'), 'sha256', hint => 'cdef',
	tenant => 'acme')}, 'old');
my $without = sql_as($node, 'boss', q{SELECT rk_apikeys.import_key('without', sha512('sk_live_fedcba9876543210'), 'sha512', tenant => 'acme')}, 'old');
like(sql_as($node, 'acme', q{SELECT masked_key FROM rk_apikeys.keys WHERE name = 'with a hint'}, 'old'), qr/^rk_prod_\w+_\*{8}cdef$/,
	'0.2 invented a mask');
my %address = ($own_id => '::ffff:192.0.2.1/120', $with_hint => '198.51.100.2/24', $without => '2001:db8::3/64');
$node->safe_psql('old', "INSERT INTO rk_apikeys.key_usage (key_id, tenant, last_used_at, last_used_addr) VALUES ('$_', 'acme', now(), '$address{$_}')")
  foreach keys %address;
# As 0.2 dumped them
my $columns = columns($node, 'old');
$node->safe_psql('old', "COPY rk_apikeys.api_keys ($columns->{api_keys}) TO '$dir/api_keys'");

my $seen = 'SELECT name, updated_at, updated_by FROM rk_apikeys.api_keys ORDER BY name';
my $events = 'SELECT event, count(*) FROM rk_apikeys.key_events GROUP BY 1 ORDER BY 1';
my $before = [ map { $node->safe_psql('old', $_) } $seen, $events ];
# A session of before sees what the update has made.
my $acme = $node->background_psql('old', extra_params => [ '-U', 'acme' ]);
my $listed = "SELECT name, replace(masked_key, '$own_id', 'ID') ~ '^rk_prod_ID_[*]{8}[0-9A-Za-z]{4}\$' AS ours FROM rk_apikeys.list_keys(sort_by => 'name')";
is($acme->query_safe($listed), "own|t\nwith a hint|f\nwithout|f", 'a session lists with 0.2');
$node->safe_psql('old', q{CREATE VIEW own_view AS SELECT * FROM rk_apikeys.keys; CREATE VIEW own_list AS SELECT * FROM rk_apikeys.list_keys()});
my (undef, undef, $depends) = $node->psql('old', 'ALTER EXTENSION rk_apikeys UPDATE');
like($depends, qr/view public\.own_list depends on function rk_apikeys\.list_keys/, "the update names a DBA's view on list_keys");
$node->safe_psql('old', 'DROP VIEW own_list; ALTER EXTENSION rk_apikeys UPDATE');
is_deeply([ map { $node->safe_psql('old', $_) } $seen, $events ], $before, 'the update is no change of a key, and no event');
is($acme->query_safe($listed), "own|t\nwith a hint|f\nwithout|f", 'the session goes on');
is($node->safe_psql('old', 'SELECT count(*) FROM own_view'), '3', "so does a DBA's view on keys");
my $masks = q{SELECT name, masked_key FROM rk_apikeys.keys WHERE name <> 'own' ORDER BY name};
is(sql_as($node, 'acme', $masks, 'old'), "with a hint|********cdef\nwithout|********", 'the masks invent nothing');
is($node->safe_psql('old', q{SELECT start IS NULL FROM rk_apikeys.api_keys WHERE name = 'own'}), 't', 'a token of ours has no start');
is($node->safe_psql('old', q{SELECT array_agg(last_used_addr ORDER BY last_used_addr) FROM rk_apikeys.key_usage}),
	'{192.0.2.1,198.51.100.2,2001:db8::3}', 'the addresses are hosts');
is($node->safe_psql('old', q{SELECT count(*) FROM rk_apikeys.verify_key('sk_live_0123456789abcdef') v WHERE v.code = 'valid'}), '1', 'the tokens are good');
sql_as($node, 'boss', q{SELECT rk_apikeys.import_key('new', sha256('gh_0123456789abcdef'), 'sha256', start => 'gh_', tenant => 'acme')}, 'old');
is(sql_as($node, 'acme', q{SELECT masked_key FROM rk_apikeys.list_keys('gh_0123456789abcdef')}, 'old'), 'gh_********', 'a start can be given now');

# A dump of 0.2 that is restored into 0.3
$node->safe_psql('restored', 'CREATE EXTENSION rk_apikeys');
$node->safe_psql('restored', "COPY rk_apikeys.api_keys ($columns->{api_keys}) FROM '$dir/api_keys'");
is(sql_as($node, 'acme', $masks, 'restored'), "with a hint|********cdef\nwithout|********", 'a restored row invents nothing either');
is($node->safe_psql('restored', $seen), $before->[0], 'and is as it was');
is($node->safe_psql('restored', q{SELECT count(*) FROM rk_apikeys.key_events}), '0', 'without an event');
$acme->quit;

done_testing();
