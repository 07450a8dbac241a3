/* SPDX-License-Identifier: BSD-3-Clause */

/* Edits and scans of the run list of one window.
 *
 * An edit replaces the pieces of a few neighbouring runs by others.  It
 * works on one chunk at a time and on a bounded number of pieces, all
 * on the stack: a list that does not grow is edited where it is and no
 * memory is needed.  Long ranges are many such edits.
 *
 * Invariant: within its chunk a run is maximal and coded as the binary
 * digits of its length, largest first.  An edit therefore takes the
 * runs that touch its range from left and right along, and codes anew
 * what it took.
 *
 * Locks: as in overlap-packed.c.
 */

#include <config.h>

#include <errno.h>

#include "overlap-fast.h"

/* The pieces that one edit takes, besides those of the runs at its two
 * ends, of which each has at most OV_WINDOW_BITS + 1.
 */
#define TAKE 16
#define DIGITS (OV_WINDOW_BITS + 1)
#define TAKE_MAX (TAKE + 3 * DIGITS)
#define MAKE_MAX ((2 * (TAKE + DIGITS) + 5) * DIGITS)

int
ov_edit_class (struct overlap *o, struct ov_edit *e, uint16_t old,
               uint16_t *new)
{
  int r = 0;

  e->met |= ov_kind (o, old)->set;
  if (e->what == OV_PUT)
    *new = e->put;
  else if (e->new != 0 && e->old == old)
    *new = e->new;
  else {
    r = e->what == OV_ENTER
      ? ov_kind_plus (o, old, e->type, e->force, new)
      : ov_kind_minus (o, old, e->type, e->force, new);
    if (r == 0) {
      e->old = old;
      e->new = *new;
    }
  }
  return r;
}

/* The pieces that an edit takes out: I to I + N of the list. */
struct taken {
  uint32_t i, n;
  struct {
    uint32_t start, end;
    uint16_t class;
  } piece[TAKE_MAX];
};

static void
take (const struct overlap *o, const struct ov_runs *r, uint32_t chunk,
      uint32_t i, struct taken *t)
{
  struct ov_piece p = ov_packed_get (r, chunk, i);
  const struct ov_kind *k = ov_kind (o, p.kind);

  t->piece[t->n].start = p.start;
  t->piece[t->n].end = p.start + (UINT32_C (1) << k->log);
  t->piece[t->n].class = k->class;
  t->n++;
}

/* True if piece I (of CHUNK, too) goes on with the run of the piece
 * before it.
 */
static bool
goes_on (const struct overlap *o, const struct ov_runs *r, uint32_t chunk,
         uint32_t i)
{
  struct ov_piece p = ov_packed_get (r, chunk, i - 1);
  struct ov_piece q = ov_packed_get (r, chunk, i);
  const struct ov_kind *k = ov_kind (o, p.kind);

  return p.start + (UINT32_C (1) << k->log) == q.start
    && k->class == ov_kind (o, q.kind)->class;
}

/* Take what lies in [A, *B) or touches it.  If that is too much, *B is
 * lowered.
 */
static void
take_range (const struct overlap *o, const struct ov_runs *r, uint32_t chunk,
            uint32_t a, uint32_t *b, struct taken *t)
{
  uint32_t lo = ov_packed_prefix (r, chunk), i = lo, j;
  uint32_t hi = ov_packed_prefix (r, chunk + 1);
  bool touched;

  /* The last piece that begins before A may reach it. */
  if (a >> r->chunk_bits == (a - 1) >> r->chunk_bits)
    i = ov_packed_find (r, chunk, a - 1);
  t->n = 0;
  if (i > lo) {
    take (o, r, chunk, i - 1, t);
    touched = t->piece[0].end >= a;
    t->n = 0;
    if (touched) {
      i--;
      while (i > lo && goes_on (o, r, chunk, i))
        i--;
    }
  }
  for (j = i; j < hi; ++j) {
    if (ov_packed_get (r, chunk, j).start > *b)
      break;
    if (t->n >= TAKE + DIGITS && t->piece[t->n - 1].end > a) {
      /* Enough for one edit: stop where this piece begins, but take
       * the rest of the run before it, if it is part of one.
       */
      *b = ov_packed_get (r, chunk, j).start;
      break;
    }
    take (o, r, chunk, j, t);
  }
  while (j < hi && t->n > 0 && j > i
         && (goes_on (o, r, chunk, j)
             || (ov_packed_get (r, chunk, j).start == *b
                 && t->piece[t->n - 1].start < *b)))
    take (o, r, chunk, j++, t);
  t->i = i;
}

/* The pieces that an edit puts in their place. */
struct made {
  struct overlap *o;
  bool force;
  uint32_t n;
  uint32_t start, len;          /* the run that still grows */
  uint16_t class;
  struct ov_piece piece[MAKE_MAX];
};

