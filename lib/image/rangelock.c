/* SPDX-License-Identifier: BSD-3-Clause */

/* Range locks.
 *
 * Every request holds the range of guest clusters that it works on:
 * shared while it reads or writes data in place, exclusive while it
 * changes what the clusters are mapped to.  From this follows more than
 * the order of two requests on one cluster: a host cluster is only ever
 * freed under the exclusive lock of the guest clusters that lead to it,
 * so when the freeing is recorded no request that began before can
 * still be reading it or writing into it.
 *
 * Holds stand in one list, in order of arrival.  A hold is granted when no
 * earlier one conflicts with it, granted or still waiting, so nobody
 * starves.  The list is as long as there are requests in flight, a few
 * dozens at most, and each waiter is woken by name.
 *
 * A guest that writes in place and reads has shared ranges only, which are
 * in nobody's way.  So as long as there is no exclusive one, a shared one
 * does not go to the list: its thread writes it into a place of its own,
 * which takes no lock:
 *
 *     shared                           exclusive
 *     place = range                    exclusives++
 *     exclusives == 0 ?                any place in the way?
 *       yes: granted                     no: granted
 *       no: place = 0, to the list       yes: wait until it is free
 *
 * Invariants
 *
 * 1. Of the two above at least one sees the other: both write first and
 *    look then, in an order that all threads agree on (seq_cst).
 * 2. While exclusives is not 0 no new range is granted in a place.  So
 *    whoever comes after an exclusive one stands in the list behind it,
 *    and it waits only for those that had their places before.
 * 3. Who gives up a place and finds that exclusives is not 0 wakes those
 *    that wait for places.
 *
 * Locks: the list has a mutex of its own, held for the walk only.
 * Range locks come before all other locks.  A thread holds at most one
 * range at a time, but for the commit, which may run in a thread that has
 * one and does not wait for its second (rangelock_try).
 */

#include <config.h>

#include <stddef.h>

#include "per-thread.h"
#include "rangelock.h"

void
rangelock_init (struct rangelock *r)
{
  unsigned i;

  pthread_mutex_init (&r->lock, NULL);
  pthread_cond_init (&r->left, NULL);
  r->first = r->last = NULL;
  atomic_init (&r->exclusives, 0);
  for (i = 0; i < RANGE_PLACES; ++i)
    atomic_init (&r->places[i].range, 0);
}

void
rangelock_destroy (struct rangelock *r)
{
  pthread_mutex_destroy (&r->lock);
  pthread_cond_destroy (&r->left);
}

/*----------------------------------------------------------------------
 * Places.  A range in one is its first cluster, of 54 bits, and how many
 * there are, of 10, so that it is never 0.  What is larger goes to the
 * list.
 */

#define COUNT_BITS 10

static uint64_t
pack (uint64_t begin, uint64_t end)
{
  const uint64_t count = end - begin;

  return begin >> (64 - COUNT_BITS) == 0 && count >> COUNT_BITS == 0
    ? begin << COUNT_BITS | count : 0;
}

/* Does any place hold a part of [BEGIN, END)? */
static bool
places_conflict (struct rangelock *r, uint64_t begin, uint64_t end)
{
  uint64_t range, first;
  unsigned i;

  for (i = 0; i < RANGE_PLACES; ++i) {
    range = atomic_load (&r->places[i].range);
    first = range >> COUNT_BITS;
    if (range != 0 && first < end
        && begin < first + (range & ((1u << COUNT_BITS) - 1)))
      return true;
  }
  return false;
}

/* Invariant 3 */
static void
leave_place (struct rangelock *r, _Atomic uint64_t *place)
{
  atomic_store (place, 0);
  if (__builtin_expect (atomic_load (&r->exclusives) == 0, 1))
    return;
  pthread_mutex_lock (&r->lock);
  pthread_cond_broadcast (&r->left);
  pthread_mutex_unlock (&r->lock);
}

