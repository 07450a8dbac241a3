# SPDX-License-Identifier: BSD-3-Clause

"""What is damaged in each image, and what must come of it.

A row (case.py) is a name, the kind of sound image (make.py), the damage
(damages.py) and the expectation.  The damage may also change image.guest
(what the guest should see) and call image.cannot_read (where reading must
fail).  The page docs/design/format-rules.md says which row is there for
what.
"""

from case import (Case, ReadFails, ReadOnly, Refused, Serves, TrimFails,
                  WriteFails)
from cases_backing import BACKING_CASES
from damages import (CLUSTER, G, K, M, T, U32, U64, backing, behind_extensions,
                     bitmap_table_entry, bitmaps, bitmaps_field, cut,
                     cut_after_stream, cut_at_l2, cut_in_data, cut_in_l1,
                     cut_in_l2, cut_in_refcount_block, data_file_fifo,
                     data_file_in_chain, data_file_length, data_file_link,
                     data_file_name, data_file_of_backing, directory_field,
                     extension, extension_length, feature, first,
                     full_of_extensions, header, l1_entry, l2_bitmap, l2_entry,
                     longer_header, luks, luks_field, luks_slot,
                     many_snapshots, name_twice, nothing, padding, poke,
                     refcount_of_data, refcount_of_table, refcount_table_entry,
                     refcounts_all, shared_l2, snapshot_field,
                     snapshot_l1_entry, sparse, stream, unknown_extra,
                     zero_subcluster)
from imagefile import (BACKING_FORMAT, BITMAPS, COMPRESSED, COPIED, CRYPTO,
                       DATA_FILE, FEATURE_NAMES, OFFSET)

