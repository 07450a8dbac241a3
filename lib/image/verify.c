/* SPDX-License-Identifier: BSD-3-Clause */

/* What is metadata, from the tables themselves and not from the image's
 * tracker.
 *
 * overlap-limit=verify: for a range that is outside the tracker, the
 * tracker's answer is made from a walk over all tables, as exact as if it
 * had been tracked.  It costs a look at each entry of the L1 and refcount
 * tables in memory, and reading the L1 tables of the snapshots, which are
 * not kept: pieces of them pass through a buffer on the stack, and the
 * kernel has them in its cache.
 *
 * "All": a type is in it if each cluster of the range has that type.
 * A table may be met twice and pieces may overlap, so clusters are
 * counted by a bit each, for as many clusters at a time as fit on the
 * stack.
 *
 * Who has to ask for many clusters of an image that nobody writes to
 * (check-overlap.c), or wants to compare the tracker with the tables
 * (selfcheck.c), takes memory for a second tracker, and one walk.
 *
 * Locks: those of the walk.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "checked.h"
#include "image-internal.h"
#include "verify.h"
#include "walk.h"

#define PART 2048u              /* clusters */

struct question {
  uint64_t first, end;          /* clusters */
  overlap_set mask, any;
  bool found;
  uint64_t where;
  overlap_set type;             /* the one to count, as a set */
  uint64_t bits[PART / 64];
};

static int
intersect (void *opaque, struct image *img, enum overlap_type type,
           uint64_t offset, uint64_t len)
{
  struct question *q = opaque;
  const overlap_set set = OVERLAP_BIT (type);
  uint64_t first = MAX (offset >> img->cluster_bits, q->first);
  uint64_t end = MIN (((offset + len - 1) >> img->cluster_bits) + 1, q->end);

  if (first >= end)
    return 0;
  q->any |= set;
  if ((set & q->mask) && (!q->found || first < q->where)) {
    q->found = true;
    q->where = first;
  }
  for (; q->type == set && first < end; ++first)
    q->bits[(first - q->first) / 64]
      |= UINT64_C (1) << ((first - q->first) % 64);
  return 0;
}

static bool
all_set (const struct question *q)
{
  uint64_t i, n = 0;

  for (i = 0; i < PART / 64; ++i)
    n += (uint64_t) __builtin_popcountll (q->bits[i]);
  return n == q->end - q->first;
}

/* One walk for which types are met, then one for each of these that may
 * cover the range.
 */
static int
ask_part (struct image *img, struct question *q, overlap_set types,
          overlap_set *all)
{
  overlap_set left;
  int r;

  q->type = OVERLAP_NONE;
  r = walk_metadata (img, types, intersect, q);
  left = q->end - q->first > 1 ? *all & q->any : OVERLAP_NONE;
  for (; left != 0 && r >= 0; left &= left - 1) {
    q->type = left & -left;
    memset (q->bits, 0, sizeof q->bits);
    r = walk_metadata (img, q->type, intersect, q);
    if (!all_set (q))
      *all &= ~q->type;
  }
  *all &= q->any;
  return r < 0 ? r : 0;
}

int
verify_range (struct image *img, uint64_t first, uint64_t count,
              overlap_set mask, overlap_set types,
              struct overlap_answer *answer)
{
  const uint64_t end = first + count;
  struct question q = { .mask = mask };
  int r;

  answer->any = OVERLAP_NONE;
  answer->all = types;
  answer->outside = false;
  for (; first < end; first = q.end) {
    q.first = first;
    q.end = MIN (end, first + PART);
    q.any = OVERLAP_NONE;
    r = ask_part (img, &q, types, &answer->all);
    if (r < 0)
      return r;
    answer->any |= q.any;
  }
  if (q.found)
    answer->where = q.where;
  return 0;
}

static int
enter (void *opaque, struct image *img, enum overlap_type type,
       uint64_t offset, uint64_t len)
{
  const uint64_t first = offset >> img->cluster_bits;
  const uint64_t last = (offset + len - 1) >> img->cluster_bits;

  return overlap_enter (opaque, type, first, last - first + 1, NULL)
    & OVERLAP_NO_MEMORY ? -ENOMEM : 0;
}

struct overlap *
verify_new_tracker (struct image *img, int *r)
{
  const struct overlap_config config = {
    .cluster_bits = img->cluster_bits, .total_limit = UINT64_MAX,
  };
  struct overlap *tables = overlap_new (&config);
  struct overlap_stats stats;

  *r = tables ? walk_metadata (img, OVERLAP_ALL, enter, tables) : -ENOMEM;
  if (*r == 0) {
    overlap_get_stats (tables, &stats);
    if (stats.outside_windows > 0)
      *r = -ENOMEM;
  }
  if (*r == 0)
    return tables;
  overlap_free (tables);
  return NULL;
}
