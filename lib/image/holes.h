/* SPDX-License-Identifier: BSD-3-Clause */

/* Holes in host clusters that stay.  See holes.c. */

#ifndef QCOW2_HOLES_H
#define QCOW2_HOLES_H

#include <stdbool.h>
#include <stdint.h>

struct image;

/* Subclusters (bits of MASK) of guest cluster CLUSTER were data and are
 * not any more, which is durable: give their space back to the file
 * system, where that is still so.  False: the cluster is in use, ask
 * again after the next commit.  Called by the commit alone.
 */
bool holes_make (struct image *img, uint64_t cluster, uint32_t mask);

#endif /* QCOW2_HOLES_H */
