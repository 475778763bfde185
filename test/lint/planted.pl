#!/usr/bin/perl
# test/lint/planted.pl: script/lint finds what it looks for. A small tree without a fault passes the checks that are tried here; then each
# fault is planted into it by itself, and its check must fail and say where. Prints `ok NAME` or `not ok NAME`, as script/lint does.
use strict;
use warnings;
use File::Basename;
use File::Path qw(make_path);
use File::Temp;
use FindBin;

my $lint = "$FindBin::Bin/../../script/lint";

# The head of a C file
sub head { my ($name) = @_; return "/*\n * $name\n *\t\tOne sentence about it,\n *\t\ton two lines.\n */\n"; }

my %tree = (
	'Makefile' => "SHLIB_EXPORTS = src/exports.txt\n",
	'README.md' => "# Name\n\nA short sentence. " . join(' ', ('word') x 30) . ". \"" . 'quoted ' x 40 . "\"\n\n    "
	  . 'code ' x 40 . "\n",
	'doc/page.md' => "- " . join(' ', ('one') x 20) . "\n- " . join(' ', ('two') x 20) . "\n\n| "
	  . 'cell ' x 20 . '| ' . 'cell ' x 20 . "|\n\n```\n" . 'code ' x 40 . "\n```\n",
	'script/run' => "#!/bin/sh\n# shellcheck disable=SC2034 # for others\na=1\n",
	'sql/00.sql' => "SELECT 1;\n",
	'sql/updates/a--b.sql' => "SELECT 1;\n",
	'src/compat.h' => head('compat.h') . "#include \"postgres.h\"\n",
	'src/exports.txt' => "# Why\nPg_magic_func 1\n_PG_init 2\nrk_apikeys_* 3\npg_finfo_rk_apikeys_* 4\n",
	'src/server/start.c' => head('start.c') . "#include \"postgres.h\"\n\n#include \"base/settings.h\"\n#include \"key/verify.h\"\n\n"
	  . "PGDLLEXPORT void _PG_init(void);\n\nvoid\n_PG_init(void)\n{\n\tsettings_init();\n\tverify_init(\"token_seal();\");\n}\n",
	'src/key/verify.c' => head('verify.c') . "#include \"compat.h\"\n#include \"key/verify.h\"\n#include \"usage/usage.h\"\n\n"
	  . "/* base_of_it() is in a comment */\nvoid\nverify_init(const char *text)\n{\n\tusage_record(text);\n}\n",
	'src/key/verify.h' => head('verify.h') . "extern void verify_init(const char *text);\n",
	'src/usage/usage.h' => head('usage.h') . "extern void usage_record(const char *text);\n",
	'src/usage/shared.h' => head('shared.h')
	  . "#include \"usage/usage.h\"\n\nextern int usage_entries[];\nextern int *usage_find(int i,\n\t\t\t\t\t   int j);\n",
	'src/usage/record.c' => head('record.c')
	  . "#include \"usage/shared.h\"\n\nvoid\nusage_record(const char *text)\n{\n\t*usage_find(1, 2) = 3;\n}\n",
	'src/usage/hash.c' => head('hash.c')
	  . "#include \"usage/shared.h\"\n\nint\t\t\tusage_entries[2] = {1, 2};\n\nint *\nusage_find(int i, int j)\n{\n"
	  . "\treturn &usage_entries[i];\n}\n",
	'src/base/settings.c' => head('settings.c')
	  . "#include \"base/settings.h\"\n#include \"token/token.h\"\n\nint\t\t\tsettings_size = 1;\n\nvoid\n"
	  . "settings_init(void)\n{\n\tDefineCustomIntVariable(\"rk_apikeys.a\", token_seal());\n\tDefineCustomIntVariable(\"rk_apikeys.b\", 1);\n"
	  . "\tMarkGUCPrefixReserved(\"rk_apikeys\");\n}\n",
	'src/base/settings.h' => head('settings.h') . "extern int\tsettings_size;\n\nextern void settings_init(void);\n",
	'src/token/token.c' => head('token.c') . "#include \"token/token.h\"\n\nstatic int sealed;\n\nint\ntoken_seal(void)\n{\n\treturn sealed;\n}\n",
	'src/token/token.h' => head('token.h') . "extern int token_seal(void);\n");

