/* SPDX-License-Identifier: BSD-3-Clause */

/* Handing out free clusters.
 *
 * A cluster is free if its count in memory is zero; what waits in the
 * quarantine still has its count.  The search goes upwards from HINT,
 * below which nothing is free, a word of a block at a time.
 *
 * Where the search meets a range that no block covers, a block is made:
 * it takes the cluster at which the search stands, which lies in the
 * range that it covers, and counts itself.
 *
 * Where the refcount table has no entry left for the range, a larger
 * table is laid at its beginning together with the blocks for the area
 * that both fill:
 *
 *     | block | block | ... | table .............. | (free)
 *     ^ first cluster that the old table cannot reach
 *
 * These blocks count the whole area, themselves included.  Here a block
 * may lie before the range that it covers, because a table with small
 * clusters is longer than such a range; nothing depends on it before
 * the header points to the new table, in a single sector's write.
 *
 * Nothing is handed out that the tracker knows as metadata: the guard is
 * asked before the counts are raised, and again at the first write; for
 * metadata, by the claim.  Cluster 0 is never handed out, whatever its
 * count: a pointer to it would mean "none".
 *
 * Locks: refcounts.lock, held across the reservation of new blocks.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "cleanup.h"
#include "corrupt.h"
#include "image-internal.h"
#include "refcount.h"
#include "report.h"

/* Clusters that offsets of 56 bits, or the device, can reach. */
static uint64_t
cluster_limit (struct image *img)
{
  uint64_t limit = MAX_HOST_OFFSET;

  if (!storage_can_grow (img->storage))
    limit = atomic_load (&img->guard.end);
  return limit >> img->cluster_bits;
}

/* Mark COUNT clusters as metadata and make their space certain. */
static int
take_metadata (struct image *img, enum overlap_type type,
               uint64_t cluster, uint64_t count)
{
  uint64_t offset = cluster << img->cluster_bits;
  uint64_t len = count << img->cluster_bits;
  int r;

  r = guard_claim (img, type, offset, len);
  if (r < 0)
    return r;
  r = guard_reserve (img, (int) type, offset, len, true);
  if (r < 0)
    guard_unclaim (img, type, offset, len);
  return r;
}

static int
make_block (struct image *img, uint64_t index, uint64_t cluster)
{
  struct refcounts *rc = &img->refcounts;
  struct refblock *block;
  uint64_t offset = cluster << img->cluster_bits;
  int r;

  if (cluster == 0)
    return image_corrupt (img, 0, img->cluster_size, "no refcount block "
                          "covers the header");
  r = take_metadata (img, OVERLAP_REFCOUNT_BLOCK, cluster, 1);
  if (r < 0)
    return r;
  r = refcounts_add_block (img, index, offset, &block);
  if (r < 0) {
    guard_unclaim (img, OVERLAP_REFCOUNT_BLOCK, offset, img->cluster_size);
    return r;
  }
  refcount_set (block->data, rc->order,
                cluster & ((UINT64_C (1) << rc->block_bits) - 1), 1);
  claim_ends (img, OVERLAP_REFCOUNT_BLOCK, offset);
  rc->untouched = MAX (rc->untouched, cluster + 1);
  return 0;
}

/* What a larger table needs. */
struct area {
  uint64_t first;               /* cluster: blocks first, then the table */
  uint64_t blocks, table_clusters;
};

/* Room for half as much again, and for the blocks of the area itself. */
static int
plan_area (struct image *img, uint64_t index, struct area *area)
{
  const struct refcounts *rc = &img->refcounts;
  const uint64_t per_cluster = img->cluster_size / sizeof (uint64_t);
  const uint64_t max = MAX_REFCOUNT_TABLE_BYTES >> img->cluster_bits;
  uint64_t entries, blocks = 0, total;

  area->first = index << rc->block_bits;
  do {
    area->blocks = MAX (blocks, 1);
    entries = MAX (index + area->blocks + 1,
                   rc->table_entries + rc->table_entries / 2);
    area->table_clusters = div_up (entries, per_cluster);
    if (area->table_clusters > max)
      area->table_clusters = MAX (max, UINT64_C (1));
    total = area->blocks + area->table_clusters;
    blocks = div_up (total, UINT64_C (1) << rc->block_bits);
  } while (blocks > area->blocks);

  if (area->table_clusters * per_cluster < index + area->blocks) {
    report_error ("%s: the refcount table would need more than %" PRIu64
                  " bytes; the image cannot grow further",
                  img->config.filename, MAX_REFCOUNT_TABLE_BYTES);
    return -ENOSPC;
  }
  return area->first + total <= cluster_limit (img) ? 0 : -ENOSPC;
}

