#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""Every state of an extended L2 entry's two bitmaps, and every request on it.

A subcluster is unallocated (u), zero (z) or allocated (a); the cluster has a
host cluster of its own, one shared with a snapshot, none, or is compressed.
Each cluster here begins with one pattern of three neighbours, repeated to its
end, and gets one request of each kind and alignment.  The entries are poked
into the file; what must be read afterwards is worked out from a flat model.
QEMU judges the result: check, contents and block status.
"""

import itertools
import os
import random
import sys

import nbd

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403
from qcow2parse import COPIED, OFFSET_MASK, Qcow2       # noqa: E402

CLUSTER = 32 * K
SUB = CLUSTER // 32
EIO = 5

# Requests: (offset, length) in the cluster.
RANGES = [
    (5 * SUB, SUB),                     # one subcluster
    (7 * SUB + 100, 300),               # inside of one
    (9 * SUB + 512, SUB),               # parts of two
    (0, SUB), (31 * SUB, SUB),          # the ends
    (0, CLUSTER),                       # all
    (3 * SUB - 1, 13 * SUB + 2),        # many and a bit on both sides
]
KINDS = ["write", "zero", "zero-no-hole", "trim"]
# All but one subcluster, and then that one: nothing is left.
TWICE = [(0, 31 * SUB), (31 * SUB, SUB)]


def patterns(row):
    """The bitmaps' states of three neighbours, where there is ROW."""
    if row == "compressed":
        return ["c"]
    letters = "uz" if row == "none" else "uza"
    return ["".join(p) for p in itertools.product(letters, repeat=3)]


def cases(row):
    for pattern in patterns(row):
        for kind in KINDS:
            for where in RANGES:
                yield pattern, kind, [where]
        yield pattern, "trim", TWICE
        yield pattern, "write", TWICE


def bitmap(pattern):
    allocated = sum(1 << i for i in range(32) if pattern[i % 3] == "a")
    zero = sum(1 << i for i in range(32) if pattern[i % 3] == "z")
    return zero << 32 | allocated


