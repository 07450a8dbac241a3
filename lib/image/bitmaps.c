/* SPDX-License-Identifier: BSD-3-Clause */

/* Persistent dirty bitmaps (qcow2 specification, "Bitmaps") in memory:
 * noting writes, and saying what was noted.
 *
 * A bitmap that is enabled (its auto flag is set) has a bit for each
 * GRANULARITY bytes of the disk, which every write, zeroing and trim sets
 * before it changes anything.  A disabled one stays as it is.  The life
 * of those that note writes:
 *
 *     loaded --> marked in use --> bits are set --> stored, mark gone
 *     (open)     (first write)     (requests)       (image_stop)
 *
 * Whatever ends the process in between leaves the mark, by which QEMU and
 * we know that the bitmap may lack something: nobody uses it any more.
 *
 * Invariants
 *
 * B1. No guest byte changes on the disk before the mark is durable
 *     (image_prepare_write), nor before its bit is set.
 * B2. No guest byte changes after its bit was read for storing without the
 *     bit being set.  Who changes sets his bits and then looks at CLOSED;
 *     who stores sets CLOSED and then looks at the bits.  All of these are
 *     sequentially consistent, so one sees the other; in the worst case
 *     both do, and a request fails whose bits are set.
 *
 * A bit that is set already is not set again: the noting costs one load a
 * word then, and no cache line moves between cores.  Bits of requests
 * that fail stay: dirty means that something may have changed.
 *
 * Takes no locks.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bitmaps.h"
#include "checked.h"
#include "image-internal.h"
#include "report.h"

#define ALL_ONES UINT64_MAX

void
bitmaps_init (struct bitmaps *b)
{
  pthread_mutex_init (&b->lock, NULL);
}

void
bitmaps_free (struct bitmaps *b)
{
  uint32_t i;

  for (i = 0; b->v && i < b->directory.count; ++i)
    free (b->v[i].words);
  free (b->v);
  free (b->encoded);
  bitmap_directory_free (&b->directory);
  freed_list_free (&b->made);
  pthread_mutex_destroy (&b->lock);
}

/*----------------------------------------------------------------------
 * Noting.
 */

/* The bits of word W that lie from FIRST to LAST. */
static uint64_t
word_mask (uint64_t w, uint64_t first, uint64_t last)
{
  uint64_t mask = ALL_ONES;

  if (w == first / 64)
    mask &= ALL_ONES << first % 64;
  if (w == last / 64)
    mask &= ALL_ONES >> (63 - last % 64);
  return mask;
}

/* Set the bits from FIRST to LAST, which is not past the end. */
static void
set_bits (struct dirty_bitmap *b, uint64_t first, uint64_t last)
{
  uint64_t w, mask;

  for (w = first / 64; w <= last / 64; ++w) {
    mask = word_mask (w, first, last);
    if ((atomic_load (&b->words[w]) & mask) == mask)
      continue;
    atomic_fetch_or (&b->words[w], mask);
    atomic_store (&b->changed, true);
  }
}

int
bitmaps_note_slowly (struct image *img, uint64_t offset, uint64_t len)
{
  struct dirty_bitmap *b;
  uint64_t first, last;

  for (b = img->bitmaps.recording; b && len > 0; b = b->next_recording) {
    first = offset >> b->granularity_bits;
    last = (offset + len - 1) >> b->granularity_bits;
    /* While the disk is resized there are requests past its old end. */
    if (first < b->nr_bits)
      set_bits (b, first, MIN (last, b->nr_bits - 1));
  }
  if (!atomic_load (&img->bitmaps.closed))
    return 0;
  report_error ("%s: a write came after the dirty bitmaps were stored, and "
                "is refused", img->config.filename);
  return -EIO;
}

/*----------------------------------------------------------------------
 * Another size.
 */

bool
bitmaps_fit (const struct image *img, uint64_t size, const char **name)
{
  const struct bitmaps *b = &img->bitmaps;
  uint64_t memory = 0, bits;
  uint32_t i;

  for (i = 0; b->v && i < b->directory.count; ++i) {
    if (b->v[i].unusable)
      continue;
    *name = b->directory.v[i].name;
    bits = div_up (size, UINT64_C (1) << b->v[i].granularity_bits);
    memory += (bitmap_words (bits)
               + div_up (div_up (bits, 8), img->cluster_size))
      * sizeof (uint64_t);
    if (!bitmap_fits (bits, img->cluster_size) || memory > MAX_BITMAPS_MEMORY)
      return false;
  }
  return true;
}

