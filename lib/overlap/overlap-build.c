/* SPDX-License-Identifier: BSD-3-Clause */

/* Building: many marks, one after the other, while nothing else uses the
 * tracker, as when an image is opened.
 *
 * Each mark by itself would shift what lies behind it in its window's list,
 * and code the list anew now and then; with many windows at random places
 * it would wait for the memory of one after the other, too.  So marks wait
 * in an array, in the order in which they come.  When it is full, or
 * anything else is asked, they are sorted and each window's are merged with
 * its list, in one pass over both.
 *
 * The longer the array, the fewer the passes over each list.  A tracker
 * without a limit lets the array grow, up to some 25 MiB for as long as it
 * is filled; one with a limit, which may be exactly what the lists need in
 * the end, is content with 3 KiB, which are given back when memory is short
 * (relieve in overlap.c).
 *
 * So what a mark meets is known later.  Marks of one cluster are sorted in
 * the order in which they came, so that the same is found as if each had
 * been made at once; the first conflict that is found is kept
 * (overlap_conflict).  Marks that come after each other are joined to a class
 * without a look at the list.  A window in whose list one of the clusters
 * has a mark already, or for whose list there is no memory, has its marks
 * made one by one in the usual way, which knows what is met and what must
 * leave.
 *
 * Marks of a type that never leaves do not wait, nor does anything once a
 * window has left.
 *
 * Invariants:
 *
 * 1. "building" is NULL unless notices are held.
 * 2. Nothing waits while an update is under way, or after overlap_verify,
 *    overlap_get_stats and overlap_hold_notices.
 *
 * Locks: overlap.lock.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "checked.h"
#include "overlap-fast.h"

#define ROOM 384u               /* marks, within a limit */
#define GROW_BITS 3
#define ROOM_MOST (ROOM << 4 * GROW_BITS)
#define RANGE_MOST 64u          /* clusters of a range that waits */
#define FEW 24u                 /* pieces coded anew in the time of an edit */

/* A mark that waits: its cluster above its type.  There are no clusters
 * beyond that in a file, whose length has 64 bits.
 */
#define TYPE_BITS 4
#define CLUSTER_MOST (UINT64_MAX >> TYPE_BITS)
_Static_assert (OVERLAP_TYPES <= 1 << TYPE_BITS, "types need more bits");

/* An array that has grown has room for a second, to sort in, behind it. */
struct ov_building {
  uint32_t n, room;             /* marks */
  uint64_t mark[];
};

static struct ov_building *
new_building (struct overlap *o, uint32_t room)
{
  const size_t words = room > ROOM ? 2 * (size_t) room : room;
  struct ov_building *b;

  b = ov_alloc (o, sizeof *b + words * sizeof b->mark[0], false);
  if (b)
    b->room = room;
  return b;
}

