# SPDX-License-Identifier: BSD-3-Clause

"""Kinds of damage, of which cases.py makes its table.

Each function returns a function of the image and of the maker of images
(make.py), which does the damage; a few do it themselves.
"""

import os
import struct
import zlib

from imagefile import (BACKING_FORMAT, BITMAPS, COPIED, CRYPTO, DATA_FILE,
                       OFFSET)

K = 1024
M = 1024 * K
G = 1024 * M
T = 1024 * G
CLUSTER = 4 * K                 # as make.py has it

U32 = 0xffffffff
U64 = 0xffffffffffffffff


def header(**fields):
    """Set fields of the header."""
    def damage(i, _m):
        for field, value in fields.items():
            i[field] = value
    return damage


def poke(offset, width, value):
    def damage(i, _m):
        i.put(offset, width, value)
    return damage


def first(*damages):
    """All of them, in this order."""
    def damage(i, m):
        for one in damages:
            one(i, m)
    return damage


def nothing(_i, _m):
    pass


def cut(length):
    """The file ends at LENGTH, or as far before its end."""
    def damage(i, _m):
        del i.data[length:]
    return damage


def sparse(length):
    """The file goes on as a hole up to LENGTH."""
    def damage(i, _m):
        i.length = length
    return damage


def extension(kind, data):
    def damage(i, _m):
        i.add_extension(kind, data)
    return damage


def extension_length(kind, length):
    def damage(i, _m):
        if kind not in dict(i.extensions()):
            i.add_extension(kind, bytes(48))
        i.put(i.extension_place(kind) + 4, 4, length)
    return damage


def bitmaps_field(offset, width, value):
    """A field of the bitmaps extension."""
    def damage(i, _m):
        i.put(i.extension_place(BITMAPS) + 8 + offset, width, value)
    return damage


def directory_field(offset, width, value):
    """A field of the first entry of the bitmap directory."""
    def damage(i, _m):
        directory = i.get(i.extension_place(BITMAPS) + 24, 8)
        i.put(directory + offset, width, value)
    return damage


def luks(offset, content):
    """Bytes of the LUKS header."""
    def damage(i, _m):
        at = i.get(i.extension_place(CRYPTO) + 8, 8) + offset
        i.data[at:at + len(content)] = content
    return damage


def luks_field(offset, width, value):
    return luks(offset, value.to_bytes(width, "big"))


def luks_slot(slot, offset, value):
    return luks_field(208 + 48 * slot + offset, 4, value)


def bitmap_table_entry(value):
    def damage(i, _m):
        directory = i.get(i.extension_place(BITMAPS) + 24, 8)
        i.put(i.get(directory, 8), 8, value)
    return damage


def l1_entry(value, unreadable=True):
    def damage(i, _m):
        place = i.l1_place(0)
        i.put(place, 8, value(i) if callable(value) else value)
        if unreadable:
            i.cannot_read(0, len(i.guest))
    return damage


def l2_entry(value, guest=12 * K, unreadable=True):
    """VALUE may be a function of the image and the sound entry."""
    def damage(i, _m):
        old = i.l2_entry(guest)
        i.set_l2_entry(guest, value(i, old) if callable(value) else value)
        if unreadable:
            i.cannot_read(guest)
    return damage


def l2_bitmap(value, guest, unreadable=True, word=lambda i, old: old):
    """VALUE is a function of the sound bitmap (low half allocated, high
    half zero), WORD one of the sound entry."""
    def damage(i, m):
        place = i.l2_place(guest) + 8
        i.put(place, 8, value(i.get(place, 8)))
        l2_entry(word, guest, unreadable)(i, m)
    return damage


def zero_subcluster(guest):
    """Not damage: the subcluster becomes zero, its data unused."""
    def change(i, m):
        n = guest % i.cluster_size * 32 // i.cluster_size
        size = i.cluster_size // 32
        at = guest // size * size
        l2_bitmap(lambda old: old & ~(1 << n) | 1 << 32 + n, guest,
                  unreadable=False)(i, m)
        i.guest[at:at + size] = bytes(size)
    return change