HEADER_CASES = [
    Case("sound-v3", "v3", nothing, Serves()),
    Case("sound-v2", "v2", nothing, Serves()),
    Case("sound-512", "512", nothing, Serves()),
    Case("sound-1-bit", "1_bit", nothing, Serves()),
    Case("sound-64-bits", "64_bits", nothing, Serves()),
    Case("sound-64k", "64k", nothing, Serves()),
    Case("sound-snapshots", "snapshots", nothing, Serves()),
    Case("sound-bitmaps", "bitmaps", nothing, Serves()),

    Case("magic", "v3", header(magic=0x51464900),
         Refused("not in qcow2 format", "magic", "0x51464900")),
    Case("raw-file", "v3", lambda i, m: i.data.__setitem__(
        slice(0, 8192), bytes(8192)), Refused("not in qcow2 format")),
    Case("version-1", "v3", header(version=1), Refused("version", "is 1")),
    Case("version-4", "v3", header(version=4), Refused("version", "is 4")),

    Case("file-empty", "v3", cut(0), Refused("0 bytes long")),
    Case("file-of-20-bytes", "v3", cut(20), Refused("20 bytes long")),
    Case("file-of-71-bytes", "v2", cut(71), Refused("71 bytes long")),
    Case("file-of-72-bytes", "v2", cut(72), Refused("72 bytes long")),
    Case("file-of-103-bytes", "v3", cut(103), Refused("103 bytes long")),
    Case("file-of-104-bytes", "v3", cut(104), Refused("104 bytes long")),
    Case("file-short-cluster", "v3", cut(4095), Refused("4095 bytes long")),
    Case("file-of-one-cluster", "v3", cut(4096),
         Refused("offset", "end of the file")),

    Case("cluster-bits-8", "v3", header(cluster_bits=8),
         Refused("cluster_bits", "is 8")),
    Case("cluster-bits-22", "v3", header(cluster_bits=22),
         Refused("cluster_bits", "is 22")),
    Case("cluster-bits-76", "v3", header(cluster_bits=76),
         Refused("cluster_bits", "is 76")),
    Case("cluster-bits-2e32", "v3", header(cluster_bits=U32),
         Refused("cluster_bits", "is 4294967295")),
    Case("cluster-bits-wrong", "v3", header(cluster_bits=13),
         Refused("l1_table_offset", "0x3000", "8192")),

    Case("header-length-0", "v3", header(header_length=0),
         Refused("header_length", "is 0")),
    Case("header-length-103", "v3", header(header_length=103),
         Refused("header_length", "is 103")),
    Case("header-length-4097", "v3", header(header_length=4097),
         Refused("header_length", "is 4097")),
    Case("header-length-2e32", "v3", header(header_length=U32),
         Refused("header_length", "is 4294967295")),
    # Not a multiple of 8, which QEMU takes as well.
    Case("header-length-105", "v3", longer_header(105), Serves()),
    Case("header-length-200", "v3", longer_header(200), Serves()),
    # Of the compression type's eight bytes only the first means anything.
    Case("header-padding", "v3", poke(105, 4, U32), Serves()),

    Case("size-2e64", "v3", header(size=U64),
         Refused("size", "18446744073709551615")),
    Case("size-2e63", "v3", header(size=1 << 63),
         Refused("size", "9223372036854775808")),
    Case("size-beyond-l1", "v3", header(size=2 * M + 1),
         Refused("l1_size", "is 1", "2097153")),
    Case("size-odd", "v3", lambda i, m: (
        header(size=1000001)(i, m), i.guest.__delitem__(
            slice(1000001, None))), Serves()),
    Case("size-1", "v3", lambda i, m: (
        header(size=1)(i, m), i.guest.__delitem__(
            slice(1, None))), Serves()),
    Case("size-0", "v3", lambda i, m: (
        header(size=0)(i, m), i.guest.clear()), Serves()),

    Case("crypt-1", "v3", header(crypt_method=1),
         Refused("crypt_method", "AES")),
    Case("crypt-2", "v3", header(crypt_method=2),
         Refused("crypt_method", "2 (LUKS)")),
    Case("crypt-3", "v3", header(crypt_method=3),
         Refused("crypt_method", "is 3")),
    Case("crypt-1-v2", "v2", header(crypt_method=1),
         Refused("crypt_method", "AES")),

    Case("l1-size-0", "v3", header(l1_size=0), Refused("l1_size", "is 0")),
    Case("l1-size-2e32", "v3", header(l1_size=U32),
         Refused("l1_size", "is 4294967295")),
    Case("l1-size-out-of-file", "v3", header(l1_size=4 * M),
         Refused("l1_table_offset", "33554432 bytes")),
    Case("l1-size-larger", "v3", first(
        lambda i, m: header(l1_table_offset=i.new_clusters())(i, m),
        header(l1_size=512),
        lambda i, m: i.guest.__setitem__(slice(None), bytes(M))), Serves()),
    Case("l1-offset-unaligned", "v3", header(l1_table_offset=0x3200),
         Refused("l1_table_offset", "0x3200", "4096")),
    Case("l1-offset-0", "v3", header(l1_table_offset=0),
         Refused("l1_table_offset", "is 0")),
    Case("l1-offset-past-end", "v3", header(l1_table_offset=0x1000000),
         Refused("l1_table_offset", "0x1000000")),
    Case("l1-offset-2e56", "v3", header(l1_table_offset=(1 << 56) - 4096),
         Refused("l1_table_offset", "0xfffffffffff000")),
    Case("l1-offset-2e64", "v3", header(l1_table_offset=U64 - 4095),
         Refused("l1_table_offset", "0xfffffffffffff000")),
    Case("l1-at-refcount-table", "v3", lambda i, m: header(
        l1_table_offset=i["refcount_table_offset"])(i, m),
        ReadOnly("L1 table", "refcount table", "0x1000", reads=False)),

    Case("reftable-unaligned", "v3", header(refcount_table_offset=0x1100),
         Refused("refcount_table_offset", "0x1100", "4096")),
    Case("reftable-0", "v3", header(refcount_table_offset=0),
         Refused("refcount_table_offset", "is 0")),
    Case("reftable-past-end", "v3",
         header(refcount_table_offset=0x1000000),
         Refused("refcount_table_offset", "0x1000000")),
    Case("reftable-2e64", "v3", header(refcount_table_offset=U64 - 4095,
                                       refcount_table_clusters=2),
         Refused("refcount_table_offset", "0xfffffffffffff000")),
    Case("reftable-clusters-0", "v3", header(refcount_table_clusters=0),
         Refused("refcount_table_clusters", "is 0")),
    Case("reftable-clusters-2e32", "v3",
         header(refcount_table_clusters=U32),
         Refused("refcount_table_clusters", "is 4294967295")),
    Case("reftable-clusters-2049", "v3", first(
        header(refcount_table_clusters=2049), sparse(T)),
        Refused("refcount_table_clusters", "is 2049")),
    Case("reftable-out-of-file", "v3", header(refcount_table_clusters=2048),
         Refused("refcount_table_offset", "8388608 bytes")),
    # Counts are taken for entries, which is seen before what lies where.
    Case("reftable-over-others", "v3", header(refcount_table_clusters=3),
         ReadOnly("refcount block", "0x1000100010001", reads=False)),

    Case("nb-snapshots-65537", "v3", header(
        nb_snapshots=65537, snapshots_offset=0x3000),
        Refused("nb_snapshots", "is 65537")),
    Case("nb-snapshots-2e32", "v3", header(
        nb_snapshots=U32, snapshots_offset=0x3000),
        Refused("nb_snapshots", "is 4294967295")),
    Case("nb-snapshots-out-of-file", "v3", header(
        nb_snapshots=65536, snapshots_offset=0x3000),
        Refused("snapshots_offset", "2621440 bytes")),
    Case("snapshots-offset-unaligned", "v3", header(snapshots_offset=0x3001),
         Refused("snapshots_offset", "0x3001")),
    Case("snapshots-offset-0", "v3", header(nb_snapshots=1),
         Refused("snapshots_offset", "is 0")),
    Case("snapshots-offset-past-end", "v3", header(
        nb_snapshots=1, snapshots_offset=0x1000000),
        Refused("snapshots_offset", "0x1000000")),
]

