#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The clients that people use: nbdcopy, fio, nbdfuse with mkfs and fsck,
# QEMU's own.  Each part needs its program; a part whose program is
# missing is told and left out.

source "$top_srcdir/tests/functions.sh"
requires qemu-img --version
requires nbdinfo --version

parts=0
done_part ()
{
  echo "done: $1"
  parts=$((parts + 1))
}

have ()
{
  command -v "$1" >/dev/null && return
  echo "left out: $1 is not installed"
  return 1
}

# Every connection is of the same disk, and clients may rely on it.
qemu-img create -q -f qcow2 multi.qcow2 64M
start_nbdkit multi qcow2 multi.qcow2
if [ "${QCOW2_TEST_SERVER-}" != qemu-nbd ]; then
  nbdinfo --can multi-conn "$uri"
fi
nbdinfo --can flush "$uri"
nbdinfo --can fua "$uri"
nbdinfo --can zero "$uri"
nbdinfo --can fast-zero "$uri"
nbdinfo --can trim "$uri"
nbdinfo --can cache "$uri"
if nbdinfo --is read-only "$uri"; then fail "read-only"; fi
stop_nbdkit multi
done_part "what the server can do"

# nbdcopy in and out, with holes, several connections and requests in
# flight; then again, over what is there, compressed and with snapshots.
if have nbdcopy; then
  size=$((96 * 1024 * 1024 + 512))
  "$PYTHON_NBD" - source.raw $size <<'EOF'
