/* SPDX-License-Identifier: BSD-3-Clause */

/* The commit.
 *
 * Metadata changes in memory and reaches the file only here, in an order
 * that leaves a sound image wherever a crash cuts it off:
 *
 *     OPEN
 *       | cut: the epoch ends.  Its dirty slices, L1 entries, new refcount
 *       |      blocks and dropped references are set apart in one step.
 *       v
 *     CUT
 *       | write_new_blocks: new refcount blocks, a table that moved; sync;
 *       |      then the entries, or the header, that lead to them
 *       v
 *     BLOCKS
 *       | write_counts: raised refcounts; sync.  This sync also covers
 *       |      the guest's data and new L2 tables, which were written
 *       |      before the cut.
 *       v
 *     COUNTS
 *       | write_pointers: L2 entries, L1 entries; sync
 *       v
 *     DURABLE  -> the flush may answer
 *       | freed_release: counts of what is no longer pointed to go down,
 *       |      to be written by the next commit; holes are punched
 *       v
 *     (the next one)
 *
 * From each state but DURABLE a failed write leads back: everything of
 * the cut joins the open epoch and is tried again (put_back).  A failed
 * sync leads nowhere: the guard stops all writing for good.
 *
 * Invariants
 *
 * C1. A pointer is written only after a sync that followed the writing of
 *     what it leads to, and of a count that covers it.
 * C2. A count is lowered only after a sync that followed the writing of
 *     the pointer's removal.
 * C3. What a commit writes is the epoch's state at the cut; counts may be
 *     newer, and then higher.
 *
 * What an epoch did not need is skipped: with data written in place only,
 * a commit is one sync; an epoch that only removed pointers needs no sync
 * before them.
 *
 * One commit runs at a time, in the thread of whoever asks first, and
 * those who ask meanwhile share the next: see commit-group.c.
 *
 * Locks: commit.lock for taking turns; epoch_lock for the cut.  Neither
 * is held across I/O.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "cleanup.h"
#include "image-internal.h"
#include "monotonic.h"
#include "report.h"
#include "restore.h"
#include "rwlock.h"
#include "sabotage.h"
#include "selfcheck.h"

/* So many chunks of dropped references (about 700,000 clusters if they
 * lie scattered, 16 MB) are worth a commit.
 */
#define MAX_FREED_CHUNKS 4096

/* Nanoseconds that a flush waits for others, however slow the storage. */
#define GROUP_MAX_WAIT UINT64_C (20000000)

#ifdef QCOW2_SABOTAGE
enum sabotage sabotage_now;
#endif

int
commit_init (struct image *img)
{
  struct commit *c = &img->commit;
  pthread_condattr_t cond_attr;
  int r;

  /* A commit must not wait for ever while changes keep coming. */
  r = rwlock_init_fair (&c->epoch_lock);
  if (r != 0)
    return -r;
  pthread_mutex_init (&c->lock, NULL);
  pthread_condattr_init (&cond_attr);
  pthread_condattr_setclock (&cond_attr, CLOCK_MONOTONIC);
  pthread_cond_init (&c->over[0], &cond_attr);
  pthread_cond_init (&c->over[1], &cond_attr);
  pthread_cond_init (&c->work, &cond_attr);
  pthread_condattr_destroy (&cond_attr);
  c->group.longest = GROUP_MAX_WAIT;
  c->epoch = 1;
  return 0;
}

void
commit_destroy (struct image *img)
{
  struct commit *c = &img->commit;

  pthread_rwlock_destroy (&c->epoch_lock);
  pthread_mutex_destroy (&c->lock);
  pthread_cond_destroy (&c->over[0]);
  pthread_cond_destroy (&c->over[1]);
  pthread_cond_destroy (&c->work);
}

void
commit_needs_barrier (struct image *img)
{
  atomic_store_explicit (&img->commit.barrier, true, memory_order_relaxed);
}

/* What was set apart. */
struct cut {
  uint64_t epoch;
  bool barrier;
  struct refcounts_cut counts;
};

static void
make_cut (struct image *img, struct cut *cut)
{
  struct commit *c = &img->commit;
  ACQUIRE_WRLOCK_FOR_CURRENT_SCOPE (&c->epoch_lock);

  cut->epoch = c->epoch++;
  cut->barrier = atomic_exchange (&c->barrier, false);
  /* The freed first.  Changes of the map are kept out by the lock, but an
   * allocation may move the refcount table just now: it must not happen
   * that the old one is released in this commit and the header changed in
   * the next.
   */
  if (!SABOTAGED (SABOTAGE_CUT_FREED))
    freed_take (&img->freed);
  refcounts_cut (img, &cut->counts);
}

/* The commit failed: all of the cut belongs to the open epoch now. */
static void
put_back (struct image *img, struct cut *cut)
{
  struct commit *c = &img->commit;
  ACQUIRE_WRLOCK_FOR_CURRENT_SCOPE (&c->epoch_lock);

  atomic_store (&c->barrier, true);
  refcounts_cut_end (img, &cut->counts, false);
  l2cache_cut_end (img, cut->epoch, false);
  map_l1_cut_end (img, cut->epoch, false);
  freed_put_back (&img->freed);
}

