#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""Encrypted images: what QEMU has written is read, and QEMU reads what was
written, with every cipher, mode, IV and hash that qemu-img can create;
passphrases by all ways; requests that begin and end within sectors.

Of the combinations those are tried in which every two values meet, and
most images are made by our own server, because qemu-img takes two seconds to
make one; with QCOW2_TEST_ALL=1 it is all combinations, both ways.
"""

import os
import pty
import random
import subprocess
import sys
import time

import nbd

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403
from qcow2parse import COPIED, Qcow2                    # noqa: E402

SIZE = 1 * M + 512
PASSPHRASE = "abc"
CRYPTO = 0x0537be77
SLOW = os.environ.get("QCOW2_SANITIZER") or os.environ.get("QCOW2_VALGRIND")

CIPHERS = ["aes-128", "aes-192", "aes-256", "serpent-128", "serpent-192",
           "serpent-256", "twofish-128", "twofish-192", "twofish-256",
           "cast5-128"]
MODES = ["xts", "cbc", "ctr", "ecb"]
IVS = ["plain64", "plain", "essiv:sha256", "essiv:md5"]
HASHES = ["sha256", "sha1", "sha512", "sha224", "sha384", "md5", "ripemd160"]


def possible(cipher, mode, iv, _hash):
    """Whether qemu-img 7.2 creates it.  It aborts where the key material
    has not whole sectors, and XTS wants blocks of 16 bytes."""
    if "192" in cipher and mode != "xts":
        return False
    if cipher == "cast5-128":
        return mode != "xts" and "essiv" not in iv
    # The IVs' key is the digest.
    return not (iv == "essiv:md5" and cipher.startswith("twofish-192"))


def combinations():
    every = [(c, m, i, h) for c in CIPHERS for m in MODES for i in IVS
             for h in HASHES if possible(c, m, i, h)]
    if os.environ.get("QCOW2_TEST_ALL"):
        return every
    rng = random.Random(2010)
    missing = {(a, t[a], b, t[b]) for t in every for a in range(4)
               for b in range(a)}
    chosen = []
    while missing:
        best = max(rng.sample(every, 200), key=lambda t: len(
            {(a, t[a], b, t[b]) for a in range(4) for b in range(a)}
            & missing))
        missing -= {(a, best[a], b, best[b]) for a in range(4)
                    for b in range(a)}
        chosen.append(best)
    return chosen


def encrypt_options(cipher, mode, iv, digest):
    options = {"cipher_alg": cipher, "cipher_mode": mode, "hash_alg": digest}
    name, _, iv_hash = iv.partition(":")
    options["ivgen_alg"] = name
    if iv_hash:
        options["ivgen_hash_alg"] = iv_hash
    return options


class Disk:
    """What the guest should see, and an image of it."""

    def __init__(self, lab, path, size=SIZE, seed=1):
        self.lab, self.path = lab, path
        self.content = bytearray(size)
        self.rng = random.Random(seed)
        SECRETS[path] = PASSPHRASE

    def qemu_writes(self):
        self.content[0:96 * K] = b"\x11" * (96 * K)
        self.content[200 * K:201 * K] = b"\x22" * K
        qemu_io(self.path, "write -P 0x11 0 96k", "write -P 0x22 200k 1k")

    def write(self, handle, at, length):
        data = self.rng.randbytes(length)
        handle.pwrite(data, at)
        self.content[at:at + length] = data

    def writes(self, handle, count):
        """At odd places and of odd lengths, over data and nothing."""
        for _ in range(count):
            at = self.rng.randrange(len(self.content))
            length = self.rng.choice((1, 511, 512, 513, 5000, 70000))
            self.write(handle, at, min(length, len(self.content) - at))

    def check_reads(self, handle):
        got = handle.pread(len(self.content), 0)
        if got != self.content:
            raise Failure("reads wrong at %d" % next(
                i for i in range(len(got)) if got[i] != self.content[i]))

    def check_qemu_reads(self):
        raw = self.lab.path()
        with open(raw, "wb") as f:
            f.write(self.content)
        expect_clean(self.path)
        compare(self.path, raw)


def combination(lab, by_qemu, cipher, mode, iv, digest):
    options = encrypt_options(cipher, mode, iv, digest)
    path = lab.path()
    if by_qemu:
        create_encrypted(path, SIZE, PASSPHRASE,
                         more=["-o", "cluster_size=4k"], **options)
    else:
        create(path, SIZE, encryption="luks", cluster_size=4096,
               **{"encrypt." + k: v for k, v in options.items()})
    both_ways(lab, path)
    os.unlink(path)


def both_ways(lab, path, **params):
    disk = Disk(lab, path)
    disk.qemu_writes()
    with lab.server(path, **params) as server:
        handle = server.connect()
        disk.check_reads(handle)
        disk.writes(handle, 12)
        disk.check_reads(handle)
    disk.check_qemu_reads()


def kind(lab, method, **options):
    both_ways(lab, create(lab.path(), SIZE, encryption=method, **options))


def snapshots(lab, method):
    path = create(lab.path(), SIZE, encryption=method)
    disk = Disk(lab, path)
    disk.qemu_writes()
    qemu_img("snapshot", "-c", "one", *named(path, None))
    with lab.server(path) as server:
        then = Disk(lab, path)
        then.content = bytearray(disk.content)
        snapshot = server.connect("snapshot:one")
        then.check_reads(snapshot)
        disk.writes(server.connect(), 20)
        then.check_reads(snapshot)
    disk.check_qemu_reads()
    raw = snapshot_raw(path, "one", lab.path())
    with open(raw, "rb") as f:
        check(f.read() == then.content, "the snapshot has changed")


def compressed(lab, method):
    """QEMU stores compressed clusters as they are, and so reads them."""
    path = create(lab.path(), SIZE, encryption=method)
    disk = Disk(lab, path)
    qemu_io(path, "write -c -P 0x33 64k 64k", "write -c -P 0x44 256k 64k")
    disk.content[64 * K:128 * K] = b"\x33" * (64 * K)
    disk.content[256 * K:320 * K] = b"\x44" * (64 * K)
    with lab.server(path) as server:
        handle = server.connect()
        disk.check_reads(handle)
        disk.write(handle, 70 * K + 5, 100)
        disk.check_reads(handle)
    disk.check_qemu_reads()


def not_compressed(lab):
    path = create(lab.path(), SIZE, encryption="luks")
    lab.refuses(path, "compress", "encrypted", compress="image")


def preallocated(lab):
    """Clusters that nobody wrote read as QEMU reads them, and are no
    holes."""
    path = create(lab.path(), SIZE, encryption="aes",
                  preallocation="metadata")
    raw = lab.path()
    disk = Disk(lab, path)
    qemu_img("convert", "-O", "raw", *named(path), raw)
    with open(raw, "rb") as f:
        disk.content = bytearray(f.read())
    check(any(disk.content), "all zeroes: no test")
    with lab.server(path) as server:
        handle = server.connect()
        disk.check_reads(handle)
        check(whole_map(handle) == [[0, SIZE, 0]], "the map is %s",
              whole_map(handle))
        disk.writes(handle, 5)
    disk.check_qemu_reads()


def preallocated_by_us(lab, kind, **options):
    """They are kept, but read as zeroes, which QEMU's do not."""
    path = create(lab.path(), SIZE, encryption="luks", preallocation=kind,
                  **options)
    disk = Disk(lab, path)
    disk.check_qemu_reads()
    size = os.path.getsize(path)
    both_ways(lab, path)
    check(os.path.getsize(path) == size, "the file grew")


