# shellcheck shell=bash
# script/lib.sh: what script/demo, script/test and script/bench share; sourced, not run.
#
# It gives a build of the tree and a throwaway server, and leaves the machine as it was, packages apart: those are script/setup's, which
# this file sources.
#
#   rk_packages [NAME...]   script/setup: installs what is missing, or ends with one line that says what
#   rk_open                 makes the temporary folder: $RK_TMP, the private server tree, the copy of the source in $RK_SRC
#   rk_build COMPILER DIR   builds a copy of the source under -Wall -Wextra -Werror
#   rk_install DIR          installs what was built there into the private tree
#   rk_older                does all that for the next older major that is on this machine, if any: $RK_OLD_BINDIR
#   rk_cluster NAME [CONF]  starts a new, empty cluster (and stops the one before); CONF is added to its postgresql.conf
#   rk_stop                 stops it
#   rk_prove NAME DIR LOG   runs a TAP test with servers of its own in DIR; what it says beside its results is in LOG.err
#   rk_run COMMAND...       runs a command as the server's user, so that a signal to the script ends it too
#
# The private tree: PostgreSQL and pg_config find share and lib from where their own file lies. So bin is copied and lib and share
# are folders of links; `make install` then goes there, and the server started from there loads it. Nothing in /usr is touched,
# and no right to write there is needed.
#
# The server's user: root cannot run a server, so as root everything behind rk_open runs as `postgres` (else `nobody`); as any other
# user, as that user.
#
#   PG_CONFIG     the pg_config of the server to use     (default /usr/lib/postgresql/$PG_MAJOR/bin/pg_config)
#   PG_MAJOR      the major to use and install           (default 15)
#   RK_KEEP=1     keeps the temporary folder and says where it is
#   TMPDIR        where it is made                       (default /tmp; must allow to run programs)

# shellcheck source=script/setup
. "$(dirname "${BASH_SOURCE[0]}")/setup"

RK_TMP='' RK_SRC='' RK_JOB=''

# --- temporary folder, private server tree, copy of the source ----------------------------------------------------------

# Ends the running command, every server below $RK_TMP (those of the TAP tests too) and the folder itself.
rk_cleanup() {
  local status=$? file
  trap - EXIT
  trap '' INT TERM HUP
  set +e
  if [ -n "$RK_JOB" ]; then
    kill -TERM -- "-$RK_JOB" 2>/dev/null
    wait "$RK_JOB" 2>/dev/null
  fi
  [ -d "$RK_TMP" ] || exit "$status"
  find "$RK_TMP" -name postmaster.pid 2>/dev/null | while read -r file; do rk_end_postmaster "${file%/*}"; done
  if [ -n "${RK_KEEP-}" ]; then
    echo "$RK_NAME: kept $RK_TMP" >&2
  else
    rm -rf "$RK_TMP"
  fi
  exit "$status"
}

# Stops the postmaster of a data directory and waits for its end. The pid file may be stale: only a process whose
# working directory is that directory is its postmaster.
rk_end_postmaster() {
  local dir=$1 pid signal i
  pid=$(head -n1 "$dir/postmaster.pid" 2>/dev/null)
  for signal in INT QUIT KILL; do
    for i in $(seq 50); do
      [ -n "$pid" ] && [ "$(readlink "/proc/$pid/cwd")" = "$(readlink -f "$dir")" ] || return 0
      [ "$i" != 1 ] || kill "-$signal" "$pid"
      sleep 0.1
    done
  done
}

# Writes an archive of the files that git knows or would add (of all, where git is missing).
rk_pack() (
  cd "$RK_ROOT" || exit
  if git -c safe.directory='*' rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    git -c safe.directory='*' ls-files -z --cached --others --exclude-standard |
      while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done | tar --null --files-from=- -cf -
  else
    tar --exclude=./.git --exclude='*.o' --exclude='*.so' --exclude='*.bc' -cf - .
  fi
)

# Copies those files, so that nothing is built in the checkout.
rk_copy_source() {
  mkdir -p "$1"
  rk_pack | tar -C "$1" --no-same-owner -xf -
  chown -R "$RK_USER:" "$1"
}

