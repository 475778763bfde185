# test/cluster/Load.pm: the clients: some verify on a node, some make and revoke keys on the leader, and each says what it saw.
#
# The writers add a line to the journal for each key once COMMIT has returned, and before they ask for a revocation. A verifier reads the
# journal before each verify, so it knows what was confirmed before. Each change also writes a row of the table truth, in the same
# transaction. A verdict that is older than the journal is wrong in these cases; else it is lag:
#
# - The node is not in recovery.
# - The node was synchronous when the change was made, and the session is older than the change. A standby that starts again may show an
#   older state for a while, so a younger session proves nothing.
# - The node shows the row of truth, and has replayed past the change.
package Load;

use strict;
use warnings;

use DBI;
use Exporter 'import';
use Fcntl qw(O_WRONLY O_APPEND O_CREAT);
use JSON::PP;
use Nodes;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(start_verifier start_writer journal note pause resume read_journal revoke_on);

my $dir = $ENV{CLUSTER_DIR};
my $journal = "$dir/journal";

# Adds a line to a file, in one write.
sub note
{
	my ($file, @words) = @_;
	sysopen my $out, "$dir/$file", O_WRONLY | O_APPEND | O_CREAT or die;
	syswrite $out, join(' ', @words) . "\n";
	return;
}

# Returns a function that returns the new lines of the journal, as arrays of words.
sub journal
{
	my $in;
	my $rest = '';
	return sub {
		$in // (open $in, '<', $journal or return);
		my @lines;
		while (sysread $in, my $part, 65536) { $rest .= $part; }
		push @lines, [ split / /, $1 ] while $rest =~ s/\A(.*)\n//;
		return @lines;
	};
}

sub read_journal { return journal()->(); }

# --- pauses: the clients stop, say what they counted, and wait ----------------------------------------------------------

my %clients;

sub pause
{
	open my $out, '>', "$dir/pause" or die;
	close $out;
	my %said;
	foreach my $name (sort keys %clients)
	{
		until_true(60, sub { return -e "$dir/said.$name" }) or die "client $name does not answer\n";
		open my $in, '<', "$dir/said.$name" or die;
		$said{$name} = decode_json(do { local $/ = undef; <$in> });
	}
	return \%said;
}

sub resume
{
	unlink map { "$dir/said.$_" } keys %clients;
	unlink "$dir/pause";
	return;
}

sub wait_in_pause
{
	my ($name, $said) = @_;
	return 0 if !-e "$dir/pause";
	open my $out, '>', "$dir/said.$name.new" or die;
	print $out encode_json($said);
	close $out or die;
	rename "$dir/said.$name.new", "$dir/said.$name" or die;
	while (-e "$dir/said.$name") { usleep 50_000; }
	return 1;
}

# Runs a client as a process of its own, for as long as the test.
sub start
{
	my ($name, $code) = @_;
	$clients{$name} = fork // die "could not fork: $!\n";
	return if $clients{$name};
	open STDERR, '>>', "$dir/clients.log" or die;
	eval { $code->(); 1 } or note('wrong', "client $name ended: $@");
	exit 1;
}

# --- verifiers ----------------------------------------------------------------------------------------------------------

# What a verifier counts since the last pause; uses by book: the node's name for keys that no other node verifies, else 'all'. A gap is a
# time without an answer, of at least half a second or with an error in it.
sub nothing_counted { return { sent => {}, answered => {}, tenths => {}, errors => 0, gaps => [], longest => 0, checks => 0, bound => 0, stale => 0, lag => 0 }; }

sub start_verifier
{
	my ($name, $node, $tokens) = @_;
	start($name, sub { verifier($name, $node, $tokens) });
	return;
}

