# SPDX-License-Identifier: BSD-3-Clause

"""The servers that are compared, and what each costs the machine.

A server is started for one run of one workload, on a UNIX socket, and
asked at its end how much processor time it took (user and system, from
/proc/PID/stat) and how much memory it had at most (VmHWM).
"""

import os
import signal
import subprocess
import time


class Server:
    """One way to serve an image."""

    def __init__(self, name, title, layout):
        self.name = name
        self.title = title
        self.layout = layout        # "qcow2" or "raw"

    def command(self, image, socket, options):
        raise NotImplementedError

    def start(self, image, socket, options=None):
        return Running(self.command(image, socket, options or {}), socket)


class Qcow2Plugin(Server):
    def __init__(self, plugin, check):
        super().__init__("ours-" + check, "this plugin, overlap-check=" + check,
                         "qcow2")
        self.plugin = plugin
        self.check = check

    def command(self, image, socket, options):
        args = ["nbdkit", "-f", "-U", socket, self.plugin, image,
                "overlap-check=" + self.check]
        if "l2-cache-size" in options:
            args.append("l2-cache-size=%d" % options["l2-cache-size"])
        if options.get("backing"):
            args.append("external-files=any")
        return args


class QemuNbd(Server):
    def __init__(self, check):
        super().__init__("qemu-" + check, "qemu-nbd, overlap-check=" + check,
                         "qcow2")
        self.check = check

    def command(self, image, socket, options):
        opts = ["driver=qcow2", "file.driver=file", "file.filename=" + image,
                "overlap-check.template=" + self.check, "discard=unmap"]
        if "l2-cache-size" in options:
            opts.append("l2-cache-size=%d" % options["l2-cache-size"])
        return ["qemu-nbd", "-t", "-e", "16", "-k", socket, "--image-opts",
                ",".join(opts)]


class RawFile(Server):
    def __init__(self):
        super().__init__("raw", "nbdkit's file plugin on a raw image", "raw")

    def command(self, image, socket, options):
        return ["nbdkit", "-f", "-U", socket, "file", image]


class Running:
    """A server at work; used as a context."""

    def __init__(self, command, socket):
        self.socket = socket
        self.uri = "nbd+unix:///?socket=" + socket
        if os.path.exists(socket):
            os.unlink(socket)
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE)
        self.cpu = self.memory = None
        deadline = time.monotonic() + 60
        while not os.path.exists(socket):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError("%s: %s" % (" ".join(command),
                                   self.process.stderr.read().decode()))
            time.sleep(0.002)

    def __enter__(self):
        return self

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
        self.cpu = self.cpu_seconds()
        self.memory = self.peak_memory()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stderr.close()
        if os.path.exists(self.socket):
            os.unlink(self.socket)
