#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit does not call .close for a connection that is open when it is
# told to end.  What such a client wrote, and never flushed, is in the
# image all the same once the server has ended, and the image is clean.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires_python

# Writes, says so, and stays until it is told to go: the file "leave"
# says how.
cat >client.py <<'PY'
import nbd, os, time
h = nbd.NBD()
h.connect_uri(os.environ["uri"])
for i in range(32):
    h.pwrite(bytes([i + 1]) * 70000, i * 1000000)
h.zero(200000, 5000000)
h.trim(65536, 9043968)
open("written", "w").close()
while not os.path.exists("leave"):
    time.sleep(0.05)
if open("leave").read() == "politely":
    h.shutdown()
os._exit(0)
PY

verify ()
{
  local i off=0

  for ((i = 0; i < 32; i++)); do
    off=$((i * 1000000))
    case $i in
      5) qemu_reads 0 5000000 200000 ;;
      9) qemu_reads 10 9000000 $((9043968 - 9000000))
         qemu_reads 0 9043968 26032 ;;
      *) qemu_reads $((i + 1)) $off 70000 ;;
    esac
  done
}

# qemu_reads BYTE OFFSET LENGTH
qemu_reads ()
{
  qemu-io -f qcow2 -r -c "read -P $1 $2 $3" disk.qcow2 >qemu-io.out 2>&1 ||
    { cat qemu-io.out; fail "wrong data at $2"; }
  if grep -q failed qemu-io.out; then
    cat qemu-io.out
    fail "wrong data at $2"
  fi
}

for how in politely rudely; do
  rm -f written leave
  # Large, so that there is room for what is not committed.
  qemu-img create -q -f qcow2 disk.qcow2 8G
  start_nbdkit a qcow2 disk.qcow2 commit-interval=0
  "$PYTHON_NBD" client.py &
  client=$!
  wait_for "$QCOW2_TEST_PATIENCE" test -e written ||
    fail "the client does not write"

  kill -TERM "${nbdkit_pids[a]}"
  sleep 0.2
  printf %s "$how" >leave.new
  mv leave.new leave
  wait "$client"
  stop_nbdkit a

  check_image disk.qcow2
  verify
done
