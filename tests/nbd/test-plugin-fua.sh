#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A request with FUA that was answered is in the image: the server is
# killed right after the answer, having seen no flush.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires nbdinfo --version
requires_python

# The image is sound; clusters that are counted and not used are allowed
# after a crash.
sound ()
{
  local status=0

  qemu-img check -f qcow2 disk.qcow2 >check.out 2>&1 || status=$?
  if [ $status -ne 0 ] && [ $status -ne 3 ]; then
    cat check.out
    fail "the image is damaged"
  fi
}

reads ()
{
  qemu-io -f qcow2 -r -c "read -P $1 $2 $3" disk.qcow2 >out 2>&1 ||
    { cat out; fail "$1 $2 $3"; }
  if grep -q failed out; then fail "at $2: FUA was not obeyed"; fi
}

# The server NAME was killed.
reap ()
{
  wait "${nbdkit_pids[$1]}" 2>/dev/null || true
  unset "nbdkit_pids[$1]"
}

# crash_after CODE [PARAMETER...]: run it, kill the server right behind it.
crash_after ()
{
  start_nbdkit a qcow2 disk.qcow2 commit-interval=0 "${@:2}"
  "$PYTHON_NBD" -c "
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(os.environ['uri'])
assert h.can_fua()
FUA = nbd.CMD_FLAG_FUA
$1
os.kill(int(sys.argv[1]), 9)" "${nbdkit_pids[a]}"
  reap a
  sound
}

# The disk is large, so that there is room for what is not committed:
# a commit for want of room would hide that one is missing.
qemu-img create -q -f qcow2 disk.qcow2 8G
# New clusters, and a write without FUA beside them.
crash_after '
h.pwrite(b"\x33" * 4096, 20000000)
h.pwrite(b"\x11" * 200000, 1000000, FUA)'
reads 0x11 1000000 200000
# In place, in old and new clusters.
crash_after '
h.pwrite(b"\x22" * 5000, 1001000, FUA)
h.pwrite(b"\x44" * 5000, 30000000)
h.pwrite(b"\x55" * 5000, 30001000, FUA)'
reads 0x11 1000000 1000
reads 0x22 1001000 5000
reads 0x44 30000000 1000
reads 0x55 30001000 5000
# Zeroes of both kinds, trims.
crash_after '
h.pwrite(b"\x66" * 1048576, 40 << 20, FUA)
h.zero(262144, 40 << 20, FUA)
h.zero(1000, (40 << 20) + 262244, FUA | nbd.CMD_FLAG_NO_HOLE)'
reads 0 40M 256k
reads 0 $(((40 << 20) + 262244)) 1000
reads 0x66 $(((40 << 20) + 263244)) 5000
crash_after 'h.trim(262144, (40 << 20) + 524288, FUA)'
reads 0 $(((40 << 20) + 524288)) 256k
reads 0x66 $(((40 << 20) + 786432)) 256k

# A trim that leaves everything alone: what is there then is durable, too.
crash_after '
h.pwrite(b"\x77" * 65536, 60 << 20)
h.trim(65536, 60 << 20, FUA)' discard=ignore
reads 0x77 60M 64k
qemu-img create -q -f raw base.raw 8G
qemu-img create -q -f qcow2 -o compat=0.10 -F raw -b base.raw disk.qcow2
crash_after '
h.pwrite(b"\x88" * 65536, 60 << 20)
h.trim(65536, 60 << 20, FUA)'
reads 0x88 60M 64k
