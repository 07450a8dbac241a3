# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# A real Ceph cluster of one node, on loopback, in the test's directory: a
# monitor, one OSD on a sparse file, a pool for RBD images.  There is no
# authentication, no manager and no systemd.  On top of tests/functions.sh.

# Each daemon stays in the foreground, as a child of the test.
declare -A ceph_pids=()
osd_uuid=$(cat /proc/sys/kernel/random/uuid)

# free_port: prints a port of 127.0.0.1 that nobody listens on.
free_port ()
{
  python3 -c 'import socket
s = socket.socket (); s.bind (("127.0.0.1", 0)); print (s.getsockname ()[1])'
}

ceph_conf ()
{
  local ms2 ms1

  ms2=$(free_port)
  ms1=$(free_port)
  mon_host="[v2:127.0.0.1:$ms2,v1:127.0.0.1:$ms1]"
  cat >ceph.conf <<END
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = $mon_host
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
# A client's request fails at last when no OSD answers.
rados osd op timeout = 60
[mon]
mon data = $workdir/mon
log file = /dev/null
pid file =
admin socket =
mon allow pool size one = true
paxos propose interval = 0.05
[osd]
osd data = $workdir/osd
log file = /dev/null
pid file =
admin socket =
osd objectstore = bluestore
bluestore block size = 4294967296
END
}

# The cluster's own command, which waits for ever unless told otherwise.
ceph_do ()
{
  timeout 60 ceph -c ceph.conf --connect-timeout 30 "$@" 2>>ceph.log
}

osd_is_up ()
{
  ceph_do osd stat | grep -q '1 up'
}

start_osd ()
{
  ceph-osd -c ceph.conf --id 0 -f >>osd.out 2>&1 &
  ceph_pids[osd]=$!
}

# kill_osd: as if its host had lost power.
kill_osd ()
{
  kill -KILL "${ceph_pids[osd]}"
  wait "${ceph_pids[osd]}" 2>/dev/null || true
}

stop_ceph ()
{
  kill -KILL "${ceph_pids[@]}" 2>/dev/null
  wait "${ceph_pids[@]}" 2>/dev/null
}

start_mon ()
{
  ceph-authtool -C keyring --gen-key -n mon. --cap mon 'allow *'
  ceph-authtool keyring --gen-key -n client.admin --cap mon 'allow *' \
                --cap osd 'allow *'
  monmaptool --create --addv a "$mon_host" \
             --fsid "$(sed -n 's/^fsid = //p' ceph.conf)" monmap
  mkdir mon osd
  ceph-mon -c ceph.conf --mkfs -i a --monmap monmap --keyring keyring
  ceph-mon -c ceph.conf -i a -f >>mon.out 2>&1 &
  ceph_pids[mon]=$!
}

# start_ceph: returns when the cluster takes requests; it ends with the
# test.
start_ceph ()
{
  ceph_conf
  cleanup_fn stop_ceph
  start_mon >ceph-setup.log 2>&1
  wait_for "$QCOW2_TEST_PATIENCE" ceph_do mon stat >/dev/null ||
    fail "no monitor"
  ceph_do osd new "$osd_uuid" >/dev/null
  ceph-osd -c ceph.conf --id 0 --mkfs --osd-uuid "$osd_uuid" \
           >>ceph-setup.log 2>&1
  start_osd
  wait_for "$QCOW2_TEST_PATIENCE" osd_is_up || fail "no OSD"
  ceph_do osd pool create disks 8 >/dev/null
  ceph_do osd pool application enable disks rbd >/dev/null
}

# start_gateway NAME: the RBD image disks/NAME over NBD, on $gateway_sock;
# the gateway's process is $gateway_pid.
start_gateway ()
{
  gateway_sock=$sockdir/gateway.sock
  rm -f "$gateway_sock"
  qemu-nbd -t -f raw --discard=unmap -e 8 -k "$gateway_sock" \
           "rbd:disks/$1:id=admin:conf=$workdir/ceph.conf" \
           >>gateway.log 2>&1 &
  gateway_pid=$!
  cleanup_fn kill_gateway
  wait_for "$QCOW2_TEST_PATIENCE" test -S "$gateway_sock" ||
    fail "qemu-nbd does not open the RBD image"
}

kill_gateway ()
{
  kill -KILL "$gateway_pid" 2>/dev/null
  wait "$gateway_pid" 2>/dev/null
  true
}
