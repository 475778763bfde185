# test/t/Charges.pm: what the tests of charge => 'commit' share: tables and functions that insert a row for each unit that a transaction was
# given, and the comparison of these rows with the units that the limits have counted.
package Charges;

use strict;
use warnings;

use Exporter 'import';

our @EXPORT = qw(CHARGES COMMITTED LEFTOVER charge_limits charge_keys);

# charge() takes units and inserts a row in the same transaction. charge_caught() does it in a block that may fail, and returns NULL then.
# charge_loop() ends its transactions by itself. void has the units of transactions that were rolled back after PREPARE, which keep them.
use constant CHARGES => q{
CREATE TABLE work (key int NOT NULL, units int NOT NULL);
CREATE TABLE void (gid text NOT NULL, key int NOT NULL, units int NOT NULL);
CREATE TABLE once (n int UNIQUE DEFERRABLE INITIALLY DEFERRED);
INSERT INTO once VALUES (1);
CREATE FUNCTION charge(token text, cost int, key int) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE v rk_apikeys.verdict;
BEGIN
  v := rk_apikeys.verify_key(token, cost => cost, charge => 'commit');
  IF v.valid THEN
    INSERT INTO work VALUES (key, cost);
  ELSIF v.code NOT IN ('rate_limited', 'quota_exceeded') THEN
    RAISE 'the verdict is %', v.code;
  END IF;
  RETURN v.valid;
END $$;
CREATE FUNCTION charge_caught(token text, cost int, key int, fails boolean) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE given boolean;
BEGIN
  given := charge(token, cost, key);
  IF fails THEN PERFORM 1 / 0; END IF;
  RETURN given;
EXCEPTION WHEN division_by_zero THEN
  RETURN NULL;
END $$;
CREATE PROCEDURE charge_loop(token text, times int, key int) LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. times LOOP
    PERFORM charge(token, 1, key);
    IF i % 3 = 2 THEN ROLLBACK; ELSE COMMIT; END IF;
  END LOOP;
END $$;
GRANT INSERT ON work, void, once TO backend;};

# The units of the rows that are committed, by key.
use constant COMMITTED => '(SELECT key, units, xmin FROM work UNION ALL SELECT key, units, xmin FROM void)';

# What a killed server left prepared: these statements decide it.
use constant LEFTOVER => q{SELECT format('%s PREPARED %L;', CASE WHEN gid IN (SELECT gid FROM void) THEN 'ROLLBACK' ELSE 'COMMIT' END, gid)
	FROM pg_prepared_xacts};

# The limits that bind the keys below: of all keys, of each key, by calendar, one that is raised again and again, and one by rate. Returns
# pairs of a name and a condition: which keys it counts.
sub charge_limits
{
	return (
		'every' => 'true',
		'each' => 'true',
		'yearly' => 'key IN (2, 3)',
		'tight' => 'key = 4',
		'pace' => 'key = 5');
}

# SQL that makes the limits, as an admin, and the keys, which prints the tokens, as a manager.
sub charge_keys
{
	return (q{
	INSERT INTO rk_apikeys.limits (tenant, name, owner, per_key, units, rate_window, period) VALUES
		('acme', 'every', NULL, false, 1e12, NULL, 'total'),
		('acme', 'each', NULL, true, 1e12, NULL, 'total'),
		('acme', 'yearly', 'a', false, 1e12, NULL, 'year'),
		('acme', 'tight', 'b', false, 100, NULL, 'total'),
		('acme', 'pace', 'c', false, 50, '1 s', NULL)}, q{
	WITH k AS (INSERT INTO rk_apikeys.keys (name, owner, rate_limit, rate_window) VALUES
		('0', NULL, NULL, NULL), ('1', NULL, NULL, NULL), ('2', 'a', NULL, NULL), ('3', 'a', 200, '1 s'), ('4', 'b', NULL, NULL), ('5', 'c', NULL, NULL)
		RETURNING name, secret) SELECT secret FROM k ORDER BY name});
}

1;
