# SPDX-License-Identifier: BSD-3-Clause

"""What a client does to a server.

Each function here returns a function that takes a running server and
the seconds it may take, and returns the figure and how many operations
were made, to tell the processor time of each.
"""

import itertools
import json
import os
import time

import nbd

from images import G, K, M, T, fill, run

# Each run that needs a place where nobody wrote takes the next.
places = itertools.count(1)


def fio(server, seconds, rw, bs, depth=1, size=None, jobs=1, io_size=None,
        extra=()):
    args = ["fio", "--name=bench", "--ioengine=nbd", "--uri=" + server.uri,
            "--rw=" + rw, "--bs=%d" % bs, "--iodepth=%d" % depth,
            "--size=%d" % size, "--randrepeat=1", "--norandommap",
            "--output-format=json", "--numjobs=%d" % jobs,
            "--group_reporting", "--refill_buffers=0"] + list(extra)
    if io_size:
        args.append("--io_size=%d" % io_size)
    else:
        args += ["--time_based", "--runtime=%dms" % (seconds * 1000)]
    out = run(*args, cwd=os.path.dirname(server.socket))
    job = json.loads(out[out.index("{"):])["jobs"][0]
    ios = job["read"]["total_ios"] + job["write"]["total_ios"]
    return job["read"]["iops"] + job["write"]["iops"], ios


def rate(rw, bs, **more):
    return lambda server, seconds: fio(server, seconds, rw, bs, **more)


def flushed(every, jobs, size=64 * M):
    return rate("randwrite", 4 * K, size=size, jobs=jobs,
                extra=["--fsync=%d" % every, "--offset_increment=%d" % size])


def elsewhere(rw, bs, **more):
    """Where no run before has been; raw files end before 15 TiB."""
    def go(server, seconds):
        at = next(places) % 200 * 64 * G + 1 * T
        return fio(server, seconds, rw, bs,
                   extra=["--offset=%d" % at], **more)
    return go


def whole_disk(call, step=2 * G):
    """Seconds to zero or trim the whole disk, STEP in each request."""
    def go(server, seconds):
        handle = server.held
        size, count = handle.get_size(), 0
        start = time.monotonic()
        for at in range(0, size, step):
            getattr(handle, call)(min(step, size - at), at)
            count += 1
        handle.flush()
        return time.monotonic() - start, count
    return go


def copy_out(server, seconds):
    start = time.monotonic()
    run("nbdcopy", server.uri, "null:")
    return time.monotonic() - start, 1


def copy_in(server, seconds):
    source = os.path.join(os.path.dirname(server.socket), "copy-source")
    if not os.path.exists(source):
        fill(source, 1 * G)
        os.sync()
    start = time.monotonic()
    run("nbdcopy", "--flush", source, server.uri)
    return time.monotonic() - start, 1


def opening(server, seconds):
    """From the start of the server to the first answer."""
    handle = nbd.NBD()
    handle.connect_uri(server.uri)
    handle.pread(4 * K, 0)
    took = time.monotonic() - server.started
    handle.shutdown()
    return took, 1


opening.alone = True            # no connection of ours before this one
