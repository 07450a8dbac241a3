/* SPDX-License-Identifier: BSD-3-Clause */

/* The cache of L2 slices.  See l2cache.c. */

#ifndef QCOW2_L2CACHE_H
#define QCOW2_L2CACHE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct image;

/* A slice: up to 512 neighbouring entries of an L2 table.  INDEX is the
 * guest cluster of its first entry divided by the entries of a slice.
 */
struct slice {
  uint64_t index;
  struct slice *hash_next;
  uint64_t dirty_epoch;         /* the last epoch to change it; 0: clean */
  bool taken;                   /* the commit has copied DIRTY_EPOCH's */
  bool loading;                 /* being read; nobody else may look */
  bool used;                    /* since the clock's hand passed */
  bool reserved;                /* its space on disk is certain */
  uint64_t *frozen;             /* contents at the cut, if changed since */
  struct slice *clock_prev, *clock_next;
  struct slice *dirty_next[2];  /* by the epoch's lowest bit */
  uint64_t one[8];              /* bit per entry: count is known to be 1 */
  uint64_t entries[];           /* as on disk: see l2_load */
};

struct shard {
  /* What a hit needs, in one cache line. */
  pthread_mutex_t lock;
  struct slice **hash;
  uint64_t hits;

  uint64_t misses;
  struct slice *hand;           /* of the clock; a ring */
  size_t slices;
  struct slice *dirty[2];       /* lists, by the epoch's lowest bit */
  pthread_cond_t loaded;        /* some slice's LOADING ended */
} __attribute__ ((aligned (64)));

struct l2cache {
  struct shard *shards;
  unsigned shard_bits;          /* log2 of their number */
  size_t hash_size;             /* buckets per shard */
  size_t limit;                 /* slices per shard */
  size_t dirty_limit;           /* slices that may be dirty */
  atomic_size_t dirty_slices;
};

int l2cache_open (struct image *img);
void l2cache_close (struct image *img);

/* Find the slice, reading it if need be.  0: *S is valid and its shard
 * locked until l2cache_put.  1: there is no L2 table, nothing is
 * locked.  Negative errno: reported, nothing locked.
 */
int l2cache_get (struct image *img, uint64_t index, struct slice **s);

/* The same if it is in the cache now; NULL otherwise. */
struct slice *l2cache_peek (struct image *img, uint64_t index);

/* Forget all slices, and what is known of their entries.  For the check, while none is dirty: what is read
 * from now on is what the file has now.
 */
void l2cache_forget (struct image *img);

void l2cache_put (struct image *img, struct slice *s);

/* S will be changed (epoch_lock held for reading, shard locked): put it
 * on the epoch's list, keep the contents of the cut if the commit has not
 * copied them yet.  0 or -ENOMEM.
 */
int l2cache_change (struct image *img, struct slice *s);

/* For the commit of EPOCH, which has been cut.  Write every slice that
 * it changed; then say that they are durable, or must be tried again
 * with the open epoch.
 */
int l2cache_write_cut (struct image *img, uint64_t epoch);
void l2cache_cut_end (struct image *img, uint64_t epoch, bool success);

/* Did EPOCH change any slice?  After the cut. */
bool l2cache_cut_is_empty (struct image *img, uint64_t epoch);

void l2cache_counters (struct image *img, uint64_t *hits, uint64_t *misses);

#endif /* QCOW2_L2CACHE_H */
