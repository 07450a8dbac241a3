#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""Everything that docs/design/format-rules.md names exists: the functions
that keep a rule, the damaged images and the tests that show it; and no rule
has neither.  Every damaged image is there for a rule."""

import glob
import os
import re
import sys

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)
sys.path.insert(0, os.path.join(HERE, "images"))

# pylint: disable=wrong-import-position
from cases import CASES  # noqa: E402

TABLE = os.path.join(TOP, "docs", "design", "format-rules.md")
SPAN = re.compile(r"`([^`]+)`")


def files(*patterns):
    """Path by name; names are unique, or the first counts."""
    found = {}
    for pattern in patterns:
        for path in sorted(glob.glob(os.path.join(TOP, pattern))):
            found.setdefault(os.path.basename(path), path)
    return found


SOURCES = files("lib/*/*.[ch]", "plugin/*.[ch]")
TESTS = files("tests/*/*.c", "tests/*/*.py", "tests/*/*.sh")
NAMES = {case.name for case in CASES}


def has(path, name, source):
    """Does the file define a function, or a test, of this name?"""
    with open(path, encoding="utf-8") as f:
        text = f.read()
    define = r"^%s \(" if source else r"\bSTART_TEST \(%s\)|^def %s\(|^%s \("
    return re.search(define.replace("%s", re.escape(name)), text, re.M)


def missing(span, source):
    """What is wrong with a name in the table, or None."""
    where = SOURCES if source else TESTS
    name, colon, inside = span.partition(":")
    if not source and not colon and (span in NAMES or span + ".c" in where):
        return None
    if name not in where:
        return "no file %s" % name if "." in name else "no image %s" % name
    if colon and not has(where[name], inside, source):
        return "no %s in %s" % (inside, name)
    return None


def rows():
    with open(TABLE, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            cells = [c.strip() for c in line.strip().strip("|").split(" | ")]
            if line.startswith("| ") and len(cells) >= 2 and \
               not line.startswith(("| | ", "| --- ")):
                yield number, cells


def main():
    wrong, count, named = [], 0, set()
    for number, cells in rows():
        count += 1
        if len(cells) != 4:
            wrong.append((number, "%d cells, not 4" % len(cells)))
            continue
        for cell, source in ((cells[2], True), (cells[3], False)):
            spans = SPAN.findall(cell)
            named.update(spans if not source else ())
            if not spans and not cell.startswith("-"):
                wrong.append((number, "neither a name nor a reason"))
            wrong += [(number, w) for w in
                      (missing(s, source) for s in spans) if w]
    for case in CASES:
        if case.name not in named and not case.name.startswith("sound-"):
            wrong.append((0, "the image %s is in no row" % case.name))
    for number, what in wrong:
        print("format-rules.md:%d: %s" % (number, what))
    print("%d rules, %d wrong" % (count, len(wrong)))
    # Or it looked at nothing.
    sys.exit(1 if wrong or count < 100 else 0)


if __name__ == "__main__":
    main()
