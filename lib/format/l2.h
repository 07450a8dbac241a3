/* SPDX-License-Identifier: BSD-3-Clause */

/* Entries of L1 and L2 tables (qcow2 specification, "Cluster mapping").
 * Entries are given and returned in host byte order.
 */

#ifndef QCOW2_L2_H
#define QCOW2_L2_H

#include <stdbool.h>
#include <stdint.h>

#define ENTRY_COPIED     (UINT64_C (1) << 63)
#define ENTRY_COMPRESSED (UINT64_C (1) << 62)
#define ENTRY_ZERO       UINT64_C (1)
#define ENTRY_OFFSET     UINT64_C (0x00fffffffffffe00)

#define L1_RESERVED      UINT64_C (0x7f000000000001ff)
#define L2_RESERVED      UINT64_C (0x3f000000000001fe)

enum l2_kind {
  L2_UNALLOCATED,               /* reads from the backing file */
  L2_ZERO_PLAIN,                /* zeroes, no host cluster */
  L2_ZERO_ALLOC,                /* zeroes, a host cluster is kept */
  L2_NORMAL,                    /* data at the host offset */
  L2_COMPRESSED,
  L2_INVALID,                   /* see l2_kind_of */
};

/* What an entry of a table with 64-bit entries is.  L2_INVALID: a host
 * offset that is no multiple of the cluster size, the zero flag in a
 * version 2 image, COPIED without an offset.  Reserved bits are
 * ignored, as QEMU does.
 */
static inline enum l2_kind
l2_kind_of (uint64_t entry, uint32_t version, uint64_t cluster_size)
{
  uint64_t offset = entry & ENTRY_OFFSET;

  if (entry & ENTRY_COMPRESSED)
    return L2_COMPRESSED;
  if (offset & (cluster_size - 1))
    return L2_INVALID;
  if (entry & ENTRY_ZERO) {
    if (version < 3)
      return L2_INVALID;
    return offset ? L2_ZERO_ALLOC : L2_ZERO_PLAIN;
  }
  if (offset)
    return L2_NORMAL;
  return entry & ENTRY_COPIED ? L2_INVALID : L2_UNALLOCATED;
}

/* A compressed cluster's place in the file. */
struct compressed_place {
  uint64_t offset;              /* host byte offset, any alignment */
  uint64_t length;              /* bytes up to the end of the last
                                   512-byte sector; the stream may end
                                   before, the file too */
};

/* Take apart a compressed entry (specification, "Compressed Clusters
 * Descriptor").  False if the offset has bits above 55.
 */
bool l2_compressed_place (uint64_t entry, uint32_t cluster_bits,
                          struct compressed_place *place);

#endif /* QCOW2_L2_H */
