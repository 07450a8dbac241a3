#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# SIGTERM in the moment in which the last client leaves: its .close may
# come or not.  What it wrote without a flush is in the image.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires_python

rounds=12
if [ "${QCOW2_VALGRIND-}" ]; then rounds=3; fi

# The disk is large, so that there is room for what is not committed:
# a commit for want of room would hide that one is missing.
qemu-img create -q -f qcow2 disk.qcow2 8G
for ((i = 1; i <= rounds; i++)); do
  start_nbdkit a qcow2 disk.qcow2 commit-interval=0
  "$PYTHON_NBD" -c '
import nbd, os, sys
i = int(sys.argv[1])
h = nbd.NBD()
h.connect_uri(os.environ["uri"])
h.pwrite(bytes([i]) * 100000, i * 1000000)
if i % 2:
    h.shutdown()
os._exit(0)' $i
  # Sooner or later after that, with the round.
  if ((i % 4 == 0)); then sleep 0.01; fi
  stop_nbdkit a
  check_image disk.qcow2 >/dev/null
done

for ((i = 1; i <= rounds; i++)); do
  qemu-io -f qcow2 -r -c "read -P $i ${i}000000 100000" disk.qcow2 >out 2>&1 ||
    { cat out; fail "round $i: wrong data"; }
  if grep -q failed out; then cat out; fail "round $i: wrong data"; fi
done
