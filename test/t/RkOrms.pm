# test/t/RkOrms.pm: what the tests of tools that map objects to rows share: their server, what a tool's program prints, and doc/orms.md.
# ../orm/checks.txt lists what is asked.
package RkOrms;

use strict;
use warnings;

use Cwd qw(abs_path);
use Exporter 'import';
use FindBin;
use IPC::Run;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

our @EXPORT = qw(orm_node ask_tool shows_results no_token_in_log);

my $root = abs_path("$FindBin::Bin/../..");
# Of each check its name, the role, and what is asked.
my @asked = map { [ split ' ', $_, 3 ] } grep { /^\w/ } split /\n/, slurp_file("$root/test/orm/checks.txt");
my @checks = map { $_->[0] } @asked;
my %tells = map { $_ => 1 } qw(raise query_log);

my ($bouncer, $bouncer_port, $unknown);
END { local $?; $bouncer->kill_kill(grace => 5) if $bouncer; }

# A server with the extension, the roles and the table records; and PgBouncer before it. Both take sockets in the node's host, and TCP.
sub orm_node
{
	my $node = rk_node('orms', PRELOAD, "listen_addresses = '127.0.0.1'", "log_statement = 'all'");
	$node->append_conf('pg_hba.conf', 'host all acme,backend 127.0.0.1/32 trust');
	$node->reload;
	$node->safe_psql('postgres', q{
		CREATE TABLE records (id integer PRIMARY KEY, tenant text NOT NULL, body text NOT NULL);
		INSERT INTO records VALUES (1, 'acme', 'a1'), (2, 'acme', 'a2'), (3, 'globex', 'g1');
		ALTER TABLE records ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
		CREATE POLICY own ON records USING (tenant = (SELECT rk_apikeys.current_key_tenant()));
		GRANT SELECT ON records TO backend});
	$unknown = $node->safe_psql('postgres', 'SELECT rk_apikeys.generate_token()');

	my $dir = PostgreSQL::Test::Utils::tempdir;
	my ($pgbouncer) = grep { -x } '/usr/sbin/pgbouncer', map { "$_/pgbouncer" } split /:/, $ENV{PATH};
	die "pgbouncer is missing (apt-get install pgbouncer)\n" unless defined $pgbouncer;
	$bouncer_port = PostgreSQL::Test::Cluster::get_free_port();
	append_to_file("$dir/users", qq{"acme" ""\n"backend" ""\n});
	append_to_file("$dir/pgbouncer.ini", join "\n",
		'[databases]', 'postgres = host=' . $node->host . ' port=' . $node->port . ' dbname=postgres',
		'[pgbouncer]', 'listen_addr = 127.0.0.1', "listen_port = $bouncer_port", 'unix_socket_dir = ' . $node->host, 'auth_type = trust',
		"auth_file = $dir/users", 'pool_mode = transaction', 'default_pool_size = 2', "logfile = $dir/log", "pidfile = $dir/pid",
		'ignore_startup_parameters = extra_float_digits', '');
	$bouncer = IPC::Run::start([ $pgbouncer, '-q', "$dir/pgbouncer.ini" ], '<', \undef, '>', "$dir/out", '2>&1');
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		last if -S $node->host . "/.s.PGSQL.$bouncer_port" || !$bouncer->pumpable;
		usleep(100_000);
	}
	-S $node->host . "/.s.PGSQL.$bouncer_port" or die "PgBouncer does not run\n" . slurp_file(-e "$dir/log" ? "$dir/log" : "$dir/out");
	return $node;
}

