/* SPDX-License-Identifier: BSD-3-Clause */

/* What a change makes of an L2 entry, which is all that there is to know
 * of the difference between clusters and subclusters in writing.
 *
 * A subcluster of an extended entry is allocated, zero or neither, and
 * the cluster has a host cluster or not:
 *
 *                   allocated    zero            neither
 *     host          L2_NORMAL    L2_ZERO_ALLOC   L2_UNALLOC_KEPT
 *     no host       -            L2_ZERO_PLAIN   L2_UNALLOCATED
 *
 * A change moves the subclusters of its mask from one column to another;
 * MAP_LINK moves the cluster to the upper row, MAP_ZERO_DROP to the lower
 * one as soon as no subcluster is allocated.  A standard entry is the
 * same with one subcluster, and the zero flag in place of the bitmap.
 * A compressed cluster is apart from all that: it has no subclusters.
 *
 * Takes no locks.
 */

#include <config.h>

#include <stdlib.h>

#include "map-entry.h"

static struct l2_entry
changed_standard (struct l2_entry old, enum l2_kind kind, bool backing,
                  enum map_change change, uint64_t host, bool *free_old)
{
  struct l2_entry new = { 0, 0 };

  if (change == MAP_LINK) {
    new.word = host | ENTRY_COPIED;
    return new;
  }
  if (change == MAP_FILL) {
    *free_old = false;
    new.word = old.word & ~ENTRY_ZERO;
    return new;
  }
  /* What no layer has reads as zeroes already. */
  if (kind == L2_UNALLOCATED && !backing)
    return old;
  if (change == MAP_UNMAP)
    return new;
  if (change == MAP_ZERO_KEEP && l2_has_host (kind)) {
    *free_old = false;
    new.word = old.word;
  }
  new.word |= ENTRY_ZERO;
  return new;
}

static struct l2_entry
bitmap_entry (uint64_t word, uint32_t allocated, uint32_t zero)
{
  return (struct l2_entry) {
    .word = word, .bitmap = (uint64_t) zero << 32 | allocated
  };
}

/* Zeroes: *FREE_OLD says on entry whether there is anything to free. */
static struct l2_entry
zeroed_extended (struct l2_entry old, bool backing, uint32_t mask,
                 bool drop, bool *free_old)
{
  const bool all = mask == UINT32_MAX;
  const uint32_t was = (uint32_t) old.bitmap;
  uint32_t zero = (uint32_t) (old.bitmap >> 32);

  if (old.word & ENTRY_COMPRESSED)
    return bitmap_entry (0, 0, UINT32_MAX);
  zero |= backing ? mask : mask & (was | zero);
  /* The host cluster goes with the last data in it, or with the whole
   * cluster, but not because of a part that it held nothing of.
   */
  if (drop && (was & ~mask) == 0 && (all || was != 0))
    return bitmap_entry (0, 0, zero);
  *free_old = false;
  return bitmap_entry (old.word, was & ~mask, zero);
}

static struct l2_entry
changed_extended (struct l2_entry old, bool backing, uint32_t mask,
                  enum map_change change, uint64_t host, bool *free_old)
{
  const uint32_t allocated = (uint32_t) old.bitmap | mask;
  const uint32_t zero = (uint32_t) (old.bitmap >> 32) & ~mask;

  switch (change) {
  case MAP_LINK:
    /* All of a compressed cluster was copied. */
    if (old.word & ENTRY_COMPRESSED)
      return bitmap_entry (host | ENTRY_COPIED, UINT32_MAX, 0);
    return bitmap_entry (host | ENTRY_COPIED, allocated, zero);
  case MAP_FILL:
    *free_old = false;
    return bitmap_entry (old.word, allocated, zero);
  case MAP_ZERO_KEEP:
  case MAP_ZERO_DROP:
    return zeroed_extended (old, backing, mask, change == MAP_ZERO_DROP,
                            free_old);
  default:
    abort ();                   /* MAP_UNMAP is for version 2, the other
                                   was dealt with */
  }
}

bool
map_entry_can_change (const struct l2_layout *l, struct l2_entry old,
                      uint32_t mask, enum map_change change)
{
  return change == MAP_LINK || !(old.word & ENTRY_COMPRESSED)
    || mask == l2_all_subclusters (l);
}

struct l2_entry
map_changed_entry (const struct l2_layout *l, bool backing,
                   struct l2_entry old, uint32_t mask,
                   enum map_change change, uint64_t host, bool *free_old)
{
  const enum l2_kind kind = l2_kind (l, old, 0);

  *free_old = l2_has_host (kind) || kind == L2_COMPRESSED;
  if (change == MAP_LINK_COMPRESSED)
    return (struct l2_entry) { .word = host, .bitmap = 0 };
  if (l->extended)
    return changed_extended (old, backing, mask, change, host, free_old);
  return changed_standard (old, kind, backing, change, host, free_old);
}
