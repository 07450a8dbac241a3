/* SPDX-License-Identifier: BSD-3-Clause */

/* Writing clusters compressed.  See compress.c. */

#ifndef QCOW2_COMPRESS_H
#define QCOW2_COMPRESS_H

#include <stdbool.h>
#include <stdint.h>

struct image;

/* Can this image have what config.compress asks for?  0 or -ENOTSUP
 * (reported).
 */
int compress_check (struct image *img);

/* Should whole clusters be written compressed? */
bool compress_wanted (const struct image *img);

/* How many bytes from OFFSET on, at most LEN, are of one kind: whole
 * clusters (*WHOLE), or a part of one.  The last cluster of the disk is
 * whole up to the disk's end.
 */
uint64_t compress_split (const struct image *img, uint64_t offset,
                         uint64_t len, bool *whole);

#define COMPRESS_CLUSTERS 512   /* of a slice */

/* Write whole clusters of one slice, LEN bytes (or to the disk's end)
 * from OFFSET on, whose range lock the caller has, exclusive.  Those for
 * which PLAIN becomes true do not get smaller: they are left to the
 * caller.
 */
int compress_clusters (struct image *img, const uint8_t *buf, uint64_t len,
                       uint64_t offset, bool plain[COMPRESS_CLUSTERS]);

#endif /* QCOW2_COMPRESS_H */
