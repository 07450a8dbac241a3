/* SPDX-License-Identifier: BSD-3-Clause */

/* L2 slices in memory.
 *
 * A slice is 4 KiB of an L2 table (the whole table if clusters are
 * smaller), named by the guest clusters it maps, so it keeps its name
 * when its table moves.  Slices live in shards by a hash of the name;
 * each shard has its own lock, hash table and clock.
 *
 * A slice and the commit:
 *
 *             l2cache_change            the cut (epoch + 1)
 *     CLEAN -----------------> DIRTY ------------------> MARKED
 *       ^                        ^                          |
 *       |                        |  l2cache_change:         | take:
 *       |                        |  FROZEN keeps the cut's  | copied for
 *       |                        +--------------------------+ writing
 *       |                        |                          v
 *       |                        +---- l2cache_change --- TAKEN
 *       +------------ l2cache_cut_end (durable) ------------+
 *
 * DIRTY means dirty_epoch == the open epoch; MARKED, TAKEN mean that it
 * is an older one.  A failed commit makes MARKED and TAKEN slices DIRTY
 * again.
 *
 * Invariants
 *
 * L1. Only clean slices are evicted.
 * L2. What a commit writes is the slice as it was at the cut.
 * L3. A slice that was read from a table is used only if the L1 entry
 *     still leads there afterwards: the table may have been replaced,
 *     released and reused during the reading.
 * L4. Reads do not depend on commits: if nothing can be evicted the cache
 *     grows; dirty slices are kept below dirty_limit by making writers
 *     commit first (commit_throttle).
 *
 * Locks: a shard's lock, never held across I/O: a slice that is being
 * read is in the hash, marked LOADING, and whoever wants it waits.
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
#include "l2cache-internal.h"
#include "report.h"

#define DEFAULT_CACHE (UINT64_C (128) << 20)

/* A commit should not have to write more than this at once. */
#define MAX_DIRTY_BYTES (UINT64_C (32) << 20)

static struct slice **
bucket (struct image *img, struct shard *sh, uint64_t index)
{
  return &sh->hash[(index * UINT64_C (0x9e3779b97f4a7c15) >> 16)
                   & (img->l2cache.hash_size - 1)];
}

/* How many slices the cache may hold: the whole disk, at most the
 * default, unless told otherwise.  *DIRTY of them may be dirty: enough
 * stay clean for reads to get by (L4), which is no question where the
 * whole disk fits.
 */
static size_t
wanted_slices (struct image *img, size_t *dirty)
{
  const uint64_t per_slice = slice_entries (img) << img->cluster_bits;
  const uint64_t cache = img->config.l2_cache_size;
  const uint64_t whole = MAX (div_up (img->size, per_slice), UINT64_C (1));
  const uint64_t most = MAX_DIRTY_BYTES / slice_bytes (img);
  uint64_t n = (cache ? cache : DEFAULT_CACHE) / slice_bytes (img);

  if (n >= whole) {
    *dirty = (size_t) most;
    return (size_t) MAX (whole, UINT64_C (2));
  }
  n = MAX (n, UINT64_C (2));
  *dirty = (size_t) MIN (n * 3 / 4 + 1, most);
  return (size_t) n;
}

int
l2cache_open (struct image *img)
{
  struct l2cache *c = &img->l2cache;
  size_t total = wanted_slices (img, &c->dirty_limit), i;

  while (c->shard_bits < 6 && (total >> c->shard_bits) >= 16)
    c->shard_bits++;
  c->limit = (total >> c->shard_bits) + 1;
  c->hash_size = 4;
  while (c->hash_size < c->limit && c->hash_size < 4096)
    c->hash_size *= 2;

  c->shards = aligned_alloc (64, sizeof c->shards[0] << c->shard_bits);
  if (!c->shards)
    return -ENOMEM;
  memset (c->shards, 0, sizeof c->shards[0] << c->shard_bits);
  for (i = 0; i < (size_t) 1 << c->shard_bits; ++i) {
    pthread_mutex_init (&c->shards[i].lock, NULL);
    pthread_cond_init (&c->shards[i].loaded, NULL);
  }
  for (i = 0; i < (size_t) 1 << c->shard_bits; ++i) {
    c->shards[i].hash = calloc (c->hash_size, sizeof (struct slice *));
    if (!c->shards[i].hash)
      return -ENOMEM;
  }
  return 0;
}

