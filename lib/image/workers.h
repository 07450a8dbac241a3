/* SPDX-License-Identifier: BSD-3-Clause */

/* Threads that help with one request.  See workers.c. */

#ifndef QCOW2_WORKERS_H
#define QCOW2_WORKERS_H

/* A part of a job: I is less than the N that was asked for. */
typedef void worker_fn (void *opaque, unsigned i);

struct workers;

/* Start one thread fewer than there are processors, at most seven; none
 * is fine, too.  NULL for want of memory.
 */
struct workers *workers_start (void);

/* Jobs that are under way are finished by those who wait for them.  NULL
 * is allowed.
 */
void workers_stop (struct workers *w);

/* Call FN for each I below N, in any order and at the same time, and
 * return when all have ended.  The calling thread does its share, and all
 * of it if W is NULL.  What it holds locked, nobody may take in FN.
 */
void workers_run (struct workers *w, unsigned n, worker_fn *fn,
                  void *opaque);

#endif /* QCOW2_WORKERS_H */
