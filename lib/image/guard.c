/* SPDX-License-Identifier: BSD-3-Clause */

/* The guard.
 *
 * Everything that changes the image file goes through this one file:
 * writes, zeroes, holes and reservations, of guest data, of tables and
 * of single header fields.  storage-write.h is included nowhere else (a
 * test of the build proves it).
 *
 * Two questions are asked of every range before it changes
 * (guard-check.c).  A wrong answer is a hit: nothing is written, the
 * caller gets -EIO and image_corrupt does the rest.
 *
 * An external data file holds guest data only, and no metadata can be hit
 * there: neither question is asked.  All else holds for both files as if
 * they were one.
 *
 * Invariants
 *
 * G1. A table is claimed before its first write and unclaimed when it
 *     is released, so the marks cover what is on disk as well as what is
 *     in memory.
 * G2. A claim succeeds only for clusters without any mark (claims.c).
 * G3. After a sync has failed nothing is written any more: the kernel
 *     may have dropped the pages, and the next sync would lie
 *     (fsync(2), "Errors": a later fsync may succeed).  This is said of
 *     both files if it happened to one.
 * G4. After corruption was met no guest data is written.  Metadata is,
 *     so that what was acknowledged before becomes durable if it can.
 * G5. A sync makes the data file durable before the image, so that no
 *     crash between the two leaves the pointers without the data.
 *
 * G6. Who finds nothing unsynced and no sync apart at work knows that all
 *     was made durable, or that a sync failed and "failed" is set: who
 *     takes the mark away is counted in "apart" before, and until after
 *     the end of his sync, or holds sync_lock alone.
 *
 * Locks: none are taken but the tracker's own and sync_lock.  A sync
 * holds it alone, so that a second one does not overtake the first;
 * durable writes hold it shared, because they sync too: the kernel tells
 * the loss of pages once, to whichever of the two asks first, and each
 * must know what the other was told (G3).  So does who starts a sync.
 * Syncs apart hold it shared, too: each is told of all losses by itself
 * (storage_syncs_apart), as is a durable write (storage_writes_apart).
 * Durable writes and syncs apart do not overtake a sync that waits:
 * clients that make them all the time would keep it out for ever.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "cleanup.h"
#include "corrupt.h"
#include "guard.h"
#include "image-internal.h"
#include "report.h"
#include "rwlock.h"
#include "sabotage.h"
#include "storage-write.h"

int
guard_init (struct image *img)
{
  struct guard *g = &img->guard;
  uint64_t end;
  int r;

  r = rwlock_init_fair (&g->sync_lock);
  if (r != 0)
    return -r;
  r = storage_size (img->storage, &end);
  if (r < 0)
    return r;
  atomic_store (&g->end, end);
  g->checks = img->config.overlap_check;
  g->policy = img->config.overlap_limit;
  return 0;
}

void
guard_destroy (struct image *img)
{
  pthread_rwlock_destroy (&img->guard.sync_lock);
  overlap_free (img->guard.overlap);
}

/* A guest may try for hours: the log gets one line. */
static int
refused (struct image *img, const char *why)
{
  if (!atomic_exchange (&img->guard.told, true))
    report_error ("%s: writes are refused, because %s", img->config.filename,
                  why);
  return -EIO;
}

int
guard_may_write (struct image *img)
{
  struct guard *g = &img->guard;

  if (atomic_load_explicit (&g->failed, memory_order_relaxed))
    return refused (img, "making earlier writes durable failed; restart "
                    "the server and check the image");
  if (atomic_load_explicit (&g->corrupt, memory_order_relaxed)) {
    image_corrupt_wait (img);
    return refused (img, "the image is corrupt; stop the server and repair it "
                    "with 'qcow2-overlap check --repair all'");
  }
  return 0;
}

/* Both questions, and whether this writer may still write. */
static int
enter (struct image *img, int owner, uint64_t offset, uint64_t len)
{
  struct guard *g = &img->guard;

  if (atomic_load_explicit (&g->failed, memory_order_relaxed))
    return -EIO;
  if ((owner == GUARD_DATA || owner == GUARD_EXTERNAL)
      && atomic_load_explicit (&g->corrupt, memory_order_relaxed)) {
    image_corrupt_wait (img);
    return -EIO;
  }
  if (owner == GUARD_EXTERNAL)
    return 0;
  if (owner == GUARD_DATA && !guard_data_may_hit (img, offset, len)) {
    atomic_fetch_add_explicit (&g->asked, 1, memory_order_relaxed);
    return 0;
  }
  return guard_check (img, owner, offset, len);
}

/* The file that OWNER writes to. */
static struct storage *
file_of (struct image *img, int owner)
{
  return owner == GUARD_EXTERNAL ? img->data_file : img->storage;
}

/* A quota and a limit on the length of files are full disks by another
 * name: what is done about ENOSPC helps against them, too.
 */
