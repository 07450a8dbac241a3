#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""Side by side: this plugin, qemu-nbd, and nbdkit's file plugin on raw.

    bench.py [--plugin FILE] [--folder DIR] [--output PREFIX]
             [--rounds N] [--seconds S] [--threads N] [--only NAME,...]
             [--quick]

In each round the servers take turns with a workload, in an order that
changes, so that what slows the machine down for a while slows all.
What is reported is the median of the rounds, and the median of the
ratios within the rounds.  Where a figure is asked for that is near to what
is usual (workloads.CLOSE) runs take LONGER times as long, so that what
a server does once after its start counts less, and there are CLOSER times
as many rounds, all but the first N for nbdkit's servers alone; and two of
qemu-nbd's, of which nothing is asked that is near to 1, are in the first
round only.  PREFIX.txt, PREFIX.json and PREFIX.svg are written.  Both of
nbdkit's servers have --threads N for each connection, 4 unless told
otherwise, 0 for nbdkit's default of 16.  "ours-again" is the same server as
"ours-all": what their ratio differs from 1 by is the noise.  The folder should
be on the disk that is to be measured, with about 12 GiB free.  --quick is one
round with fewer servers, for development: its figures mean little.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import chart                                            # noqa: E402
import floors                                           # noqa: E402
import images                                           # noqa: E402
import servers                                          # noqa: E402
import workloads                                        # noqa: E402

OURS = "ours-all"
AGAIN = "ours-again"
AGAINST = [AGAIN, "ours-none", "raw", "qemu-none", "qemu-cached", "qemu-all"]
CLOSER, LONGER = 2, 3


def one_run(server, image, folder, client, options, seconds):
    socket = os.path.join(folder, "socket")
    images.make_ready(image)
    with server.start(image, socket, options) as running:
        if not getattr(client, "alone", False):
            running.hold()
        before = running.cpu_seconds()
        figure, operations = client(running, seconds)
        cpu = running.cpu_seconds() - before
    return {"figure": figure, "cpu_us": cpu * 1e6 / max(operations, 1),
            "memory": running.memory}


def takes_part(server, r, rounds):
    """Is SERVER in round R?"""
    if server.name in ("qemu-none", "qemu-all"):
        return r == 0
    return r < rounds or not server.name.startswith("qemu")


def in_turns(workload, r, all_servers):
    """In which order they run in round R, the same in each run of all this.
    Each should have any other before it: what one leaves the disk to do
    would else always be at the cost of the same."""
    order = list(all_servers)
    random.Random("%s %d" % (workload.name, r)).shuffle(order)
    return order


def measure(workload, all_servers, made, rounds, seconds):
    """For each server what came of each round, by its number.  One that
    fails has no results."""
    results = {s.name: {} for s in all_servers}
    more = 1
    if workload.name in workloads.CLOSE:
        more = CLOSER
        seconds *= LONGER
    for r in range(rounds * more):
        for server in in_turns(workload, r, all_servers):
            if server.name not in results \
                    or not takes_part(server, r, rounds):
                continue
            try:
                image = made.get(workload.image, server.layout,
                                 workload.fresh)
                results[server.name][r] = one_run(
                    server, image, made.folder, workload.client,
                    workload.options, seconds)
                if workload.fresh:
                    made.remove(image)
            except RuntimeError as error:
                print("  %s: %s" % (server.name, error), file=sys.stderr)
                del results[server.name]
    return results


def ratio_of(results, ours, name):
    """The median of the ratios of OURS, one or more of our servers, to NAME
    within the rounds."""
    return statistics.median(results[o][r]["figure"] / run["figure"]
                             for o in ours for r, run in results[name].items())


def summary(workload, results):
    """Medians, and the ratio of ours to each other server: above 1 is
    faster, whatever the unit.  Against the others both of ours-all and
    ours-again count."""
    row = {"name": workload.name, "title": workload.title,
           "unit": workload.unit, "servers": {}, "ratios": {}}
    for name, runs in results.items():
        row["servers"][name] = {
            k: statistics.median(r[k] for r in runs.values())
            for k in ("figure", "cpu_us", "memory")}
    for name in AGAINST:
        if name not in results or OURS not in results:
            continue
        ours = [OURS] if name == AGAIN or AGAIN not in results \
            else [OURS, AGAIN]
        ratio = ratio_of(results, ours, name)
        row["ratios"][name] = 1 / ratio if workload.unit == "seconds" \
            else ratio
    return row


def number(value, unit):
    if unit == "seconds":
        return "%.3f s" % value
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
        line = "%-52s" % ("  %s: ours against it" % row["name"]) + \
            "%13s" % ""
        for name in AGAINST:
            ratio = row["ratios"].get(name)
            line += "%13s" % ("%.2f" % ratio if ratio else "-")
        lines.append(line)
        line = "%-52s" % "    server's CPU us per operation, peak MiB"
        for name in names:
            s = row["servers"].get(name)
            line += "%13s" % ("%.1f, %.1f" % (s["cpu_us"],
                                              s["memory"] / 2**20)
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


def arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--plugin", default=os.environ.get("QCOW2_PLUGIN"))
    p.add_argument("--folder", default=os.environ.get("BENCH_FOLDER", "/var/tmp"))
    p.add_argument("--output", default="bench-results")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=0.3)
    p.add_argument("--threads", type=int, default=4)
    p.add_argument("--only", help="names of workloads, with commas between")
    p.add_argument("--quick", action="store_true")
    args = p.parse_args()
    if not args.plugin:
        p.error("--plugin FILE is needed outside of \"make bench\"")
    args.wanted = workloads.ALL
    if args.only:
        names = args.only.split(",")
        unknown = set(names) - {w.name for w in workloads.ALL}
        if unknown:
            p.error("no such workload: " + " ".join(sorted(unknown)))
        args.wanted = [w for w in workloads.ALL if w.name in names]
    return args


def main():
    args = arguments()
    all_servers = [servers.Qcow2Plugin(args.plugin, "all", args.threads),
                   servers.RawFile(args.threads), servers.QemuNbd("cached")]
    if args.quick:
        args.rounds, args.seconds = 1, 0.3
    else:
        all_servers += [servers.Qcow2Plugin(args.plugin, "none",
                                            args.threads),
                        servers.Qcow2Plugin(args.plugin, "all", args.threads,
                                            AGAIN),
                        servers.QemuNbd("none"), servers.QemuNbd("all")]

    folder = tempfile.mkdtemp(prefix="bench", dir=args.folder)
    rows = []
    try:
        made = images.Images(folder)
        for i, workload in enumerate(args.wanted):
            made.forget({w.image.__name__ for w in args.wanted[i:]})
            began = time.monotonic()
            results = measure(workload, all_servers, made, args.rounds,
                              args.seconds)
            rows.append(summary(workload, results))
            print("%s  in %.0f s\n" % (table(rows[-1:]),
                                     time.monotonic() - began), flush=True)
        head = machine(folder)
    finally:
        shutil.rmtree(folder)

    asked = floors.report(rows)
    print(asked)
    text = "\n".join(head) + "\n%d rounds of %g s, nbdkit --threads %s\n\n" \
        "%s\n%s" % (args.rounds, args.seconds, args.threads or "not set",
                   table(rows), asked)
    with open(args.output + ".txt", "w") as f:
        f.write(text)
    with open(args.output + ".json", "w") as f:
        json.dump({"machine": head, "rows": rows}, f, indent=1)
    with open(args.output + ".svg", "w") as f:
        f.write(chart.draw(rows, head))
    print("written: %s.{txt,json,svg}" % args.output)


if __name__ == "__main__":
    main()