static void
close_shard (struct shard *sh)
{
  struct slice *s, *next;

  if (sh->hand) {
    sh->hand->clock_prev->clock_next = NULL;
    for (s = sh->hand; s; s = next) {
      next = s->clock_next;
      free (s->frozen);
      free (s);
    }
  }
  free (sh->hash);
  pthread_mutex_destroy (&sh->lock);
  pthread_cond_destroy (&sh->loaded);
}

void
l2cache_close (struct image *img)
{
  struct l2cache *c = &img->l2cache;
  size_t i;

  if (!c->shards)
    return;
  for (i = 0; i < (size_t) 1 << c->shard_bits; ++i)
    close_shard (&c->shards[i]);
  free (c->shards);
  c->shards = NULL;
}

static struct slice *
find (struct image *img, struct shard *sh, uint64_t index)
{
  struct slice *s;

  for (s = *bucket (img, sh, index); s; s = s->hash_next)
    if (s->index == index)
      return s;
  return NULL;
}

static void
clock_insert (struct shard *sh, struct slice *s)
{
  if (!sh->hand) {
    s->clock_prev = s->clock_next = s;
    sh->hand = s;
  }
  else {                        /* behind the hand: looked at last */
    s->clock_next = sh->hand;
    s->clock_prev = sh->hand->clock_prev;
    s->clock_prev->clock_next = s;
    s->clock_next->clock_prev = s;
  }
  sh->slices++;
}

/* Take a slice out of the shard and free it. */
static void
drop (struct image *img, struct shard *sh, struct slice *s)
{
  struct slice **p;

  for (p = bucket (img, sh, s->index); *p != s; p = &(*p)->hash_next)
    ;
  *p = s->hash_next;
  if (s->clock_next == s)
    sh->hand = NULL;
  else {
    if (sh->hand == s)
      sh->hand = s->clock_next;
    s->clock_prev->clock_next = s->clock_next;
    s->clock_next->clock_prev = s->clock_prev;
  }
  sh->slices--;
  free (s->frozen);
  free (s);
}

/* Make room for one slice, if any can go (L1). */
static void
evict (struct image *img, struct shard *sh)
{
  size_t tries = 2 * sh->slices;
  struct slice *s;

  while (sh->hand && sh->slices >= img->l2cache.limit && tries-- > 0) {
    s = sh->hand;
    sh->hand = s->clock_next;
    if (s->loading || s->dirty_epoch != 0)
      continue;
    if (s->used) {
      s->used = false;
      continue;
    }
    drop (img, sh, s);
  }
}

/* An L1 entry is sound if it is aligned and its table begins inside the
 * file.
 */
static int
check_l1_entry (struct image *img, uint64_t entry)
{
  uint64_t table = entry & ENTRY_OFFSET;

  if (!is_aligned (table, img->cluster_size))
    return image_corrupt (img, 0, 0, "L2 table offset 0x%" PRIx64 " in the "
                          "L1 table is not a multiple of the cluster size "
                          "%" PRIu64, table, img->cluster_size);
  if (table >= atomic_load (&img->guard.end))
    return image_corrupt (img, 0, 0, "L2 table offset 0x%" PRIx64 " in the "
                          "L1 table is past the end of the file", table);
  return 0;
}

/* Read a slice's entries, without any lock (L3). */
static int
read_slice (struct image *img, struct slice *s)
{
  uint64_t entry, offset;
  int r;

  do {
    entry = l1_entry_of (img, s->index);
    r = check_l1_entry (img, entry);
    if (r < 0)
      return r;
    offset = slice_offset (img, s->index, entry);
    r = storage_read (img->storage, s->entries, slice_bytes (img), offset);
    if (r < 0) {
      report_error ("%s: reading the L2 table at host offset %" PRIu64
                    ": %s", img->config.filename, offset, strerror (-r));
      return r;
    }
  } while (l1_entry_of (img, s->index) != entry);
  return 0;
}

/* Load a slice that is not in the cache; the shard is locked before and,
 * on success, after.
 */