FEATURE_CASES = [
    Case("dirty", "v3", header(incompatible=1),
         Serves("is dirty", "repairing")),
    Case("dirty-overlapping", "v3", first(
        header(incompatible=1), l1_entry(0x1000 | COPIED,
                                         unreadable=False)),
         ReadOnly("L2 table", "refcount table", "0x1000", reads=False)),
    Case("dirty-and-corrupt", "v3", header(incompatible=3),
         ReadOnly("marked corrupt", "qcow2-overlap check")),
    Case("corrupt", "v3", header(incompatible=2),
         ReadOnly("marked corrupt", "qcow2-overlap check")),
    Case("data-file", "data_file", nothing, Serves()),
    Case("data-file-raw", "data_raw", nothing, Serves()),
    Case("data-file-extended", "data_extl2", nothing, Serves()),
    Case("data-file-bit", "v3", header(incompatible=4),
         Refused("external data file", "data-file=")),
    Case("data-file-outside", "data_file", data_file_name(
        b"/etc/hostname"), Refused("/etc/hostname", "external-files")),
    Case("data-file-json", "data_file", data_file_name(
        b'json:{"driver":"file","filename":"/etc/hostname"}'),
        Refused("json:", "external-files")),
    Case("data-file-nbd-old", "data_file", data_file_name(
        b"nbd:localhost:10809"), Refused("nbd:", "external-files")),
    Case("data-file-missing", "data_file", data_file_name(b"none.data"),
         Refused("none.data", "No such file")),
    Case("data-file-fifo", "data_file", data_file_fifo,
         Refused("data file", "fifo.data")),
    Case("data-file-link", "data_file", data_file_link,
         Refused("link.data", "external-files")),
    Case("data-file-itself", "data_file", data_file_name(
        b"data-file-itself.qcow2"), Refused("data file", "the image itself")),
    Case("data-file-in-chain", "data_file", data_file_in_chain(),
         Refused("leads back", file="both.raw")),
    Case("data-file-in-part", "data_file", data_file_in_chain(
        b'json:{"driver":"raw","offset":4096,"file.filename":"both.raw"}'),
        Refused("leads back", file="both.raw")),
    Case("data-file-snapshots", "snapshots", first(
        header(incompatible=4), extension(DATA_FILE, b"x")),
        Refused("nb_snapshots", "is 2", "external data file")),
    Case("data-file-raw-backing", "data_raw", first(
        extension(BACKING_FORMAT, b"raw"),
        lambda i, m: i.rewrite(None, b"base.raw")),
        Refused("autoclear_features", "backing file")),
    Case("data-file-short", "data_file", data_file_length(10000), Serves()),
    Case("data-file-raw-short", "data_raw", data_file_length(10000),
         Serves("data file", "10000 bytes")),
    Case("data-file-empty", "data_file", data_file_length(0), Serves()),
    Case("backing-data-file", "overlay", data_file_of_backing, Serves()),
    Case("extended-l2", "extl2", nothing, Serves()),
    Case("extended-l2-4k", "v3", header(incompatible=16),
         Refused("cluster_bits", "is 12", "extended L2")),
    Case("unknown-feature", "v3", header(incompatible=1 << 63),
         Refused("incompatible_features", "bit 63")),
    Case("unknown-feature-named", "v3", first(
        extension(FEATURE_NAMES, feature(0, 40, b"time travel")),
        header(incompatible=1 << 40)),
        Refused("incompatible_features", "bit 40 (time travel)")),
    Case("unknown-compatible", "v3", header(compatible=U64 - 1), Serves()),
    Case("lazy-refcounts", "v3", header(compatible=1), Serves()),
    Case("unknown-autoclear", "v3", header(autoclear=U64 - 3), Serves()),
    Case("bitmaps-without-extension", "v3", header(autoclear=1),
         Refused("autoclear_features", "0x1", "bitmaps")),
    Case("raw-without-data-file", "v3", header(autoclear=2),
         Refused("autoclear_features", "0x2", "external data file")),
    Case("refcount-order-7", "v3", header(refcount_order=7),
         Refused("refcount_order", "is 7")),
    Case("refcount-order-2e32", "v3", header(refcount_order=U32),
         Refused("refcount_order", "is 4294967295")),
    Case("zstd-without-bit", "v3", header(compression_type=1),
         Refused("compression_type", "is 1", "bit 3")),
    Case("bit-without-zstd", "v3", header(incompatible=8),
         Refused("compression_type", "is 0", "bit 3")),
    Case("compression-2", "v3", header(incompatible=8, compression_type=2),
         Refused("compression_type", "is 2")),
    Case("bit-without-field", "zstd", header(header_length=104),
         Refused("compression_type", "is 0", "bit 3")),
]

EXTENSION_CASES = [
    Case("extension-unknown", "v3", extension(0x1234, b"?"), Serves()),
    Case("extension-too-long", "v3", extension_length(FEATURE_NAMES, 4000),
         Refused("0x6803f857", "4000 bytes")),
    Case("extension-2e32", "v3", extension_length(FEATURE_NAMES, U32),
         Refused("0x6803f857", "4294967295 bytes")),
    Case("extension-2e32-7", "v3", extension_length(FEATURE_NAMES, U32 - 7),
         Refused("0x6803f857", "4294967288 bytes")),
    Case("extension-into-name", "overlay", extension_length(
        BACKING_FORMAT, 1000), Refused("0xe2792aca", "1000 bytes")),
    Case("extension-twice", "overlay", extension(BACKING_FORMAT, b"raw"),
         Refused("0xe2792aca", "more than once")),
    Case("extension-unknown-twice", "v3", first(
        extension(0x1234, b"?"), extension(0x1234, b"!")), Serves()),
    Case("extension-format-nul", "overlay", backing(b"base.raw", b"ra\0w"),
         Refused("backing file format", "NUL")),
    Case("extension-format-16", "overlay", backing(b"base.raw", b"r" * 16),
         Refused("backing file format", "16 bytes")),
    Case("extension-crypto", "v3", extension(CRYPTO, bytes(16)),
         Refused("crypt_method", "crypto header")),
    Case("extension-crypto-offset", "luks", lambda i, m: i.put(
        i.extension_place(CRYPTO) + 8, 8, U64 - 65535),
        Refused("crypto header", "0xffffffffffff0000")),
    Case("extension-data-file", "v3", extension(DATA_FILE, b"d" * 1024),
         Refused("external data file name", "1024 bytes")),
    Case("extensions-without-end", "v3", full_of_extensions, Serves()),
    Case("extension-padding", "v3", padding, Serves()),
    Case("extensions-and-rubbish", "v3", behind_extensions, Serves()),
    Case("extension-crypto-length", "luks", extension_length(CRYPTO, 15),
         Refused("crypto header", "15 bytes")),
    Case("extension-crypto-unaligned", "luks", lambda i, m: i.put(
        i.extension_place(CRYPTO) + 8, 8, 0x30001),
        Refused("crypto header", "0x30001")),
    Case("extension-crypto-size", "luks", lambda i, m: i.put(
        i.extension_place(CRYPTO) + 16, 8, U64),
        Refused("crypto header", "18446744073709551615")),
    Case("extension-crypto-longer", "luks", lambda i, m: i.put(
        i.extension_place(CRYPTO) + 16, 8, 1 << 40),
        Refused("crypto header", "1099511627776")),
    Case("extension-crypto-end", "luks", lambda i, m: i.put(
        i.extension_place(CRYPTO) + 16, 8, 8 * M),
        Refused("crypto header", "8388608")),
    Case("feature-names-odd", "v3", first(
        extension(FEATURE_NAMES, feature(0, 40, b"x" * 46) + b"y"),
        header(incompatible=1 << 40)),
        Refused("incompatible_features", "bit 40")),
    Case("feature-names-empty", "v3", extension(FEATURE_NAMES, b""),
         Serves()),
]



