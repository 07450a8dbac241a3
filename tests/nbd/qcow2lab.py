# SPDX-License-Identifier: BSD-3-Clause

"""What every test of the served disk needs: a folder that goes away, images
made by qemu-img, a server, and qemu-img's judgement of what is left.

The server is nbdkit with the plugin, or qemu-nbd with --server=qemu-nbd (or
QCOW2_TEST_SERVER=qemu-nbd).  A test that passes with qemu-nbd is right about
the format and about NBD; where QEMU is known to behave otherwise, the test
asks lab.ours.
"""

import argparse
import atexit
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

sys.dont_write_bytecode = True

try:
    import nbd
except ImportError:
    print("skipped: this python3 has no module nbd (python3-libnbd)")
    sys.exit(77)

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.join(HERE, ".."))

# pylint: disable=wrong-import-position
from encrypted import create_encrypted                  # noqa: E402
from qcow2parse import Qcow2                            # noqa: E402

K = 1024
M = 1024 * K
G = 1024 * M
T = 1024 * G

# A watchdog for every wait: generous, because valgrind and the sanitizers
# make everything slower.
PATIENCE = float(os.environ.get("QCOW2_TEST_PATIENCE", "120"))


class Failure(Exception):
    """The thing under test did wrong."""


def check(condition, text, *args):
    if not condition:
        raise Failure(text % args if args else text)


def skip(reason):
    print("skipped: " + reason)
    sys.exit(77)


def need(*programs):
    for program in programs:
        if shutil.which(program) is None:
            skip("%s is not installed" % program)


def run(*argv, ok=(0,), **kwargs):
    """Run a program to its end; its output is in .stdout and .stderr."""
    argv = [str(a) for a in argv]
    done = subprocess.run(argv, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                          timeout=4 * PATIENCE, check=False, **kwargs)
    done.stdout = done.stdout.decode(errors="replace")
    done.stderr = done.stderr.decode(errors="replace")
    if ok is not None and done.returncode not in ok:
        raise Failure("%s: exit %d\n%s%s" % (" ".join(argv), done.returncode,
                                             done.stdout, done.stderr))
    return done


def qemu_img(*argv, **kwargs):
    return run("qemu-img", *argv, **kwargs)


# Passphrases of encrypted images by path: what follows and Server give
# them to the tools and to the server.
SECRETS = {}


def options_of(path, fmt="qcow2"):
    """An image as QEMU's --image-opts describe it."""
    secret = ",encrypt.key-secret=s" if path in SECRETS else ""
    return "driver=%s%s,file.driver=file,file.filename=%s" % (fmt, secret,
                                                              path)


def secret_of(path):
    """QEMU's option that holds the passphrase."""
    return ["--object", "secret,id=s,data=" + SECRETS[path]] \
        if path in SECRETS else []


def named(path, fmt="qcow2"):
    """The arguments that name an image to QEMU's tools."""
    if path in SECRETS:
        return secret_of(path) + ["--image-opts",
                                  options_of(path, fmt or "qcow2")]
    return ["-f", fmt, path] if fmt else [path]


def qemu_io(image, *commands, fmt="qcow2", readonly=False):
    argv = ["qemu-io"]
    if readonly:
        argv.append("-r")
    for command in commands:
        argv += ["-c", command]
    done = run(*argv, *named(image, fmt))
    check("rror" not in done.stdout and "ailed" not in done.stdout,
          "qemu-io %s: %s", commands, done.stdout)
    return done.stdout


# Images.

def create(path, size, backing=None, backing_format=None, quiet_backing=False,
           encryption=None, **options):
    """qemu-img create; the names of options have _ for -.  ENCRYPTION is
    "luks" or "aes"; the passphrase is "abc"."""
    if encryption == "luks":
        return create_luks(path, size, backing, backing_format, **options)
    argv = []
    opts = ["%s=%s" % (k, v) for k, v in options.items() if v is not None]
    if opts:
        argv += ["-o", ",".join(opts)]
    if backing:
        argv += ["-b", backing]
        if backing_format:
            argv += ["-F", backing_format]
    if quiet_backing:
        argv += ["-u"]
    if encryption:
        create_encrypted(path, size, "abc", encryption, argv)
        SECRETS[path] = "abc"
        return path
    argv = ["create", "-q", "-f", "qcow2", *argv, path]
    if size is not None:
        argv.append(size)
    qemu_img(*argv)
    return path


