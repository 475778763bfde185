# overhead.awk: the windows of script/security overhead (side, from, to) and pgbench's log: what a transaction took in each window, in the
# median, and what on and again are, in the median, to the off between them.
function median(v, n, i, j, x) {
  for (i = 2; i <= n; i++) { x = v[i]; for (j = i - 1; j > 0 && v[j] > x; j--) v[j + 1] = v[j]; v[j + 1] = x }
  return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
}
NR == FNR { from[NR] = $2; to[NR] = $3; last = NR; next }
{ now = $5 + $6 / 1e6
  while (at <= last && now > to[at + 1]) at++
  if (now - $3 / 1e6 >= from[at + 1]) took[at + 1, ++n[at + 1]] = $3 }
END {
  for (w = 1; w <= last; w++) {
    delete v
    for (i = 1; i <= n[w]; i++) v[i] = took[w, i]
    all += n[w]; of[w] = median(v, n[w])
  }
  for (w = 2; w <= last; w += 3) { on[++pairs] = of[w - 1] / of[w]; again[pairs] = of[w + 1] / of[w]; off[pairs] = of[w] }
  printf "on %.2f\nagain %.2f\noff %.1f\npairs %d\nall %d\n", 100 * (median(on, pairs) - 1), 100 * (median(again, pairs) - 1),
    median(off, pairs), pairs, all
}