def luks_case(name, damage, *words):
    """A header that cannot be opened, with the right passphrase."""
    return Case("luks-" + name, "luks", damage, Refused(*words),
                passphrase="abc")


ENCRYPTION_CASES = [
    Case("luks", "luks", nothing, Refused("encrypted", "LUKS")),
    Case("aes", "aes", nothing, Refused("encrypted", "AES")),
    Case("sound-luks", "luks", nothing, Serves(), passphrase="abc"),
    Case("sound-aes", "aes", nothing, Serves("legacy AES"),
         passphrase="abc"),
    Case("luks-wrong", "luks", nothing, Refused("passphrase is wrong"),
         passphrase="abd"),
    Case("luks-empty", "luks", nothing, Refused("passphrase is wrong"),
         passphrase=""),
    Case("passphrase-for-plain", "v3", nothing,
         Refused("passphrase=", "not encrypted"), passphrase="abc"),
    luks_case("magic", luks(0, b"LUCK"), "magic", "0x4c55434bbabe"),
    luks_case("version-2", luks_field(6, 2, 2), "version", "is 2"),
    luks_case("cipher", luks(8, b"rot13\0"), "rot13-xts-plain64"),
    luks_case("cipher-32", luks(8, b"a" * 32), "cipher-name", "31 bytes"),
    luks_case("mode", luks(40, b"xts-plain46\0"), "aes-xts-plain46"),
    luks_case("mode-empty", luks(40, bytes(32)), "cipher-mode", "empty"),
    luks_case("hash", luks(72, b"sha255"), "hash-spec", "sha255"),
    luks_case("hash-control", luks(72, b"\x1b[2J"), "hash-spec"),
    luks_case("key-bytes-0", luks_field(108, 4, 0), "key-bytes", "is 0"),
    luks_case("key-bytes-2e32", luks_field(108, 4, U32), "key-bytes",
              "4294967295"),
    luks_case("key-bytes-48", luks_field(108, 4, 48), "passphrase is wrong"),
    luks_case("key-bytes-40", luks_field(108, 4, 40), "40 bytes",
              "not supported"),
    luks_case("digest", luks(112, bytes(20)), "passphrase is wrong"),
    luks_case("digest-iterations", luks_field(164, 4, U32), "iterations",
              "more than 268435456"),
    luks_case("slot-state", luks_slot(1, 0, 7), "key slot 1", "0x7"),
    luks_case("slots-inactive", luks_slot(0, 0, 0xdead), "no key slot"),
    luks_case("slot-garbage", first(luks_slot(0, 0, 0xdead),
                                    luks_slot(3, 0, 0x00ac71f3)),
              "key slot 3", "iterations", "is 0"),
    luks_case("iterations-0", luks_slot(0, 4, 0), "key slot 0", "is 0"),
    luks_case("iterations-2e32", luks_slot(0, 4, U32), "iterations",
              "more than 268435456"),
    luks_case("material-0", luks_slot(0, 40, 0), "key-material-offset",
              "sector 0"),
    luks_case("material-2e32", luks_slot(0, 40, U32), "key-material-offset",
              "sector 4294967295"),
    luks_case("material-damaged", luks(4096, bytes(512)),
              "passphrase is wrong"),
    luks_case("stripes-2e32", luks_slot(0, 44, U32), "stripes",
              "4294967295"),
    luks_case("cut", lambda i, m: i.put(
        i.extension_place(CRYPTO) + 16, 8, 591), "591 bytes"),
    luks_case("cut-in-material", lambda i, m: i.put(
        i.extension_place(CRYPTO) + 16, 8, 100000), "key-material-offset",
        "100000 bytes"),
    luks_case("long", first(sparse(1 << 40), lambda i, m: i.put(
        i.extension_place(CRYPTO) + 16, 8, 1 << 39)), "crypto header",
        "549755813888"),
    luks_case("elsewhere", lambda i, m: i.put(
        i.extension_place(CRYPTO) + 8, 8, i["l1_table_offset"]), "magic"),
]

