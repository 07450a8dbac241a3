#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcopy does not flush unless told to, and nbdkit never flushes for
# anybody.  When the last writer has left, what it wrote is committed,
# without a flush and with commit-interval=0: the server is killed then.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires nbdcopy --version
requires_python

# Data, and nothing in between.
truncate -s 48M src.raw
for i in 1 7 13 33; do
  head -c 1500000 /dev/urandom |
    dd of=src.raw bs=64k seek=$((i * 16 + i)) conv=notrunc status=none
done

is_same ()
{
  qemu-img compare -q -U -f raw -F qcow2 src.raw disk.qcow2
}

# The disk is large, so that there is room for what is not committed:
# a commit for want of room would hide that one is missing.
qemu-img create -q -f qcow2 disk.qcow2 8G
start_nbdkit a qcow2 disk.qcow2 commit-interval=0

# While another writer is there, nothing needs to be committed when
# nbdcopy leaves, but when the other one leaves too.
"$PYTHON_NBD" -c '
import nbd, os, subprocess
h = nbd.NBD()
h.connect_uri(os.environ["uri"])
subprocess.run(["nbdcopy", "src.raw", os.environ["uri"]], check=True)
os._exit(0)'
wait_for "$QCOW2_TEST_PATIENCE" is_same ||
  fail "the last writer left and the image does not have its data"
crash_nbdkit a
check_image disk.qcow2
is_same || fail "lost"

# The same with the client killed in the middle: whatever it got done,
# the image is sound.
start_nbdkit b qcow2 disk.qcow2 commit-interval=0
"$PYTHON_NBD" -c '
import nbd, os
h = nbd.NBD()
h.connect_uri(os.environ["uri"])
h.pwrite(b"\x77" * 1000000, 40000000)
for i in range(8):
    buf = nbd.Buffer.from_bytearray(bytearray(b"\x55" * 2000000))
    h.aio_pwrite(buf, i * 4000000)
os.kill(os.getpid(), 9)' || true
written ()
{
  qemu-io -f qcow2 -r -U -c "read -P 0x77 40000000 1000000" disk.qcow2 \
    >out 2>&1 && ! grep -q failed out
}
wait_for "$QCOW2_TEST_PATIENCE" written ||
  fail "the killed client's write is lost"
crash_nbdkit b
check_image disk.qcow2
written || fail "lost"
