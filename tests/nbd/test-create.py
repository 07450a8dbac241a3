#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""create=SIZE makes what "qemu-img create" with the same options makes:
the same facts, nothing for qemu-img check to find, and a disk that can
be used.  What cannot be made is refused, and leaves no file."""

import os
import random
import sys

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403

SLOW = bool(os.environ.get("QCOW2_VALGRIND") or
            os.environ.get("QCOW2_SANITIZER"))

# What decides the layout, and where an off-by-one would show: tables
# that fill a cluster, refcounts of the blocks themselves, long L1 tables.
MATRIX = [
    (0, {}), (1, {}), (1000001, {}), (64 * M, {}),
    (64 * M, {"compat": "v2"}),
    (64 * M, {"compat": "0.10", "cluster-size": 512}),
    (64 * M, {"cluster-size": 512, "refcount-bits": 64}),
    (1 * G, {"cluster-size": 512, "refcount-bits": 1}),
    (1 * G, {"cluster-size": "4k", "refcount-bits": 32}),
    (8 * G, {"cluster-size": 512, "refcount-bits": 64}),
    (64 * T, {}), (64 * T, {"cluster-size": "2M", "refcount-bits": 8}),
    (1 * G, {"lazy-refcounts": "on"}),
    (1 * G, {"compression-type": "zstd"}),
    (1 * G, {"extended-l2": "on"}),
    (1 * G, {"extended-l2": "on", "cluster-size": "16k",
             "refcount-bits": 4}),
]
PREALLOCATED = [
    (1000001, {}), (64 * M, {}), (64 * M, {"compat": "v2"}),
    (4 * M, {"cluster-size": 512, "refcount-bits": 64}),
    (3 * G, {"cluster-size": "4k", "refcount-bits": 1}),
    (16 * M, {"extended-l2": "on"}),
]
QEMU_NAMES = {"0.10": "0.10", "v2": "0.10", "v3": "1.1", "1.1": "1.1"}


def parameters(options):
    return {"create." + k: v for k, v in options.items()}


def facts(path):
    info = image_info(path)
    specific = info["format-specific"]["data"]
    specific.pop("corrupt", None)
    return (info["virtual-size"], info["cluster-size"], specific,
            info.get("backing-filename"), info.get("backing-filename-format"))


def by_qemu(lab, size, options):
    path = lab.path()
    given = []
    for key, value in options.items():
        value = QEMU_NAMES.get(value, value)
        given += ["-o", "%s=%s" % (key.replace("-", "_"), value)]
    qemu_img("create", "-f", "qcow2", *given, path, str(size))
    return path


def use(server, size, rng):
    """Write here and there, and read it again."""
    handle = server.connect()
    check(handle.get_size() == (size + 511) // 512 * 512, "size %d",
          handle.get_size())
    for _ in range(20):
        if size < 4096:
            break
        at = rng.randrange(size - 4096)
        data = bytes([rng.randrange(1, 256)]) * 4096
        handle.pwrite(data, at)
        check(handle.pread(4096, at) == data, "read back at %d", at)
    handle.flush()


def as_qemu_does(lab, size, options):
    path = lab.path()
    with lab.server(path, create=size, **parameters(options)) as server:
        ours, theirs = facts(path), facts(by_qemu(lab, size, options))
        check(ours == theirs, "%s, and by qemu-img %s", ours, theirs)
        check(image_check(path).get("check-errors") == 0, "check-errors")
        use(server, size, random.Random(size))
    expect_clean(path)
    check(os.stat(path).st_blocks * 512 < 80 * M, "the file uses %d",
          os.stat(path).st_blocks * 512)


def preallocated(lab, size, options, kind):
    path = lab.path()
    options = dict(options, preallocation=kind)
    with lab.server(path, create=size, readonly=True,
                    **parameters(options)) as server:
        handle = server.connect()
        check(handle.pread(4096, 0) == bytes(4096), "not zeroes")
    expect_clean(path)
    size = (size + 511) // 512 * 512
    extents = qemu_map(lab, path)
    info = image_check(path)
    check(info["allocated-clusters"] == info["total-clusters"],
          "allocated: %s", info)
    if kind != "metadata":
        check(os.stat(path).st_blocks * 512 >= size, "the file uses %d",
              os.stat(path).st_blocks * 512)
    before = os.path.getsize(path)
    with lab.server(path) as server:
        use(server, size, random.Random(7))
    check(os.path.getsize(path) == before, "the file grew")
    expect_clean(path)
    return extents


# With the data elsewhere.
DATA_FILES = [
    (1000001, {}), (64 * M, {"data-file-raw": "on"}), (0, {}),
    (1 * G, {"cluster-size": 512, "refcount-bits": 1}),
    (1000001, {"data-file-raw": "on", "extended-l2": "on"}),
    (16 * M, {"data-file-raw": "on", "cluster-size": "4k",
              "preallocation": "falloc"}),
    (8 * M, {"preallocation": "full"}),
    (3 * G, {"preallocation": "metadata", "extended-l2": "on"}),
]


def data_file(lab, size, options):
    path = lab.path()
    name = os.path.basename(path) + ".data"     # beside the image
    with lab.server(path, create=size, **parameters(
            dict(options, **{"data-file": name}))) as server:
        ours, theirs = facts(path), facts(by_qemu(lab, size, dict(
            options, **{"data-file": name + "2"})))
        check(ours[2].pop("data-file") == name, "the name is %s", ours[2])
        theirs[2].pop("data-file")
        check(ours == theirs, "%s, and by qemu-img %s", ours, theirs)
        check(image_check(path).get("check-errors") == 0, "check-errors")
        use(server, size, random.Random(size))
    expect_clean(path)
    data = path + ".data"
    size = (size + 511) // 512 * 512
    check(os.path.getsize(data) == size, "the data file has %d bytes",
          os.path.getsize(data))
    if options.get("data-file-raw"):
        compare(path, data)
    if options.get("preallocation") in ("falloc", "full"):
        check(os.stat(data).st_blocks * 512 >= size, "it takes %d bytes",
              os.stat(data).st_blocks * 512)


def existing_data_file_is_kept(lab):
    path = lab.path()
    with open(path + ".data", "wb") as f:
        f.write(b"somebody's disk")
    lab.refuses(path, path + ".data", "exists", create=M,
                **{"create.data-file": path + ".data"})
    with open(path + ".data", "rb") as f:
        check(f.read() == b"somebody's disk", "it was changed")
    check(not os.path.exists(path), "the image was left behind")
    with open(path, "wb") as f:
        f.write(b"somebody's image")
    lab.refuses(path, "exists", create=M,
                **{"create.data-file": path + ".other"})
    check(not os.path.exists(path + ".other"), "a data file was left behind")


MARK = (b"A disk image was being made here by nbdkit-qcow2-plugin, and is not"
        b" complete.\n").ljust(512, b"\0")


def cut_short(lab, image, data, again):
    """What a crash leaves of an image and its data file: if that is
    provably all it is made anew, else both stay as they are."""
    path = lab.path()
    files = {path: image, path + ".data": data}
    for name, content in files.items():
        if content is not None:
            with open(name, "wb") as f:
                f.write(content)
    params = {"create": M, "create.data-file": os.path.basename(path) +
              ".data"}
    if again:
        with lab.server(path, **params) as server:
            use(server, M, random.Random(1))
            check(server.connect().pread(512, 0) == bytes(512),
                  "the mark can be seen")
        expect_clean(path)
        return
    lab.refuses(path, "exists", **params)
    for name, content in files.items():
        check(os.path.exists(name) == (content is not None),
              "%s was made or removed", name)
        if content is not None:
            with open(name, "rb") as f:
                check(f.read() == content, "%s was changed", name)


# What is there of the image and of the data file, and whether that is
# provably ours.
CUT_SHORT = [
    ("data file begun", None, MARK, True),
    ("data file filled", None, MARK + bytes(M - 512), True),
    ("both begun", MARK + b"rubbish", MARK + bytes(M - 512), True),
    ("data file complete", MARK + b"rubbish", bytes(M), True),
    ("data file alone", None, bytes(M), False),
    ("data file empty", None, b"", False),
    ("data file of another length", MARK, bytes(M + 512), False),
    ("data file with data", MARK, bytes(M - 1) + b"x", False),
    ("nearly the mark", None, MARK[:-1] + b"x" + bytes(M - 512), False),
]


def is_image(path):
    if not os.path.exists(path):
        return False
    with open(path, "rb") as f:
        return f.read(4) == b"QFI\xfb"


def killed_at_each(lab, call):
    """A new image and its data file, the server killed instead of the Nth
    of these system calls: the next one makes them, or finds them made."""
    need("strace")
    trace = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e",
             "trace=" + call, "-e"]
    complete = 0
    for n in range(1, 20):
        path = lab.path()
        params = {"create": M, "create.data-file":
                  os.path.basename(path) + ".data"}
        argv = [lab.plugin, path] + ["%s=%s" % p for p in params.items()]
        done = run(*trace, "inject=%s:signal=KILL:when=%d" % (call, n),
                   "nbdkit", "-U", "-", *argv, "--run", "true", ok=None)
        if done.returncode == 0:
            break
        if is_image(path):
            params = {}
            complete += 1
        with lab.server(path, **params) as server:
            check(server.connect().pread(4096, 0) == bytes(4096),
                  "not zeroes")
            use(server, M, random.Random(n))
        expect_clean(path)
    # Only of the last one can the image be there.
    check(1 < n < 20 and complete <= 1, "killed %d times, %d complete",
          n - 1, complete)


def preallocated_overlay(lab, kind, data_file):
    """With subclusters each cluster can have its place and show the backing
    file."""
    base = lab.path()
    with open(base, "wb") as f:
        f.write(b"b" * M)
    path = lab.path()
    params = {"create.backing-file": base, "create.backing-fmt": "raw",
              "create.extended-l2": "on", "create.preallocation": kind}
    if data_file:
        params["create.data-file"] = path + ".data"
    with lab.server(path, create=2 * M, **params) as server:
        handle = server.connect()
        check(handle.pread(2 * M, 0) == b"b" * M + bytes(M), "hidden")
    theirs = lab.path()
    more = ["-o", "data_file=%s.data" % theirs] if data_file else []
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "raw", "-o",
             "extended_l2=on,preallocation=" + kind, *more, theirs,
             str(2 * M))
    for name in path, theirs:
        before = os.path.getsize(name)
        info = image_check(name)
        check(info["allocated-clusters"] == info["total-clusters"],
              "%s: allocated: %s", name, info)
        with lab.server(name) as server:
            handle = server.connect()
            handle.pwrite(b"x" * 5000, M - 2000)
            check(handle.pread(2 * M, 0) == b"b" * (M - 2000) + b"x" * 5000
                  + bytes(M - 3000), "reads wrong")
        expect_clean(name)
        check(os.path.getsize(name) == before, "the file grew")
    qemu_img("compare", "-q", "-f", "qcow2", "-F", "qcow2", path, theirs)


def overlay(lab, backing_format):
    base = lab.path("base." + backing_format)
    qemu_img("create", "-f", backing_format, base, str(4 * M))
    qemu_io(base, "write -P 77 1M 1M", fmt=backing_format)
    path = lab.path()
    with lab.server(path, create=8 * M,
                    **{"create.backing-file": os.path.basename(base),
                       "create.backing-fmt": backing_format}) as server:
        handle = server.connect()
        check(handle.pread(M, M) == b"\x4d" * M, "the backing file's data")
        handle.pwrite(b"x" * 1000, M + 500)
    check(facts(path)[3:] == (os.path.basename(base), backing_format),
          "backing file: %s", facts(path)[3:])
    expect_clean(path)
    check(qemu_io(path, "read -P 77 %d 512" % (M + 2048)) is not None, "read")


def refused(lab, size, options, *texts):
    path = lab.path()
    lab.refuses(path, *texts, create=size, **parameters(options))
    check(not os.path.exists(path), "a file was left behind")


REFUSALS = [
    ("cluster size", M, {"cluster-size": 1000}, "cluster size", "512"),
    ("large clusters", M, {"cluster-size": "4M"}, "cluster size", "2 MiB"),
    ("width", M, {"refcount-bits": 3}, "refcounts", "1 to 64"),
    ("width 128", M, {"refcount-bits": 128}, "refcounts"),
    ("v2 width", M, {"compat": "v2", "refcount-bits": 8}, "version 2"),
    ("v2 lazy", M, {"compat": "v2", "lazy-refcounts": "on"}, "version 2"),
    ("v2 zstd", M, {"compat": "v2", "compression-type": "zstd"},
     "version 2"),
    ("v2 subclusters", M, {"compat": "v2", "extended-l2": "on"},
     "version 2"),
    ("small subclusters", M, {"extended-l2": "on", "cluster-size": "8k"},
     "16 KiB"),
    ("too large", 1 * T, {"cluster-size": 512}, "larger clusters"),
    ("largest", (1 << 63) - 1, {}, "2^63"),
    ("backing format", M, {"backing-file": "x.raw"}, "together"),
    ("lone format", M, {"backing-fmt": "raw"}, "together"),
    ("preallocated overlay", M, {"backing-file": "x", "backing-fmt":
                                 "raw", "preallocation": "metadata"},
     "without extended L2 entries", "hide"),
    ("v2 data file", M, {"compat": "v2", "data-file": "x.data"},
     "version 2", "data files"),
    ("raw alone", M, {"data-file-raw": "on"}, "data file", "none is given"),
    ("raw overlay", M, {"data-file-raw": "on", "data-file": "x.data",
                        "backing-file": "x", "backing-fmt": "raw"},
     "backing file"),
    ("long data file", M, {"data-file": "n" * 600, "cluster-size": 512},
     "512 bytes"),
    ("longest data file", M, {"data-file": "n" * 1024}, "1023"),
    ("no folder for the data", M, {"data-file": "none/x.data"},
     "none/x.data", "No such file"),
    ("no backing file", M, {"backing-file": "none.raw",
                            "backing-fmt": "raw"}, "none.raw"),
    ("long name", M, {"backing-file": "n" * 600, "backing-fmt": "raw",
                      "cluster-size": 512}, "512 bytes"),
    ("longest name", M, {"backing-file": "n" * 1024,
                         "backing-fmt": "raw"}, "1023"),
]


def nothing_is_left(lab):
    """An image that is made and cannot be served then is taken away again,
    and so is its data file, which was left behind."""
    path = lab.path()
    lab.refuses(path, "none.raw", create=M, **{
        "create.data-file": path + ".data", "create.backing-file": "none.raw",
        "create.backing-fmt": "raw"})
    for name in path, path + ".data":
        check(not os.path.exists(name), "%s was left behind", name)


def no_folder(lab):
    lab.refuses(lab.path("none/x.qcow2"), "none/x.qcow2", "No such file",
                create=M)


def existing_file_is_kept(lab):
    path = create(lab.path(), M)
    with open(path, "rb") as f:
        before = f.read()
    lab.refuses(path, "exists", create=2 * M)
    link = lab.path("link")
    os.symlink(lab.path("nowhere"), link)
    lab.refuses(link, "exists", create=2 * M)
    with open(path, "rb") as f:
        check(f.read() == before, "the file was changed")


def main():
    lab = Lab()
    need("qemu-img", "qemu-io")
    if not lab.ours:
        skip("qemu-nbd makes no images")
    some = 3 if SLOW else 1
    for size, options in MATRIX[::some]:
        lab.case("create %d %s" % (size, options), as_qemu_does, lab, size,
                 options)
    for size, options in PREALLOCATED[::some]:
        for kind in ("metadata", "falloc", "full"):
            if size > G and kind == "full":
                continue
            lab.case("%s %d %s" % (kind, size, options), preallocated, lab,
                     size, options, kind)
    os.chdir(lab.folder)        # where QEMU looks for data files
    for size, options in DATA_FILES[::some]:
        lab.case("data file %d %s" % (size, options), data_file, lab, size,
                 options)
    lab.case("existing data file", existing_data_file_is_kept, lab)
    for name, *what in CUT_SHORT:
        lab.case("cut short: " + name, cut_short, lab, *what)
    if not SLOW:
        for call in "fdatasync", "fsync", "fallocate":
            lab.case("killed at each " + call, killed_at_each, lab, call)
    for kind, data in (("metadata", False), ("falloc", False),
                       ("metadata", True)):
        lab.case("preallocated overlay, %s%s" % (
            kind, ", data file" * data), preallocated_overlay, lab, kind,
            data)
    lab.case("nothing is left", nothing_is_left, lab)
    for backing_format in ("raw", "qcow2"):
        lab.case("overlay on " + backing_format, overlay, lab,
                 backing_format)
    for name, size, options, *texts in REFUSALS:
        lab.case("refuse " + name, refused, lab, size, options, *texts)
    lab.case("no folder", no_folder, lab)
    lab.case("existing file", existing_file_is_kept, lab)
    lab.finish()


if __name__ == "__main__":
    main()
