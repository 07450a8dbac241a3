#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""stats=: what the file says is what was done, in the form that Prometheus
reads, whole at any moment.  The judge of the form is a parser that was
written from the format's description, and promtool where it is installed."""

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403
from qcow2parse import COPIED, Qcow2       # noqa: E402

P = "nbdkit_qcow2_"
PROMTOOL = shutil.which("promtool")
NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"'


class Stats:
    """One state of the file, parsed: .values is {(name, labels): number}."""

    def __init__(self, text):
        self.values = {}
        self.types = {}
        check(text.endswith(b"\n"), "the last line is not whole: %r",
              text[-100:])
        for line in text.decode().split("\n")[:-1]:
            self.line(line)
        check(self.types, "nothing in it")
        self.check_histograms()

    def line(self, line):
        if line.startswith("# HELP "):
            match = re.fullmatch(r"# HELP (%s) \S.*" % NAME, line)
            check(match and match[1] not in self.types, "help: %s", line)
            self.types[match[1]] = None
        elif line.startswith("#"):
            match = re.fullmatch(
                r"# TYPE (%s) (counter|gauge|histogram)" % NAME, line)
            check(match and match[1] in self.types and
                  self.types[match[1]] is None, "type: %s", line)
            self.types[match[1]] = match[2]
            check((match[2] == "counter") == match[1].endswith("_total"),
                  "the name of a counter? %s", line)
        else:
            self.sample(line)

    def sample(self, line):
        match = re.fullmatch(r"(%s)\{(%s(?:,%s)*)\} (\+Inf|[0-9.]+)" % (
            NAME, LABEL, LABEL), line)
        check(match, "not a sample: %r", line)
        metric = match[1]
        if metric not in self.types:
            metric = re.sub("_(bucket|sum|count)$", "", metric)
            check(self.types.get(metric) == "histogram", "unknown: %s", line)
        # The samples of a metric stand together, below its type.
        check(metric == list(self.types)[-1] and self.types[metric],
              "out of order: %s", line)
        labels = frozenset(re.findall(LABEL, match[2]))
        check((match[1], labels) not in self.values, "twice: %s", line)
        check("image" in dict(labels), "of which image? %s", line)
        self.values[match[1], labels] = float(match[len(match.groups())])

    def get(self, name, **labels):
        """The sum of all that have these labels."""
        found = [v for (n, have), v in self.values.items()
                 if n == P + name and set(labels.items()) <= have]
        check(found, "no %s %s", name, labels)
        return sum(found)

    def check_histograms(self):
        for (name, labels), count in self.values.items():
            if not name.endswith("_count"):
                continue
            base = name[:-len("_count")]
            buckets = sorted(
                (float(dict(have)["le"]), v)
                for (n, have), v in self.values.items()
                if n == base + "_bucket" and labels <= have)
            check(len(buckets) > 10 and buckets[-1] == (float("inf"), count),
                  "%s: buckets do not end in the count", labels)
            check(all(a[1] <= b[1] for a, b in zip(buckets, buckets[1:])),
                  "%s: buckets do not add up: %s", labels, buckets)
            total = self.values[base + "_sum", labels]
            least = sum((b[1] - a[1]) * a[0]
                        for a, b in zip(buckets, buckets[1:]))
            check(total >= least * 0.999, "%s: %s seconds, but %s in buckets",
                  labels, total, least)

    def grown_from(self, older):
        for key, was in older.values.items():
            if self.types.get(key[0]) == "counter" or \
               key[0].endswith(("_bucket", "_count", "_sum")):
                check(self.values[key] >= was, "%s fell from %s to %s", key,
                      was, self.values[key])


def read(path):
    with open(path, "rb") as f:
        text = f.read()
    if PROMTOOL:
        done = subprocess.run([PROMTOOL, "check", "metrics"], input=text,
                              capture_output=True, check=False)
        check(done.returncode == 0, "promtool: %s%s", done.stdout.decode(),
              done.stderr.decode())
    return Stats(text)


def wait_until(path, true):
    give_up = time.monotonic() + PATIENCE
    while True:
        stats = read(path)
        if true(stats):
            return stats
        check(time.monotonic() < give_up, "it never says so: %s",
              open(path).read())
        time.sleep(0.05)


