/* SPDX-License-Identifier: BSD-3-Clause */

/* Which parts of the file are metadata: one walk, used to enter all of
 * it in the tracker when the image is opened, to answer for ranges that
 * left the tracker (verify.c), to rebuild such ranges (restore.c), and to
 * compare the tracker with the tables (selfcheck.c).
 *
 * It sees what is in memory, what a commit has set apart and what the
 * last commit made durable together: a table that a pointer on the disk
 * still leads to is in the quarantine until the pointer is gone.  Tables
 * come and go while it runs; the order in which it looks is that in
 * which they go (claims.c, K2), so that it misses none that is there all
 * the time, though it may meet one twice.
 *
 * It needs no memory, since a check may depend on it, but for the
 * directory of an image with bitmaps.
 *
 * Locks: none is held while FN runs but claims.lock or freed.lock;
 * refcounts.lock is taken for each entry of the refcount table.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "checked.h"
#include "cleanup.h"
#include "entries.h"
#include "image-internal.h"
#include "report.h"
#include "walk.h"

/* The walk and its visitor. */
struct walk {
  struct image *img;
  overlap_set types;
  walk_fn *fn;
  void *opaque;
};

static int
visit (const struct walk *w, enum overlap_type type, uint64_t offset,
       uint64_t len)
{
  if (!(w->types & OVERLAP_BIT (type)) || len == 0)
    return 0;
  return w->fn (w->opaque, w->img, type, offset, len);
}

static bool
wants (const struct walk *w, enum overlap_type type)
{
  return w->types & OVERLAP_BIT (type);
}

static int
walk_active (const struct walk *w)
{
  struct image *img = w->img;
  uint64_t i, table;
  int r;

  /* A larger table that a resize has just made is longer than the map. */
  r = visit (w, OVERLAP_ACTIVE_L1, img->header.l1_table_offset,
             img->header.l1_size * sizeof (uint64_t));
  for (i = 0; i < img->map.l1_size && r == 0
         && wants (w, OVERLAP_ACTIVE_L2); ++i) {
    table = atomic_load (&img->map.l1[i]) & ENTRY_OFFSET;
    if (table != 0)
      r = visit (w, OVERLAP_ACTIVE_L2, table, img->cluster_size);
  }
  return r;
}

/* (A check has read a broken table for its numbers, and replaces it.) */
static int
walk_refcounts (const struct walk *w)
{
  struct refcounts *rc = &w->img->refcounts;
  uint64_t offset, bytes, entries, i;
  int r;

  if (w->img->damage.broken[TABLE_REFCOUNTS])
    return 0;
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rc->lock);
    offset = rc->table_offset;
    bytes = rc->table_clusters << w->img->cluster_bits;
    entries = rc->table_entries;
  }
  r = visit (w, OVERLAP_REFCOUNT_TABLE, offset, bytes);
  for (i = 0; i < entries && r == 0
         && wants (w, OVERLAP_REFCOUNT_BLOCK); ++i) {
    offset = refcounts_block_offset (w->img, i);
    if (offset != 0)
      r = visit (w, OVERLAP_REFCOUNT_BLOCK, offset, w->img->cluster_size);
  }
  return r;
}

/* Visit the cluster that each entry of a table in the file names: with
 * ENTRY_OFFSET applied, 0 is none.
 */
static int
walk_table (const struct walk *w, enum overlap_type type, uint64_t offset,
            uint64_t count)
{
  struct entries e;
  uint64_t i, entry;
  int more, r;

  entries_init (&e, w->img->storage, offset, count);
  while ((more = entries_next (&e, &i, &entry)) > 0)
    if (entry & ENTRY_OFFSET) {
      r = visit (w, type, entry & ENTRY_OFFSET, w->img->cluster_size);
      if (r != 0)
        return r;
    }
  if (more < 0)
    report_error ("%s: reading the table of %ss at host offset %" PRIu64
                  ": %s", w->img->config.filename, overlap_type_text (type),
                  offset, strerror (-more));
  return more;
}

