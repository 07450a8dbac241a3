/* SPDX-License-Identifier: BSD-3-Clause */

/* Entries of refcount blocks and of the refcount table (qcow2
 * specification, "Host cluster management").  ORDER is refcount_order:
 * an entry is 1 << ORDER bits wide; entries narrower than a byte fill
 * it from its least significant bit, wider ones are big-endian.
 */

#ifndef QCOW2_REFCOUNT_H
#define QCOW2_REFCOUNT_H

#include <stdint.h>

#define REFCOUNT_TABLE_RESERVED UINT64_C (0x1ff)

/* Entries of one block. */
static inline uint64_t
refcount_block_entries (uint64_t cluster_size, uint32_t order)
{
  return cluster_size * 8 >> order;
}

/* The largest count that fits. */
static inline uint64_t
refcount_max (uint32_t order)
{
  return order == 6 ? UINT64_MAX : (UINT64_C (1) << (1u << order)) - 1;
}

/* Entry INDEX of BLOCK. */
uint64_t refcount_get (const void *block, uint32_t order, uint64_t index);

/* VALUE must not be above refcount_max (order). */
void refcount_set (void *block, uint32_t order, uint64_t index,
                   uint64_t value);

/* Index of the first entry that is zero (resp. not zero) in
 * [INDEX, END); END if there is none.  Scans words, not entries.
 */
uint64_t refcount_find_zero (const void *block, uint32_t order,
                             uint64_t index, uint64_t end);
uint64_t refcount_find_used (const void *block, uint32_t order,
                             uint64_t index, uint64_t end);

#endif /* QCOW2_REFCOUNT_H */
