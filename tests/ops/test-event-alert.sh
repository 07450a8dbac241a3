#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# examples/event-alert.py raises an alarm for both events, from a socket
# and from a file, through a restart of the server.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires_python

alert=$top_srcdir/examples/event-alert.py

# Here guest cluster 0 is mapped to the L1 table.  What is written elsewhere
# wants many more tables, so that the limit is reached long after the start,
# when the readers of the socket are there.
make_damaged ()
{
  qemu-img create -q -f qcow2 -o cluster_size=4k "$1" 2G
  qemu-io -f qcow2 -c "write -q 0 4k" "$1"
  map_onto_l1 "$1"
}

# Two alarms: the map outgrows its limit, and a write is refused.
provoke ()
{
  "$PYTHON_NBD" - <<'PY'
import nbd, os
h = nbd.NBD()
h.connect_uri(os.environ["uri"])
for offset in range(2 << 20, 2 << 30, 2 << 20):
    h.pwrite(b"x" * 4096, offset)
try:
    h.pwrite(b"x", 0)
except nbd.Error as e:
    assert e.errno == "EIO"
else:
    raise SystemExit("not refused")
h.shutdown()
PY
}

alerts=()
watch ()
{
  "$PYTHON_NBD" "$alert" "$@" &
  alerts+=($!)
}
stop_alerts () { kill "${alerts[@]}" 2>/dev/null || true; }
cleanup_fn stop_alerts

# is_followed SOCKET: beside the one that listens there is one of a reader.
is_followed () { [ "$(grep -c " $1\$" /proc/net/unix)" -ge 2 ]; }

lines () { [ -e "$1" ] && [ "$(wc -l <"$1")" -ge "$2" ]; }

# What does not exist yet is waited for.  Every alarm is a line of
# got.NAME, and its event one of json.NAME.
# shellcheck disable=SC2016
record='printf "%s|%s|%s\n" "$EVENT" "$IMAGE" "$ALERT" >>got.'
watch --run "${record}log; cat >>json.log" events.json
watch --run "${record}sock; cat >>json.sock" "$sockdir/events.sock"
watch --run "exit 3" events.json

limit=overlap-structures.total-size-limit=2000
for round in 1 2; do
  image=disk$round.qcow2
  make_damaged "$image"
  start_nbdkit "$image" qcow2 "$image" event-log=events.json \
               event-socket="$sockdir/events.sock" "$limit"
  wait_for "$QCOW2_TEST_PATIENCE" is_followed "$sockdir/events.sock" ||
    fail "nobody follows the socket"
  provoke
  for name in log sock; do
    wait_for "$QCOW2_TEST_PATIENCE" lines got.$name $((round * 2)) ||
      fail "no alarms from $name"
  done
  stop_nbdkit "$image"
done

for name in log sock; do
  cat got.$name
  for image in disk1.qcow2 disk2.qcow2; do
    grep -q "^BLOCK_IMAGE_CORRUPTED|$image|$image is CORRUPT: .*active L1 \
table.*writes have stopped" got.$name || fail "$name, $image: corrupt"
    grep -q "^QCOW2_OVERLAP_CHECK_MEMORY_LIMIT_REACHED|$image|$image: the \
memory limit of 2000 bytes is reached, .*NOT CHECKED" got.$name ||
      fail "$name, $image: limit"
  done
done
grep -Ev 'PROTECTION_RESTORED' events.json | diff - json.log ||
  fail "the events are not passed on as they are"
