/* SPDX-License-Identifier: BSD-3-Clause */

/* What is not plain in L2 entries.
 *
 * The compressed cluster descriptor is the one entry whose layout
 * depends on the cluster size: the low bits hold a byte offset, the rest
 * up to bit 61 a count of further sectors, and the border moves down by
 * one bit for every doubling of the cluster.
 *
 * The bitmap of an extended entry (specification, "Extended L2
 * Entries") takes the place of the zero flag.
 *
 * In an external data file guest data is at its guest offset, so the
 * first cluster's entry has a host offset of 0, which elsewhere means
 * that there is none; COPIED tells the two apart (specification,
 * "Standard Cluster Descriptor").  Takes no locks.
 */

#include <config.h>

#include "l2.h"

bool
l2_compressed_place (uint64_t entry, uint32_t cluster_bits,
                     struct compressed_place *place)
{
  const unsigned count_bits = cluster_bits - 8;
  const unsigned offset_bits = 62 - count_bits;
  const uint64_t offset = entry & ((UINT64_C (1) << offset_bits) - 1);
  const uint64_t more =
    entry >> offset_bits & ((UINT64_C (1) << count_bits) - 1);

  /* Small clusters leave room for bits that no host offset may have. */
  if (offset >> 56)
    return false;
  place->offset = offset;
  place->length = (more + 1) * 512 - offset % 512;
  return true;
}

bool
l2_compressed_entry (uint64_t offset, uint64_t length,
                     uint32_t cluster_bits, uint64_t *entry)
{
  const unsigned count_bits = cluster_bits - 8;
  const unsigned offset_bits = 62 - count_bits;
  const uint64_t more = (offset % 512 + length - 1) / 512;

  if (offset >> (offset_bits < 56 ? offset_bits : 56)
      || more >> count_bits)
    return false;
  *entry = ENTRY_COMPRESSED | more << offset_bits | offset;
  return true;
}

static enum l2_kind
extended_kind (const struct l2_layout *l, struct l2_entry e, unsigned sub)
{
  const uint64_t offset = e.word & ENTRY_OFFSET;
  const bool copied = (e.word & ENTRY_COPIED) != 0;
  const bool host = offset != 0 || (l->data_file && copied);
  const uint32_t allocated = (uint32_t) e.bitmap;
  const uint32_t zero = (uint32_t) (e.bitmap >> 32);

  if (e.word & ENTRY_COMPRESSED)
    return e.bitmap ? L2_INVALID : L2_COMPRESSED;
  if (offset & (l->cluster_size - 1) || (allocated & zero))
    return L2_INVALID;
  if (!host && (allocated || copied))
    return L2_INVALID;
  if (zero >> sub & 1)
    return host ? L2_ZERO_ALLOC : L2_ZERO_PLAIN;
  if (allocated >> sub & 1)
    return L2_NORMAL;
  return host ? L2_UNALLOC_KEPT : L2_UNALLOCATED;
}

enum l2_kind
l2_other_kind (const struct l2_layout *l, struct l2_entry e, unsigned sub)
{
  if (l->data_file && (e.word & ENTRY_COMPRESSED))
    return L2_INVALID;
  if (l->extended)
    return extended_kind (l, e, sub);
  if ((e.word & (ENTRY_OFFSET | ENTRY_COPIED | ENTRY_ZERO)) == ENTRY_COPIED)
    return L2_NORMAL;           /* the first cluster of a data file */
  return l2_kind_of (e.word, l->version, l->cluster_size);
}

unsigned
l2_extended_run (struct l2_entry e, unsigned sub, enum l2_kind kind)
{
  const uint32_t allocated = (uint32_t) e.bitmap;
  const uint32_t zero = (uint32_t) (e.bitmap >> 32);
  uint32_t same;

  switch (kind) {
  case L2_NORMAL:
    same = allocated;
    break;
  case L2_ZERO_PLAIN:
  case L2_ZERO_ALLOC:
    same = zero;
    break;
  case L2_UNALLOCATED:
  case L2_UNALLOC_KEPT:
    same = ~(allocated | zero);
    break;
  default:
    same = UINT32_MAX;
    break;
  }
  /* What comes in from above is no subcluster, and ends the run. */
  same = ~(same >> sub);
  return same ? (unsigned) __builtin_ctz (same) : 32;
}
