# SPDX-License-Identifier: BSD-3-Clause

"""A flat disk to hold against a served one, and random requests to both.

The model is a sparse raw file.  Requests are made asynchronously, over one
or several connections; two requests that are in flight at once never touch
the same sector (they do touch the same cluster), so that the model is exact.

For every sector the model also knows which contents may be met after a
crash: what was there at the last durable moment, or anything written since,
never a third value.
"""

import ctypes
import errno
import os
import select
import shutil

import nbd

from qcow2lab import Failure, block_status, check

SECTOR = 512

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong,
                            ctypes.c_longlong]
PUNCH_HOLE = 3                  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


def all_zero(data):
    """One comparison of memory: ten times as fast as looking at bytes."""
    return data == bytes(len(data))


class Entry:
    """A change in the log of a model.  CONTENT is of whole sectors; None
    is zeroes."""

    def __init__(self, offset, length, content):
        self.offset, self.length, self.content = offset, length, content
        self.completed = False
        self.durable = False

    def sector(self, at):
        if self.content is None:
            return None
        return self.content[at - self.offset:at - self.offset + SECTOR]


class Model:
    def __init__(self, path):
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.size = os.fstat(self.fd).st_size
        self.log = []
        self.base = None

    def close(self):
        os.close(self.fd)
        self.forget()

    def grow(self, size):
        """By zeroes, when no changes are logged."""
        os.ftruncate(self.fd, size)
        self.size = size

    def read(self, offset, length):
        return os.pread(self.fd, length, offset)

    def write(self, offset, data):
        os.pwrite(self.fd, data, offset)

    def zero(self, offset, length):
        if length < 65536:
            self.write(offset, bytes(length))
        elif _libc.fallocate(self.fd, PUNCH_HOLE, offset, length) != 0:
            raise OSError(ctypes.get_errno(), "fallocate")

    def is_zero(self, offset, length):
        """By the data of the range only, so that holes cost nothing."""
        end = offset + length
        while offset < end:
            try:
                offset = os.lseek(self.fd, offset, os.SEEK_DATA)
            except OSError as e:
                if e.errno == errno.ENXIO:
                    return True
                raise
            if offset >= end:
                return True
            part = os.pread(self.fd, min(1 << 20, end - offset), offset)
            if not all_zero(part):
                return False
            offset += len(part)
        return True

    # What a crash may leave.

    def remember(self):
        """From now on all changes are logged; what is here is durable."""
        self.forget()
        self.base = self.path + ".base"
        shutil.copyfile(self.path, self.base) if self.size < 1 << 20 else \
            copy_sparse(self.path, self.base)

    def forget(self):
        if self.base:
            os.unlink(self.base)
        self.base = None
        self.log = []

    def logged(self, offset, length, zero=False):
        """Note that the range is changed: to what the model has there, or
        to zeroes.  Sectors are noted whole."""
        if self.base is None:
            return None
        first = offset // SECTOR * SECTOR
        end = min((offset + length + SECTOR - 1) // SECTOR * SECTOR,
                  self.size)
        if zero and first == offset and end == offset + length:
            content = None
        else:
            content = self.read(first, end - first)
            if zero:
                at = offset - first
                content = content[:at] + bytes(length) + \
                    content[at + length:]
        entry = Entry(first, end - first, content)
        self.log.append(entry)
        return entry

    def refine(self, entry, piece):
        """Replace ENTRY by entries that say what the model holds now;
        the list of them."""
        fresh = []
        at = entry.offset
        while at < entry.offset + entry.length:
            length = min(piece, entry.offset + entry.length - at)
            content = None if self.is_zero(at, length) \
                else self.read(at, length)
            fresh.append(Entry(at, length, content))
            at += length
        where = self.log.index(entry)
        self.log[where:where + 1] = fresh
        return fresh

    def whose(self, sector):
        """A hint: where else such a sector was written."""
        if not all_zero(sector):
            for entry in self.log:
                if entry.content and sector in entry.content:
                    return " (written at %d)" % (
                        entry.offset + entry.content.index(sector))
        return ""

    def survived(self, raw):
        """RAW is what the disk holds after a crash: check it, and take it
        as the contents from now on."""
        base = os.open(self.base, os.O_RDONLY)
        got = os.open(raw, os.O_RDWR)
        blank = bytes(SECTOR)
        chunk = 1 << 18
        try:
            for at in data_chunks((self.fd, base, got), self.size, chunk):
                length = min(chunk, self.size - at)
                new = os.pread(got, length, at)
                if new == os.pread(self.fd, length, at):
                    continue
                near = [e for e in self.log if e.offset < at + length and
                        e.offset + e.length > at]
                for s in range(at, at + length, SECTOR):
                    have = new[s - at:s - at + SECTOR]
                    if have == os.pread(self.fd, SECTOR, s):
                        continue
                    allowed = [os.pread(base, SECTOR, s)]
                    for entry in near:
                        if entry.offset <= s < entry.offset + entry.length:
                            if entry.durable:
                                allowed = []
                            content = entry.sector(s)
                            allowed.append(blank[:len(have)] if content
                                           is None else content)
                    if have not in allowed:
                        raise Failure(
                            "after the crash the sector at %d (%#x) holds "
                            "%s%s, and none of the %d contents it may hold: "
                            "%s" % (s, s, describe(have), self.whose(have),
                                    len(allowed),
                                    [describe(a) for a in allowed]))
        finally:
            os.close(base)
            os.close(got)
        self.forget()
        os.close(self.fd)
        os.rename(raw, self.path)
        self.fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)


