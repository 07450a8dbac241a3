/* SPDX-License-Identifier: BSD-3-Clause */

/* Persistent dirty bitmaps of the active disk.  See bitmaps.c,
 * bitmaps-load.c and bitmaps-store.c.
 */

#ifndef QCOW2_BITMAPS_H
#define QCOW2_BITMAPS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bitmap.h"
#include "freed.h"
#include "overlap.h"
#include "walk.h"

struct image;

/* What all bitmaps of an image may take in memory.  (512 MiB is what QEMU,
 * and bitmap_fits, allow each of them on disk.)
 */
#define MAX_BITMAPS_MEMORY (UINT64_C (1) << 30)

/* A bitmap in memory.  Bit I is that of the guest bytes from I << BITS
 * on; the first bit of a word is its lowest.
 */
struct dirty_bitmap {
  const char *unusable;         /* why; NULL: it can be used */
  _Atomic uint64_t *words;      /* NULL if it cannot */
  uint64_t nr_bits;
  unsigned granularity_bits;
  atomic_bool changed;          /* since it was stored */
  struct dirty_bitmap *next_recording;
};

struct bitmaps {
  struct bitmap_directory directory; /* as on disk, but for in_use */
  uint8_t *encoded;             /* the same, as bytes */
  struct dirty_bitmap *v;       /* one for each of the directory */
  struct dirty_bitmap *recording; /* those that note writes */
  uint64_t memory;              /* bytes of all words and tables */

  bool all_in_use;              /* mark the disabled ones, too */
  bool in_use;                  /* they are marked on disk; begin_lock */
  atomic_bool closed;           /* stored, or given up: no more writes */

  /* Guards the directory's place in img->header once there are walks,
   * and what follows.
   */
  pthread_mutex_t lock;
  struct freed_list made;       /* new clusters that nothing leads to yet */
};

void bitmaps_init (struct bitmaps *b);
void bitmaps_free (struct bitmaps *b);

/* Read the directory and all bitmaps that can be used, when the image is
 * opened.  What is wrong with them is reported and leaves the image as
 * usable as it was; only want of memory and failing reads are errors
 * (reported but for -ENOMEM).
 */
int bitmaps_load (struct image *img);

/* Is the directory understood, so that bitmaps can be kept up to date? */
static inline bool
bitmaps_are_kept (const struct bitmaps *b)
{
  return b->v != NULL;
}

/* Mark what will change with the next write as in use, durably.  With
 * begin_lock held.  0 or a negative errno (reported).
 */
int bitmaps_mark_in_use (struct image *img);

/* Guest bytes are about to change.  -EIO: the bitmaps are closed
 * (reported).
 */
int bitmaps_note_slowly (struct image *img, uint64_t offset, uint64_t len);

static inline int
bitmaps_note (struct image *img, const struct bitmaps *b, uint64_t offset,
              uint64_t len)
{
  return b->recording ? bitmaps_note_slowly (img, offset, len) : 0;
}

/* May the bitmaps that can be used be those of a disk of SIZE bytes?  If
 * not *NAME is the first that is too large for the format, or in which all
 * of them are too large for us.
 */
bool bitmaps_fit (const struct image *img, uint64_t size, const char **name);

/* The disk had OLD bytes and has SIZE: follow.  What is new is dirty where
 * writes are noted.  0 or -ENOMEM.
 */
int bitmaps_resize (struct image *img, uint64_t old, uint64_t size);

/* They are not stored, and stay in use. */
static inline void
bitmaps_give_up (struct bitmaps *b)
{
  b->in_use = false;
}

/* Store them and take the marks away.  All else was committed.  What goes
 * wrong is a warning: the bitmaps are lost.  True if it is for another
 * commit to give back what they took before.
 */
bool bitmaps_store (struct image *img);

/* For walk_metadata: what is on its way into the file; and where the
 * directory is now.
 */
int bitmaps_walk_made (struct image *img, overlap_set types, walk_fn *fn,
                       void *opaque);
uint64_t bitmaps_directory_offset (struct image *img);

/* bitmaps-load.c: the table of bitmap I, all of it checked.  An array of
 * table_size entries, to be freed; *WHY says what is wrong with it.
 */
int bitmap_read_table (struct image *img, uint32_t i, uint64_t **table,
                       struct format_error *why);

/* Words that so many bits take. */
static inline uint64_t
bitmap_words (uint64_t bits)
{
  return bits / 64 + (bits % 64 != 0);
}

#endif /* QCOW2_BITMAPS_H */
