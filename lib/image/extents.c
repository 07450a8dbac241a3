/* SPDX-License-Identifier: BSD-3-Clause */

/* Block status: what is data, what is a hole, what reads as zeroes.
 *
 * The answer is that of qemu-nbd (base:allocation), so that tools see no
 * difference: a cluster (a subcluster, with extended L2 entries) that the
 * image or a layer below maps to data is data; zero clusters and what no
 * layer has are holes that read as zeroes.  Only where an image was
 * preallocated (metadata for clusters that the file does not have yet), or
 * where zeroes have no entries (a raw data file), is the file itself asked
 * whether there is a hole below: otherwise that costs a system call for
 * an answer that is nearly always no.
 *
 * Locks: the range lock of what is looked at, shared, per slice.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "checked.h"
#include "data.h"
#include "extents.h"
#include "image-internal.h"

/* So many refcount blocks are looked at, then the answer is no. */
#define MAX_BLOCKS 1024

/* Are more than LIMIT of the counts of clusters not zero? */
static bool
more_used_than (struct image *img, uint64_t limit)
{
  const unsigned bits = img->refcounts.block_bits;
  uint64_t end = div_up (atomic_load (&img->guard.end), img->cluster_size);
  uint64_t blocks = div_up (end, UINT64_C (1) << bits), i, n, used = 0;
  unsigned seen = 0;

  blocks = MIN (blocks, img->refcounts.table_entries);
  for (i = 0; i < blocks && seen < MAX_BLOCKS && used <= limit; ++i) {
    if (refcounts_block_offset (img, i) == 0)
      continue;
    ++seen;
    if (refcounts_used_in_block (img, i, &n) < 0)
      return false;
    used += n;
  }
  return used > limit;
}

/* Has the image many more clusters in use than the file has on disk?
 * Then it was preallocated.  The margin is a tenth, as QEMU has it.
 * Found out once, before any range is locked.
 */
static void
find_out_preallocated (struct image *img)
{
  const uint64_t clusters = div_up (atomic_load (&img->guard.end),
                                    img->cluster_size);
  uint64_t on_disk, limit;
  bool yes = false;

  if (atomic_load (&img->preallocated) >= 0)
    return;
  if (img->parent) {            /* it is a property of the file */
    find_out_preallocated (img->parent);
    atomic_store (&img->preallocated,
                  atomic_load (&img->parent->preallocated));
    return;
  }
  if (storage_allocated (img->storage, &on_disk) == 0) {
    on_disk >>= img->cluster_bits;
    limit = MAX (on_disk * 10 / 9, on_disk + 2);
    /* Fewer clusters than the limit cannot exceed it. */
    yes = clusters > limit && !atomic_load (&img->guard.corrupt)
      && more_used_than (img, limit);
  }
  atomic_store (&img->preallocated, yes);
}

static int
data_status (struct image *img, uint64_t host, uint64_t *len,
             unsigned *status)
{
  bool hole;
  int r;

  *status = 0;
  if (!img->raw_data && atomic_load (&img->preallocated) <= 0)
    return 0;
  r = data_map (img, host, len, &hole);
  if (r == 0 && hole)
    *status = IMAGE_EXTENT_ZERO;
  return r;
}

int
extent_status (struct image *img, uint64_t offset, uint64_t *len,
               unsigned *status)
{
  struct map_extent e;
  int r = map_lookup (img, offset, *len, &e);

  if (r < 0)
    return r;
  *len = e.len;
  switch (e.kind) {
  case L2_UNALLOCATED:
  case L2_UNALLOC_KEPT:
    return layer_status (img->backing, offset, len, status);
  case L2_ZERO_PLAIN:
  case L2_ZERO_ALLOC:
    *status = IMAGE_EXTENT_HOLE | IMAGE_EXTENT_ZERO;
    return 0;
  case L2_NORMAL:
    return data_status (img, e.host, len, status);
  default:
    *status = 0;
    return 0;
  }
}

/* Neighbours that are being joined. */
struct joined {
  uint64_t offset, len;
  unsigned status;
};

/* Add a range to the joined ones; what cannot be joined any more goes to
 * ADD.
 */
static int
join (struct joined *j, uint64_t offset, uint64_t len, unsigned status,
      image_extent_fn *add, void *opaque)
{
  int r = 0;

  if (j->len > 0 && j->status == status) {
    j->len += len;
    return 0;
  }
  if (j->len > 0)
    r = add (opaque, j->offset, j->len, j->status);
  *j = (struct joined) { .offset = offset, .len = len, .status = status };
  return r;
}

/* The status of the next piece, under its range lock. */
static int
next_piece (struct image *img, uint64_t offset, uint64_t *len,
            unsigned *status)
{
  uint64_t cluster = offset >> img->cluster_bits;
  struct range_hold hold;
  int r;

  if (map_has_table (img, cluster))
    *len = MIN (*len, (map_left_in_slice (img, cluster)
                       << img->cluster_bits)
                - offset_in_cluster (img, offset));
  rangelock_lock (&img->ranges, &hold, cluster,
                  ((offset + *len - 1) >> img->cluster_bits) + 1, false);
  r = extent_status (img, offset, len, status);
  rangelock_unlock (&img->ranges, &hold);
  return r;
}

int
image_extents (struct image *img, uint64_t offset, uint64_t len,
               bool one, image_extent_fn *add, void *opaque)
{
  struct joined j = { 0 };
  unsigned status = 0;
  uint64_t n;
  int r;

  find_out_preallocated (img);
  while (len > 0) {
    n = len;
    r = next_piece (img, offset, &n, &status);
    if (r < 0)
      return r;
    if (one && j.len > 0 && j.status != status)
      break;
    r = join (&j, offset, n, status, add, opaque);
    if (r < 0)
      return r;
    offset += n;
    len -= n;
  }
  return j.len > 0 ? add (opaque, j.offset, j.len, j.status) : 0;
}
