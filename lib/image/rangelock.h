/* SPDX-License-Identifier: BSD-3-Clause */

/* Locks on ranges of guest clusters: exact intervals, shared or
 * exclusive.  See rangelock.c.
 */

#ifndef QCOW2_RANGELOCK_H
#define QCOW2_RANGELOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct range_hold;

struct rangelock {
  _Alignas (64) pthread_mutex_t lock; /* all in one cache line */
  struct range_hold *first, *last; /* in order of arrival */
};

/* One range, held or waited for; lives on the caller's stack from
 * rangelock_lock to rangelock_unlock.
 */
struct range_hold {
  /* What others look at, together. */
  uint64_t begin, end;          /* guest clusters, END excluded */
  struct range_hold *prev, *next;
  bool exclusive;
  bool granted;
  pthread_cond_t cond;          /* signalled when granted */
};

void rangelock_init (struct rangelock *r);
void rangelock_destroy (struct rangelock *r);

/* Wait until [BEGIN, END) can be had: nothing that arrived earlier and
 * overlaps it, unless both are shared.  Cannot fail.
 */
void rangelock_lock (struct rangelock *r, struct range_hold *hold,
                     uint64_t begin, uint64_t end, bool exclusive);

/* The same without waiting: false, and no hold, if anything stands in the
 * way.  For who may not wait, as the thread may hold a range already.
 */
bool rangelock_try (struct rangelock *r, struct range_hold *hold,
                    uint64_t begin, uint64_t end, bool exclusive);

void rangelock_unlock (struct rangelock *r, struct range_hold *hold);

#endif /* QCOW2_RANGELOCK_H */