def totals(lab):
    """Every request is counted once, with its bytes or its error, and the
    last word is complete."""
    path = create(lab.path(), 64 * M)
    out = lab.path()
    with lab.server(path, stats=out, stats_interval=0,
                    commit_interval=0) as server:
        handle = server.connect()
        first = read(out)
        for i in range(20):
            handle.pwrite(bytes([i + 1]) * 64 * K, i * 64 * K)
        for i in range(30):
            handle.pread(4 * K, i * 4 * K)
        handle.zero(3 * M, 0)
        handle.trim(5 * M, 0)
        handle.flush()
        handle.cache(1 * M, 0)
        block_status(handle, 0, 2 * M)
    last = read(out)
    check(first.get("serving") == 1 and last.get("serving") == 0,
          "does it serve?")
    check(not os.path.exists(out + ".tmp"), "the temporary file is left")
    for kind, count, size in (
            ("write", 20, 20 * 64 * K), ("read", 30, 30 * 4 * K),
            ("zero", 1, 3 * M), ("trim", 1, 5 * M), ("cache", 1, M),
            ("block_status", 1, 2 * M), ("flush", 1, None)):
        for name, want in (("request_duration_seconds_count", count),
                           ("request_bytes_total", size),
                           ("request_errors_total", 0),
                           ("requests_in_flight", 0)):
            if want is None:
                continue
            for stats, value in ((first, 0), (last, want)):
                got = stats.get(name, request=kind)
                check(got == value, "%s of %s: %s, not %s", name, kind, got,
                      value)
    check(last.get("disk_bytes") == 64 * M, "size of the disk")
    check(last.get("image_file_bytes") == os.path.getsize(path),
          "length of the file")
    check(last.get("clusters_allocated_total") >= 21, "allocations")
    check(last.get("clusters_released_total") >= 20, "releases")
    check(last.get("commits_total") >= 2 and last.get("syncs_total") >= 2,
          "commits and syncs")
    check(last.get("overlap_checks_total") > 20, "checks")
    check(last.get("cache_misses_total", cache="l2") == 1 and
          last.get("cache_hits_total", cache="l2") > 20, "the L2 cache")
    check(last.get("cache_misses_total", cache="refcount") == 1 and
          last.get("cache_hits_total", cache="refcount") >= 20,
          "the cache of refcounts")
    check(last.get("tracker_memory_limit_bytes") == float("inf"), "limit")
    for part in ("directory", "runs", "fixed"):
        check(0 < last.get("tracker_memory_bytes", part=part) < 64 * K,
              "memory of the tracker: %s", part)
    check(last.get("tracker_memory_bytes", part="sieve") is not None,
          "memory of the tracker: sieve")
    for name in ("image_corrupt", "sync_failed", "events_total",
                 "events_lost_total", "overlap_refusals_total",
                 "tracker_outside_ranges", "tracker_outside_clusters"):
        check(last.get(name) == 0, "%s is not 0", name)
    expect_clean(path)


def quarantine(lab):
    """What is freed and not committed is seen, and goes."""
    path = create(lab.path(), 64 * M)
    qemu_io(path, "write -q 0 10M")
    out = lab.path()
    with lab.server(path, stats=out, stats_interval=1,
                    commit_interval=0) as server:
        handle = server.connect()
        handle.trim(5 * M, 0)
        wait_until(out, lambda s: s.get("quarantined_clusters") == 80)
        check(read(out).get("clusters_released_total") == 0, "too early")
        handle.flush()
        wait_until(out, lambda s: s.get("quarantined_clusters") == 0)
        check(read(out).get("clusters_released_total") == 80, "releases")


def compressed(lab):
    """Hits and misses of the cache of unpacked clusters."""
    raw = lab.path()
    with open(raw, "wb") as f:
        f.write(b"abcd" * (16 * K) * 16)
    path = lab.path()
    qemu_img("convert", "-c", "-O", "qcow2", raw, path)
    out = lab.path()
    with lab.server(path, stats=out) as server:
        handle = server.connect()
        for i in range(16):
            handle.pread(4 * K, i * 4 * K)
    check(read(out).get("cache_misses_total", cache="decompressed") == 1,
          "misses")
    check(read(out).get("cache_hits_total", cache="decompressed") == 15,
          "hits")


def load(server, stop, errors):
    try:
        handle = server.new_handle("")
        handle.connect_unix(server.socket)
        while not stop.is_set():
            for i in range(64):
                handle.pwrite(b"x" * 4 * K, i * 4 * K)
                handle.pread(8 * K, i * 4 * K)
            handle.flush()
        handle.shutdown()
    except Exception as e:      # pylint: disable=broad-except
        errors.append(e)


