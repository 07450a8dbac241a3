#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""Serve every damaged image of cases.py and see that what comes of it is
what must: a refusal that names the file, the field and the value; a disk
that is served for reading only; or an error at the request that meets the
damage.  The server never dies of it, never takes much time or memory,
never changes a file that it refused or serves read-only, and opens no file
outside the folder of the image: strace tells, or where it cannot be used
/proc/PID/fd, which knows only what is still open.

    test-images.py [--keep DIR] [CASE...]
"""

import argparse
import atexit
import errno
import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

try:
    import nbd
except ImportError:
    print("skipped: this python3 has no module nbd (python3-libnbd)")
    sys.exit(77)

# pylint: disable=wrong-import-position
from case import (ReadFails, ReadOnly, Refused, Serves,  # noqa: E402
                  TrimFails, WriteFails)
from cases import CASES  # noqa: E402
from make import CLUSTER, Maker  # noqa: E402

M = 1 << 20
PATIENCE = float(os.environ.get("QCOW2_TEST_PATIENCE", "120"))

# The sanitizers and valgrind need much of both: no limits then.
LIMITS = not (os.environ.get("QCOW2_SANITIZER")
              or os.environ.get("QCOW2_VALGRIND"))
MAX_SECONDS = 1.0               # of CPU time, to refuse or open an image
MAX_SECONDS_LENIENT = 10.0      # where there are large tables to read
MAX_MEMORY = 32 * M             # more than a sound image takes
MAX_MEMORY_LENIENT = 256 * M
MAX_LINES = 100                 # of log: an image must not flood it


# What strace says of every file that is opened.
OPENING = re.compile(r'\b(?:open|creat|openat|openat2)\((?:[^,"]*, )?'
                     r'"((?:[^"\\\\]|\\\\.)*)"(\.\.\.)?')
STRACE = ["strace", "-D", "-f", "-qq", "--seccomp-bpf", "-s", "4096",
          "-e", "trace=/^(open|creat|openat|openat2)$"]


def can_strace():
    """The sanitizers and valgrind do not bear it."""
    if not LIMITS or shutil.which("strace") is None:
        return False
    done = subprocess.run(STRACE + ["-o", "/dev/null", "true"],
                          stdin=subprocess.DEVNULL, check=False,
                          stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL)
    return done.returncode == 0


class Failure(Exception):
    pass


def check(condition, text, *args):
    if not condition:
        raise Failure(text % args if args else text)


class Server:
    """nbdkit in the foreground, and what can be learnt of it."""

    traced = can_strace()

    def __init__(self, image, address_space=None, passphrase=None):
        self.folder = tempfile.mkdtemp(prefix="images.")
        self.socket = os.path.join(self.folder, "sock")
        self.pidfile = os.path.join(self.folder, "pid")
        self.logname = os.path.join(self.folder, "log")
        self.trace = os.path.join(self.folder, "trace")
        self.open_files = set() # without strace

        def limit():
            if address_space and LIMITS:
                resource.setrlimit(resource.RLIMIT_AS,
                                   (address_space, address_space))

        with open(self.logname, "wb") as log:
            # pylint: disable=subprocess-popen-preexec-fn
            self.process = subprocess.Popen(
                (STRACE + ["-o", self.trace] if self.traced else []) +
                ["nbdkit", "-f", "-U", self.socket, "-P", self.pidfile,
                 "qcow2", image] +
                ([] if passphrase is None else ["passphrase=" + passphrase]),
                stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, preexec_fn=limit)
        self.status = None
        self.seconds = 0.0
        self.max_rss = 0        # in bytes, once it has ended
        self.threads = 0        # when nobody is connected

    def log(self):
        with open(self.logname, errors="replace") as f:
            return f.read()

    def poll(self):
        """True while it runs; remembers how it ended."""
        if self.status is None:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.ended(status, usage)
        return self.status is None

    def ended(self, status, usage):
        self.status = os.waitstatus_to_exitcode(status)
        self.process.returncode = self.status
        self.seconds = usage.ru_utime + usage.ru_stime
        self.max_rss = usage.ru_maxrss * 1024

    def wait_ready(self):
        """True if it serves, False if it ended."""
        end = time.monotonic() + PATIENCE
        while self.poll():
            if os.path.exists(self.pidfile):
                return True
            check(time.monotonic() < end and
                  (not LIMITS or self.cpu() < 2 * MAX_SECONDS_LENIENT),
                  "hangs while opening the image")
            time.sleep(0.005)
        return False

    def disconnect(self, handle):
        """The server is done with a connection a moment after the client:
        nbdkit does not free one that is open when it ends."""
        handle.shutdown()
        end = time.monotonic() + 60
        while (self.poll() and self.proc("Threads") > self.threads
               and time.monotonic() < end):
            time.sleep(0.005)

    def stop(self):
        if self.poll():
            self.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + PATIENCE
        while self.poll():
            check(time.monotonic() < end, "does not stop")
            time.sleep(0.005)

    def clean_up(self):
        if self.poll():
            self.process.kill()
            _, status, usage = os.wait4(self.process.pid, 0)
            self.ended(status, usage)
        shutil.rmtree(self.folder, ignore_errors=True)

    def proc(self, field):
        """A number of /proc/PID/status, memory in bytes."""
        with open("/proc/%d/status" % self.process.pid) as f:
            for line in f:
                if line.startswith(field + ":"):
                    value = line.split()[1:]
                    return int(value[0]) * (1024 if "kB" in value else 1)
        raise Failure("no %s" % field)

    def cpu(self):
        """Seconds of CPU used so far."""
        with open("/proc/%d/stat" % self.process.pid) as f:
            fields = f.read().rpartition(")")[2].split()
        return ((int(fields[11]) + int(fields[12]))
                / os.sysconf("SC_CLK_TCK"))

    def look_at_files(self):
        """Remember which files it has open, where there is no strace."""
        if self.traced or not self.poll():
            return
        folder = "/proc/%d/fd" % self.process.pid
        for fd in os.listdir(folder):
            try:
                self.open_files.add(os.readlink(os.path.join(folder, fd)))
            except FileNotFoundError:
                pass

    def opened(self):
        """The files that it tried to open so far."""
        if not self.traced:
            return {f for f in self.open_files if f.startswith("/")}
        with open(self.trace, errors="replace") as f:
            found = {m.group(1) for m in map(OPENING.search, f) if m}
        return {os.path.realpath(name) for name in found}

    def connect(self):
        """The server has one thread for a connection that is not yet
        through with its options, and its own have been started by then: at
        the time of the PID file they may not have been."""
        self.look_at_files()
        handle = nbd.NBD()
        handle.set_strict_mode(0)
        handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        handle.set_opt_mode(True)
        handle.connect_unix(self.socket)
        self.threads = self.proc("Threads") - 1
        handle.opt_go()
        return handle


def digest(path):
    """Of the file's length and its data; large holes take no time."""
    total = hashlib.sha256()
    size = os.path.getsize(path)
    total.update(b"%d" % size)
    with open(path, "rb") as f:
        at = 0
        while at < size:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError as e:
                if e.errno == errno.ENXIO:
                    break
                raise
            end = os.lseek(f.fileno(), at, os.SEEK_HOLE)
            while at < end:
                piece = os.pread(f.fileno(), min(end - at, M), at)
                if piece.strip(b"\0"):
                    total.update(b"@%d" % at + piece)
                at += len(piece)
    return total.hexdigest()


