# test/t/057_dependencies.pl: nobody but a superuser can drop what the extension needs, and seal() finds pgcrypto by the catalog.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

install_release('0.2');

my $node = rk_initdb('dependencies');
$node->safe_psql('postgres', 'CREATE ROLE owner LOGIN; CREATE ROLE maker LOGIN; CREATE ROLE app LOGIN');
my $key = <<'END';
-----BEGIN PGP PUBLIC KEY BLOCK-----

mI0EawfXawEEAMCegdexcIr4IIB7u4rsEdHfkt+fojhmu8eAS6T0rjID4tUCcJko
4mUZdTSCE0u1a6AqBhX54npvdWo0QAxQQmBjZ3435D/C7QkIFKMB3c+PhBn3VOns
YFLUJ+aEHjaX7SgPOTQDhuN22wn5229/JfsBzoDaTaguxdH58DTiH9MVABEBAAG0
BHRlc3SIzgQTAQoAOBYhBBf+ECBysEhOX61FFywhwiiDRoRABQJrB9drAhsvBQsJ
CAcCBhUKCQgLAgQWAgMBAh4BAheAAAoJECwhwiiDRoRADdMD/3OCcAubQscsuOtZ
WSRSifi8ti+ovPRCp83UJEIe5iugcKPCPpT4jPN5H5ZrHAfGvX/72eguO8GQQer4
dkDz+1ze/TZ7sY9QQcJWGzfpb19Qn4t4cqyd5ml+N1Zq4C/zQj5tcMZSIYwORM1u
QVxmwxSCeZFnCw7SKK2EBvmb1EVSuI0EawfXawEEAKE4//qj8wqJVM1e4jOTA5Q7
eVNOalzOafNvOCrfDpBCxTV17JREpcdvp9yhnP5L/tgvTii9Hf5rKhosAbm8RVqR
RsnNmLGfM4gOXaWR/d1Y9jrLBSa2qr5sVaILs/K59KdYNxuBOdh8VsHQUuIsXcBF
Ha2NrnJ3S7IhJ21mMkTXABEBAAGItgQYAQoAIBYhBBf+ECBysEhOX61FFywhwiiD
RoRABQJrB9drAhsMAAoJECwhwiiDRoRA0J8D/1KkjZY1va25po2m+NbzqKGI6/bj
NasdwXs5Au0FUj9ETLbtPKmBIpe4qWIIg/9vjcNhVYUTbf8ZSKInyydXnvGXWLfx
Sc+jRK0MjSof42YSWj7lV16d/w9W/Ll+iIsmyfV/EULvZjmC74NeuaHA5FiBvydk
3Rgy1IM2cOLJ1rej
=Jx39
-----END PGP PUBLIC KEY BLOCK-----
END

sub database
{
	my ($sql) = @_;
	$node->safe_psql('postgres', "DROP DATABASE IF EXISTS d");
	$node->safe_psql('postgres', 'CREATE DATABASE d OWNER owner');
	$node->safe_psql('d', "GRANT CREATE ON DATABASE d TO maker; ALTER SCHEMA public OWNER TO owner; $sql");
}

sub seals
{
	my ($name) = @_;
	like(sql_as($node, 'app', "SELECT rk_apikeys.seal('x', '$key')", 'd'), qr/^-----BEGIN PGP MESSAGE-----/, "$name: seal()");
}

sub fails
{
	my ($role, $sql, $pattern, $name) = @_;
	$node->psql('d', $sql, stderr => \my $err, extra_params => [ '-U', $role, '-v', 'VERBOSITY=verbose' ]);
	like($err, $pattern, $name);
	unlike($err, qr/sesame/, "$name: the secret is not shown");
}

sub stands
{
	my ($name) = @_;
	is($node->safe_psql('d', q{SELECT count(*) FROM rk_apikeys.keys}), '1', "$name: the keys are there");
	fails('app', "SELECT rk_apikeys.seal('sesame', '$key')", qr/55000.*pgcrypto.*HINT:  Run CREATE EXTENSION pgcrypto/s, "$name: seal() says what it needs");
}

# All that the members need beyond the extension
sub needs
{
	return $node->safe_psql('d', q{
		WITH member AS (SELECT d.classid, d.objid FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
			WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'rk_apikeys'
			UNION SELECT 'pg_extension'::regclass, oid FROM pg_extension WHERE extname = 'rk_apikeys')
		SELECT DISTINCT pg_describe_object(refclassid, refobjid, 0) FROM pg_depend d
		WHERE (classid, objid) IN (SELECT * FROM member) AND (refclassid, refobjid) NOT IN (SELECT * FROM member) AND refobjid >= 12000
			AND (pg_identify_object(refclassid, refobjid, 0)).identity !~ '^(rk_apikeys|pg_catalog|information_schema)\M'
		ORDER BY 1});
}

