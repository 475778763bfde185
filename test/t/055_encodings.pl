# test/t/055_encodings.pl: the extension works in a database of every server encoding.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

my $node = rk_initdb('encodings', PRELOAD);
# Client-only encodings come last: SJIS and those behind it cannot be a database's.
my @encodings = split /\n/, $node->safe_psql('postgres', q{
	SELECT pg_encoding_to_char(n) FROM generate_series(0, pg_char_to_encoding('SJIS') - 1) n WHERE pg_encoding_to_char(n) <> ''});
cmp_ok(scalar @encodings, '>', 30, 'PostgreSQL has many encodings');
foreach my $encoding (@encodings)
{
	$node->safe_psql('postgres', "CREATE DATABASE encoded ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
	my ($status, $out, $error) = $node->psql('encoded', q{
		CREATE EXTENSION rk_apikeys CASCADE;
		SELECT secret FROM rk_apikeys.create_key('key', description => 'a description') \gset
		SELECT (rk_apikeys.verify_key(:'secret')).code;
		SELECT count(*) FROM rk_apikeys.list_keys(search => 'KEY')}, on_error_stop => 1);
	is("$status $out", "0 valid\n1", "$encoding: a key is made, verified and found") or diag($error);
	$node->safe_psql('postgres', 'DROP DATABASE encoded');
}

done_testing();
