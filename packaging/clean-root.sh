# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# Clean Debian systems to try things in, made with debootstrap.  Needs root
# and a mirror.

# shellcheck source=../tests/functions.sh
source "$top_srcdir/tests/functions.sh"

[ "$(id -u)" = 0 ] || skip "debootstrap needs root"
requires debootstrap --version

# in_root ROOT COMMAND...: with an environment of its own.
in_root ()
{
  local root=$1

  shift
  chroot "$root" /usr/bin/env -i HOME=/root TERM=dumb LC_ALL=C.UTF-8 \
         PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive \
         DEB_BUILD_OPTIONS="${DEB_BUILD_OPTIONS-}" "${proxies[@]}" "$@"
}
mapfile -t proxies < <(env | grep -iE '^(http|https|no)_proxy=' || true)

# new_root DIR: the clean system, with this machine's ways to its mirror.
new_root ()
{
  mkdir "$1"
  cleanup_fn rm -rf --one-file-system "$1"
  tar -C "$1" -xf base.tar
  mount -t proc proc "$1/proc"
  cleanup_fn umount "$1/proc"
}

# make_base: what new_root unpacks.
make_base ()
{
  choose_mirror
  echo "a clean system of $suite from $mirror"
  mkdir base
  cleanup_fn rm -rf --one-file-system "$workdir/base"
  debootstrap --variant=minbase "$suite" base "$mirror" >debootstrap.log 2>&1 ||
    fail "debootstrap"
  cp /etc/apt/apt.conf.d/99* base/etc/apt/apt.conf.d/ 2>/dev/null || true
  tar -C base --one-file-system -cf base.tar .
}