def describe(sector):
    if all_zero(sector):
        return "zeroes"
    return "%s...%s" % (sector[:8].hex(), sector[-8:].hex())


def copy_sparse(source, target):
    with open(source, "rb") as src, open(target, "wb") as dst:
        size = os.fstat(src.fileno()).st_size
        os.truncate(target, size)
        for at in data_chunks((src.fileno(),), size, 1 << 20):
            dst.seek(at)
            dst.write(os.pread(src.fileno(), min(1 << 20, size - at), at))


def data_chunks(fds, size, chunk):
    """Offsets of the chunks in which any of the files has data."""
    found = set()
    for fd in fds:
        at = 0
        while at < size:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as e:
                if e.errno == errno.ENXIO:
                    break
                raise
            end = os.lseek(fd, at, os.SEEK_HOLE)
            found.update(range(at // chunk, (end + chunk - 1) // chunk))
            at = end
    return [c * chunk for c in sorted(found) if c * chunk < size]


class Request:
    """A request in flight."""

    def __init__(self, kind, offset, length):
        self.kind, self.offset, self.length = kind, offset, length
        self.flags = 0
        self.handle = None
        self.cookie = None
        self.buffer = None
        self.covers = []        # a flush: what it makes durable
        self.entry = None


class Driver:
    """Random requests to the handles, all of one disk, and to the model.

    AREAS is a list of (start, end) in which most requests lie.  TRIMS says
    what a trim must do to whole clusters: "zero", or "any" if it may also
    leave them alone; with "none" it must leave everything alone.
    """

    def __init__(self, rng, handles, model, cluster_size, areas,
                 depth=1, trims="zero", readonly_disks=(), strict=True,
                 apart=SECTOR):
        self.rng = rng
        self.handles = handles
        self.model = model
        self.cluster = cluster_size
        self.subcluster = cluster_size # of what is mapped as one
        self.areas = areas
        self.depth = depth
        self.trims = trims
        # (handle, file descriptor of the raw contents)
        self.readonly_disks = list(readonly_disks)
        self.strict = strict
        self.apart = apart      # requests in flight share no such block
        self.pending = []
        self.counts = {}
        self.history = []
        # The largest trim, and the largest zero request: version 2 and
        # requests without holes may need data written.
        self.largest = (1 << 32) - SECTOR if strict else 1 << 30
        self.largest_written = 4 << 20
        self.may_write_zeroes = False
        self.limit = 24 << 20

    # Choices.

    def range(self, large=0):
        rng = self.rng
        size = self.model.size
        if large and rng.random() < 0.1:
            start = rng.randrange(size) // SECTOR * SECTOR
            if rng.random() < 0.5:
                start = start // self.cluster * self.cluster
            length = min(size - start, large)
            return start, rng.randrange(length // SECTOR) * SECTOR + SECTOR \
                if length >= SECTOR else length
        if rng.random() < 0.15:
            low, high = 0, size
        else:
            low, high = rng.choice(self.areas)
        kind = rng.random()
        if kind < 0.3:          # anything
            start = rng.randrange(low, high)
            length = rng.randint(1, 5000)
        elif kind < 0.6:        # sectors
            start = rng.randrange(low, high) // SECTOR * SECTOR
            length = rng.randint(1, 24) * SECTOR
        elif kind < 0.9:        # clusters, or subclusters
            unit = rng.choice((self.cluster, self.subcluster))
            start = rng.randrange(low, high) // unit * unit
            length = rng.choice((1, 1, 1, 2, 3, 5)) * unit
        else:                   # around clusters
            start = rng.randrange(low, high) // self.cluster * self.cluster
            start = max(0, start + rng.choice((-1, 0, 1)) * SECTOR)
            length = rng.choice((1, 2, 3)) * self.cluster + \
                rng.choice((-1, 0, 1)) * SECTOR
            length = max(length, SECTOR)
        start = min(start, size - 1)
        return start, min(length, size - start, 5 << 20)

    def busy(self, offset, length):
        unit = self.apart
        first = offset // unit * unit
        end = (offset + length + unit - 1) // unit * unit
        return any(p.length and p.offset // unit * unit < end and
                   p.offset + p.length > first for p in self.pending)

    def data(self, length):
        kind = self.rng.random()
        if kind < 0.05:
            return bytes(length)
        if kind < 0.15:
            return bytes([self.rng.randrange(256)]) * length
        return self.rng.randbytes(length)

    # One request.

    def submit(self):
        rng = self.rng
        kind = rng.choices(
            ("write", "zero", "trim", "flush", "read", "status", "cache",
             "snapshot"),
            (32, 14, 10, 5, 24, 8, 2, 3))[0]
        offset, length, fua = 0, 0, False
        if kind != "flush":
            flags = self.zero_flags() if kind == "zero" else 0
            large = 0
            if kind in ("zero", "trim"):
                large = self.largest_written \
                    if flags & nbd.CMD_FLAG_NO_HOLE or \
                    self.may_write_zeroes else self.largest
            offset, length = self.range(large)
            fua = kind in ("write", "zero", "trim") and rng.random() < 0.08
            if fua:
                # Whole sectors: a FUA request makes nothing durable but
                # its own bytes.
                end = min((offset + length + SECTOR - 1) // SECTOR * SECTOR,
                          self.model.size)
                offset = offset // SECTOR * SECTOR
                length = end - offset
            if self.busy(offset, length):
                return False
        req = Request(kind, offset, length)
        if kind == "zero":
            req.flags = flags
        req.handle = rng.choice(self.handles)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        getattr(self, "submit_" + kind)(req, fua)
        self.history.append((kind, offset, length, req.flags))
        return True

    def submit_write(self, req, fua):
        data = self.data(req.length)
        req.buffer = nbd.Buffer.from_bytearray(bytearray(data))
        req.flags = nbd.CMD_FLAG_FUA if fua else 0
        self.model.write(req.offset, data)
        req.entry = self.model.logged(req.offset, req.length)
        req.cookie = req.handle.aio_pwrite(req.buffer, req.offset,
                                           flags=req.flags)
        self.pending.append(req)

    def zero_flags(self):
        flags = 0
        if self.rng.random() < 0.4:
            flags |= nbd.CMD_FLAG_NO_HOLE
        # QEMU zeroes the edges before it refuses.
        if self.rng.random() < 0.3 and self.strict:
            flags |= nbd.CMD_FLAG_FAST_ZERO
        return flags

    def submit_zero(self, req, fua):
        if fua:
            req.flags |= nbd.CMD_FLAG_FUA
        flags = req.flags
        if flags & nbd.CMD_FLAG_FAST_ZERO:
            # It may be refused and then has done nothing, so the model
            # learns of it only afterwards.  Logged it is already: a crash
            # may come between.
            req.entry = self.model.logged(req.offset, req.length, zero=True)
        else:
            self.model.zero(req.offset, req.length)
            req.entry = self.model.logged(req.offset, req.length, zero=True)
        req.cookie = req.handle.aio_zero(req.length, req.offset, flags=flags)
        self.pending.append(req)

    def submit_trim(self, req, fua):
        req.flags = nbd.CMD_FLAG_FUA if fua else 0
        req.entry = self.model.logged(req.offset, req.length, zero=True)
        req.cookie = req.handle.aio_trim(req.length, req.offset,
                                         flags=req.flags)
        self.pending.append(req)

    def submit_flush(self, req, _fua):
        req.covers = [e for e in self.model.log if e.completed]
        req.cookie = req.handle.aio_flush()
        self.pending.append(req)

    def submit_read(self, req, _fua):
        req.buffer = nbd.Buffer(req.length)
        req.cookie = req.handle.aio_pread(req.buffer, req.offset)
        self.pending.append(req)

    def submit_cache(self, req, _fua):
        req.cookie = req.handle.aio_cache(req.length, req.offset)
        self.pending.append(req)

    def submit_status(self, req, _fua):
        """Synchronous, on a range that nobody changes meanwhile."""
        one = self.rng.random() < 0.3
        extents = block_status(req.handle, req.offset, req.length, one)
        at = req.offset
        for length, flags in extents:
            check(length > 0, "empty extent at %d", at)
            check(at < req.offset + req.length,
                  "extent beyond the request %d+%d: %s", req.offset,
                  req.length, extents)
            if flags & nbd.STATE_ZERO:
                known = min(length, req.offset + req.length - at)
                check(self.model.is_zero(at, known),
                      "%d+%d is said to be zeroes and is not", at, length)
            at += length
        if self.strict:
            check(at <= req.offset + req.length,
                  "extents reach past the request %d+%d: %s", req.offset,
                  req.length, extents)
        if one:
            check(len(extents) == 1, "asked for one extent, got %s", extents)
        elif self.strict:
            check(at == req.offset + req.length,
                  "extents do not cover the request %d+%d: %s", req.offset,
                  req.length, extents)

    def submit_snapshot(self, req, _fua):
        """The snapshots are served too, and never change."""
        if not self.readonly_disks:
            return
        handle, fd = self.rng.choice(self.readonly_disks)
        size = handle.get_size()
        if req.offset >= size:
            return
        length = min(req.length, size - req.offset)
        check(handle.pread(length, req.offset) ==
              os.pread(fd, length, req.offset).ljust(length, b"\0"),
              "the snapshot's export differs at %d+%d", req.offset, length)

    # Replies.

    def reap(self, wait=True):
        """Handle what has been answered; wait for one answer at least."""
        while self.pending:
            done = []
            for req in self.pending:
                error = 0
                try:
                    if not req.handle.aio_command_completed(req.cookie):
                        continue
                except nbd.Error as e:
                    error = e.errno if isinstance(e.errno, int) \
                        else getattr(errno, e.errno)
                done.append((req, error))
            for req, error in done:
                self.answered(req, error)
                self.pending.remove(req)
            if done or not wait:
                return
            self.pump(1000)

    def pump(self, milliseconds):
        poll = select.poll()
        known = {}
        for handle in self.handles:
            events = 0
            direction = handle.aio_get_direction()
            if direction & nbd.AIO_DIRECTION_READ:
                events |= select.POLLIN
            if direction & nbd.AIO_DIRECTION_WRITE:
                events |= select.POLLOUT
            known[handle.aio_get_fd()] = handle
            poll.register(handle.aio_get_fd(), events)
        for fd, events in poll.poll(milliseconds):
            handle = known[fd]
            direction = handle.aio_get_direction()
            if events & ~select.POLLOUT and \
               direction & nbd.AIO_DIRECTION_READ:
                handle.aio_notify_read()
            elif events & select.POLLOUT and \
                    direction & nbd.AIO_DIRECTION_WRITE:
                handle.aio_notify_write()

    def answered(self, req, error):
        if error == errno.ENOTSUP and req.flags & nbd.CMD_FLAG_FAST_ZERO:
            if req.entry:
                self.model.log.remove(req.entry)
            return
        check(error == 0, "%s %d+%d flags %d: %s", req.kind, req.offset,
              req.length, req.flags, os.strerror(error))
        if req.kind == "read":
            self.compare(req, bytes(req.buffer.to_bytearray()))
        elif req.kind == "zero" and req.flags & nbd.CMD_FLAG_FAST_ZERO:
            self.model.zero(req.offset, req.length)
        elif req.kind == "trim":
            self.trimmed(req)
        entries = []
        if req.entry and req.kind == "trim":
            entries = self.model.refine(req.entry, self.limit)
        elif req.entry:
            entries = [req.entry]
        for entry in entries:
            entry.completed = True
            entry.durable = bool(req.flags & nbd.CMD_FLAG_FUA)
        for entry in req.covers:
            entry.durable = True

    def compare(self, req, got):
        want = self.model.read(req.offset, req.length)
        if got == want:
            return
        for at in range(0, req.length, SECTOR):
            if got[at:at + SECTOR] != want[at:at + SECTOR]:
                break
        raise Failure("read %d+%d: differs from %d (%#x) on: got %s, "
                      "want %s; last requests there: %s" % (
                          req.offset, req.length, req.offset + at,
                          req.offset + at, describe(got[at:at + SECTOR]),
                          describe(want[at:at + SECTOR]),
                          self.last_requests(req.offset + at)))

    def last_requests(self, at):
        return [h for h in self.history
                if h[1] <= at < h[1] + h[2] and
                h[0] in ("write", "zero", "trim")][-6:]

    def trimmed(self, req):
        """NBD lets a trim do anything; here each sector must read as
        before or as zeroes, and whole clusters as zeroes (if TRIMS says
        so)."""
        at = req.offset
        end = req.offset + req.length
        while at < end:
            length = min(self.limit, end - at)
            if self.trims == "none":
                check(req.handle.pread(length, at) ==
                      self.model.read(at, length),
                      "a trim that should do nothing changed %d+%d", at,
                      length)
                at += length
                continue
            if self.model.is_zero(at, length):
                # Zeroes before; they must not have changed, and reading
                # gigabytes of them back would take all our time.
                if length < 1 << 20:
                    check(all_zero(req.handle.pread(length, at)),
                          "trim made data of zeroes at %d+%d", at, length)
                at += length
                continue
            self.trimmed_part(req, at, length, end)
            at += length

    def trimmed_part(self, req, at, length, end):
        got = req.handle.pread(length, at)
        want = self.model.read(at, length)
        if all_zero(got):
            self.model.zero(at, length)
            return
        result = bytearray(want)
        first = at
        while first < at + length:
            # Cluster by cluster; SECTOR pieces within.
            stop = min((first // self.cluster + 1) * self.cluster,
                       at + length)
            start = first // self.cluster * self.cluster
            whole = start >= req.offset and (
                start + self.cluster <= end or end == self.model.size)
            piece = got[first - at:stop - at]
            if all_zero(piece):
                result[first - at:stop - at] = piece
            elif whole and self.trims == "zero":
                raise Failure("trim %d+%d: the whole cluster at %d does not "
                              "read as zeroes" % (req.offset, req.length,
                                                  start))
            else:
                s = first
                while s < stop:
                    t = min((s // SECTOR + 1) * SECTOR, stop)
                    now = got[s - at:t - at]
                    if now != want[s - at:t - at]:
                        check(all_zero(now),
                              "trim %d+%d: the sector at %d is neither as "
                              "before nor zeroes", req.offset, req.length, s)
                        result[s - at:t - at] = now
                    s = t
            first = stop
        if bytes(result) != want:
            self.model.write(at, bytes(result))

    # Many.

    def go(self, count):
        made = 0
        while made < count:
            if self.submit():
                made += 1
            while len(self.pending) >= self.depth:
                self.reap()
        self.drain()

    def go_until_crash(self, count):
        """As go, but leave the last requests in flight."""
        made = 0
        while made < count:
            if self.submit():
                made += 1
            if made < count:
                while len(self.pending) >= self.depth:
                    self.reap()
        # Send them, at least.
        for _ in range(self.rng.randrange(4)):
            self.pump(0)

    def drain(self):
        while self.pending:
            self.reap()
