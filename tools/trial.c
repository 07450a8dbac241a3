/* SPDX-License-Identifier: BSD-3-Clause */

/* What a limit does to an image, found out by trying.
 *
 * The server enters all metadata in its tracker when it opens an image
 * (lib/image/open.c), in the order of one walk, and what does not fit
 * leaves.  A trial is the same tracker, filled by the same walk: so its
 * ranges are those that the server's events would name.  Nothing is
 * estimated but, for an image that is to be full, the places of what is
 * not there yet.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "overlap.h"
#include "report.h"
#include "trial.h"

struct filling {
  struct trial *trial;
  struct overlap *o;
  unsigned bits;                /* of a cluster */
  int failed;
};

static int
walk (struct image *img, bool full, walk_fn *fn, void *opaque)
{
  return full ? forecast_metadata (img, fn, opaque)
    : walk_metadata (img, OVERLAP_ALL, fn, opaque);
}

/* A range left; as the server's event has it. */
static void
note_range (void *opaque, const struct overlap_notice *n)
{
  struct filling *f = opaque;
  struct trial *t = f->trial;
  const uint64_t most = UINT64_MAX >> f->bits;
  const uint64_t first = MIN (n->first, most);
  struct range *more;

  if (n->restored)
    return;
  more = realloc (t->outside, (t->n_outside + 1) * sizeof *more);
  if (!more) {
    f->failed = -ENOMEM;
    return;
  }
  t->outside = more;
  t->outside[t->n_outside++] = (struct range) {
    .start = first << f->bits,
    .length = MIN (n->count, most - first) << f->bits,
  };
}

static int
enter (void *opaque, struct image *img, enum overlap_type type,
       uint64_t offset, uint64_t len)
{
  struct filling *f = opaque;
  const uint64_t count = div_up (len, UINT64_C (1) << f->bits);

  (void) img;
  f->trial->pieces++;
  f->trial->clusters += count;
  return overlap_enter (f->o, type, offset >> f->bits, count, NULL)
    & OVERLAP_NO_MEMORY ? -ENOMEM : 0;
}

/* Is it still protected? */
static int
ask (void *opaque, struct image *img, enum overlap_type type,
     uint64_t offset, uint64_t len)
{
  struct filling *f = opaque;
  const uint64_t first = offset >> f->bits;
  const uint64_t count = div_up (len, UINT64_C (1) << f->bits);
  struct overlap_answer answer;
  uint64_t i;

  (void) img;
  overlap_query (f->o, first, count, OVERLAP_NONE, &answer);
  if (!answer.outside) {
    f->trial->tracked += count;
    return 0;
  }
  for (i = 0; i < count; ++i) {
    overlap_query (f->o, first + i, 1, OVERLAP_NONE, &answer);
    f->trial->tracked += (answer.any & OVERLAP_BIT (type)) != 0;
  }
  return 0;
}

static int
fill (struct image *img, bool full, struct filling *f)
{
  struct overlap_stats stats;
  int r;

  overlap_hold_notices (f->o, true);
  r = walk (img, full, enter, f);
  overlap_hold_notices (f->o, false);
  if (r == 0)
    r = f->failed;
  if (r == 0 && f->trial->n_outside > 0)
    r = walk (img, full, ask, f);
  else
    f->trial->tracked = f->trial->clusters;
  overlap_get_stats (f->o, &stats);
  f->trial->used = stats.used;
  return r;
}

int
trial_run (struct image *img, bool full, uint64_t bitmap_size,
           uint64_t limit, struct trial *t)
{
  struct offline_facts facts;
  struct filling f = { .trial = t };
  int r = -ENOMEM;

  memset (t, 0, sizeof *t);
  offline_facts (img, &facts);
  f.bits = facts.cluster_bits;
  f.o = overlap_new (&(struct overlap_config) {
    .cluster_bits = facts.cluster_bits,
    .bitmap_size = bitmap_size,
    .total_limit = limit,
    .notice = note_range,
    .opaque = &f,
  });
  if (f.o)
    r = fill (img, full, &f);
  if (r == -ENOMEM)
    report_error ("not enough memory");
  overlap_free (f.o);
  if (r != 0)
    trial_free (t);
  return r;
}

void
trial_free (struct trial *t)
{
  free (t->outside);
  memset (t, 0, sizeof *t);
}

uint64_t
trial_outside_bytes (const struct trial *t)
{
  uint64_t sum = 0;
  size_t i;

  for (i = 0; i < t->n_outside; ++i)
    sum += t->outside[i].length;
  return sum;
}
