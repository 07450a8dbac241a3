/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading the bitmaps of an image that is being opened, and marking them
 * in use.
 *
 * What keeps a bitmap from being used:
 *
 *     in use            it was not stored after its disk was written to
 *     not understood    a granularity, or extra data, that is not ours
 *     not sound         its table is too short or points where no cluster
 *                       can be
 *     no room           all of them together, with their tables, take more
 *                       than MAX_BITMAPS_MEMORY
 *
 * None of these keeps the disk from being used.  A bitmap that should have
 * noted writes and cannot is marked in use as if it had been lost: nobody
 * must take it for a whole one later.  A disabled one that we cannot use
 * stays as it is, since writes do not concern it.  If the directory itself
 * is not understood the autoclear bit goes (begin.c), which says the same
 * of all of them.
 *
 * A flag is 4 bytes at a multiple of 4, so a disk does not tear it: the
 * directory can be written in place, at any number of flags.
 *
 * Takes no locks.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bitmaps.h"
#include "byteorder.h"
#include "checked.h"
#include "cleanup.h"
#include "image-internal.h"
#include "report.h"
#include "sabotage.h"

/* An image must not be able to fill the log. */
#define MAX_LINES 8

/* The fields of the header and the directory, read and decoded. */
static int
read_directory (struct image *img)
{
  const struct header *h = &img->header;
  struct bitmaps *b = &img->bitmaps;
  struct format_error e;
  int r;

  b->encoded = malloc (h->bitmap_directory_size);
  if (!b->encoded)
    return -ENOMEM;
  r = storage_read (img->storage, b->encoded, h->bitmap_directory_size,
                    h->bitmap_directory_offset);
  if (r < 0) {
    report_error ("%s: reading the bitmap directory at host offset %" PRIu64
                  ": %s", img->config.filename, h->bitmap_directory_offset,
                  strerror (-r));
    return r;
  }
  r = bitmap_directory_decode (b->encoded, h->bitmap_directory_size,
                               h->nb_bitmaps, img->cluster_size,
                               atomic_load (&img->guard.end), &b->directory,
                               &e);
  if (r == -EINVAL)
    report_warning ("%s: %s; the bitmaps are left as they are, their tables "
                    "are not protected, and with the first write they are "
                    "lost", img->config.filename, e.text);
  return r;
}

int
bitmap_read_table (struct image *img, uint32_t i, uint64_t **table,
                   struct format_error *why)
{
  const struct bitmap *entry = &img->bitmaps.directory.v[i];
  const uint64_t end = atomic_load (&img->guard.end);
  CLEANUP_FREE uint64_t *t = malloc (entry->table_size * sizeof *t);
  uint32_t j;
  int r;

  if (!t)
    return -ENOMEM;
  r = storage_read (img->storage, t, entry->table_size * sizeof *t,
                    entry->table_offset);
  if (r < 0) {
    report_error ("%s: reading a bitmap table at host offset %" PRIu64 ": %s",
                  img->config.filename, entry->table_offset, strerror (-r));
    return r;
  }
  for (j = 0; j < entry->table_size; ++j) {
    t[j] = be64toh (t[j]);
    r = bitmap_table_entry_check (t[j], j, img->cluster_size, end, why);
    if (r < 0)
      return r;
  }
  *table = t;
  t = NULL;
  return 0;
}

/* The words that entry J of the table is for, if any of them are there. */
static int
load_cluster (struct image *img, struct dirty_bitmap *b, uint64_t entry,
              uint64_t j, uint64_t *buf)
{
  const uint64_t per_cluster = img->cluster_size / sizeof *buf;
  const uint64_t words = bitmap_words (b->nr_bits), first = j * per_cluster;
  const uint64_t n = first < words ? MIN (per_cluster, words - first) : 0;
  const uint64_t host = bitmap_entry_offset (entry);
  uint64_t w;
  int r;

  if (n == 0 || entry == BITMAP_TABLE_ZEROES)
    return 0;
  if (host == 0)
    memset (buf, 0xff, n * sizeof *buf);
  else {
    r = storage_read (img->storage, buf, n * sizeof *buf, host);
    if (r < 0) {
      report_error ("%s: reading bitmap data at host offset %" PRIu64 ": %s",
                    img->config.filename, host, strerror (-r));
      return r;
    }
  }
  for (w = 0; w < n; ++w)
    b->words[first + w] = le64toh (buf[w]);
  return 0;
}

static int
load_data (struct image *img, uint32_t i, const uint64_t *table)
{
  struct dirty_bitmap *b = &img->bitmaps.v[i];
  CLEANUP_FREE uint64_t *buf = malloc (img->cluster_size);
  const uint64_t words = bitmap_words (b->nr_bits);
  uint64_t j;
  int r = 0;

  b->words = calloc (words ? words : 1, sizeof *b->words);
  if (!buf || !b->words)
    return -ENOMEM;
  for (j = 0; j < img->bitmaps.directory.v[i].table_size && r == 0; ++j)
    r = load_cluster (img, b, table[j], j, buf);
  /* What lies past the end of the disk means nothing. */
  if (b->nr_bits % 64 != 0)
    b->words[words - 1] &= ~(UINT64_MAX << b->nr_bits % 64);
  return r;
}

