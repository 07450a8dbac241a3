#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# "make check-ceph": the image lies in a real Ceph cluster of one node, as an
# RBD image that qemu-nbd exports, and a guest lives on it (guest, NBD, this
# server, NBD, qemu-nbd, librados, OSD).  While it works the OSD is killed and
# started again, three times: the guest must see nothing but time go by, and
# every file must be as it was written.  Then the gateway is killed under
# load: what was flushed must be there.

source "$top_srcdir/tests/functions.sh"
source "$top_srcdir/tests/guest/guest-functions.sh"
source "$top_srcdir/tests/guest/ceph-functions.sh"

for program in ceph ceph-mon ceph-osd rbd; do
  command -v "$program" >/dev/null ||
    skip "$program is not here: install ceph-mon, ceph-osd, ceph-common" \
         "and qemu-block-extra"
done
requires_python
guest_begin

says ()
{
  grep -qs "^GUEST.*$2" "$1"
}

# outage LOG WORDS: when the guest says so, the OSD dies for three seconds.
outage ()
{
  wait_for "$guest_patience" says "$1" "$2" || fail "the guest does not say $2"
  sleep 0.$((RANDOM % 10))
  kill_osd
  sleep 3
  if is_gone "$guest_pid"; then fail "too late: the guest has ended"; fi
  start_osd
  say "the OSD was killed and started again after: $2"
}

test_osd_dies ()
{
  local begin=$SECONDS

  make_payload payload.tar
  start_nbdkit disk qcow2 "$store" reconnect=60
  disk_options "$sock" payload.tar
  start_guest ceph "guest_mode=new guest_run=1" -serial file:ceph.log \
              "${disk[@]}"
  outage ceph.log "up: mode new"
  outage ceph.log "made a filesystem"
  outage ceph.log "wrote files and read them back"
  wait_guest "$guest_patience" || fail "the guest did not power off"
  grep '^GUEST:' ceph.log | tr -d '\r'
  says ceph.log "PASS" || fail "the guest did not pass"
  stop_nbdkit disk
  say "the guest's run took $((SECONDS - begin)) seconds"
  check_image "$store"
  check_files "$store"
}

# The gateway dies: nobody may think that unflushed writes are safe.
test_gateway_dies ()
{
  start_nbdkit disk qcow2 "$store" reconnect=60
  "$PYTHON_NBD" - "$uri" "$gateway_pid" <<'END'
import os, signal, sys, nbd
uri, gateway = sys.argv[1], int (sys.argv[2])
h = nbd.NBD ()
h.connect_uri (uri)
K, M = 1024, 1 << 20
for i in range (64):
    h.pwrite (b"%4d" % i * K, M * 8 * i)
h.flush ()
for i in range (64):
    h.pwrite (b"new!" * K, M * 8 * i)
os.kill (gateway, signal.SIGKILL)
try:
    h.flush ()
except nbd.Error as e:
    print ("the flush says:", e.string)
else:
    sys.exit ("a flush succeeded of which the disk knows nothing")
END
  stop_nbdkit_after_loss
  start_gateway store
  check_image "$store"
  start_nbdkit disk qcow2 "$store"
  "$PYTHON_NBD" - "$uri" <<'END'
import sys, nbd
h = nbd.NBD ()
h.connect_uri (sys.argv[1])
K, M = 1024, 1 << 20
new = 0
for i in range (64):
    data = h.pread (4 * K, M * 8 * i)
    if data == b"new!" * K:
        new += 1
    elif data != b"%4d" % i * K:
        sys.exit ("what was flushed at %d MiB is lost" % (8 * i))
print ("64 flushed blocks are there,", new, "of them as written later")
END
  stop_nbdkit disk
  check_image "$store"
}

# The server could not flush and may say so by its status.
stop_nbdkit_after_loss ()
{
  local pid=${nbdkit_pids[disk]}

  unset "nbdkit_pids[disk]"
  kill -TERM "$pid"
  wait_for "$QCOW2_TEST_PATIENCE" is_gone "$pid" || fail "nbdkit did not stop"
  wait "$pid" 2>/dev/null || true
}

begin=$SECONDS
start_ceph
rbd -c ceph.conf create --size 4G disks/store
start_gateway store
say "a Ceph cluster and a gateway to it took $((SECONDS - begin)) seconds"
store="nbd+unix:///?socket=$gateway_sock"
qemu-img create -q -f qcow2 "$store" 1G

make_initramfs
choose_accel
test_osd_dies
test_gateway_dies
