#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Replay the corpus of each fuzz target, with random changes that are the
# same every time.

source "$top_srcdir/tests/functions.sh"

mutations=20000
# What is slow tries less.
if [ "$QCOW2_SANITIZER${QCOW2_VALGRIND-}" ]; then mutations=2000; fi

for target in header decompress; do
  "$top_builddir/tests/fuzz/fuzz-$target" -n "$mutations" \
    "$top_srcdir/tests/fuzz/corpus-$target"
done
