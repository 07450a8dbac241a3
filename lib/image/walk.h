/* SPDX-License-Identifier: BSD-3-Clause */

/* A walk over all metadata of an image.  See walk.c. */

#ifndef QCOW2_WALK_H
#define QCOW2_WALK_H

#include <stdint.h>

#include "overlap.h"

struct image;

/* LEN host bytes at OFFSET hold metadata of TYPE.  OFFSET is as it stands
 * in the table that names it: not checked.  A return that is not 0 ends
 * the walk.
 */
typedef int walk_fn (void *opaque, struct image *img,
                     enum overlap_type type, uint64_t offset,
                     uint64_t len);

/* Call FN for every piece of metadata whose type is in TYPES: of the
 * tables in memory (header, L1, L2, refcounts), in the making, in the
 * quarantine, and in the file (snapshots, bitmaps).  FN must not take
 * locks but the tracker's own.  Returns what FN returned, or a negative errno
 * where the file could not be read (reported).
 */
int walk_metadata (struct image *img, overlap_set types, walk_fn *fn,
                   void *opaque);

#endif /* QCOW2_WALK_H */