/* Why it cannot be used, as far as the directory tells; or NULL. */
static const char *
why_unusable (const struct image *img, const struct bitmap *entry)
{
  const uint64_t table_bits
    = (entry->table_size << img->cluster_bits) * UINT64_C (8);
  const unsigned g = entry->granularity_bits;

  if (entry->flags & BITMAP_IN_USE)
    return "it is inconsistent: it was in use when the image was written to "
      "and not closed";
  if (entry->extra_size > 0 && !(entry->flags & BITMAP_EXTRA_COMPATIBLE))
    return "it has extra data that is not understood";
  if (g < MIN_BITMAP_GRANULARITY_BITS || g > MAX_BITMAP_GRANULARITY_BITS)
    return "its granularity is not supported";
  if (img->size > 0 && (img->size - 1) >> g >= table_bits)
    return "its table is too short for the disk";
  return NULL;
}

/* Does it fit beside the others?  Tables count, too, though they are freed
 * again: many bitmaps may have one table, and it takes time to read.
 */
static bool
has_room (struct bitmaps *all, uint64_t nr_bits, uint64_t entries)
{
  const uint64_t bytes = (bitmap_words (nr_bits) + entries)
    * sizeof (uint64_t);

  if (bytes > MAX_BITMAPS_MEMORY - all->memory)
    return false;
  all->memory += bytes;
  return true;
}

static int
load_one (struct image *img, uint32_t i)
{
  const struct bitmap *entry = &img->bitmaps.directory.v[i];
  struct dirty_bitmap *b = &img->bitmaps.v[i];
  CLEANUP_FREE uint64_t *table = NULL;
  struct format_error e;
  int r;

  b->unusable = why_unusable (img, entry);
  if (b->unusable)
    return 0;
  b->granularity_bits = entry->granularity_bits;
  b->nr_bits = div_up (img->size, UINT64_C (1) << b->granularity_bits);
  if (!has_room (&img->bitmaps, b->nr_bits, entry->table_size)) {
    b->unusable = "all bitmaps of the image together are too large";
    return 0;
  }
  r = bitmap_read_table (img, i, &table, &e);
  if (r == -EINVAL) {
    report_warning ("%s: bitmap '%.100s': %s", img->config.filename,
                    entry->name, e.text);
    b->unusable = "its table is broken";
    return 0;
  }
  return r == 0 ? load_data (img, i, table) : r;
}

/* Tell what cannot be used, and put the others to work. */
static void
arrange (struct image *img)
{
  struct bitmaps *b = &img->bitmaps;
  struct dirty_bitmap **last = &b->recording;
  unsigned lines = 0;
  uint32_t i;

  for (i = 0; i < b->directory.count; ++i) {
    const struct bitmap *entry = &b->directory.v[i];

    if (b->v[i].unusable && ++lines <= MAX_LINES)
      report_warning ("%s: bitmap '%.100s' is not used: %s",
                      img->config.filename, entry->name, b->v[i].unusable);
    if (!b->v[i].unusable && (entry->flags & BITMAP_AUTO)) {
      *last = &b->v[i];
      last = &b->v[i].next_recording;
    }
  }
  if (lines > MAX_LINES)
    report_warning ("%s: %u more bitmaps are not used",
                    img->config.filename, lines - MAX_LINES);
}

int
bitmaps_load (struct image *img)
{
  const struct header *h = &img->header;
  struct bitmaps *b = &img->bitmaps;
  uint32_t i;
  int r;

  if (h->has_bitmaps && !img->bitmaps_valid)
    report_warning ("%s: its persistent bitmaps are not used: a program that "
                    "does not know bitmaps has written to the image",
                    img->config.filename);
  /* In a corrupt image nothing is written, and little can be believed.
   * (Only behind a header of an odd length can a sector end in the field
   * by which the directory is switched.)
   */
  if (!h->has_bitmaps || !img->bitmaps_valid
      || atomic_load (&img->guard.corrupt)
      || (h->bitmaps_at + BITMAPS_OFFSET_DIRECTORY) % 512 > 504)
    return 0;
  r = read_directory (img);
  if (r < 0)
    return r == -EINVAL ? 0 : r;
  b->v = calloc (b->directory.count, sizeof *b->v);
  if (!b->v)
    return -ENOMEM;
  for (i = 0; i < b->directory.count && r == 0; ++i)
    r = load_one (img, i);
  if (r == 0)
    arrange (img);
  return r;
}

/*----------------------------------------------------------------------
 * In use.
 */

/* Will it be out of date after a write, and does not say so yet? */
static bool
must_be_marked (const struct bitmaps *b, uint32_t i)
{
  const uint32_t flags = b->directory.v[i].flags;

  return !(flags & BITMAP_IN_USE)
    && ((flags & BITMAP_AUTO) || (b->all_in_use && !b->v[i].unusable));
}

int
bitmaps_mark_in_use (struct image *img)
{
  struct bitmaps *b = &img->bitmaps;
  bool any = false;
  uint32_t i;
  int r;

  for (i = 0; b->v && i < b->directory.count; ++i) {
    struct bitmap entry = b->directory.v[i];

    if (!must_be_marked (b, i))
      continue;
    entry.flags |= BITMAP_IN_USE;
    bitmap_entry_encode (b->encoded, &entry);
    any = true;
  }
  if (!any)
    return 0;
  b->in_use = true;             /* also if it fails: to be stored again */
  if (SABOTAGED (SABOTAGE_BITMAP_MARK))
    return 0;
  r = guard_write_buf (img, OVERLAP_BITMAP_DIRECTORY, b->encoded,
                       img->header.bitmap_directory_size,
                       img->header.bitmap_directory_offset);
  if (r == 0)
    r = guard_sync (img);
  if (r < 0)
    report_error ("%s: marking the bitmaps in use, in the directory at host "
                  "offset %" PRIu64 ": %s", img->config.filename,
                  img->header.bitmap_directory_offset, strerror (-r));
  return r;
}
