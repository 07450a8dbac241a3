#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A newcomer's hour: the commands of the README's section "Install and use
# it", in their order, in an empty folder.  (What installs is skipped:
# check-install.sh looks at that.)

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
# shellcheck source=ops-functions.sh
source "$top_srcdir/tests/ops/ops-functions.sh"
requires nbdinfo --version
requires nbdcopy --version
requires qemu-system-x86_64 --version
requires_python

mkdir blocks new
awk -v RS= '/^## / { on = /^## Install and use it/ }
            on && /^    / { print >sprintf ("blocks/%02d", ++n) }' \
    "$top_srcdir/README.md"

fake_qemu bin
PATH=$workdir/bin:$PATH

cd new
stop_server ()
{
  local pid

  [ ! -s disk.pid ] || pid=$(cat disk.pid)
  if [ "${pid-}" ]; then
    kill "$pid" 2>/dev/null || true
    wait_for "$QCOW2_TEST_PATIENCE" is_gone "$pid"
    rm -f disk.pid disk.sock
  fi
}
cleanup_fn stop_server

ran=0
for block in ../blocks/*; do
  if grep -q configure "$block"; then continue; fi
  if grep -q evidence "$block"; then
    PYTHONPATH=$top_srcdir/tests/nbd "$PYTHON_NBD" -c '
from qcow2parse import OFFSET_MASK, Qcow2
with Qcow2("disk.qcow2") as q:
    q.set_refcount((q.l2_entry(0) & OFFSET_MASK) // q.cluster_size, 0)'
  fi
  echo "== $(sed -n 1p "$block")"
  status=0
  timeout "$QCOW2_TEST_PATIENCE" bash -e "$block" >output 2>&1 || status=$?
  cat output
  text=$(cat "$block")
  case "$text" in
    *'check disk.qcow2'*)       # with -e, what is wrong ends it
      [ $status -eq 2 ] || fail "the damage was not found"
      sed -n '/--repair/,$p' "$block" | bash -e >output 2>&1 ||
        fail "not repaired: $(<output)"
      ;;
    *) [ $status -eq 0 ] || fail "the README's command failed: $text" ;;
  esac
  case "$text" in
    *create=20G*)
      grep -q 'export-size: 21474836480' output || fail "no disk of 20 GiB"
      nbdsh -u 'nbd+unix:///?socket=disk.sock' -c '
h.pwrite(b"\1" * 65536, 0)'
      ;;
    *qemu-system*)
      used_disk 21474836480 ;;
    *stats=*)
      if ! [ -S events.sock ] || ! [ -s disk.prom ]; then fail "no files"; fi
      ;;
    *'plan --limit'*)
      grep -q 'total-size-limit=' output || fail "no recommendation" ;;
    *'cat events.json'*)
      grep -q 'QCOW2_OVERLAP_CHECK_MEMORY_LIMIT_REACHED' output ||
        fail "no event" ;;
    *saved.raw*)
      check_image new.qcow2
      qemu-io -f qcow2 -c 'read -P 1 0 64k' new.qcow2 | grep -q '^read 65536'
      ;;
  esac
  ran=$((ran + 1))
  next=$(printf '../blocks/%02d' $((10#$(basename "$block") + 1)))
  case "$(cat "$next" 2>/dev/null || true)" in
    *qemu-system* | *'kill '*) ;;
    *) stop_server ;;
  esac
done
check_image disk.qcow2
[ "$ran" -ge 8 ] || fail "the README has only $ran blocks of commands"
