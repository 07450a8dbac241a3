# SPDX-License-Identifier: BSD-3-Clause

"""Encrypted images as qemu-img makes them, for the tests in the folders
beside this file."""

import subprocess

# qemu-img times its key derivation with the thread's CPU clock.  Where the
# kernel counts that in ticks, the first derivation takes none, and qemu-img
# gives up before it has written anything.
CLOCK_STOOD_STILL = b"Unable to get accurate CPU usage"
TRIES = 200


def create_encrypted(path, size, passphrase, method="luks", more=(),
                     **options):
    """qemu-img create with encryption; the names of options, which are those
    of encrypt.*, have _ for -.  MORE are further arguments."""
    if method == "luks":
        options.setdefault("iter_time", 10)
    encryption = {"format": method, "key_secret": "s", **options}
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *more,
            "--object", "secret,id=s,data=" + passphrase,
            "-o", ",".join("encrypt.%s=%s" % (name.replace("_", "-"), value)
                           for name, value in encryption.items()),
            str(path), str(size)]
    for _ in range(TRIES):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, check=False)
        if CLOCK_STOOD_STILL not in done.stderr:
            break
    if done.returncode != 0:
        raise RuntimeError("%s: exit %d\n%s" % (
            " ".join(argv), done.returncode,
            done.stderr.decode(errors="replace")))
    return path
