/* SPDX-License-Identifier: BSD-3-Clause */

/* Changing the size of the disk, while nobody is served.
 *
 *     open --> (L1 too short: grow_l1 --> close, open) --> change --> close
 *
 * The L1 table of an open image never changes its length, so that nobody
 * who looks at it needs a lock; therefore it grows in an image that is
 * opened for that alone.
 *
 * Invariants, wherever a crash comes:
 *
 * - The header leads to the old L1 table or to the new one, which are
 *   equal as far as the old one goes; one write of 12 bytes decides, after
 *   the new table and its counts are durable.  The old one is given back
 *   after that is.
 *
 * - The disk has its old size or its new one; one write of 8 bytes
 *   decides.
 *
 * - Bitmaps are in use, or have the size of the disk (bitmaps-store.c).
 *
 * - Nothing that was beyond the end can be seen when the disk has grown:
 *   not the rest of a cluster that was cut, not a larger backing file, not
 *   the state of a virtual machine that an L1 table may map there
 *   (qcow2 specification, "Snapshots").  It is made zero, durably, before
 *   the size is written.
 *
 * A raw data file is as long as the disk, and so it changes its length,
 * too: it grows before the disk does, and is cut after it was.
 *
 * Locks: none are needed, this image is known to nobody else; the
 * functions that are called take theirs.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "checked.h"
#include "claims.h"
#include "cleanup.h"
#include "freed.h"
#include "image-internal.h"
#include "report.h"
#include "resize.h"
#include "sabotage.h"

static int
failed (struct image *img, const char *what, int r)
{
  report_error ("%s: cannot change the size of the disk: %s: %s",
                img->config.filename, what, strerror (-r));
  return r;
}

static uint64_t
l1_entries_for (struct image *img, uint64_t size)
{
  return header_l1_entries (img->cluster_bits, (img->header.incompatible
                                                & INCOMPAT_EXTL2) != 0,
                            size);
}

/* As in QEMU all bitmaps must be there, to be resized too. */
static int
check_bitmaps (struct image *img, uint64_t size)
{
  const char *const name = img->config.filename;
  const char *large;
  struct image_bitmap b;
  uint32_t i;

  if (!bitmaps_are_kept (&img->bitmaps)) {
    report_error ("%s: resize=%" PRIu64 ": the image has persistent bitmaps "
                  "(autoclear feature bit 0) that are not understood, and "
                  "would not fit", name, size);
    return -ENOTSUP;
  }
  for (i = 0; i < image_bitmaps (img); ++i) {
    image_bitmap_info (img, i, &b);
    if (!b.unusable)
      continue;
    report_error ("%s: resize=%" PRIu64 ": bitmap '%.100s' would not fit, "
                  "as it cannot be resized: %s; remove it with 'qemu-img "
                  "bitmap --remove'", name, size, b.name, b.unusable);
    return -ENOTSUP;
  }
  if (!bitmaps_fit (img, size, &large)) {
    report_error ("%s: resize=%" PRIu64 ": bitmap '%.100s' would be too "
                  "large; its granularity is too small for such a disk",
                  name, size, large);
    return -ENOTSUP;
  }
  return 0;
}

/* Is it allowed, before anything is changed? */
static int
check_resize (struct image *img, uint64_t size, bool shrink)
{
  const char *const name = img->config.filename;

  if (size < img->size && !shrink) {
    report_error ("%s: resize=%" PRIu64 ": the disk has %" PRIu64 " bytes; "
                  "what is beyond the new end would be lost, give "
                  "resize-shrink=true if that is wanted", name, size,
                  img->size);
    return -EINVAL;
  }
  if (l1_entries_for (img, size) > MAX_L1_BYTES / 8) {
    report_error ("%s: resize=%" PRIu64 ": with clusters of %" PRIu64
                  " bytes a disk cannot be that large", name, size,
                  img->cluster_size);
    return -EFBIG;
  }
  if (img->data_file && size > MAX_HOST_OFFSET) {
    report_error ("%s: resize=%" PRIu64 ": with an external data file a disk "
                  "is smaller than 2^56 bytes", name, size);
    return -EFBIG;
  }
  if (img->header.version < 3 && img->header.nb_snapshots > 0) {
    report_error ("%s: resize=%" PRIu64 ": the image is of version 2 and has "
                  "snapshots (nb_snapshots is %" PRIu32 "), which do not "
                  "know the size of their disk", name, size,
                  img->header.nb_snapshots);
    return -ENOTSUP;
  }
  return img->bitmaps_valid ? check_bitmaps (img, size) : 0;
}

