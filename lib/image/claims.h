/* SPDX-License-Identifier: BSD-3-Clause */

/* Tables in the making.  See claims.c; guard_claim and guard_unclaim are
 * declared in guard.h.
 */

#ifndef QCOW2_CLAIMS_H
#define QCOW2_CLAIMS_H

#include <pthread.h>
#include <stdint.h>

#include "overlap.h"
#include "walk.h"

struct image;

/* More than can be made at a time (map.c makes one table for each of
 * its table locks, alloc.c three pieces under one lock).
 */
#define CLAIMS_MAX 64

struct claim {
  uint64_t first, count;        /* host clusters */
  enum overlap_type type;
};

struct claims {
  pthread_mutex_t lock;
  unsigned n;
  struct claim v[CLAIMS_MAX];
};

void claims_init (struct claims *claims);
void claims_destroy (struct claims *claims);

/* What was claimed at OFFSET can be found by way of the tables, or of the
 * quarantine, from now on.
 */
void claim_ends (struct image *img, enum overlap_type type,
                 uint64_t offset);

/* Call FN for what is in the making, as walk_metadata does.  It must not
 * take locks but the tracker's own.
 */
int claims_walk (struct image *img, overlap_set types, walk_fn *fn,
                 void *opaque);

#endif /* QCOW2_CLAIMS_H */
