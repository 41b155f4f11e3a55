#!/usr/bin/perl
# Perl's MCE, the Many-Core Engine: MCE::Child with a two-way MCE::Channel for
# single tasks, MCE::Map for many items, MCE::Child alone for new lives.

use strict;
use warnings;
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);
use MCE::Channel;
use MCE::Child;
use MCE::Map;

sub now { clock_gettime(CLOCK_MONOTONIC) }

my ($case, @words) = @ARGV;
my %o = (workers => 2, n => 1000, map { split /=/, $_, 2 } @words);

sub burn {
    my $x = 1;
    for my $i (1 .. $_[0]) { $x = ($x * 31 + $i) & 0xffffff }
    return $x;
}

sub rounds_of {
    my $best = 1e9;
    for (1 .. 5) {
        my $start = now();
        burn(50000);
        my $took = now() - $start;
        $best = $took if $took < $best;
    }
    return int($_[0] * 50000 / $best + 1);
}

# Workers that answer each message of a channel with f of it.
sub serve {
    my ($workers, $f) = @_;
    my $channel = MCE::Channel->new(impl => 'Mutex');
    MCE::Child->init(max_workers => $workers, posix_exit => 1);
    for (1 .. $workers) {
        MCE::Child->create(sub {
            while (defined(my $x = $channel->recv)) {
                $channel->send2($f->($x));
            }
        });
    }
    return $channel;
}

sub leave {
    my ($channel) = @_;
    $channel->end;
    MCE::Child->wait_all;
}

sub one { my ($channel, $x) = @_; $channel->send($x); return $channel->recv2 }

my %cases;

$cases{apply} = sub {
    my $channel = serve($o{workers}, sub { 0 });
    one($channel, 0) for 1 .. $o{n} / 10;
    my $start = now();
    one($channel, 0) for 1 .. $o{n};
    my $took = now() - $start;
    leave($channel);
    return (value => $took / $o{n} * 1e6, unit => 'us');
};

# At most 100 are under way, since a full channel would stop both sides.
$cases{async} = sub {
    my $rounds = $o{us} ? rounds_of($o{us} * 1e-6) : 0;
    my $channel = serve($o{workers},
        $rounds ? \&burn : sub { $_[0] + 1 });
    one($channel, 1);
    my ($sent, @results) = (0);
    my $start = now();
    while (@results < $o{n}) {
        my $batch = $o{n} - @results < 100 ? $o{n} - @results : 100;
        $channel->send($rounds || ++$sent) for 1 .. $batch;
        push @results, $channel->recv2 for 1 .. $batch;
    }
    my $took = now() - $start;
    leave($channel);
    return (value => $o{n} / $took, unit => '1/s', us => $o{us});
};

$cases{map} = sub {
    MCE::Map->init(max_workers => $o{workers});
    my @items = (1 .. $o{n});
    mce_map { $_ + 1 } 1 .. 100;
    my $start = now();
    my @results = mce_map { $_ + 1 } @items;
    my $took = now() - $start;
    die unless $results[-1] == $o{n} + 1;
    MCE::Map->finish;
    return (value => $o{n} / $took, unit => '1/s');
};

$cases{echo} = sub {
    my $channel = serve($o{workers}, sub { $_[0] });
    my $text = 'x' x $o{size};
    die unless length(one($channel, $text)) == $o{size};
    my $start = now();
    one($channel, $text) for 1 .. $o{n};
    my $took = now() - $start;
    leave($channel);
    return (value => 2 * $o{size} * $o{n} / $took / 2**30, unit => 'GiB/s',
        size => $o{size});
};

$cases{records} = sub {
    my $channel = serve($o{workers}, sub { $_[0] });
    one($channel, [1]);
    my @list = map { { id => $_, name => "name$_", score => $_ * 0.5 } }
        1 .. $o{n};
    my $start = now();
    my $back = one($channel, \@list);
    my $took = now() - $start;
    die unless @$back == $o{n};
    leave($channel);
    return (value => $took * 1e3, unit => 'ms');
};

$cases{start} = sub {
    my @times;
    for (1 .. $o{n}) {
        my $start = now();
        my $mce = MCE->new(max_workers => $o{workers}, chunk_size => 1,
            user_func => sub { $_ + 1 });
        $mce->spawn;
        $mce->process([1 .. $o{workers}]);
        $mce->shutdown;
        push @times, (now() - $start) * 1e3;
    }
    @times = sort { $a <=> $b } @times;
    return (value => $times[(@times - 1) / 2], unit => 'ms',
        worst => $times[-1]);
};

# A child for each task, max_workers at a time; there is no other limit.
$cases{recycle} = sub {
    return (skip => 'only one task for each child') if $o{limit} != 1;
    my @heap = map { chr($_ % 256) x (1 << 20) } 1 .. ($o{heap} || 0);
    my $sum = 0;
    MCE::Child->init(max_workers => $o{workers}, posix_exit => 1,
        on_finish => sub { $sum += $_[3] // 0 });
    my $start = now();
    for my $i (1 .. $o{n}) {
        MCE::Child->create(sub { $i + 1 });
    }
    MCE::Child->wait_all;
    my $took = now() - $start;
    return (value => $o{n} / $took, unit => '1/s', limit => 1,
        heap => ($o{heap} || 0));
};

$cases{cpu} = sub {
    my $rounds = rounds_of($o{us} * 1e-6);
    MCE::Map->init(max_workers => $o{workers}, chunk_size => 1);
    mce_map { burn($_) } (1) x 4;
    my $serial = sub {
        my $start = now();
        burn($rounds) for 1 .. $o{n} / 4;
        return (now() - $start) * 4;
    };
    my $before = $serial->();
    my $start = now();
    mce_map { burn($_) } ($rounds) x $o{n};
    my $took = now() - $start;
    my $after = $serial->();
    MCE::Map->finish;
    return (value => ($before + $after) / 2 / $took, unit => 'x',
        us => $o{us});
};

# A killed child has no result; join tells that it is over.
$cases{kill} = sub {
    my @times;
    for (1 .. $o{n}) {
        my $child = MCE::Child->create({ posix_exit => 1 },
            sub { while (1) { } });
        my $start = now();
        kill 'KILL', $child->pid;
        $child->join;
        push @times, now() - $start;
    }
    @times = sort { $a <=> $b } @times;
    return (value => $times[@times / 2] * 1e3, unit => 'ms',
        worst => $times[-1] * 1e3);
};

sub json {
    my %line = @_;
    return '{' . join(',', map {
        my $v = $line{$_};
        "\"$_\":" . ($v =~ /^-?[0-9.]+(e[-+]?[0-9]+)?$/ ? $v + 0 : "\"$v\"")
    } grep { defined $line{$_} } sort keys %line) . '}';
}

$cases{hold} = sub {
    $| = 1;
    print json(stage => 'base'), "\n";
    <STDIN>;
    my $mce = MCE->new(max_workers => $o{workers}, chunk_size => 1,
        user_func => sub { $_ + 1 });
    $mce->spawn;
    $mce->process([1 .. $o{workers}]);
    print json(stage => 'ready'), "\n";
    <STDIN>;
    $mce->shutdown;
    return;
};

my @line = $cases{$case} ? $cases{$case}->() : (skip => 'no such case here');
print json(peer => 'MCE', case => $case, n => $o{n},
    workers => $o{workers}, @line), "\n" if @line;
