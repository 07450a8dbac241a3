/* SPDX-License-Identifier: BSD-3-Clause */

/* Locks on ranges of guest clusters: exact intervals, shared or
 * exclusive.  See rangelock.c.
 */

#ifndef QCOW2_RANGELOCK_H
#define QCOW2_RANGELOCK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct range_hold;

#define RANGE_PLACES 32u

/* A place for a shared range; 0: free.  In a cache line of its own. */
struct range_place {
  _Alignas (64) _Atomic uint64_t range;
};

struct rangelock {
  _Alignas (64) pthread_mutex_t lock; /* guards what is in its line */
  struct range_hold *first, *last; /* in order of arrival */

  _Alignas (64) atomic_uint exclusives; /* holds in the list, granted or
                                           not, that are exclusive */
  pthread_cond_t left;          /* a place became free */
  struct range_place places[RANGE_PLACES];
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
  _Atomic uint64_t *place;      /* it is there; NULL: in the list */
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
