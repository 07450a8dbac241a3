#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""Everything that docs/design/format-rules.md names exists: the functions
that keep a rule, the damaged images and the tests that show it; and no rule
has neither.  Every damaged image is there for a rule.

So does what docs/design/crash-safety.md names: in its diagram the function of
each arrow calls what stands behind it, in this order; and the functions and
files of its table of rules are there."""

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
CRASH_SAFETY = os.path.join(TOP, "docs", "design", "crash-safety.md")
FUNCTION = re.compile(r"\b[a-z0-9]+(?:_[a-z0-9]+)+\b")
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


def bodies():
    """The text of each function of the engine."""
    found = {}
    for path in glob.glob(os.path.join(TOP, "lib", "image", "*.c")):
        with open(path, encoding="utf-8") as f:
            for m in re.finditer(r"^(\w+) \(.*?^}", f.read(), re.M | re.S):
                found[m.group(1)] = m.group(0)
    return found


def with_helpers(name, functions, depth=3):
    """The text of a function, with what it calls, and what that calls."""
    def expand(m):
        return m.group(0) + (with_helpers(m.group(1), functions, depth - 1)
                             if depth else "")
    return re.sub(r"\b(\w+) \(", expand,
                  functions.get(name, "").partition("{")[2])


def in_order(names, text):
    at = 0
    for name in names:
        at = text.find(name + " (", at)
        if at < 0:
            return False
        at += len(name)
    return True


def arrows(text):
    """Of each arrow down: the function, and what it calls."""
    names = []
    for line in text.splitlines():
        if re.match(r" +\|  ", line):
            names += FUNCTION.findall(line)
        elif names:
            yield names[0], names[1:]
            names = []


def crash_safety():
    """What is wrong in its diagram and its table of rules."""
    functions = bodies()
    with open(CRASH_SAFETY, encoding="utf-8") as f:
        text = f.read()
    diagram = "\n".join(re.findall(r"^    .*$|^$", text, re.M))
    found = list(arrows(diagram))
    if len(found) < 5:
        yield "the diagram has %d arrows" % len(found)
    for function, called in found:
        if not in_order(called, with_helpers(function, functions)):
            yield "%s does not call %s" % (function, ", ".join(called))
    for name in FUNCTION.findall(diagram):
        if name not in functions:
            yield "no function %s" % name
    rules = text[text.index("| rule | kept by |"):]
    for row in rules[:rules.index("\n\n")].splitlines()[2:]:
        for name in SPAN.findall(row.split("|")[2]):
            if name.rpartition("/")[2] not in SOURCES and \
               name not in functions:
                yield "no function %s" % name


def main():
    wrong, count, named = [], 0, set()
    for what in crash_safety():
        print("crash-safety.md: %s" % what)
        wrong.append((0, what))
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
