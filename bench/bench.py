#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""Side by side: this plugin, qemu-nbd, and nbdkit's file plugin on raw.

    bench.py [--plugin FILE] [--folder DIR] [--output PREFIX]
             [--rounds N] [--seconds S] [--only NAME,...]

In each round every server takes its turn with a workload, in an order
that rotates, so that what slows the machine down for a while slows all.
What is reported is the median of the rounds, and the median of the
ratios within the rounds.  PREFIX.txt, PREFIX.json and PREFIX.svg are
written.  The folder should be on the disk that is to be measured, with
about 12 GiB free.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import chart                                            # noqa: E402
import servers                                          # noqa: E402
import workloads                                        # noqa: E402

OURS = "ours-all"
AGAINST = ["ours-none", "raw", "qemu-none", "qemu-cached", "qemu-all"]


class Images:
    """Made when first needed, one at a time for each workload's start."""

    def __init__(self, folder):
        self.folder = folder
        self.made = {}

    def get(self, workload, layout):
        key = (workload.image.__name__, layout)
        path = os.path.join(self.folder, "%s.%s" % key)
        if workload.fresh:
            path += ".fresh"
            self.remove(path)
            workload.image(path, layout)
        elif key not in self.made:
            self.made[key] = path
            workload.image(path, layout)
        return path

    @staticmethod
    def remove(path):
        for end in ("", ".base"):
            if os.path.exists(path + end):
                os.unlink(path + end)

    def forget(self, keep):
        """Give back what no later workload starts from."""
        for key in [k for k in self.made if k[0] not in keep]:
            self.remove(self.made.pop(key))


def one_run(server, workload, images, seconds):
    image = images.get(workload, server.layout)
    socket = os.path.join(images.folder, "socket")
    started = time.monotonic()
    with server.start(image, socket, workload.options) as running:
        running.started = started
        before = running.cpu_seconds()
        figure, operations = workload.client(running, seconds,
                                             os.environ["PYTHON_NBD"])
        cpu = running.cpu_seconds() - before
    if workload.fresh:
        images.remove(image)
    return {"figure": figure, "cpu_us": cpu * 1e6 / max(operations, 1),
            "memory": running.memory}


def measure(workload, all_servers, images, rounds, seconds):
    chosen = [s for s in all_servers
              if workload.only is None or s.name in workload.only]
    results = {s.name: [] for s in chosen}
    for r in range(rounds):
        turn = r % len(chosen)
        for server in chosen[turn:] + chosen[:turn]:
            try:
                results[server.name].append(
                    one_run(server, workload, images, seconds))
            except RuntimeError as error:
                print("  %s: %s" % (server.name, error), file=sys.stderr)
    return {name: v for name, v in results.items() if len(v) == rounds}


def summary(workload, results):
    """Medians, and the ratio of ours to each other server: above 1 is
    faster, whatever the unit."""
    row = {"name": workload.name, "title": workload.title,
           "unit": workload.unit, "servers": {}, "ratios": {}}
    for name, runs in results.items():
        row["servers"][name] = {
            k: statistics.median(r[k] for r in runs)
            for k in ("figure", "cpu_us", "memory")}
    for name in AGAINST:
        if name not in results or OURS not in results:
            continue
        pairs = zip(results[OURS], results[name])
        ratios = [a["figure"] / b["figure"] for a, b in pairs]
        ratio = statistics.median(ratios)
        row["ratios"][name] = 1 / ratio if workload.unit == "seconds" \
            else ratio
    return row


def number(value, unit):
    if unit == "seconds":
        return "%.2f s" % value
    return "%.0f" % value


def table(rows):
    names = [OURS] + AGAINST
    lines = ["%-52s" % "workload" + "".join("%13s" % n for n in names)]
    for row in rows:
        unit = row["unit"]
        line = "%-52s" % ("%s (%s)" % (row["title"], unit))[:52]
        for name in names:
            s = row["servers"].get(name)
            line += "%13s" % (number(s["figure"], unit) if s else "-")
        lines.append(line)
        line = "%-52s" % "    ours against it" + "%13s" % ""
        for name in AGAINST:
            ratio = row["ratios"].get(name)
            line += "%13s" % ("%.2f" % ratio if ratio else "-")
        lines.append(line)
        line = "%-52s" % "    server's CPU us per operation, peak MiB"
        for name in names:
            s = row["servers"].get(name)
            line += "%13s" % ("%.1f, %.0f" % (s["cpu_us"], s["memory"] / 2**20)
                              if s else "-")
        lines.append(line)
    return "\n".join(lines) + "\n"


def first_line(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE)
    return done.stdout.decode().splitlines()[0]


def machine(folder):
    model = "unknown processor"
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
    with open("/proc/meminfo") as f:
        memory = int(f.readline().split()[1]) // 2**20
    filesystem = first_line("stat", "-f", "-c", "%T", folder)
    return ["%d x %s, %d GiB, Linux %s, images on %s" %
            (os.cpu_count(), model, memory, platform.release(), filesystem),
            ", ".join([first_line("nbdkit", "--version"),
                       first_line("qemu-nbd", "--version"),
                       first_line("fio", "--version")])]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--plugin", default=os.environ.get("QCOW2_PLUGIN"))
    p.add_argument("--folder", default=os.environ.get("BENCH_FOLDER", "/var/tmp"))
    p.add_argument("--output", default="bench-results")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=1)
    p.add_argument("--only", help="names of workloads, with commas between")
    args = p.parse_args()
    if not args.plugin:
        p.error("--plugin FILE is needed outside of \"make bench\"")
    os.environ.setdefault("PYTHON_NBD", sys.executable)

    wanted = workloads.ALL
    if args.only:
        names = args.only.split(",")
        unknown = set(names) - {w.name for w in workloads.ALL}
        if unknown:
            p.error("no such workload: " + " ".join(sorted(unknown)))
        wanted = [w for w in workloads.ALL if w.name in names]
    all_servers = [servers.Qcow2Plugin(args.plugin, "all"),
                   servers.Qcow2Plugin(args.plugin, "none"),
                   servers.RawFile()] + \
                  [servers.QemuNbd(c) for c in ("none", "cached", "all")]

    folder = tempfile.mkdtemp(prefix="bench", dir=args.folder)
    rows = []
    try:
        images = Images(folder)
        for i, workload in enumerate(wanted):
            images.forget({w.image.__name__ for w in wanted[i:]})
            results = measure(workload, all_servers, images, args.rounds,
                              args.seconds)
            rows.append(summary(workload, results))
            print(table(rows[-1:]), flush=True)
        head = machine(folder)
    finally:
        shutil.rmtree(folder)

    text = "\n".join(head) + "\n%d rounds\n\n" % args.rounds + table(rows)
    with open(args.output + ".txt", "w") as f:
        f.write(text)
    with open(args.output + ".json", "w") as f:
        json.dump({"machine": head, "rows": rows}, f, indent=1)
    with open(args.output + ".svg", "w") as f:
        f.write(chart.draw(rows, head))
    print("written: %s.{txt,json,svg}" % args.output)


if __name__ == "__main__":
    main()
