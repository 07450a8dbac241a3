/* SPDX-License-Identifier: BSD-3-Clause */

/* What is outside the tracker.
 *
 * A window for whose marks there is no memory leaves as a whole: its
 * marks are dropped, checks there answer "outside", and the notice tells
 * so once.  Marks of pinned types stay, with all that is known of their
 * clusters, whatever the limit says; if there is no memory at all for
 * one, it goes to the list "kept" in struct overlap.
 *
 * Which windows are outside is a list of at most OV_OUTSIDE_MAX spans in
 * struct overlap.  When there would be more, the two that are nearest to
 * each other become one, and what lies between them leaves, too.
 *
 * Invariants:
 *
 * 1. Spans are sorted, and between two there is at least one window.
 * 2. A window in a span has only clusters with a pinned mark, unless it
 *    is being rebuilt.  (It is in the span before it is stripped: a check
 *    that meets less than everything finds it outside.)
 * 3. A window with a mark in "kept" is outside.
 * 4. "fixed" is 0 if and only if both lists are empty.
 * 5. "returns" changes after the marks of what comes back are in their
 *    windows again, and before the lists lose it.
 *
 * 6. What is owed (ov_owe) is a mark in a window that its owner has taken
 *    back already.  It is there for checks, until ov_settle; an owner of the
 *    same type that comes meanwhile is counted beside it.
 *
 * A check looks into the windows first and at the lists then.  So what
 * leaves meanwhile is found in one or the other; what comes back might be
 * found in neither, and a check that met a change of "returns" begins
 * anew.
 *
 * Coming back is overlap-restore.c; it ends in ov_restored.
 *
 * Locks: overlap.lock, and the slot "fixed" as the windows' slots.
 */

#include <config.h>

#include <assert.h>

#include "checked.h"
#include "cleanup.h"
#include "overlap-fast.h"

/* Any value that is neither 0 nor one of the flags will do. */
#define SOMETHING ((uintptr_t) 4)

/* A piece takes a run of less than three bytes and its share of the index
 * and of the room that a list has, and two in the sieve, for which an eighth
 * of the limit must be left; a window a slot, a header, and the room of a
 * list of a few pieces; and one that is far from others two nodes of the
 * directory, of which a quarter more may be arrays of leaves.  A table that
 * snapshots share has a kind for each number of them.
 */
uint64_t
overlap_most_memory (unsigned cluster_bits, uint64_t pieces,
                     uint64_t clusters, uint64_t snapshots)
{
  const uint64_t windows = (clusters >> ov_window_bits (cluster_bits)) + 1;
  const uint64_t places = (windows >> OV_WAY_BITS) + 1;

  return 4096 + 5 * pieces + 96 * MIN (pieces, windows)
    + 5 * sizeof (struct ov_node) / 2 * MIN (pieces, places)
    + 64 * snapshots;
}

/* Before something is taken from the lists: invariant 5.  What took
 * its place can be seen by whoever sees this.
 */
static void
count_return (struct overlap *o)
{
  atomic_fetch_add_explicit (&o->returns, 1, memory_order_release);
}

static void
change_begin (struct overlap *o)
{
  ov_write_lock (o, &o->fixed);
}

static void
change_end (struct overlap *o)
{
  ov_write_unlock (&o->fixed, o->n_outside + o->n_kept > 0 ? SOMETHING : 0);
}

bool
ov_outside (const struct overlap *o, uint64_t window)
{
  unsigned i;

  for (i = 0; i < o->n_outside; ++i)
    if (window >= o->outside[i].first && window <= o->outside[i].last)
      return true;
  return false;
}

/* Call the notice for a span. */
static void
notify (struct overlap *o, struct ov_span span, bool restored)
{
  struct overlap_notice n = {
    .restored = restored,
    .first = ov_window_first (o, span.first),
    .limit = o->config.total_limit,
    .used = o->used,
  };

  n.count = ov_window_last (o, span.last) - n.first;
  if (n.first + n.count < UINT64_MAX)
    n.count++;
  if (o->config.notice)
    o->config.notice (o->config.opaque, &n);
}

void
overlap_hold_notices (struct overlap *o, bool hold)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&o->lock);
  unsigned i;

  ov_build_flush (o);
  if (hold) {
    o->conflict.there = OVERLAP_NONE;
    ov_build_begin (o);
  }
  else
    ov_build_drop (o);
  /* Nothing was told before, so what is outside is what left. */
  for (i = 0; !hold && o->hold && i < o->n_outside; ++i)
    notify (o, o->outside[i], false);
  o->hold = hold;
}

void
ov_tell (struct overlap *o)
{
  if (o->tell)
    notify (o, o->left, false);
  o->tell = false;
}

/* A span left.  It is told of later, together with its neighbours. */
static void
tell_later (struct overlap *o, struct ov_span span)
{
  if (o->hold)
    return;
  if (o->tell && span.first == o->left.last + 1)
    o->left.last = span.last;
  else if (o->tell && span.last + 1 == o->left.first)
    o->left.first = span.first;
  else {
    ov_tell (o);
    o->left = span;
    o->tell = true;
  }
}

