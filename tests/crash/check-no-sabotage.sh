#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What breaks the engine for a test (lib/image/sabotage.h) is not in the
# plugin, nor in the library that it is made of.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires nm --version

# has_sabotage FILE: a name or a string says so.
has_sabotage ()
{
  nm -A "$1" >names 2>/dev/null || fail "nm $1"
  strings -a "$1" >>names
  grep -qi sabotage names
}

has_sabotage "$top_builddir/lib/image/.libs/libqcow2sabotage.a" ||
  fail "the library to be broken is not: this test looks wrongly"
for file in "$QCOW2_PLUGIN" "$top_builddir/lib/image/.libs/libqcow2image.a"
do
  # With debug information the name of the enum's header may be there.
  cp "$file" copy
  strip --strip-debug copy 2>/dev/null || true
  if has_sabotage copy; then fail "$file can be broken"; fi
done