BITMAP_CASES = [
    Case("bitmaps-length", "v3", first(
        header(autoclear=1), extension(BITMAPS, bytes(23))),
        Refused("bitmaps extension", "23 bytes")),
    Case("bitmaps-stale", "v3", extension(
        BITMAPS, bitmaps(U32, U64, 12345)), Serves("bitmaps are not used")),
    Case("bitmaps-reserved", "bitmaps", bitmaps_field(4, 4, 1),
         Refused("reserved field", "0x1")),
    Case("bitmaps-none", "bitmaps", bitmaps_field(0, 4, 0),
         Refused("nb_bitmaps", "is 0")),
    Case("bitmaps-2e32", "bitmaps", bitmaps_field(0, 4, U32),
         Refused("nb_bitmaps", "is 4294967295")),
    Case("bitmaps-size-2e64", "bitmaps", bitmaps_field(8, 8, U64),
         Refused("bitmap_directory_size", "18446744073709551615")),
    Case("bitmaps-size-out-of-file", "bitmaps", bitmaps_field(8, 8, 64 * M),
         Refused("bitmap_directory_size", "67108864")),
    Case("bitmaps-offset-past-end", "bitmaps",
         bitmaps_field(16, 8, U64 - 4095),
         Refused("bitmap_directory_offset", "0xfffffffffffff000")),
    Case("bitmaps-offset-unaligned", "bitmaps",
         bitmaps_field(16, 8, 0x3001),
         Refused("bitmap_directory_offset", "0x3001")),
    # The directory is for those who use bitmaps; the disk is served.
    Case("bitmap-type", "bitmaps", directory_field(16, 1, 7),
         Serves("entry 0", "type is 7")),
    Case("bitmap-table-size", "bitmaps", directory_field(8, 4, U32),
         Serves("entry 0", "bitmap_table_size is 4294967295")),
    Case("bitmap-table-offset", "bitmaps", directory_field(
        0, 8, U64 - 4095), Serves("entry 0", "0xfffffffffffff000")),
    Case("bitmap-name-size", "bitmaps", directory_field(18, 2, 0xffff),
         Serves("entry 0", "ends at byte")),
    Case("bitmap-table-at-header", "bitmaps", directory_field(0, 8, 0),
         Serves("entry 0", "bitmap_table_offset is 0x0")),
    Case("bitmap-flags", "bitmaps", directory_field(12, 4, 0x80),
         Serves("entry 0", "flags")),
    Case("bitmap-flags-extra", "bitmaps", directory_field(12, 4, 6),
         Serves()),
    Case("bitmap-name-0", "bitmaps", directory_field(18, 2, 0),
         Serves("entry 0", "name")),
    Case("bitmap-name-1024", "bitmaps", directory_field(18, 2, 1024),
         Serves("entry 0", "name")),
    Case("bitmap-name-twice", "bitmaps", name_twice,
         Serves("two bitmaps", "'weekly'")),
    Case("bitmap-granularity", "bitmaps", directory_field(17, 1, 64),
         Serves("entry 0", "granularity")),
    Case("bitmap-extra", "bitmaps", directory_field(20, 4, U32),
         Serves("entry 0", "ends at byte 4294967328")),
    Case("bitmaps-more", "bitmaps", bitmaps_field(0, 4, 3),
         Refused("bitmap_directory_size", "nb_bitmaps, which is 3")),
    Case("bitmaps-less", "bitmaps", bitmaps_field(0, 4, 1),
         Serves("bitmap directory")),
    # Each bitmap for itself.
    Case("bitmap-in-use", "bitmaps", directory_field(12, 4, 3),
         Serves("'daily'", "inconsistent")),
    Case("bitmap-granularity-8", "bitmaps", directory_field(17, 1, 8),
         Serves("'daily'", "granularity is not supported")),
    Case("bitmap-granularity-32", "bitmaps", directory_field(17, 1, 32),
         Serves("'daily'", "granularity is not supported")),
    Case("bitmap-table-short", "wide_bitmap", directory_field(17, 1, 9),
         Serves("'daily'", "too short for the disk", reads=False)),
    Case("bitmap-entry-reserved", "bitmaps", bitmap_table_entry(2),
         Serves("'daily'", "bitmap table entry 0 is 0x2")),
    Case("bitmap-entry-ones", "bitmaps", bitmap_table_entry(1), Serves()),
    Case("bitmap-data-unaligned", "bitmaps", bitmap_table_entry(0x200),
         ReadOnly("bitmap", "0x200", "4096")),
    Case("bitmap-data-past-end", "bitmaps",
         bitmap_table_entry((1 << 56) - 4096),
         ReadOnly("bitmap", "0xfffffffffff000")),
    Case("bitmap-data-at-header", "bitmaps", bitmap_table_entry(0x1000),
         ReadOnly("bitmap", "refcount table", "0x1000")),
]

