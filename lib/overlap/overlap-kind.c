/* SPDX-License-Identifier: BSD-3-Clause */

/* The dictionary of kinds.  Which types own a cluster, and how often,
 * takes 24 bytes to write down, but an image has only a handful of
 * combinations.  So runs and pages hold the number of a combination;
 * more types, or more owners, cost nothing per cluster.
 *
 * A class is a combination of owners.  A kind is a class and the length
 * of a piece, a power of two; the class itself is the kind of length 1.
 *
 * Invariants:
 *
 * 1. A kind is never changed or removed once it has a number, so checks
 *    read the dictionary without a lock: they learn of the number from a
 *    run list or page that was published after the kind was written.
 * 2. No two kinds are equal.  Where there are more than the first few,
 *    "hash" finds each of them (open addressing, at most half full).
 * 3. Kinds 0 to 7 are in struct overlap, block B has the 8 << B from 8 << B
 *    on.  Blocks do not move, nor does the table of them.
 *
 * A dictionary that is full (65536 kinds) counts as memory that is not
 * there.
 *
 * Locks: the functions that may add a kind need overlap.lock.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "overlap-internal.h"

static uint32_t
hash_kind (const struct ov_kind *k)
{
  uint32_t part[3];
  uint64_t h = k->shared * UINT64_C (0x9e3779b97f4a7c15) + k->log;
  unsigned i;

  memcpy (part, k->owners, sizeof part);
  for (i = 0; i < 3; ++i)
    h = (h ^ part[i]) * UINT64_C (0xff51afd7ed558ccd) + (h >> 29);
  return (uint32_t) (h >> 32);
}

static bool
same_kind (const struct ov_kind *a, const struct ov_kind *b)
{
  return a->shared == b->shared && a->log == b->log
    && memcmp (a->owners, b->owners, sizeof a->owners) == 0;
}

/* The number of a kind among the first few, which are compared one by one;
 * 0 if it is not there.
 */
static uint16_t
find_here (const struct overlap *o, const struct ov_kind *k)
{
  unsigned id;

  for (id = 1; id < o->n_kinds; ++id)
    if (same_kind (&o->kind[id], k))
      return (uint16_t) id;
  return 0;
}

/* Where the hash has, or would have, this kind. */
static uint16_t *
hash_place (struct overlap *o, const struct ov_kind *k)
{
  uint32_t i = hash_kind (k);

  for (;; ++i) {
    uint16_t *place = &o->hash[i & (o->hash_size - 1)];
    if (*place == 0 || same_kind (ov_kind (o, *place), k))
      return place;
  }
}

static int
hash_grow (struct overlap *o, bool force)
{
  unsigned size = o->hash ? o->hash_size * 2 : 4 * OV_KINDS_HERE, i;
  uint16_t *hash = ov_alloc (o, size * sizeof *hash, force);

  if (!hash)
    return -ENOMEM;
  ov_free (o, o->hash);
  o->hash = hash;
  o->hash_size = size;
  for (i = 1; i < o->n_kinds; ++i)
    *hash_place (o, ov_kind (o, i)) = (uint16_t) i;
  return 0;
}

/* The table of the blocks, or NULL. */
static struct ov_kind_blocks *
kind_blocks (struct overlap *o, bool force)
{
  struct ov_kind_blocks *blocks
    = atomic_load_explicit (&o->kinds, memory_order_relaxed);

  if (!blocks) {
    blocks = ov_alloc (o, sizeof *blocks, force);
    atomic_store_explicit (&o->kinds, blocks, memory_order_release);
  }
  return blocks;
}

