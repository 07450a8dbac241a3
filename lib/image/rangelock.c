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
 * All holds stand in one list, in order of arrival.  A hold is granted
 * when no earlier one conflicts with it, granted or still waiting, so
 * nobody starves.  The list is as long as there are requests in flight,
 * a few dozens at most, and each waiter is woken by name.
 *
 * Locks: the list has a mutex of its own, held for the walk only.
 * Range locks come before all other locks.  A thread holds at most one
 * range at a time, but for the commit, which may run in a thread that has
 * one and does not wait for its second (rangelock_try).
 */

#include <config.h>

#include <stddef.h>

#include "rangelock.h"

void
rangelock_init (struct rangelock *r)
{
  pthread_mutex_init (&r->lock, NULL);
  r->first = r->last = NULL;
}

void
rangelock_destroy (struct rangelock *r)
{
  pthread_mutex_destroy (&r->lock);
}

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
}

bool
rangelock_try (struct rangelock *r, struct range_hold *hold,
               uint64_t begin, uint64_t end, bool exclusive)
{
  bool granted;

  pthread_mutex_lock (&r->lock);
  append (r, hold, begin, end, exclusive);
  granted = hold->granted;
  if (!granted)
    take_out (r, hold);         /* nobody came later: nobody waits for it */
  pthread_mutex_unlock (&r->lock);
  return granted;
}

void
rangelock_lock (struct rangelock *r, struct range_hold *hold,
                uint64_t begin, uint64_t end, bool exclusive)
{
  pthread_mutex_lock (&r->lock);
  append (r, hold, begin, end, exclusive);
  if (!hold->granted) {
    pthread_cond_init (&hold->cond, NULL);
    while (!hold->granted)
      pthread_cond_wait (&hold->cond, &r->lock);
    pthread_cond_destroy (&hold->cond);
  }
  pthread_mutex_unlock (&r->lock);
}

void
rangelock_unlock (struct rangelock *r, struct range_hold *hold)
{
  struct range_hold *h;

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
