#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""What the manual page, --help and the README's table say of each parameter:
the same values and defaults; and each has an example, which works.  And the
README has all events.  test-plugin-man.sh compares names with the source."""

import os
import re
import shlex
import shutil
import sys

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403

SLOW = os.environ.get("QCOW2_SANITIZER") or os.environ.get("QCOW2_VALGRIND")
SOURCE = os.environ["top_srcdir"]
ITEMS = re.compile(r"((?:^=item [^\n]*\n\n)+)(.*?)(?=^=item|^=back)",
                   re.M | re.S)


def read(*names):
    with open(os.path.join(SOURCE, *names)) as f:
        return f.read()


def section(pod, title):
    return pod.split("=head1 " + title + "\n")[1].split("=head1 ")[0]


class Parameter:
    def __init__(self, values, default):
        self.values = values            # a set of words
        self.default = default          # None: not a word


def from_manual(pod):
    """Groups of items, each a list of keys, and what is said of each key."""
    groups, found = [], {}
    for items, text in ITEMS.findall(section(pod, "PARAMETERS")):
        pairs = re.findall(r"^=item \[?B<([a-z0-9.-]+)=([^>\n]*)>", items,
                           re.M)
        groups.append(sorted({key for key, _ in pairs}))
        said = re.search(r"default[^.]*?C<([^>]*)>", text)
        for key, value in pairs:
            p = found.setdefault(key, Parameter(set(), said and said[1]))
            p.values |= set(filter(None, value.split("|")))
    return groups, found


def from_help(text):
    found = {}
    for key, values, words in re.findall(
            r"^\[?([a-z0-9.-]+)=\]?(\S*)(.*(?:\n {32}.*)*)", text, re.M):
        default = re.search(r"\(default ([^,)]*)", " ".join(words.split()))
        found[key] = Parameter(
            {v for v in values.split("|") if re.fullmatch("[a-z0-9-]+", v)
             and v != "-"},
            default and default[1])
    return found


def from_readme(text):
    found = {}
    for keys, values, default in re.findall(
            r"^\| (`[^|]*) \| ([^|]*) \| *([^|]*?) *\|$",
            text.split("\n## Parameters\n")[1].split("\n## ")[0], re.M):
        words = re.findall("`([^`]*)`", default)
        for key in re.findall("`([a-zA-Z0-9.-]+)`", keys):
            found[key] = Parameter(
                set(re.findall("`([a-z0-9-]+)`", values)),
                words[-1] if words else default)
    return found


def help_text():
    return run("nbdkit", "qcow2", "--help").stdout


def manual_and_help(manual):
    spoken = from_help(help_text())
    check(len(spoken) > 40, "--help has %d parameters", len(spoken))
    words = defaults = 0
    for key, p in spoken.items():
        if key not in manual:           # as overlap-check.<TYPE>
            continue
        theirs = {v for v in manual[key].values
                  if re.fullmatch("[a-z0-9-]+", v) and v != "-"}
        check(p.values == theirs, "%s: --help has the values %s, the "
              "manual page %s", key, sorted(p.values), sorted(theirs))
        words += bool(theirs)
        if p.default and " " not in p.default:
            check(p.default == manual[key].default, "%s: the default is %s "
                  "in --help, %s in the manual page", key, p.default,
                  manual[key].default)
            defaults += 1
    check(words > 15 and defaults > 25, "only %d with words, %d with "
          "defaults", words, defaults)


def manual_and_readme(manual):
    """The README leaves out create.* and the spellings of the types."""
    table = from_readme(read("README.md"))
    for key in ("create.WHAT", "overlap-check.TYPE"):
        check(key in table, "the README has no %s", key)
        del table[key]
    expected = {key for key in manual if not key.startswith(
        ("create.", "overlap-check."))}
    check(set(table) == expected, "the README has too many, or lacks, %s",
          sorted(set(table) ^ expected))
    for key, p in table.items():
        theirs = manual[key].values
        check(p.values <= theirs | {"+FILE", "-FD", "-", "same-dir"},
              "%s: the README has the values %s", key, sorted(p.values))
        words = {v for v in theirs if re.fullmatch("[a-z][a-z0-9-]+", v)}
        check(words - {"unlimited"} <= p.values | {"true", "false"},
              "%s: the README lacks the values %s", key,
              sorted(words - p.values))
        if manual[key].default:
            check(p.default.rstrip(" ,") == manual[key].default,
                  "%s: the default is %s in the README, %s in the manual "
                  "page", key, p.default, manual[key].default)


def limits(lab, pod):
    """The largest size, and the longest time, are as is said."""
    path = create(lab.path(), M)
    for unit in ("SIZE", "SECONDS"):
        most = int(re.search(r"I<%s>.*?at most C<(\d+)>" % unit, pod,
                             re.S)[1])
        keys = re.findall(r"^=item B<([a-z0-9.-]+)=>%s" % unit, pod, re.M)
        check(len(keys) > 3, "%s: only %s", unit, keys)
        for key in keys:
            done = run("nbdkit", "-U", "-", "qcow2", path, "%s=%d" % (
                key, most + 1), "--run", "true", ok=(1,))
            check("%s=%d: expected" % (key, most + 1) in done.stderr,
                  "%s: %s", key, done.stderr)
        fit = ["%s=%d" % (key, most) for key in keys
               if not key.startswith(("create", "resize"))]
        check(len(fit) > 3, "only %s", fit)
        run("nbdkit", "-U", "-", "qcow2", path, *fit, "--run", "true")


def events(pod):
    table = read("README.md").split("\n## Events\n")[1].split("\n## ")[0]
    ours = re.findall("^[|] `([A-Z0-9_]+)`", table, re.M)
    theirs = re.findall("^=item C<([A-Z0-9_]+)>", section(pod, "EVENTS"),
                        re.M)
    check(theirs and sorted(ours) == sorted(theirs),
          "the README has the events %s, the manual page %s", ours, theirs)


def examples(pod):
    return re.findall("^=head2 (nbdkit .*)", section(pod, "EXAMPLES"), re.M)


def an_example_each(pod, groups):
    lines = examples(pod)
    for group in groups:
        check(any(re.search(r"[ \[]%s=" % re.escape(key), line)
                  for key in group for line in lines) or group == ["file"],
              "no example of %s", group)


def examples_work(lab, pod):
    """In their order, in one folder, without those over NBD."""
    folder = lab.path("examples")
    os.mkdir(folder)
    os.chdir(folder)
    os.mkdir("base")
    for name in ("disk", "overlay", "golden", "top"):
        create(name + ".qcow2", 20 * G)
    with open("disk.passphrase", "w") as f:
        f.write("secret\n")
    ran = 0
    for line in examples(pod):
        if "nbd+unix" in line or "/dev/" in line:
            continue
        # Half a second for each key would be a long time here.
        line = re.sub("iter-time=[0-9]+", "iter-time=5", line)
        words = shlex.split(re.sub(r"/(srv|var|run|etc)/([^/ ]*/)*", "./",
                                   line))
        if "--run" not in words:
            words += ["--run", "nbdinfo --size \"$uri\""]
        if "-U" in words:
            del words[words.index("-U"):][:2]
        words = [words[0], "-U", "-", *words[1:]]
        if "top.qcow2" in words:
            os.unlink("top.qcow2")
            create("top.qcow2", 20 * G, backing="secret.qcow2",
                   backing_format="qcow2", quiet_backing=True)
        done = run(*words)
        check(done.returncode == 0, "%s: %s", line, done.stderr)
        ran += 1
    check(ran > 15, "only %d examples", ran)
    os.chdir("/")
    shutil.rmtree(folder)


def main():
    lab = Lab()
    if not lab.ours:
        skip("QEMU has no such page")
    pod = read("docs", "nbdkit-qcow2-plugin.pod")
    groups, manual = from_manual(pod)
    lab.case("manual page and --help", manual_and_help, manual)
    lab.case("manual page and README", manual_and_readme, manual)
    lab.case("limits", limits, lab, pod)
    lab.case("events", events, pod)
    lab.case("an example each", an_example_each, pod, groups)
    if not SLOW:
        lab.case("examples work", examples_work, lab, pod)
    lab.finish()


if __name__ == "__main__":
    main()
