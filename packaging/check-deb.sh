#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# "make check-deb": the Debian package is made in a clean system of its
# own (debootstrap), lintian finds nothing, and when it is installed in
# another, nbdkit finds the plugin.  Needs root and a mirror.

# shellcheck source=clean-root.sh
source "$top_srcdir/packaging/clean-root.sh"
make_base

echo "building"
new_root "$workdir/build"
tarball=$(find "$top_builddir" -maxdepth 1 -name 'nbdkit-qcow2-plugin-*.tar.xz')
[ "$tarball" ] || fail "there is no tarball: make dist"
mkdir build/src
tar -C build/src --strip-components=1 -xf "$tarball"
in_root build apt-get -q update >apt.log 2>&1
in_root build apt-get -q -y --no-install-recommends install \
        build-essential devscripts equivs lintian >>apt.log 2>&1 ||
  fail "apt-get install"
in_root build sh -c 'cd /src && mk-build-deps -i -r -t \
  "apt-get -q -y --no-install-recommends" debian/control' >>apt.log 2>&1 ||
  fail "the build dependencies cannot be installed"
in_root build sh -c 'cd /src && rm -f *build-deps*.buildinfo \
  *build-deps*.changes && dpkg-buildpackage -us -uc' >package.log 2>&1 ||
  fail "dpkg-buildpackage"
in_root build sh -c 'lintian --allow-root --fail-on warning,error /*.changes' |
  tee lintian.out || fail "lintian finds fault"

echo "installing"
new_root "$workdir/install"
cp build/*.deb install/
rm -f install/*-dbgsym_*
in_root install apt-get -q update >>apt.log 2>&1
in_root install sh -c 'apt-get -q -y --no-install-recommends install \
  /*.deb' >install.log 2>&1 || fail "the package cannot be installed"
in_root install nbdkit qcow2 --dump-plugin | grep '^qcow2_versions=' ||
  fail "nbdkit does not find the plugin"
in_root install sh -c 'nbdkit -U - qcow2 /tmp/d.qcow2 create=1G --run true' ||
  fail "the plugin does not serve"
in_root install qcow2-overlap check /tmp/d.qcow2 ||
  fail "qcow2-overlap does not check"
in_root install qcow2-overlap map -q --png /tmp/d.png /tmp/d.qcow2 ||
  fail "qcow2-overlap does not draw"
in_root install test -e /usr/share/bash-completion/completions/qcow2-overlap ||
  fail "there is no completion"
in_root install test -x \
  /usr/share/doc/nbdkit-plugin-qcow2/examples/incremental-backup.sh ||
  fail "there are no examples"
in_root install getent passwd nbdkit-qcow2 ||
  fail "there is no user nbdkit-qcow2"
in_root install apt-get -q -y purge nbdkit-plugin-qcow2 >>install.log 2>&1 ||
  fail "the package cannot be removed"
ls build/*.deb
