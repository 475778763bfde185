# test/t/098_limit_calendar.pl: quotas under a clock of the test's own (libfaketime): month ends, a leap day, year ends and Mondays, all in UTC
# whatever the server's time zone is; a stop and a crash over the end of a period; and a clock that is set back over it.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);
use Time::Local qw(timegm);

my ($library) = glob '/usr/lib/*/faketime/libfaketime.so.1';
plan skip_all => 'libfaketime is not there: install the package faketime' unless $library;

# Each process of the server adds the seconds of this file to the right time, whenever it asks.
my $clock = PostgreSQL::Test::Utils::tempdir . '/clock';
sub set_clock
{
	my ($year, $month, $day, $hour, $minute, $second) = $_[0] =~ /^(\d+)-(\d+)-(\d+) (\d+):(\d+):(\d+)$/ or die "no time: $_[0]";
	append_to_file("$clock.new", sprintf "%+.3f\n", timegm($second, $minute, $hour, $day, $month - 1, $year) - time);
	rename "$clock.new", $clock or die "$clock: $!";
}

my $node;
sub start
{
	local %ENV = (%ENV, LD_PRELOAD => $library, FAKETIME_TIMESTAMP_FILE => $clock, FAKETIME_NO_CACHE => 1, FAKETIME_DONT_FAKE_MONOTONIC => 1,
		DONT_FAKE_MONOTONIC => 1, NO_FAKE_STAT => 1);
	$node->start;
}

set_clock('2027-01-31 12:00:00');
$node = PostgreSQL::Test::Cluster->new('calendar');
$node->init(extra => INITDB);
$node->append_conf('postgresql.conf', join "\n", PRELOAD, "timezone = 'Pacific/Auckland'", 'wal_level = replica', "rk_apikeys.usage_flush_interval = '100ms'");
start();
rk_extend($node);
like($node->safe_psql('postgres', "SELECT clock_timestamp() AT TIME ZONE 'UTC'"), qr/^2027-01-31 12:0/, 'the server goes by the clock of the test');

# One key per period, so that each verdict tells of its own limit
my %token;
foreach my $period ('day', 'week', 'month', 'year', 'total')
{
	my $id;
	($id, $token{$period}) = create_key($node, $period, "expires_at => '2100-01-01'");
	sql_as($node, 'boss', "INSERT INTO rk_apikeys.limits (tenant, name, family, units, period) VALUES ('acme', '$period', '$id', 10, '$period')");
}
my $session = session($node, 'backend');

# A verdict: its code, what remains, and when it begins anew.
sub take
{
	my ($period, $cost) = @_;
	return $session->query_safe("SELECT code, limit_remaining, limit_resets_at AT TIME ZONE 'UTC' FROM rk_apikeys.verify_key('$token{$period}', cost => $cost)");
}

# At a time: what remains of each period after a verify.
sub at
{
	my ($time, $name, %expected) = @_;
	set_clock($time);
	foreach my $period (sort keys %expected)
	{
		my ($remaining, $resets) = @{ $expected{$period} };
		is(take($period, 1), "valid|$remaining|" . ($resets ? "$resets 00:00:00" : ''), "$time, $name: $period");
	}
}

# Until the table has what was counted.
sub flushed
{
	$node->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats') or die 'something stays pending';
	$node->safe_psql('postgres', 'SELECT rk_apikeys.flush_usage()');
}

at('2027-01-31 23:59:00', 'a Sunday at the end of a month', day => [ 9, '2027-02-01' ], week => [ 9, '2027-02-01' ], month => [ 9, '2027-02-01' ],
	year => [ 9, '2028-01-01' ], total => [ 9, undef ]);
is(take('month', 9), 'valid|0|2027-02-01 00:00:00', 'the month is used up');
like($session->query_safe("SELECT code, retry_after_ms FROM rk_apikeys.verify_key('$token{month}')"), qr/^quota_exceeded\|[345]\d{4}$/, 'for less than a minute');
at('2027-02-01 00:00:01', 'a Monday', day => [ 9, '2027-02-02' ], week => [ 9, '2027-02-08' ], month => [ 9, '2027-03-01' ], year => [ 8, '2028-01-01' ],
	total => [ 8, undef ]);