# Makes $RK_LOCALE for this run alone, where this machine does not have it.
rk_make_locale() {
  ! rk_has_locale || return 0
  mkdir "$RK_TMP/locale"
  localedef -i "${RK_LOCALE%%.*}" -f UTF-8 "$RK_TMP/locale/$RK_LOCALE" 2>"$RK_TMP/log/localedef" ||
    rk_die "cannot make the locale $RK_LOCALE: $(tail -n1 "$RK_TMP/log/localedef")"
  export LOCPATH=$RK_TMP/locale
}

# Makes the server tree that `make install` may write to; $PG_CONFIG names its pg_config afterwards.
rk_private_tree() {
  local root=$RK_TMP/root bin lib share include
  bin=$("$PG_CONFIG" --bindir) lib=$("$PG_CONFIG" --pkglibdir) share=$("$PG_CONFIG" --sharedir)
  mkdir -p "$root$bin" "$root$lib" "$root$share"
  cp -RL "$bin/." "$root$bin/"
  cp -Rs "$lib/." "$root$lib/"
  cp -Rs "$share/." "$root$share/"
  rm -f "$root$lib/rk_apikeys.so" "$root$share/extension/rk_apikeys"*
  for include in "$("$PG_CONFIG" --pkgincludedir)" "$("$PG_CONFIG" --includedir-server)"; do
    [ -e "$root$include" ] || { mkdir -p "$(dirname "$root$include")" && ln -s "$include" "$root$include"; }
  done
  PG_CONFIG=$root$bin/pg_config
  [ "$("$PG_CONFIG" --pkglibdir)" = "$root$lib" ] || rk_die "cannot relocate the server of $bin"
}

