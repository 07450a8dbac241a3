/* SPDX-License-Identifier: BSD-3-Clause */

/* The metadata of an image when its disk is full: what the tracker will
 * need some day.
 *
 * All that is there stays.  A guest that writes to every cluster makes an
 * L2 table for each L1 entry that has none, and one for each whose table
 * it shares with a snapshot, since that is copied and stays the
 * snapshot's.  New clusters are handed out from the end of the file on
 * (what is free before it is not counted upon): a table, then the data
 * that it maps.  Each stretch that a refcount block covers begins with
 * that block (crash-safety.md: a new block lies in the range it covers).
 *
 * How much data is to come is known only roughly without reading all L2
 * tables: with snapshots every cluster may have to be copied; without, what
 * the counts say is in use need not come again.
 *
 * The order in which a real guest writes does not matter much: the size
 * of the map depends on how many pieces there are, and hardly on where
 * they lie (docs/design/tracker.md has both).
 *
 * Locks: as walk_metadata.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "checked.h"
#include "image-internal.h"
#include "offline.h"
#include "refcount.h"
#include "report.h"

void
offline_facts (const struct image *img, struct offline_facts *facts)
{
  const struct header *h = &img->header;

  *facts = (struct offline_facts) {
    .version = h->version,
    .cluster_bits = img->cluster_bits,
    .refcount_bits = 1u << h->refcount_order,
    .size = img->size,
    .file_size = atomic_load (&img->guard.end),
    .snapshots = img->snapshots.count,
    .data_file = (h->incompatible & INCOMPAT_DATA_FILE) != 0,
    .encrypted = h->crypt_method != CRYPT_NONE,
    .sound = !img->untracked
      && img->snapshots.count == h->nb_snapshots,
  };
  facts->clusters = div_up (facts->file_size, img->cluster_size);
}

struct forecast {
  struct image *img;
  walk_fn *fn;
  void *opaque;
  uint64_t at;                  /* cluster: the next to be handed out */
  uint64_t next_block;          /* refcount block that is not made yet */
  uint64_t metadata;            /* clusters that there are now */
};

static int
count_and_visit (void *opaque, struct image *img, enum overlap_type type,
                 uint64_t offset, uint64_t len)
{
  struct forecast *f = opaque;

  f->metadata += div_up (len, img->cluster_size);
  return f->fn (f->opaque, img, type, offset, len);
}

/* Clusters with a count. */
static int
count_used (struct image *img, uint64_t *used)
{
  uint64_t i, n;
  int r;

  *used = 0;
  for (i = 0; i < img->refcounts.table_entries; ++i) {
    if (refcounts_block_offset (img, i) == 0)
      continue;
    r = refcounts_used_in_block (img, i, &n);
    if (r < 0)
      return r;
    *used += n;
  }
  return 0;
}

/* Data clusters that are still to come. */
static int
count_data (struct forecast *f, uint64_t *data)
{
  struct image *img = f->img;
  const uint64_t disk = div_up (img->size, img->cluster_size);
  uint64_t used;
  int r;

  *data = 0;
  if (img->map.layout.data_file)
    return 0;
  r = count_used (img, &used);
  if (r < 0)
    return r;
  used = used > f->metadata ? used - f->metadata : 0;
  *data = img->snapshots.count > 0 ? disk
    : disk > used ? disk - used : 0;
  return 0;
}

static int
visit_new (struct forecast *f, enum overlap_type type)
{
  struct image *img = f->img;

  return f->fn (f->opaque, img, type, f->at++ << img->cluster_bits,
                img->cluster_size);
}

/* Hand out COUNT clusters, of data if TYPE is negative; blocks as they
 * become necessary.
 */
static int
hand_out (struct forecast *f, int type, uint64_t count)
{
  const unsigned bits = f->img->refcounts.block_bits;
  uint64_t n;
  int r = 0;

  while (count > 0 && r == 0) {
    if (f->at >> bits >= f->next_block) {
      f->next_block = (f->at >> bits) + 1;
      r = visit_new (f, OVERLAP_REFCOUNT_BLOCK);
      continue;
    }
    n = MIN (count, (f->next_block << bits) - f->at);
    if (type >= 0) {
      r = visit_new (f, (enum overlap_type) type);
      n = 1;
    }
    else
      f->at += n;
    count -= n;
  }
  return r;
}

/* L1 entry I will have a table that it does not have now. */
static bool
is_missing (const struct image *img, uint64_t i)
{
  const uint64_t entry = atomic_load (&img->map.l1[i]);

  return !(entry & ENTRY_OFFSET) || !(entry & ENTRY_COPIED);
}

/* L1 entries that the disk uses. */
static uint64_t
used_entries (const struct image *img)
{
  return MIN (div_up (div_up (img->size, img->cluster_size),
                      UINT64_C (1) << img->map.l2_bits), img->map.l1_size);
}

uint64_t
forecast_tables (const struct image *img)
{
  const uint64_t entries = used_entries (img);
  uint64_t i, tables = 0;

  for (i = 0; i < entries; ++i)
    tables += is_missing (img, i);
  return tables;
}

static int
write_all (struct forecast *f)
{
  struct image *img = f->img;
  const uint64_t entries = used_entries (img);
  const uint64_t tables = forecast_tables (img);
  uint64_t i, data, done = 0, share;
  int r = count_data (f, &data);

  if (r == 0 && tables == 0)
    return hand_out (f, GUARD_DATA, data);
  for (i = 0; i < entries && r == 0; ++i) {
    if (!is_missing (img, i))
      continue;
    share = data / tables + (done++ < data % tables);
    r = hand_out (f, OVERLAP_ACTIVE_L2, 1);
    if (r == 0)
      r = hand_out (f, GUARD_DATA, share);
  }
  return r;
}

/* A table that cannot name all blocks moves to where there is room. */
static int
grow_table (struct forecast *f)
{
  struct image *img = f->img;
  uint64_t count;

  if (f->next_block <= img->refcounts.table_entries)
    return 0;
  count = div_up (f->next_block * sizeof (uint64_t), img->cluster_size);
  return f->fn (f->opaque, img, OVERLAP_REFCOUNT_TABLE,
                f->at << img->cluster_bits, count << img->cluster_bits);
}

int
forecast_metadata (struct image *img, walk_fn *fn, void *opaque)
{
  struct forecast f = {
    .img = img, .fn = fn, .opaque = opaque,
    .at = div_up (atomic_load (&img->guard.end), img->cluster_size),
  };
  int r = walk_metadata (img, OVERLAP_ALL, count_and_visit, &f);

  /* The last block that there is covers this. */
  f.next_block = img->refcounts.table_entries;
  while (f.next_block > 0 && refcounts_block_offset (img, f.next_block - 1)
         == 0)
    f.next_block--;
  if (r == 0)
    r = write_all (&f);
  return r == 0 ? grow_table (&f) : r;
}
