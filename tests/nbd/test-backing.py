#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""Backing files: what is read through them, and which are refused."""

import json
import os
import random
import shutil
import sys

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403
from qcow2parse import EXT_BACKING_FORMAT, Qcow2        # noqa: E402


def raw_file(path, *pieces, size=None):
    """PIECES are (offset, bytes)."""
    with open(path, "wb") as f:
        for offset, data in pieces:
            f.seek(offset)
            f.write(data)
    if size is not None:
        os.truncate(path, size)
    return path


def contents(path):
    with open(path, "rb") as f:
        return f.read()


def expect(handle, *pieces):
    """PIECES are (offset, bytes) that must be read there."""
    for offset, data in pieces:
        got = handle.pread(len(data), offset)
        if got != data:
            at = next(i for i in range(len(data)) if got[i] != data[i])
            raise Failure("at %d: read %r, expected %r" % (
                offset + at, got[at:at + 16], data[at:at + 16]))


# Contents.

def three_deep(lab):
    """raw <- qcow2 <- qcow2 <- qcow2 with holes to look through, zero
    clusters that hide, and a compressed middle."""
    base = raw_file(lab.path(), (0, b"B" * (2 * M)), size=8 * M)
    one = create(lab.path(), None, backing=base, backing_format="raw")
    qemu_io(one, "write -c -P 49 64k 64k", "write -z 128k 64k")
    two = create(lab.path(), None, backing=one, backing_format="qcow2",
                 cluster_size=4 * K)
    qemu_io(two, "write -P 50 68k 4k", "write -P 50 132k 4k")
    top = create(lab.path(), None, backing=two, backing_format="qcow2",
                 cluster_size=16 * K)
    sums = [contents(f) for f in (base, one, two)]
    expected = [(0, b"B" * 64 * K), (64 * K, b"1" * 4 * K),
                (68 * K, b"2" * 4 * K), (72 * K, b"1" * 56 * K),
                (128 * K, bytes(4 * K)), (132 * K, b"2" * 4 * K),
                (136 * K, bytes(56 * K)), (192 * K, b"B" * 64 * K),
                (4 * M, bytes(64 * K))]
    with lab.server(top) as server:
        handle = server.connect()
        expect(handle, *expected)
        # Copy on write out of all layers, in one cluster.
        handle.pwrite(b"x" * 10, 70 * K)
        handle.pwrite(b"y" * 10, 130 * K)
        expect(handle, (64 * K, b"1" * 4 * K), (68 * K, b"2" * 2 * K),
               (70 * K, b"x" * 10 + b"2" * (2 * K - 10)),
               (72 * K, b"1" * 8 * K), (128 * K, bytes(2 * K)),
               (130 * K, b"y" * 10), (132 * K, b"2" * 4 * K))
        # Zeroes must hide what is below, also where nothing was mapped.
        handle.zero(64 * K, 192 * K)
        expect(handle, (192 * K, bytes(64 * K)))
        handle.trim(16 * K, 0)
        expect(handle, (0, bytes(16 * K)), (16 * K, b"B" * 48 * K))
        handle.flush()
    expect_clean(top)
    for path, was in zip((base, one, two), sums):
        check(contents(path) == was, "a backing file was changed")


def shorter(lab, tail, fmt):
    """Behind the end of a shorter backing file there are zeroes, though
    it may end within a cluster or a sector."""
    end = 1 * M + 3 * 64 * K + tail
    base = raw_file(lab.path(), (0, b"B" * end))
    if fmt == "qcow2":
        raw, base = base, lab.path()
        qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, base)
    top = create(lab.path(), 8 * M, backing=base, backing_format=fmt)
    with lab.server(top) as server:
        handle = server.connect()
        expect(handle, (end - 1000, b"B" * 1000 + bytes(5000)),
               (end, bytes(64 * K)), (7 * M, bytes(1 * M)))
        # Copy on write where it ends.
        handle.pwrite(b"x", end + 10)
        expect(handle, (end - 1000, b"B" * 1000 + bytes(10) + b"x" +
                        bytes(5000)))
        handle.pwrite(b"x", end + 1 * M)
        expect(handle, (end + 64 * K, bytes(1 * M - 64 * K) + b"x" +
                        bytes(1000)))
    raw = lab.path()
    qemu_img("convert", "-O", "raw", top, raw)
    disk = contents(raw)
    check(disk[:end] == b"B" * end and disk[end + 10:end + 11] == b"x" and
          not disk[end + 11:end + M].strip(b"\0"), "QEMU reads otherwise")
    expect_clean(top)


