/* SPDX-License-Identifier: BSD-3-Clause */

/* How much memory should an image's tracker be given?
 *
 * "qcow2-overlap plan" is asked this, and the server when the limit that
 * it has is too low.  Both answer from here, so that an operator who reads
 * the log and one who plans ahead find the same number.
 *
 * The limit is a bound and not an estimate: with it nothing leaves,
 * wherever the tables lie and whenever they are made, until the disk is
 * full.  The server must know it without I/O, for an image that is just
 * being opened, so the data that is still to come is all of the disk if
 * there are snapshots; and without any, what the file does not hold yet.
 * This decides about windows only, which cost less than tables do.
 *
 * The bytemap cache is useful up to a page for each place that the disk or
 * the file has; small images have few.
 */

#include <config.h>

#include <stdatomic.h>

#include "advice.h"
#include "checked.h"
#include "image-internal.h"
#include "offline.h"

#define LEAST_LIMIT (UINT64_C (64) << 10)

/* The bytemap cache has a byte for each of 4096 clusters. */
#define PAGE_CLUSTERS 4096
#define PAGE_BYTES UINT64_C (4096)

static uint64_t
useful_bitmap_size (const struct image *img, uint64_t disk, uint64_t file)
{
  const uint64_t pages = div_up (MAX (disk, file), (uint64_t) PAGE_CLUSTERS);
  uint64_t size = PAGE_BYTES;

  while (size < pages * PAGE_BYTES && size < img->config.overlap_bitmap_size)
    size *= 2;
  return MIN (size, img->config.overlap_bitmap_size);
}

/* Clusters of the file when the disk is full, without blocks that count
 * them.
 */
static uint64_t
full_clusters (const struct image *img, uint64_t disk, uint64_t file,
               uint64_t pieces)
{
  if (img->map.layout.data_file)
    return file + pieces;
  return img->snapshots.count > 0 ? file + disk + pieces
    : MAX (file, disk + pieces);
}

void
advise_memory (const struct image *img, uint64_t pieces,
               struct memory_advice *advice)
{
  const uint64_t disk = div_up (img->size, img->cluster_size);
  const uint64_t file = div_up (atomic_load (&img->guard.end),
                                img->cluster_size);
  const uint64_t tables = forecast_tables (img);
  const uint64_t clusters = full_clusters (img, disk, file, pieces + tables);
  const uint64_t blocks = (clusters >> img->refcounts.block_bits) + 1;
  uint64_t need;

  advice->bitmap_size = useful_bitmap_size (img, disk, file);
  need = advice->bitmap_size
    + overlap_most_memory (img->cluster_bits, pieces + tables + blocks,
                           clusters + blocks, img->snapshots.count);
  for (advice->total_limit = LEAST_LIMIT; advice->total_limit < need; )
    advice->total_limit *= 2;
}
