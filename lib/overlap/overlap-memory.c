/* SPDX-License-Identifier: BSD-3-Clause */

/* The account: every byte that the tracker holds passes through here,
 * and is counted as malloc gave it (malloc_usable_size), not as it was
 * asked for.
 *
 * Invariants:
 *
 * - overlap.used is the sum of ov_size over all blocks held, the
 *   struct overlap itself included.
 *
 * - used <= total_limit after every ov_alloc without FORCE.  While one
 *   block is replaced by another both exist for a moment, and only the
 *   new one is counted against the limit.
 *
 * A failure of malloc and a limit that is reached look the same to the
 * caller, who makes room or lets a window leave.
 *
 * Locks: the caller holds overlap.lock.
 */

#include <config.h>

#include <malloc.h>
#include <stdlib.h>

#include "overlap-internal.h"

/* Only tests set these; updates of different trackers may race here,
 * so they are atomic.
 */
static _Atomic (uint64_t) fail_at;
static atomic_bool fail_forever;

void
ov_fail_alloc (uint64_t n, bool forever)
{
  atomic_store (&fail_forever, forever);
  atomic_store (&fail_at, n);
}

/* True if a test wants this allocation to fail. */
static bool
fails (void)
{
  uint64_t n = atomic_load_explicit (&fail_at, memory_order_relaxed);

  if (n == 0)
    return false;
  if (n == 1) {
    if (!atomic_load (&fail_forever))
      atomic_store (&fail_at, 0);
    return true;
  }
  atomic_store (&fail_at, n - 1);
  return false;
}

uint64_t
ov_size (const void *p)
{
  return malloc_usable_size ((void *) p);
}

void *
ov_alloc (struct overlap *o, size_t size, bool force)
{
  return ov_alloc_instead (o, size, NULL, force);
}

void *
ov_alloc_instead (struct overlap *o, size_t size, const void *old,
                  bool force)
{
  uint64_t limit = o->config.total_limit;
  uint64_t others = o->used - (old ? ov_size (old) : 0);
  uint64_t got;
  void *p;

  /* Spare malloc the trouble where the answer is known. */
  if (!force && (others > limit || size > limit - others))
    return NULL;
  p = fails () ? NULL : calloc (1, size);
  if (!p)
    return NULL;
  got = ov_size (p);
  if (!force && got > limit - others) {
    free (p);
    return NULL;
  }
  o->used += got;
  return p;
}

void
ov_free (struct overlap *o, void *p)
{
  if (!p)
    return;
  o->used -= ov_size (p);
  free (p);
}
