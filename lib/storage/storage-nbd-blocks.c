/* SPDX-License-Identifier: BSD-3-Clause */

/* Who is changing which blocks of an NBD export.
 *
 * A server whose smallest block is larger than a byte is sent whole
 * blocks.  To change part of one, it is read, completed and written.
 * Between the two nobody else may change the block, or his change would
 * be undone, so such a change holds its range alone.  Changes of whole
 * blocks hold theirs together: the engine keeps those from overlapping
 * where it matters.
 *
 * Ranges are exact and kept in a list, which is as long as there are
 * changes under way.
 *
 * Locks: LOCK guards the list and is held for no I/O.  A thread holds one
 * range at a time, so there is no order to keep.
 */

#include <config.h>

#include "cleanup.h"
#include "storage-nbd.h"

void
nbdblocks_init (struct nbdblocks *b)
{
  pthread_mutex_init (&b->lock, NULL);
  pthread_cond_init (&b->changed, NULL);
  b->first = NULL;
}

void
nbdblocks_destroy (struct nbdblocks *b)
{
  pthread_cond_destroy (&b->changed);
  pthread_mutex_destroy (&b->lock);
}

static bool
is_free (const struct nbdblocks *b, const struct nbdblocks_range *range)
{
  const struct nbdblocks_range *r;

  for (r = b->first; r; r = r->next) {
    if (r->begin < range->end && range->begin < r->end
        && (r->alone || range->alone))
      return false;
  }
  return true;
}

void
nbdblocks_enter (struct nbdblocks *b, struct nbdblocks_range *range,
                 uint64_t begin, uint64_t end, bool alone)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&b->lock);

  range->begin = begin;
  range->end = end;
  range->alone = alone;
  while (!is_free (b, range))
    pthread_cond_wait (&b->changed, &b->lock);
  range->next = b->first;
  b->first = range;
}

void
nbdblocks_leave (struct nbdblocks *b, struct nbdblocks_range *range)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&b->lock);
  struct nbdblocks_range **p = &b->first;

  while (*p != range)
    p = &(*p)->next;
  *p = range->next;
  pthread_cond_broadcast (&b->changed);
}
