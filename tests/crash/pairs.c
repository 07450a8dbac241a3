/* SPDX-License-Identifier: BSD-3-Clause */

/* Any two features together: see pairs.h. */

#include <config.h>

#include <stdio.h>
#include <string.h>

#include "pairs.h"

bool
pairs_are_there (const struct pairs *p)
{
  uint64_t met[64] = { 0 }, has;
  bool all = true, apart, together;
  unsigned i, j;
  size_t t;

  for (t = 0; t < p->nr_things; t++) {
    has = p->has (t);
    for (i = 0; i < p->nr_features; i++)
      met[i] |= has & PAIRS_BIT (i) ? has : 0;
  }
  for (i = 0; i < p->nr_features; i++)
    for (j = 0; j < i; j++) {
      apart = (p->apart (i) & PAIRS_BIT (j))
        || (p->apart (j) & PAIRS_BIT (i));
      together = met[i] & PAIRS_BIT (j);
      if (together != apart)
        continue;
      printf ("FAIL: %s, %s: %s %s\n", p->name (i), p->name (j),
              together ? "apart, and yet together in a" : "in no", p->thing);
      all = false;
    }
  return all;
}
