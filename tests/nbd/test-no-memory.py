#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""Each allocation of the plugin and its engine fails in turn, in a server with
all of its threads: once, or from then on (fail-allocation.c).

The server refuses to start, with an error, or serves.  A request gets ENOMEM,
EIO, or a success that is true.  If it was one failure, everything works
afterwards.  The server ends as it was told to, the image is sound, and what a
flush promised is in it; all that was acknowledged is, unless the end said that
it could not be made durable.

QCOW2_MEMORY_RUNS says how many of them fail (make check-no-memory: all).
"""

import errno
import os
import shutil
import sys

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403

LIBRARY = os.path.join(os.environ.get("top_builddir", "."), "tests", "nbd",
                       ".libs", "fail-allocation.so")
RUNS = int(os.environ.get("QCOW2_MEMORY_RUNS", "6"))
SIZE = 2 * M
BLOCK = 8 * K
MAY_FAIL = (errno.ENOMEM, errno.EIO)

KINDS = {
    "bitmap": dict(cluster_size=4 * K, bitmap=True),
    "snapshot": dict(cluster_size=16 * K, extended_l2="on", snapshot=True),
    "compress": dict(cluster_size=4 * K, compress="image"),
}


class Disk:
    """What may be in each block, for the guest and after the end: sets of
    bytes that fill it."""

    def __init__(self):
        self.now = [{0} for _ in range(SIZE // BLOCK)]
        self.durable = [{0} for _ in range(SIZE // BLOCK)]
        self.failed = 0

    def request(self, first, count, byte, call, *args, exact=True):
        """It makes the blocks BYTE, if it is done."""
        error = errno_of(call, *args)
        check(error == 0 or error in MAY_FAIL, "%s: errno %d",
              call.__name__, error)
        self.failed += error != 0
        for i in range(first, first + count):
            self.durable[i] = self.durable[i] | {byte}
            self.now[i] = {byte} if error == 0 and exact \
                else self.now[i] | {byte}
        return error

    def flush(self, handle):
        error = self.request(0, 0, 0, handle.flush)
        if error == 0:
            self.durable = [set(values) for values in self.now]

    def look(self, content, allowed):
        for i, values in enumerate(allowed):
            block = content[i * BLOCK:(i + 1) * BLOCK]
            # Of a request that failed a part may be done.
            check(set(block) <= values, "block %d holds %s, not of %s", i,
                  set(block), values)

    def read(self, handle):
        error = 0
        try:
            self.look(handle.pread(SIZE, 0), self.now)
        except nbd.Error as e:
            error = e.errnum
            check(error in MAY_FAIL, "reading: errno %d", error)
        self.failed += error != 0
        return error


def work(disk, handles):
    """Some of everything."""
    for n in range(12):
        handle = handles[n % len(handles)]
        first, byte = n * 7 % 60 * 4, n + 1
        disk.request(first, 6, byte, handle.pwrite,
                     bytes([byte]) * (6 * BLOCK), first * BLOCK)
        if n % 3 == 1:
            disk.request(first + 2, 2, 0, handle.zero, 2 * BLOCK,
                         (first + 2) * BLOCK)
        if n % 4 == 2:
            disk.request(first, 2, 0, handle.trim, 2 * BLOCK, first * BLOCK,
                         exact=False)
        if n % 5 == 3:
            disk.flush(handle)
        if n % 6 == 4:
            disk.read(handle)
            errno_of(handle.block_status, SIZE, 0, lambda *_: 0)
            errno_of(handle.cache, M, 0)


def connect(server):
    """Connections, or fewer: to open one may fail, too."""
    handles = []
    for _ in range(2):
        try:
            handles.append(server.connect())
        except nbd.Error:
            pass
    return handles


def refused(path, code, log):
    """The server has ended at the start."""
    check(code == 1, "ended with %d:\n%s", code, log)
    check("error: " in log, "no error was told:\n%s", log)
    expect_clean(path)
    os.unlink(path)
    return True


def make(lab, kind):
    options = dict(KINDS[kind])
    params = {}
    if "compress" in options:
        params["compress"] = options.pop("compress")
    bitmap, snapshot = options.pop("bitmap", 0), options.pop("snapshot", 0)
    path = create(lab.path(), SIZE, **options)
    if bitmap:
        qemu_img("bitmap", "--add", "-g", "4k", path, "b")
    if snapshot:
        qemu_io(path, "write -P 0 0 2M")
        qemu_img("snapshot", "-c", "one", path)
    return path, params


def one(lab, base, params, which, count_file):
    """One run; True if something failed that would have been seen."""
    path = lab.path()
    shutil.copyfile(base, path)
    disk = Disk()
    wrapper = ["env", "LD_PRELOAD=" + LIBRARY, "FAIL_ALLOCATION=" + which,
               "FAIL_ALLOCATION_COUNT=" + count_file]
    try:
        server = lab.server(path, wrapper=wrapper, **params)
    except StartFailure as e:
        return refused(path, e.code, e.text)
    handles = connect(server)
    if not handles and not server.alive():
        # Its threads begin when it has a pidfile already.
        server.wait()
        return refused(path, server.process.returncode, server.log())
    if handles:
        work(disk, handles)
    if not which.endswith("+"):
        # It is over.
        handles = handles or connect(server)
        check(handles, "nobody can connect")
        before = disk.failed
        work(disk, handles)
        disk.flush(handles[0])
        disk.read(handles[0])
        check(disk.failed - before <= 1, "%d requests failed after it",
              disk.failed - before)
    handles = None
    server.stop()
    raw = path + ".raw"
    expect_clean(path, leaks_allowed=True)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    with open(raw, "rb") as f:
        disk.look(f.read(), disk.durable
                  if "could not be made durable" in server.log()
                  else disk.now)
    os.unlink(path)
    os.unlink(raw)
    return disk.failed > 0


def kind(lab, name):
    base, params = make(lab, name)
    count_file = lab.path()
    one(lab, base, params, str(1 << 60), count_file)
    with open(count_file) as f:
        count = int(f.read())
    check(count > 50, "there are %d allocations only", count)
    step = max(1, count * len(KINDS) * 2 // RUNS)
    runs = seen = 0
    for at in range(0, count, step):
        for suffix in ("", "+"):
            which = "%d%s" % (at + (suffix != "") * (step // 2), suffix)
            try:
                seen += one(lab, base, params, which, count_file)
            except Exception:
                print("%s, allocation %s" % (name, which))
                raise
            runs += 1
    print("%s: %d allocations, %d runs, in %d something failed"
          % (name, count, runs, seen))
    check(seen or runs < 6, "nothing failed: this test looks wrongly")


def main():
    lab = Lab()
    if os.environ.get("QCOW2_SANITIZER") or os.environ.get("QCOW2_VALGRIND"):
        print("skipped: they have allocators of their own")
        sys.exit(77)
    need_file(LIBRARY)
    for name in KINDS:
        lab.case(name, kind, lab, name)
    lab.finish()


def need_file(name):
    check(os.path.exists(name), "%s is not built", name)


if __name__ == "__main__":
    main()
