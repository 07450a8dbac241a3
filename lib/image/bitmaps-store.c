/* SPDX-License-Identifier: BSD-3-Clause */

/* Storing the bitmaps when everything else is done.
 *
 *     write   bitmap data, tables, a directory       all in new clusters
 *     commit  their counts, and a sync               nothing leads there yet
 *     write   bitmap_directory_offset in the header  8 bytes in one sector
 *     sync
 *     release what the old directory led to          by the next commit
 *
 * So a crash leaves the old directory, in which the bitmaps are in use, or
 * the new one with all of them.  Neither their number nor the directory's
 * length changes, which is why 8 bytes are enough, and the autoclear bit
 * stays as it is.
 *
 * Clusters of bitmap data that are all zeroes or all ones are not stored:
 * the table says so.  A bitmap in which no bit was set keeps its table.
 *
 * What was made stands in a list, by which walks find it while no table
 * leads there, and which becomes that of the freed if nothing comes of it:
 *
 *     claimed --> made --> linked (the header)
 *                   +----> freed: for want of space, say
 *
 * A failure costs the bitmaps, not the disk: they stay in use.  If it is
 * the header's write that failed, both directories stay: nobody knows to
 * which one it leads.
 *
 * Locks: bitmaps.lock for the list and the place of the directory.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bitmaps.h"
#include "byteorder.h"
#include "checked.h"
#include "claims.h"
#include "cleanup.h"
#include "image-internal.h"
#include "report.h"
#include "sabotage.h"

/*----------------------------------------------------------------------
 * New clusters.
 */

static int
note_made (struct image *img, enum overlap_type type, uint64_t offset,
           uint64_t clusters)
{
  struct bitmaps *b = &img->bitmaps;
  int r;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&b->lock);
    r = freed_list_add (&b->made, (int) type, offset >> img->cluster_bits,
                        clusters);
  }
  if (r == 0)
    claim_ends (img, type, offset);
  else {
    guard_unclaim (img, type, offset, clusters << img->cluster_bits);
    report_warning ("%s: %" PRIu64 " clusters at host offset %" PRIu64
                    " are leaked for want of memory", img->config.filename,
                    clusters, offset);
  }
  return r;
}

/* LEN bytes of BUF in new clusters in a row. */
static int
write_new (struct image *img, enum overlap_type type, const void *buf,
           uint64_t len, uint64_t *offset)
{
  const uint64_t clusters = div_up (len, img->cluster_size);
  int r = alloc_contiguous (img, type, clusters, offset);

  if (r == 0)
    r = note_made (img, type, *offset, clusters);
  if (r == 0)
    r = guard_write_buf (img, (int) type, buf, len, *offset);
  return r;
}

int
bitmaps_walk_made (struct image *img, overlap_set types, walk_fn *fn,
                   void *opaque)
{
  struct bitmaps *b = &img->bitmaps;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&b->lock);

  return freed_list_walk (img, &b->made, types, fn, opaque);
}

uint64_t
bitmaps_directory_offset (struct image *img)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&img->bitmaps.lock);

  return img->header.bitmap_directory_offset;
}

/*----------------------------------------------------------------------
 * A bitmap.
 */

/* N words from FIRST on, as on disk, and what they are all of. */
static void
gather (const struct dirty_bitmap *b, uint64_t first, uint64_t n,
        uint64_t *buf, bool *zeroes, bool *ones)
{
  uint64_t w, word, full;

  *zeroes = *ones = true;
  for (w = 0; w < n; ++w) {
    word = atomic_load (&b->words[first + w]);
    full = first + w == b->nr_bits / 64 ? ~(UINT64_MAX << b->nr_bits % 64)
      : UINT64_MAX;
    *zeroes &= word == 0;
    *ones &= word == full;
    buf[w] = htole64 (word);
  }
}

/* The entry for cluster J of the data, which is written if need be. */
static int
store_cluster (struct image *img, const struct dirty_bitmap *b, uint64_t j,
               uint64_t *buf, uint64_t *entry)
{
  const uint64_t per_cluster = img->cluster_size / sizeof *buf;
  const uint64_t first = j * per_cluster;
  const uint64_t n = MIN (per_cluster, bitmap_words (b->nr_bits) - first);
  bool zeroes, ones;

  gather (b, first, n, buf, &zeroes, &ones);
  if (zeroes || ones) {
    *entry = zeroes ? BITMAP_TABLE_ZEROES : BITMAP_TABLE_ONES;
    return 0;
  }
  memset (buf + n, 0, (per_cluster - n) * sizeof *buf);
  return write_new (img, OVERLAP_BITMAP_DATA, buf, img->cluster_size, entry);
}

/* Data and table; ENTRY says afterwards where the table is. */
static int
store_bitmap (struct image *img, const struct dirty_bitmap *b,
              struct bitmap *entry)
{
  const uint64_t n = MAX (div_up (bitmap_words (b->nr_bits)
                                  * sizeof (uint64_t), img->cluster_size),
                          UINT64_C (1));
  CLEANUP_FREE uint64_t *table = calloc (n, sizeof *table);
  CLEANUP_FREE uint64_t *buf = malloc (img->cluster_size);
  uint64_t j;
  int r = 0;

