#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The plugin loads, says what it is, and shows nbdkit nothing but its
# entry point and its debug flags.  An undefined symbol would be seen
# here first: plugins are linked with nbdkit's symbols missing.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"

requires nm --version

# has KEY=VALUE: a line of --dump-plugin.
has ()
{
  grep -qxF -- "$1" dump || fail "--dump-plugin does not say $1"
}

nbdkit qcow2 --dump-plugin >dump
has name=qcow2
has api_version=2
has max_thread_model=parallel
has thread_model=parallel
has errno_is_preserved=1
has magic_config_key=file
for callback in cleanup after_fork zero trim flush cache extents \
                list_exports default_export block_size can_multi_conn \
                can_fast_zero; do
  has "has_$callback=1"
done
has qcow2_versions=2,3
has qcow2_deflate=yes
has qcow2_zstd=yes
has qcow2_encryption=luks,aes
grep -q '^qcow2_overlap_types=main-header,.*,bitmap-data$' dump
grep -q '^qcow2_events=.*QCOW2_EVENTS_LOST$' dump

# Keys are for programs: a word and a value each.
if grep '^qcow2_' dump | grep -v '^qcow2_[a-z0-9_]*=[A-Za-z0-9_,-]*$'; then
  fail "--dump-plugin has a line of another form"
fi

nbdkit qcow2 --help >help
grep -q '^plugin: qcow2' help
grep -qF '[file=]<IMAGE>' help
awk 'length > 80 { print "too long: " $0; bad = 1 } END { exit bad }' \
    <(sed -n '/\[file=\]/,$p' help) || fail "--help is wider than a terminal"

version=$(sed -n 's/^version=//p' dump)
nbdkit qcow2 --version | grep -qx "qcow2 $version" ||
  fail "--version does not say $version"

# Nothing of ours may collide with another plugin's or a library's names.
nm -D --defined-only "$QCOW2_PLUGIN" | awk '{ print $3 }' | sort >symbols
grep -qx plugin_init symbols || fail "plugin_init is hidden"
grep -qx qcow2_debug_overlap symbols || fail "debug flags are hidden"
if grep -vxE 'plugin_init|qcow2_debug_[a-z0-9]+' symbols; then
  fail "the plugin shows these symbols too"
fi

# nbdkit warns of a debug flag that it does not find.
qemu-img create -q -f qcow2 disk.qcow2 1M
nbdkit -f -s -D qcow2.overlap=1 -D qcow2.stats=1 qcow2 disk.qcow2 \
       </dev/null >out 2>warnings
if [ -s warnings ]; then
  cat warnings
  fail "messages with debug flags on"
fi
