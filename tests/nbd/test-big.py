#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""Disks and requests whose sizes do not fit in 32 bits."""

import errno
import os
import sys

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403
from qcow2parse import Qcow2                            # noqa: E402

MAX_REQUEST = (1 << 32) - 512   # the largest that NBD can say, in sectors
SLOW = bool(os.environ.get("QCOW2_VALGRIND") or
            os.environ.get("QCOW2_SANITIZER"))


def disk_usage(path):
    return os.stat(path).st_blocks * 512


def memory(process):
    """Largest resident size, in bytes."""
    with open("/proc/%d/status" % process.pid) as f:
        for line in f:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    raise Failure("no VmHWM")


def processor(process):
    """How many seconds of it the process has used: whatever else the machine
    does."""
    with open("/proc/%d/stat" % process.pid) as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_quickly(lab, size, cluster):
    """Opening costs nothing that grows with the disk."""
    path = create(lab.path(), size, cluster_size=cluster)
    with lab.server(path) as server:
        handle = server.connect()
        took = processor(server.process)
        check(handle.get_size() == size, "size %d", handle.get_size())
        check(handle.pread(512, size - 512) == bytes(512), "not zeroes")
        if not SLOW:
            check(took < 1, "opening took %.2f s", took)
            if lab.ours:
                check(memory(server.process) < 300 * M, "%d MiB resident",
                      memory(server.process) // M)
    check(disk_usage(path) < 64 * M + size // cluster, "the file uses %d",
          disk_usage(path))


def far_ends(lab, size, cluster):
    path = create(lab.path(), size, cluster_size=cluster)
    places = [0, 4 * G - 256, 5 * G + 123, size // 2 - 1000,
              size - 8 * T - 5, size - 1000]
    with lab.server(path) as server:
        handle = server.connect()
        for i, at in enumerate(places):
            handle.pwrite(bytes([i + 1]) * 1000, at)
        handle.flush()
        for i, at in enumerate(places):
            check(handle.pread(1000, at) == bytes([i + 1]) * 1000,
                  "wrong data at %d", at)
            if at >= 1000:
                check(handle.pread(1000, at - 1000) == bytes(1000),
                      "wrong data before %d", at)
        if lab.ours:
            # A request past the end, as the protocol has it.
            handle.set_strict_mode(0)
            check(errno_of(handle.pwrite, b"x" * 1000, size - 500) ==
                  errno.ENOSPC, "a write over the end")
            check(errno_of(handle.pread, 1000, size - 500) == errno.EINVAL,
                  "a read over the end")
        server.disconnect()
    expect_clean(path)
    out = qemu_io(path, *["read -P %d %d 1000" % (i + 1, at)
                          for i, at in enumerate(places)])
    check("mismatch" not in out, "QEMU reads otherwise: %s", out)


def big_zero(lab, cluster, flags, backed):
    """Almost 4 GiB in one request, by metadata alone."""
    size = 10 * G
    base = None
    if backed:
        base = lab.path()
        with open(base, "wb") as f:
            f.truncate(6 * G)
            for at in (1 * G, 5 * G - M, 5 * G):
                f.seek(at)
                f.write(b"B" * M)
    path = create(lab.path(), size, cluster_size=cluster, backing=base,
                  backing_format="raw" if backed else None)
    qemu_io(path, "write -P 1 500M 2M", "write -P 2 1G 1M",
            "write -P 3 4595M 2M", "write -P 4 9G 1M")
    start = 500 * M + 1000
    with lab.server(path) as server:
        handle = server.connect()
        handle.pwrite(b"x" * 1000, 2 * G)
        begin = processor(server.process)
        handle.zero(MAX_REQUEST, start, flags)
        took = processor(server.process) - begin
        check(took < (60 if SLOW else 15) or not lab.ours, "it took %.1f s", took)
        end = start + MAX_REQUEST
        check(handle.pread(3000, start - 1000) ==
              b"\1" * 1000 + bytes(2000), "wrong data at the start")
        check(handle.pread(2000, end - 1000) ==
              bytes(1000) + b"\3" * 1000, "wrong data at the end")
        for at in (501 * M, 1 * G, 2 * G, 3 * G + 5, 4594 * M):
            check(not handle.pread(1 * M, at).strip(b"\0"),
                  "no zeroes at %d", at)
        check(handle.pread(M, 9 * G) == b"\4" * M, "too much was zeroed")
        if backed:
            check(handle.pread(M, 5 * G) == b"B" * M, "the backing file "
                  "does not shine through behind the zeroes")
        # The map agrees, past 4 GiB.
        for first, last, state in whole_map(handle):
            if first < end - cluster and last > start + cluster:
                check(state & nbd.STATE_ZERO or last <= start + cluster or
                      first >= end - cluster or flags == 0 and
                      not lab.ours, "%d to %d is %d", first, last, state)
    expect_clean(path)
    check(disk_usage(path) < 200 * M, "the file uses %d", disk_usage(path))


def big_trim(lab, cluster):
    size = 10 * G
    path = create(lab.path(), size, cluster_size=cluster)
    qemu_io(path, *["write -P %d %dM 8M" % (i + 1, i * 500)
                    for i in range(20)])
    used = disk_usage(path)
    with lab.server(path) as server:
        handle = server.connect()
        handle.trim(MAX_REQUEST, 100 * M)
        handle.flush()
        for i in range(20):
            inside = 100 * M <= i * 500 * M < 100 * M + 4 * G - 64 * M
            check(handle.pread(M, i * 500 * M) ==
                  bytes([0 if inside else i + 1]) * M,
                  "wrong data at %d MiB", i * 500)
        # What was freed is used again.
        server.disconnect()
        length = os.path.getsize(path)
        handle = server.connect()
        for i in range(1, 8):
            handle.pwrite(b"n" * 4 * M, i * 500 * M)
            handle.flush()
    expect_clean(path)
    if lab.ours:
        check(disk_usage(path) < used, "%d bytes used, before %d",
              disk_usage(path), used)
        check(os.path.getsize(path) <= length + M, "the file grew from %d "
              "to %d", length, os.path.getsize(path))


def big_status(lab):
    """Block status over more than 4 GiB, whose answers are bounded by the
    question: nbdkit 1.32 would abort on a longer one."""
    size = 64 * T
    path = create(lab.path(), size, cluster_size=2 * M)
    with lab.server(path) as server:
        handle = server.connect()
        handle.pwrite(b"x", 20 * G)
        for length in (512, M, 4 * G - 512, MAX_REQUEST):
            for at in (0, 1 * G, 30 * G, size - MAX_REQUEST - 512):
                for one in (False, True):
                    extents = block_status(handle, at, length, one)
                    total = sum(n for n, _ in extents)
                    check(0 < total, "nothing at %d", at)
                    if lab.ours:
                        check(total == length, "%d of %d bytes at %d",
                              total, length, at)
                    check(all(s == 3 for _, s in extents), "%s at %d",
                          extents, at)
        extents = block_status(handle, 18 * G, MAX_REQUEST)
        if lab.ours:
            check(extents == [(2 * G, 3), (2 * M, 0),
                              (MAX_REQUEST - 2 * G - 2 * M, 3)],
                  "around the data: %s", extents)
        check(server.alive(), "the server died")
    need("nbdinfo")
    with lab.server(path, readonly=True) as server:
        done = run("nbdinfo", "--map", "--totals",
                   server.uri()) if size < T else None
        check(done is None or done.stdout, "no map")


def holes_far_away(lab):
    """L2 tables only where needed: the far end costs one."""
    path = create(lab.path(), 64 * T, cluster_size=2 * M)
    with lab.server(path) as server:
        handle = server.connect()
        handle.pwrite(b"x", 64 * T - 1)
        handle.flush()
    with Qcow2(path) as image:
        tables = [e for e in image.active_l1() if e]
        check(len(tables) == 1, "%d L2 tables", len(tables))
    expect_clean(path)


def main():
    lab = Lab()
    for size, cluster in ((64 * T, 64 * K), (64 * T, 2 * M),
                          (16 * T, 64 * K), (40 * G, 512)):
        lab.case("open %d GiB, cluster %d" % (size // G, cluster),
                 open_quickly, lab, size, cluster)
    for size, cluster in ((64 * T, 64 * K), (64 * T, 2 * M)):
        lab.case("far ends, cluster %d" % cluster, far_ends, lab, size,
                 cluster)
    lab.case("far hole", holes_far_away, lab)
    for backed in (False, True):
        for name, flags in (("", 0), (" no hole", nbd.CMD_FLAG_NO_HOLE)):
            for cluster in (64 * K, 4 * K) if not SLOW else (64 * K,):
                lab.case("zero 4 GiB%s, cluster %d%s" % (
                    name, cluster, ", backed" if backed else ""),
                    big_zero, lab, cluster, flags, backed)
    lab.case("trim 4 GiB", big_trim, lab, 64 * K)
    lab.case("block status", big_status, lab)
    lab.finish()


if __name__ == "__main__":
    main()