/* Code the run that has ended. */
static int
made_flush (struct made *m)
{
  uint32_t start = m->start, len = m->len;

  while (len > 0 && m->class != 0) {
    unsigned log = 31 - (unsigned) __builtin_clz (len);

    m->piece[m->n].start = start;
    if (ov_kind_sized (m->o, m->class, log, m->force,
                       &m->piece[m->n].kind) < 0)
      return -ENOMEM;
    m->n++;
    start += UINT32_C (1) << log;
    len -= UINT32_C (1) << log;
  }
  m->len = 0;
  return 0;
}

static int
made_add (struct made *m, uint32_t start, uint32_t end, uint16_t class)
{
  if (start >= end)
    return 0;
  if (m->len > 0 && m->class == class && m->start + m->len == start) {
    m->len += end - start;
    return 0;
  }
  if (made_flush (m) < 0)
    return -ENOMEM;
  m->start = start;
  m->len = end - start;
  m->class = class;
  return 0;
}

/* Add a stretch of one class, of which [A, B) is edited. */
static int
made_edit (struct made *m, uint32_t start, uint32_t end, uint16_t class,
           uint32_t a, uint32_t b, struct ov_edit *e, uint64_t *missing)
{
  uint32_t lo = start > a ? start : a, hi = end < b ? end : b;
  uint16_t new;

  if (lo >= hi)
    return made_add (m, start, end, class);
  if (ov_edit_class (m->o, e, class, &new) < 0)
    return -ENOMEM;
  if (e->what == OV_LEAVE
      && !(ov_kind (m->o, class)->set & OVERLAP_BIT (e->type)))
    *missing += hi - lo;
  if (made_add (m, start, lo, class) < 0
      || made_add (m, lo, hi, new) < 0
      || made_add (m, hi, end, class) < 0)
    return -ENOMEM;
  return 0;
}

/* The usual edit is of one cluster that no neighbour touches: a piece
 * comes, goes or changes its kind, and no run is to be coded anew.
 * 1 if it was not that, else as ov_runs_edit.
 */
static int
edit_lone (struct overlap *o, struct ov_runs **list, uint32_t a,
           struct ov_edit *e)
{
  const struct ov_runs *r = *list;
  uint32_t chunk = a >> r->chunk_bits;
  uint32_t lo = ov_packed_prefix (r, chunk);
  uint32_t hi = ov_packed_prefix (r, chunk + 1);
  uint32_t i = ov_packed_find (r, chunk, a);
  struct ov_piece p = { .start = a };
  uint16_t old = 0;

  if (i < hi && ov_packed_get (r, chunk, i).start == a + 1)
    return 1;
  if (i > lo) {
    p = ov_packed_get (r, chunk, i - 1);
    if (p.start == a && ov_kind (o, p.kind)->log == 0) {
      old = p.kind;
      i--;
    }
    if (i > lo) {
      p = ov_packed_get (r, chunk, i - 1);
      if (p.start + (UINT32_C (1) << ov_kind (o, p.kind)->log) >= a)
        return 1;
    }
  }
  p.start = a;
  if (ov_edit_class (o, e, old, &p.kind) < 0
      || (p.kind != old
          && ov_packed_splice (o, list, chunk, i, old != 0, &p, p.kind != 0,
                               e->force) < 0))
    return -ENOMEM;
  if (e->what == OV_LEAVE
      && !(ov_kind (o, old)->set & OVERLAP_BIT (e->type)))
    e->missing++;
  ov_packed_tune (o, list);
  return 0;
}

static int
edit_range (struct overlap *o, struct ov_runs **list, uint32_t a,
            uint32_t *b, struct ov_edit *e)
{
  struct ov_runs *r = *list;
  unsigned bits = r ? r->chunk_bits : o->window_bits;
  uint32_t chunk = a >> bits, at = a, end = *b, i;
  uint64_t missing = 0;
  struct taken t;
  struct made m;

  t.i = t.n = 0;
  m.o = o;
  m.force = e->force;
  m.n = m.len = 0;
  m.class = 0;
  if (end > (chunk + 1) << bits)
    end = (chunk + 1) << bits;
  if (r)
    take_range (o, r, chunk, a, &end, &t);

  for (i = 0; i < t.n; ++i) {
    if (made_edit (&m, at, t.piece[i].start, 0, a, end, e, &missing) < 0
        || made_edit (&m, t.piece[i].start, t.piece[i].end,
                      t.piece[i].class, a, end, e, &missing) < 0)
      return -ENOMEM;
    at = t.piece[i].end;
  }
  if (made_edit (&m, at, end, 0, a, end, e, &missing) < 0
      || made_flush (&m) < 0
      || ov_packed_splice (o, list, chunk, t.i, t.n, m.piece, m.n,
                           e->force) < 0)
    return -ENOMEM;
  e->missing += missing;
  *b = end;
  ov_packed_tune (o, list);
  return 0;
}