TABLE_CASES = [
    Case("reftable-entry-unaligned", "v3", refcount_table_entry(
        lambda i, old: old | 0x200),
        ReadOnly("refcount block", "2200", "4096")),
    Case("reftable-entry-past-end", "v3", refcount_table_entry(0x1000000),
         ReadOnly("refcount block", "0x1000000")),
    Case("reftable-entry-2e64", "v3", refcount_table_entry(U64 - 4095),
         ReadOnly("refcount block", "0xfffffffffffff000")),
    Case("reftable-entry-at-header", "v3", refcount_table_entry(0x1000),
         ReadOnly("refcount block", "0x1000", "refcount table")),
    Case("reftable-entry-twice", "v3", lambda i, m: i.put(
        i.refcount_table_place(1), 8, i.get(i.refcount_table_place(0), 8)),
        ReadOnly("refcount block", "0x2000")),
    Case("reftable-entry-reserved", "v3", refcount_table_entry(
        lambda i, old: old | 1), ReadOnly("refcount block", "2001", "4096")),
    Case("reftable-entry-0", "v3", refcount_table_entry(0),
         WriteFails("reference count of 0", at=12 * K)),
    Case("refcount-0", "v3", refcount_of_data(0),
         WriteFails("reference count of 0", at=12 * K)),
    # What is in use but not counted is not handed out.
    Case("refcount-of-l2-0", "v3", refcount_of_table(0, "l2"),
         WriteFails("overlaps with active L2 table", at=512 * K)),
    Case("refcount-of-l1-0", "v3", refcount_of_table(0, "l1"),
         WriteFails("overlaps with active L1 table", at=512 * K)),
    Case("refcount-of-reftable-0", "v3", refcount_of_table(0, "reftable"),
         WriteFails("overlaps with refcount table", at=512 * K)),
    Case("refcount-of-header-0", "v3", refcount_of_table(0, "header"),
         WriteFails("header's cluster", "reference count is 0",
                    at=512 * K)),
    Case("refcounts-all-0", "v3", refcounts_all(0),
         WriteFails("header's cluster", at=512 * K)),
    Case("refcount-2-of-l2", "v3", refcount_of_table(2, "l2"), Serves(
        "L1 entry 0", "reference count of 2")),
    Case("refcount-65535", "v3", refcount_of_data(65535), Serves(
        "guest offset 12288", "reference count of 65535")),
    # Too high is a leak at worst: the cluster is copied.
    Case("refcount-2", "v3", refcount_of_data(2), Serves(
        "guest offset 12288", "reference count of 2")),

    Case("l1-entry-unaligned", "v3", l1_entry(0x4200 | COPIED),
         ReadOnly("L2 table", "0x4200", "4096")),
    Case("l1-entry-half-past-end", "v3", l1_entry(
        lambda i: len(i.data) - 512 | COPIED),
        ReadOnly("L2 table", "0x14e00", "4096")),
    Case("l1-entry-past-end", "v3", l1_entry(0x1000000 | COPIED),
         ReadOnly("L2 table", "0x1000000")),
    Case("l1-entry-2e56", "v3", l1_entry((1 << 56) - 4096 | COPIED),
         ReadOnly("L2 table", "0xfffffffffff000")),
    Case("l1-entry-at-l1", "v3", l1_entry(
        lambda i: i["l1_table_offset"] | COPIED, unreadable=False),
        ReadOnly("L2 table", "L1 table", reads=False)),
    Case("l1-entry-at-reftable", "v3", l1_entry(0x1000 | COPIED,
                                                unreadable=False),
         ReadOnly("L2 table", "refcount table", "0x1000", reads=False)),
    Case("l1-entry-reserved", "v3", l1_entry(
        lambda i: i.get(i.l1_place(0), 8) | 0x7f << 56 | 0x1ff,
        unreadable=False), Serves()),
    Case("l1-entry-not-copied", "v3", l1_entry(
        lambda i: i.get(i.l1_place(0), 8) & ~COPIED, unreadable=False),
        Serves()),
    Case("l1-entry-reserved-0", "v3", first(l1_entry(
        1, unreadable=False), lambda i, m: i.guest.__setitem__(
            slice(None), bytes(M))), Serves()),
    Case("l1-entry-copied-0", "v3", first(l1_entry(
        COPIED, unreadable=False), lambda i, m: i.guest.__setitem__(
            slice(None), bytes(M))), Serves()),
    Case("l1-entries-same", "wide", shared_l2(2),
         ReadOnly("active L2 table", reads=False)),
    Case("l1-entries-same-1000000", "wide", shared_l2(M),
         ReadOnly("active L2 table", reads=False, lenient=True)),
    Case("l1-largest", "wide", first(header(
        l1_table_offset=G, l1_size=4 * M, size=4 * M * 2 * M),
        sparse(G + 32 * M)), Serves(lenient=True, reads=False)),

    Case("l2-entry-unaligned", "v3", l2_entry(
        lambda i, old: old | 0x200),
        ReadFails("L2 entry", "200", "guest offset 12288")),
    Case("l2-entry-past-end", "v3", l2_entry(0x1000000 | COPIED),
         ReadFails("0x8000000001000000", "guest offset 12288")),
    Case("l2-entry-2e56", "v3", l2_entry((1 << 56) - 4096 | COPIED),
         ReadFails("0x80fffffffffff000", "guest offset 12288")),
    Case("l2-entry-copied-0", "v3", l2_entry(COPIED),
         ReadFails("0x8000000000000000", "guest offset 12288")),
    Case("l2-entry-not-copied", "v3", first(
        l2_entry(lambda i, old: old & ~COPIED, 12 * K, False),
        l2_entry(lambda i, old: old & ~COPIED, 16 * K, False)), Serves()),
    Case("l2-entry-zero-v2", "v2", l2_entry(1),
         ReadFails("0x0000000000000001", "guest offset 12288")),
    Case("l2-entry-zero-kept-v2", "v2", l2_entry(lambda i, old: old | 1),
         ReadFails("guest offset 12288", "version 2")),
    Case("l2-entry-reserved-low", "v3", l2_entry(
        lambda i, old: old | 0x1fe, unreadable=False), Serves()),
    Case("l2-entry-reserved-high", "v3", l2_entry(
        lambda i, old: old | 0x3f << 56, unreadable=False), Serves()),
    Case("l2-entry-at-header", "v3", l2_entry(COPIED | 0x1000,
                                              unreadable=False),
         WriteFails("refcount table", at=12 * K, reads=False)),
]

