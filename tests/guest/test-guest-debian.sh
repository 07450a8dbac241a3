#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# "make check-guest-debian", which is not part of make check: a Debian
# system in a compressed base image, and an overlay on it that we serve.
# It boots to a login prompt, root logs in there, installs packages,
# copies many files, deletes and trims (see "debian-work"), powers off,
# and finds everything again after a second boot.  Then QEMU and e2fsck
# look at the image.
#
# The base is made by debootstrap, from the mirror that this machine uses
# itself, and kept in the cache.

source "$top_srcdir/tests/functions.sh"
source "$top_srcdir/tests/guest/guest-functions.sh"

# make_root DIR: a system that boots, root without a password, and with
# packages downloaded but not installed.
make_root ()
{
  debootstrap --variant=minbase --include=systemd-sysv,udev \
              "$suite" "$1" "$mirror"
  chroot "$1" apt-get clean
  chroot "$1" apt-get -q update
  chroot "$1" apt-get -q -y --no-install-recommends --download-only \
         install git
  chroot "$1" passwd -d root
  echo guest >"$1/etc/hostname"
  echo '/dev/vda / ext4 errors=remount-ro 0 1' >"$1/etc/fstab"
}

# make_base FILE: the compressed image.
make_base ()
{
  local root=$workdir/root

  choose_mirror
  say "making a Debian system of $suite from $mirror"
  cleanup_fn rm -rf --one-file-system "$root"
  make_root "$root" >root.log 2>&1 </dev/null
  mke2fs -q -t ext4 -d "$root" root.raw 2G >mke2fs.log 2>&1
  qemu-img convert -f raw -O qcow2 -c root.raw "$1"
  rm -rf --one-file-system "$root"
  rm root.raw
}

# get_base: base.qcow2, from the cache if it is there.  What root does
# in the guest is not part of it, so that a change needs no new base.
get_base ()
{
  if [ ! -e "$cache/debian.qcow2" ]; then
    make_base "$cache/debian.new"
    mv "$cache/debian.new" "$cache/debian.qcow2"
  fi
  cp --sparse=always "$cache/debian.qcow2" base.qcow2
}

# on_console TEXT: has the guest written this?
on_console ()
{
  grep -q "$1" "$console" || is_gone "$guest_pid"
}

# expect TEXT: wait for the guest to write this.
expect ()
{
  wait_for "$guest_patience" on_console "$1" || fail "no \"$1\" on the console"
  grep -q "$1" "$console" || fail "the guest ended before \"$1\""
}

# boot IMAGE RUN: to the login prompt, then work.
boot ()
{
  local begin=$SECONDS disk

  console=debian-$2.log
  rm -f console.in console.out
  mkfifo console.in console.out
  serve "$1"
  cp "$guest_srcdir/debian-work" work.raw
  truncate -s 64K work.raw
  disk_options "$sock" work.raw
  cat console.out >"$console" &
  guest_memory=768 start_guest "debian-$2" "guest_mode=root" \
    -chardev pipe,id=console,path=console -serial chardev:console "${disk[@]}"

  expect 'login: '
  say "boot $2: a login prompt after $((SECONDS - begin)) seconds"
  echo root >console.in
  expect 'root@guest:~#'
  # The second disk is the script, and zeroes after it.
  printf '%s\n' "tr -d '\\000' </dev/vdb >/tmp/work; sh /tmp/work $2" \
    >console.in
  expect '^WORK: \(PASS\|FAIL\)'
  grep -a '^WORK:' "$console" | tr -d '\r'
  grep -q '^WORK: PASS' "$console" || fail "boot $2: the guest did not pass"
  wait_guest "$guest_patience" || fail "boot $2: the guest did not power off"
  stop_server
  say "boot $2: off after $((SECONDS - begin)) seconds"
  check_image "$1" >check.log
  qemu-img convert -f qcow2 -O raw "$1" disk.raw
  e2fsck -fn disk.raw >e2fsck.log 2>&1 || fail "e2fsck finds errors"
  rm disk.raw
}

# Emulated, this is an hour's work for a busy host.
guest_patience=$((guest_patience * 5))

guest_begin
[ "$(id -u)" = 0 ] || fail "debootstrap needs root"
need debootstrap debootstrap
make_initramfs
choose_accel
get_base

base=$(sha256sum <base.qcow2)
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2
qemu-img snapshot -c fresh over.qcow2
fresh=$(digest over.qcow2 fresh)
boot over.qcow2 1
qemu-img snapshot -c worked over.qcow2
worked=$(digest over.qcow2 worked)
boot over.qcow2 2
[ "$(digest over.qcow2 fresh)" = "$fresh" ] || fail "snapshot fresh changed"
[ "$(digest over.qcow2 worked)" = "$worked" ] || fail "snapshot worked changed"
[ "$(sha256sum <base.qcow2)" = "$base" ] || fail "the base changed"
