# SPDX-License-Identifier: BSD-3-Clause

"""What the workloads start from.

Each function makes PATH in the layout asked for, "qcow2" or "raw", with
the same contents in both.  Images that are shared by several runs are
brought into the same state first (see settle).
"""

import errno
import os
import random
import subprocess
import time

K, M, G, T = 1 << 10, 1 << 20, 1 << 30, 1 << 40

# The longest file that ext4 knows, about: longer raw disks end there.
RAW_MOST = 15 * T


def run(*args, **kwargs):
    done = subprocess.run(args, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, **kwargs)
    if done.returncode:
        raise RuntimeError("%s: %s" % (" ".join(args), done.stderr.decode()))
    return done.stdout.decode()


def qemu_io(path, commands, layout="qcow2"):
    args = [a for c in commands for a in ("-c", c)]
    run("qemu-io", "-f", layout, *args, path)


def settle(path):
    """What is in the page cache is durable, and in pages of 4 KiB.

    File systems cache what is written in one go in one piece, of up to
    megabytes, and a later write to a part of it costs by the size of the
    piece: so the server that happens to have the larger ones would lose.
    """
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    warm(path)


def warm(path):
    """All data of the file is in the page cache.

    A kernel may take pages back that nobody touched for a minute, though
    memory is free (DAMON's pageout): each run must begin with the same,
    or the server whose image waited longest would lose.
    """
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)    # no read-ahead
    at, buf = 0, bytearray(M)
    try:
        while True:
            at = os.lseek(fd, at, os.SEEK_DATA)
            end = os.lseek(fd, at, os.SEEK_HOLE)
            while at < end:
                n = os.preadv(fd, [memoryview(buf)[:min(M, end - at)]], at)
                if n == 0:
                    break
                at += n
    except OSError as error:
        if error.errno != errno.ENXIO:                  # no more data
            raise
    os.close(fd)


def files_of(path):
    """The image and what it stands on."""
    folder, name = os.path.split(path)
    return [os.path.join(folder, entry) for entry in os.listdir(folder)
            if entry == name or entry.startswith(name + ".")]


# When each file was read whole, and how long that is good for.
warmed = {}
WARM_SECONDS = 20


def make_ready(path):
    """What a run of a server begins with: nothing that earlier ones left
    is still to be written, and the image is in the page cache."""
    os.sync()
    now = time.monotonic()
    for file in files_of(path):
        stat = os.stat(file)
        if now - warmed.get(stat.st_ino, -WARM_SECONDS) >= WARM_SECONDS:
            warm(file)
            warmed[stat.st_ino] = now


def words(size):
    """Text of random words of a small language: every cluster of it gets
    smaller, to about half."""
    rng = random.Random(size)
    language = [bytes(rng.choices(range(97, 123), k=rng.randint(2, 11)))
                for _ in range(5000)]
    text = b" ".join(rng.choices(language, k=size // 4))
    return text[:size]


def fill(path, size, compressible=False):
    """Make a file of SIZE bytes, none of them zero for long."""
    block = words(16 * M) if compressible else os.urandom(16 * M)
    with open(path, "wb") as f:
        for i in range(size // M):
            f.write(block[i % 16 * M:(i % 16 + 1) * M])


def convert(path, layout, size, options=(), compressible=False):
    source = path + ".source"
    fill(source, size, compressible)
    run("qemu-img", "convert", "-f", "raw", "-O", layout,
        *(options if layout == "qcow2" else []), source, path)
    os.unlink(source)


def allocated(path, layout, size=1 * G):
    convert(path, layout, size)


def small_clusters(path, layout):
    convert(path, layout, 512 * M, ["-o", "cluster_size=4k"])


def compressed(path, layout):
    convert(path, layout, 256 * M, ["-c"], compressible=True)


def empty(path, layout, size=4 * G, options=""):
    run("qemu-img", "create", "-f", layout,
        *(["-o", options] if options and layout == "qcow2" else []),
        path, str(size if layout == "qcow2" else min(size, RAW_MOST)))


def empty_1t(path, layout):
    empty(path, layout, 1 * T)


def empty_small_clusters(path, layout):
    empty(path, layout, options="cluster_size=4k")


def mapped(path, layout):
    """64 GiB of which every cluster has its place; no data."""
    empty(path, layout, 64 * G, "preallocation=metadata")


def overlay(path, layout):
    """Half of it written, in stretches of 1 MiB."""
    base = path + ".base"
    allocated(base, layout, 512 * M)
    if layout == "raw":
        os.rename(base, path)
        return
    run("qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "qcow2", path)
    qemu_io(path, ["write -q %dM 1M" % at for at in range(0, 512, 2)])


def with_snapshots(path, layout, size=64 * T, snapshots=8, written=256 * M):
    """Written, snapshots made, and written again: the active disk has
    clusters of its own."""
    write = ["write -q %d %d" % (at, 16 * M)
             for at in range(0, written, 16 * M)]
    empty(path, layout, size)
    qemu_io(path, write, layout)
    if layout == "raw":
        return
    for i in range(snapshots):
        run("qemu-img", "snapshot", "-c", "s%d" % i, path)
    qemu_io(path, write)


def huge(path, layout):
    with_snapshots(path, layout)


def chain(path, layout, length):
    """LENGTH images, each with one MiB in LENGTH of its own; all but the
    topmost read-only."""
    below = None
    size = 128 * M
    for i in range(length):
        here = path if i == length - 1 else "%s.%d" % (path, i)
        backing = ["-b", below, "-F", "qcow2"] if below else []
        run("qemu-img", "create", "-f", "qcow2", *backing, here, str(size))
        writes = ["write -q %dM 1M" % at
                  for at in range(i, size // M, length)]
        if writes:
            qemu_io(here, writes)
        settle(here)
        below = here


class Images:
    """Made when first needed, and one at a time where each run needs a
    new one."""

    def __init__(self, folder):
        self.folder = folder
        self.made = {}

    def get(self, make, layout, fresh=False):
        """The image that MAKE makes, by its name."""
        key = (make.__name__, layout)
        path = os.path.join(self.folder, "%s.%s" % key)
        if fresh:
            path += ".fresh"
            self.remove(path)
            make(path, layout)
        elif key not in self.made:
            self.made[key] = path
            make(path, layout)
            settle(path)
        return path

    def remove(self, path):
        for file in files_of(path):
            os.unlink(file)

    def forget(self, keep=()):
        """Give back all but those of the functions that KEEP names."""
        for key in [k for k in self.made if k[0] not in keep]:
            self.remove(self.made.pop(key))
