#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""No request may change metadata, however the image was damaged.

An image is poked so that a guest write in place, an allocation, a trim or a
zeroing would land on each kind of metadata in turn.  Each time the request
gets EIO, not a byte of the file changes except the corrupt bit, the operator
is told once, reads go on, writes stop, and the next start is read-only.
"""

import errno
import os
import shutil
import sys

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403
from qcow2parse import COPIED, TYPES, ZERO, \
    OFFSET_MASK, INCOMPAT_CORRUPT, Qcow2                # noqa: E402

CLUSTER = 4 * K
SIZE = 16 * M                   # an L2 table covers 2 MiB

# Guest addresses.  The first are mapped and may be written in place.
VICTIM = 3 * M
NEIGHBOUR = VICTIM + CLUSTER
HEALTHY = 3 * M + 8 * CLUSTER
UNALLOCATED = 3 * M + 64 * CLUSTER      # its L2 table is there
FAR = 12 * M                            # without an L2 table

BITMAP_TYPES = ("bitmap-directory", "bitmap-table", "bitmap-data")


def make_base(lab, version, bitmaps):
    path = create(lab.path(), SIZE, cluster_size=CLUSTER,
                  compat="0.10" if version == 2 else "1.1")
    qemu_io(path, "write -P 1 0 2500k", "write -P 2 3M 128k")
    qemu_img("snapshot", "-c", "one", path)
    qemu_io(path, "write -P 3 0 64k", "write -P 4 2M 64k")
    qemu_img("snapshot", "-c", "two", path)
    qemu_io(path, "write -P 5 0 32k")
    if bitmaps:
        qemu_img("bitmap", "--add", "-g", "4k", path, "b0")
    qemu_io(path, "write -P 6 2M 32k", "write -P 7 3M 128k")
    expect_clean(path)
    with Qcow2(path) as image:
        # The only free clusters shall be those that a case makes so.
        for cluster in range(image.length() // CLUSTER):
            if image.refcount(cluster) == 0:
                image.set_refcount(cluster, 1)
        for guest in (VICTIM, NEIGHBOUR, HEALTHY):
            check(image.l2_entry(guest) & COPIED, "the base is not right")
        check(image.l2_entry(UNALLOCATED) == 0 and
              image.l2_slot(UNALLOCATED) and image.l2_slot(FAR) is None,
              "the base is not right")
    return path


def target_cluster(image, kind):
    """A cluster that is of this kind of metadata alone, and owned once."""
    owned = image.metadata()
    busy = image.l2_slot(VICTIM) // CLUSTER
    for cluster in owned[kind]:
        others = [k for k in TYPES if k != kind and cluster in owned[k]]
        # Not the L2 table in use: all requests would depend on it.
        if not others and image.refcount(cluster) == 1 and cluster != busy:
            return cluster
    raise Failure("the base has no cluster that is only %s" % kind)


def changes(before, after):
    """Offsets of the bytes in which two versions of a file differ."""
    if before == after:
        return []
    length = max(len(before), len(after))
    before = before.ljust(length, b"\0")
    after = after.ljust(length, b"\0")
    found = []
    for at in range(0, length, 4096):
        if before[at:at + 4096] != after[at:at + 4096]:
            found += [i for i in range(at, min(at + 4096, length))
                      if before[i] != after[i]]
    return found


def contents(path):
    with open(path, "rb") as f:
        return f.read()


def fingers(handle, guest):
    """What the disk holds around there, at healthy places."""
    return handle.pread(16 * CLUSTER, guest)


# How the image is poked, and the request that then goes wrong.

def poke_mapping(image, cluster):
    image.set_l2_entry(VICTIM, cluster * CLUSTER | COPIED)


def poke_zero_mapping(image, cluster):
    """An allocated zero cluster: a write to it is in place too."""
    image.set_l2_entry(VICTIM, cluster * CLUSTER | COPIED | ZERO)


def poke_refcount(image, cluster):
    image.set_refcount(cluster, 0)


def write_part(handle):
    handle.pwrite(b"\xee" * 512, VICTIM + CLUSTER - 512)


def write_whole(handle):
    handle.pwrite(b"\xee" * CLUSTER, VICTIM)


def write_fua(handle):
    handle.pwrite(b"\xee" * 512, VICTIM, nbd.CMD_FLAG_FUA)


def zero_part(handle):
    handle.zero(1024, VICTIM + 512, nbd.CMD_FLAG_NO_HOLE)


def trim(handle):
    handle.trim(CLUSTER, VICTIM)


def zero_whole(handle):
    handle.zero(CLUSTER, VICTIM)


def write_new(handle):
    handle.pwrite(b"\xee" * 512, UNALLOCATED)


def write_far(handle):
    """What is allocated first here is an L2 table."""
    handle.pwrite(b"\xee" * 512, FAR)


def write_shared(handle):
    """Copy on write of a cluster that the snapshots have too."""
    handle.pwrite(b"\xee" * 512, 1 * M + 512)


# (name, poke, request, also a test of QEMU)
ATTACKS = [
    ("write", poke_mapping, write_part, True),
    ("whole", poke_mapping, write_whole, True),
    ("zeroed", poke_zero_mapping, write_whole, True),
    ("fua", poke_mapping, write_fua, True),
    ("zero", poke_mapping, zero_part, True),
    ("unmap", poke_mapping, zero_whole, False),
    ("trim", poke_mapping, trim, False),
    ("allocate", poke_refcount, write_new, True),
    # QEMU lets one L2 table take the place of another.
    ("allocate-l2", poke_refcount, write_far, False),
    ("allocate-cow", poke_refcount, write_shared, True),
]


def is_about(event, path, cluster, exact):
    data = event["data"]
    check(data.get("fatal") is True, "not fatal: %s", event)
    check(os.path.basename(data.get("image", data.get("device", ""))) ==
          os.path.basename(path), "of which image? %s", event)
    check(data.get("msg"), "no message: %s", event)
    if exact:
        check(cluster * CLUSTER <= data["offset"] and
              data["offset"] + data["size"] <= (cluster + 1) * CLUSTER,
              "the event is about %s, not the cluster at %d", event,
              cluster * CLUSTER)


def refused(server, handle, request, before_reads):
    """The request fails, then all that writes; all that reads goes on."""
    lab = server.lab
    first = errno_of(request, handle)
    check(first == errno.EIO, "the request got %s, not EIO",
          os.strerror(first))
    if not lab.ours:
        return
    check(errno_of(request, handle) == errno.EIO, "the second got no EIO")
    for call, args in ((handle.pwrite, (b"1" * 512, HEALTHY)),
                       (handle.pwrite, (b"1" * 512, FAR + 2 * M)),
                       (handle.zero, (CLUSTER, HEALTHY)),
                       (handle.trim, (CLUSTER, HEALTHY))):
        got = errno_of(call, *args)
        check(got == errno.EIO, "%s after the corruption: %s",
              call.__name__, os.strerror(got))
    check(fingers(handle, HEALTHY) == before_reads, "reads have changed")
    # Nothing that was acknowledged is missing on disk.
    handle.flush()
    other = server.connect()
    check(fingers(other, HEALTHY) == before_reads, "reads have changed")
    check(errno_of(other.pwrite, b"1" * 512, HEALTHY) in
          (errno.EIO, errno.EPERM), "another connection may write")
    events = server.wait_events("BLOCK_IMAGE_CORRUPTED")
    check(len(events) == 1, "%d events: %s", len(events), events)
    told = [line for line in server.log().splitlines()
            if "BLOCK_IMAGE_CORRUPTED" in line]
    check(len(told) == 1, "told %d times in the log: %s", len(told),
          server.log())


def attack(lab, base, version, kind, poke, request):
    path = lab.path()
    shutil.copyfile(base, path)
    with Qcow2(path) as image:
        cluster = target_cluster(image, kind)
        poke(image, cluster)
    before = contents(path)
    params = {} if lab.ours else {"overlap-check": "all"}
    with lab.server(path, **params) as server:
        handle = server.connect()
        check(not handle.is_read_only(), "served read-only: %s",
              server.log())
        reads = fingers(handle, HEALTHY)
        refused(server, handle, request, reads)
        events = server.events("BLOCK_IMAGE_CORRUPTED")
        if lab.ours:
            # In version 2 a zero flag alone is corruption already.
            is_about(events[0], path, cluster,
                     version == 3 or poke != poke_zero_mapping)
    changed = changes(before, contents(path))
    allowed = set()
    if version == 3:
        allowed.update(range(72, 80))
    if kind in BITMAP_TYPES:
        # Before the first write is tried they are marked in use.
        with Qcow2(path) as image:
            for bitmap in image.bitmaps():
                allowed.update(range(bitmap["at"] + 12, bitmap["at"] + 16))
    check(set(changed) <= allowed, "%d bytes of the file have changed, "
          "at %s", len(changed), changed[:20])
    afterwards(lab, path, version, request, reads)
    os.unlink(path)


def afterwards(lab, path, version, request, reads):
    """The next start."""
    with Qcow2(path) as image:
        marked = bool(image.incompatible & INCOMPAT_CORRUPT)
    check(marked == (version == 3), "the corrupt bit is %s", marked)
    if not lab.ours:
        return
    before = contents(path)
    with lab.server(path) as server:
        handle = server.connect()
        check(fingers(handle, HEALTHY) == reads, "reads have changed")
        if version == 3:
            check(handle.is_read_only(), "served read-write again")
        else:
            check(errno_of(request, handle) == errno.EIO,
                  "not refused again")
    check(contents(path) == before, "the file has changed")


def earlier_writes(lab, base, version):
    """What was acknowledged before the corruption was met is on disk if
    the flush says so; and the flush must not lie."""
    path = lab.path()
    shutil.copyfile(base, path)
    with Qcow2(path) as image:
        poke_mapping(image, target_cluster(image, "active-l2"))
    server = lab.server(path)
    handle = server.connect()
    writes = [(HEALTHY, b"a" * 5000), (UNALLOCATED, b"b" * 5000),
              (FAR, b"c" * CLUSTER), (1 * M, b"d" * 512)]
    for offset, data in writes:
        handle.pwrite(data, offset)
    check(errno_of(write_part, handle) == errno.EIO, "not refused")
    for offset, data in writes:
        check(handle.pread(len(data), offset) == data,
              "an acknowledged write is gone")
    durable = errno_of(handle.flush)
    check(durable in (0, errno.EIO), "flush: %s", os.strerror(durable))
    server.kill()
    if durable == 0:
        raw = lab.path()
        qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
        disk = contents(raw)
        for offset, data in writes:
            check(disk[offset:offset + len(data)] == data,
                  "flush succeeded, the write at %d is not on disk", offset)
        os.unlink(raw)


def among_others(lab, base):
    """The damaged cluster is in the middle of a long request: the request
    fails, and whatever became of the rest, no metadata was hit."""
    path = lab.path()
    shutil.copyfile(base, path)
    with Qcow2(path) as image:
        cluster = target_cluster(image, "refcount-block")
        poke_mapping(image, cluster)
        before = image.metadata()
    with lab.server(path) as server:
        handle = server.connect()
        check(errno_of(handle.pwrite, b"\xee" * 32 * CLUSTER,
                       VICTIM - 16 * CLUSTER) == errno.EIO, "not refused")
        check(len(server.wait_events("BLOCK_IMAGE_CORRUPTED")) == 1,
              "not one event")
    with Qcow2(path) as image:
        check(image.metadata()["refcount-block"] == before["refcount-block"],
              "refcount blocks have moved")
        check(b"\xee" * 512 not in image.pread(CLUSTER, cluster * CLUSTER),
              "the refcount block was written")
        # Healed, the image is whole, but for what the poke lost.
        image.put64(72, 0)
        image.set_l2_entry(VICTIM, 0)
    expect_clean(path, leaks_allowed=True)


def switched_off(lab, base, kind, params):
    """Without the check the request is the guest's own business."""
    path = lab.path()
    shutil.copyfile(base, path)
    with Qcow2(path) as image:
        cluster = target_cluster(image, kind)
        poke_mapping(image, cluster)
    with lab.server(path, **params) as server:
        handle = server.connect()
        got = errno_of(write_part, handle)
        check(got == 0, "refused with %s: %s", os.strerror(got),
              server.log())
        handle.pwrite(b"1" * 512, HEALTHY)
        check(handle.pread(512, HEALTHY) == b"1" * 512, "not written")
        check(not server.events("BLOCK_IMAGE_CORRUPTED"), "an event")
        handle.flush()
        # At the end a bitmap directory moves.
        with Qcow2(path) as image:
            check(image.pread(512, (cluster + 1) * CLUSTER - 512) ==
                  b"\xee" * 512, "the write went elsewhere")
        server.disconnect()
    with Qcow2(path) as image:
        check(not image.incompatible & INCOMPAT_CORRUPT, "marked corrupt")
    os.unlink(path)


