/* SPDX-License-Identifier: BSD-3-Clause */

/* Answers about metadata from the tables themselves.  See verify.c. */

#ifndef QCOW2_VERIFY_H
#define QCOW2_VERIFY_H

#include <stdint.h>

#include "overlap.h"

struct image;

/* What overlap_query answers for COUNT clusters from FIRST on if nothing
 * is outside the tracker; types that are not in TYPES may be missing.
 * Slow.  0 or a negative errno (reported).
 */
int verify_range (struct image *img, uint64_t first, uint64_t count,
                  overlap_set mask, overlap_set types,
                  struct overlap_answer *answer);

/* A tracker of its own of all that the tables lead to now, without a limit
 * and of places that were not looked at (walk.h).  The caller frees it.
 * NULL for want of memory, or where a table could not be read (reported),
 * with the negative errno in *R.
 */
struct overlap *verify_new_tracker (struct image *img, int *r);

#endif /* QCOW2_VERIFY_H */
