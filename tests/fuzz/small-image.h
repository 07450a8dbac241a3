/* SPDX-License-Identifier: BSD-3-Clause */

/* Small images, for the fuzz target of the whole engine: one that is
 * sound, made from a few numbers, and an opinion of what became of it.
 * Both are written from the qcow2 specification alone and share nothing
 * with lib/: a mistake in there cannot hide itself here.
 */

#ifndef QCOW2_SMALL_IMAGE_H
#define QCOW2_SMALL_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What to make. */
struct small_plan {
  unsigned version;             /* 2 or 3 */
  unsigned cluster_bits;        /* 9 to 12 */
  unsigned refcount_order;      /* 0 to 6; version 2: 4 */
  uint64_t disk;                /* guest bytes */
  unsigned filled;              /* guest clusters with something in them */
  unsigned pattern;             /* which of them have what */
  bool compressed;              /* some of them are compressed */
  bool snapshot;                /* shares all with a snapshot; not with
                                   refcount_order 0 */
};

/* What was made, and where. */
struct small_image {
  uint8_t *bytes;               /* the file */
  size_t len;
  uint8_t *guest;               /* what the disk has */
  uint8_t *holes;               /* per guest cluster: 1 if it is read from
                                   the backing file, should there be one */
  uint64_t reftable, refblock, l1, l2, snapshots, snapshot_l1, data;
};

/* Aborts when memory is short. */
void small_image_make (const struct small_plan *plan,
                       struct small_image *image);
void small_image_free (struct small_image *image);

/* The verdict on LEN bytes that should be an image. */
struct small_verdict {
  unsigned corruptions;         /* pointers that lead astray, counts too
                                   low, COPIED where it is not true */
  unsigned leaks;               /* counts too high */
  char first[160];              /* the first of them, in words */
};

/* Which clusters are what, as seen from the header of BYTES.  FN is
 * called for each table: TABLE says which ("L1", "L2", "inactive L2"...).
 */
typedef void small_table_fn (void *opaque, const char *table,
                             uint64_t offset, uint64_t len);

void small_image_check (const uint8_t *bytes, size_t len,
                        struct small_verdict *verdict,
                        small_table_fn *fn, void *opaque);

#endif /* QCOW2_SMALL_IMAGE_H */
