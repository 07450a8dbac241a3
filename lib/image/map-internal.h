/* SPDX-License-Identifier: BSD-3-Clause */

/* What the files of the map share. */

#ifndef QCOW2_MAP_INTERNAL_H
#define QCOW2_MAP_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "checked.h"
#include "image-internal.h"

/* Bitmaps with one bit per L1 entry. */
static inline size_t
map_bitmap_words (const struct image *img)
{
  return (size_t) div_up (img->map.l1_size, 64) + 1;
}

static inline bool
map_bit_is_set (_Atomic uint64_t *bitmap, uint64_t i)
{
  return atomic_load (&bitmap[i / 64]) >> (i % 64) & 1;
}

static inline void
map_set_bit (_Atomic uint64_t *bitmap, uint64_t i)
{
  atomic_fetch_or (&bitmap[i / 64], UINT64_C (1) << (i % 64));
}

/* map.c: the L2 entry of a guest offset is corrupt; -EIO. */
int map_bad_entry (struct image *img, uint64_t offset,
                   struct l2_entry entry, const char *what);

/* map-tables.c: make sure that the L2 table of CLUSTER exists and may be
 * changed.  -ENOSPC is not reported.
 */
int map_own_table (struct image *img, uint64_t cluster);

#endif /* QCOW2_MAP_INTERNAL_H */
