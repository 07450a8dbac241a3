#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# "make check-demo": ./demo.sh does what it says in a clean Debian system,
# which has nothing that it needs.  Needs root and a mirror.

# shellcheck source=clean-root.sh
source "$top_srcdir/packaging/clean-root.sh"
requires git -C "$top_srcdir" rev-parse HEAD
make_base

new_root "$workdir/demo"
mkdir demo/src
(cd "$top_srcdir" && git ls-files -z | tar --null -T - -cf -) |
  tar -C demo/src -xf -
in_root demo apt-get -q update >apt.log 2>&1 || fail "apt-get update"

echo "./demo.sh"
in_root demo sh -c 'cd /src && ./demo.sh' >demo.log 2>&1 ||
  fail "./demo.sh: $(tail -n 40 demo.log)"
tail -n 20 demo.log
grep -q 'BLOCK_IMAGE_CORRUPTED' demo.log || fail "the demo shows no event"