/*----------------------------------------------------------------------
 * The L1 table.
 */

static int
write_l1_copy (struct image *img, uint64_t offset, uint64_t bytes)
{
  CLEANUP_FREE uint64_t *buf = calloc (1, bytes);
  uint64_t i;

  if (!buf)
    return -ENOMEM;
  for (i = 0; i < img->header.l1_size; ++i)
    buf[i] = htobe64 (atomic_load (&img->map.l1[i]));
  return guard_write_buf (img, OVERLAP_ACTIVE_L1, buf, bytes, offset);
}

/* l1_size and l1_table_offset are neighbours in the header. */
static int
write_l1_place (struct image *img, uint32_t entries, uint64_t offset)
{
  uint8_t buf[12];

  store_be32 (buf, entries);
  store_be64 (buf + 4, offset);
  return guard_write_buf (img, OVERLAP_MAIN_HEADER, buf, sizeof buf,
                          HEADER_OFFSET_L1_SIZE);
}

/* To ENTRIES, which are more than before. */
static int
grow_l1 (struct image *img, uint64_t entries)
{
  struct header *h = &img->header;
  const uint64_t bytes = round_up (entries * 8, img->cluster_size);
  struct freed_list old = { 0 };
  uint64_t offset;
  int r;

  r = alloc_contiguous (img, OVERLAP_ACTIVE_L1, bytes >> img->cluster_bits,
                        &offset);
  if (r == 0)
    r = write_l1_copy (img, offset, bytes);
  if (r == 0 && !SABOTAGED (SABOTAGE_GROW_L1))
    r = commit_now (img);
  if (r == 0 && h->l1_size > 0)
    r = freed_list_add (&old, OVERLAP_ACTIVE_L1,
                        h->l1_table_offset >> img->cluster_bits,
                        div_up (h->l1_size * UINT64_C (8),
                                img->cluster_size));
  if (r == 0)
    r = write_l1_place (img, (uint32_t) entries, offset);
  if (r == 0)
    r = guard_sync (img);
  if (r < 0) {
    freed_list_free (&old);
    return failed (img, "a larger L1 table", r);
  }
  h->l1_size = (uint32_t) entries;
  h->l1_table_offset = offset;
  claim_ends (img, OVERLAP_ACTIVE_L1, offset);
  freed_join (&img->freed, &old);
  return 0;
}

/*----------------------------------------------------------------------
 * What lies beyond the end.
 */

/* Make [FROM, TO) zero wherever it might be something else: where an L2
 * table is, and before BACKING_END.
 */
static int
clear (struct image *img, uint64_t from, uint64_t to, uint64_t backing_end)
{
  const uint64_t step =
    UINT64_C (1) << (img->map.l2_bits + img->cluster_bits);
  uint64_t next;
  int r = 0;

  for (; r == 0 && from < to; from = next) {
    next = MIN (to, round_down (from, step) + step);
    if (from < backing_end || map_has_table (img, from >> img->cluster_bits))
      r = image_zero (img, from, next - from, IMAGE_ZERO_MAY_TRIM, false);
  }
  return r;
}

/* With a raw data file the disk is its length, and the file's bytes show
 * without entries.
 */
static int
grow_data_file (struct image *img, uint64_t old, uint64_t size)
{
  uint64_t len;
  int r = storage_size (img->data_file, &len);

  if (r == 0 && old < MIN (len, size))
    r = image_zero (img, old, MIN (len, size) - old, IMAGE_ZERO_MAY_TRIM,
                    false);
  if (r == 0)
    r = guard_set_external_length (img, size, false);
  return r < 0 ? failed (img, "the length of the data file", r) : 0;
}

