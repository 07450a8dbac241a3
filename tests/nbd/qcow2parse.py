# SPDX-License-Identifier: BSD-3-Clause

"""A small qcow2 reader and poker, for tests that look at or damage metadata.

It is written from the format's specification alone and shares nothing with
the engine under test, so that an error of the engine cannot hide here.  It
trusts the image: only images that qemu-img made are given to it.
"""

import os
import struct

COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
OFFSET_MASK = 0x00fffffffffffe00

INCOMPAT_DIRTY = 1
INCOMPAT_CORRUPT = 2
INCOMPAT_EXTENDED_L2 = 16

EXT_BACKING_FORMAT = 0xe2792aca
EXT_FEATURE_NAMES = 0x6803f857
EXT_BITMAPS = 0x23852875

# The names of the options overlap-check.TYPE, for every kind of metadata
# that this reader knows.
TYPES = [
    "main-header", "active-l1", "active-l2", "refcount-block",
    "refcount-table", "snapshot-table", "inactive-l1", "inactive-l2",
    "bitmap-directory", "bitmap-table", "bitmap-data",
]


class Qcow2:
    """An open image file.  Nothing is cached: every call reads the file."""

    def __init__(self, path):
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        head = self.pread(104, 0)
        (self.magic, self.version, self.backing_offset, self.backing_size,
         self.cluster_bits, self.size, self.crypt_method, self.l1_size,
         self.l1_offset, self.rt_offset, self.rt_clusters,
         self.nb_snapshots, self.snapshots_offset) = struct.unpack_from(
             ">IIQIIQIIQQIIQ", head, 0)
        assert self.magic == 0x514649fb, "not a qcow2 file"
        if self.version >= 3:
            (self.incompatible, self.compatible, self.autoclear,
             self.refcount_order, self.header_length) = struct.unpack_from(
                 ">QQQII", head, 72)
        else:
            self.incompatible = self.compatible = self.autoclear = 0
            self.refcount_order, self.header_length = 4, 72
        self.cluster_size = 1 << self.cluster_bits
        self.refcount_bits = 1 << self.refcount_order
        self.extended = bool(self.incompatible & INCOMPAT_EXTENDED_L2)
        self.entry_size = 16 if self.extended else 8
        self.l2_entries = self.cluster_size // self.entry_size

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    # Bytes.

    def pread(self, length, offset):
        """LENGTH bytes; what lies past the end of the file is zeroes."""
        data = os.pread(self.fd, length, offset)
        while len(data) < length:
            more = os.pread(self.fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data.ljust(length, b"\0")

    def pwrite(self, data, offset):
        assert os.pwrite(self.fd, data, offset) == len(data)

    def u64(self, offset):
        return struct.unpack(">Q", self.pread(8, offset))[0]

    def put64(self, offset, value):
        self.pwrite(struct.pack(">Q", value), offset)

    def put32(self, offset, value):
        self.pwrite(struct.pack(">I", value), offset)

    def length(self):
        return os.fstat(self.fd).st_size

    # The header.

    def extensions(self):
        """List of (type, file offset of the data, data)."""
        exts = []
        at = self.header_length
        while at + 8 <= self.cluster_size:
            kind, length = struct.unpack(">II", self.pread(8, at))
            if kind == 0:
                break
            exts.append((kind, at + 8, self.pread(length, at + 8)))
            at += 8 + (length + 7) // 8 * 8
        return exts

    def extension(self, kind):
        for k, at, data in self.extensions():
            if k == kind:
                return at, data
        return None

    def replace_extensions(self, exts):
        """Write anew the extensions (list of (type, data)), moving the
        backing file's name behind them."""
        name = b""
        if self.backing_offset:
            name = self.pread(self.backing_size, self.backing_offset)
        out = b""
        for kind, data in exts:
            out += struct.pack(">II", kind, len(data))
            out += data.ljust((len(data) + 7) // 8 * 8, b"\0")
        out += struct.pack(">II", 0, 0)
        at = self.header_length
        room = self.cluster_size - at
        assert len(out) + len(name) <= room, "extensions do not fit"
        self.pwrite((out + name).ljust(room, b"\0"), at)
        if name:
            self.backing_offset = at + len(out)
            self.put64(8, self.backing_offset)

    # L1 and L2.

    def table(self, offset, entries):
        return list(struct.unpack(">%dQ" % entries,
                                  self.pread(8 * entries, offset)))

    def active_l1(self):
        return self.table(self.l1_offset, self.l1_size)

    def l1_slot(self, guest):
        """File offset of the L1 entry that covers the guest offset."""
        return self.l1_offset + 8 * ((guest >> self.cluster_bits) //
                                     self.l2_entries)

    def l2_slot(self, guest):
        """File offset of the L2 entry, or None if there is no L2 table."""
        l2 = self.u64(self.l1_slot(guest)) & OFFSET_MASK
        if not l2:
            return None
        return l2 + self.entry_size * ((guest >> self.cluster_bits) %
                                       self.l2_entries)

    def l2_entry(self, guest):
        slot = self.l2_slot(guest)
        return 0 if slot is None else self.u64(slot)

    def l2_bitmap(self, guest):
        """Of an extended entry: low half allocated, high half zero."""
        slot = self.l2_slot(guest)
        return 0 if slot is None or not self.extended else self.u64(slot + 8)

    def reads_as_kept_zeroes(self, guest):
        """Are they zeroes, though there is a host cluster?"""
        entry = self.l2_entry(guest)
        if self.extended:
            sub = guest % self.cluster_size * 32 // self.cluster_size
            zero = self.l2_bitmap(guest) >> 32 + sub & 1
        else:
            zero = entry & ZERO
        return bool(zero and entry & OFFSET_MASK)

    def set_l2_entry(self, guest, value):
        self.put64(self.l2_slot(guest), value)

    # Refcounts.

    def refcount_table(self):
        return self.table(self.rt_offset,
                          self.rt_clusters * self.cluster_size // 8)

    def refcount_place(self, cluster):
        """(file offset of the byte, bits to shift, mask) for a width below
        a byte, else (file offset, 0, None); None without a block."""
        per_block = self.cluster_size * 8 // self.refcount_bits
        index = cluster // per_block
        if index >= self.rt_clusters * self.cluster_size // 8:
            return None
        block = self.u64(self.rt_offset + 8 * index) & ~0x1ff
        if not block:
            return None
        bit = cluster % per_block * self.refcount_bits
        if self.refcount_bits < 8:
            return block + bit // 8, bit % 8, (1 << self.refcount_bits) - 1
        return block + bit // 8, 0, None

    def refcount(self, cluster):
        place = self.refcount_place(cluster)
        if place is None:
            return 0
        at, shift, mask = place
        if mask is not None:
            return self.pread(1, at)[0] >> shift & mask
        return int.from_bytes(self.pread(self.refcount_bits // 8, at), "big")

    def set_refcount(self, cluster, value):
        at, shift, mask = self.refcount_place(cluster)
        if mask is not None:
            byte = self.pread(1, at)[0]
            byte = byte & ~(mask << shift) | value << shift
            self.pwrite(bytes([byte]), at)
        else:
            self.pwrite(value.to_bytes(self.refcount_bits // 8, "big"), at)

    # Snapshots and bitmaps.

    def snapshots(self):
        """List of dicts; "at" and "length" say where the entry lies."""
        found = []
        at = self.snapshots_offset
        for _ in range(self.nb_snapshots):
            (l1_offset, l1_size, id_len, name_len, _sec, _nsec, _clock,
             _vmstate, extra_len) = struct.unpack(
                 ">QIHHIIQII", self.pread(40, at))
            extra = self.pread(extra_len, at + 40)
            ident = self.pread(id_len, at + 40 + extra_len)
            name = self.pread(name_len, at + 40 + extra_len + id_len)
            length = (40 + extra_len + id_len + name_len + 7) // 8 * 8
            found.append({"l1_offset": l1_offset, "l1_size": l1_size,
                          "id": ident.decode(), "name": name.decode(),
                          "extra": extra, "at": at, "length": length})
            at += length
        return found

    def bitmaps(self):
        """List of dicts of the bitmap directory's entries."""
        ext = self.extension(EXT_BITMAPS)
        if ext is None:
            return []
        count, _, size, offset = struct.unpack(">IIQQ", ext[1])
        found = []
        at = offset
        for _ in range(count):
            (table, entries, flags, _type, _gran, name_len,
             extra_len) = struct.unpack(">QIIBBHI", self.pread(24, at))
            length = (24 + extra_len + name_len + 7) // 8 * 8
            found.append({"at": at, "length": length, "table": table,
                          "entries": entries, "flags": flags})
            at += length
        assert at == offset + size
        return found

    # The map of the metadata.

    def metadata(self):
        """Dict from type to the list of its cluster numbers, sorted."""
        owned = {kind: set() for kind in TYPES}

        def own(kind, offset, length):
            first = offset >> self.cluster_bits
            last = (offset + max(length, 1) - 1) >> self.cluster_bits
            owned[kind].update(range(first, last + 1))

        own("main-header", 0, self.cluster_size)
        own("active-l1", self.l1_offset, 8 * self.l1_size)
        for entry in self.active_l1():
            if entry & OFFSET_MASK:
                own("active-l2", entry & OFFSET_MASK, self.cluster_size)
        own("refcount-table", self.rt_offset,
            self.rt_clusters * self.cluster_size)
        for entry in self.refcount_table():
            if entry & ~0x1ff:
                own("refcount-block", entry & ~0x1ff, self.cluster_size)
        snaps = self.snapshots()
        if snaps:
            end = snaps[-1]["at"] + snaps[-1]["length"]
            own("snapshot-table", self.snapshots_offset,
                end - self.snapshots_offset)
        for snap in snaps:
            own("inactive-l1", snap["l1_offset"], 8 * snap["l1_size"])
            for entry in self.table(snap["l1_offset"], snap["l1_size"]):
                if entry & OFFSET_MASK:
                    own("inactive-l2", entry & OFFSET_MASK,
                        self.cluster_size)
        for bitmap in self.bitmaps():
            own("bitmap-directory", bitmap["at"], bitmap["length"])
            own("bitmap-table", bitmap["table"], 8 * bitmap["entries"])
            for entry in self.table(bitmap["table"], bitmap["entries"]):
                if entry & OFFSET_MASK:
                    own("bitmap-data", entry & OFFSET_MASK,
                        self.cluster_size)
        return {kind: sorted(owned[kind]) for kind in TYPES}
