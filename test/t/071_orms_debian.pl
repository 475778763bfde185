# test/t/071_orms_debian.pl: tools of Debian that map objects to rows: each does what test/orm/checks.txt lists, as doc/orms.md shows.
use strict;
use warnings;

use Cwd qw(abs_path);
use FindBin;
use lib $FindBin::Bin;
use RkOrms;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = abs_path("$FindBin::Bin/../orm/debian");

# Each tool: what shows that its package is there, and its program.
my @tools = (
	[ 'python3-sqlalchemy', "/usr/bin/python3 -c 'import sqlalchemy, psycopg2'", '/usr/bin/python3', '-B', "$source/run.py", 'sqlalchemy' ],
	[ 'python3-django', "/usr/bin/python3 -c 'import django, psycopg2'", '/usr/bin/python3', '-B', "$source/run.py", 'django' ],
	[ 'ruby-activerecord', "ruby -e 'require %q(active_record); require %q(pg)'", '/usr/bin/python3', '-B', "$source/run.py", 'activerecord' ],
	[ 'php-illuminate-database', "test -f /usr/share/php/Illuminate/Database/autoload.php && php -m | grep -q pdo_pgsql",
		'/usr/bin/python3', '-B', "$source/run.py", 'eloquent' ],
	[ 'php-doctrine-dbal', "test -f /usr/share/php/Doctrine/DBAL/autoload.php && php -m | grep -q pdo_pgsql",
		'/usr/bin/python3', '-B', "$source/run.py", 'doctrine' ],
	[ 'libpostgresql-jdbc-java', 'test -f /usr/share/java/postgresql.jar && test -f /usr/share/java/gson.jar && javac -version',
		'/usr/bin/python3', '-B', "$source/run.py", 'jdbc' ],
	[ 'golang-github-jackc-pgx-v4-dev', 'test -d /usr/share/gocode/src/github.com/jackc/pgx/v4 && go version',
		'/usr/bin/python3', '-B', "$source/run.py", 'pgx' ]);

my $node = orm_node();
my @results;
my $lacks = 0;
foreach my $tool (@tools)
{
	my ($package, $there, @command) = @$tool;
	SKIP:
	{
		$lacks++, skip "$package is missing", 1 if system("$there >/dev/null 2>&1") != 0;
		push @results, ask_tool($node, \@command);
	}
}
shows_results('debian', @results) unless $lacks;
no_token_in_log($node);
$node->stop;

done_testing();
