#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""What a writer must keep, clear or refuse in a header it understands only
in part."""

import os
import shutil
import struct
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from encrypted import create_encrypted                  # noqa: E402
from qcow2lab import *                                  # noqa: E402,F403
from qcow2parse import EXT_BITMAPS, INCOMPAT_CORRUPT, \
    INCOMPAT_DIRTY, Qcow2                               # noqa: E402

SIZE = 16 * M
AUTOCLEAR = range(88, 96)


def contents(path, length=None):
    with open(path, "rb") as f:
        return f.read(length) if length else f.read()


def changed(before, after):
    return {i for i in range(len(before)) if before[i] != after[i]}


def make(lab, **options):
    options.setdefault("cluster_size", 16 * K)
    path = create(lab.path(), SIZE, **options)
    qemu_io(path, "write -P 1 1M 1M")
    return path


def exercise(handle):
    """Every way to change the disk, growing tables as it goes."""
    handle.pwrite(b"a" * 100000, 1 * M + 5)
    handle.pwrite(b"b" * 100000, 9 * M)
    handle.zero(200000, 1 * M)
    handle.trim(1 * M, 9 * M)
    handle.flush()
    handle.pwrite(b"c" * 512, 15 * M, nbd.CMD_FLAG_FUA)


def unknown_things(lab):
    """Unknown compatible bits, extensions and header fields are kept."""
    path = make(lab, lazy_refcounts="on")
    with Qcow2(path) as image:
        image.put64(80, image.compatible | 1 << 17 | 1 << 63)
        exts = [(kind, data) for kind, _, data in image.extensions()]
        image.header_length = 136
        image.put32(100, 136)
        # (104 is the compression type, 105-111 padding.)
        image.pwrite(bytes(range(100, 124)), 112)
        image.replace_extensions(
            [(0x12345678, b"keep me, please")] + exts +
            [(0x0badcafe, b""), (0x23232323, bytes(range(200)))])
    expect_clean(path)
    before = contents(path, 16 * K)
    for _ in range(2):
        with lab.server(path) as server:
            exercise(server.connect())
        after = contents(path, 16 * K)
        if lab.ours:
            check(after == before, "bytes of the header changed: %s",
                  sorted(changed(before, after)))
    expect_clean(path)
    with Qcow2(path) as image:
        check(image.compatible == 1 | 1 << 17 | 1 << 63,
              "compatible bits are %#x now", image.compatible)
        check(image.extension(0x12345678)[1] == b"keep me, please" and
              image.extension(0x0badcafe)[1] == b"" and
              image.extension(0x23232323)[1] == bytes(range(200)),
              "unknown extensions are gone")
        check(not image.incompatible & INCOMPAT_DIRTY, "left dirty")


def first_requests():
    return [
        ("write", lambda h: h.pwrite(b"x" * 512, 1 * M)),
        ("allocating write", lambda h: h.pwrite(b"x" * 512, 10 * M)),
        ("zero", lambda h: h.zero(16 * K, 1 * M)),
        ("trim", lambda h: h.trim(16 * K, 1 * M)),
    ]


def autoclear(lab, request):
    """Unknown autoclear bits go at the first change, not before."""
    path = make(lab)
    with Qcow2(path) as image:
        image.put64(88, 1 << 5 | 1 << 40)
    before = contents(path)
    if lab.ours:
        with lab.server(path) as server:
            handle = server.connect()
            handle.pread(1 * M, 0)
            whole_map(handle)
            handle.cache(1 * M, 0)
            handle.flush()
        check(contents(path) == before, "reading changed the file")
        with lab.server(path, readonly=True) as server:
            server.connect().pread(512, 1 * M)
        check(contents(path) == before, "-r changed the file")
    server = lab.server(path)
    request(server.connect())
    # The bits must be clear on disk before anything else is.
    server.kill()
    with Qcow2(path) as image:
        check(image.autoclear == 0, "autoclear bits are %#x",
              image.autoclear)
    if lab.ours:
        after = contents(path, 16 * K)
        check(changed(before[:16 * K], after) <= set(AUTOCLEAR),
              "bytes of the header changed: %s",
              sorted(changed(before[:16 * K], after)))


def autoclear_order(lab):
    """By the system calls: the header is written and synced before the
    guest's data."""
    need("strace")
    path = make(lab)
    with Qcow2(path) as image:
        image.put64(88, 1 << 5)
    trace = lab.path()
    with lab.server(path, wrapper=(
            "strace", "-f", "-qq", "-e", "signal=none", "-o", trace,
            "-e", "trace=pwrite64,pwritev,pwritev2,fdatasync,fsync,write")
    ) as server:
        handle = server.connect()
        handle.pwrite(b"\xaa" * 512, 1 * M + 512)
        handle.flush()
    calls = []
    for line in contents(trace).decode(errors="replace").splitlines():
        if "sync(" in line or "sync resumed" in line:
            calls.append("sync")
        elif "pwrite" in line and line.rstrip().endswith(
                (", 88) = 8", ", 88, 0) = 8", ", 88, RWF_DSYNC) = 8")):
            calls.append("header")
        elif "pwrite" in line and "\\252\\252" in line:
            calls.append("data")
    check("header" in calls and "data" in calls, "strace saw %s", calls)
    first = calls.index("header")
    data = calls.index("data")
    check("sync" in calls[first:data], "the order was %s", calls)