/* The place of the next kind, or NULL. */
static struct ov_kind *
next_kind (struct overlap *o, bool force)
{
  unsigned id = o->n_kinds, block, first;
  struct ov_kind_blocks *others;
  struct ov_kind *kinds;

  if (id < OV_KINDS_HERE)
    return &o->kind[id];
  if (id >= OV_KINDS_MAX)
    return NULL;
  others = kind_blocks (o, force);
  if (!others)
    return NULL;
  block = ov_kind_block (id);
  first = OV_KINDS_HERE << block;
  kinds = atomic_load_explicit (&others->block[block], memory_order_relaxed);
  if (!kinds) {
    kinds = ov_alloc (o, first * sizeof *kinds, force);
    if (!kinds)
      return NULL;
    atomic_store_explicit (&others->block[block], kinds,
                           memory_order_release);
  }
  return &kinds[id - first];
}

/* Have room for one more in the hash, if there is to be one. */
static int
hash_room (struct overlap *o, bool force)
{
  if (o->n_kinds < OV_KINDS_HERE
      || (o->hash && (o->n_kinds + 1) * 2 <= o->hash_size))
    return 0;
  return hash_grow (o, force);
}

/* The number of a kind, which is added if it is new. */
static int
intern (struct overlap *o, const struct ov_kind *k, bool force, uint16_t *id)
{
  struct ov_kind *to;

  *id = o->hash ? *hash_place (o, k) : find_here (o, k);
  if (*id != 0)
    return 0;
  if (hash_room (o, force) < 0)
    return -ENOMEM;
  to = next_kind (o, force);
  if (!to)
    return -ENOMEM;
  *to = *k;
  if (k->log == 0)
    to->class = (uint16_t) o->n_kinds;
  *id = (uint16_t) o->n_kinds;
  if (o->hash)
    *hash_place (o, k) = *id;
  o->n_kinds++;
  return 0;
}

int
ov_kind_plus (struct overlap *o, uint16_t from, enum overlap_type type,
              bool force, uint16_t *to)
{
  struct ov_kind k;
  int r;

  if (from == 0 && o->plain[type] != 0) {
    *to = o->plain[type];
    return 0;
  }
  k = *ov_kind (o, from);
  k.set |= OVERLAP_BIT (type);
  if (type == OVERLAP_INACTIVE_L2) {
    if (k.shared < UINT32_MAX)
      k.shared++;
  }
  else if (k.owners[type] < UINT8_MAX)
    k.owners[type]++;
  r = intern (o, &k, force, to);
  if (r == 0 && from == 0)
    o->plain[type] = *to;
  return r;
}

int
ov_kind_minus (struct overlap *o, uint16_t from, enum overlap_type type,
               bool force, uint16_t *to)
{
  struct ov_kind k = *ov_kind (o, from);

  if (!(k.set & OVERLAP_BIT (type))) {
    *to = from;
    return 0;
  }
  if (type == OVERLAP_INACTIVE_L2) {
    if (k.shared < UINT32_MAX)
      k.shared--;
    if (k.shared == 0)
      k.set &= ~OVERLAP_BIT (type);
  }
  else {
    if (k.owners[type] < UINT8_MAX)
      k.owners[type]--;
    if (k.owners[type] == 0)
      k.set &= ~OVERLAP_BIT (type);
  }
  if (k.set == OVERLAP_NONE) {
    *to = 0;
    return 0;
  }
  return intern (o, &k, force, to);
}

int
ov_kind_sized (struct overlap *o, uint16_t class, unsigned log, bool force,
               uint16_t *kind)
{
  struct ov_kind k;

  if (log == 0) {
    *kind = class;
    return 0;
  }
  k = *ov_kind (o, class);
  k.log = (uint8_t) log;
  return intern (o, &k, force, kind);
}

/* The kinds that most images are full of get the smallest numbers: the
 * first two then take one bit in a run list, all four take two.
 */
void
ov_kind_init (struct overlap *o)
{
  uint16_t id, both;

  o->n_kinds = 1;
  ov_kind_plus (o, 0, OVERLAP_ACTIVE_L2, true, &both);
  ov_kind_plus (o, 0, OVERLAP_REFCOUNT_BLOCK, true, &id);
  ov_kind_plus (o, 0, OVERLAP_INACTIVE_L2, true, &id);
  ov_kind_plus (o, both, OVERLAP_INACTIVE_L2, true, &id);
}