def always_whole(lab):
    """Read over and over while requests run: each state is whole and
    later than the one before, and nobody writes into a file that a reader
    has open."""
    path = create(lab.path(), 64 * M)
    out = lab.path()
    stop, errors = threading.Event(), []
    with lab.server(path, stats=out, stats_interval=1) as server:
        threads = [threading.Thread(target=load, args=(server, stop, errors))
                   for _ in range(4)]
        for t in threads:
            t.start()
        last, inodes, kept = Stats(open(out, "rb").read()), set(), []
        give_up = time.monotonic() + PATIENCE
        while len(inodes) < 3 and time.monotonic() < give_up:
            f = open(out, "rb")
            text = f.read()
            stats = Stats(text)
            stats.grown_from(last)
            check(all(v < 1000 for (n, _), v in stats.values.items()
                      if n == P + "requests_in_flight"), "in flight")
            last = stats
            inode = os.fstat(f.fileno()).st_ino
            if inode in inodes:
                f.close()
            else:
                inodes.add(inode)
                kept.append((f, text))
        stop.set()
        for t in threads:
            t.join()
    check(not errors, "clients: %s", errors)
    check(len(inodes) >= 3, "it is not written every second: %s", inodes)
    for f, text in kept:
        f.seek(0)
        check(f.read() == text, "it was changed under a reader")
        f.close()
    stats = read(out)
    stats.grown_from(last)
    check(stats.get("request_duration_seconds_count", request="write") == 64
          * stats.get("request_duration_seconds_count", request="flush"),
          "counted wrongly")
    check(stats.get("request_bytes_total", request="read") == 8 * K *
          stats.get("request_duration_seconds_count", request="read"),
          "bytes counted wrongly")


def corrupt(lab):
    """A refusal is counted, as an error, and the image is corrupt."""
    path = create(lab.path(), 64 * M)
    qemu_io(path, "write -q 0 64k")
    with Qcow2(path) as image:
        image.set_l2_entry(0, image.u64(40) | COPIED)   # the L1 table
    out = lab.path()
    with lab.server(path, stats=out, stats_interval=1) as server:
        handle = server.connect()
        check(read(out).get("image_corrupt") == 0, "too early")
        for _ in range(2):
            check(errno_of(handle.pwrite, b"x" * 512, 0) == errno.EIO,
                  "not refused")
        wait_until(out, lambda s: s.get("image_corrupt") == 1)
        server.wait_events("BLOCK_IMAGE_CORRUPTED")
    stats = read(out)
    check(stats.get("overlap_refusals_total") == 1, "refusals")
    check(stats.get("request_errors_total", request="write") == 2, "errors")
    check(stats.get("request_bytes_total", request="write") == 0, "bytes")
    check(stats.get("events_total", event="BLOCK_IMAGE_CORRUPTED") == 1,
          "events")


def outside(lab):
    """A limit that is too low: what is outside is what the events say."""
    path = create(lab.path(), 64 * M, cluster_size=4 * K)
    qemu_io(path, *["write -q %dM 8k" % i for i in range(0, 64, 2)])
    out = lab.path()
    with lab.server(path, stats=out,
                    **{"overlap-structures.total-size-limit": 1}) as server:
        handle = server.connect()
        reached = "QCOW2_OVERLAP_CHECK_MEMORY_LIMIT_REACHED"
        told = server.wait_events(reached)
        handle.pread(512, 0)
    stats = read(out)
    check(stats.get("tracker_memory_limit_bytes") == 1, "limit")
    check(stats.get("tracker_outside_ranges") == len(told), "ranges")
    check(stats.get("tracker_outside_clusters") * 4 * K ==
          sum(e["data"]["length"] for e in told), "clusters")
    check(stats.get("events_total", event=reached) == len(told), "events")
    refused(lab, path)


def refused(lab, path):
    """What overlap-limit=refuse refuses is counted apart."""
    out = lab.path()
    with lab.server(path, stats=out, **{
            "overlap-structures.total-size-limit": 1,
            "overlap-limit": "refuse"}) as server:
        handle = server.connect()
        for _ in range(3):
            check(errno_of(handle.pwrite, b"x" * 512, 0) == errno.EIO,
                  "not refused")
    stats = read(out)
    check(stats.get("overlap_outside_refusals_total") == 3, "refusals")
    check(stats.get("overlap_refusals_total") == 0, "called corruption")
    check(stats.get("request_errors_total", request="write") == 3, "errors")


