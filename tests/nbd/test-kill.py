#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause

"""The server is ended while several clients write, zero, trim and flush: with
SIGKILL, with SIGTERM, with SIGTERM twice, or with SIGTERM when they have just
left.  After each round qemu-img check finds no corruption, and each sector
holds what the rules allow: what a request wrote that had begun, unless another
that began after it had ended is durable.  After SIGTERM every request that was
answered is durable, and nothing is leaked.

The kernel keeps what a killed process wrote.  So SIGKILL shows what a crash of
the server leaves, not what a power loss does: tests/crash is for that.

Rounds go on with the image that the last one left, and with a new one of
another kind after some.  QCOW2_KILL_ROUNDS says how many rounds end with
SIGKILL (make check-kill takes 200).
"""

import itertools
import os
import random
import signal
import struct
import threading
import time

import nbd

from bitmaplab import bitmap_info, qemu_dirty
from qcow2lab import (K, M, PATIENCE, Failure, Lab, check, create,
                      expect_clean, image_check, named, qemu_img, qemu_io)

SECTOR = 512
NEVER = 1 << 62
SLOW = bool(os.environ.get("QCOW2_VALGRIND") or
            os.environ.get("QCOW2_SANITIZER"))
ROUNDS = int(os.environ.get("QCOW2_KILL_ROUNDS", "2" if SLOW else "6"))
ROUNDS_OF_IMAGE = 6
CLIENTS = 4
BITMAP_GRAIN = 4096
SIZE = 1 * M + 3 * SECTOR

KINDS = (
    dict(cluster_size=4 * K),
    dict(cluster_size=512, refcount_bits=64),
    dict(cluster_size=16 * K, extended_l2="on"),
    dict(cluster_size=4 * K, bitmap=True),
    dict(cluster_size=64 * K, snapshot=True),
    dict(cluster_size=4 * K, encryption="luks"),
    dict(cluster_size=4 * K, compress=True),
    dict(cluster_size=4 * K, data="raw"),
    dict(cluster_size=1 * K, refcount_bits=1),
    dict(cluster_size=4 * K, backing=True),
    dict(cluster_size=4 * K, compat="0.10"),
    dict(cluster_size=4 * K, data="mapped"),
    dict(cluster_size=2 * M),
    dict(cluster_size=8 * K, snapshot=True, backing=True),
)

# How a round ends.
KILL, TERM, TERM_TWICE, LEAVE = "kill", "term", "term twice", "leave"


class Request:
    def __init__(self, number, kind, first, count, fua):
        self.number, self.kind, self.fua = number, kind, fua
        self.first, self.count = first, count
        # Sectors that have certainly changed when it has ended.
        self.effect = range(first, first + count)
        self.began, self.ended = NEVER, NEVER


class Disk:
    """What may be in each sector, as 16 bytes that fill it: who wrote it
    and where."""

    def __init__(self, kind):
        self.kind = kind
        self.cluster = kind["cluster_size"] // SECTOR
        # What a trim gives back: subclusters, if there are any.
        self.grain = self.cluster // (32 if kind.get("extended_l2") else 1)
        self.keeps_trims = not (kind.get("compat") == "0.10" and
                                kind.get("backing"))
        self.numbers = itertools.count(1)
        self.clock = itertools.count(1)
        self.killed = False
        self.initial = None
        self.requests = []

    def begin_round(self, contents):
        self.initial = contents
        self.requests = []

    def judge(self, contents, all_ended):
        """ALL_ENDED: what has ended is durable."""
        sectors = len(contents)
        floor = [0] * sectors
        zeroed = [0] * sectors
        by_number = {}
        flushed = max((r.began for r in self.requests
                       if r.kind == "flush" and r.ended < NEVER), default=0)
        for r in self.requests:
            by_number[r.number] = r
            durable = r.ended < NEVER and (
                all_ended or r.fua or r.ended < flushed)
            for s in r.effect:
                if durable:
                    floor[s] = max(floor[s], r.began)
                if r.kind in ("zero", "trim"):
                    zeroed[s] = max(zeroed[s], r.ended)
        for s, (number, offset) in enumerate(contents):
            if (number, offset) == self.initial[s] and floor[s] == 0:
                continue
            if number == 0 and offset == 0:
                good = zeroed[s] >= floor[s] and zeroed[s] > 0
            else:
                r = by_number.get(number)
                good = r is not None and r.kind == "write" and \
                    s in r.effect and offset == s * SECTOR + 1 and \
                    r.ended >= floor[s]
            check(good, "sector %d holds %d %d, at first %s, floor %d, "
                  "zeroed %d; %s", s, number, offset, self.initial[s],
                  floor[s], zeroed[s], self.history(s))

    def lost_something(self, contents):
        """Is something gone that was answered, but never promised?"""
        try:
            self.judge(contents, True)
        except Failure:
            return True
        return False

    def history(self, s):
        return ["%s %d [%d, %d]%s" % (r.kind, r.number, r.began, r.ended,
                                      " fua" if r.fua else "")
                for r in self.requests
                if s in r.effect or r.kind == "flush"]