int
ov_runs_edit (struct overlap *o, struct ov_runs **list, uint32_t a,
              uint32_t *b, struct ov_edit *e)
{
  int r = 1;

  if (*list && *b == a + 1)
    r = edit_lone (o, list, a, e);
  return r == 1 ? edit_range (o, list, a, b, e) : r;
}

void
ov_runs_strip (struct overlap *o, struct ov_runs **list)
{
  uint32_t chunk, i, j;

  /* From the end, so that what moves has been seen. */
  for (chunk = *list ? ov_chunks (*list) : 0; chunk-- > 0 && *list; ) {
    i = ov_packed_prefix (*list, chunk + 1);
    while (*list && i > ov_packed_prefix (*list, chunk)) {
      j = i;
      while (j > ov_packed_prefix (*list, chunk)
             && !(ov_kind (o, ov_packed_get (*list, chunk, j - 1).kind)->set
                  & OV_PINNED))
        j--;
      if (j < i)
        ov_packed_splice (o, list, chunk, j, i - j, NULL, 0, false);
      else
        j--;
      i = j;
    }
  }
  ov_packed_tune (o, list);
}

void
ov_runs_scan (const struct overlap *o, const struct ov_runs *r,
              uint64_t base, uint32_t a, uint32_t b, struct ov_scan *s)
{
  uint32_t chunk, i, hi;
  overlap_set set;

  if (b - a == 1 && ov_packed_look (o, r, a, 1, &set)) {
    if (set != OVERLAP_NONE)
      ov_scan_add (s, base + a, 1, set);
    return;
  }
  for (chunk = a >> r->chunk_bits;
       chunk <= (b - 1) >> r->chunk_bits; ++chunk) {
    uint32_t first = chunk << r->chunk_bits;

    i = ov_packed_prefix (r, chunk);
    hi = ov_packed_prefix (r, chunk + 1);
    if (i == hi)
      continue;
    if (a > first) {
      /* Only the last piece that begins at or before A can reach it. */
      uint32_t j = ov_packed_find (r, chunk, a);
      i = j > i ? j - 1 : j;
    }
    for (; i < hi; ++i) {
      struct ov_piece p = ov_packed_get (r, chunk, i);
      const struct ov_kind *k = ov_kind (o, p.kind);
      uint32_t end = p.start + (UINT32_C (1) << k->log);

      if (p.start >= b)
        return;
      if (end <= a)
        continue;
      if (p.start < a)
        p.start = a;
      ov_scan_add (s, base + p.start, (end < b ? end : b) - p.start, k->set);
      if (s->hit_only && s->found)
        return;
    }
  }
}

int
ov_runs_each (const struct ov_runs *r,
              int (*f) (void *opaque, struct ov_piece piece), void *opaque)
{
  const uint32_t count = r ? ov_count (r) : 0;
  struct ov_cursor at;
  struct ov_piece piece;
  int ret = 0;

  if (count > 0)
    ov_cursor_init (&at, r);
  while (ret == 0 && count > 0 && ov_cursor_next (&at, count, &piece))
    ret = f (opaque, piece);
  return ret;
}

/* A run must be written as one that ov_runs_edit made. */
bool
ov_runs_verify (const struct overlap *o, const struct ov_runs *r,
                const char **why)
{
  uint32_t chunk, i = 0, hi, end = 0;
  unsigned log = 0;
  uint16_t class = 0;

  if (ov_count (r) == 0) {
    *why = "an empty run list was kept";
    return false;
  }
  for (chunk = 0; chunk < ov_chunks (r); ++chunk) {
    hi = ov_packed_prefix (r, chunk + 1);
    if (hi < i || hi > ov_count (r)) {
      *why = "the index of a run list is out of order";
      return false;
    }
    for (class = 0; i < hi; ++i) {
      struct ov_piece p = ov_packed_get (r, chunk, i);
      const struct ov_kind *k = ov_kind (o, p.kind);

      if (p.kind >= o->n_kinds || p.start < end
          || (p.start + (UINT32_C (1) << k->log) - 1) >> r->chunk_bits
             != chunk) {
        *why = "pieces of a run list overlap, or leave their chunk";
        return false;
      }
      if (p.start == end && k->class == class && k->log >= log) {
        *why = "a run is not coded by the digits of its length";
        return false;
      }
      end = p.start + (UINT32_C (1) << k->log);
      class = k->class;
      log = k->log;
    }
  }
  return true;
}
