/* SPDX-License-Identifier: BSD-3-Clause */

/* An opinion of a small image: every pointer is followed and counted,
 * and what was counted is compared with the reference counts (qcow2
 * specification, "Host cluster management", "Cluster mapping",
 * "Snapshots").  Made for images of some megabytes that may be damaged
 * in any way; see small-image.h.
 */

#include <config.h>

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "small-image.h"

#define COPIED (UINT64_C (1) << 63)
#define COMPRESSED (UINT64_C (1) << 62)
#define OFFSET UINT64_C (0x00fffffffffffe00)

/* No image is asked about that has more of anything. */
#define MAX_ENTRIES (UINT64_C (1) << 16)

struct checker {
  const uint8_t *bytes;
  uint64_t len;
  uint64_t bits, cs;            /* of a cluster */
  uint64_t clusters;            /* of the file */
  uint64_t order;
  uint32_t *refs;               /* pointers to each cluster */
  struct small_verdict *v;
  small_table_fn *fn;
  void *opaque;
};

static uint64_t
get (const struct checker *c, uint64_t at, unsigned width)
{
  uint64_t value = 0;
  unsigned i;

  for (i = 0; i < width; ++i)
    value = value << 8 | (at + i < c->len ? c->bytes[at + i] : 0);
  return value;
}

static void __attribute__ ((format (printf, 3, 4)))
say (struct checker *c, unsigned *count, const char *fs, ...)
{
  va_list args;

  if ((*count)++ == 0 && (count == &c->v->corruptions
                          || c->v->corruptions == 0)) {
    va_start (args, fs);
    vsnprintf (c->v->first, sizeof c->v->first, fs, args);
    va_end (args);
  }
}

#define CORRUPT(...) say (c, &c->v->corruptions, __VA_ARGS__)

/* A pointer to LEN bytes at AT.  False if they are not there. */
static bool
point (struct checker *c, const char *what, uint64_t at, uint64_t len)
{
  uint64_t i;

  if (len == 0)
    return true;
  if (at >= c->len || len > c->clusters * c->cs - at) {
    CORRUPT ("%s at 0x%jx is past the end", what, (uintmax_t) at);
    return false;
  }
  for (i = at >> c->bits; i <= (at + len - 1) >> c->bits; ++i)
    c->refs[i]++;
  return true;
}

static bool
table (struct checker *c, const char *what, uint64_t at, uint64_t len)
{
  if (at & (c->cs - 1)) {
    CORRUPT ("%s at 0x%jx is unaligned", what, (uintmax_t) at);
    return false;
  }
  if (!point (c, what, at, len))
    return false;
  if (c->fn && len)
    c->fn (c->opaque, what, at, len);
  return true;
}

/* The count that the file has of a cluster. */
static uint64_t
count_of (const struct checker *c, uint64_t cluster)
{
  const uint64_t per_block = c->cs * 8 >> c->order;
  const uint64_t index = cluster % per_block;
  const unsigned width = 1u << c->order;
  uint64_t block;

  if (cluster / per_block >= get (c, 56, 4) << c->bits >> 3)
    return 0;
  block = get (c, get (c, 48, 8) + cluster / per_block * 8, 8) & ~UINT64_C (511);
  if (block == 0)
    return 0;
  if (width >= 8)
    return get (c, block + index * width / 8, width / 8);
  return get (c, block + index * width / 8, 1) >> index * width % 8
    & ((1u << width) - 1);
}

static void
check_copied (struct checker *c, const char *what, uint64_t entry,
              uint64_t at)
{
  if (!(entry & COPIED) != (count_of (c, at >> c->bits) != 1))
    CORRUPT ("COPIED is wrong for %s at 0x%jx", what, (uintmax_t) at);
}

