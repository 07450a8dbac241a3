#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
#
# Raise an alarm when nbdkit-qcow2-plugin finds an image corrupt, or when
# its memory limit leaves a part of an image without protection.
#
#   event-alert.py [--run COMMAND] PATH...
#
# Each PATH is a socket (event-socket=PATH), which is followed from now on,
# also when its server is started again; or a file (event-log=PATH), which
# is read from its beginning and then followed.  What does not exist yet is
# waited for.
#
# For every alarm COMMAND is run by the shell, with the alarm in words in
# the variable ALERT, the event's name in EVENT, the image in IMAGE, and the
# event itself as one line of JSON on standard input.  Without --run the
# words are printed.  For example:
#
#   event-alert.py --run 'logger -p daemon.crit "$ALERT"' /run/vm/*.events
#   event-alert.py --run 'mail -s "$ALERT" root' /var/log/qcow2-events.json

import argparse
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time


def size(n):
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n < 10240:
            return "%d %s" % (n, unit)
        n //= 1024
    return "%d TiB" % n


def corrupted(data):
    text = "%s is CORRUPT: %s" % (data["image"], data["msg"])
    if data["fatal"]:
        text += "; writes have stopped, reads go on"
    return text + ". Save what can be read, then see RECOVERY in " \
        "nbdkit-qcow2-plugin(1)."


def limit_reached(data):
    means = {"unprotected": "writes there are NOT CHECKED",
             "verify": "writes there are checked slowly",
             "refuse": "writes there FAIL"}
    return "%s: the memory limit of %s is reached, %s of the file from %d " \
        "on left the map of metadata: %s. Raise " \
        "overlap-structures.total-size-limit." % (
            data["image"], size(data["limit"]), size(data["length"]),
            data["start"], means.get(data["policy"], data["policy"]))


def lost(data):
    return "%s: %d events were lost, look at nbdkit's log" % (
        data["image"], data["count"])


ALARMS = {
    "BLOCK_IMAGE_CORRUPTED": corrupted,
    "QCOW2_OVERLAP_CHECK_MEMORY_LIMIT_REACHED": limit_reached,
    "QCOW2_EVENTS_LOST": lost,
}
one_at_a_time = threading.Lock()


def handle(line, command):
    try:
        event = json.loads(line)
        name = event["event"]
        text = ALARMS[name](event["data"]) if name in ALARMS else None
    except (ValueError, KeyError, TypeError) as e:
        print("not an event (%s): %r" % (e, line), file=sys.stderr)
        return
    if text is None:
        return
    # An alarm is one line, whatever a file name has in it.
    text = "".join(c if c.isprintable() else "?" for c in text)
    with one_at_a_time:
        if not command:
            print(text, flush=True)
            return
        done = subprocess.run(
            command, shell=True, input=line, check=False,
            env=dict(os.environ, ALERT=text, EVENT=name,
                     IMAGE=event["data"]["image"]))
        if done.returncode:
            print("%s: exit status %d: %s" % (command, done.returncode, text),
                  file=sys.stderr)


def follow_socket(path, command):
    """Until the server ends."""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        with s.makefile("rb") as lines:
            for line in lines:
                handle(line, command)


def follow_file(path, command):
    """Until there is another file of this name (it was rotated)."""
    with open(path, "rb") as f:
        inode, rest = os.fstat(f.fileno()).st_ino, b""
        while True:
            lines = (rest + f.read()).split(b"\n")
            rest = lines.pop()
            for line in lines:
                if line:
                    handle(line + b"\n", command)
            time.sleep(0.5)
            if os.stat(path).st_ino != inode and not f.peek(1):
                return


def follow(path, command):
    while True:
        try:
            if stat.S_ISSOCK(os.stat(path).st_mode):
                follow_socket(path, command)
            else:
                follow_file(path, command)
        except OSError:
            pass                # not there, or not any more
        time.sleep(0.5)


def main():
    p = argparse.ArgumentParser(
        description="Raise an alarm when an image is found corrupt, or when "
        "the memory limit leaves a part of it without protection.")
    p.add_argument("--run", metavar="COMMAND",
                   help="run this for each alarm, with $ALERT, $EVENT and "
                   "$IMAGE (default: print)")
    p.add_argument("path", metavar="PATH", nargs="+",
                   help="what event-socket= or event-log= names")
    args = p.parse_args()
    threads = [threading.Thread(target=follow, args=(path, args.run),
                                daemon=True) for path in args.path]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
