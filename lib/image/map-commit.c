/* SPDX-License-Identifier: BSD-3-Clause */

/* Writing the L1 table: the part of a commit that is its.
 *
 * Which entries an epoch changed is kept in two bitmaps, that of the open
 * epoch and that of the running commit, chosen by the epoch's lowest
 * bit.  An entry changes once (M1 of map.c), so its value at the time of
 * the writing is its value at the cut.
 *
 * Locks: none; the bitmaps are atomics.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "checked.h"
#include "cleanup.h"
#include "corrupt.h"
#include "image-internal.h"
#include "map-internal.h"
#include "report.h"

bool
map_l1_cut_is_empty (struct image *img, uint64_t epoch)
{
  return atomic_load (&img->map.l1_changed[epoch & 1]) == 0;
}

/* Write entries FIRST to LAST, which were all changed. */
static int
write_l1_run (struct image *img, uint64_t first, uint64_t last)
{
  uint64_t offset = img->header.l1_table_offset + first * sizeof (uint64_t);
  size_t n = (size_t) (last - first + 1), i;
  uint64_t buf[64];
  int r;

  for (i = 0; i < n; ++i)
    buf[i] = htobe64 (atomic_load (&img->map.l1[first + i]));
  r = guard_write_buf (img, OVERLAP_ACTIVE_L1, buf, n * sizeof buf[0],
                       offset);
  if (r < 0)
    report_error ("%s: writing the L1 table at host offset %" PRIu64 ": %s",
                  img->config.filename, offset, strerror (-r));
  return r;
}

int
map_write_l1_cut (struct image *img, uint64_t epoch)
{
  _Atomic uint64_t *dirty = img->map.l1_dirty[epoch & 1];
  uint64_t i, first;
  int r;

  if (map_l1_cut_is_empty (img, epoch))
    return 0;
  for (i = 0; i < img->map.l1_size; ++i) {
    if (i % 64 == 0 && atomic_load (&dirty[i / 64]) == 0) {
      i += 63;
      continue;
    }
    if (!map_bit_is_set (dirty, i))
      continue;
    first = i;
    while (i + 1 < img->map.l1_size && i + 1 - first < 64
           && map_bit_is_set (dirty, i + 1))
      ++i;
    r = write_l1_run (img, first, i);
    if (r < 0)
      return r;
  }
  return 0;
}

void
map_l1_cut_end (struct image *img, uint64_t epoch, bool success)
{
  struct map *m = &img->map;
  const unsigned list = epoch & 1, other = list ^ 1;
  const size_t words = map_bitmap_words (img);
  size_t i;

  if (map_l1_cut_is_empty (img, epoch))
    return;
  for (i = 0; i < words; ++i) {
    uint64_t bits = atomic_exchange (&m->l1_dirty[list][i], 0);

    if (bits && !success)
      atomic_fetch_or (&m->l1_dirty[other][i], bits);
  }
  if (!success)
    atomic_fetch_add (&m->l1_changed[other],
                      atomic_load (&m->l1_changed[list]));
  atomic_store (&m->l1_changed[list], 0);
}
