#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""Images whose numbers ask for more work than a server should do.

    sparse       a file of 8 TiB, nearly all of it a hole: block status must
                 not look at each of its clusters
    same l1      200 snapshots that share one L1 table of 32 MiB: opening
                 must not read it 200 times
    bad l1       an L1 table of 4 million entries past the end of the file:
                 the log must not get a line for each
"""

import os
import struct
import subprocess
import sys

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403


def put(path, offset, data):
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(data)


def add_snapshots(path, count, entry):
    """COUNT snapshots whose common L1 table, of the largest size allowed, is
    full of ENTRY."""
    entries = 4 * M
    size = os.path.getsize(path)
    table = (size + 64 * K - 1) // (64 * K) * (64 * K)
    snapshots = b""
    for i in range(count):
        snapshots += struct.pack(">QIHHIIQII", 64 * M, entries, 2, 2, 0, 0,
                                 0, 0, 16)
        snapshots += struct.pack(">QQ", 0, M) + b"%02d" % (i % 100) * 2
        snapshots += bytes(-len(snapshots) % 8)
    put(path, table, snapshots)
    with open(path, "r+b") as f:
        f.truncate(64 * M + entries * 8)
    if entry:
        put(path, 64 * M, struct.pack(">Q", entry) * entries)
    put(path, 60, struct.pack(">IQ", count, table))


def sparse(lab):
    path = create(lab.path(), M, cluster_size=512)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q 0 64k", path],
                   check=True, stdout=subprocess.DEVNULL)
    with open(path, "r+b") as f:
        f.truncate(8 << 40)
    with lab.server(path) as server:
        handle = server.connect()
        extents = []
        handle.block_status(M, 0, lambda *a: extents.append(a) or 0)
        check(extents, "no block status")


def opens_read_only(lab, count, entry):
    path = create(lab.path(), M)
    add_snapshots(path, count, entry)
    with lab.server(path) as server:
        handle = server.connect()
        check(handle.is_read_only(), "a corrupt image can be written to")
        check(handle.pread(4096, 0) == bytes(4096), "wrong contents")
        lines = server.log().count("\n")
        check(lines < 100, "%d lines in the log", lines)


def main():
    lab = Lab()
    lab.case("sparse", sparse, lab)
    lab.case("same l1", opens_read_only, lab, 200, 0)
    lab.case("bad l1", opens_read_only, lab, 1, 1 << 44)
    lab.finish()


if __name__ == "__main__":
    main()
