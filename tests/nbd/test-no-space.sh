#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The image on a full file system, and on a file that may not grow beyond
# a limit (RLIMIT_FSIZE): requests get ENOSPC, what was acknowledged is
# there, flushes succeed, what is trimmed can be used again, and the
# server lives.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires qemu-img --version
requires_python

# Fill the disk in random order until nothing more fits, then trim and
# write again.  Saves in expected.raw what must be on the disk, with
# 0xff in sectors that may hold either of two things.
cat >fill.py <<'END'
import errno, nbd, os, random, sys
random.seed(int(sys.argv[1]))
cluster = int(sys.argv[2])
h = nbd.NBD()
h.connect_uri(os.environ['uri'])
size = h.get_size()
disk = bytearray(size)
ENOSPC = {errno.ENOSPC}

def attempt(offset, length, request):
    """Is it done?  Otherwise its range is unknown."""
    try:
        request()
        return True
    except nbd.Error as e:
        assert e.errnum in ENOSPC, "%s at %d" % (e.string, offset)
        disk[offset:offset + length] = b"\xff" * length
        return False

def write(offset, length, fua=False):
    data = bytes([random.randrange(1, 255)]) * length
    done = attempt(offset, length, lambda: h.pwrite(
        data, offset, nbd.CMD_FLAG_FUA if fua else 0))
    if done:
        disk[offset:offset + length] = data
    return done

failed = 0
places = list(range(0, size, cluster))
random.shuffle(places)
for n, at in enumerate(places):
    if n % 3 == 2:
        at += 512 * random.randrange(cluster // 512)
    failed += not write(at, min(cluster, size - at), n % 7 == 0)
    if n % 16 == 0:
        h.flush()
assert failed > 3, "it was never full"
h.flush()
# Full as it is, what was written whole can be written again.
known = [p for p in places if 255 not in disk[p:p + cluster]
         and 0 not in disk[p:p + cluster]]
assert len(known) >= 24
for at in known[:8]:
    assert write(at, cluster), "a write in place fails"
h.flush()
# Space comes back, without the client having to flush in between.
for at in known[8:24]:
    h.trim(cluster, at)
    disk[at:at + cluster] = bytes(cluster)
fresh = [p for p in places if 255 in disk[p:p + cluster]]
done = sum(write(at, cluster) for at in fresh[:8])
assert done >= 4, "only %d writes where 16 clusters were trimmed" % done
h.flush()
for at in range(0, size, cluster):
    length = min(cluster, size - at)
    got = h.pread(length, at)
    for s in range(0, length, 512):
        want = disk[at + s:at + s + 512]
        assert 255 in want or got[s:s + 512] == want, "reading %d" % (at + s)
open("expected.raw", "wb").write(disk)
END

cat >compare.py <<'END'
want = open("expected.raw", "rb").read()
got = open("got.raw", "rb").read()
assert len(want) == len(got)
for s in range(0, len(want), 512):
    assert 255 in want[s:s + 512] or want[s:s + 512] == got[s:s + 512], s
END

# on_image IMAGE CLUSTER HOW: serve, fill, end it by kill or stop.
on_image ()
{
  local image=$1 cluster=$2 how=$3 status=0

  start_nbdkit a qcow2 "$image" commit-interval=0
  "$PYTHON_NBD" fill.py "$((cluster + ${#how}))" "$cluster" ||
    fail "$image ($cluster, $how)"
  if is_gone "${nbdkit_pids[a]}"; then fail "the server has died"; fi
  "${how}_nbdkit" a
  qemu-img check -q -f qcow2 "$image" >check.out 2>&1 || status=$?
  if [ $status -ne 0 ] && { [ "$how" = stop ] || [ $status -ne 3 ]; }; then
    cat check.out
    fail "qemu-img check: status $status"
  fi
  qemu-img convert -f qcow2 -O raw "$image" got.raw
  "$PYTHON_NBD" compare.py || fail "$image is not what was acknowledged"
}

# on_directory DIRECTORY KIND...: each a cluster size and, behind a comma,
# more options; -bitmap makes one.
on_directory ()
{
  local directory=$1 kind how

  shift
  for kind in "$@"; do
    for how in stop crash; do
      rm -f "$directory"/disk.*
      qemu-img create -q -f qcow2 -o "cluster_size=${kind%-bitmap}" \
        "$directory/disk.qcow2" 8M
      [ "$kind" = "${kind%-bitmap}" ] ||
        qemu-img bitmap --add -g 4k "$directory/disk.qcow2" b
      on_image "$directory/disk.qcow2" "${kind%%[,-]*}" "$how"
    done
  done
}

# A limit on the length of files, in a server of its own.
nbdkit ()
{
  ulimit -S -f 4096
  exec nbdkit "$@"
}
mkdir limited
on_directory limited 4096 65536 16384,extended_l2=on
unset -f nbdkit

# Full file systems.  Mounting needs root.
mkdir mnt
cleanup_fn sh -c '{ umount mnt; } 2>/dev/null; true'
if mount -t tmpfs -o size=4m tmpfs mnt 2>mount.err; then
  on_directory mnt 65536 "4096,data_file=$PWD/mnt/disk.data"
  umount mnt
else
  echo "left out: a full tmpfs: $(cat mount.err)"
fi
truncate -s 8M ext4.img
if mkfs.ext4 -q -F -b 1024 -N 16 ext4.img >mount.err 2>&1 &&
    mount -o loop ext4.img mnt 2>mount.err; then
  # What the file system has for its own use differs: leave 4 MiB.
  head -c "$(($(df --output=avail -B1 mnt | tail -n 1) - 4194304))" \
    /dev/zero >mnt/ballast
  on_directory mnt 4096 65536-bitmap
  umount mnt
else
  echo "left out: a full ext4: $(cat mount.err)"
fi

# A copy that shares all of its space with the original: there is space
# below its tables, but not for writing to them.  A flush failed.
# shellcheck disable=SC2016   # $uri is nbdkit's
flush_on_copy ()
{
  local free

  qemu-img create -q -f qcow2 mnt/original.qcow2 64M
  qemu-io -f qcow2 -c 'write -P 5 0 1M' mnt/original.qcow2 >/dev/null
  cp --reflink=always mnt/original.qcow2 mnt/copy.qcow2
  sync -f mnt
  free=$(df --output=avail -B1 mnt | tail -n 1)
  fallocate -l "$((free - 2097152))" mnt/ballast
  cat >flush.py <<'END'
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.trim(65536, 131072)
fd = os.open("mnt/rest", os.O_CREAT | os.O_WRONLY)
try:
    while os.write(fd, bytes(4096)):
        pass
except OSError:
    os.fsync(fd)
h.flush()
assert h.pread(65536, 131072) == bytes(65536)
END
  nbdkit -U - qcow2 mnt/copy.qcow2 --run '"$PYTHON_NBD" flush.py "$uri"'
}
truncate -s 320M xfs.img
if mkfs.xfs -q -m reflink=1 xfs.img >mount.err 2>&1 &&
    mount -o loop xfs.img mnt 2>mount.err; then
  flush_on_copy || fail "a flush on a copy that shares its space"
  umount mnt
else
  echo "left out: a full xfs: $(cat mount.err)"
fi