static int
same_errno (int r)
{
  return r == -EDQUOT || r == -EFBIG ? -ENOSPC : r;
}

/* The file is now at least END bytes long.  The length of a data file is
 * of no importance.
 */
static void
grown_to (struct guard *g, int owner, uint64_t end)
{
  uint64_t old = atomic_load_explicit (&g->end, memory_order_relaxed);

  if (owner == GUARD_EXTERNAL)
    return;
  while (end > old && !atomic_compare_exchange_weak (&g->end, &old, end))
    ;
}

/* Set after the write, not before: a sync that began earlier does not
 * cover it.
 */
static void
written (struct guard *g, int owner)
{
  atomic_bool *flag = owner == GUARD_EXTERNAL ? &g->external_unsynced
    : &g->unsynced;

  /* Nearly always it is set already, and to store it anew would take the
   * cache line from all others.  If it is, then the sync that will clear
   * it has yet to begin, and covers the write, which has returned: the
   * locks of whatever made both, taken before the look and after the
   * exchange, put them in this order.
   */
  if (!atomic_load (flag))
    atomic_store (flag, true);
}

/* Invariant G3. */
static void
sync_failed (struct image *img, struct storage *s, int r)
{
  const bool external = s == img->data_file;

  if (atomic_exchange (&img->guard.failed, true))
    return;                     /* reported */
  report_error ("%s: sync %s%sfailed: %s; no more writes until the server is "
                "restarted", img->config.filename,
                external ? "of its data file " : "",
                external ? storage_name (s) : "", strerror (-r));
}

/* A durable write that fails may have failed as a write, for want of
 * space, or as a sync.  In the first case a plain write fails too.
 */
static int
write_durably (struct image *img, struct storage *s, const struct iovec *iov,
               int cnt, uint64_t offset)
{
  struct guard *g = &img->guard;
  ACQUIRE_RDLOCK_FOR_CURRENT_SCOPE (&g->sync_lock);
  int r;

  if (atomic_load (&g->failed))
    return -EIO;
  r = same_errno (storage_write (s, iov, cnt, offset, true));
  if (r == 0)
    return 0;
  if (r == -ENOSPC
      && same_errno (storage_write (s, iov, cnt, offset, false)) == r)
    return r;
  sync_failed (img, s, r);
  return r;
}

int
guard_write (struct image *img, int owner, const struct iovec *iov,
             int cnt, uint64_t offset, bool durable)
{
  struct storage *s = file_of (img, owner);
  uint64_t len = 0;
  int i, r;

  for (i = 0; i < cnt; ++i)
    len += iov[i].iov_len;
  r = enter (img, owner, offset, len);
  if (r < 0)
    return r;
  r = durable ? write_durably (img, s, iov, cnt, offset)
    : same_errno (storage_write (s, iov, cnt, offset, false));
  if (r < 0 || !durable)
    written (&img->guard, owner);
  if (r == 0)
    grown_to (&img->guard, owner, offset + len);
  return r;
}

int
guard_write_buf (struct image *img, int owner, const void *buf,
                 size_t len, uint64_t offset)
{
  struct iovec iov = { .iov_base = (void *) buf,
                       .iov_len = len };

  return guard_write (img, owner, &iov, 1, offset, false);
}

int
guard_write_flag (struct image *img, const void *entry, uint64_t offset)
{
  const overlap_set may = OVERLAP_BIT (OVERLAP_ACTIVE_L2)
    | OVERLAP_BIT (OVERLAP_INACTIVE_L2);
  struct iovec iov = { .iov_base = (void *) entry,
                       .iov_len = sizeof (uint64_t) };
  int r;

  if (atomic_load_explicit (&img->guard.failed, memory_order_relaxed))
    return -EIO;
  r = guard_check_types (img, OVERLAP_ACTIVE_L2, may, offset,
                         sizeof (uint64_t));
  if (r == 0)
    r = storage_write (img->storage, &iov, 1, offset, false);
  written (&img->guard, OVERLAP_ACTIVE_L2);
  return r;
}

int
guard_zero (struct image *img, int owner, uint64_t offset, uint64_t len)
{
  int r = enter (img, owner, offset, len);

  if (r < 0)
    return r;
  r = same_errno (storage_zero (file_of (img, owner), offset, len));
  written (&img->guard, owner);
  if (r == 0)
    grown_to (&img->guard, owner, offset + len);
  return r;
}

int
guard_punch (struct image *img, int owner, uint64_t offset, uint64_t len)
{
  int r = enter (img, owner, offset, len);

  if (r < 0)
    return r;
  r = storage_punch (file_of (img, owner), offset, len);
  if (r != -ENOTSUP)
    written (&img->guard, owner);
  return r;
}

