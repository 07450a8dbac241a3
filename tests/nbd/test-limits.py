#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""The memory limit of the overlap checks: reaching it is told with the
exact range, and overlap-limit decides what happens there."""

import errno
import os
import random
import shutil
import sys

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403
from nbdmodel import Driver, Model                      # noqa: E402
from qcow2parse import COPIED, OFFSET_MASK, Qcow2       # noqa: E402

CLUSTER = 4 * K
SIZE = 64 * M
LIMIT = "overlap-structures.total-size-limit"
REACHED = "QCOW2_OVERLAP_CHECK_MEMORY_LIMIT_REACHED"
RESTORED = "QCOW2_OVERLAP_CHECK_PROTECTION_RESTORED"

# These stay in the tracker whatever the limit is.
KEPT = ("main-header", "active-l1", "refcount-table", "snapshot-table")
LEAVING = ("active-l2", "refcount-block", "inactive-l2")


def make_base(lab):
    """Metadata all over the file."""
    rng = random.Random(5)
    path = create(lab.path(), SIZE, cluster_size=CLUSTER)
    for i in range(3):
        commands = ["write -P %d %d %d" % (
            rng.randint(1, 255), rng.randrange(SIZE // CLUSTER - 100) *
            CLUSTER, rng.randint(1, 60) * CLUSTER) for _ in range(60)]
        qemu_io(path, *commands)
        if i < 2:
            qemu_img("snapshot", "-c", "s%d" % i, path)
    expect_clean(path)
    return path


def copy(lab, base):
    path = lab.path()
    shutil.copyfile(base, path)
    return path


def told(server, path, limit, policy):
    """The ranges that have left and not come back, as (start, end)."""
    if limit == 1:
        server.wait_events(REACHED)
    gone = []
    for event in server.events():
        data = event["data"]
        if event["event"] not in (REACHED, RESTORED):
            continue
        start, length = data["start"], data["length"]
        check(os.path.basename(data["image"]) == os.path.basename(path),
              "of which image? %s", event)
        check(start % CLUSTER == 0 and length % CLUSTER == 0 and length > 0,
              "not whole clusters: %s", event)
        if event["event"] == REACHED:
            check(data["limit"] == limit, "of which limit? %s", event)
            check(isinstance(data["used"], int), "no use: %s", event)
            check(data["policy"] == policy, "of which policy? %s", event)
            check(data["protected"] is (policy != "unprotected"),
                  "protected? %s", event)
            check(not any(a < start + length and start < b
                          for a, b in gone),
                  "told twice: %s, after %s", event, gone)
            gone.append((start, start + length))
        else:
            whole = []
            for a, b in gone:
                if b <= start or start + length <= a:
                    whole.append((a, b))
                    continue
                whole += [r for r in ((a, start), (start + length, b))
                          if r[0] < r[1]]
            gone = whole
    return gone


def inside(ranges, offset):
    return any(a <= offset < b for a, b in ranges)


def mapped(image, ranges, wanted):
    """A guest cluster that is written in place, whose host cluster lies in
    one of the ranges (WANTED) or in none."""
    for guest in range(0, SIZE, CLUSTER):
        entry = image.l2_entry(guest)
        if entry & COPIED and entry & OFFSET_MASK and \
           inside(ranges, entry & OFFSET_MASK) == wanted:
            return guest
    return None


def works(lab, base, limit, policy):
    """Everything works as without a limit, and nothing is left behind."""
    path = copy(lab, base)
    rng = random.Random(7)
    raw = lab.path()
    qemu_img("convert", "-O", "raw", path, raw)
    model = Model(raw)
    with lab.server(path, **{LIMIT: limit, "overlap-limit": policy}) \
            as server:
        handles = [server.connect() for _ in range(2)]
        driver = Driver(rng, handles, model, CLUSTER, [(0, SIZE)], depth=8)
        driver.go(250)
        gone = told(server, path, limit, policy)
        check(gone or limit > 1000, "the limit was not reached")
        check(not server.events("BLOCK_IMAGE_CORRUPTED"), "corruption: %s",
              server.log())
    expect_clean(path)
    compare(path, raw)
    model.close()


def enough(lab, base):
    path = copy(lab, base)
    with lab.server(path, **{LIMIT: "64M"}) as server:
        handle = server.connect()
        handle.pwrite(b"x" * M, 1 * M)
        handle.flush()
    check(not server.events(), "events: %s", server.events())
    expect_clean(path)


def poked(lab, base, kind):
    """(path, guest cluster, host cluster): the first is mapped to the
    second, which is metadata."""
    path = copy(lab, base)
    with Qcow2(path) as image:
        owned = image.metadata()
        guest = mapped(image, [], False)
        busy = image.l2_slot(guest) // CLUSTER
        others = set().union(*(owned[k] for k in owned if k != kind))
        cluster = [c for c in owned[kind] if c != busy and
                   c not in others and image.refcount(c) == 1][-1]
        image.set_l2_entry(guest, cluster * CLUSTER | COPIED)
    return path, guest, cluster


def contents(path):
    with open(path, "rb") as f:
        return f.read()


def still_kept(lab, base, kind, policy):
    """What never leaves is guarded with no memory at all."""
    path, guest, _ = poked(lab, base, kind)
    before = contents(path)
    with lab.server(path, **{LIMIT: 1, "overlap-limit": policy}) as server:
        handle = server.connect()
        check(errno_of(handle.pwrite, b"x" * 512, guest) == errno.EIO,
              "not refused")
        check(len(server.wait_events("BLOCK_IMAGE_CORRUPTED")) == 1,
              "no event")
    after = contents(path)
    check(before[:72] + before[80:] == after[:72] + after[80:],
          "the file has changed")


def unprotected(lab, base, kind):
    """The operator was told that this range is open, and it is."""
    path, guest, cluster = poked(lab, base, kind)
    with lab.server(path, **{LIMIT: 1}) as server:
        handle = server.connect()
        check(inside(told(server, path, 1, "unprotected"),
                     cluster * CLUSTER), "%s at %d did not leave", kind,
              cluster * CLUSTER)
        check(errno_of(handle.pwrite, b"\xee" * 512, guest +
                       CLUSTER - 512) == 0, "refused: %s", server.log())
        check(not server.events("BLOCK_IMAGE_CORRUPTED"), "an event")
    with Qcow2(path) as image:
        check(image.pread(512, (cluster + 1) * CLUSTER - 512) ==
              b"\xee" * 512, "not written")


def verify(lab, base, kind):
    """Slower, but nothing is unprotected and nothing healthy refused."""
    path, guest, cluster = poked(lab, base, kind)
    with lab.server(path, **{LIMIT: 1, "overlap-limit": "verify"}) as server:
        handle = server.connect()
        check(inside(told(server, path, 1, "verify"), cluster * CLUSTER),
              "%s at %d did not leave", kind, cluster * CLUSTER)
        with Qcow2(path) as image:
            places = [g for g in range(0, SIZE, 37 * CLUSTER)
                      if image.l2_entry(g) & COPIED and g != guest][:6]
        for place in places:
            handle.pwrite(b"v" * 700, place)
            check(handle.pread(700, place) == b"v" * 700, "not written")
        handle.flush()
        check(not server.events("BLOCK_IMAGE_CORRUPTED"),
              "healthy writes were refused: %s", server.log())
        before = contents(path)
        for at in (0, CLUSTER - 512):
            check(errno_of(handle.pwrite, b"\xee" * 512, guest + at) ==
                  errno.EIO, "not refused")
        check(len(server.wait_events("BLOCK_IMAGE_CORRUPTED")) == 1,
              "no event")
    after = contents(path)
    check(before[:72] + before[80:] == after[:72] + after[80:],
          "the file has changed")


def refuse(lab, base):
    """Where nothing can be known, nothing is written; that is no
    corruption, and elsewhere life goes on."""
    path = copy(lab, base)
    before = contents(path)
    with lab.server(path, **{LIMIT: 1, "overlap-limit": "refuse"}) as server:
        handle = server.connect()
        gone = told(server, path, 1, "refuse")
        with Qcow2(path) as image:
            bad = mapped(image, gone, True)
            good = mapped(image, gone, False)
        check(bad is not None, "no data in the ranges %s", gone)
        was = handle.pread(CLUSTER, bad)
        for call, args in ((handle.pwrite, (b"x" * 512, bad)),
                           (handle.pwrite, (b"x" * CLUSTER, bad)),
                           (handle.zero, (512, bad))):
            got = errno_of(call, *args)
            check(got == errno.EIO, "%s: %s", call.__name__,
                  os.strerror(got))
        check(handle.pread(CLUSTER, bad) == was, "it was written")
        if good is not None:
            handle.pwrite(b"x" * 512, good)
        handle.flush()
        check(not server.events("BLOCK_IMAGE_CORRUPTED"),
              "called corruption: %s", server.log())
        check(server.alive(), "the server died")
    with Qcow2(path) as image:
        check(image.incompatible == 0, "marked corrupt")
        at = image.l2_entry(bad) & OFFSET_MASK
    check(contents(path)[at:at + CLUSTER] == before[at:at + CLUSTER],
          "the cluster was written")
    expect_clean(path, leaks_allowed=True)


def main():
    lab = Lab()
    if not lab.ours:
        skip("QEMU has no such limit")
    base = make_base(lab)
    for policy in ("unprotected", "verify"):
        for limit in (1, 600, 1500):
            lab.case("works %s %d" % (policy, limit), works, lab, base,
                     limit, policy)
    lab.case("enough", enough, lab, base)
    for kind in KEPT[1:]:
        for policy in ("unprotected", "verify"):
            lab.case("%s %s" % (policy, kind), still_kept, lab, base, kind,
                     policy)
    for kind in LEAVING:
        lab.case("unprotected " + kind, unprotected, lab, base, kind)
        lab.case("verify " + kind, verify, lab, base, kind)
    lab.case("refuse", refuse, lab, base)
    lab.finish()


if __name__ == "__main__":
    main()
