# SPDX-License-Identifier: BSD-3-Clause

"""Backing files: how an image names them, where the names lead, and damage
in the chain below.  A part of the table in cases.py.
"""

from case import Case, ReadFails, Refused, Serves
from damages import (K, U32, U64, backing, below_outside, chain, directory,
                     fifo, first, header, in_another, l1_entry, l2_entry,
                     link_outside, loop, middle, nothing, raw_with_header,
                     stream)

BACKING_CASES = [
    Case("sound-overlay", "overlay", nothing, Serves()),
    Case("sound-overlay-v2", "overlay_v2", nothing, Serves()),
    Case("backing-offset-in-header", "overlay", header(
        backing_file_offset=100), Refused("backing_file_offset", "0x64")),
    Case("backing-offset-past-cluster", "overlay", header(
        backing_file_offset=4096), Refused("backing_file_offset", "0x1000")),
    Case("backing-offset-at-cluster", "overlay", header(
        backing_file_offset=4096, backing_file_size=0),
        Refused("backing_file_offset", "0x1000")),
    Case("backing-offset-2e64", "overlay", header(backing_file_offset=U64),
         Refused("backing_file_offset", "0xffffffffffffffff")),
    Case("backing-size-0", "overlay", header(backing_file_size=0),
         Refused("backing_file_size", "is 0")),
    Case("backing-size-1024", "overlay", header(backing_file_size=1024),
         Refused("backing_file_size", "is 1024")),
    Case("backing-size-2e32", "overlay", header(backing_file_size=U32),
         Refused("backing_file_size", "is 4294967295")),
    Case("backing-name-nul", "overlay", backing(b"base.raw\0x"),
         Refused("backing file name", "NUL")),
    Case("backing-missing", "overlay", backing(b"missing.raw"),
         Refused("missing.raw", "No such file")),
    Case("backing-directory", "overlay", directory, Refused("folder")),
    Case("backing-outside", "overlay", backing(b"/etc/hostname"),
         Refused("/etc/hostname", "external-files")),
    Case("backing-dotdot", "overlay", lambda i, m: backing(
        b"../" + m.outside().encode())(i, m),
        Refused("outside.raw", "external-files")),
    Case("backing-json", "overlay", backing(
        b'json:{"file.filename": "base.raw"}'), Serves()),
    Case("backing-json-old", "overlay", backing(
        b"json:{'driver':'raw','offset':0,'file':{'driver':'file',"
        b"'aio':'threads','filename':'base.raw'}}"), Serves()),
    Case("backing-json-outside", "overlay", backing(
        b'json:{"driver":"raw","file.filename":"/etc/hostname"}'),
        Refused("/etc/hostname", "external-files")),
    Case("backing-json-dotdot", "overlay", lambda i, m: backing(
        b'json:{"file":{"filename":"../%s"}}' % m.outside().encode())(i, m),
        Refused("outside.raw", "external-files")),
    Case("backing-json-link", "overlay", first(
        link_outside, backing(b'json:{"file.filename":"link.raw"}')),
        Refused("link.raw", "external-files")),
    Case("backing-json-device", "overlay", backing(
        b'json:{"driver":"raw","file":{"driver":"host_device",'
        b'"filename":"/dev/zero"}}'), Refused("/dev/zero", "external-files")),
    Case("backing-json-nested-name", "overlay", backing(
        b'json:{"file.filename":"json:{\\"file.filename\\":\\"base.raw\\"}"}'),
        Refused("No such file")),
    Case("backing-json-nbd", "overlay", backing(
        b'json:{"driver":"nbd","host":"127.0.0.1","port":"1"}'),
        Refused("nbd://127.0.0.1:1/", "external-files")),
    Case("backing-json-fd", "overlay", backing(
        b'json:{"driver":"nbd","server":{"type":"fd","str":"3"}}'),
        Refused("'server.type' is 'fd'", "backing-file=")),
    Case("backing-json-driver", "overlay", backing(
        b'json:{"driver":"blkverify","raw":{"filename":"/etc/hostname"},'
        b'"test":{"filename":"base.raw"}}'),
        Refused("'driver' is 'blkverify'", "backing-file=")),
    Case("backing-json-types", "overlay", backing(
        b'json:{"file":[{"filename":["base.raw"]}],"driver":{}}'),
        Refused("'file.filename' is missing", "backing-file=")),
    Case("backing-json-twice", "overlay", backing(
        b'json:{"file.filename":"/etc/hostname","file":{"filename":'
        b'"base.raw"}}'), Refused("'file.filename' is there twice",
                                  "backing-file=")),
    Case("backing-json-deep", "overlay", backing(
        b"json:" + b'{"a":' * 169 + b"1" + b"}" * 169),
        Refused("nested more than 32 deep", "backing-file=")),
    Case("backing-json-deep-arrays", "overlay", backing(
        b'json:{"a":' + b"[" * 500 + b"]" * 500 + b"}"),
        Refused("'file.filename' is missing", "backing-file=")),
    Case("backing-json-key", "overlay", backing(
        b'json:{"file.filename":"base.raw","bogus":1}'),
        Refused("'bogus' is not a key", "backing-file=")),
    Case("backing-json-backing", "overlay", middle(
        b'"backing":{"driver":"raw","file.filename":"base.raw"}'), Serves()),
    Case("backing-json-backing-outside", "overlay", middle(
        b'"backing":{"driver":"raw","file.filename":"/etc/hostname"}'),
        Refused("/etc/hostname", "external-files")),
    Case("backing-json-backing-dotdot", "overlay", lambda i, m: middle(
        b'"backing.driver":"raw","backing.file.filename":"../%s"'
        % m.outside().encode())(i, m),
        Refused("outside.raw", "external-files")),
    Case("backing-json-backing-link", "overlay", first(
        link_outside, middle(b'"backing":{"driver":"raw","file.filename":'
                             b'"link.raw"}')),
        Refused("link.raw", "external-files")),
    Case("backing-json-backing-nbd", "overlay", middle(
        b'"backing":{"driver":"nbd","host":"127.0.0.1","port":"1"}'),
        Refused("nbd://127.0.0.1:1/", "external-files")),
    Case("backing-json-backing-deeper", "overlay", first(loop, middle(
        b'"backing":{"driver":"qcow2","file.filename":"loop-other.qcow2",'
        b'"backing":{"driver":"raw","file.filename":"/etc/hostname"}}')),
        Refused("/etc/hostname", "external-files")),
    Case("backing-json-backing-itself", "overlay", middle(
        b'"backing":{"driver":"qcow2","file.filename":"%s"}'),
        Refused("leads back")),
    Case("backing-json-backing-format", "overlay", middle(
        b'"backing":{"driver":"vmdk","file.filename":"base.raw"}'),
        Refused("'backing.driver' is 'vmdk'", "backing-file=")),
    Case("backing-json-backing-node", "overlay", middle(b'"backing":"top"'),
         Refused("'backing' is the name of a node", "backing-file=")),
    Case("backing-json-backing-nowhere", "overlay", middle(
        b'"backing":{"driver":"raw"}', "v3"),
        Refused("does not say which file", "qemu-img rebase")),
    Case("backing-json-data-file", "overlay", middle(
        b'"data-file":{"driver":"file","filename":"middle.qcow2.data"}',
        "data_file"), Serves()),
    Case("backing-json-data-file-outside", "overlay", middle(
        b'"data-file":{"driver":"file","filename":"/etc/hostname"}',
        "data_file"), Refused("/etc/hostname", "external-files")),
    Case("backing-json-data-file-none", "overlay", middle(
        b'"data-file":{"driver":"file","filename":"base.raw"}'),
        Refused("'data-file'", "qemu-img rebase")),
    Case("backing-json-data-file-itself", "overlay", middle(
        b'"data-file":{"driver":"file","filename":"%s"}', "data_file"),
        Refused("the image itself", file="middle.qcow2")),
    Case("backing-json-format", "overlay", backing(
        b'json:{"driver":"qcow2","file.filename":"base.raw"}'),
        Refused("has the format raw", "driver qcow2", "backing-format=")),
    Case("backing-json-window-past-end", "overlay", backing(
        b'json:{"driver":"raw","offset":9223372036854775807,"size":0,'
        b'"file.filename":"base.raw"}'),
        Refused("'offset' is 9223372036854775807", "backing-file=")),
    Case("backing-json-window-too-long", "overlay", backing(
        b'json:{"driver":"raw","size":1152921504606846976,'
        b'"file.filename":"base.raw"}'),
        Refused("'size' 1152921504606846976", "backing-file=")),
    Case("backing-json-escaped", "overlay", lambda i, m: backing(
        b'json:{"file.filename":"\\u002e\\u002e\\/%s"}'
        % m.outside().encode())(i, m),
        Refused("outside.raw", "external-files")),
    Case("backing-json-fifo", "overlay", first(
        fifo, backing(b'json:{"file.filename":"fifo.raw"}')),
        Refused("fifo.raw")),
    Case("backing-json-loop", "overlay", first(loop, backing(
        b'json:{"driver":"qcow2","file":{"driver":"raw","offset":0,"file":'
        b'{"filename":"loop-other.qcow2"}}}', b"qcow2")),
        Refused("leads back")),
    Case("backing-json-itself", "overlay", lambda i, m: backing(
        b'json:{"driver":"qcow2","file.filename":"%s"}' % i.name().encode(),
        b"qcow2")(i, m), Refused("leads back")),
    Case("backing-json-itself-in-part", "overlay", lambda i, m: backing(
        b'json:{"driver":"qcow2","file":{"driver":"raw","offset":0,"file":'
        b'{"filename":"%s"}}}' % i.name().encode(),
        b"qcow2")(i, m), Refused("leads back")),
    Case("backing-nbd", "overlay", backing(b"nbd://127.0.0.1:1/"),
         Refused("nbd://127.0.0.1:1/")),
    Case("backing-nbd-old", "overlay", backing(b"nbd:127.0.0.1:1"),
         Refused("nbd://127.0.0.1:1/", "external-files")),
    Case("backing-file-outside", "overlay", backing(b"file:/etc/hostname"),
         Refused("/etc/hostname", "external-files")),
    Case("backing-link-outside", "overlay", link_outside,
         Refused("link.raw", "external-files")),
    Case("backing-below-outside", "overlay", below_outside,
         Refused("/etc/hostname", "external-files",
                 file="below-outside-base.qcow2")),
    Case("backing-fifo", "overlay", fifo, Refused("fifo.raw")),
    Case("backing-device", "overlay", backing(b"/dev/zero"),
         Refused("/dev/zero", "external-files")),
    Case("backing-fat", "overlay", backing(b"fat:rw:/etc"),
         Refused("fat:", "backing-file=")),
    Case("backing-host-device", "overlay", backing(
        b"host_device:/dev/null"), Refused("/dev/null", "external-files")),
    Case("backing-blkdebug", "overlay", backing(
        b"blkdebug:/etc/hostname:base.raw"), Refused("blkdebug:")),
    Case("backing-ssh", "overlay", backing(b"ssh://localhost/etc/passwd"),
         Refused("ssh:")),
    Case("backing-percent", "overlay", backing(b"%s%n%1000000d"),
         Refused("%s%n%1000000d", "No such file")),
    Case("backing-newline", "overlay", backing(b"base\nraw\033[2J"),
         Refused("base?raw?[2J", "No such file")),
    Case("backing-name-past-cluster", "overlay", header(
        backing_file_offset=4000, backing_file_size=97),
        Refused("backing_file_size", "is 97")),
    Case("backing-raw-with-header", "overlay", raw_with_header, Serves()),
    Case("backing-itself", "overlay", lambda i, m: backing(
        i.name().encode(), b"qcow2")(i, m), Refused("leads back")),
    Case("backing-loop", "overlay", loop,
         Refused("leads back")),
    Case("backing-no-format", "overlay", backing(b"base.raw", None),
         Refused("format", "base.raw")),
    Case("backing-format-vmdk", "overlay", backing(b"base.raw", b"vmdk"),
         Refused("vmdk")),
    Case("backing-not-qcow2", "overlay", backing(b"base.raw", b"qcow2"),
         Refused("not in qcow2 format", file="base.raw")),
    Case("backing-200-deep", "overlay", chain(200), Serves(lenient=True)),
    Case("backing-202-deep", "overlay", chain(202),
         Refused("200", "chain", file="chain-201.qcow2", lenient=True)),
    Case("backing-l1-size", "overlay", in_another(
        "v3", "below-l1-size", header(l1_size=U32)),
        Refused("l1_size", "4294967295", file="below-l1-size.qcow2")),
    Case("backing-l1-entry", "overlay", in_another(
        "v3", "below-l1-entry", l1_entry(0x1000000)),
        ReadFails("L2 table", "0x1000000", file="below-l1-entry.qcow2")),
    Case("backing-l2-entry", "overlay", in_another(
        "v3", "below-l2-entry", l2_entry(0x1000000)),
        ReadFails("0x0000000001000000", "guest offset 12288",
                  file="below-l2-entry.qcow2")),
    Case("backing-compressed", "overlay", in_another(
        "zstd", "below-compressed", stream(12 * K, 40)),
        ReadFails("compressed", "guest offset 12288",
                  file="below-compressed.qcow2")),
    Case("backing-dirty", "overlay", in_another(
        "v3", "below-dirty", header(incompatible=1)), Serves()),
    Case("backing-luks", "overlay", in_another(
        "luks", "below-luks", nothing),
        Refused("encrypted", file="below-luks.qcow2")),
]