int
guard_reserve (struct image *img, int owner, uint64_t offset,
               uint64_t len, bool new)
{
  int r = enter (img, owner, offset, len);

  if (r < 0)
    return r;
  r = storage_reserve (img->storage, offset, len);
  if (r == -ENOTSUP)
    r = new ? storage_zero (img->storage, offset, len) : 0;
  r = same_errno (r);
  written (&img->guard, owner);
  if (r == 0 && new)
    grown_to (&img->guard, owner, offset + len);
  return r;
}

int
guard_set_external_length (struct image *img, uint64_t len, bool exact)
{
  uint64_t now = 0;
  int r = enter (img, GUARD_EXTERNAL, 0, 0);

  if (r == 0)
    r = storage_size (img->data_file, &now);
  if (r < 0 || now == len || (now > len && !exact))
    return r;
  r = same_errno (storage_truncate (img->data_file, len));
  written (&img->guard, GUARD_EXTERNAL);
  return r;
}

/* With sync_lock held alone. */
static int
sync_file (struct image *img, struct storage *s, atomic_bool *unsynced)
{
  int r;

  if (!atomic_exchange (unsynced, false))
    return 0;
  atomic_fetch_add_explicit (&img->guard.syncs, 1, memory_order_relaxed);
  r = storage_sync_alone (s);
  if (r < 0)
    sync_failed (img, s, r);
  return r;
}

int
guard_sync (struct image *img)
{
  struct guard *g = &img->guard;
  ACQUIRE_WRLOCK_FOR_CURRENT_SCOPE (&g->sync_lock);
  int r;

  if (atomic_load (&g->failed))
    return -EIO;
  r = SABOTAGED (SABOTAGE_DATA_SYNC) ? 0
    : sync_file (img, img->data_file, &g->external_unsynced);
  if (r == 0)
    r = sync_file (img, img->storage, &g->unsynced);
  return r;
}

/* The same with sync_lock shared, and counted in "apart".  Without the mark
 * somebody else's sync covers all, but may not have ended.  What was marked
 * may include a write that needs a sync alone, made after this one was found
 * to need none: it stays marked.
 */
static int
sync_file_apart (struct image *img, struct storage *s, atomic_bool *unsynced)
{
  struct guard *g = &img->guard;
  int r;

  if (!atomic_exchange (unsynced, false) && atomic_load (&g->apart) == 1)
    return 0;
  atomic_fetch_add_explicit (&g->syncs, 1, memory_order_relaxed);
  r = storage_sync (s);
  if (r < 0)
    sync_failed (img, s, r);
  if (!storage_syncs_apart (s))
    atomic_store (unsynced, true);
  return r;
}

bool
guard_syncs_apart (const struct image *img)
{
  return storage_syncs_apart (img->storage)
    && (!img->data_file || storage_syncs_apart (img->data_file));
}

int
guard_sync_apart (struct image *img)
{
  struct guard *g = &img->guard;
  ACQUIRE_RDLOCK_FOR_CURRENT_SCOPE (&g->sync_lock);
  int r = 0;

  if (atomic_load (&g->failed))
    return -EIO;
  atomic_fetch_add (&g->apart, 1);
  if (img->data_file)
    r = sync_file_apart (img, img->data_file, &g->external_unsynced);
  if (r == 0)
    r = sync_file_apart (img, img->storage, &g->unsynced);
  atomic_fetch_sub (&g->apart, 1);
  return atomic_load (&g->failed) ? -EIO : r;
}

/* With sync_lock held. */
static int
start (struct image *img, struct storage *s, uint64_t offset, uint64_t len)
{
  int r;

  if (atomic_load (&img->guard.failed))
    return -EIO;
  r = storage_start_sync (s, offset, len);
  if (r < 0)
    sync_failed (img, s, r);
  return r;
}

void
guard_start_sync (struct image *img)
{
  struct guard *g = &img->guard;
  int r = 0;

  if (pthread_rwlock_tryrdlock (&g->sync_lock) != 0)
    return;
  if (atomic_load (&g->external_unsynced))
    r = start (img, img->data_file, 0, 0);
  if (r == 0 && atomic_load (&g->unsynced))
    start (img, img->storage, 0, 0);
  pthread_rwlock_unlock (&g->sync_lock);
}

void
guard_start_range (struct image *img, int owner, uint64_t offset,
                   uint64_t len)
{
  struct guard *g = &img->guard;

  if (pthread_rwlock_tryrdlock (&g->sync_lock) != 0)
    return;
  start (img, file_of (img, owner), offset, len);
  pthread_rwlock_unlock (&g->sync_lock);
}

bool
guard_is_synced (struct image *img)
{
  return !atomic_load (&img->guard.unsynced)
    && !atomic_load (&img->guard.external_unsynced);
}

void
guard_distrust (struct image *img)
{
  written (&img->guard, GUARD_DATA);
  if (img->data_file)
    written (&img->guard, GUARD_EXTERNAL);
}
