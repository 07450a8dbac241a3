#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""qcow2-overlap map against a reader of its own: what each cluster of the
file is there for, in the counts and, cell by cell, in the pictures."""

import json
import os
import random
import re
import struct
import sys
import xml.etree.ElementTree
import zlib

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403
from qcow2parse import OFFSET_MASK, Qcow2               # noqa: E402

SLOW = os.environ.get("QCOW2_SANITIZER") or os.environ.get("QCOW2_VALGRIND")
COMPRESSED = 1 << 62
SVG = "{http://www.w3.org/2000/svg}"
LEFT, TOP, WIDTH = 84, 84, 896


def tool(path, *options, ok=(0,)):
    done = run("qcow2-overlap", "map", *options, path, ok=ok)
    if ok == (0,):
        check(done.stderr == "", "map says %s", done.stderr)
    return done


# What every cluster is, by other means: the names are those of the legend.

ORDER = ("main-header", "refcount-table", "refcount-block", "active-l1",
         "active-l2", "bitmap-directory", "bitmap-table", "bitmap-data",
         "snapshot-table", "inactive-l1", "inactive-l2")


def entries(image, l1):
    """The L2 entries that an L1 table leads to, but for the empty ones."""
    words = image.entry_size // 8
    for table in l1:
        if table & OFFSET_MASK:
            found = image.table(table & OFFSET_MASK,
                                image.cluster_size // 8)
            yield from (e for e in found[::words] if e)


def places(image, entry):
    """The clusters of an entry."""
    bits = image.cluster_bits
    if not entry & COMPRESSED:
        offset = entry & OFFSET_MASK
        return [offset >> bits] if offset else []
    x = 62 - (bits - 8)
    at = entry & ((1 << x) - 1)
    sectors = (entry & ~(3 << 62)) >> x
    end = (at & ~511) + 512 * (sectors + 1)
    return range(at >> bits, (end - 1 >> bits) + 1)


def classify(path):
    """A list: the class of each cluster."""
    with Qcow2(path) as image:
        n = -(-os.path.getsize(path) // image.cluster_size)
        classes = [None] * n

        def put(cluster, what):
            if cluster < n and classes[cluster] is None:
                classes[cluster] = what

        owned = image.metadata()
        for kind in ORDER:
            for cluster in owned[kind]:
                put(cluster, kind)
        snaps = image.snapshots()
        for entry in entries(image, image.active_l1()):
            for cluster in places(image, entry):
                put(cluster, "compressed data" if entry & COMPRESSED
                    else "data" if not snaps
                    else "data, in no snapshot" if image.refcount(cluster)
                    == 1 else "data shared with snapshots")
        for snap in snaps:
            for entry in entries(image, image.table(snap["l1_offset"],
                                                    snap["l1_size"])):
                for cluster in places(image, entry):
                    put(cluster, "compressed data" if entry & COMPRESSED
                        else "only in " + snap["name"])
        for cluster in range(n):
            put(cluster, "leaked" if image.refcount(cluster) else "free")
    return classes


def counts(classes, answer):
    """The JSON says as many of each."""
    def number(name):
        return sum(c == name for c in classes)

    check(answer["clusters"] == len(classes), "clusters: %s", answer)
    for kind, found in answer["metadata"].items():
        check(found == number(kind), "%s: %d, not %d", kind, found,
              number(kind))
    for key, names in (("data", ("data", "data, in no snapshot")),
                       ("shared-data", ("data shared with snapshots",)),
                       ("compressed-data", ("compressed data",)),
                       ("leaked", ("leaked",)), ("free", ("free",))):
        check(answer[key] == sum(map(number, names)), "%s: %d, not %d", key,
              answer[key], sum(map(number, names)))
    for snap in answer["snapshots"]:
        check(snap["clusters"] == number("only in " + snap["name"]),
              "snapshot %s", snap)


# Pictures.

def paint(svg):
    """(colours by name, rectangles in order): of the SVG file."""
    root = xml.etree.ElementTree.parse(svg).getroot()
    colours, rects, last = {}, [], None
    for element in root:
        if element.tag == SVG + "text":
            if last and element.get("class") is None:
                colours[element.text] = last
            last = None
        elif element.tag == SVG + "path":
            last = element.get("fill")
            for x, y, w, h in re.findall(
                    r"M(\d+) (\d+)h(\d+)v(\d+)h-\d+z", element.get("d")):
                rects.append((int(x), int(y), int(w), int(h), last))
    return colours, rects


def columns_for(n):
    columns = 32
    while columns < 128 and n > columns * columns // 2:
        columns *= 2
    return columns


def points(n):
    """The middle of each cell."""
    columns = columns_for(n)
    cell = WIDTH // columns
    return [(LEFT + i % columns * cell + cell // 2,
             TOP + i // columns * cell + cell // 2) for i in range(n)]


def colours_of_svg(rects, wanted):
    """What is uppermost at each point, hatching aside."""
    found = {}
    rows = {}
    for point in wanted:
        rows.setdefault(point[1], []).append(point)
    for x, y, w, h, colour in rects:
        if colour.startswith("#"):
            for row in rows:
                if y <= row < y + h:
                    for point in rows[row]:
                        if x <= point[0] < x + w:
                            found[point] = colour
    return [found[p] for p in wanted]


def hatched(rects, point):
    return any(c == "url(#hatch)" and x <= point[0] < x + w and
               y <= point[1] < y + h for x, y, w, h, c in rects)


def unfilter(kind, line, above, step):
    """A line of a PNG file (PNG specification, "Filtering")."""
    for i, v in enumerate(line):
        a = line[i - step] if i >= step else 0
        b = above[i]
        c = above[i - step] if i >= step else 0
        p = a + b - c
        near = min((abs(p - a), 0, a), (abs(p - b), 1, b),
                   (abs(p - c), 2, c))[2]
        line[i] = (v + (0, a, b, (a + b) // 2, near)[kind]) & 255
    return line


def colours_of_png(png, wanted):
    with open(png, "rb") as f:
        data = f.read()
    check(data[:8] == b"\x89PNG\r\n\x1a\n", "no PNG file")
    at, packed, header = 8, b"", None
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IHDR":
            header = struct.unpack_from(">IIBB", data, at + 8)
        elif kind == b"IDAT":
            packed += data[at + 8:at + 8 + length]
        at += length + 12
    width, height, depth, colour = header
    check((depth, colour) == (8, 2), "of another kind: %s", header)
    plain = zlib.decompress(packed)
    lines, above = [], bytes(3 * width)
    for y in range(height):
        start = y * (3 * width + 1)
        above = unfilter(plain[start],
                         bytearray(plain[start + 1:start + 3 * width + 1]),
                         above, 3)
        lines.append(bytes(above))
        if y > max(p[1] for p in wanted):
            break
    return ["#" + lines[y][3 * x:3 * x + 3].hex() for x, y in wanted]


def drawn(lab, path, png=False):
    """Each cell has the colour of its cluster."""
    svg, other = lab.path("map.svg"), lab.path("map.png")
    answer = json.loads(tool(path, "--json", "--svg", svg).stdout)
    classes = classify(path)
    counts(classes, answer)
    colours, rects = paint(svg)
    check(set(classes) <= set(colours), "not in the legend: %s",
          set(classes) - set(colours))
    check(len({colours[c] for c in set(classes)}) == len(set(classes)),
          "two classes of one colour: %s", colours)
    wanted = points(len(classes))
    found = colours_of_svg(rects, wanted)
    for cluster, (name, colour) in enumerate(zip(classes, found)):
        check(colour == colours[name], "cluster %d is %s, but drawn in %s",
              cluster, name, colour)
    if png and has_cairo(lab, path):
        tool(path, "-q", "--png", other)
        check(colours_of_png(other, wanted) == found,
              "the PNG file has other colours")
        check(not colours_of_png(other, [(2, 2)])[0] in colours.values(),
              "its margin is coloured")


def has_cairo(lab, path):
    """Was it built with it?  If not it says so."""
    done = tool(path, "--png", lab.path("try.png"), ok=(0, 1))
    if done.returncode:
        check("built without cairo" in done.stderr, done.stderr)
    return done.returncode == 0


def outside(lab, path):
    """What is outside is hatched, and only that: not what is protected at
    any limit."""
    svg = lab.path("map.svg")
    done = run("qcow2-overlap", "plan", "--json", path)
    plan = json.loads(done.stdout)
    size = plan["cluster-size"]
    tried = 0
    for step in plan["limits"]:
        gone = step["now"]["outside"]
        answer = json.loads(tool(path, "--json", "--svg", svg, "--limit",
                                 step["limit"]).stdout)
        check(answer["outside"] == gone, "map says %s, plan %s",
              answer["outside"], gone)
        colours, rects = paint(svg)
        wanted = points(answer["clusters"])
        found = colours_of_svg(rects, wanted)
        pinned = [colours.get(name) for name in (
            "main-header", "active-l1", "refcount-table", "snapshot-table")]
        for cluster in [*range(20), *range(20, len(wanted), 7)]:
            expected = found[cluster] not in pinned and any(
                r["start"] <= cluster * size < r["start"] + r["length"]
                for r in gone)
            check(hatched(rects, wanted[cluster]) == expected,
                  "cluster %d: hatched %s", cluster, not expected)
        tried += bool(gone)
    check(tried > 0, "nothing left at any limit")


def large(lab):
    """Many clusters share a cell; the legend has all that there is, and the
    file stays small."""
    path = create(lab.path(), 20 * G, preallocation="metadata")
    svg = lab.path("map.svg")
    answer = json.loads(tool(path, "--json", "--svg", svg).stdout)
    colours, rects = paint(svg)
    for name, found in answer["metadata"].items():
        check((name in colours) == (found > 0), "%s in the legend", name)
        # Its swatch, and somewhere in the map.
        check(not found or sum(r[4] == colours[name] for r in rects) > 1,
              "%s is not drawn", name)
    check(os.path.getsize(svg) < 100 * K, "%d bytes", os.path.getsize(svg))
    check(answer["data"] == 20 * G // (64 * K), "data: %s", answer)
    texts = " ".join(e.text for e in xml.etree.ElementTree.parse(svg)
                     .getroot().iter(SVG + "text"))
    check("logarithmic" in texts and "densest" in texts, "parts: %s", texts)


def damaged(lab, path):
    """A survey of what is wrong: it ends, and says what it can."""
    copy = lab.path()
    rng = random.Random(4)
    with open(path, "rb") as f:
        data = bytearray(f.read())
    done = 0
    for _ in range(4 if SLOW else 40):
        bad = bytearray(data)
        for _ in range(30):
            bad[rng.randrange(104, min(len(bad), 40 * 4096))] = \
                rng.randrange(256)
        with open(copy, "wb") as f:
            f.write(bad)
        result = tool(copy, "--json", "--svg", lab.path("bad.svg"),
                      ok=(0, 1))
        check(result.returncode == 1 or json.loads(result.stdout),
              "no answer")
        done += result.returncode == 0
    check(done > 0, "it opened none")


def text(_lab, path):
    answer = json.loads(tool(path, "--json").stdout)
    words = tool(path).stdout
    check(not any(ord(c) < 32 and c != "\n" for c in words),
          "control characters: %r", words)
    for name, n in answer["metadata"].items():
        check(bool(re.search(r"^  %s +%s " % (name, "{:,}".format(n)),
                             words, re.M)) == (n > 0), "%s in\n%s", name,
              words)
    check(tool(path, "-q").stdout == "", "-q is not quiet")


def odd_names(lab):
    """A name is data: markup and control characters stay what they are."""
    path = create(lab.path("a<b>&'\x1b[1m\xff.qcow2"), M)
    qemu_img("snapshot", "-c", "<&\x07'>", path)
    svg = lab.path("map.svg")
    tool(path, "-q", "--svg", svg)
    colours, _ = paint(svg)
    check("main-header" in colours, "no legend: %s", colours)
    json.loads(tool(path, "--json").stdout)


def make(lab, cluster, size, snapshots, **options):
    rng = random.Random(cluster + snapshots)
    path = create(lab.path(), size, cluster_size=cluster, **options)

    def write(n):
        qemu_io(path, *("write -P %d %d %d" % (
            rng.randint(1, 255), rng.randrange(size // cluster - 60) *
            cluster, rng.randint(1, 50) * cluster) for _ in range(n)))

    for i in range(snapshots):
        write(25)
        qemu_img("snapshot", "-c", "day %d" % i, path)
    write(25)
    # Where nothing was written before, or QEMU does not compress.
    qemu_io(path, *("write -c -P 7 %d %d" % (size - (i + 1) * cluster,
                                             cluster) for i in range(5)))
    if snapshots > 1:
        qemu_img("snapshot", "-d", "day 0", path)
    expect_clean(path)
    return path


def leak(path):
    """A count that nothing accounts for."""
    with Qcow2(path) as image:
        cluster = image.length() // image.cluster_size
        image.pwrite(b"x" * image.cluster_size,
                     cluster * image.cluster_size)
        image.set_refcount(cluster, 1)


def main():
    lab = Lab()
    if not lab.ours:
        skip("QEMU has no such tool")
    plain = make(lab, 4 * K, 16 * M, 0)
    snaps = make(lab, 4 * K, 16 * M, 4)
    wide = make(lab, 64 * K, 256 * M, 2, extended_l2="on")
    qemu_img("bitmap", "--add", wide, "dirt")
    leak(plain)
    lab.case("plain", drawn, lab, plain, png=True)
    lab.case("snapshots", drawn, lab, snaps)
    lab.case("extended, bitmaps", drawn, lab, wide)
    lab.case("empty", drawn, lab, create(lab.path(), 0))
    lab.case("outside", outside, lab, snaps)
    lab.case("large", large, lab)
    lab.case("damaged", damaged, lab, snaps)
    lab.case("text", text, lab, snaps)
    lab.case("odd names", odd_names, lab)
    lab.finish()


if __name__ == "__main__":
    main()
