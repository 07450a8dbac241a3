# SPDX-License-Identifier: BSD-3-Clause

"""The workloads: an image to start from, what a client does to it, and
what is measured.

Each workload has a name, a title and a unit.  Rates are better when they
are higher, seconds when they are lower; compare.py knows which.
"""

import json
import os
import subprocess
import time

K, M, G, T = 1 << 10, 1 << 20, 1 << 30, 1 << 40


def run(*args, **kwargs):
    done = subprocess.run(args, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, **kwargs)
    if done.returncode:
        raise RuntimeError("%s: %s" % (" ".join(args), done.stderr.decode()))
    return done.stdout.decode()


# What a workload starts from.  Each function makes PATH in the layout
# asked for; a workload that changes the shape of its image gets a fresh
# one each time, the others share theirs.

def fill(path, size, compressible=False):
    """A file of SIZE bytes, none of them zero for long; its name."""
    raw = path + ".source"
    with open(raw, "wb") as f:
        for i in range(size // M):
            if compressible:
                line = b"line %8d of some text that repeats\n" % i
                f.write((line * (M // len(line) + 1))[:M // 2] +
                        os.urandom(M // 8) + bytes(M * 3 // 8))
            else:
                f.write(os.urandom(M))
    return raw


def allocated(path, layout, size=1 * G, cluster=64 * K):
    raw = fill(path, size)
    if layout == "raw":
        os.rename(raw, path)
        return
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2",
        "-o", "cluster_size=%d" % cluster, raw, path)
    os.unlink(raw)


def small_clusters(path, layout):
    allocated(path, layout, 512 * M, 4 * K)


def empty(path, layout, size=4 * G, options=""):
    run("qemu-img", "create", "-f", layout,
        *(["-o", options] if options and layout == "qcow2" else []),
        path, str(size))


def empty_1t(path, layout):
    empty(path, layout, 1 * T)


def mapped(path, layout):
    """64 GiB of which every cluster has its place; no data."""
    empty(path, layout, 64 * G, "preallocation=metadata")


def compressed(path, layout):
    raw = fill(path, 256 * M, compressible=True)
    if layout == "raw":
        os.rename(raw, path)
        return
    run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, path)
    os.unlink(raw)


def overlay(path, layout):
    """Half of it written, in stretches of 1 MiB."""
    base = path + ".base"
    allocated(base, layout, 512 * M)
    if layout == "raw":
        os.rename(base, path)
        return
    run("qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "qcow2", path)
    commands = []
    for at in range(0, 512, 2):
        commands += ["-c", "write -q %dM 1M" % at]
    run("qemu-io", "-f", "qcow2", *commands, path)


def huge(path, layout):
    """64 TiB with eight snapshots, 256 MiB of it written."""
    if layout == "raw":
        run("truncate", "-s", str(15 * T), path)
        return
    empty(path, layout, 64 * T)
    run("qemu-io", "-f", "qcow2", "-c", "write -q 0 256M", path)
    for i in range(8):
        run("qemu-img", "snapshot", "-c", "s%d" % i, path)
    run("qemu-io", "-f", "qcow2", "-c", "write -q 0 256M", path)


# What a client does.  Each returns the figure, and how many operations
# it made, for the processor time of each.

def fio(server, seconds, rw, bs, depth=1, size=None, jobs=1, io_size=None,
        extra=()):
    args = ["fio", "--name=bench", "--ioengine=nbd", "--uri=" + server.uri,
            "--rw=" + rw, "--bs=%d" % bs, "--iodepth=%d" % depth,
            "--size=%d" % size, "--randrepeat=1", "--norandommap",
            "--output-format=json", "--numjobs=%d" % jobs,
            "--group_reporting", "--buffer_compress_percentage=0",
            "--refill_buffers=0"] + list(extra)
    if io_size:
        args.append("--io_size=%d" % io_size)
    else:
        args += ["--time_based", "--runtime=%g" % seconds]
    out = run(*args, cwd=os.path.dirname(server.socket))
    job = json.loads(out[out.index("{"):])["jobs"][0]
    ios = job["read"]["total_ios"] + job["write"]["total_ios"]
    rate = job["read"]["iops"] + job["write"]["iops"]
    return rate, ios


def rate(rw, bs, **more):
    return lambda server, seconds, python: fio(server, seconds, rw, bs, **more)


def whole_disk(call):
    """Seconds to zero or trim the whole disk, 2 GiB in each request."""
    code = """
import nbd, sys
h = nbd.NBD(); h.connect_uri(sys.argv[1]); size = h.get_size()
step = 2 << 30; n = 0
for at in range(0, size, step):
    h.%s(min(step, size - at), at); n += 1
h.flush(); print(n)
""" % call

    def go(server, seconds, python):
        start = time.monotonic()
        n = int(run(python, "-c", code, server.uri))
        return time.monotonic() - start, n
    return go


def copy_out(server, seconds, python):
    start = time.monotonic()
    run("nbdcopy", server.uri, "null:")
    return time.monotonic() - start, 1


def copy_in(server, seconds, python):
    source = os.path.join(os.path.dirname(server.socket), "copy-source")
    if not os.path.exists(source):
        os.rename(fill(source, 1 * G), source)
    start = time.monotonic()
    run("nbdcopy", "--flush", source, server.uri)
    return time.monotonic() - start, 1


def opening(server, seconds, python):
    """Measured by the caller: from the start of the server to the first
    answer."""
    run("nbdinfo", "--size", server.uri)
    return time.monotonic() - server.started, 1


class Workload:
    def __init__(self, name, title, unit, image, client, fresh=False,
                 options=None, only=None):
        self.name, self.title, self.unit = name, title, unit
        self.image, self.client = image, client
        self.fresh = fresh          # each run starts from a new image
        self.options = options or {}
        self.only = only            # names of servers, None for all


def flushed(every, jobs):
    return rate("randwrite", 4 * K, size=64 * M, jobs=jobs,
                extra=["--fsync=%d" % every, "--offset_increment=64M"])


ALL = [
    Workload("randread-1", "4k random read, depth 1", "IOPS", allocated,
             rate("randread", 4 * K, size=1 * G)),
    Workload("randwrite-1", "4k random write, depth 1", "IOPS", allocated,
             rate("randwrite", 4 * K, size=1 * G)),
    Workload("randread-16", "4k random read, depth 16", "IOPS", allocated,
             rate("randread", 4 * K, depth=16, size=1 * G)),
    Workload("randwrite-16", "4k random write, depth 16", "IOPS", allocated,
             rate("randwrite", 4 * K, depth=16, size=1 * G)),
    Workload("randrw-16", "4k random read and write, depth 16", "IOPS",
             allocated, rate("randrw", 4 * K, depth=16, size=1 * G)),
    Workload("read-64k", "64k sequential read", "IOPS", allocated,
             rate("read", 64 * K, depth=16, size=1 * G)),
    Workload("write-64k", "64k sequential write", "IOPS", allocated,
             rate("write", 64 * K, depth=16, size=1 * G)),
    Workload("read-1m", "1M sequential read", "IOPS", allocated,
             rate("read", 1 * M, depth=8, size=1 * G)),
    Workload("write-1m", "1M sequential write", "IOPS", allocated,
             rate("write", 1 * M, depth=8, size=1 * G)),
    Workload("alloc-4k", "allocating 4k random write", "IOPS", empty,
             rate("randwrite", 4 * K, depth=16, size=1 * G, io_size=48 * M),
             fresh=True),
    Workload("alloc-64k", "allocating 64k sequential write", "IOPS", empty,
             rate("write", 64 * K, depth=16, size=1 * G, io_size=1 * G),
             fresh=True),
    Workload("alloc-1m", "allocating 1M sequential write", "IOPS", empty,
             rate("write", 1 * M, depth=8, size=1 * G, io_size=1 * G),
             fresh=True),
    Workload("flush-1", "4k random write in place, a flush after each", "IOPS",
             allocated, flushed(1, 1)),
    Workload("flush-32", "4k random write in place, a flush after 32", "IOPS",
             allocated, flushed(32, 1)),
    Workload("flush-1-4", "the same from 4 connections, a flush after each",
             "IOPS", allocated, flushed(1, 4)),
    Workload("alloc-flush-1", "allocating 4k write, a flush after each",
             "IOPS", empty, flushed(1, 1), fresh=True),
    Workload("alloc-flush-1-4",
             "the same from 4 connections, a flush after each", "IOPS",
             empty, flushed(1, 4), fresh=True),
    Workload("small-l2-cache", "4k random read, L2 of 8 MiB, cache of 512 KiB",
             "IOPS", mapped, rate("randread", 4 * K, depth=16, size=64 * G),
             options={"l2-cache-size": 512 * K}),
    Workload("compressed-read", "compressed image, 64k sequential read",
             "IOPS", compressed, rate("read", 64 * K, depth=4, size=256 * M)),
    Workload("compressed-hot", "compressed image, 4k random read in 4 MiB",
             "IOPS", compressed, rate("randread", 4 * K, depth=4, size=4 * M)),
    Workload("overlay", "overlay, 4k random read and write", "IOPS", overlay,
             rate("randrw", 4 * K, depth=16, size=512 * M), fresh=False,
             options={"backing": True}),
    Workload("huge-write", "64 TiB, 8 snapshots: 4k random write in place",
             "IOPS", huge, rate("randwrite", 4 * K, depth=16, size=256 * M)),
    Workload("huge-open", "64 TiB, 8 snapshots: opening", "seconds", huge,
             opening),
    Workload("small-clusters", "4 KiB clusters, 4k random write, depth 16",
             "IOPS", small_clusters,
             rate("randwrite", 4 * K, depth=16, size=512 * M)),
    Workload("zero-1t", "write zeroes of a whole 1 TiB disk", "seconds",
             empty_1t, whole_disk("zero"), fresh=True),
    Workload("trim-1t", "trim of a whole 1 TiB disk", "seconds", empty_1t,
             whole_disk("trim"), fresh=True),
    Workload("copy-out", "nbdcopy of 1 GiB out", "seconds", allocated,
             copy_out),
    Workload("copy-in", "nbdcopy of 1 GiB in, with a flush", "seconds", empty,
             copy_in, fresh=True),
]
