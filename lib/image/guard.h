/* SPDX-License-Identifier: BSD-3-Clause */

/* The guard: the only door through which the image file changes, and
 * its data file, if it has one.  See guard.c and guard-check.c.  Offsets
 * and lengths are host bytes, any alignment unless said otherwise.
 */

#ifndef QCOW2_GUARD_H
#define QCOW2_GUARD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "overlap.h"
#include "storage.h"

struct image;

/* Who writes: guest data, guest data in the external data file, or
 * metadata of a type (enum overlap_type).
 */
#define GUARD_DATA     (-1)
#define GUARD_EXTERNAL (-2)

struct guard {
  struct overlap *overlap;
  overlap_set checks;           /* types that the first question covers */
  enum overlap_policy policy;   /* for ranges outside the tracker */

  atomic_bool corrupt;          /* corruption was met: guest writes stop */
  atomic_bool failed;           /* a sync failed: all writes stop */
  atomic_bool told;             /* the log says that writes are refused */
  atomic_bool unsynced;         /* something was written since the sync */
  atomic_bool external_unsynced; /* the same of the data file */
  _Atomic uint64_t end;         /* length of the file */
  pthread_rwlock_t sync_lock;   /* a sync alone; durable writes and syncs
                                   apart together */
  atomic_uint apart;            /* syncs apart at work */

  _Atomic uint64_t refused, syncs;
  _Atomic uint64_t refused_outside; /* by overlap-limit=refuse */
  uint64_t enough;              /* memory that the tracker should have */

  /* In a cache line of its own: each write changes it, and reads what is
   * above.
   */
  _Alignas (64) _Atomic uint64_t asked;
  char unused[64 - sizeof (uint64_t)];
};

int guard_init (struct image *img);
void guard_destroy (struct image *img);

/* May OWNER change the range?  0, or -EIO: a hit (corruption has been
 * signalled) or, for guest data, a range that left the tracker under
 * overlap-limit=refuse.
 */
int guard_check (struct image *img, int owner, uint64_t offset,
                 uint64_t len);

/* The same for a writer of metadata that may touch the types MAY. */
int guard_check_types (struct image *img, int owner, overlap_set may,
                       uint64_t offset, uint64_t len);

/* May the range of guest data be refused?  False, which is nearly always
 * the answer, is that of guard_check; with true it has to be asked.
 */
bool guard_data_may_hit (struct image *img, uint64_t offset, uint64_t len);

/* What is known of COUNT clusters from FIRST on: the tracker's answer; or,
 * if some are outside and overlap-limit is 'verify', or 'refuse' and OWNER
 * is metadata, that of the tables, with "outside" false.  MASK as for
 * overlap_query; other types than TYPES may be missing from the answer.  0 or
 * a negative errno, where the tables could not be read (reported).
 */
int guard_query (struct image *img, int owner, uint64_t first,
                 uint64_t count, overlap_set mask, overlap_set types,
                 struct overlap_answer *answer);

/* As storage-write.h, after the check.  -EIO also once writes have
 * stopped.  They report nothing but hits.
 */
int guard_write (struct image *img, int owner, const struct iovec *iov,
                 int cnt, uint64_t offset, bool durable);
int guard_write_buf (struct image *img, int owner, const void *buf,
                     size_t len, uint64_t offset);
/* For the check: write an L2 entry in which only the COPIED flag has
 * changed.  The table may be shared with snapshots, to which the flag
 * means nothing.
 */
int guard_write_flag (struct image *img, const void *entry,
                      uint64_t offset);
int guard_zero (struct image *img, int owner, uint64_t offset,
                uint64_t len);
int guard_punch (struct image *img, int owner, uint64_t offset,
                 uint64_t len);

/* Reserve space, so that a later write there does not fail for want of
 * it; where the storage cannot, and the range is NEW (its contents do
 * not matter), by writing zeroes.
 */
int guard_reserve (struct image *img, int owner, uint64_t offset,
                   uint64_t len, bool new);

/* Make the data file at least, or with EXACT exactly, LEN bytes long.
 * -ENOTSUP where the length is fixed and another.
 */
int guard_set_external_length (struct image *img, uint64_t len, bool exact);

/* Make all completed writes durable, those of the data file first.
 * Skipped if there were none since the last time.  The first failure stops
 * all writes for good.
 */
int guard_sync (struct image *img);

/* The same at the same time as others of it and as durable writes; only
 * where guard_syncs_apart says that the files allow it.
 */
bool guard_syncs_apart (const struct image *img);
int guard_sync_apart (struct image *img);

/* Begin to write what a guard_sync would, so that it takes less time;
 * nothing if one is at work that is not apart.  To be called by who is about
 * to wait for it.  The second, of LEN bytes at OFFSET only, which OWNER
 * wrote.
 */
void guard_start_sync (struct image *img);
void guard_start_range (struct image *img, int owner, uint64_t offset,
                        uint64_t len);

/* Was nothing written since the last sync? */
bool guard_is_synced (struct image *img);

/* What was in the files before may not be durable yet. */
void guard_distrust (struct image *img);

/* Mark fresh clusters as TYPE before their first write.  Whole
 * clusters.  -EIO if any of them is metadata already: the allocator
 * handed out what is in use.  Call claim_ends (claims.h) when the tables
 * lead there, or guard_unclaim.
 */
int guard_claim (struct image *img, enum overlap_type type,
                 uint64_t offset, uint64_t len);

/* Take the mark away, when the clusters are released. */
void guard_unclaim (struct image *img, enum overlap_type type,
                    uint64_t offset, uint64_t len);

/* Is writing allowed at all?  0 or -EIO (reported once). */
int guard_may_write (struct image *img);

#endif /* QCOW2_GUARD_H */
