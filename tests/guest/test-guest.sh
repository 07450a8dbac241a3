#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A real guest on disks that we serve.  Linux boots in an emulated
# machine, makes or checks an ext4 filesystem on its virtio disk, lives
# on it (see "init"), and powers off; then QEMU must find neither
# corruption nor leaks, e2fsck a sound filesystem, and every file must
# hold what the guest wrote.  Two images:
#
#   new.qcow2    fresh, version 3, clusters of 64k
#   over.qcow2   an overlay with clusters of 16k on a compressed base,
#                some of them compressed too, with an internal snapshot
#                before the first run and another before the second:
#                their contents must not change, nor the base at all
#
# The first run on each takes the disk with the very options that
# nbdkit-qcow2-guide(1) shows, the last with those of disk_options.

source "$top_srcdir/tests/functions.sh"
source "$top_srcdir/tests/guest/guest-functions.sh"

guest_begin
need qemu-io qemu-utils

# run_on IMAGE MODE RUN: serve it to a guest.
run_on ()
{
  local name=${1%.qcow2}-$3 begin=$SECONDS

  make_payload payload.tar
  serve "$1"
  run_guest "$name" "$guest_patience" "guest_mode=$2 guest_run=$3" \
            "$sock" payload.tar ||
    fail "$1: the guest did not power off"
  grep '^GUEST:' "$name.log" | tr -d '\r'
  grep -q '^GUEST: PASS' "$name.log" || fail "$1: the guest did not pass"
  stop_server
  say "$1: run $3 took $((SECONDS - begin)) seconds"
  check_image "$1" >check.log
  check_files "$1"
}

# allocated IMAGE: prints how many MiB of clusters are in use.
allocated ()
{
  qemu-img check -f qcow2 --output=json "$1" | python3 -c '
import json, sys
c = json.load (sys.stdin)
print (c.get ("allocated-clusters", 0) * 65536 // 1048576)'
}

# watch_blocks FILE: save in most.blocks the most blocks of the host that the
# file had, until the file "watch" is taken away.
watch_blocks ()
{
  local most=0 now

  while [ -e watch ] && kill -0 $$; do
    now=$(stat -c %b "$1")
    if [ "$now" -gt "$most" ]; then
      most=$now
      echo "$most" >most.blocks
    fi
    sleep 0.1
  done
}

test_new ()
{
  local used most left watcher

  qemu-img create -q -f qcow2 -o compat=1.1,cluster_size=65536 new.qcow2 1G
  touch watch
  watch_blocks new.qcow2 &
  watcher=$!
  guest_example=qemu run_on new.qcow2 new 1
  rm watch
  wait "$watcher"
  most=$(cat most.blocks) left=$(stat -c %b new.qcow2)
  say "new.qcow2: $most blocks of the host before fstrim, $left at the end"
  # It wrote 6 MiB more after the trim.
  [ "$((most - left))" -gt $((4 * 2048)) ] ||
    fail "fstrim gave too few blocks back to the host"
  used=$(allocated new.qcow2)
  say "new.qcow2: $used MiB in use"
  # The guest deleted 16 MiB of what it had written, and trimmed: what
  # it kept is some 20 MiB.
  [ "$used" -lt 30 ] || fail "trimmed clusters were not given back"
  [ "$(du -m new.qcow2 | cut -f 1)" -lt 35 ] ||
    fail "the space of trimmed clusters was not given back to the host"
}

# make_tree DIR NAME COUNT: files for a filesystem, every other one of
# random bytes, and a manifest of all.
make_tree ()
{
  local i

  mkdir -p "$1/old"
  for ((i = 1; i <= $3; i++)); do
    if ((i % 2)); then
      seq $((i * 300 % 9000)) >"$1/old/$2$i"
    else
      head -c $((i * 7919 % 300000)) /dev/urandom >"$1/old/$2$i"
    fi
  done
  (cd "$1" && find . -type f ! -name MANIFEST -print0 |
   xargs -0 sha256sum) >MANIFEST.new
  mv MANIFEST.new "$1/MANIFEST"
}

# write_difference OLD NEW IMAGE: those clusters of 16k in which the raw
# file NEW differs from OLD go into IMAGE, in turn compressed and plain.
write_difference ()
{
  python3 - "$1" "$2" >commands <<'END'
import os, sys
size = 16384
os.mkdir ("clusters")
with open (sys.argv[1], "rb") as a, open (sys.argv[2], "rb") as b:
    n = 0
    while True:
        offset = b.tell ()
        data = b.read (size)
        if not data:
            break
        if data != a.read (size):
            name = f"clusters/{n}"
            with open (name, "wb") as f:
                f.write (data)
            option = "-c " if n % 2 else ""
            print (f"write -q {option}-s {name} {offset} {size}")
            n += 1
END
  [ "$(wc -l <commands)" -gt 50 ] || fail "too little differs"
  qemu-io -f qcow2 "$3" <commands >qemu-io.out
  rm -r clusters commands
}

# make_overlay: base.qcow2 and over.qcow2, and over.raw, which holds what
# a guest must find.
make_overlay ()
{
  make_tree tree base 120
  mke2fs -q -t ext4 -d tree base.raw 256M >mke2fs.log 2>&1
  qemu-img convert -f raw -O qcow2 -c base.raw base.qcow2
  qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 \
           -o cluster_size=16k over.qcow2

  make_tree tree more 60
  cp --sparse=always base.raw over.raw
  {
    echo "rm MANIFEST"
    echo "write tree/MANIFEST MANIFEST"
    for file in tree/old/more*; do echo "write $file ${file#tree/}"; done
  } >debugfs.commands
  debugfs -w -f debugfs.commands over.raw >debugfs.log 2>&1
  write_difference base.raw over.raw over.qcow2
  qemu-img compare -q -f raw -F qcow2 over.raw over.qcow2 ||
    fail "the overlay was not made well"
  rm -r base.raw over.raw tree debugfs.commands
  check_files over.qcow2
}

test_overlay ()
{
  local base first second

  make_overlay
  base=$(sha256sum <base.qcow2)
  qemu-img snapshot -c first over.qcow2
  first=$(digest over.qcow2 first)

  guest_example=qemu-drive run_on over.qcow2 old 1
  [ "$(digest over.qcow2 first)" = "$first" ] ||
    fail "the first run changed the snapshot"

  qemu-img snapshot -c second over.qcow2
  second=$(digest over.qcow2 second)
  [ "$second" != "$first" ] || fail "the first run changed nothing"
  run_on over.qcow2 old 2
  [ "$(digest over.qcow2 first)" = "$first" ] ||
    fail "the second run changed the first snapshot"
  [ "$(digest over.qcow2 second)" = "$second" ] ||
    fail "the second run changed the second snapshot"
  [ "$(sha256sum <base.qcow2)" = "$base" ] || fail "the base changed"
}

make_initramfs
choose_accel
test_new
test_overlay
