# SPDX-License-Identifier: BSD-3-Clause

"""What the figures must show: for a workload and another server, how
many times as fast this plugin is at least, and should be.
"""

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
SHARED = 2.5            # four connections that flush, against one
SECONDS = 1.0           # zero or trim 1 TiB
MEMORY = 1.2            # times qemu-nbd's


def line(what, floor, aim, value, good):
    verdict = "yes" if good else "NO"
    return "%-62s%8s%8s%9s  %s" % (what, floor, aim, value, verdict)


def ratios(rows):
    for names, against, floor, aim in RATIOS:
        for name in names:
            ratio = rows.get(name, {}).get("ratios", {}).get(against)
            if ratio is not None:
                yield line("%s, against %s" % (name, against), "%.4g" % floor,
                           "%.4g" % aim, "%.2f" % ratio, ratio >= floor)


def shared(rows):
    for one, four in (("flush-1", "flush-1-4"),
                      ("alloc-flush-1", "alloc-flush-1-4")):
        if one in rows and four in rows:
            ratio = (rows[four]["servers"]["ours-all"]["figure"] /
                     rows[one]["servers"]["ours-all"]["figure"])
            yield line("%s, against one connection" % four, SHARED, SHARED,
                       "%.2f" % ratio, ratio >= SHARED)


def quick(rows):
    for name in ("zero-1t", "trim-1t"):
        if name in rows:
            took = rows[name]["servers"]["ours-all"]["figure"]
            yield line("%s, seconds at most" % name, SECONDS, SECONDS,
                       "%.2f" % took, took <= SECONDS)


def checks(rows):
    """Each alone is a few percent of chance, so the mean as well."""
    product, n = 1.0, 0
    for name, row in rows.items():
        ratio = row["ratios"].get("ours-none")
        if ratio is None:
            continue
        product, n = product * ratio, n + 1
        if ratio < CHECKS:
            yield line("%s, all checks against none" % name, CHECKS, 1,
                       "%.2f" % ratio, False)
    if n:
        mean = product ** (1 / n)
        yield line("all checks against none, geometric mean of %d" % n,
                   CHECKS, 1, "%.3f" % mean, mean >= CHECKS)


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