def shorter_middle(lab):
    """A middle layer hides, behind its end, what is deeper."""
    base = raw_file(lab.path(), (0, b"B" * (4 * M)))
    middle = create(lab.path(), 1 * M + 512, backing=base,
                    backing_format="raw")
    top = create(lab.path(), 4 * M, backing=middle, backing_format="qcow2")
    with lab.server(top) as server:
        expect(server.connect(), (0, b"B" * (1 * M + 512)),
               (1 * M + 512, bytes(3 * M - 512)))


def longer(lab):
    base = raw_file(lab.path(), (0, b"B" * (4 * M)))
    top = create(lab.path(), 1 * M + 512, backing=base, backing_format="raw")
    with lab.server(top) as server:
        handle = server.connect()
        check(handle.get_size() == 1 * M + 512, "size %d", handle.get_size())
        expect(handle, (0, b"B" * (1 * M + 512)))
        handle.pwrite(b"x" * 10, 1 * M + 500)
        expect(handle, (1 * M, b"B" * 500 + b"x" * 10 + b"B" * 2))
    expect_clean(top)


# The format.

def never_probed(lab):
    """A raw backing file that holds a qcow2 image is shown as it is."""
    inner = create(lab.path(), 1 * M)
    secret = raw_file(lab.path(), (0, b"secret" * 1000))
    evil = create(lab.path(), 1 * M, backing=secret, backing_format="raw")
    for raw in (inner, evil):
        top = create(lab.path(), 1 * M, backing=raw, backing_format="raw")
        with lab.server(top) as server:
            expect(server.connect(), (0, contents(raw)[:4096]))


def no_format(lab):
    base = raw_file(lab.path(), (0, b"B" * M))
    top = create(lab.path(), None, backing=base, backing_format="raw")
    with Qcow2(top) as image:
        image.replace_extensions(
            [(k, d) for k, _, d in image.extensions()
             if k != EXT_BACKING_FORMAT])
    lab.refuses(top, os.path.basename(top), "qemu-img rebase -u", "-F",
                os.path.basename(base))
    # And what it advises helps.
    qemu_img("rebase", "-u", "-b", base, "-F", "raw", top)
    with lab.server(top) as server:
        expect(server.connect(), (0, b"B" * 512))