def create_by_us(path, size, backing=None, backing_format=None, args=(),
                 **options):
    """As create, by the plugin."""
    if backing:
        options.update(backing_file=backing, backing_fmt=backing_format)
    run("nbdkit", "-U", "-", Lab.find_plugin(), path, "create=%d" % size,
        "external-files=any", *args,
        *("create.%s=%s" % (k.replace("_", "-"), v)
          for k, v in options.items()), "--run", "true")
    return path


def create_luks(path, size, backing=None, backing_format=None, **options):
    """By the plugin: qemu-img takes seconds to time its key derivation.
    That it agrees is shown wherever it opens the image."""
    options = {"encrypt.format": "luks", "encrypt.iter_time": 1, **options}
    create_by_us(path, size, backing, backing_format, ["passphrase=abc"],
                 **options)
    SECRETS[path] = "abc"
    return path


def image_check(path):
    """qemu-img check as a dict; corruptions, leaks and check-errors are
    always there."""
    done = qemu_img("check", "--output=json", *named(path),
                    ok=(0, 2, 3, 1, 63))
    try:
        result = json.loads(done.stdout)
    except ValueError:
        raise Failure("qemu-img check %s: exit %d\n%s%s" % (
            path, done.returncode, done.stdout, done.stderr)) from None
    for key in ("corruptions", "leaks", "check-errors"):
        result.setdefault(key, 0)
    result["text"] = done.stderr
    if done.returncode != 0 and result["corruptions"] + result["leaks"] + \
            result["check-errors"] == 0:
        raise Failure("qemu-img check %s: exit %d but nothing found\n%s" % (
            path, done.returncode, done.stderr))
    return result


def expect_clean(path, leaks_allowed=False):
    result = image_check(path)
    bad = result["corruptions"] + result["check-errors"]
    if not leaks_allowed:
        bad += result["leaks"]
    if bad:
        detail = qemu_img("check", *named(path), ok=None)
        raise Failure("qemu-img check %s: %d corruptions, %d leaks, "
                      "%d errors\n%s%s" % (
                          path, result["corruptions"], result["leaks"],
                          result["check-errors"], detail.stdout[-2000:],
                          detail.stderr[-3000:]))
    return result


def compare(path, raw, fmt="qcow2", strict=False):
    """Same contents, by qemu-img compare."""
    argv = ["compare", "-f", fmt, "-F", "raw"]
    if strict:
        argv.append("-s")
    if path in SECRETS:
        # On large encrypted overlays compare itself fails an assertion.
        copy = raw + ".copy"
        qemu_img("convert", "-O", "raw", *named(path), copy)
        compare(copy, raw, "raw")
        os.unlink(copy)
        return
    done = qemu_img(*argv, path, raw, ok=(0, 1))
    check(done.returncode == 0, "%s differs from %s: %s", path, raw,
          done.stdout)


def snapshot_raw(path, name, raw):
    qemu_img("convert", "-O", "raw", "-l", "snapshot.name=" + name,
             *named(path, None), raw)
    return raw


def image_info(path):
    done = qemu_img("info", "-U", "--output=json", path)
    return json.loads(done.stdout)


# Servers.

