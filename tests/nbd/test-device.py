#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""Images on a block device: a loop device over a file, which the user must
be allowed to make, else this test is skipped.  (Random requests to such images
are in test-differential.py.)"""

import errno
import fcntl
import os
import random
import sys

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403

CLUSTER = 64 * K


def device_of(lab, size, contents=b"", *options):
    """A new device, and the file that it is over."""
    path = lab.path()
    with open(path, "wb") as f:
        f.write(contents)
        f.truncate(size)
    return Device(lab, path, *options), path


def first_mib(path):
    with open(path, "rb") as f:
        return f.read(1 * M)


def made_on_it(lab):
    """create= on a device, with everything that had been there before behind
    its beginning; and what is preallocated reads as zeroes."""
    for how in "off", "metadata", "falloc", "full":
        device, _ = device_of(lab, 8 * M,
                              bytes(1 * M) + os.urandom(7 * M))
        with lab.server(device.path, create="4M",
                        **{"create.preallocation": how}) as server:
            handle = server.connect()
            check(handle.get_size() == 4 * M, "the size is wrong")
            check(handle.pread(4 * M, 0) == bytes(4 * M),
                  "preallocation=%s: not zero", how)
            handle.pwrite(b"x" * 100000, 1000)
        expect_clean(device.path)
        with lab.server(device.path) as server:
            check(server.connect().pread(100000, 1000) == b"x" * 100000,
                  "what was written is gone")
        # A restart with the same parameters does not make a second one.
        lab.refuses(device.path, "does not begin with zeroes",
                    "blkdiscard -z -l 1M", create="4M")
        expect_clean(device.path)
        device.end()


def not_over_others(lab):
    """Neither over a file system nor where there is no room, and nothing is
    left if it cannot be served."""
    contents = bytes(1024) + b"\0" * 56 + b"\x53\xef"
    device, path = device_of(lab, 8 * M, contents)
    lab.refuses(device.path, "does not begin with zeroes", create="1M")
    check(first_mib(device.path)[:len(contents)] == contents,
          "the file system is damaged")
    device.end()

    device, path = device_of(lab, 2 * M)
    lab.refuses(device.path, "no space", create="4M",
                **{"create.preallocation": "metadata"})
    check(first_mib(device.path) == bytes(1 * M), "something is left")
    lab.refuses(device.path, "missing", create="4M",
                **{"create.backing-file": "missing",
                   "create.backing-fmt": "raw"})
    check(first_mib(device.path) == bytes(1 * M), "something is left")
    check(os.path.exists(device.path), "the node is gone")
    device.end()
    check(os.path.getsize(path) == 2 * M, "the length has changed")


def begun_and_not_ended(lab):
    """A crash while the image was made left a device, or a file, that create=
    refused.  What it leaves is known by what the server writes first, and
    syncs before all else."""
    mark = (b"A disk image was being made here by nbdkit-qcow2-plugin, and is"
            b" not complete.\n").ljust(512, b"\0")
    device, _ = device_of(lab, 8 * M, mark + os.urandom(1 * M))
    path = lab.path()
    with open(path, "wb") as f:
        f.write(mark + os.urandom(12 * M))
    for name in device.path, path:
        with lab.server(name, create="4M") as server:
            handle = server.connect()
            check(handle.pread(4 * M, 0) == bytes(4 * M), "not zero")
            handle.pwrite(b"x" * 100000, 1000)
        expect_clean(name)
    device.end()

    # Of two who make one, the second must not clear what the first has: it
    # did when it failed to lock it.
    device, _ = device_of(lab, 8 * M, mark)
    with open(device.path, "rb") as f:
        fcntl.lockf(f, fcntl.LOCK_SH, 5, 200)   # QEMU's: nobody may write
        lab.refuses(device.path, "another process has the file open",
                    create="4M")
    check(first_mib(device.path)[:512] == mark, "it was changed")
    device.end()

    # Nearly so begins what is not ours to overwrite.
    with open(path, "wb") as f:
        f.write(mark[:-1] + b"x")
    lab.refuses(path, "exists", "remove the file", create="4M")


def attempt(call, *args):
    """None, or the errno."""
    try:
        call(*args)
    except nbd.Error as e:
        return e.errnum
    return None


def full(lab, size=4 * M):
    """A disk that is larger than the device: writes that need space fail with
    ENOSPC, and nothing else does."""
    rng = random.Random(9)
    device, _ = device_of(lab, size)
    disk = bytearray(4 * size)
    places = [CLUSTER * i for i in range(4 * size // CLUSTER)]
    rng.shuffle(places)
    with lab.server(device.path, create=4 * size) as server:
        handle = server.connect()
        done = []
        for at in places:
            data = rng.randbytes(CLUSTER)
            error = attempt(handle.pwrite, data, at)
            check(error in (None, errno.ENOSPC), "errno %s at %d", error, at)
            if error is None:
                disk[at:at + CLUSTER] = data
                done.append(at)
        check(size // CLUSTER - 8 <= len(done) < size // CLUSTER,
              "%d clusters went on a device of %d", len(done),
              size // CLUSTER)
        handle.flush()
        # In place is no new space.
        for at in done[:8]:
            disk[at:at + CLUSTER] = b"y" * CLUSTER
            handle.pwrite(disk[at:at + CLUSTER], at)
        for at in done[8:16]:
            handle.trim(CLUSTER, at)
            disk[at:at + CLUSTER] = bytes(CLUSTER)
        empty = [at for at in places if at not in done]
        again = sum(attempt(handle.pwrite, b"z" * CLUSTER, at) is None
                    for at in empty[:8])
        for at in empty[:again]:
            disk[at:at + CLUSTER] = b"z" * CLUSTER
        check(again >= 6, "%d of 8 trimmed clusters could be used", again)
        handle.flush()
        check(handle.pread(len(disk), 0) == bytes(disk), "the disk differs")
    expect_clean(device.path)
    raw = lab.path()
    with open(raw, "wb") as f:
        f.write(disk)
    compare(device.path, raw)
    device.end()


def kept_out(lab):
    """Locks, by whatever name; and a device that is read-only."""
    device, _ = device_of(lab, 8 * M)
    link = lab.path()
    os.symlink(device.path, link)
    with lab.server(link, create="4M") as server:
        server.connect().pwrite(b"x", 0)
        done = qemu_img("info", "-f", "qcow2", device.path, ok=None)
        check(done.returncode != 0 and "lock" in done.stderr,
              "QEMU opens it: %s", done.stderr)
        lab.refuses(device.path, "in use")
    qemu_img("info", "-f", "qcow2", device.path)
    device.end()
    os.unlink(link)

    source = lab.path()
    create(source, 4 * M)
    with open(source, "ab") as f:
        f.truncate(2 * M)
    device = Device(lab, source, "--read-only")
    with lab.server(device.path) as server:
        check(server.connect().is_read_only(), "it may be written to")
    device.end()


def space_comes_back(lab):
    """A trim is a discard of the device, which frees space of the file."""
    device, path = device_of(lab, 32 * M)
    with lab.server(device.path, create="16M") as server:
        handle = server.connect()
        handle.pwrite(os.urandom(8 * M), 0)
        handle.flush()
        before = os.stat(path).st_blocks
        handle.trim(8 * M, 0)
        handle.flush()
        after = os.stat(path).st_blocks
    device.end()
    print("%d blocks of 512 bytes, %d after the trim" % (before, after))
    check(before - after > 8 * M // 512 - 1000, "%d blocks, and then %d",
          before, after)


def data_on_it(lab):
    """The data file of an image."""
    device, path = device_of(lab, 4 * M)
    image = create(lab.path(), 4 * M, data_file=path, data_file_raw="on")
    contents = os.urandom(3 * M)
    with lab.server(image, data_file=device.path) as server:
        server.connect().pwrite(contents, 4096)
    device.end()
    with open(path, "rb") as f:
        check(f.read() == bytes(4096) + contents + bytes(1 * M - 4096),
              "the device differs from the disk")
    expect_clean(image)


def main():
    lab = Lab()
    if not device_works(lab):
        print("skipped: loop devices cannot be made here")
        sys.exit(77)
    lab.case("made on it", made_on_it, lab)
    lab.case("not over others", not_over_others, lab)
    lab.case("begun and not ended", begun_and_not_ended, lab)
    lab.case("full", full, lab)
    lab.case("kept out", kept_out, lab)
    lab.case("space comes back", space_comes_back, lab)
    lab.case("data on it", data_on_it, lab)
    lab.finish()


if __name__ == "__main__":
    main()
