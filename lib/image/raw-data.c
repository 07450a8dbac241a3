/* SPDX-License-Identifier: BSD-3-Clause */

/* A raw data file (qcow2 specification, "Raw external data bit"): it is the
 * disk, for those who read it alone.
 *
 * That is true while each cluster has data, and easily so, since then
 * everything is written in place.  Images are made like that, by QEMU and
 * by create.c, and nothing here takes data away again:
 *
 * R1. Zeroes are written to, or punched into, the file, and no entry is
 *     changed.  (QEMU sets zero flags, too.)
 * R2. Where clusters are without data, all of a slice get it before the
 *     first write there: the file is made zero, as the guest sees it, the
 *     entries are changed, and a commit makes both durable.  So a crash
 *     never leaves data in the file that its entry does not show.  It costs
 *     one commit a slice, and that only where QEMU has set zero flags, or
 *     in images made by its versions before 5.1.  Where the commit failed the
 *     entries in memory show data, but are not durable: the next write there
 *     has a commit first, too (is_ahead in write.c).
 *
 * So the file alone and the image agree at any moment, and after a crash.
 *
 * Locks: the range lock, exclusive.  A commit is waited for with it.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "checked.h"
#include "data.h"
#include "image-internal.h"
#include "raw-data.h"
#include "report.h"
#include "sabotage.h"

/* The end of the slice of OFFSET, or of the disk. */
static uint64_t
end_of_slice (const struct image *img, uint64_t offset)
{
  const uint64_t step = img->cluster_size << img->map.slice_bits;

  return MIN (round_down (offset, step) + step, img->size);
}

static void
lock_range (struct image *img, struct range_hold *hold, uint64_t offset,
            uint64_t end)
{
  rangelock_lock (&img->ranges, hold, offset >> img->cluster_bits,
                  ((end - 1) >> img->cluster_bits) + 1, true);
}

static int
zero_piece (struct image *img, uint64_t offset, uint64_t len,
            enum raw_zero how)
{
  int r = -ENOTSUP;

  if (how != RAW_KEEP)
    r = guard_punch (img, GUARD_EXTERNAL, offset, len);
  if (r == -ENOTSUP && (how == RAW_TRIM || how == RAW_FAST))
    return how == RAW_TRIM ? 0 : r;
  if (r == -ENOTSUP)
    r = guard_zero (img, GUARD_EXTERNAL, offset, len);
  if (r < 0 && r != -ENOSPC)
    report_error ("%s: making %" PRIu64 " bytes zero at offset %" PRIu64
                  " of its data file: %s", img->config.filename, len, offset,
                  strerror (-r));
  return r;
}

int
raw_data_zero (struct image *img, uint64_t offset, uint64_t len,
               enum raw_zero how)
{
  const uint64_t end = offset + len;
  struct range_hold hold;
  uint64_t next;
  int r = 0;

  for (; offset < end && r == 0; offset = next) {
    next = MIN (end, end_of_slice (img, offset));
    r = guard_may_write (img);
    if (r < 0)
      return r;
    lock_range (img, &hold, offset, next);
    r = zero_piece (img, offset, next - offset, how);
    rangelock_unlock (&img->ranges, &hold);
  }
  return r;
}

/* Make zero what is not a hole already. */
static int
zero_data (struct image *img, uint64_t offset, uint64_t len)
{
  uint64_t n;
  bool hole;
  int r = 0;

  for (; len > 0 && r == 0; offset += n, len -= n) {
    n = len;
    r = data_map (img, offset, &n, &hole);
    if (r == 0 && !hole)
      r = zero_piece (img, offset, n, RAW_MAY_TRIM);
  }
  return r;
}

/* What begins at OFFSET and is of one kind, up to END: *LEN bytes done. */
static int
fill_extent (struct image *img, uint64_t offset, uint64_t end, uint64_t *len)
{
  struct map_extent e;
  int r = map_lookup (img, offset, end - offset, &e);

  if (r < 0)
    return r;
  *len = e.len;
  if (e.kind == L2_NORMAL && e.copied)
    return 0;
  if (e.kind != L2_NORMAL)
    r = zero_data (img, offset, e.len);
  if (r == 0)
    r = map_set (img, offset, e.len, MAP_LINK,
                 round_down (offset, img->cluster_size));
  return r;
}

static int
fill_slice (struct image *img, uint64_t offset, uint64_t end)
{
  uint64_t n;
  int r = 0;

  for (; offset < end && r == 0; offset += n)
    r = fill_extent (img, offset, end, &n);
  return r == 0 && !SABOTAGED (SABOTAGE_RAW_FILL) ? commit_now (img) : r;
}

int
raw_data_fill (struct image *img, uint64_t offset)
{
  const uint64_t step = img->cluster_size << img->map.slice_bits;
  const uint64_t end = end_of_slice (img, offset);
  struct range_hold hold;
  int r = commit_throttle (img);

  if (r < 0)
    return r;
  offset = round_down (offset, step);
  lock_range (img, &hold, offset, end);
  r = fill_slice (img, offset, end);
  if (commit_frees_space (img, &r))
    r = fill_slice (img, offset, end);
  rangelock_unlock (&img->ranges, &hold);
  return r;
}
