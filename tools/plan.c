/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2-overlap plan: what memory the server's map of metadata takes for
 * this image, now and when its disk is full, and what a limit would cost.
 *
 * The limit that it recommends is the one that the server's log names when
 * a lower one is reached (lib/image/advice.c).  The steps of the ladder
 * below it show how much less would do, and what that costs.
 */

#include <config.h>

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "advice.h"
#include "report.h"
#include "tool.h"
#include "trial.h"

#define MAX_STEPS 10            /* of a ladder that was not asked for */
#define MAX_RANGES 8            /* shown of a step; there can be no more */

struct step {
  uint64_t limit;
  struct trial now, full;
};

struct plan {
  const struct options *options;
  struct image *img;
  struct offline_facts facts;
  struct trial now, full;       /* without a limit or a cache */
  struct memory_advice advice;
  struct step steps[MAX_LIMITS];
  size_t n_steps;
};

/*----------------------------------------------------------------------
 * Finding out.
 */

static int
add_step (struct plan *p, uint64_t limit)
{
  struct step *s = &p->steps[p->n_steps];
  int r;

  s->limit = limit;
  r = trial_run (p->img, false, p->options->bitmap_size, limit, &s->now);
  if (r == 0)
    r = trial_run (p->img, true, p->options->bitmap_size, limit, &s->full);
  if (r == 0)
    p->n_steps++;
  else
    trial_free (&s->now);
  return r;
}

/* How many steps are there from LIMIT to 1 KiB? */
static unsigned
steps_down (uint64_t limit, uint64_t divisor)
{
  unsigned n = 0;

  for (; limit >= 1024; limit /= divisor)
    n++;
  return n;
}

/* From the recommended limit down: powers of two, from where the full
 * image nearly fits to where nothing more leaves.
 */
static int
make_ladder (struct plan *p)
{
  uint64_t limit = 1, before = UINT64_MAX, divisor = 2;
  int r = add_step (p, p->advice.total_limit);

  while (limit < p->full.used)
    limit *= 2;
  if (limit >= p->advice.total_limit)
    limit = p->advice.total_limit / 2;
  while (steps_down (limit, divisor) > MAX_STEPS - 1)
    divisor *= 2;
  for (; r == 0 && limit >= 1024 && p->n_steps < MAX_STEPS;
       limit /= divisor) {
    r = add_step (p, limit);
    if (r == 0 && p->steps[p->n_steps - 1].now.n_outside > 0
        && p->steps[p->n_steps - 1].now.tracked == before)
      break;
    before = p->steps[p->n_steps - 1].now.tracked;
  }
  return r;
}

static int
find_out (struct plan *p)
{
  size_t i;
  int r = trial_run (p->img, false, 0, UINT64_MAX, &p->now);

  if (r == 0)
    r = trial_run (p->img, true, 0, UINT64_MAX, &p->full);
  if (r == 0)
    advise_memory (p->img, p->now.pieces, &p->advice);
  if (r == 0 && p->options->n_limits == 0)
    r = make_ladder (p);
  for (i = 0; i < p->options->n_limits && r == 0; ++i)
    r = add_step (p, p->options->limits[i]);
  return r;
}

/*----------------------------------------------------------------------
 * Telling.
 */

static void
print_need (const char *when, const struct trial *t)
{
  char pieces[UNITS_MAX], clusters[UNITS_MAX], used[UNITS_MAX];

  printf ("  %-16s %14s %14s %14s\n", when,
          units_number (t->pieces, pieces),
          units_number (t->clusters, clusters),
          units_bytes (t->used, used));
}

static void
print_step (const struct step *s)
{
  char limit[UNITS_MAX], now[UNITS_MAX], full[UNITS_MAX];
  char outside[UNITS_MAX];

  printf ("  %-16s %14s %14s   ", units_parameter (s->limit, limit),
          units_share (s->now.tracked, s->now.clusters, now),
          units_share (s->full.tracked, s->full.clusters, full));
  if (s->now.n_outside == 0)
    printf ("nothing\n");
  else
    printf ("%zu range%s, %s\n", s->now.n_outside,
            s->now.n_outside > 1 ? "s" : "",
            units_bytes (trial_outside_bytes (&s->now), outside));
}

