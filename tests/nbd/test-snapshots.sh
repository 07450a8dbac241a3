#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Internal snapshots as exports: listed, read-only, with the contents and
# the block status that QEMU's tools find, with the size of their time, and
# undisturbed by what is written to the active disk at the same time.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires nbdinfo --version
requires nbdcopy --version
requires qemu-img --version
requires qemu-nbd --version
requires_python

# fill IMAGE SEED: write here and there.
fill ()
{
  local i args=()

  for i in 0 1 2 3 4 5 6 7; do
    args+=(-c "write -P $((i + $2)) $(((i * 7 + $2) * 123904)) 70000")
  done
  args+=(-c "write -z $(($2 * 300000)) 100000" -c "discard 1M 256k")
  qemu-io -f qcow2 "${args[@]}" "$1" >/dev/null
}

url ()
{
  echo "nbd+unix:///${1// /%20}?socket=$sock"
}

# expect_map IMAGE NAME: block status as qemu-nbd -l has it.
expect_map ()
{
  local pid

  nbdinfo --map "$(url "snapshot:$2")" >ours.map
  qemu-nbd -r -f qcow2 -k "$sockdir/q.sock" -l "snapshot.name=$2" "$1" \
           >qemu-nbd.log 2>&1 &
  pid=$!
  wait_for "$QCOW2_TEST_PATIENCE" test -S "$sockdir/q.sock"
  nbdinfo --map "nbd+unix:///?socket=$sockdir/q.sock" >theirs.map
  wait "$pid"
  diff -u theirs.map ours.map
}

qemu-img create -q -f qcow2 base.qcow2 9M
fill base.qcow2 3

for options in cluster_size=512,compat=1.1 cluster_size=64k,compat=1.1 \
               cluster_size=64k,compat=1.1,extended_l2=on \
               cluster_size=4k,compat=0.10 \
               cluster_size=2M,compat=1.1,refcount_bits=64; do
  echo "--- $options"
  qemu-img create -q -f qcow2 -o "$options" -b base.qcow2 -F qcow2 \
           disk.qcow2 10M
  for i in 0 1 2; do
    fill disk.qcow2 "$i"
    qemu-img snapshot -c "s $i" disk.qcow2
    qemu-img convert -O raw -l "snapshot.name=s $i" disk.qcow2 "s$i.raw"
  done
  fill disk.qcow2 5

  # Before anything is written, since qemu-nbd needs the file for itself.
  start_nbdkit a qcow2 disk.qcow2
  for i in 0 1 2; do expect_map disk.qcow2 "s $i"; done
  nbdinfo --list --json "$uri" >list
  "$PYTHON_NBD" - <<'PY'
import json
exports = json.load(open("list"))["exports"]
assert [e["export-name"] for e in exports] == \
    ["", "snapshot:s 0", "snapshot:s 1", "snapshot:s 2"], exports
for e in exports:
    assert e["export-size"] == 10 << 20
    assert e["can_multi_conn"]
    assert e["is_read_only"] == (e["export-name"] != ""), e
assert "id 2" in exports[2]["description"]
PY

  # All at the same time as a writer that changes everything, twice.
  "$PYTHON_NBD" - <<'PY'
import nbd, os
sock = os.environ["uri"].split("socket=")[1]

def connect(name):
    h = nbd.NBD()
    h.set_export_name(name)
    h.connect_unix(sock)
    return h

disk = connect("")
snaps = [connect("snapshot:s %d" % i) for i in range(3)]
snaps.append(connect("snapshot:2"))             # the ID of 's 1'
snaps.append(connect("snapshot-id:3"))
raws = [open("s%d.raw" % i, "rb").read() for i in (0, 1, 2, 1, 2)]
piece = 200000
for round in range(2):
    for at in range(0, 10 << 20, piece):
        n = min(piece, (10 << 20) - at)
        disk.pwrite(bytes([round + 65]) * n, at)
        if at % 3 == 0:
            disk.trim(n, at)
        for h, raw in zip(snaps, raws):
            assert h.pread(n, at) == raw[at:at+n], (round, at)
    disk.flush()
