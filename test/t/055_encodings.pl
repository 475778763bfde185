# test/t/055_encodings.pl: in a database of every server encoding a key is made, verified and found, a token among other characters is
# masked where it stands, and no token makes an error.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = rk_initdb('encodings', PRELOAD, "log_statement = 'all'");
# Client-only encodings come last: SJIS and those behind it cannot be a database's.
my @encodings = split /\n/, $node->safe_psql('postgres', q{
	SELECT pg_encoding_to_char(n) FROM generate_series(0, pg_char_to_encoding('SJIS') - 1) n WHERE pg_encoding_to_char(n) <> ''});
cmp_ok(scalar @encodings, '>', 30, 'PostgreSQL has many encodings');

# The bytes of a character of an encoding that is not ASCII
$node->safe_psql('postgres', q{
	CREATE FUNCTION beyond_ascii(encoding name) RETURNS bytea LANGUAGE plpgsql AS $$
	DECLARE
		c text;
	BEGIN
		FOREACH c IN ARRAY ARRAY['한', '漢', 'あ', 'ж', 'é', 'ا', 'ก', 'א', 'λ', 'Š'] LOOP
			BEGIN
				RETURN convert_to(c, encoding);
			EXCEPTION WHEN untranslatable_character OR undefined_function THEN
				NULL;
			END;
		END LOOP;
		RETURN CASE encoding WHEN 'MULE_INTERNAL' THEN '\x92a4a2'::bytea WHEN 'EUC_JIS_2004' THEN '\xa4a2' ELSE '\xc3a9' END;
	END $$});

my @secrets;
foreach my $encoding (@encodings)
{
	my $bytes = $node->safe_psql('postgres', "SELECT encode(beyond_ascii('$encoding'), 'hex')");
	$node->safe_psql('postgres', "CREATE DATABASE encoded ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
	my ($status, $out, $error) = $node->psql('encoded', qq~
		CREATE EXTENSION rk_apikeys CASCADE;
		SELECT convert_from('\\x$bytes', '$encoding') AS c \\gset
		SELECT secret, left(secret, 21) || '********' || substr(secret, 61, 4) AS masked FROM rk_apikeys.create_key('key' || :'c', description => repeat(:'c', 600)) \\gset
		SELECT secret FROM rk_apikeys.create_key(repeat(:'c', 40) || :'secret' || :'c') \\g /dev/null
		SELECT :'secret';
		SELECT (rk_apikeys.verify_key(:'secret')).code;
		SELECT count(*) FROM rk_apikeys.list_keys(search => 'KEY' || :'c');
		SELECT string_agg(DISTINCT (rk_apikeys.verify_key(t)).code, ' ' ORDER BY (rk_apikeys.verify_key(t)).code)
			FROM (VALUES (:'c'), (:'c' || :'secret'), (:'secret' || :'c'), (repeat(:'c', 60)), (overlay(:'secret' PLACING :'c' FROM 40)),
				(left(:'secret', 66) || :'c'), (overlay(:'secret' PLACING repeat(:'c', 12) FROM 9 FOR 12))) v(t);
		SELECT count(*) FROM rk_apikeys.keys WHERE name = repeat(:'c', 40) || :'masked' || :'c';
		SELECT rk_apikeys.redact(:'c' || :'secret' || :'c') = :'c' || :'masked' || :'c',
			rk_apikeys.redact(:'secret' || repeat(:'c', 3) || :'secret') = :'masked' || repeat(:'c', 3) || :'masked';
		SELECT count(*) FROM rk_apikeys.find_tokens(:'c' || :'secret' || :'c' || :'secret');
		\\set ON_ERROR_STOP off
		SET client_min_messages = error;
		SELECT (:'c' || :'secret' || :'c')::int;
		SELECT ('{"' || repeat(:'c', 50) || '": ' || :'secret' || :'c')::json;
		SELECT rk_apikeys.list_keys(sort_by => :'c' || :'secret');
		SELECT rk_apikeys.revoke_key(repeat(:'c', 79) || :'secret')~, on_error_stop => 1);
	my ($secret, @rows) = split /\n/, $out;
	is("$status @rows", '0 valid 1 malformed 1 t|t 2', "$encoding: a key is made, verified and found, and tokens are masked") or diag($error);
	push @secrets, $secret =~ /_([0-9A-Za-z]{43})[0-9A-Za-z]{6}$/;
	is_deeply([ $error =~ /(UTF8|invalid byte sequence|PANIC|server closed)/ ], [], "$encoding: errors are well-formed") or diag($error);
	$node->safe_psql('postgres', 'DROP DATABASE encoded');
}
my $log = slurp_file($node->logfile);
is(scalar @secrets, scalar @encodings, 'tokens were logged');
is_deeply([ grep { index($log, $_) >= 0 } @secrets ], [], 'the log has none of their secrets');

done_testing();
