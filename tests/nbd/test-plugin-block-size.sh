#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The preferred block size is the cluster size, whatever it is, and the
# smallest is one byte: requests of odd size and place are right.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires_python

# The size of clusters and, if they have subclusters, what is preferred.
for case in 512 4096 65536 2097152 16384/4096 65536/4096 2097152/65536; do
  cluster=${case%/*}
  preferred=${case#*/}
  extended=off
  test "$cluster" = "$preferred" || extended=on
  qemu-img create -q -f qcow2 disk.qcow2 5000005k \
    -o cluster_size="$cluster",extended_l2=$extended
  start_nbdkit a qcow2 disk.qcow2
  "$PYTHON_NBD" - "$cluster" "$preferred" <<'PY'
import nbd, os, sys
cluster, preferred = int(sys.argv[1]), int(sys.argv[2])
h = nbd.NBD()
h.connect_uri(os.environ["uri"])
assert h.get_size() == 5000005 * 1024
sizes = [h.get_block_size(s) for s in
         (nbd.SIZE_MINIMUM, nbd.SIZE_PREFERRED, nbd.SIZE_MAXIMUM)]
assert sizes == [1, preferred, 4294967295], sizes

end = h.get_size()
parts = []
for offset, length in ((0, 1), (cluster - 1, 2), (3 * cluster + 7, 13),
                       (5 * cluster - 1, cluster + 2), (end - 1, 1),
                       (end - cluster - 3, 5)):
    data = bytes((offset + i) % 255 + 1 for i in range(length))
    h.pwrite(data, offset)
    parts.append((offset, data))
h.zero(3, 3 * cluster + 9)
parts.append((3 * cluster + 9, bytes(3)))
for start, length in ((0, 8 * cluster), (end - 2 * cluster, 2 * cluster)):
    expected = bytearray(length)
    for offset, data in parts:
        if start <= offset < start + length:
            expected[offset - start:offset - start + len(data)] = data
    assert h.pread(length, start) == expected, start
h.shutdown()
PY
  stop_nbdkit a
  check_image disk.qcow2
  rm disk.qcow2
done
