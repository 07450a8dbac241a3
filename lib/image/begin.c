/* SPDX-License-Identifier: BSD-3-Clause */

/* Beginning to write.
 *
 * Two steps that happen once.  At the first writable connection the
 * image's lock is raised from a reader's to a writer's, and a dirty image
 * is repaired: not earlier, because only then it is known that somebody
 * wants to write.  Before the first
 * change a guest makes, the header's autoclear bits that we do not keep
 * up to date are cleared and synced (qcow2 specification,
 * "autoclear_features"): those we do not know, and that of the bitmaps if
 * their directory is not understood; else the bitmaps that note writes are
 * marked in use (bitmaps.c).  That of a raw data file stays.  Everything
 * written before us is synced.  And the space of the header, the L1 table and
 * the refcount table is reserved, so that no commit fails for want of it.
 *
 * Locks: begin_lock, across the syncs and the repair; nobody who waits for
 * it holds another lock.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "byteorder.h"
#include "checked.h"
#include "cleanup.h"
#include "corrupt.h"
#include "image-internal.h"
#include "report.h"
#include "sabotage.h"

static int
lock_file (struct image *img, struct storage *s, enum storage_lock want)
{
  char holders[STORAGE_HOLDERS];
  const char *conflict;
  int r = storage_lock (s, want, img->config.locking, &conflict);

  if (r == -EAGAIN) {
    storage_lock_holders (s, holders, sizeof holders);
    report_error ("%s: cannot be opened for writing: %s; %s%s",
                  storage_name (s), conflict, holders, img->config.offline
                  ? "" : "; give locking=off only if that is safe");
  }
  else if (r < 0)
    report_error ("%s: changing the lock to a %s: %s; locking=off does "
                  "without", storage_name (s), want == STORAGE_LOCK_WRITER
                  ? "writer's" : "reader's", strerror (-r));
  return r;
}

int
image_lock_for_reading (struct image *img)
{
  int r = lock_file (img, img->storage, STORAGE_LOCK_READER);

  if (r == 0 && img->data_file)
    r = lock_file (img, img->data_file, STORAGE_LOCK_READER);
  return r;
}

int
image_lock_for_writing (struct image *img)
{
  int r = lock_file (img, img->storage, STORAGE_LOCK_WRITER);

  if (r == 0 && img->data_file) {
    r = lock_file (img, img->data_file, STORAGE_LOCK_WRITER);
    if (r < 0)
      lock_file (img, img->storage, STORAGE_LOCK_READER);
  }
  return r;
}

/* The image was not closed by a writer that updates refcounts late (qcow2
 * specification, "incompatible_features", dirty bit).
 */
static int
repair_dirty (struct image *img)
{
  struct image_check_result result;
  int r;

  report_warning ("%s: the image is dirty: it was not closed; checking and "
                  "repairing its reference counts", img->config.filename);
  guard_distrust (img);
  r = guard_sync (img);
  if (r == 0 && SABOTAGED (SABOTAGE_DIRTY_BIT))
    r = image_clear_incompatible (img, INCOMPAT_DIRTY);
  if (r == 0)
    r = image_check (img, CHECK_ALL, &result);
  if (r == 0 && result.grave)
    r = -EIO;
  if (r == 0)
    r = image_clear_incompatible (img, INCOMPAT_DIRTY);
  if (r == 0) {
    report_warning ("%s: the image is not dirty any more",
                    img->config.filename);
    return 0;
  }
  report_error ("%s: the dirty image could not be repaired, it is served "
                "read-only; 'qcow2-overlap check' says what is wrong",
                img->config.filename);
  img->beyond_repair = true;
  return -EROFS;
}

/* With begin_lock held. */
static int
begin_writing (struct image *img)
{
  int r;

  if (img->beyond_repair)
    return -EROFS;
  r = image_lock_for_writing (img);
  if (r < 0)
    return r;
  if (img->header.incompatible & INCOMPAT_DIRTY) {
    r = repair_dirty (img);
    if (r < 0) {
      image_lock_for_reading (img);
      return r;
    }
  }
  atomic_store (&img->writing, true);
  image_corrupt_store (img);
  return 0;
}

int
image_begin_writing (struct image *img)
{
  if (atomic_load (&img->writing))
    return 0;
  if (img->read_only) {
    report_error ("%s: the image cannot be written to",
                  img->config.filename);
    return -EROFS;
  }
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&img->begin_lock);
  return atomic_load (&img->writing) ? 0 : begin_writing (img);
}

/* Clear the autoclear bits that a writer must not leave set. */
static int
clear_autoclear (struct image *img)
{
  struct header *h = &img->header;
  const uint64_t keep = h->autoclear
    & (AUTOCLEAR_DATA_FILE_RAW
       | (bitmaps_are_kept (&img->bitmaps) ? AUTOCLEAR_BITMAPS : 0));
  uint8_t buf[8];
  int r;

  if (h->version < 3 || h->autoclear == keep)
    return 0;
  store_be64 (buf, keep);
  r = guard_write_buf (img, OVERLAP_MAIN_HEADER, buf, sizeof buf,
                       HEADER_OFFSET_AUTOCLEAR);
  if (r == 0)
    r = guard_sync (img);
  if (r < 0) {
    report_error ("%s: clearing autoclear_features in the header: %s",
                  img->config.filename, strerror (-r));
    return r;
  }
  if (h->autoclear & ~keep & AUTOCLEAR_BITMAPS)
    report_warning ("%s: its persistent dirty bitmaps are not kept up to "
                    "date and are now inconsistent",
                    img->config.filename);
  h->autoclear = keep;
  return 0;
}

static int
reserve_tables (struct image *img)
{
  struct refcounts *rc = &img->refcounts;
  int r;

  r = guard_reserve (img, OVERLAP_MAIN_HEADER, 0,
                     MIN (img->cluster_size, atomic_load (&img->guard.end)),
                     false);
  if (r == 0 && img->header.l1_size > 0)
    r = guard_reserve (img, OVERLAP_ACTIVE_L1, img->header.l1_table_offset,
                       img->header.l1_size * sizeof (uint64_t), false);
  if (r == 0) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rc->lock);
    r = guard_reserve (img, OVERLAP_REFCOUNT_TABLE, rc->table_offset,
                       rc->table_clusters << img->cluster_bits, false);
  }
  if (r < 0)
    report_error ("%s: reserving space for the header, the L1 and the "
                  "refcount table: %s", img->config.filename,
                  strerror (-r));
  return r;
}

int
image_prepare_write (struct image *img)
{
  int r;

  if (atomic_load_explicit (&img->header_ready, memory_order_acquire))
    return 0;
  r = image_begin_writing (img);
  if (r < 0)
    return r;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&img->begin_lock);
  if (atomic_load (&img->header_ready))
    return 0;
  /* A server that was killed may have left mappings in the page cache
   * only; what is read from now on counts as durable.
   */
  guard_distrust (img);
  r = guard_sync (img);
  if (r == 0)
    r = clear_autoclear (img);
  if (r == 0)
    r = bitmaps_mark_in_use (img);
  if (r == 0)
    r = reserve_tables (img);
  if (r == 0)
    atomic_store_explicit (&img->header_ready, true, memory_order_release);
  return r;
}

int
image_prepare_change (struct image *img, uint64_t offset, uint64_t len)
{
  int r = image_prepare_write (img);

  return r == 0 ? bitmaps_note (img, &img->bitmaps, offset, len) : r;
}
