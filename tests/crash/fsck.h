/* SPDX-License-Identifier: BSD-3-Clause */

/* A check of a whole image, which knows the format but nothing of the
 * engine: every pointer leads to a cluster of the file whose count
 * covers all pointers to it.
 */

#ifndef QCOW2_FSCK_H
#define QCOW2_FSCK_H

#include <stdbool.h>
#include <stdint.h>

#include "disk.h"

struct fsck_result {
  uint64_t leaks;               /* clusters whose count is too high */
  uint64_t clusters;            /* of the file */
  uint64_t table_clusters;      /* of the refcount table */
  uint64_t blocks;              /* refcount blocks */
  char problem[256];            /* the first corruption; "" is none */
};

/* True if there is no corruption. */
bool fsck (const struct disk *d, struct fsck_result *result);

#endif /* QCOW2_FSCK_H */
