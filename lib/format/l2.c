/* SPDX-License-Identifier: BSD-3-Clause */

/* The compressed cluster descriptor.  It is the one entry whose layout
 * depends on the cluster size: the low bits hold a byte offset, the rest
 * up to bit 61 a count of further sectors, and the border moves down by
 * one bit for every doubling of the cluster.  Takes no locks.
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
