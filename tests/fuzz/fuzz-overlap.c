/* SPDX-License-Identifier: BSD-3-Clause */

/* Fuzz target: operations on the tracker, compared with an array that
 * has the owners of each cluster.  The tracker is built with tiny
 * windows, so that few bytes meet its borders.
 *
 * The input is two bytes of bitmap-size and limit, then four bytes an
 * operation: what and type, cluster, length, and which allocation fails.
 * With some limits the first operations are those of an image that is being
 * opened.  Ranges that left are rebuilt, with updates meanwhile.
 *
 * "make check" links replay.c, "make check-fuzz TARGETS=overlap" libFuzzer.
 */

#include <config.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "overlap-internal.h"

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* A property that must hold. */
#define MUST(expr) do { if (!(expr)) abort (); } while (0)

/* Two stretches of 256 clusters, the second far away, over a border. */
#define CLUSTERS 512u
#define HALF 256u
#define FAR (((uint64_t) OV_WINDOW << 20) - 100)

#define MAX_OPERATIONS 2000
#define HELD_OPERATIONS 24      /* of an image that is being opened */

static struct overlap *o;

/* What there is, and of which types.  The tracker knows all of it where
 * nothing is outside, and pinned marks everywhere.
 */
static uint8_t owners[CLUSTERS][OVERLAP_TYPES];
static overlap_set types[CLUSTERS];
static bool outside[CLUSTERS];
static unsigned n_pinned;       /* clusters with pinned marks */
static bool any_left;           /* a notice came */
static bool held, conflict;     /* notices; one was met meanwhile */
static bool rebuilding;
static overlap_set before[CLUSTERS]; /* types at the beginning of that */

static uint64_t
at (uint32_t i)
{
  return i < HALF ? i : FAR + i;
}

static bool
is_pinned (enum overlap_type type)
{
  return OV_PINNED & OVERLAP_BIT (type);
}

/* What the tracker must say of a cluster, while nothing is rebuilt. */
static overlap_set
set_of (uint32_t i)
{
  return outside[i] ? types[i] & OV_PINNED : types[i];
}

static void
add (uint32_t i, enum overlap_type type)
{
  n_pinned += is_pinned (type) && !(types[i] & OV_PINNED);
  owners[i][type]++;
  types[i] |= OVERLAP_BIT (type);
}

static void
take (uint32_t i, enum overlap_type type)
{
  if (--owners[i][type] > 0)
    return;
  types[i] &= ~OVERLAP_BIT (type);
  n_pinned -= is_pinned (type) && !(types[i] & OV_PINNED);
}

/* A walk of the tables cannot tell how often a cluster is referred to but
 * by the tables of snapshots.
 */
static void
came_back (uint32_t i)
{
  unsigned t;

  for (t = 0; t < OVERLAP_TYPES; t++)
    if (t != OVERLAP_INACTIVE_L2 && owners[i][t] > 1)
      owners[i][t] = 1;
}

static void
notice (void *opaque, const struct overlap_notice *n)
{
  uint32_t i;

  (void) opaque;
  MUST (n->count > 0 && (rebuilding || !n->restored));
  any_left = true;
  for (i = 0; i < CLUSTERS; i++)
    if (at (i) - n->first < n->count) {
      MUST (outside[i] == n->restored);
      outside[i] = !n->restored;
      if (n->restored)
        came_back (i);
    }
}

static void
compare (uint32_t i, uint32_t n, overlap_set mask)
{
  overlap_set any = 0, all = OVERLAP_ALL, there = 0;
  uint64_t where = UINT64_MAX;
  bool out = false;
  struct overlap_answer a;
  uint32_t j;

  for (j = i; j < i + n; j++) {
    const overlap_set set = set_of (j);

    any |= set;
    there |= types[j];
    if ((set & mask) && where == UINT64_MAX)
      where = at (j);
    if (outside[j])
      out = true;
    else
      all &= set;
  }
  overlap_query (o, at (i), n, mask, &a);
  MUST (a.all == all && a.outside == out);
  if (rebuilding && out)
    MUST ((a.any & any) == any && (a.any & ~there) == 0);
  else
    MUST (a.any == any && (!(any & mask) || a.where == where));
  MUST (overlap_hit (o, at (i), n, mask) == ((any & mask) != 0 || out));
}

/* Pinned and other marks of one cluster are kept apart, so that it is
 * clear what stays of a window that leaves.  There are never more pinned
 * marks than can be kept without memory, and few combinations of owners,
 * so that the dictionary does not fill.
 */
static bool
suits (uint32_t i, uint32_t n, enum overlap_type type)
{
  const bool pinned = is_pinned (type);
  uint32_t j;

  for (j = i; j < i + n; j++)
    if ((types[j] && (pinned || (types[j] & OV_PINNED)))
        || owners[j][type] >= 5)
      return false;
  return !pinned || n_pinned + n <= OV_KEPT_MAX;
}

/* What is being rebuilt must not lose or gain what a walk cannot tell. */
static bool
walk_can_tell (uint32_t i, uint32_t n, enum overlap_type type, uint8_t most)
{
  uint32_t j;

  for (j = i; rebuilding && j < i + n; j++)
    if (outside[j]
        && (type == OVERLAP_INACTIVE_L2 || owners[j][type] > most))
      return false;
  return true;
}

