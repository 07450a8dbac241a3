#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""Instructions of a warm request in the engine, and who takes them.

    instructions.py BENCH-ENGINE [--output FILE]

The engine runs in one process, without a server, under callgrind: the
figures are the same each time, on a loaded machine, too.  What libc does
is counted for the part of the engine that calls it, but its locks are
counted as locks.  System calls count as one instruction.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile

# Which part a source file belongs to; the first match counts.
PARTS = [
    ("lock", r"rangelock\.[ch]$|cleanup\.h$"),
    ("guard", r"guard-check\.c$|overlap[^/]*\.[ch]$|claims\.[ch]$"),
    ("door", r"guard\.[ch]$"),
    ("map", r"(map[^/]*|l2cache[^/]*|l2|tlb)\.[ch]$|refcount[^/]*\.[ch]$"),
    ("storage", r"storage[^/]*\.[ch]$"),
    ("request", r"lib/|bench-engine\.c$"),
]
NAMES = [name for name, _ in PARTS] + ["other"]
COUNT = 2000
CASES = [("4k write", "write", 4096), ("4k read", "read", 4096),
         ("64k write", "write", 65536), ("64k read", "read", 65536)]
LOCKS = re.compile(r"pthread_(mutex|rwlock|cond)|lll_lock")


def part_of(path):
    for name, pattern in PARTS:
        if re.search(pattern, path):
            return name
    return None


class Profile:
    """What callgrind wrote: instructions of each function itself, and of
    the calls that it makes."""

    def __init__(self, path):
        self.names = {}
        self.own = {}           # (file, function) -> instructions
        self.calls = []         # (caller, callee, instructions)
        with open(path) as f:
            self.read(f)

    def name(self, kind, text):
        """Names are given once, with a number, and then by the number."""
        number, _, name = text.partition(" ")
        if name:
            self.names[kind, number] = name
        return self.names[kind, number]

    def read(self, lines):
        where = function = callee = callee_file = None
        of_call = False
        for line in lines:
            line = line.strip()
            key, _, value = line.partition("=")
            if key in ("fl", "fi", "fe"):
                where = self.name("file", value)
            elif key == "fn":
                function = self.name("fn", value)
            elif key in ("cfi", "cfl"):
                callee_file = self.name("file", value)
            elif key == "cfn":
                callee = self.name("fn", value)
            elif key == "calls":
                of_call = True
            elif re.match(r"[0-9+*-]", line):
                cost = int(line.split()[1])
                if of_call:
                    self.calls.append(((where, function),
                                       (callee_file or where, callee), cost))
                    callee_file, of_call = None, False
                else:
                    at = where, function
                    self.own[at] = self.own.get(at, 0) + cost

    def by_part(self):
        """The files of ours by their part; what they call outside of it
        for who calls."""
        total = dict.fromkeys(NAMES, 0)
        for (path, _), cost in self.own.items():
            part = part_of(path)
            if part:
                total[part] += cost
        for (path, _), (called, name), cost in self.calls:
            part = part_of(path)
            if part and not part_of(called):
                total["lock" if LOCKS.search(name) else part] += cost
        return total


def profile(program, image, what, size, checks):
    with tempfile.NamedTemporaryFile() as out:
        command = ["valgrind", "--tool=callgrind", "--quiet",
                   "--callgrind-out-file=" + out.name,
                   "--toggle-collect=measured", program, image, what,
                   str(COUNT), str(size)] + checks
        done = subprocess.run(command, stderr=subprocess.PIPE)
        if done.returncode:
            sys.exit("%s: %s" % (" ".join(command), done.stderr.decode()))
        return Profile(out.name).by_part()


def make_image(path):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "64M"],
                   check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 64M",
                    path], check=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("program")
    p.add_argument("--output")
    args = p.parse_args()
    lines = ["%-26s%8s" % ("warm, in place", "total") +
             "".join("%16s" % n for n in NAMES if n != "other")]
    with tempfile.TemporaryDirectory() as folder:
        image = os.path.join(folder, "image.qcow2")
        make_image(image)
        for checks in ([], ["none"]):
            for title, what, size in CASES:
                parts = profile(args.program, image, what, size, checks)
                total = sum(parts.values())
                line = "%-26s%8.0f" % (title + (", no checks" if checks
                                                else ""), total / COUNT)
                for n in NAMES[:-1]:
                    line += "%8.0f (%2.0f %%)" % (parts[n] / COUNT,
                                                  100 * parts[n] / total)
                lines.append(line)
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if args.output:
        with open(args.output, "w") as f:
            f.write(text)


if __name__ == "__main__":
    main()