def read_contents(path, raw):
    """The first 16 bytes of each sector, which the rest must repeat."""
    qemu_img("convert", *named(path), "-O", "raw", raw)
    return read_raw(raw)


def read_raw(raw):
    found = []
    with open(raw, "rb") as f:
        while True:
            sector = f.read(SECTOR)
            if not sector:
                break
            check(sector == sector[:16] * (SECTOR // 16),
                  "sector %d is torn, or nobody's", len(found))
            found.append(struct.unpack("<QQ", sector[:16]))
    return found


class Client(threading.Thread):
    def __init__(self, disk, server, seed):
        super().__init__()
        self.disk, self.rng = disk, random.Random(seed)
        self.handle = server.new_handle("")
        self.handle.connect_unix(server.socket)
        self.sectors = self.handle.get_size() // SECTOR
        self.leave = False
        self.problem = None

    def choose(self):
        rng, cluster = self.rng, self.disk.cluster
        kind = rng.choices(("write", "zero", "trim", "flush"),
                           (52, 15, 20, 13))[0]
        first = rng.randrange(self.sectors)
        if rng.random() < 0.5:
            first //= 8
        count = rng.choice((rng.randint(1, 8), rng.randint(1, 200),
                            cluster, 3 * cluster))
        if rng.random() < 0.5:
            first -= first % cluster
        count = min(count, self.sectors - first, 512)
        if kind == "flush":
            count = 0
        return Request(next(self.disk.numbers), kind, first, count,
                       kind != "flush" and rng.random() < 0.1)

    def send(self, r):
        offset, length = r.first * SECTOR, r.count * SECTOR
        flags = nbd.CMD_FLAG_FUA if r.fua else 0
        if r.kind == "write":
            data = b"".join(
                struct.pack("<QQ", r.number, s * SECTOR + 1) * (SECTOR // 16)
                for s in r.effect)
            self.handle.pwrite(data, offset, flags)
        elif r.kind == "zero":
            if r.number % 2:
                flags |= nbd.CMD_FLAG_NO_HOLE
            self.handle.zero(length, offset, flags)
        elif r.kind == "trim":
            grain = self.disk.grain
            end = r.first + r.count
            if end != self.sectors:
                end -= end % grain
            r.effect = range(-(-r.first // grain) * grain, end)
            if not self.disk.keeps_trims:
                r.effect = range(0)
            self.handle.trim(length, offset, flags)
        else:
            self.handle.flush()

    def run(self):
        try:
            self.work()
        except Exception as e:  # for the thread that waits for this one
            self.problem = repr(e)
            self.handle = None

    def work(self):
        while not self.leave:
            r = self.choose()
            self.disk.requests.append(r)
            r.began = next(self.disk.clock)
            try:
                self.send(r)
            except nbd.Error as e:
                # The connection is gone, or the server is about to be.
                if e.errno not in ("ENOTCONN", "ESHUTDOWN", "EPIPE", None,
                                   "ECONNRESET", "EINVAL", 0):
                    self.problem = "%s %s: %s" % (r.kind, e.errno, e)
                # nbdkit waits for those that stay.
                self.handle = None
                return
            r.ended = next(self.disk.clock)


def make_image(lab, kind):
    path, options = lab.path(), dict(kind)
    snapshot = options.pop("snapshot", False)
    bitmap = options.pop("bitmap", False)
    options.pop("compress", None)
    data = options.pop("data", None)
    if data:
        options["data_file"] = path + ".data"
        options["data_file_raw"] = "on" if data == "raw" else "off"
    if options.pop("backing", False):
        base = lab.path()
        with open(base, "wb") as f:
            f.truncate(SIZE // 4 * 3 // SECTOR * SECTOR)
        qemu_io(base, "write -q -P 9 %d %d" % (128 * K, 320 * K),
                fmt="raw")
        options.update(backing=base, backing_format="raw")
    create(path, SIZE, **options)
    if snapshot:
        qemu_io(path, "write -q -P 7 0 %d" % (SIZE // 2 // SECTOR * SECTOR))
        qemu_img("snapshot", "-c", "one", path)
    if bitmap:
        qemu_img("bitmap", "--add", "-g", BITMAP_GRAIN, path, "b")
    return path


def check_bitmap(path, disk, stopped):
    """It has noted all writes since it was made, or it says that it has
    not."""
    flags = bitmap_info(path)["b"]
    if "in-use" in flags:
        check(not stopped, "the bitmap was not stored: %s", flags)
        return
    dirty = qemu_dirty(path, "b", BITMAP_GRAIN)
    for r in disk.requests:
        for s in r.effect:
            check(r.ended == NEVER or s * SECTOR // BITMAP_GRAIN in dirty,
                  "sector %d was changed, and is clean", s)


def end_server(server, how, clients):
    with open(server.pidfile) as f:
        pid = int(f.read())
    if how == KILL:
        server.kill()
        return
    if how == LEAVE:
        for c in clients:
            c.leave = True
        for c in clients:
            c.join()
            if random.random() < 0.5:
                c.handle.shutdown()
            c.handle = None
    os.kill(pid, signal.SIGTERM)
    if how == TERM_TWICE:
        time.sleep(random.choice((0, 0.001, 0.02)))
        os.kill(pid, signal.SIGTERM)
    server.wait()
    check(server.process.returncode == 0, "the server ended with %d:\n%s",
          server.process.returncode, server.log()[-4000:])
    server.check_log()


def one_round(lab, disk, path, how, seed):
    rng = random.Random(seed)
    params = {"commit_interval": rng.choice((0, 1))}
    if rng.random() < 0.5:
        params["l2_cache_size"] = "4k"
    if disk.kind.get("compress"):
        params["compress"] = "image"
    if disk.keeps_trims is False:
        params["external_files"] = "any"
    before = image_check(path)["leaks"]
    server = lab.server(path, **params)
    clients = [Client(disk, server, seed * CLIENTS + i)
               for i in range(CLIENTS)]
    for c in clients:
        c.start()
    time.sleep(rng.uniform(0.02, 0.4) * (5 if SLOW else 1))
    end_server(server, how, clients)
    for c in clients:
        c.join(PATIENCE)
        check(not c.is_alive(), "a client hangs")
        check(c.problem is None, "%s", c.problem)
    result = expect_clean(path, leaks_allowed=True)
    if how != KILL:
        check(result["leaks"] <= before, "%d clusters leaked, %d before",
              result["leaks"], before)
    contents = read_contents(path, lab.path("raw"))
    disk.judge(contents, how != KILL)
    if disk.kind.get("bitmap"):
        check_bitmap(path, disk, how != KILL and not disk.killed)
    if disk.kind.get("data") == "raw":
        alone = read_raw(path + ".data")
        # QEMU makes it whole clusters.
        check(len(alone) >= len(contents), "the raw data file has %d sectors",
              len(alone))
        for s, (a, b) in enumerate(zip(alone, contents)):
            check(a == b, "sector %d of the raw data file holds %s, not %s; "
                  "%s", s, a, b, disk.history(s))
    disk.killed = disk.killed or how == KILL
    lab.answered += sum(r.ended < NEVER for r in disk.requests)
    if how == KILL:
        lab.leaks += result["leaks"] - before
        lab.losses += disk.lost_something(contents)
    disk.begin_round(contents)


def run_rounds(lab):
    killed = number = lab.answered = lab.leaks = lab.losses = 0
    kinds = itertools.cycle(KINDS)
    path = disk = None
    seed = int(os.environ.get("QCOW2_KILL_SEED", "1"))
    random.seed(seed)
    while killed < ROUNDS:
        for how in (KILL, KILL, TERM, KILL, TERM_TWICE, LEAVE):
            if how == KILL and killed == ROUNDS:
                continue
            if path is None or number % ROUNDS_OF_IMAGE == 0 or \
               ROUNDS < 10:
                kind = next(kinds)
                path = make_image(lab, kind)
                disk = Disk(kind)
                disk.begin_round(read_contents(path, lab.path("raw")))
            number += 1
            killed += how == KILL
            seed += 1
            try:
                one_round(lab, disk, path, how, seed)
            except Exception:
                print("round %d, %s, seed %d, %s" % (number, how, seed, kind),
                      flush=True)
                raise
    print("%d rounds, %d of them ended by SIGKILL; %d requests answered, "
          "%d clusters leaked by kills; %d kills lost what was not flushed" %
          (number, killed, lab.answered, lab.leaks, lab.losses), flush=True)
    check(lab.losses or killed < 20, "no kill ever lost anything that was not "
          "flushed: this test looks wrongly")


def main():
    lab = Lab()
    lab.case("rounds", run_rounds, lab)
    lab.finish()


if __name__ == "__main__":
    main()