static void
enter (uint32_t i, uint32_t n, enum overlap_type type, bool claim)
{
  overlap_set bad = claim ? OVERLAP_ALL : OVERLAP_ALL & ~ov_allowed (type);
  overlap_set met = 0, there = 0, got;
  uint32_t j;

  for (j = i; j < i + n; j++) {
    met |= set_of (j) & bad;
    there |= types[j] & bad;
  }
  got = (claim ? overlap_claim : overlap_enter) (o, type, at (i), n, NULL);
  if (held && !claim) {         /* may be told later */
    conflict |= there != 0;
    MUST (conflict || got == 0);
  }
  else if (held || rebuilding)  /* what is outside may be there or not */
    MUST ((got & ~there) == 0);
  else
    MUST (got == met);
  if (claim && got)
    return;
  for (j = i; j < i + n; j++)
    add (j, type);
}

static void
leave (uint32_t i, uint32_t n, enum overlap_type type)
{
  uint64_t missing = 0, got = overlap_leave (o, type, at (i), n);
  uint32_t j;

  for (j = i; j < i + n; j++) {
    if (owners[j][type])
      take (j, type);
    else if (!outside[j])
      missing++;
  }
  /* What left on the way, or will be told of later, counts as marked. */
  if (held)
    MUST (got <= n);
  else
    MUST (any_left ? missing <= got : missing == got);
}

static void
verify (void)
{
  const char *why;

  MUST (overlap_verify (o, &why));
}

/* A walk meets [I, I + N), also what has been taken back since it began,
 * and maybe not the tables of snapshots.
 */
static void
walk (uint32_t i, uint32_t n, bool all)
{
  enum overlap_type t;
  uint32_t j, k;

  for (j = i; j < i + n; j++)
    for (t = 0; t < OVERLAP_TYPES; t++)
      if (t != OVERLAP_INACTIVE_L2) {
        if ((types[j] | before[j]) & OVERLAP_BIT (t))
          overlap_restore_enter (o, t, at (j), 1);
      }
      else
        for (k = 0; all && k < owners[j][t]; k++)
          overlap_restore_enter (o, t, at (j), 1);
}

static void
rebuild_end (bool complete)
{
  if (complete)
    walk (0, CLUSTERS, true);
  overlap_restore_end (o, complete);
  rebuilding = false;
}

/* What is not an update. */
static void
other (uint32_t what, uint32_t i, uint32_t n)
{
  switch (what) {
  case 0: case 1:
    verify ();
    break;
  case 2: case 3: case 4:
    if (rebuilding)
      break;
    memcpy (before, types, sizeof before);
    rebuilding = overlap_restore_begin (o);
    break;
  case 5: case 6:
    if (rebuilding)
      walk (i, n, false);
    break;
  case 7:
    /* Room for what left. */
    ov_set_limit (o, UINT64_MAX);
    break;
  default:
    if (rebuilding)
      rebuild_end (what < 15);
  }
}

static void
operation (const uint8_t *p)
{
  enum overlap_type type = (enum overlap_type) (p[0] % 16 % OVERLAP_TYPES);
  uint32_t n = p[2] % 8 ? p[2] % 8u : p[2];
  uint32_t i = p[1] | (p[0] & 0x80u) << 1;

  if (n > HALF - i % HALF)
    n = HALF - i % HALF;

  /* A pinned mark for whose removal there is no memory stays. */
  if (p[3] < 16 && ((p[0] >> 4 & 7) < 4 || !is_pinned (type)))
    ov_fail_alloc (p[3] / 2 + 1u, p[3] % 2);
  switch (p[0] >> 4 & 7) {
  case 0: case 1: case 2:
    if (suits (i, n, type) && walk_can_tell (i, n, type, 0))
      enter (i, n, type, false);
    break;
  case 3:
    if ((!is_pinned (type) || suits (i, n, type))
        && walk_can_tell (i, n, type, 0))
      enter (i, n, type, true);
    break;
  case 4: case 5: case 6:
    if (walk_can_tell (i, n, type, 1))
      leave (i, n, type);
    break;
  default:
    other (p[0] % 16u, i, n);
  }
  ov_fail_alloc (0, false);
  if (!held)
    compare (i, n, (overlap_set) p[3] << 4 | p[2] % 16u);
}

static void
release_notices (void)
{
  struct overlap_conflict c;
  bool known;

  held = false;
  overlap_hold_notices (o, false);
  known = overlap_conflict (o, &c);
  MUST (any_left ? conflict || !known : conflict == known);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct overlap_config config = { .notice = notice };
  size_t i;

  if (size < 2)
    return 0;
  config.bitmap_size = data[0] * UINT64_C (64);
  config.total_limit = data[1] ? 1000 + data[1] * UINT64_C (32) : UINT64_MAX;
  memset (owners, 0, sizeof owners);
  memset (types, 0, sizeof types);
  memset (outside, 0, sizeof outside);
  n_pinned = 0;
  any_left = conflict = rebuilding = false;
  o = overlap_new (&config);
  if (o == NULL)
    return 0;
  held = data[1] % 4 == 0;
  if (held)
    overlap_hold_notices (o, true);
  for (i = 2; i + 4 <= size && i < 4 * MAX_OPERATIONS; i += 4) {
    if (held && i >= 4 * HELD_OPERATIONS)
      release_notices ();
    operation (data + i);
  }
  if (held)
    release_notices ();
  if (rebuilding)
    rebuild_end (true);
  verify ();
  compare (0, HALF, OVERLAP_ALL);
  compare (HALF, HALF, OVERLAP_ALL);
  overlap_free (o);
  return 0;
}
