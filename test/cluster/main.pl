# test/cluster/main.pl SWITCHOVERS KILLS PARTITIONS SYNC: the rounds of test/cluster/run, and what is checked after each.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use List::Util qw(max min sum0);
use Load;
use Nodes;
use Time::HiRes qw(time sleep);

my ($switchovers, $kills, $partitions, $sync) = @ARGV;
my $dir = $ENV{CLUSTER_DIR};
my ($passed, $failed) = (0, 0);
my (%lost_before, %answered_before, %sent_before);    # uses by book
my %kept;    # what each kind of round measured
$| = 1;

sub ok
{
	my ($good, $what) = @_;
	if ($good) { $passed++; } else { $failed++; }
	printf "%-7s %s\n", $good ? 'ok' : 'not ok', $what;
	return $good;
}

sub fact { my ($what) = @_; printf "%-7s %s\n", 'fact', $what; return; }
sub lines_of { my ($file) = @_; open my $in, '<', "$dir/$file" or return (); chomp(my @lines = <$in>); return @lines; }
sub spread { my (@n) = sort { $a <=> $b } @_; return @n ? sprintf '%.1f to %.1f s, median %.1f s', $n[0], $n[-1], $n[ $#n / 2 ] : 'none'; }

# --- the cluster, its keys and its clients ------------------------------------------------------------------------------

start_nodes($sync);
my $leader = leader();
my $dbh = connect_to($leader, 'postgres');
$dbh->do($_) or die $dbh->errstr foreach
  'CREATE EXTENSION rk_apikeys CASCADE',
  'CREATE TABLE truth (key_id text, what text, PRIMARY KEY (key_id, what))',
  'CREATE ROLE backend LOGIN IN ROLE rk_apikeys_verifier',
  q{CREATE ROLE acme LOGIN PASSWORD 'p-acme' IN ROLE rk_apikeys_manager, pg_read_all_stats},
  q{CREATE ROLE usage_sender LOGIN PASSWORD 'p-usage'},
  'GRANT EXECUTE ON FUNCTION rk_apikeys.receive_usage TO usage_sender',
  'GRANT SELECT ON truth TO backend',
  'GRANT INSERT ON truth TO acme';
$dbh->do('SET SESSION AUTHORIZATION acme');
my (%ids, %tokens);    # by book
foreach my $book ((NODES, 'all') x 15)
{
	my ($id, $token) = $dbh->selectrow_array(q{SELECT key_id, secret FROM rk_apikeys.create_key('stays')});
	push @{ $ids{$book} }, $id;
	push @{ $tokens{$book} }, $token;
}
$dbh->disconnect;
note('journal', 'start');
foreach my $node (NODES) { start_verifier("$node.$_", $node, \%tokens) foreach 1, 2; }
start_writer("writer.$_") foreach 1, 2;

# --- what is checked after each round -----------------------------------------------------------------------------------

# The uses of each book, once no server holds a use that is not written.
sub recorded
{
	my $sums = sub {
		my %sum = map { $_ => ask($leader, 'SELECT sum(use_count) FROM rk_apikeys.key_usage WHERE key_id = ANY ($1)', $ids{$_}) } keys %ids;
		return (grep { !defined } values %sum) ? undef : \%sum;
	};
	my $written = sub { return !grep { (ask($_, 'SELECT pending_keys FROM rk_apikeys.stats') // 1) != 0 } NODES; };
	my ($before, $now);
	until_true(90, sub {
		$before = $now;
		until_true(60, $written) or return;
		$now = $sums->();
		return 1 if $before && $now && !grep { $before->{$_} != $now->{$_} } keys %$now;
		sleep INTERVAL + 0.5;
		return;
	}) or return;
	return $now;
}

# Pauses the clients and compares. Uses may be missing in the times that $may_lose returns: a node, and from when to when, in lists.
sub check_round
{
	my ($round, $may_lose) = @_;
	my $said = pause();
	my %by_node;
	foreach my $name (grep { /^n/ } keys %$said) { push @{ $by_node{ substr $name, 0, 2 } }, $said->{$name}; }
	my @verifiers = map { @$_ } values %by_node;
	$round->{checks} = sum0 map { $_->{checks} } @verifiers;
	$round->{bound} = sum0 map { $_->{bound} } @verifiers;
	$round->{answered} = sum0 map { values %{ $_->{answered} } } @verifiers;
	$round->{node} = \%by_node;

	my @windows = $may_lose ? $may_lose->(\%by_node) : ();
	my $recorded = recorded() or push @{ $round->{problems} }, 'the use of a node does not arrive';
	foreach my $book ($recorded ? sort keys %ids : ())
	{
		$answered_before{$book} += sum0 map { $_->{answered}{$book} // 0 } @verifiers;
		$sent_before{$book} += sum0 map { $_->{sent}{$book} // 0 } @verifiers;
		my $allowed = sum0 map { uses_between($by_node{ $_->[0] }, $book, @$_[ 1, 2 ]) } @windows;
		my $lost = max(0, $answered_before{$book} - ($lost_before{$book} // 0) - $recorded->{$book});
		my $over = $recorded->{$book} - ($sent_before{$book} - ($lost_before{$book} // 0));
		push @{ $round->{wrong_sums} }, "book $book: $lost uses are missing, $allowed may be" if $lost > $allowed;
		push @{ $round->{wrong_sums} }, "book $book: $over uses too many" if $over > 0;
		$lost_before{$book} += $lost;
		$round->{lost} += $lost;
		push @{ $round->{losses} }, "$book $lost" if $lost;
	}
	$round->{lost} //= 0;

	# each confirmed change is there
	my (%made, %revoked);
	foreach my $line (read_journal())
	{
		$made{ $line->[1] } = 1 if $line->[0] eq 'made';
		$revoked{ $line->[1] } = 1 if $line->[0] eq 'revoked';
	}
	$round->{lost_keys} = ask($leader,
		'SELECT count(*) FROM unnest($1::text[]) AS id WHERE NOT EXISTS (SELECT FROM rk_apikeys.api_keys WHERE key_id = id)', [ keys %made ]) // 'all';
	$round->{lost_revocations} = ask($leader,
		'SELECT count(*) FROM unnest($1::text[]) AS id WHERE NOT EXISTS (SELECT FROM rk_apikeys.api_keys WHERE key_id = id AND revoked_at IS NOT NULL)',
		[ keys %revoked ]) // 'all';
	$round->{confirmed} = keys(%made) + keys %revoked;
	resume();
	return;
}

# The longest time between two confirmed changes of which the second came after the fault.
sub without_writer
{
	my ($fault) = @_;
	my @times = sort { $a <=> $b } map { $_->[0] eq 'made' ? $_->[3] : $_->[0] eq 'revoked' ? $_->[2] : () } read_journal();
	return max 0, map { $times[$_] > $fault ? $times[$_] - $times[ $_ - 1 ] : () } 1 .. $#times;
}

# What a node's verifiers counted in a book from a moment on, to another.
sub uses_between
{
	my ($verifiers, $book, $from, $to) = @_;
	return sum0 map { my $tenths = $_->{tenths}{$book} // {}; map { $tenths->{$_} } grep { $_ >= int(10 * $from) && $_ <= 10 * $to } keys %$tenths } @$verifiers;
}

# When a node answered again, for good.
sub returned
{
	my ($verifiers) = @_;
	return max 0, map { $_->[1] } grep { $_->[2] } map { @{ $_->{gaps} } } @$verifiers;
}

# When nodes that were rewound may have lost uses: from the last delivery before the fault on, until they returned.
sub rewound
{
	my ($round, $node, @rewound) = @_;
	return map { [ $_, $round->{fault} - INTERVAL - 1, returned($node->{$_}) ] } @rewound;
}

sub changes_confirmed { return scalar grep { $_->[0] =~ /^(?:made|revoked)$/ } read_journal(); }

# The clients have done so many changes more.
sub work
{
	my ($changes) = @_;
	my $until = changes_confirmed() + $changes;
	return until_true(120, sub { return changes_confirmed() >= $until });
}

# One round: the fault, a leader, all nodes back, and the checks. $fault->(leader) returns when another node leads.
sub round
{
	my ($kind, $number, $fault, $may_lose) = @_;
	my $old = $leader;
	my %rewinds = map { $_ => rewinds($_) } NODES;
	my %round = (kind => $kind, old => $old, problems => []);
	work(60) or push @{ $round{problems} }, 'the writers do not write';
	$round{fault} = time;
	$fault->(\%round);
	$leader = healthy(180) || die "$kind $number: the nodes do not all come back\n";
	$round{back} = time - $round{fault};
	work(60) or push @{ $round{problems} }, 'the writers do not write again';
	$round{no_writer} = without_writer($round{fault});
	my %rewound = map { $_ => 1 } grep { rewinds($_) > $rewinds{$_} } NODES;
	$round{rewound} = \%rewound;
	check_round(\%round, $may_lose && sub { return $may_lose->(\%round, @_) });
	# the nodes whose server no one stops: the new leader, and the third unless Patroni rewinds it
	my @others = grep { $_ ne $old && !$rewound{$_} } NODES;
	$round{standby_errors} = sum0 map { $_->{errors} } map { @{ $round{node}{$_} } } @others;
	$round{standby_gap} = max map { $_->{longest} } map { @{ $round{node}{$_} } } @others;
	$round{old_uses} = sum0 map { uses_between($round{node}{$old}, $_, returned($round{node}{$old}), time) } $old, 'all';
	$round{old_gap} = max map { $_->{longest} } @{ $round{node}{$old} };
	$round{lag} = max map { $_->{lag} } map { @{ $round{node}{$_} } } $kind eq 'partition' ? @others : NODES;
	push @{ $round{problems} }, "$old still leads" if $leader eq $old;
	push @{ $kept{$kind} }, \%round;
	printf "        %s %d: %s to %s, %.1f s without a writer, all back after %.1f s, lost %d uses%s\n", $kind, $number, $old, $leader,
	  @round{qw(no_writer back lost)}, join '', map { "; $_" } (map { join ', ', @$_ } $round{losses} // ()), @{ $round{problems} }, @{ $round{wrong_sums} // [] },
	  $round{standby_errors} ? "$round{standby_errors} errors on standbys" : (), map { "$_ rewound" } sort keys %rewound;
	printf "        %d uses a second; its last flush began %.1f s before the kill; %d uses between its start and pg_rewind\n", @round{qw(rate window restarted)}
	  if $kind eq 'kill';
	printf "        its gaps, in seconds after the fault: %s\n", join ', ',
	  map { sprintf '%.1f to %.1f', $_->[0] - $round{fault}, $_->[1] - $round{fault} } map { @{ $_->{gaps} } } $round{node}{$old}[0]
	  if $kind ne 'switchover';
	return;
}

# --- the rounds ---------------------------------------------------------------------------------------------------------

sub another_leads
{
	my ($old, $seconds) = @_;
	return until_true($seconds, sub { my $now = leader(); return defined $now && $now ne $old ? $now : undef });
}

eval {
	foreach my $number (1 .. $switchovers)
	{
		round('switchover', $number, sub {
			my ($round) = @_;
			my $answer = switchover($leader) // 'nothing';
			another_leads($leader, 90) or push @{ $round->{problems} }, "no switchover: $answer";
		});
	}

	foreach my $number (1 .. $kills)
	{
		round('kill', $number, sub {
			my ($round) = @_;
			# a flush in this round keeps most of its uses
			sleep 2 * INTERVAL + rand 2 * INTERVAL;
			$round->{fault} = time;
			$round->{flush_lag} = (ask($leader, 'SELECT flush_lag_ms FROM rk_apikeys.stats') // 0) / 1000;
			# the standbys receive that flush
			sleep 0.5;
			kill_node($leader);
			$round->{killed} = time;
			another_leads($leader, 120) or push @{ $round->{problems} }, 'no failover';
			start_patroni($leader);
		}, sub {
			my ($round, $node) = @_;
			# What was counted since the last flush began that had ended before the kill. Patroni starts the node as a standby before it
			# runs pg_rewind, so what the node counts then may be lost too.
			my $old = $round->{old};
			my @killed = ($old, $round->{fault} - $round->{flush_lag}, $round->{killed});
			my @restarted = ($old, $killed[2] + 0.1, $round->{rewound}{$old} ? returned($node->{$old}) : 0);
			my $uses_of = sub { my @between = @_; return sum0 map { uses_between($node->{$old}, $_, @between) } $old, 'all' };
			$round->{restarted} = $uses_of->(@restarted[ 1, 2 ]);
			$round->{rate} = $uses_of->($round->{fault} - INTERVAL, $round->{fault}) / INTERVAL;
			$round->{window} = $killed[2] - $killed[1];
			return (\@killed, \@restarted, rewound($round, $node, grep { $_ ne $old } keys %{ $round->{rewound} }));
		});
	}

	foreach my $number (1 .. $partitions)
	{
		round('partition', $number, sub {
			my ($round) = @_;
			my $old = $leader;
			my $acme = connect_to($old, 'acme');
			my ($spare) = $acme->selectrow_array(q{SELECT key_id FROM rk_apikeys.create_key('spare')});
			$acme->disconnect;
			cut($old);
			my $outcome = revoke_on($old, $spare);
			my @others = grep { $_ ne $old } NODES;
			my ($demoted, $promoted);
			until_true(120, sub {
				$demoted //= time if (ask($old, 'SELECT pg_is_in_recovery()') // 1) == 1;
				$promoted //= time if grep { (ask($_, 'SELECT pg_is_in_recovery()') // 1) == 0 } @others;
				return $demoted && $promoted;
			}) or push @{ $round->{problems} }, 'no failover';
			push @{ $round->{problems} }, 'two nodes led at once' if ($promoted // 0) < ($demoted // time);
			$round->{demoted} = ($demoted // time) - $round->{fault};
			$round->{promoted} = ($promoted // time) - $round->{fault};
			# the majority goes on
			work(60) or push @{ $round->{problems} }, 'the majority does not write';
			push @{ $round->{problems} }, 'the minority confirmed a revocation' if (until_true(10, $outcome) // 'confirmed') ne 'refused';
			$round->{healed} = time;
			heal($old);
		}, sub {
			my ($round, $node) = @_;
			return rewound($round, $node, keys %{ $round->{rewound} });
		});
	}
	1;
} or ok(0, "the rounds ended early: $@" =~ s/\n\z//r);

# --- the summary --------------------------------------------------------------------------------------------------------

sub all_of { my ($kind, $what) = @_; return map { $_->{$what} // 0 } @{ $kept{$kind} // [] }; }

my %title = (switchover => 'switchovers', kill => 'kill -9 of the leader', partition => 'partitions');
foreach my $kind (grep { $kept{$_} } qw(switchover kill partition))
{
	my @rounds = @{ $kept{$kind} };
	my $n = @rounds;
	my $title = "$title{$kind} ($n)";
	my @problems = map { @{ $_->{problems} } } @rounds;
	ok(!@problems, "$title: another node led each time" . join '', map { "; $_" } @problems);
	ok(!sum0(map { $_->{lost_keys} eq 'all' ? 1 : $_->{lost_keys} + $_->{lost_revocations} } @rounds),
		"$title: no key and no revocation that COMMIT confirmed is lost");
	my @sums = map { @{ $_->{wrong_sums} // [] } } @rounds;
	ok(!@sums, sprintf '%s: uses: %d of %d lost%s', $title, sum0(all_of($kind, 'lost')), sum0(all_of($kind, 'answered')), join '', map { "; $_" } @sums);
	my $errors = sum0 all_of($kind, 'standby_errors');
	ok(!$errors, sprintf '%s: verifying never stopped on the other nodes: %d errors, longest wait for an answer %.1f s', $title, $errors,
		max(all_of($kind, 'standby_gap')));
	fact("$title: without a writer: " . spread(all_of($kind, 'no_writer')));
	fact("$title: until all nodes stream again: " . spread(all_of($kind, 'back')));
	fact("$title: longest wait for a verify on the old leader's node: " . spread(all_of($kind, 'old_gap')));
	fact(sprintf '%s: oldest verdict of a standby that was not synchronous yet: %.1f s after COMMIT', $title, max(all_of($kind, 'lag')));
	fact(sprintf '%s: a kill lost the uses of at most %.1f s; its last flush began up to %.1f s before', $title,
		max(map { $_->{lost} / max(1, $_->{rate}) } @rounds), max(all_of('kill', 'window')))
	  if $kind eq 'kill';
	fact("$title: uses that the old leader's node counted between its start and pg_rewind: " . join ' ', all_of($kind, 'restarted')) if $kind eq 'kill';
	fact("$title: uses that the old leader counted after its return, and delivered: " . sum0 all_of($kind, 'old_uses'));
	fact(sprintf '%s: pg_rewind on %d old leaders and on %d other nodes', $title, scalar(grep { $_->{rewound}{ $_->{old} } } @rounds),
		sum0(map { my $round = $_; scalar grep { $_ ne $round->{old} } keys %{ $round->{rewound} } } @rounds));
	next if $kind ne 'partition';
	fact("$title: the old leader gave up the lead after " . spread(all_of($kind, 'demoted')) . '; another led after ' . spread(all_of($kind, 'promoted')));
	fact("$title: oldest verdict on the node that was cut off: " . spread(map { my $round = $_; max map { $_->{lag} } @{ $round->{node}{ $round->{old} } } } @rounds));
}
my @wrong = lines_of('wrong');
my @rounds = map { @{ $kept{$_} } } keys %kept;
ok(!@wrong, sprintf 'verdicts: %d wrong of %d uses and of %d verdicts on changed keys, %d of them bound by COMMIT or replay; %d changes', scalar @wrong,
	map({ my $what = $_; sum0 map { $_->{$what} } @rounds } qw(answered checks bound)), changes_confirmed());
print "        $_\n" foreach @wrong[ 0 .. min($#wrong, 19) ];
my @crashes = map { my $node = $_; map { "$node: $_" } grep { /terminated by signal (?:6|7|8|11)|PANIC|TRAP: / } lines_of("$node/patroni.log") } NODES;
ok(!@crashes, 'no process of a server crashed' . join '', map { "; $_" } @crashes);

print "$passed passed, $failed failed\n";
exit($failed ? 1 : 0);
