# test/t/007_log_memory.pl: masking fails no statement for want of memory; a statement that cannot be masked is not logged.
#
# A backend may have so much address space and no more (prlimit), from the middle of a statement or from before it. Statements are longer
# than 32 MB: what has their length is then asked of the kernel each time, and is not found among what was freed before.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Utils;
use RkApikeys;
use Test::More;

my $node = rk_node('main', PRELOAD, 'logging_collector = on', "log_destination = 'stderr,csvlog,jsonlog'", "log_directory = 'logs'",
	"log_filename = 'server.log'", 'log_statement = none', 'log_min_messages = notice', 'log_min_error_statement = notice');
my %token = token_of($node, 'acme', q{SELECT 'it', secret FROM rk_apikeys.create_key('it')});
my $token = $token{it};
my ($secret) = $token =~ /_([0-9A-Za-z]{43})[0-9A-Za-z]{6}$/;
my $padding = ('x' x 99 . "\n") x 350_000;

# What limits the backend that runs it to what it has and some megabytes, and what lets it go. The programs read what they are sent:
# to close a pipe that nobody read can fail.
sub limit { return 'COPY (SELECT) TO PROGRAM \'cat >/dev/null; prlimit --pid=$PPID --as=$(awk "/^VmSize/ { printf \"%d\", (\\$2 + ' . $_[0] * 1024 . ') * 1024 }" /proc/$PPID/status):\''; }
my $unlimit = 'COPY (SELECT) TO PROGRAM \'cat >/dev/null; prlimit --pid=$PPID --as=unlimited:\'';

# The text of the logs, each from where it ended before.
my %read;
sub logs
{
	my %text;
	foreach my $file (glob($node->data_dir . '/logs/*'))
	{
		my ($format) = $file =~ /\.(\w+)$/;
		$text{$format} = slurp_file($file, $read{$file} // 0);
		$read{$file} = -s $file;
	}
	return \%text;
}

# Runs SQL from a file: what psql's command line cannot hold. Returns its status and what it said.
sub run_file
{
	my ($sql) = @_;
	my $file = $node->basedir . '/statements.sql';
	unlink $file;
	append_to_file($file, $sql);
	my ($status, $out, $err) = $node->psql('postgres', undef, extra_params => [ '-f', $file ], on_error_stop => 0);
	return ($status, $out, $err);
}

sub no_secret
{
	my ($logs, $name) = @_;
	is_deeply([ grep { index($logs->{$_}, $secret) >= 0 } sort keys %$logs ], [], "$name: no secret in " . join ', ', sort keys %$logs);
}

# A statement that says something while there are so many megabytes left.
foreach (
	[ 8, 'no room for a copy of it', 0 ],
	[ 48, 'room for a copy, none to write it', 0 ],
	[ 120, 'room to write it in one format', 0 ],
	[ 1000, 'room for all', 1 ])
{
	my ($left, $name, $shown) = @$_;
	my ($status, $out, $err) = run_file("DO \$do\$ BEGIN\n" . limit($left) . ";\nRAISE NOTICE 'said';\n$unlimit;\nEND\n/* $token $padding */ \$do\$;\n"
		  . "SELECT 'goes on';\n");
	is($out, 'goes on', "$left MB left, $name: the statement succeeds") or diag(substr($err, 0, 500));
	my $logs = logs();
	foreach my $format (sort keys %$logs)
	{
		is(() = $logs->{$format} =~ /said/g, $shown ? 2 : 1, "$left MB left: $format tells what it said" . ($shown ? ', and the statement' : ''));
		is($logs->{$format} =~ /_\*{8}/ ? 1 : 0, $shown, "$left MB left: $format " . ($shown ? 'has the mask' : 'has no statement'));
	}
	no_secret($logs, "$left MB left");
}

# One that fails does so for its own reason.
my ($status, $out, $err) = run_file("DO \$do\$ BEGIN\n" . limit(8) . ";\nPERFORM 1/0;\nEND\n/* $token $padding */ \$do\$;\n");
like($err, qr/division by zero/, 'a statement fails for its own reason');
no_secret(logs(), 'one that fails');

# Statements of a backend that has little from the start, all logged. The server itself may have too little for one: that is told, and
# is as without masking. In the order of the settings, since what is not masked stands in the logs.
my %said;
foreach my $redact ('on', 'off')
{
	$node->append_conf('postgresql.conf', "rk_apikeys.redact_logs = $redact\nlog_statement = all");
	$node->reload;
	$node->poll_query_until('postgres', "SELECT current_setting('rk_apikeys.redact_logs') = '$redact'") or die;
	foreach my $left (40, 120, 400)
	{
		my ($status, $out, $err) = run_file(limit($left) . ";\nSELECT length('$token $padding');\nSELECT 'goes on';\n");
		push @{ $said{$redact} }, "$left MB: " . join ' ', $out =~ /(\d+|goes on)/g, $err =~ /(ERROR:  [^\n]*|FATAL:  [^\n]*|lost)/g;
		my $logs = logs();
		no_secret($logs, "$left MB for each statement") if $redact eq 'on';
	}
}
is_deeply($said{on}, $said{off}, 'each statement ends as without masking') or diag(explain(\%said));
like($said{on}[0], qr/ERROR:  out of memory/, 'some for want of memory');
like($said{on}[-1], qr/^400 MB: \d+ goes on$/, 'and some well');
$node->stop;
my ($log) = glob($node->data_dir . '/logs/*.log');
unlike(slurp_file($log), qr/PANIC|terminated by signal/, 'no server process has ended');

done_testing();
