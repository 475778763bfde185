# Draws growth-keys.svg and growth-clients.svg from the .dat files beside it; script/bench runs it.
# keys: how many keys the second picture was measured with.
set terminal svg size 760,440 background '#ffffff' font 'sans-serif,14'
set style line 1 linecolor '#0b6e4f' linewidth 2.5 pointtype 7 pointsize 0.7
set style line 2 linecolor '#c1440e' linewidth 2.5 pointtype 5 pointsize 0.7
set style line 3 linecolor '#5b6470' linewidth 2 pointtype 9 pointsize 0.8 dashtype 2
set style line 9 linecolor '#d8dce1' linewidth 1
set grid ytics linestyle 9
set border 3 linecolor '#5b6470'
set tics nomirror out
set key at screen 0.5, screen 0.03 center bottom vertical maxrows 3 reverse Left samplen 3
set bmargin 7.5
set yrange [0:*]
set format y '%.0s%c'
set ylabel 'verifies per second'

set output 'growth-keys.svg'
set title '{/:Bold rk\_apikeys.verify, 8 clients: speed by number of keys}'
set xlabel 'keys in the table'
stats 'growth-keys.dat' using 1 nooutput
set xrange [0.8 * STATS_min : 1.25 * STATS_max]
set logscale x 10
set xtics ('10,000' 1e4, '100,000' 1e5, '1 million' 1e6, '10 million' 1e7)
plot 'growth-keys.dat' using 1:2 with linespoints linestyle 1 title 'one hot key', \
     '' using 1:3 with linespoints linestyle 2 title 'random keys'

set output 'growth-clients.svg'
set title '{/:Bold rk\_apikeys.verify, '.keys.' keys: speed by number of clients}'
set xlabel 'clients (connections)'
set ylabel 'requests per second'
set xrange [0.9:18]
set logscale x 2
set xtics (1, 2, 4, 8, 16)
plot 'growth-clients.dat' using 1:2 with linespoints linestyle 1 title 'verify, one hot key', \
     '' using 1:3 with linespoints linestyle 2 title 'verify, random keys', \
     '' using 1:4 with linespoints linestyle 3 title 'bare look-up by primary key, random rows'