class Disk:
    """An image with one cluster for each case, and its model."""

    def __init__(self, lab, rows, rng, backing=True):
        self.lab, self.rows = lab, rows
        self.cases = [(row, case) for row in rows for case in cases(row)]
        self.size = len(self.cases) * CLUSTER
        self.model = bytearray(rng.randbytes(self.size) if backing
                               else bytes(self.size))
        self.base = None
        if backing:
            self.base = lab.path()
            with open(self.base, "wb") as f:
                f.write(self.model)
        self.path = create(lab.path(), self.size, self.base,
                           "raw" if backing else None, extended_l2="on",
                           cluster_size=CLUSTER, preallocation="metadata")
        self.data = rng.randbytes(CLUSTER)
        self.poke()
        if "shared" in rows:
            qemu_img("snapshot", "-c", "one", self.path)
        expect_clean(self.path)

    def poke(self):
        compressed = []
        with Qcow2(self.path) as image:
            for n, (row, (pattern, _, _)) in enumerate(self.cases):
                guest = n * CLUSTER
                entry = image.l2_entry(guest)
                check(entry & OFFSET_MASK and entry & COPIED,
                      "not preallocated")
                if row in ("none", "compressed"):
                    image.set_refcount((entry & OFFSET_MASK) // CLUSTER, 0)
                    image.set_l2_entry(guest, 0)
                else:
                    image.pwrite(self.data, entry & OFFSET_MASK)
                if row == "compressed":
                    image.put64(image.l2_slot(guest) + 8, 0)
                    compressed.append("write -c -P 99 %d %d" %
                                      (guest, CLUSTER))
                    self.model[guest:guest + CLUSTER] = b"c" * CLUSTER
                    continue
                image.put64(image.l2_slot(guest) + 8, bitmap(pattern))
                for i in range(32):
                    at = i * SUB
                    if pattern[i % 3] == "a":
                        new = self.data[at:at + SUB]
                    elif pattern[i % 3] == "z":
                        new = bytes(SUB)
                    else:
                        continue
                    self.model[guest + at:guest + at + SUB] = new
        if compressed:
            qemu_io(self.path, *compressed)

    def name(self, n):
        row, (pattern, kind, ranges) = self.cases[n]
        return "%s %s, %s %s" % (row, pattern, kind, ranges)

    def request(self, handle, n, kind, at, length):
        start = n * CLUSTER + at
        if kind == "write":
            # Not the same in two places, and never zero.
            data = bytes((start + i) % 251 + 1 for i in range(length))
            handle.pwrite(data, start)
            self.model[start:start + length] = data
        elif kind == "trim":
            handle.trim(length, start)
            unit = CLUSTER if self.cases[n][0] == "compressed" else SUB
            first = (start + unit - 1) // unit * unit
            end = (start + length) // unit * unit
            if first < end:
                self.model[first:end] = bytes(end - first)
        else:
            handle.zero(length, start, flags=nbd.CMD_FLAG_NO_HOLE
                        if kind == "zero-no-hole" else 0)
            self.model[start:start + length] = bytes(length)

    def compare(self, handle):
        for n in range(len(self.cases)):
            start = n * CLUSTER
            got = handle.pread(CLUSTER, start)
            want = self.model[start:start + CLUSTER]
            if got == want:
                continue
            at = next(i for i in range(CLUSTER) if got[i] != want[i])
            raise Failure("%s: byte %d, of subcluster %d: %#x, not %#x" % (
                self.name(n), at, at // SUB, got[at], want[at]))

    def judge(self):
        expect_clean(self.path)
        raw = self.lab.path()
        with open(raw, "wb") as f:
            f.write(self.model)
        compare(self.path, raw)

    def go(self):
        before = {name: snapshot_raw(self.path, name, self.lab.path())
                  for name in (["one"] if "shared" in self.rows else [])}
        with self.lab.server(self.path) as server:
            handle = server.connect()
            self.compare(handle)
            for n, (_, (_, kind, ranges)) in enumerate(self.cases):
                for at, length in ranges:
                    self.request(handle, n, kind, at, length)
            self.compare(handle)
            handle.flush()
            ours = whole_map(handle)
        self.judge()
        check(ours == qemu_map(self.lab, self.path) or self.same_data(ours),
              "the block status is not QEMU's")
        for name, raw in before.items():
            compare(snapshot_raw(self.path, name, self.lab.path()), raw,
                    fmt="raw")
        # And read by a server that has nothing in memory.
        with self.lab.server(self.path) as server:
            self.compare(server.connect())

    def same_data(self, ours):
        """Equal to QEMU's but for holes of the host file, which it looks
        for in images that it takes for preallocated."""
        theirs = qemu_map(self.lab, self.path)
        return flat(ours) == flat(theirs)


def flat(extents):
    """(start, end, is it a hole) with neighbours joined."""
    out = []
    for start, end, flags in extents:
        hole = flags & nbd.STATE_HOLE
        if out and out[-1][2] == hole:
            out[-1] = (out[-1][0], end, hole)
        else:
            out.append((start, end, hole))
    return out


def freed_with_the_last(lab):
    """Trimming one subcluster after the other frees the host cluster with
    the last; what has no data in it keeps its cluster."""
    path = create(lab.path(), 4 * CLUSTER, extended_l2="on",
                  cluster_size=CLUSTER)
    with lab.server(path) as server:
        handle = server.connect()
        handle.pwrite(b"x" * 2 * CLUSTER, 0)
        for i in range(32):
            handle.trim(SUB, i * SUB)
        handle.trim(SUB, CLUSTER)
    with Qcow2(path) as image:
        check(image.l2_entry(0) == 0 and
              image.l2_bitmap(0) == 0xffffffff << 32,
              "the first cluster's entry is %#x, bitmap %#x",
              image.l2_entry(0), image.l2_bitmap(0))
        check(image.l2_entry(CLUSTER) & COPIED and
              image.l2_bitmap(CLUSTER) == 1 << 32 | 0xfffffffe,
              "the second cluster's entry is %#x, bitmap %#x",
              image.l2_entry(CLUSTER), image.l2_bitmap(CLUSTER))
    expect_clean(path)


def space_comes_back(lab):
    """Of a trimmed subcluster, though its host cluster stays."""
    size = 1 * M
    path = create(lab.path(), 8 * size, extended_l2="on", cluster_size=size)
    with lab.server(path) as server:
        handle = server.connect()
        handle.pwrite(b"x" * 8 * size, 0)
        handle.flush()
        before = os.stat(path).st_blocks
        for i in range(0, 8 * 32, 2):
            handle.trim(size // 32, i * size // 32)
        handle.flush()
        after = os.stat(path).st_blocks
    with Qcow2(path) as image:
        check(image.l2_entry(0) & COPIED, "the host cluster went")
    print("%d blocks of 512 bytes, %d after the trims" % (before, after))
    check(before - after >= 4 * size // 512 - 64, "%d blocks, and then %d",
          before, after)
    expect_clean(path)


def copies_a_subcluster(lab):
    """A small write fills its subcluster, not the cluster."""
    base = lab.path()
    with open(base, "wb") as f:
        f.write(b"b" * 2 * CLUSTER)
    path = create(lab.path(), None, base, "raw", extended_l2="on",
                  cluster_size=CLUSTER)
    with lab.server(path) as server:
        server.connect().pwrite(b"x", 5 * SUB + 7)
    with Qcow2(path) as image:
        check(image.l2_bitmap(0) == 1 << 5, "the bitmap is %#x",
              image.l2_bitmap(0))
    expect_clean(path)


def invalid(lab, damage):
    """Each of the 32 places in turn: reading fails, the rest is read."""
    path = create(lab.path(), 66 * CLUSTER, extended_l2="on",
                  cluster_size=CLUSTER)
    qemu_io(path, "write -P 1 0 %d" % (64 * CLUSTER),
            "write -c -P 1 %d %d" % (64 * CLUSTER, CLUSTER))
    with Qcow2(path) as image:
        for i in range(32):
            damage(image, 2 * i * CLUSTER, i)
    with lab.server(path) as server:
        handle = server.connect()
        for i in range(32):
            for sub in (0, i, 31):
                check(errno_of(handle.pread, 1,
                               2 * i * CLUSTER + sub * SUB) == EIO,
                      "bit %d, subcluster %d could be read", i, sub)
            check(handle.pread(CLUSTER, (2 * i + 1) * CLUSTER) ==
                  b"\1" * CLUSTER, "the cluster beside cannot be read")
        check(errno_of(handle.pwrite, b"x", 65 * CLUSTER) == EIO,
              "writes go on")


def both(image, guest, i):
    image.put64(image.l2_slot(guest) + 8, 0xffffffff | 1 << 32 + i)


def no_offset(image, guest, i):
    image.set_l2_entry(guest, 0)
    image.put64(image.l2_slot(guest) + 8, 1 << i)


def on_compressed(image, guest, i):
    image.set_l2_entry(guest, image.l2_entry(64 * CLUSTER))
    image.put64(image.l2_slot(guest) + 8, 1 << i + (32 if i % 2 else 0))


def main():
    lab = Lab()
    rng = random.Random(os.environ.get("QCOW2_TEST_SEED", "32"))
    lab.case("own, none, compressed",
             lambda: Disk(lab, ["own", "none", "compressed"], rng).go())
    lab.case("no backing file",
             lambda: Disk(lab, ["own", "none"], rng, backing=False).go())
    lab.case("shared", lambda: Disk(lab, ["shared"], rng).go())
    lab.case("freed with the last", freed_with_the_last, lab)
    lab.case("space comes back", space_comes_back, lab)
    lab.case("copies a subcluster", copies_a_subcluster, lab)
    for damage in both, no_offset, on_compressed:
        lab.case("invalid: " + damage.__name__, invalid, lab, damage)
    lab.finish()


if __name__ == "__main__":
    main()