my @checks = (
	'settings are sorted', 'sql/ is ASCII', 'every file of src/ opens with its name and one sentence', 'every file of src/ is in one of its folders',
	'headers are included with their folder', 'files use their own folder or a lower one', 'usage/shared.h is included by usage/ alone',
	'no file declares what another one defines', 'what is declared is defined, once', 'no circle of files',
	'the Makefile exports what src/exports.txt lists, and no more', 'no sentence of the pages has more than 30 words',
	'a shellcheck directive gives its reason', 'shellcheck finds nothing', 'files of C that the pages name are there');

# A fault: what it is, the check, what that must say, and each file with what is replaced in it by what (the whole, if nothing is).
my @faults = (
	[ 'an include of a higher folder', $checks[5], 'src/token/token.c:6: includes base/settings.h',
		'src/token/token.c' => [ qr/(?=#include)/, "#include \"base/settings.h\"\n" ] ],
	[ 'compat.h that includes a folder', $checks[5], 'src/compat.h:6: includes token/token.h',
		'src/compat.h' => [ qr/postgres\.h/, 'token/token.h' ] ],
	[ 'a header without its folder', $checks[4], 'src/usage/hash.c:6: shared.h',
		'src/usage/hash.c' => [ qr{usage/shared\.h}, 'shared.h' ] ],
	[ 'a header by a way up', $checks[4], 'src/usage/hash.c:6: ../usage/shared.h',
		'src/usage/hash.c' => [ qr{usage/shared\.h}, '../usage/shared.h' ] ],
	[ 'a header of ours in angles', $checks[4], 'src/usage/hash.c:6: shared.h',
		'src/usage/hash.c' => [ qr{"usage/shared\.h"}, '<shared.h>' ] ],
	[ 'a header that is not there', $checks[4], 'src/usage/hash.c:6: usage/none.h is not there',
		'src/usage/hash.c' => [ qr{usage/shared\.h}, 'usage/none.h' ] ],
	[ 'a .c file that is included', $checks[4], 'src/usage/hash.c:6: usage/record.c',
		'src/usage/hash.c' => [ qr{usage/shared\.h}, 'usage/record.c' ] ],
	[ 'usage/shared.h outside of usage/', $checks[6], 'src/key/verify.c:8',
		'src/key/verify.c' => [ qr{usage/usage\.h}, 'usage/shared.h' ] ],
	[ 'a file outside of the folders', $checks[3], 'src/stray.c', 'src/stray.c' => [ undef, head('stray.c') ] ],
	[ 'a file in a folder of none', $checks[3], 'src/key/deep/stray.c', 'src/key/deep/stray.c' => [ undef, head('stray.c') ] ],
	[ 'a function declared by extern in a .c file', $checks[7], 'src/token/token.c:13: ',
		'src/token/token.c' => [ qr/(?=\treturn)/, "\textern void settings_init(void);\n" ] ],
	[ 'a variable declared by extern in a .c file', $checks[7], 'src/token/token.c:8: extern int',
		'src/token/token.c' => [ qr/(?=static)/, "extern int settings_size;\n" ] ],
	[ 'a function declared without extern in a .c file', $checks[7], 'declares settings_init',
		'src/token/token.c' => [ qr/(?=static)/, "void settings_init(void);\n" ] ],
	[ 'a use of a higher folder by extern', $checks[5], 'src/token/token.c:13: uses settings_size of src/base/settings.c',
		'src/token/token.c' => [ qr/static int sealed;/, 'extern int settings_size;' ],
		'src/token/token.c ' => [ qr/return sealed/, 'return settings_size' ] ],
	[ 'a lower header that declares a higher function', $checks[5], 'src/token/token.c:13: uses settings_init of src/base/settings.c',
		'src/token/token.h' => [ qr/(?=extern)/, "extern void settings_init(void);\n" ],
		'src/token/token.c' => [ qr/(?=\treturn)/, "\tsettings_init();\n" ] ],
	[ 'what is declared and nowhere defined', $checks[8], 'src/usage/shared.h:9: usage_lost',
		'src/usage/shared.h' => [ qr/(?=extern int \*)/, "extern bool usage_lost(void);\n" ] ],
	[ 'what is defined twice', $checks[8], 'usage_entries is defined by src/usage/hash.c src/usage/record.c',
		'src/usage/record.c' => [ qr/(?=void)/, "int usage_entries[2];\n" ] ],
	[ 'a circle of headers', $checks[9], 'usage/shared includes usage/usage.h, usage/usage includes usage/shared.h',
		'src/usage/usage.h' => [ qr/(?=extern)/, "#include \"usage/shared.h\"\n" ] ],
	[ 'a circle of functions', $checks[9], 'usage/hash uses usage_record of usage/record, usage/record uses usage_find of usage/hash',
		'src/usage/hash.c' => [ qr/(?=\treturn)/, "\tusage_record(\"\");\n" ] ],
	[ 'a circle through a variable', $checks[9], 'usage/hash uses usage_count of usage/record, usage/record uses usage_find of usage/hash',
		'src/usage/shared.h' => [ qr/(?=extern int \*)/, "extern int usage_count;\n" ],
		'src/usage/record.c' => [ qr/(?=void)/, "int\t\t\tusage_count = 0;\n\n" ],
		'src/usage/hash.c' => [ qr/(?=\treturn)/, "\tusage_count++;\n" ] ],
	[ 'a circle through an inline function of a header', $checks[9], 'usage/shared uses usage_find of usage/hash',
		'src/usage/shared.h' => [ qr/\z/, "\nstatic inline int *\nusage_first(void)\n{\n\treturn usage_find(0, 0);\n}\n" ] ],
	[ 'a circle through a variable declared by extern where it is used', $checks[9], 'usage/hash uses usage_count of usage/record',
		'src/usage/record.c' => [ qr/(?=void)/, "int\t\t\tusage_count;\n\n" ],
		'src/usage/hash.c' => [ qr/(?=\treturn)/, "\textern int usage_count;\n\n\tusage_count++;\n" ] ],
	[ 'a circle of three', $checks[9],
		'usage/file uses usage_record of usage/record, usage/record uses usage_find of usage/hash, usage/hash uses usage_save of usage/file',
		'src/usage/shared.h' => [ qr/(?=extern int \*)/, "extern void usage_save(void);\n" ],
		'src/usage/hash.c' => [ qr/(?=\treturn)/, "\tusage_save();\n" ],
		'src/usage/file.c' => [ undef, head('file.c') . "#include \"usage/shared.h\"\n\nvoid\nusage_save(void)\n{\n\tusage_record(\"\");\n}\n" ] ],
	[ 'another name at the head of a file', $checks[2], 'src/usage/hash.c', 'src/usage/hash.c' => [ qr/ \* hash\.c/, ' * usage_hash.c' ] ],
	[ 'two sentences at the head of a file', $checks[2], 'src/usage/hash.c',
		'src/usage/hash.c' => [ qr/about it,/, 'about it.  A second' ] ],
	[ 'a setting out of order', $checks[0], 'a stands after c',
		'src/base/settings.c' => [ qr/(?=\tDefine.*rk_apikeys\.a)/, "\tDefineCustomIntVariable(\"rk_apikeys.c\", 1);\n" ] ],
	[ 'a setting out of order in a table', $checks[0], 'b stands after z',
		'src/base/settings.c' => [ qr/(?=void\nsettings_init)/, "static const Setting settings[] = {\n\t{\"rk_apikeys.a\", 1},\n\t{\"rk_apikeys.z\", 1},\n\t{\"rk_apikeys.b\", 1},\n};\n\n" ] ],
	[ 'a character of sql/ beyond ASCII', $checks[1], 'sql/00.sql:1', 'sql/00.sql' => [ qr/\n/, " -- \xe2\x80\xa6\n" ] ],
	[ 'one of an update script', $checks[1], 'sql/updates/a--b.sql:1', 'sql/updates/a--b.sql' => [ qr/\n/, " -- \xc3\xa9\n" ] ],
	[ 'a symbol exported beside the list', $checks[10], 'usage_record may not be', 'src/exports.txt' => [ qr/\z/, "usage_record 5\n" ] ],
	[ 'no list of exports', $checks[10], 'SHLIB_EXPORTS', 'Makefile' => [ qr/SHLIB/, 'X' ] ],
	[ 'a file that is not there', $checks[14], 'doc/page.md:1: there is no key/gone.c',
		'doc/page.md' => [ qr/\A/, "See key/verify.c, src/key/verify.h and key/gone.c.\n\n" ] ],
	[ 'a sentence of 31 words', $checks[11], 'README.md:3: 31 words', 'README.md' => [ qr/(?= word\.)/, ' and' ] ],
	[ 'one in a paragraph of an item', $checks[11], 'doc/page.md:3: 31 words',
		'doc/page.md' => [ qr/\A/, "- An item.\n\n  " . join(' ', ('w') x 31) . ".\n\n" ] ],
	[ 'one behind a number that begins a line', $checks[11], 'doc/page.md:1: 34 words',
		'doc/page.md' => [ qr/\A/, join(' ', ('w') x 30) . "\n15) then it ends.\n\n" ] ],
	[ 'a directive without a reason', $checks[12], 'script/run:2', 'script/run' => [ qr/ # for others/, '' ] ],
	[ 'what shellcheck finds', $checks[13], 'SC2086', 'script/run' => [ qr/\z/, "echo \$1\n" ] ]);

my $failed = 0;
sub result
{
	my ($ok, $name, @why) = @_;
	print $ok ? 'ok ' : 'not ok ', "$name\n", $ok ? () : map { "  $_\n" } @why;
	$failed = 1 unless $ok;
	return;
}

# What lint says of a tree: the lines of each check.
sub checks_of
{
	my (%files) = @_;
	my $dir = File::Temp->newdir;
	foreach my $file (sort keys %files)
	{
		make_path(dirname("$dir/$file"));
		open my $fh, '>', "$dir/$file" or die "$file: $!";
		print $fh $files{$file};
		close $fh;
	}
	my (%said, $check);
	foreach (qx{perl '$lint' '$dir' 2>&1})
	{
		if (/^((?:not )?ok|skip) (.*)/) { ($check) = $1 eq 'skip' ? 'shellcheck finds nothing' : $2; $said{$check} = "$1\n"; }
		else { $said{ $check // '' } .= $_; }
	}
	return %said;
}

my %sound = checks_of(%tree);
my @unsound = map { "$_: " . ($sound{$_} // 'no result') } grep { ($sound{$_} // '') !~ /^(?:ok|skip)\n\z/ } @checks;
result(!@unsound, 'a tree without a fault passes', @unsound, $sound{''} // ());
foreach my $fault (@faults)
{
	my ($name, $check, $says, @changes) = @$fault;
	next if $sound{$check} =~ /^skip/;
	my %changed = %tree;
	while (my ($file, $change) = splice @changes, 0, 2)
	{
		# a second change to a file has a blank behind its name
		$file =~ s/ $//;
		my ($from, $to) = @$change;
		$changed{$file} = defined $from ? $changed{$file} =~ s/$from/$to/r : $to;
	}
	my %said = checks_of(%changed);
	result($said{$check} =~ /^not ok\n/ && index($said{$check}, $says) >= 0, "planted: $name", $said{$check}, $said{''} // ());
}
exit $failed;