/* Ranges are whole windows, so the last may reach beyond the file. */
static void
print_ranges (const struct step *s)
{
  char limit[UNITS_MAX], start[UNITS_MAX], end[UNITS_MAX];
  size_t i;

  if (s->now.n_outside == 0)
    return;
  printf ("\nOutside the map with a limit of %s, in bytes of the file:\n",
          units_parameter (s->limit, limit));
  for (i = 0; i < s->now.n_outside && i < MAX_RANGES; ++i) {
    const struct range *r = &s->now.outside[i];

    printf ("  %" PRIu64 " + %" PRIu64 "   (%s to %s)\n", r->start,
            r->length, units_bytes (r->start, start),
            units_bytes (r->start + r->length, end));
  }
}

static void
print_text (const struct plan *p)
{
  char limit[UNITS_MAX], bitmap[UNITS_MAX];
  size_t i;

  tool_print_image (p->options, &p->facts);
  printf ("  %-16s %14s %14s %14s\n", "metadata", "pieces", "clusters",
          "memory");
  print_need ("now", &p->now);
  print_need ("disk full", &p->full);
  printf ("\n  %-16s %14s %14s   %s\n", "limit", "protected now",
          "disk full", "outside now");
  for (i = 0; i < p->n_steps; ++i)
    print_step (&p->steps[i]);
  for (i = 0; i < p->n_steps; ++i)
    print_ranges (&p->steps[i]);
  printf ("\nRecommended, with this disk full and these snapshots:\n"
          "  overlap-structures.bitmap-size=%s\n"
          "  overlap-structures.total-size-limit=%s\n"
          "(This has room for the cache, and for tables in any place.)\n",
          units_parameter (p->advice.bitmap_size, bitmap),
          units_parameter (p->advice.total_limit, limit));
}

static json_t *
need_to_json (const struct trial *t)
{
  return json_pack ("{s:I, s:I, s:I}", "pieces", (json_int_t) t->pieces,
                    "clusters", (json_int_t) t->clusters,
                    "memory", (json_int_t) t->used);
}

static json_t *
limited_to_json (const struct trial *t)
{
  json_t *ranges = json_array ();
  size_t i;

  for (i = 0; i < t->n_outside; ++i)
    json_array_append_new (ranges, json_pack (
      "{s:I, s:I}", "start", (json_int_t) t->outside[i].start,
      "length", (json_int_t) t->outside[i].length));
  return json_pack ("{s:I, s:I, s:o}", "memory", (json_int_t) t->used,
                    "tracked-clusters", (json_int_t) t->tracked,
                    "outside", ranges);
}

static void
print_json (const struct plan *p)
{
  json_t *all = tool_image_to_json (p->options, &p->facts);
  json_t *limits = json_array ();
  size_t i;

  for (i = 0; i < p->n_steps; ++i)
    json_array_append_new (limits, json_pack (
      "{s:I, s:o, s:o}", "limit", (json_int_t) p->steps[i].limit,
      "now", limited_to_json (&p->steps[i].now),
      "full", limited_to_json (&p->steps[i].full)));
  json_object_update_new (all, json_pack (
    "{s:I, s:o, s:o, s:o, s:{s:I, s:I}}",
    "snapshots", (json_int_t) p->facts.snapshots,
    "now", need_to_json (&p->now), "full", need_to_json (&p->full),
    "limits", limits,
    "recommended", "bitmap-size", (json_int_t) p->advice.bitmap_size,
    "total-size-limit", (json_int_t) p->advice.total_limit));
  tool_print_json (all);
}

int
plan_main (const struct options *options)
{
  struct plan p = { .options = options };
  size_t i;
  int r = tool_open (options, &p.img);

  if (r < 0)
    return STATUS_FAILED;
  offline_facts (p.img, &p.facts);
  if (!p.facts.sound) {
    report_error ("%s: its metadata is damaged, so nothing can be planned; "
                  "see what 'qcow2-overlap check' finds", options->image);
    r = -1;
  }
  if (r == 0)
    r = find_out (&p);
  if (r == 0) {
    if (options->json)
      print_json (&p);
    else
      print_text (&p);
  }
  for (i = 0; i < p.n_steps; ++i) {
    trial_free (&p.steps[i].now);
    trial_free (&p.steps[i].full);
  }
  trial_free (&p.now);
  trial_free (&p.full);
  image_close (p.img);
  return tool_finish (r == 0 ? STATUS_OK : STATUS_FAILED);
}
