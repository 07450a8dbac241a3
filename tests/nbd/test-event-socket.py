#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""event-socket=: several readers follow a real server's events at once, and
none of them can harm it."""

import errno
import json
import os
import socket
import stat
import sys

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403
from qcow2parse import COPIED, Qcow2                    # noqa: E402

CORRUPTED = "BLOCK_IMAGE_CORRUPTED"
REACHED = "QCOW2_OVERLAP_CHECK_MEMORY_LIMIT_REACHED"


def join(path):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(PATIENCE)
    s.connect(path)
    return s


def until_end(s):
    """The events that a reader gets until the server closes its socket."""
    with s, s.makefile("r") as lines:
        found = [json.loads(line) for line in lines]
    return found


def poked(lab):
    """An image whose first cluster is mapped to the L1 table."""
    path = create(lab.path(), 64 * M)
    qemu_io(path, "write -q 0 64k")
    with Qcow2(path) as image:
        image.set_l2_entry(0, image.u64(40) | COPIED)
    return path


def provoke(server, count=1):
    handle = server.connect()
    for _ in range(count):
        check(errno_of(handle.pwrite, b"x" * 512, 0) == errno.EIO,
              "not refused")
    return handle


def several(lab):
    """All get the same, which is what the log gets; who comes late gets
    what is later; who has gone, or never reads, is in nobody's way."""
    path = poked(lab)
    sock = lab.path()
    with lab.server(path, event_socket=sock) as server:
        mode = os.stat(sock).st_mode
        check(mode == stat.S_IFSOCK | 0o600, "mode %o", mode)
        readers = [join(sock) for _ in range(5)]
        readers.pop().close()
        provoke(server, 2)
        server.wait_events(CORRUPTED)
        first = readers[0].makefile("r").readline()
        late = join(sock)
        server.stop()
        check(until_end(late) == [], "the late one got something")
        logged = server.events()
        check([e["event"] for e in logged] == [CORRUPTED], "log: %s", logged)
        check(json.loads(first) == logged[0], "not as in the log")
        for reader in readers[1:]:
            check(until_end(reader) == logged, "not as in the log")
    check(not os.path.exists(sock), "the socket is left")


def stale(lab):
    """A killed server's socket keeps nobody from starting; a living one's
    is left alone."""
    path = create(lab.path(), 1 * M)
    sock = lab.path()
    with lab.server(path, event_socket=sock) as server:
        reader = join(sock)
        try:
            lab.server(create(lab.path(), 1 * M), event_socket=sock)
        except StartFailure as e:
            check("another server listens there" in e.text, "%s", e.text)
        else:
            check(False, "two servers on one socket")
        server.kill()
        check(until_end(reader) == [], "events")
    check(os.path.exists(sock), "the kernel has removed it?")
    with lab.server(path, event_socket=sock):
        join(sock).close()
    check(not os.path.exists(sock), "the socket is left")


def background(lab):
    """A relative name, although nbdkit leaves the folder, and beside a log."""
    folder = lab.path()
    os.mkdir(folder)
    create(os.path.join(folder, "disk.qcow2"), 64 * M, cluster_size=4 * K)
    qemu_io(os.path.join(folder, "disk.qcow2"),
            *["write -q %dM 8k" % i for i in range(0, 64, 2)])
    run("sh", "-ec", """
        nbdkit -U sock -P pid "$0" disk.qcow2 event-socket=events \
            event-log=log.json overlap-structures.total-size-limit=1
        test -S events
        nbdsh -c 'import socket' \
            -c 's = socket.socket(socket.AF_UNIX)' \
            -c 's.connect("events")'
        kill $(cat pid)
        while kill -0 $(cat pid) 2>/dev/null; do sleep .1; done""",
        lab.plugin, cwd=folder)
    check(not os.path.exists(os.path.join(folder, "events")),
          "the socket is left")
    with open(os.path.join(folder, "log.json")) as log:
        told = [json.loads(line)["event"] for line in log]
    check(REACHED in told, "log: %s", told)


def mistakes(lab):
    path = create(lab.path(), 1 * M)
    folder = lab.path()
    os.mkdir(folder)
    for name, words in ((path, "this is something else"),
                        (folder, "this is something else"),
                        (folder + "/a/b", "No such file or directory"),
                        (path + "/b", "Not a directory"),
                        ("", "the name of a new socket"),
                        ("/tmp/" + 104 * "n", "at most 107")):
        try:
            lab.server(path, event_socket=name).stop()
        except StartFailure as e:
            lines = [l for l in e.text.splitlines() if "error:" in l]
            check(len(lines) == 1 and words in lines[0] and
                  "event-socket=" in lines[0], "%s: %s", name, e.text)
        else:
            check(False, "%s is accepted", name)
    expect_clean(path)


def main():
    lab = Lab()
    if not lab.ours:
        skip("QEMU has no such socket")
    for case in (several, stale, background, mistakes):
        lab.case(case.__name__, case, lab)
    lab.finish()


if __name__ == "__main__":
    main()