/* Make the blocks of the area, which count it whole.  All or none. */
static int
make_area_blocks (struct image *img, uint64_t index,
                  const struct area *area)
{
  struct refcounts *rc = &img->refcounts;
  const uint64_t per_block = UINT64_C (1) << rc->block_bits;
  uint64_t left = area->blocks + area->table_clusters, i, j, n;
  struct refblock *block;
  int r;

  for (i = 0; i < area->blocks; ++i) {
    r = refcounts_add_block (img, index + i,
                             (area->first + i) << img->cluster_bits, &block);
    if (r < 0) {
      refcounts_drop_fresh (img, i);
      return r;
    }
    n = MIN (left, per_block);
    for (j = 0; j < n; ++j)
      refcount_set (block->data, rc->order, j, 1);
    left -= n;
  }
  return 0;
}

static int
take_area (struct image *img, const struct area *area)
{
  int r;

  r = take_metadata (img, OVERLAP_REFCOUNT_BLOCK, area->first,
                     area->blocks);
  if (r < 0)
    return r;
  r = take_metadata (img, OVERLAP_REFCOUNT_TABLE,
                     area->first + area->blocks, area->table_clusters);
  if (r < 0)
    guard_unclaim (img, OVERLAP_REFCOUNT_BLOCK,
                   area->first << img->cluster_bits,
                   area->blocks << img->cluster_bits);
  return r;
}

/* Room in memory for the entries of the larger table. */
static int
enlarge_array (struct refcounts *rc, uint64_t entries)
{
  uint64_t *table = realloc (rc->table, entries * sizeof (uint64_t));

  if (!table)
    return -ENOMEM;
  memset (table + rc->table_entries, 0,
          (entries - rc->table_entries) * sizeof (uint64_t));
  rc->table = table;
  return 0;
}

/* Lay a larger table, so that block INDEX has an entry. */
static int
grow_table (struct image *img, uint64_t index)
{
  struct refcounts *rc = &img->refcounts;
  struct freed_list old = { 0 };
  struct area area;
  uint64_t entries;
  int r;

  r = plan_area (img, index, &area);
  if (r < 0)
    return r;
  entries = (area.table_clusters << img->cluster_bits) / sizeof (uint64_t);
  r = enlarge_array (rc, entries);
  if (r < 0)
    return r;
  r = freed_list_add (&old, OVERLAP_REFCOUNT_TABLE,
                      rc->table_offset >> img->cluster_bits,
                      rc->table_clusters);
  if (r == 0)
    r = make_area_blocks (img, index, &area);
  if (r == 0) {
    r = take_area (img, &area);
    if (r < 0)
      refcounts_drop_fresh (img, area.blocks);
  }
  if (r < 0) {
    freed_list_free (&old);
    return r;
  }

  rc->table_entries = entries;
  rc->table_offset = (area.first + area.blocks) << img->cluster_bits;
  rc->table_clusters = area.table_clusters;
  rc->grown = true;
  freed_join (&img->freed, &old);
  claim_ends (img, OVERLAP_REFCOUNT_BLOCK, area.first << img->cluster_bits);
  claim_ends (img, OVERLAP_REFCOUNT_TABLE, rc->table_offset);
  rc->untouched = MAX (rc->untouched,
                       area.first + area.blocks + area.table_clusters);
  return 0;
}

/* Make sure that a block covers CLUSTER.  It may take this cluster. */
static int
cover (struct image *img, uint64_t cluster, struct refblock **block)
{
  struct refcounts *rc = &img->refcounts;
  uint64_t index = cluster >> rc->block_bits;
  int r;

  r = refcounts_block (img, index, block);
  if (r < 0 || *block)
    return r;
  if (index >= rc->table_entries)
    r = grow_table (img, index);
  else
    r = make_block (img, index, cluster);
  if (r < 0)
    return r;
  return refcounts_block (img, index, block);
}

/* A count of zero is not believed where it cannot be true.  Asked before
 * the count is raised, so that a refusal changes nothing.
 */
static int
check_free (struct image *img, uint64_t cluster, uint64_t count)
{
  if (cluster == 0)
    return image_corrupt (img, 0, img->cluster_size, "Preventing invalid "
                          "allocation of the header's cluster (its "
                          "reference count is 0)");
  return guard_check (img, GUARD_DATA, cluster << img->cluster_bits,
                      count << img->cluster_bits);
}