/* What is beyond the disk there can never be seen again. */
static int
cut_data_file (struct image *img, uint64_t size)
{
  int r = guard_set_external_length (img, size, true);

  return r < 0 && r != -ENOTSUP
    ? failed (img, "the length of the data file", r) : 0;
}

static int
write_size (struct image *img, uint64_t size)
{
  uint8_t buf[8];
  int r;

  store_be64 (buf, size);
  r = guard_write_buf (img, OVERLAP_MAIN_HEADER, buf, sizeof buf,
                       HEADER_OFFSET_SIZE);
  if (r == 0)
    r = guard_sync (img);
  return r < 0 ? failed (img, "the header's size", r) : 0;
}

static int
grow (struct image *img, uint64_t size)
{
  const uint64_t old = img->size;
  uint64_t backing_end = img->backing ? img->backing->size : 0;
  int r;

  img->size = size;             /* requests lie inside the disk */
  r = clear (img, old, size, backing_end);
  if (r == 0 && img->raw_data)
    r = grow_data_file (img, old, size);
  if (r == 0 && !SABOTAGED (SABOTAGE_GROW_CLEAR))
    r = commit_now (img);
  return r == 0 ? write_size (img, size) : r;
}

/* Only tables that exist matter: if the disk grows again, grow sees to
 * the rest.
 */
static int
cut_off (struct image *img, uint64_t size)
{
  int r = write_size (img, size);

  if (r == 0)
    r = clear (img, size, img->size, 0);
  return r == 0 && img->data_file ? cut_data_file (img, size) : r;
}

/*----------------------------------------------------------------------
 * Both.
 */

/* They are marked in use, and stored when the image is closed. */
static void
resize_bitmaps (struct image *img, uint64_t old, uint64_t size)
{
  if (bitmaps_resize (img, old, size) == 0)
    return;
  bitmaps_give_up (&img->bitmaps);
  report_warning ("%s: not enough memory to resize the bitmaps, which are "
                  "lost (inconsistent)", img->config.filename);
}

static int
close_resized (struct image *img, int r)
{
  int stopped;

  if (r < 0)                    /* whose size would they have? */
    bitmaps_give_up (&img->bitmaps);
  stopped = image_stop (img);
  /* A sync may have failed for bitmaps only, and they are lost.  But what
   * is read again may be what the kernel has and the disk has not.
   */
  if (stopped == 0 && atomic_load (&img->guard.failed))
    stopped = failed (img, "a sync", -EIO);
  image_close (img);
  return r < 0 ? r : stopped;
}

/* Open the image and make sure that it may be changed so. */
static int
open_to_resize (const struct image_config *config, uint64_t size,
                bool shrink, struct image **img)
{
  int r = image_open (config, img);

  if (r < 0)
    return r;
  r = check_resize (*img, size, shrink);
  (*img)->bitmaps.all_in_use = true;
  if (r == 0 && size != (*img)->size)
    r = image_prepare_write (*img);
  if (r < 0)
    image_close (*img);
  return r;
}

int
image_resize (const struct image_config *config, uint64_t size, bool shrink)
{
  struct image *img;
  uint64_t entries, old;
  int r;

  size = round_up (size, 512);
  r = open_to_resize (config, size, shrink, &img);
  if (r < 0)
    return r;
  entries = l1_entries_for (img, size);
  if (entries > img->header.l1_size) {
    r = close_resized (img, grow_l1 (img, entries));
    if (r == 0)
      r = open_to_resize (config, size, shrink, &img);
    if (r < 0)
      return r;
  }
  old = img->size;
  if (size > old)
    r = grow (img, size);
  else if (size < old)
    r = cut_off (img, size);
  if (r == 0 && size != old)
    resize_bitmaps (img, old, size);
  return close_resized (img, r);
}