def errno_of(call, *args):
    try:
        call(*args)
        return 0
    except nbd.Error as e:
        return e.errnum


def check_log(log, expected, name):
    """One line has the file's name and all the words; where there is
    nothing to say, nothing is said."""
    name = expected.file or name
    lines = log.splitlines()
    check(len(lines) <= MAX_LINES, "the log has more than %d lines",
          MAX_LINES)
    if not expected.words:
        check(not lines, "something was said")
        return
    check(any(name in line and all(word in line for word in expected.words)
              for line in lines),
          "no line names %s and says %s", name, expected.words)


def check_blame(log, image):
    """Only what is damaged is blamed: it may be met at the end of a run of
    clusters of which the others are sound."""
    for place in re.findall(r"guest offset (\d+)", log):
        check(any(b <= int(place) < b + n for b, n in image.bad),
              "guest offset %s is sound but was blamed", place)


class Checker:
    def __init__(self, folder):
        self.maker = Maker(folder)
        self.baseline = None
        self.usual_files = set()

    def measure(self):
        """What a sound image takes, and what any server opens."""
        image = self.maker.image("v3", "baseline")
        server = Server(image.path)
        try:
            check(server.wait_ready(), "a sound image is refused:\n%s",
                  server.log())
            memory = (server.proc("VmPeak"), server.proc("VmHWM"))
            server.disconnect(server.connect())
            server.stop()
            self.baseline = memory + (server.max_rss,)
            self.usual_files = server.opened()
            # Or nobody looked.
            check(image.path in self.usual_files,
                  "the image is not among the files that were opened")
        finally:
            server.clean_up()

    def check_files(self, server):
        """Nothing was opened but what is always, and what is in the image's
        folder; and gnutls, in nbdkit, may find it time for a new seed."""
        for name in server.opened() - self.usual_files:
            check(name.startswith((self.maker.folder + "/",
                                   server.folder + "/", "/proc/", "/dev/urandom",
                                   "/sys/devices/system/cpu/")),
                  "the file %s was opened", name)

    def run(self, case):
        image = self.maker.case(case)
        before = digest(image.path)
        expected = case.expected
        lenient = expected.lenient
        memory = MAX_MEMORY_LENIENT if lenient else MAX_MEMORY
        limit = None
        if isinstance(expected, Refused):
            limit = self.baseline[0] + memory
        server = Server(image.path, limit, case.passphrase)
        try:
            serving = server.wait_ready()
            try:
                if isinstance(expected, Refused):
                    self.check_refused(server, serving, memory)
                else:
                    self.check_served(server, serving, image, case)
                check_log(server.log(), expected, image.name())
                self.check_files(server)
                if isinstance(expected, ReadFails):
                    check_blame(server.log(), image)
            except (Failure, nbd.Error) as e:
                raise Failure("%s\nlog:\n%s" % (e, server.log()[:2000]))
            if isinstance(expected, (Refused, ReadOnly)):
                check(digest(image.path) == before, "the file was changed")
        finally:
            server.clean_up()

    def check_refused(self, server, serving, memory):
        check(not serving, "was not refused")
        check(server.status == 1, "ended with status %d, not 1",
              server.status)
        check(not LIMITS or server.seconds < MAX_SECONDS,
              "took %.2f s to refuse", server.seconds)
        check(not LIMITS or server.max_rss - self.baseline[2] < memory,
              "took %d bytes to refuse", server.max_rss - self.baseline[2])

    def check_served(self, server, serving, image, case):
        expected = case.expected
        lenient = expected.lenient
        check(serving, "was refused")
        most_seconds = MAX_SECONDS_LENIENT if lenient else MAX_SECONDS
        if LIMITS:
            seconds = server.cpu()
            check(seconds < most_seconds, "took %.2f s to open", seconds)
        handle = server.connect()
        writable = not handle.is_read_only()
        check(writable != isinstance(expected, ReadOnly),
              "is %s", "writable" if writable else "read-only")
        check(not image.guest or handle.get_size() == len(image.guest)
              or not expected.reads, "has a size of %d", handle.get_size())
        if expected.reads:
            self.check_reads(handle, image)
        if expected.reads:
            self.check_extents(handle, image)
        if isinstance(expected, Serves):
            self.check_writes(handle, image)
        elif isinstance(expected, TrimFails):
            self.check_trim_fails(handle, expected.at)
        elif isinstance(expected, WriteFails):
            self.check_write_fails(handle, expected.at)
        elif isinstance(expected, ReadFails):
            self.check_write_fails(handle, image.bad[0][0])
            self.check_reads(handle, image)
        if LIMITS:
            memory = server.proc("VmHWM") - self.baseline[1]
            most = MAX_MEMORY_LENIENT if lenient else MAX_MEMORY
            check(memory < most, "took %d bytes", memory)
        server.disconnect(handle)
        server.stop()
        check(server.status == 0, "ended with status %d", server.status)
        if LIMITS:
            check(server.seconds < 2 * most_seconds,
                  "took %.2f s in all", server.seconds)
        if isinstance(expected, Serves):
            self.check_again(image, case)

    @staticmethod
    def check_reads(handle, image):
        """Cluster by cluster: what is sound reads right."""
        size = len(image.guest)
        for at in range(0, min(size, 128 * 1024), CLUSTER):
            length = min(CLUSTER, size - at)
            bad = any(at < b + n and b < at + length for b, n in image.bad)
            try:
                content = handle.pread(length, at)
            except nbd.Error as e:
                check(bad, "reading at %d: %s", at, e)
                check(e.errnum == errno.EIO, "reading at %d: errno %d", at,
                      e.errnum)
                continue
            check(not bad, "could be read at %d", at)
            check(content == image.guest[at:at + length],
                  "reads wrong at %d", at)

    @staticmethod
    def check_extents(handle, image):
        """Of the whole disk, if nothing of it is damaged; else an error is
        fine, but no other than EIO."""
        size = handle.get_size()
        at = 0

        def extent(_context, _offset, entries, _error):
            nonlocal at
            at += sum(entries[::2])
            return 0

        while at < size and at < 1 << 40:
            before = at
            try:
                handle.block_status(min(size - at, 1 << 30), at, extent)
            except nbd.Error as e:
                check(e.errnum == errno.EIO, "extents at %d: errno %d", at,
                      e.errnum)
                check(image.bad, "extents at %d: %s", at, e)
                break
            check(at > before, "extents at %d: no progress", at)

    @staticmethod
    def check_writes(handle, image):
        """Into data, into nothing, and into a part of a cluster."""
        size = handle.get_size()
        for at, length in ((12 * 1024, CLUSTER), (512 * 1024, CLUSTER),
                           (17 * 1024, 1024)):
            if at + length > size:
                continue
            handle.pwrite(b"w" * length, at)
            if at < len(image.guest):
                image.guest[at:at + length] = b"w" * length
        handle.flush()

    @staticmethod
    def check_write_fails(handle, at):
        got = errno_of(handle.pwrite, b"w" * 512, at)
        check(got == errno.EIO, "writing at %d: errno %d", at, got)

    @staticmethod
    def check_trim_fails(handle, at):
        got = errno_of(handle.trim, CLUSTER, at)
        check(got == errno.EIO, "trimming at %d: errno %d", at, got)
        got = errno_of(handle.zero, CLUSTER, at)
        check(got == errno.EIO, "zeroes at %d: errno %d", at, got)

    def check_again(self, image, case):
        """What was written is there when the image is opened again."""
        server = Server(image.path, passphrase=case.passphrase)
        try:
            check(server.wait_ready(), "was refused the second time:\n%s",
                  server.log())
            handle = server.connect()
            if len(image.guest) == handle.get_size():
                self.check_reads(handle, image)
            server.disconnect(handle)
        finally:
            server.clean_up()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", metavar="DIR")
    parser.add_argument("case", nargs="*")
    args = parser.parse_args()
    if shutil.which("qemu-img") is None:
        print("skipped: qemu-img is not installed")
        sys.exit(77)
    folder = args.keep
    if not folder:
        folder = tempfile.mkdtemp(prefix="images-data.")
        atexit.register(shutil.rmtree, folder, True)
    checker = Checker(os.path.join(os.path.abspath(folder), "images"))
    checker.measure()
    print("files: %s" % ("strace" if Server.traced else "/proc/PID/fd"))
    failed = count = 0
    for case in CASES:
        if args.case and case.name not in args.case:
            continue
        count += 1
        try:
            checker.run(case)
            print("ok   %s" % case.name, flush=True)
        except Failure as e:
            failed += 1
            print("FAIL %s (expected %s): %s" % (case.name, case.expected,
                                                 e), flush=True)
    print("%d images, %d failed" % (count, failed))
    sys.exit(1 if failed or not count else 0)


if __name__ == "__main__":
    main()
