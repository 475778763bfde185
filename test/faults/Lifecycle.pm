# test/faults/Lifecycle.pm: clients that run lifecycle calls without a pause and note what they were told, and the check of that against the
# tables, after whatever has befallen the server.
#
# A call is *done* when its client was told so, *failed* when it got an error, and *in flight* when the connection ended before either. What
# is done must be there, what failed must have left nothing, and what was in flight is there wholly or not at all.
package Lifecycle;

use strict;
use warnings;

use Exporter 'import';
use Time::HiRes qw(time usleep);

our @EXPORT = qw(report fact lines_of rows ask setup start_clients await_work end_clients check_clients check_tables processes until_true
  verdict_of);

# Keys that one bulk create makes.
use constant BULK => 20;

my $failed = 0;
my $dir = $ENV{FAULTS_DIR} // die "FAULTS_DIR is not set\n";

# One result; what speaks against it follows, one a line.
sub report
{
	my ($text, @findings) = @_;
	print @findings ? 'not ok ' : 'ok ', "$text\n";
	print "  $_\n" foreach splice @findings, 0, 20;
	$failed = 1 if @findings;
	return;
}

sub fact { print "fact $_[0]\n"; return; }

# The lines that a role's psql prints for some SQL; undef if it failed.
sub ask
{
	my ($role, $sql) = @_;
	my $file = "$dir/ask.$$.sql";
	open my $out, '>', $file or die "$file: $!\n";
	print $out $sql, "\n";
	close $out;
	my @lines = `psql -qXAt -v ON_ERROR_STOP=1 -U $role -f $file 2>$dir/ask.$$.err`;
	return if $?;
	chomp @lines;
	return join "\n", @lines;
}

# The same as rows of columns; dies if it failed.
sub rows
{
	my ($role, $sql) = @_;
	my $out = ask($role, $sql);
	die "could not ask: " . join('', lines_of("$dir/ask.$$.err")) . "\n" unless defined $out;
	return map { [ split /\|/, $_, -1 ] } split /\n/, $out;
}

sub lines_of
{
	my ($file) = @_;
	open my $fh, '<', $file or return ();
	my @lines = <$fh>;
	return @lines;
}

# Waits until some code is true, seconds at most; whether it was.
sub until_true
{
	my ($seconds, $code) = @_;
	my $end = time + $seconds;
	until ($code->())
	{
		return 0 if time > $end;
		usleep(20_000);
	}
	return 1;
}

