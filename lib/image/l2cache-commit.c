/* SPDX-License-Identifier: BSD-3-Clause */

/* Writing L2 slices: the part of a commit that is theirs.  The states of
 * a slice, and what is marked, taken and frozen, are explained in
 * l2cache.c.
 *
 * Locks: a shard's lock, never held while writing: a slice is copied
 * first.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "image-internal.h"
#include "l2cache-internal.h"
#include "report.h"
#include "sabotage.h"

bool
l2cache_cut_is_empty (struct image *img, uint64_t epoch)
{
  const struct l2cache *c = &img->l2cache;
  size_t i;

  for (i = 0; i < (size_t) 1 << c->shard_bits; ++i) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->shards[i].lock);
    if (c->shards[i].dirty[epoch & 1])
      return false;
  }
  return true;
}

struct place {
  uint64_t offset;              /* host bytes */
  struct slice *slice;
};

static int
compare_places (const void *a, const void *b)
{
  const struct place *pa = a, *pb = b;

  return (pa->offset > pb->offset) - (pa->offset < pb->offset);
}

/* All slices of the cut, in the order in which they lie in the file.
 * They cannot go away (L1), and their tables cannot move: a table that
 * has a dirty slice belongs to the active L1 alone.
 */
static int
collect (struct image *img, uint64_t epoch, struct place **places,
         size_t *n)
{
  const struct l2cache *c = &img->l2cache;
  const unsigned list = epoch & 1;
  size_t i, max = 0;
  struct slice *s;

  *n = 0;
  *places = NULL;
  for (i = 0; i < (size_t) 1 << c->shard_bits; ++i) {
    struct shard *sh = &c->shards[i];
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&sh->lock);

    for (s = sh->dirty[list]; s; s = s->dirty_next[list]) {
      if (*n == max) {
        struct place *p;

        max = max ? 2 * max : 64;
        p = realloc (*places, max * sizeof *p);
        if (!p)
          return -ENOMEM;
        *places = p;
      }
      (*places)[*n].slice = s;
      (*places)[*n].offset
        = slice_offset (img, s->index, l1_entry_of (img, s->index));
      ++*n;
    }
  }
  if (*n > 0)
    qsort (*places, *n, sizeof **places, compare_places);
  return 0;
}

/* Copy a slice as it was at the cut (L2). */
static void
take (struct image *img, struct slice *s, uint8_t *buf)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&shard_of (img, s->index)->lock);

  if (s->frozen && !SABOTAGED (SABOTAGE_CUT_SLICE)) {
    memcpy (buf, s->frozen, slice_bytes (img));
    free (s->frozen);
    s->frozen = NULL;
  }
  else {
    memcpy (buf, s->entries, slice_bytes (img));
    s->taken = true;
  }
}

#define MAX_WRITE (256 * 1024)

int
l2cache_write_cut (struct image *img, uint64_t epoch)
{
  CLEANUP_FREE struct place *places = NULL;
  CLEANUP_FREE uint8_t *buf = NULL;
  const size_t bytes = slice_bytes (img), most = MAX_WRITE / bytes;
  size_t n, i, j;
  int r;

  r = collect (img, epoch, &places, &n);
  if (r < 0 || n == 0)
    return r;
  buf = malloc (MAX_WRITE);
  if (!buf)
    return -ENOMEM;

  /* Slices that are neighbours in the file go out in one write. */
  for (i = 0; i < n; i += j) {
    for (j = 0; j < most && i + j < n; ++j) {
      if (places[i + j].offset != places[i].offset + j * bytes)
        break;
      take (img, places[i + j].slice, buf + j * bytes);
    }
    r = guard_write_buf (img, OVERLAP_ACTIVE_L2, buf, j * bytes,
                         places[i].offset);
    if (r < 0) {
      report_error ("%s: writing the L2 table at host offset %" PRIu64
                    ": %s", img->config.filename, places[i].offset,
                    strerror (-r));
      return r;
    }
  }
  return 0;
}

/* A slice of a commit that failed belongs to the open epoch. */
static void
try_again (struct image *img, struct shard *sh, struct slice *s)
{
  const uint64_t now = img->commit.epoch;

  free (s->frozen);             /* the contents of now include it */
  s->frozen = NULL;
  if (s->dirty_epoch == now)
    return;
  s->dirty_epoch = now;
  s->taken = false;
  s->dirty_next[now & 1] = sh->dirty[now & 1];
  sh->dirty[now & 1] = s;
}

void
l2cache_cut_end (struct image *img, uint64_t epoch, bool success)
{
  struct l2cache *c = &img->l2cache;
  const unsigned list = epoch & 1;
  struct slice *s, *next;
  size_t i;

  for (i = 0; i < (size_t) 1 << c->shard_bits; ++i) {
    struct shard *sh = &c->shards[i];
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&sh->lock);

    for (s = sh->dirty[list]; s; s = next) {
      next = s->dirty_next[list];
      if (!success)
        try_again (img, sh, s);
      else if (s->dirty_epoch == epoch) {
        s->dirty_epoch = 0;
        s->taken = false;
        atomic_fetch_sub (&c->dirty_slices, 1);
      }
    }
    sh->dirty[list] = NULL;
  }
}
