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

#endif /* QCOW2_VERIFY_H */
