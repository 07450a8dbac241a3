/* SPDX-License-Identifier: BSD-3-Clause */

/* The image as the files of lib/image see it.
 *
 * Lock order, outermost first.  A thread that holds one may only take
 * those below it.
 *
 *   range lock         guest clusters            rangelock.c
 *   table_lock         creating an L2 table      map.c
 *   epoch_lock         the cut of a commit       commit.c
 *   shard lock         L2 slices                 l2cache.c
 *   refcounts.lock     counts, allocation        refcounts.c
 *   bitmaps.lock       where the bitmaps are     bitmaps-store.c
 *   freed.lock         the list of the freed     freed.c
 *   corrupt_lock       marking the image         corrupt.c
 *   claims.lock        tables in the making      claims.c
 *   guard.sync_lock    one sync at a time        guard.c
 *   the tracker's own  what is metadata          lib/overlap
 *
 * commit.lock (who commits next) is held for bookkeeping only and never
 * together with another.  Who waits for a commit may hold a range lock
 * and a table_lock, nothing else; a commit takes neither.  No lock but
 * table_lock, a shard's loading mark and refcounts.lock is held across
 * I/O, and none but sync_lock and corrupt_lock across a sync.
 */

#ifndef QCOW2_IMAGE_INTERNAL_H
#define QCOW2_IMAGE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "bitmaps.h"
#include "claims.h"
#include "codec.h"
#include "commit.h"
#include "freed.h"
#include "guard.h"
#include "header.h"
#include "image.h"
#include "l2cache.h"
#include "layer.h"
#include "map.h"
#include "rangelock.h"
#include "refcounts.h"
#include "snapshot.h"
#include "unpacked.h"
#include "workers.h"

struct image {
  struct image_config config;
  char *description;
  struct storage *storage;
  struct header header;         /* as read; incompatible is kept current */
  struct header_damage damage;  /* none, but in an offline check */

  unsigned cluster_bits;
  uint64_t cluster_size;        /* bytes */
  unsigned subcluster_bits;     /* of what is mapped as one: a subcluster, */
  uint64_t subcluster_size;     /* or the cluster if there are none */
  uint64_t size;                /* guest bytes */

  struct storage *data_file;    /* of guest data, if it is not in STORAGE;
                                   else NULL */
  bool raw_data;                /* the data file, read alone, is the disk */

  struct image *parent;         /* of a view of a snapshot: storage and
                                   backing are its; else NULL */
  bool is_top;                  /* not a backing file, not a view */
  bool untracked;               /* tables lie upon each other: the tracker
                                   does not have all of them */
  bool beyond_repair;           /* dirty, and stays so; begin_lock */
  bool opening;                 /* image_open has not returned yet */
  bool bitmaps_valid;           /* their autoclear bit was set at open */
  bool read_only;               /* opened so, or found corrupt */
  atomic_bool writing;          /* holds a writer's lock */
  atomic_bool header_ready;     /* autoclear bits dealt with */
  pthread_mutex_t begin_lock;   /* one thread begins writing */
  pthread_mutex_t corrupt_lock;

  struct layer *backing;        /* NULL: none */
  struct crypt *crypt;          /* NULL: no encryption, or no key is
                                   needed; of a view: its parent's */
  struct guard guard;
  struct claims claims;
  struct map map;
  struct l2cache l2cache;
  struct refcounts refcounts;
  struct freed freed;
  struct rangelock ranges;
  struct commit commit;
  struct snapshot_table snapshots;
  struct bitmaps bitmaps;
  struct codecs *codecs;        /* these two: a view has its parent's */
  struct unpacked *unpacked;
  struct workers *workers;      /* the top image's, once it is started */

  atomic_int preallocated;      /* extents.c: -1 not known yet */
};

static inline uint64_t
offset_in_cluster (const struct image *img, uint64_t offset)
{
  return offset & (img->cluster_size - 1);
}

/* The file was opened for writing, whether or not a writer's lock is
 * held yet.
 */
static inline bool
image_is_writable_file (const struct image *img)
{
  return storage_is_writable (img->storage);
}

/* open.c: an image in which only what needs no I/O is set up. */
struct image *image_new (const struct image_config *config,
                         struct storage *storage, bool is_top);

/* begin.c: take a writer's lock, of the data file too; or only a reader's
 * again.  0, -EAGAIN or another errno (reported).
 */
int image_lock_for_writing (struct image *img);
int image_lock_for_reading (struct image *img);

/* begin.c: before the first guest write, deal with the autoclear bits
 * and reserve what commits will need.  Cheap when done already.  0 or a
 * negative errno (reported).
 */
int image_prepare_write (struct image *img);

/* begin.c: the same for a request that is about to change guest bytes,
 * which the bitmaps must know.
 */
int image_prepare_change (struct image *img, uint64_t offset, uint64_t len);

/* image.c: the end of a request.  Want of space or memory is reported
 * here, because it may be met and overcome below; everything else was
 * reported where it happened.  Returns R.
 */
int image_request_end (struct image *img, const char *doing,
                       uint64_t offset, uint64_t len, int r);

#endif /* QCOW2_IMAGE_INTERNAL_H */
