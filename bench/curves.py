#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""How speed changes as one thing grows.

    curves.py [--plugin FILE] [--folder DIR] [--output PREFIX]
              [--rounds N] [--seconds S] [--only NAME,...]

Servers take turns at every point, as in bench.py, and the median of the
rounds is drawn: PREFIX-NAME.svg for each curve, and PREFIX.txt and
PREFIX.json with the figures.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import bench                                            # noqa: E402
import images as im                                     # noqa: E402
import linechart                                        # noqa: E402
import servers                                          # noqa: E402
from clients import rate                                # noqa: E402
from images import G, K, M, T                           # noqa: E402


class Curve:
    """POINTS are what grows; image(point), client(point) and
    options(point) say what is measured there."""

    def __init__(self, name, title, axis, points, image, client,
                 options=lambda point: {}, label=str):
        self.name, self.title, self.axis = name, title, axis
        self.points = points
        self.image, self.client, self.options = image, client, options
        self.label = label


def named(function, point, **more):
    """An image function for one point; its name is what it is kept by."""
    def make(path, layout):
        function(path, layout, **more)
    make.__name__ = "%s-%s" % (function.__name__, point)
    return make


def size_label(size):
    for unit, name in ((T, "T"), (G, "G"), (M, "M"), (K, "K")):
        if size >= unit:
            return "%g%s" % (size / unit, name)
    return str(size)


def random_writes(span, **more):
    return rate("randwrite", 4 * K, size=span, **{"depth": 16, **more})


def random_reads(span, **more):
    return rate("randread", 4 * K, size=span, **{"depth": 16, **more})


CURVES = [
    Curve("size", "4k random writes in place, 8 snapshots", "image size",
          [1 * G, 16 * G, 256 * G, 4 * T, 64 * T],
          lambda size: named(im.with_snapshots, size, size=size),
          lambda size: random_writes(256 * M), label=size_label),
    Curve("snapshots", "4k random writes in place, 4 TiB", "snapshots",
          [0, 1, 2, 4, 8, 16, 32, 64],
          lambda n: named(im.with_snapshots, n, size=4 * T, snapshots=n),
          lambda n: random_writes(256 * M)),
    Curve("chain", "4k random reads", "images in the backing chain",
          [1, 2, 5, 10, 20, 50, 100],
          lambda n: named(im.chain, n, length=n),
          lambda n: random_reads(128 * M)),
    Curve("connections", "4k random writes in place, depth 4 each",
          "connections", [1, 2, 4, 8, 16],
          lambda n: im.allocated,
          lambda n: random_writes(1 * G, depth=4, jobs=n)),
    Curve("l2-cache", "4k random reads, 64 GiB (8 MiB of L2 tables)",
          "l2-cache-size",
          [64 * K, 256 * K, 1 * M, 2 * M, 4 * M, 8 * M],
          lambda size: im.mapped,
          lambda size: random_reads(64 * G),
          options=lambda size: {"l2-cache-size": size}, label=size_label),
]


def all_servers(plugin):
    return [servers.Qcow2Plugin(plugin, "all"), servers.QemuNbd("cached"),
            servers.QemuNbd("all")]


def measure_point(curve, point, everyone, made, args):
    image, client = curve.image(point), curve.client(point)
    runs = {s.name: [] for s in everyone}
    for r in range(args.rounds):
        turn = r % len(everyone)
        for server in everyone[turn:] + everyone[:turn]:
            path = made.get(image, server.layout)
            done = bench.one_run(server, path, made.folder, client,
                                 curve.options(point), args.seconds)
            runs[server.name].append(done["figure"])
    return {name: statistics.median(v) for name, v in runs.items()}


def measure(curve, everyone, made, args):
    rows = []
    for point in curve.points:
        rows.append(measure_point(curve, point, everyone, made, args))
        print("%-12s%8s" % (curve.name, curve.label(point)) +
              "".join("%12.0f" % rows[-1][s.name] for s in everyone),
              flush=True)
        if curve.image(point) is not im.mapped:
            made.forget({"mapped", "allocated"})
    return rows


def text(curve, everyone, rows):
    lines = ["", "%s: %s, IOPS" % (curve.name, curve.title), "%-28s" %
             curve.axis + "".join("%14s" % s.name for s in everyone)]
    for point, row in zip(curve.points, rows):
        lines.append("%-28s" % curve.label(point) +
                     "".join("%14.0f" % row[s.name] for s in everyone))
    return lines


def arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--plugin", default=os.environ.get("QCOW2_PLUGIN"))
    p.add_argument("--folder", default=os.environ.get("BENCH_FOLDER",
                                                      "/var/tmp"))
    p.add_argument("--output", default="bench-curves")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=0.5)
    p.add_argument("--only", help="names of curves, with commas between")
    args = p.parse_args()
    if not args.plugin:
        p.error("--plugin FILE is needed outside of \"make bench-curves\"")
    names = args.only.split(",") if args.only else [c.name for c in CURVES]
    args.wanted = [c for c in CURVES if c.name in names]
    if len(args.wanted) != len(names):
        p.error("curves are: " + " ".join(c.name for c in CURVES))
    return args


def main():
    args = arguments()
    everyone = all_servers(args.plugin)
    folder = tempfile.mkdtemp(prefix="curves", dir=args.folder)
    head = bench.machine(folder)
    lines, figures = list(head), {}
    try:
        made = im.Images(folder)
        for curve in args.wanted:
            rows = measure(curve, everyone, made, args)
            lines += text(curve, everyone, rows)
            figures[curve.name] = [{"at": point, **row} for point, row
                                   in zip(curve.points, rows)]
            with open("%s-%s.svg" % (args.output, curve.name), "w") as f:
                f.write(linechart.draw(
                    curve.title, curve.axis,
                    [curve.label(p) for p in curve.points],
                    [(s.title, [row[s.name] for row in rows])
                     for s in everyone]))
    finally:
        shutil.rmtree(folder)
    with open(args.output + ".txt", "w") as f:
        f.write("\n".join(lines) + "\n")
    with open(args.output + ".json", "w") as f:
        json.dump({"machine": head, "rounds": args.rounds,
                   "curves": figures}, f, indent=1)


if __name__ == "__main__":
    main()
