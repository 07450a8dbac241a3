#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Images that QEMU with lazy refcounts did not close: readers get them as they
# are, the first writer has them repaired, those beyond repair stay read-only.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires nbdinfo --version
requires qemu-io --version
requires_python

read_only ()
{
  nbdinfo --json "$uri" |
    sed -n 's/.*"is_read_only": \(true\|false\).*/\1/p'
}

# features FILE: the dirty bit and the lazy refcounts bit
features ()
{
  "$PYTHON_NBD" -c '
import struct, sys
a, b = struct.unpack(">QQ", open(sys.argv[1], "rb").read(88)[72:])
print("%d %d" % (a & 1, b & 1))' \
      "$1"
}

# The data is in the file, the counts are not.  (qemu-io ends by a signal.)
make_dirty ()
{
  qemu-img create -q -f qcow2 -o "lazy_refcounts=on,$1" dirty.qcow2 256M
  qemu-io -f qcow2 -c 'write -P 1 0 1M' dirty.qcow2 >/dev/null
  (ulimit -c 0
   qemu-io -f qcow2 -c 'write -P 2 10M 3M' -c 'write -P 3 200M 1M' \
           -c 'discard 256k 256k' -c flush -c abort dirty.qcow2) \
    >/dev/null 2>&1 || true
  test "$(features dirty.qcow2)" = "1 1"
  if qemu-img check -q dirty.qcow2 >/dev/null 2>&1; then
    fail "nothing is wrong with the dirty image: no test"
  fi
}

expect_data ()
{
  qemu-io "$@" -c 'read -P 1 0 256k' -c 'read -P 2 10M 3M' \
          -c 'read -P 3 200M 1M' >qemu-io.out
  if grep -i "verification failed" qemu-io.out; then fail "data"; fi
}

for options in cluster_size=64k cluster_size=512 cluster_size=2M \
               cluster_size=64k,extended_l2=on \
               cluster_size=4k,refcount_bits=1; do
  echo "--- $options"
  make_dirty "$options"

  cp dirty.qcow2 disk.qcow2
  start_nbdkit "r$options" -r qcow2 disk.qcow2
  expect_data -r -f raw "$uri"
  test "$(read_only)" = true
  stop_nbdkit "r$options"
  cmp dirty.qcow2 disk.qcow2

  # The server starts and changes nothing; then a writer comes.
  start_nbdkit "w$options" qcow2 disk.qcow2
  cmp dirty.qcow2 disk.qcow2
  test "$(read_only)" = false
  grep -q 'is dirty' "$nbdkit_log"
  grep -q 'is not dirty any more' "$nbdkit_log"
  test "$(features disk.qcow2)" = "0 1"
  expect_data -f raw "$uri"
  qemu-io -f raw -c 'write -P 4 50M 5M' -c 'write -P 5 10M 1M' "$uri" \
          >/dev/null
  stop_nbdkit "w$options"
  test "$(features disk.qcow2)" = "0 1"
  check_image disk.qcow2
  qemu-io -r -f qcow2 -c 'read -P 1 0 256k' -c 'read -P 2 11M 2M' \
          -c 'read -P 3 200M 1M' -c 'read -P 4 50M 5M' \
          -c 'read -P 5 10M 1M' disk.qcow2 >qemu-io.out
  if grep -i "verification failed" qemu-io.out; then fail "data"; fi

  # check=report finds the same and leaves it to the first writer, too: it
  # is no corruption that somebody has to be told of.
  for what in report leaks; do
    cp dirty.qcow2 disk.qcow2
    rm -f events
    start_nbdkit "$what$options" qcow2 disk.qcow2 check=$what event-log=events
    test "$(features disk.qcow2)" = "1 1"
    test $what = leaks || cmp dirty.qcow2 disk.qcow2
    grep -q 'check: [1-9][0-9]* errors' "$nbdkit_log"
    qemu-io -f raw -c 'write -P 4 50M 5M' "$uri" >/dev/null
    stop_nbdkit "$what$options"
    test ! -s events
    test "$(features disk.qcow2)" = "0 1"
    check_image disk.qcow2
  done

  # check=all repairs it before anybody comes.
  cp dirty.qcow2 disk.qcow2
  nbdkit -U - -r qcow2 disk.qcow2 check=all --run true
  test "$(features disk.qcow2)" = "0 1"
  check_image disk.qcow2
done

echo "--- no refcount blocks any more"
make_dirty cluster_size=64k
"$PYTHON_NBD" -c '
with open("dirty.qcow2", "r+b") as f:
    f.seek(65536)
    f.write(bytes(65536))'
start_nbdkit blocks qcow2 dirty.qcow2
expect_data -f raw "$uri"
grep -q 'rebuilding' "$nbdkit_log"
qemu-io -f raw -c 'write -P 4 50M 5M' "$uri" >/dev/null
stop_nbdkit blocks
check_image dirty.qcow2

echo "--- beyond repair"
make_dirty cluster_size=64k
"$PYTHON_NBD" -c '
with open("dirty.qcow2", "r+b") as f:
    f.seek(262144 + 8)
    f.write(bytes.fromhex("8000000000050200"))'
cp dirty.qcow2 before.qcow2
start_nbdkit beyond qcow2 dirty.qcow2
test "$(read_only)" = true
test "$(read_only)" = true
test "$(grep -c 'could not be repaired' "$nbdkit_log")" = 1
qemu-io -r -f raw -c 'read -P 2 10M 3M' "$uri" >/dev/null
# Others may read it too: the writer's lock was given back.
qemu-img info dirty.qcow2 >/dev/null
stop_nbdkit beyond
test "$(features dirty.qcow2)" = "1 1"