def others_still_on(lab, base, kind, off):
    """Switching one type off leaves the others guarded."""
    path = lab.path()
    shutil.copyfile(base, path)
    with Qcow2(path) as image:
        poke_mapping(image, target_cluster(image, kind))
    with lab.server(path, **{"overlap-check." + off: "off"}) as server:
        check(errno_of(write_part, server.connect()) == errno.EIO,
              "not refused")
    os.unlink(path)


def mapped_to_header(lab, base):
    """Offset 0 with the COPIED flag: whatever becomes of the request, the
    header's cluster stays."""
    path = lab.path()
    shutil.copyfile(base, path)
    with Qcow2(path) as image:
        image.set_l2_entry(VICTIM, COPIED)
        before = image.pread(CLUSTER, 0)
    with lab.server(path) as server:
        handle = server.connect()
        for request in (write_part, write_whole, zero_part, trim):
            check(errno_of(request, handle) in (0, errno.EIO, errno.EPERM),
                  "a strange error")
        handle.pread(CLUSTER, HEALTHY)
    with Qcow2(path) as image:
        changed = changes(before, image.pread(CLUSTER, 0))
        check(set(changed) <= set(range(72, 80)), "bytes changed: %s",
              changed)
        check(image.refcount(0) == 1, "the header's refcount has changed")
    os.unlink(path)


