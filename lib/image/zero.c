/* SPDX-License-Identifier: BSD-3-Clause */

/* Writing zeroes, and trimming.
 *
 * Whole clusters, or subclusters, need no data: their entries are
 * changed, a slice at a time, under the exclusive range lock.  What
 * becomes of them follows QEMU, so that block status agrees:
 *
 *     version 3, may trim     zero flag, host clusters freed
 *     version 3, else         zero flag, host clusters kept
 *     version 2, no backing   unallocated
 *     version 2, backing      data is written: there is no zero flag
 *
 * A cluster that no layer has reads as zeroes already and is left alone.
 * A trim is the same as zeroes that may trim, but it leaves clusters that
 * it covers in part as they are, and it does nothing where a version 2
 * image would show its backing file again.
 *
 * With extended L2 entries all this is said of subclusters.  The host
 * cluster is freed when no subcluster of it is data any more (QEMU frees
 * whole clusters only); until then holes are made in it (holes.c).  A
 * part of a compressed cluster is as the part of a subcluster.
 *
 * The parts of subclusters at both ends are written as data, unless they
 * read as zeroes already.
 *
 * In a raw data file none of this happens: the file itself is made zero
 * (raw-data.c).
 *
 * Locks: the range lock, exclusive, per slice.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "checked.h"
#include "cleanup.h"
#include "data-file.h"
#include "image-internal.h"
#include "raw-data.h"
#include "sabotage.h"
#include "write.h"

/* Can whole clusters be made zero by changing entries alone? */
static bool
has_zero_clusters (const struct image *img)
{
  return img->header.version >= 3 || !img->backing;
}

/* Whole subclusters that lie in one slice. */
static int
zero_in_slice (struct image *img, uint64_t offset, uint64_t len,
               enum map_change change)
{
  struct range_hold hold;
  int r;

  /* Asked for each slice: a hit stops a long request too. */
  r = guard_may_write (img);
  if (r == 0)
    r = commit_throttle (img);
  if (r < 0)
    return r;
  rangelock_lock (&img->ranges, &hold, offset >> img->cluster_bits,
                  ((offset + len - 1) >> img->cluster_bits) + 1,
                  !SABOTAGED (SABOTAGE_IN_FLIGHT));
  if (change == MAP_ZERO_DROP)
    data_file_discard (img, offset, len);
  r = map_set (img, offset, len, change, 0);
  if (commit_frees_space (img, &r))
    r = map_set (img, offset, len, change, 0);
  rangelock_unlock (&img->ranges, &hold);
  return r;
}

/* Part of a subcluster: what does it take to make it zero?  1: nothing,
 * it is zero already; 0: writing.
 */
static int
edge_is_zero (struct image *img, uint64_t offset, uint64_t len)
{
  struct range_hold hold;
  struct map_extent e;
  uint64_t cluster = offset >> img->cluster_bits;
  int r;

  if (len == 0)
    return 1;
  rangelock_lock (&img->ranges, &hold, cluster, cluster + 1, false);
  r = map_lookup (img, offset, len, &e);
  rangelock_unlock (&img->ranges, &hold);
  if (r < 0)
    return r;
  return e.kind == L2_ZERO_PLAIN || e.kind == L2_ZERO_ALLOC
    || ((e.kind == L2_UNALLOCATED || e.kind == L2_UNALLOC_KEPT)
        && (!img->backing || offset >= img->backing->size));
}

#define ZERO_BUFFER (UINT64_C (1) << 20)

/* Write zeroes as data. */
static int
write_zero_data (struct image *img, uint64_t offset, uint64_t len,
                 bool *commit)
{
  CLEANUP_FREE uint8_t *zeroes = NULL;
  uint64_t n;
  int r = 0;

  if (len == 0)
    return 0;
  zeroes = calloc (1, MIN (len, ZERO_BUFFER));
  if (!zeroes)
    return -ENOMEM;
  for (; len > 0 && r == 0; offset += n, len -= n) {
    n = MIN (len, ZERO_BUFFER);
    r = write_range (img, zeroes, n, offset, false, commit);
  }
  return r;
}

