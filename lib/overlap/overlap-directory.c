/* SPDX-License-Identifier: BSD-3-Clause */

/* The directory: from the number of a window to its slot.
 *
 * A radix tree of 32-way nodes that skips the levels at which there is
 * only one way to go.  A node exists only where at least two windows
 * part, or for 32 neighbouring windows of which one has been marked, so
 * a pointer to the far end of a hostile file costs two nodes (of 264
 * bytes), however far it points.
 *
 * Invariants:
 *
 * 1. A node never moves, changes its prefix or goes away before
 *    overlap_free; its children only change from nothing to something,
 *    or to a new node with the old child below it.  So checks walk the
 *    tree without a lock, with one acquiring load per level.
 * 2. Every window below a node has the node's prefix.
 *
 * Locks: ov_dir_insert needs overlap.lock.
 */

#include <config.h>

#include "overlap-fast.h"

static unsigned
shift_of (const struct ov_node *n)
{
  return n->prefix & 0xff;
}

/* Bits above the node's own ways. */
static uint64_t
above (uint64_t window, unsigned shift)
{
  return window >> shift >> OV_WAY_BITS;
}

static bool
covers (const struct ov_node *n, uint64_t window)
{
  return above (window, shift_of (n)) == n->prefix >> 8;
}

static unsigned
way_of (const struct ov_node *n, uint64_t window)
{
  return (window >> shift_of (n)) & (OV_WAYS - 1);
}

static struct ov_node *
child (const struct ov_node *n, unsigned way)
{
  return atomic_load_explicit (&n->way[way].node, memory_order_acquire);
}

static struct ov_node *
new_node (struct overlap *o, uint64_t window, unsigned shift, bool force)
{
  struct ov_node *n = ov_alloc (o, sizeof *n, force);

  if (n) {
    n->prefix = above (window, shift) << 8 | shift;
    o->directory_bytes += ov_size (n);
  }
  return n;
}

/* Put a node that covers WINDOW too in the place of N. */
static struct ov_node *
part (struct overlap *o, struct ov_node *n, uint64_t window, bool force)
{
  uint64_t other = n->prefix >> 8 << shift_of (n) << OV_WAY_BITS;
  unsigned shift = shift_of (n);
  struct ov_node *upper;

  do
    shift += OV_WAY_BITS;
  while (above (window, shift) != above (other, shift));
  upper = new_node (o, window, shift, force);
  if (upper)
    atomic_init (&upper->way[way_of (upper, other)].node, n);
  return upper;
}

ov_slot *
ov_dir_insert (struct overlap *o, uint64_t window, bool force)
{
  _Atomic (struct ov_node *) *link = &o->root;
  struct ov_node *n;

  for (;;) {
    n = atomic_load_explicit (link, memory_order_relaxed);
    if (!n || !covers (n, window)) {
      n = n ? part (o, n, window, force) : new_node (o, window, 0, force);
      if (!n)
        return NULL;
      atomic_store_explicit (link, n, memory_order_release);
    }
    if (shift_of (n) == 0)
      return &n->way[way_of (n, window)].slot;
    link = &n->way[way_of (n, window)].node;
  }
}

/* The first slot from *WINDOW on below N, in the order of windows. */
static ov_slot *
next_below (struct ov_node *n, uint64_t *window)
{
  unsigned shift = shift_of (n), way;
  uint64_t first = n->prefix >> 8 << shift << OV_WAY_BITS;
  ov_slot *slot;

  if (*window < first)
    *window = first;
  if (!covers (n, *window))
    return NULL;
  if (shift == 0)
    return &n->way[way_of (n, *window)].slot;
  for (way = way_of (n, *window); way < OV_WAYS; ++way) {
    struct ov_node *c = child (n, way);

    slot = c ? next_below (c, window) : NULL;
    if (slot)
      return slot;
  }
  return NULL;
}

ov_slot *
ov_dir_next (const struct overlap *o, uint64_t *window)
{
  struct ov_node *n = atomic_load_explicit (&o->root, memory_order_acquire);

  return n ? next_below (n, window) : NULL;
}

/* Sum up the nodes from N down, and release them if FREE is set. */
static uint64_t
walk (struct overlap *o, struct ov_node *n, bool free)
{
  uint64_t sum;
  unsigned way;

  if (!n)
    return 0;
  sum = ov_size (n);
  if (shift_of (n) > 0)
    for (way = 0; way < OV_WAYS; ++way)
      sum += walk (o, child (n, way), free);
  if (free)
    ov_free (o, n);
  return sum;
}

void
ov_dir_free (struct overlap *o)
{
  walk (o, atomic_load (&o->root), true);
}

uint64_t
ov_dir_recount (const struct overlap *o)
{
  return walk ((struct overlap *) o, atomic_load (&o->root), false);
}
