/* SPDX-License-Identifier: BSD-3-Clause */

/* Exploring what power losses leave of an image. */

#ifndef QCOW2_EXPLORE_H
#define QCOW2_EXPLORE_H

#include <stdint.h>

#include "kinds.h"
#include "states.h"

struct explore_stats {
  uint64_t runs, states, requests, syncs;
  uint64_t by_kind[128];        /* states */
  uint64_t by_loss[NR_LOSSES];
  uint64_t leaky, leaks;        /* states with leaks, leaks in all */
  uint64_t qemu;                /* states judged by qemu-img, too */
  uint64_t repaired;            /* states whose repair had not ended */
  uint64_t gone_on;             /* states that took requests afterwards */
  uint64_t small_holes;         /* states with holes within a cluster */
  uint64_t blocks_made, tables_grown; /* refcounts, in runs */
};
extern struct explore_stats explore_stats;

/* One run of a kind, and up to MOST states of it.  On average one in
 * QEMU_SHARE is judged by qemu-img, too (0: none).  What goes wrong is
 * printed, and ends the program.
 */
void explore (unsigned kind, uint64_t seed, uint64_t most,
              unsigned qemu_share);

#endif /* QCOW2_EXPLORE_H */