void
ov_build_begin (struct overlap *o)
{
  if (!o->building)
    o->building = new_building (o, ROOM);
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

/*----------------------------------------------------------------------
 * Sorting.
 */

#define DIGIT_BITS 10
#define DIGIT_BITS_FEW 8        /* of so few marks that to clear and to sum */
#define FEW_TO_SORT 512u        /* the counts would take longer */
#define DIGIT_BITS_FIRST 11
/* Marks that the caches hold twice; few where the tests build the tracker
 * with tiny windows.
 */
#define NEAR (OV_WINDOW_BITS < 10 ? 64u : 4096u)

static bool
in_order (const uint64_t *mark, uint32_t n)
{
  uint32_t i;

  for (i = 1; i < n; ++i)
    if (mark[i - 1] >> TYPE_BITS > mark[i] >> TYPE_BITS)
      return false;
  return true;
}

/* The bits in which the marks differ. */
static uint64_t
differences (const uint64_t *mark, uint32_t n)
{
  uint64_t all = 0;
  uint32_t i;

  for (i = 1; i < n; ++i)
    all |= mark[i] ^ mark[0];
  return all;
}

/* Sort by the digit of BITS bits from bit SHIFT on; what is equal there
 * stays in its order.  END says for each digit where its marks end.
 */
static inline void
sort_digit (const uint64_t *from, uint64_t *to, uint32_t n, unsigned shift,
            unsigned bits, uint32_t *end)
{
  const uint32_t digits = UINT32_C (1) << bits;
  uint32_t sum = 0, i;

  memset (end, 0, digits * sizeof *end);
  for (i = 0; i < n; ++i)
    end[from[i] >> shift & (digits - 1)]++;
  for (i = 0; i < digits; ++i) {
    const uint32_t count = end[i];

    end[i] = sum;
    sum += count;
  }
  for (i = 0; i < n; ++i)
    to[end[from[i] >> shift & (digits - 1)]++] = from[i];
}

/* The size of digits for N marks that differ in ALL: as few digits as need
 * be, of the same size.
 */
static unsigned
digit_bits (uint64_t all, uint32_t n)
{
  const unsigned most = n > FEW_TO_SORT ? DIGIT_BITS : DIGIT_BITS_FEW;
  const unsigned bits = 64 - (unsigned) __builtin_clzll
    (all >> TYPE_BITS | 1);
  const unsigned digits = (bits + most - 1) / most;

  return (bits + digits - 1) / digits;
}

/* Sort N marks by their clusters, digit by digit from the lowest. */
static void
sort_near (uint64_t *mark, uint64_t *other, uint32_t n)
{
  uint64_t *from = mark, *to = other, *done, all;
  uint32_t end[1u << DIGIT_BITS];
  unsigned shift, bits;

  if (in_order (mark, n))
    return;
  all = differences (mark, n);
  bits = digit_bits (all, n);
  for (shift = TYPE_BITS; shift < 64 && all >> shift != 0; shift += bits)
    if (all >> shift & ((1u << bits) - 1)) {
      sort_digit (from, to, n, shift, bits, end);
      done = to;
      to = from;
      from = done;
    }
  if (from != mark)
    memcpy (mark, from, n * sizeof *mark);
}

/* Sort N marks that are too many for the caches: first by the highest bits
 * in which they differ, then what is alike in these.  They are in OTHER
 * then.
 */
static void
sort_far (uint64_t *mark, uint64_t *other, uint32_t n)
{
  const unsigned top = 63 - (unsigned) __builtin_clzll
    (differences (mark, n) | 1);
  const unsigned shift = MAX (top + 1, TYPE_BITS + DIGIT_BITS_FIRST)
    - DIGIT_BITS_FIRST;
  uint32_t end[1u << DIGIT_BITS_FIRST], at = 0, i;

  sort_digit (mark, other, n, shift, DIGIT_BITS_FIRST, end);
  for (i = 0; i < 1u << DIGIT_BITS_FIRST; ++i) {
    sort_near (other + at, mark + at, end[i] - at);
    at = end[i];
  }
}

/* Returns which of the two arrays has the sorted marks. */
static uint64_t *
sort (uint64_t *mark, uint64_t *other, uint32_t n)
{
  if (n <= NEAR || in_order (mark, n)) {
    sort_near (mark, other, n);
    return mark;
  }
  sort_far (mark, other, n);
  return other;
}

/*----------------------------------------------------------------------
 * Marks of one window.
 */

static uint64_t
cluster_of (uint64_t mark)
{
  return mark >> TYPE_BITS;
}

static enum overlap_type
type_of (uint64_t mark)
{
  return (enum overlap_type) (mark & ((1u << TYPE_BITS) - 1));
}

void
ov_note_conflict (struct overlap *o, enum overlap_type type,
                  uint64_t cluster, overlap_set there)
{
  there &= OVERLAP_ALL & ~ov_allowed (type);
  if (there == OVERLAP_NONE || o->conflict.there != OVERLAP_NONE)
    return;
  o->conflict.cluster = cluster;
  o->conflict.type = type;
  o->conflict.there = there;
}

/* Make N marks of a window one by one, in the usual way. */
static void
enter_each (struct overlap *o, const uint64_t *mark, uint32_t n)
{
  uint32_t i;

  for (i = 0; i < n; ++i) {
    struct ov_edit e = { .what = OV_ENTER, .type = type_of (mark[i]) };
    const uint64_t cluster = cluster_of (mark[i]);

    ov_update_window (o, cluster, cluster + 1, &e);
    ov_note_conflict (o, e.type, cluster, e.met);
  }
}

/* A cluster of the kind BEFORE has a mark more. */
static int
add_mark (struct overlap *o, uint64_t mark, uint16_t before, uint16_t *kind)
{
  const enum overlap_type type = type_of (mark);

  if (before != 0)
    ov_note_conflict (o, type, cluster_of (mark), ov_kind (o, before)->set);
  else if (o->plain[type] != 0) { /* as nearly always */
    *kind = o->plain[type];
    return 0;
  }
  return ov_kind_plus (o, before, type, false, kind);
}

/* The pieces of N sorted marks of a window, *COUNT of them. */
static int
make_pieces (struct overlap *o, const uint64_t *mark, uint32_t n,
             struct ov_piece *piece, uint32_t *count)
{
  uint64_t last = UINT64_MAX;
  uint32_t i, k = 0;

  for (i = 0; i < n; ++i) {
    const uint64_t cluster = cluster_of (mark[i]);
    uint16_t before = 0;

    if (cluster == last)
      before = piece[--k].kind;
    last = cluster;
    piece[k].start = ov_in_window (o, cluster);
    if (add_mark (o, mark[i], before, &piece[k++].kind) < 0)
      return -ENOMEM;
  }
  *count = k;
  return 0;
}

/* Merge N sorted marks with their window's list; there is room for as many
 * pieces.  0; or nothing changed, and -ENOMEM, -EEXIST if a cluster has a
 * mark already, or -EAGAIN if it is so little that coding all of the list
 * anew would take longer.
 */
static int
merge (struct overlap *o, const uint64_t *mark, uint32_t n,
       struct ov_piece *piece)
{
  const uint64_t number = ov_window_of (o, cluster_of (mark[0]));
  ov_slot *slot = ov_dir_insert (o, number, false);
  const struct ov_runs *list;
  struct ov_window w;
  uint32_t count;
  int r;

  if (!slot)
    return -ENOMEM;
  /* There are no pages, for none are made meanwhile. */
  list = (struct ov_runs *) atomic_load_explicit (slot,
                                                  memory_order_relaxed);
  if (((uintptr_t) list & OV_PAGED) || (list && n < ov_count (list) / FEW))
    return -EAGAIN;
  r = make_pieces (o, mark, n, piece, &count);
  if (r < 0)
    return r;
  ov_sieve_add_sorted (o, ov_window_first (o, number), piece, count);
  ov_window_open (o, &w, slot, number);
  r = ov_packed_merge (o, &w.runs, piece, count);
  ov_window_close (o, &w);
  return r;
}

/* The marks from I on that lie in the window of mark I end here. */
static uint32_t
end_of_window (const struct overlap *o, const uint64_t *mark, uint32_t i,
               uint32_t n)
{
  const uint64_t last = ov_window_last (o, ov_window_of
                                        (o, cluster_of (mark[i])));

  while (i < n && cluster_of (mark[i]) <= last)
    ++i;
  return i;
}

/* Make N sorted marks.  PIECE has room for as many. */
static void
enter_sorted (struct overlap *o, const uint64_t *mark, uint32_t n,
              struct ov_piece *piece)
{
  uint32_t i, next;

  /* Should a few lie far away, they are not what the sieve is made for. */
  ov_sieve_expect (o, n, cluster_of (mark[n - 1 - n / 16]) + 1);
  for (i = 0; i < n; i = next) {
    next = end_of_window (o, mark, i, n);
    if (o->n_outside + o->n_kept > 0
        || merge (o, mark + i, next - i, piece) < 0)
      enter_each (o, mark + i, next - i);
  }
}

/* As many as wait within a limit are made from the stack, so that the
 * array can be given back meanwhile.
 */
static void
enter_few (struct overlap *o, const uint64_t *mark, uint32_t n)
{
  uint64_t copy[ROOM], other[ROOM];
  struct ov_piece piece[ROOM];

  memcpy (copy, mark, n * sizeof *mark);
  enter_sorted (o, sort (copy, other, n), n, piece);
}

void
ov_build_end (struct overlap *o)
{
  struct ov_building *b = o->building;
  const uint32_t n = b->n;
  uint64_t *sorted;

  if (n == 0)
    return;
  b->n = 0;
  if (n <= ROOM) {
    enter_few (o, b->mark, n);
    ov_sieve_tune (o);
    return;
  }
  o->building = NULL;           /* is in use, and cannot be given back */
  sorted = sort (b->mark, b->mark + b->room, n);
  enter_sorted (o, sorted, n, (struct ov_piece *)
                (sorted == b->mark ? b->mark + b->room : b->mark));
  o->building = b;
  ov_sieve_tune (o);
}
_Static_assert (sizeof (struct ov_piece) <= sizeof (uint64_t),
                "pieces need more room than marks");

/*----------------------------------------------------------------------
 * Waiting.
 */

/* Let the array grow, if it may. */
static void
grow (struct overlap *o)
{
  struct ov_building *old = o->building, *b;

  if (o->config.total_limit != UINT64_MAX || old->room >= ROOM_MOST)
    return;
  b = new_building (o, old->room << GROW_BITS);
  if (!b)
    return;
  b->n = old->n;
  memcpy (b->mark, old->mark, old->n * sizeof old->mark[0]);
  ov_free (o, old);
  o->building = b;
}

/* Have room for COUNT more.  False if nothing waits any more. */
static bool
have_room (struct overlap *o, uint32_t count)
{
  if (o->building->room - o->building->n < count)
    grow (o);
  if (o->building->room - o->building->n < count)
    ov_build_end (o);
  return o->building && o->n_outside + o->n_kept == 0;
}

bool
ov_build_enter (struct overlap *o, enum overlap_type type, uint64_t first,
                uint64_t count)
{
  struct ov_building *b = o->building;

  if ((OVERLAP_BIT (type) & OV_PINNED) || o->n_outside + o->n_kept > 0
      || count > RANGE_MOST || first > CLUSTER_MOST - RANGE_MOST)
    return false;
  if (b->room - b->n < count && !have_room (o, (uint32_t) count))
    return false;
  b = o->building;
  for (; count > 0; ++first, --count)
    b->mark[b->n++] = first << TYPE_BITS | type;
  return true;
}