rk_open() {
  local variable
  RK_TMP=$(mktemp -d "${TMPDIR:-/tmp}/rk.XXXXXX")
  # a socket's path holds 107 bytes, and the TAP tests' folders lie deeper than ours; make knows no blanks in a path
  if [ ${#RK_TMP} -gt 50 ] || [[ $RK_TMP = *[[:space:]]* ]]; then
    rmdir "$RK_TMP"
    RK_TMP=$(mktemp -d /tmp/rk.XXXXXX)
  fi
  trap rk_cleanup EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  trap 'exit 129' HUP
  RK_SRC=$RK_TMP/src
  mkdir "$RK_TMP"/{home,log,socket}
  RK_USER=$(id -un)
  RK_AS=(env "HOME=$RK_TMP/home")
  if [ "$EUID" = 0 ]; then
    RK_USER=nobody
    ! id postgres >/dev/null 2>&1 || RK_USER=postgres
    RK_AS=(setpriv "--reuid=$RK_USER" "--regid=$(id -g "$RK_USER")" --clear-groups "${RK_AS[@]}")
  fi
  rk_make_locale
  rk_private_tree
  rk_copy_source "$RK_SRC"
  cd "$RK_TMP" || exit
  chown -R "$RK_USER:" "$RK_TMP"
  # what the caller has set for another server, or another make, must not reach ours
  for variable in $(compgen -e | grep -E '^(PG[A-Z]+|MAKEFLAGS|MAKELEVEL|LC_.*|LANG|LANGUAGE)$'); do unset "$variable"; done
  export LC_ALL=C.UTF-8 TMPDIR=$RK_TMP PATH
  PATH=$(dirname "$PG_CONFIG"):$PATH
  "${RK_AS[@]}" initdb --version >"$RK_TMP/log/initdb.log" 2>&1 ||
    rk_die "cannot run programs below $RK_TMP (mounted noexec?): set TMPDIR to another folder"
}

# Runs a command as the server's user in a process group of its own, which rk_cleanup can end; returns its status.
rk_run() {
  local status=0
  setsid "${RK_AS[@]}" "$@" <&0 &  # without <&0 a background command reads /dev/null
  RK_JOB=$!
  wait "$RK_JOB" || status=$?
  RK_JOB=''
  return "$status"
}

# --- build and server ---------------------------------------------------------------------------------------------------

# -isystem makes PostgreSQL's headers and macros count as the system's: their warnings are not ours to mend. A function that
# PostgreSQL calls has the parameters that PostgreSQL gives, used or not.
rk_build() {
  local compiler=$1 dir=$2 flags
  flags="-Wall -Wextra -Werror -Wno-unused-parameter -isystem $("$PG_CONFIG" --includedir-server)"
  # clang is given the flags that PostgreSQL was built with, which are gcc's
  case $compiler in
    *clang*) flags+=" -Wno-unknown-warning-option -Wno-ignored-optimization-argument -Wno-unused-command-line-argument" ;;
  esac
  rk_run make -s -C "$dir" "PG_CONFIG=$PG_CONFIG" with_llvm=no "CC=$compiler" "COPT=$flags" all
}

rk_install() {
  rk_run make -s -C "$1" "PG_CONFIG=$PG_CONFIG" with_llvm=no install
}

# In a private tree of its own. Without an older major $RK_OLD_BINDIR is empty; it fails if the build does.
rk_older() {
  local PG_CONFIG config major older=0
  RK_OLD_BINDIR=''
  for config in /usr/lib/postgresql/*/bin/pg_config; do
    major=${config#/usr/lib/postgresql/} major=${major%%/*}
    if [ -x "${config%/*}/postgres" ] && [ -e "/usr/include/postgresql/$major/server/postgres.h" ] &&
      [ -e "/usr/share/postgresql/$major/extension/pgcrypto.control" ] && [[ $major =~ ^[0-9]+$ ]] && [ "$major" -ge 15 ] &&
      [ "$major" -lt "$PG_MAJOR" ] && [ "$major" -gt "$older" ]; then
      older=$major
    fi
  done
  [ "$older" -gt 0 ] || return 0
  PG_CONFIG=/usr/lib/postgresql/$older/bin/pg_config
  rk_private_tree
  rk_copy_source "$RK_TMP/src-older"
  chown -R "$RK_USER:" "$RK_TMP/root"
  rk_build gcc "$RK_TMP/src-older" && rk_install "$RK_TMP/src-older" && RK_OLD_BINDIR=${PG_CONFIG%/*}
}

rk_cluster() {
  local name=$1 conf=${2-}
  rk_stop
  [ -d "$RK_TMP/template" ] ||
    rk_run initdb -D "$RK_TMP/template" -U postgres -A trust -E UTF8 "--locale=$RK_LOCALE" --lc-messages=C --no-sync \
      >"$RK_TMP/log/initdb.log" 2>&1 ||
    rk_die "initdb failed: $(tail -n1 "$RK_TMP/log/initdb.log")"
  RK_DATA=$RK_TMP/data-$name RK_LOG=$RK_TMP/log/$name.log
  rk_run cp -R "$RK_TMP/template" "$RK_DATA"
  printf '%s\n' "listen_addresses = ''" "unix_socket_directories = '$RK_TMP/socket'" 'fsync = off' \
    'max_prepared_transactions = 10' "log_line_prefix = '%m [%p] %q%u@%d '" "$conf" >>"$RK_DATA/postgresql.conf"
  export PGHOST=$RK_TMP/socket PGPORT=5432 PGUSER=postgres PGDATABASE=postgres
  rk_run pg_ctl -D "$RK_DATA" -l "$RK_LOG" -w start >"$RK_TMP/log/pg_ctl.log" 2>&1 ||
    rk_die "the server did not start: $(tail -n1 "$RK_LOG")"
}

# Tests before 16 keep to TESTDIR, later ones to the other two.
rk_prove() {
  local pgxs
  pgxs=$(dirname "$("$PG_CONFIG" --pgxs)")/../..
  rk_run mkdir -p "$2"
  rk_run env -u PGHOST -u PGPORT -u PGUSER -u PGDATABASE "PG_REGRESS=$pgxs/src/test/regress/pg_regress" \
    "PG_TEST_PORT_DIR=$RK_TMP/ports" "RK_OLD_BINDIR=${RK_OLD_BINDIR-}" "TESTDIR=$2" "TESTDATADIR=$2/tmp_check" "TESTLOGDIR=$2/tmp_check/log" \
    prove --verbose -I "$pgxs/src/test/perl" "$RK_SRC/test/t/$1.pl" >"$3" 2>"$3.err"
}

rk_stop() {
  [ -z "${RK_DATA-}" ] || [ ! -e "$RK_DATA/postmaster.pid" ] || rk_end_postmaster "$RK_DATA"
}