def owned_twice(lab, base, poke, **params):
    """Two kinds of metadata in one cluster: seen at open, and served
    read-only without touching the file."""
    path = lab.path()
    shutil.copyfile(base, path)
    with Qcow2(path) as image:
        poke(image)
    before = contents(path)
    with lab.server(path, **params) as server:
        handle = server.connect()
        check(handle.is_read_only(), "served read-write")
        check(len(server.wait_events("BLOCK_IMAGE_CORRUPTED")) >= 1,
              "no event")
        check(handle.pread(CLUSTER, HEALTHY) == b"\x07" * CLUSTER,
              "healthy parts cannot be read")
    changed = changes(before, contents(path))
    check(set(changed) <= set(range(72, 80)), "bytes changed: %s",
          changed[:20])
    os.unlink(path)


def l1_entry_to(kind):
    def poke(image):
        cluster = image.metadata()[kind][0]
        image.put64(image.l1_slot(FAR), cluster * CLUSTER | COPIED)
    return poke


def l2_used_twice(image):
    table = image.l2_slot(VICTIM) // CLUSTER * CLUSTER
    image.put64(image.l1_slot(FAR), table | COPIED)


def refcount_block_is_l1(image):
    # The entry of a range that the file does not reach.
    image.put64(image.rt_offset + 8 * 100, image.l1_offset)


