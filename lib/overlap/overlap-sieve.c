/* SPDX-License-Identifier: BSD-3-Clause */

/* The sieve: where there is no metadata, at one look.
 *
 * Most of an image is guest data, and most checks are of places where no
 * table is near.  The sieve is a string of bits, each for a group of 1 <<
 * shift neighbouring clusters, and set if one of them may have a mark.  A
 * check whose bits are all 0 is done, with one word that had to come from
 * memory and no branch that could be guessed wrongly; the run lists, which
 * are exact, are for the others.
 *
 * The string is as long as there are marks: RATIO bits or more for each, so
 * that no more than about one check in six goes on, however large the image
 * is and however densely its metadata lies.  How large a group is follows
 * from that: the sieve is to span what has marks, so that a long write is in
 * few groups.  It does not end there, for group g has bit g modulo the number
 * of bits.  A table at the far end of a hostile file sets one bit more, and
 * that is all.
 *
 *     cluster    63 .......................... 0
 *                     |   bit number   | shift |
 *                     +- word -+-- 6 --+
 *
 * A mark that is made sets its bit.  One that is taken back clears none, for
 * a neighbour may need it: so the sieve fills up, and when it is too full
 * it is made anew from the windows, longer if there are more marks.  That
 * takes a few nanoseconds a mark, and comes only after a part of the number
 * of marks has been made.
 *
 *               ov_sieve_new           set_bits > next: ov_sieve_tune
 *               (limit allows)         more marks: ov_sieve_expect
 *     none -----------------> sieve ----------------+
 *       ^                      |  ^                 |
 *       |    ov_sieve_drop     |  +-----------------+
 *       +----------------------+
 *         (relieve, ov_abandon)
 *
 *
 * Invariants
 *
 * 1. A bit is 0 only if no cluster of its groups has a mark in a window.
 * 2. There is no sieve while anything is outside, or in the fixed lists.
 * 3. An update sets the bits of its marks before it makes them, so whoever
 *    has seen the effect of an update will not see bits from before it.
 * 4. "set_bits" is the number of bits that are 1.
 * 5. It is the first memory to go when there is too little.
 *
 * Locks: ov_sieve_free_of (overlap-fast.h) needs none; its thread's place
 * says that it reads the sieve, as for a window.  But it never looks at
 * "fenced": who takes the sieve away lets all threads pass a fence
 * (overlap-window.c).  Where there is no membarrier there is no sieve.  The
 * others need overlap.lock.
 */

#include <config.h>

#include "checked.h"
#include "overlap-fast.h"

/* Bits for each piece at least when the sieve is made; it has up to twice
 * as many, a power of two.
 */
#define RATIO 5u
#define BITS_MIN (OV_WINDOW_BITS < 10 ? UINT64_C (64) : UINT64_C (2048))
#define BITS_MAX (UINT64_C (1) << 40)

/* Only tests set this; other threads may make trackers meanwhile. */
static atomic_bool forbidden;

void
ov_sieve_forbid (bool forbid)
{
  atomic_store (&forbidden, forbid);
}

static struct ov_sieve *
sieve_of (const struct overlap *o)
{
  return (struct ov_sieve *) atomic_load_explicit (&o->sieve,
                                                   memory_order_relaxed);
}

/*----------------------------------------------------------------------
 * Setting bits.  Other threads read the words meanwhile.
 */

/* Bits that are set one after the other are mostly in one word. */
struct writer {
  struct ov_sieve *s;
  uint64_t at, v;               /* word AT is to be V, */
  uint64_t more;                /* so many bits more than it was */
};

static inline void
writer_load (struct writer *w, uint64_t at)
{
  w->at = at;
  w->more = 0;
  w->v = atomic_load_explicit (&w->s->word[at], memory_order_relaxed);
}

static inline void
writer_store (const struct writer *w)
{
  if (w->more == 0)
    return;
  atomic_store_explicit (&w->s->word[w->at], w->v, memory_order_relaxed);
  w->s->set_bits += w->more;
}

