# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# What the shell tests have in common.  A test begins
#
#   #!/usr/bin/env bash
#   source "$top_srcdir/tests/functions.sh"
#   requires nbdinfo --version
#
# and is then in a directory of its own ($workdir), which is removed at
# the end, with bash's -e, -u and pipefail in force.  It passes by
# reaching its end, fails by any failing command or by "fail MESSAGE",
# and skips by "skip MESSAGE" (exit status 0, 1, 77).  Run it through
# "make check" or "./run TEST": they set the environment.

set -Eeuo pipefail

if [ -z "${top_builddir-}" ]; then
  echo "$0: start this through the script 'run' of the build tree" >&2
  exit 1
fi

test_name=$(basename "$0")
test_name=${test_name%.sh}

#--------------------------------------------------------------------
# Ending.

# cleanup_fn COMMAND...: run it when the test ends, however it ends; the
# last one given runs first.
cleanup_commands=()
cleanup_fn ()
{
  cleanup_commands+=("$(printf '%q ' "$@")")
}

run_cleanups ()
{
  local status=$? i

  trap - EXIT ERR
  trap '' INT TERM HUP
  set +e
  if [ "$status" -ne 0 ] && [ "$status" -ne 77 ]; then show_logs; fi
  for ((i = ${#cleanup_commands[@]} - 1; i >= 0; i--)); do
    eval "${cleanup_commands[i]}"
  done
  exit "$status"
}
trap run_cleanups EXIT
trap 'exit 1' INT TERM HUP
trap 'echo "$test_name: line $LINENO: failed: $BASH_COMMAND" >&2' ERR

fail ()
{
  echo "$test_name: FAIL: $*" >&2
  exit 1
}

skip ()
{
  echo "$test_name: SKIP: $*" >&2
  exit 77
}

# requires COMMAND...: skip the test unless the command succeeds.
requires ()
{
  "$@" >/dev/null 2>&1 </dev/null || skip "this failed: $*"
}

requires_python ()
{
  requires "$PYTHON_NBD" -c 'import nbd'
}

skip_if_valgrind ()
{
  if [ "${QCOW2_VALGRIND-}" ]; then
    skip "not under valgrind${1:+: $1}"
  fi
}

#--------------------------------------------------------------------
# A place to work.

workdir=$(mktemp -d "${QCOW2_TMPDIR:-$top_builddir/tests}/tmp.XXXXXX")
cleanup_fn rm -rf "$workdir"
cd "$workdir"

# The name of a UNIX socket must fit in 107 bytes.
sockdir=$(mktemp -d /tmp/qcow2.XXXXXX)
cleanup_fn rm -rf "$sockdir"

#--------------------------------------------------------------------
# Servers.

declare -A nbdkit_pids=()

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for ()
{
  local deadline=$((SECONDS + $1))

  shift
  until "$@"; do
    if [ "$SECONDS" -gt "$deadline" ]; then return 1; fi
    sleep 0.05
  done
}

is_gone ()
{
  ! kill -0 "$1" 2>/dev/null
}

is_up_or_gone ()
{
  { [ -s "$workdir/$1.pid" ] && [ -S "$sockdir/$1.sock" ]; } ||
    is_gone "${nbdkit_pids[$1]}"
}

# start_nbdkit NAME ARGUMENT...: serve on a UNIX socket of our own, e.g.
#   start_nbdkit a qcow2 disk.qcow2
# When it returns the server takes connections.  Sets $sock and $uri
# (exports $uri); what the server says is in $nbdkit_log.
start_nbdkit ()
{
  local name=$1

  shift
  sock=$sockdir/$name.sock
  uri="nbd+unix:///?socket=$sock"
  nbdkit_log=$workdir/$name.log
  export uri
  rm -f "$sock" "$workdir/$name.pid"
  nbdkit -f -P "$workdir/$name.pid" -U "$sock" "$@" \
         </dev/null >>"$nbdkit_log" 2>&1 &
  nbdkit_pids[$name]=$!
  cleanup_fn forget_nbdkit "$name"
  wait_for "$QCOW2_TEST_PATIENCE" is_up_or_gone "$name" ||
    fail "nbdkit ($name) does not come up"
  if is_gone "${nbdkit_pids[$name]}"; then
    fail "nbdkit ($name) did not start"
  fi
}

# stop_nbdkit NAME: ask the server to end and fail the test if it does
# not, or does so with an error (which is how valgrind and the sanitizers
# tell what they found).
stop_nbdkit ()
{
  local pid=${nbdkit_pids[$1]} status=0

  unset "nbdkit_pids[$1]"
  kill -TERM "$pid" 2>/dev/null || true
  if ! wait_for "$QCOW2_TEST_PATIENCE" is_gone "$pid"; then
    kill -KILL "$pid"
    fail "nbdkit ($1) did not stop"
  fi
  wait "$pid" || status=$?
  if [ "$status" -ne 0 ]; then
    fail "nbdkit ($1) ended with status $status"
  fi
}

# crash_nbdkit NAME: the server dies as in a power loss of the machine it
# runs on, except that the kernel keeps what was written.
crash_nbdkit ()
{
  local pid=${nbdkit_pids[$1]}

  unset "nbdkit_pids[$1]"
  kill -KILL "$pid"
  wait "$pid" 2>/dev/null || true
}

# For the end of a test that did not stop the server itself.
forget_nbdkit ()
{
  local pid=${nbdkit_pids[$1]-}

  if [ "$pid" ]; then
    kill -KILL "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
  fi
}

show_logs ()
{
  local log

  for log in "$workdir"/*.log; do
    if [ -s "$log" ]; then
      echo "--- $(basename "$log") (the end of it)"
      tail -n 100 "$log"
    fi
  done
}

#--------------------------------------------------------------------
# Other systems.

# choose_mirror: sets $suite and $mirror.
choose_mirror ()
{
  suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
  mirror=
  if command -v apt-get >/dev/null; then
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(REPO_URI)' \
               'Created-By: Packages' 'Origin: Debian' "Codename: $suite" |
             sed -n 1p)
  fi
  if [ -z "$mirror" ]; then
    suite=stable
    mirror=http://deb.debian.org/debian/
  fi
}

#--------------------------------------------------------------------
# Oracles.

# map_onto_l1 IMAGE: damage it; guest cluster 0, which has data, is then
# mapped to the L1 table, so that a write there must be refused.
map_onto_l1 ()
{
  PYTHONPATH=$top_srcdir/tests/nbd "$PYTHON_NBD" -B -c '
import sys
from qcow2parse import COPIED, Qcow2
with Qcow2(sys.argv[1]) as q:
    q.set_l2_entry(0, q.u64(40) | COPIED)' "$1"
}

# check_image IMAGE: neither corruption nor leaks in QEMU's eyes.
check_image ()
{
  qemu-img check -f qcow2 "$1" || fail "qemu-img check $1"
}