def zeroes(lab, method, version):
    """Zeroes are no data, except in parts of clusters."""
    path = create(lab.path(), SIZE, encryption=method, compat=version)
    disk = Disk(lab, path)
    disk.qemu_writes()
    with lab.server(path) as server:
        handle = server.connect()
        for at, length in ((1000, 100), (64 * K, 64 * K), (90 * K, 20 * K),
                           (200 * K + 1, 1), (300 * K, 10)):
            handle.zero(length, at)
            disk.content[at:at + length] = bytes(length)
        handle.zero(64 * K, 128 * K, nbd.CMD_FLAG_NO_HOLE)
        disk.check_reads(handle)
        handle.trim(64 * K, 0)
        disk.content[0:64 * K] = bytes(64 * K)
        disk.write(handle, 40 * K + 3, 7)
        disk.check_reads(handle)
    disk.check_qemu_reads()
    with Qcow2(path) as image:
        check(image.l2_entry(64 * K) & 0x00fffffffffffe00 == 0,
              "zeroes are stored as data")


def resized(lab, method):
    path = create(lab.path(), SIZE, encryption=method)
    disk = Disk(lab, path)
    disk.qemu_writes()
    with lab.server(path, resize=3 * M) as server:
        handle = server.connect()
        disk.content += bytes(3 * M - SIZE)
        disk.check_reads(handle)
        disk.writes(handle, 5)
    disk.check_qemu_reads()


