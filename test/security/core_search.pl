# test/security/core_search.pl: where a core image holds a secret.
#
#   core_search.pl CORE MAPS SECRET TOKEN ROLE_OID
#
# Prints `KIND COUNT` for each kind of memory: own (the library's data), stack, shared, other (other libraries' data), heap, server
# (the server's own static data), and for issued: the records of src/key/issued.c (role, length, token), in any memory. A piece of
# 16 digits counts, and touching pieces count once. MAPS is the process's /proc/PID/maps.
use strict;
use warnings;
no warnings 'portable';

my ($core, $maps, $secret, $token, $role) = @ARGV;
my $piece = 16;

my @maps;
open my $fh, '<', $maps or die "$maps: $!\n";
while (<$fh>)
{
	my ($from, $to, $name) = /^(\w+)-(\w+) \S+ \S+ \S+ \S+\s*(.*)$/ or next;
	push @maps, [ hex $from, hex $to, kind($name) ];
}
close $fh;

sub kind
{
	my ($name) = @_;
	return 'own' if $name =~ /rk_apikeys\.so/;
	return 'stack' if $name eq '[stack]';
	return 'shared' if $name =~ m{^/(dev/(zero|shm)|SYSV)};
	return 'server' if $name =~ m{/postgres$};
	return 'other' if $name =~ /\.so/;
	return 'heap';
}

open my $c, '<:raw', $core or die "$core: $!\n";
read $c, my ($header), 64;
my ($phoff, $phentsize, $phnum) = (unpack('Q', substr $header, 32, 8), unpack('S S', substr $header, 54, 4));
my %count = map { $_ => 0 } qw(own stack shared other heap server issued bytes);
# data that is zero in the file (.bss) is a mapping without a name behind the file's own
foreach my $i (1 .. $#maps)
{
	$maps[$i][2] = $maps[$i - 1][2] if $maps[$i][2] eq 'heap' && $maps[$i - 1][1] == $maps[$i][0] && $maps[$i - 1][2] =~ /own|server|other/;
}
foreach my $i (0 .. $phnum - 1)
{
	seek $c, $phoff + $i * $phentsize, 0;
	read $c, my ($ph), 56;
	my ($type, $flags, $offset, $address, undef, $size) = unpack 'L L Q Q Q Q', $ph;
	next unless $type == 1 && $size;
	seek $c, $offset, 0;
	read $c, my ($data), $size;
	$count{bytes} += $size;
	my %starts;
	foreach my $at (0 .. length($secret) - $piece)
	{
		my $what = substr $secret, $at, $piece;
		for (my $found = 0; ($found = index $data, $what, $found) >= 0; $found++) { $starts{$found} = 1; }
	}
	my $last;
	foreach my $start (sort { $a <=> $b } keys %starts)
	{
		if (!defined $last || $start > $last + $piece)
		{
			my ($map) = grep { $_->[0] <= $address + $start && $address + $start < $_->[1] } @maps;
			my $kind = $map ? $map->[2] : 'heap';
			$count{$kind}++;
			my $context = substr $data, $start > 60 ? $start - 60 : 0, 160;
			$context =~ s/[^ -~]/./g;
			print STDERR "$kind $context\n" if $ENV{CORE_SEARCH_SHOW};
		}
		$last = $start;
	}
	my $record = pack('L S', $role, length $token) . $token;
	$count{issued}++ while $data =~ /\Q$record\E/g;
}
print "$_ $count{$_}\n" foreach sort keys %count;
