/* SPDX-License-Identifier: BSD-3-Clause */

/* Threads that help with one request.  See workers.c. */

#ifndef QCOW2_WORKERS_H
#define QCOW2_WORKERS_H

/* A part of a job: I is less than the N that was asked for. */
typedef void worker_fn (void *opaque, unsigned i);

struct workers;

/* One thread fewer than there are processors, at most seven, which the
 * first job of several parts starts; none is fine, too.  NULL for want of
 * memory.
 */
struct workers *workers_create (void);

/* Ends the threads.  Nobody has a job any more.  NULL is allowed. */
void workers_free (struct workers *w);

/* Call FN for each I below N, in any order and at the same time, and
 * return when all have ended.  The calling thread does its share, and all
 * of it if W is NULL.  What it holds locked, nobody may take in FN.
 */
void workers_run (struct workers *w, unsigned n, worker_fn *fn,
                  void *opaque);

#endif /* QCOW2_WORKERS_H */
