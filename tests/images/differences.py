# SPDX-License-Identifier: BSD-3-Clause

"""Of which damaged images of cases.py "qemu-img check" gives no answer, and
why, though the check does.  Of all others both count as many errors and as
many leaks, or neither opens them; test-check.py holds them to that.

The numbers are those of QEMU 7.2.
"""

# It would take QEMU minutes, or for ever: a FIFO, 2^32 rounds of key
# derivation, a LUKS header of 2^27 clusters.
NOT_ASKED = {
    "data-file-fifo", "luks-digest-iterations", "luks-iterations-2e32",
    "luks-long",
}

# They have so many clusters, or references, that either takes minutes.
NOT_CHECKED = {
    "l1-entries-same-1000000", "snapshots-65536-in-holes",
    "snapshots-65536-shared",
}

# What is checked, and QEMU does not open or check to its end.
NO_ANSWER = {
    "QEMU needs a sound header of the encryption, the check does not": {
        "luks-magic", "luks-version-2", "luks-cipher", "luks-cipher-32",
        "luks-mode", "luks-mode-empty", "luks-hash", "luks-hash-control",
        "luks-key-bytes-0", "luks-key-bytes-2e32", "luks-key-bytes-48",
        "luks-key-bytes-40", "luks-digest", "luks-slot-state",
        "luks-slots-inactive", "luks-slot-garbage", "luks-iterations-0",
        "luks-material-0", "luks-material-2e32", "luks-material-damaged",
        "luks-stripes-2e32", "luks-cut", "luks-cut-in-material",
        "luks-elsewhere",
    },
    "QEMU does not open an image with a bitmap that it cannot use": {
        "bitmap-type", "bitmap-table-size", "bitmap-table-offset",
        "bitmap-name-size", "bitmap-table-at-header", "bitmap-flags",
        "bitmap-granularity", "bitmap-extra", "bitmaps-less",
        "bitmap-granularity-8", "bitmap-granularity-32",
        "bitmap-table-short", "bitmap-entry-reserved",
        "bitmap-data-unaligned", "bitmap-flags-extra", "bitmap-name-0",
        "bitmap-name-1024", "bitmap-name-twice",
    },
    "QEMU gives up where it cannot read a count, or a snapshot's table": {
        "reftable-entry-unaligned", "reftable-entry-2e64",
        "snapshot-extra-1025", "snapshot-extra-2e32", "snapshot-l1-2e64",
    },
}

def names(groups):
    return set().union(*groups.values())