static int
zero_edge (struct image *img, uint64_t offset, uint64_t len, bool *commit)
{
  int r = edge_is_zero (img, offset, len);

  if (r != 0)
    return r < 0 ? r : 0;
  return write_zero_data (img, offset, len, commit);
}

int
zero_whole_cluster (struct image *img, uint64_t offset)
{
  if (!has_zero_clusters (img))
    return -ENOTSUP;
  if (!img->backing && !map_has_table (img, offset >> img->cluster_bits))
    return 0;
  return map_set (img, offset, img->cluster_size,
                  img->header.version < 3 ? MAP_UNMAP : MAP_ZERO_DROP, 0);
}

/* How far from OFFSET on, at most to END, entries of one slice can be
 * changed at once: whole clusters, or a part of one.
 */
static uint64_t
zero_step (struct image *img, uint64_t offset, uint64_t end)
{
  const uint64_t cluster = offset >> img->cluster_bits;
  const uint64_t slice = (cluster + map_left_in_slice (img, cluster))
    << img->cluster_bits;
  const uint64_t next = (cluster + 1) << img->cluster_bits;

  if (offset_in_cluster (img, offset) != 0 || end < next)
    return MIN (end, next);
  return round_down (MIN (end, slice), img->cluster_size);
}

/* Whole subclusters from OFFSET to END.  What cannot be made zero by
 * entries alone is written as data; left alone if COMMIT is NULL.
 */
static int
zero_subclusters (struct image *img, uint64_t offset, uint64_t end,
                  bool may_trim, bool *commit)
{
  const uint64_t per_table = img->cluster_size << img->map.l2_bits;
  enum map_change change = img->header.version < 3 ? MAP_UNMAP
    : may_trim ? MAP_ZERO_DROP : MAP_ZERO_KEEP;
  uint64_t next;
  int r;

  for (; offset < end; offset = next) {
    if (!img->backing && !map_has_table (img, offset >> img->cluster_bits)) {
      next = MIN (end, round_down (offset, per_table) + per_table);
      continue;
    }
    next = zero_step (img, offset, end);
    r = zero_in_slice (img, offset, next - offset, change);
    if (r == -ENOTSUP)
      r = !commit ? 0
        : write_zero_data (img, offset, MIN (next, img->size) - offset,
                           commit);
    if (r < 0)
      return r;
  }
  return 0;
}

/* A range as a part of a subcluster, whole ones, a part of one. */
struct parts {
  uint64_t head, head_len;      /* guest bytes */
  uint64_t body, body_end;
  uint64_t tail, tail_len;
};

/* The last cluster of the disk counts as whole up to the disk's end. */
static void
split (const struct image *img, uint64_t offset, uint64_t len,
       struct parts *p)
{
  const uint64_t size = img->subcluster_size;
  const uint64_t end = offset + len;
  const uint64_t body = round_up (offset, size);
  const uint64_t body_end = end == img->size
    ? round_up (end, img->cluster_size) : round_down (end, size);

  p->head = offset;
  p->head_len = MIN (body - offset, len);
  p->body = p->body_end = 0;
  p->tail = end;
  p->tail_len = 0;
  if (p->head_len == len)       /* within one subcluster */
    return;
  p->body = body;
  p->body_end = MAX (body_end, body);
  if (body_end < end) {
    p->tail = p->body_end;
    p->tail_len = end - p->tail;
  }
}

/* 1 if the cluster of OFFSET is not compressed, or does not matter
 * because OFFSET is where one begins; else 0.
 */
static int
part_is_fast (struct image *img, uint64_t offset)
{
  struct range_hold hold;
  struct map_extent e;
  uint64_t cluster = offset >> img->cluster_bits;
  int r;

  if (offset_in_cluster (img, offset) == 0)
    return 1;
  rangelock_lock (&img->ranges, &hold, cluster, cluster + 1, false);
  r = map_lookup (img, offset, 1, &e);
  rangelock_unlock (&img->ranges, &hold);
  return r < 0 ? r : e.kind != L2_COMPRESSED;
}

