# SPDX-License-Identifier: BSD-3-Clause

"""The workloads: an image to start from, what a client does to it, and
what is measured.  Rates are better when they are higher, seconds when
they are lower.
"""

import images as im
from clients import (copy_in, copy_out, elsewhere, flushed, opening, rate,
                     whole_disk)
from images import G, K, M


class Workload:
    def __init__(self, name, title, unit, image, client, fresh=False,
                 options=None):
        self.name, self.title, self.unit = name, title, unit
        self.image, self.client = image, client
        self.fresh = fresh          # each run starts from a new image
        self.options = options or {}


def iops(name, title, image, client, **more):
    return Workload(name, title, "IOPS", image, client, **more)


def seconds(name, title, image, client, **more):
    return Workload(name, title, "seconds", image, client, **more)


IN_PLACE = [
    iops("randread-1", "4k random read, depth 1", im.allocated,
         rate("randread", 4 * K, size=1 * G)),
    iops("randwrite-1", "4k random write, depth 1", im.allocated,
         rate("randwrite", 4 * K, size=1 * G)),
    iops("randread-16", "4k random read, depth 16", im.allocated,
         rate("randread", 4 * K, depth=16, size=1 * G)),
    iops("randwrite-16", "4k random write, depth 16", im.allocated,
         rate("randwrite", 4 * K, depth=16, size=1 * G)),
    iops("randrw-16", "4k random read and write, depth 16", im.allocated,
         rate("randrw", 4 * K, depth=16, size=1 * G)),
    iops("read-64k", "64k sequential read", im.allocated,
         rate("read", 64 * K, depth=16, size=1 * G)),
    iops("write-64k", "64k sequential write", im.allocated,
         rate("write", 64 * K, depth=16, size=1 * G)),
    iops("read-1m", "1M sequential read", im.allocated,
         rate("read", 1 * M, depth=8, size=1 * G)),
    iops("write-1m", "1M sequential write", im.allocated,
         rate("write", 1 * M, depth=8, size=1 * G)),
    iops("flush-1", "4k write in place, a flush after each", im.allocated,
         flushed(1, 1)),
    iops("flush-32", "4k write in place, a flush after 32", im.allocated,
         flushed(32, 1)),
    iops("flush-1-4", "4 connections: a flush after each", im.allocated,
         flushed(1, 4)),
    iops("flush-32-4", "4 connections: a flush after 32", im.allocated,
         flushed(32, 4)),
    seconds("copy-out", "nbdcopy of 1 GiB out", im.allocated, copy_out),
]

ALLOCATING = [
    iops("alloc-4k", "allocating 4k random write", im.empty,
         rate("randwrite", 4 * K, depth=16, size=1 * G, io_size=48 * M),
         fresh=True),
    iops("alloc-64k", "allocating 64k sequential write", im.empty,
         rate("write", 64 * K, depth=16, size=1 * G, io_size=512 * M),
         fresh=True),
    iops("alloc-1m", "allocating 1M sequential write", im.empty,
         rate("write", 1 * M, depth=8, size=1 * G, io_size=512 * M),
         fresh=True),
    iops("alloc-flush-1", "allocating 4k write, a flush after each",
         im.empty, flushed(1, 1, 1 * G), fresh=True),
    iops("alloc-flush-32", "allocating 4k write, a flush after 32",
         im.empty, flushed(32, 1, 1 * G), fresh=True),
    iops("alloc-flush-1-4", "4 connections: allocating, flush after each",
         im.empty, flushed(1, 4, 1 * G), fresh=True),
    iops("alloc-flush-32-4", "4 connections: allocating, flush after 32",
         im.empty, flushed(32, 4, 1 * G), fresh=True),
    seconds("copy-in", "nbdcopy of 1 GiB in, with a flush", im.empty,
            copy_in, fresh=True),
]

SHAPES = [
    iops("small-l2-cache", "4k random read, L2 of 8 MiB, cache 512 KiB",
         im.mapped, rate("randread", 4 * K, depth=16, size=64 * G),
         options={"l2-cache-size": 512 * K}),
    iops("compressed-read", "compressed, 64k sequential read",
         im.compressed, rate("read", 64 * K, depth=4, size=256 * M)),
    iops("compressed-hot", "compressed, 4k random read in 4 MiB",
         im.compressed, rate("randread", 4 * K, depth=4, size=4 * M)),
    iops("overlay", "overlay, half written: 4k random read, write",
         im.overlay, rate("randrw", 4 * K, depth=16, size=512 * M)),
    iops("small-clusters", "4 KiB clusters, 4k random write",
         im.small_clusters, rate("randwrite", 4 * K, depth=16,
                                 size=512 * M)),
    iops("small-clusters-alloc", "4 KiB clusters, allocating 4k write",
         im.empty_small_clusters,
         rate("randwrite", 4 * K, depth=16, size=1 * G, io_size=48 * M),
         fresh=True),
    iops("huge-read", "64 TiB, 8 snapshots: 4k random read", im.huge,
         rate("randread", 4 * K, depth=16, size=256 * M)),
    iops("huge-write", "64 TiB, 8 snapshots: 4k random write", im.huge,
         rate("randwrite", 4 * K, depth=16, size=256 * M)),
    iops("huge-alloc", "64 TiB, 8 snapshots: allocating 4k write", im.huge,
         elsewhere("randwrite", 4 * K, depth=16, size=16 * G)),
    seconds("huge-open", "64 TiB, 8 snapshots: opening", im.huge, opening),
    seconds("zero-1t", "write zeroes of a whole 1 TiB disk", im.empty_1t,
            whole_disk("zero"), fresh=True),
    seconds("trim-1t", "trim of a whole 1 TiB disk", im.empty_1t,
            whole_disk("trim"), fresh=True),
    seconds("zero-mapped", "write zeroes of 64 GiB, all mapped", im.mapped,
            whole_disk("zero"), fresh=True),
    seconds("trim-mapped", "trim of 64 GiB, all mapped", im.mapped,
            whole_disk("trim"), fresh=True),
]

# Of which a ratio near to what is usual is asked (floors.py).
CLOSE = ["randread-1", "randwrite-1", "randread-16", "randwrite-16",
         "read-64k", "write-64k", "read-1m", "write-1m", "flush-1",
         "flush-1-4", "alloc-flush-1", "alloc-flush-1-4"]

ALL = IN_PLACE + ALLOCATING + SHAPES
