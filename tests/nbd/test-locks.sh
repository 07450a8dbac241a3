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

# holder_named LOG NAME PID: the last refusal in LOG says who is in the way.
holder_named ()
{
  grep "another process.* held by .*$2 (pid $3)" "$1" >holder ||
    { cat "$1"; fail "$2 (pid $3) was not named"; }
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

is_locked ()
{
  [ "$("$PYTHON_NBD" held.py "$1")" ]
}

# qemu_holds ARGUMENT... IMAGE: qemu-nbd has it open when this returns.
qemu_holds ()
{
  rm -f "$sockdir/qemu.sock"
  qemu-nbd -t -k "$sockdir/qemu.sock" "$@" >qemu-nbd.out 2>&1 </dev/null &
  qemu_pid=$!
  cleanup_fn kill_qemu
  wait_for "$QCOW2_TEST_PATIENCE" test -S "$sockdir/qemu.sock" ||
    fail "qemu-nbd does not come up"
  # It listens before it opens the image.
  wait_for "$QCOW2_TEST_PATIENCE" is_locked "${!#}" ||
    fail "qemu-nbd does not lock ${!#}"
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
qemu_refused qemu-img convert -f qcow2 -O raw a.qcow2 x.raw
qemu_refused qemu-img convert -n -f raw -O qcow2 base.raw a.qcow2
qemu_refused qemu-img snapshot -l a.qcow2
qemu_refused qemu-img amend -f qcow2 -o lazy_refcounts=on a.qcow2
qemu_refused qemu-img bitmap --add a.qcow2 x
server_refused a.qcow2 qcow2 a.qcow2
holder_named said nbdkit "$(cat s.pid)"
server_refused a.qcow2 -r qcow2 a.qcow2
server_refused a.qcow2 qcow2 a.qcow2 locking=on
held a.qcow2 "$writer"

# The file is what is locked, whatever it is called.
ln a.qcow2 hard.qcow2
ln -s a.qcow2 soft.qcow2
server_refused hard.qcow2 qcow2 hard.qcow2
server_refused soft.qcow2 qcow2 soft.qcow2
qemu_refused qemu-io -f qcow2 -c "$write" hard.qcow2

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
wait_for "$QCOW2_TEST_PATIENCE" test -s bg.pid || fail "no bg.pid"
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
holder_named said qemu-nbd "$qemu_pid"
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
holder_named w.log qemu-nbd "$qemu_pid"
held a.qcow2 "$reader"
kill_qemu
connect w
held a.qcow2 "$writer"
stop_nbdkit w

# qemu-io and qemu-img that are at work keep us out as well.
is_held () { [ "$("$PYTHON_NBD" held.py "$1")" = "$2" ]; }
cp a.qcow2 w.qcow2
mkfifo commands
for tool in qemu-io qemu-img; do
  for holds in "$writer" "$reader"; do
    if [ $tool = qemu-io ]; then
      option=(-f qcow2)
      [ "$holds" = "$writer" ] || option+=(-r)
      qemu-io "${option[@]}" w.qcow2 <commands >qemu-works.out 2>&1 &
      qemu_pid=$!
      exec 9>commands
    else
      option=(-f qcow2 -c 2000000000)
      [ "$holds" = "$reader" ] || option+=(-w)
      nice qemu-img bench "${option[@]}" w.qcow2 >qemu-works.out 2>&1 &
      qemu_pid=$!
    fi
    wait_for "$QCOW2_TEST_PATIENCE" is_held w.qcow2 "$holds" ||
      fail "$tool does not hold w.qcow2"
    if [ "$holds" = "$writer" ]; then
      server_refused w.qcow2 qcow2 w.qcow2
      holder_named said $tool "$qemu_pid"
      server_refused w.qcow2 -r qcow2 w.qcow2
    else
      start_nbdkit w qcow2 w.qcow2
      connection_refused w w.qcow2
      holder_named w.log $tool "$qemu_pid"
      stop_nbdkit w
    fi
    exec 9>&-
    kill "$qemu_pid" 2>/dev/null || true
    wait "$qemu_pid" || true
    qemu_pid=
  done
done

# The lock comes before the first look inside: what QEMU holds, as a raw
# disk even, need not be an image at all.
for where in top.qcow2 base2.qcow2; do
  head -c 1M /dev/urandom >$where
  over=$where
  if [ $where = base2.qcow2 ]; then
    over=over3.qcow2
    qemu-img create -q -u -f qcow2 -F qcow2 -b $where $over 1M
  fi
  qemu_holds -f raw $where
  server_refused $where qcow2 $over
  server_refused $where -r qcow2 $over
  if grep -q "not in qcow2 format" said; then
    fail "$where was read before it was locked"
  fi
  kill_qemu
  refused nbdkit -f -U "$sockdir/x.sock" qcow2 $over
  grep -q "not in qcow2 format" said || fail "$where is an image after all"
done

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

# A chain: every file of it is locked, and by its real name.
qemu-img create -q -f qcow2 -F qcow2 -b over.qcow2 chain.qcow2
start_nbdkit c qcow2 chain.qcow2
connect c
held chain.qcow2 "$writer"
held over.qcow2 "$reader"
held base.qcow2 "$reader"
qemu_refused qemu-img commit -q chain.qcow2
qemu_refused qemu-img commit -q over.qcow2
qemu_refused qemu-img resize -q base.qcow2 32M
stop_nbdkit c
held over.qcow2 ""
held base.qcow2 ""
qemu_holds -f qcow2 base.qcow2
server_refused base.qcow2 qcow2 chain.qcow2
holder_named said qemu-nbd "$qemu_pid"
held chain.qcow2 ""
held over.qcow2 ""
kill_qemu

# An external data file is locked as the image is.
qemu-img create -q -f qcow2 -o data_file=d.data d.qcow2 16M
start_nbdkit d qcow2 d.qcow2
held d.data "$reader"
connect d
held d.qcow2 "$writer"
held d.data "$writer"
qemu_refused qemu-io -f raw -c "$write" d.data
qemu_refused qemu-img resize -q -f raw d.data 32M
cp d.qcow2 d2.qcow2             # the copy leads to the same data
qemu_refused qemu-io -f qcow2 -c "$write" d2.qcow2
server_refused d.data qcow2 d2.qcow2
holder_named said nbdkit "$(cat d.pid)"
stop_nbdkit d
held d.data ""
qemu_holds -f qcow2 d2.qcow2
server_refused d.data qcow2 d.qcow2
holder_named said qemu-nbd "$qemu_pid"
held d.qcow2 ""
kill_qemu
qemu_holds -f raw d.data
server_refused d.data qcow2 d.qcow2
server_refused d.data -r qcow2 d.qcow2
held d.qcow2 ""
kill_qemu
qemu_holds -r -f raw d.data
start_nbdkit d qcow2 d.qcow2
connection_refused d d.data
held d.qcow2 "$reader"          # not half a writer
kill_qemu
connect d
stop_nbdkit d

# Many at once: a writer is alone, whoever it is.  Each has its own lock
# before it looks for those of others, so perhaps nobody gets it.
racers="1 2 3 4 5"
for n in $racers; do
  start_nbdkit "race$n" qcow2 a.qcow2
done
for round in 1 2; do
  for n in $racers; do
    { nbdinfo --size "nbd+unix:///?socket=$sockdir/race$n.sock" \
        >/dev/null 2>&1 && echo "$n" >>"winners.$round"; } &
    clients[n]=$!
  done
  for n in $racers; do wait "${clients[n]}" || true; done
  [ ! -e winners.$round ] || fail "a writer beside four readers"
done
held a.qcow2 "$reader"
for n in 1 2 3 4; do stop_nbdkit "race$n"; done
connect race5
stop_nbdkit race5

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