class Server:
    """A running server of one image.  As context manager it is stopped
    cleanly at the end, and everything it said is checked."""

    def __init__(self, lab, image, readonly=False, filters=(), args=(),
                 start=True, wrapper=(), below=None, **params):
        self.lab = lab
        self.below = below      # a Below, which ends with this one
        self.image = image
        self.readonly = readonly
        self.filters = filters
        self.args = list(args)
        self.wrapper = list(wrapper)
        self.params = {k.replace("_", "-"): v for k, v in params.items()}
        number = lab.number()
        self.socket = os.path.join(lab.folder, "s%d" % number)
        self.pidfile = os.path.join(lab.folder, "p%d" % number)
        self.logfile = os.path.join(lab.folder, "log%d" % number)
        self.eventfile = os.path.join(lab.folder, "events%d" % number)
        self.process = None
        self.handles = []
        if start:
            self.start()

    def command(self):
        if self.lab.ours:
            argv = ["nbdkit", "-f", "-U", self.socket, "-P", self.pidfile]
            if self.readonly:
                argv.append("-r")
            argv += ["--filter=" + f for f in self.filters]
            argv += self.args
            argv += [self.lab.plugin, "file=" + self.image,
                     "event-log=" + self.eventfile]
            params = dict(self.params)
            if self.image in SECRETS:
                params.setdefault("passphrase", SECRETS[self.image])
            for key, value in params.items():
                values = value if isinstance(value, (list, tuple)) \
                    else [value]
                argv += ["%s=%s" % (key, v) for v in values]
            return argv
        # QEMU's options of the same name; what it does not have is left out.
        opts = [options_of(self.image), "discard=unmap"]
        opts += ["%s=%s" % (k, v) for k, v in self.params.items()
                 if k.startswith("overlap-check") or
                 k in ("l2-cache-size", "refcount-cache-size")]
        argv = ["qemu-nbd", "-t", "-e", "64", "-k", self.socket,
                "--discard=unmap", "--pid-file=" + self.pidfile]
        if self.readonly:
            argv.append("-r")
        return argv + secret_of(self.image) + ["--image-opts",
                                               ",".join(opts)]

    def start(self):
        with open(self.logfile, "wb") as log:
            self.process = subprocess.Popen(
                self.wrapper + self.command(), stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self.lab.servers.append(self)
        give_up = time.monotonic() + PATIENCE
        # The pid file is written when the socket listens.
        while not (os.path.exists(self.pidfile) and
                   os.path.exists(self.socket) and
                   os.path.getsize(self.pidfile) > 0):
            if self.process.poll() is not None:
                self.lab.servers.remove(self)
                raise StartFailure(self.process.returncode, self.log())
            check(time.monotonic() < give_up, "server does not start: %s",
                  self.log())
            time.sleep(0.005)

    def log(self):
        with open(self.logfile, "rb") as log:
            return log.read().decode(errors="replace")

    def events(self, name=None):
        """The lines of event-log, parsed; each must be whole and valid."""
        if not os.path.exists(self.eventfile):
            return []
        with open(self.eventfile, "rb") as events:
            text = events.read()
        check(not text or text.endswith(b"\n"), "torn event: %r", text[-200:])
        found = [json.loads(line) for line in text.splitlines()]
        for event in found:
            check(set(event) == {"timestamp", "event", "data"} and
                  set(event["timestamp"]) == {"seconds", "microseconds"},
                  "event is not of QMP's form: %r", event)
        return [e for e in found if name is None or e["event"] == name]

    def wait_events(self, name, count=1):
        """The events called NAME, after waiting for COUNT of them: they
        pass through a queue, so they may lag behind the reply."""
        give_up = time.monotonic() + PATIENCE
        while True:
            found = self.events(name)
            if len(found) >= count or time.monotonic() > give_up:
                return found
            time.sleep(0.01)

    def uri(self, export=""):
        return "nbd+unix:///%s?socket=%s" % (export, self.socket)

    @staticmethod
    def new_handle(export):
        handle = nbd.NBD()
        handle.add_meta_context("base:allocation")
        handle.set_export_name(export)
        return handle

    def connect(self, export=""):
        handle = self.new_handle(export)
        give_up = time.monotonic() + PATIENCE
        while True:
            # qemu-nbd writes its pid file a moment before it listens.
            try:
                handle.connect_unix(self.socket)
                break
            except nbd.Error as e:
                if e.errno != "ECONNREFUSED" or not self.alive() or \
                   time.monotonic() > give_up:
                    raise
            time.sleep(0.01)
            handle = self.new_handle(export)
        self.handles.append(handle)
        return handle

    def exports(self):
        """The names that the server lists."""
        handle = nbd.NBD()
        handle.set_opt_mode(True)
        handle.connect_unix(self.socket)
        names = []

        def one(name, _description):
            names.append(name)
            return 0

        handle.opt_list(one)
        handle.opt_abort()
        return names

    def disconnect(self):
        for handle in self.handles:
            try:
                handle.shutdown()
            except nbd.Error:
                pass
        self.handles = []

    def alive(self):
        return self.process.poll() is None

    def stop(self, ok=True):
        """Ask for a clean stop and wait for it."""
        self.disconnect()
        # (A wrapper such as strace would keep the signal for itself.)
        with open(self.pidfile) as f:
            pid = int(f.read())
        if self.alive():
            os.kill(pid, signal.SIGTERM)
        self.wait()
        if ok:
            check(self.process.returncode == 0,
                  "server ended with %d:\n%s", self.process.returncode,
                  self.log()[-4000:])
        self.check_log()

    def wait(self):
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.end_group()
            raise Failure("server does not stop:\n%s" %
                          self.log()[-4000:]) from None
        finally:
            if self in self.lab.servers:
                self.lab.servers.remove(self)
            if self.below:
                self.below.end()

    def kill(self):
        """Power off, as far as a process can feel it."""
        self.end_group()
        self.process.wait(PATIENCE)
        if self in self.lab.servers:
            self.lab.servers.remove(self)
        if self.below:
            self.below.end()
        self.handles = []
        self.check_log()

    def end_group(self):
        # The server leads a session of its own, so that a wrapper such as
        # valgrind or a shell goes with it.
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def check_log(self):
        log = self.log()
        for sign in ("AddressSanitizer", "ThreadSanitizer", "LeakSanitizer",
                     "runtime error:", "Assertion", "assertion",
                     "ERROR SUMMARY: 1", "terminated by signal",
                     "self-check:"):
            check(sign not in log, "%s in the server's log:\n%s", sign,
                  log[-6000:])

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            if self.process.poll() is None:
                self.stop()
            else:
                self.check_log()
        else:
            self.end_group()
        return False


class Below:
    """Another NBD server, of the file PATH, for our server to find its image
    in: nbdkit with some plugin and filters, or qemu-nbd."""

    def __init__(self, lab, path, filters=(), args=(), plugin="file",
                 options=(), qemu=False, port=None, qemu_format="raw"):
        self.lab, self.path = lab, path
        number = lab.number()
        self.socket = os.path.join(lab.folder, "b%d" % number)
        self.pidfile = os.path.join(lab.folder, "q%d" % number)
        self.logfile = os.path.join(lab.folder, "below%d" % number)
        if qemu:
            self.argv = ["qemu-nbd", "-t", "-e", "64", "-f", qemu_format, "-k",
                         self.socket, "--pid-file=" + self.pidfile, path]
        else:
            self.argv = [self.nbdkit(), "-f", "-P", self.pidfile]
            self.argv += ["-i", "127.0.0.1", "-p", str(port)] if port else \
                ["-U", self.socket]
            self.argv += list(options)
            self.argv += ["--filter=" + f for f in filters]
            self.argv += [plugin] + ([path] if path else []) + list(args)
        self.port = port
        self.process = None
        self.start()

    @classmethod
    def on_some_port(cls, lab, path):
        """By TCP.  The port that nobody had may be somebody's a moment
        later."""
        for last in (False, False, False, False, True):
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                port = s.getsockname()[1]
            try:
                return cls(lab, path, port=port)
            except Failure:
                if last:
                    raise
        return None

    @staticmethod
    def nbdkit():
        """The installed one, not what runs ours under valgrind."""
        path = os.pathsep.join(
            p for p in os.environ["PATH"].split(os.pathsep)
            if not p.endswith("tests/bin"))
        return shutil.which("nbdkit", path=path)

    def start(self):
        for name in (self.socket, self.pidfile):
            if os.path.exists(name):
                os.unlink(name)
        with open(self.logfile, "ab") as log:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True)
        self.lab.servers.append(self)
        give_up = time.monotonic() + PATIENCE
        while not (os.path.exists(self.pidfile) and
                   (self.port or os.path.exists(self.socket)) and
                   os.path.getsize(self.pidfile) > 0):
            check(self.process.poll() is None and
                  time.monotonic() < give_up,
                  "the server below does not start: %s", self.log())
            time.sleep(0.005)

    def log(self):
        with open(self.logfile, "rb") as log:
            return log.read().decode(errors="replace")

    def uri(self, query=""):
        if self.port:
            return "nbd://127.0.0.1:%d" % self.port
        return "nbd+unix:///?socket=%s%s" % (self.socket, query)

    def end_group(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def kill(self):
        """Gone in a moment; what it wrote stays in the kernel."""
        self.end_group()
        self.process.wait(PATIENCE)
        if self in self.lab.servers:
            self.lab.servers.remove(self)

    def end(self):
        """Once there is no client any more, all was written."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(PATIENCE)
        if self in self.lab.servers:
            self.lab.servers.remove(self)


class StartFailure(Exception):
    """The server refused to start; text is what it said."""

    def __init__(self, code, text):
        super().__init__("exit %d: %s" % (code, text))
        self.code = code
        self.text = text


# What a client sees.

def errno_of(call, *args, **kwargs):
    """Make the request; 0, or the errno that the server answered."""
    try:
        call(*args, **kwargs)
    except nbd.Error as e:
        return e.errno if isinstance(e.errno, int) \
            else getattr(errno, e.errno)
    return 0


def block_status(handle, offset, length, one=False):
    """The extents of one request: list of (length, flags)."""
    found = []

    def extent(context, _offset, entries, _error):
        if context == "base:allocation":
            found.extend(zip(entries[0::2], entries[1::2]))
        return 0

    handle.block_status(length, offset, extent,
                        nbd.CMD_FLAG_REQ_ONE if one else 0)
    check(found, "no extents at %d+%d", offset, length)
    return found


def whole_map(handle, step=1 << 30):
    """The map of the whole disk, neighbours joined: list of [offset, end,
    flags]."""
    size = handle.get_size()
    found = []
    at = 0
    while at < size:
        for length, flags in block_status(handle, at, min(step, size - at)):
            end = min(at + length, size)
            check(end > at, "empty extent at %d", at)
            if found and found[-1][2] == flags:
                found[-1][1] = end
            else:
                found.append([at, end, flags])
            at = end
            if at == size:
                break
    return found


def qemu_map(lab, path):
    """The map that qemu-nbd gives of the image."""
    other = Lab.__new__(Lab)
    other.__dict__ = dict(lab.__dict__)
    other.ours = False
    with Server(other, path, readonly=True) as server:
        return whole_map(server.connect())


# Block devices.

class Device:
    """A loop device over the file FILE.  As BELOW of a server it goes away
    with this, else by end(), or with the lab."""

    def __init__(self, lab, file, *options):
        self.lab = lab
        done = subprocess.run(["losetup", "--find", "--show", *options, file],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              check=False)
        if done.returncode:
            raise OSError("losetup: " + done.stderr.decode().strip())
        self.path = done.stdout.decode().strip()
        lab.devices.append(self)

    def end(self):
        """Afterwards the file has everything, and nothing more will come."""
        if self not in self.lab.devices:
            return
        self.lab.devices.remove(self)
        # The kernel may detach it later, when others (udev) have closed it.
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        os.fsync(fd)
        os.close(fd)
        subprocess.run(["losetup", "--detach", self.path],
                       stderr=subprocess.DEVNULL, check=False)
        backing = "/sys/block/%s/loop" % os.path.basename(self.path)
        give_up = time.monotonic() + PATIENCE
        while os.path.exists(backing) and time.monotonic() < give_up:
            time.sleep(0.005)


def device_works(lab):
    """May we make loop devices here?"""
    path = lab.path()
    with open(path, "wb") as f:
        f.truncate(1 * M)
    try:
        device = Device(lab, path)
    except OSError:
        return False
    finally:
        os.unlink(path)
    try:
        with open(device.path, "r+b"):
            return True
    except OSError:
        return False
    finally:
        device.end()


# The lab.

class Lab:
    """One test's folder, servers and options."""

    def __init__(self, parser=None):
        parser = parser or argparse.ArgumentParser()
        parser.add_argument(
            "--server", choices=("nbdkit", "qemu-nbd"),
            default=os.environ.get("QCOW2_TEST_SERVER", "nbdkit"))
        parser.add_argument("--keep", action="store_true",
                            help="leave the folder with the images")
        parser.add_argument("--only", default="",
                            help="run cases whose name contains this")
        self.options = parser.parse_args()
        self.ours = self.options.server == "nbdkit"
        need("qemu-img", "qemu-io", "qemu-nbd")
        self.plugin = self.find_plugin()
        # In /tmp, because the path of a socket is short.
        self.folder = tempfile.mkdtemp(prefix="q2", dir=os.environ.get(
            "QCOW2_TEST_TMPDIR", "/tmp"))
        self.servers = []
        self.devices = []
        self.counter = 0
        self.failures = 0
        atexit.register(self.clean_up)
        # So that clean_up is called then too.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit(1))

    @staticmethod
    def find_plugin():
        plugin = os.environ.get("QCOW2_PLUGIN")
        if plugin:
            return plugin
        return os.path.join(HERE, "..", "..", "plugin", ".libs",
                            "nbdkit-qcow2-plugin.so")

    def clean_up(self):
        for server in list(self.servers):
            server.end_group()
        for device in list(self.devices):
            device.end()
        if self.options.keep:
            print("kept: " + self.folder)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def number(self):
        self.counter += 1
        return self.counter

    def path(self, name=None):
        return os.path.join(self.folder, name or "f%d" % self.number())

    def server(self, image, **kwargs):
        return Server(self, image, **kwargs)

    def refuses(self, image, *texts, **kwargs):
        """The server must not start (or not let a client in), and must say
        each of TEXTS."""
        try:
            server = Server(self, image, **kwargs)
        except StartFailure as e:
            said = e.text
            code = e.code
        else:
            try:
                server.connect()
            except nbd.Error as e:
                said = server.log() + str(e)
                server.stop(ok=False)
                code = server.process.returncode
            else:
                server.end_group()
                raise Failure("%s was served:\n%s" % (image, server.log()))
        # A signal's number is told as a negative one, or above 128.
        check(0 <= code < 128, "it ended with %d: %s", code, said)
        for sign in ("AddressSanitizer", "runtime error:", "Assertion",
                     "dumped", "Segmentation"):
            check(sign not in said, "%s", said)
        if self.ours:
            for text in texts:
                check(text in said, "'%s' is not in: %s", text, said)
        return said

    def case(self, name, function, *args, **kwargs):
        """Run one case; a failure is told and counted, not thrown."""
        if self.options.only not in name:
            return
        start = time.monotonic()
        try:
            function(*args, **kwargs)
        except Exception:              # any surprise is a failed case
            self.failures += 1
            print("FAIL %s" % name)
            print("".join("  | " + line for line in
                          traceback.format_exc().splitlines(True)))
            for server in list(self.servers):
                server.end_group()
                server.process.wait()
                print("  server's log:\n" + server.log()[-3000:])
            self.servers = []
        else:
            print("ok   %-50s %5.1f s" % (name, time.monotonic() - start))
        sys.stdout.flush()

    def finish(self):
        if self.failures:
            print("%d case(s) failed" % self.failures)
            sys.exit(1)
        sys.exit(0)


__all__ = [name for name in dir() if not name.startswith("_")]
