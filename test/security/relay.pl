# test/security/relay.pl: stands between clients and the server, and counts marks in what the server answers.
#
#   relay.pl LISTEN SERVER COUNTS MARK...
#
# LISTEN and SERVER are the paths of sockets. Whenever the counts change, COUNTS is written anew: `MARK COUNT`, a line each.
use strict;
use warnings;
use IO::Select;
use IO::Socket::UNIX;

my ($listen, $server, $file, @marks) = @ARGV;
my $socket = IO::Socket::UNIX->new(Local => $listen, Listen => 10) or die "$listen: $!\n";
chmod 0777, $listen;
my $select = IO::Select->new($socket);
my (%peer, %answers, %tail);
my %count = map { $_ => 0 } @marks;
my $longest = (sort { $b <=> $a } map { length } @marks)[0];

sub save
{
	open my $fh, '>', "$file.new" or die;
	print $fh "$_ $count{$_}\n" foreach @marks;
	close $fh;
	rename "$file.new", $file;
}

save();
while (my @ready = $select->can_read)
{
	foreach my $from (@ready)
	{
		if ($from == $socket)
		{
			my $client = $socket->accept or next;
			my $backend = IO::Socket::UNIX->new(Peer => $server) or do { close $client; next };
			$peer{$client} = $backend;
			$peer{$backend} = $client;
			$answers{$backend} = 1;
			$tail{$backend} = '';
			$select->add($client, $backend);
			next;
		}
		my $to = $peer{$from} or next;
		my $got = sysread $from, my $data, 65536;
		if (!$got)
		{
			$select->remove($from, $to);
			delete @peer{ $from, $to };
			close $from;
			close $to;
			next;
		}
		if ($answers{$from})
		{
			my $changed = 0;
			foreach my $mark (@marks)
			{
				# a mark that two reads cut in two; one that lies in the tail was counted
				my $text = substr($tail{$from}, -(length($mark) - 1)) . $data;
				my $found = () = $text =~ /\Q$mark\E/g;
				$count{$mark} += $found;
				$changed ||= $found;
			}
			save() if $changed;
			$tail{$from} = substr $tail{$from} . $data, -$longest;
		}
		for (my $sent = 0; $sent < $got;)
		{
			my $n = syswrite $to, $data, $got - $sent, $sent;
			last unless defined $n;
			$sent += $n;
		}
	}
}
