#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""resize=SIZE does what "qemu-img resize" does: the disk keeps what it
had, what is new is zero whatever was there before, and nothing is left
for qemu-img check to find."""

import os
import random
import shutil
import struct
import sys

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403
from qcow2parse import Qcow2                            # noqa: E402

SLOW = bool(os.environ.get("QCOW2_VALGRIND") or
            os.environ.get("QCOW2_SANITIZER"))

# Cluster size, other options, old and new size.
MATRIX = [
    (65536, {}, 1 * M, 2 * M),
    (65536, {}, 1 * M, 10 * G),         # the L1 table in its cluster
    (65536, {}, 1 * M, 6 * T),          # over more of them
    (65536, {"compat": "0.10"}, 100 * M, 10 * G),
    (65536, {"refcount_bits": 64}, 100 * M, 100 * M + 512),
    (4096, {"refcount_bits": 1}, 4 * M, 40 * G),
    (512, {}, 1000448, 100 * M),
    (512, {"refcount_bits": 64}, 1 * M, 60 * M),
    (2 * M, {}, 64 * M, 64 * T),
    (65536, {"extended_l2": "on"}, 1 * M, 10 * G),
    (65536, {"extended_l2": "on"}, 10 * M, 5 * M - 1024),
    (65536, {}, 10 * M, 5 * M),
    (65536, {}, 10 * M, 5 * M - 1024),
    (4096, {"compat": "0.10"}, 10 * M, 512 * 7),
    (65536, {}, 10 * M, 512),
    (65536, {}, 0, 10 * M),
    (65536, {}, 10 * M, 10 * M),
]


def filled(lab, cluster, options, size, **more):
    path = create(lab.path(), size, cluster_size=cluster, **options, **more)
    rng = random.Random(size)
    commands = []
    for _ in range(30):
        if size >= 65536:
            at = rng.randrange((size - 8192) // 512) * 512
            commands.append("write -P %d %d 8192" % (rng.randrange(1, 256),
                                                      at))
    if size >= 65536:
        commands.append("write -P 99 %d 8192" % (size - 8192))
        qemu_io(path, *commands)
    return path


def resized(lab, path, size, **more):
    # The tracker's marks are compared with the tables after each commit,
    # also while the disk is resized: a larger L1 table is marked, and was
    # not all of it counted as one.
    with lab.server(path, args=["-D", "qcow2.overlap=1"], resize=size,
                    resize_shrink="true", **more) as server:
        handle = server.connect()
        check(handle.get_size() == size, "size %d", handle.get_size())
    expect_clean(path)
    check(image_info(path)["virtual-size"] == size, "virtual size")


def as_qemu_does(lab, cluster, options, old, new):
    path = filled(lab, cluster, options, old)
    theirs = lab.path()
    shutil.copyfile(path, theirs)
    qemu_img("resize", "-q", "--shrink", theirs, str(new))
    resized(lab, path, new)
    qemu_img("compare", "-q", "-f", "qcow2", "-F", "qcow2", path, theirs)
    with lab.server(path) as server:        # and it can be used
        handle = server.connect()
        if new >= 4096:
            handle.pwrite(b"z" * 4096, new - 4096)
            handle.flush()
            check(handle.pread(4096, new - 4096) == b"z" * 4096, "read back")
    expect_clean(path)


def nothing_comes_back(lab, cluster, options):
    """What was cut off is not there when the disk has grown again."""
    path = filled(lab, cluster, options, 4 * M)
    cut = 4 * M - 8192 + 512
    resized(lab, path, cut)
    resized(lab, path, 8 * M)
    with lab.server(path) as server:
        handle = server.connect()
        check(handle.pread(512, cut - 512) == b"\x63" * 512, "kept")
        check(handle.pread(8 * M - cut, cut) == bytes(8 * M - cut),
              "what was cut off is back")


def data_file(lab, raw, cluster, extended):
    """As above, and the data file changes its length with the disk."""
    path = lab.path()
    data = path + ".data"
    options = {"data_file": data, "data_file_raw": raw,
               "extended_l2": extended}
    create(path, 4 * M, cluster_size=cluster, **options)
    qemu_io(path, "write -P 99 0 4M")
    cut = 2 * M + 512
    for size in (cut, 8 * M, 20 * G, 3 * M):
        resized(lab, path, size)
        length = os.path.getsize(data)
        check(length == size if raw == "on" else length <= size,
              "the data file has %d bytes, the disk %d", length, size)
        if raw == "on":
            compare(path, data)
    with lab.server(path) as server:
        handle = server.connect()
        check(handle.pread(cut, 0) == b"\x63" * cut, "kept")
        check(handle.pread(3 * M - cut, cut) == bytes(3 * M - cut),
              "what was cut off is back")
    if raw == "on":             # beyond the disk, but in the file
        with open(data, "r+b") as f:
            f.seek(3 * M)
            f.write(b"beyond" * 1000)
        resized(lab, path, 5 * M)
        compare(path, data)
        with open(data, "rb") as f:
            f.seek(3 * M)
            check(f.read() == bytes(2 * M), "what was beyond can be seen")


def mapped_beyond_the_end(lab):
    """As after an old savevm, or a tool that only changes the header."""
    path = filled(lab, 65536, {}, 4 * M)
    with open(path, "r+b") as f:
        f.seek(24)
        f.write(struct.pack(">Q", 1 * M + 512))
    resized(lab, path, 5 * M)
    with lab.server(path) as server:
        handle = server.connect()
        check(handle.pread(4 * M - 512, 1 * M + 512) == bytes(4 * M - 512),
              "what was mapped beyond the end can be seen")


def larger_backing_file(lab, options):
    base = lab.path("base.raw")
    with open(base, "wb") as f:
        f.write(b"b" * (6 * M + 512))
    path = lab.path()
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "raw",
             *[w for k, v in options.items() for w in
               ("-o", "%s=%s" % (k, v))], path, str(1 * M + 512))
    qemu_io(path, "write -P 1 4096 512")
    resized(lab, path, 5 * M + 1024)
    resized(lab, path, 10 * M)
    with lab.server(path) as server:
        handle = server.connect()
        check(handle.pread(M - 8192, 8192) == b"b" * (M - 8192), "backing")
        check(handle.pread(9 * M - 512, M + 512) == bytes(9 * M - 512),
              "the backing file can be seen beyond the old end")


def snapshots(lab):
    path = filled(lab, 65536, {}, 4 * M)
    raw = [lab.path(), lab.path()]
    qemu_img("snapshot", "-c", "before", path)
    qemu_img("convert", "-O", "raw", "-l", "snapshot.name=before", path,
             raw[0])
    for size in (20 * G, 1 * M, 8 * M):
        resized(lab, path, size)
        qemu_img("convert", "-O", "raw", "-l", "snapshot.name=before", path,
                 raw[1])
        with open(raw[0], "rb") as a, open(raw[1], "rb") as b:
            # QEMU gives a snapshot the size of the active disk.
            n = min(size, 4 * M)
            check(a.read(n) == b.read(n), "the snapshot changed")


def refused(lab, path, size, *texts, **more):
    with open(path, "rb") as f:
        before = f.read()
    lab.refuses(path, *texts, resize=size, **more)
    with open(path, "rb") as f:
        check(f.read() == before, "the image was changed")
    expect_clean(path)


def refusals(lab):
    old = filled(lab, 65536, {"compat": "0.10"}, 1 * M)
    qemu_img("snapshot", "-c", "s", old)
    bitmaps = filled(lab, 65536, {}, 1 * M)
    qemu_img("bitmap", "--add", bitmaps, "b0")
    with Qcow2(bitmaps) as image:
        image.pwrite(b"\x03", image.bitmaps()[0]["at"] + 15)
    tiny = filled(lab, 512, {}, 1 * M)
    plain = filled(lab, 65536, {}, 1 * M)
    return [
        ("shrink", plain, 512, ["resize-shrink=true"], {}),
        ("version 2 with snapshots", old, 2 * M, ["version 2", "snapshots"],
         {}),
        ("lost bitmap", bitmaps, 2 * M, ["'b0'", "inconsistent", "--remove"],
         {}),
        ("too large", tiny, 1 * T, ["clusters of 512 bytes"], {}),
    ]


def main():
    lab = Lab()
    need("qemu-img", "qemu-io")
    if not lab.ours:
        skip("qemu-nbd does not resize")
    for cluster, options, old, new in MATRIX[::3 if SLOW else 1]:
        lab.case("%d %s %d to %d" % (cluster, options, old, new),
                 as_qemu_does, lab, cluster, options, old, new)
    for cluster, options in ((65536, {}), (512, {}),
                             (4096, {"compat": "0.10"})):
        lab.case("nothing comes back %d %s" % (cluster, options),
                 nothing_comes_back, lab, cluster, options)
    lab.case("mapped beyond the end", mapped_beyond_the_end, lab)
    for options in ({}, {"compat": "0.10"}, {"cluster_size": 512}):
        lab.case("larger backing file %s" % options, larger_backing_file, lab,
                 options)
    lab.case("snapshots", snapshots, lab)
    for raw, cluster, extended in (("off", 65536, "off"), ("on", 65536, "off"),
                                   ("on", 4096, "off"), ("on", 16384, "on")):
        lab.case("data file %d, extended %s, raw %s" % (
            cluster, extended, raw), data_file, lab, raw, cluster, extended)
    for name, path, size, texts, more in refusals(lab):
        lab.case("refuse " + name, refused, lab, path, size, *texts, **more)
    lab.finish()


if __name__ == "__main__":
    main()
