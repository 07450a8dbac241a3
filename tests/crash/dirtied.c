/* SPDX-License-Identifier: BSD-3-Clause */

/* Judging dirty bitmaps; see dirtied.h.
 *
 * A bitmap may say too much: what a request would have changed that never
 * reached the disk, or that wrote what was there.  It must never say too
 * little, unless it says so itself (in use): a backup would lack it.
 */

#include <config.h>

#include <stdint.h>
#include <stdlib.h>

#include "bitmap.h"
#include "byteorder.h"
#include "dirtied.h"
#include "fsck.h"

/* A bit, out of the image. */
static bool
is_dirty (const struct disk *d, const struct header *h,
          const struct bitmap *b, uint64_t offset)
{
  const uint64_t bit = offset >> b->granularity_bits;
  const uint64_t byte = bit / 8;
  uint64_t entry, host;
  uint8_t value;

  disk_read (d, &entry, sizeof entry, b->table_offset
             + (byte >> h->cluster_bits) * sizeof entry);
  entry = be64toh (entry);
  host = bitmap_entry_offset (entry);
  if (host == 0)
    return entry == BITMAP_TABLE_ONES;
  disk_read (d, &value, 1, host + (byte & (h->cluster_size - 1)));
  return value >> bit % 8 & 1;
}

static bool
bitmap_is_right (const struct disk *d, const struct header *h,
                 const struct base *base, const tag *tags,
                 const struct bitmap *b)
{
  unsigned w, n = 0;
  uint64_t j;
  bool dirty;

  for (w = 0; w < base->nr_windows; w++) {
    for (j = 0; j < base->windows[w].len; j += SECTOR, n++) {
      if (base->kind->flags & KIND_RESIZE
          && base->windows[w].offset + j >= base->small)
        continue;
      dirty = is_dirty (d, h, b, base->windows[w].offset + j);
      if (b->flags & BITMAP_AUTO ? !dirty && tags[n] != base->initial[n]
          : dirty)
        return false;
    }
  }
  return true;
}

bool
dirtied_is_known (const struct disk *d, const struct header *h,
                  const struct base *base, const tag *tags, bool closed,
                  const char **problem)
{
  struct bitmap_directory dir;
  struct format_error e;
  uint32_t i;

  *problem = NULL;
  if (!fsck_bitmaps (d, h, &dir, &e) || dir.count != 2)
    *problem = "the bitmaps are not there";
  for (i = 0; i < dir.count && *problem == NULL; i++) {
    const struct bitmap *b = &dir.v[i];
    const bool in_use = b->flags & BITMAP_IN_USE;
    const bool may_be = b->flags & BITMAP_AUTO
      || base->kind->flags & KIND_RESIZE;

    if (in_use && (closed || !may_be))
      *problem = "a bitmap is in use that should not";
    else if (!in_use && !bitmap_is_right (d, h, base, tags, b))
      *problem = "a bitmap that is not in use is wrong";
  }
  bitmap_directory_free (&dir);
  return *problem == NULL;
}
