/* SPDX-License-Identifier: BSD-3-Clause */

/* Answers about metadata from the tables themselves.  See verify.c. */

#ifndef QCOW2_VERIFY_H
#define QCOW2_VERIFY_H

#include <stdint.h>

#include "overlap.h"

struct image;

/* Which types do COUNT clusters from FIRST on hold?  *WHERE is the first
 * cluster that holds any.  Slow.  0 or a negative errno (reported).
 */
int verify_range (struct image *img, uint64_t first, uint64_t count,
                  overlap_set *found, uint64_t *where);

/* Is everything that the tables name in the tracker under its type?
 * Reports what is not, and returns how much.  For -D qcow2.overlap=1.
 */
uint64_t verify_tracker (struct image *img);

#endif /* QCOW2_VERIFY_H */
