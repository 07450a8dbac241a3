/* SPDX-License-Identifier: BSD-3-Clause */

/* Fuzz target: operations on the tracker, compared with an array that
 * has the owners of each cluster.  The tracker is built with tiny
 * windows, so that few bytes meet its borders.
 *
 * The input is two bytes of bitmap-size and limit, then four bytes an
 * operation: what and type, cluster, length, and which allocation fails.
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

static struct overlap *o;
static uint8_t owners[CLUSTERS][OVERLAP_TYPES];
static bool outside[CLUSTERS];
static bool any_left;           /* a notice came */

static uint64_t
at (uint32_t i)
{
  return i < HALF ? i : FAR + i;
}

static overlap_set
set_of (uint32_t i)
{
  overlap_set set = 0;
  unsigned t;

  for (t = 0; t < OVERLAP_TYPES; t++)
    if (owners[i][t])
      set |= OVERLAP_BIT (t);
  return set;
}

/* What leaves keeps the clusters that have a pinned mark. */
static void
notice (void *opaque, const struct overlap_notice *n)
{
  uint32_t i;

  (void) opaque;
  MUST (!n->restored && n->count > 0);
  any_left = true;
  for (i = 0; i < CLUSTERS; i++)
    if (at (i) - n->first < n->count) {
      MUST (!outside[i]);
      outside[i] = true;
      if (!(set_of (i) & OV_PINNED))
        memset (owners[i], 0, sizeof owners[i]);
    }
}

static void
compare (uint32_t i, uint32_t n, overlap_set mask)
{
  overlap_set any = 0, all = OVERLAP_ALL;
  uint64_t where = UINT64_MAX;
  bool out = false;
  struct overlap_answer a;
  uint32_t j;

  for (j = i; j < i + n; j++) {
    overlap_set set = set_of (j);

    any |= set;
    if ((set & mask) && where == UINT64_MAX)
      where = at (j);
    if (outside[j])
      out = true;
    else
      all &= set;
  }
  overlap_query (o, at (i), n, mask, &a);
  MUST (a.any == any && a.all == all && a.outside == out);
  MUST (!(any & mask) || a.where == where);
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
  bool pinned = OV_PINNED & OVERLAP_BIT (type);
  uint32_t j, count = 0;

  for (j = i; j < i + n; j++) {
    overlap_set set = set_of (j);

    if (set && (pinned || (set & OV_PINNED)))
      return false;
    if (owners[j][type] >= 5)
      return false;
  }
  for (j = 0; pinned && j < CLUSTERS; j++)
    count += (set_of (j) & OV_PINNED) != 0;
  return !pinned || count + n <= OV_KEPT_MAX;
}

static void
enter (uint32_t i, uint32_t n, enum overlap_type type, bool claim)
{
  overlap_set bad = claim ? OVERLAP_ALL : OVERLAP_ALL & ~ov_allowed (type);
  overlap_set met = 0, got;
  bool pinned = OV_PINNED & OVERLAP_BIT (type);
  uint32_t j;

  for (j = i; j < i + n; j++)
    met |= set_of (j) & bad;
  got = (claim ? overlap_claim : overlap_enter) (o, type, at (i), n, NULL);
  MUST (got == met);
  if (claim && met)
    return;
  for (j = i; j < i + n; j++)
    if (pinned || !outside[j])
      owners[j][type]++;
}

static void
leave (uint32_t i, uint32_t n, enum overlap_type type)
{
  uint64_t missing = 0, got = overlap_leave (o, type, at (i), n);
  uint32_t j;

  for (j = i; j < i + n; j++) {
    if (owners[j][type])
      owners[j][type]--;
    else if (!outside[j])
      missing++;
  }
  /* What left on the way counts as marked. */
  MUST (any_left ? missing <= got : missing == got);
}

static void
verify (void)
{
  const char *why;

  MUST (overlap_verify (o, &why));
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
  if (p[3] < 16
      && ((p[0] >> 4 & 7) < 4 || !(OV_PINNED & OVERLAP_BIT (type))))
    ov_fail_alloc (p[3] / 2 + 1u, p[3] % 2);
  switch (p[0] >> 4 & 7) {
  case 0: case 1: case 2:
    if (suits (i, n, type))
      enter (i, n, type, false);
    break;
  case 3:
    if (!(OV_PINNED & OVERLAP_BIT (type)) || suits (i, n, type))
      enter (i, n, type, true);
    break;
  case 4: case 5: case 6:
    leave (i, n, type);
    break;
  default:
    verify ();
  }
  ov_fail_alloc (0, false);
  compare (i, n, (overlap_set) p[3] << 4 | p[2] % 16u);
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
  memset (outside, 0, sizeof outside);
  any_left = false;
  o = overlap_new (&config);
  if (o == NULL)
    return 0;
  for (i = 2; i + 4 <= size && i < 4 * MAX_OPERATIONS; i += 4)
    operation (data + i);
  verify ();
  compare (0, HALF, OVERLAP_ALL);
  compare (HALF, HALF, OVERLAP_ALL);
  overlap_free (o);
  return 0;
}