  if (!table || !buf)
    return -ENOMEM;
  for (j = 0; j < n && b->nr_bits > 0 && r == 0; ++j) {
    r = store_cluster (img, b, j, buf, &table[j]);
    table[j] = htobe64 (table[j]);
  }
  if (r == 0)
    r = write_new (img, OVERLAP_BITMAP_TABLE, table, n * sizeof *table,
                   &entry->table_offset);
  entry->table_size = (uint32_t) n;
  return r;
}

/* What bitmap I led to until now. */
static int
drop_bitmap (struct image *img, uint32_t i, struct freed_list *old)
{
  const struct bitmap *entry = &img->bitmaps.directory.v[i];
  CLEANUP_FREE uint64_t *table = NULL;
  struct format_error why;
  uint64_t host;
  uint32_t j;
  int r = bitmap_read_table (img, i, &table, &why);

  for (j = 0; r == 0 && j < entry->table_size; ++j) {
    host = bitmap_entry_offset (table[j]);
    if (host != 0)
      r = freed_list_add (old, OVERLAP_BITMAP_DATA,
                          host >> img->cluster_bits, 1);
  }
  if (r == 0)
    r = freed_list_add (old, OVERLAP_BITMAP_TABLE,
                        entry->table_offset >> img->cluster_bits,
                        div_up (entry->table_size * UINT64_C (8),
                                img->cluster_size));
  return r;
}

/*----------------------------------------------------------------------
 * All of them.
 */

/* Is it marked in use, by us? */
static bool
is_stored (const struct bitmaps *b, uint32_t i)
{
  return !b->v[i].unusable
    && (b->all_in_use || (b->directory.v[i].flags & BITMAP_AUTO));
}

/* ENTRIES become those of the new directory, which is written. */
static int
make_directory (struct image *img, struct bitmap *entries,
                struct freed_list *old, uint64_t *offset)
{
  const uint64_t len = img->header.bitmap_directory_size;
  struct bitmaps *b = &img->bitmaps;
  uint32_t i;
  int r = 0;

  for (i = 0; i < b->directory.count && r == 0; ++i) {
    entries[i] = b->directory.v[i];
    if (!is_stored (b, i))
      continue;
    if (atomic_load (&b->v[i].changed)) {
      r = drop_bitmap (img, i, old);
      if (r == 0)
        r = store_bitmap (img, &b->v[i], &entries[i]);
    }
    bitmap_entry_encode (b->encoded, &entries[i]);
  }
  if (r == 0)
    r = freed_list_add (old, OVERLAP_BITMAP_DIRECTORY,
                        img->header.bitmap_directory_offset
                        >> img->cluster_bits,
                        div_up (len, img->cluster_size));
  if (r == 0)
    r = write_new (img, OVERLAP_BITMAP_DIRECTORY, b->encoded, len, offset);
  return r;
}

static int
switch_directory (struct image *img, uint64_t offset)
{
  uint8_t field[8];
  int r;

  store_be64 (field, offset);
  r = guard_write_buf (img, OVERLAP_MAIN_HEADER, field, sizeof field,
                       img->header.bitmaps_at + BITMAPS_OFFSET_DIRECTORY);
  return r == 0 ? guard_sync (img) : r;
}

/* The new directory is durable: the old one is given up. */
static void
directory_switched (struct image *img, const struct bitmap *entries,
                    uint64_t offset, struct freed_list *old)
{
  struct bitmaps *b = &img->bitmaps;

  freed_join (&img->freed, old);
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&b->lock);
    img->header.bitmap_directory_offset = offset;
    freed_list_free (&b->made);
  }
  memcpy (b->directory.v, entries, b->directory.count * sizeof *entries);
}

/* Nothing leads to what was made. */
static void
give_up_made (struct image *img)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&img->bitmaps.lock);

  freed_join (&img->freed, &img->bitmaps.made);
}

static int
store (struct image *img)
{
  CLEANUP_FREE struct bitmap *entries
    = calloc (img->bitmaps.directory.count, sizeof *entries);
  struct freed_list old = { 0 };
  uint64_t offset;
  int r = entries ? make_directory (img, entries, &old, &offset) : -ENOMEM;

  if (SABOTAGED (SABOTAGE_BITMAP_OLD))
    freed_join (&img->freed, &old);
  if (r == 0 && !SABOTAGED (SABOTAGE_BITMAP_COMMIT))
    r = commit_now (img);
  if (r < 0)
    give_up_made (img);
  else {
    r = switch_directory (img, offset);
    if (r == 0)
      directory_switched (img, entries, offset, &old);
  }
  freed_list_free (&old);
  return r;
}

bool
bitmaps_store (struct image *img)
{
  struct bitmaps *b = &img->bitmaps;
  int r;

  if (!b->in_use)
    return false;
  atomic_store (&b->closed, true); /* B2 */
  b->in_use = false;
  r = guard_may_write (img);
  if (r == 0)
    r = store (img);
  if (r < 0)
    report_warning ("%s: the bitmaps could not be stored and are lost "
                    "(inconsistent): %s", img->config.filename,
                    strerror (-r));
  return true;
}