static inline void
writer_set (struct writer *w, uint64_t group)
{
  group &= w->s->mask;
  if (group / 64 != w->at) {
    writer_store (w);
    writer_load (w, group / 64);
  }
  w->more += ~(w->v >> group % 64) & 1;
  w->v |= UINT64_C (1) << group % 64;
}

/* Set the bits of [FIRST, END). */
static inline void
writer_range (struct writer *w, uint64_t first, uint64_t end)
{
  uint64_t group = first >> w->s->shift;
  const uint64_t last = (end - 1) >> w->s->shift;

  if (last - group > w->s->mask) /* all of them, and none twice */
    group = last - w->s->mask;
  for (; group <= last; ++group)
    writer_set (w, group);
}

/*----------------------------------------------------------------------
 * Each mark of each window.
 */

static inline void
walk_runs (const struct overlap *o, const struct ov_runs *runs,
           uint64_t base, struct writer *w)
{
  const uint32_t count = ov_count (runs);
  struct ov_cursor at;
  struct ov_piece piece;

  ov_cursor_init (&at, runs);
  while (ov_cursor_next (&at, count, &piece)) {
    const uint64_t first = base + piece.start;

    writer_range (w, first,
                  first + (UINT64_C (1) << ov_kind (o, piece.kind)->log));
  }
}

static void
walk_page (const struct overlap *o, const struct ov_page *page,
           struct writer *w)
{
  const uint64_t first = ov_window_first (o, page->window)
    + (uint64_t) page->number * OV_PAGE;
  uint32_t i;

  for (i = 0; i < OV_PAGE; ++i)
    if (page->class[i] != 0)
      writer_range (w, first + i, first + i + 1);
}

/* Set the bits of all marks that are in windows.  None is open. */
static void
walk (struct overlap *o, struct ov_sieve *s)
{
  struct writer w = { .s = s };
  const struct ov_page *page;
  uint64_t number = 0;
  ov_slot *slot;

  writer_load (&w, 0);
  for (; (slot = ov_dir_next (o, &number)) != NULL; ++number) {
    const uintptr_t v = atomic_load_explicit (slot, memory_order_relaxed);
    const struct ov_runs *runs = v & OV_PAGED
      ? ((struct ov_paged *) (v & ~OV_FLAGS))->runs : (struct ov_runs *) v;

    if (runs)
      walk_runs (o, runs, ov_window_first (o, number), &w);
  }
  for (page = o->oldest; page; page = page->newer)
    walk_page (o, page, &w);
  writer_store (&w);
}

/*----------------------------------------------------------------------
 * Making and dropping it.
 */

/* The bits for MARKS. */
static uint64_t
bits_for (uint64_t marks)
{
  uint64_t bits = BITS_MIN;

  while (bits / RATIO < marks && bits < BITS_MAX)
    bits *= 2;
  return bits;
}

/* The clusters of a group, as a power of two: as few as let BITS groups
 * span most of what is marked, which ends at cluster END or is in few
 * windows.  (The rest shares bits with others.)
 */
static unsigned
shift_for (const struct overlap *o, uint64_t bits, uint64_t end)
{
  const uint64_t span = o->windows > 0
    ? MIN (end, o->windows << o->window_bits) : end;
  unsigned shift = 0;

  while (shift < o->window_bits && bits << shift < span - span / 4)
    shift++;
  return shift;
}

static uint64_t
marks_in_pages (const struct overlap *o)
{
  const struct ov_page *page;
  uint64_t sum = 0;

  for (page = o->oldest; page; page = page->newer)
    sum += page->marked;
  return sum;
}

/* Is there memory for SIZE bytes in the place of OLD, and some to spare? */
static bool
may_have (const struct overlap *o, size_t size, const struct ov_sieve *old)
{
  const uint64_t limit = o->config.total_limit;
  const uint64_t others = o->used - (old ? ov_size (old) : 0);

  return size <= limit && others <= limit - limit / 8
    && size <= limit - limit / 8 - others;
}

