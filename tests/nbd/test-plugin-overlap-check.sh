#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# overlap-check: a switch for one type counts more than the template,
# whichever of them is given first, and of two templates or two switches
# the last one counts.  A write that lands on the L1 table shows whether
# active-l1 is on.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires_python

# Guest cluster 0 is mapped to the L1 table.
qemu-img create -q -f qcow2 damaged.qcow2 16M
qemu-io -f qcow2 -c "write 0 64k" damaged.qcow2 >/dev/null
map_onto_l1 damaged.qcow2

# expect refused|written PARAMETER...
expect ()
{
  local expected=$1 got

  shift
  cp damaged.qcow2 disk.qcow2
  start_nbdkit a qcow2 disk.qcow2 "$@"
  got=$("$PYTHON_NBD" -c '
import nbd, os
h = nbd.NBD()
h.connect_uri(os.environ["uri"])
try:
    h.pwrite(b"x" * 512, 32768)
    print("written")
except nbd.Error as e:
    assert e.errno == "EIO"
    print("refused")
h.shutdown()')
  stop_nbdkit a
  if [ "$got" != "$expected" ]; then fail "$got with $*"; fi
}

on=overlap-check.active-l1=on
off=overlap-check.active-l1=off
expect refused
expect written $off
expect refused $off $on
expect written $on $off
expect written overlap-check=none
expect refused overlap-check=none $on
expect refused $on overlap-check=none
expect refused $on overlap-check.template=none
expect written $off overlap-check=all
expect written overlap-check=all $off
expect refused overlap-check=none overlap-check=constant
expect refused overlap-check.template=none overlap-check=cached
expect written overlap-check=all overlap-check.template=none
expect refused $on overlap-check=all overlap-check.main-header=off
expect written overlap-check=none overlap-check.active-l2=on