def lazy_refcounts(lab, setting, param):
    path = make(lab, lazy_refcounts=setting)
    params = {"lazy-refcounts": param} if param and lab.ours else {}
    with lab.server(path, **params) as server:
        exercise(server.connect())
    with Qcow2(path) as image:
        check(image.compatible & 1 == (setting == "on"),
              "lazy_refcounts is %d now", image.compatible & 1)
        check(not image.incompatible & INCOMPAT_DIRTY, "left dirty")
    expect_clean(path)


def bitmaps(lab):
    """Bitmaps that cannot be kept up to date, since their directory is not
    understood: whoever trusts them later must be able to see that, from
    before the first write on."""
    path = make(lab)
    qemu_img("bitmap", "--add", path, "b0")
    qemu_io(path, "write -P 2 3M 1M")
    with Qcow2(path) as image:
        directory = image.bitmaps()[0]["at"]
        image.pwrite(b"\x07", directory + 16)           # its type
    before = contents(path)
    with lab.server(path) as server:
        handle = server.connect()
        handle.pread(512, 1 * M)
        handle.flush()
    check(contents(path) == before, "reading changed the file")
    server = lab.server(path)
    server.connect().pwrite(b"x", 3 * M)
    server.kill()
    check("lost" in server.log(), "nothing was said")
    with Qcow2(path) as image:
        check(image.autoclear & 1 == 0, "bitmaps still count as valid")
        check(image.extension(EXT_BITMAPS), "the extension is gone")
        # The bitmap's own clusters are as they were.
        for bitmap in image.bitmaps():
            at, length = bitmap["at"], bitmap["length"]
            check(image.pread(length, at) == before[at:at + length],
                  "the bitmap directory has changed")
    # Nothing may be handed out that the bitmaps occupy.
    with lab.server(path) as server:
        handle = server.connect()
        check(not handle.is_read_only(), "read-only now: %s", server.log())
        for i in range(40):
            handle.pwrite(b"y" * 16 * K, 8 * M + i * 16 * K)
    after = contents(path)
    with Qcow2(path) as image:
        for bitmap in image.bitmaps():
            at = bitmap["table"]
            check(after[at:at + 8] == before[at:at + 8],
                  "the bitmap table has changed")
    # QEMU drops the extension and calls its clusters leaked.
    expect_clean(path, leaks_allowed=True)
    check("bitmaps" not in image_info(path)["format-specific"]["data"],
          "QEMU still believes the bitmap")
    with Qcow2(path) as image:
        image.put64(88, 0)
    qemu_img("check", "-r", "leaks", path, ok=(0, 3))
    expect_clean(path)


def corrupt(lab):
    path = make(lab)
    with Qcow2(path) as image:
        image.put64(72, INCOMPAT_CORRUPT)
    before = contents(path)
    with lab.server(path) as server:
        handle = server.connect()
        check(handle.is_read_only(), "served read-write")
        check(handle.pread(512, 1 * M) == b"\1" * 512, "cannot be read")
        check("corrupt" in server.log(), "no word of it: %s", server.log())
    check(contents(path) == before, "the file has changed")


def refused(lab, poke, *texts, options=None, readonly=False):
    path = make(lab, **(options or {}))
    with Qcow2(path) as image:
        poke(image)
    before = contents(path)
    said = lab.refuses(path, *texts, readonly=readonly)
    if lab.ours:
        check(os.path.basename(path) in said, "no file name in: %s", said)
    check(contents(path) == before, "the file has changed")