EXTENDED_CASES = [
    # In a data file a cluster is where the guest sees it.
    Case("data-file-elsewhere", "data_file", l2_entry(
        lambda i, old: old + CLUSTER), ReadFails("offset of the data file")),
    Case("data-file-far", "data_file", l2_entry(
        lambda i, old: old | 1 << 50), ReadFails("offset of the data file")),
    Case("data-file-unaligned", "data_file", l2_entry(
        lambda i, old: old | 512), ReadFails("is invalid")),
    Case("data-file-compressed", "data_file", l2_entry(
        lambda i, old: old & OFFSET | COMPRESSED), ReadFails("is invalid")),
    Case("data-file-not-copied", "data_file", l2_entry(
        lambda i, old: old & OFFSET, unreadable=False), Serves()),
    Case("data-file-raw-not-copied", "data_raw", l2_entry(
        lambda i, old: old & OFFSET, unreadable=False), Serves()),
    Case("data-file-first-not-copied", "data_file", first(l2_entry(
        0, guest=0, unreadable=False), lambda i, m: i.guest.__setitem__(
            slice(0, CLUSTER), bytes(CLUSTER))), Serves()),
    Case("data-file-reserved-bit", "data_file", l2_entry(
        lambda i, old: old | 1 << 56, unreadable=False), Serves()),
    Case("data-file-extended-both", "data_extl2", l2_bitmap(
        lambda old: old | 1 << 32, 0), ReadFails("is invalid")),
    Case("data-file-extended-no-offset", "data_extl2", l2_bitmap(
        lambda old: old, 0, word=0), ReadFails("is invalid")),
    Case("extended-zero", "extl2", zero_subcluster(33 * K), Serves()),
    Case("extended-bit-0", "extl2", l2_entry(
        lambda i, old: old | 1, 32 * K, unreadable=False), Serves()),
    Case("extended-both", "extl2", l2_bitmap(
        lambda old: old | 1 << 32 + 7, 32 * K),
        ReadFails("L2 entry", "bitmap", "guest offset 32768", "both")),
    Case("extended-both-in-last", "extl2", l2_bitmap(
        lambda old: old | 1 << 63, 32 * K),
        ReadFails("L2 entry", "bitmap", "guest offset 32768", "both")),
    Case("extended-no-offset", "extl2", l2_bitmap(
        lambda old: 1 << 31, 32 * K, word=lambda i, old: 0),
        ReadFails("L2 entry", "0x0000000080000000", "without an offset")),
    Case("extended-copied-0", "extl2", l2_bitmap(
        lambda old: 0, 32 * K, word=lambda i, old: COPIED),
        ReadFails("L2 entry", "0x8000000000000000", "without an offset")),
    Case("extended-unaligned", "extl2", l2_entry(
        lambda i, old: old | 0x200, 32 * K),
        ReadFails("L2 entry", "200", "guest offset 32768")),
    Case("extended-past-end", "extl2", l2_entry(
        0x1000000 | COPIED, 32 * K), ReadFails("0x8000000001000000")),
    Case("extended-compressed", "extl2_deflate", nothing, Serves()),
    Case("extended-compressed-bitmap", "extl2_deflate", l2_bitmap(
        lambda old: 1, 32 * K),
        ReadFails("L2 entry", "bitmap with a compressed cluster")),
]

TRIM_CASES = [
    Case("trim-refcount-table", "v3", l2_entry(
        COPIED | 0x1000, unreadable=False),
        TrimFails("refcount table", at=12 * K, reads=False)),
    Case("trim-l1", "v3", l2_entry(
        lambda i, old: COPIED | i["l1_table_offset"], unreadable=False),
        TrimFails("L1 table", at=12 * K, reads=False)),
    Case("trim-l2", "v3", l2_entry(
        lambda i, old: i.get(i.l1_place(0), 8), unreadable=False),
        TrimFails("L2 table", at=12 * K, reads=False)),
    Case("trim-snapshot-l1", "snapshots", l2_entry(
        lambda i, old: COPIED | i.get(next(iter(i.snapshot_places())), 8),
        unreadable=False),
        TrimFails("inactive L1", at=12 * K, reads=False)),
    Case("trim-compressed-at-header", "deflate", l2_entry(COMPRESSED),
         TrimFails("qcow2 header", at=12 * K, reads=False)),
    Case("trim-unaligned", "v3", l2_entry(lambda i, old: old | 0x200),
         TrimFails("L2 entry", at=12 * K, reads=False)),
]

COMPRESSED_CASES = [
    Case("sound-deflate", "deflate", nothing, Serves()),
    Case("sound-deflate-v2", "deflate_v2", nothing, Serves()),
    Case("sound-zstd", "zstd", nothing, Serves()),
    Case("deflate-garbage", "deflate", stream(12 * K, 40),
         ReadFails("compressed", "guest offset 12288")),
    Case("deflate-v2-garbage", "deflate_v2", stream(12 * K, 40),
         ReadFails("compressed", "guest offset 12288")),
    Case("zstd-garbage", "zstd", stream(12 * K, 40),
         ReadFails("compressed", "guest offset 12288")),
    Case("zstd-cut", "zstd", stream(12 * K, 480, lambda old: (
        old[:20] + bytes(460))),
         ReadFails("compressed", "guest offset 12288")),
    Case("zstd-too-long", "zstd", stream(12 * K, 10, bytes.fromhex(
        "28b52ffd0038038400" "77")),
        ReadFails("compressed", "guest offset 12288")),
    Case("zstd-huge-window", "zstd", stream(12 * K, 10, bytes.fromhex(
        "28b52ffd00a8030002" "77")),
        ReadFails("compressed", "guest offset 12288")),
    Case("compressed-past-end", "deflate", l2_entry(
        0x1000000 | COMPRESSED),
        ReadFails("0x4000000001000000", "guest offset 12288")),
    Case("compressed-cut-sector", "deflate", cut_after_stream, Serves()),
    Case("compressed-bit-56", "deflate", l2_entry(
        lambda i, old: old | 1 << 56),
        ReadFails("past the end of the file", "guest offset 12288")),
    Case("compressed-at-header", "deflate", l2_entry(COMPRESSED),
         ReadFails("compressed", "guest offset 12288")),
    Case("compressed-copied", "deflate", l2_entry(
        lambda i, old: old | COPIED, unreadable=False), Serves()),
    Case("compressed-more-sectors", "deflate", l2_entry(
        lambda i, old: old | 0xf << 58, unreadable=False), Serves()),
    Case("deflate-is-zstd", "deflate", first(
        header(incompatible=8, compression_type=1),
        lambda i, m: i.cannot_read(0, 64 * K)),
        ReadFails("compressed", "guest offset")),
]