# The extension, the login roles, and some keys that are only used. Returns the tokens of these.
sub setup
{
	my ($used) = @_;
	defined ask('postgres', "SET client_min_messages = error; CREATE EXTENSION rk_apikeys CASCADE; CREATE EXTENSION amcheck;
		CREATE ROLE acme LOGIN IN ROLE rk_apikeys_manager; CREATE ROLE backend LOGIN IN ROLE rk_apikeys_verifier;
		CREATE ROLE boss LOGIN IN ROLE rk_apikeys_admin;")
	  or die 'could not make the extension: ', lines_of("$dir/ask.$$.err");
	return map { $_->[0] } rows('acme',
		"INSERT INTO rk_apikeys.keys (name) SELECT 'used' FROM generate_series(1, $used) RETURNING secret");
}

# The code that verify_key gives for a token.
sub verdict_of { my ($token) = @_; return ask('backend', "SELECT code FROM rk_apikeys.verify_key('$token')") // 'error'; }

# --- the clients --------------------------------------------------------------------------------------------------------

# One call of a client's script: what it is, its SQL, what to print when it is done.
sub call
{
	my ($what, $sql, $done) = @_;
	return "\\echo begin $what\n$sql\n\\if :ERROR\n\\echo failed $what :SQLSTATE\n\\else\n\\echo done $what $done\n\\endif\n";
}

# psql's script of one client: the calls of many keys' lives, in an order that chance gives.
sub script_of
{
	my ($label, $count) = @_;
	my $text = "\\set a_id none\n\\set b_id none\n";
	foreach my $n (1 .. $count)
	{
		my $name = "$label-$n";
		# until a create succeeds, the variables hold the last key's
		$text .= "\\set a_id none\n\\set a_secret none\n\\set b_id none\n\\set b_secret none\n";
		$text .= call("create $name", "SELECT key_id AS a_id, secret AS a_secret FROM rk_apikeys.create_key('$name') \\gset", ':a_id :a_secret');
		my @calls = map { (
			call('disable :a_id', "UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = :'a_id';", ''),
			call('enable :a_id', "UPDATE rk_apikeys.keys SET enabled = true WHERE key_id = :'a_id';", '')) } 1 .. int rand 2;
		my $rotate = call('rotate :a_id',
			"SELECT key_id AS b_id, secret AS b_secret FROM rk_apikeys.rotate_key(:'a_id', '1 hour') \\gset", ':b_id :b_secret');
		$text .= join '', rand() < 0.5 ? (@calls, $rotate) : ($rotate, @calls);
		$text .= call('revoke :b_id', "SELECT rk_apikeys.revoke_key(:'b_id', 'test') \\g /dev/null", '');
		$text .= call('delete :a_id', "DELETE FROM rk_apikeys.keys WHERE key_id = :'a_id';", '') if rand() < 0.5;
		$text .= call("bulk $name-bulk", "INSERT INTO rk_apikeys.keys (name) SELECT '$name-bulk' FROM generate_series(1, " . BULK . ");", '');
	}
	return $text;
}

# Starts clients, each as acme; the label names their keys. $setup is SQL that each begins with.
sub start_clients
{
	my ($label, $count, $calls, $setup) = @_;
	my @clients;
	foreach my $n (1 .. $count)
	{
		my %client = (label => "$label-$n", file => "$dir/client.$label-$n");
		open my $out, '>', "$client{file}.sql" or die "$client{file}.sql: $!\n";
		# a line must be in the file when its call begins: stdbuf makes psql write it at once
		print $out ($setup // ''), "\n", script_of($client{label}, $calls);
		close $out;
		$client{pid} = fork // die "could not fork: $!\n";
		if ($client{pid} == 0)
		{
			open STDOUT, '>', "$client{file}.out" or die;
			open STDERR, '>', "$client{file}.err" or die;
			exec 'psql', '-qXAt', '-U', 'acme', '-f', "$client{file}.sql";
		}
		push @clients, \%client;
	}
	return @clients;
}

# Waits until every client has a session.
sub await_work
{
	my (@clients) = @_;
	return until_true(20, sub { return @{ [ processes(qr/^postgres: (?:\S+: )?acme /) ] } >= @clients });
}

# Waits for the clients' end, and drops what is theirs once it was checked.
sub end_clients
{
	waitpid $_->{pid}, 0 foreach @_;
	return;
}

# The server's processes whose title matches: of this server alone, by its data directory.
sub processes
{
	my ($title) = @_;
	my $data = $ENV{RK_DATA};
	my @found;
	foreach my $proc (glob '/proc/[0-9]*')
	{
		next unless (readlink("$proc/cwd") // '') eq $data;
		open my $fh, '<', "$proc/cmdline" or next;
		my $line = <$fh> // '';
		$line =~ s/\0.*//s;
		push @found, $proc =~ m{(\d+)$} if $line =~ $title;
	}
	return @found;
}

# --- the check ----------------------------------------------------------------------------------------------------------

# Reads what the clients were told, and checks it. Returns what was found wrong. Counts what was in flight in %$tally, by call and outcome,
# and what failed by its SQLSTATE.
sub check_clients
{
	my ($tally, @clients) = @_;
	my (%key, %bulk, @created, @findings, @flying);
	foreach my $client (@clients)
	{
		my $open;
		foreach my $line (lines_of("$client->{file}.out"))
		{
			chomp $line;
			my ($state, $what, $of, @rest) = split / /, $line;
			next if ($of // '') eq 'none';
			if ($state eq 'begin') { $open = [ $what, $of ]; next; }
			undef $open;
			$tally->{done}++ if $state eq 'done';
			if ($state eq 'failed')
			{
				$tally->{"failed $rest[0]"}++;
				push @created, [ $of, 0, "failed create" ] if $what eq 'create';
				$bulk{$of} = 0 if $what eq 'bulk';
				$key{$of}{rotated} //= 0 if $what eq 'rotate';
				next;
			}
			if ($what eq 'create') { $key{ $rest[0] } = { token => $rest[1], name => $of }; push @created, [ $of, 1, 'create' ]; }
			elsif ($what eq 'rotate') { $key{$of}{rotated} = $rest[0]; $key{ $rest[0] } = { token => $rest[1], replaces => $of, disabled => $key{$of}{disabled} }; }
			elsif ($what eq 'bulk') { $bulk{$of} = BULK; }
			elsif ($what eq 'disable') { $key{$of}{disabled} = 1; }
			elsif ($what eq 'enable') { $key{$of}{disabled} = 0; }
			elsif ($what eq 'revoke') { $key{$of}{revoked} = 1; }
			elsif ($what eq 'delete') { $key{$of}{deleted} = 1; }
		}
		push @flying, $open if $open;
	}

	# What was in flight: found out, and then as if it had been told
	foreach my $call (@flying)
	{
		my ($what, $of) = @$call;
		my $sql = {
			create => "SELECT count(*) FROM rk_apikeys.api_keys WHERE name = '$of'",
			bulk => "SELECT count(*) FROM rk_apikeys.api_keys WHERE name = '$of'",
			rotate => "SELECT count(*) FROM rk_apikeys.api_keys WHERE replaces = '$of'",
			disable => "SELECT count(*) FROM rk_apikeys.api_keys WHERE key_id = '$of' AND NOT enabled",
			enable => "SELECT count(*) FROM rk_apikeys.api_keys WHERE key_id = '$of' AND enabled",
			revoke => "SELECT count(*) FROM rk_apikeys.api_keys WHERE key_id = '$of' AND revoked_at IS NOT NULL",
			delete => "SELECT count(*) = 0 FROM rk_apikeys.api_keys WHERE key_id = '$of'" }->{$what};
		my $is = (rows('postgres', $sql))[0][0];
		$is = $is eq 't' ? 1 : $is eq 'f' ? 0 : $is;
		my $whole = $what eq 'bulk' ? BULK : 1;
		push @findings, "$what of $of was in flight, and is there $is times" unless $is == 0 || $is == $whole;
		$tally->{ "in flight: $what " . ($is ? 'there' : 'not there') }++;
		$bulk{$of} = $is if $what eq 'bulk';
		$key{$of}{rotated} = $is ? 'unknown' : 0 if $what eq 'rotate';
		$key{$of}{disabled} = $is if $what eq 'disable';
		$key{$of}{disabled} = !$is if $what eq 'enable';
		$key{$of}{revoked} = $is if $what eq 'revoke';
		$key{$of}{deleted} = $is if $what eq 'delete';
	}

	# Names: as many rows as were made
	my %named = map { $_->[0] => $_->[1] } rows('postgres', 'SELECT name, count(*) FROM rk_apikeys.api_keys GROUP BY name');
	foreach my $name (keys %bulk)
	{
		push @findings, "bulk $name has " . ($named{$name} // 0) . " keys and not $bulk{$name}" if ($named{$name} // 0) != $bulk{$name};
	}
	foreach my $create (grep { !$_->[1] } @created)
	{
		push @findings, "$create->[2] $create->[0] is there" if $named{ $create->[0] };
	}

	# Verdicts: a token that was told opens what it should
	my %row = map { $_->[0] => $_ } rows('postgres',
		'SELECT key_id, enabled, revoked_at IS NOT NULL, grace_until IS NOT NULL, replaces FROM rk_apikeys.api_keys');
	my $values = join ', ', map { "('$_', '$key{$_}{token}')" } grep { $key{$_}{token} } keys %key;
	my %code = $values ? map { $_->[0] => $_->[1] } rows('backend',
		"SELECT id, v.code FROM (VALUES $values) t(id, token), LATERAL rk_apikeys.verify_key(token) v") : ();
	foreach my $id (grep { $key{$_}{token} } keys %key)
	{
		my $key = $key{$id};
		my $expected = $key->{deleted} ? 'unknown' : $key->{revoked} ? 'revoked' : $key->{disabled} ? 'disabled' : 'valid';
		push @findings, "key $id is $code{$id} and not $expected" if $code{$id} ne $expected;
		next if $key->{deleted};
		my $row = $row{$id} or push(@findings, "key $id is lost"), next;
		push @findings, "key $id: a rotation is " . ($row->[3] eq 't' ? 'there' : 'not there') . ', against what was told'
		  if defined $key->{rotated} && ($key->{rotated} ? 't' : 'f') ne $row->[3];
		push @findings, "key $id replaces $row->[4] and not $key->{replaces}" if $key->{replaces} && $key->{replaces} ne $row->[4];
	}
	$tally->{keys} += keys(%code);
	return @findings;
}

# What is true of the tables whatever happened: rows and events agree, a rotation has both halves, a digest, a place in each index.
sub check_tables
{
	my $sql = <<'SQL';
WITH e AS MATERIALIZED (SELECT key_id,
    count(*) FILTER (WHERE event = 'created') AS created, count(*) FILTER (WHERE event = 'deleted') AS deleted,
    count(*) FILTER (WHERE event = 'rotated') AS rotated, count(*) FILTER (WHERE event = 'revoked') AS revoked,
    count(*) FILTER (WHERE event = 'disabled') AS disabled, count(*) FILTER (WHERE event = 'enabled') AS enabled,
    max(changes->'replaces'->>'new') FILTER (WHERE event = 'created') AS replaces
  FROM rk_apikeys.key_events GROUP BY key_id)
SELECT 'a key without its one created event', key_id FROM rk_apikeys.api_keys LEFT JOIN e USING (key_id) WHERE created IS DISTINCT FROM 1
UNION ALL SELECT 'events of a key that was not created once', key_id FROM e WHERE created <> 1
UNION ALL SELECT 'rows and deleted events disagree', key_id FROM e LEFT JOIN rk_apikeys.api_keys k USING (key_id)
  WHERE deleted <> (k.digest IS NULL)::int
UNION ALL SELECT 'rows and revoked events disagree', key_id FROM e JOIN rk_apikeys.api_keys USING (key_id)
  WHERE revoked <> (revoked_at IS NOT NULL)::int
UNION ALL SELECT 'rows and rotated events disagree', key_id FROM e JOIN rk_apikeys.api_keys USING (key_id)
  WHERE rotated <> (grace_until IS NOT NULL)::int
UNION ALL SELECT 'rows and enabled events disagree', key_id FROM e JOIN rk_apikeys.api_keys k USING (key_id)
  WHERE disabled - e.enabled <> (NOT k.enabled)::int AND k.replaces IS NULL  -- a successor may begin disabled
UNION ALL SELECT 'a rotation without its successor', e.key_id FROM e
   LEFT JOIN (SELECT replaces, count(*) AS successors FROM e GROUP BY replaces) s ON s.replaces = e.key_id
  WHERE rotated <> coalesce(successors, 0)
UNION ALL SELECT 'a successor without a rotation', s.key_id FROM e s
  WHERE replaces IS NOT NULL AND s.replaces NOT IN (SELECT key_id FROM e WHERE rotated = 1)
UNION ALL SELECT 'a key without a digest', key_id FROM rk_apikeys.api_keys WHERE length(digest) IS DISTINCT FROM 32
UNION ALL SELECT 'usage of a key that is gone', key_id FROM rk_apikeys.key_usage u
  WHERE NOT EXISTS (SELECT FROM rk_apikeys.api_keys k WHERE k.key_id = u.key_id)
UNION ALL SELECT 'the days do not sum up to the uses', key_id FROM rk_apikeys.key_usage u
  WHERE use_count <> (SELECT coalesce(sum(uses), 0) FROM rk_apikeys.key_usage_daily d WHERE d.key_id = u.key_id)
   OR denied_count <> (SELECT coalesce(sum(denials), 0) FROM rk_apikeys.key_usage_daily d WHERE d.key_id = u.key_id);
SQL
	return map { "$_->[0]: $_->[1]" } rows('postgres', $sql);
}

# Whether the tables and indexes are whole.
sub check_pages
{
	my @bad = rows('postgres', q{SELECT relation, v.* FROM unnest('{api_keys,key_usage,key_usage_daily,key_events}'::text[]) AS relation,
		verify_heapam(('rk_apikeys.' || relation)::regclass) v});
	my $index = ask('postgres', q{SELECT bt_index_check(indexrelid, true) FROM pg_index
		JOIN pg_class c ON c.oid = indexrelid WHERE relnamespace = 'rk_apikeys'::regnamespace AND relam = (SELECT oid FROM pg_am WHERE amname = 'btree') \g /dev/null});
	return ((map { join ' ', @$_ } @bad), defined $index ? () : lines_of("$dir/ask.$$.err"));
}

# The tables stay small: what was checked may go. Some keys stay, so that what comes later can harm them.
sub prune
{
	defined ask('postgres', "DELETE FROM rk_apikeys.api_keys WHERE name LIKE '%-bulk' OR random() < 0.8 AND name <> 'used'")
	  or die 'could not prune: ', lines_of("$dir/ask.$$.err");
	# the events of keys that are gone, and whose rotations have no half left
	ask('postgres', q{DELETE FROM rk_apikeys.key_events WHERE key_id IN (SELECT key_id FROM rk_apikeys.key_events WHERE event = 'deleted')
		AND key_id NOT IN (SELECT replaces FROM rk_apikeys.api_keys WHERE replaces IS NOT NULL)
		AND key_id NOT IN (SELECT changes->'replaces'->>'new' FROM rk_apikeys.key_events WHERE changes ? 'replaces')
		AND NOT EXISTS (SELECT FROM rk_apikeys.key_events s WHERE s.key_id = key_events.key_id AND s.changes ? 'replaces')});
	return;
}

1;