/* Find and take up to WANT contiguous free clusters. */
static int
take_run (struct image *img, uint64_t want, uint64_t *first,
          uint64_t *count)
{
  struct refcounts *rc = &img->refcounts;
  const uint64_t per_block = UINT64_C (1) << rc->block_bits;
  const uint64_t limit = cluster_limit (img);
  uint64_t c = rc->hint, base, i, j;
  struct refblock *block;
  int r;

  for (;; c = base + per_block) {
    if (c >= limit)
      return -ENOSPC;
    r = cover (img, c, &block);
    if (r < 0)
      return r;
    if (!block)
      return -EIO;
    base = round_down (c, per_block);
    i = refcount_find_zero (block->data, rc->order, c - base, per_block);
    if (i == per_block)
      continue;
    j = refcount_find_used (block->data, rc->order, i,
                            MIN (per_block, i + want));
    j = MIN (j, limit - base);
    if (j <= i)
      return -ENOSPC;
    break;
  }
  r = check_free (img, base + i, j - i);
  if (r < 0)
    return r;
  r = refcounts_set_run (img, block, i, j - i, 1);
  if (r < 0)
    return r;
  *first = base + i;
  *count = j - i;
  rc->hint = base + j;
  return 0;
}

int
refcounts_take (struct image *img, uint64_t want, uint64_t *first,
                uint64_t *count, bool *zeroes)
{
  struct refcounts *rc = &img->refcounts;
  uint64_t untouched;
  int r;

  r = take_run (img, want, first, count);
  if (r < 0)
    return r;
  untouched = rc->untouched;
  *zeroes = untouched != UINT64_MAX && *first >= untouched;
  if (untouched != UINT64_MAX)
    rc->untouched = MAX (untouched, *first + *count);
  atomic_fetch_add_explicit (&rc->allocated, *count, memory_order_relaxed);
  return 0;
}

static int
take_clusters (struct image *img, uint64_t want, uint64_t *first,
               uint64_t *count, bool *zeroes)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&img->refcounts.lock);

  return refcounts_take (img, want, first, count, zeroes);
}

int
alloc_data (struct image *img, uint64_t want, uint64_t *first,
            uint64_t *count, bool *zeroes)
{
  return take_clusters (img, want, first, count, zeroes);
}

/* Mark what was taken and make it read as zeroes. */
static int
prepare_metadata (struct image *img, enum overlap_type type,
                  uint64_t cluster, uint64_t count, bool zeroes)
{
  const uint64_t offset = cluster << img->cluster_bits;
  const uint64_t len = count << img->cluster_bits;
  int r;

  r = guard_claim (img, type, offset, len);
  if (r < 0)
    return r;
  r = zeroes ? guard_reserve (img, (int) type, offset, len, true)
    : guard_zero (img, (int) type, offset, len);
  if (r < 0) {
    /* The count goes down again by way of the quarantine, the mark too. */
    struct freed_list list = { 0 };

    if (freed_list_add (&list, (int) type, cluster, count) == 0) {
      freed_join (&img->freed, &list);
      claim_ends (img, type, offset);
    }
    else
      guard_unclaim (img, type, offset, len);
  }
  return r;
}

int
alloc_metadata (struct image *img, int type, uint64_t *offset)
{
  uint64_t cluster, count;
  bool zeroes;
  int r;

  r = take_clusters (img, 1, &cluster, &count, &zeroes);
  if (r < 0)
    return r;
  *offset = cluster << img->cluster_bits;
  return prepare_metadata (img, (enum overlap_type) type, cluster, 1, zeroes);
}

int
alloc_contiguous (struct image *img, enum overlap_type type, uint64_t count,
                  uint64_t *offset)
{
  struct freed_list short_runs = { 0 };
  uint64_t first, n;
  bool zeroes;
  int r;

  if (count >= UINT64_C (1) << img->refcounts.block_bits)
    return -EFBIG;
  do {
    r = take_clusters (img, count, &first, &n, &zeroes);
    if (r == 0 && n < count)
      r = freed_list_add (&short_runs, GUARD_DATA, first, n);
  } while (r == 0 && n < count);
  freed_join (&img->freed, &short_runs);
  if (r < 0)
    return r;
  *offset = first << img->cluster_bits;
  return prepare_metadata (img, type, first, count, zeroes);
}
