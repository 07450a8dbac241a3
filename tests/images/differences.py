# SPDX-License-Identifier: BSD-3-Clause

"""Where the check and "qemu-img check" do not say the same of a damaged image
of cases.py, and why.  All others are opened by both or by neither, and both
count as many errors and as many leaks; test-check.py holds them to that.

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

# What is refused, and QEMU counts errors in.
REFUSED = {
    "QEMU reads what is not in the file as zeroes, tables too": {
        "file-of-71-bytes", "file-of-72-bytes", "file-of-104-bytes",
        "file-short-cluster", "file-of-one-cluster", "l1-size-out-of-file",
        "l1-offset-past-end", "l1-offset-2e56", "reftable-past-end",
        "reftable-out-of-file", "snapshots-offset-past-end",
    },
    "QEMU takes the header for a table": {
        "l1-offset-0", "reftable-0", "snapshots-offset-0",
    },
    "without a refcount table QEMU opens it for its check alone": {
        "reftable-clusters-0",
    },
    "the specification forbids it, and QEMU does not look": {
        "bitmaps-without-extension", "extension-twice",
        "extension-data-file", "backing-offset-in-header",
        "backing-size-0", "backing-name-nul", "data-file-raw-backing",
        "extension-format-nul",
    },
}

# What is checked, and QEMU does not open or check to its end.
CHECKED = {
    "QEMU needs the passphrase and a sound header, the check neither": {
        "crypt-1", "crypt-1-v2", "luks", "aes", "luks-wrong", "luks-empty",
        "luks-magic", "luks-version-2", "luks-cipher", "luks-cipher-32",
        "luks-mode", "luks-mode-empty", "luks-hash", "luks-hash-control",
        "luks-key-bytes-0", "luks-key-bytes-2e32", "luks-key-bytes-48",
        "luks-key-bytes-40", "luks-digest", "luks-slot-state",
        "luks-slots-inactive", "luks-slot-garbage", "luks-iterations-0",
        "luks-material-0", "luks-material-2e32", "luks-material-damaged",
        "luks-stripes-2e32", "luks-cut", "luks-cut-in-material",
        "luks-elsewhere",
    },
    "QEMU needs the data file, whose clusters are not checked": {
        "data-file-bit", "data-file-json", "data-file-missing",
        "data-file-nbd-old",
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

# Both find errors, but not as many, or other leaks.
NUMBERS = {
    "QEMU reads a table at a place where none can be, and takes what is "
    "there for entries": {
        "l1-entry-unaligned", "l1-entry-copied-0", "snapshot-l2-unaligned",
    },
    "QEMU counts a cluster that begins within another as part of both": {
        "l2-entry-unaligned", "extended-unaligned", "trim-unaligned",
    },
    "QEMU follows a table a second time, as another snapshot's": {
        "trim-snapshot-l1", "snapshot-l1-active", "snapshot-l1-shared",
    },
    "QEMU uses what it can of a broken snapshot table; here nothing of it "
    "is followed, and nothing is taken for a leak in earnest": {
        "snapshot-table-cut", "snapshot-l1-unaligned", "snapshot-l1-0",
        "snapshot-l1-past-end", "snapshot-l1-size",
        "snapshot-l1-size-out-of-file",
    },
}


def names(groups):
    return set().union(*groups.values())