/* Hold a shared range without the list.  False if it has to go there. */
static bool
enter_place (struct rangelock *r, struct range_hold *hold,
             uint64_t begin, uint64_t end)
{
  const uint64_t range = pack (begin, end);
  /* Mostly no other thread uses this place. */
  _Atomic uint64_t *place
    = &r->places[thread_number () % RANGE_PLACES].range;
  uint64_t none = 0;

  if (range == 0 || !atomic_compare_exchange_strong (place, &none, range))
    return false;
  hold->place = place;
  if (__builtin_expect (atomic_load (&r->exclusives) == 0, 1))
    return true;                /* invariant 2 */
  leave_place (r, place);
  return false;
}

/*----------------------------------------------------------------------
 * The list.
 */

static bool
conflict (const struct range_hold *a, const struct range_hold *b)
{
  return a->begin < b->end && b->begin < a->end
    && (a->exclusive || b->exclusive);
}

/* Does anything that arrived before HOLD stand in its way? */
static bool
must_wait (const struct range_hold *hold)
{
  const struct range_hold *h;

  for (h = hold->prev; h; h = h->prev)
    if (conflict (h, hold))
      return true;
  return false;
}

/* With the list's lock held: HOLD is the last to arrive. */
static void
append (struct rangelock *r, struct range_hold *hold,
        uint64_t begin, uint64_t end, bool exclusive)
{
  if (exclusive)
    atomic_fetch_add (&r->exclusives, 1);
  hold->place = NULL;
  hold->begin = begin;
  hold->end = end;
  hold->exclusive = exclusive;
  hold->prev = r->last;
  hold->next = NULL;
  if (r->last)
    r->last->next = hold;
  else
    r->first = hold;
  r->last = hold;
  hold->granted = !must_wait (hold);
}

/* With the list's lock held. */
static void
take_out (struct rangelock *r, struct range_hold *hold)
{
  if (hold->prev)
    hold->prev->next = hold->next;
  else
    r->first = hold->next;
  if (hold->next)
    hold->next->prev = hold->prev;
  else
    r->last = hold->prev;
  if (hold->exclusive)
    atomic_fetch_sub (&r->exclusives, 1);
}

bool
rangelock_try (struct rangelock *r, struct range_hold *hold,
               uint64_t begin, uint64_t end, bool exclusive)
{
  bool granted;

  pthread_mutex_lock (&r->lock);
  append (r, hold, begin, end, exclusive);
  granted = hold->granted
    && !(exclusive && places_conflict (r, begin, end));
  if (!granted)
    take_out (r, hold);         /* nobody came later: nobody waits for it */
  pthread_mutex_unlock (&r->lock);
  return granted;
}

void
rangelock_lock (struct rangelock *r, struct range_hold *hold,
                uint64_t begin, uint64_t end, bool exclusive)
{
  if (!exclusive && enter_place (r, hold, begin, end))
    return;
  pthread_mutex_lock (&r->lock);
  append (r, hold, begin, end, exclusive);
  if (!hold->granted) {
    pthread_cond_init (&hold->cond, NULL);
    while (!hold->granted)
      pthread_cond_wait (&hold->cond, &r->lock);
    pthread_cond_destroy (&hold->cond);
  }
  while (exclusive && places_conflict (r, begin, end))
    pthread_cond_wait (&r->left, &r->lock);
  pthread_mutex_unlock (&r->lock);
}

void
rangelock_unlock (struct rangelock *r, struct range_hold *hold)
{
  struct range_hold *h;

  if (hold->place) {
    leave_place (r, hold->place);
    return;
  }
  pthread_mutex_lock (&r->lock);
  take_out (r, hold);

  /* Only what came later and overlaps can have waited for this one. */
  for (h = hold->next; h; h = h->next) {
    if (!h->granted && conflict (hold, h) && !must_wait (h)) {
      h->granted = true;
      pthread_cond_signal (&h->cond);
    }
  }
  pthread_mutex_unlock (&r->lock);
}
