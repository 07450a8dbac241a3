#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Block status of disks with extents of 4 GiB and more.  nbdkit 1.32 ends
# itself if a plugin reports an extent that long (CVE-2025-47711), so
# this one never reports beyond the request.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires nbdinfo --version
requires qemu-nbd --version
requires_python

cat >status.py <<'PY'
import nbd, os
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(os.environ["uri"])
size = h.get_size()
big = 4294967295

def ask(count, offset, flags):
    got = []
    def extent(context, start, entries, err):
        got.extend(zip(entries[0::2], entries[1::2]))
    h.block_status(count, offset, extent, flags)
    return got

for offset in (0, 1, 65536, 3 << 40, size - big, size - big - 513):
    for count in (1, 511, 65536, 1 << 31, big - 1, big):
        for flags in (0, nbd.CMD_FLAG_REQ_ONE):
            got = ask(count, offset, flags)
            what = "%d+%d, flags %d: %r" % (offset, count, flags, got)
            assert got and all(n > 0 for n, t in got), what
            assert sum(n for n, t in got) <= count, what
            if flags:
                assert len(got) == 1, what
            # Neighbours differ, or the answer would be needlessly long.
            assert all(a[1] != b[1] for a, b in zip(got, got[1:])), what
h.shutdown()
PY

# What the server at $uri says, neighbours of one status joined.
map_of ()
{
  nbdinfo --map "$uri" | awk '
    $3 != type { if (NR > 1) print start, len, type
                 start = $1; len = 0; type = $3 }
    { len += $2 }
    END { print start, len, type }' OFMT=%.0f CONVFMT=%.0f
}

# serve_and_compare IMAGE: with qemu-nbd as the judge.
serve_and_compare ()
{
  uri="nbd+unix:///?socket=$sockdir/qemu.sock"
  qemu-nbd -r -f qcow2 -k "$sockdir/qemu.sock" "$1" &
  wait_for "$QCOW2_TEST_PATIENCE" test -S "$sockdir/qemu.sock"
  map_of >expected
  wait

  start_nbdkit a qcow2 "$1"
  "$PYTHON_NBD" status.py
  map_of >got
  diff -u expected got || fail "$1: the map differs from QEMU's"
  # After all that the server is there.
  nbdinfo --size "$uri" >/dev/null
  stop_nbdkit a
  check_image "$1"
}

# Holes for terabytes.
qemu-img create -q -f qcow2 sparse.qcow2 8T
qemu-io -f qcow2 -c "write 0 64k" -c "write 3T 128k" \
        -c "write -z 3300G 64k" -c "write 8796093018112 4k" \
        sparse.qcow2 >/dev/null
serve_and_compare sparse.qcow2

# Clusters that are allocated for more than 4 GiB.
qemu-img create -q -f qcow2 -o cluster_size=2M,preallocation=metadata \
         allocated.qcow2 4400G
serve_and_compare allocated.qcow2
