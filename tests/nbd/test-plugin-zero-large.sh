#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Zeroes of more than 64 MiB in one request.  nbdkit before 1.45.1 gets
# these wrong if a plugin leaves them to it, so this plugin never does:
# the only zero it refuses is a fast one that would not be fast.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires nbdcopy --version
requires_python

qemu-img create -q -f qcow2 disk.qcow2 6G
start_nbdkit a qcow2 disk.qcow2
"$PYTHON_NBD" - <<'PY'
import errno, nbd, os
M = 1 << 20
h = nbd.NBD()
h.connect_uri(os.environ["uri"])
size = h.get_size()

def fill(places):
    for p in places:
        h.pwrite(b"\xff" * 4096, p)

def check(places, zeroes_from, zeroes_to, what):
    for p in places:
        got = h.pread(4096, p)
        for i in range(4096):
            want = 0 if zeroes_from <= p + i < zeroes_to else 0xff
            assert got[i] == want, \
                "%s: byte at %d is %#x" % (what, p + i, got[i])

big = 4294967295
# start, length, places with data: within, across the edges, just outside
for start, length in ((0, 128 * M), (128 * M + 4096, 1024 * M),
                      (777, 65 * M + 1), (512, big), (1024 * M + 513, big)):
    for flags in (0, nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_NO_HOLE):
        if flags == nbd.CMD_FLAG_NO_HOLE and length > 1024 * M:
            continue            # may reserve space on the disk of the test
        end = start + length
        places = [start + 12345, start + 64 * M - 2048,
                  start + 64 * M + 999, start + length // 2,
                  end - 70000, end - 2000, end + 4096]
        places += [start - 1000] if start >= 1000 else [start]
        places += list(range(start + 65536, end - 65536, length // 20))
        fill(places)
        check(places, 0, 0, "filled")
        h.zero(length, start, flags)
        check(places, start, end, "zero(%d, %d, %d)" % (length, start, flags))

# Fast or not at all.
assert h.can_fast_zero()
h.pwrite(b"\xff" * 200000, 65536)
h.zero(128 * M, 200 * M, nbd.CMD_FLAG_FAST_ZERO)
try:
    h.zero(1000, 70000, nbd.CMD_FLAG_FAST_ZERO)
    raise SystemExit("a fast zero of a part of a cluster was possible")
except nbd.Error as e:
    assert e.errno in ("ENOTSUP", "EOPNOTSUPP"), e.errno
assert h.pread(200000, 65536) == b"\xff" * 200000
h.zero(1000, 70000)
assert h.pread(1000, 70000) == bytes(1000)
h.zero(65536, 131072, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(65536, 131072) == bytes(65536)
h.shutdown()
PY
stop_nbdkit a
check_image disk.qcow2

# nbdcopy zeroes 128 MiB at a time.
qemu-img create -q -f raw src.raw 300M
printf data | dd of=src.raw bs=1 seek=$((290 << 20)) conv=notrunc status=none
qemu-img create -q -f qcow2 disk2.qcow2 300M
start_nbdkit b qcow2 disk2.qcow2
"$PYTHON_NBD" -c '
import nbd, os
h = nbd.NBD()
h.connect_uri(os.environ["uri"])
for i in range(0, 300 << 20, 5 << 20):
    h.pwrite(b"\xff" * 100000, i)
h.shutdown()'
nbdcopy --flush src.raw "$uri"
stop_nbdkit b
check_image disk2.qcow2
qemu-img compare -f raw -F qcow2 src.raw disk2.qcow2
