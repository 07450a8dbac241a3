/* SPDX-License-Identifier: BSD-3-Clause */

/* Two uses of the walk over all metadata: the answer for a range that
 * left the tracker, under overlap-limit=verify, and the comparison of
 * the tracker with the tables.
 */

#include <config.h>

#include <inttypes.h>

#include "checked.h"
#include "image-internal.h"
#include "report.h"
#include "verify.h"
#include "walk.h"

struct question {
  uint64_t first, end;          /* clusters */
  overlap_set found;
  uint64_t where;
};

static int
intersect (void *opaque, struct image *img, enum overlap_type type,
           uint64_t offset, uint64_t len)
{
  struct question *q = opaque;
  uint64_t first = offset >> img->cluster_bits;
  uint64_t end = ((offset + len - 1) >> img->cluster_bits) + 1;

  first = MAX (first, q->first);
  end = MIN (end, q->end);
  if (first < end) {
    q->found |= OVERLAP_BIT (type);
    q->where = MIN (q->where, first);
  }
  return 0;
}

int
verify_range (struct image *img, uint64_t first, uint64_t count,
              overlap_set *found, uint64_t *where)
{
  struct question q = { .first = first, .end = first + count,
                        .where = UINT64_MAX };
  int r = walk_metadata (img, OVERLAP_ALL, intersect, &q);

  *found = q.found;
  *where = q.where;
  return r < 0 ? r : 0;
}

static int
compare (void *opaque, struct image *img, enum overlap_type type,
         uint64_t offset, uint64_t len)
{
  uint64_t *missing = opaque;
  uint64_t first = offset >> img->cluster_bits;
  uint64_t end = ((offset + len - 1) >> img->cluster_bits) + 1;
  struct overlap_answer answer;

  overlap_query (img->guard.overlap, first, end - first, OVERLAP_NONE,
                 &answer);
  if (!answer.outside && !(answer.all & OVERLAP_BIT (type))) {
    report_error ("%s: self-check: %s at host offset %" PRIu64 " is not in "
                  "the tracker", img->config.filename,
                  overlap_type_text (type), offset);
    ++*missing;
  }
  return 0;
}

uint64_t
verify_tracker (struct image *img)
{
  uint64_t missing = 0;

  walk_metadata (img, OVERLAP_ALL, compare, &missing);
  return missing;
}
