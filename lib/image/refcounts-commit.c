/* SPDX-License-Identifier: BSD-3-Clause */

/* Writing reference counts: the part of a commit that is theirs.
 *
 * The commit calls, in this order,
 *
 *     refcounts_cut           what is new in this epoch
 *     refcounts_write_fresh   new blocks, and a table that moved; then
 *                             the commit syncs
 *     refcounts_write_links   the table's entries for the new blocks, or
 *                             the header's 12 bytes for the new table
 *     refcounts_write_dirty   changed counts in blocks known before
 *     refcounts_cut_end
 *
 * so that neither the header nor a table entry is ever durable before
 * what it leads to.
 *
 * Blocks that are made after the cut belong to the next commit: their
 * entries must not slip into a table written now.
 *
 * Locks: refcounts.lock, never held while writing: what is to be
 * written is copied first.  A block being written stays in the cache
 * (R1), or a reader could fetch the old contents from the file.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "cleanup.h"
#include "image-internal.h"
#include "refcount.h"
#include "report.h"
#include "sabotage.h"

void
refcounts_cut (struct image *img, struct refcounts_cut *cut)
{
  struct refcounts *rc = &img->refcounts;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rc->lock);
  struct refblock *b;

  for (b = rc->fresh; b; b = b->fresh_next)
    b->state = REFBLOCK_CUT;
  cut->fresh = rc->fresh;
  rc->fresh = NULL;
  cut->grown = rc->grown;
  rc->grown = false;
  cut->table_offset = rc->table_offset;
  cut->table_clusters = rc->table_clusters;
}

static int
failed (struct image *img, const char *what, uint64_t offset, int r)
{
  report_error ("%s: writing %s at host offset %" PRIu64 ": %s",
                img->config.filename, what, offset, strerror (-r));
  return r;
}

static int
write_fresh_block (struct image *img, const struct refblock *b,
                   uint8_t *buf)
{
  struct refcounts *rc = &img->refcounts;
  int r;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rc->lock);
    memcpy (buf, b->data, img->cluster_size);
  }
  if (SABOTAGED (SABOTAGE_SELF_COUNT)
      && b->offset >> img->cluster_bits >> rc->block_bits == b->index)
    refcount_set (buf, rc->order, (b->offset >> img->cluster_bits)
                  & ((UINT64_C (1) << rc->block_bits) - 1), 0);
  r = guard_write_buf (img, OVERLAP_REFCOUNT_BLOCK, buf, img->cluster_size,
                       b->offset);
  return r < 0 ? failed (img, "a new refcount block", b->offset, r) : 0;
}

/* The table as the cut has it: without the blocks made since. */
static int
write_grown_table (struct image *img, const struct refcounts_cut *cut)
{
  struct refcounts *rc = &img->refcounts;
  uint64_t bytes = cut->table_clusters << img->cluster_bits;
  uint64_t entries = bytes / sizeof (uint64_t), i;
  CLEANUP_FREE uint64_t *buf = malloc (bytes);
  const struct refblock *b;
  int r;

  if (!buf)
    return -ENOMEM;
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rc->lock);
    for (i = 0; i < entries; ++i)
      buf[i] = htobe64 (rc->table[i]);
    for (b = rc->fresh; b; b = b->fresh_next)
      if (b->index < entries)
        buf[b->index] = 0;
  }
  r = guard_write_buf (img, OVERLAP_REFCOUNT_TABLE, buf, bytes,
                       cut->table_offset);
  return r < 0 ? failed (img, "the new refcount table",
                         cut->table_offset, r) : 0;
}

int
refcounts_write_fresh (struct image *img, struct refcounts_cut *cut)
{
  CLEANUP_FREE uint8_t *buf = NULL;
  const struct refblock *b;
  int r;

  if (cut->fresh) {
    buf = malloc (img->cluster_size);
    if (!buf)
      return -ENOMEM;
  }
  for (b = cut->fresh; b; b = b->fresh_next) {
    r = write_fresh_block (img, b, buf);
    if (r < 0)
      return r;
  }
  if (!cut->grown)
    return 0;
  /* A table that the header may lead to already must not get entries for
   * blocks that are not durable.
   */
  if (cut->table_offset == img->refcounts.tried_table_offset) {
    r = guard_sync (img);
    if (r < 0)
      return r;
  }
  return write_grown_table (img, cut);
}