def strange_name(lab):
    """The name of the image survives as a label, whatever is in it."""
    folder = lab.path()
    os.mkdir(folder)
    for name, want in (('a "b" \\c\nd', 'a \\"b\\" \\\\c\\nd'),
                       ("\u00e4\u4e2d", "\u00e4\u4e2d"),
                       (os.fsdecode(b"x\xff\xc3y"), "x??y")):
        path = create(os.path.join(folder, name), 1 * M)
        out = lab.path()
        with lab.server(path, stats=out) as server:
            server.connect()
        check(read(out).get("serving", image=folder + "/" + want) == 0,
              "%r", name)


def background(lab):
    """A relative name, although nbdkit leaves the folder; killed, a server
    leaves nothing that keeps the next from starting."""
    folder = lab.path()
    os.mkdir(folder)
    create(os.path.join(folder, "disk.qcow2"), 1 * M)
    for how in ("-KILL", "-TERM"):
        run("sh", "-ec", """
            nbdkit -U sock -P pid "$0" disk.qcow2 stats=out.prom \
                stats-interval=1
            touch out.prom.tmp
            while [ -e out.prom.tmp ]; do sleep .1; done
            kill %s $(cat pid)
            while kill -0 $(cat pid) 2>/dev/null; do sleep .1; done
            rm -f sock pid""" % how, lab.plugin, cwd=folder)
        check(read(os.path.join(folder, "out.prom")).get("serving") ==
              (how == "-KILL"), "serving after %s", how)


def mistakes(lab):
    """One line says what is wrong, and no file is harmed."""
    path = create(lab.path(), 1 * M)
    before = open(path, "rb").read()
    other = lab.path()
    with open(other, "w") as f:
        f.write("my notes\n")
    link = lab.path()
    os.symlink(other, link)
    folder = lab.path()
    os.mkdir(folder)
    for params, words in (
            ({"stats": path}, "expected a file of statistics"),
            ({"stats": other}, "expected a file of statistics"),
            ({"stats": link}, "this is not a file"),
            ({"stats": "/dev/null"}, "this is not a file"),
            ({"stats": folder}, "this is not a file"),
            ({"stats": folder + "/"}, "the name of a file, not of a folder"),
            ({"stats": folder + "/x/y"}, "No such file or directory"),
            ({"stats": other + "/y"}, "Not a directory"),
            ({"stats": folder + "/" + 253 * "n"}, "File name too long"),
            ({"stats": ""}, "the name of a file"),
            ({"stats": folder + "/s", "stats_interval": "often"},
             "a number of seconds")):
        try:
            lab.server(path, **params).stop()
        except StartFailure as e:
            lines = [l for l in e.text.splitlines() if "error:" in l]
            check(len(lines) == 1 and words in lines[0], "%s: %s", params,
                  e.text)
            check("stats" in lines[0], "which parameter? %s", e.text)
        else:
            check(False, "%s is accepted", params)
    check(open(path, "rb").read() == before, "the image was changed")
    check(open(other).read() == "my notes\n", "a file was changed")
    check(os.listdir(folder) == [], "left behind: %s", os.listdir(folder))


def no_room(lab):
    """A folder that goes away later is told once, and harms nobody."""
    path = create(lab.path(), 1 * M)
    folder = lab.path()
    os.mkdir(folder)
    with lab.server(path, stats=folder + "/s", stats_interval=1) as server:
        handle = server.connect()
        shutil.rmtree(folder)
        give_up = time.monotonic() + PATIENCE
        while "stats=" not in server.log():
            check(time.monotonic() < give_up, "nothing is told")
            time.sleep(0.05)
        time.sleep(1.2)
        handle.pwrite(b"x" * 512, 0)
    told = [l for l in server.log().splitlines() if "stats=" in l]
    check(len(told) == 1 and "No such file" in told[0], "told: %s", told)


def main():
    lab = Lab()
    if not lab.ours:
        skip("QEMU has no such file")
    if not PROMTOOL:
        print("promtool is not installed: judged by this test's parser alone")
    for case in (totals, quarantine, compressed, always_whole, corrupt,
                 outside, strange_name, background, mistakes, no_room):
        lab.case(case.__name__, case, lab)
    lab.finish()


if __name__ == "__main__":
    main()
