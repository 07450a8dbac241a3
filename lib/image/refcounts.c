/* SPDX-License-Identifier: BSD-3-Clause */

/* Reference counts in memory (qcow2 specification, "Host cluster
 * management").
 *
 * The refcount table is held whole; blocks are cached.  Changes stay in
 * memory until a commit writes them.  Counts are raised when clusters
 * are handed out (alloc.c, packer.c) and lowered when the quarantine
 * releases them (freed.c), so a cluster whose count in memory is zero is free
 * for use: the durable count may still be higher, never the pointers.
 *
 * A block is fresh from its making until a commit has written it and
 * the table entry that leads to it:
 *
 *     (none) --refcounts_add_block--> FRESH --refcounts_cut--> CUT
 *                                       ^                       |
 *                 refcounts_cut_end ----+-----(failed)----------+
 *                                                               |
 *     (reloaded as) SETTLED <--------- refcounts_cut_end -------+
 *
 * Invariants
 *
 * R1. A block that is fresh, cut, dirty or being written stays in the
 *     cache.
 * R2. A block's space on disk is reserved before its first change, so
 *     that a commit does not fail for want of space.
 * R3. Writing a count that is higher than the cut's is harmless (a
 *     leak, after a crash); a lower one is written only after the
 *     commit that removed the last pointer, because lowering happens at
 *     release.
 *
 * Locks: refcounts.lock, held across the reading of a block and while
 * the guard is asked.
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
#include "refcount.h"
#include "report.h"

#define DEFAULT_CACHE (UINT64_C (4) << 20)

static int
read_table (struct image *img)
{
  struct refcounts *rc = &img->refcounts;
  uint64_t bytes = rc->table_clusters << img->cluster_bits, i;
  int r;

  rc->table = malloc (MAX (bytes, (uint64_t) 1));
  if (!rc->table)
    return -ENOMEM;
  r = storage_read (img->storage, rc->table, bytes, rc->table_offset);
  if (r < 0) {
    report_error ("%s: reading the refcount table at host offset %" PRIu64
                  ": %s", img->config.filename, rc->table_offset,
                  strerror (-r));
    return r;
  }
  rc->table_entries = bytes / sizeof (uint64_t);
  for (i = 0; i < rc->table_entries; ++i)
    rc->table[i] = be64toh (rc->table[i]);
  return 0;
}

/* Recursive: allocation asks the guard with the lock held, which under
 * overlap-limit=verify walks the refcount table for its answer.
 */
static void
init_lock (pthread_mutex_t *lock)
{
  pthread_mutexattr_t attr;

  pthread_mutexattr_init (&attr);
  pthread_mutexattr_settype (&attr, PTHREAD_MUTEX_RECURSIVE);
  pthread_mutex_init (lock, &attr);
  pthread_mutexattr_destroy (&attr);
}

int
refcounts_open (struct image *img)
{
  struct refcounts *rc = &img->refcounts;
  uint64_t cache = img->config.refcount_cache_size;
  uint64_t end = atomic_load (&img->guard.end);

  init_lock (&rc->lock);
  rc->order = img->header.refcount_order;
  rc->block_bits = img->cluster_bits + 3 - rc->order;
  rc->table_offset = rc->disk_table_offset =
    img->header.refcount_table_offset;
  rc->table_clusters = img->header.refcount_table_clusters;
  rc->untouched = storage_can_grow (img->storage)
    ? div_up (end, img->cluster_size) : UINT64_MAX;

  rc->limit = (size_t) ((cache ? cache : DEFAULT_CACHE)
                        >> img->cluster_bits);
  if (rc->limit < 4)
    rc->limit = 4;
  rc->hash_size = 16;
  while (rc->hash_size < rc->limit && rc->hash_size < 65536)
    rc->hash_size *= 2;
  rc->hash = calloc (rc->hash_size, sizeof rc->hash[0]);
  if (!rc->hash)
    return -ENOMEM;
  return read_table (img);
}

static void
free_block (struct refblock *block)
{
  free (block->data);
  free (block);
}

void
refcounts_close (struct image *img)
{
  struct refcounts *rc = &img->refcounts;
  struct refblock *block, *next;

  for (block = rc->lru_first; block; block = next) {
    next = block->lru_next;
    free_block (block);
  }
  free (rc->hash);
  free (rc->table);
  pthread_mutex_destroy (&rc->lock);
}

