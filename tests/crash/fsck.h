/* SPDX-License-Identifier: BSD-3-Clause */

/* A check of a whole image, which knows the format but nothing of the
 * engine: every pointer leads to a cluster of the file whose count
 * covers all pointers to it.
 */

#ifndef QCOW2_FSCK_H
#define QCOW2_FSCK_H

#include <stdbool.h>
#include <stdint.h>

#include "bitmap.h"
#include "disk.h"
#include "header.h"

struct fsck_result {
  uint64_t leaks;               /* clusters whose count is too high */
  uint64_t clusters;            /* of the file */
  uint64_t table_clusters;      /* of the refcount table */
  uint64_t blocks;              /* refcount blocks */
  struct header header;         /* if there is no problem */
  char problem[256];            /* the first corruption; "" is none */
};

/* True if there is no corruption. */
bool fsck (const struct disk *d, struct fsck_result *result);

/* The bitmaps of an image with this header, if they count; none if there
 * are none.  False, with *E, if the directory is bad.
 */
bool fsck_bitmaps (const struct disk *d, const struct header *h,
                   struct bitmap_directory *dir, struct format_error *e);

#endif /* QCOW2_FSCK_H */
