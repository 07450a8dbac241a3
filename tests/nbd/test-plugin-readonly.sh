#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit -r: nothing can be written, not a byte of the file changes, and
# several servers share the image.  A writer and another server keep
# each other out, with an error that says so.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires nbdinfo --version
requires_python

qemu-img create -q -f qcow2 -o lazy_refcounts=on disk.qcow2 16M
qemu-io -f qcow2 -c "write -P 0x42 1M 1M" disk.qcow2 >/dev/null
touch -d 2001-01-01 disk.qcow2
before=$(sha256sum <disk.qcow2; stat -c %y disk.qcow2)

start_nbdkit a -r qcow2 disk.qcow2 commit-interval=1
uri_a=$uri
nbdinfo --is readonly "$uri"
start_nbdkit b -r qcow2 disk.qcow2
"$PYTHON_NBD" - "$uri_a" "$uri" <<'PY'
import nbd, sys
for uri in sys.argv[1:]:
    h = nbd.NBD()
    h.connect_uri(uri)
    assert h.is_read_only()
    assert h.pread(4096, 1 << 20) == b"\x42" * 4096
    h.cache(65536, 0)
    h.flush()
    h.set_strict_mode(0)
    for request in (lambda: h.pwrite(b"x" * 512, 0),
                    lambda: h.zero(512, 0), lambda: h.trim(512, 0)):
        try:
            request()
            raise SystemExit("a read-only disk took a write")
        except nbd.Error as e:
            assert e.errno == "EPERM", e.errno
    h.shutdown()
PY

# A server that may write starts, since it only reads so far.  The first
# client that may write is told.
start_nbdkit c qcow2 disk.qcow2
if nbdinfo --size "$uri" >out 2>&1; then
  fail "a writer beside two readers"
fi
grep -q 'error: disk.qcow2: .*locking=off' "$nbdkit_log" ||
  fail "the error does not say what to do"
if [ "$(grep -c 'error:' "$nbdkit_log")" -ne 1 ]; then
  cat "$nbdkit_log"
  fail "more than one error for one cause"
fi
stop_nbdkit a
stop_nbdkit b
test "$before" = "$(sha256sum <disk.qcow2; stat -c %y disk.qcow2)" ||
  fail "the file changed"

# With the readers gone it works, and then keeps others out.
test "$(nbdinfo --size "$uri")" = 16777216
if nbdkit -f -s -r qcow2 disk.qcow2 </dev/null 2>err; then
  fail "a reader beside a writer"
fi
grep -q 'disk.qcow2.*locking=off' err || { cat err; fail "no reason given"; }
if qemu-io -f qcow2 -c "write 0 512" disk.qcow2 >out 2>&1; then
  fail "qemu-io writes beside a writer"
fi
start_nbdkit d -r qcow2 disk.qcow2 locking=off
test "$(nbdinfo --size "$uri")" = 16777216
stop_nbdkit d
stop_nbdkit c

# An image that cannot be written to is served read-only.
if [ "$(id -u)" -ne 0 ]; then
  chmod a-w disk.qcow2
  start_nbdkit e qcow2 disk.qcow2
  nbdinfo --is readonly "$uri"
  stop_nbdkit e
fi