def snapshot_l1_is_active(image):
    image.put64(image.snapshots_offset, image.l1_offset)


def snapshot_table_is_l2(image):
    # All its entries are read from there, so copy them.
    table = image.pread(CLUSTER, image.snapshots_offset)
    target = target_cluster(image, "inactive-l2")
    image.pwrite(table, target * CLUSTER)
    image.put64(64, target * CLUSTER)


def main():
    lab = Lab()
    for version in (3, 2):
        plain = make_base(lab, version, False)
        bitmaps = make_base(lab, version, True) if version == 3 else None
        for kind in TYPES:
            of_bitmaps = kind in BITMAP_TYPES
            if of_bitmaps and (version == 2 or not lab.ours):
                continue
            for name, poke, request, for_qemu in ATTACKS:
                # A mapping to offset 0 is no mapping.
                if kind == "main-header" and poke != poke_refcount:
                    continue
                if lab.ours or for_qemu:
                    lab.case("v%d %s %s" % (version, kind, name), attack,
                             lab, bitmaps if of_bitmaps else plain,
                             version, kind, poke, request)
        lab.case("v%d mapped to the header" % version, mapped_to_header, lab,
                 plain)
        if not lab.ours:
            continue
        lab.case("v%d among others" % version, among_others, lab, plain)
        lab.case("v%d earlier writes" % version, earlier_writes, lab, plain,
                 version)
        for kind in TYPES:
            if kind in BITMAP_TYPES and version == 2:
                continue
            if kind == "main-header":
                continue
            base = bitmaps if kind in BITMAP_TYPES else plain
            lab.case("v%d %s none" % (version, kind), switched_off, lab,
                     base, kind, {"overlap-check": "none"})
            lab.case("v%d %s off" % (version, kind), switched_off, lab, base,
                     kind, {"overlap-check." + kind: "off"})
        for kind in TYPES[1:8]:
            off = "active-l2" if kind != "active-l2" else "inactive-l2"
            lab.case("v%d %s on" % (version, kind), others_still_on, lab,
                     plain, kind, off)
        for name, poke in (("l1", l1_entry_to("active-l1")),
                           ("refcount table", l1_entry_to("refcount-table")),
                           ("refcount block", l1_entry_to("refcount-block")),
                           ("snapshot table", l1_entry_to("snapshot-table")),
                           ("inactive l1", l1_entry_to("inactive-l1")),
                           ("another", l2_used_twice)):
            lab.case("v%d L2 table is %s" % (version, name), owned_twice,
                     lab, plain, poke)
        lab.case("v%d refcount block is l1" % version, owned_twice, lab,
                 plain, refcount_block_is_l1)
        lab.case("v%d snapshot's l1 is active l1" % version, owned_twice,
                 lab, plain, snapshot_l1_is_active)
        lab.case("v%d snapshot table is l2" % version, owned_twice, lab,
                 plain, snapshot_table_is_l2)
    lab.finish()


if __name__ == "__main__":
    main()
