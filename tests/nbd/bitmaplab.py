# SPDX-License-Identifier: BSD-3-Clause

"""What is dirty, says QEMU, and says our export.  Bitmaps are sets of
grains: numbers of pieces of the granularity's length."""

from qcow2lab import *                                  # noqa: F401,F403


# What is dirty.

def qemu_dirty(path, name, granularity):
    """The grains that are dirty, says qemu-nbd."""
    context = "qemu:dirty-bitmap:" + name
    handle = nbd.NBD()
    handle.add_meta_context(context)
    # It ends with the handle.
    handle.connect_systemd_socket_activation(
        ["qemu-nbd", "-r", "-B", name, *named(path)])
    found = dirty_grains(handle, context, lambda flags: flags & 1,
                         granularity)
    handle.shutdown()
    return found


def our_dirty(server, name, granularity):
    """The same from our export."""
    handle = server.connect("bitmap:" + name)
    check(handle.is_read_only(), "bitmap:%s can be written", name)
    for flags in set(f for _b, _e, f in whole_map(handle)):
        check(flags in (0, nbd.STATE_HOLE), "status %d", flags)
    return dirty_grains(handle, "base:allocation", lambda flags: flags == 0,
                        granularity)


def dirty_grains(handle, wanted, is_dirty, granularity):
    size = handle.get_size()
    found = set()
    at = 0

    def extent(context, offset, entries, _error):
        nonlocal at
        if context != wanted:
            return 0
        for length, flags in zip(entries[0::2], entries[1::2]):
            if is_dirty(flags):
                found.update(range(offset // granularity,
                                   -(-(offset + length) // granularity)))
            offset += length
        at = offset
        return 0

    while at < size:
        handle.block_status(min(size - at, 1 << 30), at, extent)
    return found


def bitmap_info(path):
    """Name -> set of flags, as qemu-img info has them."""
    data = image_info(path)["format-specific"]["data"]
    return {b["name"]: set(b["flags"]) for b in data.get("bitmaps", [])}


def grains(ranges, granularity):
    found = set()
    for offset, length in ranges:
        found.update(range(offset // granularity,
                           -(-(offset + length) // granularity)))
    return found