for h in snaps:
    assert h.is_read_only() and h.can_multi_conn()
    h.flush()
    try:
        h.pwrite(b"x", 0)
        raise SystemExit("a snapshot was written to")
    except nbd.Error:
        pass
PY
  stop_nbdkit a
  check_image disk.qcow2
  for i in 0 1 2; do
    qemu-img convert -O raw -l "snapshot.name=s $i" disk.qcow2 now.raw
    cmp "s$i.raw" now.raw
  done
done

echo "--- sizes of their own, and extra data kept"
qemu-img create -q -f qcow2 disk.qcow2 3M
qemu-io -f qcow2 -c 'write -P 1 0 3M' disk.qcow2 >/dev/null
qemu-img snapshot -c small disk.qcow2
qemu-img resize -q disk.qcow2 2G
qemu-io -f qcow2 -c 'write -P 2 1G 3M' disk.qcow2 >/dev/null
qemu-img snapshot -c large disk.qcow2
qemu-img resize -q --shrink disk.qcow2 1M
# More extra data than is known is in the entry of 'small', before the ID.
"$PYTHON_NBD" - <<'PY'
import struct
with open("disk.qcow2", "r+b") as f:
    head = f.read(104)
    at, = struct.unpack_from(">Q", head, 64)
    f.seek(at)
    table = f.read(4096)
    size, = struct.unpack_from(">I", table, 36)
    id_len, name_len = struct.unpack_from(">HH", table, 12)
    end = 40 + size + id_len + name_len
    next = (end + 7) & ~7
    fixed = bytearray(table[:40])
    struct.pack_into(">I", fixed, 36, size + 16)
    new = (bytes(fixed) + table[40:40+size] + b"EXTRA DATA KEPT." +
           table[40+size:next] + table[next:])
    f.seek(at)
    f.write(new[:4096])
PY
qemu-img snapshot -l disk.qcow2 >before
start_nbdkit b qcow2 disk.qcow2
[ "$(nbdinfo --size "$(url snapshot:small)")" = $((3 << 20)) ]
[ "$(nbdinfo --size "$(url snapshot:large)")" = $((2 << 30)) ]
[ "$(nbdinfo --size "$uri")" = $((1 << 20)) ]
nbdcopy "$(url snapshot:small)" small.raw
nbdcopy "$(url snapshot:large)" large.raw
qemu-io -f raw -c 'write -P 7 0 1M' "$uri" >/dev/null
stop_nbdkit b
check_image disk.qcow2
qemu-img snapshot -l disk.qcow2 | diff before -
grep -q 'EXTRA DATA KEPT.' disk.qcow2
for i in large small; do
  qemu-img snapshot -a $i disk.qcow2    # sets the size, too
  qemu-img compare -f qcow2 -F raw disk.qcow2 $i.raw
  [ "$(stat -c %s $i.raw)" = \
    "$(qemu-img info --output=json disk.qcow2 |
       sed -n 's/.*"virtual-size": \([0-9]*\).*/\1/p')" ]
done

echo "--- a disk size that no table can map"
qemu-img create -q -f qcow2 disk.qcow2 3M
qemu-img snapshot -c bad disk.qcow2
"$PYTHON_NBD" - <<'PY'
import struct
with open("disk.qcow2", "r+b") as f:
    at, = struct.unpack_from(">Q", f.read(104), 64)
    f.seek(at + 48)
    f.write(struct.pack(">Q", 1 << 62))
PY
start_nbdkit c qcow2 disk.qcow2
if nbdinfo "$(url snapshot:bad)"; then fail "served"; fi
grep -q "snapshot 'bad' (id 1): disk size 4611686018427387904" "$nbdkit_log"
nbdinfo --size "$uri"
stop_nbdkit c
