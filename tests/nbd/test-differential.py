#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""Random requests to images of every kind, against a flat model.

The kinds are combined so that every two values of different parameters meet
in some image.  An image goes through three rounds: one with a clean stop,
after which QEMU's tools must find the model's contents, the snapshots
untouched, neither corruption nor leaks, the same block status as ours, and in
the dirty bitmap what was asked for; one that ends with the server killed in the middle of requests, after which
everything flushed must be there; and a last one on what the crash left, some
of them larger than before.

QCOW2_TEST_SEED and QCOW2_TEST_COUNT (requests a round) choose another run,
QCOW2_TEST_CASES how many images (0: all that the pairs need; more are random
ones); QCOW2_TEST_ONLY="data=raw clients=many" takes those among them.  With
QCOW2_TEST_STORAGE=nbd all images lie in an export of another server, which
wants blocks of various sizes, else some of them.  Where loop devices can be
had, others lie on one.
"""

import argparse
import json
import os
import random
import sys
import time

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403
from bitmaplab import *                                 # noqa: E402,F403
from nbdmodel import Driver, Model                      # noqa: E402

PARAMETERS = {
    "cluster": [512, 1 * K, 4 * K, 16 * K, 64 * K, 256 * K, 2 * M],
    "version": [3, 2],
    "refcount_bits": [16, 1, 2, 4, 8, 32, 64],
    "original": ["plain", "empty", "deflate", "zstd"],
    "backing": ["none", "raw-short", "raw-long", "raw-odd", "qcow2-short",
                "qcow2-long", "chain"],
    "spelling": ["plain", "json", "chain"],     # of its name
    "snapshots": [0, 1, 2, 3],
    "maker": ["qemu", "us"],
    "preallocation": ["off", "metadata", "falloc", "full"],
    "data": ["inside", "file", "raw"],  # where guest data is
    "size": ["even", "odd"],
    "subclusters": ["off", "on"],
    "encryption": ["off", "luks", "aes", "odd-luks"],   # some odd cipher
    "zeroes": ["off", "on", "unmap"],   # detect-zeroes
    "compress": ["off", "deflate", "zstd"],
    "discard": ["unmap", "ignore"],
    "resize": ["no", "grow"],           # before the last round
    "caches": ["default", "tiny"],
    "lazy": ["off", "on"],
    "bitmap": ["none", "fine", "coarse", "disabled"],
    "clients": ["one", "deep", "many"],
    "storage": ["file", "nbd", "device"],   # where the image is
    "found": ["sound", "leaks", "dirty"],   # at the first start
    "check": ["off", "report", "leaks", "all"], # at every start
    "tracker": ["whole", "part", "least"],  # what it has memory for
}


def possible(case):
    """Whether the parameters, as far as they are chosen, go together."""
    get = case.get
    if get("version") == 2 and (get("refcount_bits", 16) != 16 or
                                get("original") == "zstd" or
                                get("bitmap", "none") != "none" or
                                get("lazy") == "on" or
                                get("found") == "dirty"):
        return False
    if get("version") == 2 and get("snapshots", 0) > 0 and \
       get("resize") == "grow":
        return False
    if get("compress") == "zstd" and (get("version") == 2 or
                                      get("original") == "deflate") or \
       get("compress") == "deflate" and get("original") == "zstd":
        return False
    if get("subclusters") == "on" and (get("version") == 2 or
                                       get("cluster", 16 * K) < 16 * K):
        return False
    if get("preallocation", "off") != "off" and (
            get("backing", "none") != "none" and not
            (get("subclusters") == "on" and get("original") == "empty") or
            get("original") in ("deflate", "zstd")):
        return False
    # Data files are not for version 2, snapshots, compressed clusters; a raw
    # one is the disk, so nothing can be below.
    if get("data", "inside") != "inside" and (
            get("version") == 2 or get("snapshots", 0) > 0 or
            get("compress", "off") != "off" or
            get("original") in ("deflate", "zstd")):
        return False
    if get("data") == "raw" and get("backing", "none") != "none":
        return False
    if get("spelling", "plain") != "plain" and get("backing") == "none":
        return False
    # Without a zero flag qemu-img writes out all the zeroes by which a disk
    # differs from its backing file; with large clusters that is terabytes.
    if get("version") == 2 and get("original", "empty") != "empty" and \
       get("backing", "none") != "none" and get("cluster", 0) >= 256 * K:
        return False
    # Nothing is compressed into encrypted images, what is preallocated in
    # them reads as garbage, and only "create" makes them.
    if get("encryption", "off") != "off" and (
            get("original") in ("deflate", "zstd") or
            get("compress", "off") != "off" or
            get("preallocation", "off") != "off" or
            get("data") == "raw" or
            get("original") == "plain" and get("backing", "none") != "none"):
        return False
    # We do not make the old encryption, and what QEMU writes into an image
    # that is there is not compressed, and is all of the disk.
    if get("maker") == "us" and (
            get("encryption") == "aes" or
            get("original") in ("deflate", "zstd") or
            get("original") == "plain" and get("backing", "none") != "none"):
        return False
    # The server refuses this.
    if get("zeroes") == "unmap" and get("discard") == "ignore":
        return False
    snapshots = get("snapshots", 0)
    # A snapshot adds one to every count, compressed clusters share.
    if get("refcount_bits") == 1 and snapshots > 0:
        return False
    if get("refcount_bits") == 2 and snapshots > 2:
        return False
    if get("refcount_bits") in (1, 2, 4) and snapshots > 0 and \
            get("original") in ("deflate", "zstd"):
        return False
    return True


def storages(lab):
    """Where images can be, here."""
    wanted = os.environ.get("QCOW2_TEST_STORAGE")
    if not lab.ours:
        return ["file"]
    if wanted:
        return [wanted]
    if device_works(lab):
        return ["file", "nbd", "device"]
    print("no image is on a block device: there are no loop devices")
    return ["file", "nbd"]


def pairwise(rng, parameters):
    """Cases so that each possible pair of values is in one of them."""
    names = list(parameters)
    missing = set()
    for i, a in enumerate(names):
        for b in names[i + 1:]:
            for x in parameters[a]:
                for y in parameters[b]:
                    if possible({a: x, b: y}):
                        missing.add((a, x, b, y))

    def gain(case, name, value):
        return sum((a, x, b, y) in missing
                   for other, worth in case.items()
                   for a, x, b, y in ((other, worth, name, value),
                                      (name, value, other, worth)))

    cases = []
    while missing:
        a, x, b, y = rng.choice(sorted(missing, key=str))
        best, best_gain = None, -1
        for _ in range(8):
            case = {a: x, b: y}
            rest = [n for n in names if n not in case]
            rng.shuffle(rest)
            for name in rest:
                values = [v for v in parameters[name]
                          if possible({**case, name: v})]
                if not values:
                    break
                rng.shuffle(values)
                case[name] = max(values,
                                 key=lambda v: gain(case, name, v))
            if len(case) < len(names):
                continue
            new = sum(case[p] == v and case[q] == w
                      for p, v, q, w in missing)
            if new > best_gain:
                best, best_gain = case, new
        if best is None:        # the pair fits nothing else
            missing.discard((a, x, b, y))
            continue
        cases.append(best)
        missing = {(p, v, q, w) for p, v, q, w in missing
                   if best[p] != v or best[q] != w}
    return cases


def odd_cipher(rng):
    """None that everybody uses; test-encrypted.py has all of them."""
    cipher = rng.choice(("aes-128", "aes-192", "serpent-128", "twofish-256",
                         "cast5-128"))
    modes = {"aes-192": ("xts",), "cast5-128": ("cbc", "ctr")}
    ivs = ("plain",) if cipher == "cast5-128" else ("plain", "essiv")
    return {"encrypt.cipher_alg": cipher,
            "encrypt.cipher_mode": rng.choice(modes.get(cipher,
                                                        ("xts", "cbc"))),
            "encrypt.ivgen_alg": rng.choice(ivs),
            "encrypt.hash_alg": rng.choice(("sha1", "sha512", "ripemd160"))}


def random_case(rng):
    while True:
        case = {n: rng.choice(v) for n, v in PARAMETERS.items()}
        if possible(case):
            return case


def stretch(cluster):
    """What an L2 table covers, or a slice of one (512 entries) where that
    would be a disk of hundreds of gigabytes: QEMU's tools take minutes to
    compare these."""
    return min(cluster * cluster // 8, 512 * cluster
               if cluster > 256 * K else 1 << 63)


def disk_size(case):
    """Large enough for several L2 tables, if that costs no data."""
    cluster = case["cluster"]
    covered = stretch(cluster)
    if cluster <= 4 * K:
        size = max(4 * covered, 1 * M)
    elif cluster <= 64 * K:
        size = 2 * covered + 20 * cluster
    else:
        size = covered + 10 * cluster
    if case["preallocation"] in ("falloc", "full"):
        size = min(size, 32 * M)        # it takes the space, really
    elif case["preallocation"] == "metadata":
        size = min(size, 1 * G)         # qemu-img reads every cluster
    if case["size"] == "odd":
        size += 512 * (1 + size // 512 % 5)
    return size


def hot_areas(size, cluster):
    """Where most requests go: the ends and where L2 tables meet."""
    covered = stretch(cluster)
    reach = min(max(8 * cluster, 64 * K), 8 * M)
    areas = [(0, min(2 * reach, size)), (max(0, size - reach), size)]
    for at in range(covered, size, covered):
        areas.append((max(0, at - reach), min(size, at + reach)))
    return areas[:8]


def fill(rng, path, size, areas, pieces):
    """Put random data at random places of a raw file."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, size)
    for _ in range(pieces):
        low, high = rng.choice(areas)
        if low >= size:
            continue
        start = rng.randrange(low, min(high, size)) // 512 * 512
        length = min(rng.randint(1, 200000) // 512 * 512 + 512, size - start)
        if rng.random() < 0.5:
            data = rng.randbytes(length)
        else:                   # compresses well
            data = (rng.randbytes(64) * (length // 64 + 1))[:length]
        os.pwrite(fd, data, start)
    os.close(fd)


class Bitmap:
    """What must be dirty, and what may be."""

    def __init__(self, grain, trims, disabled):
        self.grain, self.trims, self.disabled = grain, trims, disabled
        self.must, self.may = set(), set()
        self.lost = False

    def note(self, history):
        if self.disabled:
            return
        for kind, offset, length, flags in history:
            if kind in ("write", "zero", "trim"):
                touched = grains([(offset, length)], self.grain)
                self.may |= touched
                # It may have been refused, or ignored, and then has done
                # nothing.
                if not flags & nbd.CMD_FLAG_FAST_ZERO and \
                   (kind != "trim" or self.trims):
                    self.must |= touched

    def judge(self, dirty, who):
        check(self.must <= dirty, "not dirty, says %s: %s", who,
              sorted(self.must - dirty)[:9])
        check(dirty <= self.may, "dirty, says %s: %s", who,
              sorted(dirty - self.may)[:9])


class Subject:
    """The image of a case and all that is known about it."""

    def __init__(self, lab, rng, case):
        self.lab, self.rng, self.case = lab, rng, case
        self.size = disk_size(case)
        self.areas = hot_areas(self.size, case["cluster"])
        self.path = lab.path()
        self.files = [self.path]
        self.data = None if case["data"] == "inside" else self.raw_name()
        self.saved = {}         # snapshots: name -> raw file
        self.resize = None      # what the next server shall make of it
        self.below = []         # what else the name says
        self.backing, self.backing_format = self.make_backing()
        self.backing_name = self.spell(self.backing, self.backing_format)
        self.make_image()
        self.make_snapshots()
        self.bitmap = self.make_bitmap()
        expect_clean(self.path)
        raw = self.raw_name()
        qemu_img("convert", "-O", "raw", *named(self.path), raw)
        self.model = Model(raw)
        check(self.model.size == self.size, "the model's size is wrong")
        self.repairs = case["check"] in ("leaks", "all") and lab.ours
        self.leaks = self.damage()

    def raw_name(self):
        name = self.lab.path()
        self.files.append(name)
        return name

    def make_backing(self):
        """(path, format) of a new backing chain, or (None, None)."""
        kind = self.case["backing"]
        if kind == "none":
            return None, None
        rng = self.rng
        size = self.size
        if kind.endswith("short"):
            size = size // 3 // 512 * 512 + 512
        elif kind == "raw-odd":
            size = size // 2 + rng.randint(1, 511)
        elif kind.endswith("long"):
            size += 3 * self.case["cluster"] + 512
        base = self.raw_name()
        fill(rng, base, size, self.areas, 6)
        if kind.startswith("raw"):
            return base, "raw"
        top = self.raw_name()
        if kind != "chain":
            options = {"cluster_size": rng.choice((512, 4 * K, 64 * K))
                       if size < 64 * M else 64 * K}
            if options["cluster_size"] == 64 * K and rng.random() < 0.5:
                options["extended_l2"] = "on"
            opts = ",".join("%s=%s" % kv for kv in options.items())
            compress = ["-c"] if rng.random() < 0.5 else []
            qemu_img("convert", *compress, "-f", "raw", "-O", "qcow2",
                     "-o", opts, base, top)
            return top, "qcow2"
        # raw <- qcow2 (longer) <- qcow2 (shorter) <- the image
        middle = self.raw_name()
        create(middle, size + 65536, backing=base, backing_format="raw",
               cluster_size=64 * K, extended_l2=self.case["subclusters"])
        self.dirty(middle, 4)
        create(top, size * 2 // 3 // 512 * 512, backing=middle,
               backing_format="qcow2",
               cluster_size=4 * K if size < 64 * M else 64 * K)
        self.dirty(top, 4)
        if self.case["spelling"] == "chain":
            # Only the name of the first leads to the others.
            qemu_img("rebase", "-u", "-b", top + ".gone", "-F", "raw", top)
            self.below = [(middle, "qcow2"), (base, "raw")]
        return top, "qcow2"

    def spell(self, path, fmt):
        """Its name, as the case has it."""
        if self.case["spelling"] == "plain" or not path:
            return path
        options = None
        for name, driver in reversed([(path, fmt)] + self.below):
            below = {"backing": options} if driver == "qcow2" and \
                self.case["spelling"] == "chain" else {}
            options = {"driver": driver, "file": {"driver": "file",
                                                  "filename": name}, **below}
        return "json:" + json.dumps(options)

    def dirty(self, path, pieces):
        """Some writes by QEMU."""
        size = image_info(path)["virtual-size"]
        commands = []
        for _ in range(pieces):
            low, high = self.rng.choice(self.areas)
            if low >= size:
                continue
            start = self.rng.randrange(low, min(high, size)) // 512 * 512
            length = min(self.rng.randint(1, 3 * self.case["cluster"]) //
                         512 * 512 + 512, size - start, 4 * M)
            verb = self.rng.choice(("write -P %d" % self.rng.randint(1, 255),
                                    "write -P %d" % self.rng.randint(1, 255),
                                    "write -z", "write -z -u", "discard"))
            if self.case["version"] == 2 and self.backing_of(path) and \
               "discard" in verb:
                verb = "write -P 7"
            commands.append("%s %d %d" % (verb, start, length))
        qemu_io(path, *commands)

    @staticmethod
    def backing_of(path):
        return "backing-filename" in image_info(path)

    def make_image(self):
        case = self.case
        options = {"compat": "0.10" if case["version"] == 2 else "1.1",
                   "cluster_size": case["cluster"]}
        if case["version"] == 3:
            options["refcount_bits"] = case["refcount_bits"]
            options["lazy_refcounts"] = case["lazy"]
            options["extended_l2"] = case["subclusters"]
        if case["preallocation"] != "off":
            options["preallocation"] = case["preallocation"]
        if "zstd" in (case["original"], case["compress"]):
            options["compression_type"] = "zstd"
        if self.data:
            options["data_file"] = self.data
            options["data_file_raw"] = "on" if case["data"] == "raw" else "off"
        encrypted = case["encryption"] != "off"
        if case["encryption"] == "odd-luks":
            options.update(odd_cipher(self.rng))
        ours = self.lab.ours and case["maker"] == "us"
        if ours and not encrypted:
            create_by_us(self.path, self.size, self.backing_name,
                         self.backing_format, **options)
        elif case["original"] == "empty" or encrypted:
            create(self.path, self.size, self.backing_name,
                   self.backing_format,
                   encryption=encrypted and
                   case["encryption"].replace("odd-", ""), **options)
        if case["original"] == "empty":
            return
        source = self.lab.path()
        if self.backing:
            qemu_img("convert", *([] if self.backing_name.startswith("json:")
                                  else ["-f", self.backing_format]),
                     "-O", "raw", self.backing_name, source)
        fill(self.rng, source, self.size, self.areas, 8)
        if encrypted or ours:
            qemu_img("convert", "-n", "-f", "raw", *secret_of(self.path),
                     "--target-image-opts", source, options_of(self.path))
            os.unlink(source)
            return
        argv = ["convert", "-f", "raw", "-O", "qcow2"]
        if case["original"] in ("deflate", "zstd"):
            argv.append("-c")
        if self.backing:
            argv += ["-B", self.backing_name, "-F", self.backing_format]
        argv += ["-o", ",".join("%s=%s" % kv for kv in options.items())]
        qemu_img(*argv, source, self.path)
        os.unlink(source)

    def make_snapshots(self):
        for i in range(self.case["snapshots"]):
            name = "snap%d" % i
            qemu_img("snapshot", "-c", name, *named(self.path, None))
            self.saved[name] = snapshot_raw(self.path, name, self.raw_name())
            # After the last one too, but not always: then all is shared.
            if i + 1 < self.case["snapshots"] or self.rng.random() < 0.6:
                self.dirty(self.path, 3)

    def make_bitmap(self):
        """What is known of a bitmap, or None."""
        if self.case["bitmap"] == "none" or not self.lab.ours:
            return None
        grain = 512
        while self.size // grain > (1 << 10 if self.case["bitmap"] == "coarse"
                                    else 1 << 16):
            grain *= 2
        qemu_img("bitmap", "--add", "-g", grain, *named(self.path, None), "b")
        bitmap = Bitmap(grain, self.case["discard"] == "unmap",
                        self.case["bitmap"] == "disabled")
        if bitmap.disabled:     # from here on it stays as it is
            self.dirty(self.path, 3)
            qemu_img("bitmap", "--disable", *named(self.path, None), "b")
            bitmap.must = bitmap.may = qemu_dirty(self.path, "b", grain)
        return bitmap

    def damage(self):
        """Leaks, as a crash leaves them; or a dirty image, whose counts may
        be too low as well, and which the first writer has repaired.  True
        if leaks are left to us."""
        if self.case["found"] == "sound" or not self.lab.ours:
            return False
        dirty = self.case["found"] == "dirty"
        with Qcow2(self.path) as image:
            used = -(-os.path.getsize(self.path) // image.cluster_size)
            for cluster in self.rng.sample(range(used), min(used, 9)):
                if not image.refcount_place(cluster):
                    continue
                if image.refcount(cluster) == 0:
                    image.set_refcount(cluster, 1)
                elif dirty:
                    image.set_refcount(cluster, 0)
            # And one behind all others.
            if image.refcount_place(used):
                image.set_refcount(used, 1)
                os.truncate(self.path, (used + 1) * image.cluster_size)
            if dirty:
                image.put32(76, image.u64(72) & 0xffffffff | 1)
        return not dirty

    def close(self):
        self.model.close()
        for name in self.files:
            if os.path.exists(name):
                os.unlink(name)

    # The rounds.

    def server(self):
        params = {}
        if self.case["caches"] == "tiny":
            params["l2_cache_size"] = max(2 * self.case["cluster"], 8 * K)
            params["refcount_cache_size"] = 4 * self.case["cluster"]
            if self.lab.ours:
                params["compressed_cache_size"] = 2 * self.case["cluster"]
        if self.lab.ours:
            params["detect_zeroes"] = self.case["zeroes"]
            params["compress"] = self.case["compress"]
            params["discard"] = self.case["discard"]
            params["check"] = self.case["check"]
            params.update(self.tracker_limit())
            if self.resize:
                params["resize"], self.resize = self.resize, None
        # After each commit the server compares its tracker with the tables;
        # what it finds is in its log and fails the test when it stops.
        args = ["-D", "qcow2.overlap=1"] if self.lab.ours else []
        if self.case["storage"] == "file":
            return self.lab.server(self.path, args=args, **params)
        # What does not grow is made large before.
        room = max(64 * M, 2000 * self.case["cluster"])
        size = os.path.getsize(self.path) + room
        os.truncate(self.path, (size + 65535) // 65536 * 65536)
        if self.path in SECRETS:
            params["passphrase"] = SECRETS[self.path]
        if self.case["storage"] == "device":
            device = Device(self.lab, self.path)
            return self.lab.server(device.path, below=device, args=args,
                                   external_files="any", **params)
        return self.over_nbd(args, params)

    def tracker_limit(self):
        """Another one each time.  Nothing that a client sees depends on
        it."""
        if self.case["tracker"] == "whole":
            return {}
        limit = 0 if self.case["tracker"] == "least" \
            else self.rng.randint(1200, 6000)
        return {"overlap-structures.total-size-limit": limit,
                "overlap-limit": self.rng.choice(("unprotected", "verify"))}

    def over_nbd(self, args, params):
        policy = {"minimum": self.rng.choice((1, 512, 4096)),
                  "preferred": 4096,
                  "maximum": self.rng.choice((64 * K, 1 * M, 32 * M))}
        policy["minimum"] = min(policy["minimum"], self.case["cluster"])
        sizes = ["blocksize-%s=%d" % p for p in policy.items()]
        below = Below(self.lab, self.path, filters=["blocksize-policy"],
                      args=sizes + ["blocksize-error-policy=error"])
        return self.lab.server(below.uri(), below=below, args=args,
                               external_files="any", **params)

    def grow(self):
        """The disk will be larger; a bitmap that is lost would forbid it."""
        if self.case["resize"] == "no" or not self.lab.ours or \
           self.bitmap and self.bitmap.lost:
            return
        before, cluster = self.size, self.case["cluster"]
        self.size += self.rng.choice((512, cluster, 5 * cluster + 512,
                                      min(stretch(cluster), 64 * M)))
        self.resize = self.size
        self.model.grow(self.size)
        self.areas.append((max(0, before - cluster), self.size))
        if self.bitmap:
            self.bitmap.note([("write", before, self.size - before, 0)])

    def driver(self, server):
        clients = self.case["clients"]
        handles = [server.connect()
                   for _ in range(4 if clients == "many" else 1)]
        check(handles[0].get_size() == self.size, "size is %d, not %d",
              handles[0].get_size(), self.size)
        snapshots = []
        if self.lab.ours:
            names = [""] + ["snapshot:" + name for name in self.saved]
            if self.bitmap and not self.bitmap.lost:
                names.append("bitmap:b")
            check(server.exports() == names, "listed are %s, not %s",
                  server.exports(), names)
            for name, raw in self.saved.items():
                snapshots.append((server.connect("snapshot:" + name),
                                  os.open(raw, os.O_RDONLY | os.O_CLOEXEC)))
        # Version 2 has no zero flag: over a backing file a trim would
        # bring the old contents back, so it may do nothing there.
        trims = "any" if self.case["version"] == 2 and self.backing \
            else "zero"
        if self.lab.ours and self.case["discard"] == "ignore":
            trims = "none"
        driver = Driver(self.rng, handles, self.model, self.case["cluster"],
                        self.areas, depth=1 if clients == "one" else 16,
                        trims=trims, readonly_disks=snapshots,
                        strict=self.lab.ours,
                        # QEMU 7.2 loses a zero request that meets an
                        # allocating write in one cluster.
                        apart=512 if self.lab.ours or
                        os.environ.get("QCOW2_TEST_APART") == "512"
                        else self.case["cluster"])
        if self.case["subclusters"] == "on":
            driver.subcluster = self.case["cluster"] // 32
        driver.may_write_zeroes = self.case["version"] == 2
        return driver

    def close_driver(self, driver):
        for _, fd in driver.readonly_disks:
            os.close(fd)

    def note_bitmap(self, server, driver):
        if self.bitmap and not self.bitmap.lost:
            self.bitmap.note(driver.history)
            self.bitmap.judge(our_dirty(server, "b", self.bitmap.grain), "us")

    def judge_bitmap(self, killed=False):
        """After a kill it is lost, unless nothing was written."""
        if not self.bitmap:
            return
        flags = bitmap_info(self.path)["b"]
        if killed and "in-use" in flags:
            self.bitmap.lost = True
        wanted = set() if self.bitmap.disabled else \
            {"auto", "in-use"} if self.bitmap.lost else {"auto"}
        check(flags == wanted, "the bitmap is %s, not %s", flags, wanted)
        if not self.bitmap.lost:
            self.bitmap.judge(qemu_dirty(self.path, "b", self.bitmap.grain),
                              "QEMU")

    def judge(self, leaks_allowed=False):
        self.judge_bitmap()
        expect_clean(self.path, leaks_allowed)
        compare(self.path, self.model.path)
        if self.case["data"] == "raw":
            compare(self.data, self.model.path, fmt="raw")
            # Preallocating, QEMU makes it whole clusters long.
            cluster = self.case["cluster"]
            check(self.size <= os.path.getsize(self.data) <=
                  (self.size + cluster - 1) // cluster * cluster,
                  "the raw data file has %d bytes, the disk %d",
                  os.path.getsize(self.data), self.size)
        for name, raw in self.saved.items():
            now = snapshot_raw(self.path, name, self.lab.path())
            # QEMU reads it as long as the disk is now, and so more of a
            # larger backing file.
            os.truncate(now, os.path.getsize(raw))
            compare(now, raw, fmt="raw")
            os.unlink(now)

    def clean_round(self, count):
        with self.server() as server:
            driver = self.driver(server)
            driver.go(count)
            ours = whole_map(driver.handles[0])
            self.note_bitmap(server, driver)
            self.close_driver(driver)
        self.no_alarm(server)
        self.judge(leaks_allowed=self.leaks and not self.repairs)
        theirs = qemu_map(self.lab, self.path)
        self.same_map(ours, theirs)

    def no_alarm(self, server):
        found = server.events("BLOCK_IMAGE_CORRUPTED")
        check(not found, "the image is said to be corrupt: %s", found)

    def same_map(self, ours, theirs):
        """Equal, but for two things.  QEMU calls an allocated zero cluster
        a hole, which a later write could not fill for want of space.  And
        it looks for holes of the host file (zero, but no hole) in images
        that it takes for preallocated."""
        i = j = 0
        at = 0
        with Qcow2(self.path) as parsed:
            while at < self.size:
                end = min(ours[i][1], theirs[j][1])
                a, b = ours[i][2], theirs[j][2]
                if a != b and not {a, b} == {0, 2}:
                    check((a, b) == (2, 3),
                          "block status at %d+%d is %d, qemu-nbd says %d",
                          at, end - at, a, b)
                    for guest in range(at, end, 512):
                        check(parsed.reads_as_kept_zeroes(guest),
                              "block status at %d: zero but no hole, with "
                              "the L2 entry %#x", guest,
                              parsed.l2_entry(guest))
                i += ours[i][1] == end
                j += theirs[j][1] == end
                at = end

    def crash_round(self, count):
        # QEMU hands out freed clusters before the table that freed them is
        # on disk: with it, this round fails now and then.
        if not self.lab.ours and not os.environ.get("QCOW2_TEST_QEMU_CRASH"):
            return
        server = self.server()
        driver = self.driver(server)
        self.model.remember()
        driver.go_until_crash(self.rng.randint(1, count))
        server.kill()
        self.close_driver(driver)
        self.judge_bitmap(killed=True)
        if not self.lab.ours and self.case["lazy"] == "on":
            # What the dirty bit is for.
            qemu_img("check", "-r", "all", *named(self.path), ok=(0, 2, 3))
        expect_clean(self.path, leaks_allowed=True)
        after = self.lab.path()
        qemu_img("convert", "-O", "raw", *named(self.path), after)
        self.model.survived(after)
        self.judge(leaks_allowed=True)

    def repair_leaks(self):
        """By QEMU; but its check -r takes all snapshots away where it marks
        a bitmap as in use while it opens the image, see test-bitmaps.py."""
        if self.saved and self.bitmap and not self.bitmap.lost:
            self.lab.server(self.path, check="leaks").stop()
        else:
            qemu_img("check", "-r", "leaks", *named(self.path), ok=(0, 3))
        expect_clean(self.path)


def one_case(lab, seed, case, count):
    rng = random.Random("%s %s" % (seed, sorted(case.items())))
    if case["cluster"] > 256 * K:
        count //= 2             # each is of megabytes
    subject = Subject(lab, rng, case)
    try:
        subject.clean_round(count)
        subject.crash_round(count)
        subject.leaks = True
        if rng.random() < 0.5:
            # Without the leaks of the crash, none may appear.
            subject.repair_leaks()
            subject.leaks = False
            subject.grow()
            subject.clean_round(count // 2)
        else:
            subject.grow()
            with subject.server() as server:
                driver = subject.driver(server)
                driver.go(count // 2)
                subject.note_bitmap(server, driver)
                subject.close_driver(driver)
            subject.no_alarm(server)
            subject.judge(leaks_allowed=not subject.repairs)
        if subject.bitmap:
            qemu_img("bitmap", "--remove", *named(subject.path, None), "b")
            expect_clean(subject.path, leaks_allowed=True)
        if subject.saved and case["refcount_bits"] > 2:
            # QEMU must be able to go back in time on the result.
            name = rng.choice(sorted(subject.saved))
            qemu_img("snapshot", "-a", name, *named(subject.path, None))
            compare(subject.path, subject.saved[name])
            expect_clean(subject.path, leaks_allowed=True)
    finally:
        subject.close()


def case_name(case):
    return " ".join("%s=%s" % (k, v) for k, v in case.items())


def main():
    parser = argparse.ArgumentParser()
    lab = Lab(parser)
    seed = os.environ.get("QCOW2_TEST_SEED", "2015")
    slow = 1
    if os.environ.get("QCOW2_VALGRIND"):
        slow = 5
    count = int(os.environ.get("QCOW2_TEST_COUNT", 400 // slow))
    wanted = int(os.environ.get("QCOW2_TEST_CASES", 0))
    print("QCOW2_TEST_SEED=%s QCOW2_TEST_COUNT=%d QCOW2_TEST_CASES=%d" %
          (seed, count, wanted))
    rng = random.Random(seed)
    PARAMETERS["storage"] = storages(lab)
    cases = pairwise(rng, PARAMETERS)
    while len(cases) < wanted:
        cases.append(random_case(rng))
    if wanted:
        cases = cases[:wanted]
    if slow > 1:
        cases = cases[::slow]
    only = set(os.environ.get("QCOW2_TEST_ONLY", "").split())
    cases = [c for c in cases if only <= set(case_name(c).split())]
    begin = time.monotonic()
    for case in cases:
        lab.case(case_name(case), one_case, lab, seed, case, count)
    print("%d images, %.0f s" % (len(cases), time.monotonic() - begin))
    lab.finish()


if __name__ == "__main__":
    main()
