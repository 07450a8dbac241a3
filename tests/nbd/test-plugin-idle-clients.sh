#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit told to end waits for clients, idle ones too, for as long as
# they like.  Whoever runs it may lose patience and kill it: what was
# written more than commit-interval ago is in the image then, which is
# sound.  If nobody loses patience, it ends when the last client leaves.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires_python

# Client NUMBER: writes, then idles.
cat >client.py <<'PY'
import nbd, os, sys, time
n = int(sys.argv[1])
h = nbd.NBD()
h.connect_uri(os.environ["uri"])
h.pwrite(bytes([n]) * 300000, n * 1000000)
open("written.%d" % n, "w").close()
while not os.path.exists("leave.%d" % n):
    time.sleep(0.05)
os._exit(0)
PY

start_clients ()
{
  local n

  rm -f written.* leave.*
  clients=()
  for n in 1 2 3; do
    "$PYTHON_NBD" client.py $n 2>>client.log &
    clients+=($!)
  done
  for n in 1 2 3; do
    wait_for "$QCOW2_TEST_PATIENCE" test -e "written.$n" ||
      fail "client $n is stuck"
  done
}

# in_image N FLAGS: the data of client N is in the file.
in_image ()
{
  # shellcheck disable=SC2086
  qemu-io -f qcow2 -r $2 -c "read -P $1 ${1}000000 300000" disk.qcow2 \
    >out 2>&1 && ! grep -q failed out
}

# The disk is large, so that there is room for what is not committed:
# a commit for want of room would hide that one is missing.

# Patience is lost.
qemu-img create -q -f qcow2 disk.qcow2 8G
start_nbdkit a qcow2 disk.qcow2 commit-interval=1
start_clients
kill -TERM "${nbdkit_pids[a]}"
sleep 1
if is_gone "${nbdkit_pids[a]}"; then fail "nbdkit left its clients alone"; fi
for n in 1 2 3; do
  wait_for "$QCOW2_TEST_PATIENCE" in_image $n -U ||
    fail "client $n: not committed though the interval is over"
done
touch leave.1 leave.2 leave.3
crash_nbdkit a
wait "${clients[@]}" || true
check_image disk.qcow2
for n in 1 2 3; do in_image $n "" || fail "client $n: lost"; done

# It is not.
qemu-img create -q -f qcow2 disk.qcow2 8G
start_nbdkit b qcow2 disk.qcow2 commit-interval=0
start_clients
kill -TERM "${nbdkit_pids[b]}"
touch leave.1 leave.2
wait "${clients[0]}" "${clients[1]}"
sleep 0.2
if is_gone "${nbdkit_pids[b]}"; then fail "nbdkit left client 3 alone"; fi
touch leave.3
wait "${clients[2]}"
stop_nbdkit b
check_image disk.qcow2
for n in 1 2 3; do in_image $n "" || fail "client $n: lost"; done
