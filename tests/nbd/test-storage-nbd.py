#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""The image lies in an export of another NBD server: nbdkit with plugins and
filters that fail, wait, refuse and watch, and qemu-nbd."""

import os
import random
import re
import sys
import time

sys.dont_write_bytecode = True
from qcow2lab import *                                  # noqa: E402,F403
from nbdmodel import Driver, Model                      # noqa: E402
from qcow2parse import OFFSET_MASK                      # noqa: E402

BLOCK = 4 * K


def image(lab, size=8 * M, room=16 * M, **options):
    """An image in a file with room to grow."""
    path = create(lab.path(), size, **options)
    os.truncate(path, (os.path.getsize(path) + room) // 65536 * 65536)
    return path


def over(lab, below, **kwargs):
    return lab.server(below.uri(), below=below, **kwargs)


def random_requests(lab, server, path, rng, count, size=8 * M, clients=1,
                    cluster=64 * K, areas=None):
    raw = lab.path()
    qemu_img("convert", "-U", "-f", "qcow2", "-O", "raw", path, raw)
    model = Model(raw)
    handles = [server.connect() for _ in range(clients)]
    driver = Driver(rng, handles, model, cluster, areas or [(0, size)],
                    depth=16, strict=lab.ours)
    driver.go(count)
    return model


def judge(path, model, leaks_allowed=False):
    expect_clean(path, leaks_allowed)
    compare(path, model.path)
    model.close()


# Blocks.

def blocks(lab, cluster, minimum, maximum, clients):
    """Requests of any size, neighbours of one block at the same time: the
    server refuses what is not whole blocks."""
    path = image(lab, 2 * M, cluster_size=cluster)
    below = Below(lab, path, filters=["blocksize-policy"],
                  args=["blocksize-minimum=%d" % minimum,
                        "blocksize-preferred=%d" % max(minimum, 512),
                        "blocksize-maximum=%d" % maximum,
                        "blocksize-error-policy=error"])
    with over(lab, below) as server:
        # Few places, so that the same blocks are met again.
        model = random_requests(lab, server, path, random.Random(cluster),
                                400, size=2 * M, clients=clients,
                                cluster=cluster,
                                areas=[(0, 64 * K), (2 * M - 64 * K, 2 * M)])
    judge(path, model)


def neighbours(lab):
    """Writers of the parts of one block, often and at once."""
    path = image(lab, 1 * M)
    below = Below(lab, path, filters=["blocksize-policy", "delay"],
                  args=["blocksize-minimum=4096", "rdelay=1ms",
                        "blocksize-error-policy=error"])
    with over(lab, below) as server:
        handle = server.connect()
        handle.pwrite(bytes(64 * K), 0)
        for turn in range(1, 30):
            want = b""
            for part in range(8):
                data = bytes([turn * 8 + part & 255]) * 512
                want += data
                handle.aio_pwrite(
                    nbd.Buffer.from_bytearray(bytearray(data)), part * 512,
                    lambda *_: 1)
            while handle.aio_in_flight():
                handle.poll(50)
            check(bytes(handle.pread(BLOCK, 0)) == want,
                  "writes of neighbours were undone in turn %d", turn)
    expect_clean(path)


def block_too_large(lab):
    path = image(lab, 1 * M, cluster_size=512)
    below = Below(lab, path, filters=["blocksize-policy"],
                  args=["blocksize-minimum=4096"])
    with over(lab, below) as server:
        check(server.connect().is_read_only(), "it can be written to")
        check("larger than a cluster" in server.log(), "no word of it")


def full(lab):
    """An export does not grow."""
    path = create(lab.path(), 16 * M)
    os.truncate(path, 2 * M)
    below = Below(lab, None, plugin="memory", args=["2M"])
    run("nbdcopy", path, below.uri())
    written = []
    server = over(lab, below)
    handle = server.connect()
    for at in range(0, 16 * M, 64 * K):
        error = errno_of(handle.pwrite, bytes([at // (64 * K)]) * 64 * K, at)
        check(error in (0, errno.ENOSPC), "errno %d", error)
        if error == 0:
            written.append(at)
    check(16 < len(written) < 32, "%d clusters were written", len(written))
    handle.flush()
    for at in written:
        check(handle.pread(64 * K, at) == bytes([at // (64 * K)]) * 64 * K,
              "the cluster at %d is lost", at)
    # Space that is given back can be used again.
    handle.trim(2 * 64 * K, 0)
    handle.flush()
    handle.pwrite(b"x" * 64 * K, written[-1] + 64 * K)
    server.below = None
    server.stop()
    run("nbdcopy", below.uri(), path)
    below.end()
    expect_clean(path)


# Errors.

def model_of_errors(rng, handle, trigger, count, expected=errno.EIO):
    """Writes that may fail: what each sector may hold."""
    may = {}
    failed = 0
    for turn in range(count):
        if turn == count // 3:
            open(trigger, "w").close()
        at = rng.randrange(64) * 16 * K + rng.randrange(4) * BLOCK
        data = bytes([rng.randrange(1, 256)]) * BLOCK
        error = errno_of(handle.pwrite, data, at)
        check(error in (0, expected), "errno %d", error)
        if error:
            failed += 1
            may.setdefault(at, {bytes(BLOCK)}).add(data)
        else:
            may[at] = {data}
        if turn % 50 == 49:
            error = errno_of(handle.flush)
            check(error in (0, errno.EIO), "errno %d", error)
    os.unlink(trigger)
    return may, failed


def errors_of_writes(lab, kind, error="EIO", **options):
    """The guest gets true answers, and when the trouble is over, the server
    goes on and what it acknowledged is there."""
    path = image(lab, **options)
    params = {"passphrase": "abc"} if "encryption" in options else {}
    trigger = lab.path("trigger")
    # For want of space a write is tried three times in all.
    rate = 60 if error == "ENOSPC" else 20
    below = Below(lab, path, filters=["error"],
                  args=["error-%s=%s" % (kind, error),
                        "error-%s-rate=%d%%" % (kind, rate),
                        "error-%s-file=%s" % (kind, trigger)])
    with over(lab, below, **params) as server:
        handle = server.connect()
        may, failed = model_of_errors(random.Random(kind), handle, trigger,
                                      400, getattr(errno, error))
        handle.flush()
        for at, allowed in may.items():
            check(bytes(handle.pread(BLOCK, at)) in allowed,
                  "the sectors at %d hold what nobody wrote", at)
    check(failed > 0 or kind != "pwrite", "no write failed: not tested")
    expect_clean(path, leaks_allowed=True)
    with lab.server(path) as server:
        handle = server.connect()
        for at, allowed in may.items():
            check(bytes(handle.pread(BLOCK, at)) in allowed,
                  "the sectors at %d hold what nobody wrote", at)


def errors_of_reads(lab):
    path = image(lab)
    qemu_io(path, "write -P 7 0 1M")
    trigger = lab.path("trigger")
    below = Below(lab, path, filters=["error"],
                  args=["error-pread=EIO", "error-pread-rate=100%",
                        "error-pread-file=" + trigger])
    with over(lab, below) as server:
        handle = server.connect()
        check(handle.pread(BLOCK, 0) == b"\7" * BLOCK, "wrong data")
        open(trigger, "w").close()
        check(errno_of(handle.pread, BLOCK, BLOCK) == errno.EIO, "no EIO")
        os.unlink(trigger)
        check(handle.pread(BLOCK, BLOCK) == b"\7" * BLOCK, "wrong data")
    expect_clean(path)


def error_of_flush(lab):
    """Rule 7: a flush that failed is never forgiven."""
    path = image(lab, 1 * M, room=2 * M)
    trigger = lab.path("trigger")
    below = Below(lab, None, plugin="eval", args=[
        "get_size=stat -c %%s %s" % path,
        "pread=dd if=%s iflag=skip_bytes,count_bytes skip=$4 count=$3 "
        "status=none" % path,
        "pwrite=dd of=%s oflag=seek_bytes seek=$4 conv=notrunc "
        "status=none" % path,
        "can_write=exit 0", "can_flush=exit 0",
        "flush=if [ -e %s ]; then echo EIO flush >&2; exit 1; fi" % trigger])
    server = over(lab, below)
    handle = server.connect()
    handle.pwrite(b"a" * BLOCK, 0)
    handle.flush()
    handle.pwrite(b"b" * BLOCK, 0)
    open(trigger, "w").close()
    check(errno_of(handle.flush) == errno.EIO, "the flush succeeded")
    os.unlink(trigger)
    for call, args in ((handle.flush, ()), (handle.pwrite, (b"c" * 512, 0)),
                       (handle.zero, (512, 0))):
        check(errno_of(call, *args) == errno.EIO, "it was forgiven: %s", call)
    check(handle.pread(1, 0) == b"b", "reads do not go on")
    server.stop()
    expect_clean(path, leaks_allowed=True)


# Watching.

def clusters(parsed, kinds):
    found = parsed.metadata()
    return {c for kind in kinds for c in found[kind]}


def protected(numbers, size):
    return ["protect=%d-%d" % (c * size, (c + 1) * size - 1)
            for c in sorted(numbers)]


# What nbdkit's filter says when it refuses.
REFUSED = "prevented write to protected range"

FROZEN = ("snapshot-table", "inactive-l1", "inactive-l2")


def guarded(lab):
    """Another judge of the guard: the server below refuses to change what
    must never change, and is never asked to."""
    path = image(lab, 2 * M, cluster_size=4 * K)
    for i in range(3):
        qemu_io(path, "write -P %d %d 200k" % (i + 1, i * 300 * K))
        qemu_img("snapshot", "-c", "s%d" % i, path)
    qemu_io(path, "write -P 9 0 2M")
    with Qcow2(path) as parsed:
        found = parsed.metadata()
        frozen = clusters(parsed, FROZEN) - \
            clusters(parsed, [k for k in found if k not in FROZEN])
    check(len(frozen) > 4, "nothing to protect")
    below = Below(lab, path, filters=["protect"],
                  args=protected(frozen, 4 * K))
    with over(lab, below) as server:
        model = random_requests(lab, server, path, random.Random(5), 300,
                                size=2 * M, cluster=4 * K)
    check(REFUSED not in below.log(),
          "the server was asked to change what must not change:\n%s",
          below.log())
    judge(path, model)


def astray(lab, checks):
    """An entry leads guest data to a snapshot's table.  The guard keeps it
    from the server; without the guard, the server refuses."""
    path = image(lab, 1 * M, cluster_size=4 * K)
    qemu_io(path, "write -P 1 0 64k")
    qemu_img("snapshot", "-c", "s", path)
    qemu_io(path, "write -P 2 0 64k")
    with Qcow2(path) as parsed:
        victim = parsed.metadata()["inactive-l2"][0]
        check(victim not in parsed.metadata()["active-l2"], "it is shared")
        entry = parsed.l2_entry(0)
        parsed.set_l2_entry(0, (entry & ~OFFSET_MASK) | victim * 4 * K)
    below = Below(lab, path, filters=["protect"],
                  args=protected([victim], 4 * K))
    with over(lab, below, overlap_check=checks) as server:
        handle = server.connect()
        error = errno_of(handle.pwrite, b"x" * 512, 0)
        check(error == errno.EIO, "errno %d", error)
    asked = REFUSED in below.log()
    check(asked == (checks == "none"), "overlap-check=%s: the server was %s",
          checks, "asked" if asked else "not asked")


def order(lab):
    """A flush is a flush below, FUA is FUA below, data comes before what
    leads to it."""
    path = image(lab, 1 * M)
    logfile = lab.path()
    below = Below(lab, path, filters=["log"], args=["logfile=" + logfile])
    with over(lab, below) as server:
        handle = server.connect()
        handle.pwrite(b"a" * 64 * K, 0)
        handle.flush()
        handle.pwrite(b"b" * 4096, 0, nbd.CMD_FLAG_FUA)
    with open(logfile) as log:
        calls = [m.groups() for m in re.finditer(
            r" (Write|Flush) id=\d+ (?:offset=(\S+) count=(\S+) )?"
            r"(?:fua=(\d) )?", log.read())]
    data = calls.index(next(c for c in calls if c[2] == "0x10000"))
    with Qcow2(path) as parsed:
        l1 = next(i for i, c in enumerate(calls)
                  if c[1] and int(c[1], 16) // 512 ==
                  parsed.l1_offset // 512)
    check(any(c[0] == "Flush" for c in calls[data:l1]),
          "no flush between data and pointer: %s", calls)
    check(any(c[0] == "Flush" for c in calls[l1:]),
          "no flush after the pointer: %s", calls)
    check(any(c[2] == "0x1000" and c[3] == "1" for c in calls),
          "no FUA: %s", calls)


def most_at_once(logfile, name):
    """Of the requests in a log of nbdkit's filter, which has a line for the
    beginning and one for the end of each."""
    most = now = 0
    with open(logfile) as log:
        for line in log:
            if " %s id=" % name in line:
                now += 1
                most = max(most, now)
            elif "...%s id=" % name in line:
                now -= 1
    check(now == 0 and most > 0, "%d requests are left", now)
    return most


def parallel(lab):
    """Sixteen requests wait together, not after each other."""
    path = image(lab, 8 * M)
    qemu_io(path, "write -P 1 0 8M")
    logfile = lab.path()
    below = Below(lab, path, filters=["log", "delay"],
                  args=["rdelay=100ms", "wdelay=100ms", "logfile=" + logfile])
    with over(lab, below) as server:
        handle = server.connect()
        handle.pread(BLOCK, 0)
        for write in (False, True):
            cookies = []
            for i in range(16):
                buf = nbd.Buffer(BLOCK)
                cookies.append(handle.aio_pwrite(
                    nbd.Buffer.from_bytearray(bytearray(BLOCK)), i * 128 * K)
                    if write else handle.aio_pread(buf, i * 128 * K))
            while handle.aio_in_flight():
                handle.poll(100)
            for cookie in cookies:
                check(handle.aio_command_completed(cookie), "not done")
    # All sixteen, unless the machine has no time to send them in 100 ms.
    for name in ("Read", "Write"):
        most = most_at_once(logfile, name)
        check(most >= 4, "%s: %d at once, not 16", name, most)


# Other servers, other files.

def by_qemu(lab):
    path = image(lab)
    below = Below(lab, path, qemu=True)
    with over(lab, below) as server:
        model = random_requests(lab, server, path, random.Random(3), 300,
                                clients=2)
    judge(path, model)


def by_tls(lab):
    keys = lab.path("keys.psk")
    with open(keys, "w") as f:
        f.write("alice:" + "0123456789abcdef" * 4 + "\n")
    os.chmod(keys, 0o600)
    path = image(lab)
    below = Below(lab, path, options=["--tls=require", "--tls-psk=" + keys])
    if "TLS" in below.log():
        skip("nbdkit has no TLS")
    uri = "nbds+unix://alice@/?socket=%s&tls-psk-file=%s" % (
        below.socket, keys)
    with lab.server(uri, below=below) as server:
        handle = server.connect()
        handle.pwrite(b"secret" * 100, 12345)
        handle.flush()
        check(handle.pread(600, 12345) == b"secret" * 100, "wrong data")
        expect_clean(path)
        # Not by the name of the user's keys in an image.
        top = create(lab.path(), 8 * M, backing=uri, backing_format="raw",
                     quiet_backing=True)
        lab.refuses(top, "connecting", external_files="any")
    expect_clean(path)


def backing(lab, fmt):
    base = lab.path()
    if fmt == "qcow2":
        create(base, 4 * M)
        qemu_io(base, "write -P 5 1M 1M")
    else:
        with open(base, "wb") as f:
            f.seek(M)
            f.write(b"\5" * M)
            f.truncate(4 * M)
    below = Below(lab, base)
    top = create(lab.path(), 8 * M, backing=below.uri(), backing_format=fmt,
                 quiet_backing=True)
    lab.refuses(top, "external-files")
    lab.refuses(top, "external-files", external_files="nbd+unix:///")
    for rule in (below.uri(), "any"):
        with lab.server(top, external_files=rule) as server:
            handle = server.connect()
            check(handle.pread(M, M) == b"\5" * M, "wrong data")
            check(handle.pread(M, 5 * M) == bytes(M), "wrong data")
            check([f for _, f in block_status(handle, 0, M)] == [3],
                  "no hole where the backing file has one")
            if rule == "any":
                handle.pwrite(b"x" * 100, M + 4000)
    with lab.server(top, backing_file=below.uri()) as server:
        check(server.connect().pread(300, M + 3900) ==
              b"\5" * 100 + b"x" * 100 + b"\5" * 100, "wrong data")
    expect_clean(top)
    below.end()


def loop(lab):
    """An image over NBD that names itself; one that names a file."""
    path = image(lab, 1 * M)
    below = Below(lab, path)
    for name, said in ((below.uri(), "leads back"), ("base", "no directory"),
                       ("/etc/hostname", "external-files")):
        qemu_img("rebase", "-u", "-b", name, "-F", "qcow2", path)
        lab.refuses(below.uri(), said, external_files=below.uri())
    below.end()


def background(lab):
    """After a real fork, with relative names."""
    base = image(lab, 1 * M)
    below = Below(lab, base)
    create(lab.path("top.qcow2"), 1 * M, backing=below.uri(),
           backing_format="qcow2", quiet_backing=True)
    for number, name in enumerate((below.uri(), "top.qcow2")):
        sock = lab.path("bg%d" % number)
        pidfile = lab.path("bgpid%d" % number)
        run("nbdkit", "-U", sock, "-P", pidfile, lab.plugin, "file=" + name,
            "external-files=any", cwd=lab.folder)
        handle = nbd.NBD()
        handle.connect_unix(sock)
        handle.pwrite(b"z" * 1000, 5000)
        check(handle.pread(1000, 5000) == b"z" * 1000, "wrong data")
        handle.shutdown()
        with open(pidfile) as f:
            pid = int(f.read())
        os.kill(pid, signal.SIGTERM)
        give_up = time.monotonic() + PATIENCE
        while os.path.exists("/proc/%d" % pid):
            check(time.monotonic() < give_up, "it does not end")
            time.sleep(0.02)
    expect_clean(lab.path("top.qcow2"))
    below.end()
    expect_clean(base)


def words(lab):
    """What users are told."""
    path = image(lab, 1 * M)
    below = Below(lab, path)
    with lab.server(below.uri()) as server:
        server.connect().pwrite(b"x", 0)
        server.connect().pwrite(b"x", 0)
        check(server.log().count("no locks over NBD") == 1, "%s",
              server.log())
    lab.refuses(below.uri(), "locking=off does without", locking="on")
    below.end()
    lab.refuses(below.uri(), "connecting")
    with lab.server(path, readonly=True) as ours:
        lab.refuses("nbd+unix:///?socket=" + ours.socket, "qcow2")


def without_library(lab):
    """libnbd is loaded by those only who need it, and told of by those
    who lack it."""
    folder = lab.path()
    os.mkdir(folder)
    with open(os.path.join(folder, "libnbd.so.0"), "w") as f:
        f.write("no library")
    path = image(lab, 1 * M)
    below = Below(lab, path)
    before = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = folder + (":" + before if before else "")
    try:
        lab.refuses(below.uri(), "images on NBD servers need libnbd",
                    folder + "/libnbd.so.0")
        with lab.server(image(lab, 1 * M)) as server:
            server.connect().pwrite(b"x", 0)
    finally:
        if before is None:
            del os.environ["LD_LIBRARY_PATH"]
        else:
            os.environ["LD_LIBRARY_PATH"] = before
    below.end()


def main():
    lab = Lab()
    if not lab.ours:
        skip("our own")
    need("nbdcopy")
    for cluster, low, high, clients in ((4 * K, 4 * K, 64 * K, 4),
                                        (64 * K, 4 * K, 8 * K, 2),
                                        (512, 512, 1 * M, 2)):
        lab.case("blocks of %d to %d, clusters of %d" % (low, high, cluster),
                 blocks, lab, cluster, low, high, clients)
    lab.case("neighbours in a block", neighbours, lab)
    lab.case("block larger than a cluster", block_too_large, lab)
    lab.case("full", full, lab)
    lab.case("errors of writes", errors_of_writes, lab, "pwrite")
    lab.case("no space for writes", errors_of_writes, lab, "pwrite",
             "ENOSPC")
    lab.case("errors of writes, extended", errors_of_writes, lab, "pwrite",
             extended_l2="on", cluster_size=64 * K)
    lab.case("errors of writes, encrypted", errors_of_writes, lab, "pwrite",
             encryption="luks")
    lab.case("errors of zeroes", errors_of_writes, lab, "zero")
    lab.case("errors of reads", errors_of_reads, lab)
    lab.case("error of a flush", error_of_flush, lab)
    lab.case("guarded", guarded, lab)
    lab.case("astray", astray, lab, "all")
    lab.case("astray without checks", astray, lab, "none")
    lab.case("order", order, lab)
    lab.case("parallel", parallel, lab)
    lab.case("qemu-nbd", by_qemu, lab)
    lab.case("tls", by_tls, lab)
    lab.case("backing raw", backing, lab, "raw")
    lab.case("backing qcow2", backing, lab, "qcow2")
    lab.case("loop", loop, lab)
    lab.case("background", background, lab)
    lab.case("words", words, lab)
    lab.case("without libnbd", without_library, lab)
    lab.finish()


if __name__ == "__main__":
    main()
