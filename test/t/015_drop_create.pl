# test/t/015_drop_create.pl: the extension is dropped and made again, over and over, while sessions that cache its keys go on verifying.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $rounds = 10;

# What a session says, be it an error.
sub answer
{
	my ($session, $sql) = @_;
	my $answer = $session->query($sql);
	$session->{stderr} = '';
	return $answer;
}

foreach my $preloaded (0, 1)
{
	my $with = $preloaded ? 'preloaded' : 'not preloaded';
	my $node = rk_node("drop$preloaded", "rk_apikeys.usage_flush_interval = '100ms'", $preloaded ? PRELOAD : ());
	my %session = map { $_ => session($node, 'backend', on_error_stop => 0) } 'idle', 'serializable', 'own';
	my (undef, $token) = create_key($node, 'first');
	my @old;

	# As drivers do it: prepared once, used for ever, whatever error comes.
	my $dir = PostgreSQL::Test::Utils::tempdir;
	append_to_file("$dir/go", "wait\n");
	my $program = client('keep_verifying');
	my ($out, $err) = ('', '');
	my $load = IPC::Run::start([ $program, $node->connstr('postgres') . ' user=backend', "$dir/go", 4, $token ], '>', \$out, '2>', \$err);

	foreach my $round (1 .. $rounds)
	{
		push @old, $token;
		answer($session{own}, "SELECT rk_apikeys.verify('$token')");
		answer($session{serializable}, "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT rk_apikeys.verify('$token'); COMMIT");
		$node->safe_psql('postgres', 'DROP EXTENSION rk_apikeys');
		is(answer($session{idle}, "SELECT code FROM rk_apikeys.verify_key('$token')"), '', "$with, no answer without the extension")
		  if $round == 1;
		$node->safe_psql('postgres', 'CREATE EXTENSION rk_apikeys');
		(undef, $token) = create_key($node, "round $round");
		next if $round % 5;
		foreach (sort keys %session)
		{
			is(code($session{$_}, $token), 'valid', "$with, round $round, $_: the new key");
			is(code($session{$_}, $old[-1]), 'unknown', "$with, round $round, $_: the one before the drop is gone");
			is(code($session{$_}, $old[0]), 'unknown', "$with, round $round, $_: so is the first");
		}
	}

	unlink "$dir/go";
	ok($load->finish, "$with, the load ran to its end") or diag $err;
	my %count = $out =~ /(\w+) (\d+)/g;
	note $out;
	cmp_ok($count{answers}, '>', $rounds, "$with, $count{answers} answers meanwhile");
	cmp_ok($count{errors}, '>', 0, "$with, and $count{errors} times there was no extension");
	is($err, '', "$with, no other error");
	is_deeply([ logged($node, qr/PANIC|TRAP|terminated by signal/) ], [], "$with, nothing crashed");
	$_->quit foreach values %session;
	$node->stop;
}

done_testing();
