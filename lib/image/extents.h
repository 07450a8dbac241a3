/* SPDX-License-Identifier: BSD-3-Clause */

/* Block status.  See extents.c. */

#ifndef QCOW2_EXTENTS_H
#define QCOW2_EXTENTS_H

#include <stdint.h>

struct image;

/* The status (IMAGE_EXTENT_*) of OFFSET, and how far it reaches at the
 * least: *LEN (in: at most).  Takes no range lock.
 */
int extent_status (struct image *img, uint64_t offset, uint64_t *len,
                   unsigned *status);

#endif /* QCOW2_EXTENTS_H */
