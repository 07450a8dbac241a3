/* SPDX-License-Identifier: BSD-3-Clause */

/* Coming back: rebuilding what is outside, when there is memory again.
 *
 * The tracker does not know what the marks were, so its owner walks the
 * tables, which takes a while, and updates go on meanwhile.  They reach
 * the windows that are being rebuilt as any other, but no check believes
 * those windows before overlap_restore_end: they stay on the list of
 * what is outside.
 *
 * The walk is not of one moment.  It may meet a table that was marked
 * by an update a moment ago, so a mark that is there is not made again;
 * and it may meet one whose mark was taken back a moment ago, so each
 * mark that is taken back is noted in "taken", and not made any more.
 * (An update that marks the cluster anew does so itself.)  If there are
 * more such than the list holds, the rebuilding is given up.
 *
 *                overlap_restore_begin
 *     outside -------------------------> being rebuilt
 *        ^ ^                               |   |
 *        | |  ov_restore_shrink: memory is |   | overlap_restore_end
 *        | +--- short, from the last window|   v
 *        |      down ----------------------+  inside
 *        |                                 |
 *        +---- the walk failed, "taken" ---+
 *              is full
 *
 * Hysteresis: a window leaves when the limit is reached, rebuilding
 * begins when a quarter of the limit is free, and goes on while an
 * eighth is.  If that was not enough for all of the range, the next try
 * is made when a sixteenth of the limit more is free; or after a growing
 * number of questions, because it may have been malloc that failed.
 *
 * Invariants:
 *
 * 1. The windows in "restore->span" are outside.
 * 2. Of what is being rebuilt no mark is missing that an update made
 *    since overlap_restore_begin, and none is there that an update took
 *    back.
 *
 * Locks: overlap.lock.
 */

#include <config.h>

#include "checked.h"
#include "cleanup.h"
#include "overlap-fast.h"

/* So many questions at most between two tries. */
#define RETRY_MAX 4096u

bool
ov_restoring (const struct overlap *o, uint64_t window)
{
  const struct ov_restore *r = o->restore;

  return r && !r->given_up && window >= r->span.first
    && window <= r->span.last;
}

void
ov_set_limit (struct overlap *o, uint64_t limit)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&o->lock);

  o->config.total_limit = limit;
}

/* The word says so while the lists of it change, too. */
bool
overlap_has_outside (struct overlap *o)
{
  return atomic_load (&o->fixed) != 0;
}

bool
overlap_restore_begin (struct overlap *o)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&o->lock);
  const uint64_t limit = o->config.total_limit;
  struct ov_restore *r;

  if (o->hold)
    return false;
  ov_settle (o);
  if (o->n_outside == 0 || o->restore
      || o->used > limit - limit / 4)
    return false;
  if (o->used > o->retry_below && ++o->asked < o->retry_after)
    return false;
  r = ov_alloc (o, sizeof *r, false);
  if (!r)
    return false;
  /* Each range has its turn. */
  r->span = o->outside[o->turn++ % o->n_outside];
  r->last = r->span.last;
  o->asked = 0;
  o->restore = r;
  return true;
}

/* Strip the windows from FIRST on that are being rebuilt. */
static void
strip_from (struct overlap *o, uint64_t first)
{
  const uint64_t last = o->restore->span.last;
  ov_slot *slot;
  uint64_t w;

  for (w = first; w <= last; ++w) {
    slot = ov_dir_next (o, &w);
    if (!slot || w > last)
      break;
    ov_strip (o, slot, w);
  }
}

static void
give_up (struct overlap *o)
{
  if (o->restore->given_up)
    return;
  strip_from (o, o->restore->span.first);
  o->restore->given_up = true;
}

bool
ov_restore_shrink (struct overlap *o)
{
  struct ov_restore *r = o->restore;
  uint64_t w, last = UINT64_MAX;
  ov_slot *slot;

  if (!r || r->given_up)
    return false;
  for (w = r->span.first; w <= r->span.last; ++w) {
    slot = ov_dir_next (o, &w);
    if (!slot || w > r->span.last)
      break;
    if (atomic_load_explicit (slot, memory_order_relaxed) != 0
        || ov_window_opened (o, w))
      last = w;
  }
  if (last == UINT64_MAX || last == r->span.first)
    give_up (o);
  else {
    strip_from (o, last);
    r->span.last = last - 1;
  }
  return true;
}

void
ov_restore_taken (struct overlap *o, enum overlap_type type,
                  uint64_t first, uint64_t count)
{
  struct ov_restore *r = o->restore;
  struct ov_kept *last = &r->taken[r->n_taken ? r->n_taken - 1 : 0];

  if (r->n_taken > 0 && ov_kept_grow (last, type, first, count))
    return;
  if (r->n_taken < OV_TAKEN_MAX)
    r->taken[r->n_taken++] = (struct ov_kept) { first, (uint32_t) count,
                                                type };
  else
    give_up (o);
}

