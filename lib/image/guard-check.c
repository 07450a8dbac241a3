/* SPDX-License-Identifier: BSD-3-Clause */

/* What the guard asks before it lets anyone change the file, and what it
 * says when the answer is wrong.
 *
 * Two questions are asked of every range, in host clusters:
 *
 *   1. Is any cluster of it metadata that this writer may not touch?
 *      Guest data may touch none, a metadata writer only its own type.
 *      The switches overlap-check.TYPE govern this question.
 *   2. For a metadata writer: is every cluster of it tracked as the
 *      type it claims to write?  Always asked where the tracker knows
 *      the range.
 *
 * Guest data has the first question only, and nearly always the answer is
 * no: guard_data_may_hit is short for it.  Metadata, hits and what is
 * outside the tracker go through check_closely.
 *
 * Locks: none but the tracker's own.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "checked.h"
#include "corrupt.h"
#include "guard.h"
#include "image-internal.h"
#include "report.h"
#include "verify.h"

/* The lowest type of a set that is not empty, for the message. */
static enum overlap_type
lowest_type (overlap_set set)
{
  return (enum overlap_type) __builtin_ctz (set);
}

/* overlap-limit=refuse.  A guest may try for hours: the log gets the
 * first, the second, the fourth, and so on.
 */
static int
refuse_outside (struct image *img, uint64_t offset, uint64_t len)
{
  uint64_t n = atomic_fetch_add (&img->guard.refused_outside, 1) + 1;

  if ((n & (n - 1)) == 0)
    report_error ("%s: refused to write %" PRIu64 " bytes at host offset "
                  "%" PRIu64 ": overlap-structures.total-size-limit left "
                  "this range unchecked and overlap-limit is 'refuse'; "
                  "raise the limit (%" PRIu64 " such writes so far)",
                  img->config.filename, len, offset, n);
  return -EIO;
}

/* Is the answer for a range known although it is outside the tracker?
 * Where a type that never leaves is marked everything is known.  So the
 * writes to the header, the L1 and the refcount table need no walk (and
 * that of the corrupt bit must not have one, since corrupt_lock is held).
 */
static bool
is_pinned (struct image *img, uint64_t first, uint64_t count,
           struct overlap_answer *answer)
{
  struct overlap_answer one;
  overlap_set all = OVERLAP_ALL;
  uint64_t i;

  for (i = 0; i < count; ++i) {
    overlap_query (img->guard.overlap, first + i, 1, OVERLAP_NONE, &one);
    if (!(one.any & OVERLAP_PINNED))
      return false;
    all &= one.any;
  }
  answer->all = all;
  answer->outside = false;
  return true;
}

/* Are the tables searched for what this writer asks?  Metadata may not be
 * refused where guest data is: what was acknowledged waits for it, and a
 * flush would fail that a moment ago, or with more memory, would not.
 */
static bool
asks_tables (const struct guard *g, int owner)
{
  return g->policy == OVERLAP_LIMIT_VERIFY
    || (g->policy == OVERLAP_LIMIT_REFUSE && owner != GUARD_DATA);
}

int
guard_query (struct image *img, int owner, uint64_t first, uint64_t count,
             overlap_set mask, overlap_set types,
             struct overlap_answer *answer)
{
  overlap_query (img->guard.overlap, first, count, mask, answer);
  if (!answer->outside || is_pinned (img, first, count, answer)
      || !asks_tables (&img->guard, owner))
    return 0;
  return verify_range (img, first, count, mask, types, answer);
}

static int
hit (struct image *img, const struct overlap_answer *answer,
     overlap_set forbidden, uint64_t offset, uint64_t len)
{
  atomic_fetch_add (&img->guard.refused, 1);
  return image_corrupt (img, offset, len,
                        "Preventing invalid write on metadata "
                        "(overlaps with %s)",
                        overlap_type_text
                        (lowest_type (answer->any & forbidden)));
}

/* The slow half of the check: a metadata writer, a hit, or a range
 * outside the tracker.
 */
static int
check_closely (struct image *img, int owner, uint64_t first,
               uint64_t count, overlap_set forbidden,
               uint64_t offset, uint64_t len)
{
  struct guard *g = &img->guard;
  const overlap_set own = owner == GUARD_DATA ? OVERLAP_NONE
    : OVERLAP_BIT ((unsigned) owner);
  struct overlap_answer answer;
  int r;

  r = guard_query (img, owner, first, count, forbidden, forbidden | own,
                   &answer);
  if (r < 0)
    return r;
  if (answer.any & forbidden)
    return hit (img, &answer, forbidden, offset, len);
  if (answer.outside && g->policy == OVERLAP_LIMIT_REFUSE)
    return refuse_outside (img, offset, len);
  if (own & ~answer.all) {
    atomic_fetch_add (&g->refused, 1);
    return image_corrupt (img, offset, len,
                          "Preventing invalid write of metadata "
                          "(not tracked as %s)",
                          overlap_type_text ((enum overlap_type) owner));
  }
  return 0;
}

/* MAY are the types that it may touch. */
int
guard_check_types (struct image *img, int owner, overlap_set may,
                   uint64_t offset, uint64_t len)
{
  uint64_t first, count, last;
  const overlap_set forbidden = img->guard.checks & ~may;

  if (len == 0)
    return 0;
  if (ADD_OVERFLOW (offset, len - 1, &last))
    return image_corrupt (img, offset, 0,
                          "Preventing invalid write that wraps around");
  first = offset >> img->cluster_bits;
  count = (last >> img->cluster_bits) - first + 1;
  return check_closely (img, owner, first, count, forbidden, offset, len);
}

/* As few steps as can be: nothing is kept over the call, which is the
 * last thing that happens.
 */
bool
guard_data_may_hit (struct image *img, uint64_t offset, uint64_t len)
{
  const struct guard *g = &img->guard;
  const unsigned bits = img->cluster_bits;
  const uint64_t last = offset + len - 1, first = offset >> bits;

  if (last < offset)
    return true;
  if (__builtin_expect (last >> bits == first, 1))
    return overlap_hit_one (g->overlap, first, g->checks);
  return overlap_hit (g->overlap, first, (last >> bits) - first + 1,
                      g->checks);
}

int
guard_check (struct image *img, int owner, uint64_t offset, uint64_t len)
{
  struct guard *g = &img->guard;

  atomic_fetch_add_explicit (&g->asked, 1, memory_order_relaxed);
  if (owner != GUARD_DATA)
    return guard_check_types (img, owner, OVERLAP_BIT ((unsigned) owner),
                              offset, len);
  return guard_data_may_hit (img, offset, len)
    ? guard_check_types (img, owner, OVERLAP_NONE, offset, len) : 0;
}
