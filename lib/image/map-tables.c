/* SPDX-License-Identifier: BSD-3-Clause */

/* L2 tables of our own.
 *
 * Before an entry can change, its table must exist and belong to the
 * active L1 table alone.  A missing table is allocated, all zero; one
 * that is shared with a snapshot is copied.  Either is written at once:
 * nothing leads to it before a commit's first sync has made it durable.
 * Slices in the cache stay as they are, because a shared table has no
 * dirty ones.
 *
 * Locks: table_lock while a table is made, across I/O; then epoch_lock
 * (read) for the switch of the L1 entry and the note of what it frees.
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

/* Switch an L1 entry to the table at OFFSET; OLD takes effect with it. */
static void
switch_table (struct image *img, uint64_t i, uint64_t offset,
              struct freed_list *old)
{
  ACQUIRE_RDLOCK_FOR_CURRENT_SCOPE (&img->commit.epoch_lock);
  const unsigned list = img->commit.epoch & 1;

  /* In this order, so that a walk sees the old table in one place or the
   * other (claims.c, K2).
   */
  freed_join (&img->freed, old);
  atomic_store (&img->map.l1[i], offset | ENTRY_COPIED);
  claim_ends (img, OVERLAP_ACTIVE_L2, offset);
  map_set_bit (img->map.l1_dirty[list], i);
  atomic_fetch_add (&img->map.l1_changed[list], 1);
  map_set_bit (img->map.table_ok, i);
  commit_needs_barrier (img);
}

static int
copy_table (struct image *img, uint64_t from, uint64_t to)
{
  CLEANUP_FREE uint8_t *buf = malloc (img->cluster_size);
  int r;

  if (!buf)
    return -ENOMEM;
  r = storage_read (img->storage, buf, img->cluster_size, from);
  if (r == 0)
    r = guard_write_buf (img, OVERLAP_ACTIVE_L2, buf, img->cluster_size,
                         to);
  if (r < 0)
    report_error ("%s: copying the L2 table at host offset %" PRIu64
                  " to %" PRIu64 ": %s", img->config.filename, from, to,
                  strerror (-r));
  return r;
}

/* A new table for L1 entry I; with FROM, a copy of that one. */
static int
make_table (struct image *img, uint64_t i, uint64_t from)
{
  struct freed_list old = { 0 };
  uint64_t offset;
  int r;

  if (from != 0) {
    r = freed_list_add (&old, OVERLAP_ACTIVE_L2,
                        from >> img->cluster_bits, 1);
    if (r < 0)
      return r;
  }
  r = alloc_metadata (img, OVERLAP_ACTIVE_L2, &offset);
  if (r == 0 && from != 0) {
    r = copy_table (img, from, offset);
    if (r < 0) {
      struct freed_list new = { 0 };

      if (freed_list_add (&new, OVERLAP_ACTIVE_L2,
                          offset >> img->cluster_bits, 1) == 0) {
        freed_join (&img->freed, &new);
        claim_ends (img, OVERLAP_ACTIVE_L2, offset);
      }
      else
        guard_unclaim (img, OVERLAP_ACTIVE_L2, offset, img->cluster_size);
    }
  }
  if (r < 0) {
    freed_list_free (&old);
    return r;
  }
  switch_table (img, i, offset, &old);
  return 0;
}

/* The L1 entry is COPIED; is its table's count one? */
static int
check_table (struct image *img, uint64_t i, uint64_t table)
{
  uint64_t value;
  int r = refcounts_get (img, table >> img->cluster_bits, &value);

  if (r < 0)
    return r;
  if (value == 1) {
    map_set_bit (img->map.table_ok, i);
    return 0;
  }
  if (value == 0)
    return image_corrupt (img, table, img->cluster_size, "active L2 table "
                          "has a reference count of 0");
  report_warning ("%s: L1 entry %" PRIu64 " has the COPIED flag but its L2 "
                  "table has a reference count of %" PRIu64 "; the table is "
                  "copied", img->config.filename, i, value);
  return make_table (img, i, table);
}

/* Make sure that the table of CLUSTER exists and may be changed. */
int
map_own_table (struct image *img, uint64_t cluster)
{
  struct map *m = &img->map;
  uint64_t i = cluster >> m->l2_bits, entry, table;

  if (map_bit_is_set (m->table_ok, i))
    return 0;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->table_locks[i % MAP_TABLE_LOCKS]);
  if (map_bit_is_set (m->table_ok, i))
    return 0;
  entry = atomic_load (&m->l1[i]);
  table = entry & ENTRY_OFFSET;
  if (table == 0)
    return make_table (img, i, 0);
  if (!(entry & ENTRY_COPIED))
    return make_table (img, i, table);
  return check_table (img, i, table);
}