/* Put a span into the sorted list, which has room for it. */
static unsigned
insert_span (struct ov_span *spans, unsigned n, struct ov_span span)
{
  unsigned i;

  for (i = n; i > 0 && spans[i - 1].first > span.first; --i)
    spans[i] = spans[i - 1];
  spans[i] = span;
  return n + 1;
}

/* Join spans I and I + 1. */
static unsigned
join_spans (struct ov_span *spans, unsigned n, unsigned i)
{
  spans[i].last = spans[i + 1].last;
  for (++i; i + 1 < n; ++i)
    spans[i] = spans[i + 1];
  return n - 1;
}

/* The two neighbours with the least windows between them. */
static unsigned
nearest_spans (const struct ov_span *spans, unsigned n)
{
  unsigned i, best = 0;

  for (i = 1; i + 1 < n; ++i)
    if (spans[i + 1].first - spans[i].last
        < spans[best + 1].first - spans[best].last)
      best = i;
  return best;
}

/* Add a window to the list.  True if the windows in *GAP must leave
 * because of it.
 */
static bool
add_outside (struct overlap *o, uint64_t window, struct ov_span *gap)
{
  struct ov_span spans[OV_OUTSIDE_MAX + 1];
  struct ov_span one = { window, window };
  unsigned n = o->n_outside, i;
  bool more = false;

  for (i = 0; i < n; ++i)
    spans[i] = o->outside[i];
  n = insert_span (spans, n, one);
  for (i = 0; i + 1 < n; )
    if (spans[i + 1].first == spans[i].last + 1)
      n = join_spans (spans, n, i);
    else
      i++;
  if (n > OV_OUTSIDE_MAX) {
    i = nearest_spans (spans, n);
    gap->first = spans[i].last + 1;
    gap->last = spans[i + 1].first - 1;
    n = join_spans (spans, n, i);
    o->outside_windows += gap->last - gap->first + 1;
    more = true;
  }
  o->outside_windows++;

  change_begin (o);
  o->n_outside = (uint16_t) n;
  for (i = 0; i < n; ++i)
    o->outside[i] = spans[i];
  change_end (o);
  return more;
}

/* Drop the marks of an open window, but for the pinned ones. */
static void
strip (struct overlap *o, struct ov_window *w)
{
  uint8_t bytes[OV_PAGE];
  uint32_t i;

  ov_runs_strip (o, &w->runs);
  for (i = 0; w->paged && i < ov_pages (o); ++i)
    if (w->paged->page[i])
      ov_page_remove (o, w, w->paged->page[i], bytes);
}

void
ov_strip (struct overlap *o, ov_slot *slot, uint64_t number)
{
  struct ov_window *opened = ov_window_opened (o, number), w;

  if (opened)
    strip (o, opened);
  else if (atomic_load_explicit (slot, memory_order_relaxed) != 0) {
    ov_window_open (o, &w, slot, number);
    strip (o, &w);
    ov_window_close (o, &w);
  }
}

void
ov_abandon (struct overlap *o, uint64_t number, struct ov_window *w)
{
  struct ov_span one = { number, number }, gap;
  ov_slot *slot;
  uint64_t i;

  if (ov_outside (o, number))
    return;
  ov_sieve_drop (o);
  if (add_outside (o, number, &gap)) {
    for (i = gap.first; i <= gap.last; ++i) {
      slot = ov_dir_next (o, &i);
      if (!slot || i > gap.last)
        break;
      ov_strip (o, slot, i);
    }
    tell_later (o, gap);
  }
  slot = w ? w->slot : ov_dir_find (o, number);
  if (slot)
    ov_strip (o, slot, number);
  tell_later (o, one);
}

bool
ov_restored (struct overlap *o, uint64_t first, uint64_t last)
{
  struct ov_span back = { first, last };
  unsigned i;

  for (i = 0; i < o->n_outside; ++i)
    if (first >= o->outside[i].first && last <= o->outside[i].last)
      break;
  assert (i < o->n_outside);
  if (first > o->outside[i].first && last < o->outside[i].last
      && o->n_outside == OV_OUTSIDE_MAX)
    return false;

  count_return (o);
  change_begin (o);
  if (first == o->outside[i].first && last == o->outside[i].last) {
    o->n_outside--;
    for (; i < o->n_outside; ++i)
      o->outside[i] = o->outside[i + 1];
  }
  else if (first == o->outside[i].first)
    o->outside[i].first = last + 1;
  else {
    struct ov_span rest = { last + 1, o->outside[i].last };

    o->outside[i].last = first - 1;
    if (rest.first <= rest.last)
      o->n_outside = (uint16_t) insert_span (o->outside, o->n_outside, rest);
  }
  change_end (o);
  o->outside_windows -= last - first + 1;
  notify (o, back, true);
  return true;
}

bool
ov_keep (struct overlap *o, enum overlap_type type, uint64_t first,
         uint64_t count)
{
  unsigned i;
  bool done;

  /* Kept marks that go on here just grow. */
  change_begin (o);
  for (i = 0; i < o->n_kept; ++i)
    if (ov_kept_grow (&o->kept[i], type, first, count))
      break;
  done = i < o->n_kept || i + o->n_owed < OV_KEPT_MAX;
  if (done && i == o->n_kept)
    o->kept[o->n_kept++] = (struct ov_kept) { first, (uint32_t) count, type };
  change_end (o);
  return done;
}