static void
check_l2_entry (struct checker *c, uint64_t entry, bool active)
{
  const unsigned x = 62 - ((unsigned) c->bits - 8);

  if (entry & COMPRESSED) {
    const uint64_t at = entry & ((UINT64_C (1) << x) - 1);
    const uint64_t sectors = (entry & (COMPRESSED - 1)) >> x;
    uint64_t n = (sectors + 1) * 512 - at % 512;

    /* The last sector may end past the end of the file. */
    if (at < c->len && n > c->clusters * c->cs - at)
      n = c->clusters * c->cs - at;
    point (c, "compressed cluster", at, n);
    if (entry & COPIED)
      CORRUPT ("compressed cluster at 0x%jx is COPIED", (uintmax_t) at);
    return;
  }
  if ((entry & OFFSET) == 0)
    return;
  if (entry & OFFSET & (c->cs - 1)) {
    CORRUPT ("cluster at 0x%jx is unaligned", (uintmax_t) (entry & OFFSET));
    return;
  }
  if (point (c, "cluster", entry & OFFSET, c->cs) && active)
    check_copied (c, "cluster", entry, entry & OFFSET);
}

static void
check_l1 (struct checker *c, uint64_t at, uint64_t entries, bool active)
{
  uint64_t i, j;

  if (!table (c, active ? "L1" : "inactive L1", at, entries * 8))
    return;
  for (i = 0; i < entries && i < MAX_ENTRIES; ++i) {
    const uint64_t entry = get (c, at + i * 8, 8);
    const uint64_t l2 = entry & OFFSET;

    if (l2 == 0 || !table (c, active ? "L2" : "inactive L2", l2, c->cs))
      continue;
    if (active)
      check_copied (c, "L2 table", entry, l2);
    for (j = 0; j < c->cs; j += 8)
      check_l2_entry (c, get (c, l2 + j, 8), active);
  }
}

static void
check_snapshots (struct checker *c)
{
  const uint64_t start = get (c, 64, 8), n = get (c, 60, 4);
  uint64_t at = start, i;

  for (i = 0; i < n && i < MAX_ENTRIES && at < c->len; ++i) {
    check_l1 (c, get (c, at, 8), get (c, at + 8, 4), false);
    at += 40 + get (c, at + 36, 4) + get (c, at + 12, 2)
      + get (c, at + 14, 2);
    at = (at + 7) & ~UINT64_C (7);
  }
  if (n > 0)
    table (c, "snapshot table", start, at - start);
}

static void
check_refcounts (struct checker *c)
{
  const uint64_t at = get (c, 48, 8), bytes = get (c, 56, 4) << c->bits;
  uint64_t i;

  if (!table (c, "refcount table", at, bytes))
    return;
  for (i = 0; i < bytes; i += 8) {
    const uint64_t block = get (c, at + i, 8) & ~UINT64_C (511);

    if (block)
      table (c, "refcount block", block, c->cs);
  }
}

static void
compare (struct checker *c)
{
  uint64_t i;

  for (i = 0; i < c->clusters; ++i) {
    const uint64_t count = count_of (c, i);

    if (count < c->refs[i])
      CORRUPT ("cluster 0x%jx has %ju references and a count of %ju",
               (uintmax_t) i, (uintmax_t) c->refs[i], (uintmax_t) count);
    else if (count > c->refs[i])
      say (c, &c->v->leaks, "cluster 0x%jx has %ju references and a count "
           "of %ju", (uintmax_t) i, (uintmax_t) c->refs[i],
           (uintmax_t) count);
  }
}

void
small_image_check (const uint8_t *bytes, size_t len,
                   struct small_verdict *verdict, small_table_fn *fn,
                   void *opaque)
{
  struct checker here = {
    .bytes = bytes, .len = len, .v = verdict, .fn = fn, .opaque = opaque
  }, *c = &here;

  memset (verdict, 0, sizeof *verdict);
  c->bits = get (c, 20, 4);
  if (get (c, 0, 4) != 0x514649fb || c->bits < 9 || c->bits > 21) {
    CORRUPT ("no header");
    return;
  }
  c->cs = UINT64_C (1) << c->bits;
  c->clusters = (len + c->cs - 1) >> c->bits;
  c->order = get (c, 4, 4) == 2 ? 4 : get (c, 96, 4);
  if (c->order > 6) {
    CORRUPT ("refcount_order is %ju", (uintmax_t) c->order);
    return;
  }
  c->refs = calloc (c->clusters, sizeof *c->refs);
  if (c->refs == NULL)
    abort ();
  table (c, "header", 0, c->cs);
  check_refcounts (c);
  check_l1 (c, get (c, 40, 8), get (c, 36, 4), true);
  check_snapshots (c);
  compare (c);
  free (c->refs);
}