int
refcounts_reload (struct image *img)
{
  struct refcounts *rc = &img->refcounts;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rc->lock);
  struct refblock *block, *next;

  for (block = rc->lru_first; block; block = next) {
    next = block->lru_next;
    free_block (block);
  }
  memset (rc->hash, 0, rc->hash_size * sizeof rc->hash[0]);
  rc->lru_first = rc->lru_last = NULL;
  rc->blocks = 0;
  rc->hint = 0;
  rc->packer.cluster = 0;
  if (rc->untouched != UINT64_MAX)
    rc->untouched = div_up (atomic_load (&img->guard.end),
                            img->cluster_size);
  free (rc->table);
  rc->table_entries = 0;
  rc->table_offset = rc->disk_table_offset =
    img->header.refcount_table_offset;
  rc->table_clusters = img->header.refcount_table_clusters;
  return read_table (img);
}

static struct refblock **
bucket (struct refcounts *rc, uint64_t index)
{
  return &rc->hash[index & (rc->hash_size - 1)];
}

static void
lru_remove (struct refcounts *rc, struct refblock *block)
{
  if (block->lru_prev)
    block->lru_prev->lru_next = block->lru_next;
  else
    rc->lru_first = block->lru_next;
  if (block->lru_next)
    block->lru_next->lru_prev = block->lru_prev;
  else
    rc->lru_last = block->lru_prev;
}

static void
lru_push (struct refcounts *rc, struct refblock *block)
{
  block->lru_prev = NULL;
  block->lru_next = rc->lru_first;
  if (rc->lru_first)
    rc->lru_first->lru_prev = block;
  else
    rc->lru_last = block;
  rc->lru_first = block;
}

static bool
may_evict (const struct refblock *block)
{
  return block->state == REFBLOCK_SETTLED && !block->writing
    && block->dirty_begin == block->dirty_end;
}

/* Make room for one more, if anything can go. */
static void
evict (struct refcounts *rc)
{
  struct refblock *block = rc->lru_last, *prev, **p;

  for (; block && rc->blocks >= rc->limit; block = prev) {
    prev = block->lru_prev;
    if (!may_evict (block))
      continue;
    for (p = bucket (rc, block->index); *p != block; p = &(*p)->hash_next)
      ;
    *p = block->hash_next;
    lru_remove (rc, block);
    rc->blocks--;
    free_block (block);
  }
}

/* An empty block in the cache. */
static struct refblock *
new_block (struct image *img, uint64_t index, uint64_t offset)
{
  struct refcounts *rc = &img->refcounts;
  struct refblock *block, **p;

  evict (rc);
  block = calloc (1, sizeof *block);
  if (!block)
    return NULL;
  block->data = calloc (1, img->cluster_size);
  if (!block->data) {
    free (block);
    return NULL;
  }
  block->index = index;
  block->offset = offset;
  p = bucket (rc, index);
  block->hash_next = *p;
  *p = block;
  lru_push (rc, block);
  rc->blocks++;
  return block;
}

static void
drop_block (struct refcounts *rc, struct refblock *block)
{
  struct refblock **p;

  for (p = bucket (rc, block->index); *p != block; p = &(*p)->hash_next)
    ;
  *p = block->hash_next;
  lru_remove (rc, block);
  rc->blocks--;
  free_block (block);
}

/* A table entry is sound if it is aligned and its block begins inside
 * the file.
 */
static int
check_entry (struct image *img, uint64_t index, uint64_t entry)
{
  if (entry & (img->cluster_size - 1))
    return image_corrupt (img, 0, 0, "refcount table entry %" PRIu64
                          " is 0x%" PRIx64 ", not a multiple of the "
                          "cluster size %" PRIu64, index, entry,
                          img->cluster_size);
  if (entry >= atomic_load (&img->guard.end))
    return image_corrupt (img, 0, 0, "refcount table entry %" PRIu64
                          " points to host offset %" PRIu64
                          ", past the end of the file", index, entry);
  return 0;
}

/* One more, by the holder of the lock. */
static void
count_one (_Atomic uint64_t *counter)
{
  atomic_store_explicit (counter,
                         atomic_load_explicit (counter, memory_order_relaxed)
                         + 1, memory_order_relaxed);
}

