#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# make install puts the plugin where nbdkit looks for it, the tool, the man
# pages and the examples beside others, and the files for systemd and bash,
# below DESTDIR, and nothing else; make uninstall takes all of it away.

# shellcheck source=functions.sh
source "$top_srcdir/tests/functions.sh"

destdir=$workdir/dest
plugindir=$(sed -n 's/^plugindir = //p' "$top_builddir/plugin/Makefile")
prefix=$(sed -n 's/^prefix = //p' "$top_builddir/plugin/Makefile")
[ "$prefix" ] || fail "plugin/Makefile names no prefix"

# MAKEFLAGS: what the make that runs the tests was told is not for this.
unset MAKEFLAGS MFLAGS MAKELEVEL
make -C "$top_builddir" install DESTDIR="$destdir" >install.log 2>&1 ||
  fail "make install"
(cd "$destdir" && find . -type f) | sort >installed
cat installed

plugins=$(grep -c '/nbdkit-qcow2-plugin\.so$' installed)
[ "$plugins" = 1 ] || fail "$plugins plugins installed"
if grep -vE '/(nbdkit-qcow2-plugin\.so|man/man1/.*\.1|bin/qcow2-.*)$' \
        installed | grep -vE '/(systemd/system|sysusers\.d)/nbdkit-qcow2' |
        grep -v '/bash-completion/completions/qcow2-overlap$' |
        grep -vE '/doc/[^/]*/(README\.md|examples/[^/]*)$'; then
  fail "this should not have been installed"
fi
for file in bin/qcow2-overlap bash-completion/completions/qcow2-overlap \
            README.md systemd/system/nbdkit-qcow2@.service \
            systemd/system/nbdkit-qcow2@.socket sysusers.d/nbdkit-qcow2.conf
do
  grep -q "/$file\$" installed || fail "$file is missing"
done
# What the manual pages call examples, ready to be run.
for file in "$top_srcdir"/examples/*; do
  copy=$destdir/$(grep "/examples/${file##*/}\$" installed) ||
    fail "${file##*/} is missing"
  cmp "$file" "$copy" || fail "${file##*/} is not the same"
  case "$file" in
    *.py | *.sh) [ -x "$copy" ] || fail "$copy cannot be run" ;;
  esac
done
if grep -q '/man1/' installed; then
  for pod in "$top_srcdir"/docs/*.pod; do
    grep -q "/man1/$(basename "$pod" .pod)\.1\$" installed ||
      fail "no manual page of $pod"
  done
fi
case "$plugindir" in
  /*) [ -e "$destdir$plugindir/nbdkit-qcow2-plugin.so" ] ||
        fail "the plugin is not in $plugindir" ;;
esac

make -C "$top_builddir" uninstall DESTDIR="$destdir" >uninstall.log 2>&1 ||
  fail "make uninstall"
if find "$destdir" -type f | grep .; then
  fail "make uninstall left this behind"
fi
