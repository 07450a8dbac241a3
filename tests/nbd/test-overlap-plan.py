#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""qcow2-overlap plan against the server itself: with the limit that it
recommends, which is the one that the server's log recommends, nothing ever
leaves the map, and with a lower one the events name the ranges that it named.
And that it forecasts a full disk well."""

import json
import os
import random
import re
import shutil
import sys

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403

SLOW = os.environ.get("QCOW2_SANITIZER") or os.environ.get("QCOW2_VALGRIND")
LIMIT = "overlap-structures.total-size-limit"
BITMAP = "overlap-structures.bitmap-size"
REACHED = "QCOW2_OVERLAP_CHECK_MEMORY_LIMIT_REACHED"


def plan(path, *options):
    done = run("qcow2-overlap", "plan", "--json", *options, path)
    check(done.stderr == "", "plan says %s", done.stderr)
    return json.loads(done.stdout)


def scatter(path, size, cluster, rng, writes):
    qemu_io(path, *("write -P %d %d %d" % (
        rng.randint(1, 255), rng.randrange(size // cluster - 9) * cluster,
        rng.randint(1, 8) * cluster) for _ in range(writes)))


def make(lab, size, cluster, snapshots=0, writes=60):
    rng = random.Random(cluster + snapshots)
    path = create(lab.path(), size, cluster_size=cluster)
    for i in range(snapshots):
        scatter(path, size, cluster, rng, writes)
        qemu_img("snapshot", "-c", "s%d" % i, path)
    if writes:
        scatter(path, size, cluster, rng, writes)
    expect_clean(path)
    return path


def told(lab, path, limit, bitmap="64k", enough=None):
    """The ranges of a server's events, when it opens the image.  ENOUGH: the
    limit that its log says would do."""
    with lab.server(path, readonly=True,
                    **{LIMIT: limit, BITMAP: bitmap}) as server:
        server.connect()
        advice = re.findall(LIMIT + r"=(\d+)k would do", server.log())
    check(enough is None or {int(a) * K for a in advice} == {enough},
          "the log recommends %s, plan %s", advice, enough)
    return [(e["data"]["start"], e["data"]["length"])
            for e in server.events(REACHED)]


def ranges(step):
    return [(r["start"], r["length"]) for r in step["now"]["outside"]]


def ladder(lab, path):
    """What plan says will leave, leaves, and nothing else."""
    left = 0
    for bitmap in ("64k", "0"):
        answer = plan(path, "--bitmap-size", bitmap)
        best = answer["recommended"]["total-size-limit"]
        steps = answer["limits"]
        for step in steps:
            limit = step["limit"]
            # The same block may count 16 bytes more in another process:
            # not where that decides.
            near = plan(path, "--bitmap-size", bitmap, "--limit",
                        limit - 64, "--limit", limit + 64)["limits"]
            if ranges(near[0]) != ranges(near[1]):
                continue
            expected = ranges(step)
            left += len(expected)
            found = told(lab, path, limit, bitmap,
                         best if expected else None)
            check(found == expected, "limit %d: events name %s, plan %s",
                  limit, found, expected)
        check(steps[0]["limit"] == best and
              not any(steps[0][when]["outside"] for when in ("now", "full")),
              "the recommended limit is too low: %s", steps[0])
    check(left > 0, "nothing left at any limit of %s", steps)


def chosen(lab, path):
    """A limit that was asked for is the one that is tried."""
    answer = plan(path, "--limit", "1", "--limit", "1G")
    check([s["limit"] for s in answer["limits"]] == [1, 1 << 30],
          "other limits: %s", answer)
    check(ranges(answer["limits"][1]) == [], "at 1G: %s", answer)
    check(ranges(answer["limits"][0]) == told(lab, path, 1, "64k"),
          "at 1: %s", answer)
    check(0 < answer["limits"][0]["now"]["tracked-clusters"] <
          answer["now"]["clusters"], "the share that is left: %s", answer)


def fill(handle, size, cluster):
    """Write to every cluster, all over the disk rather than in order."""
    rng = random.Random(1)
    step = max(cluster, 256 * K)
    places = list(range(0, size, step))
    rng.shuffle(places)
    for at in places:
        handle.pwrite(b"f" * min(step, size - at), at)


def full(lab, path, size, cluster):
    """Until the disk is full there is no event, and the map is as large as
    was said."""
    answer = plan(path)
    best = answer["recommended"]
    with lab.server(path, **{LIMIT: best["total-size-limit"],
                             BITMAP: best["bitmap-size"]}) as server:
        handle = server.connect()
        fill(handle, size, cluster)
        handle.flush()
    check(not server.events(), "events: %s", server.events())
    expect_clean(path)
    now, before = plan(path)["now"], answer["full"]
    check(now["clusters"] <= before["clusters"] + 2 and
          now["clusters"] >= before["clusters"] * 0.8,
          "it has %s, what was said is %s", now, before)
    check(now["memory"] <= before["memory"] * 1.25 + 512,
          "it takes %s, what was said is %s", now, before)


def used_since(lab, path):
    """While it is written to, what the log recommends does not change, and
    is what is planned afterwards."""
    before = plan(path)["recommended"]["total-size-limit"]
    with lab.server(path, **{LIMIT: 1024}) as server:
        handle = server.connect()
        fill(handle, 16 * M, 4 * K)
        handle.flush()
    told(lab, path, 1024, enough=before)
    after = plan(path)["recommended"]["total-size-limit"]
    check(after == before, "%d is recommended, before it was %d", after,
          before)


def manual(lab):
    """The table of the manual page."""
    pod = os.path.join(os.environ["top_srcdir"], "docs",
                       "nbdkit-qcow2-plugin.pod")
    with open(pod) as f:
        lines = f.read().split("\n cluster size ")[1].split("\n")
    sizes = re.findall(r"\d+[GT]", lines[0])
    check(len(sizes) == 4, "sizes %s", lines[0])
    units = {"": 1, "K": K, "M": M, "G": G, "T": T}
    cells = 0
    for line in lines[1:]:
        if not line:
            break
        cluster, unit = re.match(r" (\d+)([KM ])", line).groups()
        row = re.findall(r" (-|([\d.]+)([KM]) +\((\d+)([KM])\))", line)
        check(len(row) == 4, "row %s", line)
        for size, (cell, memory, m_unit, limit, l_unit) in zip(sizes, row):
            # Some take a second; with larger disks the rule is the same.
            if cell == "-" or float(memory) * units[m_unit] > (
                    100 * K if SLOW else 2 * M):
                continue
            answer = plan(create(lab.path(), size, cluster_size=int(cluster) *
                                 units[unit.strip()]), "--limit", "1G")
            found = answer["full"]["memory"]
            check(abs(found - float(memory) * units[m_unit]) <
                  max(found * 0.06, 1000),
                  "%s of %s: %d bytes", line, size, found)
            found = answer["recommended"]["total-size-limit"]
            check(found == int(limit) * units[l_unit],
                  "%s of %s: recommended are %d", line, size, found)
            cells += 1
    check(cells >= 8, "only %d cells", cells)


def in_use(lab, path):
    """As qemu-img does, unless told otherwise."""
    with lab.server(path) as server:
        server.connect().pwrite(b"x", 0)
        done = run("qcow2-overlap", "plan", path, ok=(1,))
        check("is in use" in done.stderr and "-U" in done.stderr,
              "it says %s", done.stderr)
        run("qcow2-overlap", "plan", "-U", path)


def shy(lab, path):
    """Backing files, data files and passphrases are not needed."""
    base = create(lab.path("base.qcow2"), M)
    top = create(lab.path("top.qcow2"), None, backing=base,
                 backing_format="qcow2")
    os.unlink(base)
    check(plan(top)["virtual-size"] == M, "with a backing file")
    secret = create(lab.path(), M, encryption="luks")
    check(plan(secret)["virtual-size"] == M, "encrypted")
    data = lab.path("data.raw")
    outside = create(lab.path(), M, data_file=data)
    os.unlink(data)
    check(plan(outside)["full"]["clusters"] > 0, "with a data file")
    before = os.stat(path)
    plan(path)
    check(os.stat(path).st_mtime_ns == before.st_mtime_ns, "it was changed")


def hostile(lab, path):
    """Damage is told, not planned with."""
    copy = lab.path()
    shutil.copyfile(path, copy)
    with open(copy, "r+b") as f:
        f.seek(40)
        l1 = int.from_bytes(f.read(8), "big")
        f.seek(l1)
        f.write((l1 | 1 << 63).to_bytes(8, "big"))
    done = run("qcow2-overlap", "plan", copy, ok=(1,))
    check("qcow2-overlap check" in done.stderr, "it says %s", done.stderr)
    check(done.stdout == "", "and plans: %s", done.stdout)


def text(_lab, path):
    """For people, and the same figures."""
    answer = plan(path)
    done = run("qcow2-overlap", "plan", path)
    best = answer["recommended"]
    for key, name in ((LIMIT, "total-size-limit"), (BITMAP, "bitmap-size")):
        value = best[name]
        suffix = ""
        for s in "kM":
            if value % 1024 == 0:
                value, suffix = value // 1024, s
        check("  %s=%d%s\n" % (key, value, suffix) in done.stdout,
              "%s is not in\n%s", key, done.stdout)
    for step in answer["limits"]:
        for r in step["now"]["outside"]:
            check("  %(start)d + %(length)d " % r in done.stdout,
                  "%s is not in\n%s", r, done.stdout)
    check(not any(ord(c) < 32 and c != "\n" for c in done.stdout +
                  done.stderr), "control characters: %r", done.stdout)


def main():
    lab = Lab()
    if not lab.ours:
        skip("QEMU has no such tool")
    small = make(lab, 64 * M, 4 * K, 2)
    usual = make(lab, 40 * G, 64 * K, 3)
    tiny = make(lab, 128 * M, 512)
    wide = make(lab, 16 * G, 4 * K, 0, 100)
    far = create(lab.path(), 6 * T, cluster_size=2 * M,
                 preallocation="metadata")
    for name, path in (("small", small), ("usual", usual), ("tiny", tiny),
                       ("wide", wide), ("far", far)):
        if SLOW and name in ("tiny", "wide"):
            continue
        lab.case("ladder " + name, ladder, lab, path)
    lab.case("used since", used_since, lab, make(lab, 64 * M, 4 * K, 2))
    lab.case("manual", manual, lab)
    lab.case("chosen", chosen, lab, small)
    lab.case("text", text, lab, small)
    lab.case("in use", in_use, lab, small)
    lab.case("shy", shy, lab, small)
    lab.case("hostile", hostile, lab, small)
    lab.case("full with snapshots", full, lab, small, 64 * M, 4 * K)
    empty = make(lab, 64 * M, 4 * K, writes=0)
    lab.case("full from empty", full, lab, empty, 64 * M, 4 * K)
    lab.case("full tiny", full, lab, make(lab, 16 * M, 512), 16 * M, 512)
    lab.finish()


if __name__ == "__main__":
    main()
