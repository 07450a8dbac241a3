# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# What the guest tests share, on top of tests/functions.sh: a kernel, an
# initramfs, a machine, a server for its disk, and what must be true of
# the image afterwards.  See README here for the variables.
#
# The kernel comes from the distribution's package, downloaded and
# unpacked into a cache directory but never installed, so that the tests
# boot the same kernel whether or not the host has one, and need no root.

# mke2fs, debugfs and their like are in sbin, which is not in every
# user's PATH.
PATH=$PATH:/usr/sbin:/sbin

guest_srcdir=$top_srcdir/tests/guest
cache=${GUEST_CACHE:-$top_builddir/tests/guest/cache}

# The machine is emulated, and the host may be busy.
# shellcheck disable=SC2034
guest_patience=$((QCOW2_TEST_PATIENCE * 3))

say ()
{
  echo "$test_name: $*"
}

# need PROGRAM PACKAGE: a missing tool is an error and not a reason to
# skip: README lists the few packages, and install-deps installs them.
need ()
{
  command -v "$1" >/dev/null || fail "$1 is not here: install $2"
}

guest_begin ()
{
  [ "$(uname -m)" = x86_64 ] ||
    skip "the guest is x86_64 and takes its programs from this host"
  command -v qemu-system-x86_64 >/dev/null ||
    skip "qemu-system-x86_64 is not here: install qemu-system-x86"
  need qemu-img qemu-utils
  need qemu-nbd qemu-utils
  need nbdinfo libnbd-bin
  need busybox busybox-static
  need cpio cpio
  need debugfs e2fsprogs
  need python3 python3
  case "$(ldd "$(command -v busybox)" 2>&1 || :)" in
    *'not a dynamic executable'*) ;;
    *) fail "this busybox is not static: install busybox-static" ;;
  esac
  mkdir -p "$cache"
  cleanup_fn kill_guest
}

#--------------------------------------------------------------------
# The kernel.

# fetch_deb DIR, fetch_rpm DIR: download and unpack the kernel package.
# They are called where set -e has no effect.
fetch_deb ()
{
  local name

  name=$(apt-cache depends linux-image-cloud-amd64 |
         sed -n '/Depends: linux-image-[0-9]/{ s/.*: //p; q }')
  [ -n "$name" ] || return 1
  (cd "$1" &&
   apt-get -q -o APT::Sandbox::User=root download "$name" &&
   dpkg-deb -x ./linux-image-*.deb . &&
   rm ./linux-image-*.deb)
}

