#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The image locks, byte for byte and against QEMU's own tools: who uses
# an image keeps out who would harm it, whichever of the two comes first,
# and backing files are locked as well.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires qemu-img --version
requires qemu-io --version
requires qemu-nbd --version
requires nbdinfo --version
requires_python

reader="100 201 203"
writer="100 101 103 201 203"

cat >held.py <<'PY'
# Print the bytes of a file that others have locked, or fail if one of
# them is locked otherwise than shared.
import fcntl, os, struct, sys
F_OFD_GETLK = 36
flock = "hhqqi0q"
fd = os.open(sys.argv[1], os.O_RDWR)
held = []
for byte in range(300):
    lock = fcntl.fcntl(fd, F_OFD_GETLK,
                       struct.pack(flock, fcntl.F_WRLCK, 0, byte, 1, 0))
    kind = struct.unpack(flock, lock)[0]
    assert kind in (fcntl.F_UNLCK, fcntl.F_RDLCK)
    if kind == fcntl.F_RDLCK:
        held.append(byte)
print(*held)
PY

# held FILE BYTES
held ()
{
  local got

  got=$("$PYTHON_NBD" held.py "$1")
  [ "$got" = "$2" ] || fail "$1: locked bytes are '$got', not '$2'"
}

# refused COMMAND...: it must end, with an error.  What it said is in
# the file said.
refused ()
{
  local status=0

  timeout "$QCOW2_TEST_PATIENCE" "$@" >said 2>&1 </dev/null || status=$?
  if [ "$status" -eq 0 ] || [ "$status" -eq 124 ]; then
    cat said
    fail "this was not refused: $*"
  fi
}

# qemu_refused COMMAND...: because of the lock, and not otherwise.
qemu_refused ()
{
  refused "$@"
  grep -Eq 'Failed to get (shared )?"[a-z ]*" lock' said ||
    { cat said; fail "refused for another reason: $*"; }
}

# server_refused FILE ARGUMENT...: nbdkit does not even start, and says
# which file it was and what to do.
server_refused ()
{
  local file=$1

  shift
  refused nbdkit -f -U "$sockdir/refused.sock" "$@"
  grep -q "error: .*$file.*another process.*locking=off" said ||
    { cat said; fail "no good reason was given: $*"; }
}

# connection_refused SERVER FILE: the server runs, but a client that may
# write is turned away, and the log says why.
connection_refused ()
{
  : >"$workdir/$1.log"
  refused nbdinfo --size "nbd+unix:///?socket=$sockdir/$1.sock"
  grep -q "error: .*$2.*another process.*locking=off" "$workdir/$1.log" ||
    { cat "$workdir/$1.log"; fail "no good reason was given for $2"; }
}

connect ()
{
  nbdinfo --size "nbd+unix:///?socket=$sockdir/$1.sock" >/dev/null ||
    fail "cannot connect to server $1"
}

# qemu_holds ARGUMENT...: qemu-nbd has the image open when this returns.
qemu_holds ()
{
  rm -f "$sockdir/qemu.sock"
  qemu-nbd -t -k "$sockdir/qemu.sock" "$@" >qemu-nbd.out 2>&1 </dev/null &
  qemu_pid=$!
  cleanup_fn kill_qemu
  wait_for "$QCOW2_TEST_PATIENCE" test -S "$sockdir/qemu.sock" ||
    fail "qemu-nbd does not come up"
}

kill_qemu ()
{
  if [ "$qemu_pid" ]; then
    kill "$qemu_pid"
    wait "$qemu_pid" || true
  fi
  qemu_pid=
}

for name in a base; do
  qemu-img create -q -f qcow2 $name.qcow2 16M
  qemu-io -f qcow2 -c "write -P 1 0 1M" $name.qcow2 >/dev/null
done
qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 over.qcow2
qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 over2.qcow2
truncate -s 16M base.raw
qemu-img create -q -f qcow2 -F raw -b base.raw rawover.qcow2
held a.qcow2 ""

write="write -P 2 0 512"
read="read -P 1 1k 512"

# Until a client comes that may write, the server is a reader.
start_nbdkit s qcow2 a.qcow2
held a.qcow2 "$reader"
qemu-img info a.qcow2 >/dev/null
qemu-img check -q a.qcow2
qemu-io -f qcow2 -r -c "$read" a.qcow2 >/dev/null
qemu_refused qemu-io -f qcow2 -c "$write" a.qcow2
qemu_refused qemu-img resize -f qcow2 a.qcow2 32M
qemu_refused qemu-img snapshot -c x a.qcow2
qemu_refused qemu-nbd -t -f qcow2 -k "$sockdir/x.sock" a.qcow2

