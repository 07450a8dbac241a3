# SPDX-License-Identifier: BSD-3-Clause

"""What the figures must show: for a workload and another server, how
many times as fast this plugin is at least, and should be.
"""

import math

# (workloads, against, floor, aim)
RATIOS = [
    (["randread-16", "randwrite-16"], "raw", 0.90, 0.97),
    (["randread-16", "randwrite-16"], "qemu-cached", 2.5, 3),
    (["randread-1", "randwrite-1"], "raw", 0.92, 0.98),
    (["read-64k", "write-64k", "read-1m", "write-1m"], "raw", 0.92, 1.0),
    (["read-64k", "write-64k", "read-1m", "write-1m"], "qemu-cached",
     1.0, 1.0),
    (["alloc-4k"], "raw", 0.6, 0.85),
    (["alloc-4k"], "qemu-cached", 2, 2),
    (["alloc-64k", "alloc-1m"], "qemu-cached", 1.0, 1.3),
    (["flush-1"], "raw", 1.0, 1.0),
    (["alloc-flush-1"], "qemu-cached", 1.3, 2),
    (["huge-write"], "qemu-all", 100, 100),
    (["huge-write"], "qemu-cached", 5, 5),
    (["huge-open"], "qemu-cached", 1.0, 1.0),
    (["compressed-read"], "qemu-cached", 1.2, 2),
    (["compressed-hot"], "qemu-cached", 5, 5),
]
CHECKS = 0.99           # all checks against none, at every workload
AGAIN = "ours-again"    # the same server as ours-all
SURE = 2.5              # deviations: by chance in 1 row of 160
SHARED = 2.5            # four connections that flush, against one
SECONDS = 1.0           # zero or trim 1 TiB
MEMORY = 1.2            # times qemu-nbd's


def line(what, floor, aim, value, good):
    verdict = good if isinstance(good, str) else "yes" if good else "NO"
    return "%-62s%8s%8s%9s  %s" % (what, floor, aim, value, verdict)


def ratios(rows):
    for names, against, floor, aim in RATIOS:
        for name in names:
            ratio = rows.get(name, {}).get("ratios", {}).get(against)
            if ratio is not None:
                yield line("%s, against %s" % (name, against), "%.4g" % floor,
                           "%.4g" % aim, "%.2f" % ratio, ratio >= floor)


def rate(row):
    """Of both servers that do not differ."""
    return sum(row["servers"][name]["figure"]
               for name in ("ours-all", AGAIN) if name in row["servers"])


def shared(rows):
    for one, four in (("flush-1", "flush-1-4"),
                      ("alloc-flush-1", "alloc-flush-1-4")):
        if one in rows and four in rows:
            ratio = rate(rows[four]) / rate(rows[one])
            yield line("%s, against one connection" % four, SHARED, SHARED,
                       "%.2f" % ratio, ratio >= SHARED)


def quick(rows):
    for name in ("zero-1t", "trim-1t"):
        if name in rows:
            took = rows[name]["servers"]["ours-all"]["figure"]
            yield line("%s, seconds at most" % name, SECONDS, SECONDS,
                       "%.2f" % took, took <= SECONDS)


def logarithms(rows, against):
    """Of the ratios to AGAINST, by workload."""
    return {name: math.log(row["ratios"][against])
            for name, row in rows.items() if against in row["ratios"]}


def mean_line(what, logs):
    mean = math.exp(sum(logs) / len(logs))
    return line("%s, geometric mean of %d" % (what, len(logs)), CHECKS, 1,
                "%.3f" % mean, mean >= CHECKS)


def checks(rows):
    """A row alone is a few percent of chance.  How much is seen from two
    servers that do not differ, in the same rounds: the deviation of their
    ratios from 1, over all workloads, is the noise of one row.  A row is
    missed if it is below the floor by more than chance explains; all that
    are below it are shown.  The means over all rows have less noise.
    """
    logs = logarithms(rows, "ours-none")
    again = logarithms(rows, AGAIN)
    if not logs:
        return
    noise = math.sqrt(sum(x * x for x in again.values()) / len(again)) \
        if again else 0
    for name, x in logs.items():
        if x < math.log(CHECKS):
            missed = x < math.log(CHECKS) - SURE * noise
            yield line("%s, all checks against none" % name, CHECKS, 1,
                       "%.2f" % math.exp(x),
                       False if missed else "noise")
    yield mean_line("all checks against none", logs.values())
    if again:
        yield line("the same server twice, geometric mean of %d" % len(again),
                   "", 1, "%.3f" % math.exp(sum(again.values())
                                            / len(again)), "")
        yield line("noise of one row", "", "", "%.1f %%" % (100 * noise), "")


def memory(rows):
    within, n = 0, 0
    for name, row in rows.items():
        ours = row["servers"].get("ours-all")
        theirs = row["servers"].get("qemu-cached")
        if not ours or not theirs:
            continue
        ratio = ours["memory"] / theirs["memory"]
        n += 1
        within += ratio <= MEMORY
        if ratio > MEMORY:
            yield line("%s, peak memory, times qemu-nbd's at most" % name,
                       MEMORY, MEMORY, "%.2f" % ratio, False)
    if n:
        yield line("workloads whose peak memory is within that", n, n,
                   within, within == n)


def report(rows):
    """ROWS as in bench.py."""
    by_name = {row["name"]: row for row in rows}
    lines = [line("what is asked for", "floor", "aim", "seen", True)[:-3]]
    for part in (ratios, shared, quick, checks, memory):
        lines += part(by_name)
    return "\n".join(lines) + "\n"
