/* SPDX-License-Identifier: BSD-3-Clause */

/* Does the guest flush after each write?
 *
 * Then the disk may as well begin to write at once, and not only when the
 * flush arrives: with one client it would do nothing meanwhile.  Where two
 * writes or more share a flush this loses more than it gains, since the disk
 * takes them together better (docs/design/performance.md).
 *
 * The habit is judged anew after every PERIOD flushes, of all clients
 * together.  It is a guess, and nothing depends on it but time.
 *
 * Locks: none.  Writes are counted up to MOST + 1 only, so that those of a
 * guest that seldom flushes do not take a cache line from each other.
 */

#include <config.h>

#include "habit.h"

#define PERIOD 16u

/* So many writes between so many flushes are one for each. */
#define LEAST 12u
#define MOST  20u

void
habit_flushed (struct habit *h)
{
  unsigned writes;

  /* Only one of several judges. */
  if (atomic_fetch_add_explicit (&h->flushes, 1, memory_order_relaxed) + 1
      != PERIOD)
    return;
  atomic_store_explicit (&h->flushes, 0, memory_order_relaxed);
  writes = atomic_exchange_explicit (&h->writes, 0, memory_order_relaxed);
  atomic_store_explicit (&h->each, writes >= LEAST && writes <= MOST,
                         memory_order_relaxed);
}

bool
habit_wrote (struct habit *h)
{
  if (atomic_load_explicit (&h->writes, memory_order_relaxed) > MOST)
    return false;
  atomic_fetch_add_explicit (&h->writes, 1, memory_order_relaxed);
  return atomic_load_explicit (&h->each, memory_order_relaxed);
}
