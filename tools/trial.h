/* SPDX-License-Identifier: BSD-3-Clause */

/* A tracker filled as the server fills it, to see what a limit does.  See
 * trial.c.
 */

#ifndef QCOW2_TRIAL_H
#define QCOW2_TRIAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "offline.h"

struct range {
  uint64_t start, length;       /* host bytes */
};

struct trial {
  uint64_t pieces;              /* of metadata */
  uint64_t clusters;            /* of metadata; with two owners, twice */
  uint64_t tracked;             /* of these, protected */
  uint64_t used;                /* bytes of memory, as accounted */
  struct range *outside;        /* sorted; owned */
  size_t n_outside;
};

/* Fill a tracker with the metadata that IMG has, or with FULL, will have
 * when its disk is full.  LIMIT: UINT64_MAX is none.  0 or a negative
 * errno (reported).
 */
int trial_run (struct image *img, bool full, uint64_t bitmap_size,
               uint64_t limit, struct trial *t);
void trial_free (struct trial *t);

/* Bytes of T->outside. */
uint64_t trial_outside_bytes (const struct trial *t);

#endif /* QCOW2_TRIAL_H */