uint64_t
ov_unkeep (struct overlap *o, enum overlap_type type, uint64_t first,
           uint64_t count)
{
  uint64_t end = first + count, sum = 0;
  unsigned i;

  if (o->n_kept == 0)
    return 0;
  count_return (o);
  change_begin (o);
  for (i = 0; i < o->n_kept; ++i) {
    struct ov_kept *k = &o->kept[i];
    uint64_t k_end = k->first + k->count;
    uint64_t lo = k->first > first ? k->first : first;
    uint64_t hi = k_end < end ? k_end : end;

    if (k->type != type || lo >= hi)
      continue;
    /* Cut off an end.  Where the middle goes and there is no room for
     * the rest, it stays: rather refuse a write than allow it.
     */
    if (lo == k->first && hi == k_end)
      o->kept[i--] = o->kept[--o->n_kept];
    else if (lo == k->first)
      k->first = hi, k->count = (uint32_t) (k_end - hi);
    else if (hi == k_end)
      k->count = (uint32_t) (lo - k->first);
    else if (o->n_kept + o->n_owed < OV_KEPT_MAX) {
      k->count = (uint32_t) (lo - k->first);
      o->kept[o->n_kept++] = (struct ov_kept) {
        hi, (uint32_t) (k_end - hi), type
      };
    }
    sum += hi - lo;
  }
  change_end (o);
  return sum;
}

void
ov_owe (struct overlap *o, enum overlap_type type, uint64_t first,
        uint64_t count)
{
  if (o->n_kept + o->n_owed < OV_KEPT_MAX)
    o->kept[OV_KEPT_MAX - ++o->n_owed] = (struct ov_kept) {
      first, (uint32_t) count, type
    };
}

uint64_t
ov_kept_border (const struct overlap *o, uint64_t first, uint64_t end)
{
  unsigned i;

  for (i = 0; i < o->n_kept; ++i) {
    const struct ov_kept *k = &o->kept[i];

    if (k->first > first && k->first < end)
      end = k->first;
    else if (first >= k->first && first - k->first < k->count)
      return first + 1;
  }
  return end;
}

void
ov_fixed_scan (struct overlap *o, uint64_t first, uint64_t count,
               struct ov_scan *s, bool *any, bool *every)
{
  uint64_t w = ov_window_of (o, first);
  uint64_t last = ov_window_of (o, first + count - 1);
  struct ov_reader *reader;
  unsigned i;

  *any = *every = false;
  if (ov_read_lock (o, &o->fixed, &reader) == 0)
    return;
  for (i = 0; i < o->n_outside; ++i) {
    if (o->outside[i].first <= last && w <= o->outside[i].last)
      *any = true;
    if (o->outside[i].first <= w && last <= o->outside[i].last)
      *every = true;
  }
  for (i = 0; i < o->n_kept; ++i) {
    const struct ov_kept *k = &o->kept[i];
    uint64_t lo = k->first > first ? k->first : first;

    if (lo < k->first + k->count && lo < first + count) {
      overlap_set set = OVERLAP_BIT (k->type);

      s->any |= set;
      if ((set & s->mask) && (!s->found || lo < s->where)) {
        s->found = true;
        s->where = lo;
      }
    }
  }
  ov_read_unlock (reader);
}

/* For ov_runs_each: is a piece not pinned? */
static int
unpinned (void *opaque, struct ov_piece piece)
{
  const struct overlap *o = opaque;

  return (ov_kind (o, piece.kind)->set & OV_PINNED) == 0;
}

bool
ov_fixed_verify (struct overlap *o, const char **why)
{
  uint64_t sum = 0, w;
  unsigned i;

  for (i = 0; i < o->n_outside; ++i) {
    const struct ov_span *span = &o->outside[i];

    sum += span->last - span->first + 1;
    if (span->first > span->last
        || (i > 0 && span->first <= span[-1].last + 1)) {
      *why = "the list of what is outside is out of order";
      return false;
    }
    for (w = span->first; w <= span->last; ++w) {
      ov_slot *slot = ov_dir_next (o, &w);
      uintptr_t v = slot && w <= span->last ? atomic_load (slot) : 0;

      if (!slot || w >= span->last)
        w = span->last;
      if (v != 0 && !(v & OV_PAGED) && !ov_restoring (o, w)
          && ov_runs_each ((struct ov_runs *) v, unpinned, o)) {
        *why = "a window outside the tracker has marks that are not pinned";
        return false;
      }
    }
  }
  for (i = 0; i < o->n_kept; ++i)
    if (!ov_outside (o, ov_window_of (o, o->kept[i].first))) {
      *why = "a mark is kept for a window that has not left";
      return false;
    }
  if (sum != o->outside_windows
      || (atomic_load (&o->fixed) != 0) != (o->n_outside + o->n_kept > 0)) {
    *why = "the number of windows outside is wrong";
    return false;
  }
  return true;
}