# Runs a tool's program with these variables of the environment too. Each check is an assertion. Returns the tool's results.
sub ask_tool
{
	my ($node, $command, %env) = @_;
	%env = (PGHOST => $node->host, PGPORT => $node->port, PGDATABASE => 'postgres', RK_BOUNCER => $bouncer_port, RK_UNKNOWN => $unknown, %env);
	my ($output, $errors) = ('', '');
	{
		local @ENV{ keys %env } = values %env;
		delete local $ENV{PGUSER};
		eval {
			IPC::Run::run($command, '<', \undef, '>', \$output, '2>', \$errors, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
		};
		$errors .= $@;
	}
	my ($tool, $version) = $output =~ /^tool (.+) (\S+)$/m;
	$tool //= "@$command";
	my %result = (tool => $tool, version => $version);
	while ($output =~ /^(ok|not ok|impossible) (\w+)(?:: (.*))?$/mg)
	{
		fail("$tool: $2 is no check") unless grep { $_ eq $2 } @checks;
		$result{$2} = [ $1, $3 // '' ];
	}
	foreach my $check (@checks)
	{
		my ($verdict, $note) = @{ $result{$check} // [ 'not ok', 'was not asked' ] };
		ok($verdict ne 'not ok', "$tool: $check") or diag($note);
	}
	diag($errors) if $errors ne '';
	return \%result;
}

# The table of some tools' results, with the notes below.
sub table
{
	my @results = @_;
	my (@notes, %number);
	my @rows = ([ 'check', map { "$_->{tool} $_->{version}" } @results ], [ ('---') x (1 + @results) ]);
	foreach my $check (@checks)
	{
		my @cells;
		foreach my $result (@results)
		{
			my ($verdict, $note) = @{ $result->{$check} // [ 'not ok', 'was not asked' ] };
			my $cell = $verdict eq 'ok' ? 'yes' : $verdict eq 'impossible' ? 'no' : '**fails**';
			($cell, $note) = split /; /, "$note; ", 2 if $tells{$check} && $verdict eq 'ok';
			$note =~ s/; $//;
			if ($note ne '')
			{
				push @notes, $note unless $number{$note};
				$number{$note} ||= @notes;
				$cell .= " ($number{$note})";
			}
			push @cells, $cell;
		}
		push @rows, [ $check, @cells ];
	}
	return join('', map { '| ' . join(' | ', @$_) . " |\n" } @rows) . "\n"
	  . join '', map { "$_. " . ucfirst($notes[ $_ - 1 ]) . ".\n" } 1 .. @notes;
}

# The code between the marks `doc: NAME` and `doc: end` of a file, without the indentation.
sub excerpt
{
	my ($file, $name) = @_;
	my ($code) = slurp_file("$root/$file") =~ m{^[^\n]*\bdoc: \Q$name\E\b[^\n]*\n(.*?)^[^\n]*\bdoc: end\b}ms;
	die "$file has no part $name" unless defined $code;
	my ($indent) = sort { length $a <=> length $b } $code =~ /^([ \t]*)\S/mg;
	$code =~ s/^$indent//mg;
	$code =~ s/^(\t+)/'    ' x length $1/mge;
	return $code;
}

# doc/orms.md shows these results, and the code of the group's files. With RK_WRITE_DOCS=1 it is made to.
sub shows_results
{
	my ($group, @results) = @_;
	my $page = "$root/doc/orms.md";
	my $shown = slurp_file($page);
	my $right = $shown;
	my $table = table(@results);
	my $legend = join '', map { "| $_->[0] | $_->[2] |\n" } [ 'check', undef, 'what the tool must do' ], [ '---', undef, '---' ], @asked;
	$right =~ s{(<!-- checks -->\n).*?(<!-- end -->)}{$1\n$legend\n$2}s;
	$right =~ s{(<!-- table $group -->\n).*?(<!-- end -->)}{$1\n$table\n$2}s or fail("doc/orms.md has a table of $group");
	$right =~ s{(<!-- code (test/orm/$group/\S+) (\w+) -->\n```\w+\n).*?(```\n)}{$1 . excerpt($2, $3) . $4}gse;
	if ($ENV{RK_WRITE_DOCS})
	{
		open my $fh, '>', $page or die "cannot write $page: $!";
		print $fh $right;
		close $fh;
	}
	else { is($shown, $right, "doc/orms.md shows the results and the code of $group"); }
}

# The server's log, which has all statements, shows no token.
sub no_token_in_log
{
	my ($node) = @_;
	my $log = slurp_file($node->logfile);
	like($log, qr/authenticate/, 'the log has the statements');
	is(join("\n", grep { /rk_prod_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}/ } split /\n/, $log), '', 'and no token');
}

1;
