#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""External data files: each byte of the disk is in them where the client
sees it; a raw one is the disk for who reads it alone, zeroes and holes
included; they are found, locked and refused as they should be."""

import errno
import os
import random
import shutil
import sys

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403

# Cluster size, extended L2 entries, whether the data file is raw.
KINDS = [
    (65536, "off", "off"), (65536, "off", "on"), (512, "off", "off"),
    (4096, "off", "on"), (16384, "on", "off"), (65536, "on", "on"),
]


def make(lab, size, raw="off", name=None, **options):
    """(image, data file), which names it without a folder."""
    path = lab.path()
    data = name or path + ".data"
    qemu_img("create", "-q", "-f", "qcow2", "-o", ",".join(
        ["data_file=" + os.path.basename(data), "data_file_raw=" + raw]
        + ["%s=%s" % kv for kv in options.items()]), path, str(size))
    return path, data


def used(path):
    return os.stat(path).st_blocks * 512


def at(path, offset, length):
    with open(path, "rb") as f:
        f.seek(offset)
        return f.read(length)


def agree(path, data, model):
    """The image is the model, and so is the data file where it must be."""
    expect_clean(path)
    info = image_info(path)
    raw = info["format-specific"]["data"]["data-file-raw"]
    cluster = info["cluster-size"]
    flat = path + ".flat"
    with open(flat, "wb") as f:
        f.write(model)
    compare(path, flat)
    with Qcow2(path) as parsed:
        check(parsed.autoclear >> 1 & 1 == raw, "autoclear is %#x",
              parsed.autoclear)
    if raw:
        compare(data, flat, fmt="raw")
    # Preallocating, QEMU makes it whole clusters long.
    most = (len(model) + cluster - 1) // cluster * cluster
    check(len(model) * raw <= os.path.getsize(data) <= most,
          "the data file has %d bytes", os.path.getsize(data))
    os.unlink(flat)


def requests(lab, cluster, extended, raw):
    """Some of each; data is where it must be, byte for byte."""
    size = 40 * cluster + 1024
    path, data = make(lab, size, raw, cluster_size=cluster,
                      extended_l2=extended)
    model = bytearray(size)
    rng = random.Random(cluster)
    with lab.server(path) as server:
        handle = server.connect()
        for i in range(60):
            start = rng.randrange(size)
            length = min(rng.randrange(1, 3 * cluster), size - start)
            what = i % 4
            if what < 2:
                piece = bytes([rng.randrange(1, 256)]) * length
                handle.pwrite(piece, start, flags=nbd.CMD_FLAG_FUA
                              if rng.random() < 0.2 else 0)
                model[start:start + length] = piece
                check(at(data, start, length) == piece,
                      "data of %d is elsewhere", start)
            elif what == 2:
                handle.zero(length, start, flags=nbd.CMD_FLAG_NO_HOLE
                            if rng.random() < 0.5 else 0)
                model[start:start + length] = bytes(length)
            else:
                unit = cluster // 32 if extended == "on" else cluster
                start, length = start // unit * unit, \
                    max(length // unit, 1) * unit
                length = min(length, size - start)
                handle.trim(length, start)
                length = length // unit * unit \
                    if start + length < size else length
                model[start:start + length] = bytes(length)
            if raw == "on":
                check(at(data, start, length) == model[start:start + length],
                      "the raw file does not have what request %d (kind %d) "
                      "wrote at %d", i, what, start)
        handle.flush()
        check(handle.pread(size, 0) == model, "reads something else")
    agree(path, data, model)


def space_comes_back(lab, raw):
    path, data = make(lab, 32 * M, raw)
    with lab.server(path) as server:
        handle = server.connect()
        handle.pwrite(b"x" * (16 * M), 0)
        handle.flush()
        full = used(data)
        handle.trim(8 * M, 0)
        handle.zero(4 * M, 8 * M)
        handle.zero(2 * M, 12 * M, flags=nbd.CMD_FLAG_NO_HOLE)
        handle.flush()
        check(full - used(data) == 12 * M, "%d of %d bytes came back",
              full - used(data), 12 * M)
    agree(path, data, bytes(14 * M) + b"x" * (2 * M) + bytes(16 * M))
    with lab.server(path, discard="ignore") as server:
        handle = server.connect()
        before = used(data)
        handle.trim(M, 14 * M)
        handle.zero(M, 15 * M)
        check(handle.pread(1, 14 * M) == b"x", "trimmed all the same")
        check(used(data) == before, "a hole was punched")


def zero_clusters_of_qemu(lab):
    """Where QEMU has set zero flags, a raw file is to stay the disk."""
    path, data = make(lab, 4 * M, "on")
    model = bytearray(b"\x07" * (4 * M))
    qemu_io(path, "write -P 7 0 4M", "write -z 1M 1M", "discard 2M 64k")
    model[1 * M:2 * M] = bytes(M)
    model[2 * M:2 * M + 64 * K] = bytes(64 * K)
    with lab.server(path) as server:
        handle = server.connect()
        handle.pwrite(b"new", 1 * M + 100000)
        model[1 * M + 100000:1 * M + 100003] = b"new"
        handle.flush()
        check(at(data, 1 * M, 2 * M) == model[1 * M:3 * M],
              "the raw file is not the disk")
        server.kill()
    expect_clean(path, leaks_allowed=True)
    agree(path, data, model)


def fast_zero(lab):
    path, _ = make(lab, M, "on")
    with lab.server(path) as server:
        handle = server.connect()
        handle.pwrite(b"x" * M, 0)
        if not handle.can_fast_zero():
            return
        got = errno_of(handle.zero, 1000, 500, flags=nbd.CMD_FLAG_FAST_ZERO)
        check(got in (0, errno.ENOTSUP), "errno %d", got)
        if got == 0:
            check(handle.pread(1000, 500) == bytes(1000), "not zero")


def block_status_of_raw(lab):
    path, _ = make(lab, 4 * M, "on")
    with lab.server(path) as server:
        handle = server.connect()
        handle.pwrite(b"x" * 65536, 2 * M)
        handle.flush()
        found = whole_map(handle)
    # (The first block was written when the file was made.)
    check(found[-3:] == [[found[-3][0], 2 * M, 2], [2 * M, 2 * M + 65536, 0],
                         [2 * M + 65536, 4 * M, 2]] and
          found[-3][0] <= 65536, "the map is %s", found)


def another_data_file(lab):
    """data-file= counts, not the name in the image, and needs no
    permission."""
    path, data = make(lab, M)
    elsewhere = lab.path("elsewhere")
    os.mkdir(elsewhere)
    moved = os.path.join(elsewhere, "moved")
    qemu_io(path, "write -P 3 0 1M")
    shutil.move(data, moved)
    lab.refuses(path, os.path.basename(data), "No such file")
    with lab.server(path, data_file=moved, external_files="none") as server:
        handle = server.connect()
        check(handle.pread(M, 0) == b"\3" * M, "reads something else")
        handle.pwrite(b"y" * 1000, 5000)
    check(at(moved, 4999, 1002) == b"\3" + b"y" * 1000 + b"\3", "elsewhere")
    lab.refuses(path, "data file", "the image itself", data_file=path)
    link = lab.path("link")
    os.link(path, link)
    lab.refuses(path, "data file", "the image itself", data_file=link)
    lab.refuses(path, "neither a regular file", data_file="/dev/null")
    plain = create(lab.path(), M)
    lab.refuses(plain, "has no external data file", data_file=moved)


def locks(lab):
    path, data = make(lab, M)
    other, _ = make(lab, M, name=data)
    with lab.server(path) as server:
        server.connect().pwrite(b"x", 0)
        said = run("qemu-io", "-f", "raw", "-c", "write 0 512", data,
                   ok=None)
        check("lock" in said.stderr + said.stdout, "QEMU may write: %s%s",
              said.stdout, said.stderr)
        said = lab.refuses(other, "data file", "in use")
        check(data in said, "not named: %s", said)
    with lab.server(path, readonly=True) as server:
        with lab.server(other) as second:       # readers do no harm
            server.connect().pread(512, 0)
            check(errno_of(second.connect) != 0, "one writes, one reads")
            check(data + ": cannot be opened for writing" in second.log(),
                  "the data file is not named: %s", second.log())


def over_nbd(lab, arguments, **more):
    """A data file that is an export, which has the last word on blocks."""
    path, data = make(lab, 8 * M, **more)
    os.truncate(data, 8 * M)
    below = Below(lab, data, **arguments)
    model = bytearray(8 * M)
    rng = random.Random(1)
    with lab.server(path, data_file=below.uri(), below=below) as server:
        handle = server.connect()
        for _ in range(40):
            start = rng.randrange(8 * M - 200000)
            piece = bytes([rng.randrange(256)]) * rng.randrange(1, 200000)
            handle.pwrite(piece, start)
            model[start:start + len(piece)] = piece
        handle.trim(M, 3 * M)
        model[3 * M:4 * M] = bytes(M)
        handle.flush()
        check(handle.pread(8 * M, 0) == model, "reads something else")
    agree(path, data, model)


def read_only_data_file(lab):
    path, data = make(lab, M)
    os.truncate(data, M)
    below = Below(lab, data, options=["-r"])
    with lab.server(path, data_file=below.uri(), below=below) as server:
        check(server.connect().is_read_only(), "is writable")
        check("data file" in server.log() and "read-only" in server.log(),
              "nothing was said: %s", server.log())


def full_data_file(lab):
    """It cannot hold what the disk could: ENOSPC, and nothing else is
    lost."""
    path, data = make(lab, 8 * M)
    os.truncate(data, 4 * M)
    below = Below(lab, data)
    with lab.server(path, data_file=below.uri(), below=below) as server:
        handle = server.connect()
        handle.pwrite(b"a" * (2 * M), 2 * M)
        got = errno_of(handle.pwrite, b"b" * M, 4 * M - 1000)
        check(got == errno.ENOSPC, "errno %d", got)
        handle.flush()
        handle.pwrite(b"c" * 1000, 0)
        handle.flush()
        check(handle.pread(2 * M - 1000, 2 * M) == b"a" * (2 * M - 1000),
              "data was lost")
    expect_clean(path, leaks_allowed=True)


def in_a_chain(lab):
    """The backing file has a data file of its own."""
    base, _ = make(lab, 4 * M)
    qemu_io(base, "write -P 9 1M 1M")
    path, data = make(lab, 4 * M)
    qemu_img("rebase", "-u", "-b", os.path.basename(base), "-F", "qcow2",
             path)
    model = bytearray(4 * M)
    model[M:2 * M] = b"\x09" * M
    with lab.server(path) as server:
        handle = server.connect()
        check(handle.pread(4 * M, 0) == model, "reads something else")
        handle.pwrite(b"n" * 1000, M + 100)
        model[M + 100:M + 1100] = b"n" * 1000
        handle.trim(64 * K, 2 * M - 64 * K)
        model[2 * M - 64 * K:2 * M] = bytes(64 * K)
        handle.zero(1000, M + 70000)
        model[M + 70000:M + 71000] = bytes(1000)
        check(handle.pread(4 * M, 0) == model, "reads something else then")
    agree(path, data, model)


def check_parameter(lab):
    """A leak and a wrong count beside a data file."""
    path, data = make(lab, M)
    qemu_io(path, "write -P 1 0 1M")
    with Qcow2(path) as image:
        image.set_refcount(image.length() // 65536 - 1, 3)
    check(image_check(path)["leaks"] > 0, "no leak was made")
    with lab.server(path, check="all") as server:
        server.connect()
    agree(path, data, b"\1" * M)


def main():
    lab = Lab()
    if not lab.ours:
        skip("qemu-nbd knows nothing of these parameters")
    os.chdir(lab.folder)        # QEMU looks there, not beside the image
    for kind in KINDS:
        lab.case("requests %d, extended %s, raw %s" % kind, requests, lab,
                 *kind)
    for raw in ("off", "on"):
        lab.case("space comes back, raw " + raw, space_comes_back, lab, raw)
    lab.case("zero clusters of QEMU", zero_clusters_of_qemu, lab)
    lab.case("fast zero", fast_zero, lab)
    lab.case("block status of a raw one", block_status_of_raw, lab)
    lab.case("another data file", another_data_file, lab)
    lab.case("locks", locks, lab)
    policy = {"filters": ["blocksize-policy"], "args":
              ["blocksize-minimum=4096", "blocksize-preferred=4096",
               "blocksize-maximum=1M", "blocksize-error-policy=error"]}
    lab.case("over NBD", over_nbd, lab, {})
    lab.case("over NBD, blocks", over_nbd, lab, policy)
    lab.case("over NBD, blocks, raw", over_nbd, lab, policy, raw="on")
    lab.case("over qemu-nbd", over_nbd, lab, {"qemu": True})
    lab.case("read-only data file", read_only_data_file, lab)
    lab.case("full data file", full_data_file, lab)
    lab.case("in a chain", in_a_chain, lab)
    lab.case("check", check_parameter, lab)
    lab.finish()


if __name__ == "__main__":
    main()