static struct refblock *
cached (struct refcounts *rc, uint64_t index)
{
  struct refblock *b;

  for (b = *bucket (rc, index); b; b = b->hash_next)
    if (b->index == index)
      break;
  return b;
}

int
refcounts_block (struct image *img, uint64_t index,
                 struct refblock **block)
{
  struct refcounts *rc = &img->refcounts;
  struct refblock *b = cached (rc, index);
  int r;

  *block = NULL;
  if (b) {
    if (b != rc->lru_first) {
      lru_remove (rc, b);
      lru_push (rc, b);
    }
    count_one (&rc->hits);
    *block = b;
    return 0;
  }
  if (index >= rc->table_entries || rc->table[index] == 0)
    return 0;

  count_one (&rc->misses);
  r = check_entry (img, index, rc->table[index]);
  if (r < 0)
    return r;
  b = new_block (img, index, rc->table[index]);
  if (!b)
    return -ENOMEM;
  r = storage_read (img->storage, b->data, img->cluster_size, b->offset);
  if (r < 0) {
    report_error ("%s: reading the refcount block at host offset %" PRIu64
                  ": %s", img->config.filename, b->offset, strerror (-r));
    drop_block (rc, b);
    return r;
  }
  *block = b;
  return 0;
}

int
refcounts_add_block (struct image *img, uint64_t index, uint64_t offset,
                     struct refblock **block)
{
  struct refcounts *rc = &img->refcounts;
  struct refblock *b = new_block (img, index, offset);

  if (!b)
    return -ENOMEM;
  b->state = REFBLOCK_FRESH;
  b->reserved = true;
  b->fresh_next = rc->fresh;
  rc->fresh = b;
  rc->table[index] = offset;
  *block = b;
  return 0;
}

void
refcounts_drop_fresh (struct image *img, uint64_t n)
{
  struct refcounts *rc = &img->refcounts;
  struct refblock *b;

  for (; n > 0; --n) {
    b = rc->fresh;
    rc->fresh = b->fresh_next;
    rc->table[b->index] = 0;
    drop_block (rc, b);
  }
}

uint64_t
refcounts_block_offset (struct image *img, uint64_t index)
{
  struct refcounts *rc = &img->refcounts;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rc->lock);

  return index < rc->table_entries ? rc->table[index] : 0;
}

void
refcounts_mark_dirty (struct refcounts *rc, struct refblock *block,
                      uint32_t begin, uint32_t end)
{
  if (block->state == REFBLOCK_FRESH)
    return;                     /* it is written whole */
  if (block->dirty_begin == block->dirty_end) {
    block->dirty_begin = begin;
    block->dirty_end = end;
    atomic_fetch_add (&rc->dirty_blocks, 1);
  }
  else {
    block->dirty_begin = MIN (block->dirty_begin, begin);
    block->dirty_end = MAX (block->dirty_end, end);
  }
  if (!block->on_dirty_list) {
    block->on_dirty_list = true;
    block->dirty_next = rc->dirty;
    rc->dirty = block;
  }
}

/* Invariant R2. */
static int
reserve_block (struct image *img, struct refblock *block)
{
  int r;

  if (block->reserved)
    return 0;
  r = guard_reserve (img, OVERLAP_REFCOUNT_BLOCK, block->offset,
                     img->cluster_size, false);
  if (r == 0)
    block->reserved = true;
  return r;
}

int
refcounts_set_run (struct image *img, struct refblock *block,
                   uint64_t entry, uint64_t count, uint64_t value)
{
  struct refcounts *rc = &img->refcounts;
  uint64_t i, last = entry + count - 1;
  int r = reserve_block (img, block);

  if (r < 0)
    return r;
  for (i = entry; i <= last; ++i)
    refcount_set (block->data, rc->order, i, value);
  refcounts_mark_dirty (rc, block, (uint32_t) ((entry << rc->order) / 8),
                        (uint32_t) ((((last + 1) << rc->order) + 7) / 8));
  return 0;
}

int
refcounts_block_of (struct image *img, uint64_t cluster,
                    struct refblock **block)
{
  int r = refcounts_block (img, cluster >> img->refcounts.block_bits, block);

  return r == 0 && !*block ? -EIO : r;
}

