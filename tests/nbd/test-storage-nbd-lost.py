#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""The NBD server that holds the image goes away, or hangs, and perhaps comes
back."""

import os
import signal
import sys
import time

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403

BLOCK = 4 * K
# The shortest timeout= that a disk which takes a second for a sync keeps.
TIMEOUT = 3


def image(lab):
    path = create(lab.path(), 8 * M)
    os.truncate(path, 16 * M)
    return path


def serve(lab, path, **kwargs):
    below = Below(lab, path)
    server = lab.server(below.uri(), below=below, commit_interval=0, **kwargs)
    handle = server.connect()
    handle.pwrite(b"a" * BLOCK, 0)
    handle.flush()
    return below, server, handle


def all_fail(handle, reads=True):
    for call, args in ((handle.pwrite, (b"x" * 512, 0)), (handle.flush, ()),
                       (handle.pwrite, (b"x" * 512, 0, nbd.CMD_FLAG_FUA))):
        check(errno_of(call, *args) == errno.EIO, "%s succeeds", call)
    if reads:
        check(errno_of(handle.pread, 512, 0) == errno.EIO, "reading succeeds")


def after(lab, path):
    """The image is sound, and holds what was flushed."""
    expect_clean(path, leaks_allowed=True)
    with lab.server(path) as server:
        data = bytes(server.connect().pread(BLOCK, 0))
        check(data == b"a" * BLOCK, "what was flushed is lost")


def finish(handle):
    """Python's module keeps other threads out while it waits: so nobody
    waits for long, and there are no threads."""
    while handle.aio_in_flight():
        handle.poll(50)


def comes_back(lab):
    """Everything was flushed: nobody notices but the log."""
    path = image(lab)
    below, server, handle = serve(lab, path, reconnect=60)
    for turn in range(3):
        below.kill()
        buf = nbd.Buffer(BLOCK)
        cookie = handle.aio_pread(buf, 0)
        if turn == 2:           # while the request waits
            handle.poll(500)
        below.start()
        finish(handle)
        check(handle.aio_command_completed(cookie) and
              bytes(buf.to_bytearray()) == b"a" * BLOCK, "wrong data")
        handle.pwrite(bytes([turn]) * BLOCK, (turn + 1) * M)
        handle.flush()
    check(server.log().count("connected again") == 3, "%s", server.log())
    server.stop()
    expect_clean(path)
    after(lab, path)


def not_asked(lab):
    """Without reconnect= there is no second connection."""
    path = image(lab)
    below, server, handle = serve(lab, path)
    below.kill()
    below.start()
    # A write that is sent before the loss is seen would be one of those
    # that may be lost.
    check(errno_of(handle.pread, BLOCK, 0) == errno.EIO, "reading succeeds")
    all_fail(handle)
    check("reconnect=SECONDS" in server.log(), "%s", server.log())
    server.stop()
    after(lab, path)


def unflushed(lab):
    """A write was answered and not flushed: a failed sync, for ever."""
    path = image(lab)
    below, server, handle = serve(lab, path, reconnect=60)
    handle.pwrite(b"b" * BLOCK, 1 * M)
    below.kill()
    below.start()
    all_fail(handle)
    check("not flushed" in server.log() and
          "connected again" not in server.log(), "%s", server.log())
    server.stop()
    after(lab, path)


def no_missing_space(lab):
    """Each write that fails had a cluster, which a commit would free: there
    is none any more, but that is not for want of space."""
    path = image(lab)
    below, server, handle = serve(lab, path, reconnect=60)
    handle.pwrite(b"b" * BLOCK, 1 * M)
    below.kill()
    below.start()
    got = {errno_of(handle.pwrite, b"w" * BLOCK, 2 * M) for _ in range(400)}
    check(got == {errno.EIO}, "%s", got)
    server.stop()
    after(lab, path)


def too_late(lab):
    """Requests wait no longer than they were told to, and work again when
    the server is back."""
    path = image(lab)
    below, server, handle = serve(lab, path, reconnect=2)
    begin = time.monotonic()
    below.kill()
    check(errno_of(handle.pread, BLOCK, 0) == errno.EIO, "reading succeeds")
    took = time.monotonic() - begin
    check(1.9 < took < PATIENCE, "it took %.1f s", took)
    # If these waited as well, that would be 40 seconds.
    begin = time.monotonic()
    for _ in range(20):
        check(errno_of(handle.pread, BLOCK, 0) == errno.EIO,
              "reading succeeds")
    check(time.monotonic() - begin < 20, "it waited again")
    below.start()
    give_up = time.monotonic() + PATIENCE
    while errno_of(handle.pread, BLOCK, 0):
        check(time.monotonic() < give_up, "it does not come back")
        time.sleep(0.1)
    handle.pwrite(b"b" * BLOCK, M)
    handle.flush()
    server.stop()
    expect_clean(path)


def another(lab):
    """The server comes back with another export."""
    path = image(lab)
    below, server, handle = serve(lab, path, reconnect=1)
    below.kill()
    os.truncate(path, 17 * M)
    below.start()
    check(errno_of(handle.pread, BLOCK, 0) == errno.EIO, "reading succeeds")
    give_up = time.monotonic() + PATIENCE
    while "another export" not in server.log():
        check(time.monotonic() < give_up, "no word of it: %s", server.log())
        time.sleep(0.05)
    below.kill()
    os.truncate(path, 16 * M)
    below.start()
    give_up = time.monotonic() + PATIENCE
    while errno_of(handle.pread, BLOCK, 0):
        check(time.monotonic() < give_up, "it does not come back")
        time.sleep(0.1)
    server.stop()
    after(lab, path)


def is_flush(turn):
    return turn % 20 == 0


def ask(handle, turn, write):
    at = 1 * M + turn % 400 * 16 * K
    if not write:
        return handle.aio_pread(nbd.Buffer(BLOCK), at)
    if is_flush(turn):
        return handle.aio_flush()
    return handle.aio_pwrite(
        nbd.Buffer.from_bytearray(bytearray(b"w" * BLOCK)), at)


class Load:
    """Requests, eight of which are under way, and what was answered."""

    def __init__(self, handle, write):
        self.handle, self.write = handle, write
        self.turn = 0
        self.under_way = {}     # cookie: the number of the request
        self.results = []
        # The numbers of the last request that a flush may have made
        # durable, and of the last that was answered.
        self.flushed, self.answered = 0, 0

    def send(self):
        while len(self.under_way) < 8:
            self.turn += 1
            cookie = ask(self.handle, self.turn, self.write)
            self.under_way[cookie] = self.turn

    def receive(self):
        for cookie, number in list(self.under_way.items()):
            try:
                if not self.handle.aio_command_completed(cookie):
                    continue
                self.results.append(0)
                if is_flush(number):
                    self.flushed = self.turn
                else:
                    self.answered = max(self.answered, number)
            except nbd.Error as e:
                self.results.append(getattr(errno, e.errno))
            del self.under_way[cookie]

    def run(self, seconds, enough=lambda: True):
        """For some time at least, and until it is enough."""
        end = time.monotonic() + seconds
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < end or not enough():
            check(time.monotonic() < give_up, "never enough")
            self.send()
            self.handle.poll(50)
            self.receive()

    def at_stake(self):
        """Requests are under way, none of them a flush, and one was answered
        that was sent after the answer of the last flush: if it wrote, that
        is not durable."""
        numbers = self.under_way.values()
        return numbers and self.answered > self.flushed and \
            not any(is_flush(n) for n in numbers)


def under_load(lab, write):
    path = image(lab)
    below, server, handle = serve(lab, path, reconnect=30)
    load = Load(handle, write)
    load.run(0.7, load.at_stake)
    below.kill()
    results = load.results
    check(set(results) == {0}, "not under load: %s", set(results))
    below.start()
    before = len(results)
    load.run(1.5, lambda: len(results) >= before + 16)
    finish(handle)
    load.receive()
    check(not load.under_way, "not answered")
    check(server.alive(), "the server is gone")
    check(set(results) <= {0, errno.EIO}, "%s", set(results))
    check(0 in results, "nothing was served")
    if write:
        check(errno.EIO in results, "no error")
        all_fail(handle)
    else:
        check(errno.EIO not in results, "%d errors",
              results.count(errno.EIO))
        check(bytes(handle.pread(BLOCK, 0)) == b"a" * BLOCK, "wrong data")
        handle.pwrite(b"b" * BLOCK, 1 * M)
        handle.flush()
    server.stop()
    after(lab, path)


def at_the_end(lab):
    """The server below is gone when ours ends: it ends, too."""
    path = image(lab)
    for reconnect in (0, 60):
        below, server, handle = serve(lab, path, reconnect=reconnect)
        below.kill()
        server.stop()
        after(lab, path)


def stop_and_go(below, go):
    """When told to stop it has: each thread does so when it is scheduled,
    which on a busy machine leaves another the time for an answer."""
    pid = below.process.pid
    os.killpg(pid, signal.SIGCONT if go else signal.SIGSTOP)
    end = time.monotonic() + PATIENCE
    while not go and any(state != "T" for state in thread_states(pid)):
        check(time.monotonic() < end, "%d does not stop", pid)
        time.sleep(0.001)


def thread_states(pid):
    """As in proc(5), /proc/PID/stat."""
    for thread in os.listdir("/proc/%d/task" % pid):
        with open("/proc/%d/task/%s/stat" % (pid, thread)) as f:
            yield f.read().rpartition(")")[2].split()[0]


def wait_for(handle, cookie):
    """The errno of the request."""
    finish(handle)
    try:
        check(handle.aio_command_completed(cookie), "not answered")
    except nbd.Error as e:
        return getattr(errno, e.errno)
    return 0


def silent(lab):
    """It hangs with nothing at stake: given up, and found again."""
    path = image(lab)
    below, server, handle = serve(lab, path, reconnect=60, timeout=TIMEOUT)
    stop_and_go(below, False)
    buf = nbd.Buffer(BLOCK)
    cookie = handle.aio_pread(buf, 0)
    give_up = time.monotonic() + PATIENCE
    while "connection is lost" not in server.log():
        check(time.monotonic() < give_up, "not noticed: %s", server.log())
        handle.poll(100)
    check("no sign of the server for %d seconds" % TIMEOUT in server.log(),
          "%s", server.log())
    stop_and_go(below, True)
    check(wait_for(handle, cookie) == 0 and
          bytes(buf.to_bytearray()) == b"a" * BLOCK, "wrong data")
    handle.pwrite(b"b" * BLOCK, 1 * M)
    handle.flush()
    server.stop()
    after(lab, path)


def silent_unflushed(lab):
    """It hangs with a write that was not flushed: a failed sync, and what
    it does when it wakes does no harm."""
    path = image(lab)
    below, server, handle = serve(lab, path, reconnect=60, timeout=TIMEOUT)
    begin = time.monotonic()
    handle.pwrite(b"b" * BLOCK, 1 * M)
    stop_and_go(below, False)
    check(errno_of(handle.flush) == errno.EIO, "the flush succeeds")
    check(TIMEOUT * 0.9 < time.monotonic() - begin < PATIENCE,
          "too early, or late")
    stop_and_go(below, True)
    all_fail(handle)
    check("not flushed" in server.log() and
          "connected again" not in server.log(), "%s", server.log())
    server.stop()
    after(lab, path)


def silent_at_the_end(lab):
    """It hangs when ours ends: ours ends all the same."""
    path = image(lab)
    below, server, handle = serve(lab, path, timeout=TIMEOUT)
    handle.pwrite(b"b" * BLOCK, 1 * M)
    stop_and_go(below, False)
    server.below = None
    server.stop()
    stop_and_go(below, True)
    below.end()
    after(lab, path)


def patient(lab):
    """timeout=0: it may hang for as long as it likes."""
    path = image(lab)
    below, server, handle = serve(lab, path, timeout=0)
    stop_and_go(below, False)
    cookie = handle.aio_pread(nbd.Buffer(BLOCK), 0)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        handle.poll(100)
    check(handle.aio_in_flight() == 1, "it was answered")
    stop_and_go(below, True)
    check(wait_for(handle, cookie) == 0, "reading fails")
    server.stop()
    after(lab, path)


def busy(lab):
    """A request takes longer than the timeout, while others are answered:
    that is not silence."""
    path = image(lab)
    serve(lab, path)[1].stop()
    below = Below(lab, path, filters=["delay"], args=["delay-write=%d" % (2 * TIMEOUT)])
    server = lab.server(below.uri(), below=below, commit_interval=0,
                        timeout=TIMEOUT)
    handle = server.connect()
    cookie = handle.aio_pwrite(
        nbd.Buffer.from_bytearray(bytearray(b"b" * BLOCK)), 1 * M)
    while not handle.aio_command_completed(cookie):
        check(errno_of(handle.pread, BLOCK, 0) == 0, "reading fails")
        handle.poll(100)
    check("timeout" not in server.log(), "%s", server.log())
    server.end_group()
    below.kill()


def is_kept_alive(port):
    """Does TCP ask after the other end of the connection to PORT?"""
    for line in open("/proc/net/tcp").read().splitlines()[1:]:
        fields = line.split()
        if fields[2].endswith(":%04X" % port) and fields[3] == "01":
            return fields[5].startswith("02:")
    return None


def keepalive(lab):
    """Idle TCP connections are watched, unless timeout=0."""
    path = image(lab)
    below = Below.on_some_port(lab, path)
    for timeout in (600, 0):
        server = lab.server(below.uri(), timeout=timeout)
        handle = server.connect()
        handle.pread(BLOCK, 0)
        check(is_kept_alive(below.port) == (timeout > 0), "timeout=%d: %s",
              timeout, is_kept_alive(below.port))
        server.stop()
    below.end()


def main():
    lab = Lab()
    if not lab.ours:
        skip("our own")
    lab.case("comes back", comes_back, lab)
    lab.case("not asked to", not_asked, lab)
    lab.case("unflushed", unflushed, lab)
    lab.case("no missing space", no_missing_space, lab)
    lab.case("too late", too_late, lab)
    lab.case("another export", another, lab)
    lab.case("load of reads", under_load, lab, False)
    lab.case("load of writes", under_load, lab, True)
    lab.case("at the end", at_the_end, lab)
    lab.case("silent", silent, lab)
    lab.case("silent, unflushed", silent_unflushed, lab)
    lab.case("silent at the end", silent_at_the_end, lab)
    lab.case("patient", patient, lab)
    lab.case("busy, not silent", busy, lab)
    lab.case("keepalive", keepalive, lab)
    lab.finish()


if __name__ == "__main__":
    main()
