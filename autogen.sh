#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Make the configure script from a git checkout.

set -e
cd "$(dirname "$0")"
mkdir -p m4
exec autoreconf --install --force "$@"