def parts_of_sectors(lab, method):
    """Many requests write to parts of the same sectors at once: each must
    find what the others have written."""
    path = create(lab.path(), SIZE, encryption=method)
    disk = Disk(lab, path)
    part, count = 61, 400       # not a divisor of 512
    with lab.server(path) as server:
        handles = [server.connect() for _ in range(4)]
        disk.write(handles[0], 0, 64 * K)
        for _ in range(5 if SLOW else 20):
            pieces = [nbd.Buffer.from_bytearray(
                bytearray(disk.rng.randbytes(part))) for _ in range(count)]
            for i, piece in enumerate(pieces):
                disk.content[i * part:(i + 1) * part] = piece.to_bytearray()
                handles[i % 4].aio_pwrite(piece, i * part)
            while any(h.aio_in_flight() for h in handles):
                for h in handles:
                    h.poll(1)
            disk.check_reads(handles[0])
    disk.check_qemu_reads()


# Layers.

def layer(lab, path, what, backing=None, of_backing=None):
    """One layer: encrypted by WHAT, a method and a passphrase, or not."""
    if what and what[0] == "luks":
        params = ["create=%d" % SIZE, "create.encrypt.format=luks",
                  "create.encrypt.iter-time=1", "passphrase=" + what[1]]
        if backing:
            params += ["create.backing-file=" + backing,
                       "create.backing-fmt=qcow2"]
        if of_backing:
            params.append("backing-passphrase=" + of_backing[1])
        run("nbdkit", "-U", "-", lab.plugin, path, *params, "--run", "true")
        return
    more = ["-u", "-b", backing, "-F", "qcow2"] if backing else []
    if what:
        create_encrypted(path, SIZE, what[1], what[0], more)
    else:
        qemu_img("create", "-q", "-f", "qcow2", *more, path, SIZE)


def layers(lab, of_image, of_backing, params, texts=()):
    """OF_...: (method, passphrase) or None; refused if there are TEXTS."""
    base, path = lab.path(), lab.path()
    layer(lab, base, of_backing)
    layer(lab, path, of_image, base, of_backing)
    SECRETS.pop(base, None)
    if of_backing:
        SECRETS[base] = of_backing[1]
    qemu_io(base, "write -P 0x55 0 100k")
    SECRETS.pop(base, None)
    if texts:
        lab.refuses(path, *texts, **params)
        return
    disk = Disk(lab, path)
    SECRETS.pop(path)           # params say it
    disk.content[0:100 * K] = b"\x55" * (100 * K)
    with lab.server(path, **params) as server:
        handle = server.connect()
        disk.check_reads(handle)
        disk.write(handle, 4000, 100)
        disk.check_reads(handle)
    with lab.server(path, **params) as server:
        disk.check_reads(server.connect())


LAYERS = [
    ("same", ("luks", "abc"), ("luks", "abc"), {"passphrase": "abc"}),
    ("two", ("luks", "abc"), ("luks", "def"),
     {"passphrase": "abc", "backing_passphrase": "def"}),
    ("below", None, ("luks", "def"), {"backing_passphrase": "def"}),
    ("below by passphrase", None, ("aes", "def"), {"passphrase": "def"}),
    ("above", ("luks", "abc"), None, {"passphrase": "abc"}),
    ("wrong below", ("luks", "abc"), ("luks", "def"), {"passphrase": "abc"},
     ["passphrase is wrong"]),
    ("none below", None, ("luks", "def"), {},
     ["encrypted", "backing-passphrase="]),
    ("needless", ("luks", "abc"), None,
     {"passphrase": "abc", "backing_passphrase": "def"},
     ["backing-passphrase=", "no layer"]),
    ("needless above", None, ("luks", "def"),
     {"passphrase": "abc", "backing_passphrase": "def"},
     ["passphrase=", "not encrypted"]),
]


# Passphrases.

def opens(lab, path, passphrase, **kwargs):
    """By nbdkit, which reads the passphrase as it is told to."""
    done = run("nbdkit", "-U", "-", lab.plugin, path,
               "passphrase=" + passphrase, "--run", "true", ok=None, **kwargs)
    return done.returncode == 0


def typed(lab, path):
    """What is typed before the prompt is lost, so type it again and again."""
    terminal, tty = pty.openpty()
    process = subprocess.Popen(
        ["nbdkit", "-U", "-", lab.plugin, path, "passphrase=-", "--run",
         "true"], stdin=tty, stdout=subprocess.DEVNULL)
    give_up = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < give_up:
        os.write(terminal, b"abc\n")
        time.sleep(0.1)
    process.kill()
    os.close(terminal)
    os.close(tty)
    return process.wait() == 0


