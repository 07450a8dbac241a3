#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""Make damaged images, one for each row of the table in cases.py.

    make.py --list                  what there is
    make.py [--qemu] DIR [CASE...]  make images, say what is expected of
                                    them and, with --qemu, what QEMU says

Each is a sound image made by qemu-img of which a few bytes are then changed,
in a folder of its own, with the files that it names.  The sound images are
made once and copied.
"""

import argparse
import os
import shutil
import subprocess
import sys

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.append(os.path.join(HERE, ".."))

# pylint: disable=wrong-import-position
from encrypted import create_encrypted  # noqa: E402
from imagefile import DATA_FILE, Image  # noqa: E402

K = 1024
M = 1024 * K
CLUSTER = 4 * K
DATA = 64 * K                   # of the disk, from its beginning


def run(*argv):
    subprocess.run([str(a) for a in argv], check=True,
                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def disk(size=M, data=DATA):
    """What the guest sees: every cluster of the data is different, and
    compresses, but not to nothing."""
    content = bytearray(size)
    for at in range(0, data, 16):
        content[at:at + 16] = b"%04x %010d\n" % (at // CLUSTER,
                                                 at * 2654435761 % 9999991)
    assert len(content) == size
    return bytes(content)


class Maker:
    """Sound images by name, and the copies that the cases damage, each in
    a folder of its own."""

    def __init__(self, top):
        self.top = self.folder = top
        self.sound = os.path.join(top, "sound")
        self.done = {}
        os.makedirs(self.sound, exist_ok=True)

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, content):
        with open(self.path(name), "wb") as f:
            f.write(content)
        return self.path(name)

    def write_sound(self, name, content):
        return self.write(os.path.join(self.sound, name), content)

    def outside(self):
        """The name of a file beside the folder of the image."""
        name = "outside.raw"
        self.write("../" + name, bytes(M))
        return name

    def link(self, to, name):
        if not os.path.lexists(self.path(name)):
            os.symlink(to, self.path(name))

    def fifo(self, name):
        if not os.path.lexists(self.path(name)):
            os.mkfifo(self.path(name))

    def convert(self, to, *options, content=None):
        raw = self.write_sound("disk.raw", content or disk())
        run("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2",
            *options, raw, to)
        os.unlink(raw)
        return content or disk()

    # The kinds of sound images.  Each returns what the guest sees.

    def make_v3(self, to):
        return self.convert(to, "-o", "cluster_size=4k")

    def make_v2(self, to):
        return self.convert(to, "-o", "cluster_size=4k,compat=0.10")

    def make_64k(self, to):
        return self.convert(to)

    def make_512(self, to):
        return self.convert(to, "-o", "cluster_size=512")

    def make_1_bit(self, to):
        return self.convert(to, "-o", "cluster_size=4k,refcount_bits=1")

    def make_64_bits(self, to):
        return self.convert(to, "-o", "cluster_size=4k,refcount_bits=64")

    def make_deflate(self, to):
        return self.convert(to, "-c", "-o", "cluster_size=4k")

    def make_deflate_v2(self, to):
        return self.convert(to, "-c", "-o", "cluster_size=4k,compat=0.10")

    def make_zstd(self, to):
        return self.convert(to, "-c", "-o",
                            "cluster_size=4k,compression_type=zstd")

    def make_snapshots(self, to):
        content = bytearray(self.make_v3(to))
        run("qemu-img", "snapshot", "-c", "one", to)
        run("qemu-io", "-f", "qcow2", "-c", "write -P 0x77 4k 8k", to)
        content[4 * K:12 * K] = b"\x77" * (8 * K)
        run("qemu-img", "snapshot", "-c", "two", to)
        return content

    def make_bitmaps(self, to):
        content = self.make_v3(to)
        run("qemu-img", "bitmap", "--add", "-g", "64k", to, "daily")
        run("qemu-img", "bitmap", "--add", "-g", "4k", to, "weekly")
        return content

    def make_wide(self, to):
        """A disk with an L1 table of many entries."""
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o",
            "cluster_size=4k", to, "1G")
        return bytes(M)         # the rest is not looked at

    def make_wide_bitmap(self, to):
        content = self.make_wide(to)
        run("qemu-img", "bitmap", "--add", "-g", "64k", to, "daily")
        return content

    def encrypted(self, to, method):
        create_encrypted(to, "1M", "abc", method, ["-o", "cluster_size=4k"])
        raw = self.write_sound("disk.raw", disk())
        run("qemu-img", "convert", "-q", "-f", "raw", "-n", "--object",
            "secret,id=s,data=abc", "--target-image-opts", raw,
            "driver=qcow2,encrypt.key-secret=s,file.filename=%s" % to)
        os.unlink(raw)
        return disk()

    def make_luks(self, to):
        return self.encrypted(to, "luks")

    def make_aes(self, to):
        return self.encrypted(to, "aes")

    def make_extl2(self, to):
        return self.convert(to, "-o", "extended_l2=on,cluster_size=16k")

    def make_extl2_deflate(self, to):
        return self.convert(to, "-c", "-o",
                            "extended_l2=on,cluster_size=16k")

    def make_data_file(self, to):
        return self.convert(to, "-o", "cluster_size=4k,data_file=%s.data" % to)

    def make_data_raw(self, to):
        return self.convert(to, "-o", "cluster_size=4k,data_file_raw=on,"
                            "data_file=%s.data" % to)

    def make_data_extl2(self, to):
        return self.convert(to, "-o", "cluster_size=16k,extended_l2=on,"
                            "data_file=%s.data" % to)

    def make_overlay(self, to, compat="1.1"):
        """Over a raw file of 40 KiB."""
        run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b",
            "base.raw", "-F", "raw", "-o",
            "cluster_size=4k,compat=" + compat, to, "1M")
        self.write_sound("base.raw", disk()[:40 * K])
        return disk()[:40 * K] + bytes(M - 40 * K)

    def make_overlay_v2(self, to):
        return self.make_overlay(to, "0.10")

    def image(self, kind, name):
        """A sound image of this kind, in a file of this name."""
        if kind not in self.done:
            path = os.path.join(self.sound, kind + ".qcow2")
            self.done[kind] = (path, getattr(self, "make_" + kind)(path))
        path, content = self.done[kind]
        copy = self.path(name + ".qcow2")
        shutil.copyfile(path, copy)
        image = Image(copy, content)
        if kind.startswith("overlay"):
            shutil.copyfile(os.path.join(self.sound, "base.raw"),
                            self.path("base.raw"))
        if kind.startswith("data_"):
            shutil.copyfile(path + ".data", copy + ".data")
            image.replace_extension(DATA_FILE,
                                    os.path.basename(copy + ".data").encode())
            image.save()
        return image

    def case(self, case):
        """Make the image of a case, in a new folder, and return it."""
        self.folder = os.path.join(self.top, case.name)
        shutil.rmtree(self.folder, ignore_errors=True)
        os.mkdir(self.folder)
        image = self.image(case.kind, case.name)
        case.damage(image, self)
        if not case.saved:
            image.save()
        return image


def qemu_says(path):
    done = subprocess.run(
        ["qemu-io", "-r", "-f", "qcow2", "-c", "read -q 0 64k", path],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=60, check=False)
    text = done.stdout.decode(errors="replace").strip().splitlines()
    return "%d: %s" % (done.returncode, text[0] if text else "fine")


def main():
    from cases import CASES  # which needs this module
    parser = argparse.ArgumentParser(description="make damaged images")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--qemu", action="store_true")
    parser.add_argument("dir", nargs="?")
    parser.add_argument("case", nargs="*")
    args = parser.parse_args()
    if args.list or not args.dir:
        for case in CASES:
            print("%-32s %s" % (case.name, case.expected))
        return
    maker = Maker(args.dir)
    for case in CASES:
        if args.case and case.name not in args.case:
            continue
        image = maker.case(case)
        print("%-32s %s" % (case.name, case.expected))
        if args.qemu:
            print("%32s QEMU says %s" % ("", qemu_says(image.path)))


if __name__ == "__main__":
    main()
