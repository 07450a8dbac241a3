/* SPDX-License-Identifier: BSD-3-Clause */

/* A cache of compressed clusters, unpacked.  See unpacked.c. */

#ifndef QCOW2_UNPACKED_H
#define QCOW2_UNPACKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct unpacked;

/* A cluster in the cache, held by somebody. */
struct unpacked_cluster {
  uint64_t key;                 /* its L2 entry; 0: none */
  uint64_t first, last;         /* the host clusters that its stream is in */
  uint64_t used;                /* when it was last */
  unsigned holders;
  bool loading;                 /* its first holder is filling it */
  unsigned set;                 /* where it is */
  uint8_t *data;                /* one cluster, once there was any */
};

/* For clusters of CLUSTER_SIZE bytes, up to LIMIT bytes of them; none if
 * that is less than one.  NULL for want of memory.
 */
struct unpacked *unpacked_create (uint64_t cluster_size, uint64_t limit);
void unpacked_free (struct unpacked *u);

/* Hold the cluster that the L2 entry KEY leads to, or NULL.  With *LOAD
 * the caller must fill DATA and then call unpacked_loaded; who asks for
 * it meanwhile waits.  FIRST and LAST are the host clusters of its
 * stream.  The caller has the range lock of a guest cluster with that
 * entry, and keeps it until unpacked_put.
 */
struct unpacked_cluster *unpacked_get (struct unpacked *u, uint64_t key,
                                       uint64_t first, uint64_t last,
                                       bool *load);

/* It is filled (and still held), or that has failed (and it is let go). */
void unpacked_loaded (struct unpacked *u, struct unpacked_cluster *c,
                      bool success);

/* As unpacked_get, if it is there already; else NULL. */
struct unpacked_cluster *unpacked_peek (struct unpacked *u, uint64_t key);

void unpacked_put (struct unpacked *u, struct unpacked_cluster *c);

/* Host clusters are about to be free: forget what was unpacked of them. */
void unpacked_forget (struct unpacked *u, uint64_t first, uint64_t count);

/* How often something was found, and how often not. */
void unpacked_counters (struct unpacked *u, uint64_t *hits,
                        uint64_t *misses);

#endif /* QCOW2_UNPACKED_H */
