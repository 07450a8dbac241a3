#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# check=off|report|leaks|all: what is changed and what is not, what the log
# says, and how the image is served afterwards.  (Whether the check is right
# is tested over many images in tests/images/test-check.py.)

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires nbdinfo --version
requires qemu-io --version
requires_python

# poke FILE OFFSET HEX: change bytes of a file.
poke ()
{
  "$PYTHON_NBD" -c '
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(int(sys.argv[2]))
    f.write(bytes.fromhex(sys.argv[3]))' "$@"
}

# serve FILE ARGUMENT...: what clients see first ("true" if read-only)
serve ()
{
  # shellcheck disable=SC2016   # nbdkit gives it uri
  nbdkit -U - qcow2 "$@" --run 'nbdinfo --json "$uri"' 2>log |
    sed -n 's/.*"is_read_only": \(true\|false\).*/\1/p'
}

corrupt_bit ()
{
  test "$("$PYTHON_NBD" -c '
import sys
print(open(sys.argv[1], "rb").read(80)[79] & 2)' "$1")" = 2
}

qemu-img create -q -f qcow2 sound.qcow2 64M
qemu-io -f qcow2 -c 'write -P 1 0 1M' sound.qcow2 >/dev/null
# The layout of qemu-img: refcount block at 128k, L1 at 192k, L2 at 256k.
qemu-img check -q sound.qcow2

echo "--- sound: nothing is said, nothing changed"
for what in off report leaks all; do
  cp sound.qcow2 disk.qcow2
  test "$(serve disk.qcow2 check=$what)" = false
  test ! -s log
  cmp sound.qcow2 disk.qcow2
done
nbdkit -v -U - qcow2 disk.qcow2 check=report --run true 2>&1 |
  grep -q 'check: 0 errors, 0 leaked clusters'

echo "--- a leak"
cp sound.qcow2 leak.qcow2
poke leak.qcow2 $((131072 + 2 * 40)) 0001
truncate -s $((41 * 65536)) leak.qcow2
test "$(serve leak.qcow2)" = false
test ! -s log
cp leak.qcow2 disk.qcow2
test "$(serve disk.qcow2 check=report)" = false
grep -q 'leaked cluster at host offset 0x280000: .* is 1, .* 0 references' log
grep -q 'check: 0 errors, 1 leaked clusters' log
cmp leak.qcow2 disk.qcow2
for what in leaks all; do
  cp leak.qcow2 disk.qcow2
  test "$(serve disk.qcow2 check=$what)" = false
  grep -q 'after the repair: 0 errors, 0 leaked clusters' log
  check_image disk.qcow2
done
# It can be used again at once, and by others: no writer's lock is left.
cp leak.qcow2 disk.qcow2
start_nbdkit a -r qcow2 disk.qcow2 check=leaks
qemu-img check -q disk.qcow2
qemu-io -r -f qcow2 -c 'read -P 1 0 1M' disk.qcow2 >/dev/null
stop_nbdkit a
# A writer is in the way of a repair.
start_nbdkit b qcow2 disk.qcow2
"$PYTHON_NBD" - <<'PY'
import nbd, os, subprocess
h = nbd.NBD()
h.connect_uri(os.environ["uri"])
done = subprocess.run(["nbdkit", "-U", "-", "qcow2", "disk.qcow2",
                       "check=all", "--run", "true"], stderr=subprocess.PIPE)
assert done.returncode != 0, done
assert b"is in use" in done.stderr or b"opened for writing" in done.stderr, \
    done.stderr
PY
stop_nbdkit b

echo "--- counts that are too low: read-only until it is repaired"
cp sound.qcow2 low.qcow2
poke low.qcow2 $((131072 + 2 * 6)) 00000000
for what in report leaks; do
  cp low.qcow2 disk.qcow2
  test "$(serve disk.qcow2 check=$what event-log=events)" = true
  grep -q 'check: [0-9]* errors, 0 leaked' log
  grep -q 'served read-only' log
  grep -q BLOCK_IMAGE_CORRUPTED events
  cmp low.qcow2 disk.qcow2
done
test "$(serve disk.qcow2 check=all)" = false
check_image disk.qcow2
qemu-io -f qcow2 -c 'read -P 1 0 1M' disk.qcow2 >/dev/null

echo "--- wrong flags only: served as ever"
cp sound.qcow2 flags.qcow2
poke flags.qcow2 262144 00
test "$(serve flags.qcow2 check=report)" = false
grep -q 'COPIED flag does not fit' log
grep -q 'check: 1 errors, 0 leaked' log
test "$(serve flags.qcow2 check=all)" = false
check_image flags.qcow2
cmp flags.qcow2 sound.qcow2

echo "--- no refcount table to speak of: rebuilt"
cp sound.qcow2 disk.qcow2
poke disk.qcow2 65536 0000000000000000
test "$(serve disk.qcow2 check=all)" = false
grep -q 'rebuilding' log
check_image disk.qcow2
qemu-io -f qcow2 -c 'read -P 1 0 1M' disk.qcow2 >/dev/null

echo "--- a pointer that leads nowhere: nothing is lowered, read-only"
cp leak.qcow2 disk.qcow2
poke disk.qcow2 $((262144 + 8)) 8000000000050200
cp disk.qcow2 before.qcow2
test "$(serve disk.qcow2 check=all)" = true
grep -q 'not everything could be followed' log
"$PYTHON_NBD" - <<'PY'
import struct
a, b = (struct.unpack_from(">32768H", open(name, "rb").read(), 131072)
        for name in ("before.qcow2", "disk.qcow2"))
assert all(x <= y for x, y in zip(a, b)), "counts were lowered"
# It leads into its neighbour's cluster, too, and still into its own.
assert [i for i in range(32768) if a[i] != b[i]] == [5], "others changed"
PY

echo "--- marked corrupt, and sound: the mark goes"
cp sound.qcow2 disk.qcow2
poke disk.qcow2 79 02
test "$(serve disk.qcow2 check=report)" = true
corrupt_bit disk.qcow2
test "$(serve disk.qcow2 check=all)" = false
if corrupt_bit disk.qcow2; then exit 1; fi
cmp disk.qcow2 sound.qcow2

echo "--- a file that is read-only is checked and not repaired"
cp leak.qcow2 disk.qcow2
chmod a-w disk.qcow2
if ! test -w disk.qcow2; then
  test "$(serve disk.qcow2 check=all)" = true
  grep -q 'nothing is repaired' log
fi
cmp leak.qcow2 disk.qcow2 || test "$(id -u)" = 0

echo "--- thousands of mistakes: all are counted, a thousand are lines"
qemu-img create -q -f qcow2 -o cluster_size=512,preallocation=metadata \
         many.qcow2 2M
"$PYTHON_NBD" - <<'PY'
import struct
with open("many.qcow2", "r+b") as f:
    head = f.read(72)
    table, clusters = struct.unpack_from(">QI", head, 48)
    f.seek(table)
    blocks = struct.unpack(">%dQ" % (64 * clusters), f.read(512 * clusters))
    for block in blocks[1:]:
        if block:
            f.seek(block)
            f.write(bytes(512))
PY
qcow2-overlap check --json many.qcow2 >answer 2>log || test $? = 2
test "$(sed -n 's/.*"corruptions": \([0-9]*\).*/\1/p' answer)" -gt 2000
test "$(wc -l <log)" -lt 1100
grep -q 'there is more' log