/* Offset and clusters are neighbours in the header: one write of 12
 * bytes within a sector.
 */
static int
write_header (struct image *img, struct refcounts_cut *cut)
{
  struct refcounts *rc = &img->refcounts;
  uint8_t buf[12];
  int r;

  store_be64 (buf, cut->table_offset);
  store_be32 (buf + 8, (uint32_t) cut->table_clusters);
  r = guard_write_buf (img, OVERLAP_MAIN_HEADER, buf, sizeof buf,
                       HEADER_OFFSET_REFCOUNT_TABLE);
  if (r < 0) {
    rc->tried_table_offset = cut->table_offset;
    return failed (img, "the header's refcount_table_offset",
                   HEADER_OFFSET_REFCOUNT_TABLE, r);
  }
  /* From here on it is a table like any other, also if this commit fails:
   * it gets its entries one at a time, after their blocks.
   */
  rc->disk_table_offset = cut->table_offset;
  cut->grown = false;
  return 0;
}

int
refcounts_write_links (struct image *img, struct refcounts_cut *cut)
{
  struct refcounts *rc = &img->refcounts;
  const struct refblock *b;
  uint64_t offset;
  uint8_t buf[8];
  int r;

  if (cut->grown)
    return write_header (img, cut);
  for (b = cut->fresh; b; b = b->fresh_next) {
    offset = rc->disk_table_offset + b->index * sizeof (uint64_t);
    store_be64 (buf, b->offset);
    r = guard_write_buf (img, OVERLAP_REFCOUNT_TABLE, buf, sizeof buf,
                         offset);
    if (r < 0)
      return failed (img, "a refcount table entry", offset, r);
  }
  return 0;
}

/* Take a dirty block's changed bytes, and mark it clean. */
static void
take_dirty (struct refcounts *rc, struct refblock *b, uint8_t *buf,
            uint32_t *begin, uint32_t *end)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rc->lock);

  *begin = b->dirty_begin;
  *end = b->dirty_end;
  memcpy (buf, b->data + *begin, *end - *begin);
  if (*begin < *end)
    atomic_fetch_sub (&rc->dirty_blocks, 1);
  b->dirty_begin = b->dirty_end = 0;
  b->on_dirty_list = false;
  b->writing = true;
}

static int
write_dirty_block (struct image *img, struct refblock *b, uint8_t *buf)
{
  struct refcounts *rc = &img->refcounts;
  uint32_t begin, end;
  int r = 0;

  take_dirty (rc, b, buf, &begin, &end);
  if (begin < end)
    r = guard_write_buf (img, OVERLAP_REFCOUNT_BLOCK, buf, end - begin,
                         b->offset + begin);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rc->lock);
  b->writing = false;
  if (r < 0) {
    refcounts_mark_dirty (rc, b, begin, end);
    failed (img, "reference counts", b->offset + begin, r);
  }
  return r;
}

int
refcounts_write_dirty (struct image *img)
{
  struct refcounts *rc = &img->refcounts;
  CLEANUP_FREE uint8_t *buf = NULL;
  struct refblock *list, *b;
  int r = 0;

  if (atomic_load (&rc->dirty_blocks) == 0)
    return 0;
  buf = malloc (img->cluster_size);
  if (!buf)
    return -ENOMEM;
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rc->lock);
    list = rc->dirty;
    rc->dirty = NULL;
  }
  while ((b = list) && r == 0) {
    list = b->dirty_next;
    r = write_dirty_block (img, b, buf);
  }

  /* After a failure, what was not tried goes back on the list. */
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rc->lock);
  while ((b = list)) {
    list = b->dirty_next;
    b->dirty_next = rc->dirty;
    rc->dirty = b;
  }
  return r;
}

void
refcounts_cut_end (struct image *img, struct refcounts_cut *cut,
                   bool success)
{
  struct refcounts *rc = &img->refcounts;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rc->lock);
  struct refblock *b;

  while ((b = cut->fresh)) {
    cut->fresh = b->fresh_next;
    b->fresh_next = NULL;
    if (success)
      b->state = REFBLOCK_SETTLED;
    else {
      b->state = REFBLOCK_FRESH;
      b->fresh_next = rc->fresh;
      rc->fresh = b;
    }
  }
  if (!success && cut->grown)
    rc->grown = true;
}
