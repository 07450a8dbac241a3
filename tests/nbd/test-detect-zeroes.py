#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""detect-zeroes: zeroes that are written take no space, or give it back, and
the disk reads as if they had been written."""

import random
import sys

import nbd

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403
from qcow2parse import OFFSET_MASK, Qcow2               # noqa: E402

SIZE = 8 * M + 512
IMAGES = {
    "64k": {}, "4k": {"cluster_size": 4 * K},
    "subclusters": {"extended_l2": "on", "cluster_size": 32 * K},
    "v2": {"compat": "0.10", "cluster_size": 4 * K},
}


def patchy(rng, length, unit):
    """Data with holes of zeroes of all sizes and alignments."""
    data = bytearray(rng.randbytes(length))
    for _ in range(rng.randrange(6)):
        at = rng.randrange(length)
        if rng.random() < 0.6:
            at = at // unit * unit
        n = rng.choice((1, 100, 512, unit, 3 * unit, length))
        data[at:at + n] = bytes(len(data[at:at + n]))
    return bytes(data)


def reads_as_written(lab, options, mode, backing):
    rng = random.Random("%s %s %s" % (options, mode, backing))
    unit = options.get("cluster_size", 64 * K)
    base = None
    model = bytearray(SIZE)
    if backing:
        base = lab.path()
        model[:3 * M] = rng.randbytes(3 * M)
        with open(base, "wb") as f:
            f.write(model[:3 * M])
    path = create(lab.path(), SIZE, base, "raw" if base else None, **options)
    with lab.server(path, detect_zeroes=mode) as server:
        handle = server.connect()
        for _ in range(60):
            at = rng.randrange(SIZE)
            if rng.random() < 0.5:
                at = at // unit * unit
            data = patchy(rng, min(rng.choice((512, unit, 400000)),
                                   SIZE - at), unit)
            handle.pwrite(data, at, flags=rng.choice((0, 0, nbd.CMD_FLAG_FUA)))
            model[at:at + len(data)] = data
        got = handle.pread(SIZE, 0)
        if got != model:
            raise Failure("the disk differs at %d" % next(
                i for i in range(SIZE) if got[i] != model[i]))
    expect_clean(path)
    raw = lab.path()
    with open(raw, "wb") as f:
        f.write(model)
    compare(path, raw)


def hosts(path, *guests):
    with Qcow2(path) as image:
        return [bool(image.l2_entry(g) & OFFSET_MASK) for g in guests]


def space(lab, mode, expected):
    """Has a cluster a host cluster, which was written with zeroes when
    there was nothing; and one that was data; and one of data?"""
    path = create(lab.path(), SIZE)
    with lab.server(path, detect_zeroes=mode) as server:
        handle = server.connect()
        handle.pwrite(b"x" * 64 * K, 64 * K)
        handle.pwrite(bytes(128 * K) + b"x" * 64 * K, 0)
        check(handle.pread(192 * K, 0) == bytes(128 * K) + b"x" * 64 * K,
              "reads wrong")
    got = hosts(path, 0, 64 * K, 128 * K)
    check(got == expected, "allocated: %s, expected %s", got, expected)
    expect_clean(path)


def main():
    lab = Lab()
    for mode in "on", "unmap", "off":
        for name, options in IMAGES.items():
            for backing in False, True:
                if mode == "off" and (backing or options):
                    continue
                lab.case("%s %s%s" % (mode, name,
                                      " backing" if backing else ""),
                         reads_as_written, lab, options, mode, backing)
    lab.case("space: off", space, lab, "off", [True, True, True])
    lab.case("space: on", space, lab, "on", [False, True, True])
    lab.case("space: unmap", space, lab, "unmap", [False, False, True])
    lab.case("unmap without discard", lambda: lab.refuses(
        create(lab.path(), SIZE), "detect-zeroes", "discard",
        detect_zeroes="unmap", discard="ignore"))
    lab.finish()


if __name__ == "__main__":
    main()
