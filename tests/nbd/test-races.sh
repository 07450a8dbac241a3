#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Many connections at work on the same few clusters of a real server: there
# must be a legal order of what they saw (tests/crash/test-races.c), and
# the image must be sound in the end.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires qemu-img --version

races=$top_builddir/tests/crash/test-races
[ -x "$races" ] || fail "$races is not built"
ops=250
[ -z "${QCOW2_SANITIZER-}${QCOW2_VALGRIND-}" ] || ops=60

# on_server PARAMETER...: serve disk.qcow2 with them.
on_server ()
{
  start_nbdkit a -t 32 qcow2 disk.qcow2 "$@"
  "$races" "$uri" $ops || fail "with $*"
  stop_nbdkit a
  check_image disk.qcow2
}

for cluster in 512 4096 65536; do
  qemu-img create -q -f qcow2 -o "cluster_size=$cluster" disk.qcow2 1M
  on_server commit-interval=1
  # The judge wants a disk of zeroes at first.
  qemu-img create -q -f qcow2 -o "cluster_size=$cluster" disk.qcow2 1M
  on_server l2-cache-size=1 refcount-cache-size=1
  [ $cluster = 4096 ] || continue
  qemu-img create -q -f qcow2 -o "cluster_size=$cluster" disk.qcow2 1M
  on_server compress=image compressed-cache-size=64k
done
