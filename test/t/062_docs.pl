# test/t/062_docs.pl: the sessions that README.md, doc/psql.md and doc/limits.md show, run again: they print what is shown there, but for
# tokens, key ids and times.
use strict;
use warnings;

use Cwd qw(abs_path);
use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $root = abs_path("$FindBin::Bin/../..");
my $dir = PostgreSQL::Test::Utils::tempdir;

# The SQL blocks of a document, and the output that follows each, if it is shown.
sub blocks
{
	my ($file) = @_;
	my @blocks;
	my $text = slurp_file("$root/$file");
	push @blocks, { sql => $1, shown => $2 } while $text =~ /^```sql\n(.*?)^```\n(?:```\n(.*?)^```\n)?/msg;
	return @blocks;
}

# Output without what differs from run to run, and without the widths that follow from it. @ids: the key ids there are; in a document
# whatever looks like one.
sub plain
{
	my ($text, @ids) = @_;
	my $id = @ids ? join '|', @ids : '(?=[0-9A-Za-z]*[0-9A-Z])(?=[0-9A-Za-z]*[a-z])[0-9A-Za-z]{12}';
	$text =~ s/_[0-9A-Za-z]{49}\b/_SECRET/g;
	$text =~ s/\*{8}[0-9A-Za-z]{4}\b/********HINT/g;
	$text =~ s/(?<![0-9A-Za-z])(?:$id)(?![0-9A-Za-z])/KEY_ID/g;
	$text =~ s/\d{4}-\d\d-\d\d[ T][\d:.]+\+00(:00)?/TIME/g;
	$text =~ s/\b\d\d:\d\d:\d\d\b/TIME/g;
	$text =~ s/(Retry-After: |;t=)\d+/$1SECONDS/g;
	$text =~ s/("per_minute";r=)\d+/$1UNITS/g;
	$text =~ s/-{2,}/--/g;
	$text =~ s/ +/ /g;
	$text =~ s/^ | $//mg;
	$text =~ s/\n{2,}/\n/g;
	$text =~ s/^\n//;
	return $text;
}

# Runs the blocks of a document in one session of a role; a line `-- ROLE` connects as another. What is not shown may print, but must not fail.
sub runs_as_shown
{
	my ($node, $role, $file) = @_;
	my @blocks = blocks($file);
	my $script = join '', map { "\\echo \@\@$_\n" . $blocks[$_]{sql} =~ s/^-- (boss|acme|backend)$/\\c - $1/mgr } 0 .. $#blocks;
	my $output = '';
	IPC::Run::run([ 'psql', '-X', '-q', '-P', 'footer=off', '-h', $node->host, '-p', $node->port, '-U', $role, '-d', 'postgres' ],
		'<', \$script, '>&', \$output, init => sub { chdir $dir; });
	my @ids = split /\n/, $node->safe_psql('postgres', 'SELECT DISTINCT key_id FROM rk_apikeys.key_events WHERE key_id IS NOT NULL');
	my (undef, %printed) = split /^\@\@(\d+)\n/m, $output;
	is(join(',', sort { $a <=> $b } keys %printed), join(',', 0 .. $#blocks), "$file: every block was run");
	foreach my $n (0 .. $#blocks)
	{
		my ($begin) = $blocks[$n]{sql} =~ /^(.*)/;
		my $printed = $printed{$n} // '';
		if (defined $blocks[$n]{shown}) { is(plain($printed, @ids), plain($blocks[$n]{shown}), "$file: $begin") or diag($printed); }
		else { unlike($printed, qr/ERROR/, "$file: $begin"); }
	}
}

my $node = rk_initdb('tour', PRELOAD, "timezone = 'UTC'");
$node->safe_psql('postgres', 'CREATE EXTENSION rk_apikeys CASCADE');
runs_as_shown($node, 'postgres', 'README.md');
$node->stop;

# The recipes are acme's, on the console's keys. A clipboard that is a file.
open my $clipboard, '>', "$dir/wl-copy" or die $!;
print $clipboard "#!/bin/sh\ncat >'$dir/clipboard'\n";
close $clipboard;
chmod 0755, "$dir/wl-copy";
local $ENV{PATH} = "$dir:$ENV{PATH}";
$node = rk_node('recipes', PRELOAD, "timezone = 'UTC'");
PostgreSQL::Test::Utils::system_or_bail('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-h', $node->host, '-p', $node->port, '-d', 'postgres',
	'-o', '/dev/null', '-f', "$root/examples/console/$_") foreach qw(setup.sql sample.sql);
runs_as_shown($node, 'acme', 'doc/psql.md');
is(sql_as($node, 'backend', "SELECT code FROM rk_apikeys.verify_key('" . slurp_file("$dir/clipboard") . "')"), 'valid', 'the clipboard has the token of a key');
chomp(my $token = slurp_file("$dir/warehouse.new.token"));
is(sql_as($node, 'backend', "SELECT code FROM rk_apikeys.verify_key('$token')"), 'valid', 'the file too');
foreach my $name (slurp_file("$root/examples/psqlrc") =~ /^\\set (\w+)/mg)
{
	my ($status, $out, $error) = $node->psql('postgres', "\\i $root/examples/psqlrc\n:$name", extra_params => [ '-U', 'acme' ]);
	ok($error eq '' && $out =~ /\S/, "psqlrc: :$name finds something") or diag($error);
}

$node = rk_node('limits', PRELOAD, "timezone = 'UTC'");
runs_as_shown($node, 'boss', 'doc/limits.md');

# Whatever a document refers to is there.
foreach my $file ('README.md', glob "$root/doc/*.md")
{
	my $path = $file =~ m{^/} ? $file : "$root/$file";
	my ($base) = $path =~ m{^(.*)/};
	my @links = grep { !/^(https?:|#)/ } slurp_file($path) =~ /\]\(([^)#\s]+)/g;
	is_deeply([ grep { !-e "$base/$_" && !/growth-\w+\.svg$/ } @links ], [], ($path =~ m{([^/]+)$})[0] . ': its links lead somewhere');
}

done_testing();