/* A fast zero must not write data. */
static int
check_fast (struct image *img, uint64_t offset, uint64_t len)
{
  struct parts p;
  bool body;
  int r;

  split (img, offset, len, &p);
  body = p.body < p.body_end;
  r = edge_is_zero (img, p.head, p.head_len);
  if (r > 0)
    r = edge_is_zero (img, p.tail, p.tail_len);
  if (r > 0 && body)
    r = part_is_fast (img, p.body);
  if (r > 0 && body)
    r = part_is_fast (img, p.body_end);
  if (r < 0)
    return r;
  if (r == 0 || (body && !has_zero_clusters (img)))
    return -ENOTSUP;
  return 0;
}

static int
zero_parts (struct image *img, const struct parts *p, bool may_trim,
            bool *commit)
{
  int r = zero_edge (img, p->head, p->head_len, commit);

  if (r == 0 && p->body < p->body_end) {
    *commit = true;
    r = has_zero_clusters (img)
      ? zero_subclusters (img, p->body, p->body_end, may_trim, commit)
      : write_zero_data (img, p->body, MIN (p->body_end, img->size) - p->body,
                         commit);
  }
  if (r == 0)
    r = zero_edge (img, p->tail, p->tail_len, commit);
  return r;
}

int
zero_range (struct image *img, uint64_t offset, uint64_t len,
            bool may_trim, bool *commit)
{
  struct parts p;

  if (img->raw_data) {
    *commit = true;
    return raw_data_zero (img, offset, len,
                          may_trim ? RAW_MAY_TRIM : RAW_KEEP);
  }
  split (img, offset, len, &p);
  return zero_parts (img, &p, may_trim, commit);
}

int
image_zero (struct image *img, uint64_t offset, uint64_t len,
            unsigned flags, bool fua)
{
  const bool may_trim = (flags & IMAGE_ZERO_MAY_TRIM) && img->config.discard;
  const bool fast = flags & IMAGE_ZERO_FAST;
  bool commit = false;
  int r;

  if (len == 0)
    return 0;
  r = guard_may_write (img);
  if (r == 0 && fast && img->raw_data)
    r = may_trim ? 0 : -ENOTSUP; /* what can be done is seen by trying */
  else if (r == 0 && fast)
    r = check_fast (img, offset, len);
  if (r == 0)
    r = image_prepare_change (img, offset, len);
  if (r == 0)
    r = fast && img->raw_data
      ? raw_data_zero (img, offset, len, RAW_FAST)
      : zero_range (img, offset, len, may_trim, &commit);
  /* Even if nothing had to change: what makes the range zero already may
   * not be durable yet.
   */
  if (r == 0 && fua)
    r = commit_flush (img);
  return image_request_end (img, "zeroing", offset, len, r);
}

/* Whole subclusters of the range become zeroes; the rest stays. */
static int
trim_range (struct image *img, uint64_t offset, uint64_t len)
{
  struct parts p;
  int r;

  split (img, offset, len, &p);
  r = image_prepare_change (img, offset, len);
  if (r < 0 || p.body >= p.body_end)
    return r;
  return img->raw_data
    ? raw_data_zero (img, p.body, MIN (p.body_end, img->size) - p.body,
                     RAW_TRIM)
    : zero_subclusters (img, p.body, p.body_end, true, NULL);
}

int
image_trim (struct image *img, uint64_t offset, uint64_t len, bool fua)
{
  int r;

  if (len == 0)
    return 0;
  r = guard_may_write (img);
  if (r == 0 && img->config.discard && has_zero_clusters (img))
    r = trim_range (img, offset, len);
  /* Even if nothing was trimmed, as for zeroes: what a reader finds there
   * from now on is what the answer stands for.
   */
  if (r == 0 && fua)
    r = commit_flush (img);
  return image_request_end (img, "trimming", offset, len, r);
}
