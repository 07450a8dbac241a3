#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# "make check-rpm": rpmbuild makes the package of the tarball, with every
# file in it that make install installs.  Where the machine has no
# packages by Fedora's names, what BuildRequires lists is not looked for.
# RPMBUILD_OPTIONS=--nocheck leaves the tests out.

# shellcheck source=../tests/functions.sh
source "$top_srcdir/tests/functions.sh"
requires rpmbuild --version

tarball=$(find "$top_builddir" -maxdepth 1 -name 'nbdkit-qcow2-plugin-*.tar.xz')
[ "$tarball" ] || fail "there is no tarball: make dist"
read -ra options <<<"${RPMBUILD_OPTIONS-}"
if ! rpm -q glibc >/dev/null 2>&1; then
  libdir=$(pkg-config --variable=plugindir nbdkit)
  options+=(--nodeps --define "_libdir ${libdir%/nbdkit/plugins}")
fi
rpmbuild -ba "${options[@]}" --define "_topdir $workdir/rpm" \
         --define "_sourcedir $(dirname "$tarball")" \
         "$top_builddir/packaging/nbdkit-qcow2-plugin.spec" >rpmbuild.log 2>&1 ||
  fail "rpmbuild"
rpm -qlp rpm/RPMS/*/nbdkit-qcow2-plugin-0*.rpm | tee files
for file in nbdkit/plugins/nbdkit-qcow2-plugin.so examples/event-alert.py \
            README.md design/engine.md; do
  grep -q "/$file\$" files || fail "$file is not in the package"
done