# From then on it is a writer, until it ends.
connect s
held a.qcow2 "$writer"
connect s
held a.qcow2 "$writer"
qemu_refused qemu-img info a.qcow2
qemu_refused qemu-img check a.qcow2
qemu_refused qemu-io -f qcow2 -r -c "$read" a.qcow2
qemu_refused qemu-io -f qcow2 -c "$write" a.qcow2
qemu_refused qemu-nbd -t -r -f qcow2 -k "$sockdir/x.sock" a.qcow2
qemu-img info -U a.qcow2 >/dev/null
qemu-io -f qcow2 -r -U -c "$read" a.qcow2 >/dev/null
server_refused a.qcow2 qcow2 a.qcow2
server_refused a.qcow2 -r qcow2 a.qcow2
server_refused a.qcow2 qcow2 a.qcow2 locking=on
held a.qcow2 "$writer"

# A server that looks the other way, since it was told so.
start_nbdkit off -r qcow2 a.qcow2 locking=off
connect off
held a.qcow2 "$writer"
stop_nbdkit off
held a.qcow2 "$writer"

# Locks end with their holder, in whatever way.
stop_nbdkit s
held a.qcow2 ""
start_nbdkit s qcow2 a.qcow2 locking=on
connect s
held a.qcow2 "$writer"
crash_nbdkit s
held a.qcow2 ""
start_nbdkit s qcow2 a.qcow2 locking=off
connect s
held a.qcow2 ""
stop_nbdkit s

# Readers share, before and after a client came; a writer waits for all
# of them to end.
start_nbdkit r1 -r qcow2 a.qcow2
start_nbdkit r2 -r qcow2 a.qcow2
connect r1
connect r2
held a.qcow2 "$reader"
qemu-io -f qcow2 -r -c "$read" a.qcow2 >/dev/null
qemu_refused qemu-io -f qcow2 -c "$write" a.qcow2
start_nbdkit w qcow2 a.qcow2
connection_refused w a.qcow2
stop_nbdkit r1
connection_refused w a.qcow2
held a.qcow2 "$reader"
stop_nbdkit r2
connect w
held a.qcow2 "$writer"
stop_nbdkit w

# Two that may write: the first that gets a client is the writer.
start_nbdkit w1 qcow2 a.qcow2
start_nbdkit w2 qcow2 a.qcow2
connection_refused w1 a.qcow2
connection_refused w2 a.qcow2
stop_nbdkit w1
connect w2
stop_nbdkit w2

# In the background: the locks outlive the process that took them.
nbdkit -P bg.pid -U "$sockdir/bg.sock" qcow2 a.qcow2 </dev/null >bg.log 2>&1
bg=$(cat bg.pid)
cleanup_fn kill_background
kill_background () { kill -KILL "$bg" 2>/dev/null || true; }
held a.qcow2 "$reader"
connect bg
held a.qcow2 "$writer"
qemu_refused qemu-io -f qcow2 -c "$write" a.qcow2
kill -TERM "$bg"
wait_for "$QCOW2_TEST_PATIENCE" is_gone "$bg" || fail "nbdkit does not end"
held a.qcow2 ""

# The other way round: QEMU was there first.
qemu_holds -f qcow2 a.qcow2
held a.qcow2 "$writer"          # the same bytes as ours
server_refused a.qcow2 qcow2 a.qcow2
server_refused a.qcow2 -r qcow2 a.qcow2
held a.qcow2 "$writer"
kill_qemu
qemu_holds -r -f qcow2 a.qcow2
held a.qcow2 "$reader"
start_nbdkit r -r qcow2 a.qcow2
connect r
stop_nbdkit r
start_nbdkit w qcow2 a.qcow2
connection_refused w a.qcow2
held a.qcow2 "$reader"
kill_qemu
connect w
held a.qcow2 "$writer"
stop_nbdkit w

# Backing files, qcow2 and raw: readers share them, writers keep out.
for base in base.qcow2 base.raw; do
  format=${base#base.}
  over=over.qcow2
  [ "$format" = qcow2 ] || over=rawover.qcow2

  start_nbdkit o qcow2 $over
  connect o
  held $over "$writer"
  held $base "$reader"
  qemu_refused qemu-io -f "$format" -c "$write" $base
  qemu-io -f "$format" -r -c "read 0 512" $base >/dev/null
  if [ "$format" = qcow2 ]; then
    start_nbdkit o2 qcow2 over2.qcow2
    connect o2
    stop_nbdkit o2
    start_nbdkit b qcow2 $base
    connection_refused b $base
    stop_nbdkit b
  fi
  stop_nbdkit o
  held $base ""

  qemu_holds -f "$format" $base
  server_refused $base qcow2 $over
  server_refused $base -r qcow2 $over
  held $over ""
  kill_qemu
done

# QEMU with the same overlay's base, as a reader, is no hindrance.
qemu_holds -f qcow2 over2.qcow2
start_nbdkit o qcow2 over.qcow2
connect o
stop_nbdkit o
kill_qemu

# Nothing of all this did any harm.
check_image a.qcow2
check_image base.qcow2
check_image over.qcow2
