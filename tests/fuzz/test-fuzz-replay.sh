#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Replay the corpus of each fuzz target, with random changes that are the
# same every time.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"

mutations=20000 images=30
# What is slow tries less.
if [ "$QCOW2_SANITIZER${QCOW2_VALGRIND-}" ]; then mutations=2000 images=2; fi

for target in header decompress luks; do
  "$top_builddir/tests/fuzz/fuzz-$target" -n "$mutations" \
    "$top_srcdir/tests/fuzz/corpus-$target"
done
# These have many files, which differ already.
for target in names tables parameters; do
  "$top_builddir/tests/fuzz/fuzz-$target" -n "$((mutations / 20))" \
    "$top_srcdir/tests/fuzz/corpus-$target"
done
"$top_builddir/tests/fuzz/fuzz-overlap" -n "$((mutations / 10))" \
  "$top_srcdir/tests/fuzz/corpus-overlap"
"$top_builddir/tests/fuzz/fuzz-image" -n "$images" \
  "$top_srcdir/tests/fuzz/corpus-image"