sub verifier
{
	my ($name, $node, $tokens) = @_;
	my $news = journal();
	my ($dbh, $connected, $last) = (undef, 0, time);
	my $errors = 0;
	my $said = nothing_counted();
	my (%key, @live, @ended);

	my $learn = sub {
		foreach my $line ($news->())
		{
			my ($what, $id, @more) = @$line;
			next if $what eq 'start';
			if ($what eq 'made') { $key{$id} = { id => $id, made => change(@more[ 1 .. 3 ]), token => $more[0] }; push @live, $id; }
			elsif (!$key{$id}) { next; }
			elsif ($what eq 'revoking') { $key{$id}{leaving} = 1; }
			elsif ($what eq 'doubt') { delete $key{$id}; }
			elsif ($what eq 'revoked') { $key{$id}{ended} = change(@more[ 0 .. 2 ]); $key{$id}{left} = 4; push @ended, $id; }
		}
		return;
	};
	my $answered = sub {
		my $now = time;
		$said->{longest} = $now - $last if $now - $last > $said->{longest};
		push @{ $said->{gaps} }, [ $last, $now, $errors ] if $errors || $now - $last > 0.5;
		($last, $errors) = ($now, 0);
		return;
	};

	while (1)
	{
		if (wait_in_pause($name, $said)) { $said = nothing_counted(); $last = time; next; }
		if (!$dbh)
		{
			$dbh = connect_to($node, 'backend');
			$connected = time;
			if (!$dbh) { $errors++; $said->{errors}++; usleep 50_000; next; }
		}
		$learn->();

		# a use of a key that stays
		my $book = rand() < 0.75 ? $node : 'all';
		my $its = $tokens->{$book};
		$said->{sent}{$book}++;
		my ($good) = $dbh->selectrow_array('SELECT rk_apikeys.verify($1)', undef, $its->[ rand @$its ]);
		if ($dbh->err) { $dbh = undef; $errors++; $said->{errors}++; next; }
		$answered->();
		$said->{answered}{$book}++;
		$said->{tenths}{$book}{ int 10 * time }++;
		note('wrong', time . " $name: a good key was refused") if !$good;

		# a key that comes and goes: those that have ended first
		shift @ended while @ended && !($key{ $ended[0] } && $key{ $ended[0] }{left});
		@live = grep { $key{$_} && !$key{$_}{leaving} } @live;
		my $id = @ended && rand() < 0.7 ? shift @ended : @live ? $live[ rand @live ] : undef;
		my $key = defined $id ? $key{$id} : undef;
		if (!$key) { usleep 5_000; next; }
		my $ended = $key->{ended};
		my $change = $ended // $key->{made};
		my ($standby, $replayed) = $dbh->selectrow_array(
			'SELECT pg_is_in_recovery(), EXISTS (SELECT FROM truth WHERE key_id = $1 AND what = $2)
				AND coalesce(pg_last_wal_replay_lsn() >= $3::pg_lsn, true)',
			undef, $id, ($ended ? 'revoked' : 'made'), $change->{lsn});
		my $asked = time;
		my ($code) = $dbh->err ? () : $dbh->selectrow_array('SELECT code FROM rk_apikeys.verify_key($1)', undef, $key->{token});
		if ($dbh->err) { $dbh = undef; $errors++; $said->{errors}++; next; }
		$answered->();
		$said->{checks}++;
		my $at_once = $change->{sync}{$node} && $change->{time} > $connected;
		my $bound = !$standby || $at_once || $replayed;
		$said->{bound}++ if $bound;
		my $stale = 0;
		if ($code ne ($ended ? 'revoked' : 'valid'))
		{
			# a good key may end meanwhile
			$learn->();
			$stale = $ended || !$key->{leaving};
		}
		if ($stale)
		{
			my $age = $asked - $change->{time};
			note('wrong', sprintf '%.3f %s: %s for key %s %.3f s after COMMIT%s', $asked, $name, $code, $id, $age,
				!$standby ? ' on a leader' : $at_once ? ' on a synchronous standby' : ' after replay')
			  if $bound;
			$said->{stale}++;
			$said->{lag} = $age if $age > $said->{lag};
		}
		elsif ($ended) { $key->{left}--; }
		push @ended, $id if $ended && $key->{left};
		usleep 5_000;
	}
	return;
}

