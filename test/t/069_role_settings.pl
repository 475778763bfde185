# test/t/069_role_settings.pl: whatever settings a role or a database has, the extension is made the same, verdicts and lists are the same,
# and the log shows no token.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = rk_node('settings', PRELOAD, "log_statement = 'all'", 'log_min_messages = debug1');
my $plain = catalog($node, 'postgres');

# Settings that change what a statement means, how a value is written, or how a plan is made and run; one database for each group
my %settings = (
	syntax => { standard_conforming_strings => 'off', escape_string_warning => 'off', backslash_quote => 'on', transform_null_equals => 'on', array_nulls => 'off',
		quote_all_identifiers => 'on', check_function_bodies => 'off', xmloption => 'document', lo_compat_privileges => 'on', 'plpgsql.variable_conflict' => 'use_variable',
		'plpgsql.extra_errors' => 'all', 'plpgsql.extra_warnings' => 'all', 'plpgsql.check_asserts' => 'off', 'plpgsql.print_strict_params' => 'on' },
	output => { DateStyle => 'SQL, DMY', IntervalStyle => 'sql_standard', TimeZone => 'Asia/Kolkata', bytea_output => 'escape', extra_float_digits => '-15',
		xmlbinary => 'hex', timezone_abbreviations => 'India' },
	verbose => { IntervalStyle => 'postgres_verbose', DateStyle => 'German', TimeZone => 'Asia/Kathmandu' },
	plans => { plan_cache_mode => 'force_generic_plan', jit => 'off', enable_hashjoin => 'off', enable_seqscan => 'off', enable_sort => 'off',
		work_mem => '64kB', join_collapse_limit => '1', from_collapse_limit => '1', geqo_threshold => '2', cursor_tuple_fraction => '0.000001',
		min_parallel_table_scan_size => '0', parallel_setup_cost => '0', parallel_tuple_cost => '0', constraint_exclusion => 'on' },
	log => { debug_print_parse => 'on', debug_print_plan => 'on', debug_print_rewritten => 'on', log_duration => 'on', log_parser_stats => 'on', log_error_verbosity => 'verbose',
		log_min_duration_statement => '0', log_parameter_max_length_on_error => '-1', log_min_messages => 'debug1', client_min_messages => 'error', track_functions => 'all',
		log_planner_stats => 'on', log_executor_stats => 'on', backtrace_functions => 'errfinish' },
	storage => { default_toast_compression => 'pglz', default_statistics_target => '1', synchronous_commit => 'off', gin_pending_list_limit => '64kB', statement_timeout => '1min',
		lock_timeout => '1min', idle_in_transaction_session_timeout => '1min', default_transaction_isolation => 'serializable', default_transaction_deferrable => 'on',
		row_security => 'on', session_replication_role => 'origin', vacuum_cost_delay => '1', temp_file_limit => '1MB' });
# 19 has no other strings than standard ones.
delete @{ $settings{syntax} }{qw(standard_conforming_strings escape_string_warning)} if $node->pg_version >= 19;

# The extension is made under the settings of a database.
foreach my $group (sort keys %settings)
{
	$node->safe_psql('postgres', 'CREATE DATABASE d');
	$node->safe_psql('postgres', join ';', "LOAD 'plpgsql'", map { "ALTER DATABASE d SET $_ = '$settings{$group}{$_}'" } sort keys %{ $settings{$group} });
	my ($status, $out, $error) = $node->psql('d', 'SET client_min_messages = error; CREATE EXTENSION rk_apikeys', on_error_stop => 1);
	is($status, 0, "$group: CREATE EXTENSION") or diag($error);
	$node->safe_psql('postgres', 'ALTER DATABASE d RESET ALL');
	same_catalog($plain, catalog($node, 'd'), "$group: the same extension");
	$node->safe_psql('postgres', 'DROP DATABASE d');
}

# All rows of list_keys by pages of four, as names, for each sort and direction; and the events
my $pages = q{CREATE FUNCTION pg_temp.pages(sort text, descending boolean) RETURNS text LANGUAGE plpgsql AS $$
	DECLARE r record; a text; n text := ''; more boolean := true;
	BEGIN
		WHILE more LOOP
			more := false;
			FOR r IN SELECT * FROM rk_apikeys.list_keys(sort_by => pages.sort, descending => pages.descending, page_size => 4, after => a) LOOP
				a := r.cursor; n := n || ' ' || r.name || '/' || r.status; more := true;
			END LOOP;
		END LOOP;
		RETURN n;
	END $$;};
sub told
{
	my $rows = sql_as($node, 'acme', $pages . join '', map { my $sort = $_; map {
		"SELECT '$sort $_', pg_temp.pages('$sort', $_);" } qw(true false) } qw(name environment key_id created_at updated_at expires_at last_used_at use_count status));
	my %told = map { split /\|/, $_, 2 } split /\n/, $rows;
	# Key ids, and what they break ties of, have another order each time.
	$told{$_} = join ' ', sort split / /, $told{$_} foreach grep { !/^created_at / } keys %told;
	$told{events} = sql_as($node, 'acme', q{SELECT string_agg(event || regexp_replace(coalesce(changes::text, ''),
		'[0-9]{4}-[^"]*|"[0-9A-Za-z]{12}"', '-', 'g'), ' ' ORDER BY event, changes ->> 'name', changes::text) FROM rk_apikeys.key_events});
	return \%told;
}

# Keys are made, changed, listed and verified by roles with the settings.
my ($want, @secrets);
foreach my $group ('', sort keys %settings)
{
	my @set = map { my $role = $_; map { "ALTER ROLE $role SET $_ = '$settings{$group}{$_}'" } sort keys %{ $settings{$group} // {} } } qw(acme globex backend boss);
	$node->safe_psql('postgres', join ';', "LOAD 'plpgsql'", @set) if @set;
	my $token = keys_of_every_state($node);
	sql_as($node, 'acme', q{UPDATE rk_apikeys.keys SET rate_limit = 5, rate_window = '1 day 02:03:04.5', allowed_cidrs = '{192.0.2.0/24}',
		expires_at = '2100-01-02 03:04:05+00' WHERE name = 'revoked'});
	is_deeply(verdicts($node, $token), expected_verdicts(), "$group: the same verdicts");
	sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
	my $told = told();
	$want //= $told;
	is_deeply($told, $want, "$group: the same lists and events");
	is(sql_as($node, 'boss', q{SELECT rk_apikeys.purge_keys('0'), rk_apikeys.purge_events('0') > 0}), '3|t', "$group: purges");
	$node->safe_psql('postgres', join ';', 'TRUNCATE rk_apikeys.api_keys, rk_apikeys.key_events, rk_apikeys.key_usage, rk_apikeys.key_usage_daily',
		map { "ALTER ROLE $_ RESET ALL" } qw(acme globex backend boss));
	push @secrets, map { /_([0-9A-Za-z]{43})[0-9A-Za-z]{6}$/ ? $1 : () } values %$token;
}
my $log = slurp_file($node->logfile);
cmp_ok(scalar @secrets, '>', 50, 'tokens were made');
is_deeply([ grep { index($log, $_) >= 0 } @secrets ], [], 'the log has none of their secrets');

done_testing();