static void
put (struct overlap *o, struct ov_sieve *s)
{
  struct ov_sieve *old = sieve_of (o);

  if (old) {
    ov_slot_take (o, &o->sieve);
    ov_free (o, old);
  }
  o->sieve_bytes = ov_size (s);
  atomic_store_explicit (&o->sieve, (uintptr_t) s, memory_order_release);
}

/* As ov_sieve_new, with room for MORE marks; most are before cluster END. */
static void
make (struct overlap *o, uint64_t more, uint64_t end)
{
  struct ov_sieve *old = sieve_of (o), *s = NULL;
  const uint64_t bits = bits_for (o->runs + marks_in_pages (o) + more);
  const size_t size = sizeof *s + bits / 8;

  if (!ov_can_take (o) || o->n_outside + o->n_kept > 0
      || atomic_load (&forbidden))
    return;
  if (may_have (o, size, old))
    s = ov_alloc_instead (o, size, old, false);
  if (!s) {
    if (old)                    /* it must do for a while */
      old->next = old->set_bits + old->set_bits / 2;
    return;
  }
  s->mask = bits - 1;
  s->end = end;
  s->shift = shift_for (o, bits, end);
  walk (o, s);
  s->next = MAX (bits / 4, s->set_bits + s->set_bits / 4);
  put (o, s);
}

/* The first one is for an image of which there is hardly anything yet. */
#define END_AT_FIRST BITS_MIN

void
ov_sieve_new (struct overlap *o)
{
  const struct ov_sieve *s = sieve_of (o);

  make (o, 0, s ? s->end : MAX (o->windows << o->window_bits, END_AT_FIRST));
}

bool
ov_sieve_drop (struct overlap *o)
{
  struct ov_sieve *s = sieve_of (o);

  if (!s)
    return false;
  ov_slot_take (o, &o->sieve);
  o->sieve_bytes = 0;
  ov_free (o, s);
  return true;
}

void
ov_sieve_expect (struct overlap *o, uint64_t marks, uint64_t end)
{
  const struct ov_sieve *s = sieve_of (o);

  if (s && s->mask < bits_for (o->runs + marks) - 1)
    make (o, marks, MAX (s->end, end));
}

void
ov_sieve_add_range (struct overlap *o, uint64_t first, uint64_t end)
{
  struct writer w = { .s = sieve_of (o) };

  w.s->end = MAX (w.s->end, end);
  writer_load (&w, (first >> w.s->shift & w.s->mask) / 64);
  writer_range (&w, first, end);
  writer_store (&w);
}

void
ov_sieve_add_sorted (struct overlap *o, uint64_t base,
                     const struct ov_piece *pieces, uint32_t n)
{
  struct writer w = { .s = sieve_of (o) };
  uint32_t i;

  if (!w.s || n == 0)
    return;
  w.s->end = MAX (w.s->end, base + pieces[n - 1].start + 1);
  writer_load (&w, 0);
  for (i = 0; i < n; ++i)
    writer_set (&w, (base + pieces[i].start) >> w.s->shift);
  writer_store (&w);
}

void
ov_sieve_tune (struct overlap *o)
{
  const struct ov_sieve *s = sieve_of (o);

  if (s && __builtin_expect (s->set_bits > s->next, 0) && !o->open)
    ov_sieve_new (o);
}

/* ---- the self-check ---- */

bool
ov_sieve_verify (struct overlap *o, uint64_t *bytes, const char **why)
{
  struct ov_sieve *s = sieve_of (o);
  uint64_t i, n = 0;

  *bytes = s ? ov_size (s) : 0;
  if (!s)
    return true;
  for (i = 0; i <= s->mask / 64; ++i)
    n += (unsigned) __builtin_popcountll (atomic_load (&s->word[i]));
  if (n != s->set_bits)
    *why = "the sieve's count of its bits is wrong";
  else if (o->n_outside + o->n_kept > 0)
    *why = "there is a sieve, and something is outside";
  else {
    walk (o, s);                /* sets no bit that is not set */
    if (s->set_bits != n)
      *why = "the sieve says that a cluster with a mark is free";
  }
  return !*why;
}