/* The count, with the lock held. */
static int
get (struct image *img, uint64_t cluster, uint64_t *value)
{
  struct refcounts *rc = &img->refcounts;
  struct refblock *block;
  int r = refcounts_block (img, cluster >> rc->block_bits, &block);

  if (r < 0)
    return r;
  *value = !block ? 0
    : refcount_get (block->data, rc->order,
                    cluster & ((UINT64_C (1) << rc->block_bits) - 1));
  return 0;
}

int
refcounts_get (struct image *img, uint64_t cluster, uint64_t *value)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&img->refcounts.lock);

  return get (img, cluster, value);
}

int
refcounts_used_in_block (struct image *img, uint64_t index, uint64_t *used)
{
  struct refcounts *rc = &img->refcounts;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rc->lock);
  const uint64_t end = UINT64_C (1) << rc->block_bits;
  struct refblock *block;
  uint64_t i = 0, first;
  int r;

  *used = 0;
  r = refcounts_block (img, index, &block);
  if (r < 0 || !block)
    return r;
  for (;;) {
    first = refcount_find_used (block->data, rc->order, i, end);
    if (first == end)
      return 0;
    i = refcount_find_zero (block->data, rc->order, first, end);
    *used += i - first;
  }
}

int
refcounts_all_one (struct image *img, uint64_t first, uint64_t count,
                   bool *yes, uint64_t *where, uint64_t *value)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&img->refcounts.lock);
  uint64_t i;
  int r;

  *yes = true;
  for (i = 0; i < count; ++i) {
    r = get (img, first + i, value);
    if (r < 0)
      return r;
    if (*value != 1) {
      *yes = false;
      *where = first + i;
      return 0;
    }
  }
  return 0;
}

uint32_t
refcounts_known_one (struct image *img, const uint64_t *cluster, unsigned n)
{
  struct refcounts *rc = &img->refcounts;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rc->lock);
  const uint64_t mask = (UINT64_C (1) << rc->block_bits) - 1;
  const struct refblock *block = NULL;
  uint32_t ones = 0;
  unsigned i;

  for (i = 0; i < n; ++i) {
    const uint64_t index = cluster[i] >> rc->block_bits;

    if (!block || block->index != index)
      block = cached (rc, index);
    if (block && refcount_get (block->data, rc->order,
                               cluster[i] & mask) == 1)
      ones |= UINT32_C (1) << i;
  }
  return ones;
}

int
refcounts_probe_last (struct image *img, uint64_t first,
                      uint64_t *count, bool *last)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&img->refcounts.lock);
  uint64_t max = *count, value, i;
  int r;

  *count = 1;
  r = get (img, first, &value);
  if (r < 0)
    return r;
  if (value == 0)
    return image_corrupt (img, first << img->cluster_bits,
                          img->cluster_size,
                          "freed cluster has a reference count of 0");
  *last = value == 1;
  for (i = 1; i < max; ++i) {
    r = get (img, first + i, &value);
    if (r < 0 || value == 0 || (value == 1) != *last)
      break;
  }
  *count = i;
  if (*last)
    packer_leave (img, first, i);
  return 0;
}

/* Lower the counts of a run that lies in one block, after the last
 * cluster of which NEXT begins.
 */
static int
lower_in_block (struct image *img, uint64_t cluster, uint64_t next)
{
  struct refcounts *rc = &img->refcounts;
  const uint64_t mask = (UINT64_C (1) << rc->block_bits) - 1;
  struct refblock *block;
  uint64_t value;
  int r;

  r = refcounts_block_of (img, cluster, &block);
  if (r < 0)
    return r;
  for (; cluster < next; ++cluster) {
    value = refcount_get (block->data, rc->order, cluster & mask);
    if (value == 0)
      return -EIO;
    r = refcounts_set_run (img, block, cluster & mask, 1, value - 1);
    if (r < 0)
      return r;
    if (value == 1) {
      rc->hint = MIN (rc->hint, cluster);
      atomic_fetch_add_explicit (&rc->released, 1, memory_order_relaxed);
    }
  }
  return 0;
}

int
refcounts_lower (struct image *img, uint64_t first, uint64_t count)
{
  struct refcounts *rc = &img->refcounts;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rc->lock);
  uint64_t end = first + count, next;
  int r;

  for (; first < end; first = next) {
    next = MIN (end, ((first >> rc->block_bits) + 1) << rc->block_bits);
    r = lower_in_block (img, first, next);
    if (r < 0)
      return r;
  }
  return 0;
}
