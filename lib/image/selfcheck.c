/* SPDX-License-Identifier: BSD-3-Clause */

/* The self-check: all metadata is walked into a second tracker without a
 * limit, and the two are compared, both ways.  What is outside the first
 * is compared for what never leaves only.
 *
 * Tables may come and go meanwhile, so a difference is looked at again,
 * by a walk of its own; what is still different after a few of them is
 * reported.
 *
 * Locks: those of the walk.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <sched.h>

#include "checked.h"
#include "image-internal.h"
#include "report.h"
#include "selfcheck.h"
#include "verify.h"
#include "walk.h"

#define MAX_REPORTS 20

struct check {
  struct image *img;
  struct overlap *tables;       /* what the walk found */
  uint64_t wrong;
};

/* Are the answers of tracker and tables for a range the same? */
static bool
same (const struct overlap_answer *a, const struct overlap_answer *tables)
{
  if (a->outside)
    return (a->any & OVERLAP_PINNED) == (tables->any & OVERLAP_PINNED);
  return a->any == tables->any && a->all == tables->all;
}

/* A cluster differs: still? */
static void
look_again (struct check *c, uint64_t cluster)
{
  struct overlap_answer a, tables;
  unsigned i;

  for (i = 0; i < 10; ++i) {
    overlap_query (c->img->guard.overlap, cluster, 1, OVERLAP_NONE, &a);
    if (verify_range (c->img, cluster, 1, OVERLAP_NONE, OVERLAP_ALL,
                      &tables) < 0 || same (&a, &tables))
      return;
    sched_yield ();
  }
  if (c->wrong++ < MAX_REPORTS)
    report_error ("%s: self-check: cluster at host offset %" PRIu64 ": the "
                  "types in the tracker are 0x%x%s, in the tables 0x%x",
                  c->img->config.filename,
                  cluster << c->img->cluster_bits, a.any,
                  a.outside ? " (outside)" : "", tables.any);
}

/* Compare [FIRST, END), in halves where there is something to see. */
static void
compare (struct check *c, uint64_t first, uint64_t end)
{
  struct overlap_answer a, tables;
  uint64_t middle = first + (end - first) / 2;

  overlap_query (c->img->guard.overlap, first, end - first, OVERLAP_NONE,
                 &a);
  overlap_query (c->tables, first, end - first, OVERLAP_NONE, &tables);
  if (a.any == OVERLAP_NONE && tables.any == OVERLAP_NONE)
    return;
  if (end - first == 1) {
    if (!same (&a, &tables))
      look_again (c, first);
    return;
  }
  /* The same everywhere. */
  if (!a.outside && a.any == a.all && tables.any == tables.all
      && a.any == tables.any)
    return;
  compare (c, first, middle);
  compare (c, middle, end);
}

uint64_t
verify_tracker (struct image *img)
{
  struct check c = { .img = img };
  int r;

  c.tables = verify_new_tracker (img, &r);
  if (!c.tables)
    report_error ("%s: self-check: could not be made",
                  img->config.filename);
  else
    compare (&c, 0, UINT64_MAX >> img->cluster_bits);
  overlap_free (c.tables);
  return c.wrong;
}
