#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# multi-conn: what was answered on one connection is seen on all others,
# and a flush on any of them covers it.  nbdcopy relies on that.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires nbdinfo --version
requires nbdcopy --version
requires_python

# The disk is large, so that there is room for what is not committed:
# a commit for want of room would hide that one is missing.
qemu-img create -q -f qcow2 disk.qcow2 8G
start_nbdkit a qcow2 disk.qcow2 commit-interval=0
nbdinfo --can multi-conn "$uri"
"$PYTHON_NBD" - "${nbdkit_pids[a]}" <<'PY'
import nbd, os, sys
hs = []
for i in range(4):
    h = nbd.NBD()
    h.connect_uri(os.environ["uri"])
    assert h.can_multi_conn()
    hs.append(h)
for round in range(16):
    w, r = hs[round % 4], hs[(round + 1) % 4]
    data = bytes([round + 1]) * 50000
    w.pwrite(data, round * 1000000)
    assert r.pread(50000, round * 1000000) == data
hs[3].flush()
os.kill(int(sys.argv[1]), 9)
PY
wait "${nbdkit_pids[a]}" 2>/dev/null || true
unset "nbdkit_pids[a]"
check_image disk.qcow2
for ((i = 0; i < 16; i++)); do
  qemu-io -f qcow2 -r -c "read -P $((i + 1)) ${i}000000 50000" \
          disk.qcow2 >out 2>&1 || fail "write $i"
  if grep -q failed out; then fail "write $i was not flushed"; fi
done

# Four connections in and out.
head -c 20000000 /dev/urandom >src.raw
truncate -s 64M src.raw
start_nbdkit b qcow2 disk.qcow2
nbdcopy --flush -C 4 src.raw "$uri"
nbdcopy -C 4 "$uri" back.raw
truncate -s 8G src.raw
stop_nbdkit b
qemu-img compare -f raw -F raw src.raw back.raw
check_image disk.qcow2
qemu-img compare -f raw -F qcow2 src.raw disk.qcow2
