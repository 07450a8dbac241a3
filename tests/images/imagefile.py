# SPDX-License-Identifier: BSD-3-Clause

"""A qcow2 file in memory, to be damaged byte by byte.

Numbers are poked in without any check: that is the purpose.  The places of
things are found by the rules of the qcow2 specification in a file that is
still sound, so look them up before damaging what leads to them.
"""

import os
import struct

WIDTH = {1: ">B", 2: ">H", 4: ">I", 8: ">Q"}

# Places of header fields, and their widths.
HEADER = {
    "magic": (0, 4), "version": (4, 4), "backing_file_offset": (8, 8),
    "backing_file_size": (16, 4), "cluster_bits": (20, 4), "size": (24, 8),
    "crypt_method": (32, 4), "l1_size": (36, 4), "l1_table_offset": (40, 8),
    "refcount_table_offset": (48, 8), "refcount_table_clusters": (56, 4),
    "nb_snapshots": (60, 4), "snapshots_offset": (64, 8),
    "incompatible": (72, 8), "compatible": (80, 8), "autoclear": (88, 8),
    "refcount_order": (96, 4), "header_length": (100, 4),
    "compression_type": (104, 1),
}

BACKING_FORMAT = 0xe2792aca
FEATURE_NAMES = 0x6803f857
BITMAPS = 0x23852875
CRYPTO = 0x0537be77
DATA_FILE = 0x44415441

COPIED = 1 << 63
COMPRESSED = 1 << 62
OFFSET = 0x00fffffffffffe00


class Image:
    """The file, what its guest should see, and where it should not."""

    def __init__(self, path, guest):
        self.path = path
        with open(path, "rb") as f:
            self.data = bytearray(f.read())
        self.length = None      # of the file, if not that of the data
        self.guest = bytearray(guest)
        self.bad = []           # guest ranges that cannot be read
        self.cluster_size = 1 << self["cluster_bits"]

    def save(self):
        with open(self.path, "r+b") as f:
            f.truncate(0)
            f.write(self.data)
            if self.length is not None:
                f.truncate(self.length)

    # Numbers at places.

    def get(self, offset, width):
        return struct.unpack_from(WIDTH[width], self.data, offset)[0]

    def put(self, offset, width, value):
        if offset + width > len(self.data):
            self.data.extend(bytes(offset + width - len(self.data)))
        struct.pack_into(WIDTH[width], self.data, offset, value)

    def __getitem__(self, field):
        return self.get(*HEADER[field])

    def __setitem__(self, field, value):
        self.put(*HEADER[field], value)

    # Tables.

    def l1_place(self, index):
        return self["l1_table_offset"] + index * 8

    def l2_place(self, guest):
        cluster = guest // self.cluster_size
        size = 16 if self["version"] > 2 and self["incompatible"] & 16 else 8
        per_table = self.cluster_size // size
        table = self.get(self.l1_place(cluster // per_table), 8) & OFFSET
        assert table
        return table + cluster % per_table * size

    def l2_entry(self, guest):
        return self.get(self.l2_place(guest), 8)

    def set_l2_entry(self, guest, entry):
        self.put(self.l2_place(guest), 8, entry)

    def refcount_table_place(self, index):
        return self["refcount_table_offset"] + index * 8

    def refcount_place(self, host):
        """Of 16-bit entries, which is what all the images here have."""
        assert self["version"] == 2 or self["refcount_order"] == 4
        per_block = self.cluster_size // 2
        cluster = host // self.cluster_size
        block = self.get(self.refcount_table_place(cluster // per_block), 8)
        assert block
        return block + cluster % per_block * 2

    def snapshot_places(self):
        """Where the entries of the snapshot table start."""
        at = self["snapshots_offset"]
        for _ in range(self["nb_snapshots"]):
            yield at
            at += (40 + self.get(at + 36, 4) + self.get(at + 12, 2)
                   + self.get(at + 14, 2) + 7) // 8 * 8

    def new_clusters(self, count=1):
        """Append clusters of zeroes with a refcount of 1."""
        cs = self.cluster_size
        offset = (len(self.data) + cs - 1) // cs * cs
        self.data.extend(bytes(offset + count * cs - len(self.data)))
        for i in range(count):
            self.put(self.refcount_place(offset + i * cs), 2, 1)
        return offset

    # The header's variable part.

    def header_length(self):
        return 72 if self["version"] == 2 else self["header_length"]

    def extensions(self):
        at = self.header_length()
        end = self["backing_file_offset"] or self.cluster_size
        found = []
        while at + 8 <= end:
            kind, length = struct.unpack_from(">II", self.data, at)
            if kind == 0:
                break
            found.append((kind, bytes(self.data[at + 8:at + 8 + length])))
            at += 8 + (length + 7) // 8 * 8
        return found

    def extension_place(self, kind):
        """Where the type of an extension is."""
        at = self.header_length()
        for this, data in self.extensions():
            if this == kind:
                return at
            at += 8 + (len(data) + 7) // 8 * 8
        raise AssertionError("no extension 0x%x" % kind)

    def backing_name(self):
        offset = self["backing_file_offset"]
        return bytes(self.data[offset:offset + self["backing_file_size"]]
                     ) if offset else b""

    def rewrite(self, extensions=None, backing=None):
        """Write the extensions and the backing file's name anew."""
        if extensions is None:
            extensions = self.extensions()
        if backing is None:
            backing = self.backing_name()
        area = b"".join(struct.pack(">II", kind, len(data)) + data
                        + bytes(-len(data) % 8) for kind, data in extensions)
        area += bytes(8)
        start = self.header_length()
        room = self.cluster_size - start
        assert len(area) + len(backing) <= room
        self.data[start:self.cluster_size] = (
            area + backing + bytes(room - len(area) - len(backing)))
        self["backing_file_offset"] = start + len(area) if backing else 0
        self["backing_file_size"] = len(backing)

    def add_extension(self, kind, data):
        self.rewrite(self.extensions() + [(kind, data)])

    def replace_extension(self, kind, data):
        self.rewrite([(k, data if k == kind else d)
                      for k, d in self.extensions()])

    def cannot_read(self, guest, length=None):
        """The case expects EIO there."""
        self.bad.append((guest, length or self.cluster_size))

    def name(self):
        return os.path.basename(self.path)
