#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# event-log: a refused write is one JSON line in the file or behind the
# descriptor, and one line of nbdkit's log.  A reader that never reads
# holds up neither requests nor the end of the server.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires_python

# In this image guest cluster 0 is mapped to the L1 table.
make_damaged ()
{
  qemu-img create -q -f qcow2 "$1" 16M
  qemu-io -f qcow2 -c "write -P 1 0 64k" -c "write -P 2 1M 64k" "$1" >/dev/null
  map_onto_l1 "$1"
}

# Writes to cluster 0 and sees it refused, twice; reads what is sound.  Is
# killed if it waits for a reader of events that never reads.
cat >client.py <<'PY'
import nbd, os, signal
signal.alarm(int(os.environ["QCOW2_TEST_PATIENCE"]))
h = nbd.NBD()
h.connect_uri(os.environ["uri"])
for offset in (0, 65536, 0):
    try:
        h.pwrite(b"x" * 512, offset)
        raise SystemExit("a write at %d was not refused" % offset)
    except nbd.Error as e:
        assert e.errno == "EIO", e.errno
    assert h.pread(65536, 1 << 20) == b"\2" * 65536
h.shutdown()
PY

# one_event FILE IMAGE: exactly one event is in FILE, after a first line
# that was there before.
one_event ()
{
  "$PYTHON_NBD" - "$1" "$2" <<'PY'
import json, sys, time
lines = open(sys.argv[1]).read().split("\n")
assert lines.pop() == "", "the last line is not whole"
assert lines.pop(0) == "first"
assert len(lines) == 1, lines
event = json.loads(lines[0])
assert sorted(event) == ["data", "event", "timestamp"]
assert event["event"] == "BLOCK_IMAGE_CORRUPTED"
assert abs(event["timestamp"]["seconds"] - time.time()) < 3600
assert 0 <= event["timestamp"]["microseconds"] < 1000000
data = event["data"]
assert sorted(data) == ["fatal", "image", "msg", "node-name", "offset",
                        "size"], data
assert data["image"] == sys.argv[2], data
assert data["fatal"] is True
assert "active L1" in data["msg"], data
with open(sys.argv[2], "rb") as f:
    f.seek(40)
    l1 = int.from_bytes(f.read(8), "big")
assert l1 <= data["offset"] < l1 + 65536, data
assert data["size"] > 0
PY
}

one_log_line ()
{
  if [ "$(grep -c 'error: BLOCK_IMAGE_CORRUPTED: ' "$1")" -ne 1 ]; then
    fail "not one line in nbdkit's log"
  fi
}

# A file, which is appended to.  Nobody else inherits it.
make_damaged a.qcow2
cp a.qcow2 pristine.qcow2
echo first >events.json
start_nbdkit a qcow2 a.qcow2 event-log=events.json
for fd in "/proc/${nbdkit_pids[a]}/fd/"*; do
  if [ "$(readlink "$fd")" = "$PWD/events.json" ]; then
    flags=$(awk '/^flags:/ { print $2 }' "${fd/fd/fdinfo}")
    (((8#$flags & 8#2000000) && (8#$flags & 8#2000))) ||
      fail "not O_CLOEXEC and O_APPEND: $flags"
    found=1
  fi
done
test "${found-}" || fail "the event log is not open"
"$PYTHON_NBD" client.py
stop_nbdkit a
one_event events.json a.qcow2
one_log_line "$nbdkit_log"

# The mark is there, and nothing else changed.
"$PYTHON_NBD" - <<'PY'
a, b = (open(n, "rb").read() for n in ("pristine.qcow2", "a.qcow2"))
differ = [i for i in range(len(a)) if a[i] != b[i]]
assert len(a) == len(b) and differ == [79] and b[79] == 2, differ
PY

# Served again it is read-only, with a warning.
start_nbdkit again qcow2 a.qcow2
"$PYTHON_NBD" -c '
import nbd, os
h = nbd.NBD()
h.connect_uri(os.environ["uri"])
assert h.is_read_only()
assert h.pread(65536, 1 << 20) == b"\2" * 65536
h.shutdown()'
stop_nbdkit again
grep -q 'a.qcow2: .*marked corrupt.*read-only' "$nbdkit_log"

# A descriptor.  Its reader sees the end when the server ends.
make_damaged b.qcow2
mkfifo fifo
{ echo first; cat; } <fifo >got.json &
reader=$!
exec 9>fifo
start_nbdkit b qcow2 b.qcow2 event-log=fd:9
exec 9>&-
"$PYTHON_NBD" client.py
stop_nbdkit b
wait_for "$QCOW2_TEST_PATIENCE" is_gone "$reader" ||
  fail "the reader does not see the end"
one_event got.json b.qcow2
one_log_line "$nbdkit_log"

# A pipe that is full, and a reader that never reads.
make_damaged c.qcow2
exec 8<>fifo
exec 9>fifo
"$PYTHON_NBD" -c '
import fcntl, os
fcntl.fcntl(9, fcntl.F_SETFL, os.O_NONBLOCK)
try:
    while True:
        os.write(9, b"x" * 4096)
except BlockingIOError:
    pass
fcntl.fcntl(9, fcntl.F_SETFL, 0)'
start_nbdkit c qcow2 c.qcow2 event-log=fd:9 8<&-
exec 9>&-
"$PYTHON_NBD" client.py
stop_nbdkit c                   # fails if it waits for the reader
one_log_line "$nbdkit_log"
grep -q 'event-log=fd:9: 1 events were not delivered' "$nbdkit_log"

# In the background, under a relative name.
echo first >bg.json
export uri="nbd+unix:///?socket=$sockdir/bg.sock"
kill_background ()
{
  kill -KILL "$(cat bg.pid)" 2>/dev/null || true
}
cleanup_fn kill_background
nbdkit -P bg.pid -U "$sockdir/bg.sock" qcow2 pristine.qcow2 \
       event-log=bg.json 2>bg.log
"$PYTHON_NBD" client.py
wait_for "$QCOW2_TEST_PATIENCE" test -s bg.pid || fail "no bg.pid"
pid=$(cat bg.pid)
kill -TERM "$pid"
wait_for "$QCOW2_TEST_PATIENCE" is_gone "$pid" || fail "no end"
one_event bg.json pristine.qcow2