/* Was such a mark taken back in [FIRST, END)? */
static bool
was_taken (const struct ov_restore *r, enum overlap_type type,
           uint64_t first, uint64_t end)
{
  unsigned i;

  for (i = 0; i < r->n_taken; ++i)
    if (r->taken[i].type == type && r->taken[i].first < end
        && first < r->taken[i].first + r->taken[i].count)
      return true;
  return false;
}

/* Has a cluster of [FIRST, END), in one window, a mark of TYPE?  "kept"
 * does not count: its marks are to come back into the window.
 */
static bool
is_marked (struct overlap *o, enum overlap_type type, uint64_t first,
           uint64_t end)
{
  ov_slot *slot = ov_dir_find (o, ov_window_of (o, first));
  uintptr_t v = slot ? atomic_load_explicit (slot, memory_order_relaxed) : 0;
  struct ov_scan s = { .mask = OVERLAP_BIT (type) };
  uint32_t a = ov_in_window (o, first);

  if (v != 0)
    ov_window_scan (o, v, first - a, a, a + (uint32_t) (end - first), &s);
  return s.found;
}

/* Marks that are in their window again need not be kept. */
static void
move_kept (struct overlap *o, enum overlap_type type, uint64_t first,
           uint64_t end)
{
  for (; o->n_kept > 0 && first < end; ++first)
    if (is_marked (o, type, first, first + 1))
      ov_unkeep (o, type, first, 1);
}

/* Enter [FIRST, END), in one window, where it is not marked yet. */
static void
enter_new (struct overlap *o, enum overlap_type type, uint64_t first,
           uint64_t end)
{
  struct ov_edit e = { .what = OV_ENTER, .type = type, .again = true };

  if (!was_taken (o->restore, type, first, end)
      && (type == OVERLAP_INACTIVE_L2 || !is_marked (o, type, first, end))) {
    ov_update_window (o, first, end, &e);
    move_kept (o, type, first, end);
  }
  else if (end - first > 1) {
    uint64_t middle = first + (end - first) / 2;

    enter_new (o, type, first, middle);
    enter_new (o, type, middle, end);
  }
}

/* Leave an eighth of the limit free, for what comes next. */
static void
keep_room (struct overlap *o)
{
  const uint64_t limit = o->config.total_limit;

  while (o->used > limit - limit / 8)
    if (!ov_sieve_drop (o) && !ov_page_evict (o) && !ov_restore_shrink (o))
      break;
}

void
overlap_restore_enter (struct overlap *o, enum overlap_type type,
                       uint64_t first, uint64_t count)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&o->lock);
  const uint64_t end = count > UINT64_MAX - first ? UINT64_MAX
    : first + count;
  uint64_t next;

  for (; first < end; first = next) {
    next = MIN (ov_window_last (o, ov_window_of (o, first)), end - 1) + 1;
    if (!ov_restoring (o, ov_window_of (o, first)))
      continue;
    enter_new (o, type, first, next);
    keep_room (o);
  }
  ov_tell (o);
}

/* What is kept and was not met by the walk is not metadata any more.
 * False if some of it cannot be forgotten.
 */
static bool
forget_kept (struct overlap *o, struct ov_span span)
{
  const uint64_t first = ov_window_first (o, span.first);
  const uint64_t last = ov_window_last (o, span.last);
  enum overlap_type t;
  unsigned i;

  for (t = 0; t < OVERLAP_TYPES; ++t)
    ov_unkeep (o, t, first, last == UINT64_MAX ? last - first
               : last - first + 1);
  for (i = 0; i < o->n_kept; ++i)
    if (o->kept[i].first <= last
        && first < o->kept[i].first + o->kept[i].count)
      return false;
  return true;
}

/* When to try again. */
static void
plan_retry (struct overlap *o, bool all)
{
  const uint64_t less = o->config.total_limit / 16;

  if (all) {
    o->retry_below = UINT64_MAX;
    o->retry_after = 0;
    return;
  }
  o->retry_below = o->used > less ? o->used - less : 0;
  o->retry_after = MIN (MAX (2 * o->retry_after, 8u), RETRY_MAX);
}

bool
overlap_restore_end (struct overlap *o, bool complete)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&o->lock);
  struct ov_restore *r = o->restore;
  const struct ov_span span = r->span;
  bool all, back;

  if (!complete)
    give_up (o);
  if (!r->given_up && !forget_kept (o, span))
    give_up (o);
  if (!r->given_up && !ov_restored (o, span.first, span.last))
    give_up (o);
  back = !r->given_up;
  all = back && span.last == r->last;
  o->restore = NULL;
  ov_free (o, r);
  plan_retry (o, all);
  if (o->n_outside == 0)
    ov_sieve_new (o);
  return back;
}