static int
walk_snapshots (const struct walk *w)
{
  const struct snapshot_table *t = &w->img->snapshots;
  uint32_t i;
  int r;

  r = visit (w, OVERLAP_SNAPSHOT_TABLE, w->img->header.snapshots_offset,
             t->bytes);
  for (i = 0; i < t->count && r == 0; ++i) {
    const struct snapshot *s = &t->v[i];

    r = visit (w, OVERLAP_INACTIVE_L1, s->l1_table_offset,
               (uint64_t) s->l1_size * sizeof (uint64_t));
    if (r == 0 && wants (w, OVERLAP_INACTIVE_L2))
      r = walk_table (w, OVERLAP_INACTIVE_L2, s->l1_table_offset,
                      s->l1_size);
  }
  return r;
}

/* The directory is decoded each time: it is small, and asked for rarely. */
static int
read_bitmap_directory (struct image *img, uint64_t offset,
                       struct bitmap_directory *d)
{
  const struct header *h = &img->header;
  CLEANUP_FREE uint8_t *buf = NULL;
  struct format_error e;
  uint64_t end = atomic_load (&img->guard.end);
  int r;

  if (h->bitmap_directory_size > MIN (end, MAX_BITMAP_DIRECTORY_BYTES))
    return -EINVAL;
  buf = malloc (h->bitmap_directory_size);
  if (!buf)
    return -ENOMEM;
  r = storage_read (img->storage, buf, h->bitmap_directory_size, offset);
  if (r < 0)
    return r;
  /* What is wrong with it was told at the opening (bitmaps-load.c). */
  return bitmap_directory_decode (buf, h->bitmap_directory_size,
                                  h->nb_bitmaps, img->cluster_size, end, d,
                                  &e);
}

static int
walk_bitmaps (const struct walk *w)
{
  const struct header *h = &w->img->header;
  struct bitmap_directory d;
  uint64_t offset;
  uint32_t i;
  int r;

  /* If the autoclear bit was not set when the image was opened, what the
   * extension names may have been freed and be in other use since.
   */
  if (!h->has_bitmaps || !w->img->bitmaps_valid)
    return 0;
  r = bitmaps_walk_made (w->img, w->types, w->fn, w->opaque);
  if (r != 0)
    return r;
  offset = bitmaps_directory_offset (w->img);
  r = visit (w, OVERLAP_BITMAP_DIRECTORY, offset, h->bitmap_directory_size);
  if (r != 0 || (!wants (w, OVERLAP_BITMAP_TABLE)
                && !wants (w, OVERLAP_BITMAP_DATA)))
    return r;
  r = read_bitmap_directory (w->img, offset, &d);
  if (r == -EINVAL)
    return 0;                   /* nobody uses such bitmaps */
  if (r < 0) {
    report_error ("%s: reading the bitmap directory at host offset %" PRIu64
                  ": %s", w->img->config.filename, offset, strerror (-r));
    return r;
  }
  for (i = 0; i < d.count && r == 0; ++i) {
    const struct bitmap *b = &d.v[i];

    r = visit (w, OVERLAP_BITMAP_TABLE, b->table_offset,
               (uint64_t) b->table_size * sizeof (uint64_t));
    if (r == 0 && wants (w, OVERLAP_BITMAP_DATA))
      r = walk_table (w, OVERLAP_BITMAP_DATA, b->table_offset,
                      b->table_size);
  }
  bitmap_directory_free (&d);
  return r;
}

int
walk_metadata (struct image *img, overlap_set types, walk_fn *fn,
               void *opaque)
{
  const struct walk w = {
    .img = img, .types = types, .fn = fn, .opaque = opaque
  };
  int r;

  r = visit (&w, OVERLAP_MAIN_HEADER, 0, img->cluster_size);
  if (r == 0 && img->header.has_crypto)
    r = visit (&w, OVERLAP_CRYPTO_HEADER, img->header.crypto_offset,
               img->header.crypto_length);
  if (r == 0)
    r = claims_walk (img, types, fn, opaque);
  if (r == 0)
    r = walk_refcounts (&w);
  if (r == 0)
    r = walk_active (&w);
  if (r == 0)
    r = walk_bitmaps (&w);
  if (r == 0)
    r = freed_walk (img, types, fn, opaque);
  if (r == 0)
    r = walk_snapshots (&w);
  return r;
}
