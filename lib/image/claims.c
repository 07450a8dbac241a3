/* SPDX-License-Identifier: BSD-3-Clause */

/* Tables in the making.
 *
 * A new table is claimed in the tracker before its first write, and only
 * later does a pointer lead to it.  A walk over the tables would miss it
 * meanwhile, and two users of the walk must not: the answer for a range
 * that is outside the tracker (verify.c), and the rebuilding of such a
 * range (restore.c).  So what is in the making stands in a short list:
 *
 *     guard_claim --> in the making --> linked --> freed --> released
 *                          |  claim_ends   |  freed_join     guard_unclaim
 *                          |               +-- the tables --- the quarantine
 *                          +-- guard_unclaim: nothing came of it
 *
 * Invariants
 *
 * K1. A mark is made and the claim noted in one step, as the walk sees
 *     it: the lock is held for both.  So a walk that began before either
 *     sees neither, or an update of the tracker, or the note.
 * K2. At any time what is marked can be found in at least one of the
 *     places above, and it passes through them in this order.  So a walk
 *     that looks at them in this order misses nothing.  A mark is taken
 *     back when it is in none of them any more.
 *
 * Locks: claims.lock; under it the tracker's own.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "checked.h"
#include "claims.h"
#include "cleanup.h"
#include "corrupt.h"
#include "guard.h"
#include "image-internal.h"
#include "verify.h"

void
claims_init (struct claims *claims)
{
  pthread_mutex_init (&claims->lock, NULL);
}

void
claims_destroy (struct claims *claims)
{
  pthread_mutex_destroy (&claims->lock);
}

static int
refuse_claim (struct image *img, enum overlap_type type, overlap_set there,
              uint64_t where)
{
  atomic_fetch_add (&img->guard.refused, 1);
  return image_corrupt (img, where << img->cluster_bits, img->cluster_size,
                        "Preventing invalid allocation of %s "
                        "(overlaps with %s)", overlap_type_text (type),
                        overlap_type_text ((enum overlap_type)
                                           __builtin_ctz (there)));
}

/* The part under the lock (K1): 0, -ENOMEM, or what is *THERE. */
static int
note_claim (struct image *img, const struct claim *claim,
            overlap_set *there, uint64_t *where)
{
  struct claims *c = &img->claims;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  unsigned i;

  *there = OVERLAP_NONE;
  if (c->n == CLAIMS_MAX)
    return -ENOMEM;
  /* Where the tracker has marks it knows of these, too. */
  for (i = 0; i < c->n; ++i)
    if (c->v[i].first < claim->first + claim->count
        && claim->first < c->v[i].first + c->v[i].count) {
      *there |= OVERLAP_BIT (c->v[i].type);
      *where = MAX (c->v[i].first, claim->first);
    }
  if (*there == OVERLAP_NONE)
    *there = overlap_claim (img->guard.overlap, claim->type, claim->first,
                            claim->count, where);
  if (*there == OVERLAP_NO_MEMORY)
    return -ENOMEM;
  if (*there == OVERLAP_NONE)
    c->v[c->n++] = *claim;
  return 0;
}

int
guard_claim (struct image *img, enum overlap_type type,
             uint64_t offset, uint64_t len)
{
  const struct claim claim = {
    .first = offset >> img->cluster_bits,
    .count = len >> img->cluster_bits,
    .type = type,
  };
  struct overlap_answer answer;
  overlap_set there;
  uint64_t where = claim.first;
  int r;

  /* What the tracker does not know is looked up in the tables. */
  r = guard_query (img, (int) type, claim.first, claim.count, OVERLAP_ALL,
                   OVERLAP_ALL, &answer);
  if (r < 0)
    return r;
  if (answer.any != OVERLAP_NONE)
    return refuse_claim (img, type, answer.any, answer.where);
  r = note_claim (img, &claim, &there, &where);
  if (r < 0)
    return r;
  return there != OVERLAP_NONE ? refuse_claim (img, type, there, where) : 0;
}

void
claim_ends (struct image *img, enum overlap_type type, uint64_t offset)
{
  const uint64_t first = offset >> img->cluster_bits;
  struct claims *c = &img->claims;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  unsigned i;

  for (i = 0; i < c->n; ++i)
    if (c->v[i].type == type && c->v[i].first == first) {
      c->v[i] = c->v[--c->n];
      return;
    }
}

/* K2: first the note, then the mark. */
void
guard_unclaim (struct image *img, enum overlap_type type,
               uint64_t offset, uint64_t len)
{
  claim_ends (img, type, offset);
  overlap_leave (img->guard.overlap, type, offset >> img->cluster_bits,
                 len >> img->cluster_bits);
}

int
claims_walk (struct image *img, overlap_set types, walk_fn *fn,
             void *opaque)
{
  struct claims *c = &img->claims;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  unsigned i;
  int r = 0;

  for (i = 0; i < c->n && r == 0; ++i)
    if (types & OVERLAP_BIT (c->v[i].type))
      r = fn (opaque, img, c->v[i].type, c->v[i].first << img->cluster_bits,
              c->v[i].count << img->cluster_bits);
  return r;
}
