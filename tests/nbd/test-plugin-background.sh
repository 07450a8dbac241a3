#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit in the background: it forks after it opened the image, and
# changes its directory to /.  Threads made before the fork would be
# gone, and relative names would lead nowhere.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires nbdinfo --version
requires_python

stop_background ()
{
  local pid

  pid=$(cat "$workdir/bg.pid")
  kill -TERM "$pid"
  wait_for "$QCOW2_TEST_PATIENCE" is_gone "$pid" || fail "nbdkit does not end"
}

mkdir -p images/base
qemu-img create -q -f qcow2 images/base/base.qcow2 16M
qemu-io -f qcow2 -c "write -P 0xba 0 1M" images/base/base.qcow2 >/dev/null
(cd images && qemu-img create -q -f qcow2 -F qcow2 -b base/base.qcow2 \
                       top.qcow2)

# serve PARAMETER...: the program has forked when this returns, and its
# socket is there.
serve ()
{
  sock=$sockdir/bg.sock
  uri="nbd+unix:///?socket=$sock"
  export uri
  rm -f "$sock"
  nbdkit --log=stderr -P "$workdir/bg.pid" -U "$sock" qcow2 "$@" \
         </dev/null 2>bg.log
  cleanup_fn background_is_gone
}

background_is_gone ()
{
  kill -KILL "$(cat "$workdir/bg.pid")" 2>/dev/null || true
}

serve images/top.qcow2 external-files=images/base \
      event-log=events.json commit-interval=1
pid=$(cat bg.pid)
# The parent may be gone a moment before the child is in its folder.
in_root_folder ()
{
  test "$(readlink "/proc/$pid/cwd")" = /
}
wait_for "$QCOW2_TEST_PATIENCE" in_root_folder || fail "this did not fork"

# The thread that commits lives: without a flush, and with the client
# still there, data reaches the image.
"$PYTHON_NBD" -c '
import nbd, os, time
h = nbd.NBD()
h.connect_uri(os.environ["uri"])
assert h.pread(4096, 4096) == b"\xba" * 4096
h.pwrite(b"\x11" * 500000, 3000000)
open("written", "w").close()
while not os.path.exists("leave"):
    time.sleep(0.05)
h.shutdown()' &
client=$!
wait_for "$QCOW2_TEST_PATIENCE" test -e written || fail "no service"
committed ()
{
  qemu-io -f qcow2 -r -U -c "read -P 0x11 3000000 500000" \
    images/top.qcow2 >out 2>&1 && ! grep -q failed out
}
wait_for "$QCOW2_TEST_PATIENCE" committed || fail "no thread commits"
touch leave
wait "$client"
stop_background
check_image images/top.qcow2
committed

# A bad image is told to the user, and nothing goes to the background.
rm -f bg.pid
head -c 70000 /dev/zero >images/bad.qcow2
if nbdkit -P "$workdir/bg.pid" -U "$sockdir/bad.sock" qcow2 \
          images/bad.qcow2 2>err; then
  fail "a file of zeroes was served"
fi
grep -q 'images/bad.qcow2' err || { cat err; fail "no reason given"; }
if [ -e bg.pid ]; then fail "it went to the background"; fi
