/* SPDX-License-Identifier: BSD-3-Clause */

/* Legal orders of the operations on one register; see order.h.
 *
 * Where each value is written once, the operations on one value have a
 * zone: from the first of their ends to the last of their begins.  If
 * that is forwards in time, the register holds the value all the while.
 * So there is a legal order if no two forward zones overlap, and none
 * contains all of the operations on another value (P. B. Gibbons,
 * E. Korach, "Testing Shared Memories", 1997).
 *
 * Zero is written often, so its zones are not known: for it only what
 * must hold of each read and each write alone is checked.
 */

#include <config.h>

#include <stdlib.h>

#include "order.h"

struct zone {
  uint64_t value, end, begin;   /* first end, last begin */
  size_t first, last;           /* whose */
  size_t write;
  bool written;
};

struct all {
  const struct order_op *ops;
  size_t n, *a, *b;
};

static const char *
wrong (struct all *all, const char *what, size_t a, size_t b)
{
  *all->a = a;
  *all->b = b;
  return what;
}

static int
compare_values (const void *a, const void *b)
{
  const struct zone *za = a, *zb = b;

  return (za->value > zb->value) - (za->value < zb->value);
}

static int
compare_ends (const void *a, const void *b)
{
  const struct zone *za = a, *zb = b;

  return (za->end > zb->end) - (za->end < zb->end);
}

/* One zone for each value but zero; returns how many. */
static size_t
make_zones (struct all *all, struct zone *z)
{
  size_t i, n = 0, zones = 0;

  for (i = 0; i < all->n; ++i)
    if (all->ops[i].value != 0)
      z[n++] = (struct zone) {
        .value = all->ops[i].value, .end = all->ops[i].end,
        .begin = all->ops[i].begin, .first = i, .last = i, .write = i,
        .written = all->ops[i].write,
      };
  qsort (z, n, sizeof *z, compare_values);
  for (i = 0; i < n; ++i) {
    struct zone *to = &z[zones > 0 ? zones - 1 : 0];

    if (zones == 0 || to->value != z[i].value) {
      z[zones++] = z[i];
      continue;
    }
    if (z[i].end < to->end) {
      to->end = z[i].end;
      to->first = z[i].first;
    }
    if (z[i].begin > to->begin) {
      to->begin = z[i].begin;
      to->last = z[i].last;
    }
    if (z[i].written) {
      to->written = true;
      to->write = z[i].write;
    }
  }
  return zones;
}

static const char *
check_sources (struct all *all, const struct zone *z, size_t zones)
{
  size_t i;

  for (i = 0; i < zones; ++i) {
    if (!z[i].written)
      return wrong (all, "a value is read that was never written",
                    z[i].first, z[i].first);
    if (z[i].end < all->ops[z[i].write].begin)
      return wrong (all, "a value is read before it is written", z[i].first,
                    z[i].write);
  }
  return NULL;
}

/* Zones are sorted by their ends. */
static const char *
check_zones (struct all *all, const struct zone *z, size_t zones)
{
  size_t i, j;

  for (i = 0; i < zones; ++i) {
    if (z[i].end > z[i].begin)
      continue;
    for (j = 0; j < zones; ++j) {
      if (i == j)
        continue;
      if (z[j].end < z[j].begin ? z[j].end < z[i].begin
          && z[i].end < z[j].begin
          : z[j].begin > z[i].end && z[j].end < z[i].begin)
        return wrong (all, "a value comes back after another was there",
                      z[i].last, z[j].first);
    }
    for (j = 0; j < all->n; ++j)
      if (all->ops[j].value == 0 && all->ops[j].begin > z[i].end
          && all->ops[j].end < z[i].begin)
        return wrong (all, "a value comes back after a zero", z[i].last, j);
  }
  return NULL;
}

/* Who can have written the zero that is read? */
static const char *
check_zero_reads (struct all *all)
{
  size_t i, j, last_zero;
  uint64_t zero_end;

  for (i = 0; i < all->n; ++i) {
    const struct order_op *r = &all->ops[i];

    if (r->write || r->value != 0)
      continue;
    zero_end = 0;
    last_zero = i;
    for (j = 0; j < all->n; ++j)
      if (all->ops[j].write && all->ops[j].value == 0
          && all->ops[j].begin < r->end && all->ops[j].end > zero_end) {
        zero_end = all->ops[j].end;
        last_zero = j;
      }
    for (j = 0; j < all->n && last_zero < all->n; ++j)
      if (all->ops[j].write && all->ops[j].value != 0
          && all->ops[j].begin > zero_end && all->ops[j].end < r->begin)
        return wrong (all, "a write is lost: zero is read after it", i, j);
  }
  return NULL;
}

const char *
order_check (const struct order_op *ops, size_t n, size_t *a, size_t *b)
{
  struct all all = { .ops = ops, .n = n, .a = a, .b = b };
  struct zone *z = calloc (n + 1, sizeof *z);
  const char *what;
  size_t zones;

  if (!z)
    abort ();
  zones = make_zones (&all, z);
  what = check_sources (&all, z, zones);
  qsort (z, zones, sizeof *z, compare_ends);
  if (!what)
    what = check_zones (&all, z, zones);
  if (!what)
    what = check_zero_reads (&all);
  free (z);
  return what;
}