my $made = 'SELECT FROM rk_apikeys.create_key(\'kept\', tenant => \'t\')';
foreach my $case (
	[ 'an install', "CREATE EXTENSION rk_apikeys CASCADE; $made" ],
	[ 'an update', "CREATE EXTENSION IF NOT EXISTS pgcrypto; CREATE EXTENSION rk_apikeys VERSION '0.2' CASCADE; $made; ALTER EXTENSION rk_apikeys UPDATE" ])
{
	my ($how, $install) = @$case;
	my $update = $how eq 'an update';

	# The database's owner drops the schema that pgcrypto is in
	database(($update ? '' : 'CREATE EXTENSION pgcrypto SCHEMA public; ') . $install);
	is(needs(), 'language plpgsql', "$how needs nothing but plpgsql");
	seals("$how, pgcrypto in public");
	sql_as($node, 'owner', 'DROP SCHEMA public CASCADE', 'd');
	stands("$how, after DROP SCHEMA public CASCADE");

	# A role with CREATE on the database drops its schema, or its pgcrypto
	foreach my $drop ('DROP SCHEMA d CASCADE', 'DROP EXTENSION pgcrypto CASCADE')
	{
		database('');
		sql_as($node, 'maker', 'CREATE SCHEMA d; CREATE EXTENSION pgcrypto SCHEMA d', 'd');
		$node->safe_psql('d', $install);
		seals("$how, pgcrypto in d");
		sql_as($node, 'maker', $drop, 'd');
		stands("$how, after $drop");
	}
}

# The owner of pgcrypto adds functions of the same names: they are not called, and search_path leads to nothing
database('');
sql_as($node, 'maker', q{CREATE SCHEMA d; CREATE EXTENSION pgcrypto SCHEMA d; CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;
	CREATE FUNCTION evil.pgp_pub_encrypt(secret text, key bytea) RETURNS bytea LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'took %', secret; END $$;
	CREATE FUNCTION evil.dearmor(text) RETURNS bytea LANGUAGE sql AS $$ SELECT 'x'::bytea $$;
	CREATE FUNCTION evil.armor(bytea) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
	ALTER EXTENSION pgcrypto ADD FUNCTION evil.pgp_pub_encrypt(text, bytea);
	ALTER EXTENSION pgcrypto ADD FUNCTION evil.dearmor(text);
	ALTER EXTENSION pgcrypto ADD FUNCTION evil.armor(bytea)}, 'd');
$node->safe_psql('d', 'CREATE EXTENSION rk_apikeys; ALTER DATABASE d SET search_path = evil, pg_catalog');
seals('functions that the owner of pgcrypto added');

# Who may not execute a function of pgcrypto cannot seal
fails('app', q{SELECT rk_apikeys.seal('sesame', 'no key')}, qr/39000/, 'a key that is none');
$node->safe_psql('d', 'REVOKE EXECUTE ON FUNCTION d.pgp_pub_encrypt(text, bytea) FROM PUBLIC');
fails('app', "SELECT rk_apikeys.seal('sesame', '$key')", qr/42501: permission denied for function pgp_pub_encrypt/, 'without EXECUTE');
is($node->safe_psql('d', q{SELECT rk_apikeys.seal(NULL, 'x') IS NULL}), 't', 'NULL for NULL');

# plpgsql is trusted too: its owner could drop the extension with it
database('DROP EXTENSION plpgsql');
sql_as($node, 'maker', 'CREATE EXTENSION plpgsql', 'd');
fails('postgres', 'CREATE EXTENSION rk_apikeys', qr/55000: the owner of the extension plpgsql, role "maker", is not a superuser/, 'plpgsql of another');
$node->safe_psql('d', 'DROP EXTENSION plpgsql; CREATE EXTENSION plpgsql; CREATE EXTENSION rk_apikeys');
foreach my $sql ('DROP EXTENSION plpgsql CASCADE', 'DROP LANGUAGE plpgsql CASCADE', 'DROP EXTENSION rk_apikeys', 'DROP SCHEMA rk_apikeys CASCADE')
{
	fails($_, $sql, qr/42501: must be owner/, "$_ cannot $sql") foreach 'owner', 'maker';
}

done_testing();
