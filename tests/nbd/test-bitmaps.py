#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""Persistent dirty bitmaps: every write is noted, and what is noted is what
QEMU reads from the image afterwards; after a kill QEMU calls them
inconsistent, and so do we.

QEMU is the oracle: qemu-nbd -B shows what is dirty in the image, qemu-img
makes, changes, merges and removes bitmaps, and checks the image.

    test-bitmaps.py [--only NAME]     QCOW2_BITMAP_ROUNDS=N for more writes
"""

import os
import random
import shutil
import struct
import sys

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403
from bitmaplab import *                                 # noqa: E402,F403
from qcow2parse import Qcow2                            # noqa: E402

ROUNDS = int(os.environ.get("QCOW2_BITMAP_ROUNDS", "25"))
IN_USE, AUTO, COMPATIBLE = 1, 2, 4


# Guests at work.

def work(handle, rng, size, count):
    """Random requests; returns where they were."""
    touched = []
    for _ in range(count):
        kind = rng.randrange(6)
        length = 512 * rng.randint(1, rng.choice((2, 40, 600)))
        offset = 512 * rng.randrange((size - length) // 512)
        if rng.randrange(8) == 0:               # not aligned
            offset, length = offset + 7, length - 9
        fua = nbd.CMD_FLAG_FUA if rng.randrange(8) == 0 else 0
        if kind < 3:
            handle.pwrite(bytes([rng.randrange(256)]) * length, offset, fua)
        elif kind < 5:
            handle.zero(length, offset, fua |
                        (nbd.CMD_FLAG_NO_HOLE if kind == 3 else 0))
        else:
            handle.trim(length, offset, fua)
        touched.append((offset, length))
        if rng.randrange(10) == 0:
            handle.flush()
    return touched


def tracked(lab, size, options, granularities, backing=False):
    """Random requests in three servings; before, between and after them
    QEMU's own."""
    rng = random.Random(repr((size, options)))
    if backing:
        lower = create(lab.path(), size)
        qemu_io(lower, "write -P 77 0 %d" % (size // 2))
        path = create(lab.path(), size, backing=lower,
                      backing_format="qcow2", **options)
    else:
        path = create(lab.path(), size, **options)
    for g in granularities:
        qemu_img("bitmap", "--add", "-g", g, path, "g%d" % g)
    qemu_img("bitmap", "--add", "-g", granularities[0], path, "frozen")
    touched = [(size // 3 // 512 * 512, 70000)]
    qemu_io(path, "write -P 3 %d %d" % touched[0])
    qemu_img("bitmap", "--disable", path, "frozen")
    frozen = grains(touched, granularities[0])
    for serving in range(3):
        params = {"detect-zeroes": "unmap"} if serving == 1 else {}
        with lab.server(path, **params) as server:
            if serving == 2:            # only looked at
                server.connect().pread(512, 0)
            else:
                touched += work(server.connect(), rng, size, ROUNDS)
            for g in granularities:
                check(our_dirty(server, "g%d" % g, g) == grains(touched, g),
                      "our export of granularity %d is wrong", g)
        expect_clean(path)
        check(bitmap_info(path) == dict(
            [("g%d" % g, {"auto"}) for g in granularities] +
            [("frozen", set())]), "the bitmaps are %s", bitmap_info(path))
        for g in granularities:
            check(qemu_dirty(path, "g%d" % g, g) == grains(touched, g),
                  "QEMU reads another bitmap of granularity %d", g)
        check(qemu_dirty(path, "frozen", granularities[0]) == frozen,
              "the disabled bitmap has changed")
        if serving == 0:
            touched.append((1024, 512))
            qemu_io(path, "write -P 4 1024 512")
    # And nothing is left of them when they are gone.
    for name in bitmap_info(path):
        qemu_img("bitmap", "--remove", path, name)
    expect_clean(path)


def entries_without_data(lab):
    """What is all dirty, or all clean, takes no cluster of data."""
    path = create(lab.path(), 4 * M + 512, cluster_size=512)
    qemu_img("bitmap", "--add", "-g", "512", path, "b0")
    with lab.server(path) as server:
        server.connect().zero(4 * M + 512, 0)
    with Qcow2(path) as image:
        b0 = image.bitmaps()[0]
        check(image.table(b0["table"], b0["entries"]) == [1, 1, 1],
              "the table is %s", image.table(b0["table"], b0["entries"]))
    check(qemu_dirty(path, "b0", 512) == set(range(8193)),
          "QEMU reads another bitmap")
    qemu_img("bitmap", "--clear", path, "b0")
    with lab.server(path) as server:
        server.connect().pwrite(b"x", 3 * M)
    with Qcow2(path) as image:
        b0 = image.bitmaps()[0]
        table = image.table(b0["table"], b0["entries"])
        check(table[0] == 0 and table[1] > 1 and table[2] == 0,
              "the table is %s", table)
    # Where no bit changes the table stays.
    with lab.server(path) as server:
        server.connect().pwrite(b"y", 3 * M + 5)
    with Qcow2(path) as image:
        check(image.bitmaps()[0]["table"] == b0["table"],
              "the table was written for nothing")
    expect_clean(path)


def killed(lab):
    path = create(lab.path(), 16 * M)
    qemu_img("bitmap", "--add", "-g", "64k", path, "b0")
    qemu_img("bitmap", "--add", "-g", "64k", "--disable", path, "b1")
    with open(path, "rb") as f:
        before = f.read()
    server = lab.server(path)
    server.connect().pread(512, 0)
    server.kill()
    with open(path, "rb") as f:
        check(f.read() == before, "a reader changed the image")

    server = lab.server(path)
    server.connect().pwrite(b"x" * 512, 1 * M)
    server.kill()
    check(bitmap_info(path) == {"b0": {"in-use", "auto"}, "b1": set()},
          "after a kill the bitmaps are %s", bitmap_info(path))
    expect_clean(path, leaks_allowed=True)
    done = run("qemu-nbd", "-r", "-f", "qcow2", "-B", "b0", "-k",
               os.path.join(lab.folder, "none"), path, ok=None)
    check(done.returncode != 0 and "nconsistent" in done.stderr,
          "QEMU serves the bitmap: %s", done.stderr)
    # The next server leaves it so, and the other one works on.
    with lab.server(path) as server:
        check("'b0'" in server.log() and "inconsistent" in server.log(),
              "nothing was said")
        check(server.exports() == ["", "bitmap:b1"], "exports are %s",
              server.exports())
        try:
            server.connect("bitmap:b0")
            raise Failure("the lost bitmap is served")
        except nbd.Error:
            pass
        server.connect().pwrite(b"y" * 512, 2 * M)
        check(our_dirty(server, "b1", 64 * K) == set(), "b1 has changed")
    check(bitmap_info(path) == {"b0": {"in-use", "auto"}, "b1": set()},
          "the lost bitmap came back: %s", bitmap_info(path))
    qemu_img("bitmap", "--remove", path, "b0")
    qemu_img("bitmap", "--add", path, "b0")
    with lab.server(path) as server:
        server.connect().pwrite(b"y" * 512, 2 * M)
    check(qemu_dirty(path, "b0", 64 * K) == {32}, "the new one is wrong")
    expect_clean(path, leaks_allowed=True)


def read_only(lab):
    path = create(lab.path(), 16 * M)
    qemu_img("bitmap", "--add", "-g", "64k", path, "b0")
    qemu_io(path, "write -P 3 1M 64k")
    with open(path, "rb") as f:
        before = f.read()
    with lab.server(path, readonly=True) as server:
        check(our_dirty(server, "b0", 64 * K) == {16}, "b0 is wrong")
        handle = server.connect("bitmap:b0")
        check(handle.pread(512, 1 * M) == b"\x03" * 512, "reads wrong")
    with open(path, "rb") as f:
        check(f.read() == before, "a reader changed the image")


def tools(lab):
    """What qemu-img does between servings."""
    path = create(lab.path(), 16 * M)
    qemu_img("bitmap", "--add", "-g", "64k", path, "b0")
    write_through = [(5 * M, 512)]
    with lab.server(path) as server:
        server.connect().pwrite(b"x" * 512, 5 * M)
    qemu_img("bitmap", "--disable", path, "b0")
    qemu_img("bitmap", "--add", "-g", "4k", path, "b1")
    with lab.server(path) as server:
        server.connect().pwrite(b"x" * 512, 9 * M)
        check(our_dirty(server, "b0", 64 * K) == grains(write_through,
                                                        64 * K),
              "a disabled bitmap notes writes")
    qemu_img("bitmap", "--enable", path, "b0")
    qemu_img("bitmap", "--merge", "b1", path, "b0")
    with lab.server(path) as server:
        server.connect().trim(64 * K, 0)
        both = {0, 80, 144}
        check(our_dirty(server, "b0", 64 * K) == both, "merged wrongly")
    check(qemu_dirty(path, "b0", 64 * K) == both, "stored wrongly")
    qemu_img("bitmap", "--clear", path, "b0")
    with lab.server(path) as server:
        check(our_dirty(server, "b0", 64 * K) == set(), "not cleared")
    expect_clean(path)


def no_space(lab):
    """No room for the bitmaps at the end: they are lost, nothing else."""
    path = create(lab.path(), 16 * M)
    qemu_img("bitmap", "--add", "-g", "512", path, "b0")
    with lab.server(path) as server:
        server.connect().pwrite(b"x" * 4 * K, 0)
    need("prlimit")
    limit = os.path.getsize(path)
    with lab.server(path, wrapper=["prlimit", "--fsize=%d" % limit]) \
            as server:
        server.connect().pwrite(b"y" * 4 * K, 4 * K)
        # All of it: the clusters that could be used again, too.
        try:
            for i in range(64):
                server.connect().pwrite(b"z" * 64 * K, 1 * M + i * 64 * K)
        except nbd.Error:
            pass
    check("lost" in server.log(), "nothing was said: %s", server.log())
    check(bitmap_info(path) == {"b0": {"in-use", "auto"}},
          "the bitmap is %s", bitmap_info(path))
    expect_clean(path)
    with lab.server(path) as server:
        check(server.connect().pread(8 * K, 0) == b"x" * 4 * K + b"y" * 4 * K,
              "data was lost, too")


def many(lab):
    """A directory of more than a cluster, and a name that is no text."""
    path = create(lab.path(), 1 * M, cluster_size=512)
    names = ["bitmap-%03d" % i for i in range(30)]
    for name in names:
        qemu_img("bitmap", "--add", "-g", "64k", path, name)
    with lab.server(path) as server:
        check(server.exports() == [""] + ["bitmap:" + n for n in names],
              "exports are %s", server.exports())
        server.connect().pwrite(b"x", 70000)
    for name in (names[0], names[-1]):
        check(qemu_dirty(path, name, 64 * K) == {1}, "%s is wrong",
              name)
    expect_clean(path)


def snapshots(lab):
    """Bitmaps are those of the active disk."""
    path = create(lab.path(), 16 * M)
    qemu_io(path, "write -P 1 0 1M")
    qemu_img("snapshot", "-c", "old", path)
    qemu_img("bitmap", "--add", "-g", "64k", path, "b0")
    with lab.server(path) as server:
        check(server.exports() == ["", "snapshot:old", "bitmap:b0"],
              "exports are %s", server.exports())
        server.connect().pwrite(b"2" * 512, 512 * K)
        old = server.connect("snapshot:old")
        new = server.connect("bitmap:b0")
        check(old.pread(512, 512 * K) == b"\1" * 512 and
              new.pread(512, 512 * K) == b"2" * 512, "reads wrong")
    check(qemu_dirty(path, "b0", 64 * K) == {8}, "b0 is wrong")
    expect_clean(path)


def repaired(lab):
    """QEMU 7.2's check -r takes the snapshots away here: it opens without
    them, and writes that header when it marks the bitmap as in use."""
    def leaky():
        path = create(lab.path(), 16 * M)
        qemu_img("snapshot", "-c", "old", path)
        qemu_img("bitmap", "--add", "-g", "64k", path, "b0")
        with Qcow2(path) as image:
            cluster = image.length() // (64 * K) + 1
            image.pwrite(bytes(64 * K), cluster * 64 * K)
            image.set_refcount(cluster, 1)
        check(image_check(path)["leaks"] == 1, "there is no leak")
        return path

    by_server, by_tool = leaky(), leaky()
    lab.server(by_server, check="leaks").stop()
    run("qcow2-overlap", "check", "--repair", "leaks", by_tool)
    for path in by_server, by_tool:
        expect_clean(path)
        check([s["name"] for s in image_info(path)["snapshots"]] == ["old"],
              "the snapshot is gone")
        check("b0" in bitmap_info(path), "the bitmap is gone")


def extra_data(lab, flags):
    """Extra data stays as it is; whether the bitmap may be used without
    knowing it is for a flag to say."""
    path = create(lab.path(), 16 * M)
    qemu_img("bitmap", "--add", "-g", "64k", path, "EXTRA-8-name")
    with Qcow2(path) as image:
        at = image.bitmaps()[0]["at"]
        image.pwrite(struct.pack(">I", flags), at + 12)
        image.pwrite(struct.pack(">HI", 4, 8), at + 18)
    usable = flags & COMPATIBLE
    with lab.server(path) as server:
        check(("bitmap:name" in server.exports()) == bool(usable),
              "exports are %s", server.exports())
        server.connect().pwrite(b"x", 1 * M)
    with Qcow2(path) as image:
        bitmap = image.bitmaps()[0]
        check(image.pread(12, bitmap["at"] + 24) == b"EXTRA-8-name",
              "the extra data has changed")
        check(bitmap["flags"] == (flags if usable or not flags & AUTO
                                  else flags | IN_USE),
              "the flags are %#x", bitmap["flags"])
        table = image.table(bitmap["table"], bitmap["entries"])
        check((table != [0]) == (flags == AUTO | COMPATIBLE),
              "the table is %s", table)


def resized(lab, sizes, cluster):
    """As the disk grows the new part is dirty; a disabled bitmap says
    nothing of it."""
    path = create(lab.path(), sizes[0], cluster_size=cluster)
    qemu_img("bitmap", "--add", "-g", "4k", path, "b0")
    qemu_img("bitmap", "--add", "-g", "4k", path, "b1")
    qemu_io(path, "write -P 1 12k 8k", "write -P 2 %d 512" % (sizes[0] - 512))
    qemu_img("bitmap", "--disable", path, "b1")
    frozen = {3, 4, (sizes[0] - 512) // 4096}
    dirty = set(frozen)
    old = sizes[0]
    for size in sizes[1:]:
        params = {"resize-shrink": "true"} if size < old else {}
        with lab.server(path, resize=size, **params):
            pass
        end = -(-size // 4096)
        dirty = {g for g in dirty if g < end}
        frozen = {g for g in frozen if g < end}
        dirty.update(range(old // 4096, end))
        check(bitmap_info(path) == {"b0": {"auto"}, "b1": set()},
              "the bitmaps are %s", bitmap_info(path))
        expect_clean(path)
        check(qemu_dirty(path, "b0", 4 * K) == dirty, "b0 is wrong")
        check(qemu_dirty(path, "b1", 4 * K) == frozen, "b1 is wrong")
        old = size


def too_large(lab):
    """What all bitmaps take in memory has an end, and what one may take on
    disk; neither takes the disk from its users."""
    path = create(lab.path(), 2 * T)
    for name in ("b0", "b1", "b2"):
        qemu_img("bitmap", "--add", "-g", "512", path, name)
    with lab.server(path) as server:
        check("'b1' is not used: all bitmaps" in server.log(),
              "nothing was said: %s", server.log())
        check(server.exports() == ["", "bitmap:b0"], "exports are %s",
              server.exports())
        server.connect().pwrite(b"x" * 512, 2 * T - 512)
        check(server.connect("bitmap:b0").pread(1, 2 * T - 1) == b"x",
              "reads wrong")
    check(bitmap_info(path) == {"b0": {"auto"}, "b1": {"in-use", "auto"},
                                "b2": {"in-use", "auto"}},
          "the bitmaps are %s", bitmap_info(path))
    for name in ("b1", "b2"):
        qemu_img("bitmap", "--remove", path, name)
    expect_clean(path)
    lab.refuses(path, "'b0' would be too large", resize=3 * T)
    check(qemu_dirty(path, "b0", 512) == {2 * T // 512 - 1}, "b0 is wrong")


def incremental(lab):
    """A full backup, and then only what has changed, with the script that
    does it for users."""
    need("nbdinfo", "nbdsh", "nbdcopy")
    script = os.path.join(HERE, "..", "..", "examples",
                          "incremental-backup.sh")
    rng = random.Random(9)
    size = 32 * M
    folder = lab.path("backups")
    restored = lab.path("raw")
    path = create(lab.path(), size)
    qemu_io(path, "write -P 1 0 8M")
    qemu_img("bitmap", "--add", "-g", "64k", path, "day0")
    with lab.server(path) as server:
        run("bash", script, "full", server.uri(), folder)
        run("bash", script, "verify", folder, server.uri())
        work(server.connect(), rng, size, 30)
        done = run("bash", script, "verify", folder, server.uri(), ok=None)
        check(done.returncode == 1 and "differ" in done.stderr,
              "a backup that is out of date passes: %s", done.stderr)
    sizes = [size, size + 64 * K, size - 64 * K]
    for day, size in enumerate(sizes):
        # From now on another bitmap notes what the next backup needs.
        qemu_img("bitmap", "--disable", path, "day%d" % day)
        qemu_img("bitmap", "--add", "-g", "64k", path, "day%d" % (day + 1))
        qemu_img("snapshot", "-c", "now", path)
        with lab.server(path) as server:
            bitmap = server.uri("bitmap:day%d" % day)
            snapshot = server.uri("snapshot:now")
            handle = server.connect()
            expected = handle.pread(size, 0)
            work(handle, rng, size, 10)         # goes on meanwhile
            handle.pwrite(b"later" * 1000, 1 * M)
            run("bash", script, "incremental", bitmap, folder, snapshot)
            run("bash", script, "verify", folder, snapshot)
        run("bash", script, "restore", folder, restored)
        with open(restored, "rb") as f:
            check(f.read() == expected, "the backup is not the disk")
        # Only what was dirty, but for the tables.
        dirty = 64 * K * len(dirty_now(lab, path, "day%d" % day))
        part = os.path.getsize("%s/%04d.qcow2" % (folder, day + 1))
        check(part <= dirty + 8 * 64 * K, "%d bytes for %d that were dirty",
              part, dirty)
        qemu_img("snapshot", "-d", "now", path)
        qemu_img("bitmap", "--remove", path, "day%d" % day)
        if day + 1 < len(sizes):
            with lab.server(path, resize=sizes[day + 1],
                            resize_shrink="true"):
                pass
    # An older one is still there.
    run("bash", script, "restore", folder, restored, "0000")
    check(os.path.getsize(restored) == sizes[0], "the first is gone")
    # A bitmap that was lost makes no backup.
    server = lab.server(path)
    server.connect().pwrite(b"x", 0)
    server.kill()
    with lab.server(path) as server:
        files = os.listdir(folder)
        done = run("bash", script, "incremental", server.uri("bitmap:day3"),
                   folder, ok=None)
        check(done.returncode == 1 and "full backup" in done.stderr,
              "there is a backup: %s", done.stderr)
        check(os.listdir(folder) == files, "something is left")
    expect_clean(path, leaks_allowed=True)


def dirty_now(lab, path, name):
    with lab.server(path, readonly=True) as server:
        return our_dirty(server, name, 64 * K)


def main():
    lab = Lab()
    need("qemu-img", "qemu-io", "qemu-nbd")
    if not lab.ours:
        skip("qemu-nbd has no exports of bitmaps")
    for size, options, granularities, backing in (
            (16 * M, {}, (64 * K, 512), False),
            (5 * M + 512, {"cluster_size": 4096}, (4096, 32768), True),
            (2 * M + 1536, {"cluster_size": 512, "refcount_bits": 64},
             (512, 65536), False),
            (16 * M, {"extended_l2": "on", "cluster_size": 65536},
             (4096, 1 * M), True),
            (10 * M, {"cluster_size": 256 * K, "refcount_bits": 1},
             (64 * K,), False)):
        lab.case("tracked %s" % options, tracked, lab, size, options,
                 granularities, backing)
    lab.case("entries without data", entries_without_data, lab)
    lab.case("killed", killed, lab)
    lab.case("read-only", read_only, lab)
    lab.case("qemu-img between", tools, lab)
    if shutil.which("prlimit") and not os.environ.get("QCOW2_VALGRIND"):
        lab.case("no space", no_space, lab)
    lab.case("many", many, lab)
    lab.case("snapshots", snapshots, lab)
    lab.case("repair keeps the snapshots", repaired, lab)
    for flags in (AUTO, AUTO | COMPATIBLE, 0, COMPATIBLE):
        lab.case("extra data, flags %d" % flags, extra_data, lab, flags)
    lab.case("resized", resized, lab, (1 * M, 20 * M, 3 * M + 512, 3 * M + K,
                                       300 * M, 2 * M), 65536)
    lab.case("resized 512", resized, lab, (1 * M, 3 * M, 2 * M, 6 * M), 512)
    if not os.environ.get("QCOW2_VALGRIND"):        # it takes 512 MiB
        lab.case("too large", too_large, lab)
    lab.case("incremental backup", incremental, lab)
    lab.finish()


if __name__ == "__main__":
    main()
