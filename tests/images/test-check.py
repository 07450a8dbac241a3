#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""The consistency check against QEMU's, over every image of cases.py and
over images whose reference counts and flags, or other metadata, are damaged at
random.

check=report and 'qcow2-overlap check' must find errors and leaks where
'qemu-img check' finds them, and as many, and must not change the file; where
QEMU has no answer for an image of cases.py, differences.py says why.  What
check=leaks and check=all say that they repaired is sound in QEMU's eyes, and
the guest sees what it saw before.

    test-check.py [CASE...]

QCOW2_TEST_SEED and QCOW2_TEST_COUNT (damaged images, and as many with
some bytes of metadata changed) choose another run.
"""

import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

# pylint: disable=wrong-import-position
from cases import CASES  # noqa: E402
from differences import (NO_ANSWER, NOT_ASKED, NOT_CHECKED,  # noqa: E402
                         names)
from make import Maker  # noqa: E402

# The server refuses these, and the tool can give them a refcount table.
REBUILT = {"reftable-clusters-0", "reftable-0", "reftable-past-end",
           "reftable-out-of-file"}

PASSPHRASE = "abc"              # of all that have one

COPIED = 1 << 63
OFFSET = 0x00fffffffffffe00
LARGE = 1 << 28                 # to copy for a repair
PATIENCE = float(os.environ.get("QCOW2_TEST_PATIENCE", "120"))
SLOW = os.environ.get("QCOW2_SANITIZER") or os.environ.get("QCOW2_VALGRIND")


class Failure(Exception):
    pass


def check(condition, text, *args):
    if not condition:
        raise Failure(text % args if args else text)


def run(*argv, cwd=None):
    return subprocess.run([str(a) for a in argv], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=PATIENCE, check=False, cwd=cwd)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def state(path):
    """Changes when the file does."""
    st = os.stat(path)
    return st.st_mtime_ns, st.st_size


def ours(path, what, passphrase=None):
    """(found, left, log): pairs of errors and leaks; None if the image was
    not opened."""
    given = [] if passphrase is None else ["passphrase=" + passphrase]
    done = run("nbdkit", "-U", "-", "-v", "qcow2", path, "check=" + what,
               *given, "--run", "true")
    log = done.stdout.decode(errors="replace")
    check(done.returncode in (0, 1), "nbdkit ended with %d:\n%s",
          done.returncode, log)
    found = re.findall(r"check: (\d+) errors, (\d+) leaked", log)
    left = re.findall(r"the repair: (\d+) errors, (\d+) leaked", log)
    if done.returncode != 0 or not found:
        check(done.returncode != 0, "no result:\n%s", log)
        return None, None, log
    first = tuple(map(int, found[0]))
    last = tuple(map(int, left[-1])) if left else tuple(map(int, found[-1]))
    return first, last, log


def tool(path, *options):
    """(exit status, answer, log) of the offline tool."""
    done = subprocess.run(["qcow2-overlap", "check", "--json", *options,
                           path], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=PATIENCE, check=False)
    log = done.stderr.decode(errors="replace")
    check(done.returncode in (0, 1, 2, 3), "qcow2-overlap ended with %d:\n%s",
          done.returncode, log)
    check((done.returncode == 1) == (not done.stdout),
          "exit %d with the output %s", done.returncode, done.stdout)
    return done.returncode, json.loads(done.stdout or "{}"), log


def pair(answer):
    return answer.get("corruptions", 0), answer.get("leaks", 0)


def status(answer):
    """The exit status that an answer must have."""
    errors, leaks = pair(answer)
    return 2 if errors or answer.get("overlaps") else 3 if leaks else 0


def ask_qemu(path, passphrase=None, **options):
    image = {"driver": "qcow2", "backing": None,
             "file": {"driver": "file", "filename": path}, **options}
    secret = []
    if passphrase is not None:
        image["encrypt.key-secret"] = "s"
        secret = ["--object", "secret,id=s,data=" + passphrase]
    # It looks for data files where it is.
    done = run("qemu-img", "check", "--output=json", *secret,
               "json:" + json.dumps(image), cwd=os.path.dirname(path))
    text = done.stdout.decode(errors="replace")
    if "{\n" not in text:
        return None
    answer = json.loads(text[text.index("{\n"):text.rindex("}") + 1])
    if answer.get("check-errors"):
        return None
    return answer


def qemu_check(path, passphrase=None):
    """The answer of QEMU, which does not need the backing file; None if it
    cannot tell.  It needs the passphrase, or a data file, any, though the
    check does not depend on them."""
    answer = ask_qemu(path, passphrase)
    with open(path, "rb") as f:
        header = f.read(80).ljust(80, b"\0")
    if answer is None and header[35] and passphrase != PASSPHRASE:
        answer = ask_qemu(path, PASSPHRASE)
    if answer is None and header[79] & 4:
        with tempfile.NamedTemporaryFile() as data:
            answer = ask_qemu(path, **{"data-file": {
                "driver": "file", "filename": data.name}})
    return answer


def theirs(path):
    """Errors and leaks that QEMU finds; None if it cannot tell."""
    answer = qemu_check(path)
    return None if answer is None else pair(answer)


def unanswered(name, found, reference):
    """Has QEMU no answer for an image of cases.py that we have one for?  If
    it has one, it is ours."""
    if found == reference:
        return False
    check(reference is None and name in names(NO_ANSWER), "errors and leaks "
          "are %s, of QEMU %s, and differences.py does not say why", found,
          reference)
    return True


def same(one, other):
    """Does a guest see the same in both?  Huge disks are not looked at, nor
    what QEMU cannot read."""
    done = run("qemu-img", "info", "--output=json", "-f", "qcow2", one)
    if done.returncode != 0 or \
       json.loads(done.stdout)["virtual-size"] > 1 << 30:
        return True
    return run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", one,
               other).returncode != 1


class Tester:
    def __init__(self, folder):
        self.folder = folder
        self.images = self.refused = self.repaired = 0
        self.offline_opened = self.all_fields = self.rebuilt = 0
        self.unanswered = self.header_faults = self.answered = 0
        self.failed = []

    def offline(self, path):
        """What the offline tool says, which opens more than the server
        does, and its log; (None, log) if it does not open the image."""
        before = state(path)
        code, answer, log = tool(path)
        check(state(path) == before, "the tool changed the file")
        if code == 1:
            return None, log
        self.offline_opened += 1
        check(code == status(answer), "exit %d with %s", code, answer)
        if "header-faults" in answer:
            self.forbidden(path, log)
        return answer, log

    def forbidden(self, path, log):
        """What is wrong with the header is told, and nothing repaired: the
        one word of it may forbid what the other one asks for."""
        before = state(path)
        faults = re.findall("check: not served and not counted.*: (.*)", log)
        code, _, said = tool(path, "--repair", "all")
        check(code == 1 and faults and faults[0] in said, "exit %d with\n%s\n"
              "and before\n%s", code, said, log)
        check(state(path) == before, "the repair changed the file")
        self.header_faults += 1

    def compare(self, case, answer, reference, log):
        """The tool with QEMU."""
        found = answer and pair(answer)
        wanted = reference and pair(reference)
        if case:
            self.unanswered += unanswered(case.name, found, wanted)
        else:
            check(wanted in (None, found), "errors and leaks are %s, of QEMU "
                  "%s\n%s", found, wanted, log)
        if found == wanted == (0, 0):
            for one in answer, reference:
                one.pop("overlaps", None)
                one.pop("header-faults", None)
                one.pop("filename")
            check(reference == answer, "the tool says %s, QEMU %s", answer,
                  reference)
            self.all_fields += 1

    def report(self, case, path):
        """Compare server, tool and QEMU; what was found, or None if the
        server did not open the image."""
        passphrase = case and case.passphrase
        before = state(path)
        found, _, log = ours(path, "report", passphrase)
        check(state(path) == before, "the file was changed")
        self.refused += found is None
        answer, said = self.offline(path)
        check(answer or found is None, "the tool does not open it: %s", said)
        check(found in (None, answer and pair(answer)), "the tool finds %s, "
              "the server %s\n%s", answer, found, log)
        if not case or case.name not in NOT_ASKED:
            self.compare(case, answer, qemu_check(path, passphrase), said)
        return found

    def poked(self, name, path, passphrase):
        reference = qemu_check(path, passphrase)
        try:
            answer, log = self.offline(path)
            if reference:
                self.answered += 1
                self.compare(None, answer, reference, log)
        except (Failure, subprocess.TimeoutExpired) as e:
            self.failed.append(name)
            print("FAILED %s\n%s" % (name, e), flush=True)

    def offline_repair(self, path, what, repaired):
        """Byte for byte what the server makes of it."""
        copy = path + ".offline"
        shutil.copyfile(path, copy)
        code, answer, log = tool(copy, "--repair", what)
        check(code == status(answer), "exit %d with %s: %s", code, answer,
              log)
        check(read(copy) == repaired, "--repair %s makes another image than "
              "check=%s: %s", what, what, answer)
        os.unlink(copy)

    def rebuild(self, path, guest):
        """An image that is served only if it gets a refcount table."""
        copy = path + ".rebuilt"
        shutil.copyfile(path, copy)
        code, answer, log = tool(copy, "--repair", "all")
        check(code == 0 and theirs(copy) == (0, 0), "--repair all leaves %s, "
              "QEMU finds %s\n%s", answer, theirs(copy), log)
        found, _, log = ours(copy, "report")
        check(found == (0, 0), "the server finds %s\n%s", found, log)
        disk = copy + ".raw"
        done = run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", copy,
                   disk)
        check(done.returncode == 0 and read(disk) == guest,
              "the guest's data changed: %s", done.stdout)
        os.unlink(disk)
        os.unlink(copy)
        self.rebuilt += 1

    def repair(self, path, what):
        copy = path + "." + what
        shutil.copyfile(path, copy)
        found, left, log = ours(copy, what)
        check(found is not None, "check=%s did not open:\n%s", what, log)
        reference = theirs(copy)
        if reference is not None and left != found:
            check(left == reference, "check=%s leaves %s, QEMU finds %s\n%s",
                  what, left, reference, log)
        if what == "all" and "rebuilding" not in log and "beyond" not in log:
            check(left[0] <= found[0], "more errors than before: %s", log)
        self.offline_repair(path, what, read(copy))
        if left != found:
            self.repaired += 1
            # A flag in an L2 table that is guest data, too, is seen.
            check("upon metadata" in log or same(path, copy),
                  "the guest's data changed")
        os.unlink(copy)
        return left

    def one(self, name, path, case=None, guest=None):
        """A case, or else something that must be healed.  GUEST: its
        disk."""
        self.images += 1
        start = time.monotonic()
        try:
            if name in NOT_CHECKED:
                return
            found = self.report(case, path)
            check(found is not None or case, "it was not opened")
            if name in REBUILT:
                self.rebuild(path, guest)
            if not found or found == (0, 0) or \
               os.path.getsize(path) > LARGE:
                return
            if found[1]:
                self.repair(path, "leaks")
            left = self.repair(path, "all")
            check(case or left == (0, 0), "left are %s of %s, %s",
                  left, found, path)
        except (Failure, subprocess.TimeoutExpired) as e:
            self.failed.append(name)
            print("FAILED %s\n%s" % (name, e), flush=True)
        finally:
            seconds = time.monotonic() - start
            if seconds > 2:
                print("%s took %.1f s" % (name, seconds), flush=True)


class Damage:
    """A sound image, of which counts, flags, blocks go wrong."""

    def __init__(self, rng, path):
        self.rng = rng
        self.path = path
        self.data = bytearray(read(path))
        self.bits, = struct.unpack_from(">I", self.data, 20)
        self.order, = struct.unpack_from(">I", self.data, 96) \
            if self.data[7] > 2 else (4,)

    def be64(self, at):
        return struct.unpack_from(">Q", self.data, at)[0]

    def put64(self, at, value):
        struct.pack_into(">Q", self.data, at, value)

    def table(self, at, entries):
        """Places of the entries that are not 0."""
        return [p for p in range(at, at + 8 * entries, 8)
                if p + 8 <= len(self.data) and self.be64(p)]

    def blocks(self):
        at, clusters = struct.unpack_from(">QI", self.data, 48)
        return self.table(at, clusters << (self.bits - 3))

    def l1(self):
        size, at = struct.unpack_from(">IQ", self.data, 36)
        return self.table(at, size)

    def l2(self):
        return [p for l1 in self.l1()
                for p in self.table(self.be64(l1) & OFFSET,
                                    1 << (self.bits - 3))]

    def counts(self):
        """Change some counts, up or down."""
        block = self.be64(self.rng.choice(self.blocks())) & OFFSET
        used = (len(self.data) >> self.bits << self.order) // 8 + 1
        for _ in range(self.rng.randint(1, 12)):
            at = block + self.rng.randrange(min(used, 1 << self.bits))
            if at < len(self.data):
                self.data[at] = self.rng.choice((0, 0, 1, 2, 3))

    def flags(self):
        places = self.l1() + [p for p in self.l2()
                              if not self.be64(p) >> 62 & 1
                              and self.be64(p) & OFFSET]
        for p in self.rng.sample(places, min(len(places), 5)):
            self.put64(p, self.be64(p) ^ COPIED)

    def no_block(self):
        self.put64(self.rng.choice(self.blocks()), 0)

    def bad_block(self):
        """Past the end, not aligned, or upon something else."""
        self.put64(self.rng.choice(self.blocks()), self.rng.choice(
            (1 << 40, 512 if self.bits > 9 else 3,
             self.be64(self.rng.choice(self.l1())) & OFFSET)))

    def empty_blocks(self):
        for p in self.blocks():
            block = self.be64(p) & OFFSET
            if block >> self.bits == 0:
                continue        # bad_block was here
            self.data[block:block + (1 << self.bits)] = bytes(1 << self.bits)

    def corrupt_mark(self):
        if self.data[7] > 2:
            self.data[79] |= 2

    def save(self, path):
        for _ in range(self.rng.choice((1, 1, 2))):
            kind = self.rng.choice((self.counts, self.counts, self.flags,
                                    self.no_block, self.bad_block,
                                    self.empty_blocks, self.corrupt_mark))
            if self.blocks() and self.l1():
                kind()
        with open(path, "wb") as f:
            f.write(self.data)


def damaged(tester, rng, count):
    for i in range(count):
        path = os.path.join(tester.folder, "damaged.qcow2")
        bits = rng.choice((1, 2, 4, 8, 16, 16, 16, 32, 64))
        cluster = rng.choice((512, 4096, 4096, 65536))
        version = rng.choice(("1.1", "1.1", "0.10")) if bits == 16 else "1.1"
        options = "cluster_size=%d,compat=%s,refcount_bits=%d" \
            % (cluster, version, bits)
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path,
            2 << 20)
        writes = []
        for _ in range(rng.randint(1, 8)):
            writes += ["-c", "write -P %d %d %d" %
                       (rng.randint(1, 255), rng.randrange(1 << 20),
                        rng.randint(1, 200000))]
        run("qemu-io", "-f", "qcow2", *writes, path)
        if bits > 1 and rng.random() < 0.4:
            run("qemu-img", "snapshot", "-c", "s", path)
            run("qemu-io", "-f", "qcow2", *writes[:4], path)
        check(theirs(path) == (0, 0), "%s is not sound", options)
        Damage(rng, path).save(path)
        tester.one("damaged %d %s" % (i, options), path)


def places(image):
    """Where metadata is in a sound image: (offset, bytes)."""
    l1, table = image["l1_table_offset"], image["refcount_table_offset"]
    l2 = image.get(l1, 8) & OFFSET
    found = [(0, 160), (0, 160), (l1, 8 * image["l1_size"]), (table, 16),
             (image.get(table, 8), 64)]
    if l2:
        found += [(l2, 256), (l2, 256)]
    if image["nb_snapshots"]:
        found += [(image["snapshots_offset"], 150)] * 2
    return [(at, n) for at, n in found if at + n <= len(image.data)]


def poke(rng, image, where):
    """One byte, or a number that could be one of those that belong there."""
    cs = image.cluster_size
    at, n = rng.choice(where)
    at += rng.randrange(n)
    if rng.random() < 0.3:
        image.data[at] ^= 1 << rng.randrange(8)
    elif rng.random() < 0.4:
        image.data[at] = rng.choice((0, 1, 2, 3, 127, 128, 255))
    else:
        at = at // 8 * 8
        old = image.get(at, 8)
        image.put(at, 8, rng.choice((
            0, 1, cs, 3 * cs, 5 * cs, 1000 * cs, 1 << 40, rng.getrandbits(64),
            COPIED, COPIED | 4 * cs, COPIED | 5 * cs | 512, 1 << 62 | 5 * cs,
            old | 1, old | 512, old | 1 << 56, old ^ COPIED)))


def poked(tester, rng, count):
    """Sound images with some bytes of metadata changed: what QEMU finds in
    them the tool finds, too."""
    maker = Maker(tester.folder)
    for i in range(count):
        kind = rng.choice(("v3", "v2", "512", "1_bit", "64_bits", "deflate",
                           "zstd", "snapshots", "bitmaps", "extl2", "luks",
                           "overlay", "data_file", "data_raw"))
        image = maker.image(kind, "poked")
        where = places(image)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            poke(rng, image, where)
        image.save()
        tester.poked("poked %d %s" % (i, kind), image.path,
                     PASSPHRASE if kind == "luks" else None)


def main():
    seed = os.environ.get("QCOW2_TEST_SEED") or "815584926"
    count = int(os.environ.get("QCOW2_TEST_COUNT") or (5 if SLOW else 25))
    wanted = sys.argv[1:]
    folder = tempfile.mkdtemp(prefix="check.",
                              dir=os.environ.get("QCOW2_TMPDIR"))
    try:
        tester = Tester(folder)
        maker = Maker(folder)
        for number, case in enumerate(CASES):
            if wanted and case.name not in wanted or \
               SLOW and number % 10 and not wanted:
                continue
            image = maker.case(case)
            tester.one(case.name, image.path, case, bytes(image.guest))
            os.unlink(image.path)
        if not wanted:
            damaged(tester, random.Random(seed), count)
            poked(tester, random.Random(seed), count)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("%d images, %d refused at open, %d by the tool, %d repairs, %d "
          "rebuilt for the server, %d failed; seed %s"
          % (tester.images, tester.refused,
             tester.images - tester.offline_opened, tester.repaired,
             tester.rebuilt, len(tester.failed), seed))
    print("QEMU has no answer for %d of them, as differences.py says; else it "
          "finds what we find" % tester.unanswered)
    print("it has one for %d of those with some bytes changed"
          % tester.answered)
    check(wanted or tester.repaired > 0, "nothing was repaired")
    check(wanted or SLOW or tester.header_faults > 0, "no header was forbidden")
    check(wanted or tester.all_fields > 0, "no answer was compared with "
          "QEMU's field by field")
    sys.exit(1 if tester.failed else 0)


if __name__ == "__main__":
    main()
