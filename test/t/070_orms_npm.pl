# test/t/070_orms_npm.pl: tools of npm that map objects to rows: each does what test/orm/checks.txt lists, as doc/orms.md shows.
use strict;
use warnings;

use Cwd qw(abs_path);
use FindBin;
use lib $FindBin::Bin;
use RkOrms;
use PostgreSQL::Test::Utils;
use Test::More;

my @tools = qw(prisma drizzle typeorm sequelize mikro-orm knex kysely);
my $source = abs_path("$FindBin::Bin/../orm/npm");
my $dir = PostgreSQL::Test::Utils::tempdir . '/npm';

# Prisma and TypeORM ask for it.
my ($major, $minor) = `node --version` =~ /^v(\d+)\.(\d+)/;
plan skip_all => 'needs Node.js 20.19' unless defined $major && ($major > 20 || ($major == 20 && $minor >= 19));

# npm builds below the package's folder: not in the checkout
mkdir $dir;
PostgreSQL::Test::Utils::system_or_bail('cp', (grep { -f } glob "$source/*"), $dir);
my $output = '';
my @ci = ('npm', 'ci', '--prefix', $dir, '--ignore-scripts', '--no-audit', '--no-fund', '--fetch-retries=1', '--fetch-timeout=30000');
unless (IPC::Run::run(\@ci, '<', \undef, '>&', \$output))
{
	plan skip_all => "npm's registry cannot be reached"
	  if $output =~ /\b(ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|EHOSTUNREACH|ETIMEDOUT)\b/;
	BAIL_OUT("npm cannot install the tools\n$output");
}
# Prisma makes its client from the schema. It would fetch a program for migrations, unless there is one.
{
	local @ENV{qw(PRISMA_SCHEMA_ENGINE_BINARY CHECKPOINT_DISABLE)} = ('/bin/true', 1);
	IPC::Run::run([ 'node', "$dir/node_modules/prisma/build/index.js", 'generate', '--schema', "$dir/schema.prisma" ],
		'<', \undef, '>&', \$output, init => sub { chdir $dir }) or BAIL_OUT("Prisma cannot make its client\n$output");
}

my $node = orm_node();
my @results = map { ask_tool($node, [ 'node', "$dir/run.mjs", $_ ]) } @tools;
shows_results('npm', @results);
no_token_in_log($node);
isnt($node->psql('postgres', q{INSERT INTO rk_apikeys.orm_keys (name) VALUES ('twice') ON CONFLICT DO NOTHING},
		extra_params => [ '-U', 'acme' ], stderr => \my $refusal), 0, 'orm_keys takes no ON CONFLICT');
like($refusal, qr/ON CONFLICT/, 'and says so');
$node->stop;

done_testing();