def unknown_incompatible(image):
    image.put64(72, 1 << 13)


def named_incompatible(image):
    image.put64(72, 1 << 13)
    image.replace_extensions([(0x6803f857, struct.pack(
        ">BB46s", 0, 13, b"cold fusion"))])


def refusals(lab):
    return [
        ("unknown bit", unknown_incompatible, ("13",), {}),
        ("named bit", named_incompatible, ("cold fusion",), {}),
        ("encrypted aes", lambda image: image.put32(32, 1), ("ncrypt",), {}),
        ("encryption 9", lambda image: image.put32(32, 9), ("crypt",), {}),
    ]


def luks(lab):
    path = create_encrypted(lab.path(), "4M", "abc123")
    lab.refuses(path, "ncrypt", os.path.basename(path))


def compression_type(lab):
    source = lab.path()
    with open(source, "wb") as f:
        f.write(b"squeeze me" * 400000)
    path = lab.path()
    qemu_img("convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd",
             source, path)
    before = contents(path, 112)
    with lab.server(path) as server:
        handle = server.connect()
        handle.pwrite(b"x" * 100000, 100)
        check(handle.pread(10, 2 * M) == (b"squeeze me" * 2)[2 * M % 10:][
            :10], "a compressed cluster reads wrong")
    check(contents(path, 112) == before, "the header has changed")
    expect_clean(path)


def growth(lab):
    """The refcount table moves: the header says where to, and nothing else
    of it changes."""
    path = create(lab.path(), 64 * M, cluster_size=512)
    before = contents(path, 512)
    with lab.server(path) as server:
        handle = server.connect()
        for i in range(24):
            handle.pwrite(os.urandom(1 * M), i * 2 * M)
    after = contents(path, 512)
    expect_clean(path)
    with Qcow2(path) as image:
        check(image.rt_clusters > 1, "it did not grow: no test")
    if lab.ours:
        check(changed(before, after) <= set(range(48, 60)),
              "bytes of the header changed: %s",
              sorted(changed(before, after)))


def stale_bitmaps(lab):
    """Bitmaps that no longer count, whose clusters QEMU has freed: the
    header may still name them, but they are anybody's."""
    path = create(lab.path(), 64 * M)
    qemu_img("bitmap", "--add", path, "b0")
    with open(path, "rb") as f:
        header = f.read(64 * K)
    with Qcow2(path) as image:
        image.put64(88, 0)                              # an older writer
    with lab.server(path) as server:
        server.connect().pwrite(b"1" * 4096, 0)
    subprocess.run(["qemu-img", "check", "-q", "-r", "leaks", path],
                   stdout=subprocess.DEVNULL, check=True)
    with open(path, "r+b") as f:
        f.write(header[:88] + bytes(8) + header[96:])   # as an older writer
    with lab.server(path) as server:
        handle = server.connect()
        for at in range(0, 16 * M, M):
            handle.pwrite(b"2" * M, at)
        handle.flush()
        check(not server.events(), "corruption where there is none")
    check(handle is not None and image_check(path).get("corruptions", 0) == 0,
          "qemu-img finds corruption")


def main():
    lab = Lab()
    lab.case("unknown things", unknown_things, lab)
    for name, request in first_requests():
        lab.case("autoclear " + name, autoclear, lab, request)
    if lab.ours and not os.environ.get("QCOW2_VALGRIND") and \
       not os.environ.get("QCOW2_SANITIZER") and shutil.which("strace"):
        lab.case("autoclear order", autoclear_order, lab)
    for setting in ("on", "off"):
        for param in ("image", "off") if setting == "on" else ("image",):
            lab.case("lazy_refcounts %s %s" % (setting, param),
                     lazy_refcounts, lab, setting, param)
    lab.case("compression type", compression_type, lab)
    lab.case("growth", growth, lab)
    if lab.ours:
        lab.case("bitmaps", bitmaps, lab)
        lab.case("stale bitmaps", stale_bitmaps, lab)
        lab.case("corrupt", corrupt, lab)
        lab.case("luks", luks, lab)
        for name, poke, texts, options in refusals(lab):
            lab.case("refuse " + name, refused, lab, poke, *texts,
                     options=options)
    lab.finish()


if __name__ == "__main__":
    main()