def refcount_table_entry(value):
    def damage(i, _m):
        place = i.refcount_table_place(0)
        i.put(place, 8, value(i, i.get(place, 8)) if callable(value)
              else value)
    return damage


def refcount_of_data(value, guest=12 * K):
    def damage(i, _m):
        i.put(i.refcount_place(i.l2_entry(guest) & OFFSET), 2, value)
    return damage


def snapshot_field(offset, width, value, index=1):
    """A field of an entry of the snapshot table."""
    def damage(i, _m):
        place = list(i.snapshot_places())[index] + offset
        i.put(place, width, value(i) if callable(value) else value)
    return damage


def snapshot_l1_entry(value, index=0):
    def damage(i, _m):
        place = i.get(list(i.snapshot_places())[index], 8)
        i.put(place, 8, value(i) if callable(value) else value)
    return damage


def stream(guest, length, content=None):
    """Overwrite LENGTH bytes of a compressed cluster's stream, with rubbish
    or with CONTENT, which may be a function of what was there."""
    def damage(i, _m):
        entry = i.l2_entry(guest)
        bits = 62 - (i["cluster_bits"] - 8)
        at = entry & ((1 << bits) - 1)
        old = bytes(i.data[at:at + length])
        i.data[at:at + length] = (content(old) if callable(content)
                                  else content or b"\xff" * length)
        i.cannot_read(guest)
    return damage


def cut_after_stream(i, _m):
    """The file ends in the last sector of the last compressed cluster: what
    is missing of the sector is not of the stream."""
    bits = 62 - (i["cluster_bits"] - 8)
    end = 0
    for guest in range(0, 64 * K, i.cluster_size):
        entry = i.l2_entry(guest)
        at = entry & ((1 << bits) - 1)
        packed = bytes(i.data[at:at + i.cluster_size])
        unpacker = zlib.decompressobj(-15)
        unpacker.decompress(packed)
        end = max(end, at + len(packed) - len(unpacker.unused_data))
    assert len(i.data) - i.cluster_size < end < len(i.data)
    del i.data[end:]


def backing(name, form=b"raw"):
    def damage(i, _m):
        i.rewrite([(k, form if k == BACKING_FORMAT else d)
                   for k, d in i.extensions()
                   if form is not None or k != BACKING_FORMAT], name)
    return damage


def longer_header(length):
    """A header with fields of the future, extensions behind them."""
    def damage(i, _m):
        extensions = i.extensions()
        i["header_length"] = length
        i.data[112:length] = b"\x5a" * (length - 112)
        i.rewrite(extensions, b"")
    return damage


def in_another(kind, name, change):
    """Overlay on an image of KIND, which CHANGE damages."""
    def damage(i, m):
        base = m.image(kind, name)
        change(base, m)
        base.save()
        backing(base.name().encode(), b"qcow2")(i, m)
        i.guest = base.guest
        i.bad = base.bad
    return damage


def middle(options, kind="overlay"):
    """The name of a middle layer also says, in OPTIONS, what is below it, or
    its data file, which is not where its header says.  %s is the name of the
    image itself."""
    def damage(i, m):
        base = m.image(kind, "middle")
        if kind == "data_file":
            base.replace_extension(DATA_FILE, b"none.data")
            base.save()
        backing(b'json:{"driver":"qcow2","file.filename":"%s",%s}'
                % (base.name().encode(),
                   options.replace(b"%s", i.name().encode())), b"qcow2")(i, m)
        i.guest[:] = base.guest
    return damage


def chain(length):
    """LENGTH backing files, all empty but the last."""
    def damage(i, m):
        for n in range(length - 1, 0, -1):
            link = m.image("overlay", "chain-%d" % n)
            if n < length - 1:
                backing(b"chain-%d.qcow2" % (n + 1), b"qcow2")(link, m)
            link.save()
        backing(b"chain-1.qcow2", b"qcow2")(i, m)
    return damage