fetch_rpm ()
{
  local rpm

  # The modules left kernel-core in Fedora 38.
  dnf -q download --destdir "$1" --arch x86_64 \
      kernel-core kernel-modules-core || return 1
  for rpm in "$1"/*.rpm; do
    rpm2cpio "$rpm" | (cd "$1" && cpio -idm --quiet) || return 1
    rm "$rpm"
  done
}

fetch_kernel ()
{
  if command -v dpkg-deb >/dev/null; then
    fetch_deb "$1"
  else
    fetch_rpm "$1"
  fi
}

# get_kernel: sets $kernel, a file, and $modules, a directory.  The
# directory appears in the cache only when it is complete.
get_kernel ()
{
  local new=$cache/kernel.new lock

  exec {lock}>"$cache/lock"
  flock "$lock"
  if [ ! -d "$cache/kernel" ]; then
    rm -rf "$new"
    mkdir "$new"
    if ! fetch_kernel "$new" >fetch.log 2>&1; then
      cat fetch.log
      skip "cannot download the kernel package: $(tail -n 1 fetch.log)"
    fi
    mv "$new" "$cache/kernel"
  fi
  exec {lock}>&-

  kernel=$(find "$cache/kernel" -name 'vmlinuz*' -type f -print -quit)
  modules=$(find "$cache/kernel" -path '*lib/modules/[0-9]*' -type d \
                 -print -quit)
  { [ -n "$kernel" ] && [ -n "$modules" ]; } ||
    fail "no kernel or no modules in $cache/kernel: remove it"
}

#--------------------------------------------------------------------
# The initramfs.

# copy_program ROOT PROGRAM: a program of the host and its libraries.
copy_program ()
{
  local program file

  program=$(command -v "$2")
  install -D "$program" "$1/sbin/$2"
  ldd "$program" | grep -o '/[^ ]*' | while read -r file; do
    [ -e "$1$file" ] || install -D "$file" "$1$file"
  done
}

# copy_modules ROOT: only those that a virtio disk with ext4 may need.
# depmod and modprobe in the guest find out which of them it does need
# and which this kernel has built in.
copy_modules ()
{
  local dir ko target

  target=$1/lib/modules/$(basename "$modules")
  for dir in drivers/virtio drivers/block/virtio_blk fs/ext4 fs/jbd2 \
             fs/mbcache lib/libcrc32c lib/crc16 crypto/crc32c \
             arch/x86/crypto/crc32c; do
    find "$modules/kernel" -path "$modules/kernel/$dir*" -name '*.ko*'
  done | while read -r ko; do
    install -D -m 644 "$ko" "$target/${ko#"$modules"/}"
  done
  # Fedora compresses them.
  find "$target" -name '*.ko.xz' -exec xz -d '{}' +
  find "$target" -name '*.ko.zst' -exec zstd -q -d --rm '{}' +
  cp "$modules"/modules.order "$modules"/modules.builtin* "$target"
}

# make_initramfs: sets $initramfs.
make_initramfs ()
{
  local root=$workdir/initramfs

  get_kernel
  mkdir -p "$root"/{bin,sbin,proc,sys,dev,tmp,mnt}
  cp "$(command -v busybox)" "$root/bin/busybox"
  copy_program "$root" mke2fs
  copy_program "$root" e2fsck
  install "$guest_srcdir/init" "$root/init"
  copy_modules "$root"
  initramfs=$workdir/initramfs.gz
  (cd "$root" && find . | cpio -o -H newc -R 0:0 --quiet | gzip -1) \
    >"$initramfs"
  rm -r "$root"
}

#--------------------------------------------------------------------
# The machine.

guest_pid=

kill_guest ()
{
  if [ "$guest_pid" ]; then
    kill -KILL "$guest_pid" 2>/dev/null
    wait "$guest_pid" 2>/dev/null
  fi
}

# choose_accel: sets $accel.  A /dev/kvm that can be opened is not yet
# one that can run Linux: emulated ones and some nested ones cannot.  So
# the processor must say that it can, and the kernel is booted once only
# to power off again.
choose_accel ()
{
  local tcg=tcg,thread=multi

  accel=${GUEST_ACCEL:-$tcg}
  if [ -z "${GUEST_ACCEL-}" ] && [ -w /dev/kvm ] &&
     grep -qw -e vmx -e svm /proc/cpuinfo; then
    accel=kvm
    run_guest probe 10 guest_mode=probe || :
    grep -qs '^GUEST: END' probe.log || accel=$tcg
    rm -f probe.log probe-qemu.log
  fi
  say "the guest runs under $accel"
}

# start_guest NAME APPEND [QEMU OPTION...]: the machine in the
# background; its first serial port is for the options to set.
start_guest ()
{
  local name=$1 append=$2

  shift 2
  qemu-system-x86_64 -accel "$accel" -cpu max -smp 2 \
    -m "${guest_memory:-320}" -nodefaults -display none -no-reboot \
    -kernel "$kernel" -initrd "$initramfs" \
    -append "console=ttyS0 panic=-1 quiet $append" \
    "$@" 2>"$name-qemu.log" &
  guest_pid=$!
}

# disk_options SOCKET [PAYLOAD]: sets the array $disk.  Requests that fail
# reach the guest as errors: QEMU's default for a full disk, which is to
# stop the machine, would only look like a hang.
disk_options ()
{
  local drive="if=none,id=disk,format=raw,file=nbd+unix:///?socket=$1"

  drive+=",discard=unmap,detect-zeroes=off,cache=writeback"
  drive+=",rerror=report,werror=report"
  disk=(-drive "$drive"
        -device "virtio-blk-pci,drive=disk,num-queues=2")
  if [ "${2-}" ]; then
    disk+=(-drive "if=virtio,format=raw,readonly=on,file=$2")
  fi
}

# guide_options NAME SOCKET [PAYLOAD]: sets $disk to what the paragraph NAME
# of nbdkit-qcow2-guide(1) gives QEMU, word by word but for the socket's name
# and how much memory the machine has.
guide_options ()
{
  local command

  command=$(awk -v name="$1" '
    /^=for test / { on = ($3 == name); next }
    on && /^ / { print; begun = 1; next }
    on && begun { exit }' "$top_srcdir/docs/nbdkit-qcow2-guide.pod")
  eval "disk=($command)"
  [ "${disk[0]-}" = qemu-system-x86_64 ] || fail "the guide has no $1"
  disk=("${disk[@]//disk.sock/"$2"}" -m "${guest_memory:-320}")
  disk=("${disk[@]:1}")
  if [ "${3-}" ]; then
    disk+=(-drive "if=virtio,format=raw,readonly=on,file=$3")
  fi
}

# wait_guest SECONDS: for the machine to end by itself.
wait_guest ()
{
  local status=0

  wait_for "$1" is_gone "$guest_pid" || kill -KILL "$guest_pid"
  wait "$guest_pid" 2>/dev/null || status=$?
  guest_pid=
  return "$status"
}

# run_guest NAME SECONDS APPEND [SOCKET [PAYLOAD]]: a machine from power
# on to power off; its console goes to NAME.log.  Its disk is as the guide's
# paragraph $guest_example says, if that is set.
run_guest ()
{
  local disk=()

  if [ "${4-}" ] && [ "${guest_example-}" ]; then
    guide_options "$guest_example" "$4" "${5-}"
  elif [ "${4-}" ]; then
    disk_options "$4" "${5-}"
  fi
  start_guest "$1" "$3" -serial "file:$1.log" "${disk[@]}"
  wait_guest "$2"
}

# make_payload FILE: an archive of files of random bytes, from empty ones
# to one of 8 MiB, and of their sums.
make_payload ()
{
  mkdir payload
  python3 - <<'END'
import hashlib, os
with open ("payload/SUMS", "w") as sums:
    sizes = [(str (i), i * 7919 % 50000) for i in range (200)]
    for name, size in sizes + [("large", 8 << 20)]:
        data = os.urandom (size)
        with open (f"payload/{name}", "wb") as f:
            f.write (data)
        print (hashlib.sha256 (data).hexdigest (), name, sep="  ", file=sums)
END
  tar -c -f "$1" -C payload .
  rm -r payload
}

#--------------------------------------------------------------------
# The server: ours, or the one that shows that the test itself is sound.

server_pid=

kill_server ()
{
  if [ "$server_pid" ]; then
    kill -KILL "$server_pid" 2>/dev/null
    wait "$server_pid" 2>/dev/null
  fi
}

is_listening ()
{
  [ -S "$sock" ] || is_gone "$server_pid"
}

# serve IMAGE: sets $sock.
serve ()
{
  if [ "${GUEST_SERVER-}" = qemu-nbd ]; then
    sock=$sockdir/disk.sock
    qemu-nbd -t -e 4 -k "$sock" -f qcow2 --discard=unmap "$1" \
      >>disk.log 2>&1 &
    server_pid=$!
    cleanup_fn kill_server
    wait_for "$QCOW2_TEST_PATIENCE" is_listening ||
      fail "qemu-nbd does not start"
  else
    start_nbdkit disk qcow2 "$1"
  fi
  nbdinfo --size "nbd+unix:///?socket=$sock" >/dev/null
}

stop_server ()
{
  if [ "${GUEST_SERVER-}" = qemu-nbd ]; then
    kill -TERM "$server_pid"
    wait "$server_pid"
    server_pid=
    rm -f "$sock"
  else
    stop_nbdkit disk
  fi
}

#--------------------------------------------------------------------
# What is true afterwards.

# digest IMAGE [SNAPSHOT]: prints the digest of what a guest would read.
digest ()
{
  local snapshot=()

  if [ "${2-}" ]; then snapshot=(-l "snapshot.name=$2"); fi
  qemu-img convert -f qcow2 -O raw "${snapshot[@]}" "$1" digest.raw
  sha256sum <digest.raw
  rm digest.raw
}

# check_files IMAGE: the filesystem is sound, and each file in it has
# the sum that the guest wrote down; QEMU and e2fsprogs read it, and
# nothing of ours.
check_files ()
{
  mkdir files
  qemu-img convert -f qcow2 -O raw "$1" files.raw
  e2fsck -fn files.raw >e2fsck.log 2>&1 || fail "$1: e2fsck finds errors"
  debugfs -R 'rdump / files' files.raw >debugfs.log 2>&1
  [ -s files/MANIFEST ] || fail "$1: no MANIFEST in the filesystem"
  (cd files && sha256sum --quiet -c MANIFEST) >sums.log 2>&1 ||
    fail "$1: the contents of files changed"
  say "$1: $(wc -l <files/MANIFEST) files are as the guest wrote them"
  rm -r files files.raw
}