static int
load (struct image *img, struct shard *sh, uint64_t index,
      struct slice **ret)
{
  struct slice *s, **p;
  int r;

  evict (img, sh);
  s = calloc (1, sizeof *s + slice_bytes (img));
  if (!s) {
    pthread_mutex_unlock (&sh->lock);
    return -ENOMEM;
  }
  s->index = index;
  s->loading = true;
  p = bucket (img, sh, index);
  s->hash_next = *p;
  *p = s;
  clock_insert (sh, s);
  sh->misses++;
  pthread_mutex_unlock (&sh->lock);

  r = read_slice (img, s);

  pthread_mutex_lock (&sh->lock);
  s->loading = false;
  s->used = true;
  pthread_cond_broadcast (&sh->loaded);
  if (r < 0) {
    drop (img, sh, s);
    pthread_mutex_unlock (&sh->lock);
    return r;
  }
  *ret = s;
  return 0;
}

/* Find a slice that is in the cache and loaded, with its shard locked. */
static struct slice *
find_loaded (struct image *img, struct shard *sh, uint64_t index)
{
  struct slice *s;

  while ((s = find (img, sh, index)) && s->loading)
    pthread_cond_wait (&sh->loaded, &sh->lock);
  if (s && !s->used)            /* a line that need not be written */
    s->used = true;
  return s;
}

int
l2cache_get (struct image *img, uint64_t index, struct slice **ret)
{
  struct shard *sh = shard_of (img, index);
  struct slice *s;

  if ((l1_entry_of (img, index) & ENTRY_OFFSET) == 0)
    return 1;
  pthread_mutex_lock (&sh->lock);
  s = find_loaded (img, sh, index);
  if (s) {
    sh->hits++;
    *ret = s;
    return 0;
  }
  return load (img, sh, index, ret);
}

struct slice *
l2cache_peek (struct image *img, uint64_t index)
{
  struct shard *sh = shard_of (img, index);
  struct slice *s;

  pthread_mutex_lock (&sh->lock);
  s = find (img, sh, index);
  if (s && !s->loading)
    return s;
  pthread_mutex_unlock (&sh->lock);
  return NULL;
}

/* A slice that is being loaded may have been read before the file was
 * changed: wait for it, then drop it like the others.
 */
static void
forget_shard (struct image *img, struct shard *sh)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&sh->lock);

  while (sh->hand) {
    if (sh->hand->loading)
      pthread_cond_wait (&sh->loaded, &sh->lock);
    else
      drop (img, sh, sh->hand);
  }
}

void
l2cache_forget (struct image *img)
{
  size_t i;

  for (i = 0; i < (size_t) 1 << img->l2cache.shard_bits; ++i)
    forget_shard (img, &img->l2cache.shards[i]);
  tlb_forget_all (&img->map.tlb);
}

void
l2cache_put (struct image *img, struct slice *s)
{
  pthread_mutex_unlock (&shard_of (img, s->index)->lock);
}

int
l2cache_change (struct image *img, struct slice *s)
{
  const uint64_t epoch = img->commit.epoch;
  struct shard *sh = shard_of (img, s->index);
  const unsigned list = epoch & 1;

  if (s->dirty_epoch == epoch)
    return 0;
  if (s->dirty_epoch != 0 && !s->taken) { /* MARKED */
    s->frozen = malloc (slice_bytes (img));
    if (!s->frozen)
      return -ENOMEM;
    memcpy (s->frozen, s->entries, slice_bytes (img));
  }
  if (s->dirty_epoch == 0)
    atomic_fetch_add (&img->l2cache.dirty_slices, 1);
  s->dirty_epoch = epoch;
  s->taken = false;
  s->dirty_next[list] = sh->dirty[list];
  sh->dirty[list] = s;
  return 0;
}

void
l2cache_counters (struct image *img, uint64_t *hits, uint64_t *misses)
{
  const struct l2cache *c = &img->l2cache;
  size_t i;

  *hits = *misses = 0;
  for (i = 0; i < (size_t) 1 << c->shard_bits; ++i) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->shards[i].lock);
    *hits += c->shards[i].hits;
    *misses += c->shards[i].misses;
  }
}