SNAPSHOT_CASES = [
    Case("snapshot-table-cut", "snapshots", snapshot_field(14, 2, 0xffff),
         ReadOnly("snapshot table entry 1", "bytes of it")),
    Case("snapshot-table-at-l1", "snapshots", lambda i, m: header(
        snapshots_offset=i["l1_table_offset"])(i, m), ReadOnly("snapshot")),
    Case("snapshot-extra-1025", "snapshots", snapshot_field(36, 4, 1025),
         ReadOnly("snapshot table entry 1", "extra_data_size is 1025")),
    Case("snapshot-extra-2e32", "snapshots", snapshot_field(36, 4, U32),
         ReadOnly("snapshot table entry 1", "extra_data_size is 429496729")),
    Case("snapshot-l1-unaligned", "snapshots", snapshot_field(
        0, 8, 0x3001), ReadOnly("snapshot table entry 1", "0x3001")),
    Case("snapshot-l1-0", "snapshots", snapshot_field(0, 8, 0),
         ReadOnly("snapshot table entry 1", "l1_table_offset is 0")),
    Case("snapshot-l1-past-end", "snapshots", snapshot_field(
        0, 8, 0x1000000), ReadOnly("snapshot table entry 1", "0x1000000")),
    Case("snapshot-l1-2e64", "snapshots", snapshot_field(
        0, 8, U64 - 4095),
        ReadOnly("snapshot table entry 1", "0xfffffffffffff000")),
    Case("snapshot-l1-size", "snapshots", snapshot_field(8, 4, U32),
         ReadOnly("snapshot table entry 1", "l1_size is 4294967295")),
    Case("snapshot-l1-size-out-of-file", "snapshots", snapshot_field(
        8, 4, 4 * M), ReadOnly("snapshot table entry 1", "33554432")),
    Case("snapshot-l1-active", "snapshots", snapshot_field(
        0, 8, lambda i: i["l1_table_offset"]), ReadOnly("L1 table")),
    Case("snapshot-l1-shared", "snapshots", snapshot_field(
        0, 8, lambda i: i.get(next(iter(i.snapshot_places())), 8)),
        ReadOnly("inactive L1 table")),
    Case("snapshot-l2-past-end", "snapshots", snapshot_l1_entry(0x1000000),
         ReadOnly("inactive L2 table", "0x1000000")),
    Case("snapshot-l2-2e56", "snapshots", snapshot_l1_entry(
        (1 << 56) - 4096), ReadOnly("inactive L2 table", "0xfffffffffff000")),
    Case("snapshot-l2-unaligned", "snapshots", snapshot_l1_entry(0x4200),
         ReadOnly("inactive L2 table", "0x4200")),
    Case("snapshot-l2-at-l1", "snapshots", snapshot_l1_entry(
        lambda i: i["l1_table_offset"]), ReadOnly("L2 table", "L1 table")),
    Case("snapshot-extra-8", "snapshots", snapshot_field(36, 4, 8),
         Serves()),
    Case("snapshot-extra-64", "snapshots", unknown_extra, Serves()),
    Case("snapshot-disk-size", "snapshots", snapshot_field(48, 8, U64),
         Serves()),
    Case("snapshot-l1-size-0", "snapshots", snapshot_field(8, 4, 0),
         Serves()),
    Case("snapshot-l1-copied", "snapshots", snapshot_l1_entry(
        lambda i: i.get(i.get(next(iter(i.snapshot_places())), 8), 8)
        | COPIED), Serves()),
    Case("snapshots-65536-shared", "wide", many_snapshots(True),
         ReadOnly("inactive L1 table", reads=False, lenient=True)),
    # Nothing but the refcounts, which are all 0, is wrong with these.
    Case("snapshots-65536-in-holes", "wide", many_snapshots(False),
         WriteFails("overlaps with snapshot table", at=12 * K, reads=False,
                    lenient=True)),
]

TRUNCATED_CASES = [
    Case("cut-in-l1", "v3", cut_in_l1, Serves()),
    Case("cut-in-refcount-block", "v3", cut_in_refcount_block, Serves()),
    Case("cut-in-data", "v3", cut_in_data,
         ReadFails("past the end of the file", "guest offset")),
    Case("cut-at-l2", "v3", cut_at_l2,
         ReadOnly("L2 table", "past the end of the file")),
    Case("cut-in-l2", "v3", cut_in_l2, Serves()),
]

CASES = (HEADER_CASES + FEATURE_CASES + EXTENSION_CASES
         + ENCRYPTION_CASES + BITMAP_CASES
         + TABLE_CASES + EXTENDED_CASES + TRIM_CASES + COMPRESSED_CASES
         + SNAPSHOT_CASES + BACKING_CASES + TRUNCATED_CASES)