def ways(lab):
    path = create(lab.path(), SIZE, encryption="luks")
    name = lab.path()
    with open(name, "w") as f:
        f.write("abc\n")
    check(opens(lab, path, "abc"), "by value")
    check(opens(lab, path, "+" + name), "by file")
    with open(name) as f:
        check(opens(lab, path, "-%d" % f.fileno(), pass_fds=[f.fileno()]),
              "by descriptor")
    check(typed(lab, path), "typed")
    SECRETS.pop(path)
    lab.refuses(path, "/nowhere", passphrase="+/nowhere")
    lab.refuses(path, "passphrase is wrong", passphrase="abcd")
    lab.refuses(path, "passphrase is wrong", passphrase="")
    lab.refuses(path, "encrypted", "passphrase=+FILE")
    lab.refuses(path, "passphrase was given already",
                passphrase=["abc", "abc"])
    lab.refuses(create(lab.path(), SIZE), "not encrypted",
                passphrase="secret")


def other_slots(lab):
    """A second passphrase, and after that no longer the first."""
    path = create(lab.path(), SIZE, encryption="luks")
    disk = Disk(lab, path)
    disk.qemu_writes()
    for _ in range(200):        # as create_encrypted
        done = qemu_img("amend", "--object", "secret,id=t,data=second", "-o",
                        "encrypt.state=active,encrypt.new-secret=t,"
                        "encrypt.iter-time=10", *named(path), ok=None)
        if "accurate CPU" not in done.stderr:
            break
    check(done.returncode == 0, "%s", done.stderr)
    for passphrase in "abc", "second":
        with lab.server(path, passphrase=passphrase) as server:
            disk.check_reads(server.connect())
    qemu_img("amend", "--object", "secret,id=t,data=abc", "-o",
             "encrypt.state=inactive,encrypt.old-secret=t", "--force",
             *named(path))
    lab.refuses(path, "passphrase is wrong", passphrase="abc")
    with lab.server(path, passphrase="second") as server:
        disk.check_reads(server.connect())


def aes_cannot_tell(lab):
    path = create(lab.path(), SIZE, encryption="aes")
    Disk(lab, path).qemu_writes()
    with lab.server(path, passphrase="wrong") as server:
        check(server.connect().pread(512, 0) != b"\x11" * 512,
              "a wrong passphrase opens it")
        check("weak" in server.log(), "nothing was said")


def not_in_the_log(lab):
    path, name = lab.path(), lab.path()
    with open(name, "w") as f:
        f.write("xyzzy-42\n")
    with lab.server(path, args=["-v"], passphrase="+" + name, create=SIZE,
                    **{"create.encrypt.format": "luks",
                       "create.encrypt.iter-time": 1}) as server:
        server.connect().pwrite(b"x", 0)
        check("xyzzy-42" not in server.log(), "the passphrase is in the log")
    said = lab.refuses(path, args=["-v"], passphrase="+" + lab.path(
        os.path.basename(path)))
    check("xyzzy-42" not in said, "the passphrase is in the log")


# What else there is.

def guarded(lab):
    """A write that would land on the header does not."""
    path = create(lab.path(), SIZE, encryption="luks")
    Disk(lab, path).qemu_writes()
    with Qcow2(path) as image:
        place = int.from_bytes(image.extension(CRYPTO)[1][:8], "big")
        image.set_l2_entry(0, place | COPIED)
    with open(path, "rb") as f:
        f.seek(place)
        before = f.read(64 * K)
    with lab.server(path) as server:
        got = errno_of(server.connect().pwrite, b"x" * 4096, 0)
        check(got == errno.EIO, "errno %d", got)
        events = server.wait_events("BLOCK_IMAGE_CORRUPTED")
        check(events and "encryption header" in events[0]["data"]["msg"],
              "events: %s", events)
    with open(path, "rb") as f:
        f.seek(place)
        check(f.read(64 * K) == before, "the header was changed")