/* CUT -> BLOCKS */
static int
write_new_blocks (struct image *img, struct cut *cut)
{
  int r;

  if (!cut->counts.fresh && !cut->counts.grown)
    return 0;
  r = refcounts_write_fresh (img, &cut->counts);
  if (r == 0 && !SABOTAGED (SABOTAGE_BLOCK_ORDER))
    r = guard_sync (img);
  if (r == 0)
    r = refcounts_write_links (img, &cut->counts);
  return r;
}

/* BLOCKS -> COUNTS */
static int
write_counts (struct image *img, struct cut *cut, bool pointers)
{
  int r = refcounts_write_dirty (img);

  if (r == 0 && pointers && cut->barrier
      && !SABOTAGED (SABOTAGE_POINTER_SYNC))
    r = guard_sync (img);
  return r;
}

/* COUNTS -> DURABLE */
static int
write_pointers (struct image *img, struct cut *cut)
{
  int r = l2cache_write_cut (img, cut->epoch);

  if (r == 0)
    r = map_write_l1_cut (img, cut->epoch);
  if (r == 0 && !SABOTAGED (SABOTAGE_LAST_SYNC))
    r = guard_sync (img);
  return r;
}

int
commit_run (struct image *img)
{
  struct cut cut;
  bool pointers;
  int r;

  memset (&cut, 0, sizeof cut);
  make_cut (img, &cut);
  pointers = !l2cache_cut_is_empty (img, cut.epoch)
    || !map_l1_cut_is_empty (img, cut.epoch);

  r = write_new_blocks (img, &cut);
  if (r == 0)
    r = write_counts (img, &cut, pointers);
  if (r == 0)
    r = write_pointers (img, &cut);
  if (r < 0) {
    put_back (img, &cut);
    return r;
  }

  refcounts_cut_end (img, &cut.counts, true);
  l2cache_cut_end (img, cut.epoch, true);
  map_l1_cut_end (img, cut.epoch, true);
  if (SABOTAGED (SABOTAGE_CUT_FREED))
    freed_take (&img->freed);
  freed_release (img);
  restore_tracker (img);
  if (img->config.overlap_debug)
    verify_tracker (img);
  return 0;
}

bool
commit_metadata_is_clean (struct image *img)
{
  return atomic_load (&img->l2cache.dirty_slices) == 0
    && atomic_load (&img->map.l1_changed[0]) == 0
    && atomic_load (&img->map.l1_changed[1]) == 0
    && atomic_load (&img->refcounts.dirty_blocks) == 0
    && atomic_load (&img->freed.chunks) == 0
    && !atomic_load (&img->commit.barrier);
}

bool
commit_is_idle (struct image *img)
{
  return commit_metadata_is_clean (img) && guard_is_synced (img);
}

static void
kick (struct image *img)
{
  struct commit *c = &img->commit;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);

  if (c->has_thread && !c->kicked) {
    c->kicked = true;
    pthread_cond_signal (&c->work);
  }
}

/* How full the fullest of the things that wait is, in percent. */
static size_t
fullness (struct image *img)
{
  size_t slices = atomic_load (&img->l2cache.dirty_slices) * 100
    / img->l2cache.dirty_limit;
  size_t blocks = atomic_load (&img->refcounts.dirty_blocks) * 100
    / img->refcounts.limit;
  size_t freed = atomic_load (&img->freed.chunks) * 100 / MAX_FREED_CHUNKS;

  slices = slices > blocks ? slices : blocks;
  return slices > freed ? slices : freed;
}

bool
commit_frees_space (struct image *img, int *r)
{
  if (*r != -ENOSPC)
    return false;
  *r = commit_now (img);
  return *r == 0;
}

int
commit_throttle (struct image *img)
{
  size_t full = fullness (img);

  if (full >= 100)
    return commit_now (img);
  if (full >= 50)
    kick (img);
  return 0;
}

/*----------------------------------------------------------------------
 * The thread.  It has a condition of its own: the end of a commit, which
 * wakes those who asked for it, is none of its business, and to wake it
 * at each flush of a guest costs more than the rest of our part of one.
 */

/* Wait for the interval to pass, a kick, or the end; commit.lock is held.
 */
static void
wait_for_work (struct image *img)
{
  struct commit *c = &img->commit;
  const unsigned interval = img->config.commit_interval;
  const struct timespec until = monotonic_deadline (interval);

  while (!c->stop && !c->kicked) {
    if (interval == 0)
      pthread_cond_wait (&c->work, &c->lock);
    else if (pthread_cond_timedwait (&c->work, &c->lock, &until)
             == ETIMEDOUT)
      break;
  }
  c->kicked = false;
}

static void *
commit_thread (void *opaque)
{
  struct image *img = opaque;
  struct commit *c = &img->commit;

  for (;;) {
    {
      ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
      wait_for_work (img);
      if (c->stop)
        return NULL;
    }
    if (!commit_metadata_is_clean (img) && !atomic_load (&img->guard.failed))
      commit_now (img);
  }
}

int
commit_start (struct image *img)
{
  struct commit *c = &img->commit;
  int r = pthread_create (&c->thread, NULL, commit_thread, img);

  if (r != 0) {
    report_error ("%s: starting the commit thread: %s",
                  img->config.filename, strerror (r));
    return -r;
  }
  c->has_thread = true;
  return 0;
}

void
commit_stop (struct image *img)
{
  struct commit *c = &img->commit;

  if (!c->has_thread)
    return;
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
    c->stop = true;
    pthread_cond_signal (&c->work);
  }
  pthread_join (c->thread, NULL);
  c->has_thread = false;
}
