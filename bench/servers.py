# SPDX-License-Identifier: BSD-3-Clause

"""The servers that are compared, and what each costs the machine.

A server is started for one run of one workload, on a UNIX socket.  How
much processor time it took (user and system, /proc/PID/stat) is asked
when the client is done, and how much memory it had at most (VmHWM) at
its end.  A connection of ours stays open meanwhile: when the last writer
leaves, this plugin makes durable what was written, which would be
counted as a cost of the last workload.
"""

import os
import signal
import socket
import subprocess
import time

import nbd


class Server:
    """One way to serve an image."""

    def __init__(self, name, title, layout):
        self.name = name
        self.title = title
        self.layout = layout        # "qcow2" or "raw"

    def command(self, image, path, options):
        raise NotImplementedError

    def start(self, image, path, options=None):
        """Serve IMAGE on the UNIX socket PATH."""
        return Running(self.command(image, path, options or {}), path)


def threads_option(threads):
    """nbdkit's threads for each connection; 0: its default."""
    return ["--threads", str(threads)] if threads else []


class Qcow2Plugin(Server):
    def __init__(self, plugin, check, threads=0, name=None):
        super().__init__(name or "ours-" + check,
                         "this plugin, overlap-check=" + check, "qcow2")
        self.plugin = plugin
        self.check = check
        self.threads = threads

    def command(self, image, path, options):
        args = ["nbdkit", "-f", "-U", path, *threads_option(self.threads),
                self.plugin, image, "overlap-check=" + self.check, "external-files=any"]
        if "l2-cache-size" in options:
            args.append("l2-cache-size=%d" % options["l2-cache-size"])
        return args


class QemuNbd(Server):
    def __init__(self, check):
        super().__init__("qemu-" + check, "qemu-nbd, overlap-check=" + check,
                         "qcow2")
        self.check = check

    def command(self, image, path, options):
        opts = ["driver=qcow2", "file.driver=file", "file.filename=" + image,
                "overlap-check.template=" + self.check, "discard=unmap"]
        if "l2-cache-size" in options:
            opts.append("l2-cache-size=%d" % options["l2-cache-size"])
        return ["qemu-nbd", "-t", "-e", "32", "-k", path, "--image-opts",
                ",".join(opts)]


class RawFile(Server):
    def __init__(self, threads=0):
        super().__init__("raw", "nbdkit's file plugin on a raw image", "raw")
        self.threads = threads

    def command(self, image, path, options):
        return ["nbdkit", "-f", "-U", path, *threads_option(self.threads),
                "file", image]


class Running:
    """A server at work; used as a context."""

    def __init__(self, command, path):
        self.socket = path
        self.uri = "nbd+unix:///?socket=" + path
        self.cpu = self.memory = self.held = None
        if os.path.exists(path):
            os.unlink(path)
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE)
        self.wait_for_socket(command)

    def wait_for_socket(self, command):
        deadline = time.monotonic() + 60
        while not self.listens():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError("%s: %s" % (" ".join(command),
                                   self.process.stderr.read().decode()))
            time.sleep(0.002)

    def listens(self):
        """A socket is a file before anybody listens on it."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.socket) == 0

    def __enter__(self):
        return self

    def hold(self):
        self.held = nbd.NBD()
        self.held.connect_uri(self.uri)

    def cpu_seconds(self):
        with open("/proc/%d/stat" % self.process.pid) as f:
            fields = f.read().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def peak_memory(self):
        with open("/proc/%d/status" % self.process.pid) as f:
            for line in f:
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) * 1024
        return 0

    def __exit__(self, *exc):
        self.memory = self.peak_memory()
        if self.held:
            self.held.shutdown()
            self.held = None
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stderr.close()
        if os.path.exists(self.socket):
            os.unlink(self.socket)