def not_created(lab):
    """What cannot be made is said, and no file is left."""
    good = {"create": SIZE, "passphrase": "abc",
            "create.encrypt.format": "luks"}
    for texts, changes in (
            (["'aes'"], {"create.encrypt.cipher-alg": "aes"}),
            (["'aes-257'"], {"create.encrypt.cipher-alg": "aes-257"}),
            (["rot-xts"], {"create.encrypt.cipher-alg": "rot-128"}),
            (["cast5-xts"], {"create.encrypt.cipher-alg": "cast5-128"}),
            (["192 bits"], {"create.encrypt.cipher-alg": "aes-192",
                            "create.encrypt.cipher-mode": "cbc"}),
            (["too long"], {"create.encrypt.cipher-mode": "x" * 40}),
            (["hash 'sha3'"], {"create.encrypt.hash-alg": "sha3"}),
            (["essiv:sha512"], {"create.encrypt.ivgen-alg": "essiv",
                                "create.encrypt.ivgen-hash-alg": "sha512"}),
            (["100000000 ms"], {"create.encrypt.iter-time": "100000000"}),
            (["garbage"], {"create.compat": "v2",
                           "create.preallocation": "full"}),
            (["expected passphrase="], {"passphrase": None}),
            (["create.encrypt.format=luks"], {
                "create.encrypt.format": None,
                "create.encrypt.hash-alg": "sha1"}),
            (["not encrypted"], {"create.encrypt.format": None}),
            (["expected", "luks"], {"create.encrypt.format": "aes"}),
            (["create=SIZE"], {"create": None})):
        params = {k: v for k, v in {**good, **changes}.items()
                  if v is not None}
        path = lab.path()
        lab.refuses(path, *texts, **params)
        check(not os.path.exists(path), "%s: a file is left", changes)


def as_qemu_makes_it(lab):
    """The facts that qemu-img tells of its own image and of ours."""
    def facts(path):
        told = image_info(path)["format-specific"]["data"]
        encrypt = told["encrypt"]
        for key in "uuid", "master-key-iters":
            check(encrypt.pop(key), "no %s", key)
        for slot in encrypt["slots"]:
            slot.pop("iters", None)
        return told

    theirs = create_encrypted(lab.path(), SIZE, PASSPHRASE)
    ours = create(lab.path(), SIZE, encryption="luks")
    check(facts(ours) == facts(theirs), "%s, and by qemu-img %s",
          facts(ours), facts(theirs))
    both_ways(lab, theirs)


def iterations(lab):
    """Twice the time is twice the work."""
    def rounds(msec):
        path = create(lab.path(), SIZE, encryption="luks",
                      **{"encrypt.iter_time": msec})
        encrypt = image_info(path)["format-specific"]["data"]["encrypt"]
        return encrypt["slots"][0]["iters"]

    few, many = rounds(30), rounds(120)
    check(2 * few < many < 8 * few, "in 30 ms %d rounds, in 120 ms %d", few,
          many)


def checked(lab):
    """The check finds nothing, and the header's clusters are not leaks."""
    path = create(lab.path(), SIZE, encryption="luks")
    Disk(lab, path).qemu_writes()
    with lab.server(path, check="all", args=["-v"]) as server:
        check("check: 0 errors, 0 leaked" in server.log(), "%s",
              server.log())
    expect_clean(path)


def main():
    lab = Lab()
    if not lab.ours:
        skip("it is about our server")
    some = combinations()[::5 if SLOW else 1]
    for i, one in enumerate(some):
        for by_qemu in {False, i == 0 or len(some) > 100}:
            lab.case("%s%s" % (" ".join(one), " by QEMU" * by_qemu),
                     combination, lab, by_qemu, *one)
    for method in "luks", "aes":
        for options in ({"cluster_size": 512}, {"cluster_size": 2 * M},
                        {"compat": "0.10"},
                        {"extended_l2": "on", "cluster_size": 16 * K}):
            lab.case("%s %s" % (method, options), kind, lab, method,
                     **options)
        for function in (snapshots, compressed, resized, parts_of_sectors):
            lab.case("%s %s" % (function.__name__, method), function, lab,
                     method)
        for version in "1.1", "0.10":
            lab.case("zeroes %s %s" % (method, version), zeroes, lab, method,
                     version)
    lab.case("preallocated", preallocated, lab)
    for what in "metadata", "falloc", "full":
        lab.case("preallocated: " + what, preallocated_by_us, lab, what)
    lab.case("preallocated with subclusters", preallocated_by_us, lab,
             "metadata", extended_l2="on")
    for name, *rest in LAYERS:
        lab.case("layers: " + name, layers, lab, *rest)
    for function in (ways, other_slots, aes_cannot_tell, not_in_the_log, not_compressed,
                     guarded, checked, not_created, as_qemu_makes_it,
                     iterations):
        lab.case(function.__name__, function, lab)
    lab.finish()


if __name__ == "__main__":
    main()
