/* SPDX-License-Identifier: BSD-3-Clause */

/* Building: many marks, one after the other, while nothing else uses the
 * tracker, as when an image is opened.
 *
 * An image names its tables mostly in the order in which they lie, so mark
 * after mark goes to the same window.  Each by itself would shift what
 * lies behind it, and code the list anew now and then.  Instead the marks
 * of one window wait in a sorted array, and are merged with its run list
 * when a mark of another window comes, or anything else is asked.
 *
 * Only the plain case waits: one cluster, not marked before, of a type
 * that may leave.  Then nothing can be met or refused, and what is to be
 * answered is known at once.  Everything else, and everything if there is
 * no memory for the array, goes the usual way, after the array has been
 * emptied.  If a merge finds no memory, its marks go the usual way, too,
 * which knows what must leave.
 *
 * Invariants:
 *
 * 1. "building" is NULL unless notices are held.
 * 2. What waits has no mark in the window's list, is sorted, and no
 *    cluster waits twice.
 * 3. Nothing waits while an update is under way, or after overlap_verify,
 *    overlap_get_stats and overlap_hold_notices.
 *
 * Locks: overlap.lock.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "overlap-fast.h"

#define WAITING 384u
#define NO_WINDOW UINT64_MAX
#define FEW 24u                 /* pieces coded anew in the time of an edit */

struct ov_building {
  uint64_t window;              /* NO_WINDOW: none */
  ov_slot *slot;                /* NULL: it has no marks yet */
  uint32_t n;
  struct ov_piece piece[WAITING];
};

/* What waits is not looked for in the hot groups: there is no query until
 * it is where it belongs.
 */
void
ov_build_begin (struct overlap *o)
{
  ov_hot_forget (o, 0, UINT64_MAX);
  if (!o->building)
    o->building = ov_alloc (o, sizeof *o->building, false);
  if (o->building)
    o->building->window = NO_WINDOW;
}

bool
ov_build_drop (struct overlap *o)
{
  struct ov_building *b = o->building;

  if (!b)
    return false;
  o->building = NULL;
  ov_free (o, b);
  return true;
}

/* Enter N marks of a window one by one, in the usual way. */
static void
enter_each (struct overlap *o, uint64_t window,
            const struct ov_piece *pieces, uint32_t n)
{
  const uint64_t first = ov_window_first (o, window);
  uint32_t i;

  for (i = 0; i < n; ++i) {
    struct ov_edit e = {
      .what = OV_ENTER,
      .type = (enum overlap_type)
        __builtin_ctz (ov_kind (o, pieces[i].kind)->set),
    };

    ov_update_window (o, first + pieces[i].start,
                      first + pieces[i].start + 1, &e);
  }
}

/* The list of the window that is being built; it has no pages, for none
 * are made meanwhile.
 */
static struct ov_runs *
list_of (const struct ov_building *b)
{
  return b->slot ? (struct ov_runs *) atomic_load_explicit
    (b->slot, memory_order_relaxed) : NULL;
}

/* Merge what waits with its window.  0, or -ENOMEM, or -EAGAIN if it is
 * so little that coding all of the list anew would take longer.
 */
static int
merge (struct overlap *o, struct ov_building *b)
{
  struct ov_window w;
  int r;

  b->slot = ov_dir_insert (o, b->window, false);
  if (!b->slot)
    return -ENOMEM;
  if (list_of (b) && b->n < ov_count (list_of (b)) / FEW)
    return -EAGAIN;
  ov_window_open (o, &w, b->slot, b->window);
  r = ov_packed_merge (o, &w.runs, b->piece, b->n);
  ov_window_close (o, &w);
  return r;
}

/* What follows may change the window, so it is forgotten, too. */
void
ov_build_end (struct overlap *o)
{
  struct ov_building *b = o->building;
  struct ov_piece pieces[WAITING];
  uint64_t window;
  uint32_t n;
  int r;

  window = b->window;
  n = b->n;
  r = n > 0 ? merge (o, b) : 0;
  b->n = 0;
  b->window = NO_WINDOW;
  if (r == 0)
    return;
  memcpy (pieces, b->piece, n * sizeof *pieces);
  if (r == -ENOMEM)
    ov_build_drop (o);
  enter_each (o, window, pieces, n);
}

/* Go on to another window. */
static void
next_window (struct overlap *o, uint64_t window)
{
  ov_build_end (o);
  if (o->building) {
    o->building->window = window;
    o->building->slot = ov_dir_find (o, window);
  }
}

/* Where CLUSTER is to stand among what waits, most often at the end. */
static uint32_t
place_of (const struct ov_building *b, uint32_t cluster)
{
  uint32_t i = b->n, lo = 0;

  if (i == 0 || b->piece[i - 1].start < cluster)
    return i;
  while (lo < i) {
    uint32_t middle = lo + (i - lo) / 2;

    if (b->piece[middle].start < cluster)
      lo = middle + 1;
    else
      i = middle;
  }
  return lo;
}

bool
ov_build_enter (struct overlap *o, enum overlap_type type, uint64_t cluster)
{
  uint64_t window = ov_window_of (o, cluster);
  uint32_t at = ov_in_window (o, cluster), i;
  struct ov_piece piece = { .start = at };
  struct ov_building *b = o->building;
  overlap_set there = OVERLAP_NONE;
  struct ov_runs *r;

  if ((OVERLAP_BIT (type) & OV_PINNED) || o->n_outside + o->n_kept > 0)
    return false;
  if (b->window != window || b->n == WAITING) {
    next_window (o, window);
    b = o->building;
    if (!b || o->n_outside + o->n_kept > 0)
      return false;
  }
  r = list_of (b);
  if ((r && (!ov_packed_look (o, r, at, 1, &there) || there != OVERLAP_NONE))
      || ov_kind_plus (o, 0, type, false, &piece.kind) < 0)
    return false;
  i = place_of (b, at);
  if (i < b->n && b->piece[i].start == at)
    return false;
  memmove (&b->piece[i + 1], &b->piece[i], (b->n - i) * sizeof piece);
  b->piece[i] = piece;
  b->n++;
  return true;
}
