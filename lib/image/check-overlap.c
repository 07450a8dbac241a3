/* SPDX-License-Identifier: BSD-3-Clause */

/* The check: is metadata where guest data is?  QEMU does not look for
 * that, but an image in which it is so loses what lies there with the next
 * write, and the check must not call it sound.
 *
 * The image's tracker knows, if nothing was wrong with the metadata itself
 * and all of it has room.  What left it for want of memory may be asked
 * for in each L2 entry, which would be a walk over the tables for each:
 * then one walk fills a second tracker, that has no limit.  It takes less
 * than the tally, and is gone with the round.
 *
 * Locks: none but the trackers' and, once, those of the walk.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "check.h"
#include "checked.h"
#include "verify.h"

/* All types of CLUSTER, in *TYPES, or the pinned ones if it has any. */
static int
types_of (struct check *c, uint64_t cluster, overlap_set *types)
{
  struct overlap_answer answer;
  int r = 0;

  overlap_query (c->img->guard.overlap, cluster, 1, OVERLAP_ALL, &answer);
  if (answer.outside && !(answer.any & OVERLAP_PINNED)) {
    if (!c->tables)
      c->tables = verify_new_tracker (c->img, &r);
    if (r < 0)
      return r;
    overlap_query (c->tables, cluster, 1, OVERLAP_ALL, &answer);
  }
  *types = answer.any;
  return 0;
}

/* 1 if a mistake was noted. */
static int
check_cluster (struct check *c, uint64_t cluster)
{
  const struct image *img = c->img;
  overlap_set types;
  int r;

  if (!overlap_hit (img->guard.overlap, cluster, 1, OVERLAP_ALL))
    return 0;
  r = types_of (c, cluster, &types);
  if (r < 0 || types == OVERLAP_NONE)
    return r;
  check_mistake (c, CHECK_KIND_OVERLAP, 1, "guest data at host offset "
                 "0x%" PRIx64 " is also %s", cluster << img->cluster_bits,
                 overlap_type_text ((enum overlap_type)
                                    __builtin_ctz (types)));
  c->unseen = true;             /* where it was meant to be */
  return 1;
}

int
check_overlap (struct check *c, uint64_t offset, uint64_t len)
{
  const unsigned bits = c->img->cluster_bits;
  uint64_t cluster;
  int r = 0;

  if (c->img->untracked)
    return 0;
  for (cluster = offset >> bits;
       r == 0 && cluster <= (offset + len - 1) >> bits; ++cluster)
    r = check_cluster (c, cluster);
  return MIN (r, 0);
}