/* Words for NR_BITS, with what is in B. */
static _Atomic uint64_t *
resized_words (const struct dirty_bitmap *b, uint64_t nr_bits)
{
  const uint64_t n = bitmap_words (nr_bits);
  const uint64_t old = MIN (n, bitmap_words (b->nr_bits));
  _Atomic uint64_t *words = calloc (n ? n : 1, sizeof *words);
  uint64_t w;

  if (!words)
    return NULL;
  for (w = 0; w < old; ++w)
    words[w] = b->words[w];
  if (nr_bits < b->nr_bits && nr_bits % 64 != 0)
    words[n - 1] &= ~(ALL_ONES << nr_bits % 64);
  return words;
}

static bool
is_recording (const struct image *img, const struct dirty_bitmap *b)
{
  return !b->unusable
    && (img->bitmaps.directory.v[b - img->bitmaps.v].flags & BITMAP_AUTO);
}

static int
resize_one (struct image *img, struct dirty_bitmap *b, uint64_t old,
            uint64_t size)
{
  const uint64_t bits = div_up (size, UINT64_C (1) << b->granularity_bits);
  _Atomic uint64_t *words = resized_words (b, bits);

  if (!words)
    return -ENOMEM;
  free (b->words);
  b->words = words;
  b->nr_bits = bits;
  atomic_store (&b->changed, true);
  if (size > old && is_recording (img, b))
    set_bits (b, old >> b->granularity_bits, bits - 1);
  return 0;
}

int
bitmaps_resize (struct image *img, uint64_t old, uint64_t size)
{
  struct bitmaps *b = &img->bitmaps;
  uint32_t i;
  int r = 0;

  for (i = 0; b->v && i < b->directory.count && r == 0; ++i)
    if (!b->v[i].unusable)
      r = resize_one (img, &b->v[i], old, size);
  return r;
}

/*----------------------------------------------------------------------
 * What was noted.
 */

uint32_t
image_bitmaps (const struct image *img)
{
  return img->bitmaps.v ? img->bitmaps.directory.count : 0;
}

void
image_bitmap_info (const struct image *img, uint32_t i,
                   struct image_bitmap *info)
{
  const struct bitmap *entry = &img->bitmaps.directory.v[i];

  info->name = entry->name;
  info->granularity = UINT64_C (1) << entry->granularity_bits;
  info->recording = entry->flags & BITMAP_AUTO;
  info->unusable = img->bitmaps.v[i].unusable;
}

/* The first bit from FIRST on, up to END, that is not VALUE; END if there
 * is none.
 */
static uint64_t
run_end (const struct dirty_bitmap *b, uint64_t first, uint64_t end,
         bool value)
{
  const uint64_t flip = value ? ALL_ONES : 0;
  uint64_t w = first / 64, others;

  others = (atomic_load (&b->words[w]) ^ flip) & ALL_ONES << first % 64;
  while (!others) {
    if (++w * 64 >= end)
      return end;
    others = atomic_load (&b->words[w]) ^ flip;
  }
  return MIN (end, w * 64 + (uint64_t) __builtin_ctzll (others));
}

static bool
is_dirty (const struct dirty_bitmap *b, uint64_t bit)
{
  return atomic_load (&b->words[bit / 64]) >> bit % 64 & 1;
}

int
image_bitmap_extents (struct image *img, uint32_t i, uint64_t offset,
                      uint64_t len, bool one, image_extent_fn *add,
                      void *opaque)
{
  const struct dirty_bitmap *b = &img->bitmaps.v[i];
  const unsigned bits = b->granularity_bits;
  const uint64_t end = offset + len;
  const uint64_t stop = ((end - 1) >> bits) + 1;
  uint64_t first, next;
  bool dirty;
  int r = 0;

  while (offset < end && r == 0) {
    first = offset >> bits;
    dirty = is_dirty (b, first);
    first = first + 1 < stop ? run_end (b, first + 1, stop, dirty) : stop;
    next = MIN (end, first << bits);
    r = add (opaque, offset, next - offset, dirty ? 0 : IMAGE_EXTENT_HOLE);
    offset = one ? end : next;
  }
  return r;
}