def loop(i, m):
    other = m.image("overlay", "loop-other")
    backing(i.name().encode(), b"qcow2")(other, m)
    other.save()
    backing(b"loop-other.qcow2", b"qcow2")(i, m)


def shared_l2(entries):
    """An L1 table of that many entries which all name one L2 table."""
    def damage(i, _m):
        cs = i.cluster_size
        table = i.new_clusters()
        at = (len(i.data) + cs - 1) // cs * cs
        i.data.extend(bytes(at - len(i.data)))
        i.data.extend(struct.pack(">Q", table | COPIED) * entries)
        i["l1_table_offset"] = at
        i["l1_size"] = entries
        i["size"] = entries * cs * (cs // 8)
    return damage


def many_snapshots(shared):
    """As many snapshots as there may be, with L1 tables as large as they
    may be, which lie in holes: all at one place, or each at its own."""
    def damage(i, _m):
        count, table = 65536, 32 * M
        i.data.extend(bytes(-len(i.data) % i.cluster_size))
        i["snapshots_offset"] = len(i.data)
        i["nb_snapshots"] = count
        for n in range(count):
            where = 32 * M * (1 if shared else 1 + n)
            i.data.extend(struct.pack(">QIHHIIQII", where, table // 8, 0, 0,
                                      0, 0, 0, 0, 0))
        i.length = 32 * M * (3 if shared else count + 2)
    return damage


def unknown_extra(i, _m):
    """Extra data of the future: a new table, with 64 bytes in each entry."""
    table = b""
    for at in i.snapshot_places():
        old = i.get(at + 36, 4)
        names = i.get(at + 12, 2) + i.get(at + 14, 2)
        entry = bytes(i.data[at:at + 40 + old + names])
        entry = (entry[:36] + struct.pack(">I", 64) + entry[40:40 + old]
                 + b"\x5a" * (64 - old) + entry[40 + old:])
        table += entry + bytes(-len(entry) % 8)
    new = i.new_clusters()
    i.data[new:new + len(table)] = table
    i["snapshots_offset"] = new


def name_twice(i, _m):
    """Both bitmaps have the name of the second."""
    at = i.get(i.extension_place(BITMAPS) + 24, 8)
    i.put(at + 18, 2, 6)
    i.data[at + 24:at + 30] = b"weekly"


def behind_extensions(i, _m):
    """Rubbish between the end mark and the end of the cluster."""
    at = i.header_length()
    for _, content in i.extensions():
        at += 8 + (len(content) + 7) // 8 * 8
    i.data[at + 8:i.cluster_size] = b"\xa5" * (i.cluster_size - at - 8)


def refcount_of_table(value, which):
    """WHICH table's cluster has that count."""
    def damage(i, _m):
        place = {"l1": i["l1_table_offset"],
                 "l2": i.get(i.l1_place(0), 8) & OFFSET,
                 "reftable": i["refcount_table_offset"],
                 "header": 0}[which]
        i.put(i.refcount_place(place), 2, value)
    return damage


def refcounts_all(value):
    def damage(i, _m):
        for at in range(0, len(i.data), i.cluster_size):
            i.put(i.refcount_place(at), 2, value)
    return damage


def full_of_extensions(i, _m):
    """Extensions up to the last byte of the cluster, and no end of them."""
    start = i.header_length()
    room = i.cluster_size - start - 8
    i.data[start:i.cluster_size] = struct.pack(">II", 0x4711, room) + bytes(
        room)


def padding(i, _m):
    """Padding that is not zero, behind an extension of 3 bytes."""
    i.add_extension(0x4711, b"abc")
    place = i.extension_place(0x4711)
    i.data[place + 11:place + 16] = b"\xff" * 5


def link_outside(i, m):
    """The name is in the folder of the image, the file is not."""
    m.link("../" + m.outside(), "link.raw")
    backing(b"link.raw")(i, m)


def directory(i, m):
    os.mkdir(m.path("folder"))
    backing(b"folder")(i, m)


def fifo(i, m):
    """To open it would take for ever."""
    m.fifo("fifo.raw")
    backing(b"fifo.raw")(i, m)


def below_outside(i, m):
    """Not the image itself but its backing file names what it may not."""
    base = m.image("overlay", "below-outside-base")
    backing(b"/etc/hostname")(base, m)
    base.save()
    backing(b"below-outside-base.qcow2", b"qcow2")(i, m)


def raw_with_header(i, m):
    """A guest wrote a qcow2 header, which names a file of the host, into
    its raw disk: as the image says raw, it is nothing but data."""
    probe = m.image("overlay", "raw-with-header-inner")
    backing(b"/etc/hostname")(probe, m)
    m.write("disguised.raw", bytes(probe.data))
    backing(b"disguised.raw")(i, m)
    i.guest[:] = (probe.data + bytes(M))[:M]


def data_file_name(name):
    def damage(i, _m):
        i.replace_extension(DATA_FILE, name)
    return damage


def data_file_length(length):
    """It ends too early; what is missing is zeroes."""
    def damage(i, _m):
        os.truncate(i.path + ".data", length)
        i.guest[length:] = bytes(len(i.guest) - length)
    return damage


def data_file_fifo(i, m):
    m.fifo("fifo.data")
    data_file_name(b"fifo.data")(i, m)


def data_file_link(i, m):
    m.link("../" + m.outside(), "link.data")
    data_file_name(b"link.data")(i, m)


def data_file_of_backing(i, m):
    """A sound chain: the backing file has its data elsewhere."""
    m.image("data_file", "below")
    backing(b"below.qcow2", b"qcow2")(i, m)
    i.guest[:] = m.image("data_file", "below").guest


def data_file_in_chain(name=b"both.raw"):
    """The guest's data would be written into the backing file."""
    def damage(i, m):
        m.write("both.raw", bytes(M))
        i.rewrite(None, name)
        i.add_extension(BACKING_FORMAT, b"raw")
        data_file_name(b"both.raw")(i, m)
    return damage


def feature(kind, bit, name):
    return struct.pack(">BB46s", kind, bit, name)


def bitmaps(count, size, offset):
    return struct.pack(">IIQQ", count, 0, size, offset)


def cut_in_data(i, _m):
    """The last cluster of data is gone, half of the one before too: what
    is missing of a cluster reads as zeroes."""
    cs = i.cluster_size
    hosts = sorted((i.l2_entry(g) & OFFSET, g) for g in range(0, 64 * K, cs))
    last, before = hosts[-1], hosts[-2]
    del i.data[before[0] + cs // 2:]
    i.guest[before[1] + cs // 2:before[1] + cs] = bytes(cs // 2)
    i.cannot_read(last[1])


def cut_at_l2(i, _m):
    """The file ends where its L2 table begins, which is moved there."""
    i.data.extend(bytes(-len(i.data) % i.cluster_size))
    i.put(i.l1_place(0), 8, len(i.data) | COPIED)
    i.cannot_read(0, len(i.guest))


def cut_in_l2(i, _m):
    """Half of the L2 table is there: the rest reads as unallocated."""
    old = i.get(i.l1_place(0), 8) & OFFSET
    i.data.extend(bytes(-len(i.data) % i.cluster_size))
    new = i.new_clusters()
    i.data[new:] = i.data[old:old + 8 * 8]
    i.put(i.l1_place(0), 8, new | COPIED)
    i.guest[32 * K:] = bytes(len(i.guest) - 32 * K)


def cut_in_l1(i, _m):
    """The file ends behind the entries of the L1 table that are used."""
    entries = i.data[i.l1_place(0):i.l1_place(i["l1_size"])]
    i["l1_table_offset"] = i.new_clusters()
    i["l1_size"] = 500          # which would take more
    i.data[i["l1_table_offset"]:] = entries


def cut_in_refcount_block(i, _m):
    """The file ends behind the counts that are used."""
    old = i.get(i.refcount_table_place(0), 8)
    new = i.new_clusters()
    used = new // i.cluster_size + 1
    i.data[new:] = i.data[old:old + used * 2]
    i.put(i.refcount_table_place(0), 8, new)
