#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Some images of the differential test, which lie in an export of another
# NBD server.

export QCOW2_TEST_STORAGE=nbd
export QCOW2_TEST_CASES=${QCOW2_TEST_CASES-5}
export QCOW2_TEST_COUNT=${QCOW2_TEST_COUNT-120}
exec "$PYTHON_NBD" "$top_srcdir/tests/nbd/test-differential.py"