def given_format(lab):
    """backing-format= says what the image does not, or says otherwise; what
    is below says it for itself."""
    base = raw_file(lab.path(), (0, b"B" * M))
    middle = create(lab.path(), None, backing=base, backing_format="raw")
    for kept in (b"", b"qcow2", b"vmdk", b"raw"):
        top = create(lab.path(), None, backing=middle,
                     backing_format="qcow2")
        with Qcow2(top) as image:
            image.replace_extensions(
                [(k, kept if k == EXT_BACKING_FORMAT else d)
                 for k, _, d in image.extensions()
                 if kept or k != EXT_BACKING_FORMAT])
            before = image.pread(image.cluster_size, 0)
        if kept in (b"", b"vmdk"):
            said = lab.refuses(top, os.path.basename(top))
            check(("backing-format=raw" in said) == (not kept), said)
        with lab.server(top, backing_format="qcow2") as server:
            handle = server.connect()
            expect(handle, (0, b"B" * 512))
            handle.pwrite(b"x", 100)
            expect(handle, (0, b"B" * 100 + b"x" + b"B" * 100))
        with lab.server(top, backing_format="raw",
                        backing_file=base) as server:
            expect(server.connect(), (0, b"B" * 100 + b"x"), (M // 2, b"B"))
        with Qcow2(top) as image:
            check(image.pread(image.cluster_size, 0) == before,
                  "the header was changed")
        qemu_img("rebase", "-u", "-b", middle, "-F", "qcow2", top)
        expect_clean(top)
    lab.refuses(middle, "backing-format=vmdk", "qcow2 or raw",
                backing_format="vmdk")
    # It is of the first layer only.
    with Qcow2(middle) as image:
        image.replace_extensions(
            [(k, d) for k, _, d in image.extensions()
             if k != EXT_BACKING_FORMAT])
    said = lab.refuses(top, os.path.basename(middle), "qemu-img rebase",
                       backing_format="qcow2")
    check("backing-format=" not in said, said)


def backing_exported(lab):
    """A format that we do not know, by way of a server that knows it."""
    raw = raw_file(lab.path(), (0, b"V" * M))
    vmdk = lab.path()
    qemu_img("convert", "-f", "raw", "-O", "vmdk", raw, vmdk)
    top = create(lab.path(), None, backing=vmdk, backing_format="vmdk")
    lab.refuses(top, "vmdk")
    below = Below(lab, vmdk, qemu=True, qemu_format="vmdk")
    with lab.server(top, below=below, backing_file=below.uri(),
                    backing_format="raw") as server:
        handle = server.connect()
        expect(handle, (0, b"V" * 512))
        handle.pwrite(b"x", 100)
    after = lab.path()
    qemu_img("convert", "-O", "raw", top, after)
    check(contents(after) == b"V" * 100 + b"x" + b"V" * (M - 101),
          "QEMU reads otherwise")


def no_backing(lab):
    """What has no backing file does not get one by the command line: it
    would be another disk to everybody else."""
    base = raw_file(lab.path(), (0, b"B" * M))
    plain = create(lab.path(), M)
    lab.refuses(plain, "backing-file=", "no backing file", backing_file=base)
    lab.refuses(plain, "backing-file=", "no backing file", backing_file=base,
                backing_format="raw")
    lab.refuses(plain, "backing-format=raw", "no backing file",
                backing_format="raw")


def other_format(lab, name):
    base = raw_file(lab.path(), (0, b"B" * M))
    top = create(lab.path(), None, backing=base, backing_format="raw")
    with Qcow2(top) as image:
        image.replace_extensions(
            [(k, name if k == EXT_BACKING_FORMAT else d)
             for k, _, d in image.extensions()])
    lab.refuses(top, os.path.basename(top), "backing")


def not_qcow2(lab):
    base = raw_file(lab.path(), (0, b"B" * M))
    top = create(lab.path(), 1 * M, backing=base, backing_format="qcow2",
                 quiet_backing=True)
    lab.refuses(top, os.path.basename(base))


# Where backing files may be.

class Places:
    """disks/top.qcow2 names a file in other places."""

    def __init__(self, lab):
        self.root = lab.path()
        self.disks = os.path.join(self.root, "disks")
        self.deep = os.path.join(self.disks, "deep")
        self.other = os.path.join(self.root, "other")
        for folder in (self.deep, self.other):
            os.makedirs(folder)
        self.near = raw_file(os.path.join(self.disks, "near.raw"),
                             (0, b"N" * M))
        self.below = raw_file(os.path.join(self.deep, "below.raw"),
                              (0, b"D" * M))
        self.far = raw_file(os.path.join(self.other, "far.raw"),
                            (0, b"F" * M))
        os.symlink(self.far, os.path.join(self.disks, "link.raw"))
        os.symlink("near.raw", os.path.join(self.disks, "nearlink.raw"))
        self.top = os.path.join(self.disks, "top.qcow2")

    def name(self, backing, fmt="raw"):
        create(self.top, 1 * M, backing=backing, backing_format=fmt,
               quiet_backing=True)


def external_files(lab):
    places = Places(lab)

    def served(letter, **params):
        with lab.server(places.top, **params) as server:
            expect(server.connect(), (0, letter * 512))

    def refused(name, **params):
        lab.refuses(places.top, "top.qcow2", name, "external-files",
                    **params)

    # The image's own folder is the default.
    for name in (places.near, "near.raw", "./near.raw",
                 "../disks/near.raw", "nearlink.raw"):
        places.name(name)
        served(b"N")
        served(b"N", external_files="same-dir")
        served(b"N", external_files="any")
        served(b"N", external_files=places.disks)
        refused("near", external_files="none")
        refused("near", external_files=places.other)
    for name in (places.far, "../other/far.raw"):
        places.name(name)
        refused("far.raw")
        refused("far.raw", external_files="none")
        refused("far.raw", external_files=places.disks)
        served(b"F", external_files="any")
        served(b"F", external_files=places.other)
        served(b"F", external_files=places.root)
        served(b"F", external_files=["same-dir", places.other])
    # A link leads where it leads.
    places.name("link.raw")
    refused("link.raw")
    served(b"F", external_files=["same-dir", places.other])
    # Folders below are not the same folder; a given one includes them.
    places.name("deep/below.raw")
    refused("below.raw")
    served(b"D", external_files=places.disks)
    # A name that begins like an allowed folder is not in it.
    sibling = places.other + "wise"
    os.mkdir(sibling)
    raw_file(os.path.join(sibling, "x.raw"), (0, b"S" * M))
    places.name(os.path.join(sibling, "x.raw"))
    refused("x.raw", external_files=places.other)
    # The rule holds for what a backing file names in turn.
    middle = create(os.path.join(places.disks, "mid.qcow2"), 1 * M,
                    backing=places.far, backing_format="raw")
    places.name("mid.qcow2", "qcow2")
    lab.refuses(places.top, "mid.qcow2", "far.raw", "external-files")
    served(b"F", external_files="any")
    # The name of that starts in its own folder.
    os.rename(middle, os.path.join(places.other, "mid.qcow2"))
    middle = os.path.join(places.other, "mid.qcow2")
    qemu_img("rebase", "-u", "-b", "far.raw", "-F", "raw", middle)
    places.name(middle, "qcow2")
    served(b"F", external_files="any")
    served(b"F", external_files=places.other)
    refused("mid.qcow2")


def strange_names(lab):
    """A name is the name of a file, not a language."""
    places = Places(lab)
    for name in ('json:{"driver":"fat","dir":"/etc"}',
                 'json:{"driver":"raw","file.filename":"/etc"}',
                 "file:fat:/etc/passwd", "nbd://localhost/x", "fat:/etc",
                 "http://localhost/x", "vpc:near.raw"):
        places.name(places.near)
        with Qcow2(places.top) as image:
            # Anew, for QEMU would try to open some of these.
            raw = name.encode()
            at = 4096
            image.pwrite(raw, at)
            image.put64(8, at)
            image.put32(16, len(raw))
        for rule in ("same-dir", "any"):
            lab.refuses(places.top, "top.qcow2", external_files=rule)
    # QEMU's way to write a name that has a colon.
    odd = raw_file(os.path.join(places.disks, "a:b.raw"), (0, b"C" * M))
    places.name("file:a:b.raw")
    with lab.server(places.top) as server:
        expect(server.connect(), (0, b"C" * 512))
    os.unlink(odd)
    lab.refuses(places.top, "a:b.raw", "No such file")
    places.name("nowhere.raw")
    lab.refuses(places.top, "nowhere.raw", "No such file")
    places.name(places.deep)
    lab.refuses(places.top, "deep", external_files="any")


# Names in QEMU's other spellings.

def as_qemu_sees(lab, top, cwd=None):
    raw = lab.path()
    qemu_img("convert", "-U", "-f", "qcow2", "-O", "raw", top, raw, cwd=cwd)
    return contents(raw)


def reads_equal(lab, top, cwd=None, **params):
    """TOP, an empty overlay, is the same to us as to QEMU; and when some of
    it was written to QEMU finds that, and the rest as it was."""
    disk = bytearray(as_qemu_sees(lab, top, cwd))
    check(any(disk), "nothing is below %s", top)
    with lab.server(top, **params) as server:
        handle = server.connect()
        expect(handle, (0, bytes(disk)))
        handle.pwrite(b"x" * 1000, 70000)
        disk[70000:71000] = b"x" * 1000
        expect(handle, (0, bytes(disk)))
    check(as_qemu_sees(lab, top, cwd) == disk, "QEMU reads otherwise")


def js(fmt, **file):
    return "json:" + json.dumps({"driver": fmt, "file": file})


def spelled_files(lab):
    """Absolute names, which mean the same wherever QEMU is."""
    places = Places(lab)
    raw = raw_file(os.path.join(places.disks, "b.raw"),
                   (0, bytes(range(256)) * 4 * K + b"tail"))
    qcow2 = os.path.join(places.disks, "b.qcow2")
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
    packed = os.path.join(places.disks, "b.packed")
    with open(packed, "wb") as f:
        f.write(b"p" * 1536 + contents(qcow2))
        f.write(bytes(-f.tell() % 512))
    size = os.path.getsize(packed) - 1536
    for name, fmt in (
            ("file:" + raw, "raw"),
            (js("raw", driver="file", filename=raw), "raw"),
            (js("raw", filename=raw, aio="threads", locking="auto",
                cache={"direct": False}), "raw"),
            ('json:{"file.filename":"%s"}' % raw, "raw"),
            ("json:{'driver':'raw','file.filename':'%s'}" % raw, "raw"),
            (js("qcow2", driver="file", filename=qcow2), "qcow2"),
            ('json:{"driver":"qcow2","backing":null,"read-only":true,'
             '"discard":"unmap","file":{"driver":"raw","file":{"driver":'
             '"file","filename":"%s"}}}' % qcow2, "qcow2"),
            ('json:{"driver":"raw","offset":"1000","file.filename":"%s"}'
             % raw, "raw"),
            ('json:{"driver":"raw","offset":7,"size":512000,"file":'
             '{"driver":"file","filename":"%s"}}' % raw, "raw"),
            ('json:{"driver":"qcow2","file":{"driver":"raw","offset":1536,'
             '"size":%d,"file":{"driver":"file","filename":"%s"}}}'
             % (size, packed), "qcow2")):
        # Without a size QEMU opens what is below.
        create(places.top, None, backing=name, backing_format=fmt)
        reads_equal(lab, places.top)
        lab.refuses(places.top, "external-files", external_files="none")
    # The size that a part has must be there.
    for offset, size in ((2 * M, 0), (1 * M, 512)):
        create(places.top, 1 * M, quiet_backing=True, backing_format="raw",
               backing='json:{"driver":"raw","offset":%d,"size":%d,'
               '"file.filename":"%s"}' % (offset, size, raw))
        lab.refuses(places.top, "'offset' is %d" % offset, "backing-file=")


def spelled_relative(lab):
    """QEMU looks for these where it is itself, we where the image is; if
    that is one place the two agree."""
    places = Places(lab)
    for name in ("file:near.raw", js("raw", driver="file",
                                     filename="near.raw")):
        qemu_img("create", "-q", "-f", "qcow2", "-b", name, "-F", "raw",
                 "top.qcow2", cwd=places.disks)
        reads_equal(lab, places.top, cwd=places.disks)
    # None leads out of the folder that a plain name does not lead out of.
    for name in ("../other/far.raw", "link.raw", "deep/below.raw",
                 places.far):
        for spelled in (js("raw", driver="file", filename=name),
                        js("raw", driver="host_device", filename=name),
                        '{"driver":"file","filename":"%s"}' % name):
            places.name(spelled if spelled.startswith("json:")
                        else "json:" + spelled)
            lab.refuses(places.top, "top.qcow2", "external-files")
        with lab.server(places.top, external_files="any") as server:
            server.connect()


def spelled_nbd(lab):
    """Exports of live servers, over both kinds of socket."""
    raw = raw_file(lab.path(), (0, bytes(range(1, 251)) * 2 * K))
    local = Below(lab, raw)
    other = Below(lab, raw, qemu=True)
    tcp = Below.on_some_port(lab, raw)
    top = lab.path()
    number = str(tcp.port)
    for name, uri in (
            ("nbd:unix:" + local.socket, local.uri()),
            ("nbd:unix:%s:exportname=" % other.socket, other.uri()),
            ("nbd:127.0.0.1:" + number, tcp.uri() + "/"),
            ("nbd+tcp://127.0.0.1:" + number, tcp.uri()),
            ("nbd:127.0.0.1:%s:exportname=a b" % number,
             tcp.uri() + "/a%20b"),
            (js("raw", driver="nbd", path=local.socket), local.uri()),
            (js("raw", driver="nbd", host="127.0.0.1", port=number),
             tcp.uri() + "/"),
            (js("raw", driver="nbd", export="a/b",
                server={"type": "inet", "host": "127.0.0.1",
                        "port": number}), tcp.uri() + "/a/b"),
            ('json:{"driver":"raw","offset":512,"size":102400,"file":'
             '{"driver":"nbd","server.type":"unix","server.path":"%s"}}'
             % other.socket, other.uri())):
        if name.endswith("exportname="):
            create(top, 500 * K, backing=name, backing_format="raw",
                   quiet_backing=True)     # QEMU does not open this one
            with lab.server(top, external_files=uri) as server:
                expect(server.connect(), (0, contents(raw)[:500 * K]))
        else:
            create(top, None, backing=name, backing_format="raw")
            reads_equal(lab, top, external_files=uri)
        # It says which URI must be allowed.
        lab.refuses(top, uri, "external-files")
        lab.refuses(top, uri, "external-files", external_files=uri + "x")
    for below in (local, other, tcp):
        below.end()


def spelled_formats(lab):
    """The format in a json: name counts if the image says no other."""
    places = Places(lab)
    name = js("raw", driver="file", filename=places.near)

    def say(fmt):
        create(places.top, M, backing=name, backing_format="raw")
        with Qcow2(places.top) as image:
            image.replace_extensions(
                [(k, fmt if k == EXT_BACKING_FORMAT else d)
                 for k, _, d in image.extensions()
                 if fmt or k != EXT_BACKING_FORMAT])

    say(None)
    with lab.server(places.top) as server:
        expect(server.connect(), (0, b"N" * 512))
    say(b"qcow2")
    lab.refuses(places.top, "has the format qcow2", "the driver raw",
                "backing-format=")
    with lab.server(places.top, backing_format="raw") as server:
        expect(server.connect(), (0, b"N" * 512))


def no_backing_of_backing(lab):
    """What "backing" is null for is the end of the chain."""
    places = Places(lab)
    middle = create(os.path.join(places.disks, "mid.qcow2"), None,
                    backing=places.near, backing_format="raw")
    qemu_io(middle, "write -P 5 0 64k")
    create(places.top, None, backing_format="qcow2",
           backing='json:{"driver":"qcow2","backing":null,'
           '"file.filename":"%s"}' % middle)
    reads_equal(lab, places.top)
    os.unlink(places.near)
    with lab.server(places.top) as server:
        expect(server.connect(), (0, b"\5" * 64 * K + bytes(1000)))


def spelled_chains(lab):
    """The name of a layer also says what is below that, whatever its header
    says: the driver, the file and the options of each, or some of them."""
    places = Places(lab)

    def disk(name):
        return os.path.join(places.disks, name)

    def file(path, **more):
        return {"driver": "file", "filename": path, **more}

    near, other, alone, two = (disk(n) for n in ("near.raw", "o.raw", "alone",
                                                 "two"))
    raw_file(other, (0, bytes(range(3, 200)) * 5 * K))
    middle = create(disk("mid"), None, backing=near, backing_format="raw")
    create(two, M, backing=middle, backing_format="qcow2")
    create(alone, M)
    for i, path in enumerate((middle, two, alone)):
        qemu_io(path, "write -P %d %dk 64k" % (i + 1, i * 128))
    raw = {"driver": "raw", "file": file(other)}
    tuned = {"node-name": "n", "read-only": True, "discard": "unmap",
             "detect-zeroes": "on", "force-share": True,
             "cache": {"direct": False, "no-flush": True}}
    below = Below(lab, other)
    nbd = {"driver": "nbd", "server": {"type": "unix", "path": below.socket},
           "reconnect-delay": 3}
    for layer, options in (
            (middle, {"backing": raw}),
            (alone, {"backing": raw}),
            (middle, {"backing": {**raw, **tuned}, "lazy-refcounts": True}),
            (middle, {"backing.driver": "raw", "backing.file": file(
                other, locking="off", aio="threads")}),
            # The driver is that of the header, or the file is.
            (middle, {"backing": {"file": file(other)}}),
            (middle, {"backing": {"driver": "raw", "read-only": True}}),
            (middle, {"backing": {"driver": "raw", "offset": 512}}),
            (middle, {"backing": {"discard": "ignore"}}),
            (middle, {"backing": {}}),
            (alone, {"backing": {"driver": "raw", "offset": 1000, "size":
                                 512000, "file": file(other)}}),
            (alone, {"backing": file(other)}),
            (alone, {"backing": nbd}),
            (alone, {"backing": {"driver": "raw", "size": 102400,
                                 "file": nbd}}),
            # Deeper.
            (alone, {"backing": {"driver": "qcow2", "file": file(middle)}}),
            (alone, {"backing": {"driver": "qcow2", "file": file(middle),
                                 "backing": raw}}),
            (two, {"backing": {"backing": raw}}),
            (two, {"backing": {"driver": "qcow2", "backing": None}}),
            (two, {"backing": {"driver": "qcow2", "backing": ""}}),
            (two, {"backing": None}),
            (alone, {"backing": {"driver": "qcow2", "file": file(two),
                                 "backing": {"driver": "qcow2", "file":
                                             file(middle), "backing": raw}}}),
            # Instead of qcow2 a raw file, which happens to be qcow2.
            (alone, {"backing": {"driver": "raw", "file": file(middle)}})):
        name = "json:" + json.dumps({"driver": "qcow2", "file": file(layer),
                                     **options})
        # QEMU's size, as of any overlay, is that of what is below.
        create(places.top, None, backing=name, backing_format="qcow2")
        reads_equal(lab, places.top, external_files="any")
        lab.refuses(places.top, "external-files", external_files="none")
    below.end()


def spelled_chains_outside(lab):
    """What is named for a layer is judged as if it were named plainly, by
    the image that has the name."""
    places = Places(lab)
    middle = create(os.path.join(places.disks, "mid"), M)
    second = create(os.path.join(places.disks, "second"), M)

    def name(*layers):
        """Each but the last is qcow2."""
        options = {"driver": "raw", "file": {"filename": layers[-1]}}
        for layer in layers[-2::-1]:
            options = {"driver": "qcow2", "file": {"filename": layer},
                       "backing": options}
        places.name("json:" + json.dumps(options), "qcow2")

    for far in ("../other/far.raw", "link.raw", "deep/below.raw",
                places.far):
        for layers in (("mid", far), ("mid", "second", far)):
            name(*layers)
            lab.refuses(places.top, "top.qcow2", far, "external-files")
        with lab.server(places.top, external_files="any") as server:
            check(server.connect().pread(1, 0) in b"FD", "what is below?")
    # Relative ones begin where the image is that has the name.
    os.rename(middle, places.far + ".mid")
    name("../other/far.raw.mid", "near.raw")
    lab.refuses(places.top, "far.raw.mid", "external-files")
    lab.refuses(places.top, "near.raw", "external-files",
                external_files=places.other)
    with lab.server(places.top, external_files="any") as server:
        expect(server.connect(), (0, b"N" * 512))
    name("second", "second", "near.raw")
    lab.refuses(places.top, second, "leads back")


def spelled_data_file(lab):
    """The name of a layer also says where its data is, as QEMU writes it
    there for a layer that was opened so."""
    places = Places(lab)
    middle = os.path.join(places.disks, "mid")
    data = os.path.join(places.disks, "moved.data")
    qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=%s.data"
             % middle, middle, M)
    qemu_io(middle, "write -P 9 64k 128k")
    os.rename(middle + ".data", data)
    for options in ({"data-file": {"driver": "file", "filename": data}},
                    {"data-file.driver": "raw", "data-file.file":
                     {"driver": "file", "filename": data}}):
        create(places.top, None, backing_format="qcow2",
               backing="json:" + json.dumps(
                   {"driver": "qcow2", "file": {
                       "driver": "file", "filename": middle}, **options}))
        reads_equal(lab, places.top)
        lab.refuses(places.top, "external-files", external_files="none")


def chosen_chain(lab):
    """backing-file=json: says what all the layers are: files that lie elsewhere
    now, and formats that no header has."""
    places = Places(lab)
    middle = create(os.path.join(places.other, "mid"), M)
    qemu_io(middle, "write -P 5 64k 64k")
    qemu_img("rebase", "-u", "-b", "gone", "-F", "raw", middle)
    places.name("gone.qcow2", "qcow2")
    for path in middle, places.top:
        with Qcow2(path) as image:
            image.replace_extensions(
                [(k, d) for k, _, d in image.extensions()
                 if k != EXT_BACKING_FORMAT])
            before = image.pread(image.cluster_size, 0)
    file = {"driver": "file", "filename": middle}
    raw = {"driver": "raw", "file": {"driver": "file",
                                     "filename": "../other/far.raw"}}

    def name(**options):
        return "json:" + json.dumps({"file": file, **options})

    def served(chosen, **params):
        with lab.server(places.top, backing_file=chosen,
                        external_files="none", **params) as server:
            handle = server.connect()
            expect(handle, (0, b"F" * 64 * K + b"\5" * 64 * K + b"F" * K))
            handle.pwrite(b"x", 100)
            expect(handle, (99, b"FxF"))
            handle.pwrite(b"F", 100)

    served(name(driver="qcow2", backing=raw))
    served(name(backing=raw), backing_format="qcow2")
    served(name(driver="qcow2", backing=raw), backing_format="qcow2")
    with Qcow2(places.top) as image:
        check(image.pread(image.cluster_size, 0) == before,
              "the header was changed")
    lab.refuses(places.top, "backing-format=", "the driver qcow2",
                backing_file=name(driver="qcow2", backing=raw),
                backing_format="raw")
    lab.refuses(places.top, "backing-format=", backing_file=name())
    lab.refuses(places.top, "'bogus' is not a key", "backing-file=json:",
                backing_file=name(bogus=1))
    # What the header there still says is under the rules.
    lab.refuses(places.top, middle, "format", "not guessed",
                backing_file=name(driver="qcow2"))
    lab.refuses(places.top, "external-files", backing_file=name(
        driver="qcow2", backing={"driver": "raw"}), external_files="none")


def override(lab):
    """backing-file= is used instead of the name, and may be anywhere."""
    places = Places(lab)
    other = raw_file(os.path.join(places.other, "override.raw"),
                     (0, b"O" * M))
    for name in ("near.raw", "nowhere.raw", "../other/far.raw"):
        places.name(name)
        with lab.server(places.top, backing_file=other) as server:
            handle = server.connect()
            expect(handle, (0, b"O" * 512))
            handle.pwrite(b"x", 100)
            expect(handle, (0, b"O" * 100 + b"x" + b"O" * 100))
        with Qcow2(places.top) as image:
            check(image.pread(image.backing_size, image.backing_offset) ==
                  name.encode(), "the name in the image was changed")
    plain = create(os.path.join(places.disks, "plain.qcow2"), 1 * M)
    lab.refuses(plain, "backing", backing_file=other)
    places.name("near.raw")
    lab.refuses(places.top, "nothere.raw",
                backing_file=os.path.join(places.other, "nothere.raw"))


# Chains.

def loops(lab):
    places = Places(lab)
    places.name("top.qcow2", "qcow2")
    lab.refuses(places.top, "top.qcow2", "chain")
    second = os.path.join(places.disks, "second.qcow2")
    create(second, 1 * M, backing="top.qcow2", backing_format="qcow2",
           quiet_backing=True)
    places.name("second.qcow2", "qcow2")
    lab.refuses(places.top, "chain")
    # By another name it is still the same file.
    os.symlink("top.qcow2", os.path.join(places.disks, "alias.qcow2"))
    places.name("alias.qcow2", "qcow2")
    lab.refuses(places.top, "chain")
    os.link(places.top, os.path.join(places.disks, "hard.qcow2"))
    qemu_img("rebase", "-u", "-b", "hard.qcow2", "-F", "qcow2", places.top)
    lab.refuses(places.top, "chain")


def deep_chain(lab):
    """200 backing files are served, 201 are not."""
    folder = lab.path()
    os.mkdir(folder)
    template = create(os.path.join(folder, "l002"), 1 * M,
                      backing="l001", backing_format="qcow2",
                      quiet_backing=True)
    bottom = create(os.path.join(folder, "l001"), 1 * M)
    qemu_io(bottom, "write -P 7 0 64k")
    with Qcow2(template) as image:
        name_at = image.backing_offset
    for i in range(3, 203):
        path = os.path.join(folder, "l%03d" % i)
        shutil.copyfile(template, path)
        with open(path, "r+b") as f:
            f.seek(name_at)
            f.write(b"l%03d" % (i - 1))
    with lab.server(os.path.join(folder, "l201")) as server:
        handle = server.connect()
        expect(handle, (0, b"\7" * 512))
        handle.pwrite(b"x", 5)
        expect(handle, (0, b"\7" * 5 + b"x" + b"\7" * 506))
    lab.refuses(os.path.join(folder, "l202"), "chain")


def mixed_chain(lab, seed, bottom):
    """Layers of all cluster sizes, some shorter than what is above and below
    them, each with a little of its own at places that need not be whole
    clusters or whole blocks of 64 KiB.  Which layer has a block is remembered,
    so all is read twice, in pieces that begin and end anywhere, and again
    around writes into the image on top."""
    rng = random.Random(seed)
    below, fmt = None, None
    if bottom == "raw":
        below, fmt = raw_file(lab.path(), (0, rng.randbytes(M)),
                              size=3 * M + 777), "raw"
    shapes = [("512", None), ("64k", None), ("4k", None), ("2M", None),
              ("64k", "on"), ("16k", None), ("1k", None), ("64k", None)]
    rng.shuffle(shapes)
    sizes = [rng.choice((4 * M, 3 * M + 512, 2 * M, M + 64 * K, 5 * M))
             for _ in shapes[1:]] + [4 * M]
    for (clusters, extended), size in zip(shapes, sizes):
        here = create(lab.path(), size, backing=below, backing_format=fmt,
                      cluster_size=clusters, extended_l2=extended)
        for i in range(6):
            at = rng.randrange(size // 512) * 512
            length = min(rng.choice((512, 4 * K, 64 * K, 200 * K)), size - at)
            qemu_io(here, rng.choice((
                "write -P %d %d %d" % (rng.randrange(1, 256), at, length),
                "write -z %d %d" % (at, length))))
        below, fmt = here, "qcow2"
    raw = lab.path()
    qemu_img("convert", "-O", "raw", here, raw)
    disk = bytearray(contents(raw))
    with lab.server(here) as server:
        handle = server.connect()
        for i in range(600):
            at = rng.randrange(len(disk))
            length = min(rng.choice((1, 512, 5000, 64 * K, 300 * K)),
                         len(disk) - at)
            if i >= 300 and i % 3 == 0:
                length = min(length, 5000)
                disk[at:at + length] = rng.randbytes(length)
                handle.pwrite(bytes(disk[at:at + length]), at)
            else:
                expect(handle, (at, bytes(disk[at:at + length])))
        for _ in range(2):
            expect(handle, (0, bytes(disk)))
    expect_clean(here)
    with open(raw, "wb") as f:
        f.write(disk)
    compare(here, raw)


def main():
    lab = Lab()
    for seed in range(6):
        lab.case("mixed chain %d" % seed, mixed_chain, lab, seed,
                 ("raw", "qcow2")[seed % 2])
    lab.case("three deep", three_deep, lab)
    for fmt in ("raw", "qcow2"):
        for tail in (0, 512, 7 * 512) + ((1, 511, 777)
                                         if fmt == "raw" else ()):
            lab.case("shorter %s %d" % (fmt, tail), shorter, lab, tail, fmt)
    lab.case("shorter middle", shorter_middle, lab)
    lab.case("longer", longer, lab)
    lab.case("never probed", never_probed, lab)
    lab.case("not qcow2", not_qcow2, lab)
    if lab.ours:
        lab.case("no format", no_format, lab)
        lab.case("given format", given_format, lab)
        lab.case("a format that a server knows", backing_exported, lab)
        lab.case("no backing file", no_backing, lab)
        for name in (b"vmdk", b"", b"raw\0", b"QCOW2", b"x" * 5000):
            lab.case("format %.10r" % name, other_format, lab, name)
        lab.case("external files", external_files, lab)
        lab.case("strange names", strange_names, lab)
        lab.case("files in other spellings", spelled_files, lab)
        lab.case("relative ones", spelled_relative, lab)
        lab.case("exports in other spellings", spelled_nbd, lab)
        lab.case("formats in names", spelled_formats, lab)
        lab.case("no backing of the backing", no_backing_of_backing, lab)
        lab.case("chains in names", spelled_chains, lab)
        lab.case("chains that lead out", spelled_chains_outside, lab)
        lab.case("data files in names", spelled_data_file, lab)
        lab.case("override", override, lab)
        lab.case("a chain that was chosen", chosen_chain, lab)
        lab.case("loops", loops, lab)
        lab.case("deep chain", deep_chain, lab)
    lab.finish()


if __name__ == "__main__":
    main()