sub change
{
	my ($time, $lsn, $sync) = @_;
	return { time => $time, lsn => $lsn, sync => { map { $_ => 1 } split /,/, $sync } };
}

# --- writers ------------------------------------------------------------------------------------------------------------

sub start_writer
{
	my ($name) = @_;
	start($name, sub { writer($name) });
	return;
}

# A new LSN, and the standbys that are synchronous.
my $cluster_now = q{SELECT pg_current_wal_insert_lsn(), coalesce(string_agg(application_name, ','), '') FROM pg_stat_replication WHERE sync_state = 'sync'};

sub writer
{
	my ($name) = @_;
	my ($dbh, $before, @mine);
	my $said = { made => 0, revoked => 0, errors => 0 };
	while (1)
	{
		if (wait_in_pause($name, $said)) { $said = { made => 0, revoked => 0, errors => 0 }; next; }
		if (!$dbh)
		{
			$dbh = DBI->connect(writers_dsn(), 'acme', 'p-acme', { PrintError => 0, RaiseError => 0, AutoInactiveDestroy => 1 });
			$before = undef;
			if (!$dbh) { $said->{errors}++; usleep 100_000; next; }
		}
		my ($id, $token, $revoke);
		if (@mine > 12) { ($id, $revoke) = (shift @mine, 1); note('journal', 'revoking', $id); }
		$dbh->begin_work;
		if ($revoke) { $dbh->do('SELECT rk_apikeys.revoke_key($1)', undef, $id); }
		else { ($id, $token) = $dbh->selectrow_array(q{SELECT key_id, secret FROM rk_apikeys.create_key('churn')}); }
		$dbh->do('INSERT INTO truth VALUES ($1, $2)', undef, $id, $revoke ? 'revoked' : 'made') if !$dbh->err;
		# commit returns true after a lost connection too; the error says so
		my $done = !$dbh->err && $dbh->commit && !$dbh->err;
		my $confirmed = time;
		my ($lsn, $sync) = $done ? $dbh->selectrow_array($cluster_now) : ();
		if ($done)
		{
			# only those that were synchronous before and after; a high LSN will do if the server went after COMMIT
			my %then = map { $_ => 1 } split /,/, $before // '';
			my $both = join ',', grep { $then{$_} } split /,/, $sync // '';
			note('journal', $revoke ? ('revoked', $id) : ('made', $id, $token), $confirmed, $lsn // 'FFFFFFFF/0', $both, $name);
			push @mine, $id if !$revoke;
			$said->{ $revoke ? 'revoked' : 'made' }++;
			$before = $sync;
		}
		elsif ($revoke) { note('journal', 'doubt', $id); }
		if (!$done || !defined $lsn) { $dbh->disconnect; $dbh = undef; $said->{errors}++; }
		usleep 40_000;
	}
	return;
}

# Asks a node to revoke a key, over its socket, in a process of its own. Returns a function that returns how it ended: 'confirmed', 'refused',
# or undef if it has not ended.
sub revoke_on
{
	my ($node, $id) = @_;
	my $file = "$dir/revoke.$id";
	my $pid = fork // die "could not fork: $!\n";
	if (!$pid)
	{
		open STDERR, '>>', "$dir/clients.log" or die;
		my $dbh = connect_to($node, 'postgres');
		my $done = $dbh && $dbh->do(q{UPDATE rk_apikeys.keys SET revoked_at = now() WHERE key_id = $1}, undef, $id);
		note("revoke.$id", $done ? 'confirmed' : 'refused');
		exit 0;
	}
	return sub { open my $in, '<', $file or return; my $line = <$in> // return; chomp $line; return $line; };
}

1;