import random, sys
rng = random.Random (1)
size = int (sys.argv[2])
with open (sys.argv[1], "wb") as f:
    f.truncate (size)
    for _ in range (200):
        f.seek (rng.randrange (size) // 512 * 512)
        f.write (rng.randbytes (rng.randint (1, 300) * 512))
    f.truncate (size)
EOF
  for options in cluster_size=4k cluster_size=64k,lazy_refcounts=on \
                 cluster_size=2M,compat=0.10; do
    rm -f copy.qcow2 out.raw
    qemu-img create -q -f qcow2 -o "$options" copy.qcow2 $size
    start_nbdkit copy qcow2 copy.qcow2
    nbdcopy --flush --connections=4 --requests=16 source.raw "$uri"
    nbdcopy --connections=4 --requests=16 "$uri" out.raw
    cmp source.raw out.raw
    stop_nbdkit copy
    check_image copy.qcow2
    qemu-img compare -f qcow2 -F raw copy.qcow2 source.raw
  done

  qemu-img snapshot -c before copy.qcow2
  qemu-img convert -O raw source.raw before.raw
  "$PYTHON_NBD" - source.raw other.raw <<'EOF'
import sys
data = bytearray (open (sys.argv[1], "rb").read ())
for at in range (0, len (data) - 70000, 1000000):
    data[at:at+70000] = bytes (b ^ 0xff for b in data[at:at+70000])
open (sys.argv[2], "wb").write (data)
EOF
  start_nbdkit copy qcow2 copy.qcow2
  nbdcopy --flush --connections=4 other.raw "$uri"
  nbdcopy "$uri" out.raw
  cmp other.raw out.raw
  nbdcopy "nbd+unix:///snapshot:before?socket=$sock" out.raw
  cmp before.raw out.raw
  # What is allocated and what reads as zeroes, as copies see it.
  nbdcopy --destination-is-zero "$uri" null:
  stop_nbdkit copy
  check_image copy.qcow2
  qemu-img convert -l before -O raw copy.qcow2 out.raw
  cmp before.raw out.raw

  # Only what is data is allocated in a copy to an empty image.
  qemu-img create -q -f qcow2 sparse.qcow2 1G
  truncate -s 1G sparse.raw
  echo hello | dd of=sparse.raw bs=1 seek=500M conv=notrunc status=none
  start_nbdkit sparse qcow2 sparse.qcow2
  nbdcopy --flush sparse.raw "$uri"
  stop_nbdkit sparse
  check_image sparse.qcow2
  used=$(stat -c '%b' sparse.qcow2)
  [ "$used" -lt 20000 ] || fail "a sparse copy uses $used blocks"
  done_part "nbdcopy"
fi

# fio checks what it wrote, with several jobs at once.
if have fio && fio --enghelp 2>/dev/null | grep -qw nbd; then
  qemu-img create -q -f qcow2 -o cluster_size=16k fio.qcow2 64M
  runtime=4
  for mode in randwrite randrw randtrimwrite; do
    # fio trims a block and writes it without waiting in between, which
    # at a greater depth has no defined result.
    depth=8
    if [ $mode = randtrimwrite ]; then depth=1; fi
    start_nbdkit fio qcow2 fio.qcow2
    # (nbd+unix URIs hold a colon and a question mark: quote them.)
    fio --name=a --ioengine=nbd --uri="$uri" --rw=$mode --bsrange=512-40k \
        --blockalign=512 --size=32m --offset=0 --iodepth=$depth \
        --runtime=$runtime --verify=crc32c --verify_fatal=1 --do_verify=1 \
        --verify_state_save=0 --verify_backlog=64 \
        --fsync=32 --randseed=7 --output=fio.$mode.out ||
      { cat fio.$mode.out; fail "fio $mode"; }
    stop_nbdkit fio
    check_image fio.qcow2
  done
  done_part "fio"
fi

# A file system through FUSE.
if have nbdfuse && have mkfs.ext4 && [ -w /dev/fuse ]; then
  qemu-img create -q -f qcow2 fs.qcow2 128M
  start_nbdkit fs qcow2 fs.qcow2
  mkdir mnt
  nbdfuse -P fuse.pid mnt/disk "$uri" &
  fuse=$!
  cleanup_fn sh -c '{ umount mnt || fusermount3 -u mnt; } 2>/dev/null; true'
  # shellcheck disable=SC2317
  is_mounted_or_gone () { [ -s fuse.pid ] || is_gone "$fuse"; }
  wait_for "$QCOW2_TEST_PATIENCE" is_mounted_or_gone || fail "nbdfuse hangs"
  if [ -s fuse.pid ]; then
    mkfs.ext4 -q -F -E discard mnt/disk
    debugfs -w -R "write $QCOW2_PLUGIN plugin.so" mnt/disk >/dev/null 2>&1
    debugfs -R "dump plugin.so out.so" mnt/disk >/dev/null 2>&1
    cmp out.so "$QCOW2_PLUGIN"
    e2fsck -fn mnt/disk
    sync mnt/disk
    umount mnt 2>/dev/null || fusermount3 -u mnt || fusermount -u mnt
    wait "$fuse" || true
    stop_nbdkit fs
    check_image fs.qcow2
    qemu-img convert -O raw fs.qcow2 fs.raw
    e2fsck -fn fs.raw
    done_part "nbdfuse, mkfs and fsck"
  else
    kill "$fuse" 2>/dev/null || true
    stop_nbdkit fs
    echo "left out: FUSE does not work here"
  fi
fi

# QEMU's tools as clients.
qemu-img create -q -f qcow2 q.qcow2 64M
start_nbdkit q qcow2 q.qcow2
qemu-io -f raw -c 'write -P 3 1M 3M' -c 'write -z -u 2M 1M' \
        -c 'discard 3M 512k' -c flush -c 'read -P 3 1M 1M' \
        -c 'read -P 0 2M 1M' -c 'read -P 0 3M 512k' "$uri" >qemu-io.out
if grep -iE 'error|fail' qemu-io.out; then fail "qemu-io"; fi
qemu-img bench -q -f raw -c 2000 -d 16 -s 4k -w --pattern=5 "$uri" >/dev/null
qemu-img bench -q -f raw -c 2000 -d 16 -s 4k "$uri" >/dev/null
qemu-img map -f raw --output=json "$uri" >/dev/null
stop_nbdkit q
check_image q.qcow2
done_part "QEMU's tools"

[ "$parts" -ge 2 ] || fail "only $parts parts were run"