at('2027-02-01 11:30:00', 'midnight in Auckland', day => [ 8, '2027-02-02' ], month => [ 8, '2027-03-01' ]);
at('2027-02-07 23:59:50', 'the next Sunday', day => [ 9, '2027-02-08' ], week => [ 8, '2027-02-08' ]);
at('2027-02-08 00:00:00', 'the next Monday', day => [ 9, '2027-02-09' ], week => [ 9, '2027-02-15' ], month => [ 7, '2027-03-01' ]);
at('2027-02-28 23:59:50', 'the end of a February', month => [ 6, '2027-03-01' ]);
at('2027-03-01 00:00:00', 'the day after', month => [ 9, '2027-04-01' ]);
at('2027-04-30 23:59:50', 'a month of 30 days', day => [ 9, '2027-05-01' ], month => [ 9, '2027-05-01' ]);
at('2027-12-31 23:59:50', 'the end of a year', day => [ 9, '2028-01-01' ], week => [ 9, '2028-01-03' ], month => [ 9, '2028-01-01' ], year => [ 7, '2028-01-01' ],
	total => [ 7, undef ]);
at('2028-01-01 00:00:01', 'the new year, in the same week', day => [ 9, '2028-01-02' ], week => [ 8, '2028-01-03' ], month => [ 9, '2028-02-01' ], year => [ 9, '2029-01-01' ],
	total => [ 6, undef ]);
at('2028-02-28 23:59:50', 'before a leap day', day => [ 9, '2028-02-29' ], month => [ 9, '2028-03-01' ]);
at('2028-02-29 00:00:01', 'a leap day', day => [ 9, '2028-03-01' ], month => [ 8, '2028-03-01' ], year => [ 8, '2029-01-01' ]);
at('2028-02-29 23:59:50', 'its end', day => [ 8, '2028-03-01' ], month => [ 7, '2028-03-01' ]);
at('2028-03-01 00:00:00', 'the day after', day => [ 9, '2028-03-02' ], month => [ 9, '2028-04-01' ], year => [ 7, '2029-01-01' ]);
flushed();
is($node->safe_psql('postgres', "SELECT u.units, period_start AT TIME ZONE 'UTC' FROM rk_apikeys.limit_usage u JOIN rk_apikeys.limits USING (limit_id) WHERE name = 'month'
		AND period_start >= '2027-12-01Z' ORDER BY 2"),
	"1|2027-12-01 00:00:00\n1|2028-01-01 00:00:00\n3|2028-02-01 00:00:00\n1|2028-03-01 00:00:00", 'the bill of each month is in limit_usage');

# Stopped, and killed, over the end of a period
foreach my $case ([ '2028-03-31 23:59:50', '2028-04-01 00:00:10', 'stopped', '2028-05-01' ], [ '2028-04-30 23:59:50', '2028-05-01 00:00:10', 'killed', '2028-06-01' ])
{
	my ($before, $after, $how, $resets) = @$case;
	set_clock($before);
	like(take('month', 5), qr/^valid\|[45]\|/, "$how: some of the month");
	flushed();
	$session->quit;
	if ($how eq 'killed') { kill_server($node); }
	else { $node->stop; }
	set_clock($after);
	start();
	$session = session($node, 'backend');
	is(take('month', 1), "valid|9|$resets 00:00:00", "$how: the next month begins with all units");
	like(take('year', 1), qr/^valid\|[56]\|2029-01-01/, "$how: and the year goes on");
}

# The clock goes back over the end of a period: no unit is given twice
set_clock('2028-06-30 23:59:50');
my ($june, $july, $back) = (0, 0, 0);
$june += take('month', 1) =~ /^valid/ foreach 1 .. 6;
flushed();
set_clock('2028-07-01 00:00:10');
$july += take('month', 1) =~ /^valid/ foreach 1 .. 2;
flushed();
set_clock('2028-06-30 23:59:50');
$back += take('month', 1) =~ /^valid/ foreach 1 .. 20;
set_clock('2028-07-01 00:00:10');
$july += take('month', 1) =~ /^valid/ foreach 1 .. 20;
is("$june $back $july", '6 4 10', 'six in June, the four that it still has when the clock is back, and ten in July, two of them before');
set_clock('2028-08-01 00:00:01');
is(take('month', 10), 'valid|0|2028-09-01 00:00:00', 'the month after is whole');

# A day back within a period changes nothing
set_clock('2028-08-20 12:00:00');
is(take('month', 1), 'quota_exceeded|0|2028-09-01 00:00:00', 'used up');
set_clock('2028-08-19 12:00:00');
is(take('month', 1), 'quota_exceeded|0|2028-09-01 00:00:00', 'a day back, too');
is(take('total', 1) =~ s/\|.*//r, 'valid', 'and total has no end');
$session->quit;
is_deeply([ logged($node, qr/(PANIC|TRAP):/) ], [], 'nothing crashed');
done_testing();
